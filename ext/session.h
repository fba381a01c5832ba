/*
** session.h: between the host of a node and the processes attached to it.
**
** A Unix socket DIR/sock, of packets (SOCK_SEQPACKET), and the messages that
** pass through it. Who sends which of them when is at the head of session.c.
** Nothing here knows of nodes, connections or SQLite.
**
** Functions return 0 or a negated errno value, and never wait longer than they
** are told: timeouts are in ms, 0 is one try, a negative one is for ever. All
** of them may be called from any thread; one at a time sends and one at a time
** receives on a descriptor. Descriptors are closed at exec; a child of fork()
** has copies, which it has to close, or nobody sees that its parent has ended.
*/
#ifndef EXT_SESSION_H
#define EXT_SESSION_H

#include "pack.h"

#include <sys/types.h>
#include <sys/uio.h>

#define SESSION_VERSION 4u /* of all below but HELLO's first field, REFUSED */

/* Bytes of a message, with its head: what the kernel takes with its ordinary
   settings, and in pieces of no more than four pages of its memory, which it
   also finds when memory is in fragments. A largest page (64 KiB) fits. */
#define SESSION_MAX (80u << 10)
#define SESSION_BYTES_MAX (SESSION_MAX - 32u) /* of a CALL or ROWS */
#define SESSION_TEXT_MAX 1024u /* a text with its zero; more is cut off */
#define SESSION_HEADER 48u     /* a struct walindex_header */
#define SESSION_PARTS 512      /* pieces that a COMMIT's pages come in */

/* ---- sockets ----------------------------------------------------------- */

/* Who is at the other end, as the kernel knows it: who connected, or who
   listens. pid is 0 if it cannot be seen from here. */
struct session_peer {
  pid_t pid;
  uid_t uid; /* effective */
};

/* Listens in a directory, whose path may have any length, for this user alone.
   A socket that was left there is removed: the caller has made sure that nobody
   else listens (the host's lock). *fd does not block: for session_accept() when
   poll says so, and session_unlisten(). */
int session_listen(const char *dir, int *fd);
/* Closes it and removes the socket; while the host's lock is still held. */
void session_unlisten(const char *dir, int fd);
/* The next who has connected. -EAGAIN: nobody. -EPERM: somebody who is neither
   this user nor root, and was hung up on; *peer says who. -EMFILE, -ENFILE,
   -ENOBUFS, -ENOMEM: the one who asks is kept waiting, and poll goes on saying
   so: the caller should look again only after a while. */
int session_accept(int listener, int *fd, struct session_peer *peer);
/* Connects to who listens in a directory. -ENOENT, -ECONNREFUSED: nobody does.
   -EPERM: somebody who is neither this user, root, nor the directory's owner;
   *peer says who. -ETIMEDOUT: too many wait to be accepted. -ENAMETOOLONG: the
   path is too long for a socket, and there is no /proc. */
int session_connect(const char *dir, int timeout_ms, int *fd,
                    struct session_peer *peer);

/* ---- messages ---------------------------------------------------------- */

enum session_type {
  SESSION_HELLO = 1,
  SESSION_WELCOME,
  SESSION_REFUSED,
  SESSION_BARRIER,
  SESSION_TAKE,
  SESSION_BUSY,
  SESSION_HANDLED,
  SESSION_SLEEP,
  SESSION_SLEPT,
  SESSION_BEGIN,
  SESSION_LEAVE,
  SESSION_SETTLED,
  SESSION_COMMIT,
  SESSION_RESOLVE,
  SESSION_CALL,
  SESSION_ROWS,
  SESSION_ANSWER,
  SESSION_INTERRUPT,
  SESSION_PING,
  SESSION_PONG
};
#define SESSION_TYPES 20

enum session_kind { SESSION_KIND_CONNECTION = 1, SESSION_KIND_WATCH };

struct session_hello {
  uint32_t version; /* if it is another, nothing below was read */
  enum session_kind kind;
  uint32_t process; /* its number in the control file */
  uint32_t slot;    /* of a connection; a watch: 0 */
  uint32_t pid;     /* in its own namespace, for people */
};

