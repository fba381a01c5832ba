/*
** control.c: see control.h.
**
** Division one, the files. Division two, the view. Division three, readers.
**
** The view is there twice. The host writes the one that is not shown, then the
** version, whose lowest bit says which is: should it be killed in between,
** nothing has happened, and nobody ever waits for it. Who reads a view looks at
** the version before and after; if it is another, the words may be mixed.
**
** To pin a snapshot a reader writes it into its slot, and then looks whether
** the view is still the one that it was taken from; if not, it begins again.
** Whoever is about to take something away from readers first shows a view
** (which may be the same as before), then looks at the slots. Of the two, one
** sees the other: either the slot is seen, or the reader finds another version,
** and takes its snapshot from the new view, which the taking away was made for.
**
** Each process has a number: the byte of "control" that it has locked (an OFD
** lock far beyond the end of the file), for as long as it lives. Slots of a
** number that nobody has locked belong to nobody.
**
** A child after fork() has copies of the descriptors, and with them of the lock.
** It closes them at once: its parent may end. The mappings it keeps, for the
** connections that it must not use; they would keep the lock as well, so what is
** mapped was opened apart.
*/
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#define NUMBERS ((off_t)1 << 40) /* where the bytes that are locked begin */
#define BLOCK_BYTES (CONTROL_BLOCK * sizeof(uint32_t))

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct control_map *maps;

/* ---- the files --------------------------------------------------------- */

static void before_fork(void)
{
  pthread_mutex_lock(&mutex);
}

static void after_fork(void)
{
  pthread_mutex_unlock(&mutex);
}

/* The parent's: what is open through them may still be closed here. */
static void in_child(void)
{
  for (struct control_map *map = maps; map; map = map->next) {
    close(map->fd);
    close(map->frames_fd);
    map->fd = map->frames_fd = -1;
  }
  maps = NULL;
  pthread_mutex_unlock(&mutex);
}

static void watch_forks(void)
{
  pthread_atfork(before_fork, after_fork, in_child);
}

void control_watch_forks(void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
}

static void enter(void)
{
  control_watch_forks();
  pthread_mutex_lock(&mutex);
}

static int lock_number(const struct control_map *map, uint32_t number,
                       short type)
{
  struct flock lock = {.l_type = type,
                       .l_whence = SEEK_SET,
                       .l_start = NUMBERS + number,
                       .l_len = 1};
  int rc;
  do
    rc = fcntl(map->fd, F_OFD_SETLK, &lock);
  while (rc != 0 && errno == EINTR);
  return rc ? -errno : 0;
}

static void free_slots(struct control_map *map, uint32_t number)
{
  struct control *control = map->control;
  uint32_t n = atomic_load(&control->slots_used);
  for (uint32_t i = 0; i < n && i < CONTROL_SLOTS; i++) {
    struct control_slot *slot = &control->slots[i];
    if (atomic_load(&slot->owner) != number) continue;
    atomic_store(&slot->pin, 0);
    atomic_store(&slot->owner, 0);
  }
}

static int take_number(struct control_map *map)
{
  for (uint32_t number = 1; number <= CONTROL_PROCESSES; number++) {
    int rc = lock_number(map, number, F_WRLCK);
    if (rc == -EAGAIN || rc == -EACCES) continue;
    if (rc) return rc;
    map->number = number;
    free_slots(map, number); /* of one that has ended */
    return 0;
  }
  return -EUSERS;
}

static int open_file(const struct io *io, const char *dir, const char *name,
                     bool create, int *fd)
{
  char *path = NULL;
  if (dir == NULL) {
    *fd = memfd_create(name, MFD_CLOEXEC);
    return *fd < 0 ? -errno : 0;
  }
  if (asprintf(&path, "%s/%s", dir, name) < 0) return -ENOMEM;
  *fd = io->open(io->ctx, path, O_RDWR | (create ? O_CREAT : 0));
  free(path);
  return *fd < 0 ? *fd : 0;
}

static void free_map(struct control_map *map)
{
  if (map->control) munmap(map->control, sizeof(*map->control));
  for (unsigned i = 0; i < CONTROL_BLOCKS; i++)
    if (map->blocks[i]) munmap((void *)(uintptr_t)map->blocks[i], BLOCK_BYTES);
  if (map->fd >= 0) map->io->close(map->io->ctx, map->fd);
  if (map->frames_fd >= 0) map->io->close(map->io->ctx, map->frames_fd);
  free(map);
}

