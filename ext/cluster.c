/*
** cluster.c: requests between nodes: invitations, joining, the member table.
**
** A request is u8 what, then its fields; an answer has a status and a body:
** ANSWER_OK, ANSWER_REFUSED with a text that says why, ANSWER_REDIRECT with
** the address of the leader. The leader answers; any node can be asked by its
** own application threads (cluster_ask), and asks the leader for them.
**
** Setting "invite/<name>": 32 bytes SHA-256 of the secret, i64 end of life in
** ms of the calendar. It is deleted by the same agreement that admits the
** node, so that a token serves once.
*/
#include "cluster.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define INVITE_MS 3600000
#define ASK_MS 5000
#define FOLLOW_SETTING "follow-writer"
#define JOIN_MS 10000
#define SILENT_MS 3000 /* without a sign of life */

static const char not_a_member[] =
    "no member any more: another node may have taken its place";

/* Whom an answer goes to: another node, or a thread of this process. */
struct answer_to {
  struct net_request *request;
  struct question *question;
};

/* A join that waits until the new member is agreed on. */
struct join {
  struct join *next;
  struct net_request *request;
  raft_term term;
  raft_index index; /* of its configuration; 0: not proposed yet */
  raft_index removed;
  uint64_t deadline;
  struct raft_member member;
  char *cert; /* NULL: it has one, and is proposed already (rebuild.c) */
};

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

static void answer(struct answer_to to, int status, const void *body,
                   size_t len)
{
  if (to.request)
    net_reply(to.request, status, body, len);
  else
    question_answer(to.question, status, body, len);
}

static void refuse(struct answer_to to, const char *text)
{
  answer(to, ANSWER_REFUSED, text, strlen(text));
}

static void handle(struct node *node, struct parser p, struct answer_to to);

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
    refuse(to, "the node is stopping");
  else if (whom == node->identity.id)
    handle(node, parser_of(q->body.data, q->body.len), to);
  else if (whom == 0)
    refuse(to, "no leader: no quorum, or an election");
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
  *data = NULL;
  *len = 0;
  if (q == NULL) return -1;
  pthread_mutex_lock(&node->mutex);
  while (q->refs == 2 && !q->answered && !node->stopping)
    if (pthread_cond_timedwait(&q->cond, &node->mutex, &q->end) != 0) break;
  int status = q->answered ? q->status : -1;
  if (q->answered) {
    *data = q->answer;
    *len = q->answer_len;
    q->answer = NULL;
  }
  pthread_mutex_unlock(&node->mutex);
  question_unref(node, q);
  return status;
}

int cluster_ask(struct node *node, struct packer body, uint8_t **data,
                size_t *len)
{
  return cluster_collect(node, cluster_post(node, 0, body, ASK_MS), data, len);
}

/* ---- invitations ------------------------------------------------------- */

static void setting_name(char *out, size_t size, const char *name)
{
  snprintf(out, size, "invite/%s", name);
}

static bool member_named(const struct raft_configuration *c, const char *name,
                         struct raft_member *out)
{
  for (unsigned i = 0; i < c->n; i++)
    if (strcmp(c->members[i].name, name) == 0) {
      *out = c->members[i];
      return true;
    }
  return false;
}

/* A learner that never got as far as to be a voter, or a voter that has not
   been heard of for a while: somebody may join in its place. */
static bool may_be_replaced(struct node *node, const struct raft_member *m)
{
  struct raft_progress p;
  uint64_t now = clock_monotonic_ms();
  if (m->role == RAFT_LEARNER) return true;
  /* A new leader has not heard from anybody yet. */
  return raft_progress(node->raft, m->id, &p) &&
         now - node->lead_since > SILENT_MS &&
         (p.last_contact == 0 || now - p.last_contact > SILENT_MS);
}

