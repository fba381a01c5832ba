/*
** fault.h: each call of a node on files fails, one after the other.
**
** A scene is something that nodes do (scenes.c), on files that were made
** before. It is run again and again, each time with one call more let through
** before one fails: once, or with all that come after it on the same node's
** disk. Then the disk is well again, and the nodes are looked at (heal.c).
** fault.c is the program. Calls are met and nodes are checked with what
** test/crash has for it.
**
** This header is divided by the file that the code is in.
*/
#ifndef TEST_FAULT_H
#define TEST_FAULT_H

#include "../crash/crash.h"

#include <stdatomic.h>

#define HISTORY 512
#define WHY 700
#define PORT 7101 /* of node 1: see bind() in record.c */

/* Which call fails, how, and what comes after it. */
struct point {
  unsigned long at; /* from 1; ULONG_MAX: none */
  int error;
  bool lasting;     /* the disk stays so until the scene ends */
  bool killed;      /* then the process; else the nodes have to go on */
  const char *only; /* what so begins is counted: "sync n1/"; NULL: all */
};

/* What processes of one worker tell each other. */
struct told {
  _Atomic bool fired;  /* a call has failed */
  _Atomic bool healed; /* nothing has to fail any more */
  _Atomic unsigned long calls;
  char what[CRASH_PATH + 32]; /* the call that failed */
  char why[WHY];              /* it is wrong; empty: nothing is */
  struct known known;
  uint64_t history[HISTORY];
};

struct run {
  struct world world;
  struct point point;
  struct told *told;
  bool kept[NODES_MAX + 1]; /* it is to be running */
};

/* ---- fault.c ----------------------------------------------------------- */

/* Ends the process: something is wrong. */
void wrong(struct run *r, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));
/* Calls are counted and the chosen one fails, until fault_end(). */
void fault_begin(struct run *r);
void fault_end(void);

/* ---- scenes.c ---------------------------------------------------------- */

struct scene {
  const char *name;
  unsigned nodes;
  void (*make)(struct run *r);   /* what is there before, and kept */
  void (*before)(struct run *r); /* in each run, without a fault */
  void (*during)(struct run *r); /* with one */
  void (*again)(struct run *r);  /* what failed works now; or NULL */
  bool again_first; /* also by a new process, before its node is started */
};
extern const struct scene scenes[];
extern const unsigned n_scenes;

/* ---- heal.c ------------------------------------------------------------ */

/* The disk is well: the nodes run again, started anew where that is needed,
   and have what was acknowledged. */
void heal(struct run *r, const struct scene *scene);

#endif
