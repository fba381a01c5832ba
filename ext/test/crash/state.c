/*
** state.c: what is left of a disk after a loss of power, or a kill.
**
** A sector that was written and not synced is as it was at some moment since
** its file's last sync, each sector for itself; of one file at most one is
** torn between two such versions. A size that was not synced is one of those
** that the file had since. Each change of a name since the last sync of its
** directory happened or did not. That is what raft/sim/disk.h promises, too.
** Which of all these states it is, the fate of the node's machine decides:
** some fates are what real disks do often, some are what real disks hardly do
** and what tells mistakes best.
**
** The -shm may be anything, always; and who has lost power boots again.
*/
#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define BOOT 16 /* offset of the boot's id in the file "control" */

const char *const fate_names[FATES] = {"killed",   "kept",    "lost",
                                       "random",   "earlier", "later",
                                       "one lost", "one kept"};

struct choice {
  enum fate fate, names;
  uint64_t when;  /* for EARLIER and LATER: an operation */
  unsigned odds;  /* for RANDOM: of 8 sectors so many are kept */
  enum kind kind; /* for ONE_LOST and ONE_KEPT */
  uint64_t name;  /* for names that are ONE_LOST: an operation */
};

struct blob {
  uint8_t *bytes;
  uint64_t size;
  bool reached; /* has a name */
};

struct state {
  const struct disk *disk;
  uint64_t random;
  struct choice choice[NODES_MAX + 1];
  struct names names;
  struct blob *blobs; /* by number of file */
  uint32_t n_blobs;
};

/* ---- fates ------------------------------------------------------------- */

static uint64_t oldest_change(const struct disk *d, unsigned node)
{
  uint64_t oldest = d->next;
  for (uint32_t i = 0; i < d->n_files; i++)
    if (d->files[i].node == node && d->files[i].n_pieces &&
        d->files[i].pieces[0].op < oldest)
      oldest = d->files[i].pieces[0].op;
  return oldest;
}

/* One of the kinds of which something is not synced. */
static enum kind pick_kind(const struct disk *d, unsigned node,
                           uint64_t *random)
{
  enum kind found = KIND_WAL;
  unsigned n = 0;
  bool seen[KINDS] = {false};
  for (uint32_t i = 0; i < d->n_files; i++) {
    const struct file *f = &d->files[i];
    if (f->node != node || f->n_pieces == 0 || seen[f->kind]) continue;
    seen[f->kind] = true;
    if (random_below(random, ++n) == 0) found = f->kind;
  }
  return found;
}

/* One of the changes of names that are not synced. */
static uint64_t pick_name(const struct disk *d, unsigned node, uint64_t *random)
{
  uint64_t found = 0;
  unsigned n = 0;
  for (uint32_t i = 0; i < d->n_changes; i++)
    if (d->files[d->changes[i].file].node == node &&
        random_below(random, ++n) == 0)
      found = d->changes[i].op;
  return found;
}

static enum fate pick_fate(uint64_t *random, bool killed_too)
{
  static const enum fate often[] = {
      FATE_RANDOM,   FATE_RANDOM, FATE_RANDOM,   FATE_LOST,    FATE_KEPT,
      FATE_EARLIER,  FATE_LATER,  FATE_ONE_LOST, FATE_EARLIER, FATE_ONE_KEPT,
      FATE_ONE_LOST, FATE_LATER,  FATE_KILLED,   FATE_KILLED};
  return often[random_below(random, killed_too ? 14 : 12)];
}

static enum fate pick_names(uint64_t *random, enum fate fate)
{
  static const enum fate often[] = {FATE_KEPT, FATE_LOST, FATE_EARLIER,
                                    FATE_RANDOM, FATE_ONE_LOST};
  if (fate == FATE_KILLED || fate == FATE_LOST) return fate;
  if (fate == FATE_KEPT)
    return random_below(random, 2) ? FATE_KEPT : FATE_ONE_LOST;
  return often[random_below(random, 5)];
}

