/*
** test_call.c: calls and their answers, requests that outlive their
** connections, and requests without a net.
*/
#include "common.h"

static void a_call_is_answered(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.status = 7;
  net_call(p.a.net, 2, "ping", 4, 5000, on_done, &done);
  UNTIL(&p.loop, done.times == 1);
  assert_int_equal(done.status, 7);
  assert_string_equal(done.text, "pong");
  assert_int_equal(p.b.request_from, 1);
  assert_int_equal(p.b.request_len, 4);
  assert_memory_equal(p.b.request_body, "ping", 4);
  MEANWHILE(&p.loop, 20);
  assert_int_equal(done.times, 1);
  pair_close(&p);
}

static void bodies_up_to_the_bound(void **state)
{
  static uint8_t body[NET_ANSWER_MAX + 1];
  struct outcome done[3] = {{0}};
  struct pair p;

  (void)state;
  pair_open(&p);
  memset(body, 'x', sizeof body);
  net_call(p.a.net, 2, body, NET_REQUEST_MAX, 5000, on_done, &done[0]);
  net_call(p.a.net, 2, NULL, 0, 5000, on_done, &done[1]);
  net_call(p.a.net, 2, body, NET_REQUEST_MAX + 1, 5000, on_done, &done[2]);
  assert_int_equal(done[2].times, 0);
  UNTIL(&p.loop, done[0].times && done[1].times && done[2].times);
  assert_int_equal(done[0].status, 0);
  assert_int_equal(done[1].status, 0);
  assert_int_equal(done[2].status, -1);
  assert_string_equal(done[2].text, "the request is too long");
  p.b.hold = true;
  net_call(p.a.net, 2, body, 3, 5000, on_done, &done[1]);
  UNTIL(&p.loop, p.b.held);
  net_reply(p.b.held, 0, body, NET_ANSWER_MAX);
  UNTIL(&p.loop, done[1].times == 2);
  assert_int_equal(done[1].status, 0);
  assert_int_equal(done[1].len, NET_ANSWER_MAX);
  /* An answer that is too long is an error of the one who answers. */
  p.b.held = NULL;
  net_call(p.a.net, 2, body, 3, 5000, on_done, &done[0]);
  UNTIL(&p.loop, p.b.held);
  net_reply(p.b.held, 0, body, NET_ANSWER_MAX + 1);
  p.b.held = NULL;
  UNTIL(&p.loop, done[0].times == 2);
  assert_int_equal(done[0].status, -1);
  assert_string_equal(done[0].text, "the answer is too long");
  pair_close(&p);
}

