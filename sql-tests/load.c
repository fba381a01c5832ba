/*
** load.c: clients that read and write without pause, as threads of a test's
** process, and note what they are told and when.
**
** A loadable extension, for processes that have loaded quorate:
**
**     load_start(file, log, first, threads, kinds, pause_us)
**     load_stop()           asks them to end, and waits for it
**     extended_codes(on)    error codes of this connection tell all they can
**
** Each thread has a connection and numbers of its own, which begin at
** first + 1000000 * i: one an operation. `kinds` are the operations that it
** draws from, by letters:
**
**     c    counts: row `number` of table ledger, and counter.n one higher
**     l    the same, with a long blob in the transaction
**     m    moves money from one account to another
**     i    reads what must always hold, in one read transaction
**     r w x    reads a register; writes its number there; exchanges: reads what
**              is there and writes its number, in one transaction
**
** One operation in two is one statement where it can be, others are BEGIN
** IMMEDIATE to COMMIT; some BEGIN, read and write after that. Reads are at level
** linearizable.
**
** The log has two lines an operation, each written at once, so that it is there
** when the process is killed. Times are of the machine's monotonic clock, ns:
** those of all processes compare.
**
**     i NUMBER TIME KIND REGISTER     about to begin
**     o NUMBER TIME a VALUE           done; VALUE: what was read
**     o NUMBER TIME f 0               refused or rolled back: nothing was done
**     o NUMBER TIME u 0               the node does not know
**     o NUMBER TIME e text            anything else: an error of ours, or theirs
*/
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3ext.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT1

#define THREADS 64
#define STEP 1000000 /* numbers of a thread */
#define ACCOUNTS 20
#define MONEY 1000 /* of each account, at first */
#define REGISTERS 4
#define LONG_BLOB 3000000

/* What is prepared once. */
enum {
  BEGIN,
  IMMEDIATE,
  COMMIT,
  ROLLBACK,
  COUNT,
  LONG,
  COUNTED,
  MOVE,
  TAKE,
  GIVE,
  SUM,
  GAP,
  READ,
  WRITE,
  STATEMENTS
};

static const char *const texts[STATEMENTS] = {
    [BEGIN] = "BEGIN",
    [IMMEDIATE] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    /* A trigger sets counter.n. */
    [COUNT] = "INSERT INTO ledger(id, n) VALUES(?1, (SELECT n + 1 FROM "
              "counter))",
    [LONG] = "UPDATE pad SET v = randomblob(?1)",
    [COUNTED] = "SELECT n FROM counter",
    [MOVE] = "UPDATE account SET v = v + CASE id WHEN ?1 THEN -?3 ELSE ?3 END "
             "WHERE id IN (?1, ?2)",
    [TAKE] = "UPDATE account SET v = v - ?2 WHERE id = ?1",
    [GIVE] = "UPDATE account SET v = v + ?2 WHERE id = ?1",
    [SUM] = "SELECT sum(v) FROM account",
    [GAP] = "SELECT (SELECT n FROM counter) - (SELECT ifnull(max(n), 0) FROM "
            "ledger)",
    [READ] = "SELECT v FROM register WHERE k = ?1",
    [WRITE] = "UPDATE register SET v = ?2 WHERE k = ?1",
};

static struct client {
  pthread_t thread;
  sqlite3_int64 next;
  unsigned seed;
  sqlite3 *db;
  sqlite3_stmt *statements[STATEMENTS];
} clients[THREADS];
static int n_clients, log_fd = -1;
static char path[1024], kinds[32];
static unsigned pause_us;
static atomic_bool stopping;

/* ---- the log ----------------------------------------------------------- */

static long long now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void note(char what, sqlite3_int64 number, char kind, const char *rest)
{
  char line[400];
  int n = snprintf(line, sizeof(line) - 1, "%c %lld %lld %c %s", what,
                   (long long)number, now(), kind, rest);
  if (n >= (int)sizeof(line) - 1) n = sizeof(line) - 2;
  line[n++] = '\n';
  if (write(log_fd, line, (size_t)n) != n) _exit(3);
}

/* ---- statements -------------------------------------------------------- */

static unsigned draw(struct client *c, unsigned n)
{
  return (unsigned)rand_r(&c->seed) % n;
}

