/*
** client.c: what clients ask for, what they are told, and whether it is true.
**
** Every transaction has a number of its own and is proposed once, on one node.
** What that node knows decides what its client is told:
**
**   done      its entry was applied, in the term it was proposed in
**   refused   the core did not take it
**   lost      another entry was applied at its index, or parts of it missed
**   unknown   the process ended first, or a snapshot stepped over the index
**
** I13: what is done took effect exactly once, where its client was told; what
** is refused or lost never does, whatever becomes of the old leader's log.
** I8: done means committed, so on the disks of a quorum (I7).
** I14: a read must show all that was committed when it was asked for, which
** is at least what any client had been told; and it is taken when the node has
** applied that far.
*/
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTS_MAX 3

static void *grown(void *items, size_t *capacity, size_t n, size_t size)
{
  if (n < *capacity) return items;
  *capacity = 2 * n + 64;
  return sim_resize(items, *capacity * size);
}

static void wait_for(struct pending *list, uint64_t id)
{
  list->ids = grown(list->ids, &list->capacity, list->n, sizeof *list->ids);
  list->ids[list->n++] = id;
}

/* ---- transactions ------------------------------------------------------- */

static void settle(struct sim *s, struct node *n, uint64_t id, uint8_t state)
{
  struct op *op = &s->clients.ops[id];

  sim_trace(s, n, T_ANSWER, id, state, op->index, 0, 0);
  op->state = state;
  switch (state) {
  case OP_DONE:
    s->stats.acknowledged++;
    if (op->index > s->checks.max_committed)
      sim_fail(s, "I8", "operation %u is done, not committed", (unsigned)id);
    if (op->applied != op->index)
      sim_fail(s, "I13", "operation %u is done at %u, took effect at %u",
               (unsigned)id, (unsigned)op->index, (unsigned)op->applied);
    if (op->index > s->checks.max_acknowledged)
      s->checks.max_acknowledged = op->index;
    break;
  case OP_REFUSED: s->stats.rejected++; break;
  case OP_LOST: s->stats.lost++; break;
  default: s->stats.unknown++; break;
  }
  if ((state == OP_REFUSED || state == OP_LOST) && op->applied)
    sim_fail(s, "I13", "operation %u is %s, but took effect at %u",
             (unsigned)id, state == OP_LOST ? "lost" : "refused",
             (unsigned)op->applied);
}

static uint64_t new_op(struct sim *s, struct node *n)
{
  struct clients *c = &s->clients;
  uint64_t id = ++c->n_ops;

  c->ops = grown(c->ops, &c->ops_capacity, id, sizeof *c->ops);
  c->ops[id] = (struct op){.node = n->id, .life = n->life};
  c->ops[id].state = OP_PENDING;
  return id;
}

static int propose(struct sim *s, struct node *n, unsigned count,
                   const struct raft_proposal *items, raft_term term)
{
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE};

  raft_id heir = raft_transferring(n->raft);
  int rc;

  event.u.propose.term = term;
  event.u.propose.n = count;
  event.u.propose.items = items;
  rc = node_step(s, n, &event);
  if (!rc && heir)
    sim_fail(s, "transfer", "leader %u takes proposals, handing over to %u",
             n->id, (unsigned)heir);
  return rc;
}

static unsigned make_items(struct sim *s, uint64_t id,
                           struct raft_proposal *items)
{
  struct command c = {.op = id};
  unsigned parts = 0, i;
  size_t len = sim_below(s, s->options.body_max);

  if (sim_chance(s, s->options.parts_ppm))
    parts = (unsigned)sim_between(s, 1, PARTS_MAX);
  c.parts = parts;
  c.slot = (uint32_t)sim_below(s, SIM_SLOTS);
  c.value = sim_random(s);
  for (i = 0; i <= parts; i++) {
    items[i].type = i < parts ? RAFT_PAGES : RAFT_COMMIT;
    items[i].body = machine_body(&c, len);
  }
  return parts + 1;
}

/* All parts at once, or one after another, as a writer with a large
   transaction does; then a change of term must stop it. */
