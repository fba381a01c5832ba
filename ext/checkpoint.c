/*
** checkpoint.c: the worker: checkpoints, a new WAL, large transactions.
**
** When the WAL has grown to some length, the worker copies confirmed pages to
** the database file while everything goes on. Then it asks for a quiet
** moment: writers that have not begun wait (node->shared->hold) until the one that
** writes is done; then for an instant new readers wait too, until nobody
** reads; the loop stops applying; what is left is copied, and the WAL begins
** anew. If no such moment comes it tries again later. Readers are waited for
** although they may not need the WAL: one that turned into a writer would find
** its snapshot gone, with nothing committed since.
**
** The checkpoint file has two numbers: the floor, written before the first
** page, and the index, written when everything up to it is in the database
** file and synced (wal.h, W4; the start uses them, start.c).
**
** The log before the checkpoint is kept for nodes that lag, up to a bound;
** those that need more get a snapshot.
*/
#include "node.h"
#include "trust.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define WAL_BYTES (4u << 20) /* of frames: time to copy them */
#define SLOW_MS 10000        /* silent for so long: not merely slow */

#define PASSES 4
#define PATIENCE 8     /* that many times as long, even if it is read */
#define WRITER_MS 1000 /* wait for the one that writes */
#define READERS_MS 50  /* and for those that read, while others wait */
#define AGAIN_MS 250   /* doubled each time that it was in vain, */
#define AGAIN_MOST 6   /* at most so often; */
#define AGAIN_FULL 2   /* for want of room: until one is done the disk fills */
#define ORDER_MS 30000 /* most that checkpoint_now() takes */
#define SLICE_MS 50    /* and how often it looks for an interrupt */

/* The term of an entry of the log. */
static int read_term(struct node *node, raft_index index, raft_term *term,
                     struct text *error)
{
  struct raft_entry entry;
  char *line = NULL;
  int n = node->store ? store_read(node->store, index, index, RAFT_BODY_MAX, 1,
                                   &entry, &line)
                      : -EIO;
  if (n == 1) {
    *term = entry.term;
    raft_body_unref(entry.body);
  } else {
    text_set(error, "checkpoint: %s", line ? line : "the log is closed");
  }
  free(line);
  return n == 1 ? 0 : -EIO;
}

/* The newest configuration that was applied at or before cp->index. Mutex
   held. */
static void take_configuration(const struct node *node,
                               struct store_checkpoint *cp)
{
  const struct applied_configuration *a = node->history;
  for (; a && a->index <= cp->index; a = a->next) {
    cp->configuration = a->configuration;
    cp->configuration_index = a->index;
  }
}

