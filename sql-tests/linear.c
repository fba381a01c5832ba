/*
** linear.c: are histories of registers and lists linearizable?
**
**     linear FILE...      lines as load.c writes them; kinds without an object
**                         that is read back are passed over
**
** A register holds 0 at first. `r` and `v` read it, `w` writes the operation's
** own number, `x` reads what is there and writes its number, `k` writes its
** number if what it expects is there. A list is empty at first; `p` puts its
** number at the end, `q` reads all of it. Every number is written at most once.
** Prints a line a register, and one for the lists; ends with 0 if each has an
** order of its operations, one at a time, within their times, that explains all
** that was read; with 1 if not; with 2 if the lines make no sense.
**
** The counter needs no search, since it only grows, and each of `c` and `l` is
** told the number that it made: what began after another was told a number has
** none below it (`i`, `o`). Reads at level local may be behind other nodes, but
** not behind what their own node told before. FILE is NODE.anything.
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
  int64_t number, object,
      value;        /* value: what it read; a list, as one number */
  int64_t expected; /* by k */
  int64_t call, end;
  char kind, outcome; /* 0: no answer */
  bool counts;
  uint64_t mark[2];
  char *list; /* as it was read; NULL: no list, or empty */
  int node;
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

#define NODES 64
#define FIRST_LIST ((int64_t)1 << 40) /* objects from here on are lists */

static struct operation *operations;
static size_t n_operations, cap_operations;
static struct operation **by_objects; /* those that count, object by object */
static size_t n_by_objects;
static char nodes[NODES][64];

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

static int node_of(const char *file)
{
  const char *name = strrchr(file, '/');
  char node[64];
  snprintf(node, sizeof(node), "%s", name ? name + 1 : file);
  node[strcspn(node, ".")] = 0;
  for (int i = 0; i < NODES; i++) {
    if (nodes[i][0] == 0) strcpy(nodes[i], node);
    if (strcmp(nodes[i], node) == 0) return i;
  }
  nonsense(file, "too many nodes");
  return 0;
}

static struct operation *new_operation(void)
{
  if (n_operations == cap_operations) {
    cap_operations = cap_operations ? cap_operations * 2 : 1024;
    operations =
        must(realloc(operations, cap_operations * sizeof(*operations)));
  }
  return &operations[n_operations++];
}

static void read_line(const char *file, int node, char *line)
{
  char what, kind;
  long long number, time, value = 0, expected = 0;
  int at = 0;
  int n = sscanf(line, "%c %lld %lld %c %n%lld %lld", &what, &number, &time,
                 &kind, &at, &value, &expected);
  if (n < 5 || (what != 'i' && what != 'o') || number <= 0 || time <= 0)
    nonsense(file, line);
  struct operation *op = new_operation();
  *op = (struct operation){.number = number, .node = node};
  if (what == 'i') {
    op->call = time;
    op->kind = kind;
    op->object = strchr("pq", kind) ? value + FIRST_LIST : value;
    op->expected = expected;
  } else {
    op->end = time;
    op->outcome = kind;
    op->value = value;
    line[strcspn(line, "\n")] = 0;
    if (kind == 'a' && value) op->list = must(strdup(line + at));
  }
}

static void read_file(const char *name)
{
  char *line = NULL;
  size_t cap = 0;
  FILE *file = fopen(name, "r");
  int node = node_of(name);
  if (file == NULL) nonsense(name, "cannot be read");
  /* The last line of a process that was killed may be torn. */
  while (getline(&line, &cap, file) > 0 && strchr(line, '\n'))
    read_line(name, node, line);
  free(line);
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
      op.list = answer->list;
    }
    if (strchr("rvwxkpqclio", op.kind)) operations[n++] = op;
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

/* A list as one number, made from the one before its last was put there. */
static int64_t chain(int64_t list, int64_t number)
{
  uint64_t z = (uint64_t)list * 0x9e3779b97f4a7c15u + (uint64_t)number;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (int64_t)((z ^ (z >> 31)) | 1);
}

/* `op` read a number: whoever wrote it did so before that. */
static void was_read(const struct operation *op, int64_t number)
{
  struct operation *from = find(number);
  /* What was never written, or failed, or elsewhere: nothing explains it. */
  if (from == NULL || strchr("rvq", from->kind) || from->object != op->object ||
      from->outcome == 'a' || from->outcome == 'f')
    return;
  from->counts = true;
  if (op->end < from->end) from->end = op->end;
}

