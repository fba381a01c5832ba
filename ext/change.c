/*
** change.c: changes of membership as SQL asks for them, on the thread of the
** application: quorate_promote(), _demote(), _remove(), _transfer(), _leave(),
** and PRAGMA quorate_advertise.
**
** The leader does it (member.c). Here it is asked again and again, whoever it is
** by then, until all is as wanted, or cannot be, or it has taken too long. Then
** nothing is taken back: the same call goes on where this one stopped.
**
** A member is meant by its name, and by its id as soon as the leader has said
** who that is: should another come by the same name meanwhile, it is not meant.
**
** quorate_leave(): first everything that could keep the file from being made an
** ordinary one, then the removal, then detach.c. Cut off in between it is a node
** that was removed; the others tell it so when it starts, and a second call goes
** on from there.
*/
#include "call.h"
#include "cluster.h"
#include "database.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <time.h>

SQLITE_EXTENSION_INIT3

#define PATIENCE_MS 30000
#define ANSWER_MS 2000
#define PAUSE_MS 50

struct asking {
  struct node *node;
  const struct interrupt *interrupt;
  uint8_t what;
  const char *name;
  raft_id id;
  uint64_t begun; /* ms: when a leader has taken it up; 0: none has */
  uint64_t end;
  struct text text; /* the answer, or what is waited for */
};

/* Only its own removal can be known to a node that was removed. */
static int answer_out(struct asking *a)
{
  struct node *node = a->node;
  bool self = a->id == node->identity.id ||
              (a->id == 0 && strcmp(a->name, node->identity.name) == 0);
  struct text sum;
  unsigned voters = 0;
  if (a->what != MEMBER_REMOVE || !self) {
    a->text = node->out;
    return -ENOTCONN;
  }
  pthread_mutex_lock(&node->mutex);
  for (unsigned i = 0; i < node->members.n; i++)
    voters += node->members.members[i].role == RAFT_VOTER &&
              node->members.members[i].id != node->identity.id;
  pthread_mutex_unlock(&node->mutex);
  member_sum(&sum, voters, MEMBERS_LEFT);
  text_set(&a->text, "%s is removed%s; %s", node->identity.name,
           a->begun ? "" : " already", sum.s);
  return 0;
}

static bool is_out(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool out = node->out.s[0] != 0;
  pthread_mutex_unlock(&node->mutex);
  return out;
}

static uint64_t left(const struct asking *a)
{
  uint64_t now = clock_monotonic_ms();
  return now < a->end ? a->end - now : 0;
}

/* Behind the text there is an id, or of ANSWER_OK an index. */
static uint64_t number_behind(const uint8_t *data, size_t len)
{
  uint64_t number = 0;
  size_t n = data ? strlen((const char *)data) + 1 : 0;
  if (data && len == n + sizeof(number)) memcpy(&number, data + n, 8);
  return number;
}

/* Once. 0, -EAGAIN, -EINTR or another negated errno value. */
static int ask(struct asking *a)
{
  struct node *node = a->node;
  struct packer body = {0};
  struct text ignored;
  uint8_t *data;
  size_t len;
  uint64_t since = 0;
  raft_index applied;
  if (a->begun) since = clock_monotonic_ms() - a->begun + 1;
  member_pack_change(&body, a->what, (uint32_t)since, a->id, a->name);
  struct question *q = cluster_post(node, 0, body, ANSWER_MS);
  int rc, status = cluster_collect_until(node, q, a->interrupt, &data, &len);
  uint64_t number = number_behind(data, len);
  if (status == -EINTR) return status;
  if (status == ANSWER_OK || status == ANSWER_REFUSED || status == ANSWER_AGAIN)
    text_set(&a->text, "%s", (const char *)data);
  else
    text_set(&a->text, NO_LEADER);
  rc = status == ANSWER_OK ? 0 : status == ANSWER_REFUSED ? -EINVAL : -EAGAIN;
  if (status == ANSWER_AGAIN && number) {
    if (a->begun == 0) a->begun = clock_monotonic_ms();
    a->id = number;
  }
  free(data);
  /* Here, too, it is so from then on; if this node still hears of it. */
  if (rc == 0 && !is_out(node) &&
      node_wait_applied(node, number, left(a), a->interrupt, &applied,
                        &ignored) == -EINTR)
    rc = -EINTR;
  return rc;
}

static int pause_between(struct asking *a)
{
  struct timespec pause = {0, PAUSE_MS * 1000000};
  nanosleep(&pause, NULL);
  return a->interrupt->raised(a->interrupt->ctx) ? -EINTR : 0;
}

/* Until it is so. 0, -EINTR or another negated errno value, and a->text. */
static int insist(struct asking *a)
{
  struct node *node = a->node;
  a->end = clock_monotonic_ms() + PATIENCE_MS;
  int rc = a->interrupt->raised(a->interrupt->ctx) ? -EINTR : -EAGAIN;
  while (rc == -EAGAIN) {
    if (is_out(node)) return answer_out(a);
    if (node->stopping) {
      text_set(&a->text, "the node is stopping");
      return -ESHUTDOWN;
    }
    rc = ask(a);
    if (rc != -EAGAIN) break;
    if (left(a) == 0) {
      struct text why = a->text;
      text_set(&a->text, "not done in %d s: %s", PATIENCE_MS / 1000, why.s);
      return -ETIMEDOUT;
    }
    if (pause_between(a) != 0) rc = -EINTR;
  }
  return rc;
}

