/*
** tls.h: identities, certificates, join tokens, and one encrypted byte stream.
**
** TLS 1.3 only (RFC 8446), mutual, ALPN "quorate/1", no session tickets,
** through memory BIOs: nothing here touches a socket or a file. OpenSSL is
** used through a library context of its own, so that nothing the host process
** does with OpenSSL is changed, and never registers an atexit handler.
**
** A certificate of a node carries its identity as the URI subject alternative
** name  quorate:<cluster id, 16 hex>/<node id, 16 hex>, or, where an outside
** PKI does not make such names, as a DNS name that matches a pattern.
**
** Texts are PEM, zero-terminated, malloc'd; free them with tls_free_text(),
** which wipes them. Errors: 0 or -1, with a line for people, without newline,
** in the caller's struct tls_error. Threads: a context may be shared, a stream
** belongs to one thread at a time. The OpenSSL error queue is clean before and
** after every call.
*/
#ifndef TLS_H
#define TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct tls_error {
  char text[256];
};

void tls_free_text(char *text); /* NULL is allowed */

/* Fills buf with random bytes. */
int tls_random(void *buf, size_t n, struct tls_error *error);
/* SHA-256 of data. */
int tls_digest(const void *data, size_t n, uint8_t out[32],
               struct tls_error *error);
/* Compares in constant time. */
bool tls_equal(const void *a, const void *b, size_t n);

/* ---- identities -------------------------------------------------------- */

/* A new CA for a cluster: self-signed, ECDSA P-256, ten years. */
int tls_make_ca(uint64_t cluster, char **cert, char **key,
                struct tls_error *error);
/* A new ECDSA P-256 key and a signing request made with it. */
int tls_make_request(char **request, char **key, struct tls_error *error);
/* Signs a request as `node` of `cluster` for `days` days: client and server
   authentication, the URI SAN above. The request's signature is checked;
   nothing but its public key is taken from it. */
int tls_sign_request(const char *ca_cert, const char *ca_key,
                     const char *request, uint64_t cluster, uint64_t node,
                     unsigned days, char **cert, struct tls_error *error);
/* SHA-256 of the DER of the first certificate in a PEM text. */
int tls_fingerprint(const char *cert, uint8_t out[32], struct tls_error *error);
/* Those of all certificates in a text, in its order: *n of them, in `out`,
   which has room for max. More than max is an error. */
int tls_fingerprints(const char *bundle, uint8_t (*out)[32], unsigned max,
                     unsigned *n, struct tls_error *error);
/* Fingerprint of the CA in `bundle` that signed cert, or, when there are
   others between (which follow it in its text), the last one of these. Times
   are not looked at. An error: none of them did. */
int tls_issuer(const char *bundle, const char *cert, uint8_t fingerprint[32],
               struct tls_error *error);
/* Begin and end (seconds since 1970) of the first certificate in a text, of a
   node or of a CA. */
int tls_certificate_times(const char *cert, int64_t *begins, int64_t *ends,
                          struct tls_error *error);
/* Identity and end of life (seconds since 1970) of a node's certificate. */
int tls_identity(const char *cert, uint64_t *cluster, uint64_t *node,
                 int64_t *expires, struct tls_error *error);

/* The identity by a name pattern, for certificates that say nothing of
   quorate. The pattern has exactly one '*', which stands for one or more of
   [a-z0-9-]; its other characters ([a-z0-9._-]) stand for themselves; upper
   and lower case are one. The name of a node is the only DNS name among the
   subject alternative names of its certificate that matches, in lower case.
   Its node id is made of the first 8 bytes (big-endian) of the SHA-256 of
   "quorate:<cluster, 16 hex>/<name>", with the lowest bit set. Fills name
   (zero-terminated; 254 bytes are enough for all) and its end of life. */
int tls_identity_named(const char *cert, const char *pattern, uint64_t cluster,
                       uint64_t *node, char *name, size_t size,
                       int64_t *expires, struct tls_error *error);

/* ---- join tokens ------------------------------------------------------- */

#define TLS_SECRET_BYTES 16

/* What a joining node must know to find and trust a cluster. The text form is
   "quorate1-" and base32 (RFC 4648, lower case, no padding) of a version,
   these fields and four bytes of checksum, so that a mistyped token is told
   from a wrong one. When it expires is known to the cluster only. */
struct tls_token {
  uint64_t cluster;
  uint8_t ca_fingerprint[32];
  uint8_t secret[TLS_SECRET_BYTES];
  char name[64];     /* of the node that may join */
  char address[256]; /* "host:port" of a member */
};
int tls_token_encode(const struct tls_token *token, char **text,
                     struct tls_error *error);
