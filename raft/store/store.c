/*
** store.c: the public interface: the queue, the log thread, reading back.
**
** Threads. The owner's thread (one at a time) submits; the log thread writes;
** the helper thread (spare.c) keeps a segment ready and removes old ones; any
** thread reads. What each may touch is said in struct store.
**
** The queue is a stack that the log thread takes whole with one exchange and
** reverses; a submission is one allocation, made by the caller. The bell is a
** futex: 1 while the log thread sleeps (or is about to), so that a submitter
** makes a system call only when there is somebody to wake.
**
** A batch is everything that was in the queue. If a vote changed in it, the
** newest one is written and synced first: an entry never reaches the disk
** before the term that it belongs to. (The newest: with it come no promises
** before all of the batch is durable, and a term ahead of the entries is what
** any node has after an election.) Then all entries, then one report with the
** newest sequence number.
**
** When the log has been at rest for a while, a mark is written (segment.c),
** without a sync: nothing waits for it.
**
** run_batch(), store_rest(), end_log() and store_spare_step() are all that
** the threads do but sleep. A stepped store has no threads; its owner calls
** them.
**
** Failure is final: the status is set, reported once, and from then on tasks
** are only taken off the queue and dropped.
*/
#include "internal.h"

#include <inttypes.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- small things ------------------------------------------------------- */

int store_error(char **error, int rc, const char *format, ...)
{
  va_list args;
  char *line = NULL;

  if (!error) return rc;
  va_start(args, format);
  if (vasprintf(&line, format, args) < 0) line = NULL;
  va_end(args);
  *error = line;
  return rc;
}

int store_io_error(char **error, int rc, const char *path, const char *what)
{
  char buf[128];

  return store_error(error, rc, "%s: %s: %s", path, what,
                     strerror_r(-rc, buf, sizeof(buf)));
}

void store_path(char buf[STORE_PATH_MAX], const struct store *store,
                const char *name)
{
  /* store_open refuses a directory for which this would not fit */
  (void)snprintf(buf, STORE_PATH_MAX, "%.*s/%.*s", STORE_PATH_MAX - 64,
                 store->log_dir, SEGMENT_NAME, name);
}

raft_index store_last_locked(const struct store *store)
{
  const struct segment *newest = store->newest;

  return newest ? newest->header.first + newest->visible - 1 : store->begin;
}

/* ---- the queue ---------------------------------------------------------- */

static void ring(struct store *store)
{
  if (atomic_exchange(&store->bell, 0))
    (void)syscall(SYS_futex, &store->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL,
                  0);
}

static void post(struct store *store, struct task *task)
{
  struct task *top = atomic_load(&store->inbox);

  do {
    task->next = top;
  } while (!atomic_compare_exchange_weak(&store->inbox, &top, task));
  ring(store);
}

/* Everything in the queue, oldest first. */
static struct task *take_all(struct store *store)
{
  struct task *stack = atomic_exchange(&store->inbox, NULL), *list = NULL;

  while (stack) {
    struct task *next = stack->next;

    stack->next = list;
    list = stack;
    stack = next;
  }
  return list;
}

/* Sleeps until the bell rings or ms have passed; ms < 0: for ever. False: the
   time has passed. */
static bool sleep_for(struct store *store, int ms)
{
  struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
  long rc;

  atomic_store(&store->bell, 1);
  if (atomic_load(&store->inbox) || (store->status && !store->reported)) {
    /* it came before the bell was set */
    atomic_store(&store->bell, 0);
    return true;
  }
  rc = syscall(SYS_futex, &store->bell, FUTEX_WAIT_PRIVATE, 1,
               ms < 0 ? NULL : &t, NULL, 0);
  return !(rc && errno == ETIMEDOUT && atomic_exchange(&store->bell, 0));
}

static void free_task(struct task *task)
{
  unsigned i;

  for (i = 0; i < task->n; i++)
    raft_body_unref(task->entries[i].body);
  free(task);
}

/* ---- the log thread ----------------------------------------------------- */

void store_fail(struct store *store, int status, char *failure)
{
  int none = 0;

  (void)pthread_mutex_lock(&store->lock);
  if (store->failure)
    free(failure);
  else
    store->failure = failure;
  (void)pthread_mutex_unlock(&store->lock);
  (void)atomic_compare_exchange_strong(&store->status, &none, status);
  ring(store);
}

