/*
** rotate.c: the CA of a cluster, and how a new one takes its place.
**
** The setting "ca" has the CA that signs, with its key, and while it is being
** replaced another one. Packed: version u32 = 1, generation u64, texts: cert,
** key, next cert, next key, old cert. Each value has a generation one higher
** than the one before; nodes keep it in ca.pem, and never go back.
**
** Nobody may be refused on the way, whatever is down and whoever leads:
**
** phase 1  next is there: it is trusted by who has heard of it, and signs
**          nothing. When all members have it in their ca.pem,
** phase 2  it signs, and the one before is old: still trusted. Each node sees
**          that its certificate is not of the CA that signs, and renews it
**          (trust.c). When all members have,
** phase 3  old goes: each node drops it from its ca.pem, and refuses it.
**
** The leader asks the members (ASK_TRUST) what they trust and show, as it is on
** their disks, and takes the next step when all of them have done the last. What
** one of them answered stays true: generations only grow. A member that cannot
** be reached holds it up until it is back, or removed. Whoever joins meanwhile
** begins with what the setting says then; as long as one is on its way no step
** is taken, since its certificate may be of the CA that is to go.
**
** A leader proposes nothing before it has applied its own first entry, and one
** change at a time: so no two follow from the same value.
*/
#include "call.h"
#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

#define CA_VERSION 1
#define SETTING "ca"
#define GENERATION "quorate-ca-generation: "

#define ROTATING_MS 200 /* pace of questions while a step is awaited */
#define IDLE_MS 1000    /* pace of the leader's look at all, else */
#define UNKNOWN_MS 1000 /* of a member not heard of yet */
#define KNOWN_MS 60000  /* of all, for their certificates' ends */
#define ANSWER_MS 2000
#define SILENT_MS 3000 /* without an answer: unreachable */
#define STEPS 3        /* of a rotation, each a generation */
#define ROTATE_MS 60000
#define AGAIN_MS 100

#define OUTSIDE                                                                \
  "certificates come from outside: put the new CA into the file of CAs on "    \
  "every node, then replace the certificates, then take the old CA out"

/* ---- the setting --------------------------------------------------------- */

bool trust_parse_ca(const void *data, size_t len, struct trust_ca *ca)
{
  struct parser p = parser_of(data, len);
  bool known = parse_u32(&p) == CA_VERSION;
  ca->generation = parse_u64(&p);
  ca->cert = parse_text(&p);
  ca->key = parse_text(&p);
  ca->next_cert = parse_text(&p);
  ca->next_key = parse_text(&p);
  ca->old_cert = parse_text(&p);
  return parser_done(&p) && known && ca->generation && ca->cert[0] &&
         ca->key[0] && !ca->next_cert[0] == !ca->next_key[0] &&
         !(ca->next_cert[0] && ca->old_cert[0]);
}

void trust_pack_ca(struct packer *p, const struct trust_ca *ca)
{
  pack_u32(p, CA_VERSION);
  pack_u64(p, ca->generation);
  pack_text(p, ca->cert);
  pack_text(p, ca->key);
  pack_text(p, ca->next_cert);
  pack_text(p, ca->next_key);
  pack_text(p, ca->old_cert);
}

bool trust_get_ca(const struct settings *settings, struct trust_ca *ca)
{
  size_t len;
  const uint8_t *value = settings_get(settings, SETTING, &len);
  return value && trust_parse_ca(value, len, ca);
}

static void forget(struct packer *p)
{
  if (p->data) explicit_bzero(p->data, p->cap);
  free(p->data);
}

int trust_put_ca(struct settings *settings, const char *cert, const char *key)
{
  struct trust_ca ca = {1, cert, key, "", "", ""};
  struct packer p = {0};
  trust_pack_ca(&p, &ca);
  int rc = p.bad ? -1 : settings_set(settings, SETTING, p.data, p.len);
  forget(&p);
  return rc;
}

