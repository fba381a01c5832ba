/*
** fuzz_log.c: the segments in DIR/log.
**
** An input describes a log: u8 what, u8 term of the vote, u8 checkpoint index,
** u8 its term, then segments, each u8 kind, u16 length, that many bytes of the
** file, which is filled up with zeros to SEGMENT bytes. what, bit 0: checksums
** and chains are set right, as far as records follow one another; bit 1: the
** checkpoint is a snapshot; bit 2: each file is as long as its bytes. kind, bit
** 0: the file has the name that its header wants; else one made of its number.
**
** What must hold: a log that is refused is left as it was, and says why; one
** that is taken has its entries in order, all of them can be read back, and
** whatever was written can be written to, closed, opened again, and has the
** same entries then. store_inspect() agrees, and changes nothing.
*/
#include "files.h"

#include <inttypes.h>
#include <xxhash.h>

const char *const fuzz_corpus = "raft/store/fuzz/corpus/log";

#define SEGMENT 4096u
#define SEGMENTS 6
#define MARK 0x4d

/* ---- the files --------------------------------------------------------- */

struct log_input {
  uint8_t what, vote_term;
  struct store_checkpoint checkpoint;
  unsigned n;
};

/* Headers of records, from the first on, for as long as they make sense. */
static void fix_records(uint8_t *file, size_t size, bool chain)
{
  uint64_t seq = read_number(file + 32, 8), prev = read_number(file + 56, 8);
  size_t at = SEGMENT_HEADER, len;

  while (at + RECORD_HEADER <= size) {
    uint8_t *r = file + at;

    len = (size_t)read_number(r, 4);
    if (read_number(r + 4, 4) == 0 || len > size - at - RECORD_HEADER) return;
    write_number(r + 24, XXH3_64bits(r + RECORD_HEADER, len), 8);
    if (chain) write_number(r + 40, prev, 8);
    prev = XXH3_64bits_withSeed(r, 48, seq);
    write_number(r + 48, prev, 8);
    at += (size_t)store_record_size(len);
  }
}

/* The same for a segment; `last` is what it must chain to, if not 0. */
static void fix_segment(uint8_t *file, size_t size, uint8_t what)
{
  if (size < SEGMENT_HEADER || !(what & 1)) return;
  write_number(file + 64, size, 8);
  write_number(file + 504, XXH3_64bits(file, 504), 8);
  fix_records(file, size, true);
}

static void put_segment(struct disk *disk, struct input *in,
                        const struct log_input *log)
{
  static uint8_t file[SEGMENT];
  uint8_t kind = input_byte(in);
  size_t len = (size_t)input_number(in, 2), got, size;
  const uint8_t *bytes = input_bytes(in, len > SEGMENT ? SEGMENT : len, &got);
  raft_index first = log->n + 1;
  char name[SEGMENT_NAME], path[64];

  memset(file, 0, sizeof file);
  if (got) memcpy(file, bytes, got);
  size = log->what & 4 ? got : SEGMENT;
  fix_segment(file, size, log->what);
  if (kind & 1) first = read_number(file + 40, 8);
  store_segment_name(name, first);
  snprintf(path, sizeof path, DIR_ "/log/%s", name);
  disk_write_file(disk, path, file, size);
}

static void put_vote(struct disk *disk, const struct store_options *options,
                     raft_term term)
{
  static struct vote_file vote;

  (void)disk;
  must(store_vote_open(&vote, options, false, NULL) == 0);
  must(store_vote_write(&vote, term, 0, NULL) == 0);
  store_vote_close(&vote);
}

static struct log_input put_files(struct disk *disk,
                                  const struct store_options *options,
                                  struct input in)
{
  struct log_input log = {.what = input_byte(&in)};

  log.vote_term = input_byte(&in);
  log.checkpoint.index = input_byte(&in);
  log.checkpoint.term = input_byte(&in);
  if (!log.checkpoint.index) log.checkpoint.term = 0;
  if (log.checkpoint.index && !log.checkpoint.term) log.checkpoint.term = 1;
  log.checkpoint.from_snapshot = log.what & 2;
  put_vote(disk, options, log.vote_term);
  for (; input_left(&in) && log.n < SEGMENTS; log.n++)
    put_segment(disk, &in, &log);
  return log;
}

/* ---- what must hold ---------------------------------------------------- */

