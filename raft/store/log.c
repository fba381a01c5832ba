/*
** log.c: writes the log: gathers entries, makes them durable with one write
** and one sync, begins new segments, replaces a suffix, starts over.
**
** Runs on the log thread only (and in store_open, before there is one). The
** rules S1 to S4 and the argument for replacing a suffix are at the head of
** segment.c; here is where they are kept:
**
**   put      gathers a record as two vectors: header (preceded by the padding
**            of the record before it), and body, from where the body is
**   write    one pwritev of what was gathered
**   flush    write, one fdatasync; a fresh segment gets its name now (S1)
**   roll     flush (S2), take a prepared segment, number it (S3)
**
** Any error is final: the caller stops using the writer.
*/
#include "internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint8_t zeros[8];

static int segment_error(struct store *store, const struct segment *segment,
                         int rc, const char *what, char **error)
{
  char path[STORE_PATH_MAX];

  store_path(path, store, segment->name);
  return store_io_error(error, rc, path, what);
}

/* ---- names -------------------------------------------------------------- */

/* Takes what the newest segment supersedes off the list; returns it, linked
   by `after`. */
static struct segment *cut_dead_locked(struct store *store,
                                       const struct segment *newer)
{
  struct segment *dead = NULL;
  bool base = newer->header.flags & SEGMENT_BASE;
  raft_index first = newer->header.first;

  while (store->newest && (base || store->newest->header.first >= first)) {
    struct segment *segment = store->newest;

    store->newest = segment->before;
    if (store->newest)
      store->newest->after = NULL;
    else
      store->oldest = NULL;
    store->stats.bytes -= segment->header.bytes;
    segment->after = dead;
    dead = segment;
  }
  if (!MUTANT(61) && store->newest &&
      store->newest->header.first + store->newest->visible > first)
    store->newest->visible = (uint32_t)(first - store->newest->header.first);
  return dead;
}

/* Unlinks dead segments, durably; one that has the name of the newer segment
   was replaced by it. */
static int remove_dead(struct store *store, struct segment *dead,
                       const struct segment *newer, char **error)
{
  const struct io *io = store->io;
  char path[STORE_PATH_MAX];
  int rc = 0;

  if (!dead || MUTANT(60)) return 0;
  while (dead) {
    struct segment *next = dead->after;

    if (!rc && dead->header.first != newer->header.first) {
      store_path(path, store, dead->name);
      rc = io->unlink(io->ctx, path);
      if (rc) (void)store_io_error(error, rc, path, "cannot be removed");
    }
    store_segment_unref(dead);
    dead = next;
  }
  if (rc) return rc;
  rc = io->sync_dir(io->ctx, store->log_dir);
  if (rc) return store_io_error(error, rc, store->log_dir, "sync failed");
  return 0;
}

/* The active segment, synced, becomes a part of the log. */
static int give_name(struct store *store, char **error)
{
  const struct io *io = store->io;
  struct segment *segment = store->writer.active, *dead;
  char from[STORE_PATH_MAX], to[STORE_PATH_MAX];
  int rc;

  store_path(from, store, segment->name);
  store_segment_name(segment->name, segment->header.first);
  store_path(to, store, segment->name);
  rc = io->rename(io->ctx, from, to);
  if (rc) return store_io_error(error, rc, from, "cannot be renamed");
  rc = MUTANT(59) ? 0 : io->sync_dir(io->ctx, store->log_dir);
  if (rc) return store_io_error(error, rc, store->log_dir, "sync failed");
  store->writer.fresh = false;

  (void)pthread_mutex_lock(&store->lock);
  dead = cut_dead_locked(store, segment);
  segment->visible = segment->n;
  segment->before = store->newest;
  segment->after = NULL;
  if (store->newest)
    store->newest->after = segment;
  else
    store->oldest = segment;
  store->newest = segment;
  store->stats.bytes += segment->header.bytes;
  (void)pthread_mutex_unlock(&store->lock);
  return remove_dead(store, dead, segment, error);
}

/* ---- writing ------------------------------------------------------------ */

static void gather(struct writer *w, const void *data, size_t len)
{
  union {
    const void *in;
    void *out;
  } base = {.in = data}; /* struct iovec has no const */

  w->iov[w->n_iov].iov_base = base.out;
  w->iov[w->n_iov].iov_len = len;
  w->n_iov++;
}

