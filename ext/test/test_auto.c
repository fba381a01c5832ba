/*
** QUORATE_AUTO: what becomes a node, and what of a node that has lost its file.
** And VFSs of others that stand above this one, as a program's tests like to have
** them.
*/
#include "harness.h"
#include "stock.h"

#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);

static unsigned renamed; /* files, as SQLite's log says */

static void ask(sqlite3 *db, const char *sql, const char *want)
{
  char answer[ANSWER_MAX];
  stock_ask(db, sql, answer);
  assert_string_equal(answer, want);
}

static sqlite3 *open_by(const char *path, const char *vfs)
{
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open_v2(path, &db,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                                   vfs),
                   SQLITE_OK);
  return db;
}

static bool is_there(const char *dir, const char *name)
{
  struct stat st;
  return stat(path_of(dir, name).s, &st) == 0;
}

/* ---- what becomes a node ------------------------------------------------- */

/* Before its first commit it is an ordinary file, whose page size is free. */
static void a_new_file_becomes_a_node(void **state)
{
  struct path p = path_of(*state, "db");
  sqlite3 *db = stock_open(p.s), *other = stock_open(p.s);
  ask(db, "PRAGMA page_size=2048", "");
  assert_false(is_there(*state, "db-quorate"));
  ask(db, "PRAGMA auto_vacuum=2", "");
  ask(db, "PRAGMA encoding='UTF-16le'", "");
  ask(db, "CREATE TABLE t(v)", "");
  assert_true(is_there(*state, "db-quorate"));
  ask(db, "SELECT quorate_role()", "leader");
  ask(db, "PRAGMA journal_mode", "wal");
  ask(db, "PRAGMA page_size", "2048");
  ask(db, "PRAGMA auto_vacuum", "2");
  ask(db, "PRAGMA encoding", "UTF-16le");
  /* So does what was open then. */
  ask(other, "INSERT INTO t VALUES(1) RETURNING v", "1");
  ask(other, "SELECT quorate_role()", "leader");
  ask(other, "SELECT quorate_invite('n2')",
      "error: quorate_invite: this node was made by QUORATE_AUTO: it listens "
      "nowhere");
  sqlite3_close(db);
  sqlite3_close(other);
  assert_false(is_there(*state, "db-wal"));
  assert_false(is_there(*state, "db-shm"));
  db = stock_open(p.s);
  ask(db, "SELECT v FROM t", "1");
  ask(db, "SELECT quorate_index() > 1", "1");
  ask(db, "PRAGMA integrity_check", "ok");
  sqlite3_close(db);
  /* SQLite holds a file against its name when it closes it: the name that a file
     was opened with must live that long. */
  assert_int_equal(renamed, 0);
}

/* Programs delete files, copy others over them and write into them, and know of
   no directory. */
static void a_lost_file_begins_anew(void **state)
{
  struct path p = path_of(*state, "db"), copy = path_of(*state, "copy");
  uint8_t *data;
  size_t len;
  sqlite3 *db = stock_open(p.s);
  stock_exec(db, "CREATE TABLE t(v); INSERT INTO t VALUES('one')");
  sqlite3_close(db);
  data = file_read(p.s, &len);
  file_write(copy.s, data, len);

  unlink(p.s);
  db = stock_open(p.s);
  ask(db, "SELECT count(*) FROM sqlite_schema", "0");
  stock_exec(db, "CREATE TABLE t(v); INSERT INTO t VALUES('two')");
  ask(db, "SELECT quorate_role()", "leader");
  /* Also while it is open. */
  unlink(p.s);
  sqlite3 *other = stock_open(p.s);
  stock_exec(other, "CREATE TABLE t(v); INSERT INTO t VALUES('three')");
  ask(other, "SELECT quorate_role() || v FROM t", "leaderthree");
  sqlite3_close(other);
  sqlite3_close(db);

  /* A copy is a node of its own, and one over a node's file is another's. */
  file_write(p.s, data, len);
  db = stock_open(p.s);
  ask(db, "SELECT quorate_role() || v FROM t", "leaderone");
  sqlite3_close(db);
  free(data);
  data = file_read(p.s, &len);
  const char *at = memmem(data, len, "one", 3);
  assert_non_null(at);
  file_patch(p.s, (size_t)(at - (const char *)data), "ONE", 3);
  free(data);
  db = stock_open(p.s);
  ask(db, "SELECT quorate_role() || v FROM t", "leaderONE");
  sqlite3_close(db);
  db = stock_open(copy.s);
  ask(db, "SELECT quorate_role() || v FROM t", "leaderone");
  stock_exec(db, "INSERT INTO t VALUES('more')");
  sqlite3_close(db);
}

