/*
** worker.c: a process that uses SQLite as the lines on its input say.
**
**     load PATH      loads an extension
**     open FILE      opens a database: WAL mode, synchronous = FULL
**     sql TEXT       runs it; the answer is the first column of its last row
**     prepare        prepares the two statements that are measured
**     commit N       N transactions of one insert; answers each one's
**                    latency in microseconds
**     read MS        read transactions of one row for so long; answers how
**                    many a second
**
** Each is answered by one line: "ok ..." or "error ...".  Stock SQLite and
** quorate are measured by this same code, in processes that differ in nothing
** but the line "load".
*/
#include "bench.h"

#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct worker {
  sqlite3 *db;
  sqlite3_stmt *insert, *select;
  uint64_t random; /* of the row that is read next */
  char answer[WORKER_LINE];
};

static double now_us(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int fail(struct worker *w, const char *why)
{
  snprintf(w->answer, sizeof w->answer, "%s", why);
  return -1;
}

static int fail_db(struct worker *w)
{
  return fail(w, sqlite3_errmsg(w->db));
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
  return fail_db(w);
}

static int do_open(struct worker *w, const char *file)
{
  sqlite3_finalize(w->insert);
  sqlite3_finalize(w->select);
  w->insert = w->select = NULL;
  sqlite3_close(w->db);
  w->db = NULL;
  if (sqlite3_open(file, &w->db) != SQLITE_OK) return fail_db(w);
  sqlite3_busy_timeout(w->db, 10000);
  if (strcmp(file, ":memory:") == 0) return 0;
  return do_sql(w, "PRAGMA journal_mode = wal; PRAGMA synchronous = full");
}

static int do_prepare(struct worker *w)
{
  if (sqlite3_prepare_v2(w->db, "INSERT INTO t(v) VALUES(zeroblob(100))", -1,
                         &w->insert, NULL) != SQLITE_OK ||
      sqlite3_prepare_v2(w->db, "SELECT v FROM t WHERE id = ?1", -1, &w->select,
                         NULL) != SQLITE_OK)
    return fail_db(w);
  return 0;
}

static int do_commit(struct worker *w, int n)
{
  if (n > WORKER_COMMITS) return fail(w, "too many commits in one line");
  size_t used = 0;
  for (int i = 0; i < n; i++) {
    double began = now_us();
    sqlite3_step(w->insert);
    /* In autocommit mode the step that ends the statement commits. */
    if (sqlite3_reset(w->insert) != SQLITE_OK) return fail_db(w);
    used += (size_t)snprintf(w->answer + used, sizeof w->answer - used, "%.0f ",
                             now_us() - began);
  }
  return 0;
}

/* Ids 1 to 1000, which every file that is measured has. */
static int next_id(struct worker *w)
{
  w->random = w->random * 6364136223846793005u + 1442695040888963407u;
  return (int)((w->random >> 33) % 1000) + 1;
}

static int do_read(struct worker *w, int ms)
{
  double began = now_us(), now = began;
  long n = 0;
  while (now - began < ms * 1e3) {
    for (int i = 0; i < 16; i++) {
      sqlite3_bind_int(w->select, 1, next_id(w));
      int rc = sqlite3_step(w->select);
      if (sqlite3_reset(w->select) != SQLITE_OK) return fail_db(w);
      if (rc != SQLITE_ROW) return fail(w, "a row is missing");
      n++;
    }
    now = now_us();
  }
  snprintf(w->answer, sizeof w->answer, "%.1f",
           (double)n * 1e6 / (now - began));
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
  if (strcmp(line, "prepare") == 0) return do_prepare(w);
  if (strcmp(line, "commit") == 0) return do_commit(w, atoi(rest));
  if (strcmp(line, "read") == 0) return do_read(w, atoi(rest));
  return fail(w, "no such command");
}

int worker_main(void)
{
  static struct worker w;
  static char line[WORKER_LINE];
  w.random = 1;
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
