/*
** control.h: what the processes of a node share: the files "control" and
** "frames" in its directory, mapped.
**
** The process that runs the node (the host) writes here what its database is at
** the moment, and every connection of every process reads by that: it needs
** nobody's help to begin and to end a read transaction. control.c has the
** layout and the rules.
**
** Little-endian hosts only. All processes of a node run on one machine; what a
** machine that was booted anew finds here tells nothing.
*/
#ifndef EXT_CONTROL_H
#define EXT_CONTROL_H

#include "io.h"
#include "raft.h"
#include "walindex.h"

#include <stdatomic.h>
#include <time.h>

#define CONTROL_MAGIC "quorate control"
#define CONTROL_SLOTS 4096u
#define CONTROL_PROCESSES 1024u
#define CONTROL_BLOCK 65536u /* frames in a block of page numbers */
#define CONTROL_BLOCKS 4096u
#define CONTROL_SENT UINT64_MAX
#define CONTROL_UNSURE UINT64_MAX

/* The database at one moment, as wal.c has it. */
struct control_view {
  uint64_t generation; /* of the WAL */
  uint64_t epoch;
  raft_index confirmed_index; /* newest entry that is published */
  uint32_t page_size;
  uint32_t backfill; /* frames that are in the database file */
  uint32_t closed;   /* detached: nothing more is read through the node */
  uint32_t unused;
  struct walindex_header confirmed, head;
};
#define CONTROL_WORDS (sizeof(struct control_view) / 8)
_Static_assert(sizeof(struct control_view) == 136, "whole words");

/* How the checkpointer gets a moment in which nothing is written: checkpoint.c.
 */
enum hold { HOLD_NONE = 0, HOLD_WRITERS, HOLD_ALL };

/* Files of a node that its connections open by their names. */
enum control_file { CONTROL_DATABASE, CONTROL_WAL };

#define CONTROL_WHO 36 /* bytes */

/* A reader: a connection, or an image of the node's. */
struct control_slot {
  _Atomic uint32_t owner; /* number of its process; 0: free */
  _Atomic bool of_node;   /* an image's: it ends when the node stops */
  _Atomic uint64_t pin;   /* the snapshot in use; 0: none */
  _Atomic uint64_t index; /* the newest entry in it; 0: not known */
  _Atomic int32_t pid;
  /* What an image serves, for users, and zeros; empty: a connection's. */
  _Atomic uint32_t who[CONTROL_WHO / 4];
  /* Of another process's connection: its newest transaction, by its number, 0:
     none, CONTROL_SENT: the host has it, but nobody's log yet; and the same
     number if that was seen to be committed, CONTROL_UNSURE: it may be in a
     snapshot that came since. */
  _Atomic uint64_t handed, committed;
  /* Read transactions of its connections, of all that ever had it, by level:
     they are the slot's own, and nobody's time. */
  _Atomic uint64_t reads[3];
  uint64_t unused[3];
};
_Static_assert(sizeof(struct control_slot) == 128, "two lines of a cache");

/* The newest entry that this node knows another one to have: heard.c. */
struct control_heard {
  uint64_t checksum; /* XXH3-64 of the rest; else it is torn */
  uint64_t cluster;
  raft_id id; /* who has it */
  raft_index index;
  raft_term term;
  int64_t time_ms; /* of the calendar, when it was heard */
  char name[RAFT_NAME_MAX];
};
_Static_assert(sizeof(struct control_heard) == 112, "no padding");

/* The file "control". */
struct control {
  char magic[16];
  char boot[40]; /* /proc/sys/kernel/random/boot_id when it was written */
  _Atomic uint64_t confirmed; /* frames of this entry may be recovered */
  _Atomic uint64_t version;   /* of what follows: its lowest bit says which */
  _Atomic uint64_t views[2][CONTROL_WORDS];
  _Atomic uint64_t epoch;      /* as in the view, to be looked at alone */
  _Atomic uint32_t slots_used; /* no slot from here on was ever taken */
  _Atomic uint32_t hold;       /* enum hold: who must wait for a new WAL */
  _Atomic uint32_t unpinned;   /* moves when somebody unpins meanwhile */
  _Atomic uint32_t election_ms;
  _Atomic bool led;     /* a leader is known */
  _Atomic bool near;    /* a quorum was heard of just now, or the leader */
  _Atomic bool crowded; /* a writer would have to wait, or build on others */
  _Atomic bool serving; /* what is applied is fit to be read locally */
  _Atomic bool solo;    /* leader of a one-voter cluster: reads need no round */
  /* A lease of this node as the leader: until when, in ms of CLOCK_BOOTTIME, 0:
     none; and the commit index, known to nobody before it is here. */
  _Atomic uint64_t lease_until, lease_commit;
  /* The newest sequence number that a host gave a transaction. */
  _Atomic uint64_t sequence;
  /* What the host has open, enum control_file: control_named() of it; 0: it is
     not known. */
  _Atomic uint64_t files[2];
  /* Of the host's loop alone, one after the other: one of them is whole. */
  struct {
    _Alignas(512) struct control_heard it;
  } heard[2];
  _Alignas(4096) struct control_slot slots[CONTROL_SLOTS];
};
_Static_assert(offsetof(struct control, confirmed) == 56, "as it ever was");
_Static_assert(sizeof(struct control) == 4096 + 128 * CONTROL_SLOTS, "control");

