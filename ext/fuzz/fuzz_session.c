/*
** fuzz_session.c: messages between a host and the processes attached to it, and
** the calls and answers in them.
**
** An input: u8 what, then bytes. what % 4: 0: a message, whose length is set
** right; 1: a message as it is; 2: a call; 3: u8 of which call, and the answer
** to it. what, bit 7: a file comes with the message.
**
** What must hold: what is taken is sent again as the same bytes; what is refused
** leaves nothing.
*/
#include "../call.h"
#include "../session.h"
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

const char *const fuzz_corpus = "ext/fuzz/corpus/session";

/* ---- messages ---------------------------------------------------------- */

/* Sends a message that was received; it must be the same bytes. */
static void send_again(struct session_message *m, const uint8_t *bytes,
                       size_t len)
{
  static int fd[2] = {-1, -1};
  static uint8_t raw[SESSION_MAX + 1];
  struct iovec part;
  ssize_t n;
  if (fd[0] < 0)
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == 0);
  if (m->type == SESSION_COMMIT && m->commit.file < 0) {
    part.iov_base = (void *)(uintptr_t)m->commit.pages;
    part.iov_len = (size_t)m->commit.count * m->commit.page_size;
    m->commit.parts = &part;
    m->commit.n_parts = 1;
  }
  must(session_send(fd[0], m, 0) == 0);
  must(session_peek(fd[1]) == (int)m->type);
  n = recv(fd[1], raw, sizeof(raw), MSG_DONTWAIT);
  /* What another version has to say is not kept. */
  if (m->type == SESSION_HELLO && m->hello.version != SESSION_VERSION) return;
  must((size_t)n == len && memcmp(raw, bytes, len) == 0);
}

static void try_message(uint8_t *bytes, size_t len, bool whole, bool with_file)
{
  static int file = -1;
  struct session_message m;
  uint32_t size = (uint32_t)len;
  if (whole && len >= 12) memcpy(bytes + 8, &size, 4);
  if (file < 0) {
    file = memfd_create("pages", MFD_CLOEXEC);
    must(file >= 0 && ftruncate(file, 2 * (512 + 4)) == 0);
  }
  if (!session_unpack(bytes, len, with_file ? file : -1, &m)) return;
  must(m.type >= 1 && m.type <= SESSION_TYPES);
  must(len >= 12 && len <= SESSION_MAX + len);
  must(strcmp(session_name(m.type), "unknown") != 0);
  if (m.type == SESSION_COMMIT) {
    must(m.commit.count > 0 && m.commit.n_page > 0);
    must((m.commit.file >= 0) == with_file);
    must(!with_file || session_commit_bytes(m.commit.page_size,
                                            m.commit.count) == 2 * (512 + 4));
  } else {
    must(!with_file);
  }
  send_again(&m, bytes, len);
}

/* ---- calls ------------------------------------------------------------- */

static void try_call(const uint8_t *bytes, size_t len)
{
  struct call call;
  struct packer again = {0};
  struct text error = {""};
  int rc = call_unpack(bytes, len, &call);
  if (rc) {
    must(rc == -EBADMSG && call.arguments.n == 0 && !call.arguments.at);
    return;
  }
  must(call_columns(call.what) > 0);
  must(call_check(&call, &error) == (error.s[0] == 0));
  must(call_pack(&call, &again) == 0);
  must(again.len == len && memcmp(again.data, bytes, len) == 0);
  free(again.data);
  cells_clear(&call.arguments);
}

