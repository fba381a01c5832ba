/*
** world.h: a node's files as wal.c keeps them, without the node.
**
** The world has an origin, whose transactions stand for the log of the cluster;
** the real files, written through a table of I/O functions that records and
** fails on request; and a stock reader in a process of its own.
*/
#ifndef TEST_WORLD_H
#define TEST_WORLD_H

#include "stock.h"
#include "wal.h"

#include <errno.h>
#include <stdatomic.h>

/* ---- I/O that is looked at --------------------------------------------- */

struct spy {
  struct io io;
  char kind[256]; /* of each descriptor: d, w, s */
  char trace
      [256]; /* W, D write; w, d sync; n sync names; t truncate the database; F floor */
  long countdown; /* the operation at 1 fails; 0: none does */
  char fail_kind; /* writes to these files find no room */
  unsigned fired;
  void (*on_write)(struct spy *spy, char kind, const uint8_t *data, size_t n,
                   uint64_t offset);
  void *ctx;
};

static inline int spy_fault(struct spy *s)
{
  if (s->countdown == 0 || --s->countdown > 0) return 0;
  s->fired++;
  return -EIO;
}

static inline void spy_note(struct spy *s, char what)
{
  size_t n = strlen(s->trace);
  if (n + 1 < sizeof(s->trace) && (n == 0 || s->trace[n - 1] != what))
    s->trace[n] = what;
}

static inline char spy_kind(const struct spy *s, int fd)
{
  return fd >= 0 && fd < 256 ? s->kind[fd] : 0;
}

static inline int spy_open(void *ctx, const char *path, int flags)
{
  struct spy *s = ctx;
  int rc = spy_fault(s), fd = rc ? rc : io_posix.open(NULL, path, flags);
  if (fd >= 0 && fd < 256)
    s->kind[fd] = strstr(path, "-wal") ? 'w' : strstr(path, "-shm") ? 's' : 'd';
  return fd;
}

static inline ssize_t spy_pread(void *ctx, int fd, void *buf, size_t n,
                                uint64_t offset)
{
  int rc = spy_fault(ctx);
  return rc ? rc : io_posix.pread(NULL, fd, buf, n, offset);
}

static inline int spy_pwrite(void *ctx, int fd, const void *buf, size_t n,
                             uint64_t offset)
{
  struct spy *s = ctx;
  char kind = spy_kind(s, fd);
  int rc = spy_fault(s);
  if (kind && kind == s->fail_kind) {
    s->fired++;
    rc = -ENOSPC;
  }
  if (rc) return rc;
  if (kind != 's') spy_note(s, kind == 'w' ? 'W' : 'D');
  if (s->on_write) s->on_write(s, kind, buf, n, offset);
  return io_posix.pwrite(NULL, fd, buf, n, offset);
}

static inline int spy_sync(void *ctx, int fd)
{
  struct spy *s = ctx;
  int rc = spy_fault(s);
  if (rc == 0) spy_note(s, spy_kind(s, fd));
  return rc; /* nothing here survives the machine: no need to wait for it */
}

static inline int spy_sync_dir(void *ctx, const char *path)
{
  struct spy *s = ctx;
  int rc = spy_fault(s);
  (void)path;
  if (rc == 0) spy_note(s, 'n');
  return rc;
}

static inline int spy_truncate(void *ctx, int fd, uint64_t size)
{
  struct spy *s = ctx;
  int rc = spy_fault(s);
  if (rc) return rc;
  if (spy_kind(s, fd) == 'd') spy_note(s, 't');
  return io_posix.truncate(NULL, fd, size);
}

static inline int spy_size(void *ctx, int fd, uint64_t *size)
{
  int rc = spy_fault(ctx);
  return rc ? rc : io_posix.size(NULL, fd, size);
}

