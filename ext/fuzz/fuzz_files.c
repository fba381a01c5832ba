/*
** fuzz_files.c: the text files of a node's directory, and the options that some
** of their lines come from.
**
** An input: u8 what, then bytes. what % 3: 0: the file `node`; 1: the file
** `peers`; 2: options of quorate_bootstrap() or (bit 3) quorate_join(): texts
** with zeros behind them, in pairs. what, bit 2: the checksum is set right.
**
** What must hold: what is refused says why and leaves nothing; a node that is
** taken, from a file or from options, is written and read again as it was.
*/
#include "../cluster.h"
#include "../trust.h"
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

const char *const fuzz_corpus = "ext/fuzz/corpus/files";

#define CHECKSUM "checksum = "

/* ---- a directory ------------------------------------------------------- */

/* In memory if that is possible: each write is synced. */
static char dir[64];

static void put_file(const char *name, const void *data, size_t size)
{
  char path[256];
  snprintf(path, sizeof(path), "%s/%s", dir, name);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
  close(fd);
}

static void remove_dir(void)
{
  static const char *const names[] = {"node",   "node.new", "peers",
                                      "ca.pem", "cert.pem", "key.pem"};
  char path[256];
  for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
    snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
    unlink(path);
  }
  rmdir(dir);
}

static void make_dir(void)
{
  static bool made;
  if (made) return;
  made = true;
  fuzz_make_dir(dir, sizeof(dir), remove_dir);
  put_file("ca.pem", "ca", 2);
  put_file("cert.pem", "cert", 4);
  put_file("key.pem", "key", 3);
}

/* ---- nodes ------------------------------------------------------------- */

static bool same_node(const struct identity *a, const struct identity *b)
{
  return a->cluster == b->cluster && a->id == b->id &&
         a->incarnation == b->incarnation && !strcmp(a->name, b->name) &&
         !strcmp(a->listen, b->listen) && !strcmp(a->advertise, b->advertise) &&
         a->heartbeat_ms == b->heartbeat_ms &&
         a->election_timeout_ms == b->election_timeout_ms &&
         a->lease == b->lease && a->log_keep_kib == b->log_keep_kib &&
         a->snapshot_rate_kib == b->snapshot_rate_kib &&
         a->joining == b->joining && !strcmp(a->ca_file, b->ca_file) &&
         !strcmp(a->cert_file, b->cert_file) &&
         !strcmp(a->key_file, b->key_file) && !strcmp(a->names, b->names);
}

static void must_tell(const struct text *error)
{
  must(error->s[0] && strlen(error->s) < sizeof(error->s));
}

/* Files of an outside PKI are where they are, or not: not read here. */
static void write_and_read(struct identity *i)
{
  struct identity again;
  struct text error = {""};
  if (trust_is_outside(i))
    for (int k = 0; k < 3; k++) {
      char *file = k == 0 ? i->ca_file : k == 1 ? i->cert_file : i->key_file;
      snprintf(file, IDENTITY_PATH_MAX, "%s/%s", dir,
               k == 0   ? "ca.pem"
               : k == 1 ? "cert.pem"
                        : "key.pem");
    }
  must(identity_write_node(dir, i, &error) == 0);
  int rc = identity_read(dir, &again, &error);
  if (rc) fprintf(stderr, "%s\n", error.s);
  must(rc == 0);
  must(same_node(i, &again));
  must(!strcmp(again.ca, "ca") && !strcmp(again.key, "key"));
  identity_clear(&again);
}

/* In place: sets the checksum of what is before the last line that has one. */
static void fix(char *text, size_t size, const char *mark, size_t skip)
{
  char *last = strstr(text, mark), sum[18];
  if (last == NULL) return;
  last += skip;
  if ((size_t)(text + size - last) < strlen(CHECKSUM) + 17) return;
  snprintf(sum, sizeof(sum), "%016llx\n",
           (unsigned long long)XXH3_64bits(text, (size_t)(last - text)));
  memcpy(last + strlen(CHECKSUM), sum, 17);
}

static void try_node(char *text, size_t size, bool right)
{
  struct identity i;
  struct text error = {""};
  static const struct identity nobody;
  if (right) fix(text, size, "\n" CHECKSUM, 1);
  put_file("node", text, size);
  int rc = identity_read(dir, &i, &error);
  if (rc) {
    must(rc < 0);
    must_tell(&error);
    must(memcmp(&i, &nobody, sizeof(i)) == 0);
    return;
  }
  must(i.id && identity_valid_name(i.name));
  must(i.heartbeat_ms && i.election_timeout_ms > i.heartbeat_ms);
  must(!i.ca_file[0] == !i.cert_file[0] && !i.ca_file[0] == !i.key_file[0]);
  write_and_read(&i);
  identity_clear(&i);
}

