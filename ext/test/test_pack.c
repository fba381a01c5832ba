/*
** The two cursors of pack.h, and the bodies of transactions: what was packed
** comes back, and nothing shorter, longer or malformed is taken. Each input
** lies at the end of memory of exactly its size, so that a sanitizer sees a
** byte too far.
*/
#include "harness.h"

#include "node.h"

/* Memory of exactly len bytes, with a copy of data in it. */
static uint8_t *exact(const void *data, size_t len)
{
  uint8_t *copy = malloc(len ? len : 1);
  assert_non_null(copy);
  memcpy(copy, data, len);
  return copy;
}

/* ---- the cursors ------------------------------------------------------- */

static void pack_sample(struct packer *p)
{
  pack_u64(p, 0x1122334455667788u);
  pack_u32(p, 0x99aabbccu);
  pack_u8(p, 0xdd);
  pack_blob(p, "\0\1\2", 3);
  pack_blob(p, NULL, 0);
  pack_text(p, "");
  pack_text(p, "name");
  assert_false(p->bad);
}

/* True when all fields came back as they were. */
static bool parse_sample(const uint8_t *data, size_t len)
{
  struct parser p = parser_of(data, len);
  size_t n3, n0;
  bool same = parse_u64(&p) == 0x1122334455667788u;
  same &= parse_u32(&p) == 0x99aabbccu;
  same &= parse_u8(&p) == 0xdd;
  const uint8_t *three = parse_blob(&p, &n3);
  const uint8_t *none = parse_blob(&p, &n0);
  const char *empty = parse_text(&p), *name = parse_text(&p);
  assert_non_null(empty);
  assert_non_null(name);
  if (!parser_done(&p)) return false;
  return same && n3 == 3 && memcmp(three, "\0\1\2", 3) == 0 && none &&
         n0 == 0 && strcmp(empty, "") == 0 && strcmp(name, "name") == 0;
}

static void test_pack_round_trip(void **state)
{
  struct packer p = {0};
  (void)state;
  pack_sample(&p);
  static const uint8_t head[] = {0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22,
                                 0x11, 0xcc, 0xbb, 0xaa, 0x99, 0xdd, 3,
                                 0,    0,    0,    0,    1,    2};
  assert_memory_equal(p.data, head, sizeof(head)); /* little-endian for all */
  assert_true(parse_sample(p.data, p.len));
  free(p.data);
}

static void test_pack_every_length(void **state)
{
  struct packer p = {0};
  (void)state;
  pack_sample(&p);
  for (size_t len = 0; len < p.len; len++) {
    uint8_t *cut = exact(p.data, len);
    assert_false(parse_sample(cut, len));
    free(cut);
  }
  pack_u8(&p, 0);
  assert_false(parse_sample(p.data, p.len)); /* something is left over */
  free(p.data);
}

static void test_pack_grows(void **state)
{
  struct packer p = {0};
  uint8_t big[5000];
  size_t n;
  (void)state;
  for (size_t i = 0; i < sizeof(big); i++)
    big[i] = (uint8_t)(i * 7);
  pack_u8(&p, 1);
  for (size_t k = 0; k < sizeof(big); k += 499)
    pack_blob(&p, big, k);
  struct parser q = parser_of(p.data, p.len);
  assert_int_equal(parse_u8(&q), 1);
  for (size_t k = 0; k < sizeof(big); k += 499) {
    const uint8_t *at = parse_blob(&q, &n);
    assert_int_equal(n, k);
    assert_memory_equal(at, big, k);
  }
  assert_true(parser_done(&q));
  free(p.data);
}

/* Once bad, zeros to the end, although bytes are left. */
static void test_parser_stays_bad(void **state)
{
  static const uint8_t data[12] = {200, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
  struct parser p = parser_of(data, sizeof(data));
  size_t n = 1;
  (void)state;
  assert_null(parse_blob(&p, &n));
  assert_int_equal(n, 0);
  assert_true(p.bad);
  assert_int_equal(parse_u8(&p), 0);
  assert_int_equal(parse_u32(&p), 0);
  assert_int_equal(parse_u64(&p), 0);
  assert_string_equal(parse_text(&p), "");
  assert_false(parser_done(&p));
}

static void test_text_must_end_once(void **state)
{
  static const struct {
    const char *bytes;
    uint8_t n;
    bool good;
  } cases[] = {{"ab\0", 3, true},   {"abc", 3, false}, {"a\0\0", 3, false},
               {"\0\0", 2, false},  {"", 0, false},    {"\0", 1, true},
               {"a\0b\0", 4, false}};
  (void)state;
  for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    struct packer p = {0};
    pack_blob(&p, cases[i].bytes, cases[i].n);
    struct parser q = parser_of(p.data, p.len);
    assert_non_null(parse_text(&q));
    assert_int_equal(parser_done(&q), cases[i].good);
    free(p.data);
  }
}

