/*
** test_token.c: join tokens as text: there and back, and nothing else in.
*/
#include "helpers.h"

/* Made with the base32 and SHA-256 of another language. */
#define KNOWN_TEXT                                                             \
  "quorate1-aeaaaaaaaaaaaanlvov2xk5lvov2xk5lvov2xk5lvov2xk5lvov"               \
  "2xk5lvov2xk5lvpg43tonzxg43tonzxg43tonzxgqe3rsbbsgemj2gq3tcmn"               \
  "7obw4m"

static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";

static struct tls_token sample(const char *name, const char *address)
{
  struct tls_token token = {.cluster = CLUSTER};

  random_fill(token.ca_fingerprint, sizeof token.ca_fingerprint);
  random_fill(token.secret, sizeof token.secret);
  snprintf(token.name, sizeof token.name, "%s", name);
  snprintf(token.address, sizeof token.address, "%s", address);
  return token;
}

static void assert_same(const struct tls_token *a, const struct tls_token *b)
{
  assert_int_equal(a->cluster, b->cluster);
  assert_memory_equal(a->ca_fingerprint, b->ca_fingerprint, 32);
  assert_memory_equal(a->secret, b->secret, TLS_SECRET_BYTES);
  assert_string_equal(a->name, b->name);
  assert_string_equal(a->address, b->address);
}

static char *encode(const struct tls_token *token)
{
  char *text;

  assert_ok(tls_token_encode(token, &text, error));
  return text;
}

static void test_round_trip(void **state)
{
  char name[64], address[256];

  (void)state;
  for (size_t n = 1; n < sizeof name; n++) {
    size_t m = 1 + random_u32() % 255;
    struct tls_token token, back;
    char *text;

    memset(name, 'n', n);
    name[n] = '\0';
    memset(address, 'a', m);
    address[m] = '\0';
    token = sample(name, address);
    text = encode(&token);
    assert_memory_equal(text, "quorate1-", 9);
    assert_int_equal(strspn(text + 9, digits), strlen(text + 9));
    assert_ok(tls_token_decode(text, &back, error));
    assert_same(&token, &back);
    tls_free_text(text);
  }
}

/* The form on the wire is a promise: tokens are made by one version and read
   by another. */
static void test_known_text(void **state)
{
  struct tls_token token = {.cluster = 1}, back;
  char *text;

  (void)state;
  memset(token.ca_fingerprint, 0xab, 32);
  memset(token.secret, 0xcd, 16);
  snprintf(token.name, sizeof token.name, "n2");
  snprintf(token.address, sizeof token.address, "db1:4711");
  text = encode(&token);
  assert_string_equal(text, KNOWN_TEXT);
  assert_ok(tls_token_decode(KNOWN_TEXT, &back, error));
  assert_same(&token, &back);
  tls_free_text(text);
}

static void test_bad_fields(void **state)
{
  struct tls_token token;
  char *text;

  (void)state;
  token = sample("", "host:1");
  assert_error(tls_token_encode(&token, &text, error), "name is empty");
  assert_null(text);
  token = sample("n", "");
  assert_error(tls_token_encode(&token, &text, error), "address is empty");
  token = sample("n\n", "host:1");
  assert_error(tls_token_encode(&token, &text, error), "not plain text");
  token = sample("n", "host:1");
  memset(token.name, 'x', sizeof token.name); /* no terminating zero */
  assert_error(tls_token_encode(&token, &text, error), "too long");
}

static void test_each_character_matters(void **state)
{
  struct tls_token token = sample("node-2", "db1.example.org:4711"), back;
  char *text = encode(&token);
  size_t n = strlen(text);

  (void)state;
  for (size_t i = 0; i < n; i++) {
    char c = text[i];

    for (int d = 1; d < 128; d++) {
      bool same = (d | 32) == (c | 32) && c >= 'a' && c <= 'z' && d >= 'A';

      /* White space at the end makes it shorter; that is refused as well. */
      if (same) continue;
      if (d == c) continue;
      text[i] = (char)d;
      if (tls_token_decode(text, &back, NULL) != -1)
        fail_msg("character %zu: %d for %d", i, d, c);
    }
    text[i] = c;
  }
  assert_ok(tls_token_decode(text, &back, error));
  tls_free_text(text);
}

static void test_length_matters(void **state)
{
  struct tls_token token = sample("node-2", "db1.example.org:4711"), back;
  struct tls_token nothing = {0};
  char *text = encode(&token), *copy;
  size_t n = strlen(text);

  (void)state;
  copy = calloc(1, n + 2);
  for (size_t k = 0; k < n; k++) {
    memcpy(copy, text, k);
    copy[k] = '\0';
    assert_int_equal(tls_token_decode(copy, &back, NULL), -1);
    assert_memory_equal(&back, &nothing, sizeof back);
  }
  for (const char *d = digits; *d != '\0'; d++) {
    snprintf(copy, n + 2, "%s%c", text, *d);
    assert_int_equal(tls_token_decode(copy, &back, NULL), -1);
  }
  free(copy);
  tls_free_text(text);
}

