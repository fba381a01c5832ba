/*
** table.c: one table of all figures, and how many goals were met.
*/
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>

static int met, missed, refused;

void table_head(void)
{
  printf("%-42s %10s %10s %6s %8s\n", "", "stock", "quorate", "ratio", "goal");
}

static void print_value(double value, char mark)
{
  char text[32] = "";
  if (value >= 0)
    snprintf(text, sizeof text, "%.*f%c",
             value < 10    ? 3
             : value < 100 ? 2
             : value < 1e3 ? 1
                           : 0,
             value, mark);
  printf(" %10s", text);
}

/* Whether it is met; without one, nobody asks. */
static bool print_goal(const struct row *row)
{
  bool least = row->goal == GOAL_RATIO_LEAST;
  double value = row->goal == GOAL_VALUE_MOST ? row->quorate : row->ratio;
  char text[32] = "-";
  if (row->goal != GOAL_NONE)
    snprintf(text, sizeof text, "%s %.4g%s", least ? ">=" : "<=", row->bound,
             row->goal == GOAL_VALUE_MOST ? "" : "x");
  printf(" %8s", text);
  return least ? value >= row->bound : value <= row->bound;
}

void table_row(const struct row *row)
{
  printf("%-42s", row->label);
  if (row->refused) {
    refused++;
    printf(" refused: %s\n", row->refused);
    fflush(stdout);
    return;
  }
  print_value(row->stock, row->other ? '*' : ' ');
  print_value(row->quorate, ' ');
  if (row->ratio >= 0)
    printf(" %6.2f", row->ratio);
  else
    printf(" %6s", "");
  bool ok = print_goal(row) && !row->failed;
  if (row->goal != GOAL_NONE) {
    ok ? met++ : missed++;
    fputs(ok ? "  met" : "  MISSED", stdout);
  }
  putchar('\n');
  fflush(stdout);
}

void table_note(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  fputs("    ", stdout);
  vprintf(format, args);
  putchar('\n');
  va_end(args);
}

void table_foot(double seconds)
{
  printf("\n* not stock SQLite: what the case says after \"to\"; of reads on a "
         "follower,\n  a round trip over loopback TCP and then a local read\n");
  printf("%d goals met, %d missed, %d rows refused, in %.0f s\n", met, missed,
         refused, seconds);
}