static inline void spy_init(struct spy *s)
{
  memset(s, 0, sizeof(*s));
  s->io = io_posix;
  s->io.ctx = s;
  s->io.open = spy_open;
  s->io.pread = spy_pread;
  s->io.pwrite = spy_pwrite;
  s->io.sync = spy_sync;
  s->io.sync_dir = spy_sync_dir;
  s->io.truncate = spy_truncate;
  s->io.size = spy_size;
}

/* ---- the world --------------------------------------------------------- */

struct world {
  const char *dir;
  char db[PATH_BYTES], wal_path[PATH_BYTES], shm_path[PATH_BYTES];
  struct origin origin;
  struct spy spy;
  struct reader reader;
  struct wal *wal;
  struct control_map *map;
  raft_index index, floor; /* newest entry; last argument of floor() */
  int floor_rc;
};

/* The error text of a refusal, or NULL. Free it. */
static inline char *world_try_open(struct world *w, int *rc)
{
  char *error = NULL;
  *rc = wal_open(&w->spy.io, w->db, w->index, w->map, &w->wal, &error);
  assert_int_equal(*rc == 0, w->wal != NULL);
  return error;
}

static inline void world_open(struct world *w)
{
  int rc;
  char *error = world_try_open(w, &rc);
  if (rc) fail_msg("wal_open: %d: %s", rc, error ? error : "-");
  assert_null(error);
}

static inline void world_close(struct world *w, bool clean)
{
  wal_close(w->wal, clean);
  wal_free(w->wal);
  w->wal = NULL;
}

static inline void world_init(struct world *w, void **state, uint32_t page_size)
{
  memset(w, 0, sizeof(*w));
  w->dir = *state;
  snprintf(w->db, sizeof(w->db), "%sdb", w->dir);
  snprintf(w->wal_path, sizeof(w->wal_path), "%sdb-wal", w->dir);
  snprintf(w->shm_path, sizeof(w->shm_path), "%sdb-shm", w->dir);
  origin_open(&w->origin, w->dir, page_size);
  origin_copy(&w->origin, w->db, true);
  spy_init(&w->spy);
  assert_int_equal(control_open(&io_posix, NULL, true, &w->map), 0);
  w->index = 10;
  reader_start(&w->reader, w->db);
}

static inline void world_free(struct world *w)
{
  if (w->wal) world_close(w, false);
  control_close(w->map);
  reader_stop(&w->reader);
  origin_close(&w->origin);
  unlink(w->wal_path);
  unlink(w->shm_path);
}

/* ---- applying ---------------------------------------------------------- */

/* All pages, or those that the last step changed. */
static inline int world_append(struct world *w, bool all)
{
  struct origin *o = &w->origin;
  uint32_t n = all ? o->n_page : o->n_changed;
  int rc = 0;
  wal_append_start(w->wal);
  for (uint32_t i = 0; rc == 0 && i < n; i++) {
    uint32_t pgno = all ? i + 1 : o->changed[i];
    rc = wal_append_page(w->wal, pgno, origin_page(o, pgno));
  }
  return rc ? rc : wal_append_commit(w->wal, o->n_page, w->index);
}

/* A transaction of another node. */
static inline void world_step(struct world *w, const char *sql)
{
  uint32_t was = w->wal->confirmed.mx_frame;
  origin_step(&w->origin, sql);
  w->index++;
  assert_int_equal(world_append(w, false), 0);
  assert_int_equal(w->wal->confirmed.mx_frame, was + w->origin.n_changed);
  assert_int_equal(w->wal->confirmed.n_page, w->origin.n_page);
  assert_int_equal(w->wal->confirmed_index, w->index);
  assert_int_equal(atomic_load(&w->map->control->confirmed), w->index);
}

/* A transaction as a connection of this node writes it: the frames are in
   -wal, the salts of the last one inverted. *header is what SQLite makes. */