/* A file that is too short: a host makes it just now, and has not got to its
   first words; or it is of another version. */
static int too_short(const struct io *io, int fd)
{
  char magic[16] = "";
  ssize_t n = io->pread(io->ctx, fd, magic, sizeof(magic), 0);
  if (n < 0) return (int)n;
  return memcmp(magic, CONTROL_MAGIC, 16) == 0 ? -EBADMSG : -ENOENT;
}

static int map_control(struct control_map *map, int fd, bool create)
{
  uint64_t size = 0;
  int rc = create ? io_extend(map->io, fd, sizeof(struct control)) : 0;
  if (rc == 0) rc = map->io->size(map->io->ctx, fd, &size);
  if (rc) return rc;
  if (size < sizeof(struct control)) return too_short(map->io, fd);
  void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE,
                  MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return -errno;
  map->control = at;
  return 0;
}

/* Maps it through a descriptor that has no lock and is closed again. */
static int map_apart(struct control_map *map, const char *dir, bool create)
{
  struct stat st;
  int fd, rc;
  if (dir == NULL) return map_control(map, map->fd, create);
  rc = open_file(map->io, dir, "control", false, &fd);
  if (rc) return rc;
  if (fstat(fd, &st) != 0)
    rc = -errno;
  else if (st.st_ino != map->inode || st.st_dev != map->device)
    rc = -ESTALE; /* it was replaced just now */
  if (rc == 0) rc = map_control(map, fd, create);
  map->io->close(map->io->ctx, fd);
  return rc;
}

/* One of this process's, if it is of the same file. */
static struct control_map *find(const struct stat *st)
{
  struct control_map *map = maps;
  while (map && (map->device != st->st_dev || map->inode != st->st_ino))
    map = map->next;
  return map;
}

static int open_map(const struct io *io, const char *dir, bool create,
                    struct control_map **out)
{
  struct stat st;
  struct control_map *map = calloc(1, sizeof(*map));
  if (map == NULL) return -ENOMEM;
  map->io = io;
  map->fd = map->frames_fd = -1;
  int rc = open_file(io, dir, "control", create, &map->fd);
  if (rc == 0 && fstat(map->fd, &st) != 0) rc = -errno;
  struct control_map *known = rc == 0 ? find(&st) : NULL;
  if (known) {
    free_map(map);
    known->refs++;
    *out = known;
    return 0;
  }
  if (rc == 0) {
    map->device = st.st_dev;
    map->inode = st.st_ino;
    rc = open_file(io, dir, "frames", create, &map->frames_fd);
  }
  if (rc == 0) rc = map_apart(map, dir, create);
  if (rc == 0) rc = take_number(map);
  if (rc) {
    free_map(map);
    return rc;
  }
  map->refs = 1;
  map->next = maps;
  maps = map;
  *out = map;
  return 0;
}

int control_open(const struct io *io, const char *dir, bool create,
                 struct control_map **out)
{
  *out = NULL;
  enter();
  int rc = open_map(io, dir, create, out);
  pthread_mutex_unlock(&mutex);
  return rc;
}

struct control_map *control_ref(struct control_map *map)
{
  enter();
  map->refs++;
  pthread_mutex_unlock(&mutex);
  return map;
}

void control_close(struct control_map *map)
{
  if (map == NULL) return;
  enter();
  if (--map->refs == 0) {
    struct control_map **at = &maps;
    while (*at && *at != map)
      at = &(*at)->next;
    if (*at) *at = map->next;
    free_map(map);
  }
  pthread_mutex_unlock(&mutex);
}

static void read_boot_id(char out[40])
{
  memset(out, 0, 40);
  int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  if (read(fd, out, 36) != 36) memset(out, 0, 40);
  close(fd);
}

/* Written since the machine booted. */
static bool is_current(const char magic[16], const char boot[40])
{
  char now[40];
  read_boot_id(now);
  return memcmp(magic, CONTROL_MAGIC, 16) == 0 && now[0] &&
         memcmp(boot, now, sizeof(now)) == 0;
}

