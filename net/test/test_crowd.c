/*
** test_crowd.c: many strangers at once, from many addresses (all of 127/8 are
** this machine's): room and time are shared out, a peer always finds its place,
** and the friend of the node that is attacked goes on talking to it.
*/
#include "common.h"

#include <sys/resource.h>
#include <sys/socket.h>

struct site {
  uv_loop_t loop;
  struct node node, friend;
  unsigned connections;
};

static void site_open(struct site *site)
{
  loop_open(&site->loop);
  node_open(&site->node, &site->loop, 1);
  befriend(&site->node, &site->friend);
  site->connections = connections_of(&site->node);
}

static void site_close(struct site *site)
{
  UNTIL(&site->loop, connections_of(&site->node) == site->connections);
  still_friends(&site->node, &site->friend);
  assert_int_equal(unverified(&site->node), 0);
  node_close(&site->node);
  node_close(&site->friend);
  loop_end(&site->loop);
}

static void dial_from(struct site *site, struct raw *raw, const char *source,
                      struct tls_context *tls)
{
  raw_open_from(raw, source, net_listening(site->node.net), tls);
}

static unsigned still_open(struct raw *crowd, unsigned n)
{
  unsigned open = 0;

  for (unsigned i = 0; i < n; i++) {
    raw_pump(&crowd[i]);
    if (!crowd[i].closed) open++;
  }
  return open;
}

static uint64_t accepted(const struct node *node)
{
  struct net_counters counters;

  net_counters(node->net, &counters);
  return counters.accepted;
}

static void end_all(struct raw *crowd, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    raw_end(&crowd[i]);
}

/* ---- room ---------------------------------------------------------------- */

/* One address that takes all places cannot keep out another. */
static void one_address_takes_all_places(void **state)
{
  static struct raw crowd[100];
  struct tls_context *tls = joiner(true);
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  for (unsigned i = 0; i < 100; i++)
    dial_from(&site, &crowd[i], "127.0.0.2", NULL);
  UNTIL(&site.loop, accepted(&site.node) == 101);
  UNTIL(&site.loop, still_open(crowd, 100) == 64);
  assert_int_equal(unverified(&site.node), 64);
  assert_int_equal(refused(&site.node, NET_REFUSED_CROWD), 36);
  assert_true(heard_of(&site.node, "refused a connection from 127.0.0.2:"));
  dial_from(&site, &raw, "127.0.0.3", tls);
  raw_greet(&raw, &site.loop, 0);
  raw_frame(&raw, NET_FRAME_JOIN, "please", 6);
  UNTIL(&site.loop, raw_pump(&raw) && site.node.requests == 1);
  raw_end(&raw);
  assert_int_equal(refused(&site.node, NET_REFUSED_CROWD), 37);
  assert_int_equal(still_open(crowd, 100), 63);
  assert_true(heard_of(&site.node, "it made room for another of 64"));
  still_friends(&site.node, &site.friend);
  end_all(crowd, 100);
  tls_context_unref(tls);
  site_close(&site);
}

static unsigned open_of(struct raw *crowd, unsigned from, unsigned n)
{
  return still_open(crowd + from, n);
}

/* Three addresses that want all get equal parts. */
static void places_are_shared_out(void **state)
{
  static const char *const sources[] = {"127.0.0.2", "127.0.0.3", "127.0.1.2"};
  static struct raw crowd[210], more[21];
  struct site site;

  (void)state;
  site_open(&site);
  for (unsigned i = 0; i < 210; i++) {
    dial_from(&site, &crowd[i], sources[i / 70], NULL);
    if (i % 10 == 0) turn(&site.loop);
  }
  UNTIL(&site.loop, accepted(&site.node) == 211);
  UNTIL(&site.loop, still_open(crowd, 210) == 64);
  for (unsigned i = 0; i < 3; i++)
    assert_in_range(open_of(crowd, i * 70, 70), 21, 22);
  /* The oldest of each have stayed. */
  raw_pump(&crowd[70]);
  assert_false(crowd[0].closed || crowd[70].closed || crowd[140].closed);
  /* And stay: equal parts do not go to and fro. */
  for (unsigned i = 0; i < 21; i++)
    dial_from(&site, &more[i], sources[i % 3], NULL);
  UNTIL(&site.loop, still_open(more, 21) == 0);
  assert_int_equal(still_open(crowd, 210), 64);
  still_friends(&site.node, &site.friend);
  end_all(more, 21);
  end_all(crowd, 210);
  site_close(&site);
}

