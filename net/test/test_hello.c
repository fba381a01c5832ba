/*
** test_hello.c: who is let in: certificates that are not right, HELLO and
** GOODBYE, strangers, nodes that were removed, certificates that expire. The
** node that is attacked has a friend all the time, which notices nothing.
*/
#include "pki.h"

#define ALPN "\x09quorate/1"
#define URI "URI:quorate:1122334455667788/0000000000000002"
#define DAY 86400l

struct site {
  uv_loop_t loop;
  struct node node, friend;
  unsigned connections;
};

static void site_open(struct site *site)
{
  loop_open(&site->loop);
  node_open(&site->node, &site->loop, 1);
  befriend(&site->node, &site->friend);
  site->connections = connections_of(&site->node);
}

static void site_close(struct site *site)
{
  UNTIL(&site->loop, connections_of(&site->node) == site->connections);
  still_friends(&site->node, &site->friend);
  assert_int_equal(unverified(&site->node), 0);
  node_close(&site->node);
  node_close(&site->friend);
  loop_end(&site->loop);
}

/* One more is counted, and a line says why. */
static void counted(struct site *site, enum net_refusal refusal,
                    uint64_t before, const char *line)
{
  UNTIL(&site->loop, refused(&site->node, refusal) == before + 1);
  UNTIL(&site->loop, connections_of(&site->node) == site->connections);
  still_friends(&site->node, &site->friend);
  if (!heard_of(&site->node, line))
    fail_msg("not \"%s\" but \"%s\"", line, site->node.event);
  site->node.events_all[0] = 0;
}

/* ---- certificates -------------------------------------------------------- */

static void certificates_that_are_not_right(void **state)
{
  struct authority other = {0};
  struct tls_error error;
  struct site site;

  (void)state;
  assert_int_equal(tls_make_ca(CLUSTER, &other.cert, &other.key, &error), 0);
  const struct {
    struct wish wish;
    int version;
    const char *alpn;
    enum net_refusal refusal;
    const char *line;
  } cases[] = {
      {{&other, URI, -60, DAY}, TLS1_3_VERSION, ALPN, NET_REFUSED_FOREIGN, ""},
      {{authority(), URI, -DAY, -60},
       TLS1_3_VERSION,
       ALPN,
       NET_REFUSED_EXPIRED,
       "expired"},
      {{authority(), URI, 3600, DAY},
       TLS1_3_VERSION,
       ALPN,
       NET_REFUSED_EARLY,
       "not yet valid"},
      {{authority(), NULL, -60, DAY},
       TLS1_3_VERSION,
       ALPN,
       NET_REFUSED_NAME,
       ""},
      {{authority(), "DNS:n2.example.org", -60, DAY},
       TLS1_3_VERSION,
       ALPN,
       NET_REFUSED_NAME,
       ""},
      {{authority(), "URI:quorate:1122334455667789/0000000000000002", -60, DAY},
       TLS1_3_VERSION,
       ALPN,
       NET_REFUSED_NAME,
       "cluster"},
      {{authority(), URI, -60, DAY},
       TLS1_2_VERSION,
       ALPN,
       NET_REFUSED_PROTOCOL,
       ""},
      {{authority(), URI, -60, DAY},
       TLS1_3_VERSION,
       "\x02h2",
       NET_REFUSED_PROTOCOL,
       ""},
      {{authority(), URI, -60, DAY},
       TLS1_3_VERSION,
       NULL,
       NET_REFUSED_PROTOCOL,
       ""},
  };

  site_open(&site);
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t before = refused(&site.node, cases[i].refusal);
    char line[64] = "handshake with 127.0.0.1:";
    struct client client;

    client_open(&client, net_listening(site.node.net), &cases[i].wish,
                cases[i].version, cases[i].alpn);
    UNTIL(&site.loop, client_pump(&client) && client.closed);
    client_end(&client);
    if (!heard_of(&site.node, line)) fail_msg("%s", site.node.event);
    if (getenv("NET_TEST_VERBOSE")) print_message("  %s\n", site.node.event);
    counted(&site, cases[i].refusal, before, cases[i].line);
  }
  assert_int_equal(site.node.up[2] + site.node.messages, 0);
  site_close(&site);
  tls_free_text(other.cert);
  tls_free_text(other.key);
}

