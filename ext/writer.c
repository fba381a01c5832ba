/*
** writer.c: who writes on this node: one connection at a time, in the order of
** asking.
**
** A connection that wants to write is recognised when it asks for a READ lock:
** a statement that writes is running on it. There it waits for its turn, since
** only from there it can be given the newest state; one that waited for the
** WRITE lock would find its snapshot gone. The turn is a reservation: the
** connection reads the head, then asks for the WRITE lock, and has it. If it
** does not ask, or reads data first, the turn goes on to the next.
**
** The wait belongs to the connection's own busy handler, which sleeps by the
** VFS's xSleep: there the thread waits for its turn instead (writer_sleep), and
** goes on as soon as it has come. A handler that sleeps by other means is
** helped with short waits of our own; so is who has none. Only who really waits
** is given the turn, or it would pass unused.
**
** Who writes next builds on what is not confirmed yet, but never on another
** schema: SQLite reads the schema, to compile a statement, from what is
** confirmed, and a connection would keep one that was rejected, whose number
** the next to change it may use again. After such a transaction the turn waits
** for its fate.
**
** A node that may not write at all (no leader, or one that has the cluster's
** write lock elsewhere) keeps its writers waiting for quorate_write_wait.
** sqlite3_interrupt() ends each of these waits.
*/
#include "trust.h"
#include "vfs.h"

SQLITE_EXTENSION_INIT3

#include <assert.h>

#define LOOK_MS 50     /* pace of looking for an interrupt */
#define BARE_MS 100    /* a wait without a busy handler */
#define BESIDE_MS 20   /* beside one that sleeps elsewhere */
#define HOLD_MS 5000   /* longest wait for a new WAL */
#define UPGRADE_MS 500 /* of a reader that has others wait for it */
#define LAPSE_MS 250   /* a turn that is not used is over */
#define AGAIN_MS 250   /* a busy handler comes back sooner */
#define TURNS 20       /* lost before they were seen */

/* Where this thread waits, while it is in a busy handler. */
static _Thread_local struct connection *sleeper;
/* ms: when this thread last woke up from an xSleep. */
static _Thread_local uint64_t slept_until;

void writer_slept(void)
{
  slept_until = clock_monotonic_ms();
}

/* ---- the queue --------------------------------------------------------- */

const char *writer_refusal(const struct node *node)
{
  if (node->stopping) return "the node is stopping";
  if (node->failed) return "the node has failed: see quorate_events";
  if (node_log_failed(node)) return NODE_LOG_FAILED;
  if (node->out.s[0]) return node->out.s;
  if (node->can_write) return NULL;
  if (node->view.leader == 0) return trust_no_leader(node);
  if (node->view.role == RAFT_LEADER && node->applied < node->lead_from)
    return "the leader is still applying what was committed before";
  return NULL;
}

/* The turn may be given to somebody. */
static bool is_free(const struct node *node)
{
  return node->writer == NULL && node->can_write && !node->stopping &&
         !node->failed && !node->draining &&
         (!node->recalled || node->recall_left > 0) &&
         atomic_load(&node->shared->hold) == HOLD_NONE &&
         node->quiet != QUIET_GRANTED && node->schemas == 0;
}

static unsigned count_waiting(const struct node *node)
{
  unsigned n = node->upgrading;
  for (struct write_place *p = node->places; p; p = p->next)
    n += p->waiting;
  return n;
}

void writer_recall(struct node *node)
{
  node->recalled = true;
  node->recall_left = count_waiting(node);
  writer_note(node);
}

bool writer_is_over(const struct node *node)
{
  /* A lock that may not be used yet is kept for those that wait for it. */
  return node->writer == NULL && ((node->can_write && node->recall_left == 0) ||
                                  count_waiting(node) == 0);
}

void writer_note(struct node *node)
{
  atomic_store(&node->shared->crowded,
               !is_free(node) || node->inflight || node->places);
}

static void give(struct node *node, struct connection *c)
{
  node->writer = c;
  node->writer_writes = node->writer_commits = false;
  node->writer_thread = pthread_self();
  node->writer_since = clock_monotonic_ms();
  if (node->recalled && node->recall_left > 0) node->recall_left--;
}

