/*
** registry.c: the replicated databases of this process, by their path.
**
** One mutex guards the list and every start and stop, and is taken by fork(). In
** a child there are none of the threads: it keeps its hands off the parent's
** nodes (forks.c), forgets them, and finds, when it opens a database, that its
** parent hosts it.
*/
#include "cluster.h"
#include "database.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define HOST_MS 10000 /* of a host that starts or ends, to take us */
#define PAUSE_MS 10
#define PARK_MS 1000  /* for all loops to stand still, at fork() */
#define LINGER_MS 500 /* attached, without a connection */

struct refusal {
  struct refusal *next;
  char *path;
  struct text reason;
};

/* It tells when a thread that has it forks: in what an application hung in, like
   a log callback. */
static pthread_mutex_t mutex = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
static bool nested; /* such a fork() */
unsigned registry_forks;
bool registry_guest;
static struct database *databases;
static struct database *detached; /* but open connections or a watch use it */
static struct opened *files;
static struct refusal *refusals;
static struct text newest; /* of the refusals */
static bool exiting;

/* What of each database must be whole in a child: its clients, and what its loop
   knows. */
static void stand_still(void)
{
  struct timespec end = clock_deadline(PARK_MS);
  struct node *node;
  for (struct database *d = databases; d; d = d->next) {
    pthread_mutex_lock(&d->mutex);
    if ((node = atomic_load(&d->node))) forks_ask(node);
  }
  for (struct database *d = databases; d; d = d->next)
    if ((node = atomic_load(&d->node))) forks_wait(node, &end);
}

static void before_fork(void)
{
  nested = pthread_mutex_lock(&mutex) == EDEADLK;
  if (!nested) stand_still();
}

static void after_fork(void)
{
  if (nested) return;
  for (struct database *d = databases; d; d = d->next) {
    struct node *node = atomic_load(&d->node);
    if (node) forks_release(node);
    pthread_mutex_unlock(&d->mutex);
  }
  pthread_mutex_unlock(&mutex);
}

/* Copies of what the parent has must not outlive it. Connections that were open
   may still be closed, which is to change nothing: vfs_inherited(). */
static void in_child(void)
{
  for (struct database *d = databases; d; d = d->next) {
    struct node *node = atomic_load(&d->node);
    if (node) forks_abandon(node);
    attach_abandon(d);
  }
  for (struct database *d = detached; d; d = d->next)
    attach_abandon(d);
  databases = detached = NULL;
  registry_forks++;
  mutex = (pthread_mutex_t)PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
}

static void watch_forks(void)
{
  control_watch_forks();
  pthread_atfork(before_fork, after_fork, in_child);
}

static void enter(void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&mutex);
}

static struct database *find(const char *path)
{
  struct database *d = databases;
  while (d && strcmp(d->path, path) != 0)
    d = d->next;
  return d;
}

static void set_refusal(const char *path, const struct text *reason)
{
  if (reason->s[0]) newest = *reason;
  text_plain(newest.s);
  struct refusal *r = refusals;
  while (r && strcmp(r->path, path) != 0)
    r = r->next;
  if (r == NULL) {
    r = calloc(1, sizeof(*r));
    if (r) r->path = strdup(path);
    if (r == NULL || r->path == NULL) {
      free(r);
      return;
    }
    r->next = refusals;
    refusals = r;
  }
  r->reason = *reason;
  text_plain(r->reason.s);
}

void registry_refuse(const char *path, const struct text *reason)
{
  enter();
  set_refusal(path, reason);
  pthread_mutex_unlock(&mutex);
}

bool registry_refusal(const char *path, struct text *reason)
{
  bool found = false;
  enter();
  if (path == NULL) {
    *reason = newest;
    found = newest.s[0] != 0;
  }
  for (struct refusal *r = path ? refusals : NULL; r; r = r->next)
    if (strcmp(r->path, path) == 0 && r->reason.s[0]) {
      *reason = r->reason;
      found = true;
    }
  pthread_mutex_unlock(&mutex);
  return found;
}

