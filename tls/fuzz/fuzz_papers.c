/*
** fuzz_papers.c: certificates, bundles of CAs, keys and requests.
**
** An input: u8 what, u8 pattern, then operations on the PEM texts of a cluster
** that is made once (a CA, its node, an old CA, a DNS name's certificate):
** what % 4 says which text the bytes are about: the CAs, the certificate, the
** key, a request. what, bit 2: the bytes are DER, put into PEM here; bit 3: they
** are XORed over the DER of the good one, from the offset of their first two
** bytes on; bit 4: good ones follow in the same text.
**
** What must hold: no leaks, a clean error queue, one line that says why; what
** one function takes of a text the others take, too.
*/
#include "../internal.h"
#include "fuzz.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#define CLUSTER UINT64_C(0x00c0ffee12345678)
#define NODE 5

const char *const fuzz_corpus = "tls/fuzz/corpus/papers";

struct papers {
  char *text[4]; /* CA, certificate, key, request */
  uint8_t *der[4];
  long len[4];
};

static const char *const labels[] = {"CERTIFICATE", "CERTIFICATE",
                                     "PRIVATE KEY", "CERTIFICATE REQUEST"};

static void take_apart(const char *text, uint8_t **der, long *len)
{
  BIO *bio = BIO_new_mem_buf(text, -1);
  char *name, *header;

  must(bio && PEM_read_bio(bio, &name, &header, der, len));
  OPENSSL_free(name);
  OPENSSL_free(header);
  BIO_free(bio);
}

static char *put_together(const char *label, const uint8_t *der, long len)
{
  BIO *bio = BIO_new(BIO_s_mem());
  char *data, *text;
  long n;

  must(bio);
  PEM_write_bio(bio, label, "", der, len);
  n = BIO_get_mem_data(bio, &data);
  text = text_copy(data, (size_t)n);
  BIO_free(bio);
  return text;
}

/* The texts are the same in each process but for their keys; they are made
   once. */
static const struct papers *good_papers(void)
{
  static struct papers p;
  struct tls_error error;
  char *ca_key;

  if (p.text[0]) return &p;
  must(tls_make_ca(CLUSTER, &p.text[0], &ca_key, &error) == 0);
  must(tls_make_request(&p.text[3], &p.text[2], &error) == 0);
  must(tls_sign_request(p.text[0], ca_key, p.text[3], CLUSTER, NODE, 9,
                        &p.text[1], &error) == 0);
  tls_free_text(ca_key);
  for (unsigned i = 0; i < 4; i++)
    take_apart(p.text[i], &p.der[i], &p.len[i]);
  return &p;
}

/* ---- the text that the input makes ------------------------------------- */

static char *make_text(struct input in, uint8_t what)
{
  const struct papers *good = good_papers();
  unsigned which = what % 4;
  size_t at, n, got;
  char *text, *both;
  uint8_t *der;

  if (!(what & 12)) {
    text = text_copy(in.at, input_left(&in));
  } else if (what & 8) {
    n = (size_t)good->len[which];
    der = exact_copy(good->der[which], n);
    at = (size_t)input_number(&in, 2);
    for (; at < n && input_left(&in); at++)
      der[at] ^= input_byte(&in);
    text = put_together(labels[which], der, (long)n);
    free(der);
  } else {
    got = input_left(&in);
    text = put_together(labels[which], in.at, (long)got);
  }
  if (!(what & 16)) return text;
  must(asprintf(&both, "%s%s", text, good->text[which]) > 0);
  free(text);
  return both;
}

/* ---- what must hold ---------------------------------------------------- */

static bool told(int rc, struct tls_error *error)
{
  must(ERR_peek_error() == 0);
  if (rc == 0) return true;
  must(rc == -1 && error->text[0] && !strchr(error->text, '\n'));
  error->text[0] = 0;
  return false;
}

static void try_certificate(const char *text, uint8_t pattern)
{
  static const char *const patterns[] = {"*.db.example", "*", "n*", "q*e"};
  struct tls_error error = {""};
  uint8_t print[32], prints[8][32];
  uint64_t cluster, node;
  int64_t begins, ends, expires;
  char name[254];
  unsigned n;
  bool one = told(tls_fingerprint(text, print, &error), &error);
  bool all = told(tls_fingerprints(text, prints, 8, &n, &error), &error);

  must(!all || (one && n > 0 && memcmp(print, prints[0], 32) == 0));
  must(all || n == 0);
  if (told(tls_certificate_times(text, &begins, &ends, &error), &error))
    must(one);
  if (told(tls_identity(text, &cluster, &node, &expires, &error), &error))
    must(one && node != 0);
  if (told(tls_identity_named(text, patterns[pattern % 4], CLUSTER, &node, name,
                              sizeof name, &expires, &error),
           &error)) {
    must(one && node & 1 && name[0]);
    for (const char *p = name; *p; p++)
      must(strchr("abcdefghijklmnopqrstuvwxyz0123456789._-", *p));
  }
}

static void try_all(const char *ca, const char *cert, const char *key)
{
  struct tls_context *context = NULL;
  struct tls_error error = {""};
  uint8_t issuer[32];
  bool issued = told(tls_issuer(ca, cert, issuer, &error), &error);

  if (told(tls_context_new(ca, cert, key, &context, &error), &error)) {
    must(issued && context);
    tls_context_unref(context);
  }
}

static void try_request(const char *request)
{
  static char *ca, *key;
  struct tls_error error = {""};
  uint64_t cluster, node;
  int64_t expires;
  char *cert = NULL;

  if (!ca) must(tls_make_ca(CLUSTER, &ca, &key, &error) == 0);
  if (!told(tls_sign_request(ca, key, request, CLUSTER, 9, 3, &cert, &error),
            &error))
    return;
  /* Nothing but the key is taken from it. */
  must(tls_identity(cert, &cluster, &node, &expires, &error) == 0);
  must(cluster == CLUSTER && node == 9);
  tls_free_text(cert);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct input in = input_of(data, size);
  uint8_t what = input_byte(&in), pattern = input_byte(&in);
  const struct papers *good = good_papers();
  char *text = make_text(in, what);

  switch (what % 4) {
  case 0:
    try_certificate(text, pattern);
    try_all(text, good->text[1], good->text[2]);
    break;
  case 1:
    try_certificate(text, pattern);
    try_all(good->text[0], text, good->text[2]);
    break;
  case 2: try_all(good->text[0], good->text[1], text); break;
  default: try_request(text); break;
  }
  free(text);
  return 0;
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  const struct papers *good = good_papers();
  uint8_t bytes[4096] = {0};
  char *text;

  for (uint8_t which = 0; which < 4; which++) {
    size_t n = strlen(good->text[which]);

    must(n + 2 < sizeof bytes);
    bytes[0] = which;
    memcpy(bytes + 2, good->text[which], n);
    seed(bytes, n + 2);
    bytes[0] = which | 4;
    memcpy(bytes + 2, good->der[which], (size_t)good->len[which]);
    seed(bytes, (size_t)good->len[which] + 2);
    memset(bytes + 2, 0, 8);
    bytes[0] = which | 8; /* nothing is changed */
    seed(bytes, 4);
    bytes[0] = which | 8 | 16;
    seed(bytes, 4);
  }
  /* One that nobody is to be asked the password of. */
  bytes[0] = 2;
  text = put_together("ENCRYPTED PRIVATE KEY", good->der[2], good->len[2]);
  memcpy(bytes + 2, text, strlen(text));
  seed(bytes, 2 + strlen(text));
  free(text);
}
