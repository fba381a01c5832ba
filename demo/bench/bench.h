/*
** bench.h: what the files of the benchmark share. A worker (worker.c, load.c)
** is a process that uses SQLite as it is told; the rest starts workers, lets
** them take turns and prints a table.
*/
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- figures.c: numbers ------------------------------------------------ */

/* Latencies in buckets of about 1.5 %; all zero is empty. */
#define HISTOGRAM_BUCKETS (64 * 40)
struct histogram {
  uint64_t count, in[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t ns);
void histogram_merge(struct histogram *to, const struct histogram *from);
/* The p-th quantile in ns, p from 0 to 1; 0 if empty. */
double histogram_quantile(const struct histogram *h, double p);

/* The middle of n values, n at least 1; sorts them. */
double median(double *values, int n);

/* The monotone clock. */
uint64_t now_ns(void);
double now_s(void);
void sleep_ms(unsigned ms);

/* ---- load.c: threads that all do the same ------------------------------ */

#define LOAD_CLIENTS 64

/* What `rate` counts. */
enum load_kind {
  LOAD_WRITE, /* transactions of one INSERT of 100 bytes */
  LOAD_READ,  /* read transactions of one row */
  LOAD_MIXED, /* of both, every tenth a write */
  LOAD_BATCH, /* rows, in transactions of 1000 */
  LOAD_BULK,  /* rows, in one transaction of LOAD_BULK_ROWS, whatever `ms` */
  LOAD_PING,  /* a round trip to a port, and then a read */
};
#define LOAD_BULK_ROWS 1000000

struct load {
  enum load_kind kind;
  const char *level; /* PRAGMA quorate_consistency, or "-" */
  int threads;       /* 1 to LOAD_CLIENTS, each with its own connection */
  unsigned ms;       /* how long */
  int port;          /* for LOAD_PING */
};

struct load_result {
  double rate;     /* a second */
  double p50, p99; /* ns */
  uint64_t errors;
  char reason[300]; /* of the first of them */
};

/* The kind of this name, -1 if there is none. */
int load_kind_of(const char *name);

/* Runs the load on `file`. What fails is counted in the result. Connections
   stay open for the next load. 0, or -1 if they cannot be opened: then
   `reason` says why. One thread at a time. */
int load_run(const char *file, const struct load *load,
             struct load_result *result);

/* Does one of it with short time limits, on a connection of its own. 0, or -1
   if it is refused: then `reason` says why. */
int load_try(const char *file, const struct load *load,
             struct load_result *result);

/* Listens on a free port of the loopback interface and sends back what comes,
   from threads, until the process ends. Returns the port, -1 on an error. */
int load_echo(void);

/* ---- worker.c ---------------------------------------------------------- */

/* The main function of a worker: obeys lines on its input until it ends. */
int worker_main(void);

/* The longest line of a command or an answer. */
#define WORKER_LINE 4096

/* ---- process.c: workers, seen from outside ----------------------------- */

/* Stock SQLite; a cluster of one; a cluster of three; processes attached to the
   first two of these; who sends back what comes. */
enum { STOCK, ONE, A, B, C, BESIDE_ONE, BESIDE_A, ECHO, WORKERS };
extern const char *const worker_names[WORKERS];

/* Makes the directory for all files and starts the workers and clusters.
   Ends the program on an error, as everything in this division does. */
void process_start(const char *library, const char *parent);

/* Ends the workers and whatever process_child() started; removes the files.
   Safe to call twice, and in a signal handler. */
void process_clean_up(void);

/* Where the files are; waits until that disk has all that was written. */
const char *process_directory(void);
void process_sync(void);

/* How long it takes there to append a page and sync it, the median. */
double process_sync_ms(void);

pid_t process_pid(int which);

/* Kills a worker of a cluster, or one beside it; has another one open the same
   file in its place. */
void process_kill(int which);
void process_again(int which);

/* A program whose output can be read from the descriptor returned; it gets
   SIGTERM, and time to clean up, when this one ends. One at a time. */
int process_child(char *const argv[]);
void process_child_done(void);

/* A port of the loopback interface that nobody has. */
int process_free_port(void);

void die(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

/* One command; its answer, valid until the next. */
const char *tell(int which, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same in two halves, so that several workers run at once. `ok` is false
   if the worker answered with an error. */
void tell_begin(int which, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
const char *tell_end(int which, bool *ok);

/* Polls until the worker's answer to a query is this. */
void wait_for(int which, const char *query, const char *wanted);

/* Of the cluster of three: who leads now; another one; waits until all have
   applied what the leader has. */
int find_leader(void);
int find_follower(void);
void settle(void);

double cpu_s(int which);        /* of all threads of a worker */
double resident_mib(int which); /* memory of a worker */
long long index_of(int which);  /* quorate_index() */

/* ---- table.c ----------------------------------------------------------- */

enum goal { GOAL_NONE, GOAL_RATIO_MOST, GOAL_RATIO_LEAST, GOAL_VALUE_MOST };

struct row {
  const char *label;
  bool other;     /* `stock` is not stock SQLite but what the label says */
  double stock;   /* below 0: none */
  double quorate; /* below 0: none */
  double ratio;   /* below 0: none */
  enum goal goal;
  double bound;
  bool failed;         /* some of it met errors: no goal is met */
  const char *refused; /* NULL, or why there are no figures */
};

void table_head(void);
void table_row(const struct row *row);
/* A line below the last row. */
void table_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void table_foot(double seconds);

/* ---- cases.c: what is measured ----------------------------------------- */

/* Runs the cases whose names, or whose sides' names, match the pattern of
   fnmatch(3); all if it is NULL. Returns how many did. */
int cases_run(const char *only);

/* Runs only the sides that match, each once and for so long, says which
   processes those are, and prints what each did. */
int cases_profile(const char *only, unsigned ms);

/* Prints the names. */
void cases_list(void);

/* What quorate did with so many writers on the leader, transactions a second;
   0 if that was not measured. */
double cases_writers(int writers);

/* ---- nodes.c: what a node costs beside its work ------------------------ */

/* As cases_run() and cases_list(). */
int nodes_run(const char *only);
void nodes_list(void);

/* ---- peers.c ----------------------------------------------------------- */

/* Runs the script that measures other databases, prints their rows. */
void peers_run(const char *script);

/* ---- etcd.c: a client of etcd ------------------------------------------ */

/* argv: PORT CLIENTS SECONDS. Puts of 100 bytes to new keys, each client on
   its own connection; prints "RATE P50 P99", a second and ms. */
int etcd_main(int argc, char **argv);

#endif
