/*
** internal.h: what the files of the core know of each other.
**
** raft.h is the interface of this folder; nothing outside it includes this
** file. Each section below is the interface to the code in one file.
*/
#ifndef RAFT_INTERNAL_H
#define RAFT_INTERNAL_H

#include "mutant.h"
#include "raft.h"

#include <assert.h>

/* "after" of what can never be durable, once the disk has failed. */
#define RAFT_NEVER UINT64_MAX

/* Forwarded reads of one peer that a leader keeps at a time. */
#define RAFT_PEER_READS_MAX 16

/* ---- interface to the code in ring.c ----------------------------------- */

/* A queue of items of one size, in a circle that grows by doubling. */
struct raft_ring {
  uint8_t *items;
  size_t size;     /* of one item */
  size_t capacity; /* items; 0 or a power of two */
  size_t head;     /* where item 0 is */
  size_t n;
};

void raft_ring_init(struct raft_ring *ring, size_t size);
void raft_ring_free(struct raft_ring *ring);
/* Makes room for `more` items, so that as many pushes cannot fail. */
int raft_ring_reserve(struct raft_ring *ring, size_t more);
void *raft_ring_push(struct raft_ring *ring);
void *raft_ring_at(const struct raft_ring *ring, size_t i);
void raft_ring_pop_front(struct raft_ring *ring);
void raft_ring_pop_back(struct raft_ring *ring);

/* Grows *items, if need be, to hold n of them; false: no memory. */
bool raft_grow(void **items, size_t *capacity, size_t n, size_t size);

/* ---- interface to the code in log.c ------------------------------------ */

struct raft_log {
  raft_index last;         /* the snapshot's when the log is empty */
  raft_index durable;      /* everything up to here is on this node's disk */
  struct raft_ring runs;   /* struct raft_term_run; [0] is the snapshot */
  struct raft_ring tail;   /* struct raft_entry, the newest ones */
  size_t tail_bytes;       /* what the tail costs */
  size_t tail_max;         /* above this, durable entries leave the tail */
  struct raft_ring writes; /* struct raft_write: handed out, not yet durable */
};

/* When `seq` is durable, so is the log up to `last`. */
struct raft_write {
  uint64_t seq;
  raft_index last;
};

int raft_log_init(struct raft_log *log, const struct raft_recovered *recovered,
                  size_t tail_max);
void raft_log_free(struct raft_log *log);
raft_index raft_log_snapshot(const struct raft_log *log);
/* Term of the entry at index, or of the snapshot; 0: not there. */
raft_term raft_log_term(const struct raft_log *log, raft_index index);
const struct raft_entry *raft_log_entry(const struct raft_log *log,
                                        raft_index index);
/* The greatest index, at most `index`, whose term is at most `term`. */
raft_index raft_log_conflict(const struct raft_log *log, raft_index index,
                             raft_term term);
int raft_log_append(struct raft_log *log, const struct raft_entry *entry);
/* Drops the entries from `from` on. */
void raft_log_truncate(struct raft_log *log, raft_index from);
/* The log now begins after index: what follows it is kept, or dropped. */
void raft_log_compact(struct raft_log *log, raft_index index, raft_term term);
void raft_log_reset(struct raft_log *log, raft_index index, raft_term term);
/* A write was handed out, or became durable. */
void raft_log_writing(struct raft_log *log, uint64_t seq);
void raft_log_written(struct raft_log *log, uint64_t seq);
/* The sequence number with which index becomes durable; 0: it is. */
uint64_t raft_log_seq(const struct raft_log *log, raft_index index);
/* Lets durable entries go, oldest first, until the tail is in its bounds. */
void raft_log_evict(struct raft_log *log);
void raft_log_check(const struct raft_log *log);

/* ---- interface to the code in configuration.c -------------------------- */

bool raft_configuration_valid(const struct raft_configuration *configuration);
/* Voters, in a joint configuration the new ones. */
unsigned raft_configuration_voters(
    const struct raft_configuration *configuration);
