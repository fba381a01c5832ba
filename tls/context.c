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
#include <stdlib.h>
#include <string.h>

#define SECURITY_LEVEL 2
/* What a peer may send us of certificates: bounds the memory that a client
   gets from a server that does not know it yet. */
#define CERT_LIST_MAX (16L * 1024)

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

  tls_fail(&peer->reason, "peer offered no quorate/1");
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

/* ---- verification ------------------------------------------------------ */

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

static int verify_chain(const struct tls_context *context,
                        X509_STORE_CTX *store, struct tls_peer *peer)
{
  STACK_OF(X509) *anchors = NULL;
  int ok;

  X509_STORE_CTX_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
  if (context->joiner) {
    anchors = pin_anchor(context, store);
    if (anchors == NULL) {
      tls_fail(&peer->reason, "certificate verify failed: the server's chain "
                              "does not end in the token's CA");
      return reject(store);
    }
    X509_STORE_CTX_set0_trusted_stack(store, anchors);
  }
  ok = X509_verify_cert(store) == 1;
  if (context->joiner) X509_STORE_CTX_set0_trusted_stack(store, NULL);
  sk_X509_pop_free(anchors, X509_free);
  if (!ok) {
    tls_fail(&peer->reason, "certificate verify failed: %s",
             X509_verify_cert_error_string(X509_STORE_CTX_get_error(store)));
  }
  return ok;
}

static int verify_peer(X509_STORE_CTX *store, void *arg)
{
  const struct tls_context *context = arg;
  SSL *ssl =
      X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
  struct tls_peer *peer = SSL_get_app_data(ssl);
  uint64_t cluster, node;
  const char *why;

  /* A server's choice is known by now, and an alert can still be sent. */
  if (!SSL_is_server(ssl) && !tls_speaks_quorate(ssl)) {
    tls_fail(&peer->reason, "peer selected no quorate/1");
    return reject(store);
  }
  if (!verify_chain(context, store, peer)) return 0;
  why = tls_identity_of(X509_STORE_CTX_get0_cert(store), &cluster, &node);
  if (why != NULL) {
    tls_fail(&peer->reason, "certificate verify failed: %s", why);
    return reject(store);
  }
  if (cluster != context->cluster) {
    tls_fail(&peer->reason,
             "wrong cluster: peer is node %" PRIx64 " of %016" PRIx64, node,
             cluster);
    return reject(store);
  }
  peer->node = node;
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
  SSL_CTX_set_security_level(ssl, SECURITY_LEVEL);
  SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(ssl, 0);
  SSL_CTX_set_max_cert_list(ssl, CERT_LIST_MAX);
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
  OPENSSL_cleanse(context, sizeof *context);
  free(context);
}

/* ---- of a member ------------------------------------------------------- */

/* The three texts, parsed. */
struct papers {
  STACK_OF(X509) * ca;
  STACK_OF(X509) * chain; /* of the node: its certificate, then others */
  EVP_PKEY *key;
};

static void free_papers(struct papers *p)
{
  sk_X509_pop_free(p->ca, X509_free);
  sk_X509_pop_free(p->chain, X509_free);
  EVP_PKEY_free(p->key);
}

static int read_papers(struct papers *p, const char *ca, const char *cert,
                       const char *key, struct tls_error *error)
{
  p->ca = tls_read_certificates(ca, "CA certificate", error);
  if (p->ca == NULL) return -1;
  p->chain = tls_read_certificates(cert, "certificate", error);
  if (p->chain == NULL) return -1;
  p->key = tls_read_key(key, "key", error);
  return p->key == NULL ? -1 : 0;
}

/* Everything in the CA's text becomes an anchor, so all must be of CAs. */
static X509_STORE *new_store(const struct papers *p, struct tls_error *error)
{
  X509_STORE *store = X509_STORE_new();

  for (int i = 0; i < sk_X509_num(p->ca); i++) {
    X509 *ca = sk_X509_value(p->ca, i);

    if (X509_check_ca(ca) != 1) {
      tls_fail(error, "CA certificate: not one of a CA");
      X509_STORE_free(store);
      return NULL;
    }
    if (store == NULL || !X509_STORE_add_cert(store, ca)) {
      tls_fail_openssl(error, "CA certificate");
      X509_STORE_free(store);
      return NULL;
    }
  }
  return store;
}

