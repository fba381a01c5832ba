/*
** fuzz_stream.c: bytes that a peer, or who sits between two, sends on a
** connection: before, in and after the handshake.
**
** An input: u8 what, then the bytes or operations. what % 8:
**
**   0, 1  a server, or a client, that gets the bytes, in pieces
**   2, 3  the same, as records of TLS: u8 type, u16 length, bytes
**   4..7  two ends; each operation is a byte and what it needs (see deliver()):
**         what one end has sent arrives at the other in pieces, changed, twice,
**         not at all, with bytes before it; ends write (and replace keys every
**         REKEY bytes), and close.
**         5: they have shaken hands before; 6: the client has no certificate;
**         7: both
**
** What must hold: a stream that is dead says why, in one line, and goes on
** saying so; what arrives is what the other end has written, from the beginning
** on, without a gap; nobody is taken for another, and memory stays bounded.
*/
#include "../internal.h"
#include "fuzz.h"

#include <openssl/err.h>

#define CLUSTER UINT64_C(0x00c0ffee12345678)
#define SERVER_ID 5
#define CLIENT_ID 6
#define TEXT_MAX 4096
#define REKEY 6000

const char *const fuzz_corpus = "tls/fuzz/corpus/stream";

struct end {
  struct tls_stream *stream;
  uint64_t peer;     /* whom it may find at the other end; 0: nobody */
  size_t wrote, got; /* bytes of what is said in this direction */
  bool closed;       /* it has asked for that */
};

/* ---- contexts ---------------------------------------------------------- */

static struct tls_context *server_context, *client_context, *joiner_context;

static struct tls_context *make_member(const char *ca, const char *ca_key,
                                       uint64_t id)
{
  char *request, *key, *cert;
  struct tls_context *context;
  struct tls_error error;

  must(tls_make_request(&request, &key, &error) == 0);
  must(tls_sign_request(ca, ca_key, request, CLUSTER, id, 9, &cert, &error) ==
       0);
  must(tls_context_new(ca, cert, key, &context, &error) == 0);
  context->rekey_bytes = REKEY;
  tls_free_text(request);
  tls_free_text(key);
  tls_free_text(cert);
  return context;
}

static void make_contexts(void)
{
  char *ca, *ca_key;
  uint8_t print[32];
  struct tls_error error;

  if (server_context) return;
  must(tls_make_ca(CLUSTER, &ca, &ca_key, &error) == 0);
  must(tls_fingerprint(ca, print, &error) == 0);
  server_context = make_member(ca, ca_key, SERVER_ID);
  client_context = make_member(ca, ca_key, CLIENT_ID);
  must(tls_context_new_joiner(CLUSTER, print, &joiner_context, &error) == 0);
  tls_free_text(ca);
  tls_free_text(ca_key);
}

/* ---- what must hold of one end ----------------------------------------- */

/* What is said: bytes that follow from their place. */
static uint8_t byte_at(size_t place)
{
  return (uint8_t)(place * 151 + (place >> 8));
}

static void read_all(struct end *e, const struct end *other)
{
  bool ready = tls_stream_ready(e->stream);
  uint8_t buf[997];
  ssize_t n;

  /* What came before the end of a stream is still given. */
  while ((n = tls_stream_read(e->stream, buf, sizeof buf)) > 0) {
    must(ready);
    must((size_t)n <= sizeof buf);
    for (ssize_t i = 0; i < n; i++)
      must(buf[i] == byte_at(e->got++));
    must(!other || e->got <= other->wrote);
    must(other); /* nobody has the keys: nothing can have been said */
  }
  if (n == -2) must(!other || other->closed);
}

static void must_hold(struct end *e)
{
  const char *why = tls_stream_error(e->stream);
  bool dead = tls_stream_cause(e->stream) != TLS_CAUSE_NONE;

  must(ERR_peek_error() == 0);
  must(dead == (why[0] != 0));
  must(!strchr(why, '\n'));
  must(!dead || !tls_stream_ready(e->stream));
  must(tls_stream_peer(e->stream) == 0 ||
       tls_stream_peer(e->stream) == e->peer);
  if (!dead) return;
  must(tls_stream_feed(e->stream, "x", 1) == -1);
  must(strcmp(tls_stream_error(e->stream), why) == 0);
}

