/*
** heal.c: the disk is well again; are the nodes?
**
** A node that has failed says so and why, and is started anew, as the manual
** tells its users. A node whose disk was full goes on by itself. Everything
** else must not have noticed.
*/
#include "fault.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ROOM_MS 30000 /* until a disk that has room is noticed */
#define STATUS_MS 20000
#define START_TRIES 2

struct state {
  bool failed; /* it has to be started anew */
  bool full;   /* it says that it waits for room */
  char words[256], why[300];
};

static void look_at(struct node *node, struct state *s)
{
  pthread_mutex_lock(&node->mutex);
  s->failed = node->failed;
  snprintf(s->why, sizeof(s->why), "%.299s", node->reason.s);
  pthread_mutex_unlock(&node->mutex);
  int status = atomic_load(&node->disk_status);
  s->full = !s->failed && status == -ENOSPC;
  s->failed = s->failed || (status != 0 && status != -ENOSPC);
  pthread_mutex_lock(&node->events.mutex);
  uint64_t n = node->events.n;
  snprintf(s->words, sizeof(s->words), "%s",
           n ? node->events.ring[(n - 1) % EVENTS_MAX].text : "");
  pthread_mutex_unlock(&node->events.mutex);
}

static void read_status(sqlite3 *db, char *words, size_t size)
{
  sqlite3_stmt *stmt = NULL;
  words[0] = 0;
  if (sqlite3_prepare_v2(db, "SELECT role, reason FROM quorate_status", -1,
                         &stmt, NULL) == SQLITE_OK &&
      sqlite3_step(stmt) == SQLITE_ROW)
    snprintf(words, size, "%s: %s", (const char *)sqlite3_column_text(stmt, 0),
             sqlite3_column_type(stmt, 1) == SQLITE_NULL
                 ? ""
                 : (const char *)sqlite3_column_text(stmt, 1));
  sqlite3_finalize(stmt);
}

/* Users learn of it by the table, in words. */
static void says_why(struct run *r, unsigned node)
{
  char words[300];
  uint64_t end = clock_monotonic_ms() + STATUS_MS;
  do { /* the log's thread knows it a moment sooner than the table */
    read_status(r->world.db[node], words, sizeof(words));
    if (strstr(words, "failed: ") || strstr(words, "has failed")) return;
    usleep(2000);
  } while (clock_monotonic_ms() < end);
  wrong(r, "node %u has failed, and its status is: '%s'", node, words);
}

static void start(struct run *r, unsigned node)
{
  char error[512] = "";
  for (unsigned i = 0; i < START_TRIES; i++)
    if (world_open(&r->world, node, error, sizeof(error))) return;
  wrong(r, "the disk is well: %s", error);
}

static void wait_for_room(struct run *r, unsigned node, struct state *s)
{
  uint64_t end = clock_monotonic_ms() + ROOM_MS;
  while (s->full && clock_monotonic_ms() < end) {
    usleep(20000);
    look_at(world_node(&r->world, node), s);
  }
  if (s->full) wrong(r, "node %u does not notice that there is room", node);
}

static void heal_node(struct run *r, unsigned node)
{
  struct state s;
  if (r->world.db[node] == NULL) {
    if (r->kept[node]) start(r, node);
    return;
  }
  look_at(world_node(&r->world, node), &s);
  if (s.full) wait_for_room(r, node, &s);
  if (!s.failed) return;
  if (r->point.error == ENOSPC)
    wrong(r, "node %u has failed for want of room: %s: %s", node, s.why,
          s.words);
  says_why(r, node);
  if (!world_stop(&r->world, node, true))
    wrong(r, "node %u has failed and does not stop", node);
  start(r, node);
}

void heal(struct run *r, const struct scene *scene)
{
  struct known *k = &r->told->known;
  struct check check = {.root = r->world.root,
                        .nodes = r->world.nodes,
                        .known = k,
                        .seed = r->point.at,
                        .why = r->told->why,
                        .size = WHY};
  /* What a fault begins may go on after it. */
  for (unsigned round = 0; round < 2; round++)
    for (unsigned i = 1; i <= r->world.nodes; i++)
      heal_node(r, i);
  /* Nothing fails any more: now every refusal is wrong. */
  atomic_store(&r->told->healed, true);
  if (scene->again) scene->again(r);
  for (unsigned i = 1; i <= r->world.nodes; i++)
    heal_node(r, i);
  if (r->world.db[1] == NULL) return; /* detached */
  for (unsigned i = 1; i <= r->world.nodes; i++) {
    if (r->world.db[i] == NULL) continue;
    world_exec(r->world.db[i], "PRAGMA quorate_write_wait=5000");
    sqlite3_busy_timeout(r->world.db[i], 5000);
  }
  uint64_t n, digest;
  if (!check_running(&check, &r->world, &n, &digest)) _exit(1);
  k->any = true;
  k->n = n;
  k->digest = digest;
  k->history[n] = digest;
  k->n_history = n + 1;
  k->pending = false;
}
