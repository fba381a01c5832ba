/*
** guesses.h: how often join tokens may be tried in vain.
**
** Of one address ten times at once, and once a second after that; of all
** together more, and who has not failed lately is not held up by others. So
** whoever guesses is turned away before anything is computed for him, and
** whoever has a good token gets in meanwhile.
**
** No clock and no thread of its own: the time is an argument (ms, never going
** back), and the struct belongs to the loop thread of a node. What it knows is
** the leader's alone and ends with its process.
*/
#ifndef EXT_GUESSES_H
#define EXT_GUESSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUESSES_BURST 10      /* of one address, at once */
#define GUESSES_EVERY_MS 1000 /* and then */
#define GUESSES_ALL_BURST 100 /* of all addresses */
#define GUESSES_ALL_EVERY_MS 50
#define GUESSES_FRESH_MS                                                       \
  60000                       /* who has not failed for so long pays only for
                                  what he does himself */
#define GUESSES_TOLD_BURST 10 /* lines that tell of it */
#define GUESSES_TOLD_EVERY_MS 5000
#define GUESSES_ADDRESSES                                                      \
  256 /* remembered; the one that failed longest ago
                                 goes */
#define GUESSES_HOST_MAX 64

struct guesses_host {
  char host[GUESSES_HOST_MAX];
  uint64_t full; /* ms: when all of its tries are there again */
  uint64_t last; /* ms: when it last failed */
};

/* All zeros: nobody has failed. */
struct guesses {
  struct guesses_host hosts[GUESSES_ADDRESSES];
  unsigned n;
  uint64_t full, told;      /* of all; of the lines */
  uint64_t untold;          /* lines left out since the last one */
  uint64_t failed, refused; /* ever */
};

/* Who is meant by "1.2.3.4:5" or "[::1]:5": the address without its port; of
   IPv6 the first 64 bits, all of which one machine may have. */
void guesses_host(const char *remote, char *host, size_t size);

/* May it try? False, and *wait: ms until it may. */
bool guesses_may(struct guesses *g, const char *host, uint64_t now,
                 uint64_t *wait);
/* It has tried in vain. */
void guesses_failed(struct guesses *g, const char *host, uint64_t now);
/* Is there to be a line about it? *untold: how many there were not, before. */
bool guesses_tell(struct guesses *g, uint64_t now, uint64_t *untold);

#endif
