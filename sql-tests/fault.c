/*
** fault.c: a fault at one chosen moment, for one process of a test.
**
** Preloaded, it counts the calls of the main thread that change files, from the
** moment at which the file named by the environment variable FAULT_FILE
** appears. That says one of
**
**     N kill        the Nth call kills the process
**     N int         the Nth call sends it SIGINT
**     N <errno>     the Nth call fails with that number
**     0 <errno>     there are no files without a name here
**
** A test counts N up until no fault fires any more.
*/
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int calls;

/* What the file says; false: it is not there. */
static int told(long *at, char how[8])
{
  const char *name = getenv("FAULT_FILE");
  FILE *file = name ? fopen(name, "r") : NULL;
  int n = file ? fscanf(file, "%ld %7s", at, how) : 0;
  if (file) fclose(file);
  if (n == 2) return 1;
  calls = 0;
  return 0;
}

/* The errno value with which this call fails; 0: it does not. */
static int fault(void)
{
  static long counted; /* towards this number */
  long at;
  char how[8];
  if (gettid() != getpid() || !told(&at, how)) return 0;
  if (at != counted) calls = 0;
  counted = at;
  if (++calls != at) return 0;
  if (strcmp(how, "kill") == 0) kill(getpid(), SIGKILL);
  if (strcmp(how, "int") == 0) kill(getpid(), SIGINT);
  return atoi(how);
}

#define REAL(name) dlsym(RTLD_NEXT, name)

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
  ssize_t (*real)(int, const void *, size_t, off_t);
  *(void **)&real = REAL("pwrite");
  int error = fault();
  if (error == 0) return real(fd, data, n, offset);
  errno = error;
  return -1;
}

static int on_fd(const char *name, int fd)
{
  int (*real)(int);
  *(void **)&real = REAL(name);
  int error = fault();
  if (error == 0) return real(fd);
  errno = error;
  return -1;
}

int fsync(int fd)
{
  return on_fd("fsync", fd);
}

int fdatasync(int fd)
{
  return on_fd("fdatasync", fd);
}

int unlink(const char *path)
{
  int (*real)(const char *);
  *(void **)&real = REAL("unlink");
  int error = fault();
  if (error == 0) return real(path);
  errno = error;
  return -1;
}

int rename(const char *from, const char *to)
{
  int (*real)(const char *, const char *);
  *(void **)&real = REAL("rename");
  int error = fault();
  if (error == 0) return real(from, to);
  errno = error;
  return -1;
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
  int (*real)(int, const char *, int, const char *, int);
  *(void **)&real = REAL("linkat");
  int error = fault();
  if (error == 0) return real(from_fd, from, to_fd, to, flags);
  errno = error;
  return -1;
}

int openat(int fd, const char *path, int flags, ...)
{
  int (*real)(int, const char *, int, ...);
  long at;
  char how[8];
  va_list args;
  *(void **)&real = REAL("openat");
  va_start(args, flags);
  mode_t mode = va_arg(args, mode_t);
  va_end(args);
  if ((flags & O_TMPFILE) == O_TMPFILE && told(&at, how) && at == 0) {
    errno = atoi(how);
    return -1;
  }
  return real(fd, path, flags, mode);
}
