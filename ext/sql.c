/*
** sql.c: the SQL functions. Actions are scalar functions that return a line
** that says what happened. Only top-level SQL may call them, and those that tell
** of a node (SQLITE_DIRECTONLY): no trigger, view or schema of a database, which
** may be somebody else's.
** A function that speaks of a node means the one of the main database, and is
** carried out where that is: call.c. The others act on files of this process.
*/
#include "sql.h"
#include "call.h"
#include "cluster.h"
#include "vfs.h"

#include <errno.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define OPTIONS_MAX 32

/* A function of SQL, and its user data. */
struct function {
  const char *name;
  int n;
  bool direct; /* only top-level SQL may call it */
  void (*run)(sqlite3_context *, int, sqlite3_value **);
  uint8_t call; /* of those that are carried out by the node */
};

/* It is what quorate_last_error() says, too. */
static void fail(sqlite3_context *ctx, const char *function, const char *reason)
{
  char line[TEXT_MAX + 64];
  struct connection *c = vfs_connection(sqlite3_context_db_handle(ctx), "main");
  snprintf(line, sizeof(line), "%s: %s", function, reason);
  text_plain(line);
  if (c) text_set(&c->reason, "%s", line);
  sqlite3_result_error(ctx, line, -1);
}

static const char *name_of(sqlite3_context *ctx)
{
  const struct function *function = sqlite3_user_data(ctx);
  return function->name;
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

/* What comes behind a NUL would be ignored. Else an SQL error. */
static bool is_whole(sqlite3_context *ctx, sqlite3_value *value)
{
  const char *text = (const char *)sqlite3_value_text(value);
  if (text == NULL || strlen(text) == (size_t)sqlite3_value_bytes(value))
    return true;
  fail(ctx, name_of(ctx), "an argument has a NUL in it");
  return false;
}

static const char *text_argument(sqlite3_context *ctx, sqlite3_value *value,
                                 const char *what)
{
  const char *text = (const char *)sqlite3_value_text(value);
  char line[64];
  if (!is_whole(ctx, value)) return NULL;
  if (text && text[0]) return text;
  snprintf(line, sizeof(line), "%s is missing", what);
  fail(ctx, name_of(ctx), line);
  return NULL;
}

/* The name of a file, or NULL and an SQL error. */
static const char *file_argument(sqlite3_context *ctx, sqlite3_value *value)
{
  const char *file = text_argument(ctx, value, "the file");
  const char *fault = file ? call_file_fault(file) : NULL;
  if (fault) fail(ctx, name_of(ctx), fault);
  return fault ? NULL : file;
}

/* Some functions take their time. SQLite tells a function that runs of no
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

/* Its statement is to be finalized. */
static struct interrupt begin_probe(sqlite3_context *ctx, struct probe *probe)
{
  struct interrupt interrupt = {interrupted, probe};
  probe->stmt = NULL;
  probe->raised =
      sqlite3_prepare_v2(sqlite3_context_db_handle(ctx), "VALUES(1)", -1,
                         &probe->stmt, NULL) == SQLITE_INTERRUPT;
  return interrupt;
}

/* ---- of this process --------------------------------------------------- */

static bool take_options(sqlite3_context *ctx, int n, sqlite3_value **values,
                         const char **options)
{
  if (n > OPTIONS_MAX) {
    fail(ctx, name_of(ctx), "too many options");
    return false;
  }
  for (int i = 0; i < n; i++) {
    if (!is_whole(ctx, values[i])) return false;
    options[i] = (const char *)sqlite3_value_text(values[i]);
  }
  return true;
}

static void finish(sqlite3_context *ctx, int rc, const struct text *answer)
{
  if (rc == SQLITE_OK)
    sqlite3_result_text(ctx, answer->s, -1, SQLITE_TRANSIENT);
  else
    fail(ctx, name_of(ctx), answer->s);
}

/* The same of what can be interrupted, and says how far it came. */
static void end_probe(sqlite3_context *ctx, struct probe *probe, int rc,
                      const struct text *answer)
{
  sqlite3_finalize(probe->stmt);
  finish(ctx, rc, answer);
  if (rc != SQLITE_OK && probe->raised)
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
}

static void sql_bootstrap(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const char *options[OPTIONS_MAX], *file;
  struct text answer = {""};
  if (n < 1) {
    fail(ctx, name_of(ctx), "the file is missing");
    return;
  }
  file = file_argument(ctx, values[0]);
  if (file == NULL || !take_options(ctx, n - 1, values + 1, options)) return;
  int rc = cluster_bootstrap(file, n - 1, options, &answer);
  finish(ctx, rc, &answer);
}

/* The database of an argument, by the path that the registry knows; free it.
   NULL: an SQL error is set. */
static char *path_argument(sqlite3_context *ctx, sqlite3_value *value)
{
  struct text error;
  const char *file = file_argument(ctx, value);
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
    struct probe probe;
    struct interrupt interrupt = begin_probe(ctx, &probe);
    int rc = cluster_rebuild(path, n - 1, options, &interrupt, &answer);
    end_probe(ctx, &probe, rc ? SQLITE_ERROR : SQLITE_OK, &answer);
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
  file = file_argument(ctx, values[0]);
  token = file ? text_argument(ctx, values[1], "the token") : NULL;
  if (token == NULL || !take_options(ctx, n - 2, values + 2, options)) return;
  struct probe probe;
  struct interrupt interrupt = begin_probe(ctx, &probe);
  int rc = cluster_join(file, token, n - 2, options, &interrupt, &answer);
  end_probe(ctx, &probe, rc, &answer);
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

static void sql_detach(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  struct text answer = {""};
  char *path = path_argument(ctx, values[0]);
  if (path == NULL) return;
  struct probe probe;
  struct interrupt interrupt = begin_probe(ctx, &probe);
  int rc = registry_detach(path, &interrupt, &answer);
  sqlite3_finalize(probe.stmt);
  free(path);
  if (rc == -EINTR)
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
  else
    finish(ctx, rc ? SQLITE_ERROR : SQLITE_OK, &answer);
}

/* A node that is left is detached, which is its own process's to do. */
static void sql_leave(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  struct text answer = {""};
  struct connection *c = here(ctx);
  if (c == NULL) return;
  if (vfs_inherited(c)) {
    vfs_refuse_inherited(c);
    fail(ctx, name_of(ctx), c->reason.s);
    return;
  }
  vfs_locate(c);
  if (c->node == NULL) {
    text_set(&answer,
             "the node runs in process %d: call it there, when no "
             "other process has the file open",
             node_lock_holder(c->database->dir));
    fail(ctx, name_of(ctx), answer.s);
    return;
  }
  struct probe probe;
  struct interrupt interrupt = begin_probe(ctx, &probe);
  int rc = member_leave(c->node, &interrupt, &answer);
  sqlite3_finalize(probe.stmt);
  if (rc == -EINTR)
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
  else
    finish(ctx, rc ? SQLITE_ERROR : SQLITE_OK, &answer);
}

static void sql_recover(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const char *options[OPTIONS_MAX];
  if (n < 1) {
    fail(ctx, name_of(ctx), "the file is missing");
    return;
  }
  char *path = path_argument(ctx, values[0]);
  if (path == NULL) return;
  int n_options = n < 2 ? 0 : n - 2;
  if (!take_options(ctx, n_options, values + 2, options)) {
    free(path);
    return;
  }
  struct probe probe;
  struct interrupt interrupt = begin_probe(ctx, &probe);
  struct recover *r = recover_new(
      path, n < 2 ? NULL : (const char *)sqlite3_value_text(values[1]),
      n_options, options, &interrupt);
  bool ok = r && registry_recover(path, r);
  char *said = r ? recover_end(r) : NULL;
  sqlite3_finalize(probe.stmt);
  free(path);
  if (said == NULL) {
    sqlite3_result_error_nomem(ctx);
  } else if (ok) {
    sqlite3_result_text(ctx, said, -1, SQLITE_TRANSIENT);
  } else {
    char *line = sqlite3_mprintf("%s: %s", name_of(ctx), said);
    sqlite3_result_error(ctx, line ? line : said, -1);
    sqlite3_free(line);
  }
  free(said);
}

static void sql_version(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  (void)n;
  (void)values;
  sqlite3_result_text(ctx, QUORATE_VERSION, -1, SQLITE_STATIC);
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

/* ---- of the node ------------------------------------------------------- */

void sql_result(sqlite3_context *ctx, const struct cell *cell)
{
  if (cell->type == CELL_TEXT)
    sqlite3_result_text(ctx, cell->text, -1, SQLITE_TRANSIENT);
  else if (cell->type == CELL_INTEGER)
    sqlite3_result_int64(ctx, cell->number);
  else if (cell->type == CELL_REAL)
    sqlite3_result_double(ctx, cell->real);
  else
    sqlite3_result_null(ctx);
}

static bool takes_long(uint8_t call)
{
  return call == CALL_CHECKPOINT || call == CALL_BACKUP ||
         call == CALL_VERIFY || call == CALL_PROMOTE || call == CALL_DEMOTE ||
         call == CALL_REMOVE || call == CALL_TRANSFER || call == CALL_ROTATE_CA;
}

static void carry_out(sqlite3_context *ctx, struct connection *c,
                      struct call *call, struct answer *answer)
{
  struct interrupt interrupt = {vfs_interrupted, c};
  struct probe probe = {NULL, false};
  if (takes_long(call->what)) interrupt = begin_probe(ctx, &probe);
  call_do(c, call, &interrupt, answer);
  sqlite3_finalize(probe.stmt);
}

/* Texts, but for the numbers of who waits. */
static void add_argument(struct call *call, sqlite3_value *value)
{
  if ((call->what == CALL_WAIT || call->what == CALL_ROTATE_CA) &&
      sqlite3_value_numeric_type(value) == SQLITE_INTEGER)
    cells_integer(&call->arguments, (uint64_t)sqlite3_value_int64(value));
  else
    cells_text(&call->arguments, (const char *)sqlite3_value_text(value));
}

static void sql_call(sqlite3_context *ctx, int n, sqlite3_value **values)
{
  const struct function *function = sqlite3_user_data(ctx);
  struct call call = {.what = function->call};
  struct answer answer = {0};
  struct connection *c = NULL;
  bool whole = true;
  for (int i = 0; i < n && whole; i++) {
    add_argument(&call, values[i]);
    whole = is_whole(ctx, values[i]);
  }
  if (whole && !call_check(&call, &answer.error))
    fail(ctx, function->name, answer.error.s);
  else if (whole)
    c = here(ctx);
  if (c) {
    carry_out(ctx, c, &call, &answer);
    if (answer.status == SQLITE_OK)
      sql_result(ctx, &answer.cells.at[0]);
    else if (answer.status == SQLITE_ERROR)
      fail(ctx, function->name, answer.error.s);
    else
      sqlite3_result_error_code(ctx, answer.status);
  }
  cells_clear(&call.arguments);
  answer_clear(&answer);
}

/* ---- registration ------------------------------------------------------ */

static struct function functions[] = {
    {"quorate_bootstrap", -1, true, sql_bootstrap, 0},
    {"quorate_join", -1, true, sql_join, 0},
    {"quorate_invite", 1, true, sql_call, CALL_INVITE},
    {"quorate_invite", 2, true, sql_call, CALL_INVITE},
    {"quorate_uninvite", 1, true, sql_call, CALL_UNINVITE},
    {"quorate_rebuild", -1, true, sql_rebuild, 0},
    {"quorate_recover", -1, true, sql_recover, 0},
    {"quorate_stop", 1, true, sql_stop, 0},
    {"quorate_detach", 1, true, sql_detach, 0},
    {"quorate_checkpoint", 0, true, sql_call, CALL_CHECKPOINT},
    {"quorate_backup", 1, true, sql_call, CALL_BACKUP},
    {"quorate_verify", 0, true, sql_call, CALL_VERIFY},
    {"quorate_promote", 1, true, sql_call, CALL_PROMOTE},
    {"quorate_demote", 1, true, sql_call, CALL_DEMOTE},
    {"quorate_remove", 1, true, sql_call, CALL_REMOVE},
    {"quorate_transfer", 0, true, sql_call, CALL_TRANSFER},
    {"quorate_transfer", 1, true, sql_call, CALL_TRANSFER},
    {"quorate_leave", 0, true, sql_leave, 0},
    {"quorate_rotate_ca", 0, true, sql_call, CALL_ROTATE_CA},
    {"quorate_rotate_ca", 1, true, sql_call, CALL_ROTATE_CA},
    {"quorate_wait", 1, true, sql_call, CALL_WAIT},
    {"quorate_wait", 2, true, sql_call, CALL_WAIT},
    {"quorate_version", 0, false, sql_version, 0},
    {"quorate_role", 0, true, sql_call, CALL_ROLE},
    {"quorate_leader", 0, true, sql_call, CALL_LEADER},
    {"quorate_term", 0, true, sql_call, CALL_TERM},
    {"quorate_index", 0, true, sql_call, CALL_INDEX},
    {"quorate_last_error", 0, true, sql_last_error, 0},
};

/* In a CHECK constraint SQLite (3.40 at least) looks at SQLITE_DIRECTONLY only of
   functions that are said to be deterministic. What else follows from saying so
   is welcome: a call with constant arguments is made once in a statement, however
   many rows that goes through. */
#define DIRECT (SQLITE_DIRECTONLY | SQLITE_DETERMINISTIC)

int sql_register(sqlite3 *db)
{
  int rc = tables_register(db);
  for (unsigned i = 0;
       rc == SQLITE_OK && i < sizeof(functions) / sizeof(functions[0]); i++)
    rc = sqlite3_create_function_v2(
        db, functions[i].name, functions[i].n,
        SQLITE_UTF8 | (functions[i].direct ? DIRECT : 0), &functions[i],
        functions[i].run, NULL, NULL, NULL);
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
