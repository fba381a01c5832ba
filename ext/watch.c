/*
** watch.c: a view of a node that runs in another process.
**
** The asker, a thread of its own, is attached to the node as any process that
** opens its file, as one that never hosts it (registry_guest), and asks in SQL
** what there is to see. The main thread draws the newest of that, whenever there
** is something new, the window has another size, or a second is over: so q works
** while an answer is waited for.
**
** A picture is made line by line, each at its place, and written at once: nothing
** scrolls, and nothing of the picture before is left. The alternate screen keeps
** what was on the terminal. Whatever ends the program but SIGKILL, the terminal
** is given back as it was; SIGTSTP gives it back for as long as it lasts.
**
** What is not a terminal gets the same lines, without a place and a length.
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "watch.h"

#include "database.h"
#include "report.h"
#include "vfs.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#define EVENTS 64
#define HISTORY 512
#define PLAIN_EVENTS 10
#define STALE_MS 5000 /* what is shown is not new any more */
#define WIDEST 500 /* a window is no wider, or what is right of it is empty */

struct row {
  char name[RAFT_NAME_MAX], role[16], state[16];
  bool known;
  int64_t match, lag, lag_ms, contact_ms; /* the last three: -1: unknown */
  double round_trip;                      /* ms; negative: unknown */
};

/* What there is to see. */
struct view {
  uint64_t ms;     /* when; 0: never */
  struct text why; /* it is not known, or not any more */
  char name[RAFT_NAME_MAX], cluster[24], role[16], leader[RAFT_NAME_MAX];
  int64_t term, commit, applied, last, checkpoint, voters, frames, log_bytes;
  bool serving, writable;
  struct text reason, warning, progress;
  struct numbers numbers;
  double transactions, commits, reads; /* a second; negative: unknown */
  struct row members[RAFT_MEMBERS_MAX];
  unsigned n_members;
  struct event events[EVENTS]; /* newest last */
  char times[EVENTS][12];
  unsigned n_events;
};

static struct {
  const char *path;
  sqlite3 *db;
  double interval;
  bool utf8, colours;
  pthread_mutex_t mutex;
  struct view view;       /* the newest; the mutex guards it */
  float history[HISTORY]; /* transactions a second; a ring; likewise */
  unsigned n_history;
  int news; /* an eventfd */
} watch = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- asking -------------------------------------------------------------- */

static const char *column(sqlite3_stmt *stmt, int i)
{
  const char *text = (const char *)sqlite3_column_text(stmt, i);
  return text ? text : "";
}

static int64_t number(sqlite3_stmt *stmt, int i)
{
  return sqlite3_column_type(stmt, i) == SQLITE_NULL
             ? -1
             : sqlite3_column_int64(stmt, i);
}

/* Calls take() for each row. */
static bool each(const char *sql, struct view *view,
                 void (*take)(sqlite3_stmt *stmt, struct view *view))
{
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(watch.db, sql, -1, &stmt, NULL);
  while (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW)
    take(stmt, view);
  int end = sqlite3_finalize(stmt);
  if (rc == SQLITE_OK && end == SQLITE_OK) return true;
  text_set(&view->why, "%s", sqlite3_errmsg(watch.db));
  return false;
}

/* Text for a terminal: some of it is another node's. */
static void take_text(char *out, size_t size, const char *text)
{
  snprintf(out, size, "%s", text);
  text_plain(out);
}

static void take_status(sqlite3_stmt *s, struct view *v)
{
  int64_t *const numbers[] = {&v->term,   &v->commit,     &v->applied,
                              &v->last,   &v->checkpoint, &v->voters,
                              &v->frames, &v->log_bytes};
  v->ms = clock_monotonic_ms();
  take_text(v->name, sizeof(v->name), column(s, 0));
  take_text(v->cluster, sizeof(v->cluster), column(s, 1));
  take_text(v->role, sizeof(v->role), column(s, 2));
  take_text(v->leader, sizeof(v->leader), column(s, 3));
  for (int i = 0; i < 8; i++)
    *numbers[i] = number(s, 4 + i);
  v->serving = number(s, 12) > 0;
  v->writable = number(s, 13) > 0;
  take_text(v->reason.s, sizeof(v->reason.s), column(s, 14));
  take_text(v->warning.s, sizeof(v->warning.s), column(s, 15));
  take_text(v->progress.s, sizeof(v->progress.s), column(s, 16));
}

