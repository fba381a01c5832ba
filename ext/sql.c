/*
** sql.c: the SQL functions. Actions are scalar functions that only top-level
** SQL may call (SQLITE_DIRECTONLY) and return a line that says what happened.
** A function that speaks of a node means the one of the main database.
*/
#include "sql.h"
#include "vfs.h"

#include <errno.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define OPTIONS_MAX 32

static void fail(sqlite3_context *ctx, const char *function, const char *reason)
{
  char line[TEXT_MAX + 64];
  snprintf(line, sizeof(line), "%s: %s", function, reason);
  sqlite3_result_error(ctx, line, -1);
}

static const char *name_of(sqlite3_context *ctx)
{
  return sqlite3_user_data(ctx);
}

/* The connection of the main database; an SQL error when it has none. */
static struct connection *here(sqlite3_context *ctx)
{
  struct connection *c = vfs_connection(sqlite3_context_db_handle(ctx), "main");
  struct text reason;
  if (c) return c;
  const char *file =
      sqlite3_db_filename(sqlite3_context_db_handle(ctx), "main");
  fail(ctx, name_of(ctx),
       file && file[0] && registry_refusal(file, &reason)
           ? reason.s
           : "the main database is not replicated, or was opened before the "
             "extension was loaded");
  return NULL;
}

static const char *text_argument(sqlite3_context *ctx, sqlite3_value *value,
                                 const char *what)
{
  const char *text = (const char *)sqlite3_value_text(value);
  char line[64];
  if (text && text[0]) return text;
  snprintf(line, sizeof(line), "%s is missing", what);
  fail(ctx, name_of(ctx), line);
  return NULL;
}

/* ---- actions ----------------------------------------------------------- */

static bool take_options(sqlite3_context *ctx, int n, sqlite3_value **values,
                         const char **options)
{
  if (n > OPTIONS_MAX) {
    fail(ctx, name_of(ctx), "too many options");
    return false;
  }
  for (int i = 0; i < n; i++)
    options[i] = (const char *)sqlite3_value_text(values[i]);
  return true;
}

static void finish(sqlite3_context *ctx, int rc, const struct text *answer)
{
  if (rc == SQLITE_OK)
    sqlite3_result_text(ctx, answer->s, -1, SQLITE_TRANSIENT);
  else
    fail(ctx, name_of(ctx), answer->s);
}

static void sql_bootstrap(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const char *options[OPTIONS_MAX], *file;
  struct text answer = {""};
  if (n < 1) {
    fail(ctx, name_of(ctx), "the file is missing");
    return;
  }
  file = text_argument(ctx, values[0], "the file");
  if (file == NULL || !take_options(ctx, n - 1, values + 1, options)) return;
  int rc = cluster_bootstrap(file, n - 1, options, &answer);
  finish(ctx, rc, &answer);
}

/* The database of an argument, by the path that the registry knows; free it.
   NULL: an SQL error is set. */
static char *path_argument(sqlite3_context *ctx, sqlite3_value *value)
{
  struct text error;
  const char *file = text_argument(ctx, value, "the file");
  char *path = file ? vfs_absolute(file) : NULL;
  if (file && path == NULL) {
    text_set(&error, "%s: no such path", file);
    fail(ctx, name_of(ctx), error.s);
  }
  return path;
}

static void sql_rebuild(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const char *options[OPTIONS_MAX];
  struct text answer = {""};
  if (n < 1) {
    fail(ctx, name_of(ctx), "the file is missing");
    return;
  }
  char *path = path_argument(ctx, values[0]);
  if (path == NULL) return;
  if (take_options(ctx, n - 1, values + 1, options)) {
    int rc = cluster_rebuild(path, n - 1, options, &answer);
    finish(ctx, rc ? SQLITE_ERROR : SQLITE_OK, &answer);
  }
  free(path);
}

static void sql_join(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const char *options[OPTIONS_MAX], *file, *token;
  struct text answer = {""};
  if (n < 2) {
    fail(ctx, name_of(ctx), "the file or the token is missing");
    return;
  }
  file = text_argument(ctx, values[0], "the file");
  token = file ? text_argument(ctx, values[1], "the token") : NULL;
  if (token == NULL || !take_options(ctx, n - 2, values + 2, options)) return;
  int rc = cluster_join(file, token, n - 2, options, &answer);
  finish(ctx, rc, &answer);
}

