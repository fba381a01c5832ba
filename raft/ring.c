/*
** ring.c: the two containers of the core.
**
** A ring is a queue that is pushed at the back and popped at either end: the
** tail of the log, its runs of terms, writes and reads under way, proposals.
** Room is reserved first, where running out of memory can still be reported;
** a push after that cannot fail. A ring never shrinks: what it holds is
** bounded elsewhere, and a steady state allocates nothing.
*/
#include "internal.h"

#include <stdlib.h>
#include <string.h>

void raft_ring_init(struct raft_ring *ring, size_t size)
{
  memset(ring, 0, sizeof *ring);
  ring->size = size;
}

void raft_ring_free(struct raft_ring *ring)
{
  free(ring->items);
  raft_ring_init(ring, ring->size);
}

int raft_ring_reserve(struct raft_ring *ring, size_t more)
{
  size_t capacity = ring->capacity ? ring->capacity : 16;
  uint8_t *items;
  size_t part;

  if (ring->capacity - ring->n >= more) return 0;
  while (capacity - ring->n < more) {
    if (capacity > SIZE_MAX / 2 / ring->size) return RAFT_ENOMEM;
    capacity *= 2;
  }
  items = malloc(capacity * ring->size);
  if (!items) return RAFT_ENOMEM;
  if (ring->n) {
    part = ring->capacity - ring->head;
    if (part > ring->n) part = ring->n;
    memcpy(items, ring->items + ring->head * ring->size, part * ring->size);
    memcpy(items + part * ring->size, ring->items,
           (ring->n - part) * ring->size);
  }
  free(ring->items);
  ring->items = items;
  ring->capacity = capacity;
  ring->head = 0;
  return 0;
}

void *raft_ring_at(const struct raft_ring *ring, size_t i)
{
  assert(i < ring->n);
  return ring->items + ((ring->head + i) & (ring->capacity - 1)) * ring->size;
}

void *raft_ring_push(struct raft_ring *ring)
{
  assert(ring->n < ring->capacity);
  ring->n++;
  return raft_ring_at(ring, ring->n - 1);
}

void raft_ring_pop_front(struct raft_ring *ring)
{
  assert(ring->n > 0);
  ring->head = (ring->head + 1) & (ring->capacity - 1);
  ring->n--;
}

void raft_ring_pop_back(struct raft_ring *ring)
{
  assert(ring->n > 0);
  ring->n--;
}

bool raft_grow(void **items, size_t *capacity, size_t n, size_t size)
{
  size_t wanted = *capacity ? *capacity : 16;
  void *grown;

  if (n <= *capacity) return true;
  while (wanted < n) {
    if (wanted > SIZE_MAX / 2 / size) return false;
    wanted *= 2;
  }
  grown = realloc(*items, wanted * size);
  if (!grown) return false;
  *items = grown;
  *capacity = wanted;
  return true;
}
