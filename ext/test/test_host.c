/*
** What hosts of one node leave each other: which start is which, and what became
** of transactions that one of them was given by another process.
*/
#include "nodes.h"

#include "cluster.h"
#include "database.h"

#include <signal.h>
#include <sys/wait.h>

#define LATER ((uint64_t)3600000 << 20) /* as numbers are made: an hour */
#define RESOLVE_MS 30000

static bool never(struct connection *c)
{
  (void)c;
  return false;
}

static int resolve(struct node *node, struct control_slot *slot)
{
  struct connection c = {
      .node = node, .map = node->map, .slot = slot, .interrupted = never};
  return writer_resolve(&c, atomic_load(&slot->handed), RESOLVE_MS);
}

/* Also when the calendar has gone back, and the one before wrote nothing. */
static void test_starts_differ(void **state)
{
  struct nodes nodes;
  nodes_make(&nodes, *state, 1, 300);
  struct node *node = nodes_node(&nodes, 1);
  uint64_t newest = node->started + LATER;
  atomic_store(&node->shared->sequence, newest);
  nodes_stop(&nodes, 1);
  for (int i = 0; i < 3; i++) {
    nodes_open(&nodes, 1);
    uint64_t started = nodes_node(&nodes, 1)->started;
    assert_true(started > newest);
    newest = started;
    nodes_stop(&nodes, 1);
  }
  nodes_open(&nodes, 1);
  node = nodes_node(&nodes, 1);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(x)"));
  assert_true(atomic_load(&node->shared->sequence) > node->started);
  nodes_stop(&nodes, 1);
}

static void test_fates(void **state)
{
  struct nodes nodes;
  struct control_reader reader;
  nodes_make(&nodes, *state, 1, 300);
  struct node *node = nodes_node(&nodes, 1);
  uint64_t earlier = node->started - 1;
  assert_int_equal(control_enter(node->map, NULL, &reader), 0);
  struct control_slot *slot = reader.slot;
  atomic_store(&slot->committed, 0);
  atomic_store(&slot->handed, earlier);
  assert_int_equal(resolve(node, slot), VFS_REJECTED);
  atomic_store(&slot->committed, earlier);
  assert_int_equal(resolve(node, slot), SQLITE_OK);
  /* What was seen to be committed is so behind a snapshot, too. */
  control_set_unsure(node->map);
  assert_int_equal(resolve(node, slot), SQLITE_OK);
  atomic_store(&slot->committed, earlier - 1);
  control_set_unsure(node->map);
  assert_int_equal(resolve(node, slot), VFS_UNKNOWN);
  /* What no host has begun with is in nobody's snapshot. */
  atomic_store(&slot->committed, 0);
  atomic_store(&slot->handed, CONTROL_SENT);
  control_set_unsure(node->map);
  assert_int_equal(atomic_load(&slot->committed), 0);
  atomic_store(&slot->handed, 0);
  control_set_unsure(node->map);
  assert_int_equal(atomic_load(&slot->committed), 0);
  control_leave(&reader);
  nodes_stop(&nodes, 1);
}

/* A host dies before it has seen that a transaction is committed; the next one
   applies it, and takes it out of the log's reach, before its process asks. */
static void test_fate_behind_checkpoint(void **state)
{
  struct nodes nodes;
  struct control_reader reader;
  struct text answer;
  nodes_make(&nodes, *state, 1, 300);
  struct node *node = nodes_node(&nodes, 1);
  struct control_map *map = control_ref(node->map);
  assert_int_equal(control_enter(map, NULL, &reader), 0);
  struct control_slot *slot = reader.slot;
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(x)"));
  uint64_t handed = atomic_load(&node->shared->sequence);
  atomic_store(&slot->committed, 0);
  atomic_store(&slot->handed, handed);
  assert_int_equal(sqlite3_close(nodes.db[1]), SQLITE_OK);
  assert_int_equal(registry_stop(nodes_path(&nodes, 1).s, false, &answer),
                   SQLITE_OK);
  nodes_open(&nodes, 1);
  assert_int_equal(atomic_load(&slot->committed), 0);
  nodes_stop(&nodes, 1);
  nodes_open(&nodes, 1);
  assert_false(apply_knows(nodes_node(&nodes, 1), handed));
  assert_int_equal(resolve(nodes_node(&nodes, 1), slot), SQLITE_OK);
  /* Nor does a snapshot make that unknown. */
  control_set_unsure(map);
  assert_int_equal(resolve(nodes_node(&nodes, 1), slot), SQLITE_OK);
  control_leave(&reader);
  nodes_stop(&nodes, 1);
  control_close(map);
}

/* What a process had pinned that was killed keeps nobody from detaching. */
static void test_killed_reader(void **state)
{
  struct nodes nodes;
  struct control_reader reader;
  struct control_view view;
  nodes_make(&nodes, *state, 1, 300);
  struct node *node = nodes_node(&nodes, 1);
  assert_int_equal(control_enter(node->map, NULL, &reader), 0);
  control_pin(node->map, &reader, false, &view);
  assert_true(detach_is_used(node));
  assert_false(wal_forbid(node->wal));
  uint64_t pin = atomic_load(&reader.slot->pin);
  atomic_store(&reader.slot->owner, CONTROL_PROCESSES);
  assert_false(detach_is_used(node));
  atomic_store(&reader.slot->pin, pin);
  atomic_store(&reader.slot->owner, CONTROL_PROCESSES);
  assert_true(wal_forbid(node->wal));
  nodes_stop(&nodes, 1);
}

/* A child that hosts a node until it is killed. */
static pid_t host_elsewhere(const char *dir)
{
  struct nodes nodes;
  int ready[2];
  char byte = 0;
  assert_int_equal(pipe(ready), 0);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    nodes_make(&nodes, dir, 1, 300);
    nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(x)"));
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    for (;;)
      pause();
  }
  close(ready[1]);
  assert_int_equal(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  return pid;
}

/* A host is killed while all who read wait for a new WAL. Until there is another
   one, who reads without it does not wait for long, again and again. */
static void test_killed_in_hold(void **state)
{
  struct nodes nodes = {.dir = *state, .n = 1};
  int status;
  pid_t pid = host_elsewhere(*state);
  registry_guest = true;
  nodes_open(&nodes, 1);
  sqlite3 *db = nodes.db[1];
  struct connection *c = vfs_connection(db, "main");
  assert_null(c->node);
  nodes_do(db, sqlite3_mprintf("PRAGMA quorate_consistency=local"));
  nodes_do(db, sqlite3_mprintf("SELECT count(*) FROM t"));
  atomic_store(&c->map->control->hold, HOLD_ALL);
  kill(pid, SIGKILL);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  nodes_do(db, sqlite3_mprintf("SELECT count(*) FROM t"));
  uint64_t began = clock_monotonic_ms();
  nodes_do(db, sqlite3_mprintf("SELECT count(*) FROM t"));
  assert_in_range(clock_monotonic_ms() - began, 0, 4500);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  registry_guest = false;
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_starts_differ, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_fates, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_fate_behind_checkpoint, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_killed_reader, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_killed_in_hold, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
