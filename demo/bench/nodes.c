/*
** nodes.c: what a node costs beside its work: catching up, having nothing to
** do, and memory.
*/
#include "bench.h"

#include <fnmatch.h>
#include <signal.h>
#include <stdio.h>

#define APPLY_MS 1000 /* of writes that a stopped follower misses */
#define APPLY_WRITERS 16
#define APPLY_SECONDS 30
#define IDLE_SECONDS 4

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

static const struct {
  const char *name;
  void (*measure)(void);
} all[] = {{"apply", measure_apply},
           {"idle", measure_idle},
           {"memory", measure_memory}};
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
