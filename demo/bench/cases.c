/*
** cases.c: what is measured, as tables. A case has sides that take turns in
** short rounds, so that whatever else the machine does meets all of them; a
** row of its result compares two sides, by the median of the rounds' ratios.
*/
#include "bench.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIDES 4
#define ROWS 6
#define ROUNDS 7

enum who {
  NOBODY,
  PLAIN,
  SINGLE,
  LEADER,
  FOLLOWER,
  EACH,
  AT_SINGLE, /* in another process than its node */
  AT_LEADER
};
enum figure { RATE, P50_MS, P99_MS, P50_US };

/* Who does what. */
struct side {
  const char *name;
  enum who who; /* NOBODY ends the list */
  const char *kind, *level;
  int threads;
};

/* Compares sides[mine] with sides[other]. */
struct line {
  const char *label; /* NULL ends the list */
  enum figure figure;
  int other, mine;
  enum goal goal;
  double bound;
};

struct test {
  const char *name;
  int rounds;
  unsigned ms; /* of a round */
  struct side sides[SIDES];
  struct line lines[ROWS];
};

#define MOST GOAL_RATIO_MOST
#define LEAST GOAL_RATIO_LEAST

static const struct test tests[] = {
    {"1 writer",
     ROUNDS,
     600,
     {{"stock 1", PLAIN, "write", "-", 1},
      {"one 1", SINGLE, "write", "-", 1},
      {"leader 1", LEADER, "write", "-", 1},
      {"follower 1", FOLLOWER, "write", "-", 1}},
     {{"1 writer, cluster of one, p50 ms", P50_MS, 0, 1, MOST, 1.3},
      {"1 writer, leader, p50 ms", P50_MS, 0, 2, MOST, 2},
      {"1 writer, leader, p99 ms", P99_MS, 0, 2, GOAL_NONE, 0},
      {"1 writer, leader, tx/s", RATE, 0, 2, GOAL_NONE, 0},
      {"1 writer, follower to leader, tx/s", RATE, 2, 3, LEAST, 0.4}}},
    {"16 writers",
     ROUNDS,
     600,
     {{"stock 16", PLAIN, "write", "-", 16},
      {"leader 16", LEADER, "write", "-", 16},
      {"follower 16", FOLLOWER, "write", "-", 16}},
     {{"16 writers, leader, tx/s", RATE, 0, 1, LEAST, 3},
      {"16 writers, leader, p99 ms", P99_MS, 0, 1, GOAL_NONE, 0},
      {"16 writers, follower to leader, tx/s", RATE, 1, 2, LEAST, 0.8}}},
    {"64 writers",
     ROUNDS,
     800,
     {{"stock 64", PLAIN, "write", "-", 64},
      {"leader 64", LEADER, "write", "-", 64}},
     {{"64 writers, leader, tx/s", RATE, 0, 1, LEAST, 4},
      {"64 writers, leader, p99 ms", P99_MS, 0, 1, GOAL_VALUE_MOST, 20}}},
    {"writers on each node",
     ROUNDS,
     600,
     {{"leader 3", LEADER, "write", "-", 3}, {"each 1", EACH, "write", "-", 1}},
     {{"1 writer on each of 3 to 3 on leader, tx/s", RATE, 0, 1, LEAST, 0.7}}},
    {"mixed",
     ROUNDS,
     600,
     {{"stock mixed 16", PLAIN, "mixed", "-", 16},
      {"leader mixed 16", LEADER, "mixed", "linearizable", 16},
      {"leader mixed local 16", LEADER, "mixed", "local", 16}},
     {{"90/10, 16 threads, linearizable, 1/s", RATE, 0, 1, LEAST, 2},
      {"90/10, 16 threads, local, 1/s", RATE, 0, 2, LEAST, 2}}},
    {"1 reader",
     ROUNDS,
     300,
     {{"stock read 1", PLAIN, "read", "-", 1},
      {"follower read 1", FOLLOWER, "read", "local", 1},
      {"leader fresh 1", LEADER, "read", "linearizable", 1},
      {"leader lease 1", LEADER, "read", "lease", 1}},
     {{"1 reader, local, follower, 1/s", RATE, 0, 1, LEAST, 1},
      {"1 reader, linearizable, leader, 1/s", RATE, 0, 2, GOAL_NONE, 0},
      {"1 reader, lease, leader, 1/s", RATE, 0, 3, GOAL_NONE, 0}}},
    {"4 readers",
     ROUNDS,
     300,
     {{"stock read 4", PLAIN, "read", "-", 4},
      {"follower read 4", FOLLOWER, "read", "local", 4}},
     {{"4 readers, local, follower, 1/s", RATE, 0, 1, LEAST, 1}}},
    {"attached writer",
     ROUNDS,
     600,
     {{"one 1 again", SINGLE, "write", "-", 1},
      {"one attached 1", AT_SINGLE, "write", "-", 1},
      {"leader 1 again", LEADER, "write", "-", 1},
      {"leader attached 1", AT_LEADER, "write", "-", 1}},
     {{"attached writer to host's, of one, p50 ms", P50_MS, 0, 1, MOST, 1.3},
      {"attached writer to host's, leader, p50 ms", P50_MS, 2, 3, MOST, 1.3}}},
    {"attached readers",
     ROUNDS,
     300,
     {{"stock read 1 again", PLAIN, "read", "-", 1},
      {"attached read 1", AT_LEADER, "read", "local", 1},
      {"stock read 4 again", PLAIN, "read", "-", 4},
      {"attached read 4", AT_LEADER, "read", "local", 4}},
     {{"1 attached reader, local, 1/s", RATE, 0, 1, LEAST, 0.95},
      {"4 attached readers, local, 1/s", RATE, 2, 3, LEAST, 0.95}}},
    {"fresh 1",
     ROUNDS,
     400,
     {{"ping 1", PLAIN, "ping", "-", 1},
      {"follower fresh 1", FOLLOWER, "read", "linearizable", 1},
      {"follower lease 1", FOLLOWER, "read", "lease", 1}},
     {{"1 linearizable read, follower, p50 us", P50_US, 0, 1, MOST, 1.5},
      {"1 lease read, follower, p50 us", P50_US, 0, 2, GOAL_NONE, 0}}},
    {"fresh 16",
     ROUNDS,
     400,
     {{"ping 16", PLAIN, "ping", "-", 16},
      {"follower fresh 16", FOLLOWER, "read", "linearizable", 16},
      {"follower lease 16", FOLLOWER, "read", "lease", 16}},
     {{"16 linearizable reads, follower, p50 us", P50_US, 0, 1, MOST, 1.5},
      {"16 lease reads, follower, p50 us", P50_US, 0, 2, GOAL_NONE, 0}}},
    {"batch",
     ROUNDS,
     500,
     {{"stock batch", PLAIN, "batch", "-", 1},
      {"leader batch", LEADER, "batch", "-", 1}},
     {{"transactions of 1000 rows, rows/s", RATE, 0, 1, LEAST, 0.7}}},
    {"bulk",
     3,
     1,
     {{"stock bulk", PLAIN, "bulk", "-", 1},
      {"leader bulk", LEADER, "bulk", "-", 1}},
     {{"1 million rows in one transaction, rows/s", RATE, 0, 1, LEAST, 0.7}}},
};
#define TESTS (sizeof tests / sizeof *tests)

