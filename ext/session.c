/*
** session.c: between the host of a node and the processes attached to it.
**
** An attached process has one connection of kind WATCH to the host, and one for
** each of its database connections that ever needed the host. On each of them
** one request at a time is under way, and each request has one answer. The end
** of a connection says that the process at the other end, or its interest, has
** ended.
**
** from      message                     meaning, and what comes back
** --------  --------------------------  ------------------------------------
** attached  HELLO version kind process  first on each connection
**             slot pid                    -> WELCOME, or REFUSED and the end
** host      WELCOME start               which start of the host this is
** host      REFUSED text                and why not
**
** attached  BARRIER level wait_ms       a read may begin -> ANSWER
** attached  TAKE patience drained       wait for the turn to write -> ANSWER,
**             has_handler begin           extra[0]: it has come; extra[1]: this
**                                         node cannot write at all; with begin,
**                                         as if BEGIN at the head had followed
** host      BUSY                        during TAKE: ask your busy handler
** attached  SLEEP us                    the handler sleeps -> SLEPT as soon as
**                                         the turn has come, or us are over
** host      SLEPT waited                not waited: the turn came before, and
**                                         this sleep is not for it
** attached  HANDLED more                the handler has returned
** attached  BEGIN view patience         the WRITE lock, on view -> ANSWER, the
**                                         view with the epoch of now
** attached  LEAVE                       the turn is not used, or the WRITE lock
**                                         given back without COMMIT -> nothing
** attached  SETTLED view                wait until a view that was ahead is
**                                         confirmed -> ANSWER
** attached  COMMIT view n_page          the transaction; its turn is over ->
**             page_size count pages,      ANSWER when its fate is known, view:
**             or a file                   the state after it
** attached  RESOLVE sequence            what became of a transaction that was
**                                         handed over to a host that has ended
**                                         -> ANSWER
** attached  CALL bytes                  an SQL function or table -> ROWS, the
**                                         last without more; or ANSWER: refused
** host      ROWS more bytes
** host      ANSWER rc extra view        a result code of SQLite, and why
**             reason
** attached  INTERRUPT                   end the request under way soon; it has
**                                         its answer. If none is: nothing
** host      PING                        on a WATCH: sign of life -> PONG; during
**                                         COMMIT: it is being taken over
** attached  PONG
**
** A message is one packet: a head, and what it says, little-endian, without
** gaps:
**
**     0  u32  magic
**     4  u16  type
**     6  u16  flags: 1, a descriptor comes with it
**     8  u32  bytes of the whole message
**    12       fields, in the order of the structs in session.h
**
**     view    generation u64, epoch u64, header 48 bytes, ahead u8
**     texts   u32 length, with the zero; bytes: up to the end of the message
**     COMMIT  view, 3 zeros, n_page u32, page_size u32, count u32; and
**             without a file: count page numbers u32, which are at byte 92 and
**             can be used in place, count pages
**
** Head, HELLO's version and REFUSED are the same in each version: processes
** with different builds of this library can tell each other so.
**
** Both ends check who is at the other one (SO_PEERCRED): the directory is 0700
** and the socket 0600, but both may have been changed by somebody who meant it
** well. Nothing that comes is trusted more for that: it may be another build or
** one with a bug. It is parsed within bounds and refused, and a descriptor that
** nobody asked for is closed.
*/
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCK_NAME "sock"
#define BACKLOG 511
#define MAGIC 0x73727471u /* "qtrs" */
#define HEAD 12u
#define FLAG_FILE 1u
#define FIXED_COMMIT 80u /* bytes of its fields before the page numbers */
#define SNDBUF (SESSION_MAX + 4096u)
#define FOREVER UINT64_MAX

_Static_assert((HEAD + FIXED_COMMIT) % sizeof(uint32_t) == 0, "page numbers");
_Static_assert(SESSION_MAX > HEAD + FIXED_COMMIT + 65536 + 4, "a largest page");

/* ---- time -------------------------------------------------------------- */

