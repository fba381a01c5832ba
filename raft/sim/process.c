/*
** process.c: processes begin and end, and what they find on their disks.
**
** A process ends in order (stop), is killed (the operating system keeps what
** it has written), or loses power (of what was not synced, anything may be
** left). When one starts, the store decides what its disk means, and model.c
** whether that is right. A store may refuse to open only if its disk was
** damaged, or has a fault at that moment; a damaged one that opens without
** what it had acknowledged counts as refused as well: damage to the newest
** entries cannot be told from a torn write.
**
** A node with a refused disk is gone until it is replaced: an empty disk, and
** a new incarnation under its old id.
*/
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *node_dir(const struct node *n)
{
  static const char *const dirs[SIM_NODES + 1] = {"",   "n1", "n2", "n3", "n4",
                                                  "n5", "n6", "n7", "n8", "n9"};

  return dirs[n->id];
}

/* Inside store_run() and store_reset(): only noted. */
static void done(void *ctx, uint64_t seq, int status, const char *error)
{
  struct node *n = ctx;

  (void)error;
  n->done_seq = seq;
  if (status) {
    n->done_status = status;
    return;
  }
  if (!sim_disk_clean(n->disk, ".seg") || !sim_disk_clean(n->disk, "vote"))
    sim_fail(sim_running, "I7", "node %u: write %u is reported, not synced",
             n->id, (unsigned)seq);
}

/* ---- disks -------------------------------------------------------------- */

void process_set_disk_faults(struct sim *s, struct node *n)
{
  struct sim_disk_faults faults = {0};

  if (!s->peace) {
    faults.write = s->options.eio_write;
    faults.sync = s->options.eio_sync;
    faults.full = n->full;
  }
  sim_disk_set_faults(n->disk, &faults);
}

static void new_disk(struct sim *s, struct node *n)
{
  const struct io *io;

  if (n->disk) sim_disk_free(n->disk);
  n->disk = sim_disk_new(sim_random(s));
  io = sim_disk_io(n->disk);
  if (io->mkdir(io->ctx, node_dir(n)) || io->sync_dir(io->ctx, "."))
    sim_fail(s, "host", "no directory");
  n->damaged = n->doomed = n->full = n->dying = false;
  n->confirmed = 0;
}

/* ---- the beginning ------------------------------------------------------ */

static void set_options(struct sim *s, struct node *n)
{
  const struct sim_options *o = &s->options;
  struct raft_options *r = &n->options;

  raft_options_defaults(r);
  r->id = n->id;
  r->incarnation = n->incarnation;
  r->heartbeat_ms = o->heartbeat_ms;
  r->election_timeout_ms = o->election_ms;
  r->hint_jitter_ms = o->hint_jitter_ms;
  r->tail_bytes = o->tail_bytes;
  r->uncommitted_bytes = o->uncommitted_bytes;
  r->message_bytes = o->message_bytes;
  r->inflight_messages = o->inflight_messages;
  r->inflight_bytes = o->inflight_bytes;
  r->lease = o->lease;
}

static void first_checkpoint(struct sim *s, struct node *n)
{
  struct machine m = {.index = 1};
  struct store_checkpoint cp = {
      .index = 1,
      .term = 1,
      .floor = 1,
      .configuration = s->first,
      .configuration_index = 1,
      .settings = (uint8_t *)&m,
      .settings_len = sizeof m,
  };

  if (!node_write_checkpoint(s, n, &cp))
    sim_fail(s, "host", "first checkpoint");
  /* Empty logs begin behind it. */
  node_model(n)->cuts[0] = 1;
  node_model(n)->n_cuts = 1;
}

void process_prepare(struct sim *s, struct node *n, unsigned id)
{
  int64_t drift = (int64_t)sim_below(s, 2 * s->options.drift_ppm + 1);

  n->id = (uint8_t)id;
  n->incarnation = 1;
  n->status = NODE_DOWN;
  n->rate = (uint64_t)(1000000 + drift - s->options.drift_ppm);
  n->offset_us = 1000 * SIM_SECOND + sim_below(s, 100 * SIM_SECOND);
  n->n_lives = 1;
  n->models[0].incarnation = 1;
  new_disk(s, n);
  if (id <= s->options.voters) first_checkpoint(s, n);
}

static int open_store(struct sim *s, struct node *n,
                      struct store_checkpoint *cp, struct raft_recovered *rec)
{
  const struct io *io = sim_disk_io(n->disk);
  struct store_options options = {.dir = node_dir(n),
                                  .io = io,
                                  .segment_bytes = s->options.segment_bytes,
                                  .cluster = SIM_CLUSTER,
                                  .node = n->id,
                                  .stepped = true,
                                  .done = done,
                                  .ctx = n};
  char *error = NULL;
  int rc;

