/*
** nodes.c: what a node costs beside its work: catching up, having nothing to
** do, memory, and the end of the process that hosts it.
*/
#include "bench.h"

#include <fnmatch.h>
#include <signal.h>
#include <stdio.h>

#define APPLY_MS 1000 /* of writes that a stopped follower misses */
#define APPLY_WRITERS 16
#define APPLY_SECONDS 30
#define IDLE_SECONDS 4
#define KILLS 50 /* even: who hosted at first does so in the end */
#define REST_MS 50

static void measure_apply(void)
{
  int leader = find_leader(), follower = find_follower();
  long long from = index_of(follower);
  kill(process_pid(follower), SIGSTOP);
  tell(leader, "run write - %d %d 0", APPLY_WRITERS, APPLY_MS);
  long long to = index_of(leader);
  kill(process_pid(follower), SIGCONT);
  double began = now_s();
  while (index_of(follower) < to) {
    if (now_s() - began > APPLY_SECONDS) die("the follower does not catch up");
    sleep_ms(1);
  }
  table_row(&(struct row){.label = "catching up, follower, tx/s",
                          .stock = -1,
                          .ratio = -1,
                          .quorate = (double)(to - from) / (now_s() - began)});
}

static void measure_idle(void)
{
  static const char *const label[] = {"idle, cluster of one, % of a core",
                                      "idle, leader, % of a core",
                                      "idle, follower, % of a core"};
  int which[] = {ONE, find_leader(), find_follower()};
  double before[3];
  settle();
  sleep_ms(1500); /* whatever the last measurement left to do */
  double began = now_s();
  for (int i = 0; i < 3; i++)
    before[i] = cpu_s(which[i]);
  sleep_ms(IDLE_SECONDS * 1000);
  for (int i = 0; i < 3; i++) {
    double used = (cpu_s(which[i]) - before[i]) / (now_s() - began) * 100;
    table_row(&(struct row){.label = label[i],
                            .stock = -1,
                            .quorate = used,
                            .ratio = -1,
                            .goal = GOAL_VALUE_MOST,
                            .bound = 0.5});
  }
}

static void measure_memory(void)
{
  static const char *const label[] = {"memory, cluster of one, MiB above stock",
                                      "memory, leader, MiB above stock",
                                      "memory, follower, MiB above stock"};
  int which[] = {ONE, find_leader(), find_follower()};
  double stock = resident_mib(STOCK);
  for (int i = 0; i < 3; i++)
    table_row(&(struct row){.label = label[i],
                            .stock = -1,
                            .quorate = resident_mib(which[i]) - stock,
                            .ratio = -1,
                            .goal = GOAL_VALUE_MOST,
                            .bound = 32});
}

/* The median, and the longest. */
static void print_times(const char *label, double *ms, int errors)
{
  static const char *const titles[] = {"p50", "max"};
  double figures[] = {median(ms, KILLS), ms[KILLS - 1]}; /* it sorts them */
  for (int i = 0; i < 2; i++) {
    char line[80];
    snprintf(line, sizeof line, "host killed, %s, %s ms", label, titles[i]);
    table_row(&(struct row){.label = line,
                            .stock = -1,
                            .quorate = figures[i],
                            .ratio = -1,
                            .goal = i ? GOAL_VALUE_MOST : GOAL_NONE,
                            .bound = 1000,
                            .failed = errors > 0});
  }
  if (errors) table_note("host killed, %s: %d errors", label, errors);
}

/* The host of two processes at one file is killed, again and again: how long
   until the other one, which takes its place, has written. */
static void take_over(int host, int other, const char *label)
{
  static const char insert[] = "sql INSERT INTO t(v) VALUES(randomblob(100))";
  double ms[KILLS];
  int errors = 0;
  for (int i = 0; i < KILLS; i++) {
    bool ok;
    tell(other, "%s", insert);
    sleep_ms(REST_MS);
    double began = now_s();
    process_kill(host);
    tell_begin(other, "%s", insert);
    tell_end(other, &ok);
    ms[i] = (now_s() - began) * 1e3;
    errors += !ok;
    process_again(host);
    int next = other;
    other = host;
    host = next;
  }
  print_times(label, ms, errors);
}

/* A leader has the longer way: there an election comes to it. */
static void measure_take_over(void)
{
  take_over(ONE, BESIDE_ONE, "cluster of one");
  take_over(A, BESIDE_A, "one of three");
}

static const struct {
  const char *name;
  void (*measure)(void);
} all[] = {{"apply", measure_apply},
           {"idle", measure_idle},
           {"memory", measure_memory},
           {"take over", measure_take_over}};
#define ALL (sizeof all / sizeof *all)

int nodes_run(const char *only)
{
  int n = 0;
  for (size_t i = 0; i < ALL; i++)
    if (!only || fnmatch(only, all[i].name, 0) == 0) {
      all[i].measure();
      n++;
    }
  return n;
}

void nodes_list(void)
{
  for (size_t i = 0; i < ALL; i++)
    printf("%s\n", all[i].name);
}
