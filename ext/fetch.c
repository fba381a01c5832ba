/*
** fetch.c: takes a snapshot that a leader gives (snapshot.c).
**
** A fresh node writes the pages straight into incoming/db, which becomes the
** database. A node that has one sends the hashes of its own pages, gets those
** that differ, and keeps them in incoming/<index>.pages:
**
**   0   32-byte head: magic "quorpgs" and a zero byte, u64 index, u32 page
**       size, u32 pages of the database, u64 records
**   32  records: u32 page number, u32 0, u64 XXH3 of the page, the page
**
** Meanwhile nothing is applied here: should an entry become committed that can
** be, the log may have what is needed after all. The snapshot is dropped, and who
** gives it is told: should it still be needed, it is offered again.
**
** Installing, over a database, in an order in which a crash loses nothing:
**
**   1. The file and -wal are synced: the database file, -wal and those
**      pages together are the database as of the snapshot's index.
**   2. The checkpoint file says so (`incoming`). From here on a start does
**      what follows; before, nothing had happened.
**   3. The pages are published as one transaction: readers see all or nothing.
**   4. The log begins anew, unless it holds the snapshot's last entry.
**   5. When a checkpoint has copied everything into the database file, the
**      checkpoint file says that, and the file goes.
**
** A connection that breaks is made again, and the transfer goes on where it
** was (raft_snapshot_offer).
*/
#include "snapshot.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <xxhash.h>

#define WINDOW 4     /* requests under way */
#define ASK_MS 20000 /* for an answer */
#define AGAIN_MS 300 /* after a failure */
#define TRIES 40     /* in a row without a page in between */
#define ROOM_MS 1000 /* to look for room on the disk again */

static const char pages_magic[8] = "quorpgs";

struct pages_head {
  char magic[8];
  uint64_t index;
  uint32_t page_size, n_page;
  uint64_t records;
};
_Static_assert(sizeof(struct pages_head) == 32, "head of a file of pages");

struct record_head {
  uint32_t pgno, zero;
  uint64_t hash;
};
_Static_assert(sizeof(struct record_head) == 16, "head of a record");

struct fetch {
  struct task task;
  struct node *node;
  raft_id from;
  uint64_t session, rate;
  raft_term term; /* of the leader that gives it */
  struct store_checkpoint cp;
  struct raft_snapshot_tag tag;
  struct raft_snapshot_in in;
  uint32_t page_size, n_page;
  uint32_t next_ask; /* page */
  unsigned outstanding, tries;
  uint64_t retry_at, began;
  uint64_t bytes; /* that came, for the rate and for people */
  bool open, broken, installing;
  bool fresh; /* this node has no database */
  struct image base;
  char *path;
  int fd;
  uint64_t records;
  int rc, work;
  struct text why; /* the newest reason why nothing came; "": none was told */
};

/* ---- life -------------------------------------------------------------- */

static void close_file(struct fetch *f);

static void free_fetch(struct fetch *f)
{
  image_close(&f->base);
  close_file(f);
  work_end(f->node, &f->work);
  store_checkpoint_clear(&f->cp);
  free(f);
}

void fetch_drop(struct node *node)
{
  struct fetch *f = node->fetch;
  if (f == NULL || f->installing) return;
  node->fetch = NULL;
  node->fetched++; /* answers under way belong to nobody */
  free_fetch(f);
}

static void told(void *ctx, int status, const uint8_t *body, size_t len)
{
  (void)ctx, (void)status, (void)body, (void)len;
}

void fetch_needless(struct node *node)
{
  const uint8_t dropped = ASK_SNAPSHOT_DROPPED;
  struct fetch *f = node->fetch;
  if (f == NULL || f->installing) return;
  raft_id from = f->from;
  fetch_drop(node);
  if (!node->closing)
    net_fetch(node->net, from, &dropped, 1, ASK_MS, told, NULL);
}

void fetch_close(struct node *node)
{
  if (node->fetch) node->fetch->installing = false;
  fetch_drop(node);
}

static void give_up(struct fetch *f, const char *why)
{
  events_add(&f->node->events, "cannot take the snapshot of entry %llu: %s",
             (unsigned long long)f->cp.index, why);
  fetch_drop(f->node);
}