static void take_member(sqlite3_stmt *s, struct view *v)
{
  if (v->n_members == RAFT_MEMBERS_MAX) return;
  struct row *row = &v->members[v->n_members++];
  take_text(row->name, sizeof(row->name), column(s, 0));
  take_text(row->role, sizeof(row->role), column(s, 1));
  take_text(row->state, sizeof(row->state), column(s, 2));
  row->match = number(s, 3);
  row->known = row->match >= 0;
  row->lag = number(s, 4);
  row->lag_ms = number(s, 5);
  row->contact_ms = number(s, 6);
  row->round_trip = sqlite3_column_type(s, 7) == SQLITE_NULL
                        ? -1
                        : sqlite3_column_double(s, 7);
}

static void take_event(sqlite3_stmt *s, struct view *v)
{
  if (v->n_events == EVENTS) return;
  struct event *event = &v->events[v->n_events];
  const char *time = column(s, 0);
  size_t n = strlen(time);
  /* "2026-11-28 17:37:55.130" */
  take_text(v->times[v->n_events], 9, n > 11 ? time + 11 : time);
  take_text(event->text, sizeof(event->text), column(s, 1));
  v->n_events++;
}

static bool fill(struct view *v)
{
  return each("SELECT name, cluster, role, leader, term, commit_index,"
              " applied_index, last_index, checkpoint_index, voters,"
              " wal_frames, log_bytes, serving, writable, reason, warning,"
              " progress FROM quorate_status",
              v, take_status) &&
         each("SELECT name, role, state, match_index, lag_entries, lag_ms,"
              " last_contact_ms, round_trip_ms FROM quorate_members"
              " ORDER BY name",
              v, take_member) &&
         each("SELECT time, event FROM (SELECT rowid AS n, time, event"
              " FROM quorate_events ORDER BY n DESC LIMIT 64) ORDER BY n",
              v, take_event) &&
         report_numbers(watch.db, &v->numbers);
}

static bool open_db(struct text *why)
{
  if (watch.db) return true;
  int rc = report_open(watch.path, &watch.db);
  if (rc == SQLITE_OK && vfs_connection(watch.db, "main")) return true;
  if (!registry_refusal(watch.path, why))
    text_set(why, "%s",
             rc == SQLITE_OK ? "it is hosted by another user"
                             : sqlite3_errmsg(watch.db));
  sqlite3_close(watch.db);
  watch.db = NULL;
  return false;
}

/* One look; *view had the one before. */
static void look(struct view *view)
{
  struct view *next = calloc(1, sizeof(*next));
  if (next == NULL) return;
  if (open_db(&next->why) && fill(next)) {
    const struct numbers *now = &next->numbers, *then = &view->numbers;
    uint64_t ms = now->ms - then->ms;
    if (then->ms == 0) ms = 0;
    next->transactions = report_rate(now->transactions, then->transactions, ms);
    next->commits = report_rate(now->commits, then->commits, ms);
    next->reads = report_rate(now->reads, then->reads, ms);
    if (next->ms == 0) text_set(&next->why, "it has no node");
    *view = *next;
  } else {
    view->why = next->why; /* what was seen last stays */
    view->numbers.ms = 0;
    text_plain(view->why.s);
  }
  free(next);
}

