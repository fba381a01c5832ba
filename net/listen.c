/*
** listen.c: the listening socket, and what is taken from it.
**
** The socket is watched by a uv_poll_t and connections are taken by accept4(),
** so that one that is refused costs two system calls and no memory, and a flood
** of them holds up the rest of the loop for a few at a time: at most
** ACCEPTS_MAX a turn. A connection that was refused is reset (SO_LINGER), so
** that the kernel keeps nothing of it either.
*/
#include "internal.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 1024
#define ACCEPTS_MAX 16
/* Without a descriptor for it a connection cannot be taken, and the socket
   would go on saying that it is there. */
#define PAUSE_MS 100

/* ---- the socket ---------------------------------------------------------- */

static int bind_address(const struct sockaddr_storage *address, int *out,
                        const char **what)
{
  int one = 1, saved;
  int fd =
      socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  *what = "socket";
  if (fd < 0) return -errno;
  *what = "bind";
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (const struct sockaddr *)address, net_sockaddr_size(address)))
    goto fail;
  *what = "listen";
  if (listen(fd, BACKLOG)) goto fail;
  *out = fd;
  return 0;

fail:
  saved = -errno;
  close(fd);
  return saved;
}

static int find_address(const char *listen_on,
                        struct net_candidates *candidates,
                        struct net_error *error)
{
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
  char host[RAFT_ADDRESS_MAX], port[8];
  struct addrinfo *list = NULL;
  int rc;

  if (!net_split_address(listen_on, host, sizeof host, port, sizeof port))
    return net_fail(error,
                    "cannot listen on %.128s: not an address of the form "
                    "host:port",
                    listen_on);
  if (net_numeric(host, port, candidates)) return 0;
  rc = getaddrinfo(host, port, &hints, &list);
  if (rc)
    return net_fail(error, "cannot listen on %.128s: %s", listen_on,
                    gai_strerror(rc));
  net_take_addrinfo(list, candidates);
  freeaddrinfo(list);
  if (candidates->n > 0) return 0;
  return net_fail(error, "cannot listen on %.128s: the name has no address",
                  listen_on);
}

int net_listen(struct net *net, const char *text, struct net_error *error)
{
  struct net_candidates candidates;
  struct sockaddr_storage address = {0};
  socklen_t size = sizeof address;
  const char *what;
  int rc, fd = -1;

  if (find_address(text, &candidates, error)) return -1;
  rc = bind_address(&candidates.at[0], &fd, &what);
  if (rc)
    return net_fail(error, "cannot listen on %.128s: %s: %s", text, what,
                    uv_strerror(rc));
  if (getsockname(fd, (struct sockaddr *)&address, &size)) {
    close(fd);
    return net_fail(error, "cannot listen on %.128s: no socket name", text);
  }
  net_format(&address, net->listening, sizeof net->listening);
  net->listen_fd = fd;
  return 0;
}

/* ---- connections --------------------------------------------------------- */

static void turn_away(int fd)
{
  struct linger reset = {.l_onoff = 1};

  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  close(fd);
}

static void take(struct net *net, int fd,
                 const struct sockaddr_storage *address)
{
  struct net_source *source = net_crowd_admit(net, address);
  char remote[RAFT_ADDRESS_MAX];

  net->counters.accepted++;
  if (source) {
    net_inbound(net, fd, address, source);
    return;
  }
  turn_away(fd);
  net_format(address, remote, sizeof remote);
  net_refused(net, NET_REFUSED_CROWD,
              "refused a connection from %s: there are %u that are no member's",
              remote, net->crowd.n);
}

static void on_readable(uv_poll_t *poll, int status, int events);

static void resume(uv_timer_t *pause)
{
  struct net *net = pause->data;

  if (!net->hub.closing)
    uv_poll_start(&net->listener, UV_READABLE, on_readable);
}

static void cannot_accept(struct net *net, int rc)
{
  net_event(net, NET_EVENT_OTHER, "cannot accept a connection: %s",
            uv_strerror(rc));
  uv_poll_stop(&net->listener);
  uv_timer_start(&net->pause, resume, PAUSE_MS, 0);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
  struct net *net = poll->data;

  (void)events;
  if (net->hub.closing) return;
  if (status < 0) {
    cannot_accept(net, status);
    return;
  }
  for (unsigned n = 0; n < ACCEPTS_MAX; n++) {
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    int fd = accept4(net->listen_fd, (struct sockaddr *)&address, &size,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
      take(net, fd, &address);
    } else if (errno == EAGAIN) {
      return;
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
               errno == ENOMEM) {
      cannot_accept(net, -errno);
      return;
    }
    /* Of others (accept(2) lists them) only that connection knows. */
  }
}

/* ---- beginning and end --------------------------------------------------- */

static void listener_closed(uv_handle_t *handle)
{
  struct net *net = handle->data;

  close(net->listen_fd);
  net->listen_fd = -1;
  net_hub_drop(&net->hub);
}

static void pause_closed(uv_handle_t *handle)
{
  net_hub_drop(&((struct net *)handle->data)->hub);
}

int net_listen_begin(struct net *net)
{
  uv_loop_t *loop = net->hub.loop;
  int rc = uv_poll_init(loop, &net->listener, net->listen_fd);

  if (rc) return rc;
  uv_timer_init(loop, &net->pause);
  net->listener.data = net->pause.data = net;
  net->hub.handles += 2;
  uv_poll_start(&net->listener, UV_READABLE, on_readable);
  return 0;
}

void net_listen_end(struct net *net)
{
  if (net->listen_fd < 0) return;
  uv_close((uv_handle_t *)&net->listener, listener_closed);
  uv_close((uv_handle_t *)&net->pause, pause_closed);
}
