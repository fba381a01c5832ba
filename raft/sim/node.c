/*
** node.c: a running process: the host of one core and one store.
**
** It does what raft.h asks of a host, and no more: hands `persist` to the
** store, keeps back what must wait for it, steps PERSISTED when the store has
** reported, reads back what the core asks for, applies what is committed and
** on its own disk, and wakes the core at its deadline.
**
** The store has no threads here (store_run()): the log thread's turns are
** events, some virtual time after it was given work. The disk may die in the
** middle of one; then everything that this process still does in the same
** event has no effect on its disk, and process_settle() ends it.
*/
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOAD_ENTRIES 64
#define HELPER_TURNS 40

uint64_t node_now(const struct sim *s, const struct node *n)
{
  return (n->offset_us + s->now * n->rate / 1000000) / 1000;
}

/* ---- the deadline of the core ------------------------------------------- */

void node_schedule(struct sim *s, struct node *n)
{
  uint64_t wait = raft_next_deadline(n->raft), local;
  sim_time at;

  if (wait > 60000) wait = 60000;
  local = (n->stepped + (wait ? wait : 1)) * 1000 - n->offset_us;
  at = (local * 1000000 + n->rate - 1) / n->rate;
  if (at <= s->now) at = s->now + 1;
  if (n->tick_at <= at) return;
  n->tick_at = at;
  sim_after(s, n, EV_TICK, at - s->now, at);
}

void node_tick(struct sim *s, struct node *n, bool forced)
{
  struct raft_event event = {.type = RAFT_EVENT_TICK};

  if (!forced) {
    n->tick_at = SIM_NEVER;
    /* The deadline has moved since: nothing happens now. */
    if (node_now(s, n) < n->stepped + raft_next_deadline(n->raft)) {
      s->stats.events--;
      node_schedule(s, n);
      return;
    }
  }
  node_step(s, n, &event);
  check_slowly(s, n);
}

/* ---- the store ---------------------------------------------------------- */

void node_wake_disk(struct sim *s, struct node *n)
{
  uint64_t mean = s->options.disk_us;

  if (n->disk_event) return;
  n->disk_event = true;
  if (n->slow_until > s->now && n->still) {
    sim_after(s, n, EV_DISK, n->slow_until - s->now, 0);
    return;
  }
  if (n->slow_until > s->now) mean *= 50;
  sim_after(s, n, EV_DISK, 20 + sim_spread(s, mean), 0);
}

/* Sends what has waited for the disk, in the order in which it was said. */
void node_release(struct sim *s, struct node *n)
{
  size_t i, kept = 0;

  for (i = 0; i < n->n_held; i++) {
    if (n->held[i].after > n->durable_seq) {
      n->held[kept++] = n->held[i];
      continue;
    }
    check_send(s, n, &n->held[i].said);
    net_send(s, n->held[i].packet);
  }
  n->n_held = kept;
}

static void disk_failed(struct sim *s, struct node *n)
{
  struct raft_event event = {.type = RAFT_EVENT_DISK_FAILED};

  n->failed = true;
  s->stats.disk_failures++;
  sim_trace(s, n, T_DISK, (uint64_t)n->done_status, 0, 0, 0, 0);
  node_step(s, n, &event);
  /* It looks after itself, or somebody does, in a while. */
  if (n->done_status == -ENOSPC && sim_chance(s, 700000))
    sim_after(s, n, EV_REOPEN, sim_spread(s, 100 * SIM_MS), 0);
  else
    sim_after(s, n, EV_CRASH, 10 * SIM_MS + sim_spread(s, 300 * SIM_MS), 1);
}

bool node_take_done(struct sim *s, struct node *n)
{
  struct raft_event event = {.type = RAFT_EVENT_PERSISTED};

  if (n->dying && sim_disk_dead(n->disk)) return false;
  if (n->done_seq > n->durable_seq) {
    model_durable(s, n, n->done_seq);
    n->durable_seq = event.u.seq = n->done_seq;
    sim_trace(s, n, T_DURABLE, n->durable_seq, node_model(n)->durable.last, 0,
              0, 0);
    node_release(s, n);
    node_step(s, n, &event);
  }
  if (n->done_status && !n->failed) disk_failed(s, n);
  return !n->failed;
}

void node_disk(struct sim *s, struct node *n)
{
  unsigned turns = 1 + (unsigned)sim_below(s, HELPER_TURNS);
  bool more = true;

  n->disk_event = false;
  if (n->still && n->slow_until > s->now) {
    node_wake_disk(s, n);
    return;
  }
  /* The helper thread has a disk to itself now and then: with one turn for
     each of the log thread's it could not keep up with short segments. */
  while (more && turns-- > 0 && !n->failed) {
    more = store_run(n->store);
    node_take_done(s, n);
  }
  if (more) {
    node_wake_disk(s, n);
  } else if (!n->rest_event) {
    n->rest_event = true;
    sim_after(s, n, EV_REST, STORE_REST_MS * SIM_MS, 0);
  }
}