static void *asker_main(void *arg)
{
  static struct view view;
  (void)arg;
  for (;;) {
    uint64_t began = clock_monotonic_ms();
    look(&view);
    pthread_mutex_lock(&watch.mutex);
    watch.view = view;
    if (!view.why.s[0] && view.transactions >= 0)
      watch.history[watch.n_history++ % HISTORY] = (float)view.transactions;
    pthread_mutex_unlock(&watch.mutex);
    eventfd_write(watch.news, 1);
    uint64_t took = clock_monotonic_ms() - began;
    uint64_t pace = (uint64_t)(watch.interval * 1000);
    uint64_t ms = took < pace ? pace - took : 0;
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&pause, NULL);
  }
  return NULL;
}

/* ---- a picture ----------------------------------------------------------- */

/* As it is written; width 0: as plain text. */
struct picture {
  struct packer out;
  unsigned width, height, row, column;
  bool hidden; /* this line is below the window */
};

enum look { PLAIN, BOLD, DIM, GOOD, BAD, TITLE };

static void begin_line(struct picture *p)
{
  p->column = 0;
  /* The last line is another one's. */
  p->hidden = p->width && p->row + 1 >= p->height;
  if (p->width && !p->hidden) json_printf(&p->out, "\033[%u;1H", p->row + 1);
}

static void end_line(struct picture *p)
{
  if (!p->hidden) json_printf(&p->out, p->width ? "\033[K" : "\n");
  p->row++;
}

/* Columns that a character takes, its bytes in *n; what is none is one column. */
static unsigned columns_of(const char *text, size_t *n)
{
  mbstate_t state = {0};
  wchar_t c;
  size_t len = mbrtowc(&c, text, strlen(text), &state);
  if (len == 0 || len > MB_CUR_MAX) {
    *n = 1;
    return 1;
  }
  int width = wcwidth(c);
  *n = len;
  return width < 0 ? 1 : (unsigned)width;
}

/* What does not fit is left out; what the terminal could not show is a ?. */
static void add_text(struct picture *p, const char *text)
{
  size_t n;
  for (; *text && !p->hidden; text += n) {
    unsigned columns = columns_of(text, &n);
    if (p->width && p->column + columns > p->width) return;
    bool shown = (unsigned char)*text < 0x80 || (watch.utf8 && n > 1);
    pack_bytes(&p->out, shown ? text : "?", shown ? n : 1);
    p->column += columns;
  }
}

