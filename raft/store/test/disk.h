/*
** disk.h: a disk in memory behind struct io, for the tests of this folder.
**
** It knows what a real one has promised: a sector (512 bytes) that was written
** and not synced may be old or new after a crash, each for itself; a name that
** was made, moved or removed is so for sure only after its directory was
** synced, and until then each such change may or may not have happened.
** A sync that fails leaves its sectors clean in the cache and old on the disk,
** as Linux does: only writing them again brings them there.
**
** Modes: `fail_in` counts down over the calls that change something; the one
** that reaches zero fails with `fail_errno`, and with `fail_dead` so do all
** after it. disk_crash() is a loss of power. Dropping the store and opening it
** again is a killed process: the cache lives on.
*/
#ifndef TEST_DISK_H
#define TEST_DISK_H

#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define DISK_FILES 1024
#define DISK_FDS 1024
#define DISK_TRACE 4096

enum op {
  OP_CREATE = 'c',
  OP_WRITE = 'w',
  OP_SYNC = 's',
  OP_TRUNCATE = 't',
  OP_RENAME = 'r',
  OP_UNLINK = 'u',
  OP_SYNC_DIR = 'd'
};

struct inode {
  uint8_t *cache, *platter;
  uint8_t *dirty; /* a byte for each sector */
  uint64_t size, durable_size, cap;
};

struct dir_entry {
  char path[64];
  struct inode *inode;
};

struct dir_change {
  enum op op;
  char path[64], to[64];
  struct inode *inode;
};

struct disk {
  struct io io;
  pthread_mutex_t lock;
  struct inode *inodes[4 * DISK_FILES];
  unsigned n_inodes;
  struct dir_entry names[DISK_FILES], durable[DISK_FILES];
  unsigned n_names, n_durable;
  struct dir_change changes[DISK_FILES];
  unsigned n_changes;
  struct inode *fds[DISK_FDS];
  char fd_paths[DISK_FDS][64];
  uint64_t random;
  long fail_in; /* 0: never */
  int fail_errno;
  bool fail_dead, dead;
  /* who makes a file, or who reads one whose path contains this, waits while
     it is set; held: somebody does */
  bool hold_creates;
  const char *hold_reads;
  bool held;
  pthread_cond_t released;
  unsigned long faults, calls;
  /* what was done, newest last: pairs of enum op and disk_kind() */
  char trace[DISK_TRACE];
  unsigned n_trace;
};

static inline uint64_t disk_random(struct disk *d)
{
  d->random ^= d->random << 13;
  d->random ^= d->random >> 7;
  d->random ^= d->random << 17;
  return d->random;
}

/* v: vote, l: segment, p: spare, x: anything else */
static inline char disk_kind(const char *path)
{
  if (strstr(path, "vote")) return 'v';
  if (strstr(path, ".spare")) return 'p';
  return strstr(path, ".seg") ? 'l' : 'x';
}

/* Notes a changing call; an errno if it is to fail. Lock held. */
static inline int disk_step(struct disk *d, enum op op, const char *path)
{
  if (d->n_trace + 2 < DISK_TRACE) {
    d->trace[d->n_trace++] = (char)op;
    d->trace[d->n_trace++] = disk_kind(path);
    d->trace[d->n_trace] = 0;
  }
  d->calls++;
  if (d->dead) return -EIO;
  if (!d->fail_in || --d->fail_in) return 0;
  d->faults++;
  d->dead = d->fail_dead;
  return -d->fail_errno;
}

static inline struct dir_entry *disk_find(struct dir_entry *names, unsigned n,
                                          const char *path)
{
  unsigned i;

  for (i = 0; i < n; i++)
    if (!strcmp(names[i].path, path)) return &names[i];
  return NULL;
}

static inline void disk_link(struct dir_entry *names, unsigned *n,
                             const char *path, struct inode *inode)
{
  struct dir_entry *e = disk_find(names, *n, path);

  if (!e) {
    if (*n == DISK_FILES) abort();
    e = &names[(*n)++];
  }
  (void)snprintf(e->path, sizeof(e->path), "%s", path);
  e->inode = inode;
}

static inline void disk_drop(struct dir_entry *names, unsigned *n,
                             const char *path)
{
  struct dir_entry *e = disk_find(names, *n, path);

  if (e) *e = names[--*n];
}

