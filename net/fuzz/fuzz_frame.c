/*
** fuzz_frame.c: frames, HELLO and GOODBYE, as they come out of a connection.
**
** An input: u8 types that may come, u8 how the bytes are cut in pieces, then
** the bytes.
**
** What must hold: however the bytes are cut, the same frames come, and the same
** refusal; no frame is larger than its type may be, or of a type that may not
** come; what a peer says about itself is shown in one plain line.
*/
#include "../internal.h"
#include "fuzz.h"

#define FRAMES_MAX 64
#define CLUSTER UINT64_C(0x1122334455667788)

const char *const fuzz_corpus = "net/fuzz/corpus/frame";

struct seen {
  struct net_frame frames[FRAMES_MAX]; /* body: where it stood in the bytes */
  unsigned n;
  char error[96];
  enum net_refusal refusal;
  bool partial;
};

static void try_hello(const struct net_frame *frame)
{
  const struct net_identity self = {.cluster = CLUSTER, .id = 1};
  struct net_hello hello;
  enum net_refusal refusal = NET_REFUSED_OTHER;
  char why[NET_TEXT] = "";
  unsigned code;

  memset(&hello, 0, sizeof hello);
  if (!net_hello_read(frame, &hello)) return;
  must(frame->len >= 40 && hello.lowest <= hello.highest);
  must(hello.is.id == net_get64(frame->body + 24));
  code = net_hello_check(&hello, &self, 7, why, &refusal);
  must((code != 0) == (why[0] != 0));
  must(code || (hello.is.cluster == CLUSTER && hello.is.id == 7));
  code = net_hello_check(&hello, &self, 0, why, &refusal);
  must(code || hello.is.id == 0);
}

static void try_goodbye(const struct net_frame *frame)
{
  char why[NET_TEXT];
  unsigned code = 999;

  if (!net_goodbye_read(frame, &code, why)) {
    must(frame->len == 0);
    return;
  }
  must(code == frame->body[0] && strlen(why) <= frame->len - 1);
  for (const char *p = why; *p; p++)
    must(*p >= ' ' && *p <= '~');
}

static void take_frame(struct seen *seen, const struct net_frame *frame,
                       const uint8_t *end_in_stream, unsigned allowed)
{
  struct net_frame at = *frame;

  must(allowed & NET_ALLOW(frame->type));
  must(frame->len <= net_frame_bound(frame->type));
  at.body = end_in_stream - frame->len;
  must(!frame->len || memcmp(at.body, frame->body, frame->len) == 0);
  if (seen->n < FRAMES_MAX) seen->frames[seen->n++] = at;
  if (frame->type == NET_FRAME_HELLO) try_hello(frame);
  if (frame->type == NET_FRAME_GOODBYE) try_goodbye(frame);
}

/* How long the next piece is: all of the bytes, or of a size that changes. */
static size_t next_piece(uint8_t cut, size_t at, size_t left)
{
  size_t piece = cut == 0 ? left : 1 + (at * 7 + cut) % cut;

  return piece < left ? piece : left;
}

static void read_stream(struct net_reader *reader, const uint8_t *data,
                        size_t size, uint8_t cut, struct seen *seen)
{
  unsigned allowed = reader->allowed;
  struct net_frame frame;
  size_t at = 0, used, room;
  int rc = 0;

  while (at < size && rc >= 0) {
    size_t n = next_piece(cut, at, size - at);
    uint8_t *space = cut & 1 ? net_reader_space(reader, &room) : NULL;

    if (space) {
      used = MIN(n, room);
      memcpy(space, data + at, used);
      rc = net_reader_filled(reader, used, &frame);
    } else {
      uint8_t *piece = exact_copy(data + at, n);

      rc = net_reader_take(reader, piece, n, &used, &frame);
      must(used <= n && (rc < 0 || used > 0));
      if (rc > 0) take_frame(seen, &frame, data + at + used, allowed);
      free(piece);
      at += used;
      continue;
    }
    at += used;
    if (rc > 0) take_frame(seen, &frame, data + at, allowed);
  }
  seen->partial = net_reader_partial(reader);
  if (rc >= 0) return;
  must(reader->error[0] && !strchr(reader->error, '\n'));
  memcpy(seen->error, reader->error, sizeof seen->error);
  seen->refusal = reader->refusal;
}

static void read_cut(const uint8_t *data, size_t size, unsigned allowed,
                     uint8_t cut, struct seen *seen)
{
  static struct net_spare spare;
  struct net_reader reader;

  memset(seen, 0, sizeof *seen);
  net_reader_init(&reader, &spare);
  reader.allowed = allowed;
  read_stream(&reader, data, size, cut, seen);
  net_reader_end(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  static struct seen whole, cut;

  if (size < 2) return 0;
  read_cut(data + 2, size - 2, (unsigned)data[0] << 1, 0, &whole);
  read_cut(data + 2, size - 2, (unsigned)data[0] << 1, data[1], &cut);
  must(memcmp(&whole, &cut, sizeof whole) == 0);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static size_t put_frame(uint8_t *at, uint8_t type, const void *body, size_t n)
{
  net_frame_header(at, type, (uint32_t)n);
  if (n) memcpy(at + NET_FRAME_HEADER, body, n);
  return NET_FRAME_HEADER + n;
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  uint8_t bytes[8192] = {255, 0}, hello[40], goodbye[] = "\2not a member";
  static uint8_t body[5000];
  size_t n = 2;

  net_put32(hello, 0x726f7571u);
  net_put32(hello + 4, 1);
  net_put32(hello + 8, 1);
  net_put32(hello + 12, 1);
  net_put64(hello + 16, CLUSTER);
  net_put64(hello + 24, 7);
  net_put64(hello + 32, 3);
  n += put_frame(bytes + n, NET_FRAME_HELLO, hello, sizeof hello);
  seed(bytes, n);
  for (uint8_t type = NET_FRAME_RAFT; type < NET_FRAME_HELLO; type++)
    n += put_frame(bytes + n, type, body, type * 3u);
  n += put_frame(bytes + n, NET_FRAME_GOODBYE, goodbye, sizeof goodbye - 1);
  seed(bytes, n);
  bytes[1] = 9;
  seed(bytes, n);
  n = 2 + put_frame(bytes + 2, NET_FRAME_RAFT, body, sizeof body);
  n += put_frame(bytes + n, NET_FRAME_POST, body, 9);
  bytes[1] = 201;
  seed(bytes, n);
  net_put32(bytes + 2, 1u << 30);
  seed(bytes, n);
}
