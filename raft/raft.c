/*
** raft.c: a node: life, the step function, and its effects.
**
** A step is: one event, dispatched to the file that knows its rule; then, on
** a leader, whatever the new state makes due (commit, reads, messages); then
** the effects. The pieces of an effect are gathered in struct raft_output
** while the rules run, in arrays that are kept from step to step.
**
** Durability. At most one write is handed out a step, with the next sequence
** number; it carries term and vote, if they changed, and the new entries.
** Sequence numbers become durable in order, so "is X durable" is everywhere
** the comparison of two numbers, and a message that must wait says for which
** (raft_send.after). raft_send() adds the rule that nobody can forget: nothing
** leaves before the term and the vote that it was said in.
**
** Memory. When an allocation fails, the step gives up and the node is dead:
** it returns RAFT_ENOMEM from then on, with empty effects. Nothing has been
** said or written by that step, so to the other nodes it is a crash.
*/
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- effects ----------------------------------------------------------- */

static void output_clear(struct raft_output *out)
{
  size_t i;

  for (i = 0; i < out->n_entries; i++)
    raft_body_unref(out->entries[i].body);
  out->n_entries = 0;
  out->n_sends = 0;
  out->n_reads = 0;
  out->n_loads = 0;
  out->n_snapshots = 0;
  out->seq = 0;
  out->first = 0;
  out->vote = false;
  out->heartbeat = false;
  out->configuration_changed = false;
  out->proposed_first = 0;
  out->proposed_last = 0;
}

static void output_free(struct raft_output *out)
{
  output_clear(out);
  free(out->sends);
  free(out->send_entries);
  free(out->entries);
  free(out->reads);
}

uint64_t raft_write_seq(struct raft *r)
{
  if (r->disk_failed) return RAFT_NEVER;
  if (r->out.seq == 0) r->out.seq = ++r->seq;
  return r->out.seq;
}

void raft_write_vote(struct raft *r)
{
  r->vote_seq = raft_write_seq(r);
  r->out.vote = true;
}

void raft_out_entry(struct raft *r, const struct raft_entry *entry)
{
  struct raft_output *out = &r->out;
  void *entries = out->entries;

  if (!raft_grow(&entries, &out->entries_capacity, out->n_entries + 1,
                 sizeof *out->entries)) {
    r->failed = true;
    return;
  }
  out->entries = entries;
  out->entries[out->n_entries] = *entry;
  raft_body_ref(entry->body);
  out->n_entries++;
}

void raft_out_read(struct raft *r, uint64_t read, int status, raft_index index)
{
  struct raft_output *out = &r->out;
  void *reads = out->reads;

  if (!raft_grow(&reads, &out->reads_capacity, out->n_reads + 1,
                 sizeof *out->reads)) {
    r->failed = true;
    return;
  }
  out->reads = reads;
  out->reads[out->n_reads].read = read;
  out->reads[out->n_reads].status = status;
  out->reads[out->n_reads].index = index;
  out->n_reads++;
}

static bool grow_sends(struct raft_output *out)
{
  void *sends = out->sends, *entries = out->send_entries;
  bool ok = raft_grow(&sends, &out->sends_capacity, out->n_sends + 1,
                      sizeof *out->sends) &&
            raft_grow(&entries, &out->send_entries_capacity, out->n_sends + 1,
                      sizeof *out->send_entries);

  out->sends = sends;
  out->send_entries = entries;
  return ok;
}

void raft_send(struct raft *r, raft_id to, struct raft_message *message,
               uint64_t after)
{
  struct raft_output *out = &r->out;

  if (!MUTANT(1) && after < r->vote_seq) after = r->vote_seq;
  if (after <= r->durable_seq) after = 0;
  if (after == RAFT_NEVER) return;
  if (!grow_sends(out)) {
    r->failed = true;
    return;
  }
  message->from = r->options.id;
  message->to = to;
  message->incarnation = r->options.incarnation;
  if (message->type != RAFT_PREVOTE_REQUEST) message->term = r->term;
  assert(r->failed || message->n_entries <= out->n_entries);
  out->sends[out->n_sends].after = after;
  out->sends[out->n_sends].message = *message;
  out->send_entries[out->n_sends] = out->n_entries - message->n_entries;
  out->n_sends++;
}

