/*
** relay.c: links between nodes, each of which a test controls.
**
**     relay SEED       takes commands on its input, a line each, and answers
**                      each with a line; ends with its input
**
**     link FROM TO HOST PORT TOHOST TOPORT
**                      listens at HOST:PORT for FROM, who dials TO: connections
**                      go on to TOHOST:TOPORT
**     way FROM TO WORD VALUE...
**                      what happens to bytes from FROM to TO from now on, on
**                      connections that either of them dialled; `*` is anybody
**     break FROM TO    resets the connections that FROM dialled to TO
**     counts           what was done so far, as words and numbers
**
** The words of `way`:
**
**     delay MS, jitter MS    each piece comes so much later, and up to so much
**                            more; none overtakes another
**     rate KIB               so many a second; 0: no limit
**     stall N                of a thousand pieces so many are lost once: they
**                            and all behind them wait for TCP to try again
**     reset N                of a thousand pieces so many end their connection
**     hold 0 or 1            nothing comes through, neither bytes nor the end of
**                            a connection, and nobody is told; who dials gets no
**                            answer. Afterwards what was held comes
**     refuse 0 or 1          connections are reset, and so are new ones
**     calm 1                 all of that is over
**
** A connection has two pipes. A pipe takes no more than WINDOW bytes that it
** cannot pass on; the rest stays with who sends it, as in a full TCP window.
*/
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define NODES 16
#define WINDOW (256 * 1024)
#define PIECE 16384
#define RTO_MS 200 /* what TCP waits for, at least, before it tries again */

/* What happens to bytes from one node to another. */
struct way {
  unsigned delay, jitter, rate, stall, reset, hold, refuse;
};

struct piece {
  struct piece *next;
  uv_write_t write;
  struct pipe *pipe;
  uint64_t due;
  size_t n;
  char data[];
};

struct pipe {
  struct pair *pair;
  struct way *way;
  uv_tcp_t *from, *to;
  uv_timer_t timer;
  struct piece *first, *last;
  size_t held; /* bytes: queued, or being written */
  uint64_t due, free_at;
  bool reading, ended, writing;
};

/* A connection: the end that was dialled, and the one to whom it goes on. */
struct pair {
  struct pair *next;
  struct link *link;
  uv_tcp_t in, out;
  uv_connect_t connect;
  struct pipe there, back;
  bool dialling, connected, ending;
  int handles; /* open; freed with the last one */
};

struct link {
  uv_tcp_t listener;
  int from, to;
  struct sockaddr_in target;
};

static char names[NODES][32];
static int n_names;
static struct way ways[NODES][NODES];
static struct pair *pairs;
static struct link *links[NODES * NODES];
static int n_links;
static unsigned seed;
static struct {
  uint64_t connections, refused, bytes, stalls, resets;
} counts;
static uv_loop_t *loop;

static void *must(void *p)
{
  if (p) return p;
  fprintf(stderr, "relay: out of memory\n");
  exit(2);
}

static unsigned draw(unsigned n)
{
  return n ? (unsigned)rand_r(&seed) % n : 0;
}

/* The number of a name; a new one if it is new, -1 if there are too many. */
static int number(const char *name)
{
  for (int i = 0; i < n_names; i++)
    if (strcmp(names[i], name) == 0) return i;
  if (n_names == NODES || strlen(name) >= sizeof(names[0])) return -1;
  strcpy(names[n_names], name);
  return n_names++;
}

/* ---- ends -------------------------------------------------------------- */

static void closed(uv_handle_t *handle)
{
  struct pair *pair = handle->data;
  if (--pair->handles > 0) return;
  struct pair **at = &pairs;
  while (*at != pair)
    at = &(*at)->next;
  *at = pair->next;
  for (int i = 0; i < 2; i++) {
    struct pipe *pipe = i ? &pair->back : &pair->there;
    while (pipe->first) {
      struct piece *piece = pipe->first;
      pipe->first = piece->next;
      free(piece);
    }
  }
  free(pair);
}

