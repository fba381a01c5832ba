/*
** net.c: the node's net as a whole: what it tells its owner, what it counts,
** who is asked about again, its beginning and its end.
*/
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- events -------------------------------------------------------------- */

static void tell(struct net *net, unsigned kind, const char *format,
                 va_list args) __attribute__((format(printf, 3, 0)));

static void tell(struct net *net, unsigned kind, const char *format,
                 va_list args)
{
  struct net_limiter *limiter = &net->limiters[kind];
  uint64_t now = uv_now(net->hub.loop);
  char line[2 * NET_TEXT];
  int n;

  assert(kind < NET_EVENT_KINDS);
  if (!net->callbacks.event || net->hub.closing) return;
  if (limiter->last && now - limiter->last < net->hub.limits.event_ms) {
    limiter->held++;
    return;
  }
  n = vsnprintf(line, sizeof line, format, args);
  n = MIN(n, (int)sizeof line - 1);
  if (limiter->held)
    snprintf(line + n, sizeof line - (size_t)n, " (and %u more like it)",
             limiter->held);
  limiter->held = 0;
  limiter->last = now ? now : 1;
  net->callbacks.event(net->callbacks.ctx, line);
}

void net_event(struct net *net, unsigned kind, const char *format, ...)
{
  va_list args;

  va_start(args, format);
  tell(net, kind, format, args);
  va_end(args);
}

struct net_name net_name(const struct net *net, raft_id id)
{
  struct net_name name = {""};

  if (net->callbacks.name) net->callbacks.name(net->callbacks.ctx, id, name.s);
  if (name.s[0] == 0) snprintf(name.s, sizeof name.s, "node %016" PRIx64, id);
  return name;
}

void net_refused(struct net *net, enum net_refusal refusal, const char *format,
                 ...)
{
  va_list args;

  net->counters.refused[refusal]++;
  va_start(args, format);
  tell(net, refusal, format, args);
  va_end(args);
}

const char *net_refusal_name(unsigned refusal)
{
  static const char *const names[] = {
#define NET_REFUSAL_TEXT(name, text, what) text,
      NET_REFUSALS_MAP(NET_REFUSAL_TEXT)
#undef NET_REFUSAL_TEXT
  };

  return refusal < NET_REFUSALS ? names[refusal] : "?";
}

void net_counters(const struct net *net, struct net_counters *out)
{
  *out = net->counters;
  out->sent_bytes = net->hub.sent;
  out->received_bytes = net->hub.received;
  out->unverified = net->crowd.n;
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
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed raft message");
    return;
  }
  if (message.from != c->peer || message.to != net->self.id) {
    net_connection_refuse(c, NET_REFUSED_IDENTITY,
                          "a message from node %016" PRIx64
                          " to node %016" PRIx64,
                          message.from, message.to);
    raft_message_clear(&message);
    return;
  }
  net->counters.received_messages++;
  net->callbacks.message(net->callbacks.ctx, &message);
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
    if (net_is_inbound(c))
      net_inbound_recheck(c);
    else
      net_peer_recheck(c);
  }
  for (struct net_peer *peer = net->peers; peer; peer = peer->next)
    peer->cut = false;
}

void net_recheck(struct net *net)
{
  if (net->hub.closing) return;
  net->recheck = true;
  net_hub_arm(&net->hub, uv_now(net->hub.loop));
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

  assert(!net->calls && !net->peers && net->crowd.n == 0);
  net_free(net);
  if (closed) closed(ctx);
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
  net->self.cluster = options->cluster;
  net->self.id = options->self;
  net->self.incarnation = options->incarnation;
  net->listen_fd = -1;
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

  int rc;

  *out = NULL;
  if (!net) return -1;
  net->hub.loop = options->loop;
  if (options->listen && net_listen(net, options->listen, error)) goto fail;
  rc = options->listen ? net_listen_begin(net) : 0;
  if (rc) {
    net_fail(error, "cannot listen on %.128s: %s", options->listen,
             uv_strerror(rc));
    goto fail;
  }
  net_hub_open(&net->hub, options->loop);
  net->hub.tick = net_tick;
  net->hub.sweep = net_sweep;
  net->hub.gone = on_gone;
  *out = net;
  return 0;

fail:
  if (net->listen_fd >= 0) close(net->listen_fd);
  net_free(net);
  return -1;
}

const char *net_listening(const struct net *net)
{
  return net->listening;
}

int net_descriptor(const struct net *net)
{
  return net->listen_fd;
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
  net_listen_end(net);
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