int raft_append(struct raft *r, const struct raft_entry *entry)
{
  int rc = raft_log_append(&r->log, entry);

  if (rc) {
    r->failed = true;
    return rc;
  }
  if (r->out.first == 0) r->out.first = entry->index;
  raft_write_seq(r);
  return 0;
}

/* What this step writes: the entries since out.first, the term, the vote. */
static void fill_persist(struct raft *r, struct raft_persist *persist)
{
  struct raft_output *out = &r->out;
  raft_index index;

  if (out->seq == 0) return;
  raft_log_writing(&r->log, out->seq);
  persist->seq = out->seq;
  persist->vote = out->vote;
  persist->term = r->term;
  persist->voted_for = r->voted_for;
  if (out->first == 0) return;
  for (index = out->first; index <= r->log.last; index++)
    raft_out_entry(r, raft_log_entry(&r->log, index));
  persist->n_entries = (unsigned)(r->log.last - out->first + 1);
}

/* Pointers last: until here the arrays may have moved. */
static void fill_effects(struct raft *r, struct raft_effects *effects)
{
  struct raft_output *out = &r->out;
  struct raft_message *m;
  size_t i;

  fill_persist(r, &effects->persist);
  if (r->failed) return;
  if (effects->persist.n_entries > 0)
    effects->persist.entries =
        out->entries + (out->n_entries - effects->persist.n_entries);
  for (i = 0; i < out->n_sends; i++) {
    m = &out->sends[i].message;
    m->entries = m->n_entries > 0 ? out->entries + out->send_entries[i] : NULL;
  }
  effects->n_sends = (unsigned)out->n_sends;
  effects->sends = out->sends;
  effects->n_reads = (unsigned)out->n_reads;
  effects->reads = out->reads;
  effects->n_loads = out->n_loads;
  effects->loads = out->loads;
  effects->n_snapshots = out->n_snapshots;
  effects->snapshots = out->snapshots;
  effects->configuration_changed = out->configuration_changed;
  effects->proposed_first = out->proposed_first;
  effects->proposed_last = out->proposed_last;
}

/* ---- messages ---------------------------------------------------------- */

struct raft_peer *raft_peer(struct raft *r, raft_id id)
{
  unsigned i;

  for (i = 0; i < r->configuration.n; i++)
    if (r->peers[i].id == id) return &r->peers[i];
  return NULL;
}

bool raft_is_self(const struct raft *r, const struct raft_peer *peer)
{
  return peer->id == r->options.id;
}

/* What is left of a message whose term is over: an answer that says so. */
static void on_stale_message(struct raft *r, const struct raft_message *m)
{
  if (MUTANT(24)) return;
  if (m->type == RAFT_APPEND_REQUEST || m->type == RAFT_HEARTBEAT_REQUEST)
    raft_refuse_leader(r, m);
  else if (m->type == RAFT_READ_REQUEST)
    raft_on_read_request(r, m);
}

/* Messages that count for their sender: as its vote, its copy, its question. */
static bool is_for_itself(const struct raft_message *m)
{
  return m->type == RAFT_PREVOTE_RESPONSE || m->type == RAFT_VOTE_RESPONSE ||
         m->type == RAFT_APPEND_RESPONSE ||
         m->type == RAFT_HEARTBEAT_RESPONSE || m->type == RAFT_READ_REQUEST;
}

