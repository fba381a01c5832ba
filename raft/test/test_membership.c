/*
** test_membership.c: members come, are promoted, change and go.
*/
#include "timeline.h"

static unsigned members(struct world *w, raft_id id)
{
  return raft_configuration(core(w, id), NULL)->n;
}

static struct world *three_of(unsigned n)
{
  struct world *w = world_prepare(n, 3);
  unsigned i;

  for (i = 1; i <= n; i++)
    start_node(w, i);
  elect(w, 1);
  return w;
}

/* In force when appended; a learner gets the log and counts in nothing. */
static void test_learner(void **state)
{
  struct world *w = three_of(4);

  (void)state;
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), 0);
  assert_true(node(w, 1)->configuration_changed);
  assert_int_equal(node(w, 1)->proposed_first, 2);
  assert_int_equal(members(w, 1), 4);
  settle(w);
  assert_int_equal(raft_last(core(w, 4)), 2);
  assert_int_equal(role_in(w, 4, 4), RAFT_LEARNER);
  propose(w, 1, RAFT_COMMIT, 10);
  drop(w, 1, 2, 0);
  drop(w, 1, 3, 0);
  settle(w);
  assert_int_equal(progress(w, 1, 4).match, 3);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  world_free(w);
}

/* Two voters and a learner are not a quorum of two that the learner joins. */
static void test_promotion(void **state)
{
  struct world *w = three_of(4);

  (void)state;
  w->unreachable[1][4] = true;
  change(w, 1, RAFT_ADD_LEARNER, 4);
  settle(w);
  live(w, 1000);
  assert_false(progress(w, 1, 4).caught_up);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 4), RAFT_ENOTREADY);
  w->unreachable[1][4] = false;
  live(w, 500);
  assert_true(progress(w, 1, 4).caught_up);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 4), 0);
  settle(w);
  assert_int_equal(role_in(w, 4, 4), RAFT_VOTER);
  /* Four voters: two are no quorum. */
  w->unreachable[1][2] = w->unreachable[1][3] = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 4);
  w->unreachable[1][2] = false;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 6);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 4), RAFT_EINVAL);
  world_free(w);
}

/* A learner that was caught up and then fell silent is so no more. */
static void test_caught_up_passes(void **state)
{
  struct world *w = three_of(4);

  (void)state;
  change(w, 1, RAFT_ADD_LEARNER, 4);
  settle(w);
  live(w, 100);
  assert_true(progress(w, 1, 4).caught_up);
  crash(w, 4);
  live(w, 400);
  assert_true(progress(w, 1, 4).caught_up);
  live(w, 200);
  assert_false(progress(w, 1, 4).caught_up);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 4), RAFT_ENOTREADY);
  world_free(w);
}

/* One at a time, and none before an entry of the term is committed. */
static void test_one_change_at_a_time(void **state)
{
  struct world *w = world_prepare(5, 3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 5; i++)
    start_node(w, i);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), RAFT_ENOTLEADER);
  time_out(w, 1);
  while (raft_role(core(w, 1)) != RAFT_LEADER)
    assert_true(deliver_any(w, 0, 0));
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), RAFT_ECHANGING);
  settle(w);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), 0);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 5), RAFT_ECHANGING);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 2), RAFT_ECHANGING);
  settle(w);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 5), 0);
  world_free(w);
}

