/*
** start.c: starts and stops a node.
**
** Start. The files beside the database are only ever cut back to what the log
** says. C is the checkpoint's index, K the newest entry that is known to be
** committed and at least as new as any page that may be in the database file:
** the confirmed index in the control file, if that was written since this
** machine booted, else the replay floor. The pages of entries C + 1 .. K are
** put on top of the database as one transaction; what is committed after K is
** learned from the leader, and applied as ever.
**
** After a loss of power, -wal may hold transactions that are newer than K: how
** new, nothing says. To put K on top of them would mix two states, for stock
** readers to see. So nothing is published until a leader has said how far the
** log is committed, which is at least as far as -wal goes (it holds nothing
** else): then all that is folded into the one transaction (`settled`).
**
** The node answers local reads at once when K came from the control file:
** nothing newer was ever shown. After a power loss it first asks a leader.
**
** Stop. The order is the reverse; the worker and the loop are joined before
** anything that they use is freed.
*/
#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define FAREWELL_MS 1000
#define DRAIN_MS 300
#define LOOK_MS 10

struct node_limits node_limits = {.segment_bytes = 8u << 20,
                                  .log_least = 16u << 20,
                                  .part_bytes = 1u << 20,
                                  .checkpoint_frames = 1000,
                                  .restart_frames = 1000,
                                  .quiet_frames = 200,
                                  .quiet_ms = 5000,
                                  .stall_ms = 30000,
                                  .fate_ms = 30000,
                                  .follow_ms = 60000};

/* ---- files ------------------------------------------------------------- */

static char *in_dir(const struct node *node, const char *name)
{
  char *path = NULL;
  return asprintf(&path, "%s/%s", node->dir, name) < 0 ? NULL : path;
}

int node_open_control(struct node *node, raft_index *confirmed,
                      struct text *error)
{
  int rc = control_open(node->io, node->dir, true, &node->map);
  if (rc) {
    text_set(error, "%s/control: %s", node->dir, errno_text(-rc).s);
    return rc;
  }
  struct control *shared = node->shared = node->map->control;
  *confirmed = control_begin(node->map);
  control_set_hold(node->map, HOLD_NONE); /* somebody may wait since before */
  /* Later than those of earlier hosts, also when the calendar has gone back. */
  uint64_t sequence = atomic_load(&shared->sequence);
  if (sequence >= node->sequence && sequence < UINT64_MAX / 2)
    node->started = node->sequence = sequence + 1;
  atomic_store(&shared->sequence, node->sequence);
  atomic_store(&shared->election_ms, node->identity.election_timeout_ms);
  atomic_store(&shared->led, false);
  atomic_store(&shared->near, false);
  atomic_store(&shared->crowded, true);
  atomic_store(&shared->solo, false);
  atomic_store(&shared->lease_until, 0);
  heard_begin(node);
  metrics_begin(node);
  return 0;
}

/* As SQLite does it. */
void node_fill_low_descriptors(void)
{
  int fd;
  do
    fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd < 3);
  if (fd >= 3) close(fd);
}

int node_lock_holder(const char *dir)
{
  char *path = NULL, digits[24];
  if (asprintf(&path, "%s/lock", dir) < 0) return 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  ssize_t n = fd < 0 ? 0 : read(fd, digits, sizeof(digits) - 1);
  digits[n > 0 ? n : 0] = 0;
  if (fd >= 0) close(fd);
  free(path);
  return atoi(digits);
}

int node_lock(const char *dir, int *pid, struct text *error)
{
  char *path = NULL, digits[24];
  if (asprintf(&path, "%s/lock", dir) < 0) return -ENOMEM;
  int rc = 0,
      fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
                0600);
  if (fd < 0) {
    rc = -errno;
  } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    *pid = node_lock_holder(dir);
    rc = -EWOULDBLOCK;
  } else {
    int n = snprintf(digits, sizeof(digits), "%d\n", (int)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, digits, (size_t)n, 0) != n)
      rc = -errno;
  }
  if (rc) text_set(error, "%s: %s", path, errno_text(-rc).s);
  if (rc && fd >= 0) close(fd);
  free(path);
  return rc ? rc : fd;
}

