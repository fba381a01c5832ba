/*
** snapshot.c: gives a fresh node the database as of one index.
**
** The sender streams the pages of an image (image.c). Nobody waits for it.
**
** Head: u32 version 1, u64 cluster, u64 index, u64 term, u64 configuration
** index, blob configuration, blob settings, u32 page size, u32 pages.
** Chunk: u64 XXH3 of the rest, then whole pages in order.
**
** The receiver writes incoming/db, syncs it, renames it to the database's
** name, and writes the checkpoint. As long as the identity says `joining`, a
** crash leaves nothing that could be taken for a whole node.
*/
#include "node.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- sending ----------------------------------------------------------- */

struct snapshot_out {
  struct node *node;
  raft_id peer;
  struct image image;
  uint32_t next;
};

static void free_out(struct snapshot_out *s)
{
  image_close(&s->image);
  free(s);
}

static struct snapshot_out *make_out(struct node *node, raft_id peer)
{
  struct snapshot_out *s = calloc(1, sizeof(*s));
  if (s == NULL) return NULL;
  s->node = node;
  s->peer = peer;
  s->next = 1;
  if (image_open(node->wal, &s->image) == 0) return s;
  free(s);
  return NULL;
}

static ssize_t read_chunk(void *ctx, uint8_t *buf, size_t max)
{
  struct snapshot_out *s = ctx;
  size_t page_size = s->node->wal->page_size, len = 8;
  if (s->next > s->image.n_page) return 0;
  for (; s->next <= s->image.n_page && len + page_size <= max; s->next++) {
    if (image_read(&s->image, s->next, buf + len) != 0) return -1;
    len += page_size;
  }
  uint64_t sum = XXH3_64bits(buf + 8, len - 8);
  memcpy(buf, &sum, 8);
  return (ssize_t)len;
}

static void sent(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct snapshot_out *s = ctx;
  struct node *node = s->node;
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  event.u.snapshot_sent.peer = s->peer;
  event.u.snapshot_sent.index = s->image.index;
  event.u.snapshot_sent.ok = status == 0;
  if (status != 0)
    events_add(&node->events, "sending a snapshot failed: %.*s", (int)len,
               body ? (const char *)body : "");
  free_out(s);
  if (!node->closing) node_step(node, &event);
}

static int pack_head(struct node *node, const struct snapshot_out *s,
                     struct packer *p)
{
  uint8_t *settings = NULL;
  size_t len = 0;
  raft_term term = raft_term_at(node->raft, s->image.index);
  struct raft_body *c = raft_configuration_encode(&node->configuration);
  if (c == NULL || settings_pack(&node->settings, &settings, &len) != 0) {
    raft_body_unref(c);
    return -1;
  }
  pack_u32(p, 1);
  pack_u64(p, node->identity.cluster);
  pack_u64(p, s->image.index);
  pack_u64(p, term);
  pack_u64(p, node->configuration_index);
  pack_blob(p, c->data, c->len);
  pack_blob(p, settings, len);
  pack_u32(p, node->wal->page_size);
  pack_u32(p, s->image.n_page);
  raft_body_unref(c);
  explicit_bzero(settings, len);
  free(settings);
  return p->bad ? -1 : 0;
}

static void refuse_send(struct node *node, raft_id peer)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  event.u.snapshot_sent.peer = peer;
  event.u.snapshot_sent.ok = false;
  node_step(node, &event);
}

void snapshot_send(struct node *node, raft_id peer)
{
  struct packer head = {0};
  bool can = node->wal && atomic_load(&node->settled);
  struct snapshot_out *s = can ? make_out(node, peer) : NULL;
  /* While parts of a transaction are open, the index stays before them: a later
     configuration does not belong to it. Asked for again soon. */
  if (s == NULL || node->configuration_index > s->image.index ||
      pack_head(node, s, &head) != 0) {
    if (s) free_out(s);
    refuse_send(node, peer);
  } else {
    events_add(&node->events, "sending a snapshot of entry %llu, %u pages",
               (unsigned long long)s->image.index, s->image.n_page);
    net_send_snapshot(node->net, peer, head.data, head.len, read_chunk, sent,
                      s);
  }
  if (head.data) explicit_bzero(head.data, head.cap);
  free(head.data);
}

