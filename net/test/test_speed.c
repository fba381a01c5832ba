/*
** test_speed.c: prints what messages, appends and fetches cost over TLS on
** loopback, both ends in one process and one loop (so each figure holds the
** work of both). It asserts that things arrive, never how fast.
*/
#include "common.h"

static int by_value(const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return x < y ? -1 : x > y;
}

/* One append of `bytes` and its answer at a time. */
static void round_trips(struct pair *p, size_t bytes, unsigned n)
{
  struct raft_entry entries[1];
  struct raft_body *body = body_of(bytes, 1);
  struct raft_message m = append_of(1, 2, 1, entries, body);
  uint64_t *took = calloc(n, sizeof *took), begin;

  assert_non_null(took);
  p->b.echo = true;
  for (unsigned i = 0; i < n; i++) {
    unsigned before = p->a.messages;

    begin = uv_hrtime();
    assert_true(net_send(p->a.net, &m));
    net_flush(p->a.net);
    while (p->a.messages == before)
      uv_run(&p->loop, UV_RUN_NOWAIT);
    took[i] = uv_hrtime() - begin;
  }
  qsort(took, n, sizeof *took, by_value);
  print_message(
      "  append of %7zu bytes and answer: p50 %6.1f us, p99 %6.1f us\n", bytes,
      (double)took[n / 2] / 1e3, (double)took[n - n / 100 - 1] / 1e3);
  p->b.echo = false;
  free(took);
  raft_body_unref(body);
}

static void stream(struct pair *p, size_t bytes, unsigned n)
{
  struct raft_entry entries[1];
  struct raft_body *body = body_of(bytes, 1);
  struct raft_message m = append_of(1, 2, 1, entries, body);
  unsigned goal = p->b.messages + n, sent = 0;
  uint64_t begin = uv_hrtime(), took;

  while (p->b.messages != goal) {
    /* A window, as raft has one. */
    while (sent < n && sent - (p->b.messages + n - goal) < 8192) {
      size_t unsent = (sent - (p->b.messages + n - goal)) * bytes;

      if (unsent > 8u << 20 || !net_send(p->a.net, &m)) break;
      sent++;
    }
    net_flush(p->a.net);
    uv_run(&p->loop, UV_RUN_NOWAIT);
  }
  took = uv_hrtime() - begin;
  print_message("  stream of %7zu byte appends: %8.0f/s, %6.0f MB/s\n", bytes,
                n / ((double)took / 1e9),
                (double)bytes * n / ((double)took / 1e3));
  raft_body_unref(body);
}

struct pull {
  struct pair *p;
  uint64_t asked, arrived, total;
};

#define ANSWER (256u * 1024u)

static void serve(struct net_request *request, const uint8_t *body, size_t len)
{
  static uint8_t answer[ANSWER];

  (void)body;
  (void)len;
  net_reply(request, 0, answer, sizeof answer);
}

static void arrived(void *ctx, int status, const uint8_t *body, size_t len);

static void ask(struct pull *pull)
{
  pull->asked += ANSWER;
  net_fetch(pull->p->a.net, 2, "next", 4, 60000, arrived, pull);
}

static void arrived(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct pull *pull = ctx;

  if (status) fail_msg("%.*s", (int)len, (const char *)body);
  assert_int_equal(len, ANSWER);
  pull->arrived += len;
  if (pull->asked < pull->total) ask(pull);
}

static void fetches(struct pair *p, uint64_t bytes, unsigned outstanding)
{
  struct pull pull = {.p = p, .total = bytes};
  uint64_t begin = uv_hrtime();

  p->b.serve = serve;
  while (outstanding-- > 0)
    ask(&pull);
  while (pull.arrived < bytes)
    uv_run(&p->loop, UV_RUN_NOWAIT);
  assert_int_equal(pull.arrived, bytes);
  p->b.serve = NULL;
  print_message("  fetches of %u KiB, %" PRIu64 " MiB: %6.0f MB/s\n",
                ANSWER >> 10, bytes >> 20,
                (double)bytes / ((double)(uv_hrtime() - begin) / 1e3));
}

static void figures(void **state)
{
  struct pair p;

  (void)state;
  pair_open(&p);
  round_trips(&p, 100, 2000);
  round_trips(&p, 4096, 2000);
  round_trips(&p, 1 << 20, 100);
  stream(&p, 100, 100000);
  stream(&p, 4096, 50000);
  stream(&p, 1 << 20, 400);
  fetches(&p, 256u << 20, 4);
  pair_close(&p);
}

int main(void)
{
  const struct CMUnitTest tests[] = {cmocka_unit_test(figures)};

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
