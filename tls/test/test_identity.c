/*
** test_identity.c: CA, requests, signing, and what counts as an identity.
*/
#include "helpers.h"

#define GOOD "URI:quorate:00c0ffee12345678/0000000000000007"

static struct ca ca;

static int set_up(void **state)
{
  (void)state;
  ca = make_ca();
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  free_ca(&ca);
  return 0;
}

/* ---- there and back ---------------------------------------------------- */

static void test_round_trip(void **state)
{
  static const uint64_t nodes[] = {1, 0xdeadbeefcafef00d, UINT64_MAX};
  uint64_t cluster, node;
  int64_t expires;

  (void)state;
  for (size_t i = 0; i < 3; i++) {
    struct node n = make_node(&ca, CLUSTER + i, nodes[i]);
    int64_t end = time(NULL) + 30 * DAY;

    assert_ok(tls_identity(n.cert, &cluster, &node, &expires, error));
    assert_int_equal(cluster, CLUSTER + i);
    assert_int_equal(node, nodes[i]);
    assert_in_range(expires, end - 60, end);
    free_node(&n);
  }
}

static bool has_usage(X509 *cert, uint32_t usage, uint32_t extended)
{
  return X509_get_key_usage(cert) == usage &&
         X509_get_extended_key_usage(cert) == extended;
}

static void assert_common_form(X509 *cert, long days)
{
  const ASN1_INTEGER *serial = X509_get0_serialNumber(cert);
  int day, second;

  assert_int_equal(X509_get_version(cert), X509_VERSION_3);
  /* Positive, and 20 bytes in DER, to which a set top bit would add one. */
  assert_int_equal(ASN1_STRING_type(serial), V_ASN1_INTEGER);
  assert_int_equal(i2d_ASN1_INTEGER(serial, NULL), 2 + 20);
  assert_int_equal(
      ASN1_TIME_diff(&day, &second, X509_get0_notBefore(cert), NULL), 1);
  assert_int_equal(day, 0);
  assert_in_range(second, 3600, 3660);
  assert_int_equal(
      ASN1_TIME_diff(&day, &second, NULL, X509_get0_notAfter(cert)), 1);
  assert_in_range(day * DAY + second, days * DAY - 60, days * DAY);
  assert_non_null(X509_get0_subject_key_id(cert));
}

static void test_form(void **state)
{
  struct node n = make_node(&ca, CLUSTER, 7), m = make_node(&ca, CLUSTER, 7);
  struct cred root = read_cred(ca.cert, ca.key);
  struct cred a = read_cred(n.cert, n.key), b = read_cred(m.cert, m.key);
  char name[80];

  (void)state;
  assert_common_form(root.cert, 3652);
  assert_int_equal(X509_check_ca(root.cert), 1);
  assert_int_equal(X509_get_pathlen(root.cert), 0);
  assert_true(has_usage(root.cert, KU_KEY_CERT_SIGN | KU_CRL_SIGN, UINT32_MAX));
  assert_int_equal(X509_verify(root.cert, root.key), 1);

  assert_common_form(a.cert, 30);
  assert_int_equal(X509_check_ca(a.cert), 0);
  assert_true(
      has_usage(a.cert, KU_DIGITAL_SIGNATURE, XKU_SSL_SERVER | XKU_SSL_CLIENT));
  assert_int_equal(X509_verify(a.cert, root.key), 1);
  assert_int_equal(ASN1_OCTET_STRING_cmp(X509_get0_authority_key_id(a.cert),
                                         X509_get0_subject_key_id(root.cert)),
                   0);
  X509_NAME_get_text_by_NID(X509_get_subject_name(a.cert), NID_commonName, name,
                            sizeof name);
  assert_string_equal(name, &GOOD[4]);
  assert_int_not_equal(ASN1_INTEGER_cmp(X509_get0_serialNumber(a.cert),
                                        X509_get0_serialNumber(b.cert)),
                       0);
  free_cred(&root);
  free_cred(&a);
  free_cred(&b);
  free_node(&n);
  free_node(&m);
}

