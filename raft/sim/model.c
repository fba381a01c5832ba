/*
** model.c: what a node's disk must hold.
**
** Two logs are kept of every node, as chains of hashes: one as its core has
** it, one as it was reported durable. Between them lies what was handed to the
** store and not yet reported. When a process starts, what it has recovered
** must be the durable log, or that with some prefix of the unreported entries
** done to it: all at once, since chains are equal only if everything below is.
** So a log that lost, changed or mixed anything is seen, and nothing is ever
** compared twice.
*/
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define READ_ENTRIES 64

uint64_t chain_next(uint64_t chain, const struct raft_entry *entry)
{
  uint64_t sum = entry->body ? entry->body->checksum : entry->type;

  return sim_mix(chain, sum + entry->term * 31 + entry->type) | 1;
}

/* ---- logs -------------------------------------------------------------- */

static void reserve(struct model_log *log, raft_index index)
{
  if (index < log->capacity) return;
  log->capacity = 2 * index + 256;
  log->chain = sim_resize(log->chain, log->capacity * sizeof *log->chain);
  log->term = sim_resize(log->term, log->capacity * sizeof *log->term);
}

void model_set(struct model_log *log, raft_index index, raft_term term,
               uint64_t chain)
{
  reserve(log, index);
  log->chain[index] = chain;
  log->term[index] = term;
  log->last = index;
}

void model_begin(struct model_log *log, raft_index base, raft_term term,
                 uint64_t chain)
{
  model_set(log, base, term, chain);
  log->base = base;
}

bool model_has(const struct model_log *log, raft_index index, uint64_t chain)
{
  if (index < log->base) return true; /* what is compacted was committed */
  return index <= log->last && log->chain && log->chain[index] == chain;
}

struct model *node_model(struct node *n)
{
  return &n->models[n->n_lives - 1];
}

const struct model *sim_model(const struct sim *s, raft_id id,
                              uint64_t incarnation)
{
  const struct node *n;
  unsigned i;

  if (id == 0 || id > SIM_NODES) return NULL;
  n = &s->nodes[id];
  for (i = 0; i < n->n_lives; i++)
    if (n->models[i].incarnation == incarnation) return &n->models[i];
  return NULL;
}

/* ---- writes under way -------------------------------------------------- */

static struct model_write *add_write(struct node_writes *w)
{
  struct model_write *bigger;
  size_t i, old = w->write_capacity;

  if (w->n_writes == old) {
    w->write_capacity = old ? 2 * old : 16;
    bigger = sim_resize(NULL, w->write_capacity * sizeof *bigger);
    for (i = 0; i < old; i++)
      bigger[i] = w->writes[(w->write_head + i) & (old - 1)];
    free(w->writes);
    w->writes = bigger;
    w->write_head = 0;
  }
  return &w->writes[(w->write_head + w->n_writes++) & (w->write_capacity - 1)];
}

static struct model_entry *add_entry(struct node_writes *w)
{
  struct model_entry *bigger;
  size_t i, old = w->entry_capacity;

  if (w->n_entries == old) {
    w->entry_capacity = old ? 2 * old : 64;
    bigger = sim_resize(NULL, w->entry_capacity * sizeof *bigger);
    for (i = 0; i < old; i++)
      bigger[i] = w->entries[(w->entry_head + i) & (old - 1)];
    free(w->entries);
    w->entries = bigger;
    w->entry_head = 0;
  }
  return &w->entries[(w->entry_head + w->n_entries++) &
                     (w->entry_capacity - 1)];
}

static const struct model_write *write_at(const struct node_writes *w, size_t i)
{
  return &w->writes[(w->write_head + i) & (w->write_capacity - 1)];
}

static const struct model_entry *entry_at(const struct node_writes *w, size_t i)
{
  return &w->entries[(w->entry_head + i) & (w->entry_capacity - 1)];
}

/* The entries are in n->log already: check_write() saw to that. */
void model_submit(struct sim *s, struct node *n,
                  const struct raft_persist *persist)
{
  struct model_write *write = add_write(&n->writes);
  struct model_entry *entry;
  unsigned i;

  if (n->writes.n_writes > 4096)
    sim_fail(s, "I15", "node %u has %zu writes under way", n->id,
             n->writes.n_writes);
  write->seq = persist->seq;
  write->vote = persist->vote;
  write->term = persist->term;
  write->voted_for = persist->voted_for;
  write->n = persist->n_entries;
  for (i = 0; i < persist->n_entries; i++) {
    entry = add_entry(&n->writes);
    entry->index = persist->entries[i].index;
    entry->term = persist->entries[i].term;
    entry->chain = n->log.chain[entry->index];
  }
}

void model_durable(struct sim *s, struct node *n, uint64_t seq)
{
  struct node_writes *w = &n->writes;
  struct model *m = node_model(n);
  const struct model_entry *entry;
  const struct model_write *write;
  unsigned i;

  while (w->n_writes > 0 && write_at(w, 0)->seq <= seq) {
    write = write_at(w, 0);
    if (write->vote) {
      m->term = write->term;
      m->voted_for = write->voted_for;
    }
    for (i = 0; i < write->n; i++) {
      entry = entry_at(w, i);
      if (entry->index > m->durable.last + 1)
        sim_fail(s, "I7", "node %u wrote entry %u after entry %u", n->id,
                 (unsigned)entry->index, (unsigned)m->durable.last);
      model_set(&m->durable, entry->index, entry->term, entry->chain);
    }
    w->entry_head = (w->entry_head + write->n) & (w->entry_capacity - 1);
    w->n_entries -= write->n;
    w->write_head = (w->write_head + 1) & (w->write_capacity - 1);
    w->n_writes--;
  }
}