/* Closes both ends; by a reset, what is under way is lost. */
static void end(struct pair *pair, bool by_reset)
{
  if (pair->ending) return;
  pair->ending = true;
  uv_close((uv_handle_t *)&pair->there.timer, closed);
  uv_close((uv_handle_t *)&pair->back.timer, closed);
  for (int i = 0; i < 2; i++) {
    uv_tcp_t *tcp = i ? &pair->out : &pair->in;
    if (!by_reset || uv_tcp_close_reset(tcp, closed) != 0)
      uv_close((uv_handle_t *)tcp, closed);
  }
}

/* ---- pipes ------------------------------------------------------------- */

static void pump(struct pipe *pipe);
static void take(struct pipe *pipe);

static void written(uv_write_t *write, int status)
{
  struct piece *piece = write->data;
  struct pipe *pipe = piece->pipe;
  pipe->held -= piece->n;
  pipe->writing = false;
  free(piece);
  if (pipe->pair->ending) return;
  if (status != 0) {
    end(pipe->pair, true);
    return;
  }
  take(pipe);
  pump(pipe);
}

static void timed(uv_timer_t *timer)
{
  struct pair *pair = timer->data;
  pump(timer == &pair->there.timer ? &pair->there : &pair->back);
}

/* Passes on the first piece when it is due, the rest after it. */
static void pump(struct pipe *pipe)
{
  struct piece *piece = pipe->first;
  if (pipe->pair->ending || !pipe->pair->connected || pipe->way->hold ||
      pipe->writing)
    return;
  if (piece == NULL) {
    if (pipe->ended) end(pipe->pair, false);
    return;
  }
  uint64_t now = uv_now(loop);
  if (piece->due > now) {
    uv_timer_start(&pipe->timer, timed, piece->due - now, 0);
    return;
  }
  if (draw(1000) < pipe->way->reset) {
    counts.resets++;
    end(pipe->pair, true);
    return;
  }
  pipe->first = piece->next;
  if (pipe->first == NULL) pipe->last = NULL;
  uv_buf_t buf = uv_buf_init(piece->data, (unsigned)piece->n);
  piece->write.data = piece;
  counts.bytes += piece->n;
  pipe->writing = true;
  if (uv_write(&piece->write, (uv_stream_t *)pipe->to, &buf, 1, written) == 0)
    return;
  free(piece);
  end(pipe->pair, true);
}

/* When a piece that came now is passed on. */
static uint64_t due(struct pipe *pipe, size_t n)
{
  const struct way *way = pipe->way;
  uint64_t now = uv_now(loop), at = now + way->delay + draw(way->jitter + 1);
  if (way->rate) {
    uint64_t begin = pipe->free_at > now ? pipe->free_at : now;
    pipe->free_at = begin + n * 1000 / (way->rate * 1024);
    if (at < pipe->free_at) at = pipe->free_at;
  }
  if (draw(1000) < way->stall) {
    counts.stalls++;
    at += RTO_MS + draw(2 * RTO_MS);
  }
  if (at < pipe->due) at = pipe->due;
  return pipe->due = at;
}

static struct pipe *pipe_from(uv_handle_t *handle)
{
  struct pair *pair = handle->data;
  return handle == (uv_handle_t *)&pair->in ? &pair->there : &pair->back;
}

static void room(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
  (void)handle;
  (void)hint;
  struct piece *piece = must(malloc(sizeof(*piece) + PIECE));
  *buf = uv_buf_init(piece->data, PIECE);
}

