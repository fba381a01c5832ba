/*
** vote.c: the term and the vote of this node.
**
** DIR/vote is 8192 bytes: two slots, at 0 and at 4096, written in turn. A
** slot holds the same 512 bytes twice, at its beginning and after that;
** the rest of it is zero and means nothing. The 512 bytes, little-endian:
**
**   0    8    magic "quorvot" and a zero byte
**   8    4    version of the format, 1
**   12   4    zero
**   16   8    cluster
**   24   8    node
**   32   8    sequence number: odd in slot 1, even in slot 0
**   40   8    term
**   48   8    voted for, 0: nobody
**   56   448  zeros
**   504  8    XXH3-64 of bytes 0..503
**
** A vote is made durable by one write of a slot's 1024 bytes and one sync.
** The greatest sequence number is in force. None was ever RAFT_NUMBER_MAX or
** more: one that is, is refused, since the vote after the last number there is
** would be the oldest.
**
** Why two slots: a torn write damages only the slot that it wrote, and the
** other has the vote before, which is right, since the torn one was never
** acknowledged. Why two copies: with one, a slot that rotted later looks just
** like a torn one, the vote before would come back, and this node would vote
** twice in a term. A torn write leaves at least one of the two copies whole,
** old or new. So both copies of a slot bad is damage, and is refused; one copy
** bad loses nothing. But it must not stay: were the slot written with one copy
** bad, and that write torn, both could be. So store_vote_heal() first makes a
** bad copy what the good one beside it is, touching nothing else.
**
** What was read is written again (into the other slot) when the file is
** opened: a process that was killed between its write and its sync has left a
** vote that is seen, but need not be on the disk.
*/
#include "internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

static const char vote_magic[8] = "quorvot";
#define VOTE_VERSION 1u
#define VOTE_COPY 512u
#define VOTE_SLOT 4096u
#define VOTE_FILE (2 * VOTE_SLOT)

struct disk_vote {
  char magic[8];
  uint32_t version;
  uint32_t zero;
  uint64_t cluster;
  uint64_t node;
  uint64_t seq;
  uint64_t term;
  uint64_t voted_for;
  uint8_t zeros[448];
  uint64_t checksum;
};
_Static_assert(sizeof(struct disk_vote) == VOTE_COPY, "512 bytes");
_Static_assert(offsetof(struct disk_vote, checksum) == 504, "at the end");

/* Both copies of a slot. */
static void vote_encode(const struct vote_file *vote, uint64_t seq,
                        raft_term term, raft_id voted_for,
                        uint8_t out[2 * VOTE_COPY])
{
  struct disk_vote disk;

  memset(&disk, 0, sizeof(disk));
  memcpy(disk.magic, vote_magic, sizeof(disk.magic));
  disk.version = htole32(VOTE_VERSION);
  disk.cluster = htole64(vote->cluster);
  disk.node = htole64(vote->node);
  disk.seq = htole64(seq);
  disk.term = htole64(term);
  disk.voted_for = htole64(voted_for);
  disk.checksum =
      htole64(XXH3_64bits(&disk, offsetof(struct disk_vote, checksum)));
  memcpy(out, &disk, sizeof(disk));
  memcpy(out + VOTE_COPY, &disk, sizeof(disk));
}

static bool vote_decode(const uint8_t in[VOTE_COPY], struct disk_vote *disk)
{
  memcpy(disk, in, sizeof(*disk));
  return !memcmp(disk->magic, vote_magic, sizeof(disk->magic)) &&
         le64toh(disk->checksum) ==
             XXH3_64bits(disk, offsetof(struct disk_vote, checksum));
}

/* One good copy: that it is ours, and whether it is the newest so far. */
static int vote_take(struct vote_file *vote, const struct disk_vote *disk,
                     unsigned slot, char **error)
{
  uint64_t seq = le64toh(disk->seq);
  uint64_t at = (uint64_t)slot * VOTE_SLOT;

  if (le32toh(disk->version) != VOTE_VERSION)
    return store_error(error, -EBADMSG,
                       "%s: offset %" PRIu64 ": unknown version %u of the "
                       "vote format",
                       vote->path, at, (unsigned)le32toh(disk->version));
  if (le64toh(disk->cluster) != vote->cluster)
    return store_error(error, -EBADMSG,
                       "%s: offset %" PRIu64 ": belongs to cluster %016" PRIx64
                       ", not %016" PRIx64,
                       vote->path, at, (uint64_t)le64toh(disk->cluster),
                       vote->cluster);
  if (le64toh(disk->node) != vote->node)
    return store_error(
        error, -EBADMSG,
        "%s: offset %" PRIu64 ": belongs to node %" PRIu64 ", not %" PRIu64,
        vote->path, at, (uint64_t)le64toh(disk->node), vote->node);
  if (seq % 2 != slot)
    return store_error(error, -EBADMSG,
                       "%s: offset %" PRIu64 ": slot %u has number %" PRIu64,
                       vote->path, at, slot, seq);
  if (seq >= RAFT_NUMBER_MAX || le64toh(disk->term) > RAFT_NUMBER_MAX)
    return store_error(error, -EBADMSG,
                       "%s: offset %" PRIu64 ": a number that no vote reaches",
                       vote->path, at);
  if (seq < vote->seq) return 0;
  vote->seq = seq;
  vote->term = le64toh(disk->term);
  vote->voted_for = le64toh(disk->voted_for);
  return 0;
}

