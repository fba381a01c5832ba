/*
** body.c: bodies of entries, and the words for errors.
**
** A body is made where a transaction is captured, checksummed once, and from
** then on shared: between the core, the log's thread and the network's. Only
** its reference count changes, so it is the one atomic of this folder.
*/
#include "internal.h"

#include <stdatomic.h>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct raft_body *raft_body_new(size_t len)
{
  struct raft_body *body;

  if (len > UINT32_MAX) return NULL;
  body = malloc(sizeof *body + len);
  if (!body) return NULL;
  atomic_init(&body->refs, 1);
  body->len = (uint32_t)len;
  body->checksum = 0;
  return body;
}

struct raft_body *raft_body_ref(struct raft_body *body)
{
  /* Whoever takes a reference has one, so nothing needs to be ordered. */
  if (body) atomic_fetch_add_explicit(&body->refs, 1, memory_order_relaxed);
  return body;
}

void raft_body_unref(struct raft_body *body)
{
  uint32_t refs;

  if (!body) return;
  /* The last one must see all that the others did before it frees. */
  refs = atomic_fetch_sub_explicit(&body->refs, 1, memory_order_acq_rel);
  assert(refs > 0);
  if (refs == 1) free(body);
}

void raft_body_seal(struct raft_body *body)
{
  body->checksum = XXH3_64bits(body->data, body->len);
}

bool raft_body_intact(const struct raft_body *body)
{
  return body->checksum == XXH3_64bits(body->data, body->len);
}

const char *raft_strerror(int rc)
{
  switch (rc) {
  case 0: return "no error";
#define XX(code, name, text)                                                   \
  case code: return text;
    RAFT_ERRNO_MAP(XX)
#undef XX
  default: return "unknown error";
  }
}

void raft_options_defaults(struct raft_options *options)
{
  *options = (struct raft_options){
      .heartbeat_ms = 50,
      .election_timeout_ms = 500,
      .hint_jitter_ms = 40,
      .clock_drift_percent = 20,
      .tail_bytes = 8u << 20,
      .uncommitted_bytes = 16u << 20,
      .message_bytes = 1u << 20,
      .inflight_messages = 64,
      .inflight_bytes = 8u << 20,
  };
}
