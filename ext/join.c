/*
** join.c: makes nodes: quorate_bootstrap() and quorate_join(), on the thread of
** the application that calls them.
**
** Everything is prepared in a directory FILE-quorate.new, which gets its name
** when it is complete; whatever fails after that takes it away again, by that
** name. So after an error nothing of a node is left, and after a crash at most a
** directory that the next attempt removes, or one whose identity says `joining`,
** or a file that is fenced, which bootstrapping or detaching it ends (detach.c).
*/
#include "cluster.h"
#include "database.h"
#include "trust.h"
#include "vfs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

/* ---- options ----------------------------------------------------------- */

bool cluster_address_ok(const char *address, bool port_needed)
{
  char host[RAFT_ADDRESS_MAX], port[16];
  if (strlen(address) >= RAFT_ADDRESS_MAX ||
      !net_split_address(address, host, sizeof(host), port, sizeof(port)))
    return false;
  return !port_needed || strcmp(port, "0") != 0;
}

bool cluster_address_dialled(const char *address)
{
  char host[RAFT_ADDRESS_MAX], port[16];
  struct in_addr v4;
  struct in6_addr v6;
  net_split_address(address, host, sizeof(host), port, sizeof(port));
  if (inet_pton(AF_INET, host, &v4) == 1) return v4.s_addr != INADDR_ANY;
  return inet_pton(AF_INET6, host, &v6) != 1 || !IN6_IS_ADDR_UNSPECIFIED(&v6);
}

bool cluster_check_advertised(const char *address, struct text *error)
{
  if (cluster_address_dialled(address)) return true;
  text_set(error,
           "nobody can dial %s: 'advertise', 'HOST:PORT' tells the others the "
           "address of this machine",
           address);
  return false;
}

static bool take_ms(const char *value, unsigned *out)
{
  char *end;
  unsigned long v = strtoul(value, &end, 10);
  if (end == value || *end || v == 0 || v > 60000) return false;
  *out = (unsigned)v;
  return true;
}

static bool take_kib(const char *value, unsigned *out)
{
  char *end;
  unsigned long v = strtoul(value, &end, 10);
  if (end == value || *end || v > 999999999) return false;
  *out = (unsigned)v;
  return true;
}

static bool take_switch(const char *value, bool *out)
{
  *out = strcmp(value, "on") == 0;
  return *out || strcmp(value, "off") == 0;
}

/* What the value of an option may be. */
static const char *wanted(const char *name)
{
  size_t n = strlen(name);
  if (n > 3 && strcmp(name + n - 3, "_ms") == 0) return "1 to 60000";
  if (n > 4 && strcmp(name + n - 4, "_kib") == 0) return "0 to 999999999";
  if (strcmp(name, "lease") == 0) return "on or off";
  if (strcmp(name, "name") == 0 || strcmp(name, "replaces") == 0)
    return "1 to 63 letters, digits, '.', '_' or '-'";
  return "HOST:PORT or [IPv6]:PORT";
}

void cluster_bad_value(const char *name, const char *value, struct text *error)
{
  text_set(error, "bad value of %s: %s: must be %s", name, value, wanted(name));
}

bool cluster_take_option(struct identity *i, const char *name,
                         const char *value, char *replaces, struct text *error)
{
  bool ok = true, bootstrap = replaces == NULL;
  if (strcmp(name, "listen") == 0) {
    ok = cluster_address_ok(value, true);
    if (ok) snprintf(i->listen, sizeof(i->listen), "%s", value);
  } else if (strcmp(name, "advertise") == 0) {
    ok = cluster_address_ok(value, true);
    if (ok) snprintf(i->advertise, sizeof(i->advertise), "%s", value);
  } else if (bootstrap && strcmp(name, "name") == 0) {
    ok = identity_valid_name(value);
    if (ok) snprintf(i->name, sizeof(i->name), "%s", value);
  } else if (bootstrap && strcmp(name, "heartbeat_ms") == 0) {
    ok = take_ms(value, &i->heartbeat_ms);
  } else if (bootstrap && strcmp(name, "election_timeout_ms") == 0) {
    ok = take_ms(value, &i->election_timeout_ms);
  } else if (bootstrap && strcmp(name, "lease") == 0) {
    ok = take_switch(value, &i->lease);
  } else if (replaces && strcmp(name, "replaces") == 0) {
    ok = identity_valid_name(value);
    if (ok) snprintf(replaces, RAFT_NAME_MAX, "%s", value);
  } else if (strcmp(name, "log_keep_kib") == 0) {
    ok = take_kib(value, &i->log_keep_kib);
  } else if (strcmp(name, "snapshot_rate_kib") == 0) {
    ok = take_kib(value, &i->snapshot_rate_kib);
  } else if (outside_option(i, name, value, error)) {
    return error->s[0] == 0;
  } else {
    text_set(error, "unknown option: %s", name);
    return false;
  }
  if (!ok) cluster_bad_value(name, value, error);
  return ok;
}

