/*
** detach.c: quorate_detach(): a node's file becomes an ordinary one again.
**
** 1. The node is stopped in order: leadership is handed over, everything that
**    is confirmed is in the database file, and synced.
** 2. The file is locked, so that nobody looks at it between two steps.
** 3. FILE-quorate is renamed to FILE-quorate.detached. From here on no node
**    can start: others may write the file soon.
** 4. -wal and -shm, which hold nothing any more, are removed.
** 5. Byte 18 of the file becomes 2: an ordinary database in WAL mode, as its
**    users knew it. This is one byte, so it is done or not.
** 6. FILE-quorate.detached is removed.
**
** Whatever is killed before 3 is a node that can start again. Between 3 and 5
** the file can be read and not written; a second quorate_detach() finds byte
** 18 without a directory and goes on. After 5 it is an ordinary file.
**
** A node that cannot start is detached without its log, if what is beside the
** log tells a state: -wal has all that is confirmed and not yet in the file
** (wal.h, W1), and a checkpoint that was cut off makes sense only together
** with it. Since nobody may believe the checkpoint once more is in the file,
** step 3 comes before the copying here, and the directory, with what is left
** of the log, is kept as FILE-quorate.kept. -wal is synced before that: there is
** no log any more to make it from.
*/
#include "cluster.h"
#include "vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define FATES_MS 5000 /* wait for what is in flight */
#define DETACHED ".detached"
#define PAUSE_MS 20
#define PAUSES 75
#define KEPT ".kept"

static int refuse(struct text *error, const char *path, const char *why)
{
  text_set(error, "%s: %s", path, why);
  return -EBUSY;
}

/* ---- the files --------------------------------------------------------- */

