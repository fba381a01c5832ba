/*
** node.c: the loop thread of a node, and how other threads reach it.
**
** Division one: small things. Division two: what application threads call.
** Division three: carrying out raft's effects. Division four: the loop's
** callbacks. Start and stop are in start.c.
**
** A commit's way: the application's thread queues the transaction's parts
** (node_hand_over) and wakes the loop; the loop proposes them to raft, hands
** the entries to the log's thread and sends them to the peers; the log's
** thread wakes the loop when they are durable, the peers answer; raft commits;
** apply.c publishes and tells the waiting thread.
*/
#include "node.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <linux/futex.h>
#include <sqlite3ext.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define QUEUE_BYTES (4u << 20) /* proposals waiting for the loop */
#define BATCH 64               /* proposals in one step */
#define HAND_OVER_MS 30000
#define NEAR_BEATS 3 /* heartbeats without which a peer is not near */
#define TICK_MS 100  /* pace of cluster_tick() */
#define LATE_MS 20   /* a timer this late: the loop was kept from running */

/* ---- small things ------------------------------------------------------ */

void text_set(struct text *text, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  vsnprintf(text->s, sizeof(text->s), format, args);
  va_end(args);
}

void text_plain(char *text)
{
  for (; *text; text++)
    if ((unsigned char)*text < ' ' || *text == 0x7f) *text = ' ';
}

struct errno_text errno_text(int number)
{
  struct errno_text text = {""};
  const char *found = strerror_r(number, text.s, sizeof(text.s));
  if (found != text.s) snprintf(text.s, sizeof(text.s), "%s", found);
  text.s[0] = (char)tolower((unsigned char)text.s[0]);
  return text;
}

uint64_t clock_monotonic_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t clock_monotonic_ms(void)
{
  return clock_monotonic_ns() / 1000000;
}

int64_t clock_wall_ms(void)
{
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

struct timespec clock_deadline(uint64_t ms)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_sec += (time_t)(ms / 1000);
  t.tv_nsec += (long)(ms % 1000) * 1000000L;
  if (t.tv_nsec >= 1000000000L) {
    t.tv_sec++;
    t.tv_nsec -= 1000000000L;
  }
  return t;
}

