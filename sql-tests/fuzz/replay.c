/*
** replay.c: drives a fuzz target without a fuzzer.
**
**     fuzz_NAME [file | directory]...   its seeds, its corpus, and these
**     fuzz_NAME --seeds DIRECTORY       writes its seeds as files
**
** It tells of itself as the other test programs do (runner.tcl). An input that
** does not end is ended by SIGALRM, which is a failure.
*/
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_SECONDS 60 /* on a machine that does other things, too */
#define NAME_BYTES 1024

static unsigned n_inputs;
static const char *seed_dir; /* write them there */

static void run(const void *data, size_t size)
{
  uint8_t *copy = exact_copy(data, size);

  alarm(INPUT_SECONDS);
  must(LLVMFuzzerTestOneInput(copy, size) == 0);
  alarm(0);
  free(copy);
  n_inputs++;
}

static void write_seed(const void *data, size_t size)
{
  char name[NAME_BYTES];
  FILE *f;

  snprintf(name, sizeof name, "%s/seed-%u", seed_dir, n_inputs++);
  f = fopen(name, "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
    fprintf(stderr, "%s: %s\n", name, strerror(errno));
    exit(1);
  }
}

static void run_file(const char *name, off_t size)
{
  FILE *f = fopen(name, "rb");
  uint8_t *data = malloc((size_t)size + 1);

  must(f && data);
  must(fread(data, 1, (size_t)size, f) == (size_t)size);
  fclose(f);
  run(data, (size_t)size);
  free(data);
}

static bool run_path(const char *path)
{
  char name[NAME_BYTES];
  struct dirent *entry;
  struct stat st;
  DIR *dir;

  if (stat(path, &st) != 0) return false;
  if (!S_ISDIR(st.st_mode)) {
    run_file(path, st.st_size);
    return true;
  }
  dir = opendir(path);
  must(dir);
  while ((entry = readdir(dir))) {
    if (entry->d_name[0] == '.') continue;
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    must(run_path(name));
  }
  closedir(dir);
  return true;
}

int main(int argc, char **argv)
{
  int i;

  if (argc == 3 && strcmp(argv[1], "--seeds") == 0) {
    seed_dir = argv[2];
    fuzz_seeds(write_seed);
    return 0;
  }
  fuzz_seeds(run);
  must(n_inputs > 0);
  run_path(fuzz_corpus); /* there may be none */
  for (i = 1; i < argc; i++)
    if (!run_path(argv[i])) {
      fprintf(stderr, "%s: %s\n", argv[i], strerror(errno));
      return 1;
    }
  printf("%u inputs of %s\n[  PASSED  ] 1 test(s).\n", n_inputs, fuzz_corpus);
  return 0;
}
