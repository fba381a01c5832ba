/*
** The file DIR/node: what was written is read, and every line that is missing,
** doubled, malformed or too long is refused with the name of the file.
*/
#include "harness.h"

#include "node.h"

#include <errno.h>
#include <xxhash.h>

static const struct identity sample = {.cluster = 0x0123456789abcdefu,
                                       .id = 0xfedcba9876543210u,
                                       .incarnation = 7,
                                       .name = "n1",
                                       .listen = "127.0.0.1:7001",
                                       .advertise = "host.example:7001",
                                       .heartbeat_ms = 50,
                                       .election_timeout_ms = 500,
                                       .lease = true,
                                       .log_keep_kib = 4096,
                                       .snapshot_rate_kib = 77};

static void write_sample(const char *dir, bool joining)
{
  struct identity i = sample;
  struct text error = {""};
  char ca[] = "ca\n", cert[] = "cert\n", key[] = "key\n";
  i.ca = ca;
  i.cert = cert;
  i.key = key;
  i.joining = joining;
  assert_int_equal(identity_write(dir, &i, &error), 0);
}

/* True when it is read; else the error names the file. */
static bool reads(const char *dir, struct identity *i)
{
  struct text error = {""};
  int rc = identity_read(dir, i, &error);
  if (rc == 0) return true;
  assert_int_equal(rc, -EBADMSG);
  assert_non_null(strstr(error.s, "/node: damaged"));
  assert_null(i->ca);
  assert_null(i->cert);
  assert_null(i->key);
  return false;
}

/* With a checksum that fits. */
static bool reads_text(const char *dir, const char *text)
{
  struct identity i;
  char whole[16384];
  snprintf(whole, sizeof(whole), "%schecksum = %016llx\n", text,
           (unsigned long long)XXH3_64bits(text, strlen(text)));
  file_write(path_of(dir, "node").s, whole, strlen(whole));
  bool ok = reads(dir, &i);
  if (ok) identity_clear(&i);
  return ok;
}

static void test_round_trip(void **state)
{
  const char *dir = *state;
  for (int joining = 0; joining < 2; joining++) {
    struct identity i;
    write_sample(dir, joining);
    assert_true(reads(dir, &i));
    assert_int_equal(i.cluster, sample.cluster);
    assert_int_equal(i.id, sample.id);
    assert_int_equal(i.incarnation, sample.incarnation);
    assert_string_equal(i.name, sample.name);
    assert_string_equal(i.listen, sample.listen);
    assert_string_equal(i.advertise, sample.advertise);
    assert_int_equal(i.heartbeat_ms, 50);
    assert_int_equal(i.election_timeout_ms, 500);
    assert_true(i.lease);
    assert_int_equal(i.joining, joining);
    assert_int_equal(i.log_keep_kib, 4096);
    assert_int_equal(i.snapshot_rate_kib, 77);
    assert_string_equal(i.ca, "ca\n");
    assert_string_equal(i.cert, "cert\n");
    assert_string_equal(i.key, "key\n");
    identity_clear(&i);
    assert_null(i.key);
  }
}

static void test_longest_texts(void **state)
{
  const char *dir = *state;
  struct identity i = sample, back;
  struct text error;
  char pem[] = "x\n";
  memset(i.name, 'n', sizeof(i.name) - 1);
  memset(i.listen, 'l', sizeof(i.listen) - 1);
  memset(i.advertise, 'a', sizeof(i.advertise) - 1);
  i.ca = i.cert = i.key = pem;
  assert_int_equal(identity_write(dir, &i, &error), 0);
  assert_true(reads(dir, &back));
  assert_string_equal(back.name, i.name);
  assert_string_equal(back.listen, i.listen);
  assert_string_equal(back.advertise, i.advertise);
  identity_clear(&back);
}

