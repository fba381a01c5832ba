/*
** context.c: what a stream may speak and whom it may believe.
**
** One SSL_CTX serves both directions. Whatever a host's openssl.cnf may say
** about TLS ("system_default") is applied to every SSL_CTX of a process when
** it is made, so everything that matters is set here once more.
**
** Verification is ours (SSL_CTX_set_cert_verify_callback) because two things
** go beyond a chain of signatures: the identity in the certificate, which
** takes the place of a host name, and the joiner's trust anchor, which it
** knows only by fingerprint. In both cases the chain itself is verified by
** X509_verify_cert: signatures, times, CA flags, and the purpose (serverAuth
** of a server, clientAuth of a client), at security level 2. An anchor need
** not be self-signed (X509_V_FLAG_PARTIAL_CHAIN): the CA of a cluster may be
** an intermediate one of an outside PKI; anchors are always certificates of a
** CA.
*/
#include "internal.h"

#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const unsigned char alpn[] = "\x09quorate/1";
#define ALPN_LEN (sizeof alpn - 1)

/* ---- ALPN -------------------------------------------------------------- */

bool tls_speaks_quorate(const SSL *ssl)
{
  const unsigned char *name;
  unsigned len;

  SSL_get0_alpn_selected(ssl, &name, &len);
  return len == ALPN_LEN - 1 && memcmp(name, alpn + 1, len) == 0;
}

static void refuse_alpn(SSL *ssl)
{
  struct tls_peer *peer = SSL_get_app_data(ssl);

  tls_refuse(peer, TLS_CAUSE_PROTOCOL, "peer offered no quorate/1");
}

/* Comes first of all, and also when the client sent no ALPN: the callback
   below is called only for clients that sent some. */
static int on_client_hello(SSL *ssl, int *alert, void *arg)
{
  const unsigned char *data;
  size_t len;

  (void)arg;
  if (SSL_client_hello_get0_ext(
          ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data, &len))
    return SSL_CLIENT_HELLO_SUCCESS;
  refuse_alpn(ssl);
  *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
  return SSL_CLIENT_HELLO_ERROR;
}

