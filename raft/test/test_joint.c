/*
** test_joint.c: changes of who has a vote go through joint consensus.
**
** Mostly C-old is {1, 2, 3} and C-new {1, 4, 5}: 2 or 3 must agree for the old
** voters, 4 or 5 for the new ones.
*/
#include "timeline.h"

static const struct raft_change swap[] = {
    {.type = RAFT_PROMOTE, .id = 4},
    {.type = RAFT_PROMOTE, .id = 5},
    {.type = RAFT_REMOVE, .id = 2},
    {.type = RAFT_REMOVE, .id = 3},
};

static struct raft_member learner(raft_id id)
{
  return (struct raft_member){.id = id, .incarnation = 100 + id};
}

static int add_both(struct world *w)
{
  struct raft_member four = learner(4), five = learner(5);
  const struct raft_change items[] = {
      {.type = RAFT_ADD_LEARNER, .member = &four},
      {.type = RAFT_ADD_LEARNER, .member = &five}};

  return change_all(w, 1, 2, items);
}

/* 1 to 3 vote, 1 leads, 4 and 5 are learners that have all of the log. */
static struct world *with_learners(void)
{
  struct world *w = world_prepare(5, 3);
  unsigned i;

  for (i = 1; i <= 5; i++)
    start_node(w, i);
  elect(w, 1);
  assert_int_equal(add_both(w), 0);
  settle(w);
  live(w, 200);
  assert_int_equal(raft_commit(core(w, 5)), 2);
  return w;
}

/* The joint configuration is in the leader's log, at 3, and on its way. */
static struct world *changing(void)
{
  struct world *w = with_learners();

  assert_int_equal(change_all(w, 1, 4, swap), 0);
  assert_true(is_joint(w, 1));
  assert_int_equal(node(w, 1)->proposed_first, 3);
  assert_int_equal(configured_at(w, 1), 3);
  return w;
}

/* Everybody starts in the committed joint configuration, nobody leads. */
static struct world *joint_from_the_start(void)
{
  struct world *w = world_prepare(5, 5);
  struct raft_member *members = w->configuration.members;
  unsigned i;

  members[0].outgoing = members[1].outgoing = members[2].outgoing = true;
  members[1].role = members[2].role = RAFT_LEAVING;
  for (i = 1; i <= 5; i++)
    start_node(w, i);
  return w;
}

/* ---- both majorities ---------------------------------------------------- */

static void acknowledge(struct world *w, raft_id id)
{
  deliver(w, 1, id, RAFT_APPEND_REQUEST);
  deliver(w, id, 1, RAFT_APPEND_RESPONSE);
}

/* An entry is committed when it is on a majority of the old voters and on one
   of the new; more of one side do not make up for the other. */
static void test_commit_needs_both(void **state)
{
  static const raft_id orders[][3] = {{2, 3, 4}, {4, 5, 3}};
  struct world *w;
  unsigned i;

  (void)state;
  for (i = 0; i < 2; i++) {
    w = changing();
    acknowledge(w, orders[i][0]);
    assert_int_equal(raft_commit(core(w, 1)), 2);
    acknowledge(w, orders[i][1]); /* a whole side has it, all five but two */
    assert_int_equal(raft_commit(core(w, 1)), 2);
    assert_true(is_joint(w, 1));
    acknowledge(w, orders[i][2]);
    assert_int_equal(raft_commit(core(w, 1)), 3);
    world_free(w);
  }
}

static void answer(struct world *w, raft_id id, uint8_t request,
                   uint8_t response)
{
  deliver(w, 1, id, request);
  deliver(w, id, 1, response);
}

/* So it is with pre-votes, and with votes. */
static void test_election_needs_both(void **state)
{
  static const raft_id orders[][3] = {{2, 3, 4}, {4, 5, 3}};
  struct world *w;
  unsigned i, k;

  (void)state;
  for (i = 0; i < 2; i++) {
    w = joint_from_the_start();
    time_out(w, 1);
    for (k = 0; k < 2; k++) {
      answer(w, orders[i][k], RAFT_PREVOTE_REQUEST, RAFT_PREVOTE_RESPONSE);
      assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
    }
    answer(w, orders[i][2], RAFT_PREVOTE_REQUEST, RAFT_PREVOTE_RESPONSE);
    assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
    for (k = 0; k < 2; k++) {
      answer(w, orders[i][k], RAFT_VOTE_REQUEST, RAFT_VOTE_RESPONSE);
      assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
    }
    answer(w, orders[i][2], RAFT_VOTE_REQUEST, RAFT_VOTE_RESPONSE);
    assert_true(is_leader(w, 1));
    world_free(w);
  }
}

