/*
** fault.c: the program: makes calls on files fail, one after the other.
**
**   fault [--all] [--seconds N] [--seed S] [--scene NAME] [--error EIO|ENOSPC]
**         [--jobs N] [--verbose] [--keep] [--only CALL]
**   fault --scene NAME --error EIO --at N [--lasting] [--killed]
**
** With --all each scene is run with its first call failing, its second, and so
** on, until several runs in a row met no fault: threads do not do the same in
** each run. That in eight ways: with EIO, which any call may give, or ENOSPC,
** which those give that may want room; once, or from then on, on the disk of
** that node, until the scene ends; and then the process goes on, or is killed.
** Without --all calls and ways are drawn at random, until the time is over.
**
** Every run is a process with a copy of what the scene begins with. Another
** one starts the nodes afterwards (test/crash/check.c). Who is wrong says so
** in what they share.
*/
#include "fault.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define JOBS_MAX 16
#define SLACK 6       /* runs without a fault, at the end */
#define RUN_S 100     /* a process may take */
#define FATE_MS 3000  /* a COMMIT waits for its outcome */
#define STALL_MS 4000 /* a join without progress */
#define SCENES 16
#define NEVER ULONG_MAX

struct options {
  bool all, verbose, keep, one;
  unsigned long seconds, jobs;
  uint64_t seed;
  const char *scene;
  int error; /* 0: both */
  struct point point;
};

/* Shared by all processes. */
struct shared {
  _Atomic bool failed;
  _Atomic unsigned long next, highest; /* calls of a sweep: to try, met */
  _Atomic unsigned long runs, met;
  struct told told[JOBS_MAX];
  struct told begun[SCENES]; /* of each scene's files */
};

static struct shared *shared;
static char base[CRASH_PATH - 64]; /* everything of this run is in it */
static struct run *running; /* of this process, while calls are counted */

void die(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  fprintf(stderr, "fault: ");
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

void wrong(struct run *r, const char *format, ...)
{
  va_list args;
  fault_end();
  va_start(args, format);
  vsnprintf(r->told->why, WHY, format, args);
  va_end(args);
  _exit(1);
}

/* ---- calls ------------------------------------------------------------- */

static const char *const call_names[] = {"open",   "read",  "write", "truncate",
                                         "sync",   "size",  "map",   "rename",
                                         "unlink", "mkdir", "list"};

/* Salts are all that is written 8 bytes long (wal.c). */
static const char *name_of(enum call call, int flags)
{
  return call == CALL_WRITE && flags == 8 ? "publish" : call_names[call];
}

/* The path of a call below the root: "n1/app.db"; false: elsewhere. */
static bool find_path(int fd, const char *path, char out[CRASH_PATH])
{
  char link[64], full[2 * CRASH_PATH] = "";
  const char *root = running->world.root;
  if (fd >= 0) {
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, full, CRASH_PATH - 1);
    full[n > 0 ? n : 0] = 0;
  }
  if (path && (path[0] == '/' || fd < 0))
    snprintf(full, sizeof(full), "%s", path);
  else if (path)
    snprintf(full + strlen(full), CRASH_PATH, "/%s", path);
  if (strncmp(full, root, strlen(root)) != 0) return false;
  snprintf(out, CRASH_PATH, "%s", full + strlen(root));
  return true;
}

/* May it fail for want of room? */
static bool wants_room(enum call call, int flags)
{
  switch (call) {
  case CALL_OPEN: return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
  case CALL_WRITE:
  case CALL_TRUNCATE:
  case CALL_SYNC:
  case CALL_RENAME:
  case CALL_MKDIR: return true;
  default: return false;
  }
}

/* Of a disk that is full every other time by its user's quota. */
static int error_of(const struct point *p)
{
  return p->error == ENOSPC && p->at % 2 ? EDQUOT : p->error;
}

static int ask(enum call call, int fd, const char *path, int flags)
{
  char name[CRASH_PATH], what[sizeof(running->told->what)];
  struct told *told = running->told;
  const struct point *p = &running->point;
  if (!find_path(fd, path, name)) return 0;
  if (p->error == ENOSPC && !wants_room(call, flags)) return 0;
  if (atomic_load(&told->fired)) {
    const char *disk = strchr(told->what, ' ') + 1;
    return p->lasting && strncmp(disk, name, 3) == 0 ? error_of(p) : 0;
  }
  snprintf(what, sizeof(what), "%s %s", name_of(call, flags), name);
  if (p->only && strncmp(p->only, what, strlen(p->only)) != 0) return 0;
  if (atomic_fetch_add(&told->calls, 1) + 1 != p->at) return 0;
  memcpy(told->what, what, sizeof(what));
  atomic_store(&told->fired, true);
  return error_of(p);
}

void fault_begin(struct run *r)
{
  running = r;
  record_faults(ask);
}

