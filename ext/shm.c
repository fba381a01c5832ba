/*
** shm.c: the wal-index that a connection sees, and its virtual locks.
**
** SQLite begins a read transaction like this (wal.c, walTryBeginRead): it
** reads the header in the wal-index, then asks for a SHARED lock on one of the
** READ slots, then checks that the header did not change meanwhile. The VFS
** takes that lock call as the beginning of a snapshot:
**
**   - it waits until the node may answer (linearizable: a read index);
**   - it pins the newest confirmed transaction;
**   - if the private index already shows exactly that, it grants the lock;
**   - if not, it fills the private index and answers SQLITE_BUSY once. SQLite
**     takes that for a race, reads the header again and comes back, and is
**     granted what it was given, however far the node has moved on meanwhile.
**
** "Comes back" is told by xShmBarrier, which SQLite calls when it reads the
** header. A READ(0) that failed calls it once more before SQLite goes on to
** ask for READ(1..4) with the old header: that must fail too.
**
** A connection that is about to write waits for its turn here (writer.c), and is
** given the head: the newest transaction there is, confirmed or not. It may
** write only on that. It needs no read index: should the head not be what the
** cluster agreed on, its own transaction will not be agreed on either.
*/
#include "attach.h"

SQLITE_EXTENSION_INIT3

#include <assert.h>
#include <stdio.h>

#define HOLD_MS 5000 /* longest wait for a new WAL */
#define LOOK_MS 50   /* whether there is somebody to wait for */
#define ROUND_MS 200 /* time for the leader to answer */
#define SLOT_WRITE 0
#define SLOT_READ(i) (3 + (i))

static uint8_t *grow_private(void *ctx, unsigned i)
{
  (void)ctx;
  (void)i;
  return calloc(1, WALINDEX_REGION);
}

int vfs_shm_map(sqlite3_file *file, int region, int size, int extend,
                void volatile **out)
{
  struct connection *c = (struct connection *)file;
  (void)extend;
  *out = NULL;
  if (size != (int)WALINDEX_REGION || region < 0) return SQLITE_IOERR_SHMMAP;
  c->index.grow = grow_private;
  if (vfs_inherited(c)) return vfs_refuse_inherited(c);
  bool first = c->index.n_regions == 0;
  if (walindex_reserve(&c->index, (unsigned)region) != 0)
    return SQLITE_IOERR_NOMEM;
  if (!vfs_enter(c)) return SQLITE_IOERR_SHMMAP;
  if (first) {
    /* A valid header of an empty WAL of generation 0, so that SQLite has no
       reason to recover; the first read transaction fills it. */
    struct walindex_header header = {
        .page_size = walindex_encode_page_size(c->page_size)};
    walindex_seal(&header);
    walindex_publish(&c->index, &header);
    struct walindex_info *info = walindex_info(&c->index);
    for (int i = 1; i < 5; i++)
      info->read_mark[i] = i == 1 ? 0 : WALINDEX_NOT_USED;
    c->generation = 0;
    c->valid = 0;
    c->given = header;
  }
  *out = c->index.region[region];
  return SQLITE_OK;
}

static void unpin(struct connection *c)
{
  if (control_pinned(&c->reader)) control_unpin(c->map, &c->reader);
}

static int refuse(struct connection *c, int rc, const char *why)
{
  text_set(&c->reason, "%s", why);
  vfs_say(c);
  return rc;
}

/* ---- reading ----------------------------------------------------------- */

/* True when a statement that writes is running on this connection: then the
   read transaction that begins will want the write lock. */
static bool wants_to_write(struct connection *c)
{
  if (c->db == NULL || *c->db == NULL) return false;
  for (sqlite3_stmt *s = sqlite3_next_stmt(*c->db, NULL); s;
       s = sqlite3_next_stmt(*c->db, s))
    if (sqlite3_stmt_busy(s) && !sqlite3_stmt_readonly(s)) return true;
  return false;
}

/* Waits while the checkpointer begins the WAL anew. False: that takes too long,
   or its process has ended meanwhile, go on. */
static bool wait_for_hold(struct connection *c)
{
  if (atomic_load(&c->map->control->hold) != HOLD_ALL) return true;
  struct timespec end = clock_deadline(HOLD_MS), look;
  bool over = false;
  do {
    look = clock_deadline(LOOK_MS);
    if (control_wait_hold(c->map, &look)) return true;
    over = !clock_before(&look, &end) || !attach_hosted(c->database);
  } while (!over);
  return false;
}

/* Pins what is confirmed, or the head for whoever is to write, and tells what
   that is. False: nothing is read here any more. */
