/*
** Files that were torn by a crash, and files that rotted, were swapped or
** removed. The first must be repaired without losing anything durable; the
** others must be refused, with words, and left as they are.
*/
#include "harness.h"

/* The file whose path ends so. */
static struct inode *file(struct disk *d, const char *end)
{
  struct inode *inode = NULL;
  unsigned i;

  (void)pthread_mutex_lock(&d->lock);
  for (i = 0; i < d->n_names && !inode; i++) {
    const char *path = d->names[i].path;

    if (strlen(path) >= strlen(end) &&
        !strcmp(path + strlen(path) - strlen(end), end))
      inode = d->names[i].inode;
  }
  (void)pthread_mutex_unlock(&d->lock);
  if (!inode) fail_msg("no file %s", end);
  return inode;
}

#define SEG1 "0000000000000001.seg"
#define SEG2 "0000000000000009.seg"
#define SEG3 "0000000000000011.seg"

/* A clean log: 8 entries of 376 bytes in a segment, 20 in all, and a vote. */
static struct disk *clean_log(void)
{
  struct disk *disk;
  struct harness h;

  harness_init(&h, 1);
  harness_open(&h);
  harness_vote(&h, 3, 2);
  harness_vote(&h, 5, 4);
  harness_append(&h, 17, 376);
  harness_append(&h, 3, 376);
  harness_close(&h);
  disk = disk_clone(h.disk, 1);
  harness_free(&h);
  return disk;
}

/* Opens a copy of the disk. 0: all is there as in clean_log(). Else refused,
   and nothing was changed. */
static int open_copy(struct disk *disk, raft_index last, char words[256])
{
  struct harness h;
  struct disk *copy = disk_clone(disk, 1);
  int rc;

  harness_init(&h, 1);
  disk_free(h.disk);
  h.disk = copy;
  h.io = &copy->io;
  rc = harness_try_open(&h);
  if (rc) {
    assert_non_null(h.error);
    (void)snprintf(words, 256, "%s", h.error);
    assert_true(disk_same(disk, copy));
  } else {
    assert_int_equal(h.recovered.term, 5);
    assert_int_equal(h.recovered.voted_for, 4);
    assert_int_equal(h.recovered.last_index, last);
    harness_expect(&h, 1, last, 5, 0, 376);
  }
  harness_free(&h);
  return rc;
}

static unsigned flip_all(struct disk *disk, const char *name, uint64_t from,
                         uint64_t end, unsigned step)
{
  struct inode *inode = file(disk, name);
  unsigned refused = 0;
  char words[256];
  uint64_t at;

  for (at = from; at < end; at += step) {
    uint8_t bit = (uint8_t)(1u << (at / step % 8));
    int rc;

    inode->cache[at] ^= bit;
    rc = open_copy(disk, 20, words);
    inode->cache[at] ^= bit;
    if (!rc) continue;
    assert_int_equal(rc, -EBADMSG);
    if (!strstr(words, name) || !strstr(words, "offset")) fail_msg("%s", words);
    refused++;
  }
  return refused;
}

#define RECORD (56 + 376)

static void a_flipped_bit_is_never_accepted(void **state)
{
  struct disk *disk = clean_log();
  char words[256];

  (void)state;
  assert_int_equal(open_copy(disk, 20, words), 0);
  /* votes: a second copy makes good for the first */
  assert_int_equal(flip_all(disk, "vote", 0, 1024, 1), 0);
  assert_int_equal(flip_all(disk, "vote", 4096, 5120, 1), 0);
  /* segment headers; record headers; bodies */
  assert_int_equal(flip_all(disk, SEG1, 0, 512, 1), 512);
  assert_int_equal(flip_all(disk, SEG2, 0, 512, 3), 171);
  assert_int_equal(flip_all(disk, SEG3, 0, 512, 3), 171);
  assert_int_equal(flip_all(disk, SEG1, 512, 512 + 56, 1), 56);
  assert_int_equal(flip_all(disk, SEG1, 512, 512 + 8 * RECORD, 5), 692);
  assert_int_equal(flip_all(disk, SEG2, 512, 512 + 8 * RECORD, 7), 494);
  assert_int_equal(flip_all(disk, SEG3, 512, 512 + 3 * RECORD, 5), 260);
  /* the newest record: only the mark says that it was durable */
  assert_int_equal(flip_all(disk, SEG3, 512 + 3 * RECORD, 512 + 4 * RECORD, 1),
                   RECORD);
  /* behind the end nothing is lost: the mark, and zeros */
  assert_int_equal(flip_all(disk, SEG3, 512 + 4 * RECORD, 4096, 3), 0);
  disk_free(disk);
}

