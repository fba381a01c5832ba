/*
** test_pki.c: certificates of an outside PKI, as its operator makes them with
** the openssl program: a root, an intermediate CA, and nodes of every kind.
** Skipped where there is no such program.
*/
#include "program.h"

#define PATTERN "db-*.example.org"

/* `openssl ca` and its rules; then the kinds of certificates. */
static const char config[] =
    "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = node\n"
    "[ca]\ndefault_ca = any\n"
    "[any]\ndatabase = index.txt\nnew_certs_dir = issued\nrand_serial = yes\n"
    "default_md = sha256\npolicy = policy\nunique_subject = no\n"
    "default_days = 30\nemail_in_dn = no\n"
    "[policy]\ncommonName = optional\n"
    "[root]\nbasicConstraints = critical,CA:TRUE\n"
    "keyUsage = critical,keyCertSign,cRLSign\nsubjectKeyIdentifier = hash\n"
    "[middle]\nbasicConstraints = critical,CA:TRUE,pathlen:0\n"
    "keyUsage = critical,keyCertSign,cRLSign\nsubjectKeyIdentifier = hash\n"
    "authorityKeyIdentifier = keyid\n"
    "[node]\nbasicConstraints = CA:FALSE\nkeyUsage = digitalSignature\n"
    "extendedKeyUsage = serverAuth,clientAuth\n"
    "subjectAltName = URI:quorate:00c0ffee12345678/0000000000000007,"
    "DNS:db-7.example.org\n"
    "[server]\nextendedKeyUsage = serverAuth\n"
    "subjectAltName = DNS:db-8.example.org\n"
    "[mail]\nextendedKeyUsage = emailProtection\n"
    "subjectAltName = DNS:db-9.example.org\n"
    "[authority]\nbasicConstraints = CA:TRUE\n"
    "subjectAltName = DNS:db-10.example.org\n"
    "[signer]\nkeyUsage = keyEncipherment\n"
    "subjectAltName = DNS:db-11.example.org\n"
    "[web]\nextendedKeyUsage = serverAuth,clientAuth\n"
    "subjectAltName = DNS:www.example.org\n"
    "[nameless]\nextendedKeyUsage = serverAuth,clientAuth\n";

/* issue NAME CA EXTENSIONS [OPTIONS]: signs NAME.csr; NAME.full is what a node
   has, with the intermediate CA behind. */
static const char script[] =
    "exec >log 2>&1; set -ex\n"
    "export OPENSSL_CONF=$PWD/pki.cnf\n"
    "mkdir issued; : >index.txt\n"
    "key() { name=$1; shift; openssl genpkey -out $name.key \"$@\"; }\n"
    "p256='-algorithm EC -pkeyopt ec_paramgen_curve:P-256'\n"
    "issue() { name=$1 ca=$2 kind=$3; shift 3\n"
    "  openssl req -new -key $name.key -subj /CN=$name -out $name.csr\n"
    "  openssl ca -batch -notext -in $name.csr -out $name.pem -cert $ca.pem "
    "\\\n"
    "    -keyfile $ca.key -extfile pki.cnf -extensions $kind \"$@\"\n"
    "  cat $name.pem $ca.pem >$name.full; }\n"
    "root() { openssl req -x509 -new -key $1.key -subj \"/CN=$2\" -days 30 \\\n"
    "  -extensions root -out $1.pem; }\n"
    "key root -algorithm RSA -pkeyopt rsa_keygen_bits:2048; root root Root\n"
    "key middle -algorithm EC -pkeyopt ec_paramgen_curve:P-384\n"
    "issue middle root middle\n"
    "key rsa -algorithm RSA -pkeyopt rsa_keygen_bits:2048\n"
    "issue rsa middle node\n"
    "key p256 $p256; issue p256 middle node\n"
    "key p384 -algorithm EC -pkeyopt ec_paramgen_curve:P-384\n"
    "issue p384 middle node\n"
    "key ed25519 -algorithm ED25519; issue ed25519 middle node\n"
    "for kind in server mail authority signer web nameless; do\n"
    "  key $kind $p256; issue $kind middle $kind; done\n"
    "key expired $p256\n"
    "issue expired middle node -startdate 20200101000000Z \\\n"
    "  -enddate 20210101000000Z\n"
    "key early $p256\n"
    "issue early middle node -startdate 20900101000000Z \\\n"
    "  -enddate 20910101000000Z\n"
    "key rsa1024 -algorithm RSA -pkeyopt rsa_keygen_bits:1024\n"
    "issue rsa1024 middle node\n"
    "key p521 -algorithm EC -pkeyopt ec_paramgen_curve:P-521\n"
    "issue p521 middle node\n"
    "key sha1 $p256; issue sha1 middle node -md sha1\n"
    "key weak -algorithm RSA -pkeyopt rsa_keygen_bits:1024\n"
    "issue weak root middle\n"
    "key below $p256; issue below weak node\n"
    /* pathlen:0 of `middle` forbids another below it. */
    "key deep $p256; issue deep middle middle\n"
    "key deeper $p256; issue deeper deep node; cat middle.pem >>deeper.full\n"
    "key foreign $p256; root foreign Root\n"
    "key stranger $p256; issue stranger foreign node\n"
    /* The ways to write a key. */
    "openssl rsa -in rsa.key -traditional -out rsa.pkcs1\n"
    "openssl ec -in p256.key -out p256.sec1\n"
    "{ openssl ecparam -name prime256v1; cat p256.sec1; } >p256.params\n"
    "openssl pkcs8 -topk8 -in p256.key -passout pass:secret -out p256.enc\n"
    "openssl ec -in p256.key -aes128 -passout pass:secret -out p256.enc1\n";