bool cluster_pairs_ok(int n, const char *const *options, struct text *error)
{
  if (n % 2) {
    text_set(error, "options come in pairs: name, value");
    return false;
  }
  for (int k = 0; k < n; k++)
    if (options[k] == NULL) {
      text_set(error, "an option is NULL");
      return false;
    }
  for (int k = 0; k < n; k += 2)
    for (int j = 0; j < k; j += 2)
      if (strcmp(options[j], options[k]) == 0) {
        text_set(error, "the option %s is given twice", options[k]);
        return false;
      }
  return true;
}

static bool take_options(struct identity *i, int n, const char *const *options,
                         char *replaces, struct text *error)
{
  /* What an idle leader costs is its heartbeats; five may be lost before an
     election. */
  i->heartbeat_ms = 75;
  i->election_timeout_ms = 500;
  i->log_keep_kib = 256u << 10;
  error->s[0] = 0;
  if (!cluster_pairs_ok(n, options, error)) return false;
  for (int k = 0; k < n; k += 2)
    if (!cluster_take_option(i, options[k], options[k + 1], replaces, error))
      return false;
  if (i->listen[0] == 0) {
    text_set(error, "the option listen is missing: 'listen', 'HOST:PORT'");
    return false;
  }
  if (i->election_timeout_ms <= i->heartbeat_ms) {
    text_set(error, "election_timeout_ms must be greater than heartbeat_ms");
    return false;
  }
  if (i->advertise[0] == 0)
    memcpy(i->advertise, i->listen, sizeof(i->advertise));
  if (!cluster_check_advertised(i->advertise, error)) return false;
  if (replaces == NULL && i->name[0] == 0 && i->names[0] == 0)
    snprintf(i->name, sizeof(i->name), "n1");
  return true;
}

