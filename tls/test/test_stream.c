/*
** test_stream.c: bytes in, bytes out: whole, in pieces, damaged, or nonsense.
*/
#include "helpers.h"

#define ALPN "\x09quorate/1"

static struct ca ca;
static struct cred root;
static struct tls_context *one, *two;

static int set_up(void **state)
{
  (void)state;
  ca = make_ca();
  root = read_cred(ca.cert, ca.key);
  one = make_member(&ca, CLUSTER, 1);
  two = make_member(&ca, CLUSTER, 2);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  tls_context_unref(one);
  tls_context_unref(two);
  free_cred(&root);
  free_ca(&ca);
  return 0;
}

/* A copy of what a stream has to send, which is then dropped. */
static uint8_t *take_output(struct tls_stream *stream, size_t *n)
{
  const uint8_t *data;
  uint8_t *copy;

  *n = tls_stream_output(stream, &data);
  copy = malloc(*n + 1);
  if (*n > 0) memcpy(copy, data, *n);
  tls_stream_sent(stream, *n);
  return copy;
}

static void assert_reads(struct tls_stream *stream, const char *text)
{
  char buf[256] = "";

  assert_int_equal(tls_stream_read(stream, buf, sizeof buf), strlen(text));
  assert_memory_equal(buf, text, strlen(text));
  assert_queue_clean();
}

/* ---- whole and in pieces ----------------------------------------------- */

static void test_byte_by_byte(void **state)
{
  struct pair pair = make_pair(one, two);
  char byte;

  (void)state;
  shake(&pair, 1);
  assert_true(tls_stream_ready(pair.client));
  assert_int_equal(tls_stream_peer(pair.server), 1);
  assert_int_equal(write_text(pair.client, "there"), 0);
  assert_int_equal(write_text(pair.server, "back"), 0);
  shake(&pair, 1);
  for (const char *c = "there"; *c != '\0'; c++) {
    assert_int_equal(tls_stream_read(pair.server, &byte, 1), 1);
    assert_int_equal(byte, *c);
  }
  assert_int_equal(tls_stream_read(pair.server, &byte, 1), 0);
  assert_int_equal(tls_stream_read(pair.server, &byte, 0), 0);
  assert_reads(pair.client, "back");
  free_pair(&pair);
}

/* Data that came with the last flight of the handshake is not lost. */
static void test_data_behind_the_handshake(void **state)
{
  struct pair pair = make_pair(one, two);

  (void)state;
  move_bytes(pair.client, pair.server, SIZE_MAX);
  move_bytes(pair.server, pair.client, SIZE_MAX);
  assert_true(tls_stream_ready(pair.client));
  assert_int_equal(write_text(pair.client, "early"), 0);
  move_bytes(pair.client, pair.server, SIZE_MAX);
  assert_reads(pair.server, "early");
  free_pair(&pair);
}

static void test_much_data(void **state)
{
  const size_t total = 8u << 20;
  uint8_t *sent = malloc(total), *got = malloc(total);
  struct pair pair = make_ready_pair(one, two);
  size_t written = 0, received = 0;

  (void)state;
  random_fill(sent, total);
  while (received < total) {
    struct iovec iov[8];
    size_t at = written;
    ssize_t k;

    for (int i = 0; i < 8; i++) {
      size_t n = random_u32() % (i % 3 == 0 ? 50000 : 300);

      if (n > total - at) n = total - at;
      iov[i] = (struct iovec){sent + at, n};
      at += n;
    }
    assert_int_equal(tls_stream_write(pair.client, iov, 8), 0);
    assert_queue_clean();
    written = at;
    move_bytes(pair.client, pair.server, 1 + random_u32() % 70000);
    while ((k = tls_stream_read(pair.server, got + received,
                                1 + random_u32() % 40000)) > 0)
      received += (size_t)k;
    assert_int_equal(k, 0);
  }
  assert_memory_equal(sent, got, total);
  free(sent);
  free(got);
  free_pair(&pair);
}

/* Sizes around the edges of records, and a whole lot left unsent. */
static void test_edges_of_records(void **state)
{
  static const size_t sizes[] = {0, 1, 16383, 16384, 16385, 32768, 32769};
  uint8_t *sent = malloc(200000), *got = malloc(200000);
  struct pair pair = make_ready_pair(one, two);
  size_t total = 0;

  (void)state;
  random_fill(sent, 200000);
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    struct iovec iov[2] = {{sent + total, sizes[i]}, {NULL, 0}};

    assert_int_equal(tls_stream_write(pair.client, iov, 2), 0);
    total += sizes[i];
  }
  assert_int_equal(tls_stream_write(pair.client, NULL, 0), 0);
  move_bytes(pair.client, pair.server, 1000);
  assert_int_equal(tls_stream_read(pair.server, got, 200000), total);
  assert_memory_equal(sent, got, total);
  free(sent);
  free(got);
  free_pair(&pair);
}

