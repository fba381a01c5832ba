/*
** timeline.h: several cores with a network and disks moved by hand.
**
** A test of the protocol reads as a list of what happens: a node times out,
** this message arrives and that one is lost, a write becomes durable. Nothing
** moves by itself: a message lies in the network until the test delivers or
** drops it, a write is under way until the test completes it (or the node's
** disk is `prompt`). Every message crosses the network as bytes.
**
** While a test runs, the cluster is watched: one leader a term (I1), a
** committed index is written once (I4), a new leader has all that is committed
** (I5), and what is committed is on the disks of a quorum (I7).
*/
#ifndef TIMELINE_H
#define TIMELINE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "internal.h"

#define NODES 8        /* ids 1 to 7 */
#define LOG_MAX 20000  /* entries that a test may make */
#define NET_MAX 20000  /* messages under way */
#define WRITES_MAX 512 /* writes under way on one disk */

struct stored {
  raft_term term;
  uint8_t type;
  struct raft_body *body;
};

struct write {
  uint64_t seq;
  bool vote;
  raft_term term;
  raft_id voted_for;
  raft_index first;
  unsigned n;
  struct stored *entries;
};

struct packet {
  raft_id from, to;
  uint8_t type;
  uint8_t *bytes;
  size_t len;
};

struct held {
  uint64_t after;
  struct packet packet;
};

struct node {
  struct raft *raft;
  struct raft_options options;
  bool prompt;         /* writes are durable at once */
  bool hangs;          /* settle() completes none of them either */
  unsigned clock_rate; /* percent of the world's time; 0: the same */
  /* What is on its disk. */
  raft_term term;
  raft_id voted_for;
  raft_index snapshot;
  raft_term snapshot_term;
  struct raft_configuration snapshot_configuration;
  raft_index last;
  struct stored *disk; /* [index] */
  /* What is under way. */
  uint64_t durable_seq;
  struct write writes[WRITES_MAX];
  unsigned n_writes;
  struct held *held;
  unsigned n_held;
  /* What it said last, and all in all. */
  raft_index commit, proposed_first, proposed_last;
  struct raft_read_result reads[4096];
  unsigned n_reads;
  struct raft_load loads[64];
  unsigned n_loads, n_loaded; /* asked for, answered */
  raft_id snapshots[64];
  unsigned n_snapshots;
  bool role_changed, configuration_changed;
};

struct world {
  struct node nodes[NODES];
  unsigned n;
  uint64_t now;
  struct raft_configuration configuration; /* that every node starts with */
  struct packet *net;
  unsigned n_net;
  bool no_loads;                  /* settle() leaves them to the test */
  bool unreachable[NODES][NODES]; /* [from][to]: lost as it is sent */
  /* What was ever committed, and who led when. */
  struct {
    raft_term term;
    uint64_t checksum;
  } committed[LOG_MAX];
  raft_index max_committed;
  raft_id leaders[LOG_MAX]; /* [term] */
  void (*spy)(struct world *w, raft_id from, const struct raft_send *send);
};

static inline struct node *node(struct world *w, raft_id id)
{
  assert_true(id > 0 && id < NODES);
  return &w->nodes[id];
}

static inline struct raft *core(struct world *w, raft_id id)
{
  return node(w, id)->raft;
}

/* What the node's own clock says. */
static inline uint64_t local_time(struct world *w, raft_id id)
{
  unsigned rate = node(w, id)->clock_rate;

  return rate == 0 ? w->now : w->now * rate / 100;
}

/* ---- disks ------------------------------------------------------------- */

static inline void stored_set(struct stored *slot, const struct stored *value)
{
  raft_body_ref(value->body);
  raft_body_unref(slot->body);
  *slot = *value;
}

static inline void write_free(struct write *write)
{
  unsigned i;

  for (i = 0; i < write->n; i++)
    raft_body_unref(write->entries[i].body);
  free(write->entries);
}