/* ---- HELLO --------------------------------------------------------------- */

static void handshake(struct site *site, struct raw *raw, raft_id id)
{
  raw_open(raw, net_listening(site->node.net), identity(id));
  raw_handshake(raw, &site->loop);
}

/* The node closes it, and the last it says is a GOODBYE with that code. */
static void dismissed(struct site *site, struct raw *raw, unsigned code)
{
  UNTIL(&site->loop, raw_pump(raw) && raw->closed);
  assert_true(raw->n_in > NET_FRAME_HEADER);
  assert_int_equal(raw->in[4], NET_FRAME_GOODBYE);
  assert_int_equal(raw->in[NET_FRAME_HEADER], code);
  assert_int_equal(net_get32(raw->in) + NET_FRAME_HEADER, raw->n_in);
  raw_end(raw);
}

static void closed(struct site *site, struct raw *raw)
{
  UNTIL(&site->loop, raw_pump(raw) && raw->closed);
  assert_int_equal(raw->n_in, 0);
  raw_end(raw);
}

static void hello_must_be_true(void **state)
{
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER + 1, 2, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_CLUSTER);
  counted(&site, NET_REFUSED_CLUSTER, 0,
          "refused node 0000000000000002 from 127.0.0.1:");
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 3, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_IDENTITY);
  counted(&site, NET_REFUSED_IDENTITY, 0,
          "node 0000000000000003 with the certificate of node "
          "0000000000000002");
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 0, NET_PURPOSE_JOIN);
  dismissed(&site, &raw, NET_GOODBYE_IDENTITY);
  counted(&site, NET_REFUSED_IDENTITY, 1, "node 0000000000000000 with");
  /* This node's own certificate is refused before anything is said. */
  handshake(&site, &raw, 1);
  dismissed(&site, &raw, NET_GOODBYE_IDENTITY);
  counted(&site, NET_REFUSED_IDENTITY, 2, "this node's own identity");
  assert_int_equal(site.node.up[2] + site.node.up[3], 0);
  site_close(&site);
}

/* Without a certificate one may be nobody but a joiner. */
static void hello_without_a_certificate(void **state)
{
  struct tls_context *tls = joiner(true);
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  raw_open(&raw, net_listening(site.node.net), tls);
  raw_handshake(&raw, &site.loop);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_IDENTITY);
  counted(&site, NET_REFUSED_IDENTITY, 0, "refused a connection from 127.");
  raw_open(&raw, net_listening(site.node.net), tls);
  raw_handshake(&raw, &site.loop);
  raw_hello_of(&raw, CLUSTER, 0, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_STRANGER);
  counted(&site, NET_REFUSED_STRANGER, 0, "it shows no certificate");
  tls_context_unref(tls);
  site_close(&site);
}

static void say_hello(struct raw *raw, const uint8_t *body, size_t n)
{
  raw_frame(raw, NET_FRAME_HELLO, body, n);
}

static void hello_of_another_form(void **state)
{
  uint8_t body[120] = {'q', 'u', 'o', 'r', 2, 0, 0, 0, 9, 0, 0, 0, 1};
  struct site site;
  struct raw raw;

  (void)state;
  net_put64(body + 16, CLUSTER);
  net_put64(body + 24, 2);
  site_open(&site);
  handshake(&site, &raw, 2);
  say_hello(&raw, body, 40);
  dismissed(&site, &raw, NET_GOODBYE_VERSION);
  counted(&site, NET_REFUSED_VERSION, 0, "protocol versions 2 to 9 at a node");
  /* What later versions add is ignored, if they still speak this one. */
  body[4] = 1;
  handshake(&site, &raw, 2);
  say_hello(&raw, body, sizeof body);
  UNTIL(&site.loop, raw_pump(&raw) && raw_was_greeted(&raw));
  raw_end(&raw);
  UNTIL(&site.loop, connections_of(&site.node) == site.connections);
  for (unsigned i = 0; i < 5; i++) {
    handshake(&site, &raw, 2);
    body[0] = i == 0 ? 'Q' : 'q'; /* not a HELLO at all */
    body[12] = i == 1 ? 7 : 1;    /* a purpose that there is not */
    body[4] = i == 2 ? 10 : 1;    /* from 10 to 9 */
    if (i < 3) say_hello(&raw, body, 40);
    if (i == 3) say_hello(&raw, body, 39);
    if (i == 4) say_hello(&raw, body, 0);
    closed(&site, &raw);
    counted(&site, NET_REFUSED_MALFORMED, i, "a malformed hello");
  }
  site_close(&site);
}