#define AT(field) (head + offsetof(struct control, field))

int control_peek(const struct io *io, const char *dir,
                 struct control_peek *peek)
{
  char head[offsetof(struct control, slots)];
  int fd, rc = open_file(io, dir, "control", false, &fd);
  memset(peek, 0, sizeof(*peek));
  if (rc) return rc;
  ssize_t n = io->pread(io->ctx, fd, head, sizeof(head), 0);
  io->close(io->ctx, fd);
  if (n != (ssize_t)sizeof(head)) return n < 0 ? (int)n : -EBADMSG;
  if (is_current(AT(magic), AT(boot)))
    memcpy(&peek->confirmed, AT(confirmed), sizeof(peek->confirmed));
  peek->led = *AT(led);
  for (int i = 0; i < 2; i++)
    memcpy(&peek->heard[i], AT(heard[i]), sizeof(peek->heard[i]));
  return 0;
}

raft_index control_begin(struct control_map *map)
{
  struct control *control = map->control;
  if (is_current(control->magic, control->boot))
    return atomic_load(&control->confirmed);
  atomic_store(&control->confirmed, 0);
  read_boot_id(control->boot);
  memcpy(control->magic, CONTROL_MAGIC, 16);
  return 0;
}

static uint64_t number_of(const struct stat *st)
{
  uint64_t words[2] = {st->st_dev, st->st_ino};
  uint64_t number = XXH3_64bits(words, sizeof(words));
  return number ? number : 1;
}

void control_note_file(struct control_map *map, enum control_file which, int fd)
{
  struct stat st;
  atomic_store(&map->control->files[which],
               fstat(fd, &st) == 0 ? number_of(&st) : 0);
}

uint64_t control_named(const char *path)
{
  struct stat st;
  return stat(path, &st) == 0 ? number_of(&st) : UINT64_MAX;
}

/* ---- the view ---------------------------------------------------------- */

void control_show(struct control_map *map, const struct control_view *view)
{
  struct control *control = map->control;
  uint64_t words[CONTROL_WORDS], version = atomic_load(&control->version) + 1;
  memcpy(words, view, sizeof(words));
  for (unsigned i = 0; i < CONTROL_WORDS; i++)
    atomic_store_explicit(&control->views[version & 1][i], words[i],
                          memory_order_release);
  atomic_store(&control->epoch, view->epoch);
  atomic_store(&control->version, version);
}

uint64_t control_look(const struct control_map *map, struct control_view *view)
{
  const struct control *control = map->control;
  uint64_t words[CONTROL_WORDS], version;
  do {
    version = atomic_load(&control->version);
    for (unsigned i = 0; i < CONTROL_WORDS; i++)
      words[i] = atomic_load_explicit(&control->views[version & 1][i],
                                      memory_order_acquire);
  } while (atomic_load(&control->version) != version);
  memcpy(view, words, sizeof(words));
  return version;
}

/* ---- a moment without readers ------------------------------------------ */

/* Not of this process alone. False: it is past `end`. */
static bool wait_word(const _Atomic uint32_t *word, uint32_t value,
                      const struct timespec *end)
{
  return syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, end, NULL,
                 FUTEX_BITSET_MATCH_ANY) == 0 ||
         errno != ETIMEDOUT;
}

