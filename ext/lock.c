/*
** lock.c: the cluster's write lock: lent by the leader to one node at a time.
**
** A node whose connections want to write asks the leader (ASK), which grants
** the lock in the order of asking (GRANT: a number, and the index that must be
** applied before it is used, which covers all that was appended until then).
** The borrower writes as a leader would, and posts each part of its
** transactions to the leader (WRITE, numbered within the grant), which appends
** them while that grant is in force. They come back by the log, and there the
** borrower learns their fate.
**
** The lock stays where it is until somebody else asks. Then the leader recalls
** it (RECALL): those that wait on the holder at that moment have their turn,
** then it is given back (RETURN: the number of writes under it). The leader's
** own connections queue like those of any node.
**
**     borrower                        leader
**        |------------ ASK ------------>|  behind the others in the queue
**        |<- GRANT number, from --------|
**        |    (applied >= from)         |
**        |-- WRITE number, 1 ---------->|  appended
**        |-- WRITE number, 2 ---------->|
**        |<-------- RECALL number ------|  somebody else asks
**        |-- WRITE number, 3 ---------->|
**        |-- RETURN number, 3 --------->|  all 3 are there: the next one's
**
** Why no write is lost, doubled or misplaced:
**
** L1 Only the leader of a term grants, and what it granted ends with its term.
**    A write names term and number; it is appended only under that grant.
** L2 Writes under a grant are appended in their order, without a gap: a number
**    seen before is dropped, so they may be sent again after a connection was
**    lost; one that comes too early is dropped, and sent again.
** L3 A new grant is given when all writes under the one before are in the log:
**    given back whole, or voided (VOID: how many were taken, no more will be).
** L4 A borrower uses a grant when everything before it is applied here; by then
**    it knows the fate of all that it wrote under earlier ones.
** L5 A borrower takes up a grant once. Told of it again when it was given back or
**    lost, it refuses: others may write, and its own writes would be counted from
**    1 again (L2).
**
** Before leadership is handed over the lock is taken back in the same way: by L1
** a grant ends with its term, and with it what is written under it just then.
**
** A holder that gives no sign of life for an election timeout while others wait
** loses the lock. One that lives keeps it as long as its transaction takes.
**
** Messages: u8 kind, u64 term, u64 number, then the fields below.
*/
#include "lock.h"
#include "node.h"

#include <assert.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

enum {
  LEND_ASK = 1, /* u64 which start of the asking process */
  LEND_GRANT,   /* u64 from */
  LEND_RECALL,
  LEND_RETURN, /* u64 count, or UNKNOWN */
  LEND_WRITE,  /* u64 position, u8 type, u64 checksum, the body */
  LEND_TAKEN,  /* u64 count: need not be kept */
  LEND_VOID    /* u64 count: no more will be taken */
};

#define UNKNOWN UINT64_MAX      /* writes under a grant not heard of */
#define AGAIN_MS 200            /* what may be lost is told again */
#define UNSEEN_BYTES (4u << 20) /* of writes that the leader may not have */
#define WRITES_MS 1000          /* no write for so long: only lying there */

static void post(struct node *node, raft_id to, uint8_t kind, raft_term term,
                 uint64_t number, uint64_t field)
{
  uint8_t bytes[25] = {kind};
  struct iovec part = {bytes, kind == LEND_RECALL ? 17 : 25};
  memcpy(bytes + 1, &term, 8);
  memcpy(bytes + 9, &number, 8);
  memcpy(bytes + 17, &field, 8);
  net_post(node->net, to, &part, 1);
}

static raft_term term_of(const struct node *node)
{
  return node->view.term; /* only this thread changes it */
}

static bool leads(const struct node *node)
{
  return node->view.role == RAFT_LEADER;
}

/* For people. */
static const char *name_of(const struct node *node, raft_id id)
{
  const struct raft_member *m =
      raft_configuration_find(raft_configuration(node->raft, NULL), id);
  return m ? m->name : "a node that was removed";
}

/* A connection of this node waits to write. */
static bool wants(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool any = (node->places || node->upgrading) && !node->stopping;
  pthread_mutex_unlock(&node->mutex);
  return any;
}

/* It may be long until what is committed is applied here: the lock would be of
   no use, and nobody else could write. */
