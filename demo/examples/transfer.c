/*
** transfer.c: moves money between accounts in a database that programs on other
** machines write, too; and what to do when a COMMIT does not say yes.
**
**     ./transfer LIBRARY FILE ID FROM TO AMOUNT
*/
#include <sqlite3.h>
#include <stdio.h>
#include <time.h>

static sqlite3 *db;
static char **words; /* ID FROM TO AMOUNT */

/* A statement, with those as its parameters; *value: of its row, if any. */
static int run(const char *sql, int *value)
{
  sqlite3_stmt *stmt;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (rc != SQLITE_OK) return rc;
  for (int i = 1; i <= sqlite3_bind_parameter_count(stmt); i++)
    sqlite3_bind_text(stmt, i, words[i - 1], -1, SQLITE_STATIC);
  while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
    if (value) *value = sqlite3_column_int(stmt, 0);
  sqlite3_finalize(stmt);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* It leaves its ID behind: it can be looked up, and not be made twice. */
static int transfer(void)
{
  static const char *const steps[] = {
      "BEGIN IMMEDIATE", "INSERT INTO transfer VALUES(?1)",
      "UPDATE account SET v = v - ?4 WHERE name = ?2",
      "UPDATE account SET v = v + ?4 WHERE name = ?3", "COMMIT"};
  int rc = SQLITE_OK;
  for (int i = 0; i < 5 && rc == SQLITE_OK; i++)
    rc = run(steps[i], NULL);
  if (rc != SQLITE_OK) {
    fprintf(stderr, "%s (%d)\n", sqlite3_errmsg(db),
            sqlite3_extended_errcode(db));
    if (!sqlite3_get_autocommit(db)) run("ROLLBACK", NULL);
  }
  return rc;
}

/* SQLITE_BUSY: nothing was written. SQLITE_CONSTRAINT: the ID is there, or about
   to be. SQLITE_IOERR_COMMIT_ATOMIC: its leader was lost, and it with it.
   SQLITE_IOERR_ROLLBACK_ATOMIC: no quorum in time could tell what became of it.
   A read sees all that was acknowledged before, and tells what is to be done. */
static int transfer_once(void)
{
  time_t end = time(NULL) + 60;
  int rc = SQLITE_OK;
  do {
    int there = 0;
    rc = run("SELECT count(*) FROM transfer WHERE id = ?1", &there);
    if (there) return SQLITE_OK;
    if (rc == SQLITE_OK) rc = transfer();
  } while (time(NULL) < end && (rc == SQLITE_OK || rc == SQLITE_BUSY ||
                                rc == SQLITE_IOERR || rc == SQLITE_CONSTRAINT));
  return rc;
}

int main(int argc, char **argv)
{
  if (argc != 7) puts("transfer LIBRARY FILE ID FROM TO AMOUNT");
  if (argc != 7 || sqlite3_open(":memory:", &db) != SQLITE_OK) return 2;
  words = argv + 3;
  /* Once in a process, before the file is opened. */
  sqlite3_enable_load_extension(db, 1);
  int rc = sqlite3_load_extension(db, argv[1], NULL, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_close(db);
  if (rc == SQLITE_OK) rc = sqlite3_open(argv[2], &db);
  sqlite3_busy_timeout(db, 5000);
  if (rc == SQLITE_OK) rc = transfer_once();
  puts(rc == SQLITE_OK ? "done" : sqlite3_errmsg(db));
  sqlite3_close(db);
  return rc != SQLITE_OK;
}