/* ---- calls ---------------------------------------------------------------- */

static void run(struct node *node, uint8_t what, const char *function,
                const struct call *call, const struct interrupt *interrupt,
                struct answer *answer)
{
  const struct cells *cells = &call->arguments;
  struct asking a = {.node = node, .interrupt = interrupt, .what = what};
  a.name = cells->n > 0 ? cells->at[0].text : "";
  int rc = identity_valid_name(a.name) || a.name[0] == 0 ? insist(&a) : -EINVAL;
  if (rc == -EINVAL && a.text.s[0] == 0)
    text_set(&a.text, "no such member: %s", a.name);
  if (rc && rc != -EINTR) node_reason(node, "%s: %s", function, a.text.s);
  answer_line(answer, rc, &a.text);
}

void member_run_promote(struct node *node, const struct call *call,
                        const struct interrupt *interrupt,
                        struct answer *answer)
{
  run(node, MEMBER_PROMOTE, "quorate_promote", call, interrupt, answer);
}

void member_run_demote(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  run(node, MEMBER_DEMOTE, "quorate_demote", call, interrupt, answer);
}

void member_run_remove(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  run(node, MEMBER_REMOVE, "quorate_remove", call, interrupt, answer);
}

void member_run_transfer(struct node *node, const struct call *call,
                         const struct interrupt *interrupt,
                         struct answer *answer)
{
  run(node, MEMBER_TRANSFER, "quorate_transfer", call, interrupt, answer);
}

/* ---- the address ---------------------------------------------------------- */

/* Stored first: what the others are told must still be so after a crash. */
static int store_address(struct node *node, const char *address,
                         struct text *error)
{
  int rc = 0;
  pthread_mutex_lock(&node->identity_mutex);
  struct identity moved = node->identity;
  if (strcmp(moved.advertise, address) != 0) {
    snprintf(moved.advertise, sizeof(moved.advertise), "%s", address);
    rc = identity_write_node(node->dir, &moved, error);
    pthread_mutex_lock(&node->mutex);
    if (rc == 0)
      memcpy(node->identity.advertise, moved.advertise,
             sizeof(moved.advertise));
    pthread_mutex_unlock(&node->mutex);
  }
  pthread_mutex_unlock(&node->identity_mutex);
  return rc;
}

/* Mutex held. It is agreed on, and applied here. */
static bool is_told(const struct node *node, const char *address)
{
  const struct raft_member *self =
      raft_configuration_find(&node->configuration, node->identity.id);
  return self && strcmp(self->address, address) == 0;
}

/* The node tells the others by itself (member_tick()). */
static int move(struct node *node, const char *address, unsigned ms,
                const struct interrupt *interrupt, struct text *text)
{
  if (is_out(node)) {
    *text = node->out;
    return -ENOTCONN;
  }
  int rc = store_address(node, address, text);
  if (rc) return rc;
  struct timespec end = clock_deadline(ms);
  pthread_mutex_lock(&node->mutex);
  while (rc == 0 && !is_told(node, address) && !node->stopping)
    rc = node_wait(node, &node->changed, &end, interrupt);
  bool known = is_told(node, address);
  pthread_mutex_unlock(&node->mutex);
  text_set(text, "%s%s", address,
           known ? "" : ": stored; the others are told when there is a leader");
  return rc == -EINTR && !known ? rc : 0;
}

void member_run_advertise(struct node *node, const struct call *call,
                          const struct interrupt *interrupt,
                          struct answer *answer)
{
  const struct cells *cells = &call->arguments;
  char address[RAFT_ADDRESS_MAX];
  struct text text;
  int rc = 0;
  member_address(node, address);
  text_set(&text, "%s", address);
  if (cells->n > 0)
    rc = move(node, cells->at[0].text, call->write_wait, interrupt, &text);
  answer_line(answer, rc, &text);
}

/* ---- leaving ---------------------------------------------------------------- */

static bool is_last_voter(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  const struct raft_member *self = node_member(node, node->identity.id);
  bool last = self && self->role == RAFT_VOTER && node->view.voters == 1;
  pthread_mutex_unlock(&node->mutex);
  return last;
}

int member_leave(struct node *node, const struct interrupt *interrupt,
                 struct text *answer)
{
  struct asking a = {.node = node, .interrupt = interrupt};
  struct text detached = {""};
  int rc = 0;
  a.what = MEMBER_REMOVE;
  a.name = node->identity.name;
  a.id = node->identity.id;
  if (!is_out(node) && is_last_voter(node)) {
    sqlite3_snprintf(sizeof(answer->s), answer->s,
                     "%s is the last voter: nobody would be left; SELECT "
                     "quorate_detach(%Q) makes its file an ordinary one",
                     a.name, node->path);
    return -EINVAL;
  }
  if (!is_out(node)) rc = detach_check(node, &a.text);
  if (rc == 0) rc = insist(&a);
  if (rc) {
    *answer = a.text;
    return rc;
  }
  rc = registry_detach(node->path, interrupt, &detached);
  if (rc == -EINTR) return rc;
  if (rc)
    text_set(answer,
             "%s; its file is not detached yet: %.300s: call "
             "quorate_leave() again to finish",
             a.text.s, detached.s);
  else
    text_set(answer, "%.300s; %.300s", a.text.s, detached.s);
  return rc;
}
