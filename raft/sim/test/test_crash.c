/*
** The store over the simulated disk, in stepped mode: a random load, cut off
** at a random call, or made to fail by a random fault; then a loss of power or
** the death of the process; then opened again, which may be cut off as well.
** What was reported durable must be there, and all of it follows from the
** seed: a run can be done again.
**
**   test_crash [rounds [seed]]
**
** With SIM_TIME set it says what a submission costs.
*/
#include "crash.h"

#include <time.h>

static unsigned rounds = 6000;
static uint64_t seed = 1;

/* Not 0: the process cannot go on. */
static int one_step(struct crash *c)
{
  unsigned what = crash_pick(c, 100), room;
  raft_index first = c->last + 1;
  bool vote = what > 94;

  if (what < 4) {
    crash_compact(c);
    return 0;
  }
  if (what < 6) {
    if (crash_run(c)) return c->status;
    return crash_reset(c, c->last + crash_pick(c, 5) + 1);
  }
  if (what < 20 && c->last > c->compacted) {
    room = (unsigned)(c->last - c->compacted);
    first = c->last - crash_pick(c, room > 12 ? 12 : room);
    vote = true;
  }
  if (vote) {
    c->term++;
    c->voted_for = crash_pick(c, 4);
  }
  return crash_submit(c, vote, first, what > 97 ? 0 : 1 + crash_pick(c, 5));
}

static void load(struct crash *c)
{
  unsigned steps = 20 + crash_pick(c, 60);

  while (steps-- && !one_step(c)) {
    if (crash_pick(c, 3) == 0) (void)store_run(c->store);
    if (crash_pick(c, 9) == 0 && !crash_run(c)) {
      store_rest(c->store);
      sim_disk_excuse(c->disk);
    }
  }
}

/* Nothing, a countdown, errors now and then, or a full disk. */
static void trouble(struct crash *c)
{
  struct sim_disk_faults faults = {0};

  switch (crash_pick(c, 6)) {
  case 0: break;
  case 1: faults.write = 20000; break;
  case 2: faults.sync = 20000; break;
  case 3: faults.full = crash_pick(c, 2); break;
  default: sim_disk_die_in(c->disk, crash_pick(c, 100));
  }
  sim_disk_set_faults(c->disk, &faults);
}

/* Ends the process. */
static void accident(struct crash *c)
{
  static const struct sim_disk_faults none;

  if (crash_pick(c, 3)) sim_disk_die_in(c->disk, 0);
  store_close(c->store);
  c->store = NULL;
  if (crash_pick(c, 4) == 0)
    sim_disk_kill(c->disk);
  else
    sim_disk_crash(c->disk);
  sim_disk_set_faults(c->disk, &none);
}

static void open_again(struct crash *c)
{
  unsigned tries;

  for (tries = 0; tries < 4 && crash_pick(c, 3) == 0; tries++) {
    trouble(c);
    if (crash_pick(c, 2)) sim_disk_die_in(c->disk, crash_pick(c, 12));
    (void)crash_try_open(c);
    accident(c);
  }
  assert_int_equal(crash_try_open(c), 0);
}

static void run(struct crash *c, unsigned n)
{
  uint64_t durable;

  assert_int_equal(crash_try_open(c), 0);
  while (n--) {
    if (!c->term) {
      c->term = 1;
      (void)crash_submit(c, true, 0, 0);
    }
    trouble(c);
    load(c);
    accident(c);
    durable = c->durable;
    open_again(c);
    crash_check(c, durable);
    if (c->last - c->recovered.snapshot_index > 1000)
      assert_int_equal(crash_reset(c, c->last + 1), 0);
  }
}

static void nothing_durable_is_lost(void **state)
{
  static struct crash c;
  const struct sim_disk_stats *s;

  (void)state;
  crash_init(&c, seed);
  run(&c, rounds);
  s = sim_disk_stats(c.disk);
  print_message("%" PRIu64 " losses of power, %" PRIu64 " killed processes, "
                "%" PRIu64 " sectors lost, %" PRIu64 " torn, %" PRIu64
                " faults\n",
                s->crashes, s->kills, s->lost, s->torn,
                s->write_faults + s->sync_faults + s->full_faults);
  assert_true(s->torn && s->lost && s->write_faults && s->sync_faults &&
              s->full_faults);
  crash_free(&c);
}

