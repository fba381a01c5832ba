/*
** Numbers that no cluster reaches, in files whose checksums are right. What is
** one greater must never be less: such a file is refused, with words, and left
** as it is. The greatest that are taken can be taken again.
*/
#include "../internal.h"
#include "harness.h"

#include <xxhash.h>

#define MAX RAFT_NUMBER_MAX

static void put_file(struct disk *disk, const char *path, const void *data,
                     size_t size)
{
  int fd = disk->io.open(disk, path, O_RDWR | O_CREAT);

  assert_true(fd >= 0);
  assert_int_equal(disk->io.pwrite(disk, fd, data, size, 0), 0);
  disk->io.close(disk, fd);
}

/* A log of one segment, and in that a record if its index is not 0. */
static void put_log(struct harness *h, const struct segment_header *header,
                    const struct record *record)
{
  struct segment_header full = *header;
  struct record copy = *record;
  uint8_t file[4096] = {0};
  char name[SEGMENT_NAME], path[64];

  full.flags = SEGMENT_BASE;
  full.cluster = CLUSTER;
  full.node = NODE;
  full.bytes = sizeof file;
  copy.type = RAFT_NOOP;
  copy.body = store_body_checksum(NULL, 0);
  store_header_encode(&full, file);
  if (copy.index) store_record_encode(&copy, full.seq, file + SEGMENT_HEADER);
  store_segment_name(name, full.first);
  (void)snprintf(path, sizeof path, DIR_ "/log/%s", name);
  put_file(h->disk, path, file, sizeof file);
}

/* A vote and a checkpoint that the log fits to. */
static void begin(struct harness *h, raft_index index, raft_term term)
{
  harness_init(h, 1);
  harness_open(h);
  harness_vote(h, 5, 4);
  harness_close(h);
  h->checkpoint.index = index;
  h->checkpoint.term = term;
}

static void refused(struct harness *h, const char *words)
{
  struct disk *before = disk_clone(h->disk, 1);

  assert_int_equal(harness_try_open(h), -EBADMSG);
  assert_non_null(h->error);
  if (!strstr(h->error, words)) fail_msg("%s", h->error);
  assert_null(h->store);
  assert_true(disk_same(before, h->disk));
  disk_free(before);
}

#define SEG "/n/log/%016" PRIx64 ".seg: offset %d: "

static void refused_segment(struct harness *h, raft_index first, int offset)
{
  char words[128];

  (void)snprintf(words, sizeof words, SEG "a number that no log reaches", first,
                 offset);
  refused(h, words);
}

/* ---- segments ----------------------------------------------------------- */

/* The segment after it would have been number 0, and a log that was dropped
   for a snapshot, and written anew, refused at the next start. */
static void segments_are_not_numbered_to_the_end(void **state)
{
  static const uint64_t bad[] = {MAX, MAX + 1, UINT64_MAX - 1, UINT64_MAX};
  struct harness h;
  unsigned i;

  (void)state;
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    begin(&h, 0, 0);
    h.checkpoint.from_snapshot = true;
    put_log(&h,
            &(struct segment_header){.seq = bad[i], .first = 1, .prev_term = 3},
            &(struct record){0});
    refused_segment(&h, 1, 32);
    harness_free(&h);
  }
  begin(&h, 0, 0);
  h.checkpoint.from_snapshot = true;
  put_log(&h,
          &(struct segment_header){.seq = MAX - 3, .first = 1, .prev_term = 3},
          &(struct record){0});
  harness_open(&h);            /* number MAX - 2 */
  harness_append(&h, 10, 376); /* and MAX - 1 */
  harness_reopen(&h);
  harness_expect(&h, 1, 10, 5, 0, 376);
  harness_free(&h);
}