static uint64_t now_ms(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static uint64_t end_of(int timeout_ms)
{
  return timeout_ms < 0 ? FOREVER : now_ms() + (uint64_t)timeout_ms;
}

/* What is left, for poll. */
static int left_until(uint64_t end)
{
  if (end == FOREVER) return -1;
  uint64_t now = now_ms();
  return now >= end ? 0 : (int)(end - now);
}

/* 0: it is worth a try. */
static int wait_for(int fd, short events, uint64_t end)
{
  for (;;) {
    struct pollfd p = {.fd = fd, .events = events};
    int left = left_until(end);
    int n = poll(&p, 1, left);
    if (n > 0) return p.revents & POLLNVAL ? -EBADF : 0;
    if (n == 0 && left_until(end) == 0) return -ETIMEDOUT;
    if (n < 0 && errno != EINTR) return -errno;
  }
}

/* ---- sockets ----------------------------------------------------------- */

static int open_dir(const char *dir)
{
  int fd = open(dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

/* The socket in a directory: by its path if that is short enough, else by the
   descriptor's. */
static int address_of(const char *dir, int dir_fd, struct sockaddr_un *address)
{
  size_t size = sizeof(address->sun_path);
  memset(address, 0, sizeof(*address));
  address->sun_family = AF_UNIX;
  int n = snprintf(address->sun_path, size, "%s/" SOCK_NAME, dir);
  if (n > 0 && (size_t)n < size) return 0;
  if (access("/proc/self/fd", X_OK) != 0) return -ENAMETOOLONG;
  snprintf(address->sun_path, size, "/proc/self/fd/%d/" SOCK_NAME, dir_fd);
  return 0;
}

static int peer_of(int fd, struct session_peer *peer)
{
  struct ucred cred;
  socklen_t len = sizeof(cred);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) return -errno;
  peer->pid = cred.pid;
  peer->uid = cred.uid;
  return 0;
}

static bool is_trusted(uid_t uid)
{
  return uid == 0 || uid == geteuid();
}

/* The mode of a new socket is that of its descriptor, less what the umask of
   the whole process takes away, which is the application's. */
static int bind_in(int fd, const char *dir, int dir_fd)
{
  struct sockaddr_un address;
  int rc = address_of(dir, dir_fd, &address);
  if (rc) return rc;
  if (fchmod(fd, 0600) != 0) return -errno;
  if (unlinkat(dir_fd, SOCK_NAME, 0) != 0 && errno != ENOENT) return -errno;
  if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
    return -errno;
  if (fchmodat(dir_fd, SOCK_NAME, 0600, 0) == 0 && listen(fd, BACKLOG) == 0)
    return 0;
  rc = -errno;
  unlinkat(dir_fd, SOCK_NAME, 0);
  return rc;
}

int session_listen(const char *dir, int *fd)
{
  *fd = -1;
  int dir_fd = open_dir(dir);
  if (dir_fd < 0) return dir_fd;
  int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int rc = sock < 0 ? -errno : bind_in(sock, dir, dir_fd);
  close(dir_fd);
  if (rc && sock >= 0) close(sock);
  if (rc == 0) *fd = sock;
  return rc;
}

void session_unlisten(const char *dir, int fd)
{
  int dir_fd = open_dir(dir);
  if (dir_fd >= 0) {
    unlinkat(dir_fd, SOCK_NAME, 0);
    close(dir_fd);
  }
  close(fd);
}

int session_accept(int listener, int *fd, struct session_peer *peer)
{
  int sock;
  *fd = -1;
  memset(peer, 0, sizeof(*peer));
  do
    sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  while (sock < 0 && errno == EINTR);
  if (sock < 0) return errno == ECONNABORTED ? -EAGAIN : -errno;
  int rc = peer_of(sock, peer);
  if (rc == 0 && !is_trusted(peer->uid)) rc = -EPERM;
  if (rc)
    close(sock);
  else
    *fd = sock;
  return rc;
}

/* Where too many wait to be accepted, the kernel lets a blocking socket wait
   for its turn, for as long as it may send. */
static int connect_until(int fd, const struct sockaddr_un *address,
                         uint64_t end)
{
  for (;;) {
    int left = left_until(end);
    struct timeval t = {left / 1000, left % 1000 * 1000};
    if (left < 0) t = (struct timeval){0, 0}; /* no limit */
    if (left == 0) t.tv_usec = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) != 0)
      return -errno;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
      return 0;
    if (errno == EAGAIN && left_until(end) == 0) return -ETIMEDOUT;
    if (errno != EINTR && errno != EAGAIN) return -errno;
  }
}

