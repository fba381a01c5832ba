/*
** membership.c: who belongs to the cluster.
**
** One change at a time, of any number of members. When it changes who has a
** vote, it goes through a joint configuration (paper, section 6), in which
** whatever needs a quorum needs one of the old voters and one of the new:
**
**    C-old                C-old,new                  C-new
**      |---- change asked ---->|--- when committed ---->|
**
** The leader, whoever it is by then, takes the second step on its own. Every
** quorum of C-old and every one of C-new meets every one of C-old,new.
**
** A configuration is in force from the moment it is in the log, and no longer
** in force when it is cut off the log; so the one before is kept. A second
** change waits until the first is complete and committed, and the first one of
** a term until an entry of that term is committed: without that, two leaders
** in turn could each replace a configuration that the other never saw, and
** their quorums need not meet.
**
** Peers: raft.peers[i] is what this node knows of configuration.members[i].
** When the configuration changes, what is known of those who stay moves with
** them. A member whose incarnation changed is not the one who was known.
*/
#include "internal.h"

#include <string.h>

/* ---- configurations in force ------------------------------------------- */

static const struct raft_peer *find_old(const struct raft_peer *old,
                                        const struct raft_member *member)
{
  unsigned i;

  for (i = 0; i < RAFT_MEMBERS_MAX; i++)
    if (old[i].id == member->id && old[i].incarnation == member->incarnation)
      return &old[i];
  return NULL;
}

static unsigned free_slot(uint32_t *taken)
{
  unsigned slot = 0;

  while (*taken >> slot & 1)
    slot++;
  assert(slot < RAFT_MEMBERS_MAX);
  *taken |= 1u << slot;
  return slot;
}

void raft_membership_peers(struct raft *r)
{
  struct raft_peer old[RAFT_MEMBERS_MAX];
  const struct raft_member *member;
  const struct raft_peer *known;
  uint32_t taken = 0;
  unsigned i;

  memcpy(old, r->peers, sizeof old);
  memset(r->peers, 0, sizeof r->peers);
  for (i = 0; i < r->configuration.n; i++) {
    known = find_old(old, &r->configuration.members[i]);
    if (!known) continue;
    r->peers[i] = *known;
    taken |= 1u << known->slot;
  }
  for (i = 0; i < r->configuration.n; i++) {
    member = &r->configuration.members[i];
    if (r->peers[i].id != 0) continue;
    r->peers[i].id = member->id;
    r->peers[i].incarnation = member->incarnation;
    r->peers[i].slot = free_slot(&taken);
    raft_peer_reset(r, &r->peers[i], r->log.last + 1);
  }
}

void raft_membership_use(struct raft *r,
                         const struct raft_configuration *configuration,
                         raft_index index)
{
  assert(index > r->configuration_index);
  r->previous = r->configuration;
  r->previous_index = r->configuration_index;
  r->configuration = *configuration;
  r->configuration_index = index;
  r->out.configuration_changed = true;
  raft_membership_peers(r);
}

bool raft_membership_may_truncate(const struct raft *r, raft_index from)
{
  return from > r->configuration_index || from > r->previous_index;
}

void raft_membership_truncate(struct raft *r, raft_index from)
{
  if (MUTANT(14) || from > r->configuration_index) return;
  assert(from > r->previous_index);
  if (!MUTANT(10)) r->configuration = r->previous;
  r->configuration_index = r->previous_index;
  r->out.configuration_changed = true;
  raft_membership_peers(r);
}

void raft_membership_reset(struct raft *r,
                           const struct raft_configuration *configuration,
                           raft_index index)
{
  r->configuration = *configuration;
  r->configuration_index = index;
  r->previous = *configuration;
  r->previous_index = index;
  r->out.configuration_changed = true;
  raft_membership_peers(r);
}

/* ---- changes ----------------------------------------------------------- */

static struct raft_member *find(struct raft_configuration *configuration,
                                raft_id id)
{
  unsigned i;

  for (i = 0; i < configuration->n; i++)
    if (configuration->members[i].id == id) return &configuration->members[i];
  return NULL;
}

static bool texts_valid(const struct raft_member *member)
{
  return memchr(member->name, 0, RAFT_NAME_MAX) &&
         memchr(member->address, 0, RAFT_ADDRESS_MAX);
}

/* Filled up with zeros, as a decoded one is. */
static void copy_texts(struct raft_member *to, const struct raft_member *from)
{
  memset(to->name, 0, sizeof to->name);
  memset(to->address, 0, sizeof to->address);
  memcpy(to->name, from->name, strlen(from->name));
  memcpy(to->address, from->address, strlen(from->address));
}

static int add(struct raft_configuration *next,
               const struct raft_member *member)
{
  struct raft_member *added;

  if (!member || member->id == 0 || !texts_valid(member) ||
      member->priority > RAFT_AVOID)
    return RAFT_EINVAL;
  if (find(next, member->id)) return RAFT_EEXIST;
  if (next->n == RAFT_MEMBERS_MAX) return RAFT_EINVAL;
  added = &next->members[next->n++];
  memset(added, 0, sizeof *added);
  added->id = member->id;
  added->incarnation = member->incarnation;
  added->role = RAFT_LEARNER;
  added->priority = member->priority;
  copy_texts(added, member);
  return 0;
}

static int promote(struct raft *r, struct raft_configuration *next, raft_id id)
{
  struct raft_member *member = find(next, id);
  const struct raft_peer *peer = raft_peer(r, id);

  if (!member) return RAFT_ENOTFOUND;
  if (member->role != RAFT_LEARNER) return RAFT_EINVAL;
  /* One that is added by the same change has not caught up either. */
  if (!peer || peer->incarnation != member->incarnation ||
      (!MUTANT(49) && !raft_peer_caught_up(r, peer)))
    return RAFT_ENOTREADY;
  member->role = RAFT_VOTER;
  return 0;
}

