/*
** wal.h: the node's own view of one database in WAL mode.
**
** It owns the three real files (database, -wal, -shm), the locks that keep
** foreign processes from writing them, and the history of confirmed frames.
** Connections of the VFS never see the real -shm: each has a private
** wal-index, filled from here.
**
** Behind the confirmed frames come those of transactions in flight: handed
** over to Raft, not confirmed yet. The newest of them is the head. Whoever
** writes next builds on the head; everybody else reads what is confirmed.
**
** Invariants:
** W1 The real -shm and every frame with right salts in -wal are confirmed:
**    committed by Raft. A commit frame of an unconfirmed transaction has
**    inverted salts, so that no recovery goes beyond it.
** W2 Frames up to confirmed.mx_frame never change within a generation.
** W3 The WAL starts anew (a new generation) only when every frame is in the
**    database file and no reader uses the WAL; the new header is synced before
**    frames overwrite old ones.
** W4 Pages go into the database file only from confirmed frames that no
**    reader's snapshot lies below, after the replay floor was made durable.
** W6 Frames from confirmed.mx_frame to head.mx_frame are those of the
**    transactions in flight, in order. With none in flight, head is confirmed.
** W5 The WAL is never empty: each generation begins with a frame that repeats
**    page 1, so that SQLite never writes a WAL header itself.
**
** Locks: `mutex` guards everything here that is not said to belong to a
** thread, and is never held over I/O; `file_mutex` is held by an ordinary
** connection while it writes frames, and by wal_revoke(). Order: file_mutex,
** then mutex. Applying (wal_append_*, wal_confirm) belongs to one thread at a
** time; checkpoint and restart to the checkpointer; the head is moved on by the
** one connection that may write.
*/
#ifndef EXT_WAL_H
#define EXT_WAL_H

#include "control.h"

#include <pthread.h>

struct wal {
  const struct io *io;
  char *path;        /* of the database; -wal and -shm beside it */
  int db, file, shm; /* descriptors; kept open until wal_close() */
  uint32_t page_size;
  pthread_mutex_t mutex, file_mutex;
  struct walindex index; /* the real -shm; belongs to the applying thread */
  int grow_rc;           /* why it could not grow; likewise */
  struct walindex_info *info; /* in it, for the checkpointer */
  struct control_map *map;    /* where readers find all that follows */
  uint64_t generation;
  uint32_t sequence; /* of the -wal header */
  struct walindex_header confirmed;
  raft_index confirmed_index; /* newest entry that is published */
  struct walindex_header head;
  uint32_t backfill; /* frames that are in the database file */
  uint64_t epoch;    /* moves when write grants are revoked, and when what is
                     behind the confirmed frames was rejected; written with the
                     mutex held, and, if somebody may be writing, file_mutex */
  bool closed;       /* detached: nothing more is read through the node */
  /* appending, owned by the applying thread */
  uint8_t *out;
  size_t out_len, out_cap;
  uint64_t out_offset;
  uint32_t append_frame;
  uint32_t append_chain[2];
  uint32_t *append_pages;
  uint32_t append_cap;
  uint8_t *held; /* the newest page, until it is known whether it is the last */
  uint32_t held_pgno;
  uint32_t append_n_page;  /* after the last transaction that has its end */
  raft_index append_index; /* its entry; 0: none */
};

/* What was found in the way of opening. */
#define WAL_EFOREIGN (-5001) /* another process holds a lock that it must not */

/*
** Opens the files of a database that is in WAL mode and fenced, takes the
** locks, and goes on with the frames that are in -wal: they are confirmed (W1),
** and a checkpoint that was cut off may need them. confirmed_index is `index`
** afterwards. *error is a malloc'd line.
*/
int wal_open(const struct io *io, const char *path, raft_index index,
             struct control_map *map, struct wal **out, char **error);
/* clean: everything is in the database file; -wal and -shm are emptied if no
   other process has them open. */
void wal_close(struct wal *wal, bool clean);
/* Closes it first, if it is not closed yet. */
void wal_free(struct wal *wal);

/* An OFD lock on one of the files; 0 or a negated errno value. */
int wal_lock(int fd, short type, off_t start, off_t len);
/* Opens the database file and its -shm with shared locks, as a process that reads
   takes them which is not the host: no stock program checkpoints or removes -wal
   and -shm meanwhile. After an error, too, what is not -1 must be closed. */