static void cut_history(struct node *node, raft_index index)
{
  pthread_mutex_lock(&node->mutex);
  while (node->history && node->history->index <= index) {
    struct applied_configuration *first = node->history;
    node->history = first->next;
    free(first);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* Moves a copy of the checkpoint on to `index`. Settings may be newer than
   that: to apply them again changes nothing. */
static int advance_checkpoint(struct node *node, raft_index index,
                              struct store_checkpoint *cp, struct text *error)
{
  int rc = read_term(node, index, &cp->term, error);
  if (rc) return rc;
  apply_leave_word(node);
  cp->index = index;
  cp->from_snapshot = false; /* after one, the log has begun anew */
  cp->settings = NULL;
  pthread_mutex_lock(&node->mutex);
  take_configuration(node, cp);
  rc = settings_pack(&node->settings, &cp->settings, &cp->settings_len);
  pthread_mutex_unlock(&node->mutex);
  if (rc) text_set(error, "checkpoint: out of memory");
  return rc ? -ENOMEM : 0;
}

/* The state up to `index` as the checkpoint file keeps it. whole: all of it is
   in the database file. */
static int save(struct node *node, raft_index index, raft_index floor,
                bool whole, struct text *error)
{
  struct store_checkpoint cp = node->checkpoint;
  bool advanced = index > cp.index, arrived = cp.incoming && whole;
  raft_index snapshot = cp.index;
  char *line = NULL;
  int rc = 0;
  if (advanced) rc = advance_checkpoint(node, index, &cp, error);
  if (rc) return rc;
  /* It never goes back: pages of later entries may be in the file already. */
  if (floor > cp.floor) cp.floor = floor;
  if (arrived) cp.incoming = false;
  rc = full_write_checkpoint(node, &cp, &line);
  if (rc) {
    text_set(error, "checkpoint: %s", line ? line : errno_text(-rc).s);
    free(line);
    if (advanced) store_checkpoint_clear(&cp);
    return rc;
  }
  if (advanced) {
    store_checkpoint_clear(&node->checkpoint);
    cut_history(node, cp.index);
  }
  node->checkpoint = cp;
  if (arrived) fetch_forget(node, snapshot);
  atomic_store(&node->shown_checkpoint, cp.index);
  return 0;
}

static int write_floor(void *ctx, raft_index index)
{
  struct node *node = ctx;
  struct text error;
  if (index <= node->checkpoint.floor) return 0;
  int rc = save(node, node->checkpoint.index, index, false, &error);
  if (rc) events_add(&node->events, "%s", error.s);
  return rc;
}

int checkpoint_run(struct node *node)
{
  struct wal_checkpointed done;
  struct text error = {""};
  uint64_t began = clock_monotonic_ns();
  if (!atomic_load(&node->settled)) { /* of what index is it? */
    node->kept = (struct wal_pinner){
        "the start: no leader has said yet what is committed"};
    return -EBUSY;
  }
  int rc = wal_checkpoint(node->wal, write_floor, node, &done);
  node->kept = rc ? (struct wal_pinner){""} : done.pinned;
  if (rc == 0 &&
      (done.index > node->checkpoint.index ||
       (done.index == node->checkpoint.index && node->checkpoint.incoming)))
    rc = save(node, done.index, done.index, true, &error);
  if (rc == -EBADMSG)
    text_set(&error,
             "%s is not this node's any more: somebody has written "
             "over it",
             node->path);
  if (rc) {
    events_add(&node->events, "checkpoint failed: %s",
               error.s[0] ? error.s : errno_text(-rc).s);
    return rc;
  }
  atomic_fetch_add(&node->counters.checkpoints, 1);
  atomic_fetch_add(&node->counters.checkpoint_ns, clock_monotonic_ns() - began);
  return done.full ? 0 : -EBUSY;
}

struct start_floor {
  struct node *node;
  raft_index index;
};

static int write_start_floor(void *ctx, raft_index index)
{
  const struct start_floor *floor = ctx;
  struct node *node = floor->node;
  struct text ignored;
  (void)index;
  if (floor->index <= node->checkpoint.floor) return 0;
  return save(node, node->checkpoint.index, floor->index, false, &ignored);
}

int checkpoint_at_start(struct node *node, raft_index most)
{
  struct start_floor floor = {node, most};
  struct wal_checkpointed done;
  int rc = wal_checkpoint(node->wal, write_start_floor, &floor, &done);
  if (rc == 0) rc = done.full ? wal_restart(node->wal) : -EBUSY;
  return rc;
}

/* ---- the log ----------------------------------------------------------- */

/* More log than the database is long is of no use: whoever needs that much
   gets its pages sooner. */
static uint64_t log_enough(struct node *node)
{
  uint64_t most = (uint64_t)node->identity.log_keep_kib << 10, enough;
  pthread_mutex_lock(&node->wal->mutex);
  enough = (uint64_t)node->wal->confirmed.n_page * node->wal->page_size;
  pthread_mutex_unlock(&node->wal->mutex);
  if (enough < node_limits.log_least) enough = node_limits.log_least;
  return enough < most ? enough : most;
}

/* A member that was heard of lately still needs entries up to index. */
static bool is_needed(struct node *node, raft_index index)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  uint64_t now = clock_monotonic_ms();
  if (snapshot_needs(node, index)) return true;
  for (unsigned i = 0; i < c->n; i++) {
    struct raft_progress progress;
    if (raft_progress(node->raft, c->members[i].id, &progress) &&
        progress.state != RAFT_SNAPSHOT && progress.match < index &&
        progress.last_contact && now - progress.last_contact < SLOW_MS)
      return true;
  }
  return false;
}

void checkpoint_compact(struct node *node)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  raft_index most = atomic_load(&node->shown_checkpoint), index;
  /* Until a snapshot is installed, the checkpoint may be ahead of the log. */
  if (node->wal == NULL || node->failed || node->disk_failed || node->fetch)
    return;
  index = store_surplus(node->store, log_enough(node));
  if (index > most) index = most;
  if (is_needed(node, index)) {
    index =
        store_surplus(node->store, (uint64_t)node->identity.log_keep_kib << 10);
    if (index > most) index = most;
  }
  if (index <= node->compacted || raft_term_at(node->raft, index) == 0) return;
  node->compacted = index;
  event.u.snapshot_installed.index = index;
  event.u.snapshot_installed.term = raft_term_at(node->raft, index);
  node_step(node, &event);
  store_compact(node->store, index);
}

uint32_t checkpoint_bound(const struct node *node, uint32_t frames)
{
  uint32_t most = WAL_BYTES / node->wal->page_size;
  return frames < most ? frames : most;
}

/* ---- a quiet moment ---------------------------------------------------- */

/* Loop thread. */
static void grant_quiet(struct task *task)
{
  struct node *node = task->node;
  pthread_mutex_lock(&node->mutex);
  bool quiet = !node->apply_busy && !node->writer && !node->inflight;
  if (quiet) node->apply_busy = true;
  node->quiet = quiet ? QUIET_GRANTED : QUIET_REFUSED;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}