static inline void write_queue(struct node *n, const struct raft_persist *p)
{
  struct write *write = &n->writes[n->n_writes++];
  unsigned i;

  assert_true(n->n_writes < WRITES_MAX);
  *write = (struct write){.seq = p->seq,
                          .vote = p->vote,
                          .term = p->term,
                          .voted_for = p->voted_for,
                          .n = p->n_entries};
  if (p->n_entries == 0) return;
  write->first = p->entries[0].index;
  write->entries = calloc(p->n_entries, sizeof *write->entries);
  for (i = 0; i < p->n_entries; i++) {
    assert_int_equal(p->entries[i].index, write->first + i);
    write->entries[i].term = p->entries[i].term;
    write->entries[i].type = p->entries[i].type;
    write->entries[i].body = raft_body_ref(p->entries[i].body);
  }
}

/* The oldest write under way reaches the disk. */
static inline uint64_t write_land(struct node *n)
{
  struct write write = n->writes[0];
  unsigned i;

  assert_true(n->n_writes > 0);
  memmove(n->writes, n->writes + 1, --n->n_writes * sizeof write);
  if (write.vote) {
    assert_true(write.term >= n->term); /* I2 */
    assert_true(write.term > n->term || n->voted_for == 0 ||
                n->voted_for == write.voted_for);
    n->term = write.term;
    n->voted_for = write.voted_for;
  }
  if (write.n > 0) {
    assert_true(write.first <= n->last + 1);
    assert_true(write.first + write.n < LOG_MAX);
    for (i = 0; i < write.n; i++)
      stored_set(&n->disk[write.first + i], &write.entries[i]);
    n->last = write.first + write.n - 1;
  }
  write_free(&write);
  return write.seq;
}

/* ---- the network ------------------------------------------------------- */

static inline struct packet packet_make(const struct raft_message *m)
{
  struct packet p = {.from = m->from, .to = m->to, .type = m->type};
  size_t at = raft_message_head_size(m);
  uint32_t i;

  p.len = raft_message_size(m);
  p.bytes = malloc(p.len);
  raft_message_encode_head(m, p.bytes);
  for (i = 0; i < m->n_entries; i++) {
    if (!m->entries[i].body) continue;
    memcpy(p.bytes + at, m->entries[i].body->data, m->entries[i].body->len);
    at += m->entries[i].body->len;
  }
  assert_int_equal(at, p.len);
  return p;
}

static inline void net_add(struct world *w, struct packet packet)
{
  if (packet.to >= NODES || w->unreachable[packet.from][packet.to]) {
    free(packet.bytes);
    return;
  }
  assert_true(w->n_net < NET_MAX);
  w->net[w->n_net++] = packet;
}

static inline struct packet net_take(struct world *w, unsigned i)
{
  struct packet packet = w->net[i];

  assert_true(i < w->n_net);
  memmove(w->net + i, w->net + i + 1, (--w->n_net - i) * sizeof packet);
  return packet;
}

/* ---- what is watched --------------------------------------------------- */

static inline uint64_t stored_sum(raft_term term, const struct raft_body *body)
{
  return term * 31 + (body ? body->checksum : 7);
}

static inline bool on_disk(struct world *w, raft_id id, raft_index index,
                           raft_term term)
{
  struct node *n = node(w, id);

  if (index <= n->snapshot) return true;
  return index <= n->last && n->disk[index].term == term;
}

/* Of the old voters, or of the new ones; not with the core's own words. */
static inline bool majority_has(struct world *w,
                                const struct raft_configuration *c, bool old,
                                raft_index index, raft_term term)
{
  unsigned i, n = 0, has = 0;

  for (i = 0; i < c->n; i++) {
    if (old ? !c->members[i].outgoing : c->members[i].role != RAFT_VOTER)
      continue;
    n++;
    has += on_disk(w, c->members[i].id, index, term);
  }
  return 2 * has > n || (old && n == 0);
}

