/*
** vfs.c: the VFS "quorate".
**
** It stands before the VFS that was the default when it was registered. A
** database file that has no "-quorate" directory beside it, and every other
** file, is opened by that VFS into the same sqlite3_file: from then on nothing
** here is in the way. The database of a node, whose host is this process or
** another one, is opened as a struct connection, and its -wal as a struct
** wal_handle that knows its connection. If the host will have nothing to do with
** this process (it is another user's), the file is opened as a stock program
** would open it: it can be read, and SQLite itself refuses to write it.
*/
#include "attach.h"
#include "call.h"

SQLITE_EXTENSION_INIT3

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whose file it is: a number of our own. */
#define FCNTL_CONNECTION 0x71756f72
#define SUPER_BYTES 4096 /* of a path; a longer one is not found */

static sqlite3_vfs *below; /* the VFS that was the default */

struct wal_handle {
  sqlite3_file base;
  struct connection *connection;
  sqlite3_file *real;
};

static const sqlite3_io_methods connection_methods, wal_methods;

static sqlite3_file *real_of(sqlite3_file *file)
{
  return file->pMethods == &wal_methods ? ((struct wal_handle *)file)->real
                                        : ((struct connection *)file)->real;
}

/* ---- both kinds of file ------------------------------------------------ */

static int real_size(sqlite3_file *file, sqlite3_int64 *size)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xFileSize(real, size);
}

static int no_sync(sqlite3_file *file, int flags)
{
  /* Durability lives in the log; the checkpointer syncs these files. */
  (void)file;
  (void)flags;
  return SQLITE_OK;
}

static int real_sector_size(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  return real->pMethods->xSectorSize(real);
}

static int characteristics(sqlite3_file *file)
{
  /* With POWERSAFE_OVERWRITE SQLite never pads a commit with more frames. */
  sqlite3_file *real = real_of(file);
  return (real->pMethods->xDeviceCharacteristics(real) |
          SQLITE_IOCAP_POWERSAFE_OVERWRITE) &
         ~SQLITE_IOCAP_BATCH_ATOMIC;
}

static int no_lock(sqlite3_file *file, int level)
{
  (void)file;
  /* SHARED is what a connection in WAL mode holds; anything above would mean
     to leave it. */
  return level > SQLITE_LOCK_SHARED ? SQLITE_BUSY : SQLITE_OK;
}

static int no_unlock(sqlite3_file *file, int level)
{
  (void)file;
  (void)level;
  return SQLITE_OK;
}

static int no_reserved(sqlite3_file *file, int *out)
{
  (void)file;
  *out = 0;
  return SQLITE_OK;
}

/* ---- the -wal ---------------------------------------------------------- */

static int wal_close_file(sqlite3_file *file)
{
  struct wal_handle *w = (struct wal_handle *)file;
  return w->real->pMethods->xClose(w->real);
}

static int wal_read(sqlite3_file *file, void *data, int n, sqlite3_int64 offset)
{
  struct wal_handle *w = (struct wal_handle *)file;
  if (vfs_inherited(w->connection)) return VFS_INHERITED;
  return capture_read(w->connection, w->real, data, n, offset);
}

static int wal_write(sqlite3_file *file, const void *data, int n,
                     sqlite3_int64 offset)
{
  struct wal_handle *w = (struct wal_handle *)file;
  if (vfs_inherited(w->connection)) return VFS_INHERITED;
  return capture_write(w->connection, w->real, data, n, offset);
}

static int wal_truncate(sqlite3_file *file, sqlite3_int64 size)
{
  /* The node alone decides how long the file is. */
  (void)file;
  (void)size;
  return SQLITE_OK;
}

static int wal_control(sqlite3_file *file, int op, void *arg)
{
  sqlite3_file *real = real_of(file);
  if (op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE)
    return SQLITE_OK;
  return real->pMethods->xFileControl(real, op, arg);
}

