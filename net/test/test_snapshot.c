/*
** test_snapshot.c: snapshots that arrive, that are refused, that break in the
** middle, several at once.
*/
#include "common.h"

struct source {
  uint64_t size, at, sum, fail_at;
  unsigned reads;
  struct outcome done;
};

static ssize_t read_source(void *ctx, uint8_t *buf, size_t max)
{
  struct source *source = ctx;
  size_t n = (size_t)MIN(source->size - source->at, max);

  source->reads++;
  if (source->fail_at && source->at >= source->fail_at) return -1;
  if (n == 0) return 0;
  memset(buf, (int)(source->at >> 16 & 255), n);
  for (size_t i = 0; i < MIN(n, 512u); i++)
    buf[i] = (uint8_t)(source->at / 512 + i * 31);
  source->sum = mix(source->sum, buf, MIN(n, 512u));
  source->at += n;
  return (ssize_t)n;
}

static void source_done(void *ctx, int status, const uint8_t *body, size_t len)
{
  on_done(&((struct source *)ctx)->done, status, body, len);
}

static void send_it(struct node *from, raft_id to, struct source *source,
                    uint64_t size)
{
  memset(source, 0, sizeof *source);
  source->size = size;
  net_send_snapshot(from->net, to, "head", 4, read_source, source_done, source);
}

#define MIB (1024u * 1024u)

static void it_arrives_intact(void **state)
{
  static const uint64_t sizes[] = {0, 1, NET_CHUNK_MAX, NET_CHUNK_MAX + 1,
                                   64 * MIB};
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    send_it(&p.a, 2, &source, sizes[i]);
    assert_int_equal(source.done.times, 0);
    UNTIL(&p.loop, source.done.times);
    if (source.done.status) fail_msg("%s", source.done.text);
    assert_int_equal(p.b.chunk_bytes, sizes[i]);
    assert_int_equal(p.b.chunk_sum, source.sum);
    assert_int_equal(p.b.ended_well, i + 1);
  }
  assert_int_equal(p.b.begun, p.b.ended);
  assert_int_equal(p.b.down[1], 0);
  assert_int_equal(p.a.events + p.b.events, 0);
  pair_close(&p);
}

static void the_owners_status_comes_back(void **state)
{
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.status = 5;
  send_it(&p.a, 2, &source, MIB);
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, 5);
  pair_close(&p);
}

static void it_is_refused(void **state)
{
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.refuse_begin = true;
  send_it(&p.a, 2, &source, 64 * MIB);
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  assert_string_equal(source.done.text, "the snapshot was refused");
  assert_int_equal(p.b.begun + p.b.ended, 0);
  p.b.refuse_begin = false;
  p.b.refuse_after = 3 * MIB;
  send_it(&p.a, 2, &source, 64 * MIB);
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  assert_string_equal(source.done.text, "the snapshot was refused");
  assert_int_equal(p.b.begun, 1);
  assert_int_equal(p.b.ended, 1);
  assert_int_equal(p.b.ended_well, 0);
  assert_true(source.at < source.size);
  pair_close(&p);
}

static void the_source_gives_up(void **state)
{
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &source, 64 * MIB);
  source.fail_at = 2 * MIB;
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  assert_string_equal(source.done.text, "the snapshot could not be read");
  UNTIL(&p.loop, p.b.ended == 1);
  assert_int_equal(p.b.ended_well, 0);
  pair_close(&p);
}

static void the_receiver_closes(void **state)
{
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &source, 1024 * (uint64_t)MIB);
  UNTIL(&p.loop, p.b.chunk_bytes > 4 * MIB);
  node_close(&p.b);
  assert_int_equal(p.b.ended, 1);
  assert_int_equal(p.b.ended_well, 0);
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  pair_close(&p);
}

static void the_sender_closes(void **state)
{
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &source, 1024 * (uint64_t)MIB);
  UNTIL(&p.loop, p.b.chunk_bytes > 4 * MIB);
  node_close(&p.a);
  assert_int_equal(source.done.times, 1);
  assert_int_equal(source.done.status, -1);
  UNTIL(&p.loop, p.b.ended == 1);
  assert_int_equal(p.b.ended_well, 0);
  pair_close(&p);
}

/* The peer is removed while it is sent one; its status never comes. */
static void the_peer_is_removed(void **state)
{
  struct raft_configuration none = {0};
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &source, 1024 * (uint64_t)MIB);
  UNTIL(&p.loop, p.b.chunk_bytes > 4 * MIB);
  net_set_peers(p.a.net, &none);
  assert_int_equal(source.done.times, 0); /* N1 */
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  UNTIL(&p.loop, p.b.ended == 1);
  pair_close(&p);
}

