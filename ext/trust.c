/*
** trust.c: whom a node trusts, and what others trust it by.
**
** DIR/ca.pem has the CAs that a node trusts, DIR/cert.pem and DIR/key.pem what
** it shows. All three change while it runs: a certificate is renewed by the
** node itself in the last third of its life, CAs follow the setting "ca"
** (rotate.c), and where certificates come from outside, the files that were
** named are looked at every few seconds. In each case the worker reads, checks
** and writes (renew.c), then the loop thread takes what came of it: from there
** on new connections use it. Those that there are stay.
*/
#include "trust.h"
#include "cluster.h"

#include <errno.h>
#include <stdio.h>

#define DAY 86400
#define LATE_MS 10000 /* due for so long and not renewed: worth a warning */

#define YEAR_10000 INT64_C(253402300799) /* less a second */

struct clock_text trust_time(int64_t seconds)
{
  /* Some are a peer's: of years that have four digits. */
  if (seconds < 0) seconds = 0;
  if (seconds > YEAR_10000) seconds = YEAR_10000;
  struct clock_text text = clock_text(seconds * 1000);
  text.s[strlen("2026-01-01 00:00:00")] = 0;
  return text;
}

/* ---- one identity --------------------------------------------------------- */

static int see(const struct identity *i, struct trust_view *view,
               struct tls_error *why)
{
  memset(view, 0, sizeof(*view));
  view->generation = trust_generation(i->ca);
  if (tls_fingerprints(i->ca, view->cas, TRUST_CAS_MAX, &view->n, why) != 0 ||
      tls_issuer(i->ca, i->cert, view->issuer, why) != 0)
    return -1;
  return tls_certificate_times(i->cert, &view->begins, &view->expires, why);
}

static int make(const struct identity *i, struct tls_context **tls,
                uint64_t *cluster, uint64_t *id, struct tls_error *why)
{
  char name[256];
  int64_t expires;
  if (i->names[0]) {
    *cluster = i->cluster;
    return tls_context_new_named(i->ca, i->cert, i->key, i->names, i->cluster,
                                 tls, why) != 0 ||
           tls_identity_named(i->cert, i->names, i->cluster, id, name,
                              sizeof(name), &expires, why) != 0;
  }
  return tls_context_new(i->ca, i->cert, i->key, tls, why) != 0 ||
         tls_identity(i->cert, cluster, id, &expires, why) != 0;
}

int trust_check(const char *dir, const struct identity *i,
                struct tls_context **tls, struct trust_view *view,
                struct text *error)
{
  struct tls_error why = {""};
  uint64_t cluster = 0, id = 0;
  bool outside = trust_is_outside(i), other = false;
  *tls = NULL;
  int rc = make(i, tls, &cluster, &id, &why);
  if (rc == 0) other = cluster != i->cluster || id != i->id;
  if (rc == 0 && !other) rc = see(i, view, &why);
  if (rc == 0 && !other) return 0;
  if (other)
    text_set(error, "%s%s: belongs to another node", outside ? "" : dir,
             outside ? i->cert_file : "/cert.pem");
  else
    text_set(error, "%s: %s", outside ? i->cert_file : dir, why.text);
  tls_context_unref(*tls);
  *tls = NULL;
  return outside ? -EACCES : -EBADMSG;
}

/* ---- begin and end ---------------------------------------------------------- */

int trust_open(struct node *node, struct text *error)
{
  struct trust *t = node->trust = calloc(1, sizeof(*t));
  if (t == NULL) {
    text_set(error, "out of memory");
    return -ENOMEM;
  }
  return trust_check(node->dir, &node->identity, &node->tls, &t->view, error);
}

void trust_free(struct node *node)
{
  struct trust *t = node->trust;
  tls_context_unref(node->tls);
  if (t == NULL) return;
  renew_forget(t);
  free(t);
  node->trust = NULL;
}

/* ---- what is said of its end ------------------------------------------------ */

/* Days that are left, by steps: 0 is none of them. The last one is over. */
static unsigned step_of(int64_t expires, const int *days, unsigned n)
{
  int64_t left = expires - clock_wall_ms() / 1000;
  unsigned step = 0;
  while (step < n && left < (int64_t)days[step] * DAY)
    step++;
  return step;
}

