/*
** The simulated disk itself: what it keeps, what it may lose, what it never
** loses, and how it fails.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR SIM_DISK_SECTOR
#define SEG "/1/log/0000000000000001.seg"

static struct sim_disk *disk;
static const struct io *io;

static void begin(uint64_t seed)
{
  disk = sim_disk_new(seed);
  io = sim_disk_io(disk);
}

static int put(int fd, uint8_t byte, size_t n, uint64_t offset)
{
  uint8_t buf[8 * SECTOR];

  memset(buf, byte, n);
  return io->pwrite(io->ctx, fd, buf, n, offset);
}

/* A file of n sectors of this byte, all of it durable. */
static int durable_file(const char *path, uint8_t byte, size_t n)
{
  int fd = io->open(io->ctx, path, O_RDWR | O_CREAT);

  assert_true(fd >= 0);
  assert_int_equal(put(fd, byte, n * SECTOR, 0), 0);
  assert_int_equal(io->sync(io->ctx, fd), 0);
  assert_int_equal(io->sync_dir(io->ctx, "/1/log"), 0);
  return fd;
}

/* The whole file; its size, or what open() said. */
static int64_t get(const char *path, uint8_t *buf, size_t n)
{
  int fd = io->open(io->ctx, path, O_RDONLY);
  uint64_t size;

  if (fd < 0) return fd;
  assert_int_equal(io->size(io->ctx, fd, &size), 0);
  assert_int_equal(io->pread(io->ctx, fd, buf, n, 0), size < n ? size : n);
  io->close(io->ctx, fd);
  return (int64_t)size;
}

static size_t count(const uint8_t *buf, size_t n, uint8_t byte)
{
  size_t i, found = 0;

  for (i = 0; i < n; i++)
    found += buf[i] == byte;
  return found;
}

static void bytes_come_back(void **state)
{
  struct iovec iov[2] = {{(char[]){"abc"}, 3}, {(char[]){"defg"}, 4}};
  uint8_t buf[2048];
  uint64_t size;
  int fd;

  (void)state;
  begin(1);
  assert_int_equal(io->open(io->ctx, SEG, O_RDWR), -ENOENT);
  fd = io->open(io->ctx, SEG, O_RDWR | O_CREAT);
  assert_int_equal(io->pwritev(io->ctx, fd, iov, 2, 600), 0);
  assert_int_equal(io->pread(io->ctx, fd, buf, sizeof(buf), 598), 9);
  assert_memory_equal(buf, "\0\0abcdefg", 9);
  assert_int_equal(io->truncate(io->ctx, fd, 602), 0);
  assert_int_equal(io->truncate(io->ctx, fd, 700), 0);
  assert_int_equal(io->pread(io->ctx, fd, buf, 8, 600), 8);
  assert_memory_equal(buf, "ab\0\0\0\0\0\0", 8);
  assert_int_equal(io->rename(io->ctx, SEG, "/1/x"), 0);
  assert_int_equal(get(SEG, buf, 1), -ENOENT);
  assert_int_equal(get("/1/x", buf, 1), 700);
  assert_int_equal(io->open(io->ctx, "/1/x", O_RDWR | O_CREAT | O_EXCL),
                   -EEXIST);
  /* an unlinked file lives as long as somebody has it open */
  assert_int_equal(io->unlink(io->ctx, "/1/x"), 0);
  assert_int_equal(io->size(io->ctx, fd, &size), 0);
  assert_int_equal(size, 700);
  io->close(io->ctx, fd);
  assert_int_equal(io->size(io->ctx, fd, &size), -EBADF);
  /* a late close of a descriptor does no harm to who has its place now */
  assert_int_not_equal(durable_file(SEG, 1, 1), fd);
  io->close(io->ctx, fd);
  sim_disk_free(disk);
}

/* Over many crashes: each of eight sectors is seen old and new, one of them
   torn, never two; what was synced is always there. */
