/*
** test_fetch.c: fetches: long answers that arrive intact and in order while
** heartbeats go on, and all the ways in which there is no answer.
*/
#include "common.h"

#define MIB (1024u * 1024u)
#define MANY 400

/* What a fetch asks for; the answer's bytes follow from it. */
struct wish {
  uint32_t number, len;
};

struct fetched {
  unsigned times, place; /* place: how many were answered before it */
  int status;
  size_t len;
  bool intact;
  struct wish wish;
  char text[NET_TEXT];
};

static unsigned answered; /* by done(), with or without success */
static struct fetched many[MANY];

static uint8_t wished_byte(const struct wish *wish, size_t i)
{
  return (uint8_t)(wish->number * 31 + i * 7 + (i >> 8) + (i >> 16) * 3);
}

static void serve(struct net_request *request, const uint8_t *body, size_t len)
{
  static uint8_t answer[NET_ANSWER_MAX + 1];
  struct wish wish;

  assert_true(len >= sizeof wish);
  memcpy(&wish, body, sizeof wish);
  assert_true(wish.len <= sizeof answer);
  for (size_t i = 0; i < wish.len; i++)
    answer[i] = wished_byte(&wish, i);
  net_reply(request, 0, answer, wish.len);
}

static bool as_wished(const struct wish *wish, const uint8_t *body, size_t len)
{
  if (len != wish->len) return false;
  for (size_t i = 0; i < len; i++)
    if (body[i] != wished_byte(wish, i)) return false;
  return true;
}

static void on_fetched(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct fetched *f = ctx;

  f->times++;
  f->place = answered++;
  f->status = status;
  f->len = len;
  f->intact = status == 0 && as_wished(&f->wish, body, len);
  snprintf(f->text, sizeof f->text, "%.*s", (int)MIN(len, 200u),
           (const char *)body);
}

static void fetch_for(struct node *from, raft_id peer, struct fetched *f,
                      uint32_t number, size_t len, unsigned timeout_ms)
{
  memset(f, 0, sizeof *f);
  f->wish = (struct wish){number, (uint32_t)len};
  net_fetch(from->net, peer, &f->wish, sizeof f->wish, timeout_ms, on_fetched,
            f);
  assert_int_equal(f->times, 0); /* N1 */
}

static void fetch(struct node *from, struct fetched *f, uint32_t number,
                  size_t len)
{
  fetch_for(from, 3 - from->id, f, number, len, 60000);
}

static void serving_pair(struct pair *p)
{
  pair_open(p);
  p->a.serve = p->b.serve = serve;
  answered = 0;
}

static void succeeded(const struct fetched *f)
{
  if (f->status != 0) fail_msg("%s", f->text);
  assert_int_equal(f->times, 1);
  assert_true(f->intact);
}

static void failed(const struct fetched *f, const char *why)
{
  assert_int_equal(f->times, 1);
  assert_int_equal(f->status, -1);
  if (!strstr(f->text, why)) fail_msg("not \"%s\" but \"%s\"", why, f->text);
}

/* That a fetch that is made now has its answer. */
static void works(struct pair *p)
{
  struct fetched f;

  fetch(&p->a, &f, 99, 1000);
  UNTIL(&p->loop, f.times);
  succeeded(&f);
}

static struct net_peer *peer_of(const struct node *node, raft_id id)
{
  struct net_peer *peer = net_peer_find(node->net, id);

  assert_non_null(peer);
  return peer;
}

/* ---- answers ------------------------------------------------------------- */

static void long_answers_arrive_intact(void **state)
{
  static const size_t sizes[] = {
      0,     1,     2047,   2048,    16383, 16384,   16385,         65536,
      65537, 99999, 262144, MIB - 1, MIB,   MIB + 1, NET_ANSWER_MAX};
  struct net_connection *only = NULL;
  struct fetched f;
  struct pair p;

  (void)state;
  serving_pair(&p);
  for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    fetch(&p.a, &f, i, sizes[i]);
    UNTIL(&p.loop, f.times);
    succeeded(&f);
    if (!only) only = peer_of(&p.a, 2)->fetch;
    assert_ptr_equal(peer_of(&p.a, 2)->fetch, only);
  }
  assert_int_equal(p.b.request_from, 1);
  assert_int_equal(peer_of(&p.b, 1)->n_fetchers, 1);
  assert_true(only->received > 4 * MIB);
  fetch(&p.a, &f, 7, NET_ANSWER_MAX + 1);
  UNTIL(&p.loop, f.times);
  failed(&f, "the answer is too long");
  works(&p);
  assert_int_equal(p.a.events + p.b.events, 0);
  pair_close(&p);
}

