/*
** recover.c: what a log that is found on the disk means.
**
** Everything is read and checked before anything is changed; a log that is
** refused stays as it was.
**
**   1. The headers of all segments are read. They must be whole (S1), of this
**      cluster and node, with distinct sequence numbers, far from their end.
**   2. In the order of sequence numbers, each segment supersedes what the head
**      of segment.c says. What remains, in order, is the log.
**   3. Each segment is read. Its records must follow one another: index by
**      index, chained, terms never falling. In all but the newest they must
**      reach up to the next one's first (S2), and chain to it.
**   4. In the newest, where the records end at `end`, before index `next`: if
**      anywhere behind it stands a good record of this segment that says that
**      `next` was durable (its mark is not below `next`), a record that was
**      acknowledged is gone: damage. Else whatever is there was never
**      acknowledged: the torn tail of the last batch. Good records in it, of
**      which any subset of sectors may have reached the disk, do not count.
**   5. The log must begin no later than right after the checkpoint, and agree
**      with it; and no entry may be of a later term than the vote, which was
**      made durable first.
**
** Then the repairs: superseded segments and spares of the last run are
** removed; behind the end everything is zeroed, so that a half record never
** meets a new one (S4); and records above the newest mark are written once
** more. They were read, perhaps from the page cache of a process that was
** killed before its sync, or whose sync failed, so they may not be on the
** disk; once this log is opened they count as durable. The file is synced, and
** then a mark says so.
*/
#include "internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct found {
  raft_index first; /* segments: from the name */
  char name[SEGMENT_NAME];
};

struct listing {
  size_t n, cap;
  struct found *items;
  bool failed;
};

struct place {
  raft_index index;
  struct raft_configuration configuration;
};

struct recovery {
  struct store *store;
  const struct io *io;
  char **error;
  size_t n, n_live; /* segments; those in force come first after sorting */
  struct segment **segments;
  struct listing segs, spares;
  /* running state of the scan */
  raft_index last;
  raft_term term;
  uint64_t chain;
  raft_index mark; /* highest one seen in the newest segment */
  size_t n_runs, cap_runs;
  struct raft_term_run *runs;
  raft_term checkpoint_term; /* of the entry at the checkpoint; 0: none */
  const struct store_checkpoint *checkpoint;
  struct place newest, previous; /* configurations in the log */
  /* the newest segment, for the repair */
  uint8_t *image;
  uint64_t end;      /* where its records end */
  uint64_t rest;     /* end, or the end of a mark that stands there */
  uint64_t unmarked; /* where its records above the mark begin */
  /* store_inspect(): what is damaged is left out; the first of it, in words */
  char **damage;
  raft_index left_out; /* the last segment that cannot be opened; 0: none */
  raft_index limit;    /* entries after it are not known; else UINT64_MAX */
};

static int damage(struct recovery *r, const char *name, uint64_t offset,
                  const char *what)
{
  return store_error(r->error, -EBADMSG, "%s/%s: offset %" PRIu64 ": %s",
                     r->store->log_dir, name, offset, what);
}

/* ---- finding the files -------------------------------------------------- */

static void listing_add(struct listing *l, const char *name, raft_index first)
{
  if (l->n == l->cap) {
    size_t cap = l->cap ? 2 * l->cap : 16;
    struct found *items = realloc(l->items, cap * sizeof(*items));

    if (!items) {
      l->failed = true;
      return;
    }
    l->items = items;
    l->cap = cap;
  }
  l->items[l->n].first = first;
  (void)snprintf(l->items[l->n].name, SEGMENT_NAME, "%s", name);
  l->n++;
}

/* Sixteen lower-case hex digits and ".seg". */
static bool segment_index(const char *name, raft_index *first)
{
  char again[SEGMENT_NAME];

  if (strlen(name) != 20 || strspn(name, "0123456789abcdef") != 16)
    return false;
  *first = strtoull(name, NULL, 16);
  store_segment_name(again, *first);
  return !strcmp(again, name);
}

