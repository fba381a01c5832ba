/*
** fuzz_wal.c: the -wal beside a database when its node starts, and transactions
** that are applied after that.
**
** An input: u8 what, u8 number of frames, then for each u8 kind, u8 page, u8 size
** of the database after it (0: more of this transaction follows); then the same
** triples for transactions to be applied, and for checkpoints. what, bit 0: the
** rest of the input is the -wal as it is; bit 1: the file ends early.
** kind, of a frame: bits 0 to 2: 1: its salts are inverted, 2: other salts, 3:
** its checksum is wrong, 4: the ones of the frame before.
**
** What must hold: what is confirmed is what a stock recovery would find, up to
** the last whole transaction; it stays so when the node's files are closed and
** opened again; after a full checkpoint the database file has each page as it
** was written last.
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "../node.h"
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const fuzz_corpus = "ext/fuzz/corpus/wal";

#define PAGE 512u
#define PAGES 8u /* of the database file at first */
#define FRAMES 48u
#define FRAME (PAGE + WAL_FRAME_HEADER)

/* ---- files ------------------------------------------------------------- */

static char dir[64];

static void path_of(char path[128], const char *name)
{
  must(snprintf(path, 128, "%s/%s", dir, name) < 128);
}

static void remove_dir(void)
{
  static const char *const names[] = {"db", "db-wal", "db-shm"};
  char path[128];
  for (unsigned i = 0; i < 3; i++) {
    path_of(path, names[i]);
    unlink(path);
  }
  rmdir(dir);
}

static void put_file(const char *name, const void *data, size_t size)
{
  char path[128];
  path_of(path, name);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
  close(fd);
}

/* A page as this harness writes it: which one, and when. */
static void make_page(uint8_t page[PAGE], uint32_t pgno, uint8_t mark)
{
  memset(page, mark, PAGE);
  write_number(page + PAGE - 4, pgno, 4);
  if (pgno != 1) return;
  memset(page, 0, 100);
  memcpy(page, "SQLite format 3", 16);
  page[16] = PAGE >> 8;
  page[18] = 3;
  page[19] = 2;
}

static void put_database(void)
{
  uint8_t image[PAGES * PAGE];
  if (!dir[0]) {
    fuzz_make_dir(dir, sizeof(dir), remove_dir);
  }
  for (uint32_t i = 0; i < PAGES; i++)
    make_page(image + (size_t)i * PAGE, i + 1, 0);
  put_file("db", image, sizeof(image));
  put_file("db-shm", "", 0);
}

/* ---- the -wal ---------------------------------------------------------- */

/* What a reader of the database is to find. */
struct expected {
  uint32_t frames, n_page; /* confirmed; 0: none */
  uint8_t mark[256];       /* of each page */
};

/* A transaction ends. What is cut off is no more; should the database grow
   again, SQLite writes those pages before it reads them. */
static void end_transaction(struct expected *now, struct expected *e,
                            uint32_t frames, uint32_t n_page)
{
  for (uint32_t pgno = n_page + 1; pgno < 256; pgno++)
    now->mark[pgno] = 0;
  now->frames = frames;
  now->n_page = n_page;
  *e = *now;
}

static void put_wal(struct input *in, uint8_t what, struct expected *e)
{
  static uint8_t wal[WAL_HEADER + FRAMES * FRAME];
  const uint32_t salt[2] = {0x01020304, 0x05060708};
  struct expected now = *e;
  uint32_t chain[2];
  unsigned n = input_byte(in) % (FRAMES + 1);
  size_t size = WAL_HEADER;
  bool good = true;
  wal_encode_header(wal, PAGE, 1, salt, chain);
  for (unsigned i = 0; i < n; i++) {
    uint8_t *frame = wal + size;
    uint8_t kind = input_byte(in) % 8, pgno = input_byte(in);
    uint8_t n_page = input_byte(in), mark = (uint8_t)(i + 1);
    make_page(frame + WAL_FRAME_HEADER, pgno, mark);
    wal_encode_frame(frame, pgno, n_page, salt, frame + WAL_FRAME_HEADER, PAGE,
                     chain);
    for (unsigned k = 8; kind == 1 && k < 16; k++)
      frame[k] = (uint8_t)~frame[k];
    if (kind == 2) frame[8] ^= 1;
    if (kind == 3) frame[16] ^= 1;
    if (kind == 4 && i) memcpy(frame + 16, frame - FRAME + 16, 8);
    size += FRAME;
    if ((kind >= 1 && kind <= 3) || (kind == 4 && i) || pgno == 0) good = false;
    if (!good) continue;
    now.mark[pgno] = mark;
    if (n_page == 0) continue;
    end_transaction(&now, e, i + 1, n_page);
  }
  if (what & 2 && size > WAL_HEADER + FRAME) {
    size -= PAGE;
    if (e->frames == n) e->frames = UINT32_MAX; /* whatever is left */
  }
  put_file("db-wal", wal, size);
}

/* ---- what is applied --------------------------------------------------- */

static int floor_at(void *ctx, raft_index index)
{
  *(raft_index *)ctx = index;
  return 0;
}

