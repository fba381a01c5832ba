/*
** test_election.c: timers, pre-vote, stickiness, hints, votes.
*/
#include "timeline.h"

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

/* Nothing of a term leaves before the term and the vote are durable. */
static void test_votes_are_durable_first(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  node(w, 1)->prompt = node(w, 2)->prompt = false;
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(count(w, 1, 0, RAFT_VOTE_REQUEST), 0);
  persist_one(w, 1);
  assert_int_equal(node(w, 1)->voted_for, 1);
  assert_int_equal(count(w, 1, 0, RAFT_VOTE_REQUEST), 2);
  deliver(w, 1, 2, RAFT_VOTE_REQUEST);
  assert_int_equal(count(w, 2, 1, RAFT_VOTE_RESPONSE), 0);
  persist_one(w, 2);
  assert_int_equal(node(w, 2)->voted_for, 1);
  deliver(w, 2, 1, RAFT_VOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  world_free(w);
}

/* With a quorum of other votes, the candidate's own is still not counted
   before it is durable: in a cluster of 3 it needs one of two. */
static void test_own_vote_is_durable(void **state)
{
  struct world *w = world_new(3);
  struct raft_message vote = {.type = RAFT_VOTE_RESPONSE,
                              .from = 2,
                              .to = 1,
                              .incarnation = 102,
                              .term = 1,
                              .granted = true};

  (void)state;
  node(w, 1)->prompt = false;
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  inject(w, &vote);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  persist_one(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  world_free(w);
}

/* Node 2 votes for 1, crashes, and refuses 3 in the same term. */
static void test_one_vote_a_term(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m = {.type = RAFT_VOTE_REQUEST,
                           .from = 1,
                           .to = 2,
                           .incarnation = 101,
                           .term = 5};

  (void)state;
  inject(w, &m);
  m = look(w, 2, 1, RAFT_VOTE_RESPONSE);
  assert_true(m.granted);
  crash(w, 2);
  start_node(w, 2);
  m = (struct raft_message){.type = RAFT_VOTE_REQUEST,
                            .from = 3,
                            .to = 2,
                            .incarnation = 103,
                            .term = 5};
  inject(w, &m);
  m = look(w, 2, 3, RAFT_VOTE_RESPONSE);
  assert_false(m.granted);
  /* The same candidate may ask again. */
  m = (struct raft_message){.type = RAFT_VOTE_REQUEST,
                            .from = 1,
                            .to = 2,
                            .incarnation = 101,
                            .term = 5};
  drop(w, 2, 0, 0);
  inject(w, &m);
  m = look(w, 2, 1, RAFT_VOTE_RESPONSE);
  assert_true(m.granted);
  world_free(w);
}

/* Whoever gives its vote away waits for what comes of it. */
static void test_vote_restarts_the_timer(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  pass(w, raft_next_deadline(core(w, 2)) - 1);
  tick(w, 2);
  assert_int_equal(raft_next_deadline(core(w, 2)), 1);
  inject(w, &(struct raft_message){.type = RAFT_PREVOTE_REQUEST,
                                   .from = 3,
                                   .to = 2,
                                   .incarnation = 103,
                                   .term = 1});
  assert_int_equal(raft_next_deadline(core(w, 2)), 1);
  inject(w, &(struct raft_message){.type = RAFT_VOTE_REQUEST,
                                   .from = 3,
                                   .to = 2,
                                   .incarnation = 103,
                                   .term = 1});
  assert_true(raft_next_deadline(core(w, 2)) >= 500);
  world_free(w);
}

/* Section 5.4.1: a later last term wins, then a longer log. */
static void test_up_to_date(void **state)
{
  static const struct {
    raft_index index;
    raft_term term;
    bool granted;
  } cases[] = {{3, 2, true},  {4, 2, true}, {2, 2, false},
               {9, 1, false}, {1, 3, true}, {3, 3, true}};
  struct raft_message m;
  size_t i;

  (void)state;
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct world *w = world_prepare(3, 3);

    put_on_disk(w, 1, 1);
    put_on_disk(w, 1, 2);
    put_on_disk(w, 1, 2);
    start_node(w, 1);
    m = (struct raft_message){.type = RAFT_PREVOTE_REQUEST,
                              .from = 2,
                              .to = 1,
                              .incarnation = 102,
                              .term = 9,
                              .prev_index = cases[i].index,
                              .prev_term = cases[i].term};
    inject(w, &m);
    m.type = RAFT_VOTE_REQUEST;
    inject(w, &m);
    m = look(w, 1, 2, RAFT_PREVOTE_RESPONSE);
    assert_int_equal(m.granted, cases[i].granted);
    m = look(w, 1, 2, RAFT_VOTE_RESPONSE);
    assert_int_equal(m.granted, cases[i].granted);
    world_free(w);
  }
}

/* Node 3 is cut off and times out many times: its term stays, and when it
   is back the leader and the term are what they were. */
static void test_prevote_leaves_terms_alone(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  for (i = 1; i <= 3; i++)
    w->unreachable[3][i] = w->unreachable[i][3] = true;
  live(w, 5000);
  assert_int_equal(raft_role(core(w, 3)), RAFT_PRECANDIDATE);
  memset(w->unreachable, 0, sizeof w->unreachable);
  beat(w, 1);
  assert_int_equal(raft_role(core(w, 3)), RAFT_FOLLOWER);
  assert_int_equal(raft_leader(core(w, 3)), 1);
  assert_int_equal(term_of(w, 3), 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  world_free(w);
}

/* Node 3 has slept through an election: the refusal tells it the term. */
static void test_refusal_brings_a_later_term(void **state)
{
  struct world *w = world_prepare(3, 3);
  unsigned i;

  (void)state;
  node(w, 1)->term = node(w, 2)->term = 7;
  for (i = 1; i <= 3; i++)
    start_node(w, i);
  time_out(w, 3);
  deliver(w, 3, 1, RAFT_PREVOTE_REQUEST);
  assert_int_equal(term_of(w, 1), 7);
  deliver(w, 1, 3, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 3)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 3), 7);
  assert_int_equal(node(w, 3)->term, 7);
  drop(w, 0, 0, 0);
  time_out(w, 3);
  settle(w);
  assert_int_equal(raft_role(core(w, 3)), RAFT_LEADER);
  assert_int_equal(term_of(w, 3), 8);
  world_free(w);
}

