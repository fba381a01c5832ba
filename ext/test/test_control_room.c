/*
** What the processes of a node share, on a disk without room: files that cannot
** grow.
*/
#include "harness.h"

#include "node.h"

#include <errno.h>

struct disk {
  struct io io;
  long left; /* bytes; what does not fit is not written */
};

static int disk_pwrite(void *ctx, int fd, const void *buf, size_t n,
                       uint64_t offset)
{
  struct disk *d = ctx;
  if (d->left < (long)n) return -ENOSPC;
  d->left -= (long)n;
  return io_posix.pwrite(NULL, fd, buf, n, offset);
}

static struct disk disk_of(long left)
{
  struct disk d = {.io = io_posix, .left = left};
  d.io.pwrite = disk_pwrite;
  return d;
}

/* A mapped page without room behind it would be a SIGBUS. */
static void test_no_room(void **state)
{
  struct disk d = disk_of((long)sizeof(struct control) - 4096);
  struct control_map *map = NULL;
  d.io.ctx = &d;
  assert_int_equal(control_open(&d.io, *state, true, &map), -ENOSPC);
  assert_null(map);
  d.left = 1 << 20;
  assert_int_equal(control_open(&d.io, *state, true, &map), 0);
  d.left = CONTROL_BLOCK * 4;
  assert_int_equal(control_set_pgno(map, 1, 71), 0);
  assert_int_equal(control_set_pgno(map, CONTROL_BLOCK, 72), 0);
  assert_int_equal(d.left, 0);
  d.left = 8192;
  assert_int_equal(control_set_pgno(map, CONTROL_BLOCK + 1, 73), -ENOSPC);
  assert_int_equal(control_pgno(map, CONTROL_BLOCK + 1), 0);
  assert_int_equal(control_pgno(map, CONTROL_BLOCK), 72);
  d.left = 1 << 20; /* there is room again */
  assert_int_equal(control_set_pgno(map, CONTROL_BLOCK + 1, 73), 0);
  assert_int_equal(control_pgno(map, CONTROL_BLOCK + 1), 73);
  assert_int_equal(control_pgno(map, 1), 71);
  control_close(map);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_no_room, dir_make, dir_remove),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
