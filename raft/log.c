/*
** log.c: what the core remembers of the log.
**
** The log itself is on disk, in raft/store. Here are three things about it:
**
**   runs    for every run of entries with one term, its first index. Item 0
**           stands for the snapshot that the log begins after, so the term of
**           any index from the snapshot to the last one is a binary search,
**           and the search for a conflict goes a whole term a step. A log has
**           as many runs as it has seen elections: few.
**   tail    the newest entries themselves. Above `tail_max` bytes the oldest
**           go, but never one that is not durable: until then memory is the
**           only place that has it.
**   writes  what was handed to the disk, oldest first: when write `seq` is
**           durable, everything up to `last` is. Writes become durable in
**           order, so `last` never decreases along the queue.
**
** Truncation is where a late completion could lie: entry 7 is being written,
** is replaced by another entry 7, and then the first write completes. So a
** truncation cuts `last` of every write under way to what is left of the log.
** The write that is late then vouches only for what it shares with the log as
** it is now, and nobody has to compare terms.
**
**    snapshot            tail's first         durable         last
**       |------ on disk only -|------ both -------|- memory only -|
*/
#include "internal.h"

#include <stdlib.h>

/* ---- runs of terms ----------------------------------------------------- */

static struct raft_term_run *run_at(const struct raft_log *log, size_t i)
{
  return raft_ring_at(&log->runs, i);
}

raft_index raft_log_snapshot(const struct raft_log *log)
{
  return run_at(log, 0)->first;
}

/* The run that index, from the snapshot on, belongs to. */
static size_t find_run(const struct raft_log *log, raft_index index)
{
  size_t low = 0, high = log->runs.n - 1, middle;

  assert(index >= raft_log_snapshot(log));
  if (run_at(log, high)->first <= index) return high;
  while (high - low > 1) {
    middle = low + (high - low) / 2;
    if (run_at(log, middle)->first <= index)
      low = middle;
    else
      high = middle;
  }
  return low;
}

raft_term raft_log_term(const struct raft_log *log, raft_index index)
{
  if (index < raft_log_snapshot(log) || index > log->last) return 0;
  return run_at(log, find_run(log, index))->term;
}

raft_index raft_log_conflict(const struct raft_log *log, raft_index index,
                             raft_term term)
{
  size_t i;

  if (index > log->last) index = log->last;
  if (index < raft_log_snapshot(log)) return index;
  for (i = find_run(log, index); run_at(log, i)->term > term; i--) {
    index = run_at(log, i)->first;
    if (index > 0) index--;
    if (i == 0) break;
  }
  return index;
}

static int append_run(struct raft_log *log, raft_index first, raft_term term)
{
  struct raft_term_run *run;
  int rc = raft_ring_reserve(&log->runs, 1);

  if (rc) return rc;
  run = raft_ring_push(&log->runs);
  run->first = first;
  run->term = term;
  return 0;
}

/* ---- life -------------------------------------------------------------- */

/* One recovered run: on its side of the snapshot, after the one before. */
static bool run_valid(const struct raft_recovered *rec, size_t i)
{
  const struct raft_term_run *run = &rec->terms[i];

  if (run->first == 0 || run->first > rec->last_index) return false;
  if (run->first <= rec->snapshot_index ? run->term > rec->snapshot_term
                                        : run->term < rec->snapshot_term)
    return false;
  return i == 0 || (run->first > run[-1].first && run->term > run[-1].term);
}

static bool recovered_valid(const struct raft_recovered *rec)
{
  raft_index snapshot = rec->snapshot_index;
  size_t i;

  if (rec->last_index < snapshot || rec->last_index > RAFT_NUMBER_MAX)
    return false;
  if ((snapshot == 0) != (rec->snapshot_term == 0)) return false;
  if (rec->last_index > snapshot &&
      (rec->n_terms == 0 || rec->terms[0].first > snapshot + 1))
    return false;
  for (i = 0; i < rec->n_terms; i++)
    if (!run_valid(rec, i)) return false;
  /* Only a snapshot may be of a term that this node has not been in. */
  return rec->n_terms == 0 || rec->terms[i - 1].term <= rec->term ||
         rec->terms[i - 1].term == rec->snapshot_term;
}

int raft_log_init(struct raft_log *log, const struct raft_recovered *rec,
                  size_t tail_max)
{
  raft_index first;
  size_t i;
  int rc;

  raft_ring_init(&log->runs, sizeof(struct raft_term_run));
  raft_ring_init(&log->tail, sizeof(struct raft_entry));
  raft_ring_init(&log->writes, sizeof(struct raft_write));
  log->tail_bytes = 0;
  log->tail_max = tail_max;
  log->last = log->durable = rec->last_index;
  if (!recovered_valid(rec)) return RAFT_EINVAL;

  rc = append_run(log, rec->snapshot_index, rec->snapshot_term);
  for (i = 0; !rc && i < rec->n_terms; i++) {
    first = rec->terms[i].first;
    if (first <= rec->snapshot_index) first = rec->snapshot_index + 1;
    /* Runs that the snapshot has swallowed, wholly or in part. */
    if (i + 1 < rec->n_terms && rec->terms[i + 1].first <= first) continue;
    if (first > rec->last_index) continue;
    if (rec->terms[i].term == run_at(log, log->runs.n - 1)->term) continue;
    rc = append_run(log, first, rec->terms[i].term);
  }
  return rc;
}

static struct raft_entry *tail_at(const struct raft_log *log, size_t i)
{
  return raft_ring_at(&log->tail, i);
}

void raft_log_free(struct raft_log *log)
{
  size_t i;

  for (i = 0; i < log->tail.n; i++)
    raft_body_unref(tail_at(log, i)->body);
  raft_ring_free(&log->tail);
  raft_ring_free(&log->runs);
  raft_ring_free(&log->writes);
}

