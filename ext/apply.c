/*
** apply.c: carries out committed entries, in order.
**
** An entry is applied when it is committed and durable here: then nothing that
** was ever published can be missing from this node's log after a crash.
**
** A transaction is one COMMIT entry, or PAGES entries that end in a COMMIT of
** the same origin and sequence number. The parts wait in the log, not in
** memory; when their COMMIT comes, the worker applies them from the log while
** the loop goes on with everything else. Parts that are not followed by their
** COMMIT are dead when the first entry of a later term, or of another
** transaction, is applied.
**
** A COMMIT of this node's own that is still in flight is not applied but
** confirmed: its frames are in -wal already.
*/
#include "node.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define EARLIER_MAX 65536
#define TOGETHER 64 /* small transactions in one write of frames */

bool tx_parse(const struct raft_body *body, uint32_t page_size,
              struct tx_head *head, const uint32_t **pgnos,
              const uint8_t **pages)
{
  if (body == NULL || body->len < sizeof(*head)) return false;
  memcpy(head, body->data, sizeof(*head));
  if (head->page_size != page_size || head->count == 0 ||
      head->count > RAFT_BODY_MAX / page_size)
    return false;
  size_t offset = tx_pages_offset(head->count);
  if (body->len != offset + (size_t)head->count * page_size) return false;
  *pgnos = (const uint32_t *)(const void *)(body->data + sizeof(*head));
  *pages = body->data + offset;
  for (uint32_t i = 0; i < head->count; i++)
    if ((*pgnos)[i] == 0) return false;
  return true;
}

static bool same_transaction(const struct tx_head *a, const struct tx_head *b)
{
  return a->node == b->node && a->incarnation == b->incarnation &&
         a->sequence == b->sequence;
}

/* Appends the pages of one part to the open append of the WAL. */
static int append_part(struct wal *wal, const struct raft_body *body,
                       uint32_t n_page)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  int rc = 0;
  if (!tx_parse(body, wal->page_size, &head, &pgnos, &pages)) return -EBADMSG;
  for (uint32_t i = 0; rc == 0 && i < head.count; i++)
    if (pgnos[i] <= n_page)
      rc = wal_append_page(wal, pgnos[i], pages + (size_t)i * wal->page_size);
  return rc;
}

/* One entry from the log's files. */
static int read_one(struct node *node, raft_index index,
                    struct raft_entry *entry)
{
  char *error = NULL;
  int n =
      store_read(node->store, index, index, RAFT_BODY_MAX, 1, entry, &error);
  if (n != 1)
    events_add(&node->events, "reading the log back: %s",
               error ? error : errno_text(-n).s);
  free(error);
  return n == 1 ? 0 : n < 0 ? n : -ENOENT;
}

/* One entry from the tail or the log's files, with a reference to its body. */
static int get_entry(struct node *node, raft_index index,
                     struct raft_entry *entry)
{
  const struct raft_entry *e = raft_entry_at(node->raft, index);
  if (e == NULL) return read_one(node, index, entry);
  *entry = *e;
  raft_body_ref(e->body);
  return 0;
}

