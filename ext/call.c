/*
** call.c: carries out what SQL asks of a node; calls and answers as bytes.
**
** This is the only place where SQL functions, tables and the PRAGMA of a
** setting touch the node: sql.c, tables.c and vfs.c make a struct call of their
** arguments, and a result of the struct answer.
*/
#include "call.h"
#include "attach.h"
#include "cluster.h"
#include "trust.h"

#include <errno.h>
#include <stdio.h>
#include <strings.h>

/* ---- cells ------------------------------------------------------------- */

/* A new one, a null; NULL when memory ran out. */
static struct cell *next_cell(struct cells *cells)
{
  if (cells->bad) return NULL;
  if (cells->n == cells->cap) {
    size_t cap = cells->cap ? cells->cap * 2 : 1;
    struct cell *grown = realloc(cells->at, cap * sizeof(*grown));
    if (grown == NULL) {
      cells->bad = true;
      return NULL;
    }
    cells->at = grown;
    cells->cap = cap;
  }
  struct cell *cell = &cells->at[cells->n++];
  memset(cell, 0, sizeof(*cell));
  return cell;
}

void cells_null(struct cells *cells)
{
  next_cell(cells);
}

void cells_integer(struct cells *cells, uint64_t number)
{
  struct cell *cell = next_cell(cells);
  if (cell == NULL) return;
  cell->type = CELL_INTEGER;
  cell->number = (int64_t)number;
}

void cells_real(struct cells *cells, double real)
{
  struct cell *cell = next_cell(cells);
  if (cell == NULL) return;
  cell->type = CELL_REAL;
  cell->real = real;
}

void cells_text(struct cells *cells, const char *text)
{
  struct cell *cell = next_cell(cells);
  if (cell == NULL || text == NULL) return;
  cell->text = strdup(text);
  if (cell->text)
    cell->type = CELL_TEXT;
  else
    cells->bad = true;
}

void cells_id(struct cells *cells, uint64_t id)
{
  char hex[20];
  snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)id);
  cells_text(cells, hex);
}

void cells_clear(struct cells *cells)
{
  for (size_t i = 0; i < cells->n; i++)
    free(cells->at[i].text);
  free(cells->at);
  *cells = (struct cells){0};
}

void answer_clear(struct answer *answer)
{
  cells_clear(&answer->cells);
}

/* ---- actions ----------------------------------------------------------- */

static void refuse(struct answer *answer, const char *why)
{
  answer->status = SQLITE_ERROR;
  text_set(&answer->error, "%s", why);
}

void answer_line(struct answer *answer, int rc, const struct text *line)
{
  if (rc == 0)
    cells_text(&answer->cells, line->s);
  else if (rc == -EINTR)
    answer->status = SQLITE_INTERRUPT;
  else
    refuse(answer, line->s);
}

static void run_checkpoint(struct node *node, const struct call *call,
                           const struct interrupt *interrupt,
                           struct answer *answer)
{
  struct text line = {""};
  (void)call;
  int rc = checkpoint_now(node, interrupt, &line);
  answer_line(answer, rc, &line);
}

static void run_backup(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  struct text error = {""};
  raft_index index = 0;
  int rc =
      backup_run(node, call->arguments.at[0].text, interrupt, &index, &error);
  if (rc == 0)
    cells_integer(&answer->cells, index);
  else
    answer_line(answer, rc, &error);
}

static void run_verify(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  struct text line = {""};
  (void)call;
  int rc = verify_run(node, interrupt, &line);
  answer_line(answer, rc, &line);
}

static void run_wait(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer)
{
  const struct cells *a = &call->arguments;
  uint64_t ms = a->n > 1 ? (uint64_t)a->at[1].number : call->write_wait;
  struct text reason = {""};
  raft_index applied = 0;
  int rc = node_wait_applied(node, (raft_index)a->at[0].number, ms, interrupt,
                             &applied, &reason);
  if (rc == 0) {
    cells_integer(&answer->cells, applied);
    return;
  }
  if (rc != -EINTR) node_reason(node, "quorate_wait: %s", reason.s);
  answer_line(answer, rc, &reason);
}

static void run_follow_writer(struct node *node, const struct call *call,
                              const struct interrupt *interrupt,
                              struct answer *answer)
{
  const struct cells *a = &call->arguments;
  struct text error = {""};
  (void)interrupt;
  if (a->n > 0 && cluster_follow_writer(
                      node, strcasecmp(a->at[0].text, "on") == 0, &error)) {
    refuse(answer, error.s);
    return;
  }
  pthread_mutex_lock(&node->mutex);
  bool on = cluster_follows_writer(node);
  pthread_mutex_unlock(&node->mutex);
  cells_text(&answer->cells, on ? "on" : "off");
}