static bool stands_still(const struct node *node)
{
  return node->apply_full || node->fetch || full_log(node) ||
         !atomic_load(&node->settled);
}

/* Nobody of this node writes, and nobody will before the lock is given back:
   then the node may not write any more. */
static bool give_up_turns(struct node *node)
{
  bool still = stands_still(node);
  pthread_mutex_lock(&node->mutex);
  bool idle =
      node->proposals == NULL &&
      (writer_is_over(node) || (still && !node->can_write && !node->writer));
  if (idle) {
    node->can_write = node->recalled = false;
    writer_note(node);
  }
  pthread_mutex_unlock(&node->mutex);
  return idle;
}

/* ---- the leader -------------------------------------------------------- */

static struct lock_account *account_of(struct lock_lender *l, raft_id id)
{
  struct lock_account *oldest = &l->accounts[0];
  for (unsigned i = 0; i < RAFT_MEMBERS_MAX; i++) {
    if (l->accounts[i].node == id) return &l->accounts[i];
    if (l->accounts[i].number < oldest->number) oldest = &l->accounts[i];
  }
  *oldest = (struct lock_account){.node = id};
  return oldest;
}

static bool in_queue(const struct lock_lender *l, raft_id id)
{
  for (unsigned i = 0; i < l->n_queue; i++)
    if (l->queue[i] == id) return true;
  return false;
}

static void enqueue(struct lock_lender *l, raft_id id)
{
  if (!in_queue(l, id) && l->n_queue < RAFT_MEMBERS_MAX)
    l->queue[l->n_queue++] = id;
}

static raft_id dequeue(struct lock_lender *l)
{
  raft_id id = l->queue[0];
  l->n_queue--;
  memmove(l->queue, l->queue + 1, l->n_queue * sizeof(l->queue[0]));
  return id;
}

static void set_yields(struct node *node, bool yields)
{
  struct lock_lender *l = &node->lock.lender;
  if (!yields) l->moving = false;
  if (l->yields == yields) return;
  l->yields = yields;
  pthread_mutex_lock(&node->mutex);
  node->yielding = yields;
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

/* The holder's grant ends here, whatever it has sent. */
static void void_grant(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_account *account = account_of(l, l->holder);
  post(node, l->holder, LEND_VOID, l->term, l->number, account->accepted);
  /* It may not even be there. */
  if (l->yields && l->heir == l->holder) set_yields(node, false);
  l->holder = 0;
}

static void grant(struct node *node, raft_id to, uint64_t start)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_account *account = account_of(l, to);
  account->number = ++l->number;
  account->accepted = account->appended = 0;
  account->start = start;
  l->holder = to;
  l->recalled = false;
  l->told_at = clock_monotonic_ms();
  l->from = raft_last(node->raft);
  if (to == node->identity.id)
    node_progressed(node);
  else
    post(node, to, LEND_GRANT, l->term, l->number, l->from);
}

/* Of the leader's own connections: their turn is over when those that wait now
   have had it. */
static bool take_back_own(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  bool again;
  pthread_mutex_lock(&node->mutex);
  if (!node->recalled) writer_recall(node);
  pthread_mutex_unlock(&node->mutex);
  if (!give_up_turns(node)) return false;
  again = wants(node);
  l->holder = 0;
  if (again) enqueue(l, node->identity.id);
  return true;
}

/* Leadership follows who has had the lock, and used it, for three quarters of
   a minute (node_limits.follow_ms), as a clock counts it: ticks come late. */
static void follow_writer(struct node *node, uint64_t now)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_account *account = account_of(l, l->holder);
  bool remote = l->holder != 0 && l->holder != node->identity.id;
  uint64_t passed = l->looked_at ? now - l->looked_at : 0;
  l->looked_at = now;
  if (now - l->counts_from >= node_limits.follow_ms) {
    for (unsigned i = 0; i < RAFT_MEMBERS_MAX; i++)
      l->accounts[i].held = 0;
    l->counts_from = now;
  }
  if (!remote || now - l->wrote_at > WRITES_MS) return;
  account->held += passed < WRITES_MS ? passed : WRITES_MS;
  if (account->held < node_limits.follow_ms / 4 * 3 ||
      !cluster_follows_writer(node))
    return;
  account->held = 0;
  if (l->yields) return;
  events_add(&node->events, "leadership follows the writer");
  l->heir = l->holder;
  l->yield_by = UINT64_MAX;
  set_yields(node, true);
}

