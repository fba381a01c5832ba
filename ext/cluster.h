/*
** cluster.h: the interfaces of cluster.c, invite.c, admit.c, member.c, change.c,
** join.c, rebuild.c, verify.c, directory.c and detach.c to each other.
*/
#ifndef EXT_CLUSTER_H
#define EXT_CLUSTER_H

#include "node.h"

#define CERT_DAYS 365  /* life of a node's certificate */
#define SILENT_MS 3000 /* without a sign of life */

/* Status of an answer between nodes. AGAIN: not now, and a text says what is
   waited for: who asks again in a moment may get another answer. */
enum {
  ANSWER_OK = 0,
  ANSWER_REFUSED = 1,
  ANSWER_REDIRECT = 2,
  ANSWER_AGAIN = 3
};
#define NO_LEADER "no leader: no quorum, or an election"

/* What is asked; ASK_CHECKSUM and ASK_TRUST of any node, the others of the
   leader. RENEW, REPLACE and ADMITTED by a node that does not run: see
   rebuild.c. */
enum {
  ASK_JOIN = 1,
  ASK_INVITE = 2,
  ASK_MEMBERS = 3,
  ASK_VERIFY = 4,
  ASK_CHECKSUM = 5,
  ASK_RENEW = 6,
  ASK_REPLACE = 7,
  ASK_ADMITTED = 8,
  ASK_FOLLOW = 9,
  ASK_CHANGE = 10,
  ASK_ADVERTISE = 11,
  ASK_UNINVITE = 12,
  ASK_CERTIFY = 13,
  ASK_TRUST = 14,
  ASK_ROTATE = 15
};

/* What the leader answers to who asks to JOIN, or whether it is ADMITTED. */
struct admission {
  raft_id id;
  uint64_t incarnation;
  const char *cert, *ca; /* PEM; cert: "" if it has one */
  unsigned heartbeat_ms, election_timeout_ms;
  bool lease;
  bool learner;                      /* it is to stay one */
  struct raft_configuration members; /* with it */
};
void cluster_pack_admission(struct packer *p, const struct admission *a);
/* a->cert and a->ca are in the body. False: malformed, or what no node can be
   made of. */
bool cluster_parse_admission(const uint8_t *body, size_t len,
                             struct admission *a);
#define MALFORMED_ADMISSION "the cluster sent a malformed answer"

/* Application threads: asks the leader, for which it waits up to 2 s; takes
   body's memory. *data is
   malloc'd, zero-terminated. Returns the status; -1: no answer, *data NULL or
   a text. */
int cluster_ask(struct node *node, struct packer body, uint8_t **data,
                size_t *len);
/* The same in two steps, so that several can be asked at a time: peer 0 is the
   leader, ms is for the answer. NULL (no memory) may be collected too. */
struct question;
struct question *cluster_post(struct node *node, raft_id peer,
                              struct packer body, unsigned ms);
int cluster_collect(struct node *node, struct question *q, uint8_t **data,
                    size_t *len);
/* The same; -EINTR when it was interrupted. */
int cluster_collect_until(struct node *node, struct question *q,
                          const struct interrupt *interrupt, uint8_t **data,
                          size_t *len);

/* Loop thread: whom an answer goes to: another node, or a thread of this
   process; and the answer, exactly one. */
struct answer_to {
  struct net_request *request;
  struct question *question;
};
void cluster_answer(struct answer_to to, int status, const void *body,
                    size_t len);
void cluster_refuse(struct answer_to to, const char *text);
void cluster_again(struct answer_to to, const char *text);

/* Loop thread, of a leader. A change of a setting, answered with its index (8
   bytes); value NULL deletes. */
void cluster_propose_setting(struct node *node, const char *key,
                             const void *value, size_t len,
                             struct answer_to to);
/* A change of membership: 0 or RAFT_E...; *index: of the newest configuration. */
int cluster_propose_changes(struct node *node, unsigned n,
                            const struct raft_change *changes,
                            raft_index *index);
