/*
** connection.c: one TLS connection on a uv_tcp_t, dialled or accepted.
**
**   resolving -> connecting -> handshake -> ready -> open -> ended -> reaped
**
** and then freed. It is open when both sides have said HELLO (hello.c). One
** that is not wanted says GOODBYE instead, and then waits a moment, reading
** and ignoring, until the other side has read it and closed: closing a socket
** with unread bytes in it would take the GOODBYE back. An accepted connection
** has no TLS stream until its first byte has come, since most of what a crowd
** of silent strangers would cost is that.
**
** Inwards: bytes are read into the hub's inbox, fed to the TLS stream, and
** read from it either into the hub's record buffer, where short frames are
** handed on in place, or straight into the body of a long one.
**
** Outwards: small frames are gathered in `staged` and become one TLS record;
** large ones go from where they are into the stream. A flush offers the
** stream's output to the kernel without a copy. What is left waits there
** while a copy of its first few kilobytes is with libuv, whose write callback
** then says when the socket has room again (N4).
*/
#include "internal.h"

#include <assert.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAGE_SIZE NET_RECORD
/* What is copied for uv_write() to wait for room in the socket. */
#define COPY_SIZE (16u * 1024u)
/* Ciphertext is fed to the stream in pieces that stay in the cache. */
#define FEED_SIZE (64u * 1024u)
/* Smaller ones until the handshake is done: what a member sends right behind
   it must not count as sent before it. */
#define SIP_SIZE (4u * 1024u)
/* A peer that is gone without a word: the kernel gives up after this. */
#define SILENCE_MS 15000
/* How often the wall clock is looked at, in case that it is set. */
#define WALL_CLOCK_S 30

/* The first byte of any TLS handshake: the type of its record. */
#define TLS_HANDSHAKE 22

static void try_candidate(struct net_connection *connection);
static bool encrypt_staged(struct net_connection *connection);

/* ---- life and death ------------------------------------------------------ */

static struct net_connection *connection_new(struct net_hub *hub,
                                             struct tls_context *tls,
                                             const struct net_handler *handler,
                                             void *owner)
{
  struct net_connection *c = calloc(1, sizeof *c);

  if (!c) return NULL;
  c->context = tls_context_ref(tls);
  c->hub = hub;
  c->handler = handler;
  c->owner = owner;
  c->deadline = c->frame_deadline = NET_NEVER;
  c->born = uv_now(hub->loop);
  c->tcp.data = c;
  net_reader_init(&c->reader, &hub->spare);
  c->next = hub->connections;
  if (c->next) c->next->prev = c;
  hub->connections = c;
  hub->handles++;
  return c;
}

/* Frees it when the last thing that libuv holds of it has come back. */
static void release(struct net_connection *c)
{
  struct net_hub *hub = c->hub;

  assert(c->ended && c->reaped);
  if (c->resolving || c->state != NET_TCP_NONE) return;
  assert(!c->dirty);
  if (c->prev)
    c->prev->next = c->next;
  else
    hub->connections = c->next;
  if (c->next) c->next->prev = c->prev;
  tls_stream_free(c->tls);
  tls_context_unref(c->context);
  net_reader_end(&c->reader);
  free(c->staged);
  free(c->copy);
  free(c);
  net_hub_drop(hub);
}

void net_connection_end(struct net_connection *c, enum net_cause cause,
                        const char *format, ...)
{
  va_list args;

  if (c->ended) return;
  c->ended = true;
  c->cause = c->parting ? NET_CUT : cause;
  va_start(args, format);
  vsnprintf(c->why, sizeof c->why, format, args);
  va_end(args);
  if (c->state == NET_TCP_OPEN) uv_read_stop((uv_stream_t *)&c->tcp);
  c->next_ended = c->hub->ended;
  c->hub->ended = c;
}

void net_connection_refuse(struct net_connection *c, enum net_refusal refusal,
                           const char *format, ...)
{
  char why[NET_TEXT];
  va_list args;

  if (c->ended) return;
  va_start(args, format);
  vsnprintf(why, sizeof why, format, args);
  va_end(args);
  c->refusal = refusal;
  net_connection_end(c, NET_FAILED, "%s", why);
}

