/*
** leader.c: replication, commit, and what a leader knows of each follower.
**
** A follower is in one of three states:
**
**   PROBE      where the logs meet is not known: one append at a time, the
**              next one after an answer, or after a heartbeat was answered
**   REPLICATE  it is: entries are sent as they come, `next` runs ahead of
**              what is acknowledged, bounded by a window of messages and
**              bytes ("flights")
**   SNAPSHOT   what it needs is no longer in the log, or cannot be read: the
**              host sends a snapshot; only heartbeats go on
**
**        rejected, connection gone                match >= next - 1
**   REPLICATE ---------------------> PROBE <---------------------> REPLICATE
**                                    |   ^
**              next <= log's snapshot|   | sent, failed, or caught up
**                                    v   |
**                                  SNAPSHOT
**
** Backing up (section 5.3, last paragraphs): a rejection tells the follower's
** greatest index that could match, and its term there; the leader skips the
** entries of its own that cannot match that. Each side skips whole terms, so
** a round trip settles at least one term.
**
** Losses: an append that is lost is noticed when the next one is rejected.
** Was it the last one, then two heartbeat answers in a row report the same
** match, short of what was sent, and an empty append asks again.
**
** Handing over (dissertation, 3.10): no proposals are taken, the target is
** brought up to date, and then told to campaign at once; told again with every
** heartbeat, since the message may be lost; given up after an election timeout.
** A leader hands over when it is asked to, when its own removal is committed,
** when a voter that should rather lead has caught up, and when its own disk
** stands still, without an error, while the others commit: what is not on it is
** kept in memory, so that it could not take entries for long.
**
** Commit: the greatest index that is durable on a quorum, where this node
** counts by its own durable index like any other, and only if the entry there
** is of this term.
*/
#include "internal.h"

/* Election timeouts after which a disk that did nothing is not merely slow. */
#define STILL_TIMEOUTS 4
/* Failures in a row to read the same entries, with a heartbeat between two. */
#define LOADS_MAX 3
/* Rejections in a row, in the same way, of what was acknowledged. */
#define DENIALS_MAX 3

/* ---- flights ----------------------------------------------------------- */

static struct raft_flight *flight_at(const struct raft *r,
                                     const struct raft_peer *peer, unsigned i)
{
  unsigned window = r->options.inflight_messages;

  return &r->flights[(size_t)peer->slot * window +
                     (peer->flight_head + i) % window];
}

static void flights_clear(struct raft_peer *peer)
{
  peer->flight_head = 0;
  peer->n_flights = 0;
  peer->flight_bytes = 0;
}

static void flights_land(const struct raft *r, struct raft_peer *peer,
                         raft_index match)
{
  struct raft_flight *flight;

  while (peer->n_flights > 0) {
    flight = flight_at(r, peer, 0);
    if (MUTANT(29) || flight->last > match) break;
    peer->flight_bytes -= flight->bytes;
    peer->flight_head = (peer->flight_head + 1) % r->options.inflight_messages;
    peer->n_flights--;
  }
}

static void flights_add(const struct raft *r, struct raft_peer *peer,
                        raft_index last, size_t bytes)
{
  struct raft_flight *flight = flight_at(r, peer, peer->n_flights);

  assert(peer->n_flights < r->options.inflight_messages);
  flight->last = last;
  flight->bytes = bytes;
  peer->n_flights++;
  peer->flight_bytes += bytes;
}

/* ---- states of a follower ---------------------------------------------- */

void raft_peer_reset(struct raft *r, struct raft_peer *peer, raft_index next)
{
  peer->state = RAFT_PROBE;
  peer->paused = false;
  peer->load_failed = false;
  peer->loads_failed = 0;
  peer->unreadable = 0;
  peer->denials = 0;
  peer->set_backs = 0;
  peer->reported_once = false;
  peer->caught_up = false;
  peer->match = 0;
  peer->next = next;
  peer->commit = 0;
  peer->round_end = r->log.last;
  peer->round_start = r->now;
  peer->heard = r->now;
  peer->read_ack = 0;
  peer->reads = 0;
  flights_clear(peer);
}

