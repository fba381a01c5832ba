/*
** What a store that meets no accident must do: hold what it was given, in
** order, across everything that its interface offers.
*/
#include "harness.h"

#include <unistd.h>

static void a_new_log_is_empty(void **state)
{
  struct harness h;
  struct raft_entry e;
  struct store_stats stats;

  (void)state;
  harness_init(&h, 1);
  harness_open(&h);
  assert_int_equal(h.recovered.term, 0);
  assert_int_equal(h.recovered.voted_for, 0);
  assert_int_equal(h.recovered.last_index, 0);
  assert_int_equal(h.recovered.n_terms, 0);
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 1);
  assert_int_equal(stats.last, 0);
  assert_int_equal(store_read(h.store, 1, 1, 1, 1, &e, &h.error), -ENOENT);
  assert_non_null(strstr(h.error, "entry 1 is not in the log"));
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 0);
  harness_free(&h);
}

static void entries_come_back(void **state)
{
  static const size_t lens[] = {0, 1, 7, 8, 9, 500, 3000, 5000, 70000};
  struct harness h;
  raft_index first[9];
  unsigned i, round;

  (void)state;
  harness_init(&h, 2);
  harness_open(&h);
  harness_vote(&h, 3, 9);
  for (i = 0; i < 9; i++) {
    first[i] = h.last + 1;
    harness_append(&h, 5, lens[i]);
  }
  for (round = 0; round < 3; round++) {
    for (i = 0; i < 9; i++)
      harness_expect(&h, first[i], first[i] + 4, 3, 0, lens[i]);
    harness_reopen(&h);
    assert_int_equal(h.recovered.last_index, 45);
    assert_int_equal(h.recovered.term, 3);
    assert_int_equal(h.recovered.voted_for, 9);
    assert_int_equal(h.recovered.n_terms, 1);
    assert_int_equal(h.recovered.terms[0].first, 1);
    assert_int_equal(h.recovered.terms[0].term, 3);
  }
  harness_free(&h);
}

/* ---- batches ------------------------------------------------------------ */

/* A log with room, its helper at rest, the log thread held inside done(). */
static void hold(struct harness *h)
{
  h->segment_bytes = 1024 * 1024;
  harness_open(h);
  harness_vote(h, 1, 2);
  harness_append(h, 1, 10);
  harness_hold(h, true);
  assert_int_equal(harness_submit(h, false, h->last + 1, 1, 10), 0);
  assert_int_equal(harness_wait(h, h->seq), 0);
}

static void what_piled_up_is_one_write_and_one_sync(void **state)
{
  struct harness h;
  struct store_stats before, after;
  unsigned i, from, reports;
  char done[64];

  (void)state;
  harness_init(&h, 3);
  hold(&h);
  from = disk_now(h.disk);
  reports = h.reports;
  store_stats(h.store, &before);
  for (i = 0; i < 100; i++)
    assert_int_equal(harness_submit(&h, false, h.last + 1, 1 + i % 4, 100), 0);
  harness_hold(&h, false);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  disk_done(h.disk, from, "lv", done, sizeof(done));
  assert_string_equal(done, "wlsl");
  assert_int_equal(h.reports, reports + 1);
  store_stats(h.store, &after);
  assert_int_equal(after.writes, before.writes + 1);
  assert_int_equal(after.syncs, before.syncs + 1);
  assert_int_equal(after.entries, before.entries + 250);
  assert_int_equal(after.last, h.last);
  harness_expect(&h, 3, h.last, 1, 0, 100);
  harness_free(&h);
}

static void a_vote_is_durable_before_the_entries_of_its_term(void **state)
{
  struct harness h;
  unsigned from;
  char done[64];

  (void)state;
  harness_init(&h, 4);
  hold(&h);
  from = disk_now(h.disk);
  assert_int_equal(harness_submit(&h, false, h.last + 1, 1, 10), 0);
  h.term = 2;
  h.voted_for = 5;
  assert_int_equal(harness_submit(&h, true, h.last + 1, 3, 10), 0);
  h.term = 3;
  h.voted_for = 6;
  assert_int_equal(harness_submit(&h, true, h.last + 1, 3, 10), 0);
  harness_hold(&h, false);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  disk_done(h.disk, from, "lv", done, sizeof(done));
  assert_string_equal(done, "wvsvwlsl");
  harness_reopen(&h);
  assert_int_equal(h.recovered.term, 3);
  assert_int_equal(h.recovered.voted_for, 6);
  assert_int_equal(h.recovered.n_terms, 3);
  assert_int_equal(h.recovered.terms[1].first, 4);
  assert_int_equal(h.recovered.terms[2].first, 7);
  harness_free(&h);
}

