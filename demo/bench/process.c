/*
** process.c: the workers, seen from outside: starting them, telling them what
** to do, and leaving nothing of them behind, whichever way the program ends.
*/
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_SECONDS 120 /* longest time for any answer */
#define SETTLE_SECONDS 60
#define SYNCS 101

const char *const worker_names[WORKERS] = {
    "stock", "one", "a", "b", "c", "beside one", "beside a", "echo"};

struct process {
  pid_t pid;
  FILE *to, *from;
};

static struct process workers[WORKERS];
static pid_t child;
static char directory[4096];
static const char *extension;
static char answer[WORKER_LINE];

/* ---- the end ----------------------------------------------------------- */

void process_clean_up(void)
{
  /* The child has processes of its own to end first. */
  if (child > 0) {
    kill(child, SIGTERM);
    waitpid(child, NULL, 0);
    child = 0;
  }
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

void die(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  fflush(stdout);
  fputs("bench: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  process_clean_up();
  exit(1);
}

static void on_signal(int signal)
{
  (void)signal;
  process_clean_up(); /* fork, exec, kill, wait: all of them allowed here */
  _exit(130);
}

static void on_alarm(int signal)
{
  (void)signal;
  static const char text[] = "bench: no answer in time\n";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) errno = 0;
  process_clean_up();
  _exit(1);
}

/* ---- the workers ------------------------------------------------------- */

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

static void send_line(int which, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
static void send_line(int which, const char *format, va_list args)
{
  char line[WORKER_LINE];
  vsnprintf(line, sizeof line, format, args);
  fprintf(workers[which].to, "%s\n", line);
  fflush(workers[which].to);
}

void tell_begin(int which, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  send_line(which, format, args);
  va_end(args);
}

const char *tell_end(int which, bool *ok)
{
  alarm(ANSWER_SECONDS);
  if (!fgets(answer, sizeof answer, workers[which].from))
    die("worker %s has ended", worker_names[which]);
  alarm(0);
  answer[strcspn(answer, "\n")] = 0;
  *ok = strncmp(answer, "ok ", 3) == 0;
  return answer + (*ok ? 3 : strcspn(answer, " ") + 1);
}

const char *tell(int which, const char *format, ...)
{
  bool ok;
  va_list args;
  va_start(args, format);
  send_line(which, format, args);
  va_end(args);
  const char *text = tell_end(which, &ok);
  if (!ok) die("worker %s: %s: %s", worker_names[which], format, text);
  return text;
}

void wait_for(int which, const char *query, const char *wanted)
{
  for (int i = 0; i < SETTLE_SECONDS * 50; i++) {
    if (strcmp(tell(which, "sql %s", query), wanted) == 0) return;
    sleep_ms(20);
  }
  die("worker %s: not in time: %s = %s", worker_names[which], query, wanted);
}

/* ---- the cluster ------------------------------------------------------- */

int find_leader(void)
{
  for (int i = 0; i < SETTLE_SECONDS * 50; i++) {
    for (int w = A; w <= C; w++)
      if (strcmp(tell(w, "sql SELECT quorate_role()"), "leader") == 0) return w;
    sleep_ms(20);
  }
  die("no node leads");
}

int find_follower(void)
{
  return find_leader() == B ? C : B;
}

long long index_of(int which)
{
  return atoll(tell(which, "sql SELECT quorate_index()"));
}

void settle(void)
{
  long long to = index_of(find_leader());
  double began = now_s();
  for (int w = A; w <= C; w++)
    while (index_of(w) < to) {
      if (now_s() - began > SETTLE_SECONDS)
        die("worker %s does not catch up", worker_names[w]);
      sleep_ms(2);
    }
}

int process_free_port(void)
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

static void fill(int which)
{
  tell(which, "open %s/%s.db", directory, worker_names[which]);
  tell(which, "sql CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);"
              "CREATE TABLE bulk(id INTEGER PRIMARY KEY, v BLOB)");
  tell(which, "sql WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
              "FROM c WHERE i < 1000) INSERT INTO t SELECT i, randomblob(100) "
              "FROM c");
}

static void open_again(int which)
{
  int file = which == BESIDE_ONE ? ONE : which == BESIDE_A ? A : which;
  tell(which, "load %s", extension);
  tell(which, "open %s/%s.db", directory, worker_names[file]);
}

static void make_clusters(const char *library)
{
  extension = library;
  for (int i = ONE; i <= C; i++)
    tell(i, "load %s", library);
  for (int i = ONE; i <= A; i++)
    tell(i,
         "sql SELECT quorate_bootstrap('%s/%s.db', 'name', '%s', 'listen', "
         "'127.0.0.1:%d', 'lease', 'on')",
         directory, worker_names[i], worker_names[i], process_free_port());
  for (int i = STOCK; i <= A; i++)
    fill(i);
  for (int i = B; i <= C; i++) {
    char token[1024];
    snprintf(token, sizeof token, "%s",
             tell(A, "sql SELECT quorate_invite('%s')", worker_names[i]));
    tell(i,
         "sql SELECT quorate_join('%s/%s.db', '%s', 'listen', '127.0.0.1:%d')",
         directory, worker_names[i], token, process_free_port());
    tell(i, "open %s/%s.db", directory, worker_names[i]);
  }
  wait_for(A, "SELECT count(*) FROM quorate_members WHERE role = 'voter'", "3");
  for (int i = BESIDE_ONE; i <= BESIDE_A; i++)
    open_again(i);
}

void process_start(const char *library, const char *parent)
{
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);
  signal(SIGHUP, on_signal);
  signal(SIGALRM, on_alarm);
  signal(SIGPIPE, SIG_IGN);
  snprintf(directory, sizeof directory, "%s/bench.XXXXXX", parent);
  if (!mkdtemp(directory)) {
    int error = errno;
    directory[0] = 0;
    die("no temporary directory in %s: %s", parent, strerror(error));
  }
  for (int i = 0; i < WORKERS; i++)
    start(i);
  make_clusters(library);
}

void process_kill(int which)
{
  kill(workers[which].pid, SIGKILL);
  waitpid(workers[which].pid, NULL, 0);
  workers[which].pid = 0;
  fclose(workers[which].to);
  fclose(workers[which].from);
}

void process_again(int which)
{
  start(which);
  open_again(which);
}

/* ---- what else is asked ------------------------------------------------ */

const char *process_directory(void)
{
  return directory;
}

void process_sync(void)
{
  int fd = open(directory, O_RDONLY | O_DIRECTORY);
  if (fd < 0 || syncfs(fd)) die("%s: %s", directory, strerror(errno));
  close(fd);
}

double process_sync_ms(void)
{
  char path[sizeof directory + 8], page[4096] = {0};
  double ms[SYNCS];
  snprintf(path, sizeof path, "%s/sync", directory);
  int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
  for (int i = 0; i < SYNCS; i++) {
    double began = now_s();
    if (fd < 0 || write(fd, page, sizeof page) != sizeof page || fdatasync(fd))
      die("%s: %s", path, strerror(errno));
    ms[i] = (now_s() - began) * 1e3;
  }
  close(fd);
  unlink(path);
  return median(ms, SYNCS);
}

pid_t process_pid(int which)
{
  return workers[which].pid;
}

double cpu_s(int which)
{
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(workers[which].pid, &clock) ||
      clock_gettime(clock, &used))
    die("CPU time of worker %s cannot be read", worker_names[which]);
  return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

double resident_mib(int which)
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

int process_child(char *const argv[])
{
  int out[2];
  if (pipe(out)) die("pipe: %s", strerror(errno));
  child = fork();
  if (child < 0) die("fork: %s", strerror(errno));
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    dup2(out[1], STDOUT_FILENO);
    for (int fd = 3; fd < 64; fd++)
      close(fd);
    execv(argv[0], argv);
    _exit(127);
  }
  close(out[1]);
  return out[0];
}

void process_child_done(void)
{
  waitpid(child, NULL, 0);
  child = 0;
}
