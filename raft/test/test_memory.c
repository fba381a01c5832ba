/*
** test_memory.c: every allocation of the core is made to fail once.
**
** malloc and its like are replaced by ones that count down. A scenario is run
** again and again, the failure one allocation later each time, until it runs
** through. A node that ran out of memory says so, says nothing else, and can
** be freed. Sanitizers replace malloc themselves; there, only the scenario
** runs.
*/
#include "timeline.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CAN_FAIL 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CAN_FAIL 0
#endif
#endif
#ifndef CAN_FAIL
#define CAN_FAIL 1
#endif

static int64_t countdown = -1; /* fails when it gets to 0; < 0: never */
static bool fired;

#if CAN_FAIL
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

static bool fails(void)
{
  if (countdown < 0 || countdown-- > 0) return false;
  fired = true;
  return true;
}

__attribute__((visibility("default"))) void *malloc(size_t size)
{
  return fails() ? NULL : __libc_malloc(size);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t size)
{
  return fails() ? NULL : __libc_calloc(n, size);
}

__attribute__((visibility("default"))) void *realloc(void *p, size_t size)
{
  return fails() ? NULL : __libc_realloc(p, size);
}
#endif

static struct raft_effects effects;
static uint64_t written; /* newest write that is not durable; 0: none */

/* One step in which memory may run out. */
static int try(struct raft *r, struct raft_event *event)
{
  int rc = raft_step(r, event, &effects);

  if (effects.persist.seq > 0) written = effects.persist.seq;
  if (rc != RAFT_ENOMEM) return rc;
  assert_true(fired);
  assert_int_equal(effects.persist.seq, 0);
  assert_int_equal(effects.n_sends, 0);
  assert_int_equal(effects.n_reads, 0);
  event->type = RAFT_EVENT_TICK; /* it stays that way */
  assert_int_equal(raft_step(r, event, &effects), RAFT_ENOMEM);
  return rc;
}

static int try_message(struct raft *r, struct raft_message m)
{
  struct raft_event event = {.type = RAFT_EVENT_MESSAGE, .now = 2000};

  m.from = 2;
  m.to = 1;
  m.incarnation = 102;
  event.u.message = &m;
  return try(r, &event);
}

static int try_persisted(struct raft *r)
{
  struct raft_event event = {.type = RAFT_EVENT_PERSISTED, .now = 2000};

  event.u.seq = written;
  written = 0;
  return event.u.seq ? try(r, &event) : 0;
}

/* A follower takes entries and a configuration, then is elected. */
static int follow_and_lead(struct raft *r, struct raft_entry *entries)
{
  struct raft_event event = {.type = RAFT_EVENT_TICK, .now = 5000};
  int rc = try_message(r, (struct raft_message){.type = RAFT_APPEND_REQUEST,
                                                .term = 1,
                                                .n_entries = 40,
                                                .entries = entries});

  if (!rc) rc = try_persisted(r);
  if (!rc) rc = try(r, &event);
  if (!rc)
    rc = try_message(
        r, (struct raft_message){.type = RAFT_PREVOTE_RESPONSE,
                                 .term = 1,
                                 .granted = true,
                                 .read = effects.sends[0].message.read});
  if (!rc) rc = try_persisted(r);
  if (!rc)
    rc = try_message(r, (struct raft_message){.type = RAFT_VOTE_RESPONSE,
                                              .term = 2,
                                              .granted = true});
  if (!rc) assert_int_equal(raft_role(r), RAFT_LEADER);
  if (!rc) rc = try_persisted(r);
  return rc;
}

/* A leader commits, proposes, adds a member, reads. */
static int lead(struct raft *r, struct raft_body *body)
{
  struct raft_proposal item = {.type = RAFT_COMMIT, .body = body};
  struct raft_member member = {.id = 4};
  struct raft_event event = {.type = RAFT_EVENT_PROPOSE, .now = 5001};
  struct raft_change change = {.type = RAFT_ADD_LEARNER, .member = &member};
  int rc, i;

  rc = try_message(r, (struct raft_message){.type = RAFT_APPEND_RESPONSE,
                                            .term = 2,
                                            .granted = true,
                                            .match = raft_last(r)});
  event.u.propose.n = 1;
  event.u.propose.items = &item;
  event.u.propose.term = 0;
  for (i = 0; !rc && i < 40; i++)
    rc = try(r, &event);
  event = (struct raft_event){.type = RAFT_EVENT_CHANGE, .now = 5002};
  event.u.change.n = 1;
  event.u.change.items = &change;
  if (!rc) rc = try(r, &event);
  event = (struct raft_event){.type = RAFT_EVENT_READ, .now = 5003};
  for (i = 0; !rc && i < 40; i++)
    rc = try(r, &event);
  if (!rc) rc = try_persisted(r);
  return rc;
}

