/*
** test_names.c: identities by a pattern for DNS names, as an outside PKI has
** them.
*/
#include "helpers.h"

#define PATTERN "db-*.example.org"

static struct ca ca;
static struct cred root;

static int set_up(void **state)
{
  (void)state;
  ca = make_ca();
  root = read_cred(ca.cert, ca.key);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  free_cred(&root);
  free_ca(&ca);
  return 0;
}

static int identify(const char *cert, const char *pattern, uint64_t *node,
                    char name[254])
{
  int64_t expires = 0, begins, ends;
  int rc = tls_identity_named(cert, pattern, CLUSTER, node, name, 254, &expires,
                              error);

  assert_queue_clean();
  if (rc != 0) return rc;
  assert_ok(tls_certificate_times(cert, &begins, &ends, error));
  assert_int_equal(expires, ends);
  return 0;
}

/* ---- patterns ---------------------------------------------------------- */

static void test_patterns(void **state)
{
  static const struct {
    const char *pattern, *error;
  } bad[] = {
      {"", "empty"},
      {"db.example.org", "must have one '*', it has 0"},
      {"*.*", "must have one '*', it has 2"},
      {"**", "must have one '*', it has 2"},
      {"db *", "only a-z"},
      {"db/*", "only a-z"},
      {"db\n*", "only a-z"},
      {"quorate:*", "only a-z"},
      {"d\xc3\xbc-*", "only a-z"},
  };
  struct spec spec = {.san = "DNS:x"};
  struct cred cred = build(&root, &spec);
  char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);
  char name[254], pattern[300];
  struct tls_context *context;
  uint64_t node;

  (void)state;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    assert_error(identify(cert, bad[i].pattern, &node, name), bad[i].error);
    assert_error(tls_context_new_named(ca.cert, cert, key, bad[i].pattern,
                                       CLUSTER, &context, error),
                 bad[i].error);
    assert_null(context);
  }
  assert_error(identify(cert, NULL, &node, name), "empty");
  memset(pattern, 'a', sizeof pattern);
  pattern[0] = '*';
  pattern[254] = '\0';
  assert_error(identify(cert, pattern, &node, name), "name pattern: too long");
  pattern[253] = '\0';
  assert_error(identify(cert, pattern, &node, name), "does not match");
  assert_ok(identify(cert, "*", &node, name));
  free(cert);
  free(key);
  free_cred(&cred);
}

static const struct {
  const char *san, *pattern, *name, *error; /* error NULL: it is `name` */
} names[] = {
    {"DNS:db-1.example.org", PATTERN, "db-1.example.org", NULL},
    {"DNS:DB-Ab3.Example.ORG", PATTERN, "db-ab3.example.org", NULL},
    {"DNS:db-1.example.org", "DB-*.EXAMPLE.org", "db-1.example.org", NULL},
    {"DNS:db-x-y-9.example.org", PATTERN, "db-x-y-9.example.org", NULL},
    {"DNS:n1", "n*", "n1", NULL},
    {"DNS:n1.a_b.c", "*.a_b.c", "n1.a_b.c", NULL},
    /* Other names do not matter, whatever they are. */
    {"DNS:db-1.example.org,DNS:www.example.org,IP:10.0.0.1,"
     "URI:quorate:00c0ffee12345678/0000000000000007",
     PATTERN, "db-1.example.org", NULL},
    {NULL, PATTERN, NULL, "names no node"},
    {"IP:10.0.0.1", PATTERN, NULL, "names no node"},
    {"URI:quorate:00c0ffee12345678/0000000000000007", PATTERN, NULL,
     "names no node"},
    {"email:db-1@example.org", PATTERN, NULL, "names no node"},
    {"DNS:db-1.example.org,DNS:db-2.example.org", PATTERN, NULL,
     "more than one node"},
    {"DNS:db-1.example.org,DNS:db-1.example.org", PATTERN, NULL,
     "more than one node"},
    {"DNS:db-.example.org", PATTERN, NULL, "does not match"},
    {"DNS:db-*.example.org", PATTERN, NULL, "does not match"},
    {"DNS:db-a.b.example.org", PATTERN, NULL, "does not match"},
    {"DNS:db-a_b.example.org", PATTERN, NULL, "does not match"},
    {"DNS:db-1.example.org.", PATTERN, NULL, "does not match"},
    {"DNS:xdb-1.example.org", PATTERN, NULL, "does not match"},
    {"DNS:db-1.example.orgx", PATTERN, NULL, "does not match"},
    {"DNS:db-1xexample.org", PATTERN, NULL, "does not match"},
    {"DNS:db-", PATTERN, NULL, "does not match"},
    /* The star is at least one character: the two ends do not overlap. */
    {"DNS:aba", "ab*ba", NULL, "does not match"},
    {"DNS:abba", "ab*ba", NULL, "does not match"},
    {"DNS:abxba", "ab*ba", "abxba", NULL},
};

