/*
** sim.h: what the files of the simulator know of each other.
**
** A simulation is one struct sim: a cluster of up to nine nodes, each the real
** core and the real store on a simulated disk, with clients, a network and
** misfortune, driven by one seed on one thread through one heap of events in
** virtual time. README.md says what is where.
**
** Nothing here may depend on an address, on the real time or on the order of
** anything but the heap: the same seed must give the same trace.
*/
#ifndef SIM_H
#define SIM_H

#include "disk.h"
#include "raft.h"
#include "store.h"

#define SIM_NODES 9
#define SIM_SLOTS 64
#define SIM_LIVES 12 /* incarnations that one node may use up */
#define SIM_CLUSTER 0x51

typedef uint64_t sim_time; /* virtual microseconds */
#define SIM_MS 1000u
#define SIM_SECOND 1000000u
#define SIM_NEVER UINT64_MAX

struct sim;
struct node;

/* ---- interface to the code in heap.c ----------------------------------- */

enum sim_event_type {
  EV_PACKET = 1,   /* u.packet arrives */
  EV_TICK,         /* a deadline of the core */
  EV_DISK,         /* the log thread has a turn */
  EV_REST,         /* the log has been at rest */
  EV_LOAD,         /* entries that the core has asked for were read */
  EV_CLIENT,       /* somebody wants something */
  EV_FAULT,        /* u.number: enum sim_fault */
  EV_START,        /* a process starts */
  EV_CRASH,        /* power is lost, if not before */
  EV_RESUME,       /* a paused process goes on */
  EV_STOP,         /* a process that is being stopped gives up waiting */
  EV_LINK,         /* u.number: peer; the connection to it was closed */
  EV_LINK_UP,      /* ... is there again */
  EV_HEAL,         /* a partition ends */
  EV_SPACE,        /* a full disk has space again */
  EV_REOPEN,       /* a process looks whether it has */
  EV_ENTER,        /* a snapshot that was put in place takes effect */
  EV_SNAPSHOT,     /* u.part arrives */
  EV_SNAPSHOT_TIME /* u.number: transfer; nothing was heard for a while */
};

struct sim_event {
  sim_time at;
  uint64_t order; /* of two at the same time the older goes first */
  uint8_t type;
  uint8_t node;  /* 0: none */
  uint32_t life; /* of the node that it is for; 0: any */
  union {
    struct packet *packet;
    struct part *part;
    uint64_t number;
  } u;
};

struct sim_heap {
  struct sim_event *items;
  size_t n, capacity;
  uint64_t order;
};

void sim_heap_push(struct sim *s, struct sim_event event);
bool sim_heap_pop(struct sim *s, struct sim_event *event);
/* An event without anything in it, for a node's present life. */
void sim_after(struct sim *s, struct node *n, uint8_t type, sim_time delay,
               uint64_t number);

/* The same for whatever process it has by then. */
void sim_after_any(struct sim *s, const struct node *n, uint8_t type,
                   sim_time delay, uint64_t number);

uint64_t sim_random(struct sim *s);
uint64_t sim_below(struct sim *s, uint64_t n); /* 0 if n is */
uint64_t sim_between(struct sim *s, uint64_t low, uint64_t high);
bool sim_chance(struct sim *s, uint32_t per_million);
/* Exponentially distributed, at most 20 times the mean. */
uint64_t sim_spread(struct sim *s, uint64_t mean);
uint64_t sim_mix(uint64_t a, uint64_t b);

/* From the pair of numbers to another; 0 is not stored. */
struct sim_map {
  struct sim_pair {
    uint64_t a, b, value;
  } * pairs;
  size_t n, capacity;
};
/* Where the value is: 0 when it is new. */
uint64_t *sim_map_at(struct sim_map *map, uint64_t a, uint64_t b);
/* The value, or 0. */
uint64_t sim_map_get(const struct sim_map *map, uint64_t a, uint64_t b);

/* realloc() that gives up instead of failing. */
void *sim_resize(void *p, size_t bytes);

/* ---- interface to the code in options.c -------------------------------- */