bool cluster_address_free(const char *address, struct text *error)
{
  char host[RAFT_ADDRESS_MAX], port[16];
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                           .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
  struct addrinfo *found = NULL;
  net_split_address(address, host, sizeof(host), port, sizeof(port));
  int rc = getaddrinfo(host, port, &hints, &found);
  if (rc) {
    text_set(error, "cannot listen on %s: %s", address, gai_strerror(rc));
    return false;
  }
  int on = 1, fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  rc = fd < 0 ? errno : 0;
  if (rc == 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (rc == 0 &&
      (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0))
    rc = errno;
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  if (rc) text_set(error, "cannot listen on %s: %s", address, errno_text(rc).s);
  return rc == 0;
}

/* ---- directories ------------------------------------------------------- */

struct place {
  char *path;  /* absolute path of the database */
  char *dir;   /* PATH-quorate */
  char *fresh; /* PATH-quorate.new */
  char *parent;
  bool existed; /* the database file */
  bool was_wal; /* and was in WAL mode */
  bool fenced;  /* its write version may be 3 now, by us */
  bool named;   /* the directory is there, by us */
};

static void place_clear(struct place *place)
{
  free(place->path);
  free(place->dir);
  free(place->fresh);
  free(place->parent);
}

/* What is in the way: a node, or what a join left that could not tidy up. */
static void explain_directory(const struct place *place, struct text *error)
{
  struct identity identity;
  struct text ignored;
  if (identity_read(place->dir, &identity, &ignored) == 0 && identity.joining)
    text_set(error,
             "%s: joining is under way, or was not finished: then delete it "
             "and %s, and join again",
             place->dir, place->path);
  else
    text_set(error, "%s exists: this file is a node already", place->dir);
  identity_clear(&identity);
}

static bool place_find(const char *file, struct place *place,
                       struct text *error)
{
  struct stat st;
  memset(place, 0, sizeof(*place));
  place->path = vfs_absolute(file);
  if (place->path == NULL ||
      asprintf(&place->dir, "%s-quorate", place->path) < 0) {
    place->dir = NULL;
    text_set(error, "%s: no such path", file);
    return false;
  }
  if (asprintf(&place->fresh, "%s.new", place->dir) < 0) place->fresh = NULL;
  place->parent = strdup(place->path);
  if (place->fresh == NULL || place->parent == NULL) {
    text_set(error, "out of memory");
    return false;
  }
  char *slash = strrchr(place->parent, '/');
  slash[slash == place->parent] = 0;
  if (stat(place->parent, &st) != 0 || !S_ISDIR(st.st_mode)) {
    text_set(error, "%s: no such directory", place->parent);
    return false;
  }
  if (access(place->parent, W_OK | X_OK) != 0) {
    text_set(error, "%s: %s", place->parent, errno_text(errno).s);
    return false;
  }
  if (lstat(place->dir, &st) == 0) {
    explain_directory(place, error);
    return false;
  }
  if (stat(place->path, &st) == 0) {
    if (!S_ISREG(st.st_mode)) {
      text_set(error, "%s: not a regular file", place->path);
      return false;
    }
    /* SQLite would take a file of one byte for an empty one, and write it. */
    if (st.st_size <= 1) {
      text_set(error,
               "%s: holds no database: delete it to begin with a new one",
               place->path);
      return false;
    }
    place->existed = true;
  }
  return true;
}

/* Makes PATH-quorate.new, empty. */
static bool begin_directory(const struct place *place, struct text *error)
{
  cluster_remove_directory(place->fresh);
  int rc = io_posix.mkdir(io_posix.ctx, place->fresh);
  if (rc) text_set(error, "%s: %s", place->fresh, errno_text(-rc).s);
  /* Somebody else may have made it, in a directory that others share. */
  return rc == 0 && directory_check(place->fresh, error) == 0;
}

static bool finish_directory(struct place *place, struct text *error)
{
  int rc = io_posix.sync_dir(io_posix.ctx, place->fresh);
  if (rc == 0) rc = io_posix.rename(io_posix.ctx, place->fresh, place->dir);
  place->named = rc == 0;
  if (rc == 0) rc = io_posix.sync_dir(io_posix.ctx, place->parent);
  if (rc) text_set(error, "%s: %s", place->dir, errno_text(-rc).s);
  return rc == 0;
}

/* There is a node or none, never a part of one; and none comes back after a
   loss of power, when others may have written the file. False: there is. */
static bool take_away(const struct place *place)
{
  const struct io *io = &io_posix;
  int rc = 0;
  cluster_remove_directory(place->fresh);
  if (place->named) rc = io->rename(io->ctx, place->dir, place->fresh);
  if (place->named && rc == 0) rc = io->sync_dir(io->ctx, place->parent);
  if (rc == 0) cluster_remove_directory(place->fresh);
  return rc == 0;
}

/* The database that was made with it, or came. */
static void remove_database(const struct place *place)
{
  static const char *const beside[] = {"", "-wal", "-shm"};
  char name[4096];
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof(name), "%s%s", place->path, beside[i]);
    unlink(name);
  }
  io_posix.sync_dir(io_posix.ctx, place->parent);
}

/* ---- bootstrap --------------------------------------------------------- */

