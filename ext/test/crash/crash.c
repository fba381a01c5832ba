/*
** crash.c: the program: records workloads, makes states, has them checked.
**
**   crash [--states N] [--seed S] [--workload one|three|both] [--jobs N]
**         [--from OP] [--to OP] [--fate NAME] [--keep]
**   crash --load FILE [--at OP --state SEED | --print] ...
**
** A record is made of several processes' lives (workload.c), and after some of
** them the power is lost and comes back: so starting is recorded too. From one
** record come some hundred states, at operations chosen at random, those that
** matter more often. States that were there before do not count and are not
** checked again.
**
** The first state that a node does not live on with ends the program: it says
** how to see it again. Times and random numbers of a workload are not under a
** seed's control, so the record is kept, and with it everything repeats.
*/
#include "crash.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SEEN (1u << 20) /* places for hashes of states */
#define JOBS_MAX 16
#define CHECK_S 60     /* a check may take */
#define PER_RECORD 700 /* states */
#define LAST_OPS 30
#define WHY 600

struct options {
  unsigned long states, jobs;
  uint64_t seed, from, to, at, state;
  const char *workload, *load;
  int fate;
  bool keep, replay, print;
};

/* Shared by all processes. */
struct shared {
  _Atomic uint64_t seen[SEEN];
  _Atomic unsigned long made, checked; /* states; distinct ones */
  _Atomic bool failed;
  struct {
    char why[WHY];
    char text[64]; /* of the workload */
  } slot[JOBS_MAX + 1];
};

struct sample {
  uint64_t op, seed;
};

static struct shared *shared;
static char base[CRASH_PATH]; /* everything of this run is in it */

void die(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  fprintf(stderr, "crash: ");
  vfprintf(stderr, format, args);
  fprintf(stderr, "\n");
  va_end(args);
  fflush(NULL);
  _exit(2);
}

uint64_t random_next(uint64_t *state)
{
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static double now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void make_directory(const char *path)
{
  if (mkdir(path, 0700) != 0 && errno != EEXIST)
    die("%s: %s", path, strerror(errno));
}

/* ---- recording --------------------------------------------------------- */

/* Power was lost: what is left is what the next process finds. */
static void lose_power(struct record *record, struct disk *disk, uint64_t seed)
{
  record_power(record, seed);
  disk_play(disk, record->n);
  struct state *state = state_make(disk, 0, FATE_KILLED);
  state_write(state, record->root);
  state_free(state);
}

static bool run_phase(struct record *record, const struct phase *phase)
{
  int status;
  fflush(stdout);
  pid_t pid = fork();
  if (pid < 0) die("fork: %s", strerror(errno));
  if (pid == 0) {
    record_to(record);
    alarm(120);
    workload_run(phase);
  }
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) die("waitpid: %s", strerror(errno));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  if (WIFSIGNALED(status))
    printf("the workload: ended by signal %d\n", WTERMSIG(status));
  return false;
}

/* False: the workload itself found that something is wrong. */
static bool make_record(struct record *record, uint64_t seed, unsigned nodes)
{
  char dir[CRASH_PATH + 16];
  uint64_t random = seed;
  bool ok = true;
  record->nodes = nodes;
  record->seed = seed;
  for (unsigned i = 1; i <= nodes; i++) {
    snprintf(dir, sizeof(dir), "%sn%u", record->root, i);
    make_directory(dir);
  }
  struct disk *disk = disk_new(record);
  unsigned phases = nodes == 1 ? 7 : 4;
  for (unsigned i = 0; ok && i < phases; i++) {
    struct phase phase = {.root = record->root,
                          .nodes = nodes,
                          .number = i,
                          .transactions = nodes == 1 ? 30 : 40,
                          .seed = random_next(&random),
                          .known = disk_known(disk)};
    phase.end = (enum phase_end)random_below(&random, 3);
    ok = run_phase(record, &phase);
    disk_play(disk, record->n);
    if (ok && phase.end == END_POWER)
      lose_power(record, disk, random_next(&random));
  }
  disk_free(disk);
  return ok;
}

/* ---- samples ----------------------------------------------------------- */

/* Frames and entries are many; what else is done to files is rarer. */
static unsigned weight(const struct op *op, bool frame)
{
  switch ((enum op_kind)op->kind) {
  case OP_MARK: return 2;
  case OP_WRITE: return frame ? 1 : 3;
  case OP_OPEN: return 1;
  default: return 6;
  }
}

