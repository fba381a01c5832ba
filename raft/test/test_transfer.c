/*
** test_transfer.c: a leader hands over (dissertation, 3.10).
*/
#include "timeline.h"

/* 1 leads three voters. */
static struct world *three(void)
{
  struct world *w = world_new(3);

  elect(w, 1);
  return w;
}

/* 2 has missed an entry, and messages to it are lost. */
static struct world *one_behind(void)
{
  struct world *w = three();

  w->unreachable[1][2] = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  return w;
}

static struct raft_message timeout_now(raft_id from, raft_id to, raft_term term,
                                       raft_index last)
{
  return (struct raft_message){.type = RAFT_TIMEOUT_NOW,
                               .from = from,
                               .to = to,
                               .incarnation = 100 + from,
                               .term = term,
                               .prev_index = last,
                               .prev_term = term};
}

/* The target has it all: it is told at once, asks for votes without asking
   for pre-votes first, and says why; those who hear from the leader give it
   theirs all the same. */
static void test_to_a_named_node(void **state)
{
  struct world *w = three();
  struct raft_message m;

  (void)state;
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 2);
  assert_int_equal(count(w, 1, 0, RAFT_TIMEOUT_NOW), 1);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  assert_int_equal(raft_role(core(w, 2)), RAFT_CANDIDATE);
  assert_int_equal(count(w, 2, 0, RAFT_PREVOTE_REQUEST), 0);
  m = look(w, 2, 3, RAFT_VOTE_REQUEST);
  assert_true(m.transfer);
  deliver(w, 2, 3, RAFT_VOTE_REQUEST);
  deliver(w, 3, 2, RAFT_VOTE_RESPONSE);
  assert_true(is_leader(w, 2));
  settle(w);
  assert_int_equal(raft_leader(core(w, 1)), 2);
  assert_int_equal(raft_transferring(core(w, 1)), 0);
  assert_int_equal(propose(w, 2, RAFT_COMMIT, 10), 0);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 3);
  world_free(w);
}

/* The leader itself votes for its successor, and leads no more from then on:
   that is a quorum of three with 3 away. */
static void test_the_leader_votes(void **state)
{
  struct world *w = three();

  (void)state;
  cut_off(w, 3);
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  deliver(w, 2, 1, RAFT_VOTE_REQUEST);
  assert_false(is_leader(w, 1));
  assert_int_equal(node(w, 1)->voted_for, 2);
  deliver(w, 1, 2, RAFT_VOTE_RESPONSE);
  assert_true(is_leader(w, 2));
  world_free(w);
}

/* Without the leader's wish a living leader is an objection. */
static void test_stickiness(void **state)
{
  struct world *w = three();
  struct raft_message m = {.type = RAFT_VOTE_REQUEST,
                           .from = 2,
                           .to = 3,
                           .incarnation = 102,
                           .term = 2,
                           .prev_index = 1,
                           .prev_term = 1};

  (void)state;
  inject(w, &m);
  assert_false(look(w, 3, 2, RAFT_VOTE_RESPONSE).granted);
  assert_int_equal(term_of(w, 3), 1);
  drop(w, 3, 2, 0);
  m.transfer = true;
  inject(w, &m);
  assert_true(look(w, 3, 2, RAFT_VOTE_RESPONSE).granted);
  assert_int_equal(node(w, 3)->voted_for, 2);
  /* It is a wish for this log, not for any. */
  m.term = 3;
  m.prev_index = m.prev_term = 0;
  drop(w, 3, 2, 0);
  inject(w, &m);
  assert_false(look(w, 3, 2, RAFT_VOTE_RESPONSE).granted);
  world_free(w);
}

/* A candidate that was asked and did not win campaigns on like any other. */
static void test_the_wish_is_for_once(void **state)
{
  struct world *w = three();

  (void)state;
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  drop(w, 2, 0, 0);
  time_out(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_PRECANDIDATE);
  deliver(w, 2, 3, RAFT_PREVOTE_REQUEST);
  deliver(w, 3, 2, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 2)), RAFT_CANDIDATE);
  assert_false(look(w, 2, 3, RAFT_VOTE_REQUEST).transfer);
  world_free(w);
}