char *trust_bundle(const struct trust_ca *ca)
{
  char *text = NULL;
  return asprintf(&text, GENERATION "%llu\n%s%s%s",
                  (unsigned long long)ca->generation, ca->cert, ca->next_cert,
                  ca->old_cert) < 0
             ? NULL
             : text;
}

uint64_t trust_generation(const char *bundle)
{
  size_t n = strlen(GENERATION);
  return strncmp(bundle, GENERATION, n) ? 0 : strtoull(bundle + n, NULL, 10);
}

static unsigned phase_of(const struct trust_ca *ca)
{
  return ca->next_cert[0] ? 1 : ca->old_cert[0] ? 2 : 0;
}

void rotate_announce(struct node *node, const struct trust_ca *ca)
{
  static const char *const lines[] = {
      "the old CA is dropped, and refused from now on",
      "there is a new CA, which all nodes come to trust; the old one signs",
      "the new CA signs: all nodes renew their certificates"};
  events_add(&node->events, "CA rotation: %s", lines[phase_of(ca)]);
}

/* ---- what members tell --------------------------------------------------- */

void trust_pack_view(struct packer *p, const struct trust_view *view)
{
  pack_u64(p, view->generation);
  pack_u32(p, view->n);
  for (unsigned i = 0; i < view->n; i++)
    pack_bytes(p, view->cas[i], 32);
  pack_bytes(p, view->issuer, 32);
  pack_u64(p, (uint64_t)view->begins);
  pack_u64(p, (uint64_t)view->expires);
}

bool trust_parse_view(const void *data, size_t len, struct trust_view *view)
{
  struct parser p = parser_of(data, len);
  const uint8_t *bytes;
  view->generation = parse_u64(&p);
  view->n = parse_u32(&p);
  if (view->n > TRUST_CAS_MAX) return false;
  for (unsigned i = 0; i < view->n; i++)
    if ((bytes = parse_bytes(&p, 32))) memcpy(view->cas[i], bytes, 32);
  if ((bytes = parse_bytes(&p, 32))) memcpy(view->issuer, bytes, 32);
  view->begins = (int64_t)parse_u64(&p);
  view->expires = (int64_t)parse_u64(&p);
  return parser_done(&p);
}

bool trust_trusts(const struct trust_view *view, const uint8_t ca[32])
{
  for (unsigned i = 0; i < view->n; i++)
    if (memcmp(view->cas[i], ca, 32) == 0) return true;
  return false;
}

/* NULL: nothing is known of it. */
static struct trust_peer *find_peer(struct trust *t, raft_id id)
{
  for (unsigned i = 0; i < t->n_peers; i++)
    if (t->peers[i].id == id) return &t->peers[i];
  return NULL;
}

/* Who is no member any more is forgotten. */
static void keep_members(struct trust *t, const struct raft_configuration *c)
{
  unsigned n = 0;
  for (unsigned i = 0; i < t->n_peers; i++)
    if (raft_configuration_find(c, t->peers[i].id)) t->peers[n++] = t->peers[i];
  t->n_peers = n;
  for (unsigned i = 0; i < c->n; i++)
    if (find_peer(t, c->members[i].id) == NULL)
      t->peers[t->n_peers++] = (struct trust_peer){.id = c->members[i].id};
}

struct inquiry {
  struct node *node;
  raft_id id;
  uint64_t lead_since;
};

static void told(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct inquiry *inquiry = ctx;
  struct trust *t = inquiry->node->trust;
  struct trust_peer *peer =
      inquiry->lead_since == t->lead_since ? find_peer(t, inquiry->id) : NULL;
  struct trust_view view;
  free(inquiry);
  if (peer == NULL) return;
  peer->asked = false;
  if (status != ANSWER_OK || !trust_parse_view(body, len, &view)) return;
  peer->known = true;
  peer->view = view;
  peer->answered_at = clock_monotonic_ms();
}