static void test_fingerprint(void **state)
{
  struct cred root = read_cred(ca.cert, ca.key);
  struct node n = make_node(&ca, CLUSTER, 7);
  char *both = join_texts(ca.cert, n.cert);
  uint8_t ours[32], theirs[32], *der = NULL;
  int len = i2d_X509(root.cert, &der);

  (void)state;
  assert_ok(tls_digest(der, (size_t)len, theirs, error));
  assert_ok(tls_fingerprint(ca.cert, ours, error));
  assert_memory_equal(ours, theirs, 32);
  assert_ok(tls_fingerprint(both, ours, error)); /* the first one's */
  assert_memory_equal(ours, theirs, 32);
  OPENSSL_free(der);
  free(both);
  free_node(&n);
  free_cred(&root);
}

/* ---- what counts as an identity ---------------------------------------- */

static const struct {
  const char *san, *san2, *error; /* error NULL: it counts */
} names[] = {
    {GOOD, NULL, NULL},
    {GOOD ",DNS:db1.example.org,IP:10.0.0.1", NULL, NULL},
    {NULL, NULL, "names no node"},
    {"DNS:db1.example.org", NULL, "names no node"},
    {"DNS:quorate:00c0ffee12345678/0000000000000007", NULL, "names no node"},
    {GOOD "," GOOD, NULL, "more than one"},
    {GOOD ",URI:https://example.org/", NULL, "more than one"},
    {GOOD, GOOD, "malformed"},
    {"URI:https://example.org/", NULL, "not quorate:"},
    {"URI:quorate:00C0FFEE12345678/0000000000000007", NULL, "not quorate:"},
    {"URI:QUORATE:00c0ffee12345678/0000000000000007", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/0000000000000000", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/000000000000007", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/00000000000000007", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678-0000000000000007", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/000000000000000g", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/+000000000000007", NULL, "not quorate:"},
    {"URI:quorate:0xc0ffee12345678/0000000000000007", NULL, "not quorate:"},
    {"URI:quorate://0c0ffee12345678/000000000000007", NULL, "not quorate:"},
    {"URI:quorate:00c0ffee12345678/0000000000000007/", NULL, "not quorate:"},
};

static void test_names(void **state)
{
  struct cred root = read_cred(ca.cert, ca.key);
  uint64_t cluster, node;
  int64_t expires;

  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct spec spec = {.san = names[i].san, .san2 = names[i].san2};
    struct cred cred = build(&root, &spec);
    char *text = pem_of_cert(cred.cert);

    if (names[i].error == NULL) {
      assert_ok(tls_identity(text, &cluster, &node, &expires, error));
      assert_int_equal(cluster, CLUSTER);
      assert_int_equal(node, 7);
    } else {
      assert_error(tls_identity(text, &cluster, &node, &expires, error),
                   names[i].error);
    }
    free(text);
    free_cred(&cred);
  }
  free_cred(&root);
}

/* A URI with a zero byte, which would end it for careless code. */
static void test_zero_byte_in_name(void **state)
{
  struct cred root = read_cred(ca.cert, ca.key);
  struct spec spec = {0};
  struct cred cred = build_unsigned(&root, &spec);
  GENERAL_NAMES *list = GENERAL_NAMES_new();
  GENERAL_NAME *name = GENERAL_NAME_new();
  ASN1_IA5STRING *uri = ASN1_IA5STRING_new();
  uint64_t cluster, node;
  int64_t expires;
  char *text;

  (void)state;
  ASN1_STRING_set(uri, "quorate:00c0ffee12345678/0000000000000007\0x", 43);
  GENERAL_NAME_set0_value(name, GEN_URI, uri);
  sk_GENERAL_NAME_push(list, name);
  X509_add1_ext_i2d(cred.cert, NID_subject_alt_name, list, 0, 0);
  X509_sign(cred.cert, root.key, EVP_sha256());
  text = pem_of_cert(cred.cert);
  assert_error(tls_identity(text, &cluster, &node, &expires, error),
               "not quorate:");
  free(text);
  GENERAL_NAMES_free(list);
  free_cred(&cred);
  free_cred(&root);
}

