/*
** quorate_recover(): what is known of other nodes' entries, and what is kept of
** a log that nobody agrees on any more.
*/
#include "nodes.h"

#include "cluster.h"

#define ELECTION_MS 1000
#define ACCEPT "accept-data-loss"

static char *recover(const struct nodes *nodes, unsigned i, const char *word,
                     char **error)
{
  sqlite3 *memory = NULL;
  sqlite3_open(":memory:", &memory);
  char *said = nodes_ask(memory,
                         sqlite3_mprintf("SELECT quorate_recover(%Q, %Q)",
                                         nodes_path(nodes, i).s, word),
                         error);
  sqlite3_close(memory);
  return said;
}

/* It is refused, or done, and says this. */
static void says(const struct nodes *nodes, unsigned i, const char *word,
                 bool done, const char *what)
{
  char *error, *said = recover(nodes, i, word, &error);
  if (done != (said != NULL)) fail_msg("%s", error ? error : said);
  if (strstr(said ? said : error, what) == NULL)
    fail_msg("%s: not in: %s", what, said ? said : error);
  free(said);
  free(error);
}

static struct path dir_of(const struct nodes *nodes, unsigned i)
{
  struct path dir = nodes_path(nodes, i);
  strcat(dir.s, "-quorate");
  return dir;
}

/* ---- what was heard ---------------------------------------------------- */

static bool heard(const struct nodes *nodes, unsigned i,
                  struct control_heard *out)
{
  struct control_peek peek;
  struct identity identity;
  struct text error;
  assert_int_equal(identity_read(dir_of(nodes, i).s, &identity, &error), 0);
  assert_int_equal(control_peek(&io_posix, dir_of(nodes, i).s, &peek), 0);
  bool any = heard_newest(peek.heard, identity.cluster, out);
  /* Another cluster's tells nothing. */
  assert_false(heard_newest(peek.heard, identity.cluster + 1,
                            &(struct control_heard){0}));
  identity_clear(&identity);
  return any;
}

static bool heard_of(const struct nodes *nodes, unsigned i, raft_index index)
{
  struct control_heard h = {0};
  return heard(nodes, i, &h) && h.index >= index;
}

/* Has the loop hear a message from node 1. */
struct hearing {
  struct task task;
  struct raft_message message;
  struct bell bell;
};

static void hear(struct task *task)
{
  struct hearing *hearing = (struct hearing *)task;
  heard_message(task->node, &hearing->message);
  bell_ring(&hearing->bell, 1);
}

static void tell(const struct nodes *nodes, unsigned i,
                 struct raft_message message)
{
  struct hearing hearing = {.task.run = hear, .message = message};
  struct timespec end = clock_deadline(PATIENCE_MS);
  hearing.message.from = nodes_node(nodes, 1)->identity.id;
  assert_true(node_post(nodes_node(nodes, i), &hearing.task));
  assert_int_equal(bell_wait(&hearing.bell, &end), 1);
}

static void expect_heard(const struct nodes *nodes, raft_index index,
                         raft_term term)
{
  struct control_heard h = {0};
  assert_true(heard(nodes, 2, &h));
  assert_int_equal(h.index, index);
  assert_int_equal(h.term, term);
  assert_string_equal(h.name, "n1");
  int64_t age = clock_wall_ms() - h.time_ms;
  assert_true(age >= 0 && age < PATIENCE_MS);
}

/* The two places, one of them torn. */
static void tear(const struct nodes *nodes, unsigned place)
{
  struct path dir = dir_of(nodes, 2);
  struct path file = path_of(dir.s, "/control");
  int fd = open(file.s, O_RDWR);
  off_t at = (off_t)offsetof(struct control, heard[0].it.index) + 512 * place;
  uint8_t byte;
  assert_int_equal(pread(fd, &byte, 1, at), 1);
  byte ^= 1;
  assert_int_equal(pwrite(fd, &byte, 1, at), 1);
  close(fd);
}

