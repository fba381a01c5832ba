/*
** member.c: who belongs to the cluster: what the leader does about it, who may
** not come back, and where a node is to be found.
**
** Desired state: whoever wants a change (change.c) asks the leader for it again
** and again. The leader looks at the configuration. If all is as wanted, and
** agreed on, it says so; if it can never be, it refuses and says why; else it
** takes the next step, if there is one to take, and says what is waited for
** (ANSWER_AGAIN). It remembers nothing in between, so that the next leader goes
** on where this one stopped, and asking twice does no harm.
**
** A change of who votes is refused unless a quorum of the voters after it can be
** reached: a joint configuration that cannot be left again would keep everybody
** from writing. Who was heard from since the change was asked for first can; who
** has been silent for SILENT_MS cannot; in between one waits. Whoever asks tells
** how long ago that first time was.
**
** Setting "revoked/<id>": u64 index of the configuration that is without this
** node, text its name. Nobody proposes it. Each node makes it when it applies
** that configuration, so that it is the same on all of them, and nobody is a
** member no more without being refused from the same entry on. The oldest of
** too many goes. A node that learns that it was removed itself, from its log or
** from somebody who refuses it, keeps the same setting for itself.
**
** Setting "stay/<id>": u8 1: this learner is not promoted by itself. It may be
** there before its node is a member, and goes when that is revoked.
*/
#include "cluster.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define KEY_MAX 32 /* of a setting that names a node */
#define REVOKED "revoked/"
#define REVOKED_MAX 1024
#define NEAR_BEATS 3 /* heartbeats without a sign of life, and a bit */
#define NEAR_MS 250
#define TELL_MS 500 /* pace of telling a new address */
#define CALL_MS 2000
#define YIELD_MS 2000 /* for transactions of others, before leadership moves */

struct key {
  char s[KEY_MAX];
};

static struct key key_of(const char *what, raft_id id)
{
  struct key key;
  snprintf(key.s, sizeof(key.s), "%s%016llx", what, (unsigned long long)id);
  return key;
}

/* ---- learners that stay ------------------------------------------------ */

bool member_stays(const struct node *node, raft_id id)
{
  size_t len;
  return settings_get(&node->settings, key_of("stay/", id).s, &len) != NULL;
}

static int propose_stay(struct node *node, raft_id id, bool stay)
{
  const uint8_t on = 1;
  const struct key key = key_of("stay/", id);
  raft_index index;
  if (stay && !settings_room(&node->settings, key.s)) return RAFT_EBUSY;
  struct raft_body *body =
      settings_encode_change(key.s, stay ? &on : NULL, stay);
  int rc = body ? node_propose(node, RAFT_SETTING, body, &index) : RAFT_ENOMEM;
  raft_body_unref(body);
  return rc;
}

int member_stay(struct node *node, raft_id id)
{
  return propose_stay(node, id, true);
}

/* ---- who may not come back ---------------------------------------------- */

static bool parse_revoked(const struct setting *s, raft_index *index,
                          const char **name)
{
  struct parser p = parser_of(s->value, s->len);
  *index = parse_u64(&p);
  *name = parse_text(&p);
  return parser_done(&p);
}

static bool is_revoked(const struct setting *s)
{
  return strncmp(s->name, REVOKED, strlen(REVOKED)) == 0;
}

/* Of at least `most` the oldest goes. */
static void drop_oldest(struct settings *settings, unsigned most)
{
  const struct setting *oldest = NULL;
  raft_index least = 0;
  unsigned n = 0;
  for (unsigned i = 0; i < settings->n; i++) {
    const struct setting *s = &settings->items[i];
    raft_index index;
    const char *name;
    if (!is_revoked(s)) continue;
    n++;
    if (!parse_revoked(s, &index, &name)) index = 0;
    if (oldest == NULL || index < least) {
      oldest = s;
      least = index;
    }
  }
  struct key key;
  if (n == 0 || n < most) return;
  snprintf(key.s, sizeof(key.s), "%s", oldest->name);
  settings_set(settings, key.s, NULL, 0);
}

