/*
** report.c: the end of a run: a failure, or a summary.
**
** A failure says the seed, the event, what was violated and the last events
** before it, and ends the program. So do a failed assertion in the core or the
** store, a crash of the program, and a seed that does not come to its end.
*/
#include "sim.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define SEED_SECONDS 60

struct settings sim_settings = {.first_seed = 1, .n_seeds = 1};
struct sim *sim_running;

/* ---- failures ----------------------------------------------------------- */

static void report(const struct sim *s, const char *what, const char *why)
{
  if (sim_settings.hunt) {
    printf("killed seed=%" PRIu64 " (%u-th seed) by: %s\n", s->seed,
           (unsigned)(s->seed - sim_settings.first_seed + 1), what);
    fflush(stdout);
    return;
  }
  printf("\n");
  sim_trace_dump(s);
  sim_options_print(&s->options);
  printf("seed %" PRIu64 ", event %" PRIu64 ", %.3f ms: %s: %s\n", s->seed,
         s->stats.events, (double)s->now / 1000, what, why);
  fflush(stdout);
}

static void give_up(void)
{
  fflush(stdout);
  _exit(1);
}

void sim_fail(struct sim *s, const char *what, const char *format, ...)
{
  char why[256];
  va_list args;

  va_start(args, format);
  vsnprintf(why, sizeof why, format, args);
  va_end(args);
  report(s, what, why);
  give_up();
  abort();
}

/* In place of the C library's: a failed assertion anywhere ends the seed. */
#ifndef NDEBUG
void __assert_fail(const char *assertion, const char *file, unsigned int line,
                   const char *function)
{
  char what[160];

  snprintf(what, sizeof what, "assert %s:%u", file, line);
  if (sim_running)
    report(sim_running, what, assertion);
  else
    printf("%s: %s: %s\n", what, function, assertion);
  give_up();
  abort();
}
#endif

static void on_signal(int number)
{
  const char *what = number == SIGALRM ? "no end" : "crash";

  if (sim_running) report(sim_running, what, strsignal(number));
  _exit(1);
}

void sim_catch(void)
{
  signal(SIGABRT, on_signal);
  signal(SIGALRM, on_signal);
#if !defined(__SANITIZE_ADDRESS__)
  signal(SIGSEGV, on_signal);
  signal(SIGFPE, on_signal);
#endif
}

/* ---- seeds -------------------------------------------------------------- */

double sim_seconds(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

uint64_t sim_random_seed(void)
{
  uint64_t seed = 0;

  if (getrandom(&seed, sizeof seed, 0) < 0) seed = (uint64_t)time(NULL);
  return seed % 1000000000000u;
}

static bool same_twice(uint64_t seed, uint64_t hash)
{
  struct sim_stats unused = {0};

  if (sim_run(seed, &unused) == hash) return true;
  if (sim_settings.hunt)
    printf("killed seed=%" PRIu64 " (%u-th seed) by: I15\n", seed,
           (unsigned)(seed - sim_settings.first_seed + 1));
  else
    printf("seed %" PRIu64 ": I15: two runs, two traces\n", seed);
  return false;
}

bool sim_run_seeds(uint64_t first, uint64_t n, struct sim_stats *stats)
{
  uint64_t seed, hash;

  for (seed = first; seed < first + n; seed++) {
    alarm(SEED_SECONDS);
    hash = sim_run(seed, stats);
    if (sim_settings.twice && seed % sim_settings.twice == 0 &&
        !same_twice(seed, hash))
      return false;
  }
  alarm(0);
  return true;
}

/* ---- summary ------------------------------------------------------------ */

#define N(field) (unsigned long long)stats->field

void sim_summary(const struct sim_stats *stats, uint64_t seeds, double seconds)
{
  printf("%llu seeds, %llu events in %.1f s (%.0f a second), %llu messages\n",
         (unsigned long long)seeds, N(events), seconds,
         seconds > 0 ? (double)stats->events / seconds : 0, N(messages));
  printf("commits %llu, elections %llu, transfers %llu, changes %llu of which "
         "joint %llu\n",
         N(commits), N(elections), N(transfers), N(changes), N(joint));
  printf(
      "transactions: done %llu, refused %llu, lost %llu, unknown %llu; reads "
      "%llu\n",
      N(acknowledged), N(rejected), N(lost), N(unknown), N(reads));
  printf("starts %llu, crashes %llu, kills %llu, stops %llu, pauses %llu, "
         "partitions %llu, resets %llu\n",
         N(restarts), N(crashes), N(kills), N(stops), N(pauses), N(partitions),
         N(resets));
  printf("snapshots: begun %llu, resumed %llu, installed %llu, with a new log "
         "%llu; checkpoints %llu, loads %llu\n",
         N(snapshots), N(resumed), N(installed), N(replaced), N(checkpoints),
         N(loads));
  printf("disks: failed %llu, sectors lost %llu, torn %llu, EIO %llu, full "
         "%llu, rotted %llu, misdirected %llu\n",
         N(disk_failures), N(lost_sectors), N(torn), N(eio), N(full), N(rotted),
         N(misdirected));
  printf("stores refused %llu, without their newest entries %llu, wiped %llu, "
         "opened anew %llu\n",
         N(refused), N(vanished), N(wiped), N(reopened));
}