void node_unlock(int fd)
{
  if (fd < 0) return;
  /* A forked child may hold a copy: closing alone would not release it. */
  flock(fd, LOCK_UN);
  close(fd);
}

static int take_lock(struct node *node, struct text *error)
{
  int pid = 0;
  node->lock_fd = node_lock(node->dir, &pid, error);
  if (node->lock_fd == -EWOULDBLOCK)
    text_set(error, "%s: the node runs in process %d", node->path, pid);
  return node->lock_fd < 0 ? node->lock_fd : 0;
}

/* ---- state ------------------------------------------------------------- */

static void store_done(void *ctx, uint64_t seq, int status, const char *error)
{
  struct node *node = ctx;
  if (status == 0) {
    atomic_store(&node->durable, seq);
  } else {
    events_add(&node->events, "the log: %s", error ? error : "failed");
    atomic_store(&node->disk_status, status);
  }
  node_wake(node);
}

static void store_synced(void *ctx, uint64_t ns)
{
  struct node *node = ctx;
  meter_add(&node->counters.syncs, ns);
}

int start_log(struct node *node, struct raft_recovered *recovered,
              struct text *error)
{
  char *line = NULL;
  struct store *store = NULL;
  struct store_options options = {.dir = node->dir,
                                  .io = node->io,
                                  .segment_bytes = node_limits.segment_bytes,
                                  .cluster = node->identity.cluster,
                                  .node = node->identity.id,
                                  .done = store_done,
                                  .synced = store_synced,
                                  .ctx = node};
  int rc = store_open(&options, &node->checkpoint, &store, recovered, &line);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  pthread_mutex_lock(&node->mutex);
  node->store = store;
  pthread_mutex_unlock(&node->mutex);
  /* The term of a bootstrap was never voted for. */
  if (recovered->term < node->checkpoint.term)
    recovered->term = node->checkpoint.term;
  return rc;
}

/* Takes the checkpoint, what is in it, and the log after it. */
static int open_log(struct node *node, struct raft_recovered *recovered,
                    struct text *error)
{
  char *line = NULL;
  struct store_checkpoint *cp = &node->checkpoint;
  int rc = store_checkpoint_read(node->io, node->dir, cp, &line);
  if (rc == -ENOENT && node->identity.joining) rc = 0;
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  if (rc == 0) rc = start_log(node, recovered, error);
  if (rc == 0 && cp->settings_len &&
      settings_unpack(&node->settings, cp->settings, cp->settings_len) != 0) {
    text_set(error, "%s/checkpoint: damaged settings", node->dir);
    rc = -EBADMSG;
  }
  node->configuration = cp->configuration;
  node->configuration_index = cp->configuration_index;
  atomic_store(&node->shown_checkpoint, cp->index);
  return rc;
}

/* What the files hold at least; 0: of no index, as long as pages of a snapshot
   wait beside them. Readers of other processes may be there already. */
static raft_index held_at_least(const struct store_checkpoint *cp)
{
  return cp->incoming ? 0 : cp->index;
}

/* Brings the database to K, if that is known to be the newest that can be in
   -wal; sets applied, and whether local reads may go on. */
static int recover_database(struct node *node,
                            const struct store_checkpoint *cp,
                            struct raft_recovered *recovered,
                            raft_index confirmed, struct text *error)
{
  raft_index last = recovered->last_index;
  raft_index k = confirmed > cp->floor ? confirmed : cp->floor;
  char *line = NULL;
  if (k < cp->index) k = cp->index;
  if (k > last) {
    text_set(error,
             "%s/log: ends at entry %llu, but %llu was confirmed: the "
             "log is damaged",
             node->dir, (unsigned long long)last, (unsigned long long)k);
    return -EBADMSG;
  }
  int rc = wal_open(node->io, node->path, held_at_least(cp), node->map,
                    &node->wal, &line);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  if (rc) return rc;
  fetch_clean(node, cp);
  bool settled = confirmed > 0 || k == last;
  if (settled) rc = apply_fold(node, &k, checkpoint_at_start, error);
  if (rc) return rc;
  atomic_store(&node->settled, settled);
  node->applied = settled ? k : cp->index;
  if (k > recovered->commit) recovered->commit = k;
  atomic_store(&node->shared->serving, confirmed == k || last == cp->index);
  return 0;
}