static void a_vote_that_is_gone_is_refused(void **state)
{
  struct disk *disk = clean_log();
  struct inode *vote = file(disk, "vote");
  char words[256];
  unsigned slot;

  (void)state;
  for (slot = 0; slot < 2; slot++) {
    vote->cache[slot * 4096 + 30] ^= 1;
    assert_int_equal(open_copy(disk, 20, words), 0);
    vote->cache[slot * 4096 + 512 + 40] ^= 1;
    assert_int_equal(open_copy(disk, 20, words), -EBADMSG);
    assert_non_null(strstr(words, "both copies of a vote are damaged"));
    vote->cache[slot * 4096 + 30] ^= 1;
    vote->cache[slot * 4096 + 512 + 40] ^= 1;
  }
  vote->size = 8191;
  assert_int_equal(open_copy(disk, 20, words), -EBADMSG);
  disk_free(disk);
}

/* One copy is damaged, then, after a start, the other one of the same slot. */
static void a_damaged_copy_of_a_vote_does_not_stay(void **state)
{
  unsigned slot, copy, i;

  (void)state;
  for (slot = 0; slot < 2; slot++) {
    for (copy = 0; copy < 2; copy++) {
      struct harness h;

      harness_init(&h, 1);
      harness_open(&h);
      harness_vote(&h, 5, 4);
      for (i = 0; i < 2; i++) {
        disk_kill(h.disk);
        harness_close(&h);
        disk_crash(h.disk, 0);
        disk_poke(file(h.disk, "vote"), slot * 4096 + (copy ^ i) * 512 + 40,
                  0xa5);
        harness_open(&h);
        assert_int_equal(h.recovered.term, 5);
        assert_int_equal(h.recovered.voted_for, 4);
      }
      harness_free(&h);
    }
  }
}

/* A vote file from before: the log knows better. */
static void an_old_vote_is_refused(void **state)
{
  struct harness h;
  struct disk *old;

  (void)state;
  harness_init(&h, 2);
  harness_open(&h);
  harness_vote(&h, 3, 2);
  harness_close(&h);
  old = disk_clone(h.disk, 1);
  harness_open(&h);
  harness_vote(&h, 5, 4);
  harness_append(&h, 2, 10);
  harness_close(&h);
  memcpy(file(h.disk, "vote")->cache, file(old, "vote")->cache, 8192);
  assert_int_equal(harness_try_open(&h), -EBADMSG);
  assert_string_equal(h.error, "/n/vote: offset 0: holds term 3, but the log "
                               "has reached term 5");
  disk_free(old);
  harness_free(&h);
}