/* ---- requests ---------------------------------------------------------- */

static char *pem_of_request(X509_REQ *request)
{
  BIO *bio = BIO_new(BIO_s_mem());

  PEM_write_bio_X509_REQ(bio, request);
  return text_of(bio);
}

static X509_REQ *build_request(EVP_PKEY *key)
{
  X509_REQ *request = X509_REQ_new();

  X509_REQ_set_pubkey(request, key);
  return request;
}

static int sign_text(const char *request, struct tls_error *e)
{
  uint64_t cluster, node;
  int64_t expires;
  char *cert;
  int rc;

  rc = tls_sign_request(ca.cert, ca.key, request, CLUSTER, 7, 30, &cert, e);
  if (rc == 0) {
    assert_ok(tls_identity(cert, &cluster, &node, &expires, error));
    assert_int_equal(node, 7);
  } else {
    assert_null(cert);
  }
  tls_free_text(cert);
  return rc;
}

static int sign_key(EVP_PKEY *key, struct tls_error *e)
{
  bool plain = EVP_PKEY_is_a(key, "ED25519") || EVP_PKEY_is_a(key, "ED448");
  X509_REQ *request = build_request(key);
  char *text;
  int rc;

  assert_true(X509_REQ_sign(request, key, plain ? NULL : EVP_sha256()) > 0);
  text = pem_of_request(request);
  rc = sign_text(text, e);
  free(text);
  X509_REQ_free(request);
  EVP_PKEY_free(key);
  return rc;
}

static EVP_PKEY *explicit_curve_key(void)
{
  EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
  EVP_PKEY *key = NULL;

  EVP_PKEY_keygen_init(ctx);
  EVP_PKEY_CTX_set_group_name(ctx, "P-256");
  EVP_PKEY_CTX_set_ec_param_enc(ctx, OPENSSL_EC_EXPLICIT_CURVE);
  EVP_PKEY_generate(ctx, &key);
  EVP_PKEY_CTX_free(ctx);
  return key;
}

#define KEY(...) EVP_PKEY_Q_keygen(NULL, NULL, __VA_ARGS__)

static void test_kinds_of_keys(void **state)
{
  (void)state;
  assert_ok(sign_key(KEY("EC", "P-256"), error));
  assert_ok(sign_key(KEY("EC", "P-384"), error));
  assert_ok(sign_key(KEY("ED25519"), error));
  assert_ok(sign_key(KEY("RSA", (size_t)2048), error));
  assert_error(sign_key(KEY("RSA", (size_t)1024), error), "weak");
  assert_error(sign_key(KEY("EC", "P-224"), error), "weak");
  assert_error(sign_key(KEY("EC", "P-521"), error), "weak");
  assert_error(sign_key(KEY("EC", "secp256k1"), error), "weak");
  assert_error(sign_key(KEY("ED448"), error), "weak");
  assert_error(sign_key(explicit_curve_key(), error), "weak");
}

static void test_foreign_signature(void **state)
{
  EVP_PKEY *mine = KEY("EC", "P-256"), *yours = KEY("EC", "P-256");
  X509_REQ *request = build_request(yours);
  char *text;

  (void)state;
  X509_REQ_sign(request, mine, EVP_sha256());
  text = pem_of_request(request);
  assert_error(sign_text(text, error), "signature is wrong");
  free(text);
  X509_REQ_free(request);
  EVP_PKEY_free(mine);
  EVP_PKEY_free(yours);
}

