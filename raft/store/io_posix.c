/*
** io_posix.c: the operating system's files behind the table of io.h, and the
** two operations on whole files that are built on any such table.
**
** Descriptors are always close-on-exec: the host process may start others,
** and a log that a child keeps open is a lock and a leak.
*/
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IO_IOV_BATCH 1024 /* Linux: UIO_MAXIOV */

/* ---- descriptors -------------------------------------------------------- */

/* Of the call that has just failed. A quota that is used up is a disk without
   room: both pass. */
static int failure(void)
{
  return errno == EDQUOT ? -ENOSPC : -errno;
}

/* A node's files are regular ones. Whatever somebody else has put in the place
   of one is not followed to where it leads, nor waited for, as a FIFO is. */
static int posix_open(void *ctx, const char *path, int flags)
{
  struct stat st;
  int fd;

  (void)ctx;
  if (!(flags & O_DIRECTORY)) flags |= O_NOFOLLOW | O_NONBLOCK;
  do {
    fd = open(path, flags | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return failure();
  if ((flags & O_DIRECTORY) || (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)))
    return fd;
  (void)close(fd);
  return -EINVAL;
}

static void posix_close(void *ctx, int fd)
{
  (void)ctx;
  (void)close(fd); /* on Linux the descriptor is gone even after EINTR */
}

static ssize_t posix_pread(void *ctx, int fd, void *buf, size_t n,
                           uint64_t offset)
{
  size_t got = 0;

  (void)ctx;
  while (got < n) {
    ssize_t r = pread(fd, (uint8_t *)buf + got, n - got, (off_t)(offset + got));

    if (r < 0 && errno == EINTR) continue;
    if (r < 0) return failure();
    if (r == 0) break;
    got += (size_t)r;
  }
  return (ssize_t)got;
}

static int posix_pwrite(void *ctx, int fd, const void *buf, size_t n,
                        uint64_t offset)
{
  size_t put = 0;

  (void)ctx;
  while (put < n) {
    ssize_t r =
        pwrite(fd, (const uint8_t *)buf + put, n - put, (off_t)(offset + put));

    if (r < 0 && errno == EINTR) continue;
    if (r < 0) return failure();
    if (r == 0) return -EIO; /* a file system that makes no progress */
    put += (size_t)r;
  }
  return 0;
}

/* The common case is one call that takes everything. The caller's vectors
   are not changed: a rest inside one of them goes through pwrite. */
static int posix_pwritev(void *ctx, int fd, const struct iovec *iov, int n,
                         uint64_t offset)
{
  while (n > 0) {
    int batch = n < IO_IOV_BATCH ? n : IO_IOV_BATCH;
    ssize_t r = pwritev(fd, iov, batch, (off_t)offset);
    size_t left;

    if (r < 0 && errno == EINTR) continue;
    if (r < 0) return failure();
    offset += (uint64_t)r;
    left = (size_t)r;
    while (n > 0 && left >= iov->iov_len) {
      left -= iov->iov_len;
      iov++;
      n--;
    }
    if (n > 0 && (left > 0 || r == 0)) {
      int rc = posix_pwrite(ctx, fd, (const uint8_t *)iov->iov_base + left,
                            iov->iov_len - left, offset);

      if (rc) return rc;
      offset += iov->iov_len - left;
      iov++;
      n--;
    }
  }
  return 0;
}

static int posix_sync(void *ctx, int fd)
{
  int rc;

  (void)ctx;
  do {
    rc = fdatasync(fd);
  } while (rc && errno == EINTR);
  return rc ? failure() : 0;
}

static int posix_truncate(void *ctx, int fd, uint64_t size)
{
  int rc;

  (void)ctx;
  do {
    rc = ftruncate(fd, (off_t)size);
  } while (rc && errno == EINTR);
  return rc ? failure() : 0;
}

static int posix_size(void *ctx, int fd, uint64_t *size)
{
  struct stat st;

  (void)ctx;
  if (fstat(fd, &st)) return failure();
  *size = (uint64_t)st.st_size;
  return 0;
}

/* ---- names -------------------------------------------------------------- */

static int posix_rename(void *ctx, const char *from, const char *to)
{
  (void)ctx;
  return rename(from, to) ? failure() : 0;
}

static int posix_unlink(void *ctx, const char *path)
{
  (void)ctx;
  return unlink(path) ? failure() : 0;
}

static int posix_mkdir(void *ctx, const char *path)
{
  struct stat st;

  (void)ctx;
  if (!mkdir(path, 0700)) return 0;
  if (errno != EEXIST) return failure();
  if (stat(path, &st)) return failure();
  return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

static int posix_sync_dir(void *ctx, const char *path)
{
  int fd = posix_open(ctx, path, O_RDONLY | O_DIRECTORY);
  int rc;

  if (fd < 0) return fd;
  do {
    rc = fsync(fd);
  } while (rc && errno == EINTR);
  rc = rc ? failure() : 0;
  posix_close(ctx, fd);
  return rc;
}

static int posix_list(void *ctx, const char *path,
                      void (*each)(void *arg, const char *name), void *arg)
{
  DIR *dir = opendir(path);
  struct dirent *entry;
  int rc;

  (void)ctx;
  if (!dir) return failure();
  errno = 0;
  while ((entry = readdir(dir))) {
    if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
      each(arg, entry->d_name);
    errno = 0;
  }
  rc = -errno;
  (void)closedir(dir);
  return rc;
}

const struct io io_posix = {
    .ctx = NULL,
    .open = posix_open,
    .close = posix_close,
    .pread = posix_pread,
    .pwrite = posix_pwrite,
    .pwritev = posix_pwritev,
    .sync = posix_sync,
    .truncate = posix_truncate,
    .size = posix_size,
    .rename = posix_rename,
    .unlink = posix_unlink,
    .mkdir = posix_mkdir,
    .sync_dir = posix_sync_dir,
    .list = posix_list,
};

/* ---- whole files -------------------------------------------------------- */

int io_read_file(const struct io *io, const char *path, size_t max,
                 uint8_t **data, size_t *len)
{
  int fd = io->open(io->ctx, path, O_RDONLY);
  uint64_t size;
  ssize_t got;
  uint8_t *buf;
  int rc;

  *data = NULL;
  *len = 0;
  if (fd < 0) return fd;
  rc = io->size(io->ctx, fd, &size);
  if (!rc && size > max) rc = -EFBIG;
  if (rc) goto out;
  buf = malloc((size_t)size + 1);
  if (!buf) {
    rc = -ENOMEM;
    goto out;
  }
  got = io->pread(io->ctx, fd, buf, (size_t)size, 0);
  if (got < 0) {
    rc = (int)got;
    free(buf);
    goto out;
  }
  buf[got] = 0;
  *data = buf;
  *len = (size_t)got;
out:
  io->close(io->ctx, fd);
  return rc;
}

int io_extend(const struct io *io, int fd, uint64_t size)
{
  uint8_t zero[4096] = {0};
  uint64_t has = 0;
  int rc = io->size(io->ctx, fd, &has);
  for (; rc == 0 && has < size; has = (has / 4096 + 1) * 4096)
    rc = io->pwrite(io->ctx, fd, zero, 4096 - has % 4096, has);
  return rc;
}

int io_sync_parent(const struct io *io, const char *path)
{
  const char *slash = strrchr(path, '/');
  char *dir;
  int rc;

  if (!slash) return io->sync_dir(io->ctx, ".");
  if (slash == path) return io->sync_dir(io->ctx, "/");
  dir = strndup(path, (size_t)(slash - path));
  if (!dir) return -ENOMEM;
  rc = io->sync_dir(io->ctx, dir);
  free(dir);
  return rc;
}

int io_replace_file(const struct io *io, const char *path, const void *data,
                    size_t len)
{
  size_t n = strlen(path) + sizeof(".new");
  char *temporary = malloc(n);
  int fd, rc;

  if (!temporary) return -ENOMEM;
  (void)snprintf(temporary, n, "%s.new", path);
  fd = io->open(io->ctx, temporary, O_WRONLY | O_CREAT | O_TRUNC);
  if (fd < 0) {
    rc = fd;
    goto out;
  }
  rc = io->pwrite(io->ctx, fd, data, len, 0);
  if (!rc) rc = io->sync(io->ctx, fd);
  io->close(io->ctx, fd);
  if (!rc) rc = io->rename(io->ctx, temporary, path);
  if (rc)
    (void)io->unlink(io->ctx, temporary);
  else
    rc = io_sync_parent(io, path);
out:
  free(temporary);
  return rc;
}