/* So it is with the round of heartbeats that a read waits for. */
static void test_reads_need_both(void **state)
{
  static const raft_id orders[][3] = {{2, 3, 4}, {4, 5, 3}};
  struct world *w;
  unsigned i, k;

  (void)state;
  for (i = 0; i < 2; i++) {
    w = changing();
    drop(w, 1, 0, 0);
    read_on(w, 1, 1);
    for (k = 0; k < 2; k++) {
      answer(w, orders[i][k], RAFT_HEARTBEAT_REQUEST, RAFT_HEARTBEAT_RESPONSE);
      assert_int_equal(node(w, 1)->n_reads, 0);
    }
    answer(w, orders[i][2], RAFT_HEARTBEAT_REQUEST, RAFT_HEARTBEAT_RESPONSE);
    assert_int_equal(node(w, 1)->n_reads, 1);
    assert_int_equal(last_read(w, 1)->index, 2);
    world_free(w);
  }
}

/* A leader that hears from one side only leads no more; one from each side
   are enough for it. */
static void test_check_quorum_needs_both(void **state)
{
  static const struct {
    raft_id silent[2];
    bool leads;
  } cases[] = {{{2, 3}, false}, {{4, 5}, false}, {{3, 5}, true}};
  struct world *w;
  unsigned i, t;

  (void)state;
  for (i = 0; i < 3; i++) {
    w = changing();
    cut_off(w, cases[i].silent[0]);
    cut_off(w, cases[i].silent[1]);
    for (t = 0; t < 600; t += 50) {
      drop(w, 1, 0, RAFT_APPEND_REQUEST); /* it stays joint */
      pass(w, 50);
      tick(w, 1);
      drop(w, 1, 0, RAFT_APPEND_REQUEST);
      settle(w);
    }
    assert_int_equal(is_leader(w, 1), cases[i].leads);
    world_free(w);
  }
}

/* The values of a quorum, in a joint configuration. */
static void test_quorum(void **state)
{
  uint64_t values[RAFT_MEMBERS_MAX] = {9, 7, 5, 3, 1};
  struct raft_configuration c = world_members(5);
  unsigned i;

  (void)state;
  for (i = 0; i < 3; i++)
    c.members[i].outgoing = true;
  c.members[1].role = c.members[2].role = RAFT_LEAVING;
  assert_int_equal(raft_configuration_quorum(&c, values), 3); /* 9 [3] 1 */
  values[0] = 1;
  assert_int_equal(raft_configuration_quorum(&c, values), 1);
  values[0] = values[3] = values[4] = 9;
  values[1] = 2;
  assert_int_equal(raft_configuration_quorum(&c, values), 5); /* 9 [5] 2 */
  c.members[3].role = c.members[4].role = RAFT_LEARNER;
  c.members[0].role = RAFT_LEAVING; /* nobody left */
  assert_int_equal(raft_configuration_quorum(&c, values), 0);
}

/* ---- leaving ------------------------------------------------------------ */

/* As soon as it is committed, the leader leaves it: C-new is in force from
   then on, and the removed get nothing any more. */
static void test_leader_leaves(void **state)
{
  struct world *w = changing();

  (void)state;
  acknowledge(w, 2);
  assert_int_equal(raft_last(core(w, 1)), 3);
  acknowledge(w, 4);
  assert_int_equal(raft_commit(core(w, 1)), 3);
  assert_int_equal(raft_last(core(w, 1)), 4);
  assert_int_equal(configured_at(w, 1), 4);
  assert_true(node(w, 1)->configuration_changed ||
              !is_joint(w, 1)); /* written in the same step */
  assert_false(is_joint(w, 1));
  assert_int_equal(role_in(w, 1, 2), 0);
  assert_int_equal(role_in(w, 1, 5), RAFT_VOTER);
  assert_int_equal(raft_configuration(core(w, 1), NULL)->n, 3);
  drop(w, 1, 3, 0);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 4);
  assert_int_equal(raft_commit(core(w, 4)), 4);
  assert_true(raft_last(core(w, 3)) < 4);
  /* 2 and 3 count no more, 4 and 5 do. */
  crash(w, 2);
  crash(w, 3);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 5);
  world_free(w);
}