/* Each place has another address: one more takes the place of the first; a peer
   finds one as often as it wants. */
static void a_peer_always_finds_a_place(void **state)
{
  static struct raw crowd[64];
  struct raft_configuration peers;
  struct site site;
  struct node late;
  struct raw raw;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->handshake_ms = 60000;
  /* An address that was there before counts by its newest connection. */
  dial_from(&site, &raw, "127.0.7.63", NULL);
  UNTIL(&site.loop, unverified(&site.node) == 1);
  raw_end(&raw);
  UNTIL(&site.loop, unverified(&site.node) == 0);
  for (unsigned i = 0; i < 64; i++) {
    char source[16];

    snprintf(source, sizeof source, "127.0.7.%u", i);
    dial_from(&site, &crowd[i], source, NULL);
  }
  UNTIL(&site.loop, unverified(&site.node) == 64);
  dial_from(&site, &raw, "127.0.8.1", NULL);
  UNTIL(&site.loop, still_open(crowd, 64) == 63);
  assert_true(crowd[0].closed);
  assert_int_equal(still_open(&raw, 1), 1);
  raw_end(&raw);
  UNTIL(&site.loop, unverified(&site.node) == 63);
  dial_from(&site, &raw, "127.0.8.2", NULL);
  UNTIL(&site.loop, unverified(&site.node) == 64);
  /* A node that comes in from the address of a peer, 127.0.0.1. */
  node_open(&late, &site.loop, 2);
  peers = configuration_of((struct node *[]){&site.node}, 1);
  net_set_peers(late.net, &peers);
  UNTIL(&site.loop, connected(&late, 1));
  UNTIL(&site.loop, still_open(crowd, 64) == 62);
  raw_end(&raw);
  UNTIL(&site.loop, unverified(&site.node) == 62);
  raw_end(&crowd[0]);
  dial_from(&site, &crowd[0], "127.0.7.0", NULL);
  UNTIL(&site.loop, unverified(&site.node) == 63);
  for (unsigned i = 0; i < 5; i++) {
    net_connection_end(net_peer_find(late.net, 1)->dialled, NET_CUT, "a test");
    UNTIL(&site.loop, late.up[1] == i + 2);
    dial_from(&site, &raw, "127.0.7.100", NULL);
    UNTIL(&site.loop, unverified(&site.node) == 64);
    raw_end(&raw);
    UNTIL(&site.loop, unverified(&site.node) == 63);
  }
  still_friends(&site.node, &site.friend);
  node_close(&late);
  end_all(crowd, 64);
  site_close(&site);
}

/* Eight at once from there, in the place of others; then they are like any. */
static void peers_have_a_few_places(void **state)
{
  static struct raw crowd[64], from_peer[20];
  struct site site;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->handshake_ms = 60000;
  for (unsigned i = 0; i < 64; i++) {
    char source[16];

    snprintf(source, sizeof source, "127.0.7.%u", i);
    dial_from(&site, &crowd[i], source, NULL);
  }
  UNTIL(&site.loop, unverified(&site.node) == 64);
  for (unsigned i = 0; i < 20; i++)
    dial_from(&site, &from_peer[i], "127.0.0.1", NULL);
  UNTIL(&site.loop, accepted(&site.node) == 85);
  UNTIL(&site.loop, still_open(crowd, 64) == 56);
  UNTIL(&site.loop, still_open(from_peer, 20) == 8);
  assert_int_equal(unverified(&site.node), 64);
  /* The newest: a peer that was late gets in among others of its address. */
  for (unsigned i = 0; i < 20; i++)
    assert_true(from_peer[i].closed == (i < 12));
  end_all(crowd, 64);
  end_all(from_peer, 20);
  site_close(&site);
}

