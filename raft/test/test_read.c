/*
** test_read.c: linearizable reads.
*/
#include "timeline.h"

/* A leader asks a quorum at once, and answers with its commit index. */
static void test_leader_read(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m;

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  read_on(w, 1, 42);
  assert_int_equal(node(w, 1)->n_reads, 0);
  assert_int_equal(count(w, 1, 0, RAFT_HEARTBEAT_REQUEST), 2);
  m = look(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  assert_int_equal(look(w, 2, 1, RAFT_HEARTBEAT_RESPONSE).read, m.read);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 1);
  assert_int_equal(last_read(w, 1)->read, 42);
  assert_int_equal(last_read(w, 1)->status, 0);
  assert_int_equal(last_read(w, 1)->index, 2);
  world_free(w);
}

static void test_sole_voter_reads_at_once(void **state)
{
  struct world *w = world_new(1);

  (void)state;
  tick(w, 1);
  read_on(w, 1, 1);
  read_on(w, 1, 2);
  assert_int_equal(node(w, 1)->n_reads, 2);
  assert_int_equal(last_read(w, 1)->index, 1);
  world_free(w);
}

/* Before an entry of its own term is committed, a leader does not know what
   is; confirmed leadership alone is not enough. */
static void test_read_waits_for_own_term(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  pass(w, 1500);
  tick(w, 2);
  while (raft_role(core(w, 2)) != RAFT_LEADER)
    assert_true(deliver_any(w, 0, 0));
  assert_true(raft_commit(core(w, 2)) < 3);
  read_on(w, 2, 7);
  drop(w, 2, 0, RAFT_APPEND_REQUEST);
  deliver(w, 2, 3, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 3, 2, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 2)->n_reads, 0);
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);
  assert_int_equal(last_read(w, 2)->index, 3);
  world_free(w);
}

/* A read does not join a round that began before it; all that come while one
   is under way share the next. */
static void test_rounds_are_shared(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  read_on(w, 1, 0);
  for (i = 1; i <= 1000; i++)
    read_on(w, 1, i);
  assert_int_equal(count(w, 1, 2, RAFT_HEARTBEAT_REQUEST), 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 1); /* only the first */
  assert_int_equal(count(w, 1, 2, RAFT_HEARTBEAT_REQUEST), 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 1001);
  assert_int_equal(count(w, 1, 2, RAFT_HEARTBEAT_REQUEST), 0);
  world_free(w);
}

/* A lost round is made up for by the next heartbeat. */
static void test_lost_round(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  read_on(w, 1, 1);
  read_on(w, 1, 2);
  drop(w, 0, 0, 0);
  beat(w, 1);
  assert_int_equal(node(w, 1)->n_reads, 2);
  world_free(w);
}

/* An old answer does not confirm a new round, one of a minority neither. */
static void test_old_answers_do_not_count(void **state)
{
  struct world *w = world_new(5);
  struct raft_message m;

  (void)state;
  elect(w, 1);
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 1, 3, RAFT_HEARTBEAT_REQUEST);
  drop(w, 1, 0, 0);
  read_on(w, 1, 1);
  m = look(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  deliver(w, 3, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 0);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 0); /* two of five */
  inject(w, &m);
  assert_int_equal(node(w, 1)->n_reads, 0);
  deliver(w, 1, 3, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 3, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(node(w, 1)->n_reads, 1);
  world_free(w);
}

