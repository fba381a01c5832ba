/*
** fuzz_values.c: the settings of a cluster, and values in them; what nodes tell
** one another that is no request.
**
** An input: u8 what, then bytes. what % 8: 0: changes of settings, one after
** the other, each with u16 length; 1: all settings; 2: an invitation; 3: the
** CAs of a cluster; 4: what a member trusts; 5: an admission; 6: a part of a
** transaction (its body is not changed); 7: names of levels.
**
** What must hold: settings stay sorted and bounded, and come back as they were;
** what is taken is packed as the same bytes, where there is one way to do that.
*/
#define SQLITE_CORE 1 /* not through the table that extensions have */
#include "../call.h"
#include "../cluster.h"
#include "../trust.h"
#include "../vfs.h"
#include "load.h"

const char *const fuzz_corpus = "ext/fuzz/corpus/values";

/* ---- settings ---------------------------------------------------------- */

static void check_settings(const struct settings *s)
{
  must(s->n <= SETTINGS_MAX);
  for (unsigned i = 0; i < s->n; i++) {
    size_t len;
    must(i == 0 || strcmp(s->items[i - 1].name, s->items[i].name) < 0);
    must(s->items[i].value && s->items[i].value[s->items[i].len] == 0);
    must(settings_get(s, s->items[i].name, &len) == s->items[i].value);
    must(len == s->items[i].len);
  }
}

static void repack(const struct settings *s)
{
  struct settings again;
  uint8_t *data, *data2;
  size_t len, len2;
  must(settings_pack(s, &data, &len) == 0);
  must(settings_unpack(&again, data, len) == 0);
  check_settings(&again);
  must(again.n == s->n);
  must(settings_pack(&again, &data2, &len2) == 0);
  must(len == len2 && memcmp(data, data2, len) == 0);
  free(data);
  free(data2);
  settings_clear(&again);
}

static void try_changes(struct input in)
{
  struct settings s = {0};
  while (input_left(&in)) {
    size_t got;
    const uint8_t *bytes = input_bytes(&in, (size_t)input_number(&in, 2), &got);
    uint8_t *change = exact_copy(bytes, got);
    unsigned before = s.n;
    int rc = settings_apply(&s, change, got);
    must(rc == 0 || (rc == -1 && s.n == before));
    free(change);
  }
  check_settings(&s);
  repack(&s);
  settings_clear(&s);
}

static void try_all(const uint8_t *bytes, size_t len)
{
  struct settings s;
  if (settings_unpack(&s, bytes, len) != 0) {
    must(s.n == 0 && s.items == NULL);
    return;
  }
  check_settings(&s);
  repack(&s);
  settings_clear(&s);
}

/* ---- values ------------------------------------------------------------ */

static void must_be(struct packer *p, const uint8_t *bytes, size_t len)
{
  must(!p->bad && p->len == len && memcmp(p->data, bytes, len) == 0);
  free(p->data);
}

/* Times that others have written are shown. */
static void show_time(int64_t ms, int64_t seconds)
{
  must(memchr(clock_text(ms).s, 0, sizeof(clock_text(ms).s)));
  must(memchr(trust_time(seconds).s, 0, 20));
  must(memchr(ago_text(ms).s, 0, sizeof(ago_text(ms).s)));
}

static void try_invitation(const uint8_t *bytes, size_t len)
{
  struct invitation i;
  struct packer p = {0};
  if (!invite_parse(bytes, len, &i)) return;
  must(i.role == RAFT_VOTER || i.role == RAFT_LEARNER);
  show_time(i.created, i.expires);
  must(i.state <= INVITATION_WITHDRAWN && strlen(i.by) < RAFT_NAME_MAX);
  invite_pack(&p, &i);
  must_be(&p, bytes, len);
}

static void try_ca(const uint8_t *bytes, size_t len)
{
  struct trust_ca ca;
  struct packer p = {0};
  if (!trust_parse_ca(bytes, len, &ca)) return;
  must(ca.generation && ca.cert[0] && ca.key[0]);
  char *bundle = trust_bundle(&ca);
  must(bundle && trust_generation(bundle) == ca.generation);
  free(bundle);
  trust_pack_ca(&p, &ca);
  must_be(&p, bytes, len);
}

static void try_view(const uint8_t *bytes, size_t len)
{
  struct trust_view view;
  struct packer p = {0};
  memset(&view, 0, sizeof(view));
  if (!trust_parse_view(bytes, len, &view)) return;
  must(view.n <= TRUST_CAS_MAX);
  show_time(view.begins, view.expires);
  for (unsigned i = 0; i < view.n; i++)
    must(trust_trusts(&view, view.cas[i]));
  trust_pack_view(&p, &view);
  must_be(&p, bytes, len);
}

static void try_admission(const uint8_t *bytes, size_t len)
{
  struct admission a;
  struct packer p = {0};
  memset(&a, 0, sizeof(a));
  if (!cluster_parse_admission(bytes, len, &a)) return;
  must(a.id && a.heartbeat_ms && a.election_timeout_ms > a.heartbeat_ms);
  must(raft_configuration_find(&a.members, a.id));
  cluster_pack_admission(&p, &a);
  must(!p.bad && p.len == len);
  free(p.data);
}

