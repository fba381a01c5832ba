/*
** fork(): a child that lives on holds nothing of its parent's node, one that
** uses or closes its parent's connections changes nothing, and one that opens
** the file anew finds that its parent hosts it.
**
** Actors are processes that do what they are told, one word after the other over
** a socket: the test tells a story. The test itself has no node.
*/
#include "harness.h"

#include "database.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const struct sqlite3_api_routines *api);

#define ACTORS 8
#define CONNECTIONS 4
#define ANSWER_BYTES 8192
#define PATIENCE_MS 120000
/* Far below HOST_MS of registry.c, and on any machine more than it takes. */
#define TAKE_OVER_MS 8000

static struct stage {
  char dir[PATH_BYTES];
  int told[ACTORS], tells[ACTORS]; /* the two ends of each actor's socket */
  struct {
    pid_t pids[256]; /* of all processes that were ever begun */
    _Atomic unsigned n;
  } * begun;
} stage;

/* A child has the memory of threads that it has not: no leak of its own, says
   whoever asks for a sanitizer. */
int __lsan_is_turned_off(void) __attribute__((visibility("default")));
int __lsan_is_turned_off(void)
{
  return registry_forks > 0;
}

/* ---- an actor ---------------------------------------------------------- */

static sqlite3 *db[CONNECTIONS];
static int me;

static void note_pid(void)
{
  unsigned i = atomic_fetch_add(&stage.begun->n, 1);
  if (i < 256) stage.begun->pids[i] = getpid();
}

static int add_row(void *ctx, int n, char **values, char **names)
{
  char *out = ctx;
  (void)names;
  for (int i = 0; i < n; i++) {
    size_t len = strlen(out);
    snprintf(out + len, ANSWER_BYTES - len, "%s%s", len ? "|" : "",
             values[i] ? values[i] : "");
  }
  return 0;
}

static void do_sql(sqlite3 *c, const char *sql, char *out)
{
  char *error = NULL;
  int rc = sqlite3_exec(c, sql, add_row, out, &error);
  if (rc != SQLITE_OK)
    snprintf(out, ANSWER_BYTES, "error %d: %s", sqlite3_extended_errcode(c),
             error ? error : "");
  sqlite3_free(error);
}

static void do_open(int i, const char *path, char *out)
{
  uint64_t began = clock_monotonic_ms();
  int rc = sqlite3_open(path, &db[i]);
  if (rc == SQLITE_OK) {
    sqlite3_busy_timeout(db[i], 30000);
    do_sql(db[i], "SELECT count(*) FROM sqlite_schema", out);
  }
  if (rc != SQLITE_OK || strncmp(out, "error", 5) == 0) {
    if (rc != SQLITE_OK) snprintf(out, ANSWER_BYTES, "error %d", rc);
    return;
  }
  snprintf(out, ANSWER_BYTES, "%llu",
           (unsigned long long)(clock_monotonic_ms() - began));
}

/* What is open that others must not find open: sockets that are no actor's,
   what event loops consist of, files with locks. */
static void do_held(char *out)
{
  char link[64], at[512];
  for (int fd = 0; fd < 1024; fd++) {
    bool ours = false;
    for (int i = 0; i < ACTORS; i++)
      ours = ours || fd == stage.told[i] || fd == stage.tells[i];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = ours ? -1 : readlink(link, at, sizeof(at) - 1);
    if (n < 0) continue;
    at[n] = 0;
    const char *name = strrchr(at, '/');
    if (strncmp(at, "socket:", 7) == 0 || strncmp(at, "anon_inode", 10) == 0 ||
        (strncmp(at, stage.dir, strlen(stage.dir)) == 0 &&
         (strcmp(name, "/lock") == 0 || strcmp(name, "/control") == 0 ||
          strcmp(name, "/frames") == 0 || strstr(name, "-shm"))))
      add_row(out, 1, (char *[]){at}, NULL);
  }
  if (out[0] == 0) strcpy(out, "nothing");
}

/* What a fork() without its handlers would leave: a copy of everything, but for
   the first session of this process with its host, its watch. */
static void do_bare_fork(void)
{
  struct sockaddr_un peer = {0};
  if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) != 0) return;
  note_pid();
  for (int fd = 0; fd < 1024; fd++) {
    socklen_t size = sizeof(peer);
    if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0 &&
        peer.sun_family == AF_UNIX && strstr(peer.sun_path, "/sock")) {
      close(fd);
      break;
    }
  }
  for (;;)
    pause();
}

