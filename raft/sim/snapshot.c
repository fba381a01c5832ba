/*
** snapshot.c: snapshots on their way, on connections of their own.
**
** The sender offers a tag; the receiver's core says whether to begin, to go on
** where an earlier transfer broke off, or that it is not needed; then chunks
** go out, a few at a time, each answered. Offers, chunks and answers are lost,
** repeated and late like any message. When nothing was heard for a while the
** sender offers again, and after some of that it gives up. A sender that is no
** longer the leader does not know it and goes on.
**
** A receiver keeps the bytes that have arrived for as long as its process
** lives, whoever sent them, and installs them when they are whole:
** checkpoint first, then the log begins anew behind it (unless it has the
** snapshot's last entry already), then the core is told.
*/
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SILENCE (60 * SIM_MS)
#define PATIENCE 4

enum { DID_GIVE_UP = 4, DID_FINISH = 5 };

/* ---- parts -------------------------------------------------------------- */

void snapshot_free_part(struct part *part)
{
  blob_unref(part->blob);
  free(part);
}

static void send_once(struct sim *s, const struct part *part)
{
  sim_time delay = net_delay(s, part->from, part->to);
  struct sim_event event = {.type = EV_SNAPSHOT, .node = (uint8_t)part->to};

  if (delay == SIM_NEVER) return;
  event.at = s->now + delay;
  event.u.part = sim_resize(NULL, sizeof *part);
  *event.u.part = *part;
  if (part->blob) part->blob->refs++;
  sim_heap_push(s, event);
}

static void send_part(struct sim *s, const struct part *part)
{
  if (!s->peace && sim_chance(s, s->options.duplicates)) send_once(s, part);
  send_once(s, part);
}

static struct part part_of(const struct transfer *t, uint8_t type)
{
  struct part part = {.type = type,
                      .from = t->from,
                      .to = t->to,
                      .transfer = t->id,
                      .term = t->term,
                      .tag = t->blob->tag};

  return part;
}

/* ---- the sender --------------------------------------------------------- */

static void offer(struct sim *s, struct transfer *t)
{
  struct part part = part_of(t, PART_OFFER);

  t->offered = true;
  send_part(s, &part);
}

static void send_chunks(struct sim *s, struct transfer *t)
{
  uint64_t chunk = s->options.chunk_bytes;
  struct part part = part_of(t, PART_CHUNK);

  part.blob = t->blob;
  while (t->sent < t->blob->tag.bytes &&
         t->sent < t->acknowledged + chunk * s->options.snapshot_window) {
    part.offset = t->sent;
    part.len = t->blob->tag.bytes - t->sent;
    if (part.len > chunk) part.len = chunk;
    send_part(s, &part);
    t->sent += part.len;
  }
}

static void finish(struct sim *s, struct transfer *t, bool ok)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  struct node *n = &s->nodes[t->from];
  struct blob *blob = t->blob;

  if (!t->active) return;
  t->active = false;
  t->blob = NULL;
  sim_trace(s, n, T_SNAPSHOT, t->id, ok ? DID_FINISH : DID_GIVE_UP, 0, t->to,
            blob->tag.index);
  event.u.snapshot_sent.peer = t->to;
  event.u.snapshot_sent.index = blob->tag.index;
  event.u.snapshot_sent.ok = ok;
  blob_unref(blob);
  if (n->life == t->life) node_step(s, n, &event);
}

/* To this node, or to all (0). Of two at a time to one node each would make it
   forget what came by the other. */
static void drop_transfers(struct sim *s, const struct node *n, raft_id to)
{
  struct transfer *t;
  size_t i;

  for (i = 0; i < s->n_transfers; i++) {
    t = &s->transfers[i];
    if (!t->active || t->from != n->id || (to && t->to != to)) continue;
    t->active = false;
    blob_unref(t->blob);
  }
}

void snapshot_send(struct sim *s, struct node *n, raft_id to)
{
  struct transfer *t;
  size_t i;

  drop_transfers(s, n, to);
  if (n->machine.index < n->checkpoint.index || n->machine.index == 0)
    sim_fail(s, "host", "node %u has no state to send", n->id);
  for (i = 0; i < s->n_transfers && s->transfers[i].active; i++)
    ;
  if (i == s->transfers_capacity) {
    s->transfers_capacity = i ? 2 * i : 16;
    s->transfers = sim_resize(s->transfers, s->transfers_capacity * sizeof *t);
  }
  if (i == s->n_transfers) s->n_transfers++;
  t = &s->transfers[i];
  *t = (struct transfer){.from = n->id, .to = to, .life = n->life};
  t->id = (uint32_t)(++s->stats.snapshots);
  t->active = true;
  t->term = n->role_term;
  t->blob =
      blob_make(s, &n->machine, n->log.term[n->machine.index],
                &n->applied_configuration, n->applied_configuration_index);
  sim_trace(s, n, T_SNAPSHOT, t->id, PART_OFFER, 0, to, t->blob->tag.index);
  offer(s, t);
  sim_after(s, n, EV_SNAPSHOT_TIME, SILENCE, t->id);
}

