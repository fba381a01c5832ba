/*
** cluster.h: the interfaces of cluster.c, join.c, verify.c and detach.c to each
** other.
*/
#ifndef EXT_CLUSTER_H
#define EXT_CLUSTER_H

#include "node.h"

#define CERT_DAYS 365 /* life of a node's certificate */

/* Status of an answer between nodes. */
enum { ANSWER_OK = 0, ANSWER_REFUSED = 1, ANSWER_REDIRECT = 2 };

/* What is asked; ASK_CHECKSUM of any node, the others of the leader. */
enum {
  ASK_JOIN = 1,
  ASK_INVITE = 2,
  ASK_MEMBERS = 3,
  ASK_VERIFY = 4,
  ASK_CHECKSUM = 5
};

/* Application threads: asks the leader; takes body's memory. *data is
   malloc'd, zero-terminated. Returns the status; -1: no answer, *data NULL or
   a text. */
int cluster_ask(struct node *node, struct packer body, uint8_t **data,
                size_t *len);
/* The same in two steps, so that several can be asked at a time: peer 0 is the
   leader, ms is for the answer. NULL (no memory) may be collected too. */
struct question;
struct question *cluster_post(struct node *node, raft_id peer,
                              struct packer body, unsigned ms);
int cluster_collect(struct node *node, struct question *q, uint8_t **data,
                    size_t *len);

/* verify.c, loop thread: the answers to ASK_VERIFY (a text: why not) and to
   ASK_CHECKSUM. */
const char *verify_begin(struct node *node, struct packer *answer);
void verify_tell(struct node *node, struct parser *p, struct packer *answer);

/* join.c: removes a node's directory: its files and those in its folders. */
void cluster_remove_directory(const char *dir);

/* ---- detach.c to registry.c and join.c --------------------------------- */

/* A node that runs here is stopped and its file made an ordinary one. When
   that fails after the stop it can be started again. */
int detach_node(struct node *node, struct text *answer);
/* The same without the node, which cannot start: `why`. */
int detach_files(const char *path, const struct text *why, struct text *answer);
/* The same where the directory is gone; the second also ends what an earlier
   detach began. */
int detach_orphan(const char *path, struct text *error);
int detach_rest(const char *path, struct text *answer);

void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr);

#endif
