/*
** host.c: the host's side of sessions with attached processes.
**
** The loop accepts, and starts a thread for each session, which does for the
** other process's connection what that would do itself if the node were in its
** process: it waits for read indexes and for its turn, and hands transactions
** over, by the same functions, with a struct connection that stands for the
** other one. While it waits, an interrupt and the end of the session are seen by
** a look at the socket (session_peek()).
**
** The turn to write is the other connection's until it says LEAVE, sends its
** COMMIT or ends. As long as somebody waits for it, the loop asks the process
** for a sign of life, on its watch: if none comes for LEASE_MS, the turn is over.
** Its frames were not in -wal yet, so nothing needs to be undone; when it wakes
** up, its COMMIT is refused.
**
** When the node stops, sessions end without an answer: another host will answer.
** The list of sessions is guarded by the node's mutex.
*/
#include "call.h"
#include "database.h"
#include "vfs.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define HELLO_MS 2000
#define SEND_MS 10000 /* to a process that may be slow to read */
#define PING_MS 1000
#define LEASE_MS 10000
#define STACK_BYTES (256u << 10)
#define ACCEPTS 16 /* at once */

struct session {
  struct session *next;
  struct node *node;
  int fd;
  pthread_t thread;
  uint32_t process; /* its number in the control file; 0: not known yet */
  int pid;
  bool watch, ended;
  uint64_t asked, heard; /* a watch: ms; a sign of life; asked 0: is answered */
  uint64_t told;         /* ms: that its COMMIT is being taken over */
  /* of its thread */
  bool interrupt, gone;
  void *busy[2];
  struct connection c; /* stands for the one in the other process */
  struct session_buffer buffer;
};

struct host {
  int listener;
  uv_poll_t poll;
  bool open, paused; /* paused: no descriptor was left for one more */
  struct session *sessions;
};

/* ---- messages ---------------------------------------------------------- */

static struct session *session_of(struct connection *c)
{
  return (struct session *)(void *)((char *)c - offsetof(struct session, c));
}

/* The other connection wants its wait to end, or is gone. */
static bool is_interrupted(struct connection *c)
{
  struct session *s = session_of(c);
  int type = session_peek(s->fd);
  if (type == SESSION_INTERRUPT) s->interrupt = true;
  if (type < 0) s->gone = true;
  return s->interrupt || s->gone;
}

static void say(struct session *s, const struct session_message *m)
{
  if (session_send(s->fd, m, SEND_MS) != 0) s->gone = true;
}

/* What a node refuses that stops, the next host may not. */
static void answer(struct session *s, int rc, struct session_message *m)
{
  if (rc != SQLITE_OK && s->node->stopping) {
    s->gone = true;
    return;
  }
  m->type = SESSION_ANSWER;
  m->answer.rc = rc;
  m->answer.reason = rc == SQLITE_OK ? "" : s->c.reason.s;
  m->answer.view.epoch = s->c.epoch;
  m->answer.view.generation = s->c.reader.generation;
  memcpy(m->answer.view.header, &s->c.given, SESSION_HEADER);
  say(s, m);
}

static void answer_rc(struct session *s, int rc)
{
  struct session_message m = {0};
  answer(s, rc, &m);
}

/* The other connection's busy handler is asked whether to go on waiting. */
static int remote_handler(void *arg)
{
  struct session *s = arg;
  struct session_message m = {.type = SESSION_BUSY};
  say(s, &m);
  while (!s->gone) {
    if (session_receive(s->fd, &s->buffer, -1, &m) != 0) {
      s->gone = true;
    } else if (m.type == SESSION_SLEEP) {
      int us = (int)(m.us & INT32_MAX);
      m = (struct session_message){.type = SESSION_SLEPT};
      m.waited = writer_sleep(us);
      say(s, &m);
    } else if (m.type == SESSION_INTERRUPT) {
      s->interrupt = true;
    } else if (m.type == SESSION_HANDLED) {
      return m.more;
    } else {
      s->gone = true;
    }
  }
  return 0;
}

/* ---- requests ---------------------------------------------------------- */

static void do_barrier(struct session *s, const struct session_barrier *b)
{
  struct interrupt interrupt = {vfs_interrupted, &s->c};
  answer_rc(s, node_barrier(s->node, (enum read_level)b->level, b->wait_ms,
                            &interrupt, &s->c.reason));
}

