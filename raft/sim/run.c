/*
** run.c: a seed from its beginning to peace.
**
** The cluster starts, and for a number of events anything may happen. Then all
** faults stop, clients fall silent, and whoever can starts: within ten
** election timeouts there must be a leader, all members must come to agree,
** and a fresh write and a fresh read must succeed (I16).
*/
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define EVENTS_OF_PEACE 3000000

/* ---- nodes -------------------------------------------------------------- */

struct node *sim_leader(struct sim *s)
{
  struct node *n, *leader = NULL;
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++) {
    n = &s->nodes[i];
    if (n->status != NODE_UP || n->paused || n->role != RAFT_LEADER) continue;
    if (!leader || n->role_term > leader->role_term) leader = n;
  }
  return leader;
}

struct node *sim_some_node(struct sim *s, bool up)
{
  unsigned i, k, n = s->options.nodes, start = (unsigned)sim_below(s, n);

  for (i = 0; i < n; i++) {
    k = 1 + (start + i) % n;
    if (!up || (s->nodes[k].status == NODE_UP && !s->nodes[k].paused))
      return &s->nodes[k];
  }
  return NULL;
}

/* ---- events ------------------------------------------------------------- */

static void drop_payload(struct sim *s, const struct sim_event *e)
{
  if (e->type == EV_PACKET) net_drop(s, e->u.packet);
  if (e->type == EV_SNAPSHOT) snapshot_free_part(e->u.part);
}

static void start_again(struct sim *s, struct node *n)
{
  if (n->status == NODE_UP) return;
  if (n->status == NODE_REFUSED) {
    if (s->peace || n->n_lives == SIM_LIVES) return;
    process_wipe(s, n);
  }
  process_start(s, n);
}

static void on_packet(struct sim *s, struct node *n, struct packet *packet)
{
  if (net_arrives(s, packet)) node_packet(s, n, packet);
  net_drop(s, packet);
}

static void handle_process(struct sim *s, struct node *n,
                           const struct sim_event *e)
{
  switch (e->type) {
  case EV_START: start_again(s, n); break;
  case EV_CRASH: process_end(s, n, e->u.number == 1); break;
  case EV_REOPEN: process_reopen(s, n); break;
  case EV_ENTER: snapshot_enter(s, n); break;
  case EV_RESUME: process_resume(s, n); break;
  case EV_STOP: fault_stop_done(s, n); break;
  case EV_SPACE:
    n->full = false;
    process_set_disk_faults(s, n);
    break;
  case EV_LINK_UP: net_link_up(s, n->id, e->u.number); break;
  case EV_SNAPSHOT:
    snapshot_part(s, e->u.part);
    snapshot_free_part(e->u.part);
    break;
  case EV_SNAPSHOT_TIME: snapshot_time(s, e->u.number); break;
  default: abort();
  }
}

static void handle_node(struct sim *s, struct node *n,
                        const struct sim_event *e)
{
  switch (e->type) {
  case EV_PACKET: on_packet(s, n, e->u.packet); break;
  case EV_TICK:
    if (e->u.number == n->tick_at)
      node_tick(s, n, false);
    else
      s->stats.events--; /* an earlier one took its place */
    break;
  case EV_DISK: node_disk(s, n); break;
  case EV_REST: node_rest(s, n); break;
  case EV_LOAD: node_load(s, n, e->u.number); break;
  case EV_LINK: node_link(s, n, e->u.number, false); break;
  default: handle_process(s, n, e); break;
  }
}

/* For a process that is no more, or not there. */
static bool too_late(const struct node *n, const struct sim_event *e)
{
  if (e->life && e->life != n->life) return true;
  return n->status != NODE_UP && e->type != EV_START && e->type != EV_SPACE &&
         e->type != EV_LINK_UP;
}

static void handle(struct sim *s, const struct sim_event *e)
{
  struct node *n = e->node ? &s->nodes[e->node] : NULL;

  if (n && too_late(n, e)) {
    drop_payload(s, e);
    return;
  }
  if (n && process_defers(s, n, e)) return;
  s->stats.events++;
  switch (e->type) {
  case EV_CLIENT:
    if (s->peace) break;
    client_act(s);
    sim_after(s, NULL, EV_CLIENT, 1 + sim_spread(s, s->options.client_us), 0);
    break;
  case EV_FAULT:
    if (!s->peace) fault_strike(s, (enum sim_fault)e->u.number);
    break;
  case EV_HEAL: net_heal(s); break;
  default: handle_node(s, n, e);
  }
}

