/*
** attach.c: a process that is not the host of a node.
**
** Two kinds of session with the host. The watch is the process's own: a thread
** waits for its end, which is the end of the host, and answers when the host
** asks for a sign of life. When the host has ended, the thread tries to be the
** host itself: one process gets the lock, the others attach to it. The other
** kind belongs to a connection that needed the host for the first time; what it
** asks for is asked and answered in turn (session.c).
**
** Reading needs no host (control.h). A read index, the turn to write, what
** becomes of a transaction: these are the host's. When it has ended, whatever
** changed nothing is asked for again (VFS_MOVED tells the caller to begin anew,
** perhaps in this process). A transaction that was handed over is settled: the
** host had left word in the connection's slot before it could be in the log, and
** the next host says what became of it.
**
** While a process is attached it holds locks on the files that keep stock
** programs from checkpointing, so that snapshots stay whole when nobody hosts
** the node for a moment.
*/
#include "attach.h"
#include "call.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define CONNECT_MS 1000 /* to be accepted */
#define WELCOME_MS 2000 /* and welcomed */
#define SEND_MS 1000
#define LOOK_MS 50       /* pace of looking for an interrupt */
#define LEAST_MS 2000    /* time for another process to become the host */
#define SLACK_MS 2000    /* an answer may be late by that */
#define SILENT_MS 200    /* of a host that did not answer before */
#define HANDLER_MS 6000  /* the host looks around, for a turn */
#define CALL_MS 86400000 /* they end when they are interrupted */
#define RETRY_MS 10      /* the next host may still be starting */
#define RETRY_MOST_MS 1000

/* ---- fences ------------------------------------------------------------ */

int attach_fence(struct database *d)
{
  int rc = wal_fence(d->path, &d->db_fd, &d->shm_fd);
  if (rc) attach_unfence(d);
  return rc;
}

void attach_unfence(struct database *d)
{
  if (d->db_fd >= 0) close(d->db_fd);
  if (d->shm_fd >= 0) close(d->shm_fd);
  d->db_fd = d->shm_fd = -1;
}

/* ---- the watch --------------------------------------------------------- */

/* A session with the host. *start: which start of the host it is. */
static int greet(struct database *d, enum session_kind kind, uint32_t slot,
                 struct session_buffer *buffer, int *out, uint64_t *start,
                 struct text *error)
{
  struct session_peer peer;
  struct session_message m = {.type = SESSION_HELLO};
  int fd = -1, rc = session_connect(d->dir, CONNECT_MS, &fd, &peer);
  m.hello = (struct session_hello){.version = SESSION_VERSION,
                                   .kind = kind,
                                   .process = d->map->number,
                                   .slot = slot,
                                   .pid = (uint32_t)getpid()};
  if (rc == 0) rc = session_send(fd, &m, SEND_MS);
  if (rc == 0)
    rc = session_receive(fd, buffer,
                         atomic_load(&d->silent) ? SILENT_MS : WELCOME_MS, &m);
  if (rc == 0 && m.type == SESSION_REFUSED) {
    text_set(error, "%s: the process that hosts it refuses: %s", d->path,
             m.text);
    rc = -EBUSY;
  } else if (rc == 0 && m.type != SESSION_WELCOME) {
    rc = -EPROTO;
  } else if (rc == -EPROTO || rc == -EPIPE) {
    text_set(error, "%s: the process that hosts it broke off", d->path);
  } else if (rc == -EPERM) {
    text_set(error, "%s: it is hosted by process %d of another user", d->path,
             (int)peer.pid);
  }
  if (rc) {
    if (fd >= 0) close(fd);
    return rc;
  }
  *start = m.start;
  *out = fd;
  return 0;
}

static int connect_watch(struct database *d, struct text *error)
{
  struct session_buffer *buffer = malloc(sizeof(*buffer));
  uint64_t start = 0;
  int fd = -1;
  if (buffer == NULL) return -ENOMEM;
  int rc = greet(d, SESSION_KIND_WATCH, 0, buffer, &fd, &start, error);
  free(buffer);
  if (rc) return rc;
  pthread_mutex_lock(&d->mutex);
  d->watch = fd;
  d->attached = true;
  d->host = start;
  d->trouble.s[0] = 0;
  pthread_cond_broadcast(&d->changed);
  pthread_mutex_unlock(&d->mutex);
  return 0;
}