static void segments_that_are_missing_or_misplaced(void **state)
{
  static const char *const names[] = {"/n/log/" SEG1, "/n/log/" SEG2};
  struct disk *disk = clean_log(), *copy;
  char words[256];
  unsigned i;

  (void)state;
  for (i = 0; i < 2; i++) {
    copy = disk_clone(disk, 1);
    disk_drop(copy->names, &copy->n_names, names[i]);
    assert_int_equal(open_copy(copy, 20, words), -EBADMSG);
    if (!strstr(words, "missing")) fail_msg("%s", words);
    disk_free(copy);
  }
  /* a copy of one under another's name */
  copy = disk_clone(disk, 1);
  disk_link(copy->names, &copy->n_names, "/n/log/0000000000000005.seg",
            disk_file(copy, names[0]));
  assert_int_equal(open_copy(copy, 20, words), -EBADMSG);
  assert_non_null(strstr(words, "0000000000000005.seg: offset 40: begins at"));
  disk_free(copy);
  /* shorter or longer than it was made */
  for (i = 0; i < 3; i++) {
    copy = disk_clone(disk, 1);
    file(copy, SEG3)->size = i < 2 ? 4095 * i : 5000;
    disk_grow(file(copy, SEG3), 5000);
    assert_int_equal(open_copy(copy, 20, words), -EBADMSG);
    disk_free(copy);
  }
  /* names that are none of ours are left alone */
  disk_link(disk->names, &disk->n_names, "/n/log/notes.txt",
            file(disk, "vote"));
  assert_int_equal(open_copy(disk, 20, words), 0);
  disk_free(disk);
}

/* Two logs that share a beginning: a segment of one does not fit the other. */
static void a_segment_of_another_history(void **state)
{
  struct disk *logs[2];
  struct harness h;
  char words[256];
  unsigned i;

  (void)state;
  for (i = 0; i < 2; i++) {
    harness_init(&h, 1);
    harness_open(&h);
    harness_vote(&h, 5, 4);
    harness_append(&h, 7, 376);
    h.salt = i;
    harness_append(&h, 13, 376);
    harness_close(&h);
    logs[i] = disk_clone(h.disk, 1);
    harness_free(&h);
  }
  memcpy(file(logs[0], SEG2)->cache, file(logs[1], SEG2)->cache, 4096);
  assert_int_equal(open_copy(logs[0], 20, words), -EBADMSG);
  assert_non_null(strstr(words, SEG2 ": offset 56: does not follow the segment "
                                     "before it: other chain"));
  disk_free(logs[0]);
  disk_free(logs[1]);
}

/* Nothing was closed in order, but the log was at rest for a while: then damage
   to the newest entry does not look like a torn write. */
static void a_log_at_rest_is_marked(void **state)
{
  struct harness h;
  char done[8] = "";
  unsigned from;

  (void)state;
  harness_init(&h, 6);
  harness_open(&h);
  harness_vote(&h, 5, 4);
  harness_append(&h, 2, 376);
  harness_append(&h, 1, 376);
  from = disk_now(h.disk);
  while (strcmp(done, "wl")) /* the mark; no sync */
    disk_done(h.disk, from, "l", done, sizeof(done));
  disk_kill(h.disk);
  harness_close(&h);
  disk_crash(h.disk, 8);
  file(h.disk, SEG1)->cache[512 + 2 * RECORD + 100] ^= 1;
  assert_int_equal(harness_try_open(&h), -EBADMSG);
  assert_non_null(strstr(h.error, "entry 3 was durable"));
  harness_free(&h);
}

/* ---- torn batches ------------------------------------------------------- */

/* Images of the newest segment before and after an unacknowledged batch. */
struct torn {
  struct disk *disk; /* with `before` in it */
  struct inode *inode;
  uint8_t before[4096], after[4096];
  uint64_t start, end; /* of the batch */
  raft_index first;    /* of the segment */
};

/* Appends until the newest segment, three entries of which are written, is
   one that was in use before. */
static void onto_old_records(struct harness *h, uint64_t end)
{
  unsigned i;

  harness_append(h, 32, 376);
  for (i = 0; i < 50; i++) {
    char name[32];

    harness_compact(h, h->last, h->last - 7);
    harness_append(h, 3, 376);
    (void)snprintf(name, sizeof(name), "%016" PRIx64 ".seg", h->last - 2);
    if (file(h->disk, name)->cache[end + RECORD / 2]) return;
    harness_append(h, 5, 376);
  }
  fail_msg("no segment is ever recycled");
}

