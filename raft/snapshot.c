/*
** snapshot.c: what may be taken of an incoming snapshot.
**
** The state of a transfer is one tag and one position, kept by the host beside
** the bytes; these are pure functions of it, of the offer or chunk, and of the
** node. They guard against:
**
**   stale senders   a leader of an earlier term has nothing to give
**   stale tags      a snapshot that this log has outgrown, and chunks of one
**                   that is no longer being taken
**   duplicates      a chunk that came before, wholly or in part
**   gaps            a chunk that is not the next one
*/
#include "internal.h"

static bool tag_equal(const struct raft_snapshot_tag *a,
                      const struct raft_snapshot_tag *b)
{
  return a->index == b->index && a->term == b->term && a->bytes == b->bytes;
}

static bool tag_valid(const struct raft_snapshot_tag *tag, raft_term term)
{
  return tag->index > 0 && tag->index <= RAFT_NUMBER_MAX && tag->term > 0 &&
         tag->term <= term && term <= RAFT_NUMBER_MAX && tag->bytes > 0 &&
         tag->bytes <= RAFT_NUMBER_MAX;
}

/* What holds for offers and for chunks; 0: nothing against it. */
static int judge(const struct raft *r, const struct raft_snapshot_in *in,
                 raft_term term, const struct raft_snapshot_tag *tag)
{
  if (term < r->term || r->role == RAFT_LEADER || r->disk_failed)
    return RAFT_SNAPSHOT_REFUSE;
  if (!tag_valid(tag, term)) return RAFT_SNAPSHOT_REFUSE;
  if (!MUTANT(11) && tag->index <= r->commit) return RAFT_SNAPSHOT_HAVE;
  /* Whole, and about to be installed: the sender has nothing left to send. */
  if (tag_equal(&in->tag, tag) && in->position == tag->bytes)
    return RAFT_SNAPSHOT_HAVE;
  return 0;
}

enum raft_snapshot_verdict raft_snapshot_offer(
    const struct raft *r, struct raft_snapshot_in *in, raft_term term,
    const struct raft_snapshot_tag *tag)
{
  int verdict = judge(r, in, term, tag);

  if (verdict) return (enum raft_snapshot_verdict)verdict;
  if (tag_equal(&in->tag, tag)) return RAFT_SNAPSHOT_RESUME;
  in->tag = *tag;
  in->position = 0;
  return RAFT_SNAPSHOT_START;
}

enum raft_snapshot_verdict raft_snapshot_chunk(
    const struct raft *r, struct raft_snapshot_in *in, raft_term term,
    const struct raft_snapshot_tag *tag, uint64_t offset, uint64_t len,
    uint64_t *skip)
{
  int verdict = judge(r, in, term, tag);

  *skip = 0;
  if (verdict) return (enum raft_snapshot_verdict)verdict;
  if (!MUTANT(12) && !tag_equal(&in->tag, tag)) return RAFT_SNAPSHOT_SKIP;
  if (offset > tag->bytes || len > tag->bytes - offset)
    return RAFT_SNAPSHOT_REFUSE;
  if (offset > in->position || offset + len <= in->position)
    return RAFT_SNAPSHOT_SKIP;
  *skip = in->position - offset;
  in->position = offset + len;
  return in->position == tag->bytes ? RAFT_SNAPSHOT_DONE : RAFT_SNAPSHOT_TAKE;
}