static void serve(int actor);

/* Forks: as another actor, or to end at once. */
static void do_fork(const char *what, char *out)
{
  int status = 0;
  uint64_t began = clock_monotonic_ms();
  pid_t pid = fork();
  if (pid == 0) {
    note_pid();
    if (strcmp(what, "exit") == 0) exit(0);
    if (strcmp(what, "_exit") == 0) _exit(0);
    if (strcmp(what, "exec") == 0)
      execlp("sleep", "sleep", "300", (char *)NULL);
    else
      serve(atoi(what));
    _exit(127);
  }
  uint64_t took = clock_monotonic_ms() - began;
  if (strstr(what, "exit") && waitpid(pid, &status, 0) == pid)
    snprintf(out, ANSWER_BYTES, "%d", status);
  else
    snprintf(out, ANSWER_BYTES, "%llu", (unsigned long long)took);
}

/* ---- an actor under load ----------------------------------------------- */

struct writer {
  pthread_t thread;
  const char *path;
  int number, failed;
  uint64_t acknowledged, slowest;
};
static atomic_bool load_over;

static void *write_rows(void *arg)
{
  struct writer *w = arg;
  sqlite3 *c = NULL;
  char sql[128];
  if (sqlite3_open(w->path, &c) != SQLITE_OK) {
    w->failed++;
    return NULL;
  }
  sqlite3_busy_timeout(c, 60000);
  while (!atomic_load(&load_over)) {
    uint64_t began = clock_monotonic_ms();
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES('%d-%llu')", w->number,
             (unsigned long long)w->acknowledged);
    if (sqlite3_exec(c, sql, NULL, NULL, NULL) != SQLITE_OK) {
      w->failed++;
      continue;
    }
    w->acknowledged++;
    uint64_t took = clock_monotonic_ms() - began;
    if (took > w->slowest) w->slowest = took;
  }
  sqlite3_close(c);
  return NULL;
}

/* The ways in which children end. They call nothing of SQLite: another thread of
   the parent may have been in it. */
static void end_child(unsigned i)
{
  if (i % 3 == 0) exit(0);
  if (i % 3 == 1) poll(NULL, 0, 20);
  _exit(0);
}

static void *fork_children(void *arg)
{
  unsigned *n = arg;
  while (!atomic_load(&load_over)) {
    int status = 1;
    pid_t pid = fork();
    if (pid == 0) {
      alarm(60);
      end_child(*n);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
      *n = 0;
      return NULL;
    }
    ++*n;
  }
  return NULL;
}

/* Two threads write, two fork. */
static void do_storm(const char *path, char *out)
{
  struct writer w[2] = {{.path = path, .number = me * 10},
                        {.path = path, .number = me * 10 + 1}};
  unsigned forks[2] = {0, 1};
  pthread_t forkers[2];
  atomic_store(&load_over, false);
  for (int i = 0; i < 2; i++) {
    pthread_create(&w[i].thread, NULL, write_rows, &w[i]);
    pthread_create(&forkers[i], NULL, fork_children, &forks[i]);
  }
  uint64_t end = clock_monotonic_ms() + 2000;
  while (clock_monotonic_ms() < end)
    poll(NULL, 0, 20);
  atomic_store(&load_over, true);
  for (int i = 0; i < 2; i++) {
    pthread_join(w[i].thread, NULL);
    pthread_join(forkers[i], NULL);
  }
  snprintf(out, ANSWER_BYTES, "%llu %d %llu %u %u",
           (unsigned long long)(w[0].acknowledged + w[1].acknowledged),
           w[0].failed + w[1].failed,
           (unsigned long long)(w[0].slowest > w[1].slowest ? w[0].slowest
                                                            : w[1].slowest),
           forks[0], forks[1]);
}

