/*
** record.c: writes down what a process does to files.
**
** The functions below stand before those of the C library, for this program
** and for the shared libraries in it: a call of SQLite's or of a node's, by
** whatever way, comes here first. One lock makes a call and its line in the
** record one thing, so that the record has one order, and everything before a
** sync is covered by it. Syncs are written down and not carried out: nothing
** here outlives the machine.
**
** What a node changes in a file that it has mapped (only "control" matters; the
** -shm is made anew) is seen before the next operation is written down, as a
** write of its first bytes.
**
** A call may also be made to fail: whoever wants that is asked before each one,
** under the same lock (test/fault).
**
** Ports: a process that listens on a port gets another one from the system, and
** whoever connects to the first in this process is taken to the second. So
** any number of processes can have nodes with the same addresses.
*/
#include "crash.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define VISIBLE __attribute__((visibility("default")))
#define RECORD_BYTES ((size_t)4 << 30) /* of a sparse file */
#define FDS 65536
#define MAPS 8
#define MAP_BYTES 64 /* of struct control, start.c */
#define PORTS 16

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct record *to;
static fault_fn *ask;
static uint64_t last;         /* operation of this process; 0: it goes on */
static uint32_t file_of[FDS]; /* number of an open file; 0: not ours */

struct map {
  uint32_t file;
  const uint8_t *at;
  uint8_t seen[MAP_BYTES];
};
static struct map maps[MAPS];
static uint32_t control_files[MAPS]; /* numbers of files named "control" */

/* ---- the record -------------------------------------------------------- */

static struct record *record_map(const char *path, int flags, size_t bytes)
{
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
  if (fd < 0 || (bytes && syscall(SYS_ftruncate, fd, (off_t)bytes) != 0))
    die("%s: %s", path, strerror(errno));
  struct stat st;
  if (fstat(fd, &st) != 0) die("%s: %s", path, strerror(errno));
  void *at = (void *)syscall(SYS_mmap, NULL, (size_t)st.st_size,
                             PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) die("%s: %s", path, strerror(errno));
  syscall(SYS_close, fd);
  return at;
}

struct record *record_new(const char *path, const char *root)
{
  struct record *r = record_map(path, O_RDWR | O_CREAT | O_TRUNC, RECORD_BYTES);
  r->cap = RECORD_BYTES - sizeof(*r);
  snprintf(r->root, sizeof(r->root), "%s", root);
  return r;
}

struct record *record_load(const char *path)
{
  return record_map(path, O_RDWR, 0);
}

void record_free(struct record *record)
{
  munmap(record, RECORD_BYTES);
}

void record_to(struct record *record)
{
  pthread_mutex_lock(&lock);
  to = record;
  pthread_mutex_unlock(&lock);
}

void record_faults(fault_fn *fault)
{
  pthread_mutex_lock(&lock);
  ask = fault;
  pthread_mutex_unlock(&lock);
}

/* The lock is held. True: the call is not made, errno says why. */
static bool fails(enum call call, int fd, const char *path, int flags)
{
  int error = ask ? ask(call, fd, path, flags) : 0;
  if (error) errno = error;
  return error != 0;
}

static void append(uint8_t kind, uint8_t mark, uint32_t file, uint64_t a,
                   uint64_t b, const char *text, const void *data,
                   size_t n_data)
{
  size_t n_text = text ? strlen(text) + 1 : 0, pad = (n_text + 7) & ~(size_t)7;
  size_t bytes = (sizeof(struct op) + pad + n_data + 7) & ~(size_t)7;
  if (to->used + bytes > to->cap) die("the record is full");
  struct op *op = (struct op *)(void *)(to->ops + to->used);
  op->bytes = (uint32_t)bytes;
  op->kind = kind;
  op->mark = mark;
  op->n_text = (uint16_t)n_text;
  op->file = file;
  op->n_data = (uint32_t)n_data;
  op->a = a;
  op->b = b;
  if (n_text) memcpy(op->text, text, n_text);
  if (n_data) memcpy(op->text + pad, data, n_data);
  to->used += bytes;
  if (++to->n == last) _exit(0);
}

/* What was changed in mapped files came before what is done now. */
static void look_at_maps(void)
{
  uint8_t now[MAP_BYTES];
  for (unsigned i = 0; i < MAPS; i++) {
    struct map *m = &maps[i];
    if (m->at == NULL) continue;
    for (unsigned k = 0; k < MAP_BYTES; k += 8) {
      uint64_t word = __atomic_load_n(
          (const uint64_t *)(const void *)(m->at + k), __ATOMIC_ACQUIRE);
      memcpy(now + k, &word, 8);
    }
    if (memcmp(now, m->seen, MAP_BYTES) == 0) continue;
    memcpy(m->seen, now, MAP_BYTES);
    append(OP_WRITE, 0, m->file, 0, 0, NULL, now, MAP_BYTES);
  }
}