static inline void watch_quorum(struct world *w, raft_id leader,
                                raft_index index)
{
  const struct raft_configuration *c = raft_configuration(core(w, leader), 0);
  raft_term term = raft_term_at(core(w, leader), index);

  assert_true(majority_has(w, c, false, index, term)); /* I7 */
  assert_true(majority_has(w, c, true, index, term));
}

static inline void watch_commit(struct world *w, raft_id id, raft_index from)
{
  struct node *n = node(w, id);
  const struct raft_entry *entry;
  const struct raft_body *body;
  raft_index i;
  uint64_t sum;

  for (i = from + 1; i <= n->commit; i++) {
    if (i <= n->snapshot) continue;
    entry = raft_entry_at(n->raft, i);
    body = entry ? entry->body : n->disk[i].body;
    sum = stored_sum(raft_term_at(n->raft, i), body);
    if (w->committed[i].term == 0) {
      w->committed[i].term = raft_term_at(n->raft, i);
      w->committed[i].checksum = sum;
      if (w->max_committed < i) w->max_committed = i;
    }
    assert_int_equal(w->committed[i].checksum, sum); /* I4, I6 */
  }
  if (n->commit > from && raft_role(n->raft) == RAFT_LEADER &&
      n->commit > n->snapshot)
    watch_quorum(w, id, n->commit);
}

static inline void watch_leader(struct world *w, raft_id id)
{
  raft_term term;
  raft_index i;
  bool leads;

  raft_state(core(w, id), &term, &leads);
  assert_true(term < LOG_MAX);
  if (!leads || w->leaders[term] == id) return;
  assert_int_equal(w->leaders[term], 0); /* I1 */
  w->leaders[term] = id;
  for (i = node(w, id)->snapshot + 1; i <= w->max_committed; i++)
    if (w->committed[i].term != 0)
      assert_int_equal(raft_term_at(core(w, id), i),
                       w->committed[i].term); /* I5 */
}

/* ---- steps ------------------------------------------------------------- */

static inline int step(struct world *w, raft_id id, struct raft_event *event);

static inline void release_held(struct world *w, raft_id id)
{
  struct node *n = node(w, id);
  unsigned i, kept = 0;

  for (i = 0; i < n->n_held; i++) {
    if (n->held[i].after <= n->durable_seq)
      net_add(w, n->held[i].packet);
    else
      n->held[kept++] = n->held[i];
  }
  n->n_held = kept;
}

/* The oldest write becomes durable, and the node learns of it. */
static inline void persist_one(struct world *w, raft_id id)
{
  struct raft_event event = {.type = RAFT_EVENT_PERSISTED};

  event.u.seq = write_land(node(w, id));
  node(w, id)->durable_seq = event.u.seq;
  release_held(w, id);
  step(w, id, &event);
}

static inline void persist(struct world *w, raft_id id)
{
  while (node(w, id)->n_writes > 0)
    persist_one(w, id);
}

static inline void carry_out(struct world *w, raft_id id,
                             const struct raft_effects *e)
{
  struct node *n = node(w, id);
  unsigned i;

  if (e->persist.seq) write_queue(n, &e->persist);
  for (i = 0; i < e->n_sends; i++) {
    if (w->spy) w->spy(w, id, &e->sends[i]);
    if (e->sends[i].after <= n->durable_seq) {
      net_add(w, packet_make(&e->sends[i].message));
      continue;
    }
    assert_true(n->n_held < NET_MAX);
    n->held[n->n_held].after = e->sends[i].after;
    n->held[n->n_held++].packet = packet_make(&e->sends[i].message);
  }
  for (i = 0; i < e->n_reads; i++)
    n->reads[n->n_reads++ % 4096] = e->reads[i];
  for (i = 0; i < e->n_loads; i++)
    n->loads[n->n_loads++ % 64] = e->loads[i];
  for (i = 0; i < e->n_snapshots; i++)
    n->snapshots[n->n_snapshots++ % 64] = e->snapshots[i];
}

