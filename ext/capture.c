/*
** capture.c: takes each write transaction at its commit.
**
** What SQLite does at a commit in WAL mode (wal.c, sqlite3WalFrames): it
** writes frames behind the last one, header (24 bytes) and page in two calls;
** the header of the last one carries the size of the database. Before that,
** when the cache is full, it may have written frames of this transaction
** ("spilled"), and may overwrite the page of one in place; then all headers
** are computed anew at the commit, by reading everything back and writing
** headers only. Then it moves the wal-index header on, releases the write
** lock, and asks for the second phase of the commit.
**
** Here the frames go to the real -wal as they come, but the salts of a commit
** frame are inverted, so that no recovery by anybody takes it for committed,
** and byte 18 of page 1 (the write version) is 3 on disk while SQLite sees 2.
** When the write lock is released and the header has moved, the transaction is
** read back, newest image of each page, and handed over to the node in parts
** of about 1 MiB. The second phase waits for its fate.
*/
#include "attach.h"

SQLITE_EXTENSION_INIT3

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define KEPT_BYTES (64u << 10) /* of frames kept for their hand-over */
/* What ordinary writes leave alone of a database's header: from the number of the
   schema to what is kept for later. */
#define NUMBERS_AT 40
#define NUMBERS 52

bool capture_revoked(struct connection *c)
{
  return atomic_load(&c->map->control->epoch) != c->epoch;
}

static int refuse_revoked(struct connection *c)
{
  text_set(&c->reason, "transaction rolled back: this node may no longer "
                       "write");
  vfs_say(c);
  return VFS_REJECTED;
}

int capture_may_write(struct connection *c)
{
  return capture_revoked(c) ? refuse_revoked(c) : SQLITE_OK;
}

int capture_may_read(struct connection *c)
{
  struct node *node = c->node;
  struct timespec end;
  if (c->writing) return SQLITE_OK;
  if (c->reserved && !c->kept) vfs_leave(c);
  if (!c->ahead) return SQLITE_OK;
  if (node == NULL) {
    int rc = attach_settled(c);
    c->ahead = rc != SQLITE_OK;
    return rc;
  }
  end = clock_deadline(node_limits.fate_ms);
  pthread_mutex_lock(&node->mutex);
  node->watchers++;
  for (bool in_time = true; c->ahead && in_time && !capture_revoked(c);) {
    struct control_view view;
    control_look(c->map, &view);
    c->ahead = view.confirmed.mx_frame < c->given.mx_frame ||
               view.epoch != c->epoch; /* others are in their place */
    if (c->ahead)
      in_time = pthread_cond_timedwait(&node->changed, &node->mutex, &end) == 0;
  }
  node->watchers--;
  pthread_mutex_unlock(&node->mutex);
  return c->ahead ? refuse_revoked(c) : SQLITE_OK;
}

/* ---- frames ------------------------------------------------------------ */

/* The frame that an offset in -wal lies in, and the offset inside it. */
static uint32_t frame_at(const struct connection *c, sqlite3_int64 offset,
                         uint32_t *inside)
{
  uint32_t size = c->page_size + WAL_FRAME_HEADER;
  *inside = (uint32_t)((uint64_t)(offset - WAL_HEADER) % size);
  return (uint32_t)((uint64_t)(offset - WAL_HEADER) / size) + 1;
}

static int set_pending(struct connection *c, uint32_t frame, uint32_t pgno)
{
  if (frame <= c->given.mx_frame) return SQLITE_IOERR_WRITE;
  uint32_t i = frame - c->given.mx_frame - 1;
  if (i > c->n_pending) return SQLITE_IOERR_WRITE; /* not in sequence */
  if (i == c->cap_pending) {
    uint32_t cap = i ? i * 2 : 64;
    uint32_t *grown = realloc(c->pending, cap * sizeof(*grown));
    if (grown == NULL) return SQLITE_IOERR_NOMEM;
    c->pending = grown;
    c->cap_pending = cap;
  }
  c->pending[i] = pgno;
  if (i == c->n_pending) c->n_pending++;
  return SQLITE_OK;
}

/* Page number of a frame as this connection sees it; 0: none. */
static uint32_t pgno_of(const struct connection *c, uint32_t frame)
{
  if (frame <= c->given.mx_frame) return control_pgno(c->map, frame);
  uint32_t i = frame - c->given.mx_frame - 1;
  return c->writing && i < c->n_pending ? c->pending[i] : 0;
}