static int write_vote(struct store *store, const struct task *newest,
                      char **error)
{
  int rc =
      store_vote_write(&store->vote, newest->term, newest->voted_for, error);

  if (rc) return rc;
  (void)pthread_mutex_lock(&store->lock);
  store->stats.writes++;
  store->stats.syncs++;
  (void)pthread_mutex_unlock(&store->lock);
  return 0;
}

static int write_task(struct store *store, struct task *task, char **error)
{
  unsigned i;
  int rc = 0;

  if (task->kind == TASK_RESET)
    return store_log_reset(store, task->index, task->term, error);
  for (i = 0; !rc && i < task->n; i++)
    rc = store_log_put(store, &task->entries[i], error);
  return rc;
}

/* Makes a batch durable; *seq: what may be reported. */
static int write_batch(struct store *store, struct task *batch, uint64_t *seq,
                       char **error)
{
  const struct task *vote = NULL;
  struct task *task;
  int rc = 0;

  for (task = batch; task; task = task->next) {
    if (task->seq) *seq = task->seq;
    if (task->vote) vote = task;
  }
  if (vote && !MUTANT(54)) rc = write_vote(store, vote, error);
  for (task = batch; !rc && task; task = task->next)
    rc = write_task(store, task, error);
  if (!rc) rc = store_log_flush(store, error);
  if (MUTANT(54) && vote && !rc) rc = write_vote(store, vote, error);
  return rc;
}

/* Wakes who waits for a reset, frees the batch. True: it held the stop. */
static bool finish_batch(struct task *batch, int status)
{
  bool stop = false;

  while (batch) {
    struct task *next = batch->next;

    if (batch->kind == TASK_STOP) stop = true;
    if (batch->finished) {
      *batch->result = status;
      (void)sem_post(batch->finished);
    }
    free_task(batch);
    batch = next;
  }
  return stop;
}

/* Once. */
static void report_failure(struct store *store, uint64_t durable)
{
  char *failure;

  (void)pthread_mutex_lock(&store->lock);
  failure = store->failure;
  store->failure = NULL;
  (void)pthread_mutex_unlock(&store->lock);
  store->options.done(store->options.ctx, durable, store->status,
                      failure ? failure : "the log has failed");
  free(failure);
}

/* Everything in the queue, and the report of it, or of a failure. False: there
   was neither. */
static bool run_batch(struct store *store)
{
  struct task *batch = take_all(store);
  uint64_t seq = store->durable;
  char *error = NULL;
  int rc = 0;

  if (!batch && (!store->status || store->reported)) return false;
  if (MUTANT(57) && batch && batch->seq && !store->status)
    store->options.done(store->options.ctx, store->durable = batch->seq, 0,
                        NULL);
  if (batch && !store->status) {
    rc = write_batch(store, batch, &seq, &error);
    store->rested = false;
  }
  if (rc) store_fail(store, rc, error);
  if (store->status && !store->reported) {
    store->reported = true;
    report_failure(store, store->durable);
  } else if (!store->status && seq > store->durable) {
    store->durable = seq;
    store->options.done(store->options.ctx, seq, 0, NULL);
  }
  if (finish_batch(batch, store->status)) store->stopped = true;
  return true;
}

void store_rest(struct store *store)
{
  char *error = NULL;
  int rc;

  if (store->rested || store->status) return;
  rc = store_log_mark(store, false, &error);
  store->rested = true;
  if (rc) store_fail(store, rc, error);
}

/* Nothing comes after this: now the mark is worth a sync. */
static void end_log(struct store *store)
{
  char *error = NULL;

  if (!store->status && store_log_mark(store, true, &error)) free(error);
}

static void *log_main(void *arg)
{
  struct store *store = arg;

  pthread_setname_np(pthread_self(), "quorate log");
  while (!store->stopped) {
    if (run_batch(store)) continue;
    if (store->rested || store->status)
      (void)sleep_for(store, -1);
    else if (!sleep_for(store, STORE_REST_MS))
      store_rest(store);
  }
  end_log(store);
  return NULL;
}

bool store_run(struct store *store)
{
  bool wrote = run_batch(store);

  return store_spare_step(store) || wrote;
}

/* ---- submitting --------------------------------------------------------- */

