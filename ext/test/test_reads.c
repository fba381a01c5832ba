/*
** Who waits for a read, on a node that is nothing but its lists and a raft of
** one voter: one request for all, whoever gives up is gone, and an index wakes
** those who wait for it and no others.
*/
#include "harness.h"

#include "node.h"

#include <errno.h>
#include <sqlite3ext.h>

SQLITE_EXTENSION_INIT3

#define READERS 300
#define PATIENCE_MS 60000

struct reader {
  struct node *node;
  pthread_t thread;
  enum read_level level;
  raft_index index; /* 0: a read, else this is waited for */
  uint64_t ms;
  int rc;
  raft_index applied;
  struct text reason;
};

static void *run_reader(void *arg)
{
  struct reader *r = arg;
  r->rc = r->index ? node_wait_applied(r->node, r->index, r->ms, NULL,
                                       &r->applied, &r->reason)
                   : node_barrier(r->node, r->level, r->ms, NULL, &r->reason);
  return NULL;
}

static void begin(struct node *node, struct reader *r, raft_index index,
                  uint64_t ms)
{
  pthread_attr_t attr;
  *r = (struct reader){.node = node, .index = index, .ms = ms, .rc = -1};
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 128 * 1024);
  assert_int_equal(pthread_create(&r->thread, &attr, run_reader, r), 0);
  pthread_attr_destroy(&attr);
}

static int end(struct reader *r)
{
  pthread_join(r->thread, NULL);
  return r->rc;
}

static unsigned count(struct node *node, struct waiters *list)
{
  struct waiter *w;
  unsigned n = 0;
  pthread_mutex_lock(&node->mutex);
  TAILQ_FOREACH(w, list, link)
  {
    assert_ptr_equal(w->list, list);
    n++;
  }
  pthread_mutex_unlock(&node->mutex);
  return n;
}

static void until(struct node *node, struct waiters *list, unsigned n)
{
  uint64_t last = clock_monotonic_ms() + PATIENCE_MS;
  while (count(node, list) != n) {
    assert_true(clock_monotonic_ms() < last);
    sched_yield();
  }
}

static void apply(struct node *node, raft_index index)
{
  pthread_mutex_lock(&node->mutex);
  struct control_view view = {.confirmed_index = index};
  node->applied = index;
  control_show(node->map, &view);
  pthread_mutex_unlock(&node->mutex);
  reads_released(node);
}

/* A leader of one voter, whose NOOP is committed. */
static struct raft *sole_leader(void)
{
  static struct raft_recovered recovered;
  struct raft_options options;
  struct raft_effects effects;
  struct raft_event event = {.type = RAFT_EVENT_TICK,
                             .now = clock_monotonic_ms()};
  struct raft *raft;
  raft_options_defaults(&options);
  options.id = 1;
  recovered.configuration.n = 1;
  recovered.configuration.members[0] =
      (struct raft_member){.id = 1, .role = RAFT_VOTER, .name = "n1"};
  assert_int_equal(raft_new(&options, &recovered, event.now, &raft), 0);
  do {
    assert_int_equal(raft_step(raft, &event, &effects), 0);
    event.type = RAFT_EVENT_PERSISTED;
    event.u.seq = effects.persist.seq;
  } while (effects.persist.seq != 0);
  assert_int_equal(raft_role(raft), RAFT_LEADER);
  assert_int_equal(raft_commit(raft), 1);
  return raft;
}

static int setup(void **state)
{
  struct node *node = calloc(1, sizeof(*node));
  assert_int_equal(control_open(&io_posix, NULL, true, &node->map), 0);
  node->shared = node->map->control;
  node_conditions(node);
  pthread_mutex_init(&node->events.mutex, NULL);
  node->inflight_tail = &node->inflight;
  node->proposals_tail = &node->proposals;
  node->tasks_tail = &node->tasks;
  node->held_tail = &node->held;
  reads_init(node);
  node->raft = sole_leader();
  node->identity.election_timeout_ms = 500;
  atomic_store(&node->shared->serving, true);
  atomic_store(&node->settled, true);
  apply(node, 1);
  *state = node;
  return 0;
}