/* Nor is a node that others can join ever taken for one of these. */
static void what_was_there_is_left_alone(void **state)
{
  struct path p = path_of(*state, "db");
  char sql[PATH_BYTES + 100];
  sqlite3 *db = open_by(p.s, "unix");
  stock_exec(db, "CREATE TABLE t(v)");
  sqlite3_close(db);
  db = stock_open(p.s);
  ask(db, "INSERT INTO t VALUES(1)", "");
  ask(db, "PRAGMA journal_mode", "delete");
  sqlite3_close(db);
  assert_false(is_there(*state, "db-quorate"));

  db = open_by(":memory:", NULL);
  snprintf(sql, sizeof(sql),
           "SELECT substr(quorate_bootstrap('%s', 'listen', '127.0.0.1:%u'), "
           "1, 4)",
           p.s, free_port());
  ask(db, sql, "node");
  sqlite3 *node = stock_open(p.s);
  ask(node, "SELECT quorate_role()", "leader");
  sqlite3_close(node);
  snprintf(sql, sizeof(sql), "SELECT substr(quorate_stop('%s'), 1, 7)", p.s);
  ask(db, sql, "stopped");
  unlink(p.s);
  assert_int_equal(sqlite3_open(p.s, &node), SQLITE_CANTOPEN);
  sqlite3_close(node);
  assert_true(is_there(*state, "db-quorate"));
  sqlite3_close(db);
}

/* Somebody who waits for the directory, and opens the file as soon as it is there:
   before bootstrap has started the node. */
struct hasty {
  struct path path, node;
  char said[ANSWER_MAX];
};

static void *open_hastily(void *arg)
{
  struct hasty *h = arg;
  time_t last = time(NULL) + 60;
  while (access(h->node.s, F_OK) != 0 && time(NULL) < last)
    ;
  sqlite3 *db = stock_open(h->path.s);
  stock_ask(db, "SELECT count(*) || quorate_role() FROM sqlite_schema",
            h->said);
  sqlite3_close(db);
  return NULL;
}

static void who_opens_it_first_starts_it(void **state)
{
  char sql[PATH_BYTES + 100], name[20];
  sqlite3 *db = open_by(":memory:", NULL);
  for (int i = 0; i < 20; i++) {
    struct hasty h = {.said = ""};
    pthread_t thread;
    snprintf(name, sizeof(name), "db%d", i);
    h.path = path_of(*state, name);
    snprintf(name, sizeof(name), "db%d-quorate/node", i);
    h.node = path_of(*state, name);
    assert_int_equal(pthread_create(&thread, NULL, open_hastily, &h), 0);
    snprintf(sql, sizeof(sql),
             "SELECT substr(quorate_bootstrap('%s', 'listen', '127.0.0.1:%u'), "
             "1, 4)",
             h.path.s, free_port());
    ask(db, sql, "node");
    pthread_join(thread, NULL);
    assert_string_equal(h.said, "0leader");
    snprintf(sql, sizeof(sql), "SELECT substr(quorate_stop('%s'), 1, 7)",
             h.path.s);
    ask(db, sql, "stopped");
  }
  sqlite3_close(db);
}

/* ---- VFSs above this one --------------------------------------------------- */

/* A file of such a VFS is a pointer to one of quorate's. */
struct shim_file {
  sqlite3_file base;
  sqlite3_file *real;
  const char *name; /* its own copy, or NULL */
};

static sqlite3_file *real_of(sqlite3_file *file)
{
  return ((struct shim_file *)file)->real;
}

static int shim_close(sqlite3_file *file)
{
  sqlite3_file *real = real_of(file);
  int rc = real->pMethods->xClose(real);
  sqlite3_free(real);
  sqlite3_free_filename(((struct shim_file *)file)->name);
  return rc;
}

