/*
** test_snapshot.c: what may be taken of an incoming snapshot, and what
** installing one does to log and membership.
*/
#include "timeline.h"

#define BEYOND UINT64_MAX

/* Node 2 of three, in term 3, with six entries of which four are committed. */
static struct world *follower(void)
{
  struct world *w = world_prepare(3, 3);
  struct raft_message m = {.type = RAFT_HEARTBEAT_REQUEST,
                           .from = 1,
                           .to = 2,
                           .incarnation = 101,
                           .term = 3};
  struct raft_message probe = {.type = RAFT_APPEND_REQUEST,
                               .from = 1,
                               .to = 2,
                               .incarnation = 101,
                               .term = 3,
                               .prev_index = 6,
                               .prev_term = 2,
                               .commit = 4};
  unsigned i;

  for (i = 0; i < 6; i++)
    put_on_disk(w, 2, 1 + i / 3);
  start_node(w, 2);
  inject(w, &m);
  inject(w, &probe);
  drop(w, 0, 0, 0);
  assert_int_equal(raft_commit(core(w, 2)), 4);
  return w;
}

static struct raft_snapshot_tag tag(raft_index index, raft_term term,
                                    uint64_t bytes)
{
  return (struct raft_snapshot_tag){
      .index = index, .term = term, .bytes = bytes};
}

static enum raft_snapshot_verdict offer(struct world *w,
                                        struct raft_snapshot_in *in,
                                        raft_term term,
                                        struct raft_snapshot_tag t)
{
  return raft_snapshot_offer(core(w, 2), in, term, &t);
}

/* Chunks of the snapshot that is being taken, from a leader of term 3. */
static enum raft_snapshot_verdict chunk(struct world *w,
                                        struct raft_snapshot_in *in,
                                        uint64_t offset, uint64_t len,
                                        uint64_t *skip)
{
  struct raft_snapshot_tag t = in->tag;

  return raft_snapshot_chunk(core(w, 2), in, 3, &t, offset, len, skip);
}

/* ---- offers ------------------------------------------------------------- */

static void test_offer(void **state)
{
  struct raft_snapshot_in in = {{0, 0, 0}, 0}, nothing = in;
  struct world *w = follower();

  (void)state;
  assert_int_equal(offer(w, &in, 3, tag(4, 2, 100)), RAFT_SNAPSHOT_HAVE);
  assert_memory_equal(&in, &nothing, sizeof in);
  assert_int_equal(offer(w, &in, 3, tag(5, 2, 100)), RAFT_SNAPSHOT_START);
  assert_int_equal(in.tag.index, 5);
  assert_int_equal(in.position, 0);
  in.position = 40;
  assert_int_equal(offer(w, &in, 3, tag(5, 2, 100)), RAFT_SNAPSHOT_RESUME);
  assert_int_equal(in.position, 40);
  /* From a leader of a later term too, who has the same bytes. */
  assert_int_equal(offer(w, &in, 7, tag(5, 2, 100)), RAFT_SNAPSHOT_RESUME);
  assert_int_equal(in.position, 40);
  /* Another tag, in any of its parts, is another snapshot. */
  assert_int_equal(offer(w, &in, 3, tag(5, 2, 101)), RAFT_SNAPSHOT_START);
  assert_int_equal(in.position, 0);
  in.position = 40;
  assert_int_equal(offer(w, &in, 3, tag(5, 3, 101)), RAFT_SNAPSHOT_START);
  in.position = 40;
  assert_int_equal(offer(w, &in, 3, tag(6, 3, 101)), RAFT_SNAPSHOT_START);
  assert_int_equal(in.position, 0);
  world_free(w);
}

/* A leader of an earlier term has nothing to give; a leader takes nothing;
   what makes no sense is refused; each leaves what is there alone. */
