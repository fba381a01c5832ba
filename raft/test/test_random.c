/*
** test_random.c: some thousand random events a seed, then peace.
**
** The network loses, repeats and reorders; nodes crash and lose what was not
** durable; disks are slow; windows, messages and tails are so small that
** loads and snapshots are common; members come and go, several at a time;
** leadership is handed over; some clusters read by leases. timeline.h watches
** elections, commits and quorums at every step; here are added log matching
** (I3), linearizable reads (I14), convergence after faults have stopped (I16)
** and that a seed gives one trace (I15).
*/
#include "timeline.h"

#define STEPS 40000
#define READS 100000

struct chaos {
  struct world *w;
  uint64_t state;
  unsigned n_snapshots[NODES], n_reads[NODES];
  raft_index asked[READS]; /* committed when the read was asked */
  uint64_t n_asked;
  unsigned elections, changes, joint, transfers, answers, installs, loads;
  bool leases, priorities;
};

static uint64_t trace;

static void spy(struct world *w, raft_id from, const struct raft_send *send)
{
  const struct raft_message *m = &send->message;

  trace = (trace ^ from ^ (m->to << 8) ^ ((uint64_t)m->type << 16) ^
           (m->term << 24) ^ (m->prev_index << 40) ^ (send->after << 50)) *
          0x100000001b3u;
  /* What must be durable before it leaves (rule 1 of the README). */
  if (m->type == RAFT_APPEND_RESPONSE && m->granted &&
      send->after <= node(w, from)->durable_seq)
    assert_true(m->match <= raft_durable(core(w, from)));
  assert_true(m->type != RAFT_HEARTBEAT_RESPONSE ||
              m->match <= raft_durable(core(w, from)));
}

static uint64_t pick(struct chaos *c, uint64_t n)
{
  uint64_t x = c->state;

  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  c->state = x;
  return (x >> 11) % n;
}

static bool up(struct chaos *c, raft_id id)
{
  return core(c->w, id) != NULL;
}

/* ---- what a host does --------------------------------------------------- */

static const struct raft_configuration *configuration_at(struct world *w,
                                                         raft_id id,
                                                         raft_index index)
{
  static struct raft_configuration c;
  struct node *n = node(w, id);

  for (; index > n->snapshot; index--)
    if (n->disk[index].type == RAFT_CONFIGURATION) {
      assert_int_equal(raft_configuration_decode(n->disk[index].body->data,
                                                 n->disk[index].body->len, &c),
                       0);
      return &c;
    }
  return n->snapshot ? &n->snapshot_configuration : &w->configuration;
}

static void install(struct world *w, raft_id id, raft_index index,
                    raft_term term, const struct raft_configuration *c)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct node *n = node(w, id);

  persist(w, id);
  if (index <= n->snapshot) return;
  n->snapshot_configuration = *c;
  if (!on_disk(w, id, index, term)) n->last = index;
  n->snapshot = index;
  n->snapshot_term = term;
  event.u.snapshot_installed.index = index;
  event.u.snapshot_installed.term = term;
  event.u.snapshot_installed.configuration = &n->snapshot_configuration;
  assert_int_equal(step(w, id, &event), 0);
}

/* A checkpoint of its own, of something committed and durable. */
static void checkpoint(struct chaos *c, raft_id id)
{
  struct node *n = node(c->w, id);
  struct raft_configuration configuration;
  raft_index index = n->commit < n->last ? n->commit : n->last;

  persist(c->w, id);
  if (index > n->last || index <= n->snapshot) return;
  index = n->snapshot + 1 + pick(c, index - n->snapshot);
  if (raft_term_at(n->raft, index) != n->disk[index].term) return;
  configuration = *configuration_at(c->w, id, index);
  install(c->w, id, index, n->disk[index].term, &configuration);
}

