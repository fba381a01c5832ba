/*
** progress.c: long work of a node: what it does, how far it is, how fast it goes
** and how long it will take, for quorate_status, the events and who waits for a
** join.
**
** Whoever does something long takes one of a few places for it, and leaves word
** there now and then; any thread, under a mutex that is a leaf. The loop looks
** after them: it notices when this node, or another one that it leads, has been
** behind for a while, and writes a line into the events for each tenth that is
** done, unless they follow on each other too fast.
**
** A speed is that of the last few seconds; so is what is left.
*/
#include "progress.h"

#include "node.h"

#include <stdarg.h>
#include <stdio.h>

#define WORKS 12
#define MARK_MS 2000 /* a speed is taken over at least so long, if it can be */
#define SURE_MS 200  /* and is not told before */
#define TELL_MS 2000 /* between two lines about the same work */
#define BEHIND_MS 1000 /* without reaching what there was then */
#define SILENT_MS 3000 /* a member that is not heard of does not catch up */
#define PARTS_LEAST 4  /* of a transaction that is told of while it arrives */

struct work {
  bool used;
  char what[RAFT_NAME_MAX + 64];
  uint64_t done, total, bytes; /* total 0: not known */
  bool sized;                  /* what is done are bytes */
  uint64_t began, told_at;     /* ms */
  unsigned told;               /* tenths */
  struct {
    uint64_t ms, done, bytes;
  } marks[2]; /* the newer one first */
};

/* Somebody's way to where others were a moment ago. */
struct chase {
  raft_id id;
  raft_index from, goal;
  uint64_t since, bytes; /* ms; when it was at `from` */
  int work;
};

struct progress {
  pthread_mutex_t mutex;
  struct work works[WORKS];
  /* loop thread */
  raft_index leader_commit; /* as the leader has said */
  uint64_t received;        /* bytes of entries */
  struct chase own, others[RAFT_MEMBERS_MAX];
  unsigned n_others;
  int parts; /* the work of taking parts in */
};

struct progress *progress_new(void)
{
  struct progress *p = calloc(1, sizeof(*p));
  if (p == NULL) return NULL;
  pthread_mutex_init(&p->mutex, NULL);
  p->own.work = p->parts = -1;
  return p;
}

void progress_free(struct progress *p)
{
  if (p == NULL) return;
  pthread_mutex_destroy(&p->mutex);
  free(p);
}

/* ---- works --------------------------------------------------------------- */

int work_begin(struct node *node, const char *format, ...)
{
  struct progress *p = node->progress;
  va_list args;
  int work = 0;
  pthread_mutex_lock(&p->mutex);
  while (work < WORKS && p->works[work].used)
    work++;
  if (work < WORKS) {
    struct work *w = &p->works[work];
    *w = (struct work){.used = true, .began = clock_monotonic_ms()};
    w->marks[0].ms = w->marks[1].ms = w->told_at = w->began;
    va_start(args, format);
    vsnprintf(w->what, sizeof(w->what), format, args);
    va_end(args);
  }
  pthread_mutex_unlock(&p->mutex);
  return work < WORKS ? work : -1;
}

static void set(struct node *node, int work, uint64_t done, uint64_t total,
                uint64_t bytes, bool sized)
{
  struct progress *p = node->progress;
  if (work < 0) return;
  pthread_mutex_lock(&p->mutex);
  struct work *w = &p->works[work];
  w->done = done;
  w->total = total;
  w->bytes = bytes;
  w->sized = sized;
  pthread_mutex_unlock(&p->mutex);
}

void work_bytes(struct node *node, int work, uint64_t done, uint64_t total)
{
  set(node, work, done, total, done, true);
}

void work_steps(struct node *node, int work, uint64_t done, uint64_t total,
                uint64_t bytes)
{
  set(node, work, done, total, bytes, false);
}

void work_end(struct node *node, int *work)
{
  struct progress *p = node->progress;
  if (*work < 0) return;
  pthread_mutex_lock(&p->mutex);
  p->works[*work].used = false;
  pthread_mutex_unlock(&p->mutex);
  *work = -1;
}

/* ---- words --------------------------------------------------------------- */

