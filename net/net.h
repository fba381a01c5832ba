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
** TLS 1.3 with both certificates, except that a client without one, or with
** that of a node which is no member, may send a single join request and get
** its answer.
**
** After the handshake each side says HELLO: which versions it speaks, which
** cluster and node it is. The server's comes when it has looked at the
** client's, and means that the client is welcome; else it says GOODBYE, with a
** reason, and closes. Nothing is taken from a client before its HELLO, nor
** sent by one before the server's.
**
** Frames (little-endian): length u32 of the body, type u8, version u8 = 1,
** flags u16 = 0; then the body. Each type has a bound on its length that is
** checked before anything is allocated; an unknown type, version or flag, or
** a type that the connection's state does not allow, closes the connection.
**
** Bounds: handshake 5 s, HELLO 5 s; a frame that began must end within 30 s; at
** most 64 connections of no member, each with at most 64 KiB of buffers and
** 10 s of life after its handshake, shared out among the addresses that they
** come from; so many handshakes a second of one address, and of all that are
** no member's; a peer's unsent output at most 64 MiB (above it messages to that
** peer are dropped, which Raft allows, and an answer ends its connection).
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
  unsigned goodbye; /* enum net_goodbye, if the other side said so; or 0 */
};

/* A request that waits for its answer; lives until net_reply(), which must
   come once for each, also when its connection or its net is gone by then. */
struct net_request;

#define NET_REQUEST_MAX (64u * 1024u) /* of a call, fetch or join */
#define NET_ANSWER_MAX (1024u * 1024u + 64u * 1024u) /* of an answer */
#define NET_MESSAGE_MAX (8u * 1024u * 1024u) /* one encoded raft message */
#define NET_POST_MAX (RAFT_BODY_MAX + 256u)  /* one post */

/* What a node says of itself. */
struct net_identity {
  uint64_t cluster;
  raft_id id; /* 0: a joiner without a certificate */
  uint64_t incarnation;
};

/* May this node, whose certificate is valid, talk to us? Whoever has none, is no
   member or was revoked may still ask to join, and nothing else: whether it gets
   in is then the owner's to say. */
enum net_verdict {
  NET_ALLOWED,
  NET_STRANGER, /* not a member */
  NET_REVOKED   /* not any more */
};

/* Why the other side did not want a connection, or any more. */
enum net_goodbye {
  NET_GOODBYE_AGAIN = 1, /* nothing is wrong with this node: dial again */
  NET_GOODBYE_STRANGER,  /* not a member there */
  NET_GOODBYE_REVOKED,
  NET_GOODBYE_CLUSTER,  /* it is of another cluster */
  NET_GOODBYE_IDENTITY, /* the certificate is another node's */
  NET_GOODBYE_VERSION,  /* no version of the protocol that both speak */
  NET_GOODBYE_EXPIRED   /* the certificate has expired meanwhile */
};

struct net_callbacks {
  void *ctx;
  /* A raft message from an authenticated member; from is verified. The
     callee owns *message (raft_message_clear). */
  void (*message)(void *ctx, struct raft_message *message);
  /* A connection to or from a peer is up / the last one was closed by the
     other side or its kernel (not by a time-out of ours). */
  void (*up)(void *ctx, raft_id peer);
  void (*down)(void *ctx, raft_id peer);
  /* Unless it is NET_ALLOWED, *why (a text of at most `size` bytes) may say
     why not; the other node is told. */
  enum net_verdict (*allowed)(void *ctx, raft_id peer, char *why, size_t size);
  /* A peer that we dialled does not want us, or any more: enum net_goodbye, and
     what it said. It is dialled again as ever, but only twice a minute when
     we are revoked there. May be NULL. */
  void (*refused)(void *ctx, raft_id peer, unsigned code, const char *text);
  /* A join request (from 0), or a call or fetch from a member; answer it with
     net_reply(), now or later. Bodies are the owner's business. */
  void (*request)(void *ctx, raft_id from, const uint8_t *body, size_t len,
                  struct net_request *request);
  /* What a member posted; valid during the call. NULL: posts are ignored. */
  void (*posted)(void *ctx, raft_id from, const uint8_t *body, size_t len);
  /* Something worth telling: a refused connection, a failed handshake. */
  void (*event)(void *ctx, const char *line);
  /* What event() calls a node: its name, RAFT_NAME_MAX bytes at most, to
     *name, which is "" before; left like that, or where this is NULL, it is
     "node" and the id. */
  void (*name)(void *ctx, raft_id id, char name[RAFT_NAME_MAX]);
};

struct net_options {
  uv_loop_t *loop;
  uint64_t cluster;
  raft_id self;
  uint64_t incarnation;
  struct tls_context *tls; /* net keeps a reference */
  const char *listen;      /* "host:port", "[v6]:port"; port 0: any; NULL: who
                              is alone listens nowhere */
  const struct net_callbacks *callbacks; /* copied */
};

