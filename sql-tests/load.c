/*
** load.c: clients that read and write without pause, as threads of a test's
** process, and note what they are told and when.
**
** A loadable extension, for processes that have loaded quorate:
**
**     load_start(file, log, first, threads, kinds, pause_us)
**     load_stop()           asks them to end, and waits for it
**     extended_codes(on)    error codes of this connection tell all they can
**     load_clock()          the machine's monotonic clock, ns
**     load_signal(pid, signal)    the same, of the moment before the signal
**
** Each thread has a connection and numbers of its own, which begin at
** first + 1000000 * i: one an operation. `kinds` are the operations that it
** draws from, by letters:
**
**     c    counts: row `number` of table ledger, and counter.n one higher
**     l    the same, with a long blob in the transaction
**     s    row `number` of table bag, and nothing else
**     m    moves money from one account to another
**     f    a parent with some children, and away with an old one and its own
**     d    changes the schema: a new table with an index, a column more, away
**          with an old table
**     i    reads what must always hold, in one read transaction, at any level
**     o    reads the counter at level local
**     r v w x k    reads a register, at level linearizable or lease; writes its
**              number there; exchanges: reads what is there and writes its
**              number, in one transaction; compares with what it read last, and
**              writes its number if that is still there
**     p q      puts its number at the end of a list; reads a list, whole
**
** One operation in two is one statement where it can be, others are BEGIN
** IMMEDIATE to COMMIT; some BEGIN, read and write after that. Reads are at level
** linearizable where nothing else is said. A list is put to for LIST_SECONDS, so
** that it does not get too long.
**
** The log has two lines an operation, each written at once, so that it is there
** when the process is killed. Times are of the machine's monotonic clock, ns:
** those of all processes compare.
**
**     i NUMBER TIME KIND OBJECT VALUE     about to begin. OBJECT: the register
**                                     or the list; of i and o the level: 0
**                                     linearizable, 1 lease, 2 local. VALUE: what
**                                     k expects
**     o NUMBER TIME a VALUE           done. VALUE: what was read of a register;
**                                     of k 1 if it was still there; of a list
**                                     all of it, with commas; of c, l, i and o
**                                     the counter
**     o NUMBER TIME f 0               refused or rolled back: nothing was done
**     o NUMBER TIME u 0               the node does not know
**     o NUMBER TIME e text            anything else: an error of ours, or theirs
*/
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
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
#define LIST_SECONDS 4
#define LISTS 2 /* at a time */
#define PARENTS 100
#define SHAPES 6
#define TEXT 60000
#define KINDS "clsmfdiorvwxkpq"

enum { LINEARIZABLE, LEASE, LOCAL };

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
  SWAP,
  PUT,
  LIST,
  BAG,
  PARENT,
  CHILDREN,
  AWAY,
  FAMILIES,
  SHAPED,
  STATEMENTS
};

static const char *const texts[STATEMENTS] = {
    [BEGIN] = "BEGIN",
    [IMMEDIATE] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    /* A trigger sets counter.n. */
    [COUNT] = "INSERT INTO ledger(id, n) VALUES(?1, (SELECT n + 1 FROM "
              "counter)) RETURNING n",
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
    [SWAP] = "UPDATE register SET v = ?2 WHERE k = ?1 AND v = ?3",
    [PUT] = "INSERT INTO list VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = "
            "v || ',' || ?2",
    [LIST] = "SELECT v FROM list WHERE k = ?1",
    [BAG] = "INSERT INTO bag(n) VALUES(?1)",
    /* Triggers count children in total.n, and delete those of a parent. */
    [PARENT] = "INSERT INTO parent(id, children) VALUES(?1, ?2)",
    [CHILDREN] = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM "
                 "c WHERE i < ?2) INSERT INTO child(parent) SELECT ?1 FROM c",
    [AWAY] = "DELETE FROM parent WHERE id = (SELECT min(id) FROM parent) AND "
             "(SELECT count(*) FROM parent) > ?1",
    [FAMILIES] = "SELECT abs((SELECT n FROM total) - (SELECT count(*) FROM "
                 "child)) + (SELECT count(*) FROM parent WHERE children <> "
                 "(SELECT count(*) FROM child WHERE parent = parent.id)) + "
                 "(SELECT count(*) FROM child WHERE parent NOT IN (SELECT id "
                 "FROM parent))",
    [SHAPED] =
        "SELECT (SELECT count(*) FROM (SELECT 'shape_' || n FROM shape "
        "EXCEPT SELECT name FROM sqlite_schema)) + (SELECT count(*) FROM "
        "(SELECT name FROM sqlite_schema WHERE name GLOB 'shape_*' "
        "EXCEPT SELECT 'shape_' || n FROM shape))",
};

static struct client {
  pthread_t thread;
  sqlite3_int64 next;
  unsigned seed;
  sqlite3 *db;
  sqlite3_stmt *statements[STATEMENTS];
  int level;
  sqlite3_int64 known[REGISTERS]; /* what it read there last */
  char text[TEXT];                /* of a list */
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
  char line[TEXT + 100];
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
  while (sqlite3_step(s) == SQLITE_ROW) {
    const char *text = (const char *)sqlite3_column_text(s, 0);
    if (which == LIST) snprintf(c->text, sizeof(c->text), "%s", text);
    if (value) *value = sqlite3_column_int64(s, 0);
  }
  return sqlite3_reset(s);
}