static void sql_invite(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  struct text error = {""};
  char *token = NULL;
  const char *name = text_argument(ctx, values[0], "the name");
  struct connection *c = name ? here(ctx) : NULL;
  if (c == NULL) return;
  if (cluster_invite(c->node, name, &token, &error) != 0) {
    node_reason(c->node, "quorate_invite: %s", error.s);
    fail(ctx, name_of(ctx), error.s);
    return;
  }
  sqlite3_result_text(ctx, token, -1, SQLITE_TRANSIENT);
  tls_free_text(token);
}

static void sql_stop(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  struct text answer = {""};
  char *path = path_argument(ctx, values[0]);
  if (path == NULL) return;
  int rc = registry_stop(path, true, &answer);
  free(path);
  finish(ctx, rc, &answer);
}

/* The functions below take their time. SQLite tells a function that runs of no
   interrupt: only a statement that is prepared or stepped learns of it. */
struct probe {
  sqlite3_stmt *stmt;
  bool raised;
};

static bool interrupted(void *ctx)
{
  struct probe *probe = ctx;
  if (probe->stmt && !probe->raised) {
    probe->raised = sqlite3_step(probe->stmt) == SQLITE_INTERRUPT;
    sqlite3_reset(probe->stmt);
  }
  return probe->raised;
}

static struct interrupt begin_long(sqlite3_context *ctx, struct probe *probe)
{
  struct interrupt interrupt = {interrupted, probe};
  probe->stmt = NULL;
  probe->raised =
      sqlite3_prepare_v2(sqlite3_context_db_handle(ctx), "VALUES(1)", -1,
                         &probe->stmt, NULL) == SQLITE_INTERRUPT;
  return interrupt;
}

static void end_long(sqlite3_context *ctx, struct probe *probe, int rc,
                     const struct text *answer)
{
  sqlite3_finalize(probe->stmt);
  if (rc == -EINTR)
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
  else
    finish(ctx, rc ? SQLITE_ERROR : SQLITE_OK, answer);
}

/* A function without arguments that may take long and answers with a text. */
static void run_long(sqlite3_context *ctx,
                     int (*run)(struct node *node,
                                const struct interrupt *interrupt,
                                struct text *answer))
{
  struct text answer = {""};
  struct connection *c = here(ctx);
  if (c == NULL) return;
  struct probe probe;
  struct interrupt interrupt = begin_long(ctx, &probe);
  int rc = run(c->node, &interrupt, &answer);
  end_long(ctx, &probe, rc, &answer);
}

static void sql_checkpoint(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  run_long(ctx, checkpoint_now);
}

static void sql_detach(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  struct text answer = {""};
  char *path = path_argument(ctx, values[0]);
  if (path == NULL) return;
  struct probe probe;
  struct interrupt interrupt = begin_long(ctx, &probe);
  int rc = registry_detach(path, &interrupt, &answer);
  end_long(ctx, &probe, rc, &answer);
  free(path);
}

static void sql_backup(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  struct text error = {""};
  raft_index index = 0;
  const char *file = text_argument(ctx, values[0], "the file");
  struct connection *c = file ? here(ctx) : NULL;
  if (c == NULL) return;
  struct probe probe;
  struct interrupt interrupt = begin_long(ctx, &probe);
  int rc = backup_run(c->node, file, &interrupt, &index, &error);
  end_long(ctx, &probe, rc, &error);
  if (rc == 0) sqlite3_result_int64(ctx, (sqlite3_int64)index);
}

static void sql_verify(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  run_long(ctx, verify_run);
}

#define WAIT_MAX_MS 3600000

static void sql_wait(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  struct text reason, line;
  raft_index applied;
  sqlite3_int64 index = sqlite3_value_int64(values[0]);
  sqlite3_int64 ms = n > 1 ? sqlite3_value_int64(values[1]) : 0;
  if (sqlite3_value_numeric_type(values[0]) != SQLITE_INTEGER || index < 0) {
    fail(ctx, name_of(ctx), "the index must be an integer, 0 or more");
    return;
  }
  if (n > 1 && (sqlite3_value_numeric_type(values[1]) != SQLITE_INTEGER ||
                ms < 0 || ms > WAIT_MAX_MS)) {
    fail(ctx, name_of(ctx), "the wait must be 0 to 3600000 ms");
    return;
  }
  struct connection *c = here(ctx);
  if (c == NULL) return;
  struct interrupt interrupt = {vfs_interrupted, c};
  int rc = node_wait_applied(c->node, (raft_index)index,
                             n > 1 ? (uint64_t)ms : c->write_wait, &interrupt,
                             &applied, &reason);
  if (rc == 0) {
    sqlite3_result_int64(ctx, (sqlite3_int64)applied);
  } else if (rc == -EINTR) {
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
  } else {
    text_set(&line, "quorate_wait: %s", reason.s);
    c->reason = line;
    node_reason(c->node, "%s", line.s);
    fail(ctx, name_of(ctx), reason.s);
  }
}

