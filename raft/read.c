/*
** read.c: linearizable reads without writing to the log (ReadIndex,
** dissertation 6.4).
**
** A leader may answer a read with its commit index when it is sure that it
** was still the leader at some moment after the read was asked for. So:
**
**   1. The read notes the commit index, but at least the index of this term's
**      NOOP: before that one is committed, the leader does not know what its
**      predecessors have committed.
**   2. It belongs to the next round of heartbeats to be started, never to one
**      that began before it. A round is a number, which heartbeats carry and
**      answers repeat; an answer confirms all rounds up to its own.
**   3. When a quorum has confirmed the round, and the noted index is
**      committed, the read is answered.
**
** A new round starts as soon as no round is under way, or with the next
** heartbeat that is due; so at most two are under way, and a thousand readers
** share one.
**
** Leases (dissertation 6.4.1). A quorum that answered a round of heartbeats
** elects nobody for the minimal election timeout after it was sent; that time,
** less the bound on clock drift, is the leader's lease. While it lasts, a read
** that is content with a lease is answered at once. With leases every
** heartbeat begins a round, so that an idle leader keeps its lease. It is void
** for the rest of the term once TIMEOUT_NOW was sent (the election it asks for
** does not wait, and the message may be late) or the clock is in doubt.
**
** A follower asks the leader. It too has one request under way; reads that
** come in meanwhile go with the next one. A request without an answer is
** repeated under a new number, and a read that has waited for an election
** timeout fails.
*/
#include "internal.h"

static struct raft_read *read_at(const struct raft *r, size_t i)
{
  return raft_ring_at(&r->reads, i);
}

static bool any_waits(const struct raft *r)
{
  return r->reads.n > 0 && read_at(r, r->reads.n - 1)->round > r->read_round;
}

/* ---- answers ----------------------------------------------------------- */

static void answer_peer(struct raft *r, raft_id to, uint64_t read,
                        raft_index index)
{
  struct raft_message message = {
      .type = RAFT_READ_RESPONSE, .read = read, .read_index = index};

  raft_send(r, to, &message, 0);
}

/* The oldest read leaves the queue. */
static void answer_front(struct raft *r, int status, raft_index index)
{
  struct raft_read read = *read_at(r, 0);
  struct raft_peer *peer;

  raft_ring_pop_front(&r->reads);
  if (read.from == 0) {
    raft_out_read(r, read.read, status, index);
    return;
  }
  peer = raft_peer(r, read.from);
  if (peer && peer->reads > 0) peer->reads--;
  answer_peer(r, read.from, read.read, index);
}

void raft_reads_fail(struct raft *r, int status)
{
  while (r->reads.n > 0)
    answer_front(r, status, 0);
  r->read_answered = r->read_round; /* whoever asks next, asks anew */
}

/* ---- leader ------------------------------------------------------------ */

static void wait_for_round(struct raft *r, uint64_t number, raft_id from)
{
  struct raft_read *read;

  if (raft_ring_reserve(&r->reads, 1)) {
    r->failed = true;
    return;
  }
  read = raft_ring_push(&r->reads);
  read->read = number;
  read->from = from;
  read->round = r->read_round + (MUTANT(21) ? 0 : 1);
  read->index =
      MUTANT(20) || r->commit > r->lead.start ? r->commit : r->lead.start;
  read->time = r->now;
}

/* The newest round that a quorum has confirmed. */
static uint64_t confirmed_round(const struct raft *r)
{
  uint64_t rounds[RAFT_MEMBERS_MAX];
  unsigned i;

  for (i = 0; i < r->configuration.n; i++)
    rounds[i] =
        raft_is_self(r, &r->peers[i]) ? r->read_round : r->peers[i].read_ack;
  return raft_configuration_quorum(&r->configuration, rounds);
}

static void release(struct raft *r, uint64_t round)
{
  const struct raft_read *read;

  while (r->reads.n > 0) {
    read = read_at(r, 0);
    if (read->round > round || read->index > r->commit) break;
    answer_front(r, 0, read->index);
  }
}

static void begin_round(struct raft *r)
{
  r->read_round++;
  r->lead.round_began[r->read_round % RAFT_ROUNDS] = r->now;
}

