/*
** internal.h: what the files of raft/store show one another.
**
**   segment.c   byte format of segments and records, the offset table
**   recover.c   reads the segments when the store is opened
**   log.c       appends, rolls, truncates, resets: the log thread's work
**   spare.c     the helper thread: prepares segments, removes old ones
**   store.c     the public interface, the queue and the two threads
**   vote.c      the vote file
**   checkpoint.c  the checkpoint file (public interface only)
**   io_posix.c  the table of I/O functions (public interface only)
*/
#ifndef STORE_INTERNAL_H
#define STORE_INTERNAL_H

#include "mutant.h"
#include "store.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>

/* ---- small things used everywhere (store.c) ----------------------------- */

/* Sets *error (if error is not NULL) to a malloc'd line; returns rc. */
int store_error(char **error, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for a failed call: "path: what: text of rc". */
int store_io_error(char **error, int rc, const char *path, const char *what);

#define STORE_PATH_MAX 4096

/* ---- interface to the code in segment.c --------------------------------- */

#define SEGMENT_HEADER 512u /* bytes before the first record */
#define SEGMENT_MIN 4096u
#define SEGMENT_MAX (1024u * 1024u * 1024u)
#define SEGMENT_BASE 1u /* flag: the log begins here */
#define SEGMENT_TABLE 2048u
#define SEGMENT_NAME 32

#define RECORD_HEADER 56u
#define RECORD_MARK 0x4d /* type of a mark, which is no entry */

struct segment_header {
  uint32_t flags;
  uint64_t cluster;
  raft_id node;
  uint64_t seq;        /* of this use of the file; newer is greater */
  raft_index first;    /* index of its first record */
  raft_term prev_term; /* of the entry before it */
  uint64_t prev;       /* header checksum of the record before it */
  uint64_t bytes;      /* size of the file */
};

struct record {
  uint32_t length;
  uint8_t type;
  raft_index index;
  raft_term term;
  uint64_t body; /* checksum of the body */
  raft_index mark;
  uint64_t prev;     /* header checksum of the record before */
  uint64_t checksum; /* of this header */
};

/*
** A segment in memory. The list links, n, visible, and the table are guarded
** by the store's lock once it is in the list; the rest does not change then.
*/
struct segment {
  struct segment *before, *after; /* in the list; `after` also in others */
  const struct io *io;
  _Atomic uint32_t refs;
  int fd;
  char name[SEGMENT_NAME]; /* in the log directory */
  struct segment_header header;
  uint32_t n;       /* records whose place is known */
  uint32_t visible; /* of these, how many are durable and in force */
  uint32_t stride;  /* the table holds the offset of each stride-th */
  uint32_t table[SEGMENT_TABLE];
};

void store_header_encode(const struct segment_header *header,
                         uint8_t out[SEGMENT_HEADER]);
/* 0, or -EBADMSG and a word or two in *why. */
int store_header_decode(const uint8_t in[SEGMENT_HEADER],
                        struct segment_header *header, const char **why);

/* Sets record->checksum. */
void store_record_encode(struct record *record, uint64_t seq,
                         uint8_t out[RECORD_HEADER]);
/* False: not a record of this segment, whatever else it may be. */
bool store_record_decode(const uint8_t in[RECORD_HEADER], uint64_t seq,
                         struct record *record);
/* Bytes that a record with a body of this length takes. */
uint64_t store_record_size(uint64_t length);
uint64_t store_body_checksum(const void *data, size_t len);

/* One reference, fd -1. */
struct segment *store_segment_new(const struct io *io);
void store_segment_ref(struct segment *segment);
void store_segment_unref(struct segment *segment);
void store_segment_name(char name[SEGMENT_NAME], raft_index first);
/* Notes that the next record (number n) begins at offset. */
void store_segment_add(struct segment *segment, uint32_t offset);
/* Nearest known record at or before number k: its number, its offset. */
uint32_t store_segment_near(const struct segment *segment, uint32_t k,
                            uint32_t *offset);
/*
** Reads the header of record number k of a segment, walking from a known
** record number `at`, at *offset; leaves its offset there. -EBADMSG, I/O.
*/
int store_segment_seek(const struct segment *segment, uint32_t at, uint32_t k,
                       uint64_t *offset, struct record *record);

/* ---- interface to the code in vote.c ------------------------------------ */

struct vote_file {
  const struct io *io;
  int fd;
  char path[STORE_PATH_MAX];
  uint64_t cluster;
  raft_id node;
  uint64_t seq;
  raft_term term;
  raft_id voted_for;
  bool bad[2]; /* of a slot, one copy is */
  unsigned bad_copy[2];
};

/* `must_exist`: there is a log, so a missing vote is damage. */
int store_vote_open(struct vote_file *vote, const struct store_options *options,
                    bool must_exist, char **error);
/* After the log was found good, before the first write. */
int store_vote_heal(struct vote_file *vote, char **error);
int store_vote_write(struct vote_file *vote, raft_term term, raft_id voted_for,
                     char **error);
void store_vote_close(struct vote_file *vote);

/* ---- interface to the code in log.c ------------------------------------- */

#define WRITE_RECORDS 500u /* in one pwritev: two iovecs each, and two more */

/* The log thread's own state: where and after what the next record goes. */
struct writer {
  struct segment *active; /* NULL: the next record needs a new one */
  bool fresh;             /* active has no name yet */
  bool dirty;             /* written, not synced */
  uint64_t start, offset; /* of what is gathered; of the next record */
  raft_index last;
  raft_term term; /* of last */
  uint64_t chain; /* header checksum of last */
  raft_index durable;
  raft_index marked; /* the newest index that a mark on disk covers */
  unsigned n_iov, n_records;
  unsigned pad; /* zeros owed after the last body */
  struct iovec iov[2 * WRITE_RECORDS + 2];
  uint8_t headers[WRITE_RECORDS][8 + RECORD_HEADER]; /* 8 for padding */
  uint32_t offsets[WRITE_RECORDS];
  uint8_t head[SEGMENT_HEADER];
};

/* Gathers an entry, replacing from its index on if it is not the next. */
int store_log_put(struct store *store, const struct raft_entry *entry,
                  char **error);
/* Makes everything gathered durable and visible. */
int store_log_flush(struct store *store, char **error);
/* The log becomes empty, and begins after (index, term). */
int store_log_reset(struct store *store, raft_index index, raft_term term,
                    char **error);
/* Writes (and if asked syncs) a mark that says that all is durable. */
int store_log_mark(struct store *store, bool sync, char **error);

/* ---- interface to the code in recover.c --------------------------------- */

/*
** Reads and checks everything in DIR/log, cuts a torn tail, removes what is
** left over. Fills the store's list, writer, term runs, and *recovered but
** for the vote. The vote has been read: no entry may be of a later term.
**
** damage (NULL: as above): nothing is changed, the vote is not asked for, and
** the log ends before what is damaged, which *damage says.
*/
int store_recover(struct store *store,
                  const struct store_checkpoint *checkpoint,
                  struct raft_recovered *recovered, char **damage,
                  char **error);
/* Whether DIR/log holds a segment. */
int store_recover_any(const struct io *io, const char *log_dir, bool *any,
                      char **error);

/* ---- interface to the code in spare.c ----------------------------------- */

#define SPARES_MAX 2 /* recycled segments that are kept */

/* A segment of `bytes`, ready for use, not named. Waits if none is ready. */
int store_spare_take(struct store *store, uint64_t bytes, struct segment **out,
                     char **error);
/* One piece of the helper's work; false: there is none. */
bool store_spare_step(struct store *store);
void *store_spare_main(void *arg); /* the helper thread */

/* ---- the store (store.c) ------------------------------------------------ */

enum task_kind { TASK_SUBMIT = 1, TASK_RESET, TASK_STOP };

struct task {
  struct task *next;
  enum task_kind kind;
  /* TASK_SUBMIT; seq 0: none */
  uint64_t seq;
  bool vote;
  raft_term term; /* also TASK_RESET */
  raft_id voted_for;
  raft_index index; /* TASK_RESET */
  sem_t *finished;  /* TASK_RESET: the caller waits */
  int *result;
  unsigned n;
  struct raft_entry entries[];
};

struct store {
  struct store_options options;
  const struct io *io;
  char log_dir[STORE_PATH_MAX];
  struct vote_file vote; /* log thread */
  struct writer writer;  /* log thread */

  /* The queue: a stack of tasks that the log thread takes whole, and a bell
     (a futex) that says whether it sleeps. */
  _Atomic(struct task *) inbox;
  _Atomic uint32_t bell;
  _Atomic int status; /* 0, or why the store has failed */
  char *failure;      /* its words; under the lock, till reported */
  bool reported;      /* log thread */
  uint64_t durable;   /* log thread: the newest that was reported */
  bool rested;        /* log thread: nothing was written since the mark */
  bool stopped;       /* log thread: the stop has been taken */
  bool reads_only;    /* store_inspect() */

  /* Owner's thread: what the next submission is checked against. */
  raft_index tail;
  raft_term vote_term;
  uint64_t seq;
  struct raft_term_run *terms; /* until the first submission */

  pthread_mutex_t lock; /* everything below */
  pthread_cond_t work;  /* for the helper */
  pthread_cond_t ready; /* a spare, or want_status, for the log thread */
  struct segment *oldest, *newest;
  raft_index begin; /* index before the first entry, when list is empty */
  raft_term begin_term;
  uint64_t segment_seq; /* newest ever used; written by the log thread */
  struct segment *spares;
  unsigned n_spares;
  uint64_t spare_serial;
  uint64_t want; /* bytes of a segment that the log thread waits for */
  int want_status;
  char *want_error;
  bool ahead_failed; /* preparing in advance failed: wait till asked */
  bool compact_off;  /* a removal failed: later ones would leave a gap */
  bool closing;
  raft_index compact_upto;
  struct store_stats stats;

  bool helper_runs, log_runs;
  pthread_t helper, thread;
};

/* dir/name in buf. */
void store_path(char buf[STORE_PATH_MAX], const struct store *store,
                const char *name);
/* The last visible index; the store's lock is held. */
raft_index store_last_locked(const struct store *store);
/* Helper: the store has failed; the log thread will say so. */
void store_fail(struct store *store, int status, char *failure);

#endif
