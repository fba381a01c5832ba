/*
** What a node's directory may be like, and that nothing behind a link is
** opened or removed.
*/
#include "harness.h"

#include "cluster.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>

#define SOMEBODY 65534

/* DIR/d, with a log and two files. */
static struct path make(const char *dir)
{
  struct path d = path_of(dir, "d");
  assert_int_equal(mkdir(d.s, 0700), 0);
  assert_int_equal(mkdir(path_of(d.s, "/log").s, 0700), 0);
  file_write(path_of(d.s, "/node").s, "x", 1);
  file_write(path_of(d.s, "/log/1.seg").s, "x", 1);
  return d;
}

static void assert_check(const struct path *d, int rc, const char *says)
{
  struct text error;
  assert_int_equal(directory_check(d->s, &error), rc);
  assert_non_null(strstr(error.s, says));
}

static void test_good(void **state)
{
  struct path d = make(*state);
  assert_check(&d, 0, "");
  assert_int_equal(chmod(d.s, 0755), 0);
  assert_check(&d, 0, "");
  /* What is not a node's is not looked into. */
  assert_int_equal(mkdir(path_of(d.s, "/lost+found").s, 0777), 0);
  assert_int_equal(chmod(path_of(d.s, "/lost+found").s, 0777), 0);
  assert_check(&d, 0, "");
}

static void test_modes(void **state)
{
  struct path d = make(*state), log = path_of(d.s, "/log");
  for (unsigned mode = 0; mode < 0100; mode++) {
    assert_int_equal(chmod(d.s, 0700 | mode), 0);
    assert_check(&d, mode & 022 ? -EINVAL : 0, mode & 022 ? "chmod go-w" : "");
  }
  assert_int_equal(chmod(d.s, 0700), 0);
  assert_int_equal(chmod(log.s, 0720), 0);
  assert_check(&d, -EINVAL, "/log: others than its owner may write");
}

static void test_owner(void **state)
{
  struct path d = make(*state);
  if (geteuid() != 0) return; /* only root can give it away */
  assert_int_equal(chown(d.s, SOMEBODY, SOMEBODY), 0);
  assert_check(&d, -EPERM, "another user's");
  assert_int_equal(chown(d.s, 0, 0), 0);
  assert_int_equal(chown(path_of(d.s, "/log").s, SOMEBODY, SOMEBODY), 0);
  assert_check(&d, -EPERM, "another user's");
}

/* Whatever is none of its files, under each name that is opened. */
static void test_kinds(void **state)
{
  static const char *const names[] = {"/node", "/sock", "/log/1.seg", "/other"};
  struct path d = make(*state);
  for (unsigned i = 0; i < 4; i++) {
    struct path at = path_of(d.s, names[i]);
    unlink(at.s);
    assert_int_equal(mkfifo(at.s, 0600), 0);
    assert_check(&d, -EINVAL, "not a regular file");
    assert_int_equal(unlink(at.s), 0);
    assert_int_equal(symlink("/etc/passwd", at.s), 0);
    assert_check(&d, -EINVAL, names[i]);
    assert_int_equal(unlink(at.s), 0);
    assert_check(&d, 0, "");
  }
  int fd = -1;
  assert_int_equal(session_listen(d.s, &fd), 0);
  assert_check(&d, 0, "");
  struct path sock = path_of(d.s, "/sock"), node = path_of(d.s, "/node");
  assert_int_equal(rename(sock.s, node.s), 0);
  assert_check(&d, -EINVAL, "/node: not a regular file");
  close(fd);
}

static void test_itself(void **state)
{
  struct path d = make(*state), link = path_of(*state, "link");
  assert_int_equal(symlink(d.s, link.s), 0);
  assert_check(&link, -EINVAL, "a symbolic link");
  struct path node = path_of(d.s, "/node"), none = path_of(*state, "none");
  assert_check(&node, -ENOTDIR, "not a directory");
  assert_check(&none, -ENOENT, "no such file or directory");
}

static void test_open(void **state)
{
  struct path d = make(*state), link = path_of(*state, "link"),
              fifo = path_of(*state, "fifo"), node = path_of(d.s, "/node");
  uint8_t *data;
  size_t len;
  assert_int_equal(symlink(node.s, link.s), 0);
  assert_int_equal(mkfifo(fifo.s, 0600), 0);
  assert_int_equal(io_read_file(&io_posix, node.s, 9, &data, &len), 0);
  free(data);
  assert_int_equal(io_read_file(&io_posix, link.s, 9, &data, &len), -ELOOP);
  /* An end of it that waits for the other one would wait for ever. */
  alarm(20);
  assert_int_equal(io_read_file(&io_posix, fifo.s, 9, &data, &len), -EINVAL);
  assert_true(io_posix.open(NULL, fifo.s, O_WRONLY) < 0);
  assert_true(io_posix.open(NULL, link.s, O_RDWR | O_CREAT) < 0);
  alarm(0);
}

static void test_remove(void **state)
{
  struct path d = make(*state), link = path_of(*state, "link"),
              kept = path_of(*state, "kept");
  struct stat st;
  assert_int_equal(mkdir(kept.s, 0700), 0);
  file_write(path_of(kept.s, "/file").s, "x", 1);
  assert_int_equal(symlink(kept.s, link.s), 0);
  cluster_remove_directory(link.s);
  assert_int_equal(stat(path_of(kept.s, "/file").s, &st), 0);
  assert_int_equal(lstat(link.s, &st), 0);
  /* Nor what a link in it leads to. */
  assert_int_equal(symlink(kept.s, path_of(d.s, "/incoming").s), 0);
  cluster_remove_directory(d.s);
  assert_int_equal(lstat(d.s, &st), -1);
  assert_int_equal(stat(path_of(kept.s, "/file").s, &st), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, dir_make, dir_clear)
  const struct CMUnitTest tests[] = {
      TEST(test_good),   TEST(test_modes), TEST(test_owner), TEST(test_kinds),
      TEST(test_itself), TEST(test_open),  TEST(test_remove)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