int cluster_propose_change(struct node *node, uint8_t type, raft_id id,
                           const struct raft_member *member, raft_index *index);
bool cluster_member_named(const struct raft_configuration *c, const char *name,
                          struct raft_member *out);
/* Application threads: asks for something that is answered with its index, and
   waits until that is applied here. 0, or -1 and why not. */
int cluster_ask_and_wait(struct node *node, struct packer body,
                         struct text *error);

/* verify.c, loop thread: the answers to ASK_VERIFY (a text: why not) and to
   ASK_CHECKSUM. */
const char *verify_begin(struct node *node, struct packer *answer);
void verify_tell(struct node *node, struct parser *p, struct packer *answer);

/* ---- invite.c ------------------------------------------------------------ */

enum invitation_state {
  INVITATION_OPEN = 0,
  INVITATION_USED,
  INVITATION_EXPIRED,
  INVITATION_WITHDRAWN
};

/* The value of the setting "invite/<name>". Times are ms of the calendar, by
   the clocks of leaders. */
struct invitation {
  uint8_t state;
  uint8_t role; /* RAFT_VOTER, or RAFT_LEARNER: it stays one */
  int64_t created, expires;
  int64_t ended;          /* when it was used, ...; 0: it is open */
  uint8_t digest[32];     /* SHA-256 of the secret */
  char by[RAFT_NAME_MAX]; /* the node that was asked for it */
};
void invite_pack(struct packer *p, const struct invitation *i);
/* False: it is none. */
bool invite_parse(const uint8_t *value, size_t len, struct invitation *i);
/* "5 s ago", of a time in the past; "just now". */
struct ago_text {
  char s[40];
};
struct ago_text ago_text(int64_t ms);

/* What a node knows of its own about invitations: who guesses, and what it has
   proposed as the leader. NULL: no memory. */
struct invites;
struct invites *invites_new(void);
void invites_free(struct invites *invites);

/* Loop thread of the leader. */
void invite_handle(struct node *node, struct parser *p, struct answer_to to);
void invite_withdraw(struct node *node, struct parser *p, struct answer_to to);
/* Whether a token lets somebody in, who asks from there ("1.2.3.4:5"); if not,
   why, which counts as a guess. */
bool invite_admits(struct node *node, const char *remote, const char *name,
                   const uint8_t *secret, size_t n, struct invitation *out,
                   struct text *why);
/* Whether it does so still. */
bool invite_holds(struct node *node, const char *name,
                  const struct invitation *i, struct text *why);
/* It has served; *index: where that is agreed on. 0 or RAFT_E... */
int invite_spend(struct node *node, const char *name, raft_index *index);
/* A line for the events about who was refused, if there are not too many. */
void invite_refused(struct node *node, const char *remote, const char *name,
                    const char *why);
/* Now and then: those whose time is over are closed, and forgotten after a
   day. */
void invite_tick(struct node *node);

/* What the table of metrics tells of it. Loop thread. */
struct invite_counters {
  uint64_t open, used; /* settings, now */
  uint64_t failed, limited;
};
void invite_count(const struct node *node, struct invite_counters *out);

/* ---- admit.c, loop thread of the leader --------------------------------- */

void admit_join(struct node *node, struct parser *p, struct answer_to to);
/* A request of a node that is rebuilt. False: it is another. */
bool admit_rebuild(struct node *node, raft_id from, struct parser p,
                   struct answer_to to);
/* A learner that never got as far as to be a voter, or a voter that has not
   been heard of for a while: somebody may join in its place. */
bool admit_replaceable(struct node *node, const struct raft_member *m);
/* Now and then, on every node: joins go on, learners that have caught up are
   promoted. */
void admit_tick(struct node *node);

/* ---- member.c ----------------------------------------------------------- */

/* Whether a learner stays one: it is not promoted by itself. Loop thread, or with
   the node's mutex. */