/* ---- bodies of transactions -------------------------------------------- */

static struct raft_body *body_of(uint32_t page_size, uint32_t count)
{
  struct tx_head head = {.node = 1,
                         .incarnation = 2,
                         .sequence = 3,
                         .part = 4,
                         .n_page = count + 5,
                         .page_size = page_size,
                         .count = count};
  size_t offset = tx_pages_offset(count);
  struct raft_body *body = raft_body_new(offset + (size_t)count * page_size);
  assert_non_null(body);
  memset(body->data, 0, offset);
  memcpy(body->data, &head, sizeof(head));
  for (uint32_t i = 0; i < count; i++) {
    uint32_t pgno = 10 + i;
    memcpy(body->data + sizeof(head) + (size_t)i * 4, &pgno, 4);
    memset(body->data + offset + (size_t)i * page_size, (int)i, page_size);
  }
  return body;
}

static bool taken(const struct raft_body *body, uint32_t page_size)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  return tx_parse(body, page_size, &head, &pgnos, &pages);
}

static void test_tx_round_trip(void **state)
{
  static const uint32_t sizes[] = {512, 4096, 65536};
  (void)state;
  for (unsigned s = 0; s < 3; s++)
    for (uint32_t count = 1; count <= 9; count++) {
      struct raft_body *body = body_of(sizes[s], count);
      struct tx_head head;
      const uint32_t *pgnos;
      const uint8_t *pages;
      assert_true(tx_parse(body, sizes[s], &head, &pgnos, &pages));
      assert_int_equal(head.node, 1);
      assert_int_equal(head.sequence, 3);
      assert_int_equal(head.count, count);
      assert_int_equal((uintptr_t)(pages - body->data) % 8, 0);
      for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pgnos[i], 10 + i);
        assert_int_equal(pages[(size_t)i * sizes[s]], i);
        assert_int_equal(pages[(size_t)(i + 1) * sizes[s] - 1], i);
      }
      raft_body_unref(body);
    }
}

/* A body of exactly len bytes that begins like another. */
static struct raft_body *cut_to(const struct raft_body *body, size_t len)
{
  struct raft_body *cut = raft_body_new(len);
  assert_non_null(cut);
  memset(cut->data, 0, len);
  memcpy(cut->data, body->data, len < body->len ? len : body->len);
  return cut;
}

static void test_tx_every_length(void **state)
{
  (void)state;
  for (uint32_t count = 1; count <= 3; count++) {
    struct raft_body *body = body_of(512, count);
    for (size_t len = 0; len <= (size_t)body->len + 512; len++) {
      struct raft_body *cut = cut_to(body, len);
      assert_int_equal(taken(cut, 512), len == body->len);
      raft_body_unref(cut);
    }
    raft_body_unref(body);
  }
  assert_false(taken(NULL, 512));
}

static void set_count(struct raft_body *body, uint32_t count)
{
  memcpy(body->data + offsetof(struct tx_head, count), &count, 4);
}

static void test_tx_counts(void **state)
{
  static const uint32_t counts[] = {
      0, 1, 3, 0x00800000u, 0x7fffffffu, 0x80000000u, 0x80000002u, 0xffffffffu};
  struct raft_body *body = body_of(512, 2);
  (void)state;
  assert_true(taken(body, 512));
  for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
    set_count(body, counts[i]);
    assert_false(taken(body, 512));
  }
  raft_body_unref(body);
  /* A body that has a head, and no page. */
  body = body_of(512, 0);
  assert_false(taken(body, 512));
  raft_body_unref(body);
}

static void test_tx_page_size(void **state)
{
  struct raft_body *body = body_of(1024, 2);
  (void)state;
  assert_true(taken(body, 1024));
  assert_false(taken(body, 512));
  assert_false(taken(body, 2048));
  uint32_t zero = 0;
  memcpy(body->data + offsetof(struct tx_head, page_size), &zero, 4);
  assert_false(taken(body, 1024));
  raft_body_unref(body);
}

static void test_tx_page_zero(void **state)
{
  const uint32_t zero = 0;
  (void)state;
  for (uint32_t i = 0; i < 5; i++) {
    struct raft_body *body = body_of(512, 5);
    memcpy(body->data + sizeof(struct tx_head) + (size_t)i * 4, &zero, 4);
    assert_false(taken(body, 512));
    raft_body_unref(body);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_pack_round_trip),
      cmocka_unit_test(test_pack_every_length),
      cmocka_unit_test(test_pack_grows),
      cmocka_unit_test(test_parser_stays_bad),
      cmocka_unit_test(test_text_must_end_once),
      cmocka_unit_test(test_tx_round_trip),
      cmocka_unit_test(test_tx_every_length),
      cmocka_unit_test(test_tx_counts),
      cmocka_unit_test(test_tx_page_size),
      cmocka_unit_test(test_tx_page_zero),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