/* A number for all files and their bytes. */
static uint64_t sum_files(struct disk *disk)
{
  uint64_t sum = 0;

  for (unsigned i = 0; i < disk->n_names; i++) {
    const struct inode *inode = disk->names[i].inode;

    sum += XXH3_64bits_withSeed(
        inode->cache, inode->size,
        XXH3_64bits(disk->names[i].path, strlen(disk->names[i].path)));
  }
  return sum;
}

/* Reads all back. A number for it. */
static uint64_t sum_entries(struct store *store, const struct raft_recovered *r)
{
  raft_index at = r->snapshot_index;
  raft_term term = r->snapshot_term;
  struct raft_entry e[8];
  uint64_t sum = 0;

  while (at < r->last_index) {
    char *error = NULL;
    int n = store_read(store, at + 1, r->last_index, 2048, 8, e, &error);

    must(n > 0 && !error);
    for (int i = 0; i < n; i++) {
      must(e[i].index == ++at && e[i].term >= term && e[i].term);
      must(e[i].type >= RAFT_NOOP && e[i].type <= RAFT_SETTING);
      must(!e[i].body || raft_body_intact(e[i].body));
      sum = sum * 31 + e[i].term * 7 + e[i].type +
            (e[i].body ? e[i].body->checksum : 0);
      term = e[i].term;
      raft_body_unref(e[i].body);
    }
  }
  must(store_read(store, at + 1, at + 1, 2048, 8, e, NULL) == -ENOENT);
  return sum;
}

static void on_done(void *ctx, uint64_t seq, int status, const char *error)
{
  (void)error;
  must(status == 0);
  *(uint64_t *)ctx = seq;
}

static void add_one(struct store *store, const struct raft_recovered *r,
                    const uint64_t *durable)
{
  struct raft_entry entry = {
      .index = r->last_index + 1, .term = r->term, .type = RAFT_COMMIT};
  struct raft_persist persist = {.seq = 1,
                                 .vote = true,
                                 .term = r->term,
                                 .voted_for = r->voted_for,
                                 .n_entries = 1,
                                 .entries = &entry};

  entry.body = raft_body_new(100);
  must(entry.body);
  memset(entry.body->data, 'x', 100);
  raft_body_seal(entry.body);
  must(store_submit(store, &persist) == 0);
  while (store_run(store))
    ;
  must(*durable == 1);
  raft_body_unref(entry.body);
}

static void try_taken(const struct store_options *options,
                      const struct store_checkpoint *checkpoint,
                      struct store *store, struct raft_recovered *r,
                      const uint64_t *durable)
{
  uint64_t sum = sum_entries(store, r), again;
  struct raft_recovered was = *r;
  raft_index last = r->last_index;
  char *error = NULL;
  int rc;

  must(r->last_index >= r->snapshot_index);
  must(r->commit == checkpoint->index && r->commit <= r->last_index);
  must(r->n_terms == 0 || r->terms[0].first > r->snapshot_index);
  must(r->configuration_index <= r->last_index);
  must(r->previous_index <= r->configuration_index);
  /* What is behind the newest number that there may be cannot be added. */
  bool more = r->term > 0 && r->last_index < RAFT_NUMBER_MAX;
  if (more) add_one(store, r, durable);
  bool over = store->segment_seq >= RAFT_NUMBER_MAX;
  store_close(store);
  if (over) { /* it took the last number that there is */
    rc = store_open(options, checkpoint, &store, r, &error);
    must_refuse(rc, error);
    return;
  }
  must(store_open(options, checkpoint, &store, r, NULL) == 0);
  must(r->last_index == last + more && r->term == was.term);
  r->last_index = last;
  again = more ? 0 : sum_entries(store, r);
  must(more || again == sum);
  r->last_index = last + more;
  sum_entries(store, r);
  store_close(store);
}

static void try_inspect(const struct store_options *options,
                        const struct store_checkpoint *checkpoint,
                        struct raft_recovered *r, char **damage)
{
  struct disk *disk = options->io->ctx;
  uint64_t before = sum_files(disk);
  struct store *store = NULL;
  char *error = NULL;
  int rc = store_inspect(options, checkpoint, &store, r, damage, &error);

  if (rc) {
    must_refuse(rc, error);
    return;
  }
  must(!error);
  must(!*damage || !strchr(*damage, '\n'));
  sum_entries(store, r);
  store_close(store);
  must(sum_files(disk) == before);
}