/*
** Every question about quorums is this one: the greatest v such that the
** values of a quorum of the voters are at least v; in a joint configuration,
** of a quorum of the new voters and of one of the old. values[i] belongs to
** members[i]; without voters the answer is 0.
*/
uint64_t raft_configuration_quorum(
    const struct raft_configuration *configuration, const uint64_t *values);

/* ---- interface to the code in codec.c ---------------------------------- */

/* Whether the fields of a message are in range and agree with each other. */
bool raft_message_valid(const struct raft_message *message);

/* ---- the node ---------------------------------------------------------- */

/* An append that was sent and not yet answered. */
struct raft_flight {
  raft_index last;
  size_t bytes;
};

/* What this node knows of a member (of itself too, where that is useful). */
struct raft_peer {
  raft_id id;
  uint64_t incarnation;
  bool granted;          /* candidates: it gave its (pre-)vote */
  uint8_t state;         /* enum raft_progress_state */
  bool paused;           /* probing: a probe is on its way */
  bool loading;          /* `loads` has asked for entries */
  bool load_failed;      /* not asked for again before its next heartbeat */
  uint8_t loads_failed;  /* so many times in a row */
  uint8_t denials;       /* in a row, of what it had acknowledged */
  unsigned set_backs;    /* in this term: is_set_back() */
  bool reported_once;    /* `reported` has a meaning */
  bool caught_up;        /* the last round was a short one */
  raft_index match;      /* known to be durable there and equal */
  raft_index next;       /* the next entry to send */
  raft_index unreadable; /* a snapshot must reach it; 0: none */
  raft_index reported;   /* match in its last heartbeat response */
  raft_index commit;     /* newest commit index that an append told it */
  raft_index round_end;  /* catching up: the round's target; 0: no round */
  uint64_t round_start;  /* ... and when it began */
  uint64_t heard;        /* time of its last message in this term, or when
                            this node began to listen for one */
  uint64_t last_contact; /* time of its last message; 0: never */
  uint64_t read_ack;     /* newest read round that it has confirmed */
  unsigned reads;        /* reads forwarded by it and not yet answered */
  unsigned slot;         /* its part of raft.flights */
  unsigned flight_head, n_flights;
  size_t flight_bytes;
};

/* A read that waits: for a round of heartbeats, or for the leader. */
struct raft_read {
  uint64_t read;    /* the asker's number */
  raft_id from;     /* 0: asked on this node */
  uint64_t round;   /* answered by this round or a later one */
  raft_index index; /* leader: what the answer will be */
  uint64_t time;    /* when it was asked */
};

/* A batch of proposals that counts against uncommitted_bytes. */
struct raft_batch {
  raft_index last;
  size_t bytes;
};

/* Rounds of heartbeats whose beginning is remembered, for the lease. */
#define RAFT_ROUNDS 32

/* What only a leader has; all zeros in every other role. */
struct raft_leadership {
  raft_index start;      /* its NOOP */
  uint64_t since;        /* when it was elected */
  raft_id transfer_to;   /* 0: it hands over to nobody */
  bool transfer_told;    /* TIMEOUT_NOW was sent at this heartbeat */
  uint64_t transfer_end; /* when it gives that up */
  raft_index disk_seen;  /* durable when the disk was looked at last, */
  uint64_t disk_looked;  /* which was then; */
  uint64_t disk_still;   /* ms of ticks that it has done nothing */
  bool lease_void;       /* no lease reads in the rest of this term */
  uint64_t first_round;  /* rounds from here on are of this term */
  uint64_t round_began[RAFT_ROUNDS]; /* [round % RAFT_ROUNDS] */
};

/* The effects of the current step, as they are gathered. */
struct raft_output {
  uint64_t seq;     /* of this step's write; 0: none so far */
  bool vote;        /* term or vote changed */
  raft_index first; /* first entry appended; 0: none */
  bool heartbeat;   /* a round of heartbeats is due */
  bool configuration_changed;
  raft_index proposed_first, proposed_last;
  struct raft_send *sends;
  size_t *send_entries; /* where in `entries` those of sends[i] begin */
  size_t n_sends, sends_capacity, send_entries_capacity;
  struct raft_entry *entries; /* with references */
  size_t n_entries, entries_capacity;
  struct raft_read_result *reads;
  size_t n_reads, reads_capacity;
  unsigned n_loads, n_snapshots;
  struct raft_load loads[RAFT_MEMBERS_MAX];
  raft_id snapshots[RAFT_MEMBERS_MAX];
};

