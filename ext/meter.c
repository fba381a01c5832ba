/*
** meter.c: durations in buckets, quantiles of the last minute, lag in time.
*/
#include "meter.h"

#include <string.h>

/* ---- how long ------------------------------------------------------------ */

/* Below METER_STEPS each value has a bucket; then each doubling has that many,
   by the three bits after the highest. */
static unsigned bucket_of(uint64_t value)
{
  if (value < METER_STEPS) return (unsigned)value;
  unsigned top = 63u - (unsigned)__builtin_clzll(value);
  unsigned bucket = (top - 2) * METER_STEPS +
                    (unsigned)(value >> (top - 3) & (METER_STEPS - 1));
  return bucket < METER_BUCKETS ? bucket : METER_BUCKETS - 1;
}

/* The least value in a bucket. */
static uint64_t bucket_begin(unsigned bucket)
{
  if (bucket < METER_STEPS) return bucket;
  unsigned top = bucket / METER_STEPS + 2;
  return (uint64_t)(METER_STEPS + bucket % METER_STEPS) << (top - 3);
}

void meter_add(struct meter *meter, uint64_t ns)
{
  uint64_t value = ns / 15625 * 16 + ns % 15625 * 16 / 15625;
  atomic_fetch_add_explicit(&meter->counts[bucket_of(value)], 1,
                            memory_order_relaxed);
  atomic_fetch_add_explicit(&meter->ns, ns, memory_order_relaxed);
}

void meter_read(const struct meter *meter, struct meter_counts *out)
{
  out->n = 0;
  for (unsigned i = 0; i < METER_BUCKETS; i++) {
    out->counts[i] =
        atomic_load_explicit(&meter->counts[i], memory_order_relaxed);
    out->n += out->counts[i];
  }
  out->ns = atomic_load_explicit(&meter->ns, memory_order_relaxed);
}

uint64_t meter_within(const struct meter_counts *counts, int doublings)
{
  /* 1 ms is 2^10 units. */
  unsigned end = bucket_of(UINT64_C(1) << (doublings + 10));
  uint64_t n = 0;
  for (unsigned i = 0; i < end; i++)
    n += counts->counts[i];
  return n;
}

void meter_window_tick(struct meter_window *window, const struct meter *meter,
                       uint64_t now_ms)
{
  if (now_ms < window->due) return;
  window->due = now_ms + METER_PIECE_MS;
  meter_read(meter, &window->before[window->next]);
  window->next = (window->next + 1) % METER_PIECES;
  if (window->n < METER_PIECES) window->n++;
}

double meter_window_quantile(const struct meter_window *window,
                             const struct meter_counts *now, double part)
{
  static const struct meter_counts none;
  const struct meter_counts *before = &none;
  if (window->n == METER_PIECES) before = &window->before[window->next];
  if (now->n <= before->n) return -1;
  double left = part * (double)(now->n - before->n);
  for (unsigned i = 0; i < METER_BUCKETS; i++) {
    double n = (double)(now->counts[i] - before->counts[i]);
    if (n == 0) continue;
    if (left <= n) {
      double begin = (double)bucket_begin(i);
      double end = (double)bucket_begin(i + 1);
      return (begin + (end - begin) * left / n) / 1024000.0;
    }
    left -= n;
  }
  return (double)bucket_begin(METER_BUCKETS) / 1024000.0;
}

/* ---- how far behind ------------------------------------------------------ */

void meter_grown(struct meter_growth *growth, uint64_t now_ms, raft_index last)
{
  if (last == growth->last) return;
  if (last < growth->last) memset(growth, 0, sizeof(*growth));
  growth->last = last;
  growth->ms = now_ms;
  for (unsigned k = 0; k < METER_LEVELS; k++) {
    unsigned newest =
        (growth->levels[k].next + METER_SAMPLES - 1) % METER_SAMPLES;
    if (growth->levels[k].n > 0 && now_ms - growth->levels[k].at[newest].ms <
                                       (uint64_t)METER_SPACE_MS << k)
      break; /* nor is any above it due */
    unsigned next = growth->levels[k].next;
    growth->levels[k].at[next].ms = now_ms;
    growth->levels[k].at[next].last = last;
    growth->levels[k].next = (next + 1) % METER_SAMPLES;
    if (growth->levels[k].n < METER_SAMPLES) growth->levels[k].n++;
  }
}

uint64_t meter_behind(const struct meter_growth *growth, uint64_t now_ms,
                      raft_index match)
{
  uint64_t since = growth->ms;
  if (growth->last <= match) return 0;
  for (unsigned k = 0; k < METER_LEVELS; k++)
    for (unsigned i = 0; i < growth->levels[k].n; i++)
      if (growth->levels[k].at[i].last > match &&
          growth->levels[k].at[i].ms < since)
        since = growth->levels[k].at[i].ms;
  return now_ms - since;
}
