/*
** auto.c: QUORATE_AUTO=1: every new database file becomes a one-node cluster by
** itself, so that a program's tests, SQLite's own above all, run on nodes without
** a line of them changed. A testing aid: nobody can ever join such a node.
**
** Until its first commit a new file is nothing that could be replicated: its
** page size, its encoding and whether it vacuums by itself may still be chosen.
** So it is opened "young": each call goes to the VFS below. When the last lock on
** it is given up and there is something in it, it is made a node
** (cluster_bootstrap_alone()), and the same sqlite3_file becomes a connection of
** that. To SQLite this looks as if somebody else had changed the journal mode to
** WAL in between, which it notices when it locks the file the next time. Other
** young files of the same database become connections when they lock it next. If
** another connection is reading just then, the next commit comes soon.
**
** The node stops when the last connection of its host is closed: the file is whole
** without it then, as programs expect that copy it, and -wal and -shm are gone. The
** directory stays. What the file was then is noted in DIR/auto:
**
**     device, inode, bytes, seconds, nanoseconds
**
** the last two being when it was changed, which is set to a time of our own
** choice, since the clock of files is a coarse one. If the file is another, or is
** none any more, when it is opened under QUORATE_AUTO, the node has lost it: its
** directory is removed, and a new one is made. While a node runs there is no
** DIR/auto, nor after a kill: then the node recovers as any does, unless there is
** no file at all.
**
** A file that looks like a node's and has no directory is a copy of one: that
** becomes a node of its own. Any other file that was there before is left alone.
*/
#include "attach.h"
#include "cluster.h"

SQLITE_EXTENSION_INIT3

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096
#define NOTE_MAX 120
#define OWN_NS 123456789           /* no clock of files is that fine */
#define SEGMENT_BYTES (128u << 10) /* nodes come and go: a log soon begun */

static bool wanted;

void auto_learn(void)
{
  const char *value = secure_getenv("QUORATE_AUTO");
  wanted = value && strcmp(value, "1") == 0;
  if (wanted) node_limits.segment_bytes = SEGMENT_BYTES;
}

bool auto_wanted(void)
{
  return wanted;
}

/* ---- what the file was when its node was stopped ------------------------- */

static bool note_path(const char *path, char out[PATH_SIZE])
{
  int n = snprintf(out, PATH_SIZE, "%s-quorate/auto", path);
  return n > 0 && n < PATH_SIZE;
}

static void describe(const struct stat *st, char *note)
{
  snprintf(note, NOTE_MAX, "%llu %llu %llu %lld %ld\n",
           (unsigned long long)st->st_dev, (unsigned long long)st->st_ino,
           (unsigned long long)st->st_size, (long long)st->st_mtim.tv_sec,
           (long)st->st_mtim.tv_nsec);
}

void auto_begun(const char *path)
{
  char name[PATH_SIZE];
  if (note_path(path, name)) unlink(name);
}

static void remove_empty(const char *path, const char *suffix)
{
  char name[PATH_SIZE];
  struct stat st;
  int n = snprintf(name, sizeof(name), "%s%s", path, suffix);
  if (n > 0 && (size_t)n < sizeof(name) && lstat(name, &st) == 0 &&
      S_ISREG(st.st_mode) && st.st_size == 0)
    unlink(name);
}

void auto_ended(const char *path)
{
  char name[PATH_SIZE], note[NOTE_MAX];
  struct stat st;
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = OWN_NS}};
  remove_empty(path, "-wal");
  remove_empty(path, "-shm");
  if (!note_path(path, name) || stat(path, &st) != 0) return;
  times[1].tv_sec = st.st_mtim.tv_sec;
  if (utimensat(AT_FDCWD, path, times, 0) != 0 || stat(path, &st) != 0) return;
  describe(&st, note);
  io_replace_file(&io_posix, name, note, strlen(note));
}

