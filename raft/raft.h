/*
** raft.h: the consensus core of quorate.
**
** A pure implementation of Raft (Ongaro and Ousterhout, "In Search of an
** Understandable Consensus Algorithm", and Ongaro's dissertation): one step
** function, events in, effects out. It does no I/O, reads no clock, starts no
** thread and has no randomness but the seed that it is given, so the same
** events give the same effects.
**
** The three calls that every student of Raft knows:
**
**     raft_new()      make a node
**     raft_propose()  start agreement on an entry: index, term, is-leader
**     raft_state()    term, is-leader
**
** How a host drives it:
**
**   1. Something happens: time passes, a message arrives, a write became
**      durable. The host calls raft_step() with the event.
**   2. The host carries out the effects, in this order:
**      a. hands `persist`, if its seq is not 0, to the log (raft/store). When
**         it is durable the host steps RAFT_EVENT_PERSISTED with that seq.
**         Sequence numbers become durable in order.
**      b. sends each of `sends` whose `after` is at most the newest durable
**         sequence number at once, and keeps the others until it is. The
**         order of messages to one peer need not be kept, nor need all of
**         them arrive.
**      c. looks at the rest: commit index, reads, loads, snapshots, role.
**
** Memory: the core keeps a tail of the log (RAFT tail_bytes, never an entry
** that is not yet durable) and a run list of terms for all of it. Older
** entries are asked for with an effect (`loads`) and answered with an event.
**
** Threads: a struct raft belongs to one thread at a time. Bodies of entries
** are reference-counted and immutable, and may be shared between threads.
**
** Errors: functions that return int give 0 or a negative RAFT_E... code; what
** a peer sent is refused, never asserted on.
*/
#ifndef RAFT_H
#define RAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t raft_index; /* 1 is the first entry; 0 is "none" */
typedef uint64_t raft_term;  /* 0 before the first election */
typedef uint64_t raft_id;    /* node id, unique in a cluster, never 0 */

/* ---- errors ------------------------------------------------------------ */

#define RAFT_ERRNO_MAP(XX)                                                     \
  XX(-1, RAFT_ENOMEM, "out of memory")                                         \
  XX(-2, RAFT_ENOTLEADER, "this node is not the leader")                       \
  XX(-3, RAFT_EBUSY, "too much is waiting to be agreed on")                    \
  XX(-4, RAFT_EMALFORMED, "malformed message")                                 \
  XX(-5, RAFT_ECHANGING, "another membership change is in progress")           \
  XX(-6, RAFT_ENOTFOUND, "no such member")                                     \
  XX(-7, RAFT_EEXIST, "already a member")                                      \
  XX(-8, RAFT_ENOTREADY, "the member has not caught up")                       \
  XX(-9, RAFT_EINVAL, "invalid argument")                                      \
  XX(-10, RAFT_ELOST, "leadership was lost before an answer was known")        \
  XX(-11, RAFT_EDISK, "this node's disk has failed")                           \
  XX(-12, RAFT_ETRANSFER, "leadership is being handed over")

enum raft_errno {
#define XX(code, name, text) name = code,
  RAFT_ERRNO_MAP(XX)
#undef XX
};

/* The text of an error code; never NULL. */
const char *raft_strerror(int rc);

/* ---- entries ----------------------------------------------------------- */

enum raft_entry_type {
  RAFT_NOOP = 1,          /* first entry of every term */
  RAFT_CONFIGURATION = 2, /* an encoded struct raft_configuration */
  RAFT_PAGES = 3,         /* a part of a transaction, not its last */
  RAFT_COMMIT = 4,        /* the last (or only) part of a transaction */
  RAFT_SETTING = 5        /* a cluster setting: invitation, revocation, ... */
};

/* Largest body of an entry, in bytes: a page of 64 KiB more than 1 MiB. */
#define RAFT_BODY_MAX (1024u * 1024u + 128u * 1024u)

/* Largest index, term or counter that is taken from a peer or a file: far
   beyond what any cluster reaches, and small enough that sums of two never
   wrap. */