void fault_end(void)
{
  record_faults(NULL);
}

/* ---- processes --------------------------------------------------------- */

static void forget(struct told *told)
{
  *told = (struct told){.known.history = NULL};
  told->known.history = told->history;
}

static void take_over(struct told *told, const struct told *from)
{
  forget(told);
  told->known = from->known;
  memcpy(told->history, from->history, sizeof(told->history));
  told->known.history = told->history;
}

/* 0, or why not: of a child that runs what is wrong if it does not end. */
static bool ends_well(pid_t pid, struct told *told)
{
  int status;
  if (pid < 0) die("fork: %s", strerror(errno));
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) die("waitpid: %s", strerror(errno));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  if (WIFSIGNALED(status))
    snprintf(told->why, WHY, "ended by signal %d%s", WTERMSIG(status),
             WTERMSIG(status) == SIGALRM ? ": it takes too long" : "");
  else if (told->why[0] == 0)
    snprintf(told->why, WHY, "ended with status %d", WEXITSTATUS(status));
  return false;
}

static void copy_files(const char *from, const char *to)
{
  char source[CRASH_PATH + 8];
  int status;
  snprintf(source, sizeof(source), "%s.", from);
  mkdir(to, 0700);
  remove_tree(to, false);
  pid_t pid = fork();
  if (pid == 0) {
    execlp("cp", "cp", "-a", source, to, (char *)NULL);
    _exit(1);
  }
  if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
    die("cannot copy %s", from);
}

static void begin_path(const struct scene *scene, char out[CRASH_PATH])
{
  snprintf(out, CRASH_PATH, "%s/begin-%s/", base, scene->name);
}

static struct run begin_run(const struct scene *scene, const char *root,
                            struct told *told)
{
  struct run r = {.told = told};
  r.world.root = root;
  r.world.nodes = scene->nodes;
  return r;
}

/* In a child: what a scene begins with; the process is killed at its end. */
static void make(const struct scene *scene, const char *root)
{
  char dir[CRASH_PATH + 16];
  struct told *told = &shared->begun[scene - scenes];
  forget(told);
  mkdir(root, 0700);
  remove_tree(root, false);
  for (unsigned i = 1; i <= scene->nodes; i++) {
    snprintf(dir, sizeof(dir), "%sn%u", root, i);
    mkdir(dir, 0700);
  }
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    struct run r = begin_run(scene, root, told);
    alarm(RUN_S);
    scene->make(&r);
    record_kill();
  }
  if (!ends_well(pid, told)) die("%s: %s", scene->name, told->why);
}

static void run_scene(const struct scene *scene, const char *root,
                      const struct point *point, struct told *told)
{
  struct run r = begin_run(scene, root, told);
  r.point = *point;
  alarm(RUN_S);
  scene->before(&r);
  fault_begin(&r);
  scene->during(&r);
  fault_end();
  if (!point->killed) heal(&r, scene);
  record_kill();
}

/* Whatever happened: a new process goes on with what is there. */
static void run_after(const struct scene *scene, const char *root,
                      const struct point *point, struct told *told)
{
  struct run r = begin_run(scene, root, told);
  struct check check = {.root = root,
                        .nodes = scene->nodes,
                        .known = &told->known,
                        .seed = point->at,
                        .why = told->why,
                        .size = WHY};
  alarm(RUN_S);
  atomic_store(&told->healed, true);
  if (scene->again_first) scene->again(&r);
  _exit(check_state(&check) ? 0 : 1);
}

static bool run_point(const struct scene *scene, const struct point *point,
                      unsigned job)
{
  char begin[CRASH_PATH], root[CRASH_PATH];
  struct told *told = &shared->told[job];
  begin_path(scene, begin);
  snprintf(root, sizeof(root), "%s/w%u/", base, job);
  copy_files(begin, root);
  take_over(told, &shared->begun[scene - scenes]);
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) run_scene(scene, root, point, told);
  bool ok = ends_well(pid, told);
  if (ok) {
    pid = fork();
    if (pid == 0) run_after(scene, root, point, told);
    ok = ends_well(pid, told);
  }
  atomic_fetch_add(&shared->runs, 1);
  if (told->fired) atomic_fetch_add(&shared->met, 1);
  return ok;
}

/* ---- sweeps and samples ------------------------------------------------ */

static const char *error_name(int error)
{
  return error == ENOSPC ? "ENOSPC" : "EIO";
}

