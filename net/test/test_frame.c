/*
** test_frame.c: the frame reader, fed in pieces of every size and with
** rubbish, and the texts of addresses.
*/
#include "common.h"

#define ANY 0xffffffffu

struct stream {
  uint8_t *data;
  size_t n;
  unsigned frames;
};

static uint64_t random_state = 88172645463325252u;

static uint64_t next_random(void)
{
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static uint8_t body_byte(uint32_t frame, uint32_t i)
{
  return (uint8_t)(frame * 13 + i * 7 + (i >> 8));
}

/* Frames of all types and of lengths around what matters. */
static struct stream make_stream(void)
{
  static const uint32_t lengths[] = {0,    1,     7,      8,     9,      2047,
                                     2048, 16384, 100000, 65536, 1048576};
  struct stream s = {.data = malloc(16u << 20)};

  for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++)
    for (uint8_t type = 1; type < NET_FRAME_TYPES; type++) {
      if (lengths[i] > net_frame_bound(type)) continue;
      net_frame_header(s.data + s.n, type, lengths[i]);
      s.n += NET_FRAME_HEADER;
      for (uint32_t k = 0; k < lengths[i]; k++)
        s.data[s.n++] = body_byte(s.frames, k);
      s.frames++;
    }
  return s;
}

static void check_frame(const struct net_frame *frame, unsigned number)
{
  for (uint32_t k = 0; k < frame->len; k++)
    if (frame->body[k] != body_byte(number, k))
      fail_msg("frame %u differs at byte %u", number, k);
}

/* Feeds the stream in pieces whose size piece() says. */
static void feed_stream(const struct stream *s, size_t (*piece)(void),
                        bool direct)
{
  struct net_spare spare = {0};
  struct net_reader reader;
  struct net_frame frame;
  unsigned frames = 0;
  size_t at = 0, used, room;
  uint8_t *space;
  int rc;

  net_reader_init(&reader, &spare);
  reader.allowed = ANY;
  while (at < s->n) {
    size_t n = MIN(piece(), s->n - at);

    space = direct ? net_reader_space(&reader, &room) : NULL;
    if (space) {
      used = MIN(n, room);
      memcpy(space, s->data + at, used);
      rc = net_reader_filled(&reader, used, &frame);
    } else {
      rc = net_reader_take(&reader, s->data + at, n, &used, &frame);
    }
    assert_true(rc >= 0 && used <= n && (used > 0 || rc > 0));
    at += used;
    if (rc > 0) check_frame(&frame, frames++);
  }
  assert_int_equal(frames, s->frames);
  assert_false(net_reader_partial(&reader));
  net_reader_end(&reader);
  free(spare.memory);
}

static size_t one(void)
{
  return 1;
}

static size_t everything(void)
{
  return SIZE_MAX;
}

static size_t record(void)
{
  return NET_RECORD;
}

static size_t some(void)
{
  return (size_t)(next_random() % (next_random() % 5 ? 30 : 70000)) + 1;
}

static void pieces_of_every_size(void **state)
{
  struct stream s = make_stream();

  (void)state;
  feed_stream(&s, one, false);
  feed_stream(&s, everything, false);
  feed_stream(&s, record, true);
  for (unsigned i = 0; i < 20; i++)
    feed_stream(&s, some, i % 2);
  free(s.data);
}

static const char *refusal(const uint8_t header[8], unsigned allowed)
{
  static struct net_reader reader;
  struct net_spare spare = {0};
  struct net_frame frame;
  size_t used;

  net_reader_init(&reader, &spare);
  reader.allowed = allowed;
  if (net_reader_take(&reader, header, 8, &used, &frame) >= 0) {
    net_reader_end(&reader);
    return "";
  }
  assert_null(reader.body); /* nothing was allocated (N3) */
  return reader.error;
}

static void headers_that_are_refused(void **state)
{
  static const struct {
    uint8_t header[8];
    unsigned allowed;
    const char *error;
  } cases[] = {
      {{0, 0, 0, 0, 0, 1, 0, 0}, ANY, "unknown frame type 0"},
      {{0, 0, 0, 0, 9, 1, 0, 0}, ANY, "unknown frame type 9"},
      {{0, 0, 0, 0, 255, 1, 0, 0}, ANY, "unknown frame type 255"},
      {{0, 0, 0, 0, 1, 0, 0, 0}, ANY, "unknown frame version 0"},
      {{0, 0, 0, 0, 1, 2, 0, 0}, ANY, "unknown frame version 2"},
      {{0, 0, 0, 0, 1, 1, 1, 0}, ANY, "unknown frame flags"},
      {{0, 0, 0, 0, 1, 1, 0, 128}, ANY, "unknown frame flags"},
      {{1, 0, 128, 0, 1, 1, 0, 0}, ANY, "a raft frame of 8388609 bytes"},
      {{9, 0, 1, 0, 2, 1, 0, 0}, ANY, "a call frame of 65545 bytes"},
      {{13, 0, 17, 0, 3, 1, 0, 0}, ANY, "an answer frame of 1114125"},
      {{1, 0, 1, 0, 4, 1, 0, 0}, ANY, "a join frame of 65537 bytes"},
      {{9, 0, 1, 0, 5, 1, 0, 0}, ANY, "a fetch frame of 65545 bytes"},
      {{1, 1, 18, 0, 6, 1, 0, 0}, ANY, "a post frame of 1179905 bytes"},
      {{1, 1, 0, 0, 7, 1, 0, 0}, ANY, "a hello frame of 257 bytes"},
      {{1, 1, 0, 0, 8, 1, 0, 0}, ANY, "a goodbye frame of 257 bytes"},
      {{255, 255, 255, 255, 5, 1, 0, 0}, ANY, "of 4294967295 bytes"},
      {{0, 0, 0, 0, 1, 1, 0, 0}, NET_ALLOW(2), "a raft frame is not allowed"},
      {{0, 0, 0, 0, 5, 1, 0, 0}, 0, "a fetch frame is not allowed"},
  };

  (void)state;
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *error = refusal(cases[i].header, cases[i].allowed);

    if (!strstr(error, cases[i].error)) fail_msg("case %u: \"%s\"", i, error);
  }
  /* And the bounds themselves are allowed. */
  for (uint8_t type = 1; type < NET_FRAME_TYPES; type++) {
    uint8_t header[8];

    net_frame_header(header, type, net_frame_bound(type));
    assert_string_equal(refusal(header, ANY), "");
  }
}