/* The file is what it was when its node was stopped, as far as that is known. */
static bool is_same(const char *path)
{
  char name[PATH_SIZE], note[NOTE_MAX];
  struct stat st;
  uint8_t *noted = NULL;
  size_t n = 0;
  if (stat(path, &st) != 0 || st.st_size == 0) return false;
  if (!note_path(path, name) ||
      io_read_file(&io_posix, name, NOTE_MAX, &noted, &n) != 0)
    return true;
  describe(&st, note);
  bool same = n == strlen(note) && memcmp(note, noted, n) == 0;
  free(noted);
  return same;
}

static bool is_alone(const char *dir)
{
  struct identity identity;
  struct text ignored;
  bool alone =
      identity_read(dir, &identity, &ignored) == 0 && identity_alone(&identity);
  identity_clear(&identity);
  return alone;
}

bool auto_lost(const struct node *node)
{
  struct stat st, ours;
  if (!identity_alone(&node->identity) || node->wal == NULL) return false;
  return stat(node->path, &st) != 0 || fstat(node->wal->db, &ours) != 0 ||
         st.st_ino != ours.st_ino || st.st_dev != ours.st_dev;
}

void auto_forget(const char *path)
{
  char dir[PATH_SIZE];
  struct text ignored;
  int pid, n = snprintf(dir, sizeof(dir), "%s-quorate", path);
  if (n < 0 || (size_t)n >= sizeof(dir) || is_same(path) ||
      directory_check(dir, &ignored) != 0 || !is_alone(dir))
    return;
  int lock = node_lock(dir, &pid, &ignored);
  if (lock < 0) return; /* another process hosts it */
  cluster_remove_directory(dir);
  node_unlock(lock);
}

/* ---- files without a node ------------------------------------------------ */

struct young {
  sqlite3_file base;
  sqlite3_file *real;
  const char *name; /* as SQLite gave it, for as long as it is open */
  void *db, *busy;  /* SQLITE_FCNTL_PDB, SQLITE_FCNTL_BUSYHANDLER */
  int level;        /* of its lock */
};
_Static_assert(sizeof(struct young) <= sizeof(struct connection),
               "one becomes the other");

static sqlite3_file *real_of(sqlite3_file *file)
{
  return ((struct young *)file)->real;
}

/* It becomes a connection of the database; the reference is its, or is given
   up. */
static int grow(struct young *y, struct database *database)
{
  struct young was = *y;
  struct connection *c = (struct connection *)y;
  int rc = vfs_become(c, database, was.name, was.real);
  if (rc != SQLITE_OK) {
    *y = was;
    registry_release(database);
    return rc;
  }
  c->db = was.db;
  c->busy = was.busy;
  return SQLITE_OK;
}

static struct database *make_node(const char *path)
{
  struct text error = {""};
  struct database *database = cluster_bootstrap_alone(path, &error);
  if (database == NULL)
    sqlite3_log(SQLITE_NOTICE, "quorate: no node made: %s", error.s);
  return database;
}

static bool has_content(sqlite3_file *real)
{
  sqlite3_int64 size = 0;
  return real->pMethods->xFileSize(real, &size) == SQLITE_OK && size > 0;
}

static int young_lock(sqlite3_file *file, int level)
{
  struct young *y = (struct young *)file;
  if (y->level == SQLITE_LOCK_NONE && registry_has_directory(y->name)) {
    struct database *database = NULL;
    struct text error = {""};
    int rc = registry_open(y->name, &database, &error);
    if (rc != SQLITE_OK) sqlite3_log(rc, "quorate: %s", error.s);
    if (rc == SQLITE_OK && database) rc = grow(y, database);
    if (rc != SQLITE_OK) return rc;
    if (database) return file->pMethods->xLock(file, level);
  }
  int rc = y->real->pMethods->xLock(y->real, level);
  if (rc == SQLITE_OK && level > y->level) y->level = level;
  return rc;
}

static int young_unlock(sqlite3_file *file, int level)
{
  struct young *y = (struct young *)file;
  int rc = y->real->pMethods->xUnlock(y->real, level);
  if (rc != SQLITE_OK || y->level <= level) return rc;
  y->level = level;
  if (level == SQLITE_LOCK_NONE && has_content(y->real) &&
      !registry_has_directory(y->name)) {
    struct database *database = make_node(y->name);
    if (database) grow(y, database); /* else the next lock tries again */
  }
  return SQLITE_OK;
}

