/*
** call.h: what SQL asks of a node, as a value.
**
** A function or a table that tells of a node, or has it do something, is a
** struct call; what comes of it is a struct answer. Whoever has the node
** carries the call out (call_run()), whether SQL asked in this process or in
** another one that has the same file open: both are then packed as bytes.
**
** Packed, with pack.h. A cell: its type u8, then an integer u64, a real as the
** bits of a double, u64, or a text. A
** call: what u8, write_wait u32, number of arguments u32, cells. An answer:
** status u32, the error a text, columns u32, number of cells u32, cells. There
** is one way to pack a value, and nothing else is taken. An answer may be
** longer than a message of a socket: it is one buffer, and who sends it cuts
** it.
*/
#ifndef EXT_CALL_H
#define EXT_CALL_H

#include "node.h"

/* ---- cells ------------------------------------------------------------- */

enum cell_type {
  CELL_NULL = 0,
  CELL_INTEGER = 1,
  CELL_TEXT = 2,
  CELL_REAL = 3
};

/* A value of SQL. */
struct cell {
  enum cell_type type;
  int64_t number;
  double real;
  char *text; /* of a CELL_TEXT; malloc'd */
};

/* All zeros: none. `bad` when memory ran out: then some are missing. */
struct cells {
  struct cell *at;
  size_t n, cap;
  bool bad;
};
void cells_null(struct cells *cells);
void cells_integer(struct cells *cells, uint64_t number);
void cells_real(struct cells *cells, double real);
/* Copies the text; NULL: a null. */
void cells_text(struct cells *cells, const char *text);
void cells_id(struct cells *cells, uint64_t id); /* as 16 digits */
void cells_clear(struct cells *cells);

/* ---- calls ------------------------------------------------------------- */

/* The numbers are those of the packed form. */
enum {
  CALL_INVITE = 1,         /* name ["voter" or "learner"]: a token */
  CALL_CHECKPOINT = 2,     /* a line that says what became of it */
  CALL_BACKUP = 3,         /* file: the index of its newest entry */
  CALL_VERIFY = 4,         /* a line: who agrees */
  CALL_WAIT = 5,           /* index [ms]: the applied index */
  CALL_ROLE = 6,           /* a text */
  CALL_LEADER = 7,         /* a name, or null */
  CALL_TERM = 8,           /* an integer */
  CALL_INDEX = 9,          /* the applied index */
  CALL_FOLLOW_WRITER = 10, /* ["on" or "off"]: which it is now */
  CALL_STATUS = 11,        /* tables */
  CALL_MEMBERS = 12,
  CALL_EVENTS = 13,
  CALL_PROMOTE = 14, /* name: a line that says what is so now; these four */
  CALL_DEMOTE = 15,
  CALL_REMOVE = 16,
  CALL_TRANSFER = 17,    /* [name] */
  CALL_ADVERTISE = 18,   /* [address]: the address, and whether it is told */
  CALL_UNINVITE = 20,    /* name: a line */
  CALL_INVITATIONS = 21, /* tables */
  CALL_METRICS = 22,
  CALL_ROTATE_CA = 23, /* [ms]: a line: what became of it */
  CALL_LOG = 30        /* a table: from, to, most, of the newest (0 or 1) */
};

/* All zeros, and what it is; then its arguments are added, and at the end
   cleared. call_do() fills in the rest. */
struct call {
  uint8_t what;
  struct cells arguments;
  unsigned write_wait; /* ms, of the connection that asks */
  /* The snapshot of the connection that asks, which does not count as one that
     keeps the WAL; NULL: it has none. Not packed: for a call from another
     process it is set by who knows that connection. */
  const struct control_slot *reader;
};

/* All zeros before; answer_clear() after, in any case. */
struct answer {
  int status;        /* an SQLite result code */
  struct text error; /* of SQLITE_ERROR: why, without the function's name */
  /* SQLITE_OK: rows, one after the other; of a function exactly one */
  unsigned n_columns;
  struct cells cells;
};

/* Whether the arguments are such as it takes; else *error says what is wrong.
   call_run() looks, too. */
bool call_check(const struct call *call, struct text *error);
/* Why this is no name of a file: for SQLite it is another thing. Or NULL. */
const char *call_file_fault(const char *file);
/* Columns of a row of its answer. */
unsigned call_columns(uint8_t what);

/* Application threads: carries a call out. *answer is new. interrupt is never
   NULL. The status of the answer. */
int call_run(struct node *node, const struct call *call,
             const struct interrupt *interrupt, struct answer *answer);
/* The same for a connection of this process, wherever its node is: fills in
   what only the connection and this process know. */
int call_do(struct connection *connection, struct call *call,
            const struct interrupt *interrupt, struct answer *answer);
void answer_clear(struct answer *answer);
/* Of what gives 0 or a negated errno value, -EINTR among them, and a line. */
void answer_line(struct answer *answer, int rc, const struct text *line);

/* ---- change.c to call.c ------------------------------------------------- */

void member_run_promote(struct node *node, const struct call *call,
                        const struct interrupt *interrupt,
                        struct answer *answer);
void member_run_demote(struct node *node, const struct call *call,
                       const struct interrupt *interrupt,
                       struct answer *answer);
void member_run_remove(struct node *node, const struct call *call,
                       const struct interrupt *interrupt,
                       struct answer *answer);
void member_run_transfer(struct node *node, const struct call *call,
                         const struct interrupt *interrupt,
                         struct answer *answer);
void member_run_advertise(struct node *node, const struct call *call,
                          const struct interrupt *interrupt,
                          struct answer *answer);

/* ---- rooms that carry some of them out -------------------------------- */

/* invite.c */
void invite_run_give(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer);
void invite_run_withdraw(struct node *node, const struct call *call,
                         const struct interrupt *interrupt,
                         struct answer *answer);
void invite_run_list(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer);
bool invite_role(const char *text, uint8_t *role);
/* entries.c */
#define ENTRIES_MOST 1000 /* rows of one answer */
void entries_run(struct node *node, const struct call *call,
                 const struct interrupt *interrupt, struct answer *answer);
/* metrics.c */
void metrics_run(struct node *node, const struct call *call,
                 const struct interrupt *interrupt, struct answer *answer);

/* ---- as bytes ---------------------------------------------------------- */

#define CALL_BYTES_MAX (32u << 10)  /* fits in one message */
#define ANSWER_BYTES_MAX (4u << 20) /* some ten thousands of rows */

/* Append to `out`. 0; -EMSGSIZE: it is longer than may be; -ENOMEM. */
int call_pack(const struct call *call, struct packer *out);
int answer_pack(const struct answer *answer, struct packer *out);
/* 0; -EBADMSG: malformed; -ENOMEM. *call and *answer are new, empty after an
   error, and do not refer to `data`. An answer must be one to that call. */
int call_unpack(const void *data, size_t len, struct call *call);
int answer_unpack(const void *data, size_t len, const struct call *call,
                  struct answer *answer);

#endif
