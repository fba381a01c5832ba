/*
** A host is killed before each store to memory that it shares with others, and in
** the middle of each write to a file.
**
** The host is a child of this process, to which what it shares is mapped so that
** it can only be read: each store is a fault, is let through and counted, and
** number n of them is not done. What it leaves must be of use to all that live on:
** a stock reader in another process and a connection of an attached process, each
** with a snapshot from before, and new ones of both; then to the next host, which
** is killed in the same way while it takes over. What they see is the state before
** or the state after, never less than another has seen, and they get on.
*/
#include "world.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define WATCHED
#endif
#elif defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define WATCHED
#endif

#if defined(__x86_64__) && !defined(WATCHED)

#define PAGE_SIZE 512u
#define PIECE 4096u /* a page of memory; a write puts it there whole */
#define HEADS 136u /* of the real -shm: two headers, and the rest of the head */
#define TRAP_FLAG 0x100
#define DONE 77
#define FILL(n, size)                                                          \
  "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i "    \
  "< " #n ") INSERT INTO t(v) SELECT printf('%.*c', " #size                    \
  ", char(97 + i % 26)) FROM n"

/* Of rows that stay as long as they are. */
#define CHANGE(which)                                                          \
  "UPDATE t SET v = CASE substr(v, 1, 1) WHEN 'x' THEN 'y' ELSE 'x' END || "   \
  "substr(v, 2) WHERE id % " which

/* ---- the host, store by store ------------------------------------------ */

/* Memory that is shared: it can be read only, but for one instruction at a
   time. */
struct shared {
  uint8_t *at;
  size_t size;
};
static struct shared shared[8];
static unsigned n_shared;
static volatile unsigned changes, last_change; /* there it is killed */
static volatile unsigned in_bulk;
static int shm = -1; /* the real -shm is mapped later */

static void die(void)
{
  kill(getpid(), SIGKILL);
}

static void count_change(void)
{
  if (++changes == last_change) die();
}

static void share(void *at, size_t size)
{
  mprotect(at, size, PROT_READ);
  shared[n_shared++] = (struct shared){at, size};
}

static uint8_t *volatile open_page;
static bool coarse; /* what is behind the head of the real -shm: page by page */

static const struct shared *shared_at(const uint8_t *at)
{
  for (unsigned i = 0; i < n_shared; i++)
    if (at >= shared[i].at && at < shared[i].at + shared[i].size)
      return &shared[i];
  _exit(4);
}

/* A store, which is not done yet. */
static void on_store(int number, siginfo_t *info, void *context)
{
  ucontext_t *c = context;
  uint8_t *at = info->si_addr;
  const struct shared *in = shared_at(at);
  size_t page = (size_t)(at - in->at) / PIECE;
  bool bulk = coarse && in->size == WALINDEX_REGION && at >= in->at + HEADS;
  (void)number;
  if (!bulk || page > 0 || in_bulk++ % PIECE == 0) count_change();
  mprotect(in->at + page * PIECE, PIECE, PROT_READ | PROT_WRITE);
  if (bulk && page > 0) return;
  open_page = in->at + page * PIECE;
  c->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

/* It is done. */
static void on_stored(int number, siginfo_t *info, void *context)
{
  ucontext_t *c = context;
  (void)number;
  (void)info;
  mprotect(open_page, PIECE, PROT_READ);
  c->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
}

/* In the place of the C library's: of what wal.c maps. */
void *mmap(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
  struct stat a, b;
  bool is_index = shm >= 0 && fd >= 0 && fstat(shm, &a) == 0 &&
                  fstat(fd, &b) == 0 && a.st_ino == b.st_ino;
  void *made = (void *)syscall(
      SYS_mmap, at, size, is_index ? PROT_READ : access, flags, fd, offset);
  if (is_index && made != MAP_FAILED) share(made, size);
  return made;
}

static int files[2]; /* -wal, the database */

/* A write to a file: only some of its pieces come, and before it none. */
static void tear(struct spy *spy, char kind, const uint8_t *data, size_t n,
                 uint64_t offset)
{
  (void)spy;
  if (kind == 's') return;
  for (size_t at = 0; at < n; at += PIECE - (offset + at) % PIECE) {
    if (++changes != last_change) continue;
    if (at > 0) /* in the middle of it */
      io_posix.pwrite(NULL, files[kind == 'd'], data, at, offset);
    die();
  }
}

static void look_around(struct world *w)
{
  struct sigaction action = {.sa_flags = SA_SIGINFO};
  files[0] = open(w->wal_path, O_RDWR | O_CLOEXEC);
  files[1] = open(w->db, O_RDWR | O_CLOEXEC);
  shm = open(w->shm_path, O_RDWR | O_CLOEXEC);
  if (files[0] < 0 || files[1] < 0 || shm < 0 ||
      control_set_pgno(w->map, 1, 1) != 0)
    _exit(1);
  share(w->map->control, sizeof(struct control));
  share((void *)(uintptr_t)w->map->blocks[0], CONTROL_BLOCK * 4);
  for (unsigned i = 0; w->wal && i < w->wal->index.n_regions; i++)
    share(w->wal->index.region[i], WALINDEX_REGION);
  w->spy.on_write = tear;
  action.sa_sigaction = on_store;
  if (sigaction(SIGSEGV, &action, NULL) != 0) _exit(1);
  action.sa_sigaction = on_stored;
  if (sigaction(SIGTRAP, &action, NULL) != 0) _exit(1);
}

static int open_as_host(struct world *w)
{
  char *error = NULL;
  return wal_open(&w->spy.io, w->db, w->index - 1, w->map, &w->wal, &error);
}

static void run(struct world *w, int (*op)(struct world *w), unsigned n)
{
  last_change = n;
  if (op != open_as_host && open_as_host(w) != 0) _exit(2);
  look_around(w);
  int rc = op(w);
  _exit(rc == 0 ? DONE : 3);
}

/* False: it has come to its end before. */
static bool kill_host(struct world *w, int (*op)(struct world *w), unsigned n)
{
  int status;
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) run(w, op, n);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  if (WIFEXITED(status)) assert_int_equal(WEXITSTATUS(status), DONE);
  return WIFSIGNALED(status);
}

