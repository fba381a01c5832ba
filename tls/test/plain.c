/*
** plain.c: streams without encryption, for a benchmark that asks what TLS
** costs. `make PLAIN=1` has it in the place of context.c and stream.c; nothing
** else is ever linked with it.
**
** It believes whatever the peer says. Each side begins with
**
**     "QPLAIN1\n"  cluster u64  node u64, 0: a joiner  end of certificate i64
**
** in the machine's own byte order. Then come records: a u32 length and so many
** bytes; length 0 is the orderly close.
*/
#include "buffer.h"
#include "tls.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "QPLAIN1\n"

struct tls_plain_hello {
  char magic[8];
  uint64_t cluster, node;
  int64_t expires;
};

struct tls_context {
  atomic_uint refs;
  struct tls_plain_hello hello;
};

struct tls_stream {
  struct tls_context *context;
  struct tls_buffer in, out;
  struct tls_plain_hello peer;
  uint32_t left; /* bytes of the record that is being read */
  enum tls_cause cause;
  const char *reason;
  bool server, ready, dead, ended, closed;
};

/* ---- contexts ---------------------------------------------------------- */

static int tls_plain_context(int rc, const struct tls_plain_hello *hello,
                             struct tls_context **out, struct tls_error *error)
{
  *out = rc == 0 ? calloc(1, sizeof **out) : NULL;
  if (rc != 0) return rc;
  if (*out == NULL) snprintf(error->text, sizeof error->text, "no memory");
  if (*out == NULL) return -1;
  atomic_init(&(*out)->refs, 1);
  (*out)->hello = *hello;
  memcpy((*out)->hello.magic, MAGIC, sizeof hello->magic);
  return 0;
}

int tls_context_new_joiner(uint64_t cluster, const uint8_t fingerprint[32],
                           struct tls_context **out, struct tls_error *error)
{
  struct tls_plain_hello h = {.cluster = cluster};

  (void)fingerprint;
  return tls_plain_context(0, &h, out, error);
}

int tls_context_new(const char *ca, const char *cert, const char *key,
                    struct tls_context **out, struct tls_error *error)
{
  struct tls_plain_hello h;
  int rc = tls_identity(cert, &h.cluster, &h.node, &h.expires, error);

  (void)ca, (void)key;
  return tls_plain_context(rc, &h, out, error);
}

int tls_context_new_named(const char *ca, const char *cert, const char *key,
                          const char *pattern, uint64_t cluster,
                          struct tls_context **out, struct tls_error *error)
{
  struct tls_plain_hello h = {.cluster = cluster};
  char name[256];
  int rc = tls_identity_named(cert, pattern, cluster, &h.node, name,
                              sizeof name, &h.expires, error);

  (void)ca, (void)key;
  return tls_plain_context(rc, &h, out, error);
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
  atomic_fetch_add(&context->refs, 1);
  return context;
}

void tls_context_unref(struct tls_context *context)
{
  if (context != NULL && atomic_fetch_sub(&context->refs, 1) == 1)
    free(context);
}

/* ---- streams ----------------------------------------------------------- */

static int die(struct tls_stream *stream, enum tls_cause cause,
               const char *reason)
{
  stream->dead = true;
  stream->cause = cause;
  stream->reason = reason;
  return -1;
}

static int say_hello(struct tls_stream *stream)
{
  return tls_buffer_add(&stream->out, &stream->context->hello,
                        sizeof stream->context->hello);
}

struct tls_stream *tls_stream_new(struct tls_context *context, bool server)
{
  struct tls_stream *stream = calloc(1, sizeof *stream);

  if (stream == NULL) return NULL;
  stream->context = tls_context_ref(context);
  stream->server = server;
  stream->reason = "";
  if (server || say_hello(stream) == 0) return stream;
  tls_stream_free(stream);
  return NULL;
}

void tls_stream_free(struct tls_stream *stream)
{
  if (stream == NULL) return;
  tls_context_unref(stream->context);
  tls_buffer_free(&stream->in);
  tls_buffer_free(&stream->out);
  free(stream);
}

