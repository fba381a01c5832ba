/*
** The wal-index and the -wal format: against a model, against the bytes that
** stock SQLite writes, and by letting stock SQLite read what was made here.
*/
#include "stock.h"
#include "walindex.h"

#define FRAMES_MAX 20100u
#define SLOTS_AT 16384u

static unsigned regions_allowed = 64;

static uint8_t *grow(void *ctx, unsigned i)
{
  (void)ctx;
  uint8_t *region = i < regions_allowed ? malloc(WALINDEX_REGION) : NULL;
  /* Only what the first frame of a region clears may be relied on. */
  if (region) memset(region, i ? 0xa5 : 0, WALINDEX_REGION);
  return region;
}

static void index_free(struct walindex *index)
{
  for (unsigned i = 0; i < index->n_regions; i++)
    free(index->region[i]);
  free(index->region);
}

/* As SQLite finds a page (wal.c, sqlite3WalFindFrame): the newest frame of it
   that is not above last. */
static uint32_t find_frame(const struct walindex *index, uint32_t pgno,
                           uint32_t last)
{
  if (last == 0) return 0;
  for (unsigned i = walindex_region_of(last) + 1; i-- > 0;) {
    uint32_t zero = i ? WALINDEX_FIRST + (i - 1) * WALINDEX_FRAMES : 0;
    const uint8_t *region = index->region[i];
    uint32_t found = 0, left = WALINDEX_SLOTS;
    for (uint32_t key = (pgno * 383u) % WALINDEX_SLOTS;;
         key = (key + 1) % WALINDEX_SLOTS) {
      uint16_t slot;
      uint32_t page;
      memcpy(&slot, region + SLOTS_AT + (size_t)key * 2, 2);
      if (slot == 0) break;
      if (left-- == 0) fail_msg("a hash table without an end");
      memcpy(&page, region + (i ? 0 : 136) + (size_t)(slot - 1) * 4, 4);
      if (page == pgno && zero + slot <= last) found = zero + slot;
    }
    if (found) return found;
  }
  return 0;
}

/* ---- against a model --------------------------------------------------- */

struct model {
  struct walindex index;
  uint32_t pgno[FRAMES_MAX + 1]; /* of each frame */
  uint32_t n, pages;
  uint64_t seed;
};

static struct model *model_new(uint32_t pages)
{
  struct model *m = calloc(1, sizeof(*m));
  assert_non_null(m);
  m->index.grow = grow;
  m->pages = pages;
  m->seed = pages;
  return m;
}

static void model_free(struct model *m)
{
  index_free(&m->index);
  free(m);
}

static void append(struct model *m, uint32_t to)
{
  while (m->n < to) {
    uint32_t pgno = (uint32_t)(random_next(&m->seed) % m->pages) + 1;
    assert_int_equal(walindex_append(&m->index, m->n + 1, pgno), 0);
    m->pgno[++m->n] = pgno;
  }
}

static void rewind_to(struct model *m, uint32_t frame)
{
  walindex_rewind(&m->index, frame);
  m->n = frame;
}

static void check_page(const struct model *m, uint32_t pgno, uint32_t last)
{
  uint32_t want = last;
  while (want > 0 && m->pgno[want] != pgno)
    want--;
  assert_int_equal(find_frame(&m->index, pgno, last), want);
}

/* Everything, at the present end and at snapshots below it. */
static void check(struct model *m)
{
  for (uint32_t f = 1; f <= m->n; f++)
    assert_int_equal(walindex_pgno(&m->index, f), m->pgno[f]);
  for (uint32_t p = 1; p <= m->pages + 1; p += 1 + m->pages / 200)
    check_page(m, p, m->n);
  for (unsigned k = 0; m->n && k < 200; k++)
    check_page(m, (uint32_t)(random_next(&m->seed) % m->pages) + 1,
               (uint32_t)(random_next(&m->seed) % m->n) + 1);
}

/* Ends around the borders of the regions. */
static const uint32_t borders[] = {1,    2,    4061, 4062,  4063,  4064, 8157,
                                   8158, 8159, 8160, 12254, 12255, 20000};
#define BORDERS (sizeof(borders) / sizeof(borders[0]))

static void test_region_of(void **state)
{
  unsigned region = 0;
  (void)state;
  assert_int_equal(walindex_region_of(1), 0);
  for (uint32_t f = 1; f < 30000; f++) {
    if (f == 4063 || (f > 4063 && (f - 4063) % 4096 == 0)) region++;
    assert_int_equal(walindex_region_of(f), region);
  }
}