static bool valid_persist(const struct store *store,
                          const struct raft_persist *p)
{
  raft_term term = p->vote ? p->term : store->vote_term, before = 0;
  unsigned i;

  if (!p->seq || p->seq <= store->seq || term < store->vote_term ||
      term > RAFT_NUMBER_MAX)
    return false;
  if (p->n_entries &&
      (!p->entries[0].index || p->entries[0].index > store->tail + 1))
    return false;
  for (i = 0; i < p->n_entries; i++) {
    const struct raft_entry *e = &p->entries[i];

    if (e->index != p->entries[0].index + i || e->index > RAFT_NUMBER_MAX ||
        e->term < before || !e->term || e->term > term || e->type < RAFT_NOOP ||
        e->type > RAFT_SETTING || (e->body && e->body->len > RAFT_BODY_MAX))
      return false;
    before = e->term;
  }
  return true;
}

int store_submit(struct store *store, const struct raft_persist *persist)
{
  unsigned i, n = persist->n_entries;
  struct task *task;

  if (store->status) return store->status;
  if (!valid_persist(store, persist)) return -EINVAL;
  task = malloc(sizeof(*task) + n * sizeof(task->entries[0]));
  if (!task) return -ENOMEM;
  free(store->terms);
  store->terms = NULL;
  *task = (struct task){.kind = TASK_SUBMIT,
                        .seq = persist->seq,
                        .vote = persist->vote,
                        .term = persist->term,
                        .voted_for = persist->voted_for,
                        .n = n};
  for (i = 0; i < n; i++) {
    task->entries[i] = persist->entries[i];
    (void)raft_body_ref(task->entries[i].body);
  }
  store->seq = persist->seq;
  if (persist->vote) store->vote_term = persist->term;
  if (n) store->tail = persist->entries[n - 1].index;
  post(store, task);
  return 0;
}

int store_reset(struct store *store, raft_index index, raft_term term)
{
  struct task *task;
  sem_t finished;
  int result = 0;

  if (index > RAFT_NUMBER_MAX || term > RAFT_NUMBER_MAX) return -EINVAL;
  task = calloc(1, sizeof(*task));
  if (!task) return -ENOMEM;
  (void)sem_init(&finished, 0, 0);
  task->kind = TASK_RESET;
  task->index = index;
  task->term = term;
  task->finished = &finished;
  task->result = &result;
  free(store->terms);
  store->terms = NULL;
  store->tail = index;
  post(store, task);
  if (store->options.stepped) (void)run_batch(store);
  while (sem_wait(&finished) && errno == EINTR)
    ;
  (void)sem_destroy(&finished);
  return result;
}

void store_compact(struct store *store, raft_index upto)
{
  (void)pthread_mutex_lock(&store->lock);
  if (upto > store->compact_upto) store->compact_upto = upto;
  (void)pthread_cond_signal(&store->work);
  (void)pthread_mutex_unlock(&store->lock);
}

raft_index store_surplus(struct store *store, uint64_t bytes)
{
  const struct segment *s;
  raft_index index = 0;
  uint64_t kept = 0;

  (void)pthread_mutex_lock(&store->lock);
  for (s = store->newest; s && kept < bytes; s = s->before)
    kept += s->header.bytes;
  if (s) index = s->after->header.first - 1;
  (void)pthread_mutex_unlock(&store->lock);
  return index;
}

void store_stats(struct store *store, struct store_stats *stats)
{
  (void)pthread_mutex_lock(&store->lock);
  *stats = store->stats;
  stats->first = store->oldest ? store->oldest->header.first : store->begin + 1;
  stats->last = store_last_locked(store);
  (void)pthread_mutex_unlock(&store->lock);
}

/* ---- reading back ------------------------------------------------------- */

/* A place in the log from which records are read one after another. */
struct cursor {
  struct segment *segment; /* a reference; NULL: look for index */
  raft_index index, end;   /* the next record; behind the segment's last */
  uint64_t offset;
  bool chained; /* chain is known */
  uint64_t chain;
};

static int cursor_error(struct store *store, const struct cursor *c, int rc,
                        const char *what, char **error)
{
  char path[STORE_PATH_MAX];

  store_path(path, store, c->segment->name);
  if (rc != -EBADMSG) return store_io_error(error, rc, path, what);
  return store_error(error, rc, "%s: offset %" PRIu64 ": entry %" PRIu64 ": %s",
                     path, c->offset, c->index, what);
}