/* While the leader is heard from, nobody gets a vote or moves the term. */
static void test_stickiness(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m = {.type = RAFT_VOTE_REQUEST,
                           .from = 3,
                           .to = 2,
                           .incarnation = 103,
                           .term = 9,
                           .prev_index = 9,
                           .prev_term = 1};

  (void)state;
  elect(w, 1);
  pass(w, 499);
  inject(w, &m);
  assert_int_equal(term_of(w, 2), 1);
  m.type = RAFT_PREVOTE_REQUEST;
  inject(w, &m);
  m.to = 1;
  inject(w, &m); /* the leader itself */
  m.type = RAFT_VOTE_REQUEST;
  inject(w, &m);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  m = look(w, 2, 3, RAFT_VOTE_RESPONSE);
  assert_false(m.granted);
  m = look(w, 2, 3, RAFT_PREVOTE_RESPONSE);
  assert_false(m.granted);
  m = look(w, 1, 3, RAFT_PREVOTE_RESPONSE);
  assert_false(m.granted);
  drop(w, 0, 0, 0);
  /* After the minimal timeout it is over. */
  pass(w, 1);
  m = (struct raft_message){.type = RAFT_PREVOTE_REQUEST,
                            .from = 3,
                            .to = 2,
                            .incarnation = 103,
                            .term = 2,
                            .prev_index = 9,
                            .prev_term = 1};
  inject(w, &m);
  m = look(w, 2, 3, RAFT_PREVOTE_RESPONSE);
  assert_true(m.granted);
  world_free(w);
}

