/*
** test_refusals.c: every way to be refused, byte by byte, with what each end
** says of it, the kind that it is counted as, and the memory that it took;
** then handshakes that were cut and altered.
**
** Both ends are streams of ours. The context of the bad one is bent after it
** was made.
*/
#include "helpers.h"

#include <stdatomic.h>

#define NODE_7 "URI:quorate:00c0ffee12345678/0000000000000007"

static struct ca ca, foreign_ca, namesake_ca;
static struct cred root, foreign, namesake;
static struct tls_context *good, *peer;

/* ---- memory ------------------------------------------------------------ */

/* What OpenSSL holds at each moment, and the most of it since a reset. */
static _Atomic size_t held, most;

static void *note(size_t *block, size_t n)
{
  size_t now;

  if (block == NULL) return NULL;
  block[0] = n;
  now = atomic_fetch_add(&held, n) + n;
  if (now > most) most = now;
  return block + 2; /* keeps the alignment of 16 bytes */
}

static void *count_malloc(size_t n, const char *file, int line)
{
  (void)file, (void)line;
  return note(malloc(n + 2 * sizeof(size_t)), n);
}

static void count_free(void *p, const char *file, int line)
{
  (void)file, (void)line;
  if (p == NULL) return;
  atomic_fetch_sub(&held, ((size_t *)p)[-2]);
  free((size_t *)p - 2);
}

static void *count_realloc(void *p, size_t n, const char *file, int line)
{
  if (p == NULL) return count_malloc(n, file, line);
  atomic_fetch_sub(&held, ((size_t *)p)[-2]);
  return note(realloc((size_t *)p - 2, n + 2 * sizeof(size_t)), n);
}

/* Both ends together, 130 KB as measured: a record of 16 KiB is read into a buffer of that size,
   the certificates of a peer are parsed, keys are made. */
#define MEMORY_MAX ((size_t)160 * 1024)
/* What waits to be sent, of one end. */
#define OUTPUT_MAX ((size_t)16 * 1024)

static void watch_begin(void)
{
  most = held;
}

static void watch_end(size_t before, const char *what)
{
  if (most - before > MEMORY_MAX)
    fail_msg("%s: %zu bytes", what, (size_t)(most - before));
}

/* ---- the cases --------------------------------------------------------- */

static int set_up(void **state)
{
  (void)state;
  ca = make_ca();
  assert_ok(tls_make_ca(CLUSTER + 1, &foreign_ca.cert, &foreign_ca.key, error));
  namesake_ca = make_ca();
  namesake = read_cred(namesake_ca.cert, namesake_ca.key);
  root = read_cred(ca.cert, ca.key);
  foreign = read_cred(foreign_ca.cert, foreign_ca.key);
  good = make_member(&ca, CLUSTER, 1);
  peer = make_member(&ca, CLUSTER, 2);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  tls_context_unref(good);
  tls_context_unref(peer);
  free_cred(&root);
  free_cred(&foreign);
  free_ca(&ca);
  free_ca(&foreign_ca);
  free_cred(&namesake);
  free_ca(&namesake_ca);
  return 0;
}

enum bend { SHOWS, TLS_1_2, NO_ALPN, OTHER_ALPN };

struct refusal {
  const char *name;
  enum bend bend;
  struct spec spec;
  const struct cred *issuer; /* NULL: itself */
  enum tls_cause cause;
  const char *server, *client; /* what a good one says; NULL: the same */
  const char *alert;           /* what the bad one hears */
};

#define VERIFY "certificate verify failed: "

