/*
** load.c: N threads, each with a connection of its own, that do the same for a
** while: what a program with N busy threads asks of its database.
**
** Stock SQLite and quorate run this same code. Each thread counts what it
** finished within its time, and the latency of all that it began.
*/
#include "bench.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH_ROWS 1000
#define BUSY_MS 10000
#define TRY_MS "2000"
#define PING_BYTES 64

struct client {
  pthread_t thread;
  sqlite3 *db;
  sqlite3_stmt *insert, *select, *bulk, *begin, *commit;
  char level[32];
  uint64_t random; /* of the row that is read next */
  int socket;      /* of LOAD_PING, or -1 */
  /* What it is to do, and what it did. */
  const struct load *load;
  pthread_barrier_t *start;
  struct histogram latency;
  uint64_t done, errors, lasted_ns;
  char reason[300];
};

static struct client clients[LOAD_CLIENTS];
static const char payload[100] = "one hundred bytes";

static const char *const kinds[] = {"write", "read", "mixed",
                                    "batch", "bulk", "ping"};

int load_kind_of(const char *name)
{
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp(name, kinds[i]) == 0) return (int)i;
  return -1;
}

/* ---- connections ------------------------------------------------------- */

static int take_text(void *ctx, int n, char **values, char **names)
{
  (void)names;
  snprintf(ctx, 200, "%s", n > 0 && values[0] ? values[0] : "");
  return 0;
}

/* Keeps what SQLite, and below it quorate, say about the first error. */
static void keep_reason(struct client *c)
{
  char why[200] = "";
  if (c->reason[0]) return;
  snprintf(c->reason, sizeof c->reason, "%.90s", sqlite3_errmsg(c->db));
  if (sqlite3_exec(c->db, "SELECT quorate_last_error()", take_text, why,
                   NULL) == SQLITE_OK &&
      why[0] && !strstr(c->reason, why)) {
    size_t n = strlen(c->reason);
    snprintf(c->reason + n, sizeof c->reason - n, ": %s", why);
  }
}

static int prepare(struct client *c, const char *sql, sqlite3_stmt **out)
{
  return sqlite3_prepare_v3(c->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out,
                            NULL);
}

static void close_client(struct client *c)
{
  sqlite3_stmt **all[] = {&c->insert, &c->select, &c->bulk, &c->begin,
                          &c->commit};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    sqlite3_finalize(*all[i]);
    *all[i] = NULL;
  }
  sqlite3_close(c->db);
  c->db = NULL;
}

static int open_client(struct client *c, const char *file)
{
  if (c->db) return 0;
  c->random = (uint64_t)(c - clients) + 1;
  c->socket = -1;
  snprintf(c->level, sizeof c->level, "-");
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(file, &c->db, flags, NULL) == SQLITE_OK &&
      sqlite3_busy_timeout(c->db, BUSY_MS) == SQLITE_OK &&
      sqlite3_exec(c->db,
                   "PRAGMA journal_mode = wal; PRAGMA synchronous = full", NULL,
                   NULL, NULL) == SQLITE_OK &&
      prepare(c, "INSERT INTO t(v) VALUES(?1)", &c->insert) == SQLITE_OK &&
      prepare(c, "INSERT INTO bulk(v) VALUES(?1)", &c->bulk) == SQLITE_OK &&
      prepare(c, "SELECT v FROM t WHERE id = ?1", &c->select) == SQLITE_OK &&
      prepare(c, "BEGIN IMMEDIATE", &c->begin) == SQLITE_OK &&
      prepare(c, "COMMIT", &c->commit) == SQLITE_OK) {
    sqlite3_bind_blob(c->insert, 1, payload, sizeof payload, SQLITE_STATIC);
    sqlite3_bind_blob(c->bulk, 1, payload, sizeof payload, SQLITE_STATIC);
    return 0;
  }
  keep_reason(c);
  close_client(c);
  return -1;
}

static int set_level(struct client *c, const char *level)
{
  if (strcmp(level, "-") == 0 || strcmp(level, c->level) == 0) return 0;
  char sql[80];
  snprintf(sql, sizeof sql, "PRAGMA quorate_consistency = %s", level);
  if (sqlite3_exec(c->db, sql, NULL, NULL, NULL) != SQLITE_OK) {
    keep_reason(c);
    return -1;
  }
  snprintf(c->level, sizeof c->level, "%s", level);
  return 0;
}

