/*
** test_hostile.c: what strangers, and members gone mad, can do: refused with
** a line, at a bounded price, while others go on undisturbed. See also
** test_hello.c and test_crowd.c.
*/
#include "common.h"

struct one {
  uv_loop_t loop;
  struct node node, friend;
  unsigned connections; /* with its friend */
};

static void one_open(struct one *one)
{
  loop_open(&one->loop);
  node_open(&one->node, &one->loop, 1);
  befriend(&one->node, &one->friend);
  one->connections = connections_of(&one->node);
}

/* Nobody is there but its friend, who goes on talking to it. */
static bool alone(const struct one *one)
{
  return connections_of(&one->node) == one->connections;
}

static void one_close(struct one *one)
{
  UNTIL(&one->loop, alone(one));
  assert_int_equal(unverified(&one->node), 0);
  still_friends(&one->node, &one->friend);
  node_close(&one->node);
  node_close(&one->friend);
  loop_end(&one->loop);
}

static void dial(struct one *one, struct raw *raw)
{
  raw_open(raw, net_listening(one->node.net), NULL);
}

/* Up to HELLO; as a joiner with id 0. */
static void dial_as(struct one *one, struct raw *raw, struct tls_context *tls,
                    raft_id id)
{
  raw_open(raw, net_listening(one->node.net), tls);
  raw_greet(raw, &one->loop, id);
}

/* Until the node has closed the connection, and said why. */
static void until_refused(struct one *one, struct raw *raw, const char *why)
{
  UNTIL(&one->loop, raw_pump(raw) && raw->closed);
  UNTIL(&one->loop, alone(one));
  still_friends(&one->node, &one->friend);
  if (why && !heard_of(&one->node, why))
    fail_msg("not \"%s\" but \"%s\"", why, one->node.event);
  one->node.events_all[0] = 0;
  raw_end(raw);
}

/* ---- before the handshake ------------------------------------------------ */

static void random_bytes(void **state)
{
  uint8_t noise[3000];
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  for (unsigned i = 0; i < 20; i++) {
    struct tls_error error;

    assert_int_equal(tls_random(noise, sizeof noise, &error), 0);
    dial(&one, &raw);
    raw_put(&raw, noise, sizeof noise - i * 140);
    until_refused(&one, &raw, "handshake with 127.0.0.1:");
  }
  one_close(&one);
}

/* Records that look right and never end. */
static void an_endless_handshake(void **state)
{
  static uint8_t record[16389] = {22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc};
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->handshake_ms = 300;
  dial(&one, &raw);
  for (unsigned i = 0; i < 100 && !raw.closed; i++) {
    raw_put(&raw, record, sizeof record);
    turn(&one.loop);
  }
  until_refused(&one, &raw, "handshake with 127.0.0.1:");
  one_close(&one);
}

static void silence(void **state)
{
  struct one one;
  struct raw raw;
  uint64_t begin;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->handshake_ms = 100;
  dial(&one, &raw);
  begin = net_now();
  until_refused(&one, &raw, "the handshake took too long");
  assert_in_range(net_now() - begin, 50, 5000);
  /* With a certificate but half a handshake. */
  net_limits(one.node.net)->handshake_ms = 5000;
  raw_open(&raw, net_listening(one.node.net), identity(2));
  UNTIL(&one.loop, raw_pump(&raw) && tls_stream_ready(raw.tls));
  raw_end(&raw);
  one_close(&one);
}

static unsigned still_open(struct raw *crowd, unsigned n)
{
  unsigned open = 0;

  for (unsigned i = 0; i < n; i++) {
    raw_pump(&crowd[i]);
    if (!crowd[i].closed) open++;
  }
  return open;
}

/* From the address of a peer, which is not told from others there: the newest
   find a place, and those who are connected notice nothing. */
