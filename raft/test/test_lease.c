/*
** test_lease.c: reads without a round, and who must not vote meanwhile.
**
** The election timeout is 500 ms and clocks drift by 20 percent at most, so a
** lease lasts less than 400 ms from the moment its round was sent.
*/
#include "timeline.h"

static struct world *leasing_prepare(unsigned n, unsigned voters)
{
  struct world *w = world_prepare(n, voters);
  unsigned i;

  for (i = 1; i <= n; i++) {
    node(w, i)->options.lease = true;
    node(w, i)->options.hint_jitter_ms = 0;
  }
  return w;
}

static struct world *leasing(unsigned n)
{
  struct world *w = leasing_prepare(n, n);
  unsigned i;

  for (i = 1; i <= n; i++)
    start_node(w, i);
  elect(w, 1);
  return w;
}

/* Whether a read on id is answered at once, and rightly. The host is told the
   same. */
static bool reads_at_once(struct world *w, raft_id id)
{
  static uint64_t number = 1000;
  unsigned before = node(w, id)->n_reads;
  bool lease;

  read_by_lease(w, id, ++number);
  lease = raft_lease_until(core(w, id)) > local_time(w, id);
  assert_int_equal(lease, node(w, id)->n_reads > before);
  if (!lease) return false;
  assert_int_equal(last_read(w, id)->read, number);
  assert_int_equal(last_read(w, id)->status, 0);
  assert_true(last_read(w, id)->index >= w->max_committed);
  return true;
}

/* ---- having one --------------------------------------------------------- */

/* The answers to one round of heartbeats are a lease; reads that do not ask
   for it wait for a round as ever. */
static void test_lease(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  assert_int_equal(w->n_net, 0); /* nothing was asked of anybody */
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_true(reads_at_once(w, 1));
  assert_int_equal(last_read(w, 1)->index, 2);
  read_on(w, 1, 7);
  assert_int_equal(count(w, 1, 0, RAFT_HEARTBEAT_REQUEST), 2);
  assert_int_not_equal(last_read(w, 1)->read, 7);
  world_free(w);
}

/* Without the option a read that would be content with a lease is as any. */
static void test_off(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  read_on(w, 1, 1);
  settle(w); /* a round was confirmed */
  assert_int_equal(last_read(w, 1)->read, 1);
  assert_false(reads_at_once(w, 1));
  settle(w);
  assert_int_equal(last_read(w, 1)->status, 0);
  world_free(w);
}

/* The hint lets a voter forget its leader at once: not together. */
static void test_options(void **state)
{
  struct raft_recovered *rec = calloc(1, sizeof *rec);
  struct raft_options options;
  struct raft *r;

  (void)state;
  raft_options_defaults(&options);
  options.id = 1;
  options.lease = true;
  assert_true(options.hint_jitter_ms > 0);
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  options.hint_jitter_ms = 0;
  options.clock_drift_percent = 100;
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  options.clock_drift_percent = 99;
  assert_int_equal(raft_new(&options, rec, 0, &r), 0);
  raft_free(r);
  free(rec);
}

/* A new leader has none before its NOOP is committed, whoever confirms its
   rounds: it does not know yet what is committed. */
static void test_not_before_the_noop(void **state)
{
  struct world *w = leasing_prepare(3, 3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 3; i++)
    start_node(w, i);
  time_out(w, 1);
  while (!is_leader(w, 1))
    assert_true(deliver_any(w, 0, 0));
  assert_false(reads_at_once(w, 1)); /* votes are no lease either */
  drop(w, 0, 0, 0);
  pass(w, 50);
  tick(w, 1);
  drop(w, 1, 0, RAFT_APPEND_REQUEST);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  drop(w, 1, 0, RAFT_APPEND_REQUEST);
  assert_int_equal(raft_commit(core(w, 1)), 0);
  assert_false(reads_at_once(w, 1));
  settle(w);
  beat(w, 1);
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  world_free(w);
}

/* A round that was begun in an earlier term of the same leader, and an answer
   that comes late, are no lease of this term. */
static void test_rounds_of_earlier_terms(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  cut_off(w, 1);
  live(w, 600); /* it steps down */
  mend(w);
  drop(w, 0, 0, 0);
  time_out(w, 1);
  while (!is_leader(w, 1))
    assert_true(deliver_any(w, 0, 0));
  drop(w, 1, 0, RAFT_HEARTBEAT_REQUEST);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), raft_last(core(w, 1)));
  assert_false(reads_at_once(w, 1));
  world_free(w);
}