/* `recycled`: over an old segment's records instead of zeros. */
static void torn_init(struct torn *t, bool recycled)
{
  struct harness h;
  struct disk *after;
  char name[32];

  t->start = 512 + 3 * RECORD;
  t->end = t->start + 4 * RECORD;
  harness_init(&h, 3);
  harness_open(&h);
  harness_vote(&h, 5, 4);
  if (recycled)
    onto_old_records(&h, t->end);
  else
    harness_append(&h, 3, 376);
  t->first = h.last - 2;
  t->disk = disk_clone(h.disk, 1);
  harness_append(&h, 4, 376);
  after = disk_clone(h.disk, 1);
  harness_free(&h);
  (void)snprintf(name, sizeof(name), "%016" PRIx64 ".seg", t->first);
  t->inode = file(t->disk, name);
  memcpy(t->before, t->inode->cache, 4096);
  memcpy(t->after, file(after, name)->cache, 4096);
  disk_free(after);
}

/* Opens a copy; the first `good` records of the batch must be there, and what
   was cut must not come back, not even after a second, shorter batch. */
static void torn_check(struct torn *t, unsigned good)
{
  raft_index last = t->first + 2 + good;
  struct harness h;
  unsigned i;

  harness_init(&h, 1);
  disk_free(h.disk);
  h.disk = disk_clone(t->disk, 1);
  h.io = &h.disk->io;
  h.checkpoint.index = t->first - 1;
  h.checkpoint.term = t->first > 1 ? 5 : 0;
  for (i = 0; i < 2; i++) {
    harness_open(&h);
    assert_int_equal(h.recovered.last_index, last);
    harness_expect(&h, t->first, last, 5, 0, 376);
    disk_kill(h.disk);
    harness_close(&h);
    disk_crash(h.disk, 0);
  }
  /* one of the same size ends where an old one may begin; no mark follows */
  harness_open(&h);
  h.salt = 1;
  harness_append(&h, 1, 376);
  disk_kill(h.disk);
  harness_close(&h);
  disk_crash(h.disk, 0);
  harness_open(&h);
  assert_int_equal(h.recovered.last_index, last + 1);
  harness_free(&h);
}

static void torn_at_every_byte(void **state)
{
  unsigned recycled;
  struct torn t;
  uint64_t at;

  (void)state;
  for (recycled = 0; recycled < 2; recycled++) {
    torn_init(&t, recycled);
    for (at = t.start; at <= t.end; at++) {
      memcpy(t.inode->cache, t.before, 4096);
      memcpy(t.inode->cache, t.after, at);
      torn_check(&t, (unsigned)((at - t.start) / RECORD));
    }
    disk_free(t.disk);
  }
}

static void every_subset_of_sectors(void **state)
{
  unsigned recycled, subset, sector, good;
  struct torn t;

  (void)state;
  for (recycled = 0; recycled < 2; recycled++) {
    torn_init(&t, recycled);
    for (subset = 0; subset < 256; subset++) {
      memcpy(t.inode->cache, t.before, 4096);
      for (sector = 0; sector < 8; sector++)
        if (subset >> sector & 1)
          memcpy(t.inode->cache + sector * 512, t.after + sector * 512, 512);
      for (good = 0; good < 4; good++)
        if (memcmp(t.inode->cache + t.start + good * RECORD,
                   t.after + t.start + good * RECORD, RECORD))
          break;
      torn_check(&t, good);
    }
    disk_free(t.disk);
  }
}

/* The same hole, but below what the batch behind it says was durable. */
static void a_hole_below_the_mark_is_damage(void **state)
{
  char words[256];
  struct torn t;
  unsigned i;

  (void)state;
  torn_init(&t, false);
  for (i = 0; i < 3; i++) {
    memcpy(t.inode->cache, t.after, 4096);
    memset(t.inode->cache + 512 + i * RECORD, 0, RECORD);
    assert_int_equal(open_copy(t.disk, 20, words), -EBADMSG);
    if (!strstr(words, "was durable")) fail_msg("%s", words);
  }
  disk_free(t.disk);
}

/* ---- the checkpoint, and reading back ----------------------------------- */

