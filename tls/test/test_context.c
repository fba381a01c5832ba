/*
** test_context.c: whom a context believes, and what it says to the others.
**
** Each refusal is looked at from both ends: the line that our stream gives,
** and the alert that reached the other side.
*/
#include "helpers.h"

#include <pthread.h>

#define ALPN "\x09quorate/1"
#define NODE_7 "URI:quorate:00c0ffee12345678/0000000000000007"

static struct ca ca, foreign_ca, namesake_ca;
static struct cred root, foreign, namesake; /* to sign what is below */
static struct tls_context *one, *two, *stranger;

static struct tls_context *make_joiner(const struct ca *of, uint64_t cluster)
{
  struct tls_context *context;
  uint8_t fingerprint[32];

  assert_ok(tls_fingerprint(of->cert, fingerprint, error));
  assert_ok(tls_context_new_joiner(cluster, fingerprint, &context, error));
  return context;
}

static int set_up(void **state)
{
  (void)state;
  ca = make_ca();
  assert_ok(tls_make_ca(CLUSTER + 1, &foreign_ca.cert, &foreign_ca.key, error));
  namesake_ca = make_ca(); /* the right name, another key */
  root = read_cred(ca.cert, ca.key);
  foreign = read_cred(foreign_ca.cert, foreign_ca.key);
  namesake = read_cred(namesake_ca.cert, namesake_ca.key);
  one = make_member(&ca, CLUSTER, 1);
  two = make_member(&ca, CLUSTER, 2);
  stranger = make_member(&foreign_ca, CLUSTER, 3);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  tls_context_unref(one);
  tls_context_unref(two);
  tls_context_unref(stranger);
  free_cred(&root);
  free_cred(&foreign);
  free_cred(&namesake);
  free_ca(&ca);
  free_ca(&foreign_ca);
  free_ca(&namesake_ca);
  return 0;
}

/* ---- between streams --------------------------------------------------- */

static void test_members(void **state)
{
  struct pair pair = make_pair(one, two);
  const uint8_t *data;

  (void)state;
  assert_false(tls_stream_ready(pair.client));
  assert_int_equal(tls_stream_peer(pair.client), 0);
  shake(&pair, SIZE_MAX);
  assert_true(tls_stream_ready(pair.client));
  assert_true(tls_stream_ready(pair.server));
  assert_int_equal(tls_stream_peer(pair.client), 2);
  assert_int_equal(tls_stream_peer(pair.server), 1);
  assert_string_equal(tls_stream_error(pair.client), "");
  assert_string_equal(tls_stream_error(pair.server), "");
  assert_int_equal(tls_stream_output(pair.server, &data), 0); /* no tickets */
  free_pair(&pair);
}

/* The client's certificate came, the proof of its key did not yet: then the
   server knows nobody. */
static void test_nobody_before_the_end(void **state)
{
  struct pair pair = make_pair(one, two);
  const uint8_t *data;
  size_t n;

  (void)state;
  move_bytes(pair.client, pair.server, SIZE_MAX);
  move_bytes(pair.server, pair.client, SIZE_MAX);
  n = tls_stream_output(pair.client, &data);
  for (size_t i = 0; i + 1 < n; i++) {
    assert_int_equal(tls_stream_feed(pair.server, data + i, 1), 0);
    assert_int_equal(tls_stream_peer(pair.server), 0);
    assert_false(tls_stream_ready(pair.server));
  }
  assert_int_equal(tls_stream_feed(pair.server, data + n - 1, 1), 0);
  assert_int_equal(tls_stream_peer(pair.server), 1);
  free_pair(&pair);
}

static void test_joiner(void **state)
{
  struct tls_context *joiner = make_joiner(&ca, CLUSTER);
  struct pair pair = make_ready_pair(joiner, two);

  (void)state;
  assert_int_equal(tls_stream_peer(pair.client), 2);
  assert_int_equal(tls_stream_peer(pair.server), 0);
  tls_context_unref(joiner); /* the stream has a reference of its own */
  assert_int_equal(write_text(pair.client, "hello"), 0);
  free_pair(&pair);
}

/* A client finishes before the server has looked at its certificate: it
   learns of the refusal when it reads. */