/* The lock is held from enter() to leave(). */
static bool enter(void)
{
  pthread_mutex_lock(&lock);
  if (to) look_at_maps();
  return to != NULL;
}

static void leave(void)
{
  int was = errno;
  pthread_mutex_unlock(&lock);
  errno = was;
}

void record_mark(enum mark mark, uint64_t a, uint64_t b, const char *text)
{
  if (enter()) append(OP_MARK, (uint8_t)mark, 0, a, b, text, NULL, 0);
  leave();
}

void record_power(struct record *record, uint64_t seed)
{
  record_to(record);
  if (enter()) append(OP_POWER, 0, 0, seed, 0, NULL, NULL, 0);
  leave();
  record_to(NULL);
}

void record_kill(void)
{
  enter();
  _exit(0);
}

void record_kill_after(uint64_t operations)
{
  if (enter()) last = to->n + operations + 1;
  leave();
}

/* ---- paths and files --------------------------------------------------- */

/* The path below the root, or NULL: not recorded. */
static const char *ours(const char *path)
{
  size_t n = to ? strlen(to->root) : 0;
  if (n == 0 || strncmp(path, to->root, n - 1) != 0) return NULL;
  if (path[n - 1] == 0) return path + n - 1; /* the root itself */
  return path[n - 1] == '/' ? path + n : NULL;
}

static uint32_t number_of(int fd)
{
  return fd >= 0 && fd < FDS ? file_of[fd] : 0;
}

static bool ends_in(const char *path, const char *end)
{
  size_t n = strlen(path), k = strlen(end);
  return n >= k && strcmp(path + n - k, end) == 0;
}

static int do_open(const char *path, int flags, mode_t mode)
{
  bool on = enter();
  int fd = fails(CALL_OPEN, AT_FDCWD, path, flags)
               ? -1
               : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
  const char *name = on && fd >= 0 ? ours(path) : NULL;
  if (fd >= 0 && fd < FDS) file_of[fd] = 0;
  if (name) {
    if (fd >= FDS) die("too many open files");
    file_of[fd] = ++to->files;
    append(OP_OPEN, 0, to->files, (uint64_t)flags, 0, name, NULL, 0);
    if (ends_in(name, "/control")) control_files[to->files % MAPS] = to->files;
  }
  leave();
  return fd;
}

VISIBLE int open(const char *path, int flags, ...)
{
  va_list args;
  va_start(args, flags);
  mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
  va_end(args);
  return do_open(path, flags, mode);
}

VISIBLE int open64(const char *path, int flags, ...)
{
  va_list args;
  va_start(args, flags);
  mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
  va_end(args);
  return do_open(path, flags, mode);
}

/* Not written down: only a backup is made in that way. */
VISIBLE int openat(int dir, const char *path, int flags, ...)
{
  va_list args;
  va_start(args, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
  va_end(args);
  enter();
  int fd = fails(CALL_OPEN, dir, path, flags)
               ? -1
               : (int)syscall(SYS_openat, dir, path, flags, mode);
  leave();
  return fd;
}

VISIBLE int close(int fd)
{
  enter();
  if (fd >= 0 && fd < FDS) file_of[fd] = 0;
  int rc = (int)syscall(SYS_close, fd);
  leave();
  return rc;
}

/* ---- bytes ------------------------------------------------------------- */

static ssize_t do_write(int fd, const void *buf, size_t n, off_t offset)
{
  bool on = enter();
  ssize_t rc = fails(CALL_WRITE, fd, NULL, (int)n)
                   ? -1
                   : syscall(SYS_pwrite64, fd, buf, n, offset);
  uint32_t file = on && rc > 0 ? number_of(fd) : 0;
  if (file)
    append(OP_WRITE, 0, file, (uint64_t)offset, 0, NULL, buf, (size_t)rc);
  leave();
  return rc;
}

VISIBLE ssize_t pwrite(int fd, const void *buf, size_t n, off_t offset)
{
  return do_write(fd, buf, n, offset);
}

VISIBLE ssize_t pwrite64(int fd, const void *buf, size_t n, off_t offset)
{
  return do_write(fd, buf, n, offset);
}

/* As one write: what was gathered is small here. */
VISIBLE ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
  size_t bytes = 0, at = 0;
  for (int i = 0; i < n; i++)
    bytes += iov[i].iov_len;
  uint8_t *buf = malloc(bytes + 1);
  if (buf == NULL) die("out of memory");
  for (int i = 0; i < n; at += iov[i++].iov_len)
    if (iov[i].iov_len) memcpy(buf + at, iov[i].iov_base, iov[i].iov_len);
  ssize_t rc = do_write(fd, buf, bytes, offset);
  free(buf);
  return rc;
}