static const sqlite3_io_methods wal_methods = {
    .iVersion = 1,
    .xClose = wal_close_file,
    .xRead = wal_read,
    .xWrite = wal_write,
    .xTruncate = wal_truncate,
    .xSync = no_sync,
    .xFileSize = real_size,
    .xLock = no_lock,
    .xUnlock = no_unlock,
    .xCheckReservedLock = no_reserved,
    .xFileControl = wal_control,
    .xSectorSize = real_sector_size,
    .xDeviceCharacteristics = characteristics,
};

/* ---- the database file ------------------------------------------------- */

static int db_close(sqlite3_file *file)
{
  struct connection *c = (struct connection *)file;
  vfs_shm_unmap(file, 0);
  if (!vfs_inherited(c)) capture_drop(c);
  registry_unlist(&c->opened);
  int rc = c->real->pMethods->xClose(c->real);
  attach_close(c); /* an inherited one has no session any more */
  if (!vfs_inherited(c)) control_leave(&c->reader);
  if (c->draft >= 0) close(c->draft);
  free(c->pending);
  free(c->copies);
  if (!vfs_inherited(c)) registry_release(c->database);
  return rc;
}

/* Once for each read transaction that reads the file: what somebody has written
   over it is not the node's, and its pages in a transaction of this connection
   would be every node's. */
static int look_at_fence(struct connection *c)
{
  uint8_t version = 0;
  if (c->fence_seen) return SQLITE_OK;
  int rc = c->real->pMethods->xRead(c->real, &version, 1, 18);
  if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) return rc;
  if (version != 3) return vfs_refuse_files(c);
  c->fence_seen = true;
  return SQLITE_OK;
}

static int db_read(sqlite3_file *file, void *data, int n, sqlite3_int64 offset)
{
  struct connection *c = (struct connection *)file;
  if (vfs_inherited(c)) return VFS_INHERITED;
  int rc = offset ? capture_may_read(c) : SQLITE_OK;
  if (rc == SQLITE_OK) rc = look_at_fence(c);
  if (rc == SQLITE_OK) rc = c->real->pMethods->xRead(c->real, data, n, offset);
  /* A checkpoint need not spare what is older than a head that is no more. */
  if (rc == SQLITE_OK && c->ahead && c->writing) rc = capture_may_write(c);
  if (rc == SQLITE_OK && offset <= 18 && offset + n > 18) {
    /* The write version is a fence for others. */
    uint8_t *version = (uint8_t *)data + (18 - offset);
    if (*version == 3) *version = 2;
  }
  return rc;
}

static int db_write(sqlite3_file *file, const void *data, int n,
                    sqlite3_int64 offset)
{
  (void)file;
  (void)data;
  (void)n;
  (void)offset;
  return SQLITE_IOERR_WRITE; /* only the checkpointer writes here */
}

static int db_truncate(sqlite3_file *file, sqlite3_int64 size)
{
  (void)file;
  (void)size;
  return SQLITE_IOERR_TRUNCATE;
}

static int db_fetch(sqlite3_file *file, sqlite3_int64 offset, int n, void **out)
{
  struct connection *c = (struct connection *)file;
  *out = NULL;
  if (vfs_inherited(c)) return VFS_INHERITED;
  /* Page 1 must go through db_read(). */
  if (offset == 0 || c->real->pMethods->iVersion < 3) return SQLITE_OK;
  int rc = capture_may_read(c);
  /* A head that may be rejected: its pages must be looked after by db_read(). */
  if (rc != SQLITE_OK || c->ahead) return rc;
  rc = look_at_fence(c);
  if (rc != SQLITE_OK) return rc;
  return c->real->pMethods->xFetch(c->real, offset, n, out);
}

static int db_unfetch(sqlite3_file *file, sqlite3_int64 offset, void *page)
{
  struct connection *c = (struct connection *)file;
  if (c->real->pMethods->iVersion < 3) return SQLITE_OK;
  return c->real->pMethods->xUnfetch(c->real, offset, page);
}

static const char *const level_names[] = {"linearizable", "lease", "local"};

