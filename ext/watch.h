/*
** watch.h: a view of a node that runs in another process: watch.c.
*/
#ifndef EXT_WATCH_H
#define EXT_WATCH_H

/* On a terminal: live, until q or a signal, looking each `interval` seconds (0: 1).
   Else as text: once, or with an interval until nobody reads it. The exit status;
   a signal that ends it is raised again. */
int watch_run(const char *path, double interval);

#endif