static void test_offer_refused(void **state)
{
  struct raft_event failed = {.type = RAFT_EVENT_DISK_FAILED};
  const struct {
    raft_term term;
    struct raft_snapshot_tag tag;
  } cases[] = {
      {2, {9, 2, 100}},
      {3, {0, 2, 100}},
      {3, {9, 0, 100}},
      {3, {9, 4, 100}}, /* of a term that the sender has not been in */
      {3, {9, 3, 0}},
      {3, {9, 3, BEYOND}},
      {3, {9, 3, RAFT_NUMBER_MAX + 1}},
      {3, {BEYOND, 3, 100}},
      {3, {RAFT_NUMBER_MAX + 1, 3, 100}},
      {BEYOND, {9, 3, 100}},
      {RAFT_NUMBER_MAX + 1, {9, 3, 100}},
      {BEYOND, {9, BEYOND, 100}},
  };
  struct raft_snapshot_in in = {{8, 3, 50}, 20}, before = in;
  struct world *w = follower();
  uint64_t skip;
  size_t i;

  (void)state;
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    assert_int_equal(offer(w, &in, cases[i].term, cases[i].tag),
                     RAFT_SNAPSHOT_REFUSE);
    assert_int_equal(raft_snapshot_chunk(core(w, 2), &in, cases[i].term,
                                         &cases[i].tag, 0, 10, &skip),
                     RAFT_SNAPSHOT_REFUSE);
    assert_memory_equal(&in, &before, sizeof in);
  }
  step(w, 2, &failed);
  assert_int_equal(offer(w, &in, 3, tag(9, 3, 100)), RAFT_SNAPSHOT_REFUSE);
  world_free(w);

  w = world_new(3);
  elect(w, 2);
  assert_int_equal(offer(w, &in, 9, tag(9, 3, 100)), RAFT_SNAPSHOT_REFUSE);
  assert_int_equal(chunk(w, &in, 20, 10, &skip), RAFT_SNAPSHOT_REFUSE);
  assert_memory_equal(&in, &before, sizeof in);
  world_free(w);
}

/* All of it is here, and about to be installed: nothing is left to send. */
static void test_offer_of_a_whole_one(void **state)
{
  struct raft_snapshot_in in = {{0, 0, 0}, 0};
  struct world *w = follower();
  uint64_t skip;

  (void)state;
  offer(w, &in, 3, tag(9, 3, 100));
  assert_int_equal(chunk(w, &in, 0, 100, &skip), RAFT_SNAPSHOT_DONE);
  assert_int_equal(offer(w, &in, 3, tag(9, 3, 100)), RAFT_SNAPSHOT_HAVE);
  assert_int_equal(chunk(w, &in, 90, 10, &skip), RAFT_SNAPSHOT_HAVE);
  assert_int_equal(in.position, 100);
  assert_int_equal(offer(w, &in, 3, tag(10, 3, 100)), RAFT_SNAPSHOT_START);
  world_free(w);
}

/* ---- chunks ------------------------------------------------------------- */

