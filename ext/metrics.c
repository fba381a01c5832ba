/*
** metrics.c: the table quorate_metrics: numbers of a node, in the names and
** kinds of Prometheus. A counter begins at 0 with the process that hosts the
** node.
**
** What belongs to the loop thread it leaves here now and then (metrics_tick),
** so that who asks never waits for it, and nothing that is frequent takes a
** lock: struct counters has what is counted where it happens, and reads are
** counted by the connections themselves, in their slots of the control file. To
** add a number is one line in metrics_run(), and if it is the loop's, a field
** and a line in metrics_tick().
**
** A histogram has rows of type `histogram`, named as Prometheus names them; what
** a row's label tells is after a colon in its help.
*/
#include "call.h"
#include "cluster.h"
#include "sql.h"
#include "trust.h"

#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define PEERS_MS 1000 /* pace of looking at the peers */

/* What the loop knows of another member. */
struct peer_numbers {
  char name[RAFT_NAME_MAX];
  bool known; /* this node leads, so that it knows how far that one is */
  bool up;
  uint64_t lag_entries, lag_ms;
  uint32_t round_trip_us; /* 0: unknown */
};

struct metrics {
  struct net_counters net;
  struct invite_counters invites;
  uint64_t elections, elections_won, leaders;
  uint64_t snapshots_given, snapshots_taken;
  unsigned n_peers;
  struct peer_numbers peers[RAFT_MEMBERS_MAX];
  uint64_t peers_due; /* loop thread */
  struct meter_window commits, syncs;
};

struct metrics *metrics_new(void)
{
  return calloc(1, sizeof(struct metrics));
}

void metrics_free(struct metrics *metrics)
{
  free(metrics);
}

static uint64_t count_reads(struct node *node, unsigned level)
{
  const struct control *control = node->shared;
  uint32_t n = atomic_load(&control->slots_used);
  uint64_t sum = 0;
  for (uint32_t i = 0; i < n && i < CONTROL_SLOTS; i++)
    sum += atomic_load_explicit(&control->slots[i].reads[level],
                                memory_order_relaxed);
  return sum;
}

void metrics_begin(struct node *node)
{
  for (unsigned level = 0; level < 3; level++)
    node->reads_before[level] = count_reads(node, level);
}

void metrics_note(struct node *node, const struct node_view *was)
{
  struct counters *c = &node->counters;
  const struct node_view *now = &node->view;
  bool leads = now->role == RAFT_LEADER;
  meter_grown(&c->growth, node->now, now->last);
  if (now->term != was->term && (leads || now->role == RAFT_CANDIDATE))
    c->elections++;
  if (leads && (was->role != RAFT_LEADER || now->term != was->term))
    c->elections_won++;
  if (now->leader && (now->leader != was->leader || now->term != was->term))
    c->leaders++;
}

static void look_at_peer(struct node *node, const struct raft_member *m,
                         struct peer_numbers *p)
{
  struct net_peer_status status;
  struct raft_progress progress;
  raft_index last = raft_last(node->raft);
  memcpy(p->name, m->name, sizeof(p->name));
  p->up = net_peer_status(node->net, m->id, &status) && status.connected;
  p->round_trip_us = p->up ? net_round_trip(node->net, m->id) : 0;
  p->known = raft_progress(node->raft, m->id, &progress);
  if (!p->known) return;
  p->lag_entries = last > progress.match ? last - progress.match : 0;
  p->lag_ms = meter_behind(&node->counters.growth, clock_monotonic_ms(),
                           progress.match);
}

static unsigned look_at_peers(struct node *node, struct peer_numbers *peers)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  unsigned n = 0;
  for (unsigned i = 0; i < c->n; i++)
    if (c->members[i].id != node->identity.id)
      look_at_peer(node, &c->members[i], &peers[n++]);
  return n;
}