static void ask_more(struct fetch *f);

/* ---- requests and answers ---------------------------------------------- */

struct ask {
  struct node *node;
  uint64_t fetched; /* node->fetched when it was asked */
  uint32_t first, count;
};

/* What was under way is lost; asked for again a little later. */
static void on_broken(struct fetch *f)
{
  f->broken = true;
  f->open = false;
  if (f->outstanding > 0) return;
  f->broken = false;
  f->retry_at = clock_monotonic_ms() + AGAIN_MS;
  if (++f->tries > TRIES)
    give_up(f, f->why.s[0] ? f->why.s : "the other node does not answer");
}

/* An answer that is none: its body says why. */
static void on_refused(struct fetch *f, const uint8_t *why, size_t len)
{
  text_set(&f->why, "%.*s", (int)len, why ? (const char *)why : "");
  on_broken(f);
}

static void send_ask(struct fetch *f, struct packer *body, struct ask ask,
                     net_done done)
{
  struct ask *kept = malloc(sizeof(*kept));
  if (kept == NULL || body->bad) {
    free(kept);
    free(body->data);
    on_broken(f);
    return;
  }
  ask.node = f->node;
  ask.fetched = f->node->fetched;
  *kept = ask;
  f->outstanding++;
  net_fetch(f->node->net, f->from, body->data, body->len, ASK_MS, done, kept);
  free(body->data);
}

/* The fetch that an answer belongs to, or NULL. */
static struct fetch *take_ask(void *ctx, struct ask *out)
{
  struct ask *ask = ctx;
  struct fetch *f = ask->node->fetch;
  *out = *ask;
  if (f && ask->node->fetched == ask->fetched)
    f->outstanding--;
  else
    f = NULL;
  free(ask);
  return f;
}

/* ---- the head ---------------------------------------------------------- */

static bool has_voter(const struct raft_configuration *c)
{
  for (unsigned i = 0; i < c->n; i++)
    if (c->members[i].role == RAFT_VOTER) return true;
  return false;
}

/* Of the database, which it is put on; and of what was received so far of the
   same snapshot, which goes on in whole pages. */
static bool is_page_size(const struct fetch *f, uint32_t size,
                         const struct raft_snapshot_tag *tag)
{
  if (size < 512 || size > 65536 || (size & (size - 1))) return false;
  if (!f->fresh && size != f->node->wal->page_size) return false;
  return size == f->page_size || f->in.tag.index != tag->index ||
         f->in.tag.term != tag->term || f->in.tag.bytes != tag->bytes;
}

static bool parse_head(struct fetch *f, const uint8_t *head, size_t len)
{
  struct parser p = parser_of(head, len);
  struct settings check;
  size_t n_configuration, n_settings;
  if (parse_u32(&p) != SNAPSHOT_VERSION) return false;
  f->session = parse_u64(&p);
  if (parse_u64(&p) != f->node->identity.cluster) return false;
  store_checkpoint_clear(&f->cp);
  f->cp.index = f->cp.floor = parse_u64(&p);
  f->cp.term = parse_u64(&p);
  f->term = parse_u64(&p);
  f->cp.configuration_index = parse_u64(&p);
  const uint8_t *c = parse_blob(&p, &n_configuration);
  const uint8_t *s = parse_blob(&p, &n_settings);
  uint32_t page_size = parse_u32(&p);
  f->n_page = parse_u32(&p);
  f->rate = parse_u64(&p);
  f->tag = (struct raft_snapshot_tag){.index = f->cp.index,
                                      .term = f->cp.term,
                                      .bytes = (uint64_t)f->n_page * page_size};
  if (!parser_done(&p) || f->session == 0 || f->n_page == 0 ||
      !is_page_size(f, page_size, &f->tag) ||
      f->cp.configuration_index > f->cp.index ||
      raft_configuration_decode(c, n_configuration, &f->cp.configuration) ||
      !has_voter(&f->cp.configuration) ||
      settings_unpack(&check, s, n_settings) != 0)
    return false;
  settings_clear(&check);
  f->cp.settings = malloc(n_settings + 1);
  if (f->cp.settings == NULL) return false;
  memcpy(f->cp.settings, s, n_settings);
  f->cp.settings_len = n_settings;
  f->cp.from_snapshot = true;
  f->page_size = page_size;
  return true;
}

