/*
** notify.c: who is told that a service is ready.
**
**     notify PATH | @NAME
**
** Binds the datagram socket that the environment variable NOTIFY_SOCKET names
** to a service, a path or an abstract name, says "bound", and prints each
** datagram on a line of its own, until its input ends.
*/
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t n = argc == 2 ? strlen(argv[1]) : 0;
  char text[1024];
  if (n == 0 || n >= sizeof(address.sun_path)) return 2;
  memcpy(address.sun_path, argv[1], n);
  if (argv[1][0] == '@')
    address.sun_path[0] = 0;
  else
    unlink(argv[1]);
  int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) != 0) {
    perror(argv[1]);
    return 1;
  }
  puts("bound");
  fflush(stdout);
  struct pollfd p[2] = {{.fd = fd, .events = POLLIN},
                        {.fd = STDIN_FILENO, .events = POLLIN}};
  while (poll(p, 2, -1) > 0) {
    if (p[0].revents) {
      ssize_t got = recv(fd, text, sizeof(text), 0);
      if (got < 0) return 1;
      printf("%.*s\n", (int)got, text);
      fflush(stdout);
    } else if (p[1].revents && read(STDIN_FILENO, text, sizeof(text)) <= 0) {
      return 0;
    }
  }
  return 1;
}
