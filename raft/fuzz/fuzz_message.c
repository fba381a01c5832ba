/*
** fuzz_message.c: messages and configurations as bytes.
**
** An input: u8 what, then the bytes. what, bit 0: a configuration, else a
** message; bit 1: the checksums are set right first, so that what is behind
** them is reached.
**
** What must hold: what is refused leaves nothing; what is taken is sensible,
** encodes to the same bytes, and has no more memory than it has bytes.
*/
#include "../internal.h"
#include "fuzz.h"

#include <xxhash.h>

#define HEAD 112
#define HEAD_CHECKED 104
#define ENTRY 32

const char *const fuzz_corpus = "raft/fuzz/corpus/message";

/* ---- checksums --------------------------------------------------------- */

static void fix_bodies(uint8_t *data, size_t size, uint64_t n)
{
  size_t at = HEAD + (size_t)n * ENTRY;

  for (uint64_t i = 0; i < n; i++) {
    uint8_t *entry = data + HEAD + i * ENTRY;
    size_t len = (size_t)read_number(entry + 20, 4);

    if (len > size - at) return;
    write_number(entry + 24, len ? XXH3_64bits(data + at, len) : 0, 8);
    at += len;
  }
}

static void fix_message(uint8_t *data, size_t size)
{
  uint64_t n, sum;

  if (size < HEAD) return;
  n = read_number(data + 4, 4);
  if (n > (size - HEAD) / ENTRY) return;
  fix_bodies(data, size, n);
  sum = XXH3_64bits(data, HEAD_CHECKED);
  if (n > 0) sum = XXH3_64bits_withSeed(data + HEAD, n * ENTRY, sum);
  write_number(data + HEAD_CHECKED, sum, 8);
}

/* ---- what must hold ---------------------------------------------------- */

static size_t encode(const struct raft_message *m, uint8_t *out)
{
  size_t at = raft_message_head_size(m);

  raft_message_encode_head(m, out);
  for (uint32_t i = 0; i < m->n_entries; i++) {
    const struct raft_body *body = m->entries[i].body;

    if (!body) continue;
    memcpy(out + at, body->data, body->len);
    at += body->len;
  }
  return at;
}

static void try_message(uint8_t *data, size_t size)
{
  static const struct raft_message nothing;
  struct raft_message m;
  uint8_t *again;

  if (raft_message_decode(data, size, &m) != 0) {
    must(memcmp(&m, &nothing, sizeof m) == 0);
    return;
  }
  must(raft_message_valid(&m));
  must(raft_message_size(&m) == size);
  again = exact_copy(data, size);
  memset(again, 0xa5, size);
  must(encode(&m, again) == size);
  must(memcmp(again, data, size) == 0);
  free(again);
  raft_message_clear(&m);
  must(memcmp(&m, &nothing, sizeof m) == 0);
}

static void try_configuration(const uint8_t *data, size_t size)
{
  struct raft_configuration c;
  struct raft_body *body;

  if (raft_configuration_decode(data, size, &c) != 0) {
    must(c.n == 0);
    return;
  }
  must(raft_configuration_valid(&c));
  for (unsigned i = 0; i < c.n; i++) {
    must(raft_configuration_find(&c, c.members[i].id) == &c.members[i]);
    must(strnlen(c.members[i].name, RAFT_NAME_MAX) < RAFT_NAME_MAX);
    must(strnlen(c.members[i].address, RAFT_ADDRESS_MAX) < RAFT_ADDRESS_MAX);
  }
  must(raft_configuration_voters(&c) <= c.n);
  body = raft_configuration_encode(&c);
  must(body && raft_body_intact(body));
  must(body->len == size && memcmp(body->data, data, size) == 0);
  raft_body_unref(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  uint8_t *bytes;

  if (size < 1) return 0;
  bytes = exact_copy(data + 1, size - 1);
  if (data[0] & 1) {
    try_configuration(bytes, size - 1);
  } else {
    if (data[0] & 2) fix_message(bytes, size - 1);
    try_message(bytes, size - 1);
  }
  free(bytes);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static void seed_message(void (*seed)(const void *data, size_t size),
                         struct raft_message *m)
{
  uint8_t bytes[4096];

  must(raft_message_size(m) < sizeof bytes);
  bytes[0] = 2;
  seed(bytes, 1 + encode(m, bytes + 1));
}

static void seed_append(void (*seed)(const void *data, size_t size),
                        struct raft_message *m)
{
  struct raft_entry entries[5];

  for (unsigned i = 0; i < 5; i++) {
    entries[i] = (struct raft_entry){.index = m->prev_index + 1 + i,
                                     .term = 7 + i / 2,
                                     .type = (uint8_t)(1 + i)};
    if (i == 0) continue;
    entries[i].body = raft_body_new(i * 37);
    must(entries[i].body);
    memset(entries[i].body->data, (int)i, entries[i].body->len);
    raft_body_seal(entries[i].body);
  }
  m->entries = entries;
  m->n_entries = 5;
  seed_message(seed, m);
  for (unsigned i = 0; i < 5; i++)
    raft_body_unref(entries[i].body);
  m->entries = NULL;
  m->n_entries = 0;
}

static void seed_configuration(void (*seed)(const void *data, size_t size),
                               unsigned n, bool joint)
{
  struct raft_configuration c = {.n = n};
  struct raft_body *body;
  uint8_t bytes[4096];

  for (unsigned i = 0; i < n; i++) {
    struct raft_member *m = &c.members[i];

    *m = (struct raft_member){
        .id = i + 1, .incarnation = 7 * i, .role = RAFT_VOTER};
    if (i == 2) m->role = RAFT_LEARNER;
    m->priority = (uint8_t)(i % 3);
    m->outgoing = joint && i < 2;
    if (joint && i == 1) m->role = RAFT_LEAVING;
    snprintf(m->name, sizeof m->name, "n%u", i);
    snprintf(m->address, sizeof m->address, "127.0.0.1:%u", 7000 + i);
  }
  body = raft_configuration_encode(&c);
  must(body && body->len < sizeof bytes);
  bytes[0] = 1;
  memcpy(bytes + 1, body->data, body->len);
  seed(bytes, 1 + body->len);
  raft_body_unref(body);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  for (uint8_t type = RAFT_PREVOTE_REQUEST; type <= RAFT_TIMEOUT_NOW; type++) {
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
                             .read = 11,
                             .read_index = 12};

    seed_message(seed, &m);
    if (type == RAFT_APPEND_REQUEST) seed_append(seed, &m);
  }
  seed_configuration(seed, 0, false);
  seed_configuration(seed, 3, false);
  seed_configuration(seed, 5, true);
}
