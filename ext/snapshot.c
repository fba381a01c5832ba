/*
** snapshot.c: gives the database as of one index to a node that lacks entries
** which the log no longer has.
**
** The leader offers (a call), the other node fetches, on a connection that
** carries nothing else:
**
**   leader                                   receiver (fetch.c)
**   OFFER                                 ->
**                                         <- OPEN
**   head: what the snapshot is            ->
**                                         <- PAGES from .. , their hashes here
**   a bit for each, pages that differ     ->    (several under way, in order)
**                                         <- DONE
**
** The pages come from an image (image.c): nobody waits for it. It stays open
** between requests, and when the connection broke, until nothing was asked for
** some time.
**
** A receiver that finds that its own log goes on says DROPPED instead: the leader
** then looks whether that is so.
**
** OFFER: blob configuration, of the leader. Who has missed much may not know
** where it is, nor that it is a member.
** OPEN's answer: u32 version 2, u64 session, u64 cluster, u64 index, u64 term,
** u64 term of the sender, u64 configuration index, blob configuration, blob
** settings, u32 page size, u32 pages, u64 bytes a second (0: no limit).
** PAGES: u64 session, u32 first, u32 count, then u64 XXH3 of as many pages as
** the receiver has of them. Its answer: u64 XXH3 of the rest, ceil(count / 8)
** bytes of bits, the pages whose bits are set.
*/
#include "snapshot.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <xxhash.h>

#define OFFER_MS 5000
#define FORGET_MS 15000   /* without a request */
#define NEEDLESS_MS 3000  /* the same, if nobody is known to need it */
#define REFUSED_MS 1000   /* until one that was refused is offered again */
#define WINDOW (1u << 20) /* bytes that a receiver asks for at once, about */

struct snapshot_out {
  struct snapshot_out *next;
  struct node *node;
  raft_id peer;
  uint64_t session; /* 0: not opened yet */
  uint64_t used;    /* ms: the last request */
  struct image image;
  struct raft_configuration configuration; /* as of the image */
  raft_index configuration_index;
  int work;
};

static struct snapshot_out *find_out(struct node *node, raft_id peer)
{
  struct snapshot_out *s = node->snapshots;
  while (s && s->peer != peer)
    s = s->next;
  return s;
}

/* Tells raft, and forgets it. */
static void end_out(struct snapshot_out *s, bool ok)
{
  struct node *node = s->node;
  struct raft_event event = {.type = RAFT_EVENT_SNAPSHOT_SENT};
  struct snapshot_out **at = &node->snapshots;
  while (*at != s)
    at = &(*at)->next;
  *at = s->next;
  event.u.snapshot_sent.peer = s->peer;
  event.u.snapshot_sent.index = s->image.index;
  event.u.snapshot_sent.ok = ok;
  image_close(&s->image);
  work_end(node, &s->work);
  free(s);
  if (!node->closing) node_step(node, &event);
}

/* ---- offers ------------------------------------------------------------ */

struct offer {
  struct node *node;
  raft_id peer;
};

static void offered(void *ctx, int status, const uint8_t *body, size_t len)
{
  struct offer *offer = ctx;
  struct snapshot_out *s = find_out(offer->node, offer->peer);
  if (status != 0)
    events_add(&offer->node->events, "offering a snapshot: %.*s", (int)len,
               body ? (const char *)body : "");
  /* Who refused it is there: raft would ask for it again at once. */
  if (status > 0 && s && s->session == 0)
    s->used = clock_monotonic_ms() - FORGET_MS + REFUSED_MS;
  else if (status != 0 && s && s->session == 0)
    end_out(s, false);
  free(offer);
}

static void send_offer(struct node *node, raft_id peer)
{
  struct offer *offer = calloc(1, sizeof(*offer));
  struct raft_body *c =
      raft_configuration_encode(raft_configuration(node->raft, NULL));
  struct packer p = {0};
  pack_u8(&p, ASK_SNAPSHOT_OFFER);
  if (c) pack_blob(&p, c->data, c->len);
  if (offer && c && !p.bad) {
    offer->node = node;
    offer->peer = peer;
    net_call(node->net, peer, p.data, p.len, OFFER_MS, offered, offer);
  } else {
    free(offer); /* raft is told when it is forgotten */
  }
  raft_body_unref(c);
  free(p.data);
}

void snapshot_send(struct node *node, raft_id peer)
{
  struct snapshot_out *s = find_out(node, peer);
  if (s == NULL && (s = calloc(1, sizeof(*s))) != NULL) {
    s->node = node;
    s->peer = peer;
    s->work = -1;
    s->next = node->snapshots;
    node->snapshots = s;
  }
  if (s) s->used = clock_monotonic_ms();
  if (s) send_offer(node, peer);
}