static void test_matching(void **state)
{
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct spec spec = {.san = names[i].san};
    struct cred cred = build(&root, &spec);
    char *cert = pem_of_cert(cred.cert), name[254] = "";
    uint64_t node = 0;

    if (names[i].error == NULL) {
      assert_ok(identify(cert, names[i].pattern, &node, name));
      assert_string_equal(name, names[i].name);
      assert_int_equal(node & 1, 1);
    } else {
      assert_error(identify(cert, names[i].pattern, &node, name),
                   names[i].error);
    }
    free(cert);
    free_cred(&cred);
  }
}

/* From outside: printf quorate:00c0ffee12345678/db-1.example.org | sha256sum */
static void test_node_ids(void **state)
{
  struct spec spec = {.san = "DNS:Db-1.example.org"};
  struct cred cred = build(&root, &spec);
  char *cert = pem_of_cert(cred.cert), name[254];
  uint64_t node, other;
  int64_t expires;

  (void)state;
  assert_ok(identify(cert, PATTERN, &node, name));
  assert_int_equal(node, UINT64_C(0x2be533e08e946c8a) | 1);
  assert_ok(identify(cert, "db-1.*.org", &other, name));
  assert_int_equal(node, other); /* of the name, not of the pattern */
  assert_ok(tls_identity_named(cert, PATTERN, CLUSTER + 1, &other, name,
                               sizeof name, &expires, error));
  assert_int_not_equal(node, other);
  assert_error(tls_identity_named(cert, PATTERN, CLUSTER, &node, name, 16,
                                  &expires, error),
               "too long");
  assert_ok(tls_identity_named(cert, PATTERN, CLUSTER, &node, name, 17,
                               &expires, error));
  free(cert);
  free_cred(&cred);
}

/* A name with a zero byte in it, and with any byte in the place of the star. */
static void test_odd_bytes(void **state)
{
  (void)state;
  for (int byte = 0; byte < 256; byte++) {
    struct spec spec = {0};
    struct cred cred = build_unsigned(&root, &spec);
    GENERAL_NAMES *list = GENERAL_NAMES_new();
    GENERAL_NAME *general = GENERAL_NAME_new();
    ASN1_IA5STRING *dns = ASN1_IA5STRING_new();
    char *cert, name[254], text[] = "db-x.example.org";
    bool good = (byte >= '0' && byte <= '9') || byte == '-' ||
                (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
    uint64_t node;

    text[3] = (char)byte;
    ASN1_STRING_set(dns, text, (int)sizeof text - 1);
    GENERAL_NAME_set0_value(general, GEN_DNS, dns);
    sk_GENERAL_NAME_push(list, general);
    X509_add1_ext_i2d(cred.cert, NID_subject_alt_name, list, 0, 0);
    X509_sign(cred.cert, root.key, EVP_sha256());
    cert = pem_of_cert(cred.cert);
    if (good)
      assert_ok(identify(cert, PATTERN, &node, name));
    else
      assert_error(identify(cert, PATTERN, &node, name), "does not match");
    free(cert);
    GENERAL_NAMES_free(list);
    free_cred(&cred);
  }
}

/* ---- between streams --------------------------------------------------- */

static struct tls_context *make_named(const char *san, const char *pattern,
                                      uint64_t cluster, uint64_t *node)
{
  struct spec spec = {.san = san};
  struct cred cred = build(&root, &spec);
  char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key), name[254];
  struct tls_context *context;
  int64_t expires;

  assert_ok(tls_context_new_named(ca.cert, cert, key, pattern, cluster,
                                  &context, error));
  assert_ok(tls_identity_named(cert, pattern, cluster, node, name, sizeof name,
                               &expires, error));
  free(cert);
  free(key);
  free_cred(&cred);
  return context;
}