static void nothing_comes_before_hello(void **state)
{
  struct tls_context *tls = joiner(true);
  uint8_t body[20] = {0};
  uint64_t before = 0;
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  for (unsigned round = 0; round < 2; round++)
    for (uint8_t type = 1; type < NET_FRAME_TYPES; type++) {
      if (type == NET_FRAME_HELLO) continue;
      raw_open(&raw, net_listening(site.node.net), round ? tls : identity(2));
      raw_handshake(&raw, &site.loop);
      raw_frame(&raw, type, body, sizeof body);
      closed(&site, &raw);
      counted(&site, NET_REFUSED_FRAME, before++, "frame is not allowed here");
    }
  assert_int_equal(site.node.requests + site.node.messages, 0);
  /* Nor is there much time for it, behind a handshake that has its own. */
  raw_open(&raw, net_listening(site.node.net), identity(2));
  UNTIL(&site.loop, unverified(&site.node) == 1);
  net_limits(site.node.net)->handshake_ms = 150;
  raw_handshake(&raw, &site.loop);
  closed(&site, &raw);
  counted(&site, NET_REFUSED_SLOW, 0, "no hello in time");
  tls_context_unref(tls);
  site_close(&site);
}

/* Two clusters under one CA, whose certificates name no cluster, would meet so:
   neither lets the other in. */
static void two_clusters_under_one_ca(void **state)
{
  struct raft_configuration peers;
  struct site site;
  struct node far;

  (void)state;
  site_open(&site);
  node_open(&far, &site.loop, 2);
  far.net->self.cluster = CLUSTER + 1;
  peers = configuration_of((struct node *[]){&site.friend, &far}, 2);
  net_set_peers(site.node.net, &peers);
  UNTIL(&site.loop, refused(&far, NET_REFUSED_CLUSTER) > 0);
  UNTIL(&site.loop, site.node.refused_code == NET_GOODBYE_CLUSTER);
  assert_non_null(strstr(site.node.refused, "a node of cluster 11223344556677"
                                            "88 at cluster 1122334455667789"));
  assert_int_equal(site.node.up[2] + far.up[1], 0);
  peers.n = 1;
  net_set_peers(site.node.net, &peers);
  node_close(&far);
  site_close(&site);
}

/* ---- what servers say ---------------------------------------------------- */

static int listen_raw(char *address)
{
  struct sockaddr_storage at = {.ss_family = AF_INET};
  struct sockaddr_in *in = (struct sockaddr_in *)&at;
  socklen_t len = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof *in), 0);
  assert_int_equal(listen(fd, 10), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
  net_format(&at, address, RAFT_ADDRESS_MAX);
  return fd;
}

