/*
** Messages between a host and the processes attached to it: each comes back as
** it was sent, nothing shorter, longer or malformed is taken, no wait is longer
** than it was told to be, and no end goes unnoticed.
*/
#include "harness.h"

#include "node.h"
#include "session.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define WAIT 20000 /* ms: longer than any machine is busy */
#define HEAD 12u
#define COMMIT_FIXED 80u

/* ---- samples ----------------------------------------------------------- */

#define PAGE 512u
#define PAGES 3u

static const uint32_t pgnos[PAGES] = {1, 77, 0xfffffffe};
static uint8_t pages[PAGES * PAGE];
static struct iovec parts[2] = {{pages, 100},
                                {pages + 100, sizeof(pages) - 100}};

static void fill(void *data, size_t n, uint64_t seed)
{
  for (size_t i = 0; i < n; i++)
    ((uint8_t *)data)[i] = (uint8_t)random_next(&seed);
}

static struct session_view sample_view(uint64_t seed)
{
  struct session_view view = {
      .generation = seed << 40 | 1, .epoch = seed << 48 | 2, .ahead = true};
  fill(view.header, sizeof(view.header), seed);
  return view;
}

static struct session_commit sample_commit(void)
{
  struct session_commit commit = {.view = sample_view(6),
                                  .n_page = 0x80000001u,
                                  .page_size = PAGE,
                                  .count = PAGES,
                                  .file = -1,
                                  .pgnos = pgnos,
                                  .parts = parts,
                                  .n_parts = 2};
  fill(pages, sizeof(pages), 9);
  return commit;
}

/* Fields of which none is 0, so that a forgotten one is seen. */
static struct session_message sample(unsigned type)
{
  struct session_message m;
  memset(&m, 0, sizeof(m));
  m.type = (enum session_type)type;
  switch (m.type) {
  case SESSION_HELLO:
    m.hello = (struct session_hello){SESSION_VERSION, SESSION_KIND_CONNECTION,
                                     0x01020304, 0x05060708, 0x090a0b0c};
    break;
  case SESSION_WELCOME: m.start = 0x1122334455667788u; break;
  case SESSION_REFUSED: m.text = "the node is stopping"; break;
  case SESSION_BARRIER: m.barrier = (struct session_barrier){3, 5000}; break;
  case SESSION_TAKE:
    m.take = (struct session_take){250, true, true, true};
    break;
  case SESSION_HANDLED: m.more = true; break;
  case SESSION_SLEEP: m.us = 0xfffffffe; break;
  case SESSION_SLEPT: m.waited = true; break;
  case SESSION_BEGIN:
    m.begin = (struct session_begin){sample_view(type), 5000};
    break;
  case SESSION_SETTLED: m.view = sample_view(type); break;
  case SESSION_COMMIT: m.commit = sample_commit(); break;
  case SESSION_RESOLVE: m.sequence = UINT64_MAX - 1; break;
  case SESSION_CALL:
    m.rows = (struct session_rows){false, (const uint8_t *)"\0call", 6};
    break;
  case SESSION_ROWS:
    m.rows = (struct session_rows){true, (const uint8_t *)"\0rows\0", 7};
    break;
  case SESSION_ANSWER:
    m.answer = (struct session_answer){
        -5, {UINT64_MAX, 1ull << 63}, sample_view(4), "write refused: why"};
    break;
  default: break;
  }
  return m;
}

static void assert_same_view(const struct session_view *a,
                             const struct session_view *b)
{
  assert_int_equal(a->generation, b->generation);
  assert_int_equal(a->epoch, b->epoch);
  assert_memory_equal(a->header, b->header, SESSION_HEADER);
  assert_int_equal(a->ahead, b->ahead);
}

static void assert_same_commit(const struct session_commit *a,
                               const struct session_commit *b)
{
  assert_same_view(&a->view, &b->view);
  assert_int_equal(a->n_page, b->n_page);
  assert_int_equal(a->page_size, b->page_size);
  assert_int_equal(a->count, b->count);
}