#define RAFT_NUMBER_MAX (UINT64_MAX / 4)

/*
** The bytes of an entry: immutable once checksummed, shared by reference
** between the core, the log and the network. `checksum` is XXH3_64bits of
** data[0..len); it is computed once, by raft_body_seal(), where the entry is
** born, and verified whenever the bytes came from outside.
*/
struct raft_body {
  _Atomic uint32_t refs;
  uint32_t len;
  uint64_t checksum;
  uint8_t data[];
};

/* A body of len bytes, contents undefined, one reference. NULL: no memory. */
struct raft_body *raft_body_new(size_t len);
struct raft_body *raft_body_ref(struct raft_body *body); /* NULL is allowed */
void raft_body_unref(struct raft_body *body);            /* NULL is allowed */
void raft_body_seal(struct raft_body *body);             /* sets checksum */
bool raft_body_intact(const struct raft_body *body);     /* checks it */

struct raft_entry {
  raft_index index;
  raft_term term;
  uint8_t type;           /* enum raft_entry_type */
  struct raft_body *body; /* NULL when empty (NOOP) */
};

/* ---- configuration ----------------------------------------------------- */

enum raft_member_role {
  RAFT_VOTER = 1,
  RAFT_LEARNER = 2, /* receives the log, does not count in any quorum */
  RAFT_LEAVING = 3  /* joint configurations only: not a member of the new one */
};

/* How much a voter should lead. A leader hands over to a voter that should
   rather lead than itself, once that one has caught up. */
enum raft_priority { RAFT_NORMAL = 0, RAFT_PREFER = 1, RAFT_AVOID = 2 };

#define RAFT_MEMBERS_MAX 32
#define RAFT_NAME_MAX 64     /* bytes with the closing zero */
#define RAFT_ADDRESS_MAX 256 /* "host:port", with the closing zero */

/* Name and address mean nothing to the core; they travel with membership. */
struct raft_member {
  raft_id id;
  uint64_t incarnation; /* a wiped disk under an old id is another node */
  uint8_t role;         /* enum raft_member_role */
  uint8_t priority;     /* enum raft_priority */
  bool outgoing;        /* joint configurations: a voter of the old one */
  char name[RAFT_NAME_MAX];
  char address[RAFT_ADDRESS_MAX];
};

/*
** A joint configuration (paper, section 6) is two in one: its new voters are
** those with the role RAFT_VOTER, its old ones those marked as outgoing.
** Whatever needs a quorum needs one of each.
*/
struct raft_configuration {
  unsigned n;
  struct raft_member members[RAFT_MEMBERS_MAX];
};

/* The member with this id, or NULL. */
const struct raft_member *raft_configuration_find(
    const struct raft_configuration *configuration, raft_id id);

/* Whether it is a joint one. */
bool raft_configuration_joint(const struct raft_configuration *configuration);
/* Whether the member has a vote, in the new configuration or in the old. */
bool raft_member_votes(const struct raft_member *member);

/* ---- messages ---------------------------------------------------------- */

enum raft_message_type {
  RAFT_PREVOTE_REQUEST = 1, /* dissertation section 9.6 */
  RAFT_PREVOTE_RESPONSE = 2,
  RAFT_VOTE_REQUEST = 3,
  RAFT_VOTE_RESPONSE = 4,
  RAFT_APPEND_REQUEST = 5,
  RAFT_APPEND_RESPONSE = 6,
  RAFT_HEARTBEAT_REQUEST = 7, /* carries commit and the read counter */
  RAFT_HEARTBEAT_RESPONSE = 8,
  RAFT_READ_REQUEST = 9, /* a follower asks for a read index */
  RAFT_READ_RESPONSE = 10,
  RAFT_TIMEOUT_NOW = 11 /* the leader asks for an election: dissertation 3.10 */
};

#define RAFT_MESSAGE_ENTRIES_MAX 512