enum sim_fault {
  F_CRASH,     /* power loss */
  F_KILL,      /* the process dies, the cache of the system lives on */
  F_PAUSE,     /* nothing happens for a while, then all of it at once */
  F_SUSPEND,   /* as that, and the clock stood still */
  F_STOP,      /* stopped in order, leadership handed over first */
  F_WIPE,      /* comes back with an empty disk */
  F_PARTITION, /* some nodes do not hear some others */
  F_CLOG,      /* a link stops, and later delivers everything */
  F_RESET,     /* a connection is closed */
  F_ROT,       /* a bit of a log file flips */
  F_MISDIRECT, /* a write of the log goes elsewhere */
  F_FULL,      /* no space for a while */
  F_STALL,     /* the disk is slow for a while */
  F_DOUBT,     /* the host does not trust its clock */
  F_EIO,       /* not an event: rates of the disk */
  F_LOSS,      /* not an event: messages are lost, repeated, late */
  F_DRIFT,     /* not an event: clocks run apart */
  F_MEMBERS,   /* not an event: membership changes */
  F_COUNT
};
extern const char *const sim_fault_names[F_COUNT];

struct sim_options {
  unsigned nodes, voters;
  uint64_t steps;
  unsigned heartbeat_ms, election_ms, hint_jitter_ms;
  size_t tail_bytes, uncommitted_bytes, message_bytes, inflight_bytes;
  unsigned inflight_messages;
  uint64_t segment_bytes;
  unsigned checkpoint_every;
  bool checkpoint_aligned; /* at multiples of that: snapshots coincide */
  bool lease, priorities, members_only, tick_first;
  unsigned body_max, parts_ppm;
  unsigned backlog; /* entries not committed, before clients hold back */
  uint32_t loss, duplicates;     /* per million */
  uint32_t delay_us, reorder_us; /* at least; and on average more */
  sim_time every[F_COUNT];       /* mean time between two; 0: off */
  uint32_t drift_ppm;
  uint32_t disk_us, load_us;
  uint32_t eio_write, eio_sync;             /* per million calls */
  sim_time client_us;                       /* mean time between two calls */
  unsigned propose, read, change, transfer; /* weights of calls */
  unsigned chunk_bytes, snapshot_bytes, snapshot_window;
};

/* Draws a seed's options; what the command line has fixed stays. */
void sim_options_draw(struct sim *s);
void sim_options_bench(struct sim_options *o);
void sim_options_print(const struct sim_options *o);

/* ---- interface to the code in trace.c ---------------------------------- */

enum trace_kind {
  T_STEP = 1, /* event type, return code */
  T_SEND,     /* to, type, term, prev_index, entries */
  T_MESSAGE,  /* from, type, term, prev_index, entries */
  T_PERSIST,  /* seq, term (0: none), voted_for, first, n */
  T_DURABLE,  /* seq, last */
  T_DISK,     /* status */
  T_ROLE,     /* role, term, leader */
  T_COMMIT,   /* index */
  T_APPLY,    /* index, state hash */
  T_CHECKPOINT,
  T_INSTALL,   /* index, term, log was replaced */
  T_CONFIG,    /* index, voters, outgoing, members: bits */
  T_START,     /* incarnation, last, commit, term, voted_for */
  T_REFUSED,   /* rc */
  T_DOWN,      /* fault */
  T_FAULT,     /* fault, details */
  T_PROPOSE,   /* op, rc, index, term */
  T_ANSWER,    /* op, what */
  T_READ,      /* number, lease, needed */
  T_READ_DONE, /* number, status, index */
  T_CHANGE,    /* n, first type, first id, rc, index */
  T_TRANSFER,  /* to, rc */
  T_LINK,      /* peer, up */
  T_SNAPSHOT,  /* transfer, what, a, b */
  T_PEACE      /* stage */
};

struct trace_line {
  sim_time at;
  uint8_t kind, node;
  uint64_t v[5];
};
#define TRACE_LINES 256

void sim_trace(struct sim *s, const struct node *n, uint8_t kind, uint64_t a,
               uint64_t b, uint64_t c, uint64_t d, uint64_t e);
void sim_trace_dump(const struct sim *s);

/* ---- interface to the code in network.c -------------------------------- */

struct packet {
  struct packet *next; /* free, clogged or deferred */
  raft_id from, to;
  uint32_t epoch; /* of the connection */
  uint32_t len, size_class;
  uint8_t type;
  uint8_t bytes[];
};

