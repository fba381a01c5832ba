/*
** fuzz_node.c: a node, and what a member or a stranger may say to it: requests,
** posts, messages, entries of the log, snapshots; then its start on what it has
** written of that.
**
** An input is u8 how it ends (bit 0: in order), then operations, each a byte and
** what it needs: see step(). Numbers that must fit (terms, indexes, checksums)
** are most often made to.
**
** What must hold: each request has one answer, and who is refused is told why;
** the node stops in time; what it starts on again it takes or refuses in words.
*/
#include "world.h"

#include <xxhash.h>

const char *const fuzz_corpus = "ext/fuzz/corpus/node";

#define STEPS 64

/* What is left of the input, and whether there is to be a pause now. */
struct play {
  struct input in;
  unsigned steps;
  bool pause;
};

/* A part of a transaction, of some pages. */
static struct raft_body *make_part(struct input *in, uint8_t *type)
{
  uint8_t kind = input_byte(in);
  struct tx_head head = {.node = PEER,
                         .incarnation = PEER,
                         .sequence = input_number(in, 1) % 4,
                         .part = kind >> 4 & 3,
                         .n_page = (uint32_t)input_number(in, 1),
                         .page_size = PAGE,
                         .count = 1 + (kind & 3)};
  bool last = kind & 64;
  if (!last) head.n_page = 0;
  if (kind & 8) head.page_size = PAGE << (kind & 7);
  size_t at = tx_pages_offset(head.count);
  struct raft_body *body = raft_body_new(at + (size_t)head.count * PAGE);
  must(body);
  memset(body->data, kind, body->len);
  memcpy(body->data, &head, sizeof(head));
  for (uint32_t i = 0; i < head.count; i++) {
    uint32_t pgno = (uint32_t)input_number(in, 1);
    if (kind & 128 && pgno == 255) pgno = UINT32_MAX;
    memcpy(body->data + sizeof(head) + (size_t)i * 4, &pgno, 4);
  }
  raft_body_seal(body);
  *type = last ? RAFT_COMMIT : RAFT_PAGES;
  return body;
}

/* ---- requests and posts ------------------------------------------------ */

static uint8_t *take_bytes(struct input *in, size_t *len)
{
  const uint8_t *at = input_bytes(in, (size_t)input_number(in, 2) % 2048, len);
  return exact_copy(at, *len);
}

static void say_request(struct node *node, struct input *in, raft_id from)
{
  struct net_callbacks callbacks;
  size_t len;
  uint8_t *body = take_bytes(in, &len);
  if (len >= 9 && body[0] >= ASK_SNAPSHOT_PAGES && body[0] < 32 &&
      given_session)
    write_number(body + 1, given_session, 8);
  node_callbacks(node, &callbacks);
  callbacks.request(callbacks.ctx, from, body, len, request_new(from));
  free(body);
}

/* The head of a post, then what the input says; a write's body has the right
   checksum. */
static void say_post(struct node *node, struct input *in)
{
  struct net_callbacks callbacks;
  struct packer p = {0};
  size_t len;
  raft_term term;
  bool leads;
  raft_state(node->raft, &term, &leads);
  pack_u8(&p, input_byte(in) % 8);
  pack_u64(&p, term);
  pack_u64(&p, node->lock.lender.number + input_number(in, 1) % 3);
  uint8_t *body = take_bytes(in, &len);
  if (len > 17) write_number(body + 9, XXH3_64bits(body + 17, len - 17), 8);
  pack_bytes(&p, body, len);
  free(body);
  must(!p.bad);
  node_callbacks(node, &callbacks);
  body = exact_copy(p.data, p.len);
  callbacks.posted(callbacks.ctx, PEER, body, p.len);
  free(body);
  free(p.data);
}

