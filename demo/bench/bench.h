/*
** bench.h: what the two halves of the benchmark share: the worker, which is a
** process that uses SQLite as it is told, and the orchestra of workers.
*/
#ifndef BENCH_H
#define BENCH_H

/* ---- worker.c ---------------------------------------------------------- */

/* The main function of a worker: obeys lines on its input until it ends. */
int worker_main(void);

/* The longest line of a command or an answer. */
#define WORKER_LINE 65536

/* Most commits in one command: their latencies must fit in a line. */
#define WORKER_COMMITS 2000

#endif
