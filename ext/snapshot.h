/*
** snapshot.h: what the giver (snapshot.c) and the receiver (fetch.c) of a
** snapshot share. All of it belongs to the loop thread, unless said.
*/
#ifndef EXT_SNAPSHOT_H
#define EXT_SNAPSHOT_H

#include "node.h"

#define SNAPSHOT_VERSION 2u

/* First byte of a request; cluster.c has the smaller ones. */
enum {
  ASK_SNAPSHOT_OFFER = 16,
  ASK_SNAPSHOT_OPEN,
  ASK_SNAPSHOT_PAGES,
  ASK_SNAPSHOT_DONE,
  ASK_SNAPSHOT_DROPPED
};

/* Pages in one request: about 256 KiB, so that none holds up the loop. */
static inline uint32_t snapshot_part_pages(uint32_t page_size)
{
  return (256u << 10) / page_size;
}

/* A leader has a snapshot for this node: to be fetched, soon. `offer`: what
   follows the first byte of the request. */
void fetch_offered(struct node *node, raft_id from, struct parser *offer,
                   struct net_request *request);

#endif