static int connect_in(int fd, const char *dir, int dir_fd, uint64_t end,
                      struct session_peer *peer)
{
  struct sockaddr_un address;
  struct stat st;
  int rc = address_of(dir, dir_fd, &address);
  if (rc == 0) rc = connect_until(fd, &address, end);
  if (rc == 0) rc = peer_of(fd, peer);
  if (rc) return rc;
  if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0) return -errno;
  if (fstat(dir_fd, &st) != 0) return -errno;
  return is_trusted(peer->uid) || peer->uid == st.st_uid ? 0 : -EPERM;
}

int session_connect(const char *dir, int timeout_ms, int *fd,
                    struct session_peer *peer)
{
  uint64_t end = end_of(timeout_ms);
  *fd = -1;
  memset(peer, 0, sizeof(*peer));
  int dir_fd = open_dir(dir);
  if (dir_fd < 0) return dir_fd;
  int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  int rc = sock < 0 ? -errno : connect_in(sock, dir, dir_fd, end, peer);
  close(dir_fd);
  if (rc && sock >= 0) close(sock);
  if (rc == 0) *fd = sock;
  return rc;
}

/* ---- fields ------------------------------------------------------------ */

static bool parse_flag(struct parser *p)
{
  uint8_t v = parse_u8(p);
  if (v > 1) p->bad = true;
  return v == 1;
}

/* A text that is packed with its length, and not longer than allowed. */
static const char *parse_reason(struct parser *p)
{
  const char *text = parse_text(p);
  if (strlen(text) >= SESSION_TEXT_MAX) p->bad = true;
  return text;
}

/* What is too long is cut off, not within a character of UTF-8. */
static void pack_reason(struct packer *p, const char *text)
{
  size_t n = text ? strnlen(text, SESSION_TEXT_MAX) : 0;
  if (n == SESSION_TEXT_MAX) {
    n--;
    while (n > 0 && ((uint8_t)text[n] & 0xc0) == 0x80)
      n--;
  }
  pack_u32(p, (uint32_t)n + 1);
  pack_bytes(p, text, n);
  pack_u8(p, 0);
}

static void pack_view(struct packer *p, const struct session_view *view)
{
  pack_u64(p, view->generation);
  pack_u64(p, view->epoch);
  pack_bytes(p, view->header, SESSION_HEADER);
  pack_u8(p, view->ahead);
}

static void parse_view(struct parser *p, struct session_view *view)
{
  view->generation = parse_u64(p);
  view->epoch = parse_u64(p);
  const uint8_t *header = parse_bytes(p, SESSION_HEADER);
  if (header) memcpy(view->header, header, SESSION_HEADER);
  view->ahead = parse_flag(p);
}

static void pack_hello(struct packer *p, const struct session_hello *hello)
{
  pack_u32(p, hello->version);
  pack_u8(p, (uint8_t)hello->kind);
  pack_u32(p, hello->process);
  pack_u32(p, hello->slot);
  pack_u32(p, hello->pid);
}

static void parse_hello(struct parser *p, struct session_hello *hello)
{
  hello->version = parse_u32(p);
  if (!p->bad && hello->version != SESSION_VERSION) {
    p->at = p->end; /* whatever that version says there */
    return;
  }
  uint8_t kind = parse_u8(p);
  hello->kind = (enum session_kind)kind;
  hello->process = parse_u32(p);
  hello->slot = parse_u32(p);
  hello->pid = parse_u32(p);
  if (kind != SESSION_KIND_CONNECTION &&
      (kind != SESSION_KIND_WATCH || hello->slot != 0))
    p->bad = true;
}