static void a_crowd(void **state)
{
  static struct raw crowd[200];
  struct raft_message m = {
      .type = RAFT_VOTE_REQUEST, .from = 1, .to = 2, .term = 1};
  struct pair p;

  (void)state;
  pair_open(&p);
  net_limits(p.a.net)->handshake_ms = 4000;
  for (unsigned i = 0; i < 200; i++) {
    raw_open(&crowd[i], net_listening(p.a.net), NULL);
    if (i % 50 == 0) turn(&p.loop);
    assert_true(unverified(&p.a) <= 64);
  }
  UNTIL(&p.loop, still_open(crowd, 200) == 64);
  assert_int_equal(unverified(&p.a), 64);
  assert_int_equal(refused(&p.a, NET_REFUSED_CROWD), 136);
  assert_true(heard_of(&p.a, "it made room for another of 64"));
  assert_true(net_send(p.a.net, &m));
  UNTIL(&p.loop, p.b.messages == 1);
  assert_int_equal(p.a.down[2], 0);
  /* Full as it is, a peer comes in. */
  net_connection_end(net_peer_find(p.b.net, 1)->dialled, NET_CUT, "a test");
  UNTIL(&p.loop, p.b.up[1] == 2);
  UNTIL(&p.loop, unverified(&p.a) == 0);
  for (unsigned i = 0; i < 200; i++)
    raw_end(&crowd[i]);
  pair_close(&p);
}

static void the_log_is_not_flooded(void **state)
{
  struct one one;
  struct raw raw;
  uint64_t begin;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->event_ms = 400;
  begin = net_now();
  for (unsigned i = 0; i < 30; i++) {
    dial(&one, &raw);
    raw_put(&raw, "GET / HTTP/1.0\r\n\r\n", 18);
    UNTIL(&one.loop, raw_pump(&raw) && raw.closed);
    raw_end(&raw);
  }
  assert_in_range(one.node.events, 1, 10 + (net_now() - begin) / 400 * 2);
  net_limits(one.node.net)->event_ms = 1;
  MEANWHILE(&one.loop, 5);
  dial(&one, &raw);
  raw_put(&raw, "GET / HTTP/1.0\r\n\r\n", 18);
  until_refused(&one, &raw, "more like it)");
  one_close(&one);
}

/* ---- without a certificate ----------------------------------------------- */

static void joiners_say_one_thing(void **state)
{
  struct tls_context *tls = joiner(true);
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  for (uint8_t type = 1; type < NET_FRAME_TYPES; type++) {
    if (type == NET_FRAME_JOIN) continue;
    dial_as(&one, &raw, tls, 0);
    raw_frame(&raw, type, NULL, 0);
    until_refused(&one, &raw, "frame is not allowed here");
  }
  assert_int_equal(one.node.requests, 0);
  dial_as(&one, &raw, tls, 0);
  raw_frame(&raw, NET_FRAME_JOIN, "one", 3);
  raw_frame(&raw, NET_FRAME_JOIN, "two", 3);
  until_refused(&one, &raw, "a join frame is not allowed here");
  assert_int_equal(one.node.requests, 1);
  /* The same after its answer. */
  dial_as(&one, &raw, tls, 0);
  raw_frame(&raw, NET_FRAME_JOIN, "one", 3);
  UNTIL(&one.loop, raw_pump(&raw) && raw.n_in >= NET_FRAME_HEADER + 16);
  assert_memory_equal(raw.in + NET_FRAME_HEADER + NET_ANSWER_HEAD, "pong", 4);
  raw_frame(&raw, NET_FRAME_JOIN, "two", 3);
  until_refused(&one, &raw, "a join frame is not allowed here");
  assert_int_equal(one.node.requests, 2);
  tls_context_unref(tls);
  one_close(&one);
}

static void joiners_have_little_time(void **state)
{
  static const uint8_t header[] = {200, 0, 0, 0, NET_FRAME_JOIN, 1, 0, 0};
  static const uint8_t large[] = {1, 0, 1, 0, NET_FRAME_JOIN, 1, 0, 0};
  struct tls_context *tls = joiner(true);
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->unverified_ms = 200;
  dial_as(&one, &raw, tls, 0);
  until_refused(&one, &raw, "its time without membership is over");
  /* A byte now and then does not prolong it. */
  dial_as(&one, &raw, tls, 0);
  raw_say(&raw, header, sizeof header);
  while (!raw.closed) {
    raw_pump(&raw);
    turn(&one.loop);
    if (!raw.closed) raw_say(&raw, "x", 1);
    MEANWHILE(&one.loop, 10);
  }
  until_refused(&one, &raw, "its time without membership is over");
  net_limits(one.node.net)->unverified_ms = 10000;
  dial_as(&one, &raw, tls, 0);
  raw_say(&raw, large, sizeof large);
  until_refused(&one, &raw, "a join frame of 65537 bytes");
  assert_int_equal(one.node.requests, 0);
  tls_context_unref(tls);
  one_close(&one);
}