int wal_fence(const char *path, int *db, int *shm);
/* All bytes of the database file that SQLite locks. */
#define WAL_DB_LOCKS 0x40000000
#define WAL_DB_LOCKS_SIZE 512

/* The offset of a frame in -wal. */
static inline uint64_t wal_offset(const struct wal *wal, uint32_t frame)
{
  return WAL_HEADER +
         (uint64_t)(frame - 1) * (wal->page_size + WAL_FRAME_HEADER);
}

/* ---- applying ---------------------------------------------------------- */

/* Appends a whole transaction of another node: start, its pages, commit. The
   pages are copied. Errors are negated errno values; after one, start again.
   Nothing is visible before commit. */
void wal_append_start(struct wal *wal);
int wal_append_page(struct wal *wal, uint32_t pgno, const uint8_t *page);
int wal_append_commit(struct wal *wal, uint32_t n_page, raft_index index);
/* Several transactions in one write, published together: pages and an end for
   each of them, then wal_append_publish(). */
int wal_append_end(struct wal *wal, uint32_t n_page, raft_index index);
int wal_append_publish(struct wal *wal);

/* The newest transaction, whose frames a connection has written behind the
   head under `epoch`, is in flight from now on: the head moves on. base: the
   head that it was built on. pages: page numbers of its frames. -EPERM: the
   grant is gone, or the head is another, which it would take back. */
int wal_hand_over(struct wal *wal, uint64_t epoch,
                  const struct walindex_header *base,
                  const struct walindex_header *header, const uint32_t *pages);

/* Publishes the oldest transaction in flight: sets the salts of its commit
   frame right. */
int wal_confirm(struct wal *wal, const struct walindex_header *header,
                raft_index index);

/* Nothing is in flight any more: those behind what is confirmed, if any, were
   rejected, and the epoch moves. */
void wal_settle(struct wal *wal);

/* An entry that changes no page was passed. */
void wal_advance(struct wal *wal, raft_index index);

/* From now on writes of connections under the old epoch are refused; when it
   returns, none is under way. */
void wal_revoke(struct wal *wal);

/* From now on nothing is read through the node any more: false, and nothing is
   changed, if something is right now. */
bool wal_forbid(struct wal *wal);

/* ---- readers ----------------------------------------------------------- */

/* Confirmed frames in -wal, and how many of them are in the database file
   (backfill may be NULL). Any thread. */
uint32_t wal_frames(struct wal *wal, uint32_t *backfill);
/* No snapshot is in use. Any thread. */
bool wal_unused(struct wal *wal);
/* Who keeps the WAL from being copied whole and begun anew, in words; empty:
   nobody. */
struct wal_pinner {
  char s[64];
};
/* But for the reader of a slot (NULL: nobody is left out). Any thread. */
struct wal_pinner wal_pinner(struct wal *wal,
                             const struct control_slot *except);

/* A page and the frame that holds it. */
struct wal_image {
  uint32_t pgno, frame;
};
/* Sorts images by page and keeps the newest of each that is still in a database
   of n_page pages. Their number. */
uint32_t wal_newest(struct wal_image *images, uint32_t n, uint32_t n_page);

/* ---- the checkpointer -------------------------------------------------- */

struct wal_checkpointed {
  bool full; /* everything up to index is in the database file */
  raft_index index;
  struct wal_pinner pinned; /* who keeps it from being full */
};

/* 0; -EBADMSG: somebody has written over the database file, nothing in it is the
   node's any more; or another negated errno value. */
int wal_look_at_fence(const struct wal *wal);
/* Copies confirmed frames to the database file and syncs it. floor() must
   make the replay floor durable and is called before the first page is
   written. -EBADMSG: see above. */
int wal_checkpoint(struct wal *wal, int (*floor)(void *ctx, raft_index index),
                   void *ctx, struct wal_checkpointed *done);
/* Begins a new generation; nothing may be appended or in flight meanwhile. Of
   a longer file WAL_KEEP bytes are left. -EBUSY: a reader uses the WAL. */
#define WAL_KEEP (32u << 20)
int wal_restart(struct wal *wal);

#endif