static void pack_take(struct packer *p, const struct session_take *take)
{
  pack_u32(p, take->patience);
  pack_u8(p, take->drained);
  pack_u8(p, take->has_handler);
  pack_u8(p, take->begin);
}

static void parse_take(struct parser *p, struct session_take *take)
{
  take->patience = parse_u32(p);
  take->drained = parse_flag(p);
  take->has_handler = parse_flag(p);
  take->begin = parse_flag(p);
}

static void pack_answer(struct packer *p, const struct session_answer *answer)
{
  pack_u32(p, (uint32_t)answer->rc);
  pack_u64(p, answer->extra[0]);
  pack_u64(p, answer->extra[1]);
  pack_view(p, &answer->view);
  pack_reason(p, answer->reason);
}

static void parse_answer(struct parser *p, struct session_answer *answer)
{
  answer->rc = (int32_t)parse_u32(p);
  answer->extra[0] = parse_u64(p);
  answer->extra[1] = parse_u64(p);
  parse_view(p, &answer->view);
  answer->reason = parse_reason(p);
}

/* ---- COMMIT ------------------------------------------------------------ */

uint64_t session_commit_bytes(uint32_t page_size, uint32_t count)
{
  return (uint64_t)count * ((uint64_t)page_size + 4);
}

bool session_commit_fits(uint32_t page_size, uint32_t count)
{
  return session_commit_bytes(page_size, count) <=
         SESSION_MAX - HEAD - FIXED_COMMIT;
}

static bool is_page_size(uint32_t size)
{
  return size >= 512 && size <= 65536 && (size & (size - 1)) == 0;
}

static bool is_sound(const struct session_commit *commit)
{
  return is_page_size(commit->page_size) && commit->count > 0 &&
         commit->n_page > 0;
}

static void pack_commit(struct packer *p, const struct session_commit *commit)
{
  pack_view(p, &commit->view);
  pack_bytes(p, "\0\0", 3);
  pack_u32(p, commit->n_page);
  pack_u32(p, commit->page_size);
  pack_u32(p, commit->count);
}

static void parse_pages(struct parser *p, struct session_commit *commit)
{
  const uint8_t *pgnos;
  if (!session_commit_fits(commit->page_size, commit->count)) p->bad = true;
  pgnos = parse_bytes(p, (size_t)commit->count * 4);
  commit->pgnos = (const uint32_t *)(const void *)pgnos;
  commit->pages = parse_bytes(p, (size_t)commit->count * commit->page_size);
  for (uint32_t i = 0; !p->bad && i < commit->count; i++)
    if (commit->pgnos[i] == 0) p->bad = true;
}

/* One that can be read, of a size. */
static bool is_file_of(int fd, uint64_t bytes)
{
  struct stat st;
  int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_PATH) == 0 &&
         (flags & O_ACCMODE) != O_WRONLY && fstat(fd, &st) == 0 &&
         S_ISREG(st.st_mode) && st.st_size >= 0 &&
         (uint64_t)st.st_size == bytes;
}

static void parse_commit(struct parser *p, struct session_commit *commit,
                         bool has_file)
{
  parse_view(p, &commit->view);
  const uint8_t *zeros = parse_bytes(p, 3);
  if (zeros && (zeros[0] || zeros[1] || zeros[2])) p->bad = true;
  commit->n_page = parse_u32(p);
  commit->page_size = parse_u32(p);
  commit->count = parse_u32(p);
  if (!is_sound(commit)) p->bad = true;
  if (!p->bad && !has_file) parse_pages(p, commit);
}

/* ---- messages ---------------------------------------------------------- */

const char *session_name(unsigned type)
{
  static const char *const names[SESSION_TYPES + 1] = {
      "unknown",   "HELLO",   "WELCOME", "REFUSED", "BARRIER", "TAKE",
      "BUSY",      "HANDLED", "SLEEP",   "SLEPT",   "BEGIN",   "LEAVE",
      "SETTLED",   "COMMIT",  "RESOLVE", "CALL",    "ROWS",    "ANSWER",
      "INTERRUPT", "PING",    "PONG"};
  return names[type <= SESSION_TYPES ? type : 0];
}

