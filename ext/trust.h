/*
** trust.h: whom a node trusts, and what others trust it by: its certificate,
** its key, and the CAs.
**
** trust.c has a node's own: contexts, warnings, what members ask; renew.c how they
** change while it runs. rotate.c has the cluster's: the setting "ca", and how a
** new CA takes the place of the old one. outside.c has what the options of
** quorate_bootstrap() and quorate_join() say of an outside PKI.
*/
#ifndef EXT_TRUST_H
#define EXT_TRUST_H

#include "node.h"

struct call;
struct answer;
struct answer_to;

/* In a bundle: an outside PKI may have many. */
#define TRUST_CAS_MAX 64

/* ---- the setting "ca": rotate.c ---------------------------------------- */

/* Texts of PEM; "" is none. They never leave the settings but for what is
   signed and trusted: no table, event or error has one of the keys. */
struct trust_ca {
  uint64_t generation;    /* of this value: from 1, one more each time */
  const char *cert, *key; /* the CA that signs */
  /* Trusted, but signs nothing: the next one, and the one before. At most one
     of them is there. */
  const char *next_cert, *next_key, *old_cert;
};
/* False: malformed. The texts are in data. */
bool trust_parse_ca(const void *data, size_t len, struct trust_ca *ca);
void trust_pack_ca(struct packer *p, const struct trust_ca *ca);
/* What the settings say; false: there is none, the PKI is outside. The texts
   are in the settings. */
bool trust_get_ca(const struct settings *settings, struct trust_ca *ca);
/* The first value of a new cluster. 0 or -1: no memory. */
int trust_put_ca(struct settings *settings, const char *cert, const char *key);
/* All CAs that are trusted, as ca.pem has them, with the generation in the
   first line. malloc'd; NULL: no memory. */
char *trust_bundle(const struct trust_ca *ca);
/* Of such a text; 0: it says none. */
uint64_t trust_generation(const char *bundle);

/* ---- one node's ---------------------------------------------------------- */

/* What a node trusts and shows, as it is on its disk. */
struct trust_view {
  uint64_t generation; /* of ca.pem */
  unsigned n;          /* CAs that it trusts */
  uint8_t cas[TRUST_CAS_MAX][32];
  uint8_t issuer[32];      /* of them, the one of its certificate */
  int64_t begins, expires; /* of the certificate: s since 1970 */
};
bool trust_trusts(const struct trust_view *view, const uint8_t ca[32]);

/* What the leader heard from a member. */
struct trust_peer {
  raft_id id;
  bool known, asked; /* view is; an answer is awaited */
  bool ready;        /* it has done what the present step waits for */
  uint64_t asked_at, answered_at; /* ms; 0: never */
  struct trust_view view;
};

/* A renewal: a key is made, the leader asked for a certificate, both taken. */
enum trust_step { TRUST_IDLE = 0, TRUST_KEY, TRUST_ASKING, TRUST_TAKING };

/* Belongs to the loop thread, but for what is marked. */
struct trust {
  struct trust_view view; /* mutex */

  /* the setting, as it was seen last: its generation, 0: none; and the CA that
     signs */
  uint64_t seen;
  uint8_t signer[32];
  int64_t signer_expires;
  uint64_t bundle_at;         /* ms: when ca.pem may be written next */
  unsigned warned_ca, warned; /* which warnings were given */

  /* renewal */
  enum trust_step step;
  char *key, *cert;       /* the new ones */
  uint64_t due_since;     /* ms; 0: it is not due */
  uint64_t try_at, pause; /* ms: the next attempt, and the time between two */
  raft_id asked;          /* who led at the last one */
  struct text why;        /* that came to nothing */

  /* files from outside, as outside_look() has them: in use; refused, and why;
     and those that may be changing yet */
  uint64_t look_at, judge_at; /* ms */
  uint64_t taken, refused, changing;
  struct text refusal;

  struct trust_job *job; /* the worker's; one at a time, NULL: none */

  /* The leader's part: rotate.c. */
  uint64_t lead_since; /* of what follows */
  raft_index proposed; /* the newest change of the setting */
  uint64_t looked_at;  /* ms */
  uint64_t looked_gen; /* a generation that all have, and nothing is awaited */
  unsigned n_peers;
  struct trust_peer peers[RAFT_MEMBERS_MAX];
};