  memset(cp, 0, sizeof *cp);
  rc = store_checkpoint_read(io, node_dir(n), cp, &error);
  if (rc == -ENOENT) rc = 0;
  free(error);
  error = NULL;
  if (!rc) rc = store_open(&options, cp, &n->store, rec, &error);
  if (rc == -EBADMSG && s->verbose) printf("  %s\n", error ? error : "?");
  if (rc && rc != -EIO && rc != -ENOSPC && !(rc == -EBADMSG && n->damaged))
    sim_fail(s, "store", "node %u, undamaged, is refused: %d: %s", n->id, rc,
             error ? error : "");
  free(error);
  return rc;
}

/* The machine as of the checkpoint; the rest comes from the log. */
static void load_machine(struct sim *s, struct node *n,
                         const struct store_checkpoint *cp)
{
  memset(&n->machine, 0, sizeof n->machine);
  n->applied_configuration = cp->configuration;
  n->applied_configuration_index = cp->configuration_index;
  if (cp->index == 0) return;
  if (cp->settings_len != sizeof n->machine)
    sim_fail(s, "store", "node %u: the checkpoint's settings", n->id);
  memcpy(&n->machine, cp->settings, sizeof n->machine);
  if (n->machine.index != cp->index)
    sim_fail(s, "store", "node %u: a checkpoint with another state", n->id);
  check_state(s, n, &n->machine);
}

static void connect(struct sim *s, struct node *n)
{
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++)
    if (i != n->id)
      sim_after_any(s, n, EV_LINK_UP, 1 + sim_spread(s, 2 * SIM_MS), i);
}

static void begin(struct sim *s, struct node *n,
                  const struct raft_recovered *rec)
{
  n->options.seed = sim_random(s);
  if (raft_new(&n->options, rec, node_now(s, n), &n->raft))
    sim_fail(s, "host", "raft_new of node %u", n->id);
  n->commit = raft_commit(n->raft);
  n->status = NODE_UP;
  n->role = RAFT_FOLLOWER;
  n->role_term = rec->term;
  n->leader = 0;
  n->configuration = *raft_configuration(n->raft, &n->configuration_index);
  n->tick_at = SIM_NEVER;
  n->stepped = node_now(s, n);
  sim_trace(s, n, T_START, n->incarnation, rec->last_index, rec->commit,
            rec->term, rec->voted_for);
  node_schedule(s, n);
}

/* Not this time, or never. */
static void refuse(struct sim *s, struct node *n, int rc)
{
  sim_trace(s, n, T_REFUSED, (uint64_t)rc, 0, 0, 0, 0);
  if (n->dying) {
    sim_disk_crash(n->disk);
    n->confirmed = 0;
  } else {
    sim_disk_kill(n->disk);
  }
  n->dying = false;
  if (rc == -EBADMSG) {
    n->status = NODE_REFUSED;
    s->stats.refused++;
  }
  sim_after(s, n, EV_START, 20 * SIM_MS + sim_spread(s, 200 * SIM_MS), 0);
}

/* Opens what is on the disk and holds it against what was promised. */
static int recover(struct sim *s, struct node *n, struct store_checkpoint *cp,
                   struct raft_recovered *rec)
{
  const char *why;
  int rc;

  n->life++;
  set_options(s, n);
  process_set_disk_faults(s, n);
  n->durable_seq = n->done_seq = 0;
  n->done_status = 0;
  /* Power may be lost while a log is being repaired, too. */
  if (!n->dying && !s->peace && s->options.every[F_CRASH] &&
      sim_chance(s, 100000)) {
    n->dying = true;
    sim_disk_die_in(n->disk, (long)sim_below(s, 12));
  }
  rc = open_store(s, n, cp, rec);
  if (rc) return rc;
  why = model_recovered(s, n, cp, rec);
  if (why && n->dying && sim_disk_dead(n->disk)) {
    rc = -EIO;
  } else if (why && n->damaged) {
    s->stats.vanished++;
    rc = -EBADMSG;
  } else if (why) {
    sim_fail(s, "I7", "node %u after a restart: %s", n->id, why);
  }
  if (rc) {
    store_close(n->store);
    n->store = NULL;
    return rc;
  }
  n->checkpoint = *cp;
  n->checkpoint.settings = NULL;
  return 0;
}

