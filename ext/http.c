/*
** http.c: what the nodes of quorated are like, over HTTP: read-only, for
** whoever can reach the port.
**
**     /          a page that draws the cluster (page.html)
**     /status    everything, as JSON
**     /metrics   numbers, for Prometheus
**     /ready     200 when each node can be read and knows a leader, else 503
**     /live      503 when a restart would help: a node has failed, or nobody
**                looks after the nodes any more
**
** No request ever asks a node. Two threads do, once a second: the looker asks
** for what a node knows by itself, the asker for what its leader must tell,
** which may take long. They leave texts behind; a request, on a thread of
** libmicrohttpd's, gets a copy of one. So neither many requests nor slow ones
** cost a node anything, and a node that does not answer holds up no request.
**
** A connection serves one request, has 8 KiB of memory, and an end: ten seconds
** after its beginning the looker shuts it down, whatever it has sent by then.
**
** A browser that visits another site must not become a spy: answers name no
** origin that may read them, and on loopback a request is refused whose Host is
** a name other than localhost, as it is when somebody's name points here.
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "http.h"
#include "report.h"
#include "sql.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 64
#define OF_ONE_ADDRESS 32
#define CONNECTION_BYTES 8192
#define LIFE_MS 10000 /* of a connection */
#define LOOK_MS 1000
#define DEAD_MS 30000 /* nobody has looked for so long */
#define OLD_MS 15000  /* what was seen of a node does not count any more */
#define HISTORY 300   /* looks that are remembered */
#define LEADERS 32    /* changes of leaders, likewise */

/* One look at a node. */
struct look {
  double transactions, commits, p99; /* a second; a second; ms */
};

struct leader {
  uint64_t ms;
  int64_t term;
  char name[RAFT_NAME_MAX];
};

struct watched {
  const char *path;
  sqlite3 *looks, *asks; /* connections of the two threads; NULL: not open */
  /* guarded by the mutex */
  bool open;
  char state[16];
  struct text why;
  char *members; /* JSON; NULL: nobody has told */
  uint64_t members_ms;
  /* of the looker */
  bool seen, serves, led, failed;
  uint64_t seen_ms;
  struct text reason;
  struct numbers numbers;
  double reads_a_second;
  struct look history[HISTORY]; /* a ring */
  unsigned n_history;           /* ever */
  struct leader leaders[LEADERS];
  unsigned n_leaders;
};

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t news;
  struct watched *files;
  unsigned n;
  char where[RAFT_ADDRESS_MAX];
  bool loopback, ending;
  uint64_t started, kept, looked; /* ms; the last two: 0: not yet */
  struct packer status, metrics;  /* the newest texts */
  struct text not_ready, not_live;
  struct {
    int fd; /* -1: free */
    uint64_t since;
  } connections[CONNECTIONS];
  struct MHD_Daemon *daemon;
  pthread_t looker, asker;
  bool started_threads;
  unsigned running; /* of these two */
} http = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* The page as it is in the source, with places for a nonce in it. */
#define NONCE "NONCENONCENONCENONCENONCENONCENO"
__asm__(".pushsection .rodata\n"
        ".local page_begin, page_end\n"
        "page_begin: .incbin \"ext/page.html\"\n"
        "page_end: .byte 0\n"
        ".popsection\n");
extern const char page_begin[] __attribute__((visibility("hidden")));
extern const char page_end[] __attribute__((visibility("hidden")));

/* ---- looking ------------------------------------------------------------- */

/* A connection to a node whose file the keeper has open. */
static sqlite3 *open_node(const char *path)
{
  sqlite3 *db = NULL;
  if (report_open(path, &db) == SQLITE_OK) return db;
  sqlite3_close(db);
  return NULL;
}

/* The connection of one of the two threads; NULL: there is none. The mutex
   guards the place, for who interrupts. */
static sqlite3 *connection_of(struct watched *w, sqlite3 **place)
{
  pthread_mutex_lock(&http.mutex);
  bool open = w->open && !http.ending;
  sqlite3 *db = *place;
  pthread_mutex_unlock(&http.mutex);
  if (db || !open) return open ? db : NULL;
  db = open_node(w->path);
  pthread_mutex_lock(&http.mutex);
  *place = db;
  pthread_mutex_unlock(&http.mutex);
  return db;
}

