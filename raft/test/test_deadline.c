/*
** test_deadline.c: a host that sleeps until the next deadline misses nothing.
**
** The same story is lived twice: once every node is ticked every millisecond,
** once only when raft_next_deadline() says so. All messages must be the same,
** at the same times, and so must what the nodes know; so nothing is ever due
** without being announced, and a tick before the time does nothing.
*/
#include "timeline.h"

#define STORY 8000 /* ms */

static uint64_t trace[STORY + 1]; /* of the first life, then compared */
static uint64_t sum;

static void spy(struct world *w, raft_id from, const struct raft_send *send)
{
  const struct raft_message *m = &send->message;

  sum = (sum ^ from ^ (m->to << 8) ^ ((uint64_t)m->type << 16) ^
         (m->term << 24) ^ (m->read << 32) ^ (w->now << 40)) *
        0x100000001b3u;
}

static void event_at(struct world *w, unsigned t)
{
  static const struct raft_change items[] = {{.type = RAFT_DEMOTE, .id = 2}};
  raft_id i, leader = 0;

  for (i = 1; i <= 3; i++)
    if (is_leader(w, i)) leader = i;
  if (t == 7 || t == 1900) read_on(w, 2, t);
  if (t % 1000 == 600 && leader) propose(w, leader, RAFT_COMMIT, 10);
  if (t == 1903 && leader) cut_off(w, leader);
  if (t == 2010 || t == 4321) read_on(w, 3, t);
  if (t == 3505) mend(w);
  if (t == 4307 && leader) w->unreachable[leader][leader % 3 + 1] = true;
  if (t == 4315 && leader) propose(w, leader, RAFT_COMMIT, 10);
  if (t == 4320 && leader) transfer(w, leader, leader % 3 + 1);
  if (t == 5501) mend(w);
  if (t == 6503 && leader) change_all(w, leader, 1, items);
  if (t == 7007 && leader) transfer(w, leader, 0);
}

static bool is_due(struct world *w, raft_id id)
{
  return w->now >= core(w, id)->now + raft_next_deadline(core(w, id));
}

static void live_once(unsigned seed, bool sleeps)
{
  struct world *w = world_prepare(3, 3);
  unsigned t, i;

  w->configuration.members[seed % 3].priority = (uint8_t)(seed % 4 % 3);
  for (i = 1; i <= 3; i++) {
    node(w, i)->options.seed = seed * 10 + i;
    node(w, i)->options.lease = seed % 2;
    if (seed % 3) node(w, i)->options.heartbeat_ms = 60;
    if (seed % 2) node(w, i)->options.hint_jitter_ms = 0;
    start_node(w, i);
  }
  w->spy = spy;
  sum = 0;
  for (t = 0; t <= STORY; t++) {
    pass(w, 1);
    for (i = 1; i <= 3; i++)
      if (!sleeps || is_due(w, i)) tick(w, i);
    settle(w);
    event_at(w, t);
    settle(w);
    for (i = 1; i <= 3; i++)
      sum = (sum ^ node(w, i)->n_reads ^ raft_transferring(core(w, i)) << 8 ^
             (uint64_t)raft_role(core(w, i)) << 16) *
            0x100000001b3u;
    if (!sleeps)
      trace[t] = sum;
    else if (trace[t] != sum)
      fail_msg("seed %u: at %u ms it is another story", seed, t);
  }
  assert_int_not_equal(w->max_committed, 0);
  world_free(w);
}

static void test_sleeping(void **state)
{
  unsigned seed;

  (void)state;
  for (seed = 1; seed <= 12; seed++) {
    live_once(seed, false);
    live_once(seed, true);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sleeping),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