/* One answer of four others is not a quorum of five. */
static void test_minority(void **state)
{
  struct world *w = leasing(5);
  unsigned i;

  (void)state;
  for (i = 3; i <= 5; i++)
    cut_off(w, i);
  beat(w, 1);
  assert_false(reads_at_once(w, 1));
  drop(w, 0, 0, 0);
  mend(w);
  cut_off(w, 4);
  cut_off(w, 5);
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  world_free(w);
}

/* A follower asks its leader, lease or not. */
static void test_follower(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  assert_false(reads_at_once(w, 2));
  assert_int_equal(count(w, 2, 1, RAFT_READ_REQUEST), 1);
  settle(w);
  assert_int_equal(last_read(w, 2)->status, 0);
  world_free(w);
}

/* A new member's answers are needed as soon as it counts. */
static void test_change_of_configuration(void **state)
{
  struct world *w = leasing_prepare(5, 3);
  const struct raft_change items[] = {{.type = RAFT_PROMOTE, .id = 4},
                                      {.type = RAFT_PROMOTE, .id = 5},
                                      {.type = RAFT_REMOVE, .id = 2},
                                      {.type = RAFT_REMOVE, .id = 3}};
  unsigned i;

  (void)state;
  for (i = 1; i <= 5; i++)
    start_node(w, i);
  elect(w, 1);
  change(w, 1, RAFT_ADD_LEARNER, 4);
  live(w, 200);
  change(w, 1, RAFT_ADD_LEARNER, 5);
  live(w, 200);
  assert_true(reads_at_once(w, 1));
  cut_off(w, 4);
  cut_off(w, 5);
  live(w, 400); /* what they have confirmed is over */
  assert_true(reads_at_once(w, 1));
  assert_int_equal(change_all(w, 1, 4, items), 0);
  assert_false(reads_at_once(w, 1));
  beat(w, 1); /* the old voters confirm it, and no new one */
  assert_false(reads_at_once(w, 1));
  mend(w);
  beat(w, 1);
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  world_free(w);
}

/* ---- losing it ---------------------------------------------------------- */

/* It is counted from when the round was sent, and 400 ms later it is over. */
static void test_expiry(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  drop(w, 1, 0, 0);
  pass(w, 100);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE); /* it took its time */
  cut_off(w, 1);
  pass(w, 299);
  assert_true(reads_at_once(w, 1));
  pass(w, 1);
  assert_false(reads_at_once(w, 1));
  assert_true(is_leader(w, 1));
  world_free(w);
}

/* What a host is told lasts as long as a lease does, and not after a step that
   ends it. */
static void test_until(void **state)
{
  struct world *w = leasing(3);
  uint64_t sent, until;

  (void)state;
  sent = w->now;
  beat(w, 1);
  until = raft_lease_until(core(w, 1));
  assert_in_range(until, sent + 400, w->now + 400);
  assert_int_equal(raft_lease_until(core(w, 2)), 0); /* no leader */
  cut_off(w, 1);
  pass(w, (unsigned)(until - 1 - w->now));
  assert_true(reads_at_once(w, 1));
  assert_int_equal(raft_lease_until(core(w, 1)), until);
  pass(w, 1);
  tick(w, 1);
  assert_int_equal(raft_lease_until(core(w, 1)), 0);
  mend(w);
  beat(w, 1);
  assert_true(raft_lease_until(core(w, 1)) > w->now);
  /* The step that sends TIMEOUT_NOW says so, before it is sent. */
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  assert_int_equal(raft_lease_until(core(w, 1)), 0);
  world_free(w);
}

/* More rounds than are remembered: the lease is none, never a wrong one. */
static void test_many_rounds(void **state)
{
  struct world *w = leasing(3);
  unsigned i;

  (void)state;
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  cut_off(w, 1);
  for (i = 0; i < RAFT_ROUNDS + 5; i++) {
    /* Reads begin no round before the one under way is confirmed, so these
       are heartbeats, faster than a host should let them be. */
    core(w, 1)->heartbeat_due = 0;
    tick(w, 1);
  }
  assert_false(reads_at_once(w, 1));
  world_free(w);
}

/* The node that was told to campaign may win at any time, even long after the
   leader has given up handing over. */