bool vfs_parse_level(const char *text, enum read_level *level)
{
  for (int i = LEVEL_LINEARIZABLE; i <= LEVEL_LOCAL; i++)
    if (sqlite3_stricmp(text, level_names[i]) == 0) {
      *level = (enum read_level)i;
      return true;
    }
  return false;
}

static bool parse_ms(const char *text, unsigned *out)
{
  char *end;
  long v = strtol(text, &end, 10);
  if (end == text || *end || v < 0 || v > 3600000) return false;
  *out = (unsigned)v;
  return true;
}

static int answer(char **args, int rc, const char *text)
{
  args[0] = sqlite3_mprintf("%s", text);
  return args[0] ? rc : SQLITE_NOMEM;
}

/* A PRAGMA that the node answers. */
static int call_pragma(struct connection *c, uint8_t what, char **args)
{
  const struct interrupt interrupt = {vfs_interrupted, c};
  struct call call = {.what = what};
  struct answer told = {0};
  if (args[2]) cells_text(&call.arguments, args[2]);
  int rc = call_do(c, &call, &interrupt, &told);
  if (rc == SQLITE_OK)
    rc = answer(args, SQLITE_OK, told.cells.at[0].text);
  else if (rc == SQLITE_ERROR)
    args[0] = sqlite3_mprintf("%s: %s", args[1], told.error.s);
  cells_clear(&call.arguments);
  answer_clear(&told);
  return rc;
}

/* args: answer or error, name of the pragma, its argument or NULL. */
static int db_pragma(struct connection *c, char **args)
{
  const char *name = args[1], *value = args[2];
  char number[24];
  if (sqlite3_stricmp(name, "journal_mode") == 0 && value &&
      sqlite3_stricmp(value, "wal") != 0)
    return answer(args, SQLITE_ERROR,
                  "journal_mode: a replicated database stays in WAL mode");
  if (sqlite3_stricmp(name, "locking_mode") == 0 && value &&
      sqlite3_stricmp(value, "normal") != 0)
    return answer(args, SQLITE_ERROR,
                  "locking_mode: a replicated database cannot be locked by "
                  "one connection");
  if (sqlite3_stricmp(name, "quorate_consistency") == 0) {
    if (value && !vfs_parse_level(value, &c->level))
      return answer(
          args, SQLITE_ERROR,
          "quorate_consistency: must be linearizable, lease or local");
    return answer(args, SQLITE_OK, level_names[c->level]);
  }
  if (sqlite3_stricmp(name, "quorate_follow_writer") == 0)
    return call_pragma(c, CALL_FOLLOW_WRITER, args);
  if (sqlite3_stricmp(name, "quorate_advertise") == 0)
    return call_pragma(c, CALL_ADVERTISE, args);
  if (sqlite3_stricmp(name, "quorate_write_wait") == 0) {
    if (value && !parse_ms(value, &c->write_wait))
      return answer(args, SQLITE_ERROR,
                    "quorate_write_wait: must be 0 to 3600000 ms");
    snprintf(number, sizeof(number), "%u", c->write_wait);
    return answer(args, SQLITE_OK, number);
  }
  /* SQLite would ignore a name that is mistyped. */
  if (sqlite3_strnicmp(name, "quorate_", 8) == 0)
    return answer(args, SQLITE_ERROR,
                  "no such setting of quorate: there are quorate_consistency, "
                  "quorate_write_wait, quorate_advertise and "
                  "quorate_follow_writer");
  return SQLITE_NOTFOUND;
}