/* The leader's connection closes: 2 and 3 elect within the jitter. */
static void test_closed_connection(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  crash(w, 1);
  peer_event(w, 3, RAFT_EVENT_PEER_DOWN, 1);
  assert_int_equal(raft_leader(core(w, 3)), 0);
  peer_event(w, 2, RAFT_EVENT_PEER_DOWN, 1);
  assert_true(raft_next_deadline(core(w, 2)) < 40);
  pass(w, raft_next_deadline(core(w, 2)));
  tick(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_PRECANDIDATE);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  world_free(w);
}

/* Node 3 is refused by 2, which has not heard of the crash yet. Then 2 asks,
   and its log is behind: 3 does not wait for another timeout. */
static void test_hint_comes_late(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  w->unreachable[1][2] = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  crash(w, 1);
  peer_event(w, 3, RAFT_EVENT_PEER_DOWN, 1);
  pass(w, 40);
  tick(w, 3);
  settle(w);
  assert_int_equal(raft_role(core(w, 3)), RAFT_PRECANDIDATE);
  assert_true(raft_next_deadline(core(w, 3)) >= 500);
  peer_event(w, 2, RAFT_EVENT_PEER_DOWN, 1);
  pass(w, 40);
  tick(w, 2);
  settle(w);
  assert_true(raft_next_deadline(core(w, 3)) < 40);
  pass(w, 40);
  tick(w, 3);
  settle(w);
  assert_int_equal(raft_role(core(w, 3)), RAFT_LEADER);
  world_free(w);
}

/* 1 and 2 have the better log, 3 asks first: both hurry, and split the votes.
   The next time they do not hurry, or it would go on like that. */
static void test_hurry_once(void **state)
{
  struct world *w = world_prepare(4, 4);
  struct raft_message m = {.type = RAFT_PREVOTE_REQUEST,
                           .from = 3,
                           .to = 1,
                           .incarnation = 103,
                           .term = 2,
                           .prev_index = 1,
                           .prev_term = 1};

  (void)state;
  put_on_disk(w, 1, 1);
  put_on_disk(w, 1, 1);
  start_node(w, 1);
  inject(w, &m);
  assert_true(raft_next_deadline(core(w, 1)) < 40);
  pass(w, 40);
  tick(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  inject(w, &m);
  assert_true(raft_next_deadline(core(w, 1)) >= 500);
  /* Another leader, and it may again. */
  m.type = RAFT_HEARTBEAT_REQUEST;
  inject(w, &m);
  pass(w, 3000);
  tick(w, 1);
  m.type = RAFT_PREVOTE_REQUEST;
  m.term = 3;
  inject(w, &m);
  assert_true(raft_next_deadline(core(w, 1)) < 40);
  world_free(w);
}

/* Both ask at once, and each votes for itself. */
static void split(struct world *w)
{
  pass(w, 1000);
  tick(w, 2);
  tick(w, 3);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_CANDIDATE);
  assert_int_equal(raft_role(core(w, 3)), RAFT_CANDIDATE);
  assert_int_equal(term_of(w, 2), term_of(w, 3));
}

/* Neither waits for its timeout then, but draws again, from a range that
   doubles for as long as they meet; an elected leader makes it short again. */
static void test_split_votes(void **state)
{
  struct world *w = world_new(3);
  unsigned range;
  raft_id first;

  (void)state;
  elect(w, 1);
  crash(w, 1);
  for (range = 80; range < 500; range *= 2) {
    split(w);
    assert_true(raft_next_deadline(core(w, 2)) < range);
    assert_true(raft_next_deadline(core(w, 3)) < range);
  }
  split(w);
  assert_true(raft_next_deadline(core(w, 2)) >= 500);
  assert_true(raft_next_deadline(core(w, 3)) >= 500);
  first =
      raft_next_deadline(core(w, 2)) < raft_next_deadline(core(w, 3)) ? 2 : 3;
  pass(w, raft_next_deadline(core(w, first)));
  tick(w, first);
  settle(w);
  assert_int_equal(raft_role(core(w, first)), RAFT_LEADER);
  crash(w, first);
  start_node(w, first);
  split(w);
  assert_true(raft_next_deadline(core(w, 2)) < 80);
  assert_true(raft_next_deadline(core(w, 3)) < 80);
  world_free(w);
}