static void report(const struct scene *scene, const struct point *point,
                   const struct told *told)
{
  printf("FAILED: %s: %s\n", scene->name, told->why);
  printf("acknowledged: %llu, %016llx; pending: %llu, %016llx\n",
         (unsigned long long)told->known.n,
         (unsigned long long)told->known.digest,
         (unsigned long long)(told->known.pending ? told->known.pending_n : 0),
         (unsigned long long)told->known.pending_digest);
  printf("call %lu, %s: %s\n", point->at,
         told->fired ? told->what : "no fault was met",
         error_name(point->error));
  printf("again: fault --scene %s --error %s --at %lu%s%s", scene->name,
         error_name(point->error), point->at,
         point->lasting ? " --lasting" : "", point->killed ? " --killed" : "");
  if (point->only) printf(" --only '%s'", point->only);
  printf("\n");
  fflush(stdout);
}

static void try_point(const struct scene *scene, const struct point *point,
                      unsigned job, const struct options *o)
{
  const struct told *told = &shared->told[job];
  uint64_t began = clock_monotonic_ms();
  bool ok = run_point(scene, point, job);
  if (!ok) {
    atomic_store(&shared->failed, true);
    report(scene, point, told);
  } else if (o->verbose) {
    printf("%s %lu: %s, %llu ms\n", scene->name, point->at,
           told->fired ? told->what : "no fault",
           (unsigned long long)(clock_monotonic_ms() - began));
  }
}

/* One worker's share of a sweep. */
static void sweep_some(const struct scene *scene, struct point point,
                       unsigned job, const struct options *o)
{
  for (;;) {
    point.at = atomic_fetch_add(&shared->next, 1);
    if (point.at > atomic_load(&shared->highest) + SLACK) return;
    try_point(scene, &point, job, o);
    unsigned long high = atomic_load(&shared->highest);
    while (shared->told[job].fired && point.at > high &&
           !atomic_compare_exchange_weak(&shared->highest, &high, point.at))
      ;
    if (atomic_load(&shared->failed) && !o->keep) return;
  }
}

static void wait_for_workers(const pid_t *pids, unsigned long n)
{
  for (unsigned long i = 0; i < n; i++) {
    int status = 0;
    while (waitpid(pids[i], &status, 0) < 0)
      if (errno != EINTR) die("waitpid: %s", strerror(errno));
    if (status != 0) die("a worker ended with status %d", status);
  }
}

static void sweep(const struct scene *scene, struct point point,
                  const struct options *o)
{
  pid_t pids[JOBS_MAX];
  uint64_t began = clock_monotonic_ms();
  unsigned long runs = shared->runs;
  shared->next = 1;
  shared->highest = 0;
  fflush(stdout);
  for (unsigned i = 0; i < o->jobs; i++) {
    pids[i] = fork();
    if (pids[i] < 0) die("fork: %s", strerror(errno));
    if (pids[i] > 0) continue;
    sweep_some(scene, point, i, o);
    fflush(stdout);
    _exit(0);
  }
  wait_for_workers(pids, o->jobs);
  printf("%s, %s %s, %s: %lu calls, %lu runs in %.1f s\n", scene->name,
         error_name(point.error), point.lasting ? "from then on" : "once",
         point.killed ? "killed" : "alive", shared->highest,
         shared->runs - runs, (double)(clock_monotonic_ms() - began) / 1000);
  fflush(stdout);
}

static const int errors[] = {EIO, ENOSPC};

/* One of eight ways to fail. */
static struct point way_of(unsigned way, const char *only)
{
  return (struct point){.error = errors[way / 4],
                        .lasting = way & 2,
                        .killed = way & 1,
                        .only = only};
}

static void sweep_all(const struct scene *scene, const struct options *o)
{
  for (unsigned way = 0; way < 8; way++) {
    struct point point = way_of(way, o->point.only);
    if (o->error && o->error != point.error) continue;
    if (atomic_load(&shared->failed) && !o->keep) return;
    sweep(scene, point, o);
  }
}

static void make_scene(const struct scene *scene)
{
  char begin[CRASH_PATH];
  begin_path(scene, begin);
  make(scene, begin);
}

static void run_one(const struct scene *scene, const struct options *o)
{
  make_scene(scene);
  if (o->one)
    try_point(scene, &o->point, 0, o);
  else
    sweep_all(scene, o);
}

/* How many calls there are, without a fault: each may be the one. */
static void count_calls(const struct options *o, unsigned i,
                        unsigned long calls[2])
{
  for (unsigned k = 0; k < 2; k++) {
    struct point none = {.at = NEVER, .error = errors[k], .killed = k};
    try_point(&scenes[i], &none, 0, o);
    calls[k] = shared->told[0].calls;
  }
}

/* One worker: calls and ways by chance, until it is late. */
static void sample_some(const struct options *o, unsigned long calls[][2],
                        unsigned job, uint64_t end)
{
  uint64_t random = o->seed + job;
  while (clock_monotonic_ms() < end && !shared->failed) {
    unsigned i = (unsigned)random_below(&random, n_scenes);
    unsigned way = (unsigned)random_below(&random, 8);
    struct point point = way_of(way, NULL);
    point.at = 1 + random_below(&random, calls[i][way / 4]);
    try_point(&scenes[i], &point, job, o);
  }
}