/* ---- peers ------------------------------------------------------------- */

static void try_peers(char *text, size_t size, bool right)
{
  static struct peers peers;
  peers.n = 0;
  if (right) fix(text, size, CHECKSUM, 0);
  put_file("peers", text, size);
  if (!peers_read(dir, &peers)) return;
  must(peers.n <= PEERS_MAX);
  for (unsigned i = 0; i < peers.n; i++)
    must(cluster_address_ok(peers.at[i], true));
}

/* ---- options ----------------------------------------------------------- */

static const char *next_text(struct input *in)
{
  const char *text = (const char *)in->at;
  size_t n = strnlen(text, input_left(in));
  if (n == input_left(in)) return NULL;
  in->at += n + 1;
  return text;
}

static void try_options(struct input in, bool join)
{
  struct identity i = {.cluster = 1, .id = 2, .incarnation = 3};
  char replaces[RAFT_NAME_MAX] = "";
  const char *name, *value;
  struct text error = {""};
  i.heartbeat_ms = 75;
  i.election_timeout_ms = 500;
  snprintf(i.name, sizeof(i.name), "n1");
  snprintf(i.listen, sizeof(i.listen), "a:1");
  snprintf(i.advertise, sizeof(i.advertise), "a:1");
  while ((name = next_text(&in)) && (value = next_text(&in))) {
    if (!cluster_take_option(&i, name, value, join ? replaces : NULL, &error)) {
      must_tell(&error);
      return;
    }
    must(error.s[0] == 0);
    must(!replaces[0] || identity_valid_name(replaces));
  }
  if (i.election_timeout_ms <= i.heartbeat_ms) return; /* refused by then */
  if (!i.ca_file[0] != !i.cert_file[0] || !i.ca_file[0] != !i.key_file[0])
    return;
  if (i.names[0] && (!i.ca_file[0] || !strchr(i.names, '*'))) return;
  write_and_read(&i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  if (size < 1) return 0;
  char *text = text_copy(data + 1, size - 1);
  uint8_t what = data[0];
  make_dir();
  if (what % 3 == 0)
    try_node(text, size - 1, what & 4);
  else if (what % 3 == 1)
    try_peers(text, size - 1, what & 4);
  else
    try_options(input_of((uint8_t *)text, size - 1), what & 8);
  free(text);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static void seed_file(void (*seed)(const void *data, size_t size), uint8_t what,
                      const char *name)
{
  char path[256];
  uint8_t bytes[8192];
  snprintf(path, sizeof(path), "%s/%s", dir, name);
  FILE *f = fopen(path, "rb");
  must(f);
  bytes[0] = what;
  size_t n = fread(bytes + 1, 1, sizeof(bytes) - 1, f);
  fclose(f);
  seed(bytes, 1 + n);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  static const char options[] =
      "\2listen\0[::1]:70\0advertise\0db:71\0name\0n7\0heartbeat_ms\0"
      "50\0lease\0on\0log_keep_kib\0"
      "9\0snapshot_rate_kib\0"
      "10";
  static const char outside[] =
      "\2ca\0/a\0cert\0/b\0key\0/c\0names\0*.db\0election_timeout_ms\0"
      "900";
  static const char join[] = "\13listen\0a:2\0replaces\0n3";
  struct raft_configuration c = {.n = 2};
  struct identity i = {.cluster = 1, .id = 2, .incarnation = 3};
  struct text error;
  make_dir();
  i.heartbeat_ms = 75;
  i.election_timeout_ms = 500;
  snprintf(i.name, sizeof(i.name), "n1");
  snprintf(i.listen, sizeof(i.listen), "127.0.0.1:7001");
  snprintf(i.advertise, sizeof(i.advertise), "127.0.0.1:7001");
  must(identity_write_node(dir, &i, &error) == 0);
  seed_file(seed, 6, "node");
  snprintf(i.ca_file, sizeof(i.ca_file), "/tmp/a");
  snprintf(i.cert_file, sizeof(i.cert_file), "/tmp/b");
  snprintf(i.key_file, sizeof(i.key_file), "/tmp/c");
  snprintf(i.names, sizeof(i.names), "*.db");
  must(identity_write_node(dir, &i, &error) == 0);
  seed_file(seed, 6, "node");
  for (unsigned k = 0; k < 2; k++) {
    c.members[k] = (struct raft_member){.id = k + 1, .role = RAFT_VOTER};
    snprintf(c.members[k].address, RAFT_ADDRESS_MAX, "a:%u", k + 1);
  }
  must(peers_write(&io_posix, dir, &c, 0) == 0);
  seed_file(seed, 4, "peers");
  seed(options, sizeof(options));
  seed(outside, sizeof(outside));
  seed(join, sizeof(join));
}