/* Small pieces share a record: header, type and tag are 22 bytes. */
static void test_pieces_share_a_record(void **state)
{
  struct pair pair = make_ready_pair(one, two);
  struct iovec iov[1000];
  const uint8_t *data;
  char piece[40] = "";

  (void)state;
  for (int i = 0; i < 1000; i++)
    iov[i] = (struct iovec){piece, 16};
  assert_int_equal(tls_stream_write(pair.client, iov, 1000), 0);
  assert_int_equal(tls_stream_output(pair.client, &data), 16000 + 22);
  tls_stream_sent(pair.client, SIZE_MAX); /* more than there is: all */
  assert_int_equal(tls_stream_output(pair.client, &data), 0);
  assert_null(data);
  for (int i = 0; i < 1000; i++)
    iov[i].iov_len = 40;
  assert_int_equal(tls_stream_write(pair.client, iov, 1000), 0);
  assert_int_equal(tls_stream_output(pair.client, &data), 40000 + 3 * 22);
  free_pair(&pair);
}

static void test_output_in_pieces(void **state)
{
  struct pair pair = make_ready_pair(one, two);
  uint8_t all[4000], *got = malloc(8000);
  struct iovec iov = {all, sizeof all};
  size_t left;
  const uint8_t *data;

  (void)state;
  random_fill(all, sizeof all);
  assert_int_equal(tls_stream_write(pair.client, &iov, 1), 0);
  /* A write in the middle of sending comes after what is still there. */
  left = tls_stream_output(pair.client, &data);
  assert_int_equal(tls_stream_feed(pair.server, data, left - 3), 0);
  tls_stream_sent(pair.client, left - 3);
  assert_int_equal(tls_stream_read(pair.server, got, 8000), 0);
  assert_int_equal(tls_stream_write(pair.client, &iov, 1), 0);
  move_bytes(pair.client, pair.server, 7);
  assert_int_equal(tls_stream_read(pair.server, got, 8000), 8000);
  assert_memory_equal(got, all, 4000);
  assert_memory_equal(got + 4000, all, 4000);
  free(got);
  free_pair(&pair);
}

/* Writes and partial sends in any order: whatever the buffers do meanwhile,
   the bytes come out as they went in. */
static void test_pieces_in_any_order(void **state)
{
  struct pair pair = make_ready_pair(one, two);
  uint8_t sent[1500], got[1500];
  uint32_t in = 0, out = 0; /* how many; each byte depends on its number */

  (void)state;
  for (int i = 0; i < 20000; i++) {
    struct iovec iov = {sent, random_u32() % sizeof sent};
    const uint8_t *data;
    size_t n;
    ssize_t k;

    for (size_t j = 0; j < iov.iov_len; j++, in++)
      sent[j] = (uint8_t)(in ^ in >> 8);
    assert_int_equal(tls_stream_write(pair.client, &iov, 1), 0);
    n = tls_stream_output(pair.client, &data);
    if (n > 0 && i % 64 != 0) n = random_u32() % n;
    assert_int_equal(tls_stream_feed(pair.server, data, n), 0);
    tls_stream_sent(pair.client, n);
    k = tls_stream_read(pair.server, got, random_u32() % sizeof got);
    assert_true(k >= 0);
    for (ssize_t j = 0; j < k; j++, out++)
      if (got[j] != (uint8_t)(out ^ out >> 8)) fail_msg("byte %u", out);
  }
  assert_true(out > 1000000);
  free_pair(&pair);
}

/* ---- order of calls ---------------------------------------------------- */

static void test_too_early(void **state)
{
  struct pair pair = make_pair(one, two);
  char byte;

  (void)state;
  assert_int_equal(tls_stream_read(pair.client, &byte, 1), 0);
  tls_stream_close(pair.client); /* nothing to close yet */
  assert_int_equal(tls_stream_feed(pair.server, NULL, 0), 0);
  assert_int_equal(write_text(pair.client, "x"), -1);
  assert_says(pair.client, "before the handshake");
  assert_int_equal(write_text(pair.client, "x"), -1);
  assert_int_equal(tls_stream_feed(pair.client, "x", 1), -1);
  assert_int_equal(tls_stream_read(pair.client, &byte, 1), -1);
  assert_false(tls_stream_ready(pair.client));
  free_pair(&pair);
}

