/*
** Calls and answers as bytes: what was packed comes back, and nothing shorter,
** longer, malformed or of another shape is taken. Whatever is taken was packed
** in the one way there is: packed again it gives the same bytes. Each input
** lies in memory of exactly its size, so that a sanitizer sees a byte too far.
** And calls that are refused before they touch a node.
*/
#include "harness.h"

#include "call.h"

#include <errno.h>
#include <math.h>
#include <sqlite3.h>

#define KINDS 30

/* Some numbers below that are not taken. */
static bool is_known(unsigned what)
{
  return (what >= 1 && what <= 18) || (what >= 20 && what <= 23) ||
         what == KINDS;
}

/* Memory of exactly len bytes, with a copy of data in it. */
static uint8_t *exact(const void *data, size_t len)
{
  uint8_t *copy = malloc(len ? len : 1);
  assert_non_null(copy);
  if (len) memcpy(copy, data, len);
  return copy;
}

static int take_call(const void *data, size_t len, struct call *call)
{
  uint8_t *copy = exact(data, len);
  int rc = call_unpack(copy, len, call);
  free(copy);
  if (rc) {
    assert_int_equal(call->arguments.n, 0);
    assert_null(call->arguments.at);
  }
  return rc;
}

static int take_answer(const void *data, size_t len, uint8_t what,
                       struct answer *answer)
{
  const struct call call = {.what = what};
  uint8_t *copy = exact(data, len);
  int rc = answer_unpack(copy, len, &call, answer);
  free(copy);
  if (rc) {
    assert_int_equal(answer->n_columns, 0);
    assert_int_equal(answer->cells.n, 0);
    assert_null(answer->cells.at);
  }
  return rc;
}

static void same_cells(const struct cells *a, const struct cells *b)
{
  assert_int_equal(a->n, b->n);
  for (size_t i = 0; i < a->n; i++) {
    assert_int_equal(a->at[i].type, b->at[i].type);
    assert_int_equal(a->at[i].number, b->at[i].number);
    assert_memory_equal(&a->at[i].real, &b->at[i].real, sizeof(double));
    if (a->at[i].type == CELL_TEXT)
      assert_string_equal(a->at[i].text, b->at[i].text);
    else
      assert_null(b->at[i].text);
  }
}

/* ---- samples ----------------------------------------------------------- */

/* One of each type, at its ends. */
static void sample_call(struct call *call)
{
  *call = (struct call){.what = CALL_WAIT, .write_wait = 3600000};
  cells_integer(&call->arguments, INT64_MAX);
  cells_text(&call->arguments, "");
  cells_null(&call->arguments);
  cells_integer(&call->arguments, (uint64_t)INT64_MIN);
  cells_text(&call->arguments, "a longer text, \303\251");
  cells_real(&call->arguments, 0.1);
  cells_real(&call->arguments, -HUGE_VAL);
  assert_false(call->arguments.bad);
}

/* Of quorate_members, as it has the most kinds of cells. */
static void sample_answer(struct answer *answer, unsigned rows)
{
  *answer = (struct answer){.n_columns = call_columns(CALL_MEMBERS)};
  for (unsigned i = 0; i < rows; i++) {
    cells_text(&answer->cells, "n1");
    cells_text(&answer->cells, "0123456789abcdef");
    cells_text(&answer->cells, "127.0.0.1:7001");
    cells_text(&answer->cells, "voter");
    cells_text(&answer->cells, "");
    cells_integer(&answer->cells, i);
    cells_null(&answer->cells);
    cells_integer(&answer->cells, UINT64_MAX);
    cells_text(&answer->cells, "2027-01-01 00:00:00");
    for (unsigned k = 9; k < answer->n_columns; k++)
      cells_real(&answer->cells, k / 7.0);
  }
  assert_false(answer->cells.bad);
}

static void pack_error(struct packer *p, int status, const char *error)
{
  struct answer answer = {.status = status};
  text_set(&answer.error, "%s", error);
  assert_int_equal(answer_pack(&answer, p), 0);
}

