/*
** test_replication.c: appends, acknowledgements, commit, windows.
*/
#include "timeline.h"

/* The leader writes and sends at the same time; acknowledgements wait for
   the follower's disk; two disks of three are enough. */
static void test_acknowledged_when_durable(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m;

  (void)state;
  elect(w, 1);
  node(w, 1)->prompt = node(w, 2)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 100);
  assert_int_equal(node(w, 1)->n_writes, 1);
  m = look(w, 1, 2, RAFT_APPEND_REQUEST); /* in parallel with its disk */
  assert_int_equal(m.n_entries, 1);
  raft_message_clear(&m);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(raft_last(core(w, 2)), 2);
  assert_int_equal(raft_durable(core(w, 2)), 1);
  assert_int_equal(count(w, 2, 1, RAFT_APPEND_RESPONSE), 0);
  persist_one(w, 2);
  m = look(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(m.match, 2);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(raft_commit(core(w, 1)), 1); /* one disk of three */
  persist_one(w, 1);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  world_free(w);
}

/* The two followers are a quorum: the leader's slow disk does not count. */
static void test_commit_without_own_disk(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  node(w, 1)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 100);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(raft_commit(core(w, 1)), 1);
  deliver(w, 1, 3, RAFT_APPEND_REQUEST);
  deliver(w, 3, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  assert_int_equal(raft_durable(core(w, 1)), 1);
  world_free(w);
}