static struct store_options options_of(struct disk *disk, uint64_t *durable)
{
  return (struct store_options){.dir = DIR_,
                                .io = &disk->io,
                                .segment_bytes = SEGMENT,
                                .cluster = CLUSTER,
                                .node = NODE,
                                .stepped = true,
                                .done = on_done,
                                .ctx = durable};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct disk *disk = disk_fresh();
  uint64_t durable = 0, before;
  struct store_options options = options_of(disk, &durable);
  struct log_input log = put_files(disk, &options, input_of(data, size));
  static struct raft_recovered seen, r;
  struct store *store = NULL;
  char *error = NULL, *damage = NULL;
  int rc;

  try_inspect(&options, &log.checkpoint, &seen, &damage);
  before = sum_files(disk);
  rc = store_open(&options, &log.checkpoint, &store, &r, &error);
  if (rc) {
    must_refuse(rc, error);
    must(sum_files(disk) == before);
  } else {
    must(!error);
    /* Of a log that is whole both see the same. */
    must(damage || seen.last_index == r.last_index);
    try_taken(&options, &log.checkpoint, store, &r, &durable);
  }
  free(damage);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static uint8_t seed_bytes[64 * 1024];

/* The log that is on the disk, as an input. */
static size_t seed_of(struct disk *disk, uint8_t what)
{
  size_t n = 4;

  memset(seed_bytes, 0, sizeof seed_bytes);
  seed_bytes[0] = what;
  seed_bytes[1] = 9;
  for (unsigned i = 0; i < disk->n_names; i++) {
    const struct inode *inode = disk->names[i].inode;
    size_t len = (size_t)inode->size;

    if (!strstr(disk->names[i].path, ".seg")) continue;
    while (len > SEGMENT_HEADER && inode->cache[len - 1] == 0)
      len--;
    must(n + 3 + len < sizeof seed_bytes);
    seed_bytes[n] = 1;
    write_number(seed_bytes + n + 1, len, 2);
    memcpy(seed_bytes + n + 3, inode->cache, len);
    n += 3 + len;
  }
  return n;
}

/* One more entry, which may replace what stands there. */
static void submit(struct store *store, uint64_t seq, raft_index index,
                   raft_term term, uint8_t type, size_t len)
{
  struct raft_configuration c = {.n = 1};
  struct raft_entry entry = {.index = index, .term = term, .type = type};
  struct raft_persist persist = {.seq = seq,
                                 .vote = true,
                                 .term = term,
                                 .n_entries = 1,
                                 .entries = &entry};

  c.members[0] =
      (struct raft_member){.id = NODE, .role = RAFT_VOTER, .name = "n"};
  if (type == RAFT_CONFIGURATION) {
    entry.body = raft_configuration_encode(&c);
  } else if (len) {
    entry.body = raft_body_new(len);
    memset(entry.body->data, (int)index, len);
    raft_body_seal(entry.body);
  }
  must(store_submit(store, &persist) == 0);
  while (store_run(store))
    ;
  raft_body_unref(entry.body);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  struct disk *disk = disk_fresh();
  uint64_t durable = 0;
  struct store_options options = options_of(disk, &durable);
  static const struct store_checkpoint none;
  static uint8_t copies[4][sizeof seed_bytes];
  size_t len[4];
  struct raft_recovered r;
  struct store *store;

  must(store_open(&options, &none, &store, &r, NULL) == 0);
  submit(store, 1, 1, 1, RAFT_NOOP, 0);
  submit(store, 2, 2, 1, RAFT_CONFIGURATION, 0);
  submit(store, 3, 3, 1, RAFT_COMMIT, 300);
  len[0] = seed_of(disk, 1); /* with a torn end, perhaps */
  memcpy(copies[0], seed_bytes, len[0]);
  store_rest(store);
  len[1] = seed_of(disk, 1);
  memcpy(copies[1], seed_bytes, len[1]);
  for (raft_index i = 4; i < 10; i++)
    submit(store, i, i, 2, RAFT_PAGES, 900);
  len[2] = seed_of(disk, 1);
  memcpy(copies[2], seed_bytes, len[2]);
  submit(store, 10, 6, 3, RAFT_SETTING, 20); /* replaces */
  submit(store, 11, 7, 3, RAFT_COMMIT, 20);
  len[3] = seed_of(disk, 0);
  memcpy(copies[3], seed_bytes, len[3]);
  store_close(store);
  for (unsigned i = 0; i < 4; i++)
    seed(copies[i], len[i]);
}