void lock_yield(struct node *node, raft_id to, unsigned ms)
{
  struct lock_lender *l = &node->lock.lender;
  uint64_t by = clock_monotonic_ms() + ms;
  if (!leads(node) || l->moving) return;
  if (node->applied < node->lead_from) by = 0; /* nobody has had it yet */
  if (!l->yields || by < l->yield_by) l->yield_by = by;
  l->heir = to;
  set_yields(node, true);
}

/* Nobody has the lock, or for too long: leadership goes to the heir. True: it
   will not, the lock can be lent again. */
static bool hand_over(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  struct raft_event event = {.type = RAFT_EVENT_TRANSFER};
  if (!l->moving) {
    event.u.transfer_to = l->heir;
    l->moving = node_step(node, &event) == 0;
  }
  if (l->moving && raft_transferring(node->raft) != 0) return false;
  set_yields(node, false);
  return true;
}

/* True when something changed that may allow more. */
static bool lend(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  raft_id self = node->identity.id;
  bool asked = l->n_queue > 0 || l->yields;
  if (l->holder == self) return asked && take_back_own(node);
  if (l->holder != 0) {
    if (wants(node)) enqueue(l, self);
    if ((asked || l->n_queue > 0) && !l->recalled) {
      l->recalled = true;
      l->told_at = clock_monotonic_ms();
      post(node, l->holder, LEND_RECALL, l->term, l->number, 0);
    }
    return false;
  }
  /* What was taken under the grant before must be in the log first (L3). */
  pthread_mutex_lock(&node->mutex);
  bool all = node->proposals == NULL;
  pthread_mutex_unlock(&node->mutex);
  if (!all) return false;
  if (l->yields) return hand_over(node);
  raft_id next = l->n_queue ? dequeue(l) : self;
  grant(node, next, account_of(l, next)->asking);
  return true;
}

static void on_ask(struct node *node, raft_id from, uint64_t start)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_account *account = account_of(l, from);
  if (!raft_configuration_find(raft_configuration(node->raft, NULL), from))
    return;
  account->asking = start;
  if (l->holder != from) {
    enqueue(l, from);
  } else if (account->start == start && account->accepted == 0) {
    /* It has not heard of it; if it had, it would not ask. */
    post(node, from, LEND_GRANT, l->term, l->number, l->from);
  } else {
    /* Another process has started there; or this one has forgotten the grant,
       and would count its writes from 1 again. */
    void_grant(node);
    enqueue(l, from);
  }
}

static void on_return(struct node *node, raft_id from, uint64_t number,
                      uint64_t count)
{
  struct lock_lender *l = &node->lock.lender;
  if (l->holder != from || l->number != number) return;
  if (count == UNKNOWN)
    void_grant(node);
  else if (account_of(l, from)->accepted == count)
    l->holder = 0;
}

/* A part of a transaction, as its origin may send it; NULL: it may not. */
static struct proposal *parse_write(struct node *node, raft_id from,
                                    struct parser *p)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  uint8_t type = parse_u8(p);
  uint64_t checksum = parse_u64(p);
  size_t len = p->bad ? 0 : (size_t)(p->end - p->at);
  struct proposal *write = calloc(1, sizeof(*write));
  struct raft_body *body = raft_body_new(len);
  if (write == NULL || body == NULL || p->bad || len > RAFT_BODY_MAX) goto fail;
  memcpy(body->data, parse_bytes(p, len), len);
  body->checksum = checksum;
  if (!raft_body_intact(body) || node->wal == NULL ||
      !tx_parse(body, node->wal->page_size, &head, &pgnos, &pages) ||
      head.node != from ||
      !((type == RAFT_COMMIT && head.n_page != 0) ||
        (type == RAFT_PAGES && head.n_page == 0)))
    goto fail;
  write->type = type;
  write->body = body;
  return write;
fail:
  raft_body_unref(body);
  free(write);
  return NULL;
}