static void test_append_to_borders(void **state)
{
  static const uint32_t pages[] = {1, 7, 3000, 100000};
  (void)state;
  for (unsigned k = 0; k < 4; k++) {
    struct model *m = model_new(pages[k]);
    for (unsigned b = 0; b < BORDERS; b++) {
      /* One page for all frames fills whole tables with one chain. */
      if (pages[k] == 1 && borders[b] > 8160) break;
      append(m, borders[b]);
      assert_int_equal(m->index.n_regions, walindex_region_of(m->n) + 1);
      check(m);
    }
    model_free(m);
  }
}

static void test_rewind_between_borders(void **state)
{
  (void)state;
  struct model *m = model_new(900);
  for (unsigned from = 0; from < BORDERS; from++)
    for (unsigned to = 0; to <= from; to++) {
      append(m, borders[from]);
      rewind_to(m, borders[to]);
      check_page(m, 1 + from, m->n);
      append(m, borders[from] + 3); /* other pages than before */
      check(m);
      rewind_to(m, 0);
      append(m, 5);
      check(m);
    }
  model_free(m);
}

/* What was rewound leaves no trace in the region that it ends in. */
static void test_rewind_leaves_nothing(void **state)
{
  (void)state;
  for (unsigned b = 0; b < BORDERS; b++) {
    struct model *m = model_new(500), *other = model_new(500);
    unsigned i = walindex_region_of(borders[b]);
    append(m, borders[b]);
    append(other, borders[b]);
    append(m, borders[b] + 50);
    rewind_to(m, borders[b]);
    assert_memory_equal(m->index.region[i] + 136, other->index.region[i] + 136,
                        WALINDEX_REGION - 136);
    walindex_rewind(&other->index, borders[b]); /* nothing to do */
    assert_memory_equal(m->index.region[i] + 136, other->index.region[i] + 136,
                        WALINDEX_REGION - 136);
    model_free(m);
    model_free(other);
  }
}

static void test_random_walk(void **state)
{
  (void)state;
  struct model *m = model_new(2000);
  for (unsigned step = 0; step < 150; step++) {
    uint32_t to = (uint32_t)(random_next(&m->seed) % 14000);
    if (to >= m->n)
      append(m, to);
    else
      rewind_to(m, to);
    if (m->n) check_page(m, m->pgno[m->n], m->n);
    if (step % 10 == 0) check(m);
  }
  model_free(m);
}

/* Pages of one key, at the end of the table: the chain wraps around. */
static void test_collisions(void **state)
{
  uint32_t page = 1;
  (void)state;
  while ((page * 383u) % WALINDEX_SLOTS != WALINDEX_SLOTS - 3)
    page++;
  struct model *m = model_new(page + 40 * WALINDEX_SLOTS);
  for (uint32_t f = 1; f <= 4100; f++) {
    uint32_t pgno = page + (f * 7 % 40) * WALINDEX_SLOTS;
    assert_int_equal(walindex_append(&m->index, f, pgno), 0);
    m->pgno[f] = pgno;
  }
  m->n = 4100;
  for (uint32_t last = 1; last <= m->n; last += 41)
    for (uint32_t k = 0; k <= 40; k++)
      check_page(m, page + k * WALINDEX_SLOTS, last);
  rewind_to(m, 2000);
  for (uint32_t k = 0; k <= 40; k++)
    check_page(m, page + k * WALINDEX_SLOTS, m->n);
  model_free(m);
}

static void test_no_room(void **state)
{
  (void)state;
  struct model *m = model_new(100);
  append(m, WALINDEX_FIRST);
  regions_allowed = 1;
  assert_int_equal(walindex_append(&m->index, m->n + 1, 5), -1);
  assert_int_equal(m->index.n_regions, 1);
  check(m);
  regions_allowed = 64;
  append(m, WALINDEX_FIRST + 10);
  check(m);
  model_free(m);
}

/* ---- headers ----------------------------------------------------------- */

static void test_seal(void **state)
{
  struct walindex_header h = {.mx_frame = 5, .n_page = 6, .unused = 9}, bad;
  (void)state;
  assert_false(walindex_sealed(&h));
  walindex_seal(&h);
  assert_true(walindex_sealed(&h));
  assert_int_equal(h.version, 3007000);
  assert_int_equal(h.is_init, 1);
  for (size_t bit = 0; bit < sizeof(h) * 8; bit++) {
    bad = h;
    ((uint8_t *)&bad)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    assert_false(walindex_sealed(&bad));
  }
  memset(&bad, 0, sizeof(bad));
  assert_false(walindex_sealed(&bad)); /* sums of zeros are zero */
}