/* Finds the segment of c->index and the place in it. -ENOENT: not there. */
static int cursor_find(struct store *store, struct cursor *c, char **error)
{
  struct segment *s;
  struct record record;
  uint32_t offset, at, k;
  int rc;

  store_segment_unref(c->segment);
  (void)pthread_mutex_lock(&store->lock);
  for (s = store->newest; s && s->header.first > c->index;)
    s = s->before;
  if (!s || c->index >= s->header.first + s->visible) {
    c->segment = NULL;
    (void)pthread_mutex_unlock(&store->lock);
    return -ENOENT;
  }
  store_segment_ref(s);
  c->segment = s;
  c->end = s->header.first + s->visible;
  k = (uint32_t)(c->index - s->header.first);
  at = store_segment_near(s, k, &offset);
  (void)pthread_mutex_unlock(&store->lock);
  c->offset = offset;
  rc = store_segment_seek(s, at, k, &c->offset, &record);
  if (rc) return cursor_error(store, c, rc, "cannot be read back", error);
  return 0;
}

static int read_body(const struct cursor *c, const struct record *record,
                     struct raft_body **out)
{
  const struct io *io = c->segment->io;
  struct raft_body *body = raft_body_new(record->length);
  ssize_t got;

  if (!body) return -ENOMEM;
  got = io->pread(io->ctx, c->segment->fd, body->data, record->length,
                  c->offset + RECORD_HEADER);
  if (got != (ssize_t)record->length) {
    raft_body_unref(body);
    return got < 0 ? (int)got : -EBADMSG;
  }
  body->checksum = record->body;
  if (!MUTANT(67) &&
      store_body_checksum(body->data, body->len) != record->body) {
    raft_body_unref(body);
    return -EBADMSG;
  }
  *out = body;
  return 0;
}

/* The header of the next entry. 2: the log changed while it was read, this is
   not what followed. */
static int cursor_record(struct store *store, struct cursor *c,
                         struct record *record, char **error)
{
  int rc;

  if (!c->segment || c->index == c->end)
    rc = cursor_find(store, c, error);
  else
    rc = 0;
  if (rc) return rc;
  rc = store_segment_seek(
      c->segment, (uint32_t)(c->index - c->segment->header.first),
      (uint32_t)(c->index - c->segment->header.first), &c->offset, record);
  if (rc) return cursor_error(store, c, rc, "damaged record header", error);
  return c->chained && record->prev != c->chain ? 2 : 0;
}

static void cursor_advance(struct cursor *c, const struct record *record)
{
  c->chain = record->checksum;
  c->chained = true;
  c->offset += store_record_size(record->length);
  c->index++;
}

/* The next entry. 1: it would be more than room bytes; 2: as above. */
static int cursor_next(struct store *store, struct cursor *c, size_t room,
                       struct raft_entry *entry, char **error)
{
  struct record record;
  int rc = cursor_record(store, c, &record, error);

  if (rc) return rc;
  if (record.length > room) return 1;
  *entry = (struct raft_entry){
      .index = record.index, .term = record.term, .type = record.type};
  rc = record.length ? read_body(c, &record, &entry->body) : 0;
  if (rc) return cursor_error(store, c, rc, "damaged body", error);
  cursor_advance(c, &record);
  return 0;
}

static int cursor_peek(struct store *store, struct cursor *c,
                       struct store_head *head, char **error)
{
  struct record record;
  int rc = cursor_record(store, c, &record, error);
  const struct io *io;
  size_t len;
  ssize_t got;

  if (rc) return rc;
  *head = (struct store_head){.index = record.index,
                              .term = record.term,
                              .type = record.type,
                              .length = record.length};
  len = record.length < STORE_HEAD ? record.length : STORE_HEAD;
  io = c->segment->io;
  got = len ? io->pread(io->ctx, c->segment->fd, head->data, len,
                        c->offset + RECORD_HEADER)
            : 0;
  if (got != (ssize_t)len)
    return cursor_error(store, c, got < 0 ? (int)got : -EBADMSG,
                        "body cannot be read back", error);
  cursor_advance(c, &record);
  return 0;
}

/* What came of reading n entries from `first` on; what was read before a bad
   one is good. */