static void more_than_one_pwritev_takes(void **state)
{
  struct harness h;
  unsigned i, from;
  char done[64];

  (void)state;
  harness_init(&h, 5);
  hold(&h);
  from = disk_now(h.disk);
  for (i = 0; i < 3; i++)
    assert_int_equal(harness_submit(&h, false, h.last + 1, 400, 3), 0);
  harness_hold(&h, false);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  disk_done(h.disk, from, "lv", done, sizeof(done));
  assert_string_equal(done, "wlwlwlsl");
  harness_expect(&h, 3, h.last, 1, 0, 3);
  harness_reopen(&h);
  harness_expect(&h, 3, h.last, 1, 0, 3);
  harness_free(&h);
}

static void a_commit_does_not_wait_for_zeros(void **state)
{
  struct harness h;
  unsigned i;

  (void)state;
  harness_init(&h, 6);
  h.segment_bytes = 64 * 1024;
  harness_open(&h);
  harness_vote(&h, 1, 1);
  for (i = 0; i < 5; i++) {
    harness_await_spare(&h);
    /* the helper cannot make one now, and still a segment can be begun */
    disk_hold_creates(h.disk, true);
    harness_append(&h, 7, 9000); /* a segment full */
    disk_hold_creates(h.disk, false);
  }
  harness_expect(&h, 1, 35, 1, 0, 9000);
  harness_free(&h);
}

/* ---- replacing ---------------------------------------------------------- */

/* One read across the joint: terms 1 before `at`, 2 from there on. */
static void expect_joint(struct harness *h, raft_index at)
{
  struct raft_entry e[40];
  int i, n = store_read(h->store, 1, UINT64_MAX, SIZE_MAX, 40, e, NULL);

  assert_int_equal(n, at + 3);
  for (i = 0; i < n; i++) {
    assert_int_equal(e[i].index, i + 1);
    assert_int_equal(e[i].term, e[i].index < at ? 1 : 2);
    raft_body_unref(e[i].body);
  }
}

static void a_suffix_is_replaced(void **state)
{
  struct harness h;
  raft_index at;

  (void)state;
  for (at = 1; at <= 31; at++) {
    harness_init(&h, 7);
    harness_open(&h);
    harness_vote(&h, 1, 1);
    harness_append(&h, 30, 500); /* 6 in a segment */
    h.term = 2;
    h.salt = 99;
    assert_int_equal(harness_submit(&h, true, at, 4, 300), 0);
    assert_int_equal(harness_wait(&h, h.seq), 0);
    if (at > 1) harness_expect(&h, 1, at - 1, 1, 0, 500);
    harness_expect(&h, at, at + 3, 2, 99, 300);
    expect_joint(&h, at);
    harness_append(&h, 3, 300);
    harness_reopen(&h);
    assert_int_equal(h.recovered.last_index, at + 6);
    assert_int_equal(h.recovered.n_terms, at > 1 ? 2 : 1);
    if (at > 1) harness_expect(&h, 1, at - 1, 1, 0, 500);
    harness_expect(&h, at, at + 6, 2, 99, 300);
    harness_free(&h);
  }
}

static void replaced_again_and_again(void **state)
{
  raft_index first_of[200] = {0}; /* by term */
  struct harness h;
  raft_term t;
  uint64_t random = 12345;

  (void)state;
  harness_init(&h, 8);
  harness_open(&h);
  for (t = 1; t < 200; t++) {
    raft_term u;
    raft_index at;

    random = random * 6364136223846793005u + 1442695040888963407u;
    at = 1 + (random >> 33) % (h.last + 1);
    for (u = 1; u < t; u++)
      if (first_of[u] >= at) first_of[u] = 0;
    first_of[t] = at;
    h.term = t;
    assert_int_equal(
        harness_submit(&h, true, at, 1 + (unsigned)(random >> 50) % 9, 200), 0);
    if (random >> 60 & 1) assert_int_equal(harness_wait(&h, h.seq), 0);
    if ((random >> 55) % 8 == 0) harness_reopen(&h);
  }
  for (t = 1; t < 200; t++) {
    raft_index end = h.last;
    raft_term u;

    if (!first_of[t]) continue;
    for (u = t + 1; u < 200; u++)
      if (first_of[u] && first_of[u] - 1 < end) end = first_of[u] - 1;
    assert_int_equal(harness_wait(&h, h.seq), 0);
    harness_expect(&h, first_of[t], end, t, 0, 200);
  }
  harness_free(&h);
}

