/*
** The database as of one index, and who pins the WAL.
*/
#include "world.h"

#include "node.h"

#define LARGE 65536u
#define LOCK_PAGE (0x40000000u / LARGE + 1)

/* The page of SQLite's lock bytes is in no frame. A file that has not grown
   beyond it yet does not have it either. */
static void test_lock_bytes(void **state)
{
  struct world w;
  struct image image;
  uint8_t *page = malloc(LARGE), *last = malloc(LARGE);
  assert_true(page && last);
  world_init(&w, state, LARGE);
  world_open(&w);
  memset(last, 'x', LARGE);
  wal_append_start(w.wal);
  assert_int_equal(wal_append_page(w.wal, LOCK_PAGE + 1, last), 0);
  assert_int_equal(wal_append_commit(w.wal, LOCK_PAGE + 1, 11), 0);
  assert_int_equal(image_open(w.wal, "a test", &image), 0);
  assert_int_equal(image.index, 11);
  assert_int_equal(image.n_page, LOCK_PAGE + 1);
  memset(page, 'y', LARGE);
  assert_int_equal(image_read(&image, LOCK_PAGE, page), 0);
  for (unsigned i = 0; i < LARGE; i++)
    assert_int_equal(page[i], 0);
  assert_int_equal(image_read(&image, LOCK_PAGE + 1, page), 0);
  assert_memory_equal(page, last, LARGE);
  /* Any other page that is missing is damage. */
  assert_int_equal(image_read(&image, LOCK_PAGE - 1, page), -EIO);
  image_close(&image);
  image_close(&image);
  free(page);
  free(last);
  world_free(&w);
}

/* Where there is no memory to see which page a frame is of, none is left out:
   the file has it as it was once. */
static void test_frames_unseen(void **state)
{
  struct world w;
  struct image image;
  struct wal_pinner pinned;
  world_init(&w, state, 4096);
  world_open(&w);
  world_step(&w, "INSERT INTO t(v) VALUES('in the WAL only')");
  int fd = w.map->frames_fd;
  _Atomic uint32_t *block = atomic_exchange(&w.map->blocks[0], NULL);
  w.map->frames_fd = -1;
  assert_int_equal(image_open(w.wal, "a test", &image), -ENOMEM);
  assert_null(image.wal);
  assert_int_equal(world_checkpoint(&w, &pinned), -ENOMEM);
  w.map->frames_fd = fd;
  atomic_store(&w.map->blocks[0], block);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  world_free(&w);
}

static void test_pinner(void **state)
{
  struct world w;
  struct image image;
  struct control_reader reader;
  struct control_view view;
  char us[64];
  snprintf(us, sizeof(us), "a reader of process %d", getpid());
  world_init(&w, state, 4096);
  world_open(&w);
  assert_string_equal(wal_pinner(w.wal, NULL).s, "");
  world_step(&w, "INSERT INTO t(v) VALUES('in the WAL only')");
  assert_int_equal(image_open(w.wal, "a test", &image), 0);
  assert_string_equal(wal_pinner(w.wal, NULL).s, "a test");
  assert_string_equal(wal_pinner(w.wal, image.reader.slot).s, "");
  image_close(&image);
  assert_string_equal(wal_pinner(w.wal, NULL).s, "");

  /* Everything it reads is in the database file: it pins nothing yet. */
  world_checkpoint_full(&w);
  assert_int_equal(control_enter(w.map, NULL, &reader), 0);
  control_pin(w.map, &reader, false, &view);
  assert_string_equal(wal_pinner(w.wal, NULL).s, "");
  world_step(&w, "INSERT INTO t(v) VALUES('newer than its snapshot')");
  assert_string_equal(wal_pinner(w.wal, NULL).s, us);
  control_leave(&reader);
  assert_string_equal(wal_pinner(w.wal, NULL).s, "");
  world_free(&w);
}

#define FILL                                                                   \
  "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i "    \
  "< 50) INSERT INTO t(v) SELECT hex(randomblob(250)) FROM n"

/* The image is the origin as it was. */
static void check_image(const struct image *image, const uint8_t *was,
                        size_t len)
{
  uint32_t page_size = image->wal->page_size;
  uint8_t *page = malloc(page_size);
  assert_non_null(page);
  assert_int_equal((size_t)image->n_page * page_size, len);
  for (uint32_t pgno = 1; pgno <= image->n_page; pgno++) {
    assert_int_equal(image_read(image, pgno, page), 0);
    assert_memory_equal(page, was + (size_t)(pgno - 1) * page_size, page_size);
  }
  free(page);
}

static uint8_t *copy_origin(const struct world *w, size_t *len)
{
  uint8_t *copy = malloc(w->origin.len);
  assert_non_null(copy);
  memcpy(copy, w->origin.image, w->origin.len);
  *len = w->origin.len;
  return copy;
}

/* Changes come, and are copied as far as may be. */
static void go_on(struct world *w)
{
  struct wal_pinner pinned;
  world_step(w, "UPDATE t SET v = v || 'x'");
  assert_in_range(world_checkpoint(w, &pinned), 0, 1);
  world_step(w, "DELETE FROM t WHERE id % 3 = 0; VACUUM");
  assert_in_range(world_checkpoint(w, &pinned), 0, 1);
}

static void test_stays(void **state)
{
  struct world w;
  struct image image;
  size_t len;
  world_init(&w, state, 1024);
  world_open(&w);
  for (int copied = 0; copied < 2; copied++) {
    world_step(&w, FILL);
    if (copied) world_checkpoint_full(&w);
    uint8_t *was = copy_origin(&w, &len);
    assert_int_equal(image_open(w.wal, "a test", &image), 0);
    assert_int_equal(image.index, w.index);
    go_on(&w);
    check_image(&image, was, len);
    image_close(&image);
    world_checkpoint_full(&w);
    free(was);
  }
  world_free(&w);
}

/* One that is opened while a new WAL takes the place of the old one. */
static void open_now(struct spy *spy, char kind, const uint8_t *data, size_t n,
                     uint64_t offset)
{
  struct world *w = (struct world *)((char *)spy - offsetof(struct world, spy));
  (void)data, (void)n;
  if (kind != 'w' || offset != 0) return;
  spy->on_write = NULL;
  assert_int_equal(image_open(w->wal, "a test", spy->ctx), 0);
}

static void test_opened_during_a_restart(void **state)
{
  struct world w;
  struct image image = {0};
  size_t len;
  world_init(&w, state, 1024);
  world_open(&w);
  world_step(&w, FILL);
  world_checkpoint_full(&w);
  uint8_t *was = copy_origin(&w, &len);
  w.spy.on_write = open_now;
  w.spy.ctx = &image;
  assert_int_equal(wal_restart(w.wal), 0);
  assert_non_null(image.wal);
  go_on(&w); /* other frames where those of the old WAL were */
  check_image(&image, was, len);
  image_close(&image);
  world_checkpoint_full(&w);
  world_file_is_origin(&w);
  free(was);
  world_free(&w);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(test_lock_bytes),
      IN_DIR(test_frames_unseen),
      IN_DIR(test_pinner),
      IN_DIR(test_stays),
      IN_DIR(test_opened_during_a_restart),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
