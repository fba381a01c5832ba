/*
** cluster.c: requests between nodes, and the member table.
**
** A request is u8 what, then its fields; an answer has a status and a body:
** ANSWER_OK, ANSWER_REFUSED with a text that says why, ANSWER_REDIRECT with
** the address of the leader. The leader answers; any node can be asked by its
** own application threads (cluster_ask), and asks the leader for them.
*/
#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define ASK_MS 5000
#define LEADER_MS 2000 /* an election takes less */
#define FOLLOW_SETTING "follow-writer"

/* ---- questions of application threads ---------------------------------- */

/* Shared by the asking thread and the loop: whoever is last frees it. */
struct question {
  struct task task;
  pthread_cond_t cond;
  raft_id peer; /* whom; 0: the leader */
  unsigned ms;
  struct timespec end;
  int refs; /* node mutex */
  bool answered;
  int status;
  uint8_t *answer;
  size_t answer_len;
  struct packer body;
};

static void question_unref(struct node *node, struct question *q)
{
  pthread_mutex_lock(&node->mutex);
  bool last = --q->refs == 0;
  pthread_mutex_unlock(&node->mutex);
  if (!last) return;
  pthread_cond_destroy(&q->cond);
  free(q->answer);
  free(q->body.data);
  free(q);
}

static void question_answer(struct question *q, int status, const void *body,
                            size_t len)
{
  struct node *node = q->task.node;
  uint8_t *copy = malloc(len + 1);
  if (copy && len) memcpy(copy, body, len);
  if (copy) copy[len] = 0;
  pthread_mutex_lock(&node->mutex);
  q->status = copy ? status : -1;
  q->answer = copy;
  q->answer_len = copy ? len : 0;
  q->answered = true;
  pthread_cond_signal(&q->cond);
  pthread_mutex_unlock(&node->mutex);
  question_unref(node, q);
}

void cluster_answer(struct answer_to to, int status, const void *body,
                    size_t len)
{
  if (to.request)
    net_reply(to.request, status, body, len);
  else
    question_answer(to.question, status, body, len);
}

void cluster_refuse(struct answer_to to, const char *text)
{
  cluster_answer(to, ANSWER_REFUSED, text, strlen(text));
}

void cluster_again(struct answer_to to, const char *text)
{
  cluster_answer(to, ANSWER_AGAIN, text, strlen(text));
}

static void handle(struct node *node, raft_id from, struct parser p,
                   struct answer_to to);

static void got_answer(void *ctx, int status, const uint8_t *body, size_t len)
{
  question_answer(ctx, status, body, len);
}

/* Loop: answers here what concerns this node, else asks the other. */
static void run_question(struct task *task)
{
  struct question *q = (struct question *)task;
  struct node *node = task->node;
  struct answer_to to = {NULL, q};
  raft_id whom = q->peer ? q->peer : raft_leader(node->raft);
  if (node->closing)
    cluster_refuse(to, "the node is stopping");
  else if (whom == node->identity.id)
    handle(node, whom, parser_of(q->body.data, q->body.len), to);
  else if (whom == 0)
    cluster_again(to, NO_LEADER);
  else
    net_call(node->net, whom, q->body.data, q->body.len, q->ms, got_answer, q);
}

struct question *cluster_post(struct node *node, raft_id peer,
                              struct packer body, unsigned ms)
{
  struct question *q = body.bad ? NULL : calloc(1, sizeof(*q));
  if (q == NULL) {
    free(body.data);
    return NULL;
  }
  clock_condition(&q->cond);
  q->peer = peer;
  q->ms = ms;
  q->end = clock_deadline(ms + 1000);
  q->refs = 2;
  q->status = -1;
  q->body = body;
  q->task.run = run_question;
  if (!node_post(node, &q->task)) q->refs = 1; /* nobody will answer */
  return q;
}

int cluster_collect(struct node *node, struct question *q, uint8_t **data,
                    size_t *len)
{
  return cluster_collect_until(node, q, NULL, data, len);
}