/* A heartbeat is answered while the disk works, with what is durable. */
static void test_heartbeat_answers_do_not_wait(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m;

  (void)state;
  elect(w, 1);
  node(w, 2)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 100);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 1, 3, RAFT_APPEND_REQUEST);
  deliver(w, 3, 1, RAFT_APPEND_RESPONSE);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  pass(w, 50);
  tick(w, 1);
  m = look(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  assert_int_equal(m.commit, 1); /* never above the follower's match */
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  m = look(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(m.match, 1);
  persist_one(w, 2);
  drop(w, 0, 0, 0);
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  m = look(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(m.match, 2); /* the lost acknowledgement is made up for */
  world_free(w);
}

/* A heartbeat's answer claims only what this term's leader has matched. */
static void test_heartbeat_claims_what_agrees(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_message m = {.type = RAFT_HEARTBEAT_REQUEST,
                           .from = 2,
                           .to = 1,
                           .incarnation = 102,
                           .term = 5,
                           .commit = 3};

  (void)state;
  put_on_disk(w, 1, 1);
  put_on_disk(w, 1, 2);
  put_on_disk(w, 1, 3);
  start_node(w, 1);
  inject(w, &m);
  m = look(w, 1, 2, RAFT_HEARTBEAT_RESPONSE);
  assert_int_equal(m.match, 0);
  assert_int_equal(raft_commit(core(w, 1)), 0);
  world_free(w);
}

/* A follower commits at most what the append has matched. */
static void test_commit_up_to_matched(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 2,
                           .to = 1,
                           .incarnation = 102,
                           .term = 5,
                           .prev_index = 2,
                           .prev_term = 2,
                           .commit = 3};

  (void)state;
  put_on_disk(w, 1, 1);
  put_on_disk(w, 1, 2);
  put_on_disk(w, 1, 3);
  start_node(w, 1);
  inject(w, &m);
  assert_int_equal(raft_commit(core(w, 1)), 2);
  assert_int_equal(raft_last(core(w, 1)), 3); /* nothing is cut */
  m = look(w, 1, 2, RAFT_APPEND_RESPONSE);
  assert_int_equal(m.match, 2);
  world_free(w);
}

static void put_terms(struct world *w, raft_id id, const char *terms)
{
  for (; *terms; terms++)
    put_on_disk(w, id, (raft_term)(*terms - '0'));
}

/* Figure 7: the leader of term 8 brings every kind of log into line. */
static void test_figure_7(void **state)
{
  static const char *const logs[] = {"111445566",    "1114",    "11144556666",
                                     "111445566677", "1114444", "11122233333"};
  struct world *w = world_prepare(7, 7);
  unsigned i;

  (void)state;
  put_terms(w, 1, "1114455666");
  for (i = 0; i < 6; i++)
    put_terms(w, i + 2, logs[i]);
  for (i = 1; i <= 7; i++) {
    node(w, i)->term = 7;
    start_node(w, i);
  }
  elect(w, 1);
  assert_int_equal(term_of(w, 1), 8);
  for (i = 2; i <= 7; i++) {
    assert_int_equal(node(w, i)->last, 11);
    assert_int_equal(raft_commit(core(w, i)), 11);
    assert_int_equal(raft_term_at(core(w, i), 4), 4);
    assert_int_equal(raft_term_at(core(w, i), 10), 6);
    assert_int_equal(raft_term_at(core(w, i), 11), 8);
  }
  world_free(w);
}

/*
** Figure 8: an entry of term 2 is on a quorum, but it is committed only by
** way of an entry of the leader's own term; until then node 5 may win with
** term 3 and replace it (d), and afterwards it may not (e).
*/
static void figure_8(bool own_term_entry)
{
  struct world *w = world_prepare(5, 5);
  unsigned i;

  put_terms(w, 1, "12");
  put_terms(w, 2, "12");
  put_terms(w, 3, "1");
  put_terms(w, 4, "1");
  put_terms(w, 5, "13");
  for (i = 1; i <= 5; i++) {
    node(w, i)->term = 3;
    node(w, i)->prompt = i != 1;
    start_node(w, i);
  }
  time_out(w, 1); /* (c): 1 leads in term 4 */
  while (raft_role(core(w, 1)) != RAFT_LEADER) {
    drop(w, 0, 5, 0);
    if (!deliver_any(w, 0, 0)) persist_one(w, 1);
  }
  /* Its log up to index 2, but not its NOOP, reaches node 3 and 2. */
  inject(w, &(struct raft_message){.type = RAFT_APPEND_RESPONSE,
                                   .from = 2,
                                   .to = 1,
                                   .incarnation = 102,
                                   .term = 4,
                                   .granted = true,
                                   .match = 2});
  inject(w, &(struct raft_message){.type = RAFT_APPEND_RESPONSE,
                                   .from = 3,
                                   .to = 1,
                                   .incarnation = 103,
                                   .term = 4,
                                   .granted = true,
                                   .match = 2});
  assert_int_equal(raft_commit(core(w, 1)), 0);
  drop(w, 0, 0, 0);
  if (own_term_entry) { /* (e) */
    w->unreachable[1][5] = true;
    pass(w, 50);
    persist(w, 1);
    tick(w, 1);
    live(w, 200);
    assert_int_equal(raft_commit(core(w, 1)), 3);
  }
  crash(w, 1);
  time_out(w, 5); /* the refusals bring it into term 4 */
  settle(w);
  time_out(w, 5);
  settle(w);
  assert_int_equal(raft_role(core(w, 5)),
                   own_term_entry ? RAFT_PRECANDIDATE : RAFT_LEADER);
  world_free(w);
}

static void test_figure_8(void **state)
{
  (void)state;
  figure_8(false);
  figure_8(true);
}

/*
** Entries 2 and 3 of term 1 are being written on node 2 when a leader of
** term 2 replaces them. The late completion must not vouch for the new ones.
*/
static void test_late_completion(void **state)
{
  struct world *w = world_new(3);
  struct raft_entry entries[2] = {{.index = 2, .term = 2, .type = RAFT_NOOP},
                                  {.index = 3, .term = 2, .type = RAFT_NOOP}};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 3,
                           .to = 2,
                           .incarnation = 103,
                           .term = 2,
                           .prev_index = 1,
                           .prev_term = 1,
                           .n_entries = 2,
                           .entries = entries};

  (void)state;
  elect(w, 1);
  node(w, 2)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 10);
  propose(w, 1, RAFT_COMMIT, 10);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(node(w, 2)->n_writes, 2);
  inject(w, &m);
  assert_int_equal(node(w, 2)->n_writes, 3);
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 1);
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 1);
  assert_int_equal(count(w, 2, 3, 0), 0);
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 3);
  assert_int_equal(count(w, 2, 3, RAFT_APPEND_RESPONSE), 1);
  world_free(w);
}

