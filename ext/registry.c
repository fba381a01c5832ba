/*
** registry.c: the nodes of this process, by the path of their database.
**
** One mutex guards the list and every start and stop. After fork() a child has
** the list but none of the threads: it keeps its hands off the parent's nodes,
** and finds, when it opens a database, that its parent hosts it.
*/
#include "cluster.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

struct refusal {
  struct refusal *next;
  char *path;
  struct text reason;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct node *nodes;
static struct node *detached; /* but still used by open connections */
static struct refusal *refusals;
static struct text newest; /* of the refusals */

/* In fork(), so that the child finds the list whole and its mutex free. */
static void before_fork(void)
{
  pthread_mutex_lock(&mutex);
}

static void after_fork(void)
{
  pthread_mutex_unlock(&mutex);
}

/* In the child: the threads, and so the nodes, are the parent's; copies of its
   locks must not outlive it. */
static void in_child(void)
{
  for (struct node *n = nodes; n; n = n->next)
    node_abandon(n);
  for (struct node *n = detached; n; n = n->next)
    node_abandon(n);
  nodes = detached = NULL;
  pthread_mutex_unlock(&mutex);
}

static void watch_forks(void)
{
  pthread_atfork(before_fork, after_fork, in_child);
}

static void enter(void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&mutex);
}

static struct node *find(const char *path)
{
  for (struct node *n = nodes; n; n = n->next)
    if (strcmp(n->path, path) == 0) return n;
  return NULL;
}

static void set_refusal(const char *path, const struct text *reason)
{
  if (reason->s[0]) newest = *reason;
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

static bool has_directory(const char *path)
{
  char *dir = NULL;
  struct stat st;
  if (asprintf(&dir, "%s-quorate", path) < 0) return false;
  bool is = stat(dir, &st) == 0 && S_ISDIR(st.st_mode);
  free(dir);
  return is;
}

int registry_open(const char *path, struct node **out, struct text *error)
{
  static const struct text none;
  *out = NULL;
  if (!has_directory(path)) return SQLITE_OK;
  int rc = SQLITE_OK;
  enter();
  struct node *node = find(path);
  if (node == NULL && !has_directory(path)) {
    /* Detached meanwhile. */
  } else if (node && node->stopping) {
    text_set(error,
             "%s: the node was stopped: close its open connections "
             "first",
             path);
    set_refusal(path, error);
    rc = SQLITE_CANTOPEN;
  } else if (node == NULL) {
    int started = node_start(path, NULL, &node, error);
    set_refusal(path, started ? error : &none);
    if (started == 0) {
      node->next = nodes;
      nodes = node;
    } else if (started != -EWOULDBLOCK) {
      rc = SQLITE_CANTOPEN;
    }
  }
  if (rc == SQLITE_OK && node && node->wal == NULL) {
    text_set(error, "%s: the node is still joining", path);
    set_refusal(path, error);
    rc = SQLITE_CANTOPEN;
  }
  if (rc == SQLITE_OK && node) {
    node->refs++;
    *out = node;
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

int registry_start(const char *path, const struct raft_configuration *peers,
                   struct node **out, struct text *error)
{
  enter();
  int rc = find(path) ? -EEXIST : 0;
  if (rc)
    text_set(error, "%s: its node runs already", path);
  else
    rc = node_start(path, peers, out, error);
  if (rc == 0) {
    (*out)->refs++;
    (*out)->next = nodes;
    nodes = *out;
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* Takes a node off a list. */
static bool unlink_node(struct node **list, struct node *node)
{
  for (struct node **at = list; *at; at = &(*at)->next)
    if (*at == node) {
      *at = node->next;
      return true;
    }
  return false;
}

static bool is_listed(const struct node *list, const struct node *node)
{
  while (list && list != node)
    list = list->next;
  return list != NULL;
}

void registry_release(struct node *node)
{
  enter();
  bool known = is_listed(nodes, node) || is_listed(detached, node);
  if (known && --node->refs == 0 && node->stopping) {
    if (!unlink_node(&nodes, node)) unlink_node(&detached, node);
    node_free(node);
  }
  pthread_mutex_unlock(&mutex);
}

/* Mutex held. */
static void stop_one(struct node *node, bool clean)
{
  node_stop(node, clean);
  if (node->refs == 0) {
    unlink_node(&nodes, node);
    node_free(node);
  }
}

int registry_stop(const char *path, bool clean, struct text *answer)
{
  int rc = SQLITE_OK;
  enter();
  struct node *node = find(path);
  if (node == NULL || node->stopping) {
    text_set(answer, "no node of %s runs in this process", path);
    rc = SQLITE_ERROR;
  } else {
    pthread_mutex_lock(&node->mutex);
    raft_index applied = node->applied;
    pthread_mutex_unlock(&node->mutex);
    stop_one(node, clean);
    text_set(answer, "stopped at entry %llu", (unsigned long long)applied);
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* The node that is to be detached, started if it does not run. NULL: it cannot
   start, *why; or (0 and NULL) there is none. Mutex held. */
static int find_or_start(const char *path, struct node **out, struct text *why)
{
  int rc = 0;
  *out = find(path);
  if (*out && (*out)->stopping) {
    text_set(why, "%s: the node is stopped: close its open connections first",
             path);
    rc = -EWOULDBLOCK;
  } else if (*out == NULL && has_directory(path)) {
    rc = node_start(path, NULL, out, why);
    if (rc == 0) {
      (*out)->next = nodes;
      nodes = *out;
    }
  }
  return rc;
}

/* What is in flight here has its fate first. Nobody else has to wait for that:
   the mutex is free meanwhile, and the node may be stopped. */
static int wait_for_fates(struct node *node, const struct interrupt *interrupt,
                          struct text *why)
{
  node->refs++;
  pthread_mutex_unlock(&mutex);
  int rc = detach_wait(node, interrupt);
  enter();
  node->refs--;
  if (rc || !node->stopping) return rc;
  text_set(why, "%s: the node was stopped meanwhile", node->path);
  return -EWOULDBLOCK;
}

int registry_detach(const char *path, const struct interrupt *interrupt,
                    struct text *answer)
{
  struct text why = {""};
  struct node *node;
  enter();
  int rc = find_or_start(path, &node, &why);
  bool runs = rc == 0 && node;
  if (runs) rc = wait_for_fates(node, interrupt, &why);
  if (rc == -EINTR || rc == -EWOULDBLOCK)
    *answer = why;
  else if (rc)
    rc = detach_files(path, &why, answer);
  else if (runs)
    rc = detach_node(node, answer);
  else
    rc = detach_rest(path, answer);
  if (node && node->stopping && node->refs == 0) {
    if (!unlink_node(&nodes, node)) unlink_node(&detached, node);
    node_free(node);
  } else if (node && rc == 0) {
    unlink_node(&nodes, node);
    node->next = detached;
    detached = node;
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

/* The process ends: its threads must not run into what exit() takes down. */
__attribute__((destructor)) static void stop_all(void)
{
  if (pthread_mutex_trylock(&mutex) != 0) return;
  for (struct node *node = nodes, *next; node; node = next) {
    next = node->next;
    if (!node->stopping) stop_one(node, true);
  }
  pthread_mutex_unlock(&mutex);
}
