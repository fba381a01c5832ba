/*
** workload.c: what an application does to nodes while it is recorded.
**
** A record has phases, each a process of its own: the first makes the cluster,
** the others go on with what is there. There is one writer; each transaction
** moves the number in the table meta on, so that a state of the database is
** known by that number and a digest of everything in it. What the writer knows
** goes into the record: the state that a COMMIT would bring, and that it has
** returned success.
**
** What changes a node's files in several steps (course.c) is a phase's, too, at
** its beginning or in the middle; whatever is left of it is the next phase's.
**
** A phase ends in order, or at any moment as if killed; the power that may be
** lost after that is crash.c's.
*/
#include "crash.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PORT 7101 /* of node 1: see bind() in record.c */
#define FAULTS 2
#define ROWS_MAX 120  /* about */
#define INVITES_MAX 6 /* of a record */
#define LEADER_MS 10000
#define PATIENCE 40 /* refusals in a row */

struct run {
  const struct phase *phase;
  struct world world;
  uint64_t random;
  uint64_t n; /* newest transaction */
  uint64_t invites;
  bool reading;  /* the other connection is in a transaction */
  unsigned away; /* a node that is stopped */
  unsigned members;
  bool many;          /* the next transaction is a large one */
  unsigned course_at; /* step */
};