/* ---- compacting, resetting ---------------------------------------------- */

static void set_checkpoint(struct harness *h, raft_index index, raft_term term)
{
  h->checkpoint.index = index;
  h->checkpoint.term = term;
}

static unsigned count_names(struct harness *h, const char *part)
{
  unsigned i, n = 0;

  (void)pthread_mutex_lock(&h->disk->lock);
  for (i = 0; i < h->disk->n_names; i++)
    n += strstr(h->disk->names[i].path, part) != NULL;
  (void)pthread_mutex_unlock(&h->disk->lock);
  return n;
}

static void compaction_drops_whole_segments(void **state)
{
  struct harness h;
  struct store_stats stats;
  struct raft_entry e;

  (void)state;
  harness_init(&h, 9);
  harness_open(&h);
  harness_vote(&h, 4, 1);
  harness_append(&h, 30, 500); /* segments begin at 1, 7, 13, 19, 25 */
  assert_int_equal(store_surplus(h.store, 1), 24);
  assert_int_equal(store_surplus(h.store, 4096), 24);
  assert_int_equal(store_surplus(h.store, 4097), 18);
  assert_int_equal(store_surplus(h.store, 4 * 4096), 6);
  assert_int_equal(store_surplus(h.store, 5 * 4096), 0);
  assert_int_equal(store_surplus(h.store, UINT64_MAX), 0);
  store_compact(h.store, 5);
  harness_compact(&h, 14, 13);
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 13);
  assert_int_equal(stats.last, 30);
  assert_int_equal(stats.bytes, 3 * 4096);
  assert_int_equal(store_read(h.store, 12, 12, 1, 1, &e, NULL), -ENOENT);
  harness_expect(&h, 13, 30, 4, 0, 500);
  set_checkpoint(&h, 14, 4);
  harness_reopen(&h);
  assert_int_equal(h.recovered.snapshot_index, 12);
  assert_int_equal(h.recovered.snapshot_term, 4);
  assert_int_equal(h.recovered.commit, 14);
  assert_int_equal(h.recovered.last_index, 30);
  harness_expect(&h, 13, 30, 4, 0, 500);
  /* never the newest segment */
  harness_compact(&h, UINT64_MAX, 25);
  harness_expect(&h, 25, 30, 4, 0, 500);
  assert_int_equal(count_names(&h, ".seg"), 1);
  set_checkpoint(&h, 27, 4);
  harness_reopen(&h);
  assert_int_equal(h.recovered.snapshot_index, 24);
  harness_expect(&h, 25, 30, 4, 0, 500);
  harness_free(&h);
}

static void recycled_segments_show_nothing_old(void **state)
{
  struct harness h;
  unsigned round;

  (void)state;
  harness_init(&h, 10);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 6, 500);
  for (round = 0; round < 40; round++) {
    raft_index first = h.last + 1;

    /* the same places in the file, fewer entries than the time before */
    harness_append(&h, 6, 500);
    harness_append(&h, 2 + round % 5, 500);
    harness_compact(&h, h.last, first);
    if (round % 3 == 2) {
      raft_index last = h.last;

      set_checkpoint(&h, last, 1);
      harness_reopen(&h);
      assert_int_equal(h.recovered.last_index, last);
      harness_expect(&h, h.recovered.snapshot_index + 1, last, 1, 0, 500);
    }
  }
  harness_free(&h);
}

static void spares_do_not_pile_up(void **state)
{
  struct harness h;
  unsigned round;

  (void)state;
  harness_init(&h, 23);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  for (round = 0; round < 10; round++) {
    harness_append(&h, 40, 500);
    harness_compact(&h, h.last, h.last - 6);
    set_checkpoint(&h, h.last, 1);
    harness_reopen(&h);
    assert_true(count_names(&h, ".spare") <= 2);
    assert_true(count_names(&h, ".seg") <= 2);
  }
  harness_free(&h);
}

struct slow_reader {
  struct harness *h;
  int n;
  struct raft_entry e[8];
};

static void *read_slowly(void *arg)
{
  struct slow_reader *r = arg;

  r->n = store_read(r->h->store, 1, 6, SIZE_MAX, 8, r->e, NULL);
  return NULL;
}