/* When ever new addresses come, places change hands so often and no more. */
static void places_change_hands_seldom(void **state)
{
  static struct raw crowd[64], others[60];
  struct site site;
  struct raw raw;
  char source[16];
  unsigned moved;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->handshake_ms = 60000;
  net_limits(site.node.net)->rate_room = 2;
  for (unsigned i = 0; i < 64; i++) {
    snprintf(source, sizeof source, "127.0.7.%u", i);
    dial_from(&site, &crowd[i], source, NULL);
  }
  UNTIL(&site.loop, unverified(&site.node) == 64);
  for (unsigned i = 0; i < 60; i++) {
    snprintf(source, sizeof source, "127.0.9.%u", i);
    dial_from(&site, &others[i], source, NULL);
  }
  UNTIL(&site.loop, refused(&site.node, NET_REFUSED_CROWD) == 60);
  UNTIL(&site.loop, still_open(crowd, 64) + still_open(others, 60) == 64);
  moved = still_open(others, 60);
  assert_in_range(moved, 2, 30);
  assert_int_equal(still_open(crowd, 64), 64 - moved);
  /* A peer is not concerned. */
  for (unsigned i = 0; i < 40; i++) {
    dial_from(&site, &raw, "127.0.0.1", identity(2));
    raw_greet(&raw, &site.loop, 2);
    raw_end(&raw);
  }
  still_friends(&site.node, &site.friend);
  end_all(crowd, 64);
  end_all(others, 60);
  site_close(&site);
}

/* One who has begun to speak is not the one who goes. */
static void the_silent_go_first(void **state)
{
  static struct raw crowd[64], more[30];
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->handshake_ms = 60000;
  dial_from(&site, &raw, "127.0.0.1", NULL);
  raw_put(&raw, "\x16\x03\x01", 3);
  UNTIL(&site.loop, accepted(&site.node) == 2);
  UNTIL(&site.loop, site.node.net->hub.connections->received == 3);
  for (unsigned i = 0; i < 63; i++)
    dial_from(&site, &crowd[i], "127.0.0.1", NULL);
  UNTIL(&site.loop, unverified(&site.node) == 64);
  for (unsigned i = 0; i < 30; i++)
    dial_from(&site, &more[i], "127.0.0.1", NULL);
  UNTIL(&site.loop, still_open(crowd, 63) == 33);
  assert_int_equal(still_open(more, 30), 30);
  raw_pump(&raw);
  assert_false(raw.closed);
  raw_end(&raw);
  end_all(crowd, 63);
  end_all(more, 30);
  site_close(&site);
}

/* ---- time ---------------------------------------------------------------- */

/* Handshakes as fast as they come, until one is refused; how many were not. */
static unsigned until_too_many(struct site *site, const char *source,
                               struct tls_context *tls)
{
  unsigned n = 0;
  struct raw raw;

  for (bool done = false; !done && n < 1000;) {
    dial_from(site, &raw, source, tls);
    UNTIL(&site->loop,
          raw_pump(&raw) && (raw.closed || tls_stream_ready(raw.tls)));
    /* The server's part may still fail; it does not here. */
    done = !tls_stream_ready(raw.tls);
    n += !done;
    raw_end(&raw);
  }
  return n;
}

