/*
** spare.c: the helper thread: has the next segment ready before it is needed,
** and removes or recycles segments that are no longer needed, so that no
** commit waits for either. Where there is no helper (a stepped store, or one
** that is being opened) who needs a segment does that piece of work himself.
**
** A spare is DIR/log/<serial>.spare: zero-filled and synced, or an old segment
** as it was (its records cannot be taken for new ones: rule S3 of segment.c).
** Spares of an earlier run are removed when the store is opened.
**
** Old segments are removed oldest first, and the directory is synced after
** each: were a later removal durable before an earlier one, a crash would
** show a log with a gap. For the same reason the first removal that fails is
** the last one tried. A recycled segment is written to only after its old
** name is gone durably.
*/
#include "internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define ZEROS (128u * 1024u)
static uint8_t zeros[ZEROS];

static void spare_name(struct store *store, char name[SEGMENT_NAME])
{
  (void)pthread_mutex_lock(&store->lock);
  (void)snprintf(name, SEGMENT_NAME, "%" PRIx64 ".spare",
                 ++store->spare_serial);
  (void)pthread_mutex_unlock(&store->lock);
}

/* ---- making one --------------------------------------------------------- */

/* In small pieces, each synced: one sync of all of it would hold up the syncs
   of commits for as long as the disk takes to write a whole segment. */
static int fill(const struct io *io, int fd, uint64_t bytes)
{
  uint64_t at;
  int rc = 0;

  for (at = 0; !rc && at < bytes; at += ZEROS) {
    rc = io->pwrite(io->ctx, fd, zeros, bytes - at < ZEROS ? bytes - at : ZEROS,
                    at);
    if (!rc) rc = io->sync(io->ctx, fd);
  }
  return rc;
}

static int spare_make(struct store *store, uint64_t bytes, struct segment **out,
                      char **error)
{
  const struct io *io = store->io;
  struct segment *segment = store_segment_new(io);
  char path[STORE_PATH_MAX];
  int rc;

  *out = NULL;
  if (!segment) return store_error(error, -ENOMEM, "out of memory");
  spare_name(store, segment->name);
  store_path(path, store, segment->name);
  segment->fd = io->open(io->ctx, path, O_RDWR | O_CREAT | O_TRUNC);
  if (segment->fd < 0) {
    rc = segment->fd;
    (void)store_io_error(error, rc, path, "cannot be created");
    goto fail;
  }
  rc = fill(io, segment->fd, bytes);
  if (rc) {
    (void)store_io_error(error, rc, path, "cannot be filled");
    (void)io->unlink(io->ctx, path);
    goto fail;
  }
  segment->header.bytes = bytes;
  *out = segment;
  return 0;
fail:
  store_segment_unref(segment);
  return rc;
}

/* ---- those that are ready ------------------------------------------------ */

static struct segment **find_locked(struct store *store, uint64_t bytes)
{
  struct segment **at = &store->spares;

  while (*at && (*at)->header.bytes != bytes)
    at = &(*at)->after;
  return at;
}

static void push_locked(struct store *store, struct segment *segment)
{
  segment->after = store->spares;
  store->spares = segment;
  store->n_spares++;
  (void)pthread_cond_broadcast(&store->ready);
}

/* ---- removing ----------------------------------------------------------- */

/* Takes the oldest segment off the list if nothing in it is needed. */
static struct segment *cut_oldest_locked(struct store *store, bool *recycle)
{
  struct segment *segment = store->oldest;

  if (store->compact_off || !segment || !segment->after ||
      segment->after->header.first - (MUTANT(64) ? 2 : 1) > store->compact_upto)
    return NULL;
  store->oldest = segment->after;
  store->oldest->before = NULL;
  store->stats.bytes -= segment->header.bytes;
  segment->after = NULL;
  /* nobody can begin to read it now; who still does keeps it as it is */
  *recycle = segment->refs == 1 && store->n_spares < SPARES_MAX &&
             segment->header.bytes == store->options.segment_bytes;
  return segment;
}

static void blank(struct segment *segment, const char *name)
{
  segment->n = segment->visible = 0;
  segment->stride = 1;
  memcpy(segment->name, name, SEGMENT_NAME);
}