static void wake_all(_Atomic uint32_t *word)
{
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void control_set_hold(struct control_map *map, enum hold hold)
{
  atomic_store(&map->control->hold, hold);
  wake_all(&map->control->hold);
}

bool control_wait_hold(const struct control_map *map,
                       const struct timespec *end)
{
  bool in_time = true;
  while (in_time && atomic_load(&map->control->hold) == HOLD_ALL)
    in_time = wait_word(&map->control->hold, HOLD_ALL, end);
  return in_time;
}

bool control_wait_unpinned(const struct control_map *map, uint32_t unpinned,
                           const struct timespec *end)
{
  bool in_time = true;
  while (in_time && atomic_load(&map->control->unpinned) == unpinned)
    in_time = wait_word(&map->control->unpinned, unpinned, end);
  return in_time;
}

/* ---- page numbers of frames -------------------------------------------- */

/* Block i, mapped; NULL: it cannot be, or is not there yet. */
static _Atomic uint32_t *map_block(struct control_map *map, uint32_t i)
{
  enter();
  _Atomic uint32_t *block = atomic_load(&map->blocks[i]);
  uint64_t size = 0, end = (uint64_t)(i + 1) * BLOCK_BYTES;
  if (block == NULL &&
      map->io->size(map->io->ctx, map->frames_fd, &size) == 0 && size >= end) {
    void *at = mmap(NULL, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                    map->frames_fd, (off_t)(end - BLOCK_BYTES));
    if (at != MAP_FAILED) {
      block = at;
      atomic_store(&map->blocks[i], block);
    }
  }
  pthread_mutex_unlock(&mutex);
  return block;
}

static _Atomic uint32_t *block_of(const struct control_map *map, uint32_t i)
{
  _Atomic uint32_t *block =
      i < CONTROL_BLOCKS
          ? atomic_load_explicit(&map->blocks[i], memory_order_acquire)
          : NULL;
  /* What is mapped on demand does not change what the map says. */
  if (block == NULL && i < CONTROL_BLOCKS)
    block = map_block((struct control_map *)(uintptr_t)map, i);
  return block;
}

int control_set_pgno(struct control_map *map, uint32_t frame, uint32_t pgno)
{
  uint32_t i = (frame - 1) / CONTROL_BLOCK;
  _Atomic uint32_t *block = block_of(map, i);
  if (block == NULL) {
    if (i >= CONTROL_BLOCKS) return -EFBIG;
    int rc =
        io_extend(map->io, map->frames_fd, (uint64_t)(i + 1) * BLOCK_BYTES);
    if (rc) return rc;
    block = block_of(map, i);
    if (block == NULL) return -ENOMEM;
  }
  atomic_store_explicit(&block[(frame - 1) % CONTROL_BLOCK], pgno,
                        memory_order_relaxed);
  return 0;
}

uint32_t control_pgno(const struct control_map *map, uint32_t frame)
{
  _Atomic uint32_t *block = block_of(map, (frame - 1) / CONTROL_BLOCK);
  if (block == NULL) return 0;
  return atomic_load_explicit(&block[(frame - 1) % CONTROL_BLOCK],
                              memory_order_relaxed);
}

/* ---- readers ----------------------------------------------------------- */

/* A pin: 31 bits of the generation, whether the WAL is used, the frame, which is
   never 0 (wal.h, W5). */
static uint64_t encode_pin(const struct control_reader *reader)
{
  return reader->generation << 33 | (uint64_t)reader->uses_wal << 32 |
         reader->frame;
}

static void set_who(struct control_slot *slot, const char *who)
{
  uint32_t words[CONTROL_WHO / 4] = {0};
  snprintf((char *)words, sizeof(words), "%s", who ? who : "");
  for (unsigned i = 0; i < CONTROL_WHO / 4; i++)
    atomic_store(&slot->who[i], words[i]);
}

int control_enter(struct control_map *map, const char *who,
                  struct control_reader *reader)
{
  struct control *control = map->control;
  for (uint32_t i = 0; i < CONTROL_SLOTS; i++) {
    struct control_slot *slot = &control->slots[i];
    uint32_t none = 0, used = atomic_load(&control->slots_used);
    if (atomic_load_explicit(&slot->owner, memory_order_relaxed) != 0) continue;
    /* First, or nobody would free it should this process end in between. */
    while (used <= i &&
           !atomic_compare_exchange_weak(&control->slots_used, &used, i + 1))
      ;
    if (!atomic_compare_exchange_strong(&slot->owner, &none, map->number))
      continue;
    atomic_store(&slot->of_node, false);
    atomic_store(&slot->pid, getpid());
    set_who(slot, who);
    *reader = (struct control_reader){.slot = slot};
    return 0;
  }
  return -EUSERS;
}

void control_leave(struct control_reader *reader)
{
  if (reader->slot == NULL) return;
  atomic_store(&reader->slot->pin, 0);
  atomic_store(&reader->slot->owner, 0);
  reader->slot = NULL;
}

void control_pin(struct control_map *map, struct control_reader *reader,
                 bool head, struct control_view *view)
{
  uint64_t version;
  do {
    /* Who looks at the slots must not take a new index for an old pin's. */
    atomic_store(&reader->slot->pin, 0);
    version = control_look(map, view);
    bool ahead = head && view->head.mx_frame != view->confirmed.mx_frame;
    reader->generation = view->generation;
    reader->frame = ahead ? view->head.mx_frame : view->confirmed.mx_frame;
    reader->uses_wal = reader->frame != view->backfill;
    atomic_store(&reader->slot->index, ahead ? 0 : view->confirmed_index);
    atomic_store(&reader->slot->pin, encode_pin(reader));
  } while (atomic_load(&map->control->version) != version);
}

void control_unpin(struct control_map *map, struct control_reader *reader)
{
  struct control *control = map->control;
  if (reader->slot == NULL) return;
  atomic_store(&reader->slot->pin, 0);
  if (atomic_load(&control->hold) != HOLD_ALL) return;
  /* The checkpointer waits for the last one. */
  atomic_fetch_add(&control->unpinned, 1);
  wake_all(&control->unpinned);
}

/* What is said of a slot that has this pin; false: it has another by now. */
static bool read_slot(const struct control_slot *slot, uint64_t pin,
                      struct control_pinned *out)
{
  uint32_t words[CONTROL_WHO / 4];
  out->index = atomic_load(&slot->index);
  for (unsigned i = 0; i < CONTROL_WHO / 4; i++)
    words[i] = atomic_load(&slot->who[i]);
  memcpy(out->who, words, sizeof(words));
  out->who[sizeof(words)] = '\0';
  return atomic_load(&slot->pin) == pin;
}

bool control_next_pinned(const struct control_map *map, uint64_t generation,
                         unsigned *i, struct control_pinned *out)
{
  const struct control *control = map->control;
  uint32_t n = atomic_load(&control->slots_used);
  uint64_t ours = generation << 33 >> 33;
  while (*i < n && *i < CONTROL_SLOTS) {
    const struct control_slot *slot = &control->slots[(*i)++];
    uint64_t pin = atomic_load(&slot->pin);
    if (pin == 0 || atomic_load(&slot->owner) == 0) continue;
    /* If the pin has moved, the index may be the new one's; and if the index
       has moved alone, it is that of the same frames. */
    while (!read_slot(slot, pin, out))
      pin = atomic_load(&slot->pin);
    if (pin == 0) continue;
    bool same = pin >> 33 == ours;
    out->slot = slot;
    out->frame = same ? (uint32_t)pin : 0;
    out->uses_wal = same && (pin >> 32 & 1);
    return true;
  }
  return false;
}

/* False: its process lives. Nobody takes the number meanwhile, to find his slots
   freed; all threads of this process are one to the lock. */
static bool reap_number(struct control_map *map, uint32_t number)
{
  enter();
  bool ended = lock_number(map, number, F_WRLCK) == 0;
  if (ended) {
    free_slots(map, number);
    lock_number(map, number, F_UNLCK);
  }
  pthread_mutex_unlock(&mutex);
  return ended;
}

void control_reap(struct control_map *map)
{
  struct control *control = map->control;
  uint32_t n = atomic_load(&control->slots_used);
  uint8_t known[CONTROL_PROCESSES + 1] = {0}; /* 1: lives */
  for (uint32_t i = 0; i < n && i < CONTROL_SLOTS; i++) {
    uint32_t owner = atomic_load(&control->slots[i].owner);
    if (owner > CONTROL_PROCESSES)
      free_slots(map, owner); /* nobody's ever */
    else if (owner != 0 && owner != map->number && known[owner] == 0)
      known[owner] = !reap_number(map, owner);
  }
}

void control_set_unsure(struct control_map *map)
{
  struct control *control = map->control;
  uint32_t n = atomic_load(&control->slots_used);
  for (uint32_t i = 0; i < n && i < CONTROL_SLOTS; i++) {
    struct control_slot *slot = &control->slots[i];
    uint64_t committed = atomic_load(&slot->committed);
    uint64_t handed = atomic_load(&slot->handed);
    /* Unless its process begins with another one just now. */
    if (handed != 0 && handed != CONTROL_SENT && committed != handed)
      atomic_compare_exchange_strong(&slot->committed, &committed,
                                     CONTROL_UNSURE);
  }
}
