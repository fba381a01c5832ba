/*
** walindex.h: the wal-index of SQLite's WAL format, as plain memory.
**
** Layout and algorithms follow "WAL-mode File Format" (sqlite.org/walformat)
** and the comments of SQLite's wal.c. The same code keeps the private index of
** a connection and the real -shm file that stock readers use. Little-endian
** hosts only, as SQLite's files made there are.
*/
#ifndef EXT_WALINDEX_H
#define EXT_WALINDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WALINDEX_REGION 32768u /* bytes of one region */
#define WALINDEX_FIRST 4062u   /* frames indexed by the first region */
#define WALINDEX_FRAMES 4096u  /* frames indexed by each later one */
#define WALINDEX_SLOTS 8192u   /* hash slots of a region */
#define WALINDEX_VERSION 3007000u
#define WALINDEX_NOT_USED 0xffffffffu /* a read mark that is free */

#define WAL_HEADER 32u        /* bytes of the header of a -wal file */
#define WAL_FRAME_HEADER 24u  /* bytes of the header of a frame */
#define WAL_MAGIC 0x377f0682u /* little-endian checksums */

struct walindex_header {
  uint32_t version;
  uint32_t unused;
  uint32_t change; /* counts transactions */
  uint8_t is_init;
  uint8_t big_endian_checksum;
  uint16_t page_size; /* 1 means 65536 */
  uint32_t mx_frame;  /* last valid frame */
  uint32_t n_page;    /* size of the database in pages */
  uint32_t frame_checksum[2];
  uint32_t salt[2]; /* bytes as in the -wal file */
  uint32_t checksum[2];
};
_Static_assert(sizeof(struct walindex_header) == 48, "wal-index header");

struct walindex_info {
  uint32_t backfill;
  uint32_t read_mark[5];
  uint8_t lock[8];
  uint32_t backfill_attempted;
  uint32_t unused;
};
_Static_assert(sizeof(struct walindex_info) == 40, "checkpoint information");

/* Regions are never moved once they exist. grow() makes the next one, zeroed,
   and returns NULL when it cannot. */
struct walindex {
  uint8_t **region;
  unsigned n_regions;
  uint8_t *(*grow)(void *ctx, unsigned i);
  void *ctx;
};

/* Makes region i and all before it exist. 0 or -1 (memory or disk full). */
int walindex_reserve(struct walindex *index, unsigned i);
/* The region that holds a frame (first frame is 1). */
unsigned walindex_region_of(uint32_t frame);

struct walindex_header *walindex_header(struct walindex *index);
struct walindex_info *walindex_info(struct walindex *index);

/* Seals a header: version, is_init, checksum. */
void walindex_seal(struct walindex_header *header);
bool walindex_sealed(const struct walindex_header *header);
/* Writes both copies so that a concurrent reader never takes a torn one. */
void walindex_publish(struct walindex *index,
                      const struct walindex_header *header);
/* Appends frame -> pgno, the next frame in order. 0, or -1. */
int walindex_append(struct walindex *index, uint32_t frame, uint32_t pgno);
/* Forgets all frames above mx_frame. */
void walindex_rewind(struct walindex *index, uint32_t mx_frame);
/* Page number of an indexed frame. */
uint32_t walindex_pgno(const struct walindex *index, uint32_t frame);

uint16_t walindex_encode_page_size(uint32_t size);
uint32_t walindex_decode_page_size(uint16_t size);

/* The checksum of the format, over n bytes (a multiple of 8), continued from
   and left in sum. */
void wal_checksum(const void *data, size_t n, uint32_t sum[2]);

/* Fills the 24 bytes of a frame header and moves the chain on. */
void wal_encode_frame(uint8_t out[WAL_FRAME_HEADER], uint32_t pgno,
                      uint32_t n_page, const uint32_t salt[2], const void *page,
                      uint32_t page_size, uint32_t chain[2]);
/* Fills the 32 bytes of a file header and starts the chain. */
void wal_encode_header(uint8_t out[WAL_HEADER], uint32_t page_size,
                       uint32_t sequence, const uint32_t salt[2],
                       uint32_t chain[2]);

static inline uint32_t get_be32(const uint8_t *p)
{
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
         p[3];
}

static inline void put_be32(uint8_t *p, uint32_t v)
{
  p[0] = (uint8_t)(v >> 24);
  p[1] = (uint8_t)(v >> 16);
  p[2] = (uint8_t)(v >> 8);
  p[3] = (uint8_t)v;
}

#endif
