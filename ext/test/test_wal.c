/*
** The node's view of a database, next to a stock reader in another process.
*/
#include "world.h"

#define FILL(n, size)                                                          \
  "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i "    \
  "< " #n ") INSERT INTO t(v) SELECT printf('%.*c', " #size                    \
  ", char(97 + i % 26)) FROM n"
#define INSERT "INSERT INTO t(v) VALUES('one more')"
#define COUNT "SELECT count(*) FROM t"

static void agree(struct world *w)
{
  world_check(w);
  reader_agrees(&w->reader, &w->origin);
}

static void open_reader(struct world *w)
{
  assert_string_equal(reader_ask(&w->reader, "open"), "ok");
  agree(w);
}

/* ---- applying ---------------------------------------------------------- */

static void apply_and_read(void **state, uint32_t page_size)
{
  struct world w;
  world_init(&w, state, page_size);
  world_open(&w);
  assert_int_equal(w.wal->page_size, page_size);
  assert_int_equal(w.wal->confirmed_index, 10);
  open_reader(&w);
  world_step(&w, FILL(50, 700));
  agree(&w);
  world_step(&w, "UPDATE t SET v = 'short' WHERE id % 2");
  agree(&w);
  world_step(&w, "CREATE INDEX i ON t(v); DELETE FROM t WHERE id > 9");
  agree(&w);
  assert_string_equal(reader_ask(&w.reader, INSERT),
                      "error: attempt to write a readonly database");
  wal_advance(w.wal, 99);
  assert_int_equal(w.wal->confirmed_index, 99);
  assert_int_equal(atomic_load(&w.map->control->confirmed), 99);
  agree(&w);
  world_free(&w);
}

static void test_apply(void **state)
{
  apply_and_read(state, 512);
  apply_and_read(state, 4096);
  apply_and_read(state, 65536);
}

/* Nothing of a transaction is visible before its commit, nor if it is begun
   anew; one without pages moves the index on. */
static void test_append_in_pieces(void **state)
{
  struct world w;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  uint32_t was = w.wal->confirmed.mx_frame;
  wal_append_start(w.wal);
  for (uint32_t pgno = 1; pgno <= 400; pgno++) /* more than is gathered */
    assert_int_equal(wal_append_page(w.wal, pgno, origin_page(&w.origin, 1)),
                     0);
  agree(&w);
  assert_int_equal(w.wal->confirmed.mx_frame, was);
  world_step(&w, INSERT);
  agree(&w);
  wal_append_start(w.wal);
  assert_int_equal(wal_append_commit(w.wal, 77, 50), 0);
  assert_int_equal(w.wal->confirmed_index, 50);
  assert_int_equal(w.wal->confirmed.n_page, w.origin.n_page);
  agree(&w);
  world_free(&w);
}

/* Over the borders of the real -shm's regions, with a reader that keeps an
   old snapshot meanwhile. */
static void test_many_frames(void **state)
{
  struct world w;
  char before[ANSWER_MAX];
  world_init(&w, state, 512);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(30, 300));
  reader_ask(&w.reader, "BEGIN");
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  while (w.wal->confirmed.mx_frame < 8300) {
    world_step(&w, FILL(300, 400));
    world_step(&w, "UPDATE t SET v = v || 'y' WHERE id % 5 = 0");
  }
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  reader_ask(&w.reader, "COMMIT");
  agree(&w);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  agree(&w);
  world_step(&w, FILL(3000, 400)); /* the same regions again */
  agree(&w);
  world_free(&w);
}

/* ---- transactions of this node ----------------------------------------- */

static int hand_over(struct world *w, const struct walindex_header *header)
{
  struct walindex_header base = w->wal->head;
  return wal_hand_over(w->wal, w->wal->epoch, &base, header, w->origin.changed);
}