#define FORWARD(NAME, CALL, ARGS, ...)                                         \
  static int shim_##NAME ARGS                                                  \
  {                                                                            \
    return real_of(f)->pMethods->CALL(real_of(f), ##__VA_ARGS__);              \
  }
FORWARD(read, xRead, (sqlite3_file * f, void *d, int n, sqlite3_int64 at), d, n,
        at)
FORWARD(write, xWrite,
        (sqlite3_file * f, const void *d, int n, sqlite3_int64 at), d, n, at)
FORWARD(truncate, xTruncate, (sqlite3_file * f, sqlite3_int64 n), n)
FORWARD(sync, xSync, (sqlite3_file * f, int flags), flags)
FORWARD(size, xFileSize, (sqlite3_file * f, sqlite3_int64 *n), n)
FORWARD(lock, xLock, (sqlite3_file * f, int level), level)
FORWARD(unlock, xUnlock, (sqlite3_file * f, int level), level)
FORWARD(reserved, xCheckReservedLock, (sqlite3_file * f, int *out), out)
FORWARD(control, xFileControl, (sqlite3_file * f, int op, void *arg), op, arg)
FORWARD(sector, xSectorSize, (sqlite3_file * f))
FORWARD(shm_map, xShmMap,
        (sqlite3_file * f, int i, int n, int extend, void volatile **out), i, n,
        extend, out)
FORWARD(shm_lock, xShmLock, (sqlite3_file * f, int at, int n, int flags), at, n,
        flags)
FORWARD(shm_unmap, xShmUnmap, (sqlite3_file * f, int gone), gone)

static int device = SQLITE_IOCAP_POWERSAFE_OVERWRITE;

static int shim_characteristics(sqlite3_file *file)
{
  (void)file;
  return device;
}

static void shm_barrier(sqlite3_file *file)
{
  real_of(file)->pMethods->xShmBarrier(real_of(file));
}

static const sqlite3_io_methods shim_methods = {
    .iVersion = 2,
    .xClose = shim_close,
    .xRead = shim_read,
    .xWrite = shim_write,
    .xTruncate = shim_truncate,
    .xSync = shim_sync,
    .xFileSize = shim_size,
    .xLock = shim_lock,
    .xUnlock = shim_unlock,
    .xCheckReservedLock = shim_reserved,
    .xFileControl = shim_control,
    .xSectorSize = shim_sector,
    .xDeviceCharacteristics = shim_characteristics,
    .xShmMap = shim_shm_map,
    .xShmLock = shim_shm_lock,
    .xShmBarrier = shm_barrier,
    .xShmUnmap = shim_shm_unmap,
};

/* pAppData: it gives database files names of its own. */
static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
                     int flags, int *out)
{
  sqlite3_vfs *quorate = sqlite3_vfs_find("quorate");
  struct shim_file *s = (struct shim_file *)file;
  memset(s, 0, sizeof(*s));
  if (vfs->pAppData && (flags & SQLITE_OPEN_MAIN_DB))
    name = s->name = sqlite3_create_filename(name, "", "", 0, NULL);
  s->real = sqlite3_malloc(quorate->szOsFile);
  memset(s->real, 0, (size_t)quorate->szOsFile);
  int rc = quorate->xOpen(quorate, name, s->real, flags, out);
  if (rc == SQLITE_OK) {
    s->base.pMethods = &shim_methods;
  } else {
    sqlite3_free(s->real);
    sqlite3_free_filename(s->name);
  }
  return rc;
}

static void add_shim(sqlite3_vfs *shim, const char *name, void *copies)
{
  *shim = *sqlite3_vfs_find("quorate");
  shim->zName = name;
  shim->pNext = NULL;
  shim->szOsFile = sizeof(struct shim_file);
  shim->pAppData = copies;
  shim->xOpen = shim_open;
  assert_int_equal(sqlite3_vfs_register(shim, 0), SQLITE_OK);
}

