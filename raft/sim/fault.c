/*
** fault.c: misfortune, of the classes that a seed has drawn.
**
** Each class strikes after times that are exponentially distributed. Nodes may
** crash all at once, and as often as they like. But data may be lost only (a
** wiped disk, or damage that the store refuses) where every configuration that
** may count keeps a quorum of voters whose data are whole: beyond that Raft
** promises nothing.
*/
#include "sim.h"

#include <string.h>

/* ---- who may be lost ---------------------------------------------------- */

bool fault_is_lost(const struct sim *s, const struct raft_member *member)
{
  const struct node *n;

  if (member->id == 0 || member->id > s->options.nodes) return true;
  n = &s->nodes[member->id];
  return n->incarnation != member->incarnation || n->damaged ||
         n->status == NODE_REFUSED;
}

static bool half_lives(const struct sim *s, const struct raft_configuration *c,
                       const struct node *without, bool old)
{
  unsigned i, voters = 0, whole = 0;

  for (i = 0; i < c->n; i++) {
    const struct raft_member *m = &c->members[i];

    if (old ? !m->outgoing : m->role != RAFT_VOTER) continue;
    voters++;
    whole += !fault_is_lost(s, m) && (!without || m->id != without->id);
  }
  return 2 * whole > voters || (old && voters == 0);
}

bool fault_configuration_lives(struct sim *s,
                               const struct raft_configuration *c,
                               const struct node *without)
{
  return half_lives(s, c, without, false) && half_lives(s, c, without, true);
}

bool fault_may_lose(struct sim *s, const struct node *n)
{
  const struct checks *c = &s->checks;
  size_t i;

  if (n->n_lives == SIM_LIVES) return false;
  if (!fault_configuration_lives(s, &c->configuration, n)) return false;
  for (i = 0; i < c->n_live; i++)
    if (!fault_configuration_lives(s, &c->live[i].configuration, n))
      return false;
  for (i = 1; i <= s->options.nodes; i++)
    if (s->nodes[i].status == NODE_UP && s->nodes[i].configuration.n > 0 &&
        s->nodes[i].configuration_index > c->configuration_index &&
        !fault_configuration_lives(s, &s->nodes[i].configuration, n))
      return false;
  return true;
}

/* ---- strikes ------------------------------------------------------------ */

void fault_schedule(struct sim *s, enum sim_fault fault)
{
  if (s->options.every[fault])
    sim_after(s, NULL, EV_FAULT, 1 + sim_spread(s, s->options.every[fault]),
              fault);
}

/* In the middle of whatever its disk does next; if it does nothing, soon. */
static void power_loss(struct sim *s, struct node *n)
{
  if (n->dying) return;
  n->dying = true;
  sim_disk_die_in(n->disk, (long)sim_below(s, 16));
  sim_after(s, n, EV_CRASH, sim_spread(s, 20 * SIM_MS), 0);
}

static void stop(struct sim *s, struct node *n)
{
  struct raft_event event = {.type = RAFT_EVENT_TRANSFER};
  uint32_t life = n->life;

  if (n->paused || n->stopping) return;
  n->stopping = true;
  if (n->role == RAFT_LEADER && node_step(s, n, &event) == 0)
    s->stats.transfers++;
  if (n->life == life) sim_after(s, n, EV_STOP, 10 * SIM_MS, 0);
}

/* Not longer than the leader itself would wait. */
void fault_stop_done(struct sim *s, struct node *n)
{
  if (n->role == RAFT_LEADER && raft_transferring(n->raft)) {
    sim_after(s, n, EV_STOP, 10 * SIM_MS, 0);
    return;
  }
  process_close(s, n);
}

static void damage(struct sim *s, struct node *n, enum sim_fault fault)
{
  struct sim_disk_hit hit;
  bool done;

  if (n->damaged || !fault_may_lose(s, n)) return;
  done = fault == F_ROT ? sim_disk_rot(n->disk, &hit)
                        : sim_disk_misdirect(n->disk, &hit);
  if (!done) return;
  n->damaged = true;
  /* It may run for long without seeing it; a restart will. */
  sim_after(s, n, EV_CRASH, sim_spread(s, SIM_SECOND), 1);
}

static void wipe(struct sim *s, struct node *n)
{
  if (!fault_may_lose(s, n)) return;
  process_wipe(s, n);
}

static void fill_disk(struct sim *s, struct node *n)
{
  if (n->full) return;
  n->full = true;
  process_set_disk_faults(s, n);
  sim_after_any(s, n, EV_SPACE, sim_spread(s, 500 * SIM_MS), 0);
}

/* For a moment it is slow, or it does nothing for so long that the others should
   go on without it. */
static void stall_disk(struct sim *s, struct node *n)
{
  uint64_t timeout = s->options.election_ms * SIM_MS;

  n->still = sim_chance(s, 200000);
  n->slow_until = s->now + sim_spread(s, n->still ? 10 * timeout : timeout);
}

static void strike_node(struct sim *s, enum sim_fault fault, struct node *n)
{
  struct raft_event doubt = {.type = RAFT_EVENT_CLOCK_DOUBT};
  uint64_t timeout = s->options.election_ms * SIM_MS;

  switch (fault) {
  case F_CRASH: power_loss(s, n); break;
  case F_KILL: process_end(s, n, true); break;
  case F_PAUSE:
    /* About as long as a lease, or anything. */
    process_pause(s, n,
                  s->options.lease ? sim_between(s, timeout, timeout * 13 / 10)
                                   : sim_spread(s, timeout),
                  false);
    break;
  case F_SUSPEND: process_pause(s, n, sim_spread(s, timeout), true); break;
  case F_STOP: stop(s, n); break;
  case F_WIPE: wipe(s, n); break;
  case F_ROT:
  case F_MISDIRECT: damage(s, n, fault); break;
  case F_FULL: fill_disk(s, n); break;
  case F_STALL: stall_disk(s, n); break;
  case F_DOUBT:
    if (!n->paused) node_step(s, n, &doubt);
    break;
  default: break;
  }
}

static void strike_all(struct sim *s)
{
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++)
    if (s->nodes[i].status == NODE_UP) power_loss(s, &s->nodes[i]);
}

void fault_strike(struct sim *s, enum sim_fault fault)
{
  unsigned n = s->options.nodes;
  struct node *leader = sim_leader(s), *victim;
  raft_id a = sim_between(s, 1, n), b = sim_between(s, 1, n);

  fault_schedule(s, fault);
  /* The leader is worth more than the others. */
  victim = leader && sim_chance(s, 350000) ? leader : sim_some_node(s, true);
  sim_trace(s, victim, T_FAULT, fault, a, b, 0, 0);
  switch (fault) {
  case F_PARTITION: net_partition(s); break;
  case F_CLOG: net_clog(s); break;
  case F_RESET: net_reset(s, a, b); break;
  default:
    if (fault == F_CRASH && sim_chance(s, 50000)) {
      strike_all(s);
      break;
    }
    if (victim) strike_node(s, fault, victim);
  }
}