static int on_message(struct raft *r, const struct raft_message *m)
{
  struct raft_peer *peer;

  if (!raft_message_valid(m) || m->to != r->options.id) return RAFT_EMALFORMED;
  peer = raft_peer(r, m->from);
  /* Another incarnation than the one in this configuration says nothing for
     that one. But its requests stand, as those of a stranger do: this node may
     be the one who has not heard that the member was replaced. */
  if (!MUTANT(19) && peer && peer->incarnation != m->incarnation) {
    if (is_for_itself(m)) return 0;
    peer = NULL;
  }
  if (peer) peer->last_contact = r->now;

  /* Requests for votes do not always move the term: see election.c. */
  if (m->type == RAFT_PREVOTE_REQUEST || m->type == RAFT_VOTE_REQUEST) {
    raft_on_vote_request(r, m);
    return 0;
  }
  if (m->term > r->term) raft_become_follower(r, m->term, 0);
  if (m->term < r->term && m->type != RAFT_PREVOTE_RESPONSE) {
    on_stale_message(r, m);
    return 0;
  }
  if (peer && m->term == r->term) peer->heard = r->now;

  switch (m->type) {
  case RAFT_PREVOTE_RESPONSE:
  case RAFT_VOTE_RESPONSE: raft_on_vote_response(r, m); return 0;
  case RAFT_APPEND_REQUEST: return raft_on_append_request(r, m);
  case RAFT_APPEND_RESPONSE: return raft_on_append_response(r, m);
  case RAFT_HEARTBEAT_REQUEST: return raft_on_heartbeat_request(r, m);
  case RAFT_HEARTBEAT_RESPONSE: return raft_on_heartbeat_response(r, m);
  case RAFT_READ_REQUEST: raft_on_read_request(r, m); return 0;
  case RAFT_READ_RESPONSE: raft_on_read_response(r, m); return 0;
  case RAFT_TIMEOUT_NOW: raft_on_timeout_now(r, m); return 0;
  default: return RAFT_EMALFORMED;
  }
}

/* ---- events ------------------------------------------------------------ */

static int on_persisted(struct raft *r, uint64_t seq)
{
  if (seq > r->seq) return RAFT_EINVAL;
  /* After a failed write there is no telling what is on the disk. */
  if (r->disk_failed || seq <= r->durable_seq) return 0;
  r->durable_seq = seq;
  raft_log_written(&r->log, seq);
  raft_log_evict(&r->log);
  raft_count_votes(r);
  return 0;
}

static void on_disk_failed(struct raft *r)
{
  r->disk_failed = true;
  /* A vote that never became durable stays unsaid. */
  if (r->vote_seq > r->durable_seq) r->vote_seq = RAFT_NEVER;
  if (!MUTANT(45) && r->role != RAFT_FOLLOWER)
    raft_become_follower(r, r->term, 0);
}

static void on_tick(struct raft *r)
{
  if (r->role == RAFT_LEADER)
    raft_leader_tick(r);
  else
    raft_reads_tick(r);
  if (r->role != RAFT_LEADER) raft_election_tick(r);
}

/* A leader's lease was measured by this clock, and a voter's promise. */
static void doubt_clock(struct raft *r)
{
  if (r->role == RAFT_LEADER) {
    r->lead.lease_void = true;
  } else if (r->options.lease) {
    r->votes_from = r->now + r->options.election_timeout_ms;
    if (r->election_deadline < r->votes_from) raft_reset_election_timer(r);
  }
}

static int dispatch(struct raft *r, const struct raft_event *event)
{
  switch (event->type) {
  case RAFT_EVENT_TICK: on_tick(r); return 0;
  case RAFT_EVENT_MESSAGE: return on_message(r, event->u.message);
  case RAFT_EVENT_PERSISTED: return on_persisted(r, event->u.seq);
  case RAFT_EVENT_DISK_FAILED: on_disk_failed(r); return 0;
  case RAFT_EVENT_PROPOSE:
    return raft_leader_propose(r, event->u.propose.term, event->u.propose.n,
                               event->u.propose.items);
  case RAFT_EVENT_READ:
    raft_reads_ask(r, event->u.read.number, event->u.read.lease);
    return 0;
  case RAFT_EVENT_CHANGE:
    return raft_change(r, event->u.change.n, event->u.change.items);
  case RAFT_EVENT_TRANSFER:
    return raft_leader_transfer(r, event->u.transfer_to);
  case RAFT_EVENT_CLOCK_DOUBT: doubt_clock(r); return 0;
  case RAFT_EVENT_PEER_UP:
    raft_peer_connection(r, event->u.peer, true);
    return 0;
  case RAFT_EVENT_PEER_DOWN:
    raft_peer_connection(r, event->u.peer, false);
    raft_peer_closed(r, event->u.peer);
    return 0;
  case RAFT_EVENT_LOADED:
    return raft_loaded(r, event->u.loaded.peer, event->u.loaded.first,
                       event->u.loaded.n, event->u.loaded.entries);
  case RAFT_EVENT_SNAPSHOT_SENT:
    raft_snapshot_sent(r, event->u.snapshot_sent.peer,
                       event->u.snapshot_sent.index, event->u.snapshot_sent.ok);
    return 0;
  case RAFT_EVENT_SNAPSHOT_INSTALLED:
    return raft_snapshot_installed(r, event->u.snapshot_installed.index,
                                   event->u.snapshot_installed.term,
                                   event->u.snapshot_installed.configuration);
  default: return RAFT_EINVAL;
  }
}

