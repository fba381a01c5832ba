/*
** etcd.c: puts to etcd over gRPC, as many as it takes: just enough HTTP/2 (RFC
** 9113) for one request at a time on a connection that stays open, which is
** the cheapest way to ask that etcd has.
**
** A request is a HEADERS frame, the same each time, whose fields are literals
** that change no table (RFC 7541, 6.2.2), and a DATA frame with a PutRequest.
** The answer's headers are not read: a PutResponse with something in it means
** that the put was committed, since an error comes without a message.
*/
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { DATA, HEADERS, RESET = 3, SETTINGS, PING = 6, GOAWAY, WINDOW };
#define FLAG_ACK 1
#define FLAG_END_STREAM 1
#define FLAG_END_HEADERS 4
#define FRAME_HEADER 9
#define FRAME_MOST 16384 /* what a server may send unless told otherwise */
#define VALUE_BYTES 100
#define ANSWER_SECONDS 10

struct put_client {
  pthread_t thread;
  int fd, number;
  unsigned seconds;
  uint32_t stream, consumed;
  unsigned char in[FRAME_HEADER + FRAME_MOST];
  size_t have, used; /* in `in` */
  struct histogram latency;
  uint64_t done;
  const char *error;
};

/* ---- frames ------------------------------------------------------------ */

static unsigned char *put32(unsigned char *p, uint32_t value)
{
  for (int i = 3; i >= 0; i--)
    *p++ = (unsigned char)(value >> (8 * i));
  return p;
}

static uint32_t get32(const unsigned char *p)
{
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
         p[3];
}

static unsigned char *frame(unsigned char *p, size_t n, int type, int flags,
                            uint32_t stream)
{
  put32(p, (uint32_t)n << 8); /* three bytes and one to overwrite */
  p[3] = (unsigned char)type;
  p[4] = (unsigned char)flags;
  return put32(p + 5, stream);
}

static int send_all(struct put_client *c, const void *bytes, size_t n)
{
  if (send(c->fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n) return 0;
  c->error = "sending failed";
  return -1;
}

/* Has n more bytes in `in` from `used` on. */
static int need(struct put_client *c, size_t n)
{
  if (c->used + n > sizeof c->in) {
    memmove(c->in, c->in + c->used, c->have - c->used);
    c->have -= c->used;
    c->used = 0;
  }
  while (c->have - c->used < n) {
    ssize_t got = recv(c->fd, c->in + c->have, sizeof c->in - c->have, 0);
    if (got <= 0) {
      c->error = got ? strerror(errno) : "the server closed the connection";
      return -1;
    }
    c->have += (size_t)got;
  }
  return 0;
}

/* What a connection asks for itself; -1 if it is at its end. */
static int serve(struct put_client *c, int type, int flags,
                 const unsigned char *body, size_t n)
{
  unsigned char out[FRAME_HEADER + 8];
  if (type == GOAWAY || type == RESET) {
    c->error = "the server ended the stream";
    return -1;
  }
  if (type == SETTINGS && !(flags & FLAG_ACK)) {
    frame(out, 0, SETTINGS, FLAG_ACK, 0);
    return send_all(c, out, FRAME_HEADER);
  }
  if (type == PING && !(flags & FLAG_ACK) && n == 8) {
    memcpy(frame(out, 8, PING, FLAG_ACK, 0), body, 8);
    return send_all(c, out, sizeof out);
  }
  if (type != DATA) return 0;
  /* The connection's window is 64 KiB, the stream's too, but short-lived. */
  c->consumed += (uint32_t)n;
  if (c->consumed < FRAME_MOST) return 0;
  put32(frame(out, 4, WINDOW, 0, 0), c->consumed);
  c->consumed = 0;
  return send_all(c, out, FRAME_HEADER + 4);
}

/* ---- one put ----------------------------------------------------------- */

static int open_connection(struct put_client *c, int port)
{
  static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
  struct timeval limit = {ANSWER_SECONDS, 0};
  unsigned char settings[FRAME_HEADER];
  int one = 1;
  frame(settings, 0, SETTINGS, 0, 0);
  c->stream = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 ||
      setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) ||
      setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) ||
      connect(c->fd, (struct sockaddr *)&address, sizeof address) ||
      send_all(c, preface, sizeof preface - 1) ||
      send_all(c, settings, sizeof settings)) {
    c->error = "cannot connect";
    return -1;
  }
  return 0;
}

