/*
** quorated.c: a program that hosts nodes, and nothing else.
**
**     quorated [--http [ADDRESS:]PORT] FILE...
**     quorated --watch [--interval SECONDS] FILE
**
** Three threads beside those of the nodes. The main thread waits for signals,
** and sees to it that the end comes in time. The keeper opens the files, looks
** after them and stops their nodes: whatever may take long is done there. The
** printer writes lines to stderr, where a write may block for ever: who has
** something to say only puts it into a queue, and a line that finds no room
** there is counted instead. With --http there are more, which only look and
** answer: http.c. With --watch there is no node, but a view of one: watch.c.
**
** A node is a connection that is kept open: what the keeper wants to know it
** asks in SQL, as any program would. SQLite is linked as such a program links
** it, and the extension is part of this file: no quorate.so is needed.
**
** The states of a file:
**
**     NEW -------> RUNS --SIGTERM--> STOPPED
**      | `-------> WAITS   another process hosts it: this one is attached, and
**      |                   hosts it when that one ends (attach.c): then it RUNS
**      `---------> BROKEN  the end of this program, status 1
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "http.h"
#include "report.h"
#include "sql.h"
#include "vfs.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define STOP_MS 1800     /* from the first signal to the last node's end */
#define DRAIN_MS 150     /* and then for lines that were not written yet */
#define LOOKERS_MS 100   /* and for those who look at nodes that are gone */
#define TWICE_MS 100     /* signals that are so close are one: see watch() */
#define LOOK_MS 1000     /* pace at which the nodes are looked at */
#define STARTING_MS 50   /* the same, until all of them serve */
#define QUEUE (64 << 10) /* bytes of lines that wait to be written */

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);

/* ---- lines to stderr --------------------------------------------------- */

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t filled, empty;
  pthread_t thread;
  char queue[QUEUE];
  size_t used;
  unsigned lost; /* lines, since the last that found room */
  bool timed;    /* lines begin with the time */
  bool writing, ending;
} printer = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* Whole lines; what cannot be written is gone. */
static void print_all(const char *data, size_t n)
{
  while (n > 0) {
    const char *end = memchr(data, '\n', n);
    size_t line = end ? (size_t)(end - data) + 1 : n;
    ssize_t done = write(STDERR_FILENO, data, line);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) done = (ssize_t)line;
    data += done;
    n -= (size_t)done;
  }
}

static void *printer_main(void *arg)
{
  static char taken[QUEUE];
  (void)arg;
  pthread_mutex_lock(&printer.mutex);
  while (printer.used > 0 || !printer.ending) {
    if (printer.used == 0) {
      pthread_cond_wait(&printer.filled, &printer.mutex);
      continue;
    }
    size_t n = printer.used;
    memcpy(taken, printer.queue, n);
    printer.used = 0;
    printer.writing = true;
    pthread_mutex_unlock(&printer.mutex);
    print_all(taken, n);
    pthread_mutex_lock(&printer.mutex);
    printer.writing = false;
    pthread_cond_broadcast(&printer.empty);
  }
  pthread_mutex_unlock(&printer.mutex);
  return NULL;
}

/* As much of a line as `size` allows, with its newline. Whatever else would
   begin a line or move a cursor becomes a space: some of the text is a peer's. */
static size_t make_line(char *line, size_t size, int64_t time_ms,
                        const char *who, const char *text)
{
  size_t n = 0;
  if (printer.timed) {
    n = (size_t)snprintf(line, size, "%sZ ", clock_text(time_ms).s);
  }
  int more = snprintf(line + n, size - n, "%s: %s", who, text);
  n = more < (int)(size - n) - 1 ? n + (size_t)more : size - 2;
  for (size_t i = 0; i < n; i++)
    if ((unsigned char)line[i] < ' ' || line[i] == 0x7f) line[i] = ' ';
  line[n++] = '\n';
  return n;
}

