/*
** rebuild.c: quorate_rebuild(): a node that cannot start comes back with what
** the others have, on the thread of the application that calls it.
**
** It may have voted, and acknowledged entries, that its disk does not hold any
** more. So it must never be taken for its old self: it comes back as a new
** member with an id of its own. What it has left, its key and certificate,
** proves who asks (mutual TLS); the answers are the leader's (cluster.c).
**
** 1. RENEW, asked as the old self: an id, an incarnation and a certificate for
**    them. They are kept in DIR/rebuild, the file `node` last, before anything
**    is asked for in their name; a later call finds them and goes on with
**    them, so that there are never two new selves of one old.
** 2. REPLACE, asked as the old self: one joint change in which the old one is
**    removed and the new one becomes a learner.
** 3. ADMITTED, asked as the new self: answered when that change is committed.
**    The old self has no vote from here on. Up to here nothing else in the
**    node's directory or its database has changed.
** 4. The new identity, as `joining`, takes the place of the old one: the file
**    `node` last, which is one step. DIR/rebuild goes.
** 5. What the old self left goes: the database, -wal, -shm, log, vote,
**    checkpoint. With `joining` in the file `node`, nobody starts on a part of
**    them.
** 6. The node starts as one that joins: it gets a snapshot, `joining` ends, and
**    the leader makes it a voter.
**
** Cut off before 3, the files are as they were, and the next call asks again,
** as the new self first, since the change may have been made. Cut off between
** 3 and 4, it is told so. Cut off after 4, `joining` says where to go on: with
** step 3 (is it still a member?) and 5. A new self that has stored anything
** that it answered for is not `joining` any more (fetch.c), so to begin again
** with its id loses nothing.
*/
#include "cluster.h"
#include "trust.h"
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define ASKING_MS 10000 /* for a leader that takes it back */
#define ANSWER_MS 5000
#define PAUSE_MS 200

struct rebuild {
  char *path, *dir;
  char *draft; /* DIR/rebuild */
  int lock, db;
  struct identity old, next;
  bool drafted; /* next is known, and on the disk */
  bool begun;   /* the directory is next's: step 4 is done */
  bool certain; /* some file that tells of others could be read */
  struct tls_context *as_old, *as_next;
  struct peers peers;
  char leader[RAFT_ADDRESS_MAX]; /* who answered last; or "" */
  uint64_t until;
  struct raft_configuration members;
  struct text why;  /* nobody gave what was asked for */
  struct text took; /* how much, how long */
  bool unwanted;    /* because this node is no member, says who should know */
  bool revoked;     /* and never will be again */
};

static void append(struct text *text, const char *more)
{
  size_t n = strlen(text->s);
  snprintf(text->s + n, sizeof(text->s) - n, "%s", more);
}

static void clear(struct rebuild *r)
{
  node_unlock(r->lock);
  if (r->db >= 0) close(r->db);
  tls_context_unref(r->as_old);
  tls_context_unref(r->as_next);
  identity_clear(&r->old);
  identity_clear(&r->next);
  free(r->path);
  free(r->dir);
  free(r->draft);
  free(r);
}

/* ---- what is there ----------------------------------------------------- */

static bool take_options(struct rebuild *r, int n, const char *const *options,
                         struct text *error)
{
  if (n % 2) {
    text_set(error, "options come in pairs: name, value");
    return false;
  }
  for (int i = 0; i < n; i += 2) {
    if (options[i] == NULL || options[i + 1] == NULL) {
      text_set(error, "an option is NULL");
      return false;
    }
    if (strcmp(options[i], "peer") != 0) {
      text_set(error, "unknown option: %s", options[i]);
      return false;
    }
    if (!cluster_address_ok(options[i + 1], true)) {
      cluster_bad_value(options[i], options[i + 1], error);
      return false;
    }
    peers_add(&r->peers, options[i + 1]);
  }
  return true;
}