static int read_result(struct store *store, raft_index first, unsigned n,
                       int rc, char *line, char **error)
{
  if (n) {
    free(line);
    return (int)n;
  }
  if (rc == -ENOENT)
    return store_error(error, rc, "%s: entry %" PRIu64 " is not in the log",
                       store->log_dir, first);
  if (error)
    *error = line;
  else
    free(line);
  return rc;
}

int store_read(struct store *store, raft_index first, raft_index last,
               size_t max_bytes, unsigned max, struct raft_entry *entries,
               char **error)
{
  struct cursor c = {.index = first};
  char *line = NULL;
  unsigned n = 0;
  int rc = 0;

  if (error) *error = NULL;
  if (!first || last < first || !max) return -EINVAL;
  while (!rc && n < max && c.index <= last) {
    rc = cursor_next(store, &c, n ? max_bytes : SIZE_MAX, &entries[n], &line);
    if (rc) break;
    if (entries[n].body)
      max_bytes -=
          entries[n].body->len < max_bytes ? entries[n].body->len : max_bytes;
    n++;
  }
  store_segment_unref(c.segment);
  return read_result(store, first, n, rc, line, error);
}

int store_peek(struct store *store, raft_index first, raft_index last,
               unsigned max, struct store_head *heads, char **error)
{
  struct cursor c = {.index = first};
  char *line = NULL;
  unsigned n = 0;
  int rc = 0;

  if (error) *error = NULL;
  if (!first || last < first || !max) return -EINVAL;
  while (!rc && n < max && c.index <= last) {
    rc = cursor_peek(store, &c, &heads[n], &line);
    if (!rc) n++;
  }
  store_segment_unref(c.segment);
  return read_result(store, first, n, rc, line, error);
}

/* ---- opening and closing ------------------------------------------------ */

static void free_list(struct segment *segment)
{
  while (segment) {
    struct segment *next = segment->after;

    store_segment_unref(segment);
    segment = next;
  }
}

static void free_store(struct store *store)
{
  if (store->writer.fresh) store_segment_unref(store->writer.active);
  free_list(store->oldest);
  free_list(store->spares);
  store_vote_close(&store->vote);
  (void)pthread_cond_destroy(&store->ready);
  (void)pthread_cond_destroy(&store->work);
  (void)pthread_mutex_destroy(&store->lock);
  free(store->want_error);
  free(store->failure);
  free(store->terms);
  free(store);
}

/* Threads of a library have no business with the host's signals. */
static int start_thread(pthread_t *thread, void *(*run)(void *),
                        struct store *store)
{
  sigset_t all, old;
  int rc;

  (void)sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &old);
  rc = pthread_create(thread, NULL, run, store);
  (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
  return -rc;
}

static int start_threads(struct store *store, char **error)
{
  int rc = start_thread(&store->helper, store_spare_main, store);

  store->helper_runs = !rc;
  if (!rc) rc = start_thread(&store->thread, log_main, store);
  store->log_runs = !rc;
  if (!rc) return 0;
  return store_io_error(error, rc, store->log_dir, "cannot start a thread");
}

static void stop_threads(struct store *store, struct task *stop)
{
  if (store->log_runs) {
    post(store, stop);
    (void)pthread_join(store->thread, NULL);
  } else {
    free(stop);
  }
  if (store->helper_runs) {
    (void)pthread_mutex_lock(&store->lock);
    store->closing = true;
    (void)pthread_cond_signal(&store->work);
    (void)pthread_mutex_unlock(&store->lock);
    (void)pthread_join(store->helper, NULL);
  }
}

static struct store *new_store(const struct store_options *options)
{
  struct store *store = calloc(1, sizeof(*store));

  if (!store) return NULL;
  store->options = *options;
  store->io = options->io;
  store->vote.fd = -1;
  if (!store->options.segment_bytes)
    store->options.segment_bytes = 8u * 1024u * 1024u;
  if (store->options.segment_bytes < SEGMENT_MIN)
    store->options.segment_bytes = SEGMENT_MIN;
  if (store->options.segment_bytes > SEGMENT_MAX)
    store->options.segment_bytes = SEGMENT_MAX;
  (void)pthread_mutex_init(&store->lock, NULL);
  (void)pthread_cond_init(&store->work, NULL);
  (void)pthread_cond_init(&store->ready, NULL);
  (void)snprintf(store->log_dir, sizeof(store->log_dir), "%s/log",
                 options->dir);
  return store;
}