static void test_publish(void **state)
{
  struct walindex index = {.grow = grow};
  struct walindex_header h = {.mx_frame = 5};
  (void)state;
  assert_int_equal(walindex_reserve(&index, 0), 0);
  walindex_seal(&h);
  walindex_publish(&index, &h);
  assert_memory_equal(index.region[0], &h, sizeof(h));
  assert_memory_equal(index.region[0] + sizeof(h), &h, sizeof(h));
  assert_ptr_equal(walindex_info(&index), index.region[0] + 2 * sizeof(h));
  index_free(&index);
}

static void test_page_sizes(void **state)
{
  (void)state;
  for (uint32_t size = 512; size <= 65536; size *= 2) {
    uint16_t encoded = walindex_encode_page_size(size);
    assert_int_equal(encoded, size == 65536 ? 1 : size);
    assert_int_equal(walindex_decode_page_size(encoded), size);
  }
}

/* ---- the -wal format --------------------------------------------------- */

static void test_checksum_vectors(void **state)
{
  /* By hand: a += x[0] + b, b += x[1] + a. */
  static const uint8_t data[24] = {1, 0, 0, 0, 2,    0,    0,    0,
                                   3, 0, 0, 0, 4,    0,    0,    0,
                                   0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff};
  static const uint32_t want[3][2] = {{1, 3}, {7, 14}, {277, 290}};
  uint32_t chain[2] = {0, 0};
  (void)state;
  for (size_t n = 8; n <= 24; n += 8) {
    uint32_t sum[2] = {0, 0};
    wal_checksum(data, n, sum);
    assert_int_equal(sum[0], want[n / 8 - 1][0]);
    assert_int_equal(sum[1], want[n / 8 - 1][1]);
    wal_checksum(data + n - 8, 8, chain); /* in pieces the same */
    assert_memory_equal(chain, sum, 8);
  }
  wal_checksum(data, 0, chain);
  assert_int_equal(chain[0], 277);
}

/* Writes a transaction of the origin behind the frames in a -wal. */
static void write_frames(FILE *f, const struct origin *o,
                         const uint32_t salt[2], uint32_t chain[2])
{
  for (uint32_t i = 0; i < o->n_changed; i++) {
    uint8_t header[WAL_FRAME_HEADER];
    const uint8_t *page = origin_page(o, o->changed[i]);
    uint32_t n_page = i + 1 == o->n_changed ? o->n_page : 0;
    wal_encode_frame(header, o->changed[i], n_page, salt, page, o->page_size,
                     chain);
    assert_int_equal(fwrite(header, sizeof(header), 1, f), 1);
    assert_int_equal(fwrite(page, o->page_size, 1, f), 1);
  }
}

/* A fresh process opens "copy": it recovers the -wal as stock does. */
static void recover_and_compare(const char *dir, const char *digest)
{
  struct reader r;
  reader_start(&r, path_of(dir, "copy").s);
  assert_string_equal(reader_ask(&r, "open"), "ok");
  assert_string_equal(reader_ask(&r, DIGEST), digest);
  assert_string_equal(reader_ask(&r, "PRAGMA integrity_check"), "ok");
  reader_ask(&r, "close");
  reader_stop(&r);
}

/* Two transactions in a -wal made here; returns the digests of the database
   after the first and the second. */
static void make_wal(const char *dir, uint32_t page_size,
                     char digest[2][ANSWER_MAX])
{
  const uint32_t salt[2] = {0x01020304, 0xf5f6f7f8};
  uint32_t chain[2];
  uint8_t header[WAL_HEADER];
  struct origin o;
  origin_open(&o, dir, page_size);
  origin_copy(&o, path_of(dir, "copy").s, true);
  FILE *f = fopen(path_of(dir, "copy-wal").s, "wb");
  assert_non_null(f);
  wal_encode_header(header, page_size, 3, salt, chain);
  assert_int_equal(fwrite(header, sizeof(header), 1, f), 1);
  origin_step(&o, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
                  "FROM n WHERE i < 600) INSERT INTO t(v) "
                  "SELECT printf('%.*c', 900, char(97 + i % 26)) FROM n");
  stock_ask(o.db, DIGEST, digest[0]);
  write_frames(f, &o, salt, chain);
  origin_step(&o, "UPDATE t SET v = v || 'x' WHERE id % 3 = 0");
  stock_ask(o.db, DIGEST, digest[1]);
  write_frames(f, &o, salt, chain);
  fclose(f);
  origin_close(&o);
}

