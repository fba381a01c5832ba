/*
** preload.c: LD_PRELOAD=.../quorate.so for programs that load no extensions.
**
** Of a program that is linked with SQLite's shared library, directly or by a
** module that it loads, the calls that open a database come here first. The
** first one has the extension registered, as loading it would, and then all of
** them go on to SQLite, where the VFS "quorate" is the default by then. It is
** done that late, and not when the library is loaded, because a program may
** still want to configure SQLite, and because most programs that inherit the
** variable never open a database.
**
** SQLite hands its routines only to who is called while it opens a database: an
** "auto extension", which is given one in memory.
**
** Linked into quorate.so only: in a program that is linked with SQLite these
** names are SQLite's.
*/
#include "sql.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

SQLITE_EXTENSION_INIT3

#define VISIBLE __attribute__((visibility("default")))

/* They are defined here; sqlite3ext.h has made macros of them. */
#undef sqlite3_open
#undef sqlite3_open16
#undef sqlite3_open_v2

VISIBLE int sqlite3_open(const char *name, sqlite3 **db);
VISIBLE int sqlite3_open16(const void *name, sqlite3 **db);
VISIBLE int sqlite3_open_v2(const char *name, sqlite3 **db, int flags,
                            const char *vfs);

static struct {
  int (*open)(const char *, sqlite3 **);
  int (*open16)(const void *, sqlite3 **);
  int (*open_v2)(const char *, sqlite3 **, int, const char *);
  int (*close)(sqlite3 *);
  int (*auto_extension)(void (*)(void));
  int (*cancel_auto_extension)(void (*)(void));
} real;

/* SQLite's own function. A module that brings SQLite into the program does not
   make it visible to all: then it is found by its name. */
static void find(void **library, const char *name, void *function)
{
  void *found = dlsym(RTLD_NEXT, name);
  if (found == NULL && *library == NULL)
    *library = dlopen("libsqlite3.so.0", RTLD_LAZY | RTLD_NOLOAD);
  if (found == NULL && *library) found = dlsym(*library, name);
  *(void **)function = found;
}

static int begin(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
  int rc = sqlite3_quorate_init(db, error, api);
  return rc == SQLITE_OK_LOAD_PERMANENTLY ? SQLITE_OK : rc;
}

static void activate(void)
{
  sqlite3 *db = NULL;
  void *library = NULL;
  find(&library, "sqlite3_open", &real.open);
  find(&library, "sqlite3_open16", &real.open16);
  find(&library, "sqlite3_open_v2", &real.open_v2);
  find(&library, "sqlite3_close", &real.close);
  find(&library, "sqlite3_auto_extension", &real.auto_extension);
  find(&library, "sqlite3_cancel_auto_extension", &real.cancel_auto_extension);
  if (sqlite3_api) return; /* loaded as an extension, by another SQLite */
  if (!real.open_v2 || !real.close || !real.auto_extension ||
      !real.cancel_auto_extension ||
      real.auto_extension((void (*)(void))begin) != SQLITE_OK)
    return;
  if (real.open_v2(":memory:", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                   NULL) != SQLITE_OK &&
      sqlite3_api)
    sqlite3_log(SQLITE_ERROR, "quorate: not active: %s", sqlite3_errmsg(db));
  real.close(db);
  real.cancel_auto_extension((void (*)(void))begin);
}

/* What activate() itself opens comes here, too: SQLite's own routines are found
   by name like everybody's. */
static void enter(void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  static _Thread_local bool within;
  if (within) return;
  within = true;
  pthread_once(&once, activate);
  within = false;
}

int sqlite3_open(const char *name, sqlite3 **db)
{
  enter();
  if (real.open) return real.open(name, db);
  *db = NULL;
  return SQLITE_MISUSE;
}

int sqlite3_open16(const void *name, sqlite3 **db)
{
  enter();
  if (real.open16) return real.open16(name, db);
  *db = NULL;
  return SQLITE_MISUSE;
}

int sqlite3_open_v2(const char *name, sqlite3 **db, int flags, const char *vfs)
{
  enter();
  if (real.open_v2) return real.open_v2(name, db, flags, vfs);
  *db = NULL;
  return SQLITE_MISUSE;
}