static void propose_setting(struct node *node, const char *key,
                            const void *value, size_t len, struct answer_to to)
{
  raft_index index = 0;
  struct raft_body *body = settings_encode_change(key, value, len);
  int rc = body ? node_propose(node, RAFT_SETTING, body, &index) : RAFT_ENOMEM;
  raft_body_unref(body);
  if (rc)
    refuse(to, raft_strerror(rc));
  else
    answer(to, ANSWER_OK, &index, sizeof(index));
}

static void handle_invite(struct node *node, struct parser *p,
                          struct answer_to to)
{
  char key[RAFT_NAME_MAX + 16];
  struct raft_member member;
  const char *name = parse_text(p);
  const uint8_t *digest = parse_bytes(p, 32);
  if (!parser_done(p) || !identity_valid_name(name)) {
    refuse(to, "malformed request");
    return;
  }
  if (member_named(raft_configuration(node->raft, NULL), name, &member) &&
      !may_be_replaced(node, &member)) {
    char text[128];
    snprintf(text, sizeof(text), "%s is a member already", name);
    refuse(to, text);
    return;
  }
  struct packer value = {0};
  pack_bytes(&value, digest, 32);
  pack_u64(&value, (uint64_t)(clock_wall_ms() + INVITE_MS));
  setting_name(key, sizeof(key), name);
  if (value.bad)
    refuse(to, "out of memory");
  else
    propose_setting(node, key, value.data, value.len, to);
  free(value.data);
}

/* Asks for something that is answered with its index, and waits until that is
   applied here. */