/* ---- who lives on ------------------------------------------------------ */

struct state {
  uint8_t *image;
  size_t len;
  char digest[ANSWER_MAX];
};

struct stage {
  struct world w;
  struct reader fresh; /* in a process of its own, like w.reader */
  int db, wal, fence_db, fence_shm;
  struct control_reader old, now;
  struct control_view old_view;
  struct state before, after;
  bool advanced; /* somebody has seen the state after */
};

static void keep(struct stage *s, struct state *state)
{
  free(state->image);
  state->len = s->w.origin.len;
  state->image = malloc(state->len);
  assert_non_null(state->image);
  memcpy(state->image, s->w.origin.image, state->len);
  stock_ask(s->w.origin.db, DIGEST, state->digest);
}

/* Whether an attached process reads this state by what it has pinned. */
static bool reads(const struct stage *s, const struct control_reader *r,
                  const struct control_view *view, const struct state *state)
{
  uint8_t page[PAGE_SIZE];
  uint32_t n = view->confirmed.n_page;
  if (n != state->len / PAGE_SIZE) return false;
  for (uint32_t pgno = 1; pgno <= n; pgno++) {
    uint32_t f = r->uses_wal ? r->frame : 0;
    while (f > 0 && control_pgno(s->w.map, f) != pgno)
      f--;
    uint64_t at = (uint64_t)(pgno - 1) * PAGE_SIZE;
    if (f > 0)
      at = WAL_HEADER + (uint64_t)(f - 1) * (PAGE_SIZE + WAL_FRAME_HEADER) +
           WAL_FRAME_HEADER;
    if (pread(f > 0 ? s->wal : s->db, page, PAGE_SIZE, (off_t)at) != PAGE_SIZE)
      return false;
    if (memcmp(page, state->image + (size_t)(pgno - 1) * PAGE_SIZE,
               PAGE_SIZE) != 0)
      return false;
  }
  return true;
}

/* One who reads now has this state, or the one before, if nobody has seen
   more. */
static void check_new(struct stage *s, unsigned n)
{
  struct control_view view;
  control_pin(s->w.map, &s->now, false, &view);
  if (!walindex_sealed(&view.confirmed) || !walindex_sealed(&view.head))
    fail_msg("%u: a view that is not whole", n);
  bool after = reads(s, &s->now, &view, &s->after);
  if (!after && (s->advanced || !reads(s, &s->now, &view, &s->before)))
    fail_msg("%u: an attached process reads neither state", n);
  s->advanced = s->advanced || after;
  control_unpin(s->w.map, &s->now);
}

