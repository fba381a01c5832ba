/*
** net.c: the listener, the connections that come in, and the node's net as a
** whole.
**
** An inbound connection's role says what it may bring:
**
**   UNVERIFIED --certificate of a member--> NEW --RAFT, CALL--> MEMBER
**       |                                    `----FETCH-------> FETCHER
**       `--no certificate--> JOINER --JOIN--> DONE
**
** What a stranger can use up is bounded: so many connections without a
** certificate, so much of each, for so long; and one line a kind of event and
** second, so that the owner's log cannot be flooded either.
*/
#include "internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BACKLOG 128

/* ---- events -------------------------------------------------------------- */

void net_event(struct net *net, enum net_event_kind kind, const char *format,
               ...)
{
  struct net_limiter *limiter = &net->limiters[kind];
  uint64_t now = uv_now(net->hub.loop);
  char line[2 * NET_TEXT];
  va_list args;
  int n;

  if (!net->callbacks.event || net->hub.closing) return;
  if (limiter->last && now - limiter->last < net->hub.limits.event_ms) {
    limiter->held++;
    return;
  }
  va_start(args, format);
  n = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  n = MIN(n, (int)sizeof line - 1);
  if (limiter->held)
    snprintf(line + n, sizeof line - (size_t)n, " (and %u more like it)",
             limiter->held);
  limiter->held = 0;
  limiter->last = now ? now : 1;
  net->callbacks.event(net->callbacks.ctx, line);
}

/* ---- raft messages in ---------------------------------------------------- */

void net_deliver(struct net *net, struct net_connection *c,
                 const struct net_frame *frame)
{
  struct raft_message message;
  int rc = raft_message_decode(frame->body, frame->len, &message);

  if (rc == RAFT_ENOMEM) {
    net_event(net, NET_EVENT_OTHER, "out of memory for a message of %u bytes",
              frame->len);
    return;
  }
  if (rc) {
    net_connection_end(c, NET_FAILED, "a malformed raft message");
    return;
  }
  if (message.from != c->peer || message.to != net->self) {
    net_connection_end(c, NET_FAILED,
                       "a message from node %016" PRIx64 " to node %016" PRIx64,
                       message.from, message.to);
    raft_message_clear(&message);
    return;
  }
  net->callbacks.message(net->callbacks.ctx, &message);
}

/* ---- inbound connections ------------------------------------------------- */

void net_set_role(struct net_connection *c, enum net_role role)
{
  static const unsigned allowed[] = {
      [NET_ROLE_UNVERIFIED] = 0,
      [NET_ROLE_JOINER] = NET_ALLOW(NET_FRAME_JOIN),
      [NET_ROLE_DONE] = 0,
      [NET_ROLE_NEW] = NET_ALLOW(NET_FRAME_RAFT) | NET_ALLOW(NET_FRAME_CALL) |
                       NET_ALLOW(NET_FRAME_POST) | NET_ALLOW(NET_FRAME_FETCH),
      [NET_ROLE_MEMBER] = NET_ALLOW(NET_FRAME_RAFT) |
                          NET_ALLOW(NET_FRAME_CALL) | NET_ALLOW(NET_FRAME_POST),
      [NET_ROLE_FETCHER] = NET_ALLOW(NET_FRAME_FETCH),
  };

  c->role = role;
  c->reader.allowed = allowed[role];
}

static void joiner_ready(struct net_connection *c)
{
  uint64_t age = uv_now(c->hub->loop) - c->born;
  uint64_t life = c->hub->limits.unverified_ms;

  net_set_role(c, NET_ROLE_JOINER);
  net_connection_deadline(c, age < life ? life - age : 0,
                          "its time without a certificate is over");
}

static void inbound_ready(struct net_connection *c)
{
  struct net *net = c->owner;
  raft_id id = tls_stream_peer(c->tls);
  struct net_peer *peer;

  if (id == 0) {
    joiner_ready(c);
    return;
  }
  if (id == net->self) {
    net_connection_end(c, NET_FAILED, "it shows this node's own identity");
    return;
  }
  if (!net->callbacks.allowed(net->callbacks.ctx, id)) {
    net_event(net, NET_EVENT_STRANGER,
              "refused node %016" PRIx64 " from %s: not a member", id,
              c->remote);
    net_connection_end(c, NET_CUT, "not a member");
    return;
  }
  peer = net_peer_get(net, id);
  if (!peer) {
    net_connection_end(c, NET_FAILED, "out of memory");
    return;
  }
  net->unverified--;
  c->peer = id;
  net_connection_count(c, &peer->counters);
  net_set_role(c, NET_ROLE_NEW);
  net_peer_attach(peer, c);
}