struct network {
  /* [from][to] */
  bool cut[SIM_NODES + 1][SIM_NODES + 1];
  sim_time clogged[SIM_NODES + 1][SIM_NODES + 1];
  /* [low][high]: connections */
  bool down[SIM_NODES + 1][SIM_NODES + 1];
  uint32_t epoch[SIM_NODES + 1][SIM_NODES + 1];
  struct packet *free[4];
  bool perfect;
};

struct packet *net_encode(struct sim *s, const struct raft_message *message);
void net_send(struct sim *s, struct packet *packet);
/* Whether a packet that was sent then still arrives. */
bool net_arrives(struct sim *s, const struct packet *packet);
void net_drop(struct sim *s, struct packet *packet);
/* When a small message of another connection would arrive; SIM_NEVER: lost. */
sim_time net_delay(struct sim *s, raft_id from, raft_id to);
/* Closes the connection between two nodes; both learn of it, in a while. */
void net_reset(struct sim *s, raft_id a, raft_id b);
void net_link_up(struct sim *s, raft_id a, raft_id b);
void net_partition(struct sim *s);
void net_clog(struct sim *s);
void net_heal(struct sim *s);
void net_free(struct sim *s);

/* ---- interface to the code in machine.c -------------------------------- */

/*
** The state machine: slots that transactions write, and a transaction of
** which only parts are there so far. No padding: it is compared by its hash.
*/
struct machine {
  uint64_t index; /* applied */
  uint64_t chain; /* of all transactions */
  uint64_t count;
  uint64_t open_op, open_term, open_parts; /* PAGES seen, COMMIT missing */
  uint64_t slots[SIM_SLOTS];
};

/* What the body of an entry says. */
struct command {
  uint64_t op;
  uint32_t parts; /* COMMIT: that many PAGES belong to it */
  uint32_t slot;
  uint64_t value;
};

struct raft_body *machine_body(const struct command *command, size_t len);
/* Applies the next entry. Returns the transaction that took effect, or 0. */
uint64_t machine_apply(struct machine *m, const struct raft_entry *entry);
uint64_t machine_hash(const struct machine *m);

/* A snapshot as bytes: term, configuration, machine, filled up to some size.
   Equal at equal indexes, whoever makes it. */
struct blob {
  unsigned refs;
  struct raft_snapshot_tag tag;
  uint8_t bytes[];
};
struct blob *blob_make(struct sim *s, const struct machine *m, raft_term term,
                       const struct raft_configuration *configuration,
                       raft_index configuration_index);
bool blob_parse(const uint8_t *bytes, size_t len,
                struct store_checkpoint *checkpoint, struct machine *m);
void blob_unref(struct blob *blob);

/* ---- interface to the code in model.c ---------------------------------- */

/*
** What a node must have on its disk, known from what it was told to write and
** what was reported durable; an entry is known by its chain, the hash of it
** and all before it.
*/
struct model_entry {
  raft_index index;
  raft_term term;
  uint64_t chain;
};
struct model_write {
  uint64_t seq;
  bool vote;
  raft_term term;
  raft_id voted_for;
  unsigned n;
};
struct model_log {
  raft_index base, last; /* entries above base are in it */
  uint64_t *chain;       /* [index]; also of base */
  raft_term *term;
  size_t capacity;
};
struct model {
  uint64_t incarnation;
  raft_term term; /* durable vote */
  raft_id voted_for;
  raft_index checkpoint; /* reported written */
  /* The log may already begin after one of these: resets that were begun and
     not seen to end, newest last. */
  raft_index cuts[4];
  unsigned n_cuts;
  struct model_log durable;
};

struct node_writes {
  struct model_write *writes; /* circles of a power of two */
  struct model_entry *entries;
  size_t write_head, n_writes, write_capacity;
  size_t entry_head, n_entries, entry_capacity;
};

uint64_t chain_next(uint64_t chain, const struct raft_entry *entry);
void model_set(struct model_log *log, raft_index index, raft_term term,
               uint64_t chain);
void model_begin(struct model_log *log, raft_index base, raft_term term,
                 uint64_t chain);
/* Whether the entry is in it, or behind its beginning. */
bool model_has(const struct model_log *log, raft_index index, uint64_t chain);
/* The node was told to write something; it is durable. */
void model_submit(struct sim *s, struct node *n,
                  const struct raft_persist *persist);
void model_durable(struct sim *s, struct node *n, uint64_t seq);
/* The log will begin after a snapshot; it does. */
void model_reset_begin(struct sim *s, struct node *n, raft_index index,
                       raft_term term);