static inline int step(struct world *w, raft_id id, struct raft_event *event)
{
  struct node *n = node(w, id);
  struct raft_effects effects;
  raft_index commit = n->commit;
  int rc;

  event->now = local_time(w, id);
  rc = raft_step(n->raft, event, &effects);
  carry_out(w, id, &effects);
  n->commit = effects.commit;
  assert_int_equal(n->commit, raft_commit(n->raft));
  watch_leader(w, id);
  watch_commit(w, id, commit);
  if (n->prompt) persist(w, id); /* steps of its own, with other effects */
  n->proposed_first = effects.proposed_first;
  n->proposed_last = effects.proposed_last;
  n->role_changed = effects.role_changed;
  n->configuration_changed = effects.configuration_changed;
  return rc;
}

static inline int tick(struct world *w, raft_id id)
{
  struct raft_event event = {.type = RAFT_EVENT_TICK};

  return step(w, id, &event);
}

/* Time passes; nobody notices before the next event. */
static inline void pass(struct world *w, uint64_t ms)
{
  w->now += ms;
}

/* So much time passes that any election timeout is over; id notices. */
static inline void time_out(struct world *w, raft_id id)
{
  pass(w, 2 * node(w, id)->options.election_timeout_ms);
  tick(w, id);
}

static inline int receive(struct world *w, struct packet packet)
{
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE};
  struct raft_message m;
  int rc;

  assert_int_equal(raft_message_decode(packet.bytes, packet.len, &m), 0);
  free(packet.bytes);
  rc = 0;
  if (core(w, packet.to)) {
    event.u.message = &m;
    rc = step(w, packet.to, &event);
  }
  raft_message_clear(&m);
  return rc;
}

static inline int inject(struct world *w, const struct raft_message *m)
{
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE};

  event.u.message = m;
  return step(w, m->to, &event);
}

static inline bool is_such(const struct packet *p, raft_id from, raft_id to,
                           uint8_t type)
{
  return (from == 0 || p->from == from) && (to == 0 || p->to == to) &&
         (type == 0 || p->type == type);
}

/* Index in the network of the oldest such message (0: any), or -1. */
static inline int find_packet(struct world *w, raft_id from, raft_id to,
                              uint8_t type)
{
  unsigned i;

  for (i = 0; i < w->n_net; i++)
    if (is_such(&w->net[i], from, to, type)) return (int)i;
  return -1;
}

static inline unsigned count(struct world *w, raft_id from, raft_id to,
                             uint8_t type)
{
  unsigned i, n = 0;

  for (i = 0; i < w->n_net; i++)
    n += is_such(&w->net[i], from, to, type);
  return n;
}

/* The oldest such message arrives; it must be there. */
static inline int deliver(struct world *w, raft_id from, raft_id to,
                          uint8_t type)
{
  int i = find_packet(w, from, to, type);

  if (i < 0)
    fail_msg("no message of type %u from %d to %d", type, (int)from, (int)to);
  return receive(w, net_take(w, (unsigned)i));
}

/* A look at it, decoded; the caller clears it. */
static inline struct raft_message look(struct world *w, raft_id from,
                                       raft_id to, uint8_t type)
{
  struct raft_message m;
  int i = find_packet(w, from, to, type);

  if (i < 0)
    fail_msg("no message of type %u from %d to %d", type, (int)from, (int)to);
  assert_int_equal(raft_message_decode(w->net[i].bytes, w->net[i].len, &m), 0);
  return m;
}

/* All such messages are lost. */
static inline unsigned drop(struct world *w, raft_id from, raft_id to,
                            uint8_t type)
{
  unsigned n = 0;
  int i;

  while ((i = find_packet(w, from, to, type)) >= 0) {
    free(net_take(w, (unsigned)i).bytes);
    n++;
  }
  return n;
}

static inline bool deliver_any(struct world *w, raft_id from, raft_id to)
{
  int i = find_packet(w, from, to, 0);

  if (i < 0) return false;
  receive(w, net_take(w, (unsigned)i));
  return true;
}