/*
** One message. Every message carries term, from, to; which of the other
** fields have a meaning is said beside them. `entries` is owned by whoever
** owns the message: raft_message_clear() drops its references.
*/
struct raft_message {
  uint8_t type; /* enum raft_message_type */
  raft_id from, to;
  uint64_t incarnation; /* of the sender */
  raft_term term;       /* of the sender; in a pre-vote request the term that
                           it would campaign in */
  /* vote requests: last entry of the candidate; append requests: the entry
     before the first; append responses that reject: the request's prev_index
     (so that a reordered rejection is recognised) */
  raft_index prev_index;
  raft_term prev_term;
  bool transfer;         /* vote requests: the leader has asked for this
                            election, so a living leader is no objection */
  raft_index commit;     /* append and heartbeat requests: the leader's commit
                        index, in heartbeats never above the peer's match */
  bool granted;          /* vote and pre-vote responses; append responses: prev
                        matched */
  raft_index match;      /* append and heartbeat responses: the highest index
                        known to match and durable on the sender */
  raft_index hint_index; /* rejecting append response: where the leader may */
  raft_term hint_term;   /* try next, and the sender's term there */
  uint64_t read;         /* heartbeat: the leader's read counter; read request
                            and response: the asker's own number; pre-vote
                            request and response: the asker's round */
  raft_index read_index; /* read response: 0 when refused */
  uint32_t n_entries;    /* append request */
  struct raft_entry *entries;
};

void raft_message_clear(struct raft_message *message);

/*
** The codec. All integers are little-endian; the layout is described at the
** head of codec.c. Encoding splits a message in its head (fixed fields and
** entry headers) and the bodies, which are sent from where they are.
**
** raft_message_head_size() bytes are written by raft_message_encode_head();
** then follow the bodies of the entries in order, without padding.
*/
size_t raft_message_head_size(const struct raft_message *message);
size_t raft_message_size(const struct raft_message *message); /* with bodies */
void raft_message_encode_head(const struct raft_message *message, uint8_t *out);
/* Parses a whole message. Everything is checked: lengths, types, indexes in
   sequence, the checksum of each body. Returns RAFT_EMALFORMED and leaves
   *message cleared when anything is wrong. */
int raft_message_decode(const uint8_t *data, size_t len,
                        struct raft_message *message);

/* A configuration as the body of an entry, sealed; NULL: no memory. */
struct raft_body *raft_configuration_encode(
    const struct raft_configuration *configuration);
/* Checks everything: count, ids not 0 and distinct, roles, terminated
   strings. RAFT_EMALFORMED when anything is wrong. */
int raft_configuration_decode(const uint8_t *data, size_t len,
                              struct raft_configuration *configuration);

/* ---- a node ------------------------------------------------------------ */

struct raft_options {
  raft_id id;
  uint64_t incarnation;
  uint64_t seed;                /* for the jitter of election timeouts */
  unsigned heartbeat_ms;        /* 50 */
  unsigned election_timeout_ms; /* 500: drawn from [t, 2t) */
  unsigned hint_jitter_ms;      /* 40: the closed-connection hint's pre-vote
                                   starts within [0, this); 0 turns it off */
  size_t tail_bytes;            /* entries kept in memory: 8 MiB */
  size_t uncommitted_bytes;     /* bound on proposals that are not committed,
                                   or not durable here: 16 MiB */
  size_t message_bytes;         /* entries in one append: 1 MiB */
  unsigned inflight_messages;   /* window of a follower: 64 */
  size_t inflight_bytes;        /* window of a follower: 8 MiB */
  /* Lease reads. Either all nodes of a cluster have this on, and the same
     election_timeout_ms, or none may read by lease: votes are given later and
     the closed-connection hint must be off (hint_jitter_ms 0). Clocks that run
     apart by more than the bound, or that stand still while the node is
     suspended, break the promise. */
  bool lease;                   /* false */
  unsigned clock_drift_percent; /* 20: between the clocks of any two nodes */
};
void raft_options_defaults(struct raft_options *options);

