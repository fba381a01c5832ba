/*
** stall.c: a disk that does not answer, for one process of a test.
**
** Preloaded, it lets no fsync(2) or fdatasync(2) return while the file named by
** the environment variable STALL_FILE exists.
*/
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int sync_by(const char *name, int fd)
{
  const char *file = getenv("STALL_FILE");
  int (*real)(int);
  *(void **)&real = dlsym(RTLD_NEXT, name);
  while (file && access(file, F_OK) == 0)
    usleep(10000);
  return real(fd);
}

int fsync(int fd)
{
  return sync_by("fsync", fd);
}

int fdatasync(int fd)
{
  return sync_by("fdatasync", fd);
}