/* ---- information ------------------------------------------------------- */

static void run_role(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer)
{
  (void)call;
  (void)interrupt;
  cells_text(&answer->cells, node_role_name(node));
}

static void run_leader(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  const struct raft_member *m = node_member(node, node->view.leader);
  cells_text(&answer->cells, m ? m->name : NULL);
  pthread_mutex_unlock(&node->mutex);
}

static void run_term(struct node *node, const struct call *call,
                     const struct interrupt *interrupt, struct answer *answer)
{
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  raft_term term = node->view.term;
  pthread_mutex_unlock(&node->mutex);
  cells_integer(&answer->cells, term);
}

static void run_index(struct node *node, const struct call *call,
                      const struct interrupt *interrupt, struct answer *answer)
{
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  raft_index applied = node->applied;
  pthread_mutex_unlock(&node->mutex);
  cells_integer(&answer->cells, applied);
}

/* ---- tables ------------------------------------------------------------ */

static void run_status(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  struct cells *row = &answer->cells;
  struct text warning = {""};
  struct wal_pinner pinned = {""};
  struct store_stats stats = {0};
  char leader[RAFT_NAME_MAX] = "";
  uint32_t frames = 0, backfill = 0;
  (void)interrupt;
  pthread_mutex_lock(&node->mutex);
  struct node_view view = node->view;
  raft_index applied = node->applied;
  struct text reason = node->reason;
  bool writable = writer_refusal(node) == NULL;
  if (view.voters == 2 && node->out.s[0] == 0)
    member_sum(&warning, view.voters, MEMBERS_ARE);
  const struct raft_member *m = node_member(node, view.leader);
  if (m) memcpy(leader, m->name, sizeof(leader));
  if (node->store) store_stats(node->store, &stats);
  pthread_mutex_unlock(&node->mutex);
  if (node->wal) {
    frames = wal_frames(node->wal, &backfill);
    pinned = wal_pinner(node->wal, call->reader);
  }
  cells_text(row, node->identity.name);
  cells_id(row, node->identity.id);
  cells_id(row, node->identity.cluster);
  cells_text(row, node_role_name(node));
  cells_text(row, leader[0] ? leader : NULL);
  cells_integer(row, view.term);
  cells_integer(row, view.commit);
  cells_integer(row, applied);
  cells_integer(row, view.last);
  cells_integer(row, atomic_load(&node->shown_checkpoint));
  cells_integer(row, view.voters);
  cells_integer(row, frames);
  cells_integer(row, backfill);
  cells_text(row, pinned.s[0] ? pinned.s : NULL);
  cells_integer(row, stats.first);
  cells_integer(row, stats.bytes);
  cells_integer(row, atomic_load(&node->shared->serving));
  cells_integer(row, writable);
  cells_text(row, reason.s[0] ? reason.s : NULL);
  cells_text(row, warning.s[0] ? warning.s : NULL);
  cells_text(row, trust_time(trust_expires(node)).s);
  cells_text(row, progress_describe(node, &reason) ? reason.s : NULL);
}

static const char *member_role(uint8_t role)
{
  if (role == RAFT_LEARNER) return "learner";
  return role == RAFT_LEAVING ? "leaving" : "voter";
}

static void run_members(struct node *node, const struct call *call,
                        const struct interrupt *interrupt,
                        struct answer *answer)
{
  struct cells *row = &answer->cells;
  struct member_row *rows = NULL;
  unsigned n = 0;
  (void)call;
  int rc = cluster_members(node, interrupt, &rows, &n);
  if (rc) answer->status = rc == -EINTR ? SQLITE_INTERRUPT : SQLITE_NOMEM;
  for (unsigned i = 0; i < n; i++) {
    const struct member_row *r = &rows[i];
    cells_text(row, r->name);
    cells_id(row, r->id);
    cells_text(row, r->address);
    cells_text(row, member_role(r->role));
    cells_text(row, r->state);
    if (r->known) {
      cells_integer(row, r->match);
      cells_integer(row, r->lag_entries);
    } else {
      cells_null(row);
      cells_null(row);
    }
    if (r->contact_ms >= 0)
      cells_integer(row, (uint64_t)r->contact_ms);
    else
      cells_null(row);
    cells_text(row, r->expires ? trust_time(r->expires).s : NULL);
    if (r->known)
      cells_integer(row, r->lag_ms);
    else
      cells_null(row);
    if (r->round_trip_us)
      cells_real(row, r->round_trip_us / 1e3);
    else
      cells_null(row);
  }
  free(rows);
}