static void become_probe(struct raft_peer *peer, raft_index next)
{
  peer->state = RAFT_PROBE;
  peer->next = next > peer->match ? next : peer->match + 1;
  peer->paused = false;
  flights_clear(peer);
}

static void become_replicate(struct raft_peer *peer)
{
  assert(peer->state == RAFT_PROBE);
  peer->state = RAFT_REPLICATE;
  peer->next = peer->match + 1;
  peer->paused = false;
}

static void become_snapshot(struct raft *r, struct raft_peer *peer)
{
  struct raft_output *out = &r->out;

  assert(peer->state != RAFT_SNAPSHOT);
  assert(out->n_snapshots < RAFT_MEMBERS_MAX);
  peer->state = RAFT_SNAPSHOT;
  peer->paused = false;
  flights_clear(peer);
  out->snapshots[out->n_snapshots++] = peer->id;
}

/*
** Catching up goes in rounds (dissertation, 4.2.1): a round is over when the
** learner has all that the leader had at its beginning. It may be promoted
** when its last round took less than an election timeout.
*/
static void track_round(const struct raft *r, struct raft_peer *peer)
{
  if (peer->round_end > 0 && peer->match >= peer->round_end) {
    peer->caught_up =
        r->now - peer->round_start <= r->options.election_timeout_ms;
    peer->round_end = 0;
  }
  if (peer->match == r->log.last) {
    peer->caught_up = true; /* the next round has nothing to do */
    peer->round_end = 0;
  } else if (peer->round_end == 0) {
    peer->round_end = r->log.last;
    peer->round_start = r->now;
  }
}

bool raft_peer_caught_up(const struct raft *r, const struct raft_peer *peer)
{
  uint64_t limit = r->options.election_timeout_ms;

  return peer->caught_up && r->now - peer->heard <= limit &&
         (peer->round_end == 0 || r->now - peer->round_start <= limit);
}

static void learn_match(struct raft *r, struct raft_peer *peer,
                        raft_index match)
{
  if (match > peer->match) peer->match = match;
  if (!MUTANT(28) && peer->next <= peer->match) peer->next = peer->match + 1;
  flights_land(r, peer, peer->match);
  track_round(r, peer);
  if (peer->state == RAFT_PROBE && match + 1 >= peer->next)
    become_replicate(peer);
  else if (peer->state == RAFT_SNAPSHOT && peer->match >= peer->unreadable &&
           peer->match >= raft_log_snapshot(&r->log))
    become_probe(peer, peer->match + 1);
}

/* ---- sending ----------------------------------------------------------- */

/* An append of what raft_out_entry() has put in place. */
static void send_append(struct raft *r, struct raft_peer *peer, uint32_t n)
{
  struct raft_message message = {
      .type = RAFT_APPEND_REQUEST,
      .prev_index = peer->next - 1,
      .prev_term = raft_log_term(&r->log, peer->next - 1),
      .commit = r->commit,
      .n_entries = n,
  };

  assert(peer->next > raft_log_snapshot(&r->log));
  peer->commit = r->commit;
  raft_send(r, peer->id, &message, 0);
}

static size_t body_bytes(const struct raft_entry *entry)
{
  return entry->body ? entry->body->len : 0;
}

/*
** Sends entries that follow each other, from next on, as many as message and
** window allow; one always goes when nothing is on its way. Returns how many.
*/
static uint32_t send_entries(struct raft *r, struct raft_peer *peer,
                             const struct raft_entry *given, raft_index last)
{
  const struct raft_entry *entry;
  size_t bytes = 0, more;
  uint32_t n = 0;

  while (n < RAFT_MESSAGE_ENTRIES_MAX && peer->next + n <= last) {
    entry = given ? &given[n] : raft_log_entry(&r->log, peer->next + n);
    more = bytes + body_bytes(entry);
    if (n > 0 && more > r->options.message_bytes) break;
    if (n + peer->n_flights > 0 &&
        more > r->options.inflight_bytes - peer->flight_bytes)
      break;
    bytes = more;
    raft_out_entry(r, entry);
    n++;
  }
  if (n == 0 || r->failed) return 0;
  send_append(r, peer, n);
  if (peer->state == RAFT_REPLICATE) {
    flights_add(r, peer, peer->next + n - 1, bytes);
    peer->next += n;
  }
  return n;
}