static void handshakes_are_rationed(void **state)
{
  struct tls_context *tls = joiner(true);
  struct site site;
  unsigned n;

  (void)state;
  site_open(&site);
  /* So few that what a slow machine gets meanwhile does not matter. */
  net_limits(site.node.net)->rate_source = 2;
  net_limits(site.node.net)->rate_all = 5;
  n = until_too_many(&site, "127.0.0.2", tls);
  assert_in_range(n, 2, 30);
  assert_true(refused(&site.node, NET_REFUSED_RATE) == 1);
  assert_true(heard_of(&site.node, "too many handshakes within a second"));
  /* Others have theirs, until all of them have had too many. */
  n = until_too_many(&site, "127.0.0.3", tls);
  assert_in_range(n, 1, 30);
  for (unsigned i = 4; i < 100; i++) {
    char source[16];

    snprintf(source, sizeof source, "127.0.0.%u", i);
    if (until_too_many(&site, source, tls) == 0) break;
    assert_true(i < 90);
  }
  /* Which is nothing to a peer. */
  net_limits(site.node.net)->rate_all = 1;
  for (unsigned i = 0; i < 10; i++) {
    struct raw raw;

    dial_from(&site, &raw, "127.0.0.1", identity(2));
    raw_greet(&raw, &site.loop, 2);
    raw_end(&raw);
  }
  still_friends(&site.node, &site.friend);
  tls_context_unref(tls);
  site_close(&site);
}

/* Silence costs nothing of that, nor does what cannot be a handshake. */
static void only_handshakes_are_rationed(void **state)
{
  struct site site;
  struct raw raw;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->rate_source = 1;
  for (unsigned i = 0; i < 100; i++) {
    dial_from(&site, &raw, "127.0.0.2", NULL);
    if (i % 2) raw_put(&raw, "GET / HTTP/1.1\r\n\r\n", 18);
    if (i % 2) UNTIL(&site.loop, raw_pump(&raw) && raw.closed);
    raw_end(&raw);
  }
  UNTIL(&site.loop, refused(&site.node, NET_REFUSED_PROTOCOL) == 50);
  UNTIL(&site.loop, refused(&site.node, NET_REFUSED_ABANDONED) == 50);
  assert_true(heard_of(&site.node, "not a TLS handshake"));
  dial_from(&site, &raw, "127.0.0.2", identity(2));
  raw_greet(&raw, &site.loop, 2);
  raw_end(&raw);
  assert_int_equal(refused(&site.node, NET_REFUSED_RATE), 0);
  site_close(&site);
}

/* A true handshake, a byte now and then. */
static void slow_handshakes(void **state)
{
  static struct raw slow[20];
  const uint8_t *hello;
  struct site site;
  uint64_t begin, next;
  size_t at = 0;

  (void)state;
  site_open(&site);
  net_limits(site.node.net)->handshake_ms = 1000;
  begin = next = net_now();
  for (unsigned i = 0; i < 20; i++)
    dial_from(&site, &slow[i], "127.0.0.2", NULL);
  slow[0].tls = tls_stream_new(identity(2), false);
  assert_true(tls_stream_output(slow[0].tls, &hello) > 100);
  UNTIL(&site.loop, unverified(&site.node) == 20);
  while (refused(&site.node, NET_REFUSED_SLOW) < 20) {
    assert_true(net_now() - begin < PATIENCE_MS);
    turn(&site.loop);
    if (net_now() < next) continue;
    next = net_now() + 50;
    for (unsigned i = 0; i < 20 && at < 100; i++)
      raw_put(&slow[i], hello + at, 1);
    at++;
    still_friends(&site.node, &site.friend);
  }
  assert_true(net_now() - begin >= 900);
  assert_true(heard_of(&site.node, "the handshake took too long"));
  end_all(slow, 20);
  site_close(&site);
}

/* ---- ten thousand -------------------------------------------------------- */

#define MANY 10000u

/* As many descriptors as there may be. */
static unsigned descriptors(void)
{
  struct rlimit limit;

  assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
  return limit.rlim_cur > 1u << 20 ? 1u << 20 : (unsigned)limit.rlim_cur;
}

static int dial_nonblocking(const struct sockaddr_in *to, unsigned number)
{
  struct sockaddr_in from = {.sin_family = AF_INET};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  assert_true(fd >= 0);
  /* 127.3.0.1 to 127.3.3.250: ten from each of a thousand. */
  from.sin_addr.s_addr =
      htonl(0x7f030001u + (number % 1000 / 250 << 8) + number % 250);
  assert_int_equal(bind(fd, (struct sockaddr *)&from, sizeof from), 0);
  if (connect(fd, (const struct sockaddr *)to, sizeof *to))
    assert_int_equal(errno, EINPROGRESS);
  return fd;
}