bool clock_before(const struct timespec *a, const struct timespec *b)
{
  return a->tv_sec < b->tv_sec ||
         (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

struct clock_text clock_text(int64_t wall_ms)
{
  struct clock_text text;
  time_t seconds = (time_t)(wall_ms / 1000);
  struct tm tm;
  gmtime_r(&seconds, &tm);
  size_t n = strftime(text.s, sizeof(text.s), "%Y-%m-%d %H:%M:%S", &tm);
  snprintf(text.s + n, sizeof(text.s) - n, ".%03d", (int)(wall_ms % 1000));
  return text;
}

int thread_start(pthread_t *thread, void *(*main)(void *), void *arg)
{
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &old);
  int rc = pthread_create(thread, NULL, main, arg);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return -rc;
}

bool node_log_failed(const struct node *node)
{
  int status = atomic_load(&node->disk_status);
  return status != 0 && status != -ENOSPC;
}

void node_keep_reason(struct node *node, const struct text *reason)
{
  if (!node->failed && !node_log_failed(node)) node->reason = *reason;
}

void node_reason(struct node *node, const char *format, ...)
{
  struct text reason;
  va_list args;
  va_start(args, format);
  vsnprintf(reason.s, sizeof(reason.s), format, args);
  va_end(args);
  pthread_mutex_lock(&node->mutex);
  node_keep_reason(node, &reason);
  pthread_mutex_unlock(&node->mutex);
}

uint32_t bell_wait(struct bell *bell, const struct timespec *end)
{
  bool in_time = true;
  uint32_t how;
  while ((how = atomic_load(&bell->rung)) == 0 && in_time)
    in_time = syscall(SYS_futex, &bell->rung, FUTEX_WAIT_BITSET_PRIVATE, 0, end,
                      NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
              errno != ETIMEDOUT;
  return how;
}

void bell_ring(struct bell *bell, uint32_t how)
{
  atomic_store(&bell->rung, how);
  syscall(SYS_futex, &bell->rung, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void clock_condition(pthread_cond_t *cond)
{
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(cond, &attr);
  pthread_condattr_destroy(&attr);
}

struct transaction *transaction_new(void)
{
  struct transaction *tx = calloc(1, sizeof(*tx));
  if (tx == NULL) return NULL;
  tx->state = TX_OPEN;
  return tx;
}

void transaction_free(struct transaction *tx)
{
  if (tx == NULL) return;
  free(tx->pages);
  free(tx);
}

const struct raft_member *node_member(const struct node *node, raft_id id)
{
  return raft_configuration_find(&node->members, id);
}

void node_settle(struct node *node, struct transaction *tx, enum tx_state state)
{
  struct transaction **at = &node->inflight;
  while (*at && *at != tx)
    at = &(*at)->next;
  assert(*at == tx);
  *at = tx->next;
  if (tx->next == NULL) node->inflight_tail = at;
  tx->next = NULL;
  tx->state = state;
  if (tx->schema && --node->schemas == 0) writer_wake(node);
  if (node->inflight == NULL) {
    wal_settle(node->wal);
    if (node->drained) bell_ring(node->drained, 1);
    writer_note(node);
  }
  /* The checkpointer may be waiting for a moment without any. */
  if (node->watchers ||
      (node->inflight == NULL && atomic_load(&node->shared->hold) != HOLD_NONE))
    pthread_cond_broadcast(&node->changed);
  if (tx->abandoned)
    transaction_free(tx);
  else
    bell_ring(&tx->bell, 1);
}

/* Mutex held, so that the loop cannot close the handle meanwhile. */
void node_wake_held(struct node *node)
{
  if (node->looping) uv_async_send(&node->async);
}

void node_wake(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  node_wake_held(node);
  pthread_mutex_unlock(&node->mutex);
}

bool node_post(struct node *node, struct task *task)
{
  task->next = NULL;
  task->node = node;
  pthread_mutex_lock(&node->mutex);
  bool ok = node->looping;
  if (ok) {
    *node->tasks_tail = task;
    node->tasks_tail = &task->next;
    node_wake_held(node);
  }
  pthread_mutex_unlock(&node->mutex);
  return ok;
}

/* ---- application threads ----------------------------------------------- */

static bool grant_lost(const struct node *node, const struct transaction *tx)
{
  return node->stopping || !node->can_write ||
         node->grant.term != tx->grant.term ||
         node->grant.number != tx->grant.number;
}

static void purge(struct node *node, const struct transaction *tx)
{
  struct proposal **at = &node->proposals;
  while (*at) {
    struct proposal *p = *at;
    if (p->tx != tx) {
      at = &p->next;
      continue;
    }
    *at = p->next;
    node->proposals_bytes -= p->body->len;
    raft_body_unref(p->body);
    free(p);
  }
  node->proposals_tail = at;
}

int node_hand_over(struct node *node, struct transaction *tx, uint8_t type,
                   struct raft_body *body)
{
  struct timespec end = clock_deadline(HAND_OVER_MS);
  struct proposal *p = calloc(1, sizeof(*p));
  bool lost = p == NULL;
  pthread_mutex_lock(&node->mutex);
  while (!lost && !(lost = grant_lost(node, tx)) &&
         node->proposals_bytes > QUEUE_BYTES)
    if (pthread_cond_timedwait(&node->changed, &node->mutex, &end) != 0)
      lost = true;
  if (!lost && type == RAFT_COMMIT)
    lost = wal_hand_over(node->wal, tx->epoch, &tx->base, &tx->header,
                         tx->pages) != 0;
  if (lost) {
    purge(node, tx);
    pthread_mutex_unlock(&node->mutex);
    raft_body_unref(body);
    free(p);
    return -1;
  }
  p->tx = tx;
  p->grant = tx->grant;
  p->type = type;
  p->body = body;
  *node->proposals_tail = p;
  node->proposals_tail = &p->next;
  node->proposals_bytes += body->len;
  if (type == RAFT_COMMIT) {
    tx->state = TX_WAITING;
    *node->inflight_tail = tx;
    node->inflight_tail = &tx->next;
    node->schemas += tx->schema;
    writer_note(node);
  }
  node_wake_held(node);
  pthread_mutex_unlock(&node->mutex);
  return 0;
}

/* ---- effects ----------------------------------------------------------- */

void node_fail(struct node *node, const char *format, ...)
{
  char text[TEXT_MAX];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  pthread_mutex_lock(&node->mutex);
  bool first = !node->failed;
  node->failed = true;
  node->can_write = false;
  text_set(&node->reason, "%s", text);
  pthread_cond_broadcast(&node->changed);
  writer_wake(node);
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&node->shared->serving, false);
  atomic_store(&node->shared->solo, false);
  if (!first) return;
  events_add(&node->events, "the node has failed: %s", text);
  sqlite3_log(SQLITE_IOERR, "quorate: %s: %s", node->path, text);
  atomic_store(&node->disk_status, -EIO);
  node_wake(node);
}

static void send_or_hold(struct node *node, const struct raft_send *send)
{
  const struct raft_message *m = &send->message;
  if (send->after <= atomic_load(&node->durable)) {
    net_send(node->net, m);
    return;
  }
  /* Raft lets a message be lost: it is dropped when there is no memory. */
  struct held_send *held = calloc(1, sizeof(*held));
  if (held == NULL) return;
  held->after = send->after;
  held->message = *m;
  held->message.entries = NULL;
  if (m->n_entries) {
    held->message.entries = calloc(m->n_entries, sizeof(m->entries[0]));
    if (held->message.entries == NULL) {
      free(held);
      return;
    }
    for (uint32_t i = 0; i < m->n_entries; i++) {
      held->message.entries[i] = m->entries[i];
      raft_body_ref(m->entries[i].body);
    }
  }
  *node->held_tail = held;
  node->held_tail = &held->next;
}

static void release_held(struct node *node)
{
  uint64_t durable = atomic_load(&node->durable);
  struct held_send **at = &node->held;
  while (*at) {
    struct held_send *held = *at;
    if (held->after > durable) {
      at = &held->next;
      continue;
    }
    net_send(node->net, &held->message);
    *at = held->next;
    raft_message_clear(&held->message);
    free(held);
  }
  node->held_tail = at;
}

/* Rejects what waits for a grant that is gone and was never appended. */
static void drop_proposals(struct node *node, bool all)
{
  struct proposal **at = &node->proposals;
  while (*at) {
    struct proposal *p = *at;
    if (p->tx == NULL && !all) {
      at = &p->next;
      continue;
    }
    *at = p->next;
    node->proposals_bytes -= p->body->len;
    if (p->type == RAFT_COMMIT && p->tx) node_settle(node, p->tx, TX_REJECTED);
    raft_body_unref(p->body);
    free(p);
  }
  node->proposals_tail = at;
}

void node_lose_grant(struct node *node, bool all)
{
  pthread_mutex_lock(&node->mutex);
  node->can_write = node->recalled = false;
  node->writer = NULL;
  drop_proposals(node, all);
  pthread_cond_broadcast(&node->changed);
  writer_wake(node);
  pthread_mutex_unlock(&node->mutex);
  /* After no new turn is possible: one given in between would carry the new
     epoch and never be revoked. */
  if (node->wal) wal_revoke(node->wal);
}

static const char *role_name(enum raft_role role)
{
  static const char *const names[] = {"", "follower", "candidate", "candidate",
                                      "leader"};
  return names[role];
}

const char *node_role_name(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  enum raft_role role = node->view.role;
  const struct raft_member *self = node_member(node, node->identity.id);
  const char *name = node->stopping                       ? "stopped"
                     : node->failed                       ? "failed"
                     : node->out.s[0]                     ? "removed"
                     : self && self->role == RAFT_LEARNER ? "learner"
                                                          : role_name(role);
  pthread_mutex_unlock(&node->mutex);
  return name;
}

static unsigned count_voters(const struct raft_configuration *configuration)
{
  unsigned n = 0;
  for (unsigned i = 0; i < configuration->n; i++)
    n += configuration->members[i].role == RAFT_VOTER;
  return n;
}

static bool was_heard(struct node *node, raft_id peer)
{
  struct net_peer_status status;
  return node->net && net_peer_status(node->net, peer, &status) &&
         status.connected &&
         uv_now(&node->loop) - status.last_received <=
             NEAR_BEATS * node->identity.heartbeat_ms + TICK_MS;
}

/* A leader that has lost its quorum, and a follower its leader, learn it from
   raft after an election timeout; that it seems so is known sooner. Who has the
   cluster's write lock and no leader could write, but nobody would take it. */
static void look_around(struct node *node)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  unsigned near = 0, voters = 0;
  for (unsigned i = 0; i < c->n; i++) {
    if (!raft_member_votes(&c->members[i])) continue;
    voters++;
    near += c->members[i].id == node->identity.id ||
            was_heard(node, c->members[i].id);
  }
  pthread_mutex_lock(&node->mutex); /* who stops the node takes it away */
  bool can_write = node->can_write;
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&node->shared->near,
               node->view.role == RAFT_LEADER ? near > voters / 2
               : node->view.leader ? was_heard(node, node->view.leader)
                                   : !can_write);
}

/* Brings what other threads see up to date. */
static void update_view(struct node *node, bool configuration_changed)
{
  struct node_view v = {0};
  bool leads;
  raft_state(node->raft, &v.term, &leads);
  v.role = raft_role(node->raft);
  v.leader = raft_leader(node->raft);
  v.commit = raft_commit(node->raft);
  v.last = raft_last(node->raft);
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  v.voters = count_voters(c);
  struct node_view was = node->view; /* only this thread changes it */
  bool deposed = was.role == RAFT_LEADER && (!leads || was.term != v.term);
  if (deposed) atomic_store(&node->shared->solo, false);
  bool other_term =
      was.term != v.term || deposed || (leads && was.role != RAFT_LEADER);
  if (leads && (was.role != RAFT_LEADER || was.term != v.term)) {
    node->lead_from = v.last;
    node->lead_since = clock_monotonic_ms();
  }
  atomic_store(&node->shared->led, v.leader != 0);
  pthread_mutex_lock(&node->mutex);
  node->view = v;
  if (configuration_changed && c->n > 0) {
    node->members = *c;
    node->worker_peers = true;
    pthread_cond_signal(&node->worker_cond);
  }
  if (was.role != v.role || was.leader != v.leader || was.term != v.term)
    pthread_cond_broadcast(&node->changed);
  const struct raft_member *leader = node_member(node, v.leader);
  char name[RAFT_NAME_MAX] = "";
  if (leader) memcpy(name, leader->name, sizeof(name));
  pthread_mutex_unlock(&node->mutex);
  metrics_note(node, &was);
  if (other_term) lock_term(node);
  if (was.role != v.role || was.leader != v.leader) look_around(node);
  if (was.role != v.role || was.leader != v.leader)
    events_add(&node->events, "%s in term %llu, leader %s", role_name(v.role),
               (unsigned long long)v.term,
               v.leader ? (leads ? "here" : name) : "unknown");
}

void node_progressed(struct node *node)
{
  raft_index from;
  bool can = lock_held(node, &from) && node->applied >= from && !node->failed &&
             node->wal && node->out.s[0] == 0;
  if (node->serve_from && node->applied >= node->serve_from &&
      !atomic_load(&node->shared->serving) && !node->failed) {
    atomic_store(&node->shared->serving, true);
    pthread_mutex_lock(&node->mutex);
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->mutex);
  }
  pthread_mutex_lock(&node->mutex);
  /* One that stops may not write either, but what is in flight is not of an
     earlier grant. */
  bool begins = can && !node->can_write && !node->stopping;
  pthread_mutex_unlock(&node->mutex);
  if (begins) {
    apply_reject_all(node); /* of earlier grants, never appended: lock.c, L4 */
    pthread_mutex_lock(&node->mutex);
    node->can_write = !node->stopping;
    node->grant = (struct grant){node->view.term, lock_number(node)};
    if (node->recalled) writer_recall(node); /* who waits now, has a turn */
    pthread_cond_broadcast(&node->changed);
    writer_wake(node);
    pthread_mutex_unlock(&node->mutex);
    atomic_store(&node->shared->serving, true);
  }
  atomic_store(&node->shared->solo,
               can && node->view.role == RAFT_LEADER && node->view.voters == 1);
  reads_released(node);
}