/* Also of those that were made before the connection was. */
static void hundreds_in_order(void **state)
{
  static uint8_t body[NET_REQUEST_MAX];
  struct wish wish;
  struct pair p;

  (void)state;
  serving_pair(&p);
  memset(many, 0, sizeof many);
  for (unsigned i = 0; i < MANY; i++) {
    wish = many[i].wish = (struct wish){i, i * 7919 % 100000};
    memset(body, (int)i, sizeof body);
    memcpy(body, &wish, sizeof wish);
    net_fetch(p.a.net, 2, body, i % 50 ? sizeof wish : sizeof body, 60000,
              on_fetched, &many[i]);
    if (i == MANY / 2) assert_false(peer_of(&p.a, 2)->fetch->ready);
    if (i == MANY / 2) UNTIL(&p.loop, answered > 5);
  }
  UNTIL(&p.loop, answered == MANY);
  for (unsigned i = 0; i < MANY; i++) {
    succeeded(&many[i]);
    assert_int_equal(many[i].place, i);
  }
  assert_int_equal(p.b.requests, MANY);
  pair_close(&p);
}

/* Raft's messages do not wait behind megabytes of answers, in either
   direction: 40 are queued, and the heartbeats overtake most of them. */
static void heartbeats_go_on(void **state)
{
  struct raft_message beat = {
      .type = RAFT_HEARTBEAT_REQUEST, .incarnation = 1, .term = 1};
  unsigned beats = 0, overtaken;
  struct pair p;

  (void)state;
  serving_pair(&p);
  p.b.echo = true;
  works(&p);
  answered = 0;
  for (unsigned i = 0; i < 40; i++)
    fetch(&p.a, &many[i], i, MIB);
  UNTIL(&p.loop, p.b.requests == 41);
  while (answered < 40) {
    overtaken = answered;
    beat.from = 1, beat.to = 2;
    assert_true(net_send(p.a.net, &beat));
    beat.from = 2, beat.to = 1;
    assert_true(net_send(p.b.net, &beat));
    beats++;
    UNTIL(&p.loop, p.a.by_type[RAFT_HEARTBEAT_RESPONSE] == beats &&
                       p.a.by_type[RAFT_HEARTBEAT_REQUEST] == beats);
    if (beats == 1) assert_true(answered - overtaken < 20);
  }
  assert_true(beats >= 3);
  for (unsigned i = 0; i < 40; i++)
    succeeded(&many[i]);
  pair_close(&p);
}

static void from_each_other(void **state)
{
  struct fetched other[20];
  struct pair p;

  (void)state;
  serving_pair(&p);
  for (unsigned i = 0; i < 20; i++) {
    fetch(&p.a, &many[i], i, i * 50000);
    fetch(&p.b, &other[i], i, 1000000 - i * 50000);
  }
  UNTIL(&p.loop, answered == 40);
  for (unsigned i = 0; i < 20; i++) {
    succeeded(&many[i]);
    succeeded(&other[i]);
  }
  assert_int_equal(p.a.requests, 20);
  assert_int_equal(p.b.requests, 20);
  assert_int_equal(peer_of(&p.a, 2)->n_fetchers, 1);
  assert_int_equal(peer_of(&p.b, 1)->n_fetchers, 1);
  pair_close(&p);
}