static struct choice choose(const struct disk *d, unsigned node, enum fate fate,
                            uint64_t *random)
{
  struct choice c = {.fate = fate};
  uint64_t oldest = oldest_change(d, node);
  static const unsigned odds[] = {1, 4, 7};
  c.names = pick_names(random, fate);
  c.when = oldest + random_below(random, d->next - oldest + 1);
  c.odds = odds[random_below(random, 3)];
  c.kind = pick_kind(d, node, random);
  c.name = pick_name(d, node, random);
  return c;
}

/* With several nodes: one machine's accident, or all of them lose power. */
static void choose_all(struct state *s, int only)
{
  unsigned nodes = s->disk->record->nodes;
  unsigned victim = 1 + (unsigned)random_below(&s->random, nodes);
  bool one = nodes > 1 && random_below(&s->random, 2) == 0;
  for (unsigned i = 1; i <= nodes; i++) {
    enum fate fate = pick_fate(&s->random, nodes == 1);
    if (one && i != victim) fate = FATE_KILLED;
    if (only >= 0) fate = (enum fate)only;
    s->choice[i] = choose(s->disk, i, fate, &s->random);
  }
}

/* ---- names ------------------------------------------------------------- */

static bool keeps_change(struct state *s, const struct change *c)
{
  const struct choice *choice = &s->choice[s->disk->files[c->file].node];
  switch (choice->names) {
  case FATE_KILLED:
  case FATE_KEPT: return true;
  case FATE_LOST: return false;
  case FATE_EARLIER: return c->op < choice->when;
  case FATE_ONE_LOST: return c->op != choice->name;
  default: return random_below(&s->random, 2) == 0;
  }
}

/* Marks what can be reached from a directory. */
static void reach(struct state *s, uint32_t dir)
{
  s->blobs[dir].reached = true;
  for (uint32_t i = 0; i < s->names.n; i++) {
    const struct entry *e = &s->names.items[i];
    if (e->dir == dir && !s->blobs[e->file].reached) reach(s, e->file);
  }
}

static void make_names(struct state *s)
{
  names_copy(&s->names, &s->disk->platter);
  for (uint32_t i = 0; i < s->disk->n_changes; i++) {
    const struct change *c = &s->disk->changes[i];
    if (keeps_change(s, c)) names_apply(&s->names, c);
  }
  reach(s, ROOT);
}

/* ---- bytes ------------------------------------------------------------- */

/* How much of a file is kept, when its fate has been made simple. */
static enum fate fate_of(const struct choice *c, const struct file *file)
{
  bool one = file->kind == c->kind;
  switch (c->fate) {
  case FATE_KILLED: return FATE_KEPT;
  case FATE_ONE_LOST: return one ? FATE_LOST : FATE_KEPT;
  case FATE_ONE_KEPT: return one ? FATE_KEPT : FATE_LOST;
  default: return c->fate;
  }
}

struct sector {
  uint32_t touched; /* so many times since the last sync */
  uint32_t version; /* that many of them are on the platter */
  uint32_t at;      /* while they are put there */
};

/* Calls back for each sector's share of a piece. */
static void each_share(const struct piece *p, struct sector *sectors,
                       void (*call)(void *ctx, const struct piece *p,
                                    struct sector *s, uint64_t from,
                                    uint64_t to),
                       void *ctx)
{
  uint64_t end = p->offset + p->n;
  for (uint64_t at = p->offset; at < end;) {
    uint64_t next = (at / SECTOR + 1) * SECTOR;
    if (next > end) next = end;
    call(ctx, p, &sectors[at / SECTOR], at, next);
    at = next;
  }
}

struct making {
  const struct choice *choice;
  enum fate fate;
  uint8_t *bytes;
  uint64_t cut; /* truncations up to this operation have happened */
  struct sector *torn;
  uint64_t tear; /* offset in the file */
  bool tear_after;
};

static void count_touch(void *ctx, const struct piece *p, struct sector *s,
                        uint64_t from, uint64_t to)
{
  const struct making *m = ctx;
  (void)from;
  (void)to;
  if (p->data == NULL) return;
  s->touched++;
  if (m->fate == FATE_KEPT ||
      (m->fate == FATE_EARLIER && p->op < m->choice->when) ||
      (m->fate == FATE_LATER && p->op >= m->choice->when))
    s->version = s->touched;
}

