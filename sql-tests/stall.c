/*
** stall.c: a disk that does not answer, or fails, for one process of a test.
**
** Preloaded, it lets no fsync(2) or fdatasync(2) return while the file named by
** the environment variable STALL_FILE exists, and has them fail while that
** named by FAIL_FILE does.
*/
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

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