uint64_t client_propose(struct sim *s, struct node *n)
{
  struct raft_proposal items[PARTS_MAX + 1];
  uint64_t id = new_op(s, n);
  unsigned count = make_items(s, id, items), i;
  raft_term term;
  struct op *op;
  bool leads;
  int rc = 0;

  raft_state(n->raft, &term, &leads);
  if (sim_chance(s, 500000))
    rc = propose(s, n, count, items, 0);
  else
    for (i = 0; i < count && !rc; i++)
      rc = propose(s, n, 1, &items[i], term);
  for (i = 0; i < count; i++)
    raft_body_unref(items[i].body);
  op = &s->clients.ops[id];
  op->index = rc ? 0 : n->proposed_last;
  op->term = term;
  sim_trace(s, n, T_PROPOSE, id, (uint64_t)rc, op->index, term, 0);
  if (rc == RAFT_EINVAL || rc == RAFT_ENOMEM)
    sim_fail(s, "host", "a proposal is %s", raft_strerror(rc));
  if (rc)
    settle(s, n, id, OP_REFUSED);
  else if (op->state == OP_PENDING)
    wait_for(&n->ops, id);
  return id;
}

/* The first node to apply it says where it took effect. */
static void took_effect(struct sim *s, uint64_t id, raft_index index)
{
  struct op *op = &s->clients.ops[id];

  if (op->applied == index) return;
  if (op->applied)
    sim_fail(s, "I13", "operation %u took effect at %u and at %u", (unsigned)id,
             (unsigned)op->applied, (unsigned)index);
  if (op->state == OP_REFUSED || op->state == OP_LOST)
    sim_fail(s, "I13", "operation %u was not to be, but took effect at %u",
             (unsigned)id, (unsigned)index);
  op->applied = index;
}

/* Those that wait for an index up to this one, or were proposed in an earlier
   term than that of the entry there: what became of them? */
static void answer_ops(struct sim *s, struct node *n, raft_index index,
                       raft_term term, uint64_t done, uint8_t others)
{
  struct pending *list = &n->ops;
  size_t i, kept = 0;
  uint64_t id;

  for (i = 0; i < list->n; i++) {
    id = list->ids[i];
    if (s->clients.ops[id].index > index && s->clients.ops[id].term >= term)
      list->ids[kept++] = id;
    else
      settle(s, n, id, id == done ? OP_DONE : others);
  }
  list->n = kept;
}

void client_applied(struct sim *s, struct node *n, const struct raft_entry *e,
                    uint64_t effect)
{
  struct op *op = effect ? &s->clients.ops[effect] : NULL;
  bool mine = op && op->node == n->id && op->life == n->life &&
              op->index == e->index && op->term == e->term;

  if (effect) took_effect(s, effect, e->index);
  if (n->ops.n > 0)
    answer_ops(s, n, e->index, e->term, mine ? effect : 0, OP_LOST);
}

/* ---- reads -------------------------------------------------------------- */

uint64_t client_read(struct sim *s, struct node *n, bool lease)
{
  struct clients *c = &s->clients;
  struct raft_event event = {.type = RAFT_EVENT_READ};
  uint64_t number = ++c->n_reads;

  c->reads = grown(c->reads, &c->reads_capacity, number, sizeof *c->reads);
  c->reads[number] = (struct asked){.floor = s->checks.max_committed,
                                    .node = n->id,
                                    .life = n->life,
                                    .state = OP_PENDING};
  sim_trace(s, n, T_READ, number, lease, s->checks.max_committed, 0, 0);
  wait_for(&n->reads, number);
  event.u.read.number = number;
  event.u.read.lease = lease;
  node_step(s, n, &event);
  return number;
}

static void read_done(struct sim *s, struct node *n, uint64_t number)
{
  struct asked *read = &s->clients.reads[number];

  if (n->machine.index < read->floor)
    sim_fail(s, "I14", "read %u shows %u, %u was committed before",
             (unsigned)number, (unsigned)n->machine.index,
             (unsigned)read->floor);
  read->state = OP_DONE;
  s->stats.reads++;
}

void client_answered(struct sim *s, struct node *n,
                     const struct raft_read_result *result)
{
  struct asked *read = &s->clients.reads[result->read];

  sim_trace(s, n, T_READ_DONE, result->read, (uint64_t)result->status,
            result->index, 0, 0);
  if (result->read == 0 || result->read > s->clients.n_reads ||
      read->state != OP_PENDING || read->index || read->life != n->life)
    sim_fail(s, "I14", "an answer to a read that was not asked, %u",
             (unsigned)result->read);
  if (result->status) {
    read->state = OP_REFUSED;
    return;
  }
  if (result->index < read->floor)
    sim_fail(s, "I14", "read %u is to show %u, %u was committed before",
             (unsigned)result->read, (unsigned)result->index,
             (unsigned)read->floor);
  read->index = result->index ? result->index : 1;
  if (read->index <= n->machine.index) read_done(s, n, result->read);
}