static const struct refusal refusals[] = {
    {"foreign CA",
     SHOWS,
     {.san = NODE_7},
     &foreign,
     TLS_CAUSE_FOREIGN,
     VERIFY "not signed by a CA of this cluster",
     NULL,
     "unknown CA"},
    {"CA of the right name",
     SHOWS,
     {.san = NODE_7},
     &namesake,
     TLS_CAUSE_FOREIGN,
     VERIFY "its signature is not of the CA that it names",
     NULL,
     "decrypt error"},
    {"self-signed",
     SHOWS,
     {.san = NODE_7},
     NULL,
     TLS_CAUSE_FOREIGN,
     VERIFY "self-signed, not signed by a CA of this cluster",
     NULL,
     "unknown CA"},
    {"expired",
     SHOWS,
     {.san = NODE_7, .from = -2 * DAY, .to = -60},
     &root,
     TLS_CAUSE_EXPIRED,
     VERIFY "certificate has expired: it ended 2",
     NULL,
     "certificate expired"},
    {"not yet valid",
     SHOWS,
     {.san = NODE_7, .from = 3600, .to = DAY},
     &root,
     TLS_CAUSE_EARLY,
     VERIFY "certificate is not yet valid: it begins 2",
     NULL,
     "bad certificate"},
    {"wrong SAN",
     SHOWS,
     {.san = "URI:spiffe://example.org/7"},
     &root,
     TLS_CAUSE_NAME,
     VERIFY "its name is not quorate:<cluster>/<node>",
     NULL,
     "bad certificate"},
    {"no SAN",
     SHOWS,
     {.san = NULL},
     &root,
     TLS_CAUSE_NAME,
     VERIFY "it names no node",
     NULL,
     "bad certificate"},
    {"wrong cluster",
     SHOWS,
     {.san = "URI:quorate:00c0ffee12345679/0000000000000007"},
     &root,
     TLS_CAUSE_NAME,
     "wrong cluster: peer is node 7 of 00c0ffee12345679",
     NULL,
     "bad certificate"},
    {"for mail",
     SHOWS,
     {.san = NODE_7, .eku = "emailProtection"},
     &root,
     TLS_CAUSE_OTHER,
     VERIFY "unsuitable certificate purpose",
     NULL,
     "unsupported certificate"},
    {"a CA itself",
     SHOWS,
     {.san = NODE_7, .is_ca = true, .usage = "digitalSignature,keyCertSign"},
     &root,
     TLS_CAUSE_OTHER,
     VERIFY "it is one of a CA, not of a node",
     NULL,
     "bad certificate"},
    {"TLS 1.2",
     TLS_1_2,
     {.san = NODE_7},
     &root,
     TLS_CAUSE_PROTOCOL,
     "peer speaks no TLS 1.3",
     "peer sent alert: protocol version", /* a server of 1.2 sees it first */
     "protocol version"},
    {"no ALPN",
     NO_ALPN,
     {.san = NODE_7},
     &root,
     TLS_CAUSE_PROTOCOL,
     "peer offered no quorate/1",
     "peer selected no quorate/1",
     NULL},
    {"another protocol",
     OTHER_ALPN,
     {.san = NODE_7},
     &root,
     TLS_CAUSE_PROTOCOL,
     "peer offered no quorate/1",
     "handshake failed: bad extension",
     NULL},
};

static int select_other(SSL *ssl, const unsigned char **out,
                        unsigned char *outlen, const unsigned char *in,
                        unsigned inlen, void *arg)
{
  (void)ssl, (void)in, (void)inlen, (void)arg;
  *out = (const unsigned char *)"h2";
  *outlen = 2;
  return SSL_TLSEXT_ERR_OK;
}

static int say_nothing(SSL *ssl, const unsigned char **out,
                       unsigned char *outlen, const unsigned char *in,
                       unsigned inlen, void *arg)
{
  (void)ssl, (void)out, (void)outlen, (void)in, (void)inlen, (void)arg;
  return SSL_TLSEXT_ERR_NOACK;
}

static struct tls_context *bend(const struct refusal *r)
{
  struct cred cred = build(r->issuer, &r->spec);
  struct tls_context *bad =
      make_bad(&ca, &cred, r->issuer == NULL ? NULL : r->issuer->cert);