static void the_same_seed_gives_the_same_run(void **state)
{
  static struct crash c;
  struct sim_disk_stats first;
  uint64_t hash[3];
  unsigned i;

  (void)state;
  for (i = 0; i < 3; i++) {
    crash_init(&c, 7 + i / 2);
    run(&c, 50);
    hash[i] = sim_disk_hash(c.disk);
    if (!i) first = *sim_disk_stats(c.disk);
    if (i == 1)
      assert_memory_equal(&first, sim_disk_stats(c.disk), sizeof(first));
    crash_free(&c);
  }
  assert_true(hash[0] == hash[1]);
  assert_true(hash[0] != hash[2]);
}

/* Whatever is read while the store runs is right, or there is an error. */
static void read_all(struct crash *c)
{
  struct store_stats stats;
  struct raft_entry e;
  raft_index i;
  int got;

  store_stats(c->store, &stats);
  for (i = stats.first; i <= stats.last; i++) {
    got = store_read(c->store, i, i, SIZE_MAX, 1, &e, NULL);
    assert_true(got == 1 || got == -EBADMSG);
    if (got != 1) continue;
    assert_int_equal(e.index, i);
    if (e.body && !raft_body_intact(e.body)) fail_msg("a damaged body");
    raft_body_unref(e.body);
  }
}

/* A bit rots, or a write goes astray, and the log comes to rest: then it is
   refused, or all of it is there. (Not at rest, damage to the newest entries
   cannot be told from a torn write.) */
static void damage_is_noticed(void **state)
{
  static struct crash c;
  unsigned i, refused = 0, good = 0;
  uint64_t durable;
  bool hit;

  (void)state;
  for (i = 0; i < 1000; i++) {
    crash_init(&c, seed + i);
    assert_int_equal(crash_try_open(&c), 0);
    c.term = 1;
    (void)crash_submit(&c, true, 1, 5);
    load(&c);
    hit = i % 2 && sim_disk_misdirect(c.disk, NULL);
    if (hit) load(&c);
    if (!hit) (void)sim_disk_rot(c.disk, NULL);
    read_all(&c);
    store_close(c.store);
    c.store = NULL;
    durable = c.durable;
    sim_disk_kill(c.disk);
    c.damaged = true;
    if (!c.status) {
      refused += crash_try_open(&c) != 0;
      if (c.store) crash_check(&c, durable);
      good += c.store != NULL;
    }
    crash_free(&c);
  }
  print_message("%u refused, %u not\n", refused, good);
  assert_true(refused > 300 && good > 50);
}

/* ---- only for people ---------------------------------------------------- */

static void count(void *ctx, uint64_t seq, int status, const char *error)
{
  uint64_t *durable = ctx;

  (void)error;
  assert_int_equal(status, 0);
  *durable = seq;
}

static double now_us(void)
{
  struct timespec t;

  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void append(struct store *store, uint64_t seq)
{
  struct raft_body *body = raft_body_new(100);
  struct raft_entry e = {
      .index = seq, .term = 1, .type = RAFT_COMMIT, .body = body};
  struct raft_persist p = {
      .seq = seq, .vote = seq == 1, .term = 1, .n_entries = 1, .entries = &e};

  memset(body->data, 7, 100);
  raft_body_seal(body);
  assert_int_equal(store_submit(store, &p), 0);
  raft_body_unref(body);
  (void)store_run(store);
}

static void what_a_submission_costs(void **state)
{
  struct sim_disk *disk = sim_disk_new(1);
  uint64_t durable = 0, seq = 0;
  struct store_options options = {.dir = "/1",
                                  .io = sim_disk_io(disk),
                                  .segment_bytes = 64 * 1024,
                                  .stepped = true,
                                  .done = count,
                                  .ctx = &durable};
  struct raft_recovered recovered;
  struct store *store;
  double from;

  (void)state;
  if (!getenv("SIM_TIME")) {
    sim_disk_free(disk);
    skip();
  }
  assert_int_equal(store_open(&options, NULL, &store, &recovered, NULL), 0);
  from = now_us();
  while (seq < 500000) {
    append(store, ++seq);
    if (seq % 1024 == 0) store_compact(store, seq - 1);
  }
  print_message("%.3f us for a submission of 100 bytes and its run\n",
                (now_us() - from) / (double)seq);
  assert_int_equal(durable, seq);
  store_close(store);
  sim_disk_free(disk);
}

int main(int argc, char **argv)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_durable_is_lost),
      cmocka_unit_test(the_same_seed_gives_the_same_run),
      cmocka_unit_test(damage_is_noticed),
      cmocka_unit_test(what_a_submission_costs),
  };

  if (argc > 1) rounds = (unsigned)strtoul(argv[1], NULL, 10);
  if (argc > 2) seed = strtoull(argv[2], NULL, 10);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
