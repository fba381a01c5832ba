/*
** helpers.h: what the tests of this room share: texts of a cluster, odd
** certificates built with OpenSSL directly, two streams joined in memory, and
** a peer that is OpenSSL itself, so that it can be set up wrongly.
*/
#ifndef TLS_TEST_HELPERS_H
#define TLS_TEST_HELPERS_H

#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CLUSTER UINT64_C(0x00c0ffee12345678)
#define DAY 86400L

static struct tls_error last_error;
static struct tls_error *const error = &last_error;

/* Every call of tls.h must leave OpenSSL's error queue clean. */
#define assert_queue_clean() assert_int_equal(ERR_peek_error(), 0)
#define assert_ok(call)                                                        \
  do {                                                                         \
    if ((call) != 0) fail_msg("%s: %s", #call, error->text);                   \
    assert_queue_clean();                                                      \
  } while (0)
/* The call fails, and its line contains `part`. */
#define assert_error(call, part)                                               \
  do {                                                                         \
    assert_int_equal((call), -1);                                              \
    if (strstr(error->text, part) == NULL)                                     \
      fail_msg("%s: \"%s\" instead of \"%s\"", #call, error->text, part);      \
    assert_null(strchr(error->text, '\n'));                                    \
    assert_queue_clean();                                                      \
  } while (0)

/* ---- a generator whose seed a failing test prints ---------------------- */

static uint64_t random_state = 1;

static inline uint32_t random_u32(void)
{
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(random_state >> 33);
}

static inline void random_fill(void *buf, size_t n)
{
  uint8_t *at = buf;

  while (n-- > 0)
    *at++ = (uint8_t)random_u32();
}

/* ---- a cluster's texts ------------------------------------------------- */

struct ca {
  char *cert, *key;
};

struct node {
  char *cert, *key;
};

static inline struct ca make_ca(void)
{
  struct ca ca;

  assert_ok(tls_make_ca(CLUSTER, &ca.cert, &ca.key, error));
  return ca;
}

static inline struct node make_node(const struct ca *ca, uint64_t cluster,
                                    uint64_t id)
{
  struct node node;
  char *request;

  assert_ok(tls_make_request(&request, &node.key, error));
  assert_ok(tls_sign_request(ca->cert, ca->key, request, cluster, id, 30,
                             &node.cert, error));
  tls_free_text(request);
  return node;
}

static inline void free_ca(struct ca *ca)
{
  tls_free_text(ca->cert);
  tls_free_text(ca->key);
}

static inline void free_node(struct node *node)
{
  tls_free_text(node->cert);
  tls_free_text(node->key);
}

static inline struct tls_context *make_member(const struct ca *ca,
                                              uint64_t cluster, uint64_t id)
{
  struct node node = make_node(ca, cluster, id);
  struct tls_context *context;

  assert_ok(tls_context_new(ca->cert, node.cert, node.key, &context, error));
  free_node(&node);
  return context;
}

/* ---- certificates of any kind ------------------------------------------ */

struct cred {
  X509 *cert;
  EVP_PKEY *key;
};

struct spec {
  const char *san;  /* "URI:...,DNS:..." ; NULL: none */
  const char *san2; /* a second extension of the same kind */
  const char *eku;  /* NULL: both; "": none */
  long from, to;    /* seconds from now; 0, 0: yesterday to tomorrow */
  bool is_ca;
  const char *usage;  /* of its key; NULL: as befits it */
  const char *name;   /* of the subject; NULL: a new one */
  const char *digest; /* NULL: SHA256 */
  EVP_PKEY *key;      /* NULL: a new one on P-256 */
};

static inline void spec_add(X509 *cert, X509 *issuer, int nid,
                            const char *value)
{
  X509_EXTENSION *extension;
  X509V3_CTX ctx;

  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
  extension = X509V3_EXT_nconf_nid(NULL, &ctx, nid, value);
  assert_non_null(extension);
  assert_int_equal(X509_add_ext(cert, extension, -1), 1);
  X509_EXTENSION_free(extension);
}

/* Unsigned yet. issuer NULL: self-signed. */
static inline struct cred build_unsigned(const struct cred *issuer,
                                         const struct spec *spec)
{
  bool any_time = spec->from == 0 && spec->to == 0;
  X509 *ca, *cert = X509_new();
  char name[40];
  struct cred out = {cert, spec->key};

  if (out.key == NULL)
    out.key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
  else
    EVP_PKEY_up_ref(out.key);
  ca = issuer == NULL ? cert : issuer->cert;
  if (spec->name != NULL)
    snprintf(name, sizeof name, "%s", spec->name);
  else
    snprintf(name, sizeof name, "test %08" PRIx32, random_u32());
  X509_set_version(cert, X509_VERSION_3);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), random_u32() + 1u);
  X509_gmtime_adj(X509_getm_notBefore(cert), any_time ? -DAY : spec->from);
  X509_gmtime_adj(X509_getm_notAfter(cert), any_time ? DAY : spec->to);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                             (unsigned char *)name, -1, -1, 0);
  X509_set_issuer_name(cert, X509_get_subject_name(ca));
  X509_set_pubkey(cert, out.key);
  spec_add(cert, ca, NID_basic_constraints,
           spec->is_ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
  if (spec->usage != NULL)
    spec_add(cert, ca, NID_key_usage, spec->usage);
  else
    spec_add(cert, ca, NID_key_usage,
             spec->is_ca ? "critical,keyCertSign"
                         : "critical,digitalSignature");
  spec_add(cert, ca, NID_subject_key_identifier, "hash");
  if (!spec->is_ca && (spec->eku == NULL || spec->eku[0] != '\0'))
    spec_add(cert, ca, NID_ext_key_usage,
             spec->eku == NULL ? "serverAuth,clientAuth" : spec->eku);
  if (spec->san != NULL) spec_add(cert, ca, NID_subject_alt_name, spec->san);
  if (spec->san2 != NULL) spec_add(cert, ca, NID_subject_alt_name, spec->san2);
  return out;
}

