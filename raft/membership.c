/*
** membership.c: who belongs to the cluster.
**
** One change at a time (dissertation, chapter 4): with one server added or
** removed, any quorum of the old configuration and any of the new one have a
** member in common. A configuration is in force from the moment it is in the
** log, and no longer in force when it is cut off the log; so the one before
** is kept. A second change waits until the first is committed, and the first
** one of a term until an entry of that term is committed: without that, two
** leaders in turn could each replace a configuration that the other never
** saw, and their quorums need not meet.
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
  if (from > r->configuration_index) return;
  assert(from > r->previous_index);
  r->configuration = r->previous;
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

  if (!member || member->id == 0 || !texts_valid(member)) return RAFT_EINVAL;
  if (find(next, member->id)) return RAFT_EEXIST;
  if (next->n == RAFT_MEMBERS_MAX) return RAFT_EINVAL;
  added = &next->members[next->n++];
  added->id = member->id;
  added->incarnation = member->incarnation;
  added->role = RAFT_LEARNER;
  copy_texts(added, member);
  return 0;
}

static int promote(struct raft *r, struct raft_configuration *next, raft_id id)
{
  struct raft_member *member = find(next, id);

  if (!member) return RAFT_ENOTFOUND;
  if (member->role != RAFT_LEARNER) return RAFT_EINVAL;
  if (!raft_peer_caught_up(r, raft_peer(r, id))) return RAFT_ENOTREADY;
  member->role = RAFT_VOTER;
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
  return raft_configuration_voters(next) > 0 ? 0 : RAFT_EINVAL;
}

static int update(struct raft_configuration *next,
                  const struct raft_member *member)
{
  struct raft_member *updated;

  if (!member || !texts_valid(member)) return RAFT_EINVAL;
  updated = find(next, member->id);
  if (!updated) return RAFT_ENOTFOUND;
  if (updated->role != member->role ||
      updated->incarnation != member->incarnation)
    return RAFT_EINVAL;
  copy_texts(updated, member);
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
  r->out.proposed_first = r->out.proposed_last = entry.index;
  return 0;
}

int raft_change(struct raft *r, uint8_t what, raft_id id,
                const struct raft_member *member)
{
  struct raft_configuration next = r->configuration;
  int rc;

  if (r->disk_failed) return RAFT_EDISK;
  if (r->role != RAFT_LEADER) return RAFT_ENOTLEADER;
  if (r->configuration_index > r->commit || r->term_start > r->commit)
    return RAFT_ECHANGING;
  switch (what) {
  case RAFT_ADD_LEARNER: rc = add(&next, member); break;
  case RAFT_PROMOTE: rc = promote(r, &next, id); break;
  case RAFT_REMOVE: rc = drop(&next, id); break;
  case RAFT_UPDATE: rc = update(&next, member); break;
  default: rc = RAFT_EINVAL;
  }
  return rc ? rc : append_configuration(r, &next);
}
