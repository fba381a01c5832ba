/*
** The socket between a host and the processes attached to it: in any
** directory, with peers who are not who they should be, who pass descriptors
** that nobody asked for, or are very many.
*/
#include "harness.h"

#include "node.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#define WAIT 20000 /* ms: longer than any machine is busy */
#define NOBODY 65534u
#define LONG 150 /* bytes of a name; a socket's path has 108 */
#define CLIENTS 200

/* Descriptors of this process. */
static unsigned count_open(void)
{
  unsigned n = 0;
  for (int fd = 0; fd < 4096; fd++)
    n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

/* ---- descriptors ------------------------------------------------------- */

#define PAGE 512u
#define PAGES 3u

/* A file without a name, of a size. */
static int file_of(size_t size)
{
  char name[] = "/tmp/quorate-ext-file-XXXXXX";
  int fd = mkostemp(name, O_CLOEXEC);
  assert_true(fd >= 0);
  assert_int_equal(unlink(name), 0);
  assert_int_equal(ftruncate(fd, (off_t)size), 0);
  return fd;
}

static struct session_message commit_of(int file)
{
  struct session_message m;
  memset(&m, 0, sizeof(m));
  m.type = SESSION_COMMIT;
  m.commit.n_page = 9;
  m.commit.page_size = PAGE;
  m.commit.count = PAGES;
  m.commit.file = file;
  return m;
}

static struct session_message plain(enum session_type type)
{
  struct session_message m;
  memset(&m, 0, sizeof(m));
  m.type = type;
  return m;
}

static void test_file_passes(void **state)
{
  static struct session_buffer buffer;
  unsigned before = count_open();
  size_t size = (size_t)session_commit_bytes(PAGE, PAGES);
  int fd[2], file = file_of(size);
  char read_back[6] = "";
  (void)state;
  struct session_message m = commit_of(file), back;
  pair_make(fd);
  assert_int_equal(pwrite(file, "middle", 6, 700), 6);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  close(file);
  assert_int_equal(session_peek(fd[1]), SESSION_COMMIT);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_int_equal(back.type, SESSION_COMMIT);
  assert_int_equal(back.commit.count, PAGES);
  assert_null(back.commit.pgnos);
  assert_null(back.commit.pages);
  assert_int_equal(fcntl(back.commit.file, F_GETFD), FD_CLOEXEC);
  assert_int_equal(pread(back.commit.file, read_back, 6, 700), 6);
  assert_memory_equal(read_back, "middle", 6);
  close(back.commit.file);
  pair_close(fd);
  assert_int_equal(count_open(), before);
}

/* A message, with descriptors that go beside it as they are. */
static void send_beside(int fd, const uint8_t *bytes, size_t len,
                        const int *files, unsigned n)
{
  static union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(253 * sizeof(int))];
  } control;
  struct iovec iov = {(void *)(uintptr_t)bytes, len};
  struct msghdr packet = {.msg_iov = &iov,
                          .msg_iovlen = 1,
                          .msg_control = control.bytes,
                          .msg_controllen = CMSG_SPACE(n * sizeof(int))};
  struct cmsghdr *c = &control.align;
  memset(&control, 0, sizeof(control));
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(n * sizeof(int));
  memcpy(CMSG_DATA(c), files, n * sizeof(int));
  assert_int_equal(sendmsg(fd, &packet, 0), len);
}

/* The bytes of a message. */
static size_t bytes_of(enum session_type type, uint8_t *bytes, size_t size)
{
  int fd[2], file = file_of(session_commit_bytes(PAGE, PAGES));
  struct session_message m =
      type == SESSION_COMMIT ? commit_of(file) : plain(type);
  pair_make(fd);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  ssize_t n = recv(fd[1], bytes, size, MSG_DONTWAIT);
  assert_true(n > 0);
  pair_close(fd);
  close(file);
  return (size_t)n;
}

