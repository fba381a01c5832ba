/*
** test_speed.c: prints what messages, appends and fetches cost over TLS on
** loopback, both ends in one process and one loop (so each figure holds the
** work of both); and what strangers cost: handshakes, made by another process,
** and memory. It asserts that things arrive, never how fast.
*/
#include "common.h"

#include <malloc.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

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

/* ---- strangers ----------------------------------------------------------- */

/* In a process of its own: handshakes and HELLO, one after the other, of four
   connections at a time. */
static void shake_hands(const char *address, struct tls_context *tls,
                        raft_id id, uint64_t until)
{
  struct raw raws[4];
  bool said[4];

  for (unsigned i = 0; i < 4; i++) {
    raw_open(&raws[i], address, tls);
    said[i] = false;
  }
  while (net_now() < until) {
    struct pollfd polled[4];

    for (unsigned i = 0; i < 4; i++) {
      raw_pump(&raws[i]);
      if (!said[i] && tls_stream_ready(raws[i].tls)) {
        raw_hello_of(&raws[i], CLUSTER, id,
                     id ? NET_PURPOSE_PEER : NET_PURPOSE_JOIN);
        said[i] = true;
      }
      if (raws[i].closed || raw_was_greeted(&raws[i])) {
        raw_end(&raws[i]);
        raw_open(&raws[i], address, tls);
        said[i] = false;
        raw_pump(&raws[i]);
      }
      polled[i] = (struct pollfd){.fd = raws[i].fd, .events = POLLIN};
    }
    poll(polled, 4, 1);
  }
}

static uint64_t cpu_us(void)
{
  struct timespec t;

  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void handshakes(const char *what, struct tls_context *tls, raft_id id)
{
  struct net_counters before, after;
  uint64_t begin, cpu;
  struct node node;
  uv_loop_t loop;
  int status = 0;
  pid_t child;
  double n, s;

  loop_open(&loop);
  node_open(&node, &loop, 1);
  child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    shake_hands(net_listening(node.net), tls, id, net_now() + 2500);
    _exit(0);
  }
  MEANWHILE(&loop, 300);
  net_counters(node.net, &before);
  begin = net_now();
  cpu = cpu_us();
  MEANWHILE(&loop, 2000);
  cpu = cpu_us() - cpu;
  s = (double)(net_now() - begin) / 1e3;
  net_counters(node.net, &after);
  while (waitpid(child, &status, WNOHANG) == 0)
    turn(&loop);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  n = (double)(after.handshakes - before.handshakes);
  assert_true(n > 0);
  print_message("  handshakes %s: %6.0f/s, %4.0f us of the node each\n", what,
                n / s, (double)cpu / n);
  UNTIL(&loop, unverified(&node) == 0);
  node_close(&node);
  loop_end(&loop);
}

#define STRANGERS 400

/* Memory that a node has for each of many who have said so much. */
static void memory_each(struct node *node, const char *what,
                        const uint8_t *said, size_t n)
{
  static struct raw crowd[STRANGERS];
  size_t before = mallinfo2().uordblks, after;

  for (unsigned i = 0; i < STRANGERS; i++) {
    raw_open(&crowd[i], net_listening(node->net), NULL);
    if (n) raw_put(&crowd[i], said, n);
    turn(node->loop);
  }
  UNTIL(node->loop, unverified(node) == STRANGERS);
  MEANWHILE(node->loop, 200);
  after = mallinfo2().uordblks;
  print_message("  memory of a stranger %s: %zu bytes\n", what,
                (after - before) / STRANGERS);
  for (unsigned i = 0; i < STRANGERS; i++)
    raw_end(&crowd[i]);
  UNTIL(node->loop, unverified(node) == 0);
}

static void strangers(void **state)
{
  struct tls_stream *stream = tls_stream_new(identity(2), false);
  struct tls_context *tls = joiner(true);
  const uint8_t *hello;
  struct node node;
  uv_loop_t loop;
  size_t n;

  (void)state;
  handshakes("with a certificate", identity(2), 2);
  handshakes("without one       ", tls, 0);
  loop_open(&loop);
  node_open(&node, &loop, 1);
  net_limits(node.net)->unverified_max = STRANGERS;
  net_limits(node.net)->handshake_ms = 60000;
  n = tls_stream_output(stream, &hello);
  memory_each(&node, "to warm up", hello, n);
  memory_each(&node, "that says nothing", NULL, 0);
  memory_each(&node, "with half of its hello", hello, n / 2);
  memory_each(&node, "that was answered and goes on no further", hello, n);
  tls_stream_free(stream);
  tls_context_unref(tls);
  node_close(&node);
  loop_end(&loop);
}

int main(void)
{
  const struct CMUnitTest tests[] = {cmocka_unit_test(figures),
                                     cmocka_unit_test(strangers)};

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
