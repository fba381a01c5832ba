/*
** database.h: a replicated database file in this process.
**
** Its node runs here (this process is the host), or in another process, to which
** this one is attached; that changes while connections are open: when the host
** ends, one of those that were attached takes its place.
*/
#ifndef EXT_DATABASE_H
#define EXT_DATABASE_H

#include "node.h"

struct database {
  struct database *next; /* list of registry.c */
  unsigned refs;         /* open files; registry mutex */
  char *path, *dir;
  struct control_map *map;
  /* The node, if it runs here. One that was stopped is kept for connections
     that may still look at it. */
  _Atomic(struct node *) node;
  struct node *former;
  uint64_t released; /* ms: when the last one was closed; likewise */

  /* ---- attach.c ---- */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  /* guarded by mutex */
  bool attached;       /* to a host that lives */
  uint64_t host;       /* which start of a host it is */
  struct text trouble; /* why there is none */
  _Atomic bool silent; /* it lives, and did not answer in time */
  struct client *clients;
  /* The watch: a thread that notices the end of the host. */
  _Atomic bool live; /* it has not ended yet; set by who has the registry */
  int watch, wake;   /* a session; an eventfd: look anew */
  struct session_buffer *watch_buffer;
  int db_fd, shm_fd; /* shared locks while nobody else has them: fences */
};

/* ---- registry.c -------------------------------------------------------- */

/* Goes up in each child after fork(): whatever was opened under another number is
   an ancestor's. */
extern unsigned registry_forks;
/* This process hosts nothing and never will: it only looks. Set before it opens
   the first file. */
extern bool registry_guest;

/* The database of a path with a reference, its node started here if nobody else
   hosts it; *out NULL and SQLITE_OK: not replicated, or the host has nothing to
   do with this process. */
int registry_open(const char *path, struct database **out, struct text *error);
/* Starts a node that was just made, with a reference: see node_start(). */
int registry_start(const char *path, const struct raft_configuration *peers,
                   struct database **out, struct text *error);
void registry_release(struct database *database);
/* Stops a node of this process. */
int registry_stop(const char *path, bool clean, struct text *answer);
/* Makes the file of a node of this process, or of none, an ordinary one. Waits
   some seconds for transactions whose fate is not known. 0, -EINTR, or another
   negated errno value and *answer says why. */
int registry_detach(const char *path, const struct interrupt *interrupt,
                    struct text *answer);
/* Carries a recovery out, a node without a leader that runs here stopped for it.
   The answer is the recovery's. */
struct recover;
bool registry_recover(const char *path, struct recover *recover);
/* Why the node of a path could not be opened here, or (path NULL) the newest
   such reason; false: no reason known. */
bool registry_refusal(const char *path, struct text *reason);
/* This is why, from now on. */
void registry_refuse(const char *path, const struct text *reason);
/* The watch: has this process host the node from now on. 0: it does, or shall
   not any more, and the watch is over: the database is not to be touched;
   -EWOULDBLOCK: another does; -ESHUTDOWN: nobody here needs it, and it is the
   caller's now; or why not. */
int registry_host(struct database *database, struct text *error);
/* The watch: ms until the database, which nobody has open, may be forgotten; -1:
   somebody has; 0: it is now, and is the caller's. Some programs open a file
   again and again. */
int registry_linger(struct database *database);
void registry_free(struct database *database);
/* Has it attached again to a host, if there is one: attach_begin(). */
int registry_attach(struct database *database, struct text *error);

/* An open file, by the name that SQLite gave it: the pointer. A VFS that stands
   between SQLite and this one hides the file, and passes the name on. Also one that
   was inherited is listed until it is closed. */
struct opened {
  struct opened *next;
  const char *name;
};
void registry_list(struct opened *opened, const char *name);
void registry_unlist(struct opened *opened);
/* NULL: none; *known: but there is such a database. */
struct opened *registry_listed(const char *name, bool *known);
/* A directory stands beside the file, of a node or not. */
bool registry_has_directory(const char *path);
/* A node that nobody can join and that lost its file makes way for a new one. */
void registry_forget_lost(const char *path);

/* ---- auto.c: nodes that nobody can join ---------------------------------- */

bool auto_wanted(void);
/* The file of a node that runs here is gone, or is another one. */
bool auto_lost(const struct node *node);
/* Removes the directory of such a node, which does not run, if its file is gone or
   another. */
void auto_forget(const char *path);

/* ---- attach.c: this process is not the host ----------------------------- */

/* Attaches to the host, if there is one that takes us. 0 or a negated errno
   value: -ECONNREFUSED, -ENOENT: none; -EPERM: it is another user's. */
int attach_begin(struct database *database, struct text *error);
/* The watch looks anew at whether it is needed. */
void attach_look(struct database *database);
/* The watch: it ends, and connections go on without. */
void attach_over(struct database *database);
/* Takes back what is left of a watch that has ended. */
void attach_end(struct database *database);
/* In a child after fork(): closes what is the parent's. */
void attach_abandon(struct database *database);
/* Shared locks on the database file and the -shm, so that no stock process
   checkpoints or removes anything while this process reads and nobody hosts the
   node. 0 or a negated errno value. */
int attach_fence(struct database *database);
void attach_unfence(struct database *database);

#endif