static void each_name(void *arg, const char *name)
{
  struct recovery *r = arg;
  size_t len = strlen(name);
  raft_index first;

  if (segment_index(name, &first))
    listing_add(&r->segs, name, first);
  else if (len > 6 && len < SEGMENT_NAME && !strcmp(name + len - 6, ".spare"))
    listing_add(&r->spares, name, 0);
}

static void each_any(void *arg, const char *name)
{
  raft_index first;

  if (segment_index(name, &first)) *(bool *)arg = true;
}

int store_recover_any(const struct io *io, const char *log_dir, bool *any,
                      char **error)
{
  int rc;

  *any = false;
  rc = io->list(io->ctx, log_dir, each_any, any);
  if (rc == -ENOENT) return 0;
  return rc ? store_io_error(error, rc, log_dir, "cannot be listed") : 0;
}

static const char out_of_reach[] = "a number that no log reaches";

/* An empty segment may stand behind the last entry that there may be. */
static int check_numbers(struct recovery *r, const struct segment_header *h,
                         const char *name)
{
  if (h->seq >= RAFT_NUMBER_MAX) return damage(r, name, 32, out_of_reach);
  if (h->first - 1 > RAFT_NUMBER_MAX) return damage(r, name, 40, out_of_reach);
  if (h->prev_term > RAFT_NUMBER_MAX) return damage(r, name, 48, out_of_reach);
  return 0;
}

static int check_header(struct recovery *r, const struct found *found,
                        const struct segment_header *h, uint64_t size)
{
  const struct store_options *o = &r->store->options;

  if (h->cluster != o->cluster)
    return store_error(r->error, -EBADMSG,
                       "%s/%s: offset 16: belongs to cluster %016" PRIx64
                       ", not %016" PRIx64,
                       r->store->log_dir, found->name, h->cluster, o->cluster);
  if (h->node != o->node)
    return store_error(r->error, -EBADMSG,
                       "%s/%s: offset 24: belongs to node %" PRIu64
                       ", not %" PRIu64,
                       r->store->log_dir, found->name, h->node, o->node);
  if (h->first != found->first)
    return store_error(r->error, -EBADMSG,
                       "%s/%s: offset 40: begins at entry %" PRIu64
                       ", not where its name says",
                       r->store->log_dir, found->name, h->first);
  if (h->bytes != size)
    return store_error(r->error, -EBADMSG,
                       "%s/%s: offset 64: has %" PRIu64 " bytes, was made "
                       "with %" PRIu64,
                       r->store->log_dir, found->name, size, h->bytes);
  return check_numbers(r, h, found->name);
}

static int open_segment(struct recovery *r, const struct found *found)
{
  const struct io *io = r->io;
  struct segment *segment = store_segment_new(io);
  uint8_t raw[SEGMENT_HEADER];
  char path[STORE_PATH_MAX];
  const char *why;
  uint64_t size;
  ssize_t got;
  int rc;

  if (!segment) return store_error(r->error, -ENOMEM, "out of memory");
  r->segments[r->n++] = segment;
  memcpy(segment->name, found->name, SEGMENT_NAME);
  store_path(path, r->store, segment->name);
  segment->fd = io->open(io->ctx, path, O_RDWR);
  if (segment->fd < 0)
    return store_io_error(r->error, segment->fd, path, "cannot be opened");
  rc = io->size(io->ctx, segment->fd, &size);
  if (rc) return store_io_error(r->error, rc, path, "cannot be examined");
  got = io->pread(io->ctx, segment->fd, raw, sizeof(raw), 0);
  if (got < 0) return store_io_error(r->error, (int)got, path, "read failed");
  if (got != (ssize_t)sizeof(raw))
    return damage(r, found->name, (uint64_t)got, "shorter than its header");
  if (store_header_decode(raw, &segment->header, &why))
    return damage(r, found->name, 0, why);
  return check_header(r, found, &segment->header, size);
}