static void test_refused_changes(void **state)
{
  struct world *w = three_of(4);
  struct raft_member member = {.id = 2, .incarnation = 102, .role = RAFT_VOTER};

  (void)state;
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 2), RAFT_EEXIST);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 6), RAFT_ENOTFOUND);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 6), RAFT_ENOTFOUND);
  assert_int_equal(change(w, 1, RAFT_UPDATE, 6), RAFT_ENOTFOUND);
  assert_int_equal(change(w, 1, 77, 2), RAFT_EINVAL);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 0), RAFT_EINVAL);
  memset(member.address, 'x', sizeof member.address); /* no end */
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, &member), RAFT_EINVAL);
  memset(member.address, 0, sizeof member.address);
  member.role = RAFT_LEARNER; /* not by way of an update */
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, &member), RAFT_EINVAL);
  member.role = RAFT_VOTER;
  member.incarnation = 1;
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, &member), RAFT_EINVAL);
  member.incarnation = 102;
  member.priority = RAFT_AVOID + 1;
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, &member), RAFT_EINVAL);
  member.id = 6;
  assert_int_equal(change_member(w, 1, RAFT_ADD_LEARNER, &member), RAFT_EINVAL);
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, NULL), RAFT_EINVAL);
  assert_int_equal(change_member(w, 1, RAFT_ADD_LEARNER, NULL), RAFT_EINVAL);
  assert_int_equal(change_all(w, 1, 0, NULL), RAFT_EINVAL);
  assert_int_equal(raft_last(core(w, 1)), 1);
  world_free(w);
}

/* Of a configuration that the host gave, what lies beyond its members means
   nothing, and is no part of the next one. */
static void test_beyond_the_members(void **state)
{
  struct world *w = world_prepare(4, 3);
  unsigned i;

  (void)state;
  memset(&w->configuration.members[3], 1, sizeof w->configuration.members[3]);
  for (i = 1; i <= 4; i++)
    start_node(w, i);
  elect(w, 1);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), 0);
  assert_false(is_joint(w, 1));
  settle(w);
  assert_int_equal(raft_commit(core(w, 4)), 2);
  assert_memory_equal(raft_configuration(core(w, 1), NULL),
                      raft_configuration(core(w, 4), NULL),
                      sizeof(struct raft_configuration));
  world_free(w);
}

static void test_update(void **state)
{
  struct world *w = three_of(3);
  const struct raft_configuration *c;

  (void)state;
  assert_int_equal(change(w, 1, RAFT_UPDATE, 3), 0);
  settle(w);
  c = raft_configuration(core(w, 2), NULL);
  assert_string_equal(raft_configuration_find(c, 3)->address, "new:3");
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE); /* as it was */
  world_free(w);
}

static void test_last_voter_stays(void **state)
{
  struct world *w = world_new(1);

  (void)state;
  tick(w, 1);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 1), RAFT_EINVAL);
  assert_int_equal(members(w, 1), 1);
  world_free(w);
}

/* A configuration that is cut off the log is in force no more. */
static void test_rollback(void **state)
{
  struct world *w = three_of(4);
  raft_index at;

  (void)state;
  w->unreachable[1][2] = w->unreachable[1][3] = true;
  change(w, 1, RAFT_ADD_LEARNER, 4);
  settle(w); /* the learner has it, and no voter */
  assert_int_equal(members(w, 4), 4);
  memset(w->unreachable, 0, sizeof w->unreachable);
  drop(w, 0, 0, 0);
  pass(w, 1000);
  tick(w, 2);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  live(w, 200);
  assert_int_equal(members(w, 1), 3);
  raft_configuration(core(w, 1), &at);
  assert_int_equal(at, 0);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  world_free(w);
}

/* Only a faulty leader takes back a committed configuration: refused. */
static void test_rollback_too_far(void **state)
{
  struct world *w = three_of(4);
  struct raft_entry entry = {.index = 2, .term = 9, .type = RAFT_NOOP};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 3,
                           .to = 4,
                           .incarnation = 103,
                           .term = 9,
                           .prev_index = 1,
                           .prev_term = 1,
                           .n_entries = 1,
                           .entries = &entry};

  (void)state;
  change(w, 1, RAFT_ADD_LEARNER, 4);
  settle(w);
  change(w, 1, RAFT_UPDATE, 4);
  settle(w);
  crash(w, 4); /* it forgets what is committed */
  start_node(w, 4);
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  assert_int_equal(raft_last(core(w, 4)), 3);
  world_free(w);
}

