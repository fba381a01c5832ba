/*
** inbound.c: connections that come in.
**
** The role of one says what it may bring:
**
**   UNVERIFIED --handshake--> SILENT --HELLO of a peer--> NEW --RAFT, CALL--.
**                               |                          |     MEMBER <---'
**                               |                          `----FETCH--.
**                               |                              FETCHER <'
**                               `--HELLO of a joiner--> JOINER --JOIN--> DONE
**
** and a refusal, from any of them, says GOODBYE if there is someone to say it
** to. Up to HELLO, and while it is a joiner, it is one of the crowd.
*/
#include "internal.h"

#include <assert.h>
#include <stdio.h>

#define FROM_MEMBER                                                            \
  (NET_ALLOW(NET_FRAME_RAFT) | NET_ALLOW(NET_FRAME_CALL) |                     \
   NET_ALLOW(NET_FRAME_POST) | NET_ALLOW(NET_FRAME_GOODBYE))

static void set_role(struct net_connection *c, enum net_role role)
{
  static const unsigned allowed[] = {
      [NET_ROLE_UNVERIFIED] = 0,
      [NET_ROLE_SILENT] = NET_ALLOW(NET_FRAME_HELLO),
      [NET_ROLE_JOINER] = NET_ALLOW(NET_FRAME_JOIN),
      [NET_ROLE_DONE] = 0,
      [NET_ROLE_NEW] = FROM_MEMBER | NET_ALLOW(NET_FRAME_FETCH),
      [NET_ROLE_MEMBER] = FROM_MEMBER,
      [NET_ROLE_FETCHER] =
          NET_ALLOW(NET_FRAME_FETCH) | NET_ALLOW(NET_FRAME_GOODBYE),
  };

  c->role = role;
  c->reader.allowed = allowed[role];
}

/* ---- refusals ------------------------------------------------------------ */

static void say_goodbye(struct net_connection *c, enum net_refusal refusal,
                        unsigned code, const char *why)
{
  struct net *net = c->owner;

  if (c->identity)
    net_refused(net, refusal, "refused %s from %s: %s",
                net_name(net, c->identity).s, c->remote, why);
  else
    net_refused(net, refusal, "refused a connection from %s: %s", c->remote,
                why);
  net_request_lost(c);
  net_connection_part(c, code, why);
}

/* Asks the owner. False: it has been refused. */
static bool admitted(struct net_connection *c)
{
  struct net *net = c->owner;
  char why[NET_TEXT] = "";
  enum net_verdict verdict =
      net->callbacks.allowed(net->callbacks.ctx, c->identity, why, sizeof why);

  if (verdict == NET_ALLOWED) return true;
  if (verdict == NET_STRANGER)
    say_goodbye(c, NET_REFUSED_STRANGER, NET_GOODBYE_STRANGER,
                why[0] ? why : "not a member");
  else
    say_goodbye(c, NET_REFUSED_REVOKED, NET_GOODBYE_REVOKED,
                why[0] ? why : "its certificate was revoked");
  return false;
}

void net_inbound_recheck(struct net_connection *c)
{
  struct net *net = c->owner;
  struct net_peer *peer = net_peer_find(net, c->peer);

  if (!admitted(c) || !peer || !peer->cut) return;
  net_request_lost(c);
  net_connection_part(c, NET_GOODBYE_AGAIN, "no longer a peer");
}

static void inbound_expired(struct net_connection *c)
{
  say_goodbye(c, NET_REFUSED_EXPIRED, NET_GOODBYE_EXPIRED,
              "its certificate has expired");
}

/* ---- the handshake, and HELLO -------------------------------------------- */

static bool inbound_begins(struct net_connection *c)
{
  struct net *net = c->owner;

  assert(c->source);
  if (net_crowd_spend(net, c->source)) return true;
  net_connection_refuse(c, NET_REFUSED_RATE,
                        "too many handshakes within a second");
  return false;
}

static void inbound_ready(struct net_connection *c)
{
  struct net *net = c->owner;

  net->counters.handshakes++;
  set_role(c, NET_ROLE_SILENT);
  if (c->identity == net->self.id)
    say_goodbye(c, NET_REFUSED_IDENTITY, NET_GOODBYE_IDENTITY,
                "it shows this node's own identity");
}

static void let_joiner_in(struct net_connection *c)
{
  struct net *net = c->owner;

  if (!net_hello_send(c, &net->self, 0)) return;
  net_connection_open(c);
  set_role(c, NET_ROLE_JOINER);
  net_connection_deadline(c, net->hub.limits.unverified_ms,
                          "its time without membership is over");
}

static void let_member_in(struct net_connection *c,
                          const struct net_identity *is)
{
  struct net *net = c->owner;
  struct net_peer *peer;

  if (c->identity == 0) {
    say_goodbye(c, NET_REFUSED_STRANGER, NET_GOODBYE_STRANGER,
                "it shows no certificate");
    return;
  }
  if (!admitted(c) || !net_hello_send(c, &net->self, 0)) return;
  peer = net_peer_get(net, c->identity);
  if (!peer) {
    net_connection_end(c, NET_FAILED, "out of memory");
    return;
  }
  net_crowd_leave(net, c);
  net_connection_open(c);
  c->peer = c->identity;
  peer->incarnation = is->incarnation;
  peer->expires = c->expires;
  net_connection_count(c, &peer->traffic);
  set_role(c, NET_ROLE_NEW);
  net_peer_attach(peer, c);
}

