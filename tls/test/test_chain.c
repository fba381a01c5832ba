/*
** test_chain.c: bundles of CAs, several keys, which CA a certificate comes
** from, and a CA that is replaced while both kinds of certificates live.
*/
#include "helpers.h"

#define ALPN "\x09quorate/1"
#define NODE_7 "URI:quorate:00c0ffee12345678/0000000000000007"

static struct ca old_ca, new_ca; /* of the same cluster, so of one name */
static char *old_new, *new_old;

static int set_up(void **state)
{
  (void)state;
  old_ca = make_ca();
  new_ca = make_ca();
  old_new = join_texts(old_ca.cert, new_ca.cert);
  new_old = join_texts(new_ca.cert, old_ca.cert);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  free_ca(&old_ca);
  free_ca(&new_ca);
  free(old_new);
  free(new_old);
  return 0;
}

/* ---- fingerprints and times -------------------------------------------- */

static void test_fingerprints(void **state)
{
  char *three = join_texts(old_new, old_ca.cert);
  uint8_t out[3][32], one[32];
  unsigned n;

  (void)state;
  assert_ok(tls_fingerprints(three, out, 3, &n, error));
  assert_int_equal(n, 3);
  assert_ok(tls_fingerprint(old_ca.cert, one, error));
  assert_memory_equal(out[0], one, 32);
  assert_memory_equal(out[2], one, 32);
  assert_ok(tls_fingerprint(new_ca.cert, one, error));
  assert_memory_equal(out[1], one, 32);
  assert_ok(tls_fingerprints(new_ca.cert, out, 1, &n, error));
  assert_int_equal(n, 1);
  assert_error(tls_fingerprints(three, out, 2, &n, error), "more than 2");
  assert_int_equal(n, 0);
  assert_error(tls_fingerprints("", out, 2, &n, error), "empty");
  assert_error(tls_fingerprints("x", out, 2, &n, error), "not a certificate");
  free(three);
}

static void test_times(void **state)
{
  struct spec spec = {.san = NODE_7, .from = -5 * DAY, .to = -2 * DAY};
  struct cred root = read_cred(old_ca.cert, old_ca.key);
  struct cred cred = build(&root, &spec);
  char *text = pem_of_cert(cred.cert);
  int64_t begins, ends, now = time(NULL);

  (void)state;
  assert_ok(tls_certificate_times(text, &begins, &ends, error));
  assert_in_range(begins, now - 5 * DAY - 60, now - 5 * DAY);
  assert_in_range(ends, now - 2 * DAY - 60, now - 2 * DAY);
  assert_ok(tls_certificate_times(old_ca.cert, &begins, &ends, error));
  assert_in_range(ends, now + 3651 * DAY, now + 3652 * DAY);
  assert_error(tls_certificate_times(old_ca.key, &begins, &ends, error),
               "certificate: not a certificate");
  free(text);
  free_cred(&cred);
  free_cred(&root);
}

/* ---- who signed it ----------------------------------------------------- */

static void assert_issuer(const char *bundle, const char *cert,
                          const char *expected)
{
  uint8_t found[32], wanted[32];

  assert_ok(tls_fingerprint(expected, wanted, error));
  assert_ok(tls_issuer(bundle, cert, found, error));
  assert_memory_equal(found, wanted, 32);
}

static void test_issuer(void **state)
{
  struct node a = make_node(&old_ca, CLUSTER, 1);
  struct node b = make_node(&new_ca, CLUSTER, 1);
  uint8_t print[32];

  (void)state;
  assert_issuer(old_new, a.cert, old_ca.cert);
  assert_issuer(new_old, a.cert, old_ca.cert);
  assert_issuer(old_new, b.cert, new_ca.cert);
  assert_issuer(new_old, b.cert, new_ca.cert);
  assert_issuer(new_ca.cert, b.cert, new_ca.cert);
  assert_error(tls_issuer(new_ca.cert, a.cert, print, error),
               "does not belong to the CA");
  assert_error(tls_issuer(old_ca.cert, old_ca.cert, print, error),
               "does not belong to the CA");
  assert_error(tls_issuer(a.cert, a.cert, print, error), "not one of a CA");
  free_node(&a);
  free_node(&b);
}

/* With others between: the last of those that are in the node's own text, and
   in the bundle. */
