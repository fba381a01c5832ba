/*
** Thousands of accidents: a random load, cut off at a random call, by a loss
** of power that keeps a random part of what was not synced, or by the death of
** the process, which keeps it all in the cache; on the disk that the accidents
** before have left behind. After each, what was reported durable must be
** there, in order, and nothing that was never submitted in that order.
**
**   test_crash [rounds [seed]]
**
** The choices follow from the seed; the interleaving of the threads does not.
*/
#include "model.h"

static unsigned rounds = 2000;
static uint64_t seed = 1;

static struct model model;
static unsigned long kills, powers, lost_opens, truncations, resets;

static unsigned pick(struct harness *h, unsigned n)
{
  return (unsigned)(harness_random(h) % n);
}

/* A checkpoint at a durable entry, and what is below may go. */
static void compact(struct harness *h)
{
  struct store_stats stats;
  struct store_checkpoint c = {.floor = 0};
  struct raft_entry e;

  /* what is compacted must not be about to be replaced */
  harness_hold(h, false);
  if (harness_wait(h, h->seq)) return;
  store_stats(h->store, &stats);
  if (stats.last < stats.first) return;
  c.index = stats.first + pick(h, (unsigned)(stats.last - stats.first + 1));
  if (store_read(h->store, c.index, c.index, SIZE_MAX, 1, &e, NULL) != 1)
    return;
  c.term = e.term;
  raft_body_unref(e.body);
  if (c.index < model.compacted) return;
  if (store_checkpoint_write(h->io, h->dir, &c, NULL)) {
    /* whether it is there or not: entries up to it are committed, as far as
       this load is concerned */
    model.compacted = c.index;
    return;
  }
  model.compacted = c.index;
  store_compact(h->store, c.index);
}

static int one_step(struct harness *h)
{
  unsigned what = pick(h, 100);
  raft_index first = h->last + 1;
  bool vote = false;

  if (what < 4) {
    compact(h);
    return 0;
  }
  if (what < 6) {
    resets++;
    harness_hold(h, false);
    if (harness_wait(h, h->seq)) return -EIO;
    return model_reset(&model, h, h->last + pick(h, 5) + 1, h->term);
  }
  if (what < 20 && h->last > model.compacted) {
    first = h->last - pick(h, (unsigned)(h->last - model.compacted) > 12
                                  ? 12
                                  : (unsigned)(h->last - model.compacted));
    truncations++;
    vote = true;
  }
  if (what > 94) vote = true;
  if (vote) {
    h->term++;
    h->voted_for = pick(h, 4);
  }
  return model_submit(&model, h, vote, first, what > 97 ? 0 : 1 + pick(h, 5));
}

static void load(struct harness *h)
{
  unsigned i, steps = 20 + pick(h, 60);

  for (i = 0; i < steps; i++) {
    bool hold = pick(h, 6) == 0;
    int rc;

    /* while the log thread is held, submissions pile up to a batch */
    if (pick(h, 3) == 0) harness_hold(h, false);
    rc = one_step(h);
    if (hold) harness_hold(h, true);
    if (pick(h, 5) == 0) {
      harness_hold(h, false);
      rc = rc ? rc : harness_wait(h, h->seq);
    }
    if (rc) break;
  }
  harness_hold(h, false);
}

static void accident(struct harness *h)
{
  h->disk->dead = false;
  disk_fail_in(h->disk, 0);
  if (pick(h, 4) == 0) {
    kills++;
    return;
  }
  powers++;
  disk_crash(h->disk, pick(h, 9));
}

/* Opens; sometimes the accident hits this, too. */
static void open_again(struct harness *h)
{
  unsigned tries;
  int rc;

  for (tries = 0; tries < 4 && pick(h, 3) == 0; tries++) {
    model_load_checkpoint(h);
    disk_fail_in(h->disk, 1 + pick(h, 12));
    rc = harness_try_open(h);
    if (!rc) harness_close(h);
    if (rc && rc != -EIO) fail_msg("open: %d %s", rc, h->error);
    lost_opens++;
    accident(h);
  }
  model_load_checkpoint(h);
  harness_open(h);
}