static void test_void_after_transfer(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_int_equal(count(w, 1, 2, RAFT_TIMEOUT_NOW), 1);
  assert_false(reads_at_once(w, 1));
  drop(w, 1, 2, RAFT_TIMEOUT_NOW);
  w->unreachable[1][2] = true;
  live(w, 1000);
  assert_true(is_leader(w, 1));
  assert_int_equal(raft_transferring(core(w, 1)), 0);
  assert_false(reads_at_once(w, 1));
  settle(w);
  assert_int_equal(last_read(w, 1)->status, 0); /* the normal way */
  mend(w);
  elect(w, 2); /* the next term begins without a doubt */
  beat(w, 2);
  assert_true(reads_at_once(w, 2));
  world_free(w);
}

/* A transfer that waits for its target has told nobody anything. */
static void test_not_void_before_it_is_told(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  w->unreachable[1][2] = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  beat(w, 1);
  assert_int_equal(transfer(w, 1, 2), 0);
  assert_true(reads_at_once(w, 1));
  world_free(w);
}

static void test_clock_doubt(void **state)
{
  struct raft_event doubt = {.type = RAFT_EVENT_CLOCK_DOUBT};
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  step(w, 1, &doubt);
  assert_false(reads_at_once(w, 1));
  beat(w, 1);
  assert_false(reads_at_once(w, 1));
  live(w, 1000);
  assert_false(reads_at_once(w, 1)); /* all of the term */
  settle(w);
  elect(w, 2);
  elect(w, 1);
  beat(w, 1);
  assert_true(reads_at_once(w, 1));
  /* Time that goes back is as good a reason. */
  w->now -= 1;
  tick(w, 1);
  w->now += 1;
  assert_false(reads_at_once(w, 1));
  beat(w, 1);
  assert_false(reads_at_once(w, 1));
  world_free(w);
}

/* ---- who must not vote -------------------------------------------------- */

static struct raft_message vote_request(uint8_t type, raft_id from, raft_id to)
{
  return (struct raft_message){.type = type,
                               .from = from,
                               .to = to,
                               .incarnation = 100 + from,
                               .term = 9,
                               .prev_index = 99,
                               .prev_term = 8};
}

/* Whether node 2 would vote for 3 in term 9. */
static bool grants(struct world *w, uint8_t type)
{
  struct raft_message m = vote_request(type, 3, 2);

  drop(w, 2, 3, 0);
  inject(w, &m);
  m = look(w, 2, 3,
           type == RAFT_VOTE_REQUEST ? RAFT_VOTE_RESPONSE
                                     : RAFT_PREVOTE_RESPONSE);
  return m.granted;
}

/* It has forgotten whose heartbeats it has answered, so it waits as long as
   any of those answers may be worth. */
static void test_restarted_voter(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  crash(w, 2);
  start_node(w, 2);
  assert_true(raft_next_deadline(core(w, 2)) >= 500);
  pass(w, 499);
  assert_false(grants(w, RAFT_PREVOTE_REQUEST));
  assert_false(grants(w, RAFT_VOTE_REQUEST));
  pass(w, 1);
  assert_true(grants(w, RAFT_PREVOTE_REQUEST));
  assert_true(grants(w, RAFT_VOTE_REQUEST));
  world_free(w);

  w = world_new(3); /* without leases it votes at once */
  elect(w, 1);
  crash(w, 2);
  start_node(w, 2);
  assert_true(grants(w, RAFT_VOTE_REQUEST));
  world_free(w);
}

/* An election that the leader has asked for need not wait: no lease is left
   that it could break. */
static void test_restarted_voter_in_a_transfer(void **state)
{
  struct world *w = leasing(3);

  (void)state;
  crash(w, 3);
  start_node(w, 3);
  transfer(w, 1, 2);
  deliver(w, 1, 2, RAFT_TIMEOUT_NOW);
  deliver(w, 2, 3, RAFT_VOTE_REQUEST);
  deliver(w, 3, 2, RAFT_VOTE_RESPONSE);
  assert_true(is_leader(w, 2));
  world_free(w);
}

/*
** Clocks at the bound: the voters' run by 20 percent faster than the world's,
** the leader's does not. It is cut off; as long as it answers by its lease,
** nobody else is elected, and what it answers is all there is.
*/
static void test_clocks_at_the_bound(void **state)
{
  struct world *w;
  unsigned i, seed, last;

  (void)state;
  for (seed = 0; seed < 20; seed++) {
    w = leasing_prepare(3, 3);
    for (i = 1; i <= 3; i++) {
      node(w, i)->options.seed = seed * 100 + i;
      node(w, i)->clock_rate = i == 1 ? 100 : 120;
      start_node(w, i);
    }
    elect(w, 1);
    beat(w, 1);
    cut_off(w, 1);
    for (last = 0, i = 0; i < 2000; i++) {
      pass(w, 1);
      if (reads_at_once(w, 1)) last = i;
      tick(w, 2);
      tick(w, 3);
      settle(w);
      if (is_leader(w, 2)) propose(w, 2, RAFT_COMMIT, 10);
      if (is_leader(w, 3)) propose(w, 3, RAFT_COMMIT, 10);
      settle(w);
    }
    assert_true(is_leader(w, 2) || is_leader(w, 3));
    assert_in_range(last, 300, 400);
    world_free(w);
  }
}

