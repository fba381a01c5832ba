/*
** election.c: roles, timers and votes.
**
**             timeout                 quorum of pre-votes        quorum
**   FOLLOWER ---------> PRECANDIDATE ---------------> CANDIDATE -------> LEADER
**       ^                    |  ^                         |                 |
**       |                    |  +-------- timeout --------+                 |
**       +---- leader or later term heard of, quorum or disk lost -----------+
**
** Pre-vote (dissertation, 9.6): a node asks whether it could win before it
** moves to a new term. A pre-vote changes nothing on either side, so it needs
** no write and a node cut off from the others comes back in the old term.
**
** Stickiness (dissertation, 4.2.3): requests for votes are refused, and a
** later term in them is not taken over, while a leader was heard from within
** the minimal election timeout. A removed or deaf node cannot disturb the
** others. There is one exception: when the connection to the leader was
** closed (a crashed process does that at once), the leader is forgotten, the
** node grants pre-votes from that moment, and asks for them itself after a
** small jitter. Two that draw almost the same split the votes; they draw again
** from twice the range, and so on, instead of waiting for their timeouts.
**
** Together they could lock a node out: it stands in a later term than the
** leader, so it takes no entries, and it gets no pre-votes, since the others
** hear the leader. Therefore a leader of an earlier term gets an answer
** (raft_refuse_leader()), learns of the later term and steps down.
**
** Leadership transfer (dissertation, 3.10) asks one node to campaign at once,
** without a pre-vote. Its requests say so, and stickiness does not apply: the
** leader itself wants to be replaced.
**
** Leases (read.c) rest on a promise: whoever answered a heartbeat votes for
** nobody else for the minimal election timeout. Stickiness is not enough for
** it, since a later term in any message makes a node forget its leader; so the
** time is kept apart (votes_from). A node that restarts has forgotten what it
** answered, so it waits as long before it votes.
**
** Priorities: a voter that should rather lead draws its timeout from the
** lower half of the range, one that should not from beyond it.
**
** A vote counts when it is durable, the candidate's own too. Votes of others
** arrive only after they were durable there.
*/
#include "internal.h"

#include <string.h>

/* ---- chance and time --------------------------------------------------- */