static int status = -1;

static int set_up(void **state)
{
  (void)state;
  if (mkdtemp(folder) == NULL) return -1;
  write_file("pki.cnf", config);
  write_file("make", script);
  if (result(spawn("command -v openssl >/dev/null", -1)) == 0)
    status = result(spawn("exec sh ./make", -1));
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  remove_folder();
  return 0;
}

static void need_pki(void)
{
  need_openssl();
  if (status != 0) fail_msg("openssl: %s", read_file("log"));
}

/* A context of a node with the files NAME.full and NAME.key, or `key`. */
static int open_node(const char *name, const char *key, bool named,
                     struct tls_context **out)
{
  char file[64], *ca = read_file("root.pem"), *cert, *secret;
  int rc;

  snprintf(file, sizeof file, "%s.full", name);
  cert = read_file(file);
  snprintf(file, sizeof file, "%s.key", name);
  secret = read_file(key == NULL ? file : key);
  if (named)
    rc = tls_context_new_named(ca, cert, secret, PATTERN, CLUSTER, out, error);
  else
    rc = tls_context_new(ca, cert, secret, out, error);
  assert_queue_clean();
  free(ca), free(cert), free(secret);
  return rc;
}

/* ---- good ones --------------------------------------------------------- */

static void test_kinds_of_keys(void **state)
{
  static const char *const kinds[] = {"rsa", "p256", "p384", "ed25519"};
  struct tls_context *contexts[8];

  (void)state;
  need_pki();
  for (int i = 0; i < 8; i++)
    assert_ok(open_node(kinds[i % 4], NULL, i >= 4, &contexts[i]));
  for (int i = 0; i < 32; i++) { /* each with each, by URI and by name */
    int half = i / 16 * 4;
    struct pair pair =
        make_pair(contexts[half + i % 4], contexts[half + i / 4 % 4]);
    uint64_t id;

    shake(&pair, 1);
    assert_string_equal(tls_stream_error(pair.client), "");
    id = tls_stream_peer(pair.client);
    assert_int_equal(tls_stream_peer(pair.server), id);
    if (half == 0)
      assert_int_equal(id, 7);
    else
      assert_true(id > 7);
    assert_int_equal(write_text(pair.client, "hello"), 0);
    free_pair(&pair);
  }
  for (int i = 0; i < 8; i++)
    tls_context_unref(contexts[i]);
}

static void test_ways_to_write_a_key(void **state)
{
  static const struct {
    const char *name, *key, *error;
  } keys[] = {{"rsa", "rsa.pkcs1", NULL},
              {"p256", "p256.sec1", NULL},
              {"p256", "p256.params", NULL},
              {"p256", "p256.enc", "key: not an unencrypted private key"},
              {"p256", "p256.enc1", "key: not an unencrypted private key"},
              {"p256", "rsa.pkcs1", "key does not belong to the certificate"},
              {"p256", "p256.csr", "key: not an unencrypted private key"}};
  struct tls_context *context;

  (void)state;
  need_pki();
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
    if (keys[i].error == NULL)
      assert_ok(open_node(keys[i].name, keys[i].key, false, &context));
    else
      assert_error(open_node(keys[i].name, keys[i].key, false, &context),
                   keys[i].error);
    tls_context_unref(context);
  }
}