void process_start(struct sim *s, struct node *n)
{
  struct store_checkpoint cp;
  struct raft_recovered rec;
  int rc = recover(s, n, &cp, &rec);

  if (rc) {
    refuse(s, n, rc);
  } else {
    load_machine(s, n, &cp);
    /* Hosts may remember what was applied, as long as the machine runs. */
    if (rec.commit < n->confirmed && n->confirmed <= rec.last_index &&
        sim_chance(s, 700000))
      rec.commit = n->confirmed;
    begin(s, n, &rec);
    connect(s, n);
    s->stats.restarts++;
  }
  store_checkpoint_clear(&cp);
}

/* ---- the end ------------------------------------------------------------ */

static void drop_deferred(struct sim *s, struct node *n)
{
  size_t i;

  for (i = 0; i < n->n_deferred; i++) {
    if (n->deferred[i].type == EV_PACKET) net_drop(s, n->deferred[i].u.packet);
    if (n->deferred[i].type == EV_SNAPSHOT)
      snapshot_free_part(n->deferred[i].u.part);
  }
  n->n_deferred = 0;
}

/* The core, and all that was meant for it or promised by it. */
static void forget_core(struct sim *s, struct node *n)
{
  size_t i;

  raft_free(n->raft);
  n->raft = NULL;
  for (i = 0; i < n->n_held; i++)
    net_drop(s, n->held[i].packet);
  n->n_held = 0;
  snapshot_forget(s, n);
  client_ended(s, n);
  memset(n->loads, 0, sizeof n->loads);
  n->disk_event = n->rest_event = n->failed = n->applying = false;
  n->match_term = 0;
}

static void forget_process(struct sim *s, struct node *n)
{
  if (n->raft) forget_core(s, n);
  drop_deferred(s, n);
  if (n->confirmed < n->machine.index) n->confirmed = n->machine.index;
  n->stopping = n->paused = n->suspended = n->dying = false;
  n->checkpoint.index = n->machine.index = 0;
  n->status = NODE_DOWN;
  n->life++;
}

/* The others see that its connections are closed: at once if only the process
   has ended, else when they next try to use them. */
static void disconnect(struct sim *s, struct node *n, bool kill)
{
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++) {
    struct node *peer = &s->nodes[i];

    if (peer == n || peer->status != NODE_UP) continue;
    if (!kill && sim_chance(s, 700000)) continue;
    sim_after(s, peer, EV_LINK, sim_spread(s, kill ? 300 : 50 * SIM_MS), n->id);
  }
}

void process_end(struct sim *s, struct node *n, bool kill)
{
  const struct sim_disk_stats *stats = sim_disk_stats(n->disk);
  uint64_t torn = stats->torn, lost = stats->lost;
  bool doomed = n->doomed;

  if (n->status != NODE_UP) return;
  sim_trace(s, n, T_DOWN, kill, 0, 0, 0, 0);
  /* The store lets go of its memory; nothing reaches the disk any more. */
  sim_disk_die_in(n->disk, 0);
  store_close(n->store);
  n->store = NULL;
  if (kill)
    sim_disk_kill(n->disk);
  else
    sim_disk_crash(n->disk);
  s->stats.crashes += !kill;
  s->stats.kills += kill;
  s->stats.torn += stats->torn - torn;
  s->stats.lost_sectors += stats->lost - lost;
  forget_process(s, n);
  if (!kill) n->confirmed = 0;
  disconnect(s, n, kill);
  if (doomed) {
    n->status = NODE_REFUSED;
    s->stats.refused++;
  }
  sim_after(s, n, EV_START, 5 * SIM_MS + sim_spread(s, 400 * SIM_MS), 0);
}

/* In order: everything that was submitted becomes durable, if it can. */
void process_close(struct sim *s, struct node *n)
{
  bool died;

  if (n->status != NODE_UP) return;
  sim_trace(s, n, T_DOWN, 2, 0, 0, 0, 0);
  s->stats.stops++;
  store_close(n->store);
  n->store = NULL;
  if (n->done_seq > n->durable_seq) model_durable(s, n, n->done_seq);
  died = n->dying && sim_disk_dead(n->disk);
  if (died)
    sim_disk_crash(n->disk);
  else
    sim_disk_kill(n->disk);
  forget_process(s, n);
  if (died) n->confirmed = 0;
  disconnect(s, n, true);
  sim_after(s, n, EV_START, 5 * SIM_MS + sim_spread(s, 300 * SIM_MS), 0);
}

