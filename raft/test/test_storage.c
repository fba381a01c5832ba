/*
** test_storage.c: the bounded tail, loads, snapshots, a disk that fails.
*/
#include "timeline.h"

static struct world *small_tails(unsigned n, size_t tail_bytes)
{
  struct world *w = world_prepare(n, n);
  unsigned i;

  for (i = 1; i <= n; i++) {
    node(w, i)->options.tail_bytes = tail_bytes;
    start_node(w, i);
  }
  return w;
}

static void installed(struct world *w, raft_id id, raft_index index,
                      raft_term term, int expected)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct node *n = node(w, id);

  if (expected == 0 && index > n->snapshot) {
    if (!on_disk(w, id, index, term)) n->last = index;
    n->snapshot = index;
    n->snapshot_term = term;
    n->snapshot_configuration = w->configuration;
  }
  event.u.snapshot_installed.index = index;
  event.u.snapshot_installed.term = term;
  event.u.snapshot_installed.configuration = &w->configuration;
  assert_int_equal(step(w, id, &event), expected);
}

static void sent(struct world *w, raft_id id, raft_id peer, raft_index index,
                 bool ok)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};

  event.u.snapshot_sent.peer = peer;
  event.u.snapshot_sent.index = index;
  event.u.snapshot_sent.ok = ok;
  step(w, id, &event);
}

/* The tail is bounded in bytes, but keeps what is not durable. */
static void test_tail(void **state)
{
  struct world *w = small_tails(1, 2000);
  unsigned i;

  (void)state;
  tick(w, 1);
  node(w, 1)->prompt = false;
  for (i = 0; i < 10; i++)
    propose(w, 1, RAFT_COMMIT, 1000);
  for (i = 2; i <= 11; i++)
    assert_non_null(raft_entry_at(core(w, 1), i));
  persist_one(w, 1);
  persist_one(w, 1);
  assert_null(raft_entry_at(core(w, 1), 2));
  assert_null(raft_entry_at(core(w, 1), 3));
  assert_non_null(raft_entry_at(core(w, 1), 4));
  persist(w, 1);
  assert_null(raft_entry_at(core(w, 1), 10));
  assert_non_null(raft_entry_at(core(w, 1), 11));
  assert_int_equal(raft_term_at(core(w, 1), 3), 1); /* terms stay */
  assert_int_equal(raft_term_at(core(w, 1), 12), 0);
  assert_null(raft_entry_at(core(w, 1), 0));
  assert_null(raft_entry_at(core(w, 1), 12));
  world_free(w);
}

/* Node 1 leads, and node 3 lacks entries that are not in the tail any more: a
   load was asked for, and has no answer yet. */
static struct world *lagging(void)
{
  struct world *w = small_tails(3, 300);
  unsigned i;

  elect(w, 1);
  w->no_loads = true;
  w->unreachable[1][3] = true;
  for (i = 0; i < 20; i++) {
    propose(w, 1, RAFT_COMMIT, 100);
    settle(w);
  }
  w->unreachable[1][3] = false;
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 3);
  settle(w);
  return w;
}

/* A follower that lags behind the tail: entries are read back, one load at a
   time, and go out in order. */
static void test_loads(void **state)
{
  struct world *w = lagging();

  (void)state;
  assert_int_equal(node(w, 1)->n_loads, 1);
  assert_int_equal(node(w, 1)->loads[0].peer, 3);
  assert_int_equal(node(w, 1)->loads[0].first, 2);
  assert_true(node(w, 1)->loads[0].max_bytes > 0);
  beat(w, 1);
  propose(w, 1, RAFT_COMMIT, 100);
  settle(w);
  assert_int_equal(node(w, 1)->n_loads, 1); /* one at a time */
  assert_true(answer_load(w, 1, 8));
  assert_int_equal(node(w, 1)->n_loads, 2);
  assert_int_equal(node(w, 1)->loads[1].first, 10);
  settle(w);
  assert_int_equal(progress(w, 1, 3).match, 9);
  while (answer_load(w, 1, 8))
    settle(w);
  assert_int_equal(progress(w, 1, 3).match, 22);
  assert_int_equal(raft_commit(core(w, 3)), 22);
  world_free(w);
}

/* Loaded entries that are not (any more) those asked for are not sent; a
   load that failed is repeated after a heartbeat, not at once. */
