/*
** checkpoint.c: what the database file is known to hold.
**
** DIR/checkpoint, all integers little-endian:
**
**   offset  size
**   0       8    magic "quorchk" and a zero byte
**   8       4    version of the format, 1
**   12      4    flags: 1 = the database came as a snapshot from another node,
**                2 = pages of it wait beside the database file
**   16      8    index
**   24      8    term
**   32      8    replay floor
**   40      8    index of the configuration
**   48      4    length of the configuration, C; 0: none
**   52      4    length of the settings, S
**   56      C    configuration, as raft_configuration_encode() makes it
**   56+C    S    settings
**   56+C+S  8    XXH3-64 of everything before
**
** The file is only ever replaced whole, by a rename of a synced file: there is
** no torn state that would have to be accepted, so whatever does not check is
** damage.
*/
#include "store.h"

#include "internal.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

static const char checkpoint_magic[8] = "quorchk";
#define CHECKPOINT_VERSION 1u
#define CHECKPOINT_SNAPSHOT 1u
#define CHECKPOINT_INCOMING 2u
#define CHECKPOINT_MAX ((size_t)64 * 1024 * 1024)

struct disk_checkpoint {
  char magic[8];
  uint32_t version;
  uint32_t flags;
  uint64_t index;
  uint64_t term;
  uint64_t floor;
  uint64_t configuration_index;
  uint32_t configuration_len;
  uint32_t settings_len;
};
_Static_assert(sizeof(struct disk_checkpoint) == 56, "56 bytes");

static void checkpoint_path(char path[STORE_PATH_MAX], const char *dir)
{
  (void)snprintf(path, STORE_PATH_MAX, "%s/checkpoint", dir);
}

/* What is wrong with these values, or NULL. */
static const char *checkpoint_nonsense(const struct store_checkpoint *c)
{
  if (c->index > RAFT_NUMBER_MAX || c->term > RAFT_NUMBER_MAX ||
      c->floor > RAFT_NUMBER_MAX || c->configuration_index > RAFT_NUMBER_MAX)
    return "a number that no cluster reaches";
  if (!c->index != !c->term) return "index and term do not fit together";
  if (c->configuration_index > c->index)
    return "configuration is newer than the checkpoint";
  return NULL;
}

/* ---- writing ------------------------------------------------------------ */

static uint8_t *checkpoint_encode(const struct store_checkpoint *c,
                                  const struct raft_body *configuration,
                                  size_t *len)
{
  size_t clen = configuration ? configuration->len : 0;
  struct disk_checkpoint disk;
  uint64_t checksum;
  uint8_t *out;

  *len = sizeof(disk) + clen + c->settings_len + sizeof(checksum);
  out = malloc(*len);
  if (!out) return NULL;
  memcpy(disk.magic, checkpoint_magic, sizeof(disk.magic));
  disk.version = htole32(CHECKPOINT_VERSION);
  disk.flags = htole32((c->from_snapshot ? CHECKPOINT_SNAPSHOT : 0) |
                       (c->incoming ? CHECKPOINT_INCOMING : 0));
  disk.index = htole64(c->index);
  disk.term = htole64(c->term);
  disk.floor = htole64(c->floor);
  disk.configuration_index = htole64(c->configuration_index);
  disk.configuration_len = htole32((uint32_t)clen);
  disk.settings_len = htole32((uint32_t)c->settings_len);
  memcpy(out, &disk, sizeof(disk));
  if (clen) memcpy(out + sizeof(disk), configuration->data, clen);
  if (c->settings_len)
    memcpy(out + sizeof(disk) + clen, c->settings, c->settings_len);
  checksum = htole64(XXH3_64bits(out, *len - sizeof(checksum)));
  memcpy(out + *len - sizeof(checksum), &checksum, sizeof(checksum));
  return out;
}

int store_checkpoint_write(const struct io *io, const char *dir,
                           const struct store_checkpoint *checkpoint,
                           char **error)
{
  struct raft_body *configuration = NULL;
  char path[STORE_PATH_MAX];
  const char *why = checkpoint_nonsense(checkpoint);
  uint8_t *data;
  size_t len;
  int rc;

  checkpoint_path(path, dir);
  if (!why && checkpoint->settings_len > CHECKPOINT_MAX / 2)
    why = "settings are too large";
  if (why) return store_error(error, -EINVAL, "%s: %s", path, why);
  if (checkpoint->configuration.n) {
    configuration = raft_configuration_encode(&checkpoint->configuration);
    if (!configuration) return store_error(error, -ENOMEM, "out of memory");
  }
  data = checkpoint_encode(checkpoint, configuration, &len);
  raft_body_unref(configuration);
  if (!data) return store_error(error, -ENOMEM, "out of memory");
  rc = io_replace_file(io, path, data, len);
  free(data);
  if (rc) return store_io_error(error, rc, path, "cannot be written");
  return 0;
}

