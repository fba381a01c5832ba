/*
** admit.c: how nodes become members: the leader's side of joining (join.c) and
** of rebuilding (rebuild.c), and learners that have caught up.
*/
#include "cluster.h"
#include "trust.h"

#include <stdio.h>

#define JOIN_MS 10000
#define SILENT_MS 3000 /* without a sign of life */

static const char not_a_member[] =
    "no member any more: another node may have taken its place";

/* A join that waits until the new member is agreed on. */
struct join {
  struct join *next;
  struct net_request *request;
  raft_term term;
  raft_index index; /* of its configuration; 0: not proposed yet */
  raft_index removed;
  uint64_t deadline;
  struct raft_member member;
  char *cert;   /* NULL: it has one */
  bool rebuilt; /* and is proposed already: rebuild.c */
};

/* ---- joining ------------------------------------------------------------- */

bool admit_replaceable(struct node *node, const struct raft_member *m)
{
  struct raft_progress p;
  uint64_t now = clock_monotonic_ms();
  if (m->role == RAFT_LEARNER) return true;
  /* A new leader has not heard from anybody yet. */
  return raft_progress(node->raft, m->id, &p) &&
         now - node->lead_since > SILENT_MS &&
         (p.last_contact == 0 || now - p.last_contact > SILENT_MS);
}

static void join_free(struct join *join)
{
  if (join == NULL) return;
  tls_free_text(join->cert);
  free(join);
}

/* own: the id in the certificate that the joiner has, with an outside PKI; else
   it gets one of a new id. */
static struct join *make_join(struct node *node, const char *name,
                              const char *address, raft_id own, const char *csr,
                              struct tls_error *error)
{
  struct join *join = calloc(1, sizeof(*join));
  snprintf(error->text, sizeof(error->text), "out of memory");
  if (join == NULL) return NULL;
  struct raft_member *m = &join->member;
  m->role = RAFT_LEARNER;
  snprintf(m->name, sizeof(m->name), "%s", name);
  snprintf(m->address, sizeof(m->address), "%s", address);
  m->id = own;
  if ((own == 0 && tls_random(&m->id, sizeof(m->id), error) != 0) ||
      tls_random(&m->incarnation, sizeof(m->incarnation), error) != 0) {
    join_free(join);
    return NULL;
  }
  if (own) return join;
  if (trust_sign(node, m->id | 1, csr, &join->cert, error) != 0) {
    join_free(join);
    return NULL;
  }
  m->id |= 1; /* never 0 */
  return join;
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
  admit_tick(node);
}

/* Why a joiner cannot have the id of its certificate, 0: it shows none, in the
   place of the member `old`, 0: in nobody's. NULL: it can. */
static const char *id_in_the_way(struct node *node, raft_id own,
                                 const char *csr, raft_id old)
{
  bool outside = trust_is_outside(&node->identity);
  if (own == 0 && outside)
    return "this cluster's certificates come from outside: name the files with "
           "the options ca, cert and key";
  if (own && (!outside || csr[0]))
    return "this cluster makes certificates itself: join without one";
  if (own && own != old &&
      raft_configuration_find(raft_configuration(node->raft, NULL), own))
    return "its certificate is that of another member";
  return NULL;
}

