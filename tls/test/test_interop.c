/*
** test_interop.c: the other side is the openssl program. Skipped where there
** is none.
*/
#include "helpers.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/test_interop_XXXXXX";
static struct ca ca;

static void write_file(const char *name, const char *text)
{
  char path[64];
  FILE *file;

  snprintf(path, sizeof path, "%s/%s", folder, name);
  file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

static int set_up(void **state)
{
  struct node node;

  (void)state;
  if (mkdtemp(folder) == NULL) return -1;
  ca = make_ca();
  node = make_node(&ca, CLUSTER, 7);
  write_file("ca.pem", ca.cert);
  write_file("cert.pem", node.cert);
  write_file("key.pem", node.key);
  free_node(&node);
  return 0;
}

static int tear_down(void **state)
{
  static const char *const names[] = {"ca.pem", "cert.pem", "key.pem"};
  char path[64];

  (void)state;
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    unlink(path);
  }
  rmdir(folder);
  free_ca(&ca);
  return 0;
}

static pid_t spawn(const char *command, int input)
{
  pid_t pid = fork();

  assert_true(pid >= 0);
  if (pid == 0) {
    if (chdir(folder) != 0) _exit(126);
    if (input >= 0) dup2(input, 0);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  return pid;
}

static int result(pid_t pid)
{
  int status;

  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void need_openssl(void)
{
  if (result(spawn("command -v openssl >/dev/null", -1)) != 0) skip();
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

/* Serves the connection until something was read, or it ended. */
static ssize_t serve(int fd, struct tls_stream *stream, char *got, size_t size)
{
  char bytes[4096];
  const uint8_t *data;
  ssize_t rc = 0;

  while (rc == 0 && readable(fd)) {
    ssize_t n = read(fd, bytes, sizeof bytes);

    if (n <= 0) return -1;
    rc = tls_stream_feed(stream, bytes, (size_t)n);
    if (rc == 0) rc = tls_stream_read(stream, got, size);
    n = (ssize_t)tls_stream_output(stream, &data);
    while (n > 0) {
      ssize_t k = send(fd, data, (size_t)n, MSG_NOSIGNAL);

      if (k < 0) return -1;
      tls_stream_sent(stream, (size_t)k);
      n = (ssize_t)tls_stream_output(stream, &data);
    }
  }
  return rc;
}

static void meet(const char *options, const char *expected, uint64_t peer)
{
  struct tls_context *context = make_member(&ca, CLUSTER, 1);
  struct tls_stream *stream = tls_stream_new(context, true);
  char command[512], got[64] = "";
  int listener, fd, input[2];
  unsigned port;
  ssize_t n;
  pid_t pid;

  listener = listen_anywhere(&port);
  assert_int_equal(pipe(input), 0);
  snprintf(command, sizeof command,
           "exec openssl s_client -quiet -connect 127.0.0.1:%u %s "
           ">/dev/null 2>&1",
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
  }
  close(fd);
  close(listener);
  close(input[0]);
  close(input[1]);
  (void)result(pid);
  tls_stream_free(stream);
  tls_context_unref(context);
}

static void test_s_client(void **state)
{
  (void)state;
  need_openssl();
  meet("-alpn quorate/1 -CAfile ca.pem -verify_return_error "
       "-cert cert.pem -key key.pem",
       NULL, 7);
  meet("-alpn quorate/1 -CAfile ca.pem -verify_return_error", NULL, 0);
  meet("-alpn quorate/1 -tls1_2", "peer speaks no TLS 1.3", 0);
  meet("-alpn h2", "peer offered no quorate/1", 0);
  meet("-cert cert.pem -key key.pem", "peer offered no quorate/1", 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_verify),
      cmocka_unit_test(test_s_client),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
