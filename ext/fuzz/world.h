/*
** world.h: a node in this process, on files that are the same for each input,
** and a net that goes nowhere: what other nodes say is made up, and what this
** one says to them is kept.
**
** The node is the only voter of its cluster, with a learner that is never there
** (PEER). The linker puts the functions below that are called __wrap_... in the
** place of those of net/ (Makefile).
*/
#ifndef FUZZ_WORLD_H
#define FUZZ_WORLD_H

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "../call.h"
#include "../cluster.h"
#include "../snapshot.h"
#include "load.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEER 7
#define PAGE 1024u
#define FILES 32
#define WORLD_MS 10000 /* for what comes by itself; more than enough */

/* ---- files ------------------------------------------------------------- */

static char world_dir[80];

static inline void world_path(char path[256], const char *name)
{
  must(snprintf(path, 256, "%s/%s", world_dir, name) < 256);
}

static inline void world_remove(const char *path)
{
  char below[600];
  struct dirent *e;
  DIR *dir = opendir(path);
  while (dir && (e = readdir(dir))) {
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    snprintf(below, sizeof(below), "%.300s/%s", path, e->d_name);
    world_remove(below);
  }
  if (dir) closedir(dir);
  if (dir)
    rmdir(path);
  else
    unlink(path);
}

static inline void world_end(void)
{
  world_remove(world_dir);
}

/* The files of the node, as they are before each input. */
struct saved {
  char name[300]; /* from the world's directory on */
  uint8_t *data;
  size_t size;
};
static struct saved saved[FILES];
static unsigned n_saved;

static inline void save(const char *name)
{
  char path[256], below[300];
  struct dirent *e;
  struct stat st;
  world_path(path, name);
  must(stat(path, &st) == 0);
  if (S_ISDIR(st.st_mode)) {
    DIR *dir = opendir(path);
    must(dir);
    while ((e = readdir(dir))) {
      if (e->d_name[0] == '.') continue;
      snprintf(below, sizeof(below), "%.20s/%s", name, e->d_name);
      save(below);
    }
    closedir(dir);
  } else if (S_ISREG(st.st_mode)) {
    struct saved *s = &saved[n_saved++];
    must(n_saved <= FILES);
    snprintf(s->name, sizeof(s->name), "%s", name);
    s->size = (size_t)st.st_size;
    must((s->data = malloc(s->size + 1)));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0 && read(fd, s->data, s->size) == (ssize_t)s->size);
    close(fd);
  }
}

static inline void restore(void)
{
  char path[256];
  world_path(path, "n.db");
  world_remove(path);
  world_path(path, "n.db-wal");
  world_remove(path);
  world_path(path, "n.db-shm");
  world_remove(path);
  world_path(path, "n.db-quorate");
  world_remove(path);
  must(mkdir(path, 0700) == 0);
  world_path(path, "n.db-quorate/log");
  must(mkdir(path, 0700) == 0);
  for (unsigned i = 0; i < n_saved; i++) {
    world_path(path, saved[i].name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 &&
         write(fd, saved[i].data, saved[i].size) == (ssize_t)saved[i].size);
    close(fd);
  }
}

/* ---- the net ----------------------------------------------------------- */

/* What somebody asked this node; answered exactly once. */
struct net_request {
  struct net_request *next;
  raft_id identity;
  bool answered;
};
static struct net_request *requests;
static uint64_t given_session; /* of the snapshot that this node gives */

void __wrap_net_reply(struct net_request *request, int status, const void *body,
                      size_t len);
raft_id __wrap_net_request_identity(const struct net_request *request);
const char *__wrap_net_request_remote(const struct net_request *request);

void __wrap_net_reply(struct net_request *request, int status, const void *body,
                      size_t len)
{
  must(!request->answered);
  must(status >= 0 && status <= ANSWER_AGAIN && len <= NET_ANSWER_MAX);
  must(status == ANSWER_OK || status == ANSWER_REDIRECT || len > 0);
  must(len == 0 || body);
  request->answered = true;
  if (status == 0 && len > 12 && read_number(body, 4) == SNAPSHOT_VERSION)
    given_session = read_number((const uint8_t *)body + 4, 8);
}