static void inquire(struct node *node, struct trust_peer *peer, uint64_t now)
{
  static const uint8_t question = ASK_TRUST;
  struct inquiry *inquiry = calloc(1, sizeof(*inquiry));
  if (inquiry == NULL) return;
  *inquiry = (struct inquiry){node, peer->id, node->trust->lead_since};
  peer->asked = true;
  peer->asked_at = now;
  net_call(node->net, peer->id, &question, 1, ANSWER_MS, told, inquiry);
}

void rotate_ask_soon(struct node *node, raft_id id)
{
  struct trust_peer *peer = find_peer(node->trust, id);
  uint64_t now = clock_monotonic_ms();
  if (peer && peer->asked_at > now - (KNOWN_MS - UNKNOWN_MS))
    peer->asked_at = now - (KNOWN_MS - UNKNOWN_MS);
}

int64_t trust_expires_of(struct node *node, raft_id id)
{
  struct trust *t = node->trust;
  struct trust_peer *peer = find_peer(t, id);
  if (id == node->identity.id) return t->view.expires;
  return peer && peer->known ? peer->view.expires : 0;
}

/* ---- the steps ----------------------------------------------------------- */

/* Has a member done what the present phase waits for? */
static bool is_ready(const struct trust_ca *ca, const uint8_t fingerprint[32],
                     const struct trust_view *view)
{
  if (view == NULL || view->generation < ca->generation) return false;
  if (phase_of(ca) == 1) return trust_trusts(view, fingerprint);
  return memcmp(view->issuer, fingerprint, 32) == 0;
}

static void add_name(struct text *names, const char *name, const char *how)
{
  size_t n = strlen(names->s);
  snprintf(names->s + n, sizeof(names->s) - n, "%s%s%s", n ? ", " : "", name,
           how);
}

/* Looks at all members: who is not ready. `peers` must be those of now. */
static void look(struct node *node, const struct trust_ca *ca)
{
  struct trust *t = node->trust;
  struct tls_error error;
  uint8_t fingerprint[32];
  bool ok = tls_fingerprint(ca->next_cert[0] ? ca->next_cert : ca->cert,
                            fingerprint, &error) == 0;
  for (unsigned i = 0; i < t->n_peers; i++) {
    struct trust_peer *peer = &t->peers[i];
    const struct trust_view *view = peer->known ? &peer->view : NULL;
    if (peer->id == node->identity.id) view = &t->view;
    peer->ready = ok && is_ready(ca, fingerprint, view);
  }
}

/* The members that are not; none: "". */
static struct text waits_for(struct node *node)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  struct text names = {""};
  uint64_t now = clock_monotonic_ms();
  for (unsigned i = 0; i < c->n; i++) {
    struct trust_peer *peer = find_peer(node->trust, c->members[i].id);
    if (peer && peer->ready) continue;
    bool silent = c->members[i].id != node->identity.id &&
                  (peer == NULL || peer->answered_at == 0 ||
                   now - peer->answered_at > SILENT_MS);
    add_name(&names, c->members[i].name, silent ? " (unreachable)" : "");
  }
  if (names.s[0] == 0 && node->joins) add_name(&names, "who is joining", "");
  return names;
}

/* What is awaited of a member is asked for often. */
static void inquire_all(struct node *node, uint64_t now, bool inside)
{
  struct trust *t = node->trust;
  for (unsigned i = 0; i < t->n_peers; i++) {
    struct trust_peer *peer = &t->peers[i];
    uint64_t pace = inside && !peer->ready ? ROTATING_MS
                    : !peer->known         ? UNKNOWN_MS
                                           : KNOWN_MS;
    if (peer->id != node->identity.id && !peer->asked &&
        (peer->asked_at == 0 || now - peer->asked_at >= pace))
      inquire(node, peer, now);
  }
}

/* Where the cluster's CA is this node's business: it leads, and knows all that
   was agreed on. */
static bool is_in_charge(const struct node *node)
{
  return raft_role(node->raft) == RAFT_LEADER &&
         node->applied >= node->lead_from &&
         node->applied >= node->trust->proposed;
}