int tls_token_decode(const char *text, struct tls_token *token,
                     struct tls_error *error);

/* ---- contexts ---------------------------------------------------------- */

struct tls_context; /* opaque, reference-counted */

/* Of a member: shows cert, accepts peers whose certificate a CA of `ca` signed
   and whose SAN names this cluster. As a server it also completes a handshake
   with a client without a certificate; tls_stream_peer() is then 0. Each of
   the texts may hold several: every certificate in `ca` is believed; those
   behind the first in `cert` are sent along with it, and at the end the CA of
   `ca` that signed it, see tls_issuer(); of the keys the one that belongs to
   the certificate is taken. Checks that a key belongs to cert and cert to a
   CA, and that peers would accept it but for its time. */
int tls_context_new(const char *ca, const char *cert, const char *key,
                    struct tls_context **out, struct tls_error *error);
/* The same with identities by name, see tls_identity_named(). Then a peer's
   certificate does not say which cluster it is of: the protocol above must. */
int tls_context_new_named(const char *ca, const char *cert, const char *key,
                          const char *pattern, uint64_t cluster,
                          struct tls_context **out, struct tls_error *error);
/* Of a node that wants to join: no certificate; accepts a server whose chain
   ends in a CA with this fingerprint (servers send their CA along) and whose
   SAN names this cluster. */
int tls_context_new_joiner(uint64_t cluster, const uint8_t fingerprint[32],
                           struct tls_context **out, struct tls_error *error);
/* One more reference, for whoever keeps the context; returns it. */
struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context *context); /* NULL is allowed */

/* ---- streams ----------------------------------------------------------- */

struct tls_stream; /* opaque */

/* A stream over `context`, which it keeps a reference to. A client's hello is
   at once in its output. NULL: no memory. */
struct tls_stream *tls_stream_new(struct tls_context *context, bool server);
void tls_stream_free(struct tls_stream *stream); /* NULL is allowed */

/* Takes bytes that arrived from the peer, and goes on with the handshake.
   Whatever it returns, tls_stream_output() may have bytes to send (an alert).
   -1: the stream is dead; tls_stream_error() says why. */
int tls_stream_feed(struct tls_stream *stream, const void *data, size_t n);
/* Takes decrypted bytes out: their number, 0 if there are none now, -1 when
   the stream is dead, -2 when the peer closed it in order. */
ssize_t tls_stream_read(struct tls_stream *stream, void *buf, size_t n);
/* Encrypts all of iov. Only when ready. -1: dead. */
int tls_stream_write(struct tls_stream *stream, const struct iovec *iov, int n);
/* Asks for an orderly close (close_notify in the output). */
void tls_stream_close(struct tls_stream *stream);
/* Bytes to be sent to the peer: *data is valid until the next call on this
   stream. tls_stream_sent() drops the first n of them. */
size_t tls_stream_output(struct tls_stream *stream, const uint8_t **data);
void tls_stream_sent(struct tls_stream *stream, size_t n);

bool tls_stream_ready(const struct tls_stream *stream); /* handshake done */
/* Node id in the peer's verified certificate; 0: it showed none. */
uint64_t tls_stream_peer(const struct tls_stream *stream);
/* When the first certificate of the peer's chain ends, its own or a CA's, in
   seconds since 1970; 0: it showed none. */
int64_t tls_stream_peer_expires(const struct tls_stream *stream);
/* Why the stream is dead; "" while it is not. The texts are lower case, of
   one line, and nothing in them was made by the peer but numbers. */
const char *tls_stream_error(const struct tls_stream *stream);

/* The same in kinds, for counting. A refusal by the other side, which arrives
   as an alert, is of the protocol: whose fault it is, is known there. */
enum tls_cause {
  TLS_CAUSE_NONE,     /* it is not dead */
  TLS_CAUSE_PROTOCOL, /* not TLS, not 1.3, no ALPN, damage, an alert */
  TLS_CAUSE_FOREIGN,  /* no CA of ours signed its certificate */
  TLS_CAUSE_EXPIRED,
  TLS_CAUSE_EARLY, /* not yet valid */
  TLS_CAUSE_NAME,  /* no identity in its certificate, or of another cluster */
  TLS_CAUSE_OTHER, /* a weak key, a wrong purpose, no memory ... */
  TLS_CAUSES
};
enum tls_cause tls_stream_cause(const struct tls_stream *stream);

#endif