/* store_inspect() goes on without what is damaged. False: it cannot. */
static bool tolerate(struct recovery *r, int rc)
{
  if (!r->damage || rc == -ENOMEM) return false;
  if (*r->damage)
    free(*r->error);
  else
    *r->damage = *r->error;
  *r->error = NULL;
  return true;
}

static bool leave_out(struct recovery *r, const struct found *found, int rc)
{
  if (!tolerate(r, rc)) return false;
  store_segment_unref(r->segments[--r->n]);
  if (found->first > r->left_out) r->left_out = found->first;
  return true;
}

/* One that cannot be opened, and that none comes after, may have superseded all
   from its first entry on. */
static void find_limit(struct recovery *r)
{
  size_t i;

  r->limit = r->left_out ? r->left_out - 1 : UINT64_MAX;
  for (i = 0; i < r->n; i++)
    if (r->segments[i]->header.first > r->left_out) r->limit = UINT64_MAX;
}

static int by_seq(const void *a, const void *b)
{
  const struct segment *x = *(struct segment *const *)a;
  const struct segment *y = *(struct segment *const *)b;

  return x->header.seq < y->header.seq ? -1 : x->header.seq > y->header.seq;
}

static int find_segments(struct recovery *r)
{
  const char *dir = r->store->log_dir;
  size_t i;
  int rc = r->io->list(r->io->ctx, dir, each_name, r);

  if (rc == -ENOENT && r->damage) rc = 0; /* it was never opened */
  if (rc) rc = store_io_error(r->error, rc, dir, "cannot be listed");
  if (rc && !tolerate(r, rc)) return rc;
  r->segments = calloc(r->segs.n + 1, sizeof(*r->segments));
  if (r->segs.failed || r->spares.failed || !r->segments)
    return store_error(r->error, -ENOMEM, "out of memory");
  for (i = 0; i < r->segs.n; i++) {
    rc = open_segment(r, &r->segs.items[i]);
    if (rc && !leave_out(r, &r->segs.items[i], rc)) return rc;
  }
  find_limit(r);
  if (!r->n) return 0;
  qsort(r->segments, r->n, sizeof(*r->segments), by_seq);
  for (i = 1; i < r->n; i++)
    if (r->segments[i]->header.seq == r->segments[i - 1]->header.seq)
      return damage(r, r->segments[i]->name, 32,
                    "has the sequence number of another segment");
  r->store->segment_seq = r->segments[r->n - 1]->header.seq;
  return 0;
}

/* Moves the segments that are in force to the front, in order. */
static void supersede(struct recovery *r)
{
  size_t i, live = 0;

  for (i = 0; i < r->n; i++) {
    struct segment *s = r->segments[i];
    size_t keep = live;

    while (keep && (s->header.flags & SEGMENT_BASE ||
                    r->segments[keep - 1]->header.first >= s->header.first))
      keep--;
    /* shift the ones that died behind this one */
    memmove(&r->segments[keep + 1], &r->segments[keep],
            (i - keep) * sizeof(*r->segments));
    r->segments[keep] = s;
    live = keep + 1;
  }
  r->n_live = live;
}

/* ---- reading the records ------------------------------------------------ */

static int note_run(struct recovery *r, raft_index index, raft_term term)
{
  if (r->n_runs && r->runs[r->n_runs - 1].term == term) return 0;
  if (r->n_runs == r->cap_runs) {
    size_t cap = r->cap_runs ? 2 * r->cap_runs : 64;
    struct raft_term_run *runs = realloc(r->runs, cap * sizeof(*runs));

    if (!runs) return store_error(r->error, -ENOMEM, "out of memory");
    r->runs = runs;
    r->cap_runs = cap;
  }
  r->runs[r->n_runs++] = (struct raft_term_run){.first = index, .term = term};
  return 0;
}