/* The stream is dead: ends the connection, with what it says of that. */
static void end_dead(struct net_connection *c)
{
  static const enum net_refusal of_cause[TLS_CAUSES] = {
      [TLS_CAUSE_PROTOCOL] = NET_REFUSED_PROTOCOL,
      [TLS_CAUSE_FOREIGN] = NET_REFUSED_FOREIGN,
      [TLS_CAUSE_EXPIRED] = NET_REFUSED_EXPIRED,
      [TLS_CAUSE_EARLY] = NET_REFUSED_EARLY,
      [TLS_CAUSE_NAME] = NET_REFUSED_NAME,
      [TLS_CAUSE_OTHER] = NET_REFUSED_OTHER,
  };

  net_connection_refuse(c, of_cause[tls_stream_cause(c->tls)], "%s",
                        tls_stream_error(c->tls));
}

void net_connection_part(struct net_connection *c, enum net_goodbye code,
                         const char *why)
{
  uint8_t head = (uint8_t)code;
  struct iovec parts[2] = {{.iov_base = &head, .iov_len = 1},
                           {.iov_base = (void *)(uintptr_t)why,
                            .iov_len = strnlen(why, NET_TEXT - 1)}};

  if (c->ended || c->parting) return;
  if (!net_connection_send(c, NET_FRAME_GOODBYE, parts, 2)) {
    net_connection_end(c, NET_CUT, "%s", why);
    return;
  }
  c->parting = true;
  c->frame_deadline = NET_NEVER;
  net_connection_deadline(c, c->hub->limits.parting_ms, why);
}

void net_connection_open(struct net_connection *c)
{
  assert(c->ready && !c->open);
  c->open = true;
  net_connection_deadline(c, NET_NEVER, NULL);
  if (c->expires) net_hub_arm(c->hub, uv_now(c->hub->loop) + 1);
}

static void on_tcp_closed(uv_handle_t *handle)
{
  struct net_connection *c = handle->data;

  c->state = NET_TCP_NONE;
  if (c->reaped)
    release(c);
  else if (!c->ended)
    try_candidate(c);
}

static void close_tcp(struct net_connection *c)
{
  assert(c->state == NET_TCP_OPEN);
  c->state = NET_TCP_CLOSING;
  uv_close((uv_handle_t *)&c->tcp, on_tcp_closed);
}

/* The last words: an alert, or the close_notify. Nobody waits for them. */
static void last_words(struct net_connection *c)
{
  const uint8_t *data;
  uv_buf_t buf;

  if (!c->tls || c->writing || c->shut || c->cause == NET_PEER_CLOSED) return;
  if (c->ready && encrypt_staged(c)) tls_stream_close(c->tls);
  buf.len = tls_stream_output(c->tls, &data);
  buf.base = (char *)(uintptr_t)data;
  if (buf.len) uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
}

void net_connection_reap(struct net_connection *c)
{
  assert(c->ended && !c->reaped);
  c->handler->closed(c);
  c->reaped = true;
  if (c->resolving) uv_cancel((uv_req_t *)&c->resolve);
  if (c->state == NET_TCP_OPEN) {
    last_words(c);
    close_tcp(c);
  }
  release(c);
}

/* ---- deadlines ----------------------------------------------------------- */

void net_connection_deadline(struct net_connection *c, uint64_t in_ms,
                             const char *why)
{
  c->deadline_why = why;
  c->deadline = in_ms == NET_NEVER ? NET_NEVER : uv_now(c->hub->loop) + in_ms;
  net_hub_arm(c->hub, c->deadline);
}

/* Certificates end by the clock on the wall, which may be set meanwhile: when
   to look at it again, unless it is over now. */
static uint64_t watch_certificate(struct net_connection *c, uint64_t now)
{
  int64_t left;

  if (!c->expires || !c->open || c->parting) return NET_NEVER;
  left = c->expires - (int64_t)time(NULL);
  if (left > 0) return now + MIN((uint64_t)left, WALL_CLOCK_S) * 1000u;
  c->handler->expired(c);
  return NET_NEVER;
}

