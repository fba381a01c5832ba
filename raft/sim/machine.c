/*
** machine.c: the state machine, and snapshots of it as bytes.
**
** A transaction writes one slot and goes into a chain of all of them, so that
** two nodes with equal states have applied the same transactions in the same
** order. It is one COMMIT entry, or several PAGES and a COMMIT that says how
** many; if some of them did not make it into the log it has no effect, and all
** nodes see that alike: the parts seen so far are part of the state.
**
** Body of an entry: operation u64, parts u32, slot u32, value u64, filling.
**
** A snapshot: length of the configuration u32, length of the whole u32, index,
** term, index of the configuration, each u64, the machine, the configuration,
** filling.
*/
#include "sim.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define COMMAND 24u
#define BLOB_HEAD 32u

_Static_assert(sizeof(struct machine) == (6 + SIM_SLOTS) * 8, "no padding");

/* ---- entries ----------------------------------------------------------- */

struct raft_body *machine_body(const struct command *c, size_t len)
{
  struct raft_body *body = raft_body_new(len < COMMAND ? COMMAND : len);

  if (!body) abort();
  memcpy(body->data, &c->op, 8);
  memcpy(body->data + 8, &c->parts, 4);
  memcpy(body->data + 12, &c->slot, 4);
  memcpy(body->data + 16, &c->value, 8);
  memset(body->data + COMMAND, (int)(c->op & 0xff), body->len - COMMAND);
  raft_body_seal(body);
  return body;
}

static void parse(const struct raft_entry *entry, struct command *c)
{
  const uint8_t *data = entry->body->data;

  memcpy(&c->op, data, 8);
  memcpy(&c->parts, data + 8, 4);
  memcpy(&c->slot, data + 12, 4);
  memcpy(&c->value, data + 16, 8);
}

static void take_part(struct machine *m, const struct raft_entry *entry,
                      const struct command *c)
{
  if (m->open_op != c->op || m->open_term != entry->term) {
    m->open_op = c->op;
    m->open_term = entry->term;
    m->open_parts = 0;
  }
  m->open_parts++;
}

static bool is_whole(const struct machine *m, const struct raft_entry *entry,
                     const struct command *c)
{
  return c->parts == 0 || (m->open_op == c->op && m->open_term == entry->term &&
                           m->open_parts == c->parts);
}

uint64_t machine_apply(struct machine *m, const struct raft_entry *entry)
{
  struct command c = {0};
  uint64_t op = 0;

  m->index = entry->index;
  if (entry->type == RAFT_NOOP) m->open_op = m->open_term = m->open_parts = 0;
  if (!entry->body || entry->body->len < COMMAND) return 0;
  if (entry->type == RAFT_PAGES || entry->type == RAFT_COMMIT) parse(entry, &c);
  if (entry->type == RAFT_PAGES) take_part(m, entry, &c);
  if (entry->type == RAFT_COMMIT) {
    if (is_whole(m, entry, &c)) {
      m->slots[c.slot % SIM_SLOTS] = sim_mix(c.value, m->chain);
      m->chain = sim_mix(m->chain, c.op);
      m->count++;
      op = c.op;
    }
    m->open_op = m->open_term = m->open_parts = 0;
  }
  return op;
}

uint64_t machine_hash(const struct machine *m)
{
  return XXH3_64bits(m, sizeof *m) | 1;
}

/* ---- snapshots --------------------------------------------------------- */

struct blob *blob_make(struct sim *s, const struct machine *m, raft_term term,
                       const struct raft_configuration *configuration,
                       raft_index configuration_index)
{
  struct raft_body *c = raft_configuration_encode(configuration);
  size_t len = BLOB_HEAD + sizeof *m;
  struct blob *blob;
  uint32_t n;

  if (!c) abort();
  n = (uint32_t)c->len;
  len += n + s->options.snapshot_bytes;
  blob = sim_resize(NULL, sizeof *blob + len);
  blob->refs = 1;
  blob->tag.index = m->index;
  blob->tag.term = term;
  blob->tag.bytes = len;
  memset(blob->bytes, 0x5a, len);
  memcpy(blob->bytes, &n, 4);
  n = (uint32_t)len;
  memcpy(blob->bytes + 4, &n, 4);
  memcpy(blob->bytes + 8, &m->index, 8);
  memcpy(blob->bytes + 16, &term, 8);
  memcpy(blob->bytes + 24, &configuration_index, 8);
  memcpy(blob->bytes + BLOB_HEAD, m, sizeof *m);
  memcpy(blob->bytes + BLOB_HEAD + sizeof *m, c->data, c->len);
  raft_body_unref(c);
  return blob;
}

bool blob_parse(const uint8_t *bytes, size_t len,
                struct store_checkpoint *checkpoint, struct machine *m)
{
  uint32_t n, all;

  memset(checkpoint, 0, sizeof *checkpoint);
  if (len < BLOB_HEAD + sizeof *m) return false;
  memcpy(&n, bytes, 4);
  memcpy(&all, bytes + 4, 4);
  if (all != len || n > len - BLOB_HEAD - sizeof *m) return false;
  memcpy(&checkpoint->index, bytes + 8, 8);
  memcpy(&checkpoint->term, bytes + 16, 8);
  memcpy(&checkpoint->configuration_index, bytes + 24, 8);
  memcpy(m, bytes + BLOB_HEAD, sizeof *m);
  checkpoint->floor = checkpoint->index;
  checkpoint->settings = sim_resize(NULL, sizeof *m);
  memcpy(checkpoint->settings, m, sizeof *m);
  checkpoint->settings_len = sizeof *m;
  return m->index == checkpoint->index &&
         raft_configuration_decode(bytes + BLOB_HEAD + sizeof *m, n,
                                   &checkpoint->configuration) == 0;
}

void blob_unref(struct blob *blob)
{
  if (blob && --blob->refs == 0) free(blob);
}
