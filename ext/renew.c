/*
** renew.c: a node's CAs, certificate and key while it runs.
**
** Renewal. In the last third of its life, or when its certificate is not of the
** CA that signs, a node makes a new key, has the leader sign for it, and takes
** both, without a restart. The files change in steps of which each leaves a
** node that can start, whatever cuts it off:
**
**     key.pem    the new key and the old one
**     cert.pem   the new certificate
**     key.pem    the new key
**
** Who starts takes of key.pem the key that belongs to cert.pem. A step that
** failed may have been taken all the same, so from then on the same key and
** certificate are tried until they are on the disk.
**
** ca.pem follows the setting "ca": it is written when that has a higher
** generation. What is written is not older than what anybody acts upon: the
** leader asks for what is on the disk (rotate.c).
**
** Files from outside are looked at. Three files cannot change at one moment, so
** what is found changed is judged when it has stayed the same for a while. What
** is of no use is told of once, and what was there before stays in use.
**
** A job is a copy of the identity as it will be. The loop makes it, the worker
** fills it in, and the loop takes it: one at a time.
*/
#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <stdio.h>

#define ANSWER_MS 5000
#define PAUSE_MS 1000 /* between two attempts; doubled up to */
#define PAUSE_MOST_MS 300000
#define BUNDLE_MS 10000 /* between two attempts to write ca.pem */
#define LOOK_MS 2000
#define JUDGE_MS 60000 /* what was refused is looked at again: clocks go on */
#define DAY 86400

enum job_kind { JOB_KEY, JOB_TAKE, JOB_BUNDLE, JOB_TIDY, JOB_LOOK };

struct trust_job {
  struct task task;
  enum job_kind kind;
  struct identity next; /* with texts of its own */
  char *old_key;        /* JOB_TAKE: of the certificate there is */
  char *request;        /* JOB_KEY: made with next.key */
  uint8_t signer[32];   /* JOB_TAKE: whose certificate it must be */
  uint64_t looked;      /* JOB_LOOK */
  uint64_t taken, refused, changing;
  /* what came of it */
  int rc;
  bool same;  /* nothing is new */
  bool void_; /* what was signed is of no use: another attempt may do better */
  struct text why;
  struct tls_context *tls;
  struct trust_view view;
};

static void job_free(struct trust_job *job)
{
  if (job == NULL) return;
  identity_clear(&job->next);
  tls_free_text(job->old_key);
  tls_free_text(job->request);
  tls_context_unref(job->tls);
  free(job);
}

static void forget_new(struct trust *t)
{
  tls_free_text(t->key);
  tls_free_text(t->cert);
  t->key = t->cert = NULL;
}

void renew_forget(struct trust *t)
{
  job_free(t->job);
  t->job = NULL;
  forget_new(t);
}

/* ---- files ------------------------------------------------------------------ */

char *trust_own_key(const char *ca, const char *cert, const char *keys)
{
  static const char begin[] = "-----BEGIN ", end[] = "-----END ";
  const char *at = keys;
  while ((at = strstr(at, begin))) {
    struct tls_context *tls = NULL;
    struct tls_error error;
    const char *last = strstr(at, end);
    if (last == NULL) return NULL;
    const char *after = strchr(last, '\n');
    size_t n = after ? (size_t)(after + 1 - at) : strlen(at);
    char *one = strndup(at, n);
    if (one == NULL) return NULL;
    if (tls_context_new(ca, cert, one, &tls, &error) == 0) {
      tls_context_unref(tls);
      return one;
    }
    tls_free_text(one);
    at += n;
  }
  return NULL;
}

static int replace_file(const struct io *io, const char *dir, const char *name,
                        const char *text, struct text *error)
{
  char *path = NULL;
  if (asprintf(&path, "%s/%s", dir, name) < 0) return -ENOMEM;
  int rc = io_replace_file(io, path, text, strlen(text));
  if (rc) text_set(error, "%s: %s", path, errno_text(-rc).s);
  free(path);
  return rc;
}

int trust_replace(const struct io *io, const char *dir, const char *cert,
                  const char *key, const char *old_key, struct text *error)
{
  char *both = NULL;
  struct text ignored;
  if (asprintf(&both, "%s%s", key, old_key) < 0) {
    text_set(error, "out of memory");
    return -ENOMEM;
  }
  int rc = replace_file(io, dir, "key.pem", both, error);
  if (rc == 0) rc = replace_file(io, dir, "cert.pem", cert, error);
  /* It is done: an old key beside the new one is of no use to anybody, and goes
     with the next start or renewal at the latest. */
  if (rc == 0) replace_file(io, dir, "key.pem", key, &ignored);
  tls_free_text(both);
  return rc;
}