static void end_quiet(struct task *task)
{
  struct node *node = task->node;
  node->apply_busy = false;
  pthread_mutex_lock(&node->mutex);
  node->quiet = QUIET_NONE;
  pthread_cond_signal(&node->worker_cond);
  writer_wake(node);
  pthread_mutex_unlock(&node->mutex);
  apply_committed(node);
}

static void set_hold(struct node *node, enum hold hold)
{
  pthread_mutex_lock(&node->mutex);
  control_set_hold(node->map, hold);
  pthread_cond_broadcast(&node->changed);
  writer_wake(node);
  pthread_mutex_unlock(&node->mutex);
}

/* Waits until nobody writes. */
static bool wait_for_writer(struct node *node)
{
  struct timespec end = clock_deadline(WRITER_MS);
  pthread_mutex_lock(&node->mutex);
  while ((node->writer || node->inflight) && !node->stopping)
    if (pthread_cond_timedwait(&node->changed, &node->mutex, &end) != 0) break;
  bool idle = !node->writer && !node->inflight && !node->stopping;
  pthread_mutex_unlock(&node->mutex);
  return idle;
}

/* Waits until nobody reads; a WAL that is very long is begun anew all the
   same, when those who read do not use it. */
static bool wait_for_readers(struct node *node)
{
  struct timespec end = clock_deadline(READERS_MS);
  bool in_time = true;
  while (in_time) {
    uint32_t unpinned = atomic_load(&node->shared->unpinned);
    if (wal_unused(node->wal)) break;
    in_time = control_wait_unpinned(node->map, unpinned, &end);
  }
  return wal_unused(node->wal) ||
         wal_frames(node->wal, NULL) >=
             PATIENCE * checkpoint_bound(node, node_limits.restart_frames);
}

static bool ask_loop(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  node->quiet = QUIET_ASKED;
  pthread_mutex_unlock(&node->mutex);
  node->quiet_task.run = grant_quiet;
  if (!node_post(node, &node->quiet_task)) return false;
  pthread_mutex_lock(&node->mutex);
  while (node->quiet == QUIET_ASKED)
    pthread_cond_wait(&node->worker_cond, &node->mutex);
  bool granted = node->quiet == QUIET_GRANTED;
  pthread_mutex_unlock(&node->mutex);
  return granted;
}

static bool ask_quiet(struct node *node)
{
  set_hold(node, HOLD_WRITERS);
  if (!wait_for_writer(node)) return false;
  set_hold(node, HOLD_ALL);
  return wait_for_readers(node) && ask_loop(node);
}

static void release_quiet(struct node *node, bool granted)
{
  if (granted) {
    node->quiet_task.run = end_quiet;
    node_post(node, &node->quiet_task);
    pthread_mutex_lock(&node->mutex);
    while (node->quiet != QUIET_NONE)
      pthread_cond_wait(&node->worker_cond, &node->mutex);
    pthread_mutex_unlock(&node->mutex);
  }
  set_hold(node, HOLD_NONE);
}

/* Worth to begin anew; the first frame is always there. */
static bool is_long(struct node *node, bool ordered)
{
  return wal_frames(node->wal, NULL) >=
         (ordered ? 2 : checkpoint_bound(node, node_limits.restart_frames));
}

/* True when little enough is left to be copied in a quiet moment. */
static bool is_nearly_copied(struct node *node)
{
  uint32_t backfill, frames = wal_frames(node->wal, &backfill);
  return frames - backfill < node_limits.quiet_frames;
}

static int restart(struct node *node)
{
  bool granted = ask_quiet(node);
  int rc = granted ? checkpoint_run(node) : -EBUSY;
  if (rc == 0) rc = wal_restart(node->wal);
  release_quiet(node, granted);
  return rc;
}

/* Tells those that asked for a checkpoint what became of it. */
static void finish_checkpoint(struct node *node, int rc, uint64_t asked)
{
  struct wal_pinner kept = {""};
  if (rc == -EBUSY)
    kept = node->kept.s[0] ? node->kept : wal_pinner(node->wal, NULL);
  if (rc == -EBUSY && !kept.s[0]) kept = (struct wal_pinner){"a transaction"};
  pthread_mutex_lock(&node->mutex);
  node->worker_wanted = node->checkpoints_asked != asked;
  unsigned most = rc == -ENOSPC ? AGAIN_FULL : AGAIN_MOST;
  node->in_vain = rc == 0 ? 0 : node->in_vain < most ? node->in_vain + 1 : most;
  node->next_checkpoint =
      rc ? clock_monotonic_ms() + (AGAIN_MS << node->in_vain) : 0;
  if (node->checkpoints_done != asked) {
    node->checkpoints_done = asked;
    node->checkpoint_rc = rc == -EBUSY ? 0 : rc;
    node->checkpoint_kept = kept;
    pthread_cond_broadcast(&node->changed);
  }
  pthread_mutex_unlock(&node->mutex);
}