/* No answer is lost in silence: its asker hears that the connection ended. */
static void an_answer_that_cannot_be_queued(void **state)
{
  static const uint8_t body[2000];
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold = true;
  net_call(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  net_limits(p.b.net)->unsent_max = sizeof body;
  net_reply(p.b.held, 0, body, sizeof body);
  p.b.held = NULL;
  UNTIL(&p.loop, done.times == 1);
  assert_int_equal(done.status, -1);
  assert_string_equal(done.text, "the connection was lost");
  assert_true(heard_of(&p.b, "an answer could not be queued"));
  pair_close(&p);
}

static void calls_that_cannot_be_made(void **state)
{
  struct outcome done[2] = {{0}};
  struct pair p;

  (void)state;
  pair_open(&p);
  net_call(p.a.net, 1, "x", 1, 5000, on_done, &done[0]);
  net_call(p.a.net, 9, "x", 1, 5000, on_done, &done[1]);
  assert_int_equal(done[0].times + done[1].times, 0); /* N1 */
  UNTIL(&p.loop, done[0].times && done[1].times);
  assert_int_equal(done[0].status, -1);
  assert_string_equal(done[0].text, "a request to this node itself");
  assert_int_equal(done[1].status, -1);
  assert_string_equal(done[1].text, "there is no connection to that node");
  pair_close(&p);
}

static void a_call_times_out(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold = true;
  net_call(p.a.net, 2, "x", 1, 50, on_done, &done);
  UNTIL(&p.loop, done.times == 1);
  assert_int_equal(done.status, -1);
  assert_string_equal(done.text, "no answer in time");
  /* The late answer finds nobody and does no harm. */
  UNTIL(&p.loop, p.b.held);
  net_reply(p.b.held, 0, "late", 4);
  p.b.held = NULL;
  p.b.hold = false;
  net_call(p.a.net, 2, "y", 1, 5000, on_done, &done);
  UNTIL(&p.loop, done.times == 2);
  assert_string_equal(done.text, "pong");
  pair_close(&p);
}

/* Each of the many gets its own answer. */
static void many_calls(void **state)
{
  static struct outcome done[1100];
  unsigned good = 0, refused = 0, answered = 0;
  struct pair p;

  (void)state;
  pair_open(&p);
  memset(done, 0, sizeof done);
  for (unsigned i = 0; i < 1100; i++)
    net_call(p.a.net, 2, &i, sizeof i, 10000, on_done, &done[i]);
  while (answered < 1100) {
    turn(&p.loop);
    answered = 0;
    for (unsigned i = 0; i < 1100; i++)
      answered += done[i].times;
  }
  for (unsigned i = 0; i < 1100; i++) {
    assert_int_equal(done[i].times, 1);
    if (done[i].status == 0)
      good++;
    else
      refused++;
  }
  assert_int_equal(good, 1024);
  assert_int_equal(refused, 76);
  pair_close(&p);
}

static void retry(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct node *node = ctx;

  (void)status;
  (void)body;
  (void)len;
  if (++node->messages < 50) net_call(node->net, 9, "x", 1, 5000, retry, node);
}

/* An owner that tries again from inside the callback does not stop the loop. */
static void retries_from_the_callback(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  net_call(p.a.net, 9, "x", 1, 5000, retry, &p.a);
  net_call(p.a.net, 2, "x", 1, 5000, on_done, &done);
  UNTIL(&p.loop, done.times == 1);
  UNTIL(&p.loop, p.a.messages == 50);
  pair_close(&p);
}

static void the_connection_dies(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold = true;
  net_call(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  net_connection_end(net_peer_find(p.a.net, 2)->dialled, NET_CUT, "a test");
  UNTIL(&p.loop, done.times == 1);
  assert_int_equal(done.status, -1);
  assert_string_equal(done.text, "the connection was lost");
  UNTIL(&p.loop, p.b.down[1] == 1);
  net_reply(p.b.held, 0, "too late", 8);
  p.b.held = NULL;
  pair_close(&p);
}

/* The net that has the request is closed first; then comes the reply. */
static void the_net_dies(void **state)
{
  struct outcome done = {0};
  struct net_request *held;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold = true;
  net_call(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  held = p.b.held;
  p.b.held = NULL;
  node_close(&p.b);
  UNTIL(&p.loop, done.times == 1);
  assert_int_equal(done.status, -1);
  assert_string_equal(done.text, "the node is shutting down");
  net_reply(held, 0, "too late", 8);
  pair_close(&p);
}

static void the_caller_closes(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold = true;
  net_call(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  node_close(&p.a);
  assert_int_equal(done.times, 1);
  assert_int_equal(done.status, -1);
  pair_close(&p);
}

/* ---- joining ------------------------------------------------------------- */

struct asker {
  pthread_t thread;
  struct tls_context *tls;
  struct net_identity self; /* cluster 0: that of all */
  const char *address;
  unsigned timeout_ms;
  size_t len;
  int status;
  uint8_t *body;
  size_t body_len;
  struct net_error error;
  uint64_t took;
  bool call, raise_before, pipe_after;
  _Atomic bool over;
};

static bool pipe_pending(void)
{
  sigset_t pending;

  sigpending(&pending);
  return sigismember(&pending, SIGPIPE) == 1;
}

static void *ask(void *arg)
{
  static uint8_t request[NET_REQUEST_MAX + 1];
  struct asker *asker = arg;
  uint64_t begin = net_now();

  memset(request, 'j', sizeof request);
  if (!asker->self.cluster) asker->self.cluster = CLUSTER;
  if (asker->raise_before) pthread_kill(pthread_self(), SIGPIPE);
  asker->status = (asker->call ? net_call_once : net_join)(
      asker->tls, &asker->self, asker->address, request, asker->len,
      asker->timeout_ms, &asker->body, &asker->body_len, &asker->error);
  asker->pipe_after = pipe_pending();
  asker->took = net_now() - begin;
  asker->over = true;
  return NULL;
}

static void asker_run(struct asker *asker, struct tls_context *tls,
                      const char *address)
{
  asker->tls = tls;
  asker->address = address;
  asker->timeout_ms = 10000;
  asker->len = 100;
  assert_int_equal(pthread_create(&asker->thread, NULL, ask, asker), 0);
}

static void asker_start(struct asker *asker, struct tls_context *tls,
                        const char *address, bool raise_before)
{
  memset(asker, 0, sizeof *asker);
  asker->raise_before = raise_before;
  asker_run(asker, tls, address);
}

/* Calls as node 3. */
static void caller_start(struct asker *asker, const char *address)
{
  memset(asker, 0, sizeof *asker);
  asker->call = true;
  asker->self.id = 3;
  asker_run(asker, tls_context_ref(identity(3)), address);
}

static void asker_end(struct asker *asker)
{
  pthread_join(asker->thread, NULL);
  tls_context_unref(asker->tls);
  free(asker->body);
}

static void a_join_is_answered(void **state)
{
  struct asker asker;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.a.status = 3;
  asker_start(&asker, joiner(true), net_listening(p.a.net), false);
  UNTIL(&p.loop, asker.over);
  assert_int_equal(asker.status, 3);
  assert_int_equal(asker.body_len, 4);
  assert_memory_equal(asker.body, "pong", 4);
  assert_int_equal(p.a.request_from, 0);
  assert_int_equal(p.a.request_len, 100);
  asker_end(&asker);
  assert_int_equal(p.a.request_identity, 0);
  assert_int_equal(strncmp(p.a.request_remote, "127.0.0.1:", 10), 0);
  UNTIL(&p.loop, unverified(&p.a) == 0);
  pair_close(&p);
}

/* The other side takes it for the node of that certificate, and may still have
   something to say to that. */
static void a_call_without_a_net(void **state)
{
  struct raft_message late = {.type = RAFT_HEARTBEAT_RESPONSE,
                              .from = 1,
                              .to = 3,
                              .incarnation = 1,
                              .term = 1};
  struct asker asker;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.a.hold = true;
  caller_start(&asker, net_listening(p.a.net));
  UNTIL(&p.loop, p.a.held);
  assert_int_equal(p.a.request_from, 3);
  assert_int_equal(p.a.request_len, 100);
  assert_true(net_send(p.a.net, &late));
  net_flush(p.a.net);
  net_reply(p.a.held, 2, "pong", 4);
  p.a.held = NULL;
  UNTIL(&p.loop, asker.over);
  if (asker.status < 0) fail_msg("%s", asker.error.text);
  assert_int_equal(asker.status, 2);
  assert_int_equal(asker.body_len, 4);
  assert_memory_equal(asker.body, "pong", 4);
  asker_end(&asker);
  pair_close(&p);
}

static void a_call_of_one_who_is_no_member(void **state)
{
  struct asker asker;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.a.banned[3] = true;
  caller_start(&asker, net_listening(p.a.net));
  UNTIL(&p.loop, asker.over);
  assert_int_equal(asker.status, -1);
  assert_non_null(strstr(asker.error.text, "refused: not a member"));
  assert_int_equal(asker.error.goodbye, NET_GOODBYE_STRANGER);
  assert_int_equal(p.a.requests, 0);
  asker_end(&asker);
  pair_close(&p);
}

static void a_join_by_name_and_of_full_length(void **state)
{
  char address[RAFT_ADDRESS_MAX];
  struct asker asker;
  struct pair p;

  (void)state;
  need_localhost();
  pair_open(&p);
  snprintf(address, sizeof address, "localhost%s",
           strrchr(net_listening(p.a.net), ':'));
  memset(&asker, 0, sizeof asker);
  asker.tls = joiner(true);
  asker.address = address;
  asker.timeout_ms = 10000;
  asker.len = NET_REQUEST_MAX;
  assert_int_equal(pthread_create(&asker.thread, NULL, ask, &asker), 0);
  UNTIL(&p.loop, asker.over);
  if (asker.status) fail_msg("%s", asker.error.text);
  assert_int_equal(p.a.request_len, NET_REQUEST_MAX);
  asker_end(&asker);
  pair_close(&p);
}

static void a_join_with_the_wrong_fingerprint(void **state)
{
  struct asker asker;
  struct pair p;

  (void)state;
  pair_open(&p);
  asker_start(&asker, joiner(false), net_listening(p.a.net), false);
  UNTIL(&p.loop, asker.over);
  assert_int_equal(asker.status, -1);
  assert_null(asker.body);
  print_message("  wrong fingerprint: %s\n", asker.error.text);
  assert_non_null(strstr(asker.error.text, "token's CA"));
  assert_non_null(strstr(asker.error.text, net_listening(p.a.net)));
  assert_int_equal(p.a.requests, 0);
  asker_end(&asker);
  UNTIL(&p.loop, heard_of(&p.a, "handshake with"));
  pair_close(&p);
}

static void a_join_that_nobody_answers(void **state)
{
  struct asker asker;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.a.hold = true;
  memset(&asker, 0, sizeof asker);
  asker.tls = joiner(true);
  asker.address = net_listening(p.a.net);
  asker.timeout_ms = 200;
  assert_int_equal(pthread_create(&asker.thread, NULL, ask, &asker), 0);
  UNTIL(&p.loop, asker.over);
  assert_int_equal(asker.status, -1);
  assert_non_null(strstr(asker.error.text, "no answer in time"));
  assert_in_range(asker.took, 150, 5000);
  asker_end(&asker);
  pair_close(&p);
}

static void joins_that_go_nowhere(void **state)
{
  static const struct {
    const char *address, *complaint;
  } cases[] = {
      {"127.0.0.1:1", "connection refused"},
      {"nonsense", "not an address"},
      {"no-such-host.invalid:5", "no-such-host.invalid:5: "},
  };
  static const struct net_identity self = {.cluster = CLUSTER};
  struct tls_context *tls = joiner(true);
  struct net_error error;
  uint8_t *body;
  size_t len;

  (void)state;
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(net_join(tls, &self, cases[i].address, "j", 1, 10000,
                              &body, &len, &error),
                     -1);
    assert_null(body);
    if (!strstr(error.text, cases[i].complaint)) fail_msg("%s", error.text);
  }
  assert_int_equal(net_join(tls, &self, "127.0.0.1:1", "j", NET_REQUEST_MAX + 1,
                            10, &body, &len, &error),
                   -1);
  tls_context_unref(tls);
}

/* A SIGPIPE that came meanwhile is taken away, and the thread, in which it
   would end the process, goes on; one that was pending before stays. */
static void join_and_signals(void **state)
{
  struct asker asker;
  struct pair p;
  sigset_t pipe;

  (void)state;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pair_open(&p);
  p.a.hold = true;
  for (unsigned before = 0; before < 2; before++) {
    if (!before) pthread_sigmask(SIG_UNBLOCK, &pipe, NULL);
    asker_start(&asker, joiner(true), net_listening(p.a.net), before);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    UNTIL(&p.loop, p.a.held);
    assert_int_equal(pthread_kill(asker.thread, SIGPIPE), 0);
    net_reply(p.a.held, 0, NULL, 0);
    p.a.held = NULL;
    UNTIL(&p.loop, asker.over);
    assert_int_equal(asker.status, 0);
    assert_int_equal(asker.pipe_after, before);
    asker_end(&asker);
  }
  pair_close(&p);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_call_is_answered),
      cmocka_unit_test(bodies_up_to_the_bound),
      cmocka_unit_test(an_answer_that_cannot_be_queued),
      cmocka_unit_test(calls_that_cannot_be_made),
      cmocka_unit_test(a_call_times_out),
      cmocka_unit_test(many_calls),
      cmocka_unit_test(retries_from_the_callback),
      cmocka_unit_test(the_connection_dies),
      cmocka_unit_test(the_net_dies),
      cmocka_unit_test(the_caller_closes),
      cmocka_unit_test(a_join_is_answered),
      cmocka_unit_test(a_call_without_a_net),
      cmocka_unit_test(a_call_of_one_who_is_no_member),
      cmocka_unit_test(a_join_by_name_and_of_full_length),
      cmocka_unit_test(a_join_with_the_wrong_fingerprint),
      cmocka_unit_test(a_join_that_nobody_answers),
      cmocka_unit_test(joins_that_go_nowhere),
      cmocka_unit_test(join_and_signals),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