static void test_close(void **state)
{
  struct pair pair = make_ready_pair(one, two);
  const uint8_t *data;
  char byte;

  (void)state;
  assert_int_equal(write_text(pair.client, "last words"), 0);
  tls_stream_close(pair.client);
  tls_stream_close(pair.client);
  move_bytes(pair.client, pair.server, SIZE_MAX);
  assert_reads(pair.server, "last words");
  assert_int_equal(tls_stream_read(pair.server, &byte, 1), -2);
  assert_int_equal(tls_stream_read(pair.server, &byte, 1), -2);
  assert_string_equal(tls_stream_error(pair.server), "");
  /* What comes after a close_notify is ignored. */
  assert_int_equal(tls_stream_feed(pair.server, "garbage", 7), 0);
  assert_int_equal(tls_stream_read(pair.server, &byte, 1), -2);
  /* The other direction is still open. */
  assert_int_equal(write_text(pair.server, "answer"), 0);
  tls_stream_close(pair.server);
  move_bytes(pair.server, pair.client, SIZE_MAX);
  assert_reads(pair.client, "answer");
  assert_int_equal(tls_stream_read(pair.client, &byte, 1), -2);
  assert_int_equal(write_text(pair.client, "x"), -1);
  assert_says(pair.client, "write after close");
  assert_int_equal(tls_stream_output(pair.client, &data), 0);
  free_pair(&pair);
}

/* A client that gives up in the middle of the handshake. */
static void test_close_too_early(void **state)
{
  static const uint8_t close_notify[] = {21, 3, 3, 0, 2, 1, 0};
  struct pair pair = make_pair(one, two);

  (void)state;
  assert_int_equal(tls_stream_feed(pair.server, close_notify, 7), -1);
  assert_true(tls_stream_error(pair.server)[0] != '\0');
  free_pair(&pair);
}

/* ---- damage ------------------------------------------------------------ */

/* Any bit of a record that is turned over kills the stream, and says so to
   the other side. */
static void test_each_bit_matters(void **state)
{
  const size_t n = 5 + 4 + 17;

  (void)state;
  for (size_t bit = 0; bit < n * 8; bit++) {
    struct pair pair = make_ready_pair(one, two);
    uint8_t *record, got[64];
    ssize_t rc;
    size_t len;

    assert_int_equal(write_text(pair.client, "data"), 0);
    record = take_output(pair.client, &len);
    assert_int_equal(len, n);
    record[bit / 8] = (uint8_t)(record[bit / 8] ^ 1 << bit % 8);
    tls_stream_feed(pair.server, record, len);
    rc = tls_stream_read(pair.server, got, sizeof got);
    assert_queue_clean();
    if (bit / 8 == 2) { /* legacy_record_version's second byte */
      assert_true(rc <= 0);
    } else if (rc == 0) {
      /* A longer length: the rest of the record has not come. */
      assert_true(bit / 8 == 3 || bit / 8 == 4);
    } else {
      assert_int_equal(rc, -1);
      assert_true(tls_stream_error(pair.server)[0] != '\0');
      move_bytes(pair.server, pair.client, SIZE_MAX);
      assert_int_equal(tls_stream_read(pair.client, got, 1), -1);
      assert_says(pair.client, "peer sent alert: ");
    }
    free(record);
    free_pair(&pair);
  }
}

static void test_replay_and_reorder(void **state)
{
  for (int what = 0; what < 2; what++) {
    struct pair pair = make_ready_pair(one, two);
    uint8_t *a, *b, got[64];
    size_t an, bn;

    (void)state;
    write_text(pair.client, "first");
    a = take_output(pair.client, &an);
    write_text(pair.client, "second");
    b = take_output(pair.client, &bn);
    if (what == 0) {
      tls_stream_feed(pair.server, a, an);
      tls_stream_feed(pair.server, a, an);
      assert_reads(pair.server, "first"); /* what came before is whole */
    } else {
      tls_stream_feed(pair.server, b, bn);
      tls_stream_feed(pair.server, a, an);
    }
    assert_int_equal(tls_stream_read(pair.server, got, sizeof got), -1);
    assert_says(pair.server, "bad record mac");
    free(a);
    free(b);
    free_pair(&pair);
  }
}

/* A record cut short is no error: its end may still come. Never its
   beginning alone is given out. */