int start_raft(struct node *node, struct raft_recovered *recovered,
               struct text *error)
{
  struct raft_options options;
  struct raft *raft;
  raft_options_defaults(&options);
  options.id = node->identity.id;
  options.incarnation = node->identity.incarnation;
  /* A few, so that what comes meanwhile goes together: one message, one sync. */
  options.inflight_messages = 4;
  options.heartbeat_ms = node->identity.heartbeat_ms;
  options.election_timeout_ms = node->identity.election_timeout_ms;
  options.lease = node->identity.lease;
  /* The hint lets voters forget a leader whose lease still runs. */
  if (options.lease) options.hint_jitter_ms = 0;
  if (getrandom(&options.seed, sizeof(options.seed), 0) < 0)
    options.seed = (uint64_t)clock_wall_ms() ^ node->identity.id;
  if (node->applied > recovered->commit) recovered->commit = node->applied;
  int rc = raft_new(&options, recovered, clock_monotonic_ms(), &raft);
  if (rc) {
    text_set(error, "%s: %s", node->path, raft_strerror(rc));
    return rc;
  }
  raft_free(node->raft);
  node->raft = raft;
  node_begin_raft(node);
  return 0;
}

static int open_network(struct node *node, struct text *error)
{
  struct net_error net_error;
  struct net_callbacks callbacks;
  const struct identity *i = &node->identity;
  int rc = trust_open(node, error);
  if (rc) return rc;
  node_callbacks(node, &callbacks);
  struct net_options options = {.loop = &node->loop,
                                .cluster = i->cluster,
                                .self = i->id,
                                .incarnation = i->incarnation,
                                .tls = node->tls,
                                .listen = identity_alone(i) ? NULL : i->listen,
                                .callbacks = &callbacks};
  if (net_open(&options, &node->net, &net_error) != 0) {
    text_set(error, "%s", net_error.text);
    return -EADDRINUSE;
  }
  return 0;
}

/* ---- threads ----------------------------------------------------------- */

static void *loop_main(void *arg)
{
  struct node *node = arg;
  pthread_setname_np(pthread_self(), "quorate loop");
  uv_update_time(&node->loop);
  node_begin_loop(node);
  uv_run(&node->loop, UV_RUN_DEFAULT);
  return NULL;
}

static int start_threads(struct node *node, struct text *error)
{
  pthread_mutex_lock(&node->mutex);
  node->looping = true;
  pthread_mutex_unlock(&node->mutex);
  int rc = thread_start(&node->worker_thread, worker_main, node);
  node->worker_started = rc == 0;
  if (rc == 0) rc = thread_start(&node->loop_thread, loop_main, node);
  node->loop_started = node->worker_started && rc == 0;
  if (rc) text_set(error, "cannot start a thread: %s", errno_text(-rc).s);
  return rc;
}

static int init_loop(struct node *node, struct text *error)
{
  int rc = uv_loop_init(&node->loop);
  if (rc == 0) {
    node->loop_made = true;
    rc = uv_async_init(&node->loop, &node->async, node_on_async);
    if (rc == 0) uv_timer_init(&node->loop, &node->timer);
  }
  if (rc) text_set(error, "cannot make an event loop: %s", uv_strerror(rc));
  return rc;
}

