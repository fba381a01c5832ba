/*
** world.c: nodes in this process, and what can be said of a database.
*/
#include "crash.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <xxhash.h>

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);

void world_setup(void)
{
  sqlite3 *db = NULL;
  /* Small enough that a few transactions do all of it. */
  node_limits = (struct node_limits){.segment_bytes = 16u << 10,
                                     .log_least = 32u << 10,
                                     .part_bytes = 8u << 10,
                                     .checkpoint_frames = 40,
                                     .restart_frames = 40,
                                     .quiet_frames = 16,
                                     .quiet_ms = 20,
                                     .stall_ms = 30000,
                                     .fate_ms = 30000,
                                     .follow_ms = 60000};
  /* The way in which the extension is given SQLite's functions; that it wants
     to stay loaded counts as a failure there. */
  sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init);
  sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  sqlite3_cancel_auto_extension((void (*)(void))sqlite3_quorate_init);
  if (sqlite3_vfs_find("quorate") == NULL) die("the extension did not load");
}

void world_path(const struct world *world, unsigned node, char out[CRASH_PATH])
{
  snprintf(out, CRASH_PATH, "%sn%u/app.db", world->root, node);
}

int world_exec(sqlite3 *db, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  char *sql = sqlite3_vmprintf(format, args);
  va_end(args);
  if (sql == NULL) return SQLITE_NOMEM;
  int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
  sqlite3_free(sql);
  return rc;
}

bool world_open(struct world *world, unsigned node, char *error, size_t size)
{
  char path[CRASH_PATH];
  struct text refusal = {""};
  world_path(world, node, path);
  int rc = sqlite3_open(path, &world->db[node]);
  if (rc == SQLITE_OK && vfs_connection(world->db[node], "main")) {
    sqlite3_busy_timeout(world->db[node], 5000);
    return true;
  }
  registry_refusal(path, &refusal);
  snprintf(error, size, "node %u does not start: %s", node,
           refusal.s[0]      ? refusal.s
           : rc != SQLITE_OK ? sqlite3_errmsg(world->db[node])
                             : "it is an ordinary database");
  sqlite3_close(world->db[node]);
  world->db[node] = NULL;
  return false;
}

struct node *world_node(struct world *world, unsigned node)
{
  struct connection *c =
      world->db[node] ? vfs_connection(world->db[node], "main") : NULL;
  return c ? c->node : NULL;
}

void world_close(struct world *world, unsigned node)
{
  sqlite3_close(world->side[node]);
  sqlite3_close(world->db[node]);
  world->side[node] = world->db[node] = NULL;
}

bool world_stop(struct world *world, unsigned node, bool clean)
{
  char path[CRASH_PATH];
  struct text answer;
  world_path(world, node, path);
  world_close(world, node);
  return registry_stop(path, clean, &answer) == SQLITE_OK;
}

unsigned world_leader(struct world *world, unsigned ms)
{
  struct timespec pause = {0, 300000};
  uint64_t end = clock_monotonic_ms() + ms;
  do {
    for (unsigned i = 1; i <= world->nodes; i++) {
      struct node *node = world_node(world, i);
      if (node == NULL) continue;
      pthread_mutex_lock(&node->mutex);
      bool can = node->can_write;
      pthread_mutex_unlock(&node->mutex);
      if (can) return i;
    }
    nanosleep(&pause, NULL);
  } while (clock_monotonic_ms() < end);
  return 0;
}

/* ---- a digest ---------------------------------------------------------- */

static void add_value(XXH3_state_t *x, sqlite3_stmt *stmt, int i)
{
  int type = sqlite3_column_type(stmt, i);
  int n = sqlite3_column_bytes(stmt, i);
  XXH3_64bits_update(x, &type, sizeof(type));
  XXH3_64bits_update(x, &n, sizeof(n));
  if (n) XXH3_64bits_update(x, sqlite3_column_blob(stmt, i), (size_t)n);
}

/* All rows of one statement. */
static int add_rows(sqlite3 *db, XXH3_state_t *x, const char *sql)
{
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  while (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
    rc = SQLITE_OK;
    for (int i = 0; i < sqlite3_column_count(stmt); i++)
      add_value(x, stmt, i);
  }
  int end = sqlite3_finalize(stmt);
  return rc == SQLITE_DONE ? end : rc;
}

static int add_tables(sqlite3 *db, XXH3_state_t *x, bool *meta)
{
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db,
                              "SELECT name FROM sqlite_schema"
                              " WHERE type='table' ORDER BY name",
                              -1, &stmt, NULL);
  while (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
    const char *name = (const char *)sqlite3_column_text(stmt, 0);
    char *sql = sqlite3_mprintf("SELECT rowid, * FROM \"%w\"", name);
    if (strcmp(name, "meta") == 0) *meta = true;
    rc = sql ? add_rows(db, x, sql) : SQLITE_NOMEM;
    sqlite3_free(sql);
  }
  int end = sqlite3_finalize(stmt);
  return rc == SQLITE_DONE ? end : rc;
}

int world_digest(sqlite3 *db, uint64_t *n, uint64_t *digest)
{
  XXH3_state_t *x = XXH3_createState();
  sqlite3_stmt *stmt = NULL;
  bool meta = false;
  *n = 0;
  if (x == NULL) return SQLITE_NOMEM;
  XXH3_64bits_reset(x);
  /* VACUUM moves roots. */
  int rc = add_rows(db, x,
                    "SELECT type, name, tbl_name, sql FROM sqlite_schema"
                    " ORDER BY name");
  if (rc == SQLITE_OK) rc = add_rows(db, x, "PRAGMA user_version");
  if (rc == SQLITE_OK) rc = add_tables(db, x, &meta);
  if (rc == SQLITE_OK && meta) {
    rc = sqlite3_prepare_v2(db, "SELECT n FROM meta", -1, &stmt, NULL);
    if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW)
      *n = (uint64_t)sqlite3_column_int64(stmt, 0);
    int end = sqlite3_finalize(stmt);
    if (rc == SQLITE_OK) rc = end;
  }
  *digest = XXH3_64bits_digest(x) | 1; /* never 0 */
  XXH3_freeState(x);
  return rc;
}