/* Rubbish, and headers that are almost right: refused or waited for. */
static void rubbish(void **state)
{
  static uint8_t data[4096];
  struct net_spare spare = {0};
  struct net_reader reader;
  struct net_frame frame;
  size_t used;

  (void)state;
  for (unsigned round = 0; round < 20000; round++) {
    size_t n = next_random() % sizeof data, at = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i += 8) {
      uint64_t r = next_random();

      memcpy(data + i, &r, MIN(8, n - i));
    }
    if (round % 2 && n > 8) {
      net_put32(data, (uint32_t)(next_random() % 300));
      data[4] = (uint8_t)(next_random() % 9);
      data[5] = 1;
      data[6] = data[7] = 0;
    }
    net_reader_init(&reader, &spare);
    reader.allowed = (unsigned)next_random() | 1u << 1;
    while (at < n && rc >= 0) {
      rc = net_reader_take(&reader, data + at, n - at, &used, &frame);
      assert_true(used <= n - at);
      at += used;
      if (rc > 0) assert_true(frame.len <= net_frame_bound(frame.type));
      if (rc == 0) assert_true(at == n);
    }
    net_reader_end(&reader);
  }
  free(spare.memory);
}

static void one_spare_is_kept(void **state)
{
  static uint8_t data[NET_ANSWER_MAX + 8];
  struct net_spare spare = {0};
  struct net_reader reader;
  struct net_frame frame;
  uint8_t *first = NULL;
  size_t used;

  (void)state;
  net_reader_init(&reader, &spare);
  reader.allowed = ANY;
  net_frame_header(data, NET_FRAME_ANSWER, NET_ANSWER_MAX);
  for (unsigned i = 0; i < 10; i++) {
    assert_int_equal(net_reader_take(&reader, data, 100, &used, &frame), 0);
    if (i == 0) first = reader.body;
    assert_ptr_equal(reader.body, first);
    assert_int_equal(
        net_reader_take(&reader, data + 100, sizeof data - 100, &used, &frame),
        1);
  }
  net_reader_end(&reader);
  free(spare.memory);
}

/* ---- addresses ----------------------------------------------------------- */

static void addresses(void **state)
{
  static const struct {
    const char *text, *host, *port; /* host NULL: refused */
  } cases[] = {
      {"127.0.0.1:80", "127.0.0.1", "80"},
      {"db-1.example:65535", "db-1.example", "65535"},
      {"[::1]:0", "::1", "0"},
      {"[fe80::1%eth0]:7", "fe80::1%eth0", "7"},
      {"", NULL, NULL},
      {":", NULL, NULL},
      {":80", NULL, NULL},
      {"host", NULL, NULL},
      {"host:", NULL, NULL},
      {"host:65536", NULL, NULL},
      {"host:-1", NULL, NULL},
      {"host:+1", NULL, NULL},
      {"host: 1", NULL, NULL},
      {"host:000080", NULL, NULL},
      {"host:80a", NULL, NULL},
      {"::1:80", NULL, NULL},
      {"[::1]80", NULL, NULL},
      {"[::1:80", NULL, NULL},
      {"[]:80", NULL, NULL},
      {"[host]:80", NULL, NULL},
      {"a b:80", NULL, NULL},
      {"user@host:80", NULL, NULL},
      {"http://host:80", NULL, NULL},
  };
  char host[64], port[8], tiny[4];

  (void)state;
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool ok =
        net_split_address(cases[i].text, host, sizeof host, port, sizeof port);

    if (ok != (cases[i].host != NULL)) fail_msg("\"%s\"", cases[i].text);
    if (!ok) continue;
    assert_string_equal(host, cases[i].host);
    assert_string_equal(port, cases[i].port);
  }
  assert_false(net_split_address("1.2.3.4:5", tiny, 4, port, sizeof port));
  assert_false(net_split_address("1.2.3.4:55555", host, sizeof host, tiny, 4));
}

static void names_with_a_limit(void **state)
{
  struct net_candidates found;
  struct net_error error;

  (void)state;
  need_localhost();
  assert_int_equal(net_resolve("localhost:7", 5000, &found, &error), 0);
  assert_true(found.n > 0);
  assert_int_equal(net_resolve("[::1]:7", 0, &found, &error), 0);
  assert_int_equal(found.at[0].ss_family, AF_INET6);
  assert_int_equal(net_resolve("no-such.invalid:7", 9000, &found, &error), -1);
  assert_non_null(strstr(error.text, "no-such.invalid:7: "));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(pieces_of_every_size),
      cmocka_unit_test(headers_that_are_refused),
      cmocka_unit_test(rubbish),
      cmocka_unit_test(one_spare_is_kept),
      cmocka_unit_test(addresses),
      cmocka_unit_test(names_with_a_limit),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