void apply_reject_before(struct node *node, raft_term term)
{
  bool any = false;
  pthread_mutex_lock(&node->mutex);
  while (node->inflight && node->inflight->grant.term < term) {
    node_settle(node, node->inflight, TX_REJECTED);
    any = true;
  }
  if (any) pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

void apply_reject_after(struct node *node, const struct grant *grant,
                        uint64_t position)
{
  pthread_mutex_lock(&node->mutex);
  for (struct transaction *tx = node->inflight, *next; tx; tx = next) {
    next = tx->next;
    if (tx->grant.term == grant->term && tx->grant.number == grant->number &&
        tx->position > position)
      node_settle(node, tx, TX_REJECTED);
  }
  pthread_mutex_unlock(&node->mutex);
}

void apply_reject_all(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  while (node->inflight)
    node_settle(node, node->inflight, TX_REJECTED);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- transactions ------------------------------------------------------ */

/* The oldest transaction in flight, if this entry ends it. */
static struct transaction *own(struct node *node,
                               const struct raft_entry *entry,
                               const struct tx_head *head)
{
  struct transaction *tx = node->inflight;
  bool same = tx && tx->grant.term == entry->term &&
              tx->sequence == head->sequence &&
              head->node == node->identity.id &&
              head->incarnation == node->identity.incarnation;
  return same ? tx : NULL;
}

/* One of this node's under an earlier host, whose process may have left somebody
   behind who wants to know what became of it. */
static void note_earlier(struct node *node, const struct tx_head *head)
{
  struct earlier *e = &node->earlier;
  if (head->node != node->identity.id ||
      head->incarnation != node->identity.incarnation ||
      head->sequence > node->started)
    return;
  pthread_mutex_lock(&node->mutex);
  if (e->n == e->cap && e->cap < EARLIER_MAX) {
    size_t cap = e->cap ? e->cap * 2 : 256;
    uint64_t *grown = realloc(e->sequences, cap * sizeof(*grown));
    if (grown) {
      e->sequences = grown;
      e->cap = cap;
    }
  }
  /* The newest ones are those that are asked for. */
  if (e->cap) e->sequences[e->n++ % e->cap] = head->sequence;
  pthread_mutex_unlock(&node->mutex);
}

bool apply_knows(struct node *node, uint64_t sequence)
{
  const struct earlier *e = &node->earlier;
  bool found = false;
  pthread_mutex_lock(&node->mutex);
  for (size_t i = 0; i < e->n && i < e->cap && !found; i++)
    found = e->sequences[i] == sequence;
  pthread_mutex_unlock(&node->mutex);
  return found;
}

void apply_leave_word(struct node *node)
{
  struct control *shared = node->shared;
  uint32_t n = atomic_load(&shared->slots_used);
  for (uint32_t i = 0; i < n && i < CONTROL_SLOTS; i++) {
    struct control_slot *slot = &shared->slots[i];
    uint64_t committed = atomic_load(&slot->committed);
    uint64_t handed = atomic_load(&slot->handed);
    /* If its process begins with another one just now, that has another
       number. */
    if (handed != 0 && handed != CONTROL_SENT && committed != handed &&
        apply_knows(node, handed))
      atomic_compare_exchange_strong(&slot->committed, &committed, handed);
  }
}

/* Nobody else adds to it. */
static void count(struct node *node, uint64_t applied)
{
  _Atomic uint64_t *n = &node->counters.transactions;
  atomic_store_explicit(n,
                        atomic_load_explicit(n, memory_order_relaxed) + applied,
                        memory_order_relaxed);
}

static int confirm_own(struct node *node, struct transaction *tx,
                       const struct raft_entry *entry)
{
  /* Before a checkpoint can take it out of the next host's sight. */
  if (tx->committed) atomic_store(tx->committed, tx->sequence);
  int rc = wal_confirm(node->wal, &tx->header, entry->index);
  if (rc) return rc;
  lock_confirmed(node, tx);
  pthread_mutex_lock(&node->mutex);
  /* Whoever learns of the commit may ask for the index next. */
  node->applied = entry->index;
  count(node, 1);
  node_settle(node, tx, TX_CONFIRMED);
  pthread_mutex_unlock(&node->mutex);
  return 0;
}

/* A part is missing: then the transaction is dead, on every node alike. */
static void drop_incomplete(struct node *node, struct transaction *tx,
                            const struct raft_entry *entry)
{
  node->n_open = 0;
  events_add(&node->events, "entry %llu ends a transaction that is not whole",
             (unsigned long long)entry->index);
  if (tx == NULL) return;
  pthread_mutex_lock(&node->mutex);
  node_settle(node, tx, TX_REJECTED);
  pthread_mutex_unlock(&node->mutex);
}

/* Another node has the lock since (lock.c, L3): what came before is settled.
   That this node's grant is over it may not have heard yet: who writes must not
   meet what is appended now. */
static void overtaken(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool thinks_so = node->can_write || node->writer;
  pthread_mutex_unlock(&node->mutex);
  if (thinks_so) lock_overtaken(node);
  apply_reject_all(node);
}

static int apply_commit(struct node *node, const struct raft_entry *entry)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  if (node->wal == NULL) return -EBADMSG;
  if (!tx_parse(entry->body, node->wal->page_size, &head, &pgnos, &pages) ||
      head.n_page == 0)
    return -EBADMSG;
  if (node->n_open && !same_transaction(&node->open_head, &head))
    node->n_open = 0;
  struct transaction *tx = own(node, entry, &head);
  if (head.part != node->n_open) {
    drop_incomplete(node, tx, entry);
    return 0;
  }
  if (tx) {
    int rc = confirm_own(node, tx, entry);
    /* Without room it comes here again, and needs its parts. */
    if (rc == 0) node->n_open = 0;
    return rc;
  }
  overtaken(node);
  note_earlier(node, &head);
  if (head.part > 0) {
    /* As many parts as it may be: not on this thread. */
    node->apply_busy = true;
    node->large_n_page = head.n_page;
    pthread_mutex_lock(&node->mutex);
    node->worker_apply = true;
    pthread_cond_signal(&node->worker_cond);
    pthread_mutex_unlock(&node->mutex);
    return 0;
  }
  wal_append_start(node->wal);
  int rc = append_part(node->wal, entry->body, head.n_page);
  if (rc == 0) rc = wal_append_commit(node->wal, head.n_page, entry->index);
  if (rc == 0) count(node, 1);
  return rc;
}

static int note_part(struct node *node, const struct raft_entry *entry)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  if (node->wal == NULL ||
      !tx_parse(entry->body, node->wal->page_size, &head, &pgnos, &pages))
    return -EBADMSG;
  if (node->n_open && !same_transaction(&node->open_head, &head))
    node->n_open = 0;
  if (head.part != node->n_open) {
    node->n_open = 0; /* a part is missing: its COMMIT will find that out */
    return 0;
  }
  if (node->n_open == node->cap_open) {
    unsigned cap = node->cap_open ? node->cap_open * 2 : 64;
    raft_index *grown = realloc(node->open_parts, cap * sizeof(*grown));
    if (grown == NULL) return -ENOMEM;
    node->open_parts = grown;
    node->cap_open = cap;
  }
  node->open_head = head;
  node->open_parts[node->n_open++] = entry->index;
  return 0;
}