uint64_t net_connection_tick(struct net_connection *c, uint64_t now)
{
  uint64_t at;

  if (c->ended) return NET_NEVER;
  if (c->deadline <= now && c->parting)
    net_connection_end(c, NET_CUT, "%s", c->deadline_why);
  else if (c->deadline <= now)
    net_connection_refuse(c, NET_REFUSED_SLOW, "%s", c->deadline_why);
  else if (c->frame_deadline <= now)
    net_connection_refuse(c, NET_REFUSED_SLOW,
                          "a frame was not completed in time");
  if (c->ended) return NET_NEVER;
  at = watch_certificate(c, now);
  at = MIN(at, c->deadline);
  return MIN(at, c->frame_deadline);
}

/* ---- counters ------------------------------------------------------------ */

static void count(struct net_connection *c, size_t received, size_t sent)
{
  c->received += received;
  c->sent += sent;
  c->hub->received += received;
  c->hub->sent += sent;
  if (!c->traffic) return;
  c->traffic->received += received;
  c->traffic->sent += sent;
  if (received) c->traffic->last_received = uv_now(c->hub->loop);
}

void net_connection_count(struct net_connection *c, struct net_traffic *traffic)
{
  c->traffic = traffic;
  traffic->received += c->received;
  traffic->sent += c->sent;
  traffic->last_received = uv_now(c->hub->loop);
}

/* ---- output -------------------------------------------------------------- */

static void mark_dirty(struct net_connection *c)
{
  if (c->dirty || c->ended) return;
  c->dirty = true;
  c->next_dirty = c->hub->dirty;
  c->hub->dirty = c;
}

size_t net_connection_unsent(struct net_connection *c)
{
  const uint8_t *data;

  return c->tls ? tls_stream_output(c->tls, &data) + c->n_staged : 0;
}

static bool encrypt(struct net_connection *c, const struct iovec *iov, int n)
{
  if (tls_stream_write(c->tls, iov, n) == 0) return true;
  end_dead(c);
  return false;
}

static bool encrypt_staged(struct net_connection *c)
{
  struct iovec iov = {.iov_base = c->staged, .iov_len = c->n_staged};

  if (c->n_staged == 0) return true;
  c->n_staged = 0;
  return encrypt(c, &iov, 1);
}

bool net_connection_send(struct net_connection *c, uint8_t type,
                         const struct iovec *parts, int n)
{
  struct iovec iov[RAFT_MESSAGE_ENTRIES_MAX + 2];
  size_t len = 0;

  assert(n >= 0 && n <= RAFT_MESSAGE_ENTRIES_MAX + 1);
  for (int i = 0; i < n; i++)
    len += parts[i].iov_len;
  if (!c->ready || c->ended || c->parting || len > net_frame_bound(type))
    return false;
  if (net_connection_unsent(c) + len > c->hub->limits.unsent_max) return false;
  if (!c->staged && !(c->staged = malloc(STAGE_SIZE))) return false;
  mark_dirty(c);
  if (c->n_staged + NET_FRAME_HEADER + len > STAGE_SIZE && !encrypt_staged(c))
    return false;
  net_frame_header(c->staged + c->n_staged, type, (uint32_t)len);
  c->n_staged += NET_FRAME_HEADER;
  if (c->n_staged + len <= STAGE_SIZE) {
    for (int i = 0; i < n; i++) {
      if (parts[i].iov_len == 0) continue;
      memcpy(c->staged + c->n_staged, parts[i].iov_base, parts[i].iov_len);
      c->n_staged += parts[i].iov_len;
    }
    return true;
  }
  iov[0].iov_base = c->staged;
  iov[0].iov_len = c->n_staged;
  memcpy(iov + 1, parts, sizeof *parts * (size_t)n);
  c->n_staged = 0;
  return encrypt(c, iov, n + 1);
}