/* Same index, same term, cut and written again: still not the old write. */
static void test_late_completion_same_index(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_entry entry = {.index = 1, .term = 1, .type = RAFT_NOOP};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 3,
                           .to = 2,
                           .incarnation = 103,
                           .term = 1,
                           .n_entries = 1,
                           .entries = &entry};

  (void)state;
  start_node(w, 2);
  node(w, 2)->prompt = false;
  inject(w, &m);
  m.term = entry.term = 2;
  inject(w, &m);
  m.term = 3;
  inject(w, &m); /* a duplicate of the entry, in a later term */
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 0);
  assert_int_equal(count(w, 2, 0, 0), 1); /* of the first leader */
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 1);
  persist_one(w, 2);
  assert_int_equal(count(w, 2, 0, RAFT_APPEND_RESPONSE), 3);
  world_free(w);
}

/* How many appends node 1 needs until node 2's log is in line. */
static unsigned probes_needed(const char *leader, const char *follower)
{
  struct world *w = world_prepare(3, 3);
  raft_term last_term;
  unsigned n = 0;

  put_terms(w, 1, leader);
  put_terms(w, 3, leader);
  put_terms(w, 2, follower);
  last_term =
      node(w, 1)->term > node(w, 2)->term ? node(w, 1)->term : node(w, 2)->term;
  node(w, 1)->term = node(w, 2)->term = node(w, 3)->term = last_term;
  start_node(w, 1);
  start_node(w, 2);
  start_node(w, 3);
  w->unreachable[1][2] = true;
  elect(w, 1);
  w->unreachable[1][2] = false;
  pass(w, 50);
  tick(w, 1);
  deliver(w, 1, 2, RAFT_HEARTBEAT_REQUEST);
  deliver(w, 2, 1, RAFT_HEARTBEAT_RESPONSE);
  while (progress(w, 1, 2).state == RAFT_PROBE) {
    n++;
    assert_true(count(w, 1, 2, RAFT_APPEND_REQUEST) == 1);
    deliver(w, 1, 2, RAFT_APPEND_REQUEST);
    deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  }
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, raft_last(core(w, 1)));
  world_free(w);
  return n;
}

/* Backing up takes at most one round trip a conflicting term: long runs on
   either side cost nothing. The first probe is at the end of the log. */
static void test_fast_backup(void **state)
{
  (void)state;
  assert_int_equal(probes_needed("1111111111", "1111111111"), 1);
  assert_int_equal(probes_needed("1111111111", "1"), 2);
  assert_int_equal(probes_needed("11111111", ""), 2);
  assert_int_equal(probes_needed("1115555555", "1112222222"), 2);
  assert_int_equal(probes_needed("1115555555", "1112222222222222222"), 2);
  assert_int_equal(probes_needed("1113333333", "1112222555"), 2);
  assert_int_equal(probes_needed("1133557799", "1122446688"), 5);
}

/* One probe at a time; an answered heartbeat allows another. */
static void test_probe_one_at_a_time(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  peer_event(w, 1, RAFT_EVENT_PEER_DOWN, 2);
  assert_int_equal(progress(w, 1, 2).state, RAFT_PROBE);
  propose(w, 1, RAFT_COMMIT, 10);
  propose(w, 1, RAFT_COMMIT, 10);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 0);
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 2);
  propose(w, 1, RAFT_COMMIT, 10);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 1);
  drop(w, 1, 2, 0); /* it is lost */
  pass(w, 50);
  tick(w, 1);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 0);
  settle(w);
  assert_int_equal(progress(w, 1, 2).state, RAFT_REPLICATE);
  assert_int_equal(progress(w, 1, 2).match, 4);
  world_free(w);
}

/* The window is bounded in messages ... */
static void test_window_in_messages(void **state)
{
  struct world *w = world_prepare(3, 3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 3; i++) {
    node(w, i)->options.inflight_messages = 3;
    start_node(w, i);
  }
  elect(w, 1);
  for (i = 0; i < 10; i++)
    propose(w, 1, RAFT_COMMIT, 10);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 3);
  assert_int_equal(progress(w, 1, 2).next, 5);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  /* The place that became free is taken by all that waited. */
  assert_int_equal(progress(w, 1, 2).next, 12);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 11);
  world_free(w);
}

