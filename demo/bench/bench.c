/*
** bench.c: what quorate costs and gives, beside stock SQLite.
**
**     bench QUORATE.SO [DIRECTORY] [--only PATTERN] [--seconds N]
**           [--peers SCRIPT] [--list]
**
** Every figure is taken from processes of the same program (worker.c): one on
** a plain file in WAL mode with synchronous = FULL, one that is a cluster of
** one node, and three that are a cluster of three on the loopback interface,
** with TLS as always, all with their files in one directory.
**
** With --seconds the sides of --only run once each, for so long, and the
** program says in which processes: for perf, strace and the like.
*/
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
  char *library, *parent;
  const char *only, *script;
  double seconds;
};

static int usage(void)
{
  fputs("usage: bench QUORATE.SO [DIRECTORY] [--only PATTERN [--seconds N]]\n"
        "             [--peers SCRIPT]\n"
        "       bench --list\n",
        stderr);
  return 2;
}

static int parse(int argc, char **argv, struct options *o)
{
  for (int i = 1; i < argc; i++) {
    bool more = i + 1 < argc;
    if (strcmp(argv[i], "--only") == 0 && more)
      o->only = argv[++i];
    else if (strcmp(argv[i], "--peers") == 0 && more)
      o->script = argv[++i];
    else if (strcmp(argv[i], "--seconds") == 0 && more)
      o->seconds = strtod(argv[++i], NULL);
    else if (argv[i][0] == '-')
      return -1;
    else if (!o->library)
      o->library = argv[i];
    else if (!o->parent)
      o->parent = argv[i];
    else
      return -1;
  }
  bool timed = o->seconds > 0 && o->seconds <= 3600;
  return !o->library || (o->seconds != 0 && !timed) ||
                 (timed && (!o->only || o->script))
             ? -1
             : 0;
}

static void measure(const struct options *o)
{
  printf("quorate beside stock SQLite, WAL, synchronous = FULL, in %s\n",
         process_directory());
  printf("tx: one INSERT of 100 bytes; stock and quorate in turns, medians\n");
  double sync_ms = process_sync_ms();
  printf("appending a page and syncing it: %.3f ms\n\n", sync_ms);
  double began = now_s();
  table_head();
  int n = cases_run(o->only) + nodes_run(o->only);
  if (n == 0) die("no case is called %s; try --list", o->only);
  table_foot(now_s() - began);
  /* All of it depends on the disk, and what others make of it. */
  printf("appending a page and syncing it: %.3f ms, %.3f at the beginning\n",
         process_sync_ms(), sync_ms);
}

int main(int argc, char **argv)
{
  if (argc == 2 && strcmp(argv[1], "--worker") == 0) return worker_main();
  if (argc >= 2 && strcmp(argv[1], "--etcd") == 0)
    return etcd_main(argc - 2, argv + 2);
  if (argc == 2 && strcmp(argv[1], "--free-port") == 0) {
    printf("%d\n", process_free_port());
    return 0;
  }
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    cases_list();
    nodes_list();
    return 0;
  }
  struct options o = {0};
  if (parse(argc, argv, &o)) return usage();
  char *library = realpath(o.library, NULL);
  if (!library) die("%s: %s", o.library, strerror(errno));
  /* Beside the library unless told otherwise: /tmp may be in memory, where a
     sync costs nothing and the ratios mean nothing. */
  char *beside = strdup(library);
  *strrchr(beside, '/') = 0;
  char *parent = realpath(o.parent ? o.parent : beside, NULL);
  if (!parent) die("%s: %s", o.parent, strerror(errno));
  process_start(library, parent);
  if (o.seconds == 0)
    measure(&o);
  else if (cases_profile(o.only, (unsigned)(o.seconds * 1000)) == 0)
    die("nothing is called %s; try --list", o.only);
  if (o.script) peers_run(o.script);
  process_clean_up();
  free(parent);
  free(beside);
  free(library);
  return 0;
}