static int by_op(const void *a, const void *b)
{
  const struct sample *x = a, *y = b;
  return x->op < y->op ? -1 : x->op > y->op;
}

/* Operations before which power is lost, in order. */
static struct sample *draw(const struct record *record,
                           const struct options *options, uint64_t *random,
                           size_t n)
{
  struct sample *samples = calloc(n, sizeof(*samples));
  uint64_t *sums = calloc(record->n + 1, sizeof(*sums)), sum = 0, at = 0;
  uint64_t snapshot = 0; /* one is taken, up to some operation */
  bool made = false;     /* the first node, and no course is under way */
  if (samples == NULL || sums == NULL) die("out of memory");
  for (uint64_t i = 0; i < record->n; i++) {
    const struct op *op = (const void *)(record->ops + at);
    bool in = i >= options->from && i <= options->to;
    bool rare = !made || i < snapshot;
    if (op->n_text && strstr(op->text, "/incoming/")) snapshot = i + 200;
    if (op->kind == OP_MARK && op->mark == MARK_MEMBER) made = true;
    if (op->kind == OP_MARK && op->mark == MARK_COURSE) made = false;
    sum += !in ? 0 : weight(op, op->n_data > 500) * (rare ? 8 : 1);
    sums[i] = sum;
    at += op->bytes;
  }
  for (size_t k = 0; k < n; k++) {
    uint64_t want = random_below(random, sum), low = 0, high = record->n;
    while (low < high) {
      uint64_t mid = (low + high) / 2;
      if (sums[mid] > want)
        high = mid;
      else
        low = mid + 1;
    }
    /* Before it or after it. */
    samples[k].op = low + random_below(random, 2);
    samples[k].seed = random_next(random);
  }
  free(sums);
  qsort(samples, n, sizeof(*samples), by_op);
  return samples;
}

/* ---- checking ---------------------------------------------------------- */

static bool first_seen(uint64_t hash)
{
  if (hash == 0) hash = 1;
  for (uint64_t i = hash % SEEN;; i = (i + 1) % SEEN) {
    uint64_t none = 0;
    if (atomic_compare_exchange_strong(&shared->seen[i], &none, hash))
      return true;
    if (none == hash) return false;
  }
}

static void run_check(const struct state *state, const struct check *check)
{
  record_to(NULL);
  alarm(CHECK_S);
  state_write(state, check->root);
  bool ok = check_state(check);
  _exit(ok ? 0 : 1);
}

/* In a child, so that what goes wrong there ends only that. */
static bool passes(const struct state *state, const struct check *check)
{
  int status;
  check->why[0] = 0;
  fflush(stdout);
  pid_t pid = fork();
  if (pid < 0) die("fork: %s", strerror(errno));
  if (pid == 0) run_check(state, check);
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) die("waitpid: %s", strerror(errno));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  if (WIFSIGNALED(status))
    snprintf(check->why, check->size, "ended by signal %d%s", WTERMSIG(status),
             WTERMSIG(status) == SIGALRM ? ": it takes too long" : "");
  else if (check->why[0] == 0)
    snprintf(check->why, check->size, "ended with status %d",
             WEXITSTATUS(status));
  return false;
}

static uint64_t newest_ops(uint64_t end)
{
  return end > LAST_OPS ? end - LAST_OPS : 0;
}

/* Operations with the names of files. */
static void print_ops(const struct record *record, uint64_t from, uint64_t end)
{
  const char **names = calloc(record->files + 1u, sizeof(*names));
  uint64_t at = 0;
  if (names == NULL) die("out of memory");
  for (uint64_t i = 0; i < end && i < record->n; i++) {
    const struct op *op = (const void *)(record->ops + at);
    if (op->kind == OP_OPEN) names[op->file] = op->text;
    if (i >= from) op_print(op, i, op->file ? names[op->file] : NULL);
    at += op->bytes;
  }
  free(names);
}

