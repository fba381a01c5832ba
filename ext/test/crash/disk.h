/*
** disk.h: the inside of a disk, for disk.c (playing) and state.c (what is
** left of it).
**
** Of each file there are two copies of its bytes, the cache's and the
** platter's, and a list of what lies between: pieces that were written since
** its last sync, and sizes that it had. Names are two lists as well, with the
** changes between them.
*/
#ifndef TEST_CRASH_DISK_H
#define TEST_CRASH_DISK_H

#include "crash.h"

#define SECTOR 512u
#define NAME_BYTES 64
#define ROOT 0u /* number of the root directory */

enum kind {
  KIND_OTHER = 0,
  KIND_DB,
  KIND_WAL,
  KIND_SHM,
  KIND_LOG,
  KIND_CHECKPOINT,
  KIND_VOTE,
  KIND_CONTROL,
  KIND_INCOMING,
  KINDS
};

/* Bytes that were written and not synced; data NULL: zeros. */
struct piece {
  uint64_t op, offset;
  uint32_t n;
  const uint8_t *data; /* in the record */
};

struct length {
  uint64_t op, size;
};

struct file {
  bool directory;
  unsigned node; /* whose it is; 0: the root */
  enum kind kind;
  uint8_t *disk, *cache;
  uint64_t cap, disk_size, size;
  struct piece *pieces;
  uint32_t n_pieces, cap_pieces;
  struct length *lengths;
  uint32_t n_lengths, cap_lengths;
};

struct entry {
  uint32_t dir, file;
  char name[NAME_BYTES];
};

struct names {
  struct entry *items;
  uint32_t n, cap;
};

/* A name of a file made, removed or moved. */
struct change {
  uint64_t op;
  enum op_kind kind; /* OP_OPEN: made; OP_UNLINK; OP_RENAME */
  uint32_t dir, file, to_dir;
  char name[NAME_BYTES], to[NAME_BYTES];
};

struct disk {
  const struct record *record;
  uint64_t next;     /* operation */
  uint64_t next_off; /* and where it is */
  struct file *files;
  uint32_t n_files, cap_files;
  uint32_t *numbers; /* of open files in the record: files */
  uint32_t cap_numbers;
  struct names cache, platter;
  struct change *changes;
  uint32_t n_changes, cap_changes;
  struct known known;
};

/* Room for one more of `size` bytes. */
void *grow(void *items, uint32_t n, uint32_t *cap, size_t size);

const struct entry *names_find(const struct names *names, uint32_t dir,
                               const char *name);
void names_apply(struct names *names, const struct change *change);
void names_copy(struct names *to, const struct names *from);
/* Makes a file that is empty everywhere. */
uint32_t disk_file(struct disk *disk, bool directory, unsigned node,
                   enum kind kind);
void file_reserve(struct file *file, uint64_t size);
/* The files of a state as a disk has them after a restart, numbered as the disk
   that it was made of numbers them, and their names. */
struct file *state_take(const struct state *state, struct names *names);

#endif