bool member_stays(const struct node *node, raft_id id);
/* Loop thread of the leader, as all below. Proposes that, which may come before
   it is a member. 0 or RAFT_E... */
int member_stay(struct node *node, raft_id id);
/* Whether it can be reached: it was heard from in the last `since` ms (a moment
   at most), or less than SILENT_MS ago, or this leader is new; or not. */
enum member_reach { MEMBER_REACHED, MEMBER_UNSURE, MEMBER_SILENT };
enum member_reach member_reach(struct node *node, raft_id id, uint64_t since);
/* Appends to *why who the members are. */
void member_list(const struct raft_configuration *c, struct text *why);
/* Whether a quorum of the other voters can be reached, and was in the last `since`
   ms, should a member lose its vote. ANSWER_OK; ANSWER_REFUSED, ANSWER_AGAIN and *why: who is "doing" that
   ("removing"), and the arithmetic, or what is waited for. */
int member_may_lose(struct node *node, const struct raft_member *m,
                    uint64_t since, const char *doing, struct text *why);
/* ASK_CHANGE and ASK_ADVERTISE. */
void member_change(struct node *node, struct parser *p, struct answer_to to);
void member_move(struct node *node, raft_id from, struct parser *p,
                 struct answer_to to);
/* Now and then, on every node. */
void member_tick(struct node *node);

/* What so many voters mean. */
enum member_tense { MEMBERS_ARE, MEMBERS_LEFT, MEMBERS_NOW };
void member_sum(struct text *text, unsigned voters, enum member_tense tense);

/* A request, of a member by name or (not 0) by id. since: ms since a leader has
   taken it up; 0: none has. The answer is a text, its closing zero, and 8 bytes: the id (AGAIN), or
   the index from which on all is as wanted (OK). */
enum member_change_kind {
  MEMBER_PROMOTE = 1,
  MEMBER_DEMOTE = 2,
  MEMBER_REMOVE = 3,
  MEMBER_TRANSFER = 4 /* the name "": to anybody else */
};
void member_pack_change(struct packer *p, uint8_t what, uint32_t since,
                        raft_id id, const char *name);

/* Any thread: what the others are told. */
void member_address(struct node *node, char out[RAFT_ADDRESS_MAX]);

/* ---- change.c to sql.c --------------------------------------------------- */

/* quorate_leave(), where the node runs. 0, -EINTR, or another negated errno
   value and *answer says why. */
int member_leave(struct node *node, const struct interrupt *interrupt,
                 struct text *answer);

/* ---- join.c to detach.c and rebuild.c ---------------------------------- */

#define JOIN_TIMEOUT_MS 15000 /* for the leader's answer */
#define REDIRECTS 5

/* Removes a node's directory: its files and those in its folders; not what a
   link leads to. */
void cluster_remove_directory(const char *dir);
/* "host:port"; port_needed: not 0. */
bool cluster_address_ok(const char *address, bool port_needed);
/* Of one that is ok: not that of all addresses of a machine, which is good to
   listen on, and leads whoever dials it to himself. */
bool cluster_address_dialled(const char *address);
/* The same; *error says what to do. */
bool cluster_check_advertised(const char *address, struct text *error);
/* Whether it can be listened on: to be known before anything is made. */
bool cluster_address_free(const char *address, struct text *error);
/* Starts a node whose identity says `joining`, and waits until it has the
   database and is a voter, or a learner that stays one. It can be interrupted
   until it has the database. *voters: how many there are then; *took: how much
   came, how long that took, how fast it was. */
bool cluster_first_run(const char *path,
                       const struct raft_configuration *members,
                       const struct interrupt *interrupt, unsigned *voters,
                       struct text *took, struct text *error);

/* Makes a file, which exists, node 1 of a cluster that stays alone (auto.c): it
   listens nowhere. A reference, or NULL and *error says why. */
