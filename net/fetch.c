/*
** fetch.c: the connections that carry fetches, and nothing else.
**
** A fetch is a call whose answer is long. On the connection of the heartbeats
** it would hold them up, so a node that fetches from a peer dials it once more:
**
**   none --net_fetch()--> dialling --handshake, HELLO--> open
**    ^                       |                                  |
**    |<--- it failed --------'                                  |
**    `<--- lost, timed out, peer removed, or idle --------------'
**
** Fetches made while it is being dialled wait in the list of calls (call.c)
** with a copy of their bodies. Whatever ends the connection fails all of its
** fetches, with the reason as their text; nothing is dialled again until the
** owner asks for something.
**
** On the other side it is an inbound connection like others until its first
** FETCH frame makes it a FETCHER (net.c). Then it is set apart: its end says
** nothing about the peer (an idle one is closed as a matter of course), and a
** peer may have two at most, since it may dial anew before this side has seen
** the end of the one before.
*/
#include "internal.h"

#include <assert.h>
#include <stdio.h>

static void fetch_ready(struct net_connection *c)
{
  struct net_peer *peer = c->owner;

  assert(peer->fetch == c || c->ended);
  net_peer_greet(peer, c);
}

static void fetch_frame(struct net_connection *c, const struct net_frame *frame)
{
  struct net_peer *peer = c->owner;
  struct net *net = peer->net;

  if (frame->type == NET_FRAME_ANSWER) {
    net_call_answer(c, frame);
  } else if (frame->type == NET_FRAME_GOODBYE) {
    net_peer_goodbye(peer, c, frame);
  } else if (net_peer_greeted(peer, c, frame)) {
    c->reader.allowed =
        NET_ALLOW(NET_FRAME_ANSWER) | NET_ALLOW(NET_FRAME_GOODBYE);
    net_call_ready(net, c);
    net_hub_arm(&net->hub,
                uv_now(net->hub.loop) + net->hub.limits.fetch_idle_ms);
  }
}

static void fetch_closed(struct net_connection *c)
{
  struct net_peer *peer = c->owner;
  char why[NET_TEXT + 64];

  /* Its successor may be under way by now. */
  if (peer->fetch == c) peer->fetch = NULL;
  snprintf(why, sizeof why, "%s: %s",
           c->peer ? "the connection was lost"
                   : "there is no connection to that node",
           c->why);
  net_call_lost(peer->net, c, why);
}

static const struct net_handler fetching = {
    .ready = fetch_ready,
    .frame = fetch_frame,
    .expired = net_peer_expired,
    .closed = fetch_closed,
};

struct net_connection *net_fetch_connection(struct net_peer *peer,
                                            const char **why)
{
  struct net *net;

  if (!peer || !peer->wanted) {
    *why = "not a peer";
    return NULL;
  }
  net = peer->net;
  peer->fetched_at = uv_now(net->hub.loop);
  if (peer->fetch && !peer->fetch->ended && !peer->fetch->parting)
    return peer->fetch;
  /* One that has ended is reaped before the sweep frees any peer, so that it
     still finds its owner in fetch_closed(). */
  peer->fetch = net_connection_dial(&net->hub, net->tls, peer->address, NULL,
                                    peer->attempts, &fetching, peer);
  if (!peer->fetch) *why = "out of memory";
  return peer->fetch;
}

uint64_t net_fetch_tick(struct net *net, uint64_t now)
{
  uint64_t idle_ms = net->hub.limits.fetch_idle_ms, at = NET_NEVER, due;

  for (struct net_peer *peer = net->peers; peer; peer = peer->next) {
    if (!net_usable(peer->fetch)) continue; /* other limits hold */
    due = peer->fetched_at + idle_ms;
    if (due <= now && net_call_pending(net, peer->fetch)) due = now + idle_ms;
    if (due <= now)
      net_connection_end(peer->fetch, NET_CUT, "nothing was asked for a while");
    else
      at = MIN(at, due);
  }
  return at;
}

void net_fetch(struct net *net, raft_id peer, const void *body, size_t len,
               unsigned timeout_ms, net_done done, void *ctx)
{
  net_ask(net, NET_FRAME_FETCH, peer, body, len, timeout_ms, done, ctx);
}
