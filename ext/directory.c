/*
** directory.c: the directory of a node: may it be trusted, and how it goes.
**
** Whoever can put a directory beside a database that somebody else opens must
** not have him run, read or write anything by it. So it is taken only if it is
** this user's or root's and nobody else may write in it; then what is in it was
** put there by them, and stays as it is seen here. All the same its files are
** opened without following links, and without waiting for the other end of a
** FIFO (raft/store/io_posix.c).
*/
#include "cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Those that a node makes in its directory. */
static const char *const folders[] = {"log", "incoming", "rebuild", "recover",
                                      "recover.new"};

static bool is_folder(const char *name)
{
  unsigned i = 0, n = sizeof(folders) / sizeof(folders[0]);
  while (i < n && strcmp(name, folders[i]) != 0)
    i++;
  return i < n;
}

/* Calls back for each name in an open directory, until one says something. */
static int each(int fd,
                int (*call)(int fd, const char *name, const char *path,
                            struct text *error),
                const char *path, struct text *error)
{
  const struct dirent *entry;
  int rc = 0, copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  DIR *dir = copy < 0 ? NULL : fdopendir(copy);
  if (dir == NULL) {
    rc = -errno;
    if (copy >= 0) close(copy);
    return rc;
  }
  while (rc == 0 && (entry = readdir(dir)))
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      rc = call(fd, entry->d_name, path, error);
  closedir(dir);
  return rc;
}

/* ---- may it be trusted? -------------------------------------------------- */

static int check_open(int fd, const char *path, struct text *error);

static int check_one(int fd, const char *name, const char *path,
                     struct text *error)
{
  struct stat st;
  char *inner = NULL;
  if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    return errno == ENOENT ? 0 : -errno;
  if (S_ISREG(st.st_mode)) return 0;
  if (S_ISSOCK(st.st_mode) && strcmp(name, "sock") == 0) return 0;
  if (S_ISDIR(st.st_mode) && !is_folder(name)) return 0; /* not ours */
  if (!S_ISDIR(st.st_mode)) {
    text_set(error, "%s/%s: not a regular file", path, name);
    return -EINVAL;
  }
  int sub = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (sub < 0) return -errno;
  int rc = asprintf(&inner, "%s/%s", path, name) < 0
               ? -ENOMEM
               : check_open(sub, inner, error);
  free(inner);
  close(sub);
  return rc;
}

/* -EPERM: nothing is wrong but that it is another user's. */
static int check_open(int fd, const char *path, struct text *error)
{
  struct stat st;
  if (fstat(fd, &st) != 0) return -errno;
  if (st.st_mode & (S_IWGRP | S_IWOTH)) {
    text_set(error, "%s: others than its owner may write there: chmod go-w it",
             path);
    return -EINVAL;
  }
  int rc = each(fd, check_one, path, error);
  return rc ? rc : st.st_uid == geteuid() || st.st_uid == 0 ? 0 : -EPERM;
}

int directory_check(const char *dir, struct text *error)
{
  struct stat st;
  error->s[0] = 0;
  int rc = lstat(dir, &st) != 0 ? -errno : 0;
  if (rc == 0 && S_ISLNK(st.st_mode)) {
    text_set(error, "%s: a symbolic link, not a directory", dir);
    return -EINVAL;
  }
  int fd = rc ? rc : open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (rc == 0 && fd < 0) {
    rc = -errno;
    if (rc == -EACCES && st.st_uid != geteuid()) rc = -EPERM;
  }
  if (rc == 0) {
    rc = check_open(fd, dir, error);
    close(fd);
  }
  if (rc == -EPERM)
    text_set(error, "%s: the node is another user's: it can only be read", dir);
  else if (rc && error->s[0] == 0)
    text_set(error, "%s: %s", dir, errno_text(-rc).s);
  return rc;
}

/* ---- how it goes ----------------------------------------------------------- */

static void remove_one(void *ctx, const char *name)
{
  char path[4096];
  const char *dir = ctx;
  if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) < sizeof(path))
    unlink(path);
}

/* A link is not followed to somebody's other files. */
static void remove_files(char *dir)
{
  struct stat st;
  if (lstat(dir, &st) != 0 || !S_ISDIR(st.st_mode) ||
      (st.st_uid != geteuid() && st.st_uid != 0))
    return;
  io_posix.list(io_posix.ctx, dir, remove_one, dir);
  rmdir(dir);
}

void cluster_remove_directory(const char *dir)
{
  char path[4096];
  struct stat st;
  if (lstat(dir, &st) != 0 || !S_ISDIR(st.st_mode)) return;
  for (unsigned i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, folders[i]) <
        sizeof(path))
      remove_files(path);
  snprintf(path, sizeof(path), "%s", dir);
  remove_files(path);
}