/* A node whose files lack the intermediate CA. */
static void test_without_the_middle(void **state)
{
  char *root, *middle, *cert, *key;
  struct tls_context *alone, *full;
  uint8_t print[32], expected[32];
  struct pair pair;

  (void)state;
  need_pki();
  root = read_file("root.pem"), middle = read_file("middle.pem");
  cert = read_file("p256.pem"), key = read_file("p256.key");
  assert_error(tls_context_new(root, cert, key, &alone, error),
               "certificate does not belong to the CA");
  assert_error(tls_issuer(root, cert, print, error),
               "certificate does not belong to the CA");
  /* The intermediate CA is the one that is believed: that is enough. */
  assert_ok(tls_context_new(middle, cert, key, &alone, error));
  assert_ok(tls_issuer(middle, cert, print, error));
  assert_ok(tls_fingerprint(middle, expected, error));
  assert_memory_equal(print, expected, 32);
  assert_ok(open_node("rsa", NULL, false, &full));
  pair = make_ready_pair(alone, full);
  free_pair(&pair);
  pair = make_ready_pair(full, alone);
  free_pair(&pair);
  tls_context_unref(alone);
  tls_context_unref(full);
  free(root), free(middle), free(cert), free(key);
}

/* ---- bad ones ---------------------------------------------------------- */

#define VERIFY "certificate verify failed: "

static const struct bad {
  const char *name;
  const char *own; /* what its own node says; NULL: nothing */
  /* What its peers say when they meet it as a client, and as a server. */
  const char *client, *server;
  enum tls_cause cause;
} bads[] = {
    {"expired", NULL, VERIFY "certificate has expired: it ended 2021-01-01",
     NULL, TLS_CAUSE_EXPIRED},
    {"early", NULL, VERIFY "certificate is not yet valid: it begins 2090-01-01",
     NULL, TLS_CAUSE_EARLY},
    {"mail", "certificate is not for servers and clients both",
     VERIFY "unsuitable certificate purpose", NULL, TLS_CAUSE_OTHER},
    {"server", "certificate is not for servers and clients both",
     VERIFY "unsuitable certificate purpose", "", TLS_CAUSE_OTHER},
    {"signer", "certificate is not for servers and clients both",
     VERIFY "unsuitable certificate purpose", "", TLS_CAUSE_OTHER},
    {"authority", "certificate is one of a CA, not of a node",
     VERIFY "it is one of a CA, not of a node", NULL, TLS_CAUSE_OTHER},
    {"web", "certificate: its name does not match the pattern",
     VERIFY "its name does not match the pattern", NULL, TLS_CAUSE_NAME},
    {"nameless", "certificate: it names no node", VERIFY "it names no node",
     NULL, TLS_CAUSE_NAME},
    {"rsa1024",
     "certificate: peers would refuse it: EE certificate key too weak",
     VERIFY "EE certificate key too weak", NULL, TLS_CAUSE_OTHER},
    {"sha1", "certificate: peers would refuse it: CA signature digest",
     VERIFY "CA signature digest algorithm too weak", NULL, TLS_CAUSE_OTHER},
    {"below", "certificate: peers would refuse it: CA certificate key too",
     VERIFY "CA certificate key too weak", NULL, TLS_CAUSE_OTHER},
    {"deeper", "certificate: peers would refuse it: path length",
     VERIFY "path length constraint exceeded", NULL, TLS_CAUSE_OTHER},
    {"stranger", "certificate does not belong to the CA: ", VERIFY, NULL,
     TLS_CAUSE_FOREIGN},
};

/* The context of a node that shows the files all the same. There is room for
   one certificate of each kind of key: it takes the place of a good one. */
static struct tls_context *open_bad(const char *name)
{
  struct tls_context *context;
  char file[64], *cert, *key;
  STACK_OF(X509) * chain;
  struct cred cred;