static void load(struct node *node, const struct raft_load *load)
{
  struct raft_entry *entries =
      calloc(RAFT_MESSAGE_ENTRIES_MAX, sizeof(*entries));
  char *error = NULL;
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  int n = entries ? store_read(node->store, load->first, UINT64_MAX,
                               load->max_bytes, RAFT_MESSAGE_ENTRIES_MAX,
                               entries, &error)
                  : 0;
  if (n < 0) {
    events_add(&node->events, "reading the log back: %s",
               error ? error : errno_text(-n).s);
    n = 0;
  }
  free(error);
  event.u.loaded.peer = load->peer;
  event.u.loaded.first = load->first;
  event.u.loaded.n = (unsigned)n;
  event.u.loaded.entries = entries;
  node_step(node, &event);
  for (int i = 0; i < n; i++)
    raft_body_unref(entries[i].body);
  free(entries);
}

static void carry_out(struct node *node, const struct raft_effects *effects)
{
  struct raft_load loads[RAFT_MEMBERS_MAX];
  raft_id snapshots[RAFT_MEMBERS_MAX];
  unsigned n_loads = 0, n_snapshots = 0;

  int rc = 0;
  reads_publish(node);
  if (effects->persist.seq != 0)
    rc = store_submit(node->store, &effects->persist);
  /* Any other error is that of a log that has failed before: it tells that by
     itself, and take_durable() knows what to do. */
  if (rc == -ENOMEM || rc == -EINVAL)
    node_fail(node, "the log takes no entry: %s", errno_text(-rc).s);
  for (unsigned i = 0; i < effects->n_sends; i++)
    send_or_hold(node, &effects->sends[i]);
  for (; n_loads < effects->n_loads && n_loads < RAFT_MEMBERS_MAX; n_loads++)
    loads[n_loads] = effects->loads[n_loads];
  for (; n_snapshots < effects->n_snapshots && n_snapshots < RAFT_MEMBERS_MAX;
       n_snapshots++)
    snapshots[n_snapshots] = effects->snapshots[n_snapshots];
  bool again = effects->role_changed;
  for (unsigned i = 0; i < effects->n_reads; i++)
    again = reads_take(node, &effects->reads[i]) || again;
  node->commit = effects->commit;
  bool reconfigured = effects->configuration_changed;
  bool progressed = effects->role_changed || effects->n_reads > 0;
  /* `effects` may not be used from here on: what follows may step again. */
  if (reconfigured) {
    const struct raft_configuration *c = raft_configuration(node->raft, NULL);
    if (c->n > 0) net_set_peers(node->net, c);
  }
  update_view(node, reconfigured);
  apply_committed(node);
  if (progressed) node_progressed(node);
  if (again) reads_again(node);
  for (unsigned i = 0; i < n_loads; i++)
    load(node, &loads[i]);
  for (unsigned i = 0; i < n_snapshots; i++)
    snapshot_send(node, snapshots[i]);
}