static void pack_fields(struct packer *p, const struct session_message *m)
{
  switch (m->type) {
  case SESSION_HELLO: pack_hello(p, &m->hello); break;
  case SESSION_WELCOME: pack_u64(p, m->start); break;
  case SESSION_REFUSED: pack_reason(p, m->text); break;
  case SESSION_BARRIER:
    pack_u8(p, m->barrier.level);
    pack_u32(p, m->barrier.wait_ms);
    break;
  case SESSION_TAKE: pack_take(p, &m->take); break;
  case SESSION_HANDLED: pack_u8(p, m->more); break;
  case SESSION_SLEEP: pack_u32(p, m->us); break;
  case SESSION_SLEPT: pack_u8(p, m->waited); break;
  case SESSION_BEGIN:
    pack_view(p, &m->begin.view);
    pack_u32(p, m->begin.patience);
    break;
  case SESSION_SETTLED: pack_view(p, &m->view); break;
  case SESSION_COMMIT: pack_commit(p, &m->commit); break;
  case SESSION_RESOLVE: pack_u64(p, m->sequence); break;
  case SESSION_ROWS: pack_u8(p, m->rows.more); break;
  case SESSION_ANSWER: pack_answer(p, &m->answer); break;
  case SESSION_CALL:
  case SESSION_BUSY:
  case SESSION_LEAVE:
  case SESSION_INTERRUPT:
  case SESSION_PING:
  case SESSION_PONG: break;
  }
}

static void parse_rest(struct parser *p, struct session_rows *rows)
{
  rows->len = (size_t)(p->end - p->at);
  rows->bytes = parse_bytes(p, rows->len);
}

static void parse_fields(struct parser *p, struct session_message *m,
                         bool has_file)
{
  switch (m->type) {
  case SESSION_HELLO: parse_hello(p, &m->hello); break;
  case SESSION_WELCOME: m->start = parse_u64(p); break;
  case SESSION_REFUSED: m->text = parse_reason(p); break;
  case SESSION_BARRIER:
    m->barrier.level = parse_u8(p);
    m->barrier.wait_ms = parse_u32(p);
    if (m->barrier.level > 3) p->bad = true;
    break;
  case SESSION_TAKE: parse_take(p, &m->take); break;
  case SESSION_HANDLED: m->more = parse_flag(p); break;
  case SESSION_SLEEP: m->us = parse_u32(p); break;
  case SESSION_SLEPT: m->waited = parse_flag(p); break;
  case SESSION_BEGIN:
    parse_view(p, &m->begin.view);
    m->begin.patience = parse_u32(p);
    break;
  case SESSION_SETTLED: parse_view(p, &m->view); break;
  case SESSION_COMMIT: parse_commit(p, &m->commit, has_file); break;
  case SESSION_RESOLVE: m->sequence = parse_u64(p); break;
  case SESSION_ROWS: m->rows.more = parse_flag(p); /* fall through */
  case SESSION_CALL: parse_rest(p, &m->rows); break;
  case SESSION_ANSWER: parse_answer(p, &m->answer); break;
  case SESSION_BUSY:
  case SESSION_LEAVE:
  case SESSION_INTERRUPT:
  case SESSION_PING:
  case SESSION_PONG: break;
  default: p->bad = true;
  }
}

/* Whether a file comes with it is all that *has_file says; the file itself is
   looked at later. */
static bool parse_message(const uint8_t *bytes, size_t len,
                          struct session_message *m, bool *has_file)
{
  struct parser p = parser_of(bytes, len);
  memset(m, 0, sizeof(*m));
  uint32_t magic = parse_u32(&p), kind = parse_u32(&p);
  uint32_t type = kind & 0xffff, flags = kind >> 16;
  if (parse_u32(&p) != len || magic != MAGIC) return false;
  if (flags != 0 && (flags != FLAG_FILE || type != SESSION_COMMIT))
    return false;
  *has_file = flags != 0;
  m->type = (enum session_type)type;
  if (type == SESSION_COMMIT) m->commit.file = -1;
  parse_fields(&p, m, *has_file);
  return parser_done(&p);
}