static void put_bytes(const struct making *m, const struct piece *p,
                      uint64_t from, uint64_t to)
{
  if (from >= to) return;
  if (p->data)
    memcpy(m->bytes + from, p->data + (from - p->offset), to - from);
  else
    memset(m->bytes + from, 0, to - from);
}

static void put_share(void *ctx, const struct piece *p, struct sector *s,
                      uint64_t from, uint64_t to)
{
  const struct making *m = ctx;
  if (p->data == NULL) {
    if (p->op <= m->cut) put_bytes(m, p, from, to);
    return;
  }
  uint32_t at = s->at++;
  if (at < s->version) {
    put_bytes(m, p, from, to);
  } else if (at == s->version && s == m->torn) {
    /* The next version got as far as that, or only the rest of it. */
    uint64_t tear = m->tear < from ? from : m->tear > to ? to : m->tear;
    put_bytes(m, p, m->tear_after ? tear : from, m->tear_after ? to : tear);
  }
}

/* Versions of sectors by chance, and which one is torn. */
static void throw_dice(struct state *s, struct making *m,
                       struct sector *sectors, uint64_t n)
{
  uint64_t candidates = 0;
  for (uint64_t i = 0; i < n; i++) {
    struct sector *x = &sectors[i];
    if (m->fate == FATE_RANDOM && x->touched &&
        random_below(&s->random, 8) < m->choice->odds)
      x->version = random_below(&s->random, 2)
                       ? x->touched
                       : 1 + (uint32_t)random_below(&s->random, x->touched);
    if (x->version == x->touched) continue;
    if (random_below(&s->random, ++candidates) != 0) continue;
    m->torn = x;
    m->tear = i * SECTOR + random_below(&s->random, SECTOR);
  }
  m->tear_after = random_below(&s->random, 2) == 0;
  if (m->choice->fate == FATE_LOST || random_below(&s->random, 2))
    m->torn = NULL;
}

/* What lies beyond a truncation is gone with the size that it made, not sector
   by sector. */
static uint64_t pick_size(struct state *s, struct making *m,
                          const struct file *f)
{
  uint64_t size = f->disk_size;
  uint64_t by_chance = random_below(&s->random, f->n_lengths + 1);
  for (uint32_t i = 0; i < f->n_lengths; i++) {
    const struct length *l = &f->lengths[i];
    if (m->fate == FATE_KEPT || m->fate == FATE_LATER ||
        (m->fate == FATE_EARLIER && l->op < m->choice->when) ||
        (m->fate == FATE_RANDOM && i < by_chance)) {
      size = l->size;
      m->cut = l->op;
    }
  }
  return size;
}

static void make_bytes(struct state *s, const struct file *f, struct blob *b)
{
  const struct choice *choice = &s->choice[f->node];
  struct making m = {.choice = choice, .fate = fate_of(choice, f)};
  uint64_t n = f->cap / SECTOR + 1;
  struct sector *sectors = calloc(n, sizeof(*sectors));
  m.bytes = b->bytes = malloc(f->cap + 1);
  if (sectors == NULL || b->bytes == NULL) die("out of memory");
  if (f->cap) memcpy(b->bytes, f->disk, f->cap);
  for (uint32_t i = 0; i < f->n_pieces; i++)
    each_share(&f->pieces[i], sectors, count_touch, &m);
  throw_dice(s, &m, sectors, n);
  b->size = pick_size(s, &m, f);
  for (uint32_t i = 0; i < f->n_pieces; i++)
    each_share(&f->pieces[i], sectors, put_share, &m);
  free(sectors);
}

/* ---- what is special --------------------------------------------------- */

static void make_shm(struct state *s, struct blob *b)
{
  static const uint64_t sizes[] = {0, 0, 32768, 32768};
  unsigned what = (unsigned)random_below(&s->random, 4);
  b->size = sizes[what];
  b->bytes = calloc(1, b->size + 1);
  if (b->bytes == NULL) die("out of memory");
  for (uint64_t i = 0; what == 3 && i + 8 <= b->size; i += 8) {
    uint64_t noise = random_next(&s->random);
    memcpy(b->bytes + i, &noise, 8);
  }
}

/* The machine boots again: its id is another. */
static void boot_again(struct blob *b)
{
  if (b->size >= BOOT + 36 && memcmp(b->bytes, "quorate control", 15) == 0)
    memset(b->bytes + BOOT, '0', 8);
}

