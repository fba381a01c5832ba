/*
** internal.h: what the files of net/ show each other.
**
** Rules that hold everywhere here, named by number in the code:
**
** N1. The owner's callbacks are called only from a libuv callback of ours,
**     never from inside a function of net.h. So raft_step(), its effects and
**     net_send() never find themselves inside one another.
** N2. A connection that must end is only marked (net_connection_end) and is
**     closed by the hub before the loop sleeps. Nothing is freed while a
**     function further up the stack may look at it.
** N3. A length that came from outside is compared with its bound before
**     anything is allocated for it.
** N4. Bytes leave from the TLS stream's own buffer; what the kernel does not
**     take stays there and counts against the bound on unsent output.
*/
#ifndef NET_INTERNAL_H
#define NET_INTERNAL_H

#include "net.h"

#include <netinet/in.h>
#include <stdarg.h>
#include <string.h>

#define NET_NEVER UINT64_MAX
#define NET_TEXT 256

#ifndef MIN
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#endif

/* ---- interface to the code in address.c ---------------------------------- */

#define NET_CANDIDATES 8

/* The addresses that a name stands for. */
struct net_candidates {
  unsigned n;
  struct sockaddr_storage at[NET_CANDIDATES];
};

/* Writes a line to *error, which may be NULL; returns -1. */
int net_fail(struct net_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A numeric host and port; false: host is a name. */
bool net_numeric(const char *host, const char *port,
                 struct net_candidates *candidates);
void net_take_addrinfo(const struct addrinfo *list,
                       struct net_candidates *candidates);
socklen_t net_sockaddr_size(const struct sockaddr_storage *address);
/* "1.2.3.4:5" or "[::1]:5". */
void net_format(const struct sockaddr_storage *address, char *text,
                size_t size);
/* Resolves an address, blocking for at most timeout_ms. */
int net_resolve(const char *address, unsigned timeout_ms,
                struct net_candidates *candidates, struct net_error *error);
/* Milliseconds of a monotonic clock. */
uint64_t net_now(void);

/* ---- interface to the code in frame.c ------------------------------------ */

enum net_frame_type {
  NET_FRAME_RAFT = 1, /* an encoded raft message */
  NET_FRAME_CALL,     /* correlation u64, the owner's bytes */
  NET_FRAME_ANSWER,   /* correlation u64, status i32, the owner's bytes */
  NET_FRAME_JOIN,     /* the owner's bytes */
  NET_FRAME_FETCH,    /* as CALL */
  NET_FRAME_POST,     /* the owner's bytes */
  NET_FRAME_HELLO,    /* see hello.c */
  NET_FRAME_GOODBYE,  /* see hello.c */
  NET_FRAME_TYPES
};

#define NET_FRAME_HEADER 8u
#define NET_FRAME_VERSION 1u
#define NET_CALL_HEAD 8u
#define NET_ANSWER_HEAD 12u
#define NET_ALLOW(type) (1u << (type))

struct net_frame {
  uint8_t type;
  uint32_t len;
  const uint8_t *body;
};

/* Gives and takes back the memory of bodies that span reads; a big one is kept
   for the next frame, so that steady traffic does not map and unmap pages. */
struct net_spare {
  uint8_t *memory;
  size_t size;
};

struct net_reader {
  uint8_t header[NET_FRAME_HEADER];
  unsigned n_header;
  unsigned allowed; /* NET_ALLOW() of the types that may come now */
  uint8_t type;
  uint32_t len, have;
  uint8_t *body; /* of a frame that spans reads */
  size_t size;   /* of body's memory */
  struct net_spare *spare;
  char error[96];
  enum net_refusal refusal; /* the same in kinds */
};

uint32_t net_frame_bound(unsigned type);
void net_frame_header(uint8_t out[NET_FRAME_HEADER], uint8_t type,
                      uint32_t len);

void net_reader_init(struct net_reader *reader, struct net_spare *spare);
void net_reader_end(struct net_reader *reader);
/* Takes bytes up to the end of one frame; *used says how many. 1: *frame is
   complete, valid until the next call; 0: more is needed; -1: refused, see
   reader->error. */
int net_reader_take(struct net_reader *reader, const uint8_t *data, size_t n,
                    size_t *used, struct net_frame *frame);
/* Where the rest of a long body may be put without a copy; NULL: nowhere.
   Then net_reader_filled() says how many bytes were. */
uint8_t *net_reader_space(struct net_reader *reader, size_t *room);
int net_reader_filled(struct net_reader *reader, size_t n,
                      struct net_frame *frame);
/* A frame has begun and not ended. */
bool net_reader_partial(const struct net_reader *reader);

uint32_t net_get32(const uint8_t *p);
uint64_t net_get64(const uint8_t *p);
void net_put32(uint8_t *p, uint32_t v);
void net_put64(uint8_t *p, uint64_t v);

/* ---- interface to the code in hub.c -------------------------------------- */

/* Bounds that tests may lower. */
struct net_limits {
  unsigned connect_ms;    /* name, then TCP connection */
  unsigned handshake_ms;  /* TLS handshake, and again HELLO */
  unsigned unverified_ms; /* life of a joiner's connection */
  unsigned parting_ms;    /* for a GOODBYE to arrive */
  unsigned frame_ms;      /* from a frame's first byte to its last */
  unsigned fetch_idle_ms; /* until a connection for fetches is closed */
  unsigned backoff_min_ms, backoff_max_ms;
  unsigned revoked_ms; /* between dials of who says that we are revoked */
  unsigned event_ms;   /* between two lines of one kind */
  unsigned unverified_max;
  unsigned member_places; /* of these always to be had by a peer's address */
  /* Handshakes a second: of one address; of one that is a peer's; of all
     addresses that are no peer's. */
  unsigned rate_source, rate_member, rate_all;
  unsigned rate_room; /* how many a second make room for one of no peer */
  size_t unsent_max;
};

#define NET_INBOX (256u * 1024u)
#define NET_RECORD (16u * 1024u) /* what one TLS record holds */
#define NET_UNVERIFIED_BYTES (64u * 1024u)

struct net_connection;

/*
** What all connections of one loop share: one timer for every deadline, a
** prepare handle that flushes, closes and frees before the loop sleeps, and
** the buffers that bytes pass through while a callback runs.
*/
struct net_hub {
  uv_loop_t *loop;
  struct net_limits limits;
  uv_timer_t timer;
  uv_prepare_t prepare;
  unsigned handles; /* that still have to be gone; see net_hub_drop() */
  bool closing, ticking;
  uint64_t armed; /* when the timer fires, or NET_NEVER */
  struct net_connection *connections;
  struct net_connection *dirty; /* with output to flush */
  struct net_connection *ended; /* to be closed */
  uint64_t sent, received;      /* bytes, of all connections */
  /* The owner's part: deadlines of its own (returns the next one), work
     before the loop sleeps, and the end. tick and sweep may be NULL. */
  uint64_t (*tick)(struct net_hub *hub, uint64_t now);
  void (*sweep)(struct net_hub *hub);
  void (*gone)(struct net_hub *hub);
  struct net_spare spare;
  uint8_t plain[NET_RECORD];
  uint8_t inbox[NET_INBOX];
};

void net_hub_open(struct net_hub *hub, uv_loop_t *loop);
/* Ends all connections; gone() comes when the last handle is closed. */
void net_hub_close(struct net_hub *hub);
/* Makes the timer fire not later than at. */
void net_hub_arm(struct net_hub *hub, uint64_t at);
void net_hub_flush(struct net_hub *hub);
/* One thing less that gone() waits for. */
void net_hub_drop(struct net_hub *hub);

/* ---- interface to the code in connection.c ------------------------------- */

enum net_cause {
  NET_CUT = 1,     /* this side wanted it */
  NET_PEER_CLOSED, /* the other side or its kernel closed it */
  NET_FAILED       /* refused, timed out, broken */
};

/* What a connection tells its owner; each from a libuv callback. */
struct net_handler {
  /* The first bytes of an accepted connection are there. False: it has been
     ended, and no handshake begins. */
  bool (*begins)(struct net_connection *connection);
  void (*ready)(struct net_connection *connection); /* handshake done */
  void (*frame)(struct net_connection *connection,
                const struct net_frame *frame);
  /* The other side's certificate has. */
  void (*expired)(struct net_connection *connection);
  /* Once, when it ends; cause and why are set. Freed by itself later. */
  void (*closed)(struct net_connection *connection);
};

enum net_tcp { NET_TCP_NONE, NET_TCP_OPEN, NET_TCP_CLOSING };

/* What an inbound connection is, which decides what frames it may bring. */
enum net_role {
  NET_ROLE_UNVERIFIED = 1, /* handshake */
  NET_ROLE_SILENT,         /* no HELLO yet */
  NET_ROLE_JOINER,         /* one JOIN */
  NET_ROLE_DONE,           /* has said all that it may */
  NET_ROLE_NEW,            /* a member's, only HELLO yet */
  NET_ROLE_MEMBER,         /* raft messages, calls and posts */
  NET_ROLE_FETCHER         /* fetches, and nothing else */
};

struct net_traffic {
  uint64_t last_received, sent, received;
};

struct net_source;

struct net_connection {
  uv_tcp_t tcp;
  uv_connect_t connect;
  uv_getaddrinfo_t resolve;
  uv_write_t write;
  struct net_hub *hub;
  const struct net_handler *handler;
  void *owner;
  struct net_connection *next, *prev; /* hub->connections */
  struct net_connection *next_dirty, *next_ended;

  enum net_tcp state;
  bool resolving, reaped, dirty, writing;
  bool ready;   /* the handshake is done */
  bool open;    /* and each side has said HELLO */
  bool framed;  /* and something else came */
  bool parting; /* has said GOODBYE; what comes is ignored */
  bool shut;    /* nothing more will be sent */
  bool ended;
  enum net_cause cause;
  enum net_refusal refusal; /* of NET_FAILED */
  char why[NET_TEXT];
  char remote[RAFT_ADDRESS_MAX];
  struct net_candidates candidates;
  unsigned candidate, first, tried;

  struct tls_context *context;
  struct tls_stream *tls; /* of an accepted one NULL until bytes came */
  struct net_reader reader;
  uint8_t *staged; /* small frames on their way into one TLS record */
  size_t n_staged;
  uint8_t *copy; /* of what a pending uv_write sends */

  uint64_t deadline, frame_deadline; /* NET_NEVER: none */
  const char *deadline_why;
  int64_t expires; /* the other side's certificate, s since 1970; 0: never */
  uint64_t born, ready_at, received, sent;
  struct net_traffic *traffic; /* of the peer, or NULL */

  raft_id identity; /* in the other side's certificate; 0: it showed none */
  raft_id peer;     /* the same, of a member after its HELLO */
  enum net_role role;
  struct net_source *source;    /* while it counts as unverified; see crowd.c */
  struct net_request *requests; /* not yet answered */
  unsigned n_requests;
};

/* A connection to an address ("host:port"; or candidates, when not NULL).
   first: which of the name's addresses to try first. NULL: no memory. */
struct net_connection *net_connection_dial(
    struct net_hub *hub, struct tls_context *tls, const char *address,
    const struct net_candidates *candidates, unsigned first,
    const struct net_handler *handler, void *owner);
/* A connection that was accepted: its socket, which is taken over. NULL: no
   memory, and the socket is still the caller's. */
struct net_connection *net_connection_accept(
    struct net_hub *hub, int fd, const struct sockaddr_storage *address,
    struct tls_context *tls, const struct net_handler *handler, void *owner);
/* Both sides have said HELLO. */
void net_connection_open(struct net_connection *connection);
/* Queues a frame whose body is the parts. False: ended, not ready, no memory,
   or too much is unsent. */
bool net_connection_send(struct net_connection *connection, uint8_t type,
                         const struct iovec *parts, int n);
size_t net_connection_unsent(struct net_connection *connection);
void net_connection_flush(struct net_connection *connection);
void net_connection_end(struct net_connection *connection, enum net_cause cause,
                        const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with NET_FAILED and a kind. */
void net_connection_refuse(struct net_connection *connection,
                           enum net_refusal refusal, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Says GOODBYE with a reason, and ends when the other side has read it. */
void net_connection_part(struct net_connection *connection,
                         enum net_goodbye code, const char *why);
void net_connection_deadline(struct net_connection *connection, uint64_t in_ms,
                             const char *why);
/* Adds its bytes, past and future, to those of a peer. */
void net_connection_count(struct net_connection *connection,
                          struct net_traffic *traffic);
/* For the hub: closes one that has ended; looks at deadlines. */
void net_connection_reap(struct net_connection *connection);
uint64_t net_connection_tick(struct net_connection *connection, uint64_t now);

/* Open, and neither side has said GOODBYE. NULL is allowed. */
static inline bool net_usable(const struct net_connection *connection)
{
  return connection && connection->open && !connection->ended &&
         !connection->parting;
}

/* ---- interface to the code in hello.c ------------------------------------ */

enum net_purpose { NET_PURPOSE_PEER = 1, NET_PURPOSE_JOIN };

struct net_hello {
  uint32_t lowest, highest; /* versions of the protocol */
  uint32_t purpose;
  struct net_identity is;
};

/* Sends HELLO; ends the connection if it cannot. */
bool net_hello_send(struct net_connection *connection,
                    const struct net_identity *self, enum net_purpose purpose);
/* False: malformed. */
bool net_hello_read(const struct net_frame *frame, struct net_hello *hello);
/* Can we talk to who says this and has that certificate? 0, or the code of the
   GOODBYE, a text for it, and the kind. */
unsigned net_hello_check(const struct net_hello *hello,
                         const struct net_identity *self, raft_id certificate,
                         char why[NET_TEXT], enum net_refusal *refusal);
/* False: malformed. The text is made fit for a line of a log. */
bool net_goodbye_read(const struct net_frame *frame, unsigned *code,
                      char why[NET_TEXT]);

/* ---- interface to the code in crowd.c ------------------------------------ */

/* Addresses that are told apart: as many as connections of no member may be,
   and some that are remembered for what they did. */
#define NET_SOURCES 256

/* Where connections come from: an IPv4 address, or an IPv6 network (/64), of
   which one who has any has all. */
struct net_source {
  uint8_t key[8];
  bool v6;
  bool member;       /* as of its last connection: a peer is there */
  unsigned n;        /* unverified connections */
  uint64_t spent_at; /* us: when its handshakes are paid for */
  uint64_t last;     /* which connection the last one from there was */
};

struct net_crowd {
  struct net_source sources[NET_SOURCES];
  unsigned n;    /* unverified connections of all */
  uint64_t last; /* how many connections there were */
  uint64_t spent_at;
  uint64_t moved_at; /* us: when those who made room are paid for */
};

struct net;

/* Do they count as one address? */
bool net_same_source(const struct sockaddr_storage *a,
                     const struct sockaddr_storage *b);
/* May a connection from there come in? Another may have to go for it. NULL:
   no. Else net_crowd_enter() comes next, if anything. */
struct net_source *net_crowd_admit(struct net *net,
                                   const struct sockaddr_storage *address);
void net_crowd_enter(struct net *net, struct net_connection *connection,
                     struct net_source *source);
/* It is a member's, or has ended. */
void net_crowd_leave(struct net *net, struct net_connection *connection);
/* May it begin its handshake? */
bool net_crowd_spend(struct net *net, struct net_source *source);

/* ---- struct net and its parts -------------------------------------------- */

/* Lines that are held apart by their kind: enum net_refusal, and two more. */
enum net_event_kind {
  NET_EVENT_PEER = NET_REFUSALS, /* a member's connection ended */
  NET_EVENT_OTHER,
  NET_EVENT_KINDS
};

struct net_limiter {
  uint64_t last; /* when a line was told; 0: never */
  unsigned held; /* lines not told since */
};

#define NET_INBOUND_MAX 4  /* connections from one peer, those below apart */
#define NET_FETCHERS_MAX 2 /* connections from one peer with its fetches */

struct net_peer {
  struct net *net;
  struct net_peer *next;
  raft_id id;
  bool wanted; /* in the owner's configuration */
  bool cut;    /* it was, and what it dialled has still to be ended */
  char address[RAFT_ADDRESS_MAX];
  struct net_candidates at; /* what the address last stood for */
  struct net_connection *dialled;
  bool redial_now;
  bool told_down; /* down() was called and no handshake came since */
  uint64_t redial_at;
  unsigned backoff_ms, attempts;
  bool revoked;                                    /* so it says of us */
  uint64_t incarnation;                            /* as it last said */
  int64_t expires;                                 /* its certificate */
  struct net_connection *inbound[NET_INBOUND_MAX]; /* newest first */
  unsigned n_inbound;
  struct net_connection *fetchers[NET_FETCHERS_MAX]; /* newest first */
  unsigned n_fetchers;
  struct net_connection *fetch; /* dialled, for our own fetches; or NULL */
  uint64_t fetched_at;          /* when something was last asked on it */
  struct net_traffic traffic;
  char told[NET_TEXT]; /* the last failure that was told, and when */
  uint64_t told_at;
};

struct net_call;

struct net {
  struct net_hub hub; /* first: a hub of a net is a net */
  struct net_callbacks callbacks;
  struct net_identity self;
  struct tls_context *tls;
  int listen_fd;
  uv_poll_t listener;
  uv_timer_t pause; /* while no descriptor is left for a connection */
  char listening[RAFT_ADDRESS_MAX];
  struct net_crowd crowd;
  struct net_counters counters;
  bool recheck; /* ask allowed() again for every connection */
  struct net_peer *peers;
  struct net_call *calls, **calls_end;
  unsigned n_calls;
  uint64_t last_call;
  uint64_t random;
  struct net_limiter limiters[NET_EVENT_KINDS];
  uint8_t *scratch; /* heads of raft messages */
  size_t scratch_size;
  void (*closed)(void *ctx);
  void *closed_ctx;
};

/* ---- interface to the code in net.c -------------------------------------- */

/* Tells the owner, at most one line a kind and second. */
void net_event(struct net *net, unsigned kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* What such a line calls a node. */
struct net_name {
  char s[RAFT_NAME_MAX];
};
struct net_name net_name(const struct net *net, raft_id id);
/* Counts a refusal, and tells it. */
void net_refused(struct net *net, enum net_refusal refusal, const char *format,
                 ...) __attribute__((format(printf, 3, 4)));
/* The bounds of a net; a change is in force from the next use. */
struct net_limits *net_limits(struct net *net);
/* Decodes, checks and delivers a raft message. */
void net_deliver(struct net *net, struct net_connection *connection,
                 const struct net_frame *frame);

/* ---- interface to the code in listen.c ----------------------------------- */

/* Binds and listens: the socket is net->listen_fd, made without libuv, since a
   handle that failed could only be closed by running the loop. */
int net_listen(struct net *net, const char *address, struct net_error *error);
/* Takes connections from it. An error of libuv: it is still to be closed. */
int net_listen_begin(struct net *net);
/* Ends that, and closes it. */
void net_listen_end(struct net *net);

/* ---- interface to the code in inbound.c ---------------------------------- */

/* A connection that came in, of an address that was admitted. */
void net_inbound(struct net *net, int fd,
                 const struct sockaddr_storage *address,
                 struct net_source *source);
/* Asks the owner again about it; ends it if need be. */
void net_inbound_recheck(struct net_connection *connection);
/* Is it one that came in, and not one that was dialled? */
bool net_is_inbound(const struct net_connection *connection);

/* ---- interface to the code in peer.c ------------------------------------- */

struct net_peer *net_peer_find(const struct net *net, raft_id id);
/* Finds or makes. NULL: no memory. */
struct net_peer *net_peer_get(struct net *net, raft_id id);
void net_peer_attach(struct net_peer *peer, struct net_connection *inbound);
void net_peer_detach(struct net_peer *peer, struct net_connection *inbound);
/* It carries fetches: kept apart from the others from now on. */
void net_peer_set_apart(struct net_peer *peer, struct net_connection *inbound);
/* A dialled connection is ready: says HELLO, if the other side is the peer and
   allowed. */
void net_peer_greet(struct net_peer *peer, struct net_connection *connection);
/* Its first frame: HELLO, and it is open; or else it ends. */
bool net_peer_greeted(struct net_peer *peer, struct net_connection *connection,
                      const struct net_frame *frame);
/* The other side has said GOODBYE: ends it. 0, or its code. */
unsigned net_peer_goodbye(struct net_peer *peer,
                          struct net_connection *connection,
                          const struct net_frame *frame);
/* Asks the owner again about a dialled connection; ends it if need be. */
void net_peer_recheck(struct net_connection *connection);
/* Its certificate has expired: for the handler of what was dialled. */
void net_peer_expired(struct net_connection *connection);
/* Does one of the peers that we want have this address? */
bool net_peer_at(const struct net *net, const struct sockaddr_storage *address);
/* An established connection was closed by the other side. */
void net_peer_lost(struct net_peer *peer);
uint64_t net_peer_tick(struct net *net, uint64_t now);
void net_peer_sweep(struct net *net);
void net_peer_end(struct net *net);

/* ---- interface to the code in call.c ------------------------------------- */

/* What net_call() and net_fetch() do, as a frame of that type. */
void net_ask(struct net *net, enum net_frame_type type, raft_id peer,
             const void *body, size_t len, unsigned timeout_ms, net_done done,
             void *ctx);
void net_call_answer(struct net_connection *connection,
                     const struct net_frame *frame);
/* Sends what waited for the connection. */
void net_call_ready(struct net *net, struct net_connection *connection);
/* Something waits for the connection, or for an answer on it. */
bool net_call_pending(const struct net *net,
                      const struct net_connection *connection);
/* The calls that went out on a connection have failed. */
void net_call_lost(struct net *net, struct net_connection *connection,
                   const char *why);
uint64_t net_call_tick(struct net *net, uint64_t now);
void net_call_end(struct net *net);
/* Makes a request for the owner to answer. NULL: too many, or no memory. */
struct net_request *net_request_new(struct net_connection *connection,
                                    uint64_t correlation);
/* Requests of a connection that ended. */
void net_request_lost(struct net_connection *connection);
/* Answers all of them with -1. */
void net_request_refuse(struct net_connection *connection, const char *why);
/* Ends the connection where the answer cannot be queued. */
void net_send_answer(struct net_connection *connection, uint64_t correlation,
                     int status, const void *body, size_t len);
/* Splits an answer. False: malformed. */
bool net_read_answer(const struct net_frame *frame, uint64_t *correlation,
                     int *status, const uint8_t **body, size_t *len);

/* ---- interface to the code in fetch.c ------------------------------------ */

/* The connection for fetches from a peer, which may be NULL; dialled if there
   is none, so it may have no peer yet: see net_call_ready(). NULL: there can
   be none, *why says why. */
struct net_connection *net_fetch_connection(struct net_peer *peer,
                                            const char **why);
/* Closes what nothing was asked on for a while. */
uint64_t net_fetch_tick(struct net *net, uint64_t now);

#endif