  free_cred(&cred);
  switch (r->bend) {
  case SHOWS: break;
  case TLS_1_2:
    SSL_CTX_set_min_proto_version(bad->ssl, TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(bad->ssl, TLS1_2_VERSION);
    break;
  case NO_ALPN:
    SSL_CTX_set_alpn_protos(bad->ssl, NULL, 0);
    SSL_CTX_set_alpn_select_cb(bad->ssl, say_nothing, NULL);
    break;
  case OTHER_ALPN:
    SSL_CTX_set_alpn_protos(bad->ssl, (const unsigned char *)"\x02h2", 3);
    SSL_CTX_set_alpn_select_cb(bad->ssl, select_other, NULL);
    break;
  }
  return bad;
}

/* Byte by byte, until neither has anything to say. */
static void crawl(struct pair *pair)
{
  struct tls_stream *ends[] = {pair->client, pair->server};
  bool moved = true;

  while (moved) {
    moved = false;
    for (int i = 0; i < 2; i++) {
      const uint8_t *data;
      size_t n = tls_stream_output(ends[i], &data);

      assert_true(n <= OUTPUT_MAX);
      if (n == 0) continue;
      (void)tls_stream_feed(ends[1 - i], data, 1);
      assert_queue_clean();
      tls_stream_sent(ends[i], 1);
      moved = true;
    }
  }
}

static void assert_ended(struct tls_stream *stream)
{
  char byte;

  assert_int_equal(tls_stream_read(stream, &byte, 1), -1);
  assert_int_equal(tls_stream_feed(stream, "x", 1), -1);
  assert_int_equal(write_text(stream, "x"), -1);
  assert_false(tls_stream_ready(stream));
  assert_true(tls_stream_error(stream)[0] != '\0');
  assert_int_not_equal(tls_stream_cause(stream), TLS_CAUSE_NONE);
  assert_queue_clean();
}

static void refuse(const struct refusal *r, bool server_refuses)
{
  struct tls_context *bad = bend(r);
  const char *line =
      server_refuses || r->client == NULL ? r->server : r->client;
  struct tls_stream *judge, *judged;
  size_t before = held;
  struct pair pair;
  char byte;

  watch_begin();
  pair = server_refuses ? make_pair(bad, good) : make_pair(good, bad);
  judge = server_refuses ? pair.server : pair.client;
  judged = server_refuses ? pair.client : pair.server;
  crawl(&pair);
  watch_end(before, r->name);
  if (strncmp(tls_stream_error(judge), line, strlen(line)) != 0)
    fail_msg("%s: \"%s\"", r->name, tls_stream_error(judge));
  if (tls_stream_cause(judge) != r->cause)
    fail_msg("%s: cause %d", r->name, tls_stream_cause(judge));
  assert_int_equal(tls_stream_peer(judge), 0);
  assert_int_equal(tls_stream_peer_expires(judge), 0);
  assert_ended(judge);

  /* A client has been ready for a moment: it learns of it when it reads. */
  assert_int_equal(tls_stream_read(judged, &byte, 1), -1);
  if (r->bend != TLS_1_2 || server_refuses) {
    assert_says(judged, "peer sent alert: ");
    assert_says(judged, r->alert == NULL ? "" : r->alert);
  }
  assert_int_equal(tls_stream_cause(judged), TLS_CAUSE_PROTOCOL);
  assert_ended(judged);
  free_pair(&pair);
  tls_context_unref(bad);
}

static void test_server_refuses(void **state)
{
  (void)state;
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
    refuse(&refusals[i], true);
}

static void test_client_refuses(void **state)
{
  (void)state;
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
    refuse(&refusals[i], false);
}

/* Not one text is used for two reasons. */
static void test_texts_differ(void **state)
{
  const size_t n = sizeof refusals / sizeof refusals[0];

  (void)state;
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; k < i; k++)
      if (refusals[i].bend != OTHER_ALPN)
        assert_string_not_equal(refusals[i].server, refusals[k].server);
}

/* The chain is verified, and the CA in it is what has expired. */
static void test_expired_ca(void **state)
{
  struct spec old = {.is_ca = true, .from = -2 * DAY, .to = -60};
  struct spec leaf = {.san = NODE_7};
  struct cred top = build(NULL, &old), cred = build(&top, &leaf);
  struct ca of_old = {pem_of_cert(top.cert), pem_of_key(top.key)};
  char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);
  struct tls_context *context;
  struct pair pair;

  (void)state;
  assert_ok(tls_context_new(of_old.cert, cert, key, &context, error));
  pair = make_pair(context, context);
  crawl(&pair);
  assert_says(pair.client, VERIFY "its CA's certificate has expired");
  assert_int_equal(tls_stream_cause(pair.client), TLS_CAUSE_EXPIRED);
  free_pair(&pair);
  tls_context_unref(context);
  free(of_old.cert), free(of_old.key), free(cert), free(key);
  free_cred(&top);
  free_cred(&cred);
}