/* One event; whose disk died in it, ends. */
static void turn(struct sim *s)
{
  struct sim_event e;
  unsigned i;

  if (!sim_heap_pop(s, &e)) sim_fail(s, "host", "nothing happens any more");
  s->now = e.at;
  handle(s, &e);
  if (e.node) {
    process_settle(s, &s->nodes[e.node]);
    return;
  }
  for (i = 1; i <= s->options.nodes; i++)
    process_settle(s, &s->nodes[i]);
}

/* ---- peace -------------------------------------------------------------- */

static void make_peace_with(struct sim *s, struct node *n)
{
  n->full = false;
  n->slow_until = 0;
  process_resume(s, n);
  /* What it has lost without knowing, it must learn now. */
  if (n->dying)
    process_end(s, n, false);
  else if (n->damaged || n->failed || n->stopping)
    process_end(s, n, true);
  sim_disk_die_in(n->disk, -1);
  process_set_disk_faults(s, n);
  if (n->status == NODE_DOWN) process_start(s, n);
  /* A turn that a slow disk has put off. */
  if (n->disk_event) sim_after(s, n, EV_DISK, 100, 0);
}

static void make_peace(struct sim *s)
{
  unsigned i;

  sim_trace(s, NULL, T_PEACE, 1, 0, 0, 0, 0);
  s->peace = s->net.perfect = true;
  memset(s->net.cut, 0, sizeof s->net.cut);
  memset(s->net.down, 0, sizeof s->net.down);
  memset(s->net.clogged, 0, sizeof s->net.clogged);
  s->options.disk_us = 100;
  for (i = 1; i <= s->options.nodes; i++)
    make_peace_with(s, &s->nodes[i]);
}

static bool is_led(struct sim *s)
{
  return sim_leader(s) != NULL;
}

/* All members that have their data hold and have applied what the leader
   has, and no change is half done. */
static bool has_converged(struct sim *s)
{
  struct node *leader = sim_leader(s), *n;
  const struct raft_configuration *c;
  unsigned i;

  if (!leader || leader->machine.index != leader->log.last) return false;
  c = &leader->configuration;
  if (raft_configuration_joint(c) || raft_transferring(leader->raft))
    return false;
  for (i = 0; i < c->n; i++) {
    if (fault_is_lost(s, &c->members[i])) continue;
    n = &s->nodes[c->members[i].id];
    if (n->status != NODE_UP || n->machine.index != leader->log.last ||
        node_model(n)->durable.last != leader->log.last)
      return false;
  }
  return true;
}

/* A disk may have failed before, and be noticed only now: its node is not up
   again yet. */
static bool any_restarts(struct sim *s)
{
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++)
    if (s->nodes[i].status == NODE_DOWN ||
        (s->nodes[i].status == NODE_UP && s->nodes[i].failed))
      return true;
  return false;
}

static void wait_until(struct sim *s, bool (*done)(struct sim *), unsigned most,
                       const char *what)
{
  sim_time limit = s->now + (sim_time)most * s->options.election_ms * SIM_MS;
  sim_time look = s->now;
  uint64_t events = s->stats.events;

  for (;;) {
    if (s->now >= look) {
      if (done(s)) return;
      look = s->now + 5 * SIM_MS;
      if (any_restarts(s))
        limit = s->now + (sim_time)most * s->options.election_ms * SIM_MS;
    }
    if (s->now > limit || s->stats.events - events > EVENTS_OF_PEACE)
      sim_fail(s, "I16", "%s", what);
    turn(s);
  }
}

static uint64_t fresh_write, fresh_read;

static bool is_written(struct sim *s)
{
  struct node *leader = sim_leader(s);

  if (fresh_write && s->clients.ops[fresh_write].state == OP_DONE) return true;
  if (fresh_write && s->clients.ops[fresh_write].state == OP_PENDING)
    return false;
  fresh_write = leader ? client_propose(s, leader) : 0;
  return false;
}

