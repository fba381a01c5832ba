/*
** writers.c: clients that write without pause, as threads of a test's process.
**
** Only the process that hosts a node can write there, so they live and die
** with it. A loadable extension, for processes that have loaded quorate:
**
**     writers_start(file, log, first, threads)
**     writers_stop()           asks them to end, and waits for it
**
** Each thread has a connection of its own and numbers of its own, which begin
** at first + 1000000 * i. A transaction inserts one to three of them as rows;
** some take one statement, some BEGIN to COMMIT, and a few are so long that
** they travel in parts. Every other thread asks nobody before it writes (level
** local): what it hands over is what a leader that is cut off has under way.
**
** The log has a line before and a line after each transaction. Every one is
** written at once, so that it is there when the process is killed:
**
**     t N M        about to insert the rows N to M, in one transaction
**     a N M        acknowledged: it is committed
**     b N M        busy: nothing was written
**     r N M        rolled back: nothing was written
**     u N M        the node does not know
**     x N M code text     anything else
*/
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3ext.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT1

#define THREADS 16
#define STEP 1000000 /* numbers of a thread */
#define LONG_ROW 200000

static struct writer {
  pthread_t thread;
  sqlite3_int64 next;
} writers[THREADS];
static int n_writers, log_fd = -1;
static char path[1024];
static atomic_bool stopping;

static void note(char what, sqlite3_int64 from, sqlite3_int64 to,
                 const char *text)
{
  char line[400];
  int n = snprintf(line, sizeof(line) - 1, "%c %lld %lld%s%s", what,
                   (long long)from, (long long)to, text[0] ? " " : "", text);
  if (n >= (int)sizeof(line) - 1) n = sizeof(line) - 2;
  line[n++] = '\n';
  if (write(log_fd, line, (size_t)n) != n) _exit(3);
}

/* How often a number is repeated in its row. */
static int length_of(sqlite3_int64 n)
{
  return n % 199 == 0 ? LONG_ROW : 1 + (int)(n % 97);
}

static int insert(sqlite3_stmt *statement, sqlite3_int64 n)
{
  sqlite3_bind_int64(statement, 1, n);
  sqlite3_bind_int(statement, 2, length_of(n));
  sqlite3_step(statement);
  return sqlite3_reset(statement);
}

/* One transaction. Its extended result code. */
static int commit(sqlite3 *db, sqlite3_stmt *statement, sqlite3_int64 from,
                  sqlite3_int64 to)
{
  int rc = SQLITE_OK;
  bool one = from == to && from % 2 == 0;
  if (!one) rc = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
  for (sqlite3_int64 n = from; rc == SQLITE_OK && n <= to; n++)
    rc = insert(statement, n);
  if (!one && rc == SQLITE_OK)
    rc = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
  return rc;
}

static void work(sqlite3 *db, sqlite3_stmt *statement, struct writer *w)
{
  char text[300];
  while (!atomic_load(&stopping)) {
    sqlite3_int64 from = w->next, to = from + (from % 7 == 0 ? 2 : 0);
    w->next = to + 1;
    note('t', from, to, "");
    int rc = commit(db, statement, from, to);
    snprintf(text, sizeof(text), "%d %s", rc, sqlite3_errmsg(db));
    if (rc == SQLITE_OK)
      note('a', from, to, "");
    else if ((rc & 0xff) == SQLITE_BUSY)
      note('b', from, to, "");
    else if (rc == SQLITE_IOERR_COMMIT_ATOMIC)
      note('r', from, to, "");
    else if (rc == SQLITE_IOERR_ROLLBACK_ATOMIC)
      note('u', from, to, "");
    else
      note('x', from, to, text);
    if (!sqlite3_get_autocommit(db))
      sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    usleep(rc == SQLITE_OK ? 500 : 5000);
  }
}

static void *writer_main(void *arg)
{
  struct writer *w = arg;
  sqlite3 *db = NULL;
  sqlite3_stmt *statement = NULL;
  char text[300];
  int rc = sqlite3_open(path, &db);
  if (rc == SQLITE_OK) {
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, 200);
    rc = sqlite3_exec(db, "PRAGMA quorate_write_wait = 200", NULL, NULL, NULL);
  }
  if (rc == SQLITE_OK && (w - writers) % 2)
    rc = sqlite3_exec(db, "PRAGMA quorate_consistency = local", NULL, NULL,
                      NULL);
  /* A node that was just started may have to wait for a leader. */
  while (rc == SQLITE_OK && !statement && !atomic_load(&stopping)) {
    rc = sqlite3_prepare_v2(
        db,
        "INSERT INTO t(n, k, seq, v) VALUES(?1, ?2, (SELECT s + 1 FROM tally),"
        " replace(hex(zeroblob(?2)), '00', ?1 || '.'))",
        -1, &statement, NULL);
    if ((rc & 0xff) == SQLITE_BUSY) rc = SQLITE_OK;
  }
  if (rc == SQLITE_OK) {
    if (statement) work(db, statement, w);
  } else {
    snprintf(text, sizeof(text), "%d %s", rc, sqlite3_errmsg(db));
    note('x', w->next, w->next, text);
  }
  sqlite3_finalize(statement);
  sqlite3_close(db);
  return NULL;
}

static void start(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  const char *file = (const char *)sqlite3_value_text(values[0]);
  const char *log = (const char *)sqlite3_value_text(values[1]);
  int threads = sqlite3_value_int(values[3]);
  if (n_writers || !file || strlen(file) >= sizeof(path) || !log ||
      threads < 1 || threads > THREADS) {
    sqlite3_result_error(ctx, "writers_start: bad arguments", -1);
    return;
  }
  strcpy(path, file);
  log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  atomic_store(&stopping, false);
  for (; log_fd >= 0 && n_writers < threads; n_writers++) {
    struct writer *w = &writers[n_writers];
    w->next = sqlite3_value_int64(values[2]) + (sqlite3_int64)n_writers * STEP;
    if (pthread_create(&w->thread, NULL, writer_main, w) != 0) break;
  }
  if (n_writers != threads)
    sqlite3_result_error(ctx, "writers_start: cannot start", -1);
}

static void stop(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)ctx;
  (void)n;
  (void)values;
  atomic_store(&stopping, true);
  while (n_writers > 0)
    pthread_join(writers[--n_writers].thread, NULL);
  if (log_fd >= 0) close(log_fd);
  log_fd = -1;
}

int sqlite3_writers_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);
int sqlite3_writers_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api)
{
  (void)error;
  SQLITE_EXTENSION_INIT2(api);
  int rc = sqlite3_create_function(db, "writers_start", 4, SQLITE_UTF8, NULL,
                                   start, NULL, NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_create_function(db, "writers_stop", 0, SQLITE_UTF8, NULL, stop,
                                 NULL, NULL);
  /* Threads outlive the connection that began them. */
  return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}