/* ---- no TLS at all ----------------------------------------------------- */

static void test_random_bytes(void **state)
{
  (void)state;
  for (int i = 0; i < 600; i++) {
    struct tls_stream *stream = tls_stream_new(good, i % 2 == 0);
    size_t before = held;
    uint8_t byte;
    int fed = 0;

    watch_begin();
    do {
      byte = (uint8_t)random_u32();
      if (fed == 0 && (byte == 21 || byte == 22)) byte += 2;
      fed++;
    } while (tls_stream_feed(stream, &byte, 1) == 0);
    assert_int_equal(fed, 1); /* the first byte tells */
    assert_string_equal(tls_stream_error(stream), "peer does not speak TLS");
    assert_int_equal(tls_stream_cause(stream), TLS_CAUSE_PROTOCOL);
    assert_ended(stream);
    watch_end(before, "random bytes");
    assert_int_equal(held, before); /* nothing was kept of it */
    tls_stream_free(stream);
  }
}

static void test_other_beginnings(void **state)
{
  static const struct {
    const char *bytes;
    size_t good; /* so many of them are taken */
  } beginnings[] = {{"GET / HTTP/1.1\r\n\r\n", 0},
                    {"SSH-2.0-OpenSSH_9.2\r\n", 0},
                    {"\x80\x2e\x01\x03\x01", 0}, /* the hello of SSL 2 */
                    {"\x17\x03\x03", 0},         /* data before a hello */
                    {"\x16\x02\x00", 1},
                    {"\x16\x03\x05", 2},
                    {"\x15\x03\xff", 2}};

  (void)state;
  for (size_t i = 0; i < sizeof beginnings / sizeof beginnings[0]; i++) {
    struct tls_stream *server = tls_stream_new(good, true);
    size_t k = 0;

    while (tls_stream_feed(server, &beginnings[i].bytes[k], 1) == 0)
      k++;
    assert_int_equal(k, beginnings[i].good);
    assert_string_equal(tls_stream_error(server), "peer does not speak TLS");
    tls_stream_free(server);
  }
}

/* ---- half a hello ------------------------------------------------------ */

/* Silent clients, and those that send a hello but for its last byte, cost
   nothing of OpenSSL's. Then the last byte comes, and all is well. */
static void test_half_a_hello(void **state)
{
  struct pair pair = make_pair(peer, good);
  size_t before = held, n;
  struct tls_stream *servers[50];
  const uint8_t *data;

  (void)state;
  n = tls_stream_output(pair.client, &data);
  for (int i = 0; i < 50; i++) {
    servers[i] = tls_stream_new(good, true);
    for (size_t k = 0; i > 0 && k + 1 < n; k++)
      assert_int_equal(tls_stream_feed(servers[i], data + k, 1), 0);
  }
  assert_int_equal(held, before);
  for (int i = 0; i < 50; i++) {
    struct pair one = {pair.client, servers[i]};

    if (i < 49) {
      tls_stream_free(servers[i]);
      continue;
    }
    assert_int_equal(tls_stream_feed(one.server, data + n - 1, 1), 0);
    assert_true(held > before);
    tls_stream_sent(one.client, n);
    crawl(&one);
    assert_int_equal(tls_stream_peer(one.client), 1);
    assert_int_equal(tls_stream_peer(one.server), 2);
    tls_stream_free(one.server);
  }
  free_pair(&pair);
}