static bool reachable(const struct record *record)
{
  return record->index <= RAFT_NUMBER_MAX && record->term <= RAFT_NUMBER_MAX;
}

/* Why the record at offset is not the next one, or NULL. */
static const char *not_next(const struct recovery *r, const struct segment *s,
                            uint64_t offset, struct record *record)
{
  const uint8_t *raw = r->image + offset;

  if (offset + RECORD_HEADER > s->header.bytes) return "end of the segment";
  if (!store_record_decode(raw, s->header.seq, record))
    return "damaged record header";
  if (record->type == RECORD_MARK) return "no record, but a mark";
  if (record->index != r->last + 1) return "record has the wrong index";
  if (record->prev != r->chain)
    return "record does not follow the one before it";
  if (record->term < r->term) return "term of the record goes back";
  if (!reachable(record)) return out_of_reach;
  if (offset + store_record_size(record->length) > s->header.bytes)
    return "record is longer than its segment";
  if (!MUTANT(51) &&
      store_body_checksum(raw + RECORD_HEADER, record->length) != record->body)
    return "damaged body of a record";
  return NULL;
}

static int take_record(struct recovery *r, struct segment *s, uint64_t offset,
                       const struct record *record)
{
  int rc = note_run(r, record->index, record->term);

  if (rc) return rc;
  r->last = record->index;
  r->term = record->term;
  r->chain = record->checksum;
  if (record->mark > r->mark) r->mark = record->mark;
  if (record->index == r->checkpoint->index) r->checkpoint_term = record->term;
  store_segment_add(s, (uint32_t)offset);
  if (record->type != RAFT_CONFIGURATION) return 0;
  r->previous = r->newest;
  r->newest.index = record->index;
  if (raft_configuration_decode(r->image + offset + RECORD_HEADER,
                                record->length, &r->newest.configuration))
    return damage(r, s->name, offset, "impossible configuration");
  return 0;
}

static int read_image(struct recovery *r, const struct segment *s)
{
  char path[STORE_PATH_MAX];
  ssize_t got;

  store_path(path, r->store, s->name);
  free(r->image);
  r->image = malloc((size_t)s->header.bytes);
  if (!r->image) return store_error(r->error, -ENOMEM, "out of memory");
  got = r->io->pread(r->io->ctx, s->fd, r->image, (size_t)s->header.bytes, 0);
  if (got < 0) return store_io_error(r->error, (int)got, path, "read failed");
  if ((uint64_t)got != s->header.bytes)
    return damage(r, s->name, (uint64_t)got, "ends early");
  return 0;
}

/* Records up to index `until`; stops before if one is bad, with the reason in
   *why and its offset in r->end. */
static int scan(struct recovery *r, struct segment *s, raft_index until,
                const char **why)
{
  struct record record;
  int rc;

  r->end = SEGMENT_HEADER;
  *why = NULL;
  if (until > r->limit) until = r->limit;
  while (r->last < until) {
    *why = not_next(r, s, r->end, &record);
    if (*why) return 0;
    rc = take_record(r, s, r->end, &record);
    if (rc) return rc;
    r->end += store_record_size(record.length);
  }
  return 0;
}

/* A segment that another one follows must reach it. */
static int scan_inner(struct recovery *r, struct segment *s,
                      const struct segment *next)
{
  const char *why;
  int rc = scan(r, s, next->header.first - 1, &why);

  if (rc) return rc;
  if (r->last + 1 < next->header.first)
    return store_error(r->error, -EBADMSG,
                       "%s/%s: offset %" PRIu64 ": %s; entries %" PRIu64
                       " to %" PRIu64 " are missing before %s",
                       r->store->log_dir, s->name, r->end,
                       why ? why : "ends there", r->last + 1,
                       next->header.first - 1, next->name);
  return 0;
}