static bool pin(struct connection *c, struct walindex_header *header,
                uint32_t *backfill)
{
  struct control_view view;
  bool in_time, held;
  do {
    in_time = wait_for_hold(c);
    control_pin(c->map, &c->reader, c->reserved, &view);
    /* The checkpointer, once it holds back all readers and has found none,
       must not be surprised by one that was on its way. */
    held = in_time && atomic_load(&c->map->control->hold) == HOLD_ALL;
    if (held) unpin(c);
  } while (held);
  *header = c->reserved ? view.head : view.confirmed;
  *backfill = view.backfill;
  c->epoch = view.epoch;
  c->ahead = header->mx_frame != view.confirmed.mx_frame;
  /* Frames that were not confirmed when they were shown may be others now. */
  if (c->shown != c->epoch && c->valid > c->sure) {
    c->valid = c->sure;
    c->spoiled = true;
  }
  c->shown = c->epoch;
  c->sure = view.confirmed.mx_frame;
  return !view.closed;
}

/* Pages that SQLite has read of an unconfirmed head are in its cache, and nobody
   would wait for those (capture_may_read()): shown again, it looks like another
   one, with which the cache goes. */
static struct walindex_header disguise(struct connection *c,
                                       const struct walindex_header *header)
{
  struct walindex_header shown = *header;
  shown.change = walindex_header(&c->index)->change + 1;
  walindex_seal(&shown);
  return shown;
}

/* Makes the private index show the pinned snapshot. */
static int fill(struct connection *c, const struct walindex_header *header,
                uint32_t backfill)
{
  if (c->generation != c->reader.generation) {
    c->valid = 0;
    c->spoiled = true;
  }
  if (c->valid > header->mx_frame) {
    c->valid = header->mx_frame;
    c->spoiled = true;
  }
  if (c->spoiled) walindex_rewind(&c->index, c->valid);
  c->spoiled = false;
  for (uint32_t f = c->valid + 1; f <= header->mx_frame; f++) {
    uint32_t pgno = control_pgno(c->map, f);
    /* A page that is not found in -wal would be read from the file, as it was
       once. */
    if (pgno == 0 || walindex_append(&c->index, f, pgno) != 0) {
      c->spoiled = true;
      return SQLITE_IOERR_NOMEM;
    }
  }
  c->valid = header->mx_frame;
  c->generation = c->reader.generation;
  struct walindex_info *info = walindex_info(&c->index);
  info->backfill = info->backfill_attempted = backfill;
  info->read_mark[1] = header->mx_frame;
  bool again = memcmp(&c->given, header, sizeof(*header)) == 0;
  struct walindex_header shown =
      again && c->ahead ? disguise(c, header) : *header;
  c->given = *header;
  walindex_publish(&c->index, &shown);
  return SQLITE_OK;
}

/* What the statements that run on a connection read: nothing yet (SQLite reads
   the schema before it has a statement to run), nothing but the node's own
   tables, or data. */
enum asks { ASKS_SCHEMA, ASKS_STATE, ASKS_DATA };

static enum asks asks_for(struct connection *c)
{
  enum asks asks = ASKS_SCHEMA;
  static const char *const tables[] = {
      "%quorate_status%",  "%quorate_events%", "%quorate_members%",
      "%quorate_metrics%", "%quorate_log%",    "%quorate_invitations%"};
  if (c->db == NULL || *c->db == NULL) return ASKS_DATA;
  for (sqlite3_stmt *s = sqlite3_next_stmt(*c->db, NULL); s;
       s = sqlite3_next_stmt(*c->db, s)) {
    const char *sql = sqlite3_sql(s);
    if (!sqlite3_stmt_busy(s)) continue;
    bool named = false;
    for (unsigned i = 0; i < sizeof(tables) / sizeof(tables[0]) && sql; i++)
      named = named || sqlite3_strlike(tables[i], sql, 0) == 0;
    if (!named) return ASKS_DATA;
    asks = ASKS_STATE;
  }
  return asks;
}

/* Waits until what is applied may be read at the level of the connection. The
   state of the node must be known above all when there is no quorum: then it
   is told from what is here, and so is the schema, which the question needs;
   but not before a leader has had the time to be elected, or a node that was
   just started would say of a new table that it does not exist. */