static bool run(sqlite3 *db, const char *sql, const char *want,
                struct text *error)
{
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
  bool ok = rc == SQLITE_ROW || rc == SQLITE_DONE;
  if (!ok) {
    int code = sqlite3_errcode(db);
    text_set(error, "%s",
             code == SQLITE_BUSY
                 ? "the database is in use by another connection or process"
                 : sqlite3_errmsg(db));
  } else if (want) {
    const char *got = (const char *)sqlite3_column_text(stmt, 0);
    ok = got && sqlite3_stricmp(got, want) == 0;
    if (!ok)
      text_set(error, "the database is in use by another connection or "
                      "process");
  }
  sqlite3_finalize(stmt);
  return ok;
}

/* Fences the file: to others it can only be read from here on. */
static bool fence(struct place *place, struct text *error)
{
  place->fenced = true; /* it may be written and not synced */
  if (vfs_write_version(place->path, 3)) return true;
  text_set(error, "%s: its header cannot be written", place->path);
  return false;
}

/* A journal that could not be removed, or that a loss of power brings back,
   would be rolled back into the file by whoever opens it next; an old -wal
   likewise. SQLite removes them and does not sync the directory. */
static bool no_journal(const struct place *place, struct text *error)
{
  struct stat st;
  char *name = NULL;
  bool ok = asprintf(&name, "%s-journal", place->path) >= 0;
  if (!ok) {
    text_set(error, "out of memory");
    return false;
  }
  ok = stat(name, &st) != 0 && errno == ENOENT;
  if (!ok) text_set(error, "%s: cannot be removed", name);
  free(name);
  if (!ok) return false;
  int rc = io_posix.sync_dir(io_posix.ctx, place->parent);
  if (rc) text_set(error, "%s: %s", place->parent, errno_text(-rc).s);
  return rc == 0;
}

/* Brings the file, or a new one, into WAL mode with everything in it, while
   nobody else uses it. */
static bool convert(struct place *place, struct text *error)
{
  sqlite3 *db = NULL;
  struct text detail = {""};
  uint8_t versions[2];
  if (vfs_read_versions(place->path, versions)) {
    place->was_wal = versions[1] == 2;
    /* Of a node whose directory is gone: nobody else fences it. */
    if (versions[0] == 3 && versions[1] == 2 &&
        detach_orphan(place->path, error) != 0)
      return false;
  }
  int rc = sqlite3_open_v2(place->path, &db,
                           SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                           vfs_below_name());
  if (rc != SQLITE_OK)
    text_set(&detail, "%s", db ? sqlite3_errmsg(db) : "out of memory");
  bool ok = rc == SQLITE_OK &&
            run(db, "SELECT count(*) FROM sqlite_schema", NULL, &detail) &&
            run(db, "PRAGMA locking_mode=EXCLUSIVE", "exclusive", &detail) &&
            run(db, "PRAGMA journal_mode=DELETE", "delete", &detail) &&
            run(db, "BEGIN EXCLUSIVE", NULL, &detail) &&
            run(db, "COMMIT", NULL, &detail) &&
            run(db, "PRAGMA journal_mode=WAL", "wal", &detail);
  sqlite3_close(db);
  if (!ok) text_set(error, "%s: %s", place->path, detail.s);
  return ok && no_journal(place, error);
}

/* Is there anything of an outside PKI among the options? */
static bool has_outside(const struct identity *i)
{
  return i->ca_file[0] || i->cert_file[0] || i->key_file[0] || i->names[0];
}

bool cluster_make_identity(struct identity *i, char **ca_key,
                           struct text *error)
{
  struct tls_error e = {""};
  char *csr = NULL;
  if (has_outside(i)) {
    if (tls_random(&i->incarnation, 8, &e) == 0)
      return outside_identify(i, error);
    text_set(error, "%s", e.text);
    return false;
  }
  bool ok = tls_random(&i->cluster, 8, &e) == 0 &&
            tls_random(&i->id, 8, &e) == 0 &&
            tls_random(&i->incarnation, 8, &e) == 0;
  i->id |= 1; /* never 0 */
  ok = ok && tls_make_ca(i->cluster, &i->ca, ca_key, &e) == 0 &&
       tls_make_request(&csr, &i->key, &e) == 0 &&
       tls_sign_request(i->ca, *ca_key, csr, i->cluster, i->id, CERT_DAYS,
                        &i->cert, &e) == 0;
  tls_free_text(csr);
  if (!ok) text_set(error, "%s", e.text);
  return ok;
}

