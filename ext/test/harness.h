/*
** harness.h: what the tests of ext/ share: a directory of their own, files as
** bytes, and a repeatable source of numbers.
*/
#ifndef TEST_HARNESS_H
#define TEST_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 256

struct path {
  char s[PATH_BYTES];
};

static inline struct path path_of(const char *dir, const char *name)
{
  struct path path;
  int n = snprintf(path.s, sizeof(path.s), "%s%s", dir, name);
  assert_in_range(n, 1, PATH_BYTES - 1);
  return path;
}

/* cmocka's setup and teardown of a test: *state is a directory, ends in /. */
static inline int dir_make(void **state)
{
  char *dir = strdup("/tmp/quorate-ext-XXXXXX/");
  if (dir == NULL) return -1;
  dir[strlen(dir) - 1] = 0;
  if (mkdtemp(dir) == NULL) return -1;
  dir[strlen(dir)] = '/';
  *state = dir;
  return 0;
}

static inline int dir_remove(void **state)
{
  static const char *const names[] = {
      "node",     "ca.pem",   "cert.pem", "key.pem",    "origin",
      "db",       "db-wal",   "db-shm",   "db-journal", "copy",
      "stock",    "copy-wal", "kept",     "stock-wal",  "stock-shm",
      "node.new", "peers",    "control",  "frames"};
  char *dir = *state;
  for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
    unlink(path_of(dir, names[i]).s);
  unlink(path_of(dir, "copy-shm").s);
  int rc = rmdir(dir); /* a file that nobody expected is an error, too */
  free(dir);
  return rc;
}

static inline int remove_one(const char *path, const struct stat *st, int type,
                             struct FTW *ftw)
{
  (void)st;
  (void)type;
  (void)ftw;
  return remove(path);
}

/* A teardown for where nodes have been: with everything that they have left. */
static inline int dir_clear(void **state)
{
  int rc = nftw(*state, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  free(*state);
  return rc;
}

/* splitmix64 */
static inline uint64_t random_next(uint64_t *state)
{
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* Of the loopback interface, below those that the kernel gives to others: it
   could be taken before the node listens, or while it is stopped. */
static inline unsigned free_port(void)
{
  static uint64_t seed;
  struct sockaddr_in in = {.sin_family = AF_INET,
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (seed == 0) seed = (uint64_t)getpid() * 7919;
  for (;;) {
    unsigned port = 12000 + (unsigned)(random_next(&seed) % 18000);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    in.sin_port = htons((uint16_t)port);
    int rc = bind(fd, (struct sockaddr *)&in, sizeof(in));
    close(fd);
    if (rc == 0) return port;
  }
}

/* The two ends of a session. */
static inline void pair_make(int fd[2])
{
  assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd),
                   0);
}

static inline void pair_close(int fd[2])
{
  close(fd[0]);
  close(fd[1]);
}

static inline uint8_t *file_read(const char *path, size_t *len)
{
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  assert_int_equal(fseek(f, 0, SEEK_END), 0);
  *len = (size_t)ftell(f);
  rewind(f);
  uint8_t *data = malloc(*len + 1);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, *len, f), *len);
  data[*len] = 0;
  fclose(f);
  return data;
}

static inline void file_write(const char *path, const void *data, size_t len)
{
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, len, f), len);
  assert_int_equal(fclose(f), 0);
}

static inline void file_patch(const char *path, size_t offset, const void *data,
                              size_t len)
{
  FILE *f = fopen(path, "r+b");
  assert_non_null(f);
  assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
  assert_int_equal(fwrite(data, 1, len, f), len);
  assert_int_equal(fclose(f), 0);
}

static inline size_t file_size(const char *path)
{
  struct stat st;
  return stat(path, &st) == 0 ? (size_t)st.st_size : 0;
}

#endif