static void note_leader(struct watched *w, const char *name, int64_t term,
                        uint64_t now)
{
  const struct leader *last =
      w->n_leaders ? &w->leaders[(w->n_leaders - 1) % LEADERS] : NULL;
  if (name == NULL) name = "";
  if (last && last->term == term && strcmp(last->name, name) == 0) return;
  struct leader *next = &w->leaders[w->n_leaders++ % LEADERS];
  next->ms = now;
  next->term = term;
  snprintf(next->name, sizeof(next->name), "%s", name);
}

/* What health and history need. */
static bool look_at_state(struct watched *w, sqlite3 *db, uint64_t now)
{
  sqlite3_stmt *stmt = NULL;
  bool there = false;
  int rc = sqlite3_prepare_v2(
      db, "SELECT role, leader, term, serving, reason FROM quorate_status", -1,
      &stmt, NULL);
  if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
    const char *role = (const char *)sqlite3_column_text(stmt, 0);
    const char *leader = (const char *)sqlite3_column_text(stmt, 1);
    const char *reason = (const char *)sqlite3_column_text(stmt, 4);
    there = true;
    w->failed = role && strcmp(role, "failed") == 0;
    w->led = leader != NULL;
    w->serves = sqlite3_column_int(stmt, 3) != 0;
    text_set(&w->reason, "%s", reason ? reason : "");
    note_leader(w, leader, sqlite3_column_int64(stmt, 2), now);
  }
  return sqlite3_finalize(stmt) == SQLITE_OK && there;
}

static void look_at_numbers(struct watched *w, sqlite3 *db)
{
  struct numbers now;
  if (!report_numbers(db, &now)) return;
  static const struct look none = {-1, -1, -1};
  uint64_t ms = now.ms - w->numbers.ms, late = ms;
  if (w->numbers.ms) {
    /* For as long as nobody could look, there is a gap. */
    for (int i = 0; i < HISTORY && late >= 2 * LOOK_MS - LOOK_MS / 4; i++) {
      w->history[w->n_history++ % HISTORY] = none;
      late -= LOOK_MS;
    }
    w->history[w->n_history++ % HISTORY] = (struct look){
        report_rate(now.transactions, w->numbers.transactions, ms),
        report_rate(now.commits, w->numbers.commits, ms),
        now.commit_p99 < 0 ? -1 : now.commit_p99 * 1e3};
    w->reads_a_second = report_rate(now.reads, w->numbers.reads, ms);
  }
  w->numbers = now;
}

static void put_history(struct watched *w, struct packer *out, uint64_t now)
{
  unsigned first = w->n_history > HISTORY ? w->n_history - HISTORY : 0;
  const char *separator = "";
  json_printf(out, ",\"history\":{\"step_ms\":%d,\"transactions\":[", LOOK_MS);
  for (unsigned i = first; i < w->n_history; i++, separator = ",") {
    json_printf(out, "%s", separator);
    json_number(out, w->history[i % HISTORY].transactions, 1);
  }
  json_printf(out, "],\"commit_p99_ms\":[");
  separator = "";
  for (unsigned i = first; i < w->n_history; i++, separator = ",") {
    json_printf(out, "%s", separator);
    json_number(out, w->history[i % HISTORY].p99, 2);
  }
  json_printf(out, "],\"leaders\":[");
  first = w->n_leaders > LEADERS ? w->n_leaders - LEADERS : 0;
  for (unsigned i = first; i < w->n_leaders; i++) {
    const struct leader *l = &w->leaders[i % LEADERS];
    json_printf(out, "%s{\"ago_ms\":%llu,\"term\":%lld,\"leader\":",
                i > first ? "," : "", (unsigned long long)(now - l->ms),
                (long long)l->term);
    json_text(out, l->name[0] ? l->name : NULL);
    json_printf(out, "}");
  }
  json_printf(out, "]}");
}

