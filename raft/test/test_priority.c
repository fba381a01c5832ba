/*
** test_priority.c: who should rather lead does, and nobody flaps.
*/
#include "timeline.h"

/* n voters with these priorities, all started. */
static struct world *ranked(unsigned n, const uint8_t *priorities)
{
  struct world *w = world_prepare(n, n);
  unsigned i;

  for (i = 1; i <= n; i++)
    w->configuration.members[i - 1].priority = priorities[i - 1];
  for (i = 1; i <= n; i++)
    start_node(w, i);
  return w;
}

static raft_id leader_of(struct world *w)
{
  raft_id i, leader = 0;

  for (i = 1; i <= w->n; i++)
    if (core(w, i) && is_leader(w, i)) leader = i;
  return leader;
}

static unsigned elections(struct world *w)
{
  unsigned i, n = 0;

  for (i = 0; i < 1000; i++)
    n += w->leaders[i] != 0;
  return n;
}

/* Timeouts: [t, 2t) for most, [t, 1.5t) for who should lead, [2t, 3t) for who
   should not. None is shorter than t: leases rest on that. */
static void test_timeouts(void **state)
{
  static const struct {
    uint8_t priority;
    uint64_t from, to;
  } cases[] = {{RAFT_NORMAL, 500, 1000},
               {RAFT_PREFER, 500, 750},
               {RAFT_AVOID, 1000, 1500}};
  uint64_t least, most, t;
  struct world *w;
  unsigned i, k;

  (void)state;
  for (k = 0; k < 3; k++) {
    w = world_prepare(2, 2);
    w->configuration.members[0].priority = cases[k].priority;
    for (least = UINT64_MAX, most = i = 0; i < 300; i++) {
      node(w, 1)->options.seed = i * 7919;
      start_node(w, 1);
      t = raft_next_deadline(core(w, 1));
      least = t < least ? t : least;
      most = t > most ? t : most;
      crash(w, 1);
    }
    assert_in_range(least, cases[k].from, cases[k].from + 20);
    assert_in_range(most, cases[k].to - 20, cases[k].to - 1);
    world_free(w);
  }
}

/* The leader hands over to the voter that should lead. */
static void test_preferred(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_NORMAL, RAFT_PREFER};
  struct world *w = ranked(3, priorities);

  (void)state;
  elect(w, 1);
  live(w, 600);
  assert_true(is_leader(w, 3));
  assert_int_equal(term_of(w, 1), 2);
  live(w, 20000);
  assert_true(is_leader(w, 3)); /* and there it stays */
  assert_int_equal(elections(w), 2);
  world_free(w);
}

/* It does as soon as it is there, and has the log; the way goes by whoever
   leads meanwhile. */
static void test_preferred_comes_late(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_AVOID, RAFT_PREFER};
  struct world *w = ranked(3, priorities);

  (void)state;
  cut_off(w, 3);
  pass(w, 500); /* it takes its time */
  elect(w, 2);
  live(w, 1100);
  assert_true(is_leader(w, 1)); /* of these two */
  propose(w, 1, RAFT_COMMIT, 10);
  live(w, 1000);
  mend(w);
  live(w, 1500);
  assert_true(is_leader(w, 3));
  assert_int_equal(raft_commit(core(w, 3)), raft_last(core(w, 3)));
  world_free(w);
}

/* A priority that is changed takes effect. */
static void test_update(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_NORMAL, RAFT_NORMAL};
  struct world *w = ranked(3, priorities);
  struct raft_member one;

  (void)state;
  elect(w, 1);
  live(w, 2000);
  assert_true(is_leader(w, 1));
  one = w->configuration.members[0];
  one.priority = RAFT_AVOID;
  assert_int_equal(change_member(w, 1, RAFT_UPDATE, &one), 0);
  assert_false(is_joint(w, 1));
  live(w, 1000);
  assert_false(is_leader(w, 1));
  assert_int_not_equal(leader_of(w), 0);
  world_free(w);
}

/* Who should not lead does so while nobody else can. */
static void test_avoided(void **state)
{
  const uint8_t priorities[] = {RAFT_AVOID, RAFT_NORMAL, RAFT_AVOID};
  struct world *w = ranked(3, priorities);

  (void)state;
  live(w, 3000);
  assert_true(is_leader(w, 2));
  crash(w, 2);
  live(w, 5000);
  assert_true(is_leader(w, 1) || is_leader(w, 3));
  assert_int_equal(propose(w, leader_of(w), RAFT_COMMIT, 10), 0);
  start_node(w, 2);
  live(w, 3000);
  assert_true(is_leader(w, 2));
  assert_int_equal(raft_commit(core(w, 2)), raft_last(core(w, 2)));
  world_free(w);
}

static void test_avoided_alone(void **state)
{
  const uint8_t priorities[] = {RAFT_AVOID};
  struct world *w = ranked(1, priorities);

  (void)state;
  tick(w, 1);
  assert_true(is_leader(w, 1));
  assert_int_equal(raft_commit(core(w, 1)), 1);
  live(w, 5000);
  assert_true(is_leader(w, 1));
  assert_int_equal(term_of(w, 1), 1);
  world_free(w);
}

