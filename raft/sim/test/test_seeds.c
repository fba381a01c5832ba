/*
** The simulator, for a short while: three hundred seeds that are always the
** same and a hundred that never are. The first that fails ends the program,
** and says which it was.
**
**   test_seeds [fixed [random [first random one]]]
*/
#include "sim.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t fixed = 300, random_ones = 100, random_first;

static void run(uint64_t first, uint64_t n)
{
  struct sim_stats stats = {0};
  double begin = sim_seconds();

  assert_true(sim_run_seeds(first, n, &stats));
  printf("seeds %" PRIu64 " to %" PRIu64 "\n", first, first + n - 1);
  sim_summary(&stats, n, sim_seconds() - begin);
  fflush(stdout);
}

static void test_fixed(void **state)
{
  (void)state;
  run(1, fixed);
}

static void test_random(void **state)
{
  (void)state;
  run(random_first, random_ones);
}

int main(int argc, char **argv)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_fixed),
      cmocka_unit_test(test_random),
  };

  if (argc > 1) fixed = strtoull(argv[1], NULL, 10);
  if (argc > 2) random_ones = strtoull(argv[2], NULL, 10);
  random_first = argc > 3 ? strtoull(argv[3], NULL, 10) : sim_random_seed();
  sim_settings.twice = 25; /* one seed, one trace: I15 */
  sim_catch();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