/* Where there is no room for any more settings, an older one makes it. */
static int revoke_node(struct settings *settings, const struct raft_member *m,
                       raft_index index)
{
  struct key key = key_of(REVOKED, m->id);
  struct packer value = {0};
  size_t len;
  settings_set(settings, key_of("stay/", m->id).s, NULL, 0);
  if (settings_get(settings, key.s, &len)) return 0;
  pack_u64(&value, index);
  pack_text(&value, m->name);
  if (settings->n >= SETTINGS_MAX) drop_oldest(settings, 0);
  int rc =
      value.bad ? -1 : settings_set(settings, key.s, value.data, value.len);
  free(value.data);
  if (rc == 0) drop_oldest(settings, REVOKED_MAX + 1);
  return rc;
}

int member_apply(struct node *node, const struct raft_configuration *next,
                 raft_index index)
{
  const struct raft_configuration *was = &node->configuration;
  int rc = 0;
  for (unsigned i = 0; rc == 0 && i < was->n; i++)
    if (raft_configuration_find(next, was->members[i].id) == NULL)
      rc = revoke_node(&node->settings, &was->members[i], index);
  /* A certificate from outside may say who joins again. */
  for (unsigned i = 0; i < next->n; i++)
    settings_set(&node->settings, key_of(REVOKED, next->members[i].id).s, NULL,
                 0);
  node->reconfigured = true;
  pthread_cond_broadcast(&node->changed);
  return rc ? -ENOMEM : 0;
}

/* Which settings there are may be changed by the worker, too, at start. */
static bool is_revoked_id(struct node *node, raft_id id)
{
  size_t len;
  pthread_mutex_lock(&node->mutex);
  bool is = settings_get(&node->settings, key_of(REVOKED, id).s, &len) != NULL;
  pthread_mutex_unlock(&node->mutex);
  return is;
}

static bool was_member(const struct node *node, const char *name)
{
  for (unsigned i = 0; i < node->settings.n; i++) {
    const struct setting *s = &node->settings.items[i];
    raft_index index;
    const char *its;
    if (is_revoked(s) && parse_revoked(s, &index, &its) &&
        strcmp(its, name) == 0)
      return true;
  }
  return false;
}

enum net_verdict member_verdict(void *ctx, raft_id peer, char *why, size_t size)
{
  struct node *node = ctx;
  if (is_revoked_id(node, peer)) {
    snprintf(why, size, "removed from the cluster");
    return NET_REVOKED;
  }
  /* The leader knows all members. A follower may not have heard of the newest
     yet, whom it must hear, or never learn of it: there a certificate of this
     cluster is enough. */
  if (raft_role(node->raft) == RAFT_LEADER &&
      !raft_configuration_find(raft_configuration(node->raft, NULL), peer)) {
    snprintf(why, size, "not a member");
    return NET_STRANGER;
  }
  return NET_ALLOWED;
}

void member_name(void *ctx, raft_id peer, char name[RAFT_NAME_MAX])
{
  struct node *node = ctx;
  const struct raft_member *m =
      raft_configuration_find(raft_configuration(node->raft, NULL), peer);
  if (m) snprintf(name, RAFT_NAME_MAX, "%s", m->name);
}

/* ---- this node was removed ----------------------------------------------- */

static void say_out(struct node *node)
{
  sqlite3_snprintf(sizeof(node->out.s), node->out.s,
                   "removed from the cluster: SELECT quorate_detach(%Q) makes "
                   "it an ordinary file",
                   node->path);
  node_keep_reason(node, &node->out);
}

void member_begin(struct node *node)
{
  if (is_revoked_id(node, node->identity.id)) say_out(node);
}

/* What it was told is kept with the next checkpoint. Whoever waits for the
   others is told that it is in vain. */
