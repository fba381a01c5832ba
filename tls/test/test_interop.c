/*
** test_interop.c: the other side is the openssl program. Skipped where there
** is none.
*/
#include "program.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static struct ca ca;

/* NAME.cert and NAME.key, of node 7. */
static void write_spec(const char *name, const struct cred *issuer,
                       const struct spec *spec)
{
  struct cred cred = build(issuer, spec);
  char *cert = pem_of_cert(cred.cert), *key = pem_of_key(cred.key);
  char file[64];

  snprintf(file, sizeof file, "%s.cert", name);
  write_file(file, cert);
  snprintf(file, sizeof file, "%s.key", name);
  write_file(file, key);
  free(cert);
  free(key);
  free_cred(&cred);
}

#define NODE_7 "URI:quorate:00c0ffee12345678/0000000000000007"

static int set_up(void **state)
{
  struct spec good = {.san = NODE_7}, nameless = {.san = NULL};
  struct spec expired = {.san = NODE_7, .from = -2 * DAY, .to = -60};
  struct ca other_ca;
  struct cred root, other;
  struct node node;

  (void)state;
  if (mkdtemp(folder) == NULL) return -1;
  ca = make_ca();
  other_ca = make_ca();
  root = read_cred(ca.cert, ca.key);
  other = read_cred(other_ca.cert, other_ca.key);
  node = make_node(&ca, CLUSTER, 7);
  write_file("ca.pem", ca.cert);
  write_file("cert.pem", node.cert);
  write_file("key.pem", node.key);
  write_spec("foreign", &other, &good);
  write_spec("expired", &root, &expired);
  write_spec("nameless", &root, &nameless);
  write_spec("alone", NULL, &good);
  free_node(&node);
  free_cred(&root);
  free_cred(&other);
  free_ca(&other_ca);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  remove_folder();
  free_ca(&ca);
  return 0;
}

static void test_verify(void **state)
{
  (void)state;
  need_openssl();
  assert_int_equal(result(spawn("openssl verify -x509_strict -CAfile ca.pem "
                                "-purpose sslserver cert.pem >/dev/null",
                                -1)),
                   0);
  assert_int_equal(result(spawn("openssl verify -x509_strict -CAfile ca.pem "
                                "-purpose sslclient cert.pem >/dev/null",
                                -1)),
                   0);
}