/* A request may ask for anything; it gets none of it. */
static void test_wishes_are_ignored(void **state)
{
  EVP_PKEY *key = KEY("EC", "P-256");
  X509_REQ *request = build_request(key);
  STACK_OF(X509_EXTENSION) *list = sk_X509_EXTENSION_new_null();
  uint64_t cluster, node;
  int64_t expires;
  char *text, *cert;
  struct cred read;
  char *key_text = pem_of_key(key);

  (void)state;
  X509_NAME_add_entry_by_txt(X509_REQ_get_subject_name(request), "CN",
                             MBSTRING_ASC, (const unsigned char *)"boss", -1,
                             -1, 0);
  sk_X509_EXTENSION_push(list,
                         X509V3_EXT_nconf_nid(NULL, NULL, NID_basic_constraints,
                                              "critical,CA:TRUE"));
  sk_X509_EXTENSION_push(
      list,
      X509V3_EXT_nconf_nid(NULL, NULL, NID_subject_alt_name,
                           "URI:quorate:00c0ffee12345678/0000000000000001"));
  X509_REQ_add_extensions(request, list);
  X509_REQ_sign(request, key, EVP_sha256());
  text = pem_of_request(request);
  assert_ok(
      tls_sign_request(ca.cert, ca.key, text, CLUSTER, 7, 30, &cert, error));
  assert_ok(tls_identity(cert, &cluster, &node, &expires, error));
  assert_int_equal(node, 7);
  read = read_cred(cert, key_text);
  assert_int_equal(X509_check_ca(read.cert), 0);
  assert_int_equal(X509_get_ext_count(read.cert), 6);
  assert_int_equal(X509_NAME_entry_count(X509_get_subject_name(read.cert)), 1);
  assert_int_equal(X509_check_private_key(read.cert, key), 1);
  free_cred(&read);
  tls_free_text(cert);
  free(text);
  free(key_text);
  sk_X509_EXTENSION_pop_free(list, X509_EXTENSION_free);
  X509_REQ_free(request);
  EVP_PKEY_free(key);
}

static void test_nonsense_requests(void **state)
{
  char *request, *key;

  (void)state;
  assert_ok(tls_make_request(&request, &key, error));
  assert_error(sign_text("", error), "request: empty");
  assert_error(sign_text("hello", error), "request: not a signing request");
  assert_error(sign_text(ca.cert, error), "request: not a signing request");
  for (int i = 0; i < 3000; i++) {
    char *copy = strdup(request);
    size_t n = strlen(copy);

    for (int j = 0; j <= i % 4; j++)
      copy[random_u32() % n] = (char)('+' + random_u32() % 80);
    /* A change outside the base64, in a label, may do no harm. */
    if (sign_text(copy, NULL) == 0)
      assert_non_null(strstr(copy, "CERTIFICATE REQUEST"));
    assert_queue_clean();
    free(copy);
  }
  tls_free_text(request);
  tls_free_text(key);
}

/* ---- signing ----------------------------------------------------------- */

static void test_arguments(void **state)
{
  struct ca other = make_ca();
  struct node n = make_node(&ca, CLUSTER, 7);
  char *request, *key, *cert;

  (void)state;
  assert_ok(tls_make_request(&request, &key, error));
#define SIGN(cert_, key_, node_, days_)                                        \
  tls_sign_request(cert_, key_, request, CLUSTER, node_, days_, &cert, error)
  assert_error(SIGN(ca.cert, ca.key, 0, 30), "node 0");
  assert_error(SIGN(ca.cert, ca.key, 1, 0), "days must be");
  assert_error(SIGN(ca.cert, ca.key, 1, UINT32_MAX), "days must be");
  assert_error(SIGN(ca.cert, other.key, 1, 30), "does not belong");
  assert_error(SIGN(n.cert, n.key, 1, 30), "not one of a CA");
  assert_error(SIGN("x", ca.key, 1, 30), "CA certificate: not a cert");
  assert_error(SIGN(ca.cert, "x", 1, 30), "CA key: not an unencrypted");
  assert_error(SIGN(ca.cert, ca.cert, 1, 30), "CA key: not an unencrypted");
#undef SIGN
  tls_free_text(request);
  tls_free_text(key);
  free_node(&n);
  free_ca(&other);
}