static void enqueue(struct node *node, struct write_place *place)
{
  struct write_place **at = &node->places;
  while (*at)
    at = &(*at)->next;
  place->next = NULL;
  *at = place;
  place->granted = false;
}

static void leave_queue(struct node *node, struct write_place *place)
{
  struct write_place **at = &node->places;
  while (*at && *at != place)
    at = &(*at)->next;
  if (*at) *at = place->next;
}

void writer_next(struct node *node)
{
  struct write_place *place = is_free(node) ? node->places : NULL;
  while (place && !place->waiting)
    place = place->next;
  if (place) {
    leave_queue(node, place);
    place->granted = true;
    give(node, place->connection);
    node->writer_thread = place->thread;
    bell_ring(&place->bell, 1);
  } else if (node->recalled && node->writer == NULL) {
    node_wake_held(node); /* to give the lock back */
  }
  writer_note(node);
}

void writer_wake(struct node *node)
{
  for (struct write_place *place = node->places; place; place = place->next)
    bell_ring(&place->bell, 1);
  writer_next(node);
}

void writer_tick(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  if (node->writer && !node->writer_writes &&
      clock_monotonic_ms() - node->writer_since > LAPSE_MS) {
    node->writer = NULL;
    writer_next(node);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* ---- waiting ----------------------------------------------------------- */

static bool may_not_write(const struct node *node)
{
  return writer_refusal(node) != NULL;
}

/* It is nobody's turn: the checkpointer begins the WAL anew, or the schema is
   not known. */
static bool is_held(const struct node *node)
{
  return node->writer == NULL && node->can_write &&
         (atomic_load(&node->shared->hold) != HOLD_NONE || node->draining ||
          node->quiet == QUIET_GRANTED || node->schemas > 0);
}

/* False: it was not rung until `end`, or the connection was interrupted, of
   which nobody tells. The mutex is free meanwhile. */
static bool wait_bell(struct connection *c, const struct timespec *end)
{
  struct node *node = c->node;
  struct bell *bell = &c->place.bell;
  bool rung = false, over = false;
  atomic_store(&bell->rung, 0);
  pthread_mutex_unlock(&node->mutex);
  while (!rung && !over) {
    struct timespec look = clock_deadline(LOOK_MS);
    bool last = !clock_before(&look, end);
    rung = bell_wait(bell, last ? end : &look) != 0;
    over = last || vfs_interrupted(c);
  }
  pthread_mutex_lock(&node->mutex);
  return rung;
}

/* Waits to be given the turn, until `end`, and while `goes_on`. False: it is
   past `end`, or the connection was interrupted. Mutex held. */
static bool wait_here(struct node *node, struct write_place *place,
                      const struct timespec *end,
                      bool (*goes_on)(const struct node *node))
{
  bool in_time = true;
  place->waiting = true;
  writer_next(node);
  while (in_time && !place->granted && !node->stopping &&
         (goes_on == NULL || goes_on(node)))
    in_time = wait_bell(place->connection, end);
  place->waiting = false;
  return in_time;
}

bool writer_sleep(int us)
{
  struct connection *c = sleeper;
  if (c == NULL || c->place.slept_until_turn) return false;
  struct node *node = c->node;
  struct timespec end = clock_deadline((unsigned)us / 1000);
  pthread_mutex_lock(&node->mutex);
  wait_here(node, &c->place, &end, NULL);
  /* SQLite's own retries must not be woken again and again. */
  c->place.slept_until_turn = c->place.granted;
  c->place.slept = true;
  pthread_mutex_unlock(&node->mutex);
  return true;
}

/* Asks the connection's busy handler whether to go on waiting. The mutex is
   free meanwhile. */
static bool ask_handler(struct connection *c)
{
  struct node *node = c->node;
  int (*handler)(void *) = NULL;
  struct connection *outer = sleeper;
  bool more = false;
  c->place.slept = c->place.slept_until_turn = false;
  pthread_mutex_unlock(&node->mutex);
  if (c->busy) memcpy(&handler, &c->busy[0], sizeof(handler));
  sleeper = c;
  if (handler) more = handler(c->busy[1]) != 0;
  sleeper = outer;
  pthread_mutex_lock(&node->mutex);
  return more;
}

static void wait_ms_here(struct node *node, struct write_place *place,
                         unsigned ms)
{
  struct timespec end = clock_deadline(ms);
  if (!place->granted) wait_here(node, place, &end, NULL);
}

unsigned writer_patience(const struct connection *c, uint64_t refused,
                         unsigned least)
{
  /* On a busy machine the handler may sleep much longer than it meant to. */
  uint64_t since = slept_until > refused ? slept_until : refused;
  bool again = refused && clock_monotonic_ms() - since < AGAIN_MS;
  return again && c->write_wait > least ? least : c->write_wait;
}

/* Until it is this connection's turn. NULL: it is, or others write for too
   long, or it was interrupted; else why nobody here may write. Mutex held. */
static const char *wait_for_turn(struct connection *c)
{
  struct node *node = c->node;
  struct write_place *place = &c->place;
  struct timespec end = clock_deadline(writer_patience(c, c->refused_write, 0));
  struct timespec hold = clock_deadline(HOLD_MS);
  bool asked = false, in_time = true;
  while (!place->granted && !vfs_interrupted(c)) {
    if (may_not_write(node)) {
      if (!in_time || node->stopping || node->out.s[0])
        return writer_refusal(node);
      in_time = wait_here(node, place, &end, may_not_write);
      continue;
    }
    if (is_held(node) && wait_here(node, place, &hold, is_held)) continue;
    bool own =
        node->writer && pthread_equal(node->writer_thread, place->thread);
    bool more = ask_handler(c);
    if (!more && !asked && !own) wait_ms_here(node, place, BARE_MS);
    if (!more && !place->granted) return NULL;
    if (!place->slept) wait_ms_here(node, place, BESIDE_MS);
    asked = true;
  }
  return NULL;
}

static int refuse(struct connection *c, const char *why)
{
  struct node *node = c->node;
  const struct raft_member *leader;
  char text[TEXT_MAX + RAFT_ADDRESS_MAX];
  pthread_mutex_lock(&node->mutex);
  leader = raft_configuration_find(&node->members, node->view.leader);
  if (leader && node->view.leader != node->identity.id)
    snprintf(text, sizeof(text), "write refused: %s; the leader is %s at %s",
             why, leader->name, leader->address);
  else
    snprintf(text, sizeof(text), "write refused: %s", why);
  pthread_mutex_unlock(&node->mutex);
  c->refused_write = clock_monotonic_ms();
  text_set(&c->reason, "%s", text);
  node_reason(node, "%s", text);
  return SQLITE_BUSY_TIMEOUT;
}

static int end_wait(struct connection *c)
{
  text_set(&c->reason, "write interrupted: it waited for its turn");
  return SQLITE_INTERRUPT;
}

static int refuse_full(struct connection *c)
{
  text_set(&c->reason, "write refused: no room for the log");
  node_reason(c->node, "%s", c->reason.s);
  return SQLITE_FULL;
}

int writer_take(struct connection *c)
{
  struct node *node = c->node;
  const char *why = NULL;
  if (full_log(node)) return refuse_full(c);
  pthread_mutex_lock(&node->mutex);
  if (is_free(node) && node->places == NULL) {
    give(node, c);
  } else {
    c->place.connection = c;
    c->place.thread = pthread_self();
    /* Who woke late may find its turn over, or the grant gone meanwhile. */
    for (int i = 0; i < TURNS; i++) {
      enqueue(node, &c->place);
      if (!node->can_write) node_wake_held(node); /* to ask for the lock */
      why = wait_for_turn(c);
      if (!c->place.granted) leave_queue(node, &c->place);
      if (!c->place.granted || node->writer == c) break;
    }
  }
  bool mine = node->writer == c;
  writer_note(node);
  pthread_mutex_unlock(&node->mutex);
  c->reserved = mine;
  if (mine) return SQLITE_OK;
  if (vfs_interrupted(c)) return end_wait(c);
  if (why) return refuse(c, why);
  text_set(&c->reason, "write refused: another connection writes");
  return SQLITE_BUSY_TIMEOUT;
}

int writer_take_drained(struct connection *c)
{
  struct node *node = c->node;
  struct timespec end = clock_deadline(BARE_MS);
  pthread_mutex_lock(&node->mutex);
  c->place.connection = c;
  c->place.thread = pthread_self();
  enqueue(node, &c->place);
  wait_here(node, &c->place, &end, NULL);
  if (c->place.granted) {
    node->drained = &c->place.bell;
    while (node->inflight && node->writer == c && !node->stopping)
      if (!wait_bell(c, &end)) break;
    node->drained = NULL;
  } else {
    leave_queue(node, &c->place);
  }
  c->reserved = node->writer == c;
  writer_note(node);
  pthread_mutex_unlock(&node->mutex);
  return SQLITE_OK;
}

int writer_resolve(struct connection *c, uint64_t sequence, unsigned ms)
{
  const struct control_slot *slot = c->slot ? c->slot : c->reader.slot;
  uint64_t end = clock_monotonic_ms() + ms;
  unsigned write_wait = c->write_wait;
  int rc = SQLITE_BUSY_TIMEOUT;
  while (rc == SQLITE_BUSY_TIMEOUT && clock_monotonic_ms() < end &&
         !c->node->stopping) {
    c->refused_write = 0;
    c->write_wait = (unsigned)(end - clock_monotonic_ms());
    rc = writer_take(c);
  }
  c->write_wait = write_wait;
  if (rc != SQLITE_OK) return VFS_UNKNOWN;
  writer_leave(c);
  uint64_t committed = atomic_load(&slot->committed);
  if (committed == sequence || apply_knows(c->node, sequence)) return SQLITE_OK;
  return committed == CONTROL_UNSURE ? VFS_UNKNOWN : VFS_REJECTED;
}

void writer_leave(struct connection *c)
{
  struct node *node = c->node;
  c->reserved = false;
  pthread_mutex_lock(&node->mutex);
  if (node->writer == c) {
    node->writer = NULL;
    writer_next(node);
    if (atomic_load(&node->shared->hold) != HOLD_NONE)
      pthread_cond_broadcast(&node->changed);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* ---- the WRITE lock ---------------------------------------------------- */

/* Waits while the node may not write at all, or asks for the lock, and while
   the WAL begins anew. Mutex held. */
static const char *wait_to_upgrade(struct connection *c)
{
  struct node *node = c->node;
  struct timespec end = clock_deadline(writer_patience(c, c->refused_write, 0));
  struct timespec asked = clock_deadline(UPGRADE_MS);
  struct interrupt interrupt = {vfs_interrupted, c};
  const char *why = NULL;
  node->upgrading++;
  if (!node->can_write) node_wake_held(node);
  while (!node->can_write && !node->stopping && node->out.s[0] == 0) {
    why = writer_refusal(node);
    if (node_wait(node, &node->changed, why ? &end : &asked, &interrupt) != 0)
      break;
  }
  why = writer_refusal(node);
  node->upgrading--;
  /* A reader that the new WAL did not wait for finds its snapshot gone. */
  while (why == NULL && node->quiet == QUIET_GRANTED)
    if (node_wait(node, &node->changed, &end, &interrupt) != 0) break;
  return why;
}

int writer_begin(struct connection *c)
{
  struct node *node = c->node;
  struct wal *wal = node->wal;
  const char *why = NULL;
  if (full_log(node)) return refuse_full(c);
  pthread_mutex_lock(&node->mutex);
  if (node->writer != c) why = wait_to_upgrade(c);
  if (why == NULL && (!node->can_write || node->quiet == QUIET_GRANTED ||
                      (node->writer && node->writer != c))) {
    writer_next(node);
    pthread_mutex_unlock(&node->mutex);
    return vfs_interrupted(c) ? end_wait(c) : SQLITE_BUSY;
  }
  bool newest = false;
  if (why == NULL) {
    pthread_mutex_lock(&wal->mutex);
    newest = memcmp(&wal->head, &c->given, sizeof(c->given)) == 0 &&
             c->reader.generation == wal->generation;
    c->epoch = wal->epoch;
    pthread_mutex_unlock(&wal->mutex);
  }
  if (newest) {
    if (node->writer == NULL) give(node, c);
    node->writer_writes = true;
    c->grant = node->grant;
  }
  writer_next(node);
  pthread_mutex_unlock(&node->mutex);
  if (why) return vfs_interrupted(c) ? end_wait(c) : refuse(c, why);
  return newest ? SQLITE_OK : SQLITE_BUSY_SNAPSHOT;
}