static void test_cut_records(void **state)
{
  struct pair pair = make_ready_pair(one, two);
  uint8_t *record, got[64];
  size_t n;

  (void)state;
  write_text(pair.client, "data");
  record = take_output(pair.client, &n);
  for (size_t i = 0; i < n; i++) {
    assert_int_equal(tls_stream_read(pair.server, got, sizeof got), 0);
    assert_int_equal(tls_stream_feed(pair.server, record + i, 1), 0);
  }
  assert_reads(pair.server, "data");
  free(record);
  free_pair(&pair);
}

static void test_plain_text_after_handshake(void **state)
{
  static const uint8_t alert[] = {21, 3, 3, 0, 2, 1, 0};
  static const uint8_t data[] = {23, 3, 3, 0, 2, 'h', 'i'};
  struct pair pair = make_ready_pair(one, two);
  char byte;

  (void)state;
  tls_stream_feed(pair.server, alert, sizeof alert);
  assert_int_equal(tls_stream_read(pair.server, &byte, 1), -1);
  tls_stream_feed(pair.client, data, sizeof data);
  assert_int_equal(tls_stream_read(pair.client, &byte, 1), -1);
  free_pair(&pair);
}

/* ---- nonsense ---------------------------------------------------------- */

static void assert_sane(struct tls_stream *stream)
{
  const uint8_t *data;
  char buf[64];

  assert_queue_clean();
  assert_false(tls_stream_ready(stream));
  assert_int_equal(tls_stream_peer(stream), 0);
  assert_true(tls_stream_read(stream, buf, sizeof buf) <= 0);
  (void)tls_stream_output(stream, &data);
}

static void test_other_protocols(void **state)
{
  static const char *const hellos[] = {
      "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n",
      "\x80\x2e\x01\x03\x01 an SSL 2 hello, more or less, and then some",
      "quorate1-aaaaaaaaaaaaaaaa"};

  (void)state;
  for (size_t i = 0; i < sizeof hellos / sizeof hellos[0]; i++) {
    struct tls_stream *server = tls_stream_new(one, true);

    assert_int_equal(tls_stream_feed(server, hellos[i], strlen(hellos[i])), -1);
    assert_true(tls_stream_error(server)[0] != '\0');
    assert_sane(server);
    tls_stream_free(server);
  }
}

static void feed_noise(struct tls_stream *stream, const uint8_t *noise,
                       size_t n)
{
  while (n > 0) {
    size_t k = 1 + random_u32() % n;

    if (tls_stream_feed(stream, noise, k) != 0) break;
    noise += k;
    n -= k;
  }
  assert_sane(stream);
}

static void test_noise(void **state)
{
  uint8_t noise[2000];

  (void)state;
  for (int i = 0; i < 5000; i++) {
    struct tls_stream *stream = tls_stream_new(one, i % 2 == 0);
    size_t n = 1 + random_u32() % sizeof noise;

    random_fill(noise, n);
    if (i % 3 == 0) { /* something like a record */
      static const uint8_t kinds[] = {20, 21, 22, 23, 24};

      noise[0] = kinds[random_u32() % 5];
      noise[1] = 3;
      noise[2] = (uint8_t)(random_u32() % 5);
      noise[3] = (uint8_t)(random_u32() % 8);
    }
    feed_noise(stream, noise, n);
    tls_stream_free(stream);
  }
}

static void damage(uint8_t *bytes, size_t n, int times)
{
  while (times-- > 0)
    bytes[random_u32() % n] = (uint8_t)random_u32();
}

/* A real hello with a few bytes changed: no crash, and never done. */
static void test_damaged_hello(void **state)
{
  (void)state;
  for (int i = 0; i < 3000; i++) {
    struct pair pair = make_pair(one, two);
    size_t n;
    uint8_t *hello = take_output(pair.client, &n);

    damage(hello, n, 1 + i % 5);
    if (i % 4 == 0) n = 1 + random_u32() % n;
    feed_noise(pair.server, hello, n);
    free(hello);
    free_pair(&pair);
  }
}

/* The same for both answers; only an unchanged one may end well. */
static void test_damaged_flights(void **state)
{
  (void)state;
  for (int i = 0; i < 600; i++) {
    struct pair pair = make_pair(one, two);
    struct tls_stream *victim = i % 2 == 0 ? pair.client : pair.server;
    uint8_t *flight, *copy;
    size_t n;

    move_bytes(pair.client, pair.server, SIZE_MAX);
    if (victim == pair.server) move_bytes(pair.server, pair.client, SIZE_MAX);
    flight = take_output(victim == pair.client ? pair.server : pair.client, &n);
    copy = malloc(n);
    memcpy(copy, flight, n);
    damage(flight, n, 1 + i % 3);
    (void)tls_stream_feed(victim, flight, n);
    assert_queue_clean();
    if (tls_stream_ready(victim)) {
      /* Only what is not authenticated was hit: the header of a record, or
         of the change_cipher_spec that means nothing. */
      size_t differ = 0;

      for (size_t k = 0; k < n; k++)
        differ += flight[k] != copy[k];
      assert_true(differ <= 3);
    } else {
      assert_int_equal(tls_stream_peer(victim), 0);
    }
    free(flight);
    free(copy);
    free_pair(&pair);
  }
}