static inline void disk_apply(struct dir_entry *names, unsigned *n,
                              const struct dir_change *change)
{
  struct dir_entry *e;

  switch (change->op) {
  case OP_CREATE: disk_link(names, n, change->path, change->inode); break;
  case OP_UNLINK: disk_drop(names, n, change->path); break;
  case OP_RENAME:
    e = disk_find(names, *n, change->path);
    if (!e) break; /* never came into being, or was kept by chance */
    {
      struct inode *inode = e->inode;

      disk_drop(names, n, change->path);
      disk_link(names, n, change->to, inode);
    }
    break;
  default: abort();
  }
}

static inline void disk_change(struct disk *d, enum op op, const char *path,
                               const char *to, struct inode *inode)
{
  struct dir_change *c;

  if (d->n_changes == DISK_FILES) abort();
  c = &d->changes[d->n_changes++];
  c->op = op;
  (void)snprintf(c->path, sizeof(c->path), "%s", path);
  (void)snprintf(c->to, sizeof(c->to), "%s", to ? to : "");
  c->inode = inode;
  disk_apply(d->names, &d->n_names, c);
}

/* ---- the calls ---------------------------------------------------------- */

static inline void disk_grow(struct inode *inode, uint64_t size)
{
  uint64_t cap = (size + SECTOR - 1) / SECTOR * SECTOR;

  if (cap <= inode->cap) return;
  inode->cache = realloc(inode->cache, cap);
  inode->platter = realloc(inode->platter, cap);
  inode->dirty = realloc(inode->dirty, cap / SECTOR);
  if (!inode->cache || !inode->platter || !inode->dirty) abort();
  memset(inode->cache + inode->cap, 0, cap - inode->cap);
  memset(inode->platter + inode->cap, 0, cap - inode->cap);
  memset(inode->dirty + inode->cap / SECTOR, 0, (cap - inode->cap) / SECTOR);
  inode->cap = cap;
}

static inline void disk_put(struct inode *inode, const void *buf, size_t n,
                            uint64_t offset)
{
  uint64_t i;

  if (!n) return;
  disk_grow(inode, offset + n);
  memcpy(inode->cache + offset, buf, n);
  for (i = offset / SECTOR; i <= (offset + n - 1) / SECTOR; i++)
    inode->dirty[i] = 1;
  if (offset + n > inode->size) inode->size = offset + n;
}

static inline int disk_open(void *ctx, const char *path, int flags)
{
  struct disk *d = ctx;
  struct dir_entry *e;
  int fd, rc = 0;

  (void)pthread_mutex_lock(&d->lock);
  while (flags & O_CREAT && d->hold_creates)
    (void)pthread_cond_wait(&d->released, &d->lock);
  e = disk_find(d->names, d->n_names, path);
  if (!e && !(flags & O_CREAT)) rc = -ENOENT;
  if (!rc && flags & (O_CREAT | O_TRUNC)) rc = disk_step(d, OP_CREATE, path);
  for (fd = 0; !rc && fd < DISK_FDS && d->fds[fd]; fd++)
    ;
  if (!rc && fd == DISK_FDS) rc = -EMFILE;
  if (!rc && !e) {
    struct inode *inode = calloc(1, sizeof(*inode));

    if (!inode || d->n_inodes == 4 * DISK_FILES) abort();
    d->inodes[d->n_inodes++] = inode;
    disk_change(d, OP_CREATE, path, NULL, inode);
    e = disk_find(d->names, d->n_names, path);
  } else if (!rc && flags & O_TRUNC) {
    if (e->inode->cap) {
      memset(e->inode->cache, 0, e->inode->cap);
      memset(e->inode->dirty, 1, e->inode->cap / SECTOR);
    }
    e->inode->size = 0;
  }
  if (!rc) {
    d->fds[fd] = e->inode;
    (void)snprintf(d->fd_paths[fd], sizeof(d->fd_paths[fd]), "%s", path);
  }
  (void)pthread_mutex_unlock(&d->lock);
  return rc ? rc : fd;
}

static inline void disk_close(void *ctx, int fd)
{
  struct disk *d = ctx;

  (void)pthread_mutex_lock(&d->lock);
  d->fds[fd] = NULL;
  (void)pthread_mutex_unlock(&d->lock);
}