/* Would a peer with the same CA accept our certificate? Its time is left
   aside: it is judged at each handshake, by then the clock may be right. */
static int check_chain(OSSL_LIB_CTX *lib, const struct papers *p,
                       X509_STORE *store, struct tls_error *error)
{
  X509_STORE_CTX *ctx = X509_STORE_CTX_new_ex(lib, NULL);
  X509 *leaf = sk_X509_value(p->chain, 0);
  int rc = -1;

  if (ctx == NULL || !X509_STORE_CTX_init(ctx, store, leaf, p->chain)) {
    tls_fail_openssl(error, "certificate: cannot be checked");
    goto out;
  }
  X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_PARTIAL_CHAIN |
                                    X509_V_FLAG_NO_CHECK_TIME);
  X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(ctx),
                                   SECURITY_LEVEL);
  if (X509_verify_cert(ctx) != 1)
    tls_fail(error, "certificate does not belong to the CA: %s",
             X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
  else if (X509_check_purpose(leaf, X509_PURPOSE_SSL_SERVER, 0) != 1 ||
           X509_check_purpose(leaf, X509_PURPOSE_SSL_CLIENT, 0) != 1)
    tls_fail(error, "certificate is not for servers and clients both");
  else
    rc = 0;

out:
  X509_STORE_CTX_free(ctx);
  return rc;
}

static int check_papers(OSSL_LIB_CTX *lib, const struct papers *p,
                        X509_STORE *store, uint64_t *cluster,
                        struct tls_error *error)
{
  X509 *leaf = sk_X509_value(p->chain, 0);
  const char *why;
  uint64_t node;

  if (!X509_check_private_key(leaf, p->key))
    return tls_fail(error, "key does not belong to the certificate");
  if (check_chain(lib, p, store, error) != 0) return -1;
  why = tls_identity_of(leaf, cluster, &node);
  if (why != NULL) return tls_fail(error, "certificate: %s", why);
  return 0;
}

/* What we send: our certificate, those between, the CA. A joiner knows the
   last one by its fingerprint. */
static int use_papers(SSL_CTX *ssl, const struct papers *p,
                      struct tls_error *error)
{
  bool ok = SSL_CTX_use_certificate(ssl, sk_X509_value(p->chain, 0)) == 1 &&
            SSL_CTX_use_PrivateKey(ssl, p->key) == 1;
  X509 *ca = sk_X509_value(p->ca, 0);

  for (int i = 1; ok && i < sk_X509_num(p->chain); i++) {
    X509 *cert = sk_X509_value(p->chain, i);

    if (X509_cmp(cert, ca) == 0) continue; /* it goes last */
    ok = SSL_CTX_add1_chain_cert(ssl, cert) == 1;
  }
  ok = ok && SSL_CTX_add1_chain_cert(ssl, ca) == 1;
  return ok ? 0 : tls_fail_openssl(error, "certificate cannot be used");
}

int tls_context_new(const char *ca, const char *cert, const char *key,
                    struct tls_context **out, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_context *context = NULL;
  X509_STORE *store = NULL;
  struct papers p = {0};
  int rc = -1;

  *out = NULL;
  if (lib == NULL) return -1;
  if (read_papers(&p, ca, cert, key, error) != 0) goto out;
  store = new_store(&p, error);
  if (store == NULL) goto out;
  context = new_context(lib);
  if (context == NULL) {
    tls_fail_openssl(error, "cannot set up TLS");
    goto out;
  }
  rc = check_papers(lib, &p, store, &context->cluster, error);
  if (rc == 0) rc = use_papers(context->ssl, &p, error);
  if (rc != 0) goto out;
  SSL_CTX_set1_cert_store(context->ssl, store);
  *out = context;
  context = NULL;

out:
  tls_context_unref(context);
  X509_STORE_free(store);
  free_papers(&p);
  return tls_leave(rc);
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
