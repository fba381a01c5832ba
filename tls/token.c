/*
** token.c: join tokens as text.
**
** The text is "quorate1-" and the base32 (RFC 4648, lower case, no padding) of
**
**     version           1 byte, 1
**     cluster           8 bytes, big-endian
**     CA fingerprint    32 bytes
**     secret            16 bytes
**     name              1 byte of length, then the bytes
**     address           1 byte of length, then the bytes
**     checksum          4 bytes, the first of the SHA-256 of all before
**
** Letters may come in either case, and white space around the token is not
** part of it: tokens are pasted, and read out over the telephone. Otherwise
** there is one text for each token: bits left over after the last byte must
** be zero. Copies of the secret are wiped.
*/
#include "internal.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "quorate1-"
#define PREFIX_LEN (sizeof PREFIX - 1)
#define VERSION 1
#define CHECKSUM_BYTES 4
#define FIXED_BYTES (1 + 8 + 32 + TLS_SECRET_BYTES + 1 + 1 + CHECKSUM_BYTES)
#define TOKEN_MAX (FIXED_BYTES + 63 + 255)

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

/* ---- base32 ------------------------------------------------------------ */

/* Writes the digits and a terminating zero. */
static void base32_encode(const uint8_t *data, size_t n, char *text)
{
  unsigned bits = 0, acc = 0;

  for (size_t i = 0; i < n; i++) {
    acc = (acc << 8 | data[i]) & 0xfff;
    for (bits += 8; bits >= 5; bits -= 5)
      *text++ = alphabet[acc >> (bits - 5) & 31];
  }
  if (bits > 0) *text++ = alphabet[acc << (5 - bits) & 31];
  *text = '\0';
}

static int base32_digit(char c)
{
  if (c >= 'a' && c <= 'z') return c - 'a';
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= '2' && c <= '7') return c - '2' + 26;
  return -1;
}

/* Decodes n digits into at most max bytes. */
static int base32_decode(const char *text, size_t n, uint8_t *data, size_t max,
                         size_t *len, struct tls_error *error)
{
  unsigned bits = 0, acc = 0;
  size_t out = 0;

  for (size_t i = 0; i < n; i++) {
    int digit = base32_digit(text[i]);

    if (digit < 0)
      return tls_fail(error, "token: character %zu does not belong there",
                      PREFIX_LEN + i + 1);
    acc = (acc << 5 | (unsigned)digit) & 0xfff;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    if (out == max) return tls_fail(error, "token: too long");
    data[out++] = (uint8_t)(acc >> bits);
  }
  /* What is left must be less than a digit, and zero. */
  if (bits >= 5 || (acc & ((1u << bits) - 1)) != 0)
    return tls_fail(error, "token: mistyped or cut off");
  *len = out;
  return 0;
}

/* ---- fields ------------------------------------------------------------ */

/* Names and addresses end up in messages: no control characters in them. */
static bool is_plain(const uint8_t *text, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (text[i] < 0x20 || text[i] == 0x7f) return false;
  return n > 0;
}

static uint8_t *put(uint8_t *at, const void *data, size_t n)
{
  memcpy(at, data, n);
  return at + n;
}

static int put_text(uint8_t **at, const char *text, size_t size,
                    const char *what, struct tls_error *error)
{
  size_t n = strnlen(text, size);

  if (n == size || !is_plain((const uint8_t *)text, n))
    return tls_fail(error, "token: %s is empty, too long or not plain text",
                    what);
  *(*at)++ = (uint8_t)n;
  *at = put(*at, text, n);
  return 0;
}

/* A bounded cursor over the decoded bytes. */
struct cursor {
  const uint8_t *at, *end;
};

static bool take(struct cursor *c, void *out, size_t n)
{
  if ((size_t)(c->end - c->at) < n) return false;
  memcpy(out, c->at, n);
  c->at += n;
  return true;
}

static bool take_text(struct cursor *c, char *text, size_t size)
{
  uint8_t n;

  if (!take(c, &n, 1) || n >= size || !take(c, text, n)) return false;
  text[n] = '\0';
  return is_plain((const uint8_t *)text, n);
}