static int barrier(struct connection *c, enum read_level level)
{
  const struct control *control = c->map->control;
  struct interrupt interrupt = {vfs_interrupted, c};
  if (atomic_load(&control->solo)) return SQLITE_OK;
  if (level == LEVEL_LOCAL && atomic_load(&control->serving)) return SQLITE_OK;
  if (level == LEVEL_LEASE && reads_leased(c->map)) return SQLITE_OK;
  enum asks asks = atomic_load(&control->led) ? ASKS_DATA : asks_for(c);
  if (asks == ASKS_STATE) return SQLITE_OK;
  unsigned wait = writer_patience(c, c->refused_read, ROUND_MS);
  unsigned elected = 2 * atomic_load(&control->election_ms);
  if (asks == ASKS_SCHEMA && wait > elected) wait = elected;
  int rc = c->node ? node_barrier(c->node, level, wait, &interrupt, &c->reason)
                   : attach_barrier(c, level, wait);
  if (rc == SQLITE_BUSY_TIMEOUT) c->refused_read = clock_monotonic_ms();
  return rc == SQLITE_BUSY_TIMEOUT && asks_for(c) != ASKS_DATA ? SQLITE_OK : rc;
}

static int take(struct connection *c)
{
  return c->node ? writer_take(c) : attach_take(c, false);
}

static int take_drained(struct connection *c)
{
  return c->node ? writer_take_drained(c) : attach_take(c, true);
}

void vfs_leave(struct connection *c)
{
  if (c->node)
    writer_leave(c);
  else
    attach_leave(c);
}

/* Waits for what the transaction needs that begins: its turn to write, or that
   what is here may be read. */
static int begin_here(struct connection *c, bool stale)
{
  /* Nobody in the way and nobody to ask: then it need not be known. */
  bool matters =
      c->node == NULL || atomic_load(&c->map->control->crowded) ||
      (c->level != LEVEL_LOCAL && !atomic_load(&c->map->control->solo));
  c->kept = false;
  if (matters && wants_to_write(c)) {
    /* What would be written without a quorum had no answer for long. */
    int rc = atomic_load(&c->map->control->near) ? SQLITE_OK
                                                 : barrier(c, LEVEL_WRITE);
    /* SQLite's busy handler comes back: the wait was this one. */
    if (rc && rc != VFS_MOVED) c->refused_write = clock_monotonic_ms();
    return rc ? rc : take(c);
  }
  int rc = barrier(c, c->level);
  if (rc == SQLITE_OK && stale && matters) {
    rc = take_drained(c);
    c->kept = c->reserved;
  }
  return rc;
}

/* The same, whoever hosts the node when it is done. */
static int begin(struct connection *c)
{
  bool stale = c->stale;
  int rc = VFS_MOVED;
  c->stale = false;
  for (int i = 0; i < VFS_MOVES && rc == VFS_MOVED; i++) {
    vfs_locate(c);
    rc = begin_here(c, stale);
  }
  return rc == VFS_MOVED
             ? refuse(c, SQLITE_BUSY_TIMEOUT, "the node has no host for long")
             : rc;
}

/* The slot is this connection's alone: no other thread adds to it. */
static void count_read(struct connection *c)
{
  _Atomic uint64_t *reads = &c->reader.slot->reads[c->level];
  atomic_store_explicit(reads,
                        atomic_load_explicit(reads, memory_order_relaxed) + 1,
                        memory_order_relaxed);
}

static int begin_read(struct connection *c, int slot)
{
  if (c->writing) return SQLITE_OK; /* another slot, the same snapshot */
  if (c->read_state == READ_RETRY) {
    if (c->barriers_left > 0) return SQLITE_BUSY;
    c->read_state = READ_GRANTED;
    return SQLITE_OK;
  }
  if (c->read_state == READ_GRANTED) return SQLITE_OK;
  /* SQLite gave up on a commit over several databases between its phases: this
     one had gone ahead. */
  if (c->tx != NULL || c->sent) capture_wait(c);

  int rc = begin(c);
  if (rc != SQLITE_OK) return rc;
  struct walindex_header header;
  uint32_t backfill;
  if (!pin(c, &header, &backfill)) {
    unpin(c);
    if (c->reserved) vfs_leave(c);
    return refuse(c, SQLITE_BUSY_TIMEOUT,
                  "the file was detached: open it anew");
  }
  if (!vfs_has_files(c)) {
    unpin(c);
    if (c->reserved) vfs_leave(c);
    return vfs_refuse_files(c);
  }
  c->fence_seen = false;
  if (!c->reserved && !c->looks) count_read(c);
  struct walindex_info *info = walindex_info(&c->index);
  bool same = c->generation == c->reader.generation && !c->spoiled &&
              memcmp(&c->given, &header, sizeof(header)) == 0;
  /* When all is in the database file, SQLite must know it and read from there,
     or it would keep the WAL from starting anew. */
  if (same && !c->ahead &&
      (backfill < header.mx_frame || info->backfill == backfill)) {
    c->read_state = READ_GRANTED;
    return SQLITE_OK;
  }
  rc = fill(c, &header, backfill);
  if (rc != SQLITE_OK) {
    unpin(c);
    if (c->reserved) vfs_leave(c);
    return rc;
  }
  c->read_state = READ_RETRY;
  c->barriers_left = slot == 0 ? 2 : 1;
  return SQLITE_BUSY;
}