void attach_look(struct database *d)
{
  eventfd_write(d->wake, 1);
}

/* Until the host has ended: true; or nobody here needs it any more. */
static bool watch(struct database *d, struct session_buffer *buffer)
{
  struct session_message m;
  const struct session_message pong = {.type = SESSION_PONG};
  struct pollfd fds[] = {{.fd = d->watch, .events = POLLIN},
                         {.fd = d->wake, .events = POLLIN}};
  for (;;) {
    eventfd_t looks;
    int left = registry_linger(d);
    if (left == 0) return false;
    if (poll(fds, 2, left) < 0 && errno != EINTR) return true;
    if (fds[1].revents) eventfd_read(d->wake, &looks);
    if (fds[0].revents == 0) continue;
    int rc = session_receive(d->watch, buffer, 0, &m);
    if (rc == 0 && m.type == SESSION_PING)
      rc = session_send(d->watch, &pong, SEND_MS);
    if (rc && rc != -ETIMEDOUT) return true;
  }
}

static void unwatch(struct database *d)
{
  pthread_mutex_lock(&d->mutex);
  if (d->watch >= 0) close(d->watch);
  d->watch = -1;
  d->attached = false;
  pthread_mutex_unlock(&d->mutex);
}

bool attach_hosted(struct database *d)
{
  pthread_mutex_lock(&d->mutex);
  bool hosted = atomic_load(&d->node) || d->attached;
  pthread_mutex_unlock(&d->mutex);
  return hosted;
}

static void tell(struct database *d, const struct text *trouble)
{
  pthread_mutex_lock(&d->mutex);
  d->trouble = *trouble;
  pthread_cond_broadcast(&d->changed);
  pthread_mutex_unlock(&d->mutex);
}

void attach_over(struct database *d)
{
  pthread_mutex_lock(&d->mutex);
  d->live = false;
  d->trouble.s[0] = 0;
  pthread_cond_broadcast(&d->changed);
  pthread_mutex_unlock(&d->mutex);
}

/* Attaches to whoever is the host: -EALREADY. Or there is no more to watch: see
   registry_host(). */
static int find_next(struct database *d)
{
  struct text error = {""};
  struct pollfd look = {.fd = d->wake, .events = POLLIN};
  for (int pause = RETRY_MS;; pause *= 2) {
    eventfd_t looks;
    int rc = registry_host(d, &error);
    if (rc == 0 || rc == -ESHUTDOWN) return rc;
    if ((rc == -EWOULDBLOCK || rc == -EPERM) && connect_watch(d, &error) == 0)
      return -EALREADY;
    if (rc != -EWOULDBLOCK) tell(d, &error);
    /* The lock is free as soon as the one before is gone for good; who has it
       may need a while to start. */
    if (rc == -EWOULDBLOCK && pause > 5 * RETRY_MS) pause = 5 * RETRY_MS;
    if (pause > RETRY_MOST_MS) pause = RETRY_MOST_MS;
    if (poll(&look, 1, pause) > 0) eventfd_read(d->wake, &looks);
  }
}

static void *watch_main(void *arg)
{
  struct database *d = arg;
  struct session_buffer *buffer = d->watch_buffer;
  int rc = -EALREADY;
  pthread_setname_np(pthread_self(), "quorate watch");
  while (rc == -EALREADY) {
    rc = watch(d, buffer) ? 0 : -ESHUTDOWN;
    unwatch(d);
    if (rc == 0) rc = find_next(d);
  }
  free(buffer);
  if (rc == -ESHUTDOWN) registry_free(d);
  return NULL;
}

/* Nobody waits for its thread: whatever that does with the database, it does as
   long as that is live, or when it is its own. */
static int start_watch(struct database *d)
{
  pthread_t thread;
  d->wake = eventfd(0, EFD_CLOEXEC);
  if (d->wake < 0) return -errno;
  d->watch_buffer = malloc(sizeof(*d->watch_buffer));
  if (d->watch_buffer == NULL) return -ENOMEM;
  d->live = true;
  int rc = thread_start(&thread, watch_main, d);
  if (rc == 0) {
    pthread_detach(thread);
  } else {
    d->live = false;
    free(d->watch_buffer);
  }
  return rc;
}

