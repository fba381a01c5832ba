/*
** segment.c: the bytes of a log segment.
**
** DIR/log/<first index, 16 hex digits>.seg, all integers little-endian:
**
**   offset  size
**   0       8    magic "quorseg" and a zero byte
**   8       4    version of the format, 1
**   12      4    flags: 1 = base, the log begins with this segment
**   16      8    cluster
**   24      8    node
**   32      8    sequence number of this use of the file
**   40      8    index of the first record
**   48      8    term of the entry before the first record
**   56      8    header checksum of the record before the first one
**   64      8    size of the file
**   72      432  zeros
**   504     8    XXH3-64 of bytes 0..503
**   512          records
**
** A record begins at a multiple of 8 and is padded with zeros to one:
**
**   0       4    length of the body
**   4       1    type of the entry, or 0x4d: a mark
**   5       3    zeros
**   8       8    index
**   16      8    term
**   24      8    XXH3-64 of the body, as in struct raft_body
**   32      8    durable mark: the last index known to be synced when this
**                was written; always below the record's own index
**   40      8    header checksum of the record before this one: the chain
**   48      8    XXH3-64 of bytes 0..47, seeded with the segment's sequence
**                number
**   56           body
**
** A mark is a record without a body that stands where the next entry will be
** written, and is overwritten by it. It has the index and term of the last
** entry before it, and its durable mark is that same index. Written when the
** log is at rest, it makes damage to the newest entries tell itself from a
** torn write. Room for one is always kept at the end of a segment.
**
** What must hold:
**
**  S1. A file has the name of a segment only after its header and the records
**      written with it are synced. So a bad segment header is always damage.
**  S2. The next segment gets its name only after every record before its
**      first one is synced. So only the newest segment can have a torn tail.
**  S3. Sequence numbers only grow; no two uses of a file have the same one.
**      So no record left from an earlier use of a recycled file has a good
**      header checksum. (They never come to their end: a header that says
**      RAFT_NUMBER_MAX or more was not written by this program.)
**  S4. Within one use of a file, records are only appended, each at the end
**      of the one before; what a crash left there is zeroed, durably, before
**      anything is appended.
**
** Replacing a suffix of the log. New entries that begin at an index K that
** the log has already are not written over the old ones: they begin a new
** segment, whose first index is K. A newer segment (by sequence number)
** supersedes everything from its first index on in all older ones: older
** segments with first index >= K are dead, and of the one that contains K - 1
** only the records before K count. A base segment supersedes all older ones.
** Since the segment appears by one rename, after its records are synced (S1),
** a crash leaves either the old suffix whole or the new one, never a mixture,
** and no old record is ever behind a new one in the same file. If K is
** also the first index of an older segment, the rename replaces that; the new
** one is a base if that was. The
** order is: records synced, rename, directory synced, dead segments unlinked,
** directory synced, and only then is anything acknowledged. The second sync
** is for this: were a dead segment to reappear after the segment that killed
** it was itself compacted away, it would look like a gap.
**
** The chain ties the first record of a segment to the last one in force of
** the segment before it, so that segments of different histories do not fit
** together.
*/
#include "internal.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

static const char segment_magic[8] = "quorseg";
#define SEGMENT_VERSION 1u

struct disk_segment {
  char magic[8];
  uint32_t version;
  uint32_t flags;
  uint64_t cluster;
  uint64_t node;
  uint64_t seq;
  uint64_t first;
  uint64_t prev_term;
  uint64_t prev;
  uint64_t bytes;
  uint8_t zeros[432];
  uint64_t checksum;
};
_Static_assert(sizeof(struct disk_segment) == SEGMENT_HEADER, "512 bytes");
_Static_assert(offsetof(struct disk_segment, checksum) == 504, "at the end");

struct disk_record {
  uint32_t length;
  uint8_t type;
  uint8_t zeros[3];
  uint64_t index;
  uint64_t term;
  uint64_t body;
  uint64_t mark;
  uint64_t prev;
  uint64_t checksum;
};
_Static_assert(sizeof(struct disk_record) == RECORD_HEADER, "56 bytes");
_Static_assert(offsetof(struct disk_record, checksum) == 48, "at the end");
_Static_assert(RECORD_HEADER % 8 == 0 && SEGMENT_HEADER % 8 == 0, "aligned");

/* ---- headers ------------------------------------------------------------ */

void store_header_encode(const struct segment_header *header,
                         uint8_t out[SEGMENT_HEADER])
{
  struct disk_segment disk;

  memset(&disk, 0, sizeof(disk));
  memcpy(disk.magic, segment_magic, sizeof(disk.magic));
  disk.version = htole32(SEGMENT_VERSION);
  disk.flags = htole32(header->flags);
  disk.cluster = htole64(header->cluster);
  disk.node = htole64(header->node);
  disk.seq = htole64(header->seq);
  disk.first = htole64(header->first);
  disk.prev_term = htole64(header->prev_term);
  disk.prev = htole64(header->prev);
  disk.bytes = htole64(header->bytes);
  disk.checksum =
      htole64(XXH3_64bits(&disk, offsetof(struct disk_segment, checksum)));
  memcpy(out, &disk, sizeof(disk));
}

int store_header_decode(const uint8_t in[SEGMENT_HEADER],
                        struct segment_header *header, const char **why)
{
  struct disk_segment disk;

