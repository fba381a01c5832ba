/*
** chain.c: the certificates that a node has: bundles of CAs, its own chain,
** its key.
**
** An issuer is found as a peer would find it: X509_verify_cert builds a chain
** from the node's certificate to one of the bundle. Of the certificates in
** that chain which are in the bundle, the first is the node's CA. It is the
** one that it sends along, last, since joiners know a CA by its fingerprint.
**
** Two CAs in a bundle often have the same name; an old and a new one of one
** cluster have. X509_verify_cert takes the first that fits and does not try
** another if the signature is wrong then. In certificates made here the key
** identifiers tell which fits; not all PKIs write them. So where names are the
** same, those that signed nothing of what was shown are left out before.
*/
#include "internal.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <string.h>

/* Signatures that are checked at most to tell namesakes apart. */
#define TRIES_MAX 16

/* ---- fingerprints ------------------------------------------------------ */

int tls_fingerprint_of(X509 *cert, uint8_t out[32])
{
  unsigned len = 0;

  /* The name of the digest only: it is fetched from the certificate's own
     library context. */
  if (!X509_digest(cert, EVP_sha256(), out, &len) || len != 32) return -1;
  return 0;
}

int tls_fingerprint(const char *text, uint8_t out[32], struct tls_error *error)
{
  X509 *cert;
  int rc;

  if (tls_enter(error) == NULL) return -1;
  cert = tls_read_certificate(text, "certificate", error);
  if (cert == NULL) return tls_leave(-1);
  rc = tls_fingerprint_of(cert, out);
  if (rc != 0) tls_fail_openssl(error, "certificate: no fingerprint");
  X509_free(cert);
  return tls_leave(rc);
}

int tls_fingerprints(const char *bundle, uint8_t (*out)[32], unsigned max,
                     unsigned *n, struct tls_error *error)
{
  STACK_OF(X509) * certs;
  int rc = 0;

  *n = 0;
  if (tls_enter(error) == NULL) return -1;
  certs = tls_read_certificates(bundle, "certificate", error);
  if (certs == NULL) return tls_leave(-1);
  if (sk_X509_num(certs) > (int)max)
    rc = tls_fail(error, "certificate: more than %u in one text", max);
  for (int i = 0; rc == 0 && i < sk_X509_num(certs); i++) {
    rc = tls_fingerprint_of(sk_X509_value(certs, i), out[i]);
    if (rc != 0) tls_fail_openssl(error, "certificate: no fingerprint");
  }
  if (rc == 0) *n = (unsigned)sk_X509_num(certs);
  sk_X509_pop_free(certs, X509_free);
  return tls_leave(rc);
}

/* ---- reading ----------------------------------------------------------- */

void tls_papers_free(struct tls_papers *p)
{
  sk_X509_pop_free(p->ca, X509_free);
  sk_X509_pop_free(p->chain, X509_free);
  X509_free(p->issuer);
  EVP_PKEY_free(p->key);
}

/* Everything in the CA's text is believed, so all must be of CAs. */
static STACK_OF(X509) * read_bundle(const char *text, struct tls_error *error)
{
  STACK_OF(X509) *bundle = tls_read_certificates(text, "CA certificate", error);

  for (int i = 0; i < sk_X509_num(bundle); i++) {
    if (X509_check_ca(sk_X509_value(bundle, i)) == 1) continue;
    tls_fail(error, "CA certificate: not one of a CA");
    sk_X509_pop_free(bundle, X509_free);
    return NULL;
  }
  return bundle;
}

static int read_papers(struct tls_papers *p, const char *ca, const char *cert,
                       struct tls_error *error)
{
  p->ca = read_bundle(ca, error);
  if (p->ca == NULL) return -1;
  p->chain = tls_read_certificates(cert, "certificate", error);
  return p->chain == NULL ? -1 : 0;
}

/* ---- namesakes --------------------------------------------------------- */

static bool same_name(X509 *a, X509 *b)
{
  return X509_NAME_cmp(X509_get_subject_name(a), X509_get_subject_name(b)) == 0;
}

static bool has_namesake(const STACK_OF(X509) * bundle, X509 *ca)
{
  for (int i = 0; i < sk_X509_num(bundle); i++) {
    X509 *other = sk_X509_value(bundle, i);

    if (other != ca && same_name(other, ca)) return true;
  }
  return false;
}

bool tls_has_namesakes(const STACK_OF(X509) * bundle)
{
  for (int i = 0; i < sk_X509_num(bundle); i++)
    if (has_namesake(bundle, sk_X509_value(bundle, i))) return true;
  return false;
}

static bool has_signed(X509 *ca, const STACK_OF(X509) * shown, int *tries)
{
  EVP_PKEY *key = X509_get0_pubkey(ca);

  for (int i = 0; i < sk_X509_num(shown); i++) {
    X509 *cert = sk_X509_value(shown, i);

    if (X509_NAME_cmp(X509_get_issuer_name(cert), X509_get_subject_name(ca)) ||
        X509_cmp(cert, ca) == 0)
      continue;
    if ((*tries)++ >= TRIES_MAX) return false;
    if (X509_verify(cert, key) == 1) return true;
  }
  return false;
}

STACK_OF(X509) *
    tls_bundle_for(const STACK_OF(X509) * bundle, const STACK_OF(X509) * shown)
{
  STACK_OF(X509) *out = sk_X509_new_null();
  int tries = 0;

  if (out == NULL) return NULL;
  for (int i = 0; i < sk_X509_num(bundle); i++) {
    X509 *ca = sk_X509_value(bundle, i);

    if (has_namesake(bundle, ca) && !has_signed(ca, shown, &tries)) continue;
    if (X509_add_cert(out, ca, X509_ADD_FLAG_UP_REF)) continue;
    sk_X509_pop_free(out, X509_free);
    return NULL;
  }
  ERR_clear_error(); /* of signatures that did not fit */
  return out;
}