/* In order, twice, in part twice, with a gap, out of order. */
static void test_chunks(void **state)
{
  static const struct {
    uint64_t offset, len;
    uint8_t verdict;
    uint64_t skip, position;
  } cases[] = {
      {0, 0, RAFT_SNAPSHOT_SKIP, 0, 0},
      {1, 10, RAFT_SNAPSHOT_SKIP, 0, 0}, /* a gap */
      {0, 30, RAFT_SNAPSHOT_TAKE, 0, 30},
      {0, 30, RAFT_SNAPSHOT_SKIP, 0, 30}, /* again */
      {10, 10, RAFT_SNAPSHOT_SKIP, 0, 30},
      {31, 10, RAFT_SNAPSHOT_SKIP, 0, 30},
      {30, 0, RAFT_SNAPSHOT_SKIP, 0, 30},
      {20, 30, RAFT_SNAPSHOT_TAKE, 10, 50}, /* overlaps */
      {0, 60, RAFT_SNAPSHOT_TAKE, 50, 60},
      {60, 1, RAFT_SNAPSHOT_TAKE, 0, 61},
      {61, 40, RAFT_SNAPSHOT_REFUSE, 0, 61}, /* more than there is */
      {101, 1, RAFT_SNAPSHOT_REFUSE, 0, 61},
      {BEYOND, 1, RAFT_SNAPSHOT_REFUSE, 0, 61},
      {61, BEYOND, RAFT_SNAPSHOT_REFUSE, 0, 61},
      {61, BEYOND - 60, RAFT_SNAPSHOT_REFUSE, 0, 61}, /* the sum wraps to 0 */
      {BEYOND, BEYOND, RAFT_SNAPSHOT_REFUSE, 0, 61},
      {100, 0, RAFT_SNAPSHOT_SKIP, 0, 61},
      {50, 50, RAFT_SNAPSHOT_DONE, 11, 100},
  };
  struct raft_snapshot_in in = {{0, 0, 0}, 0};
  struct world *w = follower();
  uint64_t skip;
  size_t i;

  (void)state;
  offer(w, &in, 3, tag(9, 3, 100));
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    skip = 77;
    assert_int_equal(chunk(w, &in, cases[i].offset, cases[i].len, &skip),
                     cases[i].verdict);
    assert_int_equal(skip, cases[i].skip);
    assert_int_equal(in.position, cases[i].position);
  }
  world_free(w);
}

/* Of one that is no longer, or never was, being taken. */
static void test_stale_tag(void **state)
{
  struct raft_snapshot_in in = {{0, 0, 0}, 0};
  struct raft_snapshot_tag old = tag(8, 3, 100);
  struct world *w = follower();
  uint64_t skip;

  (void)state;
  assert_int_equal(raft_snapshot_chunk(core(w, 2), &in, 3, &old, 0, 10, &skip),
                   RAFT_SNAPSHOT_SKIP);
  offer(w, &in, 3, old);
  chunk(w, &in, 0, 10, &skip);
  offer(w, &in, 3, tag(9, 3, 100));
  assert_int_equal(raft_snapshot_chunk(core(w, 2), &in, 3, &old, 10, 10, &skip),
                   RAFT_SNAPSHOT_SKIP);
  assert_int_equal(in.tag.index, 9);
  assert_int_equal(in.position, 0);
  world_free(w);
}

/* The sender dies; another goes on where it stopped, in a later term. Chunks
   of the first are refused once this node knows of that term. */
static void test_another_sender(void **state)
{
  struct raft_message m = {.type = RAFT_HEARTBEAT_REQUEST,
                           .from = 3,
                           .to = 2,
                           .incarnation = 103,
                           .term = 4};
  struct raft_snapshot_in in = {{0, 0, 0}, 0};
  struct raft_snapshot_tag t = tag(9, 3, 100);
  struct world *w = follower();
  uint64_t skip;

  (void)state;
  offer(w, &in, 3, t);
  chunk(w, &in, 0, 60, &skip);
  inject(w, &m);
  assert_int_equal(chunk(w, &in, 60, 10, &skip), RAFT_SNAPSHOT_REFUSE);
  assert_int_equal(offer(w, &in, 4, t), RAFT_SNAPSHOT_RESUME);
  assert_int_equal(in.position, 60);
  assert_int_equal(raft_snapshot_chunk(core(w, 2), &in, 4, &t, 60, 40, &skip),
                   RAFT_SNAPSHOT_DONE);
  world_free(w);
}

/* The log has got there by itself meanwhile. */
static void test_outgrown(void **state)
{
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 1,
                           .to = 2,
                           .incarnation = 101,
                           .term = 3,
                           .prev_index = 6,
                           .prev_term = 2,
                           .commit = 6};
  struct raft_snapshot_in in = {{0, 0, 0}, 0};
  struct world *w = follower();
  uint64_t skip;

  (void)state;
  offer(w, &in, 3, tag(6, 2, 100));
  assert_int_equal(chunk(w, &in, 0, 50, &skip), RAFT_SNAPSHOT_TAKE);
  inject(w, &m);
  assert_int_equal(chunk(w, &in, 50, 50, &skip), RAFT_SNAPSHOT_HAVE);
  assert_int_equal(offer(w, &in, 3, tag(6, 2, 100)), RAFT_SNAPSHOT_HAVE);
  assert_int_equal(in.position, 50);
  world_free(w);
}