/* A leader removes itself: it leads until that is committed, without its
   own vote in the new configuration, then hands over and leads no more. */
static void test_leader_removes_itself(void **state)
{
  struct world *w = three_of(3);
  raft_index i;

  (void)state;
  assert_int_equal(change(w, 1, RAFT_REMOVE, 1), 0);
  assert_int_equal(role_in(w, 1, 1), RAFT_LEAVING);
  for (i = 2; i <= 3; i++) { /* the joint configuration, then the new one */
    assert_int_equal(raft_last(core(w, 1)), i);
    deliver(w, 1, 2, RAFT_APPEND_REQUEST);
    deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
    assert_int_equal(raft_commit(core(w, 1)), i - 1); /* 2 alone of {2, 3} */
    assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
    deliver(w, 1, 3, RAFT_APPEND_REQUEST);
    deliver(w, 3, 1, RAFT_APPEND_RESPONSE);
    assert_int_equal(raft_commit(core(w, 1)), i);
  }
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  assert_int_equal(raft_commit(core(w, 2)), 4);
  assert_int_equal(raft_last(core(w, 1)), 3); /* nobody sends it anything */
  time_out(w, 1);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  world_free(w);
}

/*
** Two voters; 1 removes itself, and stops leading before 2 has heard. 2 needs
** the vote of 1, whose log is longer; 1 is not in its own configuration. It
** must campaign all the same (dissertation, 4.2.2).
*/
static void test_removal_that_is_not_committed(void **state)
{
  struct world *w = world_new(2);

  (void)state;
  elect(w, 1);
  w->unreachable[1][2] = true;
  change(w, 1, RAFT_REMOVE, 1);
  live(w, 2000);
  assert_int_equal(raft_role(core(w, 1)) == RAFT_LEADER, false);
  w->unreachable[1][2] = false;
  live(w, 5000);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  assert_int_equal(members(w, 2), 1);
  world_free(w);
}

/* A removed node that is not told stands for election and disturbs nobody. */
static void test_removed_node_does_not_disturb(void **state)
{
  struct world *w = world_new(4);
  raft_term before, after;
  bool leads;

  (void)state;
  elect(w, 1);
  w->unreachable[1][4] = true;
  change(w, 1, RAFT_REMOVE, 4);
  settle(w);
  raft_state(core(w, 1), &before, &leads);
  live(w, 5000);
  raft_state(core(w, 1), &after, &leads);
  assert_int_equal(before, after);
  assert_true(leads);
  assert_int_equal(raft_role(core(w, 4)), RAFT_PRECANDIDATE);
  world_free(w);
}

/* What another incarnation says is not heard. */
static void test_wiped_node(void **state)
{
  struct world *w = three_of(3);

  (void)state;
  crash(w, 3);
  node(w, 3)->options.incarnation = 999;
  start_node(w, 3);
  propose(w, 1, RAFT_COMMIT, 10);
  drop(w, 1, 2, 0);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  /* Removed and added anew, it is a member like any other. */
  live(w, 300);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 3), 0);
  settle(w);
  {
    struct raft_member member = {.id = 3, .incarnation = 999};

    assert_int_equal(change_member(w, 1, RAFT_ADD_LEARNER, &member), 0);
  }
  live(w, 300);
  assert_int_equal(progress(w, 1, 3).match, raft_last(core(w, 1)));
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 3), 0);
  settle(w);
  assert_int_equal(role_in(w, 3, 3), RAFT_VOTER);
  world_free(w);
}

