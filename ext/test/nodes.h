/*
** nodes.h: a cluster in this process, each node with a connection or two.
*/
#ifndef TEST_NODES_H
#define TEST_NODES_H

#include "harness.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <sqlite3.h>

#define NODES_MOST 3
#define PATIENCE_MS 60000 /* for what comes by itself; more than enough */
#define PAUSE_MS 5

int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);

struct nodes {
  const char *dir;
  unsigned n;
  sqlite3 *db[NODES_MOST + 1]; /* from 1; NULL: not open */
};

/* Condition, waited for with a bound. */
#define until(condition)                                                       \
  do {                                                                         \
    uint64_t last_ = clock_monotonic_ms() + PATIENCE_MS;                       \
    while (!(condition)) {                                                     \
      if (clock_monotonic_ms() > last_) fail_msg("never: %s", #condition);     \
      pause_ms(PAUSE_MS);                                                      \
    }                                                                          \
  } while (0)

static inline void pause_ms(long ms)
{
  struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&pause, NULL);
}

static inline void nodes_load(void)
{
  sqlite3 *db = NULL;
  /* That it wants to stay loaded counts as a failure there. */
  sqlite3_auto_extension((void (*)(void))sqlite3_quorate_init);
  sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  sqlite3_cancel_auto_extension((void (*)(void))sqlite3_quorate_init);
  assert_non_null(sqlite3_vfs_find("quorate"));
}

static inline struct path nodes_path(const struct nodes *nodes, unsigned i)
{
  char name[24];
  snprintf(name, sizeof(name), "n%u.db", i);
  return path_of(nodes->dir, name);
}

/* The first column of the first row, as text that must be freed; or NULL and
   the message in *error, which must be freed, too. Frees sql. */
static inline char *nodes_ask(sqlite3 *db, char *sql, char **error)
{
  sqlite3_stmt *stmt = NULL;
  char *answer = NULL;
  *error = NULL;
  assert_non_null(sql);
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
    const char *text = (const char *)sqlite3_column_text(stmt, 0);
    answer = strdup(text ? text : "");
    rc = sqlite3_step(stmt);
  }
  if (rc != SQLITE_DONE) {
    free(answer);
    answer = NULL;
    *error = strdup(sqlite3_errmsg(db));
  }
  sqlite3_finalize(stmt);
  sqlite3_free(sql);
  return answer;
}

/* The same where nothing may fail. */
static inline char *nodes_get(sqlite3 *db, char *sql)
{
  char *error, *copy = sqlite3_mprintf("%s", sql);
  char *answer = nodes_ask(db, sql, &error);
  if (error) fail_msg("%s: %s", copy, error);
  sqlite3_free(copy);
  return answer ? answer : strdup("");
}

static inline void nodes_do(sqlite3 *db, char *sql)
{
  free(nodes_get(db, sql));
}

static inline int64_t nodes_number(sqlite3 *db, char *sql)
{
  char *answer = nodes_get(db, sql);
  int64_t number = strtoll(answer, NULL, 10);
  free(answer);
  return number;
}

static inline sqlite3 *nodes_connect(const struct nodes *nodes, unsigned i)
{
  sqlite3 *db = NULL;
  struct text why = {""};
  int rc = sqlite3_open(nodes_path(nodes, i).s, &db);
  if (rc != SQLITE_OK || vfs_connection(db, "main") == NULL) {
    registry_refusal(NULL, &why);
    fail_msg("node %u: %s", i, why.s);
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_busy_timeout(db, PATIENCE_MS);
  nodes_do(db, sqlite3_mprintf("PRAGMA quorate_write_wait=%d", PATIENCE_MS));
  return db;
}

static inline void nodes_open(struct nodes *nodes, unsigned i)
{
  nodes->db[i] = nodes_connect(nodes, i);
}

static inline struct node *nodes_node(const struct nodes *nodes, unsigned i)
{
  return vfs_connection(nodes->db[i], "main")->node;
}

static inline struct node_view nodes_view(const struct nodes *nodes, unsigned i)
{
  struct node *node = nodes_node(nodes, i);
  pthread_mutex_lock(&node->mutex);
  struct node_view view = node->view;
  pthread_mutex_unlock(&node->mutex);
  return view;
}

/* Who leads, as the nodes that are open see it themselves; 0: nobody. */
static inline unsigned nodes_leader(const struct nodes *nodes)
{
  for (unsigned i = 1; i <= nodes->n; i++)
    if (nodes->db[i] && nodes_view(nodes, i).role == RAFT_LEADER) return i;
  return 0;
}

/* n nodes, all of them voters; of an election timeout in ms. */
static inline void nodes_make(struct nodes *nodes, const char *dir, unsigned n,
                              unsigned election)
{
  sqlite3 *memory = NULL;
  *nodes = (struct nodes){.dir = dir, .n = n};
  sqlite3_open(":memory:", &memory);
  nodes_do(memory,
           sqlite3_mprintf("SELECT quorate_bootstrap(%Q, 'name', 'n1',"
                           " 'listen', '127.0.0.1:%u', 'heartbeat_ms', '%u',"
                           " 'election_timeout_ms', '%u')",
                           nodes_path(nodes, 1).s, free_port(), election / 10,
                           election));
  nodes_open(nodes, 1);
  for (unsigned i = 2; i <= n; i++) {
    char *token = nodes_get(nodes->db[1],
                            sqlite3_mprintf("SELECT quorate_invite('n%u')", i));
    nodes_do(
        memory,
        sqlite3_mprintf("SELECT quorate_join(%Q, %Q, 'listen', '127.0.0.1:%u')",
                        nodes_path(nodes, i).s, token, free_port()));
    nodes_open(nodes, i);
    free(token);
  }
  sqlite3_close(memory);
  for (unsigned i = 1; i <= n; i++)
    until(nodes_view(nodes, i).voters == n);
}

/* False: it was not running. */
static inline bool nodes_stop(struct nodes *nodes, unsigned i)
{
  struct text answer;
  if (nodes->db[i]) assert_int_equal(sqlite3_close(nodes->db[i]), SQLITE_OK);
  nodes->db[i] = NULL;
  return registry_stop(nodes_path(nodes, i).s, true, &answer) == SQLITE_OK;
}

#endif
