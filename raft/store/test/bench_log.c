/*
** bench_log.c: what the log adds to a bare write and sync.
**
**   make build/raft/store/test/bench_log && build/raft/store/test/bench_log
**       [dir] [rounds] [bytes]
**
** In turns of fifty: overwriting zero-filled space with pwrite and fdatasync
** (no log at all), and store_submit to done() with one entry, one at a time.
** A disk has moods; in turns they hit both alike. Prints percentiles in
** microseconds.
*/
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TURN 50

static uint64_t now_ns(void)
{
  struct timespec t;

  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return x < y ? -1 : x > y;
}

static uint64_t report(const char *what, uint64_t *ns, size_t n)
{
  qsort(ns, n, sizeof(*ns), by_size);
  printf("%-28s p50 %7.1f  p90 %7.1f  p99 %7.1f  (us, %zu times)\n", what,
         (double)ns[n / 2] / 1e3, (double)ns[n * 9 / 10] / 1e3,
         (double)ns[n * 99 / 100] / 1e3, n);
  return ns[n / 2];
}

static void die(const char *what, int rc)
{
  fprintf(stderr, "bench_log: %s: %s\n", what, strerror(-rc));
  exit(1);
}

struct waiting {
  sem_t sem;
  uint64_t reported; /* when, by the log thread's clock */
};

static void done(void *ctx, uint64_t seq, int status, const char *error)
{
  struct waiting *w = ctx;

  (void)seq;
  w->reported = now_ns();
  if (status) {
    fprintf(stderr, "bench_log: %s\n", error);
    exit(1);
  }
  (void)sem_post(&w->sem);
}

static void commit(struct store *store, struct waiting *w,
                   struct raft_body *body, raft_index index, uint64_t *to_done,
                   uint64_t *to_awake)
{
  struct raft_entry entry = {
      .index = index, .term = 1, .type = RAFT_COMMIT, .body = body};
  struct raft_persist persist = {.seq = index + 1,
                                 .vote = index == 1,
                                 .term = 1,
                                 .n_entries = 1,
                                 .entries = &entry};
  uint64_t start = now_ns();
  int rc = store_submit(store, &persist);

  if (rc) die("store_submit", rc);
  while (sem_wait(&w->sem))
    ;
  *to_done = w->reported - start;
  *to_awake = now_ns() - start;
}

static void bare(int fd, const uint8_t *buf, size_t n, uint64_t *offset,
                 uint64_t *took)
{
  uint64_t start = now_ns();
  int rc = io_posix.pwrite(NULL, fd, buf, n, *offset);

  if (!rc) rc = io_posix.sync(NULL, fd);
  if (rc) die("pwrite, fdatasync", rc);
  *took = now_ns() - start;
  *offset += n;
}

static int bare_file(const char *dir, size_t bytes)
{
  static uint8_t zeros[65536];
  char path[4200];
  size_t at;
  int fd, rc = 0;

  (void)snprintf(path, sizeof(path), "%s/bare", dir);
  fd = io_posix.open(NULL, path, O_RDWR | O_CREAT | O_TRUNC);
  if (fd < 0) die(path, fd);
  for (at = 0; !rc && at < bytes; at += sizeof(zeros))
    rc = io_posix.pwrite(NULL, fd, zeros, sizeof(zeros), at);
  if (!rc) rc = io_posix.sync(NULL, fd);
  if (rc) die(path, rc);
  return fd;
}

static struct store *open_store(const char *dir, struct waiting *w)
{
  static const struct store_checkpoint none;
  struct store_options options = {
      .dir = dir, .io = &io_posix, .cluster = 1, .node = 1};
  struct raft_recovered recovered;
  struct store *store;
  char *error;
  int rc;

  options.done = done;
  options.ctx = w;
  (void)sem_init(&w->sem, 0, 0);
  rc = store_open(&options, &none, &store, &recovered, &error);
  if (rc) {
    fprintf(stderr, "bench_log: %s\n", error);
    exit(1);
  }
  return store;
}

int main(int argc, char **argv)
{
  char dir[4096], command[4200];
  size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 4000;
  size_t bytes = argc > 3 ? strtoul(argv[3], NULL, 10) : 8192, i;
  uint64_t *plain = calloc(rounds, sizeof(*plain));
  uint64_t *to_done = calloc(rounds, sizeof(*to_done));
  uint64_t *to_awake = calloc(rounds, sizeof(*to_awake)), offset = 0, p50;
  struct raft_body *body = raft_body_new(bytes);
  struct waiting w;
  struct store *store;
  int fd;

  (void)snprintf(dir, sizeof(dir), "%s/quorate-bench-XXXXXX",
                 argc > 1 ? argv[1] : "/var/tmp");
  if (!plain || !to_done || !to_awake || !body || !mkdtemp(dir))
    die("cannot begin", -errno);
  memset(body->data, 0x5a, bytes);
  raft_body_seal(body);
  fd = bare_file(dir, rounds * bytes);
  store = open_store(dir, &w);
  for (i = 0, offset = 0; i < rounds; i += TURN) {
    size_t j, end = i + TURN < rounds ? i + TURN : rounds;

    for (j = i; j < end; j++)
      bare(fd, body->data, bytes, &offset, &plain[j]);
    for (j = i; j < end; j++)
      commit(store, &w, body, j + 1, &to_done[j], &to_awake[j]);
  }
  p50 = report("pwrite + fdatasync", plain, rounds);
  printf("%-28s p50 %+7.1f us\n", "submit to done, more",
         ((double)report("submit to done()", to_done, rounds) - (double)p50) /
             1e3);
  (void)report("submit to submitter awake", to_awake, rounds);
  store_close(store);
  raft_body_unref(body);
  (void)close(fd);
  (void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
  return system(command) != 0;
}