void snapshot_peer_up(struct node *node, raft_id peer)
{
  if (find_out(node, peer)) send_offer(node, peer);
}

static bool is_member(struct node *node, raft_id peer)
{
  return raft_configuration_find(raft_configuration(node->raft, NULL), peer);
}

/* How long one is kept that is not asked for. It keeps all that is written
   meanwhile in the WAL: no longer than need be when its peer has gone on with the
   log, or another node leads, who gives what is needed. */
static uint64_t keep_ms(struct node *node, const struct snapshot_out *s)
{
  struct raft_progress progress;
  bool needed = raft_progress(node->raft, s->peer, &progress) &&
                progress.state == RAFT_SNAPSHOT;
  uint64_t ms = needed ? FORGET_MS : NEEDLESS_MS;
  /* Who keeps to the limit asks for nothing for as long as that takes. */
  if (s->session && node->identity.snapshot_rate_kib)
    ms += (WINDOW >> 10) * UINT64_C(1000) / node->identity.snapshot_rate_kib;
  return ms;
}

/* Raft asks once, and there may have been no memory then. */
static void give_missing(struct node *node)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  for (unsigned i = 0; i < c->n; i++) {
    struct raft_progress progress;
    raft_id peer = c->members[i].id;
    if (raft_progress(node->raft, peer, &progress) &&
        progress.state == RAFT_SNAPSHOT && find_out(node, peer) == NULL)
      snapshot_send(node, peer);
  }
}

void snapshot_tick(struct node *node)
{
  uint64_t now = clock_monotonic_ms();
  for (struct snapshot_out *s = node->snapshots, *next; s; s = next) {
    next = s->next;
    if (now < s->used + keep_ms(node, s) && is_member(node, s->peer)) continue;
    if (s->session)
      events_add(&node->events, "the snapshot of entry %llu was not fetched",
                 (unsigned long long)s->image.index);
    end_out(s, false);
    next = node->snapshots; /* the step may have changed the list */
  }
  give_missing(node);
}

bool snapshot_needs(const struct node *node, raft_index index)
{
  for (const struct snapshot_out *s = node->snapshots; s; s = s->next)
    if (s->session && s->image.index < index) return true;
  return false;
}

void snapshot_close(struct node *node)
{
  while (node->snapshots)
    end_out(node->snapshots, false);
}

/* ---- requests ---------------------------------------------------------- */

static void refuse(struct net_request *request, const char *text)
{
  net_reply(request, 1, text, strlen(text));
}

static int pack_head(struct snapshot_out *s, struct packer *p)
{
  struct node *node = s->node;
  uint8_t *settings = NULL;
  size_t len = 0;
  raft_term term;
  bool leads;
  raft_state(node->raft, &term, &leads);
  struct raft_body *c = raft_configuration_encode(&s->configuration);
  if (c == NULL || settings_pack(&node->settings, &settings, &len) != 0) {
    raft_body_unref(c);
    return -1;
  }
  pack_u32(p, SNAPSHOT_VERSION);
  pack_u64(p, s->session);
  pack_u64(p, node->identity.cluster);
  pack_u64(p, s->image.index);
  pack_u64(p, raft_term_at(node->raft, s->image.index));
  pack_u64(p, term);
  pack_u64(p, s->configuration_index);
  pack_blob(p, c->data, c->len);
  pack_blob(p, settings, len);
  pack_u32(p, node->wal->page_size);
  pack_u32(p, s->image.n_page);
  pack_u64(p, (uint64_t)node->identity.snapshot_rate_kib << 10);
  raft_body_unref(c);
  explicit_bzero(settings, len);
  free(settings);
  return p->bad ? -1 : 0;
}

static const char *open_image(struct snapshot_out *s)
{
  struct node *node = s->node;
  if (node->wal == NULL) return "this node has no database yet";
  if (!atomic_load(&node->settled))
    return "it has lost power: no majority has said yet what is committed";
  int rc = image_open(node->wal, "a snapshot for another node", &s->image);
  if (rc) return rc == -ENOMEM ? "out of memory" : "its database has no image";
  image_of_node(&s->image);
  /* While parts of a transaction are open, the index stays before them: a
     later configuration does not belong to it. Asked for again soon. */
  if (node->configuration_index > s->image.index ||
      raft_term_at(node->raft, s->image.index) == 0) {
    image_close(&s->image);
    return "a large transaction is being applied: ask again";
  }
  s->configuration = node->configuration;
  s->configuration_index = node->configuration_index;
  s->session = ++node->last_session | (uint64_t)clock_wall_ms() << 20;
  const struct raft_member *m =
      raft_configuration_find(raft_configuration(node->raft, NULL), s->peer);
  s->work = work_begin(node, "giving %s a snapshot of entry %llu",
                       m ? m->name : "another node",
                       (unsigned long long)s->image.index);
  work_bytes(node, s->work, 0,
             (uint64_t)s->image.n_page * node->wal->page_size);
  events_add(&node->events, "giving a snapshot of entry %llu, %u pages",
             (unsigned long long)s->image.index, s->image.n_page);
  return NULL;
}