static ssize_t do_read(int fd, void *buf, size_t n, off_t offset)
{
  enter();
  ssize_t rc = fails(CALL_READ, fd, NULL, 0)
                   ? -1
                   : syscall(SYS_pread64, fd, buf, n, offset);
  leave();
  return rc;
}

VISIBLE ssize_t pread(int fd, void *buf, size_t n, off_t offset)
{
  return do_read(fd, buf, n, offset);
}

VISIBLE ssize_t pread64(int fd, void *buf, size_t n, off_t offset)
{
  return do_read(fd, buf, n, offset);
}

VISIBLE ssize_t write(int fd, const void *buf, size_t n)
{
  if (number_of(fd)) die("a write without an offset is not recorded");
  return syscall(SYS_write, fd, buf, n);
}

static int do_truncate(int fd, off_t size)
{
  bool on = enter();
  int rc = fails(CALL_TRUNCATE, fd, NULL, 0)
               ? -1
               : (int)syscall(SYS_ftruncate, fd, size);
  uint32_t file = on && rc == 0 ? number_of(fd) : 0;
  if (file) append(OP_SIZE, 0, file, (uint64_t)size, 0, NULL, NULL, 0);
  leave();
  return rc;
}

VISIBLE int ftruncate(int fd, off_t size)
{
  return do_truncate(fd, size);
}

VISIBLE int ftruncate64(int fd, off_t size)
{
  return do_truncate(fd, size);
}

static int do_sync(int fd)
{
  bool on = enter();
  int rc = fails(CALL_SYNC, fd, NULL, 0) ? -1 : 0;
  if (on && rc == 0 && number_of(fd))
    append(OP_SYNC, 0, number_of(fd), 0, 0, NULL, NULL, 0);
  leave();
  return rc;
}

VISIBLE int fsync(int fd)
{
  return do_sync(fd);
}

VISIBLE int fdatasync(int fd)
{
  return do_sync(fd);
}

static int do_stat(int fd, struct stat *st)
{
  enter();
  int rc = fails(CALL_SIZE, fd, NULL, 0) ? -1 : (int)syscall(SYS_fstat, fd, st);
  leave();
  return rc;
}

VISIBLE int fstat(int fd, struct stat *st)
{
  return do_stat(fd, st);
}

/* The two structures are one here. */
VISIBLE int fstat64(int fd, struct stat64 *st)
{
  return do_stat(fd, (struct stat *)(void *)st);
}

static void *do_map(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
  bool on = enter();
  void *map = fd >= 0 && fails(CALL_MAP, fd, NULL, 0)
                  ? MAP_FAILED
                  : (void *)syscall(SYS_mmap, at, n, prot, flags, fd, off);
  uint32_t file = on && map != MAP_FAILED ? number_of(fd) : 0;
  if (file && control_files[file % MAPS] == file)
    for (unsigned i = 0; i < MAPS; i++)
      if (maps[i].at == NULL) {
        maps[i].file = file;
        maps[i].at = map;
        memset(maps[i].seen, 0, MAP_BYTES);
        break;
      }
  leave();
  return map;
}

VISIBLE void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
  return do_map(at, n, prot, flags, fd, off);
}

VISIBLE void *mmap64(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
  return do_map(at, n, prot, flags, fd, off);
}

VISIBLE int munmap(void *at, size_t n)
{
  enter();
  for (unsigned i = 0; i < MAPS; i++)
    if (maps[i].at == at) maps[i].at = NULL;
  int rc = (int)syscall(SYS_munmap, at, n);
  leave();
  return rc;
}

/* ---- names ------------------------------------------------------------- */

VISIBLE int rename(const char *from, const char *to_path)
{
  bool on = enter();
  int rc =
      fails(CALL_RENAME, AT_FDCWD, to_path, 0)
          ? -1
          : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to_path, 0);
  const char *a = on && rc == 0 ? ours(from) : NULL;
  const char *b = a ? ours(to_path) : NULL;
  if (b) append(OP_RENAME, 0, 0, 0, 0, a, b, strlen(b) + 1);
  leave();
  return rc;
}

