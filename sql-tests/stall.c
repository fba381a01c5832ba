/*
** stall.c: a disk that does not answer, or fails, for one process of a test.
**
** Preloaded, it lets no fsync(2) or fdatasync(2) return while the file named by
** the environment variable STALL_FILE exists, and has them fail while that
** named by FAIL_FILE does. Nor does a pwrite(2) return, in a thread that serves
** another process, while that named by HOLD_FILE exists, which is empty until
** one waits there; and each of them takes a while as long as that named by
** SLOW_FILE exists.
*/
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SLOW_US 100000

static int is_there(const char *variable)
{
  const char *file = getenv(variable);
  return file && access(file, F_OK) == 0;
}

static int sync_by(const char *name, int fd)
{
  int (*real)(int);
  *(void **)&real = dlsym(RTLD_NEXT, name);
  while (is_there("STALL_FILE"))
    usleep(10000);
  if (!is_there("FAIL_FILE")) return real(fd);
  errno = EIO;
  return -1;
}

int fsync(int fd)
{
  return sync_by("fsync", fd);
}

int fdatasync(int fd)
{
  return sync_by("fdatasync", fd);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
  ssize_t (*real)(int, const void *, size_t, off_t);
  char name[17] = "";
  *(void **)&real = dlsym(RTLD_NEXT, "pwrite");
  if ((is_there("HOLD_FILE") || is_there("SLOW_FILE")) &&
      prctl(PR_GET_NAME, name) == 0 && strcmp(name, "quorate session") == 0) {
    if (is_there("SLOW_FILE")) usleep(SLOW_US);
    if (is_there("HOLD_FILE")) truncate(getenv("HOLD_FILE"), 1);
    while (is_there("HOLD_FILE"))
      usleep(10000);
  }
  return real(fd, data, n, offset);
}
