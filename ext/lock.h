/*
** lock.h: the cluster's write lock, as a node sees it: lock.c.
**
** Everything here belongs to the loop thread, but for what lock.c writes to the
** node's fields under its mutex (grant, can_write, recalled).
*/
#ifndef EXT_LOCK_H
#define EXT_LOCK_H

#include "raft.h"

#include <stddef.h>

struct node;
struct proposal;
struct transaction;

/* A grant that a node has, or had: how many of its writes the leader took. */
struct lock_account {
  raft_id node;
  uint64_t number;   /* of the newest grant to it; 0: none in this term */
  uint64_t accepted; /* writes under it; */
  uint64_t appended; /* those of them that are in the log */
  uint64_t start;    /* of which process; */
  uint64_t asking;   /* and which asked last */
  uint64_t held;     /* ms with the lock, writing, since counts_from */
};

/* The leader's part; begun anew with each term. */
struct lock_lender {
  raft_term term;
  raft_id holder;                  /* 0: nobody */
  uint64_t number;                 /* of the newest grant in this term */
  raft_index from;                 /* what it rests on */
  bool recalled;                   /* the holder was asked to give it back */
  uint64_t told_at;                /* ms: when it was told something last */
  raft_id queue[RAFT_MEMBERS_MAX]; /* who asks, in order */
  unsigned n_queue;
  struct lock_account accounts[RAFT_MEMBERS_MAX];
  uint64_t wrote_at;    /* ms: when the holder wrote last */
  uint64_t looked_at;   /* ms: when `held` was counted last */
  uint64_t counts_from; /* ms */
  /* Leadership goes to the heir, or to who is best (0), once nobody has the
     lock, or at that time (ms) if that comes first. */
  bool yields;
  raft_id heir;
  uint64_t yield_by;
  bool moving; /* it does */
};

/* The borrower's part. */
struct lock_borrower {
  raft_term term;    /* of the grant; */
  uint64_t number;   /* 0: none */
  raft_index from;   /* to be applied before it is used */
  uint64_t sent;     /* writes under it */
  bool unsent;       /* some could not be sent, or may be lost */
  uint64_t heard;    /* the newest grant in this term that was ever told of */
  uint64_t asked_at; /* ms; 0: not asked */
  raft_term asked_term;
  /* Writes that the leader may not have, oldest first. */
  struct proposal *writes, **writes_tail;
  size_t bytes; /* of their bodies */
  /* The one that was given back last, told again when asked again. */
  raft_term returned_term;
  uint64_t returned_number, returned_count;
};

struct lock {
  struct lock_lender lender;
  struct lock_borrower borrower;
};

void lock_init(struct node *node);
void lock_clear(struct node *node);
/* Does what there is to do: asks, grants, recalls, gives back; sends what
   connections have handed over, or proposes it. After every event. */
void lock_pump(struct node *node);
/* Now and then: what was lost is told again, silent holders lose the lock. */
void lock_tick(struct node *node, uint64_t now);
/* The role or the term changed: grants of earlier terms are void. */
void lock_term(struct node *node);
/* A connection to the leader is up: what may be lost is sent again. */
void lock_up(struct node *node, raft_id peer);
/* A leader: another node is to lead, `to` or whoever is best (0). The lock is
   recalled first, so that nobody's transaction is lost on the way, for at most
   ms. node->yielding tells whether that is under way. */
void lock_yield(struct node *node, raft_id to, unsigned ms);
/* For tests: a leader's own grant ends, with all that was handed over under it
   and not proposed; the next one is due at once. */
void lock_void_own(struct node *node);
/* What a member posted. */
void lock_posted(struct node *node, raft_id from, const uint8_t *body,
                 size_t len);
/* The log went on without this node: whatever grant it had is over. */
void lock_overtaken(struct node *node);
/* A write of another node is in the log: it may send more. */
void lock_appended(struct node *node, const struct proposal *write);
/* A transaction of this node's own was applied: its writes have arrived. */
void lock_confirmed(struct node *node, const struct transaction *tx);
/* This node has the lock, and may use it when *from is applied. */
bool lock_held(const struct node *node, raft_index *from);
/* The number of the grant. */
uint64_t lock_number(const struct node *node);

#endif
