/*
** program.h: the openssl program, in a folder of the test's own.
*/
#ifndef TLS_TEST_PROGRAM_H
#define TLS_TEST_PROGRAM_H

#include "helpers.h"

#include <ftw.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/test_tls_XXXXXX";

static inline void path_of(char path[128], const char *name)
{
  snprintf(path, 128, "%s/%s", folder, name);
}

static inline void write_file(const char *name, const char *text)
{
  char path[128];
  FILE *file;

  path_of(path, name);
  file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

/* To be freed by the caller. */
static inline char *read_file(const char *name)
{
  char path[128], *text = calloc(1, 65536);
  FILE *file;

  path_of(path, name);
  file = fopen(path, "r");
  if (file == NULL) fail_msg("%s: not there", name);
  assert_true(fread(text, 1, 65535, file) > 0);
  fclose(file);
  return text;
}

static int remove_one(const char *path, const struct stat *st, int kind,
                      struct FTW *at)
{
  (void)st, (void)kind, (void)at;
  return remove(path);
}

static inline void remove_folder(void)
{
  nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A shell command in the folder; `input` >= 0 becomes its standard input. */
static inline pid_t spawn(const char *command, int input)
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

static inline int result(pid_t pid)
{
  int status;

  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline void need_openssl(void)
{
  if (result(spawn("command -v openssl >/dev/null", -1)) != 0) skip();
}

#endif