static void after_apply(struct node *node);

/* The next entry could not be applied: later, when there is room, or never. */
static void not_applied(struct node *node, int rc)
{
  if (rc != -ENOSPC) {
    node_fail(node, "applying entry %llu: %s",
              (unsigned long long)(node->applied + 1), errno_text(-rc).s);
    return;
  }
  node->full_again = node->full_at == node->applied + 1;
  if (!node->full_again)
    events_add(&node->events, "no room to apply entry %llu",
               (unsigned long long)(node->applied + 1));
  node->full_at = node->applied + 1;
  node->apply_full = true;
}

static void large_done(struct task *task)
{
  struct node *node = task->node;
  node->apply_busy = false;
  if (node->large_rc) {
    not_applied(node, node->large_rc);
    return;
  }
  node->n_open = 0;
  count(node, 1);
  pthread_mutex_lock(&node->mutex);
  node->applied++;
  pthread_mutex_unlock(&node->mutex);
  after_apply(node);
  apply_committed(node);
}

/* Appends the part of the transaction that entry `index` holds. */
static int append_entry(struct node *node, raft_index index, uint32_t n_page,
                        uint64_t *bytes)
{
  struct raft_entry entry;
  int rc = read_one(node, index, &entry);
  if (rc) return rc;
  if (entry.body) *bytes += entry.body->len;
  rc = append_part(node->wal, entry.body, n_page);
  raft_body_unref(entry.body);
  return rc;
}

