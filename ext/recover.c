/*
** recover.c: quorate_recover(): the last resort when a quorum is gone for good:
** a new cluster of one node, from this copy, on the thread of the application
** that calls it.
**
** It may hold entries that the others have not, and miss some that they have.
** So the two must never meet again: the new cluster has an id, a CA, a node id
** and a key of its own, and neither side takes the other's certificates. Every
** whole transaction in the log is kept, committed or not: it may have been
** acknowledged. Without the right word nothing is changed, and the answer says
** what is here and what is known of elsewhere.
**
** 1. The log is read (store_inspect()), which changes nothing; the database is
**    opened as at a start and locked, so that nobody looks at it meanwhile.
** 2. The log and -wal are synced. What the new node is to be is made in
**    DIR/recover.new: its identity, and its checkpoint as of the last entry,
**    with the settings that stay.
** 3. That is renamed to DIR/recover. From here on no node starts here (start.c)
**    until all is done: the file DIR/recover/node says so.
** 4. The log's whole transactions are put on top of the database, which is
**    checkpointed.
** 5. DIR/recover/checkpoint takes the place of DIR/checkpoint: what is in the
**    old log is not needed any more.
** 6. The log, the vote and what else the old node left goes.
** 7. The new certificates take the places of the old ones, the file `node` last:
**    it is a node again. It is started.
**
** Cut off before 3, it is the old node still. Cut off after it, another call
** goes on: with 4, from the log, as long as DIR/recover/checkpoint is there, else
** with 6. To do any of it twice changes nothing.
**
** A log that is damaged is good up to the damage, and the stronger word is
** needed. If the database has something from behind there, the log's pages on
** top of it would mix two states: then it is kept as it is, which is newer
** (DIR/recover/as-is says so to a later call).
*/
#include "cluster.h"
#include "trust.h"
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

SQLITE_EXTENSION_INIT3

#define LEADER_MS 500 /* and three election timeouts, for a leader to be seen */
#define ASK_MS 1500   /* another node, whether it has one */
#define ASKING_MS 8000 /* all of them */
#define PAUSE_MS 20
#define ACCEPT "accept-data-loss"
#define DAMAGED "accept-data-loss-and-damage"

struct recover {
  char *path, *dir, *draft, *fresh;
  const char *word; /* or NULL */
  int n_options;
  const char *const *options;
  const struct interrupt *interrupt;
  int lock;
  bool begun;        /* step 3 is done */
  struct node *node; /* the old one's files, as far as they are open */
  struct raft_recovered recovered;
  raft_index confirmed, known; /* by the control file; by all that is here */
  char *damage;                /* of the log; NULL: none */
  bool heard_any;
  struct control_heard heard;
  struct fold *fold;
  bool as_is;
  struct identity next;
  char *ca_key;
  char *summary; /* of a recovery that is under way: what is here, and lost */
  char *said;
  size_t said_len;
};

