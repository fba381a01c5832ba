/*
** cluster.h: the interface of cluster.c to join.c.
*/
#ifndef EXT_CLUSTER_H
#define EXT_CLUSTER_H

#include "node.h"

#define CERT_DAYS 365 /* life of a node's certificate */

/* Status of an answer between nodes. */
enum { ANSWER_OK = 0, ANSWER_REFUSED = 1, ANSWER_REDIRECT = 2 };

void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr);

#endif
