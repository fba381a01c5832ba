/*
** disk.h: a simulated disk of one node, behind struct io.
**
** One thread, no clock, no state but its own: the same seed and the same calls
** give the same bytes, accidents and counters. It promises what a real disk
** behind a real file system has promised, and not more:
**
**   bytes    A sector of 512 bytes that was written and not synced is, after a
**            loss of power, new or old, each for itself; of one file at most
**            one is torn: new up to some byte and old from there, or the other
**            way round. (Sectors of a file go out one after another, and the
**            one under way is the one that tears.) A sector that is written
**            twice between two syncs may have reached the platter in between.
**   size     A size that was not synced is new or old.
**   names    A create, rename or unlink happened for sure only after its
**            directory was synced; until then each may or may not have.
**   sync     One that fails leaves its sectors clean in the cache and old on
**            the platter, as Linux does: a later sync does not bring them
**            there, only writing them again does; and since they are clean the
**            cache may forget them (it does when a process dies).
**
** Directories are only the beginnings of names. All memory is asked for with
** abort() as the answer to none. Not for use by more than one thread.
*/
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "io.h"

#include <stdbool.h>

#define SIM_DISK_SECTOR 512u
#define SIM_DISK_PATH 96 /* a longer one is -ENAMETOOLONG */

struct sim_disk; /* opaque */

struct sim_disk *sim_disk_new(uint64_t seed);
void sim_disk_free(struct sim_disk *disk);
/* Valid until the disk is freed. */
const struct io *sim_disk_io(const struct sim_disk *disk);

/* ---- accidents ---------------------------------------------------------- */

/*
** After n more calls that change something (create, write, truncate, rename,
** unlink, and both kinds of sync), that one and every call after it, reads
** too, fails with -EIO and changes nothing; 0: at once; negative: never.
** What a machine that is about to lose power does last. The node can then be
** taken down in order: whatever that tries has no effect.
*/
void sim_disk_die_in(struct sim_disk *disk, long n);
bool sim_disk_dead(const struct sim_disk *disk);

/* The process died: all descriptors are closed, the cache lives on. Descriptors
   are never used twice, so that a late close of one does no harm. Ends what
   sim_disk_die_in() began. */
void sim_disk_kill(struct sim_disk *disk);
/* Power was lost: the process died, and see the head of this file. */
void sim_disk_crash(struct sim_disk *disk);

/* ---- faults ------------------------------------------------------------- */

struct sim_disk_faults {
  uint32_t write; /* per million: -EIO of anything that changes something but
                     syncs; a write has then written some of its sectors */
  uint32_t sync;  /* per million: -EIO of a sync, of directories too */
  bool full;      /* -ENOSPC of whatever needs space: a create, a write or
                     truncation beyond the end of the file */
};
/* From now on; at any time. */
void sim_disk_set_faults(struct sim_disk *disk,
                         const struct sim_disk_faults *faults);

/* Where damage was done. */
struct sim_disk_hit {
  char path[SIM_DISK_PATH];
  uint64_t offset;
};

/*
** Flips one bit of a sector of a log segment (a file *.seg) that is on the
** platter and not all zeros; it is seen at once. False: there is none.
*/
bool sim_disk_rot(struct sim_disk *disk, struct sim_disk_hit *hit);
/*
** The next write to a log segment lands elsewhere: whole sectors, as they would
** have been, at *hit instead (the same segment or another; what does not fit
** there is gone), durably, and the place they were meant for stays as it was.
** The write and the sync after it report success. False: there is no segment.
*/
bool sim_disk_misdirect(struct sim_disk *disk, struct sim_disk_hit *hit);

/* ---- what is on the platter --------------------------------------------- */

/*
** True if all that was written to files whose path contains `part`, their
** sizes and their names (also that there is no such name any more) are on the
** platter: a loss of power now would change nothing of them. Damage from
** sim_disk_rot() and sim_disk_misdirect() does not count, nor does what a failed
** sync left behind before the file was opened again (who opens it has been
** told, and must not rely on it).
*/
bool sim_disk_clean(const struct sim_disk *disk, const char *part);
/* What is not synced now does not count for sim_disk_clean(), until the same
   sector is written again: after store_rest(), whose mark nobody relies on. */
void sim_disk_excuse(struct sim_disk *disk);
/* A hash of all that would certainly be there if power were lost now: durable
   names, sizes and bytes. Reads everything: for tests. */
uint64_t sim_disk_hash(const struct sim_disk *disk);

struct sim_disk_stats {
  uint64_t writes, syncs, bytes; /* calls (sync_dir too), bytes written */
  uint64_t crashes, kills;
  uint64_t lost, torn;                             /* sectors, in crashes */
  uint64_t write_faults, sync_faults, full_faults; /* that fired */
  uint64_t rotted, misdirected;
};
const struct sim_disk_stats *sim_disk_stats(const struct sim_disk *disk);

#endif