static void give_up(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

static void give_up(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  record_to(NULL);
  printf("the workload: ");
  vprintf(format, args);
  printf("\n");
  va_end(args);
  fflush(stdout);
  _exit(1);
}

static uint64_t below(struct run *r, uint64_t n)
{
  return random_below(&r->random, n);
}

/* ---- the state that is found ------------------------------------------- */

static void found(struct run *r, const struct known *known, uint64_t n,
                  uint64_t digest)
{
  if (known && known->any && !(n == known->n && digest == known->digest) &&
      !(known->pending && n == known->pending_n &&
        digest == known->pending_digest))
    give_up("found transaction %llu (digest %016llx) where %llu (%016llx) was "
            "acknowledged",
            (unsigned long long)n, (unsigned long long)digest,
            (unsigned long long)known->n, (unsigned long long)known->digest);
  r->n = n;
  record_mark(MARK_SETTLED, n, digest, NULL);
}

/* After a start, or a commit of which it is not known whether it was. */
static void settle(struct run *r, const struct known *known)
{
  uint64_t n = 0, digest = 0;
  int rc = SQLITE_ERROR;
  unsigned leader = 0;
  for (unsigned i = 0; rc != SQLITE_OK && i < PATIENCE; i++) {
    leader = world_leader(&r->world, LEADER_MS);
    if (leader == 0) give_up("no leader");
    rc = world_digest(r->world.db[leader], &n, &digest);
  }
  if (rc != SQLITE_OK)
    give_up("cannot read: %s", sqlite3_errmsg(r->world.db[leader]));
  found(r, known, n, digest);
}

/* The node that something is left to do of is opened last. */
static void open_all(struct run *r)
{
  char error[512];
  const struct known *k = r->phase->known;
  unsigned last = k->course ? k->course_of : r->world.nodes;
  for (unsigned i = 1; i <= r->world.nodes; i++)
    if (i != last && !world_open(&r->world, i, error, 512))
      give_up("%s", error);
  if (!course_open(&r->world, last, k->course, below(r, 2), error, 512))
    give_up("%s", error);
  if (k->course) record_mark(MARK_MEMBER, k->course_of, 0, NULL);
}

/* ---- transactions ------------------------------------------------------ */

static int insert_some(struct run *r, sqlite3 *db)
{
  return world_exec(db,
                    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1"
                    " FROM c WHERE i < %d) INSERT INTO a(v, w) SELECT"
                    " randomblob(%d + abs(random()) %% 300), random() FROM c",
                    1 + (int)below(r, 4), (int)below(r, 200));
}

/* In several parts: many rows, and a small cache that spills. */
static int insert_many(struct run *r, sqlite3 *db)
{
  world_exec(db, "PRAGMA cache_size=%d", below(r, 2) ? 8 : 2000);
  return world_exec(db,
                    "DELETE FROM a WHERE id %% 3 = %d; WITH RECURSIVE c(i) AS"
                    " (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < %d)"
                    " INSERT INTO a(v, w) SELECT randomblob(400), random()"
                    " FROM c; UPDATE a SET w = w + 1",
                    (int)below(r, 3), 20 + (int)below(r, 40));
}

static int change_schema(struct run *r, sqlite3 *db)
{
  int k = (int)below(r, 3);
  switch (below(r, 5)) {
  case 0: return world_exec(db, "CREATE INDEX IF NOT EXISTS ai ON a(w, v)");
  case 1: return world_exec(db, "DROP INDEX IF EXISTS ai");
  case 2:
    return world_exec(db,
                      "CREATE TABLE IF NOT EXISTS x%d(k INTEGER PRIMARY KEY,"
                      " v); INSERT INTO x%d(v) VALUES(randomblob(2000))",
                      k, k);
  case 3: return world_exec(db, "DROP TABLE IF EXISTS x%d", k);
  default: return world_exec(db, "PRAGMA user_version=%d", (int)below(r, 100));
  }
}

static int with_savepoints(struct run *r, sqlite3 *db)
{
  int rc = world_exec(db, "SAVEPOINT s");
  if (rc == SQLITE_OK) rc = insert_some(r, db);
  if (rc == SQLITE_OK) rc = world_exec(db, "ROLLBACK TO s");
  if (rc == SQLITE_OK) rc = insert_some(r, db);
  return rc ? rc : world_exec(db, "RELEASE s");
}

static int change_something(struct run *r, sqlite3 *db)
{
  switch (r->many ? 0 : below(r, 16)) {
  case 0: return insert_many(r, db);
  case 1: return change_schema(r, db);
  case 2:
  case 3:
    return world_exec(db, "DELETE FROM a WHERE id %% 7 = %d", (int)below(r, 7));
  case 4:
  case 5:
  case 6:
    return world_exec(db,
                      "UPDATE a SET v = randomblob(%d), w = random() WHERE id"
                      " %% 11 = %d",
                      50 + (int)below(r, 300), (int)below(r, 11));
  case 7: return with_savepoints(r, db);
  case 8: return world_exec(db, "DELETE FROM a WHERE id < 30 + %d", ROWS_MAX);
  default: return insert_some(r, db);
  }
}

/* What every transaction begins with. */
static int begin(struct run *r, sqlite3 *db)
{
  int rc = world_exec(db, "BEGIN IMMEDIATE");
  if (rc != SQLITE_OK) return rc;
  return world_exec(db,
                    "CREATE TABLE IF NOT EXISTS meta(k INTEGER PRIMARY KEY,"
                    " n); CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY"
                    " KEY, v BLOB, w INT);"
                    " INSERT OR REPLACE INTO meta VALUES(1, %lld)",
                    (long long)(r->n + 1));
}

/* False: its fate is not known, or it never began. */
static bool transact(struct run *r, sqlite3 *db)
{
  uint64_t n = 0, digest = 0;
  int rc = begin(r, db);
  if (rc == SQLITE_OK) rc = change_something(r, db);
  if (rc == SQLITE_OK && below(r, 12) == 0)
    return world_exec(db, "ROLLBACK") == SQLITE_OK;
  if (rc == SQLITE_OK) rc = world_digest(db, &n, &digest);
  if (rc == SQLITE_OK) {
    record_mark(MARK_BEGIN, n, digest, NULL);
    rc = world_exec(db, "COMMIT");
  }
  if (rc == SQLITE_OK) {
    record_mark(MARK_ACK, n, digest, NULL);
    r->n = n;
    return true;
  }
  if (!sqlite3_get_autocommit(db)) world_exec(db, "ROLLBACK");
  return false;
}

/* Nothing of the content changes, every page may. */
static bool vacuum(struct run *r, sqlite3 *db)
{
  static const char *const ways[] = {"VACUUM", "PRAGMA incremental_vacuum",
                                     "REINDEX"};
  uint64_t n, digest;
  if (world_digest(db, &n, &digest) != SQLITE_OK) return false;
  record_mark(MARK_BEGIN, n, digest, NULL);
  int rc = world_exec(db, "%s", ways[below(r, 3)]);
  if (rc == SQLITE_OK) record_mark(MARK_ACK, n, digest, NULL);
  return rc == SQLITE_OK;
}

/* ---- other things ------------------------------------------------------ */

static void invite(struct run *r, sqlite3 *db)
{
  if (r->invites >= INVITES_MAX) return;
  record_mark(MARK_INVITE, ++r->invites, 0, NULL);
  if (world_exec(db, "SELECT quorate_invite('g%d')", (int)r->invites) ==
      SQLITE_OK)
    record_mark(MARK_INVITED, r->invites, 0, NULL);
}

/* The other connection begins to read, or ends: it pins what is in -wal. */
static void read_beside(struct run *r, unsigned node)
{
  char path[CRASH_PATH];
  sqlite3 **side = &r->world.side[node];
  if (r->reading) {
    for (unsigned i = 1; i <= r->world.nodes; i++) {
      sqlite3_close(r->world.side[i]);
      r->world.side[i] = NULL;
    }
    r->reading = false;
    return;
  }
  world_path(&r->world, node, path);
  if (sqlite3_open(path, side) != SQLITE_OK) return;
  r->reading =
      world_exec(*side, "PRAGMA quorate_consistency=local; BEGIN;"
                        " SELECT count(*) FROM sqlite_schema") == SQLITE_OK;
}

/* One of several nodes goes away for a while, in order or not. */
static void stop_or_start(struct run *r)
{
  char error[512];
  if (r->away) {
    if (!world_open(&r->world, r->away, error, sizeof(error)))
      give_up("%s", error);
    r->away = 0;
    return;
  }
  r->away = 1 + (unsigned)below(r, r->world.nodes);
  if (r->reading) read_beside(r, r->away);
  record_mark(MARK_NOTE, r->away, 0, "stops");
  if (!world_stop(&r->world, r->away, below(r, 2) == 0))
    give_up("node %u does not stop", r->away);
}

/* A node is away for so long that the others' log does not go back to it any
   more: it gets a snapshot. */
static void fall_behind(struct run *r)
{
  unsigned away = r->away;
  if (away == 0) stop_or_start(r);
  for (unsigned i = 0; i < 8; i++) {
    unsigned leader = world_leader(&r->world, LEADER_MS);
    if (leader == 0) give_up("no leader");
    r->many = true;
    bool known = transact(r, r->world.db[leader]);
    r->many = false;
    if (!known) settle(r, NULL);
    usleep(20000);
  }
  usleep(150000);
  if (r->away) stop_or_start(r);
  usleep(30000 + (useconds_t)below(r, 200000));
}

/* ---- what takes several steps ------------------------------------------ */

/* Call of a bootstrap that fails, when there is a node's directory already. */
static unsigned fault;
static char faulty[CRASH_PATH];

static int fail_one(enum call call, int fd, const char *path, int flags)
{
  char name[CRASH_PATH + 16], link[32];
  (void)flags;
  if (fault == 1 && call == CALL_MKDIR) {
    snprintf(name, sizeof(name), "%s-quorate/log", faulty);
    return strcmp(path, name) == 0 ? EIO : 0;
  }
  snprintf(name, sizeof(name), "%s-quorate", faulty);
  if (fault != 2 || call != CALL_SYNC || access(name, F_OK) != 0) return 0;
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, name, sizeof(name) - 1);
  name[n > 0 ? n : 0] = 0;
  return strncmp(name, faulty, strlen(faulty)) == 0 &&
                 strcmp(name + strlen(faulty), "-wal") == 0
             ? EIO
             : 0;
}