/* ---- receiving --------------------------------------------------------- */

struct snapshot_in {
  struct task task;
  struct net_request *request;
  struct store_checkpoint cp;
  uint32_t page_size, n_page, received;
  int fd, rc;
  char *path; /* incoming/db */
};

static void free_in(struct node *node, struct snapshot_in *in)
{
  if (in == NULL) return;
  if (in->fd >= 0) node->io->close(node->io->ctx, in->fd);
  if (in->path) node->io->unlink(node->io->ctx, in->path);
  free(in->path);
  store_checkpoint_clear(&in->cp);
  free(in);
}

void snapshot_drop(struct node *node)
{
  if (node->incoming && !node->installing) {
    free_in(node, node->incoming);
    node->incoming = NULL;
  }
}

static bool parse_head(struct node *node, struct snapshot_in *in,
                       const uint8_t *head, size_t len)
{
  struct parser p = parser_of(head, len);
  struct settings check;
  size_t n_configuration, n_settings;
  if (parse_u32(&p) != 1 || parse_u64(&p) != node->identity.cluster)
    return false;
  in->cp.index = in->cp.floor = parse_u64(&p);
  in->cp.term = parse_u64(&p);
  in->cp.configuration_index = parse_u64(&p);
  const uint8_t *c = parse_blob(&p, &n_configuration);
  const uint8_t *s = parse_blob(&p, &n_settings);
  in->page_size = parse_u32(&p);
  in->n_page = parse_u32(&p);
  if (!parser_done(&p) || in->cp.index == 0 || in->n_page == 0 ||
      in->page_size < 512 || in->page_size > 65536 ||
      (in->page_size & (in->page_size - 1)) ||
      raft_configuration_decode(c, n_configuration, &in->cp.configuration) ||
      settings_unpack(&check, s, n_settings) != 0)
    return false;
  settings_clear(&check);
  in->cp.settings = malloc(n_settings);
  if (in->cp.settings == NULL) return false;
  memcpy(in->cp.settings, s, n_settings);
  in->cp.settings_len = n_settings;
  in->cp.from_snapshot = true;
  return true;
}

static int open_incoming(struct node *node, struct snapshot_in *in)
{
  char *dir = NULL;
  const struct io *io = node->io;
  if (asprintf(&dir, "%s/incoming", node->dir) < 0) return -ENOMEM;
  int rc = io->mkdir(io->ctx, dir);
  if (rc == 0 && asprintf(&in->path, "%s/db", dir) < 0) {
    in->path = NULL;
    rc = -ENOMEM;
  }
  if (rc == 0) {
    /* Made with the rights that SQLite gives to a new database. */
    int fd = open(in->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0) close(fd);
    in->fd = io->open(io->ctx, in->path, O_RDWR);
    if (in->fd < 0) rc = in->fd;
  }
  free(dir);
  return rc;
}

bool snapshot_begin(void *ctx, raft_id from, const uint8_t *head, size_t len)
{
  struct node *node = ctx;
  (void)from;
  /* Only a fresh node takes one: others catch up by the log. */
  if (node->wal || node->installing || !node->identity.joining) return false;
  snapshot_drop(node);
  struct snapshot_in *in = calloc(1, sizeof(*in));
  if (in == NULL) return false;
  in->fd = -1;
  if (!parse_head(node, in, head, len) || open_incoming(node, in) != 0) {
    free_in(node, in);
    return false;
  }
  node->incoming = in;
  events_add(&node->events, "receiving a snapshot of entry %llu, %u pages",
             (unsigned long long)in->cp.index, in->n_page);
  return true;
}

bool snapshot_chunk(void *ctx, const uint8_t *data, size_t len)
{
  struct node *node = ctx;
  struct snapshot_in *in = node->incoming;
  uint64_t sum;
  if (in == NULL || len <= 8 || (len - 8) % in->page_size) return false;
  memcpy(&sum, data, 8);
  uint32_t pages = (uint32_t)((len - 8) / in->page_size);
  if (sum != XXH3_64bits(data + 8, len - 8) ||
      pages > in->n_page - in->received)
    return false;
  int rc = node->io->pwrite(node->io->ctx, in->fd, data + 8, len - 8,
                            (uint64_t)in->received * in->page_size);
  if (rc) {
    events_add(&node->events, "%s: %s", in->path, errno_text(-rc).s);
    return false;
  }
  in->received += pages;
  atomic_store(&node->progress, (uint64_t)in->received);
  return true;
}

