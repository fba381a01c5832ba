/*
** hub.c: one timer, one prepare handle, and the order in which things end.
**
** The prepare callback runs before each time the loop sleeps. It sends what
** callbacks left in the connections (so that an answer leaves in the iteration
** that made it), closes connections that were marked as ended (N2), and lets
** the owner free what nobody looks at any more.
**
** Deadlines are kept where they belong and looked at only when the timer
** fires; net_hub_arm() costs a comparison when an earlier one is pending, so
** that a deadline per frame is affordable.
*/
#include "internal.h"

#include <assert.h>
#include <stdlib.h>

static const struct net_limits defaults = {
    .connect_ms = 5000,
    .handshake_ms = 5000,
    .unverified_ms = 10000,
    .parting_ms = 1000,
    .frame_ms = 30000,
    .fetch_idle_ms = 10000,
    .backoff_min_ms = 20,
    .backoff_max_ms = 1000,
    .revoked_ms = 30000,
    .event_ms = 1000,
    .unverified_max = 64,
    .member_places = 8,
    .rate_source = 20,
    .rate_member = 200,
    .rate_all = 100,
    .rate_room = 1000,
    .unsent_max = 64u * 1024u * 1024u,
};

static void on_timer(uv_timer_t *timer)
{
  struct net_hub *hub = timer->data;
  struct net_connection *connection, *next;
  uint64_t now = uv_now(hub->loop), at = NET_NEVER, due;

  hub->armed = NET_NEVER;
  if (hub->closing) return;
  hub->ticking = true;
  for (connection = hub->connections; connection; connection = next) {
    next = connection->next;
    due = net_connection_tick(connection, now);
    at = MIN(at, due);
  }
  if (hub->tick) {
    due = hub->tick(hub, now);
    at = MIN(at, due);
  }
  if (at != NET_NEVER) net_hub_arm(hub, at);
  hub->ticking = false;
}

void net_hub_arm(struct net_hub *hub, uint64_t at)
{
  uint64_t now = uv_now(hub->loop);

  /* libuv would run a timer that is due again before anything else. */
  if (hub->ticking && at <= now) at = now + 1;
  if (hub->closing || at >= hub->armed) return;
  hub->armed = at;
  uv_timer_start(&hub->timer, on_timer, at > now ? at - now : 0, 0);
}

void net_hub_flush(struct net_hub *hub)
{
  struct net_connection *connection;

  while ((connection = hub->dirty) != NULL) {
    hub->dirty = connection->next_dirty;
    connection->next_dirty = NULL;
    connection->dirty = false;
    net_connection_flush(connection);
  }
}

static void on_handle_closed(uv_handle_t *handle)
{
  net_hub_drop(handle->data);
}

void net_hub_drop(struct net_hub *hub)
{
  assert(hub->handles > 0);
  if (--hub->handles) return;
  assert(hub->closing && !hub->connections);
  free(hub->spare.memory);
  hub->spare.memory = NULL;
  hub->gone(hub);
}

static void on_prepare(uv_prepare_t *prepare)
{
  struct net_hub *hub = prepare->data;
  struct net_connection *connection;

  do {
    net_hub_flush(hub);
    while ((connection = hub->ended) != NULL) {
      hub->ended = connection->next_ended;
      connection->next_ended = NULL;
      net_connection_reap(connection);
    }
    if (hub->sweep) hub->sweep(hub);
  } while (hub->dirty || hub->ended);
  if (!hub->closing) return;
  uv_close((uv_handle_t *)&hub->timer, on_handle_closed);
  uv_close((uv_handle_t *)&hub->prepare, on_handle_closed);
}

void net_hub_open(struct net_hub *hub, uv_loop_t *loop)
{
  hub->loop = loop;
  hub->limits = defaults;
  hub->armed = NET_NEVER;
  uv_timer_init(loop, &hub->timer);
  uv_prepare_init(loop, &hub->prepare);
  hub->timer.data = hub;
  hub->prepare.data = hub;
  uv_prepare_start(&hub->prepare, on_prepare);
  hub->handles += 2; /* an owner may have begun with some of its own */
}

void net_hub_close(struct net_hub *hub)
{
  struct net_connection *connection;

  assert(!hub->closing);
  for (connection = hub->connections; connection; connection = connection->next)
    net_connection_end(connection, NET_CUT, "shutting down");
  /* So that the loop does not sleep before the prepare handle saw this. */
  uv_timer_start(&hub->timer, on_timer, 0, 0);
  hub->closing = true;
}