static void assert_same(const struct session_message *a,
                        const struct session_message *b)
{
  assert_int_equal(a->type, b->type);
  switch (a->type) {
  case SESSION_HELLO:
    assert_int_equal(a->hello.version, b->hello.version);
    assert_int_equal(a->hello.kind, b->hello.kind);
    assert_int_equal(a->hello.process, b->hello.process);
    assert_int_equal(a->hello.slot, b->hello.slot);
    assert_int_equal(a->hello.pid, b->hello.pid);
    break;
  case SESSION_WELCOME: assert_int_equal(a->start, b->start); break;
  case SESSION_REFUSED: assert_string_equal(a->text, b->text); break;
  case SESSION_BARRIER:
    assert_int_equal(a->barrier.level, b->barrier.level);
    assert_int_equal(a->barrier.wait_ms, b->barrier.wait_ms);
    break;
  case SESSION_TAKE:
    assert_int_equal(a->take.patience, b->take.patience);
    assert_int_equal(a->take.drained, b->take.drained);
    assert_int_equal(a->take.has_handler, b->take.has_handler);
    assert_int_equal(a->take.begin, b->take.begin);
    break;
  case SESSION_HANDLED: assert_int_equal(a->more, b->more); break;
  case SESSION_SLEEP: assert_int_equal(a->us, b->us); break;
  case SESSION_SLEPT: assert_int_equal(a->waited, b->waited); break;
  case SESSION_BEGIN:
    assert_same_view(&a->begin.view, &b->begin.view);
    assert_int_equal(a->begin.patience, b->begin.patience);
    break;
  case SESSION_SETTLED: assert_same_view(&a->view, &b->view); break;
  case SESSION_COMMIT: assert_same_commit(&a->commit, &b->commit); break;
  case SESSION_RESOLVE: assert_int_equal(a->sequence, b->sequence); break;
  case SESSION_CALL:
  case SESSION_ROWS:
    assert_int_equal(a->rows.more, b->rows.more);
    assert_int_equal(a->rows.len, b->rows.len);
    assert_memory_equal(a->rows.bytes, b->rows.bytes, a->rows.len);
    break;
  case SESSION_ANSWER:
    assert_int_equal(a->answer.rc, b->answer.rc);
    assert_int_equal(a->answer.extra[0], b->answer.extra[0]);
    assert_int_equal(a->answer.extra[1], b->answer.extra[1]);
    assert_same_view(&a->answer.view, &b->answer.view);
    assert_string_equal(a->answer.reason, b->answer.reason);
    break;
  default: break;
  }
}

/* A message as its bytes, in memory of exactly that size. */
static uint8_t *bytes_of(const struct session_message *m, size_t *len)
{
  static uint8_t raw[SESSION_MAX + 1];
  int fd[2];
  pair_make(fd);
  assert_int_equal(session_send(fd[0], m, WAIT), 0);
  ssize_t n = recv(fd[1], raw, sizeof(raw), MSG_DONTWAIT);
  assert_in_range(n, HEAD, SESSION_MAX);
  pair_close(fd);
  uint8_t *bytes = malloc((size_t)n);
  assert_non_null(bytes);
  memcpy(bytes, raw, (size_t)n);
  *len = (size_t)n;
  return bytes;
}

/* With the length in its head made to fit; the copy is of exactly that size. */
static bool takes(const uint8_t *bytes, size_t len, int file,
                  struct session_message *m)
{
  uint8_t *copy = malloc(len ? len : 1);
  uint32_t n = (uint32_t)len;
  assert_non_null(copy);
  memcpy(copy, bytes, len);
  if (len >= HEAD) memcpy(copy + 8, &n, 4);
  bool ok = session_unpack(copy, len, file, m);
  free(copy);
  return ok;
}

/* ---- messages ---------------------------------------------------------- */

static void test_round_trips(void **state)
{
  static struct session_buffer buffer;
  int fd[2];
  (void)state;
  pair_make(fd);
  for (unsigned type = 1; type <= SESSION_TYPES; type++) {
    struct session_message m = sample(type), back;
    assert_int_equal(session_send(fd[type & 1], &m, WAIT), 0);
    memset(&back, 0xee, sizeof(back));
    assert_int_equal(session_receive(fd[!(type & 1)], &buffer, WAIT, &back), 0);
    assert_same(&m, &back);
    if (type != SESSION_COMMIT) continue;
    assert_int_equal(back.commit.file, -1);
    assert_memory_equal(back.commit.pgnos, pgnos, sizeof(pgnos));
    assert_memory_equal(back.commit.pages, pages, sizeof(pages));
  }
  pair_close(fd);
}

