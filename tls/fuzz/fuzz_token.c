/*
** fuzz_token.c: join tokens, and patterns of names.
**
** An input: u8 what, then: 0: the text of a token; 1: the bytes of one, which
** get their checksum and are put in base32 here; 2: the fields of one, to be
** encoded; 3: a pattern, a zero, and a certificate's name.
**
** What must hold: what is refused says why and leaves nothing; the text of a
** token that is taken is the only one of it, but for case and white space.
*/
#include "../internal.h"
#include "fuzz.h"

#include <ctype.h>

const char *const fuzz_corpus = "tls/fuzz/corpus/token";

#define PREFIX "quorate1-"

static void must_tell(const struct tls_error *error)
{
  must(error->text[0] && !strchr(error->text, '\n'));
  must(strlen(error->text) < sizeof error->text);
}

static void try_text(const char *text)
{
  static const struct tls_token nothing;
  struct tls_error error = {""};
  struct tls_token token;
  char *again;
  size_t n = 0;

  if (tls_token_decode(text, &token, &error) != 0) {
    must_tell(&error);
    must(memcmp(&token, &nothing, sizeof token) == 0);
    return;
  }
  must(strnlen(token.name, sizeof token.name) - 1 < sizeof token.name - 1);
  must(strnlen(token.address, sizeof token.address) - 1 <
       sizeof token.address - 1);
  must(tls_token_encode(&token, &again, &error) == 0);
  while (isspace((unsigned char)*text))
    text++;
  for (; again[n]; n++)
    must(tolower((unsigned char)text[n]) == again[n]);
  for (; text[n]; n++)
    must(isspace((unsigned char)text[n]));
  tls_free_text(again);
}

/* The same digits as in token.c, made another way. */
static void try_bytes(const uint8_t *data, size_t size)
{
  static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";
  char text[2048] = PREFIX;
  size_t n = strlen(text), bits;
  uint8_t bytes[1024] = {0}, digest[32];
  struct tls_error error;

  if (size > sizeof bytes - 8) size = sizeof bytes - 8;
  if (size) memcpy(bytes, data, size);
  must(tls_digest(bytes, size, digest, &error) == 0);
  memcpy(bytes + size, digest, 4);
  bits = (size + 4) * 8;
  for (size_t bit = 0; bit < bits; bit += 5) {
    unsigned two = (unsigned)bytes[bit / 8] << 8 | bytes[bit / 8 + 1];

    text[n++] = digits[two >> (11 - bit % 8) & 31];
  }
  text[n] = 0;
  try_text(text);
}

static void try_fields(const uint8_t *data, size_t size)
{
  struct tls_error error = {""};
  struct tls_token token = {0}, back;
  char *text;

  memcpy(&token, data, size < sizeof token ? size : sizeof token);
  if (tls_token_encode(&token, &text, &error) != 0) {
    must_tell(&error);
    must(text == NULL);
    return;
  }
  must(tls_token_decode(text, &back, &error) == 0);
  must(back.cluster == token.cluster && !strcmp(back.name, token.name) &&
       !strcmp(back.address, token.address));
  must(!memcmp(back.secret, token.secret, sizeof token.secret));
  must(!memcmp(back.ca_fingerprint, token.ca_fingerprint, 32));
  tls_free_text(text);
}

static void try_pattern(const char *pattern)
{
  struct tls_names names, again;
  struct tls_error error = {""};
  const char *star;

  if (tls_names_set(&names, pattern, 7, &error) != 0) {
    must_tell(&error);
    return;
  }
  star = strchr(names.pattern, '*');
  must(star && !strchr(star + 1, '*'));
  must(names.cluster == 7 && strlen(names.pattern) == strlen(pattern));
  must(tls_names_set(&again, names.pattern, 7, &error) == 0);
  must(strcmp(again.pattern, names.pattern) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  char *text;

  if (size < 1) return 0;
  text = text_copy(data + 1, size - 1);
  switch (data[0] % 4) {
  case 0: try_text(text); break;
  case 1: try_bytes(data + 1, size - 1); break;
  case 2: try_fields(data + 1, size - 1); break;
  default: try_pattern(text); break;
  }
  free(text);
  return 0;
}

static void seed_text(void (*seed)(const void *data, size_t size), uint8_t what,
                      const char *text)
{
  uint8_t bytes[1024] = {what};

  memcpy(bytes + 1, text, strlen(text));
  seed(bytes, 1 + strlen(text));
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  struct tls_token token = {.cluster = 0x00c0ffee12345678,
                            .name = "n2",
                            .address = "db1.example:7001"};
  uint8_t bytes[1 + sizeof token] = {2}, raw[128] = {1, 1};
  struct tls_error error;
  char *text;

  memset(token.secret, 0x5a, sizeof token.secret);
  memset(token.ca_fingerprint, 0xc3, 32);
  must(tls_token_encode(&token, &text, &error) == 0);
  seed_text(seed, 0, text);
  tls_free_text(text);
  memcpy(bytes + 1, &token, sizeof token);
  seed(bytes, sizeof bytes);
  /* version, cluster, fingerprint, secret, name, address */
  memcpy(raw + 2 + 8 + 32 + 16, "\2n2\5a:700", 9);
  seed(raw, 2 + 8 + 32 + 16 + 9);
  seed_text(seed, 3, "*.db.example");
  seed_text(seed, 3, "node-*_x.y");
}