static void write_failed(struct net_connection *c, int rc)
{
  bool closed = rc == UV_EPIPE || rc == UV_ECONNRESET;

  net_connection_end(c, closed ? NET_PEER_CLOSED : NET_FAILED, "%s",
                     uv_strerror(rc));
}

static void on_written(uv_write_t *write, int status)
{
  struct net_connection *c = write->data;

  c->writing = false;
  if (c->ended) return;
  if (status < 0) {
    write_failed(c, status);
    return;
  }
  net_connection_flush(c);
}

/* Has libuv wait for room in the socket, with a copy of what comes next. */
static void wait_for_room(struct net_connection *c, const uint8_t *data,
                          size_t n)
{
  uv_buf_t buf;
  int rc;

  if (!c->copy && !(c->copy = malloc(COPY_SIZE))) {
    net_connection_end(c, NET_FAILED, "out of memory");
    return;
  }
  buf.len = MIN(n, COPY_SIZE);
  buf.base = (char *)c->copy;
  memcpy(c->copy, data, buf.len);
  tls_stream_sent(c->tls, buf.len);
  count(c, 0, buf.len);
  c->write.data = c;
  rc = uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
  if (rc == 0)
    c->writing = true;
  else
    write_failed(c, rc);
}

/* GOODBYE is with the kernel: nothing comes after it. */
static void shut_output(struct net_connection *c)
{
  uv_os_fd_t fd;

  c->shut = true;
  if (uv_fileno((uv_handle_t *)&c->tcp, &fd) == 0) shutdown(fd, SHUT_WR);
}

void net_connection_flush(struct net_connection *c)
{
  const uint8_t *data;
  uv_buf_t buf;
  int rc;

  if (!c->tls || c->ended || c->shut || c->state != NET_TCP_OPEN) return;
  if (!encrypt_staged(c)) return;
  if (c->writing || !uv_is_writable((uv_stream_t *)&c->tcp)) return;
  if (c->parting) tls_stream_close(c->tls);
  buf.len = tls_stream_output(c->tls, &data);
  if (buf.len == 0) {
    if (c->parting) shut_output(c);
    return;
  }
  buf.base = (char *)(uintptr_t)data;
  rc = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
  if (rc < 0 && rc != UV_EAGAIN) {
    write_failed(c, rc);
    return;
  }
  if (rc > 0) {
    tls_stream_sent(c->tls, (size_t)rc);
    count(c, 0, (size_t)rc);
    if ((size_t)rc == buf.len) {
      if (c->parting) shut_output(c);
      return;
    }
    buf.len = tls_stream_output(c->tls, &data);
  }
  wait_for_room(c, data, buf.len);
}

/* ---- input --------------------------------------------------------------- */

static void on_frame(struct net_connection *c, const struct net_frame *frame)
{
  c->frame_deadline = NET_NEVER;
  c->framed = c->open;
  c->handler->frame(c, frame);
}

static void take_plain(struct net_connection *c, const uint8_t *data, size_t n)
{
  struct net_frame frame;
  size_t used;
  int rc;

  while (n > 0 && !c->ended && !c->parting) {
    rc = net_reader_take(&c->reader, data, n, &used, &frame);
    data += used;
    n -= used;
    if (rc < 0)
      net_connection_refuse(c, c->reader.refusal, "%s", c->reader.error);
    else if (rc > 0)
      on_frame(c, &frame);
  }
}

/* Takes out all that the stream has decrypted. */
static void drain(struct net_connection *c)
{
  struct net_frame frame;
  uint8_t *body;
  size_t room;
  ssize_t n;

  while (!c->ended && !c->parting) {
    body = net_reader_space(&c->reader, &room);
    if (body)
      n = tls_stream_read(c->tls, body, room);
    else
      n = tls_stream_read(c->tls, c->hub->plain, NET_RECORD);
    if (n == 0) break;
    if (n == -2)
      net_connection_end(c, NET_PEER_CLOSED, "closed by the other side");
    else if (n < 0)
      end_dead(c);
    else if (!body)
      take_plain(c, c->hub->plain, (size_t)n);
    else if (net_reader_filled(&c->reader, (size_t)n, &frame) > 0)
      on_frame(c, &frame);
  }
}

