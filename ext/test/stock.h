/*
** stock.h: SQLite as it is everywhere, for the tests to compare with.
**
** An origin is a database of its own in rollback mode; after each transaction
** it tells which pages changed. A reader is another process with a stock
** connection (in this process its POSIX locks would be lost, and the locks of
** a node would not be foreign); it is forked before the node opens its files,
** so that it inherits none of them.
*/
#ifndef TEST_STOCK_H
#define TEST_STOCK_H

#include "harness.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* ---- one statement ----------------------------------------------------- */

#define ANSWER_MAX 512

/* The first value of the first row, "" without a row, or "error: ...". */
static inline void stock_ask(sqlite3 *db, const char *sql,
                             char answer[ANSWER_MAX])
{
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  answer[0] = 0;
  if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
    const unsigned char *text = sqlite3_column_text(stmt, 0);
    snprintf(answer, ANSWER_MAX, "%s", text ? (const char *)text : "NULL");
    while (sqlite3_step(stmt) == SQLITE_ROW)
      ;
  }
  if (sqlite3_finalize(stmt) != SQLITE_OK || rc != SQLITE_OK)
    snprintf(answer, ANSWER_MAX, "error: %s", sqlite3_errmsg(db));
}

static inline void stock_exec(sqlite3 *db, const char *sql)
{
  char *error = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK)
    fail_msg("%s: %s", sql, error);
}

static inline sqlite3 *stock_open(const char *path)
{
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  return db;
}

/* A digest of all rows of the table that the tests use. */
#define DIGEST                                                                 \
  "SELECT count(*) || ' ' || coalesce(sum(id * length(v)), 0) || ' ' || "      \
  "coalesce(group_concat(substr(v, 1, 1), ''), '') FROM "                      \
  "(SELECT id, v FROM t ORDER BY id DESC LIMIT 40)"

/* ---- origin ------------------------------------------------------------ */

struct origin {
  sqlite3 *db;
  char path[PATH_BYTES];
  uint32_t page_size;
  uint8_t *image; /* as it was after the last step */
  size_t len;
  uint32_t *changed; /* page numbers */
  uint32_t n_changed, n_page;
};

static inline void origin_step(struct origin *o, const char *sql)
{
  size_t len;
  stock_exec(o->db, sql);
  uint8_t *now = file_read(o->path, &len);
  o->n_page = (uint32_t)(len / o->page_size);
  now[18] = 3; /* as a replicated database has it */
  now[19] = 2;
  free(o->changed);
  o->changed = malloc(o->n_page * sizeof(o->changed[0]));
  assert_non_null(o->changed);
  o->n_changed = 0;
  for (uint32_t i = 0; i < o->n_page; i++) {
    size_t at = (size_t)i * o->page_size;
    if (at >= o->len || memcmp(now + at, o->image + at, o->page_size) != 0)
      o->changed[o->n_changed++] = i + 1;
  }
  free(o->image);
  o->image = now;
  o->len = len;
}

static inline const uint8_t *origin_page(const struct origin *o, uint32_t pgno)
{
  return o->image + (size_t)(pgno - 1) * o->page_size;
}

static inline void origin_open(struct origin *o, const char *dir,
                               uint32_t page_size)
{
  char sql[200];
  memset(o, 0, sizeof(*o));
  o->page_size = page_size;
  snprintf(o->path, sizeof(o->path), "%sorigin", dir);
  o->db = stock_open(o->path);
  snprintf(sql, sizeof(sql),
           "PRAGMA page_size=%u; PRAGMA synchronous=OFF;"
           "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);"
           "INSERT INTO t(v) VALUES('first');",
           page_size);
  origin_step(o, sql);
}

static inline void origin_close(struct origin *o)
{
  assert_int_equal(sqlite3_close(o->db), SQLITE_OK);
  unlink(o->path);
  free(o->image);
  free(o->changed);
}

/* A copy of it as a stock WAL database makes it; fenced: byte 18 says 3. */
static inline void origin_copy(struct origin *o, const char *path, bool fenced)
{
  const uint8_t three = 3;
  char answer[ANSWER_MAX];
  size_t len;
  uint8_t *data = file_read(o->path, &len);
  file_write(path, data, len);
  free(data);
  sqlite3 *db = stock_open(path);
  stock_ask(db, "PRAGMA journal_mode=WAL", answer);
  assert_string_equal(answer, "wal");
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  if (fenced) file_patch(path, 18, &three, 1);
}

/* ---- reader ------------------------------------------------------------ */

struct reader {
  pid_t pid;
  int fd;
  char answer[ANSWER_MAX];
};

static inline void reader_main(int fd, const char *path)
{
  char sql[ANSWER_MAX], answer[ANSWER_MAX];
  sqlite3 *db = NULL;
  ssize_t n;
  while ((n = recv(fd, sql, sizeof(sql) - 1, 0)) > 0) {
    sql[n] = 0;
    snprintf(answer, sizeof(answer), "ok");
    if (strcmp(sql, "open") == 0) {
      int rc = sqlite3_open(path, &db);
      if (rc) snprintf(answer, sizeof(answer), "error: %d", rc);
      sqlite3_busy_timeout(db, 2000);
    } else if (strcmp(sql, "close") == 0) {
      sqlite3_close(db);
      db = NULL;
    } else {
      stock_ask(db, sql, answer);
    }
    if (send(fd, answer, strlen(answer) + 1, 0) < 0) break;
  }
  _exit(0);
}

static inline void reader_start(struct reader *r, const char *path)
{
  int fds[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
  r->pid = fork();
  assert_true(r->pid >= 0);
  if (r->pid == 0) {
    close(fds[0]);
    reader_main(fds[1], path);
  }
  close(fds[1]);
  r->fd = fds[0];
}

/* What it answers to "open", "close", or a statement. */
static inline const char *reader_ask(struct reader *r, const char *sql)
{
  assert_true(send(r->fd, sql, strlen(sql), 0) > 0);
  assert_true(recv(r->fd, r->answer, sizeof(r->answer), 0) > 0);
  return r->answer;
}

static inline void reader_stop(struct reader *r)
{
  int status;
  close(r->fd);
  assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
  assert_int_equal(status, 0);
}

/* The reader's database is whole, and holds what the origin holds. */
static inline void reader_agrees(struct reader *r, struct origin *o)
{
  char want[ANSWER_MAX];
  stock_ask(o->db, DIGEST, want);
  assert_string_equal(reader_ask(r, DIGEST), want);
  assert_string_equal(reader_ask(r, "PRAGMA integrity_check"), "ok");
}

#endif
