/*
** Transactions that are rejected, at random places of a full pipeline, each
** with all that were built on it: the node loses its own grant again and again
** (node_limits.void_one_in), in the middle of whatever many connections do.
**
** Readers of the extension, a stock process, and stock recovery of copies of
** the files look all the while for rows that nobody may see: of a transaction
** that is rejected later, too, since what is seen is noted. What is
** acknowledged must be there, for whoever begins to read after that.
**
**   REJECTED_SECONDS=n   of load for each page size (2)
**   SEED=n               of what the writers do
*/
#include "harness.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/wait.h>

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);

#define WRITERS 12
#define READERS 3
#define STOCK 2
#define ATTEMPTS 200000 /* of a writer */
#define ACCOUNTS 50
#define BALANCE 1000
#define BULK 40        /* rows of a large transaction */
#define KEPT 30        /* rows of a writer's log, at least */
#define LEAST 40       /* rejected transactions */
#define LOAD_MS 240000 /* longest wait for them */

enum fate { TRYING = 1, ACKED, REJECTED };

/* What all threads and processes know. */
struct shared {
  _Atomic bool go, stop;
  _Atomic unsigned complaints;
  char complaint[400]; /* the first */
  _Atomic uint32_t acked[WRITERS];
  _Atomic uint8_t fate[WRITERS][ATTEMPTS], seen[WRITERS][ATTEMPTS];
  _Atomic unsigned checks, stock_checks, copies, rejected, committed, upgrades;
  _Atomic unsigned glances, late;
};

struct test {
  struct shared *shared;
  char dir[PATH_BYTES], path[PATH_BYTES], copy[PATH_BYTES];
  struct node *node;
  uint64_t seed;
  sqlite3 *db; /* keeps the node */
};

struct writer {
  struct test *test;
  pthread_t thread;
  unsigned w;
  uint32_t attempt, last; /* number of this try; rows in the log */
  uint64_t random;
  sqlite3 *db;
  int rc;
};