static int vote_parse(struct vote_file *vote, const uint8_t *data, size_t len,
                      char **error)
{
  struct disk_vote disk;
  unsigned slot, copy, good;
  int rc;

  if (len != VOTE_FILE)
    return store_error(error, -EBADMSG, "%s: has %zu bytes, not %u", vote->path,
                       len, VOTE_FILE);
  vote->seq = 0;
  for (slot = 0; slot < 2; slot++) {
    for (copy = good = 0; copy < 2; copy++) {
      if (!vote_decode(data + slot * VOTE_SLOT + copy * VOTE_COPY, &disk)) {
        vote->bad[slot] = true;
        vote->bad_copy[slot] = copy;
        continue;
      }
      good++;
      rc = vote_take(vote, &disk, slot, error);
      if (rc) return rc;
    }
    if (!good)
      return store_error(error, -EBADMSG,
                         "%s: offset %u: both copies of a vote are damaged",
                         vote->path, slot * VOTE_SLOT);
  }
  return 0;
}

static int vote_create(struct vote_file *vote, char **error)
{
  uint8_t *image = calloc(1, VOTE_FILE);
  int rc;

  if (!image) return store_error(error, -ENOMEM, "out of memory");
  vote_encode(vote, 1, 0, 0, image + VOTE_SLOT);
  vote_encode(vote, 2, 0, 0, image);
  rc = io_replace_file(vote->io, vote->path, image, VOTE_FILE);
  free(image);
  if (rc) return store_io_error(error, rc, vote->path, "cannot be created");
  vote->seq = 2;
  vote->term = 0;
  vote->voted_for = 0;
  return 0;
}

int store_vote_open(struct vote_file *vote, const struct store_options *options,
                    bool must_exist, char **error)
{
  const struct io *io = options->io;
  uint8_t *data = NULL;
  size_t len;
  int rc;

  vote->io = io;
  vote->fd = -1;
  vote->cluster = options->cluster;
  vote->node = options->node;
  (void)snprintf(vote->path, sizeof(vote->path), "%s/vote", options->dir);
  rc = io_read_file(io, vote->path, 1024u * 1024u, &data, &len);
  if (rc == -ENOENT && must_exist)
    return store_error(error, -EBADMSG,
                       "%s: missing, although there is a log beside it",
                       vote->path);
  if (rc == -EFBIG)
    return store_error(error, -EBADMSG, "%s: too large", vote->path);
  if (rc && rc != -ENOENT)
    return store_io_error(error, rc, vote->path, "cannot be read");
  rc = rc ? vote_create(vote, error) : vote_parse(vote, data, len, error);
  free(data);
  if (rc) return rc;
  vote->fd = io->open(io->ctx, vote->path, O_RDWR);
  if (vote->fd < 0)
    return store_io_error(error, vote->fd, vote->path, "cannot be opened");
  return 0;
}

static int heal_slot(struct vote_file *vote, unsigned slot)
{
  const struct io *io = vote->io;
  uint64_t bad = slot * VOTE_SLOT + vote->bad_copy[slot] * VOTE_COPY;
  uint64_t good = slot * VOTE_SLOT + !vote->bad_copy[slot] * VOTE_COPY;
  uint8_t raw[VOTE_COPY];
  ssize_t got = io->pread(io->ctx, vote->fd, raw, sizeof(raw), good);
  int rc;

  if (got != (ssize_t)sizeof(raw)) return got < 0 ? (int)got : -EBADMSG;
  rc = io->pwrite(io->ctx, vote->fd, raw, sizeof(raw), bad);
  return rc ? rc : io->sync(io->ctx, vote->fd);
}

int store_vote_heal(struct vote_file *vote, char **error)
{
  unsigned slot;
  int rc;

  for (slot = 0; slot < 2; slot++) {
    rc = vote->bad[slot] ? heal_slot(vote, slot) : 0;
    if (rc)
      return store_io_error(error, rc, vote->path,
                            "a damaged copy cannot be repaired");
    vote->bad[slot] = false;
  }
  return 0;
}

int store_vote_write(struct vote_file *vote, raft_term term, raft_id voted_for,
                     char **error)
{
  const struct io *io = vote->io;
  uint8_t raw[2 * VOTE_COPY];
  uint64_t seq = vote->seq + 1;
  int rc;

  vote_encode(vote, seq, term, voted_for, raw);
  rc = io->pwrite(io->ctx, vote->fd, raw, sizeof(raw), seq % 2 * VOTE_SLOT);
  if (rc) return store_io_error(error, rc, vote->path, "write failed");
  rc = MUTANT(55) ? 0 : io->sync(io->ctx, vote->fd);
  if (rc) return store_io_error(error, rc, vote->path, "sync failed");
  vote->seq = seq;
  vote->term = term;
  vote->voted_for = voted_for;
  return 0;
}

void store_vote_close(struct vote_file *vote)
{
  if (vote->fd >= 0) vote->io->close(vote->io->ctx, vote->fd);
  vote->fd = -1;
}
