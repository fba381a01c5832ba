/*
** What a host does with the COMMIT of an attached process.
**
** The turn of a process that ends in the moment of its COMMIT is nobody else's
** before that is handed over, or two transactions would be built on the same
** state, and the later one would take back the earlier one. What could not be
** handed over was not done, nor is what nobody waits for any more.
**
** The attached process is played by this one, message by message; the node
** stands still in the middle of taking the COMMIT over, as long as the test has
** the mutex that is needed to write frames.
*/
#include "nodes.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>

#define WAIT 20000               /* ms: longer than any machine is busy */
#define NUMBERS ((off_t)1 << 40) /* where processes lock their numbers */
#define TURN_OVER 1500u          /* ms: by then a turn would be over */

struct attached {
  struct node *node;
  struct control_reader reader;
  struct session_buffer buffer;
  uint32_t process;
  int watch, fd;
};

static int greet(struct attached *a, enum session_kind kind)
{
  struct session_message m = {.type = SESSION_HELLO};
  struct session_peer peer;
  int fd;
  m.hello.version = SESSION_VERSION;
  m.hello.kind = kind;
  m.hello.pid = (uint32_t)getpid();
  m.hello.process = a->process;
  if (kind == SESSION_KIND_CONNECTION)
    m.hello.slot = (uint32_t)(a->reader.slot - a->node->shared->slots);
  assert_int_equal(session_connect(a->node->dir, WAIT, &fd, &peer), 0);
  assert_int_equal(session_send(fd, &m, WAIT), 0);
  assert_int_equal(session_receive(fd, &a->buffer, WAIT, &m), 0);
  assert_int_equal(m.type, SESSION_WELCOME);
  return fd;
}

static void attach(struct attached *a, struct node *node)
{
  *a = (struct attached){.node = node, .process = node->map->number};
  assert_int_equal(control_enter(node->map, NULL, &a->reader), 0);
  a->watch = greet(a, SESSION_KIND_WATCH);
  a->fd = greet(a, SESSION_KIND_CONNECTION);
}

static struct session_answer hear(struct attached *a)
{
  struct session_message m;
  assert_int_equal(session_receive(a->fd, &a->buffer, WAIT, &m), 0);
  assert_int_equal(m.type, SESSION_ANSWER);
  return m.answer;
}

/* The turn; what it begins at. */
static struct session_view take(struct attached *a)
{
  struct session_message m = {.type = SESSION_TAKE};
  m.take = (struct session_take){.patience = WAIT, .begin = true};
  assert_int_equal(session_send(a->fd, &m, WAIT), 0);
  struct session_answer answer = hear(a);
  assert_int_equal(answer.rc, SQLITE_OK);
  assert_int_equal(answer.extra[0], 1);
  return answer.view;
}

/* A transaction that leaves a page as it is in the state that it began at.
   Returns when it was received. */
static void commit(struct attached *a, const struct session_view *view,
                   uint32_t pgno)
{
  struct wal *wal = a->node->wal;
  struct session_message m = {.type = SESSION_COMMIT};
  uint8_t *page = malloc(wal->page_size);
  struct iovec part = {page, wal->page_size};
  struct image image;
  int left = 1;
  assert_non_null(page);
  assert_int_equal(image_open(wal, "a test", &image), 0);
  assert_int_equal(image_read(&image, pgno, page), 0);
  m.commit = (struct session_commit){.view = *view,
                                     .n_page = image.n_page,
                                     .page_size = wal->page_size,
                                     .count = 1,
                                     .file = -1,
                                     .pgnos = &pgno,
                                     .parts = &part,
                                     .n_parts = 1};
  image_close(&image);
  atomic_store(&a->reader.slot->handed, CONTROL_SENT);
  assert_int_equal(session_send(a->fd, &m, WAIT), 0);
  until(ioctl(a->fd, SIOCOUTQ, &left) == 0 && left == 0);
  free(page);
}