/* This process's mapping of both files: one for each node, however many ask. */
struct control_map {
  struct control_map *next;
  unsigned refs;
  const struct io *io;
  int fd, frames_fd;
  uint64_t device, inode;
  uint32_t number; /* of this process among those of the node; from 1 */
  struct control *control;
  _Atomic(_Atomic uint32_t *) blocks[CONTROL_BLOCKS];
};

/*
** Maps the files in a directory, made if need be; NULL: files without a name,
** for a database without a directory. create: the caller is the host, or about
** to be. Any thread. 0 or a negated errno value; -EUSERS: too many processes;
** -ENOENT, -ESTALE: a host is making them.
*/
int control_open(const struct io *io, const char *dir, bool create,
                 struct control_map **out);
/* Registers what is done at fork(). For whoever does something himself there, and
   has a mutex under which maps are opened: before that, so that fork() takes the
   two mutexes in the same order. */
void control_watch_forks(void);
struct control_map *control_ref(struct control_map *map);
void control_close(struct control_map *map); /* NULL: nothing */
/* The newest entry that was confirmed since the machine booted; 0: none. For
   the host, before it shows anything. */
raft_index control_begin(struct control_map *map);
/* What the file tells who only looks, whether there is a host or not: nothing
   is changed or locked. 0, or a negated errno value and all is zero. */
struct control_peek {
  raft_index confirmed; /* as control_begin() tells it */
  bool led;             /* when the host last wrote it */
  struct control_heard heard[2];
};
int control_peek(const struct io *io, const char *dir,
                 struct control_peek *peek);

/* The host: this is the file that it has open. */
void control_note_file(struct control_map *map, enum control_file which,
                       int fd);
/* A number for the file that has this name now, by its device and inode, or for
   none; never 0. */
uint64_t control_named(const char *path);

/* ---- the view ---------------------------------------------------------- */

/* The host: shows another one. One thread at a time. */
void control_show(struct control_map *map, const struct control_view *view);
/* Any thread: what is shown now; its version. */
uint64_t control_look(const struct control_map *map, struct control_view *view);

/* ---- a moment without readers ------------------------------------------ */

/* The host. */
void control_set_hold(struct control_map *map, enum hold hold);
/* Whoever reads: waits while all are held back, until `end` of the monotonic
   clock. False: they still are. */
bool control_wait_hold(const struct control_map *map,
                       const struct timespec *end);
/* The host: waits until somebody unpins, who were `unpinned` before. False: it
   is past `end`. */
bool control_wait_unpinned(const struct control_map *map, uint32_t unpinned,
                           const struct timespec *end);

/* ---- page numbers of frames -------------------------------------------- */

/* The host, before it shows them. 0 or a negated errno value. */
int control_set_pgno(struct control_map *map, uint32_t frame, uint32_t pgno);
/* Of a frame at or below a snapshot that was looked at; 0: cannot be read. Those
   above what is confirmed may change when the epoch moves. */
uint32_t control_pgno(const struct control_map *map, uint32_t frame);

/* ---- readers ----------------------------------------------------------- */

/* A snapshot in use. */
struct control_reader {
  struct control_slot *slot; /* NULL: none was taken yet */
  uint64_t generation;
  uint32_t frame;
  bool uses_wal; /* false: everything it reads is in the database file */
};

/* A slot, before anything is pinned; it is kept until control_leave(). who: what
   an image of the node's serves; NULL: a connection's. 0, or -EUSERS: all are
   taken. */
int control_enter(struct control_map *map, const char *who,
                  struct control_reader *reader);
void control_leave(struct control_reader *reader);
/* Takes what is confirmed now as the reader's snapshot, or the head for who may
   write. Until it is unpinned, no checkpoint and no new WAL takes anything of
   it away. */
void control_pin(struct control_map *map, struct control_reader *reader,
                 bool head, struct control_view *view);
void control_unpin(struct control_map *map, struct control_reader *reader);
static inline bool control_pinned(const struct control_reader *reader)
{
  return reader->slot && atomic_load(&reader->slot->pin) != 0;
}

/* The host. What others have pinned, slot by slot: false at the end. *i begins
   with 0. Whoever pins later than this begins has seen the newest view. */
struct control_pinned {
  const struct control_slot *slot;
  uint32_t frame; /* of this generation; 0: of an older one */
  bool uses_wal;
  raft_index index;          /* 0: not known */
  char who[CONTROL_WHO + 1]; /* what an image serves; empty: a connection */
};
bool control_next_pinned(const struct control_map *map, uint64_t generation,
                         unsigned *i, struct control_pinned *out);
/* Frees the slots of processes that have ended. */
void control_reap(struct control_map *map);
/* The log is about to go on behind a snapshot: of transactions that were handed
   over before, and not seen to be committed, no host can tell the fate. */
void control_set_unsure(struct control_map *map);

#endif
