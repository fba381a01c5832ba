/*
** frame.c: frames, as they stand in the encrypted stream.
**
**     0  u32  length of the body
**     4  u8   type, enum net_frame_type
**     5  u8   version, 1
**     6  u16  flags, 0
**     8       the body
**
** All integers are little-endian. The reader takes bytes as they come, in
** pieces of any size. A frame that lies whole in the piece is handed on where
** it is; one that spans pieces gets memory of its own, but only after its
** header was held against the bound of its type and against the types that the
** connection may bring in its present state (N3).
*/
#include "internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

/* Largest memory kept for the next frame. */
#define SPARE_MAX (2u * 1024u * 1024u)
/* A rest of a body smaller than this is better read with what follows it. */
#define DIRECT_MIN 2048u

/* ---- integers ------------------------------------------------------------ */

uint32_t net_get32(const uint8_t *p)
{
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
         (uint32_t)p[3] << 24;
}

uint64_t net_get64(const uint8_t *p)
{
  return (uint64_t)net_get32(p) | (uint64_t)net_get32(p + 4) << 32;
}

void net_put32(uint8_t *p, uint32_t v)
{
  p[0] = (uint8_t)v;
  p[1] = (uint8_t)(v >> 8);
  p[2] = (uint8_t)(v >> 16);
  p[3] = (uint8_t)(v >> 24);
}

void net_put64(uint8_t *p, uint64_t v)
{
  net_put32(p, (uint32_t)v);
  net_put32(p + 4, (uint32_t)(v >> 32));
}

/* ---- types --------------------------------------------------------------- */

static const struct {
  const char *name;
  uint32_t bound;
} types[NET_FRAME_TYPES] = {
    [NET_FRAME_RAFT] = {"a raft", NET_MESSAGE_MAX},
    [NET_FRAME_CALL] = {"a call", NET_CALL_HEAD + NET_REQUEST_MAX},
    [NET_FRAME_ANSWER] = {"an answer", NET_ANSWER_HEAD + NET_ANSWER_MAX},
    [NET_FRAME_JOIN] = {"a join", NET_REQUEST_MAX},
    [NET_FRAME_FETCH] = {"a fetch", NET_CALL_HEAD + NET_REQUEST_MAX},
    [NET_FRAME_POST] = {"a post", NET_POST_MAX},
    [NET_FRAME_HELLO] = {"a hello", 256},
    [NET_FRAME_GOODBYE] = {"a goodbye", NET_TEXT},
};

uint32_t net_frame_bound(unsigned type)
{
  assert(type < NET_FRAME_TYPES && types[type].name);
  return types[type].bound;
}

void net_frame_header(uint8_t out[NET_FRAME_HEADER], uint8_t type, uint32_t len)
{
  assert(len <= net_frame_bound(type));
  net_put32(out, len);
  out[4] = type;
  out[5] = NET_FRAME_VERSION;
  out[6] = 0;
  out[7] = 0;
}

/* ---- reader -------------------------------------------------------------- */

void net_reader_init(struct net_reader *reader, struct net_spare *spare)
{
  memset(reader, 0, sizeof *reader);
  reader->spare = spare;
}

/* Gives the body's memory back; the larger of it and the spare is kept. */
static void give_back(struct net_reader *reader)
{
  struct net_spare *spare = reader->spare;

  if (!reader->body) return;
  if (reader->size <= SPARE_MAX && reader->size > spare->size) {
    free(spare->memory);
    spare->memory = reader->body;
    spare->size = reader->size;
  } else {
    free(reader->body);
  }
  reader->body = NULL;
  reader->size = 0;
}

static bool obtain(struct net_reader *reader)
{
  struct net_spare *spare = reader->spare;

  assert(!reader->body && reader->len > 0);
  if (spare->size >= reader->len) {
    reader->body = spare->memory;
    reader->size = spare->size;
    spare->memory = NULL;
    spare->size = 0;
  } else {
    reader->body = malloc(reader->len);
    reader->size = reader->len;
  }
  return reader->body != NULL;
}

void net_reader_end(struct net_reader *reader)
{
  free(reader->body);
  reader->body = NULL;
  reader->size = 0;
  reader->n_header = 0;
}

bool net_reader_partial(const struct net_reader *reader)
{
  return reader->n_header > 0;
}

static int refuse(struct net_reader *reader, enum net_refusal refusal,
                  const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(struct net_reader *reader, enum net_refusal refusal,
                  const char *format, ...)
{
  va_list args;

  reader->refusal = refusal;
  va_start(args, format);
  vsnprintf(reader->error, sizeof reader->error, format, args);
  va_end(args);
  return -1;
}

static int check_header(struct net_reader *reader)
{
  const uint8_t *h = reader->header;
  unsigned type = h[4];
  uint32_t len = net_get32(h);

  if (type == 0 || type >= NET_FRAME_TYPES)
    return refuse(reader, NET_REFUSED_FRAME, "unknown frame type %u", type);
  if (h[5] != NET_FRAME_VERSION)
    return refuse(reader, NET_REFUSED_VERSION, "unknown frame version %u",
                  h[5]);
  if (h[6] || h[7])
    return refuse(reader, NET_REFUSED_VERSION, "unknown frame flags");
  if (!(reader->allowed & NET_ALLOW(type)))
    return refuse(reader, NET_REFUSED_FRAME, "%s frame is not allowed here",
                  types[type].name);
  if (len > types[type].bound)
    return refuse(reader, NET_REFUSED_OVERSIZE,
                  "%s frame of %u bytes, at most %u are allowed",
                  types[type].name, len, types[type].bound);
  reader->type = (uint8_t)type;
  reader->len = len;
  reader->have = 0;
  return 0;
}

/* The frame is complete: the next byte belongs to another one. */
static int complete(struct net_reader *reader, const uint8_t *body,
                    struct net_frame *frame)
{
  frame->type = reader->type;
  frame->len = reader->len;
  frame->body = body;
  reader->n_header = 0;
  return 1;
}

int net_reader_take(struct net_reader *reader, const uint8_t *data, size_t n,
                    size_t *used, struct net_frame *frame)
{
  size_t part;

  *used = 0;
  if (reader->n_header == 0) give_back(reader);
  if (reader->n_header < NET_FRAME_HEADER) {
    part = MIN(n, NET_FRAME_HEADER - reader->n_header);
    if (part) memcpy(reader->header + reader->n_header, data, part);
    reader->n_header += (unsigned)part;
    *used = part;
    if (reader->n_header < NET_FRAME_HEADER) return 0;
    if (check_header(reader)) return -1;
    if (n - part >= reader->len) {
      *used += reader->len;
      return complete(reader, data + part, frame);
    }
  }
  if (!reader->body && !obtain(reader))
    return refuse(reader, NET_REFUSED_OTHER, "out of memory");
  part = MIN(n - *used, (size_t)(reader->len - reader->have));
  if (part) memcpy(reader->body + reader->have, data + *used, part);
  *used += part;
  return net_reader_filled(reader, part, frame);
}

uint8_t *net_reader_space(struct net_reader *reader, size_t *room)
{
  *room = 0;
  if (reader->n_header < NET_FRAME_HEADER || !reader->body) return NULL;
  *room = reader->len - reader->have;
  return *room >= DIRECT_MIN ? reader->body + reader->have : NULL;
}

int net_reader_filled(struct net_reader *reader, size_t n,
                      struct net_frame *frame)
{
  assert(reader->body && n <= reader->len - reader->have);
  reader->have += (uint32_t)n;
  if (reader->have < reader->len) return 0;
  return complete(reader, reader->body, frame);
}