/* A segment that is read while it goes is not written over. */
static void what_is_read_is_not_recycled(void **state)
{
  struct harness h;
  struct slow_reader r = {.h = &h};
  pthread_t thread;
  int i;

  (void)state;
  harness_init(&h, 24);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 40, 500);
  disk_hold_reads(h.disk, "log/0000000000000001.seg");
  assert_int_equal(pthread_create(&thread, NULL, read_slowly, &r), 0);
  while (!disk_held(h.disk))
    (void)nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
  harness_compact(&h, 30, 31);
  h.salt = 1;
  harness_append(&h, 40, 500); /* whatever is recycled is in use by now */
  disk_hold_reads(h.disk, NULL);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_int_equal(r.n, 6);
  for (i = 0; i < 6; i++) {
    struct raft_body *body = make_body(r.e[i].index, 1, 0, 500);

    assert_int_equal(r.e[i].index, i + 1);
    assert_memory_equal(r.e[i].body->data, body->data, 500);
    raft_body_unref(body);
    raft_body_unref(r.e[i].body);
  }
  harness_free(&h);
}

static void a_reset_log_is_empty(void **state)
{
  static const raft_index at[] = {1, 7, 20, 30, 500};
  struct harness h;
  struct store_stats stats;
  unsigned i;

  (void)state;
  for (i = 0; i < 5; i++) {
    harness_init(&h, 11);
    harness_open(&h);
    harness_vote(&h, 4, 1);
    harness_append(&h, 30, 500);
    assert_int_equal(store_reset(h.store, at[i], 3), 0);
    store_stats(h.store, &stats);
    assert_int_equal(stats.first, at[i] + 1);
    assert_int_equal(stats.last, at[i]);
    set_checkpoint(&h, at[i], 3);
    harness_reopen(&h);
    assert_int_equal(h.recovered.snapshot_index, at[i]);
    assert_int_equal(h.recovered.snapshot_term, 3);
    assert_int_equal(h.recovered.last_index, at[i]);
    assert_int_equal(h.recovered.n_terms, 0);
    h.salt = 5;
    harness_append(&h, 30, 100);
    harness_reopen(&h);
    assert_int_equal(h.recovered.last_index, at[i] + 30);
    harness_expect(&h, at[i] + 1, at[i] + 30, 4, 5, 100);
    harness_free(&h);
  }
}

/* ---- the checkpoint and the log ----------------------------------------- */

static void a_log_that_ends_before_the_checkpoint_is_dropped(void **state)
{
  struct harness h;

  (void)state;
  harness_init(&h, 12);
  harness_open(&h);
  harness_vote(&h, 4, 1);
  harness_append(&h, 30, 500);
  set_checkpoint(&h, 100, 9);
  harness_reopen(&h);
  assert_int_equal(h.recovered.snapshot_index, 100);
  assert_int_equal(h.recovered.snapshot_term, 9);
  assert_int_equal(h.recovered.last_index, 100);
  assert_int_equal(h.recovered.commit, 100);
  assert_int_equal(h.recovered.term, 9);
  assert_int_equal(h.recovered.voted_for, 0);
  harness_append(&h, 3, 10);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 103);
  harness_expect(&h, 101, 103, 9, 0, 10);
  harness_free(&h);
}

static void expect_refused(struct harness *h, const char *words)
{
  harness_close(h);
  assert_int_equal(harness_try_open(h), -EBADMSG);
  assert_null(h->store);
  if (!strstr(h->error, words)) fail_msg("%s", h->error);
}

static void a_log_must_fit_the_checkpoint(void **state)
{
  struct harness h;

  (void)state;
  harness_init(&h, 13);
  harness_open(&h);
  harness_vote(&h, 4, 1);
  harness_append(&h, 30, 500);
  harness_compact(&h, 14, 13);
  set_checkpoint(&h, 11, 4);
  expect_refused(&h, "log/000000000000000d.seg: the log begins at entry 13");
  set_checkpoint(&h, 12, 3);
  expect_refused(&h, "entry 12 has term 4, in the checkpoint it has 3");
  set_checkpoint(&h, 20, 3);
  expect_refused(&h, "entry 20 has term 4, in the checkpoint it has 3");
  set_checkpoint(&h, 20, 4);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 30);
  /* another node's snapshot wins over an old log */
  set_checkpoint(&h, 20, 3);
  h.checkpoint.from_snapshot = true;
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 20);
  assert_int_equal(h.recovered.snapshot_index, 20);
  assert_int_equal(h.recovered.snapshot_term, 3);
  harness_free(&h);
}

