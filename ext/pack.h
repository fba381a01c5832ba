/*
** pack.h: little-endian fields in bounded buffers.
**
** Everything that ext/ writes for itself or for peers (settings, transaction
** heads, requests) is packed and parsed with these two cursors. A parser that
** runs out of bytes, or finds a string without its end, turns `bad` and gives
** zeros from then on, so that callers check once, at the end.
*/
#ifndef EXT_PACK_H
#define EXT_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct parser {
  const uint8_t *at, *end;
  bool bad;
};

static inline struct parser parser_of(const void *data, size_t len)
{
  struct parser p = {data, (const uint8_t *)data + len, false};
  return p;
}

static inline const uint8_t *parse_bytes(struct parser *p, size_t n)
{
  const uint8_t *at = p->at;
  if (p->bad || (size_t)(p->end - p->at) < n) {
    p->bad = true;
    return NULL;
  }
  p->at += n;
  return at;
}

static inline uint64_t parse_u64(struct parser *p)
{
  uint64_t v = 0;
  const uint8_t *at = parse_bytes(p, 8);
  if (at) memcpy(&v, at, 8);
  return v;
}

static inline uint32_t parse_u32(struct parser *p)
{
  uint32_t v = 0;
  const uint8_t *at = parse_bytes(p, 4);
  if (at) memcpy(&v, at, 4);
  return v;
}

static inline uint8_t parse_u8(struct parser *p)
{
  const uint8_t *at = parse_bytes(p, 1);
  return at ? *at : 0;
}

/* Bytes with their length before them; NULL and 0 when bad. */
static inline const uint8_t *parse_blob(struct parser *p, size_t *len)
{
  uint32_t n = parse_u32(p);
  const uint8_t *at = parse_bytes(p, n);
  *len = at ? n : 0;
  return at;
}

/* A packed text; never NULL, and its closing zero is inside the buffer. */
static inline const char *parse_text(struct parser *p)
{
  size_t n;
  const uint8_t *at = parse_blob(p, &n);
  if (at == NULL || n == 0 || memchr(at, 0, n) != at + n - 1) {
    p->bad = true;
    return "";
  }
  return (const char *)at;
}

/* True when everything was there and nothing is left over. */
static inline bool parser_done(const struct parser *p)
{
  return !p->bad && p->at == p->end;
}

/* A growing buffer; `bad` when memory ran out. Free data with free(). */
struct packer {
  uint8_t *data;
  size_t len, cap;
  bool bad;
};

static inline void pack_bytes(struct packer *p, const void *data, size_t n)
{
  if (p->bad) return;
  if (p->cap - p->len < n) {
    size_t cap = p->cap ? p->cap : 256;
    while (cap - p->len < n)
      cap *= 2;
    uint8_t *grown = realloc(p->data, cap);
    if (grown == NULL) {
      p->bad = true;
      return;
    }
    p->data = grown;
    p->cap = cap;
  }
  if (n) memcpy(p->data + p->len, data, n);
  p->len += n;
}

static inline void pack_u64(struct packer *p, uint64_t v)
{
  pack_bytes(p, &v, 8);
}

static inline void pack_u32(struct packer *p, uint32_t v)
{
  pack_bytes(p, &v, 4);
}

static inline void pack_u8(struct packer *p, uint8_t v)
{
  pack_bytes(p, &v, 1);
}

static inline void pack_blob(struct packer *p, const void *data, size_t n)
{
  pack_u32(p, (uint32_t)n);
  pack_bytes(p, data, n);
}

static inline void pack_text(struct packer *p, const char *text)
{
  pack_blob(p, text, strlen(text) + 1);
}

#endif
