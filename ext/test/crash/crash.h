/*
** crash.h: what a loss of power may leave of a node, tried out.
**
** One process runs a workload; every change that it makes to files is written
** down (record.c), whoever makes it: a node through struct io, SQLite through
** its VFS, or a plain call. A second one plays the record back up to some
** operation, and makes a state that the disk could be in if power were lost
** at that moment, or the process killed (disk.c). A third one starts the nodes
** on that state and looks at them (check.c). crash.c is the program.
**
** This header is divided by the file that the code is in.
*/
#ifndef TEST_CRASH_H
#define TEST_CRASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NODES_MAX 3
#define CRASH_PATH 512

/* Of the whole program: one line, and the end. */
void die(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

/* splitmix64 */
uint64_t random_next(uint64_t *state);
static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
  return n ? random_next(state) % n : 0;
}

/* ---- record.c: what was done to files, in order of time ---------------- */

enum op_kind {
  OP_OPEN = 1, /* file: its number from now on; a: flags; text: path */
  OP_WRITE,    /* a: offset; data */
  OP_SIZE,     /* a: new size */
  OP_SYNC,     /* a file, or a directory */
  OP_RENAME,   /* text: from; data: to, with its zero */
  OP_UNLINK,
  OP_MKDIR,
  OP_RMDIR,
  OP_POWER, /* power was lost; a: seed of the state that was left */
  OP_MARK   /* nothing was done to files; mark, a, b, text */
};

/* What the application knows. `a` is the number of a transaction, `b` a digest
   of everything in the database after it. */
enum mark {
  MARK_NOTE = 1,
  MARK_BEGIN,   /* its COMMIT is executed next */
  MARK_ACK,     /* and has returned success */
  MARK_SETTLED, /* the state that was found, after a start or a doubtful end */
  MARK_MEMBER,  /* a: number of a node that is a member from now on */
  MARK_INVITE,  /* a: so many invitations were asked for */
  MARK_INVITED, /* a: so many were given */
  MARK_COURSE,  /* a: a node, b: its course, until it is a member (again) */
  MARK_PHASE    /* a new process begins */
};

/* What changes a node's files in several steps, and may be called again after a
   cut at any of them. */
enum course {
  COURSE_NONE,
  COURSE_DETACH, /* its file becomes ordinary, is written, and a node's again */
  COURSE_RECOVER, /* the node becomes that of a new cluster */
  COURSE_REBUILD  /* it cannot start, and gets all from the others */
};

struct op {
  uint32_t bytes; /* of the whole record, a multiple of 8 */
  uint8_t kind, mark;
  uint16_t n_text; /* with its zero */
  uint32_t file;
  uint32_t n_data;
  uint64_t a, b;
  char text[]; /* then, at a multiple of 8, the data */
};

struct record {
  uint64_t used, cap; /* bytes of ops */
  uint64_t n;         /* operations */
  uint32_t files;
  uint32_t nodes;
  uint64_t seed;
  char root[CRASH_PATH]; /* paths are relative to it; ends in / */
  uint8_t ops[];
};

/* A new record in a file, shared with children; or one that was kept. */
struct record *record_new(const char *path, const char *root);
struct record *record_load(const char *path);
static inline const uint8_t *op_data(const struct op *op)
{
  return (const uint8_t *)op->text + ((op->n_text + 7u) & ~7u);
}
/* Calls of this process are written down from now on; NULL: no more. */
void record_to(struct record *record);
void record_mark(enum mark mark, uint64_t a, uint64_t b, const char *text);
void record_power(struct record *record, uint64_t seed);
/* The process ends here, between two operations, as if killed; or after so many
   more of them. */
void record_kill(void) __attribute__((noreturn));
void record_kill_after(uint64_t operations);
/* Calls on files, as far as they are made to fail (test/fault). */
enum call {
  CALL_OPEN,
  CALL_READ,
  CALL_WRITE,
  CALL_TRUNCATE,
  CALL_SYNC,
  CALL_SIZE,
  CALL_MAP,
  CALL_RENAME,
  CALL_UNLINK,
  CALL_MKDIR,
  CALL_LIST
};
/* Asked before each of them, one at a time. The file is `path`, from directory
   fd on, or (NULL) an open one; flags: of open(2),
   or how many bytes are written. An errno value: the call
   fails with it and nothing is done; 0: it is made. */
typedef int fault_fn(enum call call, int fd, const char *path, int flags);
/* NULL: no more. */
void record_faults(fault_fn *fault);
/* Network ports are this process's own: see bind() in record.c. */
unsigned record_port(unsigned port);
void record_free(struct record *record);
/* One line for people; name: of its file, or NULL. */
void op_print(const struct op *op, uint64_t number, const char *name);

/* ---- disk.c: what is on the platter ------------------------------------ */

struct disk;
struct disk *disk_new(const struct record *record);
void disk_free(struct disk *disk);
/* Plays the record back up to (not with) operation `n`. */
void disk_play(struct disk *disk, uint64_t n);

/* What happened to each node's machine: bytes and names have a fate of their
   own. */