/* The level of the reads that follow. */
static int set_level(struct client *c, int level)
{
  static const char *const pragmas[] = {
      "PRAGMA quorate_consistency = linearizable",
      "PRAGMA quorate_consistency = lease",
      "PRAGMA quorate_consistency = local"};
  int rc = SQLITE_OK;
  if (level != c->level)
    rc = sqlite3_exec(c->db, pragmas[level], NULL, NULL, NULL);
  if (rc == SQLITE_OK) c->level = level;
  return rc;
}

static int simple(struct client *c, int which)
{
  return run(c, which, 0, 0, 0, NULL);
}

static int count(struct client *c, sqlite3_int64 number, bool is_long,
                 sqlite3_int64 *n)
{
  sqlite3_int64 before;
  int how = is_long ? 1 : (int)(number % 3), rc = SQLITE_OK;
  if (how == 1) rc = simple(c, IMMEDIATE);
  if (how == 2) rc = simple(c, BEGIN);
  if (rc == SQLITE_OK && how == 2) rc = run(c, COUNTED, 0, 0, 0, &before);
  if (rc == SQLITE_OK && is_long) rc = run(c, LONG, LONG_BLOB, 0, 0, NULL);
  if (rc == SQLITE_OK) rc = run(c, COUNT, number, 0, 0, n);
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
static int look(struct client *c, sqlite3_int64 *n)
{
  sqlite3_int64 sum = 0, gap = 0, families = 0, shapes = 0, again = 0;
  int rc = simple(c, BEGIN);
  if (rc == SQLITE_OK) rc = run(c, SUM, 0, 0, 0, &sum);
  if (rc == SQLITE_OK) rc = run(c, COUNTED, 0, 0, 0, n);
  if (rc == SQLITE_OK) rc = run(c, GAP, 0, 0, 0, &gap);
  if (rc == SQLITE_OK) rc = run(c, FAMILIES, 0, 0, 0, &families);
  if (rc == SQLITE_OK) rc = run(c, SHAPED, 0, 0, 0, &shapes);
  if (rc == SQLITE_OK) rc = run(c, SUM, 0, 0, 0, &again);
  if (rc == SQLITE_OK) rc = simple(c, COMMIT);
  if (rc == SQLITE_OK && (sum != ACCOUNTS * MONEY || again != sum || gap != 0 ||
                          families != 0 || shapes != 0))
    snprintf(c->text, sizeof(c->text),
             "sum %lld, then %lld; counter and ledger differ by %lld; %lld "
             "families and %lld tables are not as they should be",
             (long long)sum, (long long)again, (long long)gap,
             (long long)families, (long long)shapes);
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

static int swap(struct client *c, sqlite3_int64 k, sqlite3_int64 number,
                sqlite3_int64 *done)
{
  int rc = number % 2 ? SQLITE_OK : simple(c, IMMEDIATE);
  if (rc == SQLITE_OK) rc = run(c, SWAP, k, number, c->known[k], NULL);
  if (rc == SQLITE_OK) *done = sqlite3_changes(c->db);
  return rc == SQLITE_OK && number % 2 == 0 ? simple(c, COMMIT) : rc;
}

static int family(struct client *c, sqlite3_int64 number)
{
  sqlite3_int64 children = draw(c, 6) + 1;
  int rc = simple(c, IMMEDIATE);
  if (rc == SQLITE_OK) rc = run(c, PARENT, number, children, 0, NULL);
  if (rc == SQLITE_OK) rc = run(c, CHILDREN, number, children, 0, NULL);
  if (rc == SQLITE_OK) rc = run(c, AWAY, PARENTS, 0, 0, NULL);
  return rc == SQLITE_OK ? simple(c, COMMIT) : rc;
}

/* The table that is to go; 0: there are not too many. */
static int oldest_shape(struct client *c, sqlite3_int64 *n)
{
  sqlite3_stmt *s = NULL;
  *n = 0;
  int rc = sqlite3_prepare_v2(c->db, "SELECT min(n), count(*) FROM shape", -1,
                              &s, NULL);
  if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW &&
      sqlite3_column_int(s, 1) > SHAPES)
    *n = sqlite3_column_int64(s, 0);
  int end = sqlite3_finalize(s);
  return rc == SQLITE_OK ? end : rc;
}

static int reshape(struct client *c, sqlite3_int64 number)
{
  char text[500];
  sqlite3_int64 old;
  int rc = simple(c, IMMEDIATE);
  if (rc == SQLITE_OK) rc = oldest_shape(c, &old);
  if (rc != SQLITE_OK) return rc;
  int n = snprintf(text, sizeof(text),
                   "CREATE TABLE shape_%lld(a INTEGER PRIMARY KEY, b TEXT);"
                   "CREATE INDEX shapes_%lld ON shape_%lld(b);"
                   "INSERT INTO shape VALUES(%lld);"
                   "INSERT INTO shape_%lld(b) VALUES('one'), ('two');",
                   (long long)number, (long long)number, (long long)number,
                   (long long)number, (long long)number);
  if (number % 3 == 0)
    n += snprintf(text + n, sizeof(text) - (size_t)n,
                  "ALTER TABLE shape_%lld ADD COLUMN c;", (long long)number);
  if (old)
    snprintf(text + n, sizeof(text) - (size_t)n,
             "DROP TABLE shape_%lld; DELETE FROM shape WHERE n = %lld;",
             (long long)old, (long long)old);
  rc = sqlite3_exec(c->db, text, NULL, NULL, NULL);
  return rc == SQLITE_OK ? simple(c, COMMIT) : rc;
}

/* A list that is put to now; or, to read, one of before. */
static sqlite3_int64 pick_list(struct client *c, char kind)
{
  sqlite3_int64 period = now() / 1000000000 / LIST_SECONDS;
  if (kind == 'q') period -= draw(c, 3) / 2;
  return period * LISTS + draw(c, LISTS);
}

static int level_of(struct client *c, char kind)
{
  if (kind == 'i') return (int)draw(c, 3);
  if (kind == 'o') return LOCAL;
  return kind == 'v' ? LEASE : LINEARIZABLE;
}

/* *value: what it was told, if that is a number; else c->text. */
static int carry_out(struct client *c, char kind, sqlite3_int64 number,
                     sqlite3_int64 k, sqlite3_int64 *value)
{
  switch (kind) {
  case 'c': return count(c, number, false, value);
  case 'l': return count(c, number, true, value);
  case 's': return run(c, BAG, number, 0, 0, NULL);
  case 'm': return move(c, number);
  case 'f': return family(c, number);
  case 'd': return reshape(c, number);
  case 'i': return look(c, value);
  case 'o': return run(c, COUNTED, 0, 0, 0, value);
  case 'r':
  case 'v': return run(c, READ, k, 0, 0, value);
  case 'w': return run(c, WRITE, k, number, 0, NULL);
  case 'x': return exchange(c, k, number, value);
  case 'k': return swap(c, k, number, value);
  case 'p': return run(c, PUT, k, number, 0, NULL);
  case 'q': return run(c, LIST, k, 0, 0, NULL);
  default: return SQLITE_MISUSE;
  }
}

/* What is true of an operation that ended with rc: a, f, u or e. */
static char fate(int rc)
{
  if (rc == SQLITE_OK) return 'a';
  if (rc == SQLITE_IOERR_ROLLBACK_ATOMIC) return 'u';
  if ((rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_FULL ||
      rc == SQLITE_IOERR_COMMIT_ATOMIC)
    return 'f';
  return 'e';
}

static void operate(struct client *c, sqlite3_int64 number)
{
  char kind = kinds[draw(c, (unsigned)strlen(kinds))], text[300];
  sqlite3_int64 k = draw(c, REGISTERS), value = 0;
  int level = level_of(c, kind);
  if (strchr("io", kind)) k = level;
  if (strchr("pq", kind)) k = pick_list(c, kind);
  snprintf(text, sizeof(text), "%lld %lld", (long long)k,
           kind == 'k' ? (long long)c->known[k] : 0LL);
  c->text[0] = 0;
  note('i', number, kind, text);
  int rc = set_level(c, level);
  if (rc == SQLITE_OK) rc = carry_out(c, kind, number, k, &value);
  snprintf(text, sizeof(text), "%d %s", rc, sqlite3_errmsg(c->db));
  char how = fate(rc);
  if (how == 'a' && kind == 'i' && c->text[0]) {
    note('o', number, 'e', c->text);
  } else if (how == 'a' && kind == 'q') {
    note('o', number, 'a', c->text[0] ? c->text : "0");
  } else if (how == 'a') {
    snprintf(text, sizeof(text), "%lld", (long long)value);
    note('o', number, 'a', text);
    if (strchr("rvx", kind)) c->known[k] = value;
  } else {
    note('o', number, how, how == 'e' ? text : "0");
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
    c->level = LINEARIZABLE;
    rc = sqlite3_exec(c->db,
                      "PRAGMA quorate_write_wait = 500; "
                      "PRAGMA foreign_keys = ON",
                      NULL, NULL, NULL);
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
      strspn(letters, KINDS) != strlen(letters) || threads < 1 ||
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

static void tell_time(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  sqlite3_result_int64(ctx, now());
  if (n == 2 &&
      kill(sqlite3_value_int(values[0]), sqlite3_value_int(values[1])) != 0)
    sqlite3_result_error(ctx, "load_signal: no such process", -1);
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
  if (rc == SQLITE_OK)
    rc = sqlite3_create_function(db, "load_clock", 0, SQLITE_UTF8, NULL,
                                 tell_time, NULL, NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_create_function(db, "load_signal", 2, SQLITE_UTF8, NULL,
                                 tell_time, NULL, NULL);
  /* Threads outlive the connection that began them. */
  return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}