/* From here on the turn lasts until writer_leave(): its frames are going to be in
   -wal, where those of the next one would be. False: it was over. */
static bool commit_begins(struct session *s)
{
  struct node *node = s->node;
  pthread_mutex_lock(&node->mutex);
  bool has = node->writer == &s->c;
  if (has) node->writer_commits = true;
  pthread_mutex_unlock(&node->mutex);
  return has;
}

/* With the turn comes the WRITE lock, at the head. */
static int begin_at_head(struct session *s)
{
  struct control_view view;
  control_look(s->node->map, &view); /* nobody else moves the head on */
  s->c.given = view.head;
  s->c.reader.generation = view.generation;
  return writer_begin(&s->c);
}

static void do_take(struct session *s, const struct session_take *take)
{
  struct session_message m = {0};
  struct connection *c = &s->c;
  int (*handler)(void *) = remote_handler;
  if (c->reserved) writer_leave(c);
  memcpy(&s->busy[0], &handler, sizeof(handler));
  s->busy[1] = s;
  c->busy = take->has_handler ? s->busy : NULL;
  c->write_wait = take->patience;
  c->refused_write = 0;
  int rc = take->drained ? writer_take_drained(c) : writer_take(c);
  if (rc == SQLITE_OK && take->begin) {
    rc = begin_at_head(s);
    if (rc != SQLITE_OK) writer_leave(c);
  }
  m.answer.extra[0] = c->reserved;
  m.answer.extra[1] = c->refused_write != 0;
  answer(s, rc, &m);
}

static void take_view(struct session *s, const struct session_view *view)
{
  memcpy(&s->c.given, view->header, sizeof(s->c.given));
  s->c.reader.generation = view->generation;
  s->c.epoch = view->epoch;
  s->c.ahead = view->ahead;
}

static void do_begin(struct session *s, const struct session_begin *begin)
{
  take_view(s, &begin->view);
  s->c.write_wait = begin->patience;
  s->c.refused_write = 0;
  int rc = writer_begin(&s->c);
  if (rc == SQLITE_OK) s->c.reserved = true;
  answer_rc(s, rc);
}

static void do_settled(struct session *s, const struct session_view *view)
{
  take_view(s, view);
  answer_rc(s, capture_may_read(&s->c));
}

static void do_resolve(struct session *s, uint64_t sequence)
{
  answer_rc(s, writer_resolve(&s->c, sequence, node_limits.fate_ms));
}

static void do_call(struct session *s, const struct session_rows *bytes)
{
  struct interrupt interrupt = {vfs_interrupted, &s->c};
  struct call call;
  struct answer told = {0};
  struct packer out = {0};
  struct session_message m = {.type = SESSION_ROWS};
  if (call_unpack(bytes->bytes, bytes->len, &call) != 0) {
    s->gone = true;
    return;
  }
  call.reader = s->c.slot;
  call_run(s->node, &call, &interrupt, &told);
  if (answer_pack(&told, &out) != 0 || s->node->stopping) s->gone = true;
  for (size_t at = 0, n; !s->gone && (at == 0 || at < out.len); at += n) {
    n = out.len - at < SESSION_BYTES_MAX ? out.len - at : SESSION_BYTES_MAX;
    m.rows.more = at + n < out.len;
    m.rows.bytes = out.data + at;
    m.rows.len = n;
    say(s, &m);
  }
  free(out.data);
  cells_clear(&call.arguments);
  answer_clear(&told);
}

/* ---- transactions ------------------------------------------------------ */

static int give_page(void *ctx, uint32_t i, uint8_t *page)
{
  const struct session_commit *commit = ctx;
  size_t size = commit->page_size;
  if (commit->file < 0) {
    memcpy(page, commit->pages + i * size, size);
    return 0;
  }
  ssize_t n =
      io_posix.pread(NULL, commit->file, page, size, (uint64_t)i * size);
  return n == (ssize_t)size ? 0 : n < 0 ? (int)n : -EIO;
}