/* A write under the grant that PEER has, in its turn or not. */
static void say_write(struct node *node, struct input *in)
{
  struct lock_lender *l = &node->lock.lender;
  struct net_callbacks callbacks;
  struct packer p = {0};
  uint64_t accepted = 0;
  uint8_t type, off = input_byte(in);
  struct raft_body *body = make_part(in, &type);
  for (unsigned i = 0; i < RAFT_MEMBERS_MAX; i++)
    if (l->accounts[i].node == PEER) accepted = l->accounts[i].accepted;
  pack_u8(&p, 5);
  pack_u64(&p, l->term);
  pack_u64(&p, l->number);
  pack_u64(&p, accepted + 1 + (off & 3));
  pack_u8(&p, off & 4 ? off >> 4 : type);
  pack_u64(&p, body->checksum);
  pack_bytes(&p, body->data, body->len);
  must(!p.bad);
  node_callbacks(node, &callbacks);
  callbacks.posted(callbacks.ctx, PEER, p.data, p.len);
  raft_body_unref(body);
  free(p.data);
}

/* ---- messages ---------------------------------------------------------- */

/* As PEER, who leads in a term that begins where the node's ends. */
static void say_append(struct node *node, uint8_t type, struct raft_body *body)
{
  struct net_callbacks callbacks;
  struct raft_message m = {.type = RAFT_APPEND_REQUEST,
                           .from = PEER,
                           .to = node->identity.id,
                           .incarnation = PEER};
  bool leads;
  raft_state(node->raft, &m.term, &leads);
  if (raft_leader(node->raft) != PEER) m.term++;
  m.prev_index = raft_last(node->raft);
  m.prev_term = raft_term_at(node->raft, m.prev_index);
  m.commit = m.prev_index + 1;
  m.n_entries = 1;
  m.entries = calloc(1, sizeof(*m.entries));
  must(m.entries);
  m.entries[0] = (struct raft_entry){
      .index = m.prev_index + 1, .term = m.term, .type = type, .body = body};
  node_callbacks(node, &callbacks);
  callbacks.message(callbacks.ctx, &m);
}

static void say_entry(struct node *node, struct input *in)
{
  uint8_t type = input_byte(in);
  size_t len;
  uint8_t *bytes = take_bytes(in, &len);
  struct raft_body *body = len ? raft_body_new(len) : NULL;
  if (body) memcpy(body->data, bytes, len);
  if (body) raft_body_seal(body);
  free(bytes);
  say_append(node, (uint8_t)(1 + type % 5), body);
}

static void say_pages(struct node *node, struct input *in)
{
  uint8_t type;
  struct raft_body *body = make_part(in, &type);
  say_append(node, type, body);
}

/* Any message, of numbers that are near. */
static void say_message(struct node *node, struct input *in)
{
  struct net_callbacks callbacks;
  uint8_t flags = input_byte(in);
  raft_index last = raft_last(node->raft);
  bool leads;
  struct raft_message m = {.type = (uint8_t)(1 + flags % 11),
                           .from = PEER,
                           .to = node->identity.id,
                           .incarnation = PEER,
                           .granted = flags & 128};
  raft_state(node->raft, &m.term, &leads);
  m.term += input_number(in, 1) % 3;
  m.prev_index = last - input_number(in, 1) % 4;
  m.prev_term = raft_term_at(node->raft, m.prev_index);
  m.commit = last - input_number(in, 1) % 4;
  m.match = last + 1 - input_number(in, 1) % 4;
  m.hint_index = input_number(in, 1);
  m.read = input_number(in, 2);
  m.read_index = input_number(in, 1);
  node_callbacks(node, &callbacks);
  callbacks.message(callbacks.ctx, &m);
}

/* ---- answers ----------------------------------------------------------- */

