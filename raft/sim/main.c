/*
** main.c: the command line.
**
**   sim [SEED] [--seeds N] [--random] [--nodes N] [--steps N] [--trace]
**       [--quiet] [--twice N] [--bench] [--mutant-hunt] [--no-FAULT]...
**
** runs seeds SEED, SEED + 1, ... (a random one with --random) and ends at the
** first failure with status 1. The faults are those of options.c; `--no-loss`
** and the like take one class out, which is how a failing seed is shrunk: what
** remains of it is drawn as before, but the history is another one.
*/
#include "sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(void)
{
  unsigned f;

  fprintf(stderr,
          "usage: sim [SEED] [--seeds N] [--random] [--nodes N] [--steps N]\n"
          "           [--trace] [--quiet] [--twice N] [--bench] "
          "[--mutant-hunt]\n           [--calm]");
  for (f = 0; f < F_COUNT; f++)
    fprintf(stderr, " [--no-%s]", sim_fault_names[f]);
  fprintf(stderr, "\n");
  return 2;
}

static bool no_fault(const char *arg)
{
  unsigned f;

  if (strncmp(arg, "--no-", 5)) return false;
  for (f = 0; f < F_COUNT; f++)
    if (!strcmp(arg + 5, sim_fault_names[f])) {
      sim_settings.off |= 1u << f;
      return true;
    }
  return false;
}

static bool take_flag(const char *arg)
{
  struct settings *o = &sim_settings;

  if (!strcmp(arg, "--random")) return o->random = true;
  if (!strcmp(arg, "--trace")) return o->trace = true;
  if (!strcmp(arg, "--quiet")) return o->quiet = true;
  if (!strcmp(arg, "--bench")) return o->bench = true;
  if (!strcmp(arg, "--mutant-hunt")) return o->hunt = true;
  if (!strcmp(arg, "--calm")) { /* no faults at all */
    o->off = UINT32_MAX;
    return true;
  }
  return no_fault(arg);
}

static bool take_number(const char *arg, const char *value)
{
  struct settings *o = &sim_settings;
  uint64_t n;

  if (!value) return false;
  n = strtoull(value, NULL, 10);
  if (!strcmp(arg, "--seeds"))
    o->n_seeds = n;
  else if (!strcmp(arg, "--nodes") && n <= SIM_NODES)
    o->nodes = (unsigned)n;
  else if (!strcmp(arg, "--steps"))
    o->steps = n;
  else if (!strcmp(arg, "--twice"))
    o->twice = (unsigned)n;
  else
    return false;
  return true;
}

static bool parse(int argc, char **argv)
{
  int i;

  for (i = 1; i < argc; i++) {
    if (argv[i][0] >= '0' && argv[i][0] <= '9')
      sim_settings.first_seed = strtoull(argv[i], NULL, 10);
    else if (take_flag(argv[i]))
      continue;
    else if (take_number(argv[i], argv[i + 1]))
      i++;
    else
      return false;
  }
  return true;
}

int main(int argc, char **argv)
{
  struct sim_stats stats = {0};
  struct settings *o = &sim_settings;
  double begin = sim_seconds();
  bool ok;

  setvbuf(stdout, NULL, _IOFBF, 1u << 16);
  if (!parse(argc, argv)) return usage();
  if (o->random) o->first_seed = sim_random_seed();
  if (!o->quiet && !o->hunt && o->n_seeds > 1)
    printf("seeds %" PRIu64 " to %" PRIu64 "\n", o->first_seed,
           o->first_seed + o->n_seeds - 1);
  fflush(stdout);
  sim_catch();
  ok = sim_run_seeds(o->first_seed, o->n_seeds, &stats);
  if (o->hunt && ok) printf("survived %" PRIu64 " seeds\n", o->n_seeds);
  if (!o->quiet && !o->hunt)
    sim_summary(&stats, o->n_seeds, sim_seconds() - begin);
  return ok ? 0 : 1;
}