/* The leader dies with the joint configuration on all disks, and nobody knows
   it to be committed. Its successor commits it by way of its own NOOP, and
   then leaves it. */
static void test_successor_leaves(void **state)
{
  struct world *w = changing();
  raft_id i;

  (void)state;
  for (i = 2; i <= 5; i++)
    deliver(w, 1, i, RAFT_APPEND_REQUEST);
  drop(w, 0, 0, 0);
  crash(w, 1);
  time_out(w, 4);
  while (!is_leader(w, 4))
    assert_true(deliver_any(w, 0, 0));
  assert_int_equal(raft_last(core(w, 4)), 4); /* the NOOP */
  assert_true(is_joint(w, 4));
  /* 5 has it all: 4 and 5 are C-new's majority, and not enough. */
  deliver(w, 4, 5, RAFT_APPEND_REQUEST);
  deliver(w, 5, 4, RAFT_APPEND_RESPONSE);
  assert_int_equal(raft_commit(core(w, 4)), 2);
  assert_int_equal(raft_last(core(w, 4)), 4);
  settle(w);
  assert_int_equal(configured_at(w, 4), 5);
  assert_false(is_joint(w, 5));
  assert_int_equal(raft_commit(core(w, 5)), 5);
  start_node(w, 1);
  live(w, 200);
  assert_int_equal(configured_at(w, 1), 5);
  world_free(w);
}

/* A successor that knows it to be committed waits for its own NOOP all the
   same: only then does it know that no later configuration is. */
static void test_successor_waits_for_its_noop(void **state)
{
  struct world *w = joint_from_the_start();

  (void)state;
  time_out(w, 4);
  while (!is_leader(w, 4))
    assert_true(deliver_any(w, 0, 0));
  drop(w, 4, 0, RAFT_APPEND_REQUEST);
  drop(w, 0, 4, 0);
  pass(w, 10);
  tick(w, 4);
  assert_int_equal(raft_last(core(w, 4)), 1);
  assert_true(is_joint(w, 4));
  beat(w, 4);
  beat(w, 4);
  beat(w, 4);
  assert_int_equal(configured_at(w, 4), 2);
  assert_int_equal(raft_commit(core(w, 4)), 2);
  world_free(w);
}

/* Nodes that were all restarted in the joint state find it on their disks. */
static void test_restart(void **state)
{
  struct world *w = changing();
  raft_id i;

  (void)state;
  for (i = 2; i <= 5; i++)
    deliver(w, 1, i, RAFT_APPEND_REQUEST);
  drop(w, 0, 0, 0);
  for (i = 1; i <= 5; i++) {
    crash(w, i);
    start_node(w, i);
    assert_true(is_joint(w, i));
    assert_int_equal(configured_at(w, i), 3);
  }
  cut_off(w, 2);
  cut_off(w, 3); /* a majority of C-new alone elects nobody */
  live(w, 3000);
  for (i = 1; i <= 5; i++)
    assert_false(is_leader(w, i));
  mend(w);
  live(w, 3000);
  assert_false(is_joint(w, 1));
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  assert_int_equal(role_in(w, 1, 2), 0);
  world_free(w);
}

