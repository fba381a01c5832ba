/*
** check.c: what must hold at every event.
**
**   I1   at most one leader a term                        check_role
**   I2   terms and votes never go back                    check_vote, _send
**   I3   same index and term, same entry and all before   check_entry
**   I4   a committed index is written once                check_entries, _commit
**   I5   a new leader has everything committed            check_role
**   I6   equal state after equal index                    check_state
**   I7   committed is on the disks of a quorum            check_quorum, and
**        said to be durable is durable                    check_send, model.c
**   I9   checkpoint <= applied <= commit <= last          check_order
**   I10  commit, applied and match never go back          check_order, _slowly
**   I11  one uncommitted configuration; quorums meet      check_appended
**   I12  a leader appends only, in its own term           check_entries
**   I15  queues are bounded                               check_order, model.c
**
** I8, I13 and I14 are the clients' to see (client.c), I16 is run.c's, and the
** other half of I15, one seed and one trace, is main.c's.
**
** All are incremental: a step looks at what it changed. Logs are compared by
** chains of hashes (model.c), so one comparison is one of all before.
*/
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables ------------------------------------------------------------ */

struct committed *check_committed(struct sim *s, raft_index index)
{
  struct checks *c = &s->checks;
  size_t old = c->committed_capacity;

  if (index >= old) {
    c->committed_capacity = 2 * index + 1024;
    c->committed =
        sim_resize(c->committed, c->committed_capacity * sizeof *c->committed);
    memset(c->committed + old, 0,
           (c->committed_capacity - old) * sizeof *c->committed);
  }
  return &c->committed[index];
}

static raft_id *leader_of(struct sim *s, raft_term term)
{
  struct checks *c = &s->checks;
  size_t old = c->leaders_capacity;

  if (term > 1000000) sim_fail(s, "I15", "term %u", (unsigned)term);
  if (term >= old) {
    c->leaders_capacity = 2 * term + 256;
    c->leaders =
        sim_resize(c->leaders, c->leaders_capacity * sizeof *c->leaders);
    memset(c->leaders + old, 0,
           (c->leaders_capacity - old) * sizeof *c->leaders);
  }
  return &c->leaders[term];
}

static uint64_t whole_id(const struct node *n)
{
  return n->id | n->incarnation << 8;
}

void check_free(struct sim *s)
{
  free(s->checks.entries.pairs);
  free(s->checks.votes.pairs);
  free(s->checks.configurations.pairs);
  free(s->checks.leaders);
  free(s->checks.committed);
  free(s->checks.live);
}

/* ---- entries ----------------------------------------------------------- */

void check_entry(struct sim *s, struct node *n, raft_index index,
                 raft_term term, uint64_t chain)
{
  uint64_t *known = sim_map_at(&s->checks.entries, index, term);

  if (*known && *known != chain)
    sim_fail(s, "I3", "node %u: entry %u of term %u is not that of others",
             n->id, (unsigned)index, (unsigned)term);
  *known = chain;
}

static void check_vote(struct sim *s, struct node *n,
                       const struct raft_persist *p)
{
  if (p->term < n->vote_term)
    sim_fail(s, "I2", "node %u: term %u after term %u", n->id,
             (unsigned)p->term, (unsigned)n->vote_term);
  if (p->term == n->vote_term && n->voted_for && p->voted_for != n->voted_for)
    sim_fail(s, "I2", "node %u voted for %u and %u in term %u", n->id,
             (unsigned)n->voted_for, (unsigned)p->voted_for, (unsigned)p->term);
  n->vote_term = p->term;
  n->voted_for = p->voted_for;
}