struct node *node_new(const char *path)
{
  struct node *node = calloc(1, sizeof(*node));
  if (node == NULL) return NULL;
  node->io = &io_posix;
  node->lock_fd = -1;
  node_conditions(node);
  pthread_mutex_init(&node->events.mutex, NULL);
  node->inflight_tail = &node->inflight;
  node->proposals_tail = &node->proposals;
  node->tasks_tail = &node->tasks;
  node->held_tail = &node->held;
  lock_init(node);
  node->started = node->sequence = (uint64_t)clock_wall_ms() << 20;
  reads_init(node);
  node->path = strdup(path);
  node->invites = invites_new();
  node->metrics = metrics_new();
  node->progress = progress_new();
  node->since = clock_monotonic_ms();
  if (node->path == NULL || node->invites == NULL || node->metrics == NULL ||
      node->progress == NULL || asprintf(&node->dir, "%s-quorate", path) < 0) {
    node->dir = NULL;
    node_free(node);
    return NULL;
  }
  node->events.path = node->path;
  return node;
}

/* What is damaged is not repaired by guessing: the others have it all. */
void node_advise(const char *path, const char *name, bool able,
                 struct text *error)
{
  size_t n = strlen(error->s);
  if (able)
    sqlite3_snprintf((int)(sizeof(error->s) - n), error->s + n,
                     "; to rebuild this node from the others: "
                     "SELECT quorate_rebuild(%Q)",
                     path);
  else
    snprintf(error->s + n, sizeof(error->s) - n,
             "; to rebuild this node, delete %s-quorate and %s*, and join "
             "again as %s, with a new invitation",
             path, path, name[0] ? name : "the same name");
}

static void advise_joining(const struct node *node, struct text *error)
{
  text_set(error, "%s: joining was not finished", node->dir);
  size_t n = strlen(error->s);
  sqlite3_snprintf((int)(sizeof(error->s) - n), error->s + n,
                   ": SELECT quorate_rebuild(%Q) goes on with it", node->path);
}

/* A certificate or key that is of no use, unless a rebuilding was cut off. */
static void advise_identity(const struct node *node, struct text *error)
{
  char *path = in_dir(node, "rebuild/node");
  node_advise(node->path, node->identity.name, path && access(path, F_OK) == 0,
              error);
  free(path);
}

/* Everything that can be refused, before any thread runs. */
static int prepare(struct node *node, const struct raft_configuration *peers,
                   struct text *error)
{
  struct raft_recovered recovered = {0};
  raft_index confirmed = 0;
  int rc = directory_check(node->dir, error);
  if (rc == 0) rc = identity_private(node->dir, false, error);
  if (rc) return rc;
  if (recover_under_way(node->path, node->dir, error)) return -EINVAL;
  rc = identity_read(node->dir, &node->identity, error);
  if (rc == -EBADMSG || rc == -ENOENT)
    node_advise(node->path, "", false, error);
  if (rc) return rc;
  rc = take_lock(node, error);
  if (rc == 0) recover_clean(node->dir);
  if (rc == 0 && node->identity.joining && peers == NULL) {
    advise_joining(node, error);
    return -EINVAL;
  }
  if (rc == 0) rc = node_open_control(node, &confirmed, error);
  if (rc == 0) rc = open_log(node, &recovered, error);
  if (rc == 0) node->members = peers ? *peers : recovered.configuration;
  atomic_store(&node->settled, true);
  if (rc == 0 && !node->identity.joining)
    rc =
        recover_database(node, &node->checkpoint, &recovered, confirmed, error);
  member_begin(node);
  if (rc == 0) rc = start_raft(node, &recovered, error);
  if (rc == -EBADMSG || rc == -ENOENT)
    node_advise(node->path, node->identity.name, true, error);
  if (rc == 0) rc = init_loop(node, error);
  if (rc) return rc;
  rc = open_network(node, error);
  if (rc == -EBADMSG) advise_identity(node, error);
  return rc ? rc : host_open(node, error);
}