static void be_out(struct node *node)
{
  struct raft_member self = {.id = node->identity.id};
  memcpy(self.name, node->identity.name, sizeof(self.name));
  pthread_mutex_lock(&node->mutex);
  bool first = node->out.s[0] == 0;
  if (first) {
    revoke_node(&node->settings, &self, 0);
    say_out(node);
    for (struct transaction *tx = node->inflight; tx; tx = tx->next)
      bell_ring(&tx->bell, 2);
    pthread_cond_broadcast(&node->changed);
    writer_wake(node);
  }
  pthread_mutex_unlock(&node->mutex);
  if (!first) return;
  events_add(&node->events, "%s", node->out.s);
  node_lose_grant(node, true);
  reads_drop(node);
  if (node->wal && atomic_load(&node->settled) && !node->failed)
    atomic_store(&node->shared->serving, true);
}

void member_refused(void *ctx, raft_id peer, unsigned code, const char *text)
{
  struct node *node = ctx;
  (void)peer;
  (void)text; /* net/ tells of it */
  if (code == NET_GOODBYE_REVOKED) be_out(node);
}

void member_look(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool changed = node->reconfigured;
  node->reconfigured = false;
  pthread_mutex_unlock(&node->mutex);
  if (!changed) return;
  if (node->net) net_recheck(node->net); /* else the loop is about to end */
  if (is_revoked_id(node, node->identity.id)) be_out(node);
}

/* ---- arithmetic ---------------------------------------------------------- */

void member_sum(struct text *text, unsigned voters, enum member_tense tense)
{
  static const char *const tails[][2] = {
      [MEMBERS_ARE] = {"", ""},
      [MEMBERS_LEFT] = {" is left", " are left"},
      [MEMBERS_NOW] = {" now", " now"}};
  const char *const *tail = tails[tense];
  unsigned quorum = voters / 2 + 1;
  if (voters == 1)
    text_set(text, "1 voter%s: when it is lost nothing can be written",
             tail[0]);
  else if (voters == 2)
    text_set(text,
             "2 voters%s, both must agree: with one of them lost nothing can "
             "be written",
             tail[1]);
  else
    text_set(text, "%u voters%s, %u of them must agree: %u may be lost", voters,
             tail[1], quorum, voters - quorum);
}

enum member_reach member_reach(struct node *node, raft_id id, uint64_t since)
{
  struct net_peer_status status;
  struct raft_progress p;
  uint64_t now = clock_monotonic_ms(), last;
  uint64_t near = NEAR_BEATS * node->identity.heartbeat_ms + NEAR_MS;
  if (id == node->identity.id) return MEMBER_REACHED;
  if (!raft_progress(node->raft, id, &p)) return MEMBER_SILENT;
  last = p.last_contact;
  if (last && net_peer_status(node->net, id, &status) && status.connected &&
      now - last < (since < near ? since : near))
    return MEMBER_REACHED;
  /* A new leader has not heard from anybody yet. */
  if (last < node->lead_since) last = node->lead_since;
  return now - last <= SILENT_MS ? MEMBER_UNSURE : MEMBER_SILENT;
}

static void append_name(char *list, size_t size, const char *name)
{
  size_t n = strlen(list);
  snprintf(list + n, size - n, "%s%s", n ? ", " : "", name);
}

void member_list(const struct raft_configuration *c, struct text *why)
{
  char list[TEXT_MAX / 2] = "";
  size_t n = strlen(why->s);
  for (unsigned i = 0; i < c->n; i++)
    append_name(list, sizeof(list), c->members[i].name);
  snprintf(why->s + n, sizeof(why->s) - n, "; the members are %s", list);
}

/* The voters after a change of one. */
struct count {
  unsigned voters, reached, unsure;
  char near[TEXT_MAX / 2], waited_for[TEXT_MAX / 2];
};