static inline struct cred build(const struct cred *issuer,
                                const struct spec *spec)
{
  struct cred out = build_unsigned(issuer, spec);
  EVP_MD *md = EVP_MD_fetch(NULL, spec->digest ? spec->digest : "SHA256", NULL);

  assert_true(X509_sign(out.cert, issuer ? issuer->key : out.key, md) > 0);
  EVP_MD_free(md);
  return out;
}

static inline struct cred read_cred(const char *cert, const char *key)
{
  BIO *c = BIO_new_mem_buf(cert, -1), *k = BIO_new_mem_buf(key, -1);
  struct cred out = {PEM_read_bio_X509(c, NULL, NULL, NULL),
                     PEM_read_bio_PrivateKey(k, NULL, NULL, NULL)};

  BIO_free(c);
  BIO_free(k);
  assert_non_null(out.cert);
  assert_non_null(out.key);
  return out;
}

static inline char *text_of(BIO *bio)
{
  char *data, *text;
  size_t n = (size_t)BIO_get_mem_data(bio, &data);

  text = malloc(n + 1);
  memcpy(text, data, n);
  text[n] = '\0';
  BIO_free(bio);
  return text;
}

static inline char *pem_of_cert(X509 *cert)
{
  BIO *bio = BIO_new(BIO_s_mem());

  PEM_write_bio_X509(bio, cert);
  return text_of(bio);
}

static inline char *pem_of_key(EVP_PKEY *key)
{
  BIO *bio = BIO_new(BIO_s_mem());

  PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
  return text_of(bio);
}

static inline char *join_texts(const char *a, const char *b)
{
  size_t size = strlen(a) + strlen(b) + 1;
  char *text = malloc(size);

  snprintf(text, size, "%s%s", a, b);
  return text;
}