/* ---- the worker ---------------------------------------------------------------- */

static void make_key(struct trust_job *job)
{
  struct tls_error error;
  char *key = NULL;
  job->rc = tls_make_request(&job->request, &key, &error);
  if (job->rc) {
    text_set(&job->why, "%s", error.text);
    return;
  }
  tls_free_text(job->next.key);
  job->next.key = key;
}

static void take(struct node *node, struct trust_job *job)
{
  struct text why;
  job->rc = trust_check(node->dir, &job->next, &job->tls, &job->view, &why);
  if (job->rc == 0 && memcmp(job->view.issuer, job->signer, 32) != 0) {
    text_set(&why, "the leader signed with a CA that is not the newest");
    job->rc = -EBADMSG;
  }
  job->void_ = job->rc != 0;
  if (job->rc == 0)
    job->rc = trust_replace(node->io, node->dir, job->next.cert, job->next.key,
                            job->old_key, &why);
  if (job->rc) job->why = why;
}

static void write_bundle(struct node *node, struct trust_job *job)
{
  job->rc =
      trust_check(node->dir, &job->next, &job->tls, &job->view, &job->why);
  if (job->rc == 0)
    job->rc =
        replace_file(node->io, node->dir, "ca.pem", job->next.ca, &job->why);
}

/* What a renewal that was cut off left: the key that is of no use goes. */
static void tidy(struct node *node, struct trust_job *job)
{
  char *key = trust_own_key(job->next.ca, job->next.cert, job->next.key);
  job->rc = key ? 0 : -ENOENT;
  if (key == NULL) return;
  tls_free_text(job->next.key);
  job->next.key = key;
  job->rc =
      trust_check(node->dir, &job->next, &job->tls, &job->view, &job->why);
  if (job->rc == 0)
    job->rc = replace_file(node->io, node->dir, "key.pem", key, &job->why);
}

static bool same_texts(const struct identity *a, const struct identity *b)
{
  return strcmp(a->ca, b->ca) == 0 && strcmp(a->cert, b->cert) == 0 &&
         strcmp(a->key, b->key) == 0;
}

/* `next` has the texts in use. */
static void judge(struct trust_job *job)
{
  struct identity fresh = job->next;
  fresh.ca = fresh.cert = fresh.key = NULL;
  job->rc = identity_read_outside(&fresh, &job->why);
  if (job->rc == 0 && same_texts(&fresh, &job->next)) {
    job->same = true;
    identity_clear(&fresh);
    return;
  }
  if (job->rc == 0 && !outside_in_time(&fresh, &job->why)) job->rc = -EACCES;
  if (job->rc == 0)
    job->rc = trust_check("", &fresh, &job->tls, &job->view, &job->why);
  identity_clear(&job->next);
  job->next = fresh;
}

static void look(struct trust_job *job)
{
  job->looked = outside_look(&job->next);
  job->same = job->looked == job->taken || job->looked == job->refused ||
              job->looked != job->changing;
  if (!job->same) judge(job);
}

void trust_work(struct node *node)
{
  struct trust_job *job = node->trust->job;
  switch (job->kind) {
  case JOB_KEY: make_key(job); break;
  case JOB_TAKE: take(node, job); break;
  case JOB_BUNDLE: write_bundle(node, job); break;
  case JOB_TIDY: tidy(node, job); break;
  case JOB_LOOK: look(job); break;
  }
  node_post(node, &job->task);
}

/* ---- the loop: jobs ---------------------------------------------------------- */

static void job_done(struct task *task);

static bool copy(char **out, const char *text)
{
  *out = strdup(text);
  return *out != NULL;
}

/* One that is filled in, and then begun; NULL: no memory, or one is under way. */
static struct trust_job *job_new(struct node *node, enum job_kind kind)
{
  if (node->trust->job) return NULL;
  struct trust_job *job = calloc(1, sizeof(*job));
  if (job == NULL) return NULL;
  const struct identity *i = &node->identity;
  job->kind = kind;
  job->task.run = job_done;
  job->next = *i;
  job->next.ca = job->next.cert = job->next.key = NULL;
  if (copy(&job->next.ca, i->ca) && copy(&job->next.cert, i->cert) &&
      copy(&job->next.key, i->key))
    return job;
  job_free(job);
  return NULL;
}

static void job_begin(struct node *node, struct trust_job *job)
{
  node->trust->job = job;
  pthread_mutex_lock(&node->mutex);
  node->worker_trust = true;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}

static void swap(char **a, char **b)
{
  char *text = *a;
  *a = *b;
  *b = text;
}