raft_id __wrap_net_request_identity(const struct net_request *request)
{
  return request->identity;
}

const char *__wrap_net_request_remote(const struct net_request *request)
{
  (void)request;
  return "127.0.0.1:9";
}

static inline struct net_request *request_new(raft_id from)
{
  struct net_request *request = calloc(1, sizeof(*request));
  must(request);
  request->identity = from;
  request->next = requests;
  return requests = request;
}

static inline void requests_end(void)
{
  for (struct net_request *next; requests; requests = next) {
    next = requests->next;
    must(requests->answered);
    free(requests);
  }
}

/* What this node asked others. */
#define ASKED_MAX 64
struct asked {
  net_done done;
  void *ctx;
  uint8_t body[32]; /* as much of it as matters */
};
static struct asked asked[ASKED_MAX];
static unsigned n_asked;

void __wrap_net_call(struct net *net, raft_id peer, const void *body,
                     size_t len, unsigned timeout_ms, net_done done, void *ctx);
void __wrap_net_fetch(struct net *net, raft_id peer, const void *body,
                      size_t len, unsigned timeout_ms, net_done done,
                      void *ctx);
void __wrap_net_close(struct net *net, void (*closed)(void *ctx), void *ctx);
void __real_net_close(struct net *net, void (*closed)(void *ctx), void *ctx);

void __wrap_net_call(struct net *net, raft_id peer, const void *body,
                     size_t len, unsigned timeout_ms, net_done done, void *ctx)
{
  struct asked *a = &asked[n_asked++];
  (void)net;
  must(n_asked <= ASKED_MAX && len > 0 && timeout_ms > 0 && peer != 0);
  *a = (struct asked){.done = done, .ctx = ctx};
  memcpy(a->body, body, len < sizeof(a->body) ? len : sizeof(a->body));
}

void __wrap_net_fetch(struct net *net, raft_id peer, const void *body,
                      size_t len, unsigned timeout_ms, net_done done, void *ctx)
{
  __wrap_net_call(net, peer, body, len, timeout_ms, done, ctx);
}

/* Answers what was asked n-th. */
static inline void asked_answer(unsigned n, int status, const uint8_t *body,
                                size_t len)
{
  struct asked a = asked[n];
  uint8_t *copy = exact_copy(body, len);
  memmove(&asked[n], &asked[n + 1], (--n_asked - n) * sizeof(a));
  a.done(a.ctx, status, copy, len);
  free(copy);
}

void __wrap_net_close(struct net *net, void (*closed)(void *ctx), void *ctx)
{
  static const uint8_t why[] = "closed";
  while (n_asked)
    asked_answer(0, -1, why, sizeof(why) - 1);
  __real_net_close(net, closed, ctx);
}

/* ---- time -------------------------------------------------------------- */

/* What waits for a time to come again asks this clock; raft has the real one. */
static _Atomic uint64_t ahead_ms;

uint64_t __wrap_clock_monotonic_ms(void);
uint64_t __real_clock_monotonic_ms(void);

uint64_t __wrap_clock_monotonic_ms(void)
{
  return __real_clock_monotonic_ms() + atomic_load(&ahead_ms);
}

/* On the loop's thread: so many ms have passed since the last look around. */
static inline void pass_time(struct node *node, uint64_t ms)
{
  atomic_fetch_add(&ahead_ms, ms);
  node->ticked = 0;
  node->timer.timer_cb(&node->timer);
}

/* ---- the node ---------------------------------------------------------- */

struct job {
  struct task task;
  void (*run)(struct node *node, void *arg);
  void *arg;
  sem_t done;
};

static inline void job_run(struct task *task)
{
  struct job *job = (struct job *)task;
  job->run(task->node, job->arg);
  sem_post(&job->done);
}

/* On the loop's thread. */
static inline void on_loop(struct node *node,
                           void (*run)(struct node *node, void *arg), void *arg)
{
  struct job job = {.task.run = job_run, .run = run, .arg = arg};
  sem_init(&job.done, 0, 0);
  must(node_post(node, &job.task));
  while (sem_wait(&job.done) != 0)
    ;
  sem_destroy(&job.done);
}