static struct transfer *find(struct sim *s, uint64_t id)
{
  size_t i;

  for (i = 0; i < s->n_transfers; i++)
    if (s->transfers[i].id == id && s->transfers[i].active)
      return &s->transfers[i];
  return NULL;
}

void snapshot_time(struct sim *s, uint64_t id)
{
  struct transfer *t = find(s, id);
  struct node *n;

  if (!t) return;
  n = &s->nodes[t->from];
  if (t->heard) {
    t->silent = 0;
  } else if (++t->silent > PATIENCE) {
    finish(s, t, false);
    return;
  }
  if (!t->heard) offer(s, t);
  t->heard = 0;
  sim_after(s, n, EV_SNAPSHOT_TIME, SILENCE, id);
}

static void on_answer(struct sim *s, const struct part *part)
{
  struct transfer *t = find(s, part->transfer);

  if (!t || t->life != s->nodes[t->from].life) return;
  t->heard++;
  switch (part->verdict) {
  case RAFT_SNAPSHOT_REFUSE: finish(s, t, false); return;
  case RAFT_SNAPSHOT_HAVE: finish(s, t, true); return;
  case RAFT_SNAPSHOT_START:
  case RAFT_SNAPSHOT_RESUME:
    if (!t->offered) return; /* to an offer that was repeated on the way */
    t->offered = false;
    t->sent = t->acknowledged = part->position;
    break;
  default:
    if (part->position > t->acknowledged) t->acknowledged = part->position;
  }
  send_chunks(s, t);
}

/* ---- the receiver ------------------------------------------------------- */

static void answer(struct sim *s, const struct part *to, uint8_t verdict,
                   uint64_t position)
{
  struct part part = {.type = PART_ANSWER,
                      .verdict = verdict,
                      .from = to->to,
                      .to = to->from,
                      .transfer = to->transfer,
                      .position = position};

  send_part(s, &part);
}

/* The core takes it: it must be of use. */
static void check_wanted(struct sim *s, struct node *n, const struct part *part)
{
  if (part->tag.index <= n->commit)
    sim_fail(s, "snapshot", "node %u takes one of %u, commit is %u", n->id,
             (unsigned)part->tag.index, (unsigned)n->commit);
  if (part->term < n->role_term)
    sim_fail(s, "snapshot", "node %u takes one of term %u in term %u", n->id,
             (unsigned)part->term, (unsigned)n->role_term);
}

static void on_offer(struct sim *s, struct node *n, const struct part *part)
{
  enum raft_snapshot_verdict verdict =
      raft_snapshot_offer(n->raft, &n->in, part->term, &part->tag);

  if (verdict == RAFT_SNAPSHOT_START || verdict == RAFT_SNAPSHOT_RESUME)
    check_wanted(s, n, part);
  if (verdict == RAFT_SNAPSHOT_START)
    n->in_bytes = sim_resize(n->in_bytes, part->tag.bytes);
  if (verdict == RAFT_SNAPSHOT_RESUME && n->in.position > 0) s->stats.resumed++;
  sim_trace(s, n, T_SNAPSHOT, part->transfer, PART_OFFER, verdict,
            n->in.position, part->tag.index);
  answer(s, part, (uint8_t)verdict, n->in.position);
}

/* All that was handed to the store is durable, or its disk has failed. */
static bool drain(struct sim *s, struct node *n)
{
  while (n->writes.n_writes > 0) {
    store_run(n->store);
    if (!node_take_done(s, n)) return false;
  }
  return !n->failed;
}