bool registry_has_directory(const char *path)
{
  char *dir = NULL;
  struct stat st;
  if (asprintf(&dir, "%s-quorate", path) < 0) return false;
  /* What is not to be used (directory.c) is not taken for none. */
  bool is =
      lstat(dir, &st) == 0 && (S_ISDIR(st.st_mode) || S_ISLNK(st.st_mode));
  free(dir);
  return is;
}

/* ---- open files -------------------------------------------------------- */

void registry_list(struct opened *o, const char *name)
{
  enter();
  o->name = name;
  o->next = files;
  files = o;
  pthread_mutex_unlock(&mutex);
}

void registry_unlist(struct opened *o)
{
  enter();
  struct opened **at = &files;
  while (*at && *at != o)
    at = &(*at)->next;
  if (*at) *at = o->next;
  pthread_mutex_unlock(&mutex);
}

struct opened *registry_listed(const char *name, bool *known)
{
  enter();
  struct opened *o = files;
  while (o && o->name != name)
    o = o->next;
  *known = o || find(name);
  pthread_mutex_unlock(&mutex);
  return o;
}

/* ---- databases --------------------------------------------------------- */

static void free_nodes(struct node *node)
{
  while (node) {
    struct node *next = node->next;
    node_free(node);
    node = next;
  }
}

void registry_free(struct database *d)
{
  if (d == NULL) return;
  attach_end(d);
  attach_unfence(d);
  free_nodes(d->former);
  control_close(d->map);
  pthread_mutex_destroy(&d->mutex);
  pthread_cond_destroy(&d->changed);
  free(d->path);
  free(d->dir);
  free(d);
}

static struct database *new_database(const char *path)
{
  struct database *d = calloc(1, sizeof(*d));
  if (d == NULL) return NULL;
  d->watch = d->wake = d->db_fd = d->shm_fd = -1;
  pthread_mutex_init(&d->mutex, NULL);
  clock_condition(&d->changed);
  d->path = strdup(path);
  if (d->path == NULL || asprintf(&d->dir, "%s-quorate", path) < 0) {
    d->dir = NULL;
    registry_free(d);
    return NULL;
  }
  return d;
}

static void list(struct database *d)
{
  d->next = databases;
  databases = d;
}

static void unlist(struct database *d)
{
  struct database **const lists[] = {&databases, &detached};
  for (int i = 0; i < 2; i++)
    for (struct database **at = lists[i]; *at; at = &(*at)->next)
      if (*at == d) {
        *at = d->next;
        return;
      }
}

/* Starts the node of a database here, if it does not run. Mutex held. */
static int host(struct database *d, const struct raft_configuration *peers,
                struct text *error)
{
  struct node *node = NULL;
  if (atomic_load(&d->node)) return 0;
  if (registry_guest) {
    text_set(error, "%s: no process hosts its node", d->path);
    return -EWOULDBLOCK;
  }
  int rc = node_start(d->path, peers, &node, error);
  if (rc) return rc;
  if (d->map == NULL) d->map = control_ref(node->map);
  atomic_store(&d->node, node);
  return 0;
}