/* A context that shows what tls_context_new() would refuse. */
static inline struct tls_context *make_bad(const struct ca *ca,
                                           const struct cred *shown, X509 *next)
{
  struct tls_context *context = make_member(ca, CLUSTER, 99);

  SSL_CTX_set_security_level(context->ssl, 0);
  SSL_CTX_clear_chain_certs(context->ssl);
  assert_int_equal(SSL_CTX_use_certificate(context->ssl, shown->cert), 1);
  assert_int_equal(SSL_CTX_use_PrivateKey(context->ssl, shown->key), 1);
  if (next != NULL) SSL_CTX_add1_chain_cert(context->ssl, next);
  return context;
}

static inline void free_cred(struct cred *cred)
{
  X509_free(cred->cert);
  EVP_PKEY_free(cred->key);
}

/* ---- two streams joined in memory -------------------------------------- */

struct pair {
  struct tls_stream *client, *server;
};

static inline struct pair make_pair(struct tls_context *client,
                                    struct tls_context *server)
{
  struct pair pair;

  pair.server = tls_stream_new(server, true);
  assert_queue_clean();
  pair.client = tls_stream_new(client, false);
  assert_queue_clean();
  assert_non_null(pair.client);
  assert_non_null(pair.server);
  return pair;
}

static inline void free_pair(struct pair *pair)
{
  tls_stream_free(pair->client);
  tls_stream_free(pair->server);
  assert_queue_clean();
}

/* Moves what `from` has for `to`, at most `step` bytes at a time. */
static inline bool move_bytes(struct tls_stream *from, struct tls_stream *to,
                              size_t step)
{
  const uint8_t *data;
  bool moved = false;
  size_t n;

  while ((n = tls_stream_output(from, &data)) > 0) {
    if (n > step) n = step;
    (void)tls_stream_feed(to, data, n);
    assert_queue_clean();
    tls_stream_sent(from, n);
    moved = true;
  }
  return moved;
}

static inline void shake(struct pair *pair, size_t step)
{
  bool moved;

  do {
    moved = move_bytes(pair->client, pair->server, step);
    moved |= move_bytes(pair->server, pair->client, step);
  } while (moved);
}

static inline struct pair make_ready_pair(struct tls_context *client,
                                          struct tls_context *server)
{
  struct pair pair = make_pair(client, server);

  shake(&pair, SIZE_MAX);
  assert_true(tls_stream_ready(pair.client));
  assert_true(tls_stream_ready(pair.server));
  return pair;
}

static inline void assert_says(const struct tls_stream *stream,
                               const char *part)
{
  const char *text = tls_stream_error(stream);

  if (strstr(text, part) == NULL)
    fail_msg("\"%s\" instead of \"%s\"", text, part);
}

static inline int write_text(struct tls_stream *stream, const char *text)
{
  char copy[256];
  struct iovec iov = {copy, strlen(text)};

  memcpy(copy, text, iov.iov_len);
  return tls_stream_write(stream, &iov, 1);
}

/* ---- a peer that is OpenSSL itself ------------------------------------- */

struct raw {
  SSL_CTX *ctx;
  SSL *ssl;
  int alert; /* the last fatal one received; -1: none */
  unsigned key_updates, tickets;
  size_t received; /* bytes of data */
  bool done;
};

struct raw_options {
  bool server;
  const struct cred *cred;
  X509 *chain[3];
  const char *alpn; /* in wire form; NULL: none */
  int version;      /* 0: TLS 1.3 */
};

static inline void raw_info(const SSL *ssl, int where, int value)
{
  struct raw *raw = SSL_get_app_data(ssl);

  if (where == SSL_CB_READ_ALERT && value >> 8 == SSL3_AL_FATAL)
    raw->alert = value & 0xff;
}

