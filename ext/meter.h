/*
** meter.h: what is measured on the way: how long things take, and how far
** somebody is behind. Nothing here knows a node.
*/
#ifndef EXT_METER_H
#define EXT_METER_H

#include "raft.h"

#include <stdatomic.h>

/* ---- how long ------------------------------------------------------------ */

/*
** Durations in units of 1/1024 ms, eight buckets to each doubling: a bucket is
** at most an eighth as wide as what is in it. Up to 65 s; the last one has all
** that is longer. Whoever adds is any thread, and waits for nobody.
*/
#define METER_STEPS 8u
#define METER_DOUBLINGS 23u
#define METER_BUCKETS ((METER_DOUBLINGS + 1) * METER_STEPS)

struct meter {
  _Atomic uint64_t counts[METER_BUCKETS];
  _Atomic uint64_t ns; /* all of them together */
};
void meter_add(struct meter *meter, uint64_t ns);

/* The same as it was at one time. */
struct meter_counts {
  uint64_t counts[METER_BUCKETS], n, ns;
};
void meter_read(const struct meter *meter, struct meter_counts *out);
/* Of these how many took at most 2^doublings ms; doublings may be negative, down
   to -7. */
uint64_t meter_within(const struct meter_counts *counts, int doublings);

/* The last minute or so: what was counted before it, a piece at a time. */
#define METER_PIECES 13
#define METER_PIECE_MS 5000u
struct meter_window {
  struct meter_counts before[METER_PIECES]; /* a ring; the oldest is next */
  unsigned n, next;
  uint64_t due; /* ms */
};
/* Now and then, with what is counted now: remembers it when a piece is over. */
void meter_window_tick(struct meter_window *window, const struct meter *meter,
                       uint64_t now_ms);
/* Seconds that the given part (0 to 1) of those in the window took at most; a
   negative number: there are none. */
double meter_window_quantile(const struct meter_window *window,
                             const struct meter_counts *now, double part);

/* ---- how far behind ------------------------------------------------------ */

/*
** When the log had grown to which length, precisely for the last moments, and
** less so the longer it is ago: level k remembers the last METER_SAMPLES times
** that are METER_SPACE_MS << k apart.
*/
#define METER_LEVELS 22
#define METER_SAMPLES 16
#define METER_SPACE_MS 4u /* 22 levels: more than a day */

struct meter_growth {
  raft_index last;
  uint64_t ms; /* when it became that */
  struct {
    struct {
      uint64_t ms;
      raft_index last;
    } at[METER_SAMPLES];
    unsigned n, next;
  } levels[METER_LEVELS];
};
/* The log ends at `last` now. When it became shorter, all is forgotten. */
void meter_grown(struct meter_growth *growth, uint64_t now_ms, raft_index last);
/* For how long there have been entries after `match`: about, and never more than
   it is. 0: there are none, or only just now. */
uint64_t meter_behind(const struct meter_growth *growth, uint64_t now_ms,
                      raft_index match);

#endif
