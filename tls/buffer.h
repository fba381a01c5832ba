/*
** buffer.h: the buffers of a stream, see buffer.c. Only for tls/ itself.
*/
#ifndef TLS_BUFFER_H
#define TLS_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct tls_buffer { /* all zero: empty */
  uint8_t *data;
  size_t start, end; /* the bytes in it */
  size_t size;
};

size_t tls_buffer_len(const struct tls_buffer *b);
void tls_buffer_free(struct tls_buffer *b); /* it is empty then */
/* Makes room for n bytes at the end. -1: no memory. */
int tls_buffer_reserve(struct tls_buffer *b, size_t n);
int tls_buffer_add(struct tls_buffer *b, const void *data, size_t n);
/* Takes the first n bytes out; there are so many. */
void tls_buffer_drop(struct tls_buffer *b, size_t n);

#endif