static void an_owner_that_answers_later(void **state)
{
  struct outcome done = {0};
  struct pair p;

  (void)state;
  serving_pair(&p);
  p.b.serve = NULL;
  p.b.hold = true;
  net_fetch(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  MEANWHILE(&p.loop, 20);
  assert_int_equal(done.times, 0);
  net_reply(p.b.held, 5, "later", 5);
  p.b.held = NULL;
  UNTIL(&p.loop, done.times);
  assert_int_equal(done.status, 5);
  assert_string_equal(done.text, "later");
  pair_close(&p);
}

/* ---- its connection ------------------------------------------------------ */

/* It is closed when nothing was asked for a while, and nobody is told; but
   not while an answer is outstanding. */
static void an_idle_one_is_closed(void **state)
{
  struct outcome done = {0};
  uint64_t born, before, next;
  struct pair p;

  (void)state;
  serving_pair(&p);
  net_limits(p.a.net)->fetch_idle_ms = 400;
  before = net_now();
  works(&p);
  born = peer_of(&p.a, 2)->fetch->born;
  for (unsigned i = 0, kept = 0; kept < 12; i++, before = next) {
    assert_in_range(i, 0, 100);
    MEANWHILE(&p.loop, 50);
    next = net_now();
    works(&p); /* this is not idle, unless the machine stood still */
    if (net_now() - before >= 300) {
      born = peer_of(&p.a, 2)->fetch->born;
      continue;
    }
    assert_int_equal(peer_of(&p.a, 2)->fetch->born, born);
    kept++;
  }
  UNTIL(&p.loop, !peer_of(&p.a, 2)->fetch && !peer_of(&p.b, 1)->n_fetchers);
  works(&p);
  p.b.serve = NULL;
  p.b.hold = true;
  net_fetch(p.a.net, 2, "x", 1, 60000, on_done, &done);
  MEANWHILE(&p.loop, 1000);
  assert_non_null(p.b.held);
  assert_int_equal(done.times, 0);
  net_reply(p.b.held, 0, "late", 4);
  p.b.held = NULL;
  UNTIL(&p.loop, done.times);
  assert_string_equal(done.text, "late");
  UNTIL(&p.loop, !peer_of(&p.a, 2)->fetch && !peer_of(&p.b, 1)->n_fetchers);
  MEANWHILE(&p.loop, 50);
  assert_int_equal(p.a.down[2] + p.b.down[1], 0);
  assert_int_equal(p.a.up[2] + p.b.up[1], 2);
  assert_int_equal(p.a.events + p.b.events, 0);
  pair_close(&p);
}

/* In the middle of an answer, by either side. */
static void it_breaks_in_the_middle(void **state)
{
  struct net_connection *c;
  struct pair p;

  (void)state;
  for (unsigned side = 0; side < 2; side++) {
    serving_pair(&p);
    for (unsigned i = 0; i < 30; i++)
      fetch(&p.a, &many[i], i, MIB);
    UNTIL(&p.loop, answered >= 3);
    c = side ? peer_of(&p.a, 2)->fetch : peer_of(&p.b, 1)->fetchers[0];
    net_connection_end(c, NET_CUT, "a test");
    UNTIL(&p.loop, answered == 30);
    succeeded(&many[0]);
    failed(&many[29], "the connection was lost: ");
    for (unsigned i = 0; i < 30; i++)
      assert_int_equal(many[i].times, 1);
    works(&p);
    MEANWHILE(&p.loop, 20);
    assert_int_equal(p.a.down[2] + p.b.down[1], 0);
    pair_close(&p);
  }
}

/* Answers that nobody takes away pile up to the bound, and no further. */
static void answers_pile_up(void **state)
{
  struct pair p;

  (void)state;
  serving_pair(&p);
  net_limits(p.b.net)->unsent_max = 10 * MIB;
  for (unsigned i = 0; i < 60; i++)
    fetch(&p.a, &many[i], i, MIB);
  UNTIL(&p.loop, answered == 60);
  failed(&many[59], "the connection was lost: ");
  for (unsigned i = 0; i < 60; i++)
    assert_int_equal(many[i].times, 1);
  assert_true(heard_of(&p.b, "an answer could not be queued"));
  works(&p);
  pair_close(&p);
}

static void its_address_changes(void **state)
{
  struct raft_configuration all;
  struct node c, *both[2];
  struct fetched f;
  struct pair p;

  (void)state;
  serving_pair(&p);
  both[0] = &p.a;
  both[1] = &c;
  works(&p);
  p.b.serve = NULL;
  p.b.hold = true;
  fetch(&p.a, &f, 0, 1);
  UNTIL(&p.loop, p.b.held);
  node_open(&c, &p.loop, 2); /* node 2 at another address */
  c.serve = serve;
  all = configuration_of(both, 2);
  net_set_peers(p.a.net, &all);
  assert_int_equal(f.times, 0); /* N1 */
  UNTIL(&p.loop, f.times);
  failed(&f, "its address changed");
  works(&p);
  assert_int_equal(c.requests, 1);
  node_close(&c);
  pair_close(&p);
}

/* ---- there is none ------------------------------------------------------- */

static void fetches_that_cannot_be_made(void **state)
{
  static uint8_t body[NET_REQUEST_MAX + 1];
  struct outcome self = {0}, stranger = {0}, large = {0};
  struct pair p;

  (void)state;
  pair_open(&p);
  net_fetch(p.a.net, 1, "x", 1, 5000, on_done, &self);
  net_fetch(p.a.net, 9, "x", 1, 5000, on_done, &stranger);
  net_fetch(p.a.net, 2, body, sizeof body, 5000, on_done, &large);
  assert_int_equal(self.times + stranger.times + large.times, 0); /* N1 */
  UNTIL(&p.loop, self.times && stranger.times && large.times);
  assert_string_equal(self.text, "a request to this node itself");
  assert_string_equal(stranger.text, "not a peer");
  assert_string_equal(large.text, "the request is too long");
  assert_int_equal(self.status + stranger.status + large.status, -3);
  assert_null(peer_of(&p.a, 2)->fetch);
  pair_close(&p);
}

static void set_address(struct node *node, raft_id id, const char *address)
{
  struct raft_configuration peers = {.n = 1};

  peers.members[0].id = id;
  peers.members[0].role = RAFT_VOTER;
  snprintf(peers.members[0].address, RAFT_ADDRESS_MAX, "%s", address);
  net_set_peers(node->net, &peers);
}

static void nobody_is_there(void **state)
{
  static const struct {
    const char *address, *why;
  } cases[] = {
      {"127.0.0.1:1", "no connection to that node: connection refused"},
      {"nonsense", "no connection to that node: not an address"},
      {"no-such-host.invalid:5", "no connection to that node: "},
  };
  struct fetched f, second;
  uv_loop_t loop;
  struct node a;

  (void)state;
  loop_open(&loop);
  node_open(&a, &loop, 1);
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    set_address(&a, 2, cases[i].address);
    fetch(&a, &f, 0, 1);
    fetch(&a, &second, 0, 1);
    UNTIL(&loop, f.times && second.times);
    failed(&f, cases[i].why);
    failed(&second, cases[i].why);
  }
  node_close(&a);
  loop_end(&loop);
}

