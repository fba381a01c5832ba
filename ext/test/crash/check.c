/*
** check.c: is a state that a loss of power left one that a node lives on with?
**
** First, for some states, a stock program looks at the files, at a copy or at
** the files themselves, before any node starts. It must see the database after
** one of the transactions that were committed, whole, or nothing. Then the
** nodes start, all of them. They have every transaction that was acknowledged
** and at most the one that was under way; what the stock program saw, too.
** They take a new one, and agree about everything.
*/
#include "crash.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEADER_MS 15000

struct run {
  const struct check *check;
  struct world world;
  uint64_t random;
  uint64_t seen; /* the newest transaction that a stock program saw */
  uint64_t n, digest;
};

static bool fail(const struct run *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool fail(const struct run *r, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  vsnprintf(r->check->why, r->check->size, format, args);
  va_end(args);
  return false;
}

#define NUMBER(n) ((unsigned long long)(n))

/* ---- what was committed ------------------------------------------------ */

static bool is_pending(const struct known *k, uint64_t n, uint64_t digest)
{
  return k->pending && n == k->pending_n && digest == k->pending_digest;
}

static bool was_committed(const struct known *k, uint64_t n, uint64_t digest)
{
  return (n < k->n_history && k->history[n] == digest) ||
         is_pending(k, n, digest);
}

/* ---- a stock program --------------------------------------------------- */

static bool copy_file(const char *from, const char *to)
{
  char buf[65536];
  ssize_t n, at = 0;
  int in = open(from, O_RDONLY | O_CLOEXEC);
  if (in < 0) return false;
  int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  while (out >= 0 && (n = pread(in, buf, sizeof(buf), at)) > 0) {
    if (pwrite(out, buf, (size_t)n, at) != n) break;
    at += n;
  }
  close(in);
  if (out >= 0) close(out);
  return out >= 0;
}

static bool is_ok(sqlite3 *db)
{
  sqlite3_stmt *stmt = NULL;
  bool ok = sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL) ==
                SQLITE_OK &&
            sqlite3_step(stmt) == SQLITE_ROW &&
            strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
  sqlite3_finalize(stmt);
  return ok;
}

/* A database and what is beside it, as a stock program sees them. */
static bool look(struct run *r, const char *path, int flags, unsigned node)
{
  sqlite3 *db = NULL;
  const struct known *k = r->check->known;
  uint64_t n = 0, digest = 0;
  int rc = sqlite3_open_v2(path, &db, flags, vfs_below_name());
  if (rc == SQLITE_OK) rc = world_digest(db, &n, &digest);
  bool ok = rc != SQLITE_OK || is_ok(db);
  char error[200];
  snprintf(error, sizeof(error), "%s", sqlite3_errmsg(db));
  sqlite3_close(db);
  if (rc == SQLITE_CANTOPEN && access(path, F_OK) != 0) return true;
  /* A journal that must be rolled back first. */
  if (rc == SQLITE_READONLY && (flags & SQLITE_OPEN_READONLY)) return true;
  if (rc != SQLITE_OK)
    return fail(r, "node %u: a stock program: %d %s", node, rc, error);
  if (!ok) return fail(r, "node %u: a stock program finds no integrity", node);
  if (n == 0 && !k->history) return true;
  if (n && !was_committed(k, n, digest))
    return fail(r,
                "node %u: a stock program sees transaction %llu, digest "
                "%016llx, which was never committed",
                node, NUMBER(n), NUMBER(digest));
  if (n > r->seen) r->seen = n;
  return true;
}

static bool look_at_copy(struct run *r, const char *path, int flags,
                         unsigned node)
{
  char from[CRASH_PATH + 8], to[CRASH_PATH + 8], copy[CRASH_PATH];
  snprintf(copy, sizeof(copy), "%scopy%u.db", r->check->root, node);
  if (!copy_file(path, copy)) return true;
  snprintf(from, sizeof(from), "%s-wal", path);
  snprintf(to, sizeof(to), "%s-wal", copy);
  copy_file(from, to);
  snprintf(from, sizeof(from), "%s-shm", path);
  snprintf(to, sizeof(to), "%s-shm", copy);
  copy_file(from, to);
  snprintf(from, sizeof(from), "%s-journal", path);
  snprintf(to, sizeof(to), "%s-journal", copy);
  copy_file(from, to);
  return look(r, copy, flags, node);
}