static void run_events(struct node *node, const struct call *call,
                       const struct interrupt *interrupt, struct answer *answer)
{
  struct events *events = &node->events;
  (void)call;
  (void)interrupt;
  pthread_mutex_lock(&events->mutex);
  uint64_t first = events->n > EVENTS_MAX ? events->n - EVENTS_MAX : 0;
  for (uint64_t i = first; i < events->n; i++) {
    const struct event *e = &events->ring[i % EVENTS_MAX];
    cells_text(&answer->cells, clock_text(e->time_ms).s);
    cells_text(&answer->cells, e->text);
  }
  pthread_mutex_unlock(&events->mutex);
}

/* ---- calls ------------------------------------------------------------- */

/* What there is: how many arguments it takes, and of which shape its answer
   is. */
static const struct kind {
  unsigned least, most, columns;
  bool table; /* any number of rows, not one */
  void (*run)(struct node *node, const struct call *call,
              const struct interrupt *interrupt, struct answer *answer);
} kinds[] = {
    [CALL_INVITE] = {1, 2, 1, false, invite_run_give},
    [CALL_CHECKPOINT] = {0, 0, 1, false, run_checkpoint},
    [CALL_BACKUP] = {1, 1, 1, false, run_backup},
    [CALL_VERIFY] = {0, 0, 1, false, run_verify},
    [CALL_WAIT] = {1, 2, 1, false, run_wait},
    [CALL_ROLE] = {0, 0, 1, false, run_role},
    [CALL_LEADER] = {0, 0, 1, false, run_leader},
    [CALL_TERM] = {0, 0, 1, false, run_term},
    [CALL_INDEX] = {0, 0, 1, false, run_index},
    [CALL_FOLLOW_WRITER] = {0, 1, 1, false, run_follow_writer},
    [CALL_STATUS] = {0, 0, 22, true, run_status},
    [CALL_MEMBERS] = {0, 0, 11, true, run_members},
    [CALL_EVENTS] = {0, 0, 2, true, run_events},
    [CALL_PROMOTE] = {1, 1, 1, false, member_run_promote},
    [CALL_DEMOTE] = {1, 1, 1, false, member_run_demote},
    [CALL_REMOVE] = {1, 1, 1, false, member_run_remove},
    [CALL_TRANSFER] = {0, 1, 1, false, member_run_transfer},
    [CALL_ADVERTISE] = {0, 1, 1, false, member_run_advertise},
    [CALL_UNINVITE] = {1, 1, 1, false, invite_run_withdraw},
    [CALL_INVITATIONS] = {0, 0, 8, true, invite_run_list},
    [CALL_METRICS] = {0, 0, 4, true, metrics_run},
    [CALL_ROTATE_CA] = {0, 1, 1, false, trust_run_rotate},
    [CALL_LOG] = {4, 4, 7, true, entries_run},
};

/* NULL: there is no such call. */
static const struct kind *kind_of(uint8_t what)
{
  if (what >= sizeof(kinds) / sizeof(kinds[0]) || kinds[what].run == NULL)
    return NULL;
  return &kinds[what];
}

unsigned call_columns(uint8_t what)
{
  const struct kind *kind = kind_of(what);
  return kind ? kind->columns : 0;
}

#define WAIT_MAX_MS 3600000

static bool has_text(const struct cell *cell)
{
  return cell->type == CELL_TEXT && cell->text[0];
}

static bool has_number(const struct cell *cell, int64_t most)
{
  return cell->type == CELL_INTEGER && cell->number >= 0 &&
         cell->number <= most;
}

const char *call_file_fault(const char *file)
{
  if (strcmp(file, ":memory:") == 0)
    return "a database in memory is no file: give a path";
  if (strncmp(file, "file:", 5) == 0)
    return "the file is a URI: give its path, without file: and parameters";
  return NULL;
}