/* ... and in bytes, where one too large goes alone. */
static void test_window_in_bytes(void **state)
{
  struct world *w = world_prepare(3, 3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 3; i++) {
    node(w, i)->options.inflight_bytes = 1000;
    node(w, i)->options.message_bytes = 300;
    start_node(w, i);
  }
  elect(w, 1);
  for (i = 0; i < 12; i++)
    propose(w, 1, RAFT_COMMIT, 100);
  assert_int_equal(progress(w, 1, 2).next, 2 + 10);
  propose(w, 1, RAFT_COMMIT, 5000);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 14);
  propose(w, 1, RAFT_COMMIT, 5000);
  propose(w, 1, RAFT_COMMIT, 1);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 1);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 16);
  world_free(w);
}

/* A message takes what message_bytes and the count allow, at least one. */
static void test_batches(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_message m;
  unsigned i;

  (void)state;
  for (i = 1; i <= 3; i++) {
    node(w, i)->options.message_bytes = 250;
    node(w, i)->options.inflight_messages = 1;
    start_node(w, i);
  }
  elect(w, 1);
  for (i = 0; i < 5; i++)
    propose(w, 1, RAFT_COMMIT, 100);
  propose(w, 1, RAFT_COMMIT, 999);
  for (i = 0; i < 1000; i++)
    propose(w, 1, RAFT_COMMIT, 0);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  m = look(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(m.n_entries, 2);
  raft_message_clear(&m);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  m = look(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(m.n_entries, 1); /* alone, since it is too large */
  raft_message_clear(&m);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 2, 1, RAFT_APPEND_RESPONSE);
  m = look(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(m.n_entries, RAFT_MESSAGE_ENTRIES_MAX);
  raft_message_clear(&m);
  settle(w);
  assert_int_equal(raft_commit(core(w, 3)), 1007);
  world_free(w);
}

static struct packet copy_packet(struct world *w, unsigned i)
{
  struct packet copy = w->net[i];

  copy.bytes = malloc(copy.len);
  memcpy(copy.bytes, w->net[i].bytes, copy.len);
  return copy;
}

/* Appends arrive twice and in the wrong order; nothing is cut or lost. */
static void test_duplicates_and_reordering(void **state)
{
  struct world *w = world_new(3);
  struct packet old;
  int i;

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10); /* 2 */
  i = find_packet(w, 1, 2, RAFT_APPEND_REQUEST);
  old = copy_packet(w, (unsigned)i);
  propose(w, 1, RAFT_COMMIT, 10); /* 3 */
  propose(w, 1, RAFT_COMMIT, 10); /* 4 */
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  net_add(w, old);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST); /* 4, then 2 once more */
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(raft_last(core(w, 2)), 4);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 4);

  propose(w, 1, RAFT_COMMIT, 10); /* 5 */
  propose(w, 1, RAFT_COMMIT, 10); /* 6 arrives first */
  i = find_packet(w, 1, 2, RAFT_APPEND_REQUEST);
  old = net_take(w, (unsigned)i);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(raft_last(core(w, 2)), 4);
  receive(w, old);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 6);
  assert_int_equal(progress(w, 1, 2).state, RAFT_REPLICATE);
  assert_int_equal(raft_commit(core(w, 2)), 6);
  world_free(w);
}

/* A rejection from before the logs met changes nothing. */
static void test_stale_rejection(void **state)
{
  struct world *w = world_new(3);
  struct raft_message m = {.type = RAFT_APPEND_RESPONSE,
                           .from = 2,
                           .to = 1,
                           .incarnation = 102,
                           .term = 1};

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  m.prev_index = 2;
  inject(w, &m);
  assert_int_equal(progress(w, 1, 2).state, RAFT_REPLICATE);
  assert_int_equal(progress(w, 1, 2).next, 4);
  m.prev_index = 77; /* of nothing that was sent */
  inject(w, &m);
  assert_int_equal(progress(w, 1, 2).state, RAFT_REPLICATE);
  world_free(w);
}

/* The last append is lost and nothing follows: heartbeats notice. */
static void test_lost_append(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  w->unreachable[1][2] = true;
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  w->unreachable[1][2] = false;
  assert_int_equal(raft_last(core(w, 2)), 1);
  beat(w, 1);
  beat(w, 1);
  beat(w, 1);
  assert_int_equal(raft_commit(core(w, 2)), 2);
  world_free(w);
}

