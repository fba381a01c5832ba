/*
** full.c: a disk without room, and one that has room again.
**
** A log that could not be written is closed for good (raft/store): the node
** leads no more, acknowledges nothing, and goes on answering reads. Was the
** reason want of room, then the log is opened anew when there is some, as
** after a restart, and with it a raft that knows what the log holds; the
** database, its connections and the network stay as they are. Meanwhile
** nothing is applied: the worker may then be the only one to use the log.
**
** A leader whose connections find no room in -wal hands over. An entry that
** finds none is applied later; a leader that has tried more than once hands over,
** too: it could lend the right to write to nobody before that is applied. Not
** again soon, though: there may be no node with room. When a disk does nothing,
** without an error, raft/ hands over, and that is told here.
**
** Room comes back by a checkpoint: then -wal begins anew, and the log is cut. It
** needs a checkpoint file first, so there is always room for one: DIR/reserve,
** which goes when a disk without any is found, and is made again when there is.
*/
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#define AGAIN_MS 1000
#define ROUND_MS 10000   /* a leader that cannot apply hands over so often */
#define ROOM (40u << 20) /* some segments, and a checkpoint's worth of WAL */
#define RESERVE (256u << 10) /* a checkpoint file, and what its name takes */

struct reopening {
  struct task task;
  struct raft_recovered recovered;
  struct text error;
  int rc;
};

static bool has_room(const struct node *node)
{
  struct statvfs fs;
  return statvfs(node->dir, &fs) == 0 &&
         (uint64_t)fs.f_bavail * fs.f_frsize >= ROOM;
}

bool full_log(const struct node *node)
{
  return atomic_load(&node->disk_status) == -ENOSPC;
}

void full_noticed(struct node *node)
{
  atomic_store(&node->no_room, true);
}

/* A leader without room for frames is of no use to those who write. */
static bool hand_over(struct node *node)
{
  struct raft_event event = {.type = RAFT_EVENT_TRANSFER};
  if (raft_role(node->raft) != RAFT_LEADER || node->view.voters < 2)
    return false;
  bool begun = node_step(node, &event) == 0;
  if (begun)
    events_add(&node->events, "no room on the disk: another node is to lead");
  return begun;
}

static void reopened(struct task *task)
{
  struct reopening *r = (struct reopening *)task;
  struct node *node = task->node;
  node->log_closed = r->rc == -ENOSPC;
  if (node->log_closed) { /* somebody else took the room: tried again */
    free(r);
    return;
  }
  node->apply_busy = false;
  if (r->rc == 0 && !node->closing && !node->failed)
    r->rc = start_raft(node, &r->recovered, &r->error);
  if (r->rc)
    node_fail(node, "the log cannot be opened anew: %s", r->error.s);
  else
    events_add(&node->events, "there is room on the disk again");
  free(r);
}

void full_reopen(struct node *node)
{
  struct reopening *r = calloc(1, sizeof(*r));
  if (r == NULL) { /* tried again */
    node->apply_busy = false;
    return;
  }
  r->task.node = node;
  r->task.run = reopened;
  entries_close(node);
  r->rc = start_log(node, &r->recovered, &r->error);
  node_post(node, &r->task);
}

void full_tell_still(struct node *node)
{
  bool still = raft_disk_stands_still(node->raft);
  if (still && !node->still)
    events_add(&node->events, "the disk does nothing, and the others go on: "
                              "another node is to lead");
  node->still = still;
}

void full_tick(struct node *node)
{
  uint64_t now = clock_monotonic_ms();
  if (node->failed) return;
  if (now < node->room_at) return;
  node->room_at = now + AGAIN_MS;
  if (atomic_exchange(&node->no_room, false)) hand_over(node);
  if (node->apply_full) {
    if (node->full_again && now >= node->hand_over_at && hand_over(node))
      node->hand_over_at = now + ROUND_MS;
    node->apply_full = false;
    apply_committed(node);
  }
  if (!node->disk_failed || !full_log(node) ||
      (node->apply_busy && !node->log_closed) || !has_room(node))
    return;
  fetch_drop(node); /* raft takes none as long as the disk has failed */
  if (node->fetch) return;
  node->log_closed = false;
  node->apply_busy = true;
  pthread_mutex_lock(&node->mutex);
  node->worker_reopen = true;
  pthread_cond_signal(&node->worker_cond);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- room for a checkpoint file ------------------------------------------ */

static char *reserve_path(const struct node *node)
{
  char *path = NULL;
  return asprintf(&path, "%s/reserve", node->dir) < 0 ? NULL : path;
}

void full_reserve(struct node *node)
{
  const struct io *io = node->io;
  if (node->reserved) return;
  char *path = reserve_path(node);
  uint8_t *zeros = calloc(1, RESERVE);
  int fd = path && zeros ? io->open(io->ctx, path, O_RDWR | O_CREAT) : -1;
  if (fd >= 0) {
    node->reserved = io->pwrite(io->ctx, fd, zeros, RESERVE, 0) == 0;
    io->close(io->ctx, fd);
    /* A part of it is of no use, but perhaps to somebody else. */
    if (!node->reserved) io->unlink(io->ctx, path);
  }
  free(zeros);
  free(path);
}

int full_write_checkpoint(struct node *node,
                          const struct store_checkpoint *checkpoint,
                          char **error)
{
  const struct io *io = node->io;
  int rc = store_checkpoint_write(io, node->dir, checkpoint, error);
  char *path = rc == -ENOSPC ? reserve_path(node) : NULL;
  if (path == NULL) return rc;
  bool given = io->unlink(io->ctx, path) == 0;
  free(path);
  node->reserved = false;
  if (!given) return rc;
  free(*error);
  *error = NULL;
  return store_checkpoint_write(io, node->dir, checkpoint, error);
}
