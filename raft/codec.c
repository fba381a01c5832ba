/*
** codec.c: messages as bytes.
**
** A message is a head, then the bodies of its entries in order, unpadded, so
** that a sender can hand the bodies to writev() from where they are. All
** integers are little-endian. The head is 112 bytes, then 32 per entry:
**
**     0  u8   type
**     1  u8   bit 0: granted, bit 1: transfer
**     2  u16  0
**     4  u32  number of entries
**     8  u64  from
**    16  u64  to
**    24  u64  incarnation of the sender
**    32  u64  term
**    40  u64  prev_index
**    48  u64  prev_term
**    56  u64  commit
**    64  u64  match
**    72  u64  hint_index
**    80  u64  hint_term
**    88  u64  read
**    96  u64  read_index
**   104  u64  XXH3-64 of the bytes 0..103 and of all entry headers
**
**   entry header:
**     0  u64  index
**     8  u64  term
**    16  u8   type
**    17       3 bytes of 0
**    20  u32  length of the body, at most RAFT_BODY_MAX
**    24  u64  XXH3-64 of the body; 0 when there is none
**
** The fields that a type does not use travel as they are. The checksum of the
** head guards against a damaged head as those of the bodies do against
** damaged bodies: TLS already excludes both on the way, but not in the memory
** of either end.
**
** Decoding trusts nothing. The whole message is measured against the lengths
** it claims before anything is allocated, and what it says must make sense
** (raft_message_valid()): the core checks that once more, for messages that
** came another way.
*/
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define HEAD 112
#define HEAD_CHECKED 104
#define ENTRY 32

_Static_assert(HEAD == 8 + 12 * 8 + 8, "the head is twelve numbers");
_Static_assert(HEAD_CHECKED + 8 == HEAD, "the checksum ends the head");

/* ---- sense ------------------------------------------------------------- */

/* The position before the entries, or a candidate's last one. */
static bool position_valid(const struct raft_message *m)
{
  if (m->term == 0 || m->prev_term > m->term) return false;
  return (m->prev_index == 0) == (m->prev_term == 0);
}

static bool entries_valid(const struct raft_message *m)
{
  const struct raft_entry *entry;
  raft_term term = m->prev_term;
  uint32_t i;

  if (m->n_entries > RAFT_MESSAGE_ENTRIES_MAX) return false;
  if (m->n_entries > 0 && !m->entries) return false;
  for (i = 0; i < m->n_entries; i++) {
    entry = &m->entries[i];
    if (entry->index != m->prev_index + 1 + i) return false;
    if (entry->term == 0 || entry->term < term) return false;
    if (entry->type < RAFT_NOOP || entry->type > RAFT_SETTING) return false;
    if (entry->body && entry->body->len > RAFT_BODY_MAX) return false;
    term = entry->term;
  }
  return term <= m->term;
}

bool raft_message_valid(const struct raft_message *m)
{
  if (m->from == 0 || m->to == 0 || m->from == m->to) return false;
  if (m->term > RAFT_NUMBER_MAX || m->prev_index > RAFT_NUMBER_MAX ||
      m->prev_term > RAFT_NUMBER_MAX || m->commit > RAFT_NUMBER_MAX ||
      m->match > RAFT_NUMBER_MAX || m->hint_index > RAFT_NUMBER_MAX ||
      m->hint_term > RAFT_NUMBER_MAX || m->read_index > RAFT_NUMBER_MAX)
    return false;
  if (m->n_entries > 0 && m->type != RAFT_APPEND_REQUEST) return false;
  if (m->transfer && m->type != RAFT_VOTE_REQUEST) return false;

  switch (m->type) {
  case RAFT_PREVOTE_REQUEST:
  case RAFT_VOTE_REQUEST:
  case RAFT_TIMEOUT_NOW: return position_valid(m);
  case RAFT_APPEND_REQUEST: return position_valid(m) && entries_valid(m);
  case RAFT_HEARTBEAT_REQUEST: return m->term > 0;
  /* A node that has seen no election answers in term 0. */
  case RAFT_PREVOTE_RESPONSE:
  case RAFT_VOTE_RESPONSE:
  case RAFT_APPEND_RESPONSE:
  case RAFT_HEARTBEAT_RESPONSE:
  case RAFT_READ_REQUEST:
  case RAFT_READ_RESPONSE: return true;
  default: return false;
  }
}

