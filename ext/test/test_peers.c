/*
** The file DIR/peers: the other voters' addresses, or nothing at all when one
** byte of it is not as it was written.
*/
#include "harness.h"

#include "cluster.h"

static struct raft_configuration sample(void)
{
  static const char *const at[] = {"127.0.0.1:7001", "host.example:7002",
                                   "[::1]:7003", "10.0.0.4:7004"};
  struct raft_configuration c = {.n = 4};
  for (unsigned i = 0; i < c.n; i++) {
    c.members[i].id = i + 1;
    c.members[i].role = RAFT_VOTER;
    snprintf(c.members[i].address, RAFT_ADDRESS_MAX, "%s", at[i]);
  }
  return c;
}

static void test_round_trip(void **state)
{
  struct raft_configuration c = sample();
  struct peers peers = {0};
  /* A learner leads nowhere; one that leaves may still have to agree. */
  c.members[2].role = RAFT_LEARNER;
  c.members[3].role = RAFT_LEAVING;
  c.members[3].outgoing = true;
  assert_false(peers_read(*state, &peers));
  assert_int_equal(peers_write(&io_posix, *state, &c, 1), 0);
  assert_true(peers_read(*state, &peers));
  assert_int_equal(peers.n, 2);
  assert_string_equal(peers.at[0], "host.example:7002");
  assert_string_equal(peers.at[1], "10.0.0.4:7004");
  /* What is known already is not there twice. */
  assert_true(peers_read(*state, &peers));
  assert_int_equal(peers.n, 2);
}

static void test_nobody_else(void **state)
{
  struct raft_configuration c = sample();
  struct peers peers = {0};
  c.n = 1;
  assert_int_equal(peers_write(&io_posix, *state, &c, 1), 0);
  assert_true(peers_read(*state, &peers));
  assert_int_equal(peers.n, 0);
}

/* A file that says the same already is left alone. */
static void test_written_when_it_changes(void **state)
{
  struct raft_configuration c = sample();
  struct path path = path_of(*state, "peers");
  struct stat was, same, changed;
  assert_int_equal(peers_write(&io_posix, *state, &c, 1), 0);
  assert_int_equal(stat(path.s, &was), 0);
  assert_int_equal(peers_write(&io_posix, *state, &c, 1), 0);
  assert_int_equal(stat(path.s, &same), 0);
  assert_int_equal(was.st_ino, same.st_ino);
  assert_int_equal(peers_write(&io_posix, *state, &c, 2), 0);
  assert_int_equal(stat(path.s, &changed), 0);
  assert_int_not_equal(was.st_ino, changed.st_ino);
}

static void test_every_byte(void **state)
{
  struct raft_configuration c = sample();
  struct path path = path_of(*state, "peers");
  uint8_t *data;
  size_t len;
  assert_int_equal(peers_write(&io_posix, *state, &c, 1), 0);
  assert_int_equal(io_read_file(&io_posix, path.s, 4096, &data, &len), 0);
  for (size_t i = 0; i < len; i++) {
    struct peers peers = {0};
    data[i] ^= 1;
    file_write(path.s, data, len);
    assert_false(peers_read(*state, &peers));
    data[i] ^= 1;
    file_write(path.s, data, i);
    assert_false(peers_read(*state, &peers));
  }
  free(data);
}

static void test_too_many(void **state)
{
  struct peers peers = {0};
  char address[RAFT_ADDRESS_MAX];
  (void)state;
  for (unsigned i = 0; i < 2 * PEERS_MAX; i++) {
    snprintf(address, sizeof(address), "127.0.0.1:%u", 1000 + i);
    peers_add(&peers, address);
  }
  assert_int_equal(peers.n, PEERS_MAX);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(test_round_trip),
      IN_DIR(test_nobody_else),
      IN_DIR(test_written_when_it_changes),
      IN_DIR(test_every_byte),
      cmocka_unit_test(test_too_many),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