void model_reset_end(struct sim *s, struct node *n, raft_index index,
                     raft_term term);
/* A process starts: is what was recovered what must be there? */
const char *model_recovered(struct sim *s, struct node *n,
                            const struct store_checkpoint *checkpoint,
                            const struct raft_recovered *recovered);
void model_free(struct node *n);

/* ---- interface to the code in check.c ---------------------------------- */

struct committed {
  uint64_t chain, state; /* state: hash after it; 0: nobody has applied it */
  raft_term term, by;    /* of the entry; of the leader that committed it */
};

struct checks {
  struct sim_map entries;        /* (index, term) to chain */
  struct sim_map votes;          /* (node and incarnation, term) to candidate */
  struct sim_map configurations; /* (index, chain) to checksum */
  raft_id *leaders;              /* [term]: id + incarnation << 8 */
  size_t leaders_capacity;
  struct committed *committed; /* [index] */
  size_t committed_capacity;
  raft_index max_committed;
  raft_index max_acknowledged;
  struct raft_configuration configuration; /* newest committed one */
  raft_index configuration_index;
  /* The newest committed one and all that were appended after it. */
  struct live {
    raft_index index;
    struct raft_configuration configuration;
  } * live;
  size_t n_live, live_capacity;
};

/* Ends the run: what of, which invariant, why. */
void sim_fail(struct sim *s, const char *what, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));

struct committed *check_committed(struct sim *s, raft_index index);
/* After each step, before its effects are carried out. */
void check_step(struct sim *s, struct node *n, const struct raft_effects *e);
/* Now and then: what costs more. */
void check_slowly(struct sim *s, struct node *n);
/* Said, of an entry that was written: I3. */
void check_entry(struct sim *s, struct node *n, raft_index index,
                 raft_term term, uint64_t chain);
void check_write(struct sim *s, struct node *n,
                 const struct raft_persist *persist);
/* A message leaves. */
void check_send(struct sim *s, struct node *n, const struct raft_message *m);
void check_applied(struct sim *s, struct node *n);
void check_state(struct sim *s, struct node *n, const struct machine *m);
void check_configuration(struct sim *s, struct node *n);
void check_free(struct sim *s);

/* ---- interface to the code in node.c and process.c --------------------- */

/* Calls of clients that a process has not answered yet. */
struct pending {
  uint64_t *ids;
  size_t n, capacity;
};

enum node_status {
  NODE_ABSENT, /* not yet started */
  NODE_UP,
  NODE_DOWN,
  NODE_REFUSED /* its disk was damaged, and it says so */
};

struct held {
  uint64_t after;
  struct packet *packet;
  struct raft_message said; /* what check_send() looks at; no entries */
};

struct node {
  uint8_t id, status;
  uint64_t incarnation;
  uint32_t life; /* of processes: counts */
  struct raft_options options;
  /* the process */
  struct raft *raft;
  struct store *store;
  struct machine machine; /* its index is the applied one */
  raft_index commit;
  struct store_checkpoint checkpoint; /* its own copy */
  struct raft_configuration applied_configuration;
  raft_index applied_configuration_index;
  uint8_t role;
  raft_term role_term;
  raft_id leader;
  uint64_t durable_seq;
  struct held *held;
  size_t n_held, held_capacity;
  sim_time tick_at; /* of the event that is in the heap */
  uint64_t stepped; /* its time at the last step */
  bool disk_event, rest_event;
  uint64_t done_seq;
  int done_status;
  bool failed; /* its disk has */
  bool stopping;
  bool applying;       /* not again meanwhile */
  raft_term vote_term; /* as the core has it */
  raft_id voted_for;
  raft_index proposed_first, proposed_last; /* by the last step */
  struct raft_configuration configuration;  /* newest in its log */
  raft_index configuration_index;
  struct raft_load loads[SIM_NODES + 1];        /* [peer]; first 0: none */
  raft_index load_configuration[SIM_NODES + 1]; /* that was in force then */
  raft_index match[SIM_NODES + 1];              /* seen by check_slowly() */
  raft_term match_term;
  uint64_t match_incarnation[SIM_NODES + 1];
  struct pending ops, reads;
  /* pause */
  bool paused, suspended;
  struct sim_event *deferred;
  size_t n_deferred, deferred_capacity;
  sim_time paused_at;
  /* an incoming snapshot */
  struct raft_snapshot_in in;
  uint8_t *in_bytes;
  raft_id in_from;
  /* clock */
  uint64_t rate; /* nanoseconds of it in a virtual microsecond * 1000 */
  uint64_t offset_us;
  /* the disk */
  struct sim_disk *disk;
  bool dying;    /* power is about to be lost */
  bool entering; /* a snapshot is on its disk, and its core does not know */
  bool doomed;   /* it cannot read its log: as if it had refused to start */
  bool damaged;  /* bits were flipped, or written elsewhere */
  bool full;
  raft_index confirmed; /* what the next process finds in shared memory */
  sim_time slow_until;
  bool still; /* until then its disk does nothing at all */
  /* what should be where */
  struct model_log log; /* as the core has it */
  struct model models[SIM_LIVES];
  struct node_writes writes;
  unsigned n_lives; /* the present incarnation's model is n_lives - 1 */
};