/* Keeps the state as it was before the check, and the record. */
static void report(const struct record *record, const struct state *state,
                   const struct sample *sample, const struct check *check,
                   const struct options *options)
{
  char kept[CRASH_PATH + 64], record_path[CRASH_PATH + 64];
  snprintf(record_path, sizeof(record_path), "%s/record", base);
  printf("FAILED: %s\n", check->why);
  printf("at operation %llu of %llu, record of seed %llu, state %llu\n",
         (unsigned long long)sample->op, (unsigned long long)record->n,
         (unsigned long long)record->seed, (unsigned long long)sample->seed);
  print_ops(record, newest_ops(sample->op), sample->op);
  printf("what was left:\n");
  state_print(state);
  if (options->keep) {
    snprintf(kept, sizeof(kept), "%s/failed/", base);
    make_directory(kept);
    state_write(state, kept);
    printf("the state is in %s\n", kept);
  }
  printf("again: crash --load %s --at %llu --state %llu\n",
         options->load ? options->load : record_path,
         (unsigned long long)sample->op, (unsigned long long)sample->seed);
  fflush(stdout);
}

/* One worker's share: every `jobs`-th sample. */
static void work(const struct record *record, const struct sample *samples,
                 size_t n, unsigned job, const struct options *options)
{
  char root[CRASH_PATH + 16];
  snprintf(root, sizeof(root), "%s/w%u/", base, job);
  make_directory(root);
  struct disk *disk = disk_new(record);
  struct check check = {.root = root,
                        .nodes = record->nodes,
                        .known = disk_known(disk),
                        .why = shared->slot[job].why,
                        .size = WHY};
  for (size_t i = job; i < n && !atomic_load(&shared->failed);
       i += options->jobs) {
    disk_play(disk, samples[i].op);
    struct state *state = state_make(disk, samples[i].seed, options->fate);
    atomic_fetch_add(&shared->made, 1);
    check.seed = samples[i].seed;
    if (options->replay || first_seen(state_hash(state))) {
      bool ok = passes(state, &check);
      atomic_fetch_add(&shared->checked, 1);
      if (!ok && !atomic_exchange(&shared->failed, true))
        report(record, state, &samples[i], &check, options);
    }
    state_free(state);
  }
  disk_free(disk);
}

static void check_record(const struct record *record,
                         const struct sample *samples, size_t n,
                         const struct options *options)
{
  pid_t pids[JOBS_MAX];
  fflush(stdout);
  for (unsigned i = 0; i < options->jobs; i++) {
    pids[i] = fork();
    if (pids[i] < 0) die("fork: %s", strerror(errno));
    if (pids[i] > 0) continue;
    work(record, samples, n, i, options);
    fflush(stdout);
    _exit(0);
  }
  for (unsigned i = 0; i < options->jobs; i++) {
    int status = 0;
    while (waitpid(pids[i], &status, 0) < 0)
      if (errno != EINTR) die("waitpid: %s", strerror(errno));
    if (status != 0) die("a worker ended with status %d", status);
  }
}

/* ---- runs -------------------------------------------------------------- */

/* Up to `want` states of one new record. False: something was found. */
static bool one_record(const struct options *options, uint64_t seed,
                       unsigned nodes, unsigned long want)
{
  char root[CRASH_PATH + 16], path[CRASH_PATH + 16];
  uint64_t random = seed;
  double start = now();
  snprintf(root, sizeof(root), "%s/recorded/", base);
  snprintf(path, sizeof(path), "%s/record", base);
  make_directory(root);
  remove_tree(root, false);
  struct record *record = record_new(path, root);
  if (!make_record(record, random_next(&random), nodes)) {
    printf("FAILED while it was recorded; the record is %s\n", path);
    print_ops(record, newest_ops(record->n), record->n);
    return false;
  }
  double recorded = now();
  unsigned long before = shared->checked;
  struct sample *samples = draw(record, options, &random, want);
  check_record(record, samples, want, options);
  free(samples);
  unsigned long distinct = shared->checked - before;
  double end = now();
  printf("%s: seed %llu, %llu operations in %.1f s; %lu states in %.1f s "
         "(%.0f/s)\n",
         nodes == 1 ? "one node" : "three nodes", (unsigned long long)seed,
         (unsigned long long)record->n, recorded - start, distinct,
         end - recorded, (double)distinct / (end - recorded));
  fflush(stdout);
  record_free(record);
  return !shared->failed;
}

