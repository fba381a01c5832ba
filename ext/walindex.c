/*
** walindex.c: see walindex.h.
**
** A region is 32 KiB: page numbers of its frames (in the first region after
** the 136 bytes of two headers and the checkpoint information), then from
** byte 16384 a hash table of 8192 two-byte slots. A slot holds the position,
** from 1, of a frame in this region; collisions go to the next slot. A reader
** looks a page up in the newest region first and takes the last frame that is
** not above its snapshot.
*/
#include "walindex.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define HEADS 136u /* two headers and the checkpoint information */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "little-endian hosts only");
_Static_assert((16384u - HEADS) / 4 == WALINDEX_FIRST, "first region");

unsigned walindex_region_of(uint32_t frame)
{
  return (frame + WALINDEX_FRAMES - WALINDEX_FIRST - 1) / WALINDEX_FRAMES;
}

/* The frame before the first one of a region. */
static uint32_t region_zero(unsigned i)
{
  return i == 0 ? 0 : WALINDEX_FIRST + (i - 1) * WALINDEX_FRAMES;
}

static uint32_t *region_pages(const struct walindex *index, unsigned i)
{
  return (uint32_t *)(void *)(index->region[i] + (i == 0 ? HEADS : 0));
}

static uint16_t *region_slots(const struct walindex *index, unsigned i)
{
  return (uint16_t *)(void *)(index->region[i] + 16384);
}

int walindex_reserve(struct walindex *index, unsigned i)
{
  while (index->n_regions <= i) {
    uint8_t **grown = realloc(index->region, (index->n_regions + 1) *
                                                 sizeof(index->region[0]));
    if (grown == NULL) return -1;
    index->region = grown;
    uint8_t *made = index->grow(index->ctx, index->n_regions);
    if (made == NULL) return -1;
    index->region[index->n_regions++] = made;
  }
  return 0;
}

struct walindex_header *walindex_header(struct walindex *index)
{
  return (struct walindex_header *)(void *)index->region[0];
}

struct walindex_info *walindex_info(struct walindex *index)
{
  return (struct walindex_info *)(void *)(index->region[0] +
                                          2 * sizeof(struct walindex_header));
}

void walindex_seal(struct walindex_header *header)
{
  header->version = WALINDEX_VERSION;
  header->unused = 0;
  header->is_init = 1;
  header->big_endian_checksum = 0;
  header->checksum[0] = header->checksum[1] = 0;
  wal_checksum(header, 40, header->checksum);
}

bool walindex_sealed(const struct walindex_header *header)
{
  uint32_t sum[2] = {0, 0};
  if (header->version != WALINDEX_VERSION || header->is_init != 1) return false;
  wal_checksum(header, 40, sum);
  return sum[0] == header->checksum[0] && sum[1] == header->checksum[1];
}

void walindex_publish(struct walindex *index,
                      const struct walindex_header *header)
{
  struct walindex_header *live = walindex_header(index);
  /* What it is about is there first, whoever is killed. */
  __sync_synchronize();
  /* Readers read the first copy, then the second: written the other way
     round, two equal copies are one whole header. */
  memcpy(&live[1], header, sizeof(*header));
  __sync_synchronize();
  memcpy(&live[0], header, sizeof(*header));
  __sync_synchronize();
}

int walindex_append(struct walindex *index, uint32_t frame, uint32_t pgno)
{
  unsigned i = walindex_region_of(frame);
  if (walindex_reserve(index, i) != 0) return -1;
  uint32_t *pages = region_pages(index, i);
  uint16_t *slots = region_slots(index, i);
  uint32_t position = frame - region_zero(i);
  if (position == 1)
    memset(pages, 0,
           (size_t)((uint8_t *)(slots + WALINDEX_SLOTS) - (uint8_t *)pages));
  uint32_t key = (pgno * 383u) & (WALINDEX_SLOTS - 1);
  uint32_t left = WALINDEX_SLOTS;
  while (slots[key] != 0) {
    if (left-- == 0) return -1;
    key = (key + 1) & (WALINDEX_SLOTS - 1);
  }
  pages[position - 1] = pgno;
  __atomic_store_n(&slots[key], (uint16_t)position, __ATOMIC_RELEASE);
  return 0;
}

void walindex_rewind(struct walindex *index, uint32_t mx_frame)
{
  /* Regions after the one of mx_frame are cleared when their first frame is
     appended. */
  unsigned i = mx_frame == 0 ? 0 : walindex_region_of(mx_frame);
  if (i >= index->n_regions) return;
  uint32_t *pages = region_pages(index, i);
  uint16_t *slots = region_slots(index, i);
  uint32_t limit = mx_frame - region_zero(i);
  for (uint32_t k = 0; k < WALINDEX_SLOTS; k++)
    if (slots[k] > limit) slots[k] = 0;
  memset(pages + limit, 0,
         (size_t)((uint8_t *)slots - (uint8_t *)(pages + limit)));
}

uint32_t walindex_pgno(const struct walindex *index, uint32_t frame)
{
  unsigned i = walindex_region_of(frame);
  assert(frame > 0 && i < index->n_regions);
  return region_pages(index, i)[frame - region_zero(i) - 1];
}

uint16_t walindex_encode_page_size(uint32_t size)
{
  return (uint16_t)((size & 0xff00) | (size >> 16));
}

uint32_t walindex_decode_page_size(uint16_t size)
{
  return (size & 0xfe00u) + ((size & 0x0001u) << 16);
}

void wal_checksum(const void *data, size_t n, uint32_t sum[2])
{
  const uint8_t *p = data;
  const uint8_t *end = p + n;
  uint32_t a = sum[0], b = sum[1], x[2];
  assert(n % 8 == 0);
  for (; p < end; p += 8) {
    memcpy(x, p, 8);
    a += x[0] + b;
    b += x[1] + a;
  }
  sum[0] = a;
  sum[1] = b;
}

void wal_encode_frame(uint8_t out[WAL_FRAME_HEADER], uint32_t pgno,
                      uint32_t n_page, const uint32_t salt[2], const void *page,
                      uint32_t page_size, uint32_t chain[2])
{
  put_be32(out, pgno);
  put_be32(out + 4, n_page);
  memcpy(out + 8, salt, 8);
  wal_checksum(out, 8, chain);
  wal_checksum(page, page_size, chain);
  put_be32(out + 16, chain[0]);
  put_be32(out + 20, chain[1]);
}

void wal_encode_header(uint8_t out[WAL_HEADER], uint32_t page_size,
                       uint32_t sequence, const uint32_t salt[2],
                       uint32_t chain[2])
{
  put_be32(out, WAL_MAGIC);
  put_be32(out + 4, WALINDEX_VERSION);
  put_be32(out + 8, page_size);
  put_be32(out + 12, sequence);
  memcpy(out + 16, salt, 8);
  chain[0] = chain[1] = 0;
  wal_checksum(out, 24, chain);
  put_be32(out + 24, chain[0]);
  put_be32(out + 28, chain[1]);
}