/* A stock program has the file for a while. */
static void use_ordinary(struct run *r, const char *path)
{
  sqlite3 *db = NULL;
  if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, vfs_below_name()) !=
          SQLITE_OK ||
      world_exec(db, "PRAGMA synchronous=EXTRA; PRAGMA journal_mode=%s",
                 below(r, 2) ? "wal" : "delete") != SQLITE_OK)
    give_up("a stock program: %s", sqlite3_errmsg(db));
  for (uint64_t n = below(r, 3); n > 0; n--)
    if (!transact(r, db))
      give_up("a stock program cannot write: %s", sqlite3_errmsg(db));
  sqlite3_close(db);
}

/* The first node's file becomes ordinary, and then a node's again. A node that
   cannot start leaves its directory. */
static void detach(struct run *r)
{
  char path[CRASH_PATH], kept[CRASH_PATH + 16], error[512];
  bool able = below(r, 2);
  if (r->reading) read_beside(r, 1);
  world_path(&r->world, 1, path);
  snprintf(kept, sizeof(kept), "%s-quorate.kept", path);
  remove_tree(kept, true);
  record_mark(MARK_COURSE, 1, COURSE_DETACH, NULL);
  world_close(&r->world, 1);
  if (!able && !world_stop(&r->world, 1, false)) give_up("it does not stop");
  if (!able) course_key(&r->world, 1, true);
  if (!course_call(&r->world, 1, COURSE_DETACH, error, sizeof(error)))
    give_up("detach: %s", error);
  use_ordinary(r, path);
  fault = (unsigned)below(r, FAULTS + 1);
  snprintf(faulty, sizeof(faulty), "%s", path);
  record_faults(fault ? fail_one : NULL);
  bool made = course_bootstrap(&r->world, error, sizeof(error));
  record_faults(NULL);
  if (made == (fault > 0)) give_up("bootstrap: %s", made ? "made" : error);
  if (!made) use_ordinary(r, path);
  if (!made && !course_bootstrap(&r->world, error, sizeof(error)))
    give_up("bootstrap: %s", error);
  record_mark(MARK_MEMBER, 1, 0, NULL);
  if (!world_open(&r->world, 1, error, sizeof(error))) give_up("%s", error);
  settle(r, NULL);
}