static int db_control(sqlite3_file *file, int op, void *arg)
{
  struct connection *c = (struct connection *)file;
  switch (op) {
  case SQLITE_FCNTL_PDB: c->db = arg; return SQLITE_OK;
  case SQLITE_FCNTL_BUSYHANDLER: c->busy = arg; return SQLITE_OK;
  case SQLITE_FCNTL_PRAGMA: {
    int rc = db_pragma(c, arg);
    const char *said = *(char **)arg;
    if (rc == SQLITE_ERROR && said) text_set(&c->reason, "%s", said);
    return rc;
  }
  case FCNTL_CONNECTION: *(struct connection **)arg = c; return SQLITE_OK;
  case SQLITE_FCNTL_COMMIT_PHASETWO:
    return vfs_inherited(c) ? VFS_INHERITED : capture_wait(c);
  case SQLITE_FCNTL_SIZE_HINT:
  case SQLITE_FCNTL_CHUNK_SIZE: return SQLITE_OK; /* would change the file */
  case SQLITE_FCNTL_LOCK_TIMEOUT:
  case SQLITE_FCNTL_BEGIN_ATOMIC_WRITE: return SQLITE_NOTFOUND;
  case SQLITE_FCNTL_VFSNAME:
    *(char **)arg = sqlite3_mprintf("quorate/%s", below->zName);
    return SQLITE_OK;
  default: return c->real->pMethods->xFileControl(c->real, op, arg);
  }
}

static const sqlite3_io_methods connection_methods = {
    .iVersion = 3,
    .xClose = db_close,
    .xRead = db_read,
    .xWrite = db_write,
    .xTruncate = db_truncate,
    .xSync = no_sync,
    .xFileSize = real_size,
    .xLock = no_lock,
    .xUnlock = no_unlock,
    .xCheckReservedLock = no_reserved,
    .xFileControl = db_control,
    .xSectorSize = real_sector_size,
    .xDeviceCharacteristics = characteristics,
    .xShmMap = vfs_shm_map,
    .xShmLock = vfs_shm_lock,
    .xShmBarrier = vfs_shm_barrier,
    .xShmUnmap = vfs_shm_unmap,
    .xFetch = db_fetch,
    .xUnfetch = db_unfetch,
};

/* ---- commits over several databases -------------------------------------- */

/* The super-journal that this thread has made last; "": it is gone. */
static _Thread_local char super_journal[SUPER_BYTES];

static void note_super_journal(const char *name)
{
  snprintf(super_journal, sizeof(super_journal), "%s", name);
}

static void forget_super_journal(const char *name)
{
  if (strcmp(super_journal, name) == 0) super_journal[0] = 0;
}

bool vfs_has_super_journal(void)
{
  int there = 0;
  if (super_journal[0] == 0) return false;
  int rc = below->xAccess(below, super_journal, SQLITE_ACCESS_EXISTS, &there);
  super_journal[0] = 0; /* one that was left behind is refused for once */
  return rc == SQLITE_OK && there;
}

/* ---- opening ----------------------------------------------------------- */

static size_t header_size(void)
{
  size_t a = sizeof(struct connection), b = sizeof(struct wal_handle);
  return ((a > b ? a : b) + 15) & ~(size_t)15;
}

static sqlite3_file *real_space(sqlite3_file *file)
{
  return (sqlite3_file *)(void *)((char *)file + header_size());
}

/* A setting from the file's URI, else from the environment, else NULL. */
static const char *setting(const char *name, const char *key, const char *env)
{
  const char *value = sqlite3_uri_parameter(name, key);
  return value ? value : secure_getenv(env);
}

/* Says why a file does not open, or is of no use any more: SQLITE_CANTOPEN. */
static int refuse(const char *name, const struct text *line)
{
  registry_refuse(name, line);
  sqlite3_log(SQLITE_CANTOPEN, "quorate: %s", line->s);
  return SQLITE_CANTOPEN;
}

static int refuse_open(const char *name, const struct text *why)
{
  struct text line;
  text_set(&line, "%s: %s", name, why->s);
  return refuse(name, &line);
}

static int open_settings(struct connection *c, const char *name)
{
  const char *value =
      setting(name, "quorate_consistency", "QUORATE_CONSISTENCY");
  struct text why;
  c->level = LEVEL_LINEARIZABLE;
  c->write_wait = 5000;
  if (value && !vfs_parse_level(value, &c->level)) {
    text_set(&why,
             "unknown quorate_consistency: %s: must be linearizable, lease or "
             "local",
             value);
    return refuse_open(name, &why);
  }
  value = setting(name, "quorate_write_wait", "QUORATE_WRITE_WAIT");
  if (value && !parse_ms(value, &c->write_wait)) {
    text_set(&why, "bad quorate_write_wait: %s: must be 0 to 3600000 ms",
             value);
    return refuse_open(name, &why);
  }
  return SQLITE_OK;
}