static void test_wrong_loads(void **state)
{
  struct world *w = small_tails(3, 300);
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  struct raft_entry entry = {.index = 2, .term = 9, .type = RAFT_COMMIT};
  unsigned i;

  (void)state;
  elect(w, 1);
  w->no_loads = true;
  w->unreachable[1][3] = true;
  for (i = 0; i < 20; i++) {
    propose(w, 1, RAFT_COMMIT, 100);
    settle(w);
  }
  w->unreachable[1][3] = false;
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 3);
  settle(w);
  event.u.loaded.peer = 3;
  event.u.loaded.first = 2;
  event.u.loaded.n = 1;
  event.u.loaded.entries = &entry;
  step(w, 1, &event);
  assert_int_equal(count(w, 1, 3, 0), 0);
  assert_int_equal(node(w, 1)->n_loads, 1);
  beat(w, 1);
  assert_int_equal(node(w, 1)->n_loads, 2);
  event.u.loaded.n = 0; /* could not be read */
  step(w, 1, &event);
  assert_int_equal(node(w, 1)->n_loads, 2);
  beat(w, 1);
  assert_int_equal(node(w, 1)->n_loads, 3);
  node(w, 1)->n_loaded = 2;
  w->no_loads = false;
  settle(w);
  assert_int_equal(progress(w, 1, 3).match, 21);
  /* Nobody asked for this one. */
  event.u.loaded.n = 1;
  event.u.loaded.peer = 2;
  step(w, 1, &event);
  event.u.loaded.peer = 7;
  step(w, 1, &event);
  assert_int_equal(w->n_net, 0);
  world_free(w);
}

/* What a follower needs is no longer in the log: snapshot, heartbeats go on,
   a failure is retried after a heartbeat, then the log continues. */
static void test_snapshot(void **state)
{
  struct world *w = small_tails(3, 300);
  unsigned i;

  (void)state;
  elect(w, 1);
  w->unreachable[1][3] = true;
  for (i = 0; i < 20; i++)
    propose(w, 1, RAFT_COMMIT, 100);
  settle(w);
  installed(w, 1, 15, 1, 0); /* a checkpoint of its own */
  assert_int_equal(raft_role(core(w, 1)), RAFT_LEADER);
  assert_int_equal(raft_term_at(core(w, 1), 15), 1);
  assert_int_equal(raft_term_at(core(w, 1), 14), 0);
  w->unreachable[1][3] = false;
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 3);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  assert_int_equal(node(w, 1)->snapshots[0], 3);
  assert_int_equal(progress(w, 1, 3).state, RAFT_SNAPSHOT);
  beat(w, 1);
  beat(w, 1);
  assert_int_equal(raft_leader(core(w, 3)), 1);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  sent(w, 1, 3, 15, false);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  beat(w, 1);
  assert_int_equal(node(w, 1)->n_snapshots, 2);

  installed(w, 3, 15, 1, 0);
  assert_int_equal(raft_commit(core(w, 3)), 15);
  assert_int_equal(raft_last(core(w, 3)), 15);
  assert_int_equal(raft_durable(core(w, 3)), 15);
  sent(w, 1, 3, 15, true);
  settle(w);
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  assert_int_equal(raft_commit(core(w, 3)), 21);
  sent(w, 1, 3, 15, true); /* stale */
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  world_free(w);
}

static void cannot_read(struct world *w, raft_id id)
{
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  const struct raft_load *load = &node(w, id)->loads[node(w, id)->n_loaded];

  node(w, id)->n_loaded++;
  event.u.loaded.peer = load->peer;
  event.u.loaded.first = load->first;
  step(w, id, &event);
}

/* The leader's file with what a follower needs is damaged: when it could not be
   read several times the follower gets a snapshot, and does not wait for
   another leader. */
static void test_unreadable(void **state)
{
  struct world *w = lagging();

  (void)state;
  cannot_read(w, 1);
  beat(w, 1);
  cannot_read(w, 1);
  beat(w, 1);
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  assert_int_equal(node(w, 1)->n_snapshots, 0);
  cannot_read(w, 1);
  assert_int_equal(progress(w, 1, 3).state, RAFT_SNAPSHOT);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  beat(w, 1);
  beat(w, 1); /* it is still needed */
  assert_int_equal(progress(w, 1, 3).state, RAFT_SNAPSHOT);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  assert_int_equal(node(w, 1)->n_loads, 3);
  installed(w, 3, 19, 1, 0);
  beat(w, 1); /* seen before the sender tells */
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  w->no_loads = false;
  settle(w);
  assert_int_equal(progress(w, 1, 3).match, 21);
  assert_int_equal(raft_commit(core(w, 3)), 21);
  world_free(w);
}

