/*
** The replicated settings: an ordered map against a model of it, changes as
** bodies of entries, the whole as bytes, and everything that must be refused.
*/
#include "harness.h"

#include "pack.h"
#include "settings.h"

static void set(struct settings *s, const char *name, const char *value)
{
  assert_int_equal(settings_set(s, name, value, value ? strlen(value) : 0), 0);
}

static void assert_value(const struct settings *s, const char *name,
                         const char *value)
{
  size_t len;
  const uint8_t *at = settings_get(s, name, &len);
  if (value == NULL) {
    assert_null(at);
    assert_int_equal(len, 0);
    return;
  }
  assert_non_null(at);
  assert_int_equal(len, strlen(value));
  assert_memory_equal(at, value, len + 1); /* with a zero after it */
}

static void assert_same(const struct settings *a, const struct settings *b)
{
  assert_int_equal(a->n, b->n);
  for (unsigned i = 0; i < a->n; i++) {
    assert_string_equal(a->items[i].name, b->items[i].name);
    assert_int_equal(a->items[i].len, b->items[i].len);
    assert_memory_equal(a->items[i].value, b->items[i].value, a->items[i].len);
  }
}

static void test_set_get_delete(void **state)
{
  struct settings s = {0};
  (void)state;
  assert_value(&s, "a", NULL);
  set(&s, "b", "2");
  set(&s, "a", "1");
  set(&s, "c", "");
  assert_value(&s, "a", "1");
  assert_value(&s, "b", "2");
  assert_value(&s, "c", "");
  set(&s, "b", "two");
  assert_value(&s, "b", "two");
  assert_int_equal(s.n, 3);
  set(&s, "b", NULL);
  set(&s, "b", NULL); /* deleting what is not there is no error */
  assert_value(&s, "b", NULL);
  assert_value(&s, "a", "1");
  assert_value(&s, "c", "");
  settings_clear(&s);
  assert_int_equal(s.n, 0);
}

#define NAMES 40u

static void test_against_a_model(void **state)
{
  char model[NAMES][8] = {""}, name[8];
  struct settings s = {0};
  uint64_t seed = 1;
  (void)state;
  for (unsigned step = 0; step < 4000; step++) {
    unsigned k = (unsigned)(random_next(&seed) % NAMES);
    snprintf(name, sizeof(name), "n%u", k);
    if (random_next(&seed) % 3 == 0)
      model[k][0] = 0;
    else
      snprintf(model[k], sizeof(model[k]), "v%u", step);
    set(&s, name, model[k][0] ? model[k] : NULL);
    k = (unsigned)(random_next(&seed) % NAMES);
    snprintf(name, sizeof(name), "n%u", k);
    assert_value(&s, name, model[k][0] ? model[k] : NULL);
    for (unsigned i = 1; i < s.n; i++)
      assert_true(strcmp(s.items[i - 1].name, s.items[i].name) < 0);
  }
  settings_clear(&s);
}

static void test_bound(void **state)
{
  struct settings s = {0};
  char name[16];
  (void)state;
  for (unsigned i = 0; i < SETTINGS_MAX; i++) {
    snprintf(name, sizeof(name), "n%u", i);
    set(&s, name, "x");
  }
  assert_int_equal(settings_set(&s, "one more", "x", 1), -1);
  assert_value(&s, "one more", NULL);
  set(&s, "n7", "changed"); /* none more */
  set(&s, "n8", NULL);
  set(&s, "one more", "x");
  settings_clear(&s);
}

/* ---- changes ----------------------------------------------------------- */

static void apply(struct settings *s, const char *name, const void *value,
                  size_t len)
{
  struct raft_body *body = settings_encode_change(name, value, len);
  assert_non_null(body);
  assert_true(raft_body_intact(body));
  assert_int_equal(settings_apply(s, body->data, body->len), 0);
  raft_body_unref(body);
}

static void test_change_round_trip(void **state)
{
  struct settings s = {0};
  size_t len;
  (void)state;
  apply(&s, "k", "\0\1\0", 3);
  const uint8_t *value = settings_get(&s, "k", &len);
  assert_int_equal(len, 3);
  assert_memory_equal(value, "\0\1\0", 3);
  apply(&s, "k", "", 0); /* empty is not deleted */
  assert_value(&s, "k", "");
  apply(&s, "k", NULL, 0);
  assert_value(&s, "k", NULL);
  settings_clear(&s);
}

