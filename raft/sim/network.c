/*
** network.c: messages as bytes, on their way.
**
** Each message is encoded as it is sent and decoded where it arrives. On the
** way it may be lost, repeated, late, or overtaken. Between two nodes there is
** one connection; when it is closed, what is on it is gone, both sides learn
** of that in a while, and later a new one is there. A clogged direction keeps
** what it is given and delivers it all at the end. A cut direction loses it.
**
** In a `perfect` network, when all faults have stopped, only the shortest
** delay is left.
*/
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static const size_t class_bytes[4] = {256, 1024, 8192, 0};

/* ---- packets ----------------------------------------------------------- */

static struct packet *packet_new(struct sim *s, size_t len)
{
  struct packet *p;
  unsigned c = 0;

  while (c < 3 && class_bytes[c] < len)
    c++;
  p = c < 3 ? s->net.free[c] : NULL;
  if (p)
    s->net.free[c] = p->next;
  else
    p = sim_resize(NULL, sizeof *p + (c < 3 ? class_bytes[c] : len));
  p->size_class = c;
  p->len = (uint32_t)len;
  p->next = NULL;
  return p;
}

void net_drop(struct sim *s, struct packet *p)
{
  if (p->size_class == 3) {
    free(p);
    return;
  }
  p->next = s->net.free[p->size_class];
  s->net.free[p->size_class] = p;
}

struct packet *net_encode(struct sim *s, const struct raft_message *m)
{
  struct packet *p = packet_new(s, raft_message_size(m));
  uint8_t *at = p->bytes + raft_message_head_size(m);
  uint32_t i;

  p->from = m->from;
  p->to = m->to;
  p->type = m->type;
  raft_message_encode_head(m, p->bytes);
  for (i = 0; i < m->n_entries; i++) {
    if (!m->entries[i].body) continue;
    memcpy(at, m->entries[i].body->data, m->entries[i].body->len);
    at += m->entries[i].body->len;
  }
  if (at != p->bytes + p->len)
    sim_fail(s, "codec", "a message is not as long as it says");
  return p;
}

/* ---- connections ------------------------------------------------------- */

static uint32_t *epoch(struct sim *s, raft_id a, raft_id b)
{
  return a < b ? &s->net.epoch[a][b] : &s->net.epoch[b][a];
}

static bool *is_down(struct sim *s, raft_id a, raft_id b)
{
  return a < b ? &s->net.down[a][b] : &s->net.down[b][a];
}

void net_reset(struct sim *s, raft_id a, raft_id b)
{
  if (a == b || *is_down(s, a, b)) return;
  ++*epoch(s, a, b);
  *is_down(s, a, b) = true;
  s->stats.resets++;
  sim_after(s, &s->nodes[a], EV_LINK, sim_spread(s, 500), b);
  sim_after(s, &s->nodes[b], EV_LINK, sim_spread(s, 500), a);
  sim_after_any(s, &s->nodes[a], EV_LINK_UP,
                20 * SIM_MS + sim_spread(s, 100 * SIM_MS), b);
}

/* A process that is not there connects when it starts. */
void net_link_up(struct sim *s, raft_id a, raft_id b)
{
  struct node *one = &s->nodes[a], *other = &s->nodes[b];

  *is_down(s, a, b) = false;
  if (one->status != NODE_UP || other->status != NODE_UP) return;
  if (!one->paused) node_link(s, one, b, true);
  if (!other->paused) node_link(s, other, a, true);
}

/* ---- sending ----------------------------------------------------------- */

sim_time net_delay(struct sim *s, raft_id from, raft_id to)
{
  const struct sim_options *o = &s->options;
  sim_time delay = o->delay_us, clogged = s->net.clogged[from][to];

  if (s->net.perfect) return delay;
  if (s->net.cut[from][to] || *is_down(s, from, to)) return SIM_NEVER;
  if (sim_chance(s, o->loss)) return SIM_NEVER;
  delay += sim_spread(s, o->reorder_us);
  if (clogged > s->now + delay) delay = clogged - s->now + sim_below(s, 1000);
  return delay;
}

static void deliver_in(struct sim *s, struct packet *p, sim_time delay)
{
  struct sim_event event = {
      .at = s->now + delay, .type = EV_PACKET, .node = (uint8_t)p->to};

  event.u.packet = p;
  p->epoch = *epoch(s, p->from, p->to);
  sim_heap_push(s, event);
}

static struct packet *copy(struct sim *s, const struct packet *p)
{
  struct packet *twin = packet_new(s, p->len);

  twin->from = p->from;
  twin->to = p->to;
  twin->type = p->type;
  memcpy(twin->bytes, p->bytes, p->len);
  return twin;
}

void net_send(struct sim *s, struct packet *p)
{
  sim_time delay;

  if (p->to == 0 || p->to > s->options.nodes || p->from == p->to)
    sim_fail(s, "codec", "a message to nobody");
  s->stats.messages++;
  if (!s->net.perfect && sim_chance(s, s->options.duplicates)) {
    delay = net_delay(s, p->from, p->to);
    if (delay != SIM_NEVER) deliver_in(s, copy(s, p), delay);
  }
  delay = net_delay(s, p->from, p->to);
  if (delay == SIM_NEVER)
    net_drop(s, p);
  else
    deliver_in(s, p, delay);
}

bool net_arrives(struct sim *s, const struct packet *p)
{
  return p->epoch == *epoch(s, p->from, p->to);
}

/* ---- misfortune -------------------------------------------------------- */

static void cut(struct sim *s, unsigned a, unsigned b)
{
  if (a != b) s->net.cut[a][b] = true;
}

/* Two sides, in both directions or one; or two sides with a bridge. */
void net_partition(struct sim *s)
{
  unsigned kind = (unsigned)sim_below(s, 4), n = s->options.nodes, a, b;
  unsigned bridge = kind == 1 ? (unsigned)sim_between(s, 1, n) : 0;
  uint64_t side = sim_random(s);

  memset(s->net.cut, 0, sizeof s->net.cut);
  for (a = 1; a <= n; a++)
    for (b = 1; b <= n; b++) {
      if (kind == 3) { /* any links at all */
        if (sim_chance(s, 300000)) cut(s, a, b);
        continue;
      }
      if (a == bridge || b == bridge || (side >> a & 1) == (side >> b & 1))
        continue;
      if (kind != 2 || (side >> a & 1)) cut(s, a, b);
    }
  s->stats.partitions++;
  sim_after(s, NULL, EV_HEAL, sim_spread(s, 800 * SIM_MS), 0);
}

void net_clog(struct sim *s)
{
  unsigned n = s->options.nodes;
  raft_id a = sim_between(s, 1, n), b = sim_between(s, 1, n);

  s->net.clogged[a][b] = s->now + sim_spread(s, 300 * SIM_MS);
}

void net_heal(struct sim *s)
{
  memset(s->net.cut, 0, sizeof s->net.cut);
}

void net_free(struct sim *s)
{
  struct packet *p;
  unsigned c;

  for (c = 0; c < 3; c++)
    while ((p = s->net.free[c])) {
      s->net.free[c] = p->next;
      free(p);
    }
}