void node_rest(struct sim *s, struct node *n)
{
  n->rest_event = false;
  if (n->disk_event) return;
  store_rest(n->store);
  sim_disk_excuse(n->disk);
  node_take_done(s, n);
}

/* ---- applying ------------------------------------------------------------ */

bool node_write_checkpoint(struct sim *s, struct node *n,
                           struct store_checkpoint *cp)
{
  char *error = NULL;
  int rc =
      store_checkpoint_write(sim_disk_io(n->disk), node_dir(n), cp, &error);

  free(error);
  if (rc) return false;
  sim_trace(s, n, T_CHECKPOINT, cp->index, cp->from_snapshot, 0, 0, 0);
  s->stats.checkpoints++;
  node_model(n)->checkpoint = cp->index;
  return true;
}

static bool checkpoint_due(const struct sim *s, const struct node *n)
{
  uint64_t every = s->options.checkpoint_every;

  if (n->failed || n->machine.index <= n->checkpoint.index) return false;
  if (s->options.checkpoint_aligned) return n->machine.index % every == 0;
  return n->machine.index - n->checkpoint.index >= every;
}

static void checkpoint(struct sim *s, struct node *n)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct store_checkpoint cp = {
      .index = n->machine.index,
      .term = n->log.term[n->machine.index],
      .floor = n->machine.index,
      .configuration = n->applied_configuration,
      .configuration_index = n->applied_configuration_index,
      .settings = (uint8_t *)&n->machine,
      .settings_len = sizeof n->machine,
  };

  if (!node_write_checkpoint(s, n, &cp)) return;
  n->checkpoint = cp;
  n->checkpoint.settings = NULL;
  event.u.snapshot_installed.index = cp.index;
  event.u.snapshot_installed.term = cp.term;
  event.u.snapshot_installed.configuration = &n->checkpoint.configuration;
  if (node_step(s, n, &event))
    sim_fail(s, "host", "node %u: its own checkpoint was refused", n->id);
  store_compact(n->store, cp.index);
  node_wake_disk(s, n);
}

static void apply_one(struct sim *s, struct node *n,
                      const struct raft_entry *entry)
{
  uint64_t op;

  if (entry->term != n->log.term[entry->index])
    sim_fail(s, "I3", "node %u reads entry %u of another term", n->id,
             (unsigned)entry->index);
  if (entry->type == RAFT_CONFIGURATION) {
    if (raft_configuration_decode(entry->body->data, entry->body->len,
                                  &n->applied_configuration))
      sim_fail(s, "codec", "configuration %u", (unsigned)entry->index);
    n->applied_configuration_index = entry->index;
  }
  op = machine_apply(&n->machine, entry);
  check_state(s, n, &n->machine);
  client_applied(s, n, entry, op);
  if (checkpoint_due(s, n)) checkpoint(s, n);
}

/* From the tail, if the core still has it, else from the files. */
static bool get_entry(struct sim *s, struct node *n, raft_index index,
                      struct raft_entry *entry)
{
  const struct raft_entry *tail = raft_entry_at(n->raft, index);
  char *error = NULL;
  int rc;

  if (tail) {
    *entry = *tail;
    raft_body_ref(entry->body);
    return true;
  }
  rc = store_read(n->store, index, index, 1u << 21, 1, entry, &error);
  free(error);
  if (rc == 1) return true;
  if (rc == -EBADMSG && n->damaged)
    n->doomed = true;
  else if (rc != -EIO && !n->failed) /* a reset may have failed half-way */
    sim_fail(s, "store", "node %u: entry %u cannot be read: %d", n->id,
             (unsigned)index, rc);
  return false;
}

void node_apply(struct sim *s, struct node *n)
{
  raft_index from = n->machine.index;
  struct raft_entry entry;

  if (n->applying || n->doomed || n->entering) return;
  n->applying = true;
  while (n->machine.index < n->commit &&
         n->machine.index < raft_durable(n->raft)) {
    if (!get_entry(s, n, n->machine.index + 1, &entry)) break;
    apply_one(s, n, &entry);
    raft_body_unref(entry.body);
  }
  n->applying = false;
  if (n->machine.index == from) return;
  sim_trace(s, n, T_APPLY, n->machine.index, n->machine.chain, 0, 0, 0);
  client_progress(s, n);
}

/* ---- carrying out -------------------------------------------------------- */

static void send_or_hold(struct sim *s, struct node *n,
                         const struct raft_send *send)
{
  const struct raft_message *m = &send->message;
  struct packet *packet;

  sim_trace(s, n, T_SEND, m->to, m->type, m->term,
            m->prev_index ? m->prev_index : m->match,
            m->n_entries ? m->n_entries : m->granted);
  packet = net_encode(s, m);
  if (send->after <= n->durable_seq) {
    check_send(s, n, m);
    net_send(s, packet);
    return;
  }
  if (n->n_held == n->held_capacity) {
    n->held_capacity = n->held_capacity ? 2 * n->held_capacity : 16;
    n->held = sim_resize(n->held, n->held_capacity * sizeof *n->held);
  }
  n->held[n->n_held].after = send->after;
  n->held[n->n_held].said = *m;
  n->held[n->n_held++].packet = packet;
}