/* The oldest load is answered with up to max entries from the disk. */
static inline bool answer_load(struct world *w, raft_id id, unsigned max)
{
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  struct node *n = node(w, id);
  struct raft_entry entries[64];
  struct raft_load load;
  unsigned i;

  if (n->n_loaded == n->n_loads) return false;
  load = n->loads[n->n_loaded++ % 64];
  for (i = 0; i < max && load.first + i <= n->last; i++) {
    if (load.first <= n->snapshot) break;
    entries[i] = (struct raft_entry){.index = load.first + i,
                                     .term = n->disk[load.first + i].term,
                                     .type = n->disk[load.first + i].type,
                                     .body = n->disk[load.first + i].body};
  }
  event.u.loaded.peer = load.peer;
  event.u.loaded.first = load.first;
  event.u.loaded.n = i;
  event.u.loaded.entries = entries;
  assert_int_equal(step(w, id, &event), 0);
  return true;
}

/* Messages arrive and writes complete until nothing is under way. */
static inline void settle(struct world *w)
{
  unsigned i, rounds = 0;
  bool moved = true;

  while (moved) {
    moved = deliver_any(w, 0, 0);
    for (i = 1; i <= w->n; i++) {
      if (node(w, i)->n_writes > 0 && !node(w, i)->hangs) {
        moved = true;
        persist(w, i);
      }
      while (!w->no_loads && core(w, i) && answer_load(w, i, 8))
        moved = true;
    }
    if (++rounds > 100000) fail_msg("the cluster does not come to rest");
  }
}

static inline int propose(struct world *w, raft_id id, uint8_t type, size_t len)
{
  struct raft_proposal item = {.type = type};
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE};
  static uint64_t serial;
  int rc;

  item.body = raft_body_new(len);
  memset(item.body->data, 0, len);
  serial++;
  memcpy(item.body->data, &serial, len < 8 ? len : 8);
  raft_body_seal(item.body);
  event.u.propose.n = 1;
  event.u.propose.items = &item;
  rc = step(w, id, &event);
  raft_body_unref(item.body);
  return rc;
}

static inline int read_on(struct world *w, raft_id id, uint64_t number)
{
  struct raft_event event = {.type = RAFT_EVENT_READ};

  event.u.read.number = number;
  return step(w, id, &event);
}

/* A read that is content with a lease. */
static inline int read_by_lease(struct world *w, raft_id id, uint64_t number)
{
  struct raft_event event = {.type = RAFT_EVENT_READ};

  event.u.read.number = number;
  event.u.read.lease = true;
  return step(w, id, &event);
}

static inline const struct raft_read_result *last_read(struct world *w,
                                                       raft_id id)
{
  assert_true(node(w, id)->n_reads > 0);
  return &node(w, id)->reads[node(w, id)->n_reads - 1];
}

static inline int transfer(struct world *w, raft_id id, raft_id to)
{
  struct raft_event event = {.type = RAFT_EVENT_TRANSFER};

  event.u.transfer_to = to;
  return step(w, id, &event);
}

static inline int peer_event(struct world *w, raft_id id, uint8_t type,
                             raft_id peer)
{
  struct raft_event event = {.type = type};

  event.u.peer = peer;
  return step(w, id, &event);
}

/* One change of several members; the texts of new ones are made up. */
static inline int change_all(struct world *w, raft_id id, unsigned n,
                             const struct raft_change *items)
{
  struct raft_event event = {.type = RAFT_EVENT_CHANGE};

  event.u.change.n = n;
  event.u.change.items = items;
  return step(w, id, &event);
}

static inline int change_member(struct world *w, raft_id id, uint8_t type,
                                const struct raft_member *member)
{
  struct raft_change item = {.type = type, .member = member};

  return change_all(w, id, 1, &item);
}

