/*
** The cluster's write lock at who borrows it: what comes late, or twice, from a
** connection that was replaced, makes nobody write who must not. Messages are
** given to the borrower's loop as the network would.
*/
#include "nodes.h"

#define NODES 2
#define ELECTION_MS 4000 /* so that nobody is elected for want of patience */

/* As lock.c has them. */
enum { GRANT = 2, RECALL = 3, VOID = 7 };

struct words {
  struct task task;
  struct nodes *nodes;
  unsigned borrower;
  uint8_t kind;
  uint64_t number, field;
  struct lock_borrower then; /* when it was heard */
  bool can_write;
  _Atomic bool heard;
};

static void hear(struct task *task)
{
  struct words *w = (struct words *)task;
  struct node *node = task->node;
  uint8_t body[25] = {w->kind};
  raft_term term = node->view.term;
  memcpy(body + 1, &term, 8);
  memcpy(body + 9, &w->number, 8);
  memcpy(body + 17, &w->field, 8);
  if (w->kind)
    lock_posted(node, node->view.leader, body,
                w->kind == RECALL ? 17 : sizeof(body));
  w->then = node->lock.borrower;
  pthread_mutex_lock(&node->mutex);
  w->can_write = node->can_write;
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&w->heard, true);
}

/* The borrower hears it, or is only looked at (kind 0). */
static struct words say(struct nodes *nodes, unsigned borrower, uint8_t kind,
                        uint64_t number, uint64_t field)
{
  struct words w = {.nodes = nodes,
                    .borrower = borrower,
                    .kind = kind,
                    .number = number,
                    .field = field};
  w.task.run = hear;
  assert_true(node_post(nodes_node(nodes, borrower), &w.task));
  until(atomic_load(&w.heard));
  return w;
}

static void lose(struct task *task)
{
  struct words *w = (struct words *)task;
  lock_overtaken(task->node);
  atomic_store(&w->heard, true);
}

/* The lock is with a node that does not lead, which has written nothing: the
   number of the grant. */
static uint64_t lend(const char *dir, struct nodes *nodes, unsigned *borrower)
{
  nodes_make(nodes, dir, NODES, ELECTION_MS);
  nodes_do(nodes->db[1],
           sqlite3_mprintf("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  *borrower = nodes_leader(nodes) % NODES + 1;
  nodes_do(nodes->db[*borrower], sqlite3_mprintf("BEGIN IMMEDIATE"));
  nodes_do(nodes->db[*borrower], sqlite3_mprintf("ROLLBACK"));
  struct words w = say(nodes, *borrower, 0, 0, 0);
  assert_true(w.then.number != 0);
  assert_true(w.can_write);
  return w.then.number;
}

static void write_all(struct nodes *nodes)
{
  for (unsigned i = 1; i <= NODES; i++)
    nodes_do(nodes->db[i],
             sqlite3_mprintf("INSERT INTO t VALUES((SELECT ifnull(max(id), 0)"
                             " + 1 FROM t))"));
}

/* The leader has ended it, and what it had told before comes once more. */
static void test_late_grant(void **state)
{
  struct nodes nodes;
  unsigned borrower;
  uint64_t number = lend(*state, &nodes, &borrower);
  struct words w = say(&nodes, borrower, VOID, number, 0);
  assert_int_equal(w.then.number, 0);
  w = say(&nodes, borrower, GRANT, number, 0);
  assert_int_equal(w.then.number, 0);
  assert_false(w.can_write);
  write_all(&nodes);
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

/* The same of one that it has not heard of: the end comes first. */
static void test_end_before_grant(void **state)
{
  struct nodes nodes;
  unsigned borrower;
  uint64_t number = lend(*state, &nodes, &borrower) + 100;
  say(&nodes, borrower, VOID, number, 0);
  struct words w = say(&nodes, borrower, GRANT, number, 0);
  assert_int_not_equal(w.then.number, number);
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

/* It has lost the lock, of which the leader has not heard, and wants it again: it
   gets another one, or what is still on its way under the first would be taken
   for its next write. */
static void test_another_one(void **state)
{
  struct nodes nodes;
  unsigned borrower;
  uint64_t number = lend(*state, &nodes, &borrower);
  struct words w = {.nodes = &nodes, .borrower = borrower};
  w.task.run = lose;
  assert_true(node_post(nodes_node(&nodes, borrower), &w.task));
  until(atomic_load(&w.heard));
  nodes_do(nodes.db[borrower], sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  w = say(&nodes, borrower, 0, 0, 0);
  assert_true(w.then.number > number);
  write_all(&nodes);
  for (unsigned i = 1; i <= NODES; i++)
    assert_int_equal(
        nodes_number(nodes.db[i], sqlite3_mprintf("SELECT count(*) FROM t")),
        NODES + 1);
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_late_grant, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_end_before_grant, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_another_one, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
