/*
** harness.h: a store on a disk in memory, and a model of what it must hold.
*/
#ifndef TEST_HARNESS_H
#define TEST_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "disk.h"
#include "store.h"

#include <inttypes.h>
#include <signal.h>
#include <time.h>

#define DIR_ "/n"
#define CLUSTER 0xc1c1c1c1u
#define NODE 7u

struct harness {
  struct disk *disk;
  const struct io *io;
  const char *dir;
  uint64_t segment_bytes;
  bool stepped;
  struct store *store;
  struct store_checkpoint checkpoint;
  struct raft_recovered recovered;
  char *error; /* of the last open or read */
  uint64_t seq;
  raft_term term;    /* as submitted */
  raft_id voted_for; /* as submitted */
  raft_index last;   /* as submitted */
  uint64_t salt;     /* makes bodies differ */
  uint64_t random;   /* for the test's own choices, see harness_random() */
  /* from the log thread */
  pthread_mutex_t lock;
  pthread_cond_t news;
  uint64_t durable;
  int status;
  unsigned failures, reports;
  unsigned timed; /* syncs of the log */
  char failure[256];
  bool hold; /* the log thread waits inside done() while this is set */
};

static inline void harness_done(void *ctx, uint64_t seq, int status,
                                const char *error)
{
  struct harness *h = ctx;
  sigset_t blocked;

  /* the host's signals are none of the log thread's business */
  (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
  if (!h->stepped &&
      (!sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGUSR1)))
    abort();
  (void)pthread_mutex_lock(&h->lock);
  if (status) {
    h->failures++;
    h->status = status;
    (void)snprintf(h->failure, sizeof(h->failure), "%s", error);
  } else {
    /* nothing is acknowledged after a failure, and never backwards */
    if (h->status || seq <= h->durable) abort();
    h->durable = seq;
    h->reports++;
  }
  (void)pthread_cond_broadcast(&h->news);
  while (h->hold)
    (void)pthread_cond_wait(&h->news, &h->lock);
  (void)pthread_mutex_unlock(&h->lock);
}

/* On the log thread, before the report of what it was for. */
static inline void harness_synced(void *ctx, uint64_t ns)
{
  struct harness *h = ctx;

  (void)pthread_mutex_lock(&h->lock);
  if (ns < 60000000000u) h->timed++;
  (void)pthread_mutex_unlock(&h->lock);
}

static inline void harness_init(struct harness *h, uint64_t seed)
{
  memset(h, 0, sizeof(*h));
  h->disk = disk_new(seed);
  h->io = &h->disk->io;
  h->random = seed ^ 0x2545f4914f6cdd1du;
  h->dir = DIR_;
  h->segment_bytes = 4096;
  (void)pthread_mutex_init(&h->lock, NULL);
  (void)pthread_cond_init(&h->news, NULL);
}

static inline uint64_t harness_random(struct harness *h)
{
  h->random = h->random * 6364136223846793005u + 1442695040888963407u;
  return h->random >> 24;
}

static inline int harness_try_open(struct harness *h)
{
  struct store_options options = {.dir = h->dir,
                                  .io = h->io,
                                  .segment_bytes = h->segment_bytes,
                                  .cluster = CLUSTER,
                                  .node = NODE,
                                  .stepped = h->stepped,
                                  .done = harness_done,
                                  .synced = harness_synced,
                                  .ctx = h};
  int rc;

  free(h->error);
  h->error = NULL;
  h->durable = h->seq = 0;
  h->status = 0;
  h->failures = h->reports = 0;
  rc =
      store_open(&options, &h->checkpoint, &h->store, &h->recovered, &h->error);
  if (!rc) {
    h->last = h->recovered.last_index;
    h->term = h->recovered.term;
    h->voted_for = h->recovered.voted_for;
  }
  return rc;
}

static inline void harness_open(struct harness *h)
{
  int rc = harness_try_open(h);

  if (rc) print_error("store_open: %d %s\n", rc, h->error ? h->error : "");
  assert_int_equal(rc, 0);
}

static inline void harness_close(struct harness *h)
{
  store_close(h->store);
  h->store = NULL;
}

static inline void harness_reopen(struct harness *h)
{
  harness_close(h);
  harness_open(h);
}

static inline void harness_free(struct harness *h)
{
  harness_close(h);
  store_checkpoint_clear(&h->checkpoint);
  disk_free(h->disk);
  free(h->error);
  (void)pthread_cond_destroy(&h->news);
  (void)pthread_mutex_destroy(&h->lock);
}

/* Waits until seq is durable, or the store has failed. */
static inline int harness_wait(struct harness *h, uint64_t seq)
{
  int status;

  (void)pthread_mutex_lock(&h->lock);
  while (h->durable < seq && !h->status)
    (void)pthread_cond_wait(&h->news, &h->lock);
  status = h->durable < seq ? h->status : 0;
  (void)pthread_mutex_unlock(&h->lock);
  return status;
}

