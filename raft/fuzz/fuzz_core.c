/*
** fuzz_core.c: messages of any kind, from members and strangers, at any moment
** of a node's life.
**
** An input is a list of operations, each a byte and what it needs: see step().
** Messages are made of the input's bytes, with numbers near those that the node
** knows, so that most of them mean something; what the node's own host does is
** done as a host does it. Bit 7 of the first byte: the node reads by lease.
**
** What must hold: no assertion fails (raft_check() looks at the whole node after
** each step); what the node says is valid and crosses the network as it is; it
** never goes back.
*/
#include "../internal.h"
#include "fuzz.h"

#define SELF 1
#define NODES 5 /* 2 and 3 vote, 4 learns, 5 is a stranger */
#define STEPS 400
#define LOADS 16

const char *const fuzz_corpus = "raft/fuzz/corpus/core";

struct host {
  struct raft *raft;
  uint64_t now, seq, durable; /* newest write, newest durable one */
  raft_term term;
  raft_id voted_for;
  raft_index commit;
  struct raft_load loads[LOADS]; /* not answered yet */
  unsigned n_loads;
  raft_id snapshot_to; /* 0: nobody waits for one */
};

/* ---- the node ---------------------------------------------------------- */

static struct raft_configuration make_configuration(unsigned n)
{
  struct raft_configuration c = {.n = n};

  for (unsigned i = 0; i < n; i++) {
    struct raft_member *m = &c.members[i];

    m->id = i + 1;
    m->incarnation = i + 1;
    m->role = i == 3 ? RAFT_LEARNER : RAFT_VOTER;
    snprintf(m->name, sizeof m->name, "n%u", i + 1);
    snprintf(m->address, sizeof m->address, "a:%u", i + 1);
  }
  return c;
}

static struct raft *make_node(bool lease)
{
  static const struct raft_term_run runs[] = {{6, 2}, {8, 3}};
  struct raft_recovered recovered = {.term = 3,
                                     .snapshot_index = 5,
                                     .snapshot_term = 2,
                                     .last_index = 9,
                                     .commit = 6,
                                     .n_terms = 2,
                                     .terms = runs,
                                     .configuration_index = 4,
                                     .configuration = make_configuration(4)};
  struct raft_options options;
  struct raft *raft;

  raft_options_defaults(&options);
  options.id = SELF;
  options.incarnation = SELF;
  options.seed = 1;
  options.tail_bytes = 600; /* so that entries are read back */
  options.message_bytes = 500;
  options.uncommitted_bytes = 4000;
  options.inflight_messages = 4;
  options.inflight_bytes = 1500;
  options.lease = lease;
  if (lease) options.hint_jitter_ms = 0;
  must(raft_new(&options, &recovered, 1000, &raft) == 0);
  return raft;
}

/* ---- effects ----------------------------------------------------------- */

static void check_persist(struct host *h, const struct raft_persist *p)
{
  if (p->seq == 0) return;
  must(p->seq == h->seq + 1);
  h->seq = p->seq;
  must(p->term >= h->term);
  must(p->term > h->term || !h->voted_for || p->voted_for == h->voted_for);
  h->term = p->term;
  h->voted_for = p->voted_for;
  for (unsigned i = 0; i < p->n_entries; i++) {
    must(p->entries[i].index == p->entries[0].index + i);
    must(p->entries[i].index > h->commit && p->entries[i].term <= p->term);
  }
}

static void check_send(const struct host *h, const struct raft_send *send)
{
  const struct raft_message *m = &send->message;
  size_t at = raft_message_head_size(m), size = raft_message_size(m);
  struct raft_message back;
  uint8_t *bytes = malloc(size);

  must(m->from == SELF && m->to != SELF && send->after <= h->seq);
  must(raft_message_valid(m));
  raft_message_encode_head(m, bytes);
  for (uint32_t i = 0; i < m->n_entries; i++) {
    const struct raft_body *body = m->entries[i].body;

    if (body) memcpy(bytes + at, body->data, body->len);
    at += body ? body->len : 0;
  }
  must(raft_message_decode(bytes, size, &back) == 0);
  raft_message_clear(&back);
  free(bytes);
}