/* The vote file is made before the directory of the log: a log without a vote
   is damage. What a killed process renamed but did not sync is made durable,
   before anything is built on it. */
static int open_files(struct store *store,
                      const struct store_checkpoint *checkpoint,
                      struct raft_recovered *recovered, char **error)
{
  const struct io *io = store->io;
  bool any;
  int rc = store_recover_any(io, store->log_dir, &any, error);

  if (!rc) rc = store_vote_open(&store->vote, &store->options, any, error);
  if (rc) return rc;
  rc = io->mkdir(io->ctx, store->log_dir);
  if (!rc) rc = io->sync_dir(io->ctx, store->options.dir);
  if (rc) return store_io_error(error, rc, store->log_dir, "cannot be made");
  rc = store_recover(store, checkpoint, recovered, NULL, error);
  if (rc) return rc;
  recovered->term = store->vote.term;
  recovered->voted_for = store->vote.voted_for;
  if (checkpoint->term > recovered->term) {
    recovered->term = checkpoint->term;
    recovered->voted_for = 0;
  }
  rc = MUTANT(56) ? 0 : store_vote_heal(&store->vote, error);
  if (rc) return rc;
  return store_vote_write(&store->vote, recovered->term, recovered->voted_for,
                          error);
}

int store_open(const struct store_options *options,
               const struct store_checkpoint *checkpoint, struct store **out,
               struct raft_recovered *recovered, char **error)
{
  static const struct store_checkpoint none;
  struct store *store;
  int rc;

  *out = NULL;
  if (error) *error = NULL;
  memset(recovered, 0, sizeof(*recovered));
  if (strlen(options->dir) > STORE_PATH_MAX - 128)
    return store_error(error, -ENAMETOOLONG, "%s: too long", options->dir);
  store = new_store(options);
  if (!store) return store_error(error, -ENOMEM, "out of memory");
  rc = open_files(store, checkpoint ? checkpoint : &none, recovered, error);
  if (rc) goto fail;
  store->tail = recovered->last_index;
  store->vote_term = recovered->term;
  store->rested = true;
  store->stats.writes = store->stats.syncs = store->stats.entries = 0;
  rc = options->stepped ? 0 : start_threads(store, error);
  if (rc) {
    stop_threads(store, NULL);
    goto fail;
  }
  *out = store;
  return 0;
fail:
  memset(recovered, 0, sizeof(*recovered));
  free_store(store);
  return rc;
}

int store_inspect(const struct store_options *options,
                  const struct store_checkpoint *checkpoint, struct store **out,
                  struct raft_recovered *recovered, char **damage, char **error)
{
  struct store *store = NULL;
  char *line = NULL, *found = NULL;
  int rc;

  *out = NULL;
  memset(recovered, 0, sizeof(*recovered));
  if (strlen(options->dir) > STORE_PATH_MAX - 128)
    rc = store_error(&line, -ENAMETOOLONG, "%s: too long", options->dir);
  else if (!(store = new_store(options)))
    rc = store_error(&line, -ENOMEM, "out of memory");
  else
    rc = store_recover(store, checkpoint, recovered, &found, &line);
  if (rc) {
    memset(recovered, 0, sizeof(*recovered));
    if (store) free_store(store);
    free(found);
    *error = line;
    return rc;
  }
  store->reads_only = true;
  recovered->term = recovered->n_terms
                        ? recovered->terms[recovered->n_terms - 1].term
                        : recovered->snapshot_term;
  *damage = found;
  *out = store;
  return 0;
}

static void close_stepped(struct store *store)
{
  while (run_batch(store))
    ;
  end_log(store);
  store->closing = true;
  while (store_spare_step(store))
    ;
  free_store(store);
}

void store_close(struct store *store)
{
  struct task *stop;

  if (!store) return;
  if (store->reads_only) {
    free_store(store);
    return;
  }
  if (store->options.stepped) {
    close_stepped(store);
    return;
  }
  stop = calloc(1, sizeof(*stop));
  while (!stop) { /* it must be stopped; memory will be freed by somebody */
    (void)usleep(1000);
    stop = calloc(1, sizeof(*stop));
  }
  stop->kind = TASK_STOP;
  stop_threads(store, stop);
  free_store(store);
}