const char *vfs_forbidden(const char *name)
{
  static const char *const keys[] = {"nolock", "immutable", "readonly_shm"};
  for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
    if (sqlite3_uri_boolean(name, keys[i], 0)) return keys[i];
  return NULL;
}

/* Opens a file with the VFS below. That takes any failure to open it for
   writing as the lack of a right, and opens it to be read: then a connection
   could not write for as long as it lives, because of one moment's error. */
static int open_real(const char *name, sqlite3_file *real, int flags,
                     int *out_flags)
{
  int out = 0;
  int rc = below->xOpen(below, name, real, flags, &out);
  if (rc == SQLITE_OK && (flags & SQLITE_OPEN_READWRITE) &&
      (out & SQLITE_OPEN_READONLY) &&
      faccessat(AT_FDCWD, name, W_OK, AT_EACCESS) == 0) {
    sqlite3_log(SQLITE_CANTOPEN, "quorate: %s: cannot be opened for writing",
                name);
    rc = SQLITE_CANTOPEN;
  }
  if (rc != SQLITE_OK && real->pMethods) real->pMethods->xClose(real);
  if (out_flags) *out_flags = out;
  return rc;
}

/* Everything of a connection but its file. */
static int begin_connection(struct connection *c, struct database *database,
                            const char *name)
{
  const char *key = vfs_forbidden(name);
  memset(c, 0, sizeof(*c));
  if (key) {
    struct node *node = atomic_load(&database->node);
    struct text why;
    text_set(&why, "%s is not possible on a replicated database", key);
    if (node) node_reason(node, "%s", why.s);
    return refuse_open(name, &why);
  }
  int rc = open_settings(c, name);
  if (rc != SQLITE_OK) return rc;
  struct control_view view;
  control_look(database->map, &view);
  c->forks = registry_forks;
  c->database = database;
  c->node = atomic_load(&database->node);
  c->map = database->map;
  c->page_size = view.page_size;
  c->client.fd = c->draft = -1;
  return SQLITE_OK;
}

/* Opens one of the node's files, if that is what has the name. */
static int open_file(struct connection *c, enum control_file which,
                     const char *name, sqlite3_file *real, int flags,
                     int *out_flags)
{
  c->files[which] = control_named(name);
  /* Before: the VFS below might make one. */
  if (!vfs_has_files(c)) return vfs_refuse_files(c);
  int rc = open_real(name, real, flags, out_flags);
  if (rc != SQLITE_OK) return rc;
  c->files[which] = control_named(name);
  if (vfs_has_files(c)) return SQLITE_OK;
  real->pMethods->xClose(real);
  return vfs_refuse_files(c);
}

static int open_database(struct database *database, const char *name,
                         sqlite3_file *file, int flags, int *out_flags)
{
  struct connection *c = (struct connection *)file;
  int rc = begin_connection(c, database, name);
  if (rc != SQLITE_OK) return rc;
  c->real = real_space(file);
  rc = open_file(c, CONTROL_DATABASE, name, c->real, flags, out_flags);
  if (rc != SQLITE_OK) return rc;
  c->base.pMethods = &connection_methods;
  registry_list(&c->opened, name);
  return SQLITE_OK;
}

int vfs_become(struct connection *c, struct database *database,
               const char *name, sqlite3_file *real)
{
  int rc = begin_connection(c, database, name);
  if (rc != SQLITE_OK) return rc;
  c->real = real;
  c->base.pMethods = &connection_methods;
  registry_list(&c->opened, name);
  return SQLITE_OK;
}