/* ---- the tail ---------------------------------------------------------- */

static raft_index tail_first(const struct raft_log *log)
{
  return log->last - log->tail.n + 1;
}

/* Entries without a body cost something too, or they would not be bounded. */
static size_t cost(const struct raft_entry *entry)
{
  return sizeof *entry +
         (entry->body ? sizeof *entry->body + entry->body->len : 0);
}

const struct raft_entry *raft_log_entry(const struct raft_log *log,
                                        raft_index index)
{
  raft_index first = tail_first(log);

  if (index < first || index > log->last) return NULL;
  return tail_at(log, (size_t)(index - first));
}

static void drop_front(struct raft_log *log)
{
  struct raft_entry *entry = tail_at(log, 0);

  log->tail_bytes -= cost(entry);
  raft_body_unref(entry->body);
  raft_ring_pop_front(&log->tail);
}

int raft_log_append(struct raft_log *log, const struct raft_entry *entry)
{
  struct raft_term_run *run = run_at(log, log->runs.n - 1);
  int rc = raft_ring_reserve(&log->tail, 1);

  assert(entry->index == log->last + 1);
  assert(entry->term >= run->term);
  if (!rc && entry->term != run->term)
    rc = append_run(log, entry->index, entry->term);
  if (rc) return rc;
  *(struct raft_entry *)raft_ring_push(&log->tail) = *entry;
  raft_body_ref(entry->body);
  log->tail_bytes += cost(entry);
  log->last = entry->index;
  return 0;
}

/* No write under way vouches for anything beyond last. */
static void cut_writes(struct raft_log *log, raft_index last)
{
  struct raft_write *write;
  size_t i;

  for (i = log->writes.n; i > 0; i--) {
    write = raft_ring_at(&log->writes, i - 1);
    if (MUTANT(7) || write->last <= last) break;
    write->last = last;
  }
  if (log->durable > last) log->durable = last;
}

void raft_log_truncate(struct raft_log *log, raft_index from)
{
  struct raft_entry *entry;

  assert(from > raft_log_snapshot(log));
  assert(from <= log->last);
  while (log->tail.n > 0 && log->last >= from) {
    entry = tail_at(log, log->tail.n - 1);
    log->tail_bytes -= cost(entry);
    raft_body_unref(entry->body);
    raft_ring_pop_back(&log->tail);
    log->last--;
  }
  log->last = from - 1;
  while (run_at(log, log->runs.n - 1)->first >= from)
    raft_ring_pop_back(&log->runs);
  cut_writes(log, log->last);
}

void raft_log_evict(struct raft_log *log)
{
  while (log->tail_bytes > log->tail_max && log->tail.n > 0 &&
         tail_first(log) <= log->durable)
    drop_front(log);
}

/* ---- snapshots --------------------------------------------------------- */

void raft_log_compact(struct raft_log *log, raft_index index, raft_term term)
{
  assert(index >= raft_log_snapshot(log));
  assert(MUTANT(9) || raft_log_term(log, index) == term);
  while (log->tail.n > 0 && tail_first(log) <= index)
    drop_front(log);
  while (log->runs.n > 1 && run_at(log, 1)->first <= index)
    raft_ring_pop_front(&log->runs);
  run_at(log, 0)->first = index;
  run_at(log, 0)->term = term;
  if (log->durable < index) log->durable = index;
}

void raft_log_reset(struct raft_log *log, raft_index index, raft_term term)
{
  while (log->tail.n > 0)
    drop_front(log);
  while (log->runs.n > 1)
    raft_ring_pop_back(&log->runs);
  run_at(log, 0)->first = index;
  run_at(log, 0)->term = term;
  log->last = index;
  cut_writes(log, index);
  log->durable = index;
}

/* ---- writes ------------------------------------------------------------ */

void raft_log_writing(struct raft_log *log, uint64_t seq)
{
  struct raft_write *write = raft_ring_push(&log->writes);

  write->seq = seq;
  write->last = log->last;
}

void raft_log_written(struct raft_log *log, uint64_t seq)
{
  struct raft_write *write;

  while (log->writes.n > 0) {
    write = raft_ring_at(&log->writes, 0);
    if (write->seq > seq) break;
    if (log->durable < write->last) log->durable = write->last;
    raft_ring_pop_front(&log->writes);
  }
  assert(log->durable <= log->last);
}

uint64_t raft_log_seq(const struct raft_log *log, raft_index index)
{
  size_t low = 0, high = log->writes.n, middle;
  const struct raft_write *write;

  if (index <= log->durable) return 0;
  while (low < high) {
    middle = low + (high - low) / 2;
    write = raft_ring_at(&log->writes, middle);
    if (write->last >= index)
      high = middle;
    else
      low = middle + 1;
  }
  assert(low < log->writes.n); /* what is not durable is being written */
  write = raft_ring_at(&log->writes, low);
  return write->seq;
}

/* ---- invariants -------------------------------------------------------- */

#ifndef NDEBUG

void raft_log_check(const struct raft_log *log)
{
  assert(raft_log_snapshot(log) <= log->durable);
  assert(log->durable <= log->last);
  assert(log->tail.n <= log->last - raft_log_snapshot(log));
  /* What is not durable is in memory. */
  assert(tail_first(log) <= log->durable + 1);
  assert(log->tail.n == 0 || tail_at(log, log->tail.n - 1)->index == log->last);
  assert(log->tail.n == 0 || tail_at(log, log->tail.n - 1)->term ==
                                 run_at(log, log->runs.n - 1)->term);
  assert(run_at(log, log->runs.n - 1)->first <= log->last);
}

#endif
