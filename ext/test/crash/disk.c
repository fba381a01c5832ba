/*
** disk.c: plays a record back, see disk.h.
*/
#include "disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- small things ------------------------------------------------------ */

void *grow(void *items, uint32_t n, uint32_t *cap, size_t size)
{
  if (n < *cap) return items;
  *cap = *cap ? *cap * 2 : 16;
  items = realloc(items, *cap * size);
  if (items == NULL) die("out of memory");
  return items;
}

void file_reserve(struct file *file, uint64_t size)
{
  if (size <= file->cap) return;
  uint64_t cap = file->cap ? file->cap : 4096;
  while (cap < size)
    cap *= 2;
  file->disk = realloc(file->disk, cap);
  file->cache = realloc(file->cache, cap);
  if (file->disk == NULL || file->cache == NULL) die("out of memory");
  memset(file->disk + file->cap, 0, cap - file->cap);
  memset(file->cache + file->cap, 0, cap - file->cap);
  file->cap = cap;
}

uint32_t disk_file(struct disk *disk, bool directory, unsigned node,
                   enum kind kind)
{
  disk->files =
      grow(disk->files, disk->n_files, &disk->cap_files, sizeof(*disk->files));
  struct file *file = &disk->files[disk->n_files];
  memset(file, 0, sizeof(*file));
  file->directory = directory;
  file->node = node;
  file->kind = kind;
  return disk->n_files++;
}

/* ---- names ------------------------------------------------------------- */

const struct entry *names_find(const struct names *names, uint32_t dir,
                               const char *name)
{
  for (uint32_t i = 0; i < names->n; i++)
    if (names->items[i].dir == dir && strcmp(names->items[i].name, name) == 0)
      return &names->items[i];
  return NULL;
}

static void put_name(char to[NAME_BYTES], const char *name)
{
  if (strlen(name) >= NAME_BYTES) die("%s: name too long", name);
  strcpy(to, name);
}

static void drop(struct names *names, uint32_t dir, const char *name)
{
  const struct entry *e = names_find(names, dir, name);
  if (e) names->items[e - names->items] = names->items[--names->n];
}

static void put(struct names *names, uint32_t dir, const char *name,
                uint32_t file)
{
  drop(names, dir, name);
  names->items =
      grow(names->items, names->n, &names->cap, sizeof(*names->items));
  struct entry *e = &names->items[names->n++];
  memset(e, 0, sizeof(*e));
  e->dir = dir;
  e->file = file;
  put_name(e->name, name);
}

void names_apply(struct names *names, const struct change *c)
{
  if (c->kind == OP_OPEN) {
    put(names, c->dir, c->name, c->file);
    return;
  }
  /* On the platter the name may be another file's, or none. */
  const struct entry *e = names_find(names, c->dir, c->name);
  if (e && e->file == c->file) drop(names, c->dir, c->name);
  if (c->kind == OP_RENAME) put(names, c->to_dir, c->to, c->file);
}

void names_copy(struct names *to, const struct names *from)
{
  free(to->items);
  to->n = to->cap = from->n;
  to->items = malloc((from->n + 1) * sizeof(*to->items));
  if (to->items == NULL) die("out of memory");
  memcpy(to->items, from->items, from->n * sizeof(*to->items));
}

static void add_change(struct disk *disk, const struct change *change)
{
  disk->changes = grow(disk->changes, disk->n_changes, &disk->cap_changes,
                       sizeof(*disk->changes));
  disk->changes[disk->n_changes++] = *change;
  names_apply(&disk->cache, change);
}

/* The directory of a path and the last part of it; a path in a directory that
   is not known is an error of the harness. */
static uint32_t find_parent(const struct disk *disk, const char *path,
                            char last[NAME_BYTES])
{
  uint32_t dir = ROOT;
  char part[NAME_BYTES];
  for (const char *slash; (slash = strchr(path, '/')); path = slash + 1) {
    size_t n = (size_t)(slash - path);
    if (n >= NAME_BYTES) die("%s: name too long", path);
    memcpy(part, path, n);
    part[n] = 0;
    const struct entry *e = names_find(&disk->cache, dir, part);
    if (e == NULL) die("%s: unknown directory", path);
    dir = e->file;
  }
  put_name(last, path);
  return dir;
}

static bool ends_in(const char *s, const char *end)
{
  size_t n = strlen(s), k = strlen(end);
  return n >= k && strcmp(s + n - k, end) == 0;
}