int cluster_collect_until(struct node *node, struct question *q,
                          const struct interrupt *interrupt, uint8_t **data,
                          size_t *len)
{
  int rc = 0;
  *data = NULL;
  *len = 0;
  if (q == NULL) return -1;
  pthread_mutex_lock(&node->mutex);
  while (rc == 0 && q->refs == 2 && !q->answered && !node->stopping)
    rc = node_wait(node, &q->cond, &q->end, interrupt);
  int status = q->answered ? q->status : rc == -EINTR ? rc : -1;
  if (q->answered) {
    *data = q->answer;
    *len = q->answer_len;
    q->answer = NULL;
  }
  pthread_mutex_unlock(&node->mutex);
  question_unref(node, q);
  return status;
}

/* Between two leaders nothing is wrong that whoever asks would have to know. */
static void wait_for_leader(struct node *node)
{
  struct timespec end = clock_deadline(LEADER_MS);
  pthread_mutex_lock(&node->mutex);
  while (node->view.leader == 0 && !node->stopping && !node->failed &&
         node->out.s[0] == 0)
    if (pthread_cond_timedwait(&node->changed, &node->mutex, &end) != 0) break;
  pthread_mutex_unlock(&node->mutex);
}

int cluster_ask(struct node *node, struct packer body, uint8_t **data,
                size_t *len)
{
  wait_for_leader(node);
  return cluster_collect(node, cluster_post(node, 0, body, ASK_MS), data, len);
}

/* ---- what is proposed ---------------------------------------------------- */

bool cluster_member_named(const struct raft_configuration *c, const char *name,
                          struct raft_member *out)
{
  for (unsigned i = 0; i < c->n; i++)
    if (strcmp(c->members[i].name, name) == 0) {
      *out = c->members[i];
      return true;
    }
  return false;
}

void cluster_propose_setting(struct node *node, const char *key,
                             const void *value, size_t len, struct answer_to to)
{
  raft_index index = 0;
  if (value && !settings_room(&node->settings, key)) {
    cluster_refuse(to, "too many invitations and other settings");
    return;
  }
  struct raft_body *body = settings_encode_change(key, value, len);
  int rc = body ? node_propose(node, RAFT_SETTING, body, &index) : RAFT_ENOMEM;
  raft_body_unref(body);
  if (rc)
    cluster_refuse(to, raft_strerror(rc));
  else
    cluster_answer(to, ANSWER_OK, &index, sizeof(index));
}

int cluster_propose_changes(struct node *node, unsigned n,
                            const struct raft_change *changes,
                            raft_index *index)
{
  struct raft_event event = {.type = RAFT_EVENT_CHANGE};
  event.u.change.n = n;
  event.u.change.items = changes;
  int rc = node_step(node, &event);
  raft_configuration(node->raft, index);
  return rc;
}

int cluster_propose_change(struct node *node, uint8_t type, raft_id id,
                           const struct raft_member *member, raft_index *index)
{
  struct raft_change change = {.type = type, .id = id, .member = member};
  return cluster_propose_changes(node, 1, &change, index);
}

int cluster_ask_and_wait(struct node *node, struct packer body,
                         struct text *error)
{
  uint8_t *data;
  size_t len;
  raft_index index;
  int rc = -1, status = cluster_ask(node, body, &data, &len);
  if (status == ANSWER_OK && len == sizeof(index)) {
    memcpy(&index, data, sizeof(index));
    rc = node_wait_applied(node, index, ASK_MS, NULL, &index, error) ? -1 : 0;
    if (rc) text_set(error, "not agreed on: no quorum");
  } else {
    text_set(error, "%s", data ? (const char *)data : "no answer");
  }
  free(data);
  return rc;
}

/* ---- leadership that follows the writer -------------------------------- */

bool cluster_follows_writer(const struct node *node)
{
  size_t len;
  return settings_get(&node->settings, FOLLOW_SETTING, &len) != NULL;
}

static void handle_follow(struct node *node, struct parser *p,
                          struct answer_to to)
{
  bool follow = parse_u8(p) != 0;
  if (!parser_done(p))
    cluster_refuse(to, "malformed request");
  else
    cluster_propose_setting(node, FOLLOW_SETTING, follow ? "on" : NULL,
                            follow ? 2 : 0, to);
}

int cluster_follow_writer(struct node *node, bool follow, struct text *error)
{
  struct packer body = {0};
  pthread_mutex_lock(&node->mutex);
  bool same = cluster_follows_writer(node) == follow;
  pthread_mutex_unlock(&node->mutex);
  if (same) return 0;
  pack_u8(&body, ASK_FOLLOW);
  pack_u8(&body, follow);
  return cluster_ask_and_wait(node, body, error);
}