int registry_host(struct database *d, struct text *error)
{
  enter();
  bool used = d->refs > 0 || atomic_load(&d->node);
  /* It may have been detached meanwhile, and the files be another node's. */
  bool ours = !exiting && find(d->path) == d;
  int rc = used && ours ? host(d, NULL, error) : 0;
  if (!used) {
    unlist(d);
    rc = -ESHUTDOWN;
  } else if (rc == 0) {
    if (ours) attach_unfence(d);
    attach_over(d);
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

int registry_linger(struct database *d)
{
  int left = -1;
  enter();
  if (d->refs == 0 && atomic_load(&d->node) == NULL) {
    uint64_t past = clock_monotonic_ms() - d->released;
    left = past < LINGER_MS ? (int)(LINGER_MS - past) : 0;
    if (left == 0) unlist(d);
  }
  pthread_mutex_unlock(&mutex);
  return left;
}

int registry_attach(struct database *d, struct text *error)
{
  enter();
  int rc = exiting                            ? -ESHUTDOWN
           : atomic_load(&d->node) || d->live ? 0
                                              : attach_begin(d, error);
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* A directory that we may not look into, as another user's node has one. */
static bool is_foreign(const char *dir)
{
  struct stat st;
  return stat(dir, &st) == 0 && st.st_uid != geteuid() &&
         faccessat(AT_FDCWD, dir, R_OK | W_OK | X_OK, AT_EACCESS) != 0;
}

/* Hosts it here or attaches it to its host. Mutex held. */
static int find_host(struct database *d, struct text *error)
{
  struct timespec pause = {0, PAUSE_MS * 1000000};
  uint64_t end = clock_monotonic_ms() + HOST_MS;
  int rc;
  for (;;) {
    rc = host(d, NULL, error);
    if (rc == -EACCES && is_foreign(d->dir)) {
      text_set(error, "%s: the node is another user's: it can only be read",
               d->path);
      return -EWOULDBLOCK; /* as for a stock program */
    }
    /* Root is let in by whoever hosts it, and never hosts it itself. */
    bool foreign = rc == -EPERM;
    if (rc != -EWOULDBLOCK && !foreign) return rc;
    struct text why = *error;
    rc = foreign && geteuid() != 0 ? -EPERM : attach_begin(d, error);
    if (rc == 0) return 0;
    /* It may be about to start, or to end. */
    bool absent =
        rc == -ECONNREFUSED || rc == -ENOENT || rc == -EPIPE || rc == -ESTALE;
    if (foreign && absent) {
      *error = why;
      return -EWOULDBLOCK; /* as for a stock program */
    }
    if (rc == -EPERM) return -EWOULDBLOCK; /* as for a stock program */
    if (absent && registry_guest) {        /* nor will it be this one */
      *error = why;
      return -ESRCH;
    }
    if (rc == -ETIMEDOUT || (absent && clock_monotonic_ms() > end)) {
      text_set(error, "%s, which does not answer", why.s);
      return -ETIMEDOUT;
    }
    if (!absent) return rc;
    nanosleep(&pause, NULL);
  }
}

static void retire(struct database *d, bool gone);
static raft_index stop_one(struct database *d, bool clean);

static int open_new(const char *path, struct database **out, struct text *error)
{
  static const struct text none;
  struct database *d = new_database(path);
  if (d == NULL) return SQLITE_NOMEM;
  int rc = find_host(d, error);
  set_refusal(path, rc ? error : &none);
  if (rc) {
    registry_free(d);
    return rc == -EWOULDBLOCK ? SQLITE_OK : SQLITE_CANTOPEN;
  }
  list(d);
  *out = d;
  return SQLITE_OK;
}

/* The node was stopped here, and is wanted again. */
static int reopen(struct database *d, struct text *error)
{
  int rc = find_host(d, error);
  if (rc == 0 && atomic_load(&d->node)) attach_unfence(d);
  if (rc) set_refusal(d->path, error);
  return rc ? SQLITE_CANTOPEN : SQLITE_OK;
}

void registry_forget_lost(const char *path)
{
  if (!registry_has_directory(path)) return;
  enter();
  struct database *d = find(path);
  struct node *node = d ? atomic_load(&d->node) : NULL;
  bool lost = node && auto_lost(node);
  if (lost) {
    node_stop(node, false);
    if (node->wal) wal_forbid(node->wal);
    retire(d, true);
  }
  if (lost || d == NULL) auto_forget(path);
  pthread_mutex_unlock(&mutex);
}

int registry_open(const char *path, struct database **out, struct text *error)
{
  *out = NULL;
  if (!registry_has_directory(path)) return SQLITE_OK;
  int rc = SQLITE_OK;
  enter();
  struct database *d = find(path);
  /* Else it was detached meanwhile. */
  if (d == NULL && registry_has_directory(path))
    rc = open_new(path, &d, error);
  else if (d && !atomic_load(&d->node) && !d->live)
    rc = reopen(d, error);
  struct node *node = d ? atomic_load(&d->node) : NULL;
  if (node && node->wal == NULL) {
    text_set(error, "%s: the node is still joining", path);
    set_refusal(path, error);
    rc = SQLITE_CANTOPEN;
  }
  if (rc == SQLITE_OK && d) {
    d->refs++;
    *out = d;
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

int registry_start(const char *path, const struct raft_configuration *peers,
                   struct database **out, struct text *error)
{
  enter();
  struct database *d = find(path) ? NULL : new_database(path);
  int rc = d ? host(d, peers, error) : -EEXIST;
  if (d == NULL) text_set(error, "%s: its node runs already", path);
  if (rc == 0) {
    d->refs++;
    list(d);
    *out = d;
  } else {
    registry_free(d);
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

void registry_release(struct database *d)
{
  enter();
  struct node *node = atomic_load(&d->node);
  bool last = --d->refs == 0 && node == NULL;
  d->released = clock_monotonic_ms();
  if (d->refs == 0 && node && auto_wanted() && identity_alone(&node->identity))
    stop_one(d, true);
  if (last && d->live) {
    attach_look(d); /* it lingers for a while */
    last = false;
  }
  if (last) unlist(d);
  pthread_mutex_unlock(&mutex);
  if (last) registry_free(d);
}

/* ---- stop -------------------------------------------------------------- */

/* Nobody finds it any more, if nobody has it open or its files are another
   node's. False: it stays where it is. Mutex held. */
static bool forget(struct database *d, bool gone)
{
  bool over = d->refs == 0 || gone;
  if (!over) return false;
  unlist(d);
  if (d->refs == 0 && !d->live) {
    registry_free(d);
    return true;
  }
  /* A watch that waits for us frees it later. */
  d->next = detached;
  detached = d;
  if (d->live) attach_look(d);
  return true;
}

/* Its node has ended, or its file is ordinary now. Mutex held. */
static void retire(struct database *d, bool gone)
{
  struct node *node = atomic_load(&d->node);
  if (node == NULL || !node->stopping) return;
  node_close(node);
  atomic_store(&d->node, NULL);
  node->next = d->former;
  d->former = node;
  forget(d, gone);
}

/* Mutex held. What is stopped is freed when nobody uses it. The newest entry
   that was visible when its threads had ended. */
static raft_index stop_one(struct database *d, bool clean)
{
  struct node *node = atomic_load(&d->node);
  node_stop(node, clean);
  raft_index applied = node->applied;
  if (d->refs > 0) attach_fence(d); /* its connections may be reading */
  retire(d, false);
  return applied;
}

int registry_stop(const char *path, bool clean, struct text *answer)
{
  int rc = SQLITE_OK;
  enter();
  struct database *d = find(path);
  struct node *node = d ? atomic_load(&d->node) : NULL;
  if (node == NULL) {
    text_set(answer, "no node of %s runs in this process", path);
    rc = SQLITE_ERROR;
  } else {
    raft_index applied = stop_one(d, clean);
    text_set(answer, "stopped at entry %llu", (unsigned long long)applied);
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* The database that is to be detached, its node started if it does not run.
   NULL: it cannot start, *why; or (0 and NULL) there is none. Mutex held. */
static int find_or_start(const char *path, struct database **out,
                         struct text *why)
{
  struct database *d = find(path), *made = NULL;
  *out = NULL;
  if (d == NULL && !registry_has_directory(path)) return 0;
  if (d == NULL) d = made = new_database(path);
  if (d == NULL) return -ENOMEM;
  int rc = host(d, NULL, why);
  if (made && rc == 0) list(made);
  if (made && rc != 0) registry_free(made);
  if (rc == 0) {
    attach_unfence(d);
    *out = d;
  }
  return rc;
}

/* What is in flight here has its fate first. Nobody else has to wait for that:
   the mutex is free meanwhile, and the node may be stopped. */
static int wait_for_fates(struct database *d, const struct interrupt *interrupt,
                          struct text *why)
{
  struct node *node = atomic_load(&d->node);
  d->refs++;
  pthread_mutex_unlock(&mutex);
  int rc = detach_wait(node, interrupt);
  enter();
  d->refs--;
  if (rc || atomic_load(&d->node) == node) return rc;
  text_set(why, "%s: the node was stopped meanwhile", d->path);
  return -EWOULDBLOCK;
}

int registry_detach(const char *path, const struct interrupt *interrupt,
                    struct text *answer)
{
  struct text why = {""};
  struct database *d;
  enter();
  int rc = find_or_start(path, &d, &why);
  bool runs = rc == 0 && d;
  if (runs) rc = wait_for_fates(d, interrupt, &why);
  if (rc == -EINTR || rc == -EWOULDBLOCK)
    *answer = why;
  else if (rc)
    rc = detach_files(path, &why, answer);
  else if (runs)
    rc = detach_node(atomic_load(&d->node), answer);
  else
    rc = detach_rest(path, answer);
  if (runs) retire(d, rc == 0);
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* ---- recovery ---------------------------------------------------------- */

/* Has nothing of the node run here any more. Mutex held. */
static bool make_way(struct database *d, struct node *was, struct recover *r)
{
  struct text why;
  if (d == NULL) return true;
  struct node *node = atomic_load(&d->node);
  if (node != was || (node == NULL && d->live)) {
    text_set(&why,
             "%s: it was opened, started or stopped meanwhile: close its "
             "connections, and call it again",
             d->path);
    return recover_refuse(r, &why);
  }
  if (node && detach_is_used(node)) {
    text_set(&why,
             "%s: a connection of this process is in a transaction, or copies "
             "it",
             d->path);
    return recover_refuse(r, &why);
  }
  if (node) {
    node_stop(node, true);
    node_close(node);
    atomic_store(&d->node, NULL);
    node->next = d->former;
    d->former = node;
  }
  attach_unfence(d);
  return true;
}

/* Connections that are open are refused from here on. gone: for good, the files
   are another node's. Mutex held. */
static void leave_behind(struct database *d, bool gone)
{
  if (atomic_load(&d->node) || d->live) return;
  if (!forget(d, gone)) attach_fence(d);
}

/* Starts the new node, with a reference. Mutex held. */
static struct database *start_recovered(const char *path, struct recover *r)
{
  struct text why;
  struct database *d = new_database(path);
  int rc = d ? host(d, NULL, &why) : -ENOMEM;
  if (rc == 0) {
    d->refs++;
    list(d);
    recover_started(r, atomic_load(&d->node));
    return d;
  }
  struct text said;
  text_set(
      &said,
      "the new node is made, but does not start: %.500s; open the file when "
      "that is mended",
      d ? why.s : "out of memory");
  registry_free(d);
  recover_refuse(r, &said);
  return NULL;
}

bool registry_recover(const char *path, struct recover *r)
{
  struct text ignored;
  struct database *made = NULL;
  enter();
  struct database *d = find(path);
  struct node *node = d ? atomic_load(&d->node) : NULL;
  if (d) d->refs++;
  pthread_mutex_unlock(&mutex);
  bool ok = recover_look(r, node);
  enter();
  if (d) d->refs--;
  ok = ok && make_way(d, node, r) && recover_carry_out(r);
  if (d) leave_behind(d, recover_begun(r));
  if (ok) made = start_recovered(path, r);
  pthread_mutex_unlock(&mutex);
  if (made == NULL) return false;
  node = atomic_load(&made->node);
  node_barrier(node, LEVEL_LINEARIZABLE,
               5000 + node->identity.election_timeout_ms, NULL, &ignored);
  registry_release(made);
  return true;
}

/* ---- the end of the process -------------------------------------------- */

/* The process ends: its threads must not run into what exit() takes down. */
__attribute__((destructor)) static void stop_all(void)
{
  if (pthread_mutex_trylock(&mutex) != 0) return;
  exiting = true;
  for (struct database *d = databases, *next; d; d = next) {
    next = d->next;
    if (atomic_load(&d->node)) stop_one(d, true);
  }
  pthread_mutex_unlock(&mutex);
}
