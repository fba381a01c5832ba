/*
** join.c: one request to an address, on a loop of its own, for a caller who
** waits: to join, of a node that has no certificate yet, or a call, of one that
** has one and does not run.
**
** It runs on a thread of the application. libuv writes without MSG_NOSIGNAL,
** so SIGPIPE is blocked meanwhile, and one that came from here is taken away
** before the thread's mask is put back; one that was pending before stays.
*/
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct join {
  struct net_hub hub; /* first: see join_gone() */
  uv_timer_t limit;
  uint8_t type; /* NET_FRAME_JOIN or NET_FRAME_CALL */
  const struct net_identity *self;
  const char *address;
  const void *request;
  size_t len;
  bool over;
  int status;
  uint8_t *body;
  size_t body_len;
  unsigned goodbye;
  struct net_error error;
};

/* ---- SIGPIPE ------------------------------------------------------------- */

struct quiet {
  sigset_t mask;
  bool pending;
};

static void quiet_begin(struct quiet *quiet)
{
  sigset_t pipe, pending;

  sigpending(&pending);
  quiet->pending = sigismember(&pending, SIGPIPE) == 1;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, &quiet->mask);
}

static void quiet_end(const struct quiet *quiet)
{
  static const struct timespec now = {0};
  sigset_t pipe;

  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  if (!quiet->pending)
    while (sigtimedwait(&pipe, NULL, &now) < 0 && errno == EINTR) {
    }
  pthread_sigmask(SIG_SETMASK, &quiet->mask, NULL);
}

/* ---- the exchange -------------------------------------------------------- */

static void over(struct join *join)
{
  if (join->over) return;
  join->over = true;
  uv_close((uv_handle_t *)&join->limit, NULL);
  net_hub_close(&join->hub);
}

static void join_ready(struct net_connection *c)
{
  struct join *join = c->owner;

  c->reader.allowed = NET_ALLOW(NET_FRAME_HELLO) | NET_ALLOW(NET_FRAME_GOODBYE);
  net_hello_send(c, join->self,
                 join->type == NET_FRAME_JOIN ? NET_PURPOSE_JOIN
                                              : NET_PURPOSE_PEER);
}

static void send_request(struct join *join, struct net_connection *c)
{
  uint8_t head[NET_CALL_HEAD] = {0}; /* the answer has this number too */
  struct iovec parts[2] = {
      {.iov_base = head, .iov_len = sizeof head},
      {.iov_base = (void *)(uintptr_t)join->request, .iov_len = join->len}};
  bool call = join->type == NET_FRAME_CALL;

  c->reader.allowed =
      NET_ALLOW(NET_FRAME_ANSWER) | NET_ALLOW(NET_FRAME_GOODBYE);
  /* What a member still has to say to the node that we were. */
  if (call) c->reader.allowed |= NET_ALLOW(NET_FRAME_RAFT);
  if (!net_connection_send(c, join->type, call ? parts : parts + 1,
                           call ? 2 : 1))
    net_connection_end(c, NET_FAILED, "out of memory");
}

/* Only now is it known that the other side is of the cluster that is meant. */
static void hello_frame(struct join *join, struct net_connection *c,
                        const struct net_frame *frame)
{
  struct net_hello hello;
  enum net_refusal refusal;
  char why[NET_TEXT];

  if (!net_hello_read(frame, &hello)) {
    net_connection_end(c, NET_FAILED, "a malformed hello");
  } else if (net_hello_check(&hello, join->self, c->identity, why, &refusal)) {
    net_connection_end(c, NET_FAILED, "%s", why);
  } else {
    net_connection_open(c);
    send_request(join, c);
  }
}

static void goodbye_frame(struct join *join, struct net_connection *c,
                          const struct net_frame *frame)
{
  char why[NET_TEXT];

  if (net_goodbye_read(frame, &join->goodbye, why))
    net_connection_end(c, NET_CUT, "refused: %s", why);
  else
    net_connection_end(c, NET_FAILED, "a malformed goodbye");
}

static void answer_frame(struct join *join, struct net_connection *c,
                         const struct net_frame *frame)
{
  const uint8_t *body;
  uint64_t id;

  if (!net_read_answer(frame, &id, &join->status, &body, &join->body_len)) {
    net_connection_end(c, NET_FAILED, "a malformed answer");
    return;
  }
  if (join->status < 0) {
    net_fail(&join->error, "%.100s: %.*s", join->address,
             (int)MIN(join->body_len, 128u), (const char *)body);
  } else if ((join->body = malloc(join->body_len + 1)) == NULL) {
    join->status = -1;
    net_fail(&join->error, "out of memory");
  } else {
    memcpy(join->body, body, join->body_len);
    join->body[join->body_len] = 0;
  }
  over(join);
}