/* How a segment must continue the one before it. */
static int check_joint(struct recovery *r, const struct segment *s)
{
  if (s->header.prev_term != r->term)
    return damage(r, s->name, 48,
                  "does not follow the segment before it: other term");
  if (s->header.prev != r->chain)
    return damage(r, s->name, 56,
                  "does not follow the segment before it: other chain");
  return 0;
}

/* ---- the end of the newest segment -------------------------------------- */

/*
** Whether a good record stands where the next one would be written, but is not
** it. Nothing ever writes there but what follows, so this is no torn write.
** (A body that is damaged under a good header may well be one.)
*/
static bool stranger(const struct recovery *r, const struct segment *s)
{
  struct record record;

  if (r->end + RECORD_HEADER > s->header.bytes ||
      !store_record_decode(r->image + r->end, s->header.seq, &record))
    return false;
  if (record.prev != r->chain) return true;
  if (record.type == RECORD_MARK) return record.index != r->last;
  return record.index != r->last + 1 || record.term < r->term ||
         !reachable(&record) ||
         r->end + store_record_size(record.length) > s->header.bytes;
}

/* Step 4 of the head of this file. */
static int judge_tail(struct recovery *r, const struct segment *s,
                      const char *why)
{
  raft_index next = r->last + 1;
  uint64_t at;
  struct record record;

  if (stranger(r, s)) return damage(r, s->name, r->end, why);
  r->rest = r->end;
  for (at = r->end; at + RECORD_HEADER <= s->header.bytes; at += 8) {
    if (!store_record_decode(r->image + at, s->header.seq, &record)) continue;
    if (record.mark >= next && !MUTANT(52))
      return store_error(r->error, -EBADMSG,
                         "%s/%s: offset %" PRIu64 ": %s; entry %" PRIu64
                         " was durable, as offset %" PRIu64 " says",
                         r->store->log_dir, s->name, r->end, why, next, at);
    if (at == r->end && record.type == RECORD_MARK) {
      r->mark = r->last;
      r->rest = r->end + RECORD_HEADER;
    }
  }
  return 0;
}

/* Where the records begin that no mark covers. */
static void find_unmarked(struct recovery *r, const struct segment *s)
{
  struct record record;
  uint64_t at = SEGMENT_HEADER;

  while (at < r->end &&
         store_record_decode(r->image + at, s->header.seq, &record) &&
         record.index <= r->mark)
    at += store_record_size(record.length);
  r->unmarked = at;
}

static bool all_zero(const uint8_t *data, uint64_t n)
{
  uint64_t i;

  for (i = 0; i < n; i++)
    if (data[i]) return false;
  return true;
}

static int repair_tail(struct recovery *r, struct segment *s)
{
  const struct io *io = r->io;
  uint64_t from = MUTANT(68) ? r->end : r->unmarked, upto = r->end,
           bytes = s->header.bytes;
  char path[STORE_PATH_MAX];
  int rc = 0;

  if (!MUTANT(58) && !all_zero(r->image + r->rest, bytes - r->rest)) {
    memset(r->image + r->end, 0, bytes - r->end);
    upto = bytes;
    /* a mark that stood there goes too, and is written again later */
    if (r->rest > r->end) r->mark = 0;
  }
  store_path(path, r->store, s->name);
  if (upto > from)
    rc = io->pwrite(io->ctx, s->fd, r->image + from, (size_t)(upto - from),
                    from);
  if (rc) return store_io_error(r->error, rc, path, "write failed");
  rc = io->sync(io->ctx, s->fd);
  if (rc) return store_io_error(r->error, rc, path, "sync failed");
  return 0;
}

/* ---- all of it ---------------------------------------------------------- */