/* Of a file they are read once: its sender could still change it. */
static uint32_t *page_numbers(const struct session_commit *commit)
{
  size_t bytes = (size_t)commit->count * sizeof(uint32_t);
  uint32_t *pgnos = malloc(bytes);
  if (pgnos == NULL) return NULL;
  if (commit->file < 0)
    memcpy(pgnos, commit->pgnos, bytes);
  else if (io_posix.pread(NULL, commit->file, pgnos, bytes,
                          (uint64_t)commit->count * commit->page_size) !=
           (ssize_t)bytes)
    memset(pgnos, 0, bytes);
  return pgnos;
}

static const char *check_commit(struct session *s,
                                const struct session_commit *commit,
                                const uint32_t *pgnos)
{
  struct connection *c = &s->c;
  if (!commit_begins(s))
    return "transaction rolled back: the turn to write was over, this process "
           "gave no sign of life";
  if (commit->page_size != c->page_size || commit->n_page == 0 ||
      commit->view.epoch != c->epoch ||
      commit->view.generation != c->reader.generation ||
      memcmp(commit->view.header, &c->given, SESSION_HEADER) != 0)
    return "transaction rolled back: this node may no longer write";
  if (pgnos == NULL) return "transaction rolled back: out of memory";
  for (uint32_t i = 0; i < commit->count; i++)
    if (pgnos[i] == 0) return "transaction rolled back: it is malformed";
  return NULL;
}

/* A large one takes longer than anybody waits for its fate. */
static void tell_working(struct connection *c)
{
  const struct session_message ping = {.type = SESSION_PING};
  struct session *s = session_of(c);
  uint64_t now = clock_monotonic_ms();
  if (now - s->told < PING_MS) return;
  s->told = now;
  session_send(s->fd, &ping, 0);
}

static void do_commit(struct session *s, struct session_commit *commit)
{
  struct connection *c = &s->c;
  s->told = clock_monotonic_ms();
  uint32_t *pgnos = page_numbers(commit);
  const char *why = check_commit(s, commit, pgnos);
  int rc = VFS_REJECTED;
  if (why) {
    text_set(&c->reason, "%s", why);
  } else {
    text_set(&c->reason, "%s", "");
    rc =
        capture_for(c, commit->count, commit->n_page, pgnos, give_page, commit);
  }
  writer_leave(c);
  if (commit->file >= 0) close(commit->file);
  free(pgnos);
  if (rc == SQLITE_OK) rc = capture_wait(c);
  answer_rc(s, rc);
}

/* ---- sessions ---------------------------------------------------------- */

static void serve(struct session *s, struct session_message *m)
{
  s->interrupt = false;
  switch (m->type) {
  case SESSION_BARRIER: do_barrier(s, &m->barrier); break;
  case SESSION_TAKE: do_take(s, &m->take); break;
  case SESSION_BEGIN: do_begin(s, &m->begin); break;
  case SESSION_LEAVE: writer_leave(&s->c); break;
  case SESSION_SETTLED: do_settled(s, &m->view); break;
  case SESSION_COMMIT: do_commit(s, &m->commit); break;
  case SESSION_RESOLVE: do_resolve(s, m->sequence); break;
  case SESSION_CALL: do_call(s, &m->rows); break;
  case SESSION_INTERRUPT: break; /* too late */
  default: s->gone = true;
  }
}

static void serve_all(struct session *s)
{
  struct session_message m;
  while (!s->gone && !s->node->stopping) {
    if (session_receive(s->fd, &s->buffer, -1, &m) != 0) break;
    serve(s, &m);
  }
  writer_leave(&s->c);
}

static void serve_watch(struct session *s)
{
  struct session_message m;
  while (!s->node->stopping &&
         session_receive(s->fd, &s->buffer, -1, &m) == 0 &&
         m.type == SESSION_PONG) {
    pthread_mutex_lock(&s->node->mutex);
    s->asked = 0;
    s->heard = clock_monotonic_ms();
    pthread_mutex_unlock(&s->node->mutex);
  }
  control_reap(s->node->map);
}