static void test_foreign_client(void **state)
{
  struct tls_context *joiner = make_joiner(&ca, CLUSTER);
  struct pair pair = make_pair(stranger, one);
  char byte;

  (void)state;
  shake(&pair, SIZE_MAX);
  assert_says(pair.client, "certificate verify failed");
  assert_says(pair.server, "peer sent alert");
  assert_int_equal(tls_stream_read(pair.client, &byte, 1), -1);
  assert_int_equal(tls_stream_feed(pair.server, "x", 1), -1);
  free_pair(&pair);
  tls_context_unref(joiner);
}

static void test_wrong_cluster(void **state)
{
  struct tls_context *other = make_member(&ca, CLUSTER + 1, 9);
  struct tls_context *joiner = make_joiner(&ca, CLUSTER);
  struct pair pair;

  (void)state;
  pair = make_pair(one, other);
  shake(&pair, SIZE_MAX);
  assert_says(pair.client, "wrong cluster");
  assert_says(pair.server, "peer sent alert: bad certificate");
  free_pair(&pair);
  pair = make_pair(joiner, other);
  shake(&pair, SIZE_MAX);
  assert_says(pair.client, "wrong cluster");
  assert_false(tls_stream_ready(pair.client));
  assert_false(tls_stream_ready(pair.server));
  free_pair(&pair);
  tls_context_unref(other);
  tls_context_unref(joiner);
}

static void test_wrong_fingerprint(void **state)
{
  struct tls_context *joiner = make_joiner(&foreign_ca, CLUSTER);
  struct pair pair = make_pair(joiner, one);

  (void)state;
  shake(&pair, SIZE_MAX);
  assert_says(pair.client, "does not end in the token's CA");
  assert_says(pair.server, "peer sent alert: bad certificate");
  assert_int_equal(tls_stream_peer(pair.client), 0);
  free_pair(&pair);
  tls_context_unref(joiner);
}

/* ---- peers with any certificate ---------------------------------------- */

struct shown {
  const char *name;
  struct spec spec;
  const struct cred *issuer;         /* NULL: itself */
  const char *as_client, *as_server; /* our stream's error; NULL: accepted */
  int alert;
};

