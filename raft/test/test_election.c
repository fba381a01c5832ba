/*
** test_election.c: timers, pre-vote, stickiness, hints, votes.
*/
#include "timeline.h"

static raft_term term_of(struct world *w, raft_id id)
{
  raft_term term;
  bool leads;

  raft_state(core(w, id), &term, &leads);
  return term;
}

/* Node 1 times out, gets pre-votes, then votes, and leads with a NOOP. */
static void test_election(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  time_out(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  assert_int_equal(term_of(w, 1), 0); /* a pre-vote moves no term */
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  assert_int_equal(term_of(w, 2), 0);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  assert_int_equal(term_of(w, 1), 1);
  deliver(w, 1, 2, RAFT_VOTE_REQUEST);
  deliver(w, 2, 1, RAFT_VOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  assert_int_equal(raft_last(core(w, 1)), 1);
  assert_int_equal(raft_entry_at(core(w, 1), 1)->type, RAFT_NOOP);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  assert_int_equal(raft_leader(core(w, 3)), 1);
  world_free(w);
}

static void test_sole_voter(void **state)
{
  struct world *w = world_new(1);

  (void)state;
  assert_int_equal(raft_next_deadline(core(w, 1)), 0);
  node(w, 1)->prompt = false;
  tick(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  persist_one(w, 1); /* its own vote counts when it is durable */
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  assert_int_equal(raft_commit(core(w, 1)), 0);
  persist_one(w, 1);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_election),
      cmocka_unit_test(test_sole_voter),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
