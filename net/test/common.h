/*
** common.h: what the tests of net/ share: a loop that cannot hang, identities
** of one cluster, nodes that count what they are told, and a TLS client made
** by hand, which can say what a real one never would.
*/
#ifndef NET_TEST_COMMON_H
#define NET_TEST_COMMON_H

#include "../internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

/* A bare root without /etc/hosts knows no names, not even this one. */
static inline void need_localhost(void)
{
  struct addrinfo *found = NULL;

  if (getaddrinfo("localhost", NULL, NULL, &found) != 0) skip();
  freeaddrinfo(found);
}

#define HELPER static __attribute__((unused))
#define PATIENCE_MS 20000
#define CLUSTER 0x1122334455667788u

/* Runs the loop until the condition holds; fails the test after PATIENCE. */
#define UNTIL(loop, condition)                                                 \
  do {                                                                         \
    uint64_t until_end = net_now() + PATIENCE_MS;                              \
    while (!(condition)) {                                                     \
      if (net_now() > until_end) fail_msg("waited in vain: %s", #condition);   \
      turn(loop);                                                              \
    }                                                                          \
  } while (0)

/* Runs the loop for a while, for what must not happen. */
#define MEANWHILE(loop, ms)                                                    \
  do {                                                                         \
    uint64_t while_end = net_now() + (ms);                                     \
    while (net_now() < while_end)                                              \
      turn(loop);                                                              \
  } while (0)

/* ---- the loop ------------------------------------------------------------ */

HELPER void on_alarm(uv_timer_t *timer)
{
  (void)timer;
}

/* One iteration that sleeps for at most two milliseconds, since loop_open()
   made a timer that repeats. */
HELPER void turn(uv_loop_t *loop)
{
  uv_run(loop, UV_RUN_ONCE);
}

HELPER void loop_open(uv_loop_t *loop)
{
  uv_timer_t *timer = malloc(sizeof *timer);

  assert_int_equal(uv_loop_init(loop), 0);
  assert_non_null(timer);
  uv_timer_init(loop, timer);
  uv_timer_start(timer, on_alarm, 2, 2);
  loop->data = timer;
}

HELPER void on_freed(uv_handle_t *handle)
{
  free(handle);
}

/* Fails if a handle was left behind. */
HELPER void loop_end(uv_loop_t *loop)
{
  uv_close(loop->data, on_freed);
  uv_run(loop, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(loop), 0);
}

/* ---- identities ---------------------------------------------------------- */

struct authority {
  char *cert, *key;
};

HELPER struct authority *authority(void)
{
  static struct authority ca;
  struct tls_error error;

  if (!ca.cert && tls_make_ca(CLUSTER, &ca.cert, &ca.key, &error))
    fail_msg("%s", error.text);
  return &ca;
}

HELPER struct tls_context *context_of(struct authority *ca, uint64_t node)
{
  struct tls_context *context = NULL;
  char *request = NULL, *key = NULL, *cert = NULL;
  struct tls_error error;

  if (tls_make_request(&request, &key, &error) ||
      tls_sign_request(ca->cert, ca->key, request, CLUSTER, node, 2, &cert,
                       &error) ||
      tls_context_new(ca->cert, cert, key, &context, &error))
    fail_msg("%s", error.text);
  tls_free_text(request);
  tls_free_text(key);
  tls_free_text(cert);
  return context;
}

/* One context for each of a few nodes, made once. */
HELPER struct tls_context *identity(uint64_t node)
{
  static struct tls_context *made[16];

  assert_true(node < 16);
  if (!made[node]) made[node] = context_of(authority(), node);
  return made[node];
}

HELPER struct tls_context *joiner(bool right)
{
  struct tls_context *context = NULL;
  struct tls_error error;
  uint8_t print[32];

  if (tls_fingerprint(authority()->cert, print, &error))
    fail_msg("%s", error.text);
  if (!right) print[7] ^= 1;
  if (tls_context_new_joiner(CLUSTER, print, &context, &error))
    fail_msg("%s", error.text);
  return context;
}

/* ---- nodes --------------------------------------------------------------- */

#define NODE_IDS 16
/* Who goes on talking to a node that others attack; what it says is counted
   apart, and answered. */
#define FRIEND 15

struct node {
  uv_loop_t *loop;
  struct net *net;
  raft_id id;
  unsigned up[NODE_IDS], down[NODE_IDS];
  bool banned[NODE_IDS], revoked[NODE_IDS];
  raft_id named;                   /* has a name in events */
  unsigned refusals, refused_code; /* what peers said of this node */
  char refused[256];
  unsigned messages, by_type[16];
  unsigned from_friend;
  struct raft_message last; /* owned */
  bool echo;                /* answers appends and heartbeats */
  unsigned requests;
  raft_id request_from, request_identity;
  char request_remote[64];
  uint8_t request_body[NET_REQUEST_MAX];
  size_t request_len;
  bool hold; /* keep the request for later */
  /* Answers instead of what follows from the others. */
  void (*serve)(struct net_request *request, const uint8_t *body, size_t len);
  int status;
  struct net_request *held;
  unsigned events;
  char event[512];
  char events_all[8192];
  bool closed;
};

HELPER void node_message(void *ctx, struct raft_message *message)
{
  struct node *node = ctx;

  if (message->from == FRIEND) {
    struct raft_message answer = {.type = RAFT_HEARTBEAT_RESPONSE,
                                  .from = node->id,
                                  .to = FRIEND,
                                  .incarnation = 1,
                                  .term = message->term};

    node->from_friend++;
    net_send(node->net, &answer);
    raft_message_clear(message);
    return;
  }
  node->messages++;
  node->by_type[message->type & 15]++;
  raft_message_clear(&node->last);
  node->last = *message;
  if (node->echo && message->type == RAFT_APPEND_REQUEST) {
    struct raft_message answer = {.type = RAFT_APPEND_RESPONSE,
                                  .from = node->id,
                                  .to = message->from,
                                  .incarnation = 1,
                                  .term = message->term,
                                  .granted = true,
                                  .match = message->prev_index};

    net_send(node->net, &answer);
  }
  if (node->echo && message->type == RAFT_HEARTBEAT_REQUEST) {
    struct raft_message answer = {.type = RAFT_HEARTBEAT_RESPONSE,
                                  .from = node->id,
                                  .to = message->from,
                                  .incarnation = 1,
                                  .term = message->term};

    net_send(node->net, &answer);
  }
}

HELPER void node_up(void *ctx, raft_id peer)
{
  ((struct node *)ctx)->up[peer % NODE_IDS]++;
}

HELPER void node_down(void *ctx, raft_id peer)
{
  ((struct node *)ctx)->down[peer % NODE_IDS]++;
}

HELPER enum net_verdict node_allowed(void *ctx, raft_id peer, char *why,
                                     size_t size)
{
  struct node *node = ctx;

  if (peer >= NODE_IDS || node->banned[peer]) return NET_STRANGER;
  if (!node->revoked[peer]) return NET_ALLOWED;
  snprintf(why, size, "removed by a test");
  return NET_REVOKED;
}

HELPER void node_refused(void *ctx, raft_id peer, unsigned code,
                         const char *text)
{
  struct node *node = ctx;

  (void)peer;
  node->refusals++;
  node->refused_code = code;
  snprintf(node->refused, sizeof node->refused, "%s", text);
}

HELPER void node_request(void *ctx, raft_id from, const uint8_t *body,
                         size_t len, struct net_request *request)
{
  struct node *node = ctx;
  static const char answer[] = "pong";

  node->requests++;
  node->request_from = from;
  node->request_identity = net_request_identity(request);
  snprintf(node->request_remote, sizeof node->request_remote, "%s",
           net_request_remote(request));
  memcpy(node->request_body, body, len);
  node->request_len = len;
  if (node->serve)
    node->serve(request, body, len);
  else if (node->hold)
    node->held = request;
  else
    net_reply(request, node->status, answer, 4);
}

HELPER void node_event(void *ctx, const char *line)
{
  struct node *node = ctx;
  size_t used = strlen(node->events_all);

  node->events++;
  snprintf(node->event, sizeof node->event, "%s", line);
  snprintf(node->events_all + used, sizeof node->events_all - used, "%s\n",
           line);
  if (getenv("NET_TEST_VERBOSE"))
    fprintf(stderr, "  node %" PRIu64 ": %s\n", node->id, line);
}

HELPER void node_name(void *ctx, raft_id id, char name[RAFT_NAME_MAX])
{
  const struct node *node = ctx;

  if (node->named == id) snprintf(name, RAFT_NAME_MAX, "berlin");
}

HELPER bool heard_of(const struct node *node, const char *what)
{
  return strstr(node->events_all, what) != NULL;
}

HELPER void node_open_on(struct node *node, uv_loop_t *loop, raft_id id,
                         const char *listen)
{
  struct net_callbacks callbacks = {.ctx = node,
                                    .message = node_message,
                                    .up = node_up,
                                    .down = node_down,
                                    .allowed = node_allowed,
                                    .refused = node_refused,
                                    .request = node_request,
                                    .event = node_event,
                                    .name = node_name};
  struct net_options options = {.loop = loop,
                                .cluster = CLUSTER,
                                .self = id,
                                .incarnation = 100 + id,
                                .tls = identity(id),
                                .listen = listen,
                                .callbacks = &callbacks};
  struct net_error error;

  memset(node, 0, sizeof *node);
  node->loop = loop;
  node->id = id;
  uv_update_time(loop);
  if (net_open(&options, &node->net, &error)) fail_msg("%s", error.text);
  net_limits(node->net)->event_ms = 0;
  /* Whoever is not about them shakes hands as often as it likes. */
  net_limits(node->net)->rate_source = 100000;
  net_limits(node->net)->rate_member = 100000;
  net_limits(node->net)->rate_all = 100000;
  net_limits(node->net)->rate_room = 100000;
}

HELPER uint64_t refused(const struct node *node, enum net_refusal refusal)
{
  struct net_counters counters;

  net_counters(node->net, &counters);
  return counters.refused[refusal];
}

HELPER uint64_t unverified(const struct node *node)
{
  struct net_counters counters;

  net_counters(node->net, &counters);
  return counters.unverified;
}

HELPER void node_open(struct node *node, uv_loop_t *loop, raft_id id)
{
  node_open_on(node, loop, id, "127.0.0.1:0");
}

HELPER void node_closed(void *ctx)
{
  struct node *node = ctx;

  assert_false(node->closed);
  node->closed = true;
  node->net = NULL;
}

HELPER void node_close(struct node *node)
{
  net_close(node->net, node_closed, node);
  UNTIL(node->loop, node->closed);
  raft_message_clear(&node->last);
  if (node->held) net_reply(node->held, 0, NULL, 0);
  node->held = NULL;
}

/* All nodes of a cluster in one configuration, at their real addresses. */
HELPER struct raft_configuration configuration_of(struct node **nodes,
                                                  unsigned n)
{
  struct raft_configuration all = {.n = n};

  for (unsigned i = 0; i < n; i++) {
    all.members[i].id = nodes[i]->id;
    all.members[i].role = RAFT_VOTER;
    snprintf(all.members[i].address, sizeof all.members[i].address, "%s",
             net_listening(nodes[i]->net));
  }
  return all;
}

HELPER bool connected(const struct node *node, raft_id to)
{
  struct net_peer_status status;

  return net_peer_status(node->net, to, &status) && status.connected;
}

HELPER void introduce(struct node **nodes, unsigned n)
{
  struct raft_configuration all = configuration_of(nodes, n);

  for (unsigned i = 0; i < n; i++)
    net_set_peers(nodes[i]->net, &all);
  for (unsigned i = 0; i < n; i++)
    for (unsigned j = 0; j < n; j++)
      if (i != j) UNTIL(nodes[0]->loop, connected(nodes[i], nodes[j]->id));
}

/* What a node is attacked beside: one that talks to it, and is answered. */
HELPER void befriend(struct node *node, struct node *friend)
{
  struct node *both[] = {node, friend};

  node_open(friend, node->loop, FRIEND);
  introduce(both, 2);
  UNTIL(node->loop, net_peer_find(node->net, FRIEND)->n_inbound == 1 &&
                        net_peer_find(friend->net, node->id)->n_inbound == 1);
}

/* It still is: one message there and one back, and no connection was lost. */
HELPER void still_friends(struct node *node, struct node *friend)
{
  struct raft_message m = {.type = RAFT_HEARTBEAT_REQUEST,
                           .from = FRIEND,
                           .to = node->id,
                           .incarnation = 1,
                           .term = friend->messages + 1};
  unsigned before = friend->messages;

  assert_true(net_send(friend->net, &m));
  UNTIL(node->loop, friend->messages == before + 1);
  assert_int_equal(friend->last.term, m.term);
  assert_int_equal(node->down[FRIEND] + friend->down[node->id], 0);
  assert_int_equal(node->up[FRIEND], 1);
  assert_int_equal(friend->up[node->id], 1);
}

HELPER unsigned connections_of(const struct node *node)
{
  unsigned n = 0;

  for (struct net_connection *c = node->net->hub.connections; c; c = c->next)
    n++;
  return n;
}

struct pair {
  uv_loop_t loop;
  struct node a, b; /* nodes 1 and 2 */
};

HELPER void pair_open(struct pair *pair)
{
  struct node *both[] = {&pair->a, &pair->b};

  loop_open(&pair->loop);
  node_open(&pair->a, &pair->loop, 1);
  node_open(&pair->b, &pair->loop, 2);
  introduce(both, 2);
}

HELPER void pair_close(struct pair *pair)
{
  if (!pair->a.closed) node_close(&pair->a);
  if (!pair->b.closed) node_close(&pair->b);
  loop_end(&pair->loop);
}

/* ---- messages ------------------------------------------------------------ */

HELPER struct raft_body *body_of(size_t len, uint8_t seed)
{
  struct raft_body *body = raft_body_new(len);

  assert_non_null(body);
  for (size_t i = 0; i < len; i++)
    body->data[i] = (uint8_t)(seed + i * 7 + i / 251);
  raft_body_seal(body);
  return body;
}

HELPER struct raft_message append_of(raft_id from, raft_id to, unsigned n,
                                     struct raft_entry *entries,
                                     struct raft_body *body)
{
  struct raft_message message = {.type = RAFT_APPEND_REQUEST,
                                 .from = from,
                                 .to = to,
                                 .incarnation = 1,
                                 .term = 3,
                                 .prev_index = 10,
                                 .prev_term = 2,
                                 .commit = 9,
                                 .n_entries = n,
                                 .entries = entries};

  for (unsigned i = 0; i < n; i++)
    entries[i] = (struct raft_entry){
        .index = 11 + i, .term = 3, .type = RAFT_COMMIT, .body = body};
  return message;
}

/* ---- answers of calls and fetches ---------------------------------------- */

struct outcome {
  unsigned times;
  int status;
  char text[256];
  size_t len;
};

HELPER void on_done(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct outcome *outcome = ctx;

  outcome->times++;
  outcome->status = status;
  outcome->len = len;
  snprintf(outcome->text, sizeof outcome->text, "%.*s", (int)MIN(len, 200u),
           (const char *)body);
}

/* ---- a client made by hand ----------------------------------------------- */

struct raw {
  int fd;
  struct tls_stream *tls;
  bool closed;
  uint8_t in[4096]; /* decrypted */
  size_t n_in;
};

/* From an address of this machine: all of 127.0.0.0/8 are. NULL: from any. */
HELPER void raw_open_from(struct raw *raw, const char *source,
                          const char *address, struct tls_context *tls)
{
  struct sockaddr_in to, from;
  char host[64], port[8];

  memset(raw, 0, sizeof *raw);
  assert_true(net_split_address(address, host, sizeof host, port, sizeof port));
  assert_int_equal(uv_ip4_addr(host, atoi(port), &to), 0);
  raw->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert_true(raw->fd >= 0);
  assert_int_equal(
      setsockopt(raw->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)), 0);
  if (source) {
    assert_int_equal(uv_ip4_addr(source, 0, &from), 0);
    assert_int_equal(bind(raw->fd, (struct sockaddr *)&from, sizeof from), 0);
  }
  assert_int_equal(connect(raw->fd, (struct sockaddr *)&to, sizeof to), 0);
  assert_int_equal(fcntl(raw->fd, F_SETFL, O_NONBLOCK), 0);
  if (tls) raw->tls = tls_stream_new(tls, false);
}