static void test_unwanted_descriptors(void **state)
{
  static struct session_buffer buffer;
  /* The file has the size of a COMMIT's, or none. */
  static const struct {
    enum session_type type;
    uint8_t flags;
    unsigned n;
    bool empty, sized;
  } cases[] = {{SESSION_PING, 0, 1, false, true},
               {SESSION_PING, 0, 2, false, true},
               {SESSION_PING, 0, 253, false, true},
               {SESSION_PING, 0, 1, true, true},
               {SESSION_PING, 1, 1, false, false},
               {SESSION_COMMIT, 1, 0, false, true},
               {SESSION_COMMIT, 1, 2, false, true},
               {SESSION_COMMIT, 1, 3, false, true},
               {SESSION_COMMIT, 1, 253, false, true},
               {SESSION_COMMIT, 1, 1, true, true},
               {SESSION_COMMIT, 3, 1, false, true}};
  unsigned before = count_open();
  (void)state;
  for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    uint8_t bytes[256];
    struct session_message m, back;
    int fd[2], files[253];
    int file = file_of(session_commit_bytes(PAGE, PAGES));
    int sent = cases[i].sized ? dup(file) : file_of(0);
    size_t len = bytes_of(cases[i].type, bytes, sizeof(bytes));
    bytes[6] = cases[i].flags;
    for (unsigned k = 0; k < cases[i].n; k++)
      files[k] = sent;
    pair_make(fd);
    unsigned then = count_open();
    if (cases[i].n == 0)
      assert_int_equal(send(fd[0], bytes, len, 0), len);
    else
      send_beside(fd[0], bytes, cases[i].empty ? 0 : len, files, cases[i].n);
    assert_int_not_equal(session_peek(fd[1]), 0);
    assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back),
                     cases[i].empty ? -EPIPE : -EPROTO);
    assert_int_equal(count_open(), then);
    /* What comes next is not spoiled. */
    m = commit_of(file);
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
    assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
    assert_int_equal(count_open(), then + 1);
    close(back.commit.file);
    close(sent);
    close(file);
    pair_close(fd);
  }
  assert_int_equal(count_open(), before);
}

#define UNFIT 7