/* ---- information ------------------------------------------------------- */

static void sql_version(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  sqlite3_result_text(ctx, QUORATE_VERSION, -1, SQLITE_STATIC);
}

static struct node_view view_of(struct node *node, raft_index *applied)
{
  pthread_mutex_lock(&node->mutex);
  struct node_view view = node->view;
  if (applied) *applied = node->applied;
  pthread_mutex_unlock(&node->mutex);
  return view;
}

static void sql_role(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  struct connection *c = here(ctx);
  if (c) sqlite3_result_text(ctx, node_role_name(c->node), -1, SQLITE_STATIC);
}

static void sql_leader(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  struct connection *c = here(ctx);
  if (c == NULL) return;
  pthread_mutex_lock(&c->node->mutex);
  const struct raft_member *m = node_member(c->node, c->node->view.leader);
  if (m) sqlite3_result_text(ctx, m->name, -1, SQLITE_TRANSIENT);
  pthread_mutex_unlock(&c->node->mutex);
}

static void sql_term(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  struct connection *c = here(ctx);
  if (c) sqlite3_result_int64(ctx, (sqlite3_int64)view_of(c->node, NULL).term);
}

static void sql_index(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  raft_index applied;
  struct connection *c = here(ctx);
  if (c == NULL) return;
  view_of(c->node, &applied);
  sqlite3_result_int64(ctx, (sqlite3_int64)applied);
}

static void sql_last_error(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  struct connection *c = vfs_connection(db, "main");
  const char *file = sqlite3_db_filename(db, "main");
  struct text reason = {""};
  if (c)
    reason = c->reason;
  else
    registry_refusal(file && file[0] ? file : NULL, &reason);
  if (reason.s[0]) sqlite3_result_text(ctx, reason.s, -1, SQLITE_TRANSIENT);
}

/* ---- registration ------------------------------------------------------ */

int sql_register(sqlite3 *db)
{
  static struct {
    char name[24]; /* user data of the function */
    int n;
    bool action;
    void (*run)(sqlite3_context *, int, sqlite3_value **);
  } functions[] = {
      {"quorate_bootstrap", -1, true, sql_bootstrap},
      {"quorate_join", -1, true, sql_join},
      {"quorate_invite", 1, true, sql_invite},
      {"quorate_rebuild", -1, true, sql_rebuild},
      {"quorate_stop", 1, true, sql_stop},
      {"quorate_detach", 1, true, sql_detach},
      {"quorate_checkpoint", 0, true, sql_checkpoint},
      {"quorate_backup", 1, true, sql_backup},
      {"quorate_verify", 0, true, sql_verify},
      {"quorate_wait", 1, true, sql_wait},
      {"quorate_wait", 2, true, sql_wait},
      {"quorate_version", 0, false, sql_version},
      {"quorate_role", 0, false, sql_role},
      {"quorate_leader", 0, false, sql_leader},
      {"quorate_term", 0, false, sql_term},
      {"quorate_index", 0, false, sql_index},
      {"quorate_last_error", 0, false, sql_last_error},
  };
  int rc = tables_register(db);
  for (unsigned i = 0;
       rc == SQLITE_OK && i < sizeof(functions) / sizeof(functions[0]); i++)
    rc = sqlite3_create_function_v2(
        db, functions[i].name, functions[i].n,
        SQLITE_UTF8 | (functions[i].action ? SQLITE_DIRECTONLY : 0),
        functions[i].name, functions[i].run, NULL, NULL, NULL);
  /* What is there cannot be replaced while a statement runs, as one does that
     loads the extension again. */
  return rc == SQLITE_BUSY ? SQLITE_OK : rc;
}

int sql_auto(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
  (void)error;
  (void)api;
  return sql_register(db);
}