static void complain(struct shared *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void complain(struct shared *s, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  if (atomic_fetch_add(&s->complaints, 1) == 0)
    vsnprintf(s->complaint, sizeof(s->complaint), format, args);
  va_end(args);
  atomic_store(&s->stop, true);
}

/* ---- what must hold ---------------------------------------------------- */

struct look {
  struct shared *shared;
  sqlite3 *db;
  const char *who;
  int rc;
  uint32_t acked[WRITERS]; /* before it began */
  uint32_t n[WRITERS];     /* rows that it tells of */
};

static bool note_seen(struct look *l, unsigned w, int64_t attempt)
{
  struct shared *s = l->shared;
  if (w >= WRITERS || attempt <= 0 || attempt >= ATTEMPTS) {
    complain(s, "%s: attempt %lld of writer %u", l->who, (long long)attempt, w);
    return false;
  }
  atomic_store(&s->seen[w][attempt], 1);
  if (atomic_load(&s->fate[w][attempt]) != REJECTED) return true;
  complain(s, "%s: sees attempt %lld of writer %u, which was rejected", l->who,
           (long long)attempt, w);
  return false;
}

static sqlite3_stmt *prepare(struct look *l, const char *sql)
{
  sqlite3_stmt *stmt = NULL;
  if (l->rc == SQLITE_OK)
    l->rc = sqlite3_prepare_v2(l->db, sql, -1, &stmt, NULL);
  return stmt;
}

static bool step(struct look *l, sqlite3_stmt *stmt)
{
  if (l->rc != SQLITE_OK) return false;
  int rc = sqlite3_step(stmt);
  if (rc != SQLITE_ROW && rc != SQLITE_DONE) l->rc = rc;
  return rc == SQLITE_ROW;
}

static int64_t number(struct look *l, const char *sql)
{
  sqlite3_stmt *stmt = prepare(l, sql);
  int64_t value = step(l, stmt) ? sqlite3_column_int64(stmt, 0) : -1;
  step(l, stmt);
  sqlite3_finalize(stmt);
  return value;
}

static void look_at_balance(struct look *l)
{
  int64_t sum = number(l, "SELECT sum(balance) FROM accounts");
  if (l->rc == SQLITE_OK && sum != ACCOUNTS * BALANCE)
    complain(l->shared, "%s: the sum of balances is %lld", l->who,
             (long long)sum);
}

static void look_at_counts(struct look *l)
{
  sqlite3_stmt *stmt = prepare(l, "SELECT w, n FROM writers");
  while (step(l, stmt)) {
    unsigned w = (unsigned)sqlite3_column_int(stmt, 0);
    uint32_t n = (uint32_t)sqlite3_column_int64(stmt, 1);
    if (w < WRITERS) l->n[w] = n;
    if (w >= WRITERS || n < l->acked[w])
      complain(l->shared, "%s: %u transactions of writer %u, it was told of %u",
               l->who, n, w, w < WRITERS ? l->acked[w] : 0);
  }
  sqlite3_finalize(stmt);
}

static void look_at_log(struct look *l)
{
  uint32_t next[WRITERS] = {0};
  sqlite3_stmt *stmt =
      prepare(l, "SELECT w, k, attempt FROM log ORDER BY w, k");
  while (step(l, stmt)) {
    unsigned w = (unsigned)sqlite3_column_int(stmt, 0);
    uint32_t k = (uint32_t)sqlite3_column_int64(stmt, 1);
    if (!note_seen(l, w, sqlite3_column_int64(stmt, 2))) break;
    if (next[w] && next[w] != k)
      complain(l->shared, "%s: writer %u has %u after %u", l->who, w, k,
               next[w] - 1);
    next[w] = k + 1;
  }
  sqlite3_finalize(stmt);
  for (unsigned w = 0; l->rc == SQLITE_OK && w < WRITERS; w++)
    if (l->n[w] && next[w] != l->n[w] + 1)
      complain(l->shared, "%s: writer %u has rows up to %u, but counts %u",
               l->who, w, next[w] - 1, l->n[w]);
}

static void look_at_bulk(struct look *l)
{
  int last = -1;
  sqlite3_stmt *stmt =
      prepare(l, "SELECT w, attempt, count(*), sum(length(data)) - sum(bytes)"
                 " FROM bulk GROUP BY w, attempt");
  while (step(l, stmt)) {
    int w = sqlite3_column_int(stmt, 0), n = sqlite3_column_int(stmt, 2);
    if (!note_seen(l, (unsigned)w, sqlite3_column_int64(stmt, 1))) break;
    if (w == last || n != BULK || sqlite3_column_int(stmt, 3) != 0)
      complain(l->shared, "%s: writer %d has a large one of %d rows", l->who, w,
               n);
    last = w;
  }
  sqlite3_finalize(stmt);
}

static void look_at_schema(struct look *l)
{
  int64_t differ = number(
      l, "SELECT (SELECT count(*) FROM sqlite_schema WHERE name GLOB 'made_*')"
         " - (SELECT count(*) FROM writers WHERE made IN"
         " (SELECT name FROM sqlite_schema)) + (SELECT count(*) FROM writers"
         " WHERE made IS NOT NULL AND made NOT IN"
         " (SELECT name FROM sqlite_schema))");
  if (l->rc == SQLITE_OK && differ != 0)
    complain(l->shared, "%s: %lld tables too many", l->who, (long long)differ);
  sqlite3_stmt *stmt =
      prepare(l, "SELECT w, substr(made, 9) FROM writers WHERE made NOT NULL");
  while (step(l, stmt)) {
    char sql[80];
    int w = sqlite3_column_int(stmt, 0);
    int64_t attempt = sqlite3_column_int64(stmt, 1);
    if (!note_seen(l, (unsigned)w, attempt)) break;
    /* Does SQLite know the table that is there? */
    snprintf(sql, sizeof(sql), "SELECT sum(x) FROM made_%02d_%lld", w,
             (long long)attempt);
    if (number(l, sql) != attempt && l->rc == SQLITE_OK)
      complain(l->shared, "%s: another table than made_%02d_%lld", l->who, w,
               (long long)attempt);
  }
  sqlite3_finalize(stmt);
}

static void look_at_pages(struct look *l)
{
  sqlite3_stmt *stmt = prepare(l, "PRAGMA integrity_check");
  while (step(l, stmt)) {
    const char *line = (const char *)sqlite3_column_text(stmt, 0);
    if (line && strcmp(line, "ok") != 0)
      complain(l->shared, "%s: %s", l->who, line);
  }
  sqlite3_finalize(stmt);
}

static void begin_look(struct look *l, struct shared *shared, sqlite3 *db,
                       const char *who)
{
  *l = (struct look){.shared = shared, .db = db, .who = who};
  for (unsigned w = 0; w < WRITERS; w++)
    l->acked[w] = atomic_load(&shared->acked[w]);
}

/* One transaction that looks at everything; false: not now. */
static bool look(struct look *l, bool pages)
{
  struct shared *s = l->shared;
  l->rc = sqlite3_exec(l->db, "BEGIN", NULL, NULL, NULL);
  look_at_balance(l);
  look_at_counts(l);
  look_at_log(l);
  look_at_bulk(l);
  look_at_schema(l);
  if (pages) look_at_pages(l);
  look_at_balance(l);
  int rc = l->rc, code = sqlite3_extended_errcode(l->db);
  if (rc != SQLITE_OK && (rc & 0xff) != SQLITE_BUSY)
    complain(s, "%s: reading: %d, %d: %s", l->who, rc, code,
             sqlite3_errmsg(l->db));
  if (!sqlite3_get_autocommit(l->db))
    sqlite3_exec(l->db, "COMMIT", NULL, NULL, NULL);
  if (rc == SQLITE_OK) atomic_fetch_add(&s->checks, 1);
  return rc == SQLITE_OK;
}

/* ---- stock processes --------------------------------------------------- */

static void stock_main(struct test *t, unsigned number_of, pid_t parent)
{
  struct shared *s = t->shared;
  uint64_t random = t->seed + 1000 + number_of;
  sqlite3 *db = NULL;
  struct look l;
  struct timespec pause = {0, 2000000};
  while (!atomic_load(&s->stop) && getppid() == parent) {
    if (!atomic_load(&s->go)) {
      nanosleep(&pause, NULL);
      continue;
    }
    if (db == NULL) {
      int rc = sqlite3_open_v2(t->path, &db, SQLITE_OPEN_READWRITE, NULL);
      if (rc != SQLITE_OK) complain(s, "stock process: open: %d", rc);
      sqlite3_busy_timeout(db, 10000);
    }
    begin_look(&l, s, db, "stock process");
    uint64_t dice = random_next(&random);
    if (look(&l, dice % 8 == 0)) atomic_fetch_add(&s->stock_checks, 1);
    if (dice % 32 < 2) {
      sqlite3_close(db);
      db = NULL;
    }
    /* While it reads, the WAL cannot begin anew. */
    pause.tv_nsec = (long)(dice >> 32) % 20000000;
    nanosleep(&pause, NULL);
  }
  sqlite3_close(db);
  _exit(0);
}

/* ---- copies ------------------------------------------------------------ */

static bool copy_descriptor(int from, const char *name)
{
  static const size_t size = 1u << 16;
  char *buf = malloc(size);
  int to = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  bool ok = buf && to >= 0;
  ssize_t n = 1;
  for (off_t at = 0; ok && n > 0; at += n) {
    n = pread(from, buf, size, at);
    ok = n >= 0 && write(to, buf, (size_t)n) == n;
  }
  free(buf);
  if (to >= 0) close(to);
  return ok;
}

static void drop_copy(struct test *t)
{
  unlink(t->copy);
  unlink(path_of(t->copy, "-wal").s);
  unlink(path_of(t->copy, "-shm").s);
}

/* What a program without the extension makes of the files as they are now. The
   database first: pages that a checkpoint copies meanwhile are in -wal, which
   does not begin anew while the image is open. */
static void look_at_copy(struct test *t)
{
  struct wal *wal = t->node->wal;
  struct shared *s = t->shared;
  struct image image;
  struct look l;
  sqlite3 *db = NULL;
  begin_look(&l, s, NULL, "a copy");
  assert_int_equal(image_pin(wal, "a test", &image), 0);
  bool ok = copy_descriptor(wal->db, t->copy) &&
            copy_descriptor(wal->file, path_of(t->copy, "-wal").s);
  image_close(&image);
  if (!ok) complain(s, "copying: %s", strerror(errno));
  int rc = sqlite3_open_v2(t->copy, &db, SQLITE_OPEN_READWRITE, "unix");
  if (rc != SQLITE_OK) complain(s, "a copy: open: %d", rc);
  l.db = db;
  if (ok && rc == SQLITE_OK && look(&l, true)) atomic_fetch_add(&s->copies, 1);
  sqlite3_close(db);
  drop_copy(t);
}

static void *copier_main(void *arg)
{
  struct test *t = arg;
  struct timespec pause = {0, 10000000};
  while (!atomic_load(&t->shared->stop)) {
    look_at_copy(t);
    nanosleep(&pause, NULL);
  }
  return NULL;
}

/* ---- readers ----------------------------------------------------------- */

static sqlite3 *open_here(struct test *t)
{
  sqlite3 *db = NULL;
  int rc = sqlite3_open(t->path, &db);
  if (rc != SQLITE_OK || vfs_connection(db, "main") == NULL) {
    complain(t->shared, "open: %d: %s", rc, sqlite3_errmsg(db));
    sqlite3_close(db);
    return NULL;
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_busy_timeout(db, 20000);
  /* So small that pages are spilled, and read again. */
  sqlite3_exec(db, "PRAGMA cache_size=8", NULL, NULL, NULL);
  return db;
}

static void *reader_main(void *arg)
{
  struct writer *r = arg;
  static const char *const levels[] = {
      "PRAGMA quorate_consistency=linearizable",
      "PRAGMA quorate_consistency=lease", "PRAGMA quorate_consistency=local"};
  struct look l;
  sqlite3 *db = open_here(r->test);
  if (db == NULL) return NULL;
  sqlite3_exec(db, levels[r->w % 3], NULL, NULL, NULL);
  while (!atomic_load(&r->test->shared->stop)) {
    begin_look(&l, r->test->shared, db, "a reader");
    look(&l, random_next(&r->random) % 16 == 0);
  }
  sqlite3_close(db);
  return NULL;
}

/* ---- writers ----------------------------------------------------------- */

static uint64_t below(struct writer *w, uint64_t n)
{
  return random_next(&w->random) % n;
}

/* A statement, if all before it went well. */
static void run(struct writer *w, const char *format, ...)
{
  va_list args;
  if (w->rc != SQLITE_OK) return;
  va_start(args, format);
  char *sql = sqlite3_vmprintf(format, args);
  va_end(args);
  w->rc = sql ? sqlite3_exec(w->db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
  sqlite3_free(sql);
}

static int64_t ask(struct writer *w, const char *format, ...)
{
  struct look l = {.db = w->db, .rc = w->rc};
  va_list args;
  va_start(args, format);
  char *sql = sqlite3_vmprintf(format, args);
  va_end(args);
  int64_t value = number(&l, sql);
  if (l.rc != SQLITE_OK) l.rc = sqlite3_extended_errcode(w->db);
  sqlite3_free(sql);
  w->rc = l.rc;
  return value;
}

/* The row that tells of this transaction. */
static void add_row(struct writer *w)
{
  run(w,
      "INSERT INTO log SELECT w, n + 1, %u, randomblob(%u) FROM writers"
      " WHERE w = %u",
      w->attempt, (unsigned)below(w, 60), w->w);
}

static void transfer(struct writer *w)
{
  unsigned from = (unsigned)below(w, ACCOUNTS);
  unsigned to = (unsigned)below(w, ACCOUNTS), n = (unsigned)below(w, 90);
  run(w, "UPDATE accounts SET balance = balance - %u WHERE id = %u", n, from);
  run(w, "UPDATE accounts SET balance = balance + %u WHERE id = %u", n, to);
}

/* Rows that a transaction takes back. */
static void spoil(struct writer *w)
{
  run(w, "UPDATE accounts SET balance = balance + 7");
  run(w,
      "INSERT INTO bulk SELECT %u, 1000 + value, %u, randomblob(200), 1 FROM"
      " (WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value + 1"
      " FROM s LIMIT %u) SELECT value FROM s)",
      w->w, w->attempt, 10 + (unsigned)below(w, 100));
}

static void do_one(struct writer *w)
{
  add_row(w);
}

static void do_several(struct writer *w)
{
  run(w, "BEGIN IMMEDIATE");
  int64_t n = ask(w, "SELECT n FROM writers WHERE w = %u", w->w);
  if (w->rc == SQLITE_OK && n != w->last)
    complain(w->test->shared, "writer %u was told of %u, and finds %lld", w->w,
             w->last, (long long)n);
  for (uint64_t i = 1 + below(w, 4); i > 0; i--)
    transfer(w);
  add_row(w);
  run(w, "COMMIT");
}

static void upgrade(struct writer *w)
{
  run(w, "BEGIN");
  unsigned id = (unsigned)below(w, ACCOUNTS);
  int64_t n = ask(w, "SELECT balance FROM accounts WHERE id = %u", id);
  run(w, "UPDATE accounts SET balance = %lld WHERE id = %u", (long long)n - 1,
      id);
  run(w, "UPDATE accounts SET balance = balance + 1 WHERE id = %u",
      (id + 1) % ACCOUNTS);
  add_row(w);
  run(w, "COMMIT");
  if (w->rc == SQLITE_OK) atomic_fetch_add(&w->test->shared->upgrades, 1);
}

static bool is_late(int rc)
{
  return rc == SQLITE_BUSY || rc == SQLITE_BUSY_SNAPSHOT;
}

/* Somebody else writes, or has written, and SQLite asks no busy handler. Who
   tries again has its turn before long. */
static void do_upgrade(struct writer *w)
{
  upgrade(w);
  for (int i = 0; i < 20 && is_late(w->rc); i++) {
    w->rc = SQLITE_OK;
    run(w, "ROLLBACK");
    upgrade(w);
  }
  if (!is_late(w->rc)) return;
  atomic_fetch_add(&w->test->shared->late, 1);
  w->rc = SQLITE_ABORT;
}

static void do_savepoints(struct writer *w)
{
  run(w, "BEGIN IMMEDIATE");
  if (below(w, 2)) transfer(w);
  run(w, "SAVEPOINT a");
  spoil(w);
  if (below(w, 2)) {
    run(w, "SAVEPOINT b");
    transfer(w);
    run(w, "RELEASE b");
  }
  run(w, "ROLLBACK TO a");
  transfer(w);
  run(w, "RELEASE a");
  add_row(w);
  run(w, "COMMIT");
}

static void do_large(struct writer *w)
{
  run(w, "BEGIN IMMEDIATE");
  run(w, "DELETE FROM bulk WHERE w = %u", w->w);
  for (unsigned i = 0; i < BULK; i++) {
    unsigned n = 300 + (unsigned)below(w, 3000);
    run(w, "INSERT INTO bulk VALUES(%u, %u, %u, randomblob(%u), %u)", w->w, i,
        w->attempt, n, n);
  }
  add_row(w);
  run(w,
      "DELETE FROM log WHERE w = %u AND k < (SELECT n - %d FROM writers"
      " WHERE w = %u)",
      w->w, KEPT, w->w);
  run(w, "COMMIT");
}

static void do_nothing(struct writer *w)
{
  run(w, "BEGIN IMMEDIATE");
  spoil(w);
  add_row(w);
  run(w, "ROLLBACK");
  if (w->rc == SQLITE_OK) w->rc = SQLITE_ABORT; /* not to be seen */
}

/* Reads what others have in flight, and changes nothing: all the same it may
   not end well before that is confirmed. */
static void do_glance(struct writer *w)
{
  struct look l = {.shared = w->test->shared, .db = w->db, .who = "a glance"};
  int64_t newest[WRITERS] = {0};
  run(w, "BEGIN IMMEDIATE");
  l.rc = w->rc;
  sqlite3_stmt *stmt =
      prepare(&l, "SELECT w, max(attempt) FROM log GROUP BY w");
  while (step(&l, stmt)) {
    unsigned i = (unsigned)sqlite3_column_int(stmt, 0);
    if (i < WRITERS) newest[i] = sqlite3_column_int64(stmt, 1);
  }
  sqlite3_finalize(stmt);
  w->rc = l.rc;
  if (below(w, 2))
    run(w, "COMMIT");
  else /* nothing, either */
    run(w, "UPDATE accounts SET balance = 0 WHERE id < 0; COMMIT");
  if (w->rc != SQLITE_OK) return;
  for (unsigned i = 0; i < WRITERS; i++)
    if (newest[i]) note_seen(&l, i, newest[i]);
  atomic_fetch_add(&w->test->shared->glances, 1);
  w->rc = SQLITE_ABORT; /* there is no row of it */
}

static void do_schema(struct writer *w)
{
  char old[40] = "";
  sqlite3_stmt *stmt = NULL;
  run(w, "BEGIN IMMEDIATE");
  char *sql = sqlite3_mprintf("SELECT made FROM writers WHERE w = %u", w->w);
  if (w->rc == SQLITE_OK)
    w->rc = sqlite3_prepare_v2(w->db, sql, -1, &stmt, NULL);
  sqlite3_free(sql);
  if (stmt && sqlite3_step(stmt) == SQLITE_ROW && sqlite3_column_text(stmt, 0))
    snprintf(old, sizeof(old), "%s",
             (const char *)sqlite3_column_text(stmt, 0));
  int rc = sqlite3_finalize(stmt);
  if (w->rc == SQLITE_OK) w->rc = rc;
  if (old[0]) run(w, "DROP TABLE %s", old);
  run(w,
      "CREATE TABLE made_%02u_%u(x, y); CREATE INDEX on_%u ON made_%02u_%u(y)",
      w->w, w->attempt, w->w, w->w, w->attempt);
  run(w, "INSERT INTO made_%02u_%u VALUES(%u, randomblob(500))", w->w,
      w->attempt, w->attempt);
  run(w, "UPDATE writers SET made = 'made_%02u_%u' WHERE w = %u", w->w,
      w->attempt, w->w);
  add_row(w);
  run(w, "COMMIT");
}

static void (*pick(struct writer *w))(struct writer *)
{
  uint64_t dice = below(w, 100);
  return dice < 35   ? do_one
         : dice < 60 ? do_several
         : dice < 70 ? do_upgrade
         : dice < 80 ? do_savepoints
         : dice < 87 ? do_large
         : dice < 92 ? do_nothing
         : dice < 96 ? do_glance
                     : do_schema;
}

/* The connection goes on as if nothing had been. */
static void after_rejection(struct writer *w)
{
  struct shared *s = w->test->shared;
  struct look l;
  w->rc = SQLITE_OK;
  int64_t n = ask(w, "SELECT n FROM writers WHERE w = %u", w->w);
  if (w->rc == SQLITE_OK && n != w->last)
    complain(s, "writer %u was told of %u, and has %lld", w->w, w->last,
             (long long)n);
  else if (w->rc != SQLITE_OK && (w->rc & 0xff) != SQLITE_BUSY)
    complain(s, "writer %u after a rejection: %d: %s", w->w, w->rc,
             sqlite3_errmsg(w->db));
  begin_look(&l, s, w->db, "a writer");
  if (below(w, 4) == 0) look(&l, below(w, 4) == 0);
}

static void settle(struct writer *w)
{
  struct shared *s = w->test->shared;
  int rc = w->rc;
  char text[200] = "";
  if (rc != SQLITE_OK)
    snprintf(text, sizeof(text), "%s", sqlite3_errmsg(w->db));
  if (!sqlite3_get_autocommit(w->db) &&
      sqlite3_exec(w->db, "ROLLBACK", NULL, NULL, NULL) != SQLITE_OK)
    complain(s, "writer %u: ROLLBACK after %d: %s", w->w, rc,
             sqlite3_errmsg(w->db));
  atomic_store(&s->fate[w->w][w->attempt], rc == SQLITE_OK ? ACKED : REJECTED);
  if (rc == SQLITE_OK) {
    w->last++;
    atomic_store(&s->acked[w->w], w->last);
    atomic_fetch_add(&s->committed, 1);
    return;
  }
  if (atomic_load(&s->seen[w->w][w->attempt]))
    complain(s, "attempt %u of writer %u was seen, and is rejected: %d",
             w->attempt, w->w, rc);
  if (rc == VFS_REJECTED) {
    atomic_fetch_add(&s->rejected, 1);
    after_rejection(w);
  } else if (rc != SQLITE_ABORT) {
    complain(s, "writer %u: %d: %s", w->w, rc, text);
  }
}

static void *writer_main(void *arg)
{
  struct writer *w = arg;
  struct shared *s = w->test->shared;
  w->db = open_here(w->test);
  while (w->db && !atomic_load(&s->stop) && w->attempt + 1 < ATTEMPTS) {
    w->attempt++;
    w->rc = SQLITE_OK;
    atomic_store(&s->fate[w->w][w->attempt], TRYING);
    pick(w)(w);
    settle(w);
    if (below(w, 200) == 0) {
      sqlite3_close(w->db);
      w->db = open_here(w->test);
    }
  }
  sqlite3_close(w->db);
  return NULL;
}

/* ---- the node ---------------------------------------------------------- */

static void execute(sqlite3 *db, const char *sql)
{
  char *error = NULL;
  int rc;
  do { /* what is done here is rejected, too */
    sqlite3_free(error);
    rc = sqlite3_exec(db, sql, NULL, NULL, &error);
    if (!sqlite3_get_autocommit(db))
      sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
  } while (rc == VFS_REJECTED);
  if (rc != SQLITE_OK) fail_msg("%s: %d: %s", sql, rc, error ? error : "-");
}

static void make_database(const char *path, unsigned page_size)
{
  char sql[300];
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  snprintf(sql, sizeof(sql),
           "PRAGMA page_size=%u; PRAGMA journal_mode=WAL;"
           "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER)",
           page_size);
  execute(db, sql);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void make_node(struct test *t, unsigned page_size)
{
  sqlite3 *db = NULL;
  make_database(t->path, page_size);
  assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
  char *sql = sqlite3_mprintf(
      "SELECT quorate_bootstrap(%Q, 'name', 'n1', 'listen', '127.0.0.1:%u',"
      " 'heartbeat_ms', '10', 'election_timeout_ms', '100')",
      t->path, free_port());
  execute(db, sql);
  sqlite3_free(sql);
  sqlite3_close(db);
  t->db = open_here(t);
  assert_non_null(t->db);
  t->node = vfs_connection(t->db, "main")->node;
}

static void fill_database(struct test *t)
{
  char sql[200];
  execute(t->db,
          "BEGIN IMMEDIATE;"
          "CREATE TABLE writers(w INTEGER PRIMARY KEY, n INTEGER, made TEXT);"
          "CREATE TABLE log(w, k, attempt, pad, PRIMARY KEY(w, k))"
          " WITHOUT ROWID;"
          "CREATE TABLE bulk(w, i, attempt, data, bytes, PRIMARY KEY(w, i))"
          " WITHOUT ROWID;"
          "CREATE TRIGGER counts AFTER INSERT ON log BEGIN"
          " UPDATE writers SET n = new.k WHERE w = new.w; END;"
          "COMMIT");
  for (unsigned i = 0; i < ACCOUNTS; i++) {
    snprintf(sql, sizeof(sql), "INSERT INTO accounts VALUES(%u, %d)", i,
             BALANCE);
    execute(t->db, sql);
  }
  for (unsigned w = 0; w < WRITERS; w++) {
    snprintf(sql, sizeof(sql), "INSERT INTO writers VALUES(%u, 0, NULL)", w);
    execute(t->db, sql);
  }
}

static void set_limits(unsigned page_size)
{
  sqlite3 *db = NULL;
  /* Small, so that all of it happens often. */
  node_limits = (struct node_limits){.segment_bytes = 256u << 10,
                                     .log_least = 512u << 10,
                                     .part_bytes = (32u << 10) + 2 * page_size,
                                     .checkpoint_frames = 200,
                                     .restart_frames = 200,
                                     .quiet_frames = 50,
                                     .quiet_ms = 20,
                                     .stall_ms = 30000,
                                     .fate_ms = 120000,
                                     .follow_ms = 60000,
                                     .void_one_in = 24};
  /* That it wants to stay loaded counts as a failure there. */
  sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init);
  sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  sqlite3_cancel_auto_extension((void (*)(void))sqlite3_quorate_init);
  assert_non_null(sqlite3_vfs_find("quorate"));
}

/* ---- the test ---------------------------------------------------------- */

static struct shared *share(void)
{
  struct shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(s != MAP_FAILED);
  return s;
}

static void load(struct test *t)
{
  struct shared *s = t->shared;
  static struct writer writers[WRITERS], readers[READERS];
  struct timespec pause = {0, 20000000};
  const char *seconds = getenv("REJECTED_SECONDS");
  uint64_t begun = clock_monotonic_ms();
  uint64_t ms = seconds ? strtoull(seconds, NULL, 10) * 1000 : 2000;
  pthread_t copier;
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer){.test = t, .w = i, .random = t->seed + i};
    pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]);
  }
  for (unsigned i = 0; i < READERS; i++) {
    readers[i] = (struct writer){.test = t, .w = i, .random = t->seed + 99 + i};
    pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]);
  }
  pthread_create(&copier, NULL, copier_main, t);
  while (!atomic_load(&s->stop)) {
    uint64_t now = clock_monotonic_ms() - begun;
    bool enough = atomic_load(&s->rejected) >= LEAST &&
                  atomic_load(&s->stock_checks) >= 5 &&
                  atomic_load(&s->copies) >= 5;
    if ((enough && now >= ms) || now >= ms + LOAD_MS)
      atomic_store(&s->stop, true);
    nanosleep(&pause, NULL);
  }
  for (unsigned i = 0; i < WRITERS; i++)
    pthread_join(writers[i].thread, NULL);
  for (unsigned i = 0; i < READERS; i++)
    pthread_join(readers[i].thread, NULL);
  pthread_join(copier, NULL);
}

