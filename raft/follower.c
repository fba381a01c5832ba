/*
** follower.c: what a follower does with what a leader sends.
**
** Two marks describe how far this log is the leader's:
**
**   commit   committed; every leader from now on has it
**   agreed   the greatest index that an append of this term's leader has
**            matched; the log up to there is the leader's, byte for byte
**
** An append of this term is compared entry by entry, and only an entry that
** differs cuts the log: one that is there already is skipped, so duplicates
** and reordered appends do no harm. What is committed is never compared.
**
** An acknowledgement says "equal, and on my disk". For an append it waits for
** the write with its last entry. For a heartbeat it does not wait: it says
** how far both hold already. Once said in a term, both stay true while the
** term lasts, since a leader never replaces an entry of its own log.
*/
#include "internal.h"

/* ---- the leader -------------------------------------------------------- */

/* Follows the sender of a request in this term; false: it cannot be one. */
static bool follow(struct raft *r, const struct raft_message *m)
{
  assert(m->term == r->term);
  if (r->role == RAFT_LEADER) return false;
  if (r->role == RAFT_FOLLOWER && r->leader != 0 && r->leader != m->from)
    return false;
  if (r->leader != m->from || r->role != RAFT_FOLLOWER)
    raft_become_follower(r, r->term, m->from);
  raft_may_hurry(r);
  r->leader_heard = r->now;
  if (r->options.lease) r->votes_from = r->now + r->options.election_timeout_ms;
  raft_reset_election_timer(r);
  return true;
}

/* Equal to the leader's log, and durable. */
static raft_index durable_match(const struct raft *r)
{
  raft_index match = r->agreed > r->commit ? r->agreed : r->commit;

  return MUTANT(34) || match < r->log.durable ? match : r->log.durable;
}

static void learn_commit(struct raft *r, raft_index commit)
{
  raft_index known = MUTANT(5) ? r->log.last : r->agreed;

  if (commit > known) commit = known;
  if (commit > r->commit) r->commit = commit;
}

void raft_refuse_leader(struct raft *r, const struct raft_message *m)
{
  struct raft_message answer = {.type = RAFT_HEARTBEAT_RESPONSE};

  assert(m->term < r->term);
  if (m->type == RAFT_APPEND_REQUEST) {
    answer.type = RAFT_APPEND_RESPONSE;
    answer.prev_index = m->prev_index;
  }
  raft_send(r, m->from, &answer, 0);
}

/* ---- appends ----------------------------------------------------------- */

/* How many of the entries are in the log already. */
static uint32_t count_known(const struct raft *r, const struct raft_message *m)
{
  const struct raft_entry *entry;
  uint32_t i;

  for (i = 0; i < m->n_entries; i++) {
    entry = &m->entries[i];
    if (entry->index <= r->commit) continue;
    if (MUTANT(4) || raft_log_term(&r->log, entry->index) != entry->term) break;
  }
  return i;
}

static int decode_configuration(const struct raft_entry *entry,
                                struct raft_configuration *configuration)
{
  int rc;

  if (!entry->body) return RAFT_EMALFORMED;
  rc = raft_configuration_decode(entry->body->data, entry->body->len,
                                 configuration);
  if (!rc && raft_configuration_voters(configuration) == 0)
    rc = RAFT_EMALFORMED;
  return rc;
}

/* What no leader sends is refused before the log is touched. */
static bool acceptable(const struct raft *r, const struct raft_entry *entries,
                       uint32_t n)
{
  struct raft_configuration configuration;
  uint32_t i;

  if (entries[0].term < raft_log_term(&r->log, entries[0].index - 1))
    return false;
  if (entries[0].index <= r->log.last &&
      !raft_membership_may_truncate(r, entries[0].index))
    return false;
  for (i = 0; i < n; i++)
    if (entries[i].type == RAFT_CONFIGURATION &&
        decode_configuration(&entries[i], &configuration))
      return false;
  return true;
}

static void take_entries(struct raft *r, const struct raft_entry *entries,
                         uint32_t n)
{
  struct raft_configuration configuration;
  uint32_t i;

  assert(entries[0].index > r->commit);
  assert(entries[0].index <= r->log.last + 1);
  if (entries[0].index <= r->log.last) {
    raft_log_truncate(&r->log, entries[0].index);
    raft_membership_truncate(r, entries[0].index);
    if (r->agreed > r->log.last) r->agreed = r->log.last;
  }
  for (i = 0; i < n; i++) {
    if (raft_append(r, &entries[i])) return;
    if (!MUTANT(15) && entries[i].type == RAFT_CONFIGURATION &&
        decode_configuration(&entries[i], &configuration) == 0)
      raft_membership_use(r, &configuration, entries[i].index);
  }
  raft_log_evict(&r->log);
}

