/*
** trace.c: what happened, in numbers, and in words when somebody asks.
**
** A line is five numbers and a kind. The last ones are kept in a circle and
** put in words only after a failure (or with --trace, as they come). All of
** them go through one running hash: equal seeds must have equal hashes.
*/
#include "sim.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const event_names[] = {
    "",        "tick",      "message", "persisted",     "disk-failed",
    "propose", "read",      "change",  "transfer",      "clock-doubt",
    "peer-up", "peer-down", "loaded",  "snapshot-sent", "snapshot-installed",
};
static const char *const message_names[] = {
    "",          "prevote?",  "prevote",      "vote?", "vote", "append",
    "append-ok", "heartbeat", "heartbeat-ok", "read?", "read", "timeout-now",
};
static const char *const role_names[] = {"", "follower", "precandidate",
                                         "candidate", "leader"};
static const char *const part_names[] = {"",       "offer",   "chunk",
                                         "answer", "give up", "done"};

#define NAME(names, i)                                                         \
  ((i) < sizeof(names) / sizeof *(names) ? (names)[i] : "?")

static const char *op_name(uint64_t state)
{
  static const char *const names[] = {"",        "pending", "done",
                                      "refused", "lost",    "unknown"};

  return NAME(names, state);
}

static void print_more(const struct trace_line *l)
{
  const uint64_t *v = l->v;

  switch (l->kind) {
  case T_FAULT:
    printf("fault %s %" PRIu64 " %" PRIu64, NAME(sim_fault_names, v[0]), v[1],
           v[2]);
    break;
  case T_PROPOSE:
    printf("propose op %" PRIu64 ": rc %d, index %" PRIu64 " term %" PRIu64,
           v[0], (int)v[1], v[2], v[3]);
    break;
  case T_ANSWER:
    printf("op %" PRIu64 ": %s at %" PRIu64, v[0], op_name(v[1]), v[2]);
    break;
  case T_READ:
    printf("read %" PRIu64 "%s, must see %" PRIu64, v[0],
           v[1] ? " by lease" : "", v[2]);
    break;
  case T_READ_DONE:
    printf("read %" PRIu64 ": status %d, index %" PRIu64, v[0], (int)v[1],
           v[2]);
    break;
  case T_CHANGE:
    printf("change of %" PRIu64 ", first type %" PRIu64 " of %" PRIu64
           ": rc %d, index %" PRIu64,
           v[0], v[1], v[2], (int)v[3], v[4]);
    break;
  case T_TRANSFER:
    printf("transfer to %" PRIu64 ": rc %d", v[0], (int)v[1]);
    break;
  case T_LINK:
    printf("connection to %" PRIu64 " is %s", v[0], v[1] ? "up" : "down");
    break;
  case T_SNAPSHOT:
    printf("snapshot %" PRIu64 " %s: verdict %" PRIu64 ", %" PRIu64 " %" PRIu64,
           v[0], NAME(part_names, v[1]), v[2], v[3], v[4]);
    break;
  case T_PEACE: printf("---- peace, stage %" PRIu64, v[0]); break;
  default: printf("?"); break;
  }
}

static void print_disk(const struct trace_line *l)
{
  const uint64_t *v = l->v;

  switch (l->kind) {
  case T_PERSIST:
    printf("  writes %" PRIu64 ": vote %" PRIu64 "/%" PRIu64
           ", entries %" PRIu64 "+%" PRIu64,
           v[0], v[1], v[2], v[3], v[4]);
    break;
  case T_DURABLE:
    printf("durable up to write %" PRIu64 ", entry %" PRIu64, v[0], v[1]);
    break;
  case T_DISK: printf("disk failed: %d", (int)v[0]); break;
  case T_CHECKPOINT: printf("checkpoint %" PRIu64, v[0]); break;
  case T_START:
    printf("starts, incarnation %" PRIu64 ", last %" PRIu64 ", commit %" PRIu64
           ", vote %" PRIu64 "/%" PRIu64,
           v[0], v[1], v[2], v[3], v[4]);
    break;
  case T_REFUSED: printf("does not start: %d", (int)v[0]); break;
  case T_DOWN: printf("down%s", v[0] ? " (kill)" : ""); break;
  default: print_more(l); break;
  }
}

static void print_line(const struct trace_line *l)
{
  const uint64_t *v = l->v;

  printf("%10.3f ms  %u  ", (double)l->at / 1000, l->node);
  switch (l->kind) {
  case T_STEP: printf("step %s: %d", NAME(event_names, v[0]), (int)v[1]); break;
  case T_SEND:
  case T_MESSAGE:
    printf("%s %" PRIu64 " %s: term %" PRIu64 " prev/match %" PRIu64
           " entries/granted %" PRIu64,
           l->kind == T_SEND ? "  sends to" : "gets from", v[0],
           NAME(message_names, v[1]), v[2], v[3], v[4]);
    break;
  case T_ROLE:
    printf("is %s, term %" PRIu64 ", leader %" PRIu64, NAME(role_names, v[0]),
           v[1], v[2]);
    break;
  case T_COMMIT: printf("commit %" PRIu64, v[0]); break;
  case T_APPLY: printf("applied %" PRIu64 " %016" PRIx64, v[0], v[1]); break;
  case T_INSTALL:
    printf("snapshot installed: %" PRIu64 " term %" PRIu64 "%s", v[0], v[1],
           v[2] ? ", log dropped" : "");
    break;
  case T_CONFIG:
    printf("configuration %" PRIu64 ": voters %" PRIx64 ", outgoing %" PRIx64
           ", members %" PRIx64,
           v[0], v[1], v[2], v[3]);
    break;
  default: print_disk(l); break;
  }
  printf("\n");
}

void sim_trace(struct sim *s, const struct node *n, uint8_t kind, uint64_t a,
               uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
  struct trace_line *l = &s->lines[s->n_lines++ % TRACE_LINES];

  l->at = s->now;
  l->kind = kind;
  l->node = n ? n->id : 0;
  l->v[0] = a;
  l->v[1] = b;
  l->v[2] = c;
  l->v[3] = d;
  l->v[4] = e;
  s->hash = (s->hash ^ (s->now + ((uint64_t)kind << 56))) * 0x9e3779b97f4a7c15u;
  s->hash = (s->hash ^ (a + (b << 20)) ^ (c << 40)) * 0xbf58476d1ce4e5b9u;
  s->hash = ((s->hash >> 31) ^ s->hash) + d * 31 + e;
  if (s->verbose) print_line(l);
}

void sim_trace_dump(const struct sim *s)
{
  uint64_t i = s->n_lines > 200 ? s->n_lines - 200 : 0;

  if (s->verbose) return;
  for (; i < s->n_lines; i++)
    print_line(&s->lines[i % TRACE_LINES]);
}
