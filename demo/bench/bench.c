/*
** bench.c: what quorate costs, as ratios to stock SQLite.
**
**     bench QUORATE.SO [DIRECTORY]
**
** Every figure is taken from processes of the same program (worker.c): one on
** a plain file in WAL mode with synchronous = FULL, one that is a cluster of
** one node, and three that are a cluster of three on the loopback interface,
** all with their files in one directory. Stock and quorate take turns in
** short rounds, so that whatever else the machine does meets both; what is
** printed is the median of the rounds' ratios.
**
**     commit       latency of an INSERT by one writer
**     read         read transactions of one row a second, at level local
**     apply        transactions a second on a follower that was stopped for a
**                  while and has to catch up
**     idle         CPU time of a node with nothing to do, of all its threads
**     memory       resident set above that of the worker on the plain file
*/
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 15
#define COMMITS 50 /* in a round */
#define READ_ROUNDS 9
#define READ_MS 250        /* of a round */
#define APPLY_COMMITS 2000 /* that the follower has to catch up with */
#define IDLE_SECONDS 6
#define ANSWER_SECONDS 60 /* longest time for any answer */

/* ---- processes --------------------------------------------------------- */

enum { STOCK, ONE, A, B, C, WORKERS };
static const char *const names[WORKERS] = {"stock", "one", "a", "b", "c"};

struct process {
  pid_t pid;
  FILE *to, *from;
};

static struct process workers[WORKERS];
static char directory[4096];
static char answer[WORKER_LINE];

/* Ends the workers; removes the files. Safe to call twice. */
static void clean_up(void)
{
  for (int i = 0; i < WORKERS; i++) {
    if (workers[i].pid <= 0) continue;
    kill(workers[i].pid, SIGKILL);
    waitpid(workers[i].pid, NULL, 0);
    workers[i].pid = 0;
  }
  if (!directory[0]) return;
  pid_t pid = fork();
  if (pid == 0) {
    execlp("rm", "rm", "-rf", directory, (char *)NULL);
    _exit(127);
  }
  if (pid > 0) waitpid(pid, NULL, 0);
  directory[0] = 0;
}

static void die(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  fputs("bench: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  clean_up();
  exit(1);
}

static void on_signal(int signal)
{
  (void)signal;
  clean_up(); /* fork, exec, kill, wait: all of them allowed here */
  _exit(130);
}

static void on_alarm(int signal)
{
  (void)signal;
  static const char text[] = "bench: a worker did not answer in time\n";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) errno = 0;
  clean_up();
  _exit(1);
}

static void start(int which)
{
  int in[2], out[2];
  if (pipe(in) || pipe(out)) die("pipe: %s", strerror(errno));
  pid_t pid = fork();
  if (pid < 0) die("fork: %s", strerror(errno));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    for (int fd = 3; fd < 64; fd++)
      close(fd);
    execl("/proc/self/exe", "bench", "--worker", (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  workers[which].pid = pid;
  workers[which].to = fdopen(in[1], "w");
  workers[which].from = fdopen(out[0], "r");
}

/* One command, its answer in `answer`; ends the program on an error. */
static const char *tell(int which, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static const char *tell(int which, const char *format, ...)
{
  static char line[WORKER_LINE];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  fprintf(workers[which].to, "%s\n", line);
  fflush(workers[which].to);
  alarm(ANSWER_SECONDS);
  if (!fgets(answer, sizeof answer, workers[which].from))
    die("worker %s ended at: %s", names[which], line);
  alarm(0);
  answer[strcspn(answer, "\n")] = 0;
  if (strncmp(answer, "ok ", 3) != 0)
    die("worker %s: %s: %s", names[which], line, answer);
  return answer + 3;
}

static void sleep_ms(unsigned ms)
{
  struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
  nanosleep(&time, NULL);
}

/* Polls until the worker's answer to a query is this. */
static void wait_for(int which, const char *query, const char *wanted)
{
  for (int i = 0; i < ANSWER_SECONDS * 50; i++) {
    if (strcmp(tell(which, "sql %s", query), wanted) == 0) return;
    sleep_ms(20);
  }
  die("worker %s: not in time: %s = %s", names[which], query, wanted);
}

/* ---- figures ----------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The p-th quantile, p from 0 to 1; sorts the values. */
static double quantile(double *values, int n, double p)
{
  qsort(values, (size_t)n, sizeof *values, by_value);
  int i = (int)(p * (n - 1) + 0.5);
  return values[i];
}

static double now_s(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* CPU seconds that a process has used, with all its threads. */
static double cpu_s(int which)
{
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(workers[which].pid, &clock) ||
      clock_gettime(clock, &used))
    die("CPU time of worker %s cannot be read", names[which]);
  return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

static double resident_mib(int which)
{
  char path[64], line[256];
  double kb = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)workers[which].pid);
  FILE *f = fopen(path, "r");
  if (!f) die("%s: %s", path, strerror(errno));
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "VmRSS: %lf kB", &kb) == 1) break;
  fclose(f);
  return kb / 1024;
}