/* The handshake as node 2, and the client's HELLO. */
static void serve_raw(struct raw *raw, int listener, uv_loop_t *loop)
{
  memset(raw, 0, sizeof *raw);
  UNTIL(loop, (raw->fd = accept4(listener, NULL, NULL,
                                 SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0);
  raw->tls = tls_stream_new(identity(2), true);
  raw_handshake(raw, loop);
  UNTIL(loop, raw_pump(raw) && raw_was_greeted(raw));
}

/* A dialled connection is used only after a HELLO that is true. */
static void servers_must_say_who_they_are(void **state)
{
  static const char *const lines[] = {
      "a node of cluster 1122334455667789 at cluster 1122334455667788",
      "node 0000000000000003 with the certificate of node 0000000000000002",
      "a malformed hello",
      "a raft frame is not allowed here",
      "a malformed goodbye",
      "refused: go ?away",
      "no hello in time"};
  struct raft_configuration peers;
  struct raft_message m = {
      .type = RAFT_VOTE_REQUEST, .from = 1, .to = 2, .term = 1};
  struct site site;
  struct raw raw;
  int listener;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->backoff_max_ms = 40;
  peers = configuration_of((struct node *[]){&site.friend, &site.node}, 2);
  peers.members[1].id = 2;
  listener = listen_raw(peers.members[1].address);
  net_set_peers(site.node.net, &peers);
  for (unsigned i = 0; i < 7; i++) {
    net_limits(site.node.net)->handshake_ms = i < 6 ? PATIENCE_MS : 1000;
    serve_raw(&raw, listener, &site.loop);
    assert_false(connected(&site.node, 2));
    assert_false(net_send(site.node.net, &m));
    if (i == 0) raw_hello_of(&raw, CLUSTER + 1, 2, 0);
    if (i == 1) raw_hello_of(&raw, CLUSTER, 3, 0);
    if (i == 2) raw_frame(&raw, NET_FRAME_HELLO, "quor", 4);
    if (i == 3) raw_frame(&raw, NET_FRAME_RAFT, "x", 1);
    if (i == 4) raw_frame(&raw, NET_FRAME_GOODBYE, "", 0);
    if (i == 5) raw_frame(&raw, NET_FRAME_GOODBYE, "\x02go \naway", 9);
    closed(&site, &raw);
    UNTIL(&site.loop, heard_of(&site.node, lines[i]));
    still_friends(&site.node, &site.friend);
  }
  assert_int_equal(site.node.up[2], 0);
  assert_int_equal(site.node.refusals, 1);
  net_limits(site.node.net)->handshake_ms = PATIENCE_MS;
  serve_raw(&raw, listener, &site.loop);
  raw_hello_of(&raw, CLUSTER, 2, 0);
  UNTIL(&site.loop, raw_pump(&raw) && connected(&site.node, 2));
  raw_end(&raw);
  peers.n = 1;
  net_set_peers(site.node.net, &peers);
  close(listener);
  site_close(&site);
}

struct asker {
  pthread_t thread;
  char address[RAFT_ADDRESS_MAX];
  int status;
  struct net_error error;
  _Atomic bool over;
};

static void *ask(void *arg)
{
  static const struct net_identity self = {.cluster = CLUSTER};
  struct tls_context *tls = joiner(true);
  struct asker *asker = arg;
  uint8_t *body;
  size_t len;

  asker->status = net_join(tls, &self, asker->address, "secret", 6, 10000,
                           &body, &len, &asker->error);
  free(body);
  tls_context_unref(tls);
  asker->over = true;
  return NULL;
}

static void a_token_is_shown_to_its_cluster_only(void **state)
{
  struct asker asker = {0};
  struct raw raw;
  uv_loop_t loop;
  int listener = listen_raw(asker.address);

  (void)state;
  loop_open(&loop);
  for (unsigned right = 0; right < 2; right++) {
    asker.over = false;
    pthread_create(&asker.thread, NULL, ask, &asker);
    serve_raw(&raw, listener, &loop);
    MEANWHILE(&loop, 30);
    raw_pump(&raw);
    assert_int_equal(raw.n_in, 0); /* nothing but HELLO has come */
    raw_hello_of(&raw, CLUSTER + !right, 2, 0);
    if (right) {
      uint8_t answer[NET_ANSWER_HEAD] = {0};

      UNTIL(&loop, raw_pump(&raw) && raw.n_in == NET_FRAME_HEADER + 6);
      raw_frame(&raw, NET_FRAME_ANSWER, answer, sizeof answer);
    }
    UNTIL(&loop, raw_pump(&raw) && asker.over);
    assert_int_equal(raw.n_in, right ? NET_FRAME_HEADER + 6 : 0);
    assert_int_equal(asker.status, right ? 0 : -1);
    pthread_join(asker.thread, NULL);
    raw_end(&raw);
  }
  assert_non_null(strstr(asker.error.text, "at cluster 1122334455667788"));
  close(listener);
  loop_end(&loop);
}

/* ---- strangers, and nodes that were removed ------------------------------ */

static void a_stranger_may_ask_to_join(void **state)
{
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  site.node.banned[2] = true;
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_STRANGER);
  counted(&site, NET_REFUSED_STRANGER, 0,
          "refused node 0000000000000002 from 127.0.0.1:");
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_JOIN);
  UNTIL(&site.loop, raw_pump(&raw) && raw_was_greeted(&raw));
  assert_int_equal(unverified(&site.node), 1);
  raw_frame(&raw, NET_FRAME_JOIN, "please", 6);
  UNTIL(&site.loop, raw_pump(&raw) && raw.n_in > NET_FRAME_HEADER);
  assert_int_equal(raw.in[4], NET_FRAME_ANSWER);
  assert_int_equal(site.node.requests, 1);
  assert_int_equal(site.node.request_from, 0);
  assert_int_equal(site.node.request_identity, 2);
  assert_int_equal(strncmp(site.node.request_remote, "127.0.0.1:", 10), 0);
  /* Nothing else, and only once. */
  raw_frame(&raw, NET_FRAME_JOIN, "please", 6);
  UNTIL(&site.loop, raw_pump(&raw) && raw.closed);
  raw_end(&raw);
  counted(&site, NET_REFUSED_FRAME, 0, "a join frame is not allowed here");
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_JOIN);
  UNTIL(&site.loop, raw_pump(&raw) && raw_was_greeted(&raw));
  raw_frame(&raw, NET_FRAME_CALL, "12345678", 8);
  closed(&site, &raw);
  counted(&site, NET_REFUSED_FRAME, 1, "a call frame is not allowed here");
  /* A member that asks again, since it did not hear the answer, may. */
  site.node.banned[2] = false;
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_JOIN);
  UNTIL(&site.loop, raw_pump(&raw) && raw_was_greeted(&raw));
  raw_frame(&raw, NET_FRAME_JOIN, "please", 6);
  UNTIL(&site.loop, site.node.requests == 2 && raw_pump(&raw));
  assert_int_equal(site.node.request_from, 0);
  raw_end(&raw);
  site_close(&site);
}