/* What is written through it is captured, and read back. */
static void a_vfs_above_passes_through(void **state)
{
  static sqlite3_vfs shim;
  struct path p = path_of(*state, "db");
  add_shim(&shim, "shim", NULL);
  sqlite3 *db = open_by(p.s, "shim"), *direct;
  stock_exec(db, "CREATE TABLE t(v)");
  ask(db, "SELECT quorate_role()", "leader");
  for (int i = 0; i < 20; i++)
    stock_exec(db, "INSERT INTO t VALUES(randomblob(3000))");
  stock_exec(db, "BEGIN; INSERT INTO t VALUES('x'); SAVEPOINT a;"
                 "UPDATE t SET v = 'y'; ROLLBACK TO a; COMMIT");
  direct = stock_open(p.s);
  ask(direct, "SELECT count(*) FROM t WHERE v = 'x' OR length(v) = 3000", "21");
  stock_exec(direct, "INSERT INTO t VALUES('z')");
  ask(db, "SELECT count(*) FROM t", "22");
  ask(db, "PRAGMA integrity_check", "ok");
  sqlite3_close(direct);
  sqlite3_close(db);
  db = stock_open(p.s);
  ask(db, "SELECT count(*) FROM t", "22");
  ask(db, "PRAGMA integrity_check", "ok");
  sqlite3_close(db);
  sqlite3_vfs_unregister(&shim);
}

/* Its -wal could not be told from another's: it is not written past the node. */
static void a_vfs_that_changes_names_is_refused(void **state)
{
  static sqlite3_vfs shim;
  struct path p = path_of(*state, "db");
  sqlite3 *db = stock_open(p.s), *bad;
  stock_exec(db, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
  add_shim(&shim, "changes", &shim);
  bad = open_by(p.s, "changes");
  ask(bad, "INSERT INTO t VALUES(2)", "error: unable to open database file");
  ask(bad, "SELECT v FROM t", "error: unable to open database file");
  sqlite3_close(bad);
  ask(db, "SELECT group_concat(v) FROM t", "1");
  sqlite3_close(db);
  sqlite3_vfs_unregister(&shim);
}

/* Commits would be padded with frames that look like more commits. */
static void a_vfs_that_knows_another_device_is_refused(void **state)
{
  static sqlite3_vfs shim;
  struct path p = path_of(*state, "db");
  sqlite3 *db = stock_open(p.s), *bad;
  stock_exec(db, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
  add_shim(&shim, "device", NULL);
  device = 0;
  bad = open_by(p.s, "device");
  ask(bad, "INSERT INTO t VALUES(2)", "error: unable to open database file");
  sqlite3_close(bad);
  device = SQLITE_IOCAP_POWERSAFE_OVERWRITE;
  bad = open_by(p.s, "device");
  ask(bad, "INSERT INTO t VALUES(2) RETURNING v", "2");
  sqlite3_close(bad);
  ask(db, "SELECT group_concat(v) FROM t", "1,2");
  sqlite3_close(db);
  sqlite3_vfs_unregister(&shim);
}

/* SQLite makes its own VFS the default again. */
static void loading_after_a_shutdown_is_loading(void **state)
{
  struct path p = path_of(*state, "db");
  assert_int_equal(sqlite3_shutdown(), SQLITE_OK);
  assert_int_equal(sqlite3_initialize(), SQLITE_OK);
  assert_string_not_equal(sqlite3_vfs_find(NULL)->zName, "quorate");
  assert_int_equal(sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init),
                   SQLITE_OK);
  sqlite3 *db = open_by(":memory:", NULL);
  sqlite3_close(db);
  assert_string_equal(sqlite3_vfs_find(NULL)->zName, "quorate");
  db = stock_open(p.s);
  stock_exec(db, "CREATE TABLE t(v)");
  ask(db, "SELECT quorate_role()", "leader");
  sqlite3_close(db);
}

static void note_renamed(void *ctx, int code, const char *line)
{
  (void)ctx;
  (void)code;
  if (strstr(line, "renamed while open")) renamed++;
}

static int load(void **state)
{
  sqlite3 *db = NULL;
  (void)state;
  sqlite3_config(SQLITE_CONFIG_LOG, note_renamed, NULL);
  setenv("QUORATE_AUTO", "1", 1);
  if (sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init) != SQLITE_OK)
    return -1;
  int rc = sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  return rc == SQLITE_OK ? 0 : -1;
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_clear)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(a_new_file_becomes_a_node),
      IN_DIR(a_lost_file_begins_anew),
      IN_DIR(what_was_there_is_left_alone),
      IN_DIR(who_opens_it_first_starts_it),
      IN_DIR(a_vfs_above_passes_through),
      IN_DIR(a_vfs_that_changes_names_is_refused),
      IN_DIR(a_vfs_that_knows_another_device_is_refused),
      IN_DIR(loading_after_a_shutdown_is_loading),
  };
  return cmocka_run_group_tests(tests, load, NULL);
}
