/*
** scenes.c: what nodes do while a call fails.
**
** There is one writer, as in test/crash: each transaction moves the number in
** table meta on, and a digest of everything says which state it is. What the
** writer knows is in r->told->known.
**
** Whatever returns an error must say why, may do so only when a call has failed,
** and must not take long.
*/
#include "fault.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALM_MS 15000   /* what works in the end, without a fault */
#define PATIENCE_MS 300 /* and with one: it may well not */
#define STEP_MS 25000   /* more than any one call may take */

static bool is_hurt(const struct run *r)
{
  return atomic_load(&r->told->fired) && !atomic_load(&r->told->healed);
}

static unsigned patience(const struct run *r)
{
  return is_hurt(r) ? PATIENCE_MS : CALM_MS;
}

/* ---- answers ----------------------------------------------------------- */

/* Something said no: is that right, and are there words? */
static void refused(struct run *r, const char *what, const char *words)
{
  static const char *const none[] = {"", "not an error", "unknown error",
                                     "SQL logic error"};
  if (!is_hurt(r)) wrong(r, "%s, without a fault: %s", what, words);
  for (unsigned i = 0; i < sizeof(none) / sizeof(none[0]); i++)
    if (strcmp(words, none[i]) == 0)
      wrong(r, "%s: refused without words: '%s'", what, words);
}

static void in_time(struct run *r, const char *what, uint64_t began)
{
  uint64_t took = clock_monotonic_ms() - began;
  if (took > STEP_MS)
    wrong(r, "%s: took %llu ms", what, (unsigned long long)took);
}

