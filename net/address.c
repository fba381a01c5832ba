/*
** address.c: "host:port" texts, socket addresses, and names.
**
** A struct net resolves names with libuv. net_join(), which promises to return
** in time, cannot wait for a resolver that does not answer and cannot stop it
** either; it lets a thread of its own ask, which cleans up after itself when
** nobody waits any more.
*/
#include "internal.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int net_fail(struct net_error *error, const char *format, ...)
{
  va_list args;

  if (!error) return -1;
  va_start(args, format);
  vsnprintf(error->text, sizeof error->text, format, args);
  va_end(args);
  error->goodbye = 0;
  return -1;
}

uint64_t net_now(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* ---- texts --------------------------------------------------------------- */

static bool is_port(const char *text)
{
  unsigned long value = 0;
  size_t n = 0;

  for (; text[n]; n++) {
    if (n == 5 || text[n] < '0' || text[n] > '9') return false;
    value = value * 10 + (unsigned long)(text[n] - '0');
  }
  return n > 0 && value <= 65535;
}

bool net_split_address(const char *address, char *host, size_t host_size,
                       char *port, size_t port_size)
{
  const char *begin = address, *end, *colon = strrchr(address, ':');
  size_t n;

  if (!colon || !is_port(colon + 1)) return false;
  end = colon;
  if (*begin == '[') {
    begin++;
    if (end == begin || end[-1] != ']') return false;
    end--;
    if (!memchr(begin, ':', (size_t)(end - begin))) return false;
  } else if (memchr(begin, ':', (size_t)(end - begin))) {
    return false; /* a bare IPv6 address: where would the port begin? */
  }
  n = (size_t)(end - begin);
  if (n == 0 || n >= host_size || strlen(colon + 1) >= port_size) return false;
  for (size_t i = 0; i < n; i++)
    if (begin[i] <= ' ' || strchr("[]/@", begin[i])) return false;
  memcpy(host, begin, n);
  host[n] = 0;
  memcpy(port, colon + 1, strlen(colon + 1) + 1);
  return true;
}

bool net_numeric(const char *host, const char *port,
                 struct net_candidates *candidates)
{
  int number = atoi(port);

  memset(candidates, 0, sizeof *candidates);
  candidates->n = 1;
  return uv_ip4_addr(host, number, (struct sockaddr_in *)candidates->at) == 0 ||
         uv_ip6_addr(host, number, (struct sockaddr_in6 *)candidates->at) == 0;
}

void net_take_addrinfo(const struct addrinfo *list,
                       struct net_candidates *candidates)
{
  memset(candidates, 0, sizeof *candidates);
  for (; list && candidates->n < NET_CANDIDATES; list = list->ai_next) {
    if (list->ai_family != AF_INET && list->ai_family != AF_INET6) continue;
    if (list->ai_addrlen > sizeof candidates->at[0]) continue;
    memcpy(&candidates->at[candidates->n++], list->ai_addr, list->ai_addrlen);
  }
}

socklen_t net_sockaddr_size(const struct sockaddr_storage *address)
{
  return address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                        : sizeof(struct sockaddr_in);
}

void net_format(const struct sockaddr_storage *address, char *text, size_t size)
{
  const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
  char host[INET6_ADDRSTRLEN] = "?";

  if (address->ss_family == AF_INET6) {
    uv_ip6_name(v6, host, sizeof host);
    snprintf(text, size, "[%s]:%u", host, ntohs(v6->sin6_port));
  } else {
    uv_ip4_name(v4, host, sizeof host);
    snprintf(text, size, "%s:%u", host, ntohs(v4->sin_port));
  }
}

/* ---- names, with a limit on the time ------------------------------------- */

/* Shared by the thread that asks and the one that waits; the last frees it. */
struct lookup {
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  int refs;
  bool done;
  int rc;
  char host[RAFT_ADDRESS_MAX], port[8];
  struct net_candidates candidates;
};

static void lookup_unref(struct lookup *lookup)
{
  int refs;

  pthread_mutex_lock(&lookup->mutex);
  refs = --lookup->refs;
  pthread_mutex_unlock(&lookup->mutex);
  if (refs) return;
  pthread_cond_destroy(&lookup->cond);
  pthread_mutex_destroy(&lookup->mutex);
  free(lookup);
}

static void *lookup_main(void *arg)
{
  struct lookup *lookup = arg;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
  struct net_candidates found = {0};
  int rc = getaddrinfo(lookup->host, lookup->port, &hints, &list);

  if (rc == 0) {
    net_take_addrinfo(list, &found);
    freeaddrinfo(list);
  }
  pthread_mutex_lock(&lookup->mutex);
  lookup->rc = rc;
  lookup->candidates = found;
  lookup->done = true;
  pthread_cond_signal(&lookup->cond);
  pthread_mutex_unlock(&lookup->mutex);
  lookup_unref(lookup);
  return NULL;
}

static struct lookup *lookup_new(const char *host, const char *port)
{
  struct lookup *lookup = calloc(1, sizeof *lookup);
  pthread_condattr_t attr;

  if (!lookup) return NULL;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&lookup->cond, &attr);
  pthread_condattr_destroy(&attr);
  pthread_mutex_init(&lookup->mutex, NULL);
  lookup->refs = 1;
  snprintf(lookup->host, sizeof lookup->host, "%s", host);
  snprintf(lookup->port, sizeof lookup->port, "%s", port);
  return lookup;
}

/* The thread must not run the application's signal handlers. */
static int lookup_start(struct lookup *lookup)
{
  pthread_t thread;
  sigset_t all, old;
  int rc;

  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  lookup->refs++;
  rc = pthread_create(&thread, NULL, lookup_main, lookup);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (rc)
    lookup->refs--;
  else
    pthread_detach(thread);
  return rc;
}

static bool lookup_wait(struct lookup *lookup, unsigned timeout_ms)
{
  struct timespec until;
  uint64_t at = net_now() + timeout_ms;
  bool done;

  until.tv_sec = (time_t)(at / 1000u);
  until.tv_nsec = (long)(at % 1000u) * 1000000L;
  pthread_mutex_lock(&lookup->mutex);
  while (!lookup->done)
    if (pthread_cond_timedwait(&lookup->cond, &lookup->mutex, &until)) break;
  done = lookup->done;
  pthread_mutex_unlock(&lookup->mutex);
  return done;
}

int net_resolve(const char *address, unsigned timeout_ms,
                struct net_candidates *candidates, struct net_error *error)
{
  char host[RAFT_ADDRESS_MAX], port[8];
  struct lookup *lookup;
  int rc = 0;

  if (!net_split_address(address, host, sizeof host, port, sizeof port))
    return net_fail(error, "%.128s: not an address of the form host:port",
                    address);
  if (net_numeric(host, port, candidates)) return 0;
  lookup = lookup_new(host, port);
  if (!lookup) return net_fail(error, "out of memory");
  if (lookup_start(lookup))
    rc =
        net_fail(error, "%.128s: cannot start a thread to resolve it", address);
  else if (!lookup_wait(lookup, timeout_ms))
    rc = net_fail(error, "%.128s: the name was not resolved in time", address);
  else if (lookup->rc || lookup->candidates.n == 0)
    rc = net_fail(error, "%.128s: %s", address,
                  lookup->rc ? gai_strerror(lookup->rc) : "no such address");
  else
    *candidates = lookup->candidates;
  lookup_unref(lookup);
  return rc;
}
