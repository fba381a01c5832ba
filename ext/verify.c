/*
** verify.c: quorate_verify(): do all nodes have the same pages?
**
** The leader proposes the setting "verify" with a fresh number. Where the
** entry is applied, and there only, a node's database is what every other
** node's is: each pins an image at that moment (the loop), and a thread of its
** own computes XXH3-64 over all of its pages (the verifier). No byte of them
** is a node's own: byte 18 is 3 everywhere, counters in page 1 are replicated
** like any other byte, the page of SQLite's lock bytes counts as zeros.
**
** Whoever asked polls all members for their progress, until each has a sum or
** is given up: one that does not answer soon, one that answers and gets on
** long.
**
** An open image keeps the WAL from beginning anew. It is closed when the sum
** is known, when the node stops, when another verification begins, and when
** nobody has asked for it for a while: so a node that applies the entry late,
** after an absence, works for nobody for that long at most. A node that starts
** with the entry already applied has no sum, and says so.
*/
#include "cluster.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <xxhash.h>

#define SETTING "verify"
#define READ_BYTES (1u << 20)
#define IDLE_MS 30000  /* nobody asks: given up */
#define POLL_MS 2000   /* for one answer of a member */
#define ABSENT_MS 4000 /* without any answer: unreachable */
#define STALL_MS 30000 /* without progress */
#define AGREE_MS 8000  /* the same, before it has applied the entry */
#define PAUSE_MS 200   /* longest between two rounds of questions */
#define TRIES 5

/* What a node tells of one verification. */
enum { SUM_AWAITED, SUM_RUNNING, SUM_DONE, SUM_FAILED, SUM_REPLACED, SUM_NONE };

/* ---- each node: the verifier ------------------------------------------- */

/* The slot of a verification, or NULL. Mutex held. */
static struct verification *find(struct node *node, uint64_t number)
{
  for (int i = 0; i < VERIFICATIONS; i++)
    if (node->verifier.slots[i].number == number)
      return &node->verifier.slots[i];
  return NULL;
}

/* True while the sum is wanted; notes how far it is. */
static bool note_pages(struct node *node, uint64_t number, uint32_t pages)
{
  pthread_mutex_lock(&node->mutex);
  struct verification *v = find(node, number);
  bool wanted =
      v && !node->stopping && clock_monotonic_ms() - v->asked < IDLE_MS;
  if (v) v->pages = pages;
  pthread_mutex_unlock(&node->mutex);
  return wanted;
}

static int sum_pages(struct node *node, const struct image *image,
                     uint64_t number, uint64_t *sum, struct text *error)
{
  uint32_t page_size = image->wal->page_size, step = READ_BYTES / page_size;
  XXH3_state_t *state = XXH3_createState();
  uint8_t *page = malloc(page_size);
  int rc = state && page ? 0 : -ENOMEM;
  if (rc == 0) XXH3_64bits_reset(state);
  for (uint32_t pgno = 1; rc == 0 && pgno <= image->n_page; pgno++) {
    rc = image_read(image, pgno, page);
    if (rc) {
      text_set(error, "page %u: %s", pgno, errno_text(-rc).s);
      break;
    }
    XXH3_64bits_update(state, page, page_size);
    if (pgno % step == 0 && !note_pages(node, number, pgno)) rc = -ECANCELED;
  }
  if (rc == -ENOMEM) text_set(error, "out of memory");
  if (rc == -ECANCELED) text_set(error, "given up: nobody asked for it");
  if (rc == 0) *sum = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  free(page);
  return rc;
}

static void verify_one(struct node *node, struct image *image, uint64_t number)
{
  struct text error = {"out of memory"};
  uint64_t sum = 0;
  int rc = image_list(image);
  if (rc)
    text_set(&error, "%s",
             rc == -EBADMSG ? "somebody has written over the database"
                            : errno_text(-rc).s);
  if (rc == 0) rc = sum_pages(node, image, number, &sum, &error);
  image_close(image);
  free(image);
  pthread_mutex_lock(&node->mutex);
  struct verification *v = find(node, number);
  if (v) {
    v->state = rc ? SUM_FAILED : SUM_DONE;
    v->checksum = sum;
    v->error = error;
  }
  pthread_mutex_unlock(&node->mutex);
}

/* The oldest one that has not begun, or NULL. Mutex held. */
static struct verification *next_one(struct node *node)
{
  struct verification *first = NULL;
  for (int i = 0; i < VERIFICATIONS; i++) {
    struct verification *v = &node->verifier.slots[i];
    if (v->image && (first == NULL || v->index < first->index)) first = v;
  }
  return first;
}