/* A follower learns of a commit at once, not with the next heartbeat. */
static void test_commit_is_told_at_once(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(raft_commit(core(w, 2)), 2);
  assert_int_equal(raft_commit(core(w, 3)), 2);
  world_free(w);
}

/* Node 1 leads, with a bound on what is proposed. */
static struct world *bounded(size_t bytes)
{
  struct world *w = world_prepare(3, 3);
  unsigned i;

  for (i = 1; i <= 3; i++) {
    node(w, i)->options.uncommitted_bytes = bytes;
    start_node(w, i);
  }
  elect(w, 1);
  return w;
}

/* Proposals are refused at the bound; an empty pipeline takes anything. */
static void test_back_pressure(void **state)
{
  struct world *w = bounded(1000);

  (void)state;
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 5000), 0);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1), RAFT_EBUSY);
  assert_int_equal(node(w, 1)->proposed_first, 0);
  assert_int_equal(raft_last(core(w, 1)), 2);
  assert_int_equal(change(w, 1, RAFT_ADD_LEARNER, 4), 0); /* exempt */
  assert_int_equal(propose(w, 1, RAFT_NOOP, 0), 0);
  settle(w);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 600), 0);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 401), RAFT_EBUSY);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 400), 0);
  settle(w);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 400), 0);
  /* A leader that lost its office begins anew. */
  time_out(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1), RAFT_ENOTLEADER);
  elect(w, 1);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1000), 0);
  world_free(w);
}

/* The others commit without this node, whose disk stands still: what is not on
   it is in memory, and bounded all the same. */
static void test_back_pressure_of_the_disk(void **state)
{
  struct world *w = bounded(1000);
  unsigned i;

  (void)state;
  node(w, 1)->prompt = false;
  node(w, 1)->hangs = true;
  for (i = 0; i < 2; i++) {
    assert_int_equal(propose(w, 1, RAFT_COMMIT, 500), 0);
    settle(w);
  }
  assert_int_equal(raft_commit(core(w, 1)), 3);
  assert_int_equal(raft_durable(core(w, 1)), 1);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1), RAFT_EBUSY);
  assert_int_equal(propose(w, 1, RAFT_NOOP, 0), 0); /* exempt, as ever */
  persist_one(w, 1);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 500), 0);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1), RAFT_EBUSY);
  persist(w, 1);
  settle(w);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1000), 0);
  world_free(w);
}

static void test_proposals(void **state)
{
  struct world *w = world_new(3);
  struct raft_effects effects;
  struct raft_proposal items[3] = {
      {.type = RAFT_PAGES}, {.type = RAFT_PAGES}, {.type = RAFT_COMMIT}};
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE};
  raft_index index;
  raft_term term;

  (void)state;
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 1), RAFT_ENOTLEADER);
  elect(w, 1);
  event.u.propose.n = 3;
  event.u.propose.items = items;
  event.u.propose.term = 9; /* somebody captured it under another leader */
  assert_int_equal(step(w, 1, &event), RAFT_ENOTLEADER);
  event.u.propose.term = 1;
  assert_int_equal(step(w, 1, &event), 0);
  assert_int_equal(node(w, 1)->proposed_first, 2);
  assert_int_equal(node(w, 1)->proposed_last, 4);
  assert_int_equal(count(w, 1, 2, RAFT_APPEND_REQUEST), 1);
  items[2].type = RAFT_CONFIGURATION; /* not by this way; none is taken */
  assert_int_equal(step(w, 1, &event), RAFT_EINVAL);
  items[2].type = 77;
  assert_int_equal(step(w, 1, &event), RAFT_EINVAL);
  assert_int_equal(raft_last(core(w, 1)), 4);
  settle(w);
  assert_int_equal(raft_propose(core(w, 1), w->now, RAFT_NOOP, NULL, &index,
                                &term, &effects),
                   0);
  assert_int_equal(index, 5);
  assert_int_equal(term, 1);
  assert_int_equal(effects.persist.n_entries, 1);
  world_free(w);
}

