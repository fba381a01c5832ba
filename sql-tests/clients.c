/*
** clients.c: a program with forked workers, as servers have them, at a file that
** others use, too.
**
**     clients LIBRARY FILE LOG FIRST STOP WORKERS [late]
**
** It loads the extension, opens the file, and forks; each worker opens the file
** anew, and counts, moves money and looks, as those of load.c do, until the file
** STOP appears. A worker that dies has a successor. LIBRARY "-": a stock
** program, whose workers only look. "late": it forks before it does any of this,
** for a sanitizer whose allocator does not survive the fork() of a process with
** threads. Logs are as those of load.c: LOG.0, LOG.1 and
** so on, numbers FIRST, FIRST + 1000000 and so on. The line "p PID" tells a
** worker's process.
*/
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 8
#define STEP 1000000
#define ACCOUNTS 20
#define MONEY 1000

static const char *library, *file, *stop_file, *log_name;
static sqlite3_int64 next_of[WORKERS];
static int log_fd = -1;
static bool late;
static unsigned seed;

static bool stock(void)
{
  return strcmp(library, "-") == 0;
}

static unsigned draw(unsigned n)
{
  return (unsigned)rand_r(&seed) % n;
}

static void note(const char *format, char what, long long number, char kind,
                 const char *rest)
{
  char line[400];
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  int n = snprintf(line, sizeof line, format, what, number,
                   (long long)t.tv_sec * 1000000000 + t.tv_nsec, kind, rest);
  if (n >= (int)sizeof line) n = sizeof line - 1;
  if (write(log_fd, line, (size_t)n) != n) _exit(3);
}

/* ---- operations -------------------------------------------------------- */

