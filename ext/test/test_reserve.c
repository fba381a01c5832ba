/*
** The room that a node keeps for a checkpoint file on a full disk: it is kept
** again by the checkpoint that made room, not by the one after it.
*/
#include "nodes.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic bool grows; /* what is checkpointed next makes room */
static _Atomic bool room;
static _Atomic unsigned refused;

static bool is_of(int fd, const char *end)
{
  char link[64], path[1024];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof(path) - 1);
  size_t len = strlen(end);
  if (n < (ssize_t)len) return false;
  path[n] = '\0';
  return strcmp(path + n - len, end) == 0;
}

/* In the place of the C library's. */
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
  if (!room && is_of(fd, "/reserve")) {
    refused++;
    errno = ENOSPC;
    return -1;
  }
  if (grows && is_of(fd, "/n1.db")) room = true;
  return syscall(SYS_pwrite64, fd, data, n, offset);
}

static void test_kept_again(void **state)
{
  struct nodes nodes;
  nodes_load();
  nodes_make(&nodes, *state, 1, 500);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(a)"));
  nodes_do(nodes.db[1], sqlite3_mprintf("SELECT quorate_checkpoint()"));
  struct path reserve = nodes_path(&nodes, 1);
  strncat(reserve.s, "-quorate/reserve",
          sizeof(reserve.s) - strlen(reserve.s) - 1);
  assert_int_not_equal(refused, 0);
  assert_int_not_equal(access(reserve.s, F_OK), 0);
  grows = true;
  nodes_do(nodes.db[1], sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  nodes_do(nodes.db[1], sqlite3_mprintf("SELECT quorate_checkpoint()"));
  assert_true(room);
  assert_int_equal(access(reserve.s, F_OK), 0);
  assert_true(nodes_stop(&nodes, 1));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_kept_again, dir_make, dir_clear),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