static void came(uv_stream_t *from, ssize_t n, const uv_buf_t *buf)
{
  struct pipe *pipe = pipe_from((uv_handle_t *)from);
  struct piece *piece =
      buf->base ? (struct piece *)(buf->base - offsetof(struct piece, data))
                : NULL;
  if (n <= 0) {
    free(piece);
    if (n == 0) return;
    uv_read_stop(from);
    pipe->ended = true;
    pump(pipe);
    return;
  }
  *piece = (struct piece){.pipe = pipe, .n = (size_t)n};
  piece->due = due(pipe, piece->n);
  pipe->held += piece->n;
  if (pipe->last) pipe->last->next = piece;
  pipe->last = piece;
  if (pipe->first == NULL) pipe->first = piece;
  if (pipe->held >= WINDOW) {
    uv_read_stop(from);
    pipe->reading = false;
  }
  pump(pipe);
}

static void take(struct pipe *pipe)
{
  if (pipe->reading || pipe->ended || pipe->held >= WINDOW / 2) return;
  pipe->reading = uv_read_start((uv_stream_t *)pipe->from, room, came) == 0;
  if (!pipe->reading) end(pipe->pair, true);
}

/* ---- connections ------------------------------------------------------- */

static void connected(uv_connect_t *connect, int status)
{
  struct pair *pair = connect->data;
  if (pair->ending) return;
  if (status != 0) {
    end(pair, true);
    return;
  }
  pair->connected = true;
  uv_tcp_nodelay(&pair->out, 1);
  take(&pair->back);
  pump(&pair->there);
}

/* Goes on to the other node, unless its answer could not come back. */
static void dial(struct pair *pair)
{
  if (pair->dialling || pair->ending || pair->there.way->hold ||
      pair->back.way->hold)
    return;
  pair->dialling = true;
  pair->connect.data = pair;
  if (uv_tcp_connect(&pair->connect, &pair->out,
                     (const struct sockaddr *)&pair->link->target,
                     connected) != 0)
    end(pair, true);
}

static void pipe_init(struct pair *pair, struct pipe *pipe, struct way *way)
{
  pipe->pair = pair;
  pipe->way = way;
  uv_timer_init(loop, &pipe->timer);
  pipe->timer.data = pair;
  pair->handles++;
}

static void dialled(uv_stream_t *listener, int status)
{
  struct link *link = listener->data;
  if (status != 0) return;
  struct pair *pair = must(calloc(1, sizeof(*pair)));
  pair->link = link;
  pair->next = pairs;
  pairs = pair;
  pipe_init(pair, &pair->there, &ways[link->from][link->to]);
  pipe_init(pair, &pair->back, &ways[link->to][link->from]);
  pair->there.from = pair->back.to = &pair->in;
  pair->there.to = pair->back.from = &pair->out;
  uv_tcp_init(loop, &pair->in);
  uv_tcp_init(loop, &pair->out);
  pair->in.data = pair->out.data = pair;
  pair->handles += 2;
  counts.connections++;
  bool refused = pair->there.way->refuse || pair->back.way->refuse;
  if (uv_accept(listener, (uv_stream_t *)&pair->in) != 0 || refused) {
    counts.refused += refused;
    end(pair, true);
    return;
  }
  uv_tcp_nodelay(&pair->in, 1);
  take(&pair->there);
  dial(pair);
}

/* After a change of ways: what was held goes on. */
static void look(void)
{
  for (struct pair *pair = pairs; pair; pair = pair->next) {
    if (pair->there.way->refuse || pair->back.way->refuse) {
      end(pair, true);
      continue;
    }
    dial(pair);
    pump(&pair->there);
    pump(&pair->back);
  }
}

/* ---- commands ---------------------------------------------------------- */

static const char *make_link(char **words)
{
  struct link *link = must(calloc(1, sizeof(*link)));
  struct sockaddr_in at;
  link->from = number(words[1]);
  link->to = number(words[2]);
  if (link->from < 0 || link->to < 0 || n_links == NODES * NODES ||
      uv_ip4_addr(words[3], atoi(words[4]), &at) != 0 ||
      uv_ip4_addr(words[5], atoi(words[6]), &link->target) != 0) {
    free(link);
    return "bad link";
  }
  uv_tcp_init(loop, &link->listener);
  link->listener.data = link;
  links[n_links++] = link;
  int rc = uv_tcp_bind(&link->listener, (const struct sockaddr *)&at, 0);
  if (rc == 0) rc = uv_listen((uv_stream_t *)&link->listener, 64, dialled);
  return rc == 0 ? "ok" : uv_strerror(rc);
}