/* Of the first node, before it is started. */
static void recover(struct run *r)
{
  char error[512];
  record_mark(MARK_COURSE, 1, COURSE_RECOVER, NULL);
  if (!course_call(&r->world, 1, COURSE_RECOVER, error, sizeof(error)))
    give_up("recover: %s", error);
  record_mark(MARK_MEMBER, 1, 0, NULL);
}

/* All have the same. A node that has lost power gives no snapshot until it
   knows how far the log is committed: without the third, one that needs it to
   say so would wait for ever. */
static void catch_up(struct run *r)
{
  struct text reason = {""};
  raft_index applied = 0;
  unsigned leader = world_leader(&r->world, LEADER_MS);
  struct node *node = leader ? world_node(&r->world, leader) : NULL;
  if (node == NULL) give_up("no leader");
  pthread_mutex_lock(&node->mutex);
  raft_index index = node->applied;
  pthread_mutex_unlock(&node->mutex);
  for (unsigned i = 1; i <= r->world.nodes; i++)
    if (node_wait_applied(world_node(&r->world, i), index, LEADER_MS, NULL,
                          &applied, &reason) != 0)
      give_up("node %u does not catch up: %s", i, reason.s);
}

/* One of three is damaged and gets all from the others. */
static void rebuild(struct run *r)
{
  char error[512];
  unsigned node = 1 + (unsigned)below(r, r->world.nodes);
  if (r->away) stop_or_start(r);
  catch_up(r);
  if (r->reading) read_beside(r, node);
  if (!world_stop(&r->world, node, below(r, 2)))
    give_up("node %u does not stop", node);
  record_mark(MARK_COURSE, node, COURSE_REBUILD, NULL);
  if (!course_damage(&r->world, node, below(r, 2) ? "/vote" : "/checkpoint"))
    give_up("cannot be damaged");
  if (!course_call(&r->world, node, COURSE_REBUILD, error, sizeof(error)))
    give_up("rebuild: %s", error);
  record_mark(MARK_MEMBER, node, 0, NULL);
  if (!world_open(&r->world, node, error, sizeof(error))) give_up("%s", error);
}

static void step(struct run *r)
{
  unsigned leader = world_leader(&r->world, LEADER_MS);
  if (leader == 0) give_up("no leader");
  sqlite3 *db = r->world.db[leader];
  unsigned what = (unsigned)below(r, 40);
  bool known = true;
  if (what < 2)
    known = vacuum(r, db);
  else if (what == 2)
    invite(r, db);
  else if (what < 6)
    read_beside(r, leader);
  else if (what < 8)
    usleep(30000); /* a checkpoint of a quiet database */
  else if (what == 8 && r->members == 3)
    stop_or_start(r);
  else if (what == 9 && r->members == 3)
    fall_behind(r);
  else
    known = transact(r, db);
  if (!known) settle(r, NULL);
}

/* ---- the first phase --------------------------------------------------- */