static inline int change(struct world *w, raft_id id, uint8_t type,
                         raft_id member_id)
{
  struct raft_change item = {.type = type, .id = member_id};
  struct raft_member member = {.id = member_id, .incarnation = 100 + member_id};
  const struct raft_member *known =
      raft_configuration_find(raft_configuration(core(w, id), NULL), member_id);

  snprintf(member.name, sizeof member.name, "node %d", (int)member_id);
  snprintf(member.address, sizeof member.address, "new:%d", (int)member_id);
  member.role = known ? known->role : RAFT_LEARNER;
  item.member = &member;
  return change_all(w, id, 1, &item);
}

/* ---- life -------------------------------------------------------------- */

static inline void find_configurations(struct world *w, struct node *n,
                                       struct raft_recovered *rec)
{
  raft_index i;

  rec->configuration =
      n->snapshot ? n->snapshot_configuration : w->configuration;
  rec->configuration_index = n->snapshot;
  rec->previous = rec->configuration;
  rec->previous_index = n->snapshot;
  for (i = n->snapshot + 1; i <= n->last; i++) {
    if (n->disk[i].type != RAFT_CONFIGURATION) continue;
    rec->previous = rec->configuration;
    rec->previous_index = rec->configuration_index;
    rec->configuration_index = i;
    assert_int_equal(raft_configuration_decode(n->disk[i].body->data,
                                               n->disk[i].body->len,
                                               &rec->configuration),
                     0);
  }
}

/* The node starts with what is on its disk. */
static inline void start_node(struct world *w, raft_id id)
{
  struct node *n = node(w, id);
  struct raft_recovered *rec = calloc(1, sizeof *rec);
  struct raft_term_run *runs = calloc(n->last + 1, sizeof *runs);
  raft_index i;

  rec->term = n->term;
  rec->voted_for = n->voted_for;
  rec->snapshot_index = n->snapshot;
  rec->snapshot_term = n->snapshot_term;
  rec->last_index = n->last;
  rec->commit = n->snapshot;
  for (i = n->snapshot + 1; i <= n->last; i++)
    if (i == n->snapshot + 1 || n->disk[i].term != n->disk[i - 1].term)
      runs[rec->n_terms++] =
          (struct raft_term_run){.first = i, .term = n->disk[i].term};
  rec->terms = runs;
  find_configurations(w, n, rec);
  n->options.seed++;
  n->commit = n->snapshot;
  n->durable_seq = 0;
  assert_null(n->raft);
  assert_int_equal(raft_new(&n->options, rec, local_time(w, id), &n->raft), 0);
  free(runs);
  free(rec);
}

/* The process dies: what was not durable is gone. */
static inline void crash(struct world *w, raft_id id)
{
  struct node *n = node(w, id);
  unsigned i;

  raft_free(n->raft);
  n->raft = NULL;
  for (i = 0; i < n->n_writes; i++)
    write_free(&n->writes[i]);
  for (i = 0; i < n->n_held; i++)
    free(n->held[i].packet.bytes);
  n->n_writes = n->n_held = 0;
  n->n_loaded = n->n_loads;
}

static inline struct raft_configuration world_members(unsigned voters)
{
  struct raft_configuration c;
  unsigned i;

  memset(&c, 0, sizeof c);
  for (i = 0; i < voters; i++) {
    c.members[i].id = i + 1;
    c.members[i].incarnation = 100 + i + 1;
    c.members[i].role = RAFT_VOTER;
    snprintf(c.members[i].name, RAFT_NAME_MAX, "node %u", i + 1);
    snprintf(c.members[i].address, RAFT_ADDRESS_MAX, "host:%u", i + 1);
  }
  c.n = voters;
  return c;
}

/* n nodes, the first `voters` of which know and elect each other. None is
   started: a test may still put something on a disk. */
static inline struct world *world_prepare(unsigned n, unsigned voters)
{
  struct world *w = calloc(1, sizeof *w);
  unsigned i;

  assert_true(n < NODES);
  w->n = n;
  w->now = 1000;
  w->net = calloc(NET_MAX, sizeof *w->net);
  w->configuration = world_members(voters);
  for (i = 1; i <= n; i++) {
    raft_options_defaults(&w->nodes[i].options);
    w->nodes[i].options.id = i;
    w->nodes[i].options.incarnation = 100 + i;
    w->nodes[i].options.seed = 1000 * i;
    w->nodes[i].disk = calloc(LOG_MAX, sizeof *w->nodes[i].disk);
    w->nodes[i].held = calloc(NET_MAX, sizeof *w->nodes[i].held);
    w->nodes[i].prompt = true;
  }
  return w;
}