/* A state of the database, as a connection has it. */
struct session_view {
  uint64_t generation, epoch;
  uint8_t header[SESSION_HEADER];
  bool ahead; /* it was not confirmed yet */
};

struct session_barrier {
  uint8_t level; /* 0 to 3, enum read_level */
  uint32_t wait_ms;
};

struct session_take {
  uint32_t patience; /* ms to wait for while nobody may write */
  bool drained;      /* with nothing in flight: a late upgrade */
  bool has_handler;  /* send BUSY */
  bool begin;        /* and BEGIN at once, at the head */
};

struct session_begin {
  struct session_view view;
  uint32_t patience; /* as of a TAKE */
};

/* A transaction: its pages, newest image of each or in the order of writing, in
   the message or in a file. To send: pgnos and parts, or file. Received: pgnos
   and pages, which lie in the buffer; or file, which belongs to the receiver
   then. The file has the pages one after the other, then their numbers, and
   nothing else: session_commit_bytes(). It is a regular file of that size when
   it comes, but its sender can still write to it: read it once. */
struct session_commit {
  struct session_view view; /* that it was built on */
  uint32_t n_page;          /* size of the database after it */
  uint32_t page_size;
  uint32_t count;
  int file; /* a descriptor, or -1 */
  const uint32_t *pgnos;
  const struct iovec *parts; /* together count pages */
  int n_parts;
  const uint8_t *pages;
};

struct session_rows {
  bool more;
  const uint8_t *bytes;
  size_t len;
};

struct session_answer {
  int32_t rc;        /* an SQLite result code */
  uint64_t extra[2]; /* session.c says of what */
  struct session_view view;
  const char *reason; /* NULL is "" */
};

struct session_message {
  enum session_type type;
  union {
    struct session_hello hello;
    uint64_t start;   /* WELCOME: which start of the host */
    const char *text; /* REFUSED */
    struct session_barrier barrier;
    struct session_take take;
    bool more;   /* HANDLED: the handler wants to go on waiting */
    uint32_t us; /* SLEEP */
    bool waited; /* SLEPT; false: sleep yourself */
    struct session_begin begin;
    struct session_view view; /* SETTLED */
    struct session_commit commit;
    uint64_t sequence;        /* RESOLVE */
    struct session_rows rows; /* ROWS; CALL, of which there is no more */
    struct session_answer answer;
  };
};

/* Where a message is received: its texts, bytes and pages stay in there. */
struct session_buffer {
  _Alignas(8) uint8_t bytes[SESSION_MAX];
};

/* A name for logs; of numbers that no message has, too. */
const char *session_name(unsigned type);
/* Bytes of a COMMIT's pages and their numbers: the size of its file. */
uint64_t session_commit_bytes(uint32_t page_size, uint32_t count);
/* Whether it can be sent without a file. */
bool session_commit_fits(uint32_t page_size, uint32_t count);

/* Sends a message, all of it or nothing. -ETIMEDOUT: the other end does not
   read. -EPIPE: it has closed; what it sent before can still be received.
   -EMSGSIZE: larger than SESSION_MAX. -EINVAL: of no type, or a COMMIT without
   its pages. Other errors are the kernel's, and nothing was sent. */
int session_send(int fd, const struct session_message *message, int timeout_ms);
/* Takes the next message. -ETIMEDOUT. -EPIPE: the other end has closed.
   -EPROTO: it sent what nobody may send; hang up. -EMFILE: a COMMIT with a file
   for which this process has no descriptor left, and which is gone: it can be
   answered. With an error nothing is left open. */
int session_receive(int fd, struct session_buffer *buffer, int timeout_ms,
                    struct session_message *message);
/* What session_receive() would find now, without taking it: the type of a
   message, 0: nothing yet, -EPIPE, -EPROTO. Never waits. */
int session_peek(int fd);

/* The half of it that is no I/O: a whole message, 4-byte aligned, with the file
   that came with it, or -1; the file stays the caller's. False: refused. */
bool session_unpack(const uint8_t *bytes, size_t len, int file,
                    struct session_message *message);

#endif