static void pack_head(struct node *node, struct input *in, struct packer *p)
{
  struct raft_configuration c = *raft_configuration(node->raft, NULL);
  struct raft_body *body;
  raft_term term;
  bool leads;
  uint8_t kind = input_byte(in);
  raft_state(node->raft, &term, &leads);
  for (unsigned i = 0; kind & 1 && i < c.n; i++)
    if (c.members[i].id == PEER) c.members[i].role = RAFT_VOTER;
  body = raft_configuration_encode(&c);
  must(body);
  pack_u32(p, SNAPSHOT_VERSION);
  pack_u64(p, 1 + input_number(in, 1) % 2);
  pack_u64(p, node->identity.cluster);
  pack_u64(p, raft_last(node->raft) + 1 + input_number(in, 1) % 4);
  pack_u64(p, term - (kind >> 1 & 1));
  pack_u64(p, term);
  pack_u64(p, input_number(in, 1));
  pack_blob(p, body->data, body->len);
  pack_blob(p, "\0\0\0\0", 4);
  pack_u32(p, kind & 4 ? 512u << (kind >> 4 & 7) : PAGE);
  pack_u32(p, (uint32_t)input_number(in, 2));
  pack_u64(p, kind & 8 ? 1u << 30 : 0);
  raft_body_unref(body);
}

/* The pages that were asked for, as bits of the input say. */
static void pack_pages(const struct asked *a, struct input *in,
                       struct packer *p)
{
  uint32_t count = (uint32_t)read_number(a->body + 13, 4);
  uint8_t mask = input_byte(in), fill = input_byte(in), page[PAGE];
  unsigned extra = fill & 1 ? (fill >> 1 & 3) : 0;
  pack_u64(p, 0);
  for (uint32_t i = 0; i < (count + 7) / 8; i++)
    pack_u8(p, mask);
  memset(page, fill, sizeof(page));
  for (uint32_t i = 0; i < count; i++)
    if (mask >> i % 8 & 1) pack_bytes(p, page, sizeof(page));
  for (; extra; extra--)
    pack_bytes(p, page, fill & 16 ? sizeof(page) : 1);
}

static void say_answer(struct node *node, struct input *in)
{
  uint8_t kind = input_byte(in);
  struct packer p = {0};
  size_t len;
  if (n_asked == 0) return;
  unsigned n = kind % n_asked;
  const struct asked *a = &asked[n];
  bool good = kind & 128;
  if (good && a->body[0] == ASK_SNAPSHOT_OPEN) {
    pack_head(node, in, &p);
  } else if (good && a->body[0] == ASK_SNAPSHOT_PAGES) {
    pack_pages(a, in, &p);
  } else {
    uint8_t *bytes = take_bytes(in, &len);
    pack_bytes(&p, bytes, len);
    free(bytes);
  }
  if (a->body[0] == ASK_SNAPSHOT_PAGES && p.len >= 8)
    write_number(p.data, XXH3_64bits(p.data + 8, p.len - 8), 8);
  must(!p.bad);
  asked_answer(n, good ? 0 : (kind >> 5 & 3) - 1, p.data, p.len);
  free(p.data);
}

/* ---- operations -------------------------------------------------------- */

static void say_offer(struct node *node)
{
  struct net_callbacks callbacks;
  const uint8_t offer = ASK_SNAPSHOT_OFFER;
  node_callbacks(node, &callbacks);
  callbacks.request(callbacks.ctx, PEER, &offer, 1, request_new(PEER));
}

static void step(struct node *node, struct play *play)
{
  struct input *in = &play->in;
  uint8_t op = input_byte(in);
  switch (op % 16) {
  case 0: say_request(node, in, PEER); break;
  case 1: say_request(node, in, 0); break;
  case 2: say_request(node, in, node->identity.id); break;
  case 3: say_post(node, in); break;
  case 4: say_entry(node, in); break;
  case 5:
  case 6: say_pages(node, in); break;
  case 7: say_message(node, in); break;
  case 8: say_answer(node, in); break;
  case 9: say_offer(node); break;
  case 10: say_append(node, RAFT_NOOP, NULL); break;
  case 12: pass_time(node, input_byte(in) * UINT64_C(50)); break;
  case 13: say_write(node, in); break;
  case 14: snapshot_send(node, PEER); break; /* as raft would have it */
  default: play->pause = true; break;
  }
}

static void steps(struct node *node, void *arg)
{
  struct play *play = arg;
  play->pause = false;
  while (input_left(&play->in) && play->steps-- > 0 && !play->pause)
    step(node, play);
}

