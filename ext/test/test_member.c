/*
** Who may not come back: what a node makes of configurations that it applies,
** in whatever way and however often it comes by them.
*/
#include "harness.h"

#include "cluster.h"

static struct node *node_make(void)
{
  struct node *node = calloc(1, sizeof(*node));
  assert_non_null(node);
  node_conditions(node);
  return node;
}

static void node_end(struct node *node)
{
  settings_clear(&node->settings);
  free(node);
}

static void add(struct raft_configuration *c, raft_id id, uint8_t role)
{
  struct raft_member *m = &c->members[c->n++];
  m->id = id;
  m->role = role;
  m->outgoing = role == RAFT_LEAVING;
  snprintf(m->name, sizeof(m->name), "n%u", (unsigned)id);
}

/* Voters first to last. */
static struct raft_configuration voters(raft_id first, raft_id last)
{
  struct raft_configuration c = {0};
  for (raft_id id = first; id <= last; id++)
    add(&c, id, RAFT_VOTER);
  return c;
}

static void apply(struct node *node, const struct raft_configuration *c,
                  raft_index index)
{
  pthread_mutex_lock(&node->mutex);
  assert_int_equal(member_apply(node, c, index), 0);
  node->configuration = *c;
  node->configuration_index = index;
  pthread_mutex_unlock(&node->mutex);
}

static bool is_there(struct node *node, const char *what, raft_id id)
{
  char name[40];
  size_t len;
  snprintf(name, sizeof(name), "%s/%016llx", what, (unsigned long long)id);
  return settings_get(&node->settings, name, &len) != NULL;
}

static bool revoked(struct node *node, raft_id id)
{
  return is_there(node, "revoked", id);
}

static enum net_verdict verdict(struct node *node, raft_id id)
{
  char why[100] = "";
  enum net_verdict v = member_verdict(node, id, why, sizeof(why));
  if (v == NET_REVOKED) assert_string_equal(why, "removed from the cluster");
  return v;
}

static uint64_t sum_of(struct node *node)
{
  uint8_t *data;
  size_t len;
  uint64_t sum = 0;
  assert_int_equal(settings_pack(&node->settings, &data, &len), 0);
  for (size_t i = 0; i < len; i++)
    sum = sum * 31 + data[i];
  free(data);
  return sum;
}

/* Not before nobody votes any more as they did with it. */
static void test_joint(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c = voters(1, 3), joint = voters(1, 2);
  (void)state;
  apply(node, &c, 1);
  add(&joint, 3, RAFT_LEAVING);
  apply(node, &joint, 5);
  assert_false(revoked(node, 3));
  c = voters(1, 2);
  apply(node, &c, 6);
  assert_true(revoked(node, 3));
  assert_false(revoked(node, 1));
  assert_false(revoked(node, 2));
  assert_true(node->reconfigured);
  node_end(node);
}

/* A learner needs no joint configuration; one that is not even in the joint one
   of a change with others goes, too. */
static void test_learners(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c = voters(1, 2), joint = voters(1, 1);
  (void)state;
  add(&c, 3, RAFT_LEARNER);
  add(&c, 4, RAFT_LEARNER);
  apply(node, &c, 1);
  c.n--;
  apply(node, &c, 2);
  assert_true(revoked(node, 4));
  assert_false(revoked(node, 3));
  add(&joint, 2, RAFT_LEAVING);
  apply(node, &joint, 3);
  assert_true(revoked(node, 3));
  assert_false(revoked(node, 2));
  node_end(node);
}

/* One whose certificate comes from outside may be a member again. */
static void test_back_again(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c[3] = {voters(1, 3), voters(1, 2), voters(1, 3)};
  (void)state;
  for (unsigned i = 0; i < 3; i++) {
    apply(node, &c[i], i + 1);
    assert_int_equal(revoked(node, 3), i == 1);
  }
  node_end(node);
}

/* As a start does that applies again what a checkpoint had already. */
static void test_applied_twice(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c[4] = {voters(1, 3), voters(1, 2), voters(1, 2),
                                    voters(1, 1)};
  (void)state;
  add(&c[2], 4, RAFT_LEARNER);
  for (unsigned i = 0; i < 4; i++)
    apply(node, &c[i], 10 + i);
  uint64_t sum = sum_of(node);
  assert_true(revoked(node, 2) && revoked(node, 3) && revoked(node, 4));
  for (unsigned from = 0; from < 4; from++) {
    node->configuration = c[from];
    for (unsigned i = from; i < 4; i++)
      apply(node, &c[i], 10 + i);
    assert_int_equal(sum_of(node), sum);
  }
  node_end(node);
}

