/*
** peer.c: the peers of this node: dialling, back-off, and raft messages out.
**
** A struct net_peer is a member that the owner wants to be connected to, or
** one from which a verified connection came in (or both). Requests go out on
** the connection that this node dialled, responses on the newest one that the
** peer dialled and has used; the peer reads both from either.
**
** up() and down() are hints. up(): the peer has said HELLO to us. down(): the other
** side, or its kernel, closed an established connection in either direction.
** Of the several connections that die with a process only the first is told.
*/
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

/* The same failure of one peer is told again after this time. */
#define RETELL_MS 30000

/* ---- the list ------------------------------------------------------------ */

struct net_peer *net_peer_find(const struct net *net, raft_id id)
{
  struct net_peer *peer = net->peers;

  while (peer && peer->id != id)
    peer = peer->next;
  return peer;
}

struct net_peer *net_peer_get(struct net *net, raft_id id)
{
  struct net_peer *peer = net_peer_find(net, id);

  if (peer) return peer;
  peer = calloc(1, sizeof *peer);
  if (!peer) return NULL;
  peer->net = net;
  peer->id = id;
  peer->redial_at = NET_NEVER;
  peer->backoff_ms = net->hub.limits.backoff_min_ms;
  peer->next = net->peers;
  net->peers = peer;
  return peer;
}

void net_peer_sweep(struct net *net)
{
  struct net_peer **link = &net->peers, *peer;

  while ((peer = *link) != NULL) {
    if (peer->wanted || peer->dialled || peer->fetch || peer->n_inbound ||
        peer->n_fetchers) {
      link = &peer->next;
    } else {
      *link = peer->next;
      free(peer);
    }
  }
}

void net_peer_end(struct net *net)
{
  for (struct net_peer *peer = net->peers; peer; peer = peer->next)
    peer->wanted = false;
}

/* ---- inbound connections of a peer --------------------------------------- */

/* Puts it first in a list of at most max; one that has no room there ends. */
static void put_first(struct net_connection **list, unsigned *n, unsigned max,
                      struct net_connection *c)
{
  if (*n == max)
    net_connection_end(list[--*n], NET_CUT, "replaced by newer connections");
  memmove(list + 1, list, *n * sizeof *list);
  list[0] = c;
  ++*n;
}

static void take_out(struct net_connection **list, unsigned *n,
                     const struct net_connection *c)
{
  for (unsigned i = 0; i < *n; i++) {
    if (list[i] != c) continue;
    --*n;
    memmove(list + i, list + i + 1, (*n - i) * sizeof *list);
    return;
  }
}

void net_peer_attach(struct net_peer *peer, struct net_connection *inbound)
{
  struct net *net = peer->net;

  put_first(peer->inbound, &peer->n_inbound, NET_INBOUND_MAX, inbound);
  if (peer->told_down && net_usable(peer->dialled)) {
    peer->told_down = false;
    net->callbacks.up(net->callbacks.ctx, peer->id);
  }
  peer->told_down = false;
}

void net_peer_detach(struct net_peer *peer, struct net_connection *inbound)
{
  if (!peer) return;
  take_out(peer->inbound, &peer->n_inbound, inbound);
  take_out(peer->fetchers, &peer->n_fetchers, inbound);
}

void net_peer_set_apart(struct net_peer *peer, struct net_connection *inbound)
{
  net_peer_detach(peer, inbound);
  put_first(peer->fetchers, &peer->n_fetchers, NET_FETCHERS_MAX, inbound);
}

void net_peer_lost(struct net_peer *peer)
{
  struct net *net = peer->net;

  if (peer->told_down || net->hub.closing) return;
  peer->told_down = true;
  net->callbacks.down(net->callbacks.ctx, peer->id);
}

/* ---- the dialled connection ---------------------------------------------- */

static uint64_t random_below(struct net *net, uint64_t n)
{
  uint64_t x = net->random;

  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  net->random = x;
  return n ? x % n : 0;
}

/* Waits half of the back-off for sure and the rest by chance; then doubles. */
static void redial(struct net_peer *peer)
{
  struct net *net = peer->net;
  const struct net_limits *limits = &net->hub.limits;
  uint64_t wait = 0;

  if (peer->revoked && !peer->redial_now) {
    wait = limits->revoked_ms;
  } else if (!peer->redial_now) {
    wait = peer->backoff_ms / 2;
    wait += random_below(net, peer->backoff_ms - wait + 1);
    peer->backoff_ms = MIN(peer->backoff_ms * 2, limits->backoff_max_ms);
  }
  peer->redial_now = false;
  peer->redial_at = uv_now(net->hub.loop) + wait;
  net_hub_arm(&net->hub, peer->redial_at);
}