static bool look_first(struct run *r)
{
  char path[CRASH_PATH];
  for (unsigned i = 1; i <= r->world.nodes; i++) {
    bool ok = true;
    world_path(&r->world, i, path);
    switch (random_below(&r->random, 4)) {
    case 0: break;
    case 1: ok = look_at_copy(r, path, SQLITE_OPEN_READONLY, i); break;
    case 2: ok = look_at_copy(r, path, SQLITE_OPEN_READWRITE, i); break;
    default:
      if (access(path, F_OK) == 0) ok = look(r, path, SQLITE_OPEN_READWRITE, i);
    }
    if (!ok) return false;
  }
  return true;
}

/* ---- start ------------------------------------------------------------- */

/* The first node was not made yet, as far as anybody was told. What is said
   about an empty file is followed. */
static bool make_again(struct run *r, const char *path)
{
  char error[512] = "";
  struct stat st;
  bool ok = course_bootstrap(&r->world, error, sizeof(error));
  if (!ok && strstr(error, "delete it to begin") && stat(path, &st) == 0 &&
      st.st_size == 0 && !r->check->known->any) {
    unlink(path);
    ok = course_bootstrap(&r->world, error, sizeof(error));
  }
  return ok || fail(r, "not made yet, and cannot be: %s", error);
}

static bool has_directory(const char *path)
{
  char dir[CRASH_PATH + 16];
  struct stat st;
  snprintf(dir, sizeof(dir), "%s-quorate", path);
  return stat(dir, &st) == 0;
}

/* What may be read at once, without asking anybody: a state that was committed,
   or nothing. */
static bool read_locally(struct run *r, unsigned node)
{
  sqlite3 *db = r->world.db[node];
  uint64_t n = 0, digest = 0;
  world_exec(db, "PRAGMA quorate_consistency=local");
  world_exec(db, "PRAGMA quorate_write_wait=0");
  sqlite3_busy_timeout(db, 0);
  /* One state: the node goes on applying. */
  world_exec(db, "BEGIN");
  int rc = world_digest(db, &n, &digest);
  world_exec(db, "COMMIT");
  bool ok = rc == SQLITE_BUSY || (rc == SQLITE_OK && is_ok(db));
  if (ok && rc == SQLITE_OK && n &&
      !was_committed(r->check->known, n, digest) &&
      !(n == r->n && digest == r->digest)) /* the second start */
    return fail(r, "node %u: transaction %llu, digest %016llx, read locally",
                node, NUMBER(n), NUMBER(digest));
  if (!ok) return fail(r, "node %u: a local read: %d", node, rc);
  world_exec(db, "PRAGMA quorate_consistency=linearizable");
  world_exec(db, "PRAGMA quorate_write_wait=5000");
  sqlite3_busy_timeout(db, 5000);
  return true;
}

static bool start_one(struct run *r, unsigned node)
{
  char path[CRASH_PATH], error[512];
  const struct known *k = r->check->known;
  bool member = k->member[node];
  enum course course = k->course_of == node ? k->course : COURSE_NONE;
  bool ask = random_below(&r->random, 2);
  world_path(&r->world, node, path);
  if (!has_directory(path) && course != COURSE_DETACH) {
    if (member) return fail(r, "node %u: its directory is lost", node);
    if (node != 1) return true;
    if (!make_again(r, path)) return false;
  }
  if (course_open(&r->world, node, course, ask, error, sizeof(error)))
    return read_locally(r, node);
  if (!member && node != 1 && strstr(error, "joining was not finished"))
    return true;
  return fail(r, "%s", error);
}

static bool start_all(struct run *r)
{
  unsigned nodes = r->world.nodes;
  const struct known *k = r->check->known;
  unsigned first = (unsigned)random_below(&r->random, nodes);
  /* The others first, which a rebuilding needs. */
  if (k->course) first = k->course_of;
  for (unsigned i = 0; i < nodes; i++)
    if (!start_one(r, 1 + (first + i) % nodes)) return false;
  return true;
}

/* ---- what is there ----------------------------------------------------- */

static void last_event(struct node *node, char out[256])
{
  pthread_mutex_lock(&node->events.mutex);
  uint64_t n = node->events.n;
  snprintf(out, 256, "%s",
           n ? node->events.ring[(n - 1) % EVENTS_MAX].text : "");
  pthread_mutex_unlock(&node->events.mutex);
}

static unsigned find_leader(struct run *r)
{
  unsigned leader = world_leader(&r->world, LEADER_MS);
  char event[256] = "";
  if (leader) return leader;
  struct node *node = world_node(&r->world, 1);
  if (node) last_event(node, event);
  fail(r, "no leader; newest event of node 1: %s", event);
  return 0;
}