static inline void harness_hold(struct harness *h, bool hold)
{
  (void)pthread_mutex_lock(&h->lock);
  h->hold = hold;
  (void)pthread_cond_broadcast(&h->news);
  (void)pthread_mutex_unlock(&h->lock);
}

/* The body that entry (index, term, salt) must have: NULL for length 0. */
static inline struct raft_body *make_body(raft_index index, raft_term term,
                                          uint64_t salt, size_t len)
{
  uint64_t x = index * 0x9e3779b97f4a7c15u ^ term * 0xff51afd7ed558ccdu ^ salt;
  struct raft_body *body;
  size_t i;

  if (!len) return NULL;
  body = raft_body_new(len);
  if (!body) abort();
  for (i = 0; i < len; i++) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    body->data[i] = (uint8_t)(x >> 56);
  }
  raft_body_seal(body);
  return body;
}

/* Submits n entries from first on, of the harness's term and salt. */
static inline int harness_submit(struct harness *h, bool vote, raft_index first,
                                 unsigned n, size_t len)
{
  struct raft_entry entries[512];
  struct raft_persist persist = {.seq = h->seq + 1,
                                 .vote = vote,
                                 .term = h->term,
                                 .voted_for = h->voted_for,
                                 .n_entries = n,
                                 .entries = entries};
  unsigned i;
  int rc;

  assert_true(n <= 512);
  for (i = 0; i < n; i++)
    entries[i] = (struct raft_entry){
        .index = first + i,
        .term = h->term,
        .type = len ? RAFT_COMMIT : RAFT_NOOP,
        .body = make_body(first + i, h->term, h->salt, len)};
  rc = store_submit(h->store, &persist);
  for (i = 0; i < n; i++)
    raft_body_unref(entries[i].body);
  if (rc) return rc;
  h->seq++;
  if (n) h->last = first + n - 1;
  return 0;
}

/* Submits behind the last entry and waits. */
static inline void harness_append(struct harness *h, unsigned n, size_t len)
{
  assert_int_equal(harness_submit(h, false, h->last + 1, n, len), 0);
  assert_int_equal(harness_wait(h, h->seq), 0);
}

static inline void harness_vote(struct harness *h, raft_term term, raft_id who)
{
  h->term = term;
  h->voted_for = who;
  assert_int_equal(harness_submit(h, true, 0, 0, 0), 0);
  assert_int_equal(harness_wait(h, h->seq), 0);
}

/* Entries first..last are there, of this term and salt and length. */
static inline void harness_expect(struct harness *h, raft_index first,
                                  raft_index last, raft_term term,
                                  uint64_t salt, size_t len)
{
  struct raft_entry e[64];
  raft_index index = first;
  int i, n;

  while (index <= last) {
    free(h->error);
    n = store_read(h->store, index, last, SIZE_MAX, 64, e, &h->error);
    if (n <= 0)
      print_error("store_read %" PRIu64 ": %d %s\n", index, n,
                  h->error ? h->error : "");
    assert_true(n > 0);
    for (i = 0; i < n; i++, index++) {
      struct raft_body *body = make_body(index, term, salt, len);

      assert_int_equal(e[i].index, index);
      assert_int_equal(e[i].term, term);
      assert_int_equal(e[i].type, len ? RAFT_COMMIT : RAFT_NOOP);
      assert_int_equal(!e[i].body, !body);
      if (body) {
        assert_int_equal(e[i].body->len, len);
        assert_memory_equal(e[i].body->data, body->data, len);
        assert_int_equal(e[i].body->checksum, body->checksum);
      }
      raft_body_unref(body);
      raft_body_unref(e[i].body);
    }
  }
}

/* Waits until the helper has filled and synced the next segment; if there is
   nothing to compact, it does nothing more until that is taken. */
static inline void harness_await_spare(struct harness *h)
{
  bool ready = false;

  while (!ready) {
    unsigned i;

    (void)nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    (void)pthread_mutex_lock(&h->disk->lock);
    for (i = 0; i < h->disk->n_names; i++)
      ready |= strstr(h->disk->names[i].path, ".spare") &&
               h->disk->names[i].inode->durable_size == h->segment_bytes;
    (void)pthread_mutex_unlock(&h->disk->lock);
  }
}

/* Compaction is asynchronous: waits until the log begins at or after first. */
static inline void harness_compact(struct harness *h, raft_index upto,
                                   raft_index first)
{
  struct timespec t = {.tv_nsec = 1000000};
  struct store_stats stats;
  unsigned i;

  store_compact(h->store, upto);
  for (i = 0; i < 5000; i++) {
    store_stats(h->store, &stats);
    if (stats.first >= first) return;
    (void)nanosleep(&t, NULL);
  }
  fail_msg("not compacted: begins at %" PRIu64, stats.first);
}

#endif