/* Tells the core of what is on the disk now. */
static void enter(struct sim *s, struct node *n, struct store_checkpoint *cp,
                  const struct machine *m, bool replaced)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};

  n->checkpoint = *cp;
  n->checkpoint.settings = NULL;
  n->checkpoint.from_snapshot = false;
  n->machine = *m;
  n->applied_configuration = cp->configuration;
  n->applied_configuration_index = cp->configuration_index;
  /* Before the entries after it, which may be committed by now, are applied. */
  client_progress(s, n);
  event.u.snapshot_installed.index = cp->index;
  event.u.snapshot_installed.term = cp->term;
  event.u.snapshot_installed.configuration = &n->checkpoint.configuration;
  if (node_step(s, n, &event))
    sim_fail(s, "host", "node %u: a snapshot was refused", n->id);
  store_compact(n->store, cp->index);
  node_wake_disk(s, n);
  s->stats.installed++;
  s->stats.replaced += replaced;
  sim_trace(s, n, T_INSTALL, cp->index, cp->term, replaced, 0, 0);
}

/* What is done beside the loop: the files. Meanwhile the core hears, votes and
   writes, but nothing is applied. */
static bool install(struct sim *s, struct node *n)
{
  struct store_checkpoint cp;
  struct machine m;
  bool ok;

  if (!blob_parse(n->in_bytes, n->in.tag.bytes, &cp, &m))
    sim_fail(s, "I6", "node %u: a snapshot of rubbish", n->id);
  check_state(s, n, &m);
  cp.from_snapshot = true;
  /* From then on a start may drop the log, too. */
  if (raft_term_at(n->raft, cp.index) != cp.term)
    model_reset_begin(s, n, cp.index, cp.term);
  ok = !n->failed && node_write_checkpoint(s, n, &cp);
  store_checkpoint_clear(&cp);
  if (!ok) return false;
  n->entering = true;
  sim_after(s, n, EV_ENTER, sim_spread(s, 20 * SIM_MS), 0);
  return true;
}

void snapshot_enter(struct sim *s, struct node *n)
{
  struct store_checkpoint cp;
  struct machine m;
  bool ok, replaced;

  blob_parse(n->in_bytes, n->in.tag.bytes, &cp, &m);
  cp.from_snapshot = true;
  ok = drain(s, n);
  replaced = ok && raft_term_at(n->raft, cp.index) != cp.term;
  if (replaced) {
    model_reset_begin(s, n, cp.index, cp.term);
    ok = store_reset(n->store, cp.index, cp.term) == 0;
    if (ok) model_reset_end(s, n, cp.index, cp.term);
    node_take_done(s, n);
  }
  n->entering = false;
  if (ok && !n->failed) enter(s, n, &cp, &m, replaced);
  memset(&n->in, 0, sizeof n->in);
  store_checkpoint_clear(&cp);
}

static void on_chunk(struct sim *s, struct node *n, const struct part *part)
{
  uint64_t skip, had = n->in.position;
  enum raft_snapshot_verdict verdict = raft_snapshot_chunk(
      n->raft, &n->in, part->term, &part->tag, part->offset, part->len, &skip);

  sim_trace(s, n, T_SNAPSHOT, part->transfer, PART_CHUNK, verdict,
            n->in.position, part->tag.index);
  if (verdict == RAFT_SNAPSHOT_TAKE || verdict == RAFT_SNAPSHOT_DONE) {
    check_wanted(s, n, part);
    if (part->offset + skip != had || skip > part->len ||
        part->offset + part->len > n->in.tag.bytes)
      sim_fail(s, "snapshot", "node %u: a chunk leaves a gap", n->id);
    memcpy(n->in_bytes + had, part->blob->bytes + had, part->len - skip);
  }
  if (verdict == RAFT_SNAPSHOT_DONE) {
    verdict = install(s, n) ? RAFT_SNAPSHOT_HAVE : RAFT_SNAPSHOT_REFUSE;
    if (!n->entering) memset(&n->in, 0, sizeof n->in);
  }
  answer(s, part, (uint8_t)verdict, n->in.position);
}

void snapshot_part(struct sim *s, struct part *part)
{
  struct node *n = &s->nodes[part->to];

  if (n->status != NODE_UP) return;
  if (n->entering && part->type != PART_ANSWER) return; /* busy */
  switch (part->type) {
  case PART_OFFER: on_offer(s, n, part); return;
  case PART_CHUNK: on_chunk(s, n, part); return;
  default: on_answer(s, part); return;
  }
}

/* ---- ends --------------------------------------------------------------- */

void snapshot_forget(struct sim *s, struct node *n)
{
  n->entering = false;
  memset(&n->in, 0, sizeof n->in);
  drop_transfers(s, n, 0);
}

void snapshot_free(struct sim *s)
{
  size_t i;

  for (i = 0; i < s->n_transfers; i++)
    if (s->transfers[i].active) blob_unref(s->transfers[i].blob);
  free(s->transfers);
}
