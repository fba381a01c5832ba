/*
** Whom a node trusts: the setting "ca" and what members tell of it, as bytes;
** certificates and keys whose replacement is cut off at each call on files; files
** that others can read; certificates from outside that do not fit.
*/
#include "harness.h"

#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <fcntl.h>

#define CLUSTER 0x0123456789abcdefu
#define NODE 0xfedcba9876543211u

/* ---- the setting -------------------------------------------------------- */

static const struct trust_ca steady = {7, "cert", "key", "", "", ""};
static const struct trust_ca phase1 = {8, "cert", "key", "next", "nkey", ""};
static const struct trust_ca phase2 = {9, "next", "nkey", "", "", "cert"};

/* In memory of exactly its size, so that a sanitizer sees a byte too far. */
static bool parses(const struct packer *p, size_t len, struct trust_ca *out)
{
  uint8_t *exact = malloc(len);
  assert_non_null(exact);
  memset(exact, 0, len);
  memcpy(exact, p->data, len < p->len ? len : p->len);
  bool ok = trust_parse_ca(exact, len, out);
  if (ok) assert_string_equal(out->key, out->cert[0] == 'n' ? "nkey" : "key");
  free(exact);
  return ok;
}

static void test_setting(void **state)
{
  const struct trust_ca *const values[] = {&steady, &phase1, &phase2};
  (void)state;
  for (unsigned i = 0; i < 3; i++) {
    struct packer p = {0};
    struct trust_ca back;
    trust_pack_ca(&p, values[i]);
    for (size_t len = 1; len <= p.len + 1; len++)
      assert_int_equal(parses(&p, len, &back), len == p.len);
    assert_int_equal(parses(&p, p.len, &back), true);
    assert_int_equal(back.generation, 7 + i);
    p.data[0] = 2; /* of a version to come */
    assert_false(parses(&p, p.len, &back));
    free(p.data);
  }
}

static bool is_taken(const struct trust_ca *ca)
{
  struct packer p = {0};
  struct trust_ca back;
  trust_pack_ca(&p, ca);
  bool ok = trust_parse_ca(p.data, p.len, &back);
  free(p.data);
  return ok;
}

static void test_setting_refused(void **state)
{
  static const struct trust_ca values[] = {
      {0, "cert", "key", "", "", ""},
      {1, "", "key", "", "", ""},
      {1, "cert", "", "", "", ""},
      {1, "cert", "key", "next", "", ""},
      {1, "cert", "key", "", "nkey", ""},
      {1, "cert", "key", "next", "nkey", "old"}};
  (void)state;
  assert_true(is_taken(&steady));
  for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++)
    assert_false(is_taken(&values[i]));
}

static void test_settings(void **state)
{
  struct settings settings = {0};
  struct trust_ca ca;
  (void)state;
  assert_false(trust_get_ca(&settings, &ca));
  assert_int_equal(trust_put_ca(&settings, "c", "k"), 0);
  assert_true(trust_get_ca(&settings, &ca));
  assert_int_equal(ca.generation, 1);
  assert_string_equal(ca.cert, "c");
  assert_string_equal(ca.key, "k");
  assert_int_equal(settings_set(&settings, "ca", "nonsense", 8), 0);
  assert_false(trust_get_ca(&settings, &ca));
  settings_clear(&settings);
}

static void test_bundle(void **state)
{
  (void)state;
  char *text = trust_bundle(&phase2);
  assert_string_equal(text, "quorate-ca-generation: 9\nnextcert");
  assert_int_equal(trust_generation(text), 9);
  free(text);
  assert_int_equal(trust_generation(""), 0);
  assert_int_equal(trust_generation("-----BEGIN CERTIFICATE-----\n"), 0);
}

/* ---- what members tell -------------------------------------------------- */

static void test_view(void **state)
{
  struct trust_view view = {
      .generation = 5, .n = 2, .begins = 1, .expires = -3};
  struct trust_view back;
  struct packer p = {0};
  uint8_t none[32] = {3};
  (void)state;
  view.cas[0][0] = 1;
  view.cas[1][31] = 2;
  view.issuer[31] = 2;
  trust_pack_view(&p, &view);
  for (size_t len = 1; len <= p.len + 1; len++) {
    uint8_t *exact = calloc(1, len);
    assert_non_null(exact);
    memcpy(exact, p.data, len < p.len ? len : p.len);
    assert_int_equal(trust_parse_view(exact, len, &back), len == p.len);
    free(exact);
  }
  assert_true(trust_parse_view(p.data, p.len, &back));
  assert_int_equal(back.generation, 5);
  assert_int_equal(back.expires, -3);
  assert_true(trust_trusts(&back, view.cas[0]));
  assert_true(trust_trusts(&back, back.issuer));
  assert_false(trust_trusts(&back, none));
  memset(p.data + 8, 0xff, 4); /* so many CAs as nobody has */
  assert_false(trust_parse_view(p.data, p.len, &back));
  free(p.data);
}

