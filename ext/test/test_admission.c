/*
** The answer to who joins or is rebuilt: what was packed comes back, and
** nothing else is taken. Each input lies at the end of memory of exactly its
** size, so that a sanitizer sees a byte too far.
*/
#include "harness.h"

#include "cluster.h"

static struct admission sample(void)
{
  struct admission a = {.id = 0x1122334455667788u,
                        .incarnation = 99,
                        .cert = "a certificate",
                        .ca = "another",
                        .heartbeat_ms = 75,
                        .election_timeout_ms = 500,
                        .lease = true};
  a.members.n = 2;
  for (unsigned i = 0; i < 2; i++) {
    struct raft_member *m = &a.members.members[i];
    m->id = i ? a.id : 7;
    m->role = i ? RAFT_LEARNER : RAFT_VOTER;
    snprintf(m->name, sizeof(m->name), "n%u", i + 1);
    snprintf(m->address, sizeof(m->address), "127.0.0.1:%u", 7001 + i);
  }
  return a;
}

/* Of the first `len` bytes, or of all and one more. */
static bool taken(const struct packer *p, size_t len, struct admission *out)
{
  uint8_t *exact = malloc(len);
  assert_non_null(exact);
  memset(exact, 0, len);
  memcpy(exact, p->data, len < p->len ? len : p->len);
  bool ok = cluster_parse_admission(exact, len, out);
  if (ok) { /* they are in the body, which goes */
    assert_string_equal(out->cert, "a certificate");
    assert_string_equal(out->ca, "another");
  }
  free(exact);
  return ok;
}

static bool comes_back(const struct admission *a, struct admission *out)
{
  struct packer p = {0};
  cluster_pack_admission(&p, a);
  assert_false(p.bad);
  bool ok = taken(&p, p.len, out);
  free(p.data);
  return ok;
}

static void test_round_trip(void **state)
{
  struct admission a = sample(), b;
  (void)state;
  assert_true(comes_back(&a, &b));
  assert_int_equal(b.id, a.id);
  assert_int_equal(b.incarnation, 99);
  assert_int_equal(b.heartbeat_ms, 75);
  assert_int_equal(b.election_timeout_ms, 500);
  assert_true(b.lease);
  assert_int_equal(b.members.n, 2);
  assert_string_equal(b.members.members[1].address, "127.0.0.1:7002");
}

static void test_every_length(void **state)
{
  struct admission a = sample(), b;
  struct packer p = {0};
  (void)state;
  cluster_pack_admission(&p, &a);
  for (size_t len = 1; len <= p.len + 1; len++)
    assert_int_equal(taken(&p, len, &b), len == p.len);
  free(p.data);
}

/* What could be parsed, but no node can be made of. */
static void test_refused(void **state)
{
  struct admission a, b;
  (void)state;
  a = sample();
  a.id = 0;
  assert_false(comes_back(&a, &b));
  a = sample();
  a.id = 8; /* no member */
  assert_false(comes_back(&a, &b));
  a = sample();
  a.heartbeat_ms = 0;
  assert_false(comes_back(&a, &b));
  a = sample();
  a.election_timeout_ms = a.heartbeat_ms;
  assert_false(comes_back(&a, &b));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_every_length),
      cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