static void fold_done(struct task *task)
{
  struct node *node = task->node;
  node->apply_busy = false;
  if (node->large_rc) {
    not_applied(node, node->large_rc);
    return;
  }
  pthread_mutex_lock(&node->mutex);
  node->applied = node->fold_to;
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&node->settled, true);
  after_apply(node);
  apply_committed(node);
}

void apply_large(struct node *node)
{
  if (!atomic_load(&node->settled)) {
    struct text error;
    node->large_rc = apply_fold(node, &node->fold_to, NULL, &error);
    node->large_task.run = fold_done;
    node_post(node, &node->large_task);
    return;
  }
  /* The loop does not apply while this runs: what it owns may be read. */
  raft_index last = node->applied + 1;
  uint32_t n_page = node->large_n_page;
  uint64_t bytes = 0;
  int rc = 0, work = work_begin(node, "applying a large transaction");
  wal_append_start(node->wal);
  for (unsigned i = 0; rc == 0 && i < node->n_open; i++) {
    rc = append_entry(node, node->open_parts[i], n_page, &bytes);
    work_steps(node, work, i + 1, node->n_open + 1, bytes);
  }
  if (rc == 0) rc = append_entry(node, last, n_page, &bytes);
  if (rc == 0) rc = wal_append_commit(node->wal, n_page, last);
  work_end(node, &work);
  node->large_rc = rc;
  node->large_task.run = large_done;
  node_post(node, &node->large_task);
}

/* ---- entries ----------------------------------------------------------- */

/* Parts that wait for their COMMIT are needed again after a restart: only
   what is before them counts as confirmed. */
static void advance(struct node *node, raft_index index)
{
  if (node->wal && node->n_open == 0) wal_advance(node->wal, index);
}

static int note_configuration(struct node *node, const struct raft_entry *entry)
{
  struct applied_configuration *a = calloc(1, sizeof(*a));
  struct applied_configuration **at = &node->history;
  if (a == NULL) return -ENOMEM;
  if (entry->body == NULL ||
      raft_configuration_decode(entry->body->data, entry->body->len,
                                &a->configuration) != 0) {
    free(a);
    return -EBADMSG;
  }
  a->index = entry->index;
  pthread_mutex_lock(&node->mutex);
  int rc = member_apply(node, &a->configuration, a->index);
  node->configuration = a->configuration;
  node->configuration_index = a->index;
  while (*at)
    at = &(*at)->next;
  *at = a;
  pthread_mutex_unlock(&node->mutex);
  return rc;
}

static int note_setting(struct node *node, const struct raft_entry *entry)
{
  pthread_mutex_lock(&node->mutex);
  int rc = entry->body ? settings_apply(&node->settings, entry->body->data,
                                        entry->body->len)
                       : -1;
  pthread_mutex_unlock(&node->mutex);
  return rc ? -EBADMSG : 0;
}

static int apply_entry(struct node *node, const struct raft_entry *entry)
{
  int rc = 0;
  switch (entry->type) {
  case RAFT_NOOP:
    /* A new term: what was in flight before it and is not committed by now
       never will be. */
    node->n_open = 0;
    apply_reject_before(node, entry->term);
    advance(node, entry->index);
    return 0;
  case RAFT_CONFIGURATION: rc = note_configuration(node, entry); break;
  case RAFT_SETTING: rc = note_setting(node, entry); break;
  case RAFT_PAGES: return note_part(node, entry);
  case RAFT_COMMIT: return apply_commit(node, entry);
  default: return -EBADMSG;
  }
  if (rc) return rc;
  advance(node, entry->index);
  if (entry->type == RAFT_SETTING) verify_apply(node, entry);
  return 0;
}