/* Five, of which one is gone: two ask at once and get two votes each. However
   many refuse, it draws once, and whoever is first then has them all. */
static void test_split_votes_of_five(void **state)
{
  struct world *w = world_new(5);
  uint64_t a, b;
  raft_id id;

  (void)state;
  elect(w, 1);
  crash(w, 1);
  pass(w, 1000);
  tick(w, 2);
  tick(w, 3);
  for (id = 4; id <= 5; id++) {
    deliver(w, 2, id, RAFT_PREVOTE_REQUEST);
    deliver(w, id, 2, RAFT_PREVOTE_RESPONSE);
    deliver(w, 3, id, RAFT_PREVOTE_REQUEST);
    deliver(w, id, 3, RAFT_PREVOTE_RESPONSE);
  }
  deliver(w, 2, 4, RAFT_VOTE_REQUEST);
  deliver(w, 3, 5, RAFT_VOTE_REQUEST);
  settle(w);
  a = raft_next_deadline(core(w, 2));
  b = raft_next_deadline(core(w, 3));
  assert_true(a < 80 && b < 80 && a != b);
  assert_int_equal(core(w, 2)->retry_ms, 160);
  pass(w, a < b ? a : b);
  tick(w, a < b ? 2 : 3);
  settle(w);
  assert_int_equal(raft_role(core(w, a < b ? 2 : 3)), RAFT_LEADER);
  world_free(w);
}

/* Only one has the hint, and the leader is alive: nothing comes of it. */
static void test_hint_without_cause(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  peer_event(w, 3, RAFT_EVENT_PEER_DOWN, 2); /* not the leader: no hint */
  assert_int_equal(raft_leader(core(w, 3)), 1);
  peer_event(w, 3, RAFT_EVENT_PEER_DOWN, 1);
  pass(w, 40);
  tick(w, 3);
  assert_int_equal(raft_role(core(w, 3)), RAFT_PRECANDIDATE);
  settle(w);
  beat(w, 1);
  assert_int_equal(raft_leader(core(w, 3)), 1);
  assert_int_equal(term_of(w, 3), 1);

  node(w, 3)->options.hint_jitter_ms = 0; /* off */
  crash(w, 3);
  start_node(w, 3);
  beat(w, 1);
  peer_event(w, 3, RAFT_EVENT_PEER_DOWN, 1);
  assert_int_equal(raft_leader(core(w, 3)), 1);
  world_free(w);
}

/* Node 3 stands in term 2, where it lost; 1 leads in term 1. Entries do not
   reach 3, pre-votes it does not get: the leader must learn of the term. */
static void test_wedge(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  crash(w, 3);
  node(w, 3)->term = 2;
  start_node(w, 3);
  live(w, 3000);
  assert_true(term_of(w, 3) >= 3);
  assert_int_not_equal(raft_leader(core(w, 3)), 0);
  assert_int_equal(raft_leader(core(w, 3)), raft_leader(core(w, 1)));
  assert_int_equal(raft_commit(core(w, 3)), raft_commit(core(w, 1)));
  world_free(w);
}

/* A heartbeat of an earlier term is answered in the later one. */
static void test_stale_leader_steps_down(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  crash(w, 3);
  node(w, 3)->term = 4;
  start_node(w, 3);
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 3, RAFT_HEARTBEAT_REQUEST);
  assert_int_equal(term_of(w, 3), 4);
  deliver(w, 3, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 1), 4);
  world_free(w);
}

/* Cut off from both, the leader steps down after an election timeout, in
   its own term; one answer in time keeps it in power. */