static void put_numbers(struct watched *w, struct packer *out)
{
  const struct numbers *n = &w->numbers;
  static const struct look none = {-1, -1, -1};
  const struct look *last =
      w->n_history ? &w->history[(w->n_history - 1) % HISTORY] : &none;
  json_printf(out, ",\"numbers\":{\"transactions_per_second\":");
  json_number(out, last->transactions, 1);
  json_printf(out, ",\"commits_per_second\":");
  json_number(out, last->commits, 1);
  json_printf(out, ",\"reads_per_second\":");
  json_number(out, w->n_history ? w->reads_a_second : -1, 1);
  json_printf(out, ",\"commit_p50_ms\":");
  json_number(out, n->ms ? n->commit_p50 * 1e3 : -1, 3);
  json_printf(out, ",\"commit_p99_ms\":");
  json_number(out, n->ms ? n->commit_p99 * 1e3 : -1, 3);
  json_printf(out, ",\"fsync_p99_ms\":");
  json_number(out, n->ms ? n->fsync * 1e3 : -1, 3);
  json_printf(out, ",\"write_queue\":");
  json_number(out, n->ms ? n->waiting : -1, 0);
  json_printf(out, "}");
}

/* What the asker has left. */
static void put_members(struct watched *w, struct packer *out, uint64_t now)
{
  pthread_mutex_lock(&http.mutex);
  json_printf(out, ",\"members\":");
  if (w->members)
    pack_bytes(out, w->members, strlen(w->members));
  else
    json_printf(out, "null");
  json_printf(out, ",\"members_age_ms\":");
  json_number(out, w->members ? (double)(now - w->members_ms) : -1, 0);
  json_printf(out, ",\"state\":");
  json_text(out, w->state);
  json_printf(out, ",\"why\":");
  json_text(out, w->why.s[0] ? w->why.s : NULL);
  pthread_mutex_unlock(&http.mutex);
}

/* One file: into the JSON of all, and the numbers of all. */
static void look_at_file(struct watched *w, struct packer *out,
                         struct samples *samples)
{
  static const char events[] =
      "SELECT time, event FROM (SELECT rowid AS n, * FROM quorate_events "
      "ORDER BY n DESC LIMIT 50) ORDER BY n";
  sqlite3 *db = connection_of(w, &w->looks);
  uint64_t now = clock_monotonic_ms();
  w->seen = db && look_at_state(w, db, now);
  if (w->seen) w->seen_ms = now;
  json_printf(out, "{\"file\":");
  json_text(out, w->path);
  put_members(w, out, now);
  json_printf(out, ",\"status\":");
  if (!w->seen || !json_rows(out, db, "SELECT * FROM quorate_status", true))
    json_printf(out, "null");
  json_printf(out, ",\"events\":");
  if (!w->seen || !json_rows(out, db, events, false)) json_printf(out, "[]");
  if (w->seen) look_at_numbers(w, db);
  if (w->numbers.failed > 0) w->failed = true;
  put_numbers(w, out);
  put_history(w, out, now);
  json_printf(out, "}");
  samples_gauge(samples, "quorate_up", "1 if the node could be asked", w->seen,
                w->path);
  if (w->seen) samples_of(samples, db, w->path);
}

/* Why it is not ready, or not alive; "": it is. Mutex held. */
static void judge(const struct watched *w, uint64_t now, struct text *not_ready,
                  struct text *not_live)
{
  bool fresh = w->seen && now - w->seen_ms < OLD_MS;
  const char *why = !w->open     ? (w->why.s[0] ? w->why.s : w->state)
                    : !fresh     ? "it could not be asked"
                    : w->failed  ? "the node has failed"
                    : !w->serves ? "it does not answer reads yet"
                    : !w->led    ? "no leader: no quorum, or an election"
                                 : NULL;
  if (why && !not_ready->s[0]) text_set(not_ready, "%s: %s", w->path, why);
  if (w->open && fresh && w->failed && !not_live->s[0])
    text_set(not_live, "%s: the node has failed: %s", w->path, w->reason.s);
}

/* The new texts take the place of the old ones. */
static void publish(struct packer *status, struct packer *metrics)
{
  struct text not_ready = {""}, not_live = {""};
  uint64_t now = clock_monotonic_ms();
  pthread_mutex_lock(&http.mutex);
  for (unsigned i = 0; i < http.n; i++)
    judge(&http.files[i], now, &not_ready, &not_live);
  http.not_ready = not_ready;
  http.not_live = not_live;
  if (!status->bad && !metrics->bad) {
    struct packer old[] = {http.status, http.metrics};
    http.status = *status;
    http.metrics = *metrics;
    *status = old[0];
    *metrics = old[1];
  }
  http.looked = now;
  pthread_mutex_unlock(&http.mutex);
  free(status->data);
  free(metrics->data);
}

