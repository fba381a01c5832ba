/*
** identity.c: the certificates of a cluster: making its CA, requests and
** signing them.
**
** Profile (RFC 5280). All are version 3 with a random serial number of 20
** bytes; they begin an hour in the past, for clocks that disagree.
**
**     CA      CN=quorate CA <cluster>; basicConstraints critical CA:TRUE,
**             pathlen 0; keyUsage critical keyCertSign, cRLSign; SKI
**     node    CN=<the SAN>; basicConstraints critical CA:FALSE; keyUsage
**             critical digitalSignature; extendedKeyUsage serverAuth,
**             clientAuth; SAN URI:quorate:<cluster>/<node>; SKI, AKI
*/
#include "internal.h"

#include <inttypes.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#define CA_DAYS 3652u
#define DAYS_MAX 36500u
#define SKEW_SECONDS 3600
#define SERIAL_BYTES 20
#define RSA_BITS_MIN 2048

/* ---- building certificates --------------------------------------------- */

static int set_serial(OSSL_LIB_CTX *lib, X509 *cert)
{
  uint8_t bytes[SERIAL_BYTES];
  BIGNUM *number;
  int ok;

  if (RAND_bytes_ex(lib, bytes, sizeof bytes, 0) != 1) return 0;
  /* Positive, and always of the full length. */
  bytes[0] = (uint8_t)((bytes[0] & 0x7f) | 0x40);
  number = BN_bin2bn(bytes, sizeof bytes, NULL);
  ok = number != NULL &&
       BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) != NULL;
  BN_free(number);
  return ok;
}

static int set_common_name(X509_NAME *name, const char *text)
{
  return X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_ASC,
                                    (const unsigned char *)text, -1, -1, 0);
}

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
  X509_EXTENSION *extension;
  X509V3_CTX ctx;
  int ok;

  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
  extension = X509V3_EXT_nconf_nid(NULL, &ctx, nid, value);
  ok = extension != NULL && X509_add_ext(cert, extension, -1);
  X509_EXTENSION_free(extension);
  return ok;
}

/* The first 160 bits of the SHA-256 of the public key (RFC 7093, section 2).
   OpenSSL's "hash" would take SHA-1, and from the host's library context. */
static int add_key_identifier(OSSL_LIB_CTX *lib, X509 *cert)
{
  const ASN1_BIT_STRING *key = X509_get0_pubkey_bitstr(cert);
  ASN1_OCTET_STRING *id = ASN1_OCTET_STRING_new();
  uint8_t digest[32];
  size_t len;
  int ok = id != NULL && key != NULL &&
           EVP_Q_digest(lib, "SHA256", NULL, ASN1_STRING_get0_data(key),
                        (size_t)ASN1_STRING_length(key), digest, &len) &&
           ASN1_OCTET_STRING_set(id, digest, 20) &&
           X509_add1_ext_i2d(cert, NID_subject_key_identifier, id, 0, 0) == 1;

  ASN1_OCTET_STRING_free(id);
  return ok;
}

/* The parts that a CA's and a node's certificate share. */
static X509 *new_certificate(OSSL_LIB_CTX *lib, EVP_PKEY *key, unsigned days)
{
  X509 *cert = X509_new_ex(lib, NULL);

  if (cert == NULL || !X509_set_version(cert, X509_VERSION_3) ||
      !set_serial(lib, cert) || !X509_set_pubkey(cert, key) ||
      X509_gmtime_adj(X509_getm_notBefore(cert), -SKEW_SECONDS) == NULL ||
      X509_time_adj_ex(X509_getm_notAfter(cert), (int)days, 0, NULL) == NULL) {
    X509_free(cert);
    return NULL;
  }
  return cert;
}

/* Ed25519 and Ed448 take no digest of the caller's choice. */
static int sign_with(OSSL_LIB_CTX *lib, X509 *cert, EVP_PKEY *key)
{
  EVP_MD *sha256 = NULL;
  int ok;

  if (EVP_PKEY_is_a(key, "ED25519") || EVP_PKEY_is_a(key, "ED448"))
    return X509_sign(cert, key, NULL) > 0;
  sha256 = EVP_MD_fetch(lib, "SHA256", NULL);
  ok = sha256 != NULL && X509_sign(cert, key, sha256) > 0;
  EVP_MD_free(sha256);
  return ok;
}

/* PEM of a certificate, request or key; exactly one of them is given. */
static char *to_pem(OSSL_LIB_CTX *lib, X509 *cert, X509_REQ *request,
                    EVP_PKEY *key)
{
  BIO *bio = BIO_new_ex(lib, BIO_s_mem());
  char *text = NULL;
  int ok;

  if (bio == NULL) return NULL;
  if (cert != NULL)
    ok = PEM_write_bio_X509(bio, cert);
  else if (request != NULL)
    ok = PEM_write_bio_X509_REQ(bio, request);
  else
    ok = PEM_write_bio_PrivateKey_ex(bio, key, NULL, NULL, 0, NULL, NULL, lib,
                                     NULL);
  if (ok) text = tls_text_of_bio(bio);
  BIO_free(bio);
  return text;
}