enum fate {
  FATE_KILLED,   /* the process died, the cache lives on */
  FATE_KEPT,     /* power was lost, everything had been written back */
  FATE_LOST,     /* nothing that was not synced */
  FATE_RANDOM,   /* each sector by itself */
  FATE_EARLIER,  /* only what came before some moment */
  FATE_LATER,    /* only what came after it */
  FATE_ONE_LOST, /* of one kind of file nothing, of others everything */
  FATE_ONE_KEPT, /* the reverse */
  FATES
};
extern const char *const fate_names[FATES];

/* A state of all files, made of a disk and a seed. */
struct state;
/* only: the fate of every node, or -1: as the seed has it. */
struct state *state_make(const struct disk *disk, uint64_t seed, int only);
void state_free(struct state *state);
uint64_t state_hash(const struct state *state);
/* Writes it to directory `root`, which is emptied first. */
void state_write(const struct state *state, const char *root);
/* What was lost, for people. */
void state_print(const struct state *state);
/* Makes it what is on the platter: power has come back. */
void disk_restart(struct disk *disk, const struct state *state);
/* Removes everything in a directory, and it too if `self`. */
void remove_tree(const char *root, bool self);

/* What the application knew at a moment. */
struct known {
  bool any;           /* a transaction was ever acknowledged */
  uint64_t n, digest; /* the newest that is certain */
  bool pending;       /* one more may be there */
  uint64_t pending_n, pending_digest;
  bool member[NODES_MAX + 1];
  enum course course;        /* that is under way */
  unsigned course_of;        /* with that node */
  uint64_t invites, invited; /* asked for, the last; given, how many */
  uint64_t *history;         /* digests by number; 0: unknown */
  uint64_t n_history;
};
const struct known *disk_known(const struct disk *disk);

/* ---- world.c: nodes in this process ------------------------------------ */

/* What a record is made with, and what checks use. */
struct world {
  const char *root; /* ends in / */
  unsigned nodes;
  struct sqlite3 *db[NODES_MAX + 1];   /* from 1; NULL: not open */
  struct sqlite3 *side[NODES_MAX + 1]; /* another connection, reading */
};

/* Once per program: limits that make everything frequent, the extension. */
void world_setup(void);
void world_path(const struct world *world, unsigned node, char out[CRASH_PATH]);
/* NULL, or why not; in *error at most `size` bytes. */
bool world_open(struct world *world, unsigned node, char *error, size_t size);
struct node *world_node(struct world *world, unsigned node);
/* Closes its connections; and stops it, or drops it as it is. */
void world_close(struct world *world, unsigned node);
bool world_stop(struct world *world, unsigned node, bool clean);
/* Waits for a leader that takes writes; its number, or 0. */
unsigned world_leader(struct world *world, unsigned ms);
/* With a format of sqlite3_mprintf(). An SQLite result code. */
int world_exec(struct sqlite3 *db, const char *format, ...);
/* The number of the newest transaction and a digest of everything; an SQLite
   error otherwise. */
int world_digest(struct sqlite3 *db, uint64_t *n, uint64_t *digest);

/* ---- course.c: what takes several steps ---------------------------------- */

/* Makes the first node, of the file that is there, if any. */
bool course_bootstrap(const struct world *world, char *error, size_t size);
/* Without its key a node does not start: it is there again, or away. */
void course_key(const struct world *world, unsigned node, bool away);
/* Nor without a file that is not whole. */
bool course_damage(const struct world *world, unsigned node, const char *name);
/* Of a database that had the name of a node to be: a -wal that was forgotten. */
void course_leave_wal(const struct world *world, unsigned node);
/* Calls the function that it is about, for the first time or again. */
bool course_call(const struct world *world, unsigned node, enum course course,
                 char *error, size_t size);
/* Is the file a stock program's to write? */
bool course_is_ordinary(const struct world *world, unsigned node);
/* world_open(), after all that is left to do of a course; ask: the function is
   called again also where another does its rest. */
bool course_open(struct world *world, unsigned node, enum course course,
                 bool ask, char *error, size_t size);

/* ---- workload.c: what is recorded -------------------------------------- */

/* How a process of the workload ends. */
enum phase_end { END_CLEAN = 0, END_KILL, END_POWER };

struct phase {
  const char *root;
  unsigned nodes, number, transactions;
  uint64_t seed;
  enum phase_end end;
  const struct known *known; /* before it */
};
/* In a process of its own, which it ends: with 0, or 1 and why. */
void workload_run(const struct phase *phase) __attribute__((noreturn));

/* ---- check.c: one state ------------------------------------------------ */

struct check {
  const char *root; /* where the state is */
  unsigned nodes;
  const struct known *known;
  uint64_t seed;
  char *why;
  size_t size;
};
/* In a process of its own. True, or false and why. */
bool check_state(const struct check *check);
/* The same of nodes that run in this process; what is there afterwards, too. */
bool check_running(const struct check *check, const struct world *world,
                   uint64_t *n, uint64_t *digest);

#endif