static const struct shown shown[] = {
    {"good", {.san = NODE_7}, &root, NULL, NULL, -1},
    {"also a DNS name", {.san = NODE_7 ",DNS:db"}, &root, NULL, NULL, -1},
    {"no usage at all", {.san = NODE_7, .eku = ""}, &root, NULL, NULL, -1},
    {"expired",
     {.san = NODE_7, .from = -2 * DAY, .to = -60},
     &root,
     "certificate has expired",
     "certificate has expired",
     SSL_AD_CERTIFICATE_EXPIRED},
    {"not yet valid",
     {.san = NODE_7, .from = 3600, .to = DAY},
     &root,
     "certificate is not yet valid",
     "certificate is not yet valid",
     SSL_AD_BAD_CERTIFICATE},
    {"foreign CA",
     {.san = NODE_7},
     &foreign,
     "certificate verify failed: ",
     "certificate verify failed: ",
     SSL_AD_UNKNOWN_CA},
    {"namesake of the CA",
     {.san = NODE_7},
     &namesake,
     "certificate verify failed: its signature is not of the CA",
     "certificate verify failed: its signature is not of the CA",
     SSL_AD_DECRYPT_ERROR},
    {"self-signed",
     {.san = NODE_7},
     NULL,
     "certificate verify failed: self-signed, not signed by",
     "certificate verify failed: self-signed, not signed by",
     SSL_AD_UNKNOWN_CA},
    {"for servers only",
     {.san = NODE_7, .eku = "serverAuth"},
     &root,
     "certificate verify failed: unsu",
     NULL,
     SSL_AD_UNSUPPORTED_CERTIFICATE},
    {"for clients only",
     {.san = NODE_7, .eku = "clientAuth"},
     &root,
     NULL,
     "certificate verify failed: unsu",
     SSL_AD_UNSUPPORTED_CERTIFICATE},
    {"for mail",
     {.san = NODE_7, .eku = "emailProtection"},
     &root,
     "certificate verify failed: unsu",
     "certificate verify failed: unsu",
     SSL_AD_UNSUPPORTED_CERTIFICATE},
    {"signed with SHA-1",
     {.san = NODE_7, .digest = "SHA1"},
     &root,
     "digest algorithm too weak",
     "digest algorithm too weak",
     SSL_AD_BAD_CERTIFICATE},
    {"no name",
     {.san = NULL},
     &root,
     "it names no node",
     "it names no node",
     SSL_AD_BAD_CERTIFICATE},
    {"only a DNS name",
     {.san = "DNS:db1.example.org"},
     &root,
     "it names no node",
     "it names no node",
     SSL_AD_BAD_CERTIFICATE},
    {"two names",
     {.san = NODE_7 ",URI:quorate:00c0ffee12345678/0000000000000008"},
     &root,
     "more than one node",
     "more than one node",
     SSL_AD_BAD_CERTIFICATE},
    {"two lists of names",
     {.san = NODE_7, .san2 = NODE_7},
     &root,
     "certificate verify failed",
     "certificate verify failed",
     SSL_AD_UNKNOWN_CA},
    {"upper-case name",
     {.san = "URI:quorate:00C0FFEE12345678/0000000000000007"},
     &root,
     "its name is not",
     "its name is not",
     SSL_AD_BAD_CERTIFICATE},
    {"node 0",
     {.san = "URI:quorate:00c0ffee12345678/0000000000000000"},
     &root,
     "its name is not",
     "its name is not",
     SSL_AD_BAD_CERTIFICATE},
    {"another scheme",
     {.san = "URI:spiffe://example.org/node/7"},
     &root,
     "its name is not",
     "its name is not",
     SSL_AD_BAD_CERTIFICATE},
    {"another cluster",
     {.san = "URI:quorate:00c0ffee12345679/0000000000000007"},
     &root,
     "wrong cluster: peer is node 7 of 00c0ffee12345679",
     "wrong cluster: peer is node 7 of 00c0ffee12345679",
     SSL_AD_BAD_CERTIFICATE},
};

static void show(const struct shown *s, bool as_server)
{
  const char *expected = as_server ? s->as_server : s->as_client;
  struct cred cred = build(s->issuer, &s->spec);
  struct raw_options options = {
      .server = as_server, .cred = &cred, .alpn = ALPN, .chain = {root.cert}};
  struct tls_stream *stream;
  struct raw raw;

  raw_open(&raw, &options);
  stream = tls_stream_new(one, !as_server);
  raw_shake(&raw, stream);
  if (expected == NULL) {
    if (!tls_stream_ready(stream))
      fail_msg("%s: %s", s->name, tls_stream_error(stream));
    assert_int_equal(tls_stream_peer(stream), 7);
    assert_int_equal(raw.alert, -1);
    assert_int_equal(raw.tickets, 0);
  } else {
    if (strstr(tls_stream_error(stream), expected) == NULL)
      fail_msg("%s: \"%s\"", s->name, tls_stream_error(stream));
    assert_false(tls_stream_ready(stream));
    assert_int_equal(tls_stream_peer(stream), 0);
    if (raw.alert != s->alert) fail_msg("%s: alert %d", s->name, raw.alert);
  }
  tls_stream_free(stream);
  raw_close(&raw);
  free_cred(&cred);
}

static void test_shown_by_client(void **state)
{
  (void)state;
  for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++)
    show(&shown[i], false);
}

static void test_shown_by_server(void **state)
{
  (void)state;
  for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++)
    show(&shown[i], true);
}

static void test_weak_key(void **state)
{
  EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)1024);
  struct shown s = {.name = "RSA 1024",
                    .spec = {.san = NODE_7, .key = key},
                    .issuer = &root,
                    .as_client = "key too weak",
                    .as_server = "key too weak",
                    .alert = SSL_AD_BAD_CERTIFICATE};

  (void)state;
  show(&s, false);
  show(&s, true);
  EVP_PKEY_free(key);
}

/* ---- what a joiner is shown -------------------------------------------- */