static void test_private_files(void **state)
{
  static const char *const names[] = {"node", "ca.pem", "cert.pem", "key.pem"};
  struct stat st;
  write_sample(*state, false);
  for (unsigned i = 0; i < 4; i++) {
    assert_int_equal(stat(path_of(*state, names[i]).s, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
  }
}

static void test_missing_files(void **state)
{
  static const char *const names[] = {"node", "ca.pem", "cert.pem", "key.pem"};
  for (unsigned i = 0; i < 4; i++) {
    struct identity identity;
    struct text error = {""};
    write_sample(*state, false);
    unlink(path_of(*state, names[i]).s);
    assert_int_equal(identity_read(*state, &identity, &error), -ENOENT);
    assert_non_null(strstr(error.s, names[i]));
    assert_null(identity.ca);
    assert_null(identity.cert);
  }
}

/* A key with a zero in it, and one of a size that no key has. */
static void test_damaged_key(void **state)
{
  struct identity i;
  struct text error = {""};
  static char large[20000];
  memset(large, 'k', sizeof(large));
  write_sample(*state, false);
  file_write(path_of(*state, "key.pem").s, "ab\0cd", 5);
  assert_int_equal(identity_read(*state, &i, &error), -EBADMSG);
  assert_non_null(strstr(error.s, "key.pem"));
  file_write(path_of(*state, "key.pem").s, large, sizeof(large));
  assert_int_not_equal(identity_read(*state, &i, &error), 0);
}

/* ---- the strict parser ------------------------------------------------- */

#define LINES 13 /* before the checksum */

struct lines {
  char line[LINES + 1][600];
};

static void split(const char *dir, struct lines *lines)
{
  size_t len;
  char *text = (char *)file_read(path_of(dir, "node").s, &len), *save = NULL;
  unsigned n = 0;
  memset(lines, 0, sizeof(*lines));
  for (char *l = strtok_r(text, "\n", &save); l;
       l = strtok_r(NULL, "\n", &save))
    if (strncmp(l, "checksum", 8) != 0)
      snprintf(lines->line[n++], sizeof(lines->line[0]), "%s", l);
  assert_int_equal(n, LINES);
  free(text);
}

static bool reads_lines(const char *dir, const struct lines *lines)
{
  char text[8192] = "";
  for (unsigned i = 0; i <= LINES; i++)
    if (lines->line[i][0]) {
      strcat(text, lines->line[i]);
      strcat(text, "\n");
    }
  return reads_text(dir, text);
}

static void test_each_line_missing_or_doubled(void **state)
{
  struct lines whole, l;
  write_sample(*state, false);
  split(*state, &whole);
  assert_true(reads_lines(*state, &whole));
  for (unsigned i = 0; i < LINES; i++) {
    l = whole;
    l.line[i][0] = 0;
    assert_false(reads_lines(*state, &l));
    l = whole;
    memcpy(l.line[LINES], l.line[i], sizeof(l.line[i]));
    assert_false(reads_lines(*state, &l));
    /* Missing here, doubled there: the number of lines is right. */
    l = whole;
    memcpy(l.line[i], l.line[(i + 1) % LINES], sizeof(l.line[i]));
    assert_false(reads_lines(*state, &l));
  }
}

static void test_any_order(void **state)
{
  struct lines whole, l;
  uint64_t seed = 1;
  write_sample(*state, false);
  split(*state, &whole);
  for (unsigned round = 0; round < 50; round++) {
    l = whole;
    for (unsigned i = LINES - 1; i > 0; i--) {
      unsigned k = (unsigned)(random_next(&seed) % (i + 1));
      char swap[sizeof(l.line[0])];
      memcpy(swap, l.line[i], sizeof(swap));
      memcpy(l.line[i], l.line[k], sizeof(swap));
      memcpy(l.line[k], swap, sizeof(swap));
    }
    assert_true(reads_lines(*state, &l));
  }
}

static void test_malformed_values(void **state)
{
  static const struct {
    unsigned line;
    const char *text;
  } bad[] = {
      {0, "version = 0"},
      {0, "version = 2"},
      {0, "version = x"},
      {0, "version = "},
      {0, "Version = 1"},
      {1, "cluster = 0123456789abcde"},
      {1, "cluster = 0123456789abcdef0"},
      {1, "cluster = 0123456789ABCDEF"},
      {1, "cluster = 0x23456789abcdef"},
      {1, "cluster = -123456789abcdef"},
      {2, "node = 0000000000000000"},
      {2, "node = "},
      {2, "node"},
      {3, "incarnation = 7"},
      {4, "name = "},
      {4, "name = a b"},
      {4, "name = a/b"},
      {4, "name = \303\251"},
      {5, "listen = "},
      {6, "advertise = "},
      {6, "advertise ="},
      {6, "advertise=x:1"},
      {7, "heartbeat_ms = 0"},
      {7, "heartbeat_ms = -1"},
      {7, "heartbeat_ms = +50"},
      {7, "heartbeat_ms =  50"},
      {7, "heartbeat_ms = 50 "},
      {7, "heartbeat_ms = 0x32"},
      {7, "heartbeat_ms = 50ms"},
      {7, "heartbeat_ms = 60001"},
      {7, "heartbeat_ms = 4294967346"},
      {7, "heartbeat_ms = 18446744073709551666"},
      {7, "heartbeat_ms = 500"}, /* as long as the election timeout */
      {8, "election_timeout_ms = 50"},
      {8, "election_timeout_ms = 600001"},
      {8, "election_timeout_ms = "},
      {9, "joining = 2"},
      {9, "joining = true"},
      {9, "joining = "},
      {10, "log_keep_kib = "},
      {10, "log_keep_kib = -1"},
      {11, "snapshot_rate_kib = 1e3"},
      {12, "lease = 2"},
      {12, "lease = on"},
      {12, "lease = "},
      {13, "comment = none"},
      {13, " = "},
      {13, "#"},
  };
  struct lines whole, l;
  write_sample(*state, false);
  split(*state, &whole);
  for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    l = whole;
    snprintf(l.line[bad[i].line], sizeof(l.line[0]), "%s", bad[i].text);
    if (reads_lines(*state, &l)) fail_msg("taken: %s", bad[i].text);
  }
}

/* What the two timeouts say of each other holds in any order. */
static void test_timeouts_in_other_order(void **state)
{
  struct lines l;
  write_sample(*state, false);
  split(*state, &l);
  strcpy(l.line[7], "election_timeout_ms = 100");
  strcpy(l.line[8], "heartbeat_ms = 99");
  assert_true(reads_lines(*state, &l));
  strcpy(l.line[8], "heartbeat_ms = 100");
  assert_false(reads_lines(*state, &l));
}

static void test_over_long_values(void **state)
{
  static const struct {
    unsigned line, size;
    const char *name;
  } texts[] = {{4, RAFT_NAME_MAX, "name"},
               {5, RAFT_ADDRESS_MAX, "listen"},
               {6, RAFT_ADDRESS_MAX, "advertise"}};
  struct lines whole, l;
  write_sample(*state, false);
  split(*state, &whole);
  for (unsigned i = 0; i < 3; i++)
    for (unsigned n = texts[i].size - 1; n <= texts[i].size + 1; n++) {
      l = whole;
      snprintf(l.line[texts[i].line], sizeof(l.line[0]), "%s = %0*d",
               texts[i].name, (int)n, 0);
      assert_int_equal(reads_lines(*state, &l), n < texts[i].size);
    }
  /* A file that is far too long, of right lines and a lot of nothing. */
  size_t len;
  char *text = (char *)file_read(path_of(*state, "node").s, &len);
  char *more = calloc(1, len + 20000);
  struct identity id;
  struct text error = {""};
  assert_non_null(more);
  memcpy(more, text, len);
  memset(more + len, '\n', 19999);
  file_write(path_of(*state, "node").s, more, len + 19999);
  assert_int_not_equal(identity_read(*state, &id, &error), 0);
  free(more);
  free(text);
}

/* Cut anywhere, it is not a whole file; nor with a zero anywhere, nor with a
   bit that flipped. */
static void test_every_length(void **state)
{
  struct path path = path_of(*state, "node");
  struct identity i;
  size_t len;
  write_sample(*state, false);
  char *text = (char *)file_read(path.s, &len);
  for (size_t n = 0; n < len; n++) {
    file_write(path.s, text, n);
    assert_false(reads(*state, &i));
  }
  for (size_t n = 0; n < 8 * len; n++) {
    text[n / 8] = (char)(text[n / 8] ^ 1 << n % 8);
    file_write(path.s, text, len);
    if (reads(*state, &i)) fail_msg("bit %zu flipped, and taken", n);
    text[n / 8] = (char)(text[n / 8] ^ 1 << n % 8);
  }
  for (size_t n = 0; n < len; n++) {
    char was = text[n];
    text[n] = 0;
    file_write(path.s, text, len);
    assert_false(reads(*state, &i));
    text[n] = was;
  }
  free(text);
}

static void test_names(void **state)
{
  char name[RAFT_NAME_MAX + 1] = "";
  (void)state;
  assert_true(identity_valid_name("n1"));
  assert_true(identity_valid_name("A-z_0.9"));
  assert_false(identity_valid_name(""));
  assert_false(identity_valid_name("a b"));
  assert_false(identity_valid_name("a\n"));
  assert_false(identity_valid_name("../x"));
  memset(name, 'x', RAFT_NAME_MAX - 1);
  assert_true(identity_valid_name(name));
  memset(name, 'x', RAFT_NAME_MAX);
  assert_false(identity_valid_name(name));
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(test_round_trip),
      IN_DIR(test_longest_texts),
      IN_DIR(test_private_files),
      IN_DIR(test_missing_files),
      IN_DIR(test_damaged_key),
      IN_DIR(test_each_line_missing_or_doubled),
      IN_DIR(test_any_order),
      IN_DIR(test_malformed_values),
      IN_DIR(test_timeouts_in_other_order),
      IN_DIR(test_over_long_values),
      IN_DIR(test_every_length),
      cmocka_unit_test(test_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