/* A reply that comes when the joiner is gone. */
static void a_joiner_hangs_up(void **state)
{
  struct tls_context *tls = joiner(true);
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  one.node.hold = true;
  dial_as(&one, &raw, tls, 0);
  raw_frame(&raw, NET_FRAME_JOIN, "one", 3);
  UNTIL(&one.loop, one.node.held);
  raw_end(&raw);
  UNTIL(&one.loop, alone(&one));
  net_reply(one.node.held, 0, "gone", 4);
  one.node.held = NULL;
  tls_context_unref(tls);
  one_close(&one);
}

/* ---- members gone mad ---------------------------------------------------- */

static void headers_after_the_handshake(void **state)
{
  static const struct {
    uint8_t header[16];
    const char *why;
  } cases[] = {
      {{255, 255, 255, 255, NET_FRAME_RAFT, 1, 0, 0}, "of 4294967295 bytes"},
      {{1, 0, 128, 0, NET_FRAME_RAFT, 1, 0, 0}, "of 8388609 bytes"},
      {{9, 0, 1, 0, NET_FRAME_CALL, 1, 0, 0}, "of 65545 bytes"},
      {{9, 0, 1, 0, NET_FRAME_FETCH, 1, 0, 0}, "a fetch frame of 65545 bytes"},
      {{0, 0, 0, 0, NET_FRAME_CALL, 1, 0, 0}, "a malformed call"},
      {{0, 0, 0, 0, NET_FRAME_RAFT, 1, 0, 0}, "a malformed raft message"},
      {{0, 0, 0, 0, NET_FRAME_ANSWER, 1, 0, 0}, "is not allowed here"},
      {{0, 0, 0, 0, NET_FRAME_JOIN, 1, 0, 0}, "is not allowed here"},
      {{7, 0, 0, 0, NET_FRAME_FETCH, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7},
       "a malformed call"},
      {{0, 0, 0, 0, 0, 1, 0, 0}, "unknown frame type 0"},
      {{0, 0, 0, 0, 9, 1, 0, 0}, "unknown frame type 9"},
      {{0, 0, 0, 0, NET_FRAME_HELLO, 1, 0, 0}, "is not allowed here"},
      {{0, 0, 0, 0, NET_FRAME_GOODBYE, 1, 0, 0}, "a malformed goodbye"},
      {{0, 0, 0, 0, 99, 1, 0, 0}, "unknown frame type 99"},
      {{0, 0, 0, 0, NET_FRAME_RAFT, 2, 0, 0}, "unknown frame version 2"},
      {{0, 0, 0, 0, NET_FRAME_RAFT, 1, 1, 0}, "unknown frame flags"},
  };
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    dial_as(&one, &raw, identity(2), 2);
    raw_say(&raw, cases[i].header, 8 + (cases[i].header[0] & 7));
    until_refused(&one, &raw, cases[i].why);
  }
  assert_int_equal(one.node.messages + one.node.requests, 0);
  one_close(&one);
}

static void say_message(struct raw *raw, raft_id from, raft_id to)
{
  struct raft_message m = {
      .type = RAFT_VOTE_REQUEST, .from = from, .to = to, .term = 1};
  uint8_t out[1024];
  size_t n = raft_message_head_size(&m);

  assert_true(n <= sizeof out);
  raft_message_encode_head(&m, out);
  raw_frame(raw, NET_FRAME_RAFT, out, n);
}

static void false_names(void **state)
{
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  dial_as(&one, &raw, identity(2), 2);
  say_message(&raw, 2, 1);
  UNTIL(&one.loop, raw_pump(&raw) && one.node.messages == 1);
  say_message(&raw, 3, 1);
  until_refused(
      &one, &raw,
      "a message from node 0000000000000003 to node 0000000000000001");
  dial_as(&one, &raw, identity(2), 2);
  say_message(&raw, 2, 4);
  until_refused(
      &one, &raw,
      "a message from node 0000000000000002 to node 0000000000000004");
  assert_int_equal(one.node.messages, 1);
  /* One who shows this node's own certificate. */
  raw_open(&raw, net_listening(one.node.net), identity(1));
  raw_handshake(&raw, &one.loop);
  until_refused(&one, &raw, "it shows this node's own identity");
  one_close(&one);
}