static void show_joiner(const struct cred *cred, X509 *second, X509 *third,
                        const char *expected)
{
  struct raw_options options = {
      .server = true, .cred = cred, .alpn = ALPN, .chain = {second, third}};
  struct tls_context *joiner = make_joiner(&ca, CLUSTER);
  struct tls_stream *stream;
  struct raw raw;

  raw_open(&raw, &options);
  stream = tls_stream_new(joiner, false);
  raw_shake(&raw, stream);
  if (expected == NULL) {
    assert_string_equal(tls_stream_error(stream), "");
    assert_int_equal(tls_stream_peer(stream), 7);
    assert_int_equal(raw.alert, -1);
  } else {
    assert_says(stream, expected);
    assert_false(tls_stream_ready(stream));
    assert_int_equal(tls_stream_peer(stream), 0);
    assert_int_not_equal(raw.alert, -1);
  }
  tls_stream_free(stream);
  raw_close(&raw);
  tls_context_unref(joiner);
}

static void test_joiner_pins(void **state)
{
  struct spec spec = {.san = NODE_7};
  struct cred good = build(&root, &spec), bad = build(&foreign, &spec);
  struct cred alone = build(NULL, &spec);
  const char *no_anchor = "does not end in the token's CA";

  (void)state;
  show_joiner(&good, root.cert, NULL, NULL);
  show_joiner(&good, foreign.cert, root.cert, NULL); /* one too many */
  show_joiner(&good, NULL, NULL, no_anchor);
  show_joiner(&good, foreign.cert, NULL, no_anchor);
  show_joiner(&good, root.cert, foreign.cert, no_anchor); /* not the last */
  show_joiner(&bad, foreign.cert, NULL, no_anchor);
  /* The right CA at the end of a chain that it has nothing to do with. */
  show_joiner(&bad, root.cert, NULL,
              "certificate verify failed: not signed by a CA");
  show_joiner(&bad, foreign.cert, root.cert,
              "certificate verify failed: not signed by a CA");
  show_joiner(&alone, root.cert, NULL,
              "certificate verify failed: self-signed, not signed by");
  show_joiner(&root, root.cert, NULL, "certificate");
  show_joiner(&root, NULL, NULL, no_anchor);
  free_cred(&good);
  free_cred(&bad);
  free_cred(&alone);
}

static void test_joiner_judges(void **state)
{
  struct spec expired = {.san = NODE_7, .from = -2 * DAY, .to = -60};
  struct spec client = {.san = NODE_7, .eku = "clientAuth"};
  struct spec nameless = {.san = NULL};
  struct cred a = build(&root, &expired), b = build(&root, &client);
  struct cred c = build(&root, &nameless);

  (void)state;
  show_joiner(&a, root.cert, NULL, "certificate has expired");
  show_joiner(&b, root.cert, NULL, "certificate verify failed: unsu");
  show_joiner(&c, root.cert, NULL, "it names no node");
  free_cred(&a);
  free_cred(&b);
  free_cred(&c);
}

/* The pinned certificate must be of a CA: a node's own would do as an anchor
   otherwise for whatever its key signs. */
static void test_joiner_pins_no_leaf(void **state)
{
  struct spec spec = {.san = NODE_7};
  struct cred leaf = build(&root, &spec), child = build(&leaf, &spec);
  struct raw_options options = {
      .server = true, .cred = &child, .alpn = ALPN, .chain = {leaf.cert}};
  struct tls_context *joiner;
  char *text = pem_of_cert(leaf.cert);
  struct tls_stream *stream;
  uint8_t fingerprint[32];
  struct raw raw;

  (void)state;
  assert_ok(tls_fingerprint(text, fingerprint, error));
  assert_ok(tls_context_new_joiner(CLUSTER, fingerprint, &joiner, error));
  raw_open(&raw, &options);
  stream = tls_stream_new(joiner, false);
  raw_shake(&raw, stream);
  assert_says(stream, "does not end in the token's CA");
  tls_stream_free(stream);
  raw_close(&raw);
  tls_context_unref(joiner);
  free(text);
  free_cred(&leaf);
  free_cred(&child);
}

/* ---- a public key infrastructure from outside -------------------------- */