static void test_stock_reads_ours(void **state)
{
  static const uint32_t sizes[] = {512, 4096, 65536};
  const char *dir = *state;
  for (unsigned s = 0; s < 3; s++) {
    char digest[2][ANSWER_MAX];
    make_wal(dir, sizes[s], digest);
    assert_string_not_equal(digest[0], digest[1]);
    recover_and_compare(dir, digest[1]);
    /* One wrong bit in its last page, and the second is not there. */
    struct path wal = path_of(dir, "copy-wal");
    size_t len;
    make_wal(dir, sizes[s], digest);
    uint8_t *data = file_read(wal.s, &len);
    data[len - 1] ^= 1;
    file_write(wal.s, data, len);
    free(data);
    recover_and_compare(dir, digest[0]);
  }
}

/* ---- stock's bytes ----------------------------------------------------- */

/* Encodes the frames of a stock -wal anew: every byte must come out alike. */
static void compare_wal(const uint8_t *wal, size_t len, struct walindex *index,
                        struct walindex_header *header)
{
  uint32_t salt[2], chain[2], page_size = get_be32(wal + 8);
  uint8_t ours[WAL_HEADER];
  size_t size = page_size + WAL_FRAME_HEADER;
  memcpy(salt, wal + 16, 8);
  wal_encode_header(ours, page_size, get_be32(wal + 12), salt, chain);
  assert_memory_equal(ours, wal, WAL_HEADER);
  memset(header, 0, sizeof(*header));
  memcpy(header->salt, salt, 8);
  header->page_size = walindex_encode_page_size(page_size);
  for (size_t at = WAL_HEADER; at + size <= len; at += size) {
    uint32_t pgno = get_be32(wal + at), n_page = get_be32(wal + at + 4);
    wal_encode_frame(ours, pgno, n_page, salt, wal + at + WAL_FRAME_HEADER,
                     page_size, chain);
    assert_memory_equal(ours, wal + at, WAL_FRAME_HEADER);
    assert_int_equal(walindex_append(index, ++header->mx_frame, pgno), 0);
    if (n_page) header->n_page = n_page;
  }
  memcpy(header->frame_checksum, chain, 8);
}

/* A stock -wal and -shm of about `frames` frames, byte by byte. */
static void compare_with_stock(const char *dir, uint32_t page_size,
                               unsigned frames)
{
  char sql[300];
  struct path path = path_of(dir, "stock");
  sqlite3 *db = stock_open(path.s);
  snprintf(sql, sizeof(sql),
           "PRAGMA page_size=%u; PRAGMA journal_mode=WAL;"
           "PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF;"
           "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);",
           page_size);
  stock_exec(db, sql);
  /* About one row on a page; two pages change with each. */
  snprintf(sql, sizeof(sql),
           "INSERT INTO t(v) VALUES(printf('%%.*c', %u, 'x'))",
           page_size - 100);
  for (unsigned i = 0; i < frames / 2; i++)
    stock_exec(db, sql);
  size_t wal_len, shm_len;
  uint8_t *wal = file_read(path_of(dir, "stock-wal").s, &wal_len);
  uint8_t *shm = file_read(path_of(dir, "stock-shm").s, &shm_len);
  struct walindex index = {.grow = grow};
  struct walindex_header header, theirs;
  compare_wal(wal, wal_len, &index, &header);
  assert_in_range(header.mx_frame, frames * 3 / 4, frames * 3);
  memcpy(&theirs, shm, sizeof(theirs));
  assert_true(walindex_sealed(&theirs));
  header.change = theirs.change;
  walindex_seal(&header);
  assert_memory_equal(&header, &theirs, sizeof(header));
  for (unsigned i = 0; i < index.n_regions; i++) {
    size_t skip = i ? 0 : 136;
    assert_memory_equal(index.region[i] + skip,
                        shm + (size_t)i * WALINDEX_REGION + skip,
                        WALINDEX_REGION - skip);
  }
  index_free(&index);
  free(wal);
  free(shm);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  unlink(path.s);
}

static void test_same_bytes_as_stock(void **state)
{
  compare_with_stock(*state, 512, 9000); /* three regions */
  compare_with_stock(*state, 4096, 100);
  compare_with_stock(*state, 65536, 20);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_region_of),
      cmocka_unit_test(test_append_to_borders),
      cmocka_unit_test(test_rewind_between_borders),
      cmocka_unit_test(test_rewind_leaves_nothing),
      cmocka_unit_test(test_random_walk),
      cmocka_unit_test(test_collisions),
      cmocka_unit_test(test_no_room),
      cmocka_unit_test(test_seal),
      cmocka_unit_test(test_publish),
      cmocka_unit_test(test_page_sizes),
      cmocka_unit_test(test_checksum_vectors),
      IN_DIR(test_stock_reads_ours),
      IN_DIR(test_same_bytes_as_stock),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