static void look_around(void)
{
  struct packer status = {0}, metrics = {0};
  struct samples samples = {0};
  uint64_t up = clock_monotonic_ms() - http.started;
  json_printf(&status, "{\"program\":\"quorated\",\"version\":\"%s\",",
              QUORATE_VERSION);
  json_printf(&status, "\"time\":\"%sZ\",\"uptime_ms\":%llu,\"nodes\":[",
              clock_text(clock_wall_ms()).s, (unsigned long long)up);
  for (unsigned i = 0; i < http.n; i++) {
    if (i > 0) pack_u8(&status, ',');
    look_at_file(&http.files[i], &status, &samples);
  }
  json_printf(&status, "]}\n");
  samples_write(&samples, &metrics);
  samples_clear(&samples);
  publish(&status, &metrics);
}

static void ask_around(void)
{
  for (unsigned i = 0; i < http.n; i++) {
    struct watched *w = &http.files[i];
    struct packer members = {0};
    sqlite3 *db = connection_of(w, &w->asks);
    if (db == NULL ||
        !json_rows(&members, db, "SELECT * FROM quorate_members", false))
      members.bad = true;
    pack_u8(&members, 0);
    if (members.bad) {
      free(members.data);
      continue;
    }
    pthread_mutex_lock(&http.mutex);
    free(w->members);
    w->members = (char *)members.data;
    w->members_ms = clock_monotonic_ms();
    pthread_mutex_unlock(&http.mutex);
  }
}

/* ---- threads ------------------------------------------------------------- */

/* A connection that has lived its time; it may not be closed meanwhile. */
static void end_old_connections(void)
{
  uint64_t now = clock_monotonic_ms();
  pthread_mutex_lock(&http.mutex);
  for (unsigned i = 0; i < CONNECTIONS; i++)
    if (http.connections[i].fd >= 0 &&
        now - http.connections[i].since > LIFE_MS)
      shutdown(http.connections[i].fd, SHUT_RDWR);
  pthread_mutex_unlock(&http.mutex);
}

/* Waits for the next turn; false: it is the end. */
static bool wait_turn(uint64_t *turn)
{
  struct timespec end = {0};
  uint64_t now = clock_monotonic_ms();
  *turn = now - *turn > 3 * LOOK_MS ? now + LOOK_MS : *turn + LOOK_MS;
  end.tv_sec = (time_t)(*turn / 1000);
  end.tv_nsec = (long)(*turn % 1000) * 1000000;
  pthread_mutex_lock(&http.mutex);
  while (!http.ending &&
         pthread_cond_timedwait(&http.news, &http.mutex, &end) == 0)
    ;
  bool more = !http.ending;
  pthread_mutex_unlock(&http.mutex);
  return more;
}

static void close_place(sqlite3 **place)
{
  pthread_mutex_lock(&http.mutex);
  sqlite3 *db = *place;
  *place = NULL;
  pthread_mutex_unlock(&http.mutex);
  sqlite3_close(db);
}

/* Of one of the two threads; it is joined at once then. */
static void has_ended(void)
{
  pthread_mutex_lock(&http.mutex);
  http.running--;
  pthread_cond_broadcast(&http.news);
  pthread_mutex_unlock(&http.mutex);
}

static void *looker_main(void *arg)
{
  uint64_t turn = clock_monotonic_ms();
  (void)arg;
  pthread_setname_np(pthread_self(), "quorated looks");
  do {
    look_around();
    end_old_connections();
  } while (wait_turn(&turn));
  for (unsigned i = 0; i < http.n; i++)
    close_place(&http.files[i].looks);
  has_ended();
  return NULL;
}

static void *asker_main(void *arg)
{
  uint64_t turn = clock_monotonic_ms();
  (void)arg;
  pthread_setname_np(pthread_self(), "quorated asks");
  do
    ask_around();
  while (wait_turn(&turn));
  for (unsigned i = 0; i < http.n; i++)
    close_place(&http.files[i].asks);
  has_ended();
  return NULL;
}

/* ---- answers ------------------------------------------------------------- */

static void add_header(struct MHD_Response *r, const char *name,
                       const char *value)
{
  MHD_add_response_header(r, name, value);
}

