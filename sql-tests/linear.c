/*
** linear.c: are histories of registers linearizable?
**
**     linear FILE...      lines as load.c writes them; kinds other than r, w
**                         and x are passed over
**
** A register holds 0 at first. `r` reads it, `w` writes the operation's own
** number, `x` reads what is there and writes its number. Every number is
** written at most once. Prints a line a register; ends with 0 if each has an
** order of its operations, one at a time, within their times, that explains all
** that was read; with 1 if not; with 2 if the lines make no sense.
**
** An operation that failed did not happen. One without an answer, or whose
** answer was "unknown", may have happened at any time after it began, or never.
** Those are settled first:
**
**   - a read without a known result tells nothing;
**   - a write whose number nobody is known to have read, need not have happened:
**     without it every order that explains the rest still does;
**   - a write whose number was read happened before that read ended.
**
** Then each has an end. The search is that of Wing and Gong with Lowe's
** memory: operations that began before any other ended are tried as the next
** one, and what was tried from the same set of operations done and the same
** value is not tried again. A set is known by 128 bits, the exclusive or of a
** random number for each operation in it.
*/
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct operation {
  int64_t number, reg, value; /* value: what it read */
  int64_t call, end;
  char kind, outcome; /* 0: no answer */
  bool counts;
  uint64_t mark[2];
};

/* Of a list in the order of time: a call, and its end. */
struct event {
  struct event *prev, *next,
      *match; /* match: the end of a call; NULL: an end */
  struct operation *op;
  int64_t time;
};

struct seen {
  uint64_t set[2];
  int64_t value;
  bool used;
};

struct memory {
  struct seen *slots;
  size_t n, cap;
};

static struct operation *operations;
static size_t n_operations, cap_operations;

static void *must(void *p)
{
  if (p) return p;
  fprintf(stderr, "linear: out of memory\n");
  exit(2);
}

static void nonsense(const char *file, const char *line)
{
  fprintf(stderr, "linear: %s: %s\n", file, line);
  exit(2);
}

/* ---- reading ----------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
  const struct operation *x = a, *y = b;
  if (x->number != y->number) return x->number < y->number ? -1 : 1;
  return (x->call == 0) - (y->call == 0); /* the call before the answer */
}

static void read_file(const char *name)
{
  char line[500], what, kind;
  long long number, time, value;
  FILE *file = fopen(name, "r");
  if (file == NULL) nonsense(name, "cannot be read");
  while (fgets(line, sizeof(line), file)) {
    /* The last line of a process that was killed. */
    if (strchr(line, '\n') == NULL) break;
    if (sscanf(line, "%c %lld %lld %c %lld", &what, &number, &time, &kind,
               &value) != 5 ||
        (what != 'i' && what != 'o') || number <= 0 || time <= 0)
      nonsense(name, line);
    if (n_operations == cap_operations) {
      cap_operations = cap_operations ? cap_operations * 2 : 1024;
      operations =
          must(realloc(operations, cap_operations * sizeof(*operations)));
    }
    struct operation *op = &operations[n_operations++];
    *op = (struct operation){.number = number};
    if (what == 'i') {
      op->call = time;
      op->kind = kind;
      op->reg = value;
    } else {
      op->end = time;
      op->outcome = kind;
      op->value = value;
    }
  }
  fclose(file);
}

/* Makes one of each call and its answer. */
static void join_lines(void)
{
  size_t n = 0;
  qsort(operations, n_operations, sizeof(*operations), by_number);
  for (size_t i = 0; i < n_operations; i++) {
    struct operation op = operations[i];
    if (op.call == 0) nonsense("an answer without a call", "");
    if (i + 1 < n_operations && operations[i + 1].number == op.number) {
      const struct operation *answer = &operations[++i];
      if (answer->call || answer->end < op.call)
        nonsense("a number twice, or an answer before its call", "");
      op.end = answer->end;
      op.outcome = answer->outcome;
      op.value = answer->value;
    }
    if (strchr("rwx", op.kind)) operations[n++] = op;
  }
  n_operations = n;
}

/* ---- what is not known ------------------------------------------------- */

static struct operation *find(int64_t number)
{
  struct operation key = {.number = number, .call = 1};
  return n_operations ? bsearch(&key, operations, n_operations,
                                sizeof(*operations), by_number)
                      : NULL;
}

/* Sets an end to what has none, from what was read. */
static void settle(void)
{
  for (size_t i = 0; i < n_operations; i++) {
    struct operation *op = &operations[i];
    bool known = op->outcome == 'a';
    op->counts = known;
    if (!known) op->end = INT64_MAX;
  }
  for (size_t i = 0; i < n_operations; i++) {
    const struct operation *op = &operations[i];
    if (op->outcome != 'a' || op->kind == 'w' || op->value == 0) continue;
    struct operation *from = find(op->value);
    /* What was never written, or failed, or elsewhere: nothing explains it. */
    if (from == NULL || from->kind == 'r' || from->reg != op->reg ||
        from->outcome == 'a' || from->outcome == 'f')
      continue;
    from->counts = true;
    if (op->end < from->end) from->end = op->end;
  }
}

/* ---- the search -------------------------------------------------------- */