/* Everything so far is acknowledged by 2, and durable here. */
static int agree(struct raft *r)
{
  int rc = try_persisted(r);

  if (rc) return rc;
  return try_message(r, (struct raft_message){.type = RAFT_APPEND_RESPONSE,
                                              .term = 2,
                                              .granted = true,
                                              .match = raft_last(r)});
}

/* 3 is removed by way of a joint configuration, then 2 is to lead. */
static int change_and_hand_over(struct raft *r)
{
  struct raft_change change = {.type = RAFT_REMOVE, .id = 3};
  struct raft_event event = {.type = RAFT_EVENT_CHANGE, .now = 5004};
  int rc = agree(r);

  event.u.change.n = 1;
  event.u.change.items = &change;
  if (!rc) rc = try(r, &event);
  if (!rc) rc = agree(r); /* and now it is left */
  if (!rc) assert_false(raft_configuration_joint(raft_configuration(r, NULL)));
  if (!rc) rc = agree(r);
  event = (struct raft_event){.type = RAFT_EVENT_TRANSFER, .now = 5005};
  event.u.transfer_to = 2;
  if (!rc) rc = try(r, &event);
  if (!rc) assert_int_equal(raft_transferring(r), 2);
  event = (struct raft_event){.type = RAFT_EVENT_TICK, .now = 9999};
  if (!rc) rc = try(r, &event);
  return rc;
}

static int scenario(struct raft_entry *entries, struct raft_body *body)
{
  struct raft_recovered *rec = NULL;
  struct raft_options options;
  struct raft *r = NULL;
  int64_t saved = countdown;
  int rc;

  countdown = -1;
  written = 0;
  rec = calloc(1, sizeof *rec);
  rec->configuration = world_members(3);
  countdown = saved;
  raft_options_defaults(&options);
  options.id = 1;
  options.incarnation = 101;
  rc = raft_new(&options, rec, 1000, &r);
  if (rc) assert_null(r);
  if (!rc) rc = follow_and_lead(r, entries);
  if (!rc) rc = lead(r, body);
  if (!rc) rc = change_and_hand_over(r);
  countdown = -1;
  raft_free(r);
  free(rec);
  return rc;
}

static void test_out_of_memory(void **state)
{
  struct raft_configuration c = world_members(3);
  struct raft_body *body = raft_body_new(100);
  struct raft_entry entries[40];
  int64_t i;
  int rc;

  (void)state;
  memset(body->data, 0, 100);
  raft_body_seal(body);
  for (i = 0; i < 40; i++)
    entries[i] = (struct raft_entry){.index = (raft_index)i + 1,
                                     .term = 1,
                                     .type = RAFT_COMMIT,
                                     .body = body};
  entries[5].type = RAFT_CONFIGURATION;
  entries[5].body = raft_configuration_encode(&c);
  for (i = 0;; i++) {
    fired = false;
    countdown = CAN_FAIL ? i : -1;
    rc = scenario(entries, body);
    if (!fired) break;
    assert_int_equal(rc, RAFT_ENOMEM);
    assert_int_equal(body->refs, 1); /* nothing leaked */
  }
  assert_int_equal(rc, 0);
  assert_true(!CAN_FAIL || i > 15);
  assert_int_equal(body->refs, 1);
  raft_body_unref(entries[5].body);
  raft_body_unref(body);
}

static void test_decode_out_of_memory(void **state)
{
  struct raft_entry entry = {.index = 1, .term = 1, .type = RAFT_COMMIT};
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = 1,
                           .to = 2,
                           .term = 1,
                           .n_entries = 1,
                           .entries = &entry};
  struct raft_message back;
  struct packet p;
  int64_t i;
  int rc;

  (void)state;
  entry.body = raft_body_new(10);
  memset(entry.body->data, 0, 10);
  raft_body_seal(entry.body);
  p = packet_make(&m);
  for (i = 0;; i++) {
    fired = false;
    countdown = CAN_FAIL ? i : -1;
    rc = raft_message_decode(p.bytes, p.len, &back);
    countdown = -1;
    if (!fired) break;
    assert_int_equal(rc, RAFT_ENOMEM);
    assert_null(back.entries);
  }
  assert_int_equal(rc, 0);
  assert_true(!CAN_FAIL || i == 2);
  raft_message_clear(&back);
  free(p.bytes);
  raft_body_unref(entry.body);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_out_of_memory),
      cmocka_unit_test(test_decode_out_of_memory),
  };

  return cmocka_run_group_tests(tests, NULL, NULL);
}
