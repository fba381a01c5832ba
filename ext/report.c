/*
** report.c: what nodes are like: numbers, JSON, Prometheus. No part of the
** library: it asks in SQL.
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "report.h"

#include "node.h"
#include "vfs.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

/* ---- asking -------------------------------------------------------------- */

int report_open(const char *path, sqlite3 **db)
{
  static const char settings[] =
      "PRAGMA quorate_consistency=local; PRAGMA quorate_write_wait=0";
  int rc = sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_exec(*db, settings, NULL, NULL, NULL);
  struct connection *c = rc == SQLITE_OK ? vfs_connection(*db, "main") : NULL;
  if (c) c->looks = true;
  return rc;
}

/* ---- numbers ------------------------------------------------------------- */

static double *find_number(struct numbers *n, const char *name)
{
  if (strcmp(name, "quorate_transactions_total") == 0) return &n->transactions;
  if (strcmp(name, "quorate_commit_seconds_count") == 0) return &n->commits;
  if (strcmp(name, "quorate_commit_p50_seconds") == 0) return &n->commit_p50;
  if (strcmp(name, "quorate_commit_p99_seconds") == 0) return &n->commit_p99;
  if (strcmp(name, "quorate_fsync_p99_seconds") == 0) return &n->fsync;
  if (strcmp(name, "quorate_write_queue") == 0) return &n->waiting;
  if (strcmp(name, "quorate_failed") == 0) return &n->failed;
  if (strncmp(name, "quorate_reads_total{", 20) == 0) return &n->reads;
  return NULL;
}

bool report_numbers(sqlite3 *db, struct numbers *out)
{
  sqlite3_stmt *stmt = NULL;
  int rows = 0,
      rc = sqlite3_prepare_v2(db, "SELECT name, value FROM quorate_metrics", -1,
                              &stmt, NULL);
  *out = (struct numbers){clock_monotonic_ms(), -1, -1, -1, -1, -1, -1, -1, -1};
  while (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
    const char *name = (const char *)sqlite3_column_text(stmt, 0);
    double *number = name ? find_number(out, name) : NULL;
    rows++;
    if (number == NULL || sqlite3_column_type(stmt, 1) == SQLITE_NULL) continue;
    /* Reads come in several rows. */
    if (*number < 0) *number = 0;
    *number += sqlite3_column_double(stmt, 1);
  }
  int end = sqlite3_finalize(stmt);
  return rc == SQLITE_OK && end == SQLITE_OK && rows > 0;
}

double report_rate(double now, double before, uint64_t ms)
{
  if (now < 0 || before < 0 || now < before || ms == 0) return -1;
  return (now - before) * 1000 / (double)ms;
}

/* ---- JSON ---------------------------------------------------------------- */

void json_printf(struct packer *out, const char *format, ...)
{
  char text[512];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  if (n < 0 || n >= (int)sizeof(text))
    out->bad = true;
  else
    pack_bytes(out, text, (size_t)n);
}

/* Length of the character of UTF-8 at s; 0: there is none. */
static unsigned utf8(const unsigned char *s)
{
  unsigned n = *s < 0x80   ? 1
               : *s < 0xc2 ? 0
               : *s < 0xe0 ? 2
               : *s < 0xf0 ? 3
               : *s < 0xf5 ? 4
                           : 0;
  for (unsigned i = 1; i < n; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  if (n == 3 &&
      ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)))
    return 0;
  if (n == 4 &&
      ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)))
    return 0;
  return n;
}

void json_text(struct packer *out, const char *text)
{
  const unsigned char *s = (const unsigned char *)text;
  if (text == NULL) {
    json_printf(out, "null");
    return;
  }
  pack_u8(out, '"');
  while (*s) {
    unsigned n = utf8(s);
    if (n == 0)
      json_printf(out, "\\ufffd");
    else if (*s < ' ' || *s == 0x7f)
      json_printf(out, "\\u%04x", *s);
    else if (*s == '"' || *s == '\\')
      json_printf(out, "\\%c", *s);
    else
      pack_bytes(out, s, n);
    s += n ? n : 1;
  }
  pack_u8(out, '"');
}

void json_number(struct packer *out, double number, int digits)
{
  if (!(number >= 0) || !isfinite(number))
    json_printf(out, "null");
  else
    json_printf(out, "%.*f", digits, number);
}

static void json_value(struct packer *out, sqlite3_stmt *stmt, int i)
{
  switch (sqlite3_column_type(stmt, i)) {
  case SQLITE_INTEGER:
    json_printf(out, "%lld", (long long)sqlite3_column_int64(stmt, i));
    break;
  case SQLITE_FLOAT: json_number(out, sqlite3_column_double(stmt, i), 6); break;
  default: json_text(out, (const char *)sqlite3_column_text(stmt, i)); break;
  }
}

static void json_row(struct packer *out, sqlite3_stmt *stmt)
{
  for (int i = 0; i < sqlite3_column_count(stmt); i++) {
    pack_u8(out, i ? ',' : '{');
    json_text(out, sqlite3_column_name(stmt, i));
    pack_u8(out, ':');
    json_value(out, stmt, i);
  }
  pack_u8(out, '}');
}

bool json_rows(struct packer *out, sqlite3 *db, const char *sql, bool one)
{
  sqlite3_stmt *stmt = NULL;
  size_t begin = out->len;
  int n = 0, rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (!one) pack_u8(out, '[');
  while (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
    if (one && n > 0) continue;
    if (n++ > 0) pack_u8(out, ',');
    json_row(out, stmt);
  }
  int end = sqlite3_finalize(stmt);
  if (one && n == 0) json_printf(out, "null");
  if (!one) pack_u8(out, ']');
  if (rc == SQLITE_OK && end == SQLITE_OK) return true;
  out->len = begin;
  return false;
}