static void tune(struct net_connection *c)
{
  unsigned silence = SILENCE_MS;
  uv_os_fd_t fd;

  uv_tcp_nodelay(&c->tcp, 1);
  uv_tcp_keepalive(&c->tcp, 1, SILENCE_MS / 1000);
  if (uv_fileno((uv_handle_t *)&c->tcp, &fd) == 0)
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof silence);
}

/* The first bytes that came in. Those that cannot begin a handshake cost
   nothing more than to look at one of them. */
static bool start_stream(struct net_connection *c, uint8_t first)
{
  if (first != TLS_HANDSHAKE) {
    net_connection_refuse(c, NET_REFUSED_PROTOCOL, "not a TLS handshake");
    return false;
  }
  if (!c->handler->begins(c)) return false;
  tune(c);
  c->tls = tls_stream_new(c->context, true);
  if (!c->tls) net_connection_end(c, NET_FAILED, "out of memory");
  return c->tls != NULL;
}

static void become_ready(struct net_connection *c)
{
  c->ready = true;
  c->ready_at = uv_now(c->hub->loop);
  c->identity = tls_stream_peer(c->tls);
  c->expires = tls_stream_peer_expires(c->tls);
  net_connection_deadline(c, c->hub->limits.handshake_ms, "no hello in time");
  c->handler->ready(c);
}

static void feed(struct net_connection *c, const uint8_t *data, size_t n)
{
  int rc;

  count(c, n, 0);
  if (c->parting) return;
  if (!c->ready && c->received > NET_UNVERIFIED_BYTES) {
    net_connection_refuse(c, NET_REFUSED_OVERSIZE,
                          "too many bytes before the handshake");
    return;
  }
  if (!c->tls && !start_stream(c, data[0])) return;
  rc = tls_stream_feed(c->tls, data, n);
  if (!c->ready && tls_stream_ready(c->tls)) become_ready(c);
  if (c->ready) drain(c);
  if (rc < 0) end_dead(c);
  if (net_connection_unsent(c)) mark_dirty(c);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
  struct net_connection *c = handle->data;

  (void)size;
  buf->base = (char *)c->hub->inbox;
  buf->len = NET_INBOX;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
  struct net_connection *c = stream->data;
  const uint8_t *data = (const uint8_t *)buf->base;
  uint64_t now = uv_now(c->hub->loop);
  size_t rest, part;

  if (c->ended || n == 0) return;
  if (n < 0) {
    net_connection_end(
        c, n == UV_EOF || n == UV_ECONNRESET ? NET_PEER_CLOSED : NET_FAILED,
        "%s", n == UV_EOF ? "closed by the other side" : uv_strerror((int)n));
    return;
  }
  for (rest = (size_t)n; rest > 0 && !c->ended; rest -= part, data += part) {
    part = MIN(rest, c->ready ? FEED_SIZE : SIP_SIZE);
    feed(c, data, part);
  }
  if (c->parting || !net_reader_partial(&c->reader)) {
    c->frame_deadline = NET_NEVER;
  } else if (c->frame_deadline == NET_NEVER) {
    c->frame_deadline = now + c->hub->limits.frame_ms;
    net_hub_arm(c->hub, c->frame_deadline);
  }
}

/* ---- beginnings ---------------------------------------------------------- */

static void begin(struct net_connection *c)
{
  int rc;

  net_connection_deadline(c, c->hub->limits.handshake_ms,
                          "the handshake took too long");
  rc = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
  if (rc) {
    net_connection_end(c, NET_FAILED, "%s", uv_strerror(rc));
    return;
  }
  if (net_connection_unsent(c)) mark_dirty(c);
}

struct net_connection *net_connection_accept(
    struct net_hub *hub, int fd, const struct sockaddr_storage *address,
    struct tls_context *tls, const struct net_handler *handler, void *owner)
{
  struct net_connection *c = connection_new(hub, tls, handler, owner);
  int rc;