static void test_heard(void **state)
{
  struct nodes nodes;
  struct control_heard h;
  nodes_make(&nodes, *state, 2, ELECTION_MS);
  unsigned leader = nodes_leader(&nodes);
  nodes_do(nodes.db[leader], sqlite3_mprintf("CREATE TABLE t(a)"));
  raft_index last = nodes_view(&nodes, leader).last;
  /* Both know it of the other: the leader by answers, the other by requests. */
  until(heard_of(&nodes, 1, last) && heard_of(&nodes, 2, last));
  /* By each kind of message; what is older does not count. */
  tell(&nodes, 2,
       (struct raft_message){
           .type = RAFT_APPEND_REQUEST, .prev_index = 10000, .prev_term = 9});
  expect_heard(&nodes, 10000, 9);
  struct raft_entry entries[2] = {{.index = 10001, .term = 9},
                                  {.index = 10002, .term = 9}};
  tell(&nodes, 2,
       (struct raft_message){.type = RAFT_APPEND_REQUEST,
                             .prev_index = 10000,
                             .prev_term = 9,
                             .n_entries = 2,
                             .entries = entries});
  expect_heard(&nodes, 10002, 9);
  static const uint8_t votes[] = {RAFT_VOTE_REQUEST, RAFT_PREVOTE_REQUEST};
  for (unsigned i = 0; i < 2; i++) {
    tell(&nodes, 2,
         (struct raft_message){
             .type = votes[i], .prev_index = 5000 + i, .prev_term = 10});
    expect_heard(&nodes, 5000 + i, 10);
  }
  static const struct raft_message older[] = {
      {.type = RAFT_APPEND_REQUEST, .prev_index = 20000, .prev_term = 9},
      {.type = RAFT_APPEND_REQUEST, .prev_index = 4000, .prev_term = 10},
      {.type = RAFT_APPEND_REQUEST, .prev_index = 4001, .prev_term = 10}};
  for (unsigned i = 0; i < 3; i++)
    tell(&nodes, 2, older[i]);
  tell(&nodes, 2,
       (struct raft_message){.type = RAFT_APPEND_RESPONSE, .match = 30000});
  expect_heard(&nodes, 5001, 10);
  /* A start keeps it; either place is enough, and none is not believed. */
  assert_true(nodes_stop(&nodes, 2));
  expect_heard(&nodes, 5001, 10);
  nodes_open(&nodes, 2);
  expect_heard(&nodes, 5001, 10);
  assert_true(nodes_stop(&nodes, 2));
  assert_true(nodes_stop(&nodes, 1));
  says(&nodes, 2, NULL, false,
       "newest heard of elsewhere: 5001 of term 10 (n1, ");
  says(&nodes, 2, NULL, false, " UTC): that, and what led to it, is lost;");
  tear(&nodes, 0);
  tear(&nodes, 1);
  assert_false(heard(&nodes, 2, &h));
  says(&nodes, 2, NULL, false, "nothing was heard of other nodes' entries");
  tear(&nodes, 0);
  bool first = heard(&nodes, 2, &h);
  raft_index index = first ? h.index : 0;
  tear(&nodes, 0);
  tear(&nodes, 1);
  assert_true(heard(&nodes, 2, &h));
  assert_true(first && (index == 5001) != (h.index == 5001));
}

/* ---- what is kept ------------------------------------------------------ */

/* The newest entry of a type in an open log; its body is the caller's. */
static struct raft_entry newest(struct store *store, raft_index last,
                                uint8_t type)
{
  struct raft_entry entry = {0};
  for (; last > 0; last--) {
    assert_int_equal(store_read(store, last, last, SIZE_MAX, 1, &entry, NULL),
                     1);
    if (entry.type == type) break;
    raft_body_unref(entry.body);
  }
  assert_true(last > 0);
  return entry;
}

/* A body that differs from another in its head. */
static struct raft_body *with_head(const struct raft_body *from,
                                   const struct tx_head *head)
{
  struct raft_body *body = raft_body_new(from->len);
  memcpy(body->data, from->data, from->len);
  memcpy(body->data, head, sizeof(*head));
  raft_body_seal(body);
  return body;
}

static void note_durable(void *ctx, uint64_t seq, int status, const char *error)
{
  (void)error;
  assert_int_equal(status, 0);
  atomic_store((_Atomic uint64_t *)ctx, seq);
}

/* Into the log of a stopped node: a transaction that makes the one before the
   newest one undone, and then two parts of one whose end is missing. */
static raft_index append_tail(const struct nodes *nodes)
{
  struct path dir = dir_of(nodes, 1);
  struct identity identity;
  struct text error;
  struct store_checkpoint cp;
  struct raft_recovered recovered;
  struct store *store;
  _Atomic uint64_t durable = 0;
  assert_int_equal(identity_read(dir.s, &identity, &error), 0);
  assert_int_equal(store_checkpoint_read(&io_posix, dir.s, &cp, NULL), 0);
  struct store_options options = {.dir = dir.s,
                                  .io = &io_posix,
                                  .cluster = identity.cluster,
                                  .node = identity.id,
                                  .done = note_durable,
                                  .ctx = &durable};
  assert_int_equal(store_open(&options, &cp, &store, &recovered, NULL), 0);
  raft_index last = recovered.last_index;
  struct raft_entry is = newest(store, last, RAFT_COMMIT);
  struct raft_entry was = newest(store, is.index - 1, RAFT_COMMIT);
  struct tx_head head;
  struct raft_entry tail[3];
  memcpy(&head, was.body->data, sizeof(head));
  head.sequence += 1000;
  tail[0] = (struct raft_entry){.type = RAFT_COMMIT,
                                .body = with_head(was.body, &head)};
  memcpy(&head, is.body->data, sizeof(head));
  head.sequence += 2000;
  head.n_page = 0;
  for (head.part = 0; head.part < 2; head.part++)
    tail[1 + head.part] = (struct raft_entry){
        .type = RAFT_PAGES, .body = with_head(is.body, &head)};
  for (unsigned i = 0; i < 3; i++) {
    tail[i].index = last + 1 + i;
    tail[i].term = recovered.term;
  }
  struct raft_persist persist = {.seq = 1, .n_entries = 3, .entries = tail};
  assert_int_equal(store_submit(store, &persist), 0);
  until(atomic_load(&durable) == 1);
  store_close(store);
  for (unsigned i = 0; i < 3; i++)
    raft_body_unref(tail[i].body);
  raft_body_unref(is.body);
  raft_body_unref(was.body);
  store_checkpoint_clear(&cp);
  identity_clear(&identity);
  return last + 3;
}