/* ---- installed ---------------------------------------------------------- */

static int installed(struct world *w, raft_id id, raft_index index,
                     raft_term term, const struct raft_configuration *c)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct node *n = node(w, id);

  if (!on_disk(w, id, index, term)) n->last = index;
  n->snapshot = index;
  n->snapshot_term = term;
  n->snapshot_configuration = *c;
  event.u.snapshot_installed.index = index;
  event.u.snapshot_installed.term = term;
  event.u.snapshot_installed.configuration = &n->snapshot_configuration;
  return step(w, id, &event);
}

/* A snapshot that is a prefix of the log takes nothing from what follows, nor
   from the configuration that stands there. */
static void test_entries_after_it_stay(void **state)
{
  struct world *w = world_prepare(4, 3);
  struct raft_configuration old;
  unsigned i;

  (void)state;
  for (i = 1; i <= 4; i++)
    start_node(w, i);
  elect(w, 1);
  propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  old = *raft_configuration(core(w, 1), NULL);
  change(w, 1, RAFT_ADD_LEARNER, 4); /* at 3 */
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_int_equal(installed(w, 2, 2, 1, &old), 0);
  assert_int_equal(raft_last(core(w, 2)), 3);
  assert_int_equal(configured_at(w, 2), 3);
  assert_int_equal(role_in(w, 2, 4), RAFT_LEARNER);
  assert_non_null(raft_entry_at(core(w, 2), 3));
  settle(w);
  assert_int_equal(raft_commit(core(w, 2)), 3);
  world_free(w);
}

/* One that is not a prefix takes all: entries, and the configurations that
   stood there, the joint one and the one before it. */
static void test_log_replaced_while_joint(void **state)
{
  struct world *w = world_prepare(5, 4);
  struct raft_message vote = {.type = RAFT_VOTE_REQUEST,
                              .from = 1,
                              .to = 2,
                              .incarnation = 101,
                              .term = 9,
                              .prev_index = 20,
                              .prev_term = 8};
  struct raft_configuration later = world_members(3);
  unsigned i;

  (void)state;
  for (i = 1; i <= 5; i++)
    start_node(w, i);
  elect(w, 1);
  change(w, 1, RAFT_REMOVE, 4);
  deliver(w, 1, 2, RAFT_APPEND_REQUEST);
  assert_true(is_joint(w, 2));
  later.members[1].priority = RAFT_PREFER;
  cut_off(w, 2);
  assert_int_equal(installed(w, 2, 20, 8, &later), 0);
  assert_true(node(w, 2)->configuration_changed);
  assert_false(is_joint(w, 2));
  assert_int_equal(configured_at(w, 2), 20);
  assert_int_equal(raft_last(core(w, 2)), 20);
  assert_int_equal(raft_commit(core(w, 2)), 20);
  assert_int_equal(term_of(w, 2), 8);
  mend(w);
  inject(w, &vote); /* it goes on like any other */
  assert_true(look(w, 2, 1, RAFT_VOTE_RESPONSE).granted);
  world_free(w);
}

/* A configuration without a voter, or with one that cannot be, comes from no
   cluster. */
static void test_impossible_members(void **state)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct raft_configuration c = world_members(3);
  struct world *w = follower();
  unsigned i;

  (void)state;
  event.u.snapshot_installed.index = 20;
  event.u.snapshot_installed.term = 3;
  event.u.snapshot_installed.configuration = &c;
  c.members[0].role = RAFT_LEAVING;
  assert_int_equal(step(w, 2, &event), RAFT_EINVAL);
  for (i = 0; i < 3; i++) {
    c.members[i].role = RAFT_LEAVING;
    c.members[i].outgoing = true;
  }
  assert_int_equal(step(w, 2, &event), RAFT_EINVAL);
  c.n = 0;
  assert_int_equal(step(w, 2, &event), RAFT_EINVAL);
  event.u.snapshot_installed.configuration = NULL;
  assert_int_equal(step(w, 2, &event), RAFT_EINVAL);
  assert_int_equal(raft_last(core(w, 2)), 6);
  world_free(w);
}

