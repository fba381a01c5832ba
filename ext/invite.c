/*
** invite.c: invitations: who may join, as what, by which token.
**
** Setting "invite/<name>": u8 version 1, u8 state, u8 role, i64 created, i64
** expires, i64 ended (ms of the calendar), 32 bytes SHA-256 of the secret, text
** the node that was asked for it. The secret itself is in the token alone.
**
** The leader decides, by its own clock: a token is good while its invitation is
** open, for an hour. In one step the leader proposes the new member and that
** the invitation is used, and from then on it knows of that, agreed on or not
** (`changes`); so a token serves once. What became of an invitation is kept for
** a day, so that whoever comes with an old token is told.
*/
#include "call.h"
#include "cluster.h"
#include "guesses.h"
#include "trust.h"

#include <sqlite3ext.h>
#include <stdio.h>

#define PREFIX "invite/"
#define LIFE_MS 3600000
#define KEPT_MS 86400000
#define INVITATIONS_MAX 1000
#define TICK_MS 1000
#define TICK_MOST 50 /* changes at a time */
#define WAIT_MS 5000
#define VERSION 1

struct key {
  char s[RAFT_NAME_MAX + sizeof(PREFIX)];
};

static struct key key_of(const char *name)
{
  struct key key;
  snprintf(key.s, sizeof(key.s), PREFIX "%s", name);
  return key;
}

/* The name in a setting's, or NULL: it is another. */
static const char *name_in(const struct setting *setting)
{
  size_t n = strlen(PREFIX);
  return strncmp(setting->name, PREFIX, n) ? NULL : setting->name + n;
}

struct ago_text ago_text(int64_t ms)
{
  struct ago_text text;
  long long s = ms / 1000;
  if (s < 1)
    snprintf(text.s, sizeof(text.s), "just now");
  else if (s < 120)
    snprintf(text.s, sizeof(text.s), "%lld s ago", s);
  else if (s < 7200)
    snprintf(text.s, sizeof(text.s), "%lld minutes ago", s / 60);
  else
    snprintf(text.s, sizeof(text.s), "%lld hours ago", s / 3600);
  return text;
}

/* ---- values -------------------------------------------------------------- */

void invite_pack(struct packer *p, const struct invitation *i)
{
  pack_u8(p, VERSION);
  pack_u8(p, i->state);
  pack_u8(p, i->role);
  pack_u64(p, (uint64_t)i->created);
  pack_u64(p, (uint64_t)i->expires);
  pack_u64(p, (uint64_t)i->ended);
  pack_bytes(p, i->digest, sizeof(i->digest));
  pack_text(p, i->by);
}

static bool valid_role(uint8_t role)
{
  return role == RAFT_VOTER || role == RAFT_LEARNER;
}

bool invite_parse(const uint8_t *value, size_t len, struct invitation *i)
{
  struct parser p = parser_of(value, len);
  memset(i, 0, sizeof(*i));
  bool known = parse_u8(&p) == VERSION;
  i->state = parse_u8(&p);
  i->role = parse_u8(&p);
  i->created = (int64_t)parse_u64(&p);
  i->expires = (int64_t)parse_u64(&p);
  i->ended = (int64_t)parse_u64(&p);
  const uint8_t *digest = parse_bytes(&p, sizeof(i->digest));
  const char *by = parse_text(&p);
  if (!parser_done(&p) || !known || i->state > INVITATION_WITHDRAWN ||
      !valid_role(i->role) || strlen(by) >= sizeof(i->by))
    return false;
  memcpy(i->digest, digest, sizeof(i->digest));
  snprintf(i->by, sizeof(i->by), "%s", by);
  return true;
}

/* ---- what the leader knows ------------------------------------------------ */

/* Proposed by this node in this term, and not applied yet. */
struct change {
  struct change *next;
  raft_index index;
  bool gone;
  struct invitation invitation;
  char name[RAFT_NAME_MAX];
};

struct invites {
  struct guesses guesses;
  struct change *changes; /* newest first */
  raft_term term;
  uint64_t looked; /* ms: at what is over */
};

struct invites *invites_new(void)
{
  return calloc(1, sizeof(struct invites));
}

/* Those up to an index. */
static void drop_changes(struct invites *invites, raft_index index)
{
  for (struct change **at = &invites->changes; *at;) {
    struct change *c = *at;
    if (c->index > index) {
      at = &c->next;
      continue;
    }
    *at = c->next;
    free(c);
  }
}

