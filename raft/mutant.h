/*
** mutant.h: mistakes that can be compiled in, to see whether a test finds them.
**
** A mistake touches one line and reads, for instance,
**
**   if (!MUTANT(53) && rc) return rc;
**
** -DRAFT_MUTANT=53 (make MUTANT=53) plants number 53; any other build has none,
** and the compiler folds the constant away. The numbers, with a name for each,
** are in raft/sim/mutants.list.
*/
#ifndef RAFT_MUTANT_H
#define RAFT_MUTANT_H

#ifndef RAFT_MUTANT
#define RAFT_MUTANT 0
#endif

#define MUTANT(n) (RAFT_MUTANT == (n))

#endif