/* Splitmix64: a generator of its own, so that a seed gives one trace. */
uint64_t raft_random(struct raft *r)
{
  uint64_t z = (r->random += 0x9e3779b97f4a7c15u);

  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int raft_member_rank(const struct raft_member *member)
{
  if (member->priority == RAFT_PREFER) return 2;
  return member->priority == RAFT_AVOID ? 0 : 1;
}

/* A delay in [0, range), lower or higher as this node should rather lead. */
static uint64_t jitter(struct raft *r, uint64_t range)
{
  const struct raft_member *self =
      raft_configuration_find(&r->configuration, r->options.id);
  int rank = self ? raft_member_rank(self) : 1;

  if (rank == 0) return range + raft_random(r) % range;
  return raft_random(r) % (rank == 1 || range == 1 ? range : range / 2);
}

void raft_reset_election_timer(struct raft *r)
{
  uint64_t timeout = r->options.election_timeout_ms;

  r->election_deadline = r->now + timeout + jitter(r, timeout);
}

/* Whether the leader, as far as this node knows, is alive. */
static bool has_leader(const struct raft *r)
{
  if (MUTANT(30)) return false;
  if (r->role == RAFT_LEADER) return true;
  return r->leader != 0 &&
         r->now - r->leader_heard < r->options.election_timeout_ms;
}

/* Whether it names this node a voter, and means the very one. */
static bool counts_me(const struct raft *r,
                      const struct raft_configuration *configuration)
{
  const struct raft_member *self =
      raft_configuration_find(configuration, r->options.id);

  return self && raft_member_votes(self) &&
         self->incarnation == r->options.incarnation;
}

/*
** Voters campaign. So does a node whose own removal is in its log but not
** known to be committed (dissertation, 4.2.2): it may be the only one whose
** log the others would vote for. Its own vote does not count then.
*/
bool raft_may_campaign(const struct raft *r)
{
  if (r->disk_failed) return false;
  if (counts_me(r, &r->configuration)) return true;
  return r->configuration_index > r->commit && counts_me(r, &r->previous);
}

/* ---- roles ------------------------------------------------------------- */

static void forget_votes(struct raft *r)
{
  unsigned i;

  for (i = 0; i < r->configuration.n; i++)
    r->peers[i].granted = raft_is_self(r, &r->peers[i]);
}

/* From any role: a later term, a leader in this one, or stepping down. */
void raft_become_follower(struct raft *r, raft_term term, raft_id leader)
{
  bool led = r->role == RAFT_LEADER;

  assert(term >= r->term);
  assert(leader != r->options.id);
  assert(!led || term > r->term || leader == 0);
  if (led || term > r->term || leader != r->leader)
    raft_reads_fail(r, RAFT_ELOST);
  if (term > r->term || MUTANT(2)) {
    r->term = term;
    r->voted_for = 0;
    r->agreed = r->commit;
    if (!MUTANT(44)) raft_write_vote(r);
  }
  if (led) {
    while (r->batches.n > 0)
      raft_ring_pop_front(&r->batches);
    r->uncommitted = 0;
    r->agreed = r->commit;
    memset(&r->lead, 0, sizeof r->lead);
    raft_reset_election_timer(r);
  }
  r->role = RAFT_FOLLOWER;
  r->leader = leader;
}

void raft_become_precandidate(struct raft *r)
{
  assert(r->role != RAFT_LEADER);
  assert(raft_may_campaign(r));
  raft_reads_fail(r, RAFT_ELOST);
  r->role = RAFT_PRECANDIDATE;
  r->leader = 0;
  r->prevote_round++;
  forget_votes(r);
  raft_reset_election_timer(r);
}

void raft_become_candidate(struct raft *r, bool asked)
{
  assert(r->role == (asked ? RAFT_FOLLOWER : RAFT_PRECANDIDATE));
  assert(raft_may_campaign(r));
  if (asked) raft_reads_fail(r, RAFT_ELOST);
  r->role = RAFT_CANDIDATE;
  r->leader = 0;
  r->asked_to_campaign = asked;
  r->refused = false;
  r->term++;
  r->voted_for = r->options.id;
  r->agreed = r->commit;
  raft_write_vote(r);
  forget_votes(r);
  raft_reset_election_timer(r);
}

void raft_become_leader(struct raft *r)
{
  struct raft_entry noop = {.term = r->term, .type = RAFT_NOOP};
  raft_index next = r->log.last + 1;
  unsigned i;

  assert(r->role == RAFT_CANDIDATE);
  assert(r->voted_for == r->options.id);
  assert(r->batches.n == 0 && r->reads.n == 0);
  r->role = RAFT_LEADER;
  r->leader = r->options.id;
  memset(&r->lead, 0, sizeof r->lead);
  r->lead.since = r->lead.disk_looked = r->now;
  raft_may_hurry(r);
  if (r->handover_due < r->now + r->options.election_timeout_ms)
    r->handover_due = r->now + r->options.election_timeout_ms;
  r->lead.first_round = r->read_round + 1;
  for (i = 0; i < r->configuration.n; i++) {
    raft_peer_reset(r, &r->peers[i], next);
    r->peers[i].read_ack = r->read_round; /* no round is under way */
  }
  r->heartbeat_due = r->now + r->options.heartbeat_ms;
  /* Entries of earlier terms are committed by way of this one (figure 8). */
  r->lead.start = next;
  noop.index = next;
  if (!MUTANT(47)) raft_append(r, &noop);
}

/* ---- campaigns --------------------------------------------------------- */

static void ask_for_votes(struct raft *r, uint8_t type, raft_term term)
{
  struct raft_message message;
  unsigned i;

  for (i = 0; i < r->configuration.n; i++) {
    if (!raft_member_votes(&r->configuration.members[i])) continue;
    if (raft_is_self(r, &r->peers[i])) continue;
    message = (struct raft_message){
        .type = type,
        .term = term,
        .prev_index = r->log.last,
        .prev_term = raft_log_term(&r->log, r->log.last),
        .transfer = type == RAFT_VOTE_REQUEST && r->asked_to_campaign,
        .read = type == RAFT_PREVOTE_REQUEST ? r->prevote_round : 0,
    };
    raft_send(r, r->peers[i].id, &message, 0);
  }
}

static bool quorum_granted(const struct raft *r)
{
  uint64_t votes[RAFT_MEMBERS_MAX];
  unsigned i;

  for (i = 0; i < r->configuration.n; i++) {
    votes[i] = r->peers[i].granted;
    /* This node's own vote, once it is durable; pre-votes need not be. */
    if (raft_is_self(r, &r->peers[i]) && r->role == RAFT_CANDIDATE)
      votes[i] = MUTANT(31) || r->vote_seq <= r->durable_seq;
  }
  return raft_configuration_quorum(&r->configuration, votes) > 0;
}

void raft_count_votes(struct raft *r)
{
  if (r->role == RAFT_PRECANDIDATE && quorum_granted(r)) {
    raft_become_candidate(r, false);
    ask_for_votes(r, RAFT_VOTE_REQUEST, r->term);
  }
  if (r->role == RAFT_CANDIDATE && quorum_granted(r)) raft_become_leader(r);
}

void raft_election_tick(struct raft *r)
{
  if (r->now < r->election_deadline) return;
  if (!raft_may_campaign(r)) {
    /* It can only wait, but should not name a leader that is gone. */
    if (r->leader != 0) raft_become_follower(r, r->term, 0);
    raft_reset_election_timer(r);
    return;
  }
  raft_become_precandidate(r);
  ask_for_votes(r, RAFT_PREVOTE_REQUEST, r->term + 1);
  raft_count_votes(r);
}

/* Campaigns within so many ms, if not before. */
static void campaign_soon(struct raft *r, uint64_t range)
{
  uint64_t deadline = r->now + jitter(r, range);

  if (deadline < r->election_deadline) r->election_deadline = deadline;
}

/* There is, or was, a leader: whatever comes of its end, this node may hurry
   once, and draw its next try from a small range again. */
void raft_may_hurry(struct raft *r)
{
  r->may_hurry = true;
  r->retry_ms = (uint64_t)r->options.hint_jitter_ms * 2;
}

/*
** A voter has given its vote in this term to another: the votes may be split.
** If so, whoever is first to ask again wins; if they meet once more the range
** is twice as long, until it is no better than the timeout.
*/
static void refused(struct raft *r)
{
  if (r->refused || r->retry_ms == 0) return;
  if (r->retry_ms >= r->options.election_timeout_ms) return;
  r->refused = true;
  campaign_soon(r, r->retry_ms);
  r->retry_ms *= 2;
}

/*
** The closed-connection hint. The node forgets its leader, so that it grants
** pre-votes, and asks for them soon; if the leader is alive after all, the
** others refuse and its next heartbeat makes this node a follower again.
*/
void raft_peer_closed(struct raft *r, raft_id id)
{
  if (r->options.hint_jitter_ms == 0 || r->role != RAFT_FOLLOWER) return;
  if (id == 0 || id != r->leader) return;
  raft_become_follower(r, r->term, 0);
  campaign_soon(r, r->options.hint_jitter_ms);
}

/* The leader hands over to this node, which has all of its log. */
void raft_on_timeout_now(struct raft *r, const struct raft_message *m)
{
  if (r->role != RAFT_FOLLOWER || r->leader != m->from) return;
  if (!raft_may_campaign(r) || r->log.last < m->prev_index) return;
  raft_become_candidate(r, true);
  ask_for_votes(r, RAFT_VOTE_REQUEST, r->term);
  raft_count_votes(r);
}

/* ---- votes ------------------------------------------------------------- */

/* Section 5.4.1: the candidate's log holds all that this one holds. */
static bool is_up_to_date(const struct raft *r, const struct raft_message *m)
{
  raft_term term = raft_log_term(&r->log, r->log.last);

  if (!MUTANT(32) && m->prev_term != term) return m->prev_term > term;
  return m->prev_index >= r->log.last;
}

/* Whether the candidate gets a vote in m->term, were that the term now. */
static bool may_grant(const struct raft *r, const struct raft_message *m)
{
  if (r->disk_failed || m->term < r->term) return false;
  if (m->term == r->term && r->voted_for != m->from &&
      ((r->voted_for != 0 && !MUTANT(43)) || r->leader != 0))
    return false;
  return is_up_to_date(r, m);
}

void raft_on_vote_request(struct raft *r, const struct raft_message *m)
{
  bool real = m->type == RAFT_VOTE_REQUEST;
  /* A leader that asks for votes in a later term leads no more, and one that
     hands over wants to be replaced. */
  bool welcome = m->from == r->leader || m->transfer;
  bool sticky = !welcome && has_leader(r);
  bool promised = !welcome && r->now < r->votes_from;
  struct raft_message answer = {.type = real ? RAFT_VOTE_RESPONSE
                                             : RAFT_PREVOTE_RESPONSE,
                                .read = real ? 0 : m->read};

  if ((real || MUTANT(23)) && !sticky && m->term > r->term)
    raft_become_follower(r, m->term, 0);
  answer.granted = !sticky && !promised && may_grant(r, m);
  if (real && answer.granted && r->voted_for != m->from) {
    r->voted_for = m->from;
    raft_write_vote(r);
  }
  if (real && answer.granted) raft_reset_election_timer(r);
  /* Two miss the leader, and this one has the better log: it need not wait
     for the timeout that a refused pre-vote has left it with. But only once for
     each leader that is gone: the jitter may be shorter than a message takes,
     and two who always hurry in step would split the votes for ever. */
  if (!real && r->may_hurry && r->role != RAFT_LEADER && r->leader == 0 &&
      r->options.hint_jitter_ms > 0 && !is_up_to_date(r, m)) {
    r->may_hurry = false;
    campaign_soon(r, r->options.hint_jitter_ms);
  }
  raft_send(r, m->from, &answer, 0);
}

/* Whether it is of a later term, the caller has seen to. */
void raft_on_vote_response(struct raft *r, const struct raft_message *m)
{
  struct raft_peer *peer = raft_peer(r, m->from);
  uint8_t role =
      m->type == RAFT_VOTE_RESPONSE ? RAFT_CANDIDATE : RAFT_PRECANDIDATE;

  if (!peer || r->role != role) return;
  if (!m->granted) {
    if (role == RAFT_CANDIDATE) refused(r);
    return;
  }
  /* A pre-vote promises nothing for later rounds. */
  if (role == RAFT_PRECANDIDATE && m->read != r->prevote_round) return;
  peer->granted = true;
  raft_count_votes(r);
}