/* Why it is not taken; NULL: it is. */
static const char *check_hello(struct session *s,
                               const struct session_hello *hello)
{
  struct control *control = s->node->shared;
  if (hello->version != SESSION_VERSION)
    return "it has another version of the extension";
  if (s->node->wal == NULL) return "the node is still joining";
  if (hello->process == 0 || hello->process > CONTROL_PROCESSES)
    return "its number is wrong";
  if (hello->kind == SESSION_KIND_WATCH) return NULL;
  if (hello->slot >= CONTROL_SLOTS ||
      atomic_load(&control->slots[hello->slot].owner) != hello->process)
    return "its slot is not its own";
  return NULL;
}

static bool greet(struct session *s)
{
  struct session_message m;
  int rc = session_receive(s->fd, &s->buffer, HELLO_MS, &m);
  if (rc != 0 || m.type != SESSION_HELLO) return false;
  struct session_hello hello = m.hello;
  const char *why = check_hello(s, &hello);
  if (why) {
    m = (struct session_message){.type = SESSION_REFUSED, .text = why};
    say(s, &m);
    return false;
  }
  pthread_mutex_lock(&s->node->mutex);
  s->process = hello.process;
  s->watch = hello.kind == SESSION_KIND_WATCH;
  pthread_mutex_unlock(&s->node->mutex);
  s->c.node = s->node;
  s->c.map = s->node->map;
  s->c.page_size = s->node->wal->page_size;
  s->c.interrupted = is_interrupted;
  s->c.working = tell_working;
  s->c.slot = &s->node->shared->slots[hello.slot];
  m = (struct session_message){.type = SESSION_WELCOME,
                               .start = s->node->started};
  say(s, &m);
  return !s->gone;
}

static void *session_main(void *arg)
{
  struct session *s = arg;
  pthread_setname_np(pthread_self(), "quorate session");
  if (greet(s)) {
    if (s->watch)
      serve_watch(s);
    else
      serve_all(s);
  }
  free(s->c.pending);
  free(s->c.copies);
  pthread_mutex_lock(&s->node->mutex);
  shutdown(s->fd, SHUT_RDWR); /* the descriptor is closed when it is joined */
  s->ended = true;
  pthread_mutex_unlock(&s->node->mutex);
  return NULL;
}

static int start_session(struct node *node, int fd, int pid)
{
  struct session *s = calloc(1, sizeof(*s));
  pthread_attr_t attr;
  if (s == NULL) return -ENOMEM;
  s->node = node;
  s->fd = fd;
  s->pid = pid;
  s->c.client.fd = s->c.draft = -1;
  /* All signals are blocked on it, as they are on the loop's thread. */
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, STACK_BYTES);
  int rc = pthread_create(&s->thread, &attr, session_main, s);
  pthread_attr_destroy(&attr);
  if (rc) {
    free(s);
    return -rc;
  }
  pthread_mutex_lock(&node->mutex);
  s->next = node->host->sessions;
  node->host->sessions = s;
  pthread_mutex_unlock(&node->mutex);
  return 0;
}

/* Joins those whose threads have ended, or all. */
static void reap(struct node *node, bool all)
{
  struct session *ended = NULL;
  pthread_mutex_lock(&node->mutex);
  for (struct session **at = &node->host->sessions; *at;) {
    struct session *s = *at;
    if (all) shutdown(s->fd, SHUT_RDWR);
    if (!all && !s->ended) {
      at = &s->next;
      continue;
    }
    *at = s->next;
    s->next = ended;
    ended = s;
  }
  pthread_mutex_unlock(&node->mutex);
  while (ended) {
    struct session *s = ended;
    ended = s->next;
    pthread_join(s->thread, NULL);
    close(s->fd);
    free(s);
  }
}

/* ---- the loop ---------------------------------------------------------- */

static void on_ready(uv_poll_t *poll, int status, int events)
{
  struct node *node = poll->data;
  struct host *host = node->host;
  (void)status;
  (void)events;
  for (int i = 0; i < ACCEPTS; i++) {
    struct session_peer peer = {0};
    int fd = -1, rc = session_accept(host->listener, &fd, &peer);
    if (rc == -EAGAIN) return;
    if (rc == -EPERM)
      events_add(&node->events, "process %d of user %d may not attach",
                 (int)peer.pid, (int)peer.uid);
    else if (rc == 0)
      rc = start_session(node, fd, (int)peer.pid);
    if (rc == 0 || rc == -EPERM || rc == -ECONNABORTED) continue;
    if (fd >= 0) close(fd);
    /* Looking again at once would be in vain. */
    if (!host->paused)
      events_add(&node->events, "a process cannot be attached: %s",
                 errno_text(-rc).s);
    uv_poll_stop(&host->poll);
    host->paused = true;
    return;
  }
}