void metrics_tick(struct node *node)
{
  const struct counters *c = &node->counters;
  struct metrics *m = node->metrics;
  struct net_counters net;
  struct invite_counters invites;
  struct peer_numbers peers[RAFT_MEMBERS_MAX] = {0};
  uint64_t now = clock_monotonic_ms();
  bool look = now >= m->peers_due;
  unsigned n_peers = look ? look_at_peers(node, peers) : 0;
  net_counters(node->net, &net);
  invite_count(node, &invites);
  pthread_mutex_lock(&node->mutex);
  m->net = net;
  m->invites = invites;
  m->elections = c->elections;
  m->elections_won = c->elections_won;
  m->leaders = c->leaders;
  m->snapshots_given = c->snapshots_given;
  m->snapshots_taken = c->snapshots_taken;
  if (look) {
    m->peers_due = now + PEERS_MS;
    m->n_peers = n_peers;
    memcpy(m->peers, peers, sizeof(peers));
  }
  meter_window_tick(&m->commits, &c->commits, now);
  meter_window_tick(&m->syncs, &c->syncs, now);
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

static void seconds(struct cells *out, const char *type, const char *name,
                    const char *help, double value)
{
  cells_text(out, name);
  cells_text(out, type);
  cells_text(out, help);
  if (value < 0)
    cells_null(out);
  else
    cells_real(out, value);
}

/* Of some seconds each, `name` being without its suffix. */
static void histogram(struct cells *out, const char *name, const char *help,
                      const struct meter_counts *counts)
{
  char line[128];
  for (int d = -3; d <= 14; d++) { /* 125 us to 16 s, and more */
    double most = d < 0 ? 0.001 / (1 << -d) : 0.001 * (1 << d);
    snprintf(line, sizeof(line), "%s_bucket{le=\"%.10g\"}", name, most);
    row(out, "histogram", line, help, meter_within(counts, d));
  }
  snprintf(line, sizeof(line), "%s_bucket{le=\"+Inf\"}", name);
  row(out, "histogram", line, help, counts->n);
  snprintf(line, sizeof(line), "%s_sum", name);
  seconds(out, "histogram", line, help, (double)counts->ns / 1e9);
  snprintf(line, sizeof(line), "%s_count", name);
  row(out, "histogram", line, help, counts->n);
}

static void add_roles(struct cells *out, const char *role)
{
  static const char *const roles[] = {"leader", "follower", "candidate",
                                      "learner"};
  for (unsigned i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
    char name[64];
    snprintf(name, sizeof(name), "quorate_role{role=\"%s\"}", roles[i]);
    gauge(out, name, "The role of this node: 1 for this one, else 0",
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
  gauge(out, "quorate_invitations{state=\"open\"}", "Invitations: not used yet",
        i->open);
  gauge(out, "quorate_invitations{state=\"used\"}",
        "Invitations: used within the last day", i->used);
  counter(out, "quorate_failed_joins_total",
          "Attempts to join with a token that does not serve, on this node as "
          "the leader",
          i->failed);
  counter(out, "quorate_limited_joins_total",
          "Attempts to join that were not looked at, after too many in vain",
          i->limited);
}

static void add_commits(struct cells *out, struct node *node,
                        const struct metrics *m)
{
  struct counters *c = &node->counters;
  struct meter_counts commits, syncs;
  meter_read(&c->commits, &commits);
  meter_read(&c->syncs, &syncs);
  counter(out, "quorate_transactions_total",
          "Transactions applied here, whoever wrote them",
          atomic_load(&c->transactions));
  histogram(out, "quorate_commit_seconds",
            "Time of commits on this node, from the hand-over on", &commits);
  seconds(out, "gauge", "quorate_commit_p50_seconds",
          "Half of the commits of the last minute took no longer",
          meter_window_quantile(&m->commits, &commits, 0.5));
  seconds(out, "gauge", "quorate_commit_p99_seconds",
          "99 in 100 commits of the last minute took no longer",
          meter_window_quantile(&m->commits, &commits, 0.99));
  counter(out, "quorate_failed_commits_total{outcome=\"rolled_back\"}",
          "Commits that failed: rolled back", atomic_load(&c->rolled_back));
  counter(out, "quorate_failed_commits_total{outcome=\"unknown\"}",
          "Commits that failed: their outcome was not known in time",
          atomic_load(&c->unknown));
  histogram(out, "quorate_fsync_seconds", "Time of syncs of the log", &syncs);
  seconds(out, "gauge", "quorate_fsync_p99_seconds",
          "99 in 100 syncs of the last minute took no longer",
          meter_window_quantile(&m->syncs, &syncs, 0.99));
}

static void add_reads(struct cells *out, struct node *node, uint64_t rounds)
{
  static const char *const levels[] = {
      [LEVEL_LINEARIZABLE] = "linearizable",
      [LEVEL_LEASE] = "lease",
      [LEVEL_LOCAL] = "local",
  };
  for (unsigned i = 0; i < 3; i++) {
    char name[64];
    uint64_t n = count_reads(node, i), before = node->reads_before[i];
    snprintf(name, sizeof(name), "quorate_reads_total{level=\"%s\"}",
             levels[i]);
    counter(out, name, "Read transactions of all processes here: of this level",
            n > before ? n - before : 0);
  }
  counter(out, "quorate_read_rounds_total",
          "Read indexes asked for: one serves all reads that wait", rounds);
}

static void add_elections(struct cells *out, const struct metrics *m)
{
  counter(out, "quorate_elections_total", "Elections that this node began",
          m->elections);
  counter(out, "quorate_elections_won_total", "How many of these it won",
          m->elections_won);
  counter(out, "quorate_leader_changes_total",
          "How often there was another leader, or the same one elected anew",
          m->leaders);
}

static void add_snapshots(struct cells *out, const struct metrics *m,
                          const struct counters *c)
{
  counter(out, "quorate_snapshots_total{direction=\"given\"}",
          "Snapshots: given to another node", m->snapshots_given);
  counter(out, "quorate_snapshots_total{direction=\"taken\"}",
          "Snapshots: taken and installed", m->snapshots_taken);
  counter(out, "quorate_snapshot_bytes_total{direction=\"given\"}",
          "Bytes of snapshots: given, whole or not",
          atomic_load(&c->given_bytes));
  counter(out, "quorate_snapshot_bytes_total{direction=\"taken\"}",
          "Bytes of snapshots: taken, whole or not",
          atomic_load(&c->taken_bytes));
}

/* One family of rows: a gauge of each peer. */
static void of_peers(struct cells *out, const struct metrics *m,
                     const char *name, const char *help,
                     double (*value)(const struct peer_numbers *p))
{
  for (unsigned i = 0; i < m->n_peers; i++) {
    char line[RAFT_NAME_MAX + 64];
    double v = value(&m->peers[i]);
    snprintf(line, sizeof(line), "%s{member=\"%s\"}", name, m->peers[i].name);
    if (v >= 0) seconds(out, "gauge", line, help, v);
  }
}

static double is_up(const struct peer_numbers *p)
{
  return p->up;
}

static double lag_entries(const struct peer_numbers *p)
{
  return p->known ? (double)p->lag_entries : -1;
}

static double lag_seconds(const struct peer_numbers *p)
{
  return p->known ? (double)p->lag_ms / 1e3 : -1;
}

static double round_trip(const struct peer_numbers *p)
{
  return p->round_trip_us ? p->round_trip_us / 1e6 : -1;
}

static void add_peers(struct cells *out, const struct metrics *m)
{
  unsigned up = 0;
  for (unsigned i = 0; i < m->n_peers; i++)
    up += m->peers[i].up;
  gauge(out, "quorate_peers", "Other members", m->n_peers);
  gauge(out, "quorate_peers_up", "How many of these this node is connected to",
        up);
  of_peers(out, m, "quorate_member_up", "1 if this node is connected to it",
           is_up);
  of_peers(out, m, "quorate_member_lag_entries",
           "Entries that it lacks, as the leader knows", lag_entries);
  of_peers(out, m, "quorate_member_lag_seconds",
           "For how long it has lacked some, as the leader knows", lag_seconds);
  of_peers(out, m, "quorate_member_round_trip_seconds",
           "Round trip to it, as the kernel measures it", round_trip);
}

/* What the node is like now, and who uses it. */
struct present {
  struct node_view view;
  raft_index applied;
  bool writable, failed;
  unsigned waiting; /* to write */
  unsigned processes, sessions;
  uint64_t rounds;
  struct store_stats log;
};

/* Takes it with the mutex held, and leaves that. */
static void take_present(struct node *node, struct present *p)
{
  *p = (struct present){.view = node->view,
                        .applied = node->applied,
                        .writable = writer_refusal(node) == NULL,
                        .failed = node->failed || node_log_failed(node),
                        .waiting = node->upgrading,
                        .rounds = node->next_read};
  for (struct write_place *w = node->places; w; w = w->next)
    p->waiting++;
  if (node->store) store_stats(node->store, &p->log);
  pthread_mutex_unlock(&node->mutex);
  if (node->host) host_count(node, &p->processes, &p->sessions);
}

static void add_present(struct cells *out, struct node *node,
                        const struct present *p)
{
  uint32_t frames = 0, backfilled = 0;
  if (node->wal) frames = wal_frames(node->wal, &backfilled);
  gauge(out, "quorate_term", "The Raft term", p->view.term);
  gauge(out, "quorate_voters", "Members that vote", p->view.voters);
  gauge(out, "quorate_serving", "1 if the node answers reads",
        atomic_load(&node->shared->serving));
  gauge(out, "quorate_writable", "1 if the node takes writes", p->writable);
  gauge(out, "quorate_failed",
        "1 if the node or its log has failed, and is to be started anew",
        p->failed);
  gauge(out, "quorate_commit_index", "Newest log entry known to be agreed on",
        p->view.commit);
  gauge(out, "quorate_applied_index", "Newest log entry that readers here see",
        p->applied);
  gauge(out, "quorate_last_index", "Newest entry of the log", p->view.last);
  gauge(out, "quorate_checkpoint_index",
        "Newest log entry that is in the database file",
        atomic_load(&node->shown_checkpoint));
  gauge(out, "quorate_log_bytes", "Size of the log on disk", p->log.bytes);
  gauge(out, "quorate_wal_frames", "Pages in the WAL", frames);
  gauge(out, "quorate_wal_backfilled_frames",
        "How many of these are in the database file", backfilled);
  counter(out, "quorate_checkpoints_total", "Checkpoints made",
          atomic_load(&node->counters.checkpoints));
  seconds(out, "counter", "quorate_checkpoint_seconds_total",
          "Time that they took in all",
          (double)atomic_load(&node->counters.checkpoint_ns) / 1e9);
  gauge(out, "quorate_write_queue", "Connections that wait to write",
        p->waiting);
  gauge(out, "quorate_attached_processes", "Other processes at this node",
        p->processes);
  gauge(out, "quorate_attached_sessions",
        "Connections of these that have needed the host", p->sessions);
}

void metrics_run(struct node *node, const struct call *call,
                 const struct interrupt *interrupt, struct answer *answer)
{
  struct cells *out = &answer->cells;
  struct metrics *m = malloc(sizeof(*m));
  struct present present;
  char info[RAFT_NAME_MAX + 64];
  (void)call;
  (void)interrupt;
  if (m == NULL) {
    out->bad = true;
    return;
  }
  pthread_mutex_lock(&node->mutex);
  *m = *node->metrics;
  take_present(node, &present);
  pthread_mutex_lock(&node->events.mutex);
  uint64_t events = node->events.n;
  pthread_mutex_unlock(&node->events.mutex);

  snprintf(info, sizeof(info), "quorate_info{name=\"%s\",version=\"%s\"}",
           node->identity.name, QUORATE_VERSION);
  gauge(out, info, "1; name and version of this node", 1);
  gauge(out, "quorate_uptime_seconds",
        "Time since this process began to host the node",
        (clock_monotonic_ms() - node->since) / 1000);
  add_roles(out, node_role_name(node));
  add_present(out, node, &present);
  add_commits(out, node, m);
  add_reads(out, node, present.rounds);
  add_elections(out, m);
  add_snapshots(out, m, &node->counters);
  add_peers(out, m);
  int64_t expires = trust_expires(node);
  if (expires > 0)
    gauge(out, "quorate_certificate_expires_timestamp_seconds",
          "When this node's certificate ends, in seconds since 1970",
          (uint64_t)expires);
  counter(out, "quorate_events_total", "Lines ever added to quorate_events",
          events);
  add_invitations(out, &m->invites);
  add_network(out, &m->net);
  free(m);
}