static void *verifier_main(void *arg)
{
  struct node *node = arg;
  pthread_mutex_lock(&node->mutex);
  while (!node->stopping) {
    struct verification *v = next_one(node);
    if (v == NULL) {
      pthread_cond_wait(&node->verifier.cond, &node->mutex);
      continue;
    }
    struct image *image = v->image;
    uint64_t number = v->number;
    v->image = NULL;
    pthread_mutex_unlock(&node->mutex);
    verify_one(node, image, number);
    pthread_mutex_lock(&node->mutex);
  }
  pthread_mutex_unlock(&node->mutex);
  return NULL;
}

/* Takes over `image` in the oldest slot; the one that still waited there is
   returned. Mutex held. */
static struct image *begin_sum(struct node *node, uint64_t number,
                               raft_index index, struct image *image)
{
  struct verifier *verifier = &node->verifier;
  struct verification *v = &verifier->slots[0];
  for (int i = 1; i < VERIFICATIONS; i++)
    if (verifier->slots[i].index < v->index) v = &verifier->slots[i];
  struct image *old = v->image;
  *v = (struct verification){.image = image,
                             .number = number,
                             .index = index,
                             .state = SUM_RUNNING,
                             .n_page = image ? image->n_page : 0,
                             .asked = clock_monotonic_ms()};
  if (image && !verifier->started)
    verifier->started =
        pthread_create(&verifier->thread, NULL, verifier_main, node) == 0;
  if (image == NULL || !verifier->started) {
    v->state = SUM_FAILED;
    text_set(&v->error, "no memory, or no thread");
  }
  pthread_cond_signal(&verifier->cond);
  return old;
}

void verify_apply(struct node *node, const struct raft_entry *entry)
{
  struct parser p = parser_of(entry->body->data, entry->body->len);
  uint64_t number;
  size_t n;
  bool ours = strcmp(parse_text(&p), SETTING) == 0;
  parse_u8(&p);
  const uint8_t *value = parse_blob(&p, &n);
  /* At start entries are folded: no state is that of one of them. */
  if (!ours || n != sizeof(number) || !node->raft || !node->wal) return;
  memcpy(&number, value, sizeof(number));
  struct image *image = calloc(1, sizeof(*image));
  if (image && image_pin(node->wal, "quorate_verify", image) == 0) {
    image_of_node(image);
  } else {
    free(image);
    image = NULL;
  }
  pthread_mutex_lock(&node->mutex);
  struct image *old = begin_sum(node, number, entry->index, image);
  pthread_mutex_unlock(&node->mutex);
  if (old) image_close(old);
  free(old);
}

void verify_stop(struct node *node)
{
  struct verifier *verifier = &node->verifier;
  pthread_mutex_lock(&node->mutex);
  bool started = verifier->started;
  verifier->started = false;
  pthread_cond_signal(&verifier->cond);
  pthread_mutex_unlock(&node->mutex);
  if (started) pthread_join(verifier->thread, NULL);
  for (int i = 0; i < VERIFICATIONS; i++) {
    struct image *image = verifier->slots[i].image;
    if (image) image_close(image);
    free(image);
    verifier->slots[i].image = NULL;
  }
}

/* ---- answers to other nodes (loop thread) ------------------------------ */

static int propose_number(struct node *node, uint64_t *number,
                          raft_index *index)
{
  struct tls_error error;
  if (tls_random(number, sizeof(*number), &error) != 0) return RAFT_ENOMEM;
  *number |= 1; /* never 0 */
  struct raft_body *body =
      settings_encode_change(SETTING, number, sizeof(*number));
  int rc = body ? node_propose(node, RAFT_SETTING, body, index) : RAFT_ENOMEM;
  raft_body_unref(body);
  return rc;
}

const char *verify_begin(struct node *node, struct packer *answer)
{
  uint64_t number = 0;
  raft_index index = 0;
  uint64_t now = clock_monotonic_ms();
  pthread_mutex_lock(&node->mutex);
  for (int i = 0; i < VERIFICATIONS; i++) {
    const struct verification *v = &node->verifier.slots[i];
    /* One that is under way, and that somebody follows, serves both. */
    if (v->state != SUM_RUNNING || now - v->asked > ABSENT_MS) continue;
    number = v->number;
    index = v->index;
  }
  pthread_mutex_unlock(&node->mutex);
  int rc = number ? 0 : propose_number(node, &number, &index);
  if (rc) return raft_strerror(rc);
  pack_u64(answer, number);
  pack_u64(answer, index);
  return NULL;
}