/* A follower asks its leader. */
static void test_follower_read(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  read_on(w, 2, 5);
  assert_int_equal(last_read(w, 2)->status, RAFT_ENOTLEADER);
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  read_on(w, 2, 6);
  read_on(w, 2, 7);
  assert_int_equal(count(w, 2, 1, RAFT_READ_REQUEST), 1);
  deliver(w, 2, 1, RAFT_READ_REQUEST);
  deliver(w, 1, 3, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 3, 1, RAFT_HEARTBEAT_RESPONSE);
  deliver(w, 1, 2, RAFT_READ_RESPONSE);
  assert_int_equal(node(w, 2)->n_reads, 2);
  assert_int_equal(last_read(w, 2)->read, 6);
  assert_int_equal(last_read(w, 2)->index, 2);
  settle(w); /* the second asked on its own, after the first was answered */
  assert_int_equal(node(w, 2)->n_reads, 3);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* Questions get lost: asked again, and failed after an election timeout. */
static void test_follower_read_lost(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  read_on(w, 2, 1);
  drop(w, 2, 0, 0);
  pass(w, 100);
  tick(w, 2);
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);

  w->unreachable[2][1] = true;
  read_on(w, 2, 2);
  for (i = 0; i < 10; i++) {
    assert_int_equal(node(w, 2)->n_reads, 1);
    beat(w, 1);
    tick(w, 2);
  }
  assert_int_equal(last_read(w, 2)->read, 2);
  assert_int_equal(last_read(w, 2)->status, RAFT_ELOST);
  w->unreachable[2][1] = false;
  read_on(w, 2, 3); /* and the next one is not held up by it */
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* An answer to a question from before a restart answers nothing. */
static void test_answer_from_before_restart(void **state)
{
  struct world *w = world_new(3);
  struct raft_message old;

  (void)state;
  elect(w, 1);
  read_on(w, 2, 1);
  deliver(w, 2, 1, RAFT_READ_REQUEST);
  deliver(w, 1, 3, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 3, 1, RAFT_HEARTBEAT_RESPONSE);
  old = look(w, 1, 2, RAFT_READ_RESPONSE);
  drop(w, 0, 0, 0);
  crash(w, 2);
  start_node(w, 2);
  beat(w, 1);
  read_on(w, 2, 9);
  inject(w, &old);
  assert_int_equal(node(w, 2)->n_reads, 0);
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* Leadership lost: reads fail, here and at those who had asked. */
static void test_reads_fail_with_leadership(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  read_on(w, 2, 1);
  deliver(w, 2, 1, RAFT_READ_REQUEST);
  read_on(w, 1, 2);
  drop(w, 0, 0, 0);
  pass(w, 501);
  tick(w, 1); /* no quorum */
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(last_read(w, 1)->status, RAFT_ELOST);
  deliver(w, 1, 2, RAFT_READ_RESPONSE);
  assert_int_equal(last_read(w, 2)->status, RAFT_ELOST);
  read_on(w, 2, 3); /* it still thinks that 1 leads */
  deliver(w, 2, 1, RAFT_READ_REQUEST);
  deliver(w, 1, 2, RAFT_READ_RESPONSE);
  assert_int_equal(last_read(w, 2)->status, RAFT_ELOST);
  /* A read that waits when another leader appears. */
  elect(w, 1);
  read_on(w, 2, 4);
  drop(w, 0, 0, 0);
  elect(w, 3);
  assert_int_equal(node(w, 2)->n_reads, 3);
  assert_int_equal(last_read(w, 2)->status, RAFT_ELOST);
  read_on(w, 2, 5); /* and the next asks the new one at once */
  assert_int_equal(count(w, 2, 3, RAFT_READ_REQUEST), 1);
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* A deposed leader that does not know it cannot answer. */
static void test_deposed_leader(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  w->unreachable[1][2] = w->unreachable[1][3] = true;
  w->unreachable[2][1] = w->unreachable[3][1] = true;
  pass(w, 1000);
  tick(w, 2);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  propose(w, 2, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER); /* it has not ticked */
  read_on(w, 1, 1);
  settle(w);
  assert_int_equal(node(w, 1)->n_reads, 0);
  memset(w->unreachable, 0, sizeof w->unreachable);
  pass(w, 50);
  tick(w, 1);
  settle(w);
  assert_int_equal(last_read(w, 1)->status, RAFT_ELOST);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_leader_read),
      cmocka_unit_test(test_sole_voter_reads_at_once),
      cmocka_unit_test(test_read_waits_for_own_term),
      cmocka_unit_test(test_rounds_are_shared),
      cmocka_unit_test(test_lost_round),
      cmocka_unit_test(test_old_answers_do_not_count),
      cmocka_unit_test(test_follower_read),
      cmocka_unit_test(test_follower_read_lost),
      cmocka_unit_test(test_answer_from_before_restart),
      cmocka_unit_test(test_reads_fail_with_leadership),
      cmocka_unit_test(test_deposed_leader),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