  if (!c) return NULL;
  net_format(address, c->remote, sizeof c->remote);
  rc = uv_tcp_init(hub->loop, &c->tcp);
  if (rc == 0) {
    c->state = NET_TCP_OPEN;
    rc = uv_tcp_open(&c->tcp, fd);
  }
  if (rc) {
    close(fd);
    net_connection_end(c, NET_FAILED, "%s", uv_strerror(rc));
  } else {
    begin(c);
  }
  return c;
}

/* One address did not work: the next one, or the end. */
static void candidate_failed(struct net_connection *c, int rc)
{
  if (c->tried < c->candidates.n) {
    if (c->state == NET_TCP_OPEN)
      close_tcp(c); /* goes on in on_tcp_closed() */
    else
      try_candidate(c);
    return;
  }
  net_connection_end(c, NET_FAILED, "%s", uv_strerror(rc));
}

static void on_connect(uv_connect_t *connect, int status)
{
  struct net_connection *c = connect->data;

  if (c->ended || c->state != NET_TCP_OPEN) return;
  if (status < 0) {
    candidate_failed(c, status);
  } else {
    tune(c);
    begin(c);
  }
}

static void try_candidate(struct net_connection *c)
{
  struct sockaddr_storage *address;
  int rc;

  assert(c->state == NET_TCP_NONE && c->candidates.n > 0);
  address = &c->candidates.at[(c->first + c->tried++) % c->candidates.n];
  rc = uv_tcp_init(c->hub->loop, &c->tcp);
  if (rc) {
    net_connection_end(c, NET_FAILED, "%s", uv_strerror(rc));
    return;
  }
  c->state = NET_TCP_OPEN;
  c->connect.data = c;
  rc = uv_tcp_connect(&c->connect, &c->tcp, (struct sockaddr *)address,
                      on_connect);
  if (rc) candidate_failed(c, rc);
}

static void on_resolved(uv_getaddrinfo_t *resolve, int status,
                        struct addrinfo *list)
{
  struct net_connection *c = resolve->data;

  c->resolving = false;
  if (status == 0) net_take_addrinfo(list, &c->candidates);
  uv_freeaddrinfo(list);
  if (c->reaped)
    release(c);
  else if (c->ended)
    return;
  else if (status < 0)
    net_connection_end(c, NET_FAILED, "%s", uv_strerror(status));
  else if (c->candidates.n == 0)
    net_connection_end(c, NET_FAILED, "the name has no address");
  else
    try_candidate(c);
}

static void resolve_name(struct net_connection *c, const char *host,
                         const char *port)
{
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  int rc;

  c->resolve.data = c;
  rc = uv_getaddrinfo(c->hub->loop, &c->resolve, on_resolved, host, port,
                      &hints);
  if (rc == 0)
    c->resolving = true;
  else
    net_connection_end(c, NET_FAILED, "%s", uv_strerror(rc));
}

struct net_connection *net_connection_dial(
    struct net_hub *hub, struct tls_context *tls, const char *address,
    const struct net_candidates *candidates, unsigned first,
    const struct net_handler *handler, void *owner)
{
  char host[RAFT_ADDRESS_MAX], port[8];
  struct net_connection *c = connection_new(hub, tls, handler, owner);

  if (!c) return NULL;
  c->first = first;
  snprintf(c->remote, sizeof c->remote, "%s", address);
  net_connection_deadline(c, hub->limits.connect_ms,
                          "the connection was not made in time");
  c->tls = tls_stream_new(tls, false);
  if (!c->tls) {
    net_connection_end(c, NET_FAILED, "out of memory");
    return c;
  }
  if (candidates) {
    c->candidates = *candidates;
    try_candidate(c);
  } else if (!net_split_address(address, host, sizeof host, port,
                                sizeof port)) {
    net_connection_end(c, NET_FAILED, "not an address of the form host:port");
  } else if (net_numeric(host, port, &c->candidates)) {
    try_candidate(c);
  } else {
    resolve_name(c, host, port);
  }
  return c;
}