static void files_of_others_are_refused(void **state)
{
  struct harness h;
  struct store_options options = {.dir = DIR_, .cluster = CLUSTER, .node = 8};
  char *error;

  (void)state;
  harness_init(&h, 14);
  harness_open(&h);
  harness_vote(&h, 4, 1);
  harness_append(&h, 1, 10);
  harness_close(&h);
  options.io = h.io;
  assert_int_equal(store_open(&options, NULL, &h.store, &h.recovered, &error),
                   -EBADMSG);
  assert_string_equal(error, "/n/vote: offset 0: belongs to node 7, not 8");
  free(error);
  options.node = NODE;
  options.cluster++;
  assert_int_equal(store_open(&options, NULL, &h.store, &h.recovered, &error),
                   -EBADMSG);
  assert_non_null(strstr(error, "belongs to cluster"));
  free(error);
  /* and so is a log, when the vote is gone or another's */
  disk_drop(h.disk->names, &h.disk->n_names, "/n/vote");
  expect_refused(&h, "/n/vote: missing, although there is a log beside it");
  disk_collect(h.disk);
  harness_free(&h);
}

static struct raft_body *configuration(unsigned n)
{
  struct raft_configuration c = {.n = n};
  unsigned i;

  for (i = 0; i < n; i++) {
    c.members[i].id = i + 1;
    c.members[i].role = RAFT_VOTER;
  }
  return raft_configuration_encode(&c);
}

/* Configurations are told apart by their number of members. */
static void the_newest_two_configurations(void **state)
{
  /* checkpoint's (index, members), then what must be found */
  static const struct {
    raft_index own;
    unsigned n;
    raft_index newest, previous;
    unsigned newest_n, previous_n;
  } cases[] = {
      {0, 0, 9, 6, 3, 2},   {1, 9, 9, 6, 3, 2}, {3, 1, 9, 6, 3, 2},
      {6, 2, 9, 6, 3, 2},   {7, 8, 9, 7, 3, 8}, {9, 3, 9, 6, 3, 2},
      {10, 8, 10, 9, 8, 3},
  };
  struct harness h;
  unsigned i;

  (void)state;
  harness_init(&h, 15);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  for (i = 1; i <= 3; i++) {
    struct raft_entry e = {.type = RAFT_CONFIGURATION, .term = 1};
    struct raft_persist p = {.n_entries = 1, .entries = &e};

    harness_append(&h, 2, 700);
    e.index = ++h.last;
    e.body = configuration(i);
    p.seq = ++h.seq;
    assert_int_equal(store_submit(h.store, &p), 0);
    raft_body_unref(e.body);
  }
  harness_append(&h, 2, 700);
  for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    set_checkpoint(&h, cases[i].own, cases[i].own ? 1 : 0);
    h.checkpoint.configuration_index = cases[i].own;
    h.checkpoint.configuration.n = cases[i].n;
    harness_reopen(&h);
    assert_int_equal(h.recovered.configuration_index, cases[i].newest);
    assert_int_equal(h.recovered.previous_index, cases[i].previous);
    assert_int_equal(h.recovered.configuration.n, cases[i].newest_n);
    assert_int_equal(h.recovered.previous.n, cases[i].previous_n);
  }
  harness_free(&h);
}

/* ---- reading back ------------------------------------------------------- */

static void reading_has_limits(void **state)
{
  struct harness h;
  struct raft_entry e[64];
  int n;

  (void)state;
  harness_init(&h, 16);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 30, 500);
#define READ(first, last, bytes, max, want)                                    \
  n = store_read(h.store, first, last, bytes, max, e, NULL);                   \
  assert_int_equal(n, want);                                                   \
  while (n > 0)                                                                \
  raft_body_unref(e[--n].body)
  READ(1, 30, SIZE_MAX, 64, 30);
  READ(1, 30, SIZE_MAX, 11, 11);
  READ(6, 7, SIZE_MAX, 64, 2);
  READ(1, 30, 0, 64, 1);
  READ(1, 30, 1499, 64, 2);
  READ(1, 30, 1500, 64, 3);
  READ(25, 99, SIZE_MAX, 64, 6);
  READ(31, 40, SIZE_MAX, 64, -ENOENT);
  READ(0, 40, SIZE_MAX, 64, -EINVAL);
  READ(9, 8, SIZE_MAX, 64, -EINVAL);
#undef READ
  harness_free(&h);
}