/* The process was killed in the middle of a write. */
static void cut_off_write(struct state *s)
{
  const struct disk *d = s->disk;
  if (d->next >= d->record->n) return;
  const struct op *op = (const void *)(d->record->ops + d->next_off);
  if (op->kind != OP_WRITE) return;
  uint32_t number = d->numbers[op->file];
  struct blob *b = &s->blobs[number];
  const struct file *f = &d->files[number];
  uint64_t n = random_below(&s->random, op->n_data + 1) & ~(uint64_t)511;
  if (n == 0 || !b->reached || f->kind == KIND_SHM ||
      s->choice[f->node].fate != FATE_KILLED || random_below(&s->random, 2))
    return;
  uint64_t size = op->a + n > b->size ? op->a + n : b->size;
  uint64_t cap = size > f->cap ? size : f->cap;
  b->bytes = realloc(b->bytes, cap + 1);
  if (b->bytes == NULL) die("out of memory");
  if (size > b->size) memset(b->bytes + b->size, 0, size - b->size);
  memcpy(b->bytes + op->a, op_data(op), n);
  b->size = size;
}

/* ---- states ------------------------------------------------------------ */

struct state *state_make(const struct disk *disk, uint64_t seed, int only)
{
  struct state *s = calloc(1, sizeof(*s));
  if (s == NULL) die("out of memory");
  s->disk = disk;
  s->random = seed;
  s->n_blobs = disk->n_files;
  s->blobs = calloc(s->n_blobs, sizeof(*s->blobs));
  if (s->blobs == NULL) die("out of memory");
  choose_all(s, only);
  make_names(s);
  for (uint32_t i = 0; i < s->n_blobs; i++) {
    const struct file *f = &disk->files[i];
    if (!s->blobs[i].reached || f->directory) continue;
    if (f->kind == KIND_SHM)
      make_shm(s, &s->blobs[i]);
    else
      make_bytes(s, f, &s->blobs[i]);
    if (f->kind == KIND_CONTROL && s->choice[f->node].fate != FATE_KILLED)
      boot_again(&s->blobs[i]);
  }
  cut_off_write(s);
  return s;
}

void state_free(struct state *s)
{
  for (uint32_t i = 0; i < s->n_blobs; i++)
    free(s->blobs[i].bytes);
  free(s->blobs);
  free(s->names.items);
  free(s);
}

struct file *state_take(const struct state *s, struct names *names)
{
  struct file *files = calloc(s->n_blobs, sizeof(*files));
  if (files == NULL) die("out of memory");
  for (uint32_t i = 0; i < s->n_blobs; i++) {
    const struct file *was = &s->disk->files[i];
    struct file *f = &files[i];
    f->directory = was->directory;
    f->node = was->node;
    f->kind = was->kind;
    if (f->directory || f->kind == KIND_SHM || !s->blobs[i].reached) continue;
    f->size = f->disk_size = s->blobs[i].size;
    file_reserve(f, f->size);
    if (f->size == 0) continue;
    memcpy(f->disk, s->blobs[i].bytes, f->size);
    memcpy(f->cache, s->blobs[i].bytes, f->size);
  }
  names_copy(names, &s->names);
  return files;
}

/* ---- files ------------------------------------------------------------- */

/* Path of a file below the root; its first name, if there should be two. */
static void path_of(const struct state *s, uint32_t file, char out[CRASH_PATH])
{
  char rest[CRASH_PATH] = "";
  while (file != ROOT) {
    const struct entry *e = NULL;
    for (uint32_t i = 0; i < s->names.n; i++)
      if (s->names.items[i].file == file) e = &s->names.items[i];
    if (e == NULL) break;
    int n =
        snprintf(out, CRASH_PATH, "%s%s%s", e->name, rest[0] ? "/" : "", rest);
    if (n < 0 || n >= CRASH_PATH) die("path too long");
    memcpy(rest, out, (size_t)n + 1);
    file = e->dir;
  }
  memcpy(out, rest, CRASH_PATH);
}

/* The order of names and the numbers of files do not count, nor what is in the
   -shm. */
