/*
** shift.c: clocks that run ahead, for one process of a test.
**
** Preloaded, it adds the seconds in the environment variable SHIFT_SECONDS to
** what the process is told of the calendar time. Time that is only measured
** (CLOCK_MONOTONIC) stays what it is. What must happen "after an hour" can so
** be tested at once. The file that SHIFT_FILE names, if it is there, has the
** number instead: it is read every 20 ms, so that the clock jumps while the
** process runs.
**
** From when the file named by SLEPT_FILE appears, the machine has slept for an
** hour: the clock that goes on meanwhile (CLOCK_BOOTTIME) is ahead by so much.
*/
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 20000000

static long read_file(const char *name)
{
  char text[32] = "";
  int fd = open(name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof(text) - 1);
  close(fd);
  return n > 0 ? atol(text) : 0;
}

/* What the file says, at least lately. */
static time_t shift_of_file(const char *name, const struct timespec *now)
{
  static atomic_llong looked;
  static atomic_long seconds;
  long long ns = now->tv_sec * 1000000000LL + now->tv_nsec;
  if (ns - atomic_load(&looked) > LOOK_NS) {
    atomic_store(&seconds, read_file(name));
    atomic_store(&looked, ns);
  }
  return (time_t)atomic_load(&seconds);
}

/* `now` is true. */
static time_t shift(const struct timespec *now)
{
  const char *seconds = getenv("SHIFT_SECONDS"), *file = getenv("SHIFT_FILE");
  if (file) return shift_of_file(file, now);
  return seconds ? (time_t)atol(seconds) : 0;
}

static time_t slept(void)
{
  const char *file = getenv("SLEPT_FILE");
  return file && access(file, F_OK) == 0 ? 3600 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
  static int (*real)(clockid_t, struct timespec *);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int rc = real(clock, now);
  if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += shift(now);
  if (rc == 0 && clock == CLOCK_BOOTTIME) now->tv_sec += slept();
  return rc;
}

time_t time(time_t *out)
{
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
  (void)zone;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