static bool take_file(struct session_message *m, bool has_file, int file)
{
  if (has_file != (file >= 0)) return false;
  if (!has_file) return true;
  m->commit.file = file;
  return is_file_of(file,
                    session_commit_bytes(m->commit.page_size, m->commit.count));
}

bool session_unpack(const uint8_t *bytes, size_t len, int file,
                    struct session_message *m)
{
  bool has_file;
  return parse_message(bytes, len, m, &has_file) &&
         take_file(m, has_file, file);
}

/* ---- sending ----------------------------------------------------------- */

#define PIECES (2 + SESSION_PARTS)

/* A message as it is sent: head and fields, then bytes where they are. */
struct pieces {
  struct packer fields;
  struct iovec iov[PIECES];
  int n;
  size_t len;
};

static void add_piece(struct pieces *out, const void *data, size_t len)
{
  if (len == 0) return;
  out->iov[out->n++] = (struct iovec){(void *)(uintptr_t)data, len};
  out->len += len;
}

static int add_pages(struct pieces *out, const struct session_commit *commit)
{
  size_t len = 0;
  if (!session_commit_fits(commit->page_size, commit->count) ||
      commit->n_parts > SESSION_PARTS)
    return -EMSGSIZE;
  add_piece(out, commit->pgnos, (size_t)commit->count * 4);
  for (int i = 0; i < commit->n_parts; i++) {
    add_piece(out, commit->parts[i].iov_base, commit->parts[i].iov_len);
    len += commit->parts[i].iov_len;
  }
  return len == (size_t)commit->count * commit->page_size ? 0 : -EINVAL;
}

static int add_rest(struct pieces *out, const struct session_message *m)
{
  if (m->type == SESSION_COMMIT) {
    if (!is_sound(&m->commit)) return -EINVAL;
    return m->commit.file < 0 ? add_pages(out, &m->commit) : 0;
  }
  if (m->type == SESSION_CALL || m->type == SESSION_ROWS) {
    if (m->rows.len > SESSION_BYTES_MAX) return -EMSGSIZE;
    add_piece(out, m->rows.bytes, m->rows.len);
  }
  return 0;
}

/* The pieces' fields are to be freed, whatever comes of it. */
static int pack_message(struct pieces *out, const struct session_message *m)
{
  bool has_file = m->type == SESSION_COMMIT && m->commit.file >= 0;
  struct packer *p = &out->fields;
  if (m->type < SESSION_HELLO || m->type > SESSION_PONG) return -EINVAL;
  pack_u32(p, MAGIC);
  pack_u32(p, (uint32_t)m->type | (has_file ? FLAG_FILE << 16 : 0));
  pack_u32(p, 0);
  pack_fields(p, m);
  if (p->bad) return -ENOMEM;
  add_piece(out, p->data, p->len);
  int rc = add_rest(out, m);
  if (rc) return rc;
  uint32_t len = (uint32_t)out->len;
  memcpy(p->data + 8, &len, sizeof(len));
  return 0;
}

/* An administrator may have made sockets smaller than a message; what one asks
   for is doubled. */
static bool grow(int fd)
{
  int size = 0, wanted = SNDBUF;
  socklen_t len = sizeof(size);
  if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &len) != 0) return false;
  return size < wanted &&
         setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(wanted)) == 0;
}