/* The wrong one at the address; one whom this side does not want; and one who
   does not want this side. */
static void strangers(void **state)
{
  struct fetched f;
  struct pair p;

  (void)state;
  serving_pair(&p);
  set_address(&p.a, 3, net_listening(p.b.net));
  fetch_for(&p.a, 3, &f, 0, 1, 60000);
  UNTIL(&p.loop, f.times);
  failed(&f, "it shows the certificate of node 0000000000000002");
  set_address(&p.a, 2, net_listening(p.b.net));
  p.a.banned[2] = true;
  fetch(&p.a, &f, 0, 1);
  UNTIL(&p.loop, f.times);
  failed(&f, "it is not a member");
  p.a.banned[2] = false;
  p.b.banned[1] = true;
  fetch(&p.a, &f, 0, 1);
  UNTIL(&p.loop, f.times);
  failed(&f, "there is no connection to that node: refused: not a member");
  assert_true(heard_of(&p.b, "refused node 0000000000000001"));
  assert_int_equal(p.b.requests, 0);
  p.b.banned[1] = false;
  works(&p);
  pair_close(&p);
}

/* Another CA: the handshake fails. */
static void another_cluster(void **state)
{
  struct authority other = {0};
  struct tls_context *foreign;
  struct tls_error error;
  struct fetched f;
  struct pair p;

  (void)state;
  assert_int_equal(tls_make_ca(CLUSTER, &other.cert, &other.key, &error), 0);
  foreign = context_of(&other, 2);
  serving_pair(&p);
  net_set_tls(p.b.net, foreign);
  fetch(&p.a, &f, 0, 1);
  UNTIL(&p.loop, f.times);
  failed(&f, "there is no connection to that node: ");
  assert_int_equal(p.b.requests, 0);
  tls_context_unref(foreign);
  tls_free_text(other.cert);
  tls_free_text(other.key);
  pair_close(&p);
}