static void on_write(struct node *node, raft_id from, uint64_t number,
                     struct parser *p)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_account *account = account_of(l, from);
  uint64_t position = parse_u64(p);
  if (l->holder != from || l->number != number) {
    if (account->number == number && position > account->accepted)
      post(node, from, LEND_VOID, l->term, number, account->accepted);
    return;
  }
  if (position != account->accepted + 1) { /* L2 */
    /* Sent again: it may not have heard what was taken. */
    if (position <= account->accepted && account->appended > 0)
      post(node, from, LEND_TAKEN, l->term, number, account->appended);
    return;
  }
  struct proposal *write = parse_write(node, from, p);
  if (write == NULL) {
    events_add(&node->events, "a write of %s is refused", name_of(node, from));
    void_grant(node);
    return;
  }
  write->grant = (struct grant){.term = l->term, .number = number};
  write->position = account->accepted = position;
  l->wrote_at = clock_monotonic_ms();
  pthread_mutex_lock(&node->mutex);
  *node->proposals_tail = write;
  node->proposals_tail = &write->next;
  node->proposals_bytes += write->body->len;
  pthread_mutex_unlock(&node->mutex);
}

/* The holder, when others wait: does it live, and does it know? */
static void watch_holder(struct node *node, uint64_t now)
{
  struct lock_lender *l = &node->lock.lender;
  struct raft_progress progress;
  if (l->holder == 0 || l->holder == node->identity.id || l->n_queue == 0)
    return;
  if (!raft_progress(node->raft, l->holder, &progress) ||
      now - progress.last_contact > node->identity.election_timeout_ms) {
    events_add(&node->events,
               "%s had the write lock and is silent: it loses it",
               name_of(node, l->holder));
    void_grant(node);
  } else if (l->recalled && now - l->told_at >= AGAIN_MS) {
    l->recalled = false; /* to be told again */
  }
}

/* ---- the borrower ------------------------------------------------------ */

static void free_write(struct proposal *write)
{
  raft_body_unref(write->body);
  free(write);
}

/* Writes of one grant up to a position need not be kept. */
static void forget_writes(struct lock_borrower *b, const struct grant *grant,
                          uint64_t last)
{
  while (b->writes && b->writes->grant.term == grant->term &&
         (b->writes->grant.number < grant->number ||
          (b->writes->grant.number == grant->number &&
           b->writes->position <= last))) {
    struct proposal *write = b->writes;
    b->writes = write->next;
    b->bytes -= write->body->len;
    free_write(write);
  }
  if (b->writes == NULL) b->writes_tail = &b->writes;
}

static void drop_writes(struct lock_borrower *b)
{
  while (b->writes) {
    struct proposal *write = b->writes;
    b->writes = write->next;
    free_write(write);
  }
  b->writes_tail = &b->writes;
  b->bytes = 0;
}

static bool send_write(struct node *node, const struct proposal *write)
{
  uint8_t head[34] = {LEND_WRITE};
  struct iovec parts[2] = {{head, sizeof(head)},
                           {write->body->data, write->body->len}};
  memcpy(head + 1, &write->grant.term, 8);
  memcpy(head + 9, &write->grant.number, 8);
  memcpy(head + 17, &write->position, 8);
  head[25] = write->type;
  memcpy(head + 26, &write->body->checksum, 8);
  return net_post(node->net, node->view.leader, parts, 2);
}

/* The oldest proposal of this grant, taken off the queue; NULL: none. */
static struct proposal *next_write(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  pthread_mutex_lock(&node->mutex);
  struct proposal *write = node->proposals;
  if (write) {
    node->proposals = write->next;
    if (node->proposals == NULL) node->proposals_tail = &node->proposals;
    node->proposals_bytes -= write->body->len;
    write->next = NULL;
    write->position = ++b->sent;
    if (write->type == RAFT_COMMIT) write->tx->position = b->sent;
    pthread_cond_broadcast(&node->changed); /* there is room for more */
  }
  pthread_mutex_unlock(&node->mutex);
  return write;
}

static void send_writes(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  struct proposal *write;
  while (b->bytes < UNSEEN_BYTES && (write = next_write(node)) != NULL) {
    *b->writes_tail = write;
    b->writes_tail = &write->next;
    b->bytes += write->body->len;
    if (b->unsent || !send_write(node, write)) b->unsent = true;
  }
}