/* To the best: who has most of the log, of those that have what is committed
   as of all. */
static void test_most_of_the_log(void **state)
{
  struct world *w = world_new(5);

  (void)state;
  elect(w, 1);
  cut_off(w, 2);
  cut_off(w, 4);
  cut_off(w, 5);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  assert_int_equal(transfer(w, 1, 0), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 3);
  world_free(w);
}

static void test_to_the_best(void **state)
{
  struct world *w = one_behind();

  (void)state;
  assert_int_equal(progress(w, 1, 2).match, 1);
  assert_int_equal(transfer(w, 1, 0), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 3);
  settle(w);
  assert_true(is_leader(w, 3));
  world_free(w);
}

/* A target that is behind is brought up to date first; what was proposed
   before is not lost by it. */
static void test_target_behind(void **state)
{
  struct world *w = one_behind();

  (void)state;
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  w->unreachable[1][2] = false;
  pass(w, 50);
  tick(w, 1);
  drop(w, 1, 3, 0);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  drop(w, 1, 0, 0);
  pass(w, 50); /* twice the same answer: the append was lost */
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(raft_last(core(w, 2)), 2);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  settle(w);
  assert_true(is_leader(w, 2));
  assert_int_equal(raft_commit(core(w, 2)), 3);
  world_free(w);
}

/* On its disk, that is: what is not durable may be lost with it. */
static void test_target_durably_behind(void **state)
{
  struct world *w = three();

  (void)state;
  node(w, 2)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 10);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  transfer(w, 1, 2);
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(raft_last(core(w, 2)), 2);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  persist(w, 2);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  world_free(w);
}

/* Nothing new is taken meanwhile. Reads are answered. */
static void test_refused_meanwhile(void **state)
{
  struct world *w = one_behind();

  (void)state;
  transfer(w, 1, 2);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), RAFT_ETRANSFER);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 3), RAFT_ETRANSFER);
  assert_int_equal(transfer(w, 1, 3), RAFT_ETRANSFER);
  assert_int_equal(transfer(w, 1, 2), RAFT_ETRANSFER);
  assert_int_equal(raft_last(core(w, 1)), 2);
  read_on(w, 1, 1);
  settle(w);
  assert_int_equal(last_read(w, 1)->read, 1);
  assert_int_equal(last_read(w, 1)->status, 0);
  world_free(w);
}

/* After an election timeout it is given up, on time even if nothing else is
   due then, and the leader works as before. */
static void test_abort(void **state)
{
  struct world *w = one_behind();
  uint64_t began = w->now + 20; /* between two heartbeats */

  (void)state;
  pass(w, 20);
  transfer(w, 1, 2);
  while (w->now < began + 499) {
    pass(w, 1);
    tick(w, 1);
    settle(w);
    assert_int_equal(raft_transferring(core(w, 1)), 2);
    assert_true(w->now + raft_next_deadline(core(w, 1)) <= began + 500);
  }
  pass(w, 1);
  tick(w, 1);
  assert_int_equal(raft_transferring(core(w, 1)), 0);
  assert_true(is_leader(w, 1));
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), 0);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 3);
  assert_int_equal(transfer(w, 1, 3), 0); /* and may try another one */
  settle(w);
  assert_true(is_leader(w, 3));
  world_free(w);
}

/* TIMEOUT_NOW is lost: told again with the next heartbeat, not before. */
static void test_told_again(void **state)
{
  struct world *w = three();

  (void)state;
  transfer(w, 1, 2);
  assert_int_equal(drop(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  pass(w, 10);
  tick(w, 1);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  pass(w, 40);
  tick(w, 1);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  settle(w);
  assert_true(is_leader(w, 2));
  world_free(w);
}

/* It crashes before it campaigns; 1 leads on after an election timeout. */
static void test_target_crashes(void **state)
{
  struct world *w = three();

  (void)state;
  transfer(w, 1, 2);
  crash(w, 2);
  live(w, 490);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), RAFT_ETRANSFER);
  live(w, 20);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), 0);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  start_node(w, 2);
  live(w, 1500);
  assert_true(is_leader(w, 1));
  assert_int_equal(term_of(w, 2), 1);
  world_free(w);
}

