/*
** What the processes of a node share: views that are whole, snapshots that
** nobody takes away while they are pinned, slots and numbers of processes that
** end in any way.
*/
#include "harness.h"

#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PATIENCE_MS 60000
#define LOOK_MS 500 /* threads run against each other for so long */
#define READERS 3
#define NUMBERS ((off_t)1 << 40) /* where processes lock their numbers */

static struct control_map *open_in(const char *dir)
{
  struct control_map *map = NULL;
  assert_int_equal(control_open(&io_posix, dir, true, &map), 0);
  return map;
}

/* Any number of frames in any generation, all of its words made of both. */
static struct control_view view_of(uint64_t generation, uint32_t frame)
{
  struct control_view view;
  uint8_t fill = (uint8_t)(generation * 31 + frame);
  memset(&view, fill, sizeof(view));
  view.generation = generation;
  view.confirmed_index = generation << 20 | frame;
  view.backfill = 0;
  view.confirmed.mx_frame = view.head.mx_frame = frame;
  return view;
}

static bool is_whole(const struct control_view *view)
{
  struct control_view as = view_of(view->generation, view->confirmed.mx_frame);
  return memcmp(view, &as, sizeof(as)) == 0;
}

/* ---- processes --------------------------------------------------------- */

/* A child that says a number when it is ready, and goes on when it is told. */
struct child {
  pid_t pid;
  int in, out;
};

static struct child child_start(int (*run)(const char *dir, int in, int out),
                                const char *dir)
{
  int to[2], from[2];
  assert_int_equal(pipe2(to, O_CLOEXEC), 0);
  assert_int_equal(pipe2(from, O_CLOEXEC), 0);
  struct child c = {.pid = fork(), .in = to[1], .out = from[0]};
  assert_true(c.pid >= 0);
  if (c.pid == 0) {
    close(to[1]);
    close(from[0]);
    _exit(run(dir, to[0], from[1]));
  }
  close(to[0]);
  close(from[1]);
  return c;
}

static bool say(int fd, uint32_t number)
{
  return write(fd, &number, sizeof(number)) == sizeof(number);
}

static uint32_t hear(int fd)
{
  uint32_t number = 0;
  ssize_t n = read(fd, &number, sizeof(number));
  return n == sizeof(number) ? number : UINT32_MAX;
}

static int child_end(struct child *c, int signal)
{
  int status;
  if (signal) kill(c->pid, signal);
  close(c->in);
  assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
  close(c->out);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- views ------------------------------------------------------------- */

struct looking {
  struct control_map *map;
  atomic_bool over;
  _Atomic uint64_t looks, torn, back;
};

static void *look_on(void *arg)
{
  struct looking *l = arg;
  uint64_t last = 0;
  while (!atomic_load(&l->over)) {
    struct control_view view;
    control_look(l->map, &view);
    if (!is_whole(&view)) atomic_fetch_add(&l->torn, 1);
    if (view.confirmed_index < last) atomic_fetch_add(&l->back, 1);
    last = view.confirmed_index;
    atomic_fetch_add(&l->looks, 1);
  }
  return NULL;
}

/* Readers see whole views, in order, however fast they come. */
static void test_view(void **state)
{
  (void)state;
  struct looking l = {.map = open_in(NULL)};
  pthread_t threads[READERS];
  struct control_view view = view_of(0, 1);
  control_show(l.map, &view);
  for (int i = 0; i < READERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, look_on, &l), 0);
  uint64_t end = clock_monotonic_ms() + LOOK_MS;
  for (uint32_t n = 1;
       clock_monotonic_ms() < end || atomic_load(&l.looks) < 1000; n++) {
    view = view_of(n >> 10, 1 + (n & 1023));
    control_show(l.map, &view);
    if (n % 64 == 0) sched_yield();
  }
  atomic_store(&l.over, true);
  for (int i = 0; i < READERS; i++)
    pthread_join(threads[i], NULL);
  assert_int_equal(atomic_load(&l.torn), 0);
  assert_int_equal(atomic_load(&l.back), 0);
  control_close(l.map);
}

/* A host that was killed between the words and the version has shown nothing,
   and the next one goes on. */