/* What may not have arrived goes once more, in its order. */
static void send_again(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  bool sent = node->view.leader != 0;
  for (struct proposal *w = b->writes; sent && w; w = w->next)
    sent = send_write(node, w);
  b->unsent = !sent;
  if (sent && b->returned_number && b->returned_term == term_of(node))
    post(node, node->view.leader, LEND_RETURN, b->returned_term,
         b->returned_number, b->returned_count);
}

static void give_back(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  b->returned_term = b->term;
  b->returned_number = b->number;
  b->returned_count = b->sent;
  b->number = 0;
  b->asked_at = 0;
  post(node, node->view.leader, LEND_RETURN, b->returned_term,
       b->returned_number, b->returned_count);
}

static void borrow(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  raft_id leader = node->view.leader;
  uint64_t now = clock_monotonic_ms();
  if (b->number != 0) {
    send_writes(node);
    pthread_mutex_lock(&node->mutex);
    bool ends = node->failed || node->stopping, recalled = node->recalled;
    pthread_mutex_unlock(&node->mutex);
    if (ends) node_lose_grant(node, false);
    if (ends || (recalled && !b->unsent && give_up_turns(node)))
      give_back(node);
  }
  if (b->number != 0 || leader == 0 || node->failed || stands_still(node) ||
      !wants(node))
    return;
  if (b->asked_at && b->asked_term == term_of(node) &&
      now - b->asked_at < AGAIN_MS)
    return;
  b->asked_at = now;
  b->asked_term = term_of(node);
  post(node, leader, LEND_ASK, b->asked_term, 0, node->started);
}

/* The lock is not here, whatever the leader thinks: it must not wait for it to be
   given back. What was given back later is told again. */
static void refuse_grant(struct node *node, uint64_t number)
{
  struct lock_borrower *b = &node->lock.borrower;
  if (b->returned_number < number) {
    b->returned_term = term_of(node);
    b->returned_number = number;
    b->returned_count = UNKNOWN;
  }
  if (b->heard < number) b->heard = number;
  send_again(node);
}

static void on_grant(struct node *node, uint64_t number, raft_index from)
{
  struct lock_borrower *b = &node->lock.borrower;
  if (b->number == number) return;
  if (number <= b->heard) { /* L5 */
    refuse_grant(node, number);
    b->asked_at = 0;
    return;
  }
  if (b->number != 0) lock_overtaken(node);
  b->heard = number;
  b->term = term_of(node);
  b->number = number;
  b->from = from;
  b->sent = 0;
  b->asked_at = 0;
  pthread_mutex_lock(&node->mutex);
  node->recalled = false;
  pthread_mutex_unlock(&node->mutex);
  node_progressed(node);
}

static void on_recall(struct node *node, uint64_t number)
{
  struct lock_borrower *b = &node->lock.borrower;
  if (b->number != number) {
    /* Never heard of, or this process is another one than that which had it. */
    refuse_grant(node, number);
    return;
  }
  pthread_mutex_lock(&node->mutex);
  if (!node->recalled) writer_recall(node);
  pthread_mutex_unlock(&node->mutex);
}

static void on_void(struct node *node, uint64_t number, uint64_t accepted)
{
  struct lock_borrower *b = &node->lock.borrower;
  struct grant grant = {.term = term_of(node), .number = number};
  if (b->number == number) {
    b->number = 0;
    b->asked_at = 0;
    node_lose_grant(node, false);
  }
  if (b->heard < number) b->heard = number;
  apply_reject_after(node, &grant, accepted);
  forget_writes(b, &grant, UINT64_MAX);
}

/* ---- both -------------------------------------------------------------- */

void lock_init(struct node *node)
{
  memset(&node->lock, 0, sizeof(node->lock));
  node->lock.borrower.writes_tail = &node->lock.borrower.writes;
}

void lock_clear(struct node *node)
{
  drop_writes(&node->lock.borrower);
}