/* The context of an identity, whose directory is dir; checks that certificate,
   key and CAs belong to each other and to this node. 0, or -EBADMSG (outside:
   -EACCES) and why not. */
int trust_check(const char *dir, const struct identity *identity,
                struct tls_context **tls, struct trust_view *view,
                struct text *error);
/* Before the threads run: node->tls and node->trust. */
int trust_open(struct node *node, struct text *error);
void trust_free(struct node *node);
/* The mutex held: why there is no leader, as far as is known here. */
const char *trust_no_leader(const struct node *node);
/* After the start's own event: what is to be said of the certificate. */
void trust_announce(struct node *node);
/* Loop thread, now and then. */
void trust_tick(struct node *node);
/* Worker: does what the loop wants done. */
void trust_work(struct node *node);
/* Loop thread. A request from a member, of its kinds: answers it. leads: this
   node does. False: another kind, or one for the leader. */
bool trust_request(struct node *node, raft_id from, bool leads, struct parser p,
                   struct answer_to to);
/* Loop thread of the leader: signs a request for a node; -1 and why not. */
int trust_sign(struct node *node, raft_id id, const char *request, char **cert,
               struct tls_error *error);
/* Loop thread: the CAs that a node begins with, malloc'd; "" where they come from
   outside. */
char *trust_begin(struct node *node);
/* Any thread: fingerprint of the CA that who joins is to look for. */
int trust_pin(struct node *node, uint8_t fingerprint[32],
              struct tls_error *error);
/* Any thread: end of this node's certificate, s since 1970. */
int64_t trust_expires(struct node *node);
/* Loop thread of the leader: the same of any member, as far as is known. */
int64_t trust_expires_of(struct node *node, raft_id id);
/* A time of certificates as SQL shows it: UTC. */
struct clock_text trust_time(int64_t seconds);

/* Certificate and key of a node in three steps, after each of which they belong
   together: the key's file with both, the certificate's, the key's with the new
   one. io and dir as of the node. */
int trust_replace(const struct io *io, const char *dir, const char *cert,
                  const char *key, const char *old_key, struct text *error);
/* Of a text with several keys the one that belongs to the certificate; malloc'd,
   tls_free_text(). NULL: none of them does. */
char *trust_own_key(const char *ca, const char *cert, const char *keys);

/* ---- while it runs: renew.c, loop thread, now and then -------------------- */

void renew_tick(struct node *node, uint64_t now);
void renew_bundle(struct node *node, const struct trust_ca *ca, uint64_t now);
void renew_look(struct node *node, uint64_t now);
void renew_forget(struct trust *trust);

/* ---- the cluster's: rotate.c -------------------------------------------- */

/* Loop thread, of the leader: the next step, if there is one to take. */
void rotate_tick(struct node *node);
/* Loop thread: what the settings say of CAs is new here: says so. */
void rotate_announce(struct node *node, const struct trust_ca *ca);
/* Loop thread of the leader: a member is about to have another certificate. */
void rotate_ask_soon(struct node *node, raft_id id);
void rotate_handle(struct node *node, struct parser *p, struct answer_to to);
/* quorate_rotate_ca(). */
void trust_run_rotate(struct node *node, const struct call *call,
                      const struct interrupt *interrupt, struct answer *answer);
/* Of a node that asks, and of the answer. */
void trust_pack_view(struct packer *p, const struct trust_view *view);
bool trust_parse_view(const void *data, size_t len, struct trust_view *view);

/* ---- an outside PKI: outside.c ------------------------------------------ */

static inline bool trust_is_outside(const struct identity *identity)
{
  return identity->ca_file[0] != 0;
}
/* One option of quorate_bootstrap() and quorate_join(). False: it is another;
   *error is set if its value is bad. */
bool outside_option(struct identity *identity, const char *name,
                    const char *value, struct text *error);
/* Who a node is, from the files; its cluster too if that is not set yet. */
bool outside_identify(struct identity *identity, struct text *error);
/* Is its certificate valid now? */
bool outside_in_time(const struct identity *identity, struct text *error);
/* What the three files are now, as a number, never 0. */
uint64_t outside_look(const struct identity *identity);

#endif
