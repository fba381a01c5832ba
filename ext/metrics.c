/*
** metrics.c: the table quorate_metrics: numbers of a node, in the names and
** kinds of Prometheus. A counter begins at 0 with the process that hosts the
** node.
**
** What belongs to the loop thread it leaves here now and then (metrics_tick),
** so that who asks never waits for it, and nothing that is frequent takes a
** lock. To add a number is one line in metrics_run(), and if it is the loop's,
** a field and a line in metrics_tick().
*/
#include "call.h"
#include "cluster.h"

#include <stdio.h>

struct metrics {
  struct net_counters net;
  struct invite_counters invites;
};

struct metrics *metrics_new(void)
{
  return calloc(1, sizeof(struct metrics));
}

void metrics_free(struct metrics *metrics)
{
  free(metrics);
}

void metrics_tick(struct node *node)
{
  struct metrics now;
  net_counters(node->net, &now.net);
  invite_count(node, &now.invites);
  pthread_mutex_lock(&node->mutex);
  *node->metrics = now;
  pthread_mutex_unlock(&node->mutex);
}

/* ---- rows ------------------------------------------------------------------ */

static void row(struct cells *out, const char *type, const char *name,
                const char *help, uint64_t value)
{
  cells_text(out, name);
  cells_text(out, type);
  cells_text(out, help);
  cells_integer(out, value);
}

/* What has happened so often; what there is now. */
static void counter(struct cells *out, const char *name, const char *help,
                    uint64_t value)
{
  row(out, "counter", name, help, value);
}

static void gauge(struct cells *out, const char *name, const char *help,
                  uint64_t value)
{
  row(out, "gauge", name, help, value);
}

static void add_roles(struct cells *out, const char *role)
{
  static const char *const roles[] = {"leader", "follower", "candidate",
                                      "learner"};
  for (unsigned i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
    char name[64];
    snprintf(name, sizeof(name), "quorate_role{role=\"%s\"}", roles[i]);
    gauge(out, name, "1 for the role that this node has",
          strcmp(role, roles[i]) == 0);
  }
}

static void add_refusals(struct cells *out, const struct net_counters *net)
{
#define REFUSAL(NAME, text, what)                                              \
  counter(out, "quorate_refused_connections_total{reason=\"" text "\"}",       \
          "Connections refused or cut: " what,                                 \
          net->refused[NET_REFUSED_##NAME]);
  NET_REFUSALS_MAP(REFUSAL)
#undef REFUSAL
}

static void add_network(struct cells *out, const struct net_counters *net)
{
  counter(out, "quorate_accepted_connections_total", "Connections that came in",
          net->accepted);
  counter(out, "quorate_handshakes_total",
          "Connections that came in and finished the TLS handshake",
          net->handshakes);
  add_refusals(out, net);
  gauge(out, "quorate_unverified_connections",
        "Connections that have not shown a member's certificate",
        net->unverified);
  counter(out, "quorate_join_requests_total", "Requests to join that came in",
          net->joins);
  counter(out, "quorate_dials_total", "Own attempts to connect to a member",
          net->dials);
  counter(out, "quorate_dial_failures_total", "How many of these failed",
          net->dial_failures);
  counter(out, "quorate_goodbyes_total",
          "How often a member did not want this node's connection",
          net->goodbyes);
  counter(out, "quorate_sent_bytes_total", "Bytes sent to others, encrypted",
          net->sent_bytes);
  counter(out, "quorate_received_bytes_total",
          "Bytes received from others, encrypted", net->received_bytes);
  counter(out, "quorate_sent_messages_total", "Messages of Raft sent",
          net->sent_messages);
  counter(out, "quorate_received_messages_total", "Messages of Raft received",
          net->received_messages);
}

static void add_invitations(struct cells *out, const struct invite_counters *i)
{
  gauge(out, "quorate_invitations{state=\"open\"}",
        "Invitations that nobody has used yet", i->open);
  gauge(out, "quorate_invitations{state=\"used\"}",
        "Invitations used within the last day", i->used);
  counter(out, "quorate_failed_joins_total",
          "Attempts to join with a token that does not serve, on this node as "
          "the leader",
          i->failed);
  counter(out, "quorate_limited_joins_total",
          "Attempts to join that were not looked at, after too many in vain",
          i->limited);
}

void metrics_run(struct node *node, const struct call *call,
                 const struct interrupt *interrupt, struct answer *answer)
{
  struct cells *out = &answer->cells;
  struct store_stats log = {0};
  uint32_t frames = 0, backfilled = 0;
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  struct metrics m = *node->metrics;
  struct node_view view = node->view;
  raft_index applied = node->applied;
  bool writable = writer_refusal(node) == NULL;
  if (node->store) store_stats(node->store, &log);
  pthread_mutex_unlock(&node->mutex);
  pthread_mutex_lock(&node->events.mutex);
  uint64_t events = node->events.n;
  pthread_mutex_unlock(&node->events.mutex);
  if (node->wal) frames = wal_frames(node->wal, &backfilled);

  gauge(out, "quorate_uptime_seconds",
        "Time since this process began to host the node",
        (clock_monotonic_ms() - node->since) / 1000);
  add_roles(out, node_role_name(node));
  gauge(out, "quorate_term", "The Raft term", view.term);
  gauge(out, "quorate_voters", "Members that vote", view.voters);
  gauge(out, "quorate_serving", "1 if the node answers reads",
        atomic_load(&node->shared->serving));
  gauge(out, "quorate_writable", "1 if the node takes writes", writable);
  gauge(out, "quorate_commit_index", "Newest log entry known to be agreed on",
        view.commit);
  gauge(out, "quorate_applied_index", "Newest log entry that readers here see",
        applied);
  gauge(out, "quorate_last_index", "Newest entry of the log", view.last);
  gauge(out, "quorate_checkpoint_index",
        "Newest log entry that is in the database file",
        atomic_load(&node->shown_checkpoint));
  gauge(out, "quorate_log_bytes", "Size of the log on disk", log.bytes);
  gauge(out, "quorate_wal_frames", "Pages in the WAL", frames);
  gauge(out, "quorate_wal_backfilled_frames",
        "How many of these are in the database file", backfilled);
  counter(out, "quorate_checkpoints_total", "Checkpoints made",
          atomic_load(&node->checkpoints));
  counter(out, "quorate_events_total", "Lines ever added to quorate_events",
          events);
  add_invitations(out, &m.invites);
  add_network(out, &m.net);
}