static void check_entries(struct sim *s, struct node *n,
                          const struct raft_persist *p)
{
  raft_index first = p->entries[0].index;
  raft_term term;
  uint64_t chain;
  bool leads;
  unsigned i;

  raft_state(n->raft, &term, &leads);
  if (first > n->log.last + 1 || first <= n->log.base)
    sim_fail(s, "I9", "node %u writes entry %u, the log is %u to %u", n->id,
             (unsigned)first, (unsigned)n->log.base, (unsigned)n->log.last);
  if (first <= n->commit)
    sim_fail(s, "I4", "node %u writes entry %u, committed up to %u", n->id,
             (unsigned)first, (unsigned)n->commit);
  if (leads && first <= n->log.last)
    sim_fail(s, "I12", "leader %u replaces entry %u of %u", n->id,
             (unsigned)first, (unsigned)n->log.last);
  chain = n->log.chain ? n->log.chain[first - 1] : 0;
  for (i = 0; i < p->n_entries; i++) {
    if (p->entries[i].index != first + i)
      sim_fail(s, "I9", "node %u leaves a gap at %u", n->id,
               (unsigned)first + i);
    if (leads && p->entries[i].term != term)
      sim_fail(s, "I12", "leader %u of term %u appends in term %u", n->id,
               (unsigned)term, (unsigned)p->entries[i].term);
    chain = chain_next(chain, &p->entries[i]);
    check_entry(s, n, first + i, p->entries[i].term, chain);
    model_set(&n->log, first + i, p->entries[i].term, chain);
  }
}

void check_write(struct sim *s, struct node *n, const struct raft_persist *p)
{
  if (p->vote) check_vote(s, n, p);
  if (p->n_entries) check_entries(s, n, p);
}

/* ---- roles ------------------------------------------------------------- */

static void check_leader(struct sim *s, struct node *n, raft_term term)
{
  raft_id *leader = leader_of(s, term);
  raft_index index = s->checks.max_committed;

  /* It may be elected by late messages, when a later one has gone on. */
  while (index > 1 && check_committed(s, index)->by >= term)
    index--;
  if (*leader && *leader != whole_id(n))
    sim_fail(s, "I1", "nodes %u and %u lead in term %u",
             (unsigned)(*leader & 0xff), n->id, (unsigned)term);
  *leader = whole_id(n);
  if (!model_has(&n->log, index, check_committed(s, index)->chain))
    sim_fail(s, "I5", "leader %u of term %u does not have entry %u", n->id,
             (unsigned)term, (unsigned)index);
  s->stats.elections++;
}

static void check_role(struct sim *s, struct node *n)
{
  raft_term term;
  uint8_t role = (uint8_t)raft_role(n->raft);
  bool leads, elected;

  raft_state(n->raft, &term, &leads);
  if (role == n->role && term == n->role_term &&
      raft_leader(n->raft) == n->leader)
    return;
  elected = leads && (n->role != RAFT_LEADER || term != n->role_term);
  n->role = role;
  n->role_term = term;
  n->leader = raft_leader(n->raft);
  sim_trace(s, n, T_ROLE, role, term, n->leader, 0, 0);
  if (elected) check_leader(s, n, term);
}

/* ---- commit ------------------------------------------------------------ */

static void count_quorum(struct sim *s, const struct raft_configuration *c,
                         bool old, struct node *n, raft_index index)
{
  unsigned i, voters = 0, have = 0;
  uint64_t chain = n->log.chain[index];
  const struct raft_member *member;
  const struct model *m;

  for (i = 0; i < c->n; i++) {
    member = &c->members[i];
    if (old ? !member->outgoing : member->role != RAFT_VOTER) continue;
    voters++;
    m = sim_model(s, member->id, member->incarnation);
    have += m && model_has(&m->durable, index, chain);
  }
  if (2 * have <= voters)
    sim_fail(s, "I7", "leader %u commits %u: on %u disks of %u %svoters", n->id,
             (unsigned)index, have, voters, old ? "old " : "");
}

static void check_quorum(struct sim *s, struct node *n, raft_index index)
{
  /* The one before this step: a leader that has committed a joint one leaves
     it in the same step. */
  const struct raft_configuration *c = &n->configuration;

  count_quorum(s, c, false, n, index);
  if (raft_configuration_joint(c)) count_quorum(s, c, true, n, index);
}

/* The newest committed configuration, and those that may still count. */
static void note_configuration(struct sim *s, struct node *n)
{
  struct checks *c = &s->checks;
  size_t i, kept = 0;

  if (n->configuration_index > n->commit ||
      n->configuration_index <= c->configuration_index)
    return;
  c->configuration = n->configuration;
  c->configuration_index = n->configuration_index;
  s->stats.changes++;
  for (i = 0; i < c->n_live; i++)
    if (c->live[i].index >= c->configuration_index)
      c->live[kept++] = c->live[i];
  c->n_live = kept;
}

