/*
** crowd.c: whom of those that nobody knows yet there is room and time for.
**
** Until a connection has shown to be a member's it counts as unverified. Of
** these there are at most unverified_max. When all places are taken, the
** newest connection of the address that has most of them makes room; unless
** the new one's own address has as many, which then gets no more. So one address
** with many connections cannot keep out another with few, many addresses get a
** fair share each, and when there are more addresses than places, those that
** came first make room for the others, so many a second.
**
** Handshakes cost this node a millisecond or so of its loop. What each address
** may have of them in a second is bounded, and what all have together.
**
** Where a peer is (the addresses that its name last stood for) matters more: it
** always finds a place, if need be that of another; handshakes from there are
** no part of the common account. When others use a peer's address too, and take
** all that it may have, the oldest connection from there makes room for the
** newest, one that has not said anything first: a peer speaks at once.
**
** A bucket of r handshakes a second that holds one second's worth is kept as
** one time: when all that was taken will be paid for, each costing 1/r s.
*/
#include "internal.h"

#include <assert.h>

/* ---- sources ------------------------------------------------------------- */

static void key_of(const struct sockaddr_storage *address,
                   struct net_source *source)
{
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
  const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;

  memset(source, 0, sizeof *source);
  if (address->ss_family != AF_INET6) {
    memcpy(source->key, &v4->sin_addr, 4);
  } else if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
    memcpy(source->key, v6->sin6_addr.s6_addr + 12, 4);
  } else {
    source->v6 = true;
    memcpy(source->key, v6->sin6_addr.s6_addr, 8);
  }
}

bool net_same_source(const struct sockaddr_storage *a,
                     const struct sockaddr_storage *b)
{
  struct net_source x, y;

  key_of(a, &x);
  key_of(b, &y);
  return x.v6 == y.v6 && memcmp(x.key, y.key, sizeof x.key) == 0;
}

/* Finds it, or takes the place of the one without connections of which nothing
   was heard for the longest time. */
static struct net_source *find(struct net *net,
                               const struct sockaddr_storage *address)
{
  struct net_crowd *crowd = &net->crowd;
  struct net_source key, *old = NULL;

  key_of(address, &key);
  for (unsigned i = 0; i < NET_SOURCES; i++) {
    struct net_source *s = &crowd->sources[i];

    if (s->v6 == key.v6 && memcmp(s->key, key.key, sizeof key.key) == 0)
      return s;
    if (s->n == 0 && (!old || s->last < old->last)) old = s;
  }
  if (old) *old = key;
  return old;
}

/* ---- buckets ------------------------------------------------------------- */

static bool has_credit(uint64_t spent_at, uint64_t now_us)
{
  return spent_at < now_us + 1000000u;
}

static void spend(uint64_t *spent_at, uint64_t now_us, unsigned rate)
{
  if (*spent_at < now_us) *spent_at = now_us;
  *spent_at += 1000000u / (rate ? rate : 1u);
}

/* ---- room ---------------------------------------------------------------- */

/* A peer's address that has no more than it always may have. */
static bool is_safe(const struct net *net, const struct net_source *source)
{
  return source->member && source->n <= net->hub.limits.member_places;
}

/* The one with most connections, peers' apart as long as they are few; of those
   with as many, the one from which none came for the longest time. */
static struct net_source *largest(struct net *net)
{
  struct net_source *most = NULL;

  for (unsigned i = 0; i < NET_SOURCES; i++) {
    struct net_source *s = &net->crowd.sources[i];

    if (!s->n || is_safe(net, s)) continue;
    if (!most || s->n > most->n || (s->n == most->n && s->last < most->last))
      most = s;
  }
  return most;
}

/* Connections are kept with the newest first. */
static struct net_connection *newest(struct net *net,
                                     const struct net_source *source)
{
  struct net_connection *c = net->hub.connections;

  while (c && (c->source != source || c->ended))
    c = c->next;
  return c;
}

static struct net_connection *oldest(struct net *net,
                                     const struct net_source *source)
{
  struct net_connection *silent = NULL, *any = NULL, *c;

  for (c = net->hub.connections; c; c = c->next) {
    if (c->source != source || c->ended) continue;
    any = c;
    if (c->received == 0) silent = c;
  }
  return silent ? silent : any;
}

/* Whose place a new connection of `source` takes. False: there is none. */
static bool make_room(struct net *net, const struct net_source *source)
{
  unsigned places = source->member ? net->hub.limits.member_places : 0;
  const struct net_source *most = largest(net);
  struct net_connection *victim;

  if (!most) return source->n < places;
  /* Among equals nothing would be gained, but for one who has none. */
  if (source->n < places || source->n == 0 || source->n + 1 < most->n)
    victim = newest(net, most);
  else if (source->member)
    victim = oldest(net, source);
  else
    return false;
  if (!victim) return false;
  net_connection_refuse(victim, NET_REFUSED_CROWD,
                        "it made room for another of %u that are no member's",
                        net->crowd.n);
  net_crowd_leave(net, victim);
  return true;
}

struct net_source *net_crowd_admit(struct net *net,
                                   const struct sockaddr_storage *address)
{
  struct net_source *source = find(net, address);
  uint64_t now_us = uv_now(net->hub.loop) * 1000u;

  if (!source) return NULL;
  source->last = ++net->crowd.last;
  source->member = net_peer_at(net, address);
  if (net->crowd.n < net->hub.limits.unverified_max) return source;
  if (!source->member && !has_credit(net->crowd.moved_at, now_us)) return NULL;
  if (!make_room(net, source)) return NULL;
  if (!source->member)
    spend(&net->crowd.moved_at, now_us, net->hub.limits.rate_room);
  return source;
}

void net_crowd_enter(struct net *net, struct net_connection *c,
                     struct net_source *source)
{
  c->source = source;
  source->n++;
  net->crowd.n++;
}

void net_crowd_leave(struct net *net, struct net_connection *c)
{
  if (!c->source) return;
  assert(c->source->n > 0 && net->crowd.n > 0);
  c->source->n--;
  net->crowd.n--;
  c->source = NULL;
}

/* ---- time ---------------------------------------------------------------- */

bool net_crowd_spend(struct net *net, struct net_source *source)
{
  const struct net_limits *limits = &net->hub.limits;
  uint64_t now_us = uv_now(net->hub.loop) * 1000u;

  if (!has_credit(source->spent_at, now_us)) return false;
  if (!source->member && !has_credit(net->crowd.spent_at, now_us)) return false;
  spend(&source->spent_at, now_us,
        source->member ? limits->rate_member : limits->rate_source);
  if (!source->member) spend(&net->crowd.spent_at, now_us, limits->rate_all);
  return true;
}