static void list_was_read(struct operation *op)
{
  op->value = 0;
  for (char *at = op->list; at && *at; at += strspn(at, ",")) {
    int64_t number = strtoll(at, &at, 10);
    was_read(op, number);
    op->value = chain(op->value, number);
    if (number == 0) nonsense("a list", op->list);
  }
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
    struct operation *op = &operations[i];
    if (op->outcome != 'a') continue;
    if (op->kind == 'q') list_was_read(op);
    if (strchr("rvx", op->kind) && op->value) was_read(op, op->value);
    if (op->kind == 'k' && op->value && op->expected)
      was_read(op, op->expected);
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

/* What the object holds after it; false: it would have been told otherwise. */
static bool step(const struct operation *op, int64_t value, int64_t *after)
{
  bool known = op->outcome == 'a';
  switch (op->kind) {
  case 'w': *after = op->number; return true;
  case 'x': *after = op->number; return !known || op->value == value;
  case 'k':
    *after = known && op->value == 0 ? value : op->number;
    return (known && op->value == 0) != (op->expected == value);
  case 'p': *after = chain(value, op->number); return true;
  default: *after = value; return !known || op->value == value;
  }
}

/* The events of some operations in order; *head is before the first. */
static struct event *list_events(struct operation **ops, size_t n_ops,
                                 struct event *head)
{
  size_t n = 2 * n_ops;
  struct event *events = must(calloc(n + 1, sizeof(*events)));
  for (size_t i = 0; i < n_ops; i++) {
    struct event *e = &events[2 * i];
    e[0] = (struct event){.op = ops[i], .time = ops[i]->call, .match = e};
    e[1] = (struct event){.op = ops[i], .time = ops[i]->end};
  }
  qsort(events, n, sizeof(*events), by_time);
  struct event *before = head,
               **ends = must(calloc(n_operations + 1, sizeof(struct event *)));
  for (size_t i = 0; i < n; i++) {
    events[i].prev = before;
    before->next = &events[i];
    before = &events[i];
    if (events[i].match == NULL) ends[events[i].op - operations] = &events[i];
  }
  before->next = NULL;
  for (size_t i = 0; i < n; i++)
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

static void complain(const struct operation *op, const char *how)
{
  bool list = op->object >= FIRST_LIST;
  printf("%s %lld: not linearizable: %s %c %lld, which read %s\n",
         list ? "list" : "register",
         (long long)(list ? op->object - FIRST_LIST : op->object), how,
         op->kind, (long long)op->number, op->list ? op->list : "nothing");
}

static bool check(struct operation **ops, size_t n)
{
  struct event head = {0};
  struct event *events = list_events(ops, n, &head);
  const struct operation *stuck = NULL;
  for (size_t i = 0; i < n; i++)
    if (ops[i]->end < ops[i]->call) stuck = ops[i];
  if (stuck) {
    complain(stuck, "its number was read before it began:");
  } else {
    stuck = search(&head, 2 * n);
    if (stuck) complain(stuck, "no order explains");
  }
  free(events);
  return !stuck;
}

static int by_object(const void *a, const void *b)
{
  const struct operation *x = *(struct operation *const *)a,
                         *y = *(struct operation *const *)b;
  if (x->object != y->object) return x->object < y->object ? -1 : 1;
  return x < y ? -1 : x > y;
}

static bool check_objects(void)
{
  bool all = true;
  size_t lists = 0, puts_and_reads = 0, n;
  by_objects = must(calloc(n_operations + 1, sizeof(*by_objects)));
  for (size_t i = 0; i < n_operations; i++)
    if (operations[i].counts && strchr("rvwxkpq", operations[i].kind))
      by_objects[n_by_objects++] = &operations[i];
  qsort(by_objects, n_by_objects, sizeof(*by_objects), by_object);
  for (size_t i = 0; i < n_by_objects; i += n) {
    int64_t object = by_objects[i]->object;
    for (n = 1; i + n < n_by_objects && by_objects[i + n]->object == object;)
      n++;
    bool good = check(by_objects + i, n);
    all = all && good;
    if (good && object < FIRST_LIST)
      printf("register %lld: linearizable, %zu operations\n", (long long)object,
             n);
    if (good && object >= FIRST_LIST) {
      lists++;
      puts_and_reads += n;
    }
  }
  if (lists)
    printf("lists: %zu are linearizable, %zu operations\n", lists,
           puts_and_reads);
  free(by_objects);
  return all;
}

/* ---- the counter ------------------------------------------------------- */

static bool is_local(const struct operation *op)
{
  return strchr("io", op->kind) && op->object == 2;
}

/* What an operation that begins now may not be told less than. */
struct known {
  int64_t anywhere, on[NODES];
};

/* Whether an operation was told what was known when it began. */
static bool end_of(const struct operation *op, int64_t floor,
                   struct known *known)
{
  bool makes = strchr("cl", op->kind) != NULL;
  if (op->value < floor + makes) {
    printf("counter: not in order: %c %lld on %s was told %lld, and %lld was "
           "told before it began\n",
           op->kind, (long long)op->number, nodes[op->node],
           (long long)op->value, (long long)floor);
    return false;
  }
  if (op->value > known->anywhere) known->anywhere = op->value;
  if (op->value > known->on[op->node]) known->on[op->node] = op->value;
  return true;
}

static bool check_counter(void)
{
  struct known known = {0};
  struct event head = {0};
  size_t n = 0;
  bool good = true;
  struct operation **ops = must(calloc(n_operations + 1, sizeof(*ops)));
  for (size_t i = 0; i < n_operations; i++)
    if (operations[i].counts && strchr("clio", operations[i].kind))
      ops[n++] = &operations[i];
  struct event *events = list_events(ops, n, &head);
  int64_t *floors = must(calloc(n_operations + 1, sizeof(*floors)));
  for (const struct event *e = head.next; e; e = e->next) {
    int64_t *floor = &floors[e->op - operations];
    if (e->match)
      *floor = is_local(e->op) ? known.on[e->op->node] : known.anywhere;
    else
      good = end_of(e->op, *floor, &known) && good;
  }
  if (good && n) printf("counter: in order, %zu operations\n", n);
  free(floors);
  free(events);
  free(ops);
  return good;
}

int main(int argc, char **argv)
{
  uint64_t state = 1;
  for (int i = 1; i < argc; i++)
    read_file(argv[i]);
  join_lines();
  settle();
  for (size_t i = 0; i < n_operations; i++) {
    operations[i].mark[0] = mix(&state);
    operations[i].mark[1] = mix(&state);
  }
  bool objects = check_objects(), counter = check_counter();
  for (size_t i = 0; i < n_operations; i++)
    free(operations[i].list);
  free(operations);
  return objects && counter ? 0 : 1;
}