static void a_damaged_checkpoint_is_refused(void **state)
{
  struct harness h;
  struct store_checkpoint c = {.index = 10, .term = 3, .floor = 15}, back;
  uint8_t settings[100] = {1, 2, 3};
  struct inode *inode;
  uint64_t i, size;
  char *error;

  (void)state;
  harness_init(&h, 4);
  c.configuration.n = 1;
  c.configuration.members[0].id = 1;
  c.configuration.members[0].role = RAFT_VOTER;
  c.settings = settings;
  c.settings_len = sizeof(settings);
  assert_int_equal(store_checkpoint_write(h.io, DIR_, &c, NULL), 0);
  inode = file(h.disk, "checkpoint");
  size = inode->size;
  for (i = 0; i < size * 8; i++) {
    inode->cache[i / 8] ^= (uint8_t)(1u << i % 8);
    assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, &error),
                     -EBADMSG);
    assert_non_null(strstr(error, "/n/checkpoint: offset "));
    assert_null(back.settings);
    free(error);
    inode->cache[i / 8] ^= (uint8_t)(1u << i % 8);
  }
  for (i = 0; i < size; i++) {
    inode->size = i;
    assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, NULL), -EBADMSG);
  }
  inode->size = size;
  assert_int_equal(store_checkpoint_read(h.io, DIR_, &back, NULL), 0);
  store_checkpoint_clear(&back);
  harness_free(&h);
}

static void reading_back_checks(void **state)
{
  struct harness h;
  struct raft_entry e[8];
  struct inode *inode;
  uint64_t at;

  (void)state;
  harness_init(&h, 5);
  harness_open(&h);
  harness_vote(&h, 5, 4);
  harness_append(&h, 8, 376);
  inode = file(h.disk, SEG1);
  for (at = 512 + 4 * RECORD; at < 512 + 5 * RECORD; at++) {
    int n;

    inode->cache[at] ^= 0x10;
    free(h.error);
    assert_int_equal(store_read(h.store, 5, 8, SIZE_MAX, 8, e, &h.error),
                     -EBADMSG);
    assert_non_null(strstr(h.error, SEG1 ": offset 2240: entry 5: "));
    /* what stands before the bad one can still be had */
    n = store_read(h.store, 3, 8, SIZE_MAX, 8, e, NULL);
    assert_int_equal(n, 2);
    while (n)
      raft_body_unref(e[--n].body);
    inode->cache[at] ^= 0x10;
  }
  harness_free(&h);
}

/* ---- only reading ------------------------------------------------------- */

/* The last entry that store_inspect() finds on a copy of the disk, all before it
   whole; nothing is changed. words: of the damage; "": none. */
static raft_index inspect(struct disk *disk, raft_index checkpoint,
                          char words[256])
{
  struct harness h;
  struct disk *copy = disk_clone(disk, 1);
  struct store_checkpoint c = {.index = checkpoint, .term = checkpoint ? 5 : 0};
  struct store_options options = {
      .dir = DIR_, .io = &copy->io, .cluster = CLUSTER, .node = NODE};
  struct store_stats stats;
  char *damage = NULL;
  raft_index last;

  harness_init(&h, 1);
  disk_free(h.disk);
  h.disk = copy;
  h.io = &copy->io;
  assert_int_equal(
      store_inspect(&options, &c, &h.store, &h.recovered, &damage, &h.error),
      0);
  last = h.recovered.last_index;
  (void)snprintf(words, 256, "%s", damage ? damage : "");
  free(damage);
  if (last > checkpoint) {
    assert_int_equal(h.recovered.term, 5);
    harness_expect(&h, checkpoint + 1, last, 5, 0, 376);
  }
  assert_int_equal(store_read(h.store, last + 1, last + 1, 1, 1, NULL, NULL),
                   -ENOENT);
  store_stats(h.store, &stats);
  assert_int_equal(stats.last, last);
  harness_close(&h);
  assert_true(disk_same(disk, copy));
  harness_free(&h);
  return last;
}