/* Of a commit frame, until the transaction is confirmed (wal.h, W1). */
static void invert_salts(uint8_t header[WAL_FRAME_HEADER])
{
  for (int i = 8; i < 16; i++)
    header[i] = (uint8_t)~header[i];
}

static size_t frame_size(const struct connection *c)
{
  return WAL_FRAME_HEADER + c->page_size;
}

/* How many frames of a transaction are kept in memory for its hand-over. */
static uint32_t kept_most(const struct connection *c)
{
  size_t most = KEPT_BYTES / frame_size(c);
  return most ? (uint32_t)most : 1;
}

/* Where frame i of the transaction is kept; those that are not have one place
   together, for as long as they are being written. NULL: no memory. */
static uint8_t *place_of(struct connection *c, uint32_t i)
{
  uint32_t most = kept_most(c), at = i < most ? i : most;
  if (at >= c->cap_copies) {
    uint32_t cap = c->cap_copies ? c->cap_copies * 2 : 4;
    if (cap > most + 1 || at >= cap) cap = most + 1;
    uint8_t *grown = realloc(c->copies, cap * frame_size(c));
    if (grown == NULL) return NULL;
    c->copies = grown;
    c->cap_copies = cap;
  }
  return c->copies + at * frame_size(c);
}

void capture_begin(struct connection *c)
{
  c->n_pending = c->headed = 0;
  c->fault = SQLITE_OK; /* of one that no second phase asked for */
  c->blank = UINT32_MAX;
  c->chained = 0;
  memcpy(c->chain, c->given.frame_checksum, sizeof(c->chain));
  c->diverged = memcmp(c->before.frame_checksum, c->chain, 8) != 0;
}

/* Puts the checksums in the header of frame i, its page behind it, that SQLite
   could not compute: from page 1 on, which it sees with another byte 18, and
   in all that a connection writes on top of that. What is not written in
   sequence is left to rewrite_chain(). */
static void chain_frame(struct connection *c, uint32_t i, uint8_t *header)
{
  const struct wal *wal = c->node->wal;
  uint32_t pgno = get_be32(header), n_page = get_be32(header + 4);
  if (c->chained != i || c->blank != UINT32_MAX) return;
  if (pgno == 1) c->diverged = true;
  if (c->diverged) {
    wal_encode_frame(header, pgno, n_page, c->given.salt,
                     header + WAL_FRAME_HEADER, wal->page_size, c->chain);
    if (n_page != 0) invert_salts(header);
  } else {
    c->chain[0] = get_be32(header + 16);
    c->chain[1] = get_be32(header + 20);
  }
  c->chained = i + 1;
}

static int write_header(struct connection *c, sqlite3_file *real,
                        const uint8_t *data, sqlite3_int64 offset,
                        uint32_t frame)
{
  static const uint8_t zeros[16];
  uint32_t had = c->n_pending, i = frame - c->given.mx_frame - 1;
  int rc = set_pending(c, frame, get_be32(data));
  if (rc != SQLITE_OK) return rc;
  uint8_t *header = place_of(c, i);
  if (header == NULL) return SQLITE_IOERR_NOMEM;
  memcpy(header, data, WAL_FRAME_HEADER);
  /* SQLite means to compute it later; see first_to_rewrite(). */
  if (memcmp(data + 8, zeros, sizeof(zeros)) == 0 && i < c->blank) c->blank = i;
  if (get_be32(data + 4) != 0) invert_salts(header);
  c->headed = c->n_pending > had ? frame : 0;
  /* A new frame is written with its page, which comes next. */
  if (c->headed) return SQLITE_OK;
  c->chained = UINT32_MAX;
  return real->pMethods->xWrite(real, header, WAL_FRAME_HEADER, offset);
}

/* The database is in WAL mode for all, and writable for nobody else. */
static void fence_page(const struct connection *c, uint32_t frame,
                       uint8_t *page)
{
  if (pgno_of(c, frame) != 1) return;
  page[18] = 3;
  page[19] = 2;
}

