/*
** shift.c: clocks that run ahead, for one process of a test.
**
** Preloaded, it adds the seconds in the environment variable SHIFT_SECONDS to
** what the process is told of the calendar time. Time that is only measured
** (CLOCK_MONOTONIC) stays what it is. What must happen "after an hour" can so
** be tested at once.
**
** From when the file named by SLEPT_FILE appears, the machine has slept for an
** hour: the clock that goes on meanwhile (CLOCK_BOOTTIME) is ahead by so much.
*/
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t shift(void)
{
  const char *seconds = getenv("SHIFT_SECONDS");
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
    now->tv_sec += shift();
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