/*
** What the disk holds, from raft/store and the checkpoint: given once, to
** raft_new(). The log starts after the snapshot: its entries are
** snapshot_index + 1 to last_index. `terms` lists, in order, the first index
** of each run of entries with one term. `configuration` is the newest one in
** force (in snapshot or log), `configuration_index` where it stands, and
** `previous` the one before it, to return to if it is truncated.
*/
struct raft_term_run {
  raft_index first;
  raft_term term;
};
struct raft_recovered {
  raft_term term;
  raft_id voted_for; /* 0: nobody in this term */
  raft_index snapshot_index;
  raft_term snapshot_term;
  raft_index last_index; /* snapshot_index when the log is empty */
  raft_index commit;     /* known committed: at least snapshot_index */
  size_t n_terms;
  const struct raft_term_run *terms;
  struct raft_configuration configuration;
  raft_index configuration_index;
  struct raft_configuration previous;
  raft_index previous_index;
};

enum raft_role {
  RAFT_FOLLOWER = 1,
  RAFT_PRECANDIDATE,
  RAFT_CANDIDATE,
  RAFT_LEADER
};

enum raft_event_type {
  RAFT_EVENT_TICK = 1,      /* time passed; call at least every 10 ms */
  RAFT_EVENT_MESSAGE,       /* message: still owned by the caller, who clears
                              it; the core takes its own references */
  RAFT_EVENT_PERSISTED,     /* seq */
  RAFT_EVENT_DISK_FAILED,   /* a write failed: step down, never acknowledge
                              anything again, do not vote */
  RAFT_EVENT_PROPOSE,       /* propose: see raft_propose() */
  RAFT_EVENT_READ,          /* read: a number of the caller's; answered by an
                              effect in `reads` */
  RAFT_EVENT_CHANGE,        /* change: see enum raft_change_type */
  RAFT_EVENT_TRANSFER,      /* transfer_to: hand leadership over to this voter,
                               or to the best one (0). See raft_transferring()
                               */
  RAFT_EVENT_CLOCK_DOUBT,   /* the clock was set, or stood still: a leader
                               reads by no lease for the rest of this term, a
                               voter waits anew before it votes. To be told
                               before any event with the new time */
  RAFT_EVENT_PEER_UP,       /* peer: connection to or from it is up */
  RAFT_EVENT_PEER_DOWN,     /* peer: its connection was closed (not: timed
                              out); the closed-connection hint */
  RAFT_EVENT_LOADED,        /* loaded: answer to `loads`; the core takes its
                              own references */
  RAFT_EVENT_SNAPSHOT_SENT, /* peer, snapshot_index, ok */
  RAFT_EVENT_SNAPSHOT_INSTALLED /* this node took a snapshot: the log now
                                    begins after it */
};

/*
** Changes of membership. All that are asked for in one event come into force
** together. If they change who has a vote, the new configuration is a joint
** one, and when that is committed the leader leaves it on its own: the change
** is complete when the configuration is no longer joint and is committed.
*/
enum raft_change_type {
  RAFT_ADD_LEARNER = 1, /* member */
  RAFT_PROMOTE = 2,     /* id: only a caught-up learner */
  RAFT_REMOVE = 3,      /* id */
  RAFT_UPDATE = 4,      /* member: new name, address or priority; same id,
                           incarnation and role */
  RAFT_DEMOTE = 5       /* id: a voter becomes a learner */
};

struct raft_change {
  uint8_t type; /* enum raft_change_type */
  raft_id id;
  const struct raft_member *member;
};

struct raft_proposal {
  uint8_t type;           /* enum raft_entry_type */
  struct raft_body *body; /* the core takes its own reference */
};

