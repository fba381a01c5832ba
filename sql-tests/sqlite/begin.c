/*
** begin.c: SQLite's testfixture loads quorate by itself.
**
** SQLite calls the function that SQLITE_EXTRA_INIT names at the end of each
** sqlite3_initialize(): its test scripts shut it down and initialize it
** again, in other interpreters and other processes. The library is the one
** that is shipped, loaded as any program does it: it is given SQLite's
** functions by that, and what it is tested on is the SQLite that is linked
** with the testfixture.
**
** Without QUORATE_LIBRARY in the environment nothing is loaded.
*/
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

int quorate_begin(const char *unused);

int quorate_begin(const char *unused)
{
  const char *library = getenv("QUORATE_LIBRARY");
  sqlite3 *db = NULL;
  char *error = NULL;
  (void)unused;
  if (library == NULL) return SQLITE_OK;
  int rc = sqlite3_open(":memory:", &db);
  if (rc == SQLITE_OK)
    rc = sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_load_extension(db, library, "sqlite3_quorate_init", &error);
  sqlite3_close(db);
  /* A script may be trying out what happens without memory. */
  if (rc != SQLITE_OK)
    fprintf(stderr, "%s: not loaded: %s\n", library,
            error ? error : sqlite3_errstr(rc));
  sqlite3_free(error);
  return rc;
}