void cluster_describe(const struct identity *i, uint8_t role,
                      struct raft_member *member)
{
  *member = (struct raft_member){
      .id = i->id, .incarnation = i->incarnation, .role = role};
  memcpy(member->name, i->name, sizeof(member->name));
  memcpy(member->address, i->advertise, sizeof(member->address));
}

/* The checkpoint of a new cluster: entry 1 is what the file holds now. */
static bool write_first_checkpoint(const char *dir, const struct identity *i,
                                   const char *ca_key, struct text *error)
{
  struct store_checkpoint cp = {
      .index = 1, .term = 1, .floor = 1, .configuration_index = 1};
  struct settings settings = {0};
  char *line = NULL;
  cp.configuration.n = 1;
  cluster_describe(i, RAFT_VOTER, &cp.configuration.members[0]);
  int rc = ca_key ? trust_put_ca(&settings, i->ca, ca_key) : 0;
  if (rc == 0) rc = settings_pack(&settings, &cp.settings, &cp.settings_len);
  rc = rc ? -ENOMEM : store_checkpoint_write(&io_posix, dir, &cp, &line);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  settings_clear(&settings);
  store_checkpoint_clear(&cp);
  return rc == 0;
}

/* A start that failed may have left a -wal with the fence in it. */
static bool unfence(const struct place *place, struct text *error)
{
  uint8_t versions[2];
  struct text why;
  if (!vfs_read_versions(place->path, versions) || versions[0] != 3)
    return true;
  if (detach_orphan(place->path, &why) == 0) return true;
  size_t n = strlen(error->s);
  snprintf(error->s + n, sizeof(error->s) - n, "; and not undone: %s", why.s);
  return false;
}

static void undo_bootstrap(const struct place *place, struct text *error)
{
  if (!take_away(place)) return;
  if (!place->existed) {
    remove_database(place);
  } else if (place->fenced && unfence(place, error) && !place->was_wal) {
    sqlite3 *db = NULL;
    struct text ignored;
    if (sqlite3_open_v2(place->path, &db, SQLITE_OPEN_READWRITE,
                        vfs_below_name()) == SQLITE_OK)
      run(db, "PRAGMA journal_mode=DELETE", "delete", &ignored);
    sqlite3_close(db);
  }
}

/* Makes the node and starts it, with a reference; what fails is undone. */
static struct database *make_first(struct place *place, struct identity *i,
                                   struct text *error)
{
  struct database *database = NULL;
  char *ca_key = NULL;
  bool ok = cluster_make_identity(i, &ca_key, error) &&
            begin_directory(place, error) &&
            identity_write(place->fresh, i, error) == 0 &&
            write_first_checkpoint(place->fresh, i, ca_key, error) &&
            convert(place, error) && fence(place, error) &&
            finish_directory(place, error);
  /* Who opens the file from here on finds a node: if that is another thread or
     process, it may have started it by now. */
  ok = ok && registry_open(place->path, &database, error) == SQLITE_OK &&
       database;
  tls_free_text(ca_key);
  if (!ok) {
    undo_bootstrap(place, error);
    return NULL;
  }
  struct text ignored;
  struct node *node = atomic_load(&database->node);
  if (node)
    node_barrier(node, LEVEL_LINEARIZABLE, 5000 + i->election_timeout_ms, NULL,
                 &ignored);
  return database;
}

int cluster_bootstrap(const char *file, int n, const char *const *options,
                      struct text *answer)
{
  struct identity identity = {0};
  struct place place = {0};
  struct database *database = NULL;
  if (take_options(&identity, n, options, NULL, answer) &&
      place_find(file, &place, answer) &&
      cluster_address_free(identity.listen, answer))
    database = make_first(&place, &identity, answer);
  if (database) {
    text_set(answer, "node %s of new cluster %016llx, listening on %s",
             identity.name, (unsigned long long)identity.cluster,
             identity.listen);
    registry_release(database);
  }
  identity_clear(&identity);
  place_clear(&place);
  return database ? SQLITE_OK : SQLITE_ERROR;
}