static void check_effects(struct host *h, const struct raft_effects *e)
{
  must(e->commit >= h->commit && e->commit <= raft_last(h->raft));
  check_persist(h, &e->persist);
  h->commit = e->commit;
  for (unsigned i = 0; i < e->n_sends; i++)
    check_send(h, &e->sends[i]);
  for (unsigned i = 0; i < e->n_reads; i++)
    must(e->reads[i].status || e->reads[i].index <= RAFT_NUMBER_MAX);
  for (unsigned i = 0; i < e->n_loads; i++) {
    must(e->loads[i].first > 0 && e->loads[i].first <= raft_last(h->raft));
    if (h->n_loads < LOADS) h->loads[h->n_loads++] = e->loads[i];
  }
  if (e->n_snapshots) h->snapshot_to = e->snapshots[0];
}

static void run(struct host *h, struct raft_event *event)
{
  struct raft_effects effects;

  event->now = h->now;
  must(raft_step(h->raft, event, &effects) != RAFT_ENOMEM);
  check_effects(h, &effects);
}

/* ---- what the input makes ---------------------------------------------- */

/* Near a number that the node knows, as a rule. */
static uint64_t near(struct input *in, uint64_t known)
{
  int8_t by = (int8_t)input_byte(in);

  if (by == INT8_MIN) return input_number(in, 8);
  return by < 0 && known < (uint64_t)-by ? 0 : known + (uint64_t)(int64_t)by;
}

static struct raft_body *make_body(struct input *in, uint8_t type)
{
  struct raft_configuration c;
  struct raft_body *body;
  uint8_t kind = input_byte(in);

  if (type == RAFT_CONFIGURATION && kind < 200) {
    c = make_configuration(1 + kind % NODES);
    if (kind & 32) c.members[0].id = 9; /* without this node */
    if (kind & 64) c.members[0].role = RAFT_LEARNER;
    if (kind & 128) c.members[0].outgoing = true;
    return raft_configuration_valid(&c) ? raft_configuration_encode(&c) : NULL;
  }
  if (kind % 4 == 0) return NULL;
  body = raft_body_new(kind);
  must(body);
  memset(body->data, kind, kind);
  raft_body_seal(body);
  return body;
}

static void make_entries(struct input *in, struct raft_message *m,
                         struct raft_entry entries[8])
{
  raft_term term = m->prev_term;

  m->n_entries = input_byte(in) % 9;
  m->entries = entries;
  for (uint32_t i = 0; i < m->n_entries; i++) {
    uint8_t type = input_byte(in);

    if (type & 128) term++;
    entries[i] = (struct raft_entry){.index = m->prev_index + 1 + i,
                                     .term = term ? term : 1,
                                     .type = (uint8_t)(1 + type % 5)};
    entries[i].body = make_body(in, entries[i].type);
  }
}

static void on_message(struct host *h, struct input *in)
{
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE};
  struct raft_entry entries[8];
  struct raft_message m = {.type = (uint8_t)(1 + input_byte(in) % 11)};
  raft_index last = raft_last(h->raft);
  uint8_t flags = input_byte(in);

  m.from = 2 + flags % (NODES - 1);
  m.to = SELF;
  m.incarnation = flags & 128 ? 99 : m.from;
  m.granted = flags >> 3 & 1;
  m.transfer = (flags >> 4 & 1) && m.type == RAFT_VOTE_REQUEST;
  m.term = near(in, h->term);
  m.prev_index = near(in, last);
  m.prev_term = raft_term_at(h->raft, m.prev_index);
  if (flags & 32 || !m.prev_term) m.prev_term = near(in, m.prev_term);
  m.commit = near(in, h->commit);
  m.match = near(in, last);
  m.hint_index = near(in, last);
  m.hint_term = near(in, h->term);
  m.read = near(in, h->raft->read_round);
  if (flags & 64) m.read = near(in, h->raft->prevote_round);
  m.read_index = near(in, h->commit);
  if (m.type == RAFT_APPEND_REQUEST) make_entries(in, &m, entries);
  event.u.message = &m;
  run(h, &event);
  for (uint32_t i = 0; i < m.n_entries; i++)
    raft_body_unref(entries[i].body);
}

static void on_propose(struct host *h, struct input *in)
{
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE};
  uint8_t type = input_byte(in);
  struct raft_proposal item = {.type = (uint8_t)(3 + type % 3)};

  item.body = make_body(in, item.type);
  if (!item.body) return;
  event.u.propose.n = 1;
  event.u.propose.items = &item;
  run(h, &event);
  raft_body_unref(item.body);
}

static void on_change(struct host *h, struct input *in)
{
  struct raft_event event = {.type = RAFT_EVENT_CHANGE};
  struct raft_configuration c = make_configuration(NODES);
  uint8_t what = input_byte(in);
  struct raft_change change = {.type = (uint8_t)(1 + what % 5),
                               .id = 1 + what / 5 % NODES};

  c.members[4].role = RAFT_LEARNER;
  change.member = &c.members[change.id - 1];
  event.u.change.n = 1;
  event.u.change.items = &change;
  run(h, &event);
}