static const int node_days[] = {30, 7, 1, 0};
#define NODE_STEPS 4
static const int ca_days[] = {365, 90, 30, 7, 1, 0};
#define CA_STEPS 6

/* Nobody speaks to it any more; and it cannot get a new one by itself. */
static bool is_cut_off(const struct node *node)
{
  return node->members.n > 1 &&
         clock_wall_ms() / 1000 > node->trust->view.expires;
}

#define EXPIRED                                                                \
  "this node's certificate has expired, and the other nodes refuse it: "

const char *trust_no_leader(const struct node *node)
{
  if (!is_cut_off(node)) return "no leader: no quorum, or an election";
  return trust_is_outside(&node->identity) ? EXPIRED
             "put a new one in its place"
                                           : EXPIRED
             "invite its name again and join anew, see quorate_events";
}

static void tell_end(struct node *node)
{
  const struct identity *i = &node->identity;
  struct clock_text end = trust_time(node->trust->view.expires);
  if (trust_is_outside(i))
    events_add(&node->events,
               "this node's certificate expired on %s: the other nodes refuse "
               "it: put a new one into %.128s",
               end.s, i->cert_file);
  else
    events_add(&node->events,
               "this node's certificate expired on %s: the other nodes refuse "
               "it; local reads go on. To bring it back: delete its files here "
               "and join anew with SELECT quorate_invite('%s') of another node",
               end.s, i->name);
  pthread_mutex_lock(&node->mutex);
  struct text why;
  text_set(&why, "%s", trust_no_leader(node));
  node_keep_reason(node, &why);
  pthread_mutex_unlock(&node->mutex);
}

static void tell_left(struct node *node)
{
  struct trust *t = node->trust;
  const struct identity *i = &node->identity;
  int64_t days = (t->view.expires - clock_wall_ms() / 1000) / DAY;
  struct clock_text end = trust_time(t->view.expires);
  if (trust_is_outside(i))
    events_add(&node->events,
               "this node's certificate ends in %d days, on %s: put a new one "
               "into %.128s",
               (int)days, end.s, i->cert_file);
  else if (t->view.expires >= t->signer_expires && t->signer_expires)
    return; /* of the CA's end is told */
  else
    events_add(&node->events,
               "this node's certificate ends in %d days, on %s, and could not "
               "be renewed yet: %.120s",
               (int)days, end.s, t->why.s[0] ? t->why.s : "no leader");
}

static void warn_of_own(struct node *node, uint64_t now)
{
  struct trust *t = node->trust;
  unsigned step = step_of(t->view.expires, node_days, NODE_STEPS);
  bool late = trust_is_outside(&node->identity) ||
              (t->due_since && now - t->due_since >= LATE_MS);
  if (step > t->warned && !late) return;
  if (step > t->warned && step < NODE_STEPS) tell_left(node);
  if (step > t->warned && step == NODE_STEPS && is_cut_off(node))
    tell_end(node);
  t->warned = step;
}

static void warn_of_ca(struct node *node)
{
  struct trust *t = node->trust;
  unsigned step = t->seen ? step_of(t->signer_expires, ca_days, CA_STEPS) : 0;
  if (step > t->warned_ca)
    events_add(&node->events,
               "the cluster's CA %s on %s: for a new one: "
               "SELECT quorate_rotate_ca()",
               step == CA_STEPS ? "expired" : "ends",
               trust_time(t->signer_expires).s);
  t->warned_ca = step;
}

void trust_announce(struct node *node)
{
  if (!is_cut_off(node)) return;
  tell_end(node);
  node->trust->warned = NODE_STEPS;
}

/* ---- the setting "ca" --------------------------------------------------------- */

/* It has changed, or is seen for the first time. */
static void take_setting(struct node *node, const struct trust_ca *ca)
{
  struct trust *t = node->trust;
  struct tls_error error;
  int64_t begins;
  if (tls_fingerprint(ca->cert, t->signer, &error) != 0 ||
      tls_certificate_times(ca->cert, &begins, &t->signer_expires, &error) !=
          0) {
    events_add(&node->events, "the cluster's CA: %s", error.text);
    memset(t->signer, 0, sizeof(t->signer));
  }
  if (t->seen && t->seen != ca->generation) rotate_announce(node, ca);
  t->seen = ca->generation;
}