/* ---- calls ------------------------------------------------------------- */

static void test_call_round_trip(void **state)
{
  static const uint8_t head[] = {5, 0x80, 0xee, 0x36, 0, 7, 0, 0, 0, 1};
  struct packer p = {0};
  struct call call, back;
  (void)state;
  sample_call(&call);
  call.reader = (void *)&call; /* of this process: does not travel */
  assert_int_equal(call_pack(&call, &p), 0);
  assert_memory_equal(p.data, head, sizeof(head));
  assert_int_equal(take_call(p.data, p.len, &back), 0);
  assert_int_equal(back.what, CALL_WAIT);
  assert_int_equal(back.write_wait, 3600000);
  assert_null(back.reader);
  same_cells(&call.arguments, &back.arguments);
  cells_clear(&back.arguments);
  cells_clear(&call.arguments);
  free(p.data);
}

static void test_call_every_kind(void **state)
{
  (void)state;
  for (unsigned what = 0; what <= 255; what++) {
    const struct call call = {.what = (uint8_t)what};
    bool known = is_known(what);
    struct packer p = {0};
    struct call back;
    assert_int_equal(call_pack(&call, &p), 0);
    assert_int_equal(take_call(p.data, p.len, &back), known ? 0 : -EBADMSG);
    assert_int_equal(call_columns((uint8_t)what) > 0, known);
    free(p.data);
  }
}

static void test_call_every_length(void **state)
{
  struct packer p = {0};
  struct call call, back;
  (void)state;
  sample_call(&call);
  assert_int_equal(call_pack(&call, &p), 0);
  for (size_t len = 0; len < p.len; len++)
    assert_int_equal(take_call(p.data, len, &back), -EBADMSG);
  pack_u8(&p, 0); /* something is left over */
  assert_int_equal(take_call(p.data, p.len, &back), -EBADMSG);
  cells_clear(&call.arguments);
  free(p.data);
}

/* It is appended to what a message has before it, and only it is bounded. */
static void test_call_bounds(void **state)
{
  static char text[CALL_BYTES_MAX];
  /* what, wait, number of arguments; type, length, and the closing zero */
  const size_t fits = CALL_BYTES_MAX - 9 - 5 - 1;
  (void)state;
  for (size_t n = fits; n <= fits + 1; n++) {
    struct call call = {.what = CALL_INVITE}, back;
    struct packer p = {0};
    memset(text, 'x', n);
    text[n] = 0;
    cells_text(&call.arguments, text);
    pack_u64(&p, 1);
    assert_int_equal(call_pack(&call, &p), n == fits ? 0 : -EMSGSIZE);
    assert_int_equal(take_call(p.data + 8, p.len - 8, &back),
                     n == fits ? 0 : -EBADMSG);
    if (n == fits) same_cells(&call.arguments, &back.arguments);
    cells_clear(&back.arguments);
    cells_clear(&call.arguments);
    free(p.data);
  }
}

/* ---- answers ----------------------------------------------------------- */

static void test_answer_round_trip(void **state)
{
  struct answer answer, back;
  (void)state;
  for (unsigned rows = 0; rows <= 3; rows++) {
    struct packer p = {0};
    sample_answer(&answer, rows);
    assert_int_equal(answer_pack(&answer, &p), 0);
    assert_int_equal(take_answer(p.data, p.len, CALL_MEMBERS, &back), 0);
    assert_int_equal(back.status, SQLITE_OK);
    assert_string_equal(back.error.s, "");
    assert_int_equal(back.n_columns, call_columns(CALL_MEMBERS));
    assert_int_equal(back.cells.n, rows * call_columns(CALL_MEMBERS));
    same_cells(&answer.cells, &back.cells);
    answer_clear(&back);
    answer_clear(&answer);
    free(p.data);
  }
}