/* What follows entry MAX would not be taken by the next start. */
static void entries_are_not_numbered_to_the_end(void **state)
{
  static const uint64_t bad[] = {MAX + 2, UINT64_MAX - 1, UINT64_MAX};
  struct harness h;
  unsigned i;

  (void)state;
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    begin(&h, bad[i] - 1, 5);
    put_log(&h,
            &(struct segment_header){.seq = 1, .first = bad[i], .prev_term = 5},
            &(struct record){0});
    refused_segment(&h, bad[i], 40);
    harness_free(&h);
  }
  begin(&h, MAX - 1, 5);
  put_log(&h, &(struct segment_header){.seq = 1, .first = MAX, .prev_term = 5},
          &(struct record){0});
  harness_open(&h);
  harness_append(&h, 1, 10);
  assert_int_equal(harness_submit(&h, false, MAX + 1, 1, 10), -EINVAL);
  assert_int_equal(store_reset(h.store, MAX + 1, 5), -EINVAL);
  assert_int_equal(store_reset(h.store, MAX, MAX + 1), -EINVAL);
  harness_reopen(&h);
  harness_expect(&h, MAX, MAX, 5, 0, 10);
  /* an empty log may stand behind the last one */
  assert_int_equal(store_reset(h.store, MAX, 5), 0);
  h.checkpoint.index = MAX;
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, MAX);
  assert_int_equal(harness_submit(&h, false, MAX + 1, 1, 10), -EINVAL);
  harness_free(&h);
}

static void terms_are_not_numbered_to_the_end(void **state)
{
  static const uint64_t bad[] = {MAX + 1, UINT64_MAX};
  struct harness h;
  unsigned i;

  (void)state;
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    begin(&h, 0, 0);
    h.checkpoint.from_snapshot = true;
    put_log(&h,
            &(struct segment_header){.seq = 1, .first = 1, .prev_term = bad[i]},
            &(struct record){0});
    refused_segment(&h, 1, 48);
    harness_free(&h);
  }
  begin(&h, 0, 0);
  harness_open(&h);
  harness_vote(&h, MAX, 4);
  harness_append(&h, 1, 10);
  h.term = MAX + 1;
  assert_int_equal(harness_submit(&h, true, 2, 1, 10), -EINVAL);
  assert_int_equal(harness_submit(&h, true, 0, 0, 0), -EINVAL);
  harness_reopen(&h);
  assert_int_equal(h.recovered.term, MAX);
  harness_expect(&h, 1, 1, MAX, 0, 10);
  harness_free(&h);
}

/* Such a record is none that a torn write left: it is not cut. */
static void a_record_with_such_a_number_is_damage(void **state)
{
  struct harness h;

  (void)state;
  begin(&h, MAX, 5);
  put_log(&h,
          &(struct segment_header){.seq = 1, .first = MAX + 1, .prev_term = 5},
          &(struct record){.index = MAX + 1, .term = 5});
  refused_segment(&h, MAX + 1, 512);
  harness_free(&h);
  begin(&h, 1, MAX + 1);
  put_log(&h, &(struct segment_header){.seq = 1, .first = 1},
          &(struct record){.index = 1, .term = MAX + 1});
  refused_segment(&h, 1, 512);
  harness_free(&h);
}

/* ---- votes -------------------------------------------------------------- */

/* One field in both copies of a slot, with checksums that are right. */
static void set_vote(struct harness *h, unsigned slot, size_t at, uint64_t n)
{
  int fd = h->disk->io.open(h->disk, DIR_ "/vote", O_RDWR);
  uint8_t copy[512];
  unsigned i;

  assert_true(fd >= 0);
  n = htole64(n);
  for (i = 0; i < 2; i++) {
    uint64_t from = slot * 4096u + i * sizeof copy, sum;

    assert_int_equal(h->disk->io.pread(h->disk, fd, copy, sizeof copy, from),
                     sizeof copy);
    memcpy(copy + at, &n, sizeof n);
    sum = htole64(XXH3_64bits(copy, 504));
    memcpy(copy + 504, &sum, sizeof sum);
    assert_int_equal(h->disk->io.pwrite(h->disk, fd, copy, sizeof copy, from),
                     0);
  }
  h->disk->io.close(h->disk, fd);
}

/* The vote after it would have been number 0, older than this one, and this
   node would have voted twice. */
