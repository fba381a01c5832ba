/*
** worker.c: a process that uses SQLite as the lines on its input say.
**
**     load PATH      loads an extension
**     open FILE      opens a database: WAL mode, synchronous = FULL
**     sql TEXT       runs it; the answer is the first column of its last row
**     run KIND LEVEL THREADS MS PORT
**                    a load (load.c); answers its rate a second, p50 and p99
**                    in ns, the number of errors and the first one's reason
**     try KIND LEVEL one of it, with short time limits
**     echo           sends back what comes; answers its port
**
** Each is answered by one line: "ok ..." or "error ...".  Stock SQLite and
** quorate are measured by this same code, in processes that differ in nothing
** but the line "load".
*/
#include "bench.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

struct worker {
  sqlite3 *db;
  char file[WORKER_LINE];
  char answer[WORKER_LINE];
};

static int fail(struct worker *w, const char *why)
{
  snprintf(w->answer, sizeof w->answer, "%s", why);
  return -1;
}

static int do_load(struct worker *w, const char *path)
{
  char *error = NULL;
  sqlite3_enable_load_extension(w->db, 1);
  if (sqlite3_load_extension(w->db, path, NULL, &error) == SQLITE_OK) return 0;
  fail(w, error ? error : "cannot be loaded");
  sqlite3_free(error);
  return -1;
}

/* Takes the newest row's first column as the answer. */
static int keep_row(void *ctx, int n, char **values, char **names)
{
  struct worker *w = ctx;
  (void)names;
  snprintf(w->answer, sizeof w->answer, "%s",
           n > 0 && values[0] ? values[0] : "");
  return 0;
}

static int do_sql(struct worker *w, const char *text)
{
  if (sqlite3_exec(w->db, text, keep_row, w, NULL) == SQLITE_OK) return 0;
  return fail(w, sqlite3_errmsg(w->db));
}

static int do_open(struct worker *w, const char *file)
{
  sqlite3_close(w->db);
  w->db = NULL;
  snprintf(w->file, sizeof w->file, "%s", file);
  if (sqlite3_open(file, &w->db) != SQLITE_OK)
    return fail(w, sqlite3_errmsg(w->db));
  sqlite3_busy_timeout(w->db, 10000);
  if (strcmp(file, ":memory:") == 0) return 0;
  return do_sql(w, "PRAGMA journal_mode = wal; PRAGMA synchronous = full");
}

/* The load that a line means; `level` has room for 32 bytes. */
static int parse(struct worker *w, const char *text, char *level,
                 struct load *load)
{
  char kind[32];
  *load = (struct load){.level = level, .threads = 1, .ms = 1};
  int n = sscanf(text, "%31s %31s %d %u %d", kind, level, &load->threads,
                 &load->ms, &load->port);
  int k = n < 2 ? -1 : load_kind_of(kind);
  if (k < 0 || load->threads < 1 || load->threads > LOAD_CLIENTS)
    return fail(w, "no such load");
  load->kind = (enum load_kind)k;
  return 0;
}

static int do_run(struct worker *w, const char *text)
{
  char level[32];
  struct load load;
  struct load_result result;
  if (parse(w, text, level, &load)) return -1;
  if (load_run(w->file, &load, &result)) return fail(w, result.reason);
  snprintf(w->answer, sizeof w->answer, "%.3f %.0f %.0f %llu %s", result.rate,
           result.p50, result.p99, (unsigned long long)result.errors,
           result.reason);
  return 0;
}

static int do_try(struct worker *w, const char *text)
{
  char level[32];
  struct load load;
  struct load_result result;
  if (parse(w, text, level, &load)) return -1;
  return load_try(w->file, &load, &result) ? fail(w, result.reason) : 0;
}

static int do_echo(struct worker *w)
{
  int port = load_echo();
  if (port < 0) return fail(w, "no port");
  snprintf(w->answer, sizeof w->answer, "%d", port);
  return 0;
}

static int obey(struct worker *w, char *line)
{
  char *rest = strchr(line, ' ');
  if (rest)
    *rest++ = 0;
  else
    rest = line + strlen(line);
  w->answer[0] = 0;
  if (strcmp(line, "load") == 0) return do_load(w, rest);
  if (strcmp(line, "open") == 0) return do_open(w, rest);
  if (strcmp(line, "sql") == 0) return do_sql(w, rest);
  if (strcmp(line, "run") == 0) return do_run(w, rest);
  if (strcmp(line, "try") == 0) return do_try(w, rest);
  if (strcmp(line, "echo") == 0) return do_echo(w);
  return fail(w, "no such command");
}

int worker_main(void)
{
  static struct worker w;
  static char line[WORKER_LINE];
  if (do_open(&w, ":memory:")) return 1;
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    int rc = obey(&w, line);
    /* One line whatever SQLite has to say. */
    for (char *c = w.answer; *c; c++)
      if (*c == '\n') *c = ' ';
    printf("%s %s\n", rc ? "error" : "ok", w.answer);
    fflush(stdout);
  }
  return 0;
}
