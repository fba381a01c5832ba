/*
** crash.h: a store over a simulated disk, and a list of what was asked of it.
**
** The list: entries (each cuts the log at its index and then appends), resets.
** After an accident the log must be what some beginning of the list makes of
** it, and that beginning must reach what was reported durable; the vote must
** be one that was submitted, none older than the newest that was reported.
*/
#ifndef TEST_CRASH_H
#define TEST_CRASH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "disk.h"
#include "store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CRASH_DIR "/1"
#define CRASH_OPS 4096
#define CRASH_LOG 4096

struct crash_op {
  bool reset;
  raft_index index;
  raft_term term;
  uint64_t checksum;
};

struct crash_vote {
  uint64_t seq;
  raft_term term;
  raft_id voted_for;
};

struct crash {
  struct sim_disk *disk;
  const struct io *io;
  struct store *store;
  struct store_checkpoint checkpoint;
  struct raft_recovered recovered;
  uint64_t random;
  /* as submitted */
  uint64_t seq;
  raft_term term;
  raft_id voted_for;
  raft_index last;
  /* as reported */
  uint64_t durable;
  int status;
  unsigned reports;
  /* the list, since the log was last looked at */
  struct crash_op ops[CRASH_OPS];
  unsigned n_ops, sure;       /* sure: these are durable */
  unsigned ops_at[CRASH_OPS]; /* by sequence number */
  bool writes_log[CRASH_OPS]; /* by sequence number */
  struct crash_vote votes[CRASH_OPS];
  unsigned n_votes;
  raft_index compacted; /* what is above must be there */
  bool damaged;         /* it may be refused */
};

struct crash_log {
  raft_index base;
  unsigned n;
  raft_term terms[CRASH_LOG];
  uint64_t checksums[CRASH_LOG];
};

static inline uint64_t crash_random(struct crash *c)
{
  c->random = c->random * 6364136223846793005u + 1442695040888963407u;
  return c->random >> 24;
}

static inline unsigned crash_pick(struct crash *c, unsigned n)
{
  return (unsigned)(crash_random(c) % n);
}

/* What is reported durable is on the platter. */
static inline void crash_done(void *ctx, uint64_t seq, int status,
                              const char *error)
{
  struct crash *c = ctx;
  bool wrote = false;

  (void)error;
  if (status) {
    assert_int_equal(c->status, 0);
    c->status = status;
    return;
  }
  assert_int_equal(c->status, 0);
  assert_true(seq > c->durable && seq <= c->seq);
  while (c->durable < seq)
    wrote |= c->writes_log[++c->durable];
  c->reports++;
  if (sim_disk_dead(c->disk)) fail_msg("durable on a dead disk");
  if (!sim_disk_clean(c->disk, "/vote")) fail_msg("the vote is not durable");
  if (wrote && !sim_disk_clean(c->disk, ".seg"))
    fail_msg("the log is not durable");
}

static inline void crash_init(struct crash *c, uint64_t seed)
{
  memset(c, 0, sizeof(*c));
  c->disk = sim_disk_new(seed);
  c->io = sim_disk_io(c->disk);
  c->random = seed ^ 0x2545f4914f6cdd1du;
  c->ops[0] = (struct crash_op){.reset = true};
  c->n_ops = c->sure = 1;
  c->n_votes = 1;
}

static inline int crash_try_open(struct crash *c)
{
  struct store_options options = {.dir = CRASH_DIR,
                                  .io = c->io,
                                  .segment_bytes = 4096,
                                  .cluster = 0xc1c1,
                                  .node = 1,
                                  .stepped = true,
                                  .done = crash_done,
                                  .ctx = c};
  char *error = NULL;
  int rc;

  c->seq = c->durable = 0;
  c->status = 0;
  store_checkpoint_clear(&c->checkpoint);
  rc = store_checkpoint_read(c->io, CRASH_DIR, &c->checkpoint, &error);
  if (rc == -ENOENT) {
    free(error);
    error = NULL;
    rc = 0;
  }
  if (!rc)
    rc = store_open(&options, &c->checkpoint, &c->store, &c->recovered, &error);
  if (rc && rc != -EIO && rc != -ENOSPC && !(c->damaged && rc == -EBADMSG))
    fail_msg("open: %d %s", rc, error ? error : "");
  free(error);
  if (rc) return rc;
  c->last = c->recovered.last_index;
  c->term = c->recovered.term;
  c->voted_for = c->recovered.voted_for;
  return 0;
}

