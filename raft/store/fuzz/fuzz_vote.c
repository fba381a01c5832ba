/*
** fuzz_vote.c: the file DIR/vote.
**
** An input: u8 what, u8 missing bytes / 64, then pieces of the four copies:
** 64 bytes each that begin a copy; the rest of the file is zero. what, bit 0:
** checksums are set right; bit 1: the file ends early.
**
** What must hold: what is refused says why and changes nothing; what is taken
** is one of the copies, the newest; healed, no copy is bad; and the vote that
** is written next is the one that is read then.
*/
#include "files.h"

#include <xxhash.h>

const char *const fuzz_corpus = "raft/store/fuzz/corpus/vote";

#define COPY 512u
#define SLOT 4096u
#define PIECE 64u
#define PATH DIR_ "/vote"

static size_t make_file(struct input in, uint8_t file[2 * SLOT])
{
  uint8_t what = input_byte(&in), missing = input_byte(&in);
  size_t got;

  memset(file, 0, (size_t)2 * SLOT);
  for (unsigned i = 0; i < 4; i++) {
    uint8_t *copy = file + i / 2 * SLOT + i % 2 * COPY;
    const uint8_t *piece = input_bytes(&in, PIECE, &got);

    if (got) memcpy(copy, piece, got);
    /* The other copy is most often the same. */
    if (!got && i % 2) memcpy(copy, copy - COPY, COPY);
    if (what & 1) write_number(copy + COPY - 8, XXH3_64bits(copy, COPY - 8), 8);
  }
  return what & 2 ? (size_t)2 * SLOT - missing * PIECE / 2 : (size_t)2 * SLOT;
}

static void try_taken(struct disk *disk, struct vote_file *vote,
                      const struct store_options *options)
{
  raft_term term = vote->term;
  raft_id who = vote->voted_for;
  uint64_t seq = vote->seq;
  raft_term later = term + (term < RAFT_NUMBER_MAX);
  struct vote_file next;
  char *error = NULL;
  int rc;

  must(store_vote_heal(vote, NULL) == 0);
  must(!vote->bad[0] && !vote->bad[1]);
  store_vote_close(vote);
  must(store_vote_open(vote, options, true, NULL) == 0);
  must(!vote->bad[0] && !vote->bad[1]);
  must(vote->term == term && vote->voted_for == who && vote->seq == seq);
  must(store_vote_write(vote, later, 3, NULL) == 0);
  store_vote_close(vote);
  memset(&next, 0, sizeof next);
  must(seq < RAFT_NUMBER_MAX && term <= RAFT_NUMBER_MAX);
  if (seq + 1 == RAFT_NUMBER_MAX) { /* it took the last that there is */
    rc = store_vote_open(&next, options, true, &error);
    must_refuse(rc, error);
    return;
  }
  must(store_vote_open(&next, options, true, NULL) == 0);
  must(next.term == later && next.voted_for == 3 && next.seq == seq + 1);
  store_vote_close(&next);
  (void)disk;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct disk *disk = disk_fresh();
  struct store_options options = {
      .dir = DIR_, .io = &disk->io, .cluster = CLUSTER, .node = NODE};
  static struct vote_file vote;
  static uint8_t file[2 * SLOT];
  size_t len = make_file(input_of(data, size), file), after;
  char *error = NULL;
  int rc;

  disk_write_file(disk, PATH, file, len);
  memset(&vote, 0, sizeof vote);
  rc = store_vote_open(&vote, &options, true, &error);
  if (rc) {
    must_refuse(rc, error);
    must(vote.fd < 0);
    must(memcmp(disk_read_file(disk, PATH, &after), file, len) == 0);
    must(after == len);
    return 0;
  }
  must(!error);
  must(len == (size_t)2 * SLOT && vote.fd >= 0);
  must(vote.term == read_number(file + vote.seq % 2 * SLOT + 40, 8) ||
       vote.term == read_number(file + vote.seq % 2 * SLOT + COPY + 40, 8));
  try_taken(disk, &vote, &options);
  return 0;
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  struct disk *disk = disk_fresh();
  struct store_options options = {
      .dir = DIR_, .io = &disk->io, .cluster = CLUSTER, .node = NODE};
  static struct vote_file vote;
  uint8_t bytes[3][2 + 4 * PIECE] = {{1}, {1}, {1}};
  const uint8_t *file;
  size_t size;

  must(store_vote_open(&vote, &options, false, NULL) == 0);
  for (unsigned round = 0; round < 3; round++) {
    must(store_vote_write(&vote, 5 + round, round, NULL) == 0);
    file = disk_read_file(disk, PATH, &size);
    for (unsigned i = 0; i < 4; i++)
      memcpy(bytes[round] + 2 + i * PIECE, file + i / 2 * SLOT + i % 2 * COPY,
             PIECE);
  }
  store_vote_close(&vote);
  for (unsigned round = 0; round < 3; round++)
    seed(bytes[round], sizeof bytes[round]);
  memset(bytes[0] + 2 + PIECE, 0, PIECE); /* a torn one */
  seed(bytes[0], sizeof bytes[0]);
  bytes[0][0] = 3;
  seed(bytes[0], sizeof bytes[0]);
}