static void test_confirm(void **state)
{
  struct world w;
  struct walindex_header header;
  char before[ANSWER_MAX];
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  world_write_local(&w, FILL(20, 600), &header);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  assert_int_equal(hand_over(&w, &header), 0);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  assert_int_equal(wal_confirm(w.wal, &header, ++w.index), 0);
  assert_int_equal(w.wal->confirmed_index, w.index);
  assert_int_equal(atomic_load(&w.map->control->confirmed), w.index);
  agree(&w);
  /* One that is rejected is written over. */
  world_write_local(&w, INSERT, &header);
  assert_int_equal(hand_over(&w, &header), 0);
  uint64_t epoch = w.wal->epoch;
  wal_revoke(w.wal);
  assert_int_equal(w.wal->epoch, epoch + 1);
  assert_int_equal(
      wal_hand_over(w.wal, epoch, &w.wal->confirmed, &header, w.origin.changed),
      -EPERM);
  assert_int_equal(w.wal->head.mx_frame, header.mx_frame);
  wal_settle(w.wal);
  /* Whoever was shown it knows. */
  assert_int_equal(w.wal->epoch, epoch + 2);
  assert_memory_equal(&w.wal->head, &w.wal->confirmed, sizeof(header));
  /* Who saw it, or built on it, is told by the epoch, revoked or not. */
  epoch = w.wal->epoch;
  world_write_local(&w, INSERT, &header);
  assert_int_equal(hand_over(&w, &header), 0);
  assert_int_equal(w.wal->epoch, epoch);
  wal_settle(w.wal);
  assert_int_equal(w.wal->epoch, epoch + 1);
  assert_int_equal(
      wal_hand_over(w.wal, epoch, &w.wal->confirmed, &header, w.origin.changed),
      -EPERM);
  /* So is who has built on what is the head no more, under any epoch. */
  struct walindex_header base = w.wal->head;
  base.mx_frame--;
  assert_int_equal(
      wal_hand_over(w.wal, epoch + 1, &base, &header, w.origin.changed),
      -EPERM);
  wal_settle(w.wal); /* nothing was in flight */
  assert_int_equal(w.wal->epoch, epoch + 1);
  world_step(&w, "DELETE FROM t WHERE id > 5");
  assert_int_equal(w.wal->epoch, epoch + 1);
  assert_int_equal(world_append(&w, true), 0);
  agree(&w);
  world_free(&w);
}

/* A crash before the fate is known: neither stock recovery nor the node's own
   scan takes the transaction; both take those before it. */
static void test_unconfirmed_is_not_recovered(void **state)
{
  for (int stock_first = 0; stock_first < 2; stock_first++) {
    struct world w;
    struct walindex_header header;
    char before[ANSWER_MAX];
    world_init(&w, state, 4096);
    world_open(&w);
    if (!stock_first) open_reader(&w);
    world_step(&w, FILL(20, 500));
    stock_ask(w.origin.db, DIGEST, before);
    uint32_t confirmed = w.wal->confirmed.mx_frame;
    world_write_local(&w, "DELETE FROM t", &header);
    world_close(&w, false);
    if (stock_first) reader_ask(&w.reader, "open");
    assert_string_equal(reader_ask(&w.reader, DIGEST), before);
    world_open(&w);
    assert_int_equal(w.wal->confirmed.mx_frame, confirmed);
    world_check(&w);
    assert_string_equal(reader_ask(&w.reader, DIGEST), before);
    /* Now it is known. */
    w.index++;
    assert_int_equal(world_append(&w, false), 0);
    agree(&w);
    world_free(&w);
  }
}

/* A crash after the salts were set right and before the index was published:
   the next start takes it. */
static void test_confirmed_is_recovered(void **state)
{
  struct world w;
  struct walindex_header header;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_write_local(&w, FILL(20, 500), &header);
  file_patch(w.wal_path, wal_offset(w.wal, header.mx_frame) + 8, header.salt,
             8);
  world_close(&w, false);
  world_open(&w);
  assert_int_equal(w.wal->confirmed.mx_frame, header.mx_frame);
  agree(&w);
  world_free(&w);
}

/* The control file knows of an entry before anybody can recover its frames:
   a start that brings the database to an older state would mix the two. */