static void unsynced_sectors_are_lost_kept_or_torn(void **state)
{
  unsigned seed, i, torn, kept[8] = {0}, lost[8] = {0}, all_torn = 0, both = 0,
                          where = 0;
  uint8_t buf[9 * SECTOR];

  (void)state;
  for (seed = 0; seed < 400; seed++) {
    begin(seed);
    assert_int_equal(put(durable_file(SEG, 1, 8), 2, 8 * SECTOR, 0), 0);
    assert_false(sim_disk_clean(disk, ".seg"));
    sim_disk_crash(disk);
    assert_true(sim_disk_clean(disk, ""));
    assert_int_equal(get(SEG, buf, sizeof(buf)), 8 * SECTOR);
    for (i = torn = 0; i < 8; i++) {
      size_t ones = count(buf + i * SECTOR, SECTOR, 1);

      assert_int_equal(ones + count(buf + i * SECTOR, SECTOR, 2), SECTOR);
      kept[i] += !ones;
      lost[i] += ones == SECTOR;
      if (!ones || ones == SECTOR) continue;
      torn++;
      where |= 1u << i;
      both |= buf[i * SECTOR] == 1 ? 1u : 2u;
    }
    assert_true(torn <= 1);
    all_torn += torn;
    sim_disk_free(disk);
  }
  for (i = 0; i < 8; i++)
    assert_true(kept[i] > 50 && lost[i] > 50);
  assert_true(all_torn > 100);
  assert_int_equal(both, 3); /* at either end */
  assert_int_equal(where, 255);
}

/* Written twice between two syncs: the first may be what is found. */
static void a_sector_may_be_written_back_at_any_time(void **state)
{
  unsigned seed, seen = 0;
  uint8_t buf[SECTOR];

  (void)state;
  for (seed = 0; seed < 200; seed++) {
    int fd;

    begin(seed);
    fd = durable_file(SEG, 0, 1);
    assert_int_equal(put(fd, 1, SECTOR, 0), 0);
    assert_int_equal(put(fd, 2, SECTOR, 0), 0);
    sim_disk_crash(disk);
    assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
    seen |= 1u << buf[0];
    sim_disk_free(disk);
  }
  assert_int_equal(seen, 7);
}

static void a_size_that_was_not_synced_is_old_or_new(void **state)
{
  unsigned seed, seen[3] = {0};
  uint8_t buf[8 * SECTOR];

  (void)state;
  for (seed = 0; seed < 200; seed++) {
    int64_t size;
    int fd;

    begin(seed);
    fd = durable_file(SEG, 1, 2);
    if (seed % 2)
      assert_int_equal(put(fd, 2, SECTOR, 2 * SECTOR), 0);
    else
      assert_int_equal(io->truncate(io->ctx, fd, SECTOR), 0);
    assert_false(sim_disk_clean(disk, ".seg"));
    sim_disk_crash(disk);
    size = get(SEG, buf, sizeof(buf)) / SECTOR;
    assert_true(size == 2 || size == (seed % 2 ? 3 : 1));
    seen[size - 1]++;
    /* there is nothing behind the end of a file */
    fd = io->open(io->ctx, SEG, O_RDWR);
    assert_int_equal(io->truncate(io->ctx, fd, 4 * SECTOR), 0);
    (void)get(SEG, buf, sizeof(buf));
    assert_int_equal(count(buf + size * SECTOR, (size_t)(4 - size) * SECTOR, 0),
                     (size_t)(4 - size) * SECTOR);
    sim_disk_free(disk);
  }
  assert_true(seen[0] && seen[1] && seen[2]);
}

static void synced_is_durable(void **state)
{
  unsigned seed;
  uint8_t buf[SECTOR];

  (void)state;
  for (seed = 0; seed < 50; seed++) {
    begin(seed);
    (void)durable_file(SEG, 1, 1);
    (void)durable_file("/1/log/2.spare", 2, 1);
    assert_int_equal(io->rename(io->ctx, "/1/log/2.spare", SEG), 0);
    assert_false(sim_disk_clean(disk, ".seg"));
    assert_int_equal(io->sync_dir(io->ctx, "/1/log"), 0);
    assert_true(sim_disk_clean(disk, ""));
    sim_disk_crash(disk);
    assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
    assert_int_equal(buf[0], 2);
    assert_int_equal(get("/1/log/2.spare", buf, SECTOR), -ENOENT);
    assert_int_equal(io->unlink(io->ctx, SEG), 0);
    assert_int_equal(io->sync_dir(io->ctx, "/1/log"), 0);
    sim_disk_crash(disk);
    assert_int_equal(get(SEG, buf, SECTOR), -ENOENT);
    sim_disk_free(disk);
  }
}

