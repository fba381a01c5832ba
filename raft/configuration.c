/*
** configuration.c: members, their encoding, and what a quorum is.
**
** A joint configuration is written as one list of members: each has its role
** in the new one, and those who had a vote in the old one are marked. A member
** with a role of its own and no mark is new to the vote; one whose role is
** RAFT_LEAVING is there only for its vote in the old one. Whether it is joint
** is whether anybody is marked: no configuration is without a voter.
**
** A configuration as the body of an entry, little-endian:
**
**    0  u32  number of members, at most RAFT_MEMBERS_MAX
**       then for each member, without padding:
**    0  u64  id, not 0, distinct
**    8  u64  incarnation
**   16  u8   bits 0-3: role, 4: outgoing, 5-6: priority, 7: 0
**   17  u8   length of the name, below RAFT_NAME_MAX
**   18  u16  length of the address, below RAFT_ADDRESS_MAX
**   20       the name, then the address, without closing zeros
**
** In memory, names and addresses are filled up with zeros, so that equal
** configurations are equal byte for byte.
*/
#include "internal.h"

#include <string.h>

#define MEMBER_HEAD 20

const struct raft_member *raft_configuration_find(
    const struct raft_configuration *configuration, raft_id id)
{
  unsigned i;

  for (i = 0; i < configuration->n; i++)
    if (configuration->members[i].id == id) return &configuration->members[i];
  return NULL;
}

bool raft_configuration_joint(const struct raft_configuration *configuration)
{
  unsigned i;

  for (i = 0; i < configuration->n; i++)
    if (configuration->members[i].outgoing) return true;
  return false;
}

bool raft_member_votes(const struct raft_member *member)
{
  return member->role == RAFT_VOTER || member->outgoing;
}

unsigned raft_configuration_voters(
    const struct raft_configuration *configuration)
{
  unsigned i, n = 0;

  for (i = 0; i < configuration->n; i++)
    if (configuration->members[i].role == RAFT_VOTER) n++;
  return n;
}

static bool member_valid(const struct raft_member *member)
{
  if (member->role != RAFT_VOTER && member->role != RAFT_LEARNER &&
      (member->role != RAFT_LEAVING || !member->outgoing))
    return false;
  return member->id != 0 && member->priority <= RAFT_AVOID &&
         memchr(member->name, 0, RAFT_NAME_MAX) &&
         memchr(member->address, 0, RAFT_ADDRESS_MAX);
}

bool raft_configuration_valid(const struct raft_configuration *configuration)
{
  unsigned i, j;

  if (configuration->n > RAFT_MEMBERS_MAX) return false;
  for (i = 0; i < configuration->n; i++) {
    if (!member_valid(&configuration->members[i])) return false;
    for (j = 0; j < i; j++)
      if (configuration->members[i].id == configuration->members[j].id)
        return false;
  }
  return true;
}

/* The quorum's value among the old voters, or among the new ones. */
static uint64_t majority(const struct raft_configuration *configuration,
                         bool outgoing, const uint64_t *values)
{
  const struct raft_member *member;
  uint64_t sorted[RAFT_MEMBERS_MAX];
  unsigned i, j, n = 0;

  /* Insertion, greatest first: voters are few. */
  for (i = 0; i < configuration->n; i++) {
    member = &configuration->members[i];
    if (outgoing ? !member->outgoing
                 : member->role != RAFT_VOTER && !MUTANT(16))
      continue;
    for (j = n++; j > 0 && sorted[j - 1] < values[i]; j--)
      sorted[j] = sorted[j - 1];
    sorted[j] = values[i];
  }
  return n > 0 ? sorted[MUTANT(18) ? (n - 1) / 2 : n / 2] : 0;
}

uint64_t raft_configuration_quorum(
    const struct raft_configuration *configuration, const uint64_t *values)
{
  uint64_t incoming = majority(configuration, false, values), outgoing;

  if (MUTANT(38) || !raft_configuration_joint(configuration)) return incoming;
  outgoing = majority(configuration, true, values);
  return incoming < outgoing ? incoming : outgoing;
}