struct raft_event {
  uint8_t type;
  uint64_t now; /* ms, monotonic, on every event */
  union {
    const struct raft_message *message;
    uint64_t seq;
    struct {
      raft_term term; /* must be the current term; 0: any */
      unsigned n;
      const struct raft_proposal *items; /* all are taken, or none */
    } propose;
    struct {
      uint64_t number;
      bool lease; /* a lease will do; without one it is as any other read */
    } read;
    struct {
      unsigned n;
      const struct raft_change *items; /* all are made, or none */
    } change;
    raft_id transfer_to;
    raft_id peer;
    struct {
      raft_id peer;
      raft_index first; /* as asked for */
      unsigned n;       /* 0: could not be read */
      const struct raft_entry *entries;
    } loaded;
    struct {
      raft_id peer;
      raft_index index;
      bool ok;
    } snapshot_sent;
    struct {
      raft_index index;
      raft_term term;
      const struct raft_configuration *configuration;
    } snapshot_installed;
  } u;
};

struct raft_persist {
  uint64_t seq; /* 0: nothing to write */
  bool vote;    /* term and voted_for changed: write them first */
  raft_term term;
  raft_id voted_for;
  unsigned n_entries; /* an index at or below the log's last one replaces
                         everything from there on */
  const struct raft_entry *entries;
};

struct raft_send {
  uint64_t after; /* durable sequence number that it must wait for; 0: none */
  struct raft_message message;
};

struct raft_read_result {
  uint64_t read;
  int status;       /* 0, or RAFT_ELOST, RAFT_ENOTLEADER: no leader known */
  raft_index index; /* apply up to here, then read */
};

struct raft_load {
  raft_id peer;
  raft_index first;
  size_t max_bytes;
};

/*
** Effects of one step; everything in it belongs to the core and is valid
** until the next step. The host takes references to what it keeps.
*/
struct raft_effects {
  struct raft_persist persist;
  unsigned n_sends;
  const struct raft_send *sends;
  raft_index commit; /* the commit index, whether it moved or not */
  unsigned n_reads;
  const struct raft_read_result *reads;
  unsigned n_loads;
  const struct raft_load *loads;
  unsigned n_snapshots; /* peers that need a snapshot to be sent */
  const raft_id *snapshots;
  bool role_changed; /* role, leader or term */
  bool configuration_changed;
  raft_index proposed_first; /* PROPOSE and CHANGE: index of the first and */
  raft_index proposed_last;  /* the last entry that were appended */
};

struct raft; /* opaque */

/* Makes a node. Copies what it needs. On error *out is NULL. */
int raft_new(const struct raft_options *options,
             const struct raft_recovered *recovered, uint64_t now,
             struct raft **out);
void raft_free(struct raft *raft);

/*
** One event in, its effects out. Returns 0, or for PROPOSE, CHANGE and
** TRANSFER why it was refused (nothing happened then), or RAFT_ENOMEM (the
** node must be stopped). A malformed message is dropped with RAFT_EMALFORMED.
** *effects is always filled.
*/
int raft_step(struct raft *raft, const struct raft_event *event,
              struct raft_effects *effects);

/*
** Starts agreement on an entry. Returns 0 and its index and term, or
** RAFT_ENOTLEADER, RAFT_EBUSY (uncommitted_bytes reached), RAFT_EDISK. The
** effects must be carried out as for raft_step().
*/
int raft_propose(struct raft *raft, uint64_t now, uint8_t type,
                 struct raft_body *body, raft_index *index, raft_term *term,
                 struct raft_effects *effects);

/* Term, and whether this node believes to be the leader. */
void raft_state(const struct raft *raft, raft_term *term, bool *is_leader);

enum raft_role raft_role(const struct raft *raft);
raft_id raft_leader(const struct raft *raft); /* 0: unknown */
raft_index raft_commit(const struct raft *raft);
raft_index raft_last(const struct raft *raft);
raft_index raft_durable(const struct raft *raft);
/* The term of the entry at index (also the snapshot's); 0: not in the log. */
raft_term raft_term_at(const struct raft *raft, raft_index index);
/* The entry, while it is in the tail; NULL: read it from the log's files. */
const struct raft_entry *raft_entry_at(const struct raft *raft,
                                       raft_index index);