static void test_spaces_and_case(void **state)
{
  struct tls_token token = sample("n", "h:1"), back;
  char *text = encode(&token), *copy = calloc(1, strlen(text) + 10);

  (void)state;
  sprintf(copy, " \t\r\n%s \n", text);
  assert_ok(tls_token_decode(copy, &back, error));
  assert_same(&token, &back);
  for (char *c = copy; *c != '\0'; c++)
    if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
  assert_ok(tls_token_decode(copy, &back, error));
  assert_same(&token, &back);
  sprintf(copy, "%.20s %s", text, text + 20);
  assert_error(tls_token_decode(copy, &back, error), "character 21");
  free(copy);
  tls_free_text(text);
}

static void test_words(void **state)
{
  struct tls_token back;

  (void)state;
  assert_error(tls_token_decode("", &back, error), "quorate1-");
  assert_error(tls_token_decode("quorate1", &back, error), "quorate1-");
  assert_error(tls_token_decode("quorate2-aaaa", &back, error), "quorate1-");
  assert_error(tls_token_decode("quorate1-", &back, error), "cut off");
  assert_error(tls_token_decode("quorate1-aa=a", &back, error), "character 12");
}

/* Bodies that have a right checksum, and are wrong all the same. */
static int decode_body(const uint8_t *body, size_t n, struct tls_error *e)
{
  char text[1024] = "quorate1-";
  uint8_t bytes[512], digest[32];
  struct tls_token back;
  size_t at = 9;
  unsigned acc = 0, bits = 0;

  memcpy(bytes, body, n);
  tls_digest(body, n, digest, NULL);
  memcpy(bytes + n, digest, 4);
  for (size_t i = 0; i < n + 4; i++) {
    acc = acc << 8 | bytes[i];
    for (bits += 8; bits >= 5; bits -= 5)
      text[at++] = digits[acc >> (bits - 5) & 31];
  }
  if (bits > 0) text[at++] = digits[acc << (5 - bits) & 31];
  return tls_token_decode(text, &back, e);
}

static void test_malformed_bodies(void **state)
{
  uint8_t body[512] = {1};
  const size_t name = 1 + 8 + 32 + 16;

  (void)state;
  memcpy(body + name, "\1n\3h:1", 6);
  assert_ok(decode_body(body, name + 6, error));
  body[0] = 2;
  assert_error(decode_body(body, name + 6, error), "version 2");
  body[0] = 1;
  assert_error(decode_body(body, name + 7, error), "malformed");
  assert_error(decode_body(body, name + 5, error), "malformed");
  body[name + 1] = '\0'; /* a zero byte inside the name */
  assert_error(decode_body(body, name + 6, error), "malformed");
  body[name + 1] = 'n';
  body[name + 2] = 0; /* no address */
  assert_error(decode_body(body, name + 3, error), "malformed");
  memset(body + name, 'x', 200);
  body[name] = 64; /* a name one longer than fits */
  body[name + 65] = 3;
  assert_error(decode_body(body, name + 69, error), "malformed");
}

static void test_fuzz(void **state)
{
  struct tls_token token = sample("node-2", "db1:4711"), back;
  char *good = encode(&token), text[1024];
  size_t n = strlen(good);

  (void)state;
  for (int i = 0; i < 100000; i++) {
    size_t k = random_u32() % 700;

    if (i % 4 == 0) {
      random_fill(text, k);
    } else if (i % 4 == 1) {
      memcpy(text, "quorate1-", 9);
      for (size_t j = 9; j < k; j++)
        text[j] = digits[random_u32() % 32];
      if (k < 9) k = 9;
    } else {
      memcpy(text, good, n);
      k = n;
      for (int j = 0; j <= i % 3; j++)
        text[random_u32() % n] = digits[random_u32() % 32];
    }
    text[k] = '\0';
    if (tls_token_decode(text, &back, NULL) == 0) assert_same(&token, &back);
  }
  assert_queue_clean();
  tls_free_text(good);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_known_text),
      cmocka_unit_test(test_bad_fields),
      cmocka_unit_test(test_each_character_matters),
      cmocka_unit_test(test_length_matters),
      cmocka_unit_test(test_spaces_and_case),
      cmocka_unit_test(test_words),
      cmocka_unit_test(test_malformed_bodies),
      cmocka_unit_test(test_fuzz),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