/* Damage at each place of a segment of entries from `first` on. */
static void inspect_flips(struct disk *disk, const char *name, raft_index first,
                          raft_index n, uint64_t step)
{
  struct inode *inode = file(disk, name);
  char words[256];
  uint64_t at;

  for (at = 0; at < 512 + n * RECORD; at += step) {
    raft_index before = at < 512 ? first - 1 : first - 1 + (at - 512) / RECORD;

    inode->cache[at] ^= 0x40;
    assert_int_equal(inspect(disk, 0, words), before);
    if (!strstr(words, name) || !strstr(words, "offset")) fail_msg("%s", words);
    inode->cache[at] ^= 0x40;
  }
}

static void a_damaged_log_is_read_up_to_there(void **state)
{
  struct disk *disk = clean_log();
  char words[256];

  (void)state;
  assert_int_equal(inspect(disk, 0, words), 20);
  assert_string_equal(words, "");
  assert_int_equal(inspect(disk, 12, words), 20);
  assert_string_equal(words, "");
  inspect_flips(disk, SEG1, 1, 8, 7);
  inspect_flips(disk, SEG2, 9, 8, 7);
  inspect_flips(disk, SEG3, 17, 4, 5);
  /* before the checkpoint: the rest follows it all the same, or nothing does */
  file(disk, SEG1)->cache[100] ^= 1;
  assert_int_equal(inspect(disk, 8, words), 20);
  assert_non_null(strstr(words, SEG1 ": offset 0"));
  assert_int_equal(inspect(disk, 7, words), 7);
  disk_free(disk);
}

/* It had been cut back to entry 18: what the older segment holds behind that is
   not to be believed when the newer one cannot be read. */
static void what_was_superseded_stays_so(void **state)
{
  struct disk *disk;
  struct harness h;
  char words[256], name[32] = "0000000000000013.seg";

  (void)state;
  harness_init(&h, 1);
  harness_open(&h);
  harness_vote(&h, 5, 4);
  harness_append(&h, 20, 376);
  assert_int_equal(harness_submit(&h, false, 19, 1, 376), 0);
  assert_int_equal(harness_wait(&h, h.seq), 0);
  harness_close(&h);
  disk = disk_clone(h.disk, 1);
  harness_free(&h);
  assert_int_equal(inspect(disk, 0, words), 19);
  assert_string_equal(words, "");
  file(disk, name)->cache[20] ^= 1;
  assert_int_equal(inspect(disk, 0, words), 18);
  assert_non_null(strstr(words, name));
  disk_free(disk);
}

/* Its last segment, too, may have gone: that is as if it had never been. */
static void a_log_that_was_never_opened_is_empty(void **state)
{
  struct disk *disk = disk_new(1);
  char words[256];

  (void)state;
  assert_int_equal(inspect(disk, 0, words), 0);
  assert_string_equal(words, "");
  assert_int_equal(inspect(disk, 9, words), 9);
  assert_string_equal(words, "");
  disk_free(disk);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_flipped_bit_is_never_accepted),
      cmocka_unit_test(a_vote_that_is_gone_is_refused),
      cmocka_unit_test(a_damaged_copy_of_a_vote_does_not_stay),
      cmocka_unit_test(an_old_vote_is_refused),
      cmocka_unit_test(segments_that_are_missing_or_misplaced),
      cmocka_unit_test(a_segment_of_another_history),
      cmocka_unit_test(a_log_at_rest_is_marked),
      cmocka_unit_test(torn_at_every_byte),
      cmocka_unit_test(every_subset_of_sectors),
      cmocka_unit_test(a_hole_below_the_mark_is_damage),
      cmocka_unit_test(a_damaged_checkpoint_is_refused),
      cmocka_unit_test(reading_back_checks),
      cmocka_unit_test(a_damaged_log_is_read_up_to_there),
      cmocka_unit_test(what_was_superseded_stays_so),
      cmocka_unit_test(a_log_that_was_never_opened_is_empty),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
