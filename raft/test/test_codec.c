/*
** test_codec.c: messages and configurations as bytes; what is malformed is
** refused, whatever it is.
*/
#include "timeline.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define BUFFER 8192

static uint64_t chance(void)
{
  static uint64_t x = 88172645463325252u;

  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

static size_t encode(const struct raft_message *m, uint8_t *out)
{
  struct packet p = packet_make(m);

  assert_true(p.len <= BUFFER);
  memcpy(out, p.bytes, p.len);
  free(p.bytes);
  return p.len;
}

static struct raft_body *some_body(size_t len)
{
  struct raft_body *body = raft_body_new(len);
  size_t i;

  for (i = 0; i < len; i++)
    body->data[i] = (uint8_t)chance();
  raft_body_seal(body);
  return body;
}

/* A message of this type with every field in use. */
static struct raft_message some_message(uint8_t type)
{
  struct raft_message m = {.type = type,
                           .from = 1,
                           .to = 2,
                           .incarnation = 77,
                           .term = 9,
                           .prev_index = 1000,
                           .prev_term = 7,
                           .commit = 900,
                           .granted = true,
                           .transfer = type == RAFT_VOTE_REQUEST,
                           .match = 950,
                           .hint_index = 940,
                           .hint_term = 6,
                           .read = UINT64_MAX,
                           .read_index = 12};
  unsigned i;

  if (type != RAFT_APPEND_REQUEST) return m;
  m.n_entries = 5;
  m.entries = calloc(5, sizeof *m.entries);
  for (i = 0; i < 5; i++) {
    m.entries[i].index = 1001 + i;
    m.entries[i].term = 7 + i / 2;
    m.entries[i].type = (uint8_t)(1 + i);
    if (i > 0) m.entries[i].body = some_body(i * 37);
  }
  return m;
}

static void assert_same(const struct raft_message *a,
                        const struct raft_message *b)
{
  uint32_t i;

  assert_int_equal(a->type, b->type);
  assert_int_equal(a->from, b->from);
  assert_int_equal(a->to, b->to);
  assert_int_equal(a->incarnation, b->incarnation);
  assert_int_equal(a->term, b->term);
  assert_int_equal(a->prev_index, b->prev_index);
  assert_int_equal(a->prev_term, b->prev_term);
  assert_int_equal(a->commit, b->commit);
  assert_int_equal(a->granted, b->granted);
  assert_int_equal(a->transfer, b->transfer);
  assert_int_equal(a->match, b->match);
  assert_int_equal(a->hint_index, b->hint_index);
  assert_int_equal(a->hint_term, b->hint_term);
  assert_int_equal(a->read, b->read);
  assert_int_equal(a->read_index, b->read_index);
  assert_int_equal(a->n_entries, b->n_entries);
  for (i = 0; i < a->n_entries; i++) {
    assert_int_equal(a->entries[i].index, b->entries[i].index);
    assert_int_equal(a->entries[i].term, b->entries[i].term);
    assert_int_equal(a->entries[i].type, b->entries[i].type);
    if (!a->entries[i].body) {
      assert_null(b->entries[i].body);
      continue;
    }
    assert_int_equal(a->entries[i].body->len, b->entries[i].body->len);
    assert_int_equal(a->entries[i].body->checksum,
                     b->entries[i].body->checksum);
    assert_memory_equal(a->entries[i].body->data, b->entries[i].body->data,
                        a->entries[i].body->len);
  }
}

/* Decodes from memory of exactly this length, so that a sanitizer sees any
   byte read beyond it. */
static int decode(const uint8_t *data, size_t len, struct raft_message *m)
{
  uint8_t *exact = malloc(len ? len : 1);
  int rc;

  memcpy(exact, data, len);
  rc = raft_message_decode(exact, len, m);
  free(exact);
  return rc;
}

static void refused(const uint8_t *data, size_t len)
{
  struct raft_message m;

  assert_int_equal(decode(data, len, &m), RAFT_EMALFORMED);
  assert_int_equal(m.type, 0);
  assert_null(m.entries);
}

static void test_round_trip(void **state)
{
  uint8_t type, buffer[BUFFER];
  struct raft_message m, back;
  size_t len;

  (void)state;
  for (type = RAFT_PREVOTE_REQUEST; type <= RAFT_TIMEOUT_NOW; type++) {
    m = some_message(type);
    len = encode(&m, buffer);
    assert_int_equal(len, raft_message_size(&m));
    assert_int_equal(decode(buffer, len, &back), 0);
    assert_same(&m, &back);
    raft_message_clear(&m);
    raft_message_clear(&back);
    assert_int_equal(back.type, 0);
  }
}

static void test_truncated(void **state)
{
  uint8_t type, buffer[BUFFER];
  struct raft_message m;
  size_t len, i;

  (void)state;
  for (type = RAFT_PREVOTE_REQUEST; type <= RAFT_TIMEOUT_NOW; type++) {
    m = some_message(type);
    len = encode(&m, buffer);
    for (i = 0; i < len; i++)
      refused(buffer, i);
    buffer[len] = 0;
    refused(buffer, len + 1); /* nor may anything follow */
    raft_message_clear(&m);
  }
}

/* Every byte is under a checksum: any other value is refused. */
static void test_corrupted(void **state)
{
  uint8_t type, bit, buffer[BUFFER];
  struct raft_message m;
  size_t len, i;

  (void)state;
  for (type = RAFT_PREVOTE_REQUEST; type <= RAFT_TIMEOUT_NOW; type++) {
    m = some_message(type);
    len = encode(&m, buffer);
    for (i = 0; i < len; i++) {
      for (bit = 0; bit < 8; bit++) {
        buffer[i] ^= (uint8_t)(1u << bit);
        refused(buffer, len);
        buffer[i] ^= (uint8_t)(1u << bit);
      }
    }
    raft_message_clear(&m);
  }
}

/* ---- lies with a right checksum ------------------------------------------ */

static void put(uint8_t *p, uint64_t value, unsigned bytes)
{
  unsigned i;

  for (i = 0; i < bytes; i++)
    p[i] = (uint8_t)(value >> (8 * i));
}

/* The checksum as the essay in codec.c describes it. */
static void reseal(uint8_t *data, unsigned n_entries)
{
  uint64_t sum = XXH3_64bits(data, 104);

  if (n_entries)
    sum = XXH3_64bits_withSeed(data + 112, (size_t)n_entries * 32, sum);
  put(data + 104, sum, 8);
}

/* Writes value at offset of an append with 5 entries; it must be refused. */
static void lie(size_t offset, uint64_t value, unsigned bytes)
{
  uint8_t buffer[BUFFER];
  struct raft_message back, m = some_message(RAFT_APPEND_REQUEST);
  size_t len = encode(&m, buffer);

  reseal(buffer, 5);
  assert_int_equal(decode(buffer, len, &back), 0); /* before the lie */
  raft_message_clear(&back);
  put(buffer + offset, value, bytes);
  reseal(buffer, 5);
  refused(buffer, len);
  raft_message_clear(&m);
}

static void test_lies(void **state)
{
  static const struct {
    size_t offset;
    uint64_t value;
    unsigned bytes;
  } lies[] = {
      {0, 0, 1},
      {0, 12, 1},
      {0, 255, 1},                    /* type */
      {0, RAFT_HEARTBEAT_REQUEST, 1}, /* with entries */
      {0, RAFT_TIMEOUT_NOW, 1},
      {1, 2, 1}, /* appends are for no transfer */
      {1, 3, 1},
      {1, 4, 1}, /* bits that mean nothing */
      {1, 255, 1},
      {2, 1, 2}, /* the reserved field */
      {4, 4, 4},
      {4, 6, 4}, /* number of entries */
      {4, RAFT_MESSAGE_ENTRIES_MAX + 1, 4},
      {4, UINT32_MAX, 4},
      {8, 0, 8},
      {16, 0, 8},
      {16, 1, 8}, /* from, to; to itself */
      {32, 0, 8},
      {32, 8, 8},
      {32, UINT64_MAX, 8}, /* term */
      {40, 0, 8},
      {40, 999, 8},
      {40, UINT64_MAX, 8}, /* prev_index */
      {48, 0, 8},
      {48, 8, 8},
      {48, UINT64_MAX, 8}, /* prev_term */
      {56, UINT64_MAX, 8}, /* commit */
      {64, UINT64_MAX, 8},
      {72, UINT64_MAX, 8},
      {80, UINT64_MAX, 8},
      {96, UINT64_MAX, 8},
      {112, 1002, 8},   /* first index */
      {144, 1001, 8},   /* the same index twice */
      {144, 1003, 8},   /* one left out */
      {112 + 8, 0, 8},  /* a term of 0 */
      {144 + 8, 6, 8},  /* a decreasing term */
      {240 + 8, 10, 8}, /* later than the message's */
      {112 + 16, 0, 1},
      {112 + 16, 6, 1}, /* entry type */
      {112 + 17, 1, 1},
      {112 + 19, 1, 1}, /* reserved */
      {112 + 20, 1, 4}, /* lengths that do not add up */
      {144 + 20, 36, 4},
      {144 + 20, UINT32_MAX, 4},
      {144 + 20, RAFT_BODY_MAX + 1, 4},
      {112 + 24, 1, 8}, /* a checksum of nothing */
      {144 + 24, 1, 8}, /* a wrong checksum */
  };
  size_t i;

  (void)state;
  for (i = 0; i < sizeof lies / sizeof lies[0]; i++)
    lie(lies[i].offset, lies[i].value, lies[i].bytes);
}

/* Only a vote is asked for on behalf of a leader; and who is told to campaign
   is told from where on. */
static void test_lies_about_transfers(void **state)
{
  uint8_t type, buffer[BUFFER];
  struct raft_message m, back;
  size_t len;

  (void)state;
  for (type = RAFT_PREVOTE_REQUEST; type <= RAFT_TIMEOUT_NOW; type++) {
    m = some_message(type);
    m.transfer = true;
    len = encode(&m, buffer);
    if (type != RAFT_VOTE_REQUEST) {
      refused(buffer, len);
    } else {
      assert_int_equal(decode(buffer, len, &back), 0);
      assert_true(back.transfer);
    }
    raft_message_clear(&m);
  }
  m = some_message(RAFT_TIMEOUT_NOW);
  m.prev_term = m.term + 1;
  refused(buffer, encode(&m, buffer));
  m.prev_term = 0;
  refused(buffer, encode(&m, buffer));
  m.prev_term = m.term = 0;
  refused(buffer, encode(&m, buffer));
}

/* The largest body, and one byte more. */
static void test_largest_body(void **state)
{
  struct raft_entry entry = {.index = 1, .term = 1, .type = RAFT_COMMIT};
  struct raft_message back, m = {.type = RAFT_APPEND_REQUEST,
                                 .from = 1,
                                 .to = 2,
                                 .term = 1,
                                 .n_entries = 1,
                                 .entries = &entry};
  struct packet p;

  (void)state;
  entry.body = some_body(RAFT_BODY_MAX);
  p = packet_make(&m);
  assert_int_equal(decode(p.bytes, p.len, &back), 0);
  raft_message_clear(&back);
  free(p.bytes);
  raft_body_unref(entry.body);
  entry.body = some_body(RAFT_BODY_MAX + 1);
  p = packet_make(&m);
  refused(p.bytes, p.len);
  free(p.bytes);
  raft_body_unref(entry.body);
}

/* Whatever comes: refused, or something that can be encoded again. */
static void test_fuzz(void **state)
{
  uint8_t buffer[BUFFER], again[BUFFER];
  struct raft_message m, back;
  unsigned i, k, changes, taken = 0;
  size_t len;

  (void)state;
  for (i = 0; i < 100000; i++) {
    m = some_message((uint8_t)(1 + chance() % RAFT_TIMEOUT_NOW));
    len = encode(&m, buffer);
    changes = (unsigned)(chance() % 4);
    for (k = 0; k < changes; k++)
      buffer[chance() % len] = (uint8_t)chance();
    if (chance() % 4 == 0) len = chance() % (len + 20);
    /* Mostly with a right checksum, or little would get past it. */
    if (chance() % 8 && len >= 112 + 5 * 32)
      reseal(buffer, m.n_entries);
    else if (chance() % 8 && len >= 112)
      reseal(buffer, 0);
    raft_message_clear(&m);
    if (decode(buffer, len, &back)) continue;
    taken++;
    assert_int_equal(encode(&back, again), len);
    assert_memory_equal(again, buffer, len);
    raft_message_clear(&back);
  }
  assert_true(taken > 10000);
  for (i = 0; i < 100000; i++) { /* nothing but noise */
    len = chance() % 600;
    for (k = 0; k < len; k++)
      buffer[k] = (uint8_t)chance();
    if (decode(buffer, len, &back) == 0) raft_message_clear(&back);
  }
}

/* ---- configurations ---------------------------------------------------- */

static int decode_configuration(const uint8_t *data, size_t len,
                                struct raft_configuration *c)
{
  uint8_t *exact = malloc(len ? len : 1);
  int rc;

  memcpy(exact, data, len);
  rc = raft_configuration_decode(exact, len, c);
  free(exact);
  return rc;
}

static void test_configuration(void **state)
{
  struct raft_configuration c = world_members(5), back;
  struct raft_body *body;
  uint8_t copy[BUFFER];
  size_t i;

  (void)state;
  c.members[4].role = RAFT_LEARNER;
  memset(c.members[3].name, 'n', RAFT_NAME_MAX - 1);
  memset(c.members[3].address, 'a', RAFT_ADDRESS_MAX - 1);
  body = raft_configuration_encode(&c);
  assert_true(raft_body_intact(body));
  assert_int_equal(decode_configuration(body->data, body->len, &back), 0);
  assert_memory_equal(&c, &back, sizeof c);
  for (i = 0; i < body->len; i++)
    assert_int_equal(decode_configuration(body->data, i, &back),
                     RAFT_EMALFORMED);
  memcpy(copy, body->data, body->len);
  copy[body->len] = 0;
  assert_int_equal(decode_configuration(copy, body->len + 1, &back),
                   RAFT_EMALFORMED);
  put(copy + 4, 0, 8); /* an id of 0 */
  assert_int_equal(decode_configuration(copy, body->len, &back),
                   RAFT_EMALFORMED);
  put(copy + 4, 2, 8); /* the same id twice */
  assert_int_equal(decode_configuration(copy, body->len, &back),
                   RAFT_EMALFORMED);
  put(copy + 4, 1, 8);
  copy[20] = 3; /* no such role */
  assert_int_equal(decode_configuration(copy, body->len, &back),
                   RAFT_EMALFORMED);
  copy[20] = 1;
  copy[24] = 0; /* a zero in a name */
  assert_int_equal(decode_configuration(copy, body->len, &back),
                   RAFT_EMALFORMED);
  put(copy, RAFT_MEMBERS_MAX + 1, 4);
  assert_int_equal(decode_configuration(copy, body->len, &back),
                   RAFT_EMALFORMED);
  raft_body_unref(body);
}

/* Roles, marks and priorities: what is possible comes back as it was, what is
   not is refused, whatever the byte says. */
static void test_configuration_flags(void **state)
{
  struct raft_configuration c = world_members(3), back;
  struct raft_body *body, *again;
  unsigned flags, role, taken = 0;
  bool possible;

  (void)state;
  c.members[0].outgoing = true;
  body = raft_configuration_encode(&c);
  for (flags = 0; flags < 256; flags++) {
    body->data[4 + 16] = (uint8_t)flags;
    role = flags & 15;
    possible = flags < 128 && flags >> 5 <= RAFT_AVOID &&
               (role == RAFT_VOTER || role == RAFT_LEARNER ||
                (role == RAFT_LEAVING && (flags & 16)));
    assert_int_equal(decode_configuration(body->data, body->len, &back),
                     possible ? 0 : RAFT_EMALFORMED);
    if (!possible) {
      assert_int_equal(back.n, 0);
      continue;
    }
    taken++;
    assert_int_equal(back.members[0].role, role);
    assert_int_equal(back.members[0].outgoing, flags >> 4 & 1);
    assert_int_equal(back.members[0].priority, flags >> 5);
    assert_int_equal(raft_configuration_joint(&back), flags >> 4 & 1);
    again = raft_configuration_encode(&back);
    assert_memory_equal(again->data, body->data, body->len);
    raft_body_unref(again);
  }
  assert_int_equal(taken, 5 * 3);
  raft_body_unref(body);
}

/* In the core as in the codec; a host's too. */
static void test_configuration_valid(void **state)
{
  struct raft_configuration c = world_members(3);

  (void)state;
  assert_true(raft_configuration_valid(&c));
  c.members[1].role = RAFT_LEAVING; /* from where? */
  assert_false(raft_configuration_valid(&c));
  c.members[1].outgoing = true;
  assert_true(raft_configuration_valid(&c));
  c.members[1].priority = RAFT_AVOID + 1;
  assert_false(raft_configuration_valid(&c));
  c.members[1].priority = RAFT_AVOID;
  c.members[1].role = 0;
  assert_false(raft_configuration_valid(&c));
}

static void test_configuration_fuzz(void **state)
{
  struct raft_configuration c = world_members(4), back;
  struct raft_body *body, *again;
  uint8_t buffer[BUFFER];
  unsigned i, k;
  size_t len;

  (void)state;
  c.members[0].outgoing = c.members[1].outgoing = true;
  c.members[1].role = RAFT_LEAVING;
  c.members[2].priority = RAFT_AVOID;
  body = raft_configuration_encode(&c);
  for (i = 0; i < 100000; i++) {
    memcpy(buffer, body->data, body->len);
    for (k = 0; k < 1 + i % 3; k++)
      buffer[chance() % body->len] = (uint8_t)chance();
    len = i % 5 ? body->len : chance() % body->len;
    if (decode_configuration(buffer, len, &back)) continue;
    again = raft_configuration_encode(&back);
    assert_int_equal(again->len, len);
    assert_memory_equal(again->data, buffer, len);
    raft_body_unref(again);
  }
  raft_body_unref(body);
}

static void test_quorum(void **state)
{
  uint64_t values[RAFT_MEMBERS_MAX] = {5, 9, 1, 7, 3};
  struct raft_configuration c = world_members(5);

  (void)state;
  assert_int_equal(raft_configuration_quorum(&c, values), 5);
  c.members[0].role = RAFT_LEARNER; /* 9 1 7 3: three of four have 3 */
  assert_int_equal(raft_configuration_quorum(&c, values), 3);
  c.members[2].role = RAFT_LEARNER;
  assert_int_equal(raft_configuration_quorum(&c, values), 7);
  c = world_members(1);
  assert_int_equal(raft_configuration_quorum(&c, values), 5);
  c = world_members(2);
  assert_int_equal(raft_configuration_quorum(&c, values), 5);
  c = world_members(0);
  assert_int_equal(raft_configuration_quorum(&c, values), 0);
}

static void test_bodies(void **state)
{
  struct raft_body *body = some_body(100);

  (void)state;
  assert_ptr_equal(raft_body_ref(body), body);
  raft_body_unref(body);
  assert_true(raft_body_intact(body));
  body->data[50] ^= 1;
  assert_false(raft_body_intact(body));
  raft_body_unref(body);
  assert_null(raft_body_ref(NULL));
  raft_body_unref(NULL);
  assert_null(raft_body_new((size_t)UINT32_MAX + 1));
  assert_string_equal(raft_strerror(RAFT_EBUSY),
                      "too much is waiting to be agreed on");
  assert_non_null(raft_strerror(12345));
  assert_non_null(raft_strerror(0));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_corrupted),
      cmocka_unit_test(test_lies),
      cmocka_unit_test(test_lies_about_transfers),
      cmocka_unit_test(test_largest_body),
      cmocka_unit_test(test_fuzz),
      cmocka_unit_test(test_configuration),
      cmocka_unit_test(test_configuration_flags),
      cmocka_unit_test(test_configuration_valid),
      cmocka_unit_test(test_configuration_fuzz),
      cmocka_unit_test(test_quorum),
      cmocka_unit_test(test_bodies),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