/* The other value of each flag, and what has no sample above. */
static void test_other_values(void **state)
{
  static struct session_buffer buffer;
  struct session_message m[6], back;
  int fd[2];
  (void)state;
  m[0] = sample(SESSION_HELLO);
  m[0].hello.kind = SESSION_KIND_WATCH;
  m[0].hello.slot = 0;
  m[1] = sample(SESSION_TAKE);
  m[1].take.drained = m[1].take.begin = false;
  m[2] = sample(SESSION_TAKE);
  m[2].take.has_handler = false;
  m[3] = sample(SESSION_ROWS);
  m[3].rows = (struct session_rows){false, NULL, 0};
  m[4] = sample(SESSION_ANSWER);
  m[4].answer.rc = 773;
  m[4].answer.view.ahead = false;
  m[4].answer.reason = "";
  m[5] = sample(SESSION_CALL);
  m[5].rows = (struct session_rows){false, NULL, 0};
  pair_make(fd);
  for (unsigned i = 0; i < 6; i++) {
    assert_int_equal(session_send(fd[0], &m[i], WAIT), 0);
    assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
    assert_same(&m[i], &back);
  }
  m[4].answer.reason = NULL;
  assert_int_equal(session_send(fd[0], &m[4], WAIT), 0);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_string_equal(back.answer.reason, "");
  pair_close(fd);
}

/* The bytes themselves: another build must read them. */
static void test_layout(void **state)
{
  static const uint8_t hello[] = {'q', 't', 'r', 's', 1, 0,  0,  0,  29, 0,
                                  0,   0,   4,   0,   0, 0,  1,  4,  3,  2,
                                  1,   8,   7,   6,   5, 12, 11, 10, 9};
  static const uint8_t refused[] = {'q', 't', 'r', 's', 3, 0, 0,   0,   19, 0,
                                    0,   0,   3,   0,   0, 0, 'n', 'o', 0};
  struct session_message m = sample(SESSION_HELLO);
  size_t len;
  (void)state;
  uint8_t *bytes = bytes_of(&m, &len);
  assert_int_equal(len, sizeof(hello));
  assert_memory_equal(bytes, hello, len);
  free(bytes);
  m = sample(SESSION_REFUSED);
  m.text = "no";
  bytes = bytes_of(&m, &len);
  assert_int_equal(len, sizeof(refused));
  assert_memory_equal(bytes, refused, len);
  free(bytes);
  m = sample(SESSION_COMMIT);
  bytes = bytes_of(&m, &len);
  assert_int_equal(len, HEAD + COMMIT_FIXED + PAGES * (PAGE + 4));
  assert_memory_equal(bytes + HEAD + COMMIT_FIXED, pgnos, sizeof(pgnos));
  assert_memory_equal(bytes + len - sizeof(pages), pages, sizeof(pages));
  free(bytes);
}

static void test_truncated(void **state)
{
  (void)state;
  for (unsigned type = 1; type <= SESSION_TYPES; type++) {
    struct session_message m = sample(type), back;
    bool open_ended = type == SESSION_CALL || type == SESSION_ROWS;
    size_t len, least = HEAD + (type == SESSION_ROWS);
    uint8_t *bytes = bytes_of(&m, &len);
    assert_true(takes(bytes, len, -1, &back));
    for (size_t n = 0; n < len; n++) {
      uint8_t *cut = malloc(n ? n : 1);
      assert_non_null(cut);
      memcpy(cut, bytes, n);
      /* The head says more than there is; and the same as there is. */
      assert_false(session_unpack(cut, n, -1, &back));
      assert_int_equal(takes(cut, n, -1, &back), open_ended && n >= least);
      free(cut);
    }
    uint8_t *more = malloc(len + 1);
    assert_non_null(more);
    memcpy(more, bytes, len);
    more[len] = 0;
    assert_false(session_unpack(more, len + 1, -1, &back));
    assert_int_equal(takes(more, len + 1, -1, &back), open_ended);
    free(more);
    free(bytes);
  }
}

/* One byte of a sample set to a value that is not allowed there. */
static void assert_refused_with(unsigned type, size_t at, uint8_t value)
{
  struct session_message m = sample(type), back;
  size_t len;
  uint8_t *bytes = bytes_of(&m, &len);
  assert_in_range(at, 0, len - 1);
  assert_int_not_equal(bytes[at], value);
  bytes[at] = value;
  assert_false(takes(bytes, len, -1, &back));
  free(bytes);
}

