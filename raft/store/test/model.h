/*
** model.h: what a store may hold after an accident.
**
** The model is the list of everything that was submitted: entries (each one
** truncates the log at its index and then appends), resets, votes. After an
** accident the log must be what some beginning of that list makes of it, and
** that beginning must include everything that was acknowledged.
*/
#ifndef TEST_MODEL_H
#define TEST_MODEL_H

#include "harness.h"

#define MODEL_OPS 8192
#define MODEL_LOG 8192

struct model_op {
  bool reset;
  raft_index index;
  raft_term term;
  uint64_t checksum;
};

struct model_vote {
  uint64_t seq;
  raft_term term;
  raft_id voted_for;
};

struct model {
  struct model_op ops[MODEL_OPS];
  unsigned n_ops;
  unsigned ops_at[MODEL_OPS]; /* by sequence number: ops up to it */
  unsigned sure;              /* ops that are durable whatever `durable` says */
  struct model_vote votes[MODEL_OPS];
  unsigned n_votes;
  raft_index compacted; /* entries above this must be there */
};

struct model_log {
  raft_index base;
  raft_term base_term;
  unsigned n;
  raft_term terms[MODEL_LOG];
  uint64_t checksums[MODEL_LOG];
};

/* The length of a body follows from its salt: mostly small, some larger than
   a segment. */
static inline size_t model_len(uint64_t salt)
{
  if (salt % 5 == 0) return 0;
  if (salt % 67 == 0) return 9000;
  return salt % 11 == 0 ? 2500 : (size_t)(salt % 400);
}

static inline void model_apply(struct model_log *log, const struct model_op *op)
{
  if (op->reset) {
    log->base = op->index;
    log->base_term = op->term;
    log->n = 0;
    return;
  }
  if (op->index <= log->base || op->index > log->base + log->n + 1 ||
      log->n == MODEL_LOG)
    abort();
  log->n = (unsigned)(op->index - log->base);
  log->terms[log->n - 1] = op->term;
  log->checksums[log->n - 1] = op->checksum;
}

/* Submits n entries from first on with bodies of their own; noted in the model
   whether taken or not (then the store has failed). */
static inline int model_submit(struct model *m, struct harness *h, bool vote,
                               raft_index first, unsigned n)
{
  struct raft_entry entries[16];
  struct raft_persist p = {.seq = h->seq + 1,
                           .vote = vote,
                           .term = h->term,
                           .voted_for = h->voted_for,
                           .n_entries = n,
                           .entries = entries};
  unsigned i;
  int rc;

  for (i = 0; i < n; i++) {
    uint64_t salt = harness_random(h);

    entries[i] = (struct raft_entry){
        .index = first + i, .term = h->term, .type = RAFT_SETTING};
    entries[i].body = make_body(first + i, h->term, salt, model_len(salt));
    m->ops[m->n_ops++] = (struct model_op){
        .index = first + i,
        .term = h->term,
        .checksum = entries[i].body ? entries[i].body->checksum : 0};
  }
  if (vote)
    m->votes[m->n_votes++] = (struct model_vote){p.seq, p.term, p.voted_for};
  m->ops_at[p.seq] = m->n_ops;
  rc = store_submit(h->store, &p);
  for (i = 0; i < n; i++)
    raft_body_unref(entries[i].body);
  h->seq++;
  if (n) h->last = first + n - 1;
  return rc;
}

static inline int model_reset(struct model *m, struct harness *h,
                              raft_index index, raft_term term)
{
  struct store_checkpoint c = {
      .index = index, .term = term, .from_snapshot = true};
  int rc;

  m->ops[m->n_ops++] =
      (struct model_op){.reset = true, .index = index, .term = term};
  h->last = index;
  rc = store_checkpoint_write(h->io, h->dir, &c, NULL);
  if (!rc) rc = store_reset(h->store, index, term);
  if (!rc) m->sure = m->n_ops;
  if (m->compacted < index) m->compacted = index;
  return rc;
}

static inline bool model_matches(const struct model_log *log,
                                 const struct raft_recovered *r,
                                 const struct model_op *found)
{
  raft_index i;

  if (log->base + log->n != r->last_index) return false;
  if (r->snapshot_index < log->base) return false;
  for (i = r->snapshot_index + 1; i <= r->last_index; i++) {
    const struct model_op *f = &found[i - r->snapshot_index - 1];

    if (log->terms[i - log->base - 1] != f->term ||
        log->checksums[i - log->base - 1] != f->checksum)
      return false;
  }
  return true;
}