/* The body is copied. */
static enum MHD_Result reply(struct MHD_Connection *connection, unsigned code,
                             const char *type, const char *policy,
                             const void *body, size_t len)
{
  union {
    const void *in;
    void *out;
  } data = {.in = body}; /* it is not written */
  struct MHD_Response *r =
      MHD_create_response_from_buffer(len, data.out, MHD_RESPMEM_MUST_COPY);
  if (r == NULL) return MHD_NO;
  add_header(r, "Content-Type", type);
  add_header(r, "Content-Security-Policy", policy);
  add_header(r, "X-Content-Type-Options", "nosniff");
  add_header(r, "Referrer-Policy", "no-referrer");
  add_header(r, "Cross-Origin-Resource-Policy", "same-origin");
  add_header(r, "Cache-Control", "no-store");
  add_header(r, "Connection", "close");
  if (code == MHD_HTTP_METHOD_NOT_ALLOWED) add_header(r, "Allow", "GET, HEAD");
  enum MHD_Result rc = MHD_queue_response(connection, code, r);
  MHD_destroy_response(r);
  return rc;
}

#define NOTHING "default-src 'none'; frame-ancestors 'none'"

static enum MHD_Result reply_text(struct MHD_Connection *connection,
                                  unsigned code, const char *text)
{
  char line[TEXT_MAX + 4];
  int n = snprintf(line, sizeof(line), "%s\n", text);
  return reply(connection, code, "text/plain; charset=utf-8", NOTHING, line,
               (size_t)n);
}

/* What is inline in the page runs by a number that nobody else can know. */
static enum MHD_Result reply_page(struct MHD_Connection *connection)
{
  uint8_t random[16];
  char nonce[33], policy[256];
  size_t len = (size_t)(page_end - page_begin);
  char *page = malloc(len + 1), *at = page;
  if (page == NULL || getrandom(random, sizeof(random), 0) != sizeof(random)) {
    free(page);
    return MHD_NO;
  }
  for (unsigned i = 0; i < sizeof(random); i++)
    snprintf(nonce + (size_t)i * 2, 3, "%02x", random[i]);
  memcpy(page, page_begin, len);
  page[len] = 0;
  while ((at = strstr(at, NONCE)))
    memcpy(at, nonce, sizeof(nonce) - 1);
  snprintf(policy, sizeof(policy),
           "default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; "
           "connect-src 'self'; img-src data:; base-uri 'none'; "
           "form-action 'none'; frame-ancestors 'none'",
           nonce, nonce);
  enum MHD_Result rc = reply(connection, MHD_HTTP_OK,
                             "text/html; charset=utf-8", policy, page, len);
  free(page);
  return rc;
}

/* One of the texts that the looker leaves. */
static enum MHD_Result reply_newest(struct MHD_Connection *connection,
                                    const struct packer *newest,
                                    const char *type)
{
  pthread_mutex_lock(&http.mutex);
  enum MHD_Result rc = newest->data ? reply(connection, MHD_HTTP_OK, type,
                                            NOTHING, newest->data, newest->len)
                                    : MHD_NO;
  bool none = newest->data == NULL;
  pthread_mutex_unlock(&http.mutex);
  return none ? reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                           "nothing is known yet")
              : rc;
}

/* Nobody has looked for too long. Mutex held. */
static bool is_stuck(bool ready)
{
  uint64_t now = clock_monotonic_ms();
  return (http.looked && now - http.looked > (ready ? OLD_MS : DEAD_MS)) ||
         (http.kept && now - http.kept > DEAD_MS);
}

static enum MHD_Result reply_health(struct MHD_Connection *connection,
                                    bool ready)
{
  struct text why = {""};
  pthread_mutex_lock(&http.mutex);
  if (is_stuck(ready))
    text_set(&why, "nobody looks after the nodes any more");
  else if (ready && http.looked == 0)
    text_set(&why, "nothing is known yet");
  else
    why = ready ? http.not_ready : http.not_live;
  pthread_mutex_unlock(&http.mutex);
  text_plain(why.s);
  if (why.s[0])
    return reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, why.s);
  return reply_text(connection, MHD_HTTP_OK, ready ? "ready" : "alive");
}

/* Digits, dots, colons, hexadecimal letters in brackets: an address; or
   localhost. Its port does not matter. */