void trust_tick(struct node *node)
{
  struct trust *t = node->trust;
  struct trust_ca ca;
  uint64_t now = clock_monotonic_ms();
  if (node->closing || node->identity.joining) return;
  if (trust_is_outside(&node->identity)) {
    renew_look(node, now);
  } else if (trust_get_ca(&node->settings, &ca)) {
    if (ca.generation != t->seen) take_setting(node, &ca);
    renew_bundle(node, &ca, now);
    renew_tick(node, now);
    warn_of_ca(node);
  }
  warn_of_own(node, now);
  rotate_tick(node);
}

char *trust_begin(struct node *node)
{
  struct trust_ca ca;
  if (trust_is_outside(&node->identity)) return strdup("");
  return trust_get_ca(&node->settings, &ca) ? trust_bundle(&ca)
                                            : strdup(node->identity.ca);
}

int trust_pin(struct node *node, uint8_t fingerprint[32],
              struct tls_error *error)
{
  struct trust_ca ca;
  int rc = 0;
  pthread_mutex_lock(&node->mutex);
  if (trust_get_ca(&node->settings, &ca))
    rc = tls_fingerprint(ca.cert, fingerprint, error);
  else
    memcpy(fingerprint, node->trust->view.issuer, 32);
  pthread_mutex_unlock(&node->mutex);
  return rc;
}

int64_t trust_expires(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  int64_t expires = node->trust->view.expires;
  pthread_mutex_unlock(&node->mutex);
  return expires;
}

/* ---- requests of members ----------------------------------------------------- */

int trust_sign(struct node *node, raft_id id, const char *request, char **cert,
               struct tls_error *error)
{
  struct trust_ca ca;
  if (trust_get_ca(&node->settings, &ca))
    return tls_sign_request(ca.cert, ca.key, request, node->identity.cluster,
                            id, CERT_DAYS, cert, error);
  snprintf(error->text, sizeof(error->text),
           "this cluster has no CA: certificates come from outside: name them "
           "with the options ca, cert and key");
  return -1;
}

/* A member's next certificate: only for itself, and while it is one. */
static void handle_certify(struct node *node, raft_id from, struct parser *p,
                           struct answer_to to)
{
  struct tls_error error = {""};
  struct packer answer = {0};
  char *cert = NULL, revoked[40];
  size_t len;
  const char *request = parse_text(p);
  const struct raft_member *m =
      raft_configuration_find(raft_configuration(node->raft, NULL), from);
  snprintf(revoked, sizeof(revoked), "revoked/%016llx",
           (unsigned long long)from);
  if (!parser_done(p)) {
    cluster_refuse(to, "malformed request");
  } else if (m == NULL || m->role == RAFT_LEAVING ||
             settings_get(&node->settings, revoked, &len)) {
    cluster_refuse(to, "no member any more");
  } else if (trust_sign(node, from, request, &cert, &error) != 0) {
    cluster_refuse(to, error.text);
  } else {
    pack_text(&answer, cert);
    cluster_answer(to, answer.bad ? ANSWER_REFUSED : ANSWER_OK, answer.data,
                   answer.len);
    events_add(&node->events, "the certificate of %s is renewed", m->name);
    rotate_ask_soon(node, from);
  }
  free(answer.data);
  tls_free_text(cert);
}

static void handle_trust(struct node *node, struct parser *p,
                         struct answer_to to)
{
  struct packer answer = {0};
  trust_pack_view(&answer, &node->trust->view);
  if (!parser_done(p) || answer.bad)
    cluster_refuse(to, "malformed request");
  else
    cluster_answer(to, ANSWER_OK, answer.data, answer.len);
  free(answer.data);
}

bool trust_request(struct node *node, raft_id from, bool leads, struct parser p,
                   struct answer_to to)
{
  switch (parse_u8(&p)) {
  case ASK_TRUST: handle_trust(node, &p, to); return true;
  case ASK_CERTIFY:
    if (leads) handle_certify(node, from, &p, to);
    return leads;
  default: return false;
  }
}
