/*
** test_net.c: nets that talk to each other in one loop: every raft message,
** up and down, reconnects, changes of peers, identities.
*/
#include "common.h"

/* ---- raft messages ------------------------------------------------------- */

static struct raft_message filled(uint8_t type, raft_id from, raft_id to)
{
  struct raft_message m = {.type = type, .from = from, .to = to};

  m.incarnation = 77;
  m.term = 5;
  m.prev_index = 8;
  m.prev_term = 4;
  m.commit = 6;
  m.match = 8;
  m.granted = true;
  m.read = 12;
  m.read_index = 7;
  return m;
}

static void each_message_arrives(void **state)
{
  struct pair p;

  (void)state;
  pair_open(&p);
  for (uint8_t type = RAFT_PREVOTE_REQUEST; type <= RAFT_READ_RESPONSE;
       type++) {
    struct raft_message there = filled(type, 1, 2), back = filled(type, 2, 1);

    assert_true(net_send(p.a.net, &there));
    assert_true(net_send(p.b.net, &back));
    net_flush(p.a.net);
    net_flush(p.b.net);
    UNTIL(&p.loop, p.b.by_type[type] == 1 && p.a.by_type[type] == 1);
    assert_int_equal(p.b.last.from, 1);
    assert_int_equal(p.b.last.term, 5);
    assert_int_equal(p.b.last.incarnation, 77);
  }
  assert_int_equal(p.a.events + p.b.events, 0);
  pair_close(&p);
}

/* Posts: in order, of any length up to the bound, from either side. */
static unsigned posts;
static size_t posted_bytes;

static void count_post(void *ctx, raft_id from, const uint8_t *body, size_t len)
{
  (void)ctx;
  assert_int_equal(from, 1);
  assert_int_equal(body[0], posts % 256);
  assert_int_equal(body[len - 1], (posts + 1) % 256);
  posts++;
  posted_bytes += len;
}

static void posts_arrive_in_order(void **state)
{
  static uint8_t middle[NET_POST_MAX];
  static const size_t lengths[] = {0, 1, 1000, 100000, NET_POST_MAX - 2, 7};
  size_t sum = 0;
  struct pair p;

  (void)state;
  posts = 0;
  posted_bytes = 0;
  pair_open(&p);
  p.b.net->callbacks.posted = count_post;
  for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    uint8_t first = (uint8_t)i, last = (uint8_t)(i + 1);
    struct iovec parts[3] = {{&first, 1}, {middle, lengths[i]}, {&last, 1}};

    assert_true(net_post(p.a.net, 2, parts, 3));
    sum += lengths[i] + 2;
    parts[1].iov_len = NET_POST_MAX - 1;
    assert_false(net_post(p.a.net, 2, parts, 3));
    assert_false(net_post(p.a.net, 3, parts, 1));
  }
  net_flush(p.a.net);
  UNTIL(&p.loop, posts == sizeof lengths / sizeof *lengths);
  assert_int_equal(posted_bytes, sum);
  pair_close(&p);
}

static void large_appends_arrive_intact(void **state)
{
  struct raft_entry entries[4];
  struct raft_message message;
  struct raft_body *body = body_of(1024 * 1024, 3);
  struct pair p;

  (void)state;
  pair_open(&p);
  for (unsigned n = 1; n <= 4; n++) {
    message = append_of(1, 2, n, entries, body);
    assert_true(net_send(p.a.net, &message));
    net_flush(p.a.net);
    UNTIL(&p.loop, p.b.messages == n);
    assert_int_equal(p.b.last.n_entries, n);
    for (unsigned i = 0; i < n; i++) {
      assert_int_equal(p.b.last.entries[i].body->len, body->len);
      assert_memory_equal(p.b.last.entries[i].body->data, body->data,
                          body->len);
    }
  }
  raft_body_unref(body);
  pair_close(&p);
}

/* Many small entries, and many small messages before one flush. */
static void small_things_arrive_in_order(void **state)
{
  struct raft_entry entries[RAFT_MESSAGE_ENTRIES_MAX];
  struct raft_body *body = body_of(100, 9);
  struct raft_message message = append_of(1, 2, 512, entries, body);
  struct pair p;

  (void)state;
  pair_open(&p);
  for (raft_term term = 3; term < 1003; term++) {
    message.term = term;
    message.n_entries = (uint32_t)(term * 7 % 513);
    assert_true(net_send(p.a.net, &message));
  }
  net_flush(p.a.net);
  UNTIL(&p.loop, p.b.messages == 1000);
  assert_int_equal(p.b.last.term, 1002);
  assert_int_equal(p.b.last.n_entries, 1002 * 7 % 513);
  raft_body_unref(body);
  pair_close(&p);
}

