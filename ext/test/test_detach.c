/*
** quorate_detach() while it is not known whether a transaction is committed: a
** node whose partner says nothing.
*/
#include "nodes.h"

#include <semaphore.h>

#define ELECTION_MS 2000
#define FATE_MS 700 /* less than that: the leader still hopes */

struct test {
  struct nodes nodes;
  sqlite3 *memory;
  struct task task; /* holds the loop of node 2 up */
  sem_t held, go;
};

static char *detach(struct test *t, char **error)
{
  return nodes_ask(
      t->memory,
      sqlite3_mprintf("SELECT quorate_detach(%Q)", nodes_path(&t->nodes, 1).s),
      error);
}

static unsigned inflight(struct node *node)
{
  unsigned n = 0;
  pthread_mutex_lock(&node->mutex);
  for (struct transaction *tx = node->inflight; tx; tx = tx->next)
    n++;
  pthread_mutex_unlock(&node->mutex);
  return n;
}

static void hold_up(struct task *task)
{
  struct test *t = (struct test *)((char *)task - offsetof(struct test, task));
  sem_post(&t->held);
  sem_wait(&t->go);
}

/* Node 1 has a transaction in flight, and nobody waits for it. */
static struct node *begin(struct test *t, void **state)
{
  node_limits.fate_ms = PATIENCE_MS;
  nodes_make(&t->nodes, *state, 2, ELECTION_MS);
  sqlite3_open(":memory:", &t->memory);
  sem_init(&t->held, 0, 0);
  sem_init(&t->go, 0, 0);
  sqlite3 *db = t->nodes.db[1];
  struct node *node = nodes_node(&t->nodes, 1);
  nodes_do(db, sqlite3_mprintf("CREATE TABLE t(a)"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES('before')"));
  assert_int_equal(nodes_leader(&t->nodes), 1);
  raft_index last = nodes_view(&t->nodes, 1).last;
  t->task = (struct task){.run = hold_up, .node = nodes_node(&t->nodes, 2)};
  node_limits.fate_ms = FATE_MS;
  assert_true(node_post(t->task.node, &t->task));
  sem_wait(&t->held);
  assert_int_equal(
      sqlite3_exec(db, "INSERT INTO t VALUES('last')", NULL, NULL, NULL),
      VFS_UNKNOWN);
  until(nodes_view(&t->nodes, 1).last > last); /* it is in the log */
  assert_int_equal(inflight(node), 1);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  t->nodes.db[1] = NULL;
  return node;
}

static void look(const struct test *t, int rows)
{
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open_v2(nodes_path(&t->nodes, 1).s, &db,
                                   SQLITE_OPEN_READWRITE, "unix"),
                   SQLITE_OK);
  assert_int_equal(nodes_number(db, sqlite3_mprintf("SELECT count(*) FROM t")),
                   rows);
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES('ordinary')"));
  sqlite3_close(db);
}

static void end(struct test *t)
{
  sem_post(&t->go);
  nodes_stop(&t->nodes, 2);
  sqlite3_close(t->memory);
  sem_destroy(&t->held);
  sem_destroy(&t->go);
}

/* The reason is the true one; what it advises helps. */
static void test_refused(void **state)
{
  struct test t;
  char *error, *answer;
  begin(&t, state);
  answer = detach(&t, &error); /* longer than it leads without a quorum */
  assert_null(answer);
  assert_non_null(strstr(error, "not known yet whether a transaction is"));
  assert_non_null(strstr(error, "no leader: no quorum"));
  free(error);
  assert_true(nodes_stop(&t.nodes, 1));
  answer = detach(&t, &error);
  if (error) fail_msg("%s", error);
  free(answer);
  look(&t, 1);
  end(&t);
}

struct waiting {
  struct test *test;
  struct node *node;
  void (*then)(struct test *t);
};

/* When somebody waits for what is in flight. */
static void *meanwhile_main(void *arg)
{
  struct waiting *w = arg;
  unsigned watchers = 0;
  while (watchers == 0) {
    pthread_mutex_lock(&w->node->mutex);
    watchers = w->node->watchers;
    pthread_mutex_unlock(&w->node->mutex);
    pause_ms(PAUSE_MS);
  }
  w->then(w->test);
  return NULL;
}

static char *detach_while(struct test *t, struct node *node,
                          void (*then)(struct test *t), char **error)
{
  pthread_t thread;
  struct waiting waiting = {t, node, then};
  assert_int_equal(pthread_create(&thread, NULL, meanwhile_main, &waiting), 0);
  char *answer = detach(t, error);
  pthread_join(thread, NULL);
  return answer;
}

/* Nobody is kept from opening a node meanwhile. */
static void come_back(struct test *t)
{
  sqlite3_close(nodes_connect(&t->nodes, 2));
  sem_post(&t->go);
}

/* It has its fate meanwhile, and its row is there. */
static void test_waits(void **state)
{
  struct test t;
  char *error, *answer;
  answer = detach_while(&t, begin(&t, state), come_back, &error);
  if (error) fail_msg("%s", error);
  assert_non_null(strstr(answer, "detached at index"));
  free(answer);
  look(&t, 2);
  end(&t);
}

static void interrupt(struct test *t)
{
  sqlite3_interrupt(t->memory);
}

static void test_interrupted(void **state)
{
  struct test t;
  char *error;
  assert_null(detach_while(&t, begin(&t, state), interrupt, &error));
  assert_string_equal(error, "interrupted");
  free(error);
  /* It goes on as if nothing had been asked. */
  sem_post(&t.go);
  nodes_open(&t.nodes, 1);
  until(inflight(nodes_node(&t.nodes, 1)) == 0);
  assert_int_equal(
      nodes_number(t.nodes.db[1], sqlite3_mprintf("SELECT count(*) FROM t")),
      2);
  nodes_stop(&t.nodes, 1);
  end(&t);
}

static void stop(struct test *t)
{
  assert_true(nodes_stop(&t->nodes, 1));
}

static void test_stopped_meanwhile(void **state)
{
  struct test t;
  char *error;
  assert_null(detach_while(&t, begin(&t, state), stop, &error));
  assert_non_null(strstr(error, "was stopped meanwhile"));
  free(error);
  end(&t);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_refused, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_waits, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_interrupted, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_stopped_meanwhile, dir_make,
                                      dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