static void add(struct picture *p, enum look look, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void add(struct picture *p, enum look look, const char *format, ...)
{
  static const char *const on[] = {"",         "\033[1m",  "\033[2m",
                                   "\033[32m", "\033[31m", "\033[7m"};
  char text[TEXT_MAX + 256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  bool marks = p->width && look != PLAIN &&
               (watch.colours || (look != GOOD && look != BAD));
  if (marks) json_printf(&p->out, "%s", on[look]);
  add_text(p, text);
  if (marks) json_printf(&p->out, "\033[0m");
}

/* Up to a column. */
static void fill_to(struct picture *p, unsigned column, enum look look)
{
  unsigned n = p->column < column ? column - p->column : 0;
  if (n > 0) add(p, look, "%*s", (int)n, "");
}

/* What goes to the right end of a line, if there is room for it. */
static void add_right(struct picture *p, enum look look, const char *text)
{
  unsigned n = (unsigned)strlen(text);
  if (p->width && p->column + n + 2 > p->width) {
    fill_to(p, p->width, look);
    return;
  }
  fill_to(p, p->width ? p->width - n - 1 : p->column + 3, look);
  add(p, look, "%s", text);
  if (p->width) add(p, look, " ");
}

static unsigned room(const struct picture *p)
{
  return p->height > p->row ? p->height - p->row : 0;
}

/* ---- what is in it ------------------------------------------------------- */

struct shown {
  char s[32];
};

/* A number, or a dash. */
static struct shown shown(double value, int digits, const char *unit)
{
  struct shown t;
  if (value < 0)
    snprintf(t.s, sizeof(t.s), "-");
  else
    snprintf(t.s, sizeof(t.s), "%.*f%s", value < 99.5 ? digits : 0, value,
             unit);
  return t;
}

static struct shown shown_ms(double seconds)
{
  double ms = seconds * 1e3;
  return shown(seconds < 0 ? -1 : ms, ms < 9.95 ? 2 : 1, " ms");
}

static void draw_head(struct picture *p, const struct view *v)
{
  time_t now = time(NULL);
  struct tm tm;
  char clock[16], cluster[40];
  localtime_r(&now, &tm);
  strftime(clock, sizeof(clock), "%H:%M:%S", &tm);
  snprintf(cluster, sizeof(cluster), "cluster %s", v->cluster);
  begin_line(p);
  add(p, TITLE, " quorate  %s", watch.path);
  add_right(p, TITLE, v->cluster[0] ? cluster : "");
  end_line(p);
  begin_line(p);
  if (v->ms) {
    bool fine =
        strcmp(v->role, "failed") != 0 && strcmp(v->role, "candidate") != 0;
    add(p, BOLD, " %s", v->name);
    add(p, fine ? GOOD : BAD, "  %s", v->role);
    add(p, PLAIN, " in term %lld, ", (long long)v->term);
    if (v->leader[0])
      add(p, PLAIN, "leader %s", v->leader);
    else
      add(p, BAD, "no leader");
    add(p, v->serving ? PLAIN : BAD, v->serving ? ", reads" : ", no reads");
    add(p, v->writable ? PLAIN : BAD, v->writable ? ", writes" : ", no writes");
  }
  if (p->width) add_right(p, DIM, clock);
  end_line(p);
}

/* Only if there is something to say. */
static void draw_remark(struct picture *p, enum look look, const char *what,
                        const char *text)
{
  if (!text[0] || room(p) < 3) return;
  begin_line(p);
  add(p, look, " %s%s", what, text);
  end_line(p);
}

static void draw_numbers(struct picture *p, const struct view *v)
{
  const struct numbers *n = &v->numbers;
  begin_line(p);
  add(p, DIM, " entries  ");
  add(p, PLAIN, "applied %lld  committed %lld  last %lld  in the file %lld",
      (long long)v->applied, (long long)v->commit, (long long)v->last,
      (long long)v->checkpoint);
  end_line(p);
  begin_line(p);
  add(p, DIM, " files    ");
  add(p, PLAIN, "WAL %lld pages  log %s", (long long)v->frames,
      progress_size((double)v->log_bytes).s);
  if (n->ms)
    add(p, PLAIN, "  %s waiting to write  fsync p99 %s",
        shown(n->waiting, 0, "").s, shown_ms(n->fsync).s);
  end_line(p);
  begin_line(p);
  add(p, DIM, " commits  ");
  add(p, BOLD, "%s", shown(v->transactions, 1, "/s").s);
  add(p, PLAIN, "  from here %s  p50 %s  p99 %s  reads %s",
      shown(v->commits, 1, "/s").s, shown_ms(n->ms ? n->commit_p50 : -1).s,
      shown_ms(n->ms ? n->commit_p99 : -1).s, shown(v->reads, 1, "/s").s);
  end_line(p);
}

/* Transactions a second, newest right. */
static void draw_history(struct picture *p, const float *history, unsigned n)
{
  static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  static const char *const signs[] = {"_", ".", ":", "-", "=", "+", "*", "#"};
  unsigned wide = p->width > 40 ? p->width - 30 : 10;
  float most = 0;
  if (wide > HISTORY) wide = HISTORY;
  if (n < wide) wide = n;
  for (unsigned i = n - wide; i < n; i++)
    if (history[i % HISTORY] > most) most = history[i % HISTORY];
  begin_line(p);
  add(p, DIM, "          ");
  for (unsigned i = n - wide; i < n; i++) {
    float part = most > 0 ? history[i % HISTORY] / most : 0;
    unsigned level = (unsigned)(part * 7 + 0.5f);
    add(p, GOOD, "%s", (watch.utf8 ? bars : signs)[level]);
  }
  if (n) add(p, DIM, "  at most %s", shown(most, 1, "/s").s);
  end_line(p);
}

static void draw_member(struct picture *p, const struct view *v,
                        const struct row *r)
{
  bool leads = strcmp(r->state, "leader") == 0;
  bool away = strcmp(r->state, "unreachable") == 0;
  begin_line(p);
  add(p, PLAIN, " %s ", leads ? (watch.utf8 ? "▶" : ">") : " ");
  add(p, strcmp(r->name, v->name) == 0 ? BOLD : PLAIN, "%s", r->name);
  fill_to(p, 15, PLAIN);
  add(p, PLAIN, " %-7s ", r->role);
  add(p, leads ? GOOD : away ? BAD : PLAIN, "%-11s", r->state);
  if (r->known) {
    add(p, PLAIN, " %10lld", (long long)r->match);
    add(p, r->lag > 1000 ? BAD : PLAIN, " %6lld", (long long)r->lag);
    add(p, r->lag_ms > 1000 ? BAD : PLAIN, " %7s",
        shown((double)r->lag_ms, 0, "").s);
    add(p, PLAIN, " %7s", shown(leads ? -1 : r->round_trip, 2, "").s);
    add(p, PLAIN, " %6s",
        leads || r->contact_ms < 0
            ? "-"
            : shown((double)r->contact_ms / 1e3, 1, "").s);
  }
  end_line(p);
}

static void draw_members(struct picture *p, const struct view *v, unsigned keep)
{
  unsigned left = room(p) > keep + 1 ? room(p) - keep - 1 : 0;
  unsigned n = v->n_members < left ? v->n_members : left;
  if (left == 0) return;
  begin_line(p);
  add(p, DIM, "   %-12s %-7s %-11s %10s %6s %7s %7s %6s", "node", "role",
      "state", "match", "lag", "lag ms", "trip ms", "heard");
  end_line(p);
  if (n < v->n_members && n > 0) n--;
  for (unsigned i = 0; i < n; i++)
    draw_member(p, v, &v->members[i]);
  if (n == v->n_members || left == n) return;
  begin_line(p);
  add(p, DIM, "   and %u more", v->n_members - n);
  end_line(p);
}

static void draw_events(struct picture *p, const struct view *v, unsigned keep)
{
  unsigned left = room(p) > keep + 1 ? room(p) - keep - 1 : 0;
  unsigned n = v->n_events < left ? v->n_events : left;
  if (left == 0) return;
  begin_line(p);
  add(p, DIM, " events (UTC)");
  end_line(p);
  for (unsigned i = v->n_events - n; i < v->n_events; i++) {
    begin_line(p);
    add(p, DIM, " %s ", v->times[i]);
    add(p, PLAIN, "%s", v->events[i].text);
    end_line(p);
  }
}

static void draw_gap(struct picture *p)
{
  if (p->width && p->height < 20) return;
  begin_line(p);
  end_line(p);
}

static void draw(struct picture *p, const struct view *v, const float *history,
                 unsigned n_history)
{
  /* What is needed below: the last line, and some events. */
  unsigned keep = p->height >= 16 ? 6 : 1;
  draw_head(p, v);
  draw_remark(p, BAD, "", v->why.s);
  if (v->ms) {
    draw_remark(p, BAD, "warning: ", v->warning.s);
    draw_remark(p, BOLD, "", v->progress.s);
    draw_gap(p);
    if (room(p) > 5) draw_numbers(p, v);
    if (p->width && room(p) > 8) draw_history(p, history, n_history);
    draw_gap(p);
    draw_members(p, v, keep);
    draw_gap(p);
    draw_events(p, v, 1);
  }
}

/* ---- a terminal ---------------------------------------------------------- */

static struct {
  struct termios before;
  volatile sig_atomic_t taken;
} terminal;

#define ENTER "\033[?1049h\033[?25l\033[2J"
#define LEAVE "\033[?25h\033[?1049l"

/* Whole, or as far as it goes. */
static bool write_all(const void *data, size_t n)
{
  const uint8_t *at = data;
  while (n > 0) {
    ssize_t done = write(STDOUT_FILENO, at, n);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && errno == EAGAIN) {
      struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
      if (poll(&p, 1, 1000) <= 0) return false;
      continue;
    }
    if (done <= 0) return false;
    at += done;
    n -= (size_t)done;
  }
  return true;
}

/* Also in a signal handler. */
static void give_back(void)
{
  if (!terminal.taken) return;
  terminal.taken = 0;
  write_all(LEAVE, sizeof(LEAVE) - 1);
  tcsetattr(STDOUT_FILENO, TCSANOW, &terminal.before);
}

static void take_terminal(void)
{
  struct termios raw = terminal.before;
  raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
  raw.c_cc[VMIN] = 0;
  raw.c_cc[VTIME] = 0;
  terminal.taken = 1;
  tcsetattr(STDOUT_FILENO, TCSANOW, &raw);
  write_all(ENTER, sizeof(ENTER) - 1);
}

static void on_fault(int number)
{
  give_back();
  signal(number, SIG_DFL);
  raise(number);
}

static int watch_signals(void)
{
  static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
  static const int others[] = {SIGTERM, SIGINT,  SIGHUP,
                               SIGQUIT, SIGTSTP, SIGWINCH};
  sigset_t mine;
  for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(faults[i], &action, NULL);
  }
  sigemptyset(&mine);
  for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
    sigaddset(&mine, others[i]);
  pthread_sigmask(SIG_BLOCK, &mine, NULL);
  return signalfd(-1, &mine, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What is left of the picture before goes; then the last line. */
static void draw_foot(struct picture *p, const struct view *v)
{
  uint64_t old = v->ms ? clock_monotonic_ms() - v->ms : 0;
  for (; p->row + 1 < p->height; end_line(p))
    begin_line(p);
  p->row = 0;
  json_printf(&p->out, "\033[%u;1H", p->height);
  p->column = 0;
  p->hidden = false;
  add(p, DIM, " q quits");
  if (old > STALE_MS)
    add(p, BAD, "  as of %s ago", progress_time((double)old / 1e3).s);
  end_line(p);
}

/* The newest, on all of the window as it is now. False: nobody takes it. */
static bool show(void)
{
  static struct view view;
  static float history[HISTORY];
  struct winsize size = {0};
  struct picture p = {.width = 80, .height = 24};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 &&
      size.ws_row > 0) {
    p.width = size.ws_col < WIDEST ? size.ws_col : WIDEST;
    p.height = size.ws_row;
  }
  pthread_mutex_lock(&watch.mutex);
  view = watch.view;
  memcpy(history, watch.history, sizeof(history));
  unsigned n = watch.n_history;
  pthread_mutex_unlock(&watch.mutex);
  draw(&p, &view, history, n);
  draw_foot(&p, &view);
  bool ok = !p.out.bad && write_all(p.out.data, p.out.len);
  free(p.out.data);
  return ok;
}

/* Until the program is continued. */
static void stand_still(void)
{
  give_back();
  kill(getpid(), SIGSTOP);
  take_terminal();
}

/* 0: go on; -1: it is the end; else the signal that is. */
static int take_signal(int fd)
{
  struct signalfd_siginfo info;
  while (read(fd, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGTSTP)
      stand_still();
    else if (info.ssi_signo != SIGWINCH)
      return (int)info.ssi_signo;
  }
  return 0;
}

/* False: q, or ctrl-D. */
static bool take_keys(struct pollfd *p)
{
  char keys[64];
  ssize_t n = read(STDIN_FILENO, keys, sizeof(keys));
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
    p->fd = -1; /* nobody types there; signals end it */
  for (ssize_t i = 0; i < n; i++)
    if (keys[i] == 'q' || keys[i] == 'Q' || keys[i] == 4) return false;
  return true;
}

/* The signal that ended it; or 0. */
static int run_live(int signals)
{
  struct pollfd p[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                       {.fd = signals, .events = POLLIN},
                       {.fd = watch.news, .events = POLLIN}};
  int end = 0;
  if (!isatty(STDIN_FILENO)) p[0].fd = -1;
  while (end == 0 && show()) {
    eventfd_t news;
    poll(p, 3, 1000);
    end = take_signal(signals);
    if (p[0].revents && !take_keys(&p[0])) break;
    if (p[2].revents) eventfd_read(watch.news, &news);
  }
  return end;
}

static int live(void)
{
  pthread_t asker;
  watch.news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int signals = watch_signals();
  if (watch.news < 0 || signals < 0 ||
      thread_start(&asker, asker_main, NULL) != 0) {
    fputs("quorated: cannot begin\n", stderr);
    return 1;
  }
  take_terminal();
  int end = run_live(signals);
  give_back();
  if (end) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, end);
    signal(end, SIG_DFL);
    raise(end);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
  }
  _exit(0); /* the asker may be anywhere */
}