static inline void crash_free(struct crash *c)
{
  store_close(c->store);
  store_checkpoint_clear(&c->checkpoint);
  sim_disk_free(c->disk);
}

/* ---- asking ------------------------------------------------------------- */

/* Mostly small, some larger than a segment. */
static inline struct raft_body *crash_body(uint64_t salt)
{
  size_t i, len = salt % 400;
  struct raft_body *body;

  if (salt % 5 == 0) return NULL;
  if (salt % 67 == 0) len = 9000;
  if (salt % 11 == 0) len = 2500;
  body = raft_body_new(len);
  if (!body) abort();
  for (i = 0; i < len; i++) {
    salt = salt * 6364136223846793005u + 1442695040888963407u;
    body->data[i] = (uint8_t)(salt >> 56);
  }
  raft_body_seal(body);
  return body;
}

static inline int crash_submit(struct crash *c, bool vote, raft_index first,
                               unsigned n)
{
  struct raft_entry entries[16];
  struct raft_persist p = {.seq = ++c->seq,
                           .vote = vote,
                           .term = c->term,
                           .voted_for = c->voted_for,
                           .n_entries = n,
                           .entries = entries};
  unsigned i;
  int rc;

  for (i = 0; i < n; i++) {
    struct raft_body *body = crash_body(crash_random(c));

    entries[i] = (struct raft_entry){.index = first + i,
                                     .term = c->term,
                                     .type = RAFT_SETTING,
                                     .body = body};
    c->ops[c->n_ops++] =
        (struct crash_op){.index = first + i,
                          .term = c->term,
                          .checksum = body ? body->checksum : 0};
  }
  if (vote)
    c->votes[c->n_votes++] = (struct crash_vote){p.seq, p.term, p.voted_for};
  c->ops_at[p.seq] = c->n_ops;
  c->writes_log[p.seq] = n;
  rc = store_submit(c->store, &p);
  for (i = 0; i < n; i++)
    raft_body_unref(entries[i].body);
  if (n) c->last = first + n - 1;
  return rc;
}

static inline int crash_run(struct crash *c)
{
  while (store_run(c->store))
    ;
  return c->status;
}

static inline int crash_reset(struct crash *c, raft_index index)
{
  struct store_checkpoint s = {
      .index = index, .term = c->term, .from_snapshot = true};
  int rc;

  c->ops[c->n_ops++] =
      (struct crash_op){.reset = true, .index = index, .term = c->term};
  c->last = index;
  rc = store_checkpoint_write(c->io, CRASH_DIR, &s, NULL);
  if (!rc) rc = store_reset(c->store, index, c->term);
  if (!rc) c->sure = c->n_ops;
  if (c->compacted < index) c->compacted = index;
  return rc;
}

/* A checkpoint at some durable entry; segments below it may go. */
static inline void crash_compact(struct crash *c)
{
  struct store_checkpoint s = {.floor = 0};
  struct store_stats stats;
  struct raft_entry e;

  if (crash_run(c)) return;
  store_stats(c->store, &stats);
  if (stats.last < stats.first) return;
  s.index =
      stats.first + crash_pick(c, (unsigned)(stats.last - stats.first + 1));
  if (s.index < c->compacted ||
      store_read(c->store, s.index, s.index, SIZE_MAX, 1, &e, NULL) != 1)
    return;
  s.term = e.term;
  raft_body_unref(e.body);
  c->compacted = s.index;
  if (!store_checkpoint_write(c->io, CRASH_DIR, &s, NULL))
    store_compact(c->store, s.index);
}

/* ---- looking ------------------------------------------------------------ */

