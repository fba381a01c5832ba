/*
** reads.c: when a read may begin, and who waits for what is applied.
**
** A thread that waits has a struct waiter on its stack, in one of three lists
** of the node, all guarded by its mutex:
**
**   unasked   no read index has been asked for it yet
**   asked     with the one read request that raft has from here
**   waiting   its index is known and not applied yet; in order of the index
**
** However many wait, one request is under way; whoever comes meanwhile goes
** with the next one. A waiter moves twice, and takes itself off its list when
** it gives up. The loop is woken by the first of those that are not asked for;
** it goes on when raft has answered, or has another leader. A request that
** failed under the same leader is repeated with the next housekeeping, so that
** nothing turns in circles.
**
** Leases. After each step of raft, and before a message of it is sent, the loop
** publishes until when a lease lasts, and the commit index. A thread that reads
** both, and then a clock that says that it is not over, stands where raft would
** if it had been asked for a read by lease at the moment when the first of the
** two was read: nothing that this node said or did until then is missing, what
** it has not heard of yet it could as well hear later, and whatever ends a
** lease sooner (a leadership that is handed over, doubt about the clock) is
** published before anybody can act on it. It needs no other thread if that
** commit index is applied.
**
** The clock for this is CLOCK_BOOTTIME, which goes on while the machine sleeps.
** Raft's own is CLOCK_MONOTONIC, which does not: when the two come apart, or
** when the loop stood still for as long as an election takes, raft is told so
** before it is told the time.
*/
#include "node.h"
#include "trust.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <time.h>

SQLITE_EXTENSION_INIT3

#define LOOK_MS 50   /* pace of looking for an interrupt */
#define STILL_MS 200 /* housekeeping may be late by that, with any timeout */
#define APART_NS 1000000
#define SERVE_READ UINT64_MAX /* number of the node's own read request */

/* ---- clocks ------------------------------------------------------------ */

