/*
** forks.c: what becomes of a node in a child after fork().
**
** The child has the memory and the descriptors of its parent, but none of its
** threads. The node stays the parent's. Locks and connections last as long as
** anybody has their descriptor: so the child closes its copies, at once. It does
** nothing else, frees nothing, and touches nothing that is shared.
**
** What libuv has open only the loop knows, and its lists may be half changed at
** any moment. So fork() has the loop thread stand still first, in a task: there
** nothing is half done. A loop that is busy for longer than fork() can wait goes
** on, and the child closes what is known without it: the listening socket and
** what the loop itself consists of, but not the connections to other nodes,
** which then notice their end by its silence.
**
** Files of the log remain open in the child. They have no locks.
*/
#include "node.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of a parking. Who forks: IDLE, or VOID if the task is still in the loop's
   queue from the last time, becomes ASKED; FREED becomes PARKED. Afterwards
   PARKED becomes FREED, ASKED VOID. The loop: ASKED becomes PARKED; FREED and
   VOID become IDLE, and it goes on. */
enum { IDLE = 0, ASKED, PARKED, FREED, VOID };

static bool change(struct parking *p, uint32_t from, uint32_t to)
{
  if (!atomic_compare_exchange_strong(&p->state, &from, to)) return false;
  syscall(SYS_futex, &p->state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
  return true;
}

/* False: it is past `end`. */
static bool wait_while(struct parking *p, uint32_t state,
                       const struct timespec *end)
{
  bool in_time = true;
  while (in_time && atomic_load(&p->state) == state)
    in_time = syscall(SYS_futex, &p->state, FUTEX_WAIT_BITSET_PRIVATE, state,
                      end, NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
              errno != ETIMEDOUT;
  return in_time;
}

/* Loop thread. Whoever forks is on its way, and always frees it. */
static void park(struct task *task)
{
  struct parking *p = &task->node->parking;
  while (!change(p, FREED, IDLE) && !change(p, VOID, IDLE)) {
    change(p, ASKED, PARKED);
    wait_while(p, PARKED, NULL);
  }
}

void forks_ask(struct node *node)
{
  struct parking *p = &node->parking;
  if (!node->loop_started || pthread_equal(node->loop_thread, pthread_self()))
    return;
  p->task.run = park;
  while (!change(p, VOID, ASKED) && !change(p, FREED, PARKED))
    if (change(p, IDLE, ASKED)) {
      if (!node_post(node, &p->task)) change(p, ASKED, IDLE);
      return;
    }
}

void forks_wait(struct node *node, const struct timespec *end)
{
  wait_while(&node->parking, ASKED, end);
}

void forks_release(struct node *node)
{
  if (!change(&node->parking, PARKED, FREED))
    change(&node->parking, ASKED, VOID);
}

/* ---- in the child ------------------------------------------------------ */

static void close_known(int fd)
{
  if (fd >= 0) close(fd);
}

/* Those of the host are closed by host_abandon(), and the listener of the net
   with the loop. */
static void close_handle(uv_handle_t *handle, void *arg)
{
  uv_os_fd_t fd;
  (void)arg;
  if (uv_handle_get_type(handle) != UV_POLL && uv_fileno(handle, &fd) == 0)
    close_known(fd);
}

static void close_loop(struct node *node, bool still)
{
  uv_loop_t *loop = &node->loop;
  if (still) uv_walk(loop, close_handle, NULL);
  if (node->net) close_known(net_descriptor(node->net));
  close_known(uv_backend_fd(loop));
  close_known(loop->async_io_watcher.fd);
  close_known(loop->async_wfd);
  close_known(loop->signal_pipefd[0]);
  close_known(loop->signal_pipefd[1]);
  close_known(loop->emfile_fd);
}

void forks_abandon(struct node *node)
{
  bool still =
      !node->loop_started || atomic_load(&node->parking.state) == PARKED;
  close_known(node->lock_fd);
  node->lock_fd = -1;
  host_abandon(node, still);
  if (node->loop_made) close_loop(node, still);
  if (node->wal == NULL) return;
  close(node->wal->shm);
  close(node->wal->file);
  close(node->wal->db);
}