static void answer_snapshot(struct chaos *c, raft_id id)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  struct node *n = node(c->w, id);
  raft_id to;

  if (c->n_snapshots[id] >= n->n_snapshots) return;
  to = n->snapshots[c->n_snapshots[id]++ % 64];
  event.u.snapshot_sent.peer = to;
  event.u.snapshot_sent.index = n->snapshot;
  event.u.snapshot_sent.ok = up(c, to) && pick(c, 4);
  if (event.u.snapshot_sent.ok) {
    persist(c->w, to);
    /* A host does not go back to an older snapshot. */
    if (n->snapshot > node(c->w, to)->commit)
      install(c->w, to, n->snapshot, n->snapshot_term,
              &n->snapshot_configuration);
    c->installs++;
  }
  step(c->w, id, &event);
}

static void look_at_reads(struct chaos *c, raft_id id)
{
  struct node *n = node(c->w, id);
  const struct raft_read_result *result;

  for (; c->n_reads[id] < n->n_reads; c->n_reads[id]++) {
    result = &n->reads[c->n_reads[id] % 4096];
    if (result->status) continue;
    assert_true(result->index >= c->asked[result->read]); /* I14 */
    c->answers++;
  }
}

/* ---- what may happen ----------------------------------------------------- */

static void some_message(struct chaos *c)
{
  struct world *w = c->w;
  struct packet packet, copy;
  uint64_t what = pick(c, 20);

  if (w->n_net == 0) return;
  packet = net_take(w, (unsigned)pick(c, w->n_net > 8 ? 8 : w->n_net));
  if (what == 0 || !up(c, packet.to)) {
    free(packet.bytes);
    return;
  }
  if (what == 1) {
    copy = packet;
    copy.bytes = malloc(packet.len);
    memcpy(copy.bytes, packet.bytes, packet.len);
    net_add(w, copy);
  }
  receive(w, packet);
}

/* A list of changes, most of them impossible together. */
static void some_change(struct chaos *c, raft_id id)
{
  struct raft_member members[3];
  struct raft_change items[3];
  const struct raft_member *known;
  unsigned n = pick(c, 3) ? 1 : 1 + (unsigned)pick(c, 3), i;

  if (!is_leader(c->w, id)) return;
  for (i = 0; i < n; i++) {
    items[i].type = (uint8_t)(1 + pick(c, 5));
    items[i].id = 1 + pick(c, c->w->n);
    items[i].member = &members[i];
    known = raft_configuration_find(raft_configuration(core(c->w, id), NULL),
                                    items[i].id);
    memset(&members[i], 0, sizeof members[i]);
    members[i].id = items[i].id;
    members[i].incarnation = 100 + items[i].id;
    members[i].role = known ? known->role : RAFT_LEARNER;
    if (c->priorities) members[i].priority = (uint8_t)pick(c, 3);
  }
  if (change_all(c->w, id, n, items) != 0) return;
  c->changes++;
  c->joint += is_joint(c->w, id);
}

static void some_transfer(struct chaos *c, raft_id id)
{
  if (transfer(c->w, id, pick(c, c->w->n + 1)) == 0) c->transfers++;
}

static void crash_or_start(struct chaos *c, raft_id id)
{
  if (!up(c, id)) {
    start_node(c->w, id);
    return;
  }
  if (pick(c, 3)) return;
  crash(c->w, id);
  look_at_reads(c, id);
  c->n_snapshots[id] = node(c->w, id)->n_snapshots;
}

static void cut_or_heal(struct chaos *c, raft_id id)
{
  unsigned i;
  bool cut = pick(c, 3) == 0;

  for (i = 1; i <= c->w->n; i++) {
    c->w->unreachable[id][i] = cut && pick(c, 2);
    c->w->unreachable[i][id] = cut && pick(c, 2);
  }
}

static void ask_read(struct chaos *c, raft_id id)
{
  if (c->n_asked == READS) return;
  c->asked[c->n_asked] = c->w->max_committed;
  if (c->leases && pick(c, 2))
    read_by_lease(c->w, id, c->n_asked++);
  else
    read_on(c->w, id, c->n_asked++);
}