/* Runs one with up to three numbers; *value: the first column of its row. */
static int run(struct client *c, int which, sqlite3_int64 x, sqlite3_int64 y,
               sqlite3_int64 z, sqlite3_int64 *value)
{
  sqlite3_stmt *s = c->statements[which];
  sqlite3_int64 numbers[3] = {x, y, z};
  int n = sqlite3_bind_parameter_count(s);
  for (int i = 0; i < n; i++)
    sqlite3_bind_int64(s, i + 1, numbers[i]);
  if (sqlite3_step(s) == SQLITE_ROW && value)
    *value = sqlite3_column_int64(s, 0);
  return sqlite3_reset(s);
}

static int simple(struct client *c, int which)
{
  return run(c, which, 0, 0, 0, NULL);
}

static int count(struct client *c, sqlite3_int64 number, bool is_long)
{
  sqlite3_int64 before;
  int how = is_long ? 1 : (int)(number % 3), rc = SQLITE_OK;
  if (how == 1) rc = simple(c, IMMEDIATE);
  if (how == 2) rc = simple(c, BEGIN);
  if (rc == SQLITE_OK && how == 2) rc = run(c, COUNTED, 0, 0, 0, &before);
  if (rc == SQLITE_OK && is_long) rc = run(c, LONG, LONG_BLOB, 0, 0, NULL);
  if (rc == SQLITE_OK) rc = run(c, COUNT, number, 0, 0, NULL);
  if (rc == SQLITE_OK && how != 0) rc = simple(c, COMMIT);
  return rc;
}

static int move(struct client *c, sqlite3_int64 number)
{
  sqlite3_int64 from = draw(c, ACCOUNTS), amount = 1 + draw(c, 50);
  sqlite3_int64 to = (from + 1 + draw(c, ACCOUNTS - 1)) % ACCOUNTS;
  if (number % 2) return run(c, MOVE, from, to, amount, NULL);
  int rc = simple(c, IMMEDIATE);
  if (rc == SQLITE_OK) rc = run(c, TAKE, from, amount, 0, NULL);
  if (rc == SQLITE_OK) rc = run(c, GIVE, to, amount, 0, NULL);
  return rc == SQLITE_OK ? simple(c, COMMIT) : rc;
}

/* The sum is the same in every state, and twice in one transaction. */
static int look(struct client *c, char wrong[200])
{
  sqlite3_int64 sum = 0, gap = 0, again = 0;
  int rc = simple(c, BEGIN);
  if (rc == SQLITE_OK) rc = run(c, SUM, 0, 0, 0, &sum);
  if (rc == SQLITE_OK) rc = run(c, GAP, 0, 0, 0, &gap);
  if (rc == SQLITE_OK) rc = run(c, SUM, 0, 0, 0, &again);
  if (rc == SQLITE_OK) rc = simple(c, COMMIT);
  if (rc == SQLITE_OK && (sum != ACCOUNTS * MONEY || again != sum || gap != 0))
    snprintf(wrong, 200,
             "sum %lld, then %lld; counter and ledger differ by "
             "%lld",
             (long long)sum, (long long)again, (long long)gap);
  return rc;
}

static int exchange(struct client *c, sqlite3_int64 k, sqlite3_int64 number,
                    sqlite3_int64 *old)
{
  int rc = simple(c, number % 4 ? IMMEDIATE : BEGIN);
  if (rc == SQLITE_OK) rc = run(c, READ, k, 0, 0, old);
  if (rc == SQLITE_OK) rc = run(c, WRITE, k, number, 0, NULL);
  return rc == SQLITE_OK ? simple(c, COMMIT) : rc;
}

static void operate(struct client *c, sqlite3_int64 number)
{
  char kind = kinds[draw(c, (unsigned)strlen(kinds))], text[300];
  char wrong[200] = "";
  sqlite3_int64 k = draw(c, REGISTERS), value = 0;
  int rc = SQLITE_MISUSE;
  snprintf(text, sizeof(text), "%lld", (long long)k);
  note('i', number, kind, text);
  switch (kind) {
  case 'c': rc = count(c, number, false); break;
  case 'l': rc = count(c, number, true); break;
  case 'm': rc = move(c, number); break;
  case 'i': rc = look(c, wrong); break;
  case 'r': rc = run(c, READ, k, 0, 0, &value); break;
  case 'w': rc = run(c, WRITE, k, number, 0, NULL); break;
  case 'x': rc = exchange(c, k, number, &value); break;
  default: break;
  }
  snprintf(text, sizeof(text), "%d %s", rc, sqlite3_errmsg(c->db));
  if (wrong[0]) {
    note('o', number, 'e', wrong);
  } else if (rc == SQLITE_OK) {
    snprintf(text, sizeof(text), "%lld", (long long)value);
    note('o', number, 'a', text);
  } else if ((rc & 0xff) == SQLITE_BUSY || rc == SQLITE_IOERR_COMMIT_ATOMIC) {
    note('o', number, 'f', "0");
  } else if (rc == SQLITE_IOERR_ROLLBACK_ATOMIC) {
    note('o', number, 'u', "0");
  } else {
    note('o', number, 'e', text);
  }
  if (!sqlite3_get_autocommit(c->db)) simple(c, ROLLBACK);
  usleep(rc == SQLITE_OK ? pause_us : 5000);
}