static void checkpoint_and_restart(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  uint64_t asked = node->checkpoints_asked;
  bool ordered = asked != node->checkpoints_done;
  pthread_mutex_unlock(&node->mutex);
  full_reserve(node);
  int rc = checkpoint_run(node);
  /* What has come meanwhile is copied while writers still write. */
  for (int i = 0; i < PASSES && rc == 0 && !is_nearly_copied(node); i++)
    rc = checkpoint_run(node);
  /* What a reader keeps from being copied may still be little. */
  if ((rc == 0 || rc == -EBUSY) && is_long(node, ordered) &&
      is_nearly_copied(node))
    rc = restart(node);
  /* What was done may have made the room, and there may be no next one for
     long. */
  if (rc == 0) full_reserve(node);
  finish_checkpoint(node, rc, asked);
}

static void describe(struct node *node, const struct wal_pinner *kept,
                     struct text *answer)
{
  uint32_t backfill, frames = wal_frames(node->wal, &backfill);
  char missing[64] = "";
  if (frames > backfill)
    snprintf(missing, sizeof(missing), ", %u of them not yet in the database",
             frames - backfill);
  text_set(answer, "checkpoint at index %llu, %u frame%s in the WAL%s%s%s",
           (unsigned long long)atomic_load(&node->shown_checkpoint), frames,
           frames == 1 ? "" : "s", missing, kept->s[0] ? ", kept by " : "",
           kept->s);
}

int checkpoint_now(struct node *node, const struct interrupt *interrupt,
                   struct text *answer)
{
  uint64_t end = clock_monotonic_ms() + ORDER_MS;
  int rc = -EAGAIN;
  if (interrupt->raised(interrupt->ctx)) return -EINTR;
  pthread_mutex_lock(&node->mutex);
  uint64_t ask = ++node->checkpoints_asked;
  node->worker_wanted = true;
  pthread_cond_signal(&node->worker_cond);
  while (rc == -EAGAIN && node->checkpoints_done < ask) {
    struct timespec slice = clock_deadline(SLICE_MS);
    if (node->stopping)
      rc = -ESHUTDOWN;
    else if (clock_monotonic_ms() > end)
      rc = -ETIMEDOUT;
    else
      pthread_cond_timedwait(&node->changed, &node->mutex, &slice);
    pthread_mutex_unlock(&node->mutex);
    if (rc == -EAGAIN && interrupt->raised(interrupt->ctx)) rc = -EINTR;
    pthread_mutex_lock(&node->mutex);
  }
  if (rc == -EAGAIN) rc = node->checkpoint_rc;
  struct wal_pinner kept = node->checkpoint_kept;
  pthread_mutex_unlock(&node->mutex);
  if (rc == -ESHUTDOWN)
    text_set(answer, "the node is stopped");
  else if (rc == -ETIMEDOUT)
    text_set(answer, "not done in %d s, it goes on", ORDER_MS / 1000);
  else if (rc)
    text_set(answer, "%s", errno_text(-rc).s);
  else
    describe(node, &kept, answer);
  return rc;
}

void *worker_main(void *arg)
{
  struct node *node = arg;
  pthread_setname_np(pthread_self(), "quorate worker");
  pthread_mutex_lock(&node->mutex);
  while (!node->stopping) {
    if (node->worker_apply) {
      node->worker_apply = false;
      pthread_mutex_unlock(&node->mutex);
      apply_large(node);
      pthread_mutex_lock(&node->mutex);
    } else if (node->worker_install) {
      node->worker_install = false;
      pthread_mutex_unlock(&node->mutex);
      fetch_install(node);
      pthread_mutex_lock(&node->mutex);
    } else if (node->worker_reopen) {
      node->worker_reopen = false;
      pthread_mutex_unlock(&node->mutex);
      full_reopen(node);
      pthread_mutex_lock(&node->mutex);
    } else if (node->worker_peers) {
      node->worker_peers = false;
      pthread_mutex_unlock(&node->mutex);
      peers_keep(node);
      pthread_mutex_lock(&node->mutex);
    } else if (node->worker_trust) {
      node->worker_trust = false;
      pthread_mutex_unlock(&node->mutex);
      trust_work(node);
      pthread_mutex_lock(&node->mutex);
    } else if (node->worker_wanted) {
      pthread_mutex_unlock(&node->mutex);
      checkpoint_and_restart(node);
      pthread_mutex_lock(&node->mutex);
    } else {
      pthread_cond_wait(&node->worker_cond, &node->mutex);
    }
  }
  pthread_mutex_unlock(&node->mutex);
  return NULL;
}