static int open_young(const char *name, sqlite3_file *file, int flags,
                      int *out_flags)
{
  sqlite3_file *real = real_space(file);
  int rc = open_real(name, real, flags, out_flags);
  if (rc == SQLITE_OK) auto_begin(file, name, real);
  return rc;
}

static struct connection *of_opened(struct opened *o)
{
  return (struct connection *)(void *)((char *)o -
                                       offsetof(struct connection, opened));
}

/* Whether SQLite sees of the database what characteristics() says. Otherwise it
   would end a transaction with frames that only fill a sector, each of which looks
   like a commit. */
static bool shows_powersafe(const char *name)
{
  sqlite3_file *seen = sqlite3_database_file_object(name);
  return (seen->pMethods->xDeviceCharacteristics(seen) &
          SQLITE_IOCAP_POWERSAFE_OVERWRITE) != 0;
}

/* The name of a -wal leads to that of its database, and that to the connection.
   SQLITE_NOTFOUND: it is none of ours. */
static int open_wal(const char *name, sqlite3_file *file, int flags,
                    int *out_flags)
{
  struct wal_handle *w = (struct wal_handle *)file;
  bool known;
  const char *database = sqlite3_filename_database(name);
  struct opened *o = registry_listed(database, &known);
  if (o == NULL && !known) return SQLITE_NOTFOUND;
  /* Written past its node, the file would be damaged. */
  const char *why =
      o == NULL ? "the VFS above quorate gives files other names"
      : shows_powersafe(name)
          ? NULL
          : "the VFS above quorate says that writes are not powersafe";
  if (why) {
    sqlite3_log(SQLITE_CANTOPEN, "quorate: %s: %s", name, why);
    return SQLITE_CANTOPEN;
  }
  w->base.pMethods = NULL;
  w->connection = of_opened(o);
  w->real = real_space(file);
  int rc =
      open_file(w->connection, CONTROL_WAL, name, w->real, flags, out_flags);
  if (rc == SQLITE_OK) w->base.pMethods = &wal_methods;
  return rc;
}

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
                    int flags, int *out_flags)
{
  (void)vfs;
  file->pMethods = NULL;
  if (name && (flags & SQLITE_OPEN_MASTER_JOURNAL)) {
    note_super_journal(name);
  } else if (name && (flags & SQLITE_OPEN_WAL)) {
    int rc = open_wal(name, file, flags, out_flags);
    if (rc != SQLITE_NOTFOUND) return rc;
  } else if (name && (flags & SQLITE_OPEN_MAIN_DB)) {
    struct database *database = NULL;
    struct text error = {""};
    enum auto_kind kind = auto_look(name, flags);
    if (kind == AUTO_YOUNG) return open_young(name, file, flags, out_flags);
    int rc = registry_open(name, &database, &error);
    if (rc != SQLITE_OK) {
      sqlite3_log(rc, "quorate: %s", error.s);
      return rc;
    }
    if (database) {
      rc = open_database(database, name, file, flags, out_flags);
      if (rc != SQLITE_OK) {
        file->pMethods = NULL;
        registry_release(database);
      }
      return rc;
    }
  }
  return below->xOpen(below, name, file, flags, out_flags);
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
  (void)vfs;
  forget_super_journal(name);
  return below->xDelete(below, name, sync);
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
  (void)vfs;
  return below->xAccess(below, name, flags, out);
}

static int vfs_full_path(sqlite3_vfs *vfs, const char *name, int n, char *out)
{
  (void)vfs;
  return below->xFullPathname(below, name, n, out);
}

static void *vfs_dl_open(sqlite3_vfs *vfs, const char *name)
{
  (void)vfs;
  return below->xDlOpen(below, name);
}

static void vfs_dl_error(sqlite3_vfs *vfs, int n, char *text)
{
  (void)vfs;
  below->xDlError(below, n, text);
}

static void (*vfs_dl_sym(sqlite3_vfs *vfs, void *handle,
                         const char *name))(void)
{
  (void)vfs;
  return below->xDlSym(below, handle, name);
}

static void vfs_dl_close(sqlite3_vfs *vfs, void *handle)
{
  (void)vfs;
  below->xDlClose(below, handle);
}

