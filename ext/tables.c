/*
** tables.c: the eponymous tables quorate_status, quorate_members,
** quorate_events, quorate_log, quorate_invitations and quorate_metrics. Only
** top-level SQL may read them: no trigger or view of a database, which may be
** somebody else's. Each query takes its rows once, when it begins; the hidden
** column `schema` chooses the database (main unless said otherwise). A
** database that is not replicated has no rows.
**
** quorate_log may be as long as the log: what a query says of log_index bounds
** what is asked for, some rows at a time, and without a word of it the newest
** rows are all there is.
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
     "certificate_expires TEXT, progress TEXT, schema HIDDEN)",
     CALL_STATUS},
    {"quorate_members",
     "CREATE TABLE x(name TEXT, id TEXT, address TEXT, role TEXT, "
     "state TEXT, match_index INTEGER, lag_entries INTEGER, "
     "last_contact_ms INTEGER, certificate_expires TEXT, lag_ms INTEGER, "
     "round_trip_ms REAL, schema HIDDEN)",
     CALL_MEMBERS},
    {"quorate_events", "CREATE TABLE x(time TEXT, event TEXT, schema HIDDEN)",
     CALL_EVENTS},
    {"quorate_log",
     "CREATE TABLE x(log_index INTEGER, term INTEGER, type TEXT, "
     "pages INTEGER, bytes INTEGER, node TEXT, time TEXT, schema HIDDEN)",
     CALL_LOG},
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
  char *schema;
  struct answer answer;
  size_t row, n_rows; /* of the answer */
  int plan;           /* as table_best_index() gave it */
  bool over;          /* there are no others after these */
  int64_t from, to;   /* of quorate_log: what was not asked for yet */
};

/* How rows are found, as bits. */
enum { BY_SCHEMA = 1, BY_INDEX = 2, FROM_INDEX = 4, TO_INDEX = 8, DOWN = 16 };

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

/* The bit of a constraint that is of use; 0: it is not; -1: without it there
   is no plan. */
static int plan_of(const struct sqlite3_index_constraint *c, int schema,
                   bool ranged)
{
  if (c->iColumn == schema && c->op == SQLITE_INDEX_CONSTRAINT_EQ)
    return c->usable ? BY_SCHEMA : -1;
  if (!ranged || c->iColumn != 0 || !c->usable) return 0;
  switch (c->op) {
  case SQLITE_INDEX_CONSTRAINT_EQ: return BY_INDEX;
  case SQLITE_INDEX_CONSTRAINT_GT:
  case SQLITE_INDEX_CONSTRAINT_GE: return FROM_INDEX;
  case SQLITE_INDEX_CONSTRAINT_LT:
  case SQLITE_INDEX_CONSTRAINT_LE: return TO_INDEX;
  default: return 0;
  }
}

static int table_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
  struct vtab *v = (struct vtab *)vtab;
  int schema = (int)call_columns(v->table->call), at[TO_INDEX + 1], n = 0;
  bool ranged = v->table->call == CALL_LOG;
  for (int i = 0; i < info->nConstraint; i++) {
    int plan = plan_of(&info->aConstraint[i], schema, ranged);
    if (plan < 0) return SQLITE_CONSTRAINT;
    if (plan == 0 || info->idxNum & plan) continue;
    info->idxNum |= plan;
    at[plan] = i;
  }
  /* In the order of the bits. What is said of the index SQLite looks at again:
     values may be of any type. */
  for (int plan = BY_SCHEMA; plan <= TO_INDEX; plan *= 2) {
    if ((info->idxNum & plan) == 0) continue;
    info->aConstraintUsage[at[plan]].argvIndex = ++n;
    info->aConstraintUsage[at[plan]].omit = plan == BY_SCHEMA;
  }
  if (ranged && info->nOrderBy == 1 && info->aOrderBy[0].iColumn == 0) {
    info->orderByConsumed = 1;
    if (info->aOrderBy[0].desc) info->idxNum |= DOWN;
  }
  info->estimatedCost = info->idxNum & BY_INDEX ? 10 : 100;
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
  c->row = c->n_rows = 0;
}

static int cursor_close(sqlite3_vtab_cursor *cursor)
{
  struct cursor *c = (struct cursor *)cursor;
  cursor_clear(c);
  sqlite3_free(c->schema);
  sqlite3_free(c);
  return SQLITE_OK;
}

/* One call, in the place of the answer before. */
static int ask(struct cursor *c, struct call *call)
{
  struct vtab *v = (struct vtab *)c->base.pVtab;
  struct connection *connection = vfs_connection(v->db, c->schema);
  cursor_clear(c);
  c->over = call->what != CALL_LOG;
  if (connection == NULL) {
    c->over = true;
    return SQLITE_OK;
  }
  const struct interrupt interrupt = {vfs_interrupted, connection};
  int rc = call_do(connection, call, &interrupt, &c->answer);
  if (rc == SQLITE_ERROR) {
    sqlite3_free(v->base.zErrMsg);
    v->base.zErrMsg =
        sqlite3_mprintf("%s: %s", v->table->name, c->answer.error.s);
  }
  if (rc == SQLITE_OK && c->answer.n_columns)
    c->n_rows = c->answer.cells.n / c->answer.n_columns;
  return rc;
}