static bool is_read(struct sim *s)
{
  struct node *leader = sim_leader(s);
  const struct raft_member *m;

  if (fresh_read && s->clients.reads[fresh_read].state == OP_DONE) return true;
  if (fresh_read && s->clients.reads[fresh_read].state == OP_PENDING)
    return false;
  fresh_read = 0;
  if (!leader) return false;
  m = &leader->configuration.members[sim_below(s, leader->configuration.n)];
  if (!fault_is_lost(s, m) && s->nodes[m->id].status == NODE_UP)
    fresh_read = client_read(s, &s->nodes[m->id], false);
  return false;
}

static void keep_peace(struct sim *s)
{
  fresh_write = fresh_read = 0;
  wait_until(s, is_led, 10, "no leader in ten election timeouts");
  sim_trace(s, NULL, T_PEACE, 2, 0, 0, 0, 0);
  wait_until(s, has_converged, 60, "the members do not come to agree");
  sim_trace(s, NULL, T_PEACE, 3, 0, 0, 0, 0);
  wait_until(s, is_written, 10, "a fresh write is not done");
  wait_until(s, is_read, 10, "a fresh read is not answered");
  sim_trace(s, NULL, T_PEACE, 4, 0, 0, 0, 0);
  wait_until(s, has_converged, 20, "the members do not stay together");
  wait_until(s, client_settled, 10, "a call was never answered");
}

/* ---- a seed ------------------------------------------------------------- */

static void prepare(struct sim *s)
{
  struct committed *first = check_committed(s, 1);
  struct raft_member *m;
  unsigned i;

  first->chain = 1;
  first->term = 1;
  s->checks.max_committed = 1;
  s->first.n = s->options.voters;
  for (i = 0; i < s->options.voters; i++) {
    m = &s->first.members[i];
    m->id = i + 1;
    m->incarnation = 1;
    m->role = RAFT_VOTER;
    m->name[0] = 'n';
    m->name[1] = (char)('1' + i);
    m->address[0] = 'h';
    if (s->options.priorities) m->priority = (uint8_t)sim_below(s, 3);
  }
  s->checks.configuration = s->first;
  s->checks.configuration_index = 1;
  for (i = 1; i <= s->options.nodes; i++)
    process_prepare(s, &s->nodes[i], i);
}

static void live(struct sim *s)
{
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++)
    process_start(s, &s->nodes[i]);
  for (i = 0; i < F_EIO; i++)
    fault_schedule(s, (enum sim_fault)i);
  sim_after(s, NULL, EV_CLIENT, 1, 0);
  while (s->stats.events < s->options.steps)
    turn(s);
  make_peace(s);
  keep_peace(s);
}

static void add_stats(struct sim_stats *sum, const struct sim_stats *more)
{
  const uint64_t *from = (const uint64_t *)more;
  uint64_t *to = (uint64_t *)sum;
  size_t i;

  for (i = 0; i < sizeof *sum / sizeof *to; i++)
    to[i] += from[i];
}

static void clean_up(struct sim *s)
{
  struct sim_event e;
  unsigned i;

  while (sim_heap_pop(s, &e))
    drop_payload(s, &e);
  for (i = 1; i <= s->options.nodes; i++)
    process_free(s, &s->nodes[i]);
  free(s->heap.items);
  snapshot_free(s);
  client_free(s);
  check_free(s);
  net_free(s);
}

uint64_t sim_run(uint64_t seed, struct sim_stats *stats)
{
  struct sim *s = sim_resize(NULL, sizeof *s);
  uint64_t hash;

  memset(s, 0, sizeof *s);
  sim_running = s;
  s->seed = seed;
  s->random = sim_mix(seed, 0x51ed);
  s->verbose = sim_settings.trace;
  sim_options_draw(s);
  if (s->verbose) sim_options_print(&s->options);
  prepare(s);
  live(s);
  hash = s->hash;
  sim_running = NULL;
  clean_up(s);
  add_stats(stats, &s->stats);
  free(s);
  return hash;
}