static void test_issuer_of_chain(void **state)
{
  struct spec ca_spec = {.is_ca = true}, leaf_spec = {.san = NODE_7};
  struct cred top = build(NULL, &ca_spec), middle = build(&top, &ca_spec);
  struct cred leaf = build(&middle, &leaf_spec);
  char *top_text = pem_of_cert(top.cert), *leaf_text = pem_of_cert(leaf.cert);
  char *middle_text = pem_of_cert(middle.cert);
  char *full = join_texts(leaf_text, middle_text);
  char *both = join_texts(top_text, middle_text);
  uint8_t print[32];

  (void)state;
  assert_issuer(top_text, full, top_text);
  assert_issuer(middle_text, full, middle_text);
  assert_issuer(middle_text, leaf_text, middle_text);
  assert_issuer(both, leaf_text, middle_text);
  assert_error(tls_issuer(top_text, leaf_text, print, error),
               "does not belong to the CA");
  free(top_text), free(middle_text), free(leaf_text), free(full), free(both);
  free_cred(&top);
  free_cred(&middle);
  free_cred(&leaf);
}

/* ---- what is sent ------------------------------------------------------ */

/* The certificates that a context shows: how many, and the last of them. */
static int shown_by(struct tls_context *context, uint8_t last[32])
{
  struct raw_options options = {.alpn = ALPN};
  struct tls_stream *stream = tls_stream_new(context, true);
  STACK_OF(X509) * chain;
  unsigned len;
  struct raw raw;
  int n;

  raw_open(&raw, &options);
  raw_shake(&raw, stream);
  assert_true(tls_stream_ready(stream));
  chain = SSL_get_peer_cert_chain(raw.ssl);
  n = sk_X509_num(chain);
  assert_int_equal(
      X509_digest(sk_X509_value(chain, n - 1), EVP_sha256(), last, &len), 1);
  tls_stream_free(stream);
  raw_close(&raw);
  return n;
}

static struct tls_context *make_with(const char *bundle, const struct ca *of,
                                     uint64_t id)
{
  struct node node = make_node(of, CLUSTER, id);
  struct tls_context *context;

  assert_ok(tls_context_new(bundle, node.cert, node.key, &context, error));
  free_node(&node);
  return context;
}

static void test_chain_ends_with_issuer(void **state)
{
  const struct ca *of[] = {&old_ca, &new_ca};
  const char *bundles[] = {old_new, new_old};
  uint8_t last[32], expected[32];

  (void)state;
  for (int i = 0; i < 4; i++) {
    struct tls_context *context = make_with(bundles[i / 2], of[i % 2], 1);

    assert_int_equal(shown_by(context, last), 2);
    assert_ok(tls_fingerprint(of[i % 2]->cert, expected, error));
    assert_memory_equal(last, expected, 32);
    tls_context_unref(context);
  }
}

/* The issuer is not sent twice if it is in the node's own text as well; others
   there are sent, before it. */
static void test_chain_in_own_text(void **state)
{
  struct node node = make_node(&old_ca, CLUSTER, 1);
  char *with_old = join_texts(node.cert, old_ca.cert);
  char *with_both = join_texts(with_old, new_ca.cert);
  const char *texts[] = {node.cert, with_old, with_both};
  uint8_t last[32], expected[32];

  (void)state;
  assert_ok(tls_fingerprint(old_ca.cert, expected, error));
  for (int i = 0; i < 3; i++) {
    struct tls_context *context;

    assert_ok(tls_context_new(new_old, texts[i], node.key, &context, error));
    assert_int_equal(shown_by(context, last), i < 2 ? 2 : 3);
    assert_memory_equal(last, expected, 32);
    tls_context_unref(context);
  }
  free(with_old);
  free(with_both);
  free_node(&node);
}

/* A chain that no peer would take for its size is refused here. */
static void test_long_chain(void **state)
{
  struct node node = make_node(&old_ca, CLUSTER, 1);
  char *text = strdup(node.cert);
  struct tls_context *context = NULL;
  int rc = 0, n = 1;

  (void)state;
  while (rc == 0) {
    char *longer = join_texts(text, new_ca.cert);
    struct pair pair;

    rc = tls_context_new(old_ca.cert, longer, node.key, &context, error);
    if (rc == 0 && n % 8 == 0) {
      pair = make_ready_pair(context, context);
      free_pair(&pair);
    }
    tls_context_unref(context);
    free(text);
    text = longer;
    n++;
  }
  assert_non_null(strstr(error->text, "and may have 16384"));
  assert_in_range(n, 20, 60);
  free(text);
  free_node(&node);
}