int node_start(const char *path, const struct raft_configuration *peers,
               struct node **out, struct text *error)
{
  node_fill_low_descriptors();
  struct node *node = node_new(path);
  *out = NULL;
  if (node == NULL) {
    text_set(error, "out of memory");
    return -ENOMEM;
  }
  int rc = prepare(node, peers, error);
  /* The first of its events; from then on the threads change what it tells. */
  if (rc == 0) {
    events_add(&node->events, "started at entry %llu, listening %s%s",
               (unsigned long long)node->applied,
               identity_alone(&node->identity) ? "nowhere" : "on ",
               net_listening(node->net));
    if (identity_alone(&node->identity)) auto_begun(node->path);
    trust_announce(node);
  }
  if (rc == 0) rc = start_threads(node, error);
  if (rc) {
    if (node->shared) node_stop(node, false); /* else nothing is begun */
    node_free(node);
    return rc;
  }
  *out = node;
  return 0;
}

/* Nothing of the log and the network: what is there beside them. */
int node_open_files(const char *path, struct node **out, raft_index *confirmed,
                    struct text *error)
{
  struct text ignored;
  char *line = NULL;
  struct node *node = node_new(path);
  *out = node;
  if (node == NULL) {
    text_set(error, "out of memory");
    return -ENOMEM;
  }
  int rc = directory_check(node->dir, error);
  if (rc) return rc;
  if (recover_under_way(path, node->dir, error)) return -EINVAL;
  if (identity_read(node->dir, &node->identity, &ignored) == 0 &&
      node->identity.joining) {
    text_set(error, "%s: joining was not finished: delete it", node->dir);
    return -EINVAL;
  }
  rc = take_lock(node, error);
  if (rc == 0) rc = node_open_control(node, confirmed, error);
  if (rc) return rc;
  rc = store_checkpoint_read(node->io, node->dir, &node->checkpoint, &line);
  if (rc == 0)
    rc = wal_open(node->io, node->path, held_at_least(&node->checkpoint),
                  node->map, &node->wal, &line);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  return rc;
}

/* ---- stop -------------------------------------------------------------- */

static void closed(void *ctx)
{
  struct node *node = ctx;
  node->net = NULL;
  pthread_mutex_lock(&node->mutex);
  node->looping = false;
  pthread_mutex_unlock(&node->mutex);
  uv_close((uv_handle_t *)&node->timer, NULL);
  uv_close((uv_handle_t *)&node->async, NULL);
}

static void close_all(struct task *task)
{
  struct node *node = task->node;
  cluster_close(node);
  snapshot_close(node);
  fetch_close(node);
  host_deafen(node);
  uv_timer_stop(&node->timer);
  net_close(node->net, closed, node);
}

static void stop_loop(struct node *node)
{
  struct task task = {.run = close_all};
  if (node->loop_started) {
    node_post(node, &task);
    pthread_join(node->loop_thread, NULL);
    node->loop_started = false;
  } else if (node->loop_made) {
    host_deafen(node);
    if (node->net)
      net_close(node->net, closed, node);
    else
      closed(node);
    uv_run(&node->loop, UV_RUN_DEFAULT);
  }
  node_run_tasks(node); /* what came too late for the loop */
  if (node->loop_made) uv_loop_close(&node->loop);
  node->loop_made = false;
}

/* A leader's farewell: `over` once there is nothing to wait for. */
struct farewell {
  struct task task;
  unsigned ms;
  bool begun;
};