/* A receiver that lost the connection is given what it had begun to take,
   unless the log no longer goes on from there. */
static void handle_open(struct node *node, raft_id from,
                        struct net_request *request)
{
  struct snapshot_out *s = find_out(node, from);
  struct packer head = {0};
  if (s && s->session && raft_term_at(node->raft, s->image.index) == 0) {
    image_close(&s->image);
    work_end(node, &s->work);
    s->session = 0;
  }
  const char *why = s == NULL         ? "no snapshot was offered"
                    : s->session == 0 ? open_image(s)
                                      : NULL;
  if (why == NULL && pack_head(s, &head) != 0) why = "out of memory";
  if (why)
    refuse(request, why);
  else
    net_reply(request, 0, head.data, head.len);
  if (head.data) explicit_bzero(head.data, head.cap);
  free(head.data);
}

/* Reads the pages that are wanted behind the bits. Their end, or NULL. */
static uint8_t *collect(const struct image *image, uint32_t first,
                        uint32_t count, const uint8_t *hashes, uint32_t known,
                        uint8_t *bits, uint8_t *at)
{
  for (uint32_t i = 0; i < count; i++) {
    uint64_t hash;
    if (image_read(image, first + i, at) != 0) return NULL;
    if (i < known) {
      memcpy(&hash, hashes + (size_t)i * 8, 8);
      if (hash == XXH3_64bits(at, image->wal->page_size)) continue;
    }
    bits[i / 8] |= (uint8_t)(1u << i % 8);
    at += image->wal->page_size;
  }
  return at;
}

static void handle_pages(struct snapshot_out *s, struct parser *p,
                         struct net_request *request)
{
  uint32_t first = parse_u32(p), count = parse_u32(p);
  size_t left = p->bad ? 0 : (size_t)(p->end - p->at), bits = (count + 7) / 8;
  const uint8_t *hashes = parse_bytes(p, left);
  size_t page_size = s->image.wal->page_size;
  if (!parser_done(p) || first == 0 || count == 0 || left % 8 ||
      left / 8 > count || count > snapshot_part_pages((uint32_t)page_size) ||
      first > s->image.n_page || count > s->image.n_page - first + 1) {
    refuse(request, "malformed request");
    return;
  }
  uint8_t *buf = calloc(1, 8 + bits + count * page_size), *end = NULL;
  if (buf)
    end = collect(&s->image, first, count, hashes, (uint32_t)(left / 8),
                  buf + 8, buf + 8 + bits);
  if (end == NULL) {
    refuse(request, buf ? "the database could not be read" : "out of memory");
  } else {
    uint64_t sum = XXH3_64bits(buf + 8, (size_t)(end - buf) - 8);
    memcpy(buf, &sum, 8);
    net_reply(request, 0, buf, (size_t)(end - buf));
    atomic_fetch_add(&s->node->counters.given_bytes, (uint64_t)(end - buf));
    work_bytes(s->node, s->work, (first + count - 1) * page_size,
               s->image.n_page * page_size);
  }
  free(buf);
}

bool snapshot_request(struct node *node, raft_id from, const uint8_t *body,
                      size_t len, struct net_request *request)
{
  struct parser p = parser_of(body, len);
  uint8_t what = parse_u8(&p);
  if (from == 0 || what < ASK_SNAPSHOT_OFFER || what > ASK_SNAPSHOT_DROPPED)
    return false;
  struct snapshot_out *s = find_out(node, from);
  if (what == ASK_SNAPSHOT_OFFER) {
    fetch_offered(node, from, &p, request);
  } else if (what == ASK_SNAPSHOT_OPEN) {
    if (s) s->used = clock_monotonic_ms();
    handle_open(node, from, request);
  } else if (what == ASK_SNAPSHOT_DROPPED) {
    net_reply(request, 0, NULL, 0);
    if (s) end_out(s, false);
  } else if (s == NULL || s->session == 0 || parse_u64(&p) != s->session) {
    refuse(request, "that snapshot is not given any more");
  } else if (what == ASK_SNAPSHOT_PAGES) {
    s->used = clock_monotonic_ms();
    handle_pages(s, &p, request);
  } else {
    net_reply(request, 0, NULL, 0);
    node->counters.snapshots_given++;
    end_out(s, true);
  }
  return true;
}