static void test_answer_error(void **state)
{
  char longest[TEXT_MAX];
  (void)state;
  memset(longest, 'e', sizeof(longest) - 1);
  longest[sizeof(longest) - 1] = 0;
  const char *const errors[] = {"", "no quorum", longest};
  for (uint8_t what = 1; what <= KINDS; what++)
    for (unsigned i = 0; i < 3 && is_known(what); i++) {
      struct packer p = {0};
      struct answer back;
      pack_error(&p, SQLITE_ERROR, errors[i]);
      assert_int_equal(take_answer(p.data, p.len, what, &back), 0);
      assert_int_equal(back.status, SQLITE_ERROR);
      assert_string_equal(back.error.s, errors[i]);
      free(p.data);
    }
}

/* An error text that finds no room: nothing of it is copied. */
static void test_answer_error_too_long(void **state)
{
  char text[TEXT_MAX + 1];
  struct packer p = {0};
  struct answer back;
  (void)state;
  memset(text, 'e', TEXT_MAX);
  text[TEXT_MAX] = 0;
  pack_u32(&p, SQLITE_ERROR);
  pack_text(&p, text);
  pack_u32(&p, 0);
  pack_u32(&p, 0);
  assert_int_equal(take_answer(p.data, p.len, CALL_ROLE, &back), -EBADMSG);
  free(p.data);
}

static void test_answer_every_length(void **state)
{
  struct packer p = {0};
  struct answer answer, back;
  (void)state;
  sample_answer(&answer, 2);
  text_set(&answer.error, "not used, but it is there");
  assert_int_equal(answer_pack(&answer, &p), 0);
  for (size_t len = 0; len < p.len; len++)
    assert_int_equal(take_answer(p.data, len, CALL_MEMBERS, &back), -EBADMSG);
  pack_u8(&p, 0);
  assert_int_equal(take_answer(p.data, p.len, CALL_MEMBERS, &back), -EBADMSG);
  answer_clear(&answer);
  free(p.data);
}

/* How many rows and columns there may be depends on what was asked. */
static void test_answer_shape(void **state)
{
  (void)state;
  for (unsigned what = 0; what <= KINDS + 1; what++)
    for (unsigned columns = 0; columns <= 24; columns++)
      for (unsigned n = 0; n <= 48; n++) {
        struct answer answer = {.n_columns = columns}, back;
        struct packer p = {0};
        unsigned width = call_columns((uint8_t)what);
        bool table = (what >= CALL_STATUS && what <= CALL_EVENTS) ||
                     what == CALL_INVITATIONS || what == CALL_METRICS ||
                     what == CALL_LOG;
        bool good = width > 0 && columns == width && n % width == 0 &&
                    (table || n == 1);
        for (unsigned i = 0; i < n; i++)
          cells_null(&answer.cells);
        assert_int_equal(answer_pack(&answer, &p), 0);
        assert_int_equal(take_answer(p.data, p.len, (uint8_t)what, &back),
                         good ? 0 : -EBADMSG);
        answer_clear(&back);
        answer_clear(&answer);
        free(p.data);
      }
}

/* One that failed has no rows, and a status that says so. */
static void test_answer_status(void **state)
{
  static const struct {
    uint32_t status;
    unsigned columns, cells;
    bool good;
  } cases[] = {{SQLITE_NOMEM, 0, 0, true},  {SQLITE_INTERRUPT, 0, 0, true},
               {SQLITE_ERROR, 1, 0, false}, {SQLITE_ERROR, 1, 1, false},
               {SQLITE_ERROR, 0, 1, false}, {SQLITE_OK, 0, 0, false},
               {0x80000000u, 0, 0, false},  {0xffffffffu, 0, 0, false},
               {0xffffffffu, 1, 1, false},  {SQLITE_OK, 1, 1, true}};
  (void)state;
  for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    struct packer p = {0};
    struct answer back;
    pack_u32(&p, cases[i].status);
    pack_text(&p, "why");
    pack_u32(&p, cases[i].columns);
    pack_u32(&p, cases[i].cells);
    for (unsigned k = 0; k < cases[i].cells; k++)
      pack_u8(&p, CELL_NULL);
    assert_int_equal(take_answer(p.data, p.len, CALL_TERM, &back),
                     cases[i].good ? 0 : -EBADMSG);
    answer_clear(&back);
    free(p.data);
  }
}