/* Tells a failure, but the same one of the same peer only now and then. */
static void tell(struct net_peer *peer, const struct net_connection *c)
{
  struct net *net = peer->net;
  uint64_t now = uv_now(net->hub.loop), ago = now - peer->told_at;
  char line[NET_TEXT + RAFT_NAME_MAX + RAFT_ADDRESS_MAX + 64];

  snprintf(line, sizeof line, "%s %s at %s: %s",
           c->peer ? "lost" : "cannot connect to", net_name(net, peer->id).s,
           c->remote, c->why);
  if (peer->told_at && ago < net->hub.limits.event_ms) return;
  if (peer->told_at && ago < RETELL_MS && strcmp(peer->told, c->why) == 0)
    return;
  peer->told_at = now ? now : 1;
  memcpy(peer->told, c->why, sizeof peer->told);
  if (net->callbacks.event && !net->hub.closing)
    net->callbacks.event(net->callbacks.ctx, line);
}

void net_peer_greet(struct net_peer *peer, struct net_connection *c)
{
  struct net *net = peer->net;
  char why[NET_TEXT] = "";

  c->reader.allowed = NET_ALLOW(NET_FRAME_HELLO) | NET_ALLOW(NET_FRAME_GOODBYE);
  if (c->identity != peer->id)
    net_connection_refuse(c, NET_REFUSED_IDENTITY,
                          "it shows the certificate of node %016" PRIx64,
                          c->identity);
  else if (net->callbacks.allowed(net->callbacks.ctx, c->identity, why,
                                  sizeof why) != NET_ALLOWED)
    net_connection_refuse(c, NET_REFUSED_STRANGER, "%s",
                          why[0] ? why : "it is not a member");
  else
    net_hello_send(c, &net->self, NET_PURPOSE_PEER);
}

bool net_peer_greeted(struct net_peer *peer, struct net_connection *c,
                      const struct net_frame *frame)
{
  struct net_hello hello;
  enum net_refusal refusal;
  char why[NET_TEXT];

  if (!net_hello_read(frame, &hello)) {
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed hello");
    return false;
  }
  if (net_hello_check(&hello, &peer->net->self, c->identity, why, &refusal)) {
    net_connection_refuse(c, refusal, "%s", why);
    return false;
  }
  net_connection_open(c);
  c->peer = peer->id;
  peer->incarnation = hello.is.incarnation;
  peer->expires = c->expires;
  net_connection_count(c, &peer->traffic);
  return true;
}

unsigned net_peer_goodbye(struct net_peer *peer, struct net_connection *c,
                          const struct net_frame *frame)
{
  char why[NET_TEXT];
  unsigned code;

  if (!net_goodbye_read(frame, &code, why)) {
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed goodbye");
    return 0;
  }
  peer->net->counters.goodbyes++;
  net_connection_end(c, NET_FAILED, "refused: %s", why);
  return code;
}

void net_peer_recheck(struct net_connection *c)
{
  struct net_peer *peer = c->owner;
  struct net *net = peer->net;
  char why[NET_TEXT] = "";
  enum net_verdict verdict =
      net->callbacks.allowed(net->callbacks.ctx, c->peer, why, sizeof why);

  if (verdict != NET_ALLOWED)
    net_connection_part(
        c, verdict == NET_REVOKED ? NET_GOODBYE_REVOKED : NET_GOODBYE_STRANGER,
        why[0] ? why : "not a member");
}

void net_peer_expired(struct net_connection *c)
{
  net_connection_part(c, NET_GOODBYE_EXPIRED, "its certificate has expired");
}

static void dialled_ready(struct net_connection *c)
{
  net_peer_greet(c->owner, c);
}

static void dialled_hello(struct net_peer *peer, struct net_connection *c,
                          const struct net_frame *frame)
{
  struct net *net = peer->net;

  if (!net_peer_greeted(peer, c, frame)) return;
  c->reader.allowed = NET_ALLOW(NET_FRAME_RAFT) | NET_ALLOW(NET_FRAME_ANSWER) |
                      NET_ALLOW(NET_FRAME_GOODBYE);
  peer->told_down = false;
  peer->revoked = false;
  net->callbacks.up(net->callbacks.ctx, peer->id);
}

