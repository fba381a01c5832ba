/*
** registry.c: the nodes of this process, by the path of their database.
**
** One mutex guards the list and every start and stop. After fork() a child has
** the list but none of the threads: it keeps its hands off the parent's nodes,
** and finds, when it opens a database, that its parent hosts it.
*/
#include "node.h"

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
  nodes = NULL;
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
  if (node && node->stopping) {
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

static void unlink_node(struct node *node)
{
  for (struct node **at = &nodes; *at; at = &(*at)->next)
    if (*at == node) {
      *at = node->next;
      return;
    }
}

void registry_release(struct node *node)
{
  enter();
  bool known = find(node->path) == node;
  if (known && --node->refs == 0 && node->stopping) {
    unlink_node(node);
    node_free(node);
  }
  pthread_mutex_unlock(&mutex);
}

/* Mutex held. */
static void stop_one(struct node *node, bool clean)
{
  node_stop(node, clean);
  if (node->refs == 0) {
    unlink_node(node);
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
    raft_index applied = node->applied;
    stop_one(node, clean);
    text_set(answer, "stopped at entry %llu", (unsigned long long)applied);
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
