/*
** http.h: tells over HTTP what the nodes of quorated are like: http.c.
*/
#ifndef EXT_HTTP_H
#define EXT_HTTP_H

#include "node.h"

/* Listens on "[ADDRESS:]PORT", on loopback unless an address is given, and
   answers; port 0: any. The paths stay the caller's, and until http_open() says
   that one is open, nobody here opens it. 0, or -1 and why not. */
int http_start(const char *where, unsigned n, const char *const *paths,
               struct text *error);
/* Where it listens. */
const char *http_listening(void);
/* The keeper, when it has looked at all of its files. */
void http_alive(void);
/* And about one of them: it is open now, and its node, which runs here or is
   hosted by another process, may be asked; or not, and why. */
void http_note(unsigned file, bool open, const char *state, const char *why);
/* No more answers, and no more questions: before nodes are stopped. Whoever is
   asking a node is interrupted. */
void http_stop(void);
/* After that: false: a thread has not ended in time. */
bool http_join(unsigned ms);

#endif