/* Of another size than it should have, or none that can be read at a place. */
static void test_unfit_files(void **state)
{
  static struct session_buffer buffer;
  size_t size = (size_t)session_commit_bytes(PAGE, PAGES);
  struct session_message m, back;
  int fd[2], pipe_fd[2], file[UNFIT];
  char link[] = "/tmp/quorate-ext-link-XXXXXX", target[2000];
  (void)state;
  assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
  file[0] = file_of(size - 1);
  file[1] = file_of(size + 1);
  file[2] = pipe_fd[0];
  file[3] = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  close(mkstemp(link));
  assert_int_equal(truncate(link, (off_t)size), 0);
  file[4] = open(link, O_WRONLY | O_CLOEXEC);
  /* Links and paths have sizes, too. */
  file[5] = open(link, O_PATH | O_CLOEXEC);
  assert_int_equal(unlink(link), 0);
  memset(target, 'x', sizeof(target));
  target[size] = 0;
  assert_int_equal(symlink(target, link), 0);
  file[6] = open(link, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  assert_int_equal(unlink(link), 0);
  pair_make(fd);
  unsigned before = count_open();
  for (unsigned i = 0; i < UNFIT; i++) {
    assert_true(file[i] >= 0);
    m = commit_of(file[i]);
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
    assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
    assert_int_equal(count_open(), before);
  }
  pair_close(fd);
  close(pipe_fd[1]);
  for (unsigned i = 0; i < UNFIT; i++)
    close(file[i]);
}

/* The receiver may have no more files: it knows what it did not get. */
static void test_no_descriptor_left(void **state)
{
  static struct session_buffer buffer;
  int fd[2], file = file_of(session_commit_bytes(PAGE, PAGES));
  struct session_message m = commit_of(file), back;
  struct rlimit limit, none;
  uint8_t ping[64];
  size_t len = bytes_of(SESSION_PING, ping, sizeof(ping));
  (void)state;
  pair_make(fd);
  unsigned before = count_open();
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  send_beside(fd[0], ping, len, &file, 1);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
  none = (struct rlimit){1, limit.rlim_max}; /* as few as poll() needs */
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
  int rc = session_receive(fd[1], &buffer, WAIT, &back);
  int unwanted = session_receive(fd[1], &buffer, WAIT, &back);
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
  assert_int_equal(rc, -EMFILE);
  assert_int_equal(unwanted, -EPROTO);
  assert_int_equal(count_open(), before);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_int_equal(count_open(), before + 1);
  close(back.commit.file);
  close(file);
  pair_close(fd);
}

/* ---- directories ------------------------------------------------------- */

/* A directory with a short name, and in it one with a long name. */
struct place {
  char near[64], far[64 + LONG + 2];
};

static int place_make(void **state)
{
  struct place *p = calloc(1, sizeof(*p));
  if (p == NULL) return -1;
  strcpy(p->near, "/tmp/quorate-ext-XXXXXX");
  if (mkdtemp(p->near) == NULL) return -1;
  int n = snprintf(p->far, sizeof(p->far), "%s/", p->near);
  memset(p->far + n, 'd', LONG);
  if (mkdir(p->far, 0700) != 0) return -1;
  *state = p;
  return 0;
}

static int place_remove(void **state)
{
  struct place *p = *state;
  char sock[300];
  snprintf(sock, sizeof(sock), "%s/sock", p->far);
  unlink(sock);
  snprintf(sock, sizeof(sock), "%s/sock", p->near);
  unlink(sock);
  int rc = rmdir(p->far) | rmdir(p->near);
  free(p);
  return rc;
}

static struct stat stat_sock(const char *dir)
{
  char sock[300];
  struct stat st;
  snprintf(sock, sizeof(sock), "%s/sock", dir);
  if (lstat(sock, &st) != 0) memset(&st, 0, sizeof(st));
  return st;
}

/* Waits until somebody can be accepted. */
static int accept_one(int listener, int *fd, struct session_peer *peer)
{
  struct pollfd p = {.fd = listener, .events = POLLIN};
  assert_int_equal(poll(&p, 1, WAIT), 1);
  return session_accept(listener, fd, peer);
}

static void say(int fd, enum session_type type)
{
  struct session_message m = plain(type);
  assert_int_equal(session_send(fd, &m, WAIT), 0);
}

static void hear(int fd, enum session_type type)
{
  static struct session_buffer buffer;
  struct session_message m;
  assert_int_equal(session_receive(fd, &buffer, WAIT, &m), 0);
  assert_int_equal(m.type, type);
}

/* Both ways through a socket that is listened on. */
static void talk(const char *dir, int listener)
{
  struct session_peer peer;
  int client, host;
  assert_int_equal(session_accept(listener, &host, &peer), -EAGAIN);
  assert_int_equal(session_connect(dir, WAIT, &client, &peer), 0);
  assert_int_equal(peer.pid, getpid());
  assert_int_equal(peer.uid, geteuid());
  memset(&peer, 0xff, sizeof(peer));
  assert_int_equal(session_accept(listener, &host, &peer), 0);
  assert_int_equal(peer.pid, getpid());
  assert_int_equal(peer.uid, geteuid());
  assert_int_equal(fcntl(client, F_GETFD), FD_CLOEXEC);
  assert_int_equal(fcntl(host, F_GETFD), FD_CLOEXEC);
  say(client, SESSION_PING);
  hear(host, SESSION_PING);
  say(host, SESSION_PONG);
  hear(client, SESSION_PONG);
  close(client);
  assert_int_equal(session_peek(host), -EPIPE);
  close(host);
}

/* A short path is bound as it is: that needs no /proc, and `ss` shows it. */
static bool is_direct(int listener, const char *dir)
{
  struct sockaddr_un address;
  socklen_t len = sizeof(address);
  assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
  return strncmp(address.sun_path, dir, strlen(dir)) == 0;
}

static void test_short_and_long_paths(void **state)
{
  struct place *place = *state;
  const char *dirs[] = {place->near, place->far};
  unsigned before = count_open();
  assert_true(strlen(place->far) > sizeof(((struct sockaddr_un *)0)->sun_path));
  for (unsigned i = 0; i < 2; i++) {
    struct session_peer peer;
    int listener, fd;
    assert_int_equal(session_connect(dirs[i], WAIT, &fd, &peer), -ENOENT);
    assert_int_equal(fd, -1);
    assert_int_equal(session_listen(dirs[i], &listener), 0);
    assert_int_equal(fcntl(listener, F_GETFD), FD_CLOEXEC);
    assert_true(is_direct(listener, dirs[i]) == (i == 0));
    talk(dirs[i], listener);
    talk(dirs[i], listener);
    session_unlisten(dirs[i], listener);
    assert_int_equal(stat_sock(dirs[i]).st_mode, 0);
    assert_int_equal(session_connect(dirs[i], WAIT, &fd, &peer), -ENOENT);
  }
  assert_int_equal(count_open(), before);
}

/* In the directory that the application is in, too. */
static void test_relative_path(void **state)
{
  struct place *place = *state;
  char was[4096];
  int listener;
  assert_non_null(getcwd(was, sizeof(was)));
  assert_int_equal(chdir(place->near), 0);
  assert_int_equal(session_listen(".", &listener), 0);
  talk(".", listener);
  talk(place->near, listener);
  session_unlisten(".", listener);
  assert_int_equal(session_listen(strrchr(place->far, '/') + 1, &listener), 0);
  talk(place->far, listener);
  session_unlisten(strrchr(place->far, '/') + 1, listener);
  assert_int_equal(chdir(was), 0);
}

static void test_no_directory(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  char dir[300], sock[300];
  int fd;
  unsigned before = count_open();
  snprintf(dir, sizeof(dir), "%s/none", place->near);
  assert_int_equal(session_listen(dir, &fd), -ENOENT);
  assert_int_equal(fd, -1);
  assert_int_equal(session_connect(dir, WAIT, &fd, &peer), -ENOENT);
  /* Something else has the name. */
  snprintf(sock, sizeof(sock), "%s/sock", place->near);
  assert_int_equal(mkdir(sock, 0700), 0);
  assert_int_equal(session_listen(place->near, &fd), -EISDIR);
  assert_int_equal(session_connect(place->near, WAIT, &fd, &peer),
                   -ECONNREFUSED);
  assert_int_equal(rmdir(sock), 0);
  assert_int_equal(count_open(), before);
}

/* Who was killed leaves its socket: nobody answers there, and the next to
   listen replaces it. */
static void test_stale(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  int fd, listener;
  assert_int_equal(session_listen(place->far, &listener), 0);
  ino_t first = stat_sock(place->far).st_ino;
  assert_int_not_equal(first, 0);
  close(listener);
  assert_int_equal(stat_sock(place->far).st_ino, first);
  assert_int_equal(session_connect(place->far, WAIT, &fd, &peer),
                   -ECONNREFUSED);
  assert_int_equal(session_listen(place->far, &listener), 0);
  talk(place->far, listener);
  session_unlisten(place->far, listener);
}

static void test_mode(void **state)
{
  static const mode_t masks[] = {0, 022, 077, 0777};
  struct place *place = *state;
  for (unsigned i = 0; i < 4; i++) {
    int listener;
    mode_t was = umask(masks[i]);
    assert_int_equal(session_listen(place->far, &listener), 0);
    assert_int_equal(umask(was), masks[i]);
    assert_int_equal(stat_sock(place->far).st_mode, S_IFSOCK | 0600);
    close(listener);
  }
}

/* ---- who --------------------------------------------------------------- */

static bool need_root(void)
{
  if (geteuid() == 0) return true;
  print_message("skipped: only root can be somebody else\n");
  return false;
}

/* What somebody does in a process of its own, which ends with the answer. */
static pid_t start_as(uid_t uid, int (*what)(const char *dir, int gate),
                      const char *dir, int gate)
{
  fflush(NULL);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) _exit(setuid(uid) == 0 ? what(dir, gate) : 99);
  return pid;
}