/* The first half says nothing, the second begins a handshake. */
static void ten_thousand(void **state)
{
  unsigned most = MIN(MANY, descriptors() - 200), dialled = 0;
  int *fds = malloc(MANY * sizeof *fds);
  struct sockaddr_in to;
  char host[64], port[8];
  struct site site;
  uint64_t begin = net_now(), slowest = 0;

  (void)state;
  assert_non_null(fds);
  site_open(&site);
  /* As it is by itself. */
  net_limits(site.node.net)->rate_source = 20;
  net_limits(site.node.net)->rate_all = 100;
  net_limits(site.node.net)->rate_room = 1000;
  net_limits(site.node.net)->event_ms = 1000;
  net_split_address(net_listening(site.node.net), host, sizeof host, port,
                    sizeof port);
  uv_ip4_addr(host, atoi(port), &to);
  while (dialled < MANY) {
    uint64_t before;

    for (unsigned i = 0; i < 50; i++, dialled++) {
      if (dialled >= most) close(fds[dialled - most]);
      fds[dialled] = dial_nonblocking(&to, dialled);
      if (dialled < MANY / 2) continue;
      (void)!send(fds[dialled - MANY / 2 + MANY / 4], "\x16\x03\x01\x01\x01", 5,
                  MSG_NOSIGNAL);
    }
    before = net_now();
    still_friends(&site.node, &site.friend);
    slowest = net_now() - before > slowest ? net_now() - before : slowest;
    assert_true(unverified(&site.node) <= 64 + 8);
    assert_true(net_now() - begin < 120000);
  }
  /* Who finds the queue full is tried again by the kernel: 1, 3, 7 s later. */
  for (uint64_t dialled_ms = net_now(); accepted(&site.node) < MANY + 1;) {
    assert_true(net_now() - dialled_ms < 70000);
    turn(&site.loop);
  }
  assert_int_equal(accepted(&site.node), MANY + 1);
  print_message("  %u connections in %" PRIu64
                " ms; a round trip of others took %" PRIu64 " ms at most\n",
                MANY, net_now() - begin, slowest);
  assert_true(refused(&site.node, NET_REFUSED_CROWD) >= MANY - 1000);
  assert_in_range(site.node.events, 1, (net_now() - begin) / 1000 * 4 + 8);
  UNTIL(&site.loop, unverified(&site.node) == 0);
  for (unsigned i = MANY - most; i < MANY; i++)
    close(fds[i]);
  free(fds);
  site_close(&site);
}

/* Without a descriptor for more connections the listener waits for one. */
static void no_descriptor_left(void **state)
{
  struct rlimit limit, low;
  struct site site;
  struct raw raw;
  int fd;

  (void)state;
  site_open(&site);
  getrlimit(RLIMIT_NOFILE, &limit);
  raw_open(&raw, net_listening(site.node.net), identity(2));
  fd = dup(raw.fd);
  close(fd);
  low = limit;
  low.rlim_cur = (rlim_t)fd;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
  UNTIL(&site.loop, heard_of(&site.node, "cannot accept a connection"));
  MEANWHILE(&site.loop, 250);
  assert_in_range(site.node.events, 1, 6); /* it does not spin */
  still_friends(&site.node, &site.friend);
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
  raw_greet(&raw, &site.loop, 2);
  raw_end(&raw);
  site_close(&site);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_address_takes_all_places),
      cmocka_unit_test(places_are_shared_out),
      cmocka_unit_test(a_peer_always_finds_a_place),
      cmocka_unit_test(peers_have_a_few_places),
      cmocka_unit_test(places_change_hands_seldom),
      cmocka_unit_test(the_silent_go_first),
      cmocka_unit_test(handshakes_are_rationed),
      cmocka_unit_test(only_handshakes_are_rationed),
      cmocka_unit_test(slow_handshakes),
      cmocka_unit_test(ten_thousand),
      cmocka_unit_test(no_descriptor_left),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