/* The host reads entries back that it was asked for. */
static void on_loaded(struct host *h, bool fails)
{
  struct raft_event event = {.type = RAFT_EVENT_LOADED};
  struct raft_entry e = {.type = RAFT_COMMIT};
  struct raft_load load;

  if (h->n_loads == 0) return;
  load = h->loads[--h->n_loads];
  e.index = load.first;
  e.term = raft_term_at(h->raft, load.first);
  event.u.loaded.peer = load.peer;
  event.u.loaded.first = load.first;
  event.u.loaded.entries = &e;
  event.u.loaded.n = fails || e.term == 0 ? 0 : 1;
  run(h, &event);
}

static void on_installed(struct host *h, struct input *in)
{
  struct raft_configuration c = make_configuration(4);
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};

  if (raft_role(h->raft) == RAFT_LEADER) return; /* it takes none */
  event.u.snapshot_installed.index = h->commit + 1 + input_byte(in) % 8;
  event.u.snapshot_installed.term = h->term;
  event.u.snapshot_installed.configuration = &c;
  run(h, &event);
}

static void on_snapshot_sent(struct host *h, uint8_t op)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};

  event.u.snapshot_sent.peer = op & 16 ? 2 : h->snapshot_to;
  event.u.snapshot_sent.index = h->commit;
  event.u.snapshot_sent.ok = op & 32;
  h->snapshot_to = 0;
  run(h, &event);
}

static void on_offer(struct host *h, struct input *in)
{
  struct raft_snapshot_in got = {0};
  struct raft_snapshot_tag tag = {.index = near(in, raft_last(h->raft)),
                                  .term = near(in, h->term),
                                  .bytes = input_number(in, 2)};
  raft_term term = near(in, h->term);
  uint64_t skip, offset = input_number(in, 2), len = input_number(in, 2);

  raft_snapshot_offer(h->raft, &got, term, &tag);
  raft_snapshot_chunk(h->raft, &got, term, &tag, offset, len, &skip);
  must(got.position <= got.tag.bytes);
}

static void on_event(struct host *h, struct input *in, uint8_t op)
{
  struct raft_event event = {0};

  switch (op % 16) {
  case 8:
    event.type = RAFT_EVENT_READ;
    event.u.read.number = h->now;
    event.u.read.lease = op & 16;
    break;
  case 9:
    event.type = RAFT_EVENT_TRANSFER;
    event.u.transfer_to = op / 16 % NODES;
    break;
  case 10:
    event.type = op & 16 ? RAFT_EVENT_PEER_UP : RAFT_EVENT_PEER_DOWN;
    event.u.peer = 2 + input_byte(in) % (NODES - 1);
    break;
  case 11:
    event.type = op & 16 ? RAFT_EVENT_CLOCK_DOUBT : RAFT_EVENT_TICK;
    break;
  default:
    event.type = op == 15 ? RAFT_EVENT_DISK_FAILED : RAFT_EVENT_PERSISTED;
    if (h->durable < h->seq) h->durable += 1 + op / 16 % (h->seq - h->durable);
    event.u.seq = h->durable;
    if (op != 15 && h->durable == 0) return;
    break;
  }
  run(h, &event);
}