/* One statement of a function, on a connection. True: it was done. */
static bool call(struct run *r, sqlite3 *db, const char *what, char *sql)
{
  uint64_t began = clock_monotonic_ms();
  int rc = sql ? sqlite3_exec(db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
  sqlite3_free(sql);
  in_time(r, what, began);
  if (rc != SQLITE_OK) refused(r, what, sqlite3_errmsg(db));
  return rc == SQLITE_OK;
}

static bool open_node(struct run *r, unsigned node)
{
  char error[512] = "";
  uint64_t began = clock_monotonic_ms();
  if (r->world.db[node]) return true;
  bool ok = world_open(&r->world, node, error, sizeof(error));
  in_time(r, "a start", began);
  r->kept[node] = true;
  if (ok) {
    world_exec(r->world.db[node], "PRAGMA quorate_write_wait=300");
    sqlite3_busy_timeout(r->world.db[node], 300);
    return true;
  }
  refused(r, "a start", error);
  if (strstr(error, "ordinary database"))
    wrong(r, "a node's file was taken for an ordinary one");
  return false;
}

static bool stop_node(struct run *r, unsigned node, bool clean)
{
  uint64_t began = clock_monotonic_ms();
  bool ok = r->world.db[node] && world_stop(&r->world, node, clean);
  in_time(r, "a stop", began);
  return ok;
}

/* ---- transactions ------------------------------------------------------ */

/* Which of the states that may be is it? */
static int find_base(struct run *r, sqlite3 *db)
{
  struct known *k = &r->told->known;
  uint64_t n = 0, digest = 0;
  int rc = world_digest(db, &n, &digest);
  if (rc != SQLITE_OK) return rc;
  if (k->pending && n == k->pending_n && digest == k->pending_digest) {
    k->any = true;
    k->n = n;
    k->digest = digest;
    k->history[n] = digest;
    k->n_history = n + 1;
  } else if (k->any && (n != k->n || digest != k->digest)) {
    wrong(r, "found transaction %llu where %llu was acknowledged",
          (unsigned long long)n, (unsigned long long)k->n);
  }
  k->pending = false;
  return SQLITE_OK;
}

static int change(sqlite3 *db, bool large)
{
  world_exec(db, "PRAGMA cache_size=%d", large ? 8 : 2000);
  return world_exec(db,
                    "CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY KEY,"
                    " v BLOB, w INT); DELETE FROM a WHERE id %% 3 = 1 AND %d;"
                    " WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1"
                    " FROM c WHERE i < %d) INSERT INTO a(v, w) SELECT"
                    " randomblob(400), random() FROM c;"
                    " PRAGMA cache_size=2000",
                    (int)large, large ? 50 : 3);
}

static int attempt(struct run *r, sqlite3 *db, bool large)
{
  struct known *k = &r->told->known;
  uint64_t n = 0, digest = 0;
  int rc = world_exec(db, "BEGIN IMMEDIATE");
  if (rc == SQLITE_OK) rc = find_base(r, db);
  if (rc == SQLITE_OK)
    rc = world_exec(db,
                    "CREATE TABLE IF NOT EXISTS meta(k INTEGER PRIMARY KEY,"
                    " n); INSERT OR REPLACE INTO meta VALUES(1, %lld)",
                    (long long)(k->n + 1));
  if (rc == SQLITE_OK) rc = change(db, large);
  if (rc == SQLITE_OK) rc = world_digest(db, &n, &digest);
  if (rc == SQLITE_OK) {
    k->pending_n = n;
    k->pending_digest = digest;
    k->pending = true;
    rc = world_exec(db, "COMMIT");
    /* Only this one leaves it open. */
    k->pending = rc == SQLITE_OK || sqlite3_extended_errcode(db) == VFS_UNKNOWN;
  }
  if (rc == SQLITE_OK) {
    k->n = n;
    k->digest = digest;
    k->history[n] = digest;
    k->n_history = n + 1;
    k->any = true;
    k->pending = false;
  }
  return rc;
}

static bool transact(struct run *r, bool large)
{
  uint64_t began = clock_monotonic_ms();
  char words[300];
  for (;;) {
    unsigned leader = world_leader(&r->world, patience(r));
    if (leader == 0) {
      if (!is_hurt(r)) wrong(r, "no leader, without a fault");
      return false;
    }
    sqlite3 *db = r->world.db[leader];
    int rc = attempt(r, db, large);
    /* The end of an outer statement hides what an inner one met. */
    snprintf(words, sizeof(words), "%s",
             sqlite3_errcode(db) ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    int code = sqlite3_extended_errcode(db);
    if (!sqlite3_get_autocommit(db)) world_exec(db, "ROLLBACK");
    in_time(r, "a transaction", began);
    if (rc == SQLITE_OK) return true;
    /* Leaders change on a machine that is slow. */
    bool again = (rc & 0xff) == SQLITE_BUSY || code == VFS_REJECTED ||
                 code == VFS_UNKNOWN;
    if (!again || clock_monotonic_ms() - began > patience(r)) {
      refused(r, "a transaction", words);
      return false;
    }
  }
}

static void transact_some(struct run *r, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    transact(r, i % 4 == 3);
}

/* ---- one node ---------------------------------------------------------- */

static bool bootstrap(struct run *r)
{
  char path[CRASH_PATH];
  sqlite3 *db = NULL;
  bool alone = r->world.nodes == 1;
  world_path(&r->world, 1, path);
  sqlite3_open(":memory:", &db);
  bool ok = call(
      r, db, "quorate_bootstrap",
      sqlite3_mprintf("SELECT quorate_bootstrap(%Q, 'name', 'n1', 'listen',"
                      " '127.0.0.1:%d', 'heartbeat_ms', '%d',"
                      " 'election_timeout_ms', '%d', 'log_keep_kib', '32')",
                      path, PORT, alone ? 2 : 30, alone ? 6 : 200));
  sqlite3_close(db);
  if (ok) r->told->known.member[1] = true;
  return ok;
}

static void make_file(struct run *r)
{
  char path[CRASH_PATH];
  sqlite3 *db = NULL;
  world_path(&r->world, 1, path);
  int rc = sqlite3_open_v2(
      path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, vfs_below_name());
  if (rc == SQLITE_OK) rc = world_exec(db, "PRAGMA page_size=1024");
  if (rc == SQLITE_OK) rc = attempt(r, db, true);
  if (rc != SQLITE_OK) wrong(r, "no database: %s", sqlite3_errmsg(db));
  sqlite3_close(db);
}

static void begin_cluster(struct run *r)
{
  make_file(r);
  bootstrap(r);
  open_node(r, 1);
  transact_some(r, 6);
}

static void make_node(struct run *r)
{
  begin_cluster(r);
  stop_node(r, 1, true);
}

static void start_first(struct run *r)
{
  open_node(r, 1);
  if (world_leader(&r->world, CALM_MS) == 0) wrong(r, "no leader at first");
}

static void nothing(struct run *r)
{
  (void)r;
}

static void during_bootstrap(struct run *r)
{
  if (!bootstrap(r) || !open_node(r, 1)) return;
  transact_some(r, 2);
  stop_node(r, 1, true);
}

static bool has_directory(const struct run *r, unsigned node)
{
  char path[CRASH_PATH], dir[CRASH_PATH + 16];
  world_path(&r->world, node, path);
  snprintf(dir, sizeof(dir), "%s-quorate", path);
  return access(dir, F_OK) == 0;
}

/* A disk that takes nothing any more does not let it be undone either: then
   there is a node. */
static void bootstrap_again(struct run *r)
{
  if (!r->told->known.member[1] && !(r->point.lasting && has_directory(r, 1)) &&
      !bootstrap(r))
    wrong(r, "not reached");
  r->told->known.member[1] = true;
  open_node(r, 1);
}

static void during_writes(struct run *r)
{
  transact(r, false);
  transact(r, true);
  unsigned leader = world_leader(&r->world, PATIENCE_MS);
  if (leader) {
    r->told->known.invites++;
    if (call(r, r->world.db[leader], "quorate_invite",
             sqlite3_mprintf("SELECT quorate_invite('g%d')",
                             (int)r->told->known.invites)))
      r->told->known.invited++;
  }
  transact(r, false);
}

static void checkpoint(struct run *r)
{
  if (r->world.db[1])
    call(r, r->world.db[1], "quorate_checkpoint",
         sqlite3_mprintf("SELECT quorate_checkpoint()"));
}

static void during_checkpoints(struct run *r)
{
  transact_some(r, 1);
  checkpoint(r);
  transact(r, true);
  checkpoint(r);
  transact_some(r, 1);
}

/* ---- a copy ------------------------------------------------------------ */

static void copy_path(const struct run *r, char out[CRASH_PATH])
{
  snprintf(out, CRASH_PATH, "%sn1/copy.db", r->world.root);
}

/* What was copied is what was acknowledged. */
static void look_at_copy(struct run *r)
{
  char path[CRASH_PATH];
  const struct known *k = &r->told->known;
  uint64_t n = 0, digest = 0;
  sqlite3 *db = NULL;
  copy_path(r, path);
  int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, vfs_below_name());
  if (rc == SQLITE_OK) rc = world_digest(db, &n, &digest);
  sqlite3_close(db);
  bool is = n < k->n_history && digest == k->history[n];
  if (k->pending && n == k->pending_n && digest == k->pending_digest) is = true;
  if (rc != SQLITE_OK || !is)
    wrong(r, "the copy is of no state: %d, transaction %llu", rc,
          (unsigned long long)n);
}

static bool back_up(struct run *r)
{
  char path[CRASH_PATH];
  copy_path(r, path);
  return r->world.db[1] &&
         call(r, r->world.db[1], "quorate_backup",
              sqlite3_mprintf("SELECT quorate_backup(%Q)", path));
}

static void during_backup(struct run *r)
{
  transact_some(r, 2);
  back_up(r);
  if (r->world.db[1])
    call(r, r->world.db[1], "quorate_verify",
         sqlite3_mprintf("SELECT quorate_verify()"));
}

/* A call that has failed may be made again as it is: nothing is in its way. */
static void back_up_again(struct run *r)
{
  char path[CRASH_PATH];
  copy_path(r, path);
  if (access(path, F_OK) != 0 && !back_up(r)) wrong(r, "not reached");
  look_at_copy(r);
}

/* ---- stop and start ---------------------------------------------------- */

static void during_stop(struct run *r)
{
  transact_some(r, 2);
  stop_node(r, 1, true);
  if (open_node(r, 1)) transact_some(r, 1);
}

/* Killed with frames in -wal that are not in the database file. */
static void make_killed(struct run *r)
{
  begin_cluster(r);
  transact_some(r, 2);
}

static void during_start(struct run *r)
{
  if (open_node(r, 1)) transact_some(r, 2);
}

static bool detach(struct run *r)
{
  char path[CRASH_PATH];
  sqlite3 *db = NULL;
  world_path(&r->world, 1, path);
  sqlite3_open(":memory:", &db);
  bool ok = call(r, db, "quorate_detach",
                 sqlite3_mprintf("SELECT quorate_detach(%Q)", path));
  sqlite3_close(db);
  if (ok) r->kept[1] = r->told->known.member[1] = false;
  return ok;
}

static void during_detach(struct run *r)
{
  transact_some(r, 2);
  world_close(&r->world, 1);
  r->kept[1] = false;
  detach(r);
}

static void detach_again(struct run *r)
{
  char path[CRASH_PATH];
  struct text answer;
  world_path(&r->world, 1, path);
  world_close(&r->world, 1);
  /* One that has failed may have to be started anew first. */
  if (r->point.error == EIO) registry_stop(path, true, &answer);
  if (r->told->known.member[1] && !detach(r)) wrong(r, "not reached");
  /* Anybody may write it. */
  sqlite3 *db = NULL;
  int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, vfs_below_name());
  if (rc == SQLITE_OK) rc = attempt(r, db, false);
  if (rc != SQLITE_OK)
    wrong(r, "detached, but not ordinary: %s", sqlite3_errmsg(db));
  sqlite3_close(db);
}

