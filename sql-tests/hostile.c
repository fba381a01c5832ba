/*
** hostile.c: a stranger at the port of a node, who means no good.
**
**   hostile KIND HOST PORT SECONDS SOURCE CONNECTIONS [RATE]
**
** Keeps so many connections open, from the address SOURCE or, if that ends
** with a dot, from a thousand addresses that begin with it, and dials anew
** whatever is closed, at most RATE times a second; and says how often it did.
**
**   silent      says nothing
**   noise       random bytes, for as long as somebody takes them
**   records     the same behind the head of a TLS record
**   slow        a TLS hello, a byte a second
**   half        a whole TLS hello, and nothing after it
**   foreign     a handshake with a certificate of its own making
**   oversize    a handshake, and the head of a frame of 4 GiB
**   early       a handshake, and a frame that may not come before hello
**   halfframe   a handshake, and half of a frame
*/
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ALPN "\x09quorate/1"
#define HELLO_MAX 1024

struct connection {
  int fd; /* -1: none */
  SSL *ssl;
  long began;
  size_t said;
  int greeted;
};

static const char *kind;
static struct sockaddr_in to;
static const char *source;
static SSL_CTX *context;
static unsigned char hello[HELLO_MAX];
static size_t hello_len;
static unsigned long made;

static long now_ms(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int is(const char *name)
{
  return strcmp(kind, name) == 0;
}

static int shakes_hands(void)
{
  return is("foreign") || is("oversize") || is("early") || is("halfframe");
}

/* ---- TLS ----------------------------------------------------------------- */

static void show_certificate(void)
{
  EVP_PKEY *key = EVP_EC_gen("P-256");
  X509 *cert = X509_new();
  X509_EXTENSION *names =
      X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name,
                          "URI:quorate:0000000000000001/0000000000000001");

  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -60);
  X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
  X509_set_pubkey(cert, key);
  X509_add_ext(cert, names, -1);
  X509_sign(cert, key, EVP_sha256());
  SSL_CTX_use_certificate(context, cert);
  SSL_CTX_use_PrivateKey(context, key);
  X509_EXTENSION_free(names);
  X509_free(cert);
  EVP_PKEY_free(key);
}

static SSL *new_ssl(void)
{
  SSL *ssl = SSL_new(context);

  SSL_set_alpn_protos(ssl, (const unsigned char *)ALPN, sizeof ALPN - 1);
  SSL_set_connect_state(ssl);
  return ssl;
}

/* What a client would say first. */
static void make_hello(void)
{
  BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
  SSL *ssl = new_ssl();
  int n;

  SSL_set_bio(ssl, in, out);
  SSL_do_handshake(ssl);
  n = BIO_read(out, hello, sizeof hello);
  hello_len = n > 0 ? (size_t)n : 0;
  SSL_free(ssl);
}

/* ---- a connection -------------------------------------------------------- */

static void hang_up(struct connection *c)
{
  struct linger reset = {.l_onoff = 1};

  if (c->fd < 0) return;
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  SSL_free(c->ssl);
  close(c->fd);
  c->fd = -1;
  c->ssl = NULL;
}

static void dial(struct connection *c)
{
  struct sockaddr_in from = {.sin_family = AF_INET};
  char text[32];
  size_t n = strlen(source);

  snprintf(text, sizeof text, "%s", source);
  if (n && source[n - 1] == '.')
    snprintf(text, sizeof text, "%s%lu.%lu", source, made % 4,
             made / 4 % 250 + 1);
  inet_pton(AF_INET, text, &from.sin_addr);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (c->fd < 0) return;
  c->said = 0;
  c->greeted = 0;
  c->began = now_ms();
  if (bind(c->fd, (struct sockaddr *)&from, sizeof from) ||
      (connect(c->fd, (struct sockaddr *)&to, sizeof to) &&
       errno != EINPROGRESS)) {
    hang_up(c);
    return;
  }
  made++;
  if (!shakes_hands()) return;
  c->ssl = new_ssl();
  SSL_set_fd(c->ssl, c->fd);
}