void client_progress(struct sim *s, struct node *n)
{
  struct pending *list = &n->reads;
  struct asked *read;
  size_t i, kept = 0;

  for (i = 0; i < list->n; i++) {
    read = &s->clients.reads[list->ids[i]];
    if (read->state == OP_PENDING && read->index &&
        read->index <= n->machine.index)
      read_done(s, n, list->ids[i]);
    else if (read->state == OP_PENDING)
      list->ids[kept++] = list->ids[i];
  }
  list->n = kept;
  /* What a snapshot has stepped over, nobody here will ever know. */
  answer_ops(s, n, n->machine.index, 0, 0, OP_UNKNOWN);
}

/* ---- ends --------------------------------------------------------------- */

void client_ended(struct sim *s, struct node *n)
{
  size_t i;

  answer_ops(s, n, UINT64_MAX, 0, 0, OP_UNKNOWN);
  for (i = 0; i < n->reads.n; i++)
    s->clients.reads[n->reads.ids[i]].state = OP_UNKNOWN;
  n->reads.n = 0;
}

/* Nobody waits for ever: at the end every call has its answer, but for what
   waits for entries on a node that is no member any more. */
bool client_settled(struct sim *s)
{
  const struct node *n;
  size_t i;

  for (n = &s->nodes[1]; n <= &s->nodes[s->options.nodes]; n++) {
    for (i = 0; i < n->ops.n; i++)
      if (s->clients.ops[n->ops.ids[i]].index <= n->machine.index) return false;
    for (i = 0; i < n->reads.n; i++)
      if (s->clients.reads[n->reads.ids[i]].state == OP_PENDING &&
          !s->clients.reads[n->reads.ids[i]].index)
        return false;
  }
  return true;
}

void client_free(struct sim *s)
{
  free(s->clients.ops);
  free(s->clients.reads);
}

/* ---- members ------------------------------------------------------------ */

static struct raft_member member_of(struct sim *s, const struct node *n)
{
  struct raft_member m = {.id = n->id, .incarnation = n->incarnation};

  snprintf(m.name, sizeof m.name, "n%u", n->id);
  snprintf(m.address, sizeof m.address, "host%u:%u", n->id,
           ++s->clients.next_address);
  if (s->options.priorities) m.priority = (uint8_t)sim_below(s, 3);
  return m;
}

/* Whether what would come of it could still agree on anything: an operator
   does not remove the nodes that live. */
static bool is_wise(struct sim *s, struct node *n, unsigned count,
                    const struct raft_change *changes)
{
  struct raft_configuration c = n->configuration;
  unsigned i, k;

  for (k = 0; k < count; k++)
    for (i = 0; i < c.n; i++) {
      if (c.members[i].id != changes[k].id) continue;
      if (changes[k].type == RAFT_PROMOTE) c.members[i].role = RAFT_VOTER;
      if (changes[k].type == RAFT_REMOVE || changes[k].type == RAFT_DEMOTE)
        c.members[i].role = RAFT_LEARNER;
    }
  return fault_configuration_lives(s, &c, NULL);
}

int client_change(struct sim *s, struct node *n, unsigned count,
                  struct raft_change *changes)
{
  struct raft_event event = {.type = RAFT_EVENT_CHANGE};
  int rc;

  if (!is_wise(s, n, count, changes)) return RAFT_EINVAL;
  event.u.change.n = count;
  event.u.change.items = changes;
  rc = node_step(s, n, &event);
  sim_trace(s, n, T_CHANGE, count, changes[0].type, changes[0].id, (uint64_t)rc,
            n->proposed_first);
  return rc;
}

static raft_id some_member(struct sim *s, const struct node *n, uint8_t role)
{
  const struct raft_configuration *c = &n->configuration;
  unsigned i, k, start;

  if (c->n == 0) return 0;
  start = (unsigned)sim_below(s, c->n);
  for (i = 0; i < c->n; i++) {
    k = (start + i) % c->n;
    if (c->members[k].role == role) return c->members[k].id;
  }
  return 0;
}