static inline ssize_t disk_pread(void *ctx, int fd, void *buf, size_t n,
                                 uint64_t offset)
{
  struct disk *d = ctx;
  struct inode *inode;

  (void)pthread_mutex_lock(&d->lock);
  while (d->hold_reads && strstr(d->fd_paths[fd], d->hold_reads)) {
    d->held = true;
    (void)pthread_cond_wait(&d->released, &d->lock);
  }
  inode = d->fds[fd];
  if (offset >= inode->size) n = 0;
  if (n > inode->size - offset) n = inode->size - offset;
  if (n) memcpy(buf, inode->cache + offset, n);
  (void)pthread_mutex_unlock(&d->lock);
  return (ssize_t)n;
}

static inline int disk_pwritev(void *ctx, int fd, const struct iovec *iov,
                               int n, uint64_t offset)
{
  struct disk *d = ctx;
  int i, rc, some = n;
  bool was_dead;

  (void)pthread_mutex_lock(&d->lock);
  was_dead = d->dead;
  rc = disk_step(d, OP_WRITE, d->fd_paths[fd]);
  /* how much a failing write has written is anybody's guess */
  if (rc) some = was_dead ? 0 : (int)(disk_random(d) % (uint64_t)(n + 1));
  for (i = 0; i < some; i++) {
    disk_put(d->fds[fd], iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_pwrite(void *ctx, int fd, const void *buf, size_t n,
                              uint64_t offset)
{
  union {
    const void *in;
    void *out;
  } base = {.in = buf};
  struct iovec iov = {.iov_base = base.out, .iov_len = n};

  return disk_pwritev(ctx, fd, &iov, 1, offset);
}

static inline int disk_sync(void *ctx, int fd)
{
  struct disk *d = ctx;
  struct inode *inode;
  uint64_t i;
  int rc;

  (void)pthread_mutex_lock(&d->lock);
  rc = disk_step(d, OP_SYNC, d->fd_paths[fd]);
  inode = d->fds[fd];
  for (i = 0; i < inode->cap / SECTOR && !d->dead; i++) {
    if (inode->dirty[i] && !rc)
      memcpy(inode->platter + i * SECTOR, inode->cache + i * SECTOR, SECTOR);
    inode->dirty[i] = 0;
  }
  if (!rc) inode->durable_size = inode->size;
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_truncate(void *ctx, int fd, uint64_t size)
{
  struct disk *d = ctx;
  int rc;

  (void)pthread_mutex_lock(&d->lock);
  rc = disk_step(d, OP_TRUNCATE, d->fd_paths[fd]);
  if (!rc) {
    disk_grow(d->fds[fd], size);
    d->fds[fd]->size = size;
  }
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_size(void *ctx, int fd, uint64_t *size)
{
  struct disk *d = ctx;

  (void)pthread_mutex_lock(&d->lock);
  *size = d->fds[fd]->size;
  (void)pthread_mutex_unlock(&d->lock);
  return 0;
}

static inline int disk_rename(void *ctx, const char *from, const char *to)
{
  struct disk *d = ctx;
  int rc, fd;

  (void)pthread_mutex_lock(&d->lock);
  rc = disk_step(d, OP_RENAME, from);
  if (!rc && !disk_find(d->names, d->n_names, from)) rc = -ENOENT;
  for (fd = 0; !rc && fd < DISK_FDS; fd++)
    if (d->fds[fd] && !strcmp(d->fd_paths[fd], from))
      (void)snprintf(d->fd_paths[fd], sizeof(d->fd_paths[fd]), "%s", to);
  if (!rc) disk_change(d, OP_RENAME, from, to, NULL);
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_unlink(void *ctx, const char *path)
{
  struct disk *d = ctx;
  int rc;

  (void)pthread_mutex_lock(&d->lock);
  rc = disk_step(d, OP_UNLINK, path);
  if (!rc && !disk_find(d->names, d->n_names, path)) rc = -ENOENT;
  if (!rc) disk_change(d, OP_UNLINK, path, NULL, NULL);
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_mkdir(void *ctx, const char *path)
{
  (void)ctx;
  (void)path;
  return 0; /* directories are only beginnings of names here */
}

static inline bool disk_in(const char *dir, const char *path)
{
  size_t n = strlen(dir);

  return !strncmp(dir, path, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

static inline int disk_sync_dir(void *ctx, const char *dir)
{
  struct disk *d = ctx;
  unsigned i, n = 0;
  int rc;

  (void)pthread_mutex_lock(&d->lock);
  rc = disk_step(d, OP_SYNC_DIR, dir);
  for (i = 0; i < d->n_changes && !rc; i++) {
    if (disk_in(dir, d->changes[i].path))
      disk_apply(d->durable, &d->n_durable, &d->changes[i]);
    else
      d->changes[n++] = d->changes[i];
  }
  if (!rc) d->n_changes = n;
  (void)pthread_mutex_unlock(&d->lock);
  return rc;
}

static inline int disk_list(void *ctx, const char *path,
                            void (*each)(void *arg, const char *name),
                            void *arg)
{
  struct disk *d = ctx;
  unsigned i;

  (void)pthread_mutex_lock(&d->lock);
  for (i = 0; i < d->n_names; i++)
    if (disk_in(path, d->names[i].path))
      each(arg, d->names[i].path + strlen(path) + 1);
  (void)pthread_mutex_unlock(&d->lock);
  return 0;
}

/* ---- the disk ----------------------------------------------------------- */

static inline struct disk *disk_new(uint64_t seed)
{
  struct disk *d = calloc(1, sizeof(*d));

  if (!d) abort();
  d->io = (struct io){
      .ctx = d,
      .open = disk_open,
      .close = disk_close,
      .pread = disk_pread,
      .pwrite = disk_pwrite,
      .pwritev = disk_pwritev,
      .sync = disk_sync,
      .truncate = disk_truncate,
      .size = disk_size,
      .rename = disk_rename,
      .unlink = disk_unlink,
      .mkdir = disk_mkdir,
      .sync_dir = disk_sync_dir,
      .list = disk_list,
  };
  (void)pthread_mutex_init(&d->lock, NULL);
  (void)pthread_cond_init(&d->released, NULL);
  d->random = seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
  d->fail_errno = EIO;
  return d;
}

static inline void disk_free_inode(struct inode *inode)
{
  free(inode->cache);
  free(inode->platter);
  free(inode->dirty);
  free(inode);
}

static inline void disk_free(struct disk *d)
{
  unsigned i;

  for (i = 0; i < d->n_inodes; i++)
    disk_free_inode(d->inodes[i]);
  (void)pthread_cond_destroy(&d->released);
  (void)pthread_mutex_destroy(&d->lock);
  free(d);
}

/* Another disk with the same files, all of them synced. */
static inline struct disk *disk_clone(struct disk *from, uint64_t seed)
{
  struct disk *d = disk_new(seed);
  unsigned i;

  (void)pthread_mutex_lock(&from->lock);
  for (i = 0; i < from->n_names; i++) {
    const struct inode *old = from->names[i].inode;
    struct inode *inode = calloc(1, sizeof(*inode));

    if (!inode) abort();
    d->inodes[d->n_inodes++] = inode;
    disk_grow(inode, old->cap);
    if (old->cap) {
      memcpy(inode->cache, old->cache, old->cap);
      memcpy(inode->platter, old->cache, old->cap);
    }
    inode->size = inode->durable_size = old->size;
    disk_link(d->names, &d->n_names, from->names[i].path, inode);
    disk_link(d->durable, &d->n_durable, from->names[i].path, inode);
  }
  (void)pthread_mutex_unlock(&from->lock);
  return d;
}

/* Inodes that no name has any more. */
static inline void disk_collect(struct disk *d)
{
  unsigned i, j, n = 0;

  for (i = 0; i < d->n_inodes; i++) {
    bool used = false;

    for (j = 0; j < d->n_names; j++)
      used |= d->names[j].inode == d->inodes[i];
    if (used)
      d->inodes[n++] = d->inodes[i];
    else
      disk_free_inode(d->inodes[i]);
  }
  d->n_inodes = n;
}

/* Power is lost. keep: of 8, how likely something unsynced is there. No file
   may be open. */
static inline void disk_crash(struct disk *d, unsigned keep)
{
  unsigned i;
  uint64_t s;

  for (i = 0; i < d->n_changes; i++)
    if (disk_random(d) % 8 < keep)
      disk_apply(d->durable, &d->n_durable, &d->changes[i]);
  d->n_changes = 0;
  memcpy(d->names, d->durable, sizeof(d->names));
  d->n_names = d->n_durable;
  disk_collect(d);
  for (i = 0; i < d->n_inodes; i++) {
    struct inode *inode = d->inodes[i];

    for (s = 0; s < inode->cap / SECTOR; s++) {
      if (inode->dirty[s] && disk_random(d) % 8 < keep)
        memcpy(inode->platter + s * SECTOR, inode->cache + s * SECTOR, SECTOR);
      inode->dirty[s] = 0;
    }
    if (disk_random(d) % 8 < keep) inode->durable_size = inode->size;
    inode->size = inode->durable_size;
    if (inode->cap) memcpy(inode->cache, inode->platter, inode->cap);
  }
  d->dead = false;
  d->fail_in = 0;
}

/* From now on: the n-th changing call fails; 0: none does. */
static inline void disk_fail_in(struct disk *d, long n)
{
  (void)pthread_mutex_lock(&d->lock);
  d->fail_in = n;
  (void)pthread_mutex_unlock(&d->lock);
}

static inline void disk_hold_creates(struct disk *d, bool hold)
{
  (void)pthread_mutex_lock(&d->lock);
  d->hold_creates = hold;
  (void)pthread_cond_broadcast(&d->released);
  (void)pthread_mutex_unlock(&d->lock);
}

/* NULL: reads go on. */
static inline void disk_hold_reads(struct disk *d, const char *path)
{
  (void)pthread_mutex_lock(&d->lock);
  d->hold_reads = path;
  (void)pthread_cond_broadcast(&d->released);
  (void)pthread_mutex_unlock(&d->lock);
}

static inline unsigned long disk_faults(struct disk *d)
{
  unsigned long n;

  (void)pthread_mutex_lock(&d->lock);
  n = d->faults;
  (void)pthread_mutex_unlock(&d->lock);
  return n;
}

static inline bool disk_held(struct disk *d)
{
  bool held;

  (void)pthread_mutex_lock(&d->lock);
  held = d->held;
  (void)pthread_mutex_unlock(&d->lock);
  return held;
}

/* From now on nothing changes any more. */
static inline void disk_kill(struct disk *d)
{
  (void)pthread_mutex_lock(&d->lock);
  d->dead = true;
  (void)pthread_mutex_unlock(&d->lock);
}

static inline unsigned disk_now(struct disk *d)
{
  unsigned n;

  (void)pthread_mutex_lock(&d->lock);
  n = d->n_trace;
  (void)pthread_mutex_unlock(&d->lock);
  return n;
}

/* What was done since `from` (from disk_now()) to files of these kinds. */
static inline void disk_done(struct disk *d, unsigned from, const char *kinds,
                             char *out, size_t size)
{
  unsigned i, n = 0;

  (void)pthread_mutex_lock(&d->lock);
  for (i = from; i < d->n_trace; i += 2)
    if (strchr(kinds, d->trace[i + 1]) && n + 2 < size) {
      out[n++] = d->trace[i];
      out[n++] = d->trace[i + 1];
    }
  out[n] = 0;
  (void)pthread_mutex_unlock(&d->lock);
}

/* Whether two disks hold the same files with the same bytes. */
static inline bool disk_same(struct disk *a, struct disk *b)
{
  unsigned i;

  if (a->n_names != b->n_names) return false;
  for (i = 0; i < a->n_names; i++) {
    const struct inode *x = a->names[i].inode, *y;
    const struct dir_entry *e =
        disk_find(b->names, b->n_names, a->names[i].path);

    y = e ? e->inode : NULL;
    if (!y || x->size != y->size ||
        (x->size && memcmp(x->cache, y->cache, x->size)))
      return false;
  }
  return true;
}

/* The cache's bytes of a file, to look at or to damage; changes are on the
   platter too after disk_poke. */
static inline struct inode *disk_file(struct disk *d, const char *path)
{
  struct dir_entry *e = disk_find(d->names, d->n_names, path);

  return e ? e->inode : NULL;
}

static inline void disk_poke(struct inode *inode, uint64_t offset, uint8_t byte)
{
  inode->cache[offset] = inode->platter[offset] = byte;
}

#endif
