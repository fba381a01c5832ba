/*
** course.c: what changes a node's files in several steps: quorate_detach() and
** quorate_bootstrap() of the same file, quorate_recover(), quorate_rebuild().
**
** A workload calls them; cut off anywhere, they are called again, by the next
** process of the workload or by a check, and have to end.
*/
#include "crash.h"

#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "vfs.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PORT 7101

/* One statement, on a connection that has nothing else open. */
static bool call(const char *sql, const char *path, char *error, size_t size)
{
  sqlite3 *db = NULL;
  sqlite3_open(":memory:", &db);
  int rc = world_exec(db, sql, path);
  if (rc != SQLITE_OK) snprintf(error, size, "%s", sqlite3_errmsg(db));
  sqlite3_close(db);
  return rc == SQLITE_OK;
}

bool course_bootstrap(const struct world *world, char *error, size_t size)
{
  char path[CRASH_PATH], sql[400];
  bool alone = world->nodes == 1;
  world_path(world, 1, path);
  snprintf(sql, sizeof(sql),
           "SELECT quorate_bootstrap(%%Q, 'name', 'n1', 'listen',"
           " '127.0.0.1:%d', 'heartbeat_ms', '%d',"
           " 'election_timeout_ms', '%d', 'log_keep_kib', '32')",
           PORT, alone ? 2 : 20, alone ? 6 : 120);
  return call(sql, path, error, size);
}

static void name_in(const struct world *world, unsigned node, const char *name,
                    char out[CRASH_PATH + 32])
{
  char path[CRASH_PATH];
  world_path(world, node, path);
  snprintf(out, CRASH_PATH + 32, "%s-quorate%s", path, name);
}

static void sync_path(const char *path)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

void course_key(const struct world *world, unsigned node, bool away)
{
  char here[CRASH_PATH + 32], there[CRASH_PATH + 32], dir[CRASH_PATH + 32];
  name_in(world, node, "/key.pem", here);
  name_in(world, node, "/key.away", there);
  name_in(world, node, "", dir);
  if (access(away ? here : there, F_OK) != 0) return;
  rename(away ? here : there, away ? there : here);
  sync_path(dir);
}

bool course_damage(const struct world *world, unsigned node, const char *name)
{
  char path[CRASH_PATH + 32];
  name_in(world, node, name, path);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  bool ok = ftruncate(fd, 10) == 0 && fsync(fd) == 0;
  close(fd);
  return ok;
}

bool course_call(const struct world *world, unsigned node, enum course course,
                 char *error, size_t size)
{
  static const char *const calls[] = {
      NULL, "SELECT quorate_detach(%Q)",
      "SELECT quorate_recover(%Q, 'accept-data-loss')",
      "SELECT quorate_rebuild(%Q)"};
  char path[CRASH_PATH];
  world_path(world, node, path);
  return call(calls[course], path, error, size);
}

void course_leave_wal(const struct world *world, unsigned node)
{
  char path[CRASH_PATH], from[CRASH_PATH + 8], to[CRASH_PATH + 8], buf[65536];
  ssize_t n, at = 0;
  world_path(world, 1, path);
  snprintf(from, sizeof(from), "%s-wal", path);
  world_path(world, node, path);
  snprintf(to, sizeof(to), "%s-wal", path);
  int in = open(from, O_RDONLY | O_CLOEXEC);
  int out = open(to, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  while (in >= 0 && out >= 0 && (n = pread(in, buf, sizeof(buf), at)) > 0 &&
         pwrite(out, buf, (size_t)n, at) == n)
    at += n;
  if (out >= 0) fsync(out);
  close(in);
  close(out);
  *strrchr(path, '/') = 0;
  sync_path(path);
}

bool course_is_ordinary(const struct world *world, unsigned node)
{
  char path[CRASH_PATH];
  sqlite3 *db = NULL;
  world_path(world, node, path);
  int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, vfs_below_name());
  if (rc == SQLITE_OK)
    rc = world_exec(db, "BEGIN IMMEDIATE; CREATE TABLE ordinary(v); ROLLBACK");
  sqlite3_close(db);
  return rc == SQLITE_OK;
}

/* Of detaching: the file may be a node's, ordinary, or neither. */
static bool make_node(struct world *world, bool ask, char *error, size_t size)
{
  char dir[CRASH_PATH + 32];
  struct stat st;
  name_in(world, 1, "", dir);
  if (stat(dir, &st) == 0) return true;
  if (ask) {
    if (!course_call(world, 1, COURSE_DETACH, error, size) &&
        strstr(error, "not a node: there is no") == NULL)
      return false;
    if (!course_is_ordinary(world, 1)) {
      snprintf(error, size, "detached, and a stock program cannot write it");
      return false;
    }
  }
  return course_bootstrap(world, error, size);
}

bool course_open(struct world *world, unsigned node, enum course course,
                 bool ask, char *error, size_t size)
{
  static const char *const advice[] = {NULL, NULL, "SELECT quorate_recover(",
                                       "SELECT quorate_rebuild("};
  course_key(world, node, false);
  if (course == COURSE_DETACH && !make_node(world, ask, error, size))
    return false;
  if (world_open(world, node, error, size)) return true;
  if (course == COURSE_NONE || advice[course] == NULL ||
      strstr(error, advice[course]) == NULL)
    return false;
  return course_call(world, node, course, error, size) &&
         world_open(world, node, error, size);
}