static void test_fields_refused(void **state)
{
  const size_t view = 64; /* its flag */
  (void)state;
  for (unsigned type = 1; type <= SESSION_TYPES; type++) {
    for (size_t at = 0; at < 4; at++)
      assert_refused_with(type, at, 0); /* magic */
    assert_refused_with(type, 4, 0);    /* type */
    assert_refused_with(type, 4, SESSION_TYPES + 1);
    assert_refused_with(type, 5, 1);
    assert_refused_with(type, 6, 1); /* a descriptor, which is not there */
    assert_refused_with(type, 6, 2);
    assert_refused_with(type, 7, 1);
  }
  assert_refused_with(SESSION_HELLO, HEAD + 4, 0);
  assert_refused_with(SESSION_HELLO, HEAD + 4, 2); /* a watch with a slot */
  assert_refused_with(SESSION_HELLO, HEAD + 4, 3);
  assert_refused_with(SESSION_BARRIER, HEAD, 4);
  for (size_t at = 4; at < 7; at++)
    assert_refused_with(SESSION_TAKE, HEAD + at, 2);
  assert_refused_with(SESSION_HANDLED, HEAD, 2);
  assert_refused_with(SESSION_SLEPT, HEAD, 0xff);
  assert_refused_with(SESSION_ROWS, HEAD, 2);
  assert_refused_with(SESSION_BEGIN, HEAD + view, 2);
  assert_refused_with(SESSION_SETTLED, HEAD + view, 2);
  assert_refused_with(SESSION_ANSWER, HEAD + 20 + view, 2);
  assert_refused_with(SESSION_ANSWER, HEAD + 85, 1); /* a text's length */
  assert_refused_with(SESSION_ANSWER, HEAD + 90, 0); /* a zero inside */
  assert_refused_with(SESSION_REFUSED, HEAD + 3, 0x80);
  assert_refused_with(SESSION_REFUSED, HEAD + 4, 0);
  assert_refused_with(SESSION_REFUSED, HEAD + 4 + 20, 'x'); /* no zero */
  assert_refused_with(SESSION_COMMIT, HEAD + view, 2);
  assert_refused_with(SESSION_COMMIT, HEAD + 65, 2);
  assert_refused_with(SESSION_COMMIT, HEAD + 66, 1);
  assert_refused_with(SESSION_COMMIT, HEAD + 67, 1);
  assert_refused_with(SESSION_COMMIT, HEAD + 76, 2);    /* fewer pages */
  assert_refused_with(SESSION_COMMIT, HEAD + 79, 0x80); /* many more */
  assert_refused_with(SESSION_COMMIT, HEAD + 80, 0);    /* page 0 */
}

/* Numbers of a COMMIT that cannot be, though the message is as long as they
   say. */
static void test_commit_refused(void **state)
{
  static const struct {
    uint32_t n_page, page_size, count;
  } bad[] = {{0, 512, 1},     {1, 512, 0},          {1, 0, 1},
             {1, 256, 1},     {1, 513, 1},          {1, 1536, 1},
             {1, 131072, 1},  {1, 65536, 1u << 16}, {1, 65536, 2},
             {1, 4, 1u << 30}};
  struct session_message m = sample(SESSION_COMMIT), back;
  size_t len;
  uint8_t *bytes = bytes_of(&m, &len);
  uint8_t *large = calloc(1, 200000);
  (void)state;
  assert_non_null(large);
  memset(large, 1, 200000);
  memcpy(large, bytes, HEAD + COMMIT_FIXED);
  for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    uint64_t n = session_commit_bytes(bad[i].page_size, bad[i].count);
    n += HEAD + COMMIT_FIXED;
    memcpy(large + HEAD + 68, &bad[i].n_page, 4);
    memcpy(large + HEAD + 72, &bad[i].page_size, 4);
    memcpy(large + HEAD + 76, &bad[i].count, 4);
    assert_false(takes(large, n > 200000 ? 200000 : (size_t)n, -1, &back));
  }
  free(large);
  free(bytes);
}