/* It crashes when it has campaigned, and 1 has voted for it: another leader
   is found. */
static void test_target_crashes_late(void **state)
{
  struct world *w = three();

  (void)state;
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  deliver(w, 2, 1, RAFT_VOTE_REQUEST);
  deliver(w, 2, 3, RAFT_VOTE_REQUEST);
  crash(w, 2);
  live(w, 3000);
  assert_true(is_leader(w, 1) || is_leader(w, 3));
  world_free(w);
}

/* Nobody that could lead is there: the best is none, a named one is waited
   for and given up. */
static void test_no_successor(void **state)
{
  struct world *w = world_new(1);

  (void)state;
  tick(w, 1);
  assert_int_equal(transfer(w, 1, 0), RAFT_ENOTREADY);
  world_free(w);

  w = world_new(2);
  elect(w, 1);
  cut_off(w, 2);
  pass(w, 501);
  assert_int_equal(transfer(w, 1, 0), RAFT_ENOTREADY); /* long not heard */
  world_free(w);

  w = world_new(2);
  elect(w, 1);
  peer_event(w, 1, RAFT_EVENT_PEER_DOWN, 2);
  assert_int_equal(transfer(w, 1, 0), RAFT_ENOTREADY); /* just closed */
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 2);
  world_free(w);
}

static void test_refused(void **state)
{
  struct world *w = world_prepare(4, 3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 4; i++)
    start_node(w, i);
  assert_int_equal(transfer(w, 1, 2), RAFT_ENOTLEADER);
  elect(w, 1);
  change(w, 1, RAFT_ADD_LEARNER, 4);
  live(w, 200);
  assert_int_equal(transfer(w, 1, 4), RAFT_EINVAL); /* a learner */
  assert_int_equal(transfer(w, 1, 1), RAFT_EINVAL); /* itself */
  assert_int_equal(transfer(w, 1, 6), RAFT_ENOTFOUND);
  assert_int_equal(transfer(w, 2, 1), RAFT_ENOTLEADER);
  assert_int_equal(raft_transferring(core(w, 1)), 0);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), 0);
  change(w, 1, RAFT_REMOVE, 3); /* on its way out */
  settle(w);
  assert_int_equal(transfer(w, 1, 3), RAFT_ENOTFOUND);
  world_free(w);
}

/* Not to one who is leaving; and a change under way goes on meanwhile, so
   that the target gets C-new as well before it is told. */
static void test_while_joint(void **state)
{
  struct world *w = three();

  (void)state;
  change(w, 1, RAFT_REMOVE, 3);
  assert_true(is_joint(w, 1));
  assert_int_equal(transfer(w, 1, 3), RAFT_EINVAL);
  assert_int_equal(transfer(w, 1, 2), 0);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(configured_at(w, 1), 3); /* C-new */
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 0);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  settle(w);
  assert_true(is_leader(w, 2));
  assert_false(is_joint(w, 2));
  world_free(w);
}

/* ---- late and repeated messages ----------------------------------------- */

/* After the transfer was given up: there is an election, and that is all. */
static void test_late_after_abort(void **state)
{
  struct world *w = three();
  struct raft_message m = timeout_now(1, 2, 1, 1);

  (void)state;
  transfer(w, 1, 2);
  drop(w, 1, 2, RAFT_TIMEOUT_NOW);
  w->unreachable[1][2] = true;
  live(w, 500);
  assert_int_equal(raft_transferring(core(w, 1)), 0);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  mend(w);
  inject(w, &m); /* its log is not what it was to take over */
  settle(w);
  live(w, 3000);
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  assert_int_equal(raft_commit(core(w, 2)), raft_last(core(w, 1)));
  assert_int_equal(raft_entry_at(core(w, 2), 2)->type, RAFT_COMMIT);
  world_free(w);
}