/* A disk that has lost what was acknowledged, or a copy of an older one in its
   place: nobody promises anything then, but the follower gets it all again from
   the leader that counts on it. A single rejection may just be late. */
static void test_set_back(void **state)
{
  struct world *w = small_tails(3, 1u << 20);
  struct raft_message late = {.type = RAFT_APPEND_RESPONSE,
                              .from = 3,
                              .to = 1,
                              .incarnation = 103,
                              .term = 1,
                              .prev_index = 11,
                              .hint_index = 4,
                              .hint_term = 1};
  unsigned i;

  (void)state;
  elect(w, 1);
  for (i = 0; i < 10; i++)
    propose(w, 1, RAFT_COMMIT, 100);
  settle(w);
  peer_event(w, 1, RAFT_EVENT_PEER_DOWN, 3);
  inject(w, &late);
  inject(w, &late);
  assert_int_equal(progress(w, 1, 3).match, 11);
  assert_int_equal(progress(w, 1, 3).set_backs, 0);
  live(w, 200);
  assert_int_equal(progress(w, 1, 3).state, RAFT_REPLICATE);
  crash(w, 3);
  node(w, 3)->last = 5;
  start_node(w, 3);
  peer_event(w, 1, RAFT_EVENT_PEER_DOWN, 3);
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 3);
  inject(w, &late); /* those before do not count */
  live(w, 100);
  live(w, 400);
  assert_int_equal(progress(w, 1, 3).match, 11);
  assert_int_equal(progress(w, 1, 3).set_backs, 1);
  assert_int_equal(raft_commit(core(w, 3)), 11);
  assert_int_equal(node(w, 3)->last, 11);
  assert_int_equal(term_of(w, 1), 1);
  /* Who leads again later has not seen it once more. */
  transfer(w, 1, 2);
  settle(w);
  transfer(w, 2, 1);
  settle(w);
  assert_true(is_leader(w, 1));
  assert_int_equal(progress(w, 1, 3).set_backs, 0);
  world_free(w);
}

/* The follower has the snapshot before its sender knows. */
static void test_snapshot_noticed_by_heartbeat(void **state)
{
  struct world *w = world_new(3);
  unsigned i;

  (void)state;
  elect(w, 1);
  w->unreachable[1][3] = true;
  for (i = 0; i < 9; i++)
    propose(w, 1, RAFT_COMMIT, 100);
  settle(w);
  installed(w, 1, 8, 1, 0);
  w->unreachable[1][3] = false;
  peer_event(w, 1, RAFT_EVENT_PEER_UP, 3);
  assert_int_equal(progress(w, 1, 3).state, RAFT_SNAPSHOT);
  installed(w, 3, 8, 1, 0);
  beat(w, 1);
  assert_int_equal(raft_commit(core(w, 3)), 10);
  world_free(w);
}

/* Entries after a snapshot stay if the log agrees with it, else all go. */
static void test_install_keeps_or_drops(void **state)
{
  struct world *w = world_prepare(3, 3);
  unsigned i;

  (void)state;
  for (i = 0; i < 6; i++) {
    put_on_disk(w, 1, 1 + i / 3);
    put_on_disk(w, 2, 1 + i / 3);
  }
  start_node(w, 1);
  start_node(w, 2);
  installed(w, 1, 4, 2, 0);
  assert_int_equal(raft_last(core(w, 1)), 6);
  assert_int_equal(raft_commit(core(w, 1)), 4);
  installed(w, 1, 4, 2, 0); /* stale ones are harmless */
  installed(w, 1, 2, 1, 0);
  assert_int_equal(raft_commit(core(w, 1)), 4);
  assert_int_equal(raft_term_at(core(w, 1), 4), 2);

  installed(w, 2, 4, 9, 0); /* another entry 4 */
  assert_int_equal(raft_last(core(w, 2)), 4);
  assert_int_equal(raft_term_at(core(w, 2), 4), 9);
  assert_int_equal(raft_term_at(core(w, 2), 3), 0);
  installed(w, 2, 100, 9, 0); /* beyond the log */
  assert_int_equal(raft_last(core(w, 2)), 100);
  assert_int_equal(raft_commit(core(w, 2)), 100);
  installed(w, 2, 101, 0, RAFT_EINVAL);
  world_free(w);
}