static int vfs_randomness(sqlite3_vfs *vfs, int n, char *out)
{
  (void)vfs;
  return below->xRandomness(below, n, out);
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
  (void)vfs;
  int slept =
      writer_sleep(us) || attach_sleep(us) ? us : below->xSleep(below, us);
  writer_slept();
  return slept;
}

static int vfs_time(sqlite3_vfs *vfs, double *out)
{
  (void)vfs;
  return below->xCurrentTime(below, out);
}

static int vfs_last_error(sqlite3_vfs *vfs, int n, char *out)
{
  (void)vfs;
  return below->xGetLastError ? below->xGetLastError(below, n, out) : 0;
}

static int vfs_time64(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
  (void)vfs;
  if (below->iVersion >= 2 && below->xCurrentTimeInt64)
    return below->xCurrentTimeInt64(below, out);
  double day;
  int rc = below->xCurrentTime(below, &day);
  *out = (sqlite3_int64)(day * 86400000.0);
  return rc;
}

static int vfs_set_call(sqlite3_vfs *vfs, const char *name,
                        sqlite3_syscall_ptr call)
{
  (void)vfs;
  return below->iVersion >= 3 ? below->xSetSystemCall(below, name, call)
                              : SQLITE_NOTFOUND;
}

static sqlite3_syscall_ptr vfs_get_call(sqlite3_vfs *vfs, const char *name)
{
  (void)vfs;
  return below->iVersion >= 3 ? below->xGetSystemCall(below, name) : NULL;
}

static const char *vfs_next_call(sqlite3_vfs *vfs, const char *name)
{
  (void)vfs;
  return below->iVersion >= 3 ? below->xNextSystemCall(below, name) : NULL;
}

static sqlite3_vfs quorate_vfs = {
    .iVersion = 3,
    .zName = "quorate",
    .xOpen = vfs_open,
    .xDelete = vfs_delete,
    .xAccess = vfs_access,
    .xFullPathname = vfs_full_path,
    .xDlOpen = vfs_dl_open,
    .xDlError = vfs_dl_error,
    .xDlSym = vfs_dl_sym,
    .xDlClose = vfs_dl_close,
    .xRandomness = vfs_randomness,
    .xSleep = vfs_sleep,
    .xCurrentTime = vfs_time,
    .xGetLastError = vfs_last_error,
    .xCurrentTimeInt64 = vfs_time64,
    .xSetSystemCall = vfs_set_call,
    .xGetSystemCall = vfs_get_call,
    .xNextSystemCall = vfs_next_call,
};

int vfs_register(void)
{
  if (sqlite3_vfs_find("quorate")) {
    /* After sqlite3_shutdown() SQLite's own is the default again. */
    return sqlite3_vfs_find(NULL) == below
               ? sqlite3_vfs_register(&quorate_vfs, 1)
               : SQLITE_OK;
  }
  below = sqlite3_vfs_find(NULL);
  if (below == NULL) return SQLITE_ERROR;
  auto_learn();
  quorate_vfs.szOsFile = (int)header_size() + below->szOsFile;
  quorate_vfs.mxPathname = below->mxPathname;
  return sqlite3_vfs_register(&quorate_vfs, 1);
}

struct connection *vfs_connection(sqlite3 *db, const char *schema)
{
  struct connection *c = NULL;
  /* Other VFSs above this one pass on what they do not know. */
  int rc = sqlite3_file_control(db, schema, FCNTL_CONNECTION, &c);
  return rc == SQLITE_OK ? c : NULL;
}

void vfs_locate(struct connection *c)
{
  /* A transaction stays with the host that it was begun with. */
  if (!c->writing && !c->reserved && c->tx == NULL && !c->sent)
    c->node = atomic_load(&c->database->node);
}

bool vfs_enter(struct connection *c)
{
  if (c->reader.slot || control_enter(c->map, NULL, &c->reader) == 0)
    return true;
  text_set(&c->reason, "more than %u connections", CONTROL_SLOTS);
  sqlite3_log(SQLITE_FULL, "quorate: %s: %s", c->database->path, c->reason.s);
  return false;
}