static bool window_is_open(const struct raft *r, const struct raft_peer *peer)
{
  return peer->n_flights < r->options.inflight_messages &&
         peer->flight_bytes < r->options.inflight_bytes;
}

/*
** Entries that have left the tail are asked for, once at a time, and only
** when the window will take whatever comes: it is not read twice.
*/
static void load(struct raft *r, struct raft_peer *peer)
{
  struct raft_output *out = &r->out;
  size_t room = r->options.inflight_bytes - peer->flight_bytes;

  if (peer->loading || peer->load_failed) return;
  if (peer->n_flights > 0 &&
      (room < RAFT_BODY_MAX || room < r->options.message_bytes))
    return;
  assert(out->n_loads < RAFT_MEMBERS_MAX);
  out->loads[out->n_loads].peer = peer->id;
  out->loads[out->n_loads].first = peer->next;
  out->loads[out->n_loads].max_bytes = r->options.message_bytes;
  out->n_loads++;
  peer->loading = true;
}

/* One append that finds out whether next is right; with entries, if they are
   at hand, since it mostly is. */
static void probe(struct raft *r, struct raft_peer *peer)
{
  assert(!peer->paused);
  peer->paused = true;
  if (raft_log_entry(&r->log, peer->next))
    send_entries(r, peer, NULL, r->log.last);
  else
    send_append(r, peer, 0);
}

static void replicate(struct raft *r, struct raft_peer *peer)
{
  while (peer->next <= r->log.last && window_is_open(r, peer)) {
    if (!raft_log_entry(&r->log, peer->next)) {
      load(r, peer);
      break;
    }
    if (send_entries(r, peer, NULL, r->log.last) == 0) break;
  }
  /* A commit index that no append has told yet does not wait for the next
     one: somebody may be waiting on that follower. */
  if (peer->commit < r->commit && peer->commit < peer->next - 1)
    send_append(r, peer, 0);
}

static void serve(struct raft *r, struct raft_peer *peer)
{
  if (peer->state == RAFT_SNAPSHOT) return;
  if (peer->state == RAFT_PROBE && peer->paused) return;
  if (peer->next <= raft_log_snapshot(&r->log)) {
    become_snapshot(r, peer);
    return;
  }
  if (peer->state == RAFT_PROBE)
    probe(r, peer);
  else
    replicate(r, peer);
}

static void heartbeat(struct raft *r, struct raft_peer *peer)
{
  struct raft_message message = {
      .type = RAFT_HEARTBEAT_REQUEST,
      .commit = MUTANT(27) || r->commit < peer->match ? r->commit : peer->match,
      .read = r->read_round,
  };

  raft_send(r, peer->id, &message, 0);
}

/* ---- commit ------------------------------------------------------------ */

static void advance_commit(struct raft *r)
{
  uint64_t durable[RAFT_MEMBERS_MAX];
  raft_index index;
  unsigned i;

  for (i = 0; i < r->configuration.n; i++) {
    durable[i] = r->peers[i].match;
    if (raft_is_self(r, &r->peers[i]) ||
        (MUTANT(17) && i == 0 && !raft_peer(r, r->options.id)))
      durable[i] = MUTANT(6) ? r->log.last : r->log.durable;
  }
  index = raft_configuration_quorum(&r->configuration, durable);
  assert(index <= r->log.last);
  if (index > r->commit &&
      (MUTANT(3) || raft_log_term(&r->log, index) == r->term))
    r->commit = index;
}