/* Heads of entries of one length: n of them, from first on. */
static void expect_heads(struct harness *h, raft_index first, int n,
                         raft_term term, size_t len)
{
  struct store_head heads[64];
  int i;

  assert_int_equal(
      store_peek(h->store, first, first + (unsigned)n - 1, 64, heads, NULL), n);
  for (i = 0; i < n; i++) {
    raft_index index = first + (unsigned)i;
    struct raft_body *body = make_body(index, term, 0, len);
    size_t there = len < STORE_HEAD ? len : STORE_HEAD;

    assert_int_equal(heads[i].index, index);
    assert_int_equal(heads[i].term, term);
    assert_int_equal(heads[i].type, len ? RAFT_COMMIT : RAFT_NOOP);
    assert_int_equal(heads[i].length, len);
    if (there) assert_memory_equal(heads[i].data, body->data, there);
    for (; there < STORE_HEAD; there++)
      assert_int_equal(heads[i].data[there], 0);
    raft_body_unref(body);
  }
}

static void beginnings_of_bodies(void **state)
{
  struct store_head heads[8];
  struct harness h;

  (void)state;
  harness_init(&h, 18);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 30, 500); /* several segments */
  h.term = 2;
  assert_int_equal(harness_submit(&h, true, 31, 5, STORE_HEAD - 1), 0);
  harness_append(&h, 1, 0);
  harness_append(&h, 5, STORE_HEAD);
  expect_heads(&h, 1, 30, 1, 500);
  expect_heads(&h, 11, 7, 1, 500);
  expect_heads(&h, 31, 5, 2, STORE_HEAD - 1);
  expect_heads(&h, 36, 1, 2, 0);
  expect_heads(&h, 37, 5, 2, STORE_HEAD);
  assert_int_equal(store_peek(h.store, 40, 99, 8, heads, NULL), 2);
  assert_int_equal(store_peek(h.store, 1, 30, 3, heads, NULL), 3);
  assert_int_equal(store_peek(h.store, 42, 50, 8, heads, &h.error), -ENOENT);
  assert_string_equal(h.error, "/n/log: entry 42 is not in the log");
  free(h.error);
  h.error = NULL;
  assert_int_equal(store_peek(h.store, 0, 9, 8, heads, NULL), -EINVAL);
  assert_int_equal(store_peek(h.store, 9, 8, 8, heads, NULL), -EINVAL);
  assert_int_equal(store_peek(h.store, 9, 9, 0, heads, NULL), -EINVAL);
  harness_free(&h);
}

static void syncs_are_timed(void **state)
{
  struct store_stats stats;
  struct harness h;

  (void)state;
  harness_init(&h, 19);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  assert_int_equal(h.timed, 0); /* a vote is not of the log */
  harness_append(&h, 1, 100);
  harness_append(&h, 30, 500);
  store_stats(h.store, &stats);
  assert_true(stats.syncs > 3);
  assert_int_equal(h.timed, stats.syncs - 1);
  harness_free(&h);
}

static void many_tiny_entries_in_one_segment(void **state)
{
  struct harness h;
  unsigned i;

  (void)state;
  harness_init(&h, 17);
  h.segment_bytes = 2 * 1024 * 1024;
  harness_open(&h);
  harness_vote(&h, 1, 1);
  for (i = 0; i < 40; i++)
    assert_int_equal(harness_submit(&h, false, h.last + 1, 500, 0), 0);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  harness_expect(&h, 1, 20000, 1, 0, 0);
  harness_expect(&h, 4095, 4100, 1, 0, 0);
  h.term = 2;
  assert_int_equal(harness_submit(&h, true, 12345, 2, 8), 0);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  harness_expect(&h, 12000, 12344, 1, 0, 0);
  harness_expect(&h, 12345, 12346, 2, 0, 8);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 12346);
  harness_expect(&h, 1, 12344, 1, 0, 0);
  harness_free(&h);
}

struct reader {
  struct harness *h;
  pthread_t thread;
  _Atomic bool stop;
  _Atomic unsigned long reads;
};

/* Whatever is read is one history: indexes in sequence, terms not falling,
   and each body that of its index and term. */
static void *read_on(void *arg)
{
  struct reader *r = arg;
  struct raft_entry e[32];
  struct store_stats stats;

  while (!r->stop) {
    int i, n;

    store_stats(r->h->store, &stats);
    if (stats.first > stats.last) continue;
    n = store_read(r->h->store,
                   stats.first + r->reads % (stats.last - stats.first + 1),
                   UINT64_MAX, SIZE_MAX, 32, e, NULL);
    if (n < 0 && n != -ENOENT) abort();
    for (i = 0; i < n; i++) {
      struct raft_body *body = make_body(e[i].index, e[i].term, 0, 200);

      if (i && (e[i].index != e[i - 1].index + 1 || e[i].term < e[i - 1].term))
        abort();
      if (memcmp(body->data, e[i].body->data, 200)) abort();
      raft_body_unref(body);
    }
    while (n > 0)
      raft_body_unref(e[--n].body);
    r->reads++;
  }
  return NULL;
}