/* ---- text ---------------------------------------------------------------- */

/* 0: it is to go on. */
static int print(struct view *view, bool first)
{
  struct picture p = {.height = 100000};
  struct view *few = view;
  look(view);
  if (few->n_events > PLAIN_EVENTS) {
    unsigned skip = few->n_events - PLAIN_EVENTS;
    memmove(few->events, few->events + skip,
            PLAIN_EVENTS * sizeof(few->events[0]));
    memmove(few->times, few->times + skip,
            PLAIN_EVENTS * sizeof(few->times[0]));
    few->n_events = PLAIN_EVENTS;
  }
  if (first && view->why.s[0]) {
    fprintf(stderr, "quorated: %s: %s\n", watch.path, view->why.s);
    return 1;
  }
  draw(&p, view, NULL, 0);
  if (watch.interval > 0) json_printf(&p.out, "\n");
  bool ok = !p.out.bad && write_all(p.out.data, p.out.len);
  free(p.out.data);
  return ok ? 0 : 1;
}

static int plain(void)
{
  static struct view view;
  const struct timespec second = {1, 0};
  /* How much a second it takes two looks to know. */
  if (watch.interval == 0) look(&view);
  if (view.ms && !view.why.s[0]) nanosleep(&second, NULL);
  int status = print(&view, true);
  while (status == 0 && watch.interval > 0) {
    uint64_t ms = (uint64_t)(watch.interval * 1000);
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&pause, NULL);
    status = print(&view, false);
  }
  sqlite3_close(watch.db);
  return status;
}

int watch_run(const char *path, double interval)
{
  char *absolute = vfs_absolute(path), *dir = NULL;
  const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
  struct stat st;
  setlocale(LC_CTYPE, "");
  watch.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
  watch.colours = !(no_colour && no_colour[0]);
  watch.path = absolute;
  watch.interval = interval;
  registry_guest = true;
  if (absolute && asprintf(&dir, "%s-quorate", absolute) < 0) dir = NULL;
  if (dir == NULL || stat(dir, &st) != 0 || !S_ISDIR(st.st_mode)) {
    fprintf(stderr, "quorated: %s: it is no node: there is no directory %s\n",
            path, dir ? dir : "beside it");
    free(dir);
    return 1;
  }
  free(dir);
  if (!isatty(STDOUT_FILENO) || term == NULL || strcmp(term, "dumb") == 0 ||
      tcgetattr(STDOUT_FILENO, &terminal.before) != 0)
    return plain();
  if (watch.interval == 0) watch.interval = 1;
  return live();
}