  assert_ok(open_node(strncmp(name, "rsa", 3) == 0 ? "rsa" : "p256", NULL, true,
                      &context));
  snprintf(file, sizeof file, "%s.full", name);
  cert = read_file(file);
  snprintf(file, sizeof file, "%s.key", name);
  key = read_file(file);
  cred = read_cred(cert, key);
  chain = tls_read_certificates(cert, "certificate", error);
  SSL_CTX_set_security_level(context->ssl, 0);
  SSL_CTX_clear_chain_certs(context->ssl);
  assert_int_equal(SSL_CTX_use_certificate(context->ssl, cred.cert), 1);
  assert_int_equal(SSL_CTX_use_PrivateKey(context->ssl, cred.key), 1);
  for (int i = 1; i < sk_X509_num(chain); i++)
    SSL_CTX_add1_chain_cert(context->ssl, sk_X509_value(chain, i));
  sk_X509_pop_free(chain, X509_free);
  free_cred(&cred);
  free(cert), free(key);
  return context;
}

static void meet_bad(struct tls_context *good, const struct bad *b,
                     bool as_server)
{
  const char *line = as_server && b->server != NULL ? b->server : b->client;
  struct tls_context *bad = open_bad(b->name);
  struct pair pair = as_server ? make_pair(good, bad) : make_pair(bad, good);
  struct tls_stream *judge = as_server ? pair.client : pair.server;
  struct tls_stream *judged = as_server ? pair.server : pair.client;
  char byte;

  shake(&pair, 1);
  if (line[0] == '\0') {
    if (!tls_stream_ready(judge))
      fail_msg("%s: %s", b->name, tls_stream_error(judge));
  } else {
    if (strncmp(tls_stream_error(judge), line, strlen(line)) != 0)
      fail_msg("%s: \"%s\"", b->name, tls_stream_error(judge));
    if (tls_stream_cause(judge) != b->cause)
      fail_msg("%s: cause %d", b->name, tls_stream_cause(judge));
    assert_int_equal(tls_stream_read(judged, &byte, 1), -1);
    assert_says(judged, "peer sent alert: ");
  }
  free_pair(&pair);
  tls_context_unref(bad);
}

static void test_bad_ones(void **state)
{
  struct tls_context *good, *context;

  (void)state;
  need_pki();
  assert_ok(open_node("rsa", NULL, true, &good));
  for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++) {
    const struct bad *b = &bads[i];

    if (b->own == NULL)
      assert_ok(open_node(b->name, NULL, true, &context));
    else if (open_node(b->name, NULL, true, &context) == 0)
      fail_msg("%s: accepted", b->name);
    else if (strstr(error->text, b->own) == NULL)
      fail_msg("%s: \"%s\"", b->name, error->text);
    tls_context_unref(context);
    meet_bad(good, b, false);
    meet_bad(good, b, true);
  }
  tls_context_unref(good);
}

/* Of a curve whose signatures no peer takes: it fails at once, here. */
static void test_kind_not_accepted(void **state)
{
  struct tls_context *context;

  (void)state;
  need_pki();
  assert_error(open_node("p521", NULL, false, &context),
               "its key is weak or of a kind not accepted");
}

/* What the openssl program thinks of them agrees with what we think. */
static void test_openssl_agrees(void **state)
{
  static const struct {
    const char *name;
    bool good;
  } all[] = {{"rsa", true},      {"ed25519", true},  {"p256", true},
             {"expired", false}, {"early", false},   {"mail", false},
             {"server", false},  {"sha1", false},    {"below", false},
             {"deeper", false},  {"stranger", false}};
  char command[256];

  (void)state;
  need_pki();
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
    snprintf(command, sizeof command,
             "openssl verify -auth_level 2 -purpose sslclient -CAfile root.pem "
             "-untrusted %s.full %s.pem >/dev/null 2>&1",
             all[i].name, all[i].name);
    if ((result(spawn(command, -1)) == 0) != all[i].good)
      fail_msg("%s", all[i].name);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_kinds_of_keys),
      cmocka_unit_test(test_ways_to_write_a_key),
      cmocka_unit_test(test_without_the_middle),
      cmocka_unit_test(test_bad_ones),
      cmocka_unit_test(test_kind_not_accepted),
      cmocka_unit_test(test_openssl_agrees),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
