/*
** call.c: calls to members and their answers, and requests from others.
**
** A call is a CALL frame with a number of the caller's; the ANSWER comes back
** on the same connection with that number and a status: 0 or a code of the
** owner's, or -1 and a text when net itself could not do what was asked. A
** fetch is the same in a FETCH frame on a connection of its own (fetch.c); it
** waits here, with a copy of its body, while that is being made.
**
** A struct net_request belongs to the owner from request() to net_reply(),
** however long that takes; its connection may be gone by then.
*/
#include "internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

/* Outstanding calls of a net, and unanswered requests of a connection. */
#define CALLS_MAX 1024u

/* ---- answers ------------------------------------------------------------- */

void net_send_answer(struct net_connection *c, uint64_t correlation, int status,
                     const void *body, size_t len)
{
  static const char too_long[] = "the answer is too long";
  uint8_t head[NET_ANSWER_HEAD];
  struct iovec parts[2];

  if (len > NET_ANSWER_MAX) {
    status = -1;
    body = too_long;
    len = sizeof too_long - 1;
  }
  net_put64(head, correlation);
  net_put32(head + 8, (uint32_t)status);
  parts[0].iov_base = head;
  parts[0].iov_len = sizeof head;
  parts[1].iov_base = (void *)(uintptr_t)body;
  parts[1].iov_len = len;
  if (!net_connection_send(c, NET_FRAME_ANSWER, parts, 2))
    net_connection_end(c, NET_FAILED, "an answer could not be queued");
}

bool net_read_answer(const struct net_frame *frame, uint64_t *correlation,
                     int *status, const uint8_t **body, size_t *len)
{
  if (frame->len < NET_ANSWER_HEAD) return false;
  *correlation = net_get64(frame->body);
  *status = (int)(int32_t)net_get32(frame->body + 8);
  *body = frame->body + NET_ANSWER_HEAD;
  *len = frame->len - NET_ANSWER_HEAD;
  return *status >= -1;
}

/* ---- calls --------------------------------------------------------------- */

struct net_call {
  struct net_call *next;
  struct net_connection *connection; /* NULL: it failed, see why */
  uint8_t type;                      /* NET_FRAME_CALL or NET_FRAME_FETCH */
  uint64_t id, deadline;
  net_done done;
  void *ctx;
  const char *why;
  uint8_t *body; /* a copy until it is sent; NULL: it was sent */
  size_t len;
};

static const char no_answer[] = "no answer in time";

static struct net_call *unlink_call(struct net *net, struct net_call **link)
{
  struct net_call *call = *link;

  *link = call->next;
  if (!call->next) net->calls_end = link;
  net->n_calls--;
  return call;
}

static void fail_call(struct net_call *call)
{
  const char *why = call->why;

  call->done(call->ctx, -1, (const uint8_t *)why, strlen(why));
  free(call->body);
  free(call);
}

/* It is not under way; the owner hears of it from the timer (N1). */
static void give_up(struct net *net, struct net_call *call, const char *why)
{
  call->connection = NULL;
  call->why = why;
  call->deadline = uv_now(net->hub.loop);
  net_hub_arm(&net->hub, call->deadline);
}

static bool put(struct net_call *call, const void *body, size_t len)
{
  uint8_t head[NET_CALL_HEAD];
  struct iovec parts[2];

  net_put64(head, call->id);
  parts[0].iov_base = head;
  parts[0].iov_len = sizeof head;
  parts[1].iov_base = (void *)(uintptr_t)body;
  parts[1].iov_len = len;
  call->why = no_answer;
  return net_connection_send(call->connection, call->type, parts, 2);
}

/* Keeps what its connection cannot take yet. */
static bool keep(struct net_call *call, const void *body, size_t len)
{
  call->body = malloc(len ? len : 1);
  if (!call->body) return false;
  if (len) memcpy(call->body, body, len);
  call->len = len;
  call->why = "no connection in time";
  return true;
}

/* The connection that it is to go out on. NULL: none, *why says why. */
static struct net_connection *way(struct net *net, const struct net_call *call,
                                  raft_id to, const char **why)
{
  struct net_peer *peer = net_peer_find(net, to);

  *why = "there is no connection to that node";
  if (call->type == NET_FRAME_FETCH) return net_fetch_connection(peer, why);
  return peer && net_usable(peer->dialled) ? peer->dialled : NULL;
}

/* Returns why it cannot be made, or NULL. */
static const char *start(struct net *net, struct net_call *call, raft_id to,
                         const void *body, size_t len)
{
  const char *why;

  if (to == net->self.id) return "a request to this node itself";
  if (len > NET_REQUEST_MAX) return "the request is too long";
  if (net->n_calls > CALLS_MAX)
    return "too many requests are waiting for their answers";
  call->connection = way(net, call, to, &why);
  if (!call->connection) return why;
  if (call->type == NET_FRAME_FETCH && !call->connection->peer)
    return keep(call, body, len) ? NULL : "out of memory";
  return put(call, body, len) ? NULL : "too much is queued for that node";
}