static void control_comes_first(struct spy *spy, char kind, const uint8_t *data,
                                size_t n, uint64_t offset)
{
  struct world *w = spy->ctx;
  (void)data;
  if (kind != 'w' || w->wal == NULL) return;
  bool last = offset + n > wal_offset(w->wal, w->wal->confirmed.mx_frame +
                                                  w->origin.n_changed);
  if (last)
    assert_int_equal(atomic_load(&w->map->control->confirmed), w->index);
}

static void test_control_comes_first(void **state)
{
  struct world w;
  struct walindex_header header;
  world_init(&w, state, 4096);
  world_open(&w);
  w.spy.on_write = control_comes_first;
  w.spy.ctx = &w;
  world_step(&w, FILL(20, 500));
  world_step(&w, FILL(800, 3000)); /* several writes */
  world_write_local(&w, INSERT, &header);
  w.index++;
  assert_int_equal(hand_over(&w, &header), 0);
  assert_int_equal(wal_confirm(w.wal, &header, w.index), 0);
  world_free(&w);
}

/* ---- checkpoint and restart -------------------------------------------- */

static uint64_t wal_size(const struct world *w)
{
  uint64_t size = 0;
  assert_int_equal(w->wal->io->size(w->wal->io->ctx, w->wal->file, &size), 0);
  return size;
}

/* The room of a very large transaction is given back, that of others kept. */
static void test_restart_shortens(void **state)
{
  struct world w;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(300, 700));
  world_checkpoint_full(&w);
  uint64_t size = wal_size(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  assert_int_equal(wal_size(&w), size);
  world_step(&w, FILL(300, 700));
  assert_int_equal(ftruncate(w.wal->file, 3 * (off_t)WAL_KEEP), 0);
  world_checkpoint_full(&w);
  assert_int_equal(wal_size(&w), 3 * (uint64_t)WAL_KEEP);
  assert_int_equal(wal_restart(w.wal), 0);
  assert_int_equal(wal_size(&w), WAL_KEEP);
  agree(&w);
  world_step(&w, FILL(300, 700));
  agree(&w);
  world_free(&w);
}

static void test_checkpoint(void **state)
{
  struct world w;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(200, 500));
  world_step(&w, "UPDATE t SET v = 'z' WHERE id < 100");
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  agree(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  assert_int_equal(w.wal->confirmed.mx_frame, 1);
  assert_int_equal(w.wal->generation, 2);
  agree(&w);
  world_file_is_origin(&w);
  /* A shorter database: the file is cut. */
  world_step(&w, "DELETE FROM t WHERE id > 3; VACUUM");
  agree(&w);
  size_t was = file_size(w.db);
  world_checkpoint_full(&w);
  assert_true(file_size(w.db) < was);
  world_file_is_origin(&w);
  world_step(&w, INSERT);
  agree(&w);
  assert_int_equal(wal_restart(w.wal), -EBUSY); /* not all is copied */
  agree(&w);
  world_free(&w);
}

/* W3, W4: what is written and synced in which order. */
static void test_order_of_writes(void **state)
{
  struct world w;
  struct wal_pinner pinned;
  world_init(&w, state, 4096);
  world_open(&w);
  assert_string_equal(w.spy.trace, "nWw");
  world_step(&w, FILL(20, 500));
  memset(w.spy.trace, 0, sizeof(w.spy.trace));
  world_checkpoint_full(&w);
  assert_string_equal(w.spy.trace, "wFDd");
  assert_int_equal(w.floor, w.index);
  memset(w.spy.trace, 0, sizeof(w.spy.trace));
  world_checkpoint_full(&w); /* nothing to do */
  assert_string_equal(w.spy.trace, "");
  assert_int_equal(wal_restart(w.wal), 0);
  assert_string_equal(w.spy.trace, "Ww");
  /* No floor, no page. */
  world_step(&w, "DELETE FROM t WHERE id > 3; VACUUM");
  memset(w.spy.trace, 0, sizeof(w.spy.trace));
  w.floor_rc = -ENOSPC;
  assert_int_equal(world_checkpoint(&w, &pinned), -ENOSPC);
  assert_string_equal(w.spy.trace, "wF");
  assert_int_equal(w.wal->backfill, 1);
  world_check(&w);
  w.floor_rc = 0;
  memset(w.spy.trace, 0, sizeof(w.spy.trace));
  world_checkpoint_full(&w);
  assert_string_equal(w.spy.trace, "wFDtd");
  world_free(&w);
}