/* DIR/incoming/db, or the file of pages of a snapshot: each has a name of its
   own, since the one before may still be needed. NULL: no memory. */
static char *incoming_path(const struct node *node, bool fresh,
                           raft_index index)
{
  char *path = NULL;
  int n = fresh ? asprintf(&path, "%s/incoming/db", node->dir)
                : asprintf(&path, "%s/incoming/%016llx.pages", node->dir,
                           (unsigned long long)index);
  return n < 0 ? NULL : path;
}

static int open_file(struct fetch *f)
{
  struct node *node = f->node;
  const struct io *io = node->io;
  char *dir = NULL;
  if (asprintf(&dir, "%s/incoming", node->dir) < 0) return -ENOMEM;
  int rc = io->mkdir(io->ctx, dir);
  free(dir);
  f->path = incoming_path(node, f->fresh, f->cp.index);
  if (f->path == NULL) return -ENOMEM;
  if (rc) return rc;
  /* Made with the rights that SQLite gives to a new database, if it is to be
     one. */
  int fd = open(f->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC,
                f->fresh ? 0644 : 0600);
  if (fd < 0) return -errno;
  close(fd);
  f->fd = io->open(io->ctx, f->path, O_RDWR);
  return f->fd < 0 ? f->fd : 0;
}

static void close_file(struct fetch *f)
{
  const struct io *io = f->node->io;
  if (f->fd >= 0) io->close(io->ctx, f->fd);
  if (f->path) io->unlink(io->ctx, f->path);
  free(f->path);
  f->path = NULL;
  f->fd = -1;
}

/* Begins at the first page. */
static int begin_pages(struct fetch *f)
{
  f->records = 0;
  f->began = clock_monotonic_ms();
  f->bytes = 0;
  work_end(f->node, &f->work);
  f->work = work_begin(f->node, "taking a snapshot of entry %llu",
                       (unsigned long long)f->cp.index);
  work_bytes(f->node, f->work, 0, f->tag.bytes);
  close_file(f);
  int rc = open_file(f);
  image_close(&f->base);
  if (rc || f->fresh) return rc;
  int failed = image_open(f->node->wal, "a snapshot for this node", &f->base);
  if (failed == 0) image_of_node(&f->base);
  return failed;
}

static void got_head(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct ask ask;
  struct fetch *f = take_ask(ctx, &ask);
  if (f == NULL) return;
  if (status != 0) {
    on_refused(f, body, len);
    return;
  }
  if (!parse_head(f, body, len)) {
    give_up(f, "malformed head");
    return;
  }
  int rc = 0;
  switch (raft_snapshot_offer(f->node->raft, &f->in, f->term, &f->tag)) {
  case RAFT_SNAPSHOT_START:
    rc = begin_pages(f);
    if (rc == 0)
      events_add(&f->node->events, "taking a snapshot of entry %llu, %u pages",
                 (unsigned long long)f->cp.index, f->n_page);
    break;
  case RAFT_SNAPSHOT_RESUME:
    events_add(&f->node->events, "going on with the snapshot of entry %llu",
               (unsigned long long)f->cp.index);
    break;
  default: fetch_needless(f->node); return;
  }
  if (rc) {
    give_up(f, errno_text(-rc).s);
    return;
  }
  f->open = true;
  f->next_ask = (uint32_t)(f->in.position / f->page_size) + 1;
  ask_more(f);
}

/* Not while a large transaction is applied: the hashes would be those of a
   state that is about to go, and nothing would tell. */
static void open_session(struct fetch *f)
{
  struct packer body = {0};
  pack_u8(&body, ASK_SNAPSHOT_OPEN);
  f->retry_at = 0;
  send_ask(f, &body, (struct ask){0}, got_head);
}