static bool take_fields(struct cursor *c, struct tls_token *token)
{
  uint8_t cluster[8];

  if (!take(c, cluster, sizeof cluster)) return false;
  token->cluster = 0;
  for (size_t i = 0; i < sizeof cluster; i++)
    token->cluster = token->cluster << 8 | cluster[i];
  return take(c, token->ca_fingerprint, sizeof token->ca_fingerprint) &&
         take(c, token->secret, sizeof token->secret) &&
         take_text(c, token->name, sizeof token->name) &&
         take_text(c, token->address, sizeof token->address) && c->at == c->end;
}

/* ---- the two directions ------------------------------------------------ */

int tls_token_encode(const struct tls_token *token, char **text,
                     struct tls_error *error)
{
  uint8_t bytes[TOKEN_MAX], digest[32];
  uint8_t *at = bytes;
  size_t n;
  int rc = -1;

  *text = NULL;
  *at++ = VERSION;
  for (int shift = 56; shift >= 0; shift -= 8)
    *at++ = (uint8_t)(token->cluster >> shift);
  at = put(at, token->ca_fingerprint, sizeof token->ca_fingerprint);
  at = put(at, token->secret, sizeof token->secret);
  if (put_text(&at, token->name, sizeof token->name, "name", error) != 0 ||
      put_text(&at, token->address, sizeof token->address, "address", error) !=
          0)
    goto out;
  if (tls_digest(bytes, (size_t)(at - bytes), digest, error) != 0) goto out;
  at = put(at, digest, CHECKSUM_BYTES);

  n = (size_t)(at - bytes);
  *text = malloc(PREFIX_LEN + (n * 8 + 4) / 5 + 1);
  if (*text == NULL) {
    tls_fail(error, "token: out of memory");
    goto out;
  }
  memcpy(*text, PREFIX, PREFIX_LEN);
  base32_encode(bytes, n, *text + PREFIX_LEN);
  rc = 0;

out:
  OPENSSL_cleanse(bytes, sizeof bytes);
  return rc;
}

static bool is_space(char c)
{
  return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Cuts white space off both ends. */
static const char *trim(const char *text, size_t *len)
{
  size_t n = strlen(text);

  while (n > 0 && is_space(text[n - 1]))
    n--;
  while (n > 0 && is_space(text[0]))
    text++, n--;
  *len = n;
  return text;
}

static bool has_prefix(const char *text, size_t n)
{
  if (n < PREFIX_LEN) return false;
  for (size_t i = 0; i < PREFIX_LEN; i++) {
    char c = text[i];

    if (c >= 'A' && c <= 'Z') c = (char)(c - 'A' + 'a');
    if (c != PREFIX[i]) return false;
  }
  return true;
}

/* Checks length, checksum and version, then takes the fields. */
static int decode_bytes(const uint8_t *bytes, size_t n, struct tls_token *token,
                        struct tls_error *error)
{
  struct cursor c;
  uint8_t digest[32];

  if (n < FIXED_BYTES) return tls_fail(error, "token: mistyped or cut off");
  if (tls_digest(bytes, n - CHECKSUM_BYTES, digest, error) != 0) return -1;
  if (!tls_equal(digest, bytes + n - CHECKSUM_BYTES, CHECKSUM_BYTES))
    return tls_fail(error, "token: mistyped or cut off");
  if (bytes[0] != VERSION)
    return tls_fail(error, "token: version %d is not known here", bytes[0]);
  c = (struct cursor){bytes + 1, bytes + n - CHECKSUM_BYTES};
  if (!take_fields(&c, token)) return tls_fail(error, "token: malformed");
  return 0;
}

int tls_token_decode(const char *text, struct tls_token *token,
                     struct tls_error *error)
{
  uint8_t bytes[TOKEN_MAX];
  size_t len, n = 0;
  int rc;

  memset(token, 0, sizeof *token);
  text = trim(text, &len);
  if (!has_prefix(text, len))
    return tls_fail(error, "token: does not begin with " PREFIX);
  rc = base32_decode(text + PREFIX_LEN, len - PREFIX_LEN, bytes, sizeof bytes,
                     &n, error);
  if (rc == 0) rc = decode_bytes(bytes, n, token, error);
  if (rc != 0) OPENSSL_cleanse(token, sizeof *token);
  OPENSSL_cleanse(bytes, sizeof bytes);
  return rc;
}
