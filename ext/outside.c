/*
** outside.c: certificates that somebody else makes: the options of
** quorate_bootstrap() and quorate_join() that name their files.
**
** Who a node is, its certificate says: by the URI quorate:<cluster>/<node>, or,
** with the option `names`, by a DNS name that matches a pattern; then the name
** of the node is what stands for the '*', and the cluster's id is drawn by who
** makes the cluster. trust.c looks at the files while the node runs.
*/
#include "trust.h"

#include <errno.h>
#include <stdio.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* As it will be found from any directory; links in it stay what they are, since
   files of certificates are often replaced by way of them. */
static bool take_path(const char *value, char out[IDENTITY_PATH_MAX])
{
  char here[IDENTITY_PATH_MAX] = "";
  if (value[0] != '/' && getcwd(here, sizeof(here) - 1) == NULL) return false;
  int n = snprintf(out, IDENTITY_PATH_MAX, "%s%s%s", here, here[0] ? "/" : "",
                   value);
  return value[0] && strchr(value, '\n') == NULL && n < IDENTITY_PATH_MAX;
}

bool outside_option(struct identity *i, const char *name, const char *value,
                    struct text *error)
{
  bool ok;
  if (strcmp(name, "ca") == 0) {
    ok = take_path(value, i->ca_file);
  } else if (strcmp(name, "cert") == 0) {
    ok = take_path(value, i->cert_file);
  } else if (strcmp(name, "key") == 0) {
    ok = take_path(value, i->key_file);
  } else if (strcmp(name, "names") == 0) {
    ok = value[0] && strlen(value) < sizeof(i->names) &&
         strchr(value, '\n') == NULL;
    if (ok) strcpy(i->names, value);
  } else {
    return false;
  }
  if (!ok) text_set(error, "bad value of %s: %s", name, value);
  return true;
}

/* By the URI. */
static bool identify(struct identity *i, struct text *error)
{
  struct tls_error why;
  uint64_t cluster;
  int64_t expires;
  if (tls_identity(i->cert, &cluster, &i->id, &expires, &why) != 0) {
    text_set(error, "%s: %s", i->cert_file, why.text);
    return false;
  }
  if (i->cluster && i->cluster != cluster) {
    text_set(error,
             "%s: wrong cluster: the certificate is of a node of %016llx, the "
             "token of cluster %016llx",
             i->cert_file, (unsigned long long)cluster,
             (unsigned long long)i->cluster);
    return false;
  }
  i->cluster = cluster;
  return true;
}

/* By a DNS name. */
static bool identify_named(struct identity *i, struct text *error)
{
  struct tls_error why;
  char dns[256];
  int64_t expires;
  const char *star = strchr(i->names, '*');
  if ((i->cluster == 0 && tls_random(&i->cluster, 8, &why) != 0) ||
      tls_identity_named(i->cert, i->names, i->cluster, &i->id, dns,
                         sizeof(dns), &expires, &why) != 0) {
    text_set(error, "%s: %s", i->cert_file, why.text);
    return false;
  }
  /* It matches, so what stands for the '*' is between these. */
  size_t before = (size_t)(star - i->names), after = strlen(star + 1);
  dns[strlen(dns) - after] = 0;
  const char *name = dns + before;
  if (i->name[0] && strcasecmp(i->name, name) != 0) {
    text_set(error,
             "%s: the certificate is of a node named %s, but this one is to be "
             "%s",
             i->cert_file, name, i->name);
    return false;
  }
  if (i->name[0] == 0 && strlen(name) < sizeof(i->name)) strcpy(i->name, name);
  return true;
}

bool outside_in_time(const struct identity *i, struct text *error)
{
  struct tls_error why;
  int64_t begins, ends, now = clock_wall_ms() / 1000;
  if (tls_certificate_times(i->cert, &begins, &ends, &why) != 0)
    text_set(error, "%s: %s", i->cert_file, why.text);
  else if (now < begins)
    text_set(error, "%s: not valid before %s", i->cert_file,
             trust_time(begins).s);
  else if (now > ends)
    text_set(error, "%s: expired on %s", i->cert_file, trust_time(ends).s);
  else
    return true;
  return false;
}

bool outside_identify(struct identity *i, struct text *error)
{
  struct tls_context *tls = NULL;
  struct trust_view view;
  if (!i->ca_file[0] || !i->cert_file[0] || !i->key_file[0]) {
    text_set(error, "the options ca, cert and key go together: %s is missing",
             !i->ca_file[0]     ? "ca"
             : !i->cert_file[0] ? "cert"
                                : "key");
    return false;
  }
  bool ok = identity_read_outside(i, error) == 0 &&
            (i->names[0] ? identify_named(i, error) : identify(i, error)) &&
            outside_in_time(i, error) &&
            trust_check("", i, &tls, &view, error) == 0;
  tls_context_unref(tls);
  return ok;
}

uint64_t outside_look(const struct identity *i)
{
  const char *const files[] = {i->ca_file, i->cert_file, i->key_file};
  uint64_t seen[3][8];
  memset(seen, 0, sizeof(seen));
  for (unsigned k = 0; k < 3; k++) {
    struct stat st;
    if (stat(files[k], &st) != 0) {
      seen[k][0] = (uint64_t)errno;
      continue;
    }
    seen[k][1] = st.st_dev;
    seen[k][2] = st.st_ino;
    seen[k][3] = (uint64_t)st.st_size;
    seen[k][4] = (uint64_t)st.st_mtim.tv_sec;
    seen[k][5] = (uint64_t)st.st_mtim.tv_nsec;
    seen[k][6] = (uint64_t)st.st_ctim.tv_sec;
    seen[k][7] = (uint64_t)st.st_ctim.tv_nsec;
  }
  uint64_t sum = XXH3_64bits(seen, sizeof(seen));
  return sum ? sum : 1; /* 0: not looked at */
}