static int say(struct connection *c, const void *data, size_t n)
{
  ssize_t rc = send(c->fd, data, n, MSG_NOSIGNAL);

  if (rc > 0) c->said += (size_t)rc;
  return rc >= 0 || errno == EAGAIN || errno == ENOTCONN;
}

/* After the handshake: once. False: it is over. */
static int misbehave(struct connection *c)
{
  static const unsigned char oversize[] = {255, 255, 255, 255, 7, 1, 0, 0},
                             early[] = {0, 0, 0, 0, 1, 1, 0, 0},
                             half[] = {40, 0, 0, 0, 7, 1, 0, 0, 'q', 'u'};
  int rc = 1;
  char byte;

  if (!c->greeted) {
    rc = SSL_do_handshake(c->ssl);
    if (rc == 1) c->greeted = 1;
    if (rc == 1 && is("oversize")) rc = SSL_write(c->ssl, oversize, 8);
    if (rc == 1 && is("early")) rc = SSL_write(c->ssl, early, 8);
    if (rc == 1 && is("halfframe")) rc = SSL_write(c->ssl, half, 10);
  }
  if (c->greeted) rc = SSL_read(c->ssl, &byte, 1);
  if (rc > 0) return 1;
  rc = SSL_get_error(c->ssl, rc);
  return rc == SSL_ERROR_WANT_READ || rc == SSL_ERROR_WANT_WRITE;
}

static int step(struct connection *c)
{
  unsigned char noise[512];
  char byte;
  ssize_t rc;

  if (shakes_hands()) return misbehave(c);
  if (is("noise") || is("records")) {
    for (size_t i = 0; i < sizeof noise; i++)
      noise[i] = (unsigned char)(random() >> 7);
    if (is("records")) memcpy(noise, "\x16\x03\x01\x01\xfb", 5);
    if (!say(c, noise, sizeof noise)) return 0;
  }
  if (is("half") && c->said < hello_len &&
      !say(c, hello + c->said, hello_len - c->said))
    return 0;
  if (is("slow") && (now_ms() - c->began) / 1000 >= (long)c->said &&
      !say(c, hello + c->said % hello_len, 1))
    return 0;
  rc = recv(c->fd, &byte, 1, 0);
  return rc > 0 || (rc < 0 && (errno == EAGAIN || errno == ENOTCONN));
}

/* ---- all of them --------------------------------------------------------- */

static void flood(struct connection *all, int n, long end, long rate)
{
  struct timespec pause = {0, 1000000};
  long begin = now_ms(), now;

  while ((now = now_ms()) < end) {
    for (int i = 0; i < n; i++) {
      if (all[i].fd >= 0 && !step(&all[i])) hang_up(&all[i]);
      if (all[i].fd < 0 &&
          (rate == 0 || (long)made <= (now - begin) * rate / 1000))
        dial(&all[i]);
    }
    nanosleep(&pause, NULL);
  }
}

int main(int argc, char **argv)
{
  struct connection *all;
  struct rlimit limit;
  int n;

  if (argc < 7) return 2;
  kind = argv[1];
  to.sin_family = AF_INET;
  to.sin_port = htons((unsigned short)atoi(argv[3]));
  if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) return 2;
  source = argv[5];
  n = atoi(argv[6]);
  all = calloc((size_t)n, sizeof *all);
  if (!all) return 1;
  for (int i = 0; i < n; i++)
    all[i].fd = -1;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  context = SSL_CTX_new(TLS_client_method());
  if (is("foreign")) show_certificate();
  make_hello();
  flood(all, n, now_ms() + atol(argv[4]) * 1000, argc > 7 ? atol(argv[7]) : 0);
  for (int i = 0; i < n; i++)
    hang_up(&all[i]);
  SSL_CTX_free(context);
  free(all);
  printf("%lu connections\n", made);
  return 0;
}