static enum kind kind_of(const char *path)
{
  const char *slash = strrchr(path, '/');
  const char *name = slash ? slash + 1 : path;
  if (strstr(path, "/incoming/")) return KIND_INCOMING;
  if (ends_in(name, ".seg") || ends_in(name, ".spare")) return KIND_LOG;
  if (ends_in(name, "-wal")) return KIND_WAL;
  if (ends_in(name, "-shm")) return KIND_SHM;
  if (ends_in(name, ".db")) return KIND_DB;
  if (strncmp(name, "checkpoint", 10) == 0) return KIND_CHECKPOINT;
  if (strncmp(name, "vote", 4) == 0) return KIND_VOTE;
  if (strcmp(name, "control") == 0) return KIND_CONTROL;
  return KIND_OTHER;
}

/* Paths begin with n<number>/. */
static unsigned node_of(const char *path)
{
  return path[0] == 'n' && path[1] >= '1' && path[1] <= '9'
             ? (unsigned)(path[1] - '0')
             : 0;
}

/* ---- operations -------------------------------------------------------- */

static void add_piece(struct disk *disk, struct file *file, uint64_t offset,
                      uint32_t n, const uint8_t *data)
{
  if (file->kind == KIND_SHM || n == 0) return;
  file_reserve(file, offset + n);
  file->pieces = grow(file->pieces, file->n_pieces, &file->cap_pieces,
                      sizeof(*file->pieces));
  file->pieces[file->n_pieces++] =
      (struct piece){.op = disk->next, .offset = offset, .n = n, .data = data};
  if (data)
    memcpy(file->cache + offset, data, n);
  else
    memset(file->cache + offset, 0, n);
}

static void set_size(struct disk *disk, struct file *file, uint64_t size)
{
  if (file->kind == KIND_SHM || size == file->size) return;
  file_reserve(file, size);
  if (size < file->size)
    add_piece(disk, file, size, (uint32_t)(file->size - size), NULL);
  file->size = size;
  file->lengths = grow(file->lengths, file->n_lengths, &file->cap_lengths,
                       sizeof(*file->lengths));
  file->lengths[file->n_lengths++] =
      (struct length){.op = disk->next, .size = size};
}

static void settle_file(struct file *file)
{
  for (uint32_t i = 0; i < file->n_pieces; i++)
    memcpy(file->disk + file->pieces[i].offset,
           file->cache + file->pieces[i].offset, file->pieces[i].n);
  file->disk_size = file->size;
  file->n_pieces = file->n_lengths = 0;
}

/* A directory is synced: what happened in it. A move is one thing, and belongs
   to where it went. */
static void settle_directory(struct disk *disk, uint32_t dir)
{
  uint32_t kept = 0;
  for (uint32_t i = 0; i < disk->n_changes; i++) {
    struct change *c = &disk->changes[i];
    if ((c->kind == OP_RENAME ? c->to_dir : c->dir) == dir)
      names_apply(&disk->platter, c);
    else
      disk->changes[kept++] = *c;
  }
  disk->n_changes = kept;
}

static void set_number(struct disk *disk, uint32_t number, uint32_t file)
{
  while (number >= disk->cap_numbers)
    disk->numbers = grow(disk->numbers, disk->cap_numbers, &disk->cap_numbers,
                         sizeof(*disk->numbers));
  disk->numbers[number] = file;
}

static void do_open(struct disk *disk, const struct op *op)
{
  struct change c = {.op = disk->next, .kind = OP_OPEN};
  if (op->text[0] == 0) {
    set_number(disk, op->file, ROOT);
    return;
  }
  c.dir = find_parent(disk, op->text, c.name);
  const struct entry *e = names_find(&disk->cache, c.dir, c.name);
  if (e) {
    c.file = e->file;
  } else {
    if (!(op->a & O_CREAT)) die("%s: opened, but unknown", op->text);
    c.file = disk_file(disk, false, node_of(op->text), kind_of(op->text));
    add_change(disk, &c);
  }
  if (op->a & O_TRUNC) set_size(disk, &disk->files[c.file], 0);
  set_number(disk, op->file, c.file);
}

static void do_name(struct disk *disk, const struct op *op)
{
  struct change c = {.op = disk->next, .kind = (enum op_kind)op->kind};
  c.dir = find_parent(disk, op->text, c.name);
  const struct entry *e = names_find(&disk->cache, c.dir, c.name);
  if (op->kind != OP_MKDIR && e == NULL) die("%s: unknown", op->text);
  if (e) c.file = e->file;
  if (op->kind == OP_RENAME) {
    c.to_dir = find_parent(disk, (const char *)op_data(op), c.to);
  } else if (op->kind == OP_MKDIR) {
    c.kind = OP_OPEN;
    c.file = disk_file(disk, true, node_of(op->text), KIND_OTHER);
  } else {
    c.kind = OP_UNLINK;
  }
  add_change(disk, &c);
}