/* One whose data are lost goes first, then one that is not there comes. */
static bool mend(struct sim *s, struct node *n)
{
  const struct raft_configuration *c = &n->configuration;
  struct raft_change change = {0};
  struct raft_member member;
  unsigned i;

  for (i = 0; i < c->n; i++) {
    if (!fault_is_lost(s, &c->members[i])) continue;
    change.type = RAFT_REMOVE;
    change.id = c->members[i].id;
    client_change(s, n, 1, &change);
    return true;
  }
  if (!sim_chance(s, 600000)) return false;
  for (i = 1; i <= s->options.nodes; i++) {
    if (raft_configuration_find(c, i)) continue;
    if (s->nodes[i].status == NODE_REFUSED || s->nodes[i].damaged) continue;
    member = member_of(s, &s->nodes[i]);
    change.type = RAFT_ADD_LEARNER;
    change.id = i;
    change.member = &member;
    client_change(s, n, 1, &change);
    return true;
  }
  return false;
}

static void update(struct sim *s, struct node *n)
{
  raft_id id = some_member(s, n, RAFT_VOTER);
  const struct raft_member *old =
      raft_configuration_find(&n->configuration, id);
  struct raft_change change = {.type = RAFT_UPDATE, .id = id};
  struct raft_member member;

  if (!old) return;
  member = member_of(s, &s->nodes[id]);
  member.incarnation = old->incarnation;
  member.role = old->role;
  change.member = &member;
  client_change(s, n, 1, &change);
}

static void change_members(struct sim *s, struct node *n)
{
  struct raft_change changes[3] = {{0}};
  unsigned count = 1;

  if (n->role != RAFT_LEADER || mend(s, n)) return;
  changes[0].type = RAFT_PROMOTE;
  changes[0].id = some_member(s, n, RAFT_LEARNER);
  switch (sim_below(s, 8)) {
  case 0: update(s, n); return;
  case 1:
    changes[0].type = RAFT_REMOVE;
    changes[0].id = some_member(s, n, RAFT_VOTER);
    break;
  case 2:
    changes[0].type = RAFT_DEMOTE;
    changes[0].id = some_member(s, n, RAFT_VOTER);
    break;
  case 3: /* the leader itself */
    changes[0].type = sim_chance(s, 500000) ? RAFT_REMOVE : RAFT_DEMOTE;
    changes[0].id = n->id;
    break;
  case 4: /* a replacement in one step */
    changes[1].type = sim_chance(s, 500000) ? RAFT_REMOVE : RAFT_DEMOTE;
    changes[1].id = some_member(s, n, RAFT_VOTER);
    count = 2;
    break;
  case 5:
    changes[1].type = RAFT_DEMOTE;
    changes[1].id = some_member(s, n, RAFT_VOTER);
    changes[2].type = RAFT_REMOVE;
    changes[2].id = some_member(s, n, RAFT_VOTER);
    count = 3;
    break;
  default: break;
  }
  if (changes[0].id) client_change(s, n, count, changes);
}

/* ---- whatever comes next ------------------------------------------------ */

static void hand_over(struct sim *s, struct node *n)
{
  struct raft_event event = {.type = RAFT_EVENT_TRANSFER};
  int rc;

  if (sim_chance(s, 500000))
    event.u.transfer_to = some_member(s, n, RAFT_VOTER);
  rc = node_step(s, n, &event);
  sim_trace(s, n, T_TRANSFER, event.u.transfer_to, (uint64_t)rc, 0, 0, 0);
  s->stats.transfers += rc == 0;
  if (!rc && s->options.every[F_PAUSE] && sim_chance(s, 200000))
    process_pause(s, n, sim_spread(s, s->options.election_ms * SIM_MS / 2),
                  false);
}

void client_act(struct sim *s)
{
  const struct sim_options *o = &s->options;
  unsigned sum = o->propose + o->read + o->change + o->transfer;
  struct node *leader = sim_leader(s), *n = leader;
  uint64_t what = sim_below(s, sum);

  /* Without a leader most clients wait; some try whatever node they know. */
  if (!n && sim_chance(s, 800000)) return;
  if (!n || sim_chance(s, 100000)) n = sim_some_node(s, true);
  if (!n || n->stopping) return;
  if (what < o->propose) {
    if (n->log.last - n->commit < o->backlog) client_propose(s, n);
  } else if ((what -= o->propose) < o->read) {
    if (sim_chance(s, 500000)) n = sim_some_node(s, true);
    client_read(s, n, o->lease && sim_chance(s, 700000));
  } else if ((what -= o->read) < o->change) {
    change_members(s, n);
  } else {
    hand_over(s, n);
  }
}