/* Create, rename over another, unlink: each there or not. */
static void names_that_were_not_synced_may_be_lost(void **state)
{
  unsigned seed, seen[3][2] = {{0}};
  uint8_t buf[SECTOR];

  (void)state;
  for (seed = 0; seed < 100; seed++) {
    begin(seed);
    (void)durable_file(SEG, 1, 1);
    (void)durable_file("/1/log/2.spare", 2, 1);
    (void)durable_file("/1/log/gone", 3, 1);
    assert_int_equal(io->sync_dir(io->ctx, "/1"), 0); /* another one */
    assert_int_equal(io->rename(io->ctx, "/1/log/2.spare", SEG), 0);
    assert_int_equal(io->unlink(io->ctx, "/1/log/gone"), 0);
    (void)io->open(io->ctx, "/1/log/new", O_RDWR | O_CREAT);
    assert_int_equal(io->sync_dir(io->ctx, "/1"), 0);
    sim_disk_crash(disk);
    assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
    assert_true(buf[0] == 1 || buf[0] == 2);
    seen[0][buf[0] - 1]++;
    assert_int_equal(get("/1/log/2.spare", buf, SECTOR) > 0, buf[0] == 1);
    seen[1][get("/1/log/gone", buf, SECTOR) > 0]++;
    seen[2][get("/1/log/new", buf, SECTOR) == 0]++;
    sim_disk_free(disk);
  }
  assert_true(seen[0][0] && seen[0][1] && seen[1][0] && seen[1][1] &&
              seen[2][0] && seen[2][1]);
}

static void a_dead_process_leaves_its_cache(void **state)
{
  uint8_t buf[SECTOR];
  int fd;

  (void)state;
  begin(1);
  fd = io->open(io->ctx, SEG, O_RDWR | O_CREAT);
  assert_int_equal(put(fd, 1, SECTOR, 0), 0);
  sim_disk_kill(disk);
  assert_int_equal(put(fd, 2, SECTOR, 0), -EBADF);
  assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
  assert_int_equal(buf[0], 1);
  sim_disk_free(disk);
}

/* Clean in the cache, old on the platter, and a later sync is no help. */
static void a_failed_sync_is_not_made_good_by_another(void **state)
{
  struct sim_disk_faults faults = {.sync = 1000000};
  unsigned forgotten = 0, seed;
  uint8_t buf[SECTOR];
  int fd, again;

  (void)state;
  for (seed = 0; seed < 40; seed++) {
    begin(seed);
    fd = durable_file(SEG, 1, 1);
    assert_int_equal(put(fd, 2, SECTOR, 0), 0);
    sim_disk_set_faults(disk, &faults);
    assert_int_equal(io->sync(io->ctx, fd), -EIO);
    assert_int_equal(io->sync_dir(io->ctx, "/1/log"), -EIO);
    sim_disk_set_faults(disk, &(struct sim_disk_faults){0});
    assert_int_equal(io->sync(io->ctx, fd), 0);
    assert_false(sim_disk_clean(disk, ".seg"));
    assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
    assert_int_equal(buf[0], 2);
    /* who opens it now has been told */
    assert_true(sim_disk_clean(disk, ".seg"));
    if (seed % 2) {
      sim_disk_kill(disk);
      (void)get(SEG, buf, SECTOR);
      forgotten += buf[0] == 1;
      sim_disk_crash(disk);
      (void)get(SEG, buf, SECTOR);
      assert_int_equal(buf[0], 1);
    } else {
      /* written again, it gets there */
      again = io->open(io->ctx, SEG, O_RDWR);
      assert_int_equal(put(again, 2, SECTOR, 0), 0);
      assert_int_equal(io->sync(io->ctx, again), 0);
      sim_disk_crash(disk);
      (void)get(SEG, buf, SECTOR);
      assert_int_equal(buf[0], 2);
    }
    sim_disk_free(disk);
  }
  assert_true(forgotten > 2 && forgotten < 18);
}