/* ---- reading ------------------------------------------------------------ */

/* Everything but memory; NULL, or what is wrong and at which offset. */
static const char *checkpoint_check(const uint8_t *data, size_t len,
                                    struct disk_checkpoint *disk, size_t *at)
{
  uint64_t checksum, clen, slen;

  *at = 0;
  if (len < sizeof(*disk) + sizeof(checksum)) return "too short";
  memcpy(disk, data, sizeof(*disk));
  memcpy(&checksum, data + len - sizeof(checksum), sizeof(checksum));
  if (memcmp(disk->magic, checkpoint_magic, sizeof(disk->magic)))
    return "not a checkpoint file";
  *at = len - sizeof(checksum);
  if (le64toh(checksum) != XXH3_64bits(data, len - sizeof(checksum)))
    return "damaged: wrong checksum";
  *at = offsetof(struct disk_checkpoint, version);
  if (le32toh(disk->version) != CHECKPOINT_VERSION)
    return "unknown version of the checkpoint format";
  *at = offsetof(struct disk_checkpoint, flags);
  if (le32toh(disk->flags) & ~(CHECKPOINT_SNAPSHOT | CHECKPOINT_INCOMING))
    return "unknown flags";
  clen = le32toh(disk->configuration_len);
  slen = le32toh(disk->settings_len);
  *at = offsetof(struct disk_checkpoint, configuration_len);
  if (sizeof(*disk) + clen + slen + sizeof(checksum) != len)
    return "lengths do not add up";
  return NULL;
}

static int checkpoint_decode(const char *path, const uint8_t *data, size_t len,
                             struct store_checkpoint *c, char **error)
{
  struct disk_checkpoint disk;
  size_t clen, at;
  const char *why = checkpoint_check(data, len, &disk, &at);

  if (why)
    return store_error(error, -EBADMSG, "%s: offset %zu: %s", path, at, why);
  c->index = le64toh(disk.index);
  c->term = le64toh(disk.term);
  c->floor = le64toh(disk.floor);
  c->configuration_index = le64toh(disk.configuration_index);
  c->from_snapshot = le32toh(disk.flags) & CHECKPOINT_SNAPSHOT;
  c->incoming = le32toh(disk.flags) & CHECKPOINT_INCOMING;
  clen = le32toh(disk.configuration_len);
  c->settings_len = le32toh(disk.settings_len);
  why = checkpoint_nonsense(c);
  if (why) return store_error(error, -EBADMSG, "%s: offset 16: %s", path, why);
  if (clen &&
      raft_configuration_decode(data + sizeof(disk), clen, &c->configuration))
    return store_error(error, -EBADMSG,
                       "%s: offset %zu: impossible configuration", path,
                       sizeof(disk));
  if (!c->settings_len) return 0;
  c->settings = malloc(c->settings_len);
  if (!c->settings) return store_error(error, -ENOMEM, "out of memory");
  memcpy(c->settings, data + sizeof(disk) + clen, c->settings_len);
  return 0;
}

int store_checkpoint_read(const struct io *io, const char *dir,
                          struct store_checkpoint *checkpoint, char **error)
{
  char path[STORE_PATH_MAX];
  uint8_t *data;
  size_t len;
  int rc;

  memset(checkpoint, 0, sizeof(*checkpoint));
  checkpoint_path(path, dir);
  rc = io_read_file(io, path, CHECKPOINT_MAX, &data, &len);
  if (rc == -EFBIG) return store_error(error, -EBADMSG, "%s: too large", path);
  if (rc) return store_io_error(error, rc, path, "cannot be read");
  rc = checkpoint_decode(path, data, len, checkpoint, error);
  free(data);
  if (rc) store_checkpoint_clear(checkpoint);
  return rc;
}

void store_checkpoint_clear(struct store_checkpoint *checkpoint)
{
  free(checkpoint->settings);
  memset(checkpoint, 0, sizeof(*checkpoint));
}