static void call_frame(struct net *net, struct net_connection *c,
                       const struct net_frame *frame)
{
  static const char busy[] = "too many requests are waiting";
  struct net_request *request;
  uint64_t id;

  if (frame->len < NET_CALL_HEAD) {
    net_connection_end(c, NET_FAILED, "a malformed call");
    return;
  }
  id = net_get64(frame->body);
  request = net_request_new(c, id);
  if (request)
    net->callbacks.request(net->callbacks.ctx, c->peer,
                           frame->body + NET_CALL_HEAD,
                           frame->len - NET_CALL_HEAD, request);
  else
    net_send_answer(c, id, -1, busy, sizeof busy - 1);
}

static void join_frame(struct net *net, struct net_connection *c,
                       const struct net_frame *frame)
{
  struct net_request *request = net_request_new(c, 0);

  net_set_role(c, NET_ROLE_DONE);
  if (request)
    net->callbacks.request(net->callbacks.ctx, 0, frame->body, frame->len,
                           request);
  else
    net_connection_end(c, NET_FAILED, "out of memory");
}

static void inbound_frame(struct net_connection *c,
                          const struct net_frame *frame)
{
  struct net *net = c->owner;

  switch (frame->type) {
  case NET_FRAME_RAFT:
    if (c->role == NET_ROLE_NEW) net_set_role(c, NET_ROLE_MEMBER);
    net_deliver(net, c, frame);
    break;
  case NET_FRAME_CALL:
    if (c->role == NET_ROLE_NEW) net_set_role(c, NET_ROLE_MEMBER);
    call_frame(net, c, frame);
    break;
  case NET_FRAME_POST:
    if (c->role == NET_ROLE_NEW) net_set_role(c, NET_ROLE_MEMBER);
    if (net->callbacks.posted)
      net->callbacks.posted(net->callbacks.ctx, c->peer, frame->body,
                            frame->len);
    break;
  case NET_FRAME_FETCH:
    if (c->role == NET_ROLE_NEW) {
      net_set_role(c, NET_ROLE_FETCHER);
      net_peer_set_apart(net_peer_find(net, c->peer), c);
    }
    call_frame(net, c, frame);
    break;
  case NET_FRAME_JOIN: join_frame(net, c, frame); break;
  }
}

/* Says what happened, unless it was nothing. */
static void tell(struct net *net, const struct net_connection *c)
{
  if (c->cause == NET_CUT) return;
  if (c->cause == NET_FAILED && c->peer)
    net_event(net, NET_EVENT_REFUSED,
              "closed the connection of node %016" PRIx64 " from %s: %s",
              c->peer, c->remote, c->why);
  else if (c->cause == NET_FAILED && c->ready)
    net_event(net, NET_EVENT_REFUSED, "closed a connection from %s: %s",
              c->remote, c->why);
  else if (c->cause == NET_FAILED || (!c->ready && c->received))
    net_event(net, NET_EVENT_HANDSHAKE, "handshake with %s failed: %s",
              c->remote, c->why);
  else if (c->role == NET_ROLE_NEW || c->role == NET_ROLE_MEMBER)
    net_event(net, NET_EVENT_PEER,
              "node %016" PRIx64 " closed its connection from %s: %s", c->peer,
              c->remote, c->why);
}

static void inbound_closed(struct net_connection *c)
{
  struct net *net = c->owner;
  struct net_peer *peer = c->peer ? net_peer_find(net, c->peer) : NULL;

  if (!c->peer) net->unverified--;
  net_request_lost(c);
  tell(net, c);
  net_peer_detach(peer, c);
  if ((c->role == NET_ROLE_NEW || c->role == NET_ROLE_MEMBER) && peer &&
      c->cause == NET_PEER_CLOSED)
    net_peer_lost(peer);
}