/* Committed late, by answers that were long on their way: those who lead in
   later terms must have it all the same. */
static void check_later_leaders(struct sim *s, const struct node *n,
                                raft_index commit, uint64_t chain)
{
  const struct node *other;
  unsigned i;

  for (i = 1; i <= s->options.nodes; i++) {
    other = &s->nodes[i];
    if (other->status == NODE_UP && other->role == RAFT_LEADER &&
        other->role_term > n->role_term &&
        !model_has(&other->log, commit, chain))
      sim_fail(s, "I5", "leader %u of term %u does not have entry %u", i,
               (unsigned)other->role_term, (unsigned)commit);
  }
}

/* `leads`: it did before this step. One that commits its own removal does not
   any more. */
static void check_commit(struct sim *s, struct node *n, raft_index commit,
                         bool leads)
{
  struct committed *c;
  raft_index i;

  if (commit > n->log.last)
    sim_fail(s, "I9", "node %u: commit %u, last %u", n->id, (unsigned)commit,
             (unsigned)n->log.last);
  if (leads && commit > n->log.base) check_quorum(s, n, commit);
  if (!leads && commit > s->checks.max_committed)
    sim_fail(s, "I4", "node %u commits %u, which no leader has", n->id,
             (unsigned)commit);
  i = n->commit < n->log.base ? n->log.base : n->commit;
  for (i++; i <= commit; i++) {
    c = check_committed(s, i);
    if (!c->chain) {
      c->chain = n->log.chain[i];
      c->term = n->log.term[i];
      c->by = n->role_term;
      s->stats.commits++;
    }
    if (c->chain != n->log.chain[i])
      sim_fail(s, "I4", "node %u commits another entry %u", n->id, (unsigned)i);
  }
  if (commit > s->checks.max_committed) {
    s->checks.max_committed = commit;
    check_later_leaders(s, n, commit, n->log.chain[commit]);
  }
  sim_trace(s, n, T_COMMIT, commit, 0, 0, 0, 0);
}

/* ---- configurations ---------------------------------------------------- */

static unsigned voters_of(const struct raft_configuration *c, bool old)
{
  unsigned i, bits = 0;

  for (i = 0; i < c->n; i++)
    if (old ? c->members[i].outgoing : c->members[i].role == RAFT_VOTER)
      bits |= 1u << c->members[i].id;
  return bits;
}

static bool is_quorum(const struct raft_configuration *c, unsigned set)
{
  unsigned voters = voters_of(c, false), old = voters_of(c, true);

  if (2 * __builtin_popcount(voters & set) <= __builtin_popcount(voters))
    return false;
  return !old || 2 * __builtin_popcount(old & set) > __builtin_popcount(old);
}

/* Whether there are two quorums without a node in common: every set of nodes
   is tried, and its complement. */
static bool quorums_meet(const struct raft_configuration *a,
                         const struct raft_configuration *b, unsigned nodes)
{
  unsigned set, all = (1u << (nodes + 1)) - 2;

  for (set = 0; set <= all; set += 2)
    if (is_quorum(a, set) && is_quorum(b, all & ~set)) return false;
  return true;
}

static void add_live(struct sim *s, const struct node *n)
{
  struct checks *c = &s->checks;

  if (c->n_live == c->live_capacity) {
    c->live_capacity = c->live_capacity ? 2 * c->live_capacity : 16;
    c->live = sim_resize(c->live, c->live_capacity * sizeof *c->live);
  }
  c->live[c->n_live].index = n->configuration_index;
  c->live[c->n_live++].configuration = n->configuration;
}

/* A leader has appended one: `was` is the one before it in its log. */
static void check_appended(struct sim *s, struct node *n,
                           const struct raft_configuration *was,
                           raft_index was_index)
{
  raft_index commit = raft_commit(n->raft);

  if (was_index > commit)
    sim_fail(s, "I11", "leader %u: configurations %u and %u not committed",
             n->id, (unsigned)was_index, (unsigned)n->configuration_index);
  if (raft_term_at(n->raft, commit) != n->role_term)
    sim_fail(s, "I11", "leader %u changes members before it committed", n->id);
  if (!quorums_meet(was, &n->configuration, s->options.nodes))
    sim_fail(s, "I11", "quorums of configurations %u and %u need not meet",
             (unsigned)was_index, (unsigned)n->configuration_index);
  add_live(s, n);
  s->stats.joint += raft_configuration_joint(&n->configuration);
}