/* All avoid it: the same as if none did. */
static void test_all_equal(void **state)
{
  const uint8_t priorities[] = {RAFT_AVOID, RAFT_AVOID, RAFT_AVOID};
  struct world *w = ranked(3, priorities);

  (void)state;
  live(w, 5000);
  assert_int_not_equal(leader_of(w), 0);
  live(w, 10000);
  assert_int_equal(elections(w), 1);
  world_free(w);
}

/* A learner is not made leader, however much it should be. */
static void test_preferred_learner(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_NORMAL, RAFT_PREFER};
  struct world *w = world_prepare(3, 3);
  unsigned i;

  (void)state;
  w->configuration.members[2].priority = priorities[2];
  w->configuration.members[2].role = RAFT_LEARNER;
  for (i = 1; i <= 3; i++)
    start_node(w, i);
  elect(w, 1);
  live(w, 3000);
  assert_true(is_leader(w, 1));
  assert_int_equal(change(w, 1, RAFT_PROMOTE, 3), 0);
  live(w, 1500);
  assert_true(is_leader(w, 3));
  world_free(w);
}

/*
** A voter that should lead and never catches up is not waited for: of the
** others, one who should rather lead than this one does.
*/
static void test_laggard_hides_nobody(void **state)
{
  const uint8_t priorities[] = {RAFT_AVOID, RAFT_NORMAL, RAFT_PREFER};
  struct world *w = ranked(3, priorities);
  unsigned i;

  (void)state;
  node(w, 3)->prompt = false; /* its disk stands still, nearly */
  w->unreachable[2][3] = true;
  pass(w, 1000); /* beyond the timeouts of 2 and 3 */
  elect(w, 1);
  for (i = 0; i < 100; i++) {
    if (is_leader(w, 1)) propose(w, 1, RAFT_COMMIT, 10);
    pass(w, 10);
    tick(w, 1);
    tick(w, 2);
    while (deliver_any(w, 0, 0))
      ;
  }
  assert_true(is_leader(w, 2));
  world_free(w);
}

/* Nor is it the best when the leader is asked to hand over, or resigns. */
static void test_laggard_is_not_the_best(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_NORMAL, RAFT_PREFER};
  struct world *w = ranked(3, priorities);

  (void)state;
  node(w, 3)->prompt = false;
  elect(w, 1);
  node(w, 3)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 10);
  while (deliver_any(w, 0, 0))
    ;
  assert_int_equal(raft_commit(core(w, 1)), 2);
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  assert_int_equal(transfer(w, 1, 0), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 2);
  world_free(w);
}

/* Among those that have all that is committed, priority comes before a longer
   log. */
static void test_rank_before_log(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_PREFER, RAFT_NORMAL,
                                RAFT_NORMAL, RAFT_NORMAL};
  struct world *w = ranked(5, priorities);

  (void)state;
  elect(w, 1);
  cut_off(w, 2);
  cut_off(w, 4);
  cut_off(w, 5);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  assert_int_equal(progress(w, 1, 3).match, 2);
  assert_int_equal(transfer(w, 1, 0), 0);
  assert_int_equal(raft_transferring(core(w, 1)), 2);
  world_free(w);
}

/*
** 5 should lead, and only 1 can talk with it: it cannot win. 1 tries to hand
** over, and that costs an election; it does not try again for a while, not
** even though it was elected anew.
*/
static void test_no_flapping(void **state)
{
  const uint8_t priorities[] = {RAFT_NORMAL, RAFT_AVOID, RAFT_AVOID, RAFT_AVOID,
                                RAFT_PREFER};
  struct world *w = ranked(5, priorities);
  raft_id i;
  unsigned ms, led = 0;

  (void)state;
  for (i = 2; i <= 4; i++)
    w->unreachable[i][5] = w->unreachable[5][i] = true;
  elect(w, 1);
  for (ms = 0; ms < 30000; ms += 10) {
    live(w, 10);
    led += is_leader(w, 1) && raft_transferring(core(w, 1)) == 0;
  }
  /* Of 3000 ticks; an attempt every 11 timeouts, for two or three of them. */
  assert_in_range(led, 2000, 3000);
  assert_in_range(elections(w), 2, 16);
  mend(w);
  live(w, 10000);
  assert_true(is_leader(w, 5));
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_timeouts),
      cmocka_unit_test(test_preferred),
      cmocka_unit_test(test_preferred_comes_late),
      cmocka_unit_test(test_update),
      cmocka_unit_test(test_avoided),
      cmocka_unit_test(test_avoided_alone),
      cmocka_unit_test(test_all_equal),
      cmocka_unit_test(test_preferred_learner),
      cmocka_unit_test(test_laggard_hides_nobody),
      cmocka_unit_test(test_laggard_is_not_the_best),
      cmocka_unit_test(test_rank_before_log),
      cmocka_unit_test(test_no_flapping),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
