/*
** Leadership follows the writer, if the cluster is told so: three nodes, on
** each of which somebody writes, on one of them many without pause; and a
** minute that is a second. Nobody's COMMIT fails while leadership moves.
*/
#include "nodes.h"

#define NODES 3
#define ELECTION_MS 4000 /* so that nobody is elected for want of patience */
#define FOLLOW_MS 1000
#define STEADY 6 /* writers on that node */
#define WRITERS (STEADY + 2)

struct writer {
  struct nodes *nodes;
  unsigned number, node, pause;
  pthread_t thread;
  _Atomic bool stop, failed;
  _Atomic unsigned acked; /* rows, numbered from 1 */
  char error[200];        /* the first; it ends then */
};

static void *writer_main(void *arg)
{
  struct writer *w = arg;
  sqlite3 *db = nodes_connect(w->nodes, w->node);
  while (!atomic_load(&w->stop) && !atomic_load(&w->failed)) {
    char *sql = sqlite3_mprintf("INSERT INTO t VALUES(%u, %u)", w->number,
                                atomic_load(&w->acked) + 1);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK) {
      atomic_fetch_add(&w->acked, 1);
    } else {
      snprintf(w->error, sizeof(w->error), "%s", sqlite3_errmsg(db));
      atomic_store(&w->failed, true);
    }
    sqlite3_free(sql);
    if (w->pause) pause_ms(w->pause);
  }
  sqlite3_close(db);
  return NULL;
}

static void begin(struct writer *w, struct nodes *nodes, unsigned node,
                  unsigned pause)
{
  w->nodes = nodes;
  w->node = node;
  w->pause = pause;
  atomic_store(&w->stop, false);
  assert_int_equal(pthread_create(&w->thread, NULL, writer_main, w), 0);
}

static void look_at_writer(struct writer *w)
{
  if (atomic_load(&w->failed)) fail_msg("node %u: %s", w->node, w->error);
}

static void end(struct writer *w)
{
  atomic_store(&w->stop, true);
  pthread_join(w->thread, NULL);
  look_at_writer(w);
}

static bool is_set(sqlite3 *db, const char *how)
{
  char *is = nodes_get(db, sqlite3_mprintf("PRAGMA quorate_follow_writer"));
  bool same = strcmp(is, how) == 0;
  free(is);
  return same;
}

static void follow(struct nodes *nodes, unsigned node, const char *how)
{
  nodes_do(nodes->db[node],
           sqlite3_mprintf("PRAGMA quorate_follow_writer=%s", how));
  for (unsigned i = 1; i <= NODES; i++)
    until(is_set(nodes->db[i], how));
}

/* For a time in which leadership would move, or could come back: it does not,
   and all of them can write. */
static void stays(struct nodes *nodes, struct writer *w, unsigned leader,
                  raft_term term)
{
  unsigned acked[WRITERS];
  uint64_t last = clock_monotonic_ms() + 5 * FOLLOW_MS / 2;
  for (unsigned i = 0; i < WRITERS; i++)
    acked[i] = atomic_load(&w[i].acked);
  while (clock_monotonic_ms() < last) {
    struct node_view view = nodes_view(nodes, leader);
    assert_int_equal(view.role, RAFT_LEADER);
    assert_int_equal(view.term, term);
    pause_ms(PAUSE_MS);
  }
  for (unsigned i = 0; i < WRITERS; i++) {
    until(atomic_load(&w[i].failed) || atomic_load(&w[i].acked) > acked[i]);
    look_at_writer(&w[i]);
  }
}

static bool tells(struct nodes *nodes, unsigned node, const char *words)
{
  return nodes_number(nodes->db[node],
                      sqlite3_mprintf("SELECT count(*) FROM quorate_events"
                                      " WHERE event = %Q",
                                      words)) == 1;
}

/* Each has all that was acknowledged, in its order, and nothing else. */
static void look(struct nodes *nodes, const struct writer *w)
{
  for (unsigned i = 1; i <= NODES; i++)
    for (unsigned k = 0; k < WRITERS; k++) {
      unsigned acked = atomic_load(&w[k].acked);
      int64_t rows = nodes_number(
          nodes->db[i],
          sqlite3_mprintf("SELECT count(*) FROM t WHERE w = %u", w[k].number));
      assert_int_equal(rows, acked);
      rows = nodes_number(
          nodes->db[i],
          sqlite3_mprintf("SELECT max(n) FROM t WHERE w = %u", w[k].number));
      assert_int_equal(rows, acked);
    }
}

static void test_follow(void **state)
{
  struct nodes nodes;
  static struct writer w[WRITERS];
  node_limits.follow_ms = FOLLOW_MS;
  nodes_make(&nodes, *state, NODES, ELECTION_MS);
  nodes_do(nodes.db[1],
           sqlite3_mprintf("CREATE TABLE t(w, n, PRIMARY KEY(w, n))"));
  unsigned old = nodes_leader(&nodes);
  raft_term term = nodes_view(&nodes, old).term;
  unsigned steady = old % NODES + 1, third = steady % NODES + 1;
  for (unsigned i = 0; i < WRITERS; i++)
    w[i].number = i;
  begin(&w[0], &nodes, old, FOLLOW_MS / 4);
  begin(&w[1], &nodes, third, FOLLOW_MS / 4);
  for (unsigned i = 2; i < WRITERS; i++)
    begin(&w[i], &nodes, steady, 0);
  stays(&nodes, w, old, term);
  follow(&nodes, third, "on");
  until(nodes_view(&nodes, steady).role == RAFT_LEADER);
  assert_int_equal(nodes_view(&nodes, steady).term, term + 1);
  assert_true(tells(&nodes, old, "leadership follows the writer"));
  stays(&nodes, w, steady, term + 1);
  follow(&nodes, old, "off");
  for (unsigned i = 0; i < WRITERS; i++)
    end(&w[i]);
  /* The one that writes now is another, but nobody is to follow it. */
  begin(&w[0], &nodes, old, 1);
  uint64_t last = clock_monotonic_ms() + 5 * FOLLOW_MS / 2;
  until(clock_monotonic_ms() > last);
  assert_int_equal(nodes_leader(&nodes), steady);
  end(&w[0]);
  look(&nodes, w);
  for (unsigned i = 1; i <= NODES; i++)
    nodes_stop(&nodes, i);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_follow, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
