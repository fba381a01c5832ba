/*
** What readers are shown: while a node is about to start, and where there is no
** memory for what tells of which pages frames are.
*/
#include "nodes.h"

#include "store.h"

/* A snapshot that was taken, whose pages wait beside the database: the files
   are of an earlier state until these are put on them. Of a reader that pins
   that state a checkpoint would take its index for that of the file, and one
   that waits for what was committed would find it there. */
static void test_pages_that_wait_are_in_no_state(void **state)
{
  struct nodes nodes;
  struct store_checkpoint cp;
  struct control_view view;
  struct node *node;
  struct text error = {""};
  raft_index confirmed;
  char *line = NULL, dir[PATH_BYTES + 16];
  nodes_make(&nodes, *state, 1, 300);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(id INTEGER)"));
  nodes_stop(&nodes, 1);
  struct path path = nodes_path(&nodes, 1);
  snprintf(dir, sizeof(dir), "%s-quorate", path.s);
  for (int waits = 0; waits < 2; waits++) {
    assert_int_equal(store_checkpoint_read(&io_posix, dir, &cp, &line), 0);
    assert_true(cp.index > 0);
    cp.from_snapshot = cp.incoming = waits;
    assert_int_equal(store_checkpoint_write(&io_posix, dir, &cp, &line), 0);
    int rc = node_open_files(path.s, &node, &confirmed, &error);
    if (rc) fail_msg("%s", error.s);
    control_look(node->map, &view);
    assert_int_equal(view.confirmed_index, waits ? 0 : cp.index);
    node_free(node);
    store_checkpoint_clear(&cp);
  }
}

/* A connection that cannot see of which page a frame is must not read that page
   from the file, as it was once: it would write on it. */
static void test_frames_unseen(void **state)
{
  struct nodes nodes;
  char *error;
  nodes_make(&nodes, *state, 1, 300);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(id INTEGER)"));
  nodes_do(nodes.db[1], sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  struct control_map *map = nodes_node(&nodes, 1)->map;
  sqlite3 *db = nodes_connect(&nodes, 1);
  int fd = map->frames_fd;
  _Atomic uint32_t *block = atomic_exchange(&map->blocks[0], NULL);
  map->frames_fd = -1;
  char *answer =
      nodes_ask(db, sqlite3_mprintf("SELECT count(*) FROM t"), &error);
  int code = sqlite3_extended_errcode(db);
  map->frames_fd = fd;
  atomic_store(&map->blocks[0], block);
  assert_null(answer);
  free(error);
  assert_int_equal(code, SQLITE_NOMEM);
  assert_int_equal(nodes_number(db, sqlite3_mprintf("SELECT count(*) FROM t")),
                   1);
  sqlite3_close(db);
  nodes_stop(&nodes, 1);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_pages_that_wait_are_in_no_state,
                                      dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_frames_unseen, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