static int send_until(int fd, const struct msghdr *packet, uint64_t end)
{
  for (;;) {
    if (sendmsg(fd, packet, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return 0;
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
      return -EPIPE;
    if (errno == EINTR || (errno == EMSGSIZE && grow(fd))) continue;
    if (errno != EAGAIN) return -errno;
    int rc = wait_for(fd, POLLOUT, end);
    if (rc) return rc;
  }
}

int session_send(int fd, const struct session_message *m, int timeout_ms)
{
  struct pieces out = {.n = 0};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  int rc = pack_message(&out, m);
  struct msghdr packet = {.msg_iov = out.iov, .msg_iovlen = (size_t)out.n};
  if (rc == 0 && m->type == SESSION_COMMIT && m->commit.file >= 0) {
    memset(&control, 0, sizeof(control));
    packet.msg_control = control.bytes;
    packet.msg_controllen = sizeof(control.bytes);
    struct cmsghdr *c = CMSG_FIRSTHDR(&packet);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &m->commit.file, sizeof(int));
  }
  if (rc == 0) rc = send_until(fd, &packet, end_of(timeout_ms));
  free(out.fields.data);
  return rc;
}

/* ---- receiving --------------------------------------------------------- */

/* The descriptors that came with a packet. */
struct passed {
  int fd[2];
  unsigned n;
  bool cut; /* there were more, or there was no room for them */
};

static void collect(struct msghdr *packet, struct passed *passed)
{
  passed->n = 0;
  passed->cut = (packet->msg_flags & MSG_CTRUNC) != 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(packet); c;
       c = CMSG_NXTHDR(packet, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < n; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
      if (passed->n < 2)
        passed->fd[passed->n++] = fd;
      else
        close(fd);
    }
  }
}

static void close_passed(struct passed *passed)
{
  while (passed->n > 0)
    close(passed->fd[--passed->n]);
}

/* One packet, into memory for the largest. Its length or a negated errno value,
   among them -EAGAIN. */
static ssize_t take_packet(int fd, struct session_buffer *buffer,
                           struct passed *passed)
{
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
  } control;
  struct iovec iov = {buffer->bytes, sizeof(buffer->bytes)};
  struct msghdr packet = {.msg_iov = &iov,
                          .msg_iovlen = 1,
                          .msg_control = control.bytes,
                          .msg_controllen = sizeof(control.bytes)};
  ssize_t n;
  /* A reset says once that the other end did not read all; what it sent is
     still there. */
  do
    n = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  while (n < 0 && (errno == EINTR || errno == ECONNRESET));
  if (n < 0) return errno == ENOTCONN ? -EPIPE : -errno;
  collect(&packet, passed);
  if (n == 0) {
    close_passed(passed);
    return -EPIPE;
  }
  if (packet.msg_flags & MSG_TRUNC) {
    close_passed(passed);
    return -EPROTO;
  }
  return n;
}

int session_receive(int fd, struct session_buffer *buffer, int timeout_ms,
                    struct session_message *m)
{
  uint64_t end = end_of(timeout_ms);
  struct passed passed = {.n = 0};
  bool has_file = false;
  ssize_t n;
  do {
    int rc = wait_for(fd, POLLIN, end);
    if (rc) return rc;
    n = take_packet(fd, buffer, &passed);
  } while (n == -EAGAIN);
  if (n < 0) return (int)n;
  bool sound = parse_message(buffer->bytes, (size_t)n, m, &has_file);
  if (sound && has_file && passed.cut && passed.n == 0) return -EMFILE;
  if (sound && !passed.cut && passed.n <= 1 &&
      take_file(m, has_file, passed.n == 1 ? passed.fd[0] : -1))
    return 0;
  close_passed(&passed);
  return -EPROTO;
}

int session_peek(int fd)
{
  uint8_t head[HEAD];
  ssize_t n;
  do
    n = recv(fd, head, sizeof(head), MSG_PEEK | MSG_DONTWAIT);
  while (n < 0 && (errno == EINTR || errno == ECONNRESET));
  if (n < 0 && errno == EAGAIN) return 0;
  if (n < 0) return errno == ENOTCONN ? -EPIPE : -errno;
  if (n == 0) return -EPIPE;
  struct parser p = parser_of(head, (size_t)n);
  uint32_t magic = parse_u32(&p), type = parse_u32(&p) & 0xffff;
  bool known = type > 0 && type <= SESSION_TYPES;
  bool whole = parse_u32(&p) >= HEAD && !p.bad;
  return whole && magic == MAGIC && known ? (int)type : -EPROTO;
}