static int answer_of(pid_t pid)
{
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int connects(const char *dir, int gate)
{
  static struct session_buffer buffer;
  struct session_peer peer;
  struct session_message m;
  int fd, rc = session_connect(dir, WAIT, &fd, &peer);
  (void)gate;
  if (rc == 0) rc = session_receive(fd, &buffer, WAIT, &m);
  return -rc;
}

/* Listens, says so, and accepts one, whose answer is its own. */
static int hosts(const char *dir, int gate)
{
  struct session_peer peer;
  int listener, fd, rc = session_listen(dir, &listener);
  if (rc || write(gate, "", 1) != 1) return 98;
  struct pollfd p = {.fd = listener, .events = POLLIN};
  if (poll(&p, 1, WAIT) != 1) return 97;
  rc = session_accept(listener, &fd, &peer);
  struct session_message m = plain(SESSION_PING);
  if (rc == 0) rc = session_send(fd, &m, WAIT);
  return -rc;
}

/* Opens a directory for everybody, as somebody might who meant well. */
static void open_up(const char *dir)
{
  char sock[300];
  snprintf(sock, sizeof(sock), "%s/sock", dir);
  assert_int_equal(chmod(dir, 0777), 0);
  if (stat_sock(dir).st_mode) assert_int_equal(chmod(sock, 0666), 0);
}

static void test_stranger_is_refused(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  int listener, fd;
  if (!need_root()) return;
  assert_int_equal(session_listen(place->near, &listener), 0);
  /* By the directory; by the socket; by who it is. */
  assert_int_equal(answer_of(start_as(NOBODY, connects, place->near, -1)),
                   EACCES);
  assert_int_equal(chmod(place->near, 0755), 0);
  assert_int_equal(answer_of(start_as(NOBODY, connects, place->near, -1)),
                   EACCES);
  assert_int_equal(session_accept(listener, &fd, &peer), -EAGAIN);
  open_up(place->near);
  unsigned before = count_open();
  pid_t pid = start_as(NOBODY, connects, place->near, -1);
  assert_int_equal(accept_one(listener, &fd, &peer), -EPERM);
  assert_int_equal(fd, -1);
  assert_int_equal(peer.pid, pid);
  assert_int_equal(peer.uid, NOBODY);
  assert_int_equal(answer_of(pid), EPIPE);
  assert_int_equal(count_open(), before);
  session_unlisten(place->near, listener);
}

/* Somebody listens who is neither root nor this user. As an owner of the
   directory it would be trusted by root: that is whose database it is. */
static void test_strange_host(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  int gate[2], fd;
  char one;
  if (!need_root()) return;
  assert_int_equal(pipe2(gate, O_CLOEXEC), 0);
  for (unsigned owner = 0; owner < 2; owner++) {
    open_up(place->near);
    assert_int_equal(chown(place->near, owner ? NOBODY : 0, 0), 0);
    pid_t pid = start_as(NOBODY, hosts, place->near, gate[1]);
    assert_int_equal(read(gate[0], &one, 1), 1);
    unsigned before = count_open();
    int rc = session_connect(place->near, WAIT, &fd, &peer);
    assert_int_equal(rc, owner ? 0 : -EPERM);
    assert_int_equal(peer.uid, NOBODY);
    assert_int_equal(peer.pid, pid);
    if (owner) {
      hear(fd, SESSION_PING);
      close(fd);
    }
    assert_int_equal(count_open(), before);
    /* It takes root for one of its own. */
    int answer = answer_of(pid);
    assert_true(answer == 0 || (!owner && answer == EPIPE));
  }
  close(gate[0]);
  close(gate[1]);
}

/* ---- many -------------------------------------------------------------- */

/* Too many wait to be accepted: who comes next waits as long as it may, and is
   let in as soon as there is room. */
static void *connect_waits(void *dir)
{
  struct session_peer peer;
  int fd;
  return session_connect(dir, WAIT, &fd, &peer) == 0 ? (void *)(intptr_t)fd
                                                     : NULL;
}

static void test_full_backlog(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  int listener, fd, queued[16];
  unsigned n = 0;
  pthread_t thread;
  void *late;
  assert_int_equal(session_listen(place->far, &listener), 0);
  assert_int_equal(listen(listener, 4), 0);
  while (session_connect(place->far, 0, &queued[n], &peer) == 0)
    assert_in_range(++n, 1, 15);
  assert_in_range(n, 4, 15);
  unsigned before = count_open();
  assert_int_equal(session_connect(place->far, 0, &fd, &peer), -ETIMEDOUT);
  uint64_t start = clock_monotonic_ms();
  assert_int_equal(session_connect(place->far, 100, &fd, &peer), -ETIMEDOUT);
  assert_in_range(clock_monotonic_ms() - start, 99, WAIT);
  assert_int_equal(count_open(), before);
  assert_int_equal(pthread_create(&thread, NULL, connect_waits, place->far), 0);
  usleep(20000); /* it waits, or comes later: it is let in either way */
  assert_int_equal(accept_one(listener, &fd, &peer), 0);
  pthread_join(thread, &late);
  assert_non_null(late);
  close((int)(intptr_t)late);
  close(fd);
  while (n > 0)
    close(queued[--n]);
  session_unlisten(place->far, listener);
}

/* Who waits to be let in learns that the host has ended. */
static void test_backlog_ends(void **state)
{
  struct place *place = *state;
  struct session_peer peer;
  int listener, queued;
  pthread_t thread;
  void *late;
  assert_int_equal(session_listen(place->far, &listener), 0);
  assert_int_equal(listen(listener, 0), 0);
  assert_int_equal(session_connect(place->far, 0, &queued, &peer), 0);
  assert_int_equal(pthread_create(&thread, NULL, connect_waits, place->far), 0);
  usleep(20000);
  uint64_t start = clock_monotonic_ms();
  session_unlisten(place->far, listener);
  pthread_join(thread, &late);
  assert_null(late);
  assert_in_range(clock_monotonic_ms() - start, 0, WAIT / 2);
  assert_int_equal(session_peek(queued), -EPIPE);
  close(queued);
}

struct client {
  pthread_t thread;
  const char *dir, *failed;
  struct session_buffer buffer;
};

/* What went wrong, or NULL. */
static const char *be_client(int fd, struct session_buffer *buffer)
{
  struct session_message m = plain(SESSION_HELLO);
  m.hello.version = SESSION_VERSION;
  m.hello.kind = SESSION_KIND_CONNECTION;
  m.hello.process = (uint32_t)fd;
  if (session_send(fd, &m, WAIT) != 0) return "hello";
  if (session_receive(fd, buffer, WAIT, &m) != 0) return "welcome";
  if (m.type != SESSION_WELCOME || m.start != (uint32_t)fd) return "start";
  for (uint64_t i = 1; i <= 20; i++) {
    uint64_t number = i << 32 | (uint32_t)fd;
    m = plain(SESSION_RESOLVE);
    m.sequence = number;
    if (session_send(fd, &m, WAIT) != 0) return "request";
    if (session_receive(fd, buffer, WAIT, &m) != 0) return "answer";
    if (m.type != SESSION_ANSWER || m.answer.extra[0] != number)
      return "another's answer";
  }
  return NULL;
}

static void *client_main(void *arg)
{
  struct client *client = arg;
  struct session_peer peer;
  int fd;
  client->failed = "connect";
  if (session_connect(client->dir, WAIT, &fd, &peer) != 0) return NULL;
  client->failed = be_client(fd, &client->buffer);
  close(fd);
  return NULL;
}

/* One message of a client; false: it has ended. */
static bool serve(int fd)
{
  static struct session_buffer buffer;
  struct session_message m, out;
  int rc = session_receive(fd, &buffer, 0, &m);
  if (rc == -EPIPE) return false;
  assert_int_equal(rc, 0);
  if (m.type == SESSION_HELLO) {
    out = plain(SESSION_WELCOME);
    out.start = m.hello.process;
  } else {
    assert_int_equal(m.type, SESSION_RESOLVE);
    out = plain(SESSION_ANSWER);
    out.answer.extra[0] = m.sequence;
  }
  assert_int_equal(session_send(fd, &out, WAIT), 0);
  return true;
}

static void test_many_clients(void **state)
{
  static struct client client[CLIENTS];
  static struct pollfd p[CLIENTS + 1];
  struct place *place = *state;
  unsigned before = count_open(), n = 0, ended = 0;
  assert_int_equal(session_listen(place->far, &p[0].fd), 0);
  p[0].events = POLLIN;
  for (unsigned i = 0; i < CLIENTS; i++) {
    client[i].dir = place->far;
    assert_int_equal(
        pthread_create(&client[i].thread, NULL, client_main, &client[i]), 0);
  }
  while (ended < CLIENTS) {
    struct session_peer peer;
    assert_true(poll(p, n + 1, WAIT) > 0);
    for (unsigned i = 1; i <= n; i++)
      if (p[i].revents && !serve(p[i].fd)) {
        close(p[i].fd);
        p[i].fd = -1;
        ended++;
      }
    if (p[0].revents && session_accept(p[0].fd, &p[n + 1].fd, &peer) == 0)
      p[++n].events = POLLIN;
  }
  for (unsigned i = 0; i < CLIENTS; i++) {
    pthread_join(client[i].thread, NULL);
    if (client[i].failed) fail_msg("client %u: %s", i, client[i].failed);
  }
  session_unlisten(place->far, p[0].fd);
  assert_int_equal(count_open(), before);
}

#define at_place(test)                                                         \
  cmocka_unit_test_setup_teardown(test, place_make, place_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_file_passes),
      cmocka_unit_test(test_unwanted_descriptors),
      cmocka_unit_test(test_unfit_files),
      cmocka_unit_test(test_no_descriptor_left),
      at_place(test_short_and_long_paths),
      at_place(test_relative_path),
      at_place(test_no_directory),
      at_place(test_stale),
      at_place(test_mode),
      at_place(test_stranger_is_refused),
      at_place(test_strange_host),
      at_place(test_full_backlog),
      at_place(test_backlog_ends),
      at_place(test_many_clients),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