/* What is wrong with the arguments; NULL: nothing. */
static const char *find_fault(const struct call *call)
{
  const struct kind *kind = kind_of(call->what);
  const struct cell *a = call->arguments.at;
  size_t n = call->arguments.n;
  uint8_t role;
  if (call->arguments.bad) return "out of memory";
  if (kind == NULL) return "no such function";
  if (n < kind->least || n > kind->most) return "wrong number of arguments";
  switch (call->what) {
  case CALL_PROMOTE:
  case CALL_DEMOTE:
  case CALL_REMOVE: return has_text(&a[0]) ? NULL : "the name is missing";
  case CALL_UNINVITE:
  case CALL_INVITE:
    if (!has_text(&a[0])) return "the name is missing";
    if (n > 1 && !(has_text(&a[1]) && invite_role(a[1].text, &role)))
      return "the role must be voter or learner";
    return NULL;
  case CALL_LOG:
    return has_number(&a[0], INT64_MAX) && has_number(&a[1], INT64_MAX) &&
                   has_number(&a[2], ENTRIES_MOST) && has_number(&a[3], 1)
               ? NULL
               : "malformed range";
  case CALL_TRANSFER:
    return n == 0 || has_text(&a[0]) ? NULL : "the name is missing";
  case CALL_ADVERTISE:
    if (n > 0 && !(has_text(&a[0]) && cluster_address_ok(a[0].text, true)))
      return "must be HOST:PORT, or [IPv6]:PORT";
    if (n > 0 && !cluster_address_dialled(a[0].text))
      return "must be an address of this machine that the others can dial";
    return NULL;
  case CALL_BACKUP:
    return has_text(&a[0]) ? call_file_fault(a[0].text) : "the file is missing";
  case CALL_WAIT:
    if (!has_number(&a[0], INT64_MAX))
      return "the index must be an integer, 0 or more";
    if (n > 1 && !has_number(&a[1], WAIT_MAX_MS))
      return "the wait must be 0 to 3600000 ms";
    return NULL;
  case CALL_ROTATE_CA:
    if (n > 0 && !has_number(&a[0], WAIT_MAX_MS))
      return "the wait must be 0 to 3600000 ms";
    return NULL;
  case CALL_FOLLOW_WRITER:
    if (n > 0 && !(has_text(&a[0]) && (strcasecmp(a[0].text, "on") == 0 ||
                                       strcasecmp(a[0].text, "off") == 0)))
      return "must be on or off";
    return NULL;
  default: return NULL;
  }
}

bool call_check(const struct call *call, struct text *error)
{
  const char *fault = find_fault(call);
  if (fault) text_set(error, "%s", fault);
  return fault == NULL;
}

int call_run(struct node *node, const struct call *call,
             const struct interrupt *interrupt, struct answer *answer)
{
  const char *fault = find_fault(call);
  *answer = (struct answer){.status = SQLITE_OK};
  if (fault) {
    refuse(answer, fault);
    return answer->status;
  }
  const struct kind *kind = kind_of(call->what);
  answer->n_columns = kind->columns;
  kind->run(node, call, interrupt, answer);
  if (answer->cells.bad) answer->status = SQLITE_NOMEM;
  if (answer->status != SQLITE_OK) {
    cells_clear(&answer->cells);
    answer->n_columns = 0;
  }
  return answer->status;
}

/* A file's name means what it does in this process. */
static int complete(struct call *call, struct answer *answer)
{
  char *path = NULL;
  if (call->what != CALL_BACKUP || find_fault(call)) return SQLITE_OK;
  struct cell *file = &call->arguments.at[0];
  if (backup_path(file->text, &path, &answer->error) != 0) return SQLITE_ERROR;
  free(file->text);
  file->text = path;
  return SQLITE_OK;
}

/* What does something may have been done by the host before. To ask again for
   what is to be so does no harm, but whoever leads now may be the one that
   leadership went to. */
static bool happens_once(uint8_t what)
{
  return what < CALL_WAIT || what == CALL_TRANSFER;
}

int call_do(struct connection *connection, struct call *call,
            const struct interrupt *interrupt, struct answer *answer)
{
  *answer = (struct answer){.status = SQLITE_OK};
  if (vfs_inherited(connection)) {
    vfs_refuse_inherited(connection);
    answer->error = connection->reason;
    return answer->status = SQLITE_ERROR;
  }
  call->write_wait = connection->write_wait;
  call->reader = connection->reader.slot;
  answer->status = complete(call, answer);
  if (answer->status != SQLITE_OK) return answer->status;
  int rc = VFS_MOVED;
  for (int i = 0; i < VFS_MOVES && rc == VFS_MOVED; i++) {
    vfs_locate(connection);
    rc = connection->node ? call_run(connection->node, call, interrupt, answer)
                          : attach_call(connection, call, interrupt, answer);
    if (rc == VFS_MOVED && happens_once(call->what)) break;
  }
  if (connection->node) return rc;
  if (rc == SQLITE_OK) {
    if (answer->error.s[0]) connection->reason = answer->error;
    return answer->status;
  }
  *answer =
      (struct answer){.status = rc == SQLITE_INTERRUPT ? rc : SQLITE_ERROR};
  if (rc == VFS_MOVED)
    text_set(&answer->error, "the process that hosted the node has ended: try "
                             "again");
  else
    answer->error = connection->reason;
  return answer->status;
}