/* What another host's database is like. */
static int check_view(struct database *d, struct text *error)
{
  struct control_view view;
  control_look(d->map, &view);
  if (view.page_size != 0) return 0;
  text_set(error, "%s: the node is still joining", d->path);
  return -EINVAL;
}

int attach_begin(struct database *d, struct text *error)
{
  attach_end(d); /* the watch of an earlier time has ended by itself */
  int rc = d->map ? 0 : control_open(&io_posix, d->dir, false, &d->map);
  if (rc) {
    text_set(error, "%s/control: %s", d->dir, errno_text(-rc).s);
    return rc;
  }
  rc = connect_watch(d, error);
  if (rc) return rc;
  rc = check_view(d, error);
  if (rc == 0 && d->shm_fd < 0) rc = attach_fence(d);
  if (rc == 0) rc = start_watch(d);
  if (rc) {
    if (rc != -EINVAL) text_set(error, "%s: %s", d->path, errno_text(-rc).s);
    unwatch(d);
  }
  return rc;
}

void attach_end(struct database *d)
{
  if (d->wake >= 0) close(d->wake);
  d->wake = -1;
}

void attach_abandon(struct database *d)
{
  if (d->watch >= 0) close(d->watch);
  if (d->wake >= 0) close(d->wake);
  d->watch = d->wake = -1;
  attach_unfence(d);
  for (struct client *client = d->clients; client; client = client->next) {
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
  }
}

/* ---- a connection's session -------------------------------------------- */

/* Where this thread waits, while it is in a busy handler. */
static _Thread_local struct connection *asking;

static void hang_up(struct connection *c)
{
  struct database *d = c->database;
  struct client *client = &c->client;
  if (client->fd < 0) return;
  pthread_mutex_lock(&d->mutex);
  for (struct client **at = &d->clients; *at; at = &(*at)->next)
    if (*at == client) {
      *at = client->next;
      break;
    }
  close(client->fd);
  client->fd = -1;
  pthread_mutex_unlock(&d->mutex);
}

void attach_close(struct connection *c)
{
  hang_up(c);
  free(c->client.buffer);
  c->client.buffer = NULL;
}

static void refuse(struct connection *c, const char *what)
{
  struct database *d = c->database;
  pthread_mutex_lock(&d->mutex);
  text_set(&c->reason, "%s: %s", what,
           d->trouble.s[0] ? d->trouble.s
           : d->live       ? "the process that hosted the node has ended, and "
                             "no other one hosts it"
                     : "the node was stopped in this process, and no other "
                       "one hosts it: open its file anew");
  pthread_mutex_unlock(&d->mutex);
}

/* Waits until there is a host again that is not `was`, here or elsewhere. */
static bool wait_for_host(struct connection *c, uint64_t was,
                          const struct timespec *end)
{
  struct database *d = c->database;
  struct text error = {""};
  bool in_time = true;
  pthread_mutex_lock(&d->mutex);
  if (!d->live && atomic_load(&d->node) == NULL) {
    /* The node was stopped here: whoever hosts it now was not told to us. */
    pthread_mutex_unlock(&d->mutex);
    return registry_attach(d, &error) == 0;
  }
  while (in_time && atomic_load(&d->node) == NULL &&
         (!d->attached || d->host == was) && !vfs_interrupted(c)) {
    struct timespec look = clock_deadline(LOOK_MS);
    bool last = clock_before(end, &look);
    in_time = pthread_cond_timedwait(&d->changed, &d->mutex,
                                     last ? end : &look) == 0 ||
              !last;
  }
  bool found = atomic_load(&d->node) || (d->attached && d->host != was);
  pthread_mutex_unlock(&d->mutex);
  return found;
}

/* The session has ended or cannot be had, with an error: VFS_MOVED when there is
   another host within `ms`. */
