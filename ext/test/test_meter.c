/*
** Durations in buckets and what is made of them; how far behind.
*/
#include "harness.h"

#include "meter.h"

#define MS 1000000u

static double quantile(const struct meter *meter,
                       const struct meter_window *window, double part)
{
  struct meter_counts now;
  meter_read(meter, &now);
  return meter_window_quantile(window, &now, part) * 1000; /* ms */
}

/* ---- how long ------------------------------------------------------------ */

/* Each is found again, within an eighth of what it was. */
static void test_every_duration(void **state)
{
  static const struct meter_window all;
  (void)state;
  for (uint64_t ns = 1; ns < 60000 * (uint64_t)MS; ns += ns / 7 + 1) {
    struct meter meter = {0};
    meter_add(&meter, ns);
    double ms = (double)ns / MS, low = quantile(&meter, &all, 0),
           high = quantile(&meter, &all, 1);
    assert_true(low <= ms && ms <= high + 0.001);
    assert_true(high - low <= low / 8 + 0.001);
    assert_int_equal(meter.ns, ns);
  }
}

static void test_the_longest(void **state)
{
  static const struct meter_window all;
  static const uint64_t longest[] = {65536u * (uint64_t)MS, UINT64_MAX};
  (void)state;
  for (unsigned i = 0; i < 2; i++) {
    struct meter meter = {0};
    struct meter_counts now;
    meter_add(&meter, longest[i]);
    meter_read(&meter, &now);
    assert_int_equal(now.n, 1);
    assert_int_equal(now.counts[METER_BUCKETS - 1], 1);
    assert_true(quantile(&meter, &all, 0.5) > 60000);
  }
}

static void test_within(void **state)
{
  struct meter meter = {0};
  struct meter_counts now;
  (void)state;
  for (int d = -7; d <= 15; d++) { /* just below 2^d ms, and just above */
    uint64_t ns = d < 0 ? MS >> -d : (uint64_t)MS << d;
    meter_add(&meter, ns - ns / 100);
    meter_add(&meter, ns + ns / 100);
  }
  meter_read(&meter, &now);
  assert_int_equal(now.n, 46);
  for (int d = -7; d <= 15; d++)
    assert_int_equal(meter_within(&now, d), 2 * (d + 7) + 1);
}

static void test_quantiles(void **state)
{
  static const struct meter_window all;
  struct meter meter = {0};
  (void)state;
  assert_true(quantile(&meter, &all, 0.5) < 0);
  for (unsigned ms = 1; ms <= 1000; ms++)
    meter_add(&meter, (uint64_t)ms * MS);
  assert_float_equal(quantile(&meter, &all, 0.5), 500, 32);
  assert_float_equal(quantile(&meter, &all, 0.99), 990, 62);
  assert_float_equal(quantile(&meter, &all, 1), 1000, 64);
}

/* What is older than a minute does not count any more. */
static void test_window(void **state)
{
  struct meter meter = {0};
  struct meter_window window = {0};
  uint64_t ms = 1000;
  (void)state;
  for (unsigned i = 0; i < 100; i++)
    meter_add(&meter, 100 * MS);
  meter_window_tick(&window, &meter, ms);
  meter_add(&meter, 1 * MS);
  assert_float_equal(quantile(&meter, &window, 0.5), 100, 13);
  for (; ms < 59000; ms += 100)
    meter_window_tick(&window, &meter, ms);
  assert_float_equal(quantile(&meter, &window, 0.5), 100, 13);
  for (; ms < 61100; ms += 100)
    meter_window_tick(&window, &meter, ms);
  assert_float_equal(quantile(&meter, &window, 0.5), 1, 0.13);
  for (; ms < 67000; ms += 100)
    meter_window_tick(&window, &meter, ms);
  assert_true(quantile(&meter, &window, 0.5) < 0);
}

/* ---- how far behind ------------------------------------------------------ */

/* An entry each `pace` ms, for so long: whoever has all up to a moment ago is
   behind for about as long. */
static void test_steady_growth(void **state)
{
  static const unsigned paces[] = {1, 3, 10, 100, 1000, 60000};
  (void)state;
  for (unsigned i = 0; i < sizeof(paces) / sizeof(paces[0]); i++) {
    struct meter_growth growth = {0};
    uint64_t pace = paces[i], now = 5000, n = 40000;
    for (uint64_t last = 1; last <= n; last++)
      meter_grown(&growth, now += pace, last);
    assert_int_equal(meter_behind(&growth, now, n), 0);
    for (uint64_t lag = 1; lag < n && lag * pace < 86400000u;
         lag += lag / 3 + 1) {
      uint64_t truth = (lag - 1) * pace;
      uint64_t told = meter_behind(&growth, now, n - lag);
      assert_true(told <= truth);
      assert_true(truth <= told + told / 7 + METER_SPACE_MS + pace);
    }
  }
}

/* The newest entry counts, although the one before it is just as new. */
static void test_a_last_entry(void **state)
{
  struct meter_growth growth = {0};
  (void)state;
  meter_grown(&growth, 1000, 1);
  meter_grown(&growth, 1001, 2);
  meter_grown(&growth, 1001, 2);
  assert_int_equal(meter_behind(&growth, 1001, 1), 0);
  assert_int_equal(meter_behind(&growth, 9001, 1), 8000);
  assert_int_equal(meter_behind(&growth, 9001, 0), 8001);
  assert_int_equal(meter_behind(&growth, 9001, 2), 0);
  assert_int_equal(meter_behind(&growth, 9001, 3), 0);
}

/* Entries of another leader took their place. */
static void test_a_shorter_log(void **state)
{
  struct meter_growth growth = {0};
  (void)state;
  meter_grown(&growth, 1000, 10);
  meter_grown(&growth, 5000, 8);
  assert_int_equal(meter_behind(&growth, 6000, 7), 1000);
  assert_int_equal(meter_behind(&growth, 6000, 8), 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_duration),
      cmocka_unit_test(test_the_longest),
      cmocka_unit_test(test_within),
      cmocka_unit_test(test_quantiles),
      cmocka_unit_test(test_window),
      cmocka_unit_test(test_steady_growth),
      cmocka_unit_test(test_a_last_entry),
      cmocka_unit_test(test_a_shorter_log),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
