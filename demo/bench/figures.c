/*
** figures.c: clocks, medians, and latencies kept in buckets, so that a million
** of them need no more memory than one.
*/
#include "bench.h"

#include <stdlib.h>
#include <time.h>

/* Below 64 ns a bucket is 1 ns; above, each power of two has 64. */
static unsigned bucket_of(uint64_t ns)
{
  if (ns < 64) return (unsigned)ns;
  unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - 6;
  unsigned i = (shift + 1) * 64 + (unsigned)((ns >> shift) - 64);
  return i < HISTOGRAM_BUCKETS ? i : HISTOGRAM_BUCKETS - 1;
}

/* The middle of a bucket. */
static double value_of(unsigned i)
{
  if (i < 64) return i;
  unsigned shift = i / 64 - 1;
  return ((double)(64 + i % 64) + 0.5) * (double)((uint64_t)1 << shift);
}

void histogram_add(struct histogram *h, uint64_t ns)
{
  h->in[bucket_of(ns)]++;
  h->count++;
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
  for (int i = 0; i < HISTOGRAM_BUCKETS; i++)
    to->in[i] += from->in[i];
  to->count += from->count;
}

double histogram_quantile(const struct histogram *h, double p)
{
  if (h->count == 0) return 0;
  uint64_t wanted = (uint64_t)(p * (double)(h->count - 1)) + 1;
  unsigned i = 0;
  for (uint64_t seen = h->in[0]; seen < wanted; seen += h->in[i])
    i++;
  return value_of(i);
}

static int by_value(const void *a, const void *b)
{
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double median(double *values, int n)
{
  qsort(values, (size_t)n, sizeof *values, by_value);
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

uint64_t now_ns(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

double now_s(void)
{
  return (double)now_ns() / 1e9;
}

void sleep_ms(unsigned ms)
{
  struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
  nanosleep(&time, NULL);
}