static int write_gathered(struct store *store, char **error)
{
  struct writer *w = &store->writer;
  const struct io *io = store->io;
  unsigned i;
  int rc;

  if (!w->n_iov) return 0;
  if (w->pad) gather(w, zeros, w->pad);
  rc = io->pwritev(io->ctx, w->active->fd, w->iov, (int)w->n_iov, w->start);
  if (rc) return segment_error(store, w->active, rc, "write failed", error);
  (void)pthread_mutex_lock(&store->lock);
  for (i = 0; i < w->n_records; i++)
    store_segment_add(w->active, w->offsets[i]);
  store->stats.writes++;
  store->stats.entries += w->n_records;
  (void)pthread_mutex_unlock(&store->lock);
  w->start = w->offset;
  w->n_iov = w->n_records = w->pad = 0;
  w->dirty = true;
  return 0;
}

static uint64_t now_ns(void)
{
  struct timespec t;

  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int sync_active(struct store *store)
{
  const struct store_options *o = &store->options;
  const struct io *io = store->io;
  uint64_t began = o->synced ? now_ns() : 0;
  int rc = io->sync(io->ctx, store->writer.active->fd);

  if (!rc && o->synced) o->synced(o->ctx, now_ns() - began);
  return rc;
}

int store_log_flush(struct store *store, char **error)
{
  struct writer *w = &store->writer;
  int rc = write_gathered(store, error);

  if (rc || !w->dirty) return rc;
  rc = sync_active(store);
  if (MUTANT(53) && rc) rc = sync_active(store);
  if (rc) return segment_error(store, w->active, rc, "sync failed", error);
  w->dirty = false;
  if (w->fresh) {
    rc = give_name(store, error);
    if (rc) return rc;
  }
  (void)pthread_mutex_lock(&store->lock);
  w->active->visible = w->active->n;
  store->stats.syncs++;
  (void)pthread_mutex_unlock(&store->lock);
  w->durable = w->last;
  return 0;
}

/* A segment that takes the place of the log's first one must go on saying that
   the log begins here, if that one did: a file from before, which the helper
   was removing when the log was reset, may still be there. */
static uint32_t inherited_flags(struct store *store, raft_index first)
{
  uint32_t flags = 0;

  (void)pthread_mutex_lock(&store->lock);
  if (store->oldest && store->oldest->header.first == first)
    flags = store->oldest->header.flags & SEGMENT_BASE;
  (void)pthread_mutex_unlock(&store->lock);
  return flags;
}

/* Begins a segment that has room for a record of `size` bytes and a mark. */
static int roll(struct store *store, uint64_t size, uint32_t flags,
                char **error)
{
  struct writer *w = &store->writer;
  uint64_t bytes = SEGMENT_HEADER + size + RECORD_HEADER;
  struct segment *segment;
  int rc = store_log_flush(store, error);

  if (rc) return rc;
  if (bytes < store->options.segment_bytes)
    bytes = store->options.segment_bytes;
  rc = store_spare_take(store, bytes, &segment, error);
  if (rc) return rc;
  segment->header = (struct segment_header){
      .flags = flags | inherited_flags(store, w->last + 1),
      .cluster = store->options.cluster,
      .node = store->options.node,
      .seq = MUTANT(62) && segment->header.seq ? segment->header.seq
                                               : ++store->segment_seq,
      .first = w->last + 1,
      .prev_term = w->term,
      .prev = w->chain,
      .bytes = segment->header.bytes,
  };
  w->active = segment;
  w->fresh = true;
  w->start = 0;
  w->offset = SEGMENT_HEADER;
  store_header_encode(&segment->header, w->head);
  gather(w, w->head, sizeof(w->head));
  return 0;
}

/* ---- replacing ---------------------------------------------------------- */

/* Finds term and chain of entry `index`, which is before the end of the log
   (or right before its beginning). */
static int look_back(struct store *store, raft_index index, raft_term *term,
                     uint64_t *chain, char **error)
{
  struct segment *segment;
  struct record record;
  uint32_t offset, at;
  uint64_t where;
  int rc;

  (void)pthread_mutex_lock(&store->lock);
  segment = store->newest;
  while (segment && segment->before && segment->header.first > index)
    segment = segment->before;
  if (!segment || segment->header.first > index + 1) {
    (void)pthread_mutex_unlock(&store->lock);
    return store_error(error, -EINVAL,
                       "%s: entries from %" PRIu64 " on cannot be replaced: "
                       "the log begins after them",
                       store->log_dir, index + 1);
  }
  *term = segment->header.prev_term;
  *chain = segment->header.prev;
  if (segment->header.first == index + 1) {
    (void)pthread_mutex_unlock(&store->lock);
    return 0;
  }
  at = store_segment_near(segment, (uint32_t)(index - segment->header.first),
                          &offset);
  store_segment_ref(segment);
  (void)pthread_mutex_unlock(&store->lock);
  where = offset;
  rc = store_segment_seek(
      segment, at, (uint32_t)(index - segment->header.first), &where, &record);
  if (rc) {
    (void)segment_error(store, segment, rc, "cannot be read back", error);
  } else {
    *term = record.term;
    *chain = record.checksum;
  }
  store_segment_unref(segment);
  return rc;
}

/* The next record will be number `first`: it begins a segment. */
static int cut_suffix(struct store *store, raft_index first, char **error)
{
  struct writer *w = &store->writer;
  int rc = store_log_flush(store, error);

  if (rc) return rc;
  rc = look_back(store, first - 1, &w->term, &w->chain, error);
  if (rc) return rc;
  w->active = NULL;
  w->last = first - 1;
  if (w->durable > w->last) w->durable = w->last;
  if (w->marked > w->last) w->marked = w->last;
  return 0;
}

int store_log_reset(struct store *store, raft_index index, raft_term term,
                    char **error)
{
  struct writer *w = &store->writer;
  int rc = store_log_flush(store, error);

  if (rc) return rc;
  w->active = NULL;
  w->last = w->durable = w->marked = index;
  w->term = term;
  w->chain = 0;
  rc = roll(store, 0, SEGMENT_BASE, error);
  if (rc) return rc;
  return store_log_flush(store, error);
}

/* ---- entries ------------------------------------------------------------ */

/* What only a bug in the caller, or bad memory, could bring. */
static int check_entry(const struct writer *w, const struct raft_entry *entry,
                       char **error)
{
  if (entry->index != w->last + 1)
    return store_error(error, -EINVAL,
                       "entry %" PRIu64 " does not follow entry %" PRIu64,
                       entry->index, w->last);
  if (entry->term < w->term)
    return store_error(error, -EINVAL,
                       "entry %" PRIu64 " has term %" PRIu64
                       ", the one before it %" PRIu64,
                       entry->index, entry->term, w->term);
  if (entry->body && store_body_checksum(entry->body->data, entry->body->len) !=
                         entry->body->checksum)
    return store_error(error, -EBADMSG,
                       "entry %" PRIu64 " was damaged in memory: its body does "
                       "not have the checksum it was sealed with",
                       entry->index);
  return 0;
}

int store_log_put(struct store *store, const struct raft_entry *entry,
                  char **error)
{
  struct writer *w = &store->writer;
  uint32_t len = entry->body ? entry->body->len : 0;
  uint64_t size = store_record_size(len);
  struct record record;
  uint8_t *slot;
  int rc = 0;

  if (entry->index <= w->last) rc = cut_suffix(store, entry->index, error);
  if (!rc) rc = check_entry(w, entry, error);
  if (rc) return rc;
  if (!w->active || w->offset + size + RECORD_HEADER > w->active->header.bytes)
    rc = roll(store, size, 0, error);
  else if (w->n_records == WRITE_RECORDS)
    rc = write_gathered(store, error);
  if (rc) return rc;

  record = (struct record){
      .length = len,
      .type = entry->type,
      .index = entry->index,
      .term = entry->term,
      .body =
          entry->body ? entry->body->checksum : store_body_checksum(NULL, 0),
      .mark = MUTANT(63) ? w->last : w->durable,
      .prev = w->chain,
  };
  slot = w->headers[w->n_records];
  memset(slot, 0, 8);
  store_record_encode(&record, w->active->header.seq, slot + 8);
  gather(w, slot + 8 - w->pad, w->pad + RECORD_HEADER);
  if (len) gather(w, entry->body->data, len);
  w->pad = (unsigned)(size - RECORD_HEADER - len);
  w->offsets[w->n_records++] = (uint32_t)w->offset;
  w->offset += size;
  w->last = record.index;
  w->term = record.term;
  w->chain = record.checksum;
  w->marked = record.mark > w->marked ? record.mark : w->marked;
  return 0;
}

int store_log_mark(struct store *store, bool sync, char **error)
{
  struct writer *w = &store->writer;
  const struct io *io = store->io;
  uint8_t raw[RECORD_HEADER];
  struct record record;
  int rc;

  if (!w->active || w->fresh || w->dirty || w->n_iov || w->marked >= w->last ||
      w->durable < w->last ||
      w->offset + RECORD_HEADER > w->active->header.bytes)
    return 0;
  record = (struct record){
      .type = RECORD_MARK,
      .index = w->last,
      .term = w->term,
      .body = store_body_checksum(NULL, 0),
      .mark = w->last,
      .prev = w->chain,
  };
  store_record_encode(&record, w->active->header.seq, raw);
  rc = io->pwrite(io->ctx, w->active->fd, raw, sizeof(raw), w->offset);
  if (rc) return segment_error(store, w->active, rc, "write failed", error);
  if (sync) {
    rc = io->sync(io->ctx, w->active->fd);
    if (rc) return segment_error(store, w->active, rc, "sync failed", error);
  }
  w->marked = w->last;
  return 0;
}
