/*
** pki.h: certificates as nobody should have them, and a client that shows
** them: OpenSSL by hand, since tls/ refuses to make either.
*/
#ifndef NET_TEST_PKI_H
#define NET_TEST_PKI_H

#include "common.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

struct made {
  EVP_PKEY *key;
  X509 *cert;
};

/* How a certificate is to be. */
struct wish {
  const struct authority *ca;
  const char *names; /* the subject alternative names; NULL: none */
  long begins, ends; /* seconds from now */
};

HELPER char *pem_of(int (*write)(BIO *bio, const struct made *made),
                    const struct made *made)
{
  BIO *bio = BIO_new(BIO_s_mem());
  char *data, *text;
  long n;

  assert_non_null(bio);
  assert_int_equal(write(bio, made), 1);
  n = BIO_get_mem_data(bio, &data);
  text = strndup(data, (size_t)n);
  BIO_free(bio);
  return text;
}

HELPER int write_cert(BIO *bio, const struct made *made)
{
  return PEM_write_bio_X509(bio, made->cert);
}

HELPER int write_key(BIO *bio, const struct made *made)
{
  return PEM_write_bio_PrivateKey(bio, made->key, NULL, NULL, 0, NULL, NULL);
}

HELPER void made_end(struct made *made)
{
  X509_free(made->cert);
  EVP_PKEY_free(made->key);
}

HELPER void add_extension(X509 *cert, X509V3_CTX *ctx, int nid,
                          const char *value)
{
  X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, ctx, nid, value);

  assert_non_null(extension);
  assert_int_equal(X509_add_ext(cert, extension, -1), 1);
  X509_EXTENSION_free(extension);
}

HELPER struct made make(const struct wish *wish)
{
  BIO *bio = BIO_new_mem_buf(wish->ca->cert, -1);
  X509 *issuer = PEM_read_bio_X509(bio, NULL, NULL, NULL);
  struct made made = {EVP_EC_gen("P-256"), X509_new()};
  EVP_PKEY *signer;
  X509V3_CTX ctx;

  BIO_free(bio);
  bio = BIO_new_mem_buf(wish->ca->key, -1);
  signer = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
  BIO_free(bio);
  assert_true(issuer && signer && made.key && made.cert);
  X509_set_version(made.cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(made.cert), 77);
  X509_gmtime_adj(X509_getm_notBefore(made.cert), wish->begins);
  X509_gmtime_adj(X509_getm_notAfter(made.cert), wish->ends);
  X509_set_issuer_name(made.cert, X509_get_subject_name(issuer));
  X509_set_pubkey(made.cert, made.key);
  X509V3_set_ctx(&ctx, issuer, made.cert, NULL, NULL, 0);
  add_extension(made.cert, &ctx, NID_basic_constraints, "critical,CA:FALSE");
  add_extension(made.cert, &ctx, NID_key_usage, "critical,digitalSignature");
  add_extension(made.cert, &ctx, NID_ext_key_usage, "serverAuth,clientAuth");
  if (wish->names)
    add_extension(made.cert, &ctx, NID_subject_alt_name, wish->names);
  assert_true(X509_sign(made.cert, signer, EVP_sha256()) > 0);
  X509_free(issuer);
  EVP_PKEY_free(signer);
  return made;
}

HELPER struct tls_context *context_made(const struct wish *wish)
{
  struct made made = make(wish);
  char *cert = pem_of(write_cert, &made), *key = pem_of(write_key, &made);
  struct tls_context *context = NULL;
  struct tls_error error;

  if (tls_context_new(wish->ca->cert, cert, key, &context, &error))
    fail_msg("%s", error.text);
  free(cert);
  free(key);
  made_end(&made);
  return context;
}

/* ---- the client ---------------------------------------------------------- */

struct client {
  SSL_CTX *context;
  SSL *ssl;
  int fd;
  bool closed;
};

/* wish NULL: without a certificate. alpn: as it goes over the wire, or NULL. */
HELPER void client_open(struct client *client, const char *address,
                        const struct wish *wish, int version, const char *alpn)
{
  struct raw raw;

  memset(client, 0, sizeof *client);
  raw_open(&raw, address, NULL);
  client->fd = raw.fd;
  client->context = SSL_CTX_new(TLS_client_method());
  assert_non_null(client->context);
  SSL_CTX_set_max_proto_version(client->context, version);
  if (wish) {
    struct made made = make(wish);

    assert_int_equal(SSL_CTX_use_certificate(client->context, made.cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(client->context, made.key), 1);
    made_end(&made);
  }
  client->ssl = SSL_new(client->context);
  if (alpn)
    SSL_set_alpn_protos(client->ssl, (const uint8_t *)alpn,
                        (unsigned)strlen(alpn));
  SSL_set_fd(client->ssl, client->fd);
  SSL_set_connect_state(client->ssl);
}

/* Reads without blocking what is there. True, for UNTIL. */
HELPER bool client_pump(struct client *client)
{
  char byte;
  int rc = SSL_read(client->ssl, &byte, 1), error;

  if (rc > 0) return true;
  error = SSL_get_error(client->ssl, rc);
  if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
    client->closed = true;
  return true;
}

HELPER void client_end(struct client *client)
{
  SSL_free(client->ssl);
  SSL_CTX_free(client->context);
  close(client->fd);
}

#endif