static int teardown(void **state)
{
  struct node *node = *state;
  raft_free(node->raft);
  pthread_mutex_destroy(&node->mutex);
  control_close(node->map);
  free(node);
  return 0;
}

static void test_one_request_for_all(void **state)
{
  static struct reader readers[READERS];
  struct node *node = *state;
  for (unsigned i = 0; i < READERS; i++)
    begin(node, &readers[i], 0, PATIENCE_MS);
  until(node, &node->unasked, READERS);
  assert_int_equal(node->next_read, 0);
  reads_ask(node);
  for (unsigned i = 0; i < READERS; i++)
    assert_int_equal(end(&readers[i]), SQLITE_OK);
  assert_int_equal(node->next_read, 1);
  reads_ask(node); /* nobody waits */
  assert_int_equal(node->next_read, 1);
}

/* An answer tells what they wait for, and applying it ends that. */
static void test_index_not_applied_yet(void **state)
{
  struct reader readers[3];
  struct node *node = *state;
  struct raft_read_result result = {.read = 1, .index = 7};
  for (unsigned i = 0; i < 3; i++)
    begin(node, &readers[i], i == 0 ? 9 : 0, PATIENCE_MS);
  until(node, &node->waiting, 1);
  until(node, &node->unasked, 2);
  apply(node, 0);
  node->apply_busy = true;
  reads_ask(node); /* entry 1, which is not applied now */
  until(node, &node->waiting, 3);
  apply(node, 1);
  assert_int_equal(end(&readers[1]), SQLITE_OK);
  assert_int_equal(end(&readers[2]), SQLITE_OK);
  until(node, &node->waiting, 1);
  assert_false(reads_take(node, &result)); /* of a request long over */
  apply(node, 8);
  until(node, &node->waiting, 1);
  apply(node, 9);
  assert_int_equal(end(&readers[0]), 0);
  assert_int_equal(readers[0].applied, 9);
}

/* In whatever order they come, those are woken whose turn it is. */
static void test_order_of_indexes(void **state)
{
  static struct reader readers[50];
  struct node *node = *state;
  for (unsigned i = 0; i < 50; i++)
    begin(node, &readers[i], 2 + i * 37 % 50, PATIENCE_MS);
  until(node, &node->waiting, 50);
  for (unsigned n = 1; n <= 50; n++) {
    apply(node, 1 + n);
    until(node, &node->waiting, 50 - n);
  }
  for (unsigned i = 0; i < 50; i++) {
    assert_int_equal(end(&readers[i]), 0);
    assert_true(readers[i].applied >= readers[i].index);
  }
}

/* Its waiter is on its stack: nothing of it may be left. */
static void test_giving_up(void **state)
{
  struct reader read, wait, next;
  struct node *node = *state;
  begin(node, &read, 0, 20);
  begin(node, &wait, 5, 20);
  assert_int_equal(end(&read), SQLITE_BUSY_TIMEOUT);
  assert_int_equal(end(&wait), -ETIMEDOUT);
  assert_non_null(strstr(wait.reason.s, "entry 5 is not applied here, but 1"));
  assert_int_equal(count(node, &node->unasked), 0);
  assert_int_equal(count(node, &node->waiting), 0);
  begin(node, &next, 0, PATIENCE_MS);
  until(node, &node->unasked, 1);
  reads_ask(node);
  assert_int_equal(end(&next), SQLITE_OK);
}