/* It may ask to join, as whoever has no certificate may. */
static void a_revoked_node_is_refused(void **state)
{
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  site.node.revoked[2] = true;
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_PEER);
  dismissed(&site, &raw, NET_GOODBYE_REVOKED);
  counted(&site, NET_REFUSED_REVOKED, 0,
          "refused node 0000000000000002 from 127.0.0.1:");
  assert_int_equal(site.node.up[2] + site.node.requests, 0);
  handshake(&site, &raw, 2);
  raw_hello_of(&raw, CLUSTER, 2, NET_PURPOSE_JOIN);
  UNTIL(&site.loop, raw_pump(&raw) && raw_was_greeted(&raw));
  raw_frame(&raw, NET_FRAME_CALL, "12345678", 8);
  closed(&site, &raw);
  counted(&site, NET_REFUSED_FRAME, 0, "a call frame is not allowed here");
  assert_int_equal(site.node.up[2] + site.node.requests, 0);
  site_close(&site);
}

static uint64_t dials_of(const struct node *node)
{
  struct net_counters counters;

  net_counters(node->net, &counters);
  return counters.dials;
}

/* In the middle of all that it says it learns that it was removed, asks seldom
   from then on, and comes back if that is taken back. */
static void a_member_is_revoked(void **state)
{
  struct raft_entry entries[1];
  struct raft_body *body = body_of(100000, 1);
  struct raft_message m = append_of(2, 1, 1, entries, body);
  struct pair p;
  uint64_t dials;

  (void)state;
  pair_open(&p);
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  for (unsigned i = 0; i < 50; i++)
    assert_true(net_send(p.b.net, &m));
  net_flush(p.b.net);
  p.a.revoked[2] = true;
  net_recheck(p.a.net);
  UNTIL(&p.loop, p.b.refusals);
  assert_int_equal(p.b.refused_code, NET_GOODBYE_REVOKED);
  assert_string_equal(p.b.refused, "removed by a test");
  UNTIL(&p.loop, heard_of(&p.b, "refused: removed by a test"));
  assert_true(heard_of(&p.a, "refused node 0000000000000002"));
  assert_false(connected(&p.a, 2));
  UNTIL(&p.loop, !connected(&p.b, 1));
  dials = dials_of(&p.b);
  MEANWHILE(&p.loop, 1500); /* more than the longest back-off */
  assert_int_equal(dials_of(&p.b), dials);
  assert_int_equal(p.b.refusals, 1);
  net_limits(p.b.net)->revoked_ms = 100;
  p.a.revoked[2] = false;
  net_peer_find(p.b.net, 1)->redial_at = 0; /* half a minute later */
  net_hub_arm(&p.b.net->hub, 0);
  UNTIL(&p.loop, connected(&p.b, 1) && connected(&p.a, 2));
  raft_body_unref(body);
  pair_close(&p);
}