/* A node starts and stops all the time, while threads fork. */
static void do_restarts(const char *path, char *out)
{
  unsigned forks[2] = {0, 1}, starts = 0;
  pthread_t forkers[2];
  char sql[PATH_BYTES + 64];
  snprintf(sql, sizeof(sql), "SELECT quorate_stop('%s')", path);
  atomic_store(&load_over, false);
  for (int i = 0; i < 2; i++)
    pthread_create(&forkers[i], NULL, fork_children, &forks[i]);
  for (; starts < 10; starts++) {
    sqlite3 *c = NULL;
    char said[ANSWER_BYTES] = "";
    if (sqlite3_open(path, &c) == SQLITE_OK)
      do_sql(c, "SELECT count(*) FROM t", said);
    sqlite3_close(c);
    if (strncmp(said, "error", 5) == 0) break;
    do_sql(db[0], sql, said);
  }
  atomic_store(&load_over, true);
  for (int i = 0; i < 2; i++)
    pthread_join(forkers[i], NULL);
  snprintf(out, ANSWER_BYTES, "%u %u %u", starts, forks[0], forks[1]);
}

/* ---- what an actor is told --------------------------------------------- */

static void obey(const char *what, char *out)
{
  char word[32] = "";
  int i = 0, at = 0;
  sscanf(what, "%31s %n", word, &at);
  const char *rest = what + at;
  if (strcmp(word, "open") == 0 || strcmp(word, "sql") == 0 ||
      strcmp(word, "close") == 0) {
    sscanf(rest, "%d %n", &i, &at);
    rest += at;
  }
  if (strcmp(word, "open") == 0)
    do_open(i, rest, out);
  else if (strcmp(word, "sql") == 0)
    do_sql(db[i], rest, out);
  else if (strcmp(word, "close") == 0)
    snprintf(out, ANSWER_BYTES, "%d", sqlite3_close(db[i]));
  else if (strcmp(word, "fork") == 0)
    do_fork(rest, out);
  else if (strcmp(word, "bare") == 0)
    do_bare_fork();
  else if (strcmp(word, "held") == 0)
    do_held(out);
  else if (strcmp(word, "storm") == 0)
    do_storm(rest, out);
  else if (strcmp(word, "restarts") == 0)
    do_restarts(rest, out);
  else if (strcmp(word, "exit") == 0)
    exit(0);
  else
    snprintf(out, ANSWER_BYTES, "error: %s?", what);
}

static void serve(int actor)
{
  char what[4096], out[ANSWER_BYTES];
  me = actor;
  for (;;) {
    ssize_t n = recv(stage.told[me], what, sizeof(what) - 1, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) _exit(0); /* the test has ended */
    what[n] = out[0] = 0;
    int was = me;
    obey(what, out);
    if (me == was) send(stage.told[me], out, strlen(out) + 1, 0);
  }
}

/* ---- the test's side --------------------------------------------------- */

static int stage_begin(void **state)
{
  if (dir_make(state) != 0) return -1;
  snprintf(stage.dir, sizeof(stage.dir), "%s", (char *)*state);
  stage.begun = mmap(NULL, sizeof(*stage.begun), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (stage.begun == MAP_FAILED) return -1;
  for (int i = 0; i < ACTORS; i++) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
      return -1;
    stage.tells[i] = pair[0];
    stage.told[i] = pair[1];
  }
  return 0;
}

static int stage_end(void **state)
{
  unsigned n = atomic_load(&stage.begun->n);
  for (unsigned i = 0; i < n && i < 256; i++)
    kill(stage.begun->pids[i], SIGKILL);
  while (waitpid(-1, NULL, 0) > 0)
    ;
  for (int i = 0; i < ACTORS; i++) {
    close(stage.tells[i]);
    close(stage.told[i]);
  }
  munmap(stage.begun, sizeof(*stage.begun));
  char *command = NULL;
  if (asprintf(&command, "rm -rf '%s'", stage.dir) < 0) return -1;
  int rc = system(command);
  free(command);
  free(*state);
  return rc;
}

/* A process of its own, with the extension. */
static pid_t actor_start(int actor)
{
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid > 0) return pid;
  note_pid();
  for (int i = 0; i < ACTORS; i++)
    close(stage.tells[i]);
  sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init);
  sqlite3_open(":memory:", &db[0]);
  sqlite3_close(db[0]);
  sqlite3_cancel_auto_extension((void (*)(void))sqlite3_quorate_init);
  serve(actor);
  _exit(0);
}