static void try_answer(uint8_t what, const uint8_t *bytes, size_t len)
{
  struct call call = {.what = what};
  struct answer answer;
  struct packer again = {0};
  int rc = answer_unpack(bytes, len, &call, &answer);
  if (rc) {
    must(rc == -EBADMSG && answer.cells.n == 0 && !answer.cells.at);
    return;
  }
  must(answer.status != 0 || answer.n_columns == call_columns(what));
  must(answer.status == 0 || answer.cells.n == 0);
  must(answer_pack(&answer, &again) == 0);
  must(again.len == len && memcmp(again.data, bytes, len) == 0);
  free(again.data);
  answer_clear(&answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  if (size < 1) return 0;
  uint8_t what = data[0];
  uint8_t *bytes = exact_copy(data + 1, size - 1);
  size_t len = size - 1;
  switch (what % 4) {
  case 0:
  case 1: try_message(bytes, len, what % 4 == 0, what & 128); break;
  case 2: try_call(bytes, len); break;
  default:
    if (len) try_answer(bytes[0], bytes + 1, len - 1);
    break;
  }
  free(bytes);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static const uint32_t pgnos[2] = {1, 77};
static uint8_t pages[2 * 512];
static struct iovec parts[1] = {{pages, sizeof(pages)}};

static struct session_message sample(enum session_type type)
{
  struct session_message m;
  struct session_view view = {.generation = 3, .epoch = 4, .ahead = true};
  memset(&m, 0, sizeof(m));
  m.type = type;
  switch (type) {
  case SESSION_HELLO:
    m.hello = (struct session_hello){SESSION_VERSION, SESSION_KIND_CONNECTION,
                                     1, 2, 3};
    break;
  case SESSION_REFUSED: m.text = "the node is stopping"; break;
  case SESSION_BEGIN: m.begin = (struct session_begin){view, 5000}; break;
  case SESSION_SETTLED: m.view = view; break;
  case SESSION_COMMIT:
    m.commit = (struct session_commit){.view = view,
                                       .n_page = 80,
                                       .page_size = 512,
                                       .count = 2,
                                       .file = -1,
                                       .pgnos = pgnos,
                                       .parts = parts,
                                       .n_parts = 1};
    break;
  case SESSION_CALL:
  case SESSION_ROWS:
    m.rows = (struct session_rows){type == SESSION_ROWS,
                                   (const uint8_t *)"\0rows", 5};
    break;
  case SESSION_ANSWER:
    m.answer = (struct session_answer){-5, {7, 8}, view, "write refused: why"};
    break;
  default: break;
  }
  return m;
}

static void seed_messages(void (*seed)(const void *data, size_t size))
{
  uint8_t bytes[4096] = {0};
  int fd[2];
  must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == 0);
  for (unsigned type = 1; type <= SESSION_TYPES; type++) {
    struct session_message m = sample((enum session_type)type);
    must(session_send(fd[0], &m, 0) == 0);
    ssize_t n = recv(fd[1], bytes + 1, sizeof(bytes) - 1, MSG_DONTWAIT);
    must(n > 0);
    bytes[0] = 0;
    seed(bytes, 1 + (size_t)n);
    if (type != SESSION_COMMIT) continue;
    bytes[0] = 128;
    bytes[1 + 6] = 1; /* with a file: without pages */
    seed(bytes, 1 + 92);
  }
  close(fd[0]);
  close(fd[1]);
}

static void seed_packed(void (*seed)(const void *data, size_t size),
                        struct packer *p)
{
  must(!p->bad);
  seed(p->data, p->len);
  free(p->data);
  *p = (struct packer){0};
}

static void seed_calls(void (*seed)(const void *data, size_t size))
{
  for (uint8_t what = CALL_INVITE; what <= CALL_ROTATE_CA; what++) {
    struct call call = {.what = what, .write_wait = 5000};
    struct answer answer = {.n_columns = call_columns(what)};
    struct packer p = {0};
    if (answer.n_columns == 0) continue;
    cells_text(&call.arguments, "127.0.0.1:80");
    if (what == CALL_WAIT) {
      cells_clear(&call.arguments);
      cells_integer(&call.arguments, 12);
    }
    pack_u8(&p, 2);
    must(call_pack(&call, &p) == 0);
    seed_packed(seed, &p);
    for (unsigned i = 0; i < answer.n_columns; i++)
      i % 2 ? cells_integer(&answer.cells, i) : cells_text(&answer.cells, "a");
    pack_u8(&p, 3);
    pack_u8(&p, what);
    must(answer_pack(&answer, &p) == 0);
    seed_packed(seed, &p);
    answer_clear(&answer);
    cells_clear(&call.arguments);
  }
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  seed_messages(seed);
  seed_calls(seed);
}
