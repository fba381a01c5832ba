/*
** heap.c: what happens next, and chance.
**
** Events lie in a binary heap, ordered by virtual time and, at one time, by
** when they were put there. Chance is one splitmix64 per simulation: every
** draw goes through it, so that a seed is a whole history.
*/
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void *sim_resize(void *p, size_t bytes)
{
  p = realloc(p, bytes);
  if (!p) abort();
  return p;
}

/* ---- the heap ---------------------------------------------------------- */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
  return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_heap_push(struct sim *s, struct sim_event event)
{
  struct sim_heap *heap = &s->heap;
  struct sim_event *items;
  size_t i, parent;

  assert(event.at >= s->now);
  if (heap->n == heap->capacity) {
    heap->capacity = heap->capacity ? 2 * heap->capacity : 256;
    heap->items = sim_resize(heap->items, heap->capacity * sizeof event);
  }
  items = heap->items;
  event.order = ++heap->order;
  for (i = heap->n++; i > 0; i = parent) {
    parent = (i - 1) / 2;
    if (!before(&event, &items[parent])) break;
    items[i] = items[parent];
  }
  items[i] = event;
}

bool sim_heap_pop(struct sim *s, struct sim_event *event)
{
  struct sim_heap *heap = &s->heap;
  struct sim_event *items = heap->items, *last;
  size_t i = 0, child;

  if (heap->n == 0) return false;
  *event = items[0];
  last = &items[--heap->n];
  while ((child = 2 * i + 1) < heap->n) {
    if (child + 1 < heap->n && before(&items[child + 1], &items[child]))
      child++;
    if (!before(&items[child], last)) break;
    items[i] = items[child];
    i = child;
  }
  items[i] = *last;
  return true;
}

void sim_after(struct sim *s, struct node *n, uint8_t type, sim_time delay,
               uint64_t number)
{
  struct sim_event event = {.at = s->now + delay, .type = type};

  if (n) {
    event.node = n->id;
    event.life = n->life;
  }
  event.u.number = number;
  sim_heap_push(s, event);
}

void sim_after_any(struct sim *s, const struct node *n, uint8_t type,
                   sim_time delay, uint64_t number)
{
  struct sim_event event = {.at = s->now + delay, .type = type, .node = n->id};

  event.u.number = number;
  sim_heap_push(s, event);
}

/* ---- chance ------------------------------------------------------------ */

uint64_t sim_mix(uint64_t a, uint64_t b)
{
  uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;

  z ^= z >> 29;
  z *= 0x94d049bb133111ebu;
  return z ^ (z >> 32);
}

uint64_t sim_random(struct sim *s)
{
  uint64_t z = (s->random += 0x9e3779b97f4a7c15u);

  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t sim_below(struct sim *s, uint64_t n)
{
  return n ? (uint64_t)(((unsigned __int128)sim_random(s) * n) >> 64) : 0;
}

uint64_t sim_between(struct sim *s, uint64_t low, uint64_t high)
{
  return low + sim_below(s, high - low + 1);
}

bool sim_chance(struct sim *s, uint32_t per_million)
{
  return per_million > 0 && sim_below(s, 1000000) < per_million;
}

/* The logarithm that it takes, to the base 2, by leading zeros and a line
   between powers: no floating point, so the same on every machine. */
uint64_t sim_spread(struct sim *s, uint64_t mean)
{
  uint64_t u = sim_random(s) | 1u << 20;
  unsigned zeros = (unsigned)__builtin_clzll(u);
  uint64_t rest = (u << zeros << 1) >> 48; /* 16 bits behind the point */
  uint64_t log = ((uint64_t)(zeros + 1) << 16) - rest;

  return (mean * log / 94548); /* 2^16 / ln 2 */
}

/* ---- a table ----------------------------------------------------------- */

static struct sim_pair *find(const struct sim_map *map, uint64_t a, uint64_t b)
{
  size_t i = sim_mix(a, b) & (map->capacity - 1);

  while (map->pairs[i].value && (map->pairs[i].a != a || map->pairs[i].b != b))
    i = (i + 1) & (map->capacity - 1);
  return &map->pairs[i];
}

static void grow(struct sim_map *map)
{
  struct sim_map bigger = {.n = map->n};
  size_t i;

  bigger.capacity = map->capacity ? 2 * map->capacity : 1024;
  bigger.pairs = sim_resize(NULL, bigger.capacity * sizeof *bigger.pairs);
  memset(bigger.pairs, 0, bigger.capacity * sizeof *bigger.pairs);
  for (i = 0; i < map->capacity; i++)
    if (map->pairs[i].value)
      *find(&bigger, map->pairs[i].a, map->pairs[i].b) = map->pairs[i];
  free(map->pairs);
  *map = bigger;
}

uint64_t *sim_map_at(struct sim_map *map, uint64_t a, uint64_t b)
{
  struct sim_pair *pair;

  if (2 * (map->n + 1) > map->capacity) grow(map);
  pair = find(map, a, b);
  if (!pair->value) {
    pair->a = a;
    pair->b = b;
    map->n++;
  }
  return &pair->value;
}

uint64_t sim_map_get(const struct sim_map *map, uint64_t a, uint64_t b)
{
  return map->capacity ? find(map, a, b)->value : 0;
}