int raft_step(struct raft *r, const struct raft_event *event,
              struct raft_effects *effects)
{
  uint8_t role = r->role;
  raft_id leader = r->leader;
  raft_term term = r->term;
  int rc;

  memset(effects, 0, sizeof *effects);
  effects->commit = r->commit;
  output_clear(&r->out);
  if (r->failed) return RAFT_ENOMEM;
  /* Of all that a step allocates, this cannot be undone: so it is first. */
  if (raft_ring_reserve(&r->log.writes, 1)) {
    r->failed = true;
    return RAFT_ENOMEM;
  }
  if (r->now > event->now) doubt_clock(r);
  if (r->now < event->now) r->now = event->now;

  rc = dispatch(r, event);
  if (r->role == RAFT_LEADER && !r->failed) raft_leader_finish(r);
  if (!r->failed) fill_effects(r, effects);
  if (r->failed) {
    memset(effects, 0, sizeof *effects);
    effects->commit = r->commit;
    return RAFT_ENOMEM;
  }
  effects->commit = r->commit;
  effects->role_changed =
      role != r->role || leader != r->leader || term != r->term;
#ifndef NDEBUG
  raft_check(r);
  r->seen.role = r->role;
  r->seen.term = r->term;
  r->seen.voted_for = r->voted_for;
  r->seen.commit = r->commit;
  r->seen.last = r->log.last;
#endif
  return rc;
}

int raft_propose(struct raft *r, uint64_t now, uint8_t type,
                 struct raft_body *body, raft_index *index, raft_term *term,
                 struct raft_effects *effects)
{
  struct raft_proposal item = {.type = type, .body = body};
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE, .now = now};
  int rc;

  event.u.propose.n = 1;
  event.u.propose.items = &item;
  rc = raft_step(r, &event, effects);
  *index = rc ? 0 : effects->proposed_first;
  *term = r->term;
  return rc;
}

/* ---- life -------------------------------------------------------------- */

static bool options_valid(const struct raft_options *o)
{
  return o->id != 0 && o->heartbeat_ms > 0 &&
         o->election_timeout_ms > o->heartbeat_ms && o->message_bytes > 0 &&
         o->inflight_messages > 0 && o->inflight_messages <= 65536 &&
         o->inflight_bytes > 0 && o->clock_drift_percent < 100 &&
         (!o->lease || o->hint_jitter_ms == 0);
}

static bool recovered_valid(const struct raft_recovered *rec)
{
  return rec->term <= RAFT_NUMBER_MAX && rec->commit >= rec->snapshot_index &&
         rec->commit <= rec->last_index &&
         rec->configuration_index <= rec->last_index &&
         rec->previous_index <= rec->configuration_index &&
         raft_configuration_valid(&rec->configuration) &&
         raft_configuration_valid(&rec->previous);
}

/* Different seeds, terms and start times must not give the same numbers. */
static void seed_random(struct raft *r)
{
  r->random = r->options.seed;
  r->random = raft_random(r) ^ r->options.id;
  r->random = raft_random(r) ^ r->now;
  r->random = raft_random(r) ^ r->term;
}