static void half_frames(void **state)
{
  static const uint8_t whole[] = {100, 0, 0, 0, NET_FRAME_CALL, 1, 0, 0, 7, 7};
  static const uint8_t large[] = {0, 250, 0, 0, NET_FRAME_CALL, 1, 0, 0};
  uint64_t begin;
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->frame_ms = 150;
  for (size_t n = 1; n <= sizeof whole; n += 3) {
    dial_as(&one, &raw, identity(2), 2);
    raw_say(&raw, whole, n);
    until_refused(&one, &raw, "a frame was not completed in time");
  }
  /* A byte now and then does not prolong it. */
  dial_as(&one, &raw, identity(2), 2);
  raw_say(&raw, large, sizeof large);
  begin = net_now();
  while (!raw.closed && net_now() - begin < PATIENCE_MS) {
    raw_say(&raw, "x", 1);
    MEANWHILE(&one.loop, 5);
  }
  assert_in_range(net_now() - begin, 50, 5000);
  until_refused(&one, &raw, "a frame was not completed in time");
  /* Nothing at all is no half frame: raft has its own heartbeats. */
  dial_as(&one, &raw, identity(2), 2);
  UNTIL(&one.loop, raw_pump(&raw) && net_peer_find(one.node.net, 2));
  MEANWHILE(&one.loop, 300);
  raw_pump(&raw);
  assert_false(raw.closed);
  raw_end(&raw);
  one_close(&one);
}

static void say_fetch(struct raw *raw, uint64_t number)
{
  uint8_t body[NET_CALL_HEAD + 4] = {0};

  net_put64(body, number);
  raw_frame(raw, NET_FRAME_FETCH, body, sizeof body);
}

/* A connection brings fetches or everything else, never both. */
static void fetches_mixed_with_others(void **state)
{
  uint8_t body[NET_CALL_HEAD] = {0};
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  for (uint8_t type = 1; type < NET_FRAME_TYPES; type++) {
    if (type == NET_FRAME_FETCH || type == NET_FRAME_GOODBYE) continue;
    dial_as(&one, &raw, identity(2), 2);
    say_fetch(&raw, 1);
    UNTIL(&one.loop, raw_pump(&raw) && one.node.requests);
    one.node.requests = 0;
    assert_int_equal(net_peer_find(one.node.net, 2)->n_inbound, 0);
    assert_int_equal(net_peer_find(one.node.net, 2)->n_fetchers, 1);
    raw_frame(&raw, type, body, sizeof body);
    until_refused(&one, &raw, "frame is not allowed here");
  }
  dial_as(&one, &raw, identity(2), 2);
  say_message(&raw, 2, 1);
  say_fetch(&raw, 1);
  until_refused(&one, &raw, "a fetch frame is not allowed here");
  assert_int_equal(one.node.messages, 1);
  assert_int_equal(one.node.requests + one.node.down[2], 0);
  one_close(&one);
}

/* Half a fetch, and half of one behind a whole one. */
static void half_fetches(void **state)
{
  static const uint8_t half[] = {0, 250, 0, 0, NET_FRAME_FETCH, 1, 0, 0, 7};
  uint64_t begin;
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->frame_ms = 150;
  for (unsigned whole = 0; whole < 2; whole++) {
    dial_as(&one, &raw, identity(2), 2);
    if (whole) say_fetch(&raw, 1);
    raw_say(&raw, half, sizeof half);
    begin = net_now();
    while (!raw.closed && net_now() - begin < PATIENCE_MS) {
      raw_say(&raw, "x", 1); /* does not prolong it */
      MEANWHILE(&one.loop, 5);
    }
    assert_in_range(net_now() - begin, 50, 5000);
    until_refused(&one, &raw, "a frame was not completed in time");
  }
  assert_int_equal(one.node.requests, 1);
  one_close(&one);
}

