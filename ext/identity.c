/*
** identity.c: the file DIR/node and the certificates beside it.
**
** The file is text, one "name = value" a line:
**
**     version = 1
**     cluster = <16 hex>      node = <16 hex>      incarnation = <16 hex>
**     name = n1               listen = host:port   advertise = host:port
**     heartbeat_ms = 75       election_timeout_ms = 500
**     log_keep_kib = 262144   snapshot_rate_kib = 0
**     lease = 0                joining = 0
**     ca_file = /path         cert_file = /path    key_file = /path
**     names = *.db.example
**     checksum = <16 hex>     XXH3-64 of all before it; the last line
**
** The four before the last are there where certificates come from outside;
** `names` only if it is not empty. It is replaced in one step, and read
** strictly: an unknown name, a missing or a malformed value is damage.
**
** Certificates and keys are PEM files of 0600 beside it, or those that it
** names. ca.pem has all CAs that are trusted; cert.pem may be of any of them.
** key.pem may have several keys while they are being replaced: one belongs to
** cert.pem (trust.c).
*/
#include "node.h"
#include "trust.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define FILE_MAX 16384
#define OUTSIDE_MAX (128 * 1024) /* a bundle of CAs may be long */
#define NODE_MAX 8192
#define NAMES 13 /* lines of DIR/node before the checksum */
#define LINES 17 /* and those that need not be there */
#define CHECKSUM "checksum = "

bool identity_valid_name(const char *name)
{
  size_t n = strlen(name);
  if (n == 0 || n >= RAFT_NAME_MAX) return false;
  return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                      "0123456789._-") == n;
}

static int write_one(const char *dir, const char *file, const char *text,
                     struct text *error)
{
  char *path = NULL;
  if (asprintf(&path, "%s/%s", dir, file) < 0) return -ENOMEM;
  int rc = io_replace_file(&io_posix, path, text, strlen(text));
  if (rc) text_set(error, "%s: %s", path, errno_text(-rc).s);
  free(path);
  return rc;
}

static void print_outside(char *text, size_t size, const struct identity *i)
{
  size_t n = strlen(text);
  if (!trust_is_outside(i)) return;
  snprintf(text + n, size - n,
           "ca_file = %s\ncert_file = %s\nkey_file = %s\n%s%s%s", i->ca_file,
           i->cert_file, i->key_file, i->names[0] ? "names = " : "", i->names,
           i->names[0] ? "\n" : "");
}

int identity_write_node(const char *dir, const struct identity *i,
                        struct text *error)
{
  char text[NODE_MAX];
  snprintf(text, sizeof(text),
           "version = 1\ncluster = %016llx\nnode = %016llx\n"
           "incarnation = %016llx\nname = %s\nlisten = %s\nadvertise = %s\n"
           "heartbeat_ms = %u\nelection_timeout_ms = %u\njoining = %d\n"
           "log_keep_kib = %u\nsnapshot_rate_kib = %u\nlease = %d\n",
           (unsigned long long)i->cluster, (unsigned long long)i->id,
           (unsigned long long)i->incarnation, i->name, i->listen, i->advertise,
           i->heartbeat_ms, i->election_timeout_ms, i->joining, i->log_keep_kib,
           i->snapshot_rate_kib, i->lease);
  print_outside(text, sizeof(text), i);
  size_t n = strlen(text);
  snprintf(text + n, sizeof(text) - n, CHECKSUM "%016llx\n",
           (unsigned long long)XXH3_64bits(text, n));
  return write_one(dir, "node", text, error);
}

int identity_write(const char *dir, const struct identity *i,
                   struct text *error)
{
  int rc = 0;
  if (!trust_is_outside(i)) {
    rc = write_one(dir, "ca.pem", i->ca, error);
    if (rc == 0) rc = write_one(dir, "cert.pem", i->cert, error);
    if (rc == 0) rc = write_one(dir, "key.pem", i->key, error);
  }
  return rc ? rc : identity_write_node(dir, i, error);
}

/* ---- reading ------------------------------------------------------------- */

int identity_private(const char *path, bool owner, struct text *error)
{
  struct stat st;
  if (stat(path, &st) != 0) return 0; /* who reads it will say so */
  if (st.st_mode & 077) {
    text_set(error, "%s: others than its owner may use it: chmod %s '%s'", path,
             S_ISDIR(st.st_mode) ? "700" : "600", path);
    return -EACCES;
  }
  if (!owner || st.st_uid == geteuid() || st.st_uid == 0) return 0;
  text_set(error, "%s: belongs to another user: chown %u '%s'", path,
           (unsigned)geteuid(), path);
  return -EACCES;
}

static int read_path(const char *path, size_t max, char **text,
                     struct text *error)
{
  size_t len = 0;
  int rc = io_read_file(&io_posix, path, max, (uint8_t **)text, &len);
  if (rc == 0 && strlen(*text) != len) rc = -EBADMSG;
  if (rc == -EBADMSG)
    text_set(error, "%s: damaged", path);
  else if (rc)
    text_set(error, "%s: %s", path, errno_text(-rc).s);
  return rc;
}

static int read_one(const char *dir, const char *file, char **text,
                    struct text *error)
{
  char *path = NULL;
  if (asprintf(&path, "%s/%s", dir, file) < 0) return -ENOMEM;
  int rc = identity_private(path, false, error);
  if (rc == 0) rc = read_path(path, FILE_MAX, text, error);
  free(path);
  return rc;
}