static int start(struct raft *r, const struct raft_recovered *rec)
{
  const struct raft_member *self;

  r->role = RAFT_FOLLOWER;
  r->term = rec->term;
  r->voted_for = rec->voted_for;
  /* A node that begins with a snapshot may have seen no election itself. */
  if (r->term < rec->snapshot_term) {
    r->term = rec->snapshot_term;
    r->voted_for = 0;
  }
  r->commit = r->agreed = rec->commit;
  r->configuration = rec->configuration;
  r->configuration_index = rec->configuration_index;
  r->previous = rec->previous;
  r->previous_index = rec->previous_index;
  r->flights = calloc((size_t)RAFT_MEMBERS_MAX * r->options.inflight_messages,
                      sizeof *r->flights);
  if (!r->flights) return RAFT_ENOMEM;
  raft_membership_peers(r);

  seed_random(r);
  /* An answer to a question from before a restart must not look like an
     answer to a new one: the numbers do not start where they did. */
  r->read_round = r->read_answered = raft_random(r) >> 1;
  r->prevote_round = r->read_round;
  raft_may_hurry(r);
  raft_reset_election_timer(r);
  if (!MUTANT(42) && r->options.lease)
    r->votes_from = r->now + r->options.election_timeout_ms;
  /* A sole voter has nobody to wait for, but the lease of a leader that has
     made it one by removing itself, and does not know yet that it succeeded. */
  self = raft_configuration_find(&r->configuration, r->options.id);
  if (self && self->role == RAFT_VOTER &&
      !raft_configuration_joint(&r->configuration) &&
      raft_configuration_voters(&r->configuration) == 1)
    r->election_deadline = r->now > r->votes_from ? r->now : r->votes_from;
  r->seen.role = r->role;
  r->seen.term = r->term;
  r->seen.voted_for = r->voted_for;
  r->seen.commit = r->commit;
  r->seen.last = r->log.last;
  return 0;
}

int raft_new(const struct raft_options *options,
             const struct raft_recovered *recovered, uint64_t now,
             struct raft **out)
{
  struct raft *r;
  int rc;

  *out = NULL;
  if (!options_valid(options) || !recovered_valid(recovered))
    return RAFT_EINVAL;
  r = calloc(1, sizeof *r);
  if (!r) return RAFT_ENOMEM;
  r->options = *options;
  r->now = now;
  raft_ring_init(&r->reads, sizeof(struct raft_read));
  raft_ring_init(&r->batches, sizeof(struct raft_batch));
  rc = raft_log_init(&r->log, recovered, options->tail_bytes);
  if (!rc) rc = start(r, recovered);
  if (rc) {
    raft_free(r);
    return rc;
  }
  *out = r;
  return 0;
}

void raft_free(struct raft *r)
{
  if (!r) return;
  output_free(&r->out);
  raft_ring_free(&r->reads);
  raft_ring_free(&r->batches);
  raft_log_free(&r->log);
  free(r->flights);
  free(r);
}

/* ---- what a host may ask ----------------------------------------------- */

void raft_state(const struct raft *r, raft_term *term, bool *is_leader)
{
  *term = r->term;
  *is_leader = r->role == RAFT_LEADER;
}

enum raft_role raft_role(const struct raft *r)
{
  return (enum raft_role)r->role;
}

raft_id raft_leader(const struct raft *r)
{
  return r->leader;
}

raft_index raft_commit(const struct raft *r)
{
  return r->commit;
}

raft_index raft_last(const struct raft *r)
{
  return r->log.last;
}

raft_index raft_durable(const struct raft *r)
{
  return r->log.durable;
}

raft_term raft_term_at(const struct raft *r, raft_index index)
{
  return raft_log_term(&r->log, index);
}

const struct raft_entry *raft_entry_at(const struct raft *r, raft_index index)
{
  return raft_log_entry(&r->log, index);
}

const struct raft_configuration *raft_configuration(const struct raft *r,
                                                    raft_index *index)
{
  if (index) *index = r->configuration_index;
  return &r->configuration;
}

raft_id raft_transferring(const struct raft *r)
{
  return r->lead.transfer_to;
}