struct raft {
  struct raft_options options;
  uint64_t random; /* state of the generator of jitter */
  uint64_t now;    /* ms, never goes back */
  bool failed;     /* out of memory: nothing happens any more */
  bool disk_failed;

  uint8_t role; /* enum raft_role */
  raft_term term;
  raft_id voted_for;
  raft_id leader; /* 0: unknown */
  struct raft_log log;
  raft_index commit;
  raft_index agreed; /* known to be equal to the log of this term's leader,
                            beside what is committed */
  struct raft_leadership lead;

  uint64_t seq;         /* newest write that was handed out */
  uint64_t durable_seq; /* newest durable one */
  uint64_t vote_seq;    /* newest with a term or a vote in it */

  uint64_t election_deadline;
  uint64_t votes_from;    /* with leases: no votes before this time */
  uint64_t prevote_round; /* the newest one that this node asked for */
  bool may_hurry;         /* to campaign; see raft_may_hurry() */
  bool refused;           /* candidate: a vote, and it has drawn again */
  uint64_t retry_ms;      /* the range of which it draws then */
  bool asked_to_campaign; /* candidate: by its leader, with TIMEOUT_NOW */
  uint64_t leader_heard;  /* when the leader was last heard from */
  uint64_t heartbeat_due;
  uint64_t handover_due; /* not before this to one who should rather lead;
                            outlives the leadership that an attempt costs */

  struct raft_configuration configuration, previous;
  raft_index configuration_index, previous_index;
  struct raft_peer peers[RAFT_MEMBERS_MAX]; /* of configuration.members */
  struct raft_flight *flights;

  struct raft_ring reads; /* struct raft_read, in order of arrival */
  uint64_t read_round;    /* newest round (leader) or request (follower) */
  uint64_t read_answered; /* follower: newest request with an answer */
  uint64_t read_sent;     /* follower: when that request was sent */

  struct raft_ring batches; /* struct raft_batch */
  size_t uncommitted;       /* bytes in them */

  struct raft_output out;

  /* What raft_check() saw at the end of the last step. */
  struct {
    raft_term term;
    raft_id voted_for;
    raft_index commit, last;
    uint8_t role;
  } seen;
};

/* ---- interface to the code in raft.c ----------------------------------- */

/* The member's peer, or NULL. */
struct raft_peer *raft_peer(struct raft *r, raft_id id);
bool raft_is_self(const struct raft *r, const struct raft_peer *peer);
/* Sequence number of the write that this step ends with. */
uint64_t raft_write_seq(struct raft *r);
/* Term or vote changed: they must be written before anything is said. */
void raft_write_vote(struct raft *r);
/*
** Adds a message to the effects, with sender and term filled in. It waits for
** `after`, and for the term and the vote in any case. A NULL `entries` of an
** append means that the entries were put in place by raft_out_entry().
*/
void raft_send(struct raft *r, raft_id to, struct raft_message *message,
               uint64_t after);
/* Adds an entry, with a reference, to those of the message being made. */
void raft_out_entry(struct raft *r, const struct raft_entry *entry);
void raft_out_read(struct raft *r, uint64_t read, int status, raft_index index);
/* Appends an entry to this node's log; it is written by this step. */
int raft_append(struct raft *r, const struct raft_entry *entry);
void raft_check(const struct raft *r);

/* ---- interface to the code in election.c ------------------------------- */