static void check_new_stock(struct stage *s, unsigned n)
{
  const char *answer = reader_ask(&s->fresh, DIGEST);
  bool after = strcmp(answer, s->after.digest) == 0;
  if (!after && (s->advanced || strcmp(answer, s->before.digest) != 0))
    fail_msg("%u: a stock reader: %s", n, answer);
  /* It sees what comes a moment later to attached processes. */
}

static void check_old(struct stage *s, unsigned n)
{
  if (!reads(s, &s->old, &s->old_view, &s->before))
    fail_msg("%u: a snapshot of an attached process has changed", n);
  if (strcmp(reader_ask(&s->w.reader, DIGEST), s->before.digest) != 0)
    fail_msg("%u: a stock reader's snapshot: %s", n, s->w.reader.answer);
}

/* Two copies of the header that differ: a stock reader waits for the next host. */
static bool is_torn(const struct stage *s)
{
  size_t len;
  uint8_t *index = file_read(s->w.shm_path, &len);
  bool torn = len < HEADS || memcmp(index, index + 48, 48) != 0;
  free(index);
  return torn;
}

static void stage_begin(struct stage *s, void **state)
{
  struct world *w = &s->w;
  memset(s, 0, sizeof(*s));
  world_init(w, state, PAGE_SIZE);
  reader_start(&s->fresh, w->db);
  world_open(w);
  assert_string_equal(reader_ask(&w->reader, "open"), "ok");
  assert_string_equal(reader_ask(&s->fresh, "open"), "ok");
  assert_int_equal(wal_fence(w->db, &s->fence_db, &s->fence_shm), 0);
  s->db = open(w->db, O_RDONLY | O_CLOEXEC);
  s->wal = open(w->wal_path, O_RDONLY | O_CLOEXEC);
  assert_int_equal(control_enter(w->map, NULL, &s->old), 0);
  assert_int_equal(control_enter(w->map, NULL, &s->now), 0);
  world_step(w, FILL(20, 300));
  world_checkpoint_full(w);
  world_step(w, FILL(4, 300));
}

static void stage_end(struct stage *s)
{
  control_leave(&s->old);
  control_leave(&s->now);
  close(s->db);
  close(s->wal);
  close(s->fence_db);
  close(s->fence_shm);
  free(s->before.image);
  free(s->after.image);
  reader_stop(&s->fresh);
  world_free(&s->w);
}

/* What is seen to be the newest state is there for the next host, and goes on. */
static void take_over(struct stage *s, unsigned n)
{
  struct world *w = &s->w;
  int rc;
  char *error = world_try_open(w, &rc);
  if (rc) fail_msg("%u: %d: %s", n, rc, error ? error : "-");
  world_check(w);
  check_new(s, n);
  check_new_stock(s, n);
  check_old(s, n);
  /* The next start knows how much of the log it needs. */
  if (s->advanced)
    assert_int_equal(atomic_load(&w->map->control->confirmed), w->index);
  /* The log has all, or all but the newest. */
  assert_int_equal(world_append(w, true), 0);
  s->advanced = true;
  check_new(s, n);
  check_new_stock(s, n);
  check_old(s, n);
  control_unpin(w->map, &s->old);
  reader_ask(&w->reader, "COMMIT");
  reader_agrees(&w->reader, &w->origin);
  world_checkpoint_full(w);
  world_file_is_origin(w);
  assert_int_equal(wal_restart(w->wal), 0);
  world_check(w);
  check_new(s, n);
  check_new_stock(s, n);
}

struct scene {
  void (*prepare)(struct stage *s);
  int (*op)(struct world *w);
  bool step; /* the origin moves on first */
  bool coarse;
};

static void begin(struct stage *s, const struct scene *scene)
{
  scene->prepare(s);
  keep(s, &s->before);
  world_close(&s->w, false);
  if (scene->step) {
    origin_step(&s->w.origin,
                CHANGE("11 = 3") ";"
                                 "INSERT OR REPLACE INTO t SELECT 1000, "
                                 "max(id) || v FROM t");
    s->w.index++;
  }
  keep(s, &s->after);
  s->advanced = false;
  control_pin(s->w.map, &s->old, false, &s->old_view);
  reader_ask(&s->w.reader, "BEGIN");
  check_old(s, 0);
}

static void look(struct stage *s, unsigned n)
{
  check_new(s, n);
  check_old(s, n);
  if (!is_torn(s)) check_new_stock(s, n);
}