void raft_message_clear(struct raft_message *message)
{
  uint32_t i;

  for (i = 0; message->entries && i < message->n_entries; i++)
    raft_body_unref(message->entries[i].body);
  free(message->entries);
  memset(message, 0, sizeof *message);
}

/* ---- encoding ---------------------------------------------------------- */

static uint8_t *put32(uint8_t *p, uint32_t value)
{
  unsigned i;

  for (i = 0; i < 4; i++)
    *p++ = (uint8_t)(value >> (8 * i));
  return p;
}

static uint8_t *put64(uint8_t *p, uint64_t value)
{
  unsigned i;

  for (i = 0; i < 8; i++)
    *p++ = (uint8_t)(value >> (8 * i));
  return p;
}

static uint32_t body_len(const struct raft_entry *entry)
{
  return entry->body ? entry->body->len : 0;
}

size_t raft_message_head_size(const struct raft_message *message)
{
  return HEAD + (size_t)message->n_entries * ENTRY;
}

size_t raft_message_size(const struct raft_message *message)
{
  size_t size = raft_message_head_size(message);
  uint32_t i;

  for (i = 0; i < message->n_entries; i++)
    size += body_len(&message->entries[i]);
  return size;
}

static uint8_t *put_entry(uint8_t *p, const struct raft_entry *entry)
{
  uint32_t len = body_len(entry);

  p = put64(p, entry->index);
  p = put64(p, entry->term);
  p = put32(p, entry->type); /* and three zeros */
  p = put32(p, len);
  return put64(p, len > 0 ? entry->body->checksum : 0);
}

/* The checksum of the head, whose own field is left out. */
static uint64_t head_checksum(const uint8_t *head, uint32_t n_entries)
{
  uint64_t fields = XXH3_64bits(head, HEAD_CHECKED);

  if (n_entries == 0) return fields;
  return XXH3_64bits_withSeed(head + HEAD, (size_t)n_entries * ENTRY, fields);
}

void raft_message_encode_head(const struct raft_message *message, uint8_t *out)
{
  uint8_t *p = out;
  uint32_t i;

  *p++ = message->type;
  *p++ = (uint8_t)(message->granted | message->transfer << 1);
  *p++ = 0;
  *p++ = 0;
  p = put32(p, message->n_entries);
  p = put64(p, message->from);
  p = put64(p, message->to);
  p = put64(p, message->incarnation);
  p = put64(p, message->term);
  p = put64(p, message->prev_index);
  p = put64(p, message->prev_term);
  p = put64(p, message->commit);
  p = put64(p, message->match);
  p = put64(p, message->hint_index);
  p = put64(p, message->hint_term);
  p = put64(p, message->read);
  p = put64(p, message->read_index);
  assert(p == out + HEAD_CHECKED);
  p += 8;
  for (i = 0; i < message->n_entries; i++)
    p = put_entry(p, &message->entries[i]);
  put64(out + HEAD_CHECKED, head_checksum(out, message->n_entries));
}

/* ---- decoding ---------------------------------------------------------- */

/* What is left to be read; `bad` once something was missing. */
struct cursor {
  const uint8_t *p;
  size_t left;
  bool bad;
};

static uint64_t take(struct cursor *c, unsigned bytes)
{
  uint64_t value = 0;
  unsigned i;

  if (c->left < bytes) {
    c->bad = true;
    c->left = 0;
    return 0;
  }
  for (i = 0; i < bytes; i++)
    value |= (uint64_t)c->p[i] << (8 * i);
  c->p += bytes;
  c->left -= bytes;
  return value;
}