/* Another version: all that can be known is which. */
static void test_other_version(void **state)
{
  struct session_message m = sample(SESSION_HELLO), back;
  uint8_t bytes[64] = {0};
  size_t len;
  uint8_t *now = bytes_of(&m, &len);
  (void)state;
  memcpy(bytes, now, len);
  free(now);
  bytes[HEAD] = SESSION_VERSION + 1;
  for (size_t n = HEAD + 4; n <= sizeof(bytes); n++) {
    assert_true(takes(bytes, n, -1, &back));
    assert_int_equal(back.hello.version, SESSION_VERSION + 1);
    assert_int_equal(back.hello.process, 0);
  }
  assert_false(takes(bytes, HEAD + 3, -1, &back));
}

/* What is taken can be used without a look beyond its end. */
static void use(const struct session_message *m)
{
  const uint8_t *at = NULL;
  uint8_t *copy = malloc(SESSION_MAX);
  size_t n = 0;
  assert_non_null(copy);
  if (m->type == SESSION_REFUSED) n = strlen(m->text);
  if (m->type == SESSION_ANSWER) n = strlen(m->answer.reason);
  if (m->type == SESSION_CALL || m->type == SESSION_ROWS) {
    at = m->rows.bytes;
    n = m->rows.len;
  } else if (m->type == SESSION_COMMIT) {
    at = m->commit.pages;
    n = (size_t)m->commit.page_size * m->commit.count;
    for (uint32_t i = 0; i < m->commit.count; i++)
      assert_int_not_equal(m->commit.pgnos[i], 0);
  }
  assert_in_range(n, 0, SESSION_MAX);
  if (at) memcpy(copy, at, n);
  free(copy);
}

static void test_random_bytes(void **state)
{
  uint64_t seed = 20;
  unsigned taken = 0;
  (void)state;
  for (unsigned round = 0; round < 100000; round++) {
    struct session_message m =
        sample(1 + (unsigned)(random_next(&seed) % SESSION_TYPES));
    static uint8_t *samples[SESSION_TYPES + 1];
    static size_t lens[SESSION_TYPES + 1];
    if (samples[m.type] == NULL) samples[m.type] = bytes_of(&m, &lens[m.type]);
    size_t len = lens[m.type];
    uint8_t *bytes = malloc(len);
    assert_non_null(bytes);
    memcpy(bytes, samples[m.type], len);
    if (round % 4 == 0) fill(bytes + HEAD, len - HEAD, random_next(&seed));
    for (unsigned i = 0; i < 1 + round % 3; i++) {
      /* Mostly in what is not just bytes of pages. */
      size_t most = len < 128 || round % 8 == 0 ? len : 128;
      bytes[random_next(&seed) % most] = (uint8_t)random_next(&seed);
    }
    if (session_unpack(bytes, len, -1, &m)) {
      use(&m);
      taken++;
    }
    free(bytes);
  }
  /* Both ways were walked. */
  assert_in_range(taken, 1000, 90000);
}

static void test_texts_are_cut(void **state)
{
  static struct session_buffer buffer;
  static char text[4000];
  struct session_message m = sample(SESSION_REFUSED), back;
  int fd[2];
  (void)state;
  pair_make(fd);
  memset(text, 'x', sizeof(text) - 1);
  m.text = text;
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_int_equal(strlen(back.text), SESSION_TEXT_MAX - 1);
  /* Not within a character: of two bytes, where the last would be. */
  memcpy(text + SESSION_TEXT_MAX - 2, "\303\251", 2);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_int_equal(strlen(back.text), SESSION_TEXT_MAX - 2);
  /* Longer than any is sent. */
  static uint8_t bytes[HEAD + 4 + SESSION_TEXT_MAX + 1];
  size_t len;
  uint32_t n = SESSION_TEXT_MAX + 1;
  m = sample(SESSION_REFUSED);
  uint8_t *usual = bytes_of(&m, &len);
  memset(bytes, 'z', sizeof(bytes) - 1);
  memcpy(bytes, usual, HEAD);
  memcpy(bytes + HEAD, &n, 4);
  assert_false(takes(bytes, sizeof(bytes), -1, &back));
  n--;
  memset(bytes + sizeof(bytes) - 2, 0, 2);
  memcpy(bytes + HEAD, &n, 4);
  assert_true(takes(bytes, sizeof(bytes) - 1, -1, &back));
  free(usual);
  m.text = text;
  /* The longest that is whole. */
  text[SESSION_TEXT_MAX - 1] = 0;
  memset(text, 'y', SESSION_TEXT_MAX - 1);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  assert_string_equal(back.text, text);
  pair_close(fd);
}