/* Records until there are enough states of that workload. */
static bool many_records(const struct options *options, unsigned nodes,
                         unsigned long states)
{
  uint64_t random = options->seed * 2 + nodes;
  unsigned long per = nodes == 1 ? PER_RECORD : PER_RECORD / 4;
  unsigned long start = shared->checked;
  double began = now();
  for (unsigned i = 0; shared->checked - start < states; i++) {
    unsigned long left = states - (shared->checked - start);
    if (!one_record(options, random_next(&random), nodes,
                    left < per ? left : per))
      return false;
  }
  unsigned long distinct = shared->checked - start;
  printf("%s: %lu distinct states in %.0f s\n",
         nodes == 1 ? "one node" : "three nodes", distinct, now() - began);
  fflush(stdout);
  return true;
}

static bool run_loaded(const struct options *options)
{
  struct record *record = record_load(options->load);
  uint64_t random = options->seed;
  if (options->print) {
    print_ops(record, options->from, options->to);
  } else if (options->replay) {
    struct sample sample = {.op = options->at, .seed = options->state};
    check_record(record, &sample, 1, options);
  } else {
    struct sample *samples = draw(record, options, &random, options->states);
    check_record(record, samples, options->states, options);
    free(samples);
  }
  return !shared->failed;
}

static void usage(void)
{
  die("[--states N] [--seed S] [--workload one|three|both] [--jobs N]\n"
      "       [--from OP] [--to OP] [--fate NAME] [--keep] [--load FILE]\n"
      "       [--at OP --state SEED]");
}

static int find_fate(const char *name)
{
  for (int i = 0; i < FATES; i++)
    if (strcmp(fate_names[i], name) == 0) return i;
  die("%s: no such fate", name);
}

static void take_option(struct options *o, const char *name, const char *value)
{
  char *end;
  uint64_t number = strtoull(value, &end, 10);
  if (strcmp(name, "--workload") == 0) {
    o->workload = value;
  } else if (strcmp(name, "--load") == 0) {
    o->load = value;
  } else if (strcmp(name, "--fate") == 0) {
    o->fate = find_fate(value);
  } else if (*end || end == value) {
    usage();
  } else if (strcmp(name, "--states") == 0) {
    o->states = number;
  } else if (strcmp(name, "--seed") == 0) {
    o->seed = number;
  } else if (strcmp(name, "--jobs") == 0 && number && number <= JOBS_MAX) {
    o->jobs = number;
  } else if (strcmp(name, "--from") == 0) {
    o->from = number;
  } else if (strcmp(name, "--to") == 0) {
    o->to = number;
  } else if (strcmp(name, "--at") == 0) {
    o->at = number;
  } else if (strcmp(name, "--state") == 0) {
    o->state = number;
    o->replay = true;
  } else {
    usage();
  }
}

static void take_options(struct options *o, int argc, char **argv)
{
  *o = (struct options){.states = 300,
                        .jobs = 2,
                        .seed = (uint64_t)time(NULL),
                        .to = UINT64_MAX,
                        .workload = "both",
                        .fate = -1};
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--keep") == 0)
      o->keep = true;
    else if (strcmp(argv[i], "--print") == 0)
      o->print = true;
    else if (i + 1 < argc)
      take_option(o, argv[i], argv[i + 1]), i++;
    else
      usage();
  }
  if (o->replay) o->jobs = 1;
}

static bool run(const struct options *o)
{
  if (o->load) return run_loaded(o);
  bool one = strcmp(o->workload, "three") != 0;
  bool three = strcmp(o->workload, "one") != 0;
  unsigned long of_three = !three ? 0 : one ? o->states / 10 : o->states;
  printf("seed %llu\n", (unsigned long long)o->seed);
  if (one && !many_records(o, 1, o->states - of_three)) return false;
  return of_three == 0 || many_records(o, 3, of_three);
}

int main(int argc, char **argv)
{
  struct options options;
  take_options(&options, argc, argv);
  snprintf(base, sizeof(base), "%s/quorate-crash-XXXXXX",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  if (mkdtemp(base) == NULL) die("%s: %s", base, strerror(errno));
  shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) die("out of memory");
  world_setup();
  double start = now();
  bool ok = run(&options);
  printf("%lu states made, %lu distinct and checked in %.1f s\n", shared->made,
         shared->checked, now() - start);
  /* As the other tests say it. */
  printf("[  %s  ] 1 test(s).\n", ok ? "PASSED" : "FAILED");
  if (ok && !options.keep) remove_tree(base, true);
  fflush(stdout);
  _exit(ok ? 0 : 1);
}