static void want_checkpoint(struct node *node, uint64_t now)
{
  pthread_mutex_lock(&node->mutex);
  if (!node->worker_wanted && now >= node->next_checkpoint) {
    node->worker_wanted = true;
    pthread_cond_signal(&node->worker_cond);
  }
  pthread_mutex_unlock(&node->mutex);
}

static void after_apply(struct node *node)
{
  member_look(node);
  node_progressed(node);
  if (node->wal && wal_frames(node->wal, NULL) >=
                       checkpoint_bound(node, node_limits.checkpoint_frames))
    want_checkpoint(node, clock_monotonic_ms());
}

void apply_tick(struct node *node)
{
  uint64_t now = clock_monotonic_ms();
  uint32_t backfill, frames;
  if (node->wal == NULL) return;
  frames = wal_frames(node->wal, &backfill);
  if (frames != node->seen_frames) {
    node->seen_frames = frames;
    node->quiet_since = now;
  }
  if (frames >= checkpoint_bound(node, node_limits.checkpoint_frames) ||
      (frames > backfill && now - node->quiet_since >= node_limits.quiet_ms))
    want_checkpoint(node, now);
}

/* The folded transaction that a start after a loss of power has put off: what
   is in -wal is committed, and with it everything up to there. */
static void fold_late(struct node *node, raft_index limit)
{
  bool leads = raft_role(node->raft) == RAFT_LEADER;
  raft_index sure = leads ? node->lead_from : node->serve_from;
  if (sure == 0 || limit < sure || node->apply_busy || node->failed ||
      node->apply_full)
    return;
  fetch_needless(node);
  node->apply_busy = true;
  node->fold_to = limit;
  pthread_mutex_lock(&node->mutex);
  node->worker_apply = true;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}

/* A small transaction of another node is appended, to be published with those
   after it. False: it is none, or *rc. */
static bool stage(struct node *node, const struct raft_entry *entry, bool first,
                  int *rc)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  if (entry->type != RAFT_COMMIT || node->n_open || node->wal == NULL ||
      !tx_parse(entry->body, node->wal->page_size, &head, &pgnos, &pages) ||
      head.n_page == 0 || head.part != 0 || own(node, entry, &head))
    return false;
  if (first) {
    overtaken(node);
    wal_append_start(node->wal);
  }
  note_earlier(node, &head);
  *rc = append_part(node->wal, entry->body, head.n_page);
  if (*rc == 0) *rc = wal_append_end(node->wal, head.n_page, entry->index);
  return *rc == 0;
}

static void set_applied(struct node *node, raft_index index)
{
  pthread_mutex_lock(&node->mutex);
  node->applied = index;
  pthread_mutex_unlock(&node->mutex);
}

/* Applies entries up to `limit` that can be published together; or one. */
static int apply_some(struct node *node, raft_index limit)
{
  raft_index at = node->applied;
  struct raft_entry entry;
  int rc = 0;
  bool staged = true;
  while (staged && at < limit && at - node->applied < TOGETHER) {
    rc = get_entry(node, at + 1, &entry);
    if (rc) break;
    staged = stage(node, &entry, at == node->applied, &rc);
    if (staged) at++;
    if (!staged && rc == 0 && at == node->applied) {
      rc = apply_entry(node, &entry);
      if (rc == 0 && !node->apply_busy) set_applied(node, at + 1);
      raft_body_unref(entry.body);
      return rc;
    }
    raft_body_unref(entry.body);
  }
  if (rc == 0) rc = wal_append_publish(node->wal);
  if (rc == 0) count(node, at - node->applied);
  if (rc == 0) set_applied(node, at);
  return rc;
}

