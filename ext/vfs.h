/*
** vfs.h: the VFS "quorate", and what SQL functions know of a connection.
*/
#ifndef EXT_VFS_H
#define EXT_VFS_H

#include "database.h"
#include "session.h"

#include <sqlite3ext.h>

/* How a connection's snapshot, which SQLite asks for by a READ lock, is given:
   nothing yet; the private index was just filled, and SQLite must come back;
   granted. See vfs_shm_lock() in shm.c. */
enum read_state { READ_NONE = 0, READ_RETRY, READ_GRANTED };

/* Its session with a host in another process: attach.c. */
struct client {
  struct client *next; /* of its database's */
  int fd;              /* -1: none */
  uint64_t host;       /* which start of the host it was made with */
  struct session_buffer *buffer;
};

/*
** An open database file of a node: the sqlite3_file that SQLite sees, followed
** by the file of the VFS below. It belongs to one connection, and is used by
** one thread at a time (SQLite's own mutexes see to that).
*/
struct connection {
  sqlite3_file base;
  struct opened opened;
  unsigned forks; /* registry_forks when it was opened */
  struct database *database;
  struct node *node; /* that runs in this process; NULL: in another one */
  struct client client;
  struct control_map *map; /* the database's */
  uint32_t page_size;
  sqlite3_file *real;
  uint64_t files[2]; /* what was opened, enum control_file; 0: not known */
  bool fence_seen;   /* the file has the node's fence, in this transaction */
  sqlite3 **db;      /* SQLITE_FCNTL_PDB: with a shared cache it changes */
  void **busy;       /* SQLITE_FCNTL_BUSYHANDLER: a function and its argument */

  enum read_level level;
  unsigned write_wait; /* ms */
  struct text reason;
  uint64_t refused_read, refused_write; /* ms; when a wait was in vain */

  /* the private wal-index */
  struct walindex index;
  uint64_t generation;
  uint32_t valid; /* frames up to here are those of the WAL */
  uint32_t sure;  /* and up to here confirmed; the others while */
  uint64_t shown; /* this is the WAL's epoch */
  bool spoiled;   /* there may be others above */
  /* The transaction that it shows: a confirmed one, or the head for a
     connection whose turn it is to write. The header in the index itself
     may differ in the chain of checksums: SQLite's own, over a page 1 that
     says 2 (capture.c). */
  struct walindex_header given;

  /* the read transaction */
  enum read_state read_state;
  int barriers_left; /* xShmBarrier calls until the retry is a new try */
  struct control_reader reader;
  bool ahead; /* the snapshot is a head that was not confirmed yet */

  /* the write transaction */
  struct write_place place;
  bool looks;    /* at what the node is like: its reads are not counted */
  bool reserved; /* its turn has come; the WRITE lock is not taken yet */
  bool kept;     /* it may read data first, and keep the turn for a while */
  bool stale;    /* it wanted to write when it was too late */
  bool writing;
  uint64_t epoch;
  struct grant grant;
  struct walindex_header before; /* the header in the index at the grant */
  uint32_t *pending; /* page numbers of frames given.mx_frame + 1 ... */
  uint32_t n_pending, cap_pending;
  uint32_t blank;  /* the first of them whose header was ever without salts */
  uint8_t *copies; /* the first few of these frames, as they are in -wal */
  uint32_t cap_copies;
  uint32_t headed;        /* a frame whose header waits for its page; 0: none */
  uint32_t chained;       /* so many were written with their checksums right, or
                        UINT32_MAX: some were written over since */
  uint32_t chain[2];      /* of the last of them */
  bool diverged;          /* SQLite's chain is another */
  struct transaction *tx; /* handed over, fate not yet told */
  bool sent;              /* the same, to a host in another process */
  int fault;              /* or why that could not be tried */
  int draft; /* there: pages that are not among the copies; -1: none */
  uint32_t end, end_n_page; /* the newest commit frame, and what it says */

