/*
** progress.h: long work of a node, for who waits for it: progress.c.
*/
#ifndef EXT_PROGRESS_H
#define EXT_PROGRESS_H

#include "raft.h"

struct node;
struct text;
struct progress;

struct progress *progress_new(void); /* NULL: no memory */
void progress_free(struct progress *progress);

/* Any thread. Begins a piece of work, in words that others are told; a number
   for what follows. -1: too many are under way, and it is not told; the others
   take that, too. */
int work_begin(struct node *node, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* How far it is: bytes of so many, 0: not known; or steps of whatever kind, and
   the bytes that came with them. */
void work_bytes(struct node *node, int work, uint64_t done, uint64_t total);
void work_steps(struct node *node, int work, uint64_t done, uint64_t total,
                uint64_t bytes);
/* Sets *work to -1. */
void work_end(struct node *node, int *work);

/* What is under way, in a line; false: nothing, and *text is "". */
bool progress_describe(struct node *node, struct text *text);

/* Loop thread: now and then; and for each message of raft that came. */
void progress_tick(struct node *node);
void progress_heard(struct node *node, const struct raft_message *message);

/* "12.3 MB"; "4.1 s", "3 min". */
struct size_text {
  char s[24];
};
struct size_text progress_size(double bytes);
struct size_text progress_time(double seconds);

#endif