static void hello_frame(struct net *net, struct net_connection *c,
                        const struct net_frame *frame)
{
  struct net_hello hello;
  enum net_refusal refusal;
  char why[NET_TEXT];
  unsigned code;

  if (!net_hello_read(frame, &hello)) {
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed hello");
    return;
  }
  code = net_hello_check(&hello, &net->self, c->identity, why, &refusal);
  if (code)
    say_goodbye(c, refusal, code, why);
  else if (hello.purpose == NET_PURPOSE_JOIN)
    let_joiner_in(c);
  else if (hello.purpose == NET_PURPOSE_PEER)
    let_member_in(c, &hello.is);
  else
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed hello");
}

/* ---- frames -------------------------------------------------------------- */

static void call_frame(struct net *net, struct net_connection *c,
                       const struct net_frame *frame)
{
  static const char busy[] = "too many requests are waiting";
  struct net_request *request;
  uint64_t id;

  if (frame->len < NET_CALL_HEAD) {
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed call");
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

  set_role(c, NET_ROLE_DONE);
  if (!request) {
    net_connection_end(c, NET_FAILED, "out of memory");
    return;
  }
  net->counters.joins++;
  net->callbacks.request(net->callbacks.ctx, 0, frame->body, frame->len,
                         request);
}

/* It ends the connection in order; that says nothing of the node. */
static void goodbye_frame(struct net_connection *c,
                          const struct net_frame *frame)
{
  char why[NET_TEXT];
  unsigned code;

  if (net_goodbye_read(frame, &code, why))
    net_connection_end(c, NET_CUT, "%s", why);
  else
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed goodbye");
}

static void inbound_frame(struct net_connection *c,
                          const struct net_frame *frame)
{
  struct net *net = c->owner;

  switch (frame->type) {
  case NET_FRAME_HELLO: hello_frame(net, c, frame); break;
  case NET_FRAME_RAFT:
    if (c->role == NET_ROLE_NEW) set_role(c, NET_ROLE_MEMBER);
    net_deliver(net, c, frame);
    break;
  case NET_FRAME_CALL:
    if (c->role == NET_ROLE_NEW) set_role(c, NET_ROLE_MEMBER);
    call_frame(net, c, frame);
    break;
  case NET_FRAME_POST:
    if (c->role == NET_ROLE_NEW) set_role(c, NET_ROLE_MEMBER);
    if (net->callbacks.posted)
      net->callbacks.posted(net->callbacks.ctx, c->peer, frame->body,
                            frame->len);
    break;
  case NET_FRAME_FETCH:
    if (c->role == NET_ROLE_NEW) {
      set_role(c, NET_ROLE_FETCHER);
      net_peer_set_apart(net_peer_find(net, c->peer), c);
    }
    call_frame(net, c, frame);
    break;
  case NET_FRAME_JOIN: join_frame(net, c, frame); break;
  case NET_FRAME_GOODBYE: goodbye_frame(c, frame); break;
  }
}

/* ---- the end ------------------------------------------------------------- */

/* Says what happened, unless it was nothing. */
static void tell(struct net *net, const struct net_connection *c)
{
  if (c->cause == NET_CUT) return;
  if (c->cause == NET_FAILED && c->identity)
    net_refused(net, c->refusal, "closed the connection of %s from %s: %s",
                net_name(net, c->identity).s, c->remote, c->why);
  else if (c->cause == NET_FAILED &&
           (c->ready || c->refusal == NET_REFUSED_CROWD))
    net_refused(net, c->refusal, "closed a connection from %s: %s", c->remote,
                c->why);
  else if (c->cause == NET_FAILED)
    net_refused(net, c->refusal, "handshake with %s failed: %s", c->remote,
                c->why);
  else if (!c->ready)
    net_refused(net, NET_REFUSED_ABANDONED, "handshake with %s failed: %s",
                c->remote, c->why);
  else if (c->role == NET_ROLE_NEW || c->role == NET_ROLE_MEMBER)
    net_event(net, NET_EVENT_PEER, "%s closed its connection from %s: %s",
              net_name(net, c->peer).s, c->remote, c->why);
}

static void inbound_closed(struct net_connection *c)
{
  struct net *net = c->owner;
  struct net_peer *peer = c->peer ? net_peer_find(net, c->peer) : NULL;

  net_crowd_leave(net, c);
  net_request_lost(c);
  tell(net, c);
  net_peer_detach(peer, c);
  if ((c->role == NET_ROLE_NEW || c->role == NET_ROLE_MEMBER) && peer &&
      c->cause == NET_PEER_CLOSED)
    net_peer_lost(peer);
}

static const struct net_handler inbound = {
    .begins = inbound_begins,
    .ready = inbound_ready,
    .frame = inbound_frame,
    .expired = inbound_expired,
    .closed = inbound_closed,
};

bool net_is_inbound(const struct net_connection *c)
{
  return c->handler == &inbound;
}

void net_inbound(struct net *net, int fd,
                 const struct sockaddr_storage *address,
                 struct net_source *source)
{
  struct net_connection *c =
      net_connection_accept(&net->hub, fd, address, net->tls, &inbound, net);

  if (!c) {
    close(fd);
    net_refused(net, NET_REFUSED_OTHER, "out of memory for a connection");
    return;
  }
  net_crowd_enter(net, c, source);
  set_role(c, NET_ROLE_UNVERIFIED);
}