static int propose(struct node *node, struct trust_ca *ca)
{
  struct packer p = {0};
  struct raft_body *body = NULL;
  ca->generation++;
  trust_pack_ca(&p, ca);
  if (!p.bad) body = settings_encode_change(SETTING, p.data, p.len);
  int rc = body ? node_propose(node, RAFT_SETTING, body, &node->trust->proposed)
                : RAFT_ENOMEM;
  raft_body_unref(body);
  forget(&p);
  return rc;
}

/* The value is only read: what is made of it is proposed. */
static void step(struct node *node, const struct trust_ca *now)
{
  struct trust_ca ca = *now;
  switch (phase_of(&ca)) {
  case 1:
    ca.old_cert = now->cert;
    ca.cert = now->next_cert;
    ca.key = now->next_key;
    ca.next_cert = ca.next_key = "";
    break;
  case 2: ca.old_cert = ""; break;
  default: return;
  }
  propose(node, &ca);
}

/* What is known of others is for one term as a leader. */
static void begin_term(struct node *node)
{
  struct trust *t = node->trust;
  if (t->lead_since == node->lead_since) return;
  t->lead_since = node->lead_since;
  t->proposed = t->looked_at = 0;
  t->n_peers = 0;
}

void rotate_tick(struct node *node)
{
  struct trust *t = node->trust;
  struct trust_ca ca;
  uint64_t now = clock_monotonic_ms();
  if (raft_role(node->raft) != RAFT_LEADER) return;
  begin_term(node);
  bool inside = trust_get_ca(&node->settings, &ca);
  bool moving = inside && (phase_of(&ca) || t->looked_gen != ca.generation);
  if (!moving && now - t->looked_at < IDLE_MS) return;
  t->looked_at = now;
  keep_members(t, raft_configuration(node->raft, NULL));
  if (inside) look(node, &ca);
  inquire_all(node, now, inside);
  bool all = inside && waits_for(node).s[0] == 0;
  if (all && phase_of(&ca) == 0) t->looked_gen = ca.generation;
  if (all && is_in_charge(node)) step(node, &ca);
}

/* ---- asked for ------------------------------------------------------------ */

static int begin(struct node *node, const struct trust_ca *now,
                 struct tls_error *error)
{
  struct trust_ca ca = *now;
  char *cert = NULL, *key = NULL;
  int rc = tls_make_ca(node->identity.cluster, &cert, &key, error);
  if (rc == 0) {
    ca.next_cert = cert;
    ca.next_key = key;
    rc = propose(node, &ca);
    if (rc) snprintf(error->text, sizeof(error->text), "%s", raft_strerror(rc));
  }
  tls_free_text(cert);
  tls_free_text(key);
  return rc;
}

/* u64 goal: the generation in which the asker's rotation is over; 0: it does not
   know yet: one is begun, or it waits for the one that is under way. The answer:
   goal u64, over u8, how many members u32, the fingerprint of the CA that signs,
   text: who is waited for. */