static int lost(struct connection *c, int rc, const char *what, unsigned ms)
{
  struct timespec end = clock_deadline(ms > LEAST_MS ? ms : LEAST_MS);
  uint64_t was = c->client.host;
  hang_up(c);
  if (rc == -ETIMEDOUT) {
    /* It stands still, or is very busy. Who asks again must not wait for as long
       again and again. */
    atomic_store(&c->database->silent, true);
    text_set(&c->reason, "%s: the process that hosts the node does not answer",
             what);
    return SQLITE_BUSY_TIMEOUT;
  }
  if (wait_for_host(c, was, &end)) return VFS_MOVED;
  refuse(c, what);
  return vfs_interrupted(c) ? SQLITE_INTERRUPT : SQLITE_BUSY_TIMEOUT;
}

/* Where the node was stopped, nobody watches: whoever hosts it now does not do
   so for ever. */
static int ensure_watch(struct database *d)
{
  struct text error = {""};
  int rc = d->live ? 0 : registry_attach(d, &error);
  return rc == 0 && atomic_load(&d->node) ? -EPIPE : rc;
}

/* 0: there is one. */
static int open_session(struct connection *c)
{
  struct database *d = c->database;
  struct client *client = &c->client;
  struct text error = {""};
  int fd = -1;
  if (client->fd >= 0) return 0;
  if (!vfs_enter(c)) return -EUSERS;
  uint32_t slot = (uint32_t)(c->reader.slot - d->map->control->slots);
  pthread_mutex_lock(&d->mutex);
  client->host = d->host; /* should it fail: that one is gone */
  pthread_mutex_unlock(&d->mutex);
  if (client->buffer == NULL) client->buffer = malloc(sizeof(*client->buffer));
  if (client->buffer == NULL) return -ENOMEM;
  int rc = ensure_watch(d);
  if (rc) return rc;
  rc = greet(d, SESSION_KIND_CONNECTION, slot, client->buffer, &fd,
             &client->host, &error);
  if (rc) return rc;
  pthread_mutex_lock(&d->mutex);
  client->fd = fd;
  client->next = d->clients;
  d->clients = client;
  pthread_mutex_unlock(&d->mutex);
  return 0;
}

static int send_message(struct connection *c, const struct session_message *m)
{
  /* Of a commit over several databases that SQLite gave up: its answer is the
     next one. */
  if (c->sent) capture_wait(c);
  int rc = open_session(c);
  return rc ? rc : session_send(c->client.fd, m, SEND_MS);
}

/* Asks the connection's busy handler, for the host. It may have been interrupted
   in there; as long as the host asks again and again, receive() never looks. */
static int run_handler(struct connection *c)
{
  const struct session_message stop = {.type = SESSION_INTERRUPT};
  struct session_message m = {.type = SESSION_HANDLED};
  struct connection *outer = asking;
  int (*handler)(void *) = NULL;
  if (c->busy) memcpy(&handler, &c->busy[0], sizeof(handler));
  asking = c;
  if (handler) m.more = handler(c->busy[1]) != 0;
  asking = outer;
  if (c->client.fd < 0) return -EPIPE;
  int rc = vfs_interrupted(c) ? session_send(c->client.fd, &stop, SEND_MS) : 0;
  return rc ? rc : session_send(c->client.fd, &m, SEND_MS);
}

/* The next message, for which the host may take `ms`, and a bit. */
static int receive(struct connection *c, const struct interrupt *interrupt,
                   uint64_t ms, struct session_message *m)
{
  const struct session_message stop = {.type = SESSION_INTERRUPT};
  bool silent = atomic_load(&c->database->silent), said = false;
  uint64_t end = clock_monotonic_ms() + (silent ? SILENT_MS : ms + SLACK_MS);
  for (;;) {
    int rc = session_receive(c->client.fd, c->client.buffer, LOOK_MS, m);
    if (rc == 0) atomic_store(&c->database->silent, false);
    if (rc != -ETIMEDOUT || clock_monotonic_ms() > end) return rc;
    if (said || !interrupt->raised(interrupt->ctx)) continue;
    rc = session_send(c->client.fd, &stop, SEND_MS);
    if (rc) return rc;
    said = true;
  }
}