/* The two newest of one peer are kept; its other connections do not count. */
static void many_fetchers_of_one(void **state)
{
  struct raw raws[8], member;
  struct one one;

  (void)state;
  one_open(&one);
  dial_as(&one, &member, identity(2), 2);
  say_message(&member, 2, 1);
  UNTIL(&one.loop, raw_pump(&member) && one.node.messages == 1);
  for (unsigned i = 0; i < 8; i++) {
    dial_as(&one, &raws[i], identity(2), 2);
    say_fetch(&raws[i], i);
    UNTIL(&one.loop, raw_pump(&raws[i]) && one.node.requests == i + 1);
    assert_int_equal(net_peer_find(one.node.net, 2)->n_fetchers, MIN(i + 1, 2));
    assert_int_equal(net_peer_find(one.node.net, 2)->n_inbound, 1);
  }
  for (unsigned i = 0; i < 6; i++)
    UNTIL(&one.loop, raw_pump(&raws[i]) && raws[i].closed);
  MEANWHILE(&one.loop, 20);
  for (unsigned i = 6; i < 8; i++) {
    raw_pump(&raws[i]);
    assert_false(raws[i].closed);
  }
  raw_pump(&member);
  assert_false(member.closed);
  for (unsigned i = 0; i < 8; i++)
    raw_end(&raws[i]);
  UNTIL(&one.loop, net_peer_find(one.node.net, 2)->n_fetchers == 0);
  assert_int_equal(one.node.down[2], 0);
  raw_end(&member);
  one_close(&one);
}

static void serve_much(struct net_request *request, const uint8_t *body,
                       size_t len)
{
  static const uint8_t much[NET_ANSWER_MAX];

  (void)body;
  (void)len;
  net_reply(request, 0, much, sizeof much);
}

/* One that asks for megabytes and reads none of them. */
static void a_fetcher_that_does_not_read(void **state)
{
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  one.node.serve = serve_much;
  net_limits(one.node.net)->unsent_max = 8u * 1024u * 1024u;
  dial_as(&one, &raw, identity(2), 2);
  for (unsigned i = 0; i < 100; i++) {
    const uint8_t *out;

    say_fetch(&raw, i);
    while (tls_stream_output(raw.tls, &out)) {
      ssize_t n =
          send(raw.fd, out, tls_stream_output(raw.tls, &out), MSG_NOSIGNAL);

      assert_true(n > 0);
      tls_stream_sent(raw.tls, (size_t)n);
    }
    turn(&one.loop);
    if (alone(&one)) break;
    assert_true(net_connection_unsent(one.node.net->hub.connections) <=
                9u * 1024u * 1024u);
  }
  until_refused(&one, &raw, "an answer could not be queued");
  one_close(&one);
}

static void too_many_requests(void **state)
{
  static uint8_t frames[1100 * 16];
  struct net_request *all[1024];
  uint64_t received = 0;
  unsigned n = 0;
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  one.node.hold = true;
  dial_as(&one, &raw, identity(2), 2);
  for (unsigned i = 0; i < 1100; i++) {
    net_frame_header(frames + i * 16, NET_FRAME_CALL, 8);
    net_put64(frames + i * 16 + 8, i);
  }
  for (unsigned i = 0; i < 1100; i++) {
    raw_say(&raw, frames + i * 16, 16);
    if (i < 1024) {
      UNTIL(&one.loop, raw_pump(&raw) && one.node.requests == i + 1);
      all[n++] = one.node.held;
    }
  }
  one.node.held = NULL;
  while (received < (1100 - 1024) * (8 + 12)) {
    raw_pump(&raw);
    turn(&one.loop);
    received += raw.n_in;
    raw.n_in = 0;
  }
  assert_int_equal(one.node.requests, 1024);
  raw_end(&raw);
  UNTIL(&one.loop, alone(&one));
  while (n > 0)
    net_reply(all[--n], 0, NULL, 0);
  one_close(&one);
}

/* A member that connects again and again keeps its newest connections. */
static void many_connections_of_one(void **state)
{
  struct raw raws[10];
  struct one one;

  (void)state;
  one_open(&one);
  for (unsigned i = 0; i < 10; i++) {
    dial_as(&one, &raws[i], identity(2), 2);
    say_message(&raws[i], 2, 1);
    UNTIL(&one.loop, raw_pump(&raws[i]) && one.node.messages == i + 1);
    assert_true(net_peer_find(one.node.net, 2)->n_inbound <= NET_INBOUND_MAX);
  }
  for (unsigned i = 0; i < 6; i++)
    UNTIL(&one.loop, raw_pump(&raws[i]) && raws[i].closed);
  MEANWHILE(&one.loop, 20);
  for (unsigned i = 6; i < 10; i++) {
    raw_pump(&raws[i]);
    assert_false(raws[i].closed);
  }
  for (unsigned i = 0; i < 10; i++)
    raw_end(&raws[i]);
  one_close(&one);
}