static void votes_are_not_numbered_to_the_end(void **state)
{
  static const uint64_t bad[] = {MAX, MAX + 2, UINT64_MAX};
  struct harness h;
  unsigned i;

  (void)state;
  assert_int_equal(MAX % 2, 1); /* slot 1 */
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    begin(&h, 0, 0);
    set_vote(&h, 1, 32, bad[i]);
    refused(&h, "/n/vote: offset 4096: a number that no vote reaches");
    harness_free(&h);
  }
  begin(&h, 0, 0);
  set_vote(&h, 1, 32, MAX - 4);
  harness_open(&h);       /* MAX - 3 */
  harness_vote(&h, 6, 9); /* MAX - 2 */
  harness_reopen(&h);     /* MAX - 1 */
  assert_int_equal(h.recovered.term, 6);
  assert_int_equal(h.recovered.voted_for, 9);
  harness_free(&h);
}

static void a_vote_of_such_a_term_is_refused(void **state)
{
  static const uint64_t bad[] = {MAX + 1, UINT64_MAX};
  struct harness h;
  unsigned i;

  (void)state;
  for (i = 0; i < 4; i++) {
    begin(&h, 0, 0);
    set_vote(&h, i % 2, 40, bad[i / 2]);
    refused(&h, i % 2 ? "/n/vote: offset 4096: a number that no vote reaches"
                      : "/n/vote: offset 0: a number that no vote reaches");
    harness_free(&h);
  }
}

/* ---- checkpoints -------------------------------------------------------- */

/* With the log after it, an index of UINT64_MAX would have begun at entry 0. */
static void a_checkpoint_with_such_a_number_is_refused(void **state)
{
  static const uint64_t bad[] = {MAX + 1, UINT64_MAX};
  struct store_checkpoint c, back;
  struct harness h;
  unsigned i;

  (void)state;
  harness_init(&h, 1);
  for (i = 0; i < 8; i++) {
    /* index, term, floor, index of the configuration */
    uint64_t n[4] = {MAX, MAX, MAX, MAX}, sum;
    uint8_t file[64];
    size_t size;
    int fd;
    char *error = NULL;

    c = (struct store_checkpoint){
        .index = MAX, .term = MAX, .floor = MAX, .configuration_index = MAX};
    assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
    assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, NULL), 0);
    assert_int_equal(back.floor, MAX);
    fd = h.io->open(h.io->ctx, DIR_ "/checkpoint", O_RDWR);
    size = (size_t)h.io->pread(h.io->ctx, fd, file, sizeof file, 0);
    assert_int_equal(size, sizeof file);
    n[i / 2] = bad[i % 2];
    c = (struct store_checkpoint){.index = n[0],
                                  .term = n[1],
                                  .floor = n[2],
                                  .configuration_index = n[3]};
    assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, &error), -EINVAL);
    assert_string_equal(error, "/n/checkpoint: a number that no cluster "
                               "reaches");
    free(error);
    n[i / 2] = htole64(n[i / 2]);
    memcpy(file + 16 + i / 2 * 8, &n[i / 2], 8);
    sum = htole64(XXH3_64bits(file, 56));
    memcpy(file + 56, &sum, 8);
    assert_int_equal(h.io->pwrite(h.io->ctx, fd, file, sizeof file, 0), 0);
    h.io->close(h.io->ctx, fd);
    assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, &error),
                     -EBADMSG);
    assert_string_equal(error, "/n/checkpoint: offset 16: a number that no "
                               "cluster reaches");
    assert_int_equal(back.index, 0);
    free(error);
  }
  harness_free(&h);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(segments_are_not_numbered_to_the_end),
      cmocka_unit_test(entries_are_not_numbered_to_the_end),
      cmocka_unit_test(terms_are_not_numbered_to_the_end),
      cmocka_unit_test(a_record_with_such_a_number_is_damage),
      cmocka_unit_test(votes_are_not_numbered_to_the_end),
      cmocka_unit_test(a_vote_of_such_a_term_is_refused),
      cmocka_unit_test(a_checkpoint_with_such_a_number_is_refused),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