uint64_t raft_random(struct raft *r);
void raft_reset_election_timer(struct raft *r);
bool raft_may_campaign(const struct raft *r);
/* A leader is heard, or this node leads or has just started. */
void raft_may_hurry(struct raft *r);
/* The four role changes; each asserts that it is a legal one. */
void raft_become_follower(struct raft *r, raft_term term, raft_id leader);
void raft_become_precandidate(struct raft *r);
void raft_become_candidate(struct raft *r, bool asked);
void raft_become_leader(struct raft *r);
void raft_election_tick(struct raft *r);
/* A candidate's own vote became durable, or the quorum changed. */
void raft_count_votes(struct raft *r);
void raft_on_vote_request(struct raft *r, const struct raft_message *m);
void raft_on_vote_response(struct raft *r, const struct raft_message *m);
void raft_on_timeout_now(struct raft *r, const struct raft_message *m);
void raft_peer_closed(struct raft *r, raft_id id);

/* ---- interface to the code in follower.c ------------------------------- */

int raft_on_append_request(struct raft *r, const struct raft_message *m);
int raft_on_heartbeat_request(struct raft *r, const struct raft_message *m);
/* Answers a leader of an earlier term, so that it steps down. */
void raft_refuse_leader(struct raft *r, const struct raft_message *m);
int raft_snapshot_installed(struct raft *r, raft_index index, raft_term term,
                            const struct raft_configuration *configuration);

/* ---- interface to the code in leader.c --------------------------------- */

void raft_peer_reset(struct raft *r, struct raft_peer *peer, raft_index next);
int raft_leader_propose(struct raft *r, raft_term term, unsigned n,
                        const struct raft_proposal *items);
int raft_leader_transfer(struct raft *r, raft_id to);
void raft_leader_tick(struct raft *r);
uint64_t raft_leader_deadline(const struct raft *r);
/* Commit, reads and messages: what a leader ends every step with. */
void raft_leader_finish(struct raft *r);
int raft_on_append_response(struct raft *r, const struct raft_message *m);
int raft_on_heartbeat_response(struct raft *r, const struct raft_message *m);
int raft_loaded(struct raft *r, raft_id peer, raft_index first, unsigned n,
                const struct raft_entry *entries);
void raft_snapshot_sent(struct raft *r, raft_id peer, raft_index index,
                        bool ok);
void raft_peer_connection(struct raft *r, raft_id id, bool up);
bool raft_peer_caught_up(const struct raft *r, const struct raft_peer *peer);

/* ---- interface to the code in read.c ----------------------------------- */

void raft_reads_ask(struct raft *r, uint64_t read, bool lease);
void raft_on_read_request(struct raft *r, const struct raft_message *m);
void raft_on_read_response(struct raft *r, const struct raft_message *m);
/* Leader: starts rounds, answers what a round has confirmed. */
void raft_reads_advance(struct raft *r);
/* Leader: reads that wait for a round go with a heartbeat that is due; with
   leases every heartbeat begins one. */
void raft_reads_join(struct raft *r);
/* Follower: asks again, fails what has waited for too long. */
void raft_reads_tick(struct raft *r);
uint64_t raft_reads_deadline(const struct raft *r);
void raft_reads_fail(struct raft *r, int status);

/* ---- interface to the code in membership.c ----------------------------- */

int raft_change(struct raft *r, unsigned n, const struct raft_change *items);
/* Leader: a joint configuration that is committed is left. */
void raft_membership_leave_joint(struct raft *r);
/* How much a member should lead: the greater the rather. */
int raft_member_rank(const struct raft_member *member);
/* The configuration at index comes into force. */
void raft_membership_use(struct raft *r,
                         const struct raft_configuration *configuration,
                         raft_index index);
/* Whether the log may be cut there; only a faulty leader asks for more than
   one configuration back. */
bool raft_membership_may_truncate(const struct raft *r, raft_index from);
/* The log was cut: returns to the configuration before. */
void raft_membership_truncate(struct raft *r, raft_index from);
/* A snapshot took the place of the whole log. */
void raft_membership_reset(struct raft *r,
                           const struct raft_configuration *configuration,
                           raft_index index);
/* Makes raft.peers follow raft.configuration. */
void raft_membership_peers(struct raft *r);

#endif