static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen,
                   const unsigned char *in, unsigned inlen, void *arg)
{
  unsigned char *selected;

  (void)arg;
  if (SSL_select_next_proto(&selected, outlen, alpn, ALPN_LEN, in, inlen) !=
      OPENSSL_NPN_NEGOTIATED) {
    refuse_alpn(ssl);
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

/* ---- the anchor of a joiner --------------------------------------------- */

/* Ends a verification: the alert that goes out is "bad certificate". */
static int reject(X509_STORE_CTX *store)
{
  X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
  return 0;
}

/* Makes the last certificate of the peer's chain the anchor, if it is the one
   that the token named. The leaf cannot be its own anchor. */
static STACK_OF(X509) *
    pin_anchor(const struct tls_context *context, X509_STORE_CTX *store)
{
  STACK_OF(X509) *chain = X509_STORE_CTX_get0_untrusted(store);
  STACK_OF(X509) *anchors = NULL;
  int n = sk_X509_num(chain);
  uint8_t fingerprint[32];
  X509 *last;

  if (n < 2) return NULL;
  last = sk_X509_value(chain, n - 1);
  if (tls_fingerprint_of(last, fingerprint) != 0 ||
      !tls_equal(fingerprint, context->fingerprint, sizeof fingerprint) ||
      X509_check_ca(last) != 1)
    return NULL;
  anchors = sk_X509_new_null();
  if (anchors == NULL) return NULL;
  if (!X509_add_cert(anchors, last, X509_ADD_FLAG_UP_REF)) {
    sk_X509_free(anchors);
    return NULL;
  }
  return anchors;
}

/* ---- why --------------------------------------------------------------- */

int tls_refuse(struct tls_peer *peer, enum tls_cause cause, const char *format,
               ...)
{
  va_list args;

  if (peer->cause != TLS_CAUSE_NONE) return -1;
  peer->cause = cause;
  va_start(args, format);
  vsnprintf(peer->reason.text, sizeof peer->reason.text, format, args);
  va_end(args);
  return -1;
}

/* With the times, since it may be a clock that is wrong. */
static void refuse_time(X509_STORE_CTX *store, struct tls_peer *peer)
{
  bool early = X509_STORE_CTX_get_error(store) == X509_V_ERR_CERT_NOT_YET_VALID;
  bool ca = X509_STORE_CTX_get_error_depth(store) > 0;
  X509 *cert = X509_STORE_CTX_get_current_cert(store);
  const ASN1_TIME *limit =
      early ? X509_get0_notBefore(cert) : X509_get0_notAfter(cert);
  char then[32] = "?", now[32] = "?";
  time_t seconds = time(NULL);
  struct tm tm;

  if (ASN1_TIME_to_tm(limit, &tm))
    strftime(then, sizeof then, "%Y-%m-%d %H:%M:%SZ", &tm);
  if (gmtime_r(&seconds, &tm) != NULL)
    strftime(now, sizeof now, "%Y-%m-%d %H:%M:%SZ", &tm);
  tls_refuse(peer, early ? TLS_CAUSE_EARLY : TLS_CAUSE_EXPIRED,
             "certificate verify failed: %scertificate %s %s, by the clock "
             "here it is %s",
             ca ? "its CA's " : "",
             early ? "is not yet valid: it begins" : "has expired: it ended",
             then, now);
}

/* In words of ours where those of OpenSSL are for people who know how it
   searches. */
static void refuse_chain(X509_STORE_CTX *store, struct tls_peer *peer)
{
  int error = X509_STORE_CTX_get_error(store);
  const char *what = "not signed by a CA of this cluster";

  switch (error) {
  case X509_V_ERR_CERT_HAS_EXPIRED:
  case X509_V_ERR_CERT_NOT_YET_VALID: refuse_time(store, peer); return;
  case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    what = "self-signed, not signed by a CA of this cluster";
    break;
  case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    what = "its signature is not of the CA that it names";
    break;
  default:
    if (!tls_is_foreign(error)) what = X509_verify_cert_error_string(error);
  }
  tls_refuse(peer, tls_is_foreign(error) ? TLS_CAUSE_FOREIGN : TLS_CAUSE_OTHER,
             "certificate verify failed: %s", what);
}

/* ---- verification of a peer -------------------------------------------- */

/* The CAs that a peer's chain may end in; to be freed by the caller. NULL
   with a reason. */
static STACK_OF(X509) * choose_anchors(const struct tls_context *context,
                                       X509_STORE_CTX *store,
                                       struct tls_peer *peer)
{
  STACK_OF(X509) * anchors;

  if (context->joiner) {
    anchors = pin_anchor(context, store);
    if (anchors == NULL)
      tls_refuse(peer, TLS_CAUSE_FOREIGN,
                 "a node of another cluster than the token's, or its CA has "
                 "changed since: its chain does not end in the token's CA");
    return anchors;
  }
  if (context->namesakes)
    anchors =
        tls_bundle_for(context->anchors, X509_STORE_CTX_get0_untrusted(store));
  else
    anchors = X509_chain_up_ref(context->anchors);
  if (anchors == NULL) tls_refuse(peer, TLS_CAUSE_OTHER, "out of memory");
  return anchors;
}

static int verify_chain(const struct tls_context *context,
                        X509_STORE_CTX *store, struct tls_peer *peer)
{
  STACK_OF(X509) *anchors = choose_anchors(context, store, peer);
  int ok;

  if (anchors == NULL) return reject(store);
  X509_STORE_CTX_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
  X509_STORE_CTX_set0_trusted_stack(store, anchors);
  ok = X509_verify_cert(store) == 1;
  X509_STORE_CTX_set0_trusted_stack(store, NULL);
  if (!ok) refuse_chain(store, peer);
  sk_X509_pop_free(anchors, X509_free);
  return ok;
}

/* When the first certificate of a verified chain ends. */
static int64_t end_of_chain(const STACK_OF(X509) * chain)
{
  int64_t end = INT64_MAX, seconds;

  for (int i = 0; i < sk_X509_num(chain); i++) {
    const ASN1_TIME *time = X509_get0_notAfter(sk_X509_value(chain, i));

    if (tls_seconds_of(time, &seconds) == 0 && seconds < end) end = seconds;
  }
  return end;
}

static int verify_peer(X509_STORE_CTX *store, void *arg)
{
  const struct tls_context *context = arg;
  SSL *ssl =
      X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
  struct tls_peer *peer = SSL_get_app_data(ssl);
  struct tls_identity identity;
  const char *why;

  /* A server's choice is known by now, and an alert can still be sent. */
  if (!SSL_is_server(ssl) && !tls_speaks_quorate(ssl)) {
    tls_refuse(peer, TLS_CAUSE_PROTOCOL, "peer selected no quorate/1");
    return reject(store);
  }
  if (!verify_chain(context, store, peer)) return 0;
  if (X509_check_ca(X509_STORE_CTX_get0_cert(store)) != 0) {
    tls_refuse(peer, TLS_CAUSE_OTHER,
               "certificate verify failed: it is one of a CA, not of a node");
    return reject(store);
  }
  why = tls_identity_of(context->lib, X509_STORE_CTX_get0_cert(store),
                        &context->names, &identity);
  if (why != NULL) {
    tls_refuse(peer, TLS_CAUSE_NAME, "certificate verify failed: %s", why);
    return reject(store);
  }
  if (identity.cluster != context->cluster) {
    tls_refuse(peer, TLS_CAUSE_NAME,
               "wrong cluster: peer is node %" PRIx64 " of %016" PRIx64,
               identity.node, identity.cluster);
    return reject(store);
  }
  peer->node = identity.node;
  peer->expires = end_of_chain(X509_STORE_CTX_get0_chain(store));
  return 1;
}

/* ---- what every context has -------------------------------------------- */

/* Arrays because the macros of OpenSSL cast const away. */
static char ciphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                        "TLS_CHACHA20_POLY1305_SHA256";
static char groups[] = "X25519:P-256:P-384";
static char signatures[] = "ECDSA+SHA256:ECDSA+SHA384:ed25519:RSA-PSS+SHA256:"
                           "RSA-PSS+SHA384:RSA-PSS+SHA512";

static int set_protocol(SSL_CTX *ssl)
{
  const uint64_t options = SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                           SSL_OP_NO_COMPRESSION |
                           SSL_OP_ENABLE_MIDDLEBOX_COMPAT;

  SSL_CTX_clear_options(ssl, SSL_CTX_get_options(ssl));
  SSL_CTX_set_options(ssl, options);
  SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_security_level(ssl, TLS_SECURITY_LEVEL);
  SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(ssl, 0);
  SSL_CTX_set_max_cert_list(ssl, TLS_CHAIN_MAX);
  SSL_CTX_set_client_CA_list(ssl, NULL);
  /* SSL_CTX_set_alpn_protos alone returns 0 for success. */
  return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) &&
         SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) &&
         SSL_CTX_set_ciphersuites(ssl, ciphers) &&
         SSL_CTX_set1_groups_list(ssl, groups) &&
         SSL_CTX_set1_sigalgs_list(ssl, signatures) &&
         SSL_CTX_set_num_tickets(ssl, 0) &&
         SSL_CTX_set_max_early_data(ssl, 0) &&
         SSL_CTX_set_block_padding(ssl, 0) &&
         SSL_CTX_set_alpn_protos(ssl, alpn, ALPN_LEN) == 0;
}