/* ---- threads ----------------------------------------------------------- */

/* A node that was just started may have to wait for a leader. */
static int prepare(struct client *c, int which)
{
  int rc = SQLITE_BUSY;
  while ((rc & 0xff) == SQLITE_BUSY && !atomic_load(&stopping))
    rc = sqlite3_prepare_v2(c->db, texts[which], -1, &c->statements[which],
                            NULL);
  return rc;
}

static void *client_main(void *arg)
{
  struct client *c = arg;
  char text[300];
  int rc = sqlite3_open(path, &c->db);
  if (rc == SQLITE_OK) {
    sqlite3_extended_result_codes(c->db, 1);
    sqlite3_busy_timeout(c->db, 2000);
    rc = sqlite3_exec(c->db, "PRAGMA quorate_write_wait = 500", NULL, NULL,
                      NULL);
  }
  for (int i = 0; rc == SQLITE_OK && i < STATEMENTS; i++)
    rc = prepare(c, i);
  while (rc == SQLITE_OK && !atomic_load(&stopping))
    operate(c, c->next++);
  if (rc != SQLITE_OK && !atomic_load(&stopping)) {
    snprintf(text, sizeof(text), "start: %d %s", rc, sqlite3_errmsg(c->db));
    note('o', c->next, 'e', text);
  }
  for (int i = 0; i < STATEMENTS; i++)
    sqlite3_finalize(c->statements[i]);
  memset(c->statements, 0, sizeof(c->statements));
  sqlite3_close(c->db);
  return NULL;
}

static bool arguments(sqlite3_value **values)
{
  const char *file = (const char *)sqlite3_value_text(values[0]);
  const char *letters = (const char *)sqlite3_value_text(values[4]);
  int threads = sqlite3_value_int(values[3]);
  if (n_clients || !file || strlen(file) >= sizeof(path) || !letters ||
      letters[0] == 0 || strlen(letters) >= sizeof(kinds) ||
      strspn(letters, "clmirwx") != strlen(letters) || threads < 1 ||
      threads > THREADS)
    return false;
  strcpy(path, file);
  strcpy(kinds, letters);
  pause_us = (unsigned)sqlite3_value_int(values[5]);
  log_fd = open((const char *)sqlite3_value_text(values[1]),
                O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  return log_fd >= 0;
}

static void start(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  if (!arguments(values)) {
    sqlite3_result_error(ctx, "load_start: bad arguments", -1);
    return;
  }
  int threads = sqlite3_value_int(values[3]);
  atomic_store(&stopping, false);
  for (; n_clients < threads; n_clients++) {
    struct client *c = &clients[n_clients];
    c->next = sqlite3_value_int64(values[2]) + (sqlite3_int64)n_clients * STEP;
    c->seed = (unsigned)(c->next / STEP) * 2654435761u;
    if (pthread_create(&c->thread, NULL, client_main, c) != 0) break;
  }
  if (n_clients != threads)
    sqlite3_result_error(ctx, "load_start: cannot start", -1);
}

static void stop(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)ctx;
  (void)n;
  (void)values;
  atomic_store(&stopping, true);
  while (n_clients > 0)
    pthread_join(clients[--n_clients].thread, NULL);
  if (log_fd >= 0) close(log_fd);
  log_fd = -1;
}

static void extended(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  sqlite3_extended_result_codes(sqlite3_context_db_handle(ctx),
                                sqlite3_value_int(values[0]));
}

int sqlite3_load_init(sqlite3 *db, char **error,
                      const sqlite3_api_routines *api);
int sqlite3_load_init(sqlite3 *db, char **error,
                      const sqlite3_api_routines *api)
{
  (void)error;
  SQLITE_EXTENSION_INIT2(api);
  int rc = sqlite3_create_function(db, "load_start", 6, SQLITE_UTF8, NULL,
                                   start, NULL, NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_create_function(db, "load_stop", 0, SQLITE_UTF8, NULL, stop,
                                 NULL, NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_create_function(db, "extended_codes", 1, SQLITE_UTF8, NULL,
                                 extended, NULL, NULL);
  /* Threads outlive the connection that began them. */
  return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}