static bool set(struct way *way, const char *word, unsigned value)
{
  struct {
    const char *name;
    unsigned *field;
  } fields[] = {{"delay", &way->delay},  {"jitter", &way->jitter},
                {"rate", &way->rate},    {"stall", &way->stall},
                {"reset", &way->reset},  {"hold", &way->hold},
                {"refuse", &way->refuse}};
  if (strcmp(word, "calm") == 0) *way = (struct way){0};
  for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
    if (strcmp(fields[i].name, word) == 0) {
      *fields[i].field = value;
      return true;
    }
  return strcmp(word, "calm") == 0;
}

static bool is(int node, const char *name)
{
  return strcmp(name, "*") == 0 || strcmp(names[node], name) == 0;
}

static const char *change_ways(char **words, int n)
{
  for (int i = 0; i < n_names; i++)
    for (int j = 0; j < n_names; j++) {
      if (!is(i, words[1]) || !is(j, words[2])) continue;
      for (int k = 3; k + 1 < n; k += 2)
        if (!set(&ways[i][j], words[k], (unsigned)atoi(words[k + 1])))
          return "no such word";
    }
  look();
  return "ok";
}

static const char *break_pairs(char **words)
{
  for (struct pair *pair = pairs; pair; pair = pair->next)
    if (is(pair->link->from, words[1]) && is(pair->link->to, words[2]) &&
        !pair->ending) {
      counts.resets++;
      end(pair, true);
    }
  return "ok";
}

static void command(char *line)
{
  char *words[32], *rest = NULL, said[200];
  int n = 0;
  for (char *w = strtok_r(line, " \n", &rest); w && n < 32;
       w = strtok_r(NULL, " \n", &rest))
    words[n++] = w;
  const char *answer = "what?";
  if (n == 7 && strcmp(words[0], "link") == 0) answer = make_link(words);
  if (n >= 5 && n % 2 && strcmp(words[0], "way") == 0)
    answer = change_ways(words, n);
  if (n == 3 && strcmp(words[0], "break") == 0) answer = break_pairs(words);
  if (n == 1 && strcmp(words[0], "counts") == 0) {
    snprintf(
        said, sizeof(said),
        "connections %llu refused %llu bytes %llu stalls %llu resets %llu",
        (unsigned long long)counts.connections,
        (unsigned long long)counts.refused, (unsigned long long)counts.bytes,
        (unsigned long long)counts.stalls, (unsigned long long)counts.resets);
    answer = said;
  }
  printf("%s\n", answer);
  fflush(stdout);
}

static void input_room(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
  static char room_[1024];
  (void)handle;
  (void)hint;
  *buf = uv_buf_init(room_, sizeof(room_));
}

static void input(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
  static char line[1024];
  static size_t used;
  (void)stream;
  if (n < 0) exit(0);
  for (ssize_t i = 0; i < n; i++) {
    if (used < sizeof(line) - 1) line[used++] = buf->base[i];
    if (buf->base[i] != '\n') continue;
    line[used] = 0;
    used = 0;
    command(line);
  }
}

int main(int argc, char **argv)
{
  static uv_pipe_t in;
  seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
  signal(SIGPIPE, SIG_IGN); /* an end may go while it is written to */
  loop = uv_default_loop();
  uv_pipe_init(loop, &in, 0);
  if (uv_pipe_open(&in, 0) != 0 ||
      uv_read_start((uv_stream_t *)&in, input_room, input) != 0) {
    fprintf(stderr, "relay: the input is no pipe\n");
    return 2;
  }
  return uv_run(loop, UV_RUN_DEFAULT);
}