static int ask_and_wait(struct node *node, struct packer body,
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

int cluster_invite(struct node *node, const char *name, char **token,
                   struct text *error)
{
  struct tls_token t = {.cluster = node->identity.cluster};
  struct tls_error tls_error;
  uint8_t digest[32];
  struct packer body = {0};
  if (!identity_valid_name(name)) {
    text_set(error, "a name is 1 to 63 letters, digits, '.', '_' or '-'");
    return -1;
  }
  snprintf(t.name, sizeof(t.name), "%s", name);
  snprintf(t.address, sizeof(t.address), "%s", node->identity.advertise);
  if (tls_random(t.secret, sizeof(t.secret), &tls_error) != 0 ||
      tls_digest(t.secret, sizeof(t.secret), digest, &tls_error) != 0 ||
      tls_fingerprint(node->identity.ca, t.ca_fingerprint, &tls_error) != 0) {
    text_set(error, "%s", tls_error.text);
    return -1;
  }
  pack_u8(&body, ASK_INVITE);
  pack_text(&body, name);
  pack_bytes(&body, digest, 32);
  int rc = ask_and_wait(node, body, error);
  if (rc == 0 && tls_token_encode(&t, token, &tls_error) != 0) {
    text_set(error, "%s", tls_error.text);
    rc = -1;
  }
  explicit_bzero(&t, sizeof(t));
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
    refuse(to, "malformed request");
  else
    propose_setting(node, FOLLOW_SETTING, follow ? "on" : NULL, follow ? 2 : 0,
                    to);
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
  return ask_and_wait(node, body, error);
}

/* ---- joining, the leader's side ---------------------------------------- */

/* Why a token does not serve; NULL: it does. */
static const char *check_invitation(struct node *node, const char *name,
                                    const uint8_t *secret, size_t n)
{
  char key[RAFT_NAME_MAX + 16];
  struct tls_error error;
  uint8_t digest[32];
  size_t len;
  int64_t until;
  setting_name(key, sizeof(key), name);
  const uint8_t *value = settings_get(&node->settings, key, &len);
  if (value == NULL || len != 40)
    return "no invitation: the token was used, replaced or never given";
  if (n != TLS_SECRET_BYTES || tls_digest(secret, n, digest, &error) != 0 ||
      !tls_equal(digest, value, 32))
    return "wrong token: not the newest one for this name";
  memcpy(&until, value + 32, 8);
  if (clock_wall_ms() > until) return "token expired";
  return NULL;
}

static void join_free(struct join *join)
{
  if (join == NULL) return;
  tls_free_text(join->cert);
  free(join);
}

static struct join *make_join(struct node *node, const char *name,
                              const char *address, const char *csr,
                              struct tls_error *error)
{
  struct join *join = calloc(1, sizeof(*join));
  size_t n_cert, n_key;
  const char *cert =
      (const char *)settings_get(&node->settings, "ca-cert", &n_cert);
  const char *key =
      (const char *)settings_get(&node->settings, "ca-key", &n_key);
  snprintf(error->text, sizeof(error->text), "out of memory");
  if (join == NULL) return NULL;
  if (cert == NULL || key == NULL) {
    snprintf(error->text, sizeof(error->text), "this cluster has no CA key");
    join_free(join);
    return NULL;
  }
  struct raft_member *m = &join->member;
  m->role = RAFT_LEARNER;
  snprintf(m->name, sizeof(m->name), "%s", name);
  snprintf(m->address, sizeof(m->address), "%s", address);
  if (tls_random(&m->id, sizeof(m->id), error) != 0 ||
      tls_random(&m->incarnation, sizeof(m->incarnation), error) != 0 ||
      tls_sign_request(cert, key, csr, node->identity.cluster, m->id | 1,
                       CERT_DAYS, &join->cert, error) != 0) {
    join_free(join);
    return NULL;
  }
  m->id |= 1; /* never 0 */
  return join;
}

static int propose_changes(struct node *node, unsigned n,
                           const struct raft_change *changes, raft_index *index)
{
  struct raft_event event = {.type = RAFT_EVENT_CHANGE};
  event.u.change.n = n;
  event.u.change.items = changes;
  int rc = node_step(node, &event);
  raft_configuration(node->raft, index);
  return rc;
}

static int propose_change(struct node *node, uint8_t type, raft_id id,
                          const struct raft_member *member, raft_index *index)
{
  struct raft_change change = {.type = type, .id = id, .member = member};
  return propose_changes(node, 1, &change, index);
}

/* To be answered when its member is agreed on. */
static void begin_join(struct node *node, struct join *join,
                       struct answer_to to)
{
  bool leads;
  raft_state(node->raft, &join->term, &leads);
  join->request = to.request;
  join->deadline = clock_monotonic_ms() + JOIN_MS;
  join->next = node->joins;
  node->joins = join;
  cluster_tick(node);
}

static void handle_join(struct node *node, struct parser *p,
                        struct answer_to to)
{
  size_t n;
  char line[TEXT_MAX];
  struct tls_error error = {""};
  struct raft_member old;
  const uint8_t *secret = parse_blob(p, &n);
  const char *name = parse_text(p), *address = parse_text(p);
  const char *csr = parse_text(p);
  if (!parser_done(p) || !identity_valid_name(name) ||
      strlen(address) >= RAFT_ADDRESS_MAX) {
    refuse(to, "malformed request");
    return;
  }
  const char *why = check_invitation(node, name, secret, n);
  bool known = member_named(raft_configuration(node->raft, NULL), name, &old);
  if (why == NULL && known && !may_be_replaced(node, &old))
    why = "a member has that name already";
  struct join *join = why ? NULL : make_join(node, name, address, csr, &error);
  if (why == NULL && join == NULL) why = error.text;
  if (why) {
    snprintf(line, sizeof(line), "a node that would be %s was refused: %s",
             name, why);
    events_add(&node->events, "%s", line);
    refuse(to, why);
    return;
  }
  join->removed = known ? old.id : 0;
  begin_join(node, join, to);
}

void cluster_pack_admission(struct packer *p, const struct admission *a)
{
  struct raft_body *c = raft_configuration_encode(&a->members);
  pack_u64(p, a->id);
  pack_u64(p, a->incarnation);
  pack_text(p, a->cert);
  pack_text(p, a->ca);
  pack_u32(p, a->heartbeat_ms);
  pack_u32(p, a->election_timeout_ms);
  pack_u8(p, a->lease);
  if (c)
    pack_blob(p, c->data, c->len);
  else
    p->bad = true;
  raft_body_unref(c);
}

bool cluster_parse_admission(const uint8_t *body, size_t len,
                             struct admission *a)
{
  struct parser p = parser_of(body, len);
  size_t n;
  a->id = parse_u64(&p);
  a->incarnation = parse_u64(&p);
  a->cert = parse_text(&p);
  a->ca = parse_text(&p);
  a->heartbeat_ms = parse_u32(&p);
  a->election_timeout_ms = parse_u32(&p);
  a->lease = parse_u8(&p) != 0;
  const uint8_t *c = parse_blob(&p, &n);
  return parser_done(&p) && a->id != 0 && a->heartbeat_ms != 0 &&
         a->election_timeout_ms > a->heartbeat_ms &&
         raft_configuration_decode(c, n, &a->members) == 0 &&
         raft_configuration_find(&a->members, a->id) != NULL;
}

static void join_answer(struct node *node, struct join *join)
{
  struct packer p = {0};
  struct admission a = {
      .id = join->member.id,
      .incarnation = join->member.incarnation,
      .cert = join->cert ? join->cert : "", /* rebuilt: it has one */
      .ca = node->identity.ca,
      .heartbeat_ms = node->identity.heartbeat_ms,
      .election_timeout_ms = node->identity.election_timeout_ms,
      .lease = node->identity.lease,
      .members = *raft_configuration(node->raft, NULL)};
  cluster_pack_admission(&p, &a);
  if (p.bad)
    net_reply(join->request, ANSWER_REFUSED, "out of memory", 13);
  else
    net_reply(join->request, ANSWER_OK, p.data, p.len);
  free(p.data);
  events_add(&node->events,
             join->cert ? "%s joined from %s" : "%s is rebuilt at %s",
             join->member.name, join->member.address);
}

/* Takes the next step of a join. True: it is over. */
static bool join_step(struct node *node, struct join *join)
{
  raft_term term;
  raft_index index;
  bool leads;
  char key[RAFT_NAME_MAX + 16];
  static const char lost[] = "not agreed on in time: try again";
  raft_state(node->raft, &term, &leads);
  if (!leads || term != join->term || node->closing ||
      clock_monotonic_ms() > join->deadline) {
    net_reply(join->request, ANSWER_REFUSED, lost, sizeof(lost) - 1);
    return true;
  }
  if (join->removed) {
    int rc = propose_change(node, RAFT_REMOVE, join->removed, NULL, &index);
    if (rc == 0 || rc == RAFT_ENOTFOUND) join->removed = 0;
    return false;
  }
  if (join->index == 0) {
    if (propose_change(node, RAFT_ADD_LEARNER, 0, &join->member, &index) != 0)
      return false; /* another change is under way */
    setting_name(key, sizeof(key), join->member.name);
    struct raft_body *body = settings_encode_change(key, NULL, 0);
    if (body) node_propose(node, RAFT_SETTING, body, &index);
    raft_body_unref(body);
    join->index = index;
  }
  if (node->applied < join->index) return false;
  join_answer(node, join);
  return true;
}

/* ---- a node that is rebuilt, the leader's side -------------------------- */

/* A certificate for whom the asker will be: somebody new, whom nobody lets in
   before it is a member. */
static void handle_renew(struct node *node, raft_id from, struct parser *p,
                         struct answer_to to)
{
  struct tls_error error = {""};
  const char *csr = parse_text(p);
  const struct raft_member *old =
      raft_configuration_find(raft_configuration(node->raft, NULL), from);
  if (!parser_done(p) || old == NULL) {
    refuse(to, old ? "malformed request" : not_a_member);
    return;
  }
  struct join *join = make_join(node, old->name, old->address, csr, &error);
  struct packer packed = {0};
  if (join) {
    pack_u64(&packed, join->member.id);
    pack_u64(&packed, join->member.incarnation);
    pack_text(&packed, join->cert);
  }
  if (join && !packed.bad)
    answer(to, ANSWER_OK, packed.data, packed.len);
  else
    refuse(to, join ? "out of memory" : error.text);
  free(packed.data);
  join_free(join);
}

/* One change: the asker is no member any more, whom it will be is a learner.
   What the asker has lost, votes and entries, was lost by somebody who has no
   say from then on. It need not be silent for that: it asks for itself. */
static void handle_replace(struct node *node, raft_id from, struct parser *p,
                           struct answer_to to)
{
  struct raft_member fresh = {.role = RAFT_LEARNER};
  raft_index index;
  fresh.id = parse_u64(p);
  fresh.incarnation = parse_u64(p);
  const char *address = parse_text(p);
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  const struct raft_member *old = raft_configuration_find(c, from);
  const struct raft_member *known = raft_configuration_find(c, fresh.id);
  if (!parser_done(p) || fresh.id == 0 || strlen(address) >= RAFT_ADDRESS_MAX) {
    refuse(to, "malformed request");
    return;
  }
  if (known && known->incarnation == fresh.incarnation) {
    answer(to, ANSWER_OK, NULL, 0); /* asked before */
    return;
  }
  if (old == NULL || old->role == RAFT_LEAVING) {
    refuse(to, not_a_member);
    return;
  }
  fresh.priority = old->priority;
  memcpy(fresh.name, old->name, sizeof(fresh.name));
  snprintf(fresh.address, sizeof(fresh.address), "%s", address);
  struct raft_change changes[2] = {
      {.type = RAFT_REMOVE, .id = from},
      {.type = RAFT_ADD_LEARNER, .member = &fresh}};
  int rc = propose_changes(node, 2, changes, &index);
  if (rc) {
    refuse(to, raft_strerror(rc));
    return;
  }
  events_add(&node->events, "%s asks to be rebuilt: its old self goes",
             fresh.name);
  answer(to, ANSWER_OK, NULL, 0);
}

/* Is the asker a member, agreed on? */
static void handle_admitted(struct node *node, raft_id from, struct parser *p,
                            struct answer_to to)
{
  raft_index index;
  const struct raft_configuration *c = raft_configuration(node->raft, &index);
  const struct raft_member *m = raft_configuration_find(c, from);
  struct join *join = NULL;
  const char *why = NULL;
  if (!parser_done(p))
    why = "malformed request";
  else if (m == NULL || m->role == RAFT_LEAVING)
    why = not_a_member;
  else if ((join = calloc(1, sizeof(*join))) == NULL)
    why = "out of memory";
  if (why) {
    refuse(to, why);
    return;
  }
  join->member = *m;
  join->index = index;
  begin_join(node, join, to);
}

static bool handle_rebuild(struct node *node, raft_id from, struct parser p,
                           struct answer_to to)
{
  switch (parse_u8(&p)) {
  case ASK_RENEW: handle_renew(node, from, &p, to); return true;
  case ASK_REPLACE: handle_replace(node, from, &p, to); return true;
  case ASK_ADMITTED: handle_admitted(node, from, &p, to); return true;
  default: return false;
  }
}

/* ---- members ----------------------------------------------------------- */

static const char *progress_name(const struct raft_progress *p, uint64_t now)
{
  if (p->last_contact == 0 || now - p->last_contact > 3000)
    return "unreachable";
  if (p->state == RAFT_SNAPSHOT) return "snapshot";
  return p->state == RAFT_PROBE ? "probe" : "replicate";
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
}

static void handle_members(struct node *node, struct answer_to to)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  struct packer p = {0};
  pack_u32(&p, c->n);
  for (unsigned i = 0; i < c->n; i++)
    pack_member(node, &p, &c->members[i]);
  if (p.bad)
    refuse(to, "out of memory");
  else
    answer(to, ANSWER_OK, p.data, p.len);
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
    snprintf(r->state, sizeof(r->state), "%s", parse_text(&p));
    r->known = true;
    r->match = parse_u64(&p);
    r->lag_entries = parse_u64(&p);
    uint64_t contact = parse_u64(&p);
    r->contact_ms = contact == UINT64_MAX ? -1 : (int64_t)contact;
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
    snprintf(r->state, sizeof(r->state), "unknown");
  }
  pthread_mutex_unlock(&node->mutex);
  return *rows ? 0 : -1;
}