static size_t request(struct put_client *c, unsigned char *out)
{
  static const char path[] = "/etcdserverpb.KV/Put", host[] = "127.0.0.1",
                    type[] = "application/grpc";
  unsigned char *start = out + FRAME_HEADER, *p = start;
  *p++ = 0x83; /* :method POST */
  *p++ = 0x86; /* :scheme http */
  p += sprintf((char *)p, "\x04%c%s", (int)sizeof path - 1, path);
  p += sprintf((char *)p, "\x01%c%s", (int)sizeof host - 1, host);
  p += sprintf((char *)p, "\x0f\x10%c%s", (int)sizeof type - 1, type);
  *p++ = 0; /* a name that is in no table */
  p += sprintf((char *)p, "\x02te\x08trailers");
  frame(out, (size_t)(p - start), HEADERS, FLAG_END_HEADERS, c->stream);

  char key[40];
  int k = snprintf(key, sizeof key, "bench/%03d/%020llu", c->number,
                   (unsigned long long)c->stream);
  size_t message = 2 + (size_t)k + 2 + VALUE_BYTES;
  p = frame(p, 5 + message, DATA, FLAG_END_STREAM, c->stream);
  *p++ = 0; /* not compressed */
  p = put32(p, (uint32_t)message);
  p += sprintf((char *)p, "\x0a%c%s\x12%c", k, key, VALUE_BYTES);
  memset(p, 'v', VALUE_BYTES);
  return (size_t)(p + VALUE_BYTES - out);
}

static int put(struct put_client *c)
{
  unsigned char out[512];
  size_t message = 0;
  if (send_all(c, out, request(c, out))) return -1;
  for (;;) {
    if (need(c, FRAME_HEADER)) return -1;
    const unsigned char *head = c->in + c->used;
    size_t n = get32(head) >> 8;
    int type = head[3], flags = head[4];
    bool ours = (get32(head + 5) & 0x7fffffff) == c->stream;
    if (n > FRAME_MOST) {
      c->error = "a frame is too large";
      return -1;
    }
    c->used += FRAME_HEADER;
    if (need(c, n) || serve(c, type, flags, c->in + c->used, n)) return -1;
    c->used += n;
    if (ours && type == DATA) message += n;
    if (ours && (type == DATA || type == HEADERS) && (flags & FLAG_END_STREAM))
      break;
  }
  c->stream += 2;
  if (message > 5) return 0;
  c->error = "a put was refused";
  return -1;
}

/* ---- many -------------------------------------------------------------- */

static void *put_main(void *ctx)
{
  struct put_client *c = ctx;
  uint64_t now = now_ns(), end = now + (uint64_t)c->seconds * 1000000000;
  while (now < end) {
    uint64_t before = now;
    if (put(c)) break;
    now = now_ns();
    histogram_add(&c->latency, now - before);
    c->done += now <= end;
  }
  return NULL;
}

int etcd_main(int argc, char **argv)
{
  static struct put_client clients[LOAD_CLIENTS];
  static struct histogram all;
  int n = argc == 3 ? atoi(argv[1]) : 0;
  int seconds = argc == 3 ? atoi(argv[2]) : 0;
  if (n < 1 || n > LOAD_CLIENTS || seconds < 1) {
    fprintf(stderr, "usage: bench --etcd PORT CLIENTS SECONDS\n");
    return 2;
  }
  uint64_t done = 0;
  const char *error = NULL;
  for (int i = 0; i < n; i++) {
    struct put_client *c = &clients[i];
    c->number = (int)(now_ns() % 1000);
    c->seconds = (unsigned)seconds;
    /* With a put before the time begins, so that all connections are warm. */
    if (open_connection(c, atoi(argv[0])) || put(c)) {
      fprintf(stderr, "%s\n", c->error);
      return 1;
    }
  }
  for (int i = 0; i < n; i++) {
    clients[i].number = i;
    if (pthread_create(&clients[i].thread, NULL, put_main, &clients[i]))
      return 1;
  }
  for (int i = 0; i < n; i++) {
    pthread_join(clients[i].thread, NULL);
    close(clients[i].fd);
    histogram_merge(&all, &clients[i].latency);
    done += clients[i].done;
    if (clients[i].error) error = clients[i].error;
  }
  if (error) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  printf("%.1f %.3f %.3f\n", (double)done / seconds,
         histogram_quantile(&all, 0.5) / 1e6,
         histogram_quantile(&all, 0.99) / 1e6);
  return 0;
}