/* What the others have committed without this node stays in memory until its
   own disk has it, too. */
static void release_batches(struct raft *r)
{
  struct raft_batch *batch;

  while (r->batches.n > 0) {
    batch = raft_ring_at(&r->batches, 0);
    if (MUTANT(46) || batch->last > r->commit) break;
    if (!MUTANT(70) && batch->last > r->log.durable) break;
    assert(r->uncommitted >= batch->bytes);
    r->uncommitted -= batch->bytes;
    raft_ring_pop_front(&r->batches);
  }
}

/* Its own removal is committed: it has done its work (dissertation 4.2.2). */
static bool is_removed(const struct raft *r)
{
  const struct raft_member *self =
      raft_configuration_find(&r->configuration, r->options.id);

  return r->configuration_index <= r->commit &&
         (!self || !raft_member_votes(self));
}

/* ---- handing over ------------------------------------------------------ */

static bool may_succeed(const struct raft *r, unsigned i)
{
  return r->configuration.members[i].role == RAFT_VOTER &&
         !raft_is_self(r, &r->peers[i]);
}

/*
** The voter that should lead next: among those that follow closely, have the
** log up to `least` and were heard from lately, one that should rather than
** others, then the one with most of the log. NULL: there is none.
*/
static struct raft_peer *best_successor(struct raft *r, raft_index least,
                                        int *rank)
{
  struct raft_peer *best = NULL, *peer;
  unsigned i;
  int own;

  for (i = 0; i < r->configuration.n; i++) {
    peer = &r->peers[i];
    if (!may_succeed(r, i) || peer->state != RAFT_REPLICATE) continue;
    if (peer->match < least) continue;
    if (r->now - peer->heard > r->options.election_timeout_ms) continue;
    own = raft_member_rank(&r->configuration.members[i]);
    if (best && own < *rank) continue;
    if (best && own == *rank && peer->match <= best->match) continue;
    best = peer;
    *rank = own;
  }
  return best;
}

static void tell_to_campaign(struct raft *r, struct raft_peer *peer)
{
  struct raft_message message = {
      .type = RAFT_TIMEOUT_NOW,
      .prev_index = r->log.last,
      .prev_term = raft_log_term(&r->log, r->log.last),
  };

  assert(peer->match == r->log.last);
  if (!MUTANT(22)) r->lead.lease_void = true;
  raft_send(r, peer->id, &message, 0);
}

static void begin_transfer(struct raft *r, raft_id to)
{
  assert(r->lead.transfer_to == 0);
  r->lead.transfer_to = to;
  r->lead.transfer_told = false;
  r->lead.transfer_end = r->now + r->options.election_timeout_ms;
}

int raft_leader_transfer(struct raft *r, raft_id to)
{
  struct raft_peer *peer;
  int rank;

  if (r->role != RAFT_LEADER) return RAFT_ENOTLEADER;
  if (r->lead.transfer_to != 0) return RAFT_ETRANSFER;
  if (to == 0) {
    peer = best_successor(r, r->commit, &rank);
    if (!peer) peer = best_successor(r, 0, &rank);
    if (!peer) return RAFT_ENOTREADY;
  } else {
    peer = raft_peer(r, to);
    if (!peer) return RAFT_ENOTFOUND;
    if (!may_succeed(r, (unsigned)(peer - r->peers))) return RAFT_EINVAL;
  }
  begin_transfer(r, peer->id);
  return 0;
}

/* For how long the others have committed entries while this node's disk did
   nothing; time that passed without a look at it does not count. */
static void watch_disk(struct raft *r)
{
  struct raft_leadership *lead = &r->lead;
  uint64_t passed = r->now - lead->disk_looked;

  if (passed > 2 * (uint64_t)r->options.heartbeat_ms)
    passed = 2 * (uint64_t)r->options.heartbeat_ms;
  lead->disk_still += passed;
  if (r->log.durable >= r->commit || r->log.durable != lead->disk_seen)
    lead->disk_still = 0;
  lead->disk_looked = r->now;
  lead->disk_seen = r->log.durable;
}

