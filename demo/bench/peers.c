/*
** peers.c: what other replicated databases do with the same insert, on the
** same disk, with three nodes on this machine. A script (peers/run) sets them
** up and measures them; here its lines become rows:
**
**     NAME|CLIENTS|RATE|P50|P99|NOTE  a second, ms, ms
**     NAME|CLIENTS|refused|REASON
*/
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_SECONDS 420 /* longest time for a line: packages may come first */

static void print(char *line)
{
  char *field[6] = {0}, label[64], text[32] = "", ratio[32] = "";
  for (int i = 0; i < 6 && line; i++)
    field[i] = strsep(&line, "|");
  if (!field[3]) return;
  int clients = atoi(field[1]);
  snprintf(label, sizeof label, "%s, %d client%s", field[0], clients,
           clients == 1 ? "" : "s");
  if (strcmp(field[2], "refused") == 0) {
    printf("%-30s refused: %s\n", label, field[3]);
    return;
  }
  double rate = strtod(field[2], NULL);
  double mine =
      clients >= 1 && clients <= LOAD_CLIENTS ? cases_writers(clients) : 0;
  if (mine > 0) {
    snprintf(text, sizeof text, "%.0f", mine);
    if (rate > 0) snprintf(ratio, sizeof ratio, "%.2f", mine / rate);
  }
  printf("%-30s %9.0f %9s %9s %13s %6s", label, rate, field[3],
         field[4] ? field[4] : "", text, ratio);
  printf("%s%s\n", field[5] ? "  " : "", field[5] ? field[5] : "");
}

void peers_run(const char *script)
{
  char self[4096] = "", line[1024];
  char *path = realpath(script, NULL);
  if (!path || readlink("/proc/self/exe", self, sizeof self - 1) < 0)
    die("%s: cannot be run", script);
  printf("\n%-30s %9s %9s %9s %13s %6s\n", "three nodes each", "tx/s", "p50 ms",
         "p99 ms", "quorate tx/s", "ratio");
  fflush(stdout);
  char *argv[] = {path, self, (char *)(uintptr_t)process_directory(), NULL};
  FILE *lines = fdopen(process_child(argv), "r");
  while (alarm(LINE_SECONDS), fgets(line, sizeof line, lines)) {
    line[strcspn(line, "\n")] = 0;
    print(line);
    fflush(stdout);
  }
  alarm(0);
  fclose(lines);
  process_child_done();
  free(path);
}