/* ---- Prometheus ---------------------------------------------------------- */

struct family {
  char name[96], type[16], help[160];
};

struct sample {
  size_t family, order;
  char *line; /* name, labels, value */
};

/* The name of a family: without labels, and of a histogram without what tells
   its rows apart. */
static void family_name(const char *name, const char *type, char out[96])
{
  static const char *const suffixes[] = {"_bucket", "_sum", "_count"};
  size_t n = strcspn(name, "{");
  if (n > 95) n = 95;
  if (strcmp(type, "histogram") == 0)
    for (unsigned i = 0; i < 3; i++) {
      size_t k = strlen(suffixes[i]);
      if (n > k && memcmp(name + n - k, suffixes[i], k) == 0) n -= k;
    }
  memcpy(out, name, n);
  out[n] = 0;
}

/* Its number; a new one is added. */
static size_t family_of(struct samples *s, const char *name, const char *type,
                        const char *help)
{
  char plain[96];
  size_t i = 0, n;
  family_name(name, type, plain);
  while (i < s->n_families && strcmp(s->families[i].name, plain) != 0)
    i++;
  if (i < s->n_families) return i;
  struct family *grown = realloc(s->families, (i + 1) * sizeof(*grown));
  if (grown == NULL) {
    s->bad = true;
    return 0;
  }
  s->families = grown;
  s->n_families++;
  struct family *f = &grown[i];
  memcpy(f->name, plain, sizeof(plain));
  snprintf(f->type, sizeof(f->type), "%s", type);
  snprintf(f->help, sizeof(f->help), "%s", help);
  /* What is after a colon is said of one label. */
  n = strcspn(f->help, ":");
  if (strchr(name, '{')) f->help[n] = 0;
  return i;
}

/* Of a label's value. */
static void escape(struct packer *out, const char *value)
{
  for (; *value; value++) {
    if (*value == '\n') {
      pack_bytes(out, "\\n", 2);
      continue;
    }
    if (*value == '"' || *value == '\\') pack_u8(out, '\\');
    unsigned n = utf8((const unsigned char *)value);
    if (n == 0) {
      pack_u8(out, '?');
      continue;
    }
    pack_bytes(out, value, n);
    value += n - 1;
  }
}

static void add(struct samples *s, const char *name, const char *type,
                const char *help, double value, const char *file)
{
  struct packer line = {0};
  if (s->n == s->cap) {
    size_t cap = s->cap ? s->cap * 2 : 256;
    struct sample *grown = realloc(s->at, cap * sizeof(*grown));
    if (grown == NULL) {
      s->bad = true;
      return;
    }
    s->at = grown;
    s->cap = cap;
  }
  const char *labels = strchr(name, '{');
  pack_bytes(&line, name, strcspn(name, "{"));
  json_printf(&line, "{file=\"");
  escape(&line, file);
  pack_u8(&line, '"');
  if (labels) {
    pack_u8(&line, ',');
    pack_bytes(&line, labels + 1, strlen(labels + 1));
  } else {
    pack_u8(&line, '}');
  }
  json_printf(&line, " %.15g\n", value);
  pack_u8(&line, 0);
  if (line.bad) {
    free(line.data);
    s->bad = true;
    return;
  }
  struct sample *sample = &s->at[s->n];
  sample->family = family_of(s, name, type, help);
  sample->order = s->n++;
  sample->line = (char *)line.data;
}

bool samples_of(struct samples *s, sqlite3 *db, const char *file)
{
  sqlite3_stmt *stmt = NULL;
  size_t before = s->n;
  int rc = sqlite3_prepare_v2(
      db, "SELECT name, type, help, value FROM quorate_metrics", -1, &stmt,
      NULL);
  while (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
    const char *text[3];
    for (int i = 0; i < 3; i++)
      text[i] = (const char *)sqlite3_column_text(stmt, i);
    if (text[0] && text[1] && text[2] &&
        sqlite3_column_type(stmt, 3) != SQLITE_NULL)
      add(s, text[0], text[1], text[2], sqlite3_column_double(stmt, 3), file);
  }
  sqlite3_finalize(stmt);
  return s->n > before;
}

void samples_gauge(struct samples *s, const char *name, const char *help,
                   double value, const char *file)
{
  add(s, name, "gauge", help, value, file);
}

static int by_family(const void *a, const void *b)
{
  const struct sample *x = a, *y = b;
  if (x->family != y->family) return x->family < y->family ? -1 : 1;
  return x->order < y->order ? -1 : x->order > y->order;
}

void samples_write(struct samples *s, struct packer *out)
{
  if (s->bad) out->bad = true;
  if (s->n) qsort(s->at, s->n, sizeof(*s->at), by_family);
  for (size_t i = 0; i < s->n; i++) {
    const struct family *f = &s->families[s->at[i].family];
    if (i == 0 || s->at[i - 1].family != s->at[i].family)
      json_printf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help,
                  f->name, f->type);
    pack_bytes(out, s->at[i].line, strlen(s->at[i].line));
  }
}

void samples_clear(struct samples *s)
{
  for (size_t i = 0; i < s->n; i++)
    free(s->at[i].line);
  free(s->at);
  free(s->families);
  *s = (struct samples){0};
}