static int shake_hands(struct tls_stream *stream)
{
  struct tls_plain_hello *peer = &stream->peer;

  if (tls_buffer_len(&stream->in) < sizeof *peer) return 0;
  memcpy(peer, stream->in.data + stream->in.start, sizeof *peer);
  tls_buffer_drop(&stream->in, sizeof *peer);
  if (memcmp(peer->magic, MAGIC, sizeof peer->magic) != 0)
    return die(stream, TLS_CAUSE_PROTOCOL, "peer does not speak in plain");
  if (peer->cluster != stream->context->hello.cluster)
    return die(stream, TLS_CAUSE_NAME, "wrong cluster");
  if (!stream->server && peer->node == 0)
    return die(stream, TLS_CAUSE_PROTOCOL, "server showed no certificate");
  if (stream->server && say_hello(stream) != 0)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  stream->ready = true;
  return 0;
}

int tls_stream_feed(struct tls_stream *stream, const void *data, size_t n)
{
  if (stream->dead) return -1;
  if (stream->ended) return 0;
  if (tls_buffer_add(&stream->in, data, n) != 0)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  return stream->ready ? 0 : shake_hands(stream);
}

ssize_t tls_stream_read(struct tls_stream *stream, void *buf, size_t n)
{
  struct tls_buffer *in = &stream->in;
  uint8_t *at = buf;
  size_t got = 0;

  if (stream->dead) return -1;
  if (!stream->ready || n == 0) return 0;
  while (got < n && !stream->ended && tls_buffer_len(in) > 0) {
    bool header = stream->left == 0;
    size_t want = header ? sizeof stream->left : stream->left;
    size_t k = tls_buffer_len(in);

    if (header && k < want) break;
    if (k > want) k = want;
    if (!header && k > n - got) k = n - got;
    memcpy(header ? &stream->left : (void *)(at + got), in->data + in->start,
           k);
    tls_buffer_drop(in, k);
    if (header)
      stream->ended = stream->left == 0;
    else
      stream->left -= (uint32_t)k, got += k;
  }
  if (got > 0) return (ssize_t)got;
  return stream->ended ? -2 : 0;
}

int tls_stream_write(struct tls_stream *stream, const struct iovec *iov, int n)
{
  size_t total = 0;
  uint32_t length;

  if (stream->dead) return -1;
  if (!stream->ready || stream->closed)
    return die(stream, TLS_CAUSE_OTHER, "write too early or too late");
  for (int i = 0; i < n; i++)
    total += iov[i].iov_len;
  length = (uint32_t)total;
  if (length == 0) return 0;
  if (tls_buffer_reserve(&stream->out, sizeof length + total) != 0)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  tls_buffer_add(&stream->out, &length, sizeof length);
  for (int i = 0; i < n; i++)
    tls_buffer_add(&stream->out, iov[i].iov_base, iov[i].iov_len);
  return 0;
}

void tls_stream_close(struct tls_stream *stream)
{
  const uint32_t end = 0;

  if (!stream->closed && tls_stream_ready(stream))
    (void)tls_buffer_add(&stream->out, &end, sizeof end);
  stream->closed = true;
}

size_t tls_stream_output(struct tls_stream *stream, const uint8_t **data)
{
  size_t len = tls_buffer_len(&stream->out);

  *data = len == 0 ? NULL : stream->out.data + stream->out.start;
  return len;
}

void tls_stream_sent(struct tls_stream *stream, size_t n)
{
  size_t len = tls_buffer_len(&stream->out);

  tls_buffer_drop(&stream->out, n < len ? n : len);
}

bool tls_stream_ready(const struct tls_stream *stream)
{
  return stream->ready && !stream->dead;
}

uint64_t tls_stream_peer(const struct tls_stream *stream)
{
  return stream->ready ? stream->peer.node : 0;
}

int64_t tls_stream_peer_expires(const struct tls_stream *stream)
{
  return stream->ready ? stream->peer.expires : 0;
}

const char *tls_stream_error(const struct tls_stream *stream)
{
  return stream->reason;
}

enum tls_cause tls_stream_cause(const struct tls_stream *stream)
{
  return stream->cause;
}
