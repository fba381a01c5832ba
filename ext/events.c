/* events.c: what happened to a node, in a ring. Any thread. */
#include "node.h"

#include <stdarg.h>
#include <stdio.h>

void (*events_echo)(const char *path, const struct event *event);

void events_add(struct events *events, const char *format, ...)
{
  va_list args;
  pthread_mutex_lock(&events->mutex);
  struct event *e = &events->ring[events->n % EVENTS_MAX];
  e->time_ms = clock_wall_ms();
  va_start(args, format);
  vsnprintf(e->text, sizeof(e->text), format, args);
  va_end(args);
  text_plain(e->text);
  events->n++;
  if (events_echo) events_echo(events->path, e);
  pthread_mutex_unlock(&events->mutex);
}