/* ---- a snapshot takes the place of the log ------------------------------ */

void model_reset_begin(struct sim *s, struct node *n, raft_index index,
                       raft_term term)
{
  struct model *m = node_model(n);

  (void)s, (void)term;
  if (m->n_cuts == sizeof m->cuts / sizeof *m->cuts)
    memmove(m->cuts, m->cuts + 1, --m->n_cuts * sizeof *m->cuts);
  m->cuts[m->n_cuts++] = index;
}

void model_reset_end(struct sim *s, struct node *n, raft_index index,
                     raft_term term)
{
  uint64_t chain = check_committed(s, index)->chain;
  struct model *m = node_model(n);

  model_begin(&m->durable, index, term, chain);
  model_begin(&n->log, index, term, chain);
  m->n_cuts = 0;
}

/* ---- recovery ---------------------------------------------------------- */

/* The log as it is on the disk, entry by entry. */
static const char *read_log(struct sim *s, struct node *n,
                            const struct raft_recovered *rec)
{
  struct raft_entry entries[READ_ENTRIES];
  raft_index index = rec->snapshot_index;
  uint64_t chain = index ? check_committed(s, index)->chain : 0;
  char *error = NULL;
  int got, i;

  if (index && !chain) return "the log begins after what nobody committed";
  model_begin(&n->log, index, rec->snapshot_term, chain);
  while (index < rec->last_index) {
    got = store_read(n->store, index + 1, rec->last_index, 1u << 20,
                     READ_ENTRIES, entries, &error);
    free(error);
    error = NULL;
    if (got <= 0) return "the log cannot be read back";
    for (i = 0; i < got; i++) {
      chain = chain_next(chain, &entries[i]);
      index = entries[i].index;
      if (!n->damaged) check_entry(s, n, index, entries[i].term, chain);
      model_set(&n->log, index, entries[i].term, chain);
      raft_body_unref(entries[i].body);
    }
  }
  return NULL;
}

static bool log_is(const struct model_log *log, raft_index last, uint64_t chain)
{
  return log->last == last && (last == 0 || log->chain[last] == chain);
}

static bool log_allowed(struct sim *s, struct node *n)
{
  const struct model *m = node_model(n);
  const struct model_entry *entry;
  size_t i;

  if (log_is(&n->log, m->durable.last,
             m->durable.chain ? m->durable.chain[m->durable.last] : 0))
    return true;
  for (i = 0; i < n->writes.n_entries; i++) {
    entry = entry_at(&n->writes, i);
    if (log_is(&n->log, entry->index, entry->chain)) return true;
  }
  for (i = 0; i < m->n_cuts; i++)
    if (log_is(&n->log, m->cuts[i], check_committed(s, m->cuts[i])->chain))
      return true;
  return false;
}

static bool vote_allowed(const struct node *n,
                         const struct store_checkpoint *checkpoint,
                         const struct raft_recovered *rec)
{
  const struct model *m = &n->models[n->n_lives - 1];
  const struct model_write *write;
  size_t i;

  if (rec->term == m->term && rec->voted_for == m->voted_for) return true;
  for (i = 0; i < n->writes.n_writes; i++) {
    write = write_at(&n->writes, i);
    if (write->vote && rec->term == write->term &&
        rec->voted_for == write->voted_for)
      return true;
  }
  /* From a snapshot; it may have come with a term of its own. */
  return rec->term > m->term && rec->term == checkpoint->term &&
         rec->voted_for == 0;
}

const char *model_recovered(struct sim *s, struct node *n,
                            const struct store_checkpoint *checkpoint,
                            const struct raft_recovered *rec)
{
  struct model *m = node_model(n);
  const char *why;

  if (checkpoint->index < m->checkpoint) return "the checkpoint is an old one";
  if (!vote_allowed(n, checkpoint, rec))
    return "the vote is not the one that was written"; /* I2 */
  why = read_log(s, n, rec);
  if (why) return why;
  if (!log_allowed(s, n)) return "the log is not the one that was written";
  n->writes.n_writes = n->writes.n_entries = 0;
  m->n_cuts = 0;
  m->term = n->vote_term = rec->term;
  m->voted_for = n->voted_for = rec->voted_for;
  m->checkpoint = checkpoint->index;
  m->durable.base = n->log.base;
  if (n->log.last >= m->durable.capacity || m->durable.capacity == 0)
    model_set(&m->durable, n->log.last, 0, 0);
  memcpy(m->durable.chain, n->log.chain,
         (n->log.last + 1) * sizeof *n->log.chain);
  memcpy(m->durable.term, n->log.term, (n->log.last + 1) * sizeof(raft_term));
  m->durable.last = n->log.last;
  return NULL;
}

void model_free(struct node *n)
{
  unsigned i;

  free(n->log.chain);
  free(n->log.term);
  for (i = 0; i < n->n_lives; i++) {
    free(n->models[i].durable.chain);
    free(n->models[i].durable.term);
  }
  free(n->writes.writes);
  free(n->writes.entries);
}