/* The logs differ at the request's prev_index: where may the leader look? */
static void reject(struct raft *r, const struct raft_message *m)
{
  struct raft_message answer = {
      .type = RAFT_APPEND_RESPONSE,
      .prev_index = m->prev_index,
      .match = durable_match(r),
  };

  answer.hint_index = raft_log_conflict(&r->log, m->prev_index, m->prev_term);
  if (answer.hint_index < r->commit) answer.hint_index = r->commit;
  answer.hint_term = raft_log_term(&r->log, answer.hint_index);
  raft_send(r, m->from, &answer, 0);
}

/* Everything up to `last` is here: says so when it is durable. */
static void accept(struct raft *r, const struct raft_message *m,
                   raft_index last)
{
  struct raft_message answer = {
      .type = RAFT_APPEND_RESPONSE,
      .prev_index = m->prev_index,
      .granted = true,
      .match = durable_match(r),
  };
  uint64_t after = r->out.first != 0 && last >= r->out.first
                       ? raft_write_seq(r)
                       : raft_log_seq(&r->log, last);

  if (answer.match < last) answer.match = last;
  raft_send(r, m->from, &answer, MUTANT(33) ? 0 : after);
}

int raft_on_append_request(struct raft *r, const struct raft_message *m)
{
  raft_index last = m->prev_index + m->n_entries;
  uint32_t known;

  if (!follow(r, m)) return RAFT_EMALFORMED;
  /* A node that can write nothing takes nothing and acknowledges nothing. */
  if (r->disk_failed) {
    learn_commit(r, m->commit);
    return 0;
  }
  if (m->prev_index > r->commit &&
      (MUTANT(37) ? m->prev_index > r->log.last
                  : raft_log_term(&r->log, m->prev_index) != m->prev_term)) {
    reject(r, m);
    return 0;
  }
  known = count_known(r, m);
  if (known < m->n_entries) {
    if (!acceptable(r, m->entries + known, m->n_entries - known))
      return RAFT_EMALFORMED;
    take_entries(r, m->entries + known, m->n_entries - known);
    if (r->failed) return RAFT_ENOMEM;
  }
  if (r->agreed < last) r->agreed = last;
  if (r->agreed < r->commit) r->agreed = r->commit;
  learn_commit(r, m->commit);
  accept(r, m, last);
  return 0;
}

int raft_on_heartbeat_request(struct raft *r, const struct raft_message *m)
{
  struct raft_message answer = {.type = RAFT_HEARTBEAT_RESPONSE,
                                .read = m->read};

  if (!follow(r, m)) return RAFT_EMALFORMED;
  learn_commit(r, m->commit);
  if (r->disk_failed) return 0;
  answer.match = durable_match(r);
  raft_send(r, m->from, &answer, 0);
  return 0;
}

/* ---- snapshots --------------------------------------------------------- */

/* The snapshot is not a prefix of this log, which therefore goes. */
static int replace_log(struct raft *r, raft_index index, raft_term term,
                       const struct raft_configuration *configuration)
{
  if (!configuration || index <= r->commit || r->role == RAFT_LEADER)
    return RAFT_EINVAL;
  if (term > r->term) raft_become_follower(r, term, 0);
  raft_log_reset(&r->log, index, term);
  raft_membership_reset(r, configuration, index);
  if (r->agreed > index) r->agreed = index;
  return 0;
}

/*
** A checkpoint of this node's own, or a snapshot from the leader. What is
** older than the one before is of no interest.
*/
int raft_snapshot_installed(struct raft *r, raft_index index, raft_term term,
                            const struct raft_configuration *configuration)
{
  int rc;

  if (index <= raft_log_snapshot(&r->log)) return 0;
  if (index > RAFT_NUMBER_MAX || term == 0) return RAFT_EINVAL;
  if (configuration && (!raft_configuration_valid(configuration) ||
                        raft_configuration_voters(configuration) == 0))
    return RAFT_EINVAL;
  if (raft_log_term(&r->log, index) == term ||
      (MUTANT(9) && index < r->log.last)) {
    raft_log_compact(&r->log, index, term);
  } else {
    rc = replace_log(r, index, term, configuration);
    if (rc) return rc;
  }
  if (r->commit < index) r->commit = index;
  if (r->role != RAFT_FOLLOWER && r->role != RAFT_LEADER &&
      !raft_may_campaign(r))
    raft_become_follower(r, r->term, 0);
  return 0;
}
