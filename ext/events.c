/* events.c: what happened to a node, in a ring. Any thread. */
#include "node.h"

#include <stdarg.h>
#include <stdio.h>

void events_add(struct events *events, const char *format, ...)
{
  va_list args;
  pthread_mutex_lock(&events->mutex);
  struct event *e = &events->ring[events->n % EVENTS_MAX];
  e->time_ms = clock_wall_ms();
  va_start(args, format);
  vsnprintf(e->text, sizeof(e->text), format, args);
  va_end(args);
  events->n++;
  pthread_mutex_unlock(&events->mutex);
}
