/*
** How often tokens may be tried in vain, in a time of the test's own.
*/
#include "harness.h"

#include "guesses.h"

/* How many tries in vain one has, one after the other, at a time. */
static unsigned tries(struct guesses *g, const char *host, uint64_t now)
{
  uint64_t wait;
  unsigned n = 0;
  while (guesses_may(g, host, now, &wait)) {
    assert_int_equal(wait, 0);
    guesses_failed(g, host, now);
    assert_true(++n < 100000);
  }
  assert_true(wait > 0);
  return n;
}

static void test_one_address(void **state)
{
  struct guesses g = {0};
  uint64_t now = 5000, wait;
  (void)state;
  assert_int_equal(tries(&g, "1.2.3.4", now), 10);
  assert_false(guesses_may(&g, "1.2.3.4", now, &wait));
  assert_int_equal(wait, 1000);
  assert_false(guesses_may(&g, "1.2.3.4", now + 400, &wait));
  assert_int_equal(wait, 600);
  assert_int_equal(tries(&g, "1.2.3.4", now + 999), 0);
  assert_int_equal(tries(&g, "1.2.3.4", now + 1000), 1);
  assert_int_equal(tries(&g, "1.2.3.4", now + 4000), 3);
  /* However long nobody tries: ten at once, no more. */
  assert_int_equal(tries(&g, "1.2.3.4", now + 50000), 10);
  assert_int_equal(tries(&g, "1.2.3.4", now + 9000000), 10);
  assert_int_equal(g.failed, 34);
  assert_true(g.refused > 6);
}

/* To ask costs nothing, and who is refused does not wait longer for it. */
static void test_asking_is_free(void **state)
{
  struct guesses g = {0};
  uint64_t wait;
  (void)state;
  for (int i = 0; i < 1000; i++)
    assert_true(guesses_may(&g, "1.2.3.4", 0, &wait));
  assert_int_equal(tries(&g, "1.2.3.4", 0), 10);
  for (int i = 0; i < 1000; i++)
    assert_false(guesses_may(&g, "1.2.3.4", 0, &wait));
  assert_int_equal(wait, 1000);
  assert_int_equal(tries(&g, "1.2.3.4", 1000), 1);
}

static struct path address(unsigned i)
{
  struct path name;
  snprintf(name.s, sizeof(name.s), "10.0.%u.%u", i / 256, i % 256);
  return name;
}

/* All together have a bound, and whoever has not failed lately has none of it. */
static void test_all(void **state)
{
  struct guesses g = {0};
  uint64_t wait;
  unsigned n = 0;
  (void)state;
  for (unsigned i = 0; i < 200; i++)
    n += tries(&g, address(i).s, 0);
  /* A hundred of all, and of each the first one. */
  assert_int_equal(n, 100 + 190);
  assert_false(guesses_may(&g, address(150).s, 0, &wait));
  assert_in_range(wait, 1, 20000);
  /* 150 has failed once, so that its own nine would be left. */
  assert_true(guesses_may(&g, "192.168.0.1", 0, &wait));
  assert_true(guesses_may(&g, "192.168.0.1", 1, &wait));
  /* The rate of all: 20 a second. */
  uint64_t now = g.full - 100 * 50 + 1000;
  n = 0;
  for (unsigned i = 0; i < 200; i++)
    n += tries(&g, address(i).s, now);
  assert_in_range(n, 20, 21);
}

static void test_table(void **state)
{
  static struct guesses g;
  uint64_t wait;
  (void)state;
  assert_int_equal(tries(&g, "1.1.1.1", 0), 10);
  for (unsigned i = 0; i < GUESSES_ADDRESSES - 1; i++)
    guesses_failed(&g, address(i).s, 1 + i);
  assert_int_equal(g.n, GUESSES_ADDRESSES);
  assert_false(guesses_may(&g, "1.1.1.1", 300, &wait));
  guesses_failed(&g, address(0).s, 400); /* not the oldest any more */
  guesses_failed(&g, "2.2.2.2", 401);    /* in the place of 1.1.1.1 */
  assert_int_equal(g.n, GUESSES_ADDRESSES);
  assert_true(guesses_may(&g, "1.1.1.1", 401, &wait));
  guesses_failed(&g, "3.3.3.3", 402); /* in that of address 1 */
  unsigned found = 0;
  for (unsigned i = 0; i < g.n; i++) {
    found += strcmp(g.hosts[i].host, address(0).s) == 0;
    assert_string_not_equal(g.hosts[i].host, address(1).s);
  }
  assert_int_equal(found, 1);
}

static void test_lines(void **state)
{
  struct guesses g = {0};
  uint64_t untold;
  unsigned told = 0;
  (void)state;
  for (int i = 0; i < 50; i++)
    told += guesses_tell(&g, 100, &untold);
  assert_int_equal(told, 10);
  assert_false(guesses_tell(&g, 5000, &untold));
  assert_true(guesses_tell(&g, 5100, &untold));
  assert_int_equal(untold, 41);
  assert_true(guesses_tell(&g, 10100, &untold));
  assert_int_equal(untold, 0);
}

static void assert_host(const char *remote, const char *host)
{
  char got[GUESSES_HOST_MAX];
  guesses_host(remote, got, sizeof(got));
  assert_string_equal(got, host);
}

static void test_hosts(void **state)
{
  (void)state;
  assert_host("1.2.3.4:5678", "1.2.3.4");
  assert_host("[::1]:5", "::1");
  assert_host("[2001:db8:1:2:3:4:5:6]:7000", "2001:db8:1:2::/64");
  assert_host("[2001:db8:1:2:ffff::]:1", "2001:db8:1:2::/64");
  assert_host("[fe80::1%eth0]:5", "fe80::/64");
  assert_host("[::ffff:1.2.3.4]:5", "1.2.3.4");
  assert_host("nonsense", "nonsense");
  assert_host("", "");
  char small[8],
      *long_one = strdup(
          "a-name-that-is-longer-than-what-there-is-room-for-in-the-table-"
          "of-addresses:1");
  guesses_host("1.2.3.4.5.6.7:8", small, sizeof(small));
  assert_string_equal(small, "1.2.3.4");
  struct guesses g = {0};
  char host[GUESSES_HOST_MAX];
  guesses_host(long_one, host, sizeof(host));
  assert_int_equal(tries(&g, host, 0), 10);
  assert_int_equal(g.n, 1);
  free(long_one);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_one_address), cmocka_unit_test(test_asking_is_free),
      cmocka_unit_test(test_all),         cmocka_unit_test(test_table),
      cmocka_unit_test(test_lines),       cmocka_unit_test(test_hosts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