static void test_names(void **state)
{
  (void)state;
  for (unsigned i = 1; i <= SESSION_TYPES; i++)
    for (unsigned k = 0; k < i; k++)
      assert_string_not_equal(session_name(i), session_name(k));
  assert_string_equal(session_name(SESSION_HELLO), "HELLO");
  assert_string_equal(session_name(SESSION_PONG), "PONG");
  assert_string_equal(session_name(SESSION_TYPES + 1), session_name(0));
  assert_string_equal(session_name(0xffff), session_name(0));
}

/* ---- packets ----------------------------------------------------------- */

/* As many pages of a size as a message holds. */
static uint32_t most_pages(uint32_t page_size)
{
  uint32_t n = 0;
  while (session_commit_fits(page_size, n + 1))
    n++;
  return n;
}

static void test_largest(void **state)
{
  static struct session_buffer buffer;
  static uint8_t data[SESSION_MAX];
  static uint32_t numbers[200];
  struct session_message m = sample(SESSION_ROWS), back;
  int fd[2], least = 1;
  (void)state;
  fill(data, sizeof(data), 3);
  memset(numbers, 1, sizeof(numbers));
  for (unsigned small = 0; small < 2; small++) {
    pair_make(fd);
    /* Sockets that an administrator made small grow. */
    if (small)
      assert_int_equal(
          setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)), 0);
    m = sample(SESSION_ROWS);
    m.rows = (struct session_rows){true, data, SESSION_BYTES_MAX};
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
    assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
    assert_same(&m, &back);
    m.rows.len++;
    assert_int_equal(session_send(fd[0], &m, WAIT), -EMSGSIZE);
    for (uint32_t size = 512; size <= 65536; size *= 2) {
      struct iovec whole = {data, (size_t)size * most_pages(size)};
      m = sample(SESSION_COMMIT);
      m.commit.page_size = size;
      m.commit.count = most_pages(size);
      assert_in_range(m.commit.count, 1, 200);
      m.commit.pgnos = numbers;
      m.commit.parts = &whole;
      m.commit.n_parts = 1;
      assert_int_equal(session_send(fd[0], &m, WAIT), 0);
      assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
      assert_same(&m, &back);
      assert_memory_equal(back.commit.pages, data, whole.iov_len);
      whole.iov_len += size;
      m.commit.count++;
      assert_int_equal(session_send(fd[0], &m, WAIT), -EMSGSIZE);
    }
    pair_close(fd);
  }
}

static void test_unfit_to_send(void **state)
{
  struct session_message m = sample(SESSION_PING);
  int fd[2];
  (void)state;
  pair_make(fd);
  m.type = (enum session_type)0;
  assert_int_equal(session_send(fd[0], &m, WAIT), -EINVAL);
  m.type = (enum session_type)(SESSION_TYPES + 1);
  assert_int_equal(session_send(fd[0], &m, WAIT), -EINVAL);
  m = sample(SESSION_COMMIT);
  m.commit.n_parts = 1; /* pages are missing */
  assert_int_equal(session_send(fd[0], &m, WAIT), -EINVAL);
  m = sample(SESSION_COMMIT);
  m.commit.count = 0;
  m.commit.n_parts = 0;
  assert_int_equal(session_send(fd[0], &m, WAIT), -EINVAL);
  m = sample(SESSION_COMMIT);
  m.commit.n_parts = SESSION_PARTS + 1;
  assert_int_equal(session_send(fd[0], &m, WAIT), -EMSGSIZE);
  assert_int_equal(session_peek(fd[1]), 0);
  assert_int_equal(session_send(-1, &m, WAIT), -EMSGSIZE);
  m = sample(SESSION_PING);
  assert_int_equal(session_send(-1, &m, WAIT), -EBADF);
  pair_close(fd);
}

static void send_raw(int fd, const void *data, size_t len)
{
  assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), len);
}