/* A number of cells that nobody has sent costs nothing. */
static void test_answer_promises(void **state)
{
  static const uint32_t counts[] = {3, 0x7fffffffu, 0x80000000u, 0xffffffffu};
  (void)state;
  for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
    struct packer p = {0};
    struct answer back;
    pack_u32(&p, SQLITE_OK);
    pack_text(&p, "");
    pack_u32(&p, 2);
    pack_u32(&p, counts[i]);
    pack_u8(&p, CELL_NULL);
    pack_u8(&p, CELL_NULL);
    assert_int_equal(take_answer(p.data, p.len, CALL_EVENTS, &back), -EBADMSG);
    free(p.data);
  }
}

static void test_answer_bounds(void **state)
{
  /* status, error, columns, number of cells; a row of two nulls */
  const size_t fits = (ANSWER_BYTES_MAX - 4 - 5 - 4 - 4) / 2;
  (void)state;
  for (size_t rows = fits; rows <= fits + 1; rows++) {
    struct answer answer = {.n_columns = 2}, back;
    struct packer p = {0};
    for (size_t i = 0; i < rows * 2; i++)
      cells_null(&answer.cells);
    assert_int_equal(answer_pack(&answer, &p), rows == fits ? 0 : -EMSGSIZE);
    assert_int_equal(take_answer(p.data, p.len, CALL_EVENTS, &back),
                     rows == fits ? 0 : -EBADMSG);
    answer_clear(&back);
    answer_clear(&answer);
    free(p.data);
  }
}

/* ---- what nobody packed ------------------------------------------------ */

/* True when it is taken; then it was packed in the one way there is. */
static bool try_call(const uint8_t *data, size_t len)
{
  struct packer p = {0};
  struct call call;
  int rc = take_call(data, len, &call);
  if (rc) {
    assert_int_equal(rc, -EBADMSG);
    return false;
  }
  assert_int_equal(call_pack(&call, &p), 0);
  assert_int_equal(p.len, len);
  assert_memory_equal(p.data, data, len);
  cells_clear(&call.arguments);
  free(p.data);
  return true;
}

static bool try_answer(const uint8_t *data, size_t len, uint8_t what)
{
  struct packer p = {0};
  struct answer answer;
  int rc = take_answer(data, len, what, &answer);
  if (rc) {
    assert_int_equal(rc, -EBADMSG);
    return false;
  }
  assert_int_equal(answer_pack(&answer, &p), 0);
  assert_int_equal(p.len, len);
  assert_memory_equal(p.data, data, len);
  answer_clear(&answer);
  free(p.data);
  return true;
}

static void test_random_bytes(void **state)
{
  uint8_t data[64];
  uint64_t seed = 1;
  unsigned calls = 0;
  (void)state;
  for (unsigned round = 0; round < 300000; round++) {
    size_t len = random_next(&seed) % (sizeof(data) + 1);
    /* Small numbers mean something more often. */
    uint64_t mask = random_next(&seed) % 2 ? 0xff : 0x03;
    for (size_t i = 0; i < len; i++)
      data[i] = (uint8_t)(random_next(&seed) & mask);
    if (len > 1) data[len - 1] = 0;
    calls += try_call(data, len);
    try_answer(data, len, (uint8_t)(1 + round % KINDS));
  }
  assert_true(calls > 0);
}