/* Full, since nobody reads. Each page is as it was written last. */
static void check_point(struct wal *wal, const struct expected *e)
{
  struct wal_checkpointed done;
  raft_index floor = 0;
  char path[128];
  uint8_t page[PAGE], want[PAGE];
  struct stat st;
  must(wal_checkpoint(wal, floor_at, &floor, &done) == 0);
  must(done.full && done.index == wal->confirmed_index);
  if (e->frames == UINT32_MAX) return;
  path_of(path, "db");
  must(stat(path, &st) == 0);
  /* Of a database that has grown, SQLite has written the last page. */
  if (e->n_page) must(st.st_size <= (off_t)e->n_page * PAGE);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  for (uint32_t pgno = 1; pgno <= e->n_page; pgno++) {
    if (!e->mark[pgno]) continue;
    make_page(want, pgno, e->mark[pgno]);
    must(pread(fd, page, PAGE, (off_t)(pgno - 1) * PAGE) == PAGE);
    must(memcmp(page, want, PAGE) == 0);
  }
  close(fd);
}

static void apply(struct wal *wal, struct input *in, struct expected *e)
{
  raft_index index = wal->confirmed_index;
  uint8_t mark = 100, page[PAGE];
  struct expected now = *e;
  wal_append_start(wal);
  for (unsigned n = 0; input_left(in) && n < 60; n++) {
    uint8_t kind = input_byte(in), pgno = input_byte(in);
    uint8_t n_page = input_byte(in);
    if (kind % 8 == 7) {
      check_point(wal, e);
      if (kind & 8) must(wal_restart(wal) == 0);
      wal_append_start(wal);
      now = *e;
      continue;
    }
    if (pgno == 0) continue;
    make_page(page, pgno, ++mark);
    must(wal_append_page(wal, pgno, page) == 0);
    now.mark[pgno] = mark;
    if (n_page == 0) continue;
    if (kind & 16)
      must(wal_append_commit(wal, n_page, ++index) == 0);
    else
      must(wal_append_end(wal, n_page, ++index) == 0 &&
           wal_append_publish(wal) == 0);
    must(wal->confirmed_index == index && wal->confirmed.n_page == n_page);
    end_transaction(
        &now, e, e->frames == UINT32_MAX ? e->frames : wal->confirmed.mx_frame,
        n_page);
    wal_append_start(wal);
  }
}

/* Of the real -shm and of what connections are shown. */
static void check_index(struct wal *wal)
{
  uint32_t n = wal->confirmed.mx_frame;
  must(n >= 1 && wal->backfill <= n);
  must(walindex_sealed(&wal->confirmed));
  for (uint32_t f = 1; f <= n; f++) {
    must(control_pgno(wal->map, f) != 0);
    must(control_pgno(wal->map, f) == walindex_pgno(&wal->index, f));
  }
}

static struct wal *open_wal(struct control_map *map)
{
  struct wal *wal = NULL;
  char path[128], *error = NULL;
  path_of(path, "db");
  int rc = wal_open(&io_posix, path, 10, map, &wal, &error);
  must((rc == 0) == (wal != NULL));
  must(rc == 0 || (error && error[0]));
  free(error);
  if (wal) check_index(wal);
  return wal;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  struct input in = input_of(data, size);
  struct expected e = {.frames = 0, .n_page = 0};
  uint8_t what = input_byte(&in);
  struct control_map *map;
  put_database();
  if (what & 1) {
    put_file("db-wal", in.at, input_left(&in));
    e.frames = UINT32_MAX;
  } else {
    put_wal(&in, what, &e);
  }
  must(control_open(&io_posix, NULL, true, &map) == 0);
  struct wal *wal = open_wal(map);
  must(wal);
  if (e.frames != UINT32_MAX && e.frames) {
    must(wal->confirmed.mx_frame == e.frames);
    must(wal->confirmed.n_page == e.n_page);
  }
  uint32_t frames = wal->confirmed.mx_frame, n_page = wal->confirmed.n_page;
  wal_close(wal, false);
  wal_free(wal);
  wal = open_wal(map);
  must(wal && wal->confirmed.n_page == n_page);
  must(e.frames == 0 || wal->confirmed.mx_frame == frames);
  apply(wal, &in, &e);
  check_index(wal);
  check_point(wal, &e);
  wal_close(wal, true);
  wal_free(wal);
  control_close(map);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  /* Two transactions and a rest; more; a checkpoint, anew. */
  static const uint8_t some[] = {0, 5,  0, 1, 0, 0, 2, 8, 0, 3, 9, 0, 9,  9,
                                 0, 4,  0, 0, 3, 0, 0, 5, 9, 7, 0, 0, 16, 6,
                                 7, 15, 0, 0, 0, 1, 0, 0, 2, 4, 7, 0, 0};
  static const uint8_t bad[] = {0, 3, 0, 1, 4, 1, 2, 8, 0, 3, 9, 0, 9, 9};
  static const uint8_t early[] = {2, 2, 0, 1, 4, 0, 2, 8, 0, 3, 9};
  static const uint8_t raw[] = {1, 0x37, 0x7f, 0x06, 0x82};
  seed(some, sizeof(some));
  seed(bad, sizeof(bad));
  seed(early, sizeof(early));
  seed(raw, sizeof(raw));
}