static inline unsigned model_read(struct harness *h, struct model_op *found)
{
  raft_index index = h->recovered.snapshot_index + 1;
  struct raft_entry e[64];
  unsigned n = 0;

  while (index <= h->recovered.last_index) {
    char *error = NULL;
    int i,
        got = store_read(h->store, index, UINT64_MAX, SIZE_MAX, 64, e, &error);

    if (got <= 0) fail_msg("read %" PRIu64 ": %d %s", index, got, error);
    for (i = 0; i < got; i++) {
      assert_int_equal(e[i].index, index + (unsigned)i);
      found[n++] =
          (struct model_op){.index = e[i].index,
                            .term = e[i].term,
                            .checksum = e[i].body ? e[i].body->checksum : 0};
      raft_body_unref(e[i].body);
    }
    index += (unsigned)got;
  }
  return n;
}

static inline void model_check_terms(const struct raft_recovered *r,
                                     const struct model_op *found, unsigned n)
{
  size_t run = 0;
  unsigned i;

  for (i = 0; i < n; i++) {
    if (i && found[i].term == found[i - 1].term) continue;
    assert_true(run < r->n_terms);
    assert_int_equal(r->terms[run].first, found[i].index);
    assert_int_equal(r->terms[run].term, found[i].term);
    run++;
  }
  assert_int_equal(run, r->n_terms);
}

/* After an accident and a good open; `durable`: the newest sequence number that
   was reported. Then the model begins anew with what was found. */
static inline void model_check(struct model *m, struct harness *h,
                               uint64_t durable)
{
  static struct model_log log;
  static struct model_op found[MODEL_LOG];
  const struct raft_recovered *r = &h->recovered;
  unsigned i, n = model_read(h, found), must = m->sure;
  unsigned vote_must = 0;
  bool good = false;

  if (durable && m->ops_at[durable] > must) must = m->ops_at[durable];
  memset(&log, 0, sizeof(log));
  for (i = 0; i <= m->n_ops && !good; i++) {
    if (i) model_apply(&log, &m->ops[i - 1]);
    good = i >= must && model_matches(&log, r, found);
  }
  if (!good)
    fail_msg("the log %" PRIu64 "..%" PRIu64 " is none that was ever submitted "
             "after operation %u of %u",
             r->snapshot_index + 1, r->last_index, must, m->n_ops);
  assert_true(r->snapshot_index <= m->compacted);
  model_check_terms(r, found, n);

  for (i = 0; i < m->n_votes; i++)
    if (m->votes[i].seq <= durable) vote_must = i;
  for (i = vote_must; i < m->n_votes; i++)
    if (m->votes[i].term == r->term && m->votes[i].voted_for == r->voted_for)
      break;
  if (i == m->n_votes && !(r->term == h->checkpoint.term && !r->voted_for))
    fail_msg("vote %" PRIu64 " for %" PRIu64 " is not one that may be there",
             r->term, r->voted_for);
  if (n) assert_true(r->term >= found[n - 1].term);

  m->ops[0] = (struct model_op){
      .reset = true, .index = r->snapshot_index, .term = r->snapshot_term};
  memcpy(m->ops + 1, found, n * sizeof(found[0]));
  m->n_ops = m->sure = n + 1;
  m->votes[0] = (struct model_vote){0, r->term, r->voted_for};
  m->n_votes = 1;
  if (m->compacted < r->snapshot_index) m->compacted = r->snapshot_index;
}

/* Reads the checkpoint from the disk, as a node does before store_open. */
static inline void model_load_checkpoint(struct harness *h)
{
  int rc;

  store_checkpoint_clear(&h->checkpoint);
  rc = store_checkpoint_read(h->io, h->dir, &h->checkpoint, NULL);
  if (rc != -ENOENT) assert_int_equal(rc, 0);
}

static inline void model_init(struct model *m)
{
  memset(m, 0, sizeof(*m));
  m->ops[0] = (struct model_op){.reset = true};
  m->n_ops = m->sure = 1;
  m->votes[0] = (struct model_vote){0, 0, 0};
  m->n_votes = 1;
}

#endif
