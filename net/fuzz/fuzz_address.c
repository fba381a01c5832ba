/*
** fuzz_address.c: "host:port" texts.
**
** What must hold: an address that is taken comes together again from its parts;
** a numeric one that is shown is the same address when it is read.
*/
#include "../internal.h"
#include "fuzz.h"

const char *const fuzz_corpus = "net/fuzz/corpus/address";

static void try_numeric(const char *host, const char *port)
{
  struct net_candidates found, again;
  char text[NET_TEXT], host2[RAFT_ADDRESS_MAX], port2[8];

  if (!net_numeric(host, port, &found)) return;
  must(found.n == 1);
  net_format(&found.at[0], text, sizeof text);
  must(net_split_address(text, host2, sizeof host2, port2, sizeof port2));
  must(net_numeric(host2, port2, &again));
  /* A zone ("%eth0") is not shown. */
  ((struct sockaddr_in6 *)&found.at[0])->sin6_scope_id =
      ((struct sockaddr_in6 *)&again.at[0])->sin6_scope_id;
  must(memcmp(&found, &again, net_sockaddr_size(&found.at[0])) == 0);
  must(strtoul(port, NULL, 10) == strtoul(port2, NULL, 10));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  char *address = text_copy(data, size), host[RAFT_ADDRESS_MAX], port[8];
  char together[2 * RAFT_ADDRESS_MAX];
  bool numeric6;

  if (net_split_address(address, host, sizeof host, port, sizeof port)) {
    must(host[0] && port[0] && strlen(port) <= 5 && atoi(port) <= 65535);
    must(strspn(port, "0123456789") == strlen(port));
    must(!strpbrk(host, "[]/@ \n\t"));
    numeric6 = strchr(host, ':') != NULL;
    snprintf(together, sizeof together, numeric6 ? "[%s]:%s" : "%s:%s", host,
             port);
    must(strcmp(together, address) == 0);
    try_numeric(host, port);
  }
  free(address);
  return 0;
}

void fuzz_seeds(void (*seed)(const void *data, size_t size))
{
  static const char *const texts[] = {"127.0.0.1:7001", "db1.example:65535",
                                      "[::1]:1",        "[fe80::1%lo]:70",
                                      "localhost:0",    ":1"};

  for (unsigned i = 0; i < sizeof texts / sizeof *texts; i++)
    seed(texts[i], strlen(texts[i]));
}
