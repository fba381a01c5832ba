/*
** options.c: what kind of world a seed lives in.
**
** Swarm testing (Groce and others, 2012): a run in which everything may happen
** is a run in which nothing happens often. So each seed draws which faults
** there are at all, how often, how large or how tiny every limit is, and what
** the clients want; most seeds have a few of everything, some have much of
** one.
*/
#include "sim.h"

#include <stdio.h>
#include <string.h>

const char *const sim_fault_names[F_COUNT] = {
    [F_CRASH] = "crash",
    [F_KILL] = "kill",
    [F_PAUSE] = "pause",
    [F_SUSPEND] = "suspend",
    [F_STOP] = "stop",
    [F_WIPE] = "wipe",
    [F_PARTITION] = "partition",
    [F_CLOG] = "clog",
    [F_RESET] = "reset",
    [F_ROT] = "rot",
    [F_MISDIRECT] = "misdirect",
    [F_FULL] = "full",
    [F_STALL] = "stall",
    [F_DOUBT] = "doubt",
    [F_EIO] = "eio",
    [F_LOSS] = "loss",
    [F_DRIFT] = "drift",
    [F_MEMBERS] = "members",
};

static uint64_t one_of(struct sim *s, const uint64_t *values, unsigned n)
{
  return values[sim_below(s, n)];
}
#define ONE_OF(s, ...)                                                         \
  one_of(s, (const uint64_t[]){__VA_ARGS__},                                   \
         sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

static void draw_cluster(struct sim *s)
{
  struct sim_options *o = &s->options;

  o->nodes = (unsigned)ONE_OF(s, 1, 2, 3, 3, 3, 4, 5, 5, 5, 5, 6, 7, 9);
  if (sim_settings.nodes) o->nodes = sim_settings.nodes;
  o->voters =
      sim_chance(s, 600000) ? o->nodes : (unsigned)sim_between(s, 1, o->nodes);
  o->members_only = sim_chance(s, 300000);
  o->tick_first = sim_chance(s, 500000);
  o->priorities = sim_chance(s, 300000);
}

static void draw_times(struct sim *s)
{
  struct sim_options *o = &s->options;

  switch (sim_below(s, 4)) {
  case 0: /* the paper's */
    o->heartbeat_ms = (unsigned)sim_between(s, 15, 50);
    o->election_ms = 150;
    break;
  case 1:
    o->heartbeat_ms = 50;
    o->election_ms = 500;
    break;
  case 2:
    o->heartbeat_ms = 75;
    o->election_ms = 500;
    break;
  default:
    o->heartbeat_ms = (unsigned)sim_between(s, 15, 75);
    o->election_ms =
        (unsigned)sim_between(s, 4 * (uint64_t)o->heartbeat_ms, 500);
  }
  o->hint_jitter_ms = (unsigned)ONE_OF(s, 0, 5, 40, 40);
  o->lease = sim_chance(s, 250000);
  if (o->lease) o->hint_jitter_ms = 0;
}

/* Each limit is roomy in one seed and tiny in the next. */
static void draw_limits(struct sim *s)
{
  struct sim_options *o = &s->options;

  o->tail_bytes = ONE_OF(s, 1, 600, 2000, 8u << 20);
  o->uncommitted_bytes = ONE_OF(s, 500, 4000, 16u << 20);
  o->message_bytes = ONE_OF(s, 100, 300, 2000, 1u << 20);
  o->inflight_messages = (unsigned)ONE_OF(s, 1, 2, 4, 64);
  o->inflight_bytes = ONE_OF(s, 200, 1000, 8u << 20);
  o->segment_bytes = ONE_OF(s, 4096, 4096, 8192, 65536);
  o->checkpoint_every = (unsigned)ONE_OF(s, 5, 10, 20, 50, 50);
  o->checkpoint_aligned = sim_chance(s, 500000);
  o->body_max = (unsigned)ONE_OF(s, 40, 100, 400, 3000);
  o->backlog = (unsigned)ONE_OF(s, 5, 50, 200);
  o->parts_ppm = (uint32_t)ONE_OF(s, 0, 100000, 400000);
  o->chunk_bytes = (unsigned)ONE_OF(s, 64, 300, 4096);
  o->snapshot_bytes = (unsigned)ONE_OF(s, 0, 2000, 6000);
  o->snapshot_window = (unsigned)ONE_OF(s, 1, 2, 8);
}

static void draw_network(struct sim *s)
{
  struct sim_options *o = &s->options;
  bool bad = sim_chance(s, 600000);

  o->delay_us = (uint32_t)ONE_OF(s, 50, 200, 1000, 5000);
  o->reorder_us = (uint32_t)ONE_OF(s, 10, 100, 2000, 10000);
  if (!bad || sim_settings.off >> F_LOSS & 1) return;
  o->loss = (uint32_t)ONE_OF(s, 0, 1000, 20000, 100000, 300000);
  o->duplicates = (uint32_t)ONE_OF(s, 0, 1000, 20000, 200000);
}

static void draw_clients(struct sim *s)
{
  struct sim_options *o = &s->options;

  o->client_us = ONE_OF(s, 500, 2000, 5000, 20000);
  o->propose = (unsigned)ONE_OF(s, 20, 60, 100);
  o->read = (unsigned)ONE_OF(s, 0, 10, 50);
  o->change = (unsigned)ONE_OF(s, 0, 2, 10, 10);
  o->transfer = (unsigned)ONE_OF(s, 0, 0, 1, 5);
  if (sim_settings.off >> F_MEMBERS & 1) o->change = 0;
  /* A broken lease shows for a moment only: many must look. */
  if (!o->lease || sim_chance(s, 300000)) return;
  o->client_us = ONE_OF(s, 200, 500, 2000);
  o->read = 60;
  o->transfer = (unsigned)ONE_OF(s, 0, 1, 3);
}

static void draw_faults(struct sim *s)
{
  struct sim_options *o = &s->options;
  unsigned f;

  for (f = 0; f < F_COUNT; f++) {
    bool on = sim_chance(s, 450000);

    o->every[f] = ONE_OF(s, 300, 1000, 3000, 3000) * SIM_MS;
    if (!on || sim_settings.off >> f & 1) o->every[f] = 0;
  }
  /* Those that take a node away for good are rarer. */
  o->every[F_WIPE] *= 2;
  o->every[F_ROT] *= 2;
  o->every[F_MISDIRECT] *= 2;
  o->disk_us = (uint32_t)ONE_OF(s, 50, 500, 2000, 10000);
  o->load_us = (uint32_t)ONE_OF(s, 0, 500, 5000);
  if (o->every[F_EIO]) {
    o->eio_write = (uint32_t)ONE_OF(s, 0, 300, 3000);
    o->eio_sync = (uint32_t)ONE_OF(s, 0, 300, 3000);
  }
  if (o->lease && !(sim_settings.off >> F_DRIFT & 1)) o->every[F_DRIFT] = 1;
  if (o->every[F_DRIFT]) o->drift_ppm = 50000;
}

void sim_options_draw(struct sim *s)
{
  struct sim_options *o = &s->options;

  draw_cluster(s);
  draw_times(s);
  draw_limits(s);
  draw_network(s);
  draw_clients(s);
  draw_faults(s);
  if (sim_settings.bench) sim_options_bench(o);
  if (o->lease) o->hint_jitter_ms = 0;
  o->steps = sim_settings.steps ? sim_settings.steps : 20000;
}

/* Five nodes, a log of some 200 entries, a moderate number of faults. */
void sim_options_bench(struct sim_options *o)
{
  memset(o, 0, sizeof *o);
  o->nodes = o->voters = sim_settings.nodes ? sim_settings.nodes : 5;
  o->heartbeat_ms = 50;
  o->election_ms = 500;
  o->hint_jitter_ms = 40;
  o->tail_bytes = 20000;
  o->uncommitted_bytes = 1u << 20;
  o->message_bytes = 65536;
  o->inflight_bytes = 1u << 20;
  o->inflight_messages = 16;
  o->segment_bytes = 16384;
  o->checkpoint_every = 200;
  o->backlog = 200;
  o->body_max = 100;
  o->loss = 10000;
  o->duplicates = 10000;
  o->delay_us = 200;
  o->reorder_us = 100;
  o->every[F_CRASH] = o->every[F_KILL] = 3 * SIM_SECOND;
  o->every[F_PARTITION] = o->every[F_RESET] = 3 * SIM_SECOND;
  o->every[F_PAUSE] = 3 * SIM_SECOND;
  o->disk_us = 500;
  o->client_us = 2000;
  o->propose = 60;
  o->read = 30;
  o->change = 1;
  o->chunk_bytes = 4096;
  o->snapshot_window = 2;
}

void sim_options_print(const struct sim_options *o)
{
  unsigned f;

  printf("nodes %u, voters %u, steps %u, heartbeat %u ms, election %u ms, hint "
         "%u ms%s%s%s%s\n",
         o->nodes, o->voters, (unsigned)o->steps, o->heartbeat_ms,
         o->election_ms, o->hint_jitter_ms, o->lease ? ", lease" : "",
         o->priorities ? ", priorities" : "",
         o->members_only ? ", members only" : "",
         o->tick_first ? ", tick first" : "");
  printf("tail %zu, uncommitted %zu, message %zu, window %u/%zu, segment %u, "
         "checkpoint %u%s, body %u, parts %u\n",
         o->tail_bytes, o->uncommitted_bytes, o->message_bytes,
         o->inflight_messages, o->inflight_bytes, (unsigned)o->segment_bytes,
         o->checkpoint_every, o->checkpoint_aligned ? " aligned" : "",
         o->body_max, o->parts_ppm);
  printf("loss %u, duplicates %u, delay %u+%u us, disk %u us, load %u us, eio "
         "%u/%u, client %u us, propose %u read %u change %u transfer %u\n",
         o->loss, o->duplicates, o->delay_us, o->reorder_us, o->disk_us,
         o->load_us, o->eio_write, o->eio_sync, (unsigned)o->client_us,
         o->propose, o->read, o->change, o->transfer);
  printf("chunk %u, snapshot %u, snapshot window %u; faults, mean ms between:",
         o->chunk_bytes, o->snapshot_bytes, o->snapshot_window);
  for (f = 0; f < F_COUNT; f++)
    if (o->every[f])
      printf(" %s %u", sim_fault_names[f], (unsigned)(o->every[f] / SIM_MS));
  printf("\n");
}