void verify_tell(struct node *node, struct parser *p, struct packer *answer)
{
  static const struct verification none;
  uint64_t number = parse_u64(p);
  raft_index index = parse_u64(p);
  pthread_mutex_lock(&node->mutex);
  struct verification *found = number ? find(node, number) : NULL;
  const struct verification *v = found ? found : &none;
  uint8_t state = found ? v->state : SUM_AWAITED;
  if (found) found->asked = clock_monotonic_ms();
  if (!found && node->applied >= index) {
    state = SUM_NONE;
    for (int i = 0; i < VERIFICATIONS; i++)
      if (node->verifier.slots[i].index > index) state = SUM_REPLACED;
  }
  pack_u8(answer, state);
  pack_u64(answer, node->applied + v->pages);
  pack_u32(answer, v->n_page);
  pack_u64(answer, v->checksum);
  pack_text(answer, v->error.s);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- the one that asks ------------------------------------------------- */

struct member_sum {
  raft_id id;
  char name[RAFT_NAME_MAX];
  struct question *question;
  uint8_t state;
  bool over;             /* no more is expected of it */
  uint64_t heard, moved; /* ms: the newest answer, the newest progress */
  uint64_t progress, checksum;
  uint32_t n_page;
  const char *absent; /* why there is no sum */
  char error[100];
};

struct survey {
  struct node *node;
  uint64_t number;
  raft_index index;
  unsigned n;
  bool replaced;
  struct member_sum members[RAFT_MEMBERS_MAX];
};

static int order(struct survey *s, struct text *error)
{
  struct packer body = {0};
  uint8_t *data;
  size_t len;
  pack_u8(&body, ASK_VERIFY);
  int status = cluster_ask(s->node, body, &data, &len);
  bool ok = status == ANSWER_OK && len == 16;
  if (ok) memcpy(&s->number, data, 8);
  if (ok) memcpy(&s->index, data + 8, 8);
  if (!ok) text_set(error, "%s", data && len ? (char *)data : "no answer");
  free(data);
  return ok ? 0 : -EIO;
}

static void list_members(struct survey *s)
{
  uint64_t now = clock_monotonic_ms();
  pthread_mutex_lock(&s->node->mutex);
  const struct raft_configuration *c = &s->node->members;
  s->n = c->n;
  for (unsigned i = 0; i < c->n; i++) {
    struct member_sum *m = &s->members[i];
    *m =
        (struct member_sum){.id = c->members[i].id, .heard = now, .moved = now};
    memcpy(m->name, c->members[i].name, sizeof(m->name));
  }
  pthread_mutex_unlock(&s->node->mutex);
}

static void take_sum(struct survey *s, struct member_sum *m,
                     const uint8_t *data, size_t len)
{
  struct parser p = parser_of(data, len);
  uint64_t now = clock_monotonic_ms();
  uint8_t state = parse_u8(&p);
  uint64_t progress = parse_u64(&p);
  uint32_t n_page = parse_u32(&p);
  uint64_t checksum = parse_u64(&p);
  const char *error = parse_text(&p);
  if (!parser_done(&p)) return;
  m->heard = now;
  if (m->progress != progress || m->state != state) m->moved = now;
  m->progress = progress;
  m->state = state;
  m->n_page = n_page;
  m->checksum = checksum;
  snprintf(m->error, sizeof(m->error), "%s", error);
  m->over = state != SUM_AWAITED && state != SUM_RUNNING;
  if (state == SUM_REPLACED) s->replaced = true;
  if (state == SUM_NONE) m->absent = "started later";
}

/* Asks everyone who is not done. True: nobody is left. */
static bool ask_round(struct survey *s)
{
  bool all = true;
  for (unsigned i = 0; i < s->n; i++) {
    struct packer body = {0};
    if (s->members[i].over) continue;
    pack_u8(&body, ASK_CHECKSUM);
    pack_u64(&body, s->number);
    pack_u64(&body, s->index);
    s->members[i].question =
        cluster_post(s->node, s->members[i].id, body, POLL_MS);
  }
  for (unsigned i = 0; i < s->n; i++) {
    struct member_sum *m = &s->members[i];
    uint8_t *data;
    size_t len;
    if (m->over) continue;
    int status = cluster_collect(s->node, m->question, &data, &len);
    if (status == ANSWER_OK) take_sum(s, m, data, len);
    free(data);
    uint64_t now = clock_monotonic_ms();
    if (!m->over && now - m->heard > ABSENT_MS) m->absent = "unreachable";
    uint64_t patience = m->state == SUM_RUNNING ? STALL_MS : AGREE_MS;
    if (!m->over && now - m->moved > patience) m->absent = "makes no progress";
    m->over = m->over || m->absent;
    all = all && m->over;
  }
  return all;
}

static int ask_all(struct survey *s, const struct interrupt *interrupt,
                   struct text *error)
{
  long pause_ms = 5;
  while (!ask_round(s) && !s->replaced) {
    struct timespec pause = {0, pause_ms * 1000000};
    if (interrupt->raised(interrupt->ctx)) return -EINTR;
    pthread_mutex_lock(&s->node->mutex);
    bool stopping = s->node->stopping;
    pthread_mutex_unlock(&s->node->mutex);
    if (stopping) {
      text_set(error, "the node is stopped");
      return -ESHUTDOWN;
    }
    nanosleep(&pause, NULL);
    pause_ms = pause_ms * 2 < PAUSE_MS ? pause_ms * 2 : PAUSE_MS;
  }
  return 0;
}

/* ---- what came out ----------------------------------------------------- */

static bool same_sum(const struct member_sum *a, const struct member_sum *b)
{
  return a->state == SUM_DONE && b->state == SUM_DONE &&
         a->checksum == b->checksum && a->n_page == b->n_page;
}

/* The member whose sum most members have, and how many. */
static const struct member_sum *most_common(const struct survey *s, unsigned *n)
{
  const struct member_sum *best = NULL;
  *n = 0;
  for (unsigned i = 0; i < s->n; i++) {
    unsigned same = 0;
    for (unsigned k = 0; k < s->n; k++)
      same += same_sum(&s->members[i], &s->members[k]);
    if (same > *n) {
      *n = same;
      best = &s->members[i];
    }
  }
  return best;
}

__attribute__((format(printf, 2, 3))) static void append(struct text *text,
                                                         const char *format,
                                                         ...)
{
  va_list args;
  size_t n = strlen(text->s);
  va_start(args, format);
  vsnprintf(text->s + n, sizeof(text->s) - n, format, args);
  va_end(args);
}

static void describe_absent(const struct survey *s, struct text *answer)
{
  for (unsigned i = 0; i < s->n; i++)
    if (s->members[i].absent)
      append(answer, ", %s %s", s->members[i].name, s->members[i].absent);
}

/* Names those whose sum is another one, or who could not compute any. */
static void describe_bad(const struct survey *s, const struct member_sum *best,
                         unsigned agree, struct text *answer)
{
  const char *comma = "";
  text_set(answer, "index %llu: ", (unsigned long long)s->index);
  for (unsigned i = 0; i < s->n; i++) {
    const struct member_sum *m = &s->members[i];
    if (m->absent || (best && same_sum(m, best))) continue;
    if (m->state == SUM_FAILED)
      append(answer, "%s%s failed: %s", comma, m->name, m->error);
    else
      append(answer, "%s%s differs: %u pages, checksum %016llx", comma, m->name,
             m->n_page, (unsigned long long)m->checksum);
    comma = "; ";
  }
  if (best == NULL) return;
  append(answer, "; %u of %u nodes", agree, s->n);
  for (unsigned i = 0, first = 1; i < s->n; i++) {
    if (!same_sum(&s->members[i], best)) continue;
    append(answer, first ? " (%s" : ", %s", s->members[i].name);
    first = 0;
  }
  append(answer, ") have %u pages, checksum %016llx", best->n_page,
         (unsigned long long)best->checksum);
}

static int conclude(const struct survey *s, struct text *answer)
{
  unsigned agree, absent = 0;
  const struct member_sum *best = most_common(s, &agree);
  for (unsigned i = 0; i < s->n; i++)
    absent += s->members[i].absent != NULL;
  if (absent == s->n) {
    text_set(answer, "not agreed on in time: no quorum");
    return -ETIMEDOUT;
  }
  if (best == NULL || agree + absent < s->n) {
    describe_bad(s, best, agree, answer);
    describe_absent(s, answer);
    return -EBADMSG;
  }
  text_set(answer, "%u of %u nodes agree", agree, s->n);
  describe_absent(s, answer);
  append(answer, ": index %llu, %u pages, checksum %016llx",
         (unsigned long long)s->index, best->n_page,
         (unsigned long long)best->checksum);
  return 0;
}

int verify_run(struct node *node, const struct interrupt *interrupt,
               struct text *answer)
{
  struct survey *s = calloc(1, sizeof(*s));
  int rc = s ? 0 : -ENOMEM;
  if (rc) text_set(answer, "out of memory");
  for (int i = 0; rc == 0 && i < TRIES; i++) {
    s->node = node;
    s->replaced = false;
    rc = interrupt->raised(interrupt->ctx) ? -EINTR : order(s, answer);
    if (rc) break;
    list_members(s);
    rc = ask_all(s, interrupt, answer);
    if (rc || !s->replaced) break;
  }
  if (rc == 0 && s->replaced) {
    text_set(answer, "others were begun again and again: try later");
    rc = -EBUSY;
  }
  if (rc == 0) rc = conclude(s, answer);
  free(s);
  return rc;
}
