/*
** library.c: OpenSSL as this room uses it: one library context of its own, the
** error queue, PEM texts, randomness and digests.
**
** Every OpenSSL object of this room belongs to a private OSSL_LIB_CTX, which
** is made once and never freed: it knows nothing of the providers, engines and
** properties that the host process or its openssl.cnf set up, and the host
** does not see it.
**
** Two things in OpenSSL are global to the process all the same. The first is
** its atexit handler, which would take the library away from threads that
** still run while the process exits; OPENSSL_INIT_NO_ATEXIT, given before
** anything else, keeps it from being registered (if the host has used OpenSSL
** before us, the choice was its own). The second is the reading of
** openssl.cnf. OPENSSL_INIT_NO_LOAD_CONFIG would spare it, but for the whole
** process and for good: a host that uses OpenSSL after us would silently lose
** its own settings, a policy of the administrator's among them. So the file is
** left to be read as if we were not there, and context.c sets explicitly all
** that its section for TLS could have changed in our contexts.
*/
#include "internal.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A PEM text is small; a larger one is not what the caller believes. */
#define TEXT_MAX (1024 * 1024)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static OSSL_LIB_CTX *library;

static void start(void)
{
  if (!OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL)) return;
  library = OSSL_LIB_CTX_new();
}

OSSL_LIB_CTX *tls_enter(struct tls_error *error)
{
  (void)pthread_once(&once, start);
  ERR_clear_error();
  if (library == NULL) tls_fail(error, "tls: OpenSSL does not start");
  return library;
}

int tls_leave(int rc)
{
  ERR_clear_error();
  return rc;
}

/* ---- errors ------------------------------------------------------------ */

int tls_fail(struct tls_error *error, const char *format, ...)
{
  va_list args;

  if (error == NULL) return -1;
  va_start(args, format);
  vsnprintf(error->text, sizeof error->text, format, args);
  va_end(args);
  return -1;
}

int tls_fail_openssl(struct tls_error *error, const char *format, ...)
{
  unsigned long code = ERR_peek_last_error();
  const char *reason = NULL;
  va_list args;
  size_t used;

  if (error == NULL) return -1;
  va_start(args, format);
  vsnprintf(error->text, sizeof error->text, format, args);
  va_end(args);
  if (code != 0) reason = ERR_reason_error_string(code);
  used = strlen(error->text);
  if (reason != NULL)
    snprintf(error->text + used, sizeof error->text - used, ": %s", reason);
  return -1;
}

/* ---- texts ------------------------------------------------------------- */

void tls_free_text(char *text)
{
  if (text == NULL) return;
  OPENSSL_cleanse(text, strlen(text));
  free(text);
}

BIO *tls_bio_of_text(const char *text, const char *what,
                     struct tls_error *error)
{
  size_t n = text == NULL ? 0 : strnlen(text, TEXT_MAX + 1);
  BIO *bio;

  if (n == 0 || n > TEXT_MAX) {
    tls_fail(error, n == 0 ? "%s: empty" : "%s: too long", what);
    return NULL;
  }
  bio = BIO_new_ex(library, BIO_s_mem());
  if (bio == NULL || BIO_write(bio, text, (int)n) != (int)n) {
    tls_fail(error, "%s: out of memory", what);
    BIO_free(bio);
    return NULL;
  }
  return bio;
}

char *tls_text_of_bio(BIO *bio)
{
  char *data;
  long n = BIO_get_mem_data(bio, &data);
  char *text;

  if (n < 0) return NULL;
  text = malloc((size_t)n + 1);
  if (text == NULL) return NULL;
  if (n > 0) memcpy(text, data, (size_t)n);
  text[n] = '\0';
  return text;
}

/* ---- PEM --------------------------------------------------------------- */

/* An encrypted key is refused: without this callback OpenSSL would ask for
   the password on the terminal of the host process. */
static int no_password(char *buf, int size, int rwflag, void *arg)
{
  (void)buf, (void)size, (void)rwflag, (void)arg;
  return -1;
}

/* The next certificate; NULL when there is none or it is not well-formed. */
static X509 *next_certificate(BIO *bio)
{
  X509 *cert = X509_new_ex(library, NULL);

  if (cert != NULL &&
      PEM_read_bio_X509(bio, &cert, no_password, NULL) == NULL) {
    X509_free(cert);
    cert = NULL;
  }
  return cert;
}

static bool at_end_of_pem(void)
{
  unsigned long code = ERR_peek_last_error();

  return ERR_GET_LIB(code) == ERR_LIB_PEM &&
         ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
}

