/*
** peers.c: the file DIR/peers: where the other voters are.
**
** The checkpoint says it too, as it was then, and the log, as it is. This is
** for a node that can read neither and has to ask the others for everything
** (rebuild.c): any one of them is enough, so a list that is not the newest
** serves as well. Text, an address a line, without this node's own:
**
**     peer = host:port
**     checksum = <16 hex>     XXH3-64 of all before it; the last line
*/
#include "cluster.h"

#include <errno.h>
#include <stdio.h>
#include <xxhash.h>

#define FILE_MAX 16384
#define PEER "peer = "
#define CHECKSUM "checksum = "

static char *peers_path(const char *dir)
{
  char *path = NULL;
  return asprintf(&path, "%s/peers", dir) < 0 ? NULL : path;
}

void peers_add(struct peers *peers, const char *address)
{
  for (unsigned i = 0; i < peers->n; i++)
    if (strcmp(peers->at[i], address) == 0) return;
  if (peers->n == PEERS_MAX || strlen(address) >= RAFT_ADDRESS_MAX) return;
  strcpy(peers->at[peers->n++], address);
}

void peers_add_voters(struct peers *peers, const struct raft_configuration *c,
                      raft_id self)
{
  for (unsigned i = 0; i < c->n; i++)
    if (c->members[i].id != self && raft_member_votes(&c->members[i]))
      peers_add(peers, c->members[i].address);
}

static bool parse(char *text, struct peers *peers)
{
  char sum[18], *save = NULL;
  char *last = strstr(text, CHECKSUM);
  if (last == NULL) return false;
  snprintf(sum, sizeof(sum), "%016llx\n",
           (unsigned long long)XXH3_64bits(text, (size_t)(last - text)));
  if (strcmp(last + strlen(CHECKSUM), sum) != 0) return false;
  *last = 0;
  for (char *line = strtok_r(text, "\n", &save); line;
       line = strtok_r(NULL, "\n", &save)) {
    const char *address = line + strlen(PEER);
    if (strncmp(line, PEER, strlen(PEER)) != 0 ||
        !cluster_address_ok(address, true))
      return false;
    peers_add(peers, address);
  }
  return true;
}

bool peers_read(const char *dir, struct peers *peers)
{
  uint8_t *data = NULL;
  size_t len = 0;
  char *path = peers_path(dir);
  if (path == NULL) return false;
  int rc = io_read_file(&io_posix, path, FILE_MAX, &data, &len);
  bool ok =
      rc == 0 && strlen((char *)data) == len && parse((char *)data, peers);
  free(data);
  free(path);
  return ok;
}

static bool is_there(const struct io *io, const char *path, const char *text,
                     size_t n)
{
  uint8_t *data = NULL;
  size_t len = 0;
  bool same = io_read_file(io, path, FILE_MAX, &data, &len) == 0 && len == n &&
              memcmp(data, text, n) == 0;
  free(data);
  return same;
}

int peers_write(const struct io *io, const char *dir,
                const struct raft_configuration *c, raft_id self)
{
  struct peers *peers = calloc(1, sizeof(*peers));
  char *path = peers_path(dir), *text = malloc(FILE_MAX);
  int rc = peers && path && text ? 0 : -ENOMEM;
  if (rc == 0) {
    size_t n = 0;
    peers_add_voters(peers, c, self);
    text[0] = 0;
    for (unsigned i = 0; i < peers->n; i++)
      n += (size_t)snprintf(text + n, FILE_MAX - n, PEER "%s\n", peers->at[i]);
    n += (size_t)snprintf(text + n, FILE_MAX - n, CHECKSUM "%016llx\n",
                          (unsigned long long)XXH3_64bits(text, n));
    if (!is_there(io, path, text, n)) rc = io_replace_file(io, path, text, n);
  }
  free(text);
  free(path);
  free(peers);
  return rc;
}

void peers_keep(struct node *node)
{
  pthread_mutex_lock(&node->mutex);
  struct raft_configuration members = node->members;
  pthread_mutex_unlock(&node->mutex);
  int rc = peers_write(node->io, node->dir, &members, node->identity.id);
  if (rc)
    events_add(&node->events, "%s/peers: %s", node->dir, errno_text(-rc).s);
}