  /* For a connection of another process, which this one stands for: whether it
     wants to be interrupted. */
  bool (*interrupted)(struct connection *connection);
  /* And who is told, again and again, that its transaction is being taken over,
     however long that takes. */
  void (*working)(struct connection *connection);
  struct control_slot *slot; /* of that one */
};

/* Registers the VFS as the default; harmless when it is there already. */
int vfs_register(void);
/* A URI parameter that would go around the node, or NULL. */
const char *vfs_forbidden(const char *name);
/* A file that the VFS below has open, without a lock, becomes a connection: the
   reference to the database is then its. An SQLite result code; after an error
   what `c` points to is not a file. */
int vfs_become(struct connection *c, struct database *database,
               const char *name, sqlite3_file *real);
/* The connection behind a schema of a database handle, or NULL. */
struct connection *vfs_connection(sqlite3 *db, const char *schema);
/* What it opened is what the node has. If not, something was removed or replaced
   while the node ran: it would read what is not the node's, and write past it. */
bool vfs_has_files(struct connection *connection);
/* In the first phase of a commit: it has a super-journal, as one over two or more
   databases has that are not in WAL mode. What the second phase says of any is
   ignored then. */
bool vfs_has_super_journal(void);
/* SQLITE_CANTOPEN, and the reason. */
int vfs_refuse_files(struct connection *connection);
/* Before it begins something: where the node is now. */
void vfs_locate(struct connection *connection);
/* It has a slot in the control file, from here on until it is closed. False: all
   are taken. */
bool vfs_enter(struct connection *connection);
/* It was opened before a fork(), by the parent of this process. Of what stands
   behind it there are only copies, and what is shared is the parent's: it can be
   closed, and nothing else. */
static inline bool vfs_inherited(const struct connection *connection)
{
  return connection->forks != registry_forks;
}
/* VFS_INHERITED, and the reason. */
int vfs_refuse_inherited(struct connection *connection);
/* c->reason is also the node's, if that is here. */
void vfs_say(struct connection *connection);
/* The VFS that was the default; and a path as SQLite gives it to xOpen,
   malloc'd, NULL when it cannot be one. */
const char *vfs_below_name(void);
char *vfs_absolute(const char *path);
/* Bytes 18 and 19 of a database's header, write and read version; the first set
   for good in a database in WAL mode. By the VFS below, which knows what this
   process has locked: a plain close(2) would drop all of these locks. False:
   no database, or it failed. */
bool vfs_read_versions(const char *path, uint8_t versions[2]);
bool vfs_write_version(const char *path, uint8_t version);
bool vfs_parse_level(const char *text, enum read_level *level);

/* ---- auto.c: QUORATE_AUTO, for tests -------------------------------------- */

/* Whether the environment asks for it; once, when the VFS is registered. Never
   in a program that has more rights than who runs it. */
void auto_learn(void);
/* Before a database is opened that has no directory. A copy of a node's file
   becomes a node here, and is then opened as one. */
enum auto_kind { AUTO_OTHER, AUTO_YOUNG };
enum auto_kind auto_look(const char *name, int flags);
/* The file was opened by the VFS below and is to become a node by its first
   commit. */
void auto_begin(sqlite3_file *file, const char *name, sqlite3_file *real);

/* ---- interrupt.c ------------------------------------------------------- */

/* Before there is a connection, once whoever calls: learns how to tell. It opens
   a connection itself, and so may come back here through an automatic
   extension: no lock may be held. */
void interrupt_learn(void);
/* Whether sqlite3_interrupt() was called on the handle of a struct connection,
   for `raised` of a struct interrupt. It calls nothing of SQLite and may be
   asked anywhere, under any lock. Always false if that cannot be told. */
bool vfs_interrupted(void *connection);

/* ---- shm.c ------------------------------------------------------------- */

int vfs_shm_map(sqlite3_file *file, int region, int size, int extend,
                void volatile **out);
int vfs_shm_lock(sqlite3_file *file, int offset, int n, int flags);
void vfs_shm_barrier(sqlite3_file *file);
int vfs_shm_unmap(sqlite3_file *file, int delete_it);