void rotate_handle(struct node *node, struct parser *p, struct answer_to to)
{
  static const unsigned left[] = {STEPS, 2, 1}; /* by the phase */
  struct packer answer = {0};
  struct tls_error error = {""};
  struct trust_ca ca;
  struct text waits = {""};
  uint8_t fingerprint[32] = {0};
  uint64_t goal = parse_u64(p);
  if (!parser_done(p)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  begin_term(node);
  bool knows = is_in_charge(node), over = false;
  if (knows && !trust_get_ca(&node->settings, &ca)) {
    cluster_refuse(to, OUTSIDE);
    return;
  }
  if (knows) {
    if (goal == 0) goal = ca.generation + left[phase_of(&ca)];
    keep_members(node->trust, raft_configuration(node->raft, NULL));
    look(node, &ca);
    waits = waits_for(node);
    over = ca.generation > goal || (ca.generation == goal && !waits.s[0]);
    tls_fingerprint(ca.cert, fingerprint, &error);
    if (ca.generation < goal && phase_of(&ca) == 0 &&
        begin(node, &ca, &error) != 0)
      text_set(&waits, "a leader: %s", error.text);
  } else {
    text_set(&waits, "the leader");
  }
  pack_u64(&answer, goal);
  pack_u8(&answer, over);
  pack_u32(&answer, raft_configuration(node->raft, NULL)->n);
  pack_bytes(&answer, fingerprint, 32);
  pack_text(&answer, waits.s);
  if (answer.bad)
    cluster_refuse(to, "out of memory");
  else
    cluster_answer(to, ANSWER_OK, answer.data, answer.len);
  free(answer.data);
}

/* ---- quorate_rotate_ca() --------------------------------------------------- */

struct rotation {
  uint64_t goal;
  bool over;
  struct text line; /* what came of it, or who is waited for */
};

static bool take_answer(struct rotation *r, const uint8_t *data, size_t len)
{
  struct parser p = parser_of(data, len);
  uint64_t goal = parse_u64(&p);
  bool over = parse_u8(&p) != 0;
  unsigned n = parse_u32(&p);
  const uint8_t *print = parse_bytes(&p, 32);
  const char *waits = parse_text(&p);
  if (!parser_done(&p)) return false;
  r->goal = goal;
  r->over = over;
  if (over)
    text_set(&r->line,
             "CA rotated: %u member%s %s certificates of the new CA "
             "%02x%02x%02x%02x%02x%02x%02x%02x, the old one is refused",
             n, n == 1 ? "" : "s", n == 1 ? "has" : "have", print[0], print[1],
             print[2], print[3], print[4], print[5], print[6], print[7]);
  else
    text_set(&r->line, "under way: waits for %s",
             waits[0] ? waits : "the next step");
  return true;
}

/* One question. 0, or -1 and it is in vain. */
static int ask(struct node *node, struct rotation *r, struct text *error)
{
  struct packer body = {0};
  uint8_t *data = NULL;
  size_t len = 0;
  int rc = 0;
  pack_u8(&body, ASK_ROTATE);
  pack_u64(&body, r->goal);
  int status = cluster_ask(node, body, &data, &len);
  if (status == ANSWER_OK && !take_answer(r, data, len)) {
    text_set(error, "malformed answer of the leader");
    rc = -1;
  } else if (status == ANSWER_REFUSED &&
             strncmp((char *)data, "no leader", 9) != 0) {
    text_set(error, "%s", (char *)data);
    rc = -1;
  } else if (status != ANSWER_OK) {
    text_set(&r->line, "%s: no leader: no quorum, or an election",
             r->goal ? "under way" : "not begun");
  }
  free(data);
  return rc;
}

void trust_run_rotate(struct node *node, const struct call *call,
                      const struct interrupt *interrupt, struct answer *answer)
{
  const struct cells *a = &call->arguments;
  struct rotation r = {0};
  struct timespec end =
      clock_deadline(a->n ? (uint64_t)a->at[0].number : ROTATE_MS);
  struct timespec now = clock_deadline(0);
  int rc = 0;
  if (trust_is_outside(&node->identity)) {
    text_set(&answer->error, OUTSIDE);
    rc = -1;
  }
  while (rc == 0 && !r.over) {
    rc = ask(node, &r, &answer->error);
    now = clock_deadline(0);
    if (rc || r.over || !clock_before(&now, &end)) break;
    struct timespec next = clock_deadline(AGAIN_MS);
    pthread_mutex_lock(&node->mutex);
    while (rc == 0 && !node->stopping)
      rc = node_wait(node, &node->changed, &next, interrupt);
    bool stopping = node->stopping;
    pthread_mutex_unlock(&node->mutex);
    if (rc == -ETIMEDOUT) rc = 0;
    if (stopping) break;
  }
  if (rc == 0 && r.goal)
    cells_text(&answer->cells, r.line.s);
  else if (rc == -EINTR)
    answer->status = SQLITE_INTERRUPT;
  else
    answer->status = SQLITE_ERROR;
  if (rc == 0 && !r.goal) text_set(&answer->error, "%s", r.line.s);
}