static void test_outside_pki(void **state)
{
  struct spec ca_spec = {.is_ca = true}, leaf_spec = {.san = NODE_7};
  struct cred top = build(NULL, &ca_spec), middle = build(&top, &ca_spec);
  struct cred leaf = build(&middle, &leaf_spec);
  char *top_text = pem_of_cert(top.cert), *key = pem_of_key(leaf.key);
  char *middle_text = pem_of_cert(middle.cert);
  char *leaf_text = pem_of_cert(leaf.cert);
  char *both = join_texts(leaf_text, middle_text);
  struct tls_context *full, *partial, *joiner;
  struct ca top_ca = {top_text, NULL}, middle_ca = {middle_text, NULL};
  struct pair pair;

  (void)state;
  assert_error(tls_context_new(top_text, leaf_text, key, &full, error),
               "does not belong to the CA");
  /* The root as CA, with the intermediate in the node's own text. */
  assert_ok(tls_context_new(top_text, both, key, &full, error));
  pair = make_ready_pair(full, full);
  free_pair(&pair);
  joiner = make_joiner(&top_ca, CLUSTER);
  pair = make_ready_pair(joiner, full);
  free_pair(&pair);
  tls_context_unref(joiner);
  /* The intermediate as CA. */
  assert_ok(tls_context_new(middle_text, leaf_text, key, &partial, error));
  pair = make_ready_pair(partial, full);
  free_pair(&pair);
  joiner = make_joiner(&middle_ca, CLUSTER);
  pair = make_ready_pair(joiner, partial);
  free_pair(&pair);
  tls_context_unref(joiner);
  tls_context_unref(full);
  tls_context_unref(partial);
  free(top_text), free(middle_text), free(leaf_text), free(both), free(key);
  free_cred(&top);
  free_cred(&middle);
  free_cred(&leaf);
}

/* ---- protocol ---------------------------------------------------------- */

static void try_raw(bool server, const char *alpn, int version,
                    const char *expected, int alert)
{
  struct spec spec = {.san = NODE_7};
  struct cred cred = build(&root, &spec);
  struct raw_options options = {.server = server,
                                .cred = &cred,
                                .alpn = alpn,
                                .version = version,
                                .chain = {root.cert}};
  struct tls_stream *stream;
  struct raw raw;

  raw_open(&raw, &options);
  stream = tls_stream_new(one, !server);
  raw_shake(&raw, stream);
  if (expected == NULL)
    assert_true(tls_stream_ready(stream));
  else
    assert_false(tls_stream_ready(stream));
  assert_says(stream, expected == NULL ? "" : expected);
  assert_int_equal(raw.alert, alert);
  tls_stream_free(stream);
  raw_close(&raw);
  free_cred(&cred);
}

static void test_alpn(void **state)
{
  const int none = SSL_AD_NO_APPLICATION_PROTOCOL;

  (void)state;
  try_raw(false, ALPN, 0, NULL, -1);
  try_raw(false, "\x02h2" ALPN, 0, NULL, -1);
  try_raw(false, NULL, 0, "peer offered no quorate/1", none);
  try_raw(false, "\x02h2", 0, "peer offered no quorate/1", none);
  try_raw(false, "\x09quorate/2", 0, "peer offered no quorate/1", none);
  try_raw(false, "\x0aquorate/1x", 0, "peer offered no quorate/1", none);
  try_raw(true, ALPN, 0, NULL, -1);
  try_raw(true, NULL, 0, "peer selected no quorate/1", SSL_AD_BAD_CERTIFICATE);
  /* OpenSSL itself refuses a choice that was never offered. */
  try_raw(true, "\x02h2", 0, "bad extension", SSL_AD_DECODE_ERROR);
}

static void test_only_tls_1_3(void **state)
{
  (void)state;
  try_raw(false, ALPN, TLS1_2_VERSION, "peer speaks no TLS 1.3",
          SSL_AD_PROTOCOL_VERSION);
  try_raw(true, ALPN, TLS1_2_VERSION, "peer sent alert", -1);
}

/* ---- making a context -------------------------------------------------- */