/* A voter whose clock leapt has measured its promise wrongly: it waits anew,
   with its own campaign too. The others live in the true time. */
static void test_voter_doubts_its_clock(void **state)
{
  struct raft_event doubt = {.type = RAFT_EVENT_CLOCK_DOUBT};
  struct world *w = leasing(3);

  (void)state;
  beat(w, 1);
  w->now += 2000;
  step(w, 2, &doubt);
  assert_false(grants(w, RAFT_PREVOTE_REQUEST));
  tick(w, 2);
  assert_int_equal(raft_role(core(w, 2)), RAFT_FOLLOWER);
  assert_true(raft_next_deadline(core(w, 2)) >= 500);
  pass(w, 500);
  assert_true(grants(w, RAFT_VOTE_REQUEST));
  world_free(w);
}

static void heartbeat(struct world *w, raft_id to)
{
  deliver(w, 1, to, RAFT_HEARTBEAT_REQUEST);
  deliver(w, to, 1, RAFT_HEARTBEAT_RESPONSE);
}

/*
** Five voters; 3, 4 and 5 have lost sight of the leader, and 4 gathers
** pre-votes of 5 and of 3. Then 3 hears from the leader again and answers: 1,
** 2 and 3 are its lease. An answer of 4, now a candidate, to an old pre-vote
** request of 3 brings the later term to 3: that must not make it forget what
** it has promised, or 4 leads by the votes of 3 and 5 during the lease.
*/
static void test_later_term_is_no_excuse(void **state)
{
  struct world *w = leasing(5);
  unsigned i;

  (void)state;
  for (i = 0; i < 1000; i += 50) {
    pass(w, 50);
    tick(w, 1);
    heartbeat(w, 2);
    heartbeat(w, 5);
    drop(w, 1, 0, 0);
  }
  tick(w, 3);
  tick(w, 4);
  pass(w, 500); /* 5 need not believe in 1 any more, nor 1 give up */
  deliver(w, 4, 3, RAFT_PREVOTE_REQUEST);
  deliver(w, 4, 5, RAFT_PREVOTE_REQUEST);
  deliver(w, 3, 4, RAFT_PREVOTE_RESPONSE);
  deliver(w, 5, 4, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(raft_role(core(w, 4)), RAFT_CANDIDATE);
  deliver(w, 3, 4, RAFT_PREVOTE_REQUEST);
  tick(w, 1);
  heartbeat(w, 2);
  heartbeat(w, 3);
  assert_true(reads_at_once(w, 1));
  deliver(w, 4, 3, RAFT_PREVOTE_RESPONSE);
  assert_int_equal(term_of(w, 3), 2);
  cut_off(w, 1);
  drop(w, 0, 1, 0);
  drop(w, 1, 0, 0);
  settle(w);
  if (is_leader(w, 4)) propose(w, 4, RAFT_COMMIT, 10);
  settle(w);
  assert_true(reads_at_once(w, 1)); /* of all that is committed */
  assert_false(is_leader(w, 4));
  pass(w, 500);
  assert_true(grants(w, RAFT_VOTE_REQUEST));
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_lease),
      cmocka_unit_test(test_off),
      cmocka_unit_test(test_options),
      cmocka_unit_test(test_not_before_the_noop),
      cmocka_unit_test(test_rounds_of_earlier_terms),
      cmocka_unit_test(test_minority),
      cmocka_unit_test(test_follower),
      cmocka_unit_test(test_change_of_configuration),
      cmocka_unit_test(test_expiry),
      cmocka_unit_test(test_until),
      cmocka_unit_test(test_many_rounds),
      cmocka_unit_test(test_void_after_transfer),
      cmocka_unit_test(test_not_void_before_it_is_told),
      cmocka_unit_test(test_clock_doubt),
      cmocka_unit_test(test_restarted_voter),
      cmocka_unit_test(test_restarted_voter_in_a_transfer),
      cmocka_unit_test(test_clocks_at_the_bound),
      cmocka_unit_test(test_voter_doubts_its_clock),
      cmocka_unit_test(test_later_term_is_no_excuse),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
