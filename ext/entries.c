/*
** entries.c: the table quorate_log: what is in this node's log.
**
** Of each entry only the header and the beginning of its body are read, from
** the log's files, on the thread that asks, some at a time: a list costs the
** same whatever the size of the transactions, and no commit waits for it. What
** is listed is durable here, and not necessarily agreed on.
**
** Who reads holds the log meanwhile; who closes it waits for that.
*/
#include "call.h"

#include <errno.h>
#include <sqlite3ext.h>
#include <stdio.h>

SQLITE_EXTENSION_INIT3

#define AT_A_TIME 256

/* ---- holding it -------------------------------------------------------- */

struct store *entries_hold(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  struct store *store = node->stopping ? NULL : node->store;
  if (store) node->store_users++;
  pthread_mutex_unlock(&node->mutex);
  return store;
}

void entries_release(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  if (--node->store_users == 0) pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

void entries_close(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  struct store *store = node->store;
  node->store = NULL;
  while (node->store_users > 0)
    pthread_cond_wait(&node->changed, &node->mutex);
  pthread_mutex_unlock(&node->mutex);
  store_close(store);
}

/* ---- rows -------------------------------------------------------------- */

static const char *type_name(uint8_t type)
{
  static const char *const names[] = {[RAFT_NOOP] = "noop",
                                      [RAFT_CONFIGURATION] = "configuration",
                                      [RAFT_PAGES] = "pages",
                                      [RAFT_COMMIT] = "commit",
                                      [RAFT_SETTING] = "setting"};
  return type < sizeof(names) / sizeof(names[0]) ? names[type] : NULL;
}

static void add_origin(struct node *node, struct cells *row, uint64_t id)
{
  char name[RAFT_NAME_MAX] = "";
  pthread_mutex_lock(&node->mutex);
  const struct raft_member *m = node_member(node, id);
  if (m) memcpy(name, m->name, sizeof(name));
  pthread_mutex_unlock(&node->mutex);
  if (name[0])
    cells_text(row, name);
  else
    cells_id(row, id); /* it is no member any more */
}

/* A time that another node has set may be any. */
static void add_time(struct cells *row, int64_t ms)
{
  bool sane = ms >= 0 && ms < INT64_C(253402300800000); /* the year 10000 */
  cells_text(row, sane ? clock_text(ms).s : NULL);
}

static void add_row(struct node *node, struct cells *row,
                    const struct store_head *head)
{
  struct tx_head tx;
  bool has_pages = head->type == RAFT_PAGES || head->type == RAFT_COMMIT;
  cells_integer(row, head->index);
  cells_integer(row, head->term);
  cells_text(row, type_name(head->type));
  if (has_pages && head->length >= sizeof(tx)) {
    memcpy(&tx, head->data, sizeof(tx));
    cells_integer(row, tx.count);
    cells_integer(row, head->length);
    add_origin(node, row, tx.node);
    add_time(row, tx.time_ms);
  } else {
    cells_null(row);
    cells_integer(row, head->length);
    cells_null(row);
    cells_null(row);
  }
}
_Static_assert(sizeof(struct tx_head) <= STORE_HEAD, "it is all read");

/* From `from` to `to`, which are in the log, or were just now. */
static int list(struct node *node, struct store *store, raft_index from,
                raft_index to, struct answer *answer,
                const struct interrupt *interrupt)
{
  struct store_head *heads = malloc(AT_A_TIME * sizeof(*heads));
  char *line = NULL;
  int n = 1;
  if (heads == NULL) return -ENOMEM;
  while (n > 0 && from <= to && !interrupt->raised(interrupt->ctx)) {
    n = store_peek(store, from, to, AT_A_TIME, heads, &line);
    for (int i = 0; i < n; i++)
      add_row(node, &answer->cells, &heads[i]);
    if (n > 0) from += (unsigned)n;
  }
  free(heads);
  if (n < 0 && n != -ENOENT)
    text_set(&answer->error, "%s", line ? line : errno_text(-n).s);
  free(line);
  if (n >= 0 && interrupt->raised(interrupt->ctx)) return -EINTR;
  return n == -ENOENT || n > 0 ? 0 : n; /* the log was cut meanwhile */
}

/* from, to, most; newest: the last ones of these, not the first. */
void entries_run(struct node *node, const struct call *call,
                 const struct interrupt *interrupt, struct answer *answer)
{
  const struct cell *a = call->arguments.at;
  raft_index from = (raft_index)a[0].number, to = (raft_index)a[1].number;
  uint64_t most = (uint64_t)a[2].number;
  struct store_stats stats;
  struct store *store = entries_hold(node);
  if (store == NULL) {
    answer->status = SQLITE_ERROR;
    text_set(&answer->error, "the log is closed");
    return;
  }
  store_stats(store, &stats);
  if (from < stats.first) from = stats.first;
  if (to > stats.last) to = stats.last;
  int rc = 0;
  if (from <= to && most > 0) {
    bool more = to - from >= most;
    if (more && a[3].number) from = to - most + 1;
    if (more && !a[3].number) to = from + most - 1;
    rc = list(node, store, from, to, answer, interrupt);
  }
  entries_release(node);
  if (rc)
    answer->status = rc == -ENOMEM  ? SQLITE_NOMEM
                     : rc == -EINTR ? SQLITE_INTERRUPT
                                    : SQLITE_ERROR;
}