static void nothing_durable_is_lost(void **state)
{
  struct harness h;
  unsigned round;

  (void)state;
  harness_init(&h, seed);
  h.disk->fail_dead = true;
  model_init(&model);
  h.term = 1;
  for (round = 0; round < rounds; round++) {
    uint64_t durable;

    if (!h.store) harness_open(&h);
    disk_fail_in(h.disk, round % 3 ? 1 + pick(&h, 120) : 0);
    if (!h.term) harness_vote(&h, 1, 1);
    load(&h);
    /* pulled before it can end in order */
    if (round % 3) disk_kill(h.disk);
    harness_close(&h);
    durable = h.durable;
    accident(&h);
    open_again(&h);
    model_check(&model, &h, durable);
    if (h.recovered.last_index - h.recovered.snapshot_index > 2000)
      assert_int_equal(
          model_reset(&model, &h, h.recovered.last_index + 1, h.term), 0);
  }
  print_message("%lu losses of power, %lu killed processes, %lu of them while "
                "opening; %lu suffixes replaced, %lu resets\n",
                powers, kills, lost_opens, truncations, resets);
  harness_free(&h);
}

/* The accident during store_open, at each call, while the tail of a killed
   process is only in the cache. */
static void opening_is_cut_off_at_each_call(void **state)
{
  struct harness h;
  unsigned k, keep;

  (void)state;
  for (k = 1; k < 24; k++) {
    for (keep = 0; keep < 40; keep++) {
      int rc;

      harness_init(&h, k * 100 + keep);
      h.segment_bytes = 64 * 1024;
      model_init(&model);
      harness_open(&h);
      h.term = 1;
      assert_int_equal(model_submit(&model, &h, true, 1, 4), 0);
      assert_int_equal(harness_wait(&h, h.seq), 0);
      harness_await_spare(&h);
      h.disk->fail_dead = true;
      disk_fail_in(h.disk, 2); /* the write succeeds, the sync does not */
      assert_int_equal(model_submit(&model, &h, false, h.last + 1, 12), 0);
      assert_int_equal(harness_wait(&h, h.seq), -EIO);
      harness_close(&h);
      h.disk->dead = false;
      disk_fail_in(h.disk, k);
      rc = harness_try_open(&h);
      if (!rc) harness_close(&h);
      disk_crash(h.disk, keep % 9);
      harness_open(&h);
      model_check(&model, &h, 1);
      harness_free(&h);
    }
  }
}

/* A suffix is replaced, the new one compacted, and that cut off at each call:
   the old one must not show again. */
static void a_dead_segment_stays_dead(void **state)
{
  struct harness h;
  unsigned k, keep;

  (void)state;
  for (k = 1; k < 40; k++) {
    for (keep = 0; keep < 10; keep++) {
      struct store_checkpoint c = {.index = 45, .term = 2};

      harness_init(&h, k * 100 + keep);
      h.disk->fail_dead = true;
      harness_open(&h);
      harness_vote(&h, 1, 1);
      harness_append(&h, 30, 500); /* segments at 1, 7, 13, 19, 25 */
      h.term = 2;
      assert_int_equal(harness_submit(&h, true, 10, 40, 500), 0);
      assert_int_equal(harness_wait(&h, h.seq), 0); /* at 1, 7, 10, 16, ... */
      assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
      harness_await_spare(&h);
      disk_fail_in(h.disk, k);
      store_compact(h.store, 45);
      harness_close(&h);
      disk_crash(h.disk, 1 + keep % 7);
      model_load_checkpoint(&h);
      harness_open(&h);
      assert_int_equal(h.recovered.last_index, 49);
      harness_expect(&h, 46, 49, 2, 0, 500);
      harness_free(&h);
    }
  }
}

/* A segment could not be removed, then the log is reset. The first entry takes
   a segment of its own size, in the place of the empty one; what was not
   removed must still count as superseded. */
static void a_reset_outlives_a_failed_removal(void **state)
{
  struct harness h;
  struct store_checkpoint c = {.index = 60, .term = 1};

  (void)state;
  harness_init(&h, 5);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 30, 500);
  harness_await_spare(&h);
  disk_fail_in(h.disk, 1);
  store_compact(h.store, 10);
  while (!disk_faults(h.disk))
    (void)nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
  assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
  assert_int_equal(store_reset(h.store, 60, 1), 0);
  h.last = 60;
  harness_append(&h, 2, 9000);
  harness_close(&h);
  assert_non_null(disk_file(h.disk, "/n/log/0000000000000001.seg"));
  model_load_checkpoint(&h);
  harness_open(&h);
  assert_int_equal(h.recovered.snapshot_index, 60);
  assert_int_equal(h.recovered.last_index, 62);
  harness_expect(&h, 61, 62, 1, 0, 9000);
  harness_free(&h);
}

int main(int argc, char **argv)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_durable_is_lost),
      cmocka_unit_test(opening_is_cut_off_at_each_call),
      cmocka_unit_test(a_dead_segment_stays_dead),
      cmocka_unit_test(a_reset_outlives_a_failed_removal),
  };

  if (argc > 1) rounds = (unsigned)strtoul(argv[1], NULL, 10);
  if (argc > 2) seed = strtoull(argv[2], NULL, 10);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
