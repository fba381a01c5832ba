/*
** report.h: what nodes are like, asked in SQL as any program would, and told as
** others want it: numbers, JSON, the text format of Prometheus. For quorated.
*/
#ifndef EXT_REPORT_H
#define EXT_REPORT_H

#include "pack.h"

#include <sqlite3.h>

/* ---- asking -------------------------------------------------------------- */

/* A connection to a file for the questions below: it waits for no other node, and
   what it reads is not counted. A code of SQLite; *db is to be closed, also after
   an error. */
int report_open(const char *path, sqlite3 **db);

/* ---- numbers ------------------------------------------------------------- */

/* Of quorate_metrics; negative: not known. */
struct numbers {
  uint64_t ms;                          /* of the monotonic clock: when */
  double transactions, commits, reads;  /* counted so far */
  double commit_p50, commit_p99, fsync; /* seconds */
  double waiting;                       /* to write */
  double failed;                        /* 1: it must be started anew */
};
/* False: they could not be had. */
bool report_numbers(sqlite3 *db, struct numbers *out);
/* How much a second something has grown; negative: not known. */
double report_rate(double now, double before, uint64_t ms);

/* ---- JSON ---------------------------------------------------------------- */

void json_printf(struct packer *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A string in quotes, or null. Whatever the bytes are, it is JSON in UTF-8. */
void json_text(struct packer *out, const char *text);
/* With at most so many digits after the point; null if it is negative. */
void json_number(struct packer *out, double number, int digits);
/* The rows of a query as an array of objects; one: the first row as an object,
   or null. False: the query failed, and nothing was added. */
bool json_rows(struct packer *out, sqlite3 *db, const char *sql, bool one);

/* ---- Prometheus ---------------------------------------------------------- */

/* Rows of quorate_metrics of all nodes, until they are written. */
struct samples {
  struct sample *at;
  size_t n, cap;
  struct family *families;
  size_t n_families;
  bool bad; /* memory ran out */
};
/* Adds what a node tells, with a label that says which file it is. False: it
   tells nothing. */
bool samples_of(struct samples *samples, sqlite3 *db, const char *file);
/* Adds one gauge of that file. */
void samples_gauge(struct samples *samples, const char *name, const char *help,
                   double value, const char *file);
/* In the order in which families came first, all nodes of one together. */
void samples_write(struct samples *samples, struct packer *out);
void samples_clear(struct samples *samples);

#endif