static void tell(int actor, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void tell(int actor, const char *format, ...)
{
  char what[4096];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(what, sizeof(what), format, args);
  va_end(args);
  assert_int_equal(send(stage.tells[actor], what, (size_t)n, 0), n);
}

static const char *hear(int actor)
{
  static char answer[ANSWER_BYTES];
  struct pollfd fd = {.fd = stage.tells[actor], .events = POLLIN};
  int rc;
  do
    rc = poll(&fd, 1, PATIENCE_MS);
  while (rc < 0 && errno == EINTR);
  if (rc != 1) fail_msg("actor %d does not answer", actor);
  ssize_t n = recv(fd.fd, answer, sizeof(answer), 0);
  if (n <= 0) fail_msg("actor %d has ended", actor);
  return answer;
}

#define ask(actor, ...) (tell(actor, __VA_ARGS__), hear(actor))
#define expect(answer, actor, ...)                                             \
  assert_string_equal(ask(actor, __VA_ARGS__), answer)
#define starts_with(prefix, actor, ...)                                        \
  do {                                                                         \
    const char *said_ = ask(actor, __VA_ARGS__);                               \
    if (strncmp(said_, prefix, strlen(prefix)) != 0)                           \
      fail_msg("%s, not %s", said_, prefix);                                   \
  } while (0)

static void actor_kill(pid_t pid)
{
  assert_int_equal(kill(pid, SIGKILL), 0);
  assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* It ended by itself, in order. */
static void actor_ended(pid_t pid)
{
  int status = -1;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
}

static struct path path;

/* Actor 0 hosts a node with a table of three rows, by two connections. */
static pid_t host_start(void)
{
  pid_t pid = actor_start(0);
  path = path_of(stage.dir, "app.db");
  ask(0, "open 3 :memory:");
  starts_with("", 0,
              "sql 3 SELECT quorate_bootstrap('%s', 'listen', '127.0.0.1:%u')",
              path.s, free_port());
  ask(0, "open 0 %s", path.s);
  expect("", 0, "sql 0 CREATE TABLE t(v)");
  expect("", 0, "sql 0 INSERT INTO t VALUES('a'),('b'),('c')");
  ask(0, "open 1 %s", path.s);
  expect("3", 0, "sql 1 SELECT count(*) FROM t");
  return pid;
}

/* An actor opens the file, and is the host soon. */
static void takes_over(int actor, int i)
{
  const char *said = ask(actor, "open %d %s", i, path.s);
  if (said[0] < '0' || said[0] > '9') fail_msg("cannot take over: %s", said);
  assert_in_range(atoi(said), 0, TAKE_OVER_MS);
  expect("", actor, "sql %d INSERT INTO t VALUES('next')", i);
  starts_with("leader", actor, "sql %d SELECT quorate_role()", i);
}

/* ---- a child that lives on --------------------------------------------- */

static void test_killed(void **state)
{
  pid_t host = host_start();
  (void)state;
  ask(0, "fork 1");
  expect("nothing", 1, "held");
  actor_kill(host);
  actor_start(2);
  takes_over(2, 0);
  expect("4", 2, "sql 0 SELECT count(*) FROM t");
  expect("nothing", 1, "held"); /* it is still there */
}

/* The same for what a child has exec'ed. */
static void test_exec(void **state)
{
  pid_t host = host_start();
  (void)state;
  ask(0, "fork exec");
  actor_kill(host);
  actor_start(2);
  takes_over(2, 0);
}

/* A leader's connections end with it, whatever children it has: the others
   need not wait until it was silent for an election timeout. */
static void test_peers(void **state)
{
  enum { TIMEOUT_MS = 20000 };
  pid_t host[3];
  char token[1024];
  uint64_t began;
  (void)state;
  path = path_of(stage.dir, "n0.db");
  for (int i = 0; i < 3; i++) {
    host[i] = actor_start(i);
    ask(i, "open 3 :memory:");
  }
  ask(0,
      "sql 3 SELECT quorate_bootstrap('%s', 'listen', '127.0.0.1:%u', "
      "'name', 'n0', 'election_timeout_ms', %d)",
      path.s, free_port(), TIMEOUT_MS);
  ask(0, "open 0 %s", path.s);
  for (int i = 1; i < 3; i++) {
    snprintf(token, sizeof(token), "%s",
             ask(0, "sql 0 SELECT quorate_invite('n%d')", i));
    starts_with("", i,
                "sql 3 SELECT quorate_join('%sn%d.db', '%s', 'listen', "
                "'127.0.0.1:%u')",
                stage.dir, i, token, free_port());
    ask(i, "open 0 %sn%d.db", stage.dir, i);
  }
  began = clock_monotonic_ms();
  while (strcmp(ask(0, "sql 0 SELECT count(*) FROM quorate_members WHERE "
                       "role = 'voter'"),
                "3") != 0)
    assert_true(clock_monotonic_ms() < began + PATIENCE_MS);
  ask(0, "fork 3");
  expect("nothing", 3, "held");
  actor_kill(host[0]);
  began = clock_monotonic_ms();
  for (int i = 1; i < 3; i++)
    while (strcmp(ask(i, "sql 0 SELECT quorate_leader()"), "n0") == 0) {
      assert_true(clock_monotonic_ms() < began + TIMEOUT_MS / 2);
      poll(NULL, 0, 20);
    }
}

/* ---- a child that ends ------------------------------------------------- */

static void test_exit(void **state)
{
  char term[64];
  (void)state;
  host_start();
  snprintf(term, sizeof(term), "%s", ask(0, "sql 0 SELECT quorate_term()"));
  for (int i = 0; i < 5; i++) {
    expect("0", 0, "fork exit");
    expect("0", 0, "fork _exit");
    expect("", 0, "sql 0 INSERT INTO t VALUES('x')");
  }
  expect(term, 0, "sql 0 SELECT quorate_term()");
  expect("leader", 0, "sql 1 SELECT quorate_role()");
  expect("8", 0, "sql 1 SELECT count(*) FROM t");
}

/* ---- connections of the parent ----------------------------------------- */

static char inherited[16];

static void refuses(int actor, int i)
{
  starts_with(inherited, actor, "sql %d SELECT count(*) FROM t", i);
  starts_with(inherited, actor, "sql %d INSERT INTO t VALUES('no')", i);
  starts_with("error 1: quorate_role: this connection was opened before", actor,
              "sql %d SELECT quorate_role()", i);
  starts_with("error", actor, "sql %d SELECT * FROM quorate_status", i);
  starts_with("this connection was opened before fork()", actor,
              "sql %d SELECT quorate_last_error()", i);
}

/* The parent reads an old snapshot, and is in the middle of a transaction: a
   child that uses and closes both connections changes neither. */
static void in_the_middle(int parent, int child)
{
  expect("3", parent, "sql 0 BEGIN; SELECT count(*) FROM t");
  expect("", parent, "sql 1 BEGIN IMMEDIATE; INSERT INTO t VALUES('d')");
  ask(parent, "fork %d", child);
  starts_with("error", child, "sql 0 INSERT INTO t VALUES('no')");
  starts_with("error", child, "sql 1 COMMIT");
  ask(child, "sql 1 ROLLBACK");
  ask(child, "sql 0 ROLLBACK");
  refuses(child, 0);
  refuses(child, 1);
  expect("0", child, "close 0");
  expect("0", child, "close 1");
  expect("nothing", child, "held");
  expect("3", parent, "sql 0 SELECT count(*) FROM t");
  expect("", parent, "sql 1 COMMIT");
  /* Its snapshot keeps the WAL: the slot is still its own. */
  expect("", parent, "sql 1 UPDATE t SET v = v || randomblob(3000)");
  starts_with("checkpoint", parent, "sql 1 SELECT quorate_checkpoint()");
  expect("", parent, "sql 1 UPDATE t SET v = randomblob(30000)");
  expect("", parent, "sql 0 PRAGMA shrink_memory"); /* it reads the files */
  expect("abc", parent, "sql 0 SELECT group_concat(v, '') FROM t");
  expect("", parent, "sql 0 COMMIT");
  expect("4", parent, "sql 0 SELECT count(*) FROM t");
  expect("ok", parent, "sql 0 PRAGMA integrity_check");
}

static void test_inherited(void **state)
{
  (void)state;
  host_start();
  in_the_middle(0, 1);
  expect("0", 0, "fork exit");
  expect("", 0, "sql 1 INSERT INTO t VALUES('e')");
}

/* ---- load -------------------------------------------------------------- */

static void test_storm(void **state)
{
  unsigned long long rows, slowest;
  unsigned forks[2];
  int failed;
  char count[32];
  (void)state;
  pid_t host = host_start();
  const char *said = ask(0, "storm %s", path.s);
  assert_int_equal(sscanf(said, "%llu %d %llu %u %u", &rows, &failed, &slowest,
                          &forks[0], &forks[1]),
                   5);
  assert_int_equal(failed, 0);
  assert_true(rows > 0 && forks[0] > 0 && forks[1] > 1);
  assert_in_range(slowest, 0, 5000);
  print_message("%llu rows, the slowest in %llu ms, %u forks\n", rows, slowest,
                forks[0] + forks[1] - 1);
  snprintf(count, sizeof(count), "%llu", rows + 3);
  expect(count, 0, "sql 0 SELECT count(*) FROM t");
  actor_kill(host);
  actor_start(1);
  ask(1, "open 0 %s", path.s);
  expect(count, 1, "sql 0 SELECT count(*) FROM t");
}

static void test_restarts(void **state)
{
  unsigned starts, forks[2];
  (void)state;
  host_start();
  expect("0", 0, "close 0");
  expect("0", 0, "close 1");
  ask(0, "open 0 :memory:");
  const char *said = ask(0, "restarts %s", path.s);
  assert_int_equal(sscanf(said, "%u %u %u", &starts, &forks[0], &forks[1]), 3);
  assert_int_equal(starts, 10);
  assert_true(forks[0] > 0 && forks[1] > 1);
}

/* ---- a child that opens the file anew ---------------------------------- */

/* A program goes into the background: it forks, and its parent ends. */
static void test_daemon(void **state)
{
  (void)state;
  pid_t host = host_start();
  ask(0, "fork 1");
  tell(0, "exit");
  actor_ended(host);
  takes_over(1, 2);
  refuses(1, 0);
  expect("0", 1, "close 0");
  expect("4", 1, "sql 2 SELECT count(*) FROM t");
}

/* The child attaches to its parent, and both write. */
static void attach_child(int parent, int child)
{
  ask(parent, "fork %d", child);
  starts_with("", child, "open 2 %s", path.s);
  expect("3", child, "sql 2 SELECT count(*) FROM t");
  expect("", child, "sql 2 INSERT INTO t VALUES('of the child')");
  expect("4", parent, "sql 0 SELECT count(*) FROM t");
  expect("", parent, "sql 0 INSERT INTO t VALUES('of the parent')");
  expect("5", child, "sql 2 SELECT count(*) FROM t");
  refuses(child, 0);
  expect("0", child, "close 0");
  expect("5", child, "sql 2 SELECT count(*) FROM t");
}

static void goes_on(int actor)
{
  uint64_t began = clock_monotonic_ms();
  expect("", actor, "sql 2 INSERT INTO t VALUES('after')");
  expect("6", actor, "sql 2 SELECT count(*) FROM t");
  assert_in_range(clock_monotonic_ms() - began, 0, TAKE_OVER_MS);
  expect("leader", actor, "sql 2 SELECT quorate_role()");
}

static void test_child_attaches(void **state)
{
  (void)state;
  pid_t host = host_start();
  attach_child(0, 1);
  tell(0, "exit");
  actor_ended(host);
  goes_on(1);
}

static void test_child_takes_over(void **state)
{
  (void)state;
  pid_t host = host_start();
  ask(0, "fork 2"); /* another one, which does nothing */
  attach_child(0, 1);
  actor_kill(host);
  goes_on(1);
  expect("nothing", 2, "held");
}

/* Two generations: each closes what it has inherited. */
static void test_grandchild(void **state)
{
  (void)state;
  host_start();
  attach_child(0, 1);
  ask(1, "fork 2");
  refuses(2, 2);
  refuses(2, 1);
  expect("0", 2, "close 2");
  expect("0", 2, "close 1");
  expect("nothing", 2, "held");
  starts_with("", 2, "open 2 %s", path.s);
  expect("5", 2, "sql 2 SELECT count(*) FROM t");
  expect("5", 1, "sql 2 SELECT count(*) FROM t");
}

/* ---- the parent is attached itself ------------------------------------- */

static void test_attached_parent(void **state)
{
  (void)state;
  host_start();
  actor_start(2);
  starts_with("", 2, "open 0 %s", path.s);
  starts_with("", 2, "open 1 %s", path.s);
  expect("3", 2, "sql 1 SELECT count(*) FROM t");
  in_the_middle(2, 1);
  expect("4", 0, "sql 0 SELECT count(*) FROM t");
}

/* An attached process that has the turn to write. */
static pid_t writer_start(void)
{
  host_start();
  pid_t pid = actor_start(2);
  starts_with("", 2, "open 0 %s", path.s);
  expect("", 2, "sql 0 BEGIN IMMEDIATE; INSERT INTO t VALUES('d')");
  return pid;
}

/* When it is killed, its turn is over. */
static void writer_kill(pid_t pid)
{
  actor_kill(pid);
  uint64_t began = clock_monotonic_ms();
  expect("", 0, "sql 0 INSERT INTO t VALUES('e')");
  assert_in_range(clock_monotonic_ms() - began, 0, TAKE_OVER_MS);
  expect("4", 0, "sql 0 SELECT count(*) FROM t");
}

/* Though its child lives on. */
static void test_attached_killed(void **state)
{
  (void)state;
  pid_t pid = writer_start();
  ask(2, "fork 1");
  expect("nothing", 1, "held");
  writer_kill(pid);
  expect("nothing", 1, "held");
}

/* The same, should somebody hold its session open all the same. */
static void test_attached_orphan(void **state)
{
  (void)state;
  pid_t pid = writer_start();
  expect("", 2, "bare");
  writer_kill(pid);
}

/* ---- how a loop stands still ------------------------------------------- */

static void *run_loop(void *arg)
{
  struct node *node = arg;
  uv_run(&node->loop, UV_RUN_DEFAULT);
  return NULL;
}

static void on_wake(uv_async_t *async)
{
  node_run_tasks(async->data);
}

static void end_loop(struct task *task)
{
  uv_close((uv_handle_t *)&task->node->async, NULL);
}

static uint32_t parking(struct node *node)
{
  return atomic_load(&node->parking.state);
}

static bool park(struct node *node, unsigned ms)
{
  struct timespec end = clock_deadline(ms);
  forks_ask(node);
  forks_wait(node, &end);
  return parking(node) == 2;
}

/* A loop that is busy is not waited for, and does not stand still when it is too
   late; nor is it asked twice. */
static void test_parking(void **state)
{
  struct node node = {.loop_started = true, .looping = true};
  struct task task = {.run = end_loop};
  pthread_t thread;
  (void)state;
  node.tasks_tail = &node.tasks;
  pthread_mutex_init(&node.mutex, NULL);
  assert_int_equal(uv_loop_init(&node.loop), 0);
  assert_int_equal(uv_async_init(&node.loop, &node.async, on_wake), 0);
  node.async.data = &node;
  node.loop_thread = (pthread_t){0};
  for (int i = 0; i < 3; i++) {
    assert_false(park(&node, 20));
    forks_release(&node);
    assert_ptr_equal(node.tasks, &node.parking.task);
    assert_null(node.tasks->next);
  }
  assert_int_equal(pthread_create(&thread, NULL, run_loop, &node), 0);
  node.loop_thread = thread;
  uint64_t end = clock_monotonic_ms() + PATIENCE_MS;
  while (parking(&node) != 0)
    assert_true(clock_monotonic_ms() < end);
  for (int i = 0; i < 1000; i++) {
    assert_true(park(&node, PATIENCE_MS));
    forks_release(&node);
  }
  node_post(&node, &task);
  pthread_join(thread, NULL);
  assert_int_equal(parking(&node), 0);
  assert_int_equal(uv_loop_close(&node.loop), 0);
  pthread_mutex_destroy(&node.mutex);
}

int main(int argc, char **argv)
{
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  snprintf(inherited, sizeof(inherited), "error %d", SQLITE_IOERR_SHMLOCK);
#define ON_STAGE(test)                                                         \
  cmocka_unit_test_setup_teardown(test, stage_begin, stage_end)
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parking),
      ON_STAGE(test_killed),
      ON_STAGE(test_exec),
      ON_STAGE(test_peers),
      ON_STAGE(test_exit),
      ON_STAGE(test_inherited),
      ON_STAGE(test_storm),
      ON_STAGE(test_restarts),
      ON_STAGE(test_daemon),
      ON_STAGE(test_child_attaches),
      ON_STAGE(test_child_takes_over),
      ON_STAGE(test_grandchild),
      ON_STAGE(test_attached_parent),
      ON_STAGE(test_attached_killed),
      ON_STAGE(test_attached_orphan),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