void invites_free(struct invites *invites)
{
  if (invites == NULL) return;
  drop_changes(invites, UINT64_MAX);
  free(invites);
}

static struct invites *room_of(struct node *node)
{
  struct invites *invites = node->invites;
  raft_term term;
  bool leads;
  raft_state(node->raft, &term, &leads);
  drop_changes(invites, term == invites->term ? node->applied : UINT64_MAX);
  invites->term = term;
  return invites;
}

/* The invitation as it is, and will be when what was proposed is agreed on. */
static bool look(struct node *node, const char *name, struct invitation *out)
{
  size_t len;
  for (const struct change *c = room_of(node)->changes; c; c = c->next)
    if (strcmp(c->name, name) == 0) {
      *out = c->invitation;
      return !c->gone;
    }
  const uint8_t *value = settings_get(&node->settings, key_of(name).s, &len);
  return value && invite_parse(value, len, out);
}

/* NULL: it is to be forgotten. 0 or RAFT_E... Settings may change meanwhile, and
   with them whatever points into them. */
static int propose(struct node *node, const char *name,
                   const struct invitation *i, raft_index *index)
{
  struct invites *invites = room_of(node);
  struct change *c = calloc(1, sizeof(*c));
  struct packer value = {0};
  struct raft_body *body = NULL;
  if (i && !settings_room(&node->settings, key_of(name).s)) {
    free(c);
    return RAFT_EBUSY;
  }
  if (i) invite_pack(&value, i);
  if (c && !value.bad) {
    snprintf(c->name, sizeof(c->name), "%s", name);
    body = settings_encode_change(key_of(name).s, value.data, value.len);
  }
  int rc = body ? node_propose(node, RAFT_SETTING, body, index) : RAFT_ENOMEM;
  raft_body_unref(body);
  free(value.data);
  if (rc) {
    free(c);
    return rc;
  }
  c->index = *index;
  c->gone = i == NULL;
  if (i) c->invitation = *i;
  c->next = invites->changes;
  invites->changes = c;
  return 0;
}

/* ---- invitations given and withdrawn --------------------------------------- */

/* How many there are, or will be; and the one that ended first, if any. */
static unsigned count(struct node *node, char oldest[RAFT_NAME_MAX])
{
  const struct settings *s = &node->settings;
  int64_t ended = INT64_MAX;
  unsigned n = 0;
  size_t len;
  oldest[0] = 0;
  for (unsigned k = 0; k < s->n; k++) {
    struct invitation i;
    const char *name = name_in(&s->items[k]);
    if (name == NULL || !look(node, name, &i)) continue;
    n++;
    if (i.state == INVITATION_OPEN || i.ended >= ended) continue;
    ended = i.ended;
    snprintf(oldest, RAFT_NAME_MAX, "%s", name);
  }
  for (const struct change *c = node->invites->changes; c; c = c->next)
    n += !c->gone && settings_get(s, key_of(c->name).s, &len) == NULL;
  return n;
}

/* Room for one more: the one that ended first goes, if there are too many. */
static bool make_room(struct node *node)
{
  char oldest[RAFT_NAME_MAX];
  raft_index index;
  if (count(node, oldest) < INVITATIONS_MAX) return true;
  return oldest[0] && propose(node, oldest, NULL, &index) == 0;
}

/* Why nobody can be invited by that name; empty: it can be. */
static struct text why_not(struct node *node, const char *name)
{
  struct text why = {""};
  struct raft_member member;
  struct invitation known;
  if (cluster_member_named(raft_configuration(node->raft, NULL), name,
                           &member) &&
      !admit_replaceable(node, &member))
    text_set(&why, "%s is a member already", name);
  else if (!look(node, name, &known) && !make_room(node))
    text_set(&why,
             "%d invitations are open: withdraw some by quorate_uninvite(), "
             "or wait an hour",
             INVITATIONS_MAX);
  return why;
}

