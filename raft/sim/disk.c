/*
** disk.c: the simulated disk of disk.h.
**
** A file has one copy of its bytes, the cache's. Where the platter differs, a
** sector has an entry in the file's list of old sectors, with what the platter
** holds; `slot` finds it. So a write copies one old sector for each that it
** makes dirty, a sync empties the list, and a loss of power puts back what it
** decides to put back. Nothing ever copies a whole file.
**
** Names are two short tables, as the process sees them and as the platter has
** them, and a list of the changes that lie between. Files are counted by the
** names, changes, descriptors and pending damage that hold them.
*/
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define SECTOR SIM_DISK_SECTOR
#define FD_BITS 12 /* of a descriptor: its slot; above: its generation */
#define FD_MAX (1u << FD_BITS)
#define FD_GENERATIONS (1u << (31 - FD_BITS))

struct old_sector {
  uint32_t sector;
  bool stale;   /* its sync failed: clean in the cache, old on the platter */
  bool excused; /* see sim_disk_excuse() */
  uint8_t bytes[SECTOR];
};

struct file {
  uint32_t refs;
  uint8_t *cache;
  uint32_t *slot; /* for each sector: 1 + its place in old, 0: same */
  uint64_t size, durable_size, cap;
  struct old_sector *old;
  uint32_t n_old, cap_old;
};

struct name {
  char path[SIM_DISK_PATH];
  struct file *file;
};

struct names {
  struct name *items;
  uint32_t n, cap;
};

enum change_kind { CHANGE_CREATE, CHANGE_RENAME, CHANGE_UNLINK };

struct change {
  enum change_kind kind;
  char path[SIM_DISK_PATH], to[SIM_DISK_PATH];
  struct file *file; /* CHANGE_CREATE */
};

struct descriptor {
  struct file *file; /* NULL: free */
  uint32_t generation;
};

struct sim_disk {
  struct io io;
  uint64_t random;
  struct names names, durable;
  struct change *changes;
  uint32_t n_changes, cap_changes;
  struct descriptor *fds;
  uint32_t n_fds;
  long life; /* changing calls that are left; negative: no end */
  bool dead;
  struct sim_disk_faults faults;
  struct file *astray; /* where the next write to a segment lands; or NULL */
  uint64_t astray_offset;
  struct sim_disk_stats stats;
};

/* ---- small things ------------------------------------------------------- */