static void pin(struct world *w, struct control_reader *r)
{
  struct control_view view;
  assert_int_equal(control_enter(w->map, NULL, r), 0);
  control_pin(w->map, r, false, &view);
}

static const char *us(void)
{
  static char name[64];
  snprintf(name, sizeof(name), "a reader of process %d", getpid());
  return name;
}

static void refused_by(struct world *w, const char *who, uint32_t backfill)
{
  struct wal_pinner pinned;
  assert_int_equal(world_checkpoint(w, &pinned), 1);
  assert_string_equal(pinned.s, who);
  assert_int_equal(w->wal->backfill, backfill);
  assert_int_equal(wal_restart(w->wal), -EBUSY);
}

static void test_pinned_snapshots(void **state)
{
  struct world w;
  struct control_reader a, b;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  pin(&w, &a);
  assert_int_equal(a.frame, w.wal->confirmed.mx_frame);
  assert_true(a.uses_wal);
  world_step(&w, FILL(20, 501));
  pin(&w, &b);
  world_step(&w, FILL(20, 502));
  refused_by(&w, us(), a.frame);
  agree(&w);
  control_leave(&a);
  refused_by(&w, us(), b.frame);
  agree(&w);
  control_leave(&b);
  world_checkpoint_full(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  agree(&w);
  world_free(&w);
}

/* One whose pages are all in the database file lets the WAL begin anew, and
   then holds back every page. One that uses the WAL does not. */
static void test_pins_over_generations(void **state)
{
  struct world w;
  struct control_reader a, b;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  pin(&w, &a);
  world_checkpoint_full(&w);
  assert_int_equal(wal_restart(w.wal), -EBUSY);
  pin(&w, &b);
  assert_false(b.uses_wal);
  control_leave(&a);
  assert_int_equal(wal_restart(w.wal), 0);
  assert_int_equal(b.generation + 1, w.wal->generation);
  world_file_is_origin(&w);
  size_t len;
  uint8_t *before = file_read(w.db, &len);
  world_step(&w, FILL(20, 501));
  refused_by(&w, us(), 1);
  agree(&w);
  uint8_t *after = file_read(w.db, &len);
  assert_memory_equal(before, after, len);
  free(before);
  free(after);
  control_leave(&b);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  agree(&w);
  world_free(&w);
}

static void test_stock_read_marks(void **state)
{
  struct world w;
  char before[ANSWER_MAX];
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  uint32_t mark = w.wal->confirmed.mx_frame;
  reader_ask(&w.reader, "BEGIN");
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  world_step(&w, "UPDATE t SET v = 'changed'");
  refused_by(&w, "another process", mark);
  refused_by(&w, "another process", mark);
  world_check(&w);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  assert_string_equal(reader_ask(&w.reader, "PRAGMA integrity_check"), "ok");
  reader_ask(&w.reader, "COMMIT");
  world_checkpoint_full(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  agree(&w);
  world_free(&w);
}

/* A stock reader of the database file alone: READ(0). */
static void test_stock_reads_the_file(void **state)
{
  struct world w;
  struct wal_pinner pinned;
  char before[ANSWER_MAX];
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  world_checkpoint_full(&w);
  reader_ask(&w.reader, "BEGIN");
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  uint32_t was = w.wal->backfill;
  assert_int_equal(wal_restart(w.wal), 0); /* it does not use the WAL */
  world_step(&w, "UPDATE t SET v = 'changed'");
  was = w.wal->backfill;
  assert_int_equal(world_checkpoint(&w, &pinned), 1);
  assert_string_equal(pinned.s, "another process");
  assert_int_equal(w.wal->backfill, was);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  reader_ask(&w.reader, "COMMIT");
  world_checkpoint_full(&w);
  agree(&w);
  world_free(&w);
}

/* A stock program neither checkpoints nor recovers under the node. */
static void test_stock_checkpoint_is_refused(void **state)
{
  struct world w;
  size_t len;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  uint8_t *before = file_read(w.db, &len);
  reader_ask(&w.reader, "PRAGMA wal_checkpoint(TRUNCATE)");
  reader_ask(&w.reader, "close"); /* the last one to close checkpoints */
  uint8_t *after = file_read(w.db, &len);
  assert_memory_equal(before, after, len);
  free(before);
  free(after);
  open_reader(&w);
  world_free(&w);
}

/* ---- start ------------------------------------------------------------- */

static void test_begin_alone(void **state)
{
  struct world w;
  world_init(&w, state, 4096);
  world_open(&w);
  world_step(&w, FILL(20, 500));
  world_close(&w, false);
  world_open(&w); /* with or without what was left: the log is put on top */
  world_check(&w);
  assert_int_equal(world_append(&w, true), 0); /* as the log says */
  open_reader(&w);
  world_checkpoint_full(&w);
  world_close(&w, true); /* not the only one: the files stay */
  assert_true(file_size(w.wal_path) > 0);
  reader_agrees(&w.reader, &w.origin);
  world_open(&w);
  agree(&w);
  reader_ask(&w.reader, "close");
  world_checkpoint_full(&w);
  world_close(&w, true);
  assert_int_equal(file_size(w.wal_path), 0);
  assert_int_equal(file_size(w.shm_path), 0);
  world_file_is_origin(&w);
  world_free(&w);
}

/* The node's process ends and comes again, a stock reader stays. */
static void adopt_with(void **state, uint32_t page_size, const char *fill,
                       bool restart)
{
  struct world w;
  char before[ANSWER_MAX];
  world_init(&w, state, page_size);
  world_open(&w);
  open_reader(&w);
  world_step(&w, fill);
  if (restart) {
    world_checkpoint_full(&w);
    assert_int_equal(wal_restart(w.wal), 0);
    world_step(&w, "UPDATE t SET v = v || '!' WHERE id % 7 = 0");
  }
  reader_ask(&w.reader, "BEGIN");
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  struct walindex_header header = w.wal->confirmed;
  uint32_t backfill = w.wal->backfill;
  world_close(&w, false);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  world_open(&w);
  assert_int_equal(w.wal->confirmed.mx_frame, header.mx_frame);
  assert_int_equal(w.wal->confirmed.n_page, header.n_page);
  assert_int_equal(w.wal->backfill, backfill);
  assert_memory_equal(w.wal->confirmed.salt, header.salt, 8);
  world_step(&w, "UPDATE t SET v = v || '?'");
  world_check(&w);
  refused_by(&w, "another process", header.mx_frame);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  reader_ask(&w.reader, "COMMIT");
  agree(&w);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  assert_int_equal(wal_restart(w.wal), 0);
  world_step(&w, INSERT);
  agree(&w);
  world_free(&w);
}

static void test_adopt(void **state)
{
  adopt_with(state, 4096, FILL(20, 500), false);
  adopt_with(state, 4096, FILL(20, 500), true);
  adopt_with(state, 512, FILL(4400, 480), false); /* more than one region */
  adopt_with(state, 65536, FILL(50, 9000), true);
}

/* The first bytes of a new generation, as a restart writes them before it
   shows them in the index. */
static void write_new_beginning(struct world *w)
{
  const uint32_t salt[2] = {0x11111111, 0x22222222};
  uint32_t chain[2], page_size = w->origin.page_size;
  size_t size = WAL_HEADER + WAL_FRAME_HEADER + page_size;
  uint8_t *buf = malloc(size);
  assert_non_null(buf);
  wal_encode_header(buf, page_size, 9, salt, chain);
  wal_encode_frame(buf + WAL_HEADER, 1, w->origin.n_page, salt,
                   origin_page(&w->origin, 1), page_size, chain);
  memcpy(buf + WAL_HEADER + WAL_FRAME_HEADER, origin_page(&w->origin, 1),
         page_size);
  file_patch(w->wal_path, 0, buf, size);
  free(buf);
}

/* A crash in a restart, and a -wal that was put there by somebody. */
static void test_adopt_torn_restart(void **state)
{
  struct world w;
  int rc;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  world_checkpoint_full(&w);
  write_new_beginning(&w);
  world_close(&w, false);
  world_open(&w);
  assert_int_equal(w.wal->confirmed.mx_frame, 1);
  agree(&w);
  world_step(&w, FILL(20, 501));
  agree(&w);
  write_new_beginning(&w); /* although the reader needs frames of the old */
  world_close(&w, false);
  char *error = world_try_open(&w, &rc);
  assert_int_equal(rc, -EBADMSG);
  assert_non_null(strstr(error, "do not belong together"));
  free(error);
  /* When that reader has gone, nothing is in the way any more. */
  reader_ask(&w.reader, "close");
  world_open(&w);
  assert_int_equal(world_append(&w, true), 0);
  open_reader(&w);
  world_free(&w);
}

/* What a host leaves that dies in a restart when its new header, or the second
   copy of it, was published: the backfill is the old generation's. */
static void adopt_new_header(void **state, bool torn)
{
  struct world w;
  struct {
    struct walindex_header header[2];
    struct walindex_info info;
  } old, index;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  world_checkpoint_full(&w);
  memcpy(&old, w.wal->index.region[0], sizeof(old));
  assert_true(old.info.backfill > 1);
  assert_int_equal(wal_restart(w.wal), 0);
  memcpy(&index, w.wal->index.region[0], sizeof(index));
  index.info.backfill = old.info.backfill;
  if (torn) /* the rest of the old copy */
    memcpy(index.header, &index.header[1], sizeof(index.header[0]) / 2);
  if (torn) index.header[0].checksum[0] = old.header[0].checksum[0];
  memcpy(w.wal->index.region[0], &index, sizeof(index));
  world_close(&w, false);
  world_open(&w);
  assert_int_equal(w.wal->confirmed.mx_frame, 1);
  assert_int_equal(w.wal->backfill, 1);
  agree(&w);
  world_step(&w, INSERT);
  agree(&w);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  world_free(&w);
}

static void test_adopt_new_header(void **state)
{
  adopt_new_header(state, false);
  adopt_new_header(state, true);
}

/* A host dies while it shows a transaction: the frames that are shown stay
   where a reader looks for them. */
static void test_adopt_torn_header(void **state)
{
  struct world w;
  char before[ANSWER_MAX];
  struct walindex_header was;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(20, 500));
  reader_ask(&w.reader, "BEGIN");
  snprintf(before, sizeof(before), "%s", reader_ask(&w.reader, DIGEST));
  memcpy(&was, w.wal->index.region[0], sizeof(was));
  uint32_t backfill = walindex_info(&w.wal->index)->backfill;
  world_step(&w, INSERT);
  was.mx_frame++; /* some of the one before, some of the new one */
  memcpy(w.wal->index.region[0], &was, sizeof(was));
  world_close(&w, false);
  world_open(&w);
  assert_int_equal(w.wal->backfill, backfill);
  assert_int_equal(walindex_header(&w.wal->index)->change, was.change + 2);
  assert_string_equal(reader_ask(&w.reader, DIGEST), before);
  reader_ask(&w.reader, "COMMIT");
  agree(&w);
  world_free(&w);
}

static void refused(struct world *w, int want, const char *words)
{
  int rc;
  char *error = world_try_open(w, &rc);
  assert_int_equal(rc, want);
  assert_non_null(error);
  if (strstr(error, words) == NULL) fail_msg("%s", error);
  free(error);
}

static void test_refusals(void **state)
{
  struct world w, other;
  uint8_t two = 2, three = 3, size[2] = {3, 0};
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  other = w; /* the same file, as another process would open it */
  refused(&other, WAL_EFOREIGN, "another process holds a lock");
  agree(&w);
  reader_ask(&w.reader, "close");
  world_close(&w, false);
  file_patch(w.db, 18, &two, 1);
  refused(&w, -EBADMSG, "not a replicated database");
  file_patch(w.db, 18, &three, 1);
  file_patch(w.db, 19, &three, 1);
  refused(&w, -EBADMSG, "not a replicated database");
  file_patch(w.db, 19, &two, 1);
  file_patch(w.db, 16, size, 2);
  refused(&w, -EBADMSG, "page size");
  file_write(w.db, "SQLite format 3", 16);
  refused(&w, -EBADMSG, "not a replicated database");
  unlink(w.db);
  refused(&w, -ENOENT, "cannot open");
  world_free(&w);
}

/* A stock program that writes (the fence was taken away for it) is foreign. */
static void test_foreign_writer(void **state)
{
  struct world w;
  uint8_t two = 2, three = 3;
  world_init(&w, state, 4096);
  file_patch(w.db, 18, &two, 1);
  reader_ask(&w.reader, "open");
  assert_string_equal(reader_ask(&w.reader, "BEGIN IMMEDIATE"), "");
  file_patch(w.db, 18, &three, 1);
  refused(&w, WAL_EFOREIGN, "another process holds a lock");
  assert_string_equal(reader_ask(&w.reader, "ROLLBACK"), "");
  world_open(&w);
  agree(&w);
  world_free(&w);
}

/* ---- faults ------------------------------------------------------------ */

/* What a node does, until something fails. */
static int work(struct world *w)
{
  /* Always as many pages, or the sweep would never catch up. */
  static const char *const steps[3] = {"DELETE FROM t", FILL(12, 700),
                                       "DELETE FROM t WHERE id % 3; VACUUM"};
  struct wal_pinner pinned;
  int rc;
  char *error = world_try_open(w, &rc);
  if (rc && error == NULL) fail_msg("refused without a word: %d", rc);
  free(error);
  for (unsigned i = 0; rc == 0 && i < 3; i++) {
    origin_step(&w->origin, steps[i]);
    w->index++;
    rc = world_append(w, true); /* like the folded transaction of a start */
    if (rc == 0) rc = world_checkpoint(w, &pinned);
    if (rc == 0) rc = wal_restart(w->wal);
  }
  return rc;
}

/* Every single I/O operation fails once; after each the node goes on, in the
   same process or in the next, and the reader never finds anything wrong. */
static void sweep(void **state, bool alone, bool again)
{
  struct world w;
  unsigned faults = 0;
  world_init(&w, state, 512);
  world_open(&w);
  open_reader(&w);
  world_close(&w, false);
  if (alone) reader_ask(&w.reader, "close");
  for (long n = 1;; n++) {
    w.spy.countdown = n;
    int rc = work(&w);
    if (w.spy.countdown > 0) break; /* nothing failed any more */
    faults++;
    /* What keeps the index from growing counts as a lack of memory. */
    assert_true(rc == -EIO || rc == -ENOMEM);
    if (w.wal && !again) world_close(&w, false);
    if (w.wal == NULL) world_open(&w);
    if (alone) reader_ask(&w.reader, "open");
    reader_ask(&w.reader, COUNT);
    assert_int_equal(world_append(&w, true), 0);
    agree(&w);
    /* A short WAL again: the sweep gains on what the next start reads. */
    world_checkpoint_full(&w);
    assert_int_equal(wal_restart(w.wal), 0);
    assert_in_range(n, 1, 2000);
    world_close(&w, false);
    if (alone) reader_ask(&w.reader, "close");
  }
  assert_true(faults > 20);
  w.spy.countdown = 0;
  world_free(&w);
}

static void test_faults(void **state)
{
  sweep(state, true, false);
  sweep(state, true, true);
  sweep(state, false, false);
  sweep(state, false, true);
}

/* A restart that failed leaves the old beginning: a crash after it, with a
   reader that stays, is none that a start refuses. */
/* A disk without room says so, whichever file it is that has to grow: such an
   entry is applied later, any other error is the end. */
static void test_index_without_room(void **state)
{
  struct world w;
  bool met = false;
  world_init(&w, state, 512);
  world_open(&w);
  world_step(&w, "CREATE TABLE big(v)");
  world_step(&w, "INSERT INTO big VALUES(zeroblob(90000))");
  uint32_t regions = w.wal->index.n_regions;
  while (!met && w.wal->index.n_regions == regions) {
    w.spy.fail_kind = 's';
    w.index++;
    int rc = world_append(&w, true);
    met = w.spy.fired > 0;
    assert_int_equal(rc, met ? -ENOSPC : 0);
  }
  assert_true(met);
  w.spy.fail_kind = 0;
  assert_int_equal(world_append(&w, true), 0);
  assert_true(w.wal->index.n_regions > regions);
  world_check(&w);
  world_free(&w);
}

static void test_failed_restart(void **state)
{
  struct world w;
  world_init(&w, state, 4096);
  world_open(&w);
  open_reader(&w);
  for (long n = 1; n <= 5; n++) {
    world_step(&w, FILL(20, 500));
    world_checkpoint_full(&w);
    w.spy.countdown = n;
    int rc = wal_restart(w.wal);
    bool done = w.spy.countdown > 0;
    w.spy.countdown = 0;
    assert_int_equal(rc, done ? 0 : -EIO);
    agree(&w);
    world_step(&w, INSERT);
    agree(&w);
    world_close(&w, false);
    world_open(&w);
    agree(&w);
    assert_int_equal(world_append(&w, true), 0);
    agree(&w);
  }
  world_free(&w);
}

/* ---- threads ----------------------------------------------------------- */

#define LONG 9000u

static void *append_many(void *arg)
{
  struct world *w = arg;
  while (w->wal->confirmed.mx_frame < LONG) {
    w->index++;
    if (world_append(w, true) != 0) break;
  }
  return NULL;
}

/* The checkpointer and readers next to the applying thread, while regions and
   blocks are added. */
static void test_checkpoint_while_applying(void **state)
{
  struct world w;
  pthread_t thread;
  struct wal_checkpointed done;
  world_init(&w, state, 512);
  w.spy.io = io_posix; /* the spy is not made for threads */
  world_open(&w);
  open_reader(&w);
  world_step(&w, FILL(30, 400));
  assert_int_equal(pthread_create(&thread, NULL, append_many, &w), 0);
  for (uint32_t seen = 0; seen < LONG;) {
    struct control_reader r;
    pin(&w, &r);
    seen = r.frame;
    assert_in_range(control_pgno(w.wal->map, r.frame), 1, w.origin.n_page);
    control_leave(&r);
    assert_int_equal(wal_checkpoint(w.wal, world_floor, &w, &done), 0);
  }
  assert_int_equal(pthread_join(thread, NULL), 0);
  agree(&w);
  world_free(&w);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(test_apply),
      IN_DIR(test_append_in_pieces),
      IN_DIR(test_many_frames),
      IN_DIR(test_confirm),
      IN_DIR(test_unconfirmed_is_not_recovered),
      IN_DIR(test_confirmed_is_recovered),
      IN_DIR(test_control_comes_first),
      IN_DIR(test_checkpoint),
      IN_DIR(test_order_of_writes),
      IN_DIR(test_pinned_snapshots),
      IN_DIR(test_pins_over_generations),
      IN_DIR(test_stock_read_marks),
      IN_DIR(test_stock_reads_the_file),
      IN_DIR(test_stock_checkpoint_is_refused),
      IN_DIR(test_begin_alone),
      IN_DIR(test_adopt),
      IN_DIR(test_adopt_torn_restart),
      IN_DIR(test_adopt_new_header),
      IN_DIR(test_adopt_torn_header),
      IN_DIR(test_refusals),
      IN_DIR(test_foreign_writer),
      IN_DIR(test_faults),
      IN_DIR(test_index_without_room),
      IN_DIR(test_restart_shortens),
      IN_DIR(test_failed_restart),
      IN_DIR(test_checkpoint_while_applying),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