static void join_frame(struct net_connection *c, const struct net_frame *frame)
{
  struct join *join = c->owner;

  switch (frame->type) {
  case NET_FRAME_HELLO: hello_frame(join, c, frame); break;
  case NET_FRAME_GOODBYE: goodbye_frame(join, c, frame); break;
  case NET_FRAME_ANSWER: answer_frame(join, c, frame); break;
  default: break; /* a raft message */
  }
}

/* It will not be for long. */
static void join_expired(struct net_connection *c)
{
  net_connection_end(c, NET_FAILED, "its certificate has expired");
}

static void join_closed(struct net_connection *c)
{
  struct join *join = c->owner;

  if (join->over) return;
  net_fail(&join->error, "%.100s: %.150s", join->address, c->why);
  over(join);
}

static void join_limit(uv_timer_t *timer)
{
  struct join *join = timer->data;

  net_fail(&join->error, "%.100s: no answer in time", join->address);
  over(join);
}

static const struct net_handler joiner = {
    .ready = join_ready,
    .frame = join_frame,
    .expired = join_expired,
    .closed = join_closed,
};

static void join_gone(struct net_hub *hub)
{
  (void)hub; /* the loop has nothing left and uv_run() returns */
}

static void run(struct join *join, uv_loop_t *loop, struct tls_context *tls,
                const struct net_candidates *candidates, uint64_t until)
{
  uint64_t now = net_now();

  net_hub_open(&join->hub, loop);
  join->hub.gone = join_gone;
  uv_timer_init(loop, &join->limit);
  join->limit.data = join;
  uv_timer_start(&join->limit, join_limit, until > now ? until - now : 0, 0);
  if (!net_connection_dial(&join->hub, tls, join->address, candidates, 0,
                           &joiner, join)) {
    net_fail(&join->error, "out of memory");
    over(join);
  }
  uv_run(loop, UV_RUN_DEFAULT);
}

static int join_with(struct join *join, struct tls_context *tls,
                     unsigned timeout_ms, struct net_error *error)
{
  uint64_t until = net_now() + timeout_ms;
  struct net_candidates candidates;
  uv_loop_t loop;
  int rc;

  join->status = -1;
  if (net_resolve(join->address, timeout_ms, &candidates, error)) return -1;
  rc = uv_loop_init(&loop);
  if (rc) return net_fail(error, "no event loop: %s", uv_strerror(rc));
  run(join, &loop, tls, &candidates, until);
  uv_loop_close(&loop);
  if (join->status < 0) {
    net_fail(error, "%s", join->error.text);
    if (error) error->goodbye = join->goodbye;
    return -1;
  }
  return join->status;
}

static int ask_once(enum net_frame_type type, struct tls_context *tls,
                    const struct net_identity *self, const char *address,
                    const void *request, size_t len, unsigned timeout_ms,
                    uint8_t **body, size_t *body_len, struct net_error *error)
{
  struct join *join;
  struct quiet quiet;
  int status;

  *body = NULL;
  *body_len = 0;
  if (len > NET_REQUEST_MAX) return net_fail(error, "the request is too long");
  join = calloc(1, sizeof *join);
  if (!join) return net_fail(error, "out of memory");
  join->type = (uint8_t)type;
  join->self = self;
  join->address = address;
  join->request = request;
  join->len = len;
  quiet_begin(&quiet);
  status = join_with(join, tls, timeout_ms, error);
  quiet_end(&quiet);
  if (status >= 0) {
    *body = join->body;
    *body_len = join->body_len;
  }
  free(join);
  return status;
}

int net_join(struct tls_context *tls, const struct net_identity *self,
             const char *address, const void *request, size_t len,
             unsigned timeout_ms, uint8_t **body, size_t *body_len,
             struct net_error *error)
{
  return ask_once(NET_FRAME_JOIN, tls, self, address, request, len, timeout_ms,
                  body, body_len, error);
}

int net_call_once(struct tls_context *tls, const struct net_identity *self,
                  const char *address, const void *request, size_t len,
                  unsigned timeout_ms, uint8_t **body, size_t *body_len,
                  struct net_error *error)
{
  return ask_once(NET_FRAME_CALL, tls, self, address, request, len, timeout_ms,
                  body, body_len, error);
}