/* ---- members ----------------------------------------------------------- */

static const char *progress_name(const struct raft_progress *p, uint64_t now)
{
  if (p->last_contact == 0 || now - p->last_contact > 3000)
    return "unreachable";
  if (p->state == RAFT_SNAPSHOT) return "snapshot";
  return p->state == RAFT_PROBE ? "probe" : "replicate";
}

/* For how long it has lacked entries. */
static uint64_t lag_ms(struct node *node, raft_id id, uint64_t now)
{
  struct raft_progress progress = {.match = raft_durable(node->raft)};
  if (id != node->identity.id && !raft_progress(node->raft, id, &progress))
    return 0;
  return meter_behind(&node->counters.growth, now, progress.match);
}

static void pack_member(struct node *node, struct packer *p,
                        const struct raft_member *m)
{
  struct raft_progress progress;
  uint64_t now = clock_monotonic_ms();
  raft_index last = raft_last(node->raft);
  pack_u64(p, m->id);
  pack_u8(p, m->role);
  pack_text(p, m->name);
  pack_text(p, m->address);
  pack_u64(p, (uint64_t)trust_expires_of(node, m->id));
  if (m->id == node->identity.id) {
    raft_index durable = raft_durable(node->raft);
    pack_text(p, "leader");
    pack_u64(p, durable);
    pack_u64(p, last - durable);
    pack_u64(p, 0);
  } else if (raft_progress(node->raft, m->id, &progress)) {
    pack_text(p, progress_name(&progress, now));
    pack_u64(p, progress.match);
    pack_u64(p, last > progress.match ? last - progress.match : 0);
    pack_u64(p,
             progress.last_contact ? now - progress.last_contact : UINT64_MAX);
  } else {
    pack_text(p, "unknown");
    pack_u64(p, 0);
    pack_u64(p, last);
    pack_u64(p, UINT64_MAX);
  }
  pack_u64(p, lag_ms(node, m->id, now));
  pack_u32(p, net_round_trip(node->net, m->id));
}

static void handle_members(struct node *node, struct answer_to to)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  struct packer p = {0};
  pack_u32(&p, c->n);
  for (unsigned i = 0; i < c->n; i++)
    pack_member(node, &p, &c->members[i]);
  if (p.bad)
    cluster_refuse(to, "out of memory");
  else
    cluster_answer(to, ANSWER_OK, p.data, p.len);
  free(p.data);
}

static bool parse_members(const uint8_t *data, size_t len,
                          struct member_row **rows, unsigned *n)
{
  struct parser p = parser_of(data, len);
  *n = parse_u32(&p);
  if (p.bad || *n > RAFT_MEMBERS_MAX) return false;
  *rows = calloc(*n + 1, sizeof(**rows));
  for (unsigned i = 0; *rows && i < *n; i++) {
    struct member_row *r = &(*rows)[i];
    r->id = parse_u64(&p);
    r->role = parse_u8(&p);
    snprintf(r->name, sizeof(r->name), "%s", parse_text(&p));
    snprintf(r->address, sizeof(r->address), "%s", parse_text(&p));
    r->expires = (int64_t)parse_u64(&p);
    snprintf(r->state, sizeof(r->state), "%s", parse_text(&p));
    r->known = true;
    r->match = parse_u64(&p);
    r->lag_entries = parse_u64(&p);
    uint64_t contact = parse_u64(&p);
    r->contact_ms = contact == UINT64_MAX ? -1 : (int64_t)contact;
    r->lag_ms = parse_u64(&p);
    r->round_trip_us = parse_u32(&p);
  }
  if (*rows && parser_done(&p)) return true;
  free(*rows);
  *rows = NULL;
  return false;
}