/* When the lease ends, if nothing happens before; 0: there is none. */
static uint64_t lease_end(const struct raft *r)
{
  const struct raft_leadership *lead = &r->lead;
  uint64_t round, lasts;

  if (r->role != RAFT_LEADER || !r->options.lease || lead->lease_void ||
      r->commit < lead->start)
    return 0;
  round = confirmed_round(r);
  if (round < lead->first_round || r->read_round - round >= RAFT_ROUNDS)
    return 0;
  lasts = (uint64_t)r->options.election_timeout_ms *
          (MUTANT(41) ? 130 : 100 - r->options.clock_drift_percent) / 100;
  return lead->round_began[round % RAFT_ROUNDS] + lasts;
}

uint64_t raft_lease_until(const struct raft *r)
{
  uint64_t end = lease_end(r);

  return r->now < end ? end : 0;
}

void raft_reads_advance(struct raft *r)
{
  uint64_t confirmed;

  if (r->reads.n == 0) return;
  confirmed = confirmed_round(r);
  release(r, confirmed);
  if (!any_waits(r) || confirmed < r->read_round) return;
  begin_round(r);
  r->out.heartbeat = true;
  /* A sole voter has confirmed it by that. */
  release(r, confirmed_round(r));
}

void raft_reads_join(struct raft *r)
{
  if (any_waits(r) || r->options.lease) begin_round(r);
}

void raft_on_read_request(struct raft *r, const struct raft_message *m)
{
  struct raft_peer *peer = raft_peer(r, m->from);

  if (r->role != RAFT_LEADER || !peer || m->term < r->term) {
    answer_peer(r, m->from, m->read, 0);
    return;
  }
  /* An asker repeats itself once a heartbeat; more is not to be kept. */
  if (peer->reads >= RAFT_PEER_READS_MAX) return;
  peer->reads++;
  wait_for_round(r, m->read, m->from);
}

/* ---- follower ---------------------------------------------------------- */

static void ask_leader(struct raft *r)
{
  struct raft_message message = {.type = RAFT_READ_REQUEST};

  r->read_round++;
  r->read_sent = r->now;
  message.read = r->read_round;
  raft_send(r, r->leader, &message, 0);
}

void raft_reads_ask(struct raft *r, uint64_t read, bool lease)
{
  if (lease && raft_lease_until(r) > 0) {
    raft_out_read(r, read, 0, r->commit);
    return;
  }
  if (r->role != RAFT_LEADER && r->leader == 0) {
    raft_out_read(r, read, RAFT_ENOTLEADER, 0);
    return;
  }
  wait_for_round(r, read, 0);
  if (r->role != RAFT_LEADER && r->read_answered == r->read_round)
    ask_leader(r);
}

void raft_on_read_response(struct raft *r, const struct raft_message *m)
{
  if (r->role == RAFT_LEADER || m->from != r->leader) return;
  if (m->read <= r->read_answered || m->read > r->read_round) return;
  r->read_answered = m->read;
  while (r->reads.n > 0 && read_at(r, 0)->round <= m->read)
    answer_front(r, m->read_index ? 0 : RAFT_ELOST, m->read_index);
  if (r->read_answered == r->read_round && any_waits(r)) ask_leader(r);
}

void raft_reads_tick(struct raft *r)
{
  assert(r->role != RAFT_LEADER);
  while (r->reads.n > 0 &&
         r->now - read_at(r, 0)->time >= r->options.election_timeout_ms)
    answer_front(r, RAFT_ELOST, 0);
  if (r->reads.n == 0) r->read_answered = r->read_round;
  if (r->reads.n > 0 && r->leader != 0 &&
      r->now - r->read_sent >= 2 * (uint64_t)r->options.heartbeat_ms)
    ask_leader(r);
}

uint64_t raft_reads_deadline(const struct raft *r)
{
  uint64_t again, failed;

  if (r->reads.n == 0) return UINT64_MAX;
  again = r->read_sent + 2 * (uint64_t)r->options.heartbeat_ms;
  failed = read_at(r, 0)->time + r->options.election_timeout_ms;
  return again < failed ? again : failed;
}