uint64_t node_now(const struct sim *s, const struct node *n);
int node_step(struct sim *s, struct node *n, struct raft_event *event);
/* Events of the heap, for a node that is up and not paused. */
void node_packet(struct sim *s, struct node *n, struct packet *packet);
void node_tick(struct sim *s, struct node *n, bool forced);
void node_disk(struct sim *s, struct node *n);
void node_rest(struct sim *s, struct node *n);
void node_load(struct sim *s, struct node *n, uint64_t load);
void node_link(struct sim *s, struct node *n, raft_id peer, bool up);
void node_apply(struct sim *s, struct node *n);
/* Sees to it that the log thread has a turn. */
void node_wake_disk(struct sim *s, struct node *n);
void node_release(struct sim *s, struct node *n);
/* Takes what done() has noted; false: the node is not up any more. */
bool node_take_done(struct sim *s, struct node *n);
bool node_write_checkpoint(struct sim *s, struct node *n,
                           struct store_checkpoint *checkpoint);
void node_schedule(struct sim *s, struct node *n);
const char *node_dir(const struct node *n);

struct model *node_model(struct node *n);
const struct model *sim_model(const struct sim *s, raft_id id,
                              uint64_t incarnation);
void process_prepare(struct sim *s, struct node *n, unsigned id);
void process_start(struct sim *s, struct node *n);
/* Power loss, or (kill) the end of the process. */
void process_end(struct sim *s, struct node *n, bool kill);
void process_close(struct sim *s, struct node *n);
/* Its disk was full, and may have space again: the log is opened anew, and a
   core for it made, in the same process, which keeps its state machine and its
   connections. */
void process_reopen(struct sim *s, struct node *n);
void process_wipe(struct sim *s, struct node *n);
void process_pause(struct sim *s, struct node *n, sim_time time, bool suspend);
void process_resume(struct sim *s, struct node *n);
void process_free(struct sim *s, struct node *n);
void process_set_disk_faults(struct sim *s, struct node *n);
/* At the end of every event: it may have lost power, or worse. */
void process_settle(struct sim *s, struct node *n);
bool process_defers(struct sim *s, struct node *n,
                    const struct sim_event *event);

/* ---- interface to the code in snapshot.c ------------------------------- */

enum part_type { PART_OFFER = 1, PART_CHUNK, PART_ANSWER };

struct part {
  uint8_t type, verdict;
  raft_id from, to;
  uint32_t transfer, life; /* life of the process it is for; 0: any */
  raft_term term;
  struct raft_snapshot_tag tag;
  uint64_t offset, len, position;
  struct blob *blob;
};

struct transfer {
  uint32_t id, life; /* of the sender */
  raft_id from, to;
  raft_term term;
  struct blob *blob;
  bool active, offered, patient;
  uint64_t sent, acknowledged;
  unsigned silent; /* times that nothing was heard */
  uint64_t heard;  /* counts answers */
};

void snapshot_send(struct sim *s, struct node *n, raft_id to);
void snapshot_part(struct sim *s, struct part *part);
void snapshot_enter(struct sim *s, struct node *n);
void snapshot_time(struct sim *s, uint64_t transfer);
void snapshot_forget(struct sim *s, struct node *n); /* its process ended */
void snapshot_free_part(struct part *part);
void snapshot_free(struct sim *s);

/* ---- interface to the code in client.c --------------------------------- */

enum op_state { OP_PENDING = 1, OP_DONE, OP_REFUSED, OP_LOST, OP_UNKNOWN };