/* ---- a new cluster from one copy --------------------------------------- */

static bool recover(struct run *r)
{
  char path[CRASH_PATH];
  sqlite3 *db = NULL;
  world_path(&r->world, 1, path);
  sqlite3_open(":memory:", &db);
  bool ok = call(r, db, "quorate_recover",
                 sqlite3_mprintf("SELECT quorate_recover(%Q, "
                                 "'accept-data-loss')",
                                 path));
  sqlite3_close(db);
  return ok;
}

static void during_recovery(struct run *r)
{
  recover(r);
}

/* It is the old node, and starts, or is begun, and says what ends it. */
static void recover_again(struct run *r)
{
  char error[512] = "";
  if (r->world.db[1] == NULL &&
      !world_open(&r->world, 1, error, sizeof(error))) {
    if (strstr(error, "SELECT quorate_recover(") == NULL)
      wrong(r, "after a recovery that failed: '%s'", error);
    if (!recover(r)) wrong(r, "not reached");
    if (!world_open(&r->world, 1, error, sizeof(error))) wrong(r, "%s", error);
  }
  world_stop(&r->world, 1, true);
  r->kept[1] = true;
}

/* ---- several nodes ----------------------------------------------------- */

static bool join(struct run *r, unsigned node)
{
  char path[CRASH_PATH], *token = NULL;
  char name[8];
  sqlite3 *db = NULL;
  struct text error = {""};
  unsigned leader = world_leader(&r->world, patience(r));
  struct node *from = leader ? world_node(&r->world, leader) : NULL;
  snprintf(name, sizeof(name), "n%u", node);
  if (from == NULL && !is_hurt(r)) wrong(r, "no leader, without a fault");
  if (from == NULL) return false;
  if (cluster_invite(from, name, RAFT_VOTER, &token, &error) != 0) {
    refused(r, "an invitation", error.s);
    return false;
  }
  world_path(&r->world, node, path);
  sqlite3_open(":memory:", &db);
  bool ok = call(r, db, "quorate_join",
                 sqlite3_mprintf("SELECT quorate_join(%Q, %Q, 'listen',"
                                 " '127.0.0.1:%d', 'log_keep_kib', '32')",
                                 path, token, (int)(PORT - 1 + node)));
  sqlite3_close(db);
  free(token);
  if (ok) r->told->known.member[node] = true;
  return ok;
}