static int write_page(struct connection *c, sqlite3_file *real,
                      const uint8_t *data, int n, sqlite3_int64 offset,
                      uint32_t frame)
{
  uint32_t i = frame - c->given.mx_frame - 1;
  uint8_t *header = place_of(c, i);
  if (header == NULL) return SQLITE_IOERR_NOMEM;
  uint8_t *page = header + WAL_FRAME_HEADER;
  memcpy(page, data, (size_t)n);
  fence_page(c, frame, page);
  if (c->headed != frame) {
    c->chained = UINT32_MAX;
    return real->pMethods->xWrite(real, page, n, offset);
  }
  c->headed = 0;
  chain_frame(c, i, header);
  return real->pMethods->xWrite(real, header, n + (int)WAL_FRAME_HEADER,
                                offset - WAL_FRAME_HEADER);
}

/* ---- of a process that is attached -------------------------------------- */

/* Its frames are not in -wal until the host has written them there: should this
   process stand still, and wake up when others have their turn, it harms nothing.
   The first ones are kept as ever; the pages of the others are in a file without
   a name, each at its place. */

static bool no_room(void)
{
  return errno == ENOSPC || errno == EDQUOT;
}

static int open_draft(struct connection *c)
{
  if (c->draft >= 0) return SQLITE_OK;
  c->draft = open(c->database->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  char *path = NULL;
  if (c->draft < 0 && !no_room() &&
      asprintf(&path, "%s/draft-XXXXXX", c->database->dir) >= 0) {
    /* A file system without such files. */
    c->draft = mkostemp(path, O_CLOEXEC);
    if (c->draft >= 0) unlink(path);
    free(path);
  }
  if (c->draft >= 0) return SQLITE_OK;
  return no_room() ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static int draft_page(struct connection *c, uint32_t i, const uint8_t *page)
{
  int rc = open_draft(c);
  if (rc != SQLITE_OK) return rc;
  rc = io_posix.pwrite(NULL, c->draft, page, c->page_size,
                       (uint64_t)i * c->page_size);
  if (rc == -ENOSPC) return SQLITE_FULL;
  return rc ? SQLITE_IOERR_WRITE : SQLITE_OK;
}

static int draft_write(struct connection *c, const uint8_t *data, int n,
                       uint32_t inside, uint32_t frame)
{
  uint32_t i = frame - c->given.mx_frame - 1;
  if (capture_revoked(c)) return refuse_revoked(c);
  if (inside == 0 && n == (int)WAL_FRAME_HEADER) {
    int rc = set_pending(c, frame, get_be32(data));
    uint32_t n_page = get_be32(data + 4);
    if (rc == SQLITE_OK && n_page) {
      c->end = frame;
      c->end_n_page = n_page;
    }
    return rc;
  }
  if (inside != WAL_FRAME_HEADER || n != (int)c->page_size ||
      frame <= c->given.mx_frame || i >= c->n_pending)
    return SQLITE_IOERR_WRITE;
  if (i >= kept_most(c)) return draft_page(c, i, data);
  uint8_t *header = place_of(c, i);
  if (header == NULL) return SQLITE_IOERR_NOMEM;
  memcpy(header + WAL_FRAME_HEADER, data, c->page_size);
  return SQLITE_OK;
}

/* Of a header SQLite wants to know what it wrote of page numbers. */
static int draft_read(struct connection *c, uint8_t *data, int n,
                      uint32_t inside, uint32_t frame)
{
  uint32_t i = frame - c->given.mx_frame - 1, left = (uint32_t)n, skip = 0;
  uint8_t header[WAL_FRAME_HEADER] = {0};
  if (!c->writing || i >= c->n_pending ||
      inside + left > WAL_FRAME_HEADER + c->page_size)
    return SQLITE_IOERR_READ;
  put_be32(header, c->pending[i]);
  if (frame == c->end) put_be32(header + 4, c->end_n_page);
  if (inside < WAL_FRAME_HEADER) {
    skip = WAL_FRAME_HEADER - inside < left ? WAL_FRAME_HEADER - inside : left;
    memcpy(data, header + inside, skip);
    left -= skip;
  }
  if (left == 0) return SQLITE_OK;
  uint32_t at = inside + skip - WAL_FRAME_HEADER;
  if (i < kept_most(c)) {
    memcpy(data + skip, c->copies + i * frame_size(c) + WAL_FRAME_HEADER + at,
           left);
    return SQLITE_OK;
  }
  return io_posix.pread(NULL, c->draft, data + skip, left,
                        (uint64_t)i * c->page_size + at) == (ssize_t)left
             ? SQLITE_OK
             : SQLITE_IOERR_READ;
}

static void draft_clear(struct connection *c)
{
  if (c->draft >= 0) close(c->draft);
  c->draft = -1;
  c->end = 0;
}

/* All pages into the file, and their numbers behind them. */
static int complete_draft(struct connection *c, uint32_t count)
{
  uint32_t most = kept_most(c);
  int rc = SQLITE_OK;
  for (uint32_t i = 0; rc == SQLITE_OK && i < count && i < most; i++)
    rc = draft_page(c, i, place_of(c, i) + WAL_FRAME_HEADER);
  if (rc != SQLITE_OK) return rc;
  uint64_t bytes = session_commit_bytes(c->page_size, count);
  if (io_posix.pwrite(NULL, c->draft, c->pending, (size_t)count * 4,
                      (uint64_t)count * c->page_size) != 0 ||
      ftruncate(c->draft, (off_t)bytes) != 0)
    return SQLITE_IOERR_WRITE;
  return SQLITE_OK;
}

/* Hands the transaction over to the host. Its fate is told by capture_wait(),
   also when that failed. */
static void draft_send(struct connection *c, uint32_t count, uint32_t n_page)
{
  struct iovec parts[SESSION_PARTS];
  struct session_commit commit = {.n_page = n_page,
                                  .page_size = c->page_size,
                                  .count = count,
                                  .file = -1,
                                  .pgnos = c->pending,
                                  .parts = parts};
  bool fits = count <= kept_most(c) && count <= SESSION_PARTS &&
              session_commit_fits(c->page_size, count);
  int rc = count > 0 && count <= c->n_pending ? SQLITE_OK : SQLITE_IOERR_WRITE;
  for (uint32_t i = 0; rc == SQLITE_OK && fits && i < count; i++)
    parts[commit.n_parts++] =
        (struct iovec){place_of(c, i) + WAL_FRAME_HEADER, c->page_size};
  if (rc == SQLITE_OK && !fits) {
    rc = complete_draft(c, count);
    commit.file = c->draft;
  }
  if (rc == SQLITE_OK)
    attach_commit(c, &commit);
  else
    c->fault = rc;
}

/* COMMIT would be a success whatever becomes of the transaction. */
static int refuse_super_journal(struct connection *c)
{
  text_set(&c->reason,
           "transaction rolled back: SQLite does not say what becomes of a "
           "replicated database in a commit together with two or more that "
           "have a rollback journal: PRAGMA journal_mode=WAL for those");
  vfs_say(c);
  return VFS_REJECTED;
}

int capture_write(struct connection *c, sqlite3_file *real, const void *data,
                  int n, sqlite3_int64 offset)
{
  uint32_t inside, frame;
  int rc;
  if (!c->writing || offset < WAL_HEADER) return SQLITE_IOERR_WRITE;
  frame = frame_at(c, offset, &inside);
  bool ends = inside == 0 && n == (int)WAL_FRAME_HEADER &&
              get_be32((const uint8_t *)data + 4) != 0;
  if (ends && vfs_has_super_journal()) return refuse_super_journal(c);
  if (c->node == NULL) return draft_write(c, data, n, inside, frame);
  struct wal *wal = c->node->wal;
  pthread_mutex_lock(&wal->file_mutex);
  if (capture_revoked(c))
    rc = refuse_revoked(c);
  else if (inside == 0 && n == (int)WAL_FRAME_HEADER)
    rc = write_header(c, real, data, offset, frame);
  else if (inside == WAL_FRAME_HEADER && n == (int)wal->page_size &&
           frame > c->given.mx_frame)
    rc = write_page(c, real, data, n, offset, frame);
  else
    rc = SQLITE_IOERR_WRITE;
  pthread_mutex_unlock(&wal->file_mutex);
  if (rc == SQLITE_FULL) full_noticed(c->node);
  return rc;
}

int capture_read(struct connection *c, sqlite3_file *real, void *data, int n,
                 sqlite3_int64 offset)
{
  uint32_t inside = 0, frame = 0;
  if (offset >= WAL_HEADER) frame = frame_at(c, offset, &inside);
  if (c->node == NULL && frame > c->given.mx_frame)
    return draft_read(c, data, n, inside, frame);
  if (frame == 0 || n < 20) return real->pMethods->xRead(real, data, n, offset);
  int rc = pgno_of(c, frame) == 1 ? SQLITE_OK : capture_may_read(c);
  if (rc == SQLITE_OK) rc = real->pMethods->xRead(real, data, n, offset);
  if (rc != SQLITE_OK) return rc;
  /* What was not confirmed may have been written over meanwhile. */
  if (frame > c->sure && capture_revoked(c)) return refuse_revoked(c);
  /* A whole frame, or the page in it. */
  uint32_t skip = inside == 0 ? WAL_FRAME_HEADER : 0;
  if ((inside == 0 || inside == WAL_FRAME_HEADER) && (uint32_t)n > skip + 18 &&
      pgno_of(c, frame) == 1 && ((uint8_t *)data)[skip + 18] == 3)
    ((uint8_t *)data)[skip + 18] = 2;
  return rc;
}

/* ---- hand-over --------------------------------------------------------- */

static int by_frame(const void *a, const void *b)
{
  const struct wal_image *x = a, *y = b;
  return x->frame < y->frame ? -1 : x->frame > y->frame;
}

/* Lists the newest frame of each page of the transaction, in frame order. */
static struct wal_image *newest_images(const struct connection *c, uint32_t n,
                                       uint32_t n_page, uint32_t *count)
{
  struct wal_image *images = malloc((size_t)n * sizeof(*images));
  if (images == NULL) return NULL;
  for (uint32_t i = 0; i < n; i++) {
    images[i].pgno = c->pending[i];
    images[i].frame = c->given.mx_frame + 1 + i;
  }
  uint32_t kept = wal_newest(images, n, n_page);
  qsort(images, kept, sizeof(*images), by_frame);
  *count = kept;
  return images;
}

/* Writes a frame's header, unless the grant is gone and the frame another's. */
static int write_frame_header(struct connection *c, const uint8_t *head,
                              uint64_t offset)
{
  struct wal *wal = c->node->wal;
  pthread_mutex_lock(&wal->file_mutex);
  int rc = capture_revoked(c) ? -EPERM
                              : wal->io->pwrite(wal->io->ctx, wal->file, head,
                                                WAL_FRAME_HEADER, offset);
  pthread_mutex_unlock(&wal->file_mutex);
  return rc;
}

/* The first frame whose checksum SQLite did not compute as it must be on disk:
   of page 1, which it sees with another byte 18; or the first of all when its
   chain had left ours before; or one that it wrote with a blank header. It
   writes those anew at the commit, but after a ROLLBACK TO not always the first
   of them (SQLite before 3.50: sqlite3WalSavepointUndo() leaves iReCksum beyond
   the end). n: there is none. */
static uint32_t first_to_rewrite(const struct connection *c, uint32_t n)
{
  uint32_t first = 0;
  if (c->diverged) return 0;
  while (first < n && first < c->blank && c->pending[first] != 1)
    first++;
  return first;
}

/* Computes the chain of checksums anew where it has to be. */
static int rewrite_chain(struct connection *c, uint32_t n, uint32_t chain[2])
{
  struct wal *wal = c->node->wal;
  const struct io *io = wal->io;
  uint32_t first = first_to_rewrite(c, n);
  memcpy(chain, c->given.frame_checksum, 8);
  size_t size = WAL_FRAME_HEADER + wal->page_size;
  uint8_t *buf = malloc(size), head[WAL_FRAME_HEADER];
  int rc = buf ? 0 : -ENOMEM;
  for (uint32_t i = 0; rc == 0 && i < n; i++) {
    uint64_t at = wal_offset(wal, c->given.mx_frame + 1 + i);
    if (io->pread(io->ctx, wal->file, buf, size, at) != (ssize_t)size) {
      rc = -EIO;
    } else if (i < first) {
      chain[0] = get_be32(buf + 16);
      chain[1] = get_be32(buf + 20);
    } else {
      wal_encode_frame(head, get_be32(buf), get_be32(buf + 4), c->given.salt,
                       buf + WAL_FRAME_HEADER, wal->page_size, chain);
      if (get_be32(buf + 4) != 0) invert_salts(head);
      rc = write_frame_header(c, head, at);
    }
  }
  free(buf);
  return rc;
}

/* The frames on disk and the header that follows them have one chain. */
static int close_chain(struct connection *c, uint32_t n,
                       struct walindex_header *header)
{
  uint32_t *chain = c->chain;
  if (c->chained != n) {
    if (first_to_rewrite(c, n) == n) return 0;
    int rc = rewrite_chain(c, n, chain);
    if (rc) return rc;
  }
  if (memcmp(header->frame_checksum, chain, 8) != 0) {
    memcpy(header->frame_checksum, chain, 8);
    walindex_seal(header);
  }
  return 0;
}

static bool read_page(const struct connection *c, uint32_t frame, uint8_t *page)
{
  const struct wal *wal = c->node->wal;
  uint32_t i = frame - c->given.mx_frame - 1;
  if (i < kept_most(c)) {
    memcpy(page, c->copies + i * frame_size(c) + WAL_FRAME_HEADER,
           wal->page_size);
    return true;
  }
  return wal->io->pread(wal->io->ctx, wal->file, page, wal->page_size,
                        wal_offset(wal, frame) + WAL_FRAME_HEADER) ==
         (ssize_t)wal->page_size;
}

/* One part: `count` images from `images`, as they were written. */
static struct raft_body *make_part(struct connection *c,
                                   const struct wal_image *images,
                                   uint32_t count, const struct tx_head *head)
{
  struct wal *wal = c->node->wal;
  size_t offset = tx_pages_offset(count);
  struct raft_body *body =
      raft_body_new(offset + (size_t)count * wal->page_size);
  if (body == NULL) return NULL;
  memset(body->data, 0, offset);
  memcpy(body->data, head, sizeof(*head));
  for (uint32_t i = 0; i < count; i++) {
    memcpy(body->data + sizeof(*head) + (size_t)i * 4, &images[i].pgno, 4);
    if (!read_page(c, images[i].frame,
                   body->data + offset + (size_t)i * wal->page_size)) {
      raft_body_unref(body);
      return NULL;
    }
  }
  raft_body_seal(body);
  return body;
}

/* Hands all parts over, in order. -1: not handed over. */
static int hand_over(struct connection *c, struct transaction *tx,
                     const struct wal_image *images, uint32_t count)
{
  struct node *node = c->node;
  uint32_t page_size = node->wal->page_size;
  uint32_t per_part = node_limits.part_bytes / page_size;
  struct tx_head head = {.node = node->identity.id,
                         .incarnation = node->identity.incarnation,
                         .time_ms = clock_wall_ms(),
                         .page_size = page_size};
  pthread_mutex_lock(&node->mutex);
  head.sequence = tx->sequence = ++node->sequence;
  atomic_store(&node->shared->sequence, node->sequence);
  pthread_mutex_unlock(&node->mutex);
  if (c->slot) {
    /* Should this process end, the next host can tell its fate. Who waits no
       longer has told its application that it was rolled back. */
    uint64_t sent = CONTROL_SENT;
    tx->committed = &c->slot->committed;
    if (!atomic_compare_exchange_strong(&c->slot->handed, &sent, tx->sequence))
      return -1;
  }
  int work = -1, rc = -1;
  if (count > per_part) {
    tx->began = clock_monotonic_ns();
    work = work_begin(node, "committing a large transaction");
  }
  for (uint32_t at = 0;;) {
    uint32_t n = count - at < per_part ? count - at : per_part;
    bool last = at + n == count;
    head.count = n;
    head.n_page = last ? tx->header.n_page : 0;
    struct raft_body *body = make_part(c, images + at, n, &head);
    if (body == NULL ||
        node_hand_over(node, tx, last ? RAFT_COMMIT : RAFT_PAGES, body) != 0)
      break;
    rc = last ? 0 : rc;
    if (last) break;
    at += n;
    head.part++;
    if (c->working) c->working(c);
    work_bytes(node, work, (uint64_t)at * page_size,
               (uint64_t)count * page_size);
  }
  work_end(node, &work);
  return rc;
}

static bool read_numbers(const struct wal *wal, uint32_t frame,
                         uint8_t numbers[NUMBERS])
{
  return wal->io->pread(wal->io->ctx, wal->file, numbers, NUMBERS,
                        wal_offset(wal, frame) + WAL_FRAME_HEADER +
                            NUMBERS_AT) == NUMBERS;
}

/* The number of the schema, on page 1, is not that of the state before, or one of
   those beside it, which are read from there alone, and so before anybody knows
   whether who reads is going to write: user_version, application_id. */
static bool changes_schema(const struct connection *c,
                           const struct wal_image *images, uint32_t count)
{
  const struct wal *wal = c->node->wal;
  uint8_t before[NUMBERS], after[NUMBERS];
  uint32_t i = 0, base = c->given.mx_frame;
  while (i < count && images[i].pgno != 1)
    i++;
  if (i == count) return false;
  while (base > 1 && control_pgno(wal->map, base) != 1)
    base--; /* the first frame is one of page 1 */
  return !read_numbers(wal, base, before) ||
         !read_numbers(wal, images[i].frame, after) ||
         memcmp(before, after, NUMBERS) != 0;
}

/* n: its frames, all of which are known. */
static struct transaction *make_transaction(struct connection *c,
                                            const struct walindex_header *now,
                                            uint32_t n)
{
  struct transaction *tx = transaction_new();
  if (tx == NULL) return NULL;
  tx->grant = c->grant;
  tx->epoch = c->epoch;
  tx->base = c->given;
  tx->header = *now;
  tx->pages = malloc((size_t)n * sizeof(*tx->pages));
  if (tx->pages == NULL) {
    transaction_free(tx);
    return NULL;
  }
  memcpy(tx->pages, c->pending, (size_t)n * sizeof(*tx->pages));
  return tx;
}

/* Hands over what was written up to `now`. */
static void take_over(struct connection *c, const struct walindex_header *now)
{
  uint32_t n = now->mx_frame - c->given.mx_frame, count = 0;
  struct wal_image *images = NULL;
  assert(c->tx == NULL);
  /* Others than SQLite may have moved the header on. */
  bool whole = now->mx_frame > c->given.mx_frame && n <= c->n_pending;
  c->tx = make_transaction(c, now, whole ? n : 0);
  /* From here on the second phase tells: what cannot be handed over is
     rejected there. */
  if (c->tx == NULL) return;
  if (whole) images = newest_images(c, n, now->n_page, &count);
  c->tx->schema = images && changes_schema(c, images, count);
  if (images == NULL || count == 0 || capture_revoked(c) ||
      close_chain(c, n, &c->tx->header) != 0 ||
      hand_over(c, c->tx, images, count) != 0) {
    pthread_mutex_lock(&c->node->mutex);
    if (c->tx->state == TX_OPEN) c->tx->state = TX_REJECTED;
    pthread_mutex_unlock(&c->node->mutex);
    bell_ring(&c->tx->bell, 1);
  }
  free(images);
}

void capture_finish(struct connection *c)
{
  const struct walindex_header *now = walindex_header(&c->index);
  bool same = memcmp(now, &c->before, sizeof(*now)) == 0; /* rolled back */
  if (c->node && !same)
    take_over(c, now);
  else if (!same)
    draft_send(c, now->mx_frame - c->given.mx_frame, now->n_page);
  if (c->node == NULL) draft_clear(c);
  if (!same) walindex_info(&c->index)->read_mark[1] = now->mx_frame;
}

/* Frame `i` of a transaction of another process, its page behind `header`. */
static int write_for(struct connection *c, uint32_t i, uint8_t *header,
                     uint32_t n_page)
{
  struct wal *wal = c->node->wal;
  uint32_t frame = c->given.mx_frame + 1 + i;
  memset(header, 0, WAL_FRAME_HEADER);
  put_be32(header, c->pending[i]);
  put_be32(header + 4, n_page);
  fence_page(c, frame, header + WAL_FRAME_HEADER);
  pthread_mutex_lock(&wal->file_mutex);
  int rc = capture_revoked(c) ? refuse_revoked(c) : SQLITE_OK;
  if (rc == SQLITE_OK) {
    chain_frame(c, i, header);
    rc = wal->io->pwrite(wal->io->ctx, wal->file, header, frame_size(c),
                         wal_offset(wal, frame));
  }
  pthread_mutex_unlock(&wal->file_mutex);
  return rc;
}

/* A result code of SQLite, and the reason, for an errno value. */
static int not_written(struct connection *c, int rc)
{
  if (rc == -ENOSPC) full_noticed(c->node);
  text_set(&c->reason, "transaction rolled back: writing to -wal: %s",
           errno_text(-rc).s);
  return rc == -ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

int capture_for(struct connection *c, uint32_t count, uint32_t n_page,
                const uint32_t *pgnos,
                int (*page)(void *ctx, uint32_t i, uint8_t *data), void *ctx)
{
  struct walindex_header now = c->given;
  int rc = SQLITE_OK;
  c->before = c->given;
  c->writing = true;
  capture_begin(c);
  c->diverged = true; /* the chain is made here */
  for (uint32_t i = 0; rc == SQLITE_OK && i < count; i++) {
    uint8_t *header = place_of(c, i);
    if (c->working) c->working(c);
    rc = header ? set_pending(c, c->given.mx_frame + 1 + i, pgnos[i])
                : SQLITE_IOERR_NOMEM;
    if (rc == SQLITE_OK) rc = page(ctx, i, header + WAL_FRAME_HEADER);
    if (rc == SQLITE_OK)
      rc = write_for(c, i, header, i + 1 == count ? n_page : 0);
  }
  if (rc == SQLITE_OK) {
    now.mx_frame += count;
    now.n_page = n_page;
    now.change++;
    walindex_seal(&now);
    take_over(c, &now);
    if (c->tx == NULL) rc = SQLITE_IOERR_NOMEM;
  }
  c->writing = false;
  return rc < 0 ? not_written(c, rc) : rc;
}

/* ---- fate -------------------------------------------------------------- */

/* Its own transaction is confirmed: what the private index shows now, apart from
   the chain. */
static void show_own(struct connection *c, const struct walindex_header *header)
{
  c->given = *header;
  c->valid = c->sure = header->mx_frame;
  c->spoiled = c->ahead = false;
}

/* Nobody waits for it any more, unless it is settled by now. */
static enum tx_state give_up(struct connection *c, struct transaction *tx)
{
  pthread_mutex_lock(&c->node->mutex);
  enum tx_state state = tx->state;
  tx->abandoned = state == TX_WAITING;
  pthread_mutex_unlock(&c->node->mutex);
  return state;
}

static void say_unknown(struct connection *c, enum tx_state state)
{
  struct node *node = c->node;
  pthread_mutex_lock(&node->mutex);
  const char *why = state == TX_UNKNOWN     ? "the node was stopped"
                    : node->failed          ? "the node has failed"
                    : node_log_failed(node) ? NODE_LOG_FAILED
                    : node->out.s[0]        ? node->out.s
                                            : "no quorum answered in 30 s";
  pthread_mutex_unlock(&node->mutex);
  text_set(&c->reason,
           "outcome unknown: %s; the node settles it when there is a quorum",
           why);
}

/* How long the application waited: `end` is when it would have given up, and was
   set when it began. */
static void note_commit(struct node *node, const struct transaction *tx,
                        const struct timespec *end)
{
  uint64_t now = clock_monotonic_ns(), began = tx->began;
  if (began == 0)
    began = (uint64_t)end->tv_sec * 1000000000u + (uint64_t)end->tv_nsec -
            (uint64_t)node_limits.fate_ms * 1000000u;
  meter_add(&node->counters.commits, now - began);
}

void capture_drop(struct connection *c)
{
  struct transaction *tx = c->tx;
  c->tx = NULL;
  if (tx && give_up(c, tx) != TX_WAITING) transaction_free(tx);
}

int capture_wait(struct connection *c)
{
  struct node *node = c->node;
  struct transaction *tx = c->tx;
  struct timespec end;
  if (c->sent) {
    struct walindex_header header = c->given;
    int rc = attach_wait(c, &header);
    if (rc == SQLITE_OK) show_own(c, &header);
    return rc;
  }
  if (c->fault) {
    int fault = c->fault;
    c->fault = SQLITE_OK;
    c->spoiled = true;
    return fault;
  }
  if (tx == NULL) {
    /* Nothing was changed, or there was no memory to hand it over. What was
       read may be a head that is not confirmed. */
    return c->spoiled &&
                   c->given.mx_frame != walindex_header(&c->index)->mx_frame
               ? SQLITE_IOERR_NOMEM
               : capture_may_read(c);
  }
  c->tx = NULL;
  end = clock_deadline(node_limits.fate_ms);
  bool settled = bell_wait(&tx->bell, &end) == 1;
  enum tx_state state = settled ? tx->state : give_up(c, tx);
  if (state == TX_WAITING || state == TX_UNKNOWN) {
    atomic_fetch_add(&node->counters.unknown, 1);
    say_unknown(c, state);
    if (state == TX_UNKNOWN) transaction_free(tx);
    node_reason(node, "%s", c->reason.s);
    return VFS_UNKNOWN;
  }
  if (state == TX_CONFIRMED) {
    note_commit(node, tx, &end);
    show_own(c, &tx->header);
    transaction_free(tx);
    return SQLITE_OK;
  }
  atomic_fetch_add(&node->counters.rolled_back, 1);
  transaction_free(tx);
  text_set(&c->reason, "transaction rolled back: leadership was lost before "
                       "it was agreed on");
  node_reason(node, "%s", c->reason.s);
  return VFS_REJECTED;
}