/* Who offers may have become a member while this node was away: it is dialled
   where it says that it is, and must prove to be that node. The snapshot, or
   any newer configuration, then says where everybody is. */
static bool can_dial(struct node *node, raft_id from, struct parser *offer)
{
  const struct raft_configuration *own = raft_configuration(node->raft, NULL);
  if (own->n == 0) own = &node->members; /* it is about to join */
  struct raft_configuration *theirs = calloc(1, sizeof(*theirs)),
                            *all = malloc(sizeof(*all));
  const struct raft_member *member = NULL;
  size_t len;
  const uint8_t *body = parse_blob(offer, &len);
  bool known = raft_configuration_find(own, from) != NULL;
  if (theirs && all && parser_done(offer) &&
      raft_configuration_decode(body, len, theirs) == 0)
    member = raft_configuration_find(theirs, from);
  if (!known && member && own->n < RAFT_MEMBERS_MAX) {
    *all = *own;
    all->members[all->n++] = *member;
    net_set_peers(node->net, all);
    known = true;
  }
  free(theirs);
  free(all);
  return known;
}

void fetch_offered(struct node *node, raft_id from, struct parser *offer,
                   struct net_request *request)
{
  static const char busy[] = "another snapshot is being taken";
  struct fetch *f = node->fetch;
  if (f &&
      (f->installing || f->from == from || raft_leader(node->raft) != from)) {
    /* From the same node: that one goes on. */
    net_reply(request, f->from != from, busy,
              f->from != from ? sizeof(busy) - 1 : 0);
    return;
  }
  fetch_drop(node); /* its leader leads no more */
  if (node->failed || (node->wal == NULL && !node->identity.joining) ||
      !can_dial(node, from, offer) || (f = calloc(1, sizeof(*f))) == NULL) {
    static const char cannot[] = "this node cannot take a snapshot";
    net_reply(request, 1, cannot, sizeof(cannot) - 1);
    return;
  }
  f->node = node;
  f->task.node = node;
  f->from = from;
  f->fd = f->work = -1;
  f->fresh = node->wal == NULL;
  node->fetch = f;
  f->retry_at = clock_monotonic_ms(); /* soon: fetch_tick() */
  net_reply(request, 0, NULL, 0);
  fetch_tick(node);
}

/* ---- pages ------------------------------------------------------------- */

/* A record of a page that differs, at the end of the file of pages. */
static int keep_page(struct fetch *f, uint32_t pgno, const uint8_t *page)
{
  const struct io *io = f->node->io;
  size_t size = sizeof(struct record_head) + f->page_size;
  uint64_t at = sizeof(struct pages_head) + f->records * size;
  struct record_head head = {.pgno = pgno,
                             .hash = XXH3_64bits(page, f->page_size)};
  union {
    const uint8_t *in;
    void *out;
  } data = {.in = page}; /* struct iovec has no const */
  struct iovec iov[2] = {{&head, sizeof(head)}, {data.out, f->page_size}};
  int rc = io->pwritev(io->ctx, f->fd, iov, 2, at);
  if (rc == 0) f->records++;
  return rc;
}

/* The pages first .. of an answer; bits say which came. */
static int keep_pages(struct fetch *f, const struct ask *ask,
                      const uint8_t *bits, const uint8_t *pages, size_t n)
{
  const struct io *io = f->node->io;
  size_t taken = 0;
  int rc = 0;
  for (uint32_t i = 0; rc == 0 && i < ask->count; i++) {
    if ((bits[i / 8] >> i % 8 & 1) == 0) {
      if (f->fresh) return -EBADMSG; /* nothing here that it could equal */
      continue;
    }
    if (taken == n) return -EBADMSG;
    const uint8_t *page = pages + taken++ * f->page_size;
    if (!f->fresh) rc = keep_page(f, ask->first + i, page);
  }
  if (rc == 0 && taken != n) rc = -EBADMSG;
  if (rc == 0 && f->fresh)
    rc = io->pwrite(io->ctx, f->fd, pages, n * f->page_size,
                    (uint64_t)(ask->first - 1) * f->page_size);
  return rc;
}

static void finish(struct fetch *f);

