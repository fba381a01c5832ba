/*
** internal.h: what the files of tls/ share with each other and with the tests
** of this room. Nobody else includes it.
*/
#ifndef TLS_INTERNAL_H
#define TLS_INTERNAL_H

#include "tls.h"

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdatomic.h>

/* ---- interface to the code in library.c -------------------------------- */

/* Every public function that uses OpenSSL begins with tls_enter() and ends
   with tls_leave(): that is what keeps the error queue clean on both sides.
   tls_enter() returns the library context, or NULL with *error filled. */
OSSL_LIB_CTX *tls_enter(struct tls_error *error);
int tls_leave(int rc);

/* Writes a line into *error (NULL is allowed) and returns -1. */
int tls_fail(struct tls_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The same; OpenSSL's own reason, if it has one, follows the line. */
int tls_fail_openssl(struct tls_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A memory BIO with a copy of text, which it wipes when it is freed. */
BIO *tls_bio_of_text(const char *text, const char *what,
                     struct tls_error *error);
/* What was written to a memory BIO, as a malloc'd text. NULL: no memory. */
char *tls_text_of_bio(BIO *bio);

/* The certificates in a PEM text, one at least; `what` names it in errors. */
STACK_OF(X509) * tls_read_certificates(const char *text, const char *what,
                                       struct tls_error *error);
X509 *tls_read_certificate(const char *text, const char *what,
                           struct tls_error *error);
EVP_PKEY *tls_read_key(const char *text, const char *what,
                       struct tls_error *error);

/* ---- interface to the code in identity.c ------------------------------- */

/* Cluster and node named by a certificate. NULL, or why it names none. */
const char *tls_identity_of(X509 *cert, uint64_t *cluster, uint64_t *node);
int tls_fingerprint_of(X509 *cert, uint8_t out[32]);

/* ---- interface to the code in context.c -------------------------------- */

/* A key is replaced (KeyUpdate) after so many bytes. RFC 8446, section 5.5,
   allows AES-GCM 2^24.5 full-size records, about 2^38.5 bytes. */
#define TLS_REKEY_BYTES ((uint64_t)1 << 36)

struct tls_context {
  atomic_uint refs;
  SSL_CTX *ssl;
  uint64_t cluster;
  uint64_t rekey_bytes;
  bool joiner;
  uint8_t fingerprint[32]; /* of the CA; joiner only */
};

/* What the verification of a handshake found out. The application data of
   each SSL points to one. */
struct tls_peer {
  uint64_t node;           /* in its certificate; 0: it showed none */
  struct tls_error reason; /* why it was refused; "": it was not */
};

bool tls_speaks_quorate(const SSL *ssl); /* what ALPN ended with */

#endif