/* The snapshot holds the joint configuration: whoever takes it is in it, and
   cuts back to it, and leaves it in the end. */
static void test_snapshot_of_the_joint_one(void **state)
{
  struct world *w = world_prepare(3, 3);
  struct raft_configuration joint = world_members(3);
  unsigned i;

  (void)state;
  for (i = 0; i < 3; i++)
    joint.members[i].outgoing = true;
  joint.members[2].role = RAFT_LEAVING;
  for (i = 1; i <= 3; i++) {
    start_node(w, i);
    assert_int_equal(installed(w, i, 10, 1, &joint), 0);
    assert_true(is_joint(w, i));
  }
  crash(w, 2);
  start_node(w, 2);
  assert_true(is_joint(w, 2));
  elect(w, 2);
  assert_false(is_joint(w, 1));
  assert_int_equal(configured_at(w, 1), 12);
  assert_int_equal(role_in(w, 1, 3), 0);
  world_free(w);
}

/* While one follower takes a snapshot, it is kept up by heartbeats, learns of
   no commit that it does not have, and the others go on. */
static void test_life_goes_on(void **state)
{
  struct world *w = world_new(3);
  struct raft_event sent = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  unsigned i;

  (void)state;
  elect(w, 1);
  cut_off(w, 3);
  for (i = 0; i < 5; i++)
    propose(w, 1, RAFT_COMMIT, 10);
  settle(w);
  assert_int_equal(installed(w, 1, 5, 1, &w->configuration), 0);
  mend(w);
  live(w, 200);
  assert_int_equal(progress(w, 1, 3).state, RAFT_SNAPSHOT);
  assert_int_equal(node(w, 1)->n_snapshots, 1);
  crash(w, 2); /* so 3 is needed, and counts, for all but entries */
  for (i = 0; i < 20; i++) {
    propose(w, 1, RAFT_COMMIT, 10);
    live(w, 100);
    assert_int_equal(count(w, 1, 3, RAFT_APPEND_REQUEST), 0);
  }
  assert_true(is_leader(w, 1));
  assert_int_equal(raft_leader(core(w, 3)), 1);
  assert_int_equal(raft_commit(core(w, 3)), 1);
  assert_int_equal(raft_commit(core(w, 1)), 6);
  read_on(w, 3, 5);
  settle(w);
  assert_int_equal(last_read(w, 3)->status, 0);
  assert_int_equal(node(w, 1)->n_snapshots, 1); /* asked for once */
  assert_int_equal(installed(w, 3, 5, 1, &w->configuration), 0);
  sent.u.snapshot_sent.peer = 3;
  sent.u.snapshot_sent.index = 5;
  sent.u.snapshot_sent.ok = true;
  step(w, 1, &sent);
  live(w, 200);
  assert_int_equal(raft_commit(core(w, 1)), 26);
  assert_int_equal(raft_commit(core(w, 3)), 26);
  world_free(w);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_offer),
      cmocka_unit_test(test_offer_refused),
      cmocka_unit_test(test_offer_of_a_whole_one),
      cmocka_unit_test(test_chunks),
      cmocka_unit_test(test_stale_tag),
      cmocka_unit_test(test_another_sender),
      cmocka_unit_test(test_outgrown),
      cmocka_unit_test(test_entries_after_it_stay),
      cmocka_unit_test(test_log_replaced_while_joint),
      cmocka_unit_test(test_impossible_members),
      cmocka_unit_test(test_snapshot_of_the_joint_one),
      cmocka_unit_test(test_life_goes_on),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