void apply_committed(struct node *node)
{
  raft_index durable = raft_durable(node->raft);
  raft_index limit = node->commit < durable ? node->commit : durable;
  bool any = false;
  if (!atomic_load(&node->settled)) {
    fold_late(node, limit);
    return;
  }
  /* The log goes on where this node is: no snapshot is needed. */
  if (node->wal && node->applied < limit) fetch_needless(node);
  while (node->applied < limit && !node->apply_busy && !node->failed &&
         !node->apply_full) {
    int rc = apply_some(node, limit);
    if (rc) {
      not_applied(node, rc);
      return;
    }
    if (node->apply_busy) break; /* a large one: counted when it is done */
    any = true;
  }
  if (any) after_apply(node);
}

/* ---- the folded transaction -------------------------------------------- */

struct folded {
  uint32_t pgno, position; /* position in its entry */
  raft_index index;
};

struct fold {
  struct folded *images;
  size_t n, cap;
  struct tx_head head; /* of the newest part */
  bool whole_so_far;   /* its transaction misses no part, but for the rest */
  uint32_t n_page;
  raft_index to; /* no transaction is open after this entry */
};

static int fold_add(struct fold *fold, raft_index index, const uint32_t *pgnos,
                    uint32_t count)
{
  if (fold->n + count > fold->cap) {
    size_t cap = fold->cap ? fold->cap * 2 : 1024;
    while (cap < fold->n + count)
      cap *= 2;
    struct folded *grown = realloc(fold->images, cap * sizeof(*grown));
    if (grown == NULL) return -ENOMEM;
    fold->images = grown;
    fold->cap = cap;
  }
  for (uint32_t i = 0; i < count; i++) {
    struct folded *page = &fold->images[fold->n++];
    page->pgno = pgnos[i];
    page->position = i;
    page->index = index;
  }
  return 0;
}

static int by_page_newest_first(const void *a, const void *b)
{
  const struct folded *x = a, *y = b;
  if (x->pgno != y->pgno) return x->pgno < y->pgno ? -1 : 1;
  if (x->index != y->index) return x->index > y->index ? -1 : 1;
  return x->position < y->position ? -1 : x->position > y->position;
}

static int by_entry(const void *a, const void *b)
{
  const struct folded *x = a, *y = b;
  if (x->index != y->index) return x->index < y->index ? -1 : 1;
  return x->position < y->position ? -1 : x->position > y->position;
}

/* Parts are listed as they come; those that no COMMIT follows are taken back
   when that is known. */
static int fold_entry(struct node *node, struct fold *fold,
                      const struct raft_entry *entry, size_t *whole)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  if (entry->type == RAFT_NOOP) {
    fold->n = *whole;
    fold->whole_so_far = false;
  }
  if (entry->type != RAFT_PAGES && entry->type != RAFT_COMMIT) return 0;
  if (!tx_parse(entry->body, node->wal->page_size, &head, &pgnos, &pages))
    return -EBADMSG;
  /* As note_part() and apply_commit() do. */
  if (head.part == 0)
    fold->whole_so_far = true;
  else if (!same_transaction(&head, &fold->head) ||
           head.part != fold->head.part + 1)
    fold->whole_so_far = false;
  if (head.part == 0 || !fold->whole_so_far) fold->n = *whole;
  fold->head = head;
  if (!fold->whole_so_far) return 0;
  int rc = fold_add(fold, entry->index, pgnos, head.count);
  if (rc == 0 && entry->type == RAFT_COMMIT) {
    *whole = fold->n;
    fold->n_page = head.n_page;
    fold->whole_so_far = false;
    note_earlier(node, &head);
  }
  return rc;
}

static int fold_collect(struct node *node, struct fold *fold, raft_index from,
                        raft_index to)
{
  size_t whole = 0;
  int rc = 0;
  for (raft_index i = from + 1; rc == 0 && i <= to; i++) {
    struct raft_entry entry;
    rc = read_one(node, i, &entry);
    if (rc) break;
    rc = fold_entry(node, fold, &entry, &whole);
    if (rc == 0 && entry.type == RAFT_CONFIGURATION)
      rc = note_configuration(node, &entry);
    if (rc == 0 && entry.type == RAFT_SETTING) rc = note_setting(node, &entry);
    raft_body_unref(entry.body);
    if (!fold->whole_so_far) fold->to = i;
  }
  fold->n = whole;
  return rc;
}