/* ---- the CA ------------------------------------------------------------ */

static X509 *build_ca(OSSL_LIB_CTX *lib, EVP_PKEY *key, uint64_t cluster)
{
  X509 *cert = new_certificate(lib, key, CA_DAYS);
  char name[64];

  snprintf(name, sizeof name, "quorate CA %016" PRIx64, cluster);
  if (cert == NULL || !set_common_name(X509_get_subject_name(cert), name) ||
      !X509_set_issuer_name(cert, X509_get_subject_name(cert)) ||
      !add_extension(cert, cert, NID_basic_constraints,
                     "critical,CA:TRUE,pathlen:0") ||
      !add_extension(cert, cert, NID_key_usage,
                     "critical,keyCertSign,cRLSign") ||
      !add_key_identifier(lib, cert) || !sign_with(lib, cert, key)) {
    X509_free(cert);
    return NULL;
  }
  return cert;
}

int tls_make_ca(uint64_t cluster, char **cert, char **key,
                struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  EVP_PKEY *pkey = NULL;
  X509 *ca = NULL;
  int rc = 0;

  *cert = *key = NULL;
  if (lib == NULL) return -1;
  pkey = EVP_PKEY_Q_keygen(lib, NULL, "EC", "P-256");
  if (pkey != NULL) ca = build_ca(lib, pkey, cluster);
  if (ca != NULL) *cert = to_pem(lib, ca, NULL, NULL);
  if (*cert != NULL) *key = to_pem(lib, NULL, NULL, pkey);
  if (*key == NULL) {
    rc = tls_fail_openssl(error, "cannot make a CA");
    tls_free_text(*cert);
    *cert = NULL;
  }
  X509_free(ca);
  EVP_PKEY_free(pkey);
  return tls_leave(rc);
}

/* ---- requests ---------------------------------------------------------- */

static X509_REQ *build_request(OSSL_LIB_CTX *lib, EVP_PKEY *key)
{
  X509_REQ *request = X509_REQ_new_ex(lib, NULL);
  EVP_MD *sha256 = EVP_MD_fetch(lib, "SHA256", NULL);

  if (request == NULL || sha256 == NULL ||
      !X509_REQ_set_version(request, X509_REQ_VERSION_1) ||
      !X509_REQ_set_pubkey(request, key) ||
      X509_REQ_sign(request, key, sha256) <= 0) {
    X509_REQ_free(request);
    request = NULL;
  }
  EVP_MD_free(sha256);
  return request;
}

int tls_make_request(char **request, char **key, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  EVP_PKEY *pkey = NULL;
  X509_REQ *req = NULL;
  int rc = 0;

  *request = *key = NULL;
  if (lib == NULL) return -1;
  pkey = EVP_PKEY_Q_keygen(lib, NULL, "EC", "P-256");
  if (pkey != NULL) req = build_request(lib, pkey);
  if (req != NULL) *request = to_pem(lib, NULL, req, NULL);
  if (*request != NULL) *key = to_pem(lib, NULL, NULL, pkey);
  if (*key == NULL) {
    rc = tls_fail_openssl(error, "cannot make a signing request");
    tls_free_text(*request);
    *request = NULL;
  }
  X509_REQ_free(req);
  EVP_PKEY_free(pkey);
  return tls_leave(rc);
}

/* ---- signing ----------------------------------------------------------- */

/* EC keys must be on a curve that is named: RFC 5480 forbids the other form,
   and a certificate with it would be refused by every peer. */
static bool is_good_ec_key(EVP_PKEY *key)
{
  int explicit_curve = 0;
  char group[32];

  if (!EVP_PKEY_get_group_name(key, group, sizeof group, NULL)) return false;
  if (strcmp(group, "prime256v1") != 0 && strcmp(group, "P-256") != 0 &&
      strcmp(group, "secp384r1") != 0 && strcmp(group, "P-384") != 0)
    return false;
  return EVP_PKEY_get_int_param(key,
                                OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS,
                                &explicit_curve) &&
         !explicit_curve;
}

bool tls_good_key(OSSL_LIB_CTX *lib, EVP_PKEY *key)
{
  EVP_PKEY_CTX *ctx;
  bool good;

  if (EVP_PKEY_is_a(key, "ED25519"))
    return true; /* every string of 32 bytes is one */
  if (EVP_PKEY_is_a(key, "EC"))
    good = is_good_ec_key(key);
  else
    good = EVP_PKEY_is_a(key, "RSA") && EVP_PKEY_get_bits(key) >= RSA_BITS_MIN;
  if (!good) return false;
  ctx = EVP_PKEY_CTX_new_from_pkey(lib, key, NULL);
  good = ctx != NULL && EVP_PKEY_public_check(ctx) == 1;
  EVP_PKEY_CTX_free(ctx);
  return good;
}

/* The key of a parsed request. What the parser itself made of it belongs to
   the host's library context, so it is read once more. */