static int demote(struct raft_configuration *next, raft_id id)
{
  struct raft_member *member = find(next, id);

  if (!member) return RAFT_ENOTFOUND;
  if (member->role != RAFT_VOTER) return RAFT_EINVAL;
  member->role = RAFT_LEARNER;
  return 0;
}

static int drop(struct raft_configuration *next, raft_id id)
{
  struct raft_member *member = find(next, id);
  size_t after;

  if (!member) return RAFT_ENOTFOUND;
  after = (size_t)(&next->members[next->n] - member - 1);
  memmove(member, member + 1, after * sizeof *member);
  next->n--;
  memset(&next->members[next->n], 0, sizeof *member);
  return 0;
}

static int update(struct raft_configuration *next,
                  const struct raft_member *member)
{
  struct raft_member *updated;

  if (!member || !texts_valid(member) || member->priority > RAFT_AVOID)
    return RAFT_EINVAL;
  updated = find(next, member->id);
  if (!updated) return RAFT_ENOTFOUND;
  if (updated->role != member->role ||
      updated->incarnation != member->incarnation)
    return RAFT_EINVAL;
  updated->priority = member->priority;
  copy_texts(updated, member);
  return 0;
}

/* Whether the same members vote in both, neither of which is joint. */
static bool same_voters(const struct raft_configuration *a,
                        const struct raft_configuration *b)
{
  const struct raft_member *member;
  unsigned i;

  if (raft_configuration_voters(a) != raft_configuration_voters(b))
    return false;
  for (i = 0; i < a->n; i++) {
    if (a->members[i].role != RAFT_VOTER) continue;
    member = raft_configuration_find(b, a->members[i].id);
    if (!member || member->role != RAFT_VOTER) return false;
  }
  return true;
}

/* Makes `next` the joint configuration of the old one and itself. */
static int join(const struct raft_configuration *old,
                struct raft_configuration *next)
{
  const struct raft_member *voter;
  struct raft_member *member;
  unsigned i;

  for (i = 0; i < old->n; i++) {
    voter = &old->members[i];
    if (voter->role != RAFT_VOTER) continue;
    member = find(next, voter->id);
    /* Its place was given to another incarnation: first remove, then add. */
    if (member && member->incarnation != voter->incarnation) return RAFT_EEXIST;
    if (!member) {
      if (next->n == RAFT_MEMBERS_MAX) return RAFT_EINVAL;
      member = &next->members[next->n++];
      *member = *voter;
      member->role = RAFT_LEAVING;
    }
    member->outgoing = true;
  }
  return 0;
}

static int append_configuration(struct raft *r,
                                const struct raft_configuration *next)
{
  struct raft_entry entry = {.term = r->term, .type = RAFT_CONFIGURATION};
  int rc;

  entry.index = r->log.last + 1;
  entry.body = raft_configuration_encode(next);
  if (!entry.body) {
    r->failed = true;
    return RAFT_ENOMEM;
  }
  rc = raft_append(r, &entry);
  raft_body_unref(entry.body);
  if (rc) return rc;
  raft_membership_use(r, next, entry.index);
  return 0;
}

/* One step of a change; `next` is not joint yet. */
static int make(struct raft *r, struct raft_configuration *next,
                const struct raft_change *change)
{
  switch (change->type) {
  case RAFT_ADD_LEARNER: return add(next, change->member);
  case RAFT_PROMOTE: return promote(r, next, change->id);
  case RAFT_REMOVE: return drop(next, change->id);
  case RAFT_UPDATE: return update(next, change->member);
  case RAFT_DEMOTE: return demote(next, change->id);
  default: return RAFT_EINVAL;
  }
}

int raft_change(struct raft *r, unsigned n, const struct raft_change *items)
{
  struct raft_configuration next = r->configuration;
  unsigned i;
  int rc = 0;

  if (r->disk_failed) return RAFT_EDISK;
  if (r->role != RAFT_LEADER) return RAFT_ENOTLEADER;
  if (r->lead.transfer_to != 0) return RAFT_ETRANSFER;
  if (r->configuration_index > r->commit ||
      (!MUTANT(13) && r->lead.start > r->commit) ||
      raft_configuration_joint(&r->configuration))
    return RAFT_ECHANGING;
  if (n == 0) return RAFT_EINVAL;
  for (i = 0; !rc && i < n; i++)
    rc = make(r, &next, &items[i]);
  if (!rc && raft_configuration_voters(&next) == 0) rc = RAFT_EINVAL;
  if (!rc && !same_voters(&r->configuration, &next))
    rc = join(&r->configuration, &next);
  if (rc) return rc;
  rc = append_configuration(r, &next);
  r->out.proposed_first = r->out.proposed_last = r->log.last;
  return rc;
}

void raft_membership_leave_joint(struct raft *r)
{
  struct raft_configuration next = {0};
  const struct raft_member *member;
  unsigned i;

  if (r->configuration_index > r->commit || r->lead.start > r->commit) return;
  if (MUTANT(39) || !raft_configuration_joint(&r->configuration)) return;
  for (i = 0; i < r->configuration.n; i++) {
    member = &r->configuration.members[i];
    if (member->role == RAFT_LEAVING) continue;
    next.members[next.n] = *member;
    next.members[next.n++].outgoing = false;
  }
  append_configuration(r, &next);
}