static inline void world_write_local(struct world *w, const char *sql,
                                     struct walindex_header *header)
{
  struct origin *o = &w->origin;
  size_t size = o->page_size + WAL_FRAME_HEADER;
  uint8_t *buf = malloc(size);
  assert_non_null(buf);
  origin_step(o, sql);
  *header = w->wal->confirmed;
  header->change++;
  for (uint32_t i = 0; i < o->n_changed; i++) {
    bool last = i + 1 == o->n_changed;
    const uint8_t *page = origin_page(o, o->changed[i]);
    wal_encode_frame(buf, o->changed[i], last ? o->n_page : 0, header->salt,
                     page, o->page_size, header->frame_checksum);
    memcpy(buf + WAL_FRAME_HEADER, page, o->page_size);
    for (unsigned k = 8; last && k < 16; k++)
      buf[k] = (uint8_t)~buf[k];
    file_patch(w->wal_path, wal_offset(w->wal, ++header->mx_frame), buf, size);
  }
  header->n_page = o->n_page;
  walindex_seal(header);
  free(buf);
}

/* ---- checkpoints ------------------------------------------------------- */

static inline int world_floor(void *ctx, raft_index index)
{
  struct world *w = ctx;
  spy_note(&w->spy, 'F');
  w->floor = index;
  return w->floor_rc;
}

/* 0 and full; 1 and why not; or an error. */
static inline int world_checkpoint(struct world *w, struct wal_pinner *pinned)
{
  struct wal_checkpointed done;
  int rc = wal_checkpoint(w->wal, world_floor, w, &done);
  *pinned = done.pinned;
  if (rc) return rc;
  if (done.full) assert_int_equal(done.index, w->index);
  return done.full ? 0 : 1;
}

static inline void world_checkpoint_full(struct world *w)
{
  struct wal_pinner pinned;
  int rc = world_checkpoint(w, &pinned);
  if (rc) fail_msg("checkpoint: %d: %s", rc, pinned.s);
  assert_string_equal(pinned.s, "");
  assert_int_equal(w->wal->backfill, w->wal->confirmed.mx_frame);
}

/* The database file alone is the origin, byte by byte. */
static inline void world_file_is_origin(const struct world *w)
{
  size_t len;
  uint8_t *data = file_read(w->db, &len);
  assert_int_equal(len, w->origin.len);
  assert_memory_equal(data, w->origin.image, len);
  free(data);
}

/* ---- what must hold ---------------------------------------------------- */

static inline void world_check(struct world *w)
{
  size_t wal_len, shm_len;
  uint8_t *wal = file_read(w->wal_path, &wal_len);
  uint8_t *shm = file_read(w->shm_path, &shm_len);
  uint32_t salt[2], mark[5], n = w->wal->confirmed.mx_frame;
  /* W1: what the real -shm shows is what is confirmed. */
  assert_memory_equal(shm, &w->wal->confirmed, 48);
  assert_memory_equal(shm + 48, &w->wal->confirmed, 48);
  assert_memory_equal(shm + 96, &w->wal->backfill, 4);
  assert_true(w->wal->backfill <= n);
  memcpy(mark, shm + 100, sizeof(mark));
  for (unsigned i = 0; i < 5; i++)
    assert_true(mark[i] == WALINDEX_NOT_USED || mark[i] <= n);
  /* W5, and the salts of every confirmed frame. */
  memcpy(salt, wal + 16, 8);
  assert_memory_equal(salt, w->wal->confirmed.salt, 8);
  assert_true(n >= 1 && wal_len >= wal_offset(w->wal, n + 1));
  assert_int_equal(get_be32(wal + WAL_HEADER), 1);
  for (uint32_t f = 1; f <= n; f++) {
    const uint8_t *frame = wal + wal_offset(w->wal, f);
    assert_memory_equal(frame + 8, salt, 8);
    assert_int_equal(get_be32(frame), control_pgno(w->wal->map, f));
    assert_int_equal(get_be32(frame), walindex_pgno(&w->wal->index, f));
  }
  free(wal);
  free(shm);
}

#endif
