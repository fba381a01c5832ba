/*
** files.h: a disk in memory that is made anew for each input, with files as the
** input says.
*/
#ifndef FUZZ_FILES_H
#define FUZZ_FILES_H

#include "../internal.h"
#include "../test/disk.h"
#include "fuzz.h"

#define DIR_ "/n"
#define CLUSTER 0xc1c1c1c1u
#define NODE 7u

/* One is enough, and a new one each time would be slow. */
static inline struct disk *disk_fresh(void)
{
  static struct disk *disk;

  if (!disk) disk = disk_new(1);
  for (unsigned i = 0; i < disk->n_inodes; i++)
    disk_free_inode(disk->inodes[i]);
  disk->n_inodes = disk->n_names = disk->n_durable = disk->n_changes = 0;
  disk->n_trace = 0;
  for (unsigned i = 0; i < DISK_FDS; i++)
    must(!disk->fds[i]); /* closed, whatever became of it */
  return disk;
}

static inline void disk_write_file(struct disk *disk, const char *path,
                                   const void *data, size_t size)
{
  int fd = disk_open(disk, path, O_CREAT);

  must(fd >= 0);
  must(disk_pwrite(disk, fd, data, size, 0) == 0);
  disk->fds[fd]->size = size;
  disk_close(disk, fd);
}

static inline const uint8_t *disk_read_file(struct disk *disk, const char *path,
                                            size_t *size)
{
  struct dir_entry *e = disk_find(disk->names, disk->n_names, path);

  must(e);
  *size = (size_t)e->inode->size;
  return e->inode->cache;
}

/* What is refused says so in a line, and with an errno value. */
static inline void must_refuse(int rc, char *error)
{
  must(rc < 0);
  must(error && error[0] && !strchr(error, '\n'));
  free(error);
}

#endif
