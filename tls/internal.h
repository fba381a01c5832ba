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
/* That private key of the text which belongs to cert. */
EVP_PKEY *tls_read_key(const char *text, X509 *cert, const char *what,
                       struct tls_error *error);

/* ---- interface to the code in identity.c ------------------------------- */

/* Kinds of keys that every peer accepts in a node's certificate. */
bool tls_good_key(OSSL_LIB_CTX *lib, EVP_PKEY *key);

/* ---- interface to the code in names.c ---------------------------------- */

#define TLS_URI_SCHEME "quorate:"
#define TLS_NAME_SIZE 254 /* a DNS name has 253 characters at most */

/* How nodes are named. */
struct tls_names {
  char pattern[TLS_NAME_SIZE]; /* of DNS names; "": by the URI */
  uint64_t cluster;            /* of which a name is, where it does not say */
};

struct tls_identity {
  uint64_t cluster, node;
  char name[TLS_NAME_SIZE]; /* in lower case; "": it is a URI */
};

/* Checks the pattern. */
int tls_names_set(struct tls_names *names, const char *pattern,
                  uint64_t cluster, struct tls_error *error);
/* Cluster and node named by a certificate. NULL, or why it names none. `names`
   NULL: by the URI. */
const char *tls_identity_of(OSSL_LIB_CTX *lib, X509 *cert,
                            const struct tls_names *names,
                            struct tls_identity *out);
int tls_seconds_of(const ASN1_TIME *time, int64_t *seconds);

/* ---- interface to the code in chain.c ---------------------------------- */

#define TLS_SECURITY_LEVEL 2
/* What a peer may send of certificates, in bytes: bounds the memory that it
   gets from a server that does not know it yet. */
#define TLS_CHAIN_MAX (16 * 1024)

int tls_fingerprint_of(X509 *cert, uint8_t out[32]);

/* Whether an error of X509_verify_cert means that no CA of ours signed it. */
bool tls_is_foreign(int error);
/* Whether two CAs of a bundle have one name. If so, tls_bundle_for() gives
   those that may be used for what a peer has shown. NULL: no memory. */
bool tls_has_namesakes(const STACK_OF(X509) * bundle);
STACK_OF(X509) *
    tls_bundle_for(const STACK_OF(X509) * bundle, const STACK_OF(X509) * shown);

/* The three texts of a node, parsed. */
struct tls_papers {
  STACK_OF(X509) * ca;
  STACK_OF(X509) * chain; /* of the node: its certificate, then others */
  X509 *issuer;           /* which of `ca` its certificate comes from */
  EVP_PKEY *key;          /* the one of its certificate */
};

/* Reads them, and checks that they belong together and that peers with the
   same CAs would accept them. To be freed whatever it returned. */
int tls_papers_read(OSSL_LIB_CTX *lib, struct tls_papers *p, const char *ca,
                    const char *cert, const char *key, struct tls_error *error);
void tls_papers_free(struct tls_papers *p);

/* ---- interface to the code in context.c -------------------------------- */

/* A key is replaced (KeyUpdate) after so many bytes. RFC 8446, section 5.5,
   allows AES-GCM 2^24.5 full-size records, about 2^38.5 bytes. */
#define TLS_REKEY_BYTES ((uint64_t)1 << 36)

struct tls_context {
  atomic_uint refs;
  OSSL_LIB_CTX *lib;
  SSL_CTX *ssl;
  STACK_OF(X509) * anchors; /* the CAs it believes; none of a joiner */
  struct tls_names names;
  uint64_t cluster;
  uint64_t rekey_bytes;
  bool joiner;
  bool namesakes;          /* among the anchors, see chain.c */
  uint8_t fingerprint[32]; /* of the CA; joiner only */
};

/* What the verification of a handshake found out. The application data of
   each SSL points to one. */
struct tls_peer {
  uint64_t node;           /* in its certificate; 0: it showed none */
  int64_t expires;         /* the earliest end in its chain */
  struct tls_error reason; /* why it was refused; "": it was not */
  enum tls_cause cause;
};

/* Says why, unless something was said before. Returns -1. */
int tls_refuse(struct tls_peer *peer, enum tls_cause cause, const char *format,
               ...) __attribute__((format(printf, 3, 4)));

bool tls_speaks_quorate(const SSL *ssl); /* what ALPN ended with */

#endif