/* The time for raft. */
static uint64_t now_of(struct node *node)
{
  struct raft_effects effects;
  uint64_t now;
  bool sure = reads_clock(node, &now);
  node->now = now;
  if (sure) return now;
  struct raft_event event = {.type = RAFT_EVENT_CLOCK_DOUBT, .now = now};
  if (raft_step(node->raft, &event, &effects) == RAFT_ENOMEM)
    node_fail(node, "out of memory");
  carry_out(node, &effects);
  return now;
}

int node_step(struct node *node, struct raft_event *event)
{
  struct raft_effects effects;
  event->now = now_of(node);
  int rc = raft_step(node->raft, event, &effects);
  if (rc == RAFT_ENOMEM) node_fail(node, "out of memory");
  carry_out(node, &effects);
  return rc;
}

int node_propose(struct node *node, uint8_t type, struct raft_body *body,
                 raft_index *index)
{
  struct raft_effects effects;
  raft_term term;
  int rc = raft_propose(node->raft, now_of(node), type, body, index, &term,
                        &effects);
  carry_out(node, &effects);
  return rc;
}

void node_drop_held(struct node *node)
{
  while (node->held) {
    struct held_send *held = node->held;
    node->held = held->next;
    raft_message_clear(&held->message);
    free(held);
  }
  node->held_tail = &node->held;
}