/* Not written down: only a backup gets its name in that way. */
VISIBLE int linkat(int from_dir, const char *from, int to_dir,
                   const char *to_path, int flags)
{
  enter();
  int rc =
      fails(CALL_RENAME, to_dir, to_path, 0)
          ? -1
          : (int)syscall(SYS_linkat, from_dir, from, to_dir, to_path, flags);
  leave();
  return rc;
}

VISIBLE DIR *opendir(const char *path)
{
  DIR *(*real)(const char *);
  *(void **)&real = dlsym(RTLD_NEXT, "opendir");
  enter();
  DIR *dir = fails(CALL_LIST, AT_FDCWD, path, 0) ? NULL : real(path);
  leave();
  return dir;
}

static int do_name(const char *path, enum call call, long number, int how,
                   enum op_kind kind)
{
  bool on = enter();
  int rc = fails(call, AT_FDCWD, path, 0)
               ? -1
               : (int)syscall(number, AT_FDCWD, path, how);
  const char *name = on && rc == 0 ? ours(path) : NULL;
  if (name) append((uint8_t)kind, 0, 0, 0, 0, name, NULL, 0);
  leave();
  return rc;
}

VISIBLE int unlink(const char *path)
{
  return do_name(path, CALL_UNLINK, SYS_unlinkat, 0, OP_UNLINK);
}

VISIBLE int mkdir(const char *path, mode_t mode)
{
  return do_name(path, CALL_MKDIR, SYS_mkdirat, (int)mode, OP_MKDIR);
}

VISIBLE int rmdir(const char *path)
{
  return do_name(path, CALL_UNLINK, SYS_unlinkat, AT_REMOVEDIR, OP_RMDIR);
}

/* ---- ports ------------------------------------------------------------- */

static struct {
  _Atomic unsigned asked, given;
} ports[PORTS];

unsigned record_port(unsigned port)
{
  for (unsigned i = 0; i < PORTS; i++)
    if (ports[i].asked == port) return ports[i].given;
  return 0;
}

static unsigned given_port(int fd)
{
  struct sockaddr_in in;
  socklen_t n = sizeof(in);
  return getsockname(fd, (struct sockaddr *)&in, &n) == 0 ? ntohs(in.sin_port)
                                                          : 0;
}

VISIBLE int bind(int fd, const struct sockaddr *address, socklen_t n)
{
  struct sockaddr_in in;
  if (address->sa_family != AF_INET || n != sizeof(in))
    return (int)syscall(SYS_bind, fd, address, n);
  memcpy(&in, address, sizeof(in));
  unsigned asked = ntohs(in.sin_port), i = 0;
  in.sin_port = 0;
  int rc = (int)syscall(SYS_bind, fd, &in, sizeof(in));
  if (rc != 0) return rc;
  while (i < PORTS - 1 && ports[i].asked && ports[i].asked != asked)
    i++;
  ports[i].given = given_port(fd);
  ports[i].asked = asked;
  return 0;
}

VISIBLE int connect(int fd, const struct sockaddr *address, socklen_t n)
{
  struct sockaddr_in in;
  if (address->sa_family == AF_INET && n == sizeof(in)) {
    memcpy(&in, address, sizeof(in));
    unsigned port = record_port(ntohs(in.sin_port));
    in.sin_port = htons((uint16_t)(port ? port : 1));
    return (int)syscall(SYS_connect, fd, &in, sizeof(in));
  }
  return (int)syscall(SYS_connect, fd, address, n);
}

/* ---- for people -------------------------------------------------------- */

void op_print(const struct op *op, uint64_t number, const char *name)
{
  static const char *const kinds[] = {"",      "open",   "write",  "size",
                                      "sync",  "rename", "unlink", "mkdir",
                                      "rmdir", "POWER",  "mark"};
  static const char *const marks[] = {"",        "note",   "begin",  "ack",
                                      "settled", "member", "invite", "invited",
                                      "course",  "phase"};
  printf("  %8llu %-6s", (unsigned long long)number, kinds[op->kind]);
  if (op->kind == OP_MARK)
    printf(" %s %llu", marks[op->mark], (unsigned long long)op->a);
  if (op->file && op->kind != OP_OPEN) printf(" %s", name ? name : "?");
  if (op->kind == OP_OPEN && op->a & O_CREAT) printf(" O_CREAT");
  if (op->kind == OP_OPEN && op->a & O_TRUNC) printf(" O_TRUNC");
  if (op->kind == OP_WRITE)
    printf(" %u bytes at %llu", op->n_data, (unsigned long long)op->a);
  if (op->kind == OP_SIZE) printf(" to %llu", (unsigned long long)op->a);
  if (op->n_text) printf(" %s", op->text);
  if (op->kind == OP_RENAME) printf(" to %s", (const char *)op_data(op));
  printf("\n");
}