/* What is in force is what stands at that index of the log: of everybody's. */
static void check_same(struct sim *s, struct node *n)
{
  raft_index index = n->configuration_index;
  uint64_t chain = index > n->log.base ? n->log.chain[index]
                                       : check_committed(s, index)->chain;
  struct raft_body *body = raft_configuration_encode(&n->configuration);
  uint64_t *known;

  if (!body) abort();
  if (index > 0) {
    known = sim_map_at(&s->checks.configurations, index, chain);
    if (*known && *known != body->checksum)
      sim_fail(s, "I3", "node %u: configuration %u is not that of others",
               n->id, (unsigned)index);
    *known = body->checksum;
  }
  raft_body_unref(body);
}

void check_configuration(struct sim *s, struct node *n)
{
  struct raft_configuration was = n->configuration;
  raft_index was_index = n->configuration_index;
  unsigned i, members = 0;

  n->configuration = *raft_configuration(n->raft, &n->configuration_index);
  check_same(s, n);
  for (i = 0; i < n->configuration.n; i++)
    members |= 1u << n->configuration.members[i].id;
  for (i = 1; i <= SIM_NODES; i++)
    if (!(members >> i & 1)) n->match[i] = 0; /* it may come back */
  sim_trace(s, n, T_CONFIG, n->configuration_index,
            voters_of(&n->configuration, false),
            voters_of(&n->configuration, true), members, 0);
  if (raft_role(n->raft) == RAFT_LEADER && n->configuration_index > was_index)
    check_appended(s, n, &was, was_index);
}

/* ---- every step -------------------------------------------------------- */

static void check_order(struct sim *s, struct node *n,
                        const struct raft_effects *e)
{
  if (e->commit < n->commit)
    sim_fail(s, "I10", "node %u: commit %u after %u", n->id,
             (unsigned)e->commit, (unsigned)n->commit);
  if (n->checkpoint.index > n->machine.index || n->machine.index > e->commit ||
      e->commit > raft_last(n->raft) || raft_last(n->raft) != n->log.last)
    sim_fail(s, "I9",
             "node %u: checkpoint %u, applied %u, commit %u, last %u (%u)",
             n->id, (unsigned)n->checkpoint.index, (unsigned)n->machine.index,
             (unsigned)e->commit, (unsigned)raft_last(n->raft),
             (unsigned)n->log.last);
  if (raft_durable(n->raft) > node_model(n)->durable.last)
    sim_fail(s, "I7", "node %u takes %u for durable, that is %u", n->id,
             (unsigned)raft_durable(n->raft),
             (unsigned)node_model(n)->durable.last);
  if (n->n_held > 20000 || e->n_sends > 4096)
    sim_fail(s, "I15", "node %u holds %zu messages back", n->id, n->n_held);
}

void check_step(struct sim *s, struct node *n, const struct raft_effects *e)
{
  bool led = n->role == RAFT_LEADER;
  raft_term term = n->role_term;

  if (e->persist.seq) check_write(s, n, &e->persist);
  check_role(s, n);
  /* It may have followed another one in this very step, and learned from it. */
  if (n->role_term != term) led = false;
  if (e->commit > n->commit) check_commit(s, n, e->commit, led);
  check_order(s, n, e);
  n->commit = e->commit;
  if (e->configuration_changed) check_configuration(s, n);
  if (n->configuration_index > s->checks.configuration_index)
    note_configuration(s, n);
}

/* ---- messages ---------------------------------------------------------- */

