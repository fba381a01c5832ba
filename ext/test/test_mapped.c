/*
** What is read through a mapping of the database file cannot be looked at again
** afterwards, as what xRead() copied can. While a connection writes on a head that
** is not confirmed, a checkpoint may change the pages under it, should that be
** rejected: then nothing is mapped.
*/
#include "nodes.h"

static bool is_mapped(struct connection *c)
{
  sqlite3_file *file = &c->base;
  void *page = NULL;
  int size = (int)c->page_size;
  assert_int_equal(file->pMethods->xFetch(file, size, size, &page), SQLITE_OK);
  if (page) file->pMethods->xUnfetch(file, size, page);
  return page != NULL;
}

static void test_head_is_not_mapped(void **state)
{
  struct nodes nodes;
  nodes_make(&nodes, *state, 1, 300);
  sqlite3 *db = nodes.db[1];
  nodes_do(db, sqlite3_mprintf("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  nodes_do(db, sqlite3_mprintf("SELECT quorate_checkpoint()"));
  nodes_do(db, sqlite3_mprintf("PRAGMA mmap_size = 1000000"));
  nodes_do(db, sqlite3_mprintf("SELECT count(*) FROM t"));
  struct connection *c = vfs_connection(db, "main");
  nodes_do(db, sqlite3_mprintf("BEGIN IMMEDIATE"));
  assert_true(c->writing);
  assert_true(is_mapped(c));
  c->ahead = true;
  assert_false(is_mapped(c));
  c->ahead = false;
  nodes_do(db, sqlite3_mprintf("ROLLBACK"));
  nodes_stop(&nodes, 1);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_head_is_not_mapped, dir_make,
                                      dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