void net_ask(struct net *net, enum net_frame_type type, raft_id peer,
             const void *body, size_t len, unsigned timeout_ms, net_done done,
             void *ctx)
{
  static const char refused[] = "the request could not be made";
  struct net_call *call = net->hub.closing ? NULL : calloc(1, sizeof *call);
  const char *why;

  if (!call) {
    done(ctx, -1, (const uint8_t *)refused, sizeof refused - 1);
    return;
  }
  call->type = (uint8_t)type;
  call->id = ++net->last_call;
  call->done = done;
  call->ctx = ctx;
  call->deadline = uv_now(net->hub.loop) + timeout_ms;
  *net->calls_end = call;
  net->calls_end = &call->next;
  net->n_calls++;
  why = start(net, call, peer, body, len);
  if (why)
    give_up(net, call, why);
  else
    net_hub_arm(&net->hub, call->deadline);
}

void net_call(struct net *net, raft_id peer, const void *body, size_t len,
              unsigned timeout_ms, net_done done, void *ctx)
{
  net_ask(net, NET_FRAME_CALL, peer, body, len, timeout_ms, done, ctx);
}

void net_call_ready(struct net *net, struct net_connection *c)
{
  for (struct net_call *call = net->calls; call; call = call->next) {
    if (call->connection != c || !call->body) continue;
    if (!put(call, call->body, call->len) && !c->ended)
      give_up(net, call, "too much is queued for that node");
    free(call->body);
    call->body = NULL;
  }
}

bool net_call_pending(const struct net *net, const struct net_connection *c)
{
  for (const struct net_call *call = net->calls; call; call = call->next)
    if (call->connection == c) return true;
  return false;
}

void net_call_answer(struct net_connection *c, const struct net_frame *frame)
{
  struct net *net = (struct net *)c->hub;
  struct net_call **link = &net->calls, *call;
  const uint8_t *body;
  uint64_t id;
  size_t len;
  int status;

  if (!net_read_answer(frame, &id, &status, &body, &len)) {
    net_connection_refuse(c, NET_REFUSED_MALFORMED, "a malformed answer");
    return;
  }
  while (*link && ((*link)->id != id || (*link)->connection != c))
    link = &(*link)->next;
  if (!*link) return; /* it came too late */
  call = unlink_call(net, link);
  call->done(call->ctx, status, body, len);
  free(call);
}

/* Nobody waits any more for the answer to a fetch: it would only delay others,
   so its connection ends. One that is still being made goes on if another
   fetch waits for it. */
static void expire(struct net *net, const struct net_call *call)
{
  struct net_connection *c = call->connection;

  if (!c || call->type != NET_FRAME_FETCH) return;
  if (call->body && net_call_pending(net, c)) return;
  net_connection_end(c, NET_CUT, "a fetch had no answer in time");
}

/* Fails those due at `now` and those of a connection that is gone. They are
   taken off first: a callback may make new calls, which fail another time. */
static void fail_calls(struct net *net, struct net_connection *gone,
                       const char *why, uint64_t now)
{
  struct net_call **link = &net->calls, *failed = NULL, **end = &failed, *call;

  while ((call = *link) != NULL) {
    bool lost = gone && call->connection == gone;

    if (!lost && call->deadline > now) {
      link = &call->next;
      continue;
    }
    *end = unlink_call(net, link);
    end = &call->next;
    *end = NULL;
    if (lost)
      call->why = why;
    else
      expire(net, call);
  }
  while ((call = failed) != NULL) {
    failed = call->next;
    fail_call(call);
  }
}

void net_call_lost(struct net *net, struct net_connection *connection,
                   const char *why)
{
  fail_calls(net, connection, why, 0);
}

uint64_t net_call_tick(struct net *net, uint64_t now)
{
  uint64_t at = NET_NEVER;

  fail_calls(net, NULL, NULL, now);
  for (struct net_call *call = net->calls; call; call = call->next)
    at = MIN(at, call->deadline);
  return at;
}

void net_call_end(struct net *net)
{
  fail_calls(net, NULL, NULL, NET_NEVER);
}

/* ---- requests ------------------------------------------------------------ */

struct net_request {
  struct net_connection *connection; /* NULL: gone */
  struct net_request *next, *prev;
  uint64_t correlation;
  raft_id identity;
  char remote[64];
};

struct net_request *net_request_new(struct net_connection *c,
                                    uint64_t correlation)
{
  struct net_request *request;

  if (c->n_requests >= CALLS_MAX) return NULL;
  request = calloc(1, sizeof *request);
  if (!request) return NULL;
  request->connection = c;
  request->correlation = correlation;
  request->identity = c->identity;
  snprintf(request->remote, sizeof request->remote, "%.63s", c->remote);
  request->next = c->requests;
  if (request->next) request->next->prev = request;
  c->requests = request;
  c->n_requests++;
  return request;
}

static void detach(struct net_request *request)
{
  struct net_connection *c = request->connection;

  if (request->prev)
    request->prev->next = request->next;
  else
    c->requests = request->next;
  if (request->next) request->next->prev = request->prev;
  request->next = request->prev = NULL;
  request->connection = NULL;
  c->n_requests--;
}

void net_request_lost(struct net_connection *c)
{
  while (c->requests)
    detach(c->requests);
}

void net_request_refuse(struct net_connection *c, const char *why)
{
  while (c->requests) {
    net_send_answer(c, c->requests->correlation, -1, why, strlen(why));
    detach(c->requests);
  }
}

raft_id net_request_identity(const struct net_request *request)
{
  return request->identity;
}

const char *net_request_remote(const struct net_request *request)
{
  return request->remote;
}

void net_reply(struct net_request *request, int status, const void *body,
               size_t len)
{
  struct net_connection *c;

  if (!request) return;
  c = request->connection;
  if (c) {
    detach(request);
    net_send_answer(c, request->correlation, status, body, len);
  }
  free(request);
}