/* ---- as bytes ---------------------------------------------------------- */

static uint64_t bits_of(double real)
{
  uint64_t bits;
  memcpy(&bits, &real, sizeof(bits));
  return bits;
}

static double real_of(uint64_t bits)
{
  double real;
  memcpy(&real, &bits, sizeof(real));
  return real;
}
_Static_assert(sizeof(double) == sizeof(uint64_t), "as its bits");

static void pack_cells(struct packer *out, const struct cells *cells)
{
  pack_u32(out, (uint32_t)cells->n);
  for (size_t i = 0; i < cells->n; i++) {
    const struct cell *cell = &cells->at[i];
    pack_u8(out, (uint8_t)cell->type);
    if (cell->type == CELL_INTEGER) pack_u64(out, (uint64_t)cell->number);
    if (cell->type == CELL_REAL) pack_u64(out, bits_of(cell->real));
    if (cell->type == CELL_TEXT) pack_text(out, cell->text);
  }
}

static void parse_cell(struct parser *p, struct cells *cells)
{
  switch (parse_u8(p)) {
  case CELL_NULL: cells_null(cells); break;
  case CELL_INTEGER: cells_integer(cells, parse_u64(p)); break;
  case CELL_REAL: cells_real(cells, real_of(parse_u64(p))); break;
  case CELL_TEXT: cells_text(cells, parse_text(p)); break;
  default: p->bad = true;
  }
}

/* Each is of a byte at least, so no number of them is believed before they are
   there. */
static void parse_cells(struct parser *p, struct cells *cells)
{
  uint32_t n = parse_u32(p);
  for (uint32_t i = 0; i < n && !p->bad && !cells->bad; i++)
    parse_cell(p, cells);
}

/* Of what was appended since `begin`. */
static int packed(const struct packer *out, size_t begin, size_t most)
{
  if (out->bad) return -ENOMEM;
  return out->len - begin > most ? -EMSGSIZE : 0;
}

int call_pack(const struct call *call, struct packer *out)
{
  size_t begin = out->len;
  if (call->arguments.bad) return -ENOMEM;
  pack_u8(out, call->what);
  pack_u32(out, call->write_wait);
  pack_cells(out, &call->arguments);
  return packed(out, begin, CALL_BYTES_MAX);
}

int answer_pack(const struct answer *answer, struct packer *out)
{
  size_t begin = out->len;
  pack_u32(out, (uint32_t)answer->status);
  pack_text(out, answer->error.s);
  pack_u32(out, answer->n_columns);
  pack_cells(out, &answer->cells);
  return packed(out, begin, ANSWER_BYTES_MAX);
}

/* How an unpacking ended; nothing is left of one that failed. */
static int unpacked(const struct parser *p, bool good, struct cells *cells)
{
  int rc = cells->bad ? -ENOMEM : good && parser_done(p) ? 0 : -EBADMSG;
  if (rc) cells_clear(cells);
  return rc;
}

int call_unpack(const void *data, size_t len, struct call *call)
{
  struct parser p = parser_of(data, len);
  *call = (struct call){0};
  if (len > CALL_BYTES_MAX) return -EBADMSG;
  call->what = parse_u8(&p);
  call->write_wait = parse_u32(&p);
  parse_cells(&p, &call->arguments);
  bool good = kind_of(call->what) != NULL;
  return unpacked(&p, good, &call->arguments);
}

/* Whoever takes an answer relies on this. */
static bool has_shape(const struct answer *answer, const struct kind *kind)
{
  if (answer->status != SQLITE_OK)
    return answer->status > 0 && answer->n_columns == 0 && answer->cells.n == 0;
  return answer->n_columns == kind->columns &&
         answer->cells.n % kind->columns == 0 &&
         (kind->table || answer->cells.n == kind->columns);
}

int answer_unpack(const void *data, size_t len, const struct call *call,
                  struct answer *answer)
{
  const struct kind *kind = kind_of(call->what);
  struct parser p = parser_of(data, len);
  *answer = (struct answer){0};
  if (len > ANSWER_BYTES_MAX || kind == NULL) return -EBADMSG;
  answer->status = (int)parse_u32(&p);
  const char *error = parse_text(&p);
  bool good = strlen(error) < sizeof(answer->error.s);
  if (good) memcpy(answer->error.s, error, strlen(error) + 1);
  answer->n_columns = parse_u32(&p);
  parse_cells(&p, &answer->cells);
  good = good && has_shape(answer, kind);
  int rc = unpacked(&p, good, &answer->cells);
  if (rc) *answer = (struct answer){0};
  return rc;
}
