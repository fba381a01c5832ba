/*
** sql.h: the SQL functions (sql.c) and tables (tables.c).
*/
#ifndef EXT_SQL_H
#define EXT_SQL_H

#include <sqlite3ext.h>

#ifndef QUORATE_VARIANT /* of a build that never ships: see the Makefile */
#define QUORATE_VARIANT ""
#endif
#define QUORATE_VERSION "0.1.0" QUORATE_VARIANT

/* The entry point: quorate.c. */
int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const sqlite3_api_routines *api);
/* Registers everything on one connection. */
int sql_register(sqlite3 *db);
/* The same, as sqlite3_auto_extension wants it. */
int sql_auto(sqlite3 *db, char **error, const sqlite3_api_routines *api);

/* What a cell of an answer is in SQL. */
struct cell;
void sql_result(sqlite3_context *ctx, const struct cell *cell);

/* tables.c */
int tables_register(sqlite3 *db);

#endif