static void end_read(struct connection *c)
{
  if (c->writing || c->read_state == READ_RETRY) return;
  c->read_state = READ_NONE;
  unpin(c);
  if (c->reserved) vfs_leave(c);
}

/* ---- writing ----------------------------------------------------------- */

/* With a host in another process, the turn that was taken is the lock. */
static int begin_there(struct connection *c)
{
  struct control_view view;
  if (!c->reserved || c->kept) return attach_upgrade(c);
  control_look(c->map, &view);
  return view.epoch == c->epoch && view.generation == c->reader.generation &&
                 memcmp(&view.head, &c->given, sizeof(c->given)) == 0
             ? SQLITE_OK
             : SQLITE_BUSY_SNAPSHOT;
}

static int begin_write(struct connection *c)
{
  if (c->writing) return SQLITE_OK;
  if (c->read_state != READ_GRANTED) return SQLITE_BUSY;
  int rc = VFS_MOVED;
  for (int i = 0; i < VFS_MOVES && rc == VFS_MOVED; i++) {
    vfs_locate(c);
    rc = c->node ? writer_begin(c) : begin_there(c);
  }
  if (rc == VFS_MOVED) rc = SQLITE_BUSY;
  c->stale = rc == SQLITE_BUSY_SNAPSHOT || rc == SQLITE_BUSY;
  if (rc != SQLITE_OK) return rc;
  c->before = *walindex_header(&c->index);
  c->writing = true;
  capture_begin(c);
  return SQLITE_OK;
}

/* sqlite3_backup_step() takes the write lock and then finds out that the page
   sizes differ: all that it says is SQLITE_READONLY. It is the one that writes
   without a statement; a COMMIT of nothing is one. */
static void note_failed_copy(struct connection *c)
{
  char text[TEXT_MAX];
  if (c->n_pending > 0 || c->db == NULL || *c->db == NULL ||
      !sqlite3_get_autocommit(*c->db))
    return;
  for (sqlite3_stmt *s = sqlite3_next_stmt(*c->db, NULL); s;
       s = sqlite3_next_stmt(*c->db, s))
    if (sqlite3_stmt_busy(s)) return;
  snprintf(text, sizeof(text),
           "nothing was copied: what is restored into this database must have "
           "its page size, %u bytes",
           c->page_size);
  sqlite3_log(SQLITE_READONLY, "quorate: %s: %s", c->database->path, text);
  refuse(c, SQLITE_READONLY, text);
}

static void end_write(struct connection *c)
{
  if (!c->writing) return;
  note_failed_copy(c);
  capture_finish(c);
  if (c->n_pending > 0) c->spoiled = true;
  c->writing = false;
  if (c->node || c->reserved) vfs_leave(c);
}

/* ---- the VFS's methods ------------------------------------------------- */

int vfs_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
  struct connection *c = (struct connection *)file;
  bool shared = (flags & SQLITE_SHM_SHARED) != 0;
  if (vfs_inherited(c))
    return flags & SQLITE_SHM_UNLOCK ? SQLITE_OK : vfs_refuse_inherited(c);
  if (flags & SQLITE_SHM_UNLOCK) {
    if (!shared && offset == SLOT_WRITE)
      end_write(c);
    else if (shared && offset >= SLOT_READ(0))
      end_read(c);
    return SQLITE_OK;
  }
  if (c->index.n_regions == 0) return SQLITE_IOERR_SHMLOCK;
  if (shared && offset >= SLOT_READ(0))
    return begin_read(c, offset - SLOT_READ(0));
  if (shared) return SQLITE_OK;
  if (offset == SLOT_WRITE && n == 1) return begin_write(c);
  /* Checkpoints, recovery and a new WAL are the node's business. */
  return SQLITE_BUSY;
}

void vfs_shm_barrier(sqlite3_file *file)
{
  struct connection *c = (struct connection *)file;
  if (c->barriers_left > 0) c->barriers_left--;
  __sync_synchronize();
}

int vfs_shm_unmap(sqlite3_file *file, int delete_it)
{
  struct connection *c = (struct connection *)file;
  (void)delete_it;
  if (!vfs_inherited(c)) {
    end_write(c);
    if (c->reserved) vfs_leave(c);
    c->read_state = READ_NONE;
    unpin(c);
  }
  for (unsigned i = 0; i < c->index.n_regions; i++)
    free(c->index.region[i]);
  free(c->index.region);
  memset(&c->index, 0, sizeof(c->index));
  return SQLITE_OK;
}
