/*
** net.h: listener, peers, framing and reconnects of one node, on libuv.
**
** Everything runs on the thread of the loop that the owner passes in; no
** function here may be called from another thread. The owner's callbacks run
** on it too, always from libuv and never from inside a function of this header
** (calls and fetches refused for want of memory or after net_close apart);
** they may call any function of this header except net_close.
**
** Connections. Each node dials each peer and sends its own requests on that
** connection; answers come back on the same one. What a node fetches from a
** peer, whose answers are long, it asks for on a second connection. All are
** TLS 1.3 with both certificates, except that a client without one may send a
** single NET_JOIN request and get its answer.
**
** Frames (little-endian): length u32 of the body, type u8, version u8 = 1,
** flags u16 = 0; then the body. Each type has a bound on its length that is
** checked before anything is allocated; an unknown type, version or flag, or
** a type that the connection's state does not allow, closes the connection.
**
** Bounds: handshake 5 s; a frame that began must end within 30 s; at most 32
** connections without a verified certificate, each with at most 64 KiB of
** buffers and 10 s of life; a peer's unsent output at most 64 MiB (above it
** messages to that peer are dropped, which Raft allows, and an answer ends its
** connection).
**
** Errors: 0 or -1 with a line for people in *error.
*/
#ifndef NET_H
#define NET_H

#include "raft.h"
#include "tls.h"

#include <sys/uio.h>
#include <uv.h>

struct net;

struct net_error {
  char text[256];
};

/* A request that waits for its answer; lives until net_reply(), which must
   come once for each, also when its connection or its net is gone by then. */
struct net_request;

#define NET_REQUEST_MAX (64u * 1024u) /* of a call, fetch or join */
#define NET_ANSWER_MAX (1024u * 1024u + 64u * 1024u) /* of an answer */
#define NET_MESSAGE_MAX (8u * 1024u * 1024u) /* one encoded raft message */
#define NET_POST_MAX (RAFT_BODY_MAX + 256u)  /* one post */

struct net_callbacks {
  void *ctx;
  /* A raft message from an authenticated member; from is verified. The
     callee owns *message (raft_message_clear). */
  void (*message)(void *ctx, struct raft_message *message);
  /* A connection to or from a peer is up / the last one was closed by the
     other side or its kernel (not by a time-out of ours). */
  void (*up)(void *ctx, raft_id peer);
  void (*down)(void *ctx, raft_id peer);
  /* May this node, whose certificate is valid, talk to us? */
  bool (*allowed)(void *ctx, raft_id peer);
  /* A join request (from 0), or a call or fetch from a member; answer it with
     net_reply(), now or later. Bodies are the owner's business. */
  void (*request)(void *ctx, raft_id from, const uint8_t *body, size_t len,
                  struct net_request *request);
  /* What a member posted; valid during the call. NULL: posts are ignored. */
  void (*posted)(void *ctx, raft_id from, const uint8_t *body, size_t len);
  /* Something worth telling: a refused connection, a failed handshake. */
  void (*event)(void *ctx, const char *line);
};

struct net_options {
  uv_loop_t *loop;
  raft_id self;
  struct tls_context *tls; /* net keeps a reference */
  const char *listen;      /* "host:port", "[v6]:port"; port 0: any */
  const struct net_callbacks *callbacks; /* copied */
};

/* Binds and listens. On error nothing is left behind. */
int net_open(const struct net_options *options, struct net **out,
             struct net_error *error);
/* "host:port" really listened on. */
const char *net_listening(const struct net *net);
/* The descriptor of the listening socket, which is its for all of its life. */
int net_descriptor(const struct net *net);
/* Ends everything: pending requests are answered with an error, calls get
   their callback with status -1; closed(ctx) comes when the last handle is
   gone, and frees nothing of the owner's. */
void net_close(struct net *net, void (*closed)(void *ctx), void *ctx);
/* A renewed certificate: new connections use it. */
void net_set_tls(struct net *net, struct tls_context *tls);

/* The peers to be connected to; self is skipped. Added ones are dialled,
   missing ones cut, changed addresses redialled. Reconnects back off from 20
   ms to 1 s with jitter; names are resolved anew at each attempt. */
void net_set_peers(struct net *net, const struct raft_configuration *peers);

/* Queues a raft message (copied or encoded before it returns). False: there
   is no connection, or too much is queued; the message is dropped. */
bool net_send(struct net *net, const struct raft_message *message);
/* Hands what was queued since the last flush to the kernel, one write a
   connection. Call it after each batch of net_send(). */
void net_flush(struct net *net);

/* Queues bytes of the owner's for a member, who gets them by posted(): in order
   as long as the connection lives, and without an answer. The parts are copied.
   False: there is no connection, it is too long, or too much is queued. */
bool net_post(struct net *net, raft_id peer, const struct iovec *parts, int n);

/* Answers a request. status 0 or a small positive code of the owner's. An
   answer is never lost in silence: where too much is unsent, the connection
   is ended, so that the asker hears of it. */
void net_reply(struct net_request *request, int status, const void *body,
               size_t len);

/* Sends a call to a member; done() comes exactly once: status -1: not
   delivered or no answer in time (body: a text saying why). */
typedef void (*net_done)(void *ctx, int status, const uint8_t *body,
                         size_t len);
void net_call(struct net *net, raft_id peer, const void *body, size_t len,
              unsigned timeout_ms, net_done done, void *ctx);

/*
** As net_call(), but on a connection to that member which carries nothing
** else, so that long answers hold up no heartbeat. It is made when it is
** needed and closed when nothing was asked for a while (10 s); requests made
** before it is up wait for it. Answers come in the order of the requests if
** the other owner gives them in that order.
**
** All answers that are outstanding at one time must fit into the bound on
** unsent output. One that does not come in time ends the connection, and with
** it the other fetches; the next one dials again, at once.
*/
void net_fetch(struct net *net, raft_id peer, const void *body, size_t len,
               unsigned timeout_ms, net_done done, void *ctx);

struct net_peer_status {
  bool connected;         /* our own connection to it is up */
  uint64_t last_received; /* uv_now() of its last byte; 0: never */
  uint64_t sent_bytes, received_bytes;
};
bool net_peer_status(const struct net *net, raft_id peer,
                     struct net_peer_status *status);

/*
** One join request to an address, without a struct net, on a loop of its own
** that it makes and ends: blocks the calling thread for at most timeout_ms.
** *body is malloc'd. Returns the answer's status, or -1 with *error.
*/
int net_join(struct tls_context *joiner, const char *address,
             const void *request, size_t len, unsigned timeout_ms,
             uint8_t **body, size_t *body_len, struct net_error *error);
/* The same with a call, by a node that has a certificate and does not run. */
int net_call_once(struct tls_context *member, const char *address,
                  const void *request, size_t len, unsigned timeout_ms,
                  uint8_t **body, size_t *body_len, struct net_error *error);

/* Splits "host:port" or "[v6]:port". False: not of that form. */
bool net_split_address(const char *address, char *host, size_t host_size,
                       char *port, size_t port_size);

#endif