static void remove_oldest(struct store *store, struct segment *segment,
                          bool recycle)
{
  const struct io *io = store->io;
  char path[STORE_PATH_MAX], to[STORE_PATH_MAX], name[SEGMENT_NAME];
  char *error = NULL;
  int rc;

  store_path(path, store, segment->name);
  spare_name(store, name);
  store_path(to, store, name);
  rc = recycle ? io->rename(io->ctx, path, to) : io->unlink(io->ctx, path);
  if (!rc) {
    rc = MUTANT(65) ? 0 : io->sync_dir(io->ctx, store->log_dir);
    if (rc) {
      (void)store_io_error(&error, rc, store->log_dir, "sync failed");
      store_fail(store, rc, error);
    }
  }
  (void)pthread_mutex_lock(&store->lock);
  if (rc) store->compact_off = true;
  if (!rc && recycle) {
    blank(segment, name);
    push_locked(store, segment);
    segment = NULL;
  }
  (void)pthread_mutex_unlock(&store->lock);
  store_segment_unref(segment);
}

/* ---- one piece of work -------------------------------------------------- */

static void prepare(struct store *store, uint64_t bytes, bool wanted)
{
  struct segment *segment;
  char *error = NULL;
  int rc = spare_make(store, bytes, &segment, &error);

  (void)pthread_mutex_lock(&store->lock);
  if (!rc) {
    push_locked(store, segment);
  } else if (wanted) {
    store->want_status = rc;
    store->want_error = error;
    store->want = 0;
    error = NULL;
    (void)pthread_cond_broadcast(&store->ready);
  } else {
    store->ahead_failed = true;
  }
  (void)pthread_mutex_unlock(&store->lock);
  free(error);
}

/* What has to be done next, most urgent first; false: nothing. The lock is let
   go while it is done. */
static bool step_locked(struct store *store)
{
  uint64_t usual = store->options.segment_bytes, want = store->want;
  struct segment *old;
  bool recycle = false, ahead;

  if (want && *find_locked(store, want)) want = 0;
  old = want ? NULL : cut_oldest_locked(store, &recycle);
  ahead =
      !store->ahead_failed && !store->closing && !*find_locked(store, usual);
  if (!want && !old && !ahead) return false;
  (void)pthread_mutex_unlock(&store->lock);
  if (want)
    prepare(store, want, true);
  else if (old)
    remove_oldest(store, old, recycle);
  else
    prepare(store, usual, false);
  (void)pthread_mutex_lock(&store->lock);
  return true;
}

bool store_spare_step(struct store *store)
{
  bool did;

  (void)pthread_mutex_lock(&store->lock);
  did = step_locked(store);
  (void)pthread_mutex_unlock(&store->lock);
  return did;
}

/* ---- taking one --------------------------------------------------------- */

int store_spare_take(struct store *store, uint64_t bytes, struct segment **out,
                     char **error)
{
  struct segment **at;
  int rc = 0;

  (void)pthread_mutex_lock(&store->lock);
  store->ahead_failed = false;
  for (;;) {
    at = find_locked(store, bytes);
    if (*at || store->want_status) break;
    store->want = bytes;
    if (!store->helper_runs) {
      (void)step_locked(store);
      continue;
    }
    (void)pthread_cond_signal(&store->work);
    (void)pthread_cond_wait(&store->ready, &store->lock);
  }
  store->want = 0;
  *out = *at;
  if (*at) {
    *at = (*at)->after;
    (*out)->after = NULL;
    store->n_spares--;
  } else {
    rc = store->want_status;
    if (error)
      *error = store->want_error;
    else
      free(store->want_error);
    store->want_status = 0;
    store->want_error = NULL;
  }
  (void)pthread_cond_signal(&store->work);
  (void)pthread_mutex_unlock(&store->lock);
  return rc;
}

/* ---- the thread --------------------------------------------------------- */

void *store_spare_main(void *arg)
{
  struct store *store = arg;

  (void)pthread_mutex_lock(&store->lock);
  for (;;) {
    if (step_locked(store)) continue;
    if (store->closing) break;
    (void)pthread_cond_wait(&store->work, &store->lock);
  }
  (void)pthread_mutex_unlock(&store->lock);
  return NULL;
}