static int listen_anywhere(unsigned *port)
{
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  assert_true(fd >= 0);
  assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
  assert_int_equal(listen(fd, 1), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
  *port = ntohs(address.sin_port);
  return fd;
}

static bool readable(int fd)
{
  struct pollfd p = {.fd = fd, .events = POLLIN};

  return poll(&p, 1, 20000) == 1;
}

static void send_all(int fd, struct tls_stream *stream)
{
  const uint8_t *data;
  size_t n;

  while ((n = tls_stream_output(stream, &data)) > 0) {
    ssize_t k = send(fd, data, n, MSG_NOSIGNAL);

    if (k < 0) return;
    tls_stream_sent(stream, (size_t)k);
  }
}

/* Serves the connection until something was read, or it ended. */
static ssize_t serve(int fd, struct tls_stream *stream, char *got, size_t size)
{
  char bytes[4096];
  ssize_t rc = 0;

  while (rc == 0 && readable(fd)) {
    ssize_t n = read(fd, bytes, sizeof bytes);

    if (n <= 0) return -1;
    rc = tls_stream_feed(stream, bytes, (size_t)n);
    if (rc == 0) rc = tls_stream_read(stream, got, size);
    send_all(fd, stream);
  }
  return rc;
}

/* `expected` NULL: all is well, and the peer is `peer`. Else it is our line,
   and `heard` is in what the program says of it. */
static void meet(const char *options, const char *expected, const char *heard,
                 uint64_t peer)
{
  struct tls_context *context = make_member(&ca, CLUSTER, 1);
  struct tls_stream *stream = tls_stream_new(context, true);
  char command[512], got[64] = "", *said;
  int listener, fd, input[2];
  unsigned port;
  ssize_t n;
  pid_t pid;

  listener = listen_anywhere(&port);
  assert_int_equal(pipe2(input, O_CLOEXEC), 0);
  snprintf(command, sizeof command,
           "exec openssl s_client -quiet -connect 127.0.0.1:%u %s >said 2>&1",
           port, options);
  pid = spawn(command, input[0]);
  assert_int_equal(write(input[1], "hello", 5), 5);
  assert_true(readable(listener));
  fd = accept(listener, NULL, NULL);
  n = serve(fd, stream, got, sizeof got);
  if (expected == NULL) {
    assert_int_equal(n, 5);
    assert_string_equal(got, "hello");
    assert_int_equal(tls_stream_peer(stream), peer);
  } else {
    assert_int_equal(n, -1);
    assert_says(stream, expected);
    assert_int_equal(tls_stream_peer(stream), 0);
  }
  shutdown(fd, SHUT_WR);
  close(input[0]);
  close(input[1]);
  (void)result(pid);
  close(fd);
  close(listener);
  if (heard != NULL) {
    said = read_file("said");
    if (strstr(said, heard) == NULL) fail_msg("%s: %s", options, said);
    free(said);
  }
  tls_stream_free(stream);
  tls_context_unref(context);
}

#define SHOW(name) "-alpn quorate/1 -cert " name ".cert -key " name ".key"

static void test_s_client(void **state)
{
  (void)state;
  need_openssl();
  meet("-alpn quorate/1 -CAfile ca.pem -verify_return_error "
       "-cert cert.pem -key key.pem",
       NULL, NULL, 7);
  /* Like a node that wants to join, and has yet to say so. */
  meet("-alpn quorate/1 -CAfile ca.pem -verify_return_error", NULL, NULL, 0);
  meet("-alpn quorate/1 -tls1_2", "peer speaks no TLS 1.3",
       "alert protocol version", 0);
  meet("-alpn h2", "peer offered no quorate/1", "no application protocol", 0);
  meet("-cert cert.pem -key key.pem", "peer offered no quorate/1",
       "no application protocol", 0);
  meet(SHOW("foreign"), "its signature is not of the CA that it names",
       "decrypt error", 0);
  meet(SHOW("alone"), "self-signed", "unknown ca", 0);
  meet(SHOW("expired"), "certificate has expired", "certificate expired", 0);
  meet(SHOW("nameless"), "it names no node", "bad certificate", 0);
}

/* ---- the program is the server ----------------------------------------- */

/* Starts it on a port of its choice, which it prints; it goes on to print, so
   *talk must stay open while it lives. */
static pid_t start_server(const char *options, int input, unsigned *port,
                          FILE **talk)
{
  char command[512], line[256] = "";
  const char *at = NULL;
  int output[2];
  pid_t pid;

  assert_int_equal(pipe2(output, O_CLOEXEC), 0);
  snprintf(command, sizeof command,
           "exec openssl s_server -accept 127.0.0.1:0 -alpn quorate/1 "
           "-CAfile ca.pem -Verify 2 -verify_return_error -naccept 1 "
           "%s 2>said >&%d",
           options, output[1]);
  /* Across exec, for this one child. */
  fcntl(output[1], F_SETFD, 0);
  pid = spawn(command, input);
  close(output[1]);
  *talk = fdopen(output[0], "r");
  assert_true(readable(output[0]));
  while (at == NULL && fgets(line, sizeof line, *talk) != NULL)
    at = strstr(line, "ACCEPT 127.0.0.1:");
  assert_non_null(at);
  *port = (unsigned)atoi(at + strlen("ACCEPT 127.0.0.1:"));
  return pid;
}

static void meet_server(const char *options, const char *expected)
{
  struct tls_context *context = make_member(&ca, CLUSTER, 1);
  struct tls_stream *stream = tls_stream_new(context, false);
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), input[2];
  char got[64] = "";
  unsigned port;
  FILE *talk;
  ssize_t n;
  pid_t pid;

  assert_int_equal(pipe2(input, O_CLOEXEC), 0);
  pid = start_server(options, input[0], &port, &talk);
  address.sin_port = htons((uint16_t)port);
  assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(write(input[1], "hello\n", 6), 6);
  send_all(fd, stream);
  n = serve(fd, stream, got, sizeof got);
  if (expected == NULL) {
    assert_string_equal(tls_stream_error(stream), "");
    assert_int_equal(n, 6);
    assert_string_equal(got, "hello\n");
    assert_int_equal(tls_stream_peer(stream), 7);
  } else {
    assert_int_equal(n, -1);
    assert_says(stream, expected);
    assert_false(tls_stream_ready(stream));
  }
  close(fd);
  close(input[0]);
  close(input[1]);
  (void)result(pid);
  fclose(talk);
  tls_stream_free(stream);
  tls_context_unref(context);
}

static void test_s_server(void **state)
{
  (void)state;
  need_openssl();
  meet_server("-cert cert.pem -key key.pem", NULL);
  meet_server("-cert cert.pem -key key.pem -tls1_2", "protocol version");
  meet_server("-cert foreign.cert -key foreign.key",
              "its signature is not of the CA that it names");
  meet_server("-cert alone.cert -key alone.key", "self-signed");
  meet_server("-cert expired.cert -key expired.key", "has expired");
  meet_server("-cert nameless.cert -key nameless.key", "it names no node");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_verify),
      cmocka_unit_test(test_s_client),
      cmocka_unit_test(test_s_server),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
