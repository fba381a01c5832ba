/*
** load.h: the extension as a part of a fuzz target.
*/
#ifndef FUZZ_LOAD_H
#define FUZZ_LOAD_H

#include "fuzz.h"

#include <sqlite3.h>

struct sqlite3_api_routines;
int sqlite3_quorate_init(sqlite3 *db, char **error,
                         const struct sqlite3_api_routines *api);

/* That it wants to stay loaded counts as a failure there. */
static inline void load_quorate(void)
{
  void (*init)(void) = (void (*)(void))sqlite3_quorate_init;
  sqlite3 *db = NULL;
  if (sqlite3_vfs_find("quorate")) return;
  sqlite3_auto_extension(init);
  sqlite3_open(":memory:", &db);
  sqlite3_close(db);
  sqlite3_cancel_auto_extension(init);
  must(sqlite3_vfs_find("quorate"));
}

#endif