static uint64_t mix(uint64_t *state)
{
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* False: it was there. */
static bool remember(struct memory *m, const uint64_t set[2], int64_t value);

static void grow(struct memory *m)
{
  struct memory larger = {.cap = m->cap ? m->cap * 2 : 4096};
  larger.slots = must(calloc(larger.cap, sizeof(*larger.slots)));
  for (size_t i = 0; i < m->cap; i++)
    if (m->slots[i].used) remember(&larger, m->slots[i].set, m->slots[i].value);
  free(m->slots);
  *m = larger;
}

static bool remember(struct memory *m, const uint64_t set[2], int64_t value)
{
  if (m->n * 2 >= m->cap) grow(m);
  size_t i = (size_t)(set[0] ^ (uint64_t)value) & (m->cap - 1);
  for (; m->slots[i].used; i = (i + 1) & (m->cap - 1))
    if (m->slots[i].value == value && memcmp(m->slots[i].set, set, 16) == 0)
      return false;
  m->slots[i] = (struct seen){{set[0], set[1]}, value, true};
  m->n++;
  return true;
}

static int by_time(const void *a, const void *b)
{
  const struct event *x = a, *y = b;
  if (x->time != y->time) return x->time < y->time ? -1 : 1;
  /* At the same moment nothing was over before another began. */
  return (x->match == NULL) - (y->match == NULL);
}

static void lift(struct event *call)
{
  struct event *end = call->match;
  call->prev->next = call->next;
  call->next->prev = call->prev;
  end->prev->next = end->next;
  if (end->next) end->next->prev = end->prev;
}

static void unlift(struct event *call)
{
  struct event *end = call->match;
  end->prev->next = end;
  if (end->next) end->next->prev = end;
  call->prev->next = call;
  call->next->prev = call;
}

static void toggle(uint64_t set[2], const struct operation *op)
{
  set[0] ^= op->mark[0];
  set[1] ^= op->mark[1];
}

/* What the register holds after it; false: it would have read another value. */
static bool step(const struct operation *op, int64_t value, int64_t *after)
{
  *after = op->kind == 'r' ? value : op->number;
  return op->kind == 'w' || op->outcome != 'a' || op->value == value;
}

/* The events of a register in order; *head is before the first. */
static struct event *list_events(int64_t reg, size_t *n, struct event *head)
{
  struct event *events = must(calloc(2 * n_operations + 1, sizeof(*events)));
  *n = 0;
  for (size_t i = 0; i < n_operations; i++) {
    struct operation *op = &operations[i];
    if (op->reg != reg || !op->counts) continue;
    struct event *e = &events[*n];
    e[0] = (struct event){.op = op, .time = op->call, .match = e};
    e[1] = (struct event){.op = op, .time = op->end};
    *n += 2;
  }
  qsort(events, *n, sizeof(*events), by_time);
  struct event *before = head,
               **ends = must(calloc(n_operations + 1, sizeof(struct event *)));
  for (size_t i = 0; i < *n; i++) {
    events[i].prev = before;
    before->next = &events[i];
    before = &events[i];
    if (events[i].match == NULL) ends[events[i].op - operations] = &events[i];
  }
  before->next = NULL;
  for (size_t i = 0; i < *n; i++)
    if (events[i].match) events[i].match = ends[events[i].op - operations];
  free(ends);
  return events;
}

struct taken {
  struct event *call;
  int64_t before;
};

/* NULL: linearizable; else the operation that no order could get past, of the
   longest one. */
static const struct operation *search(struct event *head, size_t n)
{
  struct memory memory = {0};
  struct taken *stack = must(calloc(n + 1, sizeof(*stack)));
  size_t depth = 0, deepest = 0;
  const struct operation *stuck = NULL;
  uint64_t set[2] = {0, 0};
  int64_t value = 0, after;
  struct event *e = head->next;
  bool ok = true;
  while (ok && head->next) {
    if (e->match == NULL) {
      if (depth >= deepest) stuck = e->op;
      if (depth >= deepest) deepest = depth;
      ok = depth > 0;
      if (!ok) break;
      e = stack[--depth].call;
      value = stack[depth].before;
      toggle(set, e->op);
      unlift(e);
      e = e->next;
      continue;
    }
    bool fits = step(e->op, value, &after);
    if (fits) toggle(set, e->op);
    if (fits && remember(&memory, set, after)) {
      stack[depth++] = (struct taken){e, value};
      value = after;
      lift(e);
      e = head->next;
    } else {
      if (fits) toggle(set, e->op);
      e = e->next;
    }
  }
  free(memory.slots);
  free(stack);
  return ok ? NULL : stuck;
}

static bool check(int64_t reg)
{
  struct event head = {0};
  size_t n;
  struct event *events = list_events(reg, &n, &head);
  bool early = false; /* read before it began */
  for (size_t i = 0; i < n; i++)
    if (events[i].op->end < events[i].op->call) early = true;
  const struct operation *stuck = early ? events[0].op : search(&head, n);
  if (early)
    printf("register %lld: not linearizable: a number was read before its "
           "write began\n",
           (long long)reg);
  else if (stuck)
    printf("register %lld: not linearizable: no order explains %c %lld, "
           "which read %lld\n",
           (long long)reg, stuck->kind, (long long)stuck->number,
           (long long)stuck->value);
  else
    printf("register %lld: linearizable, %zu operations\n", (long long)reg,
           n / 2);
  free(events);
  return !stuck;
}

int main(int argc, char **argv)
{
  uint64_t state = 1;
  int64_t most = -1;
  bool all = true;
  for (int i = 1; i < argc; i++)
    read_file(argv[i]);
  join_lines();
  settle();
  for (size_t i = 0; i < n_operations; i++) {
    operations[i].mark[0] = mix(&state);
    operations[i].mark[1] = mix(&state);
    if (operations[i].reg > most) most = operations[i].reg;
  }
  for (int64_t reg = 0; reg <= most; reg++)
    all = check(reg) && all;
  free(operations);
  return all ? 0 : 1;
}