/* Keeps the newest image of each page that is still part of the database. */
static void fold_reduce(struct fold *fold)
{
  size_t kept = 0;
  if (fold->n == 0) return;
  qsort(fold->images, fold->n, sizeof(*fold->images), by_page_newest_first);
  for (size_t i = 0; i < fold->n; i++) {
    if (fold->images[i].pgno > fold->n_page) continue;
    if (kept && fold->images[kept - 1].pgno == fold->images[i].pgno) continue;
    fold->images[kept++] = fold->images[i];
  }
  fold->n = kept;
  qsort(fold->images, fold->n, sizeof(*fold->images), by_entry);
}

static int fold_append(struct node *node, struct fold *fold)
{
  struct wal *wal = node->wal;
  int rc = 0;
  for (size_t i = 0; rc == 0 && i < fold->n;) {
    struct raft_entry entry;
    struct tx_head head;
    const uint32_t *pgnos;
    const uint8_t *pages;
    raft_index index = fold->images[i].index;
    rc = read_one(node, index, &entry);
    if (rc) break;
    if (!tx_parse(entry.body, wal->page_size, &head, &pgnos, &pages))
      rc = -EBADMSG;
    for (; rc == 0 && i < fold->n && fold->images[i].index == index; i++)
      rc = wal_append_page(wal, fold->images[i].pgno,
                           pages + (size_t)fold->images[i].position *
                                       wal->page_size);
    raft_body_unref(entry.body);
  }
  return rc;
}

int apply_collect(struct node *node, raft_index to, struct fold **out,
                  struct text *error)
{
  struct fold *fold = calloc(1, sizeof(*fold));
  int rc = fold ? 0 : -ENOMEM;
  if (fold) {
    fold->to = node->checkpoint.index;
    rc = fold_collect(node, fold, fold->to, to);
    fold_reduce(fold);
  }
  *out = fold;
  if (rc == 0) return 0;
  text_set(error, "%s: applying the log: %s", node->path, errno_text(-rc).s);
  apply_drop(fold);
  *out = NULL;
  return rc;
}

int apply_collected(struct node *node, struct fold *fold, struct text *error)
{
  int rc = 0;
  error->s[0] = 0;
  if (fold->n) qsort(fold->images, fold->n, sizeof(*fold->images), by_entry);
  wal_append_start(node->wal);
  if (node->checkpoint.incoming) rc = fetch_append(node, &fold->n_page, error);
  if (rc == 0) rc = fold_append(node, fold);
  /* Without any page it only moves the index. */
  if (rc == 0) rc = wal_append_commit(node->wal, fold->n_page, fold->to);
  if (rc && error->s[0] == 0)
    text_set(error, "%s: applying the log: %s", node->path, errno_text(-rc).s);
  return rc;
}

raft_index apply_reaches(const struct fold *fold)
{
  return fold->to;
}

void apply_drop(struct fold *fold)
{
  if (fold == NULL) return;
  free(fold->images);
  free(fold);
}

int apply_fold(struct node *node, raft_index *to,
               int (*make_room)(struct node *node, raft_index most),
               struct text *error)
{
  struct fold *fold;
  int rc = apply_collect(node, *to, &fold, error);
  if (rc == 0) rc = apply_collected(node, fold, error);
  /* While pages of a snapshot wait, -wal makes no sense without them. */
  if (rc == -ENOSPC && make_room && !node->checkpoint.incoming &&
      make_room(node, *to) == 0)
    rc = apply_collected(node, fold, error);
  if (rc == 0) *to = fold->to;
  apply_drop(fold);
  return rc;
}
