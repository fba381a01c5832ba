/*
** store.h: the durable log, the vote and the checkpoint file of one node.
**
**   DIR/vote              term and vote, two alternating slots
**   DIR/log/<16 hex>.seg  segments, named by their first index
**   DIR/checkpoint        see struct store_checkpoint
**
** The byte formats are described at the head of segment.c, vote.c and
** checkpoint.c; they carry a format version and are final.
**
** A log thread takes submissions in order, makes one write and one fdatasync
** of everything that has piled up, and reports the newest durable sequence
** number. All memory that a submission needs is taken by the caller's thread.
** A stepped store has no threads and does the same work, by the same code,
** inside store_run(): for a simulator, where one thread is all there is.
**
** Errors: 0 or a negated errno value (-EBADMSG: damaged file), and where
** there is a `char **error`, a malloc'd line that names the file and, for
** damage, the offset.
*/
#ifndef STORE_H
#define STORE_H

#include "io.h"
#include "raft.h"

struct store; /* opaque */

struct store_options {
  const char *dir; /* exists */
  const struct io *io;
  uint64_t segment_bytes; /* 8 MiB if 0; between 4 KiB and 1 GiB */
  uint64_t cluster;       /* written in headers, checked when opened */
  raft_id node;
  bool stepped; /* no threads are started; the owner calls store_run() */
  /* Called on the log thread (stepped: inside the functions below; it may
     submit, but not call another of them): everything up to seq is durable (status 0), or
     the disk failed for good (negated errno; nothing after that is ever
     durable; seq is then the newest that is). `error` is a line for people,
     valid during the call. */
  void (*done)(void *ctx, uint64_t seq, int status, const char *error);
  /* Log thread: a sync of the log took so long. NULL: no clock is read. */
  void (*synced)(void *ctx, uint64_t ns);
  void *ctx;
};

/*
** The checkpoint: everything up to `index` is in the database file and synced.
** `floor` is the replay floor: at least the index of any page that may
** already be in the database file. `settings` is the state of the cluster's
** settings at `index`, opaque here.
*/
struct store_checkpoint {
  raft_index index;
  raft_term term;
  raft_index floor;
  struct raft_configuration configuration;
  raft_index configuration_index;
  uint8_t *settings; /* malloc'd, owned by the struct */
  size_t settings_len;
  bool from_snapshot; /* the database came from another node: if the log's
                         entry at `index` has another term, the log is old
                         and is dropped (Raft, InstallSnapshot); else such a
                         difference is damage */
  bool incoming;      /* some of the pages are not in the database file yet,
                         but beside it, where the host put them */
};

/* Writes it in one step (io_replace_file). Any thread, one at a time. */
int store_checkpoint_write(const struct io *io, const char *dir,
                           const struct store_checkpoint *checkpoint,
                           char **error);
/* -ENOENT: there is none; -EBADMSG: damaged. */
int store_checkpoint_read(const struct io *io, const char *dir,
                          struct store_checkpoint *checkpoint, char **error);
void store_checkpoint_clear(struct store_checkpoint *checkpoint);

/*
** Opens or creates the log after `snapshot` (index and term of the
** checkpoint; NULL: none), repairs a torn tail, starts the log thread, and
** fills *recovered for raft_new(): terms, vote, last index, and the newest two
** configurations of checkpoint and log (index 0: none). *recovered->terms
** belongs to the store and is valid until the first submission.
** recovered->commit is the checkpoint's index.
**
** On start a bad record with no good record after it and above the durable
** mark is a torn tail and is cut; anything else is -EBADMSG with the file and
** the offset in *error.
*/
int store_open(const struct store_options *options,
               const struct store_checkpoint *checkpoint, struct store **out,
               struct raft_recovered *recovered, char **error);

/*
** The same for who only reads: no file is changed, the vote is not looked at
** and no thread is started; store_read(), store_stats() and store_close() may
** follow. What is damaged is no error: the log ends before it, at
** recovered->last_index, and *damage is a malloc'd line that says what and
** where; NULL: the log is whole. (A checkpoint that the log does not reach, or
** does not fit to, leaves it empty after that checkpoint.) recovered->term is
** that of the last entry.
*/
int store_inspect(const struct store_options *options,
                  const struct store_checkpoint *checkpoint, struct store **out,
                  struct raft_recovered *recovered, char **damage,
                  char **error);

/*
** Hands a batch to the log thread; takes its own references to bodies.
** Owner's thread only. On error nothing was taken: -ENOMEM; -EINVAL: sequence
** number or term goes back, indexes leave a gap, an entry is of a later term
** than the newest vote (the vote may be in the same batch), or a number is
** beyond RAFT_NUMBER_MAX and would not be read again; or what done()
** reported, if the store has failed. A store that has failed can be read,
** closed, and opened anew (as when a full disk has space again).
*/
int store_submit(struct store *store, const struct raft_persist *persist);

/*
** Reads entries first .. at most last back from the segments, at least one,
** at most max_bytes of bodies and max entries; checks their checksums. Sees
** every entry that has been reported durable. The caller unrefs the bodies.
** Any thread. Returns the count or -ENOENT (outside the log), -EBADMSG, ...
*/
int store_read(struct store *store, raft_index first, raft_index last,
               size_t max_bytes, unsigned max, struct raft_entry *entries,
               char **error);

/* An entry, of whose body only the beginning was read. */
#define STORE_HEAD 64u
struct store_head {
  raft_index index;
  raft_term term;
  uint8_t type;
  uint32_t length;          /* of the body */
  uint8_t data[STORE_HEAD]; /* as much of it as there is; then zeros */
};

/* As store_read(), for those who list entries: costs the same whatever their
   size. The checksum of a body is not looked at. */
int store_peek(struct store *store, raft_index first, raft_index last,
               unsigned max, struct store_head *heads, char **error);

/* Drops the whole log: it now begins after (index, term). For a node that
   took a snapshot. Waits for the log thread. Owner's thread only. -EINVAL: a
   number beyond RAFT_NUMBER_MAX. */
int store_reset(struct store *store, raft_index index, raft_term term);

/* Segments that hold only entries up to `upto` may be recycled. Any thread;
   carried out soon, by the log's helper thread (stepped: by store_run()). Entries above it are never
   touched, nor is the newest segment. A checkpoint file that reaches `upto`
   must have been written before. */
void store_compact(struct store *store, raft_index upto);

/* The greatest index whose entries could be compacted away while the segments
   that stay make up `bytes` or more; 0: none. Any thread. */
raft_index store_surplus(struct store *store, uint64_t bytes);

struct store_stats {
  raft_index first, last; /* on disk; first > last: empty */
  uint64_t bytes;         /* of all segments */
  /* since opened: by the log thread, vote included; entries written */
  uint64_t writes, syncs;
  uint64_t entries;
};
void store_stats(struct store *store, struct store_stats *stats);

/* Waits until everything submitted is durable (or the disk failed), stops the
   threads, closes the files. A stepped store does here what is left to do. */
void store_close(struct store *store);

/*
** Stepped stores only; owner's thread.
**
** One turn of each thread: everything in the queue as one batch, with its
** report, and then one piece of the helper's work (a segment prepared, or the
** oldest one removed). False: there was nothing to do for either. What it
** leaves to do, a failure of the helper's to report too, is done by the next
** call: an owner that has the time calls again while it returns true.
*/
bool store_run(struct store *store);

/* The log has been at rest for STORE_REST_MS, as its owner's clock says:
   writes the mark that a log thread would write then, without a sync, if one
   is due (segment.c says what it is good for). */
#define STORE_REST_MS 100
void store_rest(struct store *store);

#endif