/* ---- the table --------------------------------------------------------- */

static int met, missed;

static void head(void)
{
  printf("%-36s %9s %9s %7s  %s\n", "", "stock", "quorate", "ratio", "goal");
}

/* goal: 0 for a figure without one; `most`: it is an upper bound. */
static void row(const char *what, double stock, double quorate, double value,
                double goal, bool most)
{
  printf("%-36s ", what);
  if (stock >= 0)
    printf("%9.*f ", stock < 100 ? 3 : 0, stock);
  else
    printf("%9s ", "");
  printf("%9.*f ", quorate < 100 ? 3 : 0, quorate);
  if (stock >= 0)
    printf("%7.2f  ", value);
  else
    printf("%7s  ", "");
  if (goal == 0) {
    printf("-\n");
    return;
  }
  bool ok = most ? value <= goal : value >= goal;
  ok ? met++ : missed++;
  printf("%s %.*f: %s\n", most ? "<=" : ">=", goal < 10 ? 2 : 0, goal,
         ok ? "met" : "MISSED");
  fflush(stdout);
}

/* ---- set up ------------------------------------------------------------ */

static int free_port(void)
{
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) ||
      getsockname(fd, (struct sockaddr *)&address, &size))
    die("no free port: %s", strerror(errno));
  close(fd);
  return ntohs(address.sin_port);
}

static void set_up(const char *library)
{
  for (int i = 0; i < WORKERS; i++)
    start(i);
  for (int i = ONE; i < WORKERS; i++)
    tell(i, "load %s", library);
  for (int i = ONE; i <= A; i++)
    tell(i,
         "sql SELECT quorate_bootstrap('%s/%s.db', 'name', '%s', 'listen', "
         "'127.0.0.1:%d')",
         directory, names[i], names[i], free_port());
  for (int i = STOCK; i <= A; i++) {
    tell(i, "open %s/%s.db", directory, names[i]);
    tell(i, "sql CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)");
    tell(i, "sql WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
            "FROM c WHERE i < 1000) INSERT INTO t SELECT i, randomblob(100) "
            "FROM c");
  }
  for (int i = B; i <= C; i++) {
    char token[1024];
    snprintf(token, sizeof token, "%s",
             tell(A, "sql SELECT quorate_invite('%s')", names[i]));
    tell(i,
         "sql SELECT quorate_join('%s/%s.db', '%s', 'listen', '127.0.0.1:%d')",
         directory, names[i], token, free_port());
    tell(i, "open %s/%s.db", directory, names[i]);
  }
  wait_for(A, "SELECT count(*) FROM quorate_members WHERE role = 'voter'", "3");
  for (int i = STOCK; i < WORKERS; i++)
    tell(i, "prepare");
}

/* ---- measurements ------------------------------------------------------ */

struct latencies {
  double ms[ROUNDS * COMMITS];
  double p50[ROUNDS]; /* of each round */
};

static void commit_round(int which, struct latencies *all, int round)
{
  char *next = (char *)(uintptr_t)tell(which, "commit %d", COMMITS);
  double *values = all->ms + round * COMMITS;
  for (int i = 0; i < COMMITS; i++)
    values[i] = strtod(next, &next) / 1e3;
  double sorted[COMMITS];
  memcpy(sorted, values, sizeof sorted);
  all->p50[round] = quantile(sorted, COMMITS, 0.5);
}

static void measure_commits(void)
{
  static struct latencies stock, one, three;
  double ratio[ROUNDS];
  for (int i = STOCK; i <= A; i++)
    tell(i, "commit %d", COMMITS); /* warm */
  for (int r = 0; r < ROUNDS; r++) {
    commit_round(STOCK, &stock, r);
    commit_round(ONE, &one, r);
    commit_round(A, &three, r);
  }
  const int n = ROUNDS * COMMITS;
  struct latencies *both[] = {&one, &three};
  static const char *const nodes[] = {"1 node", "3 nodes"};
  static const double goals[] = {1.3, 3};
  double stock_p99 = quantile(stock.ms, n, 0.99);
  for (int i = 0; i < 2; i++) {
    char what[64];
    for (int r = 0; r < ROUNDS; r++)
      ratio[r] = both[i]->p50[r] / stock.p50[r];
    double median = quantile(ratio, ROUNDS, 0.5);
    double p50 = quantile(both[i]->ms, n, 0.5);
    double p99 = quantile(both[i]->ms, n, 0.99);
    snprintf(what, sizeof what, "commit, %s, p50 (ms)", nodes[i]);
    row(what, quantile(stock.ms, n, 0.5), p50, median, goals[i], true);
    snprintf(what, sizeof what, "commit, %s, p99 (ms)", nodes[i]);
    row(what, stock_p99, p99, p99 / stock_p99, goals[i], true);
  }
}