int detach_check_others(int db, const char *path, struct text *error)
{
  struct timespec pause = {0, PAUSE_MS * 1000000};
  struct flock lock;
  /* An attached process keeps the file for a moment when it has closed it. */
  for (int i = 0; i < PAUSES; i++) {
    lock = (struct flock){
        .l_type = F_WRLCK, .l_start = WAL_DB_LOCKS, .l_len = WAL_DB_LOCKS_SIZE};
    if (fcntl(db, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return 0;
    if (lock.l_pid > 0) break; /* another kind of lock */
    nanosleep(&pause, NULL);
  }
  if (lock.l_pid > 0 && lock.l_pid != getpid())
    text_set(error, "%s: process %d has it open: close it there first", path,
             (int)lock.l_pid);
  else
    text_set(error,
             "%s: it is open, by another process or since before the "
             "extension was loaded: close it there first",
             path);
  return -EBUSY;
}

int detach_exclude(struct wal *wal, struct text *error)
{
  int rc = detach_check_others(wal->db, wal->path, error);
  if (rc) return rc;
  if (!wal_forbid(wal))
    return refuse(error, wal->path,
                  "a connection of this process is in a transaction");
  if (wal_lock(wal->db, F_WRLCK, WAL_DB_LOCKS, WAL_DB_LOCKS_SIZE) == 0)
    return 0;
  return refuse(error, wal->path, "another process has it open");
}

void detach_release(struct wal *wal)
{
  wal_lock(wal->db, F_UNLCK, WAL_DB_LOCKS, WAL_DB_LOCKS_SIZE);
  wal_lock(wal->shm, F_UNLCK, 0, 0);
}

/* Step 4 and 5. */
static int make_ordinary(struct wal *wal, struct text *error)
{
  static const char *const beside[] = {"-wal", "-shm"};
  const struct io *io = wal->io;
  const uint8_t version = 2;
  int rc = 0;
  for (int i = 0; rc == 0 && i < 2; i++) {
    char *name = NULL;
    if (asprintf(&name, "%s%s", wal->path, beside[i]) < 0) return -ENOMEM;
    rc = io->unlink(io->ctx, name);
    if (rc == -ENOENT) rc = 0;
    free(name);
  }
  if (rc == 0) rc = io_sync_parent(io, wal->path);
  if (rc == 0) rc = io->pwrite(io->ctx, wal->db, &version, 1, 18);
  if (rc == 0) rc = io->sync(io->ctx, wal->db);
  if (rc)
    text_set(error, "%s: %s: call quorate_detach again to finish", wal->path,
             errno_text(-rc).s);
  return rc;
}

static int no_floor(void *ctx, raft_index index)
{
  (void)ctx;
  (void)index;
  return 0; /* there is no node that could start */
}

/* Everything in -wal into the file, then as above. */
static int fold_and_make_ordinary(struct wal *wal, struct text *error)
{
  struct wal_checkpointed done;
  int rc = wal_checkpoint(wal, no_floor, NULL, &done);
  if (rc == 0 && !done.full) rc = -EBUSY;
  if (rc) {
    text_set(error, "%s: %s: call quorate_detach again to finish", wal->path,
             errno_text(-rc).s);
    return rc;
  }
  return make_ordinary(wal, error);
}

static char *dir_of(const char *path, const char *suffix)
{
  char *dir = NULL;
  return asprintf(&dir, "%s-quorate%s", path, suffix) < 0 ? NULL : dir;
}

static bool is_directory(const char *path)
{
  struct stat st;
  return path && lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static void drop_directory(const char *path)
{
  char *dir = dir_of(path, DETACHED);
  if (is_directory(dir)) cluster_remove_directory(dir);
  free(dir);
}

/* Step 3. */
static int set_aside(const char *path, const char *suffix, struct text *error)
{
  const struct io *io = &io_posix;
  char *from = dir_of(path, ""), *to = dir_of(path, suffix);
  int rc = from && to ? 0 : -ENOMEM;
  if (rc == 0 && strcmp(suffix, KEPT) == 0 && is_directory(to)) rc = -EEXIST;
  if (rc == 0 && is_directory(to)) cluster_remove_directory(to);
  if (rc == 0) rc = io->rename(io->ctx, from, to);
  if (rc == 0) rc = io_sync_parent(io, path);
  if (rc) text_set(error, "%s: %s", to ? to : path, errno_text(-rc).s);
  free(from);
  free(to);
  return rc;
}

/* ---- a node of this process -------------------------------------------- */

int detach_wait(struct node *node, const struct interrupt *interrupt)
{
  struct timespec end = clock_deadline(FATES_MS);
  int rc = 0;
  if (interrupt->raised(interrupt->ctx)) return -EINTR;
  pthread_mutex_lock(&node->mutex);
  node->watchers++;
  while (rc == 0 && node->inflight && !node->writer && !node->stopping &&
         !node->failed && !node_log_failed(node))
    rc = node_wait(node, &node->changed, &end, interrupt);
  node->watchers--;
  pthread_mutex_unlock(&node->mutex);
  return rc == -EINTR ? rc : 0;
}

/* Why what is in flight has no fate yet; NULL: nothing is. */
static const char *why_unsettled(struct node *node)
{
  const char *why = NULL;
  pthread_mutex_lock(&node->mutex);
  if (node->inflight) {
    why = full_log(node) ? "no room for the log" : writer_refusal(node);
    if (why == NULL) why = "the others have not answered";
  }
  pthread_mutex_unlock(&node->mutex);
  return why;
}

bool detach_is_used(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  bool used = node->writer != NULL;
  pthread_mutex_unlock(&node->mutex);
  struct control_pinned pinned;
  unsigned i = 0;
  control_reap(node->map);
  while (!used && control_next_pinned(node->map, 0, &i, &pinned))
    used = !atomic_load(&pinned.slot->of_node);
  return used;
}

int detach_check(struct node *node, struct text *error)
{
  const char *why = why_unsettled(node);
  bool used = detach_is_used(node);
  if ((used || why) && node_log_failed(node)) /* what is in flight stays so */
    return refuse(error, node->path, NODE_LOG_FAILED);
  if (used)
    return refuse(error, node->path,
                  "a connection of this process is in a transaction, or "
                  "copies it");
  if (why == NULL) return detach_check_others(node->wal->db, node->path, error);
  text_set(error,
           "%s: it is not known yet whether a transaction is committed: %s: "
           "try again, or call quorate_stop first and it stays unknown",
           node->path, why);
  return -EBUSY;
}

static void say_detached(struct node *node, raft_index index,
                         struct text *answer)
{
  pthread_mutex_lock(&node->mutex);
  bool alone = node->members.n < 2 || node->out.s[0];
  pthread_mutex_unlock(&node->mutex);
  text_set(answer,
           alone ? "detached at index %llu: an ordinary database now"
                 : "detached at index %llu: an ordinary database now; to the "
                   "other nodes %s is an unreachable member until it is "
                   "removed",
           (unsigned long long)index, node->identity.name);
}

int detach_node(struct node *node, struct text *answer)
{
  int rc = node->wal ? detach_check(node, answer)
                     : refuse(answer, node->path, "the node is still joining");
  if (rc) return rc;
  node_stop(node, true);
  if (!node->clean) {
    text_set(answer,
             "%s: the node is stopped, but not all is in the database "
             "file: %s",
             node->path,
             node->failed      ? node->reason.s
             : node->kept.s[0] ? node->kept.s
                               : "see quorate_events");
    return -EBUSY;
  }
  raft_index index = node->wal->confirmed_index;
  rc = detach_exclude(node->wal, answer);
  if (rc) return rc;
  rc = set_aside(node->path, DETACHED, answer);
  if (rc == 0) rc = make_ordinary(node->wal, answer);
  /* Connections that are open may keep the rest of the node for long. */
  detach_release(node->wal);
  if (rc) return rc;
  drop_directory(node->path);
  say_detached(node, index, answer);
  return 0;
}

/* ---- a node that cannot start ------------------------------------------ */

/* The index of what file and -wal hold; *exact false: that or a later one. */
static int held_index(const struct node *node, raft_index confirmed,
                      raft_index *index, bool *exact, struct text *error)
{
  const struct store_checkpoint *cp = &node->checkpoint;
  bool frames = node->wal->backfill == 0; /* there were some in -wal */
  *index = cp->floor;
  *exact = !frames;
  if (frames && confirmed >= cp->floor) {
    *index = confirmed;
    *exact = true;
  }
  if (frames || cp->floor == cp->index) return 0;
  text_set(error,
           "%s: a checkpoint was cut off between entries %llu and %llu, and "
           "the -wal with the rest is gone",
           node->path, (unsigned long long)cp->index,
           (unsigned long long)cp->floor);
  return -EBADMSG;
}

/* The pages of a snapshot that was taken, one that nothing came after. */
static int publish_incoming(struct node *node, struct text *error)
{
  uint32_t n_page = 0;
  wal_append_start(node->wal);
  int rc = fetch_append(node, &n_page, error);
  if (rc) return rc;
  return wal_append_commit(node->wal, n_page, node->checkpoint.index);
}

static int sync_wal(struct wal *wal, struct text *error)
{
  int rc = wal->io->sync(wal->io->ctx, wal->file);
  if (rc) text_set(error, "%s-wal: %s", wal->path, errno_text(-rc).s);
  return rc;
}

int detach_files(const char *path, const struct text *why, struct text *answer)
{
  struct node *node = NULL;
  raft_index confirmed, index = 0;
  bool exact = false;
  int rc = node_open_files(path, &node, &confirmed, answer);
  if (rc == 0 && node->checkpoint.incoming &&
      confirmed <= node->checkpoint.index)
    rc = publish_incoming(node, answer);
  if (rc == 0) rc = held_index(node, confirmed, &index, &exact, answer);
  if (rc == 0) rc = detach_exclude(node->wal, answer);
  if (rc == 0) rc = sync_wal(node->wal, answer);
  if (rc == 0) rc = set_aside(path, KEPT, answer);
  if (rc == 0) rc = fold_and_make_ordinary(node->wal, answer);
  if (rc == 0)
    text_set(answer,
             "detached at index %llu%s: an ordinary database now; what is left "
             "of the node is kept in %s-quorate%s: it could not start: %s",
             (unsigned long long)index, exact ? "" : " or later",
             strrchr(path, '/') + 1, KEPT, why->s);
  if (node && node->wal) detach_release(node->wal);
  node_free(node);
  return rc;
}

/* ---- a file without its directory -------------------------------------- */

int detach_orphan(const char *path, struct text *error)
{
  struct control_map *map = NULL;
  struct wal *wal = NULL;
  char *line = NULL;
  int rc = control_open(&io_posix, NULL, true, &map);
  if (rc == 0) rc = wal_open(&io_posix, path, 0, map, &wal, &line);
  control_close(map);
  if (rc) text_set(error, "%s", line ? line : errno_text(-rc).s);
  free(line);
  if (rc) return rc;
  rc = detach_exclude(wal, error);
  if (rc == 0) rc = fold_and_make_ordinary(wal, error);
  detach_release(wal);
  wal_free(wal);
  return rc;
}

int detach_rest(const char *path, struct text *answer)
{
  uint8_t versions[2];
  char *dir = dir_of(path, DETACHED);
  bool left = is_directory(dir);
  free(dir);
  if (!vfs_read_versions(path, versions)) {
    text_set(answer, "%s: not a database", path);
    return -EINVAL;
  }
  bool fenced = versions[0] == 3 && versions[1] == 2;
  if (!fenced && !left) {
    text_set(answer, "%s: not a node: there is no %s-quorate", path,
             strrchr(path, '/') + 1);
    return -EINVAL;
  }
  int rc = fenced ? detach_orphan(path, answer) : 0;
  if (rc) return rc;
  drop_directory(path);
  text_set(answer, left ? "detached: what was begun before is finished"
                        : "detached: an ordinary database now; its node's "
                          "directory was gone, its index is not known");
  return 0;
}