HELPER void raw_open(struct raw *raw, const char *address,
                     struct tls_context *tls)
{
  raw_open_from(raw, NULL, address, tls);
}

HELPER void raw_end(struct raw *raw)
{
  tls_stream_free(raw->tls);
  close(raw->fd);
}

HELPER void raw_put(struct raw *raw, const void *data, size_t n)
{
  ssize_t rc = send(raw->fd, data, n, MSG_NOSIGNAL);

  if (rc < 0 && errno != EAGAIN) raw->closed = true;
}

/* Moves bytes both ways without blocking. True, so that UNTIL can call it. */
HELPER bool raw_pump(struct raw *raw)
{
  static uint8_t buffer[65536];
  const uint8_t *data;
  ssize_t n;

  if (raw->tls && (n = (ssize_t)tls_stream_output(raw->tls, &data)) > 0) {
    n = send(raw->fd, data, (size_t)n, MSG_NOSIGNAL);
    if (n > 0) tls_stream_sent(raw->tls, (size_t)n);
  }
  n = recv(raw->fd, buffer, sizeof buffer, 0);
  if (n == 0 || (n < 0 && errno != EAGAIN)) raw->closed = true;
  if (n > 0 && raw->tls) {
    tls_stream_feed(raw->tls, buffer, (size_t)n);
    n = tls_stream_read(raw->tls, raw->in + raw->n_in,
                        sizeof raw->in - raw->n_in);
    if (n > 0) raw->n_in += (size_t)n;
  }
  return true;
}