/* ---- encoding ---------------------------------------------------------- */

static uint8_t *put(uint8_t *p, uint64_t value, unsigned bytes)
{
  unsigned i;

  for (i = 0; i < bytes; i++)
    *p++ = (uint8_t)(value >> (8 * i));
  return p;
}

static uint64_t get(const uint8_t *p, unsigned bytes)
{
  uint64_t value = 0;
  unsigned i;

  for (i = 0; i < bytes; i++)
    value |= (uint64_t)p[i] << (8 * i);
  return value;
}

static uint8_t *put_member(uint8_t *p, const struct raft_member *member)
{
  size_t name = strlen(member->name), address = strlen(member->address);

  p = put(p, member->id, 8);
  p = put(p, member->incarnation, 8);
  p = put(p,
          member->role | (unsigned)member->outgoing << 4 |
              (unsigned)member->priority << 5,
          1);
  p = put(p, name, 1);
  p = put(p, address, 2);
  memcpy(p, member->name, name);
  memcpy(p + name, member->address, address);
  return p + name + address;
}

struct raft_body *raft_configuration_encode(
    const struct raft_configuration *configuration)
{
  struct raft_body *body;
  size_t size = 4;
  uint8_t *p;
  unsigned i;

  assert(raft_configuration_valid(configuration));
  for (i = 0; i < configuration->n; i++)
    size += MEMBER_HEAD + strlen(configuration->members[i].name) +
            strlen(configuration->members[i].address);
  body = raft_body_new(size);
  if (!body) return NULL;

  p = put(body->data, configuration->n, 4);
  for (i = 0; i < configuration->n; i++)
    p = put_member(p, &configuration->members[i]);
  assert(p == body->data + size);
  raft_body_seal(body);
  return body;
}

/* Text of len bytes, without a zero among them. */
static bool get_text(const uint8_t *data, size_t len, char *out, size_t max)
{
  if (len >= max || memchr(data, 0, len)) return false;
  memcpy(out, data, len);
  return true;
}

/* Returns the bytes that the member took, or 0. */
static size_t get_member(const uint8_t *data, size_t len,
                         struct raft_member *member)
{
  size_t name, address;

  if (len < MEMBER_HEAD) return 0;
  member->id = get(data, 8);
  member->incarnation = get(data + 8, 8);
  member->role = data[16] & 15;
  member->outgoing = data[16] >> 4 & 1;
  member->priority = data[16] >> 5; /* bit 7 makes it an impossible one */
  name = data[17];
  address = (size_t)get(data + 18, 2);
  if (len - MEMBER_HEAD < name + address) return 0;
  data += MEMBER_HEAD;
  if (!get_text(data, name, member->name, RAFT_NAME_MAX)) return 0;
  if (!get_text(data + name, address, member->address, RAFT_ADDRESS_MAX))
    return 0;
  return MEMBER_HEAD + name + address;
}

int raft_configuration_decode(const uint8_t *data, size_t len,
                              struct raft_configuration *configuration)
{
  uint64_t n;
  size_t took;
  unsigned i;

  memset(configuration, 0, sizeof *configuration);
  if (len < 4) return RAFT_EMALFORMED;
  n = get(data, 4);
  if (n > RAFT_MEMBERS_MAX) return RAFT_EMALFORMED;
  data += 4;
  len -= 4;
  for (i = 0; i < n; i++) {
    took = get_member(data, len, &configuration->members[i]);
    if (took == 0) goto malformed;
    data += took;
    len -= took;
  }
  configuration->n = (unsigned)n;
  if (len == 0 && raft_configuration_valid(configuration)) return 0;

malformed:
  memset(configuration, 0, sizeof *configuration);
  return RAFT_EMALFORMED;
}