/* Well-framed rubbish from a member. */
static void rubbish_in_frames(void **state)
{
  uint8_t body[600];
  struct one one;
  struct raw raw;

  (void)state;
  one_open(&one);
  for (unsigned round = 0; round < 60; round++) {
    struct tls_error error;

    dial_as(&one, &raw, identity(2), 2);
    for (unsigned i = 0; i < 20 && !raw.closed; i++) {
      uint8_t type = (uint8_t)(1 + (round + i * i) % (NET_FRAME_TYPES - 1));
      size_t n;

      assert_int_equal(tls_random(body, sizeof body, &error), 0);
      n = (size_t)(body[0] | body[1] << 8) %
          MIN(sizeof body, (size_t)net_frame_bound(type));
      raw_frame(&raw, type, body, n);
      turn(&one.loop);
      raw_pump(&raw);
    }
    raw_end(&raw);
    UNTIL(&one.loop, alone(&one));
  }
  assert_int_equal(one.node.messages, 0);
  one_close(&one);
}

/* ---- a server gone mad --------------------------------------------------- */

/* A socket at which the node will look for node 2, and the node's peers. */
static int listen_raw(struct one *one, struct raft_configuration *peers)
{
  struct node *both[] = {&one->friend, &one->node};
  struct sockaddr_storage at = {0};
  struct sockaddr_in *in = (struct sockaddr_in *)&at;
  socklen_t len = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  in->sin_family = AF_INET;
  in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof *in), 0);
  assert_int_equal(listen(fd, 10), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
  *peers = configuration_of(both, 2);
  peers->members[1].id = 2;
  net_format(&at, peers->members[1].address, RAFT_ADDRESS_MAX);
  net_set_peers(one->node.net, peers);
  return fd;
}

