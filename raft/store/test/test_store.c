/*
** What a store that meets no accident must do: hold what it was given, in
** order, across everything that its interface offers.
*/
#include "harness.h"

#include <unistd.h>

static void a_new_log_is_empty(void **state)
{
  struct harness h;
  struct raft_entry e;
  struct store_stats stats;

  (void)state;
  harness_init(&h, 1);
  harness_open(&h);
  assert_int_equal(h.recovered.term, 0);
  assert_int_equal(h.recovered.voted_for, 0);
  assert_int_equal(h.recovered.last_index, 0);
  assert_int_equal(h.recovered.n_terms, 0);
  store_stats(h.store, &stats);
  assert_int_equal(stats.first, 1);
  assert_int_equal(stats.last, 0);
  assert_int_equal(store_read(h.store, 1, 1, 1, 1, &e, &h.error), -ENOENT);
  assert_non_null(strstr(h.error, "entry 1 is not in the log"));
  harness_reopen(&h);
  assert_int_equal(h.recovered.last_index, 0);
  harness_free(&h);
}

static void entries_come_back(void **state)
{
  static const size_t lens[] = {0, 1, 7, 8, 9, 500, 3000, 5000, 70000};
  struct harness h;
  raft_index first[9];
  unsigned i, round;

  (void)state;
  harness_init(&h, 2);
  harness_open(&h);
  harness_vote(&h, 3, 9);
  for (i = 0; i < 9; i++) {
    first[i] = h.last + 1;
    harness_append(&h, 5, lens[i]);
  }
  for (round = 0; round < 3; round++) {
    for (i = 0; i < 9; i++)
      harness_expect(&h, first[i], first[i] + 4, 3, 0, lens[i]);
    harness_reopen(&h);
    assert_int_equal(h.recovered.last_index, 45);
    assert_int_equal(h.recovered.term, 3);
    assert_int_equal(h.recovered.voted_for, 9);
    assert_int_equal(h.recovered.n_terms, 1);
    assert_int_equal(h.recovered.terms[0].first, 1);
    assert_int_equal(h.recovered.terms[0].term, 3);
  }
  harness_free(&h);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_new_log_is_empty),
      cmocka_unit_test(entries_come_back),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