static void too_much_is_dropped(void **state)
{
  struct raft_entry entries[1];
  struct raft_body *body = body_of(1024 * 1024, 3);
  struct raft_message message = append_of(1, 2, 1, entries, body);
  struct pair p;
  unsigned sent = 0;

  (void)state;
  pair_open(&p);
  while (sent < 1000 && net_send(p.a.net, &message))
    sent++;
  assert_in_range(sent, 62, 64);
  UNTIL(&p.loop, p.b.messages == sent);
  assert_true(net_send(p.a.net, &message));
  UNTIL(&p.loop, p.b.messages == sent + 1);
  raft_body_unref(body);
  pair_close(&p);
}

static void nobody_there(void **state)
{
  struct raft_message message = filled(RAFT_VOTE_REQUEST, 1, 9);
  struct net_peer_status status;
  struct pair p;

  (void)state;
  pair_open(&p);
  assert_false(net_send(p.a.net, &message));
  message.to = 1;
  assert_false(net_send(p.a.net, &message));
  assert_false(net_peer_status(p.a.net, 9, &status));
  assert_true(net_peer_status(p.a.net, 2, &status));
  assert_true(status.connected);
  message.to = 2;
  assert_true(net_send(p.a.net, &message));
  UNTIL(&p.loop, p.b.messages == 1);
  assert_true(net_peer_status(p.a.net, 2, &status));
  assert_true(status.sent_bytes > 0);
  assert_true(net_peer_status(p.b.net, 1, &status));
  assert_true(status.received_bytes > 0 && status.last_received > 0);
  pair_close(&p);
}

static void three_nodes(void **state)
{
  struct node nodes[3], *all[3] = {&nodes[0], &nodes[1], &nodes[2]};
  uv_loop_t loop;

  (void)state;
  loop_open(&loop);
  for (unsigned i = 0; i < 3; i++)
    node_open(all[i], &loop, i + 1);
  introduce(all, 3);
  for (raft_id from = 1; from <= 3; from++)
    for (raft_id to = 1; to <= 3; to++) {
      struct raft_message m = filled(RAFT_HEARTBEAT_REQUEST, from, to);

      if (from != to) assert_true(net_send(all[from - 1]->net, &m));
    }
  for (unsigned i = 0; i < 3; i++)
    UNTIL(&loop, nodes[i].messages == 2);
  for (unsigned i = 0; i < 3; i++)
    node_close(all[i]);
  loop_end(&loop);
}

/* ---- up, down, reconnects ------------------------------------------------ */

static void up_down_and_up_again(void **state)
{
  struct raft_message m = filled(RAFT_VOTE_REQUEST, 1, 2);
  char address[RAFT_ADDRESS_MAX];
  struct node *both[2];
  struct pair p;

  (void)state;
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  assert_int_equal(p.a.up[2], 1);
  assert_int_equal(p.a.down[2], 0);
  snprintf(address, sizeof address, "%s", net_listening(p.b.net));
  node_close(&p.b);
  UNTIL(&p.loop, p.a.down[2] == 1 && !connected(&p.a, 2));
  assert_false(net_send(p.a.net, &m));
  /* It was refused a few times before the other side listens again. */
  UNTIL(&p.loop, heard_of(&p.a, "connection refused"));
  node_open_on(&p.b, &p.loop, 2, address);
  introduce(both, 2);
  UNTIL(&p.loop, p.a.up[2] == 2);
  assert_true(net_send(p.a.net, &m));
  UNTIL(&p.loop, p.b.messages == 1);
  assert_int_equal(p.a.down[2], 1);
  pair_close(&p);
}

/* A process that dies has the kernel close its sockets in both directions:
   that is one down, and it comes at once. */
static void one_down_for_two_connections(void **state)
{
  struct raft_message there = filled(RAFT_HEARTBEAT_REQUEST, 1, 2);
  struct raft_message back = filled(RAFT_READ_REQUEST, 2, 1);
  struct pair p;

  (void)state;
  pair_open(&p);
  assert_true(net_send(p.a.net, &there) && net_send(p.b.net, &back));
  UNTIL(&p.loop, p.a.messages == 1 && p.b.messages == 1);
  node_close(&p.b);
  UNTIL(&p.loop, p.a.down[2] == 1);
  MEANWHILE(&p.loop, 100);
  assert_int_equal(p.a.down[2], 1);
  pair_close(&p);
}