static struct tls_context *new_context(OSSL_LIB_CTX *lib)
{
  struct tls_context *context = calloc(1, sizeof *context);

  if (context == NULL) return NULL;
  atomic_init(&context->refs, 1);
  context->lib = lib;
  context->rekey_bytes = TLS_REKEY_BYTES;
  context->ssl = SSL_CTX_new_ex(lib, NULL, TLS_method());
  if (context->ssl == NULL || !set_protocol(context->ssl)) {
    SSL_CTX_free(context->ssl);
    free(context);
    return NULL;
  }
  SSL_CTX_set_alpn_select_cb(context->ssl, on_alpn, NULL);
  SSL_CTX_set_client_hello_cb(context->ssl, on_client_hello, NULL);
  SSL_CTX_set_verify(context->ssl, SSL_VERIFY_PEER, NULL);
  SSL_CTX_set_cert_verify_callback(context->ssl, verify_peer, context);
  return context;
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
  atomic_fetch_add_explicit(&context->refs, 1, memory_order_relaxed);
  return context;
}

void tls_context_unref(struct tls_context *context)
{
  if (context == NULL) return;
  if (atomic_fetch_sub_explicit(&context->refs, 1, memory_order_acq_rel) > 1)
    return;
  SSL_CTX_free(context->ssl);
  sk_X509_pop_free(context->anchors, X509_free);
  OPENSSL_cleanse(context, sizeof *context);
  free(context);
}