/* ---- several keys ------------------------------------------------------ */

static void test_keys(void **state)
{
  struct node a = make_node(&old_ca, CLUSTER, 1);
  struct node b = make_node(&old_ca, CLUSTER, 1);
  struct node c = make_node(&old_ca, CLUSTER, 1);
  char *ab = join_texts(a.key, b.key), *ba = join_texts(b.key, a.key);
  char *text = join_texts(a.cert, ab); /* a certificate before the keys */
  char *cut = strdup(ba), *bad = join_texts(b.key, "-----BEGIN PRIVATE KEY-----"
                                                   "\nAAAA\n-----END PRIVATE "
                                                   "KEY-----\n");
  struct tls_context *context;
  const struct node *owners[] = {&a, &b};

  (void)state;
  for (int i = 0; i < 2; i++) {
    const char *texts[] = {ab, ba, text, owners[i]->key};

    for (int k = 0; k < 4; k++) {
      assert_ok(tls_context_new(old_ca.cert, owners[i]->cert, texts[k],
                                &context, error));
      struct pair pair = make_ready_pair(context, context);

      free_pair(&pair);
      tls_context_unref(context);
    }
  }
  assert_error(tls_context_new(old_ca.cert, c.cert, ab, &context, error),
               "key does not belong to the certificate");
  cut[strlen(cut) - 40] = '\0';
  assert_error(tls_context_new(old_ca.cert, a.cert, cut, &context, error),
               "key: not an unencrypted private key");
  assert_error(tls_context_new(old_ca.cert, a.cert, bad, &context, error),
               "key: not an unencrypted private key");
  assert_error(tls_context_new(old_ca.cert, a.cert, a.cert, &context, error),
               "key: not an unencrypted private key");
  free(ab), free(ba), free(text), free(cut), free(bad);
  free_node(&a);
  free_node(&b);
  free_node(&c);
}

/* A key is renewed in steps of one file each, and at each of them what is on
   disk works: key.pem = new and old, cert.pem = new, key.pem = new. */
static void test_key_renewal(void **state)
{
  struct node before = make_node(&old_ca, CLUSTER, 1);
  struct node after = make_node(&old_ca, CLUSTER, 1);
  char *both = join_texts(after.key, before.key);
  const char *steps[][2] = {{before.cert, before.key},
                            {before.cert, both},
                            {after.cert, both},
                            {after.cert, after.key}};

  (void)state;
  for (int i = 0; i < 4; i++) {
    struct tls_context *context;
    struct pair pair;

    assert_ok(tls_context_new(old_ca.cert, steps[i][0], steps[i][1], &context,
                              error));
    pair = make_ready_pair(context, context);
    assert_int_equal(tls_stream_peer(pair.server), 1);
    free_pair(&pair);
    tls_context_unref(context);
  }
  free(both);
  free_node(&before);
  free_node(&after);
}

/* ---- a CA is replaced -------------------------------------------------- */

enum { OLD, OLD_BOTH, NEW_BOTH, NEW, STAGES };

/* Whom the nodes of each stage believe. A connection needs both directions, so
   no certificate of the new CA may be in use before all believe it: OLD and
   NEW_BOTH do not meet. */
static void test_rotation(void **state)
{
  struct tls_context *at[STAGES] = {
      make_with(old_ca.cert, &old_ca, 1), make_with(old_new, &old_ca, 2),
      make_with(new_old, &new_ca, 3), make_with(new_ca.cert, &new_ca, 4)};
  static const bool believes[STAGES][STAGES] = {{true, true, false, false},
                                                {true, true, true, true},
                                                {true, true, true, true},
                                                {false, false, true, true}};

  (void)state;
  for (int c = 0; c < STAGES; c++) {
    for (int s = 0; s < STAGES; s++) {
      bool expected = believes[c][s] && believes[s][c];
      struct pair pair = make_pair(at[c], at[s]);
      char byte;

      shake(&pair, 1);
      if (expected) {
        assert_int_equal(tls_stream_peer(pair.client), s + 1);
        assert_int_equal(tls_stream_peer(pair.server), c + 1);
        assert_int_equal(write_text(pair.client, "x"), 0);
      } else {
        enum tls_cause client = tls_stream_cause(pair.client);

        assert_false(tls_stream_ready(pair.server));
        assert_int_equal(tls_stream_read(pair.client, &byte, 1), -1);
        assert_true(client == TLS_CAUSE_FOREIGN ||
                    tls_stream_cause(pair.server) == TLS_CAUSE_FOREIGN);
      }
      free_pair(&pair);
    }
  }
  for (int i = 0; i < STAGES; i++)
    tls_context_unref(at[i]);
}