static void test_check_quorum(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  for (i = 0; i < 30; i++) { /* 2 alone is a quorum with it */
    w->unreachable[1][3] = true;
    beat(w, 1);
  }
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  w->unreachable[1][2] = true;
  for (i = 0; i < 10; i++)
    beat(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  assert_true(raft_next_deadline(core(w, 1)) <= 1);
  pass(w, 1);
  tick(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(raft_leader(core(w, 1)), 0);
  assert_int_equal(term_of(w, 1), 1);
  world_free(w);
}

/* Timeouts lie in [t, 2t), and spread over it. */
static void test_timeouts_are_random(void **state)
{
  struct world *w = world_prepare(3, 3);
  uint64_t least = 5000, most = 0, t;
  unsigned i;

  (void)state;
  for (i = 0; i < 300; i++) {
    node(w, 1)->options.seed = i * 7919;
    start_node(w, 1);
    t = raft_next_deadline(core(w, 1));
    least = t < least ? t : least;
    most = t > most ? t : most;
    crash(w, 1);
  }
  assert_true(least >= 500 && least < 520);
  assert_true(most < 1000 && most > 980);
  world_free(w);
}

/* A learner and a node outside wait; what a learner votes does not count. */
static void test_only_voters_campaign_and_count(void **state)
{
  struct world *w = world_prepare(4, 3);
  unsigned i;

  (void)state;
  w->configuration.members[2].role = RAFT_LEARNER;
  for (i = 1; i <= 4; i++)
    start_node(w, i);
  time_out(w, 3);
  time_out(w, 4);
  assert_int_equal(raft_role(core(w, 3)), RAFT_FOLLOWER);
  assert_int_equal(raft_role(core(w, 4)), RAFT_FOLLOWER);
  time_out(w, 1);
  assert_int_equal(count(w, 1, 3, RAFT_PREVOTE_REQUEST), 0);
  inject(w, &(struct raft_message){.type = RAFT_PREVOTE_RESPONSE,
                                   .from = 3,
                                   .to = 1,
                                   .incarnation = 103,
                                   .granted = true});
  inject(w, &(struct raft_message){.type = RAFT_PREVOTE_RESPONSE,
                                   .from = 4,
                                   .to = 1,
                                   .incarnation = 104,
                                   .granted = true});
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  settle(w);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  world_free(w);
}

/* The same vote twice is one vote. */
static void test_votes_are_counted_once(void **state)
{
  struct world *w = world_new(5);
  unsigned i;

  (void)state;
  time_out(w, 1);
  for (i = 0; i < 3; i++)
    inject(w, &(struct raft_message){.type = RAFT_PREVOTE_RESPONSE,
                                     .from = 2,
                                     .to = 1,
                                     .incarnation = 102,
                                     .granted = true});
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  world_free(w);
}

/* A node whose disk was wiped is not the member it claims to be. */
static void test_incarnation(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  crash(w, 2);
  node(w, 2)->options.incarnation = 999;
  start_node(w, 2);
  time_out(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER); /* nor campaigns */
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  assert_int_equal(count(w, 1, 0, RAFT_VOTE_REQUEST), 0);
  world_free(w);
}

/* A pre-vote says what was so when it was asked for: the answer to an earlier
   round counts for nothing in a later one. */
static void test_prevote_of_an_earlier_round(void **state)
{
  struct world *w = world_new(3);
  struct raft_message old;

  (void)state;
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  old = look(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  assert_true(old.granted);
  drop(w, 0, 0, 0);
  elect(w, 2); /* 2 has other plans by now */
  cut_off(w, 1);
  time_out(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  inject(w, &old);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  old.read++;
  inject(w, &old);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  world_free(w);
}

/* Nor does an answer from before a restart. */
static void test_prevote_from_before_a_restart(void **state)
{
  struct world *w = world_new(3);
  struct raft_message old;

  (void)state;
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  old = look(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  crash(w, 1);
  start_node(w, 1);
  time_out(w, 1);
  inject(w, &old);
  assert_int_equal(raft_role(core(w, 1)), RAFT_PRECANDIDATE);
  world_free(w);
}

/* Whoever steps down within a term has still voted in it, for itself. */
static void test_stepping_down_keeps_the_vote(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m = {.type = RAFT_VOTE_REQUEST,
                           .from = 3,
                           .to = 1,
                           .incarnation = 103,
                           .term = 1,
                           .prev_index = 9,
                           .prev_term = 1};

  (void)state;
  elect(w, 1);
  pass(w, 501);
  tick(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 1), 1);
  inject(w, &m);
  assert_false(look(w, 1, 3, RAFT_VOTE_RESPONSE).granted);
  assert_int_equal(node(w, 1)->voted_for, 1);
  world_free(w);

  w = world_new(3); /* a candidate that finds the leader of its term */
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  inject(w, &(struct raft_message){.type = RAFT_HEARTBEAT_REQUEST,
                                   .from = 2,
                                   .to = 1,
                                   .incarnation = 102,
                                   .term = 1});
  assert_int_equal(raft_leader(core(w, 1)), 2);
  drop(w, 0, 0, 0);
  pass(w, 500);
  inject(w, &m);
  assert_false(look(w, 1, 3, RAFT_VOTE_RESPONSE).granted);
  world_free(w);
}

/* Two candidates split the votes; a later timeout settles it. */
static void test_split_vote(void **state)
{
  struct world *w = world_new(4);

  (void)state;
  time_out(w, 1);
  tick(w, 2);
  deliver(w, 1, 3, RAFT_PREVOTE_REQUEST);
  deliver(w, 1, 4, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 3, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 4, RAFT_PREVOTE_REQUEST);
  deliver(w, 3, 1, RAFT_PREVOTE_RESPONSE);
  deliver(w, 4, 1, RAFT_PREVOTE_RESPONSE);
  deliver(w, 3, 2, RAFT_PREVOTE_RESPONSE);
  deliver(w, 4, 2, RAFT_PREVOTE_RESPONSE);
  deliver(w, 1, 3, RAFT_VOTE_REQUEST);
  deliver(w, 2, 4, RAFT_VOTE_REQUEST);
  settle(w);
  assert_int_equal(raft_role(core(w, 1)), RAFT_CANDIDATE);
  assert_int_equal(raft_role(core(w, 2)), RAFT_CANDIDATE);
  elect(w, 2);
  assert_int_equal(raft_leader(core(w, 1)), 2);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_election),
      cmocka_unit_test(test_sole_voter),
      cmocka_unit_test(test_votes_are_durable_first),
      cmocka_unit_test(test_own_vote_is_durable),
      cmocka_unit_test(test_one_vote_a_term),
      cmocka_unit_test(test_vote_restarts_the_timer),
      cmocka_unit_test(test_up_to_date),
      cmocka_unit_test(test_prevote_leaves_terms_alone),
      cmocka_unit_test(test_refusal_brings_a_later_term),
      cmocka_unit_test(test_stickiness),
      cmocka_unit_test(test_closed_connection),
      cmocka_unit_test(test_hurry_once),
      cmocka_unit_test(test_split_votes),
      cmocka_unit_test(test_split_votes_of_five),
      cmocka_unit_test(test_hint_comes_late),
      cmocka_unit_test(test_hint_without_cause),
      cmocka_unit_test(test_wedge),
      cmocka_unit_test(test_stale_leader_steps_down),
      cmocka_unit_test(test_check_quorum),
      cmocka_unit_test(test_timeouts_are_random),
      cmocka_unit_test(test_only_voters_campaign_and_count),
      cmocka_unit_test(test_votes_are_counted_once),
      cmocka_unit_test(test_incarnation),
      cmocka_unit_test(test_prevote_of_an_earlier_round),
      cmocka_unit_test(test_prevote_from_before_a_restart),
      cmocka_unit_test(test_stepping_down_keeps_the_vote),
      cmocka_unit_test(test_split_vote),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