static const struct net_handler inbound = {
    .ready = inbound_ready,
    .frame = inbound_frame,
    .closed = inbound_closed,
};

/* ---- the listener -------------------------------------------------------- */

struct turned_away {
  uv_tcp_t tcp;
  struct net_hub *hub;
};

static void on_turned_away(uv_handle_t *handle)
{
  struct turned_away *away = handle->data;
  struct net_hub *hub = away->hub;

  free(away);
  net_hub_drop(hub);
}

/* Takes a connection only to close it: one that is not taken would keep the
   listener from telling of others. */
static void turn_away(struct net *net)
{
  struct turned_away *away = calloc(1, sizeof *away);

  if (!away) return;
  away->hub = &net->hub;
  away->tcp.data = away;
  if (uv_tcp_init(net->hub.loop, &away->tcp)) {
    free(away);
    return;
  }
  net->hub.handles++;
  uv_accept((uv_stream_t *)&net->listener, (uv_stream_t *)&away->tcp);
  uv_close((uv_handle_t *)&away->tcp, on_turned_away);
}

static void on_connection(uv_stream_t *listener, int status)
{
  struct net *net = listener->data;
  struct net_connection *c;

  if (status < 0) {
    net_event(net, NET_EVENT_OTHER, "cannot accept a connection: %s",
              uv_strerror(status));
    return;
  }
  if (net->unverified >= net->hub.limits.unverified_max) {
    turn_away(net);
    net_event(net, NET_EVENT_CROWD,
              "refused a connection: %u others have shown no certificate",
              net->unverified);
    return;
  }
  c = net_connection_accept(&net->hub, listener, net->tls, &inbound, net);
  if (!c) {
    turn_away(net);
    net_event(net, NET_EVENT_OTHER, "out of memory for a connection");
    return;
  }
  net->unverified++;
  net_set_role(c, NET_ROLE_UNVERIFIED);
}

/* A listening socket. Made by hand, since a libuv handle that failed could
   only be closed by running the loop. */
static int bind_address(const struct sockaddr_storage *address, int *out,
                        const char **what)
{
  int one = 1, saved;
  int fd =
      socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  *what = "socket";
  if (fd < 0) return -errno;
  *what = "bind";
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (const struct sockaddr *)address, net_sockaddr_size(address)))
    goto fail;
  *what = "listen";
  if (listen(fd, BACKLOG)) goto fail;
  *out = fd;
  return 0;

fail:
  saved = -errno;
  close(fd);
  return saved;
}

static int find_address(const char *listen_on,
                        struct net_candidates *candidates,
                        struct net_error *error)
{
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
  char host[RAFT_ADDRESS_MAX], port[8];
  struct addrinfo *list = NULL;
  int rc;

  if (!net_split_address(listen_on, host, sizeof host, port, sizeof port))
    return net_fail(error,
                    "cannot listen on %.128s: not an address of the form "
                    "host:port",
                    listen_on);
  if (net_numeric(host, port, candidates)) return 0;
  rc = getaddrinfo(host, port, &hints, &list);
  if (rc)
    return net_fail(error, "cannot listen on %.128s: %s", listen_on,
                    gai_strerror(rc));
  net_take_addrinfo(list, candidates);
  freeaddrinfo(list);
  if (candidates->n > 0) return 0;
  return net_fail(error, "cannot listen on %.128s: the name has no address",
                  listen_on);
}

static int listen_on(struct net *net, const char *text, int *out,
                     struct net_error *error)
{
  struct net_candidates candidates;
  struct sockaddr_storage address = {0};
  socklen_t size = sizeof address;
  const char *what;
  int rc;

  if (find_address(text, &candidates, error)) return -1;
  rc = bind_address(&candidates.at[0], out, &what);
  if (rc)
    return net_fail(error, "cannot listen on %.128s: %s: %s", text, what,
                    uv_strerror(rc));
  if (getsockname(*out, (struct sockaddr *)&address, &size)) {
    close(*out);
    return net_fail(error, "cannot listen on %.128s: no socket name", text);
  }
  net_format(&address, net->listening, sizeof net->listening);
  return 0;
}

/* ---- before the loop sleeps ---------------------------------------------- */

