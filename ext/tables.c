/*
** tables.c: the eponymous tables quorate_status, quorate_members and
** quorate_events. Each query takes its rows once, when it begins; the hidden
** column `schema` chooses the database (main unless said otherwise). A
** database that is not replicated has no rows.
*/
#include "sql.h"
#include "vfs.h"

#include <stdio.h>

SQLITE_EXTENSION_INIT3

enum table { TABLE_STATUS, TABLE_MEMBERS, TABLE_EVENTS };

static const char *const declarations[] = {
    "CREATE TABLE x(name TEXT, id TEXT, cluster TEXT, role TEXT, leader TEXT, "
    "term INTEGER, commit_index INTEGER, applied_index INTEGER, "
    "last_index INTEGER, checkpoint_index INTEGER, voters INTEGER, "
    "wal_frames INTEGER, wal_backfilled INTEGER, wal_pinned TEXT, "
    "log_first INTEGER, "
    "log_bytes INTEGER, "
    "serving INTEGER, writable INTEGER, reason TEXT, schema HIDDEN)",
    "CREATE TABLE x(name TEXT, id TEXT, address TEXT, role TEXT, state TEXT, "
    "match_index INTEGER, lag_entries INTEGER, last_contact_ms INTEGER, "
    "schema HIDDEN)",
    "CREATE TABLE x(time TEXT, event TEXT, schema HIDDEN)",
};
static const int schema_column[] = {19, 8, 2};

struct vtab {
  sqlite3_vtab base;
  sqlite3 *db;
  enum table table;
};

/* A value; text is malloc'd. */
struct cell {
  bool is_text, is_null;
  sqlite3_int64 number;
  char *text;
};

struct cursor {
  sqlite3_vtab_cursor base;
  struct cell *cells;
  unsigned n_rows, n_columns, row, cap;
  bool bad; /* no memory */
};

/* ---- rows -------------------------------------------------------------- */

static struct cell *next_cell(struct cursor *c)
{
  static struct cell lost;
  if (c->n_columns == c->cap) {
    unsigned cap = c->cap ? c->cap * 2 : 64;
    struct cell *grown = realloc(c->cells, cap * sizeof(*grown));
    if (grown == NULL) {
      c->bad = true;
      return &lost;
    }
    c->cells = grown;
    c->cap = cap;
  }
  struct cell *cell = &c->cells[c->n_columns++];
  memset(cell, 0, sizeof(*cell));
  return cell;
}

static void put_text(struct cursor *c, const char *text)
{
  char *copy = text ? strdup(text) : NULL;
  struct cell *cell = next_cell(c);
  if (c->bad) {
    free(copy);
    return;
  }
  cell->is_text = copy != NULL;
  cell->is_null = copy == NULL;
  cell->text = copy;
}

static void put_number(struct cursor *c, uint64_t number)
{
  next_cell(c)->number = (sqlite3_int64)number;
}

static void put_null(struct cursor *c)
{
  next_cell(c)->is_null = true;
}

static void put_id(struct cursor *c, uint64_t id)
{
  char hex[20];
  snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)id);
  put_text(c, hex);
}

static void status_row(struct cursor *c, const struct connection *connection)
{
  struct node *node = connection->node;
  struct wal_pinner pinned = {""};
  struct store_stats stats = {0};
  char leader[RAFT_NAME_MAX] = "";
  uint32_t frames = 0, backfill = 0;
  pthread_mutex_lock(&node->mutex);
  struct node_view view = node->view;
  raft_index applied = node->applied;
  struct text reason = node->reason;
  bool writable = writer_refusal(node) == NULL;
  const struct raft_member *m = node_member(node, view.leader);
  if (m) memcpy(leader, m->name, sizeof(leader));
  if (node->store) store_stats(node->store, &stats);
  pthread_mutex_unlock(&node->mutex);
  if (node->wal) {
    frames = wal_frames(node->wal, &backfill);
    pinned = wal_pinner(node->wal, connection->reader.slot);
  }
  put_text(c, node->identity.name);
  put_id(c, node->identity.id);
  put_id(c, node->identity.cluster);
  put_text(c, node_role_name(node));
  put_text(c, leader[0] ? leader : NULL);
  put_number(c, view.term);
  put_number(c, view.commit);
  put_number(c, applied);
  put_number(c, view.last);
  put_number(c, atomic_load(&node->shown_checkpoint));
  put_number(c, view.voters);
  put_number(c, frames);
  put_number(c, backfill);
  put_text(c, pinned.s[0] ? pinned.s : NULL);
  put_number(c, stats.first);
  put_number(c, stats.bytes);
  put_number(c, atomic_load(&node->shared->serving));
  put_number(c, writable);
  put_text(c, reason.s[0] ? reason.s : NULL);
}