/* What the worker checked is in use from here on. */
static void adopt(struct node *node, struct trust_job *job)
{
  struct identity *i = &node->identity;
  pthread_mutex_lock(&node->mutex);
  swap(&i->ca, &job->next.ca);
  swap(&i->cert, &job->next.cert);
  swap(&i->key, &job->next.key);
  node->trust->view = job->view;
  pthread_mutex_unlock(&node->mutex);
  tls_context_unref(node->tls);
  node->tls = job->tls;
  job->tls = NULL;
  net_set_tls(node->net, node->tls);
}

/* ---- the loop: renewal ------------------------------------------------------- */

static void failed(struct node *node, const char *why, bool tell)
{
  struct trust *t = node->trust;
  uint64_t pause = t->pause ? t->pause * 2 : PAUSE_MS;
  bool known = strcmp(t->why.s, why) == 0;
  t->pause = pause < PAUSE_MOST_MS ? pause : PAUSE_MOST_MS;
  t->try_at = clock_monotonic_ms() + t->pause;
  t->step = TRUST_IDLE;
  if (tell && !known)
    events_add(&node->events, "the certificate could not be renewed yet: %s",
               why);
  text_set(&t->why, "%s", why);
}

static void begin_taking(struct node *node)
{
  struct trust *t = node->trust;
  struct trust_job *job = job_new(node, JOB_TAKE);
  bool ok = job != NULL;
  if (job) {
    job->old_key = trust_own_key(job->next.ca, job->next.cert, job->next.key);
    tls_free_text(job->next.cert);
    tls_free_text(job->next.key);
    job->next.cert = job->next.key = NULL;
    ok = job->old_key && copy(&job->next.cert, t->cert) &&
         copy(&job->next.key, t->key);
    memcpy(job->signer, t->signer, sizeof(job->signer));
  }
  if (!ok) {
    job_free(job);
    failed(node, "out of memory", true);
    return;
  }
  t->step = TRUST_TAKING;
  job_begin(node, job);
}

static void certified(struct node *node, char *cert)
{
  struct trust *t = node->trust;
  t->cert = cert;
  if (cert == NULL)
    failed(node, "out of memory", true);
  else if (t->job == NULL)
    begin_taking(node);
  else
    t->step = TRUST_IDLE; /* soon */
}

static void answered(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct node *node = ctx;
  struct parser p = parser_of(body, len);
  struct text why;
  if (node->closing || node->trust->step != TRUST_ASKING) return;
  if (status == ANSWER_OK) {
    const char *cert = parse_text(&p);
    if (parser_done(&p)) {
      certified(node, strdup(cert));
      return;
    }
    text_set(&why, "malformed answer of the leader");
  } else {
    text_set(&why, "%.*s", (int)(len < 200 ? len : 200),
             body ? (const char *)body : "");
  }
  forget_new(node->trust);
  failed(node, why.s, status == ANSWER_OK || status == ANSWER_REFUSED);
}

static void ask_leader(struct node *node, const char *request)
{
  struct trust *t = node->trust;
  struct packer body = {0};
  struct tls_error error;
  char *cert = NULL;
  raft_id leader = raft_leader(node->raft);
  t->asked = leader;
  t->step = TRUST_ASKING;
  if (leader == node->identity.id) {
    if (trust_sign(node, leader, request, &cert, &error) == 0) {
      certified(node, cert);
    } else {
      forget_new(t);
      failed(node, error.text, true);
    }
    return;
  }
  pack_u8(&body, ASK_CERTIFY);
  pack_text(&body, request);
  if (leader == 0 || body.bad) {
    forget_new(t);
    failed(node, body.bad ? "out of memory" : "no leader", false);
  } else {
    net_call(node->net, leader, body.data, body.len, ANSWER_MS, answered, node);
  }
  free(body.data);
}

/* Would a new one live longer? One that the CA's end cuts short does not. */
static bool would_gain(const struct trust *t, int64_t now)
{
  int64_t end = now + (int64_t)CERT_DAYS * DAY;
  if (t->signer_expires < end) end = t->signer_expires;
  return end > t->view.expires + DAY;
}

static bool is_due(const struct trust *t)
{
  int64_t now = clock_wall_ms() / 1000;
  const struct trust_view *v = &t->view;
  /* Of the CAs that this node knows by now, the newest must sign. */
  if (v->generation == t->seen && trust_trusts(v, t->signer) &&
      memcmp(v->issuer, t->signer, 32) != 0)
    return true;
  return now >= v->expires - (v->expires - v->begins) / 3 && would_gain(t, now);
}