uint64_t raft_next_deadline(const struct raft *r)
{
  uint64_t deadline, reads;

  if (r->role == RAFT_LEADER) {
    deadline = raft_leader_deadline(r);
  } else {
    deadline = r->election_deadline;
    reads = raft_reads_deadline(r);
    if (reads < deadline) deadline = reads;
  }
  return deadline > r->now ? deadline - r->now : 0;
}

bool raft_progress(const struct raft *r, raft_id id,
                   struct raft_progress *progress)
{
  const struct raft_peer *peer;
  unsigned i;

  if (r->role != RAFT_LEADER || id == r->options.id) return false;
  for (i = 0; i < r->configuration.n; i++) {
    peer = &r->peers[i];
    if (peer->id != id) continue;
    progress->id = id;
    progress->state = peer->state;
    progress->match = peer->match;
    progress->next = peer->next;
    progress->last_contact = peer->last_contact;
    progress->caught_up = raft_peer_caught_up(r, peer);
    progress->set_backs = peer->set_backs;
    return true;
  }
  return false;
}

/* ---- invariants -------------------------------------------------------- */

#ifndef NDEBUG

static void check_peer(const struct raft *r, const struct raft_peer *peer)
{
  assert(peer->match < peer->next); /* I9 */
  assert(peer->match <= r->log.last);
  assert(peer->next <= r->log.last + 1);
  assert(peer->n_flights <= r->options.inflight_messages); /* I15 */
  assert(peer->n_flights > 0 || peer->flight_bytes == 0);
  assert(peer->n_flights <= 1 ||
         peer->flight_bytes <= r->options.inflight_bytes);
  assert(peer->state == RAFT_REPLICATE || peer->n_flights == 0);
  assert(peer->read_ack <= r->read_round);
  assert(peer->reads <= RAFT_PEER_READS_MAX);
}

static void check_leader(const struct raft *r)
{
  unsigned i;

  assert(r->leader == r->options.id);
  assert(!r->disk_failed);
  assert(r->lead.start > 0 && r->lead.start <= r->log.last);
  assert(r->lead.transfer_to != r->options.id);
  assert(raft_log_term(&r->log, r->log.last) == r->term); /* I12 */
  assert(r->seen.role != RAFT_LEADER || r->seen.term != r->term ||
         r->log.last >= r->seen.last); /* I12 */
  for (i = 0; i < r->configuration.n; i++)
    if (!raft_is_self(r, &r->peers[i])) check_peer(r, &r->peers[i]);
}

void raft_check(const struct raft *r)
{
  raft_log_check(&r->log);
  assert(raft_log_snapshot(&r->log) <= r->commit); /* I9 */
  assert(r->commit <= r->log.last);
  assert(r->agreed <= r->log.last);
  assert(r->commit >= r->seen.commit); /* I10 */
  assert(r->term >= r->seen.term);     /* I2 */
  assert(r->term != r->seen.term || r->seen.voted_for == 0 ||
         r->voted_for == r->seen.voted_for); /* I2 */
  assert(raft_log_term(&r->log, r->log.last) <= r->term);
  assert(r->durable_seq <= r->seq);
  assert(r->disk_failed || r->log.writes.n == r->seq - r->durable_seq);
  assert(r->previous_index <= r->configuration_index);
  assert(r->configuration_index <= r->log.last);
  assert(r->configuration.n == 0 || r->peers[0].id != 0);

  switch (r->role) {
  case RAFT_FOLLOWER: assert(r->leader != r->options.id); break;
  case RAFT_PRECANDIDATE: assert(r->leader == 0); break;
  case RAFT_CANDIDATE:
    assert(r->leader == 0);
    assert(r->voted_for == r->options.id);
    break;
  case RAFT_LEADER: check_leader(r); break;
  default: assert(false);
  }
  assert(r->role == RAFT_LEADER || r->batches.n == 0);
  assert(r->role == RAFT_LEADER || r->lead.transfer_to == 0);
  assert(raft_configuration_valid(&r->configuration));
}

#endif
