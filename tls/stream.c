/*
** stream.c: one encrypted byte stream, without I/O of its own.
**
**      tls_stream_feed                              tls_stream_write
**            |                                             |
**            v                                             v
**     buffer `in` --> SSL_do_handshake, SSL_read    SSL_write --> buffer `out`
**                             |                                        |
**                             v                                        v
**                      tls_stream_read               tls_stream_output, _sent
**
** OpenSSL reaches the two buffers through a BIO of ours. Its own memory BIO
** moves all that is left at each partial read, which is quadratic for large
** buffers; ours (buffer.c) does not.
**
** The BIO never blocks and never ends: a read from an empty buffer asks to be
** retried, a write fails only for want of memory. SSL_write therefore either
** writes everything or kills the stream.
**
** A server has nothing of OpenSSL's (70 KB) before the first record is there as
** a whole: whoever connects and is silent, or sends half of a hello, costs the
** bytes that he sent and little more.
**
** States. A stream is born shaking hands; it becomes `ready` once, and `dead`
** once, from anywhere and for good. `ended` (the peer sent close_notify) and
** `closed` (we did) are of the two directions, and independent.
*/
#include "buffer.h"
#include "internal.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_MAX ((size_t)SSL3_RT_MAX_PLAIN_LENGTH) /* 16 KiB */
/* Header, content type and tag of a TLS 1.3 record (RFC 8446, section 5.2). */
#define RECORD_OVERHEAD 22
/* A handshake takes about 3 KB each way, with TLS_CHAIN_MAX 20.
   A peer that needs more is playing for time. */
#define HANDSHAKE_MAX ((size_t)64 * 1024)
/* The first record, with a hello that is some hundred bytes long. */
#define HELLO_MAX ((size_t)4 * 1024)
#define HEADER_LEN ((size_t)SSL3_RT_HEADER_LENGTH)

struct tls_stream {
  SSL *ssl; /* NULL: a server that waits for the first record */
  struct tls_context *context;
  struct tls_buffer in, out;
  struct tls_peer peer; /* its reason is the stream's error as well */
  uint64_t written;     /* bytes since the key was last replaced */
  size_t shaken;        /* bytes that the handshake has consumed */
  unsigned looked;      /* of the first bytes, see looks_like_tls() */
  bool server, ready, dead, ended, closed;
};

/* ---- the BIO ----------------------------------------------------------- */

static int bio_read(BIO *bio, char *data, size_t n, size_t *got)
{
  struct tls_stream *stream = BIO_get_data(bio);
  size_t len = tls_buffer_len(&stream->in);

  BIO_clear_retry_flags(bio);
  *got = 0;
  if (len == 0) {
    BIO_set_retry_read(bio);
    return 0;
  }
  if (n > len) n = len;
  memcpy(data, stream->in.data + stream->in.start, n);
  tls_buffer_drop(&stream->in, n);
  if (!stream->ready) stream->shaken += n;
  *got = n;
  return 1;
}