/* ---- time ---------------------------------------------------------------- */

struct again {
  struct pair *p;
  struct fetched first, second;
};

static void fetch_again(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct again *again = ctx;

  on_fetched(&again->first, status, body, len);
  fetch(&again->p->a, &again->second, 1, 5000);
}

/* One answer that does not come ends the connection, and with it the other
   fetches; what its owner asks for then, from the callback, comes on the next
   connection. The late reply finds nobody. */
static void an_answer_takes_too_long(void **state)
{
  static struct again again;
  struct net_request *late;
  struct fetched other;
  uint64_t begin;
  struct pair p;

  (void)state;
  serving_pair(&p);
  memset(&again, 0, sizeof again);
  again.p = &p;
  p.b.serve = NULL;
  p.b.hold = true;
  begin = net_now();
  net_fetch(p.a.net, 2, "x", 1, 1000, fetch_again, &again);
  UNTIL(&p.loop, p.b.held);
  late = p.b.held;
  p.b.held = NULL;
  fetch(&p.a, &other, 1, 1);
  UNTIL(&p.loop, p.b.held);
  p.b.serve = serve;
  UNTIL(&p.loop, again.second.times && other.times);
  failed(&again.first, "no answer in time");
  failed(&other, "the connection was lost: a fetch had no answer in time");
  assert_in_range(net_now() - begin, 950, 10000);
  succeeded(&again.second);
  net_reply(late, 0, "late", 4);
  MEANWHILE(&p.loop, 20);
  assert_int_equal(again.first.times + other.times, 2);
  assert_int_equal(peer_of(&p.b, 1)->n_fetchers, 1);
  assert_int_equal(p.a.down[2] + p.b.down[1], 0);
  pair_close(&p);
}

/* A member that takes the connection and says nothing. One whose time is over
   before the handshake does not spoil it for others. */
static void a_connection_takes_too_long(void **state)
{
  struct fetched brief, patient;
  uint64_t begin = net_now();
  struct sockaddr_in at = {.sin_family = AF_INET};
  socklen_t len = sizeof at;
  char address[64];
  uv_loop_t loop;
  struct node a;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  (void)state;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
  assert_int_equal(listen(fd, 10), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
  snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(at.sin_port));
  loop_open(&loop);
  node_open(&a, &loop, 1);
  net_limits(a.net)->handshake_ms = 1000;
  set_address(&a, 2, address);
  fetch_for(&a, 2, &brief, 0, 1, 50);
  fetch(&a, &patient, 0, 1);
  UNTIL(&loop, brief.times);
  failed(&brief, "no connection in time");
  if (net_now() - begin < 1000) assert_int_equal(patient.times, 0);
  UNTIL(&loop, patient.times);
  failed(&patient, "no connection to that node: the handshake took too long");
  assert_in_range(net_now() - begin, 950, 10000);
  /* But when nobody waits any more, it is given up. */
  net_limits(a.net)->handshake_ms = 60000;
  fetch_for(&a, 2, &brief, 0, 1, 50);
  UNTIL(&loop, brief.times && !peer_of(&a, 2)->fetch);
  failed(&brief, "no connection in time");
  node_close(&a);
  loop_end(&loop);
  close(fd);
}

/* ---- ends ---------------------------------------------------------------- */