static void got_pages(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct ask ask;
  struct fetch *f = take_ask(ctx, &ask);
  if (f == NULL) return;
  size_t bits = (ask.count + 7) / 8;
  uint64_t sum, skip;
  if (status != 0) {
    on_refused(f, body, len);
    return;
  }
  if (f->broken) {
    on_broken(f);
    return;
  }
  if (len < 8 + bits || (len - 8 - bits) % f->page_size ||
      (memcpy(&sum, body, 8), sum != XXH3_64bits(body + 8, len - 8))) {
    give_up(f, "malformed pages");
    return;
  }
  switch (raft_snapshot_chunk(f->node->raft, &f->in, f->term, &f->tag,
                              (uint64_t)(ask.first - 1) * f->page_size,
                              (uint64_t)ask.count * f->page_size, &skip)) {
  case RAFT_SNAPSHOT_TAKE:
  case RAFT_SNAPSHOT_DONE: break;
  case RAFT_SNAPSHOT_SKIP: give_up(f, "pages out of turn"); return;
  default: fetch_needless(f->node); return;
  }
  assert(skip == 0); /* it is asked for by whole parts, from the position on */
  int rc = keep_pages(f, &ask, body + 8, body + 8 + bits,
                      (len - 8 - bits) / f->page_size);
  if (rc) {
    give_up(f, rc == -EBADMSG ? "malformed pages" : errno_text(-rc).s);
    return;
  }
  f->tries = 0;
  f->bytes += len;
  atomic_fetch_add(&f->node->counters.taken_bytes, len);
  work_bytes(f->node, f->work, f->in.position, f->tag.bytes);
  atomic_store(&f->node->fetched_pages, f->in.position / f->page_size);
  if (f->in.position == f->tag.bytes)
    finish(f);
  else
    ask_more(f);
}

/* Whether the giver's limit leaves room for one more part. */
static bool rate_allows(const struct fetch *f)
{
  uint64_t ms = clock_monotonic_ms() - f->began;
  return f->rate == 0 || f->bytes / (f->rate / 1000 + 1) <= ms;
}

static void ask_more(struct fetch *f)
{
  const struct node *node = f->node;
  uint32_t part = snapshot_part_pages(f->page_size);
  uint8_t *page = malloc(f->page_size);
  /* It may be given up, and freed, in here. */
  while (node->fetch == f && f->open && page && f->outstanding < WINDOW &&
         f->next_ask <= f->n_page && rate_allows(f)) {
    struct packer body = {0};
    struct ask ask = {.first = f->next_ask,
                      .count = f->n_page - f->next_ask + 1};
    if (ask.count > part) ask.count = part;
    pack_u8(&body, ASK_SNAPSHOT_PAGES);
    pack_u64(&body, f->session);
    pack_u32(&body, ask.first);
    pack_u32(&body, ask.count);
    for (uint32_t i = 0; i < ask.count; i++) {
      if (f->fresh || ask.first + i > f->base.n_page ||
          image_read(&f->base, ask.first + i, page) != 0)
        break;
      pack_u64(&body, XXH3_64bits(page, f->page_size));
    }
    f->next_ask += ask.count;
    send_ask(f, &body, ask, got_pages);
  }
  free(page);
}

static void start_install(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  node->worker_install = true;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}

void fetch_tick(struct node *node)
{
  struct fetch *f = node->fetch;
  if (f == NULL) return;
  bool due = f->retry_at && clock_monotonic_ms() >= f->retry_at;
  if (f->installing) {
    if (!due) return;
    f->retry_at = UINT64_MAX; /* until it is known */
    start_install(node);
    return;
  }
  if (f->tag.bytes && f->in.position == f->tag.bytes)
    finish(f);
  else if (f->open)
    ask_more(f);
  else if (due && !node->apply_busy)
    open_session(f);
}

/* ---- installing -------------------------------------------------------- */

/* A -wal or -journal that is left of an earlier database of that name would be
   taken for a part of this one. */
static int remove_beside(const struct node *node, const char *suffix)
{
  const struct io *io = node->io;
  char *path = NULL;
  if (asprintf(&path, "%s%s", node->path, suffix) < 0) return -ENOMEM;
  int rc = io->unlink(io->ctx, path);
  free(path);
  return rc == -ENOENT ? 0 : rc;
}