/* A token made in any stage names the CA that the inviting node shows. */
static void test_joiner_in_rotation(void **state)
{
  const struct ca *of[] = {&old_ca, &old_ca, &new_ca, &new_ca};
  const char *bundles[] = {old_ca.cert, old_new, new_old, new_ca.cert};

  (void)state;
  for (int i = 0; i < STAGES; i++) {
    struct node node = make_node(of[i], CLUSTER, 5);
    struct tls_context *server, *joiner;
    uint8_t print[32];
    struct pair pair;

    assert_ok(tls_context_new(bundles[i], node.cert, node.key, &server, error));
    assert_ok(tls_issuer(bundles[i], node.cert, print, error));
    assert_ok(tls_context_new_joiner(CLUSTER, print, &joiner, error));
    pair = make_ready_pair(joiner, server);
    assert_int_equal(tls_stream_peer(pair.client), 5);
    free_pair(&pair);
    tls_context_unref(joiner);
    tls_context_unref(server);
    free_node(&node);
  }
}

/* ---- CAs of one name and no key identifiers ----------------------------- */

/* As a PKI makes them that renews its root by hand. OpenSSL alone takes the
   first of the two that has the name. */
static void test_namesakes(void **state)
{
  struct spec ca_spec = {.is_ca = true, .name = "Example CA"};
  struct spec leaf_spec = {.san = NODE_7}, other_spec = {.is_ca = true};
  struct cred a = build(NULL, &ca_spec), b = build(NULL, &ca_spec);
  struct cred other = build(NULL, &other_spec);
  struct cred leaves[] = {build(&a, &leaf_spec), build(&b, &leaf_spec),
                          build(&other, &leaf_spec)};
  char *a_text = pem_of_cert(a.cert), *b_text = pem_of_cert(b.cert);
  char *other_text = pem_of_cert(other.cert);
  char *ab = join_texts(a_text, b_text), *bundle = join_texts(ab, other_text);
  const char *issuers[] = {a_text, b_text, other_text};
  struct tls_context *contexts[3], *only_a;

  (void)state;
  for (int i = 0; i < 3; i++) {
    char *cert = pem_of_cert(leaves[i].cert), *key = pem_of_key(leaves[i].key);

    assert_issuer(bundle, cert, issuers[i]);
    assert_ok(tls_context_new(bundle, cert, key, &contexts[i], error));
    if (i == 0) assert_ok(tls_context_new(a_text, cert, key, &only_a, error));
    free(cert);
    free(key);
  }
  for (int i = 0; i < 9; i++) {
    struct pair pair = make_ready_pair(contexts[i / 3], contexts[i % 3]);

    assert_int_equal(tls_stream_peer(pair.server), 7);
    free_pair(&pair);
  }
  for (int i = 1; i < 3; i++) {
    struct pair pair = make_pair(only_a, contexts[i]);

    shake(&pair, SIZE_MAX);
    assert_int_equal(tls_stream_cause(pair.client), TLS_CAUSE_FOREIGN);
    free_pair(&pair);
  }
  tls_context_unref(only_a);
  for (int i = 0; i < 3; i++) {
    tls_context_unref(contexts[i]);
    free_cred(&leaves[i]);
  }
  free(a_text), free(b_text), free(other_text), free(ab), free(bundle);
  free_cred(&a);
  free_cred(&b);
  free_cred(&other);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_fingerprints),
      cmocka_unit_test(test_times),
      cmocka_unit_test(test_issuer),
      cmocka_unit_test(test_issuer_of_chain),
      cmocka_unit_test(test_chain_ends_with_issuer),
      cmocka_unit_test(test_chain_in_own_text),
      cmocka_unit_test(test_long_chain),
      cmocka_unit_test(test_keys),
      cmocka_unit_test(test_key_renewal),
      cmocka_unit_test(test_rotation),
      cmocka_unit_test(test_joiner_in_rotation),
      cmocka_unit_test(test_namesakes),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