/* A request and its answer. Errors: the session is of no use any more. */
static int exchange(struct connection *c, const struct session_message *request,
                    const struct interrupt *interrupt, uint64_t ms,
                    struct session_message *answer)
{
  int rc = send_message(c, request);
  while (rc == 0) {
    rc = receive(c, interrupt, ms, answer);
    if (rc) break;
    if (answer->type == SESSION_ANSWER) return 0;
    rc = answer->type == SESSION_BUSY ? run_handler(c) : -EPROTO;
  }
  return rc;
}

/* The same; an SQLite result code, and the reason is the connection's. */
static int ask(struct connection *c, const struct session_message *request,
               uint64_t ms, const char *what, struct session_message *answer)
{
  struct interrupt interrupt = {vfs_interrupted, c};
  int rc = exchange(c, request, &interrupt, ms, answer);
  if (rc) return lost(c, rc, what, (unsigned)ms);
  rc = answer->answer.rc;
  if (rc != SQLITE_OK && answer->answer.reason)
    text_set(&c->reason, "%s", answer->answer.reason);
  return rc;
}

bool attach_sleep(int us)
{
  struct connection *c = asking;
  struct interrupt interrupt = {vfs_interrupted, c};
  struct session_message m = {.type = SESSION_SLEEP, .us = (uint32_t)us};
  if (c == NULL || c->client.fd < 0) return false;
  int rc = session_send(c->client.fd, &m, SEND_MS);
  if (rc == 0) rc = receive(c, &interrupt, (uint64_t)us / 1000, &m);
  if (rc == 0 && m.type == SESSION_SLEPT) return m.waited;
  hang_up(c);
  return false;
}

/* ---- requests ---------------------------------------------------------- */

static struct session_view view_of(const struct connection *c)
{
  struct session_view view = {
      .generation = c->reader.generation, .epoch = c->epoch, .ahead = c->ahead};
  memcpy(view.header, &c->given, sizeof(view.header));
  return view;
}

int attach_barrier(struct connection *c, enum read_level level, unsigned ms)
{
  struct session_message answer,
      m = {.type = SESSION_BARRIER,
           .barrier = {.level = (uint8_t)level, .wait_ms = ms}};
  return ask(c, &m, ms, level == LEVEL_WRITE ? "write refused" : "read refused",
             &answer);
}

int attach_take(struct connection *c, bool drained)
{
  unsigned patience = writer_patience(c, c->refused_write, 0);
  struct session_message answer, m = {.type = SESSION_TAKE};
  m.take = (struct session_take){.patience = patience,
                                 .drained = drained,
                                 .has_handler = c->busy && c->busy[0],
                                 .begin = !drained};
  /* As long as others write and the busy handler wants to wait, it waits. */
  int rc = ask(c, &m, patience + HANDLER_MS, "write refused", &answer);
  c->reserved = rc == SQLITE_OK && answer.answer.extra[0] != 0;
  if (rc == SQLITE_BUSY_TIMEOUT && (c->client.fd < 0 || answer.answer.extra[1]))
    c->refused_write = clock_monotonic_ms();
  return rc;
}

int attach_upgrade(struct connection *c)
{
  unsigned patience = writer_patience(c, c->refused_write, 0);
  struct session_message answer, m = {.type = SESSION_BEGIN};
  m.begin = (struct session_begin){view_of(c), patience};
  int rc = ask(c, &m, patience + HANDLER_MS, "write refused", &answer);
  if (rc == SQLITE_BUSY_TIMEOUT) c->refused_write = clock_monotonic_ms();
  if (rc == SQLITE_OK) {
    c->reserved = true;
    c->epoch = answer.answer.view.epoch;
  }
  return rc;
}

void attach_leave(struct connection *c)
{
  const struct session_message m = {.type = SESSION_LEAVE};
  c->reserved = false;
  if (c->client.fd >= 0 && session_send(c->client.fd, &m, SEND_MS) != 0)
    hang_up(c);
}

int attach_settled(struct connection *c)
{
  struct session_message answer, m = {.type = SESSION_SETTLED};
  m.view = view_of(c);
  int rc = ask(c, &m, node_limits.fate_ms, "read refused", &answer);
  return rc == VFS_MOVED ? VFS_REJECTED : rc;
}

/* ---- transactions ------------------------------------------------------ */