static inline struct world *world_new(unsigned n)
{
  struct world *w = world_prepare(n, n);
  unsigned i;

  for (i = 1; i <= n; i++)
    start_node(w, i);
  return w;
}

static inline void world_free(struct world *w)
{
  unsigned i, j;

  for (i = 1; i <= w->n; i++) {
    if (w->nodes[i].raft) crash(w, i);
    for (j = 0; j < LOG_MAX; j++)
      raft_body_unref(w->nodes[i].disk[j].body);
    free(w->nodes[i].disk);
    free(w->nodes[i].held);
  }
  drop(w, 0, 0, 0);
  free(w->net);
  free(w);
}

/* An entry without meaning lies on a disk before its node starts. */
static inline void put_on_disk(struct world *w, raft_id id, raft_term term)
{
  struct node *n = node(w, id);
  struct stored entry = {.term = term, .type = RAFT_COMMIT};

  entry.body = raft_body_new(8);
  memset(entry.body->data, 0, 8);
  entry.body->data[0] = (uint8_t)(n->last + 1);
  entry.body->data[1] = (uint8_t)term;
  raft_body_seal(entry.body);
  stored_set(&n->disk[++n->last], &entry);
  raft_body_unref(entry.body);
  if (n->term < term) n->term = term;
}

/* Nothing reaches the node or comes from it. */
static inline void cut_off(struct world *w, raft_id id)
{
  unsigned i;

  for (i = 1; i < NODES; i++)
    w->unreachable[id][i] = w->unreachable[i][id] = true;
}

static inline void mend(struct world *w)
{
  memset(w->unreachable, 0, sizeof w->unreachable);
}

static inline raft_term term_of(struct world *w, raft_id id)
{
  return core(w, id)->term;
}

static inline bool is_leader(struct world *w, raft_id id)
{
  return raft_role(core(w, id)) == RAFT_LEADER;
}

static inline bool is_joint(struct world *w, raft_id id)
{
  return raft_configuration_joint(raft_configuration(core(w, id), NULL));
}

static inline raft_index configured_at(struct world *w, raft_id id)
{
  raft_index index;

  raft_configuration(core(w, id), &index);
  return index;
}

/* The member's role as id sees it; 0: not a member. */
static inline uint8_t role_in(struct world *w, raft_id id, raft_id member)
{
  const struct raft_member *m =
      raft_configuration_find(raft_configuration(core(w, id), NULL), member);

  return m ? m->role : 0;
}

/* id times out, is elected, and its NOOP is committed everywhere. */
static inline void elect(struct world *w, raft_id id)
{
  time_out(w, id);
  settle(w);
  assert_int_equal(raft_role(core(w, id)), RAFT_LEADER);
  assert_int_equal(raft_commit(core(w, id)), raft_last(core(w, id)));
}

static inline struct raft_progress progress(struct world *w, raft_id leader,
                                            raft_id id)
{
  struct raft_progress p;

  assert_true(raft_progress(core(w, leader), id, &p));
  return p;
}

/* Time passes for everybody, and everything arrives. */
static inline void live(struct world *w, unsigned ms)
{
  unsigned t, i;

  for (t = 0; t < ms; t += 10) {
    pass(w, 10);
    for (i = 1; i <= w->n; i++)
      if (core(w, i)) tick(w, i);
    settle(w);
  }
}

/* A round of heartbeats and everything that follows from it. */
static inline void beat(struct world *w, raft_id leader)
{
  pass(w, node(w, leader)->options.heartbeat_ms);
  tick(w, leader);
  settle(w);
}

#endif