static inline void rest(long us)
{
  struct timespec t = {0, us * 1000};
  nanosleep(&t, NULL);
}

static inline struct node_view look(struct node *node, raft_index *applied,
                                    bool *failed)
{
  pthread_mutex_lock(&node->mutex);
  struct node_view view = node->view;
  *applied = node->applied;
  *failed = node->failed;
  pthread_mutex_unlock(&node->mutex);
  return view;
}

/* Until everything that is committed is applied, for a moment at most. */
static inline void settle(struct node *node, unsigned ms)
{
  uint64_t end = __real_clock_monotonic_ms() + ms;
  raft_index applied;
  bool failed;
  do {
    rest(300);
    struct node_view view = look(node, &applied, &failed);
    if (failed || (view.commit == applied && view.last == applied)) return;
  } while (__real_clock_monotonic_ms() < end);
}

static inline void wait_leader(struct node *node)
{
  uint64_t end = __real_clock_monotonic_ms() + WORLD_MS;
  raft_index applied;
  bool failed;
  for (;;) {
    struct node_view view = look(node, &applied, &failed);
    if (view.role == RAFT_LEADER && view.commit == view.last &&
        applied == view.last)
      return;
    must(!failed && __real_clock_monotonic_ms() < end);
    rest(300);
  }
}

static inline void add_peer(struct node *node, void *arg)
{
  struct raft_member m = {
      .id = PEER, .incarnation = PEER, .role = RAFT_LEARNER, .name = "n7"};
  raft_index index;
  (void)arg;
  snprintf(m.address, sizeof(m.address), "127.0.0.1:1");
  must(cluster_propose_change(node, RAFT_ADD_LEARNER, 0, &m, &index) == 0);
}

static inline struct node *node_begin(void)
{
  struct node *node = NULL;
  struct text error = {""};
  char path[256];
  world_path(path, "n.db");
  int rc = node_start(path, NULL, &node, &error);
  if (rc) {
    must(error.s[0] && node == NULL);
    if (events_echo) fprintf(stderr, "  refused: %s\n", error.s);
    return NULL;
  }
  return node;
}

static inline void node_end(struct node *node, bool clean)
{
  node_stop(node, clean);
  requests_end();
  node_free(node);
}

static inline void echo(const char *path, const struct event *event)
{
  (void)path;
  fprintf(stderr, "  %s\n", event->text);
}

/* Once: a database, its node, and what is saved of them. */
static inline void world_begin(void)
{
  char path[256], *error = NULL, *sql;
  sqlite3 *db;
  if (world_dir[0]) return;
  load_quorate();
  if (getenv("FUZZ_EVENTS")) events_echo = echo;
  fuzz_make_dir(world_dir, sizeof(world_dir), world_end);
  node_limits.segment_bytes = 32 << 10;
  world_path(path, "n.db");
  sql = sqlite3_mprintf(
      "PRAGMA page_size=%d; CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob"
      "(3000))",
      PAGE);
  must(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                       "unix") == SQLITE_OK);
  must(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK);
  sqlite3_close(db);
  sqlite3_free(sql);
  sql = sqlite3_mprintf("SELECT quorate_bootstrap(%Q, 'name', 'n1', 'listen', "
                        "'127.0.0.1:%u'), quorate_stop(%Q)",
                        path, 20000 + (unsigned)getpid() % 10000, path);
  must(sqlite3_open(":memory:", &db) == SQLITE_OK);
  int rc = sqlite3_exec(db, sql, NULL, NULL, &error);
  if (rc) fprintf(stderr, "%s\n", error);
  must(rc == SQLITE_OK);
  sqlite3_close(db);
  sqlite3_free(sql);
  struct node *node = node_begin();
  must(node);
  wait_leader(node);
  on_loop(node, add_peer, NULL);
  settle(node, WORLD_MS);
  node_end(node, true);
  save("n.db");
  save("n.db-quorate");
}

#endif
