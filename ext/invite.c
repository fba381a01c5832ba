/*
** invite.c: invitations: who may join, by which token.
**
** Setting "invite/<name>": 32 bytes SHA-256 of the secret, i64 end of life in
** ms of the calendar. It is deleted by the same agreement that admits the
** node, so that a token serves once.
*/
#include "cluster.h"
#include "trust.h"

#include <stdio.h>

#define INVITE_MS 3600000

static void setting_name(char *out, size_t size, const char *name)
{
  snprintf(out, size, "invite/%s", name);
}

void invite_handle(struct node *node, struct parser *p, struct answer_to to)
{
  char key[RAFT_NAME_MAX + 16];
  struct raft_member member;
  const char *name = parse_text(p);
  const uint8_t *digest = parse_bytes(p, 32);
  if (!parser_done(p) || !identity_valid_name(name)) {
    cluster_refuse(to, "malformed request");
    return;
  }
  if (cluster_member_named(raft_configuration(node->raft, NULL), name,
                           &member) &&
      !admit_replaceable(node, &member)) {
    char text[128];
    snprintf(text, sizeof(text), "%s is a member already", name);
    cluster_refuse(to, text);
    return;
  }
  struct packer value = {0};
  pack_bytes(&value, digest, 32);
  pack_u64(&value, (uint64_t)(clock_wall_ms() + INVITE_MS));
  setting_name(key, sizeof(key), name);
  if (value.bad)
    cluster_refuse(to, "out of memory");
  else
    cluster_propose_setting(node, key, value.data, value.len, to);
  free(value.data);
}

int cluster_invite(struct node *node, const char *name, char **token,
                   struct text *error)
{
  struct tls_token t = {.cluster = node->identity.cluster};
  struct tls_error tls_error;
  uint8_t digest[32];
  struct packer body = {0};
  if (!identity_valid_name(name)) {
    text_set(error, "a name is 1 to 63 letters, digits, '.', '_' or '-'");
    return -1;
  }
  snprintf(t.name, sizeof(t.name), "%s", name);
  member_address(node, t.address);
  if (tls_random(t.secret, sizeof(t.secret), &tls_error) != 0 ||
      tls_digest(t.secret, sizeof(t.secret), digest, &tls_error) != 0) {
    text_set(error, "%s", tls_error.text);
    return -1;
  }
  pack_u8(&body, ASK_INVITE);
  pack_text(&body, name);
  pack_bytes(&body, digest, 32);
  int rc = cluster_ask_and_wait(node, body, error);
  /* By now what is known here of CAs is as new as the invitation. */
  if (rc == 0 && (trust_pin(node, t.ca_fingerprint, &tls_error) != 0 ||
                  tls_token_encode(&t, token, &tls_error) != 0)) {
    text_set(error, "%s", tls_error.text);
    rc = -1;
  }
  explicit_bzero(&t, sizeof(t));
  return rc;
}

const char *invite_check(struct node *node, const char *name,
                         const uint8_t *secret, size_t n)
{
  char key[RAFT_NAME_MAX + 16];
  struct tls_error error;
  uint8_t digest[32];
  size_t len;
  int64_t until;
  setting_name(key, sizeof(key), name);
  const uint8_t *value = settings_get(&node->settings, key, &len);
  if (value == NULL || len != 40)
    return "no invitation: the token was used, replaced or never given";
  if (n != TLS_SECRET_BYTES || tls_digest(secret, n, digest, &error) != 0 ||
      !tls_equal(digest, value, 32))
    return "wrong token: not the newest one for this name";
  memcpy(&until, value + 32, 8);
  if (clock_wall_ms() > until) return "token expired";
  return NULL;
}

void invite_spend(struct node *node, const char *name, raft_index *index)
{
  char key[RAFT_NAME_MAX + 16];
  setting_name(key, sizeof(key), name);
  struct raft_body *body = settings_encode_change(key, NULL, 0);
  if (body) node_propose(node, RAFT_SETTING, body, index);
  raft_body_unref(body);
}