bool raft_disk_stands_still(const struct raft *r)
{
  return !MUTANT(71) && r->role == RAFT_LEADER &&
         r->lead.disk_still >
             STILL_TIMEOUTS * (uint64_t)r->options.election_timeout_ms;
}

/* Who should rather lead than this node does so, if it can. */
static void prefer_another(struct raft *r)
{
  const struct raft_member *self =
      raft_configuration_find(&r->configuration, r->options.id);
  struct raft_peer *peer;
  int rank;

  if (r->lead.transfer_to != 0 || r->now < r->handover_due) return;
  r->handover_due = r->now + r->options.election_timeout_ms;
  if (!self || r->commit < r->lead.start) return;
  peer = best_successor(r, r->commit, &rank);
  if (!peer) return;
  if (rank <= raft_member_rank(self) && !raft_disk_stands_still(r)) return;
  begin_transfer(r, peer->id);
  /* Should it fail, the cluster is to work for a while in between. */
  r->handover_due += 10 * (uint64_t)r->options.election_timeout_ms;
}

static void go_on_with_transfer(struct raft *r)
{
  struct raft_peer *peer;

  if (r->lead.transfer_to == 0) return;
  peer = raft_peer(r, r->lead.transfer_to);
  /* No change of members is taken meanwhile. */
  assert(peer && may_succeed(r, (unsigned)(peer - r->peers)));
  if (!MUTANT(25) && peer->match < r->log.last) return;
  if (r->lead.transfer_told && !r->out.heartbeat) return;
  tell_to_campaign(r, peer);
  r->lead.transfer_told = true;
}

/* Its work is done; who is up to date need not wait for a timeout. */
static void resign(struct raft *r)
{
  struct raft_peer *peer;
  int rank;

  peer = best_successor(r, r->log.last, &rank);
  if (peer) tell_to_campaign(r, peer);
  raft_become_follower(r, r->term, 0);
}

void raft_leader_finish(struct raft *r)
{
  unsigned i;

  assert(r->role == RAFT_LEADER);
  advance_commit(r);
  release_batches(r);
  raft_membership_leave_joint(r);
  raft_reads_advance(r);
  for (i = 0; i < r->configuration.n && !r->failed; i++) {
    if (raft_is_self(r, &r->peers[i])) continue;
    serve(r, &r->peers[i]);
    if (MUTANT(48) && r->peers[i].state == RAFT_SNAPSHOT) continue;
    if (r->out.heartbeat) heartbeat(r, &r->peers[i]);
  }
  go_on_with_transfer(r);
  if (r->out.heartbeat) r->heartbeat_due = r->now + r->options.heartbeat_ms;
  raft_log_evict(&r->log);
  if (is_removed(r)) resign(r);
}

/* ---- proposals --------------------------------------------------------- */

static bool proposals_valid(unsigned n, const struct raft_proposal *items)
{
  unsigned i;

  if (n == 0) return false;
  for (i = 0; i < n; i++) {
    if (items[i].type < RAFT_NOOP || items[i].type > RAFT_SETTING) return false;
    if (items[i].type == RAFT_CONFIGURATION) return false;
    if (items[i].body && items[i].body->len > RAFT_BODY_MAX) return false;
  }
  return true;
}

static size_t charge(unsigned n, const struct raft_proposal *items)
{
  size_t bytes = 0;
  unsigned i;

  for (i = 0; i < n; i++)
    if (items[i].type != RAFT_NOOP && items[i].body)
      bytes += items[i].body->len;
  return bytes;
}