/* ---- the files ----------------------------------------------------------- */

struct pki {
  char *ca, *ca_key, *cert[2], *key[2];
};

static void pki_make(struct pki *pki)
{
  struct tls_error e;
  assert_int_equal(tls_make_ca(CLUSTER, &pki->ca, &pki->ca_key, &e), 0);
  for (unsigned i = 0; i < 2; i++) {
    char *csr;
    assert_int_equal(tls_make_request(&csr, &pki->key[i], &e), 0);
    assert_int_equal(tls_sign_request(pki->ca, pki->ca_key, csr, CLUSTER, NODE,
                                      i ? 365 : 300, &pki->cert[i], &e),
                     0);
    tls_free_text(csr);
  }
}

static void pki_clear(struct pki *pki)
{
  tls_free_text(pki->ca);
  tls_free_text(pki->ca_key);
  for (unsigned i = 0; i < 2; i++) {
    tls_free_text(pki->cert[i]);
    tls_free_text(pki->key[i]);
  }
}

static struct identity identity_of(const struct pki *pki)
{
  return (struct identity){.cluster = CLUSTER,
                           .id = NODE,
                           .name = "n1",
                           .listen = "127.0.0.1:1",
                           .advertise = "127.0.0.1:1",
                           .heartbeat_ms = 50,
                           .election_timeout_ms = 500,
                           .ca = pki->ca,
                           .cert = pki->cert[0],
                           .key = pki->key[0]};
}

/* A disk whose Nth call fails: before it did anything, or after; once, or from
   then on, as if the power was gone. */
static struct breaking {
  unsigned calls, at;
  bool after, for_good;
} breaking;

static bool breaks(bool after)
{
  if (!after) breaking.calls++;
  return breaking.at && breaking.after == after &&
         (breaking.for_good ? breaking.calls >= breaking.at
                            : breaking.calls == breaking.at);
}

/* From then on nothing has any effect. */
static bool is_over(void)
{
  return breaking.at && breaking.for_good && breaking.calls > breaking.at;
}

#define BREAKING(call)                                                         \
  if (breaks(false) || is_over()) return -EIO;                                 \
  int rc = call;                                                               \
  return breaks(true) ? -EIO : rc

static int b_open(void *ctx, const char *path, int flags)
{
  if (!(flags & (O_WRONLY | O_RDWR))) return io_posix.open(ctx, path, flags);
  BREAKING(io_posix.open(ctx, path, flags));
}

static int b_pwrite(void *ctx, int fd, const void *data, size_t n,
                    uint64_t offset)
{
  BREAKING(io_posix.pwrite(ctx, fd, data, n, offset));
}

static int b_sync(void *ctx, int fd)
{
  BREAKING(io_posix.sync(ctx, fd));
}

static int b_rename(void *ctx, const char *from, const char *to)
{
  BREAKING(io_posix.rename(ctx, from, to));
}

static int b_unlink(void *ctx, const char *path)
{
  BREAKING(io_posix.unlink(ctx, path));
}

static int b_sync_dir(void *ctx, const char *path)
{
  BREAKING(io_posix.sync_dir(ctx, path));
}

static struct io breaking_io(void)
{
  struct io io = io_posix;
  io.open = b_open;
  io.pwrite = b_pwrite;
  io.sync = b_sync;
  io.rename = b_rename;
  io.unlink = b_unlink;
  io.sync_dir = b_sync_dir;
  return io;
}

/* The node starts with what there is; which certificate it has. */
static unsigned starts_with(const char *dir, const struct pki *pki)
{
  struct identity i;
  struct trust_view view;
  struct tls_context *tls;
  struct text error = {""};
  if (identity_read(dir, &i, &error) != 0) fail_msg("%s", error.s);
  if (trust_check(dir, &i, &tls, &view, &error) != 0) fail_msg("%s", error.s);
  unsigned which = strcmp(i.cert, pki->cert[1]) == 0;
  assert_string_equal(i.cert, pki->cert[which]);
  char *own = trust_own_key(i.ca, i.cert, i.key);
  assert_string_equal(own, pki->key[which]);
  tls_free_text(own);
  tls_context_unref(tls);
  identity_clear(&i);
  return which;
}