static void it_dies_when_told(void **state)
{
  uint64_t hash, size;
  uint8_t buf[SECTOR];
  int fd;

  (void)state;
  begin(1);
  fd = durable_file(SEG, 1, 1);
  sim_disk_die_in(disk, 2);
  assert_int_equal(put(fd, 2, SECTOR, 0), 0);
  assert_int_equal(io->pread(io->ctx, fd, buf, SECTOR, 0), SECTOR);
  assert_int_equal(io->sync(io->ctx, fd), 0);
  assert_false(sim_disk_dead(disk));
  hash = sim_disk_hash(disk);
  assert_int_equal(put(fd, 3, SECTOR, 0), -EIO);
  assert_true(sim_disk_dead(disk));
  assert_int_equal(io->sync(io->ctx, fd), -EIO);
  assert_int_equal(io->truncate(io->ctx, fd, 0), -EIO);
  assert_int_equal(io->rename(io->ctx, SEG, "/1/x"), -EIO);
  assert_int_equal(io->unlink(io->ctx, SEG), -EIO);
  assert_int_equal(io->sync_dir(io->ctx, "/1/log"), -EIO);
  assert_int_equal(io->pread(io->ctx, fd, buf, SECTOR, 0), -EIO);
  assert_int_equal(io->size(io->ctx, fd, &size), -EIO);
  assert_int_equal(io->open(io->ctx, SEG, O_RDWR), -EIO);
  assert_int_equal(sim_disk_hash(disk), hash);
  sim_disk_crash(disk);
  assert_false(sim_disk_dead(disk));
  assert_int_equal(get(SEG, buf, SECTOR), SECTOR);
  assert_int_equal(buf[0], 2);
  assert_int_equal(sim_disk_hash(disk), hash);
  sim_disk_free(disk);
}

/* A write that fails has written some of its sectors; a full disk takes what
   needs no space. */
static void errors_and_a_full_disk(void **state)
{
  struct sim_disk_faults faults = {.write = 1000000};
  unsigned i, seen = 0;
  uint8_t buf[4 * SECTOR];
  int fd;

  (void)state;
  begin(1);
  fd = durable_file(SEG, 0, 4);
  sim_disk_set_faults(disk, &faults);
  for (i = 1; i < 60; i++) {
    size_t n;

    assert_int_equal(put(fd, (uint8_t)i, 3 * SECTOR, SECTOR / 2), -EIO);
    (void)get(SEG, buf, sizeof(buf));
    n = count(buf, sizeof(buf), (uint8_t)i);
    assert_int_equal(count(buf + SECTOR / 2, n, (uint8_t)i), n);
    assert_int_equal(n ? (n + SECTOR / 2) % SECTOR : 0, 0);
    seen |= 1u << (n + SECTOR - 1) / SECTOR;
  }
  assert_int_equal(seen, 15);
  assert_int_equal(io->rename(io->ctx, SEG, "/1/x"), -EIO);
  assert_int_equal(io->open(io->ctx, "/1/x", O_RDWR | O_CREAT), -EIO);
  faults = (struct sim_disk_faults){.full = true};
  sim_disk_set_faults(disk, &faults);
  assert_int_equal(io->open(io->ctx, "/1/x", O_RDWR | O_CREAT), -ENOSPC);
  assert_int_equal(put(fd, 1, 2, 4 * SECTOR - 1), -ENOSPC);
  assert_int_equal(io->truncate(io->ctx, fd, 4 * SECTOR + 1), -ENOSPC);
  assert_int_equal(put(fd, 1, 1, 4 * SECTOR - 1), 0);
  assert_int_equal(io->sync(io->ctx, fd), 0);
  assert_int_equal(io->rename(io->ctx, SEG, "/1/x"), 0);
  assert_int_equal(io->unlink(io->ctx, "/1/x"), 0);
  assert_int_equal(sim_disk_stats(disk)->full_faults, 3);
  assert_int_equal(sim_disk_stats(disk)->write_faults, 61);
  sim_disk_free(disk);
}

static void one_bit_rots(void **state)
{
  struct sim_disk_hit hit;
  uint8_t buf[4 * SECTOR];
  unsigned i, where = 0;
  uint64_t hash;
  int fd;

  (void)state;
  begin(1);
  assert_false(sim_disk_rot(disk, &hit));
  (void)durable_file("/1/vote", 1, 4);
  fd = durable_file(SEG, 0, 4);
  assert_false(sim_disk_rot(disk, &hit)); /* nothing but zeros */
  assert_int_equal(put(fd, 1, 3 * SECTOR, 0), 0);
  assert_int_equal(io->sync(io->ctx, fd), 0);
  assert_int_equal(put(fd, 1, SECTOR, 0), 0); /* not on the platter */
  for (i = 1; i < 40; i++) {
    hash = sim_disk_hash(disk);
    assert_true(sim_disk_rot(disk, &hit));
    assert_string_equal(hit.path, SEG);
    (void)get(SEG, buf, sizeof(buf));
    where |= 1u << hit.offset / SECTOR;
    assert_int_equal(__builtin_popcount(buf[hit.offset] ^ 1u), 1);
    assert_int_not_equal(sim_disk_hash(disk), hash);
    assert_int_equal(put(fd, 1, 2 * SECTOR, SECTOR), 0);
    assert_int_equal(io->sync(io->ctx, fd), 0);
    assert_int_equal(put(fd, 1, SECTOR, 0), 0);
    assert_int_equal(sim_disk_stats(disk)->rotted, i);
  }
  assert_int_equal(where, 6);
  sim_disk_free(disk);
}