static int64_t clock_ns(clockid_t clock)
{
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t boot_ms(void)
{
  return (uint64_t)clock_ns(CLOCK_BOOTTIME) / 1000000;
}

/* How long the machine has slept lies between the two: whoever reads two clocks
   may be held up in between. */
static bool apart(struct clock_watch *watch)
{
  int64_t first = clock_ns(CLOCK_MONOTONIC);
  int64_t boot = clock_ns(CLOCK_BOOTTIME);
  int64_t least = boot - clock_ns(CLOCK_MONOTONIC), most = boot - first;
  bool doubt = watch->known && (least > watch->slept_most + APART_NS ||
                                most < watch->slept_least - APART_NS);
  if (!watch->known || doubt || least > watch->slept_least)
    watch->slept_least = least;
  if (!watch->known || doubt || most < watch->slept_most)
    watch->slept_most = most;
  watch->known = true;
  return doubt;
}

bool reads_clock(struct node *node, uint64_t *now)
{
  struct clock_watch *watch = &node->clock_watch;
  uint64_t still = node->identity.election_timeout_ms;
  *now = clock_monotonic_ms();
  if (!node->identity.lease) return true;
  if (still < STILL_MS) still = STILL_MS;
  bool slept = apart(watch);
  bool stood = watch->looked && *now - watch->looked > still;
  watch->looked = *now;
  if (slept || stood)
    events_add(&node->events, "%s: no reads by lease in this term",
               slept ? "the machine slept" : "this node stood still");
  return !slept && !stood;
}

/* ---- leases ------------------------------------------------------------ */

void reads_publish(struct node *node)
{
  if (!node->identity.lease) return;
  uint64_t until = raft_lease_until(node->raft);
  if (until > 0) {
    /* In this order, and less one for what was rounded: not too late. */
    uint64_t boot = boot_ms();
    until = until + boot - clock_monotonic_ms() - 1;
  }
  atomic_store(&node->shared->lease_commit, raft_commit(node->raft));
  atomic_store(&node->shared->lease_until, until);
}

/* What a read by lease must see; 0: there is no lease. The clock comes last. */
static raft_index leased(const struct control *control)
{
  uint64_t until = atomic_load(&control->lease_until);
  raft_index commit = atomic_load(&control->lease_commit);
  return until > 0 && boot_ms() < until ? commit : 0;
}

bool reads_leased(const struct control_map *map)
{
  struct control_view view;
  raft_index index = leased(map->control);
  if (index == 0 || !atomic_load(&map->control->serving)) return false;
  control_look(map, &view);
  return index <= view.confirmed_index;
}

/* ---- application threads ----------------------------------------------- */

int node_wait(struct node *node, pthread_cond_t *cond,
              const struct timespec *end, const struct interrupt *interrupt)
{
  struct timespec look = clock_deadline(LOOK_MS);
  bool looks = interrupt != NULL && clock_before(&look, end);
  if (pthread_cond_timedwait(cond, &node->mutex, looks ? &look : end) == 0)
    return 0;
  if (interrupt && interrupt->raised(interrupt->ctx)) return -EINTR;
  return looks ? 0 : -ETIMEDOUT;
}

/* Where the waiter of an index belongs: after this one; NULL: first. */
static struct waiter *place(struct node *node, raft_index index)
{
  struct waiter *at = TAILQ_LAST(&node->waiting, waiters);
  while (at && at->index > index)
    at = TAILQ_PREV(at, waiters, link);
  return at;
}

static void put(struct waiters *list, struct waiter *after, struct waiter *w)
{
  if (after)
    TAILQ_INSERT_AFTER(list, after, w, link);
  else
    TAILQ_INSERT_HEAD(list, w, link);
  w->list = list;
}

static void finish(struct waiter *w, int status)
{
  TAILQ_REMOVE(w->list, w, link);
  w->list = NULL;
  w->status = status;
  pthread_cond_signal(&w->cond);
}

/* Mutex held. Until index is applied; index 0: until a read may begin that is
   asked for now. 0, -ETIMEDOUT, -EINTR, -ESHUTDOWN. *index: what it is waiting
   for, if that is known. */
static int wait_for(struct node *node, raft_index *index, bool lease,
                    const struct timespec *end,
                    const struct interrupt *interrupt)
{
  struct waiter w = {.index = *index, .lease = lease, .status = 1};
  int rc = 0;
  if (node->stopping) return -ESHUTDOWN;
  if (w.index && w.index <= node->applied) return 0;
  if (node->out.s[0]) return -ESHUTDOWN; /* nobody tells it anything more */
  clock_condition(&w.cond);
  if (w.index) {
    put(&node->waiting, place(node, w.index), &w);
  } else {
    bool first = TAILQ_EMPTY(&node->unasked) && TAILQ_EMPTY(&node->asked);
    put(&node->unasked, TAILQ_LAST(&node->unasked, waiters), &w);
    if (first && node->looping) uv_async_send(&node->async);
  }
  while (w.status == 1 && rc == 0)
    rc = node_wait(node, &w.cond, end, interrupt);
  if (w.list) TAILQ_REMOVE(w.list, &w, link);
  pthread_cond_destroy(&w.cond);
  *index = w.index;
  if (w.status == 0) return 0;
  return w.status == 1 ? rc : -ESHUTDOWN;
}

/* Why a wait was in vain. Mutex held. */
static const char *in_vain(const struct node *node, raft_index index)
{
  if (node->stopping) return "the node is stopped";
  if (node->failed) return "the node has failed: see quorate_events";
  if (node_log_failed(node)) return NODE_LOG_FAILED;
  if (node->out.s[0]) return node->out.s;
  if (node->view.leader == 0) return trust_no_leader(node);
  return index ? "this node has not caught up" : "the leader does not answer";
}

int node_barrier(struct node *node, enum read_level level, uint64_t wait_ms,
                 const struct interrupt *interrupt, struct text *reason)
{
  struct timespec end = clock_deadline(wait_ms);
  raft_index index = 0;
  int rc = 0;
  pthread_mutex_lock(&node->mutex);
  while (rc == 0 && !atomic_load(&node->shared->serving) && !node->stopping &&
         !node->failed && node->out.s[0] == 0)
    rc = node_wait(node, &node->changed, &end, interrupt);
  if (!atomic_load(&node->shared->serving)) {
    rc = rc ? rc : -ESHUTDOWN;
  } else if (level != LEVEL_LOCAL) {
    bool lease = level == LEVEL_LEASE;
    index = lease ? leased(node->shared) : 0;
    rc = wait_for(node, &index, lease, &end, interrupt);
  } else {
    rc = 0;
  }
  if (rc) {
    text_set(reason, "%s %s: %s", level == LEVEL_WRITE ? "write" : "read",
             rc == -EINTR ? "interrupted" : "refused", in_vain(node, index));
    node_keep_reason(node, reason);
  }
  pthread_mutex_unlock(&node->mutex);
  return rc == 0        ? SQLITE_OK
         : rc == -EINTR ? SQLITE_INTERRUPT
                        : SQLITE_BUSY_TIMEOUT;
}

int node_wait_applied(struct node *node, raft_index index, uint64_t wait_ms,
                      const struct interrupt *interrupt, raft_index *applied,
                      struct text *reason)
{
  struct timespec end = clock_deadline(wait_ms);
  int rc = 0;
  pthread_mutex_lock(&node->mutex);
  if (index > 0) rc = wait_for(node, &index, false, &end, interrupt);
  if (rc)
    text_set(reason, "entry %llu is not applied here, but %llu: %s",
             (unsigned long long)index, (unsigned long long)node->applied,
             in_vain(node, index));
  *applied = node->applied;
  pthread_mutex_unlock(&node->mutex);
  return rc;
}

/* ---- the loop ---------------------------------------------------------- */

void reads_init(struct node *node)
{
  TAILQ_INIT(&node->unasked);
  TAILQ_INIT(&node->asked);
  TAILQ_INIT(&node->waiting);
}

void reads_released(struct node *node)
{
  struct waiter *w;
  pthread_mutex_lock(&node->mutex);
  while ((w = TAILQ_FIRST(&node->waiting)) && w->index <= node->applied)
    finish(w, 0);
  pthread_mutex_unlock(&node->mutex);
}

/* Those that were asked for are to be asked for again, before the others.
   Mutex held. */
static void ask_anew(struct node *node)
{
  struct waiter *w;
  while ((w = TAILQ_LAST(&node->asked, waiters)) != NULL) {
    TAILQ_REMOVE(&node->asked, w, link);
    put(&node->unasked, NULL, w);
  }
  node->asked_read = 0;
}

bool reads_take(struct node *node, const struct raft_read_result *r)
{
  struct waiter *w;
  bool ok = r->status == 0;
  if (r->read == SERVE_READ) {
    node->asked_to_serve = false;
    if (ok) node->serve_from = r->index;
    return ok;
  }
  pthread_mutex_lock(&node->mutex);
  if (r->read != node->asked_read) {
    ok = false; /* all who had asked for it are gone */
  } else if (!ok) {
    ask_anew(node);
  } else {
    struct waiter *at = place(node, r->index);
    node->asked_read = 0;
    while ((w = TAILQ_FIRST(&node->asked)) != NULL) {
      w->index = r->index;
      if (r->index <= node->applied) {
        finish(w, 0);
      } else {
        TAILQ_REMOVE(&node->asked, w, link);
        put(&node->waiting, at, w);
        at = w;
      }
    }
  }
  pthread_mutex_unlock(&node->mutex);
  return ok;
}

/* One request for all that wait, if none is under way. */
static bool gather(struct node *node, struct raft_event *event)
{
  struct waiter *w;
  pthread_mutex_lock(&node->mutex);
  bool ask = TAILQ_EMPTY(&node->asked) && !TAILQ_EMPTY(&node->unasked);
  event->u.read.lease = true;
  while (ask && (w = TAILQ_FIRST(&node->unasked)) != NULL) {
    if (!w->lease) event->u.read.lease = false;
    TAILQ_REMOVE(&node->unasked, w, link);
    put(&node->asked, TAILQ_LAST(&node->asked, waiters), w);
  }
  if (ask) event->u.read.number = node->asked_read = ++node->next_read;
  pthread_mutex_unlock(&node->mutex);
  return ask;
}

void reads_ask(struct node *node)
{
  struct raft_event event = {.type = RAFT_EVENT_READ};
  if (raft_leader(node->raft) == 0) return;
  if (!atomic_load(&node->shared->serving) && node->serve_from == 0 &&
      !node->asked_to_serve && !node->failed && node->wal) {
    node->asked_to_serve = true;
    event.u.read.number = SERVE_READ;
    node_step(node, &event);
  }
  if (gather(node, &event)) node_step(node, &event);
}

void reads_again(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool ask =
      !TAILQ_EMPTY(&node->unasked) || !atomic_load(&node->shared->serving);
  if (ask && node->looping) uv_async_send(&node->async);
  pthread_mutex_unlock(&node->mutex);
}

void reads_begin_raft(struct node *node)
{
  atomic_store(&node->shared->lease_until, 0);
  node->asked_to_serve = false;
  pthread_mutex_lock(&node->mutex);
  ask_anew(node);
  pthread_mutex_unlock(&node->mutex);
}

void reads_drop(struct node *node)
{
  struct waiters *const lists[] = {&node->unasked, &node->asked,
                                   &node->waiting};
  struct waiter *w;
  pthread_mutex_lock(&node->mutex);
  for (unsigned i = 0; i < 3; i++)
    while ((w = TAILQ_FIRST(lists[i])) != NULL)
      finish(w, RAFT_ELOST);
  pthread_mutex_unlock(&node->mutex);
}