/* ---- of a member ------------------------------------------------------- */

/* What we send: our certificate, those between, the CA. A joiner knows the
   last one by its fingerprint. */
static int use_papers(SSL_CTX *ssl, const struct tls_papers *p,
                      struct tls_error *error)
{
  bool ok = SSL_CTX_use_certificate(ssl, sk_X509_value(p->chain, 0)) == 1 &&
            SSL_CTX_use_PrivateKey(ssl, p->key) == 1;

  for (int i = 1; ok && i < sk_X509_num(p->chain); i++) {
    X509 *cert = sk_X509_value(p->chain, i);

    if (X509_cmp(cert, p->issuer) == 0) continue; /* it goes last */
    ok = SSL_CTX_add1_chain_cert(ssl, cert) == 1;
  }
  ok = ok && SSL_CTX_add1_chain_cert(ssl, p->issuer) == 1;
  return ok ? 0 : tls_fail_openssl(error, "certificate cannot be used");
}

/* Our own identity, by the rule that peers are held to. */
static int identify(struct tls_context *context, const struct tls_papers *p,
                    struct tls_error *error)
{
  struct tls_identity identity;
  const char *why = tls_identity_of(context->lib, sk_X509_value(p->chain, 0),
                                    &context->names, &identity);

  if (why != NULL) return tls_fail(error, "certificate: %s", why);
  context->cluster = identity.cluster;
  return 0;
}

static int new_member(const char *ca, const char *cert, const char *key,
                      const struct tls_names *names, struct tls_context **out,
                      struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_context *context = NULL;
  struct tls_papers p = {0};
  int rc = -1;

  if (lib == NULL) return -1;
  if (tls_papers_read(lib, &p, ca, cert, key, error) != 0) goto out;
  context = new_context(lib);
  if (context == NULL) {
    tls_fail_openssl(error, "cannot set up TLS");
    goto out;
  }
  context->names = *names;
  if (identify(context, &p, error) != 0 ||
      use_papers(context->ssl, &p, error) != 0)
    goto out;
  context->anchors = p.ca;
  context->namesakes = tls_has_namesakes(p.ca);
  p.ca = NULL;
  *out = context;
  context = NULL;
  rc = 0;

out:
  tls_context_unref(context);
  tls_papers_free(&p);
  return tls_leave(rc);
}

int tls_context_new(const char *ca, const char *cert, const char *key,
                    struct tls_context **out, struct tls_error *error)
{
  const struct tls_names names = {0};

  *out = NULL;
  return new_member(ca, cert, key, &names, out, error);
}

int tls_context_new_named(const char *ca, const char *cert, const char *key,
                          const char *pattern, uint64_t cluster,
                          struct tls_context **out, struct tls_error *error)
{
  struct tls_names names;

  *out = NULL;
  if (tls_names_set(&names, pattern, cluster, error) != 0) return -1;
  return new_member(ca, cert, key, &names, out, error);
}

/* ---- of a joiner ------------------------------------------------------- */

int tls_context_new_joiner(uint64_t cluster, const uint8_t fingerprint[32],
                           struct tls_context **out, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_context *context;

  *out = NULL;
  if (lib == NULL) return -1;
  context = new_context(lib);
  if (context == NULL)
    return tls_leave(tls_fail_openssl(error, "cannot set up TLS"));
  context->cluster = cluster;
  context->joiner = true;
  memcpy(context->fingerprint, fingerprint, sizeof context->fingerprint);
  *out = context;
  return tls_leave(0);
}