/* With answers under way, and with fetches that still wait. */
static void the_peer_is_removed(void **state)
{
  struct raft_configuration none = {0}, all;
  struct node *both[2];
  struct pair p;

  (void)state;
  serving_pair(&p);
  both[0] = &p.a;
  both[1] = &p.b;
  all = configuration_of(both, 2);
  for (unsigned round = 0; round < 2; round++) {
    answered = 0;
    for (unsigned i = 0; i < 20; i++)
      fetch(&p.a, &many[i], i, MIB);
    if (round == 0) UNTIL(&p.loop, answered > 2);
    net_set_peers(p.a.net, &none);
    assert_int_equal(many[19].times, 0); /* N1 */
    UNTIL(&p.loop, answered == 20);
    failed(&many[19], "no longer a peer");
    UNTIL(&p.loop, !net_peer_find(p.a.net, 2));
    UNTIL(&p.loop, peer_of(&p.b, 1)->n_fetchers == 0);
    /* One that connects from its side is no peer for that. */
    UNTIL(&p.loop, net_peer_find(p.a.net, 2));
    fetch(&p.a, &many[0], 0, 1);
    UNTIL(&p.loop, many[0].times);
    failed(&many[0], "not a peer");
    net_set_peers(p.a.net, &all);
  }
  works(&p);
  /* By the other side: its connections are cut there. */
  fetch(&p.a, &many[0], 0, MIB);
  net_set_peers(p.b.net, &none);
  UNTIL(&p.loop, many[0].times);
  failed(&many[0], "the connection was lost");
  pair_close(&p);
}

static void the_asker_closes(void **state)
{
  struct outcome refused = {0};
  struct pair p;

  (void)state;
  for (unsigned round = 0; round < 2; round++) {
    serving_pair(&p);
    for (unsigned i = 0; i < 20; i++)
      fetch(&p.a, &many[i], i, MIB);
    if (round == 0) UNTIL(&p.loop, answered > 2);
    net_close(p.a.net, node_closed, &p.a);
    assert_int_equal(many[19].times, 0); /* N1 */
    net_fetch(p.a.net, 2, "x", 1, 5000, on_done, &refused);
    assert_int_equal(refused.status, -1);
    UNTIL(&p.loop, p.a.closed);
    assert_int_equal(answered, 20);
    failed(&many[19], "shutting down");
    UNTIL(&p.loop, peer_of(&p.b, 1)->n_fetchers == 0);
    pair_close(&p);
  }
  assert_int_equal(refused.times, 2);
}

static void the_answerer_closes(void **state)
{
  struct net_request *held;
  struct outcome done = {0};
  struct pair p;

  (void)state;
  serving_pair(&p);
  p.b.serve = NULL;
  p.b.hold = true;
  net_fetch(p.a.net, 2, "x", 1, 60000, on_done, &done);
  UNTIL(&p.loop, p.b.held);
  held = p.b.held;
  p.b.held = NULL;
  node_close(&p.b);
  UNTIL(&p.loop, done.times);
  assert_int_equal(done.status, -1);
  assert_string_equal(done.text, "the node is shutting down");
  net_reply(held, 0, "too late", 8);
  pair_close(&p);
}

/* After any number of turns of the loop, of either side. */
static void closing_at_any_moment(void **state)
{
  struct pair p;

  (void)state;
  for (unsigned turns = 0; turns < 40; turns++) {
    serving_pair(&p);
    for (unsigned i = 0; i < 8; i++)
      fetch(&p.a, &many[i], i, MIB);
    for (unsigned i = 0; i < turns / 2; i++)
      turn(&p.loop);
    node_close(turns % 2 ? &p.a : &p.b);
    UNTIL(&p.loop, answered == 8);
    for (unsigned i = 0; i < 8; i++)
      assert_int_equal(many[i].times, 1);
    pair_close(&p);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(long_answers_arrive_intact),
      cmocka_unit_test(hundreds_in_order),
      cmocka_unit_test(heartbeats_go_on),
      cmocka_unit_test(from_each_other),
      cmocka_unit_test(an_owner_that_answers_later),
      cmocka_unit_test(an_idle_one_is_closed),
      cmocka_unit_test(it_breaks_in_the_middle),
      cmocka_unit_test(answers_pile_up),
      cmocka_unit_test(its_address_changes),
      cmocka_unit_test(fetches_that_cannot_be_made),
      cmocka_unit_test(nobody_is_there),
      cmocka_unit_test(strangers),
      cmocka_unit_test(another_cluster),
      cmocka_unit_test(an_answer_takes_too_long),
      cmocka_unit_test(a_connection_takes_too_long),
      cmocka_unit_test(the_peer_is_removed),
      cmocka_unit_test(the_asker_closes),
      cmocka_unit_test(the_answerer_closes),
      cmocka_unit_test(closing_at_any_moment),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