/* Without `gone` and with `come`, as far as these are not 0. */
static void count_voters(struct node *node, raft_id gone, raft_id come,
                         uint64_t since, struct count *n)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  *n = (struct count){0};
  for (unsigned i = 0; i < c->n; i++) {
    const struct raft_member *m = &c->members[i];
    if ((m->role != RAFT_VOTER && m->id != come) || m->id == gone) continue;
    n->voters++;
    switch (member_reach(node, m->id, since)) {
    case MEMBER_REACHED:
      n->reached++;
      append_name(n->near, sizeof(n->near), m->name);
      break;
    case MEMBER_UNSURE:
      n->unsure++;
      append_name(n->waited_for, sizeof(n->waited_for), m->name);
      break;
    case MEMBER_SILENT: break;
    }
  }
}

/* ANSWER_OK: a quorum of them can be reached. */
static int weigh(const struct count *n, const char *doing, const char *makes,
                 struct text *why)
{
  unsigned quorum = n->voters / 2 + 1;
  if (n->reached >= quorum) return ANSWER_OK;
  if (n->reached + n->unsure >= quorum) {
    text_set(why, "waits to hear from %s", n->waited_for);
    return ANSWER_AGAIN;
  }
  text_set(why,
           "%s %s %u voter%s, of which %u must agree, but %s%s%s%s can be "
           "reached",
           doing, makes, n->voters, n->voters == 1 ? "" : "s", quorum,
           n->near[0] || n->waited_for[0] ? "only " : "none", n->near,
           n->near[0] && n->waited_for[0] ? ", " : "", n->waited_for);
  return ANSWER_REFUSED;
}

int member_may_lose(struct node *node, const struct raft_member *m,
                    uint64_t since, const char *doing, struct text *why)
{
  char what[RAFT_NAME_MAX + 32];
  struct count n;
  if (m->role != RAFT_VOTER) return ANSWER_OK;
  snprintf(what, sizeof(what), "%s %s", doing, m->name);
  count_voters(node, m->id, 0, since, &n);
  if (n.voters > 0) return weigh(&n, what, "leaves", why);
  text_set(why,
           "%s is the last voter: nothing could be written without it; "
           "quorate_detach() there makes its file an ordinary one",
           m->name);
  return ANSWER_REFUSED;
}

/* ---- changes, on the leader ---------------------------------------------- */

/* One that is asked for. */
struct change {
  struct node *node;
  uint8_t what;   /* enum member_change_kind */
  uint32_t since; /* ms since it was asked for first; 0: that is now */
  raft_id id;     /* whom it is about; of a transfer to anybody: from whom */
  const char *name;
  const struct raft_configuration *c;
  const struct raft_member *m; /* the same; NULL: no member */
  struct text text;
};

static int again(struct change *change, const char *text)
{
  text_set(&change->text, "%s", text);
  return ANSWER_AGAIN;
}

/* What raft said to a step. */
static int stepped(struct change *change, int rc, const char *waits_for)
{
  if (rc == RAFT_EINVAL || rc == RAFT_ENOTFOUND || rc == RAFT_EEXIST) {
    text_set(&change->text, "%s", raft_strerror(rc));
    return ANSWER_REFUSED;
  }
  return again(change, rc ? raft_strerror(rc) : waits_for);
}

static int propose(struct change *change, uint8_t type)
{
  raft_index index;
  int rc =
      cluster_propose_change(change->node, type, change->m->id, NULL, &index);
  return stepped(change, rc, "waits for agreement");
}

/* All is as wanted. */
static int done(struct change *change, const char *is, bool with_sum,
                enum member_tense tense)
{
  struct text sum = {""};
  unsigned voters = 0;
  const char *name = change->m ? change->m->name : change->name;
  for (unsigned i = 0; i < change->c->n; i++)
    voters += change->c->members[i].role == RAFT_VOTER;
  if (with_sum) member_sum(&sum, voters, tense);
  text_set(&change->text, "%s %s%s%s%s", name, is,
           change->since ? "" : " already", with_sum ? "; " : "", sum.s);
  return ANSWER_OK;
}