struct database *cluster_bootstrap_alone(const char *file, struct text *error)
{
  static const char *const options[] = {"listen", "127.0.0.1:1"};
  struct identity identity = {0};
  struct place place = {0};
  struct database *database = NULL;
  /* Others may be using the file: that is found out before any work. */
  if (take_options(&identity, 2, options, NULL, error) &&
      place_find(file, &place, error) && place.existed &&
      convert(&place, error)) {
    snprintf(identity.listen, sizeof(identity.listen), LISTEN_NONE);
    snprintf(identity.advertise, sizeof(identity.advertise), LISTEN_NONE);
    database = make_first(&place, &identity, error);
  }
  identity_clear(&identity);
  place_clear(&place);
  return database;
}

/* ---- join -------------------------------------------------------------- */

/* Makes the leader's answer part of the identity. */
static bool take_admission(const uint8_t *body, size_t len, struct identity *i,
                           struct raft_configuration *members,
                           struct text *error)
{
  struct admission a;
  if (!cluster_parse_admission(body, len, &a)) {
    text_set(error, MALFORMED_ADMISSION);
    return false;
  }
  i->id = a.id;
  i->incarnation = a.incarnation;
  if (trust_is_outside(i) ? a.id != i->id || a.cert[0] || a.ca[0]
                          : !a.cert[0] || !a.ca[0]) {
    text_set(error, MALFORMED_ADMISSION);
    return false;
  }
  if (!trust_is_outside(i)) {
    i->cert = strdup(a.cert);
    i->ca = strdup(a.ca);
  }
  i->heartbeat_ms = a.heartbeat_ms;
  i->election_timeout_ms = a.election_timeout_ms;
  i->lease = a.lease;
  *members = a.members;
  if (i->cert == NULL || i->ca == NULL) text_set(error, "out of memory");
  return i->cert && i->ca;
}

/* A joiner without a certificate knows the cluster by the token's CA; one that
   has a certificate knows it by its own CAs, and is known by it. *csr is "" in
   that case. */
static bool begin_asking(const struct tls_token *token, struct identity *i,
                         struct tls_context **tls, char **csr,
                         struct text *error)
{
  struct tls_error why;
  struct trust_view view;
  if (trust_is_outside(i)) {
    *csr = strdup("");
    if (trust_check("", i, tls, &view, error) != 0) return false;
    if (*csr && trust_trusts(&view, token->ca_fingerprint)) return true;
    text_set(error, "%s: the token's CA is not among those in it", i->ca_file);
    return false;
  }
  if (tls_make_request(csr, &i->key, &why) == 0 &&
      tls_context_new_joiner(token->cluster, token->ca_fingerprint, tls,
                             &why) == 0)
    return true;
  text_set(error, "%s", why.text);
  return false;
}

/* While a CA is being replaced, some nodes may still show a certificate of the
   other one, for a moment. */
#define PIN_MS 2500
#define PIN_PAUSE_MS 500
#define PIN_TEXT "the token's CA"

static bool may_change(const char *why, uint64_t until)
{
  struct timespec pause = {0, PIN_PAUSE_MS * 1000000};
  if (strstr(why, PIN_TEXT) == NULL || clock_monotonic_ms() > until)
    return false;
  nanosleep(&pause, NULL);
  return true;
}

/* Asks the member in the token, and the leader that it names. The status, and
   *body; or -1 and *error. */
static int send_request(const struct tls_token *token, struct identity *i,
                        struct tls_context *tls, const struct packer *request,
                        uint8_t **body, size_t *len, struct net_error *error)
{
  struct net_identity self = {token->cluster, 0, 0};
  char address[RAFT_ADDRESS_MAX];
  uint64_t until = clock_monotonic_ms() + PIN_MS;
  int status = -1, tries = 0;
  if (trust_is_outside(i)) self.id = i->id;
  snprintf(address, sizeof(address), "%s", token->address);
  while (tries < REDIRECTS) {
    *body = NULL;
    *len = 0;
    status = net_join(tls, &self, address, request->data, request->len,
                      JOIN_TIMEOUT_MS, body, len, error);
    if (status < 0 && may_change(error->text, until)) continue;
    if (status != ANSWER_REDIRECT || *len >= sizeof(address)) break;
    memcpy(address, *body, *len);
    address[*len] = 0;
    free(*body);
    *body = NULL;
    tries++;
  }
  return status;
}