/* The only new voter is not the only voter: it asks the old ones. */
static void test_not_sole_while_joint(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_member *members = w->configuration.members;

  (void)state;
  members[0].outgoing = members[1].outgoing = members[2].outgoing = true;
  members[1].role = members[2].role = RAFT_LEAVING;
  start_node(w, 1);
  assert_true(raft_next_deadline(core(w, 1)) >= 500);
  time_out(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  assert_int_equal(count(w, 1, 0, RAFT_PREVOTE_REQUEST), 2);
  world_free(w);
}

/* ---- rolling back ------------------------------------------------------- */

/* A joint configuration that no old voter but the leader has is cut off by
   the next leader: C-old is in force again. */
static void test_rollback_to_old(void **state)
{
  struct world *w = changing();

  (void)state;
  deliver(w, 1, 4, RAFT_APPEND_REQUEST);
  deliver(w, 1, 5, RAFT_APPEND_REQUEST);
  drop(w, 0, 0, 0);
  assert_true(is_joint(w, 4));
  cut_off(w, 1);
  time_out(w, 2); /* by the votes of 2 and 3 */
  settle(w);
  assert_true(is_leader(w, 2));
  assert_int_equal(term_of(w, 2), 2);
  mend(w);
  live(w, 200);
  assert_int_equal(configured_at(w, 1), 2);
  assert_int_equal(configured_at(w, 4), 2);
  assert_false(is_joint(w, 1));
  assert_int_equal(role_in(w, 4, 4), RAFT_LEARNER);
  assert_int_equal(role_in(w, 1, 3), RAFT_VOTER);
  /* And it can be made again. */
  assert_int_equal(change_all(w, 2, 4, swap), 0);
  live(w, 300);
  assert_int_equal(role_in(w, 4, 4), RAFT_VOTER);
  assert_int_equal(role_in(w, 4, 2), 0);
  world_free(w);
}

/* C-new is on the leader's disk alone, the joint one is committed: the next
   leader cuts C-new off, and the joint one is in force again. */
static void test_rollback_to_joint(void **state)
{
  struct world *w = changing();

  (void)state;
  acknowledge(w, 2);
  acknowledge(w, 3);
  acknowledge(w, 4);
  acknowledge(w, 5);
  assert_int_equal(configured_at(w, 1), 4);
  drop(w, 0, 0, 0);
  cut_off(w, 1);
  time_out(w, 5);
  while (!is_leader(w, 5))
    assert_true(deliver_any(w, 0, 0));
  mend(w);
  drop(w, 5, 0, 0);
  pass(w, 50);
  tick(w, 5);
  deliver(w, 5, 1, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 1, 5, RAFT_HEARTBEAT_RESPONSE);
  deliver(w, 5, 1, RAFT_APPEND_REQUEST); /* its NOOP in the place of C-new */
  assert_int_equal(raft_term_at(core(w, 1), 4), 2);
  assert_true(is_joint(w, 1));
  assert_int_equal(configured_at(w, 1), 3);
  assert_int_equal(role_in(w, 1, 2), RAFT_LEAVING);
  live(w, 300);
  assert_int_equal(configured_at(w, 1), 5);
  assert_false(is_joint(w, 1));
  world_free(w);
}

/*
** Two voters; 1 is being removed, and C-new is on its disk alone. 2, in the
** joint configuration, needs its vote and does not get it, since 1 has the
** better log; so 1 must campaign although C-new does not know it.
*/
static void test_removed_one_has_the_best_log(void **state)
{
  struct world *w = world_new(2);

  (void)state;
  elect(w, 1);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 1), 0);
  acknowledge(w, 2);
  assert_int_equal(configured_at(w, 1), 3);
  assert_int_equal(role_in(w, 1, 1), 0);
  cut_off(w, 1);
  drop(w, 0, 0, 0);
  live(w, 2000);
  assert_false(is_leader(w, 1));
  mend(w);
  live(w, 5000);
  assert_true(is_leader(w, 2));
  assert_int_equal(configured_at(w, 2), 3);
  assert_int_equal(raft_commit(core(w, 2)), raft_last(core(w, 2)));
  world_free(w);
}

/* ---- what a change may be ----------------------------------------------- */

/* None before the one before is complete, in neither of its halves. */
static void test_one_at_a_time(void **state)
{
  struct world *w = changing();

  (void)state;
  assert_int_equal(change(w, 1, RAFT_UPDATE, 4), RAFT_ECHANGING);
  acknowledge(w, 2);
  acknowledge(w, 4); /* joint committed, C-new appended */
  assert_int_equal(change(w, 1, RAFT_UPDATE, 4), RAFT_ECHANGING);
  assert_int_equal(raft_last(core(w, 1)), 4);
  settle(w);
  assert_int_equal(change(w, 1, RAFT_UPDATE, 4), 0);
  world_free(w);
}