static bool find(struct rebuild *r, const char *path, struct text *error)
{
  struct stat st;
  r->path = strdup(path);
  if (r->path == NULL || asprintf(&r->dir, "%s-quorate", path) < 0)
    r->dir = NULL;
  if (r->dir == NULL || asprintf(&r->draft, "%s/rebuild", r->dir) < 0)
    r->draft = NULL;
  if (r->draft == NULL) {
    text_set(error, "out of memory");
    return false;
  }
  if (lstat(r->dir, &st) == 0)
    return directory_check(r->dir, error) == 0 &&
           !recover_under_way(path, r->dir, error);
  text_set(error, "%s: not a node: there is no %s-quorate", path,
           strrchr(path, '/') + 1);
  return false;
}

/* Nobody else may start the node, or look at the database, which goes. */
static bool exclude(struct rebuild *r, struct text *error)
{
  int pid = 0;
  r->lock = node_lock(r->dir, &pid, error);
  if (r->lock == -EWOULDBLOCK)
    text_set(error,
             "%s: the node runs in process %d: stop it there, and close its "
             "connections, first",
             r->path, pid);
  if (r->lock < 0) return false;
  r->db = open(r->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
  return r->db < 0 || detach_check_others(r->db, r->path, error) == 0;
}

static bool copy_identity(const struct identity *from, struct identity *to)
{
  *to = *from;
  to->ca = strdup(from->ca);
  to->cert = strdup(from->cert);
  to->key = strdup(from->key);
  return to->ca && to->cert && to->key;
}

/* Who it was, and who it will be if a call before this one knew already. */
static bool read_identities(struct rebuild *r, struct text *error)
{
  struct text ignored;
  int rc = identity_read(r->dir, &r->old, error);
  if (rc) {
    if (rc == -EBADMSG || rc == -ENOENT) node_advise(r->path, "", false, error);
    return false;
  }
  if (trust_is_outside(&r->old)) {
    text_set(
        error,
        "%s: its certificate comes from outside and says which node it is: "
        "it cannot be another: delete %s and %s*, invite %s again, and "
        "join with the same options and the new token",
        r->path, r->dir, r->path, r->old.name);
    return false;
  }
  r->begun = r->old.joining;
  if (r->begun) {
    r->drafted = true;
    if (copy_identity(&r->old, &r->next)) return true;
    text_set(error, "out of memory");
    return false;
  }
  r->drafted = identity_read(r->draft, &r->next, &ignored) == 0 &&
               r->next.cluster == r->old.cluster && r->next.id != r->old.id;
  if (r->drafted) return true;
  /* Not whole: nothing was asked for in its name. Or of this node itself,
     which has long been running with it. */
  identity_clear(&r->next);
  cluster_remove_directory(r->draft);
  return true;
}

/* Whom to ask: as the options say, then what the newest file says. */
static bool find_peers(struct rebuild *r, struct text *error)
{
  struct store_checkpoint cp = {0};
  char *line = NULL;
  r->certain = peers_read(r->dir, &r->peers);
  if (store_checkpoint_read(&io_posix, r->dir, &cp, &line) == 0) {
    peers_add_voters(&r->peers, &cp.configuration, r->old.id);
    r->certain = true;
  }
  free(line);
  store_checkpoint_clear(&cp);
  if (r->peers.n > 0) return true;
  if (r->certain)
    sqlite3_snprintf(
        sizeof(error->s), error->s,
        "%s: as far as is known here, no other node of its cluster has a vote: "
        "there is none to rebuild it from. SELECT quorate_detach(%Q) keeps the "
        "data. If there is one: SELECT quorate_rebuild(%Q, 'peer', "
        "'HOST:PORT')",
        r->path, r->path, r->path);
  else
    sqlite3_snprintf(
        sizeof(error->s), error->s,
        "%s: where the other nodes are cannot be read here: name one of them: "
        "SELECT quorate_rebuild(%Q, 'peer', 'HOST:PORT')",
        r->dir, r->path);
  return false;
}

struct tls_context *cluster_context_of(const struct identity *i,
                                       struct text *error)
{
  struct tls_context *context = NULL;
  struct tls_error why;
  uint64_t cluster, id;
  int64_t expires;
  if (tls_context_new(i->ca, i->cert, i->key, &context, &why) == 0 &&
      tls_identity(i->cert, &cluster, &id, &expires, &why) == 0 &&
      cluster == i->cluster && id == i->id)
    return context;
  text_set(error, "%s",
           context ? "the certificate belongs to another node" : why.text);
  tls_context_unref(context);
  return NULL;
}

/* ---- asking ------------------------------------------------------------ */

/* The same of who is named as the leader. ANSWER_OK, and *body; or it says
   why in r->why: what a node answers matters more than that others cannot be
   reached. */
static int ask_at(struct rebuild *r, struct tls_context *as,
                  const char *address, const struct packer *request,
                  unsigned ms, uint8_t **body, size_t *len, bool *answered)
{
  const struct identity *i = as == r->as_old ? &r->old : &r->next;
  struct net_identity self = {i->cluster, i->id, i->incarnation};
  char at[RAFT_ADDRESS_MAX];
  int status = ANSWER_REDIRECT;
  snprintf(at, sizeof(at), "%s", address);
  for (int tries = 0; tries < REDIRECTS && status == ANSWER_REDIRECT; tries++) {
    struct net_error error = {"", 0};
    *body = NULL;
    status = net_call_once(as, &self, at, request->data, request->len, ms, body,
                           len, &error);
    if (status == ANSWER_OK) {
      snprintf(r->leader, sizeof(r->leader), "%s", at);
      return status;
    }
    if (status == ANSWER_REDIRECT && *len > 0 && *len < sizeof(at))
      snprintf(at, sizeof(at), "%s", (const char *)*body);
    else if (status == ANSWER_REFUSED || status == ANSWER_AGAIN)
      text_set(&r->why, "%s: %s", at, (const char *)*body);
    else if (!*answered)
      text_set(&r->why, "%s", error.text[0] ? error.text : at);
    bool answers = status == ANSWER_REFUSED || status == ANSWER_AGAIN;
    if (error.goodbye == NET_GOODBYE_REVOKED) r->revoked = true;
    if (answers || !*answered)
      r->unwanted = error.goodbye == NET_GOODBYE_STRANGER;
    if (answers) *answered = true;
    free(*body);
    *body = NULL;
  }
  return status;
}

/* Everybody once, the leader of before first. */
static bool ask(struct rebuild *r, struct tls_context *as,
                struct packer *request, unsigned ms, uint8_t **body,
                size_t *len)
{
  char leader[RAFT_ADDRESS_MAX];
  bool answered = false, ok = false;
  memcpy(leader, r->leader, sizeof(leader));
  if (request->bad) text_set(&r->why, "out of memory");
  if (!request->bad && leader[0])
    ok = ask_at(r, as, leader, request, ms, body, len, &answered) == ANSWER_OK;
  for (unsigned i = 0; !request->bad && !ok && i < r->peers.n; i++) {
    if (i > 0 && clock_monotonic_ms() > r->until) break;
    if (strcmp(r->peers.at[i], leader) == 0) continue;
    ok = ask_at(r, as, r->peers.at[i], request, ms, body, len, &answered) ==
         ANSWER_OK;
  }
  if (!ok) r->leader[0] = 0;
  free(request->data);
  return ok;
}

/* Step 1. */
static bool take_draft(struct rebuild *r, const uint8_t *body, size_t len)
{
  struct identity *next = &r->next;
  struct parser p = parser_of(body, len);
  struct identity was = r->old;
  was.id = parse_u64(&p);
  was.incarnation = parse_u64(&p);
  const char *cert = parse_text(&p);
  if (!parser_done(&p) || was.id == 0 || was.id == r->old.id) {
    text_set(&r->why, "the cluster sent a malformed answer");
    return false;
  }
  char *key = next->key;
  was.joining = true;
  *next = was;
  next->ca = strdup(r->old.ca);
  next->cert = strdup(cert);
  next->key = key;
  if (next->ca && next->cert && key) return true;
  text_set(&r->why, "out of memory");
  return false;
}

static bool renew(struct rebuild *r)
{
  struct tls_error error;
  struct packer request = {0};
  uint8_t *body = NULL;
  size_t len = 0;
  char *csr = NULL;
  identity_clear(&r->next);
  if (tls_make_request(&csr, &r->next.key, &error) != 0) {
    text_set(&r->why, "%s", error.text);
    return false;
  }
  pack_u8(&request, ASK_RENEW);
  pack_text(&request, csr);
  tls_free_text(csr);
  bool ok = ask(r, r->as_old, &request, ANSWER_MS, &body, &len) &&
            take_draft(r, body, len);
  free(body);
  int rc = 0;
  if (ok) rc = io_posix.mkdir(io_posix.ctx, r->draft);
  if (ok && rc == 0) rc = io_posix.sync_dir(io_posix.ctx, r->dir);
  if (rc) text_set(&r->why, "%s: %s", r->draft, errno_text(-rc).s);
  ok = ok && rc == 0 && identity_write(r->draft, &r->next, &r->why) == 0;
  r->drafted = ok;
  return ok;
}

/* Step 2. */
static bool replace(struct rebuild *r)
{
  struct packer request = {0};
  uint8_t *body = NULL;
  size_t len = 0;
  pack_u8(&request, ASK_REPLACE);
  pack_u64(&request, r->next.id);
  pack_u64(&request, r->next.incarnation);
  pack_text(&request, r->next.advertise);
  bool ok = ask(r, r->as_old, &request, ANSWER_MS, &body, &len);
  free(body);
  return ok;
}

static bool take_admission(struct rebuild *r, const uint8_t *body, size_t len)
{
  struct admission a;
  if (!cluster_parse_admission(body, len, &a) || a.id != r->next.id ||
      a.incarnation != r->next.incarnation) {
    text_set(&r->why, MALFORMED_ADMISSION);
    return false;
  }
  r->next.heartbeat_ms = a.heartbeat_ms;
  r->next.election_timeout_ms = a.election_timeout_ms;
  r->next.lease = a.lease;
  r->members = a.members;
  return true;
}

/* Step 3. */
static bool admitted(struct rebuild *r)
{
  struct packer request = {0};
  uint8_t *body = NULL;
  size_t len = 0;
  struct text why = r->why;
  bool unwanted = r->unwanted;
  if (r->as_next == NULL) r->as_next = cluster_context_of(&r->next, &r->why);
  if (r->as_next == NULL) return false;
  pack_u8(&request, ASK_ADMITTED);
  bool ok = ask(r, r->as_next, &request, JOIN_TIMEOUT_MS, &body, &len) &&
            take_admission(r, body, len);
  free(body);
  /* What is said to the old self tells more, if that is still asked for. */
  if (!ok && !r->begun && why.s[0]) {
    r->why = why;
    r->unwanted = unwanted;
  }
  return ok;
}

/* Steps 1 to 3, as far as they are not done. */
static bool be_admitted(struct rebuild *r, struct text *error)
{
  struct timespec pause = {0, PAUSE_MS * 1000000};
  r->until = clock_monotonic_ms() + ASKING_MS;
  /* Without an old certificate the new one may do. */
  if (!r->begun) r->as_old = cluster_context_of(&r->old, error);
  if (r->as_old == NULL && !r->drafted) {
    struct text why = *error;
    text_set(error, "%s/cert.pem: %s", r->dir, why.s);
    node_advise(r->path, r->old.name, false, error);
    return false;
  }
  while (1) {
    if (r->drafted && admitted(r)) return true;
    if (clock_monotonic_ms() > r->until || (r->revoked && !r->drafted)) break;
    if (!r->as_old || !(r->drafted || renew(r)) || !replace(r))
      nanosleep(&pause, NULL);
  }
  text_set(error, "the other nodes did not take it back: %s", r->why.s);
  if (r->unwanted || r->revoked)
    node_advise(r->path, r->old.name, false, error);
  else
    append(error, "; nothing was given up here: call it again when they have a "
                  "leader");
  return false;
}

/* ---- the change of identity -------------------------------------------- */

struct removal {
  const char *dir;
  int rc;
};

static int drop(const char *path)
{
  int rc = io_posix.unlink(io_posix.ctx, path);
  return rc == -ENOENT ? 0 : rc;
}

/* What is the new self's, or belongs to nobody, stays. */
static void drop_old(void *arg, const char *name)
{
  static const char *const kept[] = {"node",    "ca.pem", "cert.pem",
                                     "key.pem", "lock",   "peers"};
  struct removal *removal = arg;
  struct stat st;
  char *path = NULL;
  for (unsigned i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
    if (strcmp(name, kept[i]) == 0) return;
  if (asprintf(&path, "%s/%s", removal->dir, name) < 0) {
    removal->rc = -ENOMEM;
    return;
  }
  int rc = lstat(path, &st) == 0 && S_ISDIR(st.st_mode) ? 0 : drop(path);
  if (rc) removal->rc = rc;
  free(path);
}

/* Step 5. */
static int empty(const struct rebuild *r)
{
  static const char *const folders[] = {"log", "incoming"};
  static const char *const beside[] = {"", "-wal", "-shm"};
  struct removal removal = {r->dir, 0};
  char name[4096];
  int rc = 0;
  for (unsigned i = 0; rc == 0 && i < 3; i++) {
    snprintf(name, sizeof(name), "%s%s", r->path, beside[i]);
    rc = drop(name);
  }
  for (unsigned i = 0; i < 2; i++) {
    snprintf(name, sizeof(name), "%s/%s", r->dir, folders[i]);
    cluster_remove_directory(name);
    if (rc == 0 && access(name, F_OK) == 0) rc = -EEXIST;
  }
  if (rc == 0) rc = io_posix.list(io_posix.ctx, r->dir, drop_old, &removal);
  if (rc == 0) rc = removal.rc;
  if (rc == 0) rc = io_posix.sync_dir(io_posix.ctx, r->dir);
  if (rc == 0) rc = io_sync_parent(&io_posix, r->path);
  return rc;
}

/* Steps 4 and 5. */
static bool change(struct rebuild *r, struct text *error)
{
  if (r->db >= 0 &&
      wal_lock(r->db, F_WRLCK, WAL_DB_LOCKS, WAL_DB_LOCKS_SIZE) != 0) {
    text_set(error,
             "%s: another process has it open: close it there, and call "
             "it again",
             r->path);
    return false;
  }
  int rc = peers_write(&io_posix, r->dir, &r->members, r->next.id);
  if (rc == 0) rc = identity_write(r->dir, &r->next, error);
  if (rc == 0) {
    cluster_remove_directory(r->draft);
    rc = io_posix.sync_dir(io_posix.ctx, r->dir);
  }
  if (rc == 0) rc = empty(r);
  if (rc)
    text_set(error, "%s: %s: call it again to finish", r->dir,
             errno_text(-rc).s);
  return rc == 0;
}

/* Step 6. */
static bool run(struct rebuild *r, const struct interrupt *interrupt,
                struct text *error)
{
  struct text why;
  unsigned voters;
  if (r->db >= 0) close(r->db);
  r->db = -1;
  node_unlock(r->lock);
  r->lock = -1;
  if (cluster_first_run(r->path, &r->members, interrupt, &voters, &r->took,
                        &why))
    return true;
  *error = why;
  append(error, ": call it again to finish");
  return false;
}

int cluster_rebuild(const char *path, int n, const char *const *options,
                    const struct interrupt *interrupt, struct text *answer)
{
  struct rebuild *r = calloc(1, sizeof(*r));
  if (r == NULL) {
    text_set(answer, "out of memory");
    return -1;
  }
  r->lock = r->db = -1;
  bool ok =
      take_options(r, n, options, answer) && find(r, path, answer) &&
      exclude(r, answer) && read_identities(r, answer) &&
      find_peers(r, answer) && cluster_address_free(r->old.listen, answer) &&
      be_admitted(r, answer) && change(r, answer) && run(r, interrupt, answer);
  if (ok)
    text_set(answer,
             "node %s of cluster %016llx, rebuilt from the others, listening "
             "on %s: %s",
             r->next.name, (unsigned long long)r->next.cluster, r->next.listen,
             r->took.s);
  clear(r);
  return ok ? 0 : -1;
}
