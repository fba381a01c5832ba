/*
** image.c: the database as of one index, page by page, from the live files.
**
** What is confirmed is pinned, as a reader does it. A page is read from -wal
** when it has a frame at or below the pinned one, else from the database file,
** which no checkpoint changes beyond the pin. When all of it is in the database
** file already, -wal is left alone. Nobody waits for it, and nothing is copied
** first.
*/
#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOCK_BYTES 0x40000000u /* offset of the page that SQLite never uses */

int image_pin(struct wal *wal, const char *who, struct image *image)
{
  struct control_view view;
  *image = (struct image){0};
  int rc = control_enter(wal->map, who, &image->reader);
  if (rc) return rc;
  control_pin(wal->map, &image->reader, false, &view);
  image->wal = wal;
  image->index = view.confirmed_index;
  image->n_page = view.confirmed.n_page;
  return 0;
}

int image_list(struct image *image)
{
  /* What is in the database file is read there: a new WAL may be on its way
     in this very moment (W3). */
  uint32_t n = image->reader.uses_wal ? image->reader.frame : 0;
  int rc = wal_look_at_fence(image->wal);
  if (rc) {
    image_close(image);
    return rc;
  }
  image->newest = malloc((size_t)(n + 1) * sizeof(*image->newest));
  if (image->newest == NULL) {
    image_close(image);
    return -ENOMEM;
  }
  for (uint32_t i = 0; i < n; i++) {
    image->newest[i].frame = i + 1;
    image->newest[i].pgno = control_pgno(image->wal->map, i + 1);
    if (image->newest[i].pgno == 0) {
      image_close(image);
      return -ENOMEM;
    }
  }
  image->n_newest = wal_newest(image->newest, n, image->n_page);
  return 0;
}

int image_open(struct wal *wal, const char *who, struct image *image)
{
  int rc = image_pin(wal, who, image);
  return rc ? rc : image_list(image);
}

void image_of_node(struct image *image)
{
  atomic_store(&image->reader.slot->of_node, true);
}

void image_close(struct image *image)
{
  if (image->wal == NULL) return;
  control_leave(&image->reader);
  free(image->newest);
  *image = (struct image){0};
}

int image_read(const struct image *image, uint32_t pgno, uint8_t *page)
{
  const struct wal *wal = image->wal;
  uint32_t lo = 0, hi = image->n_newest;
  int fd = wal->db;
  uint64_t offset = (uint64_t)(pgno - 1) * wal->page_size;
  if (pgno == LOCK_BYTES / wal->page_size + 1) {
    /* It is in no frame, and the file may end before it. */
    memset(page, 0, wal->page_size);
    return 0;
  }
  while (lo < hi) {
    uint32_t mid = lo + (hi - lo) / 2;
    if (image->newest[mid].pgno < pgno)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (lo < image->n_newest && image->newest[lo].pgno == pgno) {
    fd = wal->file;
    offset = wal_offset(wal, image->newest[lo].frame) + WAL_FRAME_HEADER;
  }
  ssize_t n = wal->io->pread(wal->io->ctx, fd, page, wal->page_size, offset);
  if (n == (ssize_t)wal->page_size) return 0;
  return n < 0 ? (int)n : -EIO;
}
