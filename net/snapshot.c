/*
** snapshot.c: snapshots, out and in, each on a connection of its own.
**
**   sender                                receiver
**   SNAPSHOT_BEGIN  the owner's head  ->  snapshot_begin()
**   SNAPSHOT_CHUNK  bytes, repeated   ->  snapshot_chunk()
**   SNAPSHOT_END                      ->  snapshot_end(true), net_reply()
**                 <-  ANSWER, correlation 0, the owner's status
**
** The receiver may answer earlier, with -1 and a text, to refuse; it then
** reads on and forgets what comes until the sender closes, because a close
** with unread bytes in the socket could destroy the answer on its way.
**
** The sender reads one chunk an iteration of the loop and a snapshot, and only
** while little is unsent, so that heartbeats on other connections go between.
** An idle handle keeps the loop turning as long as there is room.
*/
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* No chunk is read while more than this is unsent. */
#define LOW_WATER (1024u * 1024u)

struct net_snapshot {
  struct net_snapshot *next;
  struct net *net;
  raft_id peer;
  struct net_connection *connection; /* NULL: none, or gone */
  ssize_t (*read)(void *ctx, uint8_t *buf, size_t max);
  net_done done;
  void *ctx;
  uint8_t *chunk;
  uint8_t *head;
  size_t len;
  bool begun, at_end; /* BEGIN was queued; END was queued */
  bool over;          /* status and text say how; done() comes soon */
  int status;
  size_t text_len;
  uint8_t *text;
  char why[NET_TEXT];
};

static const char no_progress[] = "the snapshot made no progress";

/* ---- out ----------------------------------------------------------------- */

/* The outcome is known; the owner hears of it before the loop sleeps. */
static void finish(struct net_snapshot *s, int status, const void *text,
                   size_t len)
{
  if (s->over) return;
  s->over = true;
  s->status = status;
  if (len > 0 && (s->text = malloc(len)) != NULL) {
    memcpy(s->text, text, len);
    s->text_len = len;
  }
  if (s->connection)
    net_connection_end(s->connection, NET_CUT, "the snapshot is over");
}

static void give_up(struct net_snapshot *s, const char *why)
{
  finish(s, -1, why, strlen(why));
}

static bool has_room(struct net_snapshot *s)
{
  return s->begun && !s->at_end && !s->over && net_usable(s->connection) &&
         net_connection_unsent(s->connection) < LOW_WATER;
}

static void pump(struct net_snapshot *s)
{
  struct iovec part = {.iov_base = s->chunk};
  ssize_t n = s->read(s->ctx, s->chunk, NET_CHUNK_MAX);
  bool ok;

  if (s->over || !net_usable(s->connection)) return;
  if (n < 0 || n > (ssize_t)NET_CHUNK_MAX) {
    give_up(s, "the snapshot could not be read");
    return;
  }
  part.iov_len = (size_t)n;
  if (n == 0) {
    s->at_end = true;
    ok = net_connection_send(s->connection, NET_FRAME_SNAPSHOT_END, NULL, 0);
  } else {
    ok = net_connection_send(s->connection, NET_FRAME_SNAPSHOT_CHUNK, &part, 1);
  }
  if (ok)
    net_connection_flush(s->connection);
  else
    give_up(s, "the snapshot could not be queued");
}

static void on_idle(uv_idle_t *idle)
{
  struct net *net = idle->data;
  bool more = false;

  for (struct net_snapshot *s = net->snapshots; s; s = s->next) {
    if (has_room(s)) pump(s);
    if (has_room(s)) more = true;
  }
  if (!more) uv_idle_stop(idle);
}

static void out_sent(struct net_connection *c)
{
  struct net_snapshot *s = c->owner;

  net_connection_deadline(c, c->hub->limits.snapshot_ms, no_progress);
  if (has_room(s) && !s->net->hub.closing)
    uv_idle_start(&s->net->idle, on_idle);
}

static void out_ready(struct net_connection *c)
{
  struct net_snapshot *s = c->owner;
  struct net *net = s->net;
  struct iovec part = {.iov_base = s->head, .iov_len = s->len};
  raft_id id = tls_stream_peer(c->tls);

  if (id != s->peer) {
    net_connection_end(c, NET_FAILED,
                       "it shows the certificate of node %016" PRIx64, id);
    return;
  }
  if (!net->callbacks.allowed(net->callbacks.ctx, id)) {
    net_connection_end(c, NET_FAILED, "it is not a member");
    return;
  }
  c->peer = id;
  c->reader.allowed = NET_ALLOW(NET_FRAME_ANSWER);
  net_connection_deadline(c, c->hub->limits.snapshot_ms, no_progress);
  if (net_connection_send(c, NET_FRAME_SNAPSHOT_BEGIN, &part, 1)) {
    s->begun = true;
    uv_idle_start(&net->idle, on_idle);
  } else {
    net_connection_end(c, NET_FAILED, "out of memory");
  }
}

static void out_frame(struct net_connection *c, const struct net_frame *frame)
{
  struct net_snapshot *s = c->owner;
  const uint8_t *text;
  uint64_t id;
  size_t len;
  int status;

  if (!net_read_answer(frame, &id, &status, &text, &len) ||
      (status == 0 && !s->at_end))
    net_connection_end(c, NET_FAILED, "a malformed answer");
  else
    finish(s, status, text, len);
}

static void out_closed(struct net_connection *c)
{
  struct net_snapshot *s = c->owner;

  s->connection = NULL;
  if (s->over) return;
  snprintf(s->why, sizeof s->why, "%s: %.200s", c->peer ? "lost" : "failed",
           c->why);
  give_up(s, s->why);
}