static bool ask_to_join(const struct tls_token *token, struct identity *i,
                        const char *replaces,
                        struct raft_configuration *members, struct text *error)
{
  struct tls_context *tls = NULL;
  struct net_error net_error = {"", 0};
  struct packer request = {0};
  char *csr = NULL;
  uint8_t *body = NULL;
  size_t len = 0;
  bool ok = begin_asking(token, i, &tls, &csr, error);
  if (ok) {
    cluster_pack_join(&request, token, i->advertise, csr, replaces);
    int status = send_request(token, i, tls, &request, &body, &len, &net_error);
    ok = status == ANSWER_OK && take_admission(body, len, i, members, error);
    if (status < 0)
      text_set(error, "%s", net_error.text);
    else if (status != ANSWER_OK)
      text_set(error, "%.*s", (int)len, body ? (const char *)body : "");
  }
  free(body);
  if (request.data) explicit_bzero(request.data, request.cap);
  free(request.data);
  tls_free_text(csr);
  tls_context_unref(tls);
  return ok;
}

static bool is_settled(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  const struct raft_member *m = node_member(node, node->identity.id);
  bool yes = m && node->wal &&
             (m->role == RAFT_VOTER || member_stays(node, node->identity.id));
  pthread_mutex_unlock(&node->mutex);
  return yes;
}

/* Whether somebody wants it to end. Once the node has the database it may become
   a voter at any moment: one that went away then would be missed, so nobody is
   asked any more. */
static bool is_unwanted(struct node *node, const struct interrupt *interrupt)
{
  pthread_mutex_lock(&node->mutex);
  bool early = node->wal == NULL;
  pthread_mutex_unlock(&node->mutex);
  return early && interrupt->raised(interrupt->ctx);
}

static bool is_trouble(const char *event)
{
  static const char *const begin[] = {"cannot connect", "handshake with",
                                      "cannot take the snapshot"};
  for (unsigned i = 0; i < sizeof(begin) / sizeof(begin[0]); i++)
    if (strncmp(event, begin[i], strlen(begin[i])) == 0) return true;
  return false;
}

/* Why nothing moves: the newest thing that was told of a connection. */
static void find_trouble(struct node *node, struct text *out)
{
  struct events *events = &node->events;
  pthread_mutex_lock(&events->mutex);
  for (uint64_t i = events->n; i > 0 && i + EVENTS_MAX > events->n; i--) {
    const char *text = events->ring[(i - 1) % EVENTS_MAX].text;
    if (!is_trouble(text)) continue;
    text_set(out, ": %s", text);
    break;
  }
  pthread_mutex_unlock(&events->mutex);
}

/* How far it came is told, too. */
static void say_why_not(struct node *node, const char *why, const char *reason,
                        struct text *error)
{
  struct text far;
  bool under_way = progress_describe(node, &far);
  text_set(error, "%s%s%s%s", why, reason, under_way ? ": " : "", far.s);
}

/* Waits until the node is what it is to be; gives up when nothing moves any
   more. */