/* Worker, a fresh node: what was received becomes the database. */
static int install_database(struct fetch *f)
{
  struct node *node = f->node;
  const struct io *io = node->io;
  int rc = io->sync(io->ctx, f->fd);
  if (rc == 0 && f->path) rc = remove_beside(node, "-wal");
  if (rc == 0 && f->path) rc = remove_beside(node, "-shm");
  if (rc == 0 && f->path) rc = remove_beside(node, "-journal");
  /* They must not come back beside it. */
  if (rc == 0 && f->path) rc = io_sync_parent(io, node->path);
  if (rc == 0 && f->path) rc = io->rename(io->ctx, f->path, node->path);
  if (rc) return rc;
  free(f->path);
  f->path = NULL;
  return io_sync_parent(io, node->path);
}

/* Worker: The file of pages is whole, and so is what it is put on. */
static int sync_pages(struct fetch *f)
{
  struct node *node = f->node;
  const struct io *io = node->io;
  struct pages_head head = {.index = f->cp.index,
                            .page_size = f->page_size,
                            .n_page = f->n_page,
                            .records = f->records};
  memcpy(head.magic, pages_magic, sizeof(head.magic));
  int rc = io->pwrite(io->ctx, f->fd, &head, sizeof(head), 0);
  if (rc == 0) rc = io->sync(io->ctx, f->fd);
  if (rc == 0) rc = io->sync(io->ctx, node->wal->file);
  char *dir = NULL;
  if (rc == 0 && asprintf(&dir, "%s/incoming", node->dir) < 0) rc = -ENOMEM;
  if (rc == 0) rc = io->sync_dir(io->ctx, dir);
  if (rc == 0) rc = io->sync_dir(io->ctx, node->dir);
  free(dir);
  return rc;
}

static int append_record(struct node *node, int fd, uint64_t i, uint32_t n_page,
                         uint8_t *buf)
{
  const struct io *io = node->io;
  struct record_head head;
  size_t size = sizeof(head) + node->wal->page_size;
  ssize_t n =
      io->pread(io->ctx, fd, buf, size, sizeof(struct pages_head) + i * size);
  if (n != (ssize_t)size) return n < 0 ? (int)n : -EBADMSG;
  memcpy(&head, buf, sizeof(head));
  if (head.pgno == 0 ||
      head.hash != XXH3_64bits(buf + sizeof(head), node->wal->page_size))
    return -EBADMSG;
  if (head.pgno > n_page) return 0; /* the database has become shorter */
  return wal_append_page(node->wal, head.pgno, buf + sizeof(head));
}

/* All of a file of pages, to the open append. *n_page: of the database after
   it; 0: as long as the snapshot. */
static int append_pages(struct node *node, int fd, raft_index index,
                        uint32_t *n_page)
{
  const struct io *io = node->io;
  struct pages_head head;
  uint64_t size;
  ssize_t n = io->pread(io->ctx, fd, &head, sizeof(head), 0);
  int rc = io->size(io->ctx, fd, &size);
  if (n < 0 || rc) return n < 0 ? (int)n : rc;
  if (n != sizeof(head) ||
      memcmp(head.magic, pages_magic, sizeof(head.magic)) != 0 ||
      head.index != index || head.page_size != node->wal->page_size ||
      head.n_page == 0 ||
      size != sizeof(head) +
                  head.records * (sizeof(struct record_head) + head.page_size))
    return -EBADMSG;
  uint8_t *buf = malloc(sizeof(struct record_head) + head.page_size);
  if (buf == NULL) return -ENOMEM;
  if (*n_page == 0) *n_page = head.n_page;
  for (uint64_t i = 0; rc == 0 && i < head.records; i++)
    rc = append_record(node, fd, i, *n_page, buf);
  free(buf);
  return rc;
}

/* As one transaction. */
static int publish_pages(struct node *node, int fd, raft_index index)
{
  uint32_t n_page = 0;
  wal_append_start(node->wal);
  int rc = append_pages(node, fd, index, &n_page);
  return rc ? rc : wal_append_commit(node->wal, n_page, index);
}