static void test_a_node_that_ends(void **state)
{
  struct reader readers[2];
  struct node *node = *state;
  begin(node, &readers[0], 0, PATIENCE_MS);
  begin(node, &readers[1], 5, PATIENCE_MS);
  until(node, &node->unasked, 1);
  until(node, &node->waiting, 1);
  pthread_mutex_lock(&node->mutex);
  node->stopping = true;
  pthread_mutex_unlock(&node->mutex);
  reads_drop(node);
  assert_int_equal(end(&readers[0]), SQLITE_BUSY_TIMEOUT);
  assert_string_equal(readers[0].reason.s, "read refused: the node is stopped");
  assert_int_equal(end(&readers[1]), -ESHUTDOWN);
  begin(node, &readers[0], 0, PATIENCE_MS);
  assert_int_equal(end(&readers[0]), SQLITE_BUSY_TIMEOUT);
}

/* Who waited in order to write is not told that its read was refused. */
static void test_a_write(void **state)
{
  struct node *node = *state;
  struct text reason;
  assert_int_equal(node_barrier(node, LEVEL_WRITE, 1, NULL, &reason),
                   SQLITE_BUSY_TIMEOUT);
  assert_string_equal(reason.s,
                      "write refused: no leader: no quorum, or an election");
}

/* Published by a step, over by itself, and never without the option. */
static void test_lease(void **state)
{
  struct node *node = *state;
  struct reader reader;
  uint64_t now;
  assert_false(reads_leased(node->map));
  node->identity.lease = true;
  node->identity.election_timeout_ms = PATIENCE_MS;
  reads_publish(node); /* raft has none */
  assert_false(reads_leased(node->map));
  atomic_store(&node->shared->lease_commit, 1);
  atomic_store(&node->shared->lease_until, UINT64_MAX);
  assert_true(reads_leased(node->map));
  /* What it covers must be applied: that is waited for, without a request. */
  atomic_store(&node->shared->lease_commit, 2);
  assert_false(reads_leased(node->map));
  reader = (struct reader){.node = node, .level = LEVEL_LEASE, .ms = 60000};
  pthread_create(&reader.thread, NULL, run_reader, &reader);
  until(node, &node->waiting, 1);
  apply(node, 2);
  assert_int_equal(end(&reader), SQLITE_OK);
  assert_int_equal(node->next_read, 0);
  atomic_store(&node->shared->lease_until, 1);
  assert_false(reads_leased(node->map));
  reads_begin_raft(node);
  assert_int_equal(atomic_load(&node->shared->lease_until), 0);
  assert_true(reads_clock(node, &now));
  assert_true(reads_clock(node, &now));
}

/* A loop that stood still, a machine that slept: each is told once. */
static void test_clock(void **state)
{
  struct node *node = *state;
  struct clock_watch *watch = &node->clock_watch;
  uint64_t now;
  assert_true(reads_clock(node, &now));
  assert_false(watch->known); /* nobody reads by lease */
  node->identity.lease = true;
  node->identity.election_timeout_ms = 60000;
  assert_true(reads_clock(node, &now));
  assert_true(watch->known);
  watch->looked = now - 60001;
  assert_false(reads_clock(node, &now));
  assert_true(reads_clock(node, &now));
  watch->slept_least -= 2000000;
  watch->slept_most -= 2000000;
  assert_false(reads_clock(node, &now));
  assert_true(reads_clock(node, &now));
  watch->slept_least += 9000000000;
  watch->slept_most += 9000000000;
  assert_false(reads_clock(node, &now));
  assert_true(reads_clock(node, &now));
  assert_true(node->events.n >= 2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_one_request_for_all, setup,
                                      teardown),
      cmocka_unit_test_setup_teardown(test_index_not_applied_yet, setup,
                                      teardown),
      cmocka_unit_test_setup_teardown(test_order_of_indexes, setup, teardown),
      cmocka_unit_test_setup_teardown(test_giving_up, setup, teardown),
      cmocka_unit_test_setup_teardown(test_a_node_that_ends, setup, teardown),
      cmocka_unit_test_setup_teardown(test_a_write, setup, teardown),
      cmocka_unit_test_setup_teardown(test_lease, setup, teardown),
      cmocka_unit_test_setup_teardown(test_clock, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