bool vfs_has_files(struct connection *c)
{
  bool same = true;
  for (int i = CONTROL_DATABASE; i <= CONTROL_WAL; i++) {
    uint64_t has = atomic_load(&c->map->control->files[i]);
    same = same && (c->files[i] == 0 || has == 0 || c->files[i] == has);
  }
  return same;
}

int vfs_refuse_files(struct connection *c)
{
  text_set(&c->reason,
           "%s: it or its -wal was removed or replaced while its node runs: "
           "SELECT quorate_stop('%s'), move the file back if it is gone, and "
           "open it anew, or have the node rebuilt with quorate_rebuild()",
           c->database->path, c->database->path);
  vfs_say(c);
  return refuse(c->database->path, &c->reason);
}

int vfs_refuse_inherited(struct connection *c)
{
  text_set(&c->reason, "this connection was opened before fork(): it is the "
                       "parent's, open the file anew");
  sqlite3_log(VFS_INHERITED, "quorate: %s: %s", c->database->path, c->reason.s);
  return VFS_INHERITED;
}

void vfs_say(struct connection *c)
{
  if (c->node) node_reason(c->node, "%s", c->reason.s);
}

const char *vfs_below_name(void)
{
  return below->zName;
}

/* The database file, by the VFS below, which looks at its name until it is closed:
   by close_below(). */
struct below_file {
  const char *name;
  sqlite3_file file;
};

static sqlite3_file *open_below(const char *path, int flags)
{
  struct below_file *b =
      calloc(1, offsetof(struct below_file, file) + (size_t)below->szOsFile);
  if (b == NULL) return NULL;
  /* As the VFS expects it: with an empty list of parameters. */
  b->name = sqlite3_create_filename(path, "", "", 0, NULL);
  if (b->name && below->xOpen(below, b->name, &b->file,
                              flags | SQLITE_OPEN_MAIN_DB, NULL) == SQLITE_OK)
    return &b->file;
  if (b->file.pMethods) b->file.pMethods->xClose(&b->file);
  sqlite3_free_filename(b->name);
  free(b);
  return NULL;
}

static void close_below(sqlite3_file *file)
{
  if (file == NULL) return;
  struct below_file *b =
      (struct below_file *)(void *)((char *)file -
                                    offsetof(struct below_file, file));
  file->pMethods->xClose(file);
  sqlite3_free_filename(b->name);
  free(b);
}

static bool read_header(sqlite3_file *file, uint8_t header[20])
{
  return file && file->pMethods->xRead(file, header, 20, 0) == SQLITE_OK &&
         memcmp(header, "SQLite format 3", 16) == 0;
}

bool vfs_read_versions(const char *path, uint8_t versions[2])
{
  uint8_t header[20];
  sqlite3_file *file = open_below(path, SQLITE_OPEN_READONLY);
  bool ok = read_header(file, header);
  if (ok) memcpy(versions, header + 18, 2);
  close_below(file);
  return ok;
}

bool vfs_write_version(const char *path, uint8_t version)
{
  uint8_t header[20];
  sqlite3_file *file = open_below(path, SQLITE_OPEN_READWRITE);
  bool ok = read_header(file, header) && header[19] == 2 &&
            file->pMethods->xWrite(file, &version, 1, 18) == SQLITE_OK &&
            file->pMethods->xSync(file, SQLITE_SYNC_NORMAL) == SQLITE_OK;
  close_below(file);
  return ok;
}

char *vfs_absolute(const char *path)
{
  char *out = malloc((size_t)below->mxPathname + 1);
  if (out == NULL || path[0] == 0) {
    free(out);
    return NULL;
  }
  int rc = below->xFullPathname(below, path, below->mxPathname + 1, out);
  /* A path through a symbolic link is absolute all the same. */
  if ((rc & 0xff) == SQLITE_OK) return out;
  free(out);
  return NULL;
}