/* A write under way when the log is replaced vouches for nothing after. */
static void test_install_over_writes(void **state)
{
  struct world *w = world_new(3);
  struct raft_entry entry = {.index = 51, .term = 1, .type = RAFT_NOOP};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 1,
                           .to = 2,
                           .incarnation = 101,
                           .term = 1,
                           .prev_index = 50,
                           .prev_term = 1,
                           .n_entries = 1,
                           .entries = &entry};
  unsigned i;

  (void)state;
  elect(w, 1);
  node(w, 2)->prompt = false;
  for (i = 0; i < 3; i++)
    propose(w, 1, RAFT_COMMIT, 10);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(node(w, 2)->n_writes, 1);
  {
    struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};

    event.u.snapshot_installed.index = 50;
    event.u.snapshot_installed.term = 1;
    event.u.snapshot_installed.configuration = &w->configuration;
    node(w, 2)->snapshot = 50;
    assert_int_equal(step(w, 2, &event), 0);
  }
  assert_int_equal(raft_durable(core(w, 2)), 50);
  inject(w, &m);
  write_land(node(w, 2));
  {
    struct raft_event event = {.type = RAFT_EVENT_PERSISTED};

    event.u.seq = node(w, 2)->writes[0].seq - 1;
    step(w, 2, &event);
  }
  assert_int_equal(raft_durable(core(w, 2)), 50);
  node(w, 2)->last = 50;
  persist_one(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 51);
  world_free(w);
}

/* A snapshot of entries that are here and still being written: the snapshot
   is durable, what follows it is not yet. */
static void test_install_over_equal_writes(void **state)
{
  struct world *w = world_new(3);
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  unsigned i;

  (void)state;
  elect(w, 1);
  node(w, 2)->prompt = false;
  for (i = 0; i < 3; i++) {
    propose(w, 1, RAFT_COMMIT, 10);
    deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  }
  assert_int_equal(raft_durable(core(w, 2)), 1);
  event.u.snapshot_installed.index = 3;
  event.u.snapshot_installed.term = 1;
  event.u.snapshot_installed.configuration = &w->configuration;
  node(w, 2)->snapshot = 3;
  assert_int_equal(step(w, 2, &event), 0);
  assert_int_equal(raft_durable(core(w, 2)), 3);
  assert_int_equal(raft_commit(core(w, 2)), 3);
  assert_int_equal(raft_last(core(w, 2)), 4);
  persist_one(w, 2); /* the write of entry 2 */
  assert_int_equal(raft_durable(core(w, 2)), 3);
  persist(w, 2);
  assert_int_equal(raft_durable(core(w, 2)), 4);
  settle(w);
  assert_int_equal(progress(w, 1, 2).match, 4);
  world_free(w);
}

/* A node may start from a snapshot alone, and vote by it. */
static void test_start_from_snapshot(void **state)
{
  struct world *w = world_prepare(3, 3);
  raft_term term;
  bool leads;

  (void)state;
  node(w, 1)->snapshot = node(w, 1)->last = 40;
  node(w, 1)->snapshot_term = 3;
  node(w, 1)->snapshot_configuration = w->configuration;
  start_node(w, 1);
  assert_int_equal(raft_commit(core(w, 1)), 40);
  assert_int_equal(raft_term_at(core(w, 1), 40), 3);
  raft_state(core(w, 1), &term, &leads);
  assert_int_equal(term, 3);
  world_free(w);
}