int raft_leader_propose(struct raft *r, raft_term term, unsigned n,
                        const struct raft_proposal *items)
{
  struct raft_entry entry = {.term = r->term};
  struct raft_batch *batch;
  size_t bytes;
  unsigned i;

  if (r->disk_failed) return RAFT_EDISK;
  if (r->role != RAFT_LEADER) return RAFT_ENOTLEADER;
  if (term != 0 && term != r->term) return RAFT_ENOTLEADER;
  if (!MUTANT(26) && r->lead.transfer_to != 0) return RAFT_ETRANSFER;
  if (!proposals_valid(n, items)) return RAFT_EINVAL;
  bytes = charge(n, items);
  if (bytes > 0 && r->uncommitted > 0 &&
      r->uncommitted + bytes > r->options.uncommitted_bytes)
    return RAFT_EBUSY;
  if (bytes > 0 && raft_ring_reserve(&r->batches, 1)) {
    r->failed = true;
    return RAFT_ENOMEM;
  }

  r->out.proposed_first = r->log.last + 1;
  for (i = 0; i < n; i++) {
    entry.index = r->log.last + 1;
    entry.type = items[i].type;
    entry.body = items[i].body && items[i].body->len > 0 ? items[i].body : NULL;
    if (raft_append(r, &entry)) return RAFT_ENOMEM;
  }
  r->out.proposed_last = r->log.last;
  if (bytes == 0) return 0;
  batch = raft_ring_push(&r->batches);
  batch->last = r->log.last;
  batch->bytes = bytes;
  r->uncommitted += bytes;
  return 0;
}

/* ---- time -------------------------------------------------------------- */

/* When a quorum was last heard from. */
static uint64_t quorum_heard(const struct raft *r)
{
  uint64_t heard[RAFT_MEMBERS_MAX];
  unsigned i;

  for (i = 0; i < r->configuration.n; i++)
    heard[i] = raft_is_self(r, &r->peers[i]) ? r->now : r->peers[i].heard;
  return raft_configuration_quorum(&r->configuration, heard);
}

void raft_leader_tick(struct raft *r)
{
  assert(r->role == RAFT_LEADER);
  if (!MUTANT(36) &&
      r->now - quorum_heard(r) > r->options.election_timeout_ms) {
    raft_become_follower(r, r->term, 0);
    return;
  }
  if (r->now >= r->lead.transfer_end) r->lead.transfer_to = 0;
  watch_disk(r);
  if (r->now >= r->heartbeat_due) {
    prefer_another(r);
    raft_reads_join(r);
    r->out.heartbeat = true;
  }
}

uint64_t raft_leader_deadline(const struct raft *r)
{
  uint64_t deadline = quorum_heard(r) + r->options.election_timeout_ms + 1;

  if (r->lead.transfer_to != 0 && r->lead.transfer_end < deadline)
    deadline = r->lead.transfer_end;
  return deadline < r->heartbeat_due ? deadline : r->heartbeat_due;
}

/* ---- answers ----------------------------------------------------------- */

/*
** It denies what it had acknowledged. That may be an old answer which is late;
** but not several in a row, with a heartbeat between two. Then its disk has lost
** entries, or is as it was some time ago: it does not count for them any more,
** and gets them again.
*/
static bool is_set_back(struct raft_peer *peer)
{
  if (MUTANT(73) || peer->match == 0 || peer->state != RAFT_PROBE ||
      ++peer->denials < DENIALS_MAX)
    return false;
  peer->denials = 0;
  peer->set_backs++;
  peer->match = 0;
  peer->caught_up = false;
  peer->round_end = 0;
  return true;
}

/* The follower's log differs at m->prev_index, or ends before it. */
static void on_rejection(struct raft *r, struct raft_peer *peer,
                         const struct raft_message *m)
{
  raft_index next;

  /* Stale: since then the logs were found to meet there or beyond, or the
     probe is another one by now. */
  if (m->prev_index < peer->match || m->prev_index >= peer->next) return;
  if (peer->state == RAFT_SNAPSHOT) return;
  if (peer->state == RAFT_PROBE && m->prev_index != peer->next - 1) return;
  if (m->prev_index == peer->match && !is_set_back(peer)) return;

  next = raft_log_conflict(&r->log, m->hint_index, m->hint_term) + 1;
  if (MUTANT(35)) next = m->prev_index;
  if (next > m->prev_index) next = m->prev_index;
  become_probe(peer, next);
}