static int no_such_member(struct change *change)
{
  text_set(&change->text, "no such member: %s", change->name);
  member_list(change->c, &change->text);
  return ANSWER_REFUSED;
}

static int transfer(struct change *change, raft_id to)
{
  lock_yield(change->node, to, YIELD_MS);
  return again(change, "waits for another leader");
}

/* This node leads, and is not to any more. */
static int hand_over(struct change *change)
{
  struct node *node = change->node;
  struct count n;
  count_voters(node, node->identity.id, 0, change->since, &n);
  if (n.reached > 0) return transfer(change, 0);
  if (n.unsure > 0) {
    text_set(&change->text, "waits to hear from %s", n.waited_for);
    return ANSWER_AGAIN;
  }
  text_set(&change->text, "%s leads, and no other voter can be reached",
           node->identity.name);
  return ANSWER_REFUSED;
}

/* Its vote is taken away: what has to be so before. */
static int may_lose(struct change *change, const char *doing)
{
  int status = member_may_lose(change->node, change->m, change->since, doing,
                               &change->text);
  if (status != ANSWER_OK || change->m->id != change->node->identity.id)
    return status;
  return hand_over(change);
}

static int remove_member(struct change *change)
{
  bool was = change->since || was_member(change->node, change->name);
  if (change->m == NULL && !was) return no_such_member(change);
  if (change->m == NULL) return done(change, "is removed", true, MEMBERS_LEFT);
  int status = may_lose(change, "removing");
  return status == ANSWER_OK ? propose(change, RAFT_REMOVE) : status;
}

static int demote_member(struct change *change)
{
  struct node *node = change->node;
  if (change->m == NULL) return no_such_member(change);
  bool votes = change->m->role == RAFT_VOTER;
  bool stays = member_stays(node, change->m->id);
  int status = votes ? may_lose(change, "demoting") : ANSWER_OK;
  if (status != ANSWER_OK) return status;
  if (!stays)
    return stepped(change, propose_stay(node, change->m->id, true),
                   "waits for agreement");
  if (votes) return propose(change, RAFT_DEMOTE);
  return done(change, "is a learner", true, MEMBERS_LEFT);
}

/* Can it follow, and is there a quorum when it has a vote, too? */
static int may_promote(struct change *change)
{
  struct node *node = change->node;
  char what[RAFT_NAME_MAX + 32];
  struct raft_progress p;
  struct count n;
  enum member_reach near = member_reach(node, change->m->id, UINT64_MAX);
  if (near == MEMBER_SILENT) {
    text_set(&change->text, "%s cannot be reached", change->m->name);
    return ANSWER_REFUSED;
  }
  if (near == MEMBER_UNSURE || !raft_progress(node->raft, change->m->id, &p) ||
      !p.caught_up) {
    text_set(&change->text, "%s has not caught up", change->m->name);
    return ANSWER_AGAIN;
  }
  snprintf(what, sizeof(what), "promoting %s", change->m->name);
  count_voters(node, 0, change->m->id, change->since, &n);
  return weigh(&n, what, "makes", &change->text);
}

static int promote_member(struct change *change)
{
  struct node *node = change->node;
  if (change->m == NULL) return no_such_member(change);
  bool votes = change->m->role == RAFT_VOTER;
  int status = votes ? ANSWER_OK : may_promote(change);
  if (status != ANSWER_OK) return status;
  if (member_stays(node, change->m->id))
    return stepped(change, propose_stay(node, change->m->id, false),
                   "waits for agreement");
  if (!votes) return propose(change, RAFT_PROMOTE);
  return done(change, "is a voter", true, MEMBERS_NOW);
}