/* ---- a side's turn ----------------------------------------------------- */

struct outcome {
  double rate, p50, p99; /* a second, ns, ns */
  unsigned long long errors;
};

/* What a side did in all rounds. */
struct record {
  struct outcome round[ROUNDS];
  unsigned long long errors;
  char reason[300];
  bool refused;
};

static int port; /* of the worker that sends back */
static double writers[LOAD_CLIENTS + 1];

/* The workers of a side, first to last. */
static void workers_of(enum who who, int *first, int *last)
{
  *first = who == PLAIN       ? STOCK
           : who == SINGLE    ? ONE
           : who == LEADER    ? find_leader()
           : who == FOLLOWER  ? find_follower()
           : who == AT_SINGLE ? BESIDE_ONE
           : who == AT_LEADER ? BESIDE_A
                              : A;
  *last = who == EACH ? C : *first;
}

static void keep_reason(struct record *r, const char *reason)
{
  if (!r->reason[0]) snprintf(r->reason, sizeof r->reason, "%s", reason);
}

/* Whether it can be done at all; otherwise a round would be spent on waiting
   for time limits. */
static void try_side(const struct side *side, struct record *r)
{
  int first, last;
  workers_of(side->who, &first, &last);
  if (side->who == AT_LEADER && find_leader() != A) {
    r->refused = true;
    keep_reason(r, "another node leads than the one beside which it is");
  }
  for (int w = first; w <= last; w++) {
    bool ok;
    tell_begin(w, "try %s %s", side->kind, side->level);
    const char *reason = tell_end(w, &ok);
    if (ok) continue;
    r->refused = true;
    keep_reason(r, reason);
  }
}