static int scan_all(struct recovery *r)
{
  const char *why;
  size_t i;
  int rc;

  r->last = r->segments[0]->header.first - 1;
  r->term = r->segments[0]->header.prev_term;
  r->chain = r->segments[0]->header.prev;
  if (r->last == r->checkpoint->index) r->checkpoint_term = r->term;
  for (i = 0; i < r->n_live; i++) {
    struct segment *s = r->segments[i];

    rc = i ? check_joint(r, s) : 0;
    if (!rc) rc = read_image(r, s);
    if (rc) return rc;
    r->mark = 0;
    if (i + 1 < r->n_live) {
      rc = scan_inner(r, s, r->segments[i + 1]);
    } else {
      rc = scan(r, s, UINT64_MAX, &why);
      if (!rc && why) rc = judge_tail(r, s, why);
      find_unmarked(r, s);
    }
    if (rc) {
      r->n_live = i + 1;
      return rc;
    }
  }
  return 0;
}

/* Step 5. *stale: the log is to be dropped. */
static int check_checkpoint(struct recovery *r, bool *stale)
{
  const struct store_checkpoint *c = r->checkpoint;
  const struct segment *oldest = r->segments[0];
  const struct vote_file *vote = &r->store->vote;

  *stale = r->last < c->index;
  if (oldest->header.first > c->index + (MUTANT(66) ? 2 : 1))
    return store_error(r->error, -EBADMSG,
                       "%s/%s: the log begins at entry %" PRIu64
                       ", the checkpoint ends at %" PRIu64
                       ": the entries between them are missing",
                       r->store->log_dir, oldest->name, oldest->header.first,
                       c->index);
  if (*stale) return 0;
  if (c->index >= oldest->header.first - 1 && r->checkpoint_term != c->term) {
    *stale = c->from_snapshot && !MUTANT(69);
    if (c->from_snapshot) return 0;
    return store_error(r->error, -EBADMSG,
                       "%s: entry %" PRIu64 " has term %" PRIu64
                       ", in the checkpoint it has %" PRIu64,
                       r->store->log_dir, c->index, r->checkpoint_term,
                       c->term);
  }
  if (r->last > c->index && r->term > vote->term)
    return store_error(r->error, -EBADMSG,
                       "%s: offset 0: holds term %" PRIu64
                       ", but the log has reached term %" PRIu64,
                       vote->path, vote->term, r->term);
  return 0;
}

/* The directory is synced before, too: the name of a segment that supersedes
   others may not be durable yet, if a process was killed. */
static int remove_leftovers(struct recovery *r)
{
  const struct io *io = r->io;
  char path[STORE_PATH_MAX];
  size_t i;
  int rc = io->sync_dir(io->ctx, r->store->log_dir);

  for (i = r->n_live; !rc && i < r->n + r->spares.n; i++) {
    store_path(path, r->store,
               i < r->n ? r->segments[i]->name
                        : r->spares.items[i - r->n].name);
    rc = io->unlink(io->ctx, path);
    if (rc) return store_io_error(r->error, rc, path, "cannot be removed");
  }
  if (!rc) rc = io->sync_dir(io->ctx, r->store->log_dir);
  if (rc) return store_io_error(r->error, rc, r->store->log_dir, "sync failed");
  return 0;
}

/* Hands the segments to the store, and sets the writer behind the last. */
static void hand_over(struct recovery *r)
{
  struct store *store = r->store;
  struct writer *w = &store->writer;
  size_t i;

  for (i = 0; i < r->n_live; i++) {
    struct segment *s = r->segments[i];

    s->visible = s->n;
    s->before = store->newest;
    if (store->newest)
      store->newest->after = s;
    else
      store->oldest = s;
    store->newest = s;
    store->stats.bytes += s->header.bytes;
  }
  for (i = r->n_live; i < r->n; i++)
    store_segment_unref(r->segments[i]);
  w->active = store->newest;
  w->start = w->offset = r->end;
  w->last = w->durable = r->last;
  w->term = r->term;
  w->chain = r->chain;
  w->marked = r->mark;
  r->n = 0;
}