/* One who leads in a joint configuration that it has not left may not begin
   another change either. */
static void test_none_while_joint(void **state)
{
  struct world *w = joint_from_the_start();

  (void)state;
  time_out(w, 4);
  while (!is_leader(w, 4))
    assert_true(deliver_any(w, 0, 0));
  assert_int_equal(change(w, 4, RAFT_UPDATE, 5), RAFT_ECHANGING);
  assert_int_equal(raft_last(core(w, 4)), 1);
  world_free(w);
}

/* What does not alter who votes needs no joint configuration. */
static void test_same_voters(void **state)
{
  struct world *w = with_learners();
  struct raft_member six = learner(6);
  const struct raft_change items[] = {
      {.type = RAFT_REMOVE, .id = 5},
      {.type = RAFT_ADD_LEARNER, .member = &six},
      {.type = RAFT_PROMOTE, .id = 4},
      {.type = RAFT_DEMOTE, .id = 4},
  };

  (void)state;
  assert_int_equal(change_all(w, 1, 4, items), 0);
  assert_false(is_joint(w, 1));
  settle(w);
  assert_int_equal(raft_last(core(w, 1)), 3); /* one entry was all */
  assert_int_equal(raft_commit(core(w, 1)), 3);
  assert_int_equal(role_in(w, 4, 4), RAFT_LEARNER);
  assert_int_equal(role_in(w, 4, 5), 0);
  assert_int_equal(role_in(w, 4, 6), RAFT_LEARNER);
  world_free(w);
}

/* A voter takes another's place: at no time are there less than three. */
static void test_replacement(void **state)
{
  struct world *w = with_learners();
  const struct raft_change items[] = {{.type = RAFT_PROMOTE, .id = 4},
                                      {.type = RAFT_REMOVE, .id = 3}};

  (void)state;
  assert_int_equal(change_all(w, 1, 2, items), 0);
  assert_int_equal(role_in(w, 1, 3), RAFT_LEAVING);
  assert_int_equal(role_in(w, 1, 4), RAFT_VOTER);
  crash(w, 3); /* the other old ones are a majority */
  live(w, 200);
  assert_false(is_joint(w, 1));
  assert_int_equal(role_in(w, 2, 3), 0);
  assert_int_equal(
      raft_configuration_voters(raft_configuration(core(w, 2), NULL)), 3);
  crash(w, 2);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  world_free(w);
}

/* A demoted voter goes on to receive the log and counts no more. */
static void test_demotion(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  assert_int_equal(change(w, 1, RAFT_DEMOTE, 6), RAFT_ENOTFOUND);
  assert_int_equal(change(w, 1, RAFT_DEMOTE, 3), 0);
  assert_true(is_joint(w, 1));
  assert_int_equal(role_in(w, 1, 3), RAFT_LEARNER);
  /* In the joint one it still has its old vote: 1 and 2 of C-new need one
     more than themselves in neither, so 2 is enough, and 3 is not. */
  acknowledge(w, 3);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  acknowledge(w, 2);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  settle(w);
  assert_int_equal(raft_commit(core(w, 3)), 3);
  assert_int_equal(change(w, 1, RAFT_DEMOTE, 3), RAFT_EINVAL);
  cut_off(w, 2);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_last(core(w, 3)), 4);
  assert_int_equal(raft_commit(core(w, 1)), 3); /* 1 and 3 are no quorum */
  time_out(w, 3);
  assert_int_equal(raft_role(core(w, 3)), RAFT_FOLLOWER);
  world_free(w);
}

/* A leader that demotes itself leads until C-new is committed, hands over and
   follows. */