static void note_vote(struct sim *s, struct node *n, raft_term term,
                      raft_id candidate)
{
  uint64_t *vote = sim_map_at(&s->checks.votes, whole_id(n), term);
  const struct model *m = node_model(n);

  if (*vote && *vote != candidate)
    sim_fail(s, "I2", "node %u voted for %u and for %u in term %u", n->id,
             (unsigned)*vote, (unsigned)candidate, (unsigned)term);
  *vote = candidate;
  if (m->term < term || (m->term == term && m->voted_for != candidate))
    sim_fail(s, "I2", "node %u says a vote that is not on its disk", n->id);
}

/* raft.h: the commit index in a heartbeat is never above the peer's match. */
static void check_heartbeat(struct sim *s, struct node *n,
                            const struct raft_message *m)
{
  struct raft_progress p;

  if (m->term != n->role_term || !raft_progress(n->raft, m->to, &p)) return;
  if (m->commit > p.match)
    sim_fail(s, "heartbeat", "leader %u tells %u of commit %u, match is %u",
             n->id, (unsigned)m->to, (unsigned)m->commit, (unsigned)p.match);
}

/* As it leaves: what it says must be true on the disk by now. */
void check_send(struct sim *s, struct node *n, const struct raft_message *m)
{
  const struct model *model = node_model(n);
  bool ack = m->type == RAFT_HEARTBEAT_RESPONSE ||
             (m->type == RAFT_APPEND_RESPONSE && m->granted);

  if (m->type == RAFT_VOTE_RESPONSE && m->granted)
    note_vote(s, n, m->term, m->to);
  if (m->type == RAFT_VOTE_REQUEST) note_vote(s, n, m->term, n->id);
  if (m->type == RAFT_HEARTBEAT_REQUEST) check_heartbeat(s, n, m);
  if (m->type != RAFT_PREVOTE_REQUEST && model->term < m->term)
    sim_fail(s, "I2", "node %u speaks in term %u, on its disk is %u", n->id,
             (unsigned)m->term, (unsigned)model->term);
  if (ack && m->term == n->role_term && m->match > model->durable.last)
    sim_fail(s, "I7", "node %u acknowledges %u, durable is %u", n->id,
             (unsigned)m->match, (unsigned)model->durable.last);
}

/* ---- states ------------------------------------------------------------ */

void check_state(struct sim *s, struct node *n, const struct machine *m)
{
  struct committed *c = check_committed(s, m->index);
  uint64_t hash = machine_hash(m);

  if (!c->chain)
    sim_fail(s, "I6", "node %u has a state after %u, which is not committed",
             n->id, (unsigned)m->index);
  if (c->state && c->state != hash)
    sim_fail(s, "I6", "node %u: another state after %u", n->id,
             (unsigned)m->index);
  c->state = hash;
}

/* ---- now and then ------------------------------------------------------ */

static void check_progress(struct sim *s, struct node *n,
                           const struct raft_member *member)
{
  raft_index *was = &n->match[member->id];
  struct raft_progress p;

  if (!raft_progress(n->raft, member->id, &p)) return;
  if (p.match >= p.next)
    sim_fail(s, "I9", "leader %u: match %u, next %u of %u", n->id,
             (unsigned)p.match, (unsigned)p.next, (unsigned)member->id);
  if (n->match_incarnation[member->id] != member->incarnation) *was = 0;
  if (p.match < *was && p.match != 0)
    sim_fail(s, "I10", "leader %u: match %u after %u of %u", n->id,
             (unsigned)p.match, (unsigned)*was, (unsigned)member->id);
  n->match_incarnation[member->id] = member->incarnation;
  *was = p.match;
}

void check_slowly(struct sim *s, struct node *n)
{
  const struct raft_configuration *c = &n->configuration;
  raft_index index;
  unsigned i;

  if (n->match_term != n->role_term) memset(n->match, 0, sizeof n->match);
  if (n->role == RAFT_LEADER)
    for (i = 0; i < c->n; i++)
      check_progress(s, n, &c->members[i]);
  n->match_term = n->role == RAFT_LEADER ? n->role_term : 0;
  if (n->log.last <= n->log.base) return;
  index = n->log.base + 1 + s->stats.events % (n->log.last - n->log.base);
  if (raft_term_at(n->raft, index) &&
      raft_term_at(n->raft, index) != n->log.term[index])
    sim_fail(s, "I3", "node %u takes entry %u for one of another term", n->id,
             (unsigned)index);
}