/* Nothing outlives the CA, and a dead CA signs nothing. */
static void test_end_of_ca(void **state)
{
  struct spec spec = {.is_ca = true, .from = -DAY, .to = 5 * DAY};
  struct cred root = build(NULL, &spec), dead;
  char *root_cert = pem_of_cert(root.cert), *root_key = pem_of_key(root.key);
  char *dead_cert, *request, *key, *cert;
  uint64_t cluster, node;
  int64_t expires;

  (void)state;
  assert_ok(tls_make_request(&request, &key, error));
  assert_ok(tls_sign_request(root_cert, root_key, request, CLUSTER, 1, 30,
                             &cert, error));
  assert_ok(tls_identity(cert, &cluster, &node, &expires, error));
  assert_in_range(expires - time(NULL), 5 * DAY - 60, 5 * DAY);
  tls_free_text(cert);

  spec = (struct spec){.is_ca = true, .from = -DAY, .to = -60, .key = root.key};
  dead = build(NULL, &spec);
  dead_cert = pem_of_cert(dead.cert);
  assert_error(tls_sign_request(dead_cert, root_key, request, CLUSTER, 1, 30,
                                &cert, error),
               "expired");
  free(dead_cert);
  free(root_cert);
  free(root_key);
  free_cred(&dead);
  free_cred(&root);
  tls_free_text(request);
  tls_free_text(key);
}

/* A CA from elsewhere may have any kind of key. */
static void test_other_ca_keys(void **state)
{
  EVP_PKEY *keys[] = {KEY("EC", "P-384"), KEY("RSA", (size_t)2048)};

  (void)state;
  for (int i = 0; i < 2; i++) {
    struct spec spec = {.is_ca = true, .key = keys[i]};
    struct cred root = build(NULL, &spec);
    struct ca outside = {pem_of_cert(root.cert), pem_of_key(root.key)};
    struct node n = make_node(&outside, CLUSTER, 7);
    struct cred read = read_cred(n.cert, n.key);

    assert_int_equal(X509_verify(read.cert, root.key), 1);
    free_cred(&read);
    free_node(&n);
    free_ca(&outside);
    free_cred(&root);
    EVP_PKEY_free(keys[i]);
  }
}

/* A key with a password is refused; nobody is asked on the terminal. */
static void test_encrypted_key(void **state)
{
  EVP_PKEY *key = KEY("EC", "P-256");
  BIO *bio = BIO_new(BIO_s_mem());
  struct node n = make_node(&ca, CLUSTER, 7);
  struct tls_context *context;
  char *text;

  (void)state;
  PEM_write_bio_PKCS8PrivateKey(bio, key, EVP_aes_128_cbc(), "secret", 6, NULL,
                                NULL);
  text = text_of(bio);
  assert_non_null(strstr(text, "ENCRYPTED"));
  assert_error(tls_context_new(ca.cert, n.cert, text, &context, error),
               "key: not an unencrypted");
  free(text);
  free_node(&n);
  EVP_PKEY_free(key);
}

static void test_nonsense_certificates(void **state)
{
  struct node n = make_node(&ca, CLUSTER, 7);
  uint64_t cluster, node;
  int64_t expires;
  uint8_t digest[32];

  (void)state;
  assert_error(tls_fingerprint("", digest, error), "empty");
  assert_error(tls_fingerprint(NULL, digest, error), "empty");
  for (int i = 0; i < 3000; i++) {
    char *copy = strdup(n.cert);
    size_t len = strlen(copy);

    for (int j = 0; j <= i % 4; j++)
      copy[random_u32() % len] = (char)('+' + random_u32() % 80);
    (void)tls_identity(copy, &cluster, &node, &expires, NULL);
    (void)tls_fingerprint(copy, digest, NULL);
    assert_queue_clean();
    free(copy);
  }
  free_node(&n);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_form),
      cmocka_unit_test(test_fingerprint),
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_zero_byte_in_name),
      cmocka_unit_test(test_kinds_of_keys),
      cmocka_unit_test(test_foreign_signature),
      cmocka_unit_test(test_wishes_are_ignored),
      cmocka_unit_test(test_nonsense_requests),
      cmocka_unit_test(test_arguments),
      cmocka_unit_test(test_end_of_ca),
      cmocka_unit_test(test_other_ca_keys),
      cmocka_unit_test(test_encrypted_key),
      cmocka_unit_test(test_nonsense_certificates),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