static struct outcome turn(const struct side *side, unsigned ms,
                           struct record *r)
{
  int first, last;
  struct outcome sum = {0};
  workers_of(side->who, &first, &last);
  for (int w = first; w <= last; w++)
    tell_begin(w, "run %s %s %d %u %d", side->kind, side->level, side->threads,
               ms, port);
  for (int w = first; w <= last; w++) {
    bool ok;
    struct outcome o;
    int used = 0;
    const char *text = tell_end(w, &ok);
    if (!ok || sscanf(text, "%lf %lf %lf %llu %n", &o.rate, &o.p50, &o.p99,
                      &o.errors, &used) < 4) {
      r->refused = true;
      keep_reason(r, text);
      continue;
    }
    sum.rate += o.rate;
    sum.p50 += o.p50 / (last - first + 1);
    sum.p99 = o.p99 > sum.p99 ? o.p99 : sum.p99;
    sum.errors += o.errors;
    if (o.errors) keep_reason(r, text + used);
  }
  r->errors += sum.errors;
  return sum;
}

/* ---- rows -------------------------------------------------------------- */

static double figure_of(const struct outcome *o, enum figure figure)
{
  return figure == RATE     ? o->rate
         : figure == P50_MS ? o->p50 / 1e6
         : figure == P99_MS ? o->p99 / 1e6
                            : o->p50 / 1e3;
}

static double middle(const struct record *r, int rounds, enum figure figure)
{
  double values[ROUNDS];
  for (int i = 0; i < rounds; i++)
    values[i] = figure_of(&r->round[i], figure);
  return median(values, rounds);
}

static void print_line(const struct test *test, const struct line *line,
                       const struct record *records)
{
  const struct record *other = &records[line->other];
  const struct record *mine = &records[line->mine];
  double ratio[ROUNDS];
  for (int i = 0; i < test->rounds; i++) {
    double base = figure_of(&other->round[i], line->figure);
    ratio[i] = base > 0 ? figure_of(&mine->round[i], line->figure) / base : 0;
  }
  const struct side *against = &test->sides[line->other];
  struct row row = {.label = line->label,
                    .other = against->who != PLAIN ||
                             strcmp(against->kind, "ping") == 0,
                    .stock = middle(other, test->rounds, line->figure),
                    .quorate = middle(mine, test->rounds, line->figure),
                    .ratio = median(ratio, test->rounds),
                    .goal = line->goal,
                    .bound = line->bound,
                    .failed = mine->errors > 0};
  /* Nothing done is no figure, whatever its ratio. */
  bool nothing = row.quorate <= 0 || row.stock <= 0;
  if (mine->refused || (nothing && mine->errors))
    row.refused = mine->reason;
  else if (other->refused || nothing)
    row.refused = other->reason[0] ? other->reason : "nothing was done";
  table_row(&row);
}

static void print_test(const struct test *test, const struct record *records)
{
  for (int i = 0; i < ROWS && test->lines[i].label; i++)
    print_line(test, &test->lines[i], records);
  for (int i = 0; i < SIDES && test->sides[i].who; i++)
    if (records[i].errors && !records[i].refused)
      table_note("%s: %llu errors, the first: %s", test->sides[i].name,
                 records[i].errors, records[i].reason);
}