/*
** 3 is replaced by a node with a wiped disk under its id, and leads. 2 was away
** meanwhile and knows the old one only. A leader is a leader, whoever this node
** thinks has a vote: 2 must follow it, and vote for it, or it never learns that
** the one it knows is gone.
*/
static void test_wiped_node_leads(void **state)
{
  struct raft_member member = {.id = 3, .incarnation = 999};
  struct world *w = world_new(4);

  (void)state;
  elect(w, 1);
  cut_off(w, 2);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 3), 0);
  live(w, 100);
  crash(w, 3);
  node(w, 3)->options.incarnation = 999;
  node(w, 3)->last = node(w, 3)->term = node(w, 3)->voted_for = 0;
  start_node(w, 3);
  assert_int_equal(change_member(w, 1, RAFT_ADD_LEARNER, &member), 0);
  live(w, 200);
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 3), 0);
  live(w, 200);
  assert_int_equal(transfer(w, 1, 3), 0);
  settle(w);
  assert_true(is_leader(w, 3));
  mend(w);
  crash(w, 1); /* now nothing goes without 2 */
  live(w, 300);
  assert_int_equal(raft_leader(core(w, 2)), 3);
  assert_int_equal(raft_commit(core(w, 2)), raft_last(core(w, 3)));
  live(w, 1000);
  assert_true(is_leader(w, 3));

  /* The other way round: 2 is asked for its vote first. */
  crash(w, 2);
  node(w, 2)->last = 1; /* what it had while it was away */
  start_node(w, 2);
  assert_int_equal(raft_configuration_find(raft_configuration(core(w, 2), 0), 3)
                       ->incarnation,
                   103);
  time_out(w, 3); /* nobody was heard from */
  assert_false(is_leader(w, 3));
  pass(w, 1000);
  tick(w, 3);
  settle(w);
  live(w, 100);
  assert_true(is_leader(w, 3));
  world_free(w);
}

/* 1 removes itself, and does not know yet that it succeeded: its lease binds
   even the only voter that is left, and even after a restart. */
static void test_lease_of_removed_leader(void **state)
{
  struct world *w = world_prepare(2, 2);
  raft_id i;

  (void)state;
  for (i = 1; i <= 2; i++) {
    node(w, i)->options.lease = true;
    node(w, i)->options.hint_jitter_ms = 0;
    start_node(w, i);
  }
  pass(w, 1000);
  elect(w, 1);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 1), 0);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(role_in(w, 2, 1), 0);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  crash(w, 2);
  start_node(w, 2);
  pass(w, node(w, 2)->options.election_timeout_ms - 1);
  tick(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  pass(w, 1);
  tick(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  world_free(w);
}

/* From one node to three and back. */
static void test_grow_and_shrink(void **state)
{
  struct world *w = world_prepare(3, 1);
  raft_id i;

  (void)state;
  for (i = 1; i <= 3; i++)
    start_node(w, i);
  live(w, 100);
  for (i = 2; i <= 3; i++) {
    assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, i), 0);
    live(w, 300);
    assert_int_equal(change(w, 1, RAFT_PROMOTE, i), 0);
    live(w, 300);
  }
  assert_int_equal(raft_configuration_voters(raft_configuration(core(w, 3), 0)),
                   3);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 2), 0);
  live(w, 100);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 3), 0);
  live(w, 100);
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_learner),
      cmocka_unit_test(test_promotion),
      cmocka_unit_test(test_caught_up_passes),
      cmocka_unit_test(test_one_change_at_a_time),
      cmocka_unit_test(test_refused_changes),
      cmocka_unit_test(test_beyond_the_members),
      cmocka_unit_test(test_update),
      cmocka_unit_test(test_last_voter_stays),
      cmocka_unit_test(test_rollback),
      cmocka_unit_test(test_rollback_too_far),
      cmocka_unit_test(test_leader_removes_itself),
      cmocka_unit_test(test_removal_that_is_not_committed),
      cmocka_unit_test(test_removed_node_does_not_disturb),
      cmocka_unit_test(test_wiped_node),
      cmocka_unit_test(test_wiped_node_leads),
      cmocka_unit_test(test_lease_of_removed_leader),
      cmocka_unit_test(test_grow_and_shrink),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