static void test_half_shown(void **state)
{
  (void)state;
  struct control_map *map = open_in(NULL);
  struct control_view view = view_of(3, 7), seen;
  control_show(map, &view);
  uint64_t version = control_look(map, &seen);
  for (unsigned i = 0; i < CONTROL_WORDS; i++)
    atomic_store(&map->control->views[(version + 1) & 1][i], i * 77);
  assert_int_equal(control_look(map, &seen), version);
  assert_true(is_whole(&seen));
  assert_int_equal(seen.confirmed.mx_frame, 7);
  view = view_of(3, 8);
  control_show(map, &view);
  assert_int_equal(control_look(map, &seen), version + 1);
  assert_int_equal(seen.confirmed.mx_frame, 8);
  assert_int_equal(atomic_load(&map->control->epoch), view.epoch);
  control_close(map);
}

/* ---- pins -------------------------------------------------------------- */

/* The files as they are to readers: pages up to the frame of the generation are
   in the database file, which cannot be read as of an older frame any more;
   and the WAL is of this generation. In memory of several processes. */
struct files {
  _Atomic uint64_t copied; /* generation << 32 | frame */
  _Atomic uint64_t generation;
  atomic_bool over;
  _Atomic uint64_t pins, lost, back, restarts, nobody;
};
static struct files *files;

/* What a pinned reader needs is there. */
static void check_pinned(const struct control_reader *r)
{
  if (atomic_load(&files->copied) > (r->generation << 32 | r->frame))
    atomic_fetch_add(&files->lost, 1);
  if (r->uses_wal && atomic_load(&files->generation) != r->generation)
    atomic_fetch_add(&files->lost, 1);
}

static const char *const names[] = {"", "a backup",
                                    "a snapshot for another node"};

static bool is_name(const char *who)
{
  return strcmp(who, names[0]) == 0 || strcmp(who, names[1]) == 0 ||
         strcmp(who, names[2]) == 0;
}

static void *read_on(void *arg)
{
  struct control_map *map = arg;
  struct control_reader r;
  uint64_t seed = (uint64_t)getpid() ^ (uint64_t)(uintptr_t)&r, last = 0;
  if (control_enter(map, NULL, &r) != 0) return NULL;
  while (!atomic_load(&files->over)) {
    struct control_view view;
    control_pin(map, &r, false, &view);
    uint64_t dice = random_next(&seed);
    for (uint64_t i = dice % 64; i > 0; i--)
      check_pinned(&r);
    if (dice >> 60 == 0) sched_yield();
    check_pinned(&r);
    if (view.confirmed_index < last) atomic_fetch_add(&files->back, 1);
    last = view.confirmed_index;
    control_unpin(map, &r);
    atomic_fetch_add(&files->pins, 1);
    if (dice >> 61 == 1) sched_yield(); /* a moment without readers */
    if (dice >> 61 != 2) continue;
    /* Its slot may be another's next. */
    control_leave(&r);
    if (control_enter(map, dice & 64 ? names[1] : names[2], &r) != 0) break;
  }
  control_leave(&r);
  return NULL;
}

/* Copies what no reader needs as it was before; is that everything? */
static bool copy(struct control_map *map, struct control_view *view)
{
  struct control_pinned pinned;
  uint32_t limit = view->confirmed.mx_frame;
  unsigned i = 0;
  control_show(map, view);
  while (control_next_pinned(map, view->generation, &i, &pinned)) {
    if (!is_name(pinned.who)) atomic_fetch_add(&files->nobody, 1);
    if (pinned.frame < limit) limit = pinned.frame;
  }
  if (limit > view->backfill) {
    atomic_store(&files->copied, view->generation << 32 | limit);
    view->backfill = limit;
    control_show(map, view);
  }
  return view->backfill == view->confirmed.mx_frame;
}

/* A new WAL, if no reader uses this one. */
static void begin_anew(struct control_map *map, struct control_view *view)
{
  struct control_pinned pinned;
  unsigned i = 0;
  control_show(map, view);
  while (control_next_pinned(map, view->generation, &i, &pinned))
    if (pinned.uses_wal || pinned.frame != view->backfill) return;
  atomic_store(&files->generation, ++view->generation);
  atomic_fetch_add(&files->restarts, 1);
  view->confirmed_index++;
  view->backfill = 0;
  view->confirmed.mx_frame = view->head.mx_frame = 1;
  control_show(map, view);
}

static void checkpoint_on(struct control_map *map, struct control_view *view)
{
  uint64_t end = clock_monotonic_ms() + LOOK_MS, last = end + PATIENCE_MS;
  for (uint64_t now; (now = clock_monotonic_ms()) < end ||
                     (now < last && (atomic_load(&files->pins) < 1000 ||
                                     atomic_load(&files->restarts) < 10));) {
    for (int i = 0; i < 64; i++) {
      if (copy(map, view) && i % 4 == 0) begin_anew(map, view);
      view->head.mx_frame = ++view->confirmed.mx_frame;
      view->confirmed_index++;
    }
    sched_yield();
  }
  atomic_store(&files->over, true);
}