static bool read_state(struct run *r, unsigned leader)
{
  const struct known *k = r->check->known;
  int rc = world_digest(r->world.db[leader], &r->n, &r->digest);
  if (rc != SQLITE_OK)
    return fail(r, "cannot read: %s", sqlite3_errmsg(r->world.db[leader]));
  bool is = k->any && r->n == k->n && r->digest == k->digest;
  if (!is && !is_pending(k, r->n, r->digest) && (k->any || r->n != 0))
    return fail(r,
                "transaction %llu, digest %016llx; acknowledged was %llu, "
                "digest %016llx%s",
                NUMBER(r->n), NUMBER(r->digest), NUMBER(k->n),
                NUMBER(k->digest), k->pending ? ", one more was begun" : "");
  if (r->seen > r->n)
    return fail(r, "transaction %llu, after a stock program saw %llu",
                NUMBER(r->n), NUMBER(r->seen));
  return true;
}

static bool has_invitations(struct run *r, unsigned leader)
{
  struct node *node = world_node(&r->world, leader);
  uint64_t found = 0;
  pthread_mutex_lock(&node->mutex);
  for (unsigned i = 0; i < node->settings.n; i++)
    found += strncmp(node->settings.items[i].name, "invite/g", 8) == 0;
  pthread_mutex_unlock(&node->mutex);
  const struct known *k = r->check->known;
  if (found >= k->invited && found <= k->invites) return true;
  return fail(r, "%llu invitations, %llu were given and %llu asked for",
              NUMBER(found), NUMBER(k->invited), NUMBER(k->invites));
}

/* Log, checkpoint and floor, of one node. */
static bool agree(struct run *r, unsigned i)
{
  struct store_stats stats;
  struct node *node = world_node(&r->world, i);
  pthread_mutex_lock(&node->mutex);
  raft_index applied = node->applied, commit = node->view.commit;
  if (node->store) store_stats(node->store, &stats);
  pthread_mutex_unlock(&node->mutex);
  raft_index cp = atomic_load(&node->shown_checkpoint);
  if (cp <= applied && applied <= stats.last && applied <= commit &&
      (stats.first <= cp + 1 || stats.first > stats.last))
    return true;
  return fail(r,
              "node %u: log %llu to %llu, checkpoint %llu, applied %llu, "
              "committed %llu",
              i, NUMBER(stats.first), NUMBER(stats.last), NUMBER(cp),
              NUMBER(applied), NUMBER(commit));
}

/* Every node has the same, and it is whole. */
static bool compare_all(struct run *r, unsigned leader)
{
  struct text reason = {""};
  struct node *from = world_node(&r->world, leader);
  pthread_mutex_lock(&from->mutex);
  raft_index index = from->applied;
  pthread_mutex_unlock(&from->mutex);
  for (unsigned i = 1; i <= r->world.nodes; i++) {
    uint64_t n, digest;
    raft_index applied;
    sqlite3 *db = r->world.db[i];
    if (db == NULL) continue;
    if (node_wait_applied(world_node(&r->world, i), index, LEADER_MS, NULL,
                          &applied, &reason) != 0)
      return fail(r, "node %u does not catch up: %s", i, reason.s);
    if (i != leader) world_exec(db, "PRAGMA quorate_consistency=local");
    int rc = world_digest(db, &n, &digest);
    if (rc != SQLITE_OK)
      return fail(r, "node %u: cannot read: %s", i, sqlite3_errmsg(db));
    if (n != r->n || digest != r->digest)
      return fail(r, "node %u: transaction %llu, digest %016llx, not %llu", i,
                  NUMBER(n), NUMBER(digest), NUMBER(r->n));
    if (!is_ok(db)) return fail(r, "node %u: integrity", i);
    if (!agree(r, i)) return false;
  }
  return true;
}

static int add_one(const struct run *r, sqlite3 *db)
{
  int rc = world_exec(db,
                      "BEGIN IMMEDIATE;"
                      "CREATE TABLE IF NOT EXISTS meta(k INTEGER PRIMARY KEY,"
                      " n); INSERT OR REPLACE INTO meta VALUES(1, %lld);"
                      "CREATE TABLE IF NOT EXISTS y(v);"
                      "INSERT INTO y VALUES(randomblob(3000)); COMMIT",
                      (long long)(r->n + 1));
  if (rc != SQLITE_OK && !sqlite3_get_autocommit(db))
    world_exec(db, "ROLLBACK");
  return rc;
}

/* Under load the leader may be another by now: *leader. */
static bool write_one(struct run *r, unsigned *leader)
{
  sqlite3 *db = r->world.db[*leader];
  int rc = add_one(r, db);
  for (unsigned i = 0; rc == SQLITE_BUSY && i < 3; i++) {
    *leader = find_leader(r);
    if (*leader == 0) return false;
    db = r->world.db[*leader];
    world_exec(db, "PRAGMA quorate_consistency=linearizable");
    rc = add_one(r, db);
  }
  if (rc == SQLITE_OK) rc = world_digest(db, &r->n, &r->digest);
  return rc == SQLITE_OK ||
         fail(r, "a new transaction: %s", sqlite3_errmsg(db));
}

