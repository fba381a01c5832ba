/*
** tables.c: the eponymous tables quorate_status, quorate_members,
** quorate_events, quorate_invitations and quorate_metrics. Only top-level SQL
** may read them: no trigger or view of a database, which may be somebody
** else's. Each query takes its rows once, when it begins; the hidden
** column `schema` chooses the database (main unless said otherwise). A
** database that is not replicated has no rows.
*/
#include "call.h"
#include "sql.h"
#include "vfs.h"

SQLITE_EXTENSION_INIT3

/* The hidden column comes after those of a row. */
static const struct table {
  const char *name, *declaration;
  uint8_t call;
} tables[] = {
    {"quorate_status",
     "CREATE TABLE x(name TEXT, id TEXT, cluster TEXT, role TEXT, "
     "leader TEXT, term INTEGER, commit_index INTEGER, "
     "applied_index INTEGER, last_index INTEGER, checkpoint_index INTEGER, "
     "voters INTEGER, wal_frames INTEGER, wal_backfilled INTEGER, "
     "wal_pinned TEXT, log_first INTEGER, log_bytes INTEGER, "
     "serving INTEGER, writable INTEGER, reason TEXT, warning TEXT, "
     "certificate_expires TEXT, schema HIDDEN)",
     CALL_STATUS},
    {"quorate_members",
     "CREATE TABLE x(name TEXT, id TEXT, address TEXT, role TEXT, "
     "state TEXT, match_index INTEGER, lag_entries INTEGER, "
     "last_contact_ms INTEGER, certificate_expires TEXT, schema HIDDEN)",
     CALL_MEMBERS},
    {"quorate_events", "CREATE TABLE x(time TEXT, event TEXT, schema HIDDEN)",
     CALL_EVENTS},
    {"quorate_invitations",
     "CREATE TABLE x(name TEXT, role TEXT, state TEXT, created TEXT, "
     "expires TEXT, used TEXT, invited_by TEXT, withdrawn TEXT, "
     "schema HIDDEN)",
     CALL_INVITATIONS},
    {"quorate_metrics",
     "CREATE TABLE x(name TEXT, type TEXT, help TEXT, value, schema HIDDEN)",
     CALL_METRICS},
};

struct vtab {
  sqlite3_vtab base;
  sqlite3 *db;
  const struct table *table;
};

struct cursor {
  sqlite3_vtab_cursor base;
  struct answer answer;
  size_t row;
};

static int table_connect(sqlite3 *db, void *aux, int argc,
                         const char *const *argv, sqlite3_vtab **out,
                         char **error)
{
  (void)argc;
  (void)argv;
  (void)error;
  struct vtab *v = sqlite3_malloc64(sizeof(*v));
  if (v == NULL) return SQLITE_NOMEM;
  memset(v, 0, sizeof(*v));
  v->db = db;
  v->table = aux;
  int rc = sqlite3_declare_vtab(db, v->table->declaration);
  /* Older ones do not know it, and trust every schema. */
  if (rc == SQLITE_OK && sqlite3_libversion_number() >= 3031000)
    rc = sqlite3_vtab_config(db, SQLITE_VTAB_DIRECTONLY);
  if (rc != SQLITE_OK) {
    sqlite3_free(v);
    return rc;
  }
  *out = &v->base;
  return SQLITE_OK;
}

static int table_disconnect(sqlite3_vtab *vtab)
{
  sqlite3_free(vtab);
  return SQLITE_OK;
}

static int table_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
  struct vtab *v = (struct vtab *)vtab;
  int schema = (int)call_columns(v->table->call);
  info->estimatedCost = 100;
  for (int i = 0; i < info->nConstraint; i++) {
    if (info->aConstraint[i].iColumn != schema) continue;
    if (!info->aConstraint[i].usable ||
        info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ)
      return SQLITE_CONSTRAINT;
    info->aConstraintUsage[i].argvIndex = 1;
    info->aConstraintUsage[i].omit = 1;
    info->idxNum = 1;
    break;
  }
  return SQLITE_OK;
}

static int cursor_open(sqlite3_vtab *vtab, sqlite3_vtab_cursor **out)
{
  (void)vtab;
  struct cursor *c = sqlite3_malloc64(sizeof(*c));
  if (c == NULL) return SQLITE_NOMEM;
  memset(c, 0, sizeof(*c));
  *out = &c->base;
  return SQLITE_OK;
}

static void cursor_clear(struct cursor *c)
{
  answer_clear(&c->answer);
  c->answer = (struct answer){0};
  c->row = 0;
}

static int cursor_close(sqlite3_vtab_cursor *cursor)
{
  cursor_clear((struct cursor *)cursor);
  sqlite3_free(cursor);
  return SQLITE_OK;
}

static int cursor_filter(sqlite3_vtab_cursor *cursor, int number,
                         const char *string, int argc, sqlite3_value **argv)
{
  struct cursor *c = (struct cursor *)cursor;
  struct vtab *v = (struct vtab *)cursor->pVtab;
  struct call call = {.what = v->table->call};
  const char *schema = "main";
  (void)string;
  cursor_clear(c);
  if (number == 1 && argc > 0)
    schema = (const char *)sqlite3_value_text(argv[0]);
  struct connection *connection = schema ? vfs_connection(v->db, schema) : 0;
  if (connection == NULL) return SQLITE_OK;
  const struct interrupt interrupt = {vfs_interrupted, connection};
  int rc = call_do(connection, &call, &interrupt, &c->answer);
  if (rc == SQLITE_ERROR) {
    sqlite3_free(v->base.zErrMsg);
    v->base.zErrMsg =
        sqlite3_mprintf("%s: %s", v->table->name, c->answer.error.s);
  }
  return rc;
}

static int cursor_next(sqlite3_vtab_cursor *cursor)
{
  ((struct cursor *)cursor)->row++;
  return SQLITE_OK;
}

static int cursor_eof(sqlite3_vtab_cursor *cursor)
{
  const struct cursor *c = (struct cursor *)cursor;
  return c->row * c->answer.n_columns >= c->answer.cells.n;
}

static int cursor_column(sqlite3_vtab_cursor *cursor, sqlite3_context *ctx,
                         int i)
{
  const struct cursor *c = (struct cursor *)cursor;
  const struct answer *answer = &c->answer;
  if (i >= (int)answer->n_columns) return SQLITE_OK; /* the schema */
  sql_result(ctx, &answer->cells.at[c->row * answer->n_columns + (unsigned)i]);
  return SQLITE_OK;
}

static int cursor_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *out)
{
  *out = (sqlite3_int64)((struct cursor *)cursor)->row;
  return SQLITE_OK;
}

static const sqlite3_module module = {
    .iVersion = 0,
    .xConnect = table_connect, /* no xCreate: eponymous only */
    .xBestIndex = table_best_index,
    .xDisconnect = table_disconnect,
    .xOpen = cursor_open,
    .xClose = cursor_close,
    .xFilter = cursor_filter,
    .xNext = cursor_next,
    .xEof = cursor_eof,
    .xColumn = cursor_column,
    .xRowid = cursor_rowid,
};

int tables_register(sqlite3 *db)
{
  int rc = SQLITE_OK;
  for (unsigned i = 0;
       rc == SQLITE_OK && i < sizeof(tables) / sizeof(tables[0]); i++)
    rc = sqlite3_create_module_v2(db, tables[i].name, &module,
                                  (void *)(size_t)&tables[i], NULL);
  return rc;
}