void attach_commit(struct connection *c, const struct session_commit *commit)
{
  struct session_message m = {.type = SESSION_COMMIT, .commit = *commit};
  struct control_slot *slot = c->reader.slot;
  m.commit.view = view_of(c);
  atomic_store(&slot->committed, 0);
  atomic_store(&slot->handed, CONTROL_SENT);
  c->reserved = false; /* the host gives the turn on */
  c->sent = true;
  if (c->client.fd >= 0) session_send(c->client.fd, &m, SEND_MS);
}

/* What was handed over is waited for, whoever interrupts. */
static bool nobody(void *ctx)
{
  (void)ctx;
  return false;
}

/* What the host before had taken over: its fate is the next one's to tell. What
   it had not, no host takes over any more, also one that was only slow. */
static int resolve(struct connection *c, const struct timespec *end)
{
  struct control_slot *slot = c->reader.slot;
  struct session_message answer, m = {.type = SESSION_RESOLVE};
  struct timespec now;
  m.sequence = CONTROL_SENT;
  if (atomic_compare_exchange_strong(&slot->handed, &m.sequence, 0))
    return VFS_REJECTED;
  for (;;) {
    hang_up(c);
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec >= end->tv_sec || !wait_for_host(c, c->client.host, end))
      return VFS_UNKNOWN;
    struct interrupt never = {nobody, NULL};
    unsigned ms = (unsigned)(end->tv_sec - now.tv_sec) * 1000;
    c->node = atomic_load(&c->database->node);
    if (c->node) return writer_resolve(c, m.sequence, ms);
    if (exchange(c, &m, &never, ms, &answer) == 0) return answer.answer.rc;
  }
}

int attach_wait(struct connection *c, struct walindex_header *header)
{
  struct control_slot *slot = c->reader.slot;
  struct session_message answer;
  struct interrupt never = {nobody, NULL};
  struct timespec end;
  int rc = c->client.fd < 0 ? -EPIPE : 0;
  do {
    end = clock_deadline(node_limits.fate_ms + SLACK_MS);
    if (rc == 0) rc = receive(c, &never, node_limits.fate_ms, &answer);
  } while (rc == 0 && answer.type == SESSION_PING);
  c->sent = false;
  if (rc == 0 && answer.type == SESSION_ANSWER) {
    rc = answer.answer.rc;
    if (rc == SQLITE_OK)
      memcpy(header, answer.answer.view.header, sizeof(*header));
    else if (answer.answer.reason)
      text_set(&c->reason, "%s", answer.answer.reason);
  } else {
    /* Where its frames are, nothing here tells. */
    c->generation = 0;
    rc = resolve(c, &end);
    hang_up(c);
    text_set(&c->reason, "%s",
             rc == VFS_UNKNOWN
                 ? "outcome unknown: the process that hosted the node has "
                   "ended, and no quorum answered in 30 s"
                 : "transaction rolled back: the process that hosted the node "
                   "has ended before it was agreed on");
  }
  atomic_store(&slot->handed, 0);
  return rc;
}

/* ---- calls ------------------------------------------------------------- */

int attach_call(struct connection *c, const struct call *call,
                const struct interrupt *interrupt, struct answer *answer)
{
  struct packer bytes = {0}, rows = {0};
  struct session_message m = {.type = SESSION_CALL}, got;
  int rc = call_pack(call, &bytes);
  m.rows.bytes = bytes.data;
  m.rows.len = bytes.len;
  if (rc == 0) rc = send_message(c, &m);
  for (bool more = true; rc == 0 && more;) {
    rc = receive(c, interrupt, CALL_MS, &got);
    if (rc == 0 && got.type != SESSION_ROWS) rc = -EPROTO;
    if (rc) break;
    pack_bytes(&rows, got.rows.bytes, got.rows.len);
    more = got.rows.more;
    if (rows.bad || rows.len > ANSWER_BYTES_MAX) rc = -ENOMEM;
  }
  if (rc == 0) rc = answer_unpack(rows.data, rows.len, call, answer);
  free(bytes.data);
  free(rows.data);
  return rc ? lost(c, rc, "refused", LEAST_MS) : SQLITE_OK;
}