static void dialled_goodbye(struct net_peer *peer, struct net_connection *c,
                            const struct net_frame *frame)
{
  struct net *net = peer->net;
  unsigned code = net_peer_goodbye(peer, c, frame);

  if (!code) return;
  peer->revoked = code == NET_GOODBYE_REVOKED;
  if (net->callbacks.refused)
    net->callbacks.refused(net->callbacks.ctx, peer->id, code,
                           c->why + strlen("refused: "));
}

static void dialled_frame(struct net_connection *c,
                          const struct net_frame *frame)
{
  struct net_peer *peer = c->owner;

  switch (frame->type) {
  case NET_FRAME_HELLO: dialled_hello(peer, c, frame); break;
  case NET_FRAME_GOODBYE: dialled_goodbye(peer, c, frame); break;
  case NET_FRAME_RAFT: net_deliver(peer->net, c, frame); break;
  default: net_call_answer(c, frame);
  }
}

static void dialled_closed(struct net_connection *c)
{
  struct net_peer *peer = c->owner;
  struct net *net = peer->net;
  const struct net_limits *limits = &net->hub.limits;
  uint64_t now = uv_now(net->hub.loop);

  assert(peer->dialled == c);
  peer->dialled = NULL;
  if (c->candidates.n) peer->at = c->candidates;
  if (!c->peer && !net->hub.closing) net->counters.dial_failures++;
  if (c->cause == NET_FAILED && c->refusal) net->counters.refused[c->refusal]++;
  /* A handshake alone is no success: the other side may refuse us after it. */
  if (c->peer && (c->framed || now - c->ready_at >= limits->backoff_max_ms))
    peer->backoff_ms = limits->backoff_min_ms;
  if (peer->wanted && !net->hub.closing) redial(peer);
  net_call_lost(net, c, "the connection was lost");
  if (c->cause != NET_CUT) tell(peer, c);
  if (c->cause == NET_PEER_CLOSED && c->peer) net_peer_lost(peer);
}

static const struct net_handler dialled = {
    .ready = dialled_ready,
    .frame = dialled_frame,
    .expired = net_peer_expired,
    .closed = dialled_closed,
};

uint64_t net_peer_tick(struct net *net, uint64_t now)
{
  uint64_t at = NET_NEVER;

  for (struct net_peer *peer = net->peers; peer; peer = peer->next) {
    if (!peer->wanted || peer->dialled) continue;
    if (peer->redial_at <= now) {
      peer->redial_at = NET_NEVER;
      net->counters.dials++;
      peer->dialled =
          net_connection_dial(&net->hub, net->tls, peer->address, NULL,
                              peer->attempts++, &dialled, peer);
      if (!peer->dialled) redial(peer);
    }
    if (!peer->dialled) at = MIN(at, peer->redial_at);
  }
  return at;
}

/* ---- the owner's side ---------------------------------------------------- */

/* Ends what this node dialled. */
static void hang_up(struct net_peer *peer, const char *why)
{
  if (peer->dialled) net_connection_end(peer->dialled, NET_CUT, "%s", why);
  if (peer->fetch) net_connection_end(peer->fetch, NET_CUT, "%s", why);
}

static void unwant(struct net_peer *peer)
{
  peer->wanted = false;
  peer->revoked = false;
  peer->cut = true; /* what it dialled is told why, see recheck() */
  hang_up(peer, "no longer a peer");
}

static void want(struct net *net, const struct raft_member *member)
{
  struct net_peer *peer = net_peer_get(net, member->id);

  if (!peer) {
    net_event(net, NET_EVENT_OTHER, "out of memory");
    return;
  }
  if (peer->wanted && strcmp(peer->address, member->address) == 0) return;
  peer->wanted = true;
  peer->revoked = false;
  memset(&peer->at, 0, sizeof peer->at);
  snprintf(peer->address, sizeof peer->address, "%s", member->address);
  peer->backoff_ms = net->hub.limits.backoff_min_ms;
  peer->attempts = 0;
  peer->redial_now = true;
  if (!peer->dialled) redial(peer);
  hang_up(peer, "its address changed");
}

