/*
** attach.h: what a connection asks of a host in another process.
**
** Each function is the counterpart of one that a connection calls when the node
** runs in its own process, and returns an SQLite result code, with c->reason set
** if it is an error; or VFS_MOVED: there is another host meanwhile, perhaps this
** process, and whatever was wanted must be begun anew (vfs_locate()).
*/
#ifndef EXT_ATTACH_H
#define EXT_ATTACH_H

#include "database.h"
#include "vfs.h"

/* Somebody hosts the node, here or elsewhere, as far as it is known here. */
bool attach_hosted(struct database *d);
/* Until what is applied may be read at a level: node_barrier(). */
int attach_barrier(struct connection *c, enum read_level level, unsigned ms);
/* The turn to write, and the WRITE lock with it: writer_take(). drained:
   writer_take_drained(), without the lock. */
int attach_take(struct connection *c, bool drained);
/* The WRITE lock: writer_begin(). */
int attach_upgrade(struct connection *c);
void attach_leave(struct connection *c);
/* Until the head that it reads is confirmed: capture_may_read(). */
int attach_settled(struct connection *c);
/* A transaction is handed over, or the session is lost: either way its fate is
   what attach_wait() says. */
void attach_commit(struct connection *c, const struct session_commit *commit);
/* *header is that of the state after it, if it is SQLITE_OK and known. */
int attach_wait(struct connection *c, struct walindex_header *header);
/* Carries a call out there. *answer is filled in if it is SQLITE_OK. */
struct call;
struct answer;
int attach_call(struct connection *c, const struct call *call,
                const struct interrupt *interrupt, struct answer *answer);
/* xSleep in a busy handler that was called for a host: waits for the turn
   instead. False: it did not. */
bool attach_sleep(int us);
/* The connection is closed. */
void attach_close(struct connection *c);

#endif