static void test_raw_refused(void **state)
{
  static struct session_buffer buffer;
  static uint8_t large[SESSION_MAX + 1];
  struct session_message m = sample(SESSION_PING), back;
  size_t len;
  int fd[2];
  (void)state;
  pair_make(fd);
  uint8_t *ping = bytes_of(&m, &len);
  send_raw(fd[0], "x", 1);
  assert_int_equal(session_peek(fd[1]), -EPROTO);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
  ping[4] = SESSION_TYPES + 1;
  send_raw(fd[0], ping, len);
  assert_int_equal(session_peek(fd[1]), -EPROTO);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
  ping[4] = SESSION_PING;
  send_raw(fd[0], ping, len - 4); /* less than a head */
  assert_int_equal(session_peek(fd[1]), -EPROTO);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
  ping[3]++;
  send_raw(fd[0], ping, len);
  assert_int_equal(session_peek(fd[1]), -EPROTO);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
  ping[3]--;
  /* A byte more than any message has: a CALL that would else be one. */
  memcpy(large, ping, len);
  large[4] = SESSION_CALL;
  uint32_t n = SESSION_MAX;
  memcpy(large + 8, &n, 4);
  send_raw(fd[0], large, SESSION_MAX);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  send_raw(fd[0], large, SESSION_MAX + 1);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), -EPROTO);
  /* It is not the end of the others. */
  m = sample(SESSION_PONG);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  assert_int_equal(session_receive(fd[1], &buffer, WAIT, &back), 0);
  free(ping);
  pair_close(fd);
}

static void test_peek(void **state)
{
  static struct session_buffer buffer;
  struct session_message m, back;
  int fd[2];
  (void)state;
  pair_make(fd);
  assert_int_equal(session_peek(fd[1]), 0);
  for (unsigned type = 1; type <= SESSION_TYPES; type++) {
    m = sample(type);
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
    assert_int_equal(session_peek(fd[1]), (int)type);
    assert_int_equal(session_peek(fd[1]), (int)type);
    assert_int_equal(session_receive(fd[1], &buffer, 0, &back), 0);
    assert_int_equal(session_peek(fd[1]), 0);
  }
  m = sample(SESSION_INTERRUPT);
  assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  close(fd[0]);
  assert_int_equal(session_peek(fd[1]), SESSION_INTERRUPT);
  assert_int_equal(session_receive(fd[1], &buffer, 0, &back), 0);
  assert_int_equal(session_peek(fd[1]), -EPIPE);
  close(fd[1]);
}

/* ---- time, and ends ---------------------------------------------------- */

static void on_alarm(int number)
{
  (void)number;
}

/* Signals all the while, which cut every wait of the kernel's short. */
static void alarms(unsigned us)
{
  struct sigaction action = {.sa_handler = on_alarm};
  struct itimerval every = {{0, us}, {0, us}};
  assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
  assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
}

static void test_bounded_receive(void **state)
{
  static struct session_buffer buffer;
  struct session_message back;
  int fd[2];
  (void)state;
  pair_make(fd);
  for (unsigned round = 0; round < 2; round++) {
    alarms(round ? 5000 : 0);
    uint64_t start = clock_monotonic_ms();
    assert_int_equal(session_receive(fd[1], &buffer, 0, &back), -ETIMEDOUT);
    assert_int_equal(session_receive(fd[1], &buffer, 100, &back), -ETIMEDOUT);
    assert_in_range(clock_monotonic_ms() - start, 99, WAIT);
  }
  alarms(0);
  pair_close(fd);
}

/* The other end does not read: what fits is sent, then there is an end to it,
   and all that was sent is there, in order. */
static void test_bounded_send(void **state)
{
  static struct session_buffer buffer;
  static uint8_t data[4096];
  struct session_message m = sample(SESSION_CALL), back;
  uint32_t sent = 0;
  int fd[2], rc;
  (void)state;
  pair_make(fd);
  m.rows = (struct session_rows){false, data, sizeof(data)};
  while ((rc = session_send(fd[0], &m, 0)) == 0) {
    sent++;
    memcpy(data, &sent, sizeof(sent));
    assert_in_range(sent, 1, 100000);
  }
  assert_int_equal(rc, -ETIMEDOUT);
  assert_in_range(sent, 2, 100000);
  for (unsigned round = 0; round < 2; round++) {
    alarms(round ? 5000 : 0);
    uint64_t start = clock_monotonic_ms();
    assert_int_equal(session_send(fd[0], &m, 100), -ETIMEDOUT);
    assert_in_range(clock_monotonic_ms() - start, 99, WAIT);
  }
  alarms(0);
  for (uint32_t i = 0; i < sent; i++) {
    assert_int_equal(session_receive(fd[1], &buffer, 0, &back), 0);
    assert_memory_equal(back.rows.bytes, &i, sizeof(i));
  }
  assert_int_equal(session_receive(fd[1], &buffer, 0, &back), -ETIMEDOUT);
  assert_int_equal(session_send(fd[0], &m, 0), 0);
  pair_close(fd);
}