/* Waits until a node has what the leader has; with a fault it may never. */
static void catch_up(struct run *r, unsigned node)
{
  struct text reason = {""};
  unsigned leader = world_leader(&r->world, patience(r));
  struct node *from = leader ? world_node(&r->world, leader) : NULL;
  struct node *to = world_node(&r->world, node);
  if (from == NULL || to == NULL) return;
  pthread_mutex_lock(&from->mutex);
  raft_index index = from->applied, applied;
  pthread_mutex_unlock(&from->mutex);
  uint64_t began = clock_monotonic_ms();
  while (node_wait_applied(to, index, 100, NULL, &applied, &reason) != 0)
    if (clock_monotonic_ms() - began > 2 * patience(r)) {
      refused(r, "catching up", reason.s);
      return;
    }
}

static void during_join(struct run *r)
{
  if (!join(r, 2) || !open_node(r, 2)) return;
  transact_some(r, 1);
  catch_up(r, 2);
}

/* What the refusal tells to do is done. */
static void tidy_up(struct run *r, unsigned node)
{
  char path[CRASH_PATH], dir[CRASH_PATH];
  char error[512] = "";
  if (!has_directory(r, node)) return;
  /* It had joined; that could not be undone. */
  if (world_open(&r->world, node, error, sizeof(error))) {
    r->told->known.member[node] = true;
    return;
  }
  if (strstr(error, "joining was not finished") == NULL)
    wrong(r, "after a join that failed: '%s'", error);
  world_path(&r->world, node, path);
  snprintf(dir, sizeof(dir), "%sn%u", r->world.root, node);
  remove_tree(dir, false);
}