static void submit(struct sim *s, struct node *n, const struct raft_persist *p)
{
  int rc;

  sim_trace(s, n, T_PERSIST, p->seq, p->vote ? p->term : 0, p->voted_for,
            p->n_entries ? p->entries[0].index : 0, p->n_entries);
  model_submit(s, n, p);
  rc = store_submit(n->store, p);
  if (rc == -EINVAL) sim_fail(s, "store", "node %u: write refused", n->id);
  node_wake_disk(s, n);
}

static void ask_load(struct sim *s, struct node *n, const struct raft_load *l)
{
  bool under_way = n->loads[l->peer].first != 0;

  /* One that was removed and added again is asked for anew. */
  if (under_way && n->load_configuration[l->peer] == n->configuration_index)
    sim_fail(s, "I15", "node %u loads twice at a time for %u", n->id,
             (unsigned)l->peer);
  n->loads[l->peer] = *l;
  n->load_configuration[l->peer] = n->configuration_index;
  if (under_way) return; /* that answer will be to this question */
  sim_after(s, n, EV_LOAD, sim_spread(s, s->options.load_us), l->peer);
}

/* Nothing in here steps again before `e` has been used up. */
static void carry_out(struct sim *s, struct node *n,
                      const struct raft_effects *e)
{
  unsigned i;

  if (e->persist.seq) submit(s, n, &e->persist);
  for (i = 0; i < e->n_sends; i++)
    send_or_hold(s, n, &e->sends[i]);
  for (i = 0; i < e->n_reads; i++)
    client_answered(s, n, &e->reads[i]);
  for (i = 0; i < e->n_loads; i++)
    ask_load(s, n, &e->loads[i]);
  for (i = 0; i < e->n_snapshots; i++)
    snapshot_send(s, n, e->snapshots[i]);
  node_apply(s, n);
  node_schedule(s, n);
}

int node_step(struct sim *s, struct node *n, struct raft_event *event)
{
  struct raft_effects effects;
  raft_index first, last;
  int rc;

  event->now = n->stepped = node_now(s, n);
  rc = raft_step(n->raft, event, &effects);
  if (rc == RAFT_ENOMEM) sim_fail(s, "host", "out of memory");
  sim_trace(s, n, T_STEP, event->type, (uint64_t)rc, 0, 0, 0);
  check_step(s, n, &effects);
  first = effects.proposed_first;
  last = effects.proposed_last;
  carry_out(s, n, &effects);
  n->proposed_first = first;
  n->proposed_last = last;
  return rc;
}

/* ---- what arrives -------------------------------------------------------- */

static bool is_member(const struct node *n, raft_id id)
{
  return n->configuration.n == 0 ||
         raft_configuration_find(&n->configuration, id) != NULL;
}

void node_packet(struct sim *s, struct node *n, struct packet *packet)
{
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE};
  struct raft_message m;

  /* Some hosts take connections of members only. */
  if (s->options.members_only && n->role == RAFT_LEADER &&
      !is_member(n, packet->from))
    return;
  if (raft_message_decode(packet->bytes, packet->len, &m))
    sim_fail(s, "codec", "node %u cannot decode a message of %u", n->id,
             (unsigned)packet->from);
  sim_trace(s, n, T_MESSAGE, m.from, m.type, m.term,
            m.prev_index ? m.prev_index : m.match,
            m.n_entries ? m.n_entries : m.granted);
  event.u.message = &m;
  node_step(s, n, &event);
  raft_message_clear(&m);
}

void node_link(struct sim *s, struct node *n, raft_id peer, bool up)
{
  struct raft_event event = {.type = up ? RAFT_EVENT_PEER_UP
                                        : RAFT_EVENT_PEER_DOWN};

  sim_trace(s, n, T_LINK, peer, up, 0, 0, 0);
  event.u.peer = peer;
  node_step(s, n, &event);
}

void node_load(struct sim *s, struct node *n, uint64_t peer)
{
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  struct raft_load load = n->loads[peer];
  struct raft_entry entries[LOAD_ENTRIES];
  char *error = NULL;
  int got, i;

  n->loads[peer].first = 0;
  /* Some are in a file that cannot be read any more: often many times. */
  if (s->options.every[F_EIO] && !s->peace && sim_chance(s, 500000))
    got = -EIO;
  else
    got = store_read(n->store, load.first, UINT64_MAX, load.max_bytes,
                     LOAD_ENTRIES, entries, &error);
  free(error);
  /* It may have been compacted since, or its disk is failing. */
  if (got < 0 && got != -ENOENT && got != -EIO && !n->damaged)
    sim_fail(s, "store", "node %u: load of %u: %d", n->id, (unsigned)load.first,
             got);
  s->stats.loads++;
  event.u.loaded.peer = load.peer;
  event.u.loaded.first = load.first;
  event.u.loaded.n = got < 0 ? 0 : (unsigned)got;
  event.u.loaded.entries = entries;
  node_step(s, n, &event);
  for (i = 0; i < got; i++)
    raft_body_unref(entries[i].body);
}