static bool is_local_name(const char *host)
{
  size_t n = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
  if (host[0] == '[')
    return strspn(host + 1, "0123456789abcdefABCDEF:.") + 2 == n;
  if (n == 9 && strncasecmp(host, "localhost", 9) == 0) return true;
  return n > 0 && strspn(host, "0123456789.") == n;
}

static enum MHD_Result answer(void *ctx, struct MHD_Connection *connection,
                              const char *url, const char *method,
                              const char *version, const char *upload,
                              size_t *upload_size, void **state)
{
  const char *host = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                 MHD_HTTP_HEADER_HOST);
  (void)ctx;
  (void)version;
  (void)upload;
  (void)upload_size;
  (void)state;
  if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
    return reply_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED,
                      "only GET and HEAD");
  if (http.loopback && host && !is_local_name(host))
    return reply_text(connection, MHD_HTTP_FORBIDDEN,
                      "this is for localhost: ask by that name, or an address");
  if (strcmp(url, "/") == 0) return reply_page(connection);
  if (strcmp(url, "/status") == 0)
    return reply_newest(connection, &http.status, "application/json");
  if (strcmp(url, "/metrics") == 0)
    return reply_newest(connection, &http.metrics,
                        "text/plain; version=0.0.4; charset=utf-8");
  if (strcmp(url, "/ready") == 0) return reply_health(connection, true);
  if (strcmp(url, "/live") == 0) return reply_health(connection, false);
  return reply_text(connection, MHD_HTTP_NOT_FOUND,
                    "there is /, /status, /metrics, /ready and /live");
}

/* Which descriptors are connections, and since when. */
static void on_connection(void *ctx, struct MHD_Connection *connection,
                          void **context,
                          enum MHD_ConnectionNotificationCode what)
{
  const union MHD_ConnectionInfo *info =
      MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
  int fd = info ? info->connect_fd : -1;
  bool began = what == MHD_CONNECTION_NOTIFY_STARTED;
  (void)ctx;
  (void)context;
  pthread_mutex_lock(&http.mutex);
  for (unsigned i = 0; i < CONNECTIONS && fd >= 0; i++) {
    if (http.connections[i].fd != (began ? -1 : fd)) continue;
    http.connections[i].fd = began ? fd : -1;
    http.connections[i].since = clock_monotonic_ms();
    break;
  }
  pthread_mutex_unlock(&http.mutex);
}

/* ---- listening ----------------------------------------------------------- */

/* "PORT", "ADDRESS:PORT" or "[ADDRESS]:PORT". */
static bool split(const char *where, char host[RAFT_ADDRESS_MAX], char port[16])
{
  snprintf(host, RAFT_ADDRESS_MAX, "127.0.0.1");
  if (where[strspn(where, "0123456789")] == 0 && where[0] &&
      strlen(where) < 6) {
    snprintf(port, 16, "%s", where);
    return atoi(port) <= UINT16_MAX;
  }
  return net_split_address(where, host, RAFT_ADDRESS_MAX, port, 16) &&
         host[0] && port[0] && strlen(port) < 6 && atoi(port) <= UINT16_MAX;
}

static bool is_loopback(const struct sockaddr *address)
{
  static const uint8_t one[16] = {[15] = 1};
  union {
    const struct sockaddr *any;
    const struct sockaddr_in *in;
    const struct sockaddr_in6 *in6;
  } a = {.any = address};
  if (address->sa_family == AF_INET)
    return ntohl(a.in->sin_addr.s_addr) >> 24 == 127;
  return memcmp(&a.in6->sin6_addr, one, 16) == 0;
}

/* A descriptor, or a negated errno value. */
static int listen_at(const struct addrinfo *a)
{
  int on = 1,
      fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 32) == 0)
    return fd;
  int rc = -errno;
  close(fd);
  return rc;
}