static void check_events(struct node *node)
{
  pthread_mutex_lock(&node->events.mutex);
  for (uint64_t i = 0; i < node->events.n && i < EVENTS_MAX; i++) {
    const char *text = node->events.ring[i].text;
    must(memchr(text, 0, sizeof(node->events.ring[i].text)) && text[0]);
    must(!strchr(text, '\n'));
  }
  pthread_mutex_unlock(&node->events.mutex);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct play play = {.in = input_of(data, size), .steps = STEPS};
  uint8_t how = input_byte(&play.in);
  world_begin();
  restore();
  struct node *node = node_begin();
  must(node);
  wait_leader(node);
  while (input_left(&play.in) && play.steps > 0 && play.steps <= STEPS) {
    on_loop(node, steps, &play);
    settle(node, 20);
  }
  check_events(node);
  node_end(node, how & 1);
  node = node_begin();
  if (node == NULL) return 0; /* and it has said why */
  settle(node, 20);
  check_events(node);
  node_end(node, false);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

/* A request of a member: its bytes after the length. */
static void pack_request(struct packer *p, uint8_t op, const struct packer *q)
{
  uint8_t head[3] = {op};
  write_number(head + 1, q->len, 2);
  pack_bytes(p, head, 3);
  pack_bytes(p, q->data, q->len);
}

static void seed_requests(void (*seed)(const void *data, size_t size))
{
  struct packer p = {0}, q = {0};
  pack_u8(&p, 1);
  for (uint8_t ask = ASK_JOIN; ask <= ASK_ROTATE; ask++) {
    q.len = 0;
    pack_u8(&q, ask);
    switch (ask) {
    case ASK_INVITE:
      pack_text(&q, "n8");
      pack_u8(&q, RAFT_VOTER);
      pack_text(&q, "n7");
      pack_bytes(&q, "01234567890123456789012345678901", 32);
      break;
    case ASK_UNINVITE: pack_text(&q, "n8"); break;
    case ASK_FOLLOW: pack_u8(&q, 1); break;
    case ASK_CHECKSUM:
    case ASK_ROTATE: pack_u64(&q, 0); break;
    case ASK_ADVERTISE: pack_text(&q, "127.0.0.1:2"); break;
    case ASK_CERTIFY:
    case ASK_RENEW: pack_text(&q, "-----BEGIN"); break;
    case ASK_REPLACE:
      pack_u64(&q, 9);
      pack_u64(&q, 9);
      pack_text(&q, "127.0.0.1:3");
      break;
    default: break;
    }
    pack_request(&p, ask == ASK_JOIN ? 1 : 0, &q);
    pack_u8(&p, 11);
  }
  seed(p.data, p.len);
  free(p.data);
  free(q.data);
}

/* The peer is heard of, then what it wants of itself, in turn. */
static void seed_changes(void (*seed)(const void *data, size_t size))
{
  static const uint8_t heard[] = {7, 7, 0, 0, 0, 0, 0, 0, 0, 0};
  struct packer p = {0}, q = {0};
  for (uint8_t what = MEMBER_PROMOTE; what <= MEMBER_TRANSFER; what++) {
    p.len = q.len = 0;
    pack_u8(&p, 1);
    pack_bytes(&p, heard, sizeof(heard));
    member_pack_change(&q, what, 0, 0, what == MEMBER_TRANSFER ? "n1" : "n7");
    pack_request(&p, 0, &q);
    pack_u8(&p, 11);
    pack_request(&p, 0, &q);
    pack_u8(&p, 11);
    seed(p.data, p.len);
  }
  free(p.data);
  free(q.data);
}

/* Somebody is invited, and comes. */
static void seed_join(void (*seed)(const void *data, size_t size))
{
  struct tls_token token = {.name = "n8", .secret = "secret"};
  struct packer p = {0}, q = {0};
  struct tls_error error;
  uint8_t digest[32];
  char *request, *key;
  must(tls_digest(token.secret, sizeof(token.secret), digest, &error) == 0);
  must(tls_make_request(&request, &key, &error) == 0);
  pack_u8(&p, 1);
  pack_u8(&q, ASK_INVITE);
  pack_text(&q, "n8");
  pack_u8(&q, RAFT_LEARNER);
  pack_text(&q, "n7");
  pack_bytes(&q, digest, sizeof(digest));
  pack_request(&p, 0, &q);
  pack_u8(&p, 11);
  q.len = 0;
  cluster_pack_join(&q, &token, "127.0.0.1:2", request, "");
  pack_request(&p, 1, &q);
  pack_bytes(&p, "\13\13\14\4\13", 5);
  pack_request(&p, 1, &q);
  seed(p.data, p.len);
  tls_free_text(request);
  tls_free_text(key);
  free(p.data);
  free(q.data);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  /* Small transactions, one of three parts, a setting. */
  static const uint8_t applies[] = {
      1, 10, 5, 64 | 1, 1, 9,   2, 3,       11, 5, 1,        2,  0,   4,   5,
      5, 17, 2, 0,      6, 7,   5, 64 | 32, 2,  9, 8,        11, 4,   4,   11,
      0, 2,  0, 0,      0, 'a', 0, 1,       1,  0, 0,        0,  'x', 11,  7,
      6, 0,  0, 0,      0, 0,   0, 0,       0,  5, 64 | 128, 3,  200, 255, 11};
  /* Borrows the lock, writes, gives it back; and lends it. */
  static const uint8_t borrows[] = {
      0,  3,  1,  0, 8, 0, 1, 0, 0,  0, 0,  0, 0, 0, 11, 13, 0, 64, 1, 9, 3,
      11, 13, 0,  1, 2, 0, 4, 5, 13, 0, 80, 2, 8, 3, 11, 13, 3, 64, 1, 9, 3,
      13, 20, 64, 1, 9, 3, 3, 4, 0,  8, 0,  3, 0, 0, 0,  0,  0, 0,  0, 11};
  static const uint8_t lends[] = {1, 10, 11, 3,  2, 1, 8, 0, 4, 0, 0, 0, 0,
                                  0, 0,  0,  11, 3, 3, 1, 0, 0, 3, 6, 1, 8,
                                  0, 0,  0,  0,  0, 0, 0, 0, 0, 3, 7, 1, 8,
                                  0, 0,  0,  0,  0, 0, 0, 0, 0, 11};
  /* Gives a snapshot: offered, opened, pages with hashes, done. */
  static const uint8_t gives[] = {
      1, 14, 11, 8, 128, 0, 0,  0, 1, 0, 17, 11, 0, 17, 0,  18, 0,  0, 0,
      0, 0,  0,  0, 0,   1, 0,  0, 0, 3, 0,  0,  0, 0,  25, 0,  18, 0, 0,
      0, 0,  0,  0, 0,   0, 2,  0, 0, 0, 1,  0,  0, 0,  9,  9,  9,  9, 9,
      9, 9,  9,  0, 9,   0, 19, 0, 0, 0, 0,  0,  0, 0,  0,  11};
  /* A snapshot: offered, its head, its pages. */
  static const uint8_t takes[] = {1, 10, 11, 9, 11,  8,   128, 0,  0,  2, 0,
                                  8, 0,  11, 8, 128, 255, 4,   11, 11, 11};
  /* The same, broken off; who gives it then has pages of half the size. */
  static const uint8_t shrinks[] = {1,  10, 11, 9,   12,  0, 11, 8,  128, 0,
                                    0,  2,  0,  8,   0,   8, 0,  0,  0,   11,
                                    12, 9,  11, 8,   128, 4, 0,  2,  0,   16,
                                    0,  11, 8,  128, 255, 4, 11, 12, 9,   11};

  world_begin();
  seed_requests(seed);
  seed(applies, sizeof(applies));
  seed(borrows, sizeof(borrows));
  seed(lends, sizeof(lends));
  seed(gives, sizeof(gives));
  seed_changes(seed);
  seed_join(seed);
  seed(takes, sizeof(takes));
  seed(shrinks, sizeof(shrinks));
}