STACK_OF(X509) * tls_read_certificates(const char *text, const char *what,
                                       struct tls_error *error)
{
  STACK_OF(X509) *certs = NULL;
  BIO *bio = tls_bio_of_text(text, what, error);
  X509 *cert;

  if (bio == NULL) return NULL;
  certs = sk_X509_new_null();
  if (certs == NULL) goto fail;
  while ((cert = next_certificate(bio)) != NULL) {
    if (!sk_X509_push(certs, cert)) {
      X509_free(cert);
      goto fail;
    }
  }
  if (sk_X509_num(certs) == 0 || !at_end_of_pem()) goto fail;
  ERR_clear_error();
  BIO_free(bio);
  return certs;

fail:
  tls_fail_openssl(error, "%s: not a certificate in PEM", what);
  sk_X509_pop_free(certs, X509_free);
  BIO_free(bio);
  return NULL;
}

X509 *tls_read_certificate(const char *text, const char *what,
                           struct tls_error *error)
{
  BIO *bio = tls_bio_of_text(text, what, error);
  X509 *cert;

  if (bio == NULL) return NULL;
  cert = next_certificate(bio);
  if (cert == NULL)
    tls_fail_openssl(error, "%s: not a certificate in PEM", what);
  BIO_free(bio);
  return cert;
}

/* The next block of a text, of any kind, decoded. One that is encrypted has a
   kind or a header of its own. 0: there is none, or it is malformed. */
struct block {
  char *kind, *header;
  unsigned char *data;
  long len;
};

static int next_block(BIO *bio, struct block *b)
{
  *b = (struct block){0};
  return PEM_read_bio_ex(bio, &b->kind, &b->header, &b->data, &b->len,
                         PEM_FLAG_SECURE | PEM_FLAG_EAY_COMPATIBLE);
}

static void free_block(struct block *b)
{
  OPENSSL_secure_free(b->kind);
  OPENSSL_secure_free(b->header);
  OPENSSL_secure_clear_free(b->data, (size_t)b->len);
}

static bool is_key(const struct block *b)
{
  static const char end[] = "PRIVATE KEY";
  size_t n = strlen(b->kind);

  return n >= sizeof end - 1 &&
         strcmp(b->kind + n - (sizeof end - 1), end) == 0;
}

/* NULL: it is encrypted, or malformed. */
static EVP_PKEY *key_of_block(const struct block *b)
{
  const unsigned char *at = b->data;

  if (b->header[0] != '\0' || strcmp(b->kind, PEM_STRING_PKCS8) == 0)
    return NULL;
  return d2i_AutoPrivateKey_ex(NULL, &at, b->len, library, NULL);
}

/* The blocks are taken one by one, since the decoders of OpenSSL that would
   find a key by themselves may read on to the end. */
EVP_PKEY *tls_read_key(const char *text, X509 *cert, const char *what,
                       struct tls_error *error)
{
  BIO *bio = tls_bio_of_text(text, what, error);
  EVP_PKEY *key = NULL;
  bool well_formed = true;
  struct block b;
  int others = 0;

  if (bio == NULL) return NULL;
  while (well_formed && key == NULL && next_block(bio, &b)) {
    if (is_key(&b)) {
      key = key_of_block(&b);
      well_formed = key != NULL;
    }
    if (key != NULL && !X509_check_private_key(cert, key)) {
      EVP_PKEY_free(key);
      key = NULL;
      others++;
      ERR_clear_error();
    }
    free_block(&b);
  }
  if (key == NULL && others > 0 && well_formed && at_end_of_pem())
    tls_fail(error, "%s does not belong to the certificate", what);
  else if (key == NULL)
    tls_fail_openssl(error, "%s: not an unencrypted private key in PEM", what);
  BIO_free(bio);
  return key;
}

/* ---- randomness and digests -------------------------------------------- */

int tls_random(void *buf, size_t n, struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);

  if (lib == NULL) return -1;
  if (RAND_bytes_ex(lib, buf, n, 0) != 1)
    return tls_leave(tls_fail_openssl(error, "tls: no randomness"));
  return tls_leave(0);
}

int tls_digest(const void *data, size_t n, uint8_t out[32],
               struct tls_error *error)
{
  OSSL_LIB_CTX *lib = tls_enter(error);
  size_t len = 0;

  if (lib == NULL) return -1;
  if (!EVP_Q_digest(lib, "SHA256", NULL, data, n, out, &len) || len != 32)
    return tls_leave(tls_fail_openssl(error, "tls: no SHA-256"));
  return tls_leave(0);
}

bool tls_equal(const void *a, const void *b, size_t n)
{
  return CRYPTO_memcmp(a, b, n) == 0;
}
