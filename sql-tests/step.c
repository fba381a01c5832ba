/*
** step.c: kills a process between two of its system calls, or has one fail.
**
** Preloaded, it counts what a process sends, receives and writes, from when the
** file named by the environment variable STEP_FILE appears, which has a number
** N: before and after each such call the count goes one up, and at N the process
** is killed. Has the file an errno value behind N, the call fails with that: it
** was made all the same if N was counted after it. STEP_THREADS=all: of all
** threads; a name: of threads of that name; else of the main thread.
**
** A test counts N up until the process survives, or nothing failed: the file
** STEP_FILE.done has the number of each process in which N was reached.
*/
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long counted;

static int is_counted(const char *threads)
{
  char own[16] = "";
  if (threads == NULL) return gettid() == getpid();
  prctl(PR_GET_NAME, own);
  return strcmp(threads, "all") == 0 || strcmp(threads, own) == 0;
}

static void note(const char *name)
{
  char done[4096];
  snprintf(done, sizeof(done), "%s.done", name);
  int fd = open(done, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  dprintf(fd, "%d\n", (int)getpid());
  close(fd);
}

/* The errno value with which this call fails; 0: it does not. */
static int step(void)
{
  static atomic_long towards;
  const char *name = getenv("STEP_FILE");
  if (name == NULL || !is_counted(getenv("STEP_THREADS"))) return 0;
  FILE *file = fopen(name, "re");
  long at = 0;
  int error = 0, n = file ? fscanf(file, "%ld %d", &at, &error) : 0;
  if (file) fclose(file);
  if (n < 1 || at != towards) atomic_store(&counted, 0);
  towards = at;
  if (n < 1 || atomic_fetch_add(&counted, 1) + 1 != at) return 0;
  note(name);
  if (error == 0) kill(getpid(), SIGKILL);
  return error;
}

#define COUNTED(result, name, parameters, arguments)                           \
  result name parameters                                                       \
  {                                                                            \
    result(*real) parameters;                                                  \
    *(void **)&real = dlsym(RTLD_NEXT, #name);                                 \
    int error = step();                                                        \
    result got = error ? -1 : real arguments;                                  \
    int kept = error ? error : errno;                                          \
    if (error == 0 && (error = step()) != 0) got = -1;                         \
    errno = error ? error : kept;                                              \
    return got;                                                                \
  }

COUNTED(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags),
        (fd, m, flags))
COUNTED(ssize_t, recvmsg, (int fd, struct msghdr *m, int flags), (fd, m, flags))
COUNTED(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t offset),
        (fd, data, n, offset))
COUNTED(ssize_t, pwrite64, (int fd, const void *data, size_t n, off_t offset),
        (fd, data, n, offset))
COUNTED(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t offset),
        (fd, v, n, offset))
COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, ftruncate, (int fd, off_t size), (fd, size))
COUNTED(int, fdatasync, (int fd), (fd))