/* splitmix64 */
static uint64_t next_random(struct sim_disk *d)
{
  uint64_t x = d->random += 0x9e3779b97f4a7c15u;

  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t pick(struct sim_disk *d, uint64_t n)
{
  return next_random(d) % n;
}

/* Room for one more. */
static void *grow(void *items, uint32_t n, uint32_t *cap, size_t size)
{
  if (n < *cap) return items;
  *cap = *cap ? 2 * *cap : 8;
  items = realloc(items, *cap * size);
  if (!items) abort();
  return items;
}

static bool is_segment(const char *path)
{
  size_t len = strlen(path);

  return len > 4 && !strcmp(path + len - 4, ".seg");
}

/* ---- files -------------------------------------------------------------- */

static struct file *file_ref(struct file *file)
{
  file->refs++;
  return file;
}

static void file_unref(struct file *file)
{
  if (!file || --file->refs) return;
  free(file->cache);
  free(file->slot);
  free(file->old);
  free(file);
}

static void file_reserve(struct file *file, uint64_t size)
{
  uint64_t cap = file->cap ? file->cap : 8 * SECTOR, n = file->cap / SECTOR;

  if (size <= file->cap) return;
  while (cap < size)
    cap *= 2;
  file->cache = realloc(file->cache, cap);
  file->slot = realloc(file->slot, cap / SECTOR * sizeof(*file->slot));
  if (!file->cache || !file->slot) abort();
  memset(file->cache + file->cap, 0, cap - file->cap);
  memset(file->slot + n, 0, (cap / SECTOR - n) * sizeof(*file->slot));
  file->cap = cap;
}

/* The sector is about to be written. */
static void touch(struct sim_disk *d, struct file *file, uint32_t sector)
{
  const uint8_t *now = file->cache + (uint64_t)sector * SECTOR;
  struct old_sector *old;

  if (file->slot[sector]) {
    old = &file->old[file->slot[sector] - 1];
    /* the kernel may have written it back of its own accord */
    if (!old->stale && pick(d, 4) == 0) memcpy(old->bytes, now, SECTOR);
  } else {
    file->old =
        grow(file->old, file->n_old, &file->cap_old, sizeof(*file->old));
    old = &file->old[file->n_old++];
    old->sector = sector;
    memcpy(old->bytes, now, SECTOR);
    file->slot[sector] = file->n_old;
  }
  old->stale = old->excused = false;
}

static void touch_range(struct sim_disk *d, struct file *file, uint64_t offset,
                        uint64_t n)
{
  uint64_t i;

  if (!n) return;
  file_reserve(file, offset + n);
  for (i = offset / SECTOR; i <= (offset + n - 1) / SECTOR; i++)
    touch(d, file, (uint32_t)i);
  if (offset + n > file->size) file->size = offset + n;
}

static void resize(struct sim_disk *d, struct file *file, uint64_t size)
{
  uint64_t was = file->size;

  file_reserve(file, size);
  if (size < was) {
    touch_range(d, file, size, was - size);
    memset(file->cache + size, 0, was - size);
  }
  file->size = size;
}

/* The platter has what the cache has, but for sectors that are clean. */
static void settle(struct file *file)
{
  uint32_t i, n = 0;

  for (i = 0; i < file->n_old; i++) {
    struct old_sector *old = &file->old[i];

    if (!old->stale) {
      file->slot[old->sector] = 0;
      continue;
    }
    if (n < i) file->old[n] = *old;
    file->slot[old->sector] = ++n;
  }
  file->n_old = n;
  file->durable_size = file->size;
}

/* ---- names -------------------------------------------------------------- */

static struct name *find(const struct names *names, const char *path)
{
  uint32_t i;

  for (i = 0; i < names->n; i++)
    if (!strcmp(names->items[i].path, path)) return &names->items[i];
  return NULL;
}

static void put_path(char to[SIM_DISK_PATH], const char *path)
{
  (void)snprintf(to, SIM_DISK_PATH, "%s", path);
}

/* Takes over the reference. */
static void link_name(struct names *names, const char *path, struct file *file)
{
  struct name *name = find(names, path);

  if (!name) {
    names->items =
        grow(names->items, names->n, &names->cap, sizeof(*names->items));
    name = &names->items[names->n++];
    put_path(name->path, path);
    name->file = NULL;
  }
  file_unref(name->file);
  name->file = file;
}

/* Hands the reference out; NULL: there is no such name. */
static struct file *unlink_name(struct names *names, const char *path)
{
  struct name *name = find(names, path);
  struct file *file;

  if (!name) return NULL;
  file = name->file;
  *name = names->items[--names->n];
  return file;
}

static void apply(struct names *names, const struct change *change)
{
  struct file *file;

  if (change->kind == CHANGE_CREATE) {
    link_name(names, change->path, file_ref(change->file));
    return;
  }
  /* on the platter it may never have come into being */
  file = unlink_name(names, change->path);
  if (file && change->kind == CHANGE_RENAME)
    link_name(names, change->to, file);
  else
    file_unref(file);
}

/* Done in the cache at once, on the platter some time later. */
static void change(struct sim_disk *d, enum change_kind kind, const char *path,
                   const char *to, struct file *file)
{
  struct change *c;

  d->changes =
      grow(d->changes, d->n_changes, &d->cap_changes, sizeof(*d->changes));
  c = &d->changes[d->n_changes++];
  c->kind = kind;
  put_path(c->path, path);
  put_path(c->to, to);
  c->file = file ? file_ref(file) : NULL;
  apply(&d->names, c);
}

static void names_clear(struct names *names)
{
  while (names->n)
    file_unref(names->items[--names->n].file);
}

/* ---- calls that fail ---------------------------------------------------- */

static bool fires(struct sim_disk *d, uint32_t rate)
{
  return rate && pick(d, 1000000) < rate;
}

/* At the beginning of each changing call. */
static int alive(struct sim_disk *d)
{
  if (d->life == 0) d->dead = true;
  if (d->dead) return -EIO;
  if (d->life > 0) d->life--;
  return 0;
}

static int change_fault(struct sim_disk *d)
{
  if (!fires(d, d->faults.write)) return 0;
  d->stats.write_faults++;
  return -EIO;
}

static int sync_fault(struct sim_disk *d)
{
  if (!fires(d, d->faults.sync)) return 0;
  d->stats.sync_faults++;
  return -EIO;
}

static int space(struct sim_disk *d, bool needed)
{
  if (!needed || !d->faults.full) return 0;
  d->stats.full_faults++;
  return -ENOSPC;
}

static struct file *file_of(const struct sim_disk *d, int fd)
{
  uint32_t slot = (uint32_t)fd % FD_MAX;

  if (fd < 0 || slot >= d->n_fds ||
      d->fds[slot].generation != (uint32_t)fd >> FD_BITS)
    return NULL;
  return d->fds[slot].file;
}

/* ---- the table: descriptors --------------------------------------------- */

static int new_fd(struct sim_disk *d, struct file *file)
{
  uint32_t i;

  for (i = 0; i < d->n_fds && d->fds[i].file; i++)
    ;
  if (i == FD_MAX) return -EMFILE;
  if (i == d->n_fds) {
    struct descriptor *fds = realloc(d->fds, 2 * (i + 4) * sizeof(*fds));

    if (!fds) abort();
    d->fds = fds;
    d->n_fds = 2 * (i + 4) < FD_MAX ? 2 * (i + 4) : FD_MAX;
    memset(fds + i, 0, (d->n_fds - i) * sizeof(*fds));
  }
  d->fds[i].file = file_ref(file);
  return (int)(d->fds[i].generation << FD_BITS | i);
}

/* Who opens a file does not answer for the syncs that failed before. */
static void excuse_stale(struct file *file)
{
  uint32_t i;

  for (i = 0; i < file->n_old; i++)
    if (file->old[i].stale) file->old[i].excused = true;
}

static void close_slot(struct descriptor *slot)
{
  file_unref(slot->file);
  slot->file = NULL;
  slot->generation = (slot->generation + 1) % FD_GENERATIONS;
}

static int sim_open(void *ctx, const char *path, int flags)
{
  struct sim_disk *d = ctx;
  struct name *name = find(&d->names, path);
  struct file *file;
  int rc = d->dead ? -EIO : 0;

  if (!rc && strlen(path) >= SIM_DISK_PATH) rc = -ENAMETOOLONG;
  if (!rc && !name && !(flags & O_CREAT)) rc = -ENOENT;
  if (!rc && name && flags & O_CREAT && flags & O_EXCL) rc = -EEXIST;
  if (!rc && (!name || (flags & O_TRUNC && name->file->size))) {
    rc = alive(d);
    if (!rc) rc = change_fault(d);
    if (!rc) rc = space(d, !name);
  }
  if (rc) return rc;
  if (!name) {
    file = calloc(1, sizeof(*file));
    if (!file) abort();
    change(d, CHANGE_CREATE, path, "", file);
  } else {
    file = name->file;
    if (flags & O_TRUNC) resize(d, file, 0);
    excuse_stale(file);
  }
  return new_fd(d, file);
}

static void sim_close(void *ctx, int fd)
{
  struct sim_disk *d = ctx;

  if (file_of(d, fd)) close_slot(&d->fds[(uint32_t)fd % FD_MAX]);
}

/* ---- the table: bytes --------------------------------------------------- */

static ssize_t sim_pread(void *ctx, int fd, void *buf, size_t n,
                         uint64_t offset)
{
  struct sim_disk *d = ctx;
  const struct file *file = file_of(d, fd);

  if (d->dead) return -EIO;
  if (!file) return -EBADF;
  if (offset >= file->size) return 0;
  if (n > file->size - offset) n = file->size - offset;
  if (n) memcpy(buf, file->cache + offset, n);
  return (ssize_t)n;
}

/* At most `n` bytes of the vectors. */
static void copy_in(uint8_t *to, const struct iovec *iov, int n_iov, size_t n)
{
  int i;

  for (i = 0; i < n_iov && n; i++) {
    size_t len = iov[i].iov_len < n ? iov[i].iov_len : n;

    if (len) memcpy(to, iov[i].iov_base, len);
    to += len;
    n -= len;
  }
}

/* Both the cache and the platter of `file` have these bytes now. */
static void plant(struct file *file, uint64_t offset, const uint8_t *bytes,
                  size_t n)
{
  size_t i;

  for (i = 0; i < n && offset + i < file->size; i++) {
    uint64_t at = offset + i;
    uint32_t slot = file->slot[at / SECTOR];

    file->cache[at] = bytes[i];
    if (slot) file->old[slot - 1].bytes[at % SECTOR] = bytes[i];
  }
}

/* The whole sectors, as they would have been, go where they should not. */
static void write_astray(struct sim_disk *d, struct file *file,
                         const struct iovec *iov, int n_iov, size_t n,
                         uint64_t offset)
{
  uint64_t from = offset / SECTOR * SECTOR;
  uint64_t upto = (offset + n + SECTOR - 1) / SECTOR * SECTOR;
  uint8_t *image = malloc(upto - from);

  if (!image) abort();
  file_reserve(file, upto);
  memcpy(image, file->cache + from, upto - from);
  copy_in(image + (offset - from), iov, n_iov, n);
  plant(d->astray, d->astray_offset, image, upto - from);
  free(image);
  file_unref(d->astray);
  d->astray = NULL;
  d->stats.misdirected++;
}

static bool names_a_segment(const struct sim_disk *d, const struct file *file)
{
  uint32_t i;

  for (i = 0; i < d->names.n; i++)
    if (d->names.items[i].file == file && is_segment(d->names.items[i].path))
      return true;
  return false;
}

/* How much a write that failed has written: up to a border of sectors (a cache
   knows pages, and a disk sectors). */
static size_t part_of(struct sim_disk *d, uint64_t offset, size_t n)
{
  uint64_t end = (offset + pick(d, n + 1)) / SECTOR * SECTOR;

  return end > offset ? (size_t)(end - offset) : 0;
}

static int sim_pwritev(void *ctx, int fd, const struct iovec *iov, int n_iov,
                       uint64_t offset)
{
  struct sim_disk *d = ctx;
  struct file *file = file_of(d, fd);
  size_t n = 0;
  int i, rc = alive(d);

  if (rc) return rc;
  if (!file) return -EBADF;
  for (i = 0; i < n_iov; i++)
    n += iov[i].iov_len;
  rc = space(d, offset + n > file->size);
  if (rc) return rc;
  rc = change_fault(d);
  if (rc) n = part_of(d, offset, n);
  if (d->astray && !rc && names_a_segment(d, file)) {
    write_astray(d, file, iov, n_iov, n, offset);
  } else if (n) {
    touch_range(d, file, offset, n);
    copy_in(file->cache + offset, iov, n_iov, n);
  }
  d->stats.writes++;
  d->stats.bytes += n;
  return rc;
}

static int sim_pwrite(void *ctx, int fd, const void *buf, size_t n,
                      uint64_t offset)
{
  union {
    const void *in;
    void *out;
  } base = {.in = buf}; /* struct iovec has no const */
  struct iovec iov = {.iov_base = base.out, .iov_len = n};

  return sim_pwritev(ctx, fd, &iov, 1, offset);
}

static int sim_sync(void *ctx, int fd)
{
  struct sim_disk *d = ctx;
  struct file *file = file_of(d, fd);
  uint32_t i;
  int rc = alive(d);

  if (rc) return rc;
  if (!file) return -EBADF;
  rc = sync_fault(d);
  if (rc)
    for (i = 0; i < file->n_old; i++)
      file->old[i].stale = true;
  else
    settle(file);
  d->stats.syncs++;
  return rc;
}

static int sim_truncate(void *ctx, int fd, uint64_t size)
{
  struct sim_disk *d = ctx;
  struct file *file = file_of(d, fd);
  int rc = alive(d);

  if (!rc && !file) rc = -EBADF;
  if (!rc) rc = space(d, size > file->size);
  if (!rc) rc = change_fault(d);
  if (!rc) resize(d, file, size);
  return rc;
}

static int sim_size(void *ctx, int fd, uint64_t *size)
{
  struct sim_disk *d = ctx;
  const struct file *file = file_of(d, fd);

  if (d->dead) return -EIO;
  if (!file) return -EBADF;
  *size = file->size;
  return 0;
}

/* ---- the table: names --------------------------------------------------- */

static int sim_rename(void *ctx, const char *from, const char *to)
{
  struct sim_disk *d = ctx;
  int rc = alive(d);

  if (!rc && strlen(to) >= SIM_DISK_PATH) rc = -ENAMETOOLONG;
  if (!rc && !find(&d->names, from)) rc = -ENOENT;
  if (!rc) rc = change_fault(d);
  if (!rc) change(d, CHANGE_RENAME, from, to, NULL);
  return rc;
}

static int sim_unlink(void *ctx, const char *path)
{
  struct sim_disk *d = ctx;
  int rc = alive(d);

  if (!rc && !find(&d->names, path)) rc = -ENOENT;
  if (!rc) rc = change_fault(d);
  if (!rc) change(d, CHANGE_UNLINK, path, "", NULL);
  return rc;
}

static int sim_mkdir(void *ctx, const char *path)
{
  const struct sim_disk *d = ctx;

  (void)path;
  return d->dead ? -EIO : 0;
}

static bool is_in(const char *dir, const char *path)
{
  size_t n = strlen(dir);

  return !strncmp(dir, path, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

static int sim_sync_dir(void *ctx, const char *dir)
{
  struct sim_disk *d = ctx;
  uint32_t i, n = 0;
  int rc = alive(d);

  if (rc) return rc;
  d->stats.syncs++;
  rc = sync_fault(d);
  if (rc) return rc;
  for (i = 0; i < d->n_changes; i++) {
    struct change *c = &d->changes[i];

    if (is_in(dir, c->path)) {
      apply(&d->durable, c);
      file_unref(c->file);
    } else {
      if (n < i) d->changes[n] = *c;
      n++;
    }
  }
  d->n_changes = n;
  return 0;
}

static int sim_list(void *ctx, const char *path,
                    void (*each)(void *arg, const char *name), void *arg)
{
  const struct sim_disk *d = ctx;
  uint32_t i;

  if (d->dead) return -EIO;
  for (i = 0; i < d->names.n; i++)
    if (is_in(path, d->names.items[i].path))
      each(arg, d->names.items[i].path + strlen(path) + 1);
  return 0;
}

/* ---- accidents ---------------------------------------------------------- */

void sim_disk_die_in(struct sim_disk *d, long n)
{
  d->life = n;
  if (!n) d->dead = true;
}

bool sim_disk_dead(const struct sim_disk *d)
{
  return d->dead;
}

/* The process is gone, and with it its descriptors. */
static void end_process(struct sim_disk *d)
{
  uint32_t i;

  for (i = 0; i < d->n_fds; i++)
    if (d->fds[i].file) close_slot(&d->fds[i]);
  file_unref(d->astray);
  d->astray = NULL;
  d->dead = false;
  d->life = -1;
}

/* The cache forgets some of what it thinks is on the platter. */
static void forget(struct sim_disk *d, struct file *file)
{
  uint32_t i, n = 0;

  for (i = 0; i < file->n_old; i++) {
    struct old_sector *old = &file->old[i];

    if (old->stale && pick(d, 2)) {
      memcpy(file->cache + (uint64_t)old->sector * SECTOR, old->bytes, SECTOR);
      file->slot[old->sector] = 0;
      continue;
    }
    if (n < i) file->old[n] = *old;
    file->slot[old->sector] = ++n;
  }
  file->n_old = n;
}

void sim_disk_kill(struct sim_disk *d)
{
  uint32_t i;

  end_process(d);
  for (i = 0; i < d->names.n; i++)
    forget(d, d->names.items[i].file);
  d->stats.kills++;
}

/* What has become of a sector that differs. */
static void lose_sector(struct sim_disk *d, struct file *file,
                        const struct old_sector *old, unsigned keep, bool tear)
{
  uint8_t *now = file->cache + (uint64_t)old->sector * SECTOR;
  size_t at = 1 + pick(d, SECTOR - 1);

  file->slot[old->sector] = 0;
  if (!old->stale && tear) {
    d->stats.torn++;
    if (pick(d, 2))
      memcpy(now, old->bytes, at);
    else
      memcpy(now + at, old->bytes + at, SECTOR - at);
  } else if (old->stale || pick(d, 8) >= keep) {
    d->stats.lost++;
    memcpy(now, old->bytes, SECTOR);
  }
}

/* keep: of 8, how likely something unsynced is there. */
static void lose_bytes(struct sim_disk *d, struct file *file, unsigned keep)
{
  uint32_t i, torn = file->n_old;

  if (file->n_old && pick(d, 2)) torn = (uint32_t)pick(d, file->n_old);
  for (i = 0; i < file->n_old; i++)
    lose_sector(d, file, &file->old[i], keep, i == torn);
  file->n_old = 0;
  if (file->size != file->durable_size && pick(d, 8) >= keep)
    file->size = file->durable_size;
  file->durable_size = file->size;
  if (file->cap > file->size)
    memset(file->cache + file->size, 0, file->cap - file->size);
}

void sim_disk_crash(struct sim_disk *d)
{
  unsigned keep = (unsigned)pick(d, 9);
  uint32_t i;

  end_process(d);
  for (i = 0; i < d->n_changes; i++) {
    if (pick(d, 8) < keep) apply(&d->durable, &d->changes[i]);
    file_unref(d->changes[i].file);
  }
  d->n_changes = 0;
  names_clear(&d->names);
  for (i = 0; i < d->durable.n; i++) {
    const struct name *name = &d->durable.items[i];

    link_name(&d->names, name->path, file_ref(name->file));
    lose_bytes(d, name->file, keep);
  }
  d->stats.crashes++;
}

/* ---- faults and damage -------------------------------------------------- */

void sim_disk_set_faults(struct sim_disk *d,
                         const struct sim_disk_faults *faults)
{
  d->faults = *faults;
}

/* Any segment that has bytes. */
static const struct name *any_segment(struct sim_disk *d)
{
  uint32_t i, n = 0;

  for (i = 0; i < d->names.n; i++)
    n += is_segment(d->names.items[i].path) && d->names.items[i].file->size;
  if (!n) return NULL;
  n = (uint32_t)pick(d, n);
  for (i = 0;; i++) {
    const struct name *name = &d->names.items[i];

    if (is_segment(name->path) && name->file->size && !n--) return name;
  }
}

static void note_hit(struct sim_disk_hit *hit, const struct name *name,
                     uint64_t offset)
{
  if (!hit) return;
  put_path(hit->path, name->path);
  hit->offset = offset;
}

static bool all_zero(const uint8_t *bytes, size_t n)
{
  return !n || (!bytes[0] && !memcmp(bytes, bytes + 1, n - 1));
}

bool sim_disk_rot(struct sim_disk *d, struct sim_disk_hit *hit)
{
  const struct name *name = any_segment(d);
  uint64_t sector, n, i, first, at;

  if (!name) return false;
  n = name->file->size / SECTOR;
  if (!n) return false;
  first = pick(d, n);
  for (i = 0; i < n; i++) {
    sector = (first + i) % n;
    if (!name->file->slot[sector] &&
        !all_zero(name->file->cache + sector * SECTOR, SECTOR))
      break;
  }
  if (i == n) return false;
  at = sector * SECTOR + pick(d, SECTOR);
  name->file->cache[at] ^= (uint8_t)(1u << pick(d, 8));
  note_hit(hit, name, at);
  d->stats.rotted++;
  return true;
}

bool sim_disk_misdirect(struct sim_disk *d, struct sim_disk_hit *hit)
{
  const struct name *name = any_segment(d);

  if (!name) return false;
  file_unref(d->astray);
  d->astray = file_ref(name->file);
  d->astray_offset = pick(d, (name->file->size + SECTOR - 1) / SECTOR) * SECTOR;
  note_hit(hit, name, d->astray_offset);
  return true;
}

/* ---- what is on the platter --------------------------------------------- */

static bool file_clean(const struct file *file)
{
  uint32_t i;

  for (i = 0; i < file->n_old; i++)
    if (!file->old[i].excused) return false;
  return file->size == file->durable_size;
}

bool sim_disk_clean(const struct sim_disk *d, const char *part)
{
  uint32_t i;

  for (i = 0; i < d->n_changes; i++)
    if (strstr(d->changes[i].path, part) || strstr(d->changes[i].to, part))
      return false;
  for (i = 0; i < d->names.n; i++)
    if (!file_clean(d->names.items[i].file) &&
        strstr(d->names.items[i].path, part))
      return false;
  return true;
}

void sim_disk_excuse(struct sim_disk *d)
{
  uint32_t i, k;

  for (i = 0; i < d->names.n; i++)
    for (k = 0; k < d->names.items[i].file->n_old; k++)
      d->names.items[i].file->old[k].excused = true;
}

/* Of the platter's bytes up to the durable size. */
static uint64_t hash_file(const struct file *file, uint64_t hash)
{
  uint64_t at;

  for (at = 0; at < file->durable_size && at < file->cap; at += SECTOR) {
    uint32_t slot = file->slot[at / SECTOR];
    uint64_t left = file->durable_size - at;

    hash = XXH3_64bits_withSeed(slot ? file->old[slot - 1].bytes
                                     : file->cache + at,
                                left < SECTOR ? left : SECTOR, hash);
  }
  return hash;
}

uint64_t sim_disk_hash(const struct sim_disk *d)
{
  uint64_t sum = 0;
  uint32_t i;

  /* a sum: the order of the names means nothing */
  for (i = 0; i < d->durable.n; i++) {
    const struct name *name = &d->durable.items[i];
    uint64_t hash = XXH3_64bits_withSeed(name->path, strlen(name->path),
                                         name->file->durable_size);

    sum += hash_file(name->file, hash);
  }
  return sum;
}

const struct sim_disk_stats *sim_disk_stats(const struct sim_disk *d)
{
  return &d->stats;
}

/* ---- the disk ----------------------------------------------------------- */

struct sim_disk *sim_disk_new(uint64_t seed)
{
  struct sim_disk *d = calloc(1, sizeof(*d));

  if (!d) abort();
  d->io = (struct io){
      .ctx = d,
      .open = sim_open,
      .close = sim_close,
      .pread = sim_pread,
      .pwrite = sim_pwrite,
      .pwritev = sim_pwritev,
      .sync = sim_sync,
      .truncate = sim_truncate,
      .size = sim_size,
      .rename = sim_rename,
      .unlink = sim_unlink,
      .mkdir = sim_mkdir,
      .sync_dir = sim_sync_dir,
      .list = sim_list,
  };
  d->random = seed;
  d->life = -1;
  return d;
}

void sim_disk_free(struct sim_disk *d)
{
  uint32_t i;

  if (!d) return;
  end_process(d);
  for (i = 0; i < d->n_changes; i++)
    file_unref(d->changes[i].file);
  names_clear(&d->names);
  names_clear(&d->durable);
  free(d->names.items);
  free(d->durable.items);
  free(d->changes);
  free(d->fds);
  free(d);
}

const struct io *sim_disk_io(const struct sim_disk *d)
{
  return &d->io;
}