int cluster_members(struct node *node, struct member_row **rows, unsigned *n)
{
  struct packer body = {0};
  uint8_t *data;
  size_t len;
  pack_u8(&body, ASK_MEMBERS);
  int status = cluster_ask(node, body, &data, &len);
  bool ok = status == ANSWER_OK && parse_members(data, len, rows, n);
  free(data);
  return ok ? 0 : local_members(node, rows, n);
}

/* ---- requests ---------------------------------------------------------- */

static void handle_verify(struct node *node, struct answer_to to)
{
  struct packer p = {0};
  const char *why = verify_begin(node, &p);
  if (why == NULL && p.bad) why = "out of memory";
  if (why)
    refuse(to, why);
  else
    answer(to, ANSWER_OK, p.data, p.len);
  free(p.data);
}

static void handle_checksum(struct node *node, struct parser *p,
                            struct answer_to to)
{
  struct packer told = {0};
  verify_tell(node, p, &told);
  if (!parser_done(p) || told.bad)
    refuse(to, "malformed request");
  else
    answer(to, ANSWER_OK, told.data, told.len);
  free(told.data);
}

static void handle(struct node *node, struct parser p, struct answer_to to)
{
  switch (parse_u8(&p)) {
  case ASK_INVITE: handle_invite(node, &p, to); break;
  case ASK_MEMBERS: handle_members(node, to); break;
  case ASK_VERIFY: handle_verify(node, to); break;
  case ASK_CHECKSUM: handle_checksum(node, &p, to); break;
  case ASK_FOLLOW: handle_follow(node, &p, to); break;
  default: refuse(to, "unknown request"); break;
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
    handle(node, p, to);
    return;
  }
  if (leader != node->identity.id) {
    const struct raft_member *m =
        raft_configuration_find(raft_configuration(node->raft, NULL), leader);
    if (m)
      answer(to, ANSWER_REDIRECT, m->address, strlen(m->address));
    else
      refuse(to, "no leader: no quorum, or an election");
    return;
  }
  /* Whoever has no certificate yet may only ask to join. */
  if (from != 0) {
    if (!handle_rebuild(node, from, p, to)) handle(node, p, to);
  } else if (parse_u8(&p) == ASK_JOIN) {
    handle_join(node, &p, to);
  } else {
    refuse(to, "unknown request");
  }
}

static void promote_learners(struct node *node)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  for (unsigned i = 0; i < c->n; i++) {
    struct raft_progress progress;
    raft_index index;
    struct raft_member m = c->members[i];
    if (m.role != RAFT_LEARNER || !raft_progress(node->raft, m.id, &progress) ||
        !progress.caught_up)
      continue;
    if (propose_change(node, RAFT_PROMOTE, m.id, NULL, &index) == 0)
      events_add(&node->events, "%s has caught up and becomes a voter", m.name);
    return; /* one change at a time */
  }
}

void cluster_tick(struct node *node)
{
  for (struct join **at = &node->joins; *at;) {
    struct join *join = *at;
    if (join_step(node, join)) {
      *at = join->next;
      join_free(join);
    } else {
      at = &join->next;
    }
  }
  if (raft_role(node->raft) == RAFT_LEADER && !node->closing)
    promote_learners(node);
}

void cluster_close(struct node *node)
{
  node->closing = true;
  cluster_tick(node);
}

/* The joining side's request; see join.c. */
void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr)
{
  pack_u8(p, ASK_JOIN);
  pack_blob(p, token->secret, sizeof(token->secret));
  pack_text(p, token->name);
  pack_text(p, address);
  pack_text(p, csr);
}
