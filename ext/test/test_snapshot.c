/*
** A snapshot that turns out not to be needed: who gives it is told, and does not
** keep it, and what the log is to send, until it is forgotten. One that could not
** be given when raft asked for it is given later.
*/
#include "nodes.h"

#define ELECTION_MS 1000

struct gift {
  struct task task;
  raft_id to;
  bool given;
  _Atomic bool done;
};

static void give(struct task *task)
{
  struct gift *g = (struct gift *)task;
  if (g->to) snapshot_send(task->node, g->to); /* as raft would have it */
  g->given = task->node->snapshots != NULL;
  atomic_store(&g->done, true);
}

/* Whether a snapshot is being given after this. */
static bool gives(struct node *node, raft_id to)
{
  struct gift g = {.to = to};
  g.task.run = give;
  assert_true(node_post(node, &g.task));
  until(atomic_load(&g.done));
  return g.given;
}

static void test_needless(void **state)
{
  struct nodes nodes;
  nodes_make(&nodes, *state, 2, ELECTION_MS);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(v)"));
  unsigned leader = nodes_leader(&nodes);
  struct node *node = nodes_node(&nodes, leader);
  raft_id other = nodes_node(&nodes, leader % 2 + 1)->identity.id;
  assert_true(gives(node, other));
  until(!gives(node, 0));
  assert_int_equal(
      nodes_number(nodes.db[leader],
                   sqlite3_mprintf("SELECT count(*) FROM quorate_events WHERE"
                                   " event LIKE '%%was not fetched'")),
      0);
  nodes_do(nodes.db[leader], sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

/* Raft asks for a snapshot for the other node, and there is no memory for it:
   nothing is done. */
static void ask_in_vain(struct task *task)
{
  struct gift *g = (struct gift *)task;
  struct node *node = task->node;
  struct raft_effects effects;
  struct raft_progress progress;
  assert_true(raft_progress(node->raft, g->to, &progress));
  for (int i = 0; i < 3; i++) {
    struct raft_event event = {.type = RAFT_EVENT_LOADED,
                               .now = clock_monotonic_ms()};
    event.u.loaded.peer = g->to;
    event.u.loaded.first = progress.next; /* cannot be read */
    assert_int_equal(raft_step(node->raft, &event, &effects), 0);
    assert_int_equal(effects.persist.seq, 0);
  }
  assert_true(raft_progress(node->raft, g->to, &progress));
  g->given = progress.state == RAFT_SNAPSHOT;
  atomic_store(&g->done, true);
}

static void test_asked_in_vain(void **state)
{
  struct nodes nodes;
  nodes_make(&nodes, *state, 2, ELECTION_MS);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(v)"));
  unsigned leader = nodes_leader(&nodes);
  struct node *node = nodes_node(&nodes, leader);
  struct gift g = {.to = nodes_node(&nodes, leader % 2 + 1)->identity.id};
  g.task.run = ask_in_vain;
  assert_true(node_post(node, &g.task));
  until(atomic_load(&g.done));
  assert_true(g.given);
  nodes_do(nodes.db[leader], sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_needless, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_asked_in_vain, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