/* The sector as it would have been is found elsewhere, and old where it should
   be; whether or not power is lost. */
static void a_write_goes_astray(void **state)
{
  struct sim_disk_hit hit;
  uint8_t buf[4 * SECTOR], want[4 * SECTOR];
  unsigned seed, where = 0;
  int fd, other;

  (void)state;
  for (seed = 0; seed < 40; seed++) {
    begin(seed);
    assert_false(sim_disk_misdirect(disk, &hit));
    other = durable_file("/1/vote", 1, 1);
    fd = durable_file(SEG, 1, 4);
    if (seed % 4 == 3) /* on the platter or not, it is written over */
      assert_int_equal(put(fd, 1, 4 * SECTOR, 0), 0);
    assert_true(sim_disk_misdirect(disk, &hit));
    assert_string_equal(hit.path, SEG);
    assert_int_equal(hit.offset % SECTOR, 0);
    where |= 1u << hit.offset / SECTOR;
    assert_int_equal(put(other, 2, SECTOR, 0), 0);
    assert_int_equal(put(fd, 2, SECTOR, SECTOR + 8), 0);
    if (seed % 4 != 3) assert_int_equal(io->sync(io->ctx, fd), 0);
    assert_int_equal(sim_disk_clean(disk, ".seg"), seed % 4 != 3);
    memset(want, 1, sizeof(want));
    memset(want + hit.offset + 8, 2,
           hit.offset == 3 * SECTOR ? SECTOR - 8 : SECTOR);
    if (seed % 2) sim_disk_crash(disk);
    (void)get(SEG, buf, sizeof(buf));
    assert_memory_equal(buf, want, sizeof(buf));
    assert_int_equal(sim_disk_stats(disk)->misdirected, 1);
    fd = io->open(io->ctx, SEG, O_RDWR);
    assert_int_equal(put(fd, 3, SECTOR, 0), 0); /* only once */
    (void)get(SEG, buf, sizeof(buf));
    assert_int_equal(buf[0], 3);
    sim_disk_free(disk);
  }
  assert_int_equal(where, 15);
}

static void what_is_excused_does_not_count(void **state)
{
  int fd;

  (void)state;
  begin(1);
  fd = durable_file(SEG, 1, 4);
  assert_true(sim_disk_clean(disk, ""));
  assert_int_equal(io->truncate(io->ctx, fd, 5 * SECTOR), 0);
  assert_false(sim_disk_clean(disk, ".seg"));
  assert_int_equal(io->sync(io->ctx, fd), 0);
  assert_int_equal(put(fd, 2, 8, 0), 0);
  assert_true(sim_disk_clean(disk, "vote"));
  sim_disk_excuse(disk);
  assert_true(sim_disk_clean(disk, ".seg"));
  assert_int_equal(put(fd, 2, 8, 2 * SECTOR), 0);
  assert_false(sim_disk_clean(disk, ".seg"));
  sim_disk_excuse(disk);
  assert_int_equal(put(fd, 3, 8, 8), 0);
  assert_false(sim_disk_clean(disk, ".seg"));
  sim_disk_free(disk);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bytes_come_back),
      cmocka_unit_test(unsynced_sectors_are_lost_kept_or_torn),
      cmocka_unit_test(a_sector_may_be_written_back_at_any_time),
      cmocka_unit_test(a_size_that_was_not_synced_is_old_or_new),
      cmocka_unit_test(synced_is_durable),
      cmocka_unit_test(names_that_were_not_synced_may_be_lost),
      cmocka_unit_test(a_dead_process_leaves_its_cache),
      cmocka_unit_test(a_failed_sync_is_not_made_good_by_another),
      cmocka_unit_test(it_dies_when_told),
      cmocka_unit_test(errors_and_a_full_disk),
      cmocka_unit_test(one_bit_rots),
      cmocka_unit_test(a_write_goes_astray),
      cmocka_unit_test(what_is_excused_does_not_count),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