  memcpy(&disk, in, sizeof(disk));
  *why = "damaged segment header";
  if (memcmp(disk.magic, segment_magic, sizeof(disk.magic)) ||
      le64toh(disk.checksum) !=
          XXH3_64bits(&disk, offsetof(struct disk_segment, checksum)))
    return -EBADMSG;
  *why = "unknown version of the segment format";
  if (le32toh(disk.version) != SEGMENT_VERSION) return -EBADMSG;
  header->flags = le32toh(disk.flags);
  header->cluster = le64toh(disk.cluster);
  header->node = le64toh(disk.node);
  header->seq = le64toh(disk.seq);
  header->first = le64toh(disk.first);
  header->prev_term = le64toh(disk.prev_term);
  header->prev = le64toh(disk.prev);
  header->bytes = le64toh(disk.bytes);
  *why = "impossible segment header";
  if (header->flags & ~SEGMENT_BASE || !header->first || !header->seq ||
      header->bytes < SEGMENT_HEADER ||
      header->bytes > (uint64_t)SEGMENT_MAX + RAFT_BODY_MAX)
    return -EBADMSG;
  *why = NULL;
  return 0;
}

void store_record_encode(struct record *record, uint64_t seq,
                         uint8_t out[RECORD_HEADER])
{
  struct disk_record disk;

  memset(&disk, 0, sizeof(disk));
  disk.length = htole32(record->length);
  disk.type = record->type;
  disk.index = htole64(record->index);
  disk.term = htole64(record->term);
  disk.body = htole64(record->body);
  disk.mark = htole64(record->mark);
  disk.prev = htole64(record->prev);
  record->checksum =
      XXH3_64bits_withSeed(&disk, offsetof(struct disk_record, checksum), seq);
  disk.checksum = htole64(record->checksum);
  memcpy(out, &disk, sizeof(disk));
}

/* Whether the fields make sense at all: what this program would write. */
static bool record_plausible(const struct record *record)
{
  if (record->type == RECORD_MARK)
    return !record->length && record->mark == record->index;
  return record->type >= RAFT_NOOP && record->type <= RAFT_SETTING &&
         record->length <= RAFT_BODY_MAX && record->term > 0 &&
         record->mark < record->index;
}

bool store_record_decode(const uint8_t in[RECORD_HEADER], uint64_t seq,
                         struct record *record)
{
  struct disk_record disk;

  memcpy(&disk, in, sizeof(disk));
  record->length = le32toh(disk.length);
  record->type = disk.type;
  record->index = le64toh(disk.index);
  record->term = le64toh(disk.term);
  record->body = le64toh(disk.body);
  record->mark = le64toh(disk.mark);
  record->prev = le64toh(disk.prev);
  record->checksum = le64toh(disk.checksum);
  /* the cheap test first: recovery tries this at every eighth byte */
  if (!record_plausible(record)) return false;
  return MUTANT(50) ||
         record->checksum ==
             XXH3_64bits_withSeed(&disk, offsetof(struct disk_record, checksum),
                                  seq);
}

uint64_t store_record_size(uint64_t length)
{
  return (RECORD_HEADER + length + 7) & ~(uint64_t)7;
}

uint64_t store_body_checksum(const void *data, size_t len)
{
  return XXH3_64bits(data, len);
}

/* ---- segments in memory ------------------------------------------------- */

struct segment *store_segment_new(const struct io *io)
{
  struct segment *segment = calloc(1, sizeof(*segment));

  if (!segment) return NULL;
  segment->io = io;
  segment->fd = -1;
  segment->refs = 1;
  segment->stride = 1;
  return segment;
}

void store_segment_ref(struct segment *segment)
{
  segment->refs++;
}

void store_segment_unref(struct segment *segment)
{
  if (!segment || --segment->refs) return;
  if (segment->fd >= 0) segment->io->close(segment->io->ctx, segment->fd);
  free(segment);
}

void store_segment_name(char name[SEGMENT_NAME], raft_index first)
{
  (void)snprintf(name, SEGMENT_NAME, "%016" PRIx64 ".seg", first);
}

/* The table has a fixed size, so that the log thread allocates nothing and a
   segment of tiny entries takes no more memory than another: when it is
   full, every other offset goes. */
void store_segment_add(struct segment *segment, uint32_t offset)
{
  uint32_t i, k = segment->n++;

  if (k % segment->stride) return;
  if (k / segment->stride == SEGMENT_TABLE) {
    for (i = 0; i < SEGMENT_TABLE / 2; i++)
      segment->table[i] = segment->table[2 * i];
    segment->stride *= 2;
    /* k was TABLE * the old stride: a multiple of the new one too */
  }
  segment->table[k / segment->stride] = offset;
}

uint32_t store_segment_near(const struct segment *segment, uint32_t k,
                            uint32_t *offset)
{
  uint32_t slot = k / segment->stride;

  *offset = segment->table[slot];
  return slot * segment->stride;
}

int store_segment_seek(const struct segment *segment, uint32_t at, uint32_t k,
                       uint64_t *offset, struct record *record)
{
  const struct io *io = segment->io;
  uint8_t raw[RECORD_HEADER];
  ssize_t got;

  for (;; at++) {
    got = io->pread(io->ctx, segment->fd, raw, sizeof(raw), *offset);
    if (got < 0) return (int)got;
    if (got != (ssize_t)sizeof(raw) ||
        !store_record_decode(raw, segment->header.seq, record) ||
        record->type == RECORD_MARK ||
        record->index != segment->header.first + at)
      return -EBADMSG;
    if (at == k) return 0;
    *offset += store_record_size(record->length);
  }
}
