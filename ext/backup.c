/*
** backup.c: quorate_backup(): an ordinary copy of the database as of one index.
**
** The pages of an image (image.c) are written to a file that has no name yet,
** or a name of its own beside the wanted one where the file system knows no
** such files. It is synced and then gets its name in one step, which fails if
** something has that name by now. So nobody ever sees half a backup, and a
** process that is killed leaves nothing (or, in the second case, a file
** NAME-partial-<hex>).
**
** Bytes 18 and 19 of the copy are 1: a database in rollback mode, as VACUUM
** INTO makes it. It is one file, needs nothing beside it, and any tool reads
** and writes it. Every other byte is that of the source.
*/
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20) /* read before they are written */

/* Where the backup goes. */
struct target {
  char *dir;        /* absolute, without symbolic links */
  const char *name; /* in it; in the same memory */
  int dir_fd, fd;
  char partial[NAME_MAX + 1]; /* its name so far; empty: none */
};

/* ---- the target -------------------------------------------------------- */

static int refuse(struct text *error, const struct target *t, const char *why)
{
  text_set(error, "%s/%s: %s", t->dir, t->name, why);
  return -EINVAL;
}

static bool exists(const struct target *t, const char *suffix)
{
  char name[NAME_MAX + 1];
  struct stat st;
  if (snprintf(name, sizeof(name), "%s%s", t->name, suffix) > NAME_MAX)
    return false;
  return fstatat(t->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* "" or "-wal" and the like, when the target would be a part of the database
   itself; NULL: it would not. */
static const char *part_of(const struct target *t, const char *path)
{
  size_t n = strlen(t->dir);
  const char *name = path + n + 1;
  if (strncmp(path, t->dir, n) != 0 || path[n] != '/' ||
      strncmp(t->name, name, strlen(name)) != 0)
    return NULL;
  const char *rest = t->name + strlen(name);
  static const char *const parts[] = {"", "-journal", "-wal", "-shm"};
  for (int i = 0; i < 4; i++)
    if (strcmp(rest, parts[i]) == 0) return rest;
  return strncmp(rest, "-quorate", 8) == 0 ? rest : NULL;
}

/* True when a directory is that of the node, or in it. */
static bool is_inside(const char *dir, const char *outer)
{
  char *real = realpath(outer, NULL);
  size_t n = real ? strlen(real) : 0;
  bool inside =
      real && strncmp(dir, real, n) == 0 && (dir[n] == '/' || dir[n] == 0);
  free(real);
  return inside;
}

/* What stands in the way; each would make SQLite, or us, take the backup for
   something else. */
static int check_target(const struct node *node, const struct target *t,
                        struct text *error)
{
  static const char *const beside[] = {"-journal", "-wal", "-quorate"};
  const char *part = part_of(t, node->path);
  if (part)
    return refuse(error, t,
                  part[0] ? "belongs to the database" : "is the database");
  if (is_inside(t->dir, node->dir))
    return refuse(error, t, "is in the node's own directory");
  if (exists(t, "")) return refuse(error, t, "exists already");
  for (int i = 0; i < 3; i++)
    if (exists(t, beside[i])) {
      text_set(error, "%s/%s%s exists: it would be taken for the backup's",
               t->dir, t->name, beside[i]);
      return -EEXIST;
    }
  return 0;
}

/* A directory's path without symbolic links, malloc'd; NULL: errno says why it
   is none that can be read. */
static char *real_directory(const char *path)
{
  char *real = realpath(path, NULL);
  int fd = real ? open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
  if (fd >= 0) {
    close(fd);
    return real;
  }
  int number = errno;
  free(real);
  errno = number;
  return NULL;
}

int backup_path(const char *file, char **path, struct text *error)
{
  const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
  char *parent = slash == NULL   ? strdup(".")
                 : slash == file ? strdup("/")
                                 : strndup(file, (size_t)(slash - file));
  char *dir = parent ? real_directory(parent) : NULL;
  int rc = 0;
  *path = NULL;
  if (dir == NULL) {
    rc = -errno;
  } else if (asprintf(path, "%s/%s", dir, name) < 0) {
    *path = NULL;
    rc = -ENOMEM;
  }
  if (rc) text_set(error, "%s: %s", parent ? parent : file, errno_text(-rc).s);
  free(parent);
  free(dir);
  return rc;
}

static int open_target(const char *file, struct target *t, struct text *error)
{
  *t = (struct target){.dir_fd = -1, .fd = -1};
  if (file[0] != '/') {
    text_set(error, "%s: is not an absolute path", file);
    return -EINVAL;
  }
  int rc = backup_path(file, &t->dir, error);
  if (rc) return rc;
  char *slash = strrchr(t->dir, '/');
  t->name = slash + 1;
  *slash = 0;
  t->dir_fd = open(t->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (t->dir_fd < 0) {
    rc = -errno;
    text_set(error, "%s: %s", t->dir, errno_text(-rc).s);
  } else if (t->name[0] == 0 || strcmp(t->name, ".") == 0 ||
             strcmp(t->name, "..") == 0) {
    rc = refuse(error, t, "is a directory");
  }
  return rc;
}

/* A file for the pages, with the rights of the database. */
static int begin_target(const struct node *node, struct target *t)
{
  struct stat db;
  if (fstat(node->wal->db, &db) != 0) return -errno;
  /* It will get its name by way of /proc. */
  errno = EOPNOTSUPP;
  if (access("/proc/self/fd", X_OK) == 0)
    t->fd = openat(t->dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (t->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL ||
                    errno == ENOENT)) {
    uint64_t number = 0;
    if (getrandom(&number, sizeof(number), 0) != sizeof(number)) return -EIO;
    if (snprintf(t->partial, sizeof(t->partial), "%s-partial-%016llx", t->name,
                 (unsigned long long)number) >= (int)sizeof(t->partial)) {
      t->partial[0] = 0;
      return -ENAMETOOLONG;
    }
    t->fd = openat(t->dir_fd, t->partial,
                   O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  }
  if (t->fd < 0 || fchmod(t->fd, db.st_mode & 0777) != 0) return -errno;
  return 0;
}

/* Gives it its name, if nothing has that. */
static int publish(struct target *t)
{
  char proc[40];
  int rc;
  if (fsync(t->fd) != 0) return -errno;
  snprintf(proc, sizeof(proc), "/proc/self/fd/%d", t->fd);
  if (t->partial[0] == 0)
    rc = linkat(AT_FDCWD, proc, t->dir_fd, t->name, AT_SYMLINK_FOLLOW);
  else
    rc = linkat(t->dir_fd, t->partial, t->dir_fd, t->name, 0);
  if (rc != 0 && t->partial[0] && errno != EEXIST) {
    /* No links here. */
    rc = renameat2(t->dir_fd, t->partial, t->dir_fd, t->name, RENAME_NOREPLACE);
    if (rc == 0) t->partial[0] = 0;
  }
  if (rc != 0) return -errno;
  if (fsync(t->dir_fd) == 0) return 0;
  rc = -errno;
  unlinkat(t->dir_fd, t->name, 0);
  return rc;
}

static void close_target(struct target *t)
{
  if (t->partial[0]) unlinkat(t->dir_fd, t->partial, 0);
  if (t->fd >= 0) close(t->fd);
  if (t->dir_fd >= 0) close(t->dir_fd);
  free(t->dir);
}

/* ---- pages ------------------------------------------------------------- */

/* Writing beyond a limit of the process kills it, unless the signal of that is
   blocked, and taken back before it is let through again. */
static int write_pages(const struct io *io, int fd, const uint8_t *data,
                       size_t n, uint64_t offset)
{
  sigset_t limit, old, pending;
  const struct timespec now = {0, 0};
  sigemptyset(&limit);
  sigaddset(&limit, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &limit, &old);
  sigpending(&pending);
  int rc = io->pwrite(io->ctx, fd, data, n, offset);
  if (rc == -EFBIG && !sigismember(&pending, SIGXFSZ))
    sigtimedwait(&limit, NULL, &now);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return rc;
}

static int copy(const struct io *io, const struct image *image, int fd,
                const struct interrupt *interrupt)
{
  size_t page_size = image->wal->page_size;
  uint8_t *buf = malloc(COPY_BYTES);
  int rc = buf ? 0 : -ENOMEM;
  for (uint32_t pgno = 1; rc == 0 && pgno <= image->n_page;) {
    uint64_t offset = (uint64_t)(pgno - 1) * page_size;
    size_t len = 0;
    for (; rc == 0 && pgno <= image->n_page && len + page_size <= COPY_BYTES;
         pgno++, len += page_size)
      rc = image_read(image, pgno, buf + len);
    if (rc) break;
    if (offset == 0) buf[18] = buf[19] = 1;
    rc = write_pages(io, fd, buf, len, offset);
    if (rc == 0 && interrupt->raised(interrupt->ctx)) rc = -EINTR;
  }
  free(buf);
  return rc;
}

int backup_run(struct node *node, const char *file,
               const struct interrupt *interrupt, raft_index *index,
               struct text *error)
{
  struct target target;
  struct image image = {0};
  int rc = open_target(file, &target, error);
  if (rc == 0) rc = check_target(node, &target, error);
  if (rc) {
    close_target(&target);
    return rc;
  }
  rc = begin_target(node, &target);
  if (rc == 0) rc = image_open(node->wal, "a backup", &image);
  if (rc == 0) rc = copy(node->io, &image, target.fd, interrupt);
  *index = image.index;
  image_close(&image);
  if (rc == 0) rc = publish(&target);
  if (rc)
    text_set(error, "%s/%s: %s", target.dir, target.name,
             rc == -EEXIST ? "exists already" : errno_text(-rc).s);
  close_target(&target);
  return rc;
}