/* Exactly what was acknowledged. */
static void look_at_end(struct test *t, sqlite3 *db, const char *who)
{
  struct look l;
  begin_look(&l, t->shared, db, who);
  bool ok = look(&l, true);
  if (atomic_load(&t->shared->complaints)) fail_msg("%s", t->shared->complaint);
  assert_true(ok);
  for (unsigned w = 0; w < WRITERS; w++)
    assert_int_equal(l.n[w], l.acked[w]);
}

static void end_node(struct test *t)
{
  struct text answer;
  sqlite3 *db = NULL;
  look_at_end(t, t->db, "the end");
  look_at_copy(t);
  sqlite3_close(t->db);
  assert_int_equal(registry_stop(t->path, true, &answer), SQLITE_OK);
  assert_int_equal(sqlite3_open_v2(t->path, &db, SQLITE_OPEN_READWRITE, "unix"),
                   SQLITE_OK);
  look_at_end(t, db, "the file alone");
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void attack(void **state, unsigned page_size)
{
  struct test t = {.shared = share()};
  struct shared *s = t.shared;
  pid_t stock[STOCK], parent = getpid();
  const char *seed = getenv("SEED");
  t.seed = seed ? strtoull(seed, NULL, 10) : (uint64_t)clock_wall_ms();
  snprintf(t.dir, sizeof(t.dir), "%s", (const char *)*state);
  snprintf(t.path, sizeof(t.path), "%s", path_of(t.dir, "app.db").s);
  snprintf(t.copy, sizeof(t.copy), "%s", path_of(t.dir, "copy").s);
  /* Before there is a node, of which it would inherit locks. */
  for (unsigned i = 0; i < STOCK; i++) {
    stock[i] = fork();
    assert_true(stock[i] >= 0);
    if (stock[i] == 0) stock_main(&t, i, parent);
  }
  set_limits(page_size);
  make_node(&t, page_size);
  fill_database(&t);
  atomic_store(&s->go, true);
  load(&t);
  for (unsigned i = 0; i < STOCK; i++) {
    int status;
    assert_int_equal(waitpid(stock[i], &status, 0), stock[i]);
    if (status) complain(s, "stock process: status %d", status);
  }
  print_message("page size %u, seed %llu: %u committed, %u rejected, %u"
                " upgrades, %u too late, %u glances; %u checks, of "
                "these %u stock and %u of copies\n",
                page_size, (unsigned long long)t.seed, s->committed,
                s->rejected, s->upgrades, s->late, s->glances, s->checks,
                s->stock_checks, s->copies);
  if (atomic_load(&s->complaints)) fail_msg("%s", s->complaint);
  end_node(&t);
  assert_true(s->rejected >= LEAST && s->stock_checks >= 5 && s->copies >= 5);
  munmap(s, sizeof(*s));
}

static void test_pages_of_512(void **state)
{
  attack(state, 512);
}

static void test_pages_of_4096(void **state)
{
  attack(state, 4096);
}

static void test_pages_of_65536(void **state)
{
  attack(state, 65536);
}

static const char *const names[] = {"test_pages_of_512", "test_pages_of_4096",
                                    "test_pages_of_65536"};

/* Each in a process of its own: what it forks must not have had a node, nor
   threads: ThreadSanitizer keeps what it knew of these and their locks. */
static int run_all(const char *program)
{
  int failed = 0;
  for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
    int status = 1;
    pid_t pid = fork();
    if (pid == 0) {
      execl("/proc/self/exe", program, names[i], (char *)NULL);
      _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) failed++;
  }
  return failed;
}

int main(int argc, char **argv)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_pages_of_512, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_pages_of_4096, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_pages_of_65536, dir_make, dir_clear),
  };
  if (argc < 2) return run_all(argv[0]);
  cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