static int exec_one(sqlite3 *db, const char *sql)
{
  return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static int run(sqlite3 *db, const char *format, long long x, long long y,
               long long z)
{
  char *sql = sqlite3_mprintf(format, x, y, z);
  int rc = exec_one(db, sql);
  sqlite3_free(sql);
  return rc;
}

static int count(sqlite3 *db, long long number)
{
  bool open = draw(2);
  int rc = open ? exec_one(db, "BEGIN IMMEDIATE") : SQLITE_OK;
  if (rc == SQLITE_OK)
    rc = run(db,
             "INSERT INTO ledger(id, n) VALUES(%lld, "
             "(SELECT n + 1 FROM counter))",
             number, 0, 0);
  return rc == SQLITE_OK && open ? exec_one(db, "COMMIT") : rc;
}

static int move(sqlite3 *db)
{
  unsigned from = draw(ACCOUNTS), to = (from + 1 + draw(ACCOUNTS - 1));
  unsigned amount = 1 + draw(50);
  int rc = exec_one(db, "BEGIN IMMEDIATE");
  if (rc == SQLITE_OK)
    rc = run(db, "UPDATE account SET v = v - %lld WHERE id = %lld", amount,
             from, 0);
  if (rc == SQLITE_OK)
    rc = run(db, "UPDATE account SET v = v + %lld WHERE id = %lld", amount,
             to % ACCOUNTS, 0);
  return rc == SQLITE_OK ? exec_one(db, "COMMIT") : rc;
}

static int take_number(void *ctx, int n, char **values, char **names)
{
  (void)n;
  (void)names;
  *(long long *)ctx = values[0] ? atoll(values[0]) : 0;
  return 0;
}

static int look(sqlite3 *db, char wrong[200])
{
  static const char *const asks[] = {
      "SELECT sum(v) FROM account", "SELECT n FROM counter",
      "SELECT count(*) FROM ledger", "SELECT ifnull(max(n), 0) FROM ledger",
      "SELECT sum(v) FROM account"};
  long long is[5] = {0};
  int rc = exec_one(db, "BEGIN");
  for (int i = 0; rc == SQLITE_OK && i < 5; i++) {
    rc = sqlite3_exec(db, asks[i], take_number, &is[i], NULL);
    if (i == 2) usleep(draw(3000)); /* others write meanwhile */
  }
  if (rc == SQLITE_OK) rc = exec_one(db, "COMMIT");
  if (rc == SQLITE_OK && (is[0] != ACCOUNTS * MONEY || is[4] != is[0] ||
                          is[1] != is[2] || is[1] != is[3]))
    snprintf(wrong, 200, "torn: money %lld, %lld; %lld, %lld, %lld rows", is[0],
             is[4], is[1], is[2], is[3]);
  return rc;
}

static void operate(sqlite3 *db, long long number)
{
  char text[300], wrong[200] = "";
  char kind = stock() ? 'i' : "cccmmi"[draw(6)];
  note("%c %lld %lld %c %s\n", 'i', number, kind, "0");
  int rc = kind == 'c'   ? count(db, number)
           : kind == 'm' ? move(db)
                         : look(db, wrong);
  snprintf(text, sizeof text, "%d %s", rc, sqlite3_errmsg(db));
  int primary = rc & 0xff;
  if (wrong[0])
    note("%c %lld %lld %c %s\n", 'o', number, 'e', wrong);
  else if (rc == SQLITE_OK)
    note("%c %lld %lld %c %s\n", 'o', number, 'a', "0");
  else if (primary == SQLITE_BUSY || rc == SQLITE_IOERR_COMMIT_ATOMIC)
    note("%c %lld %lld %c %s\n", 'o', number, 'f', "0");
  else if (rc == SQLITE_IOERR_ROLLBACK_ATOMIC)
    note("%c %lld %lld %c %s\n", 'o', number, 'u', "0");
  else
    note("%c %lld %lld %c %s\n", 'o', number, 'e', text);
  if (!sqlite3_get_autocommit(db)) exec_one(db, "ROLLBACK");
  usleep(rc == SQLITE_OK ? 2000 + draw(8000) : 5000);
}

/* ---- processes --------------------------------------------------------- */

static bool is_over(void)
{
  return access(stop_file, F_OK) == 0;
}

static int open_file(sqlite3 **db)
{
  int rc = sqlite3_open_v2(
      file, db, stock() ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE, NULL);
  if (rc == SQLITE_OK) {
    sqlite3_extended_result_codes(*db, 1);
    sqlite3_busy_timeout(*db, 3000);
  }
  return rc;
}

static int load(sqlite3 **db)
{
  if (sqlite3_open(":memory:", db) != SQLITE_OK) return -1;
  sqlite3_enable_load_extension(*db, 1);
  int rc =
      stock() ? SQLITE_OK : sqlite3_load_extension(*db, library, NULL, NULL);
  sqlite3_close(*db);
  *db = NULL;
  return rc == SQLITE_OK ? open_file(db) : rc;
}

static void work(int i)
{
  char name[1024], text[300];
  sqlite3 *db = NULL;
  seed = (unsigned)getpid() * 2654435761u;
  snprintf(name, sizeof name, "%s.%d", log_name, i);
  log_fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  snprintf(text, sizeof text, "p %d\n", (int)getpid());
  if (write(log_fd, text, strlen(text)) < 0) _exit(3);
  int rc = late ? load(&db) : open_file(&db);
  if (rc != SQLITE_OK && !is_over()) {
    snprintf(text, sizeof text, "open: %d %s", rc, sqlite3_errmsg(db));
    note("%c %lld %lld %c %s\n", 'o', next_of[i], 'e', text);
  }
  while (rc == SQLITE_OK && !is_over())
    operate(db, next_of[i]++);
  sqlite3_close(db);
}

static pid_t start(int i)
{
  pid_t parent = getpid(), pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) work(i);
  exit(0); /* as programs do: what the library does at exit is done, too */
}

int main(int argc, char **argv)
{
  pid_t workers[WORKERS];
  sqlite3 *db = NULL;
  int n = argc >= 7 ? atoi(argv[6]) : 0;
  if (n < 1 || n > WORKERS) return 2;
  library = argv[1];
  file = argv[2];
  log_name = argv[3];
  stop_file = argv[5];
  late = argc == 8;
  if (!late && load(&db) != SQLITE_OK) {
    fprintf(stderr, "clients: %s\n", sqlite3_errmsg(db));
    return 1;
  }
  for (int i = 0; i < n; i++) {
    next_of[i] = atoll(argv[4]) + (long long)i * STEP;
    workers[i] = start(i);
  }
  for (int left = n, status; left > 0;) {
    pid_t pid = wait(&status);
    if (pid < 0 && errno == EINTR) continue;
    for (int i = 0; i < n; i++) {
      if (workers[i] != pid) continue;
      if (is_over()) {
        left--;
        continue;
      }
      next_of[i] += STEP / 100; /* whatever it has used of its numbers */
      workers[i] = start(i);
    }
  }
  sqlite3_close(db);
  return 0;
}
