/*
** wal.c: see wal.h.
**
** Division one, files and fences. Division two, start. Division three,
** applying. Division four, checkpoint and restart.
**
** Locks on the real files are OFD locks (fcntl(2), F_OFD_SETLK): classic POSIX
** locks of a process vanish when anything in it closes the same file. The
** bytes are SQLite's: in -shm 120 is WRITE, 121 CKPT, 122 RECOVER, 123..127
** READ(0..4), 128 the "dead man's switch"; in the database the SHARED range
** begins at 0x40000002.
*/
#include "node.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SHM_WRITE 120
#define SHM_CKPT 121
#define SHM_RECOVER 122
#define SHM_READ(i) (123 + (i))
#define SHM_DMS 128
#define DB_SHARED 0x40000002
#define DB_SHARED_SIZE 510

#define FOREIGN_READER "another process"

#define FENCE_TRIES 100 /* 10 ms apart */
#define OPEN_TRIES 10
#define OUT_MAX (1u << 20) /* bytes gathered before a write of frames */

/* ---- files and fences -------------------------------------------------- */

int wal_lock(int fd, short type, off_t start, off_t len)
{
  struct flock lock = {
      .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
  while (fcntl(fd, F_OFD_SETLK, &lock) != 0)
    if (errno != EINTR) return -errno;
  return 0;
}

static uint8_t *grow_shm(void *ctx, unsigned i)
{
  struct wal *wal = ctx;
  uint64_t end = (uint64_t)(i + 1) * WALINDEX_REGION;
  wal->grow_rc = io_extend(wal->io, wal->shm, end);
  if (wal->grow_rc) return NULL;
  void *at = mmap(NULL, WALINDEX_REGION, PROT_READ | PROT_WRITE, MAP_SHARED,
                  wal->shm, (off_t)(end - WALINDEX_REGION));
  if (at == MAP_FAILED) return NULL;
  /* In a child after fork() it would keep the locks of the descriptor. */
  madvise(at, WALINDEX_REGION, MADV_DONTFORK);
  return at;
}

/* Why the real -shm could not grow. */
static int not_grown(const struct wal *wal)
{
  return wal->grow_rc ? wal->grow_rc : -ENOMEM;
}

static int set_pgnos(struct wal *wal, uint32_t first, uint32_t last,
                     const uint32_t *pages)
{
  int rc = 0;
  for (uint32_t frame = first; rc == 0 && frame <= last; frame++)
    rc = control_set_pgno(wal->map, frame, pages[frame - first]);
  return rc;
}

/* What has changed becomes visible to connections. Mutex held, or alone. */
static void show(struct wal *wal)
{
  struct control_view view = {.generation = wal->generation,
                              .epoch = wal->epoch,
                              .confirmed_index = wal->confirmed_index,
                              .page_size = wal->page_size,
                              .backfill = wal->backfill,
                              .closed = wal->closed,
                              .confirmed = wal->confirmed,
                              .head = wal->head};
  control_show(wal->map, &view);
}

static char *beside(const char *path, const char *suffix)
{
  char *name = NULL;
  return asprintf(&name, "%s%s", path, suffix) < 0 ? NULL : name;
}

static int open_one(const struct io *io, const char *path, const char *suffix,
                    int flags, int *fd)
{
  char *name = beside(path, suffix);
  if (name == NULL) return -ENOMEM;
  *fd = io->open(io->ctx, name, flags);
  free(name);
  return *fd < 0 ? *fd : 0;
}

int wal_fence(const char *path, int *db, int *shm)
{
  int rc = open_one(&io_posix, path, "", O_RDWR, db);
  if (rc == 0) rc = open_one(&io_posix, path, "-shm", O_RDWR, shm);
  if (rc == 0) rc = wal_lock(*shm, F_RDLCK, SHM_DMS, 1);
  if (rc == 0) rc = wal_lock(*shm, F_RDLCK, SHM_CKPT, 1);
  if (rc == 0) rc = wal_lock(*db, F_RDLCK, DB_SHARED, DB_SHARED_SIZE);
  return rc;
}

static void set_error(char **error, const char *path, const char *what, int rc)
{
  if (asprintf(error, "%s: %s%s%s", path, what, rc ? ": " : "",
               rc ? errno_text(-rc).s : "") < 0)
    *error = NULL;
}

static void close_beside(struct wal *wal);

void wal_close(struct wal *wal, bool clean)
{
  if (wal == NULL) return;
  if (clean && wal->shm >= 0 && wal->index.n_regions > 0 &&
      wal_lock(wal->shm, F_WRLCK, SHM_DMS, 1) == 0) {
    /* Nobody else: the next start finds nothing to look at. */
    wal->io->truncate(wal->io->ctx, wal->file, 0);
    wal->io->truncate(wal->io->ctx, wal->shm, 0);
  }
  for (unsigned i = 0; i < wal->index.n_regions; i++)
    munmap(wal->index.region[i], WALINDEX_REGION);
  free(wal->index.region);
  memset(&wal->index, 0, sizeof(wal->index));
  close_beside(wal);
  if (wal->db >= 0) {
    wal_lock(wal->db, F_UNLCK, DB_SHARED, DB_SHARED_SIZE);
    wal->io->close(wal->io->ctx, wal->db);
  }
  wal->db = -1;
}

void wal_free(struct wal *wal)
{
  if (wal == NULL) return;
  wal_close(wal, false);
  free(wal->out);
  free(wal->append_pages);
  free(wal->held);
  pthread_mutex_destroy(&wal->mutex);
  pthread_mutex_destroy(&wal->file_mutex);
  control_close(wal->map);
  free(wal->path);
  free(wal);
}

/* ---- start ------------------------------------------------------------- */

/* Writes the header of a new generation and its first frame, which repeats
   page 1 of the database file, and syncs them. */
static int write_generation(struct wal *wal, struct walindex_header *header)
{
  size_t size = WAL_HEADER + WAL_FRAME_HEADER + wal->page_size;
  uint8_t *buf = malloc(size);
  if (buf == NULL) return -ENOMEM;
  uint8_t *page = buf + WAL_HEADER + WAL_FRAME_HEADER;
  uint64_t bytes;
  int rc = -EIO;
  struct walindex_header h = {.change = wal->confirmed.change + 1};
  uint32_t sequence = wal->sequence + 1;
  if (wal->io->pread(wal->io->ctx, wal->db, page, wal->page_size, 0) !=
      (ssize_t)wal->page_size)
    goto out;
  rc = wal->io->size(wal->io->ctx, wal->db, &bytes);
  if (rc) goto out;
  rc = -EIO;
  if (getrandom(h.salt, sizeof(h.salt), 0) != sizeof(h.salt)) goto out;
  h.page_size = walindex_encode_page_size(wal->page_size);
  h.mx_frame = 1;
  h.n_page = (uint32_t)(bytes / wal->page_size);
  wal_encode_header(buf, wal->page_size, sequence, h.salt, h.frame_checksum);
  wal_encode_frame(buf + WAL_HEADER, 1, h.n_page, h.salt, page, wal->page_size,
                   h.frame_checksum);
  walindex_seal(&h);
  rc = wal->io->pwrite(wal->io->ctx, wal->file, buf, size, 0);
  if (rc == 0) rc = wal->io->sync(wal->io->ctx, wal->file);
  if (rc == 0) *header = h;
out:
  free(buf);
  return rc;
}

/* Makes a freshly written generation the one in force. Mutex held, or alone. */
static int enter_generation(struct wal *wal,
                            const struct walindex_header *header)
{
  struct walindex_info *info = walindex_info(&wal->index);
  int rc = control_set_pgno(wal->map, 1, 1);
  if (rc == 0 && walindex_append(&wal->index, 1, 1) != 0) rc = not_grown(wal);
  if (rc) return rc;
  wal->generation++;
  wal->sequence++;
  wal->confirmed = wal->head = *header;
  /* The first frame is the database's own page: it need not be copied. */
  wal->backfill = 1;
  info->read_mark[0] = 0;
  info->read_mark[1] = 1;
  for (int i = 2; i < 5; i++)
    info->read_mark[i] = WALINDEX_NOT_USED;
  /* By the old header and the old backfill everything is in the database file,
     also for the next host, should this one die before it shows the new. */
  walindex_publish(&wal->index, header);
  info->backfill = info->backfill_attempted = 1;
  show(wal);
  return 0;
}

/* Reads the frames of a -wal that other processes use, as stock recovery
   would, into the map and *header. */
static int scan_frames(struct wal *wal, struct walindex_header *header)
{
  ssize_t n;
  uint8_t head[WAL_HEADER], *buf;
  uint32_t chain[2] = {0, 0};
  struct walindex_header h = {0};
  const struct io *io = wal->io;
  size_t size = WAL_FRAME_HEADER + wal->page_size;
  int rc = 0;

  memset(header, 0, sizeof(*header));
  n = io->pread(io->ctx, wal->file, head, sizeof(head), 0);
  if (n != sizeof(head)) return n < 0 ? (int)n : 0;
  wal_checksum(head, 24, chain);
  if (get_be32(head) != WAL_MAGIC || get_be32(head + 8) != wal->page_size ||
      get_be32(head + 24) != chain[0] || get_be32(head + 28) != chain[1])
    return 0;
  wal->sequence = get_be32(head + 12);
  memcpy(h.salt, head + 16, 8);
  h.page_size = walindex_encode_page_size(wal->page_size);
  memcpy(header, &h, sizeof(h));
  memcpy(header->frame_checksum, chain, sizeof(chain));
  if ((buf = malloc(size)) == NULL) return -ENOMEM;
  for (uint32_t frame = 1; rc == 0; frame++) {
    n = io->pread(io->ctx, wal->file, buf, size, wal_offset(wal, frame));
    if (n < 0) rc = (int)n;
    if (n != (ssize_t)size) break;
    if (memcmp(buf + 8, h.salt, 8) != 0 || get_be32(buf) == 0) break;
    wal_checksum(buf, 8, chain);
    wal_checksum(buf + WAL_FRAME_HEADER, wal->page_size, chain);
    if (get_be32(buf + 16) != chain[0] || get_be32(buf + 20) != chain[1]) break;
    rc = control_set_pgno(wal->map, frame, get_be32(buf));
    if (get_be32(buf + 4) != 0) {
      header->mx_frame = frame;
      header->n_page = get_be32(buf + 4);
      memcpy(header->frame_checksum, chain, sizeof(chain));
    }
  }
  free(buf);
  return rc;
}

/* The newest header in the index, or NULL. A host that died while it published
   one has left one of the two whole: the second is written first. */
static const struct walindex_header *whole_header(
    const struct walindex_header live[2])
{
  if (walindex_sealed(&live[1])) return &live[1];
  return walindex_sealed(&live[0]) ? &live[0] : NULL;
}

/* Goes on with a -wal and -shm that other processes have open. */
static int adopt(struct wal *wal, char **error)
{
  uint64_t size = 0;
  struct walindex_header found, live[2];
  struct control_view was;
  control_look(wal->map, &was);
  /* Numbers go on from those of the host before. */
  wal->generation = was.generation;
  wal->epoch = was.epoch + 1;
  int rc = wal->io->size(wal->io->ctx, wal->shm, &size);
  if (rc == 0) rc = scan_frames(wal, &found);
  if (rc == 0 && walindex_reserve(&wal->index, 0) != 0) rc = not_grown(wal);
  if (rc) goto fail;
  memcpy(live, walindex_header(&wal->index), sizeof(live));
  struct walindex_info *info = walindex_info(&wal->index);
  const struct walindex_header *shown = whole_header(live);
  /* Both copies again: should this host die while it writes the next one, what
     is left must not be what was there before. */
  if (shown) walindex_publish(&wal->index, shown);
  bool same = shown && memcmp(shown->salt, found.salt, 8) == 0 &&
              shown->mx_frame <= found.mx_frame;
  if (found.mx_frame == 0 || (shown && !same)) {
    /* No frame that anybody could be reading, or the new header of a restart
       that was not carried out: then everything is in the database file. */
    if (shown && shown->mx_frame > info->backfill) {
      set_error(error, wal->path, "-wal and -shm do not belong together", 0);
      return -EBADMSG;
    }
    wal->confirmed.change = shown ? shown->change : 0;
    rc = write_generation(wal, &found);
    if (rc == 0) rc = enter_generation(wal, &found);
    if (rc) goto fail;
    return 0;
  }
  found.change = shown ? shown->change + 1 : 1;
  walindex_seal(&found);
  uint32_t from = shown ? shown->mx_frame : 0;
  /* More than there is: that of the old generation, in a restart that was cut
     off after its header was published. */
  if (info->backfill > from) info->backfill = info->backfill_attempted = from;
  if (from > 0) {
    if (walindex_reserve(&wal->index, walindex_region_of(from)) != 0) {
      rc = not_grown(wal);
      goto fail;
    }
    walindex_rewind(&wal->index, from);
  }
  for (uint32_t frame = from + 1; frame <= found.mx_frame; frame++)
    if (walindex_append(&wal->index, frame, control_pgno(wal->map, frame)) !=
        0) {
      rc = not_grown(wal);
      goto fail;
    }
  /* Connections of other processes may be reading it; what they have seen of
     it is still so. */
  if (memcmp(was.confirmed.salt, found.salt, 8) != 0) wal->generation++;
  wal->confirmed = wal->head = found;
  wal->backfill = info->backfill;
  walindex_publish(&wal->index, &found);
  show(wal);
  return 0;
fail:
  set_error(error, wal->path, "cannot go on with -wal and -shm", rc);
  return rc;
}

/* Nobody else has the files open. What is in -wal stays: a checkpoint that was
   cut off may have left pages in the database file that make sense only
   together with it. The -shm is made anew, as after a power loss it may be
   anything. */
static int begin_alone(struct wal *wal, char **error)
{
  int rc = wal->io->truncate(wal->io->ctx, wal->shm, 0);
  if (rc) set_error(error, wal->path, "cannot begin a -shm", rc);
  if (rc == 0) rc = adopt(wal, error);
  if (rc == 0) rc = wal_lock(wal->shm, F_RDLCK, SHM_DMS, 1);
  return rc;
}

static int try_fences(struct wal *wal, bool *alone)
{
  *alone = wal_lock(wal->shm, F_WRLCK, SHM_DMS, 1) == 0;
  int rc = *alone ? 0 : wal_lock(wal->shm, F_RDLCK, SHM_DMS, 1);
  /* CKPT together with the processes that are attached: nobody else may. */
  if (rc == 0) rc = wal_lock(wal->shm, F_WRLCK, SHM_WRITE, 1);
  if (rc == 0) rc = wal_lock(wal->shm, F_RDLCK, SHM_CKPT, 1);
  if (rc == 0) rc = wal_lock(wal->shm, F_WRLCK, SHM_RECOVER, 1);
  if (rc == 0) rc = wal_lock(wal->db, F_RDLCK, DB_SHARED, DB_SHARED_SIZE);
  return rc;
}

/* A stock process that opens or closes the file takes for an instant locks
   that are in the way. */
static int take_fences(struct wal *wal, bool *alone, char **error)
{
  struct timespec pause = {0, 10 * 1000000};
  int rc = try_fences(wal, alone);
  for (int i = 0; rc && i < FENCE_TRIES; i++) {
    wal_lock(wal->shm, F_UNLCK, SHM_WRITE, 9);
    nanosleep(&pause, NULL);
    rc = try_fences(wal, alone);
  }
  if (rc == 0) return 0;
  set_error(error, wal->path, "another process holds a lock on it", 0);
  return WAL_EFOREIGN;
}

/* False when a stock process that closed the database has removed the files
   between their opening and their locking. */
static bool is_current(const struct wal *wal, const char *suffix, int fd)
{
  struct stat opened, named;
  char *name = beside(wal->path, suffix);
  bool same = name && fstat(fd, &opened) == 0 && stat(name, &named) == 0 &&
              opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
  free(name);
  return same;
}

/* Opens -wal and -shm with the rights of the database file, as SQLite does. */
static int open_beside(struct wal *wal)
{
  struct stat db;
  int rc = open_one(wal->io, wal->path, "-wal", O_RDWR | O_CREAT, &wal->file);
  if (rc == 0)
    rc = open_one(wal->io, wal->path, "-shm", O_RDWR | O_CREAT, &wal->shm);
  if (rc) return rc;
  if (fstat(wal->db, &db) != 0) return -errno;
  const int fds[] = {wal->file, wal->shm};
  for (int i = 0; i < 2; i++) {
    fchmod(fds[i], db.st_mode & 0777);
    if (geteuid() == 0 && fchown(fds[i], db.st_uid, db.st_gid) != 0)
      return -errno;
  }
  return 0;
}

static void close_beside(struct wal *wal)
{
  if (wal->shm >= 0) {
    /* A forked child may hold a copy: closing alone releases nothing. */
    wal_lock(wal->shm, F_UNLCK, SHM_WRITE, 9);
    wal->io->close(wal->io->ctx, wal->shm);
  }
  if (wal->file >= 0) wal->io->close(wal->io->ctx, wal->file);
  wal->shm = wal->file = -1;
}

static int open_and_fence(struct wal *wal, bool *alone, char **error)
{
  for (int i = 0; i < OPEN_TRIES; i++) {
    int rc = open_beside(wal);
    if (rc) {
      set_error(error, wal->path, "cannot open -wal and -shm", rc);
      return rc;
    }
    rc = take_fences(wal, alone, error);
    if (rc) return rc;
    if (is_current(wal, "-wal", wal->file) &&
        is_current(wal, "-shm", wal->shm)) {
      /* A checkpoint relies on the -wal being there after a power loss. */
      rc = io_sync_parent(wal->io, wal->path);
      if (rc) set_error(error, wal->path, "cannot sync its directory", rc);
      return rc;
    }
    close_beside(wal);
  }
  set_error(error, wal->path, "-wal and -shm are removed all the time", 0);
  return WAL_EFOREIGN;
}

static int read_page_size(struct wal *wal, char **error)
{
  uint8_t head[100];
  ssize_t n = wal->io->pread(wal->io->ctx, wal->db, head, sizeof(head), 0);
  if (n < 0) {
    set_error(error, wal->path, "cannot read", (int)n);
    return (int)n;
  }
  if (n != sizeof(head) || memcmp(head, "SQLite format 3", 16) != 0 ||
      head[18] != 3 || head[19] != 2) {
    set_error(error, wal->path, "not a replicated database", 0);
    return -EBADMSG;
  }
  wal->page_size = (uint32_t)head[16] << 8 | head[17];
  if (wal->page_size == 1) wal->page_size = 65536;
  if (wal->page_size < 512 || (wal->page_size & (wal->page_size - 1))) {
    set_error(error, wal->path, "damaged header: page size", 0);
    return -EBADMSG;
  }
  return 0;
}

/* What SQLite does with a rollback journal would undo what the node has: it is
   not this database's, which has been in WAL mode since it became a node's. */
static int refuse_journal(const struct wal *wal, char **error)
{
  struct stat st;
  char *name = beside(wal->path, "-journal");
  if (name == NULL) return -ENOMEM;
  bool there = stat(name, &st) == 0 && st.st_size > 0;
  if (there)
    set_error(error, name,
              "a rollback journal that is not this database's: move it away",
              0);
  free(name);
  return there ? -EEXIST : 0;
}

int wal_open(const struct io *io, const char *path, raft_index index,
             struct control_map *map, struct wal **out, char **error)
{
  bool alone = false;
  int rc;
  struct wal *wal = calloc(1, sizeof(*wal));
  *out = NULL;
  if (wal == NULL) return -ENOMEM;
  wal->io = io;
  wal->db = wal->file = wal->shm = -1;
  wal->map = control_ref(map);
  wal->confirmed_index = index;
  wal->index.grow = grow_shm;
  wal->index.ctx = wal;
  pthread_mutex_init(&wal->mutex, NULL);
  pthread_mutex_init(&wal->file_mutex, NULL);
  wal->path = strdup(path);
  rc = wal->path ? 0 : -ENOMEM;
  if (rc == 0) rc = open_one(io, path, "", O_RDWR, &wal->db);
  if (rc) set_error(error, path, "cannot open", rc);
  if (rc == 0) rc = read_page_size(wal, error);
  if (rc == 0) rc = refuse_journal(wal, error);
  if (rc == 0) {
    wal->held = malloc(wal->page_size);
    wal->out = malloc(OUT_MAX + WAL_FRAME_HEADER + wal->page_size);
    if (wal->held == NULL || wal->out == NULL) rc = -ENOMEM;
  }
  control_reap(map);
  if (rc == 0) rc = open_and_fence(wal, &alone, error);
  if (rc == 0) {
    control_note_file(map, CONTROL_DATABASE, wal->db);
    control_note_file(map, CONTROL_WAL, wal->file);
  }
  if (rc == 0) rc = alone ? begin_alone(wal, error) : adopt(wal, error);
  if (rc == 0) wal->info = walindex_info(&wal->index);
  /* Nothing can be recovered by others any more; stock readers may look for
     a recovery in progress. */
  if (rc == 0) rc = wal_lock(wal->shm, F_UNLCK, SHM_RECOVER, 1);
  if (rc) {
    wal_free(wal);
    return rc;
  }
  *out = wal;
  return 0;
}

/* ---- applying ---------------------------------------------------------- */

/* Makes a header that follows the confirmed one. */
static struct walindex_header next_header(const struct wal *wal,
                                          uint32_t mx_frame, uint32_t n_page,
                                          const uint32_t chain[2])
{
  struct walindex_header header = wal->confirmed;
  header.change++;
  header.mx_frame = mx_frame;
  header.n_page = n_page;
  memcpy(header.frame_checksum, chain, 8);
  walindex_seal(&header);
  return header;
}

/* From here on frames of `index` may be found by recovery, whoever does it: a
   start must not bring the database to an older state. */
static void announce(struct wal *wal, raft_index index)
{
  atomic_store_explicit(&wal->map->control->confirmed, index,
                        memory_order_release);
}

/* The one way in which a transaction becomes visible; it was announced, and the
   page numbers of its frames are known. */
static int publish(struct wal *wal, const struct walindex_header *header,
                   raft_index index)
{
  for (uint32_t f = wal->confirmed.mx_frame + 1; f <= header->mx_frame; f++)
    if (walindex_append(&wal->index, f, control_pgno(wal->map, f)) != 0) {
      walindex_rewind(&wal->index, wal->confirmed.mx_frame);
      return not_grown(wal);
    }
  pthread_mutex_lock(&wal->mutex);
  walindex_publish(&wal->index, header);
  wal->confirmed = *header;
  wal->confirmed_index = index;
  show(wal);
  pthread_mutex_unlock(&wal->mutex);
  return 0;
}

void wal_advance(struct wal *wal, raft_index index)
{
  pthread_mutex_lock(&wal->mutex);
  wal->confirmed_index = index;
  announce(wal, index);
  show(wal);
  pthread_mutex_unlock(&wal->mutex);
}

void wal_append_start(struct wal *wal)
{
  wal->append_frame = wal->confirmed.mx_frame;
  memcpy(wal->append_chain, wal->confirmed.frame_checksum, 8);
  wal->out_offset = wal_offset(wal, wal->append_frame + 1);
  wal->out_len = 0;
  wal->held_pgno = 0;
  wal->append_index = 0;
}

static int flush_out(struct wal *wal)
{
  if (wal->out_len == 0) return 0;
  int rc = wal->io->pwrite(wal->io->ctx, wal->file, wal->out, wal->out_len,
                           wal->out_offset);
  wal->out_offset += wal->out_len;
  wal->out_len = 0;
  return rc;
}

static int append_frame(struct wal *wal, uint32_t pgno, const uint8_t *page,
                        uint32_t n_page)
{
  uint32_t n = wal->append_frame - wal->confirmed.mx_frame;
  if (n == wal->append_cap) {
    uint32_t cap = n ? n * 2 : 64;
    uint32_t *grown = realloc(wal->append_pages, cap * sizeof(*grown));
    if (grown == NULL) return -ENOMEM;
    wal->append_pages = grown;
    wal->append_cap = cap;
  }
  wal->append_pages[n] = pgno;
  wal->append_frame++;
  wal_encode_frame(wal->out + wal->out_len, pgno, n_page, wal->confirmed.salt,
                   page, wal->page_size, wal->append_chain);
  memcpy(wal->out + wal->out_len + WAL_FRAME_HEADER, page, wal->page_size);
  wal->out_len += WAL_FRAME_HEADER + wal->page_size;
  return wal->out_len >= OUT_MAX ? flush_out(wal) : 0;
}

int wal_append_page(struct wal *wal, uint32_t pgno, const uint8_t *page)
{
  int rc = 0;
  assert(pgno != 0);
  if (wal->held_pgno) rc = append_frame(wal, wal->held_pgno, wal->held, 0);
  memcpy(wal->held, page, wal->page_size);
  wal->held_pgno = pgno;
  return rc;
}

int wal_append_end(struct wal *wal, uint32_t n_page, raft_index index)
{
  uint32_t pgno = wal->held_pgno;
  if (pgno != 0) {
    announce(wal, index);
    wal->held_pgno = 0;
    wal->append_n_page = n_page;
  }
  wal->append_index = index;
  return pgno ? append_frame(wal, pgno, wal->held, n_page) : 0;
}

int wal_append_publish(struct wal *wal)
{
  raft_index index = wal->append_index;
  if (wal->append_frame == wal->confirmed.mx_frame) {
    if (index) wal_advance(wal, index);
    return 0;
  }
  int rc = flush_out(wal);
  if (rc) return rc;
  struct walindex_header header = next_header(
      wal, wal->append_frame, wal->append_n_page, wal->append_chain);
  pthread_mutex_lock(&wal->mutex);
  rc = set_pgnos(wal, wal->confirmed.mx_frame + 1, header.mx_frame,
                 wal->append_pages);
  pthread_mutex_unlock(&wal->mutex);
  if (rc == 0) rc = publish(wal, &header, index);
  if (rc == 0) wal_settle(wal);
  return rc;
}

int wal_append_commit(struct wal *wal, uint32_t n_page, raft_index index)
{
  int rc = wal_append_end(wal, n_page, index);
  return rc ? rc : wal_append_publish(wal);
}

int wal_hand_over(struct wal *wal, uint64_t epoch,
                  const struct walindex_header *base,
                  const struct walindex_header *header, const uint32_t *pages)
{
  pthread_mutex_lock(&wal->mutex);
  bool newest = memcmp(&wal->head, base, sizeof(*base)) == 0;
  assert(header->mx_frame > base->mx_frame);
  int rc = epoch == wal->epoch && newest
               ? set_pgnos(wal, wal->head.mx_frame + 1, header->mx_frame, pages)
               : -EPERM;
  if (rc == 0) {
    wal->head = *header;
    show(wal);
  }
  pthread_mutex_unlock(&wal->mutex);
  return rc;
}

void wal_settle(struct wal *wal)
{
  pthread_mutex_lock(&wal->mutex);
  /* What connections have seen of it is not so any more, whoever rejected it:
     others may write these frames under a grant that was never revoked. */
  if (wal->head.mx_frame > wal->confirmed.mx_frame) wal->epoch++;
  wal->head = wal->confirmed;
  show(wal);
  pthread_mutex_unlock(&wal->mutex);
}

int wal_confirm(struct wal *wal, const struct walindex_header *header,
                raft_index index)
{
  assert(header->mx_frame > wal->confirmed.mx_frame);
  announce(wal, index);
  int rc = wal->io->pwrite(wal->io->ctx, wal->file, wal->confirmed.salt, 8,
                           wal_offset(wal, header->mx_frame) + 8);
  return rc ? rc : publish(wal, header, index);
}

void wal_revoke(struct wal *wal)
{
  pthread_mutex_lock(&wal->file_mutex);
  pthread_mutex_lock(&wal->mutex);
  wal->epoch++;
  show(wal);
  pthread_mutex_unlock(&wal->mutex);
  pthread_mutex_unlock(&wal->file_mutex);
}

/* ---- readers ----------------------------------------------------------- */

bool wal_forbid(struct wal *wal)
{
  unsigned i = 0;
  struct control_pinned pinned;
  control_reap(wal->map);
  pthread_mutex_lock(&wal->mutex);
  wal->closed = true;
  show(wal);
  bool used = control_next_pinned(wal->map, wal->generation, &i, &pinned);
  if (used) {
    wal->closed = false;
    show(wal);
  }
  pthread_mutex_unlock(&wal->mutex);
  return !used;
}

static int by_page_newest_first(const void *a, const void *b)
{
  const struct wal_image *x = a, *y = b;
  if (x->pgno != y->pgno) return x->pgno < y->pgno ? -1 : 1;
  return x->frame > y->frame ? -1 : x->frame < y->frame;
}

uint32_t wal_newest(struct wal_image *images, uint32_t n, uint32_t n_page)
{
  uint32_t kept = 0;
  qsort(images, n, sizeof(*images), by_page_newest_first);
  for (uint32_t i = 0; i < n; i++) {
    if (images[i].pgno > n_page || images[i].pgno == 0) continue;
    if (kept && images[kept - 1].pgno == images[i].pgno) continue;
    images[kept++] = images[i];
  }
  return kept;
}

uint32_t wal_frames(struct wal *wal, uint32_t *backfill)
{
  pthread_mutex_lock(&wal->mutex);
  uint32_t frames = wal->confirmed.mx_frame;
  if (backfill) *backfill = wal->backfill;
  pthread_mutex_unlock(&wal->mutex);
  return frames;
}

bool wal_unused(struct wal *wal)
{
  unsigned i = 0;
  struct control_pinned pinned;
  return !control_next_pinned(wal->map, 0, &i, &pinned);
}

static struct wal_pinner name(const struct control_pinned *pinned)
{
  struct wal_pinner who;
  if (pinned->who[0])
    snprintf(who.s, sizeof(who.s), "%s", pinned->who);
  else
    snprintf(who.s, sizeof(who.s), "a reader of process %d",
             (int)atomic_load(&pinned->slot->pid));
  return who;
}

static struct wal_pinner foreign(void)
{
  struct wal_pinner who = {FOREIGN_READER};
  return who;
}

struct wal_pinner wal_pinner(struct wal *wal, const struct control_slot *except)
{
  struct flock lock = {.l_type = F_WRLCK, .l_start = SHM_READ(0), .l_len = 5};
  struct control_pinned p;
  unsigned i = 0;
  control_reap(wal->map);
  pthread_mutex_lock(&wal->mutex);
  uint64_t generation = wal->generation;
  uint32_t newest = wal->confirmed.mx_frame;
  pthread_mutex_unlock(&wal->mutex);
  while (control_next_pinned(wal->map, generation, &i, &p))
    if (p.slot != except && (p.uses_wal || p.frame < newest)) return name(&p);
  if (fcntl(wal->shm, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
    return foreign();
  return (struct wal_pinner){""};
}

/* ---- checkpoint and restart -------------------------------------------- */

/* Lowers *target to what stock readers of the real -shm allow, as a stock
   checkpoint does. */
static bool bound_by_foreign(struct wal *wal, uint32_t *target)
{
  struct walindex_info *info = wal->info;
  bool bound = false;
  for (int i = 1; i < 5; i++) {
    uint32_t mark = __atomic_load_n(&info->read_mark[i], __ATOMIC_ACQUIRE);
    if (mark >= *target) continue;
    if (wal_lock(wal->shm, F_WRLCK, SHM_READ(i), 1) == 0) {
      __atomic_store_n(&info->read_mark[i],
                       i == 1 ? *target : WALINDEX_NOT_USED, __ATOMIC_RELEASE);
      wal_lock(wal->shm, F_UNLCK, SHM_READ(i), 1);
    } else {
      *target = mark;
      bound = true;
    }
  }
  return bound;
}

/* Lowers *target, and *index with it, to what connections and the node's own
   readers allow. After the newest view was shown. */
static void bound_by_readers(struct wal *wal, uint32_t *target,
                             raft_index *index, struct wal_pinner *who)
{
  struct control_pinned p;
  unsigned i = 0;
  while (control_next_pinned(wal->map, wal->generation, &i, &p)) {
    if (p.frame >= *target) continue;
    *target = p.frame;
    *index = p.frame ? p.index : 0; /* 0: no state that has an index */
    *who = name(&p);
  }
}

static int copy_pages(struct wal *wal, uint32_t from, uint32_t to,
                      uint32_t n_page)
{
  const struct io *io = wal->io;
  uint32_t n = to - from;
  struct wal_image *copies = malloc((size_t)n * sizeof(*copies));
  uint8_t *page = malloc(wal->page_size);
  int rc = copies && page ? 0 : -ENOMEM;
  for (uint32_t i = 0; rc == 0 && i < n; i++) {
    copies[i].frame = from + 1 + i;
    copies[i].pgno = control_pgno(wal->map, from + 1 + i);
    if (copies[i].pgno == 0) rc = -ENOMEM; /* not left out unseen */
  }
  if (rc == 0) n = wal_newest(copies, n, n_page);
  for (uint32_t i = 0; rc == 0 && i < n; i++) {
    if (io->pread(io->ctx, wal->file, page, wal->page_size,
                  wal_offset(wal, copies[i].frame) + WAL_FRAME_HEADER) !=
        (ssize_t)wal->page_size)
      rc = -EIO;
    else
      rc = io->pwrite(io->ctx, wal->db, page, wal->page_size,
                      (uint64_t)(copies[i].pgno - 1) * wal->page_size);
  }
  free(copies);
  free(page);
  return rc;
}

int wal_look_at_fence(const struct wal *wal)
{
  uint8_t version;
  ssize_t n = wal->io->pread(wal->io->ctx, wal->db, &version, 1, 18);
  if (n < 0) return (int)n;
  return n == 1 && version == 3 ? 0 : -EBADMSG;
}

int wal_checkpoint(struct wal *wal, int (*floor)(void *ctx, raft_index index),
                   void *ctx, struct wal_checkpointed *done)
{
  const struct io *io = wal->io;
  struct walindex_info *info = wal->info;
  memset(done, 0, sizeof(*done));
  int rc = wal_look_at_fence(wal);
  if (rc) return rc;
  control_reap(wal->map);

  pthread_mutex_lock(&wal->mutex);
  struct walindex_header header = wal->confirmed;
  raft_index index = wal->confirmed_index, reached = index;
  uint32_t target = header.mx_frame, from = wal->backfill;
  show(wal); /* whoever pins from here on has at least this */
  bound_by_readers(wal, &target, &reached, &done->pinned);
  pthread_mutex_unlock(&wal->mutex);

  if (bound_by_foreign(wal, &target)) {
    done->pinned = foreign();
    reached = 0;
  }
  if (target > from) {
    if (wal_lock(wal->shm, F_WRLCK, SHM_READ(0), 1) != 0) {
      done->pinned = foreign();
      return 0;
    }
    __atomic_store_n(&info->backfill_attempted, target, __ATOMIC_RELEASE);
    rc = io->sync(io->ctx, wal->file);
    if (rc == 0) rc = floor(ctx, index);
    if (rc == 0) rc = copy_pages(wal, from, target, header.n_page);
    uint64_t size = 0, want = (uint64_t)header.n_page * wal->page_size;
    if (rc == 0) rc = io->size(io->ctx, wal->db, &size);
    if (rc == 0 && target == header.mx_frame && size > want)
      rc = io->truncate(io->ctx, wal->db, want);
    if (rc == 0) rc = io->sync(io->ctx, wal->db);
    if (rc == 0) {
      pthread_mutex_lock(&wal->mutex);
      wal->backfill = target;
      __atomic_store_n(&info->backfill, target, __ATOMIC_RELEASE);
      show(wal);
      pthread_mutex_unlock(&wal->mutex);
    }
    wal_lock(wal->shm, F_UNLCK, SHM_READ(0), 1);
  }
  if (rc == 0) {
    done->full = target >= header.mx_frame;
    done->index = reached;
  }
  return rc;
}

/* Writes a new generation over the old one's beginning, which is put back if
   that fails: the index goes on showing the old one. */
static int replace_generation(struct wal *wal, struct walindex_header *header)
{
  const struct io *io = wal->io;
  size_t size = wal_offset(wal, 2);
  uint8_t *old = malloc(size);
  if (old == NULL) return -ENOMEM;
  ssize_t n = io->pread(io->ctx, wal->file, old, size, 0);
  int rc = n == (ssize_t)size ? 0 : n < 0 ? (int)n : -EIO;
  if (rc == 0) {
    rc = write_generation(wal, header);
    if (rc) io->pwrite(io->ctx, wal->file, old, size, 0);
  }
  free(old);
  return rc;
}

/* What a large transaction took is given back; some of it will be written
   again soon. An error is told, but the new generation is in force. */
static int shorten(struct wal *wal)
{
  uint64_t size;
  int rc = wal->io->size(wal->io->ctx, wal->file, &size);
  if (rc || size <= WAL_KEEP) return rc;
  return wal->io->truncate(wal->io->ctx, wal->file, WAL_KEEP);
}

int wal_restart(struct wal *wal)
{
  struct walindex_header header;
  struct control_pinned p;
  unsigned i = 0;
  int rc = 0;
  if (wal_lock(wal->shm, F_WRLCK, SHM_READ(1), 4) != 0) return -EBUSY;
  pthread_mutex_lock(&wal->mutex);
  if (wal->backfill != wal->confirmed.mx_frame) rc = -EBUSY;
  while (rc == 0 && control_next_pinned(wal->map, wal->generation, &i, &p))
    if (p.uses_wal) rc = -EBUSY;
  pthread_mutex_unlock(&wal->mutex);
  /* Whoever begins to read from here on finds everything in the database
     file, and does not use the WAL. */
  if (rc == 0) rc = replace_generation(wal, &header);
  if (rc == 0) {
    pthread_mutex_lock(&wal->mutex);
    rc = enter_generation(wal, &header);
    pthread_mutex_unlock(&wal->mutex);
  }
  if (rc == 0) rc = shorten(wal);
  wal_lock(wal->shm, F_UNLCK, SHM_READ(1), 4);
  return rc;
}