static int feed(struct end *e, const uint8_t *data, size_t n)
{
  uint8_t *copy = exact_copy(data, n);
  int rc = tls_stream_feed(e->stream, copy, n);

  free(copy);
  must(rc == 0 || rc == -1);
  must((rc == -1) == (tls_stream_error(e->stream)[0] != 0));
  return rc;
}

/* ---- one end, and a stranger ------------------------------------------- */

static void try_alone(struct input in, bool server, bool records)
{
  struct end e = {.peer = 0};
  const uint8_t *bytes, *out;
  uint8_t header[5];
  size_t got;

  e.stream = tls_stream_new(server ? server_context : client_context, server);
  must(e.stream);
  while (input_left(&in)) {
    if (records) {
      header[0] = input_byte(&in);
      header[1] = header[2] = 3;
      got = (size_t)input_number(&in, 2);
      bytes = input_bytes(&in, got, &got);
      header[3] = (uint8_t)(got >> 8);
      header[4] = (uint8_t)got;
      if (feed(&e, header, 5)) break;
    } else {
      got = (size_t)input_number(&in, 1) + 1;
      bytes = input_bytes(&in, got, &got);
    }
    if (feed(&e, bytes, got)) break;
    read_all(&e, NULL);
  }
  must(!tls_stream_ready(e.stream));
  must(tls_stream_output(e.stream, &out) < 32 * 1024);
  must_hold(&e);
  tls_stream_free(e.stream);
}

/* ---- two ends ---------------------------------------------------------- */

static void say(struct end *e, size_t n)
{
  uint8_t buf[TEXT_MAX];
  struct iovec iov = {buf, n};

  if (!tls_stream_ready(e->stream) || e->closed) return;
  for (size_t i = 0; i < n; i++)
    buf[i] = byte_at(e->wrote + i);
  if (tls_stream_write(e->stream, &iov, 1) == 0) e->wrote += n;
}

/* What e has to send goes to the other end: all of it, or n bytes, and what is
   done to it on the way. */
static void deliver(struct end *e, struct end *to, struct input *in, uint8_t op)
{
  const uint8_t *out, *bytes;
  size_t n = tls_stream_output(e->stream, &out), at, got;
  uint8_t *copy;

  if (op >= 2 && n > 0) n = 1 + (size_t)input_number(in, 2) % n;
  copy = exact_copy(out, n);
  switch (op) {
  case 3: /* one bit of it is changed */
    at = n ? (size_t)input_number(in, 2) % n : 0;
    if (n) copy[at] ^= (uint8_t)(1u << input_byte(in) % 8);
    break;
  case 4: /* lost */
    tls_stream_sent(e->stream, n);
    free(copy);
    return;
  case 5: /* something comes before it */
    bytes = input_bytes(in, (size_t)input_byte(in) + 1, &got);
    feed(to, bytes, got);
    break;
  case 6: /* twice */ feed(to, copy, n); break;
  default: break;
  }
  tls_stream_sent(e->stream, n);
  feed(to, copy, n);
  free(copy);
}

static void step(struct end ends[2], struct input *in)
{
  uint8_t op = input_byte(in);
  struct end *e = &ends[op >> 7], *to = &ends[!(op >> 7)];

  switch (op & 15) {
  case 8: say(e, 1 + (size_t)input_byte(in)); break;
  case 9: say(e, TEXT_MAX); break;
  case 10:
    tls_stream_close(e->stream);
    e->closed = true;
    break;
  default: deliver(e, to, in, op & 7); break;
  }
  read_all(to, e);
  read_all(e, to);
  must_hold(e);
  must_hold(to);
}

