/*
** settings.h: the cluster's replicated settings: a small ordered map from
** names to bytes. One SETTING entry sets or deletes one name. Belongs to the
** loop thread of a node.
**
** Names in use: "ca" (rotate.c); "invite/<name>" (invite.c); "revoked/<id>",
** "stay/<id>" (member.c); "follow-writer" (cluster.c); "verify" (verify.c).
*/
#ifndef EXT_SETTINGS_H
#define EXT_SETTINGS_H

#include "raft.h"

#include <stdbool.h>
#include <string.h>

#define SETTINGS_VALUE_MAX (64u * 1024u)
#define SETTINGS_MAX 4096u
/* So many may be proposed: one that does not fit when it is applied would be
   the end of all nodes, and some come without being proposed. */
#define SETTINGS_PROPOSED (SETTINGS_MAX - 1280u)

struct setting {
  char *name;
  uint8_t *value;
  size_t len;
};
struct settings {
  struct setting *items; /* sorted by name */
  unsigned n;
};

void settings_clear(struct settings *settings);
/* The value, or NULL. */
const uint8_t *settings_get(const struct settings *settings, const char *name,
                            size_t *len);
/* value NULL deletes. 0, or -1: no memory or too many. */
int settings_set(struct settings *settings, const char *name, const void *value,
                 size_t len);

/* Whether it may be proposed to set this one. */
bool settings_room(const struct settings *settings, const char *name);

/* The body of a SETTING entry, sealed. NULL: no memory. */
struct raft_body *settings_encode_change(const char *name, const void *value,
                                         size_t len);
/* Carries one out; -1: malformed or no memory. */
int settings_apply(struct settings *settings, const void *body, size_t len);

/* All of it as bytes, malloc'd, and back. */
int settings_pack(const struct settings *settings, uint8_t **data, size_t *len);
int settings_unpack(struct settings *settings, const void *data, size_t len);

#endif