uint64_t state_hash(const struct state *s)
{
  uint64_t sum = 0;
  char path[CRASH_PATH];
  for (uint32_t i = 1; i < s->n_blobs; i++) {
    const struct blob *b = &s->blobs[i];
    if (!b->reached) continue;
    memset(path, 0, sizeof(path));
    path_of(s, i, path);
    uint64_t h = XXH3_64bits(path, strlen(path));
    if (b->bytes && s->disk->files[i].kind != KIND_SHM)
      h = XXH3_64bits_withSeed(b->bytes, b->size, h);
    sum += h * 0x9e3779b97f4a7c15u + b->size;
  }
  return sum;
}

static void write_blob(const char *path, const struct blob *b)
{
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) die("%s: %s", path, strerror(errno));
  if (b->size && pwrite(fd, b->bytes, b->size, 0) != (ssize_t)b->size)
    die("%s: %s", path, strerror(errno));
  close(fd);
}

static void write_directory(const struct state *s, uint32_t dir,
                            const char *root)
{
  char path[2 * CRASH_PATH];
  for (uint32_t i = 0; i < s->names.n; i++) {
    const struct entry *e = &s->names.items[i];
    if (e->dir != dir) continue;
    snprintf(path, sizeof(path), "%s%s", root, e->name);
    if (!s->disk->files[e->file].directory) {
      write_blob(path, &s->blobs[e->file]);
      continue;
    }
    if (mkdir(path, 0700) != 0) die("%s: %s", path, strerror(errno));
    size_t n = strlen(path);
    snprintf(path + n, sizeof(path) - n, "/");
    write_directory(s, e->file, path);
  }
}

void state_write(const struct state *s, const char *root)
{
  remove_tree(root, false);
  write_directory(s, ROOT, root);
}

void remove_tree(const char *root, bool self)
{
  char path[2 * CRASH_PATH];
  DIR *dir = opendir(root);
  const struct dirent *e;
  while (dir && (e = readdir(dir))) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    snprintf(path, sizeof(path), "%s/%s", root, e->d_name);
    if (unlink(path) != 0) remove_tree(path, true);
  }
  if (dir) closedir(dir);
  if (self) rmdir(root);
}

/* ---- for people -------------------------------------------------------- */

static void print_file(const struct state *s, uint32_t i)
{
  const struct file *f = &s->disk->files[i];
  const struct blob *b = &s->blobs[i];
  char path[CRASH_PATH];
  uint64_t differ = 0, first = 0, last = 0;
  if (!b->reached || b->bytes == NULL || f->kind == KIND_SHM) return;
  for (uint64_t at = 0; at < f->size && at < b->size; at += SECTOR) {
    uint64_t n = f->size - at < SECTOR ? f->size - at : SECTOR;
    if (at + n > b->size) n = b->size - at;
    if (memcmp(f->cache + at, b->bytes + at, n) == 0) continue;
    if (differ++ == 0) first = at / SECTOR;
    last = at / SECTOR;
  }
  if (differ == 0 && f->size == b->size) return;
  path_of(s, i, path);
  printf("  %s: %llu sectors differ (%llu to %llu), size %llu of %llu\n", path,
         (unsigned long long)differ, (unsigned long long)first,
         (unsigned long long)last, (unsigned long long)b->size,
         (unsigned long long)f->size);
}

static void print_names(const char *what, const struct names *has,
                        const struct names *lacks)
{
  for (uint32_t i = 0; i < has->n; i++) {
    const struct entry *e = &has->items[i];
    const struct entry *other = names_find(lacks, e->dir, e->name);
    if (other && other->file == e->file) continue;
    printf("  name %s: %s\n", what, e->name);
  }
}

void state_print(const struct state *s)
{
  for (unsigned i = 1; i <= s->disk->record->nodes; i++) {
    const struct choice *c = &s->choice[i];
    printf("  node %u: %s, names %s; moment %llu, odds %u of 8, kind %d\n", i,
           fate_names[c->fate], fate_names[c->names],
           (unsigned long long)c->when, c->odds, (int)c->kind);
  }
  for (uint32_t i = 0; i < s->n_blobs; i++)
    print_file(s, i);
  print_names("lost", &s->disk->cache, &s->names);
  print_names("that should be gone", &s->names, &s->disk->cache);
}