void node_begin_raft(struct node *node)
{
  node_drop_held(node);
  atomic_store(&node->durable, 0);
  atomic_store(&node->disk_status, 0);
  node->durable_seen = 0;
  node->commit =
      raft_commit(node->raft); /* the log may hold less than before */
  node->disk_failed = false;
  node->compacted = 0;
  reads_begin_raft(node);
}

/* ---- the loop ---------------------------------------------------------- */

/* For a test that has what is queued rejected, at any place of a pipeline of any
   depth: how many may be proposed now. */
static unsigned most_by_dice(struct node *node)
{
  uint64_t dice = (node->dice += 0x9e3779b97f4a7c15u);
  dice = (dice ^ (dice >> 30)) * 0xbf58476d1ce4e5b9u;
  dice ^= dice >> 31;
  /* Also with nothing queued: somebody may be writing frames. */
  if (dice % node_limits.void_one_in == 0) lock_void_own(node);
  return (unsigned)(dice >> 60); /* 0: the queue grows */
}

/* Takes up to `most` queued proposals of one term. Mutex held. */
static unsigned take_batch(struct node *node, struct proposal **batch,
                           unsigned most)
{
  unsigned n = 0;
  raft_term term = node->proposals ? node->proposals->grant.term : 0;
  while (node->proposals && n < most && node->proposals->grant.term == term) {
    struct proposal *p = node->proposals;
    node->proposals = p->next;
    batch[n++] = p;
  }
  if (node->proposals == NULL) node->proposals_tail = &node->proposals;
  return n;
}

