/*
** guesses.c: see guesses.h.
**
** A bucket of n tries, filled by one each interval, is the time at which it is
** full: a try takes an interval from it, and there is one while at most n - 1
** intervals are missing. (The generic cell rate algorithm of ATM.)
*/
#include "guesses.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

/* ms until there is a try in the bucket. */
static uint64_t missing(uint64_t full, uint64_t now, uint64_t every,
                        unsigned burst)
{
  uint64_t most = now + every * (burst - 1);
  return full > most ? full - most : 0;
}

static void take(uint64_t *full, uint64_t now, uint64_t every)
{
  if (*full < now) *full = now;
  *full += every;
}

void guesses_host(const char *remote, char *host, size_t size)
{
  struct in6_addr address;
  const char *end = strrchr(remote, ':');
  size_t n = end ? (size_t)(end - remote) : strlen(remote);
  if (remote[0] == '[') {
    remote++;
    n = strcspn(remote, "]%"); /* not the scope of a local one */
  }
  snprintf(host, size, "%.*s", (int)n, remote);
  if (inet_pton(AF_INET6, host, &address) != 1) return;
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    inet_ntop(AF_INET, &address.s6_addr[12], host, (socklen_t)size);
    return;
  }
  if (IN6_IS_ADDR_LOOPBACK(&address)) return;
  memset(&address.s6_addr[8], 0, 8);
  char text[INET6_ADDRSTRLEN];
  if (inet_ntop(AF_INET6, &address, text, sizeof(text)))
    snprintf(host, size, "%s/64", text);
}

static struct guesses_host *find(struct guesses *g, const char *host)
{
  for (unsigned i = 0; i < g->n; i++)
    if (strncmp(g->hosts[i].host, host, GUESSES_HOST_MAX - 1) == 0)
      return &g->hosts[i];
  return NULL;
}

bool guesses_may(struct guesses *g, const char *host, uint64_t now,
                 uint64_t *wait)
{
  const struct guesses_host *h = find(g, host);
  *wait = 0;
  /* Nobody pays for what others did. */
  if (h == NULL || now - h->last > GUESSES_FRESH_MS) return true;
  *wait = missing(h->full, now, GUESSES_EVERY_MS, GUESSES_BURST);
  uint64_t all = missing(g->full, now, GUESSES_ALL_EVERY_MS, GUESSES_ALL_BURST);
  if (all > *wait) *wait = all;
  if (*wait) g->refused++;
  return *wait == 0;
}

/* A place for a new one. */
static struct guesses_host *place(struct guesses *g)
{
  if (g->n < GUESSES_ADDRESSES) return &g->hosts[g->n++];
  struct guesses_host *oldest = &g->hosts[0];
  for (unsigned i = 1; i < g->n; i++)
    if (g->hosts[i].last < oldest->last) oldest = &g->hosts[i];
  return oldest;
}

void guesses_failed(struct guesses *g, const char *host, uint64_t now)
{
  struct guesses_host *h = find(g, host);
  g->failed++;
  if (h == NULL) {
    h = place(g);
    memset(h, 0, sizeof(*h));
    snprintf(h->host, sizeof(h->host), "%s", host);
  }
  h->last = now;
  take(&h->full, now, GUESSES_EVERY_MS);
  take(&g->full, now, GUESSES_ALL_EVERY_MS);
}

bool guesses_tell(struct guesses *g, uint64_t now, uint64_t *untold)
{
  *untold = g->untold;
  if (missing(g->told, now, GUESSES_TOLD_EVERY_MS, GUESSES_TOLD_BURST)) {
    g->untold++;
    return false;
  }
  take(&g->told, now, GUESSES_TOLD_EVERY_MS);
  g->untold = 0;
  return true;
}