/* Pages, not only rows: what is confirmed at the same index. */
static bool same_pages(struct run *r, unsigned a, unsigned b)
{
  struct image x = {0}, y = {0};
  uint8_t *page = malloc(131072);
  bool ok = page &&
            image_open(world_node(&r->world, a)->wal, "a test", &x) == 0 &&
            image_open(world_node(&r->world, b)->wal, "a test", &y) == 0;
  if (!ok) fail(r, "no image");
  uint32_t size = world_node(&r->world, a)->wal->page_size;
  if (ok && x.index == y.index) {
    if (x.n_page != y.n_page)
      ok =
          fail(r, "nodes %u and %u: %u and %u pages", a, b, x.n_page, y.n_page);
    for (uint32_t i = 1; ok && i <= x.n_page; i++) {
      if (image_read(&x, i, page) != 0 || image_read(&y, i, page + 65536) != 0)
        ok = fail(r, "page %u cannot be read", i);
      else if (memcmp(page, page + 65536, size) != 0)
        ok = fail(r, "nodes %u and %u: page %u differs", a, b, i);
    }
  }
  image_close(&x);
  image_close(&y);
  free(page);
  return ok;
}

static bool all_pages(struct run *r, unsigned leader)
{
  for (unsigned i = 1; i <= r->world.nodes; i++)
    if (i != leader && world_node(&r->world, i) && !same_pages(r, leader, i))
      return false;
  return true;
}

/* Once more: after a stop in order, the database file is all there is. */
static bool stop_and_look(struct run *r)
{
  char path[CRASH_PATH], wal[CRASH_PATH + 8];
  uint64_t n = r->n;
  for (unsigned i = 1; i <= r->world.nodes; i++) {
    struct stat st;
    if (r->world.db[i] == NULL) continue;
    if (!world_stop(&r->world, i, true)) return fail(r, "does not stop");
    world_path(&r->world, i, path);
    snprintf(wal, sizeof(wal), "%s-wal", path);
    if (stat(wal, &st) == 0 && st.st_size > 0 && r->world.nodes == 1)
      return fail(r, "a -wal is left after a stop in order");
    sqlite3 *db = NULL;
    uint64_t found = 0, digest = 0;
    int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, vfs_below_name());
    if (rc == SQLITE_OK) rc = world_digest(db, &found, &digest);
    sqlite3_close(db);
    if (rc != SQLITE_OK || found != n || digest != r->digest)
      return fail(r, "stopped: transaction %llu, not %llu (%d)", NUMBER(found),
                  NUMBER(n), rc);
  }
  return true;
}

/* As if the process were killed and started again. */
static bool start_again(struct run *r)
{
  uint64_t n = r->n, digest = r->digest;
  for (unsigned i = 1; i <= r->world.nodes; i++)
    if (r->world.db[i] && !world_stop(&r->world, i, false))
      return fail(r, "does not stop");
  if (!start_all(r)) return false;
  unsigned leader = find_leader(r);
  if (leader == 0) return false;
  int rc = world_digest(r->world.db[leader], &r->n, &r->digest);
  if (rc == SQLITE_OK && r->n == n && r->digest == digest) return true;
  return fail(r, "started again: transaction %llu, not %llu (%d)", NUMBER(r->n),
              NUMBER(n), rc);
}

/* What was acknowledged is there, on all, and one more is taken. */
static bool goes_on(struct run *r)
{
  unsigned leader = find_leader(r);
  return leader != 0 && read_state(r, leader) && has_invitations(r, leader) &&
         compare_all(r, leader) && write_one(r, &leader) &&
         compare_all(r, leader) && all_pages(r, leader);
}

bool check_running(const struct check *check, const struct world *world,
                   uint64_t *n, uint64_t *digest)
{
  struct run r = {.check = check, .world = *world, .random = check->seed};
  if (!goes_on(&r)) return false;
  *n = r.n;
  *digest = r.digest;
  return true;
}

bool check_state(const struct check *check)
{
  struct run *r = calloc(1, sizeof(*r));
  if (r == NULL) die("out of memory");
  r->check = check;
  r->random = check->seed;
  r->world.root = check->root;
  r->world.nodes = check->nodes;
  if (!look_first(r) || !start_all(r) || !goes_on(r)) return false;
  switch (random_below(&r->random, 12)) {
  case 0: return stop_and_look(r);
  case 1: return start_again(r);
  default: return true;
  }
}