/* Nothing of it is damage of this node's: it is for who made it to put right. */
int identity_read_outside(struct identity *i, struct text *error)
{
  int rc = identity_private(i->key_file, true, error);
  if (rc == 0) rc = read_path(i->ca_file, OUTSIDE_MAX, &i->ca, error);
  if (rc == 0) rc = read_path(i->cert_file, OUTSIDE_MAX, &i->cert, error);
  if (rc == 0) rc = read_path(i->key_file, OUTSIDE_MAX, &i->key, error);
  return rc ? -EACCES : 0;
}

static bool hex64(const char *value, uint64_t *out)
{
  if (strlen(value) != 16 || strspn(value, "0123456789abcdef") != 16)
    return false;
  *out = strtoull(value, NULL, 16);
  return true;
}

static bool number(const char *value, unsigned max, unsigned *out)
{
  size_t n = strlen(value);
  if (n == 0 || n > 9 || strspn(value, "0123456789") != n) return false;
  unsigned long v = strtoul(value, NULL, 10);
  if (v > max) return false;
  *out = (unsigned)v;
  return true;
}

static bool copy_text(const char *value, char *out, size_t size)
{
  if (value[0] == 0 || strlen(value) >= size) return false;
  memcpy(out, value, strlen(value) + 1);
  return true;
}

/* One line; each name sets its bit in *seen. */
static bool take(struct identity *i, const char *name, const char *value,
                 unsigned *seen)
{
  static const char *const names[] = {
      "version",     "cluster",      "node",
      "incarnation", "name",         "listen",
      "advertise",   "heartbeat_ms", "election_timeout_ms",
      "joining",     "log_keep_kib", "snapshot_rate_kib",
      "lease",       "ca_file",      "cert_file",
      "key_file",    "names"};
  unsigned v = 0, k = 0;
  while (k < LINES && strcmp(names[k], name) != 0)
    k++;
  if (k == LINES || (*seen & 1u << k)) return false;
  *seen |= 1u << k;
  switch (k) {
  case 0: return number(value, 1, &v) && v == 1;
  case 1: return hex64(value, &i->cluster);
  case 2: return hex64(value, &i->id) && i->id != 0;
  case 3: return hex64(value, &i->incarnation);
  case 4:
    return identity_valid_name(value) &&
           copy_text(value, i->name, sizeof(i->name));
  case 5: return copy_text(value, i->listen, sizeof(i->listen));
  case 6: return copy_text(value, i->advertise, sizeof(i->advertise));
  case 7: return number(value, 60000, &i->heartbeat_ms) && i->heartbeat_ms;
  case 8: return number(value, 600000, &i->election_timeout_ms);
  case 10: return number(value, UINT32_MAX, &i->log_keep_kib);
  case 11: return number(value, UINT32_MAX, &i->snapshot_rate_kib);
  case 13: return copy_text(value, i->ca_file, sizeof(i->ca_file));
  case 14: return copy_text(value, i->cert_file, sizeof(i->cert_file));
  case 15: return copy_text(value, i->key_file, sizeof(i->key_file));
  case 16: return copy_text(value, i->names, sizeof(i->names));
  default:
    if (!number(value, 1, &v)) return false;
    *(k == 9 ? &i->joining : &i->lease) = v == 1;
    return true;
  }
}

/* All lines that must be there; of the others none, or those of an outside
   PKI, of which the last may be missing. */
static bool is_complete(unsigned seen)
{
  unsigned others = seen >> NAMES;
  return (seen & ((1u << NAMES) - 1)) == (1u << NAMES) - 1 &&
         (others == 0 || (others & 7) == 7);
}

static bool parse(struct identity *i, char *text)
{
  unsigned seen = 0;
  size_t len = strlen(text);
  char *save = NULL;
  char *last = strstr(text, "\n" CHECKSUM);
  uint64_t sum;
  if (last == NULL || text[len - 1] != '\n') return false; /* cut short */
  text[len - 1] = 0;
  if (!hex64(last + 1 + strlen(CHECKSUM), &sum) ||
      sum != XXH3_64bits(text, (size_t)(last + 1 - text)))
    return false;
  last[1] = 0;
  for (char *line = strtok_r(text, "\n", &save); line;
       line = strtok_r(NULL, "\n", &save)) {
    char *mid = strstr(line, " = ");
    if (mid == NULL) return false;
    *mid = 0;
    if (!take(i, line, mid + 3, &seen)) return false;
  }
  return is_complete(seen) && i->election_timeout_ms > i->heartbeat_ms;
}

int identity_read(const char *dir, struct identity *i, struct text *error)
{
  char *text = NULL;
  memset(i, 0, sizeof(*i));
  int rc = read_one(dir, "node", &text, error);
  if (rc == 0 && !parse(i, text)) {
    text_set(error, "%s/node: damaged", dir);
    rc = -EBADMSG;
  }
  free(text);
  if (rc == 0 && trust_is_outside(i)) {
    rc = identity_read_outside(i, error);
  } else {
    if (rc == 0) rc = read_one(dir, "ca.pem", &i->ca, error);
    if (rc == 0) rc = read_one(dir, "cert.pem", &i->cert, error);
    if (rc == 0) rc = read_one(dir, "key.pem", &i->key, error);
  }
  if (rc) identity_clear(i);
  return rc;
}

void identity_clear(struct identity *i)
{
  tls_free_text(i->ca);
  tls_free_text(i->cert);
  tls_free_text(i->key);
  memset(i, 0, sizeof(*i));
}