static void test_change_every_length(void **state)
{
  struct settings s = {0};
  struct raft_body *body = settings_encode_change("name", "value", 5);
  (void)state;
  assert_non_null(body);
  for (size_t len = 0; len < body->len; len++) {
    uint8_t *cut = malloc(len + 1);
    assert_non_null(cut);
    memcpy(cut, body->data, len);
    assert_int_equal(settings_apply(&s, cut, len), -1);
    cut[len] = 0;
    free(cut);
  }
  uint8_t longer[64] = {0};
  memcpy(longer, body->data, body->len);
  assert_int_equal(settings_apply(&s, longer, (size_t)body->len + 1), -1);
  assert_int_equal(s.n, 0);
  raft_body_unref(body);
}

static void test_change_value_bound(void **state)
{
  static uint8_t value[SETTINGS_VALUE_MAX + 1];
  struct settings s = {0};
  (void)state;
  apply(&s, "big", value, SETTINGS_VALUE_MAX);
  struct raft_body *body = settings_encode_change("big", value, sizeof(value));
  assert_non_null(body);
  assert_int_equal(settings_apply(&s, body->data, body->len), -1);
  raft_body_unref(body);
  settings_clear(&s);
}

/* ---- all of it as bytes ------------------------------------------------ */

static void fill(struct settings *s)
{
  set(s, "ca-cert", "-----BEGIN CERTIFICATE-----");
  set(s, "invite/n2", "0123456789");
  set(s, "", "a name may be empty");
  set(s, "z", "");
}

static void test_pack_round_trip(void **state)
{
  struct settings s = {0}, back;
  uint8_t *data;
  size_t len;
  (void)state;
  assert_int_equal(settings_pack(&s, &data, &len), 0);
  assert_int_equal(settings_unpack(&back, data, len), 0);
  assert_int_equal(back.n, 0);
  free(data);
  fill(&s);
  assert_int_equal(settings_pack(&s, &data, &len), 0);
  assert_int_equal(settings_unpack(&back, data, len), 0);
  assert_same(&s, &back);
  free(data);
  settings_clear(&back);
  settings_clear(&s);
}

static void test_unpack_every_length(void **state)
{
  struct settings s = {0}, back;
  uint8_t *data;
  size_t len;
  (void)state;
  fill(&s);
  assert_int_equal(settings_pack(&s, &data, &len), 0);
  for (size_t n = 0; n < len; n++) {
    uint8_t *cut = malloc(n ? n : 1);
    assert_non_null(cut);
    memcpy(cut, data, n);
    assert_int_equal(settings_unpack(&back, cut, n), -1);
    assert_int_equal(back.n, 0);
    assert_null(back.items);
    free(cut);
  }
  uint8_t *longer = realloc(data, len + 1);
  assert_non_null(longer);
  longer[len] = 0;
  assert_int_equal(settings_unpack(&back, longer, len + 1), -1);
  free(longer);
  settings_clear(&s);
}

/* Counts that the bytes do not bear out, up to ones that nothing could. */
static void test_unpack_counts(void **state)
{
  static const uint32_t counts[] = {0,           1,           5,
                                    0x00010000u, 0x7fffffffu, 0xffffffffu};
  struct settings s = {0}, back;
  uint8_t *data;
  size_t len;
  (void)state;
  fill(&s);
  assert_int_equal(settings_pack(&s, &data, &len), 0);
  for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
    memcpy(data, &counts[i], 4);
    assert_int_equal(settings_unpack(&back, data, len), -1);
  }
  free(data);
  settings_clear(&s);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_set_get_delete),
      cmocka_unit_test(test_against_a_model),
      cmocka_unit_test(test_bound),
      cmocka_unit_test(test_change_round_trip),
      cmocka_unit_test(test_change_every_length),
      cmocka_unit_test(test_change_value_bound),
      cmocka_unit_test(test_pack_round_trip),
      cmocka_unit_test(test_unpack_every_length),
      cmocka_unit_test(test_unpack_counts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