static int replace(const struct io *io, const char *dir, const struct pki *pki)
{
  struct text error = {""};
  return trust_replace(io, dir, pki->cert[1], pki->key[1], pki->key[0], &error);
}

/* At each call, in each way. */
static void test_replace_cut(void **state)
{
  const char *dir = *state;
  const struct io io = breaking_io();
  unsigned old = 0, fresh = 0;
  struct text error;
  struct pki pki;
  pki_make(&pki);
  struct identity i = identity_of(&pki);
  for (unsigned how = 0; how < 4; how++)
    /* until no fault fires any more */
    for (unsigned at = 1, calls = at; calls + 1 >= at; at++) {
      assert_int_equal(identity_write(dir, &i, &error), 0);
      breaking = (struct breaking){0, at, how & 1, how & 2};
      replace(&io, dir, &pki);
      calls = breaking.calls;
      if (starts_with(dir, &pki))
        fresh++;
      else
        old++;
      /* And again, with the same ones, as the running node does. */
      breaking = (struct breaking){0};
      assert_int_equal(replace(&io, dir, &pki), 0);
      assert_int_equal(starts_with(dir, &pki), 1);
      size_t len;
      char *key = (char *)file_read(path_of(dir, "key.pem").s, &len);
      assert_string_equal(key, pki.key[1]); /* the old one is gone */
      free(key);
    }
  assert_in_range(old, 10, 1000);
  assert_in_range(fresh, 10, 1000);
  pki_clear(&pki);
}

static void test_own_key(void **state)
{
  struct pki pki;
  char *both = NULL;
  (void)state;
  pki_make(&pki);
  assert_true(asprintf(&both, "%s%s", pki.key[1], pki.key[0]) > 0);
  char *own = trust_own_key(pki.ca, pki.cert[0], both);
  assert_string_equal(own, pki.key[0]);
  assert_null(trust_own_key(pki.ca, pki.cert[0], pki.key[1]));
  assert_null(trust_own_key(pki.ca, pki.cert[0], ""));
  assert_null(trust_own_key(pki.ca, pki.cert[0], "-----BEGIN PRIVATE KEY"));
  tls_free_text(own);
  free(both);
  pki_clear(&pki);
}

static void refused_with_mode(const char *dir, const char *name, mode_t mode)
{
  struct identity i;
  struct text error = {""};
  struct path path = path_of(dir, name);
  assert_int_equal(chmod(path.s, mode), 0);
  assert_int_equal(identity_read(dir, &i, &error), -EACCES);
  assert_non_null(strstr(error.s, name));
  assert_non_null(strstr(error.s, "chmod 600"));
  assert_null(i.key);
  assert_int_equal(chmod(path.s, 0600), 0);
}

static void test_modes(void **state)
{
  static const char *const names[] = {"node", "ca.pem", "cert.pem", "key.pem"};
  static const mode_t modes[] = {0640, 0604, 0620, 0602, 0644, 0666};
  struct pki pki;
  struct identity i;
  struct text error;
  pki_make(&pki);
  i = identity_of(&pki);
  assert_int_equal(identity_write(*state, &i, &error), 0);
  for (unsigned n = 0; n < 4; n++)
    for (unsigned m = 0; m < 6; m++)
      refused_with_mode(*state, names[n], modes[m]);
  assert_int_equal(chmod(path_of(*state, "key.pem").s, 0400), 0);
  assert_int_equal(identity_read(*state, &i, &error), 0);
  identity_clear(&i);
  pki_clear(&pki);
}

/* ---- from outside --------------------------------------------------------- */

/* Files of a PKI beside a node that names them. */
static void give(const char *dir, const struct pki *pki, struct identity *i)
{
  file_write(path_of(dir, "o-ca").s, pki->ca, strlen(pki->ca));
  file_write(path_of(dir, "o-cert").s, pki->cert[0], strlen(pki->cert[0]));
  file_write(path_of(dir, "o-key").s, pki->key[0], strlen(pki->key[0]));
  assert_int_equal(chmod(path_of(dir, "o-key").s, 0600), 0);
  *i = identity_of(pki);
  i->ca = i->cert = i->key = NULL;
  strcpy(i->ca_file, path_of(dir, "o-ca").s);
  strcpy(i->cert_file, path_of(dir, "o-cert").s);
  strcpy(i->key_file, path_of(dir, "o-key").s);
}

