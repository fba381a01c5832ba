/*
** node.h: one node: its files, its threads, and what they share.
**
** Threads of a node: the loop thread (libuv: raft, network, applying), the
** log's own thread (raft/store), and the worker (checkpoints, big applies).
** Application threads come in through the VFS and SQL functions. None of the
** node's threads ever waits for an application.
**
** `mutex` of struct node guards what is marked so; it may be taken before
** wal->mutex, never after it.
*/
#ifndef EXT_NODE_H
#define EXT_NODE_H

#include "lock.h"
#include "meter.h"
#include "net.h"
#include "pack.h"
#include "progress.h"
#include "settings.h"
#include "store.h"
#include "wal.h"

#include <stdatomic.h>
#include <sys/queue.h>
#include <uv.h>

#define TEXT_MAX 640

/* A line for people. */
struct text {
  char s[TEXT_MAX];
};
void text_set(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A text becomes one line, without what moves a cursor: some of it is a peer's,
   or a file's name. */
void text_plain(char *text);

/* Asked now and then by what takes long on an application's thread: true when
   the application wants it to end. */
struct interrupt {
  bool (*raised)(void *ctx);
  void *ctx;
};

/* The text of an errno value, as messages here are written: lower case. */
struct errno_text {
  char s[80];
};
struct errno_text errno_text(int number);

/* Milliseconds of a clock that never jumps; of the calendar. */
uint64_t clock_monotonic_ms(void);
uint64_t clock_monotonic_ns(void);
int64_t clock_wall_ms(void);
/* A condition that is waited for by the first clock, and how long. */
void clock_condition(pthread_cond_t *cond);
struct timespec clock_deadline(uint64_t ms);
bool clock_before(const struct timespec *a, const struct timespec *b);
/* A time of the calendar (UTC) as the events have it. */
struct clock_text {
  char s[40];
};
struct clock_text clock_text(int64_t wall_ms);

/* Starts a thread on which no signal handler of the application runs. 0 or a
   negated errno value. */
int thread_start(pthread_t *thread, void *(*main)(void *), void *arg);

/* One thread waits for another without a mutex between them: a futex. Whoever
   rings touches it last; then the memory may go. */
struct bell {
  _Atomic uint32_t rung;
};
/* How it was rung, not 0; or 0 at `end` of the monotonic clock. */
uint32_t bell_wait(struct bell *bell, const struct timespec *end);
void bell_ring(struct bell *bell, uint32_t how);

/* ---- identity: identity.c ---------------------------------------------- */

#define IDENTITY_PATH_MAX 1024

/* The file DIR/node and the certificates beside it. */
struct identity {
  uint64_t cluster, id, incarnation;
  char name[RAFT_NAME_MAX];
  char listen[RAFT_ADDRESS_MAX];
  char advertise[RAFT_ADDRESS_MAX];
  /* the same on all nodes of a cluster */
  unsigned heartbeat_ms, election_timeout_ms;
  bool lease;                 /* its leader may read by lease */
  unsigned log_keep_kib;      /* log kept for slow followers, at most */
  unsigned snapshot_rate_kib; /* a second, of snapshots given; 0: no limit */
  bool joining;               /* the first snapshot has not arrived yet */
  /* Certificates that come from outside: absolute paths; else empty. And which
     of their DNS names is the node's; empty: their URI is. */
  char ca_file[IDENTITY_PATH_MAX], cert_file[IDENTITY_PATH_MAX];
  char key_file[IDENTITY_PATH_MAX], names[256];
  /* PEM. In a node that runs, changed by the loop thread under the mutex. */
  char *ca, *cert, *key;
};
bool identity_valid_name(const char *name);
/* All files of DIR; the second only the file `node`: what is beside it is then
   trust.c's. */
int identity_write(const char *dir, const struct identity *identity,
                   struct text *error);
int identity_write_node(const char *dir, const struct identity *identity,
                        struct text *error);
/* -EACCES: nothing is damaged, but others may use a file that they must not, or
   the files from outside cannot be read. */
int identity_read(const char *dir, struct identity *identity,
                  struct text *error);
/* The three files that an outside PKI gives: -EACCES and why not. What was read
   so far is to be cleared. */
int identity_read_outside(struct identity *identity, struct text *error);
/* -EACCES: others than the owner may use a file, or (owner) that is neither this
   user nor root. 0: not so, or there is no such file. */
int identity_private(const char *path, bool owner, struct text *error);
void identity_clear(struct identity *identity);
/* It listens nowhere, and nobody can join it: auto.c. */
#define LISTEN_NONE "none"
static inline bool identity_alone(const struct identity *identity)
{
  return strcmp(identity->listen, LISTEN_NONE) == 0;
}
/* The node of such an identity has started; is about to give up its lock, with
   everything in the database file: auto.c. */
void auto_begun(const char *path);
void auto_ended(const char *path);

/* ---- the directory that they are in: directory.c ------------------------- */

/* Whether it may be used: it is this user's or root's, nobody else may write in
   it, and what is in it is of the right kind. 0; -EPERM: it would do, but is
   another user's; or another negated errno value. *error says why. */
int directory_check(const char *dir, struct text *error);

/* ---- transactions: capture.c, apply.c ---------------------------------- */

enum tx_state {
  TX_OPEN = 1,
  TX_WAITING,
  TX_CONFIRMED,
  TX_REJECTED,
  TX_UNKNOWN /* the node was stopped before it was known */
};

/* The right to write, of this node: under it transactions are made. Of the
   leader's term. */
struct grant {
  raft_term term;
  uint64_t number; /* within the term */
};

/* Sequence numbers of transactions of this node that were applied and that an
   earlier host had handed over: the newest ones, in a ring. */
struct earlier {
  uint64_t *sequences;
  size_t n, cap;
};

/* A local transaction between its hand-over and its fate. */
struct transaction {
  struct transaction *next;
  struct grant grant; /* under which it was made */
  uint64_t epoch;     /* of the WAL then */
  uint64_t sequence;  /* as in its entries */
  uint64_t position;  /* of its COMMIT, under a borrowed lock: lock.c */
  struct walindex_header base;   /* before it */
  struct walindex_header header; /* after it */
  uint32_t *pages;               /* page numbers of its frames */
  uint64_t began;      /* ns: a large one's hand-over; 0: it is quick */
  struct bell bell;    /* 1: the state is final; 2: do not wait for it */
  enum tx_state state; /* node mutex, until it is final */
  bool abandoned;      /* nobody waits any more; node mutex */
  bool schema; /* it changes the schema: nobody builds on it: writer.c */
  _Atomic uint64_t *committed; /* another process's word of it; or NULL */
};
struct transaction *transaction_new(void);
void transaction_free(struct transaction *tx);

/* The head of the body of PAGES and COMMIT entries; then `count` page numbers
   u32, padding to 8 bytes, the pages. */
struct tx_head {
  uint64_t node, incarnation, sequence; /* whose transaction */
  int64_t time_ms;                      /* calendar time of its origin */
  uint32_t part;                        /* number of this part, from 0 */
  uint32_t n_page; /* COMMIT: pages of the database after it; else 0 */
  uint32_t page_size;
  uint32_t count; /* pages in this part */
};
_Static_assert(sizeof(struct tx_head) == 48, "head of a transaction's part");

/* Checks a body's shape against the database's page size. */
bool tx_parse(const struct raft_body *body, uint32_t page_size,
              struct tx_head *head, const uint32_t **pgnos,
              const uint8_t **pages);
/* Where the pages begin in a body with count pages. */
static inline size_t tx_pages_offset(uint32_t count)
{
  return sizeof(struct tx_head) + (((size_t)count * 4 + 7) & ~(size_t)7);
}

/* ---- events: events.c -------------------------------------------------- */

struct event {
  int64_t time_ms;
  char text[256];
};
#define EVENTS_MAX 256

/* What happened to a node, newest last, and why something was refused. */
struct events {
  pthread_mutex_t mutex;
  const char *path; /* the node's */
  uint64_t n;       /* ever added */
  struct event ring[EVENTS_MAX];
};
void events_add(struct events *events, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A program that wants to be told of each event of all nodes sets it before the
   first one starts. Called on the threads of nodes, in order for each: it must
   not wait, and must not ask a node anything. */
extern void (*events_echo)(const char *path, const struct event *event);

/* ---- numbers ------------------------------------------------------------ */

/* What happens in a node, where it happens. metrics.c makes a table of it. */
struct counters {
  /* loop thread */
  uint64_t elections, elections_won; /* begun by this node */
  uint64_t leaders;                  /* how often there was another one */
  _Atomic uint64_t transactions;     /* applied; others read it */
  uint64_t snapshots_given, snapshots_taken;
  struct meter_growth growth; /* of the log */
  /* any thread */
  struct meter commits; /* from the hand-over until it is confirmed */
  struct meter syncs;   /* of the log */
  _Atomic uint64_t given_bytes, taken_bytes;   /* of snapshots */
  _Atomic uint64_t rolled_back, unknown;       /* commits that were none */
  _Atomic uint64_t checkpoints, checkpoint_ns; /* made; time in all */
};

/* ---- the node ---------------------------------------------------------- */

/* How large things grow before they are cut, copied or begun anew: start.c.
   Tests make them small, before the first node starts. */
struct node_limits {
  uint64_t segment_bytes;     /* of the log */
  uint64_t log_least;         /* bytes of log that are always kept */
  uint32_t part_bytes;        /* of a transaction's pages, about */
  uint32_t checkpoint_frames; /* in -wal: time to copy them */
  uint32_t restart_frames;    /* a WAL this long begins anew */
  uint32_t quiet_frames;      /* may be left to copy in a quiet moment */
  uint32_t quiet_ms;          /* without a write: time to tidy up */
  uint32_t stall_ms;          /* a join waits without any progress */
  uint32_t fate_ms;           /* longest wait for the fate of a commit */
  uint32_t follow_ms;         /* leadership follows who wrote most of this */
  uint32_t void_one_in; /* tests: a leader's grant ends once in so many times
                           that it looks for something to propose; 0: never */
};
extern struct node_limits node_limits;

/* Something to be done on the loop thread on behalf of another. */
struct task {
  struct task *next;
  void (*run)(struct task *task);
  struct node *node;
};

struct proposal {
  struct proposal *next;
  struct transaction *tx; /* whose part it is; followed only for a COMMIT.
                             NULL: another node's */
  struct grant grant;
  uint64_t position; /* under a borrowed lock, from 1: lock.c */
  uint8_t type;
  struct raft_body *body;
};

/* A connection in the queue of those that want to write: writer.c. All under
   the node's mutex, but for what its own thread alone looks at. */
struct write_place {
  struct write_place *next;
  struct connection *connection;
  pthread_t thread;
  struct bell bell;             /* rung when there is something to look at */
  bool waiting;                 /* would notice its turn at once */
  bool granted;                 /* its turn has come */
  bool slept, slept_until_turn; /* in its busy handler */
};

/* Somebody waits for a read index or for an index to be applied: reads.c. */
TAILQ_HEAD(waiters, waiter);
struct waiter {
  TAILQ_ENTRY(waiter) link;
  struct waiters *list; /* that it is in; NULL: it is done */
  raft_index index;     /* to be applied; 0: not known yet */
  bool lease;           /* a read by lease will do */
  int status;           /* 1: waiting; 0: done; negative: RAFT_E... */
  pthread_cond_t cond;
};

/* What clocks have told so far; all zeros: nothing. Nanoseconds. */
struct clock_watch {
  bool known;
  int64_t slept_least, slept_most; /* how long the machine has slept, ever */
  uint64_t looked;                 /* ms */
};

struct applied_configuration {
  struct applied_configuration *next;
  raft_index index;
  struct raft_configuration configuration;
};

/* How the loop thread stands still for a fork(): forks.c. */
struct parking {
  struct task task;
  _Atomic uint32_t state;
};

struct held_send {
  struct held_send *next;
  uint64_t after;
  struct raft_message message;
};

enum quiet { QUIET_NONE = 0, QUIET_ASKED, QUIET_GRANTED, QUIET_REFUSED };

/* A checksum that this node computes, or has computed: verify.c. */
struct verification {
  struct image *image; /* not begun yet */
  uint64_t number;     /* its own; 0: the slot is free */
  raft_index index;
  uint8_t state;
  uint32_t n_page, pages; /* in all, and read so far */
  uint64_t checksum;
  uint64_t asked; /* ms: when somebody last wanted to know */
  struct text error;
};
#define VERIFICATIONS 4 /* the newest ones are remembered */

struct verifier {
  pthread_t thread;
  pthread_cond_t cond;
  bool started;
  struct verification slots[VERIFICATIONS];
};

struct node_view {
  enum raft_role role;
  raft_term term;
  raft_id leader;
  raft_index commit, last;
  unsigned voters;
};

struct node {
  struct node *next; /* those of a database that were stopped: registry.c */
  char *path, *dir;
  /* What of it changes while the node runs (`advertise`) is guarded by mutex;
     identity_mutex, taken before it, is held while its files are written. */
  struct identity identity;
  pthread_mutex_t identity_mutex;
  const struct io *io;
  int lock_fd;
  struct control_map *map;
  struct control *shared; /* in it */
  struct events events;

  /* threads */
  pthread_t loop_thread, worker_thread;
  bool loop_made, loop_started, worker_started, clean;
  uv_loop_t loop;
  uv_async_t async;
  uv_timer_t timer;

  pthread_mutex_t mutex;
  /* guarded by mutex */
  pthread_cond_t changed; /* those that wait for a state */
  pthread_cond_t worker_cond;
  struct node_view view;
  struct text reason;    /* why the last thing was refused */
  struct text out;       /* not "": this node was removed, and what to do */
  bool reconfigured;     /* a configuration was applied; the loop is to look */
  _Atomic bool stopping; /* also read without it */
  bool failed;
  bool draining;  /* about to stop: nobody has a turn any more */
  bool yielding;  /* a leader: another node is to lead, see lock_yield() */
  bool looping;   /* the loop may be woken */
  bool can_write; /* `grant` is in force, everything before is applied */
  struct raft_configuration members; /* the newest in force */
  struct grant grant;
  bool recalled;             /* the lock is to be given back */
  unsigned recall_left;      /* after so many turns */
  unsigned upgrading;        /* readers that want to write */
  struct connection *writer; /* whose turn it is */
  bool writer_writes;        /* it has the WRITE lock */
  bool writer_commits;       /* for another process: its COMMIT is here */
  pthread_t writer_thread;
  uint64_t writer_since;      /* ms */
  struct write_place *places; /* who wants to be next */
  struct bell *drained;       /* who waits for nothing to be in flight */
  unsigned watchers;          /* that wait for something to be confirmed */
  struct transaction *inflight, **inflight_tail;
  unsigned schemas;     /* of these, that change the schema */
  unsigned store_users; /* threads that read the log: entries.c */
  struct proposal *proposals, **proposals_tail;
  size_t proposals_bytes;
  struct task *tasks, **tasks_tail;
  struct waiters unasked, asked, waiting;
  uint64_t next_read, asked_read; /* numbers of read requests */
  raft_index applied;
  bool worker_wanted, worker_apply, worker_install, worker_reopen;
  bool worker_peers, worker_trust;
  uint64_t next_checkpoint; /* ms; not before, when one was in vain */
  unsigned in_vain;         /* that many times in a row */
  /* checkpoints that somebody asked for, and the last one's outcome */
  uint64_t checkpoints_asked, checkpoints_done;
  int checkpoint_rc;
  struct wal_pinner checkpoint_kept; /* by whom from being complete */
  int quiet;                         /* checkpoint.c: the loop's answer */
  uint64_t sequence;                 /* of local transactions */
  uint64_t started;                  /* names this start among others */
  struct earlier earlier;

  struct verifier verifier;

  /* loop thread only */
  struct store *store;
  struct raft *raft;
  struct net *net;
  struct tls_context *tls;
  struct wal *wal; /* set before the node serves; NULL while joining */
  struct held_send *held, **held_tail;
  struct clock_watch clock_watch;
  raft_index commit, lead_from;
  uint64_t lead_since;    /* ms */
  raft_index *open_parts; /* PAGES entries of a transaction not yet whole */
  unsigned n_open, cap_open;
  struct tx_head open_head;
  bool apply_busy; /* the worker applies, or needs quiet */
  struct task large_task, quiet_task;
  raft_index fold_to; /* what apply_fold() is asked for, and reached */
  uint32_t large_n_page;
  int large_rc;
  uint64_t durable_seen;
  bool disk_failed;
  bool log_closed;       /* and could not be opened anew; apply_busy, too */
  bool apply_full;       /* an entry found no room in -wal */
  raft_index full_at;    /* the last one that did not, and of which was told */
  bool full_again;       /* it was tried more than once */
  bool still;            /* this node leads, and its disk does nothing */
  uint64_t hand_over_at; /* ms: not before, because of that */
  uint64_t room_at;      /* ms: when to look for room again */
  bool asked_to_serve;   /* a read index that makes `serving` true */
  raft_index serve_from;
  uint32_t seen_frames; /* of the WAL, and when they last changed */
  uint64_t quiet_since;
  uint64_t ticked; /* time of the last cluster_tick() */
  uint64_t due;    /* time at which the timer was to call */
  bool late;       /* it called late, and the sockets are looked at first */
  struct settings settings;
  struct raft_configuration configuration; /* in force at `applied` */
  raft_index configuration_index;
  /* Guarded by mutex: applied after the checkpoint, oldest first. */
  struct applied_configuration *history;
  struct snapshot_out *snapshots; /* that this node gives */
  struct fetch *fetch;            /* that it takes; NULL: none */
  uint64_t fetched, last_session;
  raft_index compacted;       /* the log need not go back further */
  bool closing;               /* the loop is about to end */
  uint64_t dice;              /* of void_one_in */
  struct control_heard heard; /* as it was last noted: heard.c */
  unsigned heard_at;
  struct join *joins; /* admit.c: requests that wait for agreement */
  struct invites *invites;
  struct metrics *metrics; /* mutex */
  struct counters counters;
  struct progress *progress;
  uint64_t reads_before[3]; /* by level; of hosts before this one */
  uint64_t now;             /* ms: of the newest step of raft */
  uint64_t since;           /* ms of the monotonic clock: its start */
  unsigned set_backs;       /* of members, that were told of: member.c */
  bool telling;             /* member.c: its address, and not before then */
  uint64_t tell_at;
  struct trust *trust; /* trust.h */
  struct lock lock;
  struct host *host; /* sessions with attached processes */
  struct parking parking;

  _Atomic uint64_t durable; /* newest durable sequence number */
  _Atomic int disk_status;
  _Atomic bool settled; /* the database is as of `applied`: start.c */
  _Atomic bool no_room; /* a connection found none; the loop has not heard */
  /* Owned by the worker; before and after it, by who starts and stops. */
  /* Who kept the newest checkpoint from being complete. */
  struct wal_pinner kept;
  bool reserved;                      /* DIR/reserve is there: full.c */
  struct store_checkpoint checkpoint; /* as it is on the disk */
  _Atomic uint64_t shown_checkpoint;  /* its index, for others */
  _Atomic uint64_t fetched_pages;     /* of a snapshot */
};

/* Starts the node of a database whose directory is complete. peers: whom a
   joining node talks to before it has a configuration; else NULL.
   -EWOULDBLOCK: another process hosts it. */
int node_start(const char *path, const struct raft_configuration *peers,
               struct node **out, struct text *error);
/* Ends its threads and connections, after a checkpoint if `clean`. Blocks at
   most a few seconds. node_free() must follow when nothing uses it. */
void node_stop(struct node *node, bool clean);

/* Of a node that cannot start: its lock, its checkpoint, its database and
   -wal, and what the control file tells is confirmed, 0 if nothing. *out must
   be freed in any case. */
int node_open_files(const char *path, struct node **out, raft_index *confirmed,
                    struct text *error);

/* A node of nothing but its path, to be freed; NULL: no memory. */
struct node *node_new(const char *path);
/* Maps its control file. *confirmed is 0 when that tells nothing. */
int node_open_control(struct node *node, raft_index *confirmed,
                      struct text *error);
/* A recovery was cut off between its steps 3 and 7 (recover.c): nothing else may
   be done with the files; *error says what to do. dir: of the database at
   path. */
bool recover_under_way(const char *path, const char *dir, struct text *error);
/* Removes what one that was cut off before or after them has left. */
void recover_clean(const char *dir);

/* The lock that says which process hosts the node of `path`: a descriptor, to
   be given back with node_unlock(); -EWOULDBLOCK and *pid: another has it; or
   another negated errno value and *error says why. */
int node_lock(const char *dir, int *pid, struct text *error);
void node_unlock(int fd);
/* The process that has it, as far as is known; else 0. */
int node_lock_holder(const char *dir);
/* Descriptors 0 to 2 are where programs print, open or not: what comes next gets
   no such number. */
void node_fill_low_descriptors(void);
/* Appends how a damaged node is rebuilt: by itself, or (not able: its identity
   is damaged) by whoever joins again. */
void node_advise(const char *path, const char *name, bool able,
                 struct text *error);

/* Any thread: runs task->run on the loop thread, once. False: it has ended. */
bool node_post(struct node *node, struct task *task);
/* Any thread: wakes the loop. The second with the mutex held. */
void node_wake(struct node *node);
void node_wake_held(struct node *node);

/* Loop thread: one event for raft, and its effects carried out. */
int node_step(struct node *node, struct raft_event *event);
/* Loop thread: agreement on an entry of this node's own making. */
int node_propose(struct node *node, uint8_t type, struct raft_body *body,
                 raft_index *index);

/* Hands a part of a transaction over, with its COMMIT the whole of it, which is
   the head then; takes the reference of body. -1: the grant is gone. */
int node_hand_over(struct node *node, struct transaction *tx, uint8_t type,
                   struct raft_body *body);

/* Loop thread: a fault that this node cannot live with: it stops taking part,
   and says why. */
void node_fail(struct node *node, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The log could not be written or synced, for another reason than want of room:
   the node takes part in nothing until it is started anew. Any thread. */
bool node_log_failed(const struct node *node);
#define NODE_LOG_FAILED                                                        \
  "the log has failed: see quorate_events, then stop and start the node"
/* Loop thread: the applied index moved, or may be able to; or this node got the
   lock. */
void node_progressed(struct node *node);
/* Loop thread: this node may not write any more: what was not sent is rejected,
   and who writes is revoked. all: what other nodes sent goes too. */
void node_lose_grant(struct node *node, bool all);
/* Under the node's mutex: tells a transaction its fate and takes it off the
   list. */
void node_settle(struct node *node, struct transaction *tx,
                 enum tx_state state);
/* Under the node's mutex, or alone: what the loop thread knows of members. */
const struct raft_member *node_member(const struct node *node, raft_id id);
/* A stopped node's files are closed and its locks released: another process may
   start it. Connections may still look at the rest. */
void node_close(struct node *node);
/* Releases everything of a node that is stopped and not in use. */
void node_free(struct node *node);

/* "leader", "follower", "candidate", "learner", "removed", "stopped",
   "failed". */
const char *node_role_name(struct node *node);

/* Says why something was refused: kept for quorate_last_error(). */
void node_reason(struct node *node, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The same with the node's mutex held. Why a node has failed stays: all else
   follows from it. */
void node_keep_reason(struct node *node, const struct text *reason);

/* ---- who writes: writer.c ---------------------------------------------- */

/* Under the node's mutex. Why this node cannot take writes now; NULL: it
   can. */
const char *writer_refusal(const struct node *node);
/* What the queue waits for may have changed: gives the turn to the next. */
void writer_next(struct node *node);
/* The same, and all that wait look anew at why. */
void writer_wake(struct node *node);
/* Transactions came into flight, or landed: `crowded` follows. */
void writer_note(struct node *node);
/* Loop thread, now and then: a turn that is not used is over. */
void writer_tick(struct node *node);
/* The lock is to be given back: those that wait now have their turn before. */
void writer_recall(struct node *node);
/* They have had it. */
bool writer_is_over(const struct node *node);

/* ---- fork(): forks.c; the registry's mutex held --------------------------- */

/* Before: has the loop thread stand still, between two events. */
void forks_ask(struct node *node);
/* Waits until it does, or until `end`: then fork() goes on all the same. */
void forks_wait(struct node *node, const struct timespec *end);
/* After, in the parent. */
void forks_release(struct node *node);
/* After, in the child: closes the copies of its parent's descriptors. */
void forks_abandon(struct node *node);

/* ---- attached processes: host.c ---------------------------------------- */

/* Listens for them, before the loop runs. */
int host_open(struct node *node, struct text *error);
/* Loop thread, now and then. */
void host_tick(struct node *node);
/* Processes that are attached, and sessions of their connections. */
void host_count(struct node *node, unsigned *processes, unsigned *sessions);
/* Loop thread, when the node stops: nobody else is accepted. */
void host_deafen(struct node *node);
/* Ends all sessions, when what they wait for is settled and there is no loop any
   more. Then, at last, the memory. */
void host_close(struct node *node);
void host_free(struct node *node);
/* In a child after fork(): closes the copies. still: the loop thread, which keeps
   the list of sessions, stood still. */
void host_abandon(struct node *node, bool still);

/* ---- the database as of one index: image.c ----------------------------- */

struct image {
  struct wal *wal;
  raft_index index;
  uint32_t n_page;
  struct control_reader reader;
  struct wal_image *newest; /* by page: those that are in -wal */
  uint32_t n_newest;
};
/* Of what is confirmed now; any thread. Until it is closed, what it reads
   stays: in -wal, which does not begin anew meanwhile, or in the database
   file; `who` tells users why. 0 or a negated errno value. */
int image_open(struct wal *wal, const char *who, struct image *image);
/* The same in two steps: the first is quick, the second sorts the frames and
   may be done by another thread; if it fails, the image is closed. */
int image_pin(struct wal *wal, const char *who, struct image *image);
int image_list(struct image *image);
/* It ends when the node stops. */
void image_of_node(struct image *image);
void image_close(struct image *image); /* also of zeros: does nothing */
/* Page pgno, 1 to n_page. One thread at a time. */
int image_read(const struct image *image, uint32_t pgno, uint8_t *page);

/* ---- a copy of the database: backup.c ---------------------------------- */

/* Makes a path absolute, and its directory, which must be there, free of
   symbolic links: in the process that was told it. *path is malloc'd. 0, or a
   negated errno value and *error says why. */
int backup_path(const char *file, char **path, struct text *error);
/* Application threads: makes `file`, an absolute path that must not exist, a
   copy of what is confirmed now. *index is the newest entry in it. 0, -EINTR,
   or another negated errno value and *error says why. */
int backup_run(struct node *node, const char *file,
               const struct interrupt *interrupt, raft_index *index,
               struct text *error);

/* ---- one checksum on all nodes: verify.c ------------------------------- */

/* Application threads: 0, and which nodes agree; -EINTR; or another negated
   errno value and who differs, or why nothing came of it. */
int verify_run(struct node *node, const struct interrupt *interrupt,
               struct text *answer);
/* Loop thread: a setting was applied; is it the start of a verification? */
void verify_apply(struct node *node, const struct raft_entry *entry);
void verify_stop(struct node *node);

/* ---- when a read may begin: reads.c ------------------------------------ */

/* LEVEL_WRITE: linearizable, for one who is going to write; told as a write. */
enum read_level {
  LEVEL_LINEARIZABLE = 0,
  LEVEL_LEASE,
  LEVEL_LOCAL,
  LEVEL_WRITE
};

/* Application threads. Until what is applied may be read at a level, for at
   most wait_ms. SQLITE_OK; SQLITE_BUSY_TIMEOUT or SQLITE_INTERRUPT, and *reason
   says why. interrupt may be NULL. */
int node_barrier(struct node *node, enum read_level level, uint64_t wait_ms,
                 const struct interrupt *interrupt, struct text *reason);
/* The same at level lease, without a wait or a round: whether it may. */
bool reads_leased(const struct control_map *map);
/* Until an entry is applied; *applied: the newest that is. 0, or -EINTR,
   -ETIMEDOUT, -ESHUTDOWN and *reason says why. */
int node_wait_applied(struct node *node, raft_index index, uint64_t wait_ms,
                      const struct interrupt *interrupt, raft_index *applied,
                      struct text *reason);
/* The node's mutex held: one wait for a condition that goes with it, cut short
   now and then to look for an interrupt (NULL: nobody interrupts). 0: look
   again; -ETIMEDOUT: `end` is over; -EINTR. */
int node_wait(struct node *node, pthread_cond_t *cond,
              const struct timespec *end, const struct interrupt *interrupt);

/* Loop thread. The time for raft; false: raft must doubt its clock first. */
bool reads_clock(struct node *node, uint64_t *now);
/* After each step, before its messages are sent. */
void reads_publish(struct node *node);
/* An answer of raft's; true: a next request may be made at once. */
bool reads_take(struct node *node, const struct raft_read_result *result);
/* Asks for all that are not asked for yet; and has the loop do so. */
void reads_ask(struct node *node);
void reads_again(struct node *node);
/* Wakes those whose index is applied. */
void reads_released(struct node *node);
/* A new raft knows no request; a node that ends answers none. */
void reads_begin_raft(struct node *node);
void reads_drop(struct node *node);
void reads_init(struct node *node);

/* ---- interface of node.c to start.c ------------------------------------ */

void node_on_async(uv_async_t *async);
void node_run_tasks(struct node *node);
void node_callbacks(struct node *node, struct net_callbacks *callbacks);
void node_conditions(struct node *node);
void node_begin_loop(struct node *node);
/* Forgets messages that wait for the disk. */
void node_drop_held(struct node *node);
/* A new raft begins with a new log: nothing of the one before is under way. */
void node_begin_raft(struct node *node);

/* Opens the log after the node's checkpoint; fills *recovered. */
int start_log(struct node *node, struct raft_recovered *recovered,
              struct text *error);
/* Makes node->raft of it, in the place of the one before, if any. */
int start_raft(struct node *node, struct raft_recovered *recovered,
               struct text *error);

/* ---- a disk without room: full.c --------------------------------------- */

/* The log failed for want of room. Any thread. */
bool full_log(const struct node *node);
/* A connection found no room in -wal. Any thread. */
void full_noticed(struct node *node);
void full_tick(struct node *node); /* loop */
/* Loop: after each tick of raft, which may have another node lead by the next. */
void full_tell_still(struct node *node);
void full_reopen(struct node *node); /* worker */
/* Worker: makes DIR/reserve, if it is not there and the disk has room for it. */
void full_reserve(struct node *node);
/* Worker: store_checkpoint_write(), if need be in the place of the reserve. */
int full_write_checkpoint(struct node *node,
                          const struct store_checkpoint *checkpoint,
                          char **error);

/* ---- applying: apply.c (loop thread) ----------------------------------- */

/* Goes on applying what is committed and durable. */
void apply_committed(struct node *node);
/* Now and then: has the WAL grown, or has nobody written for a while? */
void apply_tick(struct node *node);
/* One folded transaction: the entries after the checkpoint, up to *to or the
   last one before it that leaves no transaction open: newest image of each
   page. At start, or on the worker while nothing else is applied. Without room
   for it, make_room(), if not NULL, is asked for some, with `most` the *to that
   was asked for, and if that returns 0 it is tried once more. */
int apply_fold(struct node *node, raft_index *to,
               int (*make_room)(struct node *node, raft_index most),
               struct text *error);
/* The same in two steps. The first only reads the log, and brings the node's
   settings and configuration to `to`; the second puts the pages on top of the
   database, at once. */
struct fold;
int apply_collect(struct node *node, raft_index to, struct fold **fold,
                  struct text *error);
int apply_collected(struct node *node, struct fold *fold, struct text *error);
/* What is reached: no transaction is open after it. */
raft_index apply_reaches(const struct fold *fold);
void apply_drop(struct fold *fold); /* NULL: nothing */
/* Decides the fate of in-flight transactions of terms before `term`; of those
   under a grant whose writes after `position` were not taken; of all. */
void apply_reject_before(struct node *node, raft_term term);
void apply_reject_after(struct node *node, const struct grant *grant,
                        uint64_t position);
void apply_reject_all(struct node *node);
/* Any thread: a transaction of an earlier host of this node was applied. */
bool apply_knows(struct node *node, uint64_t sequence);
/* The same, left in the slots of those who have not asked yet: before a
   checkpoint covers it, or a snapshot, from where no host finds it in the log.
   Any thread. */
void apply_leave_word(struct node *node);
/* Worker: applies the open parts. */
void apply_large(struct node *node);

/* ---- checkpoints: checkpoint.c (worker) -------------------------------- */

void *worker_main(void *node);
/* One checkpoint. -EBUSY: a reader keeps some of it from being copied. */
int checkpoint_run(struct node *node);
/* Before any thread runs: what is in -wal, which is of no entry after `most`, goes
   into the database file, and -wal begins anew. What the checkpoint is of stays:
   the next start applies the log from there, at least to `most`. */
int checkpoint_at_start(struct node *node, raft_index most);
/* A bound in frames, lowered so that large pages do not make a long WAL. */
uint32_t checkpoint_bound(const struct node *node, uint32_t frames);
/* Loop thread, now and then: what the log need not keep goes. */
void checkpoint_compact(struct node *node);
/* Any thread: has one made now, and a new WAL if that is possible. Bounded;
   *answer says what became of it. 0, -EINTR or another negated errno. */
int checkpoint_now(struct node *node, const struct interrupt *interrupt,
                   struct text *answer);

/* Worker: the file `peers` names the members as they are now: peers.c. */
void peers_keep(struct node *node);

/* ---- snapshots: snapshot.c, fetch.c (loop thread) ----------------------- */

/* Offers one to a peer that needs entries which the log no longer has. */
void snapshot_send(struct node *node, raft_id peer);
/* A new connection to it: should it have been started anew, it knows nothing of
   the snapshot that it was taking. */
void snapshot_peer_up(struct node *node, raft_id peer);
/* A request of its kinds: answers it, now or later. False: another kind. */
bool snapshot_request(struct node *node, raft_id from, const uint8_t *body,
                      size_t len, struct net_request *request);
/* Now and then: forgets those that nobody fetches. */
void snapshot_tick(struct node *node);
/* Whoever takes one needs the entries after it next, up to index at least. */
bool snapshot_needs(const struct node *node, raft_index index);
void snapshot_close(struct node *node);
/* Goes on with the one that is being taken; or forgets it, and if the log seems
   to go on without it, tells who gives it. */
void fetch_tick(struct node *node);
void fetch_drop(struct node *node);
void fetch_needless(struct node *node);
/* At the end, when there is no worker any more. */
void fetch_close(struct node *node);
/* Worker: installs it. */
void fetch_install(struct node *node);
/* The pages of an installed snapshot that are not in the database file yet, to
   the open append. *n_page: of the database after it; 0: it is set. When they
   are in the database file, their file goes. */
int fetch_append(struct node *node, uint32_t *n_page, struct text *error);
void fetch_forget(struct node *node, raft_index index);
/* Removes what else earlier transfers have left. */
void fetch_clean(struct node *node, const struct store_checkpoint *cp);

/* ---- the log, as a list: entries.c ---------------------------------------- */

/* Application threads: node->store, which stays open until it is released; NULL:
   it is closed. */
struct store *entries_hold(struct node *node);
void entries_release(struct node *node);
/* Takes node->store away and closes it, when nobody holds it. */
void entries_close(struct node *node);

/* ---- numbers: metrics.c -------------------------------------------------- */

struct metrics *metrics_new(void); /* NULL: no memory */
void metrics_free(struct metrics *metrics);
/* Loop thread, now and then; and when node->view has changed. */
void metrics_tick(struct node *node);
void metrics_note(struct node *node, const struct node_view *was);
/* The control file is there: reads are counted in it, by connections. */
void metrics_begin(struct node *node);

/* ---- what others have: heard.c ------------------------------------------ */

/* At the start, when the control file is open. */
void heard_begin(struct node *node);
/* Loop thread: a message came in, which may tell it. */
void heard_message(struct node *node, const struct raft_message *message);
/* The newest that was noted, of nodes of this cluster; false: nothing was. */
bool heard_newest(const struct control_heard heard[2], uint64_t cluster,
                  struct control_heard *out);

/* ---- membership and requests between nodes: cluster.c ------------------ */

int cluster_bootstrap(const char *path, int argc, const char *const *options,
                      struct text *answer);
int cluster_join(const char *path, const char *token, int argc,
                 const char *const *options, const struct interrupt *interrupt,
                 struct text *answer);
/* Brings a node back that cannot start, or whose joining was not finished, with
   what the others have: rebuild.c. 0 or -1. */
int cluster_rebuild(const char *path, int argc, const char *const *options,
                    const struct interrupt *interrupt, struct text *answer);
/* Application threads: a token for one node, as RAFT_VOTER or RAFT_LEARNER; and
   takes it back, *line: what came of it. 0, or -1 and why not. */
int cluster_invite(struct node *node, const char *name, uint8_t role,
                   char **token, struct text *error);
int cluster_uninvite(struct node *node, const char *name, struct text *line);
/* Does leadership follow the writer? A setting of the cluster. Application
   threads set it: 0, or -1 and why not; who asks has the node's mutex, or is the
   loop thread. */
int cluster_follow_writer(struct node *node, bool follow, struct text *error);
bool cluster_follows_writer(const struct node *node);
void cluster_request(void *node, raft_id from, const uint8_t *body, size_t len,
                     struct net_request *request);
/* Loop thread, now and then: joins, promotions, addresses. */
void cluster_tick(struct node *node);
/* Loop thread, at the end: answers what still waits. */
void cluster_close(struct node *node);

/* ---- who belongs to the cluster: member.c ------------------------------- */

/* A configuration is applied, in the place of node->configuration, by whoever
   has the mutex: who is not in it is revoked. 0, or -ENOMEM. */
int member_apply(struct node *node, const struct raft_configuration *next,
                 raft_index index);
/* Loop thread: what was applied since takes effect on connections, and on this
   node, should it be out. */
void member_look(struct node *node);
/* At start: the settings may tell that this node was removed. */
void member_begin(struct node *node);
/* For net/. */
enum net_verdict member_verdict(void *node, raft_id peer, char *why,
                                size_t size);
void member_refused(void *node, raft_id peer, unsigned code, const char *text);
void member_name(void *node, raft_id peer, char name[RAFT_NAME_MAX]);

struct member_row {
  char name[RAFT_NAME_MAX], address[RAFT_ADDRESS_MAX];
  raft_id id;
  uint8_t role;
  char state[16];
  bool known; /* match, lag and contact are */
  raft_index match;
  uint64_t lag_entries;
  int64_t contact_ms;     /* since the last contact; -1: unknown */
  int64_t expires;        /* end of its certificate, s since 1970; 0: unknown */
  uint64_t lag_ms;        /* for how long it has lacked entries */
  uint32_t round_trip_us; /* from the leader; 0: unknown */
};
/* The members, as the leader sees them if it answers in time. 0, -EINTR,
   -ENOMEM. */
int cluster_members(struct node *node, const struct interrupt *interrupt,
                    struct member_row **rows, unsigned *n);

#endif