/* Of too many the oldest go, also when they are applied again. */
static void test_bound(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c = {0};
  (void)state;
  for (unsigned round = 0; round < 2; round++) {
    node->configuration = voters(1, 1);
    for (unsigned i = 0; i < 1100; i++) {
      c = voters(1, 1);
      if (i > 0) add(&c, 5000 - i, RAFT_LEARNER);
      apply(node, &c, 10 + i);
    }
    c = voters(1, 1);
    apply(node, &c, 2000);
    /* 1099 were members, in this order: 4999 first. */
    assert_int_equal(node->settings.n, 1024);
    for (unsigned i = 1; i < 1100; i++)
      assert_int_equal(revoked(node, 5000 - i), i > 1099 - 1024);
  }
  node_end(node);
}

static void test_stay_goes(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c = voters(1, 1);
  (void)state;
  add(&c, 2, RAFT_LEARNER);
  add(&c, 3, RAFT_LEARNER);
  settings_set(&node->settings, "stay/0000000000000002", "\1", 1);
  settings_set(&node->settings, "stay/0000000000000003", "\1", 1);
  apply(node, &c, 1);
  c.n--;
  apply(node, &c, 2);
  assert_true(member_stays(node, 2));
  assert_false(member_stays(node, 3));
  node_end(node);
}

/* Settings that are full of other things keep nobody from being applied. */
static void test_full(void **state)
{
  struct node *node = node_make();
  struct raft_configuration c = voters(1, 2);
  char name[40];
  (void)state;
  for (unsigned i = 0; i < SETTINGS_MAX; i++) {
    snprintf(name, sizeof(name), "revoked/%016x", 100 + i);
    assert_int_equal(settings_set(&node->settings, name, "", 0), 0);
  }
  apply(node, &c, 1);
  c = voters(1, 1);
  apply(node, &c, 2);
  assert_true(revoked(node, 2));
  node_end(node);
}

/* A follower hears whom it does not know, but nobody who was removed. */
static void test_verdict(void **state)
{
  struct node *node = node_make();
  struct raft_options options;
  struct raft_recovered recovered = {.snapshot_index = 1,
                                     .snapshot_term = 1,
                                     .last_index = 1,
                                     .commit = 1,
                                     .term = 1};
  struct raft_configuration c = voters(1, 3);
  struct raft_term_run run = {1, 1};
  (void)state;
  recovered.terms = &run;
  recovered.n_terms = 1;
  recovered.configuration = recovered.previous = c;
  recovered.configuration_index = recovered.previous_index = 1;
  raft_options_defaults(&options);
  options.id = 1;
  assert_int_equal(raft_new(&options, &recovered, 0, &node->raft), 0);
  node->identity.id = 1;
  apply(node, &c, 1);
  assert_int_equal(verdict(node, 9), NET_ALLOWED);
  c = voters(1, 2);
  apply(node, &c, 2);
  assert_int_equal(verdict(node, 2), NET_ALLOWED);
  assert_int_equal(verdict(node, 3), NET_REVOKED);
  raft_free(node->raft);
  node_end(node);
}

static void test_sums(void **state)
{
  struct text text;
  (void)state;
  member_sum(&text, 1, MEMBERS_LEFT);
  assert_string_equal(
      text.s, "1 voter is left: when it is lost nothing can be written");
  member_sum(&text, 2, MEMBERS_ARE);
  assert_string_equal(text.s, "2 voters, both must agree: with one of them "
                              "lost nothing can be written");
  member_sum(&text, 3, MEMBERS_NOW);
  assert_string_equal(text.s,
                      "3 voters now, 2 of them must agree: 1 may be lost");
  member_sum(&text, 4, MEMBERS_LEFT);
  assert_string_equal(text.s,
                      "4 voters are left, 3 of them must agree: 1 may be lost");
  member_sum(&text, 5, MEMBERS_LEFT);
  assert_string_equal(text.s,
                      "5 voters are left, 3 of them must agree: 2 may be lost");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_joint),      cmocka_unit_test(test_learners),
      cmocka_unit_test(test_back_again), cmocka_unit_test(test_applied_twice),
      cmocka_unit_test(test_bound),      cmocka_unit_test(test_stay_goes),
      cmocka_unit_test(test_full),       cmocka_unit_test(test_verdict),
      cmocka_unit_test(test_sums),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
