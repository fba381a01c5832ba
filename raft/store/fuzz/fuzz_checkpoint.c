/*
** fuzz_checkpoint.c: the file DIR/checkpoint.
**
** An input: u8 what, then the file. what, bit 0: its checksum is set right.
**
** What must hold: what is refused leaves nothing and says why; what is taken
** makes sense, and is written again as the same bytes.
*/
#include "files.h"

#include <xxhash.h>

const char *const fuzz_corpus = "raft/store/fuzz/corpus/checkpoint";

#define PATH DIR_ "/checkpoint"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct disk *disk = disk_fresh();
  struct store_checkpoint c;
  uint8_t *bytes;
  char *error = NULL;
  const uint8_t *again;
  size_t len;
  int rc;

  if (size < 1) return 0;
  bytes = exact_copy(data + 1, size - 1);
  len = size - 1;
  if (data[0] & 1 && len >= 8)
    write_number(bytes + len - 8, XXH3_64bits(bytes, len - 8), 8);
  disk_write_file(disk, PATH, bytes, len);
  rc = store_checkpoint_read(&disk->io, DIR_, &c, &error);
  if (rc) {
    must_refuse(rc, error);
    must(c.index == 0 && c.settings == NULL && c.configuration.n == 0);
  } else {
    must(!error);
    must(!c.index == !c.term && c.configuration_index <= c.index);
    must(c.index <= RAFT_NUMBER_MAX && c.term <= RAFT_NUMBER_MAX);
    must(c.floor <= RAFT_NUMBER_MAX);
    must(!c.settings == !c.settings_len);
    rc = store_checkpoint_write(&disk->io, DIR_, &c, &error);
    must(rc == 0 && !error);
    again = disk_read_file(disk, PATH, &size);
    /* A configuration without members is written as none. */
    must(c.configuration.n == 0 || size == len);
    must(size != len || memcmp(again, bytes, len) == 0);
    store_checkpoint_clear(&c);
  }
  free(bytes);
  return 0;
}

static void seed_one(void (*seed)(const void *data, size_t size),
                     const struct store_checkpoint *c)
{
  struct disk *disk = disk_fresh();
  uint8_t bytes[4096];
  const uint8_t *file;
  size_t size;

  must(store_checkpoint_write(&disk->io, DIR_, c, NULL) == 0);
  file = disk_read_file(disk, PATH, &size);
  must(size < sizeof bytes);
  bytes[0] = 1;
  memcpy(bytes + 1, file, size);
  seed(bytes, size + 1);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  struct store_checkpoint c = {0};
  uint8_t settings[] = "\0\0\0\0";

  seed_one(seed, &c);
  c.index = 10;
  c.term = 3;
  c.floor = 12;
  seed_one(seed, &c);
  c.configuration.n = 1;
  c.configuration.members[0] = (struct raft_member){
      .id = NODE, .role = RAFT_VOTER, .name = "n1", .address = "a:1"};
  c.configuration_index = 4;
  c.settings = settings;
  c.settings_len = 4;
  c.from_snapshot = c.incoming = true;
  seed_one(seed, &c);
}