void net_set_peers(struct net *net, const struct raft_configuration *peers)
{
  if (net->hub.closing) return;
  for (struct net_peer *peer = net->peers; peer; peer = peer->next)
    if (peer->wanted && !raft_configuration_find(peers, peer->id)) unwant(peer);
  for (unsigned i = 0; i < MIN(peers->n, RAFT_MEMBERS_MAX); i++)
    if (peers->members[i].id != net->self.id) want(net, &peers->members[i]);
  net_recheck(net);
}

bool net_peer_at(const struct net *net, const struct sockaddr_storage *address)
{
  for (const struct net_peer *peer = net->peers; peer; peer = peer->next) {
    const struct net_candidates *at = &peer->at;

    if (!peer->wanted) continue;
    if (peer->dialled && peer->dialled->candidates.n)
      at = &peer->dialled->candidates;
    for (unsigned i = 0; i < at->n; i++)
      if (net_same_source(&at->at[i], address)) return true;
  }
  return false;
}

static bool is_request(unsigned type)
{
  return type == RAFT_PREVOTE_REQUEST || type == RAFT_VOTE_REQUEST ||
         type == RAFT_APPEND_REQUEST || type == RAFT_HEARTBEAT_REQUEST ||
         type == RAFT_READ_REQUEST;
}

static struct net_connection *way_to(const struct net_peer *peer, bool request)
{
  if (!request)
    for (unsigned i = 0; i < peer->n_inbound; i++)
      if (net_usable(peer->inbound[i]) &&
          peer->inbound[i]->role == NET_ROLE_MEMBER)
        return peer->inbound[i];
  return net_usable(peer->dialled) ? peer->dialled : NULL;
}

static uint8_t *scratch(struct net *net, size_t size)
{
  uint8_t *memory;

  if (size > net->scratch_size) {
    memory = realloc(net->scratch, size);
    if (!memory) return NULL;
    net->scratch = memory;
    net->scratch_size = size;
  }
  return net->scratch;
}

bool net_send(struct net *net, const struct raft_message *message)
{
  struct iovec parts[RAFT_MESSAGE_ENTRIES_MAX + 1];
  struct net_peer *peer = net_peer_find(net, message->to);
  struct net_connection *c =
      peer ? way_to(peer, is_request(message->type)) : NULL;
  struct raft_body *body;
  int n = 1;

  if (!c || message->n_entries > RAFT_MESSAGE_ENTRIES_MAX) return false;
  if (raft_message_size(message) > NET_MESSAGE_MAX) return false;
  parts[0].iov_len = raft_message_head_size(message);
  parts[0].iov_base = scratch(net, parts[0].iov_len);
  if (!parts[0].iov_base) return false;
  raft_message_encode_head(message, parts[0].iov_base);
  for (uint32_t i = 0; i < message->n_entries; i++) {
    body = message->entries[i].body;
    if (!body || body->len == 0) continue;
    parts[n].iov_base = body->data;
    parts[n++].iov_len = body->len;
  }
  if (!net_connection_send(c, NET_FRAME_RAFT, parts, n)) return false;
  net->counters.sent_messages++;
  return true;
}

bool net_post(struct net *net, raft_id to, const struct iovec *parts, int n)
{
  struct net_peer *peer = net_peer_find(net, to);
  size_t len = 0;

  for (int i = 0; i < n; i++)
    len += parts[i].iov_len;
  if (!peer || !net_usable(peer->dialled) || len > NET_POST_MAX) return false;
  return net_connection_send(peer->dialled, NET_FRAME_POST, parts, n);
}

bool net_peer_status(const struct net *net, raft_id id,
                     struct net_peer_status *status)
{
  const struct net_peer *peer = net_peer_find(net, id);

  memset(status, 0, sizeof *status);
  if (!peer) return false;
  status->connected = net_usable(peer->dialled);
  status->last_received = peer->traffic.last_received;
  status->sent_bytes = peer->traffic.sent;
  status->received_bytes = peer->traffic.received;
  status->incarnation = peer->incarnation;
  status->expires = peer->expires;
  return true;
}

uint32_t net_round_trip(const struct net *net, raft_id id)
{
  const struct net_peer *peer = net_peer_find(net, id);
  struct tcp_info info = {0};
  socklen_t size = sizeof info;
  uv_os_fd_t fd;

  if (!peer || !net_usable(peer->dialled)) return 0;
  if (uv_fileno((const uv_handle_t *)&peer->dialled->tcp, &fd) ||
      getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
    return 0;
  return info.tcpi_rtt;
}
