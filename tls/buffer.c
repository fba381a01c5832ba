/*
** buffer.c: bytes that come in at one end and go out at the other.
**
** Bytes are only moved when at least as many have gone out before them, so
** that each is moved less than twice, and the memory is given back whenever
** the buffer runs empty, so that an idle stream has none.
*/
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define BUFFER_MIN 2048

size_t tls_buffer_len(const struct tls_buffer *b)
{
  return b->end - b->start;
}

void tls_buffer_free(struct tls_buffer *b)
{
  free(b->data);
  *b = (struct tls_buffer){0};
}

int tls_buffer_reserve(struct tls_buffer *b, size_t n)
{
  size_t len = tls_buffer_len(b), size;
  uint8_t *data;

  if (b->size - b->end >= n) return 0;
  if (b->start >= len && b->size - len >= n) {
    memcpy(b->data, b->data + b->start, len);
    b->start = 0;
    b->end = len;
    return 0;
  }
  if (n > SIZE_MAX / 4 - len) return -1;
  size = len + (n > len ? n : len);
  if (size < BUFFER_MIN) size = BUFFER_MIN;
  data = malloc(size);
  if (data == NULL) return -1;
  if (len > 0) memcpy(data, b->data + b->start, len);
  free(b->data);
  *b = (struct tls_buffer){.data = data, .end = len, .size = size};
  return 0;
}

int tls_buffer_add(struct tls_buffer *b, const void *data, size_t n)
{
  if (n == 0) return 0;
  if (tls_buffer_reserve(b, n) != 0) return -1;
  memcpy(b->data + b->end, data, n);
  b->end += n;
  return 0;
}

void tls_buffer_drop(struct tls_buffer *b, size_t n)
{
  b->start += n;
  if (b->start == b->end) tls_buffer_free(b);
}