HELPER void raw_handshake(struct raw *raw, uv_loop_t *loop)
{
  UNTIL(loop, raw_pump(raw) && (tls_stream_ready(raw->tls) || raw->closed));
  assert_true(tls_stream_ready(raw->tls));
}

HELPER void raw_say(struct raw *raw, const void *data, size_t n)
{
  struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};

  assert_int_equal(tls_stream_write(raw->tls, &iov, 1), 0);
  raw_pump(raw);
}

HELPER void raw_frame(struct raw *raw, uint8_t type, const void *body, size_t n)
{
  uint8_t header[NET_FRAME_HEADER];

  net_frame_header(header, type, (uint32_t)n);
  raw_say(raw, header, sizeof header);
  if (n) raw_say(raw, body, n);
}

HELPER void raw_hello_of(struct raw *raw, uint64_t cluster, raft_id id,
                         uint32_t purpose)
{
  uint8_t body[40];

  memcpy(body, "quor", 4);
  net_put32(body + 4, 1);
  net_put32(body + 8, 1);
  net_put32(body + 12, purpose);
  net_put64(body + 16, cluster);
  net_put64(body + 24, id);
  net_put64(body + 32, 100 + id);
  raw_frame(raw, NET_FRAME_HELLO, body, sizeof body);
}

/* Has a HELLO come, whole? Takes it away. */
HELPER bool raw_was_greeted(struct raw *raw)
{
  const size_t size = NET_FRAME_HEADER + 40;

  if (raw->n_in < size || raw->in[4] != NET_FRAME_HELLO) return false;
  raw->n_in -= size;
  memmove(raw->in, raw->in + size, raw->n_in);
  return true;
}

/* A handshake, and HELLO both ways: with a certificate as a peer. */
HELPER void raw_greet(struct raw *raw, uv_loop_t *loop, raft_id id)
{
  raw_handshake(raw, loop);
  raw_hello_of(raw, CLUSTER, id, id ? NET_PURPOSE_PEER : NET_PURPOSE_JOIN);
  UNTIL(loop, raw_pump(raw) && raw_was_greeted(raw));
}

/* As the owner of a net does on its thread. */
HELPER void block_signals(void)
{
  sigset_t all;

  sigfillset(&all);
  sigdelset(&all, SIGINT);
  sigdelset(&all, SIGTERM);
  sigdelset(&all, SIGALRM);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  alarm(300); /* a test that blocks must not hang whoever runs it */
}

#endif
