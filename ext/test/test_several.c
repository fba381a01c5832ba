/*
** A commit over several databases, each of a node of its own, that SQLite gives
** up between its phases: what was handed over of the first one has its fate all
** the same, and nobody asks for it.
*/
#include "nodes.h"

static void make(sqlite3 *db, const char *path)
{
  nodes_do(db, sqlite3_mprintf("SELECT quorate_bootstrap(%Q, 'listen',"
                               " '127.0.0.1:%u')",
                               path, free_port()));
}

static sqlite3 *open_both(const char *first, const char *second)
{
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(first, &db), SQLITE_OK);
  sqlite3_busy_timeout(db, PATIENCE_MS);
  nodes_do(db, sqlite3_mprintf("ATTACH %Q AS b", second));
  return db;
}

/* Both are written to, and the second may not write any more at the commit. */
static void give_up(sqlite3 *db, int value)
{
  char *error = NULL;
  nodes_do(db, sqlite3_mprintf("BEGIN"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO main.t VALUES(%d)", value));
  nodes_do(db, sqlite3_mprintf("INSERT INTO b.t VALUES(%d)", value));
  wal_revoke(vfs_connection(db, "b")->node->wal);
  assert_null(nodes_ask(db, sqlite3_mprintf("COMMIT"), &error));
  assert_non_null(error);
  free(error);
  assert_true(sqlite3_get_autocommit(db));
  assert_non_null(vfs_connection(db, "main")->tx);
}

static void check(const char *path, int64_t sum)
{
  struct text answer;
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  until(nodes_number(db, sqlite3_mprintf("SELECT sum(v) FROM t")) == sum);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  assert_int_equal(registry_stop(path, true, &answer), SQLITE_OK);
}

static void test_given_up(void **state)
{
  struct path first = path_of(*state, "first.db"),
              second = path_of(*state, "second.db");
  sqlite3 *db = NULL;
  sqlite3_open(":memory:", &db);
  make(db, first.s);
  make(db, second.s);
  sqlite3_close(db);
  db = open_both(first.s, second.s);
  nodes_do(db, sqlite3_mprintf("CREATE TABLE main.t(v)"));
  nodes_do(db, sqlite3_mprintf("CREATE TABLE b.t(v)"));
  give_up(db, 1); /* and goes on */
  nodes_do(db, sqlite3_mprintf("INSERT INTO main.t VALUES(10)"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO b.t VALUES(100)"));
  give_up(db, 1000); /* and ends */
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  check(first.s, 1011);
  check(second.s, 100);
}

/* With a super-journal SQLite ignores what the second phase says: a COMMIT would
   be a success whose transaction is rejected. */
static void test_super_journal(void **state)
{
  struct path plain = path_of(*state, "plain.db"),
              other = path_of(*state, "other.db"),
              first = path_of(*state, "first.db");
  static const char *const schemas[] = {"main", "other", "b"};
  sqlite3 *db = NULL;
  char *error = NULL;
  sqlite3_open(":memory:", &db);
  make(db, first.s);
  sqlite3_close(db);
  db = open_both(plain.s, first.s);
  nodes_do(db, sqlite3_mprintf("ATTACH %Q AS other", other.s));
  for (int i = 0; i < 3; i++)
    nodes_do(db, sqlite3_mprintf("CREATE TABLE %s.t(v)", schemas[i]));
  for (int wal = 0; wal < 2; wal++) {
    nodes_do(db, sqlite3_mprintf("BEGIN"));
    for (int i = 0; i < 3; i++)
      nodes_do(db, sqlite3_mprintf("INSERT INTO %s.t VALUES(1)", schemas[i]));
    free(nodes_ask(db, sqlite3_mprintf("COMMIT"), &error));
    assert_int_equal(error != NULL, wal == 0);
    if (wal == 0) {
      assert_non_null(
          strstr(vfs_connection(db, "b")->reason.s, "rollback journal"));
      /* Nothing is left of it, for other commits to be refused. */
      nodes_do(db, sqlite3_mprintf("INSERT INTO b.t VALUES(10)"));
    }
    free(error);
    for (int i = 0; i < 3; i++)
      assert_int_equal(
          nodes_number(
              db, sqlite3_mprintf("SELECT total(v) FROM %s.t", schemas[i])),
          wal + (i == 2 ? 10 : 0));
    nodes_do(db, sqlite3_mprintf("PRAGMA main.journal_mode=WAL"));
  }
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  check(first.s, 11);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_given_up, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_super_journal, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
