/*
** quorate.c: a loadable SQLite extension that keeps one database in agreement
** on several machines.
**
** COMPILING
**
**     make                          -> build/quorate.so
**
** LOADING
**
**     sqlite> .load ./quorate
**     sqlite> SELECT load_extension('./quorate');
**
** once per process, before the database is opened. The VFS "quorate" becomes
** the default; functions and tables appear in every connection. Loading again
** is harmless, and the library is never unloaded.
**
** USING
**
**     $ sqlite3                                      # node 1
**     sqlite> .load ./quorate
**     sqlite> SELECT quorate_bootstrap('n1/app.db', 'name', 'n1',
**        ...>                          'listen', '127.0.0.1:7001');
**     sqlite> .open n1/app.db
**     sqlite> CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
**     sqlite> INSERT INTO t(v) VALUES('hello');
**     sqlite> SELECT quorate_invite('n2');           -- prints a token
**
**     $ sqlite3                                      # node 2
**     sqlite> .load ./quorate
**     sqlite> SELECT quorate_join('n2/app.db', 'TOKEN',
**        ...>                     'listen', '127.0.0.1:7002');
**     sqlite> .open n2/app.db
**     sqlite> SELECT v FROM t;
**
** A node that does not open because a file of it is damaged:
**
**     sqlite> SELECT quorate_rebuild('n2/app.db');   -- from the others
**
** LIMITATIONS
**
** SQLite 3.33 or newer. Connections do not survive fork().
*/
#include "sql.h"
#include "vfs.h"

SQLITE_EXTENSION_INIT1

#define VISIBLE __attribute__((visibility("default")))

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

static int init(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
  SQLITE_EXTENSION_INIT2(api);
  if (sqlite3_libversion_number() < 3033000) {
    *error = sqlite3_mprintf("quorate: SQLite 3.33 or newer is needed");
    return SQLITE_ERROR;
  }
  int rc = sql_register(db);
  if (rc != SQLITE_OK) {
    *error =
        sqlite3_mprintf("quorate: cannot register: %s", sqlite3_errstr(rc));
    return rc;
  }
  interrupt_learn();
  pthread_mutex_lock(&loading);
  rc = sqlite3_auto_extension((void (*)(void))sql_auto);
  if (rc == SQLITE_OK) rc = vfs_register();
  if (rc != SQLITE_OK) sqlite3_cancel_auto_extension((void (*)(void))sql_auto);
  pthread_mutex_unlock(&loading);
  return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}

VISIBLE int sqlite3_extension_init(sqlite3 *db, char **error,
                                   const sqlite3_api_routines *api);

VISIBLE int sqlite3_quorate_init(sqlite3 *db, char **error,
                                 const sqlite3_api_routines *api)
{
  return init(db, error, api);
}

int sqlite3_extension_init(sqlite3 *db, char **error,
                           const sqlite3_api_routines *api)
{
  return init(db, error, api);
}