/* The inbound connection alone is closed: down, and up when it is back. */
static void either_direction_counts(void **state)
{
  struct raft_configuration none = {0}, all;
  struct node *both[2];
  struct pair p;

  (void)state;
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  all = configuration_of(both, 2);
  net_connection_end(net_peer_find(p.b.net, 1)->dialled, NET_CUT, "a test");
  UNTIL(&p.loop, p.a.down[2] == 1);
  UNTIL(&p.loop, p.a.up[2] == 2);
  assert_true(connected(&p.a, 2));
  /* What this side cuts is no hint about the other one. */
  net_set_peers(p.a.net, &none);
  UNTIL(&p.loop, !connected(&p.a, 2));
  UNTIL(&p.loop, p.b.down[1] > 0);
  assert_int_equal(p.a.down[2], 1);
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop, connected(&p.a, 2));
  pair_close(&p);
}

/* ---- peers --------------------------------------------------------------- */

static void an_address_changes(void **state)
{
  struct raft_configuration all;
  struct node c, *both[2];
  struct pair p;

  (void)state;
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &c;
  node_open(&c, &p.loop, 2); /* node 2 at another address */
  all = configuration_of(both, 2);
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop, c.by_type[0] == 0 && p.a.up[2] == 2);
  assert_int_equal(p.a.down[2], 0);
  struct raft_message m = filled(RAFT_VOTE_REQUEST, 1, 2);
  assert_true(net_send(p.a.net, &m));
  UNTIL(&p.loop, c.messages == 1);
  assert_int_equal(p.b.messages, 0);
  node_close(&c);
  pair_close(&p);
}

static void the_wrong_node_at_an_address(void **state)
{
  struct raft_configuration all;
  struct node *both[2];
  struct pair p;

  (void)state;
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  all = configuration_of(both, 2);
  all.members[1].id = 3;
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop,
        heard_of(&p.a, "it shows the certificate of node 0000000000000002"));
  assert_false(connected(&p.a, 3));
  assert_int_equal(p.a.up[3], 0);
  pair_close(&p);
}

static void a_stranger_is_refused(void **state)
{
  struct pair p;
  struct raw raw;

  (void)state;
  pair_open(&p);
  p.a.banned[7] = true;
  raw_open(&raw, net_listening(p.a.net), identity(7));
  raw_handshake(&raw, &p.loop);
  raw_hello_of(&raw, CLUSTER, 7, NET_PURPOSE_PEER);
  UNTIL(&p.loop, raw_pump(&raw) && raw.closed);
  assert_true(heard_of(&p.a, "refused node 0000000000000007"));
  assert_true(heard_of(&p.a, "not a member"));
  raw_end(&raw);
  pair_close(&p);
}

static void a_member_is_removed(void **state)
{
  struct raft_configuration all;
  struct node *both[2];
  struct pair p;

  (void)state;
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  all = configuration_of(both, 2);
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  p.a.banned[2] = true;
  all.n = 1;
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop, heard_of(&p.a, "refused node 0000000000000002"));
  UNTIL(&p.loop, net_peer_find(p.a.net, 2) == NULL);
  pair_close(&p);
}

/* Who has no name for its owner is told by its id, as in other tests. */
static void nodes_by_name(void **state)
{
  struct pair p;

  (void)state;
  pair_open(&p);
  p.a.named = 2;
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  node_close(&p.b);
  UNTIL(&p.loop, heard_of(&p.a, "lost berlin at 127.0.0.1:"));
  UNTIL(&p.loop, heard_of(&p.a, "berlin closed its connection from 127"));
  UNTIL(&p.loop, heard_of(&p.a, "cannot connect to berlin at 127.0.0.1:"));
  pair_close(&p);
}

static void another_cluster_is_refused(void **state)
{
  struct authority other = {0};
  struct tls_context *foreign;
  struct tls_error error;
  struct pair p;
  struct raw raw;

  (void)state;
  assert_int_equal(tls_make_ca(CLUSTER, &other.cert, &other.key, &error), 0);
  foreign = context_of(&other, 2);
  pair_open(&p);
  raw_open(&raw, net_listening(p.a.net), foreign);
  UNTIL(&p.loop, raw_pump(&raw) && raw.closed);
  UNTIL(&p.loop, heard_of(&p.a, "handshake with"));
  raw_end(&raw);
  tls_context_unref(foreign);
  tls_free_text(other.cert);
  tls_free_text(other.key);
  pair_close(&p);
}