void lock_term(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  struct lock_borrower *b = &node->lock.borrower;
  node_lose_grant(node, true);
  drop_writes(b);
  b->number = b->asked_at = 0;
  b->unsent = false;
  b->returned_number = b->heard = 0;
  set_yields(node, false);
  memset(l, 0, sizeof(*l));
  if (!leads(node)) return;
  l->term = term_of(node);
  l->number = 1;
  l->holder = node->identity.id;
  l->from = node->lead_from;
}

bool lock_held(const struct node *node, raft_index *from)
{
  const struct lock_lender *l = &node->lock.lender;
  const struct lock_borrower *b = &node->lock.borrower;
  bool own = leads(node);
  *from = own ? l->from : b->from;
  return own ? l->holder == node->identity.id : b->number != 0;
}

uint64_t lock_number(const struct node *node)
{
  return leads(node) ? node->lock.lender.number : node->lock.borrower.number;
}

void lock_pump(struct node *node)
{
  if (node->wal == NULL || node->closing) return;
  struct lock_lender *l = &node->lock.lender;
  if (!leads(node))
    borrow(node);
  else if (l->yields && clock_monotonic_ms() >= l->yield_by)
    hand_over(node);
  else if (node->applied >= node->lead_from)
    for (int i = 0; i < RAFT_MEMBERS_MAX && leads(node) && lend(node); i++)
      ;
}

void lock_tick(struct node *node, uint64_t now)
{
  if (node->wal == NULL || node->closing) return;
  if (leads(node)) {
    watch_holder(node, now);
    follow_writer(node, now);
  } else if (node->lock.borrower.unsent) {
    send_again(node);
  }
}

void lock_up(struct node *node, raft_id peer)
{
  raft_id leader = node->view.leader;
  if (leads(node) || (leader != 0 && leader != peer)) return;
  /* Should it lead again in a moment, the term is the same, and what was on its
     way to it is lost all the same. */
  node->lock.borrower.unsent = true;
  send_again(node);
}

void lock_overtaken(struct node *node)
{
  struct lock_borrower *b = &node->lock.borrower;
  struct grant grant = {.term = b->term, .number = b->number};
  if (b->number != 0) forget_writes(b, &grant, UINT64_MAX);
  b->number = b->asked_at = 0;
  node_lose_grant(node, false);
}

void lock_appended(struct node *node, const struct proposal *write)
{
  struct lock_lender *l = &node->lock.lender;
  for (unsigned i = 0; i < RAFT_MEMBERS_MAX; i++) {
    struct lock_account *account = &l->accounts[i];
    if (account->number != write->grant.number) continue;
    account->appended = write->position;
    if (write->type == RAFT_PAGES)
      post(node, account->node, LEND_TAKEN, l->term, account->number,
           account->appended);
    return;
  }
}

void lock_void_own(struct node *node)
{
  struct lock_lender *l = &node->lock.lender;
  if (!leads(node) || l->holder != node->identity.id) return;
  node_lose_grant(node, false);
  l->holder = 0;
}

void lock_confirmed(struct node *node, const struct transaction *tx)
{
  forget_writes(&node->lock.borrower, &tx->grant, tx->position);
}

void lock_posted(struct node *node, raft_id from, const uint8_t *body,
                 size_t len)
{
  struct parser p = parser_of(body, len);
  uint8_t kind = parse_u8(&p);
  raft_term term = parse_u64(&p);
  uint64_t number = parse_u64(&p);
  bool to_leader =
      kind == LEND_ASK || kind == LEND_RETURN || kind == LEND_WRITE;
  if (p.bad || term != term_of(node) || to_leader != leads(node) ||
      (!to_leader && from != node->view.leader))
    return; /* of another time */
  if (kind == LEND_WRITE) {
    on_write(node, from, number, &p);
    return;
  }
  uint64_t field = kind == LEND_RECALL ? 0 : parse_u64(&p);
  if (!parser_done(&p)) return;
  struct grant grant = {.term = term, .number = number};
  switch (kind) {
  case LEND_ASK: on_ask(node, from, field); break;
  case LEND_RETURN: on_return(node, from, number, field); break;
  case LEND_GRANT: on_grant(node, number, field); break;
  case LEND_RECALL: on_recall(node, number); break;
  case LEND_TAKEN: forget_writes(&node->lock.borrower, &grant, field); break;
  case LEND_VOID: on_void(node, number, field); break;
  default: break;
  }
}