static uint64_t net_tick(struct net_hub *hub, uint64_t now)
{
  struct net *net = (struct net *)hub;
  uint64_t at = net_call_tick(net, now), due;

  due = net_fetch_tick(net, now);
  at = MIN(at, due);
  due = net_peer_tick(net, now);
  return MIN(at, due);
}

/* Membership changed: who is connected may no longer be allowed to. */
static void recheck(struct net *net)
{
  struct net_connection *c, *next;

  net->recheck = false;
  for (c = net->hub.connections; c; c = next) {
    next = c->next;
    if (!net_usable(c) || !c->peer) continue;
    if (!net->callbacks.allowed(net->callbacks.ctx, c->peer))
      net_connection_end(c, NET_CUT, "no longer a member");
  }
}

static void net_sweep(struct net_hub *hub)
{
  struct net *net = (struct net *)hub;

  if (hub->closing)
    net_call_end(net);
  else if (net->recheck)
    recheck(net);
  net_peer_sweep(net);
}

/* ---- beginning and end --------------------------------------------------- */

static void net_free(struct net *net)
{
  tls_context_unref(net->tls);
  free(net->scratch);
  free(net);
}

static void on_gone(struct net_hub *hub)
{
  struct net *net = (struct net *)hub;
  void (*closed)(void *ctx) = net->closed;
  void *ctx = net->closed_ctx;

  assert(!net->calls && !net->peers && net->unverified == 0);
  net_free(net);
  if (closed) closed(ctx);
}

static void listener_closed(uv_handle_t *handle)
{
  net_hub_drop(&((struct net *)handle->data)->hub);
}

static struct net *net_new(const struct net_options *options,
                           struct net_error *error)
{
  struct net *net = calloc(1, sizeof *net);
  struct tls_error why;

  if (!net) {
    net_fail(error, "out of memory");
    return NULL;
  }
  net->callbacks = *options->callbacks;
  net->self = options->self;
  net->calls_end = &net->calls;
  net->tls = tls_context_ref(options->tls);
  if (tls_random(&net->random, sizeof net->random, &why)) {
    net_fail(error, "%s", why.text);
    net_free(net);
    return NULL;
  }
  net->random |= 1; /* the generator would stay at 0 */
  return net;
}

int net_open(const struct net_options *options, struct net **out,
             struct net_error *error)
{
  struct net *net = net_new(options, error);
  int fd, rc;

  *out = NULL;
  if (!net) return -1;
  if (listen_on(net, options->listen, &fd, error)) {
    net_free(net);
    return -1;
  }
  net_hub_open(&net->hub, options->loop);
  net->hub.tick = net_tick;
  net->hub.sweep = net_sweep;
  net->hub.gone = on_gone;
  rc = uv_tcp_init(options->loop, &net->listener);
  net->listener.data = net;
  net->hub.handles++;
  if (rc == 0) rc = uv_tcp_open(&net->listener, fd);
  if (rc) close(fd);
  if (rc == 0)
    rc = uv_listen((uv_stream_t *)&net->listener, BACKLOG, on_connection);
  if (rc) {
    net_close(net, NULL, NULL);
    return net_fail(error, "cannot listen on %.128s: %s", options->listen,
                    uv_strerror(rc));
  }
  *out = net;
  return 0;
}

const char *net_listening(const struct net *net)
{
  return net->listening;
}

int net_descriptor(const struct net *net)
{
  uv_os_fd_t fd;
  return uv_fileno((const uv_handle_t *)&net->listener, &fd) == 0 ? fd : -1;
}

void net_close(struct net *net, void (*closed)(void *ctx), void *ctx)
{
  struct net_connection *c;

  assert(!net->hub.closing);
  net->closed = closed;
  net->closed_ctx = ctx;
  for (c = net->hub.connections; c; c = c->next)
    net_request_refuse(c, "the node is shutting down");
  net_hub_close(&net->hub);
  net_peer_end(net);
  uv_close((uv_handle_t *)&net->listener, listener_closed);
}

void net_set_tls(struct net *net, struct tls_context *tls)
{
  tls_context_ref(tls);
  tls_context_unref(net->tls);
  net->tls = tls;
}

void net_flush(struct net *net)
{
  net_hub_flush(&net->hub);
}

struct net_limits *net_limits(struct net *net)
{
  return &net->hub.limits;
}