/* ---- the issuer -------------------------------------------------------- */

bool tls_is_foreign(int error)
{
  switch (error) {
  case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
  case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
  case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
  case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
  case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
  case X509_V_ERR_CERT_UNTRUSTED:
  case X509_V_ERR_CERT_SIGNATURE_FAILURE: return true;
  default: return false;
  }
}

static X509 *first_of_bundle(const STACK_OF(X509) * bundle,
                             const STACK_OF(X509) * chain)
{
  for (int i = 1; i < sk_X509_num(chain); i++)
    for (int j = 0; j < sk_X509_num(bundle); j++)
      if (X509_cmp(sk_X509_value(chain, i), sk_X509_value(bundle, j)) == 0)
        return sk_X509_value(bundle, j);
  return NULL;
}

/* Would a peer with the same CAs accept our certificate? Its time is left
   aside: it is judged at each handshake, by then the clock may be right. */
static int find_issuer(OSSL_LIB_CTX *lib, struct tls_papers *p,
                       struct tls_error *error)
{
  X509_STORE_CTX *ctx = X509_STORE_CTX_new_ex(lib, NULL);
  STACK_OF(X509) *anchors = tls_bundle_for(p->ca, p->chain);
  X509 *leaf = sk_X509_value(p->chain, 0);
  int rc = -1;

  if (ctx == NULL || anchors == NULL ||
      !X509_STORE_CTX_init(ctx, NULL, leaf, p->chain)) {
    tls_fail_openssl(error, "certificate: cannot be checked");
    goto out;
  }
  X509_STORE_CTX_set0_trusted_stack(ctx, anchors);
  X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_PARTIAL_CHAIN |
                                    X509_V_FLAG_NO_CHECK_TIME);
  X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(ctx),
                                   TLS_SECURITY_LEVEL);
  if (X509_verify_cert(ctx) == 1)
    p->issuer = first_of_bundle(p->ca, X509_STORE_CTX_get0_chain(ctx));
  if (p->issuer == NULL) {
    int why = X509_STORE_CTX_get_error(ctx);

    tls_fail(error,
             why == X509_V_OK || tls_is_foreign(why)
                 ? "certificate does not belong to the CA: %s"
                 : "certificate: peers would refuse it: %s",
             X509_verify_cert_error_string(why));
    goto out;
  }
  X509_up_ref(p->issuer);
  rc = 0;

out:
  X509_STORE_CTX_free(ctx);
  sk_X509_pop_free(anchors, X509_free);
  return rc;
}

int tls_issuer(const char *bundle, const char *cert, uint8_t fingerprint[32],
               struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_papers p = {0};
  int rc = -1;

  if (lib == NULL) return -1;
  if (read_papers(&p, bundle, cert, error) == 0 &&
      find_issuer(lib, &p, error) == 0) {
    rc = tls_fingerprint_of(p.issuer, fingerprint);
    if (rc != 0) tls_fail_openssl(error, "certificate: no fingerprint");
  }
  tls_papers_free(&p);
  return tls_leave(rc);
}

/* ---- everything -------------------------------------------------------- */

/* What peers would object to, they need not be shown. */
static int check_leaf(OSSL_LIB_CTX *lib, X509 *leaf, struct tls_error *error)
{
  if (X509_check_ca(leaf) != 0)
    return tls_fail(error, "certificate is one of a CA, not of a node");
  if (X509_check_purpose(leaf, X509_PURPOSE_SSL_SERVER, 0) != 1 ||
      X509_check_purpose(leaf, X509_PURPOSE_SSL_CLIENT, 0) != 1)
    return tls_fail(error, "certificate is not for servers and clients both");
  if (!tls_good_key(lib, X509_get0_pubkey(leaf)))
    return tls_fail(error,
                    "certificate: its key is weak or of a kind not accepted");
  return 0;
}

/* RFC 8446, section 4.4.2: each has a length of 3 bytes and no extensions,
   whose length has 2; the message has 4 of its own. */
static int check_size(const struct tls_papers *p, struct tls_error *error)
{
  size_t size = 4 + 4;
  int n = sk_X509_num(p->chain);

  for (int i = 0; i <= n; i++) {
    X509 *cert = i < n ? sk_X509_value(p->chain, i) : p->issuer;
    int len = i2d_X509(cert, NULL);

    if (i > 0 && i < n && X509_cmp(cert, p->issuer) == 0) continue;
    if (len < 0) return tls_fail_openssl(error, "certificate");
    size += 3 + (size_t)len + 2;
  }
  if (size > TLS_CHAIN_MAX)
    return tls_fail(error,
                    "certificate: with the others in its text it has "
                    "%zu bytes, and may have %d",
                    size, TLS_CHAIN_MAX);
  return 0;
}

int tls_papers_read(OSSL_LIB_CTX *lib, struct tls_papers *p, const char *ca,
                    const char *cert, const char *key, struct tls_error *error)
{
  X509 *leaf;

  *p = (struct tls_papers){0};
  if (read_papers(p, ca, cert, error) != 0) return -1;
  leaf = sk_X509_value(p->chain, 0);
  p->key = tls_read_key(key, leaf, "key", error);
  if (p->key == NULL || find_issuer(lib, p, error) != 0) return -1;
  if (check_leaf(lib, leaf, error) != 0) return -1;
  return check_size(p, error);
}