static void join_again(struct run *r)
{
  if (!r->told->known.member[2]) {
    if (r->point.lasting) tidy_up(r, 2);
    if (!r->told->known.member[2]) join(r, 2);
  }
  open_node(r, 2);
}

static void make_three(struct run *r)
{
  begin_cluster(r);
  for (unsigned i = 2; i <= 3; i++) {
    join(r, i);
    open_node(r, i);
    catch_up(r, i);
  }
  /* All of them voters. */
  uint64_t end = clock_monotonic_ms() + CALM_MS;
  struct node *third = world_node(&r->world, 3);
  for (unsigned voters = 0; voters < 3 && clock_monotonic_ms() < end;) {
    pthread_mutex_lock(&third->mutex);
    voters = third->view.voters;
    pthread_mutex_unlock(&third->mutex);
    usleep(5000);
  }
  transact_some(r, 1);
  catch_up(r, 3);
  stop_node(r, 3, false);
}

static void make_late(struct run *r)
{
  make_three(r);
  transact_some(r, 4);
}

/* The others' log goes back to the third no more. */
static void make_left_behind(struct run *r)
{
  make_three(r);
  raft_index had = 0, first = 0;
  struct node *node = world_node(&r->world, 1);
  uint64_t end = clock_monotonic_ms() + CALM_MS;
  pthread_mutex_lock(&node->mutex);
  had = node->applied;
  pthread_mutex_unlock(&node->mutex);
  while (first <= had + 1) {
    struct store_stats stats;
    if (clock_monotonic_ms() > end) wrong(r, "the log is not compacted");
    transact(r, true);
    pthread_mutex_lock(&node->mutex);
    store_stats(node->store, &stats);
    pthread_mutex_unlock(&node->mutex);
    first = stats.first;
  }
}

static void start_two(struct run *r)
{
  open_node(r, 1);
  open_node(r, 2);
  if (world_leader(&r->world, CALM_MS) == 0) wrong(r, "no leader at first");
}

static void during_return(struct run *r)
{
  if (!open_node(r, 3)) return;
  transact_some(r, 1);
  catch_up(r, 3);
}

/* clang-format off */
const struct scene scenes[] = {
    {"bootstrap", 1, make_file, nothing, during_bootstrap, bootstrap_again,
     false},
    {"writes", 1, make_node, start_first, during_writes, NULL, false},
    {"checkpoint", 1, make_node, start_first, during_checkpoints, NULL, false},
    {"backup", 1, make_node, start_first, during_backup, back_up_again, false},
    {"stop", 1, make_node, start_first, during_stop, NULL, false},
    {"fold", 1, make_killed, nothing, during_start, NULL, false},
    {"detach", 1, make_node, start_first, during_detach, detach_again, true},
    {"recover", 1, make_killed, nothing, during_recovery, recover_again, true},
    {"join", 2, make_node, start_first, during_join, join_again, false},
    {"catch-up", 3, make_late, start_two, during_return, NULL, false},
    {"snapshot", 3, make_left_behind, start_two, during_return, NULL, false},
};
/* clang-format on */
const unsigned n_scenes = sizeof(scenes) / sizeof(scenes[0]);