static const char *member_role(uint8_t role)
{
  if (role == RAFT_LEARNER) return "learner";
  return role == RAFT_LEAVING ? "leaving" : "voter";
}

static void member_rows(struct cursor *c, struct node *node)
{
  struct member_row *rows = NULL;
  unsigned n = 0;
  if (cluster_members(node, &rows, &n) != 0) c->bad = true;
  for (unsigned i = 0; i < n; i++) {
    const struct member_row *r = &rows[i];
    put_text(c, r->name);
    put_id(c, r->id);
    put_text(c, r->address);
    put_text(c, member_role(r->role));
    put_text(c, r->state);
    if (r->known) {
      put_number(c, r->match);
      put_number(c, r->lag_entries);
    } else {
      put_null(c);
      put_null(c);
    }
    if (r->contact_ms >= 0)
      put_number(c, (uint64_t)r->contact_ms);
    else
      put_null(c);
  }
  free(rows);
}

static void event_rows(struct cursor *c, struct events *events)
{
  pthread_mutex_lock(&events->mutex);
  uint64_t first = events->n > EVENTS_MAX ? events->n - EVENTS_MAX : 0;
  for (uint64_t i = first; i < events->n; i++) {
    const struct event *e = &events->ring[i % EVENTS_MAX];
    char time[40];
    time_t seconds = (time_t)(e->time_ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    size_t n = strftime(time, sizeof(time), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(time + n, sizeof(time) - n, ".%03d", (int)(e->time_ms % 1000));
    put_text(c, time);
    put_text(c, e->text);
  }
  pthread_mutex_unlock(&events->mutex);
}

/* ---- the module -------------------------------------------------------- */

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
  v->table = (enum table)((const char *const *)aux - declarations);
  int rc = sqlite3_declare_vtab(db, declarations[v->table]);
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
  info->estimatedCost = 100;
  for (int i = 0; i < info->nConstraint; i++) {
    if (info->aConstraint[i].iColumn != schema_column[v->table]) continue;
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
  for (unsigned i = 0; i < c->n_columns; i++)
    free(c->cells[i].text);
  free(c->cells);
  c->cells = NULL;
  c->n_columns = c->n_rows = c->row = c->cap = 0;
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
  const char *schema = "main";
  (void)string;
  cursor_clear(c);
  if (number == 1 && argc > 0)
    schema = (const char *)sqlite3_value_text(argv[0]);
  struct connection *connection = schema ? vfs_connection(v->db, schema) : 0;
  if (connection == NULL) return SQLITE_OK;
  switch (v->table) {
  case TABLE_STATUS: status_row(c, connection); break;
  case TABLE_MEMBERS: member_rows(c, connection->node); break;
  case TABLE_EVENTS: event_rows(c, &connection->node->events); break;
  }
  c->n_rows = c->n_columns / (unsigned)schema_column[v->table];
  return c->bad ? SQLITE_NOMEM : SQLITE_OK;
}

static int cursor_next(sqlite3_vtab_cursor *cursor)
{
  ((struct cursor *)cursor)->row++;
  return SQLITE_OK;
}

static int cursor_eof(sqlite3_vtab_cursor *cursor)
{
  struct cursor *c = (struct cursor *)cursor;
  return c->row >= c->n_rows;
}

static int cursor_column(sqlite3_vtab_cursor *cursor, sqlite3_context *ctx,
                         int i)
{
  struct cursor *c = (struct cursor *)cursor;
  struct vtab *v = (struct vtab *)cursor->pVtab;
  unsigned width = (unsigned)schema_column[v->table];
  if (i >= (int)width) return SQLITE_OK; /* the schema */
  const struct cell *cell = &c->cells[c->row * width + (unsigned)i];
  if (cell->is_text)
    sqlite3_result_text(ctx, cell->text, -1, SQLITE_TRANSIENT);
  else if (!cell->is_null)
    sqlite3_result_int64(ctx, cell->number);
  return SQLITE_OK;
}

static int cursor_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *out)
{
  *out = ((struct cursor *)cursor)->row;
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
  static const char *const names[] = {"quorate_status", "quorate_members",
                                      "quorate_events"};
  int rc = SQLITE_OK;
  for (int i = 0; rc == SQLITE_OK && i < 3; i++)
    rc = sqlite3_create_module_v2(db, names[i], &module,
                                  (void *)(size_t)&declarations[i], NULL);
  return rc;
}