static inline void crash_apply(struct crash_log *log, const struct crash_op *op)
{
  if (op->reset) {
    log->base = op->index;
    log->n = 0;
    return;
  }
  if (op->index <= log->base || op->index > log->base + log->n + 1 ||
      log->n == CRASH_LOG)
    abort();
  log->n = (unsigned)(op->index - log->base);
  log->terms[log->n - 1] = op->term;
  log->checksums[log->n - 1] = op->checksum;
}

static inline bool crash_matches(const struct crash_log *log,
                                 const struct raft_recovered *r,
                                 const struct crash_op *found)
{
  raft_index i;

  if (log->base + log->n != r->last_index || r->snapshot_index < log->base)
    return false;
  for (i = r->snapshot_index + 1; i <= r->last_index; i++) {
    const struct crash_op *f = &found[i - r->snapshot_index - 1];

    if (log->terms[i - log->base - 1] != f->term ||
        log->checksums[i - log->base - 1] != f->checksum)
      return false;
  }
  return true;
}

static inline unsigned crash_read(struct crash *c, struct crash_op *found)
{
  raft_index index = c->recovered.snapshot_index + 1;
  struct raft_entry e[64];
  unsigned n = 0;

  while (index <= c->recovered.last_index) {
    char *error = NULL;
    int i, got;

    got = store_read(c->store, index, UINT64_MAX, SIZE_MAX, 64, e, &error);
    if (got <= 0) fail_msg("read %" PRIu64 ": %d %s", index, got, error);
    for (i = 0; i < got; i++) {
      assert_int_equal(e[i].index, index + (unsigned)i);
      if (e[i].body && !raft_body_intact(e[i].body))
        fail_msg("entry %" PRIu64 " is damaged", e[i].index);
      found[n++] =
          (struct crash_op){.index = e[i].index,
                            .term = e[i].term,
                            .checksum = e[i].body ? e[i].body->checksum : 0};
      raft_body_unref(e[i].body);
    }
    index += (unsigned)got;
  }
  return n;
}

static inline void crash_check_vote(const struct crash *c, uint64_t durable)
{
  const struct raft_recovered *r = &c->recovered;
  unsigned i, must = 0;

  for (i = 0; i < c->n_votes; i++)
    if (c->votes[i].seq <= durable) must = i;
  for (i = must; i < c->n_votes; i++)
    if (c->votes[i].term == r->term && c->votes[i].voted_for == r->voted_for)
      return;
  if (r->term != c->checkpoint.term || r->voted_for)
    fail_msg("vote %" PRIu64 " for %" PRIu64 " is not one that may be there",
             r->term, r->voted_for);
}

/* After a good open; `durable`: what the process before has reported. The list
   begins anew with what was found. */
static inline void crash_check(struct crash *c, uint64_t durable)
{
  static struct crash_log log;
  static struct crash_op found[CRASH_LOG];
  const struct raft_recovered *r = &c->recovered;
  unsigned i, n = crash_read(c, found), must = c->sure;
  bool good = false;

  if (durable && c->ops_at[durable] > must) must = c->ops_at[durable];
  log.base = log.n = 0;
  for (i = 0; i <= c->n_ops && !good; i++) {
    if (i) crash_apply(&log, &c->ops[i - 1]);
    good = i >= must && crash_matches(&log, r, found);
  }
  if (!good)
    fail_msg("the log %" PRIu64 "..%" PRIu64 " is none that was ever asked for "
             "after operation %u of %u",
             r->snapshot_index + 1, r->last_index, must, c->n_ops);
  assert_true(r->snapshot_index <= c->compacted);
  crash_check_vote(c, durable);
  if (n) assert_true(r->term >= found[n - 1].term);

  c->ops[0] = (struct crash_op){
      .reset = true, .index = r->snapshot_index, .term = r->snapshot_term};
  memcpy(c->ops + 1, found, n * sizeof(found[0]));
  c->n_ops = c->sure = n + 1;
  c->votes[0] = (struct crash_vote){0, r->term, r->voted_for};
  c->n_votes = 1;
}

#endif