static void test_leader_demotes_itself(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  assert_int_equal(change(w, 1, RAFT_DEMOTE, 1), 0);
  acknowledge(w, 2); /* of C-new that is one of two */
  assert_int_equal(raft_commit(core(w, 1)), 1);
  acknowledge(w, 3);
  assert_int_equal(configured_at(w, 1), 3);
  assert_true(is_leader(w, 1));
  acknowledge(w, 2);
  assert_true(is_leader(w, 1));
  acknowledge(w, 3);
  assert_false(is_leader(w, 1));
  assert_int_equal(count(w, 1, 0, RAFT_TIMEOUT_NOW), 1);
  settle(w);
  live(w, 200);
  assert_int_not_equal(raft_leader(core(w, 1)), 0);
  assert_int_equal(role_in(w, 1, 1), RAFT_LEARNER);
  assert_int_equal(raft_commit(core(w, 1)), 4);
  assert_int_equal(change(w, raft_leader(core(w, 1)), RAFT_PROMOTE, 1), 0);
  live(w, 200);
  assert_int_equal(role_in(w, 1, 1), RAFT_VOTER);
  world_free(w);
}

/* One voter, two, three, and in one step back to one. */
static void test_grow_and_shrink(void **state)
{
  const struct raft_change shrink[] = {{.type = RAFT_REMOVE, .id = 2},
                                       {.type = RAFT_REMOVE, .id = 3}};
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
    assert_true(is_joint(w, 1));
    assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), 0);
    live(w, 300);
    assert_false(is_joint(w, i));
    assert_int_equal(raft_commit(core(w, i)), raft_last(core(w, 1)));
  }
  assert_int_equal(change_all(w, 1, 2, shrink), 0);
  cut_off(w, 2);
  cut_off(w, 3);
  settle(w); /* not without the old ones */
  assert_true(is_joint(w, 1));
  w->unreachable[1][3] = w->unreachable[3][1] = false;
  live(w, 200);
  assert_false(is_joint(w, 1));
  cut_off(w, 3);
  propose(w, 1, RAFT_COMMIT, 10);
  live(w, 1000);
  assert_true(is_leader(w, 1));
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  world_free(w);
}

/* A place is not given to another incarnation while the old one's vote may
   still count; and who was added a moment ago has not caught up. */
static void test_refused(void **state)
{
  struct world *w = with_learners();
  struct raft_member three = learner(3), four = learner(4), six = learner(6);
  const struct raft_change again[] = {
      {.type = RAFT_REMOVE, .id = 3},
      {.type = RAFT_ADD_LEARNER, .member = &three}};
  const struct raft_change added[] = {
      {.type = RAFT_ADD_LEARNER, .member = &six},
      {.type = RAFT_PROMOTE, .id = 6}};
  const struct raft_change other[] = {
      {.type = RAFT_REMOVE, .id = 4},
      {.type = RAFT_ADD_LEARNER, .member = &four},
      {.type = RAFT_PROMOTE, .id = 4}};
  const struct raft_change all[] = {{.type = RAFT_REMOVE, .id = 1},
                                    {.type = RAFT_DEMOTE, .id = 2},
                                    {.type = RAFT_REMOVE, .id = 3}};
  const struct raft_change late[] = {{.type = RAFT_REMOVE, .id = 3},
                                     {.type = RAFT_REMOVE, .id = 3}};
  struct raft_configuration before = *raft_configuration(core(w, 1), NULL);

  (void)state;
  three.incarnation = 999;
  assert_int_equal(change_all(w, 1, 2, again), RAFT_EEXIST);
  assert_int_equal(change_all(w, 1, 2, added), RAFT_ENOTREADY);
  four.incarnation = 999;
  assert_int_equal(change_all(w, 1, 3, other), RAFT_ENOTREADY);
  assert_int_equal(change_all(w, 1, 3, all), RAFT_EINVAL);
  assert_int_equal(change_all(w, 1, 2, late), RAFT_ENOTFOUND);
  assert_int_equal(raft_last(core(w, 1)), 2);
  assert_memory_equal(&before, raft_configuration(core(w, 1), NULL),
                      sizeof before);
  three.incarnation = 103; /* the same node again: that is a demotion */
  assert_int_equal(change_all(w, 1, 2, again), 0);
  settle(w);
  assert_int_equal(role_in(w, 3, 3), RAFT_LEARNER);
  world_free(w);
}