static const struct connection *writer_of(struct node *node, uint64_t *since)
{
  pthread_mutex_lock(&node->mutex);
  const struct connection *writer = node->writer;
  *since = node->writer_since;
  pthread_mutex_unlock(&node->mutex);
  return writer;
}

static bool is_waited_for(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool waited = node->places != NULL;
  pthread_mutex_unlock(&node->mutex);
  return waited;
}

static bool is_taken_over(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool is = node->writer && node->writer_commits;
  pthread_mutex_unlock(&node->mutex);
  return is;
}

static void *insert(void *db)
{
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES(2)"));
  return NULL;
}

static void test_process_ends_at_its_commit(void **state)
{
  struct nodes nodes;
  struct attached a;
  pthread_t thread;
  uint64_t since, now;
  nodes_make(&nodes, *state, 1, 300);
  sqlite3 *db = nodes.db[1];
  nodes_do(db, sqlite3_mprintf("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  uint32_t root = (uint32_t)nodes_number(
      db, sqlite3_mprintf("SELECT rootpage FROM sqlite_schema"));
  struct node *node = nodes_node(&nodes, 1);
  attach(&a, node);
  struct session_view view = take(&a);
  const struct connection *its = writer_of(node, &since);
  assert_non_null(its);
  pthread_mutex_lock(&node->wal->file_mutex);
  commit(&a, &view, root);
  until(is_taken_over(node));
  close(a.watch); /* as when the process is killed */
  assert_int_equal(pthread_create(&thread, NULL, insert, db), 0);
  until(is_waited_for(node));
  until(clock_monotonic_ms() > since + TURN_OVER);
  const struct connection *then = writer_of(node, &now);
  pthread_mutex_unlock(&node->wal->file_mutex);
  struct session_answer answer = hear(&a);
  pthread_join(thread, NULL);
  assert_ptr_equal(then, its);
  assert_int_equal(answer.rc, SQLITE_OK);
  assert_int_equal(nodes_number(db, sqlite3_mprintf("SELECT count(*) FROM t")),
                   2);
  close(a.fd);
  control_leave(&a.reader);
  nodes_stop(&nodes, 1);
}

struct waiting {
  sqlite3 *db;
  atomic_bool *over;
};

static void *insert_and_tell(void *arg)
{
  struct waiting *w = arg;
  insert(w->db);
  atomic_store(w->over, true);
  return NULL;
}

/* A process is killed that has the turn, somebody else holds its session open,
   and its slot is another process's by now, which lives: the turn is over all
   the same. */
static void test_slot_of_another(void **state)
{
  struct nodes nodes;
  struct attached a, other;
  struct session_message m;
  pthread_t thread;
  atomic_bool over = false;
  struct waiting w = {NULL, &over};
  nodes_make(&nodes, *state, 1, 300);
  w.db = nodes.db[1];
  nodes_do(w.db, sqlite3_mprintf("CREATE TABLE t(id INTEGER)"));
  struct node *node = nodes_node(&nodes, 1);
  attach(&a, node);
  other = (struct attached){.node = node, .process = a.process + 1};
  int fd = open(path_of(node->dir, "/control").s, O_RDWR | O_CLOEXEC);
  assert_int_equal(wal_lock(fd, F_WRLCK, NUMBERS + other.process, 1), 0);
  other.watch = greet(&other, SESSION_KIND_WATCH);
  take(&a);
  atomic_store(&a.reader.slot->owner, other.process);
  close(a.watch);
  assert_int_equal(pthread_create(&thread, NULL, insert_and_tell, &w), 0);
  uint64_t last = clock_monotonic_ms() + WAIT;
  while (!atomic_load(&over) && clock_monotonic_ms() < last)
    if (session_receive(other.watch, &other.buffer, PAUSE_MS, &m) == 0) {
      assert_int_equal(m.type, SESSION_PING);
      m.type = SESSION_PONG;
      assert_int_equal(session_send(other.watch, &m, WAIT), 0);
    }
  assert_true(atomic_load(&over));
  pthread_join(thread, NULL);
  close(a.fd);
  close(other.watch);
  close(fd);
  atomic_store(&a.reader.slot->owner, a.process);
  control_leave(&a.reader);
  nodes_stop(&nodes, 1);
}

/* ---- frames that cannot be written -------------------------------------- */

struct broken {
  struct io io;
  int error, fd;
  unsigned left; /* writes to fd that succeed */
};

static int write_broken(void *ctx, int fd, const void *buf, size_t n,
                        uint64_t offset)
{
  struct broken *b = ctx;
  if (fd != b->fd) return io_posix.pwrite(NULL, fd, buf, n, offset);
  if (b->left == 0) return b->error;
  b->left--;
  return io_posix.pwrite(NULL, fd, buf, n, offset);
}

static void set_io(struct node *node, const struct io *io)
{
  pthread_mutex_lock(&node->wal->file_mutex);
  node->wal->io = io;
  pthread_mutex_unlock(&node->wal->file_mutex);
}

static void assert_undone(struct attached *a, int error, unsigned left, int rc)
{
  struct node *node = a->node;
  struct broken b = {io_posix, error, node->wal->file, left};
  struct session_view view = take(a);
  b.io.ctx = &b;
  b.io.pwrite = write_broken;
  set_io(node, &b.io);
  commit(a, &view, 2);
  struct session_answer answer = hear(a);
  set_io(node, &io_posix);
  assert_int_equal(answer.rc, rc);
  assert_string_not_equal(answer.reason, "");
}

static void test_frames_without_room(void **state)
{
  struct nodes nodes;
  struct attached a;
  nodes_make(&nodes, *state, 1, 300);
  sqlite3 *db = nodes.db[1];
  nodes_do(db, sqlite3_mprintf("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES(1)"));
  attach(&a, nodes_node(&nodes, 1));
  assert_undone(&a, -ENOSPC, 0, SQLITE_FULL);
  assert_undone(&a, -EIO, 0, SQLITE_IOERR_WRITE);
  /* The next one is not in its way. */
  struct session_view view = take(&a);
  commit(&a, &view, 2);
  assert_int_equal(hear(&a).rc, SQLITE_OK);
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES(2)"));
  assert_int_equal(nodes_number(db, sqlite3_mprintf("SELECT count(*) FROM t")),
                   2);
  close(a.fd);
  close(a.watch);
  control_leave(&a.reader);
  nodes_stop(&nodes, 1);
}

/* Before the first frame is written, the node may write no more, or the process
   has told its application that it was rolled back. */
static void fails_meanwhile(void **state, bool revoked)
{
  struct nodes nodes;
  struct attached a;
  nodes_make(&nodes, *state, 1, 300);
  struct node *node = nodes_node(&nodes, 1);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(id INTEGER)"));
  attach(&a, node);
  struct session_view view = take(&a);
  pthread_mutex_lock(&node->wal->file_mutex);
  commit(&a, &view, 2);
  until(is_taken_over(node));
  if (revoked) atomic_fetch_add(&node->shared->epoch, 1);
  if (!revoked) atomic_store(&a.reader.slot->handed, 0);
  pthread_mutex_unlock(&node->wal->file_mutex);
  struct session_answer answer = hear(&a);
  if (revoked) atomic_fetch_sub(&node->shared->epoch, 1);
  assert_int_equal(answer.rc, VFS_REJECTED);
  assert_non_null(strstr(answer.reason, "rolled back"));
  close(a.fd);
  close(a.watch);
  control_leave(&a.reader);
  nodes_stop(&nodes, 1);
}

static void test_revoked_meanwhile(void **state)
{
  fails_meanwhile(state, true);
}

static void test_given_up_meanwhile(void **state)
{
  fails_meanwhile(state, false);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_process_ends_at_its_commit, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_slot_of_another, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_frames_without_room, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_revoked_meanwhile, dir_make,
                                      dir_clear),
      cmocka_unit_test_setup_teardown(test_given_up_meanwhile, dir_make,
                                      dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
