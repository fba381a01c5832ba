/*
** test_library.c: that OpenSSL is used without the host process noticing, and
** what the smallest functions give.
**
** The first tests each run in a process of their own, in which nothing has
** used OpenSSL yet.
*/
#include "helpers.h"

#include <sys/wait.h>
#include <unistd.h>

/* What a host's openssl.cnf may say; the first line is left out once. */
static const char config[] = "[n]\nactivate = 1\n"
                             "[p]\nnull = n\n"
                             "[s]\nsystem_default = t\n"
                             "[t]\nMinProtocol = TLSv1.2\n"
                             "MaxProtocol = TLSv1.2\nGroups = P-521\n"
                             "SignatureAlgorithms = RSA+SHA256\n"
                             "Ciphersuites = TLS_CHACHA20_POLY1305_SHA256\n"
                             "NumTickets = 4\nOptions = SessionTicket\n"
                             "[d]\nssl_conf = s\n";

static int run(void (*body)(void))
{
  int status;
  pid_t pid = fork();

  assert_true(pid >= 0);
  if (pid == 0) {
    body();
    exit(0);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return status;
}

static void after_exit(void)
{
  uint8_t byte;

  /* Registered first, this runs last: if OpenSSL had cleaned up at exit, it
     would give no randomness any more. */
  _exit(tls_random(&byte, 1, NULL) == 0 ? 7 : 8);
}

static void use_and_exit(void)
{
  uint8_t byte;

  atexit(after_exit);
  if (tls_random(&byte, 1, NULL) != 0) _exit(9);
}

static void test_no_atexit(void **state)
{
  int status = run(use_and_exit);

  (void)state;
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 7);
}

static void handshake(void)
{
  struct tls_context *context;
  struct ca ca = make_ca();
  struct pair pair;

  context = make_member(&ca, CLUSTER, 1);
  pair = make_ready_pair(context, context);
  free_pair(&pair);
  tls_context_unref(context);
  free_ca(&ca);
}

/* The host comes second, and still obeys its own file. */
static void handshake_then_host(void)
{
  SSL_CTX *host;

  handshake();
  host = SSL_CTX_new(TLS_method());
  if (host == NULL) _exit(9);
  _exit(SSL_CTX_get_max_proto_version(host) == TLS1_2_VERSION ? 7 : 8);
}

/* The host's default library context has no algorithms at all. */
static void handshake_then_nothing(void)
{
  handshake();
  _exit(SSL_CTX_new(TLS_method()) == NULL ? 7 : 8);
}

static int run_with_config(void (*body)(void), const char *more)
{
  char path[] = "/tmp/test_library_XXXXXX";
  int fd = mkstemp(path), status;
  FILE *file;

  assert_true(fd >= 0);
  file = fdopen(fd, "w");
  fprintf(file, "openssl_conf = d\n%s%s", config, more);
  fclose(file);
  setenv("OPENSSL_CONF", path, 1);
  status = run(body);
  unsetenv("OPENSSL_CONF");
  unlink(path);
  return status;
}

static void test_host_config(void **state)
{
  int status = run_with_config(handshake_then_host, "");

  (void)state;
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 7);
}

static void test_host_without_algorithms(void **state)
{
  int status = run_with_config(handshake_then_nothing, "providers = p\n");

  (void)state;
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 7);
}

/* ---- the smallest functions -------------------------------------------- */

static void test_random(void **state)
{
  uint8_t a[64] = {0}, b[64] = {0}, zero[64] = {0};

  (void)state;
  assert_ok(tls_random(a, sizeof a, error));
  assert_ok(tls_random(b, sizeof b, error));
  assert_memory_not_equal(a, b, sizeof a);
  assert_memory_not_equal(a, zero, sizeof a);
  assert_ok(tls_random(a, 0, error));
}

static void test_digest(void **state)
{
  /* FIPS 180-4's example "abc", and nothing at all. */
  static const uint8_t abc[32] = {
      0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
      0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
      0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
  static const uint8_t empty[4] = {0xe3, 0xb0, 0xc4, 0x42};
  uint8_t out[32];

  (void)state;
  assert_ok(tls_digest("abc", 3, out, error));
  assert_memory_equal(out, abc, 32);
  assert_ok(tls_digest("", 0, out, error));
  assert_memory_equal(out, empty, 4);
}

static void test_equal(void **state)
{
  (void)state;
  assert_true(tls_equal("abcd", "abcd", 4));
  assert_false(tls_equal("abcd", "abce", 4));
  assert_true(tls_equal("abcd", "abce", 3));
  assert_true(tls_equal("a", "b", 0));
}

static void test_free_nothing(void **state)
{
  (void)state;
  tls_free_text(NULL);
  tls_context_unref(NULL);
  tls_stream_free(NULL);
}

/* What the host left in the error queue of a thread confuses nobody, and
   nobody finds anything of ours there. */
static void test_queue_is_cleaned(void **state)
{
  uint8_t byte, digest[32];

  (void)state;
  ERR_raise(ERR_LIB_USER, 1);
  assert_int_equal(tls_random(&byte, 1, NULL), 0);
  assert_queue_clean();
  ERR_raise(ERR_LIB_USER, 1);
  assert_int_equal(tls_fingerprint("nonsense", digest, NULL), -1);
  assert_queue_clean();
  ERR_raise(ERR_LIB_USER, 1);
  assert_error(tls_fingerprint("nonsense", digest, error), "no start line");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_no_atexit),
      cmocka_unit_test(test_host_config),
      cmocka_unit_test(test_host_without_algorithms),
      cmocka_unit_test(test_random),
      cmocka_unit_test(test_digest),
      cmocka_unit_test(test_equal),
      cmocka_unit_test(test_free_nothing),
      cmocka_unit_test(test_queue_is_cleaned),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