/* All of what once was wrong and is met too seldom by chance: no room when a
   transaction in parts, agreed on, is published. */
static void sweep_publishing(const struct options *o)
{
  struct point point = {.error = ENOSPC, .only = "publish n1/app.db-wal"};
  for (unsigned i = 0; i < n_scenes; i++)
    if (strcmp(scenes[i].name, "checkpoint") == 0) sweep(&scenes[i], point, o);
}

static void sample_all(const struct options *o)
{
  unsigned long calls[SCENES][2];
  uint64_t end = clock_monotonic_ms() + o->seconds * 1000;
  printf("seed %llu\n", (unsigned long long)o->seed);
  for (unsigned i = 0; i < n_scenes && !shared->failed; i++) {
    make_scene(&scenes[i]);
    count_calls(o, i, calls[i]);
  }
  if (shared->failed) return;
  sweep_publishing(o);
  pid_t pids[JOBS_MAX];
  fflush(stdout);
  for (unsigned i = 0; i < o->jobs; i++) {
    pids[i] = fork();
    if (pids[i] < 0) die("fork: %s", strerror(errno));
    if (pids[i] > 0) continue;
    sample_some(o, calls, i, end);
    fflush(stdout);
    _exit(0);
  }
  wait_for_workers(pids, o->jobs);
}

static void run(const struct options *o)
{
  bool any = false;
  if (!o->all && !o->one) {
    sample_all(o);
    return;
  }
  for (unsigned i = 0; i < n_scenes; i++) {
    if (o->scene && strcmp(o->scene, scenes[i].name) != 0) continue;
    any = true;
    if (!shared->failed || o->keep) run_one(&scenes[i], o);
  }
  if (!any) die("%s: no such scene", o->scene);
}

/* ---- the command line -------------------------------------------------- */

static void usage(void)
{
  die("[--all] [--seconds N] [--seed S] [--scene NAME] [--error EIO|ENOSPC]\n"
      "       [--jobs N] [--verbose] [--keep] [--only CALL]\n"
      "       [--at N [--lasting] [--killed]]");
}

static void take_option(struct options *o, const char *name, const char *value)
{
  char *end;
  uint64_t number = strtoull(value, &end, 10);
  if (strcmp(name, "--scene") == 0) {
    o->scene = value;
  } else if (strcmp(name, "--only") == 0) {
    o->point.only = value;
  } else if (strcmp(name, "--error") == 0) {
    if (strcmp(value, "EIO") != 0 && strcmp(value, "ENOSPC") != 0) usage();
    o->error = o->point.error = strcmp(value, "EIO") == 0 ? EIO : ENOSPC;
  } else if (*end || end == value) {
    usage();
  } else if (strcmp(name, "--seconds") == 0) {
    o->seconds = number;
  } else if (strcmp(name, "--seed") == 0) {
    o->seed = number;
  } else if (strcmp(name, "--jobs") == 0 && number && number <= JOBS_MAX) {
    o->jobs = number;
  } else if (strcmp(name, "--at") == 0) {
    o->point.at = number;
    o->one = true;
  } else {
    usage();
  }
}

static void take_options(struct options *o, int argc, char **argv)
{
  *o = (struct options){.seconds = 25,
                        .jobs = 4,
                        .seed = (uint64_t)time(NULL),
                        .point.error = EIO};
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--all") == 0)
      o->all = true;
    else if (strcmp(argv[i], "--verbose") == 0)
      o->verbose = true;
    else if (strcmp(argv[i], "--keep") == 0)
      o->keep = true;
    else if (strcmp(argv[i], "--lasting") == 0)
      o->point.lasting = true;
    else if (strcmp(argv[i], "--killed") == 0)
      o->point.killed = true;
    else if (i + 1 < argc)
      take_option(o, argv[i], argv[i + 1]), i++;
    else
      usage();
  }
}

int main(int argc, char **argv)
{
  struct options options;
  take_options(&options, argc, argv);
  snprintf(base, sizeof(base), "%s/quorate-fault-XXXXXX",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  if (mkdtemp(base) == NULL) die("%s: %s", base, strerror(errno));
  shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) die("out of memory");
  world_setup();
  node_limits.fate_ms = FATE_MS;
  node_limits.stall_ms = STALL_MS;
  uint64_t began = clock_monotonic_ms();
  run(&options);
  printf("%lu runs, %lu with a fault, in %.1f s\n", shared->runs, shared->met,
         (double)(clock_monotonic_ms() - began) / 1000);
  /* As the other tests say it. */
  printf("[  %s  ] 1 test(s).\n", shared->failed ? "FAILED" : "PASSED");
  remove_tree(base, true);
  fflush(stdout);
  _exit(shared->failed ? 1 : 0);
}