static void something(struct chaos *c)
{
  raft_id id = 1 + pick(c, c->w->n);
  uint64_t what = pick(c, 1000);

  if (what < 500) {
    some_message(c);
  } else if (!up(c, id)) {
    if (what > 950) crash_or_start(c, id);
  } else if (what < 650) {
    pass(c->w, pick(c, 15));
    tick(c->w, id);
  } else if (what < 750) {
    if (node(c->w, id)->n_writes > 0) persist_one(c->w, id);
  } else if (what < 850) {
    propose(c->w, id, RAFT_COMMIT, 8 + pick(c, 60));
  } else if (what < 890) {
    ask_read(c, id);
  } else if (what < 920) {
    if (answer_load(c->w, id, (unsigned)pick(c, 9))) c->loads++;
  } else if (what < 935) {
    answer_snapshot(c, id);
  } else if (what < 945) {
    checkpoint(c, id);
  } else if (what < 960) {
    some_change(c, id);
  } else if (what < 966) {
    cut_or_heal(c, id);
  } else if (what < 968) {
    some_transfer(c, id);
  } else if (what < 985) {
    peer_event(c->w, id, pick(c, 2) ? RAFT_EVENT_PEER_UP : RAFT_EVENT_PEER_DOWN,
               1 + pick(c, c->w->n));
  } else {
    crash_or_start(c, id);
  }
  if (up(c, id)) look_at_reads(c, id);
}

/* ---- peace --------------------------------------------------------------- */

static raft_id leader_of(struct world *w)
{
  raft_term term, best = 0;
  raft_id leader = 0;
  unsigned i;
  bool leads;

  for (i = 1; i <= w->n; i++) {
    raft_state(core(w, i), &term, &leads);
    if (leads && term > best) {
      best = term;
      leader = i;
    }
  }
  return leader;
}

static void heal(struct chaos *c)
{
  unsigned i;

  c->w->no_loads = false;
  memset(c->w->unreachable, 0, sizeof c->w->unreachable);
  for (i = 1; i <= c->w->n; i++) {
    if (!up(c, i)) start_node(c->w, i);
    persist(c->w, i);
    node(c->w, i)->prompt = true;
  }
}

static void live_on(struct chaos *c, unsigned ms)
{
  unsigned t, i;

  for (t = 0; t < ms; t += 10) {
    pass(c->w, 10);
    for (i = 1; i <= c->w->n; i++) {
      tick(c->w, i);
      answer_snapshot(c, i);
    }
    settle(c->w);
  }
}

static bool same_logs(struct world *w, raft_id a, raft_id b)
{
  struct node *x = node(w, a), *y = node(w, b);
  raft_index i = x->last < y->last ? x->last : y->last;
  bool equal = false;

  for (; i > x->snapshot && i > y->snapshot; i--) {
    if (x->disk[i].term == y->disk[i].term) equal = true;
    if (equal &&
        (x->disk[i].term != y->disk[i].term ||
         x->disk[i].type != y->disk[i].type ||
         stored_sum(0, x->disk[i].body) != stored_sum(0, y->disk[i].body)))
      return false; /* I3 */
  }
  return true;
}

static void check_logs(struct world *w)
{
  unsigned i, j;

  for (i = 1; i <= w->n; i++)
    for (j = i + 1; j <= w->n; j++)
      assert_true(same_logs(w, i, j));
}