/* To anybody else: whoever led when it was asked for first leads no more. */
static int transfer_away(struct change *change)
{
  struct node *node = change->node;
  struct count n;
  if (change->id != node->identity.id) {
    change->m = raft_configuration_find(change->c, node->identity.id);
    change->name = node->identity.name;
    return done(change, "leads", false, MEMBERS_ARE);
  }
  count_voters(node, node->identity.id, 0, change->since, &n);
  if (n.voters > 0) return hand_over(change);
  text_set(&change->text, "%s is the only voter: nobody else can lead",
           node->identity.name);
  return ANSWER_REFUSED;
}

static int transfer_to(struct change *change)
{
  struct node *node = change->node;
  struct raft_progress p;
  if (change->name[0] == 0) return transfer_away(change);
  if (change->m == NULL) return no_such_member(change);
  if (change->m->id == node->identity.id)
    return done(change, "leads", false, MEMBERS_ARE);
  const char *name = change->m->name;
  enum member_reach near = member_reach(node, change->m->id, UINT64_MAX);
  if (change->m->role != RAFT_VOTER)
    text_set(&change->text,
             "%s is a learner: only a voter can lead; SELECT "
             "quorate_promote('%s') makes it one",
             name, name);
  else if (near == MEMBER_SILENT)
    text_set(&change->text, "%s cannot be reached", name);
  else if (near == MEMBER_UNSURE ||
           !raft_progress(node->raft, change->m->id, &p) ||
           p.state != RAFT_REPLICATE)
    return again(change, "waits for it to follow");
  else
    return transfer(change, change->m->id);
  return ANSWER_REFUSED;
}

/* What has to be over before anything else is looked at; NULL: nothing. */
static const char *under_way(struct node *node)
{
  raft_index index;
  const struct raft_configuration *c = raft_configuration(node->raft, &index);
  if (raft_transferring(node->raft)) return raft_strerror(RAFT_ETRANSFER);
  if (node->applied < node->lead_from)
    return "the leader is still applying what was committed before";
  if (raft_configuration_joint(c) || index > node->applied)
    return raft_strerror(RAFT_ECHANGING);
  return NULL;
}

static void find_member(struct change *change)
{
  change->m = NULL;
  if (change->id) {
    change->m = raft_configuration_find(change->c, change->id);
    return;
  }
  for (unsigned i = 0; i < change->c->n; i++)
    if (strcmp(change->c->members[i].name, change->name) == 0)
      change->m = &change->c->members[i];
  if (change->m)
    change->id = change->m->id;
  else if (change->name[0] == 0)
    change->id = change->node->identity.id;
}

static int decide(struct change *change)
{
  const char *waits_for = under_way(change->node);
  change->c = raft_configuration(change->node->raft, NULL);
  find_member(change);
  if (waits_for) return again(change, waits_for);
  switch (change->what) {
  case MEMBER_PROMOTE: return promote_member(change);
  case MEMBER_DEMOTE: return demote_member(change);
  case MEMBER_REMOVE: return remove_member(change);
  case MEMBER_TRANSFER: return transfer_to(change);
  default: text_set(&change->text, "unknown request"); return ANSWER_REFUSED;
  }
}

void member_pack_change(struct packer *p, uint8_t what, uint32_t since,
                        raft_id id, const char *name)
{
  pack_u8(p, ASK_CHANGE);
  pack_u8(p, what);
  pack_u32(p, since);
  pack_u64(p, id);
  pack_text(p, name);
}

