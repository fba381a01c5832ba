/* settings.c: see settings.h. A change is text name, u8 set, blob value; all
** of them are u32 count, then as many names and values. */
#include "settings.h"

#include "pack.h"

static void item_clear(struct setting *item)
{
  free(item->name);
  if (item->value) explicit_bzero(item->value, item->len);
  free(item->value);
}

void settings_clear(struct settings *settings)
{
  for (unsigned i = 0; i < settings->n; i++)
    item_clear(&settings->items[i]);
  free(settings->items);
  memset(settings, 0, sizeof(*settings));
}

/* The position of a name, or where it would stand. */
static unsigned position(const struct settings *settings, const char *name,
                         bool *found)
{
  unsigned lo = 0, hi = settings->n;
  while (lo < hi) {
    unsigned mid = (lo + hi) / 2;
    int c = strcmp(settings->items[mid].name, name);
    if (c == 0) {
      *found = true;
      return mid;
    }
    if (c < 0)
      lo = mid + 1;
    else
      hi = mid;
  }
  *found = false;
  return lo;
}

const uint8_t *settings_get(const struct settings *settings, const char *name,
                            size_t *len)
{
  bool found;
  unsigned i = position(settings, name, &found);
  *len = found ? settings->items[i].len : 0;
  return found ? settings->items[i].value : NULL;
}

bool settings_room(const struct settings *settings, const char *name)
{
  bool found = false;
  if (settings->n >= SETTINGS_PROPOSED) position(settings, name, &found);
  return found || settings->n < SETTINGS_PROPOSED;
}

static void remove_at(struct settings *settings, unsigned i)
{
  item_clear(&settings->items[i]);
  settings->n--;
  memmove(&settings->items[i], &settings->items[i + 1],
          (settings->n - i) * sizeof(settings->items[0]));
}

int settings_set(struct settings *settings, const char *name, const void *value,
                 size_t len)
{
  bool found;
  unsigned i = position(settings, name, &found);
  if (value == NULL) {
    if (found) remove_at(settings, i);
    return 0;
  }
  if (!found && settings->n >= SETTINGS_MAX) return -1;
  struct setting item = {strdup(name), malloc(len + 1), len};
  struct setting *grown =
      found ? settings->items
            : realloc(settings->items, (settings->n + 1) * sizeof(*grown));
  if (grown) settings->items = grown;
  if (item.name == NULL || item.value == NULL || grown == NULL) {
    free(item.name);
    free(item.value);
    return -1;
  }
  memcpy(item.value, value, len);
  item.value[len] = 0;
  if (found) {
    item_clear(&settings->items[i]);
  } else {
    memmove(&grown[i + 1], &grown[i], (settings->n - i) * sizeof(*grown));
    settings->n++;
  }
  settings->items[i] = item;
  return 0;
}

struct raft_body *settings_encode_change(const char *name, const void *value,
                                         size_t len)
{
  struct packer p = {0};
  pack_text(&p, name);
  pack_u8(&p, value != NULL);
  pack_blob(&p, value, value ? len : 0);
  struct raft_body *body = p.bad ? NULL : raft_body_new(p.len);
  if (body) {
    memcpy(body->data, p.data, p.len);
    raft_body_seal(body);
  }
  if (p.data) explicit_bzero(p.data, p.cap);
  free(p.data);
  return body;
}

int settings_apply(struct settings *settings, const void *body, size_t len)
{
  struct parser p = parser_of(body, len);
  size_t n;
  const char *name = parse_text(&p);
  bool set = parse_u8(&p) != 0;
  const uint8_t *value = parse_blob(&p, &n);
  if (!parser_done(&p) || n > SETTINGS_VALUE_MAX) return -1;
  return settings_set(settings, name, set ? value : NULL, n);
}

int settings_pack(const struct settings *settings, uint8_t **data, size_t *len)
{
  struct packer p = {0};
  pack_u32(&p, settings->n);
  for (unsigned i = 0; i < settings->n; i++) {
    pack_text(&p, settings->items[i].name);
    pack_blob(&p, settings->items[i].value, settings->items[i].len);
  }
  *data = p.data;
  *len = p.len;
  if (!p.bad) return 0;
  free(p.data);
  return -1;
}

int settings_unpack(struct settings *settings, const void *data, size_t len)
{
  struct parser p = parser_of(data, len);
  uint32_t n = parse_u32(&p);
  memset(settings, 0, sizeof(*settings));
  for (uint32_t i = 0; i < n && !p.bad; i++) {
    size_t size;
    const char *name = parse_text(&p);
    const uint8_t *value = parse_blob(&p, &size);
    if (p.bad || settings_set(settings, name, value, size) != 0) p.bad = true;
  }
  if (parser_done(&p)) return 0;
  settings_clear(settings);
  return -1;
}
