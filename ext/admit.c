/*
** admit.c: how nodes become members: the leader's side of joining (join.c) and
** of rebuilding (rebuild.c), and learners that have caught up.
*/
#include "cluster.h"
#include "trust.h"

#include <stdio.h>

#define JOIN_MS 10000

static const char not_a_member[] =
    "no member any more: another node may have taken its place";

/* A join that waits until the new member is agreed on. */
struct join {
  struct join *next;
  struct net_request *request;
  raft_term term;
  raft_index index; /* of its configuration; 0: not proposed yet */
  raft_id removed;  /* by the same change; 0: nobody */
  uint64_t begun;   /* ms */
  struct raft_member member;
  char *cert;                   /* NULL: it has one */
  struct invitation invitation; /* by which it comes */
  bool rebuilt;                 /* or it is proposed already: rebuild.c */
  bool stays;                   /* a learner that does is known to be one */
  bool spent;                   /* its invitation serves no more */
};

/* ---- joining ------------------------------------------------------------- */

/* It was added, and never got as far as to be a voter. */
static bool is_unfinished(struct node *node, const struct raft_member *m)
{
  return m->role == RAFT_LEARNER && !member_stays(node, m->id);
}

bool admit_replaceable(struct node *node, const struct raft_member *m)
{
  return is_unfinished(node, m) ||
         member_reach(node, m->id, 0) == MEMBER_SILENT;
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

static void refuse_join(struct node *node, const char *name,
                        struct answer_to to, const char *why)
{
  invite_refused(node, net_request_remote(to.request), name, why);
  cluster_refuse(to, why);
}

/* To be answered when its member is agreed on. */
static void begin_join(struct node *node, struct join *join,
                       struct answer_to to)
{
  bool leads;
  raft_state(node->raft, &join->term, &leads);
  join->request = to.request;
  join->begun = clock_monotonic_ms();
  join->next = node->joins;
  node->joins = join;
  admit_tick(node);
}

/* In whose place it is to come: a member that it names, or the one that has its
   name. Whether that one is gone is looked at again when it is its turn. NULL:
   *old, 0: nobody; else why not. */
static const char *find_old(struct node *node, const char *name,
                            const char *replaces, raft_id *old,
                            struct text *line)
{
  static const char taken[] =
      "a member has that name already, and is alive: use another one";
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  struct raft_member named, same;
  bool known = cluster_member_named(c, name, &same);
  *old = 0;
  if (replaces[0] && !cluster_member_named(c, replaces, &named)) {
    text_set(line, "no such member: %s", replaces);
    member_list(c, line);
    return line->s;
  }
  if (known && replaces[0] && same.id != named.id) return taken;
  if (replaces[0])
    *old = named.id;
  else if (known)
    *old = same.id;
  if (replaces[0] || !known || is_unfinished(node, &same) ||
      member_reach(node, same.id, UINT64_MAX) != MEMBER_REACHED)
    return NULL;
  return taken;
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
  const char *remote = net_request_remote(to.request), *why = NULL;
  struct text line;
  struct tls_error error = {""};
  struct invitation invitation;
  raft_id old = 0, own = net_request_identity(to.request);
  const uint8_t *secret = parse_blob(p, &n);
  const char *name = parse_text(p), *address = parse_text(p);
  const char *csr = parse_text(p), *replaces = parse_text(p);
  if (!parser_done(p) || !identity_valid_name(name) ||
      !cluster_address_ok(address, true) ||
      (replaces[0] && !identity_valid_name(replaces))) {
    cluster_refuse(to, "malformed request");
    return;
  }
  if (!invite_admits(node, remote, name, secret, n, &invitation, &line))
    why = line.s;
  if (why == NULL) why = find_old(node, name, replaces, &old, &line);
  if (why == NULL) why = id_in_the_way(node, own, csr, old);
  struct join *join =
      why ? NULL : make_join(node, name, address, own, csr, &error);
  if (why == NULL && join == NULL) why = error.text;
  if (why) {
    refuse_join(node, name, to, why);
    return;
  }
  join->invitation = invitation;
  join->removed = old;
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

/* Whether the other one may go, should there be one: an ANSWER_... */
static int may_replace(struct node *node, const struct join *join,
                       struct text *why)
{
  const struct raft_member *old = raft_configuration_find(
      raft_configuration(node->raft, NULL), join->removed);
  bool named = old && strcmp(old->name, join->member.name) == 0;
  if (old == NULL) return ANSWER_OK;
  if (named && is_unfinished(node, old)) return ANSWER_OK;
  switch (member_reach(node, old->id, UINT64_MAX)) {
  case MEMBER_REACHED:
    text_set(why,
             "%s is alive: only a member that was not heard of for %d s can be "
             "replaced; or remove it first: SELECT quorate_remove('%s')",
             old->name, SILENT_MS / 1000, old->name);
    return ANSWER_REFUSED;
  case MEMBER_UNSURE:
    text_set(why, "waits to hear from %s", old->name);
    return ANSWER_AGAIN;
  default:
    return member_may_lose(node, old, clock_monotonic_ms() - join->begun,
                           "replacing", why);
  }
}

/* Another one with the same token is proposed, but not yet that it has served. */
static bool is_contested(const struct node *node, const struct join *join)
{
  for (const struct join *j = node->joins; j; j = j->next)
    if (j != join && !j->rebuilt && j->index && !j->spent &&
        strcmp(j->member.name, join->member.name) == 0)
      return true;
  return false;
}

/* One change: the new one comes, and the old one goes, should there be one. */
static int propose_join(struct node *node, struct join *join, struct text *why)
{
  struct raft_change changes[2];
  raft_index index;
  unsigned n = 0;
  /* Meanwhile its token may have served another one, or been withdrawn. */
  if (!invite_holds(node, join->member.name, &join->invitation, why))
    return ANSWER_REFUSED;
  int status =
      is_contested(node, join) ? ANSWER_AGAIN : may_replace(node, join, why);
  if (status != ANSWER_OK) return status;
  const struct raft_member *old = raft_configuration_find(
      raft_configuration(node->raft, NULL), join->removed);
  if (old)
    changes[n++] = (struct raft_change){.type = RAFT_REMOVE, .id = old->id};
  /* With a certificate that both have, one after the other. */
  bool first = old && old->id == join->member.id;
  if (!first)
    changes[n++] =
        (struct raft_change){.type = RAFT_ADD_LEARNER, .member = &join->member};
  int rc = cluster_propose_changes(node, n, changes, &index);
  if (rc == RAFT_EINVAL) {
    text_set(why, "there are %u members, and no more can be", RAFT_MEMBERS_MAX);
    return ANSWER_REFUSED;
  }
  if (rc || first) return ANSWER_AGAIN; /* a change is under way */
  join->index = index;
  return ANSWER_OK;
}

/* What must be known with a new member: that it stays a learner, if it does, and
   that its invitation is used. It has its certificate, and can do anything, only
   after that. */
static bool propose_rest(struct node *node, struct join *join)
{
  if (join->rebuilt || join->spent) return true;
  if (!join->stays && join->invitation.role == RAFT_LEARNER) {
    if (member_stay(node, join->member.id) != 0) return false;
    join->stays = true;
  }
  join->spent = invite_spend(node, join->member.name, &join->index) == 0;
  return join->spent;
}

/* Takes the next step of a join. True: it is over. */
static bool join_step(struct node *node, struct join *join)
{
  struct answer_to to = {join->request, NULL};
  struct text why;
  raft_term term;
  bool leads;
  raft_state(node->raft, &term, &leads);
  if (!leads || term != join->term || node->closing ||
      clock_monotonic_ms() - join->begun > JOIN_MS) {
    cluster_refuse(to, "not agreed on in time: try again");
    return true;
  }
  if (join->index == 0 && propose_join(node, join, &why) == ANSWER_REFUSED) {
    refuse_join(node, join->member.name, to, why.s);
    return true;
  }
  if (join->index == 0 || !propose_rest(node, join) ||
      node->applied < join->index ||
      raft_configuration_joint(raft_configuration(node->raft, NULL)))
    return false;
  join_answer(node, join);
  return true;
}

void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr,
                       const char *replaces)
{
  pack_u8(p, ASK_JOIN);
  pack_blob(p, token->secret, sizeof(token->secret));
  pack_text(p, token->name);
  pack_text(p, address);
  pack_text(p, csr);
  pack_text(p, replaces);
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
  if (member_stays(node, from) && !member_stays(node, fresh.id)) {
    int failed = member_stay(node, fresh.id);
    cluster_again(to, failed ? raft_strerror(failed) : "waits for agreement");
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
  raft_index index;
  const struct raft_configuration *c = raft_configuration(node->raft, &index);
  if (index > node->applied) return; /* and what was to be known before it */
  for (unsigned i = 0; i < c->n; i++) {
    struct raft_progress progress;
    struct raft_member m = c->members[i];
    if (m.role != RAFT_LEARNER || member_stays(node, m.id) ||
        !raft_progress(node->raft, m.id, &progress) || !progress.caught_up)
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