static void try_part(const uint8_t *bytes, size_t len)
{
  struct tx_head head;
  const uint32_t *pgnos;
  const uint8_t *pages;
  struct raft_body *body = raft_body_new(len);
  must(body);
  memcpy(body->data, bytes, len);
  for (uint32_t size = 512; size <= 65536; size *= 2) {
    if (!tx_parse(body, size, &head, &pgnos, &pages)) continue;
    must(head.count > 0 && head.page_size == size);
    must(pages + (size_t)head.count * size == body->data + len);
    for (uint32_t i = 0; i < head.count; i++)
      must(pgnos[i] != 0);
  }
  raft_body_unref(body);
}

static void try_level(const uint8_t *bytes, size_t len)
{
  char *text = text_copy(bytes, len);
  enum read_level level;
  uint8_t role;
  if (vfs_parse_level(text, &level)) must(level <= LEVEL_LOCAL);
  if (invite_role(text, &role))
    must(role == RAFT_VOTER || role == RAFT_LEARNER);
  text_plain(text);
  for (const char *p = text; *p; p++)
    must((unsigned char)*p >= ' ' && *p != 0x7f);
  free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  if (size < 1) return 0;
  uint8_t *bytes = exact_copy(data + 1, size - 1);
  load_quorate();
  size_t len = size - 1;
  switch (data[0] % 8) {
  case 0: try_changes(input_of(bytes, len)); break;
  case 1: try_all(bytes, len); break;
  case 2: try_invitation(bytes, len); break;
  case 3: try_ca(bytes, len); break;
  case 4: try_view(bytes, len); break;
  case 5: try_admission(bytes, len); break;
  case 6: try_part(bytes, len); break;
  default: try_level(bytes, len); break;
  }
  free(bytes);
  return 0;
}

/* ---- seeds ------------------------------------------------------------- */

static void seed_packed(void (*seed)(const void *data, size_t size),
                        struct packer *p)
{
  must(!p->bad);
  seed(p->data, p->len);
  free(p->data);
  *p = (struct packer){0};
}

static void pack_change(struct packer *p, const char *name, const char *value)
{
  struct raft_body *body =
      settings_encode_change(name, value, value ? strlen(value) : 0);
  uint8_t n[2];
  must(body);
  write_number(n, body->len, 2);
  pack_bytes(p, n, 2);
  pack_bytes(p, body->data, body->len);
  raft_body_unref(body);
}

static void seed_settings(void (*seed)(const void *data, size_t size))
{
  struct packer p = {0};
  struct settings s = {0};
  uint8_t *all;
  size_t len;
  pack_u8(&p, 0);
  pack_change(&p, "follow-writer", "on");
  pack_change(&p, "stay/7", "\1");
  pack_change(&p, "invite/n2", "x");
  pack_change(&p, "stay/7", NULL);
  seed_packed(seed, &p);
  settings_set(&s, "a", "1", 1);
  settings_set(&s, "b", "", 0);
  must(settings_pack(&s, &all, &len) == 0);
  pack_u8(&p, 1);
  pack_bytes(&p, all, len);
  seed_packed(seed, &p);
  free(all);
  settings_clear(&s);
}

static void seed_part(void (*seed)(const void *data, size_t size))
{
  static const uint8_t page[512];
  struct tx_head head = {.node = 1, .n_page = 9, .page_size = 512, .count = 1};
  struct packer p = {0};
  pack_u8(&p, 6);
  pack_bytes(&p, &head, sizeof(head));
  pack_u32(&p, 3);
  pack_u32(&p, 0);
  pack_bytes(&p, page, sizeof(page));
  seed_packed(seed, &p);
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  struct invitation i = {.role = RAFT_VOTER, .created = 5, .by = "n1"};
  struct trust_ca ca = {3, "cert", "key", "next", "nkey", ""};
  struct trust_view view = {.generation = 2, .n = 2};
  struct admission a = {.id = 2,
                        .cert = "cert",
                        .ca = "ca",
                        .heartbeat_ms = 75,
                        .election_timeout_ms = 500};
  struct packer p = {0};
  seed_settings(seed);
  pack_u8(&p, 2);
  invite_pack(&p, &i);
  seed_packed(seed, &p);
  pack_u8(&p, 3);
  trust_pack_ca(&p, &ca);
  seed_packed(seed, &p);
  pack_u8(&p, 4);
  trust_pack_view(&p, &view);
  seed_packed(seed, &p);
  a.members.n = 1;
  a.members.members[0] = (struct raft_member){
      .id = 2, .role = RAFT_LEARNER, .name = "n2", .address = "a:1"};
  pack_u8(&p, 5);
  cluster_pack_admission(&p, &a);
  seed_packed(seed, &p);
  seed_part(seed);
  seed("\7linearizable", 13);
  seed("\7learner", 8);
}