/* The length in the header alone says that it is none. */
static void test_long_hello(void **state)
{
  static const struct {
    uint8_t header[5];
    int rc;
  } headers[] = {{{22, 3, 1, 0x0f, 0xfb}, 0},
                 {{22, 3, 1, 0x0f, 0xfc}, -1},
                 {{22, 3, 1, 0xff, 0xff}, -1}};

  (void)state;
  for (int i = 0; i < 3; i++) {
    struct tls_stream *server = tls_stream_new(good, true);
    size_t before = held;

    assert_int_equal(tls_stream_feed(server, headers[i].header, 4), 0);
    assert_int_equal(tls_stream_feed(server, headers[i].header + 4, 1),
                     headers[i].rc);
    assert_int_equal(held, before);
    if (headers[i].rc != 0) {
      assert_says(server, "handshake failed: hello too long");
      assert_int_equal(tls_stream_cause(server), TLS_CAUSE_PROTOCOL);
      assert_ended(server);
    }
    tls_stream_free(server);
  }
}

/* ---- what is known of a good peer -------------------------------------- */

static void test_end_of_peer(void **state)
{
  struct spec long_ca = {.is_ca = true, .from = -DAY, .to = 20 * DAY};
  struct spec short_ca = {.is_ca = true, .from = -DAY, .to = 5 * DAY};
  struct cred top = build(NULL, &long_ca), middle = build(&top, &short_ca);
  struct spec specs[] = {{.san = NODE_7, .from = -DAY, .to = 3 * DAY},
                         {.san = NODE_7, .from = -DAY, .to = 9 * DAY}};
  char *top_text = pem_of_cert(top.cert);
  char *middle_text = pem_of_cert(middle.cert);

  (void)state;
  for (int i = 0; i < 2; i++) {
    struct cred cred = build(&middle, &specs[i]);
    char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);
    char *both = join_texts(cert, middle_text);
    int64_t begins, ends, expected;
    struct tls_context *context;
    struct pair pair;

    assert_ok(tls_certificate_times(i == 0 ? cert : middle_text, &begins,
                                    &expected, error));
    assert_ok(tls_context_new(top_text, both, key, &context, error));
    pair = make_pair(context, context);
    assert_int_equal(tls_stream_peer_expires(pair.client), 0);
    crawl(&pair);
    assert_int_equal(tls_stream_peer_expires(pair.client), expected);
    assert_int_equal(tls_stream_peer_expires(pair.server), expected);
    assert_int_equal(tls_stream_cause(pair.client), TLS_CAUSE_NONE);
    assert_ok(tls_certificate_times(cert, &begins, &ends, error));
    assert_int_equal(ends - begins, (i == 0 ? 4 : 10) * DAY);
    free_pair(&pair);
    tls_context_unref(context);
    free(cert), free(key), free(both);
    free_cred(&cred);
  }
  free(top_text);
  free(middle_text);
  free_cred(&top);
  free_cred(&middle);
}

/* ---- cut and altered --------------------------------------------------- */

/* Moves everything, but the byte at `at` of all that goes in one direction is
   altered, or, with no mask, it and the rest never arrives. */
struct fault {
  struct tls_stream *from;
  size_t at, passed;
  uint8_t mask;
};

static void move_faulty(struct fault *f, struct tls_stream *to)
{
  const uint8_t *data;
  size_t n = tls_stream_output(f->from, &data);
  uint8_t copy[OUTPUT_MAX];

  assert_true(n <= sizeof copy);
  if (n > 0) memcpy(copy, data, n);
  tls_stream_sent(f->from, n);
  for (size_t i = 0; i < n; i++, f->passed++) {
    if (f->passed >= f->at && f->mask == 0) continue;
    if (f->passed == f->at) copy[i] ^= f->mask;
    (void)tls_stream_feed(to, &copy[i], 1);
    assert_queue_clean();
  }
}

static void shake_faulty(struct pair *pair, struct fault *f)
{
  struct tls_stream *to = f->from == pair->client ? pair->server : pair->client;
  size_t passed;
  bool moved;

  do {
    passed = f->passed;
    move_faulty(f, to);
    moved = move_bytes(to, f->from, SIZE_MAX) || f->passed != passed;
  } while (moved);
}

/* How many bytes a good handshake has in one direction. */
static size_t length_of(bool from_client)
{
  struct pair pair = make_pair(good, peer);
  struct fault f = {.from = from_client ? pair.client : pair.server,
                    .at = SIZE_MAX};

  shake_faulty(&pair, &f);
  assert_true(tls_stream_ready(pair.client));
  assert_int_equal(tls_stream_peer(pair.server), 1);
  free_pair(&pair);
  return f.passed;
}