/* Any thread; does not wait for whoever reads it. */
static void say_at(int64_t time_ms, const char *who, const char *text)
{
  char line[PATH_MAX + TEXT_MAX + 128], lost[128], count[64];
  size_t n_lost = 0, n = make_line(line, sizeof(line), time_ms, who, text);
  pthread_mutex_lock(&printer.mutex);
  if (printer.lost) {
    snprintf(count, sizeof(count), "%u lines are lost: nobody read them",
             printer.lost);
    n_lost = make_line(lost, sizeof(lost), time_ms, "quorated", count);
  }
  if (n_lost + n > QUEUE - printer.used) {
    printer.lost++;
  } else {
    memcpy(printer.queue + printer.used, lost, n_lost);
    memcpy(printer.queue + printer.used + n_lost, line, n);
    printer.used += n_lost + n;
    printer.lost = 0;
    pthread_cond_signal(&printer.filled);
  }
  pthread_mutex_unlock(&printer.mutex);
}

static void say(const char *who, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void say(const char *who, const char *format, ...)
{
  struct text text;
  va_list args;
  va_start(args, format);
  vsnprintf(text.s, sizeof(text.s), format, args);
  va_end(args);
  say_at(clock_wall_ms(), who, text.s);
}

/* events.c: under the mutex of a node's events. */
static void echo(const char *path, const struct event *event)
{
  say_at(event->time_ms, path, event->text);
}

/* systemd names the stream that it gave us: stderr may be another by now. */
static bool is_journal(void)
{
  const char *stream = getenv("JOURNAL_STREAM");
  unsigned long long device, inode;
  struct stat st;
  return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
         fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device &&
         st.st_ino == inode;
}

static int printer_begin(void)
{
  printer.timed = !is_journal();
  clock_condition(&printer.filled);
  clock_condition(&printer.empty);
  return pthread_create(&printer.thread, NULL, printer_main, NULL);
}

/* Waits a moment until all is written. False: it is not, and the thread is
   still at it. */
static bool printer_drain(void)
{
  struct timespec end = clock_deadline(DRAIN_MS);
  int rc = 0;
  pthread_mutex_lock(&printer.mutex);
  while ((printer.used > 0 || printer.writing) && rc == 0)
    rc = pthread_cond_timedwait(&printer.empty, &printer.mutex, &end);
  bool drained = printer.used == 0 && !printer.writing;
  pthread_mutex_unlock(&printer.mutex);
  return drained;
}

/* After the last line. */
static bool printer_end(void)
{
  if (!printer_drain()) return false;
  pthread_mutex_lock(&printer.mutex);
  printer.ending = true;
  pthread_cond_signal(&printer.filled);
  pthread_mutex_unlock(&printer.mutex);
  return pthread_join(printer.thread, NULL) == 0;
}

/* ---- what the service manager is told ---------------------------------- */

/* A datagram as sd_notify(3) describes it. False: it could not be sent now. */
static bool notify(const char *state)
{
  const char *to = getenv("NOTIFY_SOCKET");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t n = to ? strlen(to) : 0;
  if (n < 2 || n >= sizeof(address.sun_path) || (to[0] != '/' && to[0] != '@'))
    return true; /* nobody wants to know */
  memcpy(address.sun_path, to, n);
  if (to[0] == '@') address.sun_path[0] = 0; /* an abstract name */
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  ssize_t sent =
      sendto(fd, state, strlen(state), MSG_NOSIGNAL, (void *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
  close(fd);
  return sent >= 0;
}

/* ---- files ------------------------------------------------------------- */

static struct {
  const char *http; /* where it listens; NULL: nowhere */
  bool watch;
  double interval; /* of --watch, in seconds; 0: not given */
} options;

enum state { NEW, RUNS, WAITS, BROKEN, STOPPED };

struct file {
  char *path; /* as the node knows it */
  enum state state;
  sqlite3 *db;      /* of one that RUNS or WAITS */
  struct text said; /* why it did not run when its turn had come */
  bool leads, led, serves, failed;
};

static struct {
  struct file *files;
  unsigned n;
  sqlite3 *db; /* of no file: for functions that need none */
  int stop_fd; /* readable: the keeper is to end */
  int news_fd; /* readable: it stops the nodes, or has done so */
  _Atomic bool refused, ended;
  bool unclean; /* a node that ran could not be stopped in order */
  pthread_t thread;
} keeper;

/* The newest line that SQLite logged on this thread: its errors alone say
   little. */
static _Thread_local struct text logged;

static void on_log(void *ctx, int code, const char *line)
{
  (void)ctx;
  (void)code;
  text_set(&logged, "%s", line);
}

/* One value; *text is "" for NULL. An SQLite result code; *text says why. */
static int ask(sqlite3 *db, const char *sql, const char *argument,
               struct text *text)
{
  sqlite3_stmt *stmt = NULL;
  text->s[0] = 0;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (rc == SQLITE_OK && argument)
    rc = sqlite3_bind_text(stmt, 1, argument, -1, SQLITE_STATIC);
  if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW &&
      sqlite3_column_text(stmt, 0))
    text_set(text, "%s", (const char *)sqlite3_column_text(stmt, 0));
  int end = sqlite3_finalize(stmt);
  if (rc == SQLITE_OK) rc = end;
  if (rc != SQLITE_OK) text_set(text, "%s", sqlite3_errmsg(db));
  return rc;
}

/* The directory of its node. */
struct dir {
  char s[PATH_MAX + 16];
};
static struct dir dir_of(const struct file *f)
{
  struct dir dir;
  snprintf(dir.s, sizeof(dir.s), "%s-quorate", f->path);
  return dir;
}

/* Does the directory of a node stand beside it? */
static bool is_node(const struct file *f, struct text *why)
{
  struct dir dir = dir_of(f);
  struct stat st;
  if (stat(dir.s, &st) == 0 && S_ISDIR(st.st_mode)) return true;
  if (stat(f->path, &st) != 0)
    text_set(why, "%s", errno_text(errno).s);
  else
    text_set(why, "it is no node: there is no directory %s", dir.s);
  return false;
}

/* Why a file could not be opened: what quorate says, else what SQLite does. */
static void tell_why(const struct file *f, sqlite3 *db, struct text *why)
{
  struct text reason;
  size_t n = strlen(f->path);
  if (registry_refusal(f->path, &reason))
    *why = reason;
  else
    text_set(why, "%s%s%s", sqlite3_errmsg(db), logged.s[0] ? ": " : "",
             logged.s);
  /* The line begins with the path already. */
  if (strncmp(why->s, f->path, n) == 0 && strncmp(why->s + n, ": ", 2) == 0)
    memmove(why->s, why->s + n + 2, strlen(why->s + n + 2) + 1);
}

/* The node runs in this process. */
static bool is_here(const struct file *f)
{
  struct connection *c = vfs_connection(f->db, "main");
  return c && atomic_load(&c->database->node);
}

/* Opens a file, which starts its node: it RUNS, or it WAITS for the end of
   another process, or it is BROKEN; *why says more of the latter two. */
static enum state open_file(struct file *f, struct text *why)
{
  struct text role;
  logged.s[0] = 0;
  if (!is_node(f, why)) return BROKEN;
  int rc = report_open(f->path, &f->db);
  enum state state = rc == SQLITE_OK ? RUNS : BROKEN;
  if (state == BROKEN) tell_why(f, f->db, why);
  /* It is open, but not as a node's: that is another user's. */
  if (state == RUNS && ask(f->db, "SELECT quorate_role()", NULL, &role)) {
    tell_why(f, f->db, why);
    state = BROKEN;
  }
  if (state == BROKEN) {
    sqlite3_close(f->db);
    f->db = NULL;
  } else if (!is_here(f)) {
    state = WAITS;
    text_set(why, "the node runs in process %d", node_lock_holder(dir_of(f).s));
  }
  return state;
}

static const char *state_name(enum state state)
{
  static const char *const names[] = {"new", "runs", "waits", "broken",
                                      "stopped"};
  return names[state];
}

/* Those who look at it hear what it is now. */
static void note_state(const struct file *f, const char *why)
{
  if (options.http)
    http_note((unsigned)(f - keeper.files), f->db != NULL, state_name(f->state),
              why);
}

/* Tries to, and says so if it does not run. */
static void try_file(struct file *f)
{
  struct text why = {""};
  f->state = open_file(f, &why);
  note_state(f, why.s);
  if (f->state != RUNS)
    say(f->path,
        f->state == WAITS ? "waits for its turn: %s" : "cannot start: %s",
        why.s);
}

/* The other process has ended, perhaps, and its node runs here, or does not: what
   was said of that before is not said again. */
static void look_for_turn(struct file *f)
{
  struct database *d = vfs_connection(f->db, "main")->database;
  pthread_mutex_lock(&d->mutex);
  struct text trouble = d->trouble;
  pthread_mutex_unlock(&d->mutex);
  if (is_here(f)) {
    f->state = RUNS;
    note_state(f, "");
  } else if (trouble.s[0] && strcmp(trouble.s, f->said.s) != 0) {
    say(f->path, "cannot start: %s", trouble.s);
    f->said = trouble;
  }
}

/* Whether a node leads, has a leader, or can be read. */
static void look_at(struct file *f)
{
  struct text role, text;
  if (ask(f->db, "SELECT quorate_role()", NULL, &role) != SQLITE_OK)
    role.s[0] = 0;
  f->failed = strcmp(role.s, "failed") == 0;
  f->leads = strcmp(role.s, "leader") == 0;
  f->led = ask(f->db, "SELECT quorate_leader()", NULL, &text) == SQLITE_OK &&
           text.s[0];
  f->serves = ask(f->db, "SELECT serving FROM quorate_status", NULL, &text) ==
                  SQLITE_OK &&
              text.s[0] == '1';
}

/* ---- the keeper -------------------------------------------------------- */

/* Everything that is here runs and serves; what another process hosts is
   served by that. */
static bool all_serve(void)
{
  for (unsigned i = 0; i < keeper.n; i++) {
    const struct file *f = &keeper.files[i];
    if (f->state == RUNS ? !f->led && !f->serves : f->state != WAITS)
      return false;
  }
  return true;
}

/* STATUS=..., with READY=1 once. */
static void tell_state(bool *ready)
{
  static struct text told;
  unsigned runs = 0, leads = 0, alone = 0, failed = 0;
  struct text status;
  for (unsigned i = 0; i < keeper.n; i++) {
    const struct file *f = &keeper.files[i];
    runs += f->state == RUNS;
    if (f->state != RUNS) continue;
    leads += f->leads;
    failed += f->failed;
    alone += !f->led && !f->failed;
  }
  text_set(&status,
           "STATUS=hosts %u of %u, leads %u, %u without a leader, %u failed",
           runs, keeper.n, leads, alone, failed);
  if (!*ready && all_serve() && notify("READY=1")) {
    *ready = true;
    say("quorated", "ready: %s", strchr(status.s, '=') + 1);
  }
  if (strcmp(status.s, told.s) != 0 && notify(status.s)) told = status;
}

/* Waits, for at most so long; true: the keeper is to end. */
static bool told_to_stop(int ms)
{
  struct pollfd p = {.fd = keeper.stop_fd, .events = POLLIN};
  return poll(&p, 1, ms) > 0;
}

static void tell_main(_Atomic bool *what)
{
  atomic_store(what, true);
  eventfd_write(keeper.news_fd, 1);
}

/* False: one of them is none, or did not start. */
static bool open_files(void)
{
  for (unsigned i = 0; i < keeper.n && !told_to_stop(0); i++) {
    try_file(&keeper.files[i]);
    if (keeper.files[i].state == BROKEN) return false;
  }
  return true;
}

static void keep_files(void)
{
  bool ready = false;
  do {
    for (unsigned i = 0; i < keeper.n; i++) {
      struct file *f = &keeper.files[i];
      if (f->state == WAITS) look_for_turn(f);
      if (f->state == RUNS) look_at(f);
    }
    tell_state(&ready);
    if (options.http) http_alive();
  } while (!told_to_stop(ready ? LOOK_MS : STARTING_MS));
}

/* Also of a file that did not open: its node may run nevertheless. */
static void close_files(void)
{
  struct text answer;
  if (options.http) http_stop();
  for (unsigned i = 0; i < keeper.n; i++) {
    struct file *f = &keeper.files[i];
    enum state was = f->state;
    sqlite3_close(f->db);
    f->db = NULL;
    if (was != RUNS && was != BROKEN) continue;
    f->state = STOPPED;
    int rc = ask(keeper.db, "SELECT quorate_stop(?)", f->path, &answer);
    if (rc == SQLITE_OK || was == RUNS)
      say(f->path, rc == SQLITE_OK ? "%s" : "cannot stop: %s", answer.s);
    if (rc != SQLITE_OK && was == RUNS) keeper.unclean = true;
  }
}

static void *keeper_main(void *arg)
{
  (void)arg;
  if (open_files())
    keep_files();
  else
    tell_main(&keeper.refused);
  close_files();
  tell_main(&keeper.ended);
  return NULL;
}

/* ---- the main thread --------------------------------------------------- */

static int refuse(const char *format, ...)
    __attribute__((format(printf, 1, 2)));
static int refuse(const char *format, ...)
{
  va_list args;
  fputs("quorated: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  return 1;
}

static const char usage[] =
    "usage: quorated FILE...\n"
    "Hosts the nodes of replicated databases until SIGTERM or SIGINT.\n"
    "      --http [ADDRESS:]PORT  tells over HTTP what they are like: /, "
    "/status,\n"
    "                             /metrics, /ready, /live; on loopback unless "
    "an\n"
    "                             address is given\n"
    "      --watch FILE           hosts nothing: shows a node that runs "
    "elsewhere,\n"
    "                             live on a terminal, else once as text\n"
    "      --interval SECONDS     of --watch: shows it so often (1)\n"
    "  -h, --help                 prints this\n"
    "  -V, --version              prints the version\n";

static bool take_interval(const char *text)
{
  char *end;
  options.interval = strtod(text, &end);
  return end != text && *end == 0 && options.interval >= 0.1 &&
         options.interval <= 3600;
}

/* Whether what was given goes together. */
static bool fits(int argc)
{
  if (options.watch) return optind + 1 == argc && options.http == NULL;
  return optind < argc && options.interval == 0;
}

/* -1: go on; else the exit status. */
static int take_options(int argc, char **argv)
{
  static const struct option names[] = {
      {"help", no_argument, NULL, 'h'},
      {"version", no_argument, NULL, 'V'},
      {"http", required_argument, NULL, 't'},
      {"watch", no_argument, NULL, 'w'},
      {"interval", required_argument, NULL, 'i'},
      {NULL, 0, NULL, 0}};
  int c;
  while ((c = getopt_long(argc, argv, "hV", names, NULL)) != -1) {
    if (c == 'h' || c == 'V') {
      fputs(c == 'h' ? usage : "quorated " QUORATE_VERSION "\n", stdout);
      return fflush(stdout) == 0 ? 0 : 1;
    }
    if (c == 't') options.http = optarg;
    if (c == 'w') options.watch = true;
    if (c == '?' || (c == 'i' && !take_interval(optarg))) break;
  }
  if (c == -1 && fits(argc)) return -1;
  fputs(usage, stderr);
  return 2;
}

/* Of this thread and those that it starts. A descriptor, or -1. */
static int take_signals(void)
{
  sigset_t mine;
  sigemptyset(&mine);
  sigaddset(&mine, SIGTERM);
  sigaddset(&mine, SIGINT);
  signal(SIGHUP, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  pthread_sigmask(SIG_BLOCK, &mine, NULL);
  return signalfd(-1, &mine, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* The extension, as a part of this program: that it wants to stay loaded counts
   as a failure there. */
static int load_quorate(void)
{
  void (*init)(void) = (void (*)(void))sqlite3_quorate_init;
  sqlite3 *db = NULL;
  sqlite3_config(SQLITE_CONFIG_LOG, on_log, NULL);
  sqlite3_auto_extension(init);
  sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  sqlite3_cancel_auto_extension(init);
  if (sqlite3_vfs_find("quorate") == NULL)
    return refuse("cannot begin: SQLite %s does not take the extension",
                  sqlite3_libversion());
  if (sqlite3_open(":memory:", &keeper.db) != SQLITE_OK)
    return refuse("cannot begin: %s", sqlite3_errmsg(keeper.db));
  events_echo = echo;
  return 0;
}

static int take_files(unsigned n, char **names)
{
  keeper.files = calloc(n, sizeof(keeper.files[0]));
  if (keeper.files == NULL) return refuse("out of memory");
  for (unsigned i = 0; i < n; i++) {
    struct file *f = &keeper.files[keeper.n++];
    f->path = vfs_absolute(names[i]);
    if (f->path == NULL) return refuse("%s: no such path", names[i]);
    for (unsigned k = 0; k < i; k++)
      if (strcmp(keeper.files[k].path, f->path) == 0)
        return refuse("%s: given twice", names[i]);
  }
  return 0;
}

static void free_files(void)
{
  for (unsigned i = 0; i < keeper.n; i++)
    free(keeper.files[i].path);
  free(keeper.files);
  sqlite3_close(keeper.db);
}

/* The second signal: as if it were not caught at all. */
static void die_of(int number)
{
  sigset_t one;
  printer_drain();
  sigemptyset(&one);
  sigaddset(&one, number);
  signal(number, SIG_DFL);
  raise(number);
  pthread_sigmask(SIG_UNBLOCK, &one, NULL);
}

/* Until the keeper has ended. False: it has not, and the time is over. A second
   signal is one that somebody sent again: timeout(1) sends it to its child, and
   then at once to the whole group. */
static bool watch(int signal_fd)
{
  struct pollfd p[2] = {{.fd = signal_fd, .events = POLLIN},
                        {.fd = keeper.news_fd, .events = POLLIN}};
  uint64_t end = 0, signalled = 0; /* 0: no hurry yet; not yet */
  while (!atomic_load(&keeper.ended)) {
    struct signalfd_siginfo info;
    uint64_t now = clock_monotonic_ms();
    if (end && now >= end) return false;
    poll(p, 2, end ? (int)(end - now) : -1);
    bool got = read(signal_fd, &info, sizeof(info)) == sizeof(info);
    now = clock_monotonic_ms();
    if (got && signalled && now - signalled > TWICE_MS)
      die_of((int)info.ssi_signo);
    if (got && !signalled) {
      signalled = now;
      say("quorated", "SIG%s: stops", sigabbrev_np((int)info.ssi_signo));
      eventfd_write(keeper.stop_fd, 1);
    }
    eventfd_t news;
    eventfd_read(keeper.news_fd, &news);
    if (end == 0 && (got || atomic_load(&keeper.refused))) {
      end = now + STOP_MS;
      notify("STOPPING=1");
    }
  }
  return true;
}

/* The files' names are the keeper's. */
static int start_http(void)
{
  const char **paths = calloc(keeper.n, sizeof(*paths));
  struct text error = {"out of memory"};
  int rc = paths ? 0 : -1;
  for (unsigned i = 0; paths && i < keeper.n; i++)
    paths[i] = keeper.files[i].path;
  if (rc == 0) rc = http_start(options.http, keeper.n, paths, &error);
  free(paths);
  if (rc) return refuse("%s", error.s);
  say("quorated", "answers on http://%s/", http_listening());
  return 0;
}

static int look_on(const char *path)
{
  if (load_quorate() != 0) return 1;
  int status = watch_run(path, options.interval);
  sqlite3_close(keeper.db);
  return status;
}

int main(int argc, char **argv)
{
  node_fill_low_descriptors();
  int status = take_options(argc, argv);
  if (status >= 0) return status;
  if (options.watch) return look_on(argv[optind]);
  int signal_fd = take_signals();
  keeper.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  keeper.news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (signal_fd < 0 || keeper.stop_fd < 0 || keeper.news_fd < 0)
    return refuse("cannot begin: %s", errno_text(errno).s);
  if (load_quorate() != 0 ||
      take_files((unsigned)(argc - optind), argv + optind) != 0) {
    free_files();
    return 1;
  }
  int rc = printer_begin();
  if (rc == 0 && options.http && start_http() != 0) _exit(1);
  if (rc == 0) rc = pthread_create(&keeper.thread, NULL, keeper_main, NULL);
  if (rc) return refuse("cannot start a thread: %s", errno_text(rc).s);

  if (!watch(signal_fd)) {
    /* What is not done now is done by the next start. No exit(): it would take
       away what the threads use. */
    say("quorated", "not stopped in %d ms: ends nevertheless", STOP_MS);
    printer_drain();
    _exit(1);
  }
  pthread_join(keeper.thread, NULL);
  if (options.http && !http_join(LOOKERS_MS)) {
    printer_drain();
    _exit(atomic_load(&keeper.refused) || keeper.unclean);
  }
  free_files();
  status = atomic_load(&keeper.refused) || keeper.unclean;
  if (!printer_end()) _exit(status);
  return status;
}