/* A peer cannot make a server keep more than a bounded certificate list. */
static void test_endless_certificates(void **state)
{
  struct spec spec = {.san = "URI:quorate:00c0ffee12345678/0000000000000007"};
  struct cred cred = build(&root, &spec);
  struct raw_options options = {.cred = &cred, .alpn = ALPN};
  struct tls_stream *stream = tls_stream_new(one, true);
  struct raw raw;

  (void)state;
  raw_open(&raw, &options);
  for (int i = 0; i < 60; i++)
    SSL_add1_chain_cert(raw.ssl, root.cert);
  raw_shake(&raw, stream);
  assert_false(tls_stream_ready(stream));
  assert_says(stream, "excessive message size");
  assert_int_equal(raw.alert, SSL_AD_ILLEGAL_PARAMETER);
  tls_stream_free(stream);
  raw_close(&raw);
  free_cred(&cred);
}

/* A hello of 128 KiB is all right for OpenSSL. Not for us. */
static void test_endless_handshake(void **state)
{
  struct tls_stream *server = tls_stream_new(one, true);
  uint8_t record[5 + 1000] = {22, 3, 1, 1000 >> 8, 1000 & 255, 1, 2, 0, 0};
  size_t fed = 0;

  (void)state;
  while (fed < 1u << 20 &&
         tls_stream_feed(server, record, sizeof record) == 0) {
    fed += sizeof record;
    memset(record + 5, 0, 1000);
  }
  assert_says(server, "handshake too long");
  assert_in_range(fed, 60000, 70000);
  assert_sane(server);
  tls_stream_free(server);
}

/* ---- keys are replaced in time ----------------------------------------- */

static void test_rekey(void **state)
{
  struct spec spec = {.san = "URI:quorate:00c0ffee12345678/0000000000000007"};
  struct cred cred = build(&root, &spec);
  struct raw_options options = {
      .server = true, .cred = &cred, .alpn = ALPN, .chain = {root.cert}};
  struct tls_context *context = make_member(&ca, CLUSTER, 4);
  struct tls_stream *stream;
  struct pair pair;
  struct raw raw;

  (void)state;
  context->rekey_bytes = 4;
  raw_open(&raw, &options);
  stream = tls_stream_new(context, false);
  raw_shake(&raw, stream);
  for (int i = 0; i < 6; i++) { /* one before each write but the first */
    assert_int_equal(write_text(stream, "data"), 0);
    assert_queue_clean();
    raw_shake(&raw, stream);
    assert_int_equal(raw.received, 4 * (i + 1));
  }
  assert_int_equal(raw.key_updates, 5);
  tls_stream_free(stream);
  raw_close(&raw);
  free_cred(&cred);

  pair = make_ready_pair(context, context);
  for (int i = 0; i < 100; i++) {
    assert_int_equal(write_text(pair.client, "there"), 0);
    assert_int_equal(write_text(pair.server, "back"), 0);
    shake(&pair, SIZE_MAX);
    assert_reads(pair.server, "there");
    assert_reads(pair.client, "back");
  }
  tls_context_unref(context);
  free_pair(&pair);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_byte_by_byte),
      cmocka_unit_test(test_data_behind_the_handshake),
      cmocka_unit_test(test_much_data),
      cmocka_unit_test(test_edges_of_records),
      cmocka_unit_test(test_pieces_share_a_record),
      cmocka_unit_test(test_output_in_pieces),
      cmocka_unit_test(test_pieces_in_any_order),
      cmocka_unit_test(test_too_early),
      cmocka_unit_test(test_close),
      cmocka_unit_test(test_close_too_early),
      cmocka_unit_test(test_each_bit_matters),
      cmocka_unit_test(test_replay_and_reorder),
      cmocka_unit_test(test_cut_records),
      cmocka_unit_test(test_plain_text_after_handshake),
      cmocka_unit_test(test_other_protocols),
      cmocka_unit_test(test_noise),
      cmocka_unit_test(test_damaged_hello),
      cmocka_unit_test(test_damaged_flights),
      cmocka_unit_test(test_endless_certificates),
      cmocka_unit_test(test_endless_handshake),
      cmocka_unit_test(test_rekey),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