static bool wait_for_admission(struct node *node,
                               const struct interrupt *interrupt,
                               struct text *error)
{
  uint64_t seen = 0, last = clock_monotonic_ms();
  struct timespec pause = {0, 5000000};
  while (!is_settled(node)) {
    uint64_t progress = atomic_load(&node->fetched_pages);
    pthread_mutex_lock(&node->mutex);
    progress += node->applied;
    bool failed = node->failed || node->out.s[0];
    struct text reason = node->reason;
    pthread_mutex_unlock(&node->mutex);
    if (!failed && node_log_failed(node)) {
      failed = true;
      text_set(&reason, "its log could not be written: %s",
               errno_text(-atomic_load(&node->disk_status)).s);
    }
    uint64_t now = clock_monotonic_ms();
    if (progress != seen) last = now;
    seen = progress;
    bool stalled = now - last > node_limits.stall_ms;
    const char *why = failed    ? "the node failed: "
                      : stalled ? "no snapshot from the leader in time"
                      : is_unwanted(node, interrupt) ? "interrupted"
                                                     : NULL;
    if (why) {
      if (!failed) reason.s[0] = 0;
      if (!failed && stalled) find_trouble(node, &reason);
      say_why_not(node, why, reason.s, error);
      return false;
    }
    nanosleep(&pause, NULL);
  }
  return true;
}

/* How much came, how long it took, and how fast that is. */
static void say_what_came(double bytes, double seconds, struct text *took)
{
  text_set(took, "%s in %s", progress_size(bytes).s, progress_time(seconds).s);
  if (seconds < 0.2 || bytes < 1e6) return; /* it would tell nothing */
  size_t n = strlen(took->s);
  snprintf(took->s + n, sizeof(took->s) - n, ", %.1f MB/s",
           bytes / 1e6 / seconds);
}

bool cluster_first_run(const char *path,
                       const struct raft_configuration *members,
                       const struct interrupt *interrupt, unsigned *voters,
                       struct text *took, struct text *error)
{
  struct database *database = NULL;
  struct text ignored;
  uint64_t began = clock_monotonic_ms();
  if (registry_start(path, members, &database, error) != 0) return false;
  struct node *node = database->node;
  bool ok = wait_for_admission(node, interrupt, error);
  pthread_mutex_lock(&node->mutex);
  *voters = node->view.voters;
  pthread_mutex_unlock(&node->mutex);
  say_what_came((double)atomic_load(&node->counters.taken_bytes),
                (double)(clock_monotonic_ms() - began) / 1e3, took);
  registry_release(database);
  if (!ok) registry_stop(path, false, &ignored);
  return ok;
}

int cluster_join(const char *file, const char *text, int n,
                 const char *const *options, const struct interrupt *interrupt,
                 struct text *answer)
{
  struct identity identity = {0};
  struct raft_configuration members;
  struct tls_token token;
  struct tls_error tls_error;
  struct place place = {0};
  struct text warning = {""}, took = {""};
  char replaces[RAFT_NAME_MAX] = "";
  unsigned voters = 0;
  bool begun = false;
  if (tls_token_decode(text, &token, &tls_error) != 0) {
    text_set(answer, "%s", tls_error.text);
    return SQLITE_ERROR;
  }
  bool ok = take_options(&identity, n, options, replaces, answer) &&
            place_find(file, &place, answer);
  if (ok && place.existed) {
    text_set(answer, "%s exists: a joining node begins without a file",
             place.path);
    ok = false;
  }
  ok = ok && cluster_address_free(identity.listen, answer);
  if (ok) {
    begun = true;
    identity.cluster = token.cluster;
    identity.joining = true;
    snprintf(identity.name, sizeof(identity.name), "%s", token.name);
    ok = (!has_outside(&identity) || outside_identify(&identity, answer)) &&
         begin_directory(&place, answer) &&
         ask_to_join(&token, &identity, replaces, &members, answer) &&
         identity_write(place.fresh, &identity, answer) == 0 &&
         finish_directory(&place, answer) &&
         cluster_first_run(place.path, &members, interrupt, &voters, &took,
                           answer);
  }
  if (ok) {
    if (voters == 2) member_sum(&warning, voters, MEMBERS_NOW);
    text_set(answer, "node %s of cluster %016llx, listening on %s: %s%s%s",
             identity.name, (unsigned long long)identity.cluster,
             identity.listen, took.s, warning.s[0] ? "; " : "", warning.s);
  } else if (begun && take_away(&place)) {
    remove_database(&place);
  }
  explicit_bzero(&token, sizeof(token));
  identity_clear(&identity);
  place_clear(&place);
  return ok ? SQLITE_OK : SQLITE_ERROR;
}