static int connect_client(struct client *c, int port)
{
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
  int one = 1;
  c->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->socket >= 0 &&
      connect(c->socket, (struct sockaddr *)&address, sizeof address) == 0 &&
      setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0)
    return 0;
  if (c->socket >= 0) close(c->socket);
  c->socket = -1;
  return -1;
}

/* ---- one of each ------------------------------------------------------- */

/* In autocommit mode the step that ends the statement commits. */
static int run(sqlite3_stmt *statement)
{
  sqlite3_step(statement);
  return sqlite3_reset(statement);
}

/* Ids 1 to 1000, which every file that is measured has. */
static int one_read(struct client *c)
{
  c->random = c->random * 6364136223846793005u + 1442695040888963407u;
  sqlite3_bind_int(c->select, 1, (int)((c->random >> 33) % 1000) + 1);
  int rc = sqlite3_step(c->select);
  int rc2 = sqlite3_reset(c->select);
  return rc2 != SQLITE_OK   ? rc2
         : rc == SQLITE_ROW ? SQLITE_OK
                            : SQLITE_NOTFOUND;
}

static int many_inserts(struct client *c, sqlite3_stmt *insert, int n)
{
  int rc = run(c->begin);
  for (int i = 0; i < n && rc == SQLITE_OK; i++)
    rc = run(insert);
  if (rc == SQLITE_OK) rc = run(c->commit);
  if (rc != SQLITE_OK && !sqlite3_get_autocommit(c->db)) {
    keep_reason(c); /* before the rollback hides it */
    sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
  }
  return rc;
}

static int one_ping(struct client *c)
{
  char bytes[PING_BYTES] = "ping";
  if (send(c->socket, bytes, sizeof bytes, MSG_NOSIGNAL) != sizeof bytes ||
      recv(c->socket, bytes, sizeof bytes, MSG_WAITALL) != sizeof bytes)
    return SQLITE_IOERR;
  return one_read(c);
}

static int one(struct client *c, uint64_t i)
{
  switch (c->load->kind) {
  case LOAD_WRITE: return run(c->insert);
  case LOAD_READ: return one_read(c);
  case LOAD_MIXED: return i % 10 == 9 ? run(c->insert) : one_read(c);
  case LOAD_BATCH: return many_inserts(c, c->insert, BATCH_ROWS);
  case LOAD_BULK: return many_inserts(c, c->bulk, LOAD_BULK_ROWS);
  case LOAD_PING: return one_ping(c);
  }
  return SQLITE_MISUSE;
}

static uint64_t worth(enum load_kind kind)
{
  return kind == LOAD_BATCH  ? BATCH_ROWS
         : kind == LOAD_BULK ? LOAD_BULK_ROWS
                             : 1;
}

/* ---- threads ----------------------------------------------------------- */

static void *client_main(void *ctx)
{
  struct client *c = ctx;
  pthread_barrier_wait(c->start);
  uint64_t began = now_ns(), before = began, now = began;
  uint64_t end = began + (uint64_t)c->load->ms * 1000000;
  bool once = c->load->kind == LOAD_BULK;
  /* Writers and readers of a mix do not march in step. */
  for (uint64_t i = (uint64_t)(c - clients); now < end; i++) {
    int rc = one(c, i);
    now = now_ns();
    if (rc != SQLITE_OK) {
      c->errors++;
      keep_reason(c);
      sleep_ms(10); /* an error that comes at once must not fill the time */
    } else {
      histogram_add(&c->latency, now - before);
      if (now <= end || once) c->done += worth(c->load->kind);
    }
    before = now = rc != SQLITE_OK ? now_ns() : now;
    if (once) break;
  }
  c->lasted_ns = once ? now - began : end - began;
  return NULL;
}