/* On a busy machine threads get to it late. */
static bool have_read(const struct reader r[2])
{
  return r[0].reads > 10 && r[1].reads > 10;
}

static void reading_while_all_else_goes_on(void **state)
{
  struct harness h;
  struct reader r[2];
  unsigned i;

  (void)state;
  harness_init(&h, 18);
  harness_open(&h);
  harness_vote(&h, 1, 1);
  for (i = 0; i < 2; i++) {
    r[i].h = &h;
    r[i].stop = false;
    r[i].reads = i;
    assert_int_equal(pthread_create(&r[i].thread, NULL, read_on, &r[i]), 0);
  }
  for (i = 0; i < 1500 || (i < 150000 && !have_read(r)); i++) {
    raft_index at = h.last + 1;

    if (i % 10 == 9) {
      h.term++;
      at = h.last - i % 5;
    }
    assert_int_equal(harness_submit(&h, i % 10 == 9, at, 5, 200), 0);
    if (i % 16 == 0) assert_int_equal(harness_wait(&h, h.seq), 0);
    if (i % 25 == 24) store_compact(h.store, h.last - 60);
    if (i % 500 == 499) {
      assert_int_equal(store_reset(h.store, h.last, h.term), 0);
      harness_append(&h, 10, 200);
    }
  }
  assert_int_equal(harness_wait(&h, h.seq), 0);
  assert_true(have_read(r));
  for (i = 0; i < 2; i++) {
    r[i].stop = true;
    assert_int_equal(pthread_join(r[i].thread, NULL), 0);
  }
  harness_free(&h);
}

/* ---- submissions -------------------------------------------------------- */

static void nonsense_is_not_taken(void **state)
{
  struct harness h;
  struct raft_entry e[2] = {{.index = 4, .term = 2, .type = RAFT_NOOP},
                            {.index = 5, .term = 2, .type = RAFT_NOOP}};
  struct raft_persist p = {.seq = 10, .n_entries = 2, .entries = e};

  (void)state;
  harness_init(&h, 19);
  harness_open(&h);
  harness_vote(&h, 2, 1);
  harness_append(&h, 3, 10);
#define REFUSED(what, back)                                                    \
  what;                                                                        \
  assert_int_equal(store_submit(h.store, &p), -EINVAL);                        \
  back
  REFUSED(p.seq = h.seq, p.seq = 10);
  REFUSED(e[1].index = 6, e[1].index = 5);
  REFUSED(e[0].index = 5, e[0].index = 4);
  REFUSED(e[0].term = e[1].term = 3, e[0].term = e[1].term = 2);
  REFUSED(e[1].term = 1, e[1].term = 2);
  REFUSED(e[0].type = 0, e[0].type = RAFT_NOOP);
  REFUSED(e[0].type = 6, e[0].type = RAFT_NOOP);
  REFUSED((p.vote = true, p.term = 1), p.vote = false);
#undef REFUSED
  assert_int_equal(store_submit(h.store, &p), 0);
  assert_int_equal(harness_wait(&h, 10), 0);
  harness_free(&h);
}

static void a_body_damaged_in_memory_is_not_written(void **state)
{
  struct harness h;
  struct raft_entry e = {.index = 4, .term = 2, .type = RAFT_COMMIT};
  struct raft_persist p = {.seq = 10, .n_entries = 1, .entries = &e};

  (void)state;
  harness_init(&h, 20);
  harness_open(&h);
  harness_vote(&h, 2, 1);
  harness_append(&h, 3, 10);
  e.body = make_body(4, 2, 0, 100);
  e.body->data[50] ^= 4;
  assert_int_equal(store_submit(h.store, &p), 0);
  assert_int_equal(harness_wait(&h, 10), -EBADMSG);
  assert_int_equal(h.failures, 1);
  assert_non_null(strstr(h.failure, "entry 4 was damaged in memory"));
  raft_body_unref(e.body);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 3);
  harness_free(&h);
}

/* ---- the checkpoint file ------------------------------------------------ */

