/*
** io.h: the one table of I/O functions through which a node writes files.
**
** raft/store and ext/ write every file through it, so that a simulator or a
** crash test can put a disk of its own behind them. All functions return 0
** (or a count, or a descriptor) or a negated errno value; they retry EINTR and
** short transfers themselves. Threads: any.
*/
#ifndef STORE_IO_H
#define STORE_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct io {
  void *ctx;
  /* flags as for open(2), always with O_CLOEXEC; mode 0600. Regular files, not
     through a link; and directories. */
  int (*open)(void *ctx, const char *path, int flags);
  void (*close)(void *ctx, int fd);
  /* whole buffer or error; pread gives the bytes read, short only at the end
     of the file */
  ssize_t (*pread)(void *ctx, int fd, void *buf, size_t n, uint64_t offset);
  int (*pwrite)(void *ctx, int fd, const void *buf, size_t n, uint64_t offset);
  int (*pwritev)(void *ctx, int fd, const struct iovec *iov, int n,
                 uint64_t offset);
  int (*sync)(void *ctx, int fd); /* fdatasync */
  int (*truncate)(void *ctx, int fd, uint64_t size);
  int (*size)(void *ctx, int fd, uint64_t *size);
  int (*rename)(void *ctx, const char *from, const char *to);
  int (*unlink)(void *ctx, const char *path);
  int (*mkdir)(void *ctx, const char *path); /* 0700; 0 if it exists */
  int (*sync_dir)(void *ctx, const char *path);
  /* Calls back for each name but . and .. */
  int (*list)(void *ctx, const char *path,
              void (*each)(void *arg, const char *name), void *arg);
};

/* The operating system's own files. */
extern const struct io io_posix;

/* Reads a whole file of at most max bytes into malloc'd memory, with a zero
   after the last byte. */
int io_read_file(const struct io *io, const char *path, size_t max,
                 uint8_t **data, size_t *len);

/* Replaces a file in one step: writes path.new, syncs it, renames it over
   path, syncs the directory. */
int io_replace_file(const struct io *io, const char *path, const void *data,
                    size_t len);

/* Makes a file at least so long, with zeros that are written: of a file that is
   mapped, a hole on a full disk would be a SIGBUS when it is touched. */
int io_extend(const struct io *io, int fd, uint64_t size);

/* Syncs the directory that holds path. */
int io_sync_parent(const struct io *io, const char *path);

#endif