/* I16: a leader, a fresh write, a fresh read, and all members the same. */
static void check_peace(struct chaos *c)
{
  const struct raft_configuration *members;
  struct world *w = c->w;
  raft_id leader;
  unsigned i;

  heal(c);
  live_on(c, 10 * 300); /* who should not lead takes up to three timeouts */
  leader = leader_of(w);
  assert_int_not_equal(leader, 0);
  assert_int_equal(propose(w, leader, RAFT_COMMIT, 9), 0);
  live_on(c, 400);
  assert_int_equal(leader, leader_of(w));
  ask_read(c, leader);
  settle(w);
  assert_int_equal(
      node(w, leader)->reads[(node(w, leader)->n_reads - 1) % 4096].status, 0);
  look_at_reads(c, leader);
  live_on(c, 1000);
  assert_false(is_joint(w, leader));
  members = raft_configuration(core(w, leader), NULL);
  for (i = 0; i < members->n; i++)
    assert_int_equal(raft_commit(core(w, members->members[i].id)),
                     raft_last(core(w, leader)));
  assert_int_equal(w->max_committed, raft_last(core(w, leader)));
  check_logs(w);
}

/* ---- runs --------------------------------------------------------------- */

static struct chaos *chaos_new(uint64_t seed, unsigned n, unsigned voters)
{
  struct chaos *c = calloc(1, sizeof *c);
  struct raft_options *options;
  unsigned i;

  trace = 0;
  c->state = seed * 0x9e3779b97f4a7c15u + 1;
  c->w = world_prepare(n, voters);
  c->w->spy = spy;
  c->w->no_loads = true;
  c->leases = seed % 3 == 1;
  c->priorities = seed % 7 < 3;
  for (i = 1; i <= n; i++) {
    options = &node(c->w, i)->options;
    options->seed = seed * 100 + i;
    options->heartbeat_ms = 20;
    options->election_timeout_ms = 100;
    options->tail_bytes = 600;
    options->message_bytes = 150;
    options->inflight_messages = 4;
    options->inflight_bytes = 400;
    options->uncommitted_bytes = 1000;
    options->lease = c->leases;
    if (seed % 5 == 0 || c->leases) options->hint_jitter_ms = 0;
    if (seed % 5 == 1) options->tail_bytes = 1; /* everything is loaded */
    if (seed % 5 == 2) options->inflight_messages = 1;
    if (seed % 5 == 3) { /* nothing is ever in the way */
      options->tail_bytes = options->inflight_bytes = 1u << 20;
      options->inflight_messages = 64;
    }
    node(c->w, i)->prompt = false;
    start_node(c->w, i);
  }
  return c;
}

static uint64_t run(uint64_t seed, unsigned n, unsigned voters, bool verbose)
{
  struct chaos *c = chaos_new(seed, n, voters);
  uint64_t result;
  unsigned i;

  for (i = 0; i < STEPS; i++) {
    something(c);
    if (i % 500 == 0) check_logs(c->w);
  }
  check_peace(c);
  for (i = 0; i < LOG_MAX; i++)
    c->elections += c->w->leaders[i] != 0;
  if (verbose)
    printf("seed %d: %d committed, %u leaders, %u changes, %u joint, "
           "%u transfers, %u reads, %u snapshots, %u loads\n",
           (int)seed, (int)c->w->max_committed, c->elections, c->changes,
           c->joint, c->transfers, c->answers, c->installs, c->loads);
  result = trace;
  world_free(c->w);
  free(c);
  return result;
}

static void test_random(void **state)
{
  uint64_t first = 1, last = 40, seed;
  const char *only = getenv("RAFT_TEST_SEED");
  const char *many = getenv("RAFT_TEST_SEEDS");

  (void)state;
  if (only) first = last = strtoull(only, NULL, 10);
  if (many) last = strtoull(many, NULL, 10);
  for (seed = first; seed <= last; seed++) {
    print_message("seed %d\n", (int)seed);
    run(seed, seed % 3 == 0 ? 3 : 5,
        seed % 4 == 0 ? 5 - 2 * (seed % 3 == 0) : 3, true);
  }
}

static void test_one_trace(void **state)
{
  (void)state;
  assert_int_equal(run(7, 5, 3, false), run(7, 5, 3, false));
  assert_int_not_equal(run(7, 5, 3, false), run(8, 5, 3, false));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_random),
      cmocka_unit_test(test_one_trace),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