static void do_power(struct disk *disk, const struct op *op)
{
  struct state *state = state_make(disk, op->a, -1);
  disk_restart(disk, state);
  state_free(state);
}

/* ---- what the application knows ---------------------------------------- */

static void remember(struct known *k, uint64_t n, uint64_t digest)
{
  k->any = true;
  k->n = n;
  k->digest = digest;
  k->pending = false;
  if (n >= k->n_history) {
    uint64_t was = k->n_history;
    k->n_history = 2 * n + 64;
    k->history = realloc(k->history, k->n_history * sizeof(*k->history));
    if (k->history == NULL) die("out of memory");
    memset(k->history + was, 0, (k->n_history - was) * sizeof(*k->history));
  }
  k->history[n] = digest;
}

static void do_mark(struct known *k, const struct op *op)
{
  switch (op->mark) {
  case MARK_BEGIN:
    k->pending = true;
    k->pending_n = op->a;
    k->pending_digest = op->b;
    break;
  case MARK_ACK: remember(k, k->pending_n, k->pending_digest); break;
  case MARK_SETTLED: remember(k, op->a, op->b); break;
  case MARK_MEMBER:
    k->member[op->a] = true;
    if (k->course_of == op->a) k->course = COURSE_NONE;
    break;
  case MARK_COURSE:
    k->course = (enum course)op->b;
    k->course_of = (unsigned)op->a;
    /* A new cluster has none of the old one's. */
    if (k->course != COURSE_REBUILD) k->invited = 0;
    break;
  case MARK_INVITE: k->invites = op->a; break;
  case MARK_INVITED: k->invited++; break;
  default: break;
  }
}

const struct known *disk_known(const struct disk *disk)
{
  return &disk->known;
}

/* ---- the record -------------------------------------------------------- */

static void play_one(struct disk *disk, const struct op *op)
{
  struct file *file = NULL;
  if (op->file && op->kind != OP_OPEN)
    file = &disk->files[disk->numbers[op->file]];
  switch ((enum op_kind)op->kind) {
  case OP_OPEN: do_open(disk, op); break;
  case OP_WRITE:
    if (op->a + op->n_data > file->size)
      set_size(disk, file, op->a + op->n_data);
    add_piece(disk, file, op->a, op->n_data, op_data(op));
    break;
  case OP_SIZE: set_size(disk, file, op->a); break;
  case OP_SYNC:
    if (file->directory)
      settle_directory(disk, disk->numbers[op->file]);
    else
      settle_file(file);
    break;
  case OP_RENAME:
  case OP_UNLINK:
  case OP_MKDIR:
  case OP_RMDIR: do_name(disk, op); break;
  case OP_POWER: do_power(disk, op); break;
  case OP_MARK: do_mark(&disk->known, op); break;
  }
}

void disk_play(struct disk *disk, uint64_t n)
{
  while (disk->next < n && disk->next < disk->record->n) {
    const struct op *op = (const void *)(disk->record->ops + disk->next_off);
    play_one(disk, op);
    disk->next++;
    disk->next_off += op->bytes;
  }
}

/* The folders n1, n2, ... are there from the beginning. */
struct disk *disk_new(const struct record *record)
{
  struct disk *disk = calloc(1, sizeof(*disk));
  if (disk == NULL) die("out of memory");
  disk->record = record;
  disk_file(disk, true, 0, KIND_OTHER);
  for (unsigned i = 1; i <= record->nodes; i++) {
    struct change c = {.kind = OP_OPEN};
    snprintf(c.name, sizeof(c.name), "n%u", i);
    c.file = disk_file(disk, true, i, KIND_OTHER);
    names_apply(&disk->cache, &c);
    names_apply(&disk->platter, &c);
  }
  return disk;
}

static void free_file(struct file *file)
{
  free(file->disk);
  free(file->cache);
  free(file->pieces);
  free(file->lengths);
}

void disk_restart(struct disk *disk, const struct state *state)
{
  struct names names = {0};
  struct file *files = state_take(state, &names);
  for (uint32_t i = 0; i < disk->n_files; i++)
    free_file(&disk->files[i]);
  memcpy(disk->files, files, disk->n_files * sizeof(*files));
  free(files);
  names_copy(&disk->cache, &names);
  names_copy(&disk->platter, &names);
  free(names.items);
  disk->n_changes = 0;
}

void disk_free(struct disk *disk)
{
  for (uint32_t i = 0; i < disk->n_files; i++)
    free_file(&disk->files[i]);
  free(disk->files);
  free(disk->numbers);
  free(disk->cache.items);
  free(disk->platter.items);
  free(disk->changes);
  free(disk->known.history);
  free(disk);
}