int raft_on_append_response(struct raft *r, const struct raft_message *m)
{
  struct raft_peer *peer = raft_peer(r, m->from);

  if (r->role != RAFT_LEADER || !peer) return 0;
  if (m->match > r->log.last) return RAFT_EMALFORMED;
  if (m->granted) {
    peer->denials = 0;
    learn_match(r, peer, m->match);
  } else {
    on_rejection(r, peer, m);
  }
  return 0;
}

/* Something was sent, and two answers in a row say that it did not arrive. */
static void notice_loss(struct raft *r, struct raft_peer *peer,
                        raft_index match)
{
  bool stuck = peer->reported_once && peer->reported == match;

  peer->reported_once = true;
  peer->reported = match;
  if (stuck && peer->state == RAFT_REPLICATE && match < peer->next - 1 &&
      peer->next > raft_log_snapshot(&r->log))
    send_append(r, peer, 0);
}

int raft_on_heartbeat_response(struct raft *r, const struct raft_message *m)
{
  struct raft_peer *peer = raft_peer(r, m->from);

  if (r->role != RAFT_LEADER || !peer) return 0;
  if (m->match > r->log.last || m->read > r->read_round) return RAFT_EMALFORMED;
  if (m->read > peer->read_ack) peer->read_ack = m->read;
  peer->paused = false;
  peer->load_failed = false;
  learn_match(r, peer, m->match);
  notice_loss(r, peer, m->match);
  return 0;
}

/* ---- what the host answers --------------------------------------------- */

int raft_loaded(struct raft *r, raft_id id, raft_index first, unsigned n,
                const struct raft_entry *entries)
{
  struct raft_peer *peer = raft_peer(r, id);
  raft_index last;

  if (!peer) return 0;
  peer->loading = false;
  if (r->role != RAFT_LEADER || peer->state != RAFT_REPLICATE) return 0;
  if (first != peer->next || !window_is_open(r, peer)) return 0;
  /* Only what the log still holds: it may have been cut in the meantime. */
  for (last = first - 1; last - first + 1 < n; last++) {
    const struct raft_entry *entry = &entries[last - first + 1];

    if (entry->index != last + 1 || entry->index > r->log.last) break;
    if (!MUTANT(40) && entry->term != raft_log_term(&r->log, entry->index))
      break;
  }
  if (first <= raft_log_snapshot(&r->log)) return 0;
  if (last >= first) {
    peer->loads_failed = 0;
    send_entries(r, peer, entries, last);
    return 0;
  }
  /* Not asked for at once again. But a file that is damaged stays so. */
  peer->load_failed = true;
  if (MUTANT(72) || ++peer->loads_failed < LOADS_MAX) return 0;
  peer->loads_failed = 0;
  peer->unreadable = first;
  become_snapshot(r, peer);
  return 0;
}

void raft_snapshot_sent(struct raft *r, raft_id id, raft_index index, bool ok)
{
  struct raft_peer *peer = raft_peer(r, id);

  if (r->role != RAFT_LEADER || !peer || peer->state != RAFT_SNAPSHOT) return;
  if (index > r->log.last) return;
  become_probe(peer, ok ? index + 1 : peer->match + 1);
  /* After a failure not at once again, but when it answers a heartbeat. */
  peer->paused = !ok;
}

/* What was on its way is lost, or a new connection wants to be tried. */
void raft_peer_connection(struct raft *r, raft_id id, bool up)
{
  struct raft_peer *peer = raft_peer(r, id);

  if (r->role != RAFT_LEADER || !peer || raft_is_self(r, peer)) return;
  if (peer->state == RAFT_SNAPSHOT) return;
  /* Of a peer that has not answered yet, no match means nothing: the first
     guess stands. */
  become_probe(peer, peer->match > 0 ? peer->match + 1 : peer->next);
  peer->paused = !up;
}
