/*
** An invitation as a setting: what was packed comes back, and nothing else is
** taken. Each input lies in memory of exactly its size, so that a sanitizer
** sees a byte too far.
*/
#include "harness.h"

#include "cluster.h"

static struct invitation sample(void)
{
  struct invitation i = {.state = INVITATION_USED,
                         .role = RAFT_LEARNER,
                         .created = 1000000000001,
                         .expires = 1000003600001,
                         .ended = 1000000000777,
                         .by = "n1"};
  for (unsigned k = 0; k < sizeof(i.digest); k++)
    i.digest[k] = (uint8_t)(k * 7 + 1);
  return i;
}

/* Of the first `len` bytes, or of all and zeros. */
static bool taken(const struct packer *p, size_t len, struct invitation *out)
{
  uint8_t *exact = malloc(len + (len == 0));
  assert_non_null(exact);
  memset(exact, 0, len);
  memcpy(exact, p->data, len < p->len ? len : p->len);
  bool ok = invite_parse(exact, len, out);
  free(exact);
  return ok;
}

static bool comes_back(const struct invitation *i, struct invitation *out)
{
  struct packer p = {0};
  invite_pack(&p, i);
  assert_false(p.bad);
  bool ok = taken(&p, p.len, out);
  free(p.data);
  return ok;
}

static void test_round_trip(void **state)
{
  struct invitation i = sample(), out;
  (void)state;
  assert_true(comes_back(&i, &out));
  assert_int_equal(out.state, INVITATION_USED);
  assert_int_equal(out.role, RAFT_LEARNER);
  assert_true(out.created == i.created && out.expires == i.expires &&
              out.ended == i.ended);
  assert_memory_equal(out.digest, i.digest, sizeof(i.digest));
  assert_string_equal(out.by, "n1");
}

static void test_every_length(void **state)
{
  struct invitation i = sample(), out;
  struct packer p = {0};
  (void)state;
  invite_pack(&p, &i);
  for (size_t len = 0; len <= p.len + 1; len++)
    assert_int_equal(taken(&p, len, &out), len == p.len);
  p.data[0]++; /* another version */
  assert_false(taken(&p, p.len, &out));
  free(p.data);
}

static void test_refused(void **state)
{
  struct invitation i, out;
  (void)state;
  i = sample();
  i.state = INVITATION_WITHDRAWN;
  assert_true(comes_back(&i, &out));
  i.state++;
  assert_false(comes_back(&i, &out));
  i = sample();
  i.role = RAFT_VOTER;
  assert_true(comes_back(&i, &out));
  i.role = RAFT_LEAVING;
  assert_false(comes_back(&i, &out));
  i.role = 0;
  assert_false(comes_back(&i, &out));
}

/* A name that is too long for where it is kept. */
static void test_long_name(void **state)
{
  struct invitation i = sample(), out;
  struct packer p = {0};
  char name[RAFT_NAME_MAX + 1];
  (void)state;
  i.by[0] = 0;
  invite_pack(&p, &i);
  size_t head = p.len;
  struct packer empty = {0};
  pack_text(&empty, "");
  head -= empty.len;
  free(empty.data);
  for (size_t n = RAFT_NAME_MAX - 1; n <= RAFT_NAME_MAX; n++) {
    memset(name, 'n', n);
    name[n] = 0;
    p.len = head;
    pack_text(&p, name);
    assert_int_equal(taken(&p, p.len, &out), n < RAFT_NAME_MAX);
  }
  free(p.data);
}

static void test_ago(void **state)
{
  static const struct {
    int64_t ms;
    const char *text;
  } cases[] = {{-5000, "just now"},       {999, "just now"},
               {1000, "1 s ago"},         {119999, "119 s ago"},
               {120000, "2 minutes ago"}, {7199999, "119 minutes ago"},
               {7200000, "2 hours ago"},  {86400000, "24 hours ago"},
               {INT64_MIN, "just now"}};
  (void)state;
  for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
    assert_string_equal(ago_text(cases[i].ms).s, cases[i].text);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip), cmocka_unit_test(test_every_length),
      cmocka_unit_test(test_refused),    cmocka_unit_test(test_long_name),
      cmocka_unit_test(test_ago),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