/* Not without anybody who could take over. */
static void begin_farewell(struct task *task)
{
  struct farewell *farewell = (struct farewell *)task;
  struct node *node = task->node;
  if (node->view.voters > 1) lock_yield(node, 0, farewell->ms);
  pthread_mutex_lock(&node->mutex);
  farewell->begun = true;
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

/* A leader that is stopped hands over first, so that nobody has to notice that
   it is gone. If that does not work within an election timeout, or a second, it
   goes: a process that ends must not keep its user waiting. Half of that is for
   a transaction on another node to end. */
static void hand_over(struct node *node, struct farewell *farewell)
{
  unsigned ms = node->identity.election_timeout_ms;
  if (ms > FAREWELL_MS) ms = FAREWELL_MS;
  struct timespec end = clock_deadline(ms);
  if (!node->loop_started) return;
  farewell->task.run = begin_farewell;
  farewell->ms = ms / 2;
  node_post(node, &farewell->task);
  pthread_mutex_lock(&node->mutex);
  while ((!farewell->begun || node->yielding) &&
         node->view.role == RAFT_LEADER &&
         pthread_cond_timedwait(&node->changed, &node->mutex, &end) == 0)
    ;
  pthread_mutex_unlock(&node->mutex);
}

/* What is under way comes to its end first, so that nobody is told that a
   transaction is lost because its host stopped; if that does not take long. */
static void drain(struct node *node)
{
  struct timespec end = clock_deadline(DRAIN_MS);
  if (!node->loop_started) return;
  pthread_mutex_lock(&node->mutex);
  node->draining = true;
  writer_note(node);
  node->watchers++;
  while (node->can_write && (node->writer || node->inflight)) {
    struct timespec look = clock_deadline(LOOK_MS);
    pthread_cond_timedwait(&node->changed, &node->mutex, &look);
    if (clock_before(&end, &look)) break;
  }
  node->watchers--;
  pthread_mutex_unlock(&node->mutex);
}

/* Wakes everybody who waits in the node, with the refusal that it stops. */
static void announce_stop(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  node->stopping = true;
  node->can_write = false;
  pthread_cond_broadcast(&node->changed);
  writer_wake(node);
  pthread_cond_broadcast(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&node->shared->serving, false);
  atomic_store(&node->shared->solo, false);
}

static void drop_queues(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  while (node->inflight)
    node_settle(node, node->inflight, TX_UNKNOWN);
  while (node->proposals) {
    struct proposal *p = node->proposals;
    node->proposals = p->next;
    raft_body_unref(p->body);
    free(p);
  }
  node->proposals_tail = &node->proposals;
  pthread_mutex_unlock(&node->mutex);
  reads_drop(node);
  node_drop_held(node);
}

void node_stop(struct node *node, bool clean)
{
  struct farewell farewell = {.begun = false}; /* the loop may still run it */
  if (clean) drain(node);
  announce_stop(node);
  if (clean) hand_over(node, &farewell);
  if (node->worker_started) {
    /* The worker may wait for the loop: that goes on until it is done. */
    pthread_join(node->worker_thread, NULL);
    node->worker_started = false;
  }
  stop_loop(node);
  verify_stop(node);
  if (node->wal) wal_revoke(node->wal);
  drop_queues(node);
  host_close(node);
  if (node->wal && clean && !node->failed) {
    /* Undisturbed now: what is confirmed goes into the database file, and the
       next start has nothing to do. */
    node->clean = checkpoint_run(node) == 0;
  }
  entries_close(node);
  raft_free(node->raft);
  node->raft = NULL;
}

void node_close(struct node *node)
{
  wal_close(node->wal, node->clean);
  if (node->lock_fd >= 0 && node->clean && identity_alone(&node->identity))
    auto_ended(node->path);
  node_unlock(node->lock_fd);
  node->lock_fd = -1;
}

void node_free(struct node *node)
{
  if (node == NULL) return;
  node_close(node);
  wal_free(node->wal);
  trust_free(node);
  control_close(node->map);
  settings_clear(&node->settings);
  store_checkpoint_clear(&node->checkpoint);
  while (node->history) {
    struct applied_configuration *a = node->history;
    node->history = a->next;
    free(a);
  }
  identity_clear(&node->identity);
  free(node->open_parts);
  free(node->earlier.sequences);
  lock_clear(node);
  invites_free(node->invites);
  metrics_free(node->metrics);
  progress_free(node->progress);
  host_free(node);
  pthread_mutex_destroy(&node->events.mutex);
  pthread_mutex_destroy(&node->identity_mutex);
  pthread_mutex_destroy(&node->mutex);
  pthread_cond_destroy(&node->changed);
  pthread_cond_destroy(&node->worker_cond);
  pthread_cond_destroy(&node->verifier.cond);
  free(node->path);
  free(node->dir);
  free(node);
}