/* The newest two of the checkpoint's configuration and those in the log. */
static void fill_configurations(const struct recovery *r,
                                struct raft_recovered *out)
{
  const struct store_checkpoint *c = r->checkpoint;
  const struct place own = {c->configuration_index, c->configuration};
  const struct place *by_age[3] = {&r->newest, &r->previous, NULL};
  const struct place *p;
  unsigned i;

  /* put the checkpoint's where it belongs; an entry of the log at the same
     index is the same configuration */
  for (i = 0; i < 2 && own.configuration.n; i++) {
    p = by_age[i];
    if (p->index && p->index == own.index) break;
    if (p->index > own.index) continue;
    by_age[2] = i ? NULL : by_age[1];
    if (!i) by_age[1] = by_age[0];
    by_age[i] = &own;
    break;
  }
  out->configuration = by_age[0]->configuration;
  out->configuration_index = by_age[0]->index;
  out->previous = by_age[1]->configuration;
  out->previous_index = by_age[1]->index;
}

static void fill(const struct recovery *r, struct raft_recovered *out)
{
  const struct segment *oldest = r->store->oldest;

  out->snapshot_index = oldest ? oldest->header.first - 1 : r->last;
  out->snapshot_term = oldest ? oldest->header.prev_term : r->term;
  out->last_index = r->last;
  out->commit = r->checkpoint->index;
  out->n_terms = r->n_runs;
  out->terms = r->runs;
  fill_configurations(r, out);
}

static void become_empty(struct recovery *r)
{
  r->last = r->checkpoint->index;
  r->term = r->checkpoint->term;
  r->n_runs = 0;
  r->newest.index = r->previous.index = 0;
  r->newest.configuration.n = r->previous.configuration.n = 0;
}

/* There are segments: check them, repair, take them over. */
static int recover_segments(struct recovery *r)
{
  struct store *store = r->store;
  bool stale;
  int rc;

  supersede(r);
  rc = scan_all(r);
  if (!rc) rc = check_checkpoint(r, &stale);
  if (!rc) rc = remove_leftovers(r);
  if (!rc) rc = repair_tail(r, r->segments[r->n_live - 1]);
  if (rc) return rc;
  hand_over(r);
  if (!stale) return store_log_mark(store, true, r->error);
  become_empty(r);
  return store_log_reset(store, r->last, r->term, r->error);
}

/* As far as all is whole, without a repair. */
static int inspect_segments(struct recovery *r)
{
  bool stale = false;
  int rc;

  supersede(r);
  rc = scan_all(r);
  if (rc && !tolerate(r, rc)) return rc;
  r->store->vote.term = r->term; /* it is not asked for */
  rc = check_checkpoint(r, &stale);
  if (rc && !tolerate(r, rc)) return rc;
  if (rc || stale)
    become_empty(r);
  else
    hand_over(r);
  return 0;
}

int store_recover(struct store *store,
                  const struct store_checkpoint *checkpoint,
                  struct raft_recovered *recovered, char **damage, char **error)
{
  struct recovery *r = calloc(1, sizeof(*r));
  size_t i;
  int rc;

  if (!r) return store_error(error, -ENOMEM, "out of memory");
  r->store = store;
  r->io = store->io;
  r->error = error;
  r->damage = damage;
  r->checkpoint = checkpoint;
  rc = find_segments(r);
  if (!rc && r->n) rc = damage ? inspect_segments(r) : recover_segments(r);
  if (!rc && !store->newest) {
    rc = damage ? 0 : remove_leftovers(r);
    become_empty(r);
    store->writer.last = store->writer.durable = store->writer.marked = r->last;
    store->writer.term = r->term;
  }
  if (!rc) {
    fill(r, recovered);
    store->terms = r->runs;
    r->runs = NULL;
    store->begin = r->last;
    store->begin_term = r->term;
  }
  for (i = 0; i < r->n; i++)
    store_segment_unref(r->segments[i]);
  free(r->segments);
  free(r->segs.items);
  free(r->spares.items);
  free(r->runs);
  free(r->image);
  free(r);
  return rc;
}