static void what_cannot_be_sent(void **state)
{
  struct source first, second, stranger;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &first, 16 * MIB);
  send_it(&p.a, 2, &second, MIB);
  send_it(&p.a, 9, &stranger, MIB);
  assert_int_equal(second.done.times + stranger.done.times, 0); /* N1 */
  UNTIL(&p.loop, first.done.times && second.done.times && stranger.done.times);
  assert_int_equal(first.done.status, 0);
  assert_int_equal(second.done.status, -1);
  assert_string_equal(second.done.text,
                      "another snapshot is being sent to that node");
  assert_string_equal(stranger.done.text, "not a peer");
  assert_int_equal(p.b.begun, 1);
  pair_close(&p);
}

static void to_two_at_once_and_from_two_at_once(void **state)
{
  struct node nodes[3], *all[3] = {&nodes[0], &nodes[1], &nodes[2]};
  struct source one, two;
  uv_loop_t loop;

  (void)state;
  loop_open(&loop);
  for (unsigned i = 0; i < 3; i++)
    node_open(all[i], &loop, i + 1);
  introduce(all, 3);
  send_it(&nodes[0], 2, &one, 32 * MIB);
  send_it(&nodes[0], 3, &two, 32 * MIB);
  UNTIL(&loop, one.done.times && two.done.times);
  assert_int_equal(one.done.status, 0);
  assert_int_equal(two.done.status, 0);
  assert_int_equal(nodes[1].chunk_sum, one.sum);
  assert_int_equal(nodes[2].chunk_sum, two.sum);
  /* To one node from two: the one that begins later wins. */
  send_it(&nodes[0], 3, &one, 256 * (uint64_t)MIB);
  UNTIL(&loop, nodes[2].chunk_bytes > MIB && nodes[2].begun == 2);
  send_it(&nodes[1], 3, &two, MIB);
  UNTIL(&loop, one.done.times && two.done.times);
  assert_int_equal(one.done.status, -1);
  assert_string_equal(one.done.text, "a newer snapshot has begun");
  assert_int_equal(two.done.status, 0);
  assert_int_equal(nodes[2].begun, 3);
  assert_int_equal(nodes[2].ended, 3);
  assert_int_equal(nodes[2].ended_well, 2);
  for (unsigned i = 0; i < 3; i++)
    node_close(all[i]);
  loop_end(&loop);
}

static void a_slow_owner(void **state)
{
  struct net_request *install;
  struct source source;
  struct pair p;

  (void)state;
  pair_open(&p);
  p.b.hold_install = true;
  send_it(&p.a, 2, &source, MIB);
  UNTIL(&p.loop, p.b.ended == 1);
  MEANWHILE(&p.loop, 20);
  assert_int_equal(source.done.times, 0);
  net_reply(p.b.install, 0, NULL, 0);
  p.b.install = NULL;
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, 0);
  /* The sender does not wait for ever, and a reply after that is safe. */
  net_limits(p.a.net)->snapshot_ms = 100;
  send_it(&p.a, 2, &source, MIB);
  UNTIL(&p.loop, source.done.times);
  assert_int_equal(source.done.status, -1);
  assert_non_null(strstr(source.done.text, "no progress"));
  MEANWHILE(&p.loop, 20);
  install = p.b.install;
  p.b.install = NULL;
  net_reply(install, 0, NULL, 0);
  pair_close(&p);
}

/* Heartbeats go between the chunks. */
static void heartbeats_go_on(void **state)
{
  struct raft_message beat = {.type = RAFT_HEARTBEAT_REQUEST,
                              .from = 1,
                              .to = 2,
                              .incarnation = 1,
                              .term = 1};
  struct source source;
  unsigned beats = 0;
  struct pair p;

  (void)state;
  pair_open(&p);
  send_it(&p.a, 2, &source, 64 * MIB);
  UNTIL(&p.loop, p.b.chunk_bytes > MIB);
  while (!source.done.times) {
    assert_true(net_send(p.a.net, &beat));
    net_flush(p.a.net);
    beats++;
    UNTIL(&p.loop, p.b.messages == beats);
  }
  assert_true(beats > 5);
  pair_close(&p);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(it_arrives_intact),
      cmocka_unit_test(the_owners_status_comes_back),
      cmocka_unit_test(it_is_refused),
      cmocka_unit_test(the_source_gives_up),
      cmocka_unit_test(the_receiver_closes),
      cmocka_unit_test(the_sender_closes),
      cmocka_unit_test(the_peer_is_removed),
      cmocka_unit_test(what_cannot_be_sent),
      cmocka_unit_test(to_two_at_once_and_from_two_at_once),
      cmocka_unit_test(a_slow_owner),
      cmocka_unit_test(heartbeats_go_on),
  };

  block_signals();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