const struct raft_configuration *raft_configuration(const struct raft *raft,
                                                    raft_index *index);
/*
** Leader: to whom it hands over, or 0. While it does, proposals and changes
** are refused with RAFT_ETRANSFER. It ends with this node no longer leading,
** or, after an election timeout, with it leading as before.
*/
raft_id raft_transferring(const struct raft *raft);
/* Leader: its own disk has done nothing for four election timeouts, without an
   error, while the others committed: it hands over to any of them. */
bool raft_disk_stands_still(const struct raft *raft);
/*
** Leader: until when, exclusively and on the clock of the events, a read by
** lease is answered at once if nothing happens meanwhile; 0: there is no lease.
** Other threads may then answer such reads with the commit index themselves, if
** the host publishes both after each step, before it sends a message of that
** step, and they take both before they look at a clock, which must go on while
** the machine sleeps.
*/
uint64_t raft_lease_until(const struct raft *raft);
/* ms until the next deadline of this node (heartbeat, election). */
uint64_t raft_next_deadline(const struct raft *raft);

enum raft_progress_state { RAFT_PROBE = 1, RAFT_REPLICATE, RAFT_SNAPSHOT };
struct raft_progress {
  raft_id id;
  uint8_t state; /* enum raft_progress_state */
  raft_index match, next;
  uint64_t last_contact; /* time of the last message from it; 0: never */
  bool caught_up;        /* a learner that may be promoted */
  unsigned set_backs;    /* so often in this term it had lost what it had
                            acknowledged */
};
/* Leader only: what is known of a follower. False: not a follower. */
bool raft_progress(const struct raft *raft, raft_id id,
                   struct raft_progress *progress);

/* ---- an incoming snapshot ---------------------------------------------- */

/*
** The bytes of a snapshot are the host's business: it sends them in chunks,
** on a connection of their own. What may be taken of them is decided here.
** A snapshot is known by its tag: the index and the term of the last entry in
** it (which name the configuration at that index too) and its length; equal
** tags are equal bytes, whoever sends them. So a transfer that broke off goes
** on where it was, even if another node goes on with it.
*/
struct raft_snapshot_tag {
  raft_index index;
  raft_term term;
  uint64_t bytes; /* length of the whole */
};

/* What this node has of one; all zeros: nothing. */
struct raft_snapshot_in {
  struct raft_snapshot_tag tag;
  uint64_t position; /* bytes that have arrived, all from the beginning */
};

enum raft_snapshot_verdict {
  RAFT_SNAPSHOT_REFUSE = 1, /* the sender leads no more, or it makes no sense */
  RAFT_SNAPSHOT_HAVE,   /* this log reaches as far already, or it is taken */
  RAFT_SNAPSHOT_START,  /* offers: forget what was there, send from 0 */
  RAFT_SNAPSHOT_RESUME, /* offers: send from `position` */
  RAFT_SNAPSHOT_TAKE,   /* chunks: the bytes after *skip come next */
  RAFT_SNAPSHOT_SKIP,   /* chunks: nothing new in it, or not the next */
  RAFT_SNAPSHOT_DONE    /* chunks: as TAKE, and the snapshot is whole */
};

/*
** A leader of `term` offers a snapshot. On START and RESUME *in is ready for
** its chunks; otherwise it is unchanged.
*/
enum raft_snapshot_verdict raft_snapshot_offer(
    const struct raft *raft, struct raft_snapshot_in *in, raft_term term,
    const struct raft_snapshot_tag *tag);
/*
** A chunk of len bytes from offset on has arrived, of a snapshot that was
** offered, in any order and any number of times. *skip: how many of its bytes
** are there already. On TAKE and DONE the host must keep the rest; *in counts
** them as arrived.
*/
enum raft_snapshot_verdict raft_snapshot_chunk(
    const struct raft *raft, struct raft_snapshot_in *in, raft_term term,
    const struct raft_snapshot_tag *tag, uint64_t offset, uint64_t len,
    uint64_t *skip);

#endif