static void test_papers(void **state)
{
  struct node a = make_node(&ca, CLUSTER, 1), b = make_node(&ca, CLUSTER, 2);
  struct spec specs[] = {{.san = NULL},
                         {.san = NODE_7, .eku = "serverAuth"},
                         {.san = NODE_7, .from = -2 * DAY, .to = -DAY}};
  static const char *const words[] = {"it names no node", "not for servers",
                                      NULL};
  struct tls_context *c;

  (void)state;
  assert_error(tls_context_new("x", a.cert, a.key, &c, error),
               "CA certificate: not a certificate");
  assert_error(tls_context_new(ca.cert, "x", a.key, &c, error),
               "certificate: not a certificate");
  assert_error(tls_context_new(ca.cert, a.cert, "x", &c, error),
               "key: not an unencrypted private key");
  assert_error(tls_context_new(ca.cert, a.cert, b.key, &c, error),
               "key does not belong to the certificate");
  assert_error(tls_context_new(foreign_ca.cert, a.cert, a.key, &c, error),
               "certificate does not belong to the CA");
  assert_error(tls_context_new(b.cert, a.cert, a.key, &c, error),
               "CA certificate: not one of a CA");
  assert_null(c);
  for (int i = 0; i < 3; i++) {
    struct cred cred = build(&root, &specs[i]);
    char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);

    /* An expired certificate is for the peers to refuse: see context.c. */
    if (words[i] == NULL)
      assert_ok(tls_context_new(ca.cert, cert, key, &c, error));
    else
      assert_error(tls_context_new(ca.cert, cert, key, &c, error), words[i]);
    tls_context_unref(c);
    free(cert);
    free(key);
    free_cred(&cred);
  }
  free_node(&a);
  free_node(&b);
}

static void test_references(void **state)
{
  struct tls_context *context = make_member(&ca, CLUSTER, 5);

  (void)state;
  assert_ptr_equal(tls_context_ref(context), context);
  tls_context_unref(context);
  struct pair pair = make_ready_pair(context, context);
  tls_context_unref(context);
  assert_int_equal(write_text(pair.client, "still here"), 0);
  free_pair(&pair);
}

/* ---- threads ----------------------------------------------------------- */

static void *shake_often(void *arg)
{
  bool *ok = arg;

  for (int i = 0; i < 20; i++) {
    struct pair pair = {tls_stream_new(one, false), tls_stream_new(two, true)};
    bool moved = true;

    while (moved) {
      const uint8_t *data;
      size_t n = tls_stream_output(pair.client, &data);

      tls_stream_feed(pair.server, data, n);
      tls_stream_sent(pair.client, n);
      moved = n > 0;
      n = tls_stream_output(pair.server, &data);
      tls_stream_feed(pair.client, data, n);
      tls_stream_sent(pair.server, n);
      moved |= n > 0;
    }
    *ok = *ok && tls_stream_peer(pair.client) == 2 &&
          tls_stream_peer(pair.server) == 1;
    tls_stream_free(pair.client);
    tls_stream_free(pair.server);
  }
  return NULL;
}

static void test_threads_share_a_context(void **state)
{
  bool ok[4] = {true, true, true, true};
  pthread_t threads[4];

  (void)state;
  for (int i = 0; i < 4; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, shake_often, &ok[i]), 0);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    assert_true(ok[i]);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_members),
      cmocka_unit_test(test_nobody_before_the_end),
      cmocka_unit_test(test_joiner),
      cmocka_unit_test(test_foreign_client),
      cmocka_unit_test(test_wrong_cluster),
      cmocka_unit_test(test_wrong_fingerprint),
      cmocka_unit_test(test_shown_by_client),
      cmocka_unit_test(test_shown_by_server),
      cmocka_unit_test(test_weak_key),
      cmocka_unit_test(test_joiner_pins),
      cmocka_unit_test(test_joiner_judges),
      cmocka_unit_test(test_joiner_pins_no_leaf),
      cmocka_unit_test(test_outside_pki),
      cmocka_unit_test(test_alpn),
      cmocka_unit_test(test_only_tls_1_3),
      cmocka_unit_test(test_papers),
      cmocka_unit_test(test_references),
      cmocka_unit_test(test_threads_share_a_context),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