struct op {
  uint8_t state;
  uint8_t node;
  uint32_t life;
  raft_index index;
  raft_term term;
  raft_index applied; /* where it took effect; 0: nowhere yet */
};

struct asked {
  raft_index floor; /* what its answer must hold */
  raft_index index; /* answered: to be applied first */
  uint8_t node, state;
  uint32_t life;
};

struct clients {
  struct op *ops; /* [id], from 1 */
  size_t n_ops, ops_capacity;
  struct asked *reads; /* [number], from 1 */
  size_t n_reads, reads_capacity;
  unsigned next_address;
};

void client_act(struct sim *s);
uint64_t client_propose(struct sim *s, struct node *n);
uint64_t client_read(struct sim *s, struct node *n, bool lease);
void client_answered(struct sim *s, struct node *n,
                     const struct raft_read_result *result);
/* Applied: the transaction that took effect by it, or 0. */
void client_applied(struct sim *s, struct node *n, const struct raft_entry *e,
                    uint64_t effect);
/* The process of the node has ended; it has applied more. */
void client_ended(struct sim *s, struct node *n);
void client_progress(struct sim *s, struct node *n);
bool client_settled(struct sim *s);
void client_free(struct sim *s);
int client_change(struct sim *s, struct node *n, unsigned count,
                  struct raft_change *changes);

/* ---- interface to the code in fault.c ---------------------------------- */

void fault_schedule(struct sim *s, enum sim_fault fault);
void fault_strike(struct sim *s, enum sim_fault fault);
void fault_stop_done(struct sim *s, struct node *n);
/* Whether every configuration that may count would have a quorum without
   those whose data are lost, and without this one too. */
bool fault_may_lose(struct sim *s, const struct node *n);
bool fault_configuration_lives(struct sim *s,
                               const struct raft_configuration *c,
                               const struct node *without);
bool fault_is_lost(const struct sim *s, const struct raft_member *member);

/* ---- interface to the code in run.c ------------------------------------ */

struct sim_stats {
  uint64_t events, commits, elections, crashes, kills, pauses, restarts;
  uint64_t changes, joint, transfers, handed_over;
  uint64_t snapshots, resumed, installed, replaced;
  uint64_t reads, lease_reads, refused, vanished, wiped, stops, reopened;
  uint64_t acknowledged, lost, unknown, rejected;
  uint64_t torn, lost_sectors, eio, full, rotted, misdirected;
  uint64_t loads, checkpoints, partitions, resets, disk_failures, messages;
};

struct sim {
  uint64_t seed, random;
  sim_time now;
  struct sim_options options;
  struct sim_heap heap;
  struct network net;
  struct node nodes[SIM_NODES + 1]; /* [id] */
  struct checks checks;
  struct clients clients;
  struct transfer *transfers;
  size_t n_transfers, transfers_capacity;
  struct raft_configuration first; /* that the cluster begins with */
  struct trace_line lines[TRACE_LINES];
  uint64_t n_lines, hash;
  bool peace, verbose;
  struct sim_stats stats;
};

struct settings { /* from the command line */
  uint64_t first_seed, n_seeds, steps;
  unsigned nodes;
  uint32_t off; /* bits: enum sim_fault */
  bool trace, quiet, hunt, bench, random;
  unsigned twice; /* every so many seeds are run again; 0: none */
};
extern struct settings sim_settings;
extern struct sim *sim_running; /* for sim_fail() and signals */

/* ---- interface to the code in report.c --------------------------------- */

/* From now on asserts, signals and endless loops are failures of the seed. */
void sim_catch(void);
/* Runs seeds first, first + 1, ...; false: a trace was not the same twice. */
bool sim_run_seeds(uint64_t first, uint64_t n, struct sim_stats *stats);
void sim_summary(const struct sim_stats *stats, uint64_t seeds, double seconds);
double sim_seconds(void); /* of the real clock */
/* Different each time. */
uint64_t sim_random_seed(void);

/* ---- interface to the code in run.c, continued ------------------------- */

/* Runs a seed; what happened is added to *stats. Returns the trace's hash. */
uint64_t sim_run(uint64_t seed, struct sim_stats *stats);
struct node *sim_leader(struct sim *s); /* of the greatest term, or NULL */
struct node *sim_some_node(struct sim *s, bool up);

#endif
