/*
** heard.c: the newest entry that another node is known to have.
**
** Should the others be lost for good, this says how much is lost with them
** (recover.c). It is kept in the control file, which is mapped: noting it costs
** no system call, and what is noted survives the process. After a loss of power
** it is what the kernel had written back by then, some seconds before; there are
** two places, written in turns, each in a sector of its own and with a checksum,
** so that one is always whole.
**
** Append requests tell what their sender has, and so do requests for votes; what
** a follower has is in its answers to the leader. Newest is what has the greatest
** term, then the greatest index.
*/
#include "node.h"

#include <xxhash.h>

#define AGAIN_MS 1000 /* the same entry is noted anew, for the time */

static uint64_t checksum(const struct control_heard *heard)
{
  size_t from = sizeof(heard->checksum);
  return XXH3_64bits((const uint8_t *)heard + from, sizeof(*heard) - from);
}

static bool is_newer(const struct control_heard *a,
                     const struct control_heard *b)
{
  if (a->term != b->term) return a->term > b->term;
  if (a->index != b->index) return a->index > b->index;
  return a->time_ms > b->time_ms;
}

bool heard_newest(const struct control_heard heard[2], uint64_t cluster,
                  struct control_heard *out)
{
  bool found = false;
  for (unsigned i = 0; i < 2; i++) {
    struct control_heard h = heard[i];
    if (h.index == 0 || h.cluster != cluster || h.checksum != checksum(&h) ||
        memchr(h.name, 0, sizeof(h.name)) == NULL)
      continue;
    if (!found || is_newer(&h, out)) *out = h;
    found = true;
  }
  return found;
}

void heard_begin(struct node *node)
{
  struct control_heard *was = &node->heard;
  struct control_heard both[2] = {node->shared->heard[0].it,
                                  node->shared->heard[1].it};
  if (!heard_newest(both, node->identity.cluster, was))
    memset(was, 0, sizeof(*was));
  /* The next one is written over the other. */
  node->heard_at = memcmp(&node->shared->heard[0].it, was, sizeof(*was)) == 0;
}

/* What the sender has, by this message; index 0: it does not say. */
static raft_index tell(const struct node *node, const struct raft_message *m,
                       raft_term *term)
{
  raft_index index = 0;
  switch (m->type) {
  case RAFT_APPEND_REQUEST:
    index = m->n_entries ? m->entries[m->n_entries - 1].index : m->prev_index;
    *term = m->n_entries ? m->entries[m->n_entries - 1].term : m->prev_term;
    break;
  case RAFT_VOTE_REQUEST:
  case RAFT_PREVOTE_REQUEST:
    index = m->prev_index;
    *term = m->prev_term;
    break;
  /* It is as far as the sender of the request, which is this node. */
  case RAFT_APPEND_RESPONSE:
  case RAFT_HEARTBEAT_RESPONSE:
    index = m->match;
    *term = index ? raft_term_at(node->raft, index) : 0;
    break;
  case RAFT_HEARTBEAT_REQUEST: /* never more than is here */
    index = m->commit;
    *term = index ? raft_term_at(node->raft, index) : 0;
    break;
  default: break;
  }
  return *term ? index : 0;
}

void heard_message(struct node *node, const struct raft_message *m)
{
  struct control_heard *was = &node->heard;
  struct control_heard h = {.cluster = node->identity.cluster, .id = m->from};
  h.index = tell(node, m, &h.term);
  if (h.index == 0 || h.term < was->term ||
      (h.term == was->term && h.index < was->index))
    return;
  bool same = h.term == was->term && h.index == was->index;
  h.time_ms = clock_wall_ms();
  if (same && h.time_ms - was->time_ms < AGAIN_MS) return;
  if (was->id == h.id) {
    memcpy(h.name, was->name, sizeof(h.name));
  } else {
    const struct raft_member *member =
        raft_configuration_find(raft_configuration(node->raft, NULL), m->from);
    if (member == NULL) return;
    memcpy(h.name, member->name, sizeof(h.name));
  }
  h.checksum = checksum(&h);
  memcpy(&node->shared->heard[node->heard_at++ & 1].it, &h, sizeof(h));
  *was = h;
}
