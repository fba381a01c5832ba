/*
** hello.c: the first frame of each connection, and the last one.
**
** HELLO:    0  u32  "quor"
**           4  u32  lowest version of the protocol that its sender speaks
**           8  u32  highest
**          12  u32  purpose, enum net_purpose; of a server: 0
**          16  u64  cluster
**          24  u64  node; 0: a joiner without a certificate
**          32  u64  incarnation
**          40       ignored: what later versions may add
**
** GOODBYE:  0  u8   enum net_goodbye
**           1       text, at most 255 bytes
**
** A certificate says which node its owner is, but one of an outside PKI does
** not say of which cluster: HELLO does, on both sides, before anything else is
** said. So nodes of two clusters under one CA never talk, and a join token is
** shown to no other cluster than its own.
*/
#include "internal.h"

#include <inttypes.h>
#include <stdio.h>

#define MAGIC 0x726f7571u /* "quor" */
#ifndef NET_LOWEST /* a build for a test of upgrades has others: the Makefile */
#define NET_LOWEST 1u
#define NET_HIGHEST 1u
#endif
#define HELLO_SIZE 40u

bool net_hello_send(struct net_connection *c, const struct net_identity *self,
                    enum net_purpose purpose)
{
  uint8_t body[HELLO_SIZE];
  struct iovec part = {.iov_base = body, .iov_len = sizeof body};

  net_put32(body, MAGIC);
  net_put32(body + 4, NET_LOWEST);
  net_put32(body + 8, NET_HIGHEST);
  net_put32(body + 12, purpose);
  net_put64(body + 16, self->cluster);
  net_put64(body + 24, self->id);
  net_put64(body + 32, self->incarnation);
  if (net_connection_send(c, NET_FRAME_HELLO, &part, 1)) return true;
  net_connection_end(c, NET_FAILED, "out of memory");
  return false;
}

bool net_hello_read(const struct net_frame *frame, struct net_hello *hello)
{
  const uint8_t *body = frame->body;

  if (frame->len < HELLO_SIZE || net_get32(body) != MAGIC) return false;
  hello->lowest = net_get32(body + 4);
  hello->highest = net_get32(body + 8);
  hello->purpose = net_get32(body + 12);
  hello->is.cluster = net_get64(body + 16);
  hello->is.id = net_get64(body + 24);
  hello->is.incarnation = net_get64(body + 32);
  return hello->lowest <= hello->highest;
}

unsigned net_hello_check(const struct net_hello *hello,
                         const struct net_identity *self, raft_id certificate,
                         char why[NET_TEXT], enum net_refusal *refusal)
{
  if (hello->lowest > NET_HIGHEST || hello->highest < NET_LOWEST) {
    *refusal = NET_REFUSED_VERSION;
    snprintf(why, NET_TEXT,
             "protocol versions %u to %u at a node that speaks %u to %u",
             hello->lowest, hello->highest, NET_LOWEST, NET_HIGHEST);
    return NET_GOODBYE_VERSION;
  }
  if (hello->is.cluster != self->cluster) {
    *refusal = NET_REFUSED_CLUSTER;
    snprintf(why, NET_TEXT,
             "a node of cluster %016" PRIx64 " at cluster %016" PRIx64,
             hello->is.cluster, self->cluster);
    return NET_GOODBYE_CLUSTER;
  }
  if (hello->is.id != certificate) {
    *refusal = NET_REFUSED_IDENTITY;
    if (certificate)
      snprintf(why, NET_TEXT,
               "node %016" PRIx64 " with the certificate of node %016" PRIx64,
               hello->is.id, certificate);
    else
      snprintf(why, NET_TEXT, "node %016" PRIx64 " without a certificate",
               hello->is.id);
    return NET_GOODBYE_IDENTITY;
  }
  return 0;
}

bool net_goodbye_read(const struct net_frame *frame, unsigned *code,
                      char why[NET_TEXT])
{
  size_t n = 0;

  if (frame->len == 0) return false;
  *code = frame->body[0];
  for (uint32_t i = 1; i < frame->len && n < NET_TEXT - 1; i++) {
    uint8_t byte = frame->body[i];

    why[n++] = byte >= ' ' && byte <= '~' ? (char)byte : '?';
  }
  why[n] = 0;
  return true;
}