/* Half of the clusters begin with a database that exists. */
static void make_database(struct run *r, const char *path)
{
  static const int sizes[] = {512, 1024, 4096};
  sqlite3 *db = NULL;
  uint64_t n, digest;
  if (below(r, 3) == 0) return;
  if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                      vfs_below_name()) != SQLITE_OK ||
      world_exec(db,
                 "PRAGMA synchronous=EXTRA; PRAGMA page_size=%d;"
                 " PRAGMA auto_vacuum=%d",
                 sizes[below(r, 3)], (int)below(r, 3)) != SQLITE_OK ||
      world_exec(db, "PRAGMA journal_mode=%s",
                 below(r, 2) ? "wal" : "delete") != SQLITE_OK ||
      begin(r, db) != SQLITE_OK || insert_many(r, db) != SQLITE_OK ||
      world_digest(db, &n, &digest) != SQLITE_OK)
    give_up("cannot make a database: %s", sqlite3_errmsg(db));
  record_mark(MARK_BEGIN, n, digest, NULL);
  if (world_exec(db, "COMMIT") != SQLITE_OK)
    give_up("cannot make a database: %s", sqlite3_errmsg(db));
  record_mark(MARK_ACK, n, digest, NULL);
  if (sqlite3_close(db) != SQLITE_OK) give_up("cannot close a database");
}

static char *make_invitation(struct run *r, unsigned node)
{
  char *token = NULL;
  struct text error;
  unsigned leader = world_leader(&r->world, LEADER_MS);
  char name[8];
  snprintf(name, sizeof(name), "n%u", node);
  if (leader == 0 || cluster_invite(world_node(&r->world, leader), name,
                                    RAFT_VOTER, &token, &error) != 0)
    give_up("no invitation: %s", leader ? error.s : "no leader");
  return token;
}

static void join(struct run *r, sqlite3 *db, unsigned node)
{
  char path[CRASH_PATH], error[512];
  char *token = make_invitation(r, node);
  world_path(&r->world, node, path);
  if (world_exec(db,
                 "SELECT quorate_join(%Q, %Q, 'listen', '127.0.0.1:%d',"
                 " 'log_keep_kib', '32')",
                 path, token, (int)(PORT - 1 + node)) != SQLITE_OK)
    give_up("join: %s", sqlite3_errmsg(db));
  record_mark(MARK_MEMBER, node, 0, NULL);
  r->members = node;
  free(token);
  if (!world_open(&r->world, node, error, sizeof(error))) give_up("%s", error);
}

static void make_cluster(struct run *r)
{
  char path[CRASH_PATH], error[512];
  sqlite3 *db = NULL;
  world_path(&r->world, 1, path);
  make_database(r, path);
  sqlite3_open(":memory:", &db);
  if (!course_bootstrap(&r->world, error, sizeof(error)))
    give_up("bootstrap: %s", error);
  record_mark(MARK_MEMBER, 1, 0, NULL);
  if (!world_open(&r->world, 1, error, sizeof(error))) give_up("%s", error);
  settle(r, NULL);
  for (unsigned i = 2; i <= r->world.nodes; i++) {
    for (unsigned k = 0; k < 4; k++) {
      step(r);
      if (k == 1 && below(r, 2)) course_leave_wal(&r->world, i);
    }
    join(r, db, i);
  }
  sqlite3_close(db);
}

/* ---- a phase ----------------------------------------------------------- */

/* By operations, not by time: each of them is as likely to be the last. */
static void arrange_end(struct run *r)
{
  /* About as many as a transaction has. */
  uint64_t each = r->world.nodes == 1 ? 20 : 60;
  uint64_t last = below(r, each * r->phase->transactions);
  if (r->phase->end != END_CLEAN && r->phase->number > 0)
    record_kill_after(last);
}

void workload_run(const struct phase *phase)
{
  struct run *r = calloc(1, sizeof(*r));
  if (r == NULL) give_up("out of memory");
  r->phase = phase;
  r->random = phase->seed;
  r->world.root = phase->root;
  r->world.nodes = phase->nodes;
  r->invites = phase->known->invites;
  sqlite3_randomness(0, NULL);
  record_mark(MARK_PHASE, phase->number, 0, NULL);
  arrange_end(r);
  r->course_at = (unsigned)below(r, 2 * phase->transactions);
  if (phase->number == 0) {
    make_cluster(r);
  } else {
    if (phase->nodes == 1 && !phase->known->course && below(r, 3) == 0)
      recover(r);
    open_all(r);
    r->members = r->world.nodes;
    settle(r, phase->known);
  }
  for (unsigned i = 0; i < phase->transactions; i++) {
    if (i == r->course_at && phase->nodes == 1) detach(r);
    if (i == r->course_at && phase->nodes > 1) rebuild(r);
    step(r);
  }
  if (phase->end != END_CLEAN) record_kill();
  for (unsigned i = 1; i <= r->world.nodes; i++)
    if (r->world.db[i] && !world_stop(&r->world, i, true))
      give_up("node %u does not stop", i);
  record_kill();
}