static void test_damaged_samples(void **state)
{
  struct packer c = {0}, a = {0};
  struct call call;
  struct answer answer;
  uint64_t seed = 2;
  unsigned taken = 0;
  (void)state;
  sample_call(&call);
  sample_answer(&answer, 2);
  assert_int_equal(call_pack(&call, &c), 0);
  assert_int_equal(answer_pack(&answer, &a), 0);
  assert_true(try_call(c.data, c.len));
  assert_true(try_answer(a.data, a.len, CALL_MEMBERS));
  for (unsigned round = 0; round < 100000; round++) {
    uint8_t *data =
        exact(round % 2 ? c.data : a.data, round % 2 ? c.len : a.len);
    size_t len = round % 2 ? c.len : a.len;
    for (uint64_t k = 1 + random_next(&seed) % 3; k > 0; k--)
      data[random_next(&seed) % len] = (uint8_t)random_next(&seed);
    taken +=
        round % 2 ? try_call(data, len) : try_answer(data, len, CALL_MEMBERS);
    free(data);
  }
  assert_in_range(taken, 1, 99999);
  cells_clear(&call.arguments);
  answer_clear(&answer);
  free(c.data);
  free(a.data);
}

/* ---- calls that are refused -------------------------------------------- */

static bool nobody(void *ctx)
{
  (void)ctx;
  return false;
}

static void refused(struct call *call, const char *why)
{
  const struct interrupt interrupt = {nobody, NULL};
  struct answer answer = {0};
  assert_int_equal(call_run(NULL, call, &interrupt, &answer), SQLITE_ERROR);
  assert_int_equal(answer.status, SQLITE_ERROR);
  assert_string_equal(answer.error.s, why);
  assert_int_equal(answer.cells.n, 0);
  answer_clear(&answer);
  cells_clear(&call->arguments);
}

/* What another process sends as arguments is not believed. */
static void test_arguments(void **state)
{
  static const char index[] = "the index must be an integer, 0 or more";
  static const char wait[] = "the wait must be 0 to 3600000 ms";
  static const char number[] = "wrong number of arguments";
  static const char role[] = "the role must be voter or learner";
  struct call call = {.what = 0};
  struct text error = {""};
  (void)state;
  refused(&call, "no such function");
  call.what = KINDS + 1;
  refused(&call, "no such function");
  call.what = CALL_INVITE;
  refused(&call, number);
  cells_null(&call.arguments);
  refused(&call, "the name is missing");
  cells_text(&call.arguments, "");
  refused(&call, "the name is missing");
  cells_integer(&call.arguments, 1);
  refused(&call, "the name is missing");
  cells_text(&call.arguments, "n1");
  assert_true(call_check(&call, &error));
  cells_null(&call.arguments);
  refused(&call, role);
  cells_text(&call.arguments, "n1");
  cells_text(&call.arguments, "learner");
  assert_true(call_check(&call, &error));
  call.arguments.at[1].text[0] = 'L';
  refused(&call, role);
  cells_text(&call.arguments, "n1");
  cells_text(&call.arguments, "voter");
  assert_true(call_check(&call, &error));
  cells_text(&call.arguments, "voter");
  refused(&call, number);
  call.what = CALL_UNINVITE;
  cells_null(&call.arguments);
  refused(&call, "the name is missing");
  cells_text(&call.arguments, "n1");
  assert_true(call_check(&call, &error));
  cells_text(&call.arguments, "voter");
  refused(&call, number);
  call.what = CALL_LOG;
  for (int bad = 0; bad < 4; bad++) {
    static const int64_t most[] = {INT64_MAX, INT64_MAX, ENTRIES_MOST, 1};
    for (int i = 0; i < 4; i++)
      cells_integer(&call.arguments, (uint64_t)most[i] + (i == bad));
    refused(&call, "malformed range");
    for (int i = 0; i < 4; i++)
      cells_integer(&call.arguments, i == bad ? UINT64_MAX : 0);
    refused(&call, "malformed range");
  }
  call.what = CALL_BACKUP;
  cells_integer(&call.arguments, 1);
  refused(&call, "the file is missing");
  cells_text(&call.arguments, "a/b");
  assert_true(call_check(&call, &error));
  refused(&call, "a/b: is not an absolute path");
  call.what = CALL_WAIT;
  cells_text(&call.arguments, "1");
  refused(&call, index);
  cells_integer(&call.arguments, UINT64_MAX);
  refused(&call, index);
  cells_integer(&call.arguments, 1);
  assert_true(call_check(&call, &error));
  cells_integer(&call.arguments, 3600001);
  refused(&call, wait);
  cells_integer(&call.arguments, 1);
  cells_null(&call.arguments);
  refused(&call, wait);
  call.what = CALL_ROTATE_CA;
  assert_true(call_check(&call, &error));
  cells_integer(&call.arguments, 3600001);
  refused(&call, wait);
  cells_text(&call.arguments, "1");
  refused(&call, wait);
  cells_integer(&call.arguments, 0);
  assert_true(call_check(&call, &error));
  cells_integer(&call.arguments, 0);
  cells_integer(&call.arguments, 0);
  refused(&call, number);
  call.what = CALL_FOLLOW_WRITER;
  assert_true(call_check(&call, &error));
  cells_text(&call.arguments, "perhaps");
  refused(&call, "must be on or off");
  cells_integer(&call.arguments, 1);
  refused(&call, "must be on or off");
  cells_text(&call.arguments, "On");
  assert_true(call_check(&call, &error));
  cells_clear(&call.arguments);
  call.what = CALL_TERM;
  cells_null(&call.arguments);
  refused(&call, number);
  assert_string_equal(error.s, "");
}