static void test_cut(void **state)
{
  (void)state;
  for (int from_client = 0; from_client < 2; from_client++) {
    size_t n = length_of(from_client);

    assert_in_range(n, 500, 10000);
    for (size_t at = random_u32() % 5; at < n; at += 5) {
      struct pair pair = make_pair(good, peer);
      struct tls_stream *other = from_client ? pair.server : pair.client;
      struct fault f = {.from = from_client ? pair.client : pair.server,
                        .at = at};
      char byte;

      shake_faulty(&pair, &f);
      if (f.passed <= at) { /* signatures differ in length by some bytes */
        assert_true(at + 20 > n && tls_stream_ready(other));
        free_pair(&pair);
        continue;
      }
      assert_false(tls_stream_ready(other));
      assert_int_equal(tls_stream_peer(other), 0);
      assert_int_equal(tls_stream_peer_expires(other), 0);
      assert_int_equal(tls_stream_cause(other), TLS_CAUSE_NONE);
      assert_int_equal(tls_stream_read(other, &byte, 1), 0); /* it waits */
      assert_int_equal(write_text(other, "x"), -1);
      free_pair(&pair);
    }
  }
}

/* Gives it more, should it wait for the rest of a length that was altered. */
static void force(struct tls_stream *stream)
{
  static const uint8_t zeros[1024];
  size_t fed = 0;

  while (!tls_stream_ready(stream) && fed < 128 * 1024 &&
         tls_stream_feed(stream, zeros, sizeof zeros) == 0)
    fed += sizeof zeros;
  assert_queue_clean();
}

/* One byte of the handshake is altered: the end that gets it refuses it, and
   so the other cannot go on; or the byte is one that TLS ignores (the version
   in the header of a record), and all is as if nothing had been. */
static bool alter(bool from_client, size_t at, uint8_t mask)
{
  struct pair pair = make_pair(good, peer);
  struct tls_stream *from = from_client ? pair.client : pair.server;
  struct tls_stream *to = from_client ? pair.server : pair.client;
  struct fault f = {.from = from, .at = at, .mask = mask};
  size_t before = held;
  char byte;
  bool ignored;

  watch_begin();
  shake_faulty(&pair, &f);
  force(to);
  move_bytes(to, from, SIZE_MAX);
  watch_end(before, "altered handshake");
  ignored = tls_stream_ready(to);
  if (ignored) {
    assert_int_equal(tls_stream_peer(to), from_client ? 1 : 2);
    assert_true(tls_stream_ready(from));
  } else {
    assert_int_equal(tls_stream_peer(to), 0);
    assert_ended(to);
    /* Either it has heard of it or it waits, and never is a server ready. */
    if (tls_stream_read(from, &byte, 1) == -1)
      assert_ended(from);
    else
      assert_false(!from_client && tls_stream_ready(from));
  }
  free_pair(&pair);
  return ignored;
}

static void test_altered(void **state)
{
  (void)state;
  for (int from_client = 0; from_client < 2; from_client++) {
    size_t n = length_of(from_client), ignored = 0, all = 0;

    for (size_t at = random_u32() % 3; at < n; at += 3, all++) {
      uint8_t mask = (uint8_t)(1 + random_u32() % 255);

      if (alter(from_client, at, mask)) ignored++;
    }
    if (ignored > all / 50) fail_msg("%zu of %zu ignored", ignored, all);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_server_refuses),
      cmocka_unit_test(test_client_refuses),
      cmocka_unit_test(test_texts_differ),
      cmocka_unit_test(test_expired_ca),
      cmocka_unit_test(test_random_bytes),
      cmocka_unit_test(test_other_beginnings),
      cmocka_unit_test(test_half_a_hello),
      cmocka_unit_test(test_long_hello),
      cmocka_unit_test(test_end_of_peer),
      cmocka_unit_test(test_cut),
      cmocka_unit_test(test_altered),
  };

  if (!CRYPTO_set_mem_functions(count_malloc, count_realloc, count_free))
    return 1;
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