static int bio_write(BIO *bio, const char *data, size_t n, size_t *put)
{
  struct tls_stream *stream = BIO_get_data(bio);

  BIO_clear_retry_flags(bio);
  *put = 0;
  if (tls_buffer_add(&stream->out, data, n) != 0) return 0;
  *put = n;
  return 1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
  (void)bio, (void)number, (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method;

static void make_method(void)
{
  int index = BIO_get_new_index();
  BIO_METHOD *m;

  if (index < 0) return;
  m = BIO_meth_new(index | BIO_TYPE_SOURCE_SINK, "quorate");
  if (m == NULL) return;
  if (!BIO_meth_set_read_ex(m, bio_read) ||
      !BIO_meth_set_write_ex(m, bio_write) || !BIO_meth_set_ctrl(m, bio_ctrl)) {
    BIO_meth_free(m);
    return;
  }
  method = m;
}

static BIO *new_bio(OSSL_LIB_CTX *lib, struct tls_stream *stream)
{
  BIO *bio;

  (void)pthread_once(&once, make_method);
  if (method == NULL) return NULL;
  bio = BIO_new_ex(lib, method);
  if (bio == NULL) return NULL;
  BIO_set_data(bio, stream);
  BIO_set_init(bio, 1);
  return bio;
}

/* ---- errors ------------------------------------------------------------ */

/* Ends the stream. The reason given first stays: what a callback of context.c
   said is more precise than what OpenSSL makes of it. */
static int die(struct tls_stream *stream, enum tls_cause cause,
               const char *reason)
{
  stream->dead = true;
  return tls_refuse(&stream->peer, cause, "%s", reason);
}

/* The same after a call of OpenSSL failed, from its error queue. */
static int die_of_openssl(struct tls_stream *stream)
{
  unsigned long code = ERR_peek_error();
  int number = ERR_GET_REASON(code);
  const char *text = code == 0 ? NULL : ERR_reason_error_string(code);

  if (text == NULL || number == ERR_R_MALLOC_FAILURE)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  stream->dead = true;
  if (ERR_GET_LIB(code) == ERR_LIB_SSL) {
    if (number > SSL_AD_REASON_OFFSET)
      return tls_refuse(
          &stream->peer, TLS_CAUSE_PROTOCOL, "peer sent alert: %s",
          SSL_alert_desc_string_long(number - SSL_AD_REASON_OFFSET));
    if (number == SSL_R_UNSUPPORTED_PROTOCOL)
      return die(stream, TLS_CAUSE_PROTOCOL, "peer speaks no TLS 1.3");
  }
  return tls_refuse(&stream->peer, TLS_CAUSE_PROTOCOL, "%s%s",
                    stream->ready ? "" : "handshake failed: ", text);
}

const char *tls_stream_error(const struct tls_stream *stream)
{
  return stream->peer.reason.text;
}

enum tls_cause tls_stream_cause(const struct tls_stream *stream)
{
  return stream->peer.cause;
}

/* ---- life -------------------------------------------------------------- */

/* What must hold of every connection, whatever the callbacks did. */
static int check_handshake(struct tls_stream *stream)
{
  if (SSL_version(stream->ssl) != TLS1_3_VERSION)
    return die(stream, TLS_CAUSE_PROTOCOL, "peer speaks no TLS 1.3");
  if (!tls_speaks_quorate(stream->ssl))
    return die(stream, TLS_CAUSE_PROTOCOL, "peer speaks no quorate/1");
  if (!stream->server && stream->peer.node == 0)
    return die(stream, TLS_CAUSE_PROTOCOL, "server showed no certificate");
  return 0;
}

static int shake_hands(struct tls_stream *stream)
{
  int rc = SSL_do_handshake(stream->ssl);

  if (rc == 1) {
    if (check_handshake(stream) != 0) return -1;
    stream->ready = true;
    return 0;
  }
  switch (SSL_get_error(stream->ssl, rc)) {
  case SSL_ERROR_WANT_READ:
    if (stream->shaken <= HANDSHAKE_MAX) return 0;
    return die(stream, TLS_CAUSE_PROTOCOL, "handshake too long");
  case SSL_ERROR_ZERO_RETURN:
    return die(stream, TLS_CAUSE_PROTOCOL, "peer closed too early");
  default: return die_of_openssl(stream);
  }
}

/* Brings OpenSSL in. -1: no memory. */
static int start(struct tls_stream *stream)
{
  BIO *bio = NULL;

  stream->ssl = SSL_new(stream->context->ssl);
  if (stream->ssl != NULL) bio = new_bio(stream->context->lib, stream);
  if (bio == NULL || !SSL_set_app_data(stream->ssl, &stream->peer)) {
    BIO_free(bio);
    SSL_free(stream->ssl);
    stream->ssl = NULL;
    return -1;
  }
  SSL_set_bio(stream->ssl, bio, bio);
  if (stream->server)
    SSL_set_accept_state(stream->ssl);
  else
    SSL_set_connect_state(stream->ssl);
  return 0;
}

struct tls_stream *tls_stream_new(struct tls_context *context, bool server)
{
  struct tls_stream *stream = calloc(1, sizeof *stream);

  if (stream == NULL) return NULL;
  stream->context = tls_context_ref(context);
  stream->server = server;
  if (server) return stream; /* the rest comes with the client's hello */
  tls_enter(NULL);
  if (start(stream) == 0) {
    (void)shake_hands(stream);
  } else {
    tls_context_unref(context);
    free(stream);
    stream = NULL;
  }
  tls_leave(0);
  return stream;
}

void tls_stream_free(struct tls_stream *stream)
{
  if (stream == NULL) return;
  tls_enter(NULL);
  SSL_free(stream->ssl);
  tls_context_unref(stream->context);
  tls_buffer_free(&stream->in);
  tls_buffer_free(&stream->out);
  free(stream);
  tls_leave(0);
}

bool tls_stream_ready(const struct tls_stream *stream)
{
  return stream->ready && !stream->dead;
}

/* A certificate without the proof of its key, which comes after it, says
   nothing: before the handshake is done nobody is there. */
uint64_t tls_stream_peer(const struct tls_stream *stream)
{
  return stream->ready ? stream->peer.node : 0;
}

int64_t tls_stream_peer_expires(const struct tls_stream *stream)
{
  return stream->ready ? stream->peer.expires : 0;
}

/* ---- the first bytes ---------------------------------------------------- */

/* The first record is one of a handshake, or an alert, of version 3.x (RFC
   8446, section 5.1). OpenSSL would also take the hello of SSL 2, and has many
   words for what is no TLS at all. */
static bool looks_like_tls(struct tls_stream *stream, const uint8_t *data,
                           size_t n)
{
  for (; n > 0 && stream->looked < 3; data++, n--, stream->looked++) {
    bool good = false;

    switch (stream->looked) {
    case 0: good = *data == SSL3_RT_HANDSHAKE || *data == SSL3_RT_ALERT; break;
    case 1: good = *data == SSL3_VERSION_MAJOR; break;
    case 2: good = *data <= (TLS1_3_VERSION & 0xff); break;
    }
    if (!good) return false;
  }
  return true;
}

/* 1: the first record is there; 0: not yet; -1: it is none of a hello. */
static int first_record(struct tls_stream *stream)
{
  size_t n = tls_buffer_len(&stream->in), len;
  const uint8_t *at;

  if (n < HEADER_LEN) return 0;
  at = stream->in.data + stream->in.start;
  len = (size_t)at[3] << 8 | at[4];
  if (HEADER_LEN + len > HELLO_MAX)
    return die(stream, TLS_CAUSE_PROTOCOL, "handshake failed: hello too long");
  return n >= HEADER_LEN + len;
}

/* ---- data -------------------------------------------------------------- */

int tls_stream_feed(struct tls_stream *stream, const void *data, size_t n)
{
  int rc;

  if (stream->dead) return -1;
  if (stream->ended) return 0; /* RFC 8446, section 6.1: it is ignored */
  if (!looks_like_tls(stream, data, n))
    return die(stream, TLS_CAUSE_PROTOCOL, "peer does not speak TLS");
  if (tls_buffer_add(&stream->in, data, n) != 0)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  if (stream->ready) return 0;
  if (stream->ssl == NULL) {
    rc = first_record(stream);
    if (rc <= 0) return rc;
  }
  tls_enter(NULL);
  if (stream->ssl == NULL && start(stream) != 0)
    rc = die(stream, TLS_CAUSE_OTHER, "out of memory");
  else
    rc = shake_hands(stream);
  return tls_leave(rc);
}

ssize_t tls_stream_read(struct tls_stream *stream, void *buf, size_t n)
{
  uint8_t *at = buf;
  size_t got = 0, k;

  if (stream->dead) return -1;
  if (!stream->ready || n == 0) return 0;
  if (n > SSIZE_MAX) n = SSIZE_MAX;
  tls_enter(NULL);
  while (got < n && !stream->ended && !stream->dead) {
    int error;

    if (SSL_read_ex(stream->ssl, at + got, n - got, &k)) {
      got += k;
      continue;
    }
    error = SSL_get_error(stream->ssl, 0);
    if (error == SSL_ERROR_WANT_READ) break;
    if (error == SSL_ERROR_ZERO_RETURN)
      stream->ended = true;
    else
      die_of_openssl(stream);
  }
  tls_leave(0);
  if (got > 0) return (ssize_t)got;
  if (stream->dead) return -1;
  return stream->ended ? -2 : 0;
}

/* Encrypts n bytes, in records of 16 KiB and what is left. */
static int put(struct tls_stream *stream, const uint8_t *data, size_t n)
{
  size_t done;

  if (n == 0) return 0;
  if (stream->written >= stream->context->rekey_bytes) {
    stream->written = 0;
    if (!SSL_key_update(stream->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
      return die_of_openssl(stream);
  }
  stream->written += n;
  if (!SSL_write_ex(stream->ssl, data, n, &done)) return die_of_openssl(stream);
  return 0;
}

/* Full records go straight from where they are; what is smaller is collected
   in `record` first. */
static int put_all(struct tls_stream *stream, const struct iovec *iov, int n,
                   uint8_t *record)
{
  size_t used = 0;

  for (int i = 0; i < n; i++) {
    const uint8_t *data = iov[i].iov_base;
    size_t left = iov[i].iov_len;

    while (left > 0) {
      size_t k = left - left % RECORD_MAX;

      if (used == 0 && k > 0) {
        if (put(stream, data, k) != 0) return -1;
      } else {
        k = left < RECORD_MAX - used ? left : RECORD_MAX - used;
        memcpy(record + used, data, k);
        used += k;
      }
      if (used == RECORD_MAX) {
        if (put(stream, record, used) != 0) return -1;
        used = 0;
      }
      data += k;
      left -= k;
    }
  }
  return put(stream, record, used);
}

/* Reserves the room for all records at once. */
static int reserve_output(struct tls_stream *stream, const struct iovec *iov,
                          int n)
{
  size_t total = 0;

  for (int i = 0; i < n; i++) {
    if (iov[i].iov_len > SIZE_MAX / 8 - total) return -1;
    total += iov[i].iov_len;
  }
  return tls_buffer_reserve(&stream->out,
                            total + (total / RECORD_MAX + 2) * RECORD_OVERHEAD);
}

int tls_stream_write(struct tls_stream *stream, const struct iovec *iov, int n)
{
  uint8_t record[RECORD_MAX];
  int rc;

  if (stream->dead) return -1;
  if (!stream->ready)
    return die(stream, TLS_CAUSE_OTHER, "write before the handshake was done");
  if (stream->closed) return die(stream, TLS_CAUSE_OTHER, "write after close");
  if (reserve_output(stream, iov, n) != 0)
    return die(stream, TLS_CAUSE_OTHER, "out of memory");
  tls_enter(NULL);
  rc = put_all(stream, iov, n, record);
  return tls_leave(rc);
}

void tls_stream_close(struct tls_stream *stream)
{
  if (stream->dead || !stream->ready || stream->closed) return;
  stream->closed = true;
  tls_enter(NULL);
  (void)SSL_shutdown(stream->ssl);
  tls_leave(0);
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