/* The leader of term 1 sends a configuration with these flags of member 1. */
static int receive_flags(unsigned flags)
{
  struct world *w = world_new(3);
  struct raft_configuration c = world_members(3);
  struct raft_entry entry = {.index = 1, .term = 1, .type = RAFT_CONFIGURATION};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 1,
                           .to = 2,
                           .incarnation = 101,
                           .term = 1,
                           .n_entries = 1,
                           .entries = &entry};
  int rc;

  c.members[1].role = c.members[2].role = RAFT_LEARNER;
  entry.body = raft_configuration_encode(&c);
  entry.body->data[4 + 16] = (uint8_t)flags;
  raft_body_seal(entry.body);
  rc = inject(w, &m);
  assert_int_equal(raft_last(core(w, 2)), rc == 0);
  assert_int_equal(configured_at(w, 2), rc == 0);
  time_out(w, 2);
  raft_body_unref(entry.body);
  world_free(w);
  return rc;
}

/* A follower takes no configuration that cannot be, nor one in which nobody
   would have a vote in the end. */
static void test_impossible_ones(void **state)
{
  unsigned flags, possible;

  (void)state;
  for (flags = 0; flags < 256; flags++) {
    /* The only voter of it, for it is one, marked or not. */
    possible = (flags & 15) == RAFT_VOTER && flags >> 5 <= RAFT_AVOID;
    assert_int_equal(receive_flags(flags), possible ? 0 : RAFT_EMALFORMED);
  }
}

/* A full table takes no more, and the joint one must have room for those who
   leave as well; what is refused leaves no trace. */
static void test_full_table(void **state)
{
  struct world *w = world_new(3);
  struct raft_member members[RAFT_MEMBERS_MAX];
  struct raft_change items[RAFT_MEMBERS_MAX];
  struct raft_configuration before;
  unsigned i;

  (void)state;
  elect(w, 1);
  for (i = 0; i < RAFT_MEMBERS_MAX - 3; i++) {
    members[i] = learner(10 + i);
    items[i] =
        (struct raft_change){.type = RAFT_ADD_LEARNER, .member = &members[i]};
  }
  assert_int_equal(change_all(w, 1, RAFT_MEMBERS_MAX - 3, items), 0);
  settle(w);
  before = *raft_configuration(core(w, 1), NULL);
  assert_int_equal(before.n, RAFT_MEMBERS_MAX);
  members[0] = learner(99);
  assert_int_equal(change_all(w, 1, 1, items), RAFT_EINVAL);
  items[1] = items[0];
  items[0] = (struct raft_change){.type = RAFT_REMOVE, .id = 3};
  assert_int_equal(change_all(w, 1, 2, items), RAFT_EINVAL);
  assert_int_equal(raft_last(core(w, 1)), 2);
  assert_memory_equal(&before, raft_configuration(core(w, 1), NULL),
                      sizeof before);
  items[0].id = 10;
  assert_int_equal(change_all(w, 1, 2, items), 0);
  settle(w);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 3), 0);
  live(w, 200);
  assert_int_equal(raft_configuration(core(w, 2), NULL)->n,
                   RAFT_MEMBERS_MAX - 1);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_commit_needs_both),
      cmocka_unit_test(test_election_needs_both),
      cmocka_unit_test(test_reads_need_both),
      cmocka_unit_test(test_check_quorum_needs_both),
      cmocka_unit_test(test_quorum),
      cmocka_unit_test(test_leader_leaves),
      cmocka_unit_test(test_successor_leaves),
      cmocka_unit_test(test_successor_waits_for_its_noop),
      cmocka_unit_test(test_restart),
      cmocka_unit_test(test_not_sole_while_joint),
      cmocka_unit_test(test_rollback_to_old),
      cmocka_unit_test(test_rollback_to_joint),
      cmocka_unit_test(test_removed_one_has_the_best_log),
      cmocka_unit_test(test_one_at_a_time),
      cmocka_unit_test(test_none_while_joint),
      cmocka_unit_test(test_same_voters),
      cmocka_unit_test(test_replacement),
      cmocka_unit_test(test_demotion),
      cmocka_unit_test(test_leader_demotes_itself),
      cmocka_unit_test(test_grow_and_shrink),
      cmocka_unit_test(test_refused),
      cmocka_unit_test(test_impossible_ones),
      cmocka_unit_test(test_full_table),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