/* Worker: makes what was received the database. */
static int install_files(struct node *node, struct snapshot_in *in)
{
  const struct io *io = node->io;
  char *line = NULL;
  int rc = io->sync(io->ctx, in->fd);
  if (rc == 0) rc = io->rename(io->ctx, in->path, node->path);
  if (rc) return rc;
  free(in->path);
  in->path = NULL;
  rc = io_sync_parent(io, node->path);
  if (rc == 0) rc = store_checkpoint_write(io, node->dir, &in->cp, &line);
  if (line) events_add(&node->events, "%s", line);
  free(line);
  return rc;
}

/* Loop: takes what was installed into use. */
static int enter_snapshot(struct node *node, struct snapshot_in *in)
{
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_INSTALLED};
  struct text error = {""};
  char *line = NULL;
  struct wal *wal = NULL;
  int rc = store_reset(node->store, in->cp.index, in->cp.term);
  if (rc == 0)
    rc = wal_open(node->io, node->path, in->cp.index, node->control_confirmed,
                  &wal, &line);
  if (line) events_add(&node->events, "%s", line);
  free(line);
  if (rc) return rc;
  wal_advance(wal, in->cp.index);
  node->identity.joining = false;
  rc = identity_write(node->dir, &node->identity, &error);
  if (rc) {
    events_add(&node->events, "%s", error.s);
    wal_close(wal, false);
    return rc;
  }
  pthread_mutex_lock(&node->mutex);
  node->wal = wal;
  node->configuration = in->cp.configuration;
  node->configuration_index = in->cp.configuration_index;
  node->applied = in->cp.index;
  settings_clear(&node->settings);
  rc = settings_unpack(&node->settings, in->cp.settings, in->cp.settings_len);
  pthread_mutex_unlock(&node->mutex);
  store_checkpoint_clear(&node->checkpoint);
  node->checkpoint = in->cp;
  atomic_store(&node->shown_checkpoint, in->cp.index);
  node->checkpoint.from_snapshot = false; /* the log was begun anew */
  in->cp.settings = NULL;                 /* the node's now */
  event.u.snapshot_installed.index = in->cp.index;
  event.u.snapshot_installed.term = in->cp.term;
  event.u.snapshot_installed.configuration = &in->cp.configuration;
  if (rc == 0) node_step(node, &event);
  return rc ? -EBADMSG : 0;
}

static void installed(struct task *task)
{
  struct snapshot_in *in = (struct snapshot_in *)task;
  struct node *node = task->node;
  int rc = in->rc;
  node->installing = false;
  node->incoming = NULL;
  if (rc == 0 && !node->closing) rc = enter_snapshot(node, in);
  struct errno_text why = errno_text(-rc);
  if (rc)
    events_add(&node->events, "snapshot not installed: %s", why.s);
  else
    events_add(&node->events, "snapshot installed");
  net_reply(in->request, rc ? 1 : 0, why.s, strlen(why.s));
  free_in(node, in);
}

void snapshot_install(struct node *node)
{
  struct snapshot_in *in = node->incoming;
  in->rc = install_files(node, in);
  in->task.run = installed;
  node_post(node, &in->task);
}

void snapshot_end(void *ctx, bool ok, struct net_request *request)
{
  struct node *node = ctx;
  struct snapshot_in *in = node->incoming;
  if (node->installing) {
    if (request) net_reply(request, 1, "busy", 4);
    return;
  }
  if (!ok || in == NULL || in->received != in->n_page) {
    snapshot_drop(node);
    if (request) net_reply(request, 1, "incomplete", 10);
    return;
  }
  in->request = request;
  node->installing = true;
  pthread_mutex_lock(&node->mutex);
  node->worker_install = true;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}