/* In a later term, from one who is not the leader, for more than the log
   holds, or again: nothing happens. */
static void test_ignored(void **state)
{
  struct world *w = three();
  struct raft_message m = timeout_now(1, 2, 1, 1);

  (void)state;
  m.prev_index = 5;
  inject(w, &m); /* it does not have all of the log */
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  m = timeout_now(3, 2, 1, 1);
  inject(w, &m); /* 3 does not lead */
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 2), 1);
  m = timeout_now(1, 2, 1, 1);
  inject(w, &m);
  assert_int_equal(raft_role(core(w, 2)), RAFT_CANDIDATE);
  assert_int_equal(term_of(w, 2), 2);
  inject(w, &m); /* once more: of an earlier term by now */
  assert_int_equal(term_of(w, 2), 2);
  settle(w);
  assert_true(is_leader(w, 2));
  inject(w, &m);
  assert_true(is_leader(w, 2));
  assert_int_equal(term_of(w, 2), 2);
  elect(w, 1);
  inject(w, &m); /* from who leads again, but of its earlier term */
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 2), 3);
  world_free(w);
}

/* At a node that has no vote any more, or whose disk has failed. */
static void test_ignored_by_non_voters(void **state)
{
  struct raft_event failed = {.type = RAFT_EVENT_DISK_FAILED};
  struct world *w = three();
  struct raft_message m;

  (void)state;
  change(w, 1, RAFT_DEMOTE, 2);
  settle(w);
  live(w, 100);
  m = timeout_now(1, 2, 1, raft_last(core(w, 1)));
  m.prev_term = 1;
  inject(w, &m);
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  assert_int_equal(term_of(w, 2), 1);
  m = timeout_now(1, 3, 1, raft_last(core(w, 1)));
  step(w, 3, &failed);
  inject(w, &m);
  assert_int_equal(raft_role(core(w, 3)), RAFT_FOLLOWER);
  world_free(w);
}

/* The vote requests of a transfer, seen again by a node that has not heard of
   the new leader, elect nobody twice. */
static void test_late_vote_request(void **state)
{
  struct world *w = three();
  struct raft_message old = {.type = RAFT_VOTE_REQUEST,
                             .from = 2,
                             .to = 3,
                             .incarnation = 102,
                             .term = 2,
                             .transfer = true,
                             .prev_index = 1,
                             .prev_term = 1};

  (void)state;
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  drop(w, 2, 3, 0);
  settle(w);
  assert_true(is_leader(w, 2));
  elect(w, 1);
  elect(w, 3);
  old.to = 1;
  inject(w, &old);
  old.to = 3;
  inject(w, &old);
  settle(w);
  assert_true(is_leader(w, 3));
  assert_int_equal(term_of(w, 1), 4);
  world_free(w);
}

/* What the target had asked the leader it asks nobody any more. */
static void test_reads_of_the_target(void **state)
{
  struct world *w = three();

  (void)state;
  read_on(w, 2, 7);
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  assert_int_equal(last_read(w, 2)->read, 7);
  assert_int_equal(last_read(w, 2)->status, RAFT_ELOST);
  settle(w);
  assert_true(is_leader(w, 2));
  read_on(w, 2, 8);
  settle(w);
  assert_int_equal(last_read(w, 2)->read, 8);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* ---- a removed leader --------------------------------------------------- */

/* Of those who follow, it tells one who has all of the log. */
static void test_removed_leader_hands_over(void **state)
{
  struct world *w = world_new(4);

  (void)state;
  elect(w, 1);
  node(w, 2)->prompt = false; /* acknowledges late */
  change(w, 1, RAFT_REMOVE, 1);
  settle(w);
  assert_true(is_leader(w, 2) || is_leader(w, 3) || is_leader(w, 4));
  persist(w, 2);
  settle(w);
  live(w, 100);
  assert_false(is_leader(w, 1));
  assert_int_equal(term_of(w, 3), 2); /* without a timeout */
  world_free(w);
}

/* There is nobody to tell: it stops leading all the same. */
static void test_removed_leader_without_successor(void **state)
{
  struct world *w = three();

  (void)state;
  change(w, 1, RAFT_REMOVE, 1);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 1, 3, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  deliver(w, 3, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), 0); /* beyond C-new */
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 1, 3, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  deliver(w, 3, 1, RAFT_APPEND_RESPONSE);
  assert_false(is_leader(w, 1));
  assert_int_equal(count(w, 1, 0, RAFT_TIMEOUT_NOW), 0); /* all lag by one */
  live(w, 3000);
  assert_true(is_leader(w, 2) || is_leader(w, 3));
  world_free(w);
}

