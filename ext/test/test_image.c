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

static void test_pinner(void **state)
{
  struct world w;
  struct image image;
  struct wal_reader reader = {0};
  world_init(&w, state, 4096);
  world_open(&w);
  assert_null(wal_pinner(w.wal, NULL));
  assert_int_equal(image_open(w.wal, "a test", &image), 0);
  assert_string_equal(wal_pinner(w.wal, NULL), "a test");
  assert_null(wal_pinner(w.wal, &image.reader));
  image_close(&image);
  assert_null(wal_pinner(w.wal, NULL));

  /* Everything it reads is in the database file: it pins nothing yet. */
  pthread_mutex_lock(&w.wal->mutex);
  wal_pin(w.wal, &reader);
  pthread_mutex_unlock(&w.wal->mutex);
  assert_null(wal_pinner(w.wal, NULL));
  world_step(&w, "INSERT INTO t(v) VALUES('newer than its snapshot')");
  assert_string_equal(wal_pinner(w.wal, NULL), "a reader of this process");
  pthread_mutex_lock(&w.wal->mutex);
  wal_unpin(w.wal, &reader);
  pthread_mutex_unlock(&w.wal->mutex);
  assert_null(wal_pinner(w.wal, NULL));
  world_free(&w);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      IN_DIR(test_lock_bytes),
      IN_DIR(test_pinner),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