static void put_back(struct node *node, struct proposal **batch, unsigned n)
{
  for (unsigned i = n; i-- > 0;) {
    batch[i]->next = node->proposals;
    if (node->proposals == NULL) node->proposals_tail = &batch[i]->next;
    node->proposals = batch[i];
  }
}

/* Proposes one batch. False: nothing (more) can be proposed now. */
static bool propose_batch(struct node *node)
{
  if (node->view.role != RAFT_LEADER) return false;
  struct proposal *batch[BATCH];
  struct raft_proposal items[BATCH];
  struct raft_effects effects;
  uint64_t now = now_of(node);
  unsigned most = node_limits.void_one_in ? most_by_dice(node) : BATCH;
  pthread_mutex_lock(&node->mutex);
  unsigned n = take_batch(node, batch, most);
  pthread_mutex_unlock(&node->mutex);
  if (n == 0) return false;
  for (unsigned i = 0; i < n; i++) {
    items[i].type = batch[i]->type;
    items[i].body = batch[i]->body;
  }
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE, .now = now};
  event.u.propose.term = batch[0]->grant.term;
  event.u.propose.n = n;
  event.u.propose.items = items;
  int rc = raft_step(node->raft, &event, &effects);
  for (unsigned i = 0; rc == 0 && i < n; i++)
    if (batch[i]->tx == NULL) lock_appended(node, batch[i]);
  pthread_mutex_lock(&node->mutex);
  if (rc == RAFT_EBUSY || rc == RAFT_ETRANSFER) {
    put_back(node, batch, n);
  } else {
    for (unsigned i = 0; i < n; i++) {
      node->proposals_bytes -= batch[i]->body->len;
      if (batch[i]->type == RAFT_COMMIT && rc != 0 && batch[i]->tx)
        node_settle(node, batch[i]->tx, TX_REJECTED);
      raft_body_unref(batch[i]->body);
      free(batch[i]);
    }
    pthread_cond_broadcast(&node->changed);
  }
  pthread_mutex_unlock(&node->mutex);
  carry_out(node, &effects);
  return rc == 0;
}

void node_run_tasks(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  struct task *list = node->tasks;
  node->tasks = NULL;
  node->tasks_tail = &node->tasks;
  pthread_mutex_unlock(&node->mutex);
  while (list) {
    struct task *task = list;
    list = task->next;
    task->run(task);
  }
}

static void arm_timer(struct node *node);
static void set_timer(struct node *node, uint64_t ms);

/* After each event: what connections handed over goes on its way, and the lock
   to whom it is due. Messages go to the kernel before the loop sleeps, those of
   all events that it woke up for together. */
static void go_on(struct node *node)
{
  while (propose_batch(node))
    ;
  lock_pump(node);
  arm_timer(node);
}

static void on_timer(uv_timer_t *timer)
{
  struct node *node = timer->data;
  struct raft_event event = {.type = RAFT_EVENT_TICK};
  uint64_t now = clock_monotonic_ms();
  /* libuv has timers called before the sockets are read. What came in time must
     not be taken for silence because the loop was late. */
  node->late = !node->late && now > node->due + LATE_MS;
  if (node->late) {
    set_timer(node, 1);
    return;
  }
  node_step(node, &event);
  full_tell_still(node);
  now = clock_monotonic_ms();
  if (now - node->ticked >= TICK_MS) {
    node->ticked = now;
    reads_ask(node);
    cluster_tick(node);
    snapshot_tick(node);
    fetch_tick(node);
    checkpoint_compact(node);
    full_tick(node);
    apply_tick(node);
    look_around(node);
    writer_tick(node);
    host_tick(node);
    lock_tick(node, now);
    metrics_tick(node);
    progress_tick(node);
  }
  go_on(node);
}