struct late {
  int fd;
  unsigned n; /* messages to take */
};

static void *read_late(void *arg)
{
  static struct session_buffer buffer;
  struct late *late = arg;
  struct session_message back;
  usleep(50000);
  for (unsigned i = 0; i < late->n; i++)
    if (session_receive(late->fd, &buffer, WAIT, &back) != 0) return late;
  return NULL;
}

/* Who waits to send goes on when the other end reads. */
static void test_send_goes_on(void **state)
{
  static uint8_t data[SESSION_BYTES_MAX];
  struct session_message m = sample(SESSION_CALL);
  struct late late = {.n = 20};
  pthread_t thread;
  void *failed;
  int fd[2];
  (void)state;
  pair_make(fd);
  late.fd = fd[1];
  m.rows = (struct session_rows){false, data, sizeof(data)};
  assert_int_equal(pthread_create(&thread, NULL, read_late, &late), 0);
  for (unsigned i = 0; i < late.n; i++)
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
  pthread_join(thread, &failed);
  assert_null(failed);
  pair_close(fd);
}

static void *shut_late(void *arg)
{
  usleep(50000);
  shutdown(((struct late *)arg)->fd, SHUT_RDWR);
  return NULL;
}

/* The end of a connection, from either side, ends every wait. */
static void test_end(void **state)
{
  static struct session_buffer buffer;
  static uint8_t data[SESSION_BYTES_MAX];
  struct session_message m = sample(SESSION_CALL), back;
  pthread_t thread;
  int fd[2];
  (void)state;
  for (unsigned side = 0; side < 2; side++)
    for (unsigned sends = 0; sends < 2; sends++) {
      int rc = 0;
      pair_make(fd);
      struct late late = {.fd = fd[side]};
      assert_int_equal(pthread_create(&thread, NULL, shut_late, &late), 0);
      m.rows = (struct session_rows){false, data, sizeof(data)};
      while (rc == 0)
        rc = sends ? session_send(fd[0], &m, -1)
                   : session_receive(fd[0], &buffer, -1, &back);
      assert_int_equal(rc, -EPIPE);
      pthread_join(thread, NULL);
      assert_int_equal(session_peek(fd[0]), -EPIPE);
      assert_int_equal(session_send(fd[0], &m, WAIT), -EPIPE);
      assert_int_equal(session_receive(fd[0], &buffer, 0, &back), -EPIPE);
      pair_close(fd);
    }
}

/* The host says why, and hangs up without having read all: its words arrive. */
static void test_last_words(void **state)
{
  static struct session_buffer buffer;
  int fd[2];
  (void)state;
  for (unsigned first = 0; first < 3; first++) {
    struct session_message m = sample(SESSION_HELLO), back;
    pair_make(fd);
    assert_int_equal(session_send(fd[0], &m, WAIT), 0);
    m = sample(SESSION_REFUSED);
    assert_int_equal(session_send(fd[1], &m, WAIT), 0);
    close(fd[1]);
    if (first == 1) assert_int_equal(session_peek(fd[0]), SESSION_REFUSED);
    if (first == 2) assert_int_equal(session_send(fd[0], &m, WAIT), -EPIPE);
    assert_int_equal(session_receive(fd[0], &buffer, WAIT, &back), 0);
    assert_same(&m, &back);
    assert_int_equal(session_receive(fd[0], &buffer, WAIT, &back), -EPIPE);
    close(fd[0]);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trips),
      cmocka_unit_test(test_other_values),
      cmocka_unit_test(test_layout),
      cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_fields_refused),
      cmocka_unit_test(test_commit_refused),
      cmocka_unit_test(test_other_version),
      cmocka_unit_test(test_random_bytes),
      cmocka_unit_test(test_texts_are_cut),
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_largest),
      cmocka_unit_test(test_unfit_to_send),
      cmocka_unit_test(test_raw_refused),
      cmocka_unit_test(test_peek),
      cmocka_unit_test(test_bounded_receive),
      cmocka_unit_test(test_bounded_send),
      cmocka_unit_test(test_send_goes_on),
      cmocka_unit_test(test_end),
      cmocka_unit_test(test_last_words),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
