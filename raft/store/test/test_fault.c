/*
** Every call that changes the disk fails once, in turn, until a run meets no
** fault: as an I/O error, as a full disk, or as a disk that is dead from then
** on. Each time: the failure is reported once, nothing is acknowledged after
** it, the process lives, and when the disk is well again and the store opened
** anew, everything acknowledged is there.
*/
#include "model.h"

static struct model model;

/* Some of everything. Goes on after a failure, as a host may. */
static void load(struct harness *h)
{
  struct store_checkpoint c = {.index = 12, .term = 1};
  struct store_stats stats;
  unsigned i;

  h->term = 1;
  h->voted_for = 1;
  (void)model_submit(&model, h, true, 1, 5);
  (void)harness_wait(h, h->seq);
  for (i = 0; i < 5; i++)
    (void)model_submit(&model, h, false, h->last + 1, 5);
  (void)harness_wait(h, h->seq);
  store_stats(h->store, &stats);
  if (stats.last >= 12 && !h->status) {
    if (model.compacted < 12) model.compacted = 12;
    if (!store_checkpoint_write(h->io, h->dir, &c, NULL))
      store_compact(h->store, 12);
  }
  for (i = 0; i < 3; i++) {
    h->term++;
    (void)model_submit(&model, h, true, h->last - 3, 6);
  }
  (void)harness_wait(h, h->seq);
  if (h->status || model_reset(&model, h, h->last + 3, h->term)) return;
  if (!h->status) (void)model_submit(&model, h, false, h->last + 1, 9);
  (void)harness_wait(h, h->seq);
}

static void check_failure(struct harness *h)
{
  assert_true(h->failures <= 1);
  if (h->failures) {
    assert_true(h->status < 0);
    assert_true(strlen(h->failure) > 5);
  }
}

/* One run with the fault at call k. False: no fault was met. */
static bool run(long k, int code, bool dead, bool power)
{
  struct harness h;
  unsigned long faults;
  uint64_t durable = 0;
  int rc;

  harness_init(&h, (uint64_t)k);
  model_init(&model);
  disk_fail_in(h.disk, k);
  h.disk->fail_errno = code;
  h.disk->fail_dead = dead;
  rc = harness_try_open(&h);
  if (!rc) {
    load(&h);
    harness_close(&h);
    durable = h.durable;
    check_failure(&h);
  } else {
    assert_int_equal(rc, -code);
    assert_non_null(h.error);
  }
  faults = h.disk->faults;
  disk_fail_in(h.disk, 0);
  h.disk->dead = false;
  if (power) disk_crash(h.disk, (unsigned)k % 9);
  model_load_checkpoint(&h);
  harness_open(&h);
  model_check(&model, &h, durable);
  /* and it works again */
  h.term++;
  assert_int_equal(model_submit(&model, &h, true, h.last + 1, 5), 0);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  harness_free(&h);
  return faults > 0;
}

static void sweep(int code, bool dead)
{
  unsigned clean = 0, power;
  long k;

  /* threads interleave: stop only when faults are surely behind */
  for (k = 1; clean < 5; k++) {
    bool met = false;

    for (power = 0; power < 2; power++)
      met |= run(k, code, dead, power);
    clean = met ? 0 : clean + 1;
    assert_true(k < 2000);
  }
  print_message("%ld calls\n", k);
}

static void an_error_at_each_call(void **state)
{
  (void)state;
  sweep(EIO, false);
}

static void no_space_at_each_call(void **state)
{
  (void)state;
  sweep(ENOSPC, false);
}

static void a_dead_disk_at_each_call(void **state)
{
  (void)state;
  sweep(EIO, true);
}

static void a_failure_is_reported_once_and_is_final(void **state)
{
  struct harness h;
  unsigned i;

  (void)state;
  harness_init(&h, 1);
  h.segment_bytes = 1024 * 1024;
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 1, 100);
  harness_await_spare(&h);
  disk_fail_in(h.disk, 2); /* the write succeeds, the sync fails */
  assert_int_equal(harness_submit(&h, false, 2, 1, 100), 0);
  assert_int_equal(harness_wait(&h, h.seq), -EIO);
  assert_non_null(strstr(h.failure, "0000000000000001.seg: sync failed: "));
  for (i = 0; i < 10; i++)
    assert_int_equal(harness_submit(&h, false, h.last + 1, 1, 100), -EIO);
  assert_int_equal(store_reset(h.store, 50, 1), -EIO);
  harness_expect(&h, 1, 1, 1, 0, 100); /* reading goes on */
  harness_close(&h);
  assert_int_equal(h.failures, 1);
  assert_int_equal(h.disk->faults, 1);
  harness_free(&h);
}

/* Linux forgets after a failed sync which pages were not written. What is read
   back from the cache later must be brought to the disk before it counts. */
static void after_a_failed_sync_the_cache_lies(void **state)
{
  struct harness h;
  raft_index last;

  (void)state;
  harness_init(&h, 1);
  h.segment_bytes = 1024 * 1024;
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 1, 100);
  harness_await_spare(&h);
  disk_fail_in(h.disk, 2);
  assert_int_equal(harness_submit(&h, false, 2, 3, 2000), 0);
  assert_int_equal(harness_wait(&h, h.seq), -EIO);
  harness_reopen(&h); /* the process is started again */
  last = h.recovered.last_index;
  assert_int_equal(last, 4);
  disk_kill(h.disk);
  harness_close(&h);
  disk_crash(h.disk, 0); /* and then the power goes */
  harness_open(&h);
  assert_int_equal(h.recovered.last_index, last);
  harness_free(&h);
}

static void a_killed_vote_is_durable_once_seen(void **state)
{
  struct harness h;

  (void)state;
  harness_init(&h, 1);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_await_spare(&h);
  disk_fail_in(h.disk, 2);
  h.term = 2;
  h.voted_for = 2;
  assert_int_equal(harness_submit(&h, true, 0, 0, 0), 0);
  assert_int_equal(harness_wait(&h, h.seq), -EIO);
  harness_reopen(&h);
  assert_int_equal(h.recovered.term, 2);
  disk_kill(h.disk);
  harness_close(&h);
  disk_crash(h.disk, 0);
  harness_open(&h);
  assert_int_equal(h.recovered.term, 2);
  assert_int_equal(h.recovered.voted_for, 2);
  harness_free(&h);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_failure_is_reported_once_and_is_final),
      cmocka_unit_test(after_a_failed_sync_the_cache_lies),
      cmocka_unit_test(a_killed_vote_is_durable_once_seen),
      cmocka_unit_test(an_error_at_each_call),
      cmocka_unit_test(no_space_at_each_call),
      cmocka_unit_test(a_dead_disk_at_each_call),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
