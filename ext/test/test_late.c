/*
** A loop that was kept from running, as on a machine that has too much to do:
** what it was sent meanwhile it reads before it says that nobody was heard.
*/
#include "nodes.h"

#include <semaphore.h>

#define ELECTION_MS 500
#define STALL_MS 1500 /* longer than any node waits for its leader */
#define ROUNDS 10

struct stall {
  struct task task; /* first */
  long ms;
  sem_t over;
};

static void stall(struct task *task)
{
  struct stall *s = (struct stall *)task;
  pause_ms(s->ms);
  sem_post(&s->over);
}

static void stall_for(struct node *node, long ms)
{
  struct stall s = {.task.run = stall, .ms = ms};
  sem_init(&s.over, 0, 0);
  assert_true(node_post(node, &s.task));
  while (sem_wait(&s.over) != 0)
    ;
  sem_destroy(&s.over);
}

static int64_t candidacies(const struct nodes *nodes, unsigned i)
{
  return nodes_number(nodes->db[i],
                      sqlite3_mprintf("SELECT count(*) FROM quorate_events"
                                      " WHERE event LIKE 'candidate%%'"));
}

/* True if the node has still the leader that it had. */
static bool stays(const struct nodes *nodes, unsigned i)
{
  struct node *node = nodes_node(nodes, i);
  until(nodes_view(nodes, i).leader != 0);
  int64_t before = candidacies(nodes, i);
  stall_for(node, STALL_MS);
  /* After a look at the clock, and at the sockets. */
  for (int k = 0; k < 3; k++)
    stall_for(node, 0);
  return candidacies(nodes, i) == before;
}

/* The leader may be kept from running, too: then it is not to be told. */
static void test_follower(void **state)
{
  struct nodes nodes;
  int kept = 0;
  nodes_load();
  nodes_make(&nodes, *state, 3, ELECTION_MS);
  for (int i = 0; i < ROUNDS && kept == 0; i++) {
    until(nodes_leader(&nodes) != 0);
    kept += stays(&nodes, nodes_leader(&nodes) % 3 + 1);
  }
  assert_int_not_equal(kept, 0);
  for (unsigned i = 1; i <= 3; i++)
    assert_true(nodes_stop(&nodes, i));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_follower, dir_make, dir_clear),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