static int young_close(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xClose(real);
}

static int young_read(sqlite3_file *file, void *data, int n,
                      sqlite3_int64 offset)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xRead(real, data, n, offset);
}

static int young_write(sqlite3_file *file, const void *data, int n,
                       sqlite3_int64 offset)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xWrite(real, data, n, offset);
}

static int young_truncate(sqlite3_file *file, sqlite3_int64 size)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xTruncate(real, size);
}

static int young_sync(sqlite3_file *file, int flags)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xSync(real, flags);
}

static int young_size(sqlite3_file *file, sqlite3_int64 *size)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xFileSize(real, size);
}

static int young_reserved(sqlite3_file *file, int *out)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xCheckReservedLock(real, out);
}

static int young_control(sqlite3_file *file, int op, void *arg)
{
  struct young *y = (struct young *)file;
  if (op == SQLITE_FCNTL_PDB) y->db = arg;
  if (op == SQLITE_FCNTL_BUSYHANDLER) y->busy = arg;
  return y->real->pMethods->xFileControl(y->real, op, arg);
}

static int young_sector_size(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xSectorSize(real);
}

static int young_characteristics(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xDeviceCharacteristics(real);
}

static int young_shm_map(sqlite3_file *file, int region, int size, int extend,
                         void volatile **out)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xShmMap(real, region, size, extend, out);
}

static int young_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xShmLock(real, offset, n, flags);
}

static void young_shm_barrier(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  real->pMethods->xShmBarrier(real);
}

static int young_shm_unmap(sqlite3_file *file, int delete_it)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xShmUnmap(real, delete_it);
}

static int young_fetch(sqlite3_file *file, sqlite3_int64 offset, int n,
                       void **out)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xFetch(real, offset, n, out);
}

static int young_unfetch(sqlite3_file *file, sqlite3_int64 offset, void *page)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xUnfetch(real, offset, page);
}

static const sqlite3_io_methods young_methods = {
    .iVersion = 3,
    .xClose = young_close,
    .xRead = young_read,
    .xWrite = young_write,
    .xTruncate = young_truncate,
    .xSync = young_sync,
    .xFileSize = young_size,
    .xLock = young_lock,
    .xUnlock = young_unlock,
    .xCheckReservedLock = young_reserved,
    .xFileControl = young_control,
    .xSectorSize = young_sector_size,
    .xDeviceCharacteristics = young_characteristics,
    .xShmMap = young_shm_map,
    .xShmLock = young_shm_lock,
    .xShmBarrier = young_shm_barrier,
    .xShmUnmap = young_shm_unmap,
    .xFetch = young_fetch,
    .xUnfetch = young_unfetch,
};

enum auto_kind auto_look(const char *name, int flags)
{
  struct stat st;
  uint8_t versions[2];
  if (!wanted || !(flags & SQLITE_OPEN_READWRITE) || vfs_forbidden(name))
    return AUTO_OTHER;
  registry_forget_lost(name);
  if (registry_has_directory(name)) return AUTO_OTHER;
  if (stat(name, &st) != 0)
    return flags & SQLITE_OPEN_CREATE ? AUTO_YOUNG : AUTO_OTHER;
  if (!S_ISREG(st.st_mode)) return AUTO_OTHER;
  if (st.st_size == 0) return AUTO_YOUNG;
  if (!vfs_read_versions(name, versions) || versions[0] != 3 ||
      versions[1] != 2)
    return AUTO_OTHER;
  struct database *made = make_node(name);
  if (made) registry_release(made);
  return AUTO_OTHER;
}

void auto_begin(sqlite3_file *file, const char *name, sqlite3_file *real)
{
  struct young *y = (struct young *)file;
  *y = (struct young){.real = real, .name = name};
  y->base.pMethods = &young_methods;
}