/* Terms as the store lists them, from before the snapshot even. */
static void test_recovered_terms(void **state)
{
  struct raft_options options;
  struct raft_recovered *rec = calloc(1, sizeof *rec);
  struct raft_term_run runs[] = {{3, 1}, {6, 2}, {9, 4}};
  struct raft *r;

  (void)state;
  raft_options_defaults(&options);
  options.id = 1;
  rec->term = 4;
  rec->snapshot_index = 7;
  rec->snapshot_term = 2;
  rec->commit = 7;
  rec->last_index = 10;
  rec->terms = runs;
  rec->n_terms = 3;
  rec->configuration = world_members(3);
  assert_int_equal(raft_new(&options, rec, 0, &r), 0);
  assert_int_equal(raft_term_at(r, 6), 0);
  assert_int_equal(raft_term_at(r, 7), 2);
  assert_int_equal(raft_term_at(r, 8), 2);
  assert_int_equal(raft_term_at(r, 9), 4);
  assert_int_equal(raft_term_at(r, 10), 4);
  raft_free(r);
  runs[1].term = 1; /* not ascending */
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  assert_null(r);
  runs[1].term = 2;
  rec->commit = 11; /* beyond the log */
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  rec->commit = 7;
  rec->n_terms = 0;
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  rec->n_terms = 3;
  rec->term = 3; /* entries of a term that never was */
  assert_int_equal(raft_new(&options, rec, 0, &r), RAFT_EINVAL);
  free(rec);
}

/* The leader's disk fails: it steps down and says nothing any more that
   rests on a disk; the others go on without it. */
static void test_disk_failed(void **state)
{
  struct world *w = world_new(3);
  struct raft_event event = {.type = RAFT_EVENT_DISK_FAILED};

  (void)state;
  elect(w, 1);
  node(w, 1)->prompt = false;
  propose(w, 1, RAFT_COMMIT, 10);
  step(w, 1, &event);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(propose(w, 1, RAFT_COMMIT, 10), RAFT_EDISK);
  assert_int_equal(change(w, 1, RAFT_REMOVE, 2), RAFT_EDISK);
  drop(w, 0, 0, 0);
  event.type = RAFT_EVENT_PERSISTED; /* too late to be believed */
  event.u.seq = node(w, 1)->writes[0].seq;
  step(w, 1, &event);
  assert_int_equal(raft_durable(core(w, 1)), 1);
  time_out(w, 1);
  assert_int_equal(raft_role(core(w, 1)), RAFT_FOLLOWER);
  assert_int_equal(w->n_net, 0);
  tick(w, 2);
  deliver(w, 2, 1, RAFT_PREVOTE_REQUEST);
  assert_false(look(w, 1, 2, RAFT_PREVOTE_RESPONSE).granted);
  settle(w);
  assert_int_equal(raft_role(core(w, 2)), RAFT_LEADER);
  assert_int_equal(raft_leader(core(w, 1)), 2); /* it knows who leads */
  assert_int_equal(node(w, 1)->term, 1);
  live(w, 300);
  assert_int_equal(count(w, 1, 0, 0), 0);
  assert_int_equal(raft_last(core(w, 1)), 2);
  assert_int_equal(raft_term_at(core(w, 1), 2), 1); /* takes no entries */
  world_free(w);
}

/* A node whose disk failed with a vote under way never says it. */
static void test_disk_failed_while_voting(void **state)
{
  struct world *w = world_new(3);
  struct raft_event event = {.type = RAFT_EVENT_DISK_FAILED};

  (void)state;
  node(w, 2)->prompt = false;
  time_out(w, 1);
  deliver(w, 1, 2, RAFT_PREVOTE_REQUEST);
  deliver(w, 2, 1, RAFT_PREVOTE_RESPONSE);
  deliver(w, 1, 2, RAFT_VOTE_REQUEST);
  step(w, 2, &event);
  drop(w, 0, 0, 0);
  tick(w, 1);
  pass(w, 1000);
  tick(w, 3);
  deliver(w, 3, 2, RAFT_PREVOTE_REQUEST);
  assert_int_equal(count(w, 2, 0, 0), 0);
  assert_int_equal(node(w, 2)->n_held, 1); /* only the vote, for ever */
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tail),
      cmocka_unit_test(test_loads),
      cmocka_unit_test(test_wrong_loads),
      cmocka_unit_test(test_snapshot),
      cmocka_unit_test(test_unreadable),
      cmocka_unit_test(test_set_back),
      cmocka_unit_test(test_snapshot_noticed_by_heartbeat),
      cmocka_unit_test(test_install_keeps_or_drops),
      cmocka_unit_test(test_install_over_writes),
      cmocka_unit_test(test_install_over_equal_writes),
      cmocka_unit_test(test_start_from_snapshot),
      cmocka_unit_test(test_recovered_terms),
      cmocka_unit_test(test_disk_failed),
      cmocka_unit_test(test_disk_failed_while_voting),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