/* Without the leader's help: who is a member, and who was the leader. */
static int local_members(struct node *node, struct member_row **rows,
                         unsigned *n)
{
  int64_t expires = trust_expires(node);
  pthread_mutex_lock(&node->mutex);
  const struct raft_configuration *c = &node->members;
  *rows = calloc(c->n + 1, sizeof(**rows));
  *n = *rows ? c->n : 0;
  for (unsigned i = 0; i < *n; i++) {
    struct member_row *r = &(*rows)[i];
    const struct raft_member *m = &c->members[i];
    memcpy(r->name, m->name, sizeof(r->name));
    memcpy(r->address, m->address, sizeof(r->address));
    r->id = m->id;
    r->role = m->role;
    r->contact_ms = -1;
    if (m->id == node->identity.id) r->expires = expires;
    snprintf(r->state, sizeof(r->state), "unknown");
  }
  pthread_mutex_unlock(&node->mutex);
  return *rows ? 0 : -ENOMEM;
}

int cluster_members(struct node *node, const struct interrupt *interrupt,
                    struct member_row **rows, unsigned *n)
{
  struct packer body = {0};
  uint8_t *data;
  size_t len;
  *rows = NULL;
  *n = 0;
  pack_u8(&body, ASK_MEMBERS);
  struct question *q = cluster_post(node, 0, body, ASK_MS);
  int status = cluster_collect_until(node, q, interrupt, &data, &len);
  bool ok = status == ANSWER_OK && parse_members(data, len, rows, n);
  free(data);
  if (status == -EINTR) return -EINTR;
  return ok ? 0 : local_members(node, rows, n);
}

/* ---- requests ---------------------------------------------------------- */

static void handle_verify(struct node *node, struct answer_to to)
{
  struct packer p = {0};
  const char *why = verify_begin(node, &p);
  if (why == NULL && p.bad) why = "out of memory";
  if (why)
    cluster_refuse(to, why);
  else
    cluster_answer(to, ANSWER_OK, p.data, p.len);
  free(p.data);
}

static void handle_checksum(struct node *node, struct parser *p,
                            struct answer_to to)
{
  struct packer told = {0};
  verify_tell(node, p, &told);
  if (!parser_done(p) || told.bad)
    cluster_refuse(to, "malformed request");
  else
    cluster_answer(to, ANSWER_OK, told.data, told.len);
  free(told.data);
}

/* Requests of members, this node among them. */
static void handle(struct node *node, raft_id from, struct parser p,
                   struct answer_to to)
{
  switch (parse_u8(&p)) {
  case ASK_INVITE: invite_handle(node, &p, to); break;
  case ASK_UNINVITE: invite_withdraw(node, &p, to); break;
  case ASK_MEMBERS: handle_members(node, to); break;
  case ASK_VERIFY: handle_verify(node, to); break;
  case ASK_CHECKSUM: handle_checksum(node, &p, to); break;
  case ASK_FOLLOW: handle_follow(node, &p, to); break;
  case ASK_CHANGE: member_change(node, &p, to); break;
  case ASK_ADVERTISE: member_move(node, from, &p, to); break;
  case ASK_ROTATE: rotate_handle(node, &p, to); break;
  default: cluster_refuse(to, "unknown request"); break;
  }
}

void cluster_request(void *ctx, raft_id from, const uint8_t *body, size_t len,
                     struct net_request *request)
{
  struct node *node = ctx;
  struct parser p = parser_of(body, len);
  struct answer_to to = {request, NULL};
  if (snapshot_request(node, from, body, len, request)) return;
  raft_id leader = raft_leader(node->raft);
  if (from != 0 && len > 0 && body[0] == ASK_CHECKSUM) {
    handle(node, from, p, to);
    return;
  }
  if (from != 0 &&
      trust_request(node, from, leader == node->identity.id, p, to))
    return;
  if (leader != node->identity.id) {
    const struct raft_member *m =
        raft_configuration_find(raft_configuration(node->raft, NULL), leader);
    if (m)
      cluster_answer(to, ANSWER_REDIRECT, m->address, strlen(m->address));
    else
      cluster_again(to, NO_LEADER);
    return;
  }
  /* Whoever has no certificate yet may only ask to join. */
  if (from != 0) {
    if (!admit_rebuild(node, from, p, to)) handle(node, from, p, to);
  } else if (parse_u8(&p) == ASK_JOIN) {
    admit_join(node, &p, to);
  } else {
    cluster_refuse(to, "unknown request");
  }
}

void cluster_tick(struct node *node)
{
  admit_tick(node);
  invite_tick(node);
  member_tick(node);
  trust_tick(node);
}

void cluster_close(struct node *node)
{
  node->closing = true;
  cluster_tick(node);
}