static void remember_writers(const struct test *test,
                             const struct record *records)
{
  for (int i = 0; i < SIDES && test->sides[i].who; i++)
    if (test->sides[i].who == LEADER &&
        strcmp(test->sides[i].kind, "write") == 0)
      writers[test->sides[i].threads] = middle(&records[i], test->rounds, RATE);
}

double cases_writers(int n)
{
  return writers[n];
}

static void run_test(const struct test *test)
{
  static struct record records[SIDES];
  memset(records, 0, sizeof records);
  for (int i = 0; i < SIDES && test->sides[i].who; i++)
    try_side(&test->sides[i], &records[i]);
  /* The round before the first opens connections and warms caches. */
  for (int r = test->rounds == ROUNDS ? -1 : 0; r < test->rounds; r++)
    for (int i = 0; i < SIDES && test->sides[i].who; i++) {
      if (records[i].refused) continue;
      settle();
      /* 100 MB that wait to be written would be the next one's burden. */
      if (strcmp(test->sides[i].kind, "bulk") == 0) process_sync();
      struct record ignored = {0};
      struct record *record = r < 0 ? &ignored : &records[i];
      struct outcome o = turn(&test->sides[i], test->ms, record);
      if (r < 0)
        records[i].refused = ignored.refused;
      else
        records[i].round[r] = o;
      if (ignored.refused) keep_reason(&records[i], ignored.reason);
    }
  remember_writers(test, records);
  print_test(test, records);
}

/* ---- which ------------------------------------------------------------- */

static bool matches(const struct test *test, const char *only)
{
  if (!only || fnmatch(only, test->name, 0) == 0) return true;
  for (int i = 0; i < SIDES && test->sides[i].who; i++)
    if (fnmatch(only, test->sides[i].name, 0) == 0) return true;
  return false;
}

int cases_run(const char *only)
{
  int n = 0;
  port = atoi(tell(ECHO, "echo"));
  for (size_t i = 0; i < TESTS; i++)
    if (matches(&tests[i], only)) {
      run_test(&tests[i]);
      n++;
    }
  return n;
}

static void profile(const struct side *side, unsigned ms)
{
  struct record r = {0};
  int first, last;
  workers_of(side->who, &first, &last);
  printf("%s: for %.1f s, process", side->name, ms / 1e3);
  for (int w = first; w <= last; w++)
    printf(" %d", (int)process_pid(w));
  if (side->who != PLAIN && side->who != SINGLE)
    printf(" (a %d, b %d, c %d; %s leads)", (int)process_pid(A),
           (int)process_pid(B), (int)process_pid(C),
           worker_names[find_leader()]);
  printf("\n");
  fflush(stdout);
  try_side(side, &r);
  struct outcome o = {0};
  if (!r.refused) o = turn(side, ms, &r);
  if (r.refused) {
    printf("%s: refused: %s\n", side->name, r.reason);
    return;
  }
  printf("%s: %.0f 1/s, p50 %.4f ms, p99 %.4f ms\n", side->name, o.rate,
         o.p50 / 1e6, o.p99 / 1e6);
  if (r.errors) printf("%s: %llu errors: %s\n", side->name, r.errors, r.reason);
}

int cases_profile(const char *only, unsigned ms)
{
  int n = 0;
  port = atoi(tell(ECHO, "echo"));
  for (size_t i = 0; i < TESTS; i++)
    for (int s = 0; s < SIDES && tests[i].sides[s].who; s++)
      if (fnmatch(only, tests[i].sides[s].name, 0) == 0) {
        profile(&tests[i].sides[s], ms);
        n++;
      }
  return n;
}

void cases_list(void)
{
  for (size_t i = 0; i < TESTS; i++) {
    printf("%s:", tests[i].name);
    for (int s = 0; s < SIDES && tests[i].sides[s].who; s++)
      printf("%s %s", s ? "," : "", tests[i].sides[s].name);
    printf("\n");
  }
}