void member_change(struct node *node, struct parser *p, struct answer_to to)
{
  struct change change = {.node = node};
  struct packer body = {0};
  change.what = parse_u8(p);
  change.since = parse_u32(p);
  change.id = parse_u64(p);
  change.name = parse_text(p);
  if (!parser_done(p) || (change.name[0] ? !identity_valid_name(change.name)
                                         : change.what != MEMBER_TRANSFER)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  int status = decide(&change);
  /* A step may have changed them, of which change.m is a part. */
  raft_index index;
  raft_configuration(node->raft, &index);
  pack_bytes(&body, change.text.s, strlen(change.text.s) + 1);
  pack_u64(&body, status == ANSWER_OK ? index : change.id);
  if (body.bad)
    cluster_refuse(to, "out of memory");
  else
    cluster_answer(to, status, body.data, body.len);
  free(body.data);
}

/* ---- where a node is ------------------------------------------------------ */

void member_address(struct node *node, char out[RAFT_ADDRESS_MAX])
{
  pthread_mutex_lock(&node->mutex);
  memcpy(out, node->identity.advertise, RAFT_ADDRESS_MAX);
  pthread_mutex_unlock(&node->mutex);
}

/* 0, or RAFT_E... */
static int move(struct node *node, raft_id id, const char *address)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  const struct raft_member *m = raft_configuration_find(c, id);
  raft_index index;
  if (m == NULL || m->role == RAFT_LEAVING) return RAFT_ENOTFOUND;
  if (strcmp(m->address, address) == 0) return 0;
  struct raft_member moved = *m;
  moved.outgoing = false;
  snprintf(moved.address, sizeof(moved.address), "%s", address);
  int rc = cluster_propose_change(node, RAFT_UPDATE, id, &moved, &index);
  if (rc == 0)
    events_add(&node->events, "%s is at %s from now on", moved.name, address);
  return rc;
}

void member_move(struct node *node, raft_id from, struct parser *p,
                 struct answer_to to)
{
  const char *address = parse_text(p);
  if (!parser_done(p) || !cluster_address_ok(address, true)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  int rc = move(node, from, address);
  if (rc == RAFT_ENOTFOUND)
    cluster_refuse(to, raft_strerror(rc));
  else if (rc)
    cluster_again(to, raft_strerror(rc));
  else
    cluster_answer(to, ANSWER_OK, NULL, 0);
}

static void told(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct node *node = ctx;
  (void)status;
  (void)body;
  (void)len;
  node->telling = false;
}

/* Until the others have it as this node says. */
static void tell_address(struct node *node)
{
  char address[RAFT_ADDRESS_MAX];
  const struct raft_member *self = raft_configuration_find(
      raft_configuration(node->raft, NULL), node->identity.id);
  raft_id leader = raft_leader(node->raft);
  uint64_t now = clock_monotonic_ms();
  if (self == NULL || leader == 0 || node->telling || now < node->tell_at ||
      node->closing || node->out.s[0])
    return;
  member_address(node, address);
  if (strcmp(self->address, address) == 0) return;
  node->tell_at = now + TELL_MS;
  if (leader == node->identity.id) {
    move(node, leader, address);
    return;
  }
  struct packer body = {0};
  pack_u8(&body, ASK_ADVERTISE);
  pack_text(&body, address);
  node->telling = !body.bad;
  if (!body.bad)
    net_call(node->net, leader, body.data, body.len, CALL_MS, told, node);
  free(body.data);
}

/* Leader: a member's disk has lost what it had acknowledged, or is a copy of an
   older one: it gets that again, but what else it had promised nobody knows. */
static void tell_set_backs(struct node *node)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  struct raft_progress p;
  char names[TEXT_MAX / 4] = "";
  unsigned n = 0;
  for (unsigned i = 0; i < c->n; i++) {
    if (!raft_progress(node->raft, c->members[i].id, &p) || p.set_backs == 0)
      continue;
    n += p.set_backs;
    append_name(names, sizeof(names), c->members[i].name);
  }
  if (n > node->set_backs)
    events_add(&node->events,
               "%s: entries that were acknowledged are not there any more: its "
               "disk has lost them, or was set back: rebuild it",
               names);
  node->set_backs = n;
}

void member_tick(struct node *node)
{
  member_look(node);
  tell_set_backs(node);
  tell_address(node);
}