/* Stock and a node read in turns. */
static void measure_reads(int which, const char *level, const char *what,
                          double goal)
{
  double stock[READ_ROUNDS], mine[READ_ROUNDS], ratio[READ_ROUNDS];
  tell(which, "sql PRAGMA quorate_consistency = %s", level);
  for (int r = -1; r < READ_ROUNDS; r++) {
    double a = atof(tell(STOCK, "read %d", READ_MS));
    double b = atof(tell(which, "read %d", READ_MS));
    if (r < 0) continue; /* warm */
    stock[r] = a;
    mine[r] = b;
    ratio[r] = b / a;
  }
  row(what, quantile(stock, READ_ROUNDS, 0.5), quantile(mine, READ_ROUNDS, 0.5),
      quantile(ratio, READ_ROUNDS, 0.5), goal, false);
  tell(which, "sql PRAGMA quorate_consistency = linearizable");
}

static long long index_of(int which)
{
  return atoll(tell(which, "sql SELECT quorate_index()"));
}

static void measure_apply(void)
{
  long long from = index_of(C);
  kill(workers[C].pid, SIGSTOP);
  tell(A, "commit %d", APPLY_COMMITS);
  long long to = index_of(A);
  kill(workers[C].pid, SIGCONT);
  double began = now_s();
  while (index_of(C) < to) {
    if (now_s() - began > ANSWER_SECONDS) die("the follower does not catch up");
    sleep_ms(1);
  }
  row("applied on a follower (1/s)", -1,
      (double)(to - from) / (now_s() - began), 0, 0, false);
}

static void measure_idle(void)
{
  static const int which[] = {ONE, A, B};
  static const char *const what[] = {"idle, 1 node (% of a core)",
                                     "idle, leader of 3 (% of a core)",
                                     "idle, follower of 3 (% of a core)"};
  double before[3];
  sleep_ms(1500); /* whatever the last measurement left to do */
  double began = now_s();
  for (int i = 0; i < 3; i++)
    before[i] = cpu_s(which[i]);
  sleep_ms(IDLE_SECONDS * 1000);
  for (int i = 0; i < 3; i++) {
    double used = (cpu_s(which[i]) - before[i]) / (now_s() - began) * 100;
    row(what[i], -1, used, used, 0.5, true);
  }
}

static void measure_memory(void)
{
  static const int which[] = {ONE, A, B};
  static const char *const what[] = {"memory, 1 node (MiB above stock)",
                                     "memory, leader of 3 (MiB)",
                                     "memory, follower of 3 (MiB)"};
  double stock = resident_mib(STOCK);
  for (int i = 0; i < 3; i++) {
    double more = resident_mib(which[i]) - stock;
    row(what[i], -1, more, more, 32, true);
  }
}

int main(int argc, char **argv)
{
  if (argc == 2 && strcmp(argv[1], "--worker") == 0) return worker_main();
  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: bench QUORATE.SO [DIRECTORY]\n");
    return 2;
  }
  char *library = realpath(argv[1], NULL);
  if (!library) die("%s: %s", argv[1], strerror(errno));
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);
  signal(SIGALRM, on_alarm);
  signal(SIGPIPE, SIG_IGN);

  /* Beside the library unless told otherwise: /tmp may be in memory, where a
     sync costs nothing and the ratios mean nothing. */
  char *slash = strrchr(library, '/');
  snprintf(directory, sizeof directory, "%.*s/bench.XXXXXX",
           argc == 3 ? (int)strlen(argv[2]) : (int)(slash - library),
           argc == 3 ? argv[2] : library);
  if (!mkdtemp(directory)) {
    int error = errno;
    directory[0] = 0;
    die("no temporary directory: %s", strerror(error));
  }

  double began = now_s();
  printf("quorate against stock SQLite, WAL, synchronous = FULL, in %s\n\n",
         directory);
  set_up(library);
  head();
  measure_commits();
  measure_reads(ONE, "local", "read, level local, 1 node (1/s)", 0.95);
  measure_reads(B, "local", "read, level local, follower (1/s)", 0.95);
  measure_reads(ONE, "linearizable", "read, linearizable, 1 node (1/s)", 0);
  measure_reads(A, "linearizable", "read, linearizable, leader (1/s)", 0);
  measure_reads(B, "linearizable", "read, linearizable, follower", 0);
  measure_apply();
  measure_idle();
  measure_memory();
  printf("\n%d goals met, %d missed, in %.0f s\n", met, missed,
         now_s() - began);
  clean_up();
  free(library);
  return 0;
}
