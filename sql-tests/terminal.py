# A terminal for a program: what it shows, as text.
#
#   python3 terminal.py COLUMNS ROWS COMMAND...
#
# Reads orders, one a line, and answers each, ending with a line "=end=":
#
#   screen           the rows as they are now, without spaces at their ends
#   size C R         the window becomes that large
#   type TEXT        keys
#   signal NAME      to the program
#   state            what the program has left of the terminal: "alternate" or
#                    "normal" screen, cursor "shown" or "hidden", "raw" or
#                    "cooked", how often a line was scrolled, what it could not
#                    make sense of
#   ended            "no", or "exit STATUS" or "signal NUMBER"
#   stopped          whether it stands still
#   cut              the terminal goes away
#
# It knows what a full-screen program needs and nothing else: places, clearing,
# looks (which it ignores), the alternate screen, the cursor.

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import unicodedata

CSI = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Screen:
    def __init__(self, columns, rows):
        self.resize(columns, rows)
        self.alternate = self.hidden = False
        self.scrolled = 0
        self.unknown = []
        self.left = ""

    def resize(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.x = self.y = 0

    def put(self, c):
        wide = 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if self.x + wide > self.columns:
            self.newline()
            self.x = 0
        for i in range(wide):
            self.cells[self.y][self.x + i] = c if i == 0 else ""
        self.x += wide

    def newline(self):
        if self.y + 1 < self.rows:
            self.y += 1
        else:
            self.scrolled += 1
            self.cells.pop(0)
            self.cells.append([" "] * self.columns)

    def clear(self, row, begin):
        for x in range(begin, self.columns):
            self.cells[row][x] = " "

    def control(self, private, numbers, what):
        n = [int(x) if x else 0 for x in numbers.split(";")]
        if private and what in "hl" and n[0] in (25, 1049):
            if n[0] == 25:
                self.hidden = what == "l"
            else:
                self.alternate = what == "h"
        elif what == "H":
            n += [1] * (2 - len(n))
            self.y = min(max(n[0], 1), self.rows) - 1
            self.x = min(max(n[1], 1), self.columns) - 1
        elif what == "K" and n[0] == 0:
            self.clear(self.y, min(self.x, self.columns))
        elif what == "J" and n[0] in (0, 2):
            if n[0] == 0:
                self.clear(self.y, min(self.x, self.columns))
            for y in range(self.y + 1 if n[0] == 0 else 0, self.rows):
                self.clear(y, 0)
        elif what != "m":
            self.unknown.append(private + numbers + what)

    def feed(self, text):
        text = self.left + text
        self.left = ""
        at = 0
        while at < len(text):
            c = text[at]
            if c == "\x1b":
                found = CSI.match(text, at)
                if found:
                    self.control(*found.groups())
                    at = found.end()
                    continue
                if len(text) - at < 32:
                    self.left = text[at:]
                    return
                self.unknown.append("escape")
            elif c == "\n":
                self.newline()
            elif c == "\r":
                self.x = 0
            elif c < " ":
                self.unknown.append("%02x" % ord(c))
            else:
                self.put(c)
            at += 1

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)


def set_size(fd, columns, rows):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns,
                                                    0, 0))


def is_raw(fd):
    flags = termios.tcgetattr(fd)[3]
    return not flags & (termios.ICANON | termios.ECHO)


class Terminal:
    def __init__(self, columns, rows, command):
        self.screen = Screen(columns, rows)
        self.master, self.slave = pty.openpty()
        set_size(self.master, columns, rows)
        self.ended = None
        self.is_stopped = False
        self.pending = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(self.slave, fd)
            os.closerange(3, 64)
            os.execvp(command[0], command)

    def read(self):
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        self.pending += data
        # A character may be cut in two.
        for cut in range(len(self.pending), max(len(self.pending) - 4, -1), -1):
            try:
                text = self.pending[:cut].decode("utf-8")
            except UnicodeDecodeError:
                continue
            self.pending = self.pending[cut:]
            self.screen.feed(text)
            return
        self.screen.unknown.append("no UTF-8")
        self.pending = b""

    def look(self):
        if self.ended is not None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED |
                                 os.WCONTINUED)
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            self.is_stopped = True
        elif os.WIFCONTINUED(status):
            self.is_stopped = False
        elif os.WIFSIGNALED(status):
            self.ended = "signal %d" % os.WTERMSIG(status)
        else:
            self.ended = "exit %d" % os.WEXITSTATUS(status)

    def order(self, line):
        what, _, rest = line.partition(" ")
        self.look()
        if what == "screen":
            return self.screen.text()
        if what == "size":
            columns, rows = map(int, rest.split())
            self.screen.resize(columns, rows)
            set_size(self.master, columns, rows)
        elif what == "type":
            os.write(self.master, rest.encode().decode("unicode_escape")
                     .encode("latin-1"))
        elif what == "signal":
            os.kill(self.pid, getattr(signal, "SIG" + rest))
        elif what == "state":
            s = self.screen
            return "%s %s %s %d %s" % (
                "alternate" if s.alternate else "normal",
                "hidden" if s.hidden else "shown",
                "raw" if is_raw(self.slave) else "cooked",
                s.scrolled, " ".join(s.unknown) or "-")
        elif what == "ended":
            return self.ended or "no"
        elif what == "stopped":
            return "yes" if self.is_stopped else "no"
        elif what == "cut":
            os.close(self.slave)
            os.close(self.master)
            self.master = -1
        else:
            return "unknown order"
        return ""

    def run(self):
        orders = b""
        while True:
            fds = [0] + ([self.master] if self.master >= 0 else [])
            ready, _, _ = select.select(fds, [], [], 0.1)
            if self.master in ready:
                self.read()
            if 0 not in ready:
                continue
            data = os.read(0, 65536)
            if not data:
                break
            orders += data
            while b"\n" in orders:
                line, orders = orders.split(b"\n", 1)
                # What has come by now is seen first.
                while self.master >= 0 and select.select(
                        [self.master], [], [], 0.02)[0] and not self.ended:
                    self.read()
                    self.look()
                print(self.order(line.decode()), "=end=", sep="\n",
                      flush=True)
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)


Terminal(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]).run()