void admit_join(struct node *node, struct parser *p, struct answer_to to)
{
  size_t n;
  char line[TEXT_MAX];
  struct tls_error error = {""};
  struct raft_member old;
  raft_id own = net_request_identity(to.request);
  const uint8_t *secret = parse_blob(p, &n);
  const char *name = parse_text(p), *address = parse_text(p);
  const char *csr = parse_text(p);
  if (!parser_done(p) || !identity_valid_name(name) ||
      strlen(address) >= RAFT_ADDRESS_MAX) {
    cluster_refuse(to, "malformed request");
    return;
  }
  const char *why = invite_check(node, name, secret, n);
  bool known =
      cluster_member_named(raft_configuration(node->raft, NULL), name, &old);
  if (why == NULL && known && !admit_replaceable(node, &old))
    why = "a member has that name already";
  if (why == NULL) why = id_in_the_way(node, own, csr, known ? old.id : 0);
  struct join *join =
      why ? NULL : make_join(node, name, address, own, csr, &error);
  if (why == NULL && join == NULL) why = error.text;
  if (why) {
    snprintf(line, sizeof(line), "a node that would be %s was refused: %s",
             name, why);
    events_add(&node->events, "%s", line);
    cluster_refuse(to, why);
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
  char *ca = trust_begin(node);
  struct admission a = {
      .id = join->member.id,
      .incarnation = join->member.incarnation,
      .cert = join->cert ? join->cert : "", /* rebuilt: it has one */
      .ca = ca ? ca : "",
      .heartbeat_ms = node->identity.heartbeat_ms,
      .election_timeout_ms = node->identity.election_timeout_ms,
      .lease = node->identity.lease,
      .members = *raft_configuration(node->raft, NULL)};
  cluster_pack_admission(&p, &a);
  if (p.bad || ca == NULL)
    net_reply(join->request, ANSWER_REFUSED, "out of memory", 13);
  else
    net_reply(join->request, ANSWER_OK, p.data, p.len);
  free(p.data);
  free(ca);
  events_add(&node->events,
             join->rebuilt ? "%s is rebuilt at %s" : "%s joined from %s",
             join->member.name, join->member.address);
}

/* Takes the next step of a join. True: it is over. */
static bool join_step(struct node *node, struct join *join)
{
  raft_term term;
  raft_index index;
  bool leads;
  static const char lost[] = "not agreed on in time: try again";
  raft_state(node->raft, &term, &leads);
  if (!leads || term != join->term || node->closing ||
      clock_monotonic_ms() > join->deadline) {
    net_reply(join->request, ANSWER_REFUSED, lost, sizeof(lost) - 1);
    return true;
  }
  if (join->removed) {
    int rc =
        cluster_propose_change(node, RAFT_REMOVE, join->removed, NULL, &index);
    if (rc == 0 || rc == RAFT_ENOTFOUND) join->removed = 0;
    return false;
  }
  if (join->index == 0) {
    if (cluster_propose_change(node, RAFT_ADD_LEARNER, 0, &join->member,
                               &index) != 0)
      return false; /* another change is under way */
    invite_spend(node, join->member.name, &index);
    join->index = index;
  }
  if (node->applied < join->index) return false;
  join_answer(node, join);
  return true;
}

void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr)
{
  pack_u8(p, ASK_JOIN);
  pack_blob(p, token->secret, sizeof(token->secret));
  pack_text(p, token->name);
  pack_text(p, address);
  pack_text(p, csr);
}

/* ---- a node that is rebuilt -------------------------- */

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
    cluster_refuse(to, old ? "malformed request" : not_a_member);
    return;
  }
  struct join *join = make_join(node, old->name, old->address, 0, csr, &error);
  struct packer packed = {0};
  if (join) {
    pack_u64(&packed, join->member.id);
    pack_u64(&packed, join->member.incarnation);
    pack_text(&packed, join->cert);
  }
  if (join && !packed.bad)
    cluster_answer(to, ANSWER_OK, packed.data, packed.len);
  else
    cluster_refuse(to, join ? "out of memory" : error.text);
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
    cluster_refuse(to, "malformed request");
    return;
  }
  if (known && known->incarnation == fresh.incarnation) {
    cluster_answer(to, ANSWER_OK, NULL, 0); /* asked before */
    return;
  }
  if (old == NULL || old->role == RAFT_LEAVING) {
    cluster_refuse(to, not_a_member);
    return;
  }
  fresh.priority = old->priority;
  memcpy(fresh.name, old->name, sizeof(fresh.name));
  snprintf(fresh.address, sizeof(fresh.address), "%s", address);
  struct raft_change changes[2] = {
      {.type = RAFT_REMOVE, .id = from},
      {.type = RAFT_ADD_LEARNER, .member = &fresh}};
  int rc = cluster_propose_changes(node, 2, changes, &index);
  if (rc) {
    cluster_refuse(to, raft_strerror(rc));
    return;
  }
  events_add(&node->events, "%s asks to be rebuilt: its old self goes",
             fresh.name);
  cluster_answer(to, ANSWER_OK, NULL, 0);
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
    cluster_refuse(to, why);
    return;
  }
  join->member = *m;
  join->index = index;
  join->rebuilt = true;
  begin_join(node, join, to);
}

bool admit_rebuild(struct node *node, raft_id from, struct parser p,
                   struct answer_to to)
{
  switch (parse_u8(&p)) {
  case ASK_RENEW: handle_renew(node, from, &p, to); return true;
  case ASK_REPLACE: handle_replace(node, from, &p, to); return true;
  case ASK_ADMITTED: handle_admitted(node, from, &p, to); return true;
  default: return false;
  }
}

/* ---- now and then --------------------------------------------------------- */

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
    if (cluster_propose_change(node, RAFT_PROMOTE, m.id, NULL, &index) == 0)
      events_add(&node->events, "%s has caught up and becomes a voter", m.name);
    return; /* one change at a time */
  }
}

void admit_tick(struct node *node)
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