static void a_checkpoint_comes_back(void **state)
{
  struct harness h;
  struct store_checkpoint c = {.index = 10, .term = 3, .floor = 15}, back;
  uint8_t settings[300];
  struct raft_body *body = configuration(3);
  char *error = NULL;
  unsigned i;

  (void)state;
  harness_init(&h, 21);
  assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, NULL), -ENOENT);
  assert_int_equal(
      raft_configuration_decode(body->data, body->len, &c.configuration), 0);
  raft_body_unref(body);
  c.configuration_index = 7;
  memset(settings, 0x77, sizeof(settings));
  for (i = 0; i < 2; i++) {
    c.settings = i ? settings : NULL;
    c.settings_len = i ? sizeof(settings) : 0;
    c.from_snapshot = i;
    c.incoming = !i;
    assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, &error), 0);
    disk_crash(h.disk, 0);
    assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, &error), 0);
    assert_int_equal(back.index, 10);
    assert_int_equal(back.term, 3);
    assert_int_equal(back.floor, 15);
    assert_int_equal(back.configuration_index, 7);
    assert_memory_equal(&back.configuration, &c.configuration,
                        sizeof(c.configuration));
    assert_int_equal(back.from_snapshot, i);
    assert_int_equal(back.incoming, !i);
    assert_int_equal(back.settings_len, c.settings_len);
    if (i) assert_memory_equal(back.settings, settings, sizeof(settings));
    store_checkpoint_clear(&back);
  }
  c.configuration_index = 11;
  assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, &error), -EINVAL);
  free(error);
  harness_free(&h);
}

/* ---- the operating system's files --------------------------------------- */

static void on_real_files(void **state)
{
  char dir[] = "/tmp/quorate-store-XXXXXX", command[64];
  struct harness h;
  uint8_t *data;
  size_t len;

  (void)state;
  assert_non_null(mkdtemp(dir));
  harness_init(&h, 22);
  h.io = &io_posix;
  h.dir = dir;
  h.segment_bytes = 64 * 1024;
  harness_open(&h);
  harness_vote(&h, 1, 1);
  harness_append(&h, 200, 3000);
  harness_append(&h, 500, 0);
  h.term = 2;
  assert_int_equal(harness_submit(&h, true, 150, 100, 1000), 0);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  harness_compact(&h, 100, 85);
  h.checkpoint.index = 100;
  h.checkpoint.term = 1;
  assert_int_equal(store_checkpoint_write(h.io, dir, &h.checkpoint, NULL), 0);
  store_checkpoint_clear(&h.checkpoint);
  assert_int_equal(store_checkpoint_read(h.io, dir, &h.checkpoint, NULL), 0);
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 249);
  harness_expect(&h, 100, 149, 1, 0, 3000);
  harness_expect(&h, 150, 249, 2, 0, 1000);
  (void)snprintf(command, sizeof(command), "%s/vote", dir);
  assert_int_equal(io_read_file(&io_posix, command, 100, &data, &len), -EFBIG);
  assert_int_equal(io_read_file(&io_posix, command, 8192, &data, &len), 0);
  assert_int_equal(len, 8192);
  free(data);
  harness_free(&h);
  (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
  assert_int_equal(system(command), 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_new_log_is_empty),
      cmocka_unit_test(entries_come_back),
      cmocka_unit_test(what_piled_up_is_one_write_and_one_sync),
      cmocka_unit_test(a_vote_is_durable_before_the_entries_of_its_term),
      cmocka_unit_test(more_than_one_pwritev_takes),
      cmocka_unit_test(a_commit_does_not_wait_for_zeros),
      cmocka_unit_test(a_suffix_is_replaced),
      cmocka_unit_test(replaced_again_and_again),
      cmocka_unit_test(compaction_drops_whole_segments),
      cmocka_unit_test(recycled_segments_show_nothing_old),
      cmocka_unit_test(spares_do_not_pile_up),
      cmocka_unit_test(what_is_read_is_not_recycled),
      cmocka_unit_test(a_reset_log_is_empty),
      cmocka_unit_test(a_log_that_ends_before_the_checkpoint_is_dropped),
      cmocka_unit_test(a_log_must_fit_the_checkpoint),
      cmocka_unit_test(files_of_others_are_refused),
      cmocka_unit_test(the_newest_two_configurations),
      cmocka_unit_test(reading_has_limits),
      cmocka_unit_test(beginnings_of_bodies),
      cmocka_unit_test(syncs_are_timed),
      cmocka_unit_test(many_tiny_entries_in_one_segment),
      cmocka_unit_test(reading_while_all_else_goes_on),
      cmocka_unit_test(nonsense_is_not_taken),
      cmocka_unit_test(a_body_damaged_in_memory_is_not_written),
      cmocka_unit_test(a_checkpoint_comes_back),
      cmocka_unit_test(on_real_files),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
