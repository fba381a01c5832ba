/*
** quorate_detach() in a process that was attached to the host, had closed the
** file, and whose watch lingers: it notices the end of the host just then.
*/
#include "nodes.h"

#include <poll.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define DETACH_S 30

static _Atomic bool holding;
static sem_t locked; /* the host's lock was had in this process */

/* In the place of the C library's: the watch hears nothing before. */
int poll(struct pollfd *fds, nfds_t n, int ms)
{
  char name[16] = "";
  int rc = (int)syscall(SYS_poll, fds, n, ms);
  prctl(PR_GET_NAME, name);
  if (rc > 0 && holding && strcmp(name, "quorate watch") == 0) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += DETACH_S;
    sem_timedwait(&locked, &end);
  }
  return rc;
}

int flock(int fd, int how)
{
  int rc = (int)syscall(SYS_flock, fd, how);
  if (rc == 0 && (how & LOCK_EX) && holding) sem_post(&locked);
  return rc;
}

/* Hosts the node until it is killed. */
static pid_t start_host(const char *path)
{
  int made[2];
  char c;
  assert_int_equal(pipe(made), 0);
  pid_t pid = fork();
  if (pid == 0) {
    sqlite3 *db = NULL;
    nodes_load();
    sqlite3_open(":memory:", &db);
    nodes_do(db, sqlite3_mprintf("SELECT quorate_bootstrap(%Q, 'listen', "
                                 "'127.0.0.1:%u')",
                                 path, free_port()));
    sqlite3_close(db);
    sqlite3_open(path, &db);
    nodes_do(db, sqlite3_mprintf("CREATE TABLE t(a)"));
    if (write(made[1], "x", 1) == 1) pause();
    _exit(1);
  }
  assert_true(pid > 0);
  close(made[1]);
  assert_int_equal(read(made[0], &c, 1), 1);
  close(made[0]);
  return pid;
}

static void *detach_main(void *arg)
{
  sqlite3 *db = NULL;
  char *error;
  sqlite3_open(":memory:", &db);
  free(
      nodes_ask(db, sqlite3_mprintf("SELECT quorate_detach(%Q)", arg), &error));
  sqlite3_close(db);
  return error;
}

static void test_detach(void **state)
{
  struct nodes nodes = {.dir = *state, .n = 1};
  struct path path = nodes_path(&nodes, 1);
  struct timespec end;
  pthread_t thread;
  void *error = NULL;
  pid_t host = start_host(path.s);
  nodes_load();
  nodes_open(&nodes, 1);
  assert_null(vfs_connection(nodes.db[1], "main")->node);
  assert_int_equal(sqlite3_close(nodes.db[1]), SQLITE_OK);
  sem_init(&locked, 0, 0);
  holding = true;
  kill(host, SIGKILL);
  assert_int_equal(waitpid(host, NULL, 0), host);
  pthread_create(&thread, NULL, detach_main, path.s);
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += DETACH_S;
  assert_int_equal(pthread_timedjoin_np(thread, &error, &end), 0);
  holding = false;
  if (error) fail_msg("%s", (char *)error);
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path.s, &db), SQLITE_OK);
  nodes_do(db, sqlite3_mprintf("INSERT INTO t VALUES('ordinary')"));
  sqlite3_close(db);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_detach, dir_make, dir_clear),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