static inline void raw_message(int write, int version, int type,
                               const void *buf, size_t n, SSL *ssl, void *arg)
{
  struct raw *raw = arg;
  const uint8_t *bytes = buf;

  (void)version, (void)ssl;
  if (write || type != SSL3_RT_HANDSHAKE || n == 0) return;
  if (bytes[0] == SSL3_MT_KEY_UPDATE) raw->key_updates++;
  if (bytes[0] == SSL3_MT_NEWSESSION_TICKET) raw->tickets++;
}

static inline int raw_alpn(SSL *ssl, const unsigned char **out,
                           unsigned char *outlen, const unsigned char *in,
                           unsigned inlen, void *arg)
{
  const unsigned char *name = arg;

  (void)ssl, (void)in, (void)inlen;
  *out = name + 1;
  *outlen = name[0];
  return SSL_TLSEXT_ERR_OK;
}

static inline int raw_believe(X509_STORE_CTX *store, void *arg)
{
  (void)store, (void)arg;
  return 1;
}

static inline void raw_open(struct raw *raw, const struct raw_options *o)
{
  int version = o->version == 0 ? TLS1_3_VERSION : o->version;
  char *alpn = (char *)(uintptr_t)o->alpn;

  *raw = (struct raw){.ctx = SSL_CTX_new(TLS_method()), .alert = -1};
  SSL_CTX_set_security_level(raw->ctx, 0);
  SSL_CTX_set_min_proto_version(raw->ctx, version);
  SSL_CTX_set_max_proto_version(raw->ctx, version);
  SSL_CTX_set_verify(raw->ctx, SSL_VERIFY_PEER, NULL);
  SSL_CTX_set_cert_verify_callback(raw->ctx, raw_believe, NULL);
  SSL_CTX_set_mode(raw->ctx, SSL_MODE_NO_AUTO_CHAIN);
  if (o->cred != NULL) {
    assert_int_equal(SSL_CTX_use_certificate(raw->ctx, o->cred->cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(raw->ctx, o->cred->key), 1);
  }
  for (int i = 0; i < 3 && o->chain[i] != NULL; i++)
    SSL_CTX_add1_chain_cert(raw->ctx, o->chain[i]);
  if (alpn != NULL && o->server)
    SSL_CTX_set_alpn_select_cb(raw->ctx, raw_alpn, alpn);
  if (alpn != NULL && !o->server)
    SSL_CTX_set_alpn_protos(raw->ctx, (unsigned char *)alpn,
                            (unsigned)strlen(alpn));
  raw->ssl = SSL_new(raw->ctx);
  SSL_set_app_data(raw->ssl, raw);
  SSL_set_info_callback(raw->ssl, raw_info);
  SSL_set_msg_callback(raw->ssl, raw_message);
  SSL_set_msg_callback_arg(raw->ssl, raw);
  SSL_set_bio(raw->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  if (o->server)
    SSL_set_accept_state(raw->ssl);
  else
    SSL_set_connect_state(raw->ssl);
}

static inline void raw_close(struct raw *raw)
{
  SSL_free(raw->ssl);
  SSL_CTX_free(raw->ctx);
  ERR_clear_error();
}

/* Handshake, and whatever comes after it, as far as it goes. */
static inline void raw_shake(struct raw *raw, struct tls_stream *stream)
{
  bool moved = true;

  while (moved) {
    const uint8_t *data;
    char *bytes, byte;
    size_t n = tls_stream_output(stream, &data);

    moved = n > 0;
    if (n > 0) BIO_write(SSL_get_rbio(raw->ssl), data, (int)n);
    tls_stream_sent(stream, n);
    if (!raw->done) raw->done = SSL_do_handshake(raw->ssl) == 1;
    while (raw->done && SSL_read(raw->ssl, &byte, 1) == 1)
      raw->received++;
    n = (size_t)BIO_get_mem_data(SSL_get_wbio(raw->ssl), &bytes);
    if (n > 0) {
      (void)tls_stream_feed(stream, bytes, n);
      assert_queue_clean();
      (void)BIO_reset(SSL_get_wbio(raw->ssl));
      moved = true;
    }
  }
}

#endif