/* The turn to write was not used, or is over, wherever the node is. */
void vfs_leave(struct connection *connection);

/* ---- writer.c ---------------------------------------------------------- */

/* Waits, driven by the connection's busy handler, until it is its turn to
   write. SQLITE_OK, and it is reserved; or SQLITE_BUSY_TIMEOUT, SQLITE_FULL. */
int writer_take(struct connection *connection);
/* For one whose upgrade came too late: a turn with nothing in flight, so that
   the next upgrade finds its snapshot the newest; or no turn, after a while. */
int writer_take_drained(struct connection *connection);
/* The turn was not used, or is over. */
void writer_leave(struct connection *connection);
/* What became of a transaction of this node under an earlier host: waits, for at
   most `ms`, until the node may write, and so has applied everything that was
   written before. SQLITE_OK, VFS_REJECTED, VFS_UNKNOWN. */
int writer_resolve(struct connection *connection, uint64_t sequence,
                   unsigned ms);
/* The WRITE lock. SQLITE_BUSY_SNAPSHOT: what it reads is not the head. */
int writer_begin(struct connection *connection);
/* xSleep: waits for the turn instead, if this thread wants one. False: sleep
   as ever. */
bool writer_sleep(int us);
/* This thread has slept. */
void writer_slept(void);
/* How long the connection waits now, ms. SQLite's busy handler asks again and
   again: only the first time, and not soon after it was refused, is waited for
   at length, or the two would multiply. */
unsigned writer_patience(const struct connection *connection, uint64_t refused,
                         unsigned least);

/* ---- capture.c --------------------------------------------------------- */

/* The WRITE lock was given: nothing is written yet. */
void capture_begin(struct connection *connection);
/* A transaction of another process, as if this connection, which stands for that
   one, had written it after writer_begin(): `count` frames, the page numbers in
   order, the pages as page() gives them, 0 or a negative errno value. SQLITE_OK:
   it is as after capture_finish(), and capture_wait() tells its fate. Else it was
   handed over to nobody, and is rolled back; there may be a reason. */
int capture_for(struct connection *connection, uint32_t count, uint32_t n_page,
                const uint32_t *pgnos,
                int (*page)(void *ctx, uint32_t i, uint8_t *data), void *ctx);
/* A frame (or a part of one) is written to -wal by SQLite. */
int capture_write(struct connection *connection, sqlite3_file *real,
                  const void *data, int n, sqlite3_int64 offset);
int capture_read(struct connection *connection, sqlite3_file *real, void *data,
                 int n, sqlite3_int64 offset);
/* The write lock is given back: hands over what was committed. */
void capture_finish(struct connection *connection);
/* COMMIT's second phase: waits for the fate. An SQLite result code. */
int capture_wait(struct connection *connection);
/* It is closed, and nobody asks for a fate: SQLite gave up on a commit over
   several databases between its phases, and this one had gone ahead. */
void capture_drop(struct connection *connection);
/* True when the write grant of this connection, or the head that it reads, is
   gone. */
bool capture_revoked(struct connection *connection);
/* SQLITE_OK, or why not, as for a write. */
int capture_may_write(struct connection *connection);
/* Before a page is read: a head that was not confirmed is for writing on it,
   whoever reads waits until it is. SQLITE_OK, or that it never will be. */
int capture_may_read(struct connection *connection);

/* The extended code of a transaction that was not committed, and of one whose
   fate is not known yet. */
#define VFS_REJECTED SQLITE_IOERR_COMMIT_ATOMIC
#define VFS_UNKNOWN SQLITE_IOERR_ROLLBACK_ATOMIC
/* It is the parent's: vfs_inherited(). */
#define VFS_INHERITED SQLITE_IOERR_SHMLOCK
/* Nothing was done, and the node has another host: begin anew. */
#define VFS_MOVED (-1)
#define VFS_MOVES 20 /* one after the other, that are followed */

#endif
