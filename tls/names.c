/*
** names.c: which name in a certificate is the identity of a node.
**
** Certificates that a cluster makes itself have the URI
**
**     quorate:<cluster id, 16 hex>/<node id, 16 hex>
**
** among their subject alternative names. It must be the only URI there, and of
** exactly that form; names of other types (DNS, IP) do not matter.
**
** Where an outside PKI makes certificates, it may not be willing to make such
** URIs. Then the operator gives a pattern for DNS names, and URIs do not
** matter. Exactly one of the DNS names must match. Node ids are needed all the
** same, for the log and the votes, so they are made of the name, see
** tls_identity_named(). That a name is of one node for ever is the operator's
** promise; two names whose ids are the same are as likely as a collision of
** 63 bits of SHA-256.
**
** A certificate's names come from whoever made it, with any bytes in them.
** Only what has passed a check of each byte here is ever shown or kept.
*/
#include "internal.h"

#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SCHEME_LEN (sizeof TLS_URI_SCHEME - 1)
#define URI_LEN (SCHEME_LEN + 16 + 1 + 16)

/* ---- the URI ----------------------------------------------------------- */

/* Exactly 16 lower-case hexadecimal digits. */
static bool parse_hex16(const uint8_t *text, uint64_t *value)
{
  uint64_t v = 0;

  for (int i = 0; i < 16; i++) {
    unsigned digit;

    if (text[i] >= '0' && text[i] <= '9')
      digit = text[i] - (unsigned)'0';
    else if (text[i] >= 'a' && text[i] <= 'f')
      digit = text[i] - (unsigned)'a' + 10;
    else
      return false;
    v = v << 4 | digit;
  }
  *value = v;
  return true;
}

static bool parse_uri(const ASN1_STRING *string, struct tls_identity *out)
{
  const uint8_t *uri = ASN1_STRING_get0_data(string);

  return ASN1_STRING_length(string) == (int)URI_LEN &&
         memcmp(uri, TLS_URI_SCHEME, SCHEME_LEN) == 0 &&
         parse_hex16(uri + SCHEME_LEN, &out->cluster) &&
         uri[SCHEME_LEN + 16] == '/' &&
         parse_hex16(uri + SCHEME_LEN + 17, &out->node) && out->node != 0;
}

/* ---- the pattern ------------------------------------------------------- */