void process_reopen(struct sim *s, struct node *n)
{
  struct store_checkpoint cp;
  struct raft_recovered rec;
  int rc;

  if (n->stopping) return;
  if (n->full || n->entering) {
    sim_after(s, n, EV_REOPEN, sim_spread(s, 100 * SIM_MS), 0);
    return;
  }
  store_close(n->store);
  n->store = NULL;
  forget_core(s, n);
  rc = recover(s, n, &cp, &rec);
  if (rc) {
    bool dying = n->dying;

    forget_process(s, n);
    n->dying = dying;
    disconnect(s, n, true);
    refuse(s, n, rc);
  } else {
    /* A snapshot that was on its way into the log. */
    if (cp.index > n->machine.index) load_machine(s, n, &cp);
    /* What is applied was durable here. */
    if (rec.commit < n->machine.index) rec.commit = n->machine.index;
    begin(s, n, &rec);
    s->stats.reopened++;
  }
  store_checkpoint_clear(&cp);
}

void process_wipe(struct sim *s, struct node *n)
{
  if (n->n_lives == SIM_LIVES) return;
  process_end(s, n, false);
  n->incarnation++;
  n->models[n->n_lives++].incarnation = n->incarnation;
  n->writes.n_writes = n->writes.n_entries = 0;
  n->log.base = n->log.last = 0;
  n->vote_term = 0;
  n->voted_for = 0;
  n->status = NODE_DOWN;
  new_disk(s, n);
  s->stats.wiped++;
}

void process_settle(struct sim *s, struct node *n)
{
  if (n->status != NODE_UP) return;
  if (n->dying && sim_disk_dead(n->disk))
    process_end(s, n, false);
  else if (n->doomed)
    process_end(s, n, true);
}

void process_free(struct sim *s, struct node *n)
{
  const struct sim_disk_stats *d;

  if (n->status == NODE_UP) {
    sim_disk_die_in(n->disk, 0);
    store_close(n->store);
    forget_process(s, n);
  }
  if (n->disk) {
    d = sim_disk_stats(n->disk);
    s->stats.eio += d->write_faults + d->sync_faults;
    s->stats.full += d->full_faults;
    s->stats.rotted += d->rotted;
    s->stats.misdirected += d->misdirected;
    sim_disk_free(n->disk);
  }
  model_free(n);
  free(n->held);
  free(n->ops.ids);
  free(n->reads.ids);
  free(n->deferred);
  free(n->in_bytes);
}

/* ---- pauses ------------------------------------------------------------- */

/* Events that the process itself would handle; the rest of the world goes on. */
bool process_defers(struct sim *s, struct node *n,
                    const struct sim_event *event)
{
  (void)s;
  if (!n->paused) return false;
  switch (event->type) {
  case EV_PACKET:
  case EV_TICK:
  case EV_DISK:
  case EV_REST:
  case EV_LOAD:
  case EV_LINK:
  case EV_SNAPSHOT:
  case EV_SNAPSHOT_TIME:
  case EV_STOP:
  case EV_REOPEN:
  case EV_ENTER: break;
  default: return false;
  }
  if (n->n_deferred == n->deferred_capacity) {
    n->deferred_capacity = n->deferred_capacity ? 2 * n->deferred_capacity : 64;
    n->deferred =
        sim_resize(n->deferred, n->deferred_capacity * sizeof *n->deferred);
  }
  n->deferred[n->n_deferred++] = *event;
  return true;
}

void process_pause(struct sim *s, struct node *n, sim_time time, bool suspend)
{
  if (n->status != NODE_UP || n->paused) return;
  n->paused = true;
  n->suspended = suspend;
  n->paused_at = s->now;
  s->stats.pauses++;
  sim_after(s, n, EV_RESUME, time, 0);
}

void process_resume(struct sim *s, struct node *n)
{
  struct raft_event doubt = {.type = RAFT_EVENT_CLOCK_DOUBT};
  size_t i;

  if (!n->paused) return;
  n->paused = false;
  if (n->suspended) {
    n->offset_us -= (s->now - n->paused_at) * n->rate / 1000000;
    n->suspended = false;
    node_step(s, n, &doubt);
  }
  /* Whoever has waited asks before it has heard or noticed anything. */
  if (!s->peace && s->options.lease && sim_chance(s, 500000))
    client_read(s, n, true);
  if (s->options.tick_first) node_tick(s, n, true);
  /* They are put back, at this very time, in their order. */
  for (i = 0; i < n->n_deferred; i++) {
    n->deferred[i].at = s->now;
    sim_heap_push(s, n->deferred[i]);
  }
  n->n_deferred = 0;
}