struct database;
struct database *cluster_bootstrap_alone(const char *file, struct text *error);
/* Are options pairs, without NULL, and each name there once? */
bool cluster_pairs_ok(int n, const char *const *options, struct text *error);
/* The error of an option's value, which says what it may be. */
void cluster_bad_value(const char *name, const char *value, struct text *error);
/* One option of who makes a node. replaces: of a member, RAFT_NAME_MAX bytes;
   NULL: not one that joins, which has some of the others from its cluster. */
bool cluster_take_option(struct identity *i, const char *name,
                         const char *value, char *replaces, struct text *error);
/* The first node of a new cluster: its ids, the CA, and its certificate by it.
   *ca_key: tls_free_text(). */
bool cluster_make_identity(struct identity *i, char **ca_key,
                           struct text *error);
/* A node as others know it. */
void cluster_describe(const struct identity *i, uint8_t role,
                      struct raft_member *member);
/* As whom a node that does not run asks others. NULL and why. */
struct tls_context *cluster_context_of(const struct identity *i,
                                       struct text *error);

/* ---- recover.c to sql.c and registry.c --------------------------------- */

/* A recovery that was asked for: the word as it was given, or NULL. What it has
   to say is malloc'd, and NULL if there was no memory for it. */
struct recover;
struct recover *recover_new(const char *path, const char *word, int n,
                            const char *const *options,
                            const struct interrupt *interrupt);
char *recover_end(struct recover *r);
/* What is here and elsewhere, nothing changed; true: it may be carried out.
   running: the node, if it runs in this process. May take some seconds. */
bool recover_look(struct recover *r, struct node *running);
/* Nothing of the node runs in this process any more: it is carried out. False:
   not to the end; begun: there is no old node any more. */
bool recover_carry_out(struct recover *r);
bool recover_begun(const struct recover *r);
/* The new node runs: this is the answer. */
void recover_started(struct recover *r, struct node *node);
bool recover_refuse(struct recover *r, const struct text *why); /* false */

/* ---- peers.c ----------------------------------------------------------- */

#define PEERS_MAX 64

struct peers {
  unsigned n;
  char at[PEERS_MAX][RAFT_ADDRESS_MAX];
};
void peers_add(struct peers *peers, const char *address);
/* The voters but `self`. */
void peers_add_voters(struct peers *peers, const struct raft_configuration *c,
                      raft_id self);
/* Adds what DIR/peers has. False: it cannot be read. */
bool peers_read(const char *dir, struct peers *peers);
int peers_write(const struct io *io, const char *dir,
                const struct raft_configuration *c, raft_id self);

/* ---- detach.c to registry.c and join.c --------------------------------- */

/* Until nothing is in flight in a node that runs here, for a few seconds at
   most, and not if that is in vain. 0, whatever came of it, or -EINTR. */
int detach_wait(struct node *node, const struct interrupt *interrupt);
/* A node that runs here is stopped and its file made an ordinary one. When
   that fails after the stop it can be started again. */
int detach_node(struct node *node, struct text *answer);
/* The same without the node, which cannot start: `why`. */
int detach_files(const char *path, const struct text *why, struct text *answer);
/* Would it be refused because of who uses the file, or for what is in flight? */
int detach_check(struct node *node, struct text *error);
/* Who else has the file open; `db` is a descriptor of it. */
int detach_check_others(int db, const char *path, struct text *error);
/* A connection of this process is in a transaction, or copies it. */
bool detach_is_used(struct node *node);
/* The files are ours alone until they are closed: 0, or why not. Connections of
   this process are refused from then on. The second before they are closed: a
   forked child may hold copies. */
int detach_exclude(struct wal *wal, struct text *error);
void detach_release(struct wal *wal);
/* detach_files() where the directory is gone; the second also ends what an earlier
   detach began. */
int detach_orphan(const char *path, struct text *error);
int detach_rest(const char *path, struct text *answer);

/* The joining side's request (admit.c). replaces: a member's name, or "". */
void cluster_pack_join(struct packer *p, const struct tls_token *token,
                       const char *address, const char *csr,
                       const char *replaces);

#endif