/* The leader's disk takes nothing any more, and tells of no error; the others
   commit without it. */
static struct world *stalled(unsigned n)
{
  struct world *w = world_new(n);

  elect(w, 1);
  live(w, 3000);
  node(w, 1)->prompt = false;
  node(w, 1)->hangs = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  return w;
}

/* After some election timeouts one of them leads. What the old leader would say
   in the new term waits for its disk: 2 and 3 do without it. */
static void test_disk_that_stands_still(void **state)
{
  struct world *w = stalled(3);

  (void)state;
  assert_int_equal(raft_commit(core(w, 1)), 2);
  live(w, 1900);
  assert_true(is_leader(w, 1)); /* it may be slow */
  live(w, 1500);
  assert_false(is_leader(w, 1));
  assert_true(is_leader(w, 2) || is_leader(w, 3));
  assert_int_equal(node(w, 1)->term, 1);
  live(w, 5000);
  persist(w, 1);
  node(w, 1)->hangs = false;
  live(w, 1000);
  assert_false(is_leader(w, 1));
  assert_int_equal(raft_commit(core(w, 1)), 3);
  assert_int_equal(raft_durable(core(w, 1)), 3);
  world_free(w);
}

/* One that is slow, but works, leads on; so does one with which all wait. */
static void test_disk_that_is_slow(void **state)
{
  struct world *w = stalled(3);
  unsigned i;

  (void)state;
  for (i = 0; i < 10; i++) {
    propose(w, 1, RAFT_COMMIT, 10);
    live(w, 1500);
    persist_one(w, 1);
    settle(w);
    assert_true(raft_durable(core(w, 1)) < raft_commit(core(w, 1)));
  }
  assert_true(is_leader(w, 1));
  persist(w, 1);
  node(w, 2)->prompt = node(w, 3)->prompt = false;
  node(w, 2)->hangs = node(w, 3)->hangs = true;
  propose(w, 1, RAFT_COMMIT, 10);
  live(w, 10000);
  assert_true(is_leader(w, 1));
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_to_a_named_node),
      cmocka_unit_test(test_the_leader_votes),
      cmocka_unit_test(test_stickiness),
      cmocka_unit_test(test_the_wish_is_for_once),
      cmocka_unit_test(test_most_of_the_log),
      cmocka_unit_test(test_to_the_best),
      cmocka_unit_test(test_target_behind),
      cmocka_unit_test(test_target_durably_behind),
      cmocka_unit_test(test_refused_meanwhile),
      cmocka_unit_test(test_abort),
      cmocka_unit_test(test_told_again),
      cmocka_unit_test(test_target_crashes),
      cmocka_unit_test(test_target_crashes_late),
      cmocka_unit_test(test_no_successor),
      cmocka_unit_test(test_refused),
      cmocka_unit_test(test_while_joint),
      cmocka_unit_test(test_late_after_abort),
      cmocka_unit_test(test_ignored),
      cmocka_unit_test(test_ignored_by_non_voters),
      cmocka_unit_test(test_late_vote_request),
      cmocka_unit_test(test_reads_of_the_target),
      cmocka_unit_test(test_removed_leader_hands_over),
      cmocka_unit_test(test_removed_leader_without_successor),
      cmocka_unit_test(test_disk_that_stands_still),
      cmocka_unit_test(test_disk_that_is_slow),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