static void set_timer(struct node *node, uint64_t ms)
{
  node->due = clock_monotonic_ms() + ms;
  uv_timer_start(&node->timer, on_timer, ms, 0);
}

static void arm_timer(struct node *node)
{
  uint64_t ms = raft_next_deadline(node->raft);
  if (ms > TICK_MS) ms = TICK_MS;
  /* One that is due sooner stays: under steady traffic it would be put off for
     ever. */
  if (uv_is_active((uv_handle_t *)&node->timer) &&
      uv_timer_get_due_in(&node->timer) <= ms)
    return;
  set_timer(node, ms ? ms : 1);
}

/* Nothing becomes durable here any more, so nothing is confirmed: who waits for
   that is told now. */
static void give_up_waiting(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  if (!node->failed) text_set(&node->reason, "%s", NODE_LOG_FAILED);
  for (struct transaction *tx = node->inflight; tx; tx = tx->next)
    bell_ring(&tx->bell, 2);
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

static void take_durable(struct node *node)
{
  struct raft_event event = {.type = RAFT_EVENT_PERSISTED};
  int status = atomic_load(&node->disk_status);
  uint64_t durable = atomic_load(&node->durable);
  if (durable > node->durable_seen) {
    node->durable_seen = durable;
    event.u.seq = durable;
    node_step(node, &event);
    release_held(node);
  }
  if (status != 0 && !node->disk_failed) {
    node->disk_failed = true;
    event.type = RAFT_EVENT_DISK_FAILED;
    node_step(node, &event);
    if (node_log_failed(node)) give_up_waiting(node);
  }
}

void node_on_async(uv_async_t *async)
{
  struct node *node = async->data;
  take_durable(node);
  while (propose_batch(node))
    ;
  reads_ask(node);
  node_run_tasks(node);
  if (node->closing) return;
  go_on(node);
}

/* What net/ tells. */

static void on_message(void *ctx, struct raft_message *message)
{
  struct node *node = ctx;
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE};
  event.u.message = message;
  heard_message(node, message);
  progress_heard(node, message);
  node_step(node, &event);
  raft_message_clear(message);
  go_on(node);
}

static void on_posted(void *ctx, raft_id from, const uint8_t *body, size_t len)
{
  struct node *node = ctx;
  lock_posted(node, from, body, len);
  go_on(node);
}

static void on_up(void *ctx, raft_id peer)
{
  struct node *node = ctx;
  struct raft_event event = {.type = RAFT_EVENT_PEER_UP};
  event.u.peer = peer;
  node_step(node, &event);
  look_around(node);
  snapshot_peer_up(node, peer);
  lock_up(node, peer);
  go_on(node);
}

static void on_down(void *ctx, raft_id peer)
{
  struct node *node = ctx;
  struct raft_event event = {.type = RAFT_EVENT_PEER_DOWN};
  event.u.peer = peer;
  node_step(node, &event);
  /* Its other connections may be seen to end later: until the next look around
     who wants to write asks first. */
  atomic_store(&node->shared->near, false);
  go_on(node);
}

static void on_event(void *ctx, const char *line)
{
  struct node *node = ctx;
  events_add(&node->events, "%s", line);
}

void node_callbacks(struct node *node, struct net_callbacks *callbacks)
{
  *callbacks = (struct net_callbacks){
      .ctx = node,
      .message = on_message,
      .posted = on_posted,
      .up = on_up,
      .down = on_down,
      .allowed = member_verdict,
      .refused = member_refused,
      .request = cluster_request,
      .event = on_event,
      .name = member_name,
  };
}

void node_conditions(struct node *node)
{
  pthread_mutex_init(&node->mutex, NULL);
  pthread_mutex_init(&node->identity_mutex, NULL);
  clock_condition(&node->changed);
  clock_condition(&node->worker_cond);
  clock_condition(&node->verifier.cond);
}

void node_begin_loop(struct node *node)
{
  node->async.data = node->timer.data = node;
  node->now = clock_monotonic_ms();
  update_view(node, true);
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  net_set_peers(node->net, c->n > 0 ? c : &node->members);
  node_progressed(node);
  apply_committed(node);
  net_flush(node->net);
  arm_timer(node);
}