static void say(struct recover *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Appends to the answer. */
static void say(struct recover *r, const char *format, ...)
{
  char *line = NULL, *longer;
  va_list args;
  va_start(args, format);
  int n = vasprintf(&line, format, args);
  va_end(args);
  longer = n < 0 ? NULL : realloc(r->said, r->said_len + (size_t)n + 1);
  if (longer) {
    memcpy(longer + r->said_len, line, (size_t)n + 1);
    r->said = longer;
    r->said_len += (size_t)n;
  }
  if (n >= 0) free(line);
}

bool recover_refuse(struct recover *r, const struct text *why)
{
  say(r, "%s", why->s);
  return false;
}

/* The statement that does it; again: as it was called. */
static void say_statement(struct recover *r, const char *word)
{
  char *sql =
      sqlite3_mprintf("SELECT quorate_recover(%Q, '%s')", r->path, word);
  say(r, "%s", sql ? sql : "quorate_recover");
  sqlite3_free(sql);
}

/* ---- files ------------------------------------------------------------- */

static char *name_in(const char *dir, const char *name)
{
  char *path = NULL;
  return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static bool exists(const char *dir, const char *name)
{
  char *path = name_in(dir, name);
  bool is = path && access(path, F_OK) == 0;
  free(path);
  return is;
}

bool recover_under_way(const char *path, const char *dir, struct text *error)
{
  char *draft = name_in(dir, "recover");
  bool is = draft && exists(draft, "node");
  free(draft);
  if (is)
    sqlite3_snprintf(sizeof(error->s), error->s,
                     "%s: a recovery was begun and is not finished: SELECT "
                     "quorate_recover(%Q, '" ACCEPT "') goes on with it",
                     path, path);
  return is;
}

void recover_clean(const char *dir)
{
  static const char *const names[] = {"recover", "recover.new"};
  for (unsigned i = 0; i < 2; i++) {
    char *path = name_in(dir, names[i]);
    if (path && access(path, F_OK) == 0) cluster_remove_directory(path);
    free(path);
  }
}

struct recover *recover_new(const char *path, const char *word, int n,
                            const char *const *options,
                            const struct interrupt *interrupt)
{
  struct recover *r = calloc(1, sizeof(*r));
  if (r == NULL) return NULL;
  *r = (struct recover){.word = word,
                        .n_options = n,
                        .options = options,
                        .interrupt = interrupt,
                        .lock = -1};
  r->path = strdup(path);
  if (asprintf(&r->dir, "%s-quorate", path) < 0) r->dir = NULL;
  if (r->dir) r->draft = name_in(r->dir, "recover");
  if (r->dir) r->fresh = name_in(r->dir, "recover.new");
  if (r->path && r->draft && r->fresh) return r;
  free(recover_end(r));
  return NULL;
}

/* Of the old node nothing stays open, but its lock. */
static void forget_node(struct recover *r, bool clean)
{
  struct node *node = r->node;
  apply_drop(r->fold);
  r->fold = NULL;
  free(r->damage);
  r->damage = NULL;
  if (node == NULL) return;
  store_close(node->store);
  node->store = NULL;
  if (node->wal) detach_release(node->wal);
  node->clean = clean;
  node_free(node);
  r->node = NULL;
}

char *recover_end(struct recover *r)
{
  forget_node(r, false);
  node_unlock(r->lock);
  identity_clear(&r->next);
  tls_free_text(r->ca_key);
  char *said = r->said;
  free(r->path);
  free(r->dir);
  free(r->draft);
  free(r->fresh);
  free(r->summary);
  free(r);
  return said;
}

/* ---- what is here ------------------------------------------------------ */

/* Somebody cannot be helped by this function: what else there is. */
static bool refuse_damaged(struct recover *r, const char *what)
{
  say(r,
      "%s; of a node without it nothing is known but its database: copy that "
      "with a stock sqlite3 (.backup), and make a new cluster of the copy with "
      "quorate_bootstrap()",
      what);
  return false;
}

static bool read_log(struct recover *r)
{
  struct node *node = r->node;
  char *line = NULL;
  struct store_options options = {.dir = node->dir,
                                  .io = node->io,
                                  .cluster = node->identity.cluster,
                                  .node = node->identity.id};
  struct store_checkpoint *cp = &node->checkpoint;
  int rc = store_checkpoint_read(node->io, node->dir, cp, &line);
  if (rc) {
    refuse_damaged(r, line ? line : errno_text(-rc).s);
    free(line);
    return false;
  }
  if (cp->settings_len &&
      settings_unpack(&node->settings, cp->settings, cp->settings_len) != 0)
    return refuse_damaged(r, "the settings in the checkpoint are damaged");
  rc = store_inspect(&options, cp, &node->store, &r->recovered, &r->damage,
                     &line);
  if (rc) say(r, "%s", line ? line : errno_text(-rc).s);
  free(line);
  return rc == 0;
}

/* What processes of this node, running or not, have left in the control file,
   which may be lost. */
static void read_control(struct recover *r)
{
  struct control_peek peek;
  control_peek(&io_posix, r->dir, &peek);
  r->confirmed = peek.confirmed;
  r->heard_any = heard_newest(peek.heard, r->node->identity.cluster, &r->heard);
}

/* The node's directory, nothing of it changed. */
static bool read_files(struct recover *r)
{
  struct text why;
  forget_node(r, false);
  r->confirmed = 0;
  r->node = node_new(r->path);
  if (r->node == NULL) {
    say(r, "out of memory");
    return false;
  }
  int rc = identity_read(r->dir, &r->node->identity, &why);
  if (rc == -EBADMSG || rc == -ENOENT) return refuse_damaged(r, why.s);
  if (rc) return recover_refuse(r, &why);
  if (r->node->identity.joining) {
    say(r, "%s: joining was not finished: it never had a database", r->dir);
    return false;
  }
  read_control(r);
  if (!read_log(r)) return false;
  const struct store_checkpoint *cp = &r->node->checkpoint;
  r->known = r->confirmed > cp->floor ? r->confirmed : cp->floor;
  if (r->damage == NULL && r->recovered.last_index < r->known &&
      asprintf(&r->damage,
               "%s/log: ends at entry %llu, but %llu was confirmed here",
               r->dir, (unsigned long long)r->recovered.last_index,
               (unsigned long long)r->known) < 0)
    r->damage = NULL;
  return true;
}

/* ---- the assessment ---------------------------------------------------- */

static void say_lost(struct recover *r)
{
  const struct control_heard *h = &r->heard;
  raft_index last = r->recovered.last_index;
  if (!r->heard_any) {
    say(r, "; nothing was heard of other nodes' entries");
    return;
  }
  say(r, "; newest heard of elsewhere: %llu of term %llu (%s, %s UTC)",
      (unsigned long long)h->index, (unsigned long long)h->term, h->name,
      clock_text(h->time_ms).s);
  if (h->term > r->recovered.term)
    say(r, ": that, and what led to it, is lost");
  else if (h->term < r->recovered.term || h->index <= last)
    say(r, ": no later one is known of");
  else if (h->index == last + 1)
    say(r, ": that one is lost");
  else
    say(r, ": entries %llu to %llu are lost", (unsigned long long)last + 1,
        (unsigned long long)h->index);
}

static void say_what_is_here(struct recover *r)
{
  const struct raft_configuration *c = &r->recovered.configuration;
  unsigned voters = 0;
  for (unsigned i = 0; i < c->n; i++)
    voters += c->members[i].role == RAFT_VOTER;
  say(r, "last entry here: %llu of term %llu (known to be committed: %llu)",
      (unsigned long long)r->recovered.last_index,
      (unsigned long long)r->recovered.term, (unsigned long long)r->known);
  if (r->damage) say(r, ", where the log is damaged: %s", r->damage);
  say_lost(r);
  say(r, "; %u voter%s, %u must agree", voters, voters == 1 ? "" : "s",
      voters / 2 + 1);
}

/* The right word for what is here? */
static bool is_accepted(const struct recover *r)
{
  return r->word && (strcmp(r->word, DAMAGED) == 0 ||
                     (r->damage == NULL && strcmp(r->word, ACCEPT) == 0));
}

static bool explain(struct recover *r)
{
  say(r,
      "%s: nothing is changed. This is the last resort, for when so many nodes "
      "are lost for good that the others cannot agree: it makes a new cluster "
      "of one node from this copy, which the old nodes can never join, nor it "
      "them. ",
      r->path);
  say_what_is_here(r);
  say(r, ". Ask this of each survivor, and take the one whose last entry is "
         "newest (the greatest term, then the greatest index)");
  if (r->damage)
    say(r, ". Here the entries after the damage are lost as well: prefer a "
           "survivor whose log is whole");
  say(r, ": ");
  say_statement(r, r->damage ? DAMAGED : ACCEPT);
  return false;
}

/* ---- is there a leader? ------------------------------------------------ */

static bool refuse_led(struct recover *r, const char *leader, const char *by)
{
  say(r,
      "%s: the cluster has a leader: %s%s%s: there is nothing to recover: "
      "damaged nodes come back with quorate_rebuild(), lost ones are replaced "
      "by inviting others",
      r->path, leader, by ? ", as is said by " : "", by ? by : "");
  return false;
}

/* Its name; "": none. */
static void look_for_leader(struct node *node, char name[RAFT_NAME_MAX])
{
  name[0] = 0;
  pthread_mutex_lock(&node->mutex);
  const struct raft_member *m = node_member(node, node->view.leader);
  if (m)
    memcpy(name, m->name, RAFT_NAME_MAX);
  else if (node->view.leader)
    snprintf(name, RAFT_NAME_MAX, "unknown");
  pthread_mutex_unlock(&node->mutex);
}

/* A node that runs here: an election may be under way. */
static bool has_no_leader(struct recover *r, struct node *node)
{
  struct timespec pause = {0, PAUSE_MS * 1000000};
  uint64_t end =
      clock_monotonic_ms() + LEADER_MS + 3 * node->identity.election_timeout_ms;
  char name[RAFT_NAME_MAX];
  do {
    look_for_leader(node, name);
    if (name[0]) return refuse_led(r, name, NULL);
    if (r->interrupt->raised(r->interrupt->ctx)) {
      say(r, "interrupted");
      return false;
    }
    nanosleep(&pause, NULL);
  } while (clock_monotonic_ms() < end);
  return true;
}

/* Somebody else hosts it. */
static bool refuse_host(struct recover *r, int pid)
{
  struct control_peek peek;
  control_peek(&io_posix, r->dir, &peek);
  if (peek.led)
    say(r,
        "%s: the node runs in process %d, and its cluster has a leader: there "
        "is nothing to recover",
        r->path, pid);
  else
    say(r,
        "%s: the node runs in process %d, and knows no leader: stop it there "
        "first",
        r->path, pid);
  return false;
}

/* The others are asked, too, as far as they answer: this node may be the one
   that is cut off. */
static bool others_have_none(struct recover *r)
{
  const struct raft_configuration *c = &r->recovered.configuration;
  struct text ignored;
  const struct identity *me = &r->node->identity;
  const struct net_identity self = {me->cluster, me->id, me->incarnation};
  const uint8_t request = ASK_MEMBERS;
  uint64_t end = clock_monotonic_ms() + ASKING_MS;
  struct tls_context *as = cluster_context_of(me, &ignored);
  bool none = true;
  for (unsigned i = 0; as && none && i < c->n; i++) {
    const struct raft_member *m = &c->members[i];
    struct net_error error;
    uint8_t *body = NULL;
    size_t len = 0;
    if (m->id == me->id || clock_monotonic_ms() > end) continue;
    int status = net_call_once(as, &self, m->address, &request, 1, ASK_MS,
                               &body, &len, &error);
    if (status == ANSWER_OK)
      none = refuse_led(r, m->name, NULL);
    else if (status == ANSWER_REDIRECT)
      none = refuse_led(r, (const char *)body, m->name);
    free(body);
  }
  tls_context_unref(as);
  return none;
}

/* ---- looking ----------------------------------------------------------- */

static bool is_node(struct recover *r)
{
  struct stat st;
  if (stat(r->dir, &st) == 0 && S_ISDIR(st.st_mode)) return true;
  say(r, "%s: not a node: there is no %s-quorate", r->path,
      strrchr(r->path, '/') + 1);
  return false;
}

static bool take_lock(struct recover *r)
{
  struct text why;
  int pid = 0;
  r->lock = node_lock(r->dir, &pid, &why);
  if (r->lock == -EWOULDBLOCK) return refuse_host(r, pid);
  return r->lock >= 0 || recover_refuse(r, &why);
}

static bool is_option(const char *name)
{
  static const char *const options[] = {"listen", "advertise", "name", "ca",
                                        "cert",   "key",       "names"};
  for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
    if (strcmp(name, options[i]) == 0) return true;
  return false;
}

/* The options, on top of what the old one has. */
static bool take_options(struct recover *r)
{
  const struct identity *was = &r->node->identity;
  struct text why;
  bool advertised = false;
  r->next = *was;
  r->next.ca = r->next.cert = r->next.key = NULL;
  r->next.cluster = 0;
  if (!cluster_pairs_ok(r->n_options, r->options, &why))
    return recover_refuse(r, &why);
  for (int i = 0; i < r->n_options; i += 2) {
    const char *name = r->options[i], *value = r->options[i + 1];
    if (!is_option(name)) {
      say(r, "unknown option: %s", name);
      return false;
    }
    advertised = advertised || strcmp(name, "advertise") == 0;
    if (!cluster_take_option(&r->next, name, value, NULL, &why))
      return recover_refuse(r, &why);
  }
  if (!advertised && strcmp(was->listen, was->advertise) == 0)
    memcpy(r->next.advertise, r->next.listen, sizeof(r->next.advertise));
  return cluster_check_advertised(r->next.advertise, &why) ||
         recover_refuse(r, &why);
}

/* An earlier call was cut off. */
static bool may_go_on(struct recover *r)
{
  struct text why;
  if (r->word &&
      (strcmp(r->word, ACCEPT) == 0 || strcmp(r->word, DAMAGED) == 0))
    return true;
  recover_under_way(r->path, r->dir, &why);
  return recover_refuse(r, &why);
}

bool recover_look(struct recover *r, struct node *running)
{
  if (!is_node(r)) return false;
  if (running && !has_no_leader(r, running)) return false;
  if (running == NULL && !take_lock(r)) return false;
  r->begun = exists(r->draft, "node");
  if (r->begun) return may_go_on(r);
  if (!read_files(r) || !others_have_none(r)) return false;
  return is_accepted(r) ? take_options(r) : explain(r);
}

/* ---- the database ------------------------------------------------------ */

/* The newest image of each page in -wal. */
struct newest {
  struct wal_image *images; /* by page */
  uint64_t *sums;
  bool *older; /* the log has it, or a newer one */
  uint32_t n;
  uint8_t *page;
};

static int read_frame(const struct wal *wal, uint32_t frame, uint8_t *page)
{
  ssize_t n = wal->io->pread(wal->io->ctx, wal->file, page, wal->page_size,
                             wal_offset(wal, frame) + WAL_FRAME_HEADER);
  return n == (ssize_t)wal->page_size ? 0 : n < 0 ? (int)n : -EIO;
}

/* Those of a transaction, or a part of one, are in the log. */
static void find_older(struct newest *newest, const struct wal *wal,
                       const struct raft_entry *entry)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  if (!tx_parse(entry->body, wal->page_size, &head, &pgnos, &pages)) return;
  for (uint32_t i = 0; i < head.count; i++) {
    uint32_t lo = 0, hi = newest->n;
    while (lo < hi) {
      uint32_t mid = (lo + hi) / 2;
      if (newest->images[mid].pgno < pgnos[i])
        lo = mid + 1;
      else
        hi = mid;
    }
    if (lo < newest->n && newest->images[lo].pgno == pgnos[i] &&
        newest->sums[lo] ==
            XXH3_64bits(pages + (size_t)i * wal->page_size, wal->page_size))
      newest->older[lo] = true;
  }
}

static int search_log(struct recover *r, struct newest *newest)
{
  raft_index last = r->recovered.last_index;
  int n = 1;
  for (raft_index i = r->node->checkpoint.index + 1; n == 1 && i <= last; i++) {
    struct raft_entry entry;
    n = store_read(r->node->store, i, i, RAFT_BODY_MAX, 1, &entry, NULL);
    if (n != 1) return n < 0 ? n : -EIO;
    if (entry.type == RAFT_PAGES || entry.type == RAFT_COMMIT)
      find_older(newest, r->node->wal, &entry);
    raft_body_unref(entry.body);
  }
  return 0;
}

/* Whether the log reaches what is in -wal: each page there is in the log, too,
   or in the database file, where all is that is older than the log. */
static int compare(struct recover *r, struct newest *newest, bool *reaches)
{
  struct wal *wal = r->node->wal;
  uint32_t frames = wal->confirmed.mx_frame;
  for (uint32_t i = 0; i < frames; i++)
    newest->images[i] =
        (struct wal_image){control_pgno(wal->map, i + 1), i + 1};
  newest->n = wal_newest(newest->images, frames, wal->confirmed.n_page);
  int rc = 0;
  for (uint32_t i = 0; rc == 0 && i < newest->n; i++) {
    rc = read_frame(wal, newest->images[i].frame, newest->page);
    newest->sums[i] = XXH3_64bits(newest->page, wal->page_size);
  }
  if (rc == 0) rc = search_log(r, newest);
  *reaches = rc == 0;
  for (uint32_t i = 0; *reaches && i < newest->n; i++)
    *reaches =
        newest->older[i] ||
        (wal->io->pread(wal->io->ctx, wal->db, newest->page, wal->page_size,
                        (uint64_t)(newest->images[i].pgno - 1) *
                            wal->page_size) == (ssize_t)wal->page_size &&
         XXH3_64bits(newest->page, wal->page_size) == newest->sums[i]);
  return rc;
}

/* The same, for when the end of the log is lost, and the machine was booted
   since: nothing says then how new -wal is. */
static int reaches_wal(struct recover *r, bool *reaches)
{
  const struct wal *wal = r->node->wal;
  size_t n = (size_t)wal->confirmed.mx_frame + 1;
  struct newest newest = {.images = calloc(n, sizeof(*newest.images)),
                          .sums = calloc(n, sizeof(*newest.sums)),
                          .older = calloc(n, sizeof(*newest.older)),
                          .page = malloc(wal->page_size)};
  int rc = newest.images && newest.sums && newest.older && newest.page
               ? compare(r, &newest, reaches)
               : -ENOMEM;
  free(newest.images);
  free(newest.sums);
  free(newest.older);
  free(newest.page);
  return rc;
}

/* From the log, or as the database is. */
static bool choose(struct recover *r)
{
  const struct store_checkpoint *cp = &r->node->checkpoint;
  struct wal *wal = r->node->wal;
  bool reaches = r->recovered.last_index >= r->known;
  if (r->damage == NULL) return true;
  if (reaches && r->confirmed == 0 && !cp->incoming) {
    int rc = reaches_wal(r, &reaches);
    if (rc) {
      say(r, "%s: %s", r->path, errno_text(-rc).s);
      return false;
    }
  }
  if (reaches) return true;
  /* Frames in -wal are all that is confirmed and not in the file (W1). */
  r->as_is = !cp->incoming && (wal->backfill == 0 || cp->floor == cp->index);
  if (r->as_is) return true;
  say(r,
      "%s: its log is damaged before entry %llu, which its database needs: "
      "nothing whole can be made of this copy: %s. Take another survivor",
      r->path, (unsigned long long)r->known, r->damage);
  return false;
}

static bool open_database(struct recover *r)
{
  struct node *node = r->node;
  struct text why;
  char *line = NULL;
  int rc = node_open_control(node, &r->confirmed, &why);
  if (rc) return recover_refuse(r, &why);
  rc = wal_open(node->io, node->path, node->checkpoint.index, node->map,
                &node->wal, &line);
  if (rc) say(r, "%s", line ? line : errno_text(-rc).s);
  free(line);
  if (rc) return false;
  if (detach_exclude(node->wal, &why) != 0) return recover_refuse(r, &why);
  rc = apply_collect(node, r->recovered.last_index, &r->fold, &why);
  return rc == 0 || recover_refuse(r, &why);
}

/* ---- steps 2 and 3 ----------------------------------------------------- */

/* Of the old cluster alone, and of no use to another. */
static bool belongs_to_cluster(const char *setting)
{
  static const char *const those[] = {"ca", "invite/", "revoked/", "stay/"};
  if (strcmp(setting, those[0]) == 0) return true;
  for (unsigned i = 1; i < sizeof(those) / sizeof(those[0]); i++)
    if (strncmp(setting, those[i], strlen(those[i])) == 0) return true;
  return false;
}

static int take_settings(struct recover *r, struct store_checkpoint *cp)
{
  const struct settings *old = &r->node->settings;
  struct settings settings = {0};
  int rc = r->ca_key ? trust_put_ca(&settings, r->next.ca, r->ca_key) : 0;
  for (unsigned i = 0; rc == 0 && i < old->n; i++)
    if (!belongs_to_cluster(old->items[i].name))
      rc = settings_set(&settings, old->items[i].name, old->items[i].value,
                        old->items[i].len);
  if (rc == 0) rc = settings_pack(&settings, &cp->settings, &cp->settings_len);
  settings_clear(&settings);
  return rc ? -ENOMEM : 0;
}

/* Nothing before it is in the new node's log. */
static int write_checkpoint(struct recover *r, struct text *error)
{
  const struct store_checkpoint *was = &r->node->checkpoint;
  raft_index last = r->recovered.last_index;
  struct store_checkpoint cp = {
      .index = r->as_is && r->known > last ? r->known : last,
      .term = r->recovered.term > was->term ? r->recovered.term : was->term};
  char *line = NULL;
  cp.floor = cp.configuration_index = cp.index;
  cp.configuration.n = 1;
  cluster_describe(&r->next, RAFT_VOTER, &cp.configuration.members[0]);
  int rc = take_settings(r, &cp);
  if (rc == 0) rc = store_checkpoint_write(&io_posix, r->fresh, &cp, &line);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  store_checkpoint_clear(&cp);
  return rc;
}

static int drop(const char *dir, const char *name)
{
  char *path = name_in(dir, name);
  int rc = path ? io_posix.unlink(io_posix.ctx, path) : -ENOMEM;
  free(path);
  return rc == -ENOENT ? 0 : rc;
}

static int mark_as_is(const struct recover *r)
{
  char *path = name_in(r->fresh, "as-is");
  int rc = path ? io_replace_file(&io_posix, path, "as-is\n", 6) : -ENOMEM;
  free(path);
  return rc;
}

struct syncing {
  const char *dir;
  int rc;
};

static void sync_each(void *arg, const char *name)
{
  const struct io *io = &io_posix;
  struct syncing *syncing = arg;
  char *path = name_in(syncing->dir, name);
  int rc = path ? io->open(io->ctx, path, O_RDONLY) : -ENOMEM;
  int fd = rc;
  if (fd >= 0) {
    rc = io->sync(io->ctx, fd);
    io->close(io->ctx, fd);
  }
  if (rc < 0) syncing->rc = rc;
  free(path);
}

/* What was read here may not be on the disk yet, if a process was killed: the
   rest is made of it, whatever is lost from here on. */
static int sync_old(const struct recover *r)
{
  const struct io *io = &io_posix;
  const struct wal *wal = r->node->wal;
  char *log = name_in(r->dir, "log");
  struct syncing syncing = {log, 0};
  int rc = log ? io->list(io->ctx, log, sync_each, &syncing) : -ENOMEM;
  if (rc == 0) rc = syncing.rc;
  if (rc == 0) rc = io->sync_dir(io->ctx, log);
  if (rc == -ENOENT) rc = 0; /* it was never opened */
  if (rc == 0) rc = io->sync(io->ctx, wal->file);
  free(log);
  return rc;
}

/* Steps 2 and 3. */
static bool begin(struct recover *r)
{
  const struct io *io = &io_posix;
  struct text why = {""};
  if (!cluster_make_identity(&r->next, &r->ca_key, &why))
    return recover_refuse(r, &why);
  if (r->next.cluster == r->node->identity.cluster) {
    say(r,
        "%s: names the old cluster: have certificates made for a new one, and "
        "name their files with the options ca, cert and key",
        r->next.cert_file);
    return false;
  }
  cluster_remove_directory(r->fresh);
  cluster_remove_directory(r->draft);
  int rc = sync_old(r);
  if (rc == 0) rc = io->mkdir(io->ctx, r->fresh);
  if (rc == 0) rc = drop(r->fresh, "as-is");
  if (rc == 0) rc = identity_write(r->fresh, &r->next, &why);
  if (rc == 0) rc = write_checkpoint(r, &why);
  if (rc == 0 && r->as_is) rc = mark_as_is(r);
  if (rc == 0) rc = io->sync_dir(io->ctx, r->fresh);
  if (rc == 0) rc = io->rename(io->ctx, r->fresh, r->draft);
  if (rc == 0) {
    r->begun = true;
    rc = io->sync_dir(io->ctx, r->dir);
  }
  if (rc == 0) return true;
  if (why.s[0] == 0) text_set(&why, "%s: %s", r->dir, errno_text(-rc).s);
  if (!r->begun) cluster_remove_directory(r->fresh);
  return recover_refuse(r, &why);
}

/* ---- step 4 ------------------------------------------------------------ */

static int no_floor(void *ctx, raft_index index)
{
  (void)ctx;
  (void)index;
  return 0; /* there is no node that could start on a part of it */
}

static bool refuse_rest(struct recover *r, const char *what, int rc)
{
  say(r, "%s: %s: ", what, errno_text(-rc).s);
  say_statement(r, ACCEPT);
  say(r, " goes on with it");
  return false;
}

static bool bring_up(struct recover *r)
{
  struct wal_checkpointed done = {.full = false};
  struct text why;
  if (!r->as_is && apply_collected(r->node, r->fold, &why) != 0) {
    say(r, "%s: ", why.s);
    say_statement(r, ACCEPT);
    say(r, " goes on with it");
    return false;
  }
  int rc = wal_checkpoint(r->node->wal, no_floor, NULL, &done);
  if (rc == 0 && !done.full) rc = -EBUSY;
  if (rc) return refuse_rest(r, r->path, rc);
  forget_node(r, true);
  return true;
}

/* ---- steps 5 to 7 ------------------------------------------------------ */

/* From DIR/recover to DIR, durably; one that is not there was moved before. */
static int move(const struct recover *r, const char *name)
{
  const struct io *io = &io_posix;
  char *from = name_in(r->draft, name), *to = name_in(r->dir, name);
  int rc = from && to ? 0 : -ENOMEM;
  if (rc == 0 && access(from, F_OK) == 0) {
    rc = io->rename(io->ctx, from, to);
    if (rc == 0) rc = io->sync_dir(io->ctx, r->dir);
    if (rc == 0) rc = io->sync_dir(io->ctx, r->draft);
  }
  free(from);
  free(to);
  return rc;
}

struct removal {
  const char *dir;
  int rc;
};

static void drop_each(void *arg, const char *name)
{
  struct removal *removal = arg;
  int rc = drop(removal->dir, name);
  if (rc) removal->rc = rc;
}

/* A folder of the old node with its files. */
static int drop_folder(const struct recover *r, const char *name)
{
  char *path = name_in(r->dir, name);
  struct removal removal = {path, 0};
  int rc = path ? 0 : -ENOMEM;
  if (rc == 0) rc = io_posix.list(io_posix.ctx, path, drop_each, &removal);
  if (rc == 0) rc = removal.rc;
  if (rc == 0 && rmdir(path) != 0) rc = -errno;
  free(path);
  return rc == -ENOENT ? 0 : rc;
}

/* Step 6. The file `lock` is ours. */
static int empty(const struct recover *r)
{
  static const char *const folders[] = {"log", "incoming", "rebuild"};
  static const char *const files[] = {"vote", "control", "frames", "peers",
                                      "reserve"};
  int rc = 0;
  for (unsigned i = 0; rc == 0 && i < 3; i++)
    rc = drop_folder(r, folders[i]);
  for (unsigned i = 0; rc == 0 && i < 5; i++)
    rc = drop(r->dir, files[i]);
  return rc ? rc : io_posix.sync_dir(io_posix.ctx, r->dir);
}

static bool install(struct recover *r)
{
  static const char *const files[] = {"ca.pem", "cert.pem", "key.pem", "node"};
  int rc = move(r, "checkpoint");
  if (rc == 0) rc = empty(r);
  for (unsigned i = 0; rc == 0 && i < 4; i++)
    rc = move(r, files[i]);
  if (rc) return refuse_rest(r, r->dir, rc);
  cluster_remove_directory(r->draft);
  return true;
}

/* ---- all of it --------------------------------------------------------- */

static void summarize(struct recover *r)
{
  raft_index whole = apply_reaches(r->fold);
  say_what_is_here(r);
  if (r->as_is)
    say(r, "; the database is kept as it was, with what is confirmed");
  else if (whole < r->recovered.last_index)
    say(r,
        "; parts of a transaction without its end, from entry %llu on, are "
        "dropped",
        (unsigned long long)whole + 1);
  r->summary = r->said;
  r->said = NULL;
  r->said_len = 0;
}

/* What was begun is ended with the same log: should some of it not be readable
   now, there would be less than was said. */
static bool is_same_log(struct recover *r)
{
  struct store_checkpoint cp = {0};
  char *line = NULL;
  int rc = store_checkpoint_read(&io_posix, r->draft, &cp, &line);
  raft_index index = cp.index;
  r->as_is = exists(r->draft, "as-is");
  store_checkpoint_clear(&cp);
  if (rc) say(r, "%s", line ? line : errno_text(-rc).s);
  free(line);
  if (rc) return false;
  if (r->as_is || r->recovered.last_index == index) return true;
  say(r,
      "%s: the recovery was begun with entries up to %llu, and now they can "
      "be read up to %llu: %s",
      r->dir, (unsigned long long)index,
      (unsigned long long)r->recovered.last_index,
      r->damage ? r->damage : "the log was changed");
  return false;
}

/* Steps 1 to 4, as far as they are not done. */
static bool prepare(struct recover *r)
{
  struct text why;
  /* It may have been stopped since they were read, and have written more. */
  if (!read_files(r)) return false;
  if (r->begun && !is_same_log(r)) return false;
  if (!r->begun && !is_accepted(r)) return explain(r);
  if (!r->begun && !cluster_address_free(r->next.listen, &why))
    return recover_refuse(r, &why);
  if (!open_database(r)) return false;
  if (!r->begun) {
    if (!choose(r) || !begin(r)) return false;
    summarize(r);
  }
  return bring_up(r);
}

bool recover_carry_out(struct recover *r)
{
  if (r->lock < 0 && !take_lock(r)) return false;
  if (!r->begun || exists(r->draft, "checkpoint"))
    if (!prepare(r)) return false;
  if (!install(r)) return false;
  node_unlock(r->lock);
  r->lock = -1;
  return true;
}

bool recover_begun(const struct recover *r)
{
  return r->begun;
}

void recover_started(struct recover *r, struct node *node)
{
  const struct identity *i = &node->identity;
  say(r,
      "node %s of new cluster %016llx, made of this copy, listening on %s; "
      "old nodes cannot join it: invite others with quorate_invite()",
      i->name, (unsigned long long)i->cluster, i->listen);
  if (r->summary) say(r, "; %s", r->summary);
  events_add(&node->events, "recovered: a new cluster, from entry %llu on",
             (unsigned long long)node->checkpoint.index);
}