static void serve_much(struct net_request *request, const uint8_t *body,
                       size_t len)
{
  static const uint8_t much[NET_ANSWER_MAX];

  (void)body;
  (void)len;
  net_reply(request, 0, much, sizeof much);
}

/* Reads, and keeps the end of what came. */
static bool read_on(struct raw *raw)
{
  static uint8_t in[65536], plain[65536];
  ssize_t n = recv(raw->fd, in, sizeof in, 0);

  if (n == 0 || (n < 0 && errno != EAGAIN)) raw->closed = true;
  if (n <= 0) return true;
  tls_stream_feed(raw->tls, in, (size_t)n);
  while ((n = tls_stream_read(raw->tls, plain, sizeof plain)) > 0) {
    raw->n_in = MIN((size_t)n, 100u);
    memcpy(raw->in, plain + n - raw->n_in, raw->n_in);
  }
  return true;
}

/* Behind megabytes that were not read yet it is not lost. */
static void a_goodbye_waits_to_be_read(void **state)
{
  static const char why[] = "removed by a test";
  uint8_t call[NET_CALL_HEAD] = {0};
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  site.node.serve = serve_much;
  net_limits(site.node.net)->parting_ms = PATIENCE_MS;
  raw_open(&raw, net_listening(site.node.net), identity(2));
  raw_greet(&raw, &site.loop, 2);
  for (unsigned i = 0; i < 10; i++)
    raw_frame(&raw, NET_FRAME_FETCH, call, sizeof call);
  UNTIL(&site.loop, site.node.requests == 10);
  site.node.revoked[2] = true;
  net_recheck(site.node.net);
  UNTIL(&site.loop, refused(&site.node, NET_REFUSED_REVOKED) == 1);
  MEANWHILE(&site.loop, 50);
  UNTIL(&site.loop, read_on(&raw) && raw.closed);
  assert_true(raw.n_in > sizeof why);
  assert_memory_equal(raw.in + raw.n_in - (sizeof why - 1), why,
                      sizeof why - 1);
  raw_end(&raw);
  /* One that never reads has little time. */
  site.node.revoked[2] = false;
  net_limits(site.node.net)->parting_ms = 100;
  raw_open(&raw, net_listening(site.node.net), identity(2));
  raw_greet(&raw, &site.loop, 2);
  for (unsigned i = 0; i < 10; i++)
    raw_frame(&raw, NET_FRAME_FETCH, call, sizeof call);
  UNTIL(&site.loop, site.node.requests == 20);
  site.node.revoked[2] = true;
  net_recheck(site.node.net);
  UNTIL(&site.loop, connections_of(&site.node) == site.connections);
  raw_end(&raw);
  site_close(&site);
}

/* That a connection was ended in order is no sign of a crash. */
static void no_alarm_is_raised(void **state)
{
  struct pair p;

  (void)state;
  pair_open(&p);
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  p.a.banned[2] = true;
  net_recheck(p.a.net);
  UNTIL(&p.loop, p.b.refused_code == NET_GOODBYE_STRANGER);
  UNTIL(&p.loop, !connected(&p.b, 1));
  UNTIL(&p.loop, !connected(&p.a, 2));
  UNTIL(&p.loop, net_peer_find(p.b.net, 1)->n_inbound == 0);
  assert_int_equal(p.a.down[2] + p.b.down[1], 0);
  p.a.banned[2] = false;
  UNTIL(&p.loop, connected(&p.b, 1) && connected(&p.a, 2));
  pair_close(&p);
}

/* ---- certificates that expire -------------------------------------------- */