void invite_handle(struct node *node, struct parser *p, struct answer_to to)
{
  struct invitation i = {.state = INVITATION_OPEN};
  raft_index index;
  const char *name = parse_text(p), *by;
  i.role = parse_u8(p);
  by = parse_text(p);
  const uint8_t *digest = parse_bytes(p, sizeof(i.digest));
  if (!parser_done(p) || !identity_valid_name(name) ||
      !identity_valid_name(by) || !valid_role(i.role)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  struct text why = why_not(node, name);
  if (why.s[0]) {
    cluster_refuse(to, why.s);
    return;
  }
  memcpy(i.digest, digest, sizeof(i.digest));
  snprintf(i.by, sizeof(i.by), "%s", by);
  i.created = clock_wall_ms();
  i.expires = i.created + LIFE_MS;
  int rc = propose(node, name, &i, &index);
  if (rc)
    cluster_refuse(to, raft_strerror(rc));
  else
    cluster_answer(to, ANSWER_OK, &index, sizeof(index));
}

/* An index to wait for, or 0, and what is to be said. */
static void answer_withdrawn(struct answer_to to, raft_index index,
                             const struct text *line)
{
  struct packer p = {0};
  pack_u64(&p, index);
  pack_text(&p, line->s);
  if (p.bad)
    cluster_refuse(to, "out of memory");
  else
    cluster_answer(to, ANSWER_OK, p.data, p.len);
  free(p.data);
}

/* What is to be said of one that needs not be withdrawn. */
static struct text say_ended(const char *name, const struct invitation *i)
{
  static const char *const how[] = {[INVITATION_OPEN] = "",
                                    [INVITATION_USED] = "was used",
                                    [INVITATION_EXPIRED] = "expired",
                                    [INVITATION_WITHDRAWN] =
                                        "was withdrawn already,"};
  struct text line;
  text_set(&line, "the invitation of %s %s %s", name, how[i->state],
           ago_text(clock_wall_ms() - i->ended).s);
  return line;
}

void invite_withdraw(struct node *node, struct parser *p, struct answer_to to)
{
  struct invitation i;
  struct text line;
  raft_index index = 0;
  const char *name = parse_text(p);
  if (!parser_done(p) || !identity_valid_name(name)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  if (!look(node, name, &i)) {
    text_set(&line, "there is no invitation of %s", name);
  } else if (i.state != INVITATION_OPEN) {
    line = say_ended(name, &i);
  } else {
    i.state = INVITATION_WITHDRAWN;
    i.ended = clock_wall_ms();
    int rc = propose(node, name, &i, &index);
    if (rc) {
      cluster_refuse(to, raft_strerror(rc));
      return;
    }
    text_set(&line, "the invitation of %s is withdrawn", name);
  }
  answer_withdrawn(to, index, &line);
}

/* ---- who comes with a token ------------------------------------------------ */

/* Why one that is not open does not serve, or whose time is over. */
static bool is_open(const struct invitation *i, struct text *why)
{
  int64_t now = clock_wall_ms();
  struct ago_text ago = ago_text(now - i->ended);
  switch (i->state) {
  case INVITATION_USED:
    text_set(why, "the token was used %s: it serves once", ago.s);
    return false;
  case INVITATION_WITHDRAWN:
    text_set(why, "the token was withdrawn %s", ago.s);
    return false;
  default: break;
  }
  if (i->state == INVITATION_OPEN && now <= i->expires) return true;
  text_set(why, "token expired %s: ask for a new one",
           ago_text(now - i->expires).s);
  return false;
}

bool invite_admits(struct node *node, const char *remote, const char *name,
                   const uint8_t *secret, size_t n, struct invitation *out,
                   struct text *why)
{
  struct guesses *g = &node->invites->guesses;
  char host[GUESSES_HOST_MAX];
  struct tls_error error;
  uint8_t digest[32];
  uint64_t now = clock_monotonic_ms(), wait;
  guesses_host(remote, host, sizeof(host));
  if (!guesses_may(g, host, now, &wait)) {
    text_set(why, "too many failed attempts from %s: try again in %llu s", host,
             (unsigned long long)(wait + 999) / 1000);
    return false;
  }
  bool good = false;
  if (!look(node, name, out))
    text_set(why,
             "no invitation of %s: it was never given, or is over for more "
             "than a day",
             name);
  else if (n != TLS_SECRET_BYTES ||
           tls_digest(secret, n, digest, &error) != 0 ||
           !tls_equal(digest, out->digest, sizeof(digest)))
    text_set(why, "wrong token: not the newest one of %s", name);
  else
    good = is_open(out, why);
  if (!good) guesses_failed(g, host, now);
  return good;
}

bool invite_holds(struct node *node, const char *name,
                  const struct invitation *i, struct text *why)
{
  struct invitation now;
  if (look(node, name, &now) &&
      tls_equal(now.digest, i->digest, sizeof(i->digest)))
    return is_open(&now, why);
  text_set(why, "the invitation of %s was replaced meanwhile", name);
  return false;
}

int invite_spend(struct node *node, const char *name, raft_index *index)
{
  struct invitation i;
  if (!look(node, name, &i)) return RAFT_ENOTFOUND;
  i.state = INVITATION_USED;
  i.ended = clock_wall_ms();
  return propose(node, name, &i, index);
}

void invite_refused(struct node *node, const char *remote, const char *name,
                    const char *why)
{
  uint64_t untold;
  if (!guesses_tell(&node->invites->guesses, clock_monotonic_ms(), &untold))
    return;
  if (untold)
    events_add(&node->events, "%llu more joins were refused",
               (unsigned long long)untold);
  events_add(&node->events, "a node at %s that would be %s was refused: %s",
             remote, name, why);
}

/* ---- now and then --------------------------------------------------------- */

void invite_tick(struct node *node)
{
  const struct settings *s = &node->settings;
  uint64_t now = clock_monotonic_ms();
  int64_t time = clock_wall_ms();
  struct invites *invites = node->invites;
  struct invitation i;
  raft_index index;
  unsigned left = TICK_MOST;
  if (raft_role(node->raft) != RAFT_LEADER || node->closing ||
      now - invites->looked < TICK_MS)
    return;
  invites->looked = now;
  for (unsigned k = 0; k < s->n && left > 0; k++) {
    const char *name = name_in(&s->items[k]);
    if (name == NULL || !look(node, name, &i)) continue;
    bool over = i.state != INVITATION_OPEN && time - i.ended > KEPT_MS;
    bool late = i.state == INVITATION_OPEN && time > i.expires;
    if (!over && !late) continue;
    i.state = INVITATION_EXPIRED;
    i.ended = i.expires;
    propose(node, name, over ? NULL : &i, &index);
    left--;
  }
}

void invite_count(const struct node *node, struct invite_counters *out)
{
  const struct settings *s = &node->settings;
  struct invitation i;
  *out = (struct invite_counters){.failed = node->invites->guesses.failed,
                                  .limited = node->invites->guesses.refused};
  for (unsigned k = 0; k < s->n; k++) {
    if (name_in(&s->items[k]) == NULL ||
        !invite_parse(s->items[k].value, s->items[k].len, &i))
      continue;
    out->open += i.state == INVITATION_OPEN;
    out->used += i.state == INVITATION_USED;
  }
}

/* ---- application threads -------------------------------------------------- */

/* Another leader may have put something else where it was to be. */
static bool agreed(struct node *node, const char *name, const uint8_t *digest,
                   uint8_t state, struct text *error)
{
  struct invitation i;
  size_t len;
  pthread_mutex_lock(&node->mutex);
  const uint8_t *value = settings_get(&node->settings, key_of(name).s, &len);
  bool found = value && invite_parse(value, len, &i) &&
               (digest ? tls_equal(i.digest, digest, sizeof(i.digest))
                       : i.state == state);
  pthread_mutex_unlock(&node->mutex);
  if (!found) text_set(error, "not agreed on: the leader changed: try again");
  return found;
}

static bool valid_name(const char *name, struct text *error)
{
  if (identity_valid_name(name)) return true;
  text_set(error, "a name is 1 to 63 letters, digits, '.', '_' or '-'");
  return false;
}

int cluster_invite(struct node *node, const char *name, uint8_t role,
                   char **token, struct text *error)
{
  struct tls_token t = {.cluster = node->identity.cluster};
  struct tls_error tls_error;
  uint8_t digest[32];
  struct packer body = {0};
  if (!valid_name(name, error)) return -1;
  if (identity_alone(&node->identity)) {
    text_set(error, "this node was made by QUORATE_AUTO: it listens nowhere");
    return -1;
  }
  snprintf(t.name, sizeof(t.name), "%s", name);
  member_address(node, t.address);
  if (tls_random(t.secret, sizeof(t.secret), &tls_error) != 0 ||
      tls_digest(t.secret, sizeof(t.secret), digest, &tls_error) != 0) {
    text_set(error, "%s", tls_error.text);
    return -1;
  }
  pack_u8(&body, ASK_INVITE);
  pack_text(&body, name);
  pack_u8(&body, role);
  pack_text(&body, node->identity.name);
  pack_bytes(&body, digest, sizeof(digest));
  int rc = cluster_ask_and_wait(node, body, error);
  if (rc == 0 && !agreed(node, name, digest, 0, error)) rc = -1;
  /* By now what is known here of CAs is as new as the invitation. */
  if (rc == 0 && (trust_pin(node, t.ca_fingerprint, &tls_error) != 0 ||
                  tls_token_encode(&t, token, &tls_error) != 0)) {
    text_set(error, "%s", tls_error.text);
    rc = -1;
  }
  explicit_bzero(&t, sizeof(t));
  return rc;
}

int cluster_uninvite(struct node *node, const char *name, struct text *line)
{
  struct packer body = {0};
  struct text said;
  uint8_t *data;
  size_t len;
  if (!valid_name(name, line)) return -1;
  pack_u8(&body, ASK_UNINVITE);
  pack_text(&body, name);
  int rc = -1, status = cluster_ask(node, body, &data, &len);
  struct parser p = parser_of(data, data ? len : 0);
  raft_index index = status == ANSWER_OK ? parse_u64(&p) : 0;
  text_set(&said, "%s", status == ANSWER_OK ? parse_text(&p) : "");
  if (status != ANSWER_OK || !parser_done(&p))
    text_set(line, "%s", data ? (const char *)data : "no answer");
  else if (index == 0)
    rc = 0;
  else if (node_wait_applied(node, index, WAIT_MS, NULL, &index, line) != 0)
    text_set(line, "not agreed on: no quorum");
  else if (agreed(node, name, NULL, INVITATION_WITHDRAWN, line))
    rc = 0;
  if (rc == 0) *line = said;
  free(data);
  return rc;
}

/* ---- calls ------------------------------------------------------------------ */

bool invite_role(const char *text, uint8_t *role)
{
  *role = strcmp(text, "learner") == 0 ? RAFT_LEARNER : RAFT_VOTER;
  return *role == RAFT_LEARNER || strcmp(text, "voter") == 0;
}

static void refuse(struct node *node, const char *function,
                   const struct text *why, struct answer *answer)
{
  node_reason(node, "%s: %s", function, why->s);
  answer->status = SQLITE_ERROR;
  answer->error = *why;
}

void invite_run_give(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer)
{
  const struct cells *a = &call->arguments;
  struct text error = {""};
  uint8_t role = RAFT_VOTER;
  char *token = NULL;
  (void)interrupt;
  if (a->n > 1) invite_role(a->at[1].text, &role);
  if (cluster_invite(node, a->at[0].text, role, &token, &error) != 0) {
    refuse(node, "quorate_invite", &error, answer);
    return;
  }
  cells_text(&answer->cells, token);
  tls_free_text(token);
}

void invite_run_withdraw(struct node *node, const struct call *call,
                         const struct interrupt *interrupt,
                         struct answer *answer)
{
  struct text line = {""};
  (void)interrupt;
  if (cluster_uninvite(node, call->arguments.at[0].text, &line) != 0)
    refuse(node, "quorate_uninvite", &line, answer);
  else
    cells_text(&answer->cells, line.s);
}

static void add_time(struct cells *row, bool known, int64_t ms)
{
  cells_text(row, known ? clock_text(ms).s : NULL);
}

/* As this node has heard of them. */
void invite_run_list(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer)
{
  static const char *const states[] = {"open", "used", "expired", "withdrawn"};
  struct cells *row = &answer->cells;
  const struct settings *s = &node->settings;
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  for (unsigned k = 0; k < s->n; k++) {
    struct invitation i;
    const char *name = name_in(&s->items[k]);
    if (name == NULL || !invite_parse(s->items[k].value, s->items[k].len, &i))
      continue;
    cells_text(row, name);
    cells_text(row, i.role == RAFT_LEARNER ? "learner" : "voter");
    cells_text(row, states[i.state]);
    add_time(row, true, i.created);
    add_time(row, true, i.expires);
    add_time(row, i.state == INVITATION_USED, i.ended);
    cells_text(row, i.by);
    add_time(row, i.state == INVITATION_WITHDRAWN, i.ended);
  }
  pthread_mutex_unlock(&node->mutex);
}