static int open_socket(const char *where, struct text *error)
{
  char host[RAFT_ADDRESS_MAX], port[16], name[INET6_ADDRSTRLEN];
  struct sockaddr_storage address;
  socklen_t size = sizeof(address);
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                           .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
  struct addrinfo *found = NULL;
  if (!split(where, host, port)) {
    text_set(error, "--http: %s is not [ADDRESS:]PORT", where);
    return -1;
  }
  int rc = getaddrinfo(host, port, &hints, &found);
  if (rc) {
    text_set(error, "--http: %s: %s", where, gai_strerror(rc));
    return -1;
  }
  int fd = listen_at(found);
  http.loopback = is_loopback(found->ai_addr);
  freeaddrinfo(found);
  if (fd < 0) {
    text_set(error, "--http: cannot listen on %s: %s", where,
             errno_text(-fd).s);
    return -1;
  }
  if (getsockname(fd, (struct sockaddr *)&address, &size) != 0 ||
      getnameinfo((struct sockaddr *)&address, size, name, sizeof(name), port,
                  sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    snprintf(name, sizeof(name), "?");
  snprintf(http.where, sizeof(http.where),
           strchr(name, ':') ? "[%s]:%s" : "%s:%s", name, port);
  return fd;
}

static bool start_daemon(int fd)
{
  http.daemon = MHD_start_daemon(
      MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL, 0, NULL, NULL, answer,
      NULL, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
      (unsigned)CONNECTIONS, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
      (unsigned)OF_ONE_ADDRESS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
      (size_t)CONNECTION_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
      (unsigned)(LIFE_MS / 1000), MHD_OPTION_STRICT_FOR_CLIENT, 1,
      MHD_OPTION_NOTIFY_CONNECTION, on_connection, NULL, MHD_OPTION_END);
  return http.daemon != NULL;
}

int http_start(const char *where, unsigned n, const char *const *paths,
               struct text *error)
{
  clock_condition(&http.news);
  http.files = calloc(n, sizeof(http.files[0]));
  http.n = n;
  http.started = clock_monotonic_ms();
  if (http.files == NULL) {
    text_set(error, "out of memory");
    return -1;
  }
  for (unsigned i = 0; i < n; i++) {
    http.files[i].path = paths[i];
    http_note(i, false, "new", "it was not opened yet");
  }
  for (unsigned i = 0; i < CONNECTIONS; i++)
    http.connections[i].fd = -1;
  int fd = open_socket(where, error);
  if (fd < 0) return -1;
  http.running = 2;
  int rc = thread_start(&http.looker, looker_main, NULL);
  if (rc == 0) rc = thread_start(&http.asker, asker_main, NULL);
  http.started_threads = rc == 0;
  if (rc == 0 && start_daemon(fd)) return 0;
  close(fd);
  text_set(error, "--http: cannot start a thread");
  return -1;
}

const char *http_listening(void)
{
  return http.where;
}

/* ---- the keeper ---------------------------------------------------------- */

void http_alive(void)
{
  pthread_mutex_lock(&http.mutex);
  http.kept = clock_monotonic_ms();
  pthread_mutex_unlock(&http.mutex);
}

void http_note(unsigned file, bool open, const char *state, const char *why)
{
  struct watched *w = &http.files[file];
  pthread_mutex_lock(&http.mutex);
  w->open = open;
  snprintf(w->state, sizeof(w->state), "%s", state);
  text_set(&w->why, "%s", why);
  pthread_mutex_unlock(&http.mutex);
}

void http_stop(void)
{
  pthread_mutex_lock(&http.mutex);
  http.ending = true;
  http.kept = 0; /* it has other things to do now */
  pthread_cond_broadcast(&http.news);
  for (unsigned i = 0; i < http.n; i++) {
    if (http.files[i].looks) sqlite3_interrupt(http.files[i].looks);
    if (http.files[i].asks) sqlite3_interrupt(http.files[i].asks);
  }
  pthread_mutex_unlock(&http.mutex);
  if (http.daemon) MHD_stop_daemon(http.daemon);
}

bool http_join(unsigned ms)
{
  struct timespec end = clock_deadline(ms);
  if (!http.started_threads) return true;
  pthread_mutex_lock(&http.mutex);
  while (http.running > 0 &&
         pthread_cond_timedwait(&http.news, &http.mutex, &end) == 0)
    ;
  bool ended = http.running == 0;
  pthread_mutex_unlock(&http.mutex);
  if (!ended) return false;
  pthread_join(http.looker, NULL);
  pthread_join(http.asker, NULL);
  for (unsigned i = 0; i < http.n; i++)
    free(http.files[i].members);
  free(http.files);
  free(http.status.data);
  free(http.metrics.data);
  return true;
}