/* Binds and listens. On error nothing is left behind. */
int net_open(const struct net_options *options, struct net **out,
             struct net_error *error);
/* "host:port" really listened on; or "". */
const char *net_listening(const struct net *net);
/* The descriptor of the listening socket, which is its for all of its life; or
   -1. */
int net_descriptor(const struct net *net);
/* Ends everything: pending requests are answered with an error, calls get
   their callback with status -1; closed(ctx) comes when the last handle is
   gone, and frees nothing of the owner's. */
void net_close(struct net *net, void (*closed)(void *ctx), void *ctx);
/* A renewed certificate: new connections use it. Others go on until a
   certificate of theirs expires; then they are cut and dialled anew. */
void net_set_tls(struct net *net, struct tls_context *tls);
/* Members or revocations have changed: asks allowed() about everybody who is
   connected, before the loop sleeps. */
void net_recheck(struct net *net);

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

/* The node in the certificate of whoever asks, verified; 0: a joiner that has
   shown none. */
raft_id net_request_identity(const struct net_request *request);
/* Where it came from: "1.2.3.4:5" or "[::1]:5"; valid until net_reply(). */
const char *net_request_remote(const struct net_request *request);

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
  uint64_t incarnation; /* as it last said; 0: it never did */
  int64_t expires;      /* its certificate, s since 1970; 0: unknown */
};
bool net_peer_status(const struct net *net, raft_id peer,
                     struct net_peer_status *status);
/* Round trip to a peer in us, as the kernel measures it; 0: unknown. Costs a
   system call. */
uint32_t net_round_trip(const struct net *net, raft_id peer);

/* Why connections were refused or cut: X(name, text, what it means). */
#define NET_REFUSALS_MAP(X)                                                    \
  X(OTHER, "other", "for another reason")                                      \
  X(CROWD, "crowd", "too many of its address have shown no certificate")       \
  X(RATE, "rate", "too many handshakes a second")                              \
  X(PROTOCOL, "protocol", "bytes that are not TLS 1.3 as spoken here")         \
  X(FOREIGN, "foreign_ca", "a certificate of another CA")                      \
  X(EXPIRED, "expired", "a certificate that has expired")                      \
  X(EARLY, "not_yet_valid", "a certificate that is not valid yet")             \
  X(NAME, "name", "a certificate that names no node of this cluster")          \
  X(ABANDONED, "abandoned", "closed before its handshake was done")            \
  X(SLOW, "slow", "something was not completed in time")                       \
  X(STRANGER, "stranger", "not a member")                                      \
  X(REVOKED, "revoked", "of a node that was removed")                          \
  X(CLUSTER, "cluster", "said hello to another cluster")                       \
  X(IDENTITY, "identity", "claimed to be another node")                        \
  X(VERSION, "version", "speaks other versions of the protocol")               \
  X(FRAME, "frame", "a frame that may not come there")                         \
  X(OVERSIZE, "oversize", "a frame above the bound of its type")               \
  X(MALFORMED, "malformed", "a frame whose content makes no sense")

enum net_refusal {
#define NET_REFUSAL_ENUM(name, text, what) NET_REFUSED_##name,
  NET_REFUSALS_MAP(NET_REFUSAL_ENUM)
#undef NET_REFUSAL_ENUM
      NET_REFUSALS
};
/* As in the second column above. */
const char *net_refusal_name(unsigned refusal);

/* All since net_open(). */
struct net_counters {
  uint64_t accepted;                   /* connections that came in */
  uint64_t handshakes;                 /* of these, how many finished it */
  uint64_t refused[NET_REFUSALS];      /* connections, by enum net_refusal */
  uint64_t joins;                      /* join requests taken */
  uint64_t dials, dial_failures;       /* own connections */
  uint64_t goodbyes;                   /* how often a peer refused this node */
  uint64_t sent_bytes, received_bytes; /* as encrypted */
  uint64_t sent_messages, received_messages;
  uint64_t unverified; /* now: of no member */
};
void net_counters(const struct net *net, struct net_counters *out);

/*
** One join request to an address, without a struct net, on a loop of its own
** that it makes and ends: blocks the calling thread for at most timeout_ms.
** tls: of a joiner, or of a node with a certificate that is no member yet.
** The request leaves only after the other side has said to be of the cluster
** in *self. *body is malloc'd. Returns the answer's status, or -1 with *error.
*/
int net_join(struct tls_context *tls, const struct net_identity *self,
             const char *address, const void *request, size_t len,
             unsigned timeout_ms, uint8_t **body, size_t *body_len,
             struct net_error *error);
/* The same with a call, by a member that does not run. */
int net_call_once(struct tls_context *tls, const struct net_identity *self,
                  const char *address, const void *request, size_t len,
                  unsigned timeout_ms, uint8_t **body, size_t *body_len,
                  struct net_error *error);

/* Splits "host:port" or "[v6]:port". False: not of that form. */
bool net_split_address(const char *address, char *host, size_t host_size,
                       char *port, size_t port_size);

#endif
