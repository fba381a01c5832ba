/*
** interrupt.c: whether sqlite3_interrupt() was called on a connection.
**
** A call of the VFS that waits must end then. SQLite 3.40 has no function that
** tells (3.41 brought one). A statement that is prepared or stepped for the
** purpose would tell, but not here: it sets back how often the busy handler was
** called, so that a busy timeout would never be over, and an interrupt would be
** forgotten if no other statement runs.
**
** So the flag is read where it is: a word in the connection's memory. Where that
** is is not assumed but found out, when the library is loaded, with a connection
** made for this: the one word of it that becomes 1 by sqlite3_interrupt(), and 0
** again by the next statement that is prepared. If it is not exactly one, nobody
** is asked, and a wait lasts until its own bound.
*/
#include "vfs.h"

SQLITE_EXTENSION_INIT3

static _Atomic size_t flag; /* which word of a connection; 0: not known */

static int word(sqlite3 *db, size_t i)
{
  return __atomic_load_n((int *)(void *)db + i, __ATOMIC_RELAXED);
}

/* The word that became 1; 0: none, or more changed than that. */
static size_t find(sqlite3 *db)
{
  size_t n = (size_t)sqlite3_msize(db) / sizeof(int), found = 0, changed = 0;
  int *before = malloc(n * sizeof(int));
  if (before == NULL) return 0;
  for (size_t i = 0; i < n; i++)
    before[i] = word(db, i);
  sqlite3_interrupt(db);
  for (size_t i = 0; i < n; i++) {
    if (word(db, i) == before[i]) continue;
    changed++;
    if (before[i] == 0 && word(db, i) == 1) found = i;
  }
  free(before);
  return changed == 1 ? found : 0;
}

void interrupt_learn(void)
{
  static atomic_flag begun = ATOMIC_FLAG_INIT;
  sqlite3 *db = NULL;
  sqlite3_stmt *stmt = NULL;
  if (atomic_flag_test_and_set(&begun)) return;
  if (sqlite3_open_v2(":memory:", &db,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                          SQLITE_OPEN_PRIVATECACHE,
                      NULL) == SQLITE_OK) {
    size_t found = find(db);
    sqlite3_prepare_v2(db, "SELECT 1", -1, &stmt, NULL);
    if (found > 0 && word(db, found) == 0) flag = found;
    sqlite3_finalize(stmt);
  }
  sqlite3_close(db);
}

bool vfs_interrupted(void *connection)
{
  struct connection *c = connection;
  if (c->interrupted) return c->interrupted(c);
  return flag > 0 && c->db && *c->db && word(*c->db, flag) != 0;
}