struct size_text progress_size(double bytes)
{
  static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
  struct size_text text;
  unsigned unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1000;
    unit++;
  }
  snprintf(text.s, sizeof(text.s), "%.*f %s", unit && bytes < 99.95 ? 1 : 0,
           bytes, units[unit]);
  return text;
}

struct size_text progress_time(double seconds)
{
  struct size_text text;
  if (seconds < 9.95)
    snprintf(text.s, sizeof(text.s), "%.1f s", seconds);
  else if (seconds < 119.5)
    snprintf(text.s, sizeof(text.s), "%.0f s", seconds);
  else if (seconds < 7170)
    snprintf(text.s, sizeof(text.s), "%.0f min", seconds / 60);
  else
    snprintf(text.s, sizeof(text.s), "%.1f h", seconds / 3600);
  return text;
}

/* Of something that began when it was nothing. */
static double speed(uint64_t now, uint64_t then, uint64_t ms)
{
  return now > then && ms > 0 ? (double)(now - then) * 1000 / (double)ms : 0;
}

static unsigned percent_of(const struct work *w)
{
  if (w->done >= w->total) return 100;
  return (unsigned)((double)w->done * 100 / (double)w->total);
}

static void describe(const struct work *w, uint64_t now, struct text *text)
{
  uint64_t ms = now - w->marks[1].ms;
  double pace = speed(w->done, w->marks[1].done, ms);
  double bytes = speed(w->bytes, w->marks[1].bytes, ms);
  bool sure = ms >= SURE_MS;
  char *s = text->s, *end = s + sizeof(text->s);
  s += snprintf(s, (size_t)(end - s), "%s", w->what);
  if (w->total) s += snprintf(s, (size_t)(end - s), ": %u %%", percent_of(w));
  if (w->sized)
    s += snprintf(s, (size_t)(end - s), w->total ? " of %s" : ": %s",
                  progress_size((double)(w->total ? w->total : w->done)).s);
  if (sure && bytes > 0)
    s += snprintf(s, (size_t)(end - s), ", %.1f MB/s", bytes / 1e6);
  if (sure && pace > 0 && w->total > w->done)
    snprintf(s, (size_t)(end - s), ", %s left",
             progress_time((double)(w->total - w->done) / pace).s);
}

bool progress_describe(struct node *node, struct text *text)
{
  struct progress *p = node->progress;
  uint64_t now = clock_monotonic_ms();
  size_t n = 0;
  text->s[0] = 0;
  pthread_mutex_lock(&p->mutex);
  for (unsigned i = 0; i < WORKS; i++) {
    struct text one = {""};
    if (!p->works[i].used) continue;
    describe(&p->works[i], now, &one);
    /* What finds no room is left out, whole. */
    if (n + strlen(one.s) + 3 > sizeof(text->s)) break;
    n += (size_t)snprintf(text->s + n, sizeof(text->s) - n, "%s%s",
                          n ? "; " : "", one.s);
  }
  pthread_mutex_unlock(&p->mutex);
  return n > 0;
}

/* ---- the loop ------------------------------------------------------------ */

static void look_at(struct node *node, struct work *w, uint64_t now)
{
  if (now - w->marks[0].ms >= MARK_MS) {
    w->marks[1] = w->marks[0];
    w->marks[0].ms = now;
    w->marks[0].done = w->done;
    w->marks[0].bytes = w->bytes;
  }
  if (w->total == 0 || now - w->told_at < TELL_MS) return;
  unsigned tenths = percent_of(w) / 10;
  if (tenths <= w->told || tenths >= 10) return;
  struct text line = {""};
  w->told = tenths;
  w->told_at = now;
  describe(w, now, &line);
  events_add(&node->events, "%s", line.s);
}

/* It has gone on since then. */
static void backdate(struct node *node, int work, uint64_t ms)
{
  struct progress *p = node->progress;
  if (work < 0) return;
  pthread_mutex_lock(&p->mutex);
  struct work *w = &p->works[work];
  w->began = w->marks[0].ms = w->marks[1].ms = ms;
  pthread_mutex_unlock(&p->mutex);
}