struct fetch_cleaning {
  struct node *node;
  const char *kept;
};

static void remove_other(void *arg, const char *name)
{
  struct fetch_cleaning *c = arg;
  char *path = NULL;
  if (c->kept && strcmp(name, c->kept) == 0) return;
  if (asprintf(&path, "%s/incoming/%s", c->node->dir, name) < 0) return;
  c->node->io->unlink(c->node->io->ctx, path);
  free(path);
}

void fetch_clean(struct node *node, const struct store_checkpoint *cp)
{
  char *dir = NULL, *kept = incoming_path(node, false, cp->index);
  if (kept && asprintf(&dir, "%s/incoming", node->dir) >= 0) {
    struct fetch_cleaning c = {node,
                               cp->incoming ? strrchr(kept, '/') + 1 : NULL};
    node->io->list(node->io->ctx, dir, remove_other, &c);
    free(dir);
  }
  free(kept);
}

int fetch_append(struct node *node, uint32_t *n_page, struct text *error)
{
  const struct store_checkpoint *cp = &node->checkpoint;
  const struct io *io = node->io;
  char *path = incoming_path(node, false, cp->index);
  if (path == NULL) return -ENOMEM;
  int fd = io->open(io->ctx, path, O_RDONLY);
  int rc = fd < 0 ? fd : append_pages(node, fd, cp->index, n_page);
  if (fd >= 0) io->close(io->ctx, fd);
  if (rc)
    text_set(error, "%s: %s: a snapshot was not installed whole", path,
             rc == -EBADMSG ? "damaged" : errno_text(-rc).s);
  free(path);
  return rc;
}

void fetch_forget(struct node *node, raft_index index)
{
  char *path = incoming_path(node, false, index);
  if (path) node->io->unlink(node->io->ctx, path);
  free(path);
}

/* Worker: the checkpoint file says what the database is about to be, and the
   next checkpoint begins there, whatever becomes of the rest. */
static int record(struct fetch *f)
{
  struct node *node = f->node;
  char *line = NULL;
  uint8_t *settings = malloc(f->cp.settings_len + 1);
  if (settings == NULL) return -ENOMEM;
  int rc = full_write_checkpoint(node, &f->cp, &line);
  if (line) events_add(&node->events, "%s", line);
  free(line);
  if (rc) {
    free(settings);
    return rc;
  }
  memcpy(settings, f->cp.settings, f->cp.settings_len);
  store_checkpoint_clear(&node->checkpoint);
  node->checkpoint = f->cp;
  node->checkpoint.settings = settings;
  return 0;
}

/* Worker. */
static int install_pages(struct fetch *f)
{
  struct node *node = f->node;
  int rc = sync_pages(f);
  if (rc) return rc;
  /* It stays, also if the checkpoint file is reported as not written: it may be
     there. A start removes what it does not need. */
  free(f->path);
  f->path = NULL;
  f->cp.incoming = true;
  rc = record(f);
  if (rc) return rc;
  fetch_clean(node, &node->checkpoint);
  return publish_pages(node, f->fd, f->cp.index);
}

static int enter_database(struct fetch *f)
{
  struct node *node = f->node;
  struct text error = {""};
  char *line = NULL;
  struct wal *wal = NULL;
  int rc = wal_open(node->io, node->path, f->cp.index, node->map, &wal, &line);
  if (line) events_add(&node->events, "%s", line);
  free(line);
  if (rc) return rc;
  wal_advance(wal, f->cp.index);
  /* Not at the same time as an address that a program sets. */
  pthread_mutex_lock(&node->identity_mutex);
  node->identity.joining = false;
  rc = identity_write_node(node->dir, &node->identity, &error);
  pthread_mutex_unlock(&node->identity_mutex);
  if (rc) {
    events_add(&node->events, "%s", error.s);
    wal_free(wal);
    return rc;
  }
  pthread_mutex_lock(&node->mutex);
  node->wal = wal;
  pthread_mutex_unlock(&node->mutex);
  return 0;
}