static void a_certificate_expires(void **state)
{
  struct wish wish = {authority(), URI, -60, 3};
  struct net_peer_status status;
  struct node *both[2];
  struct pair p;

  (void)state;
  loop_open(&p.loop);
  node_open(&p.a, &p.loop, 1);
  node_open(&p.b, &p.loop, 2);
  net_set_tls(p.b.net, context_made(&wish));
  tls_context_unref(p.b.net->tls); /* it has the only reference */
  both[0] = &p.a;
  both[1] = &p.b;
  introduce(both, 2);
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  assert_true(net_peer_status(p.a.net, 2, &status));
  assert_in_range(status.expires, time(NULL) - 1, time(NULL) + 4);
  assert_int_equal(status.incarnation, 102);
  assert_true(net_peer_status(p.b.net, 1, &status));
  assert_in_range(status.expires, time(NULL) + DAY, time(NULL) + 3 * DAY);
  /* Both connections of a are cut, and b may not come in any more. */
  UNTIL(&p.loop, p.b.refused_code == NET_GOODBYE_EXPIRED);
  UNTIL(&p.loop, !connected(&p.a, 2) && !connected(&p.b, 1));
  assert_true(heard_of(&p.a, "its certificate has expired"));
  UNTIL(&p.loop, refused(&p.a, NET_REFUSED_EXPIRED) > 1);
  assert_int_equal(p.a.down[2] + p.b.down[1], 0);
  /* With a renewed one it can. */
  net_set_tls(p.b.net, identity(2));
  UNTIL(&p.loop, connected(&p.a, 2) && connected(&p.b, 1));
  pair_close(&p);
}

/* ---- counters ------------------------------------------------------------ */

static void everything_is_counted(void **state)
{
  struct raft_message m = {
      .type = RAFT_VOTE_REQUEST, .from = 1, .to = 2, .term = 1};
  struct net_counters a, b;
  struct pair p;

  (void)state;
  pair_open(&p);
  UNTIL(&p.loop, net_peer_find(p.a.net, 2)->n_inbound == 1);
  assert_true(net_send(p.a.net, &m));
  UNTIL(&p.loop, p.b.messages == 1);
  net_counters(p.a.net, &a);
  net_counters(p.b.net, &b);
  assert_int_equal(a.sent_messages, 1);
  assert_int_equal(b.received_messages, 1);
  assert_int_equal(a.accepted, 1);
  assert_int_equal(a.handshakes, 1);
  assert_int_equal(a.dials, 1);
  assert_int_equal(a.dial_failures + a.goodbyes + a.joins + a.unverified, 0);
  assert_true(a.sent_bytes > 1000);
  assert_int_equal(a.sent_bytes, b.received_bytes);
  assert_int_equal(b.sent_bytes, a.received_bytes);
  for (unsigned i = 0; i < NET_REFUSALS; i++) {
    assert_int_equal(a.refused[i], 0);
    assert_true(strlen(net_refusal_name(i)) > 2);
  }
  assert_string_equal(net_refusal_name(NET_REFUSALS), "?");
  assert_true(net_round_trip(p.a.net, 2) > 0);
  assert_int_equal(net_round_trip(p.a.net, 3), 0);
  p.b.banned[1] = true;
  net_recheck(p.b.net);
  UNTIL(&p.loop, (net_counters(p.a.net, &a), a.dial_failures > 0));
  assert_int_equal(a.goodbyes, p.a.refusals);
  assert_in_range(a.dials, a.dial_failures + 1, a.dial_failures + 2);
  pair_close(&p);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(certificates_that_are_not_right),
      cmocka_unit_test(hello_must_be_true),
      cmocka_unit_test(hello_without_a_certificate),
      cmocka_unit_test(hello_of_another_form),
      cmocka_unit_test(nothing_comes_before_hello),
      cmocka_unit_test(two_clusters_under_one_ca),
      cmocka_unit_test(servers_must_say_who_they_are),
      cmocka_unit_test(a_token_is_shown_to_its_cluster_only),
      cmocka_unit_test(a_stranger_may_ask_to_join),
      cmocka_unit_test(a_revoked_node_is_refused),
      cmocka_unit_test(a_member_is_revoked),
      cmocka_unit_test(a_goodbye_waits_to_be_read),
      cmocka_unit_test(no_alarm_is_raised),
      cmocka_unit_test(a_certificate_expires),
      cmocka_unit_test(everything_is_counted),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