static void accept_raw(struct raw *raw, int listener, uv_loop_t *loop,
                       struct tls_context *tls)
{
  memset(raw, 0, sizeof *raw);
  UNTIL(loop, (raw->fd = accept4(listener, NULL, NULL,
                                 SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0);
  raw->tls = tls_stream_new(tls, true);
  raw_handshake(raw, loop);
  UNTIL(loop, raw_pump(raw) && raw_was_greeted(raw));
  raw_hello_of(raw, CLUSTER, 2, 0);
}

static void servers_gone_mad(void **state)
{
  struct raft_configuration peers;
  struct outcome done = {0};
  uint8_t answer[20] = {0};
  struct one one;
  struct raw raw;
  int listener;

  (void)state;
  one_open(&one);
  listener = listen_raw(&one, &peers);
  for (unsigned round = 0; round < 5; round++) {
    accept_raw(&raw, listener, &one.loop, identity(2));
    UNTIL(&one.loop, raw_pump(&raw) && connected(&one.node, 2));
    if (round == 0) raw_frame(&raw, NET_FRAME_ANSWER, "short", 5);
    if (round == 1) raw_frame(&raw, NET_FRAME_CALL, "12345678x", 9);
    if (round == 2) raw_frame(&raw, NET_FRAME_FETCH, "12345678x", 9);
    if (round == 3) say_message(&raw, 3, 1);
    if (round == 4) {
      net_put32(answer + 8, 0x80000000u); /* a status below -1 */
      raw_frame(&raw, NET_FRAME_ANSWER, answer, sizeof answer);
    }
    UNTIL(&one.loop, raw_pump(&raw) && raw.closed);
    raw_end(&raw);
  }
  assert_true(heard_of(&one.node, "a malformed answer"));
  assert_true(heard_of(&one.node, "a call frame is not allowed here"));
  assert_true(heard_of(&one.node, "a fetch frame is not allowed here"));
  assert_true(heard_of(
      &one.node,
      "a message from node 0000000000000003 to node 0000000000000001"));
  /* An answer to nothing is ignored; one that is too early ends a call. */
  accept_raw(&raw, listener, &one.loop, identity(2));
  UNTIL(&one.loop, raw_pump(&raw) && connected(&one.node, 2));
  net_put32(answer + 8, 0);
  raw_frame(&raw, NET_FRAME_ANSWER, answer, sizeof answer);
  net_call(one.node.net, 2, "x", 1, 200, on_done, &done);
  UNTIL(&one.loop, raw_pump(&raw) && done.times == 1);
  assert_string_equal(done.text, "no answer in time");
  assert_true(connected(&one.node, 2));
  raw_end(&raw);
  peers.n--;
  net_set_peers(one.node.net, &peers);
  close(listener);
  one_close(&one);
}

/* What one who is fetched from can do wrong, and what is heard of it then. */
static void misbehave(struct raw *raw, unsigned round, uint64_t number)
{
  static const uint8_t large[] = {13, 0, 17, 0, NET_FRAME_ANSWER, 1, 0, 0};
  static const uint8_t half[] = {0, 0, 16, 0, NET_FRAME_ANSWER, 1, 0, 0, 7};
  uint8_t answer[NET_ANSWER_HEAD + 4] = {0};

  switch (round) {
  case 0: raw_frame(raw, NET_FRAME_ANSWER, "short", 5); break;
  case 1: say_message(raw, 2, 1); break;
  case 2: raw_frame(raw, NET_FRAME_FETCH, answer, sizeof answer); break;
  case 3: raw_say(raw, large, sizeof large); break;
  case 4: raw_say(raw, half, sizeof half); break;
  case 5:
    raw_say(raw, half, sizeof half);
    shutdown(raw->fd, SHUT_RDWR);
    break;
  default:
    /* The answer to something else is ignored, and the right one taken. */
    net_put64(answer, number + 1);
    raw_frame(raw, NET_FRAME_ANSWER, answer, sizeof answer);
    net_put64(answer, number);
    memcpy(answer + NET_ANSWER_HEAD, "good", 4);
    raw_frame(raw, NET_FRAME_ANSWER, answer, sizeof answer);
  }
}

static void answerers_gone_mad(void **state)
{
  static const char *const heard[] = {
      "the connection was lost: a malformed answer",
      "the connection was lost: a raft frame is not allowed here",
      "the connection was lost: a fetch frame is not allowed here",
      "the connection was lost: an answer frame of 1114125 bytes",
      "the connection was lost: a frame was not completed in time",
      "the connection was lost: closed by the other side",
      "good"};
  struct raft_configuration peers;
  struct raw raw, member;
  struct one one;
  int listener;

  (void)state;
  one_open(&one);
  net_limits(one.node.net)->frame_ms = 100;
  listener = listen_raw(&one, &peers);
  accept_raw(&member, listener, &one.loop, identity(2));
  UNTIL(&one.loop, raw_pump(&member) && connected(&one.node, 2));
  for (unsigned round = 0; round < 7; round++) {
    struct outcome done = {0};

    net_fetch(one.node.net, 2, "x", 1, 60000, on_done, &done);
    accept_raw(&raw, listener, &one.loop, identity(2));
    UNTIL(&one.loop, raw_pump(&raw) && raw.n_in == NET_FRAME_HEADER + 9);
    assert_int_equal(raw.in[4], NET_FRAME_FETCH);
    misbehave(&raw, round, net_get64(raw.in + NET_FRAME_HEADER));
    UNTIL(&one.loop, raw_pump(&raw) && done.times);
    if (!strstr(done.text, heard[round])) fail_msg("%s", done.text);
    assert_int_equal(done.status, round == 6 ? 0 : -1);
    raw_end(&raw);
  }
  assert_true(connected(&one.node, 2));
  assert_int_equal(one.node.down[2] + one.node.messages, 0);
  raw_end(&member);
  peers.n--;
  net_set_peers(one.node.net, &peers);
  close(listener);
  one_close(&one);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(random_bytes),
      cmocka_unit_test(an_endless_handshake),
      cmocka_unit_test(silence),
      cmocka_unit_test(a_crowd),
      cmocka_unit_test(the_log_is_not_flooded),
      cmocka_unit_test(joiners_say_one_thing),
      cmocka_unit_test(joiners_have_little_time),
      cmocka_unit_test(a_joiner_hangs_up),
      cmocka_unit_test(headers_after_the_handshake),
      cmocka_unit_test(false_names),
      cmocka_unit_test(half_frames),
      cmocka_unit_test(too_many_requests),
      cmocka_unit_test(many_connections_of_one),
      cmocka_unit_test(rubbish_in_frames),
      cmocka_unit_test(fetches_mixed_with_others),
      cmocka_unit_test(half_fetches),
      cmocka_unit_test(many_fetchers_of_one),
      cmocka_unit_test(a_fetcher_that_does_not_read),
      cmocka_unit_test(servers_gone_mad),
      cmocka_unit_test(answerers_gone_mad),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