/* The next entries, or the ones before. */
static int ask_for_entries(struct cursor *c)
{
  struct call call = {.what = CALL_LOG};
  bool all = c->plan & (BY_INDEX | FROM_INDEX | TO_INDEX);
  bool down = c->plan & DOWN;
  int rc;
  cells_integer(&call.arguments, (uint64_t)c->from);
  cells_integer(&call.arguments, (uint64_t)c->to);
  cells_integer(&call.arguments, ENTRIES_MOST);
  cells_integer(&call.arguments, down || !all);
  rc = call.arguments.bad ? SQLITE_NOMEM : ask(c, &call);
  cells_clear(&call.arguments);
  if (rc != SQLITE_OK) return rc;
  c->over = c->over || !all || c->n_rows < ENTRIES_MOST;
  if (c->over) return SQLITE_OK;
  const struct cell *first = &c->answer.cells.at[0];
  const struct cell *last = first + (c->n_rows - 1) * c->answer.n_columns;
  if (down)
    c->to = first->number - 1;
  else
    c->from = last->number + 1;
  c->over = c->from > c->to || c->to == 0;
  return SQLITE_OK;
}

/* A bound of any type as one that holds at least as much: what is no number is
   none. */
static int64_t bound(sqlite3_value *value, bool lower)
{
  int64_t least = 0, most = INT64_MAX, number;
  int type = sqlite3_value_type(value);
  if (type != SQLITE_INTEGER && type != SQLITE_FLOAT)
    return lower ? least : most;
  number = sqlite3_value_int64(value); /* a float is cut off towards zero */
  if (type == SQLITE_FLOAT && !lower && number < most) number++;
  return number < least ? least : number;
}

static int cursor_filter(sqlite3_vtab_cursor *cursor, int number,
                         const char *string, int argc, sqlite3_value **argv)
{
  struct cursor *c = (struct cursor *)cursor;
  struct vtab *v = (struct vtab *)cursor->pVtab;
  const char *schema = "main";
  int n = 0;
  (void)string;
  (void)argc;
  cursor_clear(c);
  sqlite3_free(c->schema);
  c->schema = NULL;
  c->plan = number;
  c->over = true;
  c->from = 0;
  c->to = INT64_MAX;
  if (number & BY_SCHEMA) schema = (const char *)sqlite3_value_text(argv[n++]);
  if (schema == NULL) return SQLITE_OK;
  if ((c->schema = sqlite3_mprintf("%s", schema)) == NULL) return SQLITE_NOMEM;
  if (number & BY_INDEX) {
    c->from = bound(argv[n], true);
    c->to = bound(argv[n++], false);
  }
  if (number & FROM_INDEX) {
    int64_t from = bound(argv[n++], true);
    if (from > c->from) c->from = from;
  }
  if (number & TO_INDEX) {
    int64_t to = bound(argv[n++], false);
    if (to < c->to) c->to = to;
  }
  struct call call = {.what = v->table->call};
  return call.what == CALL_LOG ? ask_for_entries(c) : ask(c, &call);
}

static int cursor_next(sqlite3_vtab_cursor *cursor)
{
  struct cursor *c = (struct cursor *)cursor;
  int rc = SQLITE_OK;
  c->row++;
  while (rc == SQLITE_OK && c->row >= c->n_rows && !c->over)
    rc = ask_for_entries(c);
  return rc;
}

static int cursor_eof(sqlite3_vtab_cursor *cursor)
{
  const struct cursor *c = (struct cursor *)cursor;
  return c->row >= c->n_rows;
}

/* In the answer, which goes up. */
static size_t row_of(const struct cursor *c)
{
  return c->plan & DOWN ? c->n_rows - 1 - c->row : c->row;
}

static int cursor_column(sqlite3_vtab_cursor *cursor, sqlite3_context *ctx,
                         int i)
{
  const struct cursor *c = (struct cursor *)cursor;
  const struct answer *answer = &c->answer;
  if (i >= (int)answer->n_columns)
    sqlite3_result_text(ctx, c->schema, -1, SQLITE_TRANSIENT);
  else
    sql_result(ctx,
               &answer->cells.at[row_of(c) * answer->n_columns + (unsigned)i]);
  return SQLITE_OK;
}

static int cursor_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *out)
{
  const struct cursor *c = (struct cursor *)cursor;
  *out = (sqlite3_int64)c->row;
  if (((struct vtab *)cursor->pVtab)->table->call == CALL_LOG)
    *out = c->answer.cells.at[row_of(c) * c->answer.n_columns].number;
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