static void test_named_members(void **state)
{
  uint64_t id_1, id_2;
  struct tls_context *one =
      make_named("DNS:db-1.example.org", PATTERN, CLUSTER, &id_1);
  struct tls_context *two =
      make_named("DNS:db-2.example.org,DNS:db", PATTERN, CLUSTER, &id_2);
  struct pair pair = make_pair(one, two);

  (void)state;
  shake(&pair, 1);
  assert_int_equal(tls_stream_peer(pair.client), id_2);
  assert_int_equal(tls_stream_peer(pair.server), id_1);
  assert_int_not_equal(id_1, id_2);
  assert_true(tls_stream_peer_expires(pair.client) > time(NULL));
  free_pair(&pair);
  tls_context_unref(one);
  tls_context_unref(two);
}

/* Signed by the same CA, which may sign much else. Where both would refuse,
   only the client comes to it. */
static void refuse_named(struct tls_context *good, struct tls_context *bad,
                         const char *line, bool both)
{
  for (int server = 0; server < (both ? 1 : 2); server++) {
    struct pair pair = server ? make_pair(bad, good) : make_pair(good, bad);
    struct tls_stream *judge = server ? pair.server : pair.client;
    struct tls_stream *judged = server ? pair.client : pair.server;
    char byte;

    shake(&pair, 1);
    assert_says(judge, line);
    assert_int_equal(tls_stream_cause(judge), TLS_CAUSE_NAME);
    assert_int_equal(tls_stream_peer(judge), 0);
    assert_int_equal(tls_stream_read(judged, &byte, 1), -1);
    assert_true(tls_stream_error(judged)[0] != '\0');
    free_pair(&pair);
  }
}

static void test_named_strangers(void **state)
{
  uint64_t id;
  struct tls_context *good =
      make_named("DNS:db-1.example.org", PATTERN, CLUSTER, &id);
  struct tls_context *web =
      make_named("DNS:www.example.org", "*.example.org", CLUSTER, &id);
  struct tls_context *uri = make_member(&ca, CLUSTER, 3);

  (void)state;
  refuse_named(good, web, "its name does not match the pattern", false);
  refuse_named(good, uri, "it names no node", true);
  refuse_named(uri, good, "it names no node", true);
  tls_context_unref(good);
  tls_context_unref(web);
  tls_context_unref(uri);
}

/* A node must find its own name in its own certificate. */
static void test_own_name(void **state)
{
  struct spec spec = {.san = "DNS:www.example.org"};
  struct cred cred = build(&root, &spec);
  char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);
  struct tls_context *context;

  (void)state;
  assert_error(tls_context_new_named(ca.cert, cert, key, PATTERN, CLUSTER,
                                     &context, error),
               "certificate: its name does not match the pattern");
  assert_null(context);
  free(cert);
  free(key);
  free_cred(&cred);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_patterns),
      cmocka_unit_test(test_matching),
      cmocka_unit_test(test_node_ids),
      cmocka_unit_test(test_odd_bytes),
      cmocka_unit_test(test_named_members),
      cmocka_unit_test(test_named_strangers),
      cmocka_unit_test(test_own_name),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