static int ready(const char *file, const struct load *load,
                 struct load_result *result)
{
  for (int i = 0; i < load->threads; i++) {
    struct client *c = &clients[i];
    memset(&c->latency, 0, sizeof c->latency);
    c->done = c->errors = c->lasted_ns = 0;
    c->reason[0] = 0;
    c->load = load;
    if (open_client(c, file) || set_level(c, load->level)) {
      snprintf(result->reason, sizeof result->reason, "%s", c->reason);
      return -1;
    }
    if (load->kind == LOAD_PING && connect_client(c, load->port)) {
      snprintf(result->reason, sizeof result->reason, "cannot connect");
      return -1;
    }
    /* What the last bulk left must not become part of this one. */
    if (load->kind == LOAD_BULK)
      sqlite3_exec(c->db, "DELETE FROM bulk", NULL, NULL, NULL);
  }
  return 0;
}

static void collect(const struct load *load, struct load_result *result)
{
  static struct histogram all;
  memset(&all, 0, sizeof all);
  for (int i = 0; i < load->threads; i++) {
    struct client *c = &clients[i];
    histogram_merge(&all, &c->latency);
    if (c->lasted_ns)
      result->rate += (double)c->done * 1e9 / (double)c->lasted_ns;
    result->errors += c->errors;
    if (!result->reason[0])
      snprintf(result->reason, sizeof result->reason, "%s", c->reason);
    if (c->socket >= 0) close(c->socket);
    c->socket = -1;
  }
  result->p50 = histogram_quantile(&all, 0.5);
  result->p99 = histogram_quantile(&all, 0.99);
}

int load_run(const char *file, const struct load *load,
             struct load_result *result)
{
  pthread_barrier_t start;
  memset(result, 0, sizeof *result);
  if (ready(file, load, result)) return -1;
  pthread_barrier_init(&start, NULL, (unsigned)load->threads);
  int rc = 0;
  for (int i = 0; i < load->threads; i++) {
    clients[i].start = &start;
    rc = pthread_create(&clients[i].thread, NULL, client_main, &clients[i]);
    /* Those that were started wait for the rest: there is no way back. */
    if (rc) {
      fprintf(stderr, "bench: no thread: %s\n", strerror(rc));
      exit(1);
    }
  }
  for (int i = 0; i < load->threads; i++)
    pthread_join(clients[i].thread, NULL);
  pthread_barrier_destroy(&start);
  collect(load, result);
  return 0;
}

int load_try(const char *file, const struct load *load,
             struct load_result *result)
{
  static struct client c;
  memset(result, 0, sizeof *result);
  memset(&c, 0, sizeof c);
  struct load small = *load;
  if (small.kind == LOAD_BATCH || small.kind == LOAD_BULK)
    small.kind = LOAD_WRITE;
  c.load = &small;
  int rc = open_client(&c, file);
  if (rc == 0) rc = set_level(&c, small.level);
  if (rc == 0) {
    sqlite3_busy_timeout(c.db, atoi(TRY_MS));
    sqlite3_exec(c.db, "PRAGMA quorate_write_wait = " TRY_MS, NULL, NULL, NULL);
    /* The tenth of a mix writes. */
    if (small.kind != LOAD_PING && one(&c, 9) != SQLITE_OK) {
      keep_reason(&c);
      rc = -1;
    }
  }
  snprintf(result->reason, sizeof result->reason, "%s", c.reason);
  close_client(&c);
  return rc;
}

/* ---- who sends back ---------------------------------------------------- */

static void *echo_main(void *ctx)
{
  int fd = (int)(intptr_t)ctx, one = 1;
  char bytes[PING_BYTES];
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  for (;;) {
    ssize_t n = recv(fd, bytes, sizeof bytes, 0);
    if (n <= 0 || send(fd, bytes, (size_t)n, MSG_NOSIGNAL) != n) break;
  }
  close(fd);
  return NULL;
}

static void *accept_main(void *ctx)
{
  int listener = (int)(intptr_t)ctx, fd;
  while ((fd = accept(listener, NULL, NULL)) >= 0) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, echo_main, (void *)(intptr_t)fd) == 0)
      pthread_detach(thread);
    else
      close(fd);
  }
  return NULL;
}

int load_echo(void)
{
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  pthread_t thread;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, LOAD_CLIENTS) ||
      getsockname(fd, (struct sockaddr *)&address, &size) ||
      pthread_create(&thread, NULL, accept_main, (void *)(intptr_t)fd)) {
    close(fd);
    return -1;
  }
  pthread_detach(thread);
  return ntohs(address.sin_port);
}