/* What no leader sends is refused, and leaves the log as it is. */
static void test_impossible_requests(void **state)
{
  struct world *w = world_new(3);
  struct raft_body *body = raft_body_new(3);
  struct raft_entry e[2] = {{.index = 2, .term = 1, .type = RAFT_COMMIT},
                            {.index = 3, .term = 1, .type = RAFT_COMMIT}};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 3,
                           .to = 2,
                           .incarnation = 103,
                           .term = 1,
                           .prev_index = 1,
                           .prev_term = 1,
                           .n_entries = 2,
                           .entries = e};

  (void)state;
  memset(body->data, 0, 3);
  raft_body_seal(body);
  elect(w, 1);
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED); /* a second leader */
  m.from = 1;
  m.incarnation = 101;
  e[1].index = 7;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  e[1].index = 3;
  e[1].type = 9;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  e[1].type = RAFT_CONFIGURATION; /* that is none */
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  e[1].body = body;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  e[1].type = RAFT_COMMIT;
  e[1].term = 2; /* later than the message */
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  e[1].term = 1;
  m.to = 3;
  m.from = 3;
  m.incarnation = 103;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED); /* from itself */
  assert_int_equal(raft_last(core(w, 2)), 1);
  /* An acknowledgement of what was never written. */
  m = (struct raft_message){.type = RAFT_APPEND_RESPONSE,
                            .from = 2,
                            .to = 1,
                            .incarnation = 102,
                            .term = 1,
                            .granted = true,
                            .match = 99};
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  m.type = RAFT_HEARTBEAT_RESPONSE;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  m.match = 1;
  m.read = UINT64_MAX;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  m.type = 0;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  m.type = RAFT_VOTE_REQUEST;
  m.term = UINT64_MAX;
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  /* To the leader, in its own term. */
  m = (struct raft_message){.type = RAFT_HEARTBEAT_REQUEST,
                            .from = 2,
                            .to = 1,
                            .incarnation = 102,
                            .term = 1};
  assert_int_equal(inject(w, &m), RAFT_EMALFORMED);
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  raft_body_unref(body);
  world_free(w);
}

/* A connection that comes up before the new leader knows anything does not
   make it send the log from its beginning. */
static void test_connection_while_probing(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  for (i = 0; i < 5; i++)
    propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  crash(w, 1);
  time_out(w, 2);
  while (raft_role(core(w, 2)) != RAFT_LEADER)
    assert_true(deliver_any(w, 0, 0));
  assert_int_equal(progress(w, 2, 3).next, 7);
  peer_event(w, 2, RAFT_EVENT_PEER_DOWN, 3);
  peer_event(w, 2, RAFT_EVENT_PEER_UP, 3);
  assert_int_equal(progress(w, 2, 3).next, 7);
  settle(w);
  assert_int_equal(raft_commit(core(w, 3)), 7);
  world_free(w);
}

/* A restarted follower agrees with its leader again before it commits. */
static void test_restarted_follower(void **state)
{
  struct world *w = world_new(3);

  (void)state;
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  crash(w, 2);
  start_node(w, 2); /* nobody notices the connection */
  assert_int_equal(raft_commit(core(w, 2)), 0);
  live(w, 300);
  assert_int_equal(raft_commit(core(w, 2)), 2);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_acknowledged_when_durable),
      cmocka_unit_test(test_commit_without_own_disk),
      cmocka_unit_test(test_heartbeat_answers_do_not_wait),
      cmocka_unit_test(test_heartbeat_claims_what_agrees),
      cmocka_unit_test(test_commit_up_to_matched),
      cmocka_unit_test(test_figure_7),
      cmocka_unit_test(test_figure_8),
      cmocka_unit_test(test_late_completion),
      cmocka_unit_test(test_late_completion_same_index),
      cmocka_unit_test(test_fast_backup),
      cmocka_unit_test(test_probe_one_at_a_time),
      cmocka_unit_test(test_window_in_messages),
      cmocka_unit_test(test_window_in_bytes),
      cmocka_unit_test(test_batches),
      cmocka_unit_test(test_duplicates_and_reordering),
      cmocka_unit_test(test_stale_rejection),
      cmocka_unit_test(test_lost_append),
      cmocka_unit_test(test_commit_is_told_at_once),
      cmocka_unit_test(test_back_pressure),
      cmocka_unit_test(test_back_pressure_of_the_disk),
      cmocka_unit_test(test_proposals),
      cmocka_unit_test(test_impossible_requests),
      cmocka_unit_test(test_connection_while_probing),
      cmocka_unit_test(test_restarted_follower),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