static void files_begin(struct control_map *map, struct control_view *view)
{
  files = mmap(NULL, sizeof(*files), PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_ptr_not_equal(files, MAP_FAILED);
  *view = view_of(1, 1);
  atomic_store(&files->generation, 1);
  control_show(map, view);
}

static void files_end(void)
{
  assert_int_equal(atomic_load(&files->lost), 0);
  assert_int_equal(atomic_load(&files->back), 0);
  assert_int_equal(atomic_load(&files->nobody), 0);
  assert_true(atomic_load(&files->pins) >= 1000);
  assert_true(atomic_load(&files->restarts) >= 10);
  munmap(files, sizeof(*files));
}

/* Readers come and go at any moment; a checkpointer shows what there is, looks
   who reads, and takes the rest away. */
static void test_pins(void **state)
{
  (void)state;
  struct control_map *map = open_in(NULL);
  pthread_t threads[READERS];
  struct control_view view;
  files_begin(map, &view);
  for (int i = 0; i < READERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, read_on, map), 0);
  checkpoint_on(map, &view);
  for (int i = 0; i < READERS; i++)
    pthread_join(threads[i], NULL);
  files_end();
  control_close(map);
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREADS_WATCHED
#endif
#elif defined(__SANITIZE_THREAD__)
#define THREADS_WATCHED
#endif
#if defined(__x86_64__) && !defined(THREADS_WATCHED)
#define STEPWISE
/* Threads alone would not do: the moment that matters is a few instructions
   long. So one side runs step by step, and the other at once after step number
   `steps_left`, swept over all of them. Not in the thread sanitizer's own code,
   which must not be entered twice. */
#if defined(__SANITIZE_ADDRESS__)
#define STRIDE 11 /* its checks make nine steps of one; odd */
#else
#define STRIDE 1
#endif
static volatile long steps_left;
static void (*volatile meanwhile)(void);

static void on_step(int number, siginfo_t *info, void *context)
{
  (void)number;
  (void)info;
  (void)context;
  if (--steps_left == 0) meanwhile();
}

/* The red zone below the stack pointer is the compiler's. */
#define CHANGE_FLAGS(change)                                                   \
  __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; " change                   \
                   ", (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::                \
                       : "memory", "cc")

static struct {
  struct control_map *map;
  struct control_reader reader;
  struct control_view view, seen;
} stage;

static void stage_checkpoint(void)
{
  stage.view.head.mx_frame = ++stage.view.confirmed.mx_frame;
  stage.view.confirmed_index++;
  if (copy(stage.map, &stage.view)) begin_anew(stage.map, &stage.view);
}

static void stage_pin(void)
{
  control_pin(stage.map, &stage.reader, false, &stage.seen);
}

/* `stepped` with `other` after each of its steps; how many there are. */
static long sweep(void (*stepped)(void), void (*other)(void))
{
  struct sigaction action = {.sa_flags = SA_SIGINFO}, before;
  action.sa_sigaction = on_step;
  assert_int_equal(sigaction(SIGTRAP, &action, &before), 0);
  meanwhile = other;
  for (long step = 1;; step += STRIDE) {
    stage.view = view_of(1, 5);
    stage.view.backfill = step % 2 ? 0 : 5;
    atomic_store(&files->copied, 0);
    atomic_store(&files->generation, 1);
    control_show(stage.map, &stage.view);
    steps_left = step;
    CHANGE_FLAGS("orq $0x100");
    stepped();
    CHANGE_FLAGS("andq $-0x101");
    if (steps_left > 0) {
      sigaction(SIGTRAP, &before, NULL);
      return step - 1;
    }
    check_pinned(&stage.reader);
    if (atomic_load(&files->lost)) fail_msg("after step %ld", step);
    control_unpin(stage.map, &stage.reader);
  }
}

/* A snapshot is pinned and taken away at once, in all orders that there are. */
static void test_pin_stepwise(void **state)
{
  (void)state;
  stage.map = open_in(NULL);
  assert_int_equal(control_enter(stage.map, NULL, &stage.reader), 0);
  files_begin(stage.map, &stage.view);
  assert_true(sweep(stage_pin, stage_checkpoint) > 50);
  assert_true(sweep(stage_checkpoint, stage_pin) > 50);
  munmap(files, sizeof(*files));
  control_leave(&stage.reader);
  control_close(stage.map);
}

static volatile bool unseen;

static void look_at_slot(int number, siginfo_t *info, void *context)
{
  struct control *control = stage.map->control;
  (void)number;
  (void)info;
  (void)context;
  if (atomic_load(&control->slots[0].owner) != 0 &&
      atomic_load(&control->slots_used) == 0)
    unseen = true;
}

/* Whenever a process is killed that takes a slot, others find it to be taken. */
static void test_enter_stepwise(void **state)
{
  struct sigaction action = {.sa_flags = SA_SIGINFO}, before;
  (void)state;
  stage.map = open_in(NULL);
  action.sa_sigaction = look_at_slot;
  assert_int_equal(sigaction(SIGTRAP, &action, &before), 0);
  CHANGE_FLAGS("orq $0x100");
  int rc = control_enter(stage.map, NULL, &stage.reader);
  CHANGE_FLAGS("andq $-0x101");
  sigaction(SIGTRAP, &before, NULL);
  assert_int_equal(rc, 0);
  assert_int_equal(atomic_load(&stage.map->control->slots_used), 1);
  assert_false(unseen);
  control_leave(&stage.reader);
  control_close(stage.map);
}

/* Another process, which takes a number and a slot and reads. */
static struct {
  int fd;
  uint32_t number;
  bool reads;
  unsigned taken, refused;
} newcomer;

static int newcomer_lock(short type)
{
  struct flock lock = {
      .l_type = type, .l_start = NUMBERS + newcomer.number, .l_len = 1};
  return fcntl(newcomer.fd, F_OFD_SETLK, &lock);
}

static void stage_newcomer(void)
{
  struct control_slot *slots = stage.map->control->slots;
  newcomer.reads = newcomer_lock(F_WRLCK) == 0;
  newcomer.taken += newcomer.reads;
  newcomer.refused += !newcomer.reads;
  if (!newcomer.reads) return;
  atomic_store(&slots[0].pin, 0);
  atomic_store(&slots[0].owner, 0);
  atomic_store(&slots[1].owner, newcomer.number);
  atomic_store(&slots[1].pin, 77);
}

/* The slots of a process that has ended are freed, and its number is taken anew
   at once, in all orders that there are. */
static void test_reap_stepwise(void **state)
{
  struct sigaction action = {.sa_flags = SA_SIGINFO}, before;
  stage.map = open_in(*state);
  struct control_slot *slots = stage.map->control->slots;
  newcomer.fd = open(path_of(*state, "control").s, O_RDWR | O_CLOEXEC);
  newcomer.number = stage.map->number + 1;
  action.sa_sigaction = on_step;
  assert_int_equal(sigaction(SIGTRAP, &action, &before), 0);
  meanwhile = stage_newcomer;
  atomic_store(&stage.map->control->slots_used, 2);
  for (long step = 1;; step += 5 * STRIDE) {
    atomic_store(&slots[0].owner, newcomer.number);
    atomic_store(&slots[0].pin, 55);
    newcomer.reads = false;
    steps_left = step;
    CHANGE_FLAGS("orq $0x100");
    control_reap(stage.map);
    CHANGE_FLAGS("andq $-0x101");
    if (steps_left > 0) break;
    assert_int_equal(atomic_load(&slots[0].owner), 0);
    assert_int_equal(atomic_load(&slots[0].pin), 0);
    if (!newcomer.reads) continue;
    if (atomic_load(&slots[1].owner) != newcomer.number ||
        atomic_load(&slots[1].pin) != 77)
      fail_msg("after step %ld", step);
    atomic_store(&slots[1].pin, 0);
    atomic_store(&slots[1].owner, 0);
    assert_int_equal(newcomer_lock(F_UNLCK), 0);
  }
  sigaction(SIGTRAP, &before, NULL);
  assert_true(newcomer.taken > 10);
  assert_true(newcomer.refused > 0);
  close(newcomer.fd);
  control_close(stage.map);
}
#endif

/* What a reader has is told to the checkpointer: its frame, whether it is of
   this generation, its entry. */
static void test_pinned(void **state)
{
  (void)state;
  struct control_map *map = open_in(NULL);
  struct control_reader confirmed, head, image;
  struct control_view view = view_of(5, 10), seen;
  struct control_pinned p;
  unsigned i = 0;
  view.head.mx_frame = 12;
  control_show(map, &view);
  assert_int_equal(control_enter(map, NULL, &confirmed), 0);
  assert_int_equal(control_enter(map, NULL, &head), 0);
  assert_int_equal(control_enter(map, "a backup", &image), 0);
  assert_false(control_next_pinned(map, 5, &i, &p));
  control_pin(map, &confirmed, false, &seen);
  control_pin(map, &head, true, &seen);
  assert_int_equal(seen.head.mx_frame, 12);
  i = 0;
  assert_true(control_next_pinned(map, 5, &i, &p));
  assert_ptr_equal(p.slot, confirmed.slot);
  assert_int_equal(p.frame, 10);
  assert_int_equal(p.index, view.confirmed_index);
  assert_true(p.uses_wal);
  assert_true(control_next_pinned(map, 5, &i, &p));
  assert_ptr_equal(p.slot, head.slot);
  assert_int_equal(p.frame, 12);
  assert_int_equal(p.index, 0);
  assert_false(control_next_pinned(map, 5, &i, &p));
  /* All of it is in the database file. */
  view.head.mx_frame = view.backfill = 10;
  control_show(map, &view);
  control_pin(map, &image, false, &seen);
  assert_false(image.uses_wal);
  control_unpin(map, &head);
  assert_false(control_pinned(&head));
  i = 0;
  assert_true(control_next_pinned(map, 6, &i, &p));
  assert_int_equal(p.frame, 0); /* of an older generation */
  assert_false(p.uses_wal);
  assert_true(control_next_pinned(map, 6, &i, &p));
  assert_string_equal(p.who, "a backup");
  assert_int_equal(atomic_load(&p.slot->pid), getpid());
  assert_false(control_next_pinned(map, 6, &i, &p));
  control_leave(&confirmed);
  control_leave(&head);
  control_leave(&image);
  i = 0;
  assert_false(control_next_pinned(map, 5, &i, &p));
  control_close(map);
}

/* ---- other processes --------------------------------------------------- */

/* What each child does first: a mapping of its own. */
static struct control_map *child_open(const char *dir, int out)
{
  struct control_map *map = NULL;
  return control_open(&io_posix, dir, false, &map) == 0 && say(out, map->number)
             ? map
             : NULL;
}

static int run_reader(const char *dir, int in, int out)
{
  struct control_map *map = child_open(dir, out);
  if (map == NULL || hear(in) != 1) return 1;
  read_on(map);
  control_close(map);
  return 0;
}

/* The same as test_pins(), with readers in other processes. */
static void test_pins_elsewhere(void **state)
{
  struct control_map *map = open_in(*state);
  struct child children[READERS];
  struct control_view view;
  files_begin(map, &view);
  for (int i = 0; i < READERS; i++) {
    children[i] = child_start(run_reader, *state);
    assert_in_range(hear(children[i].out), 1, CONTROL_PROCESSES);
    assert_true(say(children[i].in, 1));
  }
  checkpoint_on(map, &view);
  for (int i = 0; i < READERS; i++)
    assert_int_equal(child_end(&children[i], 0), 0);
  files_end();
  control_close(map);
}

/* Shows what it sees for each number that it is told. */
static int run_looker(const char *dir, int in, int out)
{
  struct control_map *map = child_open(dir, out);
  struct control_view view;
  uint32_t frame;
  while (map && (frame = hear(in)) != UINT32_MAX) {
    control_look(map, &view);
    if (!is_whole(&view) || !say(out, view.confirmed.mx_frame) ||
        !say(out, control_pgno(map, frame)))
      return 1;
  }
  control_close(map);
  return map == NULL;
}

/* What the host shows, and its page numbers in blocks that come later, is there
   for a process that has mapped the files before. */
static void test_elsewhere(void **state)
{
  struct control_map *map = open_in(*state);
  const uint32_t frames[] = {1, CONTROL_BLOCK, CONTROL_BLOCK + 1,
                             2 * CONTROL_BLOCK, 3 * CONTROL_BLOCK + 17};
  struct child c = child_start(run_looker, *state);
  uint32_t number = hear(c.out);
  assert_in_range(number, 1, CONTROL_PROCESSES);
  assert_int_not_equal(number, map->number);
  for (uint32_t i = 0; i < 5; i++) {
    struct control_view view = view_of(2, i + 1);
    control_show(map, &view);
    assert_true(say(c.in, frames[i]));
    assert_int_equal(hear(c.out), i + 1);
    assert_int_equal(hear(c.out), 0); /* nobody has set it */
    assert_int_equal(control_set_pgno(map, frames[i], 1000 + i), 0);
    assert_true(say(c.in, frames[i]));
    assert_int_equal(hear(c.out), i + 1);
    assert_int_equal(hear(c.out), 1000 + i);
  }
  assert_int_equal(child_end(&c, 0), 0);
  for (uint32_t i = 0; i < 5; i++)
    assert_int_equal(control_pgno(map, frames[i]), 1000 + i);
  assert_int_equal(control_pgno(map, 5 * CONTROL_BLOCK), 0);
  assert_int_equal(control_pgno(map, UINT32_MAX), 0);
  assert_int_equal(control_set_pgno(map, UINT32_MAX, 1), -EFBIG);
  control_close(map);
}

static int run_waiter(const char *dir, int in, int out)
{
  struct control_map *map = child_open(dir, out);
  struct timespec end = clock_deadline(PATIENCE_MS);
  struct control_reader r;
  struct control_view view;
  if (map == NULL || control_enter(map, NULL, &r) != 0) return 1;
  control_pin(map, &r, false, &view);
  if (!say(out, 1) || hear(in) != 1) return 2;
  control_unpin(map, &r);
  if (!say(out, 2) || !control_wait_hold(map, &end)) return 3;
  return say(out, 3) ? 0 : 4;
}

/* The checkpointer and its readers wait for each other across processes. */
static void test_hold(void **state)
{
  struct control_map *map = open_in(*state);
  struct child c = child_start(run_waiter, *state);
  struct control_view view = view_of(1, 1);
  struct timespec end = clock_deadline(PATIENCE_MS), soon = clock_deadline(30);
  uint64_t began = clock_monotonic_ms();
  control_show(map, &view);
  assert_in_range(hear(c.out), 1, CONTROL_PROCESSES);
  assert_int_equal(hear(c.out), 1);
  control_set_hold(map, HOLD_ALL);
  uint32_t unpinned = atomic_load(&map->control->unpinned);
  assert_false(control_wait_unpinned(map, unpinned, &soon));
  soon = clock_deadline(30);
  assert_false(control_wait_hold(map, &soon));
  assert_true(say(c.in, 1));
  assert_true(control_wait_unpinned(map, unpinned, &end));
  assert_int_equal(hear(c.out), 2);
  control_set_hold(map, HOLD_WRITERS); /* readers may go on */
  assert_int_equal(hear(c.out), 3);
  assert_int_equal(child_end(&c, 0), 0);
  assert_true(clock_monotonic_ms() - began < PATIENCE_MS);
  soon = clock_deadline(30);
  assert_true(control_wait_hold(map, &soon));
  control_close(map);
}

/* ---- who has ended ----------------------------------------------------- */

/* Holds a slot, pinned, until it is killed or told to end without leaving. */
static int run_pinned(const char *dir, int in, int out)
{
  struct control_map *map = child_open(dir, out);
  struct control_reader r;
  struct control_view view;
  if (map == NULL || control_enter(map, NULL, &r) != 0) return 1;
  control_pin(map, &r, false, &view);
  if (!say(out, (uint32_t)(r.slot - map->control->slots))) return 2;
  return hear(in) == 1 ? 0 : 3;
}

/* The slot of a process that was killed is free when that has ended, and no
   sooner; of one that lives, nothing is taken. */
static void test_reap(void **state)
{
  struct control_map *map = open_in(*state);
  struct control_view view = view_of(1, 1);
  struct control_pinned p;
  unsigned i = 0;
  control_show(map, &view);
  struct child dies = child_start(run_pinned, *state);
  struct child lives = child_start(run_pinned, *state);
  uint32_t number = hear(dies.out);
  struct control_slot *slots = map->control->slots;
  struct control_slot *slot = &slots[hear(dies.out)];
  assert_int_not_equal(hear(lives.out), number);
  struct control_slot *other = &slots[hear(lives.out)];
  control_reap(map);
  assert_int_equal(atomic_load(&slot->owner), number);
  assert_int_not_equal(atomic_load(&slot->pin), 0);
  assert_int_equal(child_end(&dies, SIGKILL), -SIGKILL);
  assert_int_equal(atomic_load(&slot->owner), number);
  control_reap(map);
  assert_int_equal(atomic_load(&slot->owner), 0);
  assert_int_equal(atomic_load(&slot->pin), 0);
  assert_true(control_next_pinned(map, 1, &i, &p));
  assert_ptr_equal(p.slot, other);
  assert_true(say(lives.in, 1));
  assert_int_equal(child_end(&lives, 0), 0);
  control_reap(map);
  i = 0;
  assert_false(control_next_pinned(map, 1, &i, &p));
  control_close(map);
}

/* What no process can own, from a file that was damaged, keeps nothing. */
static void test_reap_nonsense(void **state)
{
  (void)state;
  struct control_map *map = open_in(NULL);
  struct control_slot *slot = &map->control->slots[5];
  struct control_pinned p;
  unsigned i = 0;
  atomic_store(&slot->owner, CONTROL_PROCESSES + 1);
  atomic_store(&slot->pin, UINT64_MAX);
  atomic_store(&map->control->slots_used, UINT32_MAX);
  control_reap(map);
  assert_false(control_next_pinned(map, 1, &i, &p));
  assert_int_equal(atomic_load(&slot->owner), 0);
  control_close(map);
}

/* A number that is taken again has none of the slots of who had it before. */
static void test_numbers(void **state)
{
  enum { CHILDREN = 12 };
  struct child children[CHILDREN];
  bool taken[CONTROL_PROCESSES + 1] = {false};
  struct control_map *map = open_in(*state);
  struct control_view view = view_of(1, 1);
  control_show(map, &view);
  taken[map->number] = true;
  for (int i = 0; i < CHILDREN; i++)
    children[i] = child_start(run_pinned, *state);
  for (int i = 0; i < CHILDREN; i++) {
    uint32_t number = hear(children[i].out);
    assert_in_range(number, 1, CONTROL_PROCESSES);
    assert_false(taken[number]);
    taken[number] = true;
    assert_in_range(hear(children[i].out), 0, CONTROL_SLOTS - 1);
  }
  for (int i = 0; i < CHILDREN; i++)
    assert_int_equal(child_end(&children[i], SIGKILL), -SIGKILL);
  /* Each of these takes the number, and then the slot, of one of those. */
  for (int i = 0; i < CHILDREN; i++) {
    struct child c = child_start(run_reader, *state);
    uint32_t number = hear(c.out), owned = 0;
    for (unsigned k = 0; k < CONTROL_SLOTS; k++)
      owned += atomic_load(&map->control->slots[k].owner) == number;
    assert_true(taken[number]);
    assert_int_equal(owned, 0);
    child_end(&c, 0);
  }
  control_close(map);
}

/* In a child, what was mapped before fork() is the parent's: the child gets a
   number of its own, and the parent's is free when the parent ends. */
static int run_orphan(const char *dir, int in, int out)
{
  struct control_map *map = NULL;
  if (control_open(&io_posix, dir, false, &map) != 0) return 1;
  pid_t pid = fork();
  if (pid == 0) {
    say(out, 0);
    hear(in); /* lives on, and touches nothing */
    _exit(0);
  }
  return pid > 0 && say(out, map->number) ? 0 : 2;
}

static void test_orphan(void **state)
{
  struct control_map *map = open_in(*state);
  struct child c = child_start(run_orphan, *state);
  uint32_t number = hear(c.out);
  int status;
  if (number == 0) /* either of them may be the first to speak */
    number = hear(c.out);
  else
    assert_int_equal(hear(c.out), 0);
  assert_int_not_equal(number, map->number);
  assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
  assert_int_equal(status, 0);
  struct control_slot *slot = &map->control->slots[9];
  atomic_store(&slot->owner, number);
  atomic_store(&map->control->slots_used, 10);
  control_reap(map);
  assert_int_equal(atomic_load(&slot->owner), 0);
  close(c.in); /* ends the grandchild */
  assert_int_equal(hear(c.out), UINT32_MAX);
  close(c.out);
  control_close(map);
}

/* ---- limits ------------------------------------------------------------ */

static void test_slots_full(void **state)
{
  (void)state;
  struct control_map *map = open_in(NULL);
  struct control_reader *r = calloc(CONTROL_SLOTS, sizeof(*r)), more = {0};
  assert_non_null(r);
  for (unsigned i = 0; i < CONTROL_SLOTS; i++)
    assert_int_equal(control_enter(map, NULL, &r[i]), 0);
  assert_int_equal(control_enter(map, NULL, &more), -EUSERS);
  assert_null(more.slot);
  control_leave(&more);
  assert_ptr_not_equal(r[0].slot, r[CONTROL_SLOTS - 1].slot);
  struct control_slot *slot = r[1234].slot;
  control_leave(&r[1234]);
  control_leave(&r[1234]); /* harmless */
  assert_int_equal(control_enter(map, NULL, &more), 0);
  assert_ptr_equal(more.slot, slot);
  control_leave(&more);
  for (unsigned i = 0; i < CONTROL_SLOTS; i++)
    control_leave(&r[i]);
  free(r);
  control_close(map);
}

static void test_processes_full(void **state)
{
  struct control_map *map = open_in(*state);
  control_close(map);
  int fd = open(path_of(*state, "control").s, O_RDWR | O_CLOEXEC);
  struct flock lock = {
      .l_type = F_WRLCK, .l_start = NUMBERS + 1, .l_len = CONTROL_PROCESSES};
  assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
  assert_int_equal(control_open(&io_posix, *state, false, &map), -EUSERS);
  assert_null(map);
  lock =
      (struct flock){.l_type = F_UNLCK, .l_start = NUMBERS + 777, .l_len = 1};
  assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
  assert_int_equal(control_open(&io_posix, *state, false, &map), 0);
  assert_int_equal(map->number, 777);
  control_close(map);
  close(fd);
}

/* ---- files ------------------------------------------------------------- */

/* One mapping, and one number, for all that open the same files. */
static void test_shared(void **state)
{
  struct control_map *a = open_in(*state), *b = open_in(*state);
  assert_ptr_equal(a, b);
  assert_ptr_equal(control_ref(a), a);
  control_close(a);
  control_close(a);
  struct control_view view = view_of(1, 4), seen;
  control_show(b, &view);
  control_close(b);
  b = open_in(*state);
  control_look(b, &seen);
  assert_true(is_whole(&seen)); /* it stays when nobody has it open */
  control_close(b);
  control_close(NULL);
}

static void test_absent(void **state)
{
  struct control_map *map = NULL;
  assert_int_equal(control_open(&io_posix, *state, false, &map), -ENOENT);
  assert_null(map);
}

/* A file that is too short: the host makes it longer, nobody else trusts it. */
static void test_short(void **state)
{
  struct path path = path_of(*state, "control");
  struct control_map *map = NULL;
  uint8_t old[4096];
  memset(old, 0, sizeof(old));
  memcpy(old, CONTROL_MAGIC, sizeof(CONTROL_MAGIC));
  file_write(path.s, old, 100);
  file_write(path_of(*state, "frames").s, "", 0);
  assert_int_equal(control_open(&io_posix, *state, false, &map), -EBADMSG);
  /* As in the moment when it is made, block by block. */
  static const uint8_t zeros[sizeof(struct control)];
  file_write(path.s, zeros, 0);
  assert_int_equal(control_open(&io_posix, *state, false, &map), -ENOENT);
  file_write(path.s, zeros, 4096);
  assert_int_equal(control_open(&io_posix, *state, false, &map), -ENOENT);
  file_write(path.s, zeros, sizeof(zeros) - 4096);
  assert_int_equal(control_open(&io_posix, *state, false, &map), -ENOENT);
  file_write(path.s, old, 100);
  assert_null(map);
  assert_int_equal(file_size(path.s), 100);
  map = open_in(*state);
  assert_true(file_size(path.s) >= sizeof(struct control));
  assert_string_equal(map->control->magic, CONTROL_MAGIC);
  assert_int_equal(control_begin(map), 0); /* of no boot */
  control_close(map);
}

/* What was confirmed is believed if it is of this boot, and of a file of ours. */
static void test_begin(void **state)
{
  struct control_map *map = open_in(*state);
  assert_int_equal(control_begin(map), 0);
  atomic_store(&map->control->confirmed, 4711);
  control_close(map);
  map = open_in(*state);
  assert_int_equal(control_begin(map), 4711);
  map->control->boot[3] ^= 1;
  assert_int_equal(control_begin(map), 0);
  assert_int_equal(control_begin(map), 0);
  atomic_store(&map->control->confirmed, 4711);
  map->control->magic[0] = 'Q';
  assert_int_equal(control_begin(map), 0);
  assert_string_equal(map->control->magic, CONTROL_MAGIC);
  control_close(map);
}

int main(void)
{
#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_view),
      cmocka_unit_test(test_half_shown),
      cmocka_unit_test(test_pins),
#ifdef STEPWISE
      cmocka_unit_test(test_pin_stepwise),
      cmocka_unit_test(test_enter_stepwise),
      IN_DIR(test_reap_stepwise),
#endif
      cmocka_unit_test(test_pinned),
      IN_DIR(test_pins_elsewhere),
      IN_DIR(test_elsewhere),
      IN_DIR(test_hold),
      IN_DIR(test_reap),
      cmocka_unit_test(test_reap_nonsense),
      IN_DIR(test_numbers),
      IN_DIR(test_orphan),
      cmocka_unit_test(test_slots_full),
      IN_DIR(test_processes_full),
      IN_DIR(test_shared),
      IN_DIR(test_absent),
      IN_DIR(test_short),
      IN_DIR(test_begin),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