static const struct net_handler out = {
    .ready = out_ready,
    .frame = out_frame,
    .sent = out_sent,
    .closed = out_closed,
};

static void snapshot_free(struct net_snapshot *s)
{
  free(s->chunk);
  free(s->head);
  free(s->text);
  free(s);
}

/* Those that are over are taken off first: done() may start new ones. */
void net_snapshot_sweep(struct net *net)
{
  struct net_snapshot **link = &net->snapshots, *over = NULL, *s;

  while ((s = *link) != NULL) {
    if (!s->over || s->connection) {
      link = &s->next;
      continue;
    }
    *link = s->next;
    s->next = over;
    over = s;
  }
  while ((s = over) != NULL) {
    over = s->next;
    s->done(s->ctx, s->status, s->text, s->text_len);
    snapshot_free(s);
  }
}

void net_snapshot_cut(struct net *net, raft_id peer)
{
  for (struct net_snapshot *s = net->snapshots; s; s = s->next)
    if (s->peer == peer) give_up(s, "no longer a peer");
}

void net_snapshot_end(struct net *net)
{
  for (struct net_snapshot *s = net->snapshots; s; s = s->next)
    give_up(s, "the node is shutting down");
}

static bool running(const struct net *net, raft_id peer)
{
  for (const struct net_snapshot *s = net->snapshots; s; s = s->next)
    if (s->peer == peer && !s->over) return true;
  return false;
}

static void start(struct net_snapshot *s, const void *head, size_t len)
{
  struct net *net = s->net;
  struct net_peer *peer = net_peer_find(net, s->peer);

  s->chunk = malloc(NET_CHUNK_MAX);
  s->head = malloc(len ? len : 1);
  if (!s->chunk || !s->head) {
    give_up(s, "out of memory");
    return;
  }
  if (len) memcpy(s->head, head, len);
  s->len = len;
  s->connection = net_connection_dial(&net->hub, net->tls, peer->address, NULL,
                                      peer->attempts, &out, s);
  if (!s->connection) give_up(s, "out of memory");
}

void net_send_snapshot(struct net *net, raft_id to, const void *head,
                       size_t len,
                       ssize_t (*read)(void *ctx, uint8_t *buf, size_t max),
                       net_done done, void *ctx)
{
  static const char refused[] = "the snapshot could not be sent";
  struct net_snapshot *s = net->hub.closing ? NULL : calloc(1, sizeof *s);
  struct net_peer *peer = net_peer_find(net, to);

  if (!s) {
    done(ctx, -1, (const uint8_t *)refused, sizeof refused - 1);
    return;
  }
  s->net = net;
  s->peer = to;
  s->read = read;
  s->done = done;
  s->ctx = ctx;
  if (len > NET_REQUEST_MAX)
    give_up(s, "the head is too long");
  else if (!peer || !peer->wanted)
    give_up(s, "not a peer");
  else if (running(net, to))
    give_up(s, "another snapshot is being sent to that node");
  else
    start(s, head, len);
  s->next = net->snapshots;
  net->snapshots = s;
  if (s->over) net_hub_arm(&net->hub, 0);
}

/* ---- in ------------------------------------------------------------------ */

static void refuse(struct net_connection *c, const char *why)
{
  net_set_role(c, NET_ROLE_DRAIN);
  net_send_answer(c, 0, -1, why, strlen(why));
  net_connection_deadline(c, c->hub->limits.linger_ms,
                          "not closed by the other side");
}

/* The incoming snapshot will not be completed. */
static void break_off(struct net *net)
{
  net->incoming = NULL;
  net->callbacks.snapshot_end(net->callbacks.ctx, false, NULL);
}

static void begin(struct net *net, struct net_connection *c,
                  const struct net_frame *frame)
{
  struct net_connection *older = net->incoming;

  if (older) {
    refuse(older, "a newer snapshot has begun");
    break_off(net);
  }
  if (!net->callbacks.snapshot_begin(net->callbacks.ctx, c->peer, frame->body,
                                     frame->len)) {
    refuse(c, "the snapshot was refused");
    return;
  }
  net->incoming = c;
  net_set_role(c, NET_ROLE_SNAPSHOT);
  net_connection_deadline(c, c->hub->limits.snapshot_ms, no_progress);
}

static void chunk(struct net *net, struct net_connection *c,
                  const struct net_frame *frame)
{
  net_connection_deadline(c, c->hub->limits.snapshot_ms, no_progress);
  if (frame->len == 0) {
    net_connection_end(c, NET_FAILED, "an empty chunk");
    return;
  }
  if (net->callbacks.snapshot_chunk(net->callbacks.ctx, frame->body,
                                    frame->len))
    return;
  refuse(c, "the snapshot was refused");
  break_off(net);
}

static void end(struct net *net, struct net_connection *c)
{
  struct net_request *request = net_request_new(c, 0);

  if (!request) {
    refuse(c, "out of memory");
    break_off(net);
    return;
  }
  net->incoming = NULL;
  net_set_role(c, NET_ROLE_DONE);
  net_connection_deadline(c, NET_NEVER, NULL);
  net->callbacks.snapshot_end(net->callbacks.ctx, true, request);
}

void net_snapshot_frame(struct net *net, struct net_connection *c,
                        const struct net_frame *frame)
{
  if (c->role == NET_ROLE_DRAIN) return;
  if (frame->type == NET_FRAME_SNAPSHOT_BEGIN) {
    begin(net, c, frame);
    return;
  }
  assert(net->incoming == c);
  if (frame->type == NET_FRAME_SNAPSHOT_CHUNK)
    chunk(net, c, frame);
  else
    end(net, c);
}

void net_snapshot_lost(struct net *net, struct net_connection *c)
{
  if (net->incoming == c) break_off(net);
}