static void test_tail(void **state)
{
  struct nodes nodes;
  char what[80];
  nodes_make(&nodes, *state, 1, ELECTION_MS);
  nodes_do(nodes.db[1], sqlite3_mprintf("CREATE TABLE t(a)"));
  nodes_do(nodes.db[1], sqlite3_mprintf("INSERT INTO t VALUES('kept')"));
  nodes_do(nodes.db[1], sqlite3_mprintf("INSERT INTO t VALUES('undone')"));
  raft_term term = nodes_view(&nodes, 1).term;
  assert_true(nodes_stop(&nodes, 1));
  raft_index last = append_tail(&nodes);
  snprintf(what, sizeof(what),
           "last entry here: %d of term %d (known to be"
           " committed: %d)",
           (int)last, (int)term, (int)last - 3);
  says(&nodes, 1, NULL, false, what);
  snprintf(what, sizeof(what), "without its end, from entry %d on, are dropped",
           (int)last - 1);
  says(&nodes, 1, ACCEPT, true, what);
  nodes_open(&nodes, 1);
  char *rows =
      nodes_get(nodes.db[1], sqlite3_mprintf("SELECT group_concat(a) FROM t"));
  assert_string_equal(rows, "kept");
  free(rows);
  char *intact =
      nodes_get(nodes.db[1], sqlite3_mprintf("PRAGMA integrity_check"));
  assert_string_equal(intact, "ok");
  free(intact);
  assert_true(nodes_view(&nodes, 1).last > last);
  nodes_do(nodes.db[1], sqlite3_mprintf("INSERT INTO t VALUES('new')"));
  /* It starts like any other, and has a leader: there is nothing to recover. */
  says(&nodes, 1, ACCEPT, false, "the cluster has a leader: n1");
  nodes_stop(&nodes, 1);
  nodes_open(&nodes, 1);
  assert_int_equal(
      nodes_number(nodes.db[1], sqlite3_mprintf("SELECT count(*) FROM t")), 2);
  nodes_stop(&nodes, 1);
}

/* What belongs to the old cluster goes, the rest of its settings stays. */
static void test_settings(void **state)
{
  struct nodes nodes;
  size_t len;
  nodes_make(&nodes, *state, 1, ELECTION_MS);
  nodes_do(nodes.db[1], sqlite3_mprintf("PRAGMA quorate_follow_writer = on"));
  nodes_do(nodes.db[1], sqlite3_mprintf("SELECT quorate_invite('guest')"));
  struct node *node = nodes_node(&nodes, 1);
  uint8_t ca[32], other[32];
  struct tls_error error;
  assert_int_equal(tls_fingerprint(node->identity.ca, ca, &error), 0);
  assert_non_null(settings_get(&node->settings, "invite/guest", &len));
  assert_true(nodes_stop(&nodes, 1));
  says(&nodes, 1, ACCEPT, true, "node n1 of new cluster ");
  nodes_open(&nodes, 1);
  node = nodes_node(&nodes, 1);
  pthread_mutex_lock(&node->mutex);
  assert_null(settings_get(&node->settings, "invite/guest", &len));
  assert_non_null(settings_get(&node->settings, "follow-writer", &len));
  pthread_mutex_unlock(&node->mutex);
  assert_int_equal(tls_fingerprint(node->identity.ca, other, &error), 0);
  assert_memory_not_equal(ca, other, sizeof(ca));
  /* Its CA signs: another one can join. */
  char *token =
      nodes_get(nodes.db[1], sqlite3_mprintf("SELECT quorate_invite('n2')"));
  nodes_do(nodes.db[1],
           sqlite3_mprintf("SELECT quorate_join(%Q, %Q, 'listen',"
                           " '127.0.0.1:%u')",
                           nodes_path(&nodes, 2).s, token, free_port()));
  free(token);
  nodes_stop(&nodes, 1);
  nodes_stop(&nodes, 2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_heard, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_tail, dir_make, dir_clear),
      cmocka_unit_test_setup_teardown(test_settings, dir_make, dir_clear),
  };
  nodes_load();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