static void step(struct host *h, struct input *in)
{
  struct raft_event tick = {.type = RAFT_EVENT_TICK};
  uint8_t op = input_byte(in);

  switch (op % 16) {
  case 0:
    h->now += input_byte(in) * UINT64_C(10);
    run(h, &tick);
    break;
  case 1:
  case 2: on_message(h, in); break;
  case 3: on_propose(h, in); break;
  case 4: on_change(h, in); break;
  case 5: on_loaded(h, op & 16); break;
  case 6:
    if (op & 128)
      on_installed(h, in);
    else
      on_snapshot_sent(h, op);
    break;
  case 7: on_offer(h, in); break;
  default: on_event(h, in, op); break;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct input in = input_of(data, size);
  bool lease = input_byte(&in) & 128;
  struct host h = {.raft = make_node(lease), .now = 1000, .term = 3};

  h.commit = 6;
  for (unsigned i = 0; i < STEPS && input_left(&in); i++)
    step(&h, &in);
  raft_free(h.raft);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

struct script {
  uint8_t bytes[512];
  size_t n;
};

static void put(struct script *s, uint8_t op)
{
  must(s->n < sizeof s->bytes);
  s->bytes[s->n++] = op;
}

/* A message of another node; what is not given is what the node has. */
static void say(struct script *s, uint8_t type, uint8_t flags, int8_t term,
                int8_t prev, int8_t match)
{
  put(s, 1);
  put(s, (uint8_t)(type - 1));
  put(s, flags);
  put(s, (uint8_t)term);
  put(s, (uint8_t)prev);
  put(s, 0);
  put(s, (uint8_t)match);
  put(s, (uint8_t)match); /* the hint of a rejection */
  for (unsigned i = 0; i < 3; i++)
    put(s, 0);
}

static void pass_time(struct script *s, uint8_t tens)
{
  put(s, 0);
  put(s, tens);
}

/* Elected, with the vote of 2. */
static struct script elected(void)
{
  struct script s = {.n = 1};

  pass_time(&s, 150);
  say(&s, RAFT_PREVOTE_RESPONSE, 8 | 64, 0, 0, 0);
  put(&s, 12);
  say(&s, RAFT_VOTE_RESPONSE, 8, 0, 0, 0);
  put(&s, 12);
  return s;
}

/* 2 has everything; entries are proposed, and taken by 2, 3 and 4. */
static struct script agreed(void)
{
  struct script s = elected();

  say(&s, RAFT_APPEND_RESPONSE, 8, 0, 0, 0);
  for (uint8_t i = 0; i < 3; i++) {
    put(&s, 3);
    put(&s, 1);
    put(&s, (uint8_t)(101 + i));
    put(&s, 12);
    say(&s, RAFT_APPEND_RESPONSE, 8 | i, 0, 0, 0);
    say(&s, RAFT_HEARTBEAT_RESPONSE, i, 0, 0, 0);
  }
  return s;
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  /* Follows 2, which appends, and is contradicted by 3. */
  static const uint8_t follows[] = {
      0, 1, 4, 0, 1, 0,  0, 0,   0,   0, 0, 0, 3, 3, 9, 131, 5, 2, 200, 12,
      1, 6, 0, 0, 0, 3,  0, 0,   0,   0, 0, 1, 4, 1, 0, 253, 0, 0, 0,   0,
      0, 0, 1, 3, 7, 12, 0, 200, 134, 2, 7, 1, 0, 9, 0, 0,   1, 2, 0};
  struct script s = elected(), leads = agreed();

  seed(follows, sizeof follows);
  seed(s.bytes, s.n);
  seed(leads.bytes, leads.n);
  s = leads; /* 3 lacks entries, some of which are not in memory any more */
  say(&s, RAFT_APPEND_RESPONSE, 1, 0, 0, -6);
  put(&s, 5);
  pass_time(&s, 6);
  say(&s, RAFT_HEARTBEAT_RESPONSE, 1, 0, 0, -6);
  put(&s, 5);
  say(&s, RAFT_APPEND_RESPONSE, 1 | 8, 0, 0, -3);
  seed(s.bytes, s.n);
  s = elected(); /* the same, of what was there before */
  say(&s, RAFT_APPEND_RESPONSE, 1, 0, -1, -3);
  put(&s, 5);
  say(&s, RAFT_APPEND_RESPONSE, 1 | 8, 0, 0, -2);
  put(&s, 5 + 16);
  say(&s, RAFT_HEARTBEAT_RESPONSE, 1, 0, 0, -2);
  put(&s, 5);
  seed(s.bytes, s.n);
  s = leads; /* reads, hands over */
  put(&s, 8);
  pass_time(&s, 6);
  say(&s, RAFT_HEARTBEAT_RESPONSE, 0, 0, 0, 0);
  put(&s, 9 + 32);
  pass_time(&s, 6);
  say(&s, RAFT_VOTE_REQUEST, 16, 1, 0, 0);
  seed(s.bytes, s.n);
  for (uint8_t change = 0; change < 25; change++) {
    s = leads;
    put(&s, 4);
    put(&s, change);
    put(&s, 12);
    say(&s, RAFT_APPEND_RESPONSE, 8, 0, 0, 0);
    say(&s, RAFT_APPEND_RESPONSE, 8 | 1, 0, 0, 0);
    put(&s, 12);
    say(&s, RAFT_APPEND_RESPONSE, 8, 0, 0, 0);
    seed(s.bytes, s.n);
  }
  pass_time(&leads, 250); /* nobody answers any more */
  pass_time(&leads, 250);
  seed(leads.bytes, leads.n);
}