static void shake_hands(struct end ends[2])
{
  struct input none = {NULL, NULL};

  for (unsigned i = 0; i < 6; i++)
    deliver(&ends[i % 2], &ends[!(i % 2)], &none, 0);
  must(tls_stream_ready(ends[0].stream) && tls_stream_ready(ends[1].stream));
  must(tls_stream_peer(ends[0].stream) == ends[0].peer);
  must(tls_stream_peer(ends[1].stream) == ends[1].peer);
}

static void try_both(struct input in, bool shaken, bool joiner)
{
  struct end ends[2] = {{.peer = SERVER_ID}, {.peer = joiner ? 0 : CLIENT_ID}};

  ends[0].stream =
      tls_stream_new(joiner ? joiner_context : client_context, false);
  ends[1].stream = tls_stream_new(server_context, true);
  must(ends[0].stream && ends[1].stream);
  if (shaken) shake_hands(ends);
  for (unsigned n = 0; input_left(&in) && n < 200; n++)
    step(ends, &in);
  tls_stream_free(ends[0].stream);
  tls_stream_free(ends[1].stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct input in = input_of(data, size);
  uint8_t what = input_byte(&in) % 8;

  make_contexts();
  if (what < 4)
    try_alone(in, what % 2 == 0, what >= 2);
  else
    try_both(in, what & 1, what & 2);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static void seed_hello(void (*seed)(const void *data, size_t size))
{
  struct tls_stream *client = tls_stream_new(client_context, false);
  uint8_t bytes[2048] = {0};
  const uint8_t *out;
  size_t len = tls_stream_output(client, &out), n = 1;

  must(client && len > 5 && len < 1024);
  for (size_t i = 0; i < len; i += 256) {
    size_t part = len - i < 256 ? len - i : 256;

    bytes[n++] = (uint8_t)(part - 1);
    memcpy(bytes + n, out + i, part);
    n += part;
  }
  seed(bytes, n);
  bytes[0] = 2;
  bytes[1] = out[0];
  write_number(bytes + 2, len - 5, 2);
  memcpy(bytes + 4, out + 5, len - 5);
  seed(bytes, 4 + len - 5);
  tls_stream_free(client);
}

/* The flight of a server, as a client gets it; it is none to its own hello. */
static void seed_flight(void (*seed)(const void *data, size_t size))
{
  struct tls_stream *client = tls_stream_new(client_context, false);
  struct tls_stream *server = tls_stream_new(server_context, true);
  uint8_t bytes[8192] = {3};
  const uint8_t *out;
  size_t len = tls_stream_output(client, &out), n = 1;

  must(client && server);
  must(tls_stream_feed(server, out, len) == 0);
  len = tls_stream_output(server, &out);
  for (size_t at = 0, part; at < len; at += 5 + part) {
    part = (size_t)out[at + 3] << 8 | out[at + 4];
    must(n + 3 + part < sizeof bytes);
    bytes[n] = out[at];
    write_number(bytes + n + 1, part, 2);
    memcpy(bytes + n + 3, out + at + 5, part);
    n += 3 + part;
  }
  seed(bytes, n);
  tls_stream_free(client);
  tls_stream_free(server);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  static const uint8_t shake[] = {4, 0, 0x80, 0, 0x80, 8, 9, 0, 0x88, 40, 0x80};
  static const uint8_t talk[] = {5, 8, 9, 0,    0x88, 200, 0x80, 9, 0, 9,
                                 0, 9, 0, 0x8a, 0x80, 10,  0,    8, 1, 0};
  static const uint8_t join[] = {6, 0, 0x80, 0, 0x80, 8, 9, 0};
  static const uint8_t harm[] = {5, 8, 99, 3, 60, 0, 30, 0, 3, 0x80};
  static const uint8_t twice[] = {7, 9, 6, 200, 0, 0, 4, 3, 0, 5, 2, 1, 2, 3};

  make_contexts();
  seed_hello(seed);
  seed_flight(seed);
  seed(shake, sizeof shake);
  seed(talk, sizeof talk);
  seed(join, sizeof join);
  seed(harm, sizeof harm);
  seed(twice, sizeof twice);
}