static EVP_PKEY *key_of_request(OSSL_LIB_CTX *lib, X509_REQ *request)
{
  uint8_t *der = NULL;
  const uint8_t *at;
  EVP_PKEY *key = NULL;
  int len = i2d_X509_PUBKEY(X509_REQ_get_X509_PUBKEY(request), &der);

  if (len <= 0) return NULL;
  at = der;
  key = d2i_PUBKEY_ex(NULL, &at, len, lib, NULL);
  OPENSSL_free(der);
  return key;
}

/* The public key of a request that is signed with it; NULL with *error. */
static EVP_PKEY *read_request(OSSL_LIB_CTX *lib, const char *text,
                              struct tls_error *error)
{
  BIO *bio = tls_bio_of_text(text, "request", error);
  X509_REQ *request = X509_REQ_new_ex(lib, NULL);
  EVP_PKEY *key = NULL;

  if (bio == NULL) goto fail;
  if (request == NULL ||
      PEM_read_bio_X509_REQ(bio, &request, NULL, NULL) == NULL) {
    tls_fail_openssl(error, "request: not a signing request in PEM");
    goto fail;
  }
  key = key_of_request(lib, request);
  if (key == NULL) {
    tls_fail_openssl(error, "request: its key is malformed");
    goto fail;
  }
  if (!tls_good_key(lib, key)) {
    tls_fail(error, "request: its key is weak or of a kind not accepted");
    goto fail;
  }
  if (X509_REQ_verify_ex(request, key, lib, NULL) != 1) {
    tls_fail(error, "request: its signature is wrong");
    goto fail;
  }
  X509_REQ_free(request);
  BIO_free(bio);
  return key;

fail:
  EVP_PKEY_free(key);
  X509_REQ_free(request);
  BIO_free(bio);
  return NULL;
}

/* A node's certificate ends with its CA's at the latest. */
static int set_end(X509 *cert, X509 *ca, struct tls_error *error)
{
  const ASN1_TIME *end = X509_get0_notAfter(ca);

  if (X509_cmp_current_time(end) <= 0)
    return tls_fail(error, "CA certificate has expired");
  if (ASN1_TIME_compare(X509_get0_notAfter(cert), end) > 0 &&
      !X509_set1_notAfter(cert, end))
    return tls_fail_openssl(error, "cannot sign");
  return 0;
}

static int build_node(OSSL_LIB_CTX *lib, X509 *ca, EVP_PKEY *ca_key, X509 *cert,
                      uint64_t cluster, uint64_t node)
{
  char uri[64], san[80];

  snprintf(uri, sizeof uri, TLS_URI_SCHEME "%016" PRIx64 "/%016" PRIx64,
           cluster, node);
  snprintf(san, sizeof san, "URI:%s", uri);
  return set_common_name(X509_get_subject_name(cert), uri) &&
         X509_set_issuer_name(cert, X509_get_subject_name(ca)) &&
         add_extension(cert, ca, NID_basic_constraints, "critical,CA:FALSE") &&
         add_extension(cert, ca, NID_key_usage, "critical,digitalSignature") &&
         add_extension(cert, ca, NID_ext_key_usage, "serverAuth,clientAuth") &&
         add_extension(cert, ca, NID_subject_alt_name, san) &&
         add_key_identifier(lib, cert) &&
         add_extension(cert, ca, NID_authority_key_identifier, "keyid") &&
         sign_with(lib, cert, ca_key);
}

static int check_arguments(uint64_t node, unsigned days,
                           struct tls_error *error)
{
  if (node == 0) return tls_fail(error, "cannot sign: node 0 is nobody");
  if (days == 0 || days > DAYS_MAX)
    return tls_fail(error, "cannot sign: days must be 1 to %u", DAYS_MAX);
  return 0;
}

int tls_sign_request(const char *ca_cert, const char *ca_key,
                     const char *request, uint64_t cluster, uint64_t node,
                     unsigned days, char **out, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  X509 *ca = NULL, *cert = NULL;
  EVP_PKEY *key = NULL, *public_key = NULL;
  int rc = -1;

  *out = NULL;
  if (lib == NULL) return -1;
  if (check_arguments(node, days, error) != 0) goto out;
  ca = tls_read_certificate(ca_cert, "CA certificate", error);
  if (ca == NULL) goto out;
  if (X509_check_ca(ca) != 1) {
    tls_fail(error, "CA certificate: not one of a CA");
    goto out;
  }
  key = tls_read_key(ca_key, ca, "CA key", error);
  if (key == NULL) goto out;
  public_key = read_request(lib, request, error);
  if (public_key == NULL) goto out;

  cert = new_certificate(lib, public_key, days);
  if (cert != NULL && set_end(cert, ca, error) != 0) goto out;
  if (cert != NULL && build_node(lib, ca, key, cert, cluster, node))
    *out = to_pem(lib, cert, NULL, NULL);
  if (*out == NULL)
    tls_fail_openssl(error, "cannot sign");
  else
    rc = 0;

out:
  X509_free(cert);
  EVP_PKEY_free(public_key);
  EVP_PKEY_free(key);
  X509_free(ca);
  return tls_leave(rc);
}