/* Whether the process whose connection has the turn must give a sign of life;
   *watch: its watch, NULL if that has ended. Mutex held. */
static bool to_ask(struct node *node, uint64_t now, struct session **watch)
{
  struct connection *writer = node->writer;
  bool wanted = node->places || node->upgrading || node->recalled;
  if (writer == NULL || writer->slot == NULL || node->writer_commits ||
      !wanted || now - node->writer_since < PING_MS)
    return false;
  /* Not the slot's owner: that may be another one's by now. */
  const struct session *its = session_of(writer);
  struct session *s = node->host->sessions;
  while (s && (!s->watch || s->ended || s->process != its->process ||
               s->pid != its->pid))
    s = s->next;
  *watch = s;
  return true;
}

/* The turn of a process is over if it says nothing, or has ended: somebody else
   may still hold its session open, such as a child that it made with a bare
   clone(2). The process, or 0. Mutex held. */
static int end_turn(struct node *node, uint64_t now)
{
  const struct session_message ping = {.type = SESSION_PING};
  struct session *s;
  if (!to_ask(node, now, &s)) return 0;
  if (s == NULL || (s->asked && now - s->asked > LEASE_MS)) {
    int pid = session_of(node->writer)->pid;
    node->writer = NULL;
    writer_next(node);
    return pid;
  }
  if (s->asked == 0 && now - s->heard >= PING_MS) {
    s->asked = now;
    session_send(s->fd, &ping, 0);
  }
  return 0;
}

void host_tick(struct node *node)
{
  struct host *host = node->host;
  reap(node, false);
  if (host->paused) {
    host->paused = false;
    uv_poll_start(&host->poll, UV_READABLE, on_ready);
  }
  pthread_mutex_lock(&node->mutex);
  int over = end_turn(node, clock_monotonic_ms());
  pthread_mutex_unlock(&node->mutex);
  if (over)
    events_add(&node->events,
               "process %d gives no sign of life: its transaction is over",
               over);
}

void host_count(struct node *node, unsigned *processes, unsigned *sessions)
{
  *processes = *sessions = 0;
  pthread_mutex_lock(&node->mutex);
  for (const struct session *s = node->host->sessions; s; s = s->next) {
    if (s->ended || s->process == 0) continue;
    *(s->watch ? processes : sessions) += 1;
  }
  pthread_mutex_unlock(&node->mutex);
}

int host_open(struct node *node, struct text *error)
{
  struct host *host = calloc(1, sizeof(*host));
  if (host == NULL) {
    text_set(error, "out of memory");
    return -ENOMEM;
  }
  host->listener = -1;
  int rc = session_listen(node->dir, &host->listener);
  if (rc == 0) rc = uv_poll_init(&node->loop, &host->poll, host->listener);
  if (rc == 0) {
    host->open = true;
    host->poll.data = node;
    rc = uv_poll_start(&host->poll, UV_READABLE, on_ready);
  }
  node->host = host;
  if (rc) text_set(error, "%s/sock: %s", node->dir, errno_text(-rc).s);
  return rc;
}

void host_deafen(struct node *node)
{
  struct host *host = node->host;
  if (host == NULL || !host->open) return;
  host->open = false;
  host->paused = false;
  uv_poll_stop(&host->poll);
  uv_close((uv_handle_t *)&host->poll, NULL);
}

void host_close(struct node *node)
{
  struct host *host = node->host;
  if (host == NULL) return;
  reap(node, true);
  if (host->listener >= 0) session_unlisten(node->dir, host->listener);
  host->listener = -1;
}

void host_free(struct node *node)
{
  free(node->host);
}

void host_abandon(struct node *node, bool still)
{
  struct host *host = node->host;
  if (host == NULL) return;
  if (host->listener >= 0) close(host->listener);
  for (struct session *s = still ? host->sessions : NULL; s; s = s->next)
    close(s->fd);
}