static void test_outside_files(void **state)
{
  struct pki pki;
  struct identity i, back;
  struct text error = {""};
  pki_make(&pki);
  give(*state, &pki, &i);
  strcpy(i.names, "*.db.example");
  assert_int_equal(identity_write(*state, &i, &error), 0);
  assert_int_not_equal(access(path_of(*state, "key.pem").s, F_OK), 0);
  assert_int_equal(identity_read(*state, &back, &error), 0);
  assert_string_equal(back.ca_file, i.ca_file);
  assert_string_equal(back.cert_file, i.cert_file);
  assert_string_equal(back.key_file, i.key_file);
  assert_string_equal(back.names, "*.db.example");
  assert_string_equal(back.key, pki.key[0]);
  identity_clear(&back);
  i.names[0] = 0;
  assert_int_equal(identity_write(*state, &i, &error), 0);
  assert_int_equal(identity_read(*state, &back, &error), 0);
  assert_string_equal(back.names, "");
  identity_clear(&back);
  assert_int_equal(chmod(i.key_file, 0640), 0);
  assert_int_equal(identity_read(*state, &back, &error), -EACCES);
  assert_non_null(strstr(error.s, "o-key"));
  assert_int_equal(chmod(i.key_file, 0600), 0);
  unlink(i.cert_file);
  assert_int_equal(identity_read(*state, &back, &error), -EACCES);
  assert_non_null(strstr(error.s, "o-cert: no such file"));
  pki_clear(&pki);
}

static void outside_refused(struct identity *i, const char *why)
{
  struct text error = {""};
  assert_false(outside_identify(i, &error));
  if (strstr(error.s, why) == NULL) fail_msg("%s", error.s);
  tls_free_text(i->ca);
  tls_free_text(i->cert);
  tls_free_text(i->key);
  i->ca = i->cert = i->key = NULL;
}

static void test_outside_identity(void **state)
{
  struct pki pki, other;
  struct identity i;
  struct text error = {""};
  pki_make(&pki);
  pki_make(&other);
  give(*state, &pki, &i);
  i.cluster = i.id = 0;
  assert_true(outside_identify(&i, &error));
  assert_int_equal(i.cluster, CLUSTER);
  assert_int_equal(i.id, NODE);
  identity_clear(&i);
  give(*state, &pki, &i);
  i.cluster = CLUSTER + 1;
  outside_refused(&i, "wrong cluster: the certificate is of a node of "
                      "0123456789abcdef");
  i.cluster = CLUSTER;
  file_write(i.key_file, other.key[0], strlen(other.key[0]));
  outside_refused(&i, "key");
  file_write(i.key_file, pki.key[0], strlen(pki.key[0]));
  file_write(i.ca_file, other.ca, strlen(other.ca));
  outside_refused(&i, "does not belong to the CA");
  i.key_file[0] = 0;
  outside_refused(&i, "key is missing");
  pki_clear(&pki);
  pki_clear(&other);
}

static void test_outside_look(void **state)
{
  struct pki pki;
  struct identity i;
  pki_make(&pki);
  give(*state, &pki, &i);
  uint64_t first = outside_look(&i);
  assert_int_equal(outside_look(&i), first);
  assert_int_equal(chmod(i.key_file, 0400), 0);
  uint64_t second = outside_look(&i);
  assert_int_not_equal(second, first);
  unlink(i.ca_file);
  assert_int_not_equal(outside_look(&i), second);
  pki_clear(&pki);
}

static void test_options(void **state)
{
  struct identity i = {0};
  struct text error = {""};
  (void)state;
  assert_false(outside_option(&i, "listen", "x", &error));
  assert_true(outside_option(&i, "ca", "/a/ca.pem", &error));
  assert_true(outside_option(&i, "cert", "cert.pem", &error));
  assert_string_equal(i.ca_file, "/a/ca.pem");
  assert_int_equal(i.cert_file[0], '/');
  assert_non_null(strstr(i.cert_file, "/cert.pem"));
  assert_string_equal(error.s, "");
  assert_true(outside_option(&i, "key", "a\nb", &error));
  assert_string_equal(error.s, "bad value of key: a\nb");
  error.s[0] = 0;
  assert_true(outside_option(&i, "names", "", &error));
  assert_string_equal(error.s, "bad value of names: ");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_setting),
      cmocka_unit_test(test_setting_refused),
      cmocka_unit_test(test_settings),
      cmocka_unit_test(test_bundle),
      cmocka_unit_test(test_view),
      cmocka_unit_test_setup_teardown(test_replace_cut, dir_make, dir_clear),
      cmocka_unit_test(test_own_key),
      cmocka_unit_test_setup_teardown(test_modes, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_outside_files, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_outside_identity, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_outside_look, dir_make, dir_clear),
      cmocka_unit_test(test_options),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
