/*
** fuzz.h: what a fuzz target shows, and what all of them use.
**
** A target is a program: LLVMFuzzerTestOneInput() takes one input apart, with
** the code that it is about, and aborts when something does not hold; either
** libFuzzer drives it (make fuzz) or replay.c does (make test), which needs no
** clang. What must hold is said with must(): it stays on in every build.
*/
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what each target has ---------------------------------------------- */

/* Where its inputs stand, from the top of the tree: those that a fuzzer has
   found, and those that once showed a mistake. */
extern const char *const fuzz_corpus;
/* Calls seed() for each of the good inputs to begin with. */
void fuzz_seeds(void (*seed)(const void *data, size_t size));
/* libFuzzer's. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- what must hold ---------------------------------------------------- */

#define must(condition)                                                        \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__,        \
              #condition);                                                     \
      abort();                                                                 \
    }                                                                          \
  } while (0)

/* ---- the input, taken apart -------------------------------------------- */

struct input {
  const uint8_t *at, *end;
};

static inline struct input input_of(const uint8_t *data, size_t size)
{
  return (struct input){data, data + size};
}

static inline size_t input_left(const struct input *in)
{
  return (size_t)(in->end - in->at);
}

/* Little-endian; what is missing is zero. */
static inline uint64_t input_number(struct input *in, unsigned bytes)
{
  uint64_t value = 0;

  for (unsigned i = 0; i < bytes && in->at < in->end; i++)
    value |= (uint64_t)*in->at++ << (8 * i);
  return value;
}

static inline uint8_t input_byte(struct input *in)
{
  return (uint8_t)input_number(in, 1);
}

/* At most n bytes; *got says how many there were. */
static inline const uint8_t *input_bytes(struct input *in, size_t n,
                                         size_t *got)
{
  const uint8_t *at = in->at;

  *got = n < input_left(in) ? n : input_left(in);
  in->at += *got;
  return at;
}

/* A copy in memory of exactly that size, so that a sanitizer sees each byte
   that is read behind it. */
static inline uint8_t *exact_copy(const void *data, size_t size)
{
  uint8_t *copy = malloc(size ? size : 1);

  must(copy);
  if (size) memcpy(copy, data, size);
  return copy;
}

static inline char *text_copy(const void *data, size_t size)
{
  char *copy = malloc(size + 1);

  must(copy);
  if (size) memcpy(copy, data, size);
  copy[size] = 0;
  return copy;
}

static inline void write_number(uint8_t *p, uint64_t value, unsigned bytes)
{
  for (unsigned i = 0; i < bytes; i++)
    p[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t read_number(const uint8_t *p, unsigned bytes)
{
  struct input in = {p, p + bytes};

  return input_number(&in, bytes);
}

/* A directory of this process's own, in memory where that can be; `end` removes
   it when the process ends. */
static inline void fuzz_make_dir(char *dir, size_t size, void (*end)(void))
{
  snprintf(dir, size, "%s/quorate-fuzz-XXXXXX",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  must(mkdtemp(dir));
  atexit(end);
}

#endif
