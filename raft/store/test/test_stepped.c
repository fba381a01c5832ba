/*
** A store without threads: nothing happens but in the calls that the owner
** makes, and there it is what the threads do.
*/
#include "harness.h"

static void stepped_init(struct harness *h)
{
  harness_init(h, 1);
  h->stepped = true;
  harness_open(h);
  h->term = 1;
}

static unsigned threads(void)
{
  unsigned n = 0;
  char line[128];
  FILE *f = fopen("/proc/self/status", "r");

  if (!f) return 0;
  while (fgets(line, sizeof(line), f))
    (void)sscanf(line, "Threads: %u", &n);
  (void)fclose(f);
  return n;
}

/* The calls that store_run() makes on files of these kinds. */
static void expect_run(struct harness *h, const char *kinds, const char *calls)
{
  unsigned from = disk_now(h->disk);
  char done[64];

  (void)store_run(h->store);
  disk_done(h->disk, from, kinds, done, sizeof(done));
  assert_string_equal(done, calls);
}

static void nothing_happens_by_itself(void **state)
{
  struct harness h;
  unsigned now, before = threads();

  (void)state;
  stepped_init(&h);
  assert_int_equal(threads(), before);
  while (store_run(h.store))
    ;
  now = disk_now(h.disk);
  assert_int_equal(harness_submit(&h, true, 1, 3, 100), 0);
  assert_int_equal(disk_now(h.disk), now);
  assert_int_equal(h.durable, 0);
  assert_true(store_run(h.store));
  assert_int_equal(h.durable, 1);
  harness_expect(&h, 1, 3, 1, 0, 100);
  harness_free(&h);
}

/* Vote before entries, one write and one sync of each, one report. */
static void a_run_is_one_batch(void **state)
{
  struct harness h;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 1, 100), 0);
  while (store_run(h.store))
    ;
  h.reports = 0;
  h.term = 2;
  assert_int_equal(harness_submit(&h, false, 2, 1, 100), -EINVAL);
  assert_int_equal(harness_submit(&h, true, 2, 1, 100), 0);
  assert_int_equal(harness_submit(&h, false, 3, 2, 100), 0);
  h.term = 3;
  assert_int_equal(harness_submit(&h, true, 0, 0, 0), 0);
  expect_run(&h, "vl", "wvsvwlsl");
  assert_int_equal(h.reports, 1);
  assert_int_equal(h.durable, h.seq);
  assert_false(store_run(h.store));
  harness_free(&h);
}

/* One spare is kept ready; what compaction frees goes piece by piece. */
static void a_run_is_one_piece_of_the_helpers_work(void **state)
{
  struct harness h;
  struct store_stats stats;
  struct store_checkpoint c = {.index = 30, .term = 1};

  (void)state;
  stepped_init(&h);
  expect_run(&h, "p", "cpwpsp");
  expect_run(&h, "p", "");
  assert_int_equal(harness_submit(&h, true, 1, 30, 500), 0);
  while (store_run(h.store))
    ;
  assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
  store_compact(h.store, 30);
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 1);
  expect_run(&h, "l", "rl"); /* recycled */
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 7);
  expect_run(&h, "l", "ul");
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 13);
  while (store_run(h.store))
    ;
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 25);
  harness_free(&h);
}

/* The batch needs more segments than are ready, and larger ones. */
static void segments_are_made_as_they_are_needed(void **state)
{
  struct harness h;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 40, 500), 0);
  assert_int_equal(harness_submit(&h, false, 41, 2, 9000), 0);
  assert_true(store_run(h.store));
  assert_int_equal(h.durable, 2);
  harness_expect(&h, 1, 40, 1, 0, 500);
  harness_expect(&h, 41, 42, 1, 0, 9000);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 42);
  harness_free(&h);
}

static void a_reset_is_done_at_once(void **state)
{
  struct harness h;
  struct store_stats stats;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 3, 100), 0);
  assert_int_equal(store_reset(h.store, 50, 1), 0);
  assert_int_equal(h.durable, 1);
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 51);
  assert_int_equal(stats.last, 50);
  harness_free(&h);
}

/* At rest: one mark, not synced, and no other until something is written. */
static void at_rest_there_is_a_mark(void **state)
{
  struct harness h;
  char done[64];
  unsigned from, i;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 3, 100), 0);
  while (store_run(h.store))
    ;
  for (i = 0; i < 3; i++) {
    from = disk_now(h.disk);
    store_rest(h.store);
    disk_done(h.disk, from, "vlpx", done, sizeof(done));
    assert_string_equal(done, i ? "" : "wl");
    assert_false(store_run(h.store));
  }
  harness_free(&h);
}

/* What was submitted and not run is made durable, with a mark that is synced,
   and what was to be removed is. */
static void closing_does_what_is_left(void **state)
{
  struct harness h;
  struct store_checkpoint c = {.index = 12, .term = 1};
  char done[64];
  unsigned from;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 14, 500), 0);
  while (store_run(h.store))
    ;
  assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
  store_compact(h.store, 12);
  assert_int_equal(harness_submit(&h, false, 15, 3, 500), 0);
  from = disk_now(h.disk);
  harness_close(&h);
  disk_done(h.disk, from, "l", done, sizeof(done));
  assert_string_equal(done, "wlslwlslrlul");
  assert_int_equal(h.durable, 2);
  h.checkpoint = c;
  disk_crash(h.disk, 0);
  harness_open(&h);
  assert_int_equal(h.recovered.last_index, 17);
  assert_int_equal(h.recovered.snapshot_index, 12);
  harness_free(&h);
}

static void a_failure_is_reported_by_a_run(void **state)
{
  struct harness h;

  (void)state;
  stepped_init(&h);
  assert_int_equal(harness_submit(&h, true, 1, 30, 500), 0);
  while (store_run(h.store))
    ;
  disk_fail_in(h.disk, 2);
  assert_int_equal(harness_submit(&h, false, 31, 1, 100), 0);
  assert_true(store_run(h.store));
  assert_int_equal(h.status, -EIO);
  assert_int_equal(h.failures, 1);
  assert_int_equal(harness_submit(&h, false, 32, 1, 100), -EIO);
  assert_int_equal(store_reset(h.store, 50, 1), -EIO);
  assert_false(store_run(h.store));
  harness_reopen(&h);

  /* the helper's: by the call after */
  while (store_run(h.store))
    ;
  disk_fail_in(h.disk, 2); /* the sync of the directory */
  store_compact(h.store, 20);
  assert_true(store_run(h.store));
  assert_true(store_run(h.store));
  assert_int_equal(h.status, -EIO);
  assert_int_equal(h.failures, 1);
  harness_free(&h);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_happens_by_itself),
      cmocka_unit_test(a_run_is_one_batch),
      cmocka_unit_test(a_run_is_one_piece_of_the_helpers_work),
      cmocka_unit_test(segments_are_made_as_they_are_needed),
      cmocka_unit_test(a_reset_is_done_at_once),
      cmocka_unit_test(at_rest_there_is_a_mark),
      cmocka_unit_test(closing_does_what_is_left),
      cmocka_unit_test(a_failure_is_reported_by_a_run),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