static void test_member_arguments(void **state)
{
  static const uint8_t named[] = {CALL_PROMOTE, CALL_DEMOTE, CALL_REMOVE,
                                  CALL_TRANSFER};
  static const char *const bad[] = {
      "",        "host",  "host:0", ":7001",    "::1:7001",
      "[::1]:0", "a b:1", "host:",  "[host]:1", "host:65536"};
  static const char *const good[] = {"host:1", "127.0.0.1:65535", "[::1]:7001"};
  struct call call = {.what = 0};
  struct text error = {""};
  (void)state;
  for (unsigned i = 0; i < sizeof(named); i++) {
    call.what = named[i];
    if (call.what == CALL_TRANSFER)
      assert_true(call_check(&call, &error));
    else
      refused(&call, "wrong number of arguments");
    cells_null(&call.arguments);
    refused(&call, "the name is missing");
    cells_integer(&call.arguments, 7);
    refused(&call, "the name is missing");
    cells_text(&call.arguments, "");
    refused(&call, "the name is missing");
    cells_text(&call.arguments, "n1");
    assert_true(call_check(&call, &error));
    cells_text(&call.arguments, "n2");
    refused(&call, "wrong number of arguments");
  }
  call.what = CALL_ADVERTISE;
  assert_true(call_check(&call, &error));
  for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    cells_text(&call.arguments, bad[i]);
    refused(&call, "must be HOST:PORT, or [IPv6]:PORT");
  }
  for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
    cells_text(&call.arguments, good[i]);
    assert_true(call_check(&call, &error));
    cells_clear(&call.arguments);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_call_round_trip),
      cmocka_unit_test(test_call_every_kind),
      cmocka_unit_test(test_call_every_length),
      cmocka_unit_test(test_call_bounds),
      cmocka_unit_test(test_answer_round_trip),
      cmocka_unit_test(test_answer_error),
      cmocka_unit_test(test_answer_error_too_long),
      cmocka_unit_test(test_answer_every_length),
      cmocka_unit_test(test_answer_shape),
      cmocka_unit_test(test_answer_status),
      cmocka_unit_test(test_answer_promises),
      cmocka_unit_test(test_answer_bounds),
      cmocka_unit_test(test_random_bytes),
      cmocka_unit_test(test_damaged_samples),
      cmocka_unit_test(test_arguments),
      cmocka_unit_test(test_member_arguments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