/* Loop: the node's state becomes that of the snapshot. */
static int enter(struct fetch *f)
{
  struct node *node = f->node;
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct settings settings;
  int rc = 0;
  if (settings_unpack(&settings, f->cp.settings, f->cp.settings_len) != 0)
    return -ENOMEM;
  if (raft_term_at(node->raft, f->cp.index) != f->cp.term)
    rc = store_reset(node->store, f->cp.index, f->cp.term);
  /* That log is of no use any more: full.c begins one after the snapshot. */
  if (rc == -ENOSPC && !f->fresh) rc = 0;
  if (rc == 0 && f->fresh) rc = enter_database(f);
  if (rc) {
    settings_clear(&settings);
    return rc;
  }
  pthread_mutex_lock(&node->mutex);
  settings_clear(&node->settings);
  node->settings = settings;
  node->configuration = f->cp.configuration;
  node->configuration_index = f->cp.configuration_index;
  while (node->history) {
    struct applied_configuration *first = node->history;
    node->history = first->next;
    free(first);
  }
  node->applied = f->cp.index;
  node->reconfigured = true;
  pthread_mutex_unlock(&node->mutex);
  atomic_store(&node->shown_checkpoint, f->cp.index);
  atomic_store(&node->settled, true); /* whatever there was in -wal */
  node->n_open = 0;
  event.u.snapshot_installed.index = f->cp.index;
  event.u.snapshot_installed.term = f->cp.term;
  event.u.snapshot_installed.configuration = &f->cp.configuration;
  rc = node_step(node, &event);
  return rc ? -EINVAL : 0;
}

static void installed(struct task *task)
{
  struct fetch *f = (struct fetch *)task;
  struct node *node = f->node;
  int rc = f->rc;
  if (rc == -ENOSPC && !node->closing) {
    if (f->retry_at == 0)
      events_add(&node->events, "no room to install the snapshot of entry %llu",
                 (unsigned long long)f->cp.index);
    f->retry_at = clock_monotonic_ms() + ROOM_MS;
    return;
  }
  node->apply_busy = false;
  node->fetch = NULL;
  node->fetched++;
  if (rc == 0 && !node->closing) rc = enter(f);
  if (rc == 0) {
    struct packer body = {0};
    node->counters.snapshots_taken++;
    pack_u8(&body, ASK_SNAPSHOT_DONE);
    pack_u64(&body, f->session);
    events_add(
        &node->events,
        "installed the snapshot of entry %llu: %llu KiB came in %s",
        (unsigned long long)f->cp.index, (unsigned long long)(f->bytes >> 10),
        progress_time((double)(clock_monotonic_ms() - f->began) / 1e3).s);
    if (!body.bad && !node->closing)
      net_fetch(node->net, f->from, body.data, body.len, ASK_MS, told, NULL);
    free(body.data);
    node_progressed(node);
    apply_committed(node);
  } else {
    /* Half of it may be in force: a start sorts that out. */
    node_fail(node, "a snapshot could not be installed: %s", errno_text(-rc).s);
  }
  free_fetch(f);
}

void fetch_install(struct node *node)
{
  struct fetch *f = node->fetch;
  if (f->fresh) {
    f->rc = install_database(f);
    if (f->rc == 0) f->rc = record(f);
  } else {
    f->rc = install_pages(f);
  }
  f->task.run = installed;
  node_post(node, &f->task);
}

/* Everything is here. The fate of what this node had under way will not be
   learned from the log any more. Tried again if the worker is busy. */
static void finish(struct fetch *f)
{
  struct node *node = f->node;
  if (node->apply_busy) return;
  f->installing = true;
  f->retry_at = 0;
  node->apply_busy = true;
  image_close(&f->base);
  /* So long ago, a grant is over, and its frames are about to be overwritten. */
  lock_overtaken(node);
  apply_leave_word(node);
  control_set_unsure(node->map); /* should this host end before it is told */
  pthread_mutex_lock(&node->mutex);
  while (node->inflight)
    node_settle(node, node->inflight, TX_UNKNOWN);
  pthread_mutex_unlock(&node->mutex);
  start_install(node);
}