/* at: where it is; end: where the others are. */
static void follow(struct node *node, struct chase *chase, const char *name,
                   raft_index at, raft_index end, uint64_t bytes, uint64_t now)
{
  bool reached = at >= chase->goal;
  bool late = now - chase->since >= BEHIND_MS;
  if (reached && chase->work >= 0 && !late) work_end(node, &chase->work);
  if (!reached && chase->work < 0 && late) {
    chase->work = name ? work_begin(node, "%s catches up", name)
                       : work_begin(node, "catching up");
    backdate(node, chase->work, chase->since);
  }
  if (reached) {
    chase->goal = end;
    chase->since = now;
    if (chase->work < 0) {
      chase->from = at;
      chase->bytes = bytes;
    }
  }
  if (chase->from > at) chase->from = at; /* it has lost some */
  if (end < at) end = at;
  if (chase->work >= 0)
    work_steps(node, chase->work, at - chase->from, end - chase->from,
               bytes - chase->bytes);
}

static void forget(struct node *node, struct chase *chase)
{
  work_end(node, &chase->work);
  *chase = (struct chase){.id = chase->id, .work = -1};
}

/* Members come and go; what is known of those that stay is kept. */
static void match_others(struct node *node, const struct raft_configuration *c)
{
  struct progress *p = node->progress;
  struct chase kept[RAFT_MEMBERS_MAX];
  unsigned n = 0;
  for (unsigned i = 0; i < c->n; i++) {
    if (c->members[i].id == node->identity.id) continue;
    struct chase *chase = &kept[n++];
    *chase = (struct chase){.id = c->members[i].id, .work = -1};
    for (unsigned k = 0; k < p->n_others; k++)
      if (p->others[k].id == chase->id) {
        *chase = p->others[k];
        p->others[k].work = -1;
      }
  }
  for (unsigned k = 0; k < p->n_others; k++)
    work_end(node, &p->others[k].work);
  memcpy(p->others, kept, n * sizeof(kept[0]));
  p->n_others = n;
}

static void look_at_other(struct node *node, struct chase *chase, uint64_t now)
{
  const struct raft_configuration *c = raft_configuration(node->raft, NULL);
  const struct raft_member *m = raft_configuration_find(c, chase->id);
  struct raft_progress progress;
  struct net_peer_status status = {0};
  net_peer_status(node->net, chase->id, &status);
  if (m == NULL || !raft_progress(node->raft, chase->id, &progress) ||
      progress.state == RAFT_SNAPSHOT || progress.last_contact == 0 ||
      now - progress.last_contact > SILENT_MS)
    forget(node, chase);
  else
    follow(node, chase, m->name, progress.match, raft_last(node->raft),
           status.sent_bytes, now);
}

void progress_heard(struct node *node, const struct raft_message *message)
{
  struct progress *p = node->progress;
  if (message->type != RAFT_APPEND_REQUEST) return;
  if (message->commit > p->leader_commit) p->leader_commit = message->commit;
  for (uint32_t i = 0; i < message->n_entries; i++)
    if (message->entries[i].body) p->received += message->entries[i].body->len;
}

/* Of a large transaction only what has arrived is known, and not how much there
   will be. */
static void look_at_parts(struct node *node)
{
  struct progress *p = node->progress;
  bool arrives = node->n_open >= PARTS_LEAST && !node->apply_busy &&
                 node->open_head.node != node->identity.id;
  if (!arrives)
    work_end(node, &p->parts);
  else if (p->parts < 0)
    p->parts = work_begin(node, "a large transaction arrives");
  if (arrives)
    work_bytes(node, p->parts, (uint64_t)node->n_open * node_limits.part_bytes,
               0);
}

void progress_tick(struct node *node)
{
  struct progress *p = node->progress;
  uint64_t now = clock_monotonic_ms();
  bool leads = raft_role(node->raft) == RAFT_LEADER;
  look_at_parts(node);
  if (leads || node->fetch || node->wal == NULL)
    forget(node, &p->own);
  else
    follow(node, &p->own, NULL, node->applied, p->leader_commit, p->received,
           now);
  static const struct raft_configuration none;
  match_others(node, leads ? raft_configuration(node->raft, NULL) : &none);
  for (unsigned i = 0; i < p->n_others; i++)
    look_at_other(node, &p->others[i], now);
  pthread_mutex_lock(&p->mutex);
  for (unsigned i = 0; i < WORKS; i++)
    if (p->works[i].used) look_at(node, &p->works[i], now);
  pthread_mutex_unlock(&p->mutex);
}