static char to_lower(char c)
{
  return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_star(char c)
{
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
}

int tls_names_set(struct tls_names *names, const char *pattern,
                  uint64_t cluster, struct tls_error *error)
{
  size_t n = pattern == NULL ? 0 : strnlen(pattern, TLS_NAME_SIZE);
  int stars = 0;

  *names = (struct tls_names){.cluster = cluster};
  if (n == 0) return tls_fail(error, "name pattern: empty");
  if (n >= TLS_NAME_SIZE) return tls_fail(error, "name pattern: too long");
  for (size_t i = 0; i < n; i++) {
    char c = to_lower(pattern[i]);

    if (c == '*')
      stars++;
    else if (!is_star(c) && c != '.' && c != '_')
      return tls_fail(error, "name pattern: only a-z, 0-9, '-', '_', '.' and "
                             "one '*' may be in it");
    names->pattern[i] = c;
  }
  if (stars != 1)
    return tls_fail(error, "name pattern: it must have one '*', it has %d",
                    stars);
  return 0;
}

/* Whether a name matches; then it is in *out, in lower case. */
static bool match(const struct tls_names *names, const ASN1_STRING *string,
                  char out[TLS_NAME_SIZE])
{
  const char *text = (const char *)ASN1_STRING_get0_data(string);
  const char *star = strchr(names->pattern, '*');
  size_t head = (size_t)(star - names->pattern), tail = strlen(star + 1);
  size_t n = (size_t)ASN1_STRING_length(string);
  char name[TLS_NAME_SIZE];

  if (n >= sizeof name || n < head + 1 + tail) return false;
  for (size_t i = 0; i < n; i++)
    name[i] = to_lower(text[i]);
  name[n] = '\0';
  if (memcmp(name, names->pattern, head) != 0 ||
      memcmp(name + n - tail, star + 1, tail) != 0)
    return false;
  for (size_t i = head; i < n - tail; i++)
    if (!is_star(name[i])) return false;
  memcpy(out, name, n + 1);
  return true;
}

static const char *identify_by_name(OSSL_LIB_CTX *lib, struct tls_identity *out)
{
  char text[sizeof TLS_URI_SCHEME + 16 + 1 + TLS_NAME_SIZE];
  uint8_t digest[32];
  size_t len = 0;
  int n = snprintf(text, sizeof text, TLS_URI_SCHEME "%016" PRIx64 "/%s",
                   out->cluster, out->name);

  if (!EVP_Q_digest(lib, "SHA256", NULL, text, (size_t)n, digest, &len) ||
      len != sizeof digest)
    return "its name has no digest";
  out->node = 0;
  for (int i = 0; i < 8; i++)
    out->node = out->node << 8 | digest[i];
  out->node |= 1;
  return NULL;
}

/* ---- both -------------------------------------------------------------- */

static const char *find_uri(const GENERAL_NAMES *list, struct tls_identity *out)
{
  const ASN1_STRING *uri = NULL;
  int n = 0;

  for (int i = 0; i < sk_GENERAL_NAME_num(list); i++) {
    const GENERAL_NAME *name = sk_GENERAL_NAME_value(list, i);

    if (name->type != GEN_URI) continue;
    uri = name->d.uniformResourceIdentifier;
    n++;
  }
  if (n == 0) return "it names no node";
  if (n > 1) return "it names more than one node";
  if (!parse_uri(uri, out)) return "its name is not quorate:<cluster>/<node>";
  return NULL;
}

static const char *find_name(OSSL_LIB_CTX *lib, const GENERAL_NAMES *list,
                             const struct tls_names *names,
                             struct tls_identity *out)
{
  int dns = 0, n = 0;

  for (int i = 0; i < sk_GENERAL_NAME_num(list); i++) {
    const GENERAL_NAME *name = sk_GENERAL_NAME_value(list, i);

    if (name->type != GEN_DNS) continue;
    dns++;
    if (match(names, name->d.dNSName, out->name)) n++;
  }
  if (dns == 0) return "it names no node";
  if (n == 0) return "its name does not match the pattern";
  if (n > 1) return "it names more than one node";
  out->cluster = names->cluster;
  return identify_by_name(lib, out);
}

const char *tls_identity_of(OSSL_LIB_CTX *lib, X509 *cert,
                            const struct tls_names *names,
                            struct tls_identity *out)
{
  GENERAL_NAMES *list;
  const char *why;
  int critical;

  *out = (struct tls_identity){0};
  list = X509_get_ext_d2i(cert, NID_subject_alt_name, &critical, NULL);
  if (list == NULL)
    return critical == -1 ? "it names no node" : "its names are malformed";
  if (names == NULL || names->pattern[0] == '\0')
    why = find_uri(list, out);
  else
    why = find_name(lib, list, names, out);
  GENERAL_NAMES_free(list);
  return why;
}

/* ---- times ------------------------------------------------------------- */

int tls_seconds_of(const ASN1_TIME *time, int64_t *seconds)
{
  struct tm tm;

  if (!ASN1_TIME_to_tm(time, &tm)) return -1;
  *seconds = timegm(&tm);
  return 0;
}

int tls_certificate_times(const char *text, int64_t *begins, int64_t *ends,
                          struct tls_error *error)
{
  X509 *cert;
  int rc = 0;

  if (tls_enter(error) == NULL) return -1;
  cert = tls_read_certificate(text, "certificate", error);
  if (cert == NULL) return tls_leave(-1);
  if (tls_seconds_of(X509_get0_notBefore(cert), begins) != 0 ||
      tls_seconds_of(X509_get0_notAfter(cert), ends) != 0)
    rc = tls_fail(error, "certificate: its times are malformed");
  X509_free(cert);
  return tls_leave(rc);
}

/* ---- of a text --------------------------------------------------------- */

static int identity_of_text(OSSL_LIB_CTX *lib, const char *text,
                            const struct tls_names *names,
                            struct tls_identity *out, int64_t *expires,
                            struct tls_error *error)
{
  X509 *cert = tls_read_certificate(text, "certificate", error);
  const char *why;
  int rc = 0;

  if (cert == NULL) return -1;
  why = tls_identity_of(lib, cert, names, out);
  if (why != NULL)
    rc = tls_fail(error, "certificate: %s", why);
  else if (tls_seconds_of(X509_get0_notAfter(cert), expires) != 0)
    rc = tls_fail(error, "certificate: its end of life is malformed");
  X509_free(cert);
  return rc;
}

int tls_identity(const char *text, uint64_t *cluster, uint64_t *node,
                 int64_t *expires, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_identity identity;

  if (lib == NULL) return -1;
  if (identity_of_text(lib, text, NULL, &identity, expires, error) != 0)
    return tls_leave(-1);
  *cluster = identity.cluster;
  *node = identity.node;
  return tls_leave(0);
}

int tls_identity_named(const char *text, const char *pattern, uint64_t cluster,
                       uint64_t *node, char *name, size_t size,
                       int64_t *expires, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  struct tls_identity identity;
  struct tls_names names;

  if (lib == NULL) return -1;
  if (tls_names_set(&names, pattern, cluster, error) != 0 ||
      identity_of_text(lib, text, &names, &identity, expires, error) != 0)
    return tls_leave(-1);
  if (strlen(identity.name) >= size)
    return tls_leave(tls_fail(error, "certificate: its name is too long"));
  strcpy(name, identity.name);
  *node = identity.node;
  return tls_leave(0);
}