static void a_new_certificate(void **state)
{
  struct tls_context *renewed = context_of(authority(), 1);
  struct pair p;

  (void)state;
  pair_open(&p);
  net_set_tls(p.a.net, renewed);
  tls_context_unref(renewed);
  net_connection_end(net_peer_find(p.a.net, 2)->dialled, NET_CUT, "a test");
  UNTIL(&p.loop, p.a.up[2] == 2);
  pair_close(&p);
}

/* ---- listening ----------------------------------------------------------- */

static void try_listen(const char *listen, const char *complaint)
{
  struct net_callbacks callbacks = {0};
  struct net_options options = {
      .self = 1, .tls = identity(1), .listen = listen};
  struct net_error error = {{0}, 0};
  struct net *net = NULL;
  uv_loop_t loop;

  loop_open(&loop);
  options.loop = &loop;
  options.callbacks = &callbacks;
  assert_int_equal(net_open(&options, &net, &error), -1);
  assert_null(net);
  if (!strstr(error.text, complaint)) fail_msg("%s", error.text);
  assert_non_null(strstr(error.text, listen));
  assert_null(strchr(error.text, '\n'));
  loop_end(&loop);
}

static void listen_errors(void **state)
{
  struct pair p;

  (void)state;
  pair_open(&p);
  try_listen(net_listening(p.a.net), "address already in use");
  try_listen("127.0.0.1", "not an address");
  try_listen("127.0.0.1:99999", "not an address");
  try_listen("192.0.2.1:0", "address not available");
  try_listen("no-such-host.invalid:0", "no-such-host.invalid:0: ");
  pair_close(&p);
}

static void names_are_resolved(void **state)
{
  struct raft_configuration all;
  struct node *both[2];
  struct pair p;

  (void)state;
  need_localhost();
  pair_open(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  all = configuration_of(both, 2);
  snprintf(all.members[1].address, sizeof all.members[1].address, "localhost%s",
           strrchr(net_listening(p.b.net), ':'));
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop, p.a.up[2] == 2);
  snprintf(all.members[1].address, sizeof all.members[1].address,
           "no-such-host.invalid:1");
  net_set_peers(p.a.net, &all);
  UNTIL(&p.loop, heard_of(&p.a, "at no-such-host.invalid:1: "));
  pair_close(&p);
}

/* Closed at every stage of its life, often in the middle of something. */
static void closing_at_any_moment(void **state)
{
  (void)state;
  for (unsigned turns = 0; turns < 40; turns++) {
    struct node a, b, *both[] = {&a, &b};
    struct raft_configuration all;
    uv_loop_t loop;

    loop_open(&loop);
    node_open(&a, &loop, 1);
    node_open(&b, &loop, 2);
    all = configuration_of(both, 2);
    if (turns % 3 == 0)
      snprintf(all.members[1].address, sizeof all.members[1].address,
               "localhost%s", strrchr(net_listening(b.net), ':'));
    net_set_peers(a.net, &all);
    net_set_peers(b.net, &all);
    for (unsigned i = 0; i < turns; i++) {
      uv_run(&loop, UV_RUN_NOWAIT);
    }
    node_close(&a);
    node_close(&b);
    loop_end(&loop);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_message_arrives),
      cmocka_unit_test(posts_arrive_in_order),
      cmocka_unit_test(large_appends_arrive_intact),
      cmocka_unit_test(small_things_arrive_in_order),
      cmocka_unit_test(too_much_is_dropped),
      cmocka_unit_test(nobody_there),
      cmocka_unit_test(three_nodes),
      cmocka_unit_test(up_down_and_up_again),
      cmocka_unit_test(one_down_for_two_connections),
      cmocka_unit_test(either_direction_counts),
      cmocka_unit_test(an_address_changes),
      cmocka_unit_test(the_wrong_node_at_an_address),
      cmocka_unit_test(a_stranger_is_refused),
      cmocka_unit_test(a_member_is_removed),
      cmocka_unit_test(nodes_by_name),
      cmocka_unit_test(another_cluster_is_refused),
      cmocka_unit_test(a_new_certificate),
      cmocka_unit_test(listen_errors),
      cmocka_unit_test(names_are_resolved),
      cmocka_unit_test(closing_at_any_moment),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