/* How many changes there are. */
static unsigned play(void **state, const struct scene *scene)
{
  struct stage s;
  unsigned n = 1;
  stage_begin(&s, state);
  for (bool killed = true; killed; n++) {
    begin(&s, scene);
    coarse = scene->coarse;
    killed = kill_host(&s.w, scene->op, n);
    look(&s, n);
    take_over(&s, n);
  }
  stage_end(&s);
  return n - 2;
}

/* And so is the next host, while it takes over. */
static unsigned play_twice(void **state, const struct scene *scene,
                           unsigned first_every, unsigned every)
{
  struct stage s;
  unsigned played = 0;
  stage_begin(&s, state);
  for (unsigned first = 1, killed = true; killed; first += first_every)
    for (unsigned n = 1, again = true; again; n += every) {
      begin(&s, scene);
      coarse = true;
      killed = kill_host(&s.w, scene->op, first);
      again = kill_host(&s.w, open_as_host, n);
      look(&s, first * 1000 + n);
      take_over(&s, first * 1000 + n);
      played++;
    }
  stage_end(&s);
  return played;
}

/* ---- scenes ------------------------------------------------------------ */

static void some_frames(struct stage *s)
{
  world_step(&s->w, CHANGE("7 = 3"));
  world_step(&s->w, "UPDATE t SET v = 'z' WHERE id % 7 = 5");
}

static void all_copied(struct stage *s)
{
  some_frames(s);
  world_checkpoint_full(&s->w);
}

static int append(struct world *w)
{
  return world_append(w, false);
}

/* As a connection of this node writes it. */
static int write_and_confirm(struct world *w)
{
  struct origin *o = &w->origin;
  struct walindex_header header = w->wal->confirmed, base = header;
  uint8_t buf[PAGE_SIZE + WAL_FRAME_HEADER];
  header.change++;
  for (uint32_t i = 0; i < o->n_changed; i++) {
    bool last = i + 1 == o->n_changed;
    const uint8_t *page = origin_page(o, o->changed[i]);
    wal_encode_frame(buf, o->changed[i], last ? o->n_page : 0, header.salt,
                     page, PAGE_SIZE, header.frame_checksum);
    memcpy(buf + WAL_FRAME_HEADER, page, PAGE_SIZE);
    for (unsigned k = 8; last && k < 16; k++)
      buf[k] = (uint8_t)~buf[k];
    int rc = w->spy.io.pwrite(&w->spy, w->wal->file, buf, sizeof(buf),
                              wal_offset(w->wal, ++header.mx_frame));
    if (rc) return rc;
  }
  header.n_page = o->n_page;
  walindex_seal(&header);
  int rc = wal_hand_over(w->wal, w->wal->epoch, &base, &header, o->changed);
  if (rc == 0) rc = wal_confirm(w->wal, &header, w->index);
  if (rc == 0) wal_settle(w->wal);
  return rc;
}

static int checkpoint(struct world *w)
{
  struct wal_checkpointed done;
  return wal_checkpoint(w->wal, world_floor, w, &done);
}

static int restart(struct world *w)
{
  return wal_restart(w->wal);
}

static const struct scene appends = {some_frames, append, true, false},
                          confirms = {some_frames, write_and_confirm, true,
                                      false},
                          copies = {some_frames, checkpoint, false, false},
                          restarts = {all_copied, restart, false, true};

/* How many stores there are at least: else they are not seen. */
static void test_append(void **state)
{
  assert_true(play(state, &appends) > 30);
}

static void test_confirm(void **state)
{
  assert_true(play(state, &confirms) > 60);
}

static void test_checkpoint(void **state)
{
  assert_true(play(state, &copies) > 20);
}

static void test_restart(void **state)
{
  assert_true(play(state, &restarts) > 20);
}

static void test_next(void **state)
{
  assert_true(play_twice(state, &appends, 13, 9) > 20);
}

static void test_next_in_restart(void **state)
{
  assert_true(play_twice(state, &restarts, 3, 3) > 30);
}

int main(void)
{
#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)
  const struct CMUnitTest tests[] = {
      IN_DIR(test_append),  IN_DIR(test_confirm), IN_DIR(test_checkpoint),
      IN_DIR(test_restart), IN_DIR(test_next),    IN_DIR(test_next_in_restart),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void)
{
  return 0;
}
#endif