void renew_tick(struct node *node, uint64_t now)
{
  struct trust *t = node->trust;
  raft_id leader = raft_leader(node->raft);
  if (t->step != TRUST_IDLE || t->job) return;
  if (!t->cert && !is_due(t)) {
    t->due_since = 0;
    return;
  }
  if (t->due_since == 0) t->due_since = now;
  /* Another leader may be able to do what the last one was not. */
  if (now < t->try_at && (leader == 0 || leader == t->asked)) return;
  if (t->cert) {
    begin_taking(node);
    return;
  }
  if (leader == 0) return;
  struct trust_job *job = job_new(node, JOB_KEY);
  if (job == NULL) return;
  t->step = TRUST_KEY;
  job_begin(node, job);
}

static void key_made(struct node *node, struct trust_job *job)
{
  struct trust *t = node->trust;
  if (job->rc) {
    failed(node, job->why.s, true);
    return;
  }
  forget_new(t);
  t->key = job->next.key;
  job->next.key = NULL;
  ask_leader(node, job->request);
}

static void both_taken(struct node *node, struct trust_job *job)
{
  struct trust *t = node->trust;
  if (job->rc) {
    if (job->void_) forget_new(t);
    failed(node, job->why.s, true);
    return;
  }
  adopt(node, job);
  forget_new(t);
  t->step = TRUST_IDLE;
  t->pause = t->try_at = t->due_since = 0;
  t->why.s[0] = 0;
  events_add(&node->events, "the certificate is renewed: valid until %s",
             trust_time(t->view.expires).s);
}

/* ---- the loop: CAs ------------------------------------------------------------- */

static bool has_two_keys(const char *keys)
{
  const char *first = strstr(keys, "-----BEGIN ");
  return first && strstr(first + 1, "-----BEGIN ");
}

void renew_bundle(struct node *node, const struct trust_ca *ca, uint64_t now)
{
  struct trust *t = node->trust;
  bool behind = ca->generation > t->view.generation;
  bool untidy = !behind && t->step == TRUST_IDLE && !t->cert &&
                has_two_keys(node->identity.key);
  if ((!behind && !untidy) || now < t->bundle_at) return;
  struct trust_job *job = job_new(node, behind ? JOB_BUNDLE : JOB_TIDY);
  if (job == NULL) return;
  t->bundle_at = now + BUNDLE_MS;
  if (behind) {
    tls_free_text(job->next.ca);
    job->next.ca = trust_bundle(ca);
    if (job->next.ca == NULL) {
      job_free(job);
      return;
    }
  }
  job_begin(node, job);
}

static void bundle_written(struct node *node, struct trust_job *job)
{
  if (job->rc) {
    events_add(&node->events, "the cluster's CAs could not be taken: %s",
               job->why.s);
    return;
  }
  adopt(node, job);
  node->trust->bundle_at = 0;
}

/* ---- the loop: files from outside ----------------------------------------------- */

void renew_look(struct node *node, uint64_t now)
{
  struct trust *t = node->trust;
  if (now < t->look_at) return;
  struct trust_job *job = job_new(node, JOB_LOOK);
  if (job == NULL) return;
  t->look_at = now + LOOK_MS;
  if (now >= t->judge_at) t->refused = 0;
  job->taken = t->taken;
  job->refused = t->refused;
  job->changing = t->changing;
  job_begin(node, job);
}

static void looked(struct node *node, struct trust_job *job)
{
  struct trust *t = node->trust;
  bool judged = job->looked == t->changing && job->looked != t->taken &&
                job->looked != t->refused;
  t->changing = job->looked;
  if (!judged) return;
  if (job->rc) {
    if (strcmp(t->refusal.s, job->why.s) != 0)
      events_add(&node->events,
                 "the new certificate files are refused, those of before stay "
                 "in use: %s",
                 job->why.s);
    t->refusal = job->why;
    t->refused = job->looked;
    t->judge_at = clock_monotonic_ms() + JUDGE_MS;
    return;
  }
  t->taken = job->looked;
  t->refused = 0;
  t->refusal.s[0] = 0;
  if (job->same) return;
  adopt(node, job);
  events_add(&node->events,
             "the new certificate files are in use: valid until %s",
             trust_time(t->view.expires).s);
}

static void job_done(struct task *task)
{
  struct node *node = task->node;
  struct trust_job *job = (struct trust_job *)task;
  node->trust->job = NULL;
  if (node->closing) {
    job_free(job);
    return;
  }
  switch (job->kind) {
  case JOB_KEY: key_made(node, job); break;
  case JOB_TAKE: both_taken(node, job); break;
  case JOB_BUNDLE: bundle_written(node, job); break;
  case JOB_TIDY:
    if (job->rc == 0) adopt(node, job);
    break;
  case JOB_LOOK: looked(node, job); break;
  }
  job_free(job);
}