/* The fixed fields; returns false when one of them is out of its range. */
static bool take_head(struct cursor *c, struct raft_message *m)
{
  uint64_t flags, zero;

  m->type = (uint8_t)take(c, 1);
  flags = take(c, 1);
  zero = take(c, 2);
  m->n_entries = (uint32_t)take(c, 4);
  m->from = take(c, 8);
  m->to = take(c, 8);
  m->incarnation = take(c, 8);
  m->term = take(c, 8);
  m->prev_index = take(c, 8);
  m->prev_term = take(c, 8);
  m->commit = take(c, 8);
  m->match = take(c, 8);
  m->hint_index = take(c, 8);
  m->hint_term = take(c, 8);
  m->read = take(c, 8);
  m->read_index = take(c, 8);
  take(c, 8); /* the checksum, looked at by the caller */
  m->granted = flags & 1;
  m->transfer = flags >> 1 & 1;
  return !c->bad && flags <= 3 && zero == 0 &&
         m->n_entries <= RAFT_MESSAGE_ENTRIES_MAX;
}

/* One entry: its header from `c`, its body from `bodies`. */
static int take_entry(struct cursor *c, struct cursor *bodies,
                      struct raft_entry *entry)
{
  uint64_t type, checksum;
  size_t len;

  entry->index = take(c, 8);
  entry->term = take(c, 8);
  type = take(c, 4);
  len = (size_t)take(c, 4);
  checksum = take(c, 8);
  entry->type = (uint8_t)type;
  if (c->bad || type > UINT8_MAX || len > RAFT_BODY_MAX || len > bodies->left)
    return RAFT_EMALFORMED;
  if (len == 0) return checksum == 0 ? 0 : RAFT_EMALFORMED;

  entry->body = raft_body_new(len);
  if (!entry->body) return RAFT_ENOMEM;
  memcpy(entry->body->data, bodies->p, len);
  entry->body->checksum = checksum;
  bodies->p += len;
  bodies->left -= len;
  return raft_body_intact(entry->body) ? 0 : RAFT_EMALFORMED;
}

/* Whether the lengths in the entry headers add up to what follows them. */
static bool lengths_agree(const uint8_t *headers, uint32_t n, size_t bodies)
{
  struct cursor c;
  uint64_t sum = 0;
  uint32_t i;

  for (i = 0; i < n; i++) {
    c = (struct cursor){headers + (size_t)i * ENTRY + 20, 4, false};
    sum += take(&c, 4);
  }
  return sum == bodies;
}

static int take_entries(struct cursor *c, struct raft_message *m)
{
  size_t headers = (size_t)m->n_entries * ENTRY;
  struct cursor bodies;
  uint32_t i;
  int rc = 0;

  if (!lengths_agree(c->p, m->n_entries, c->left - headers))
    return RAFT_EMALFORMED;
  if (m->n_entries == 0) return 0;
  bodies = (struct cursor){c->p + headers, c->left - headers, false};
  m->entries = calloc(m->n_entries, sizeof *m->entries);
  if (!m->entries) return RAFT_ENOMEM;
  for (i = 0; !rc && i < m->n_entries; i++)
    rc = take_entry(c, &bodies, &m->entries[i]);
  return rc;
}

int raft_message_decode(const uint8_t *data, size_t len,
                        struct raft_message *message)
{
  struct cursor c = {data, len, false};
  struct cursor checksum;
  int rc = RAFT_EMALFORMED;

  memset(message, 0, sizeof *message);
  if (!take_head(&c, message)) goto fail;
  if (c.left < (size_t)message->n_entries * ENTRY) goto fail;
  checksum = (struct cursor){data + HEAD_CHECKED, 8, false};
  if (take(&checksum, 8) != head_checksum(data, message->n_entries)) goto fail;
  rc = take_entries(&c, message);
  if (!rc && !raft_message_valid(message)) rc = RAFT_EMALFORMED;
  if (!rc) return 0;

fail:
  raft_message_clear(message);
  return rc;
}
