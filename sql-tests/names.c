/*
** names.c: names of hosts as a test wants them, for one process.
**
** Preloaded, it looks for the name of a host in the file named by NAMES_FILE,
** anew each time: a line is a name, a space and a numeric address. What is not
** there is asked of the resolver, as ever.
*/
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int find(const char *name, char address[64])
{
  const char *path = getenv("NAMES_FILE");
  FILE *file = path && name ? fopen(path, "r") : NULL;
  char known[256];
  int found = 0;
  if (!file) return 0;
  while (!found && fscanf(file, "%255s %63s", known, address) == 2)
    found = strcmp(known, name) == 0;
  fclose(file);
  return found;
}

int getaddrinfo(const char *restrict name, const char *restrict service,
                const struct addrinfo *restrict hints,
                struct addrinfo **restrict list)
{
  static int (*real)(const char *, const char *, const struct addrinfo *,
                     struct addrinfo **);
  char address[64];
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
  return real(find(name, address) ? address : name, service, hints, list);
}
