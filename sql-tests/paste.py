# Pastes the blocks of a section of README.md into terminals, as they are.
#
#   python3 paste.py README SECTION PORT=PORT...
#
# Each terminal is a bash of its own, and what runs in it.  A terminal tells a
# program what was pasted and what was typed, and readline then takes all of it
# for one line: a command of the shell, ".open" for example, must not be among
# others, and lines for sqlite3 not behind the one that starts it.

import os
import pty
import re
import select
import signal
import sys
import time

PATIENCE = int(os.environ.get("PATIENCE", "1"))
PROMPT = "ready$ "
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\r")


class Terminal:
    def __init__(self):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", PS1=PROMPT, COLUMNS="200")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.text = ""
        self.wait("")

    def read(self):
        if not select.select([self.file], [], [], 0.05)[0]:
            return
        self.text += os.read(self.file, 65536).decode("utf-8", "replace")

    # Until there is a prompt again, and the answer before it.
    def wait(self, answer):
        end = time.time() + 40 * PATIENCE
        while time.time() < end:
            self.read()
            shown = CONTROL.sub("", self.text)
            if shown.endswith((PROMPT, "sqlite> ")) and re.search(
                answer, shown, re.S | re.M
            ):
                return
        sys.exit("not answered: %s\nbut: %s" % (answer, shown))

    def paste(self, block):
        self.text = ""
        text = block.replace("\n", "\r")
        data = ("\x1b[200~%s\x1b[201~\r" % text).encode()
        while data:
            data = data[os.write(self.file, data) :]

    # With what runs in it.
    def end(self):
        group = os.tcgetpgrp(self.file)
        if group != self.pid:
            os.killpg(group, signal.SIGKILL)
        end = time.time() + 10
        while group != self.pid and time.time() < end:
            self.read()
            if os.tcgetpgrp(self.file) == self.pid:
                break
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.file)
        os.waitpid(self.pid, 0)


def answer(block):
    lines = re.findall(r"^(?:#|--) ?(.*)$", block, re.M)
    return "".join(
        r"^%s$\n.*" % re.escape(x).replace(r"\.\.\.", "[^\n]*") for x in lines
    )


def main():
    text = open(sys.argv[1]).read()
    for pair in sys.argv[3:]:
        text = text.replace(*[":" + port for port in pair.split("=")])
    section = re.search(
        r"^## %s\n(.*?)^## " % re.escape(sys.argv[2]), text, re.S | re.M
    ).group(1)
    fence = re.compile(r"^```(?:sh|sql) (\w+)\n(.*?)\n```$", re.S | re.M)
    blocks = fence.findall(section)
    terminals = {name: Terminal() for name in ("n1", "n2", "n3", "n4")}
    try:
        for where, block in blocks:
            for name in ("n1", "n2", "n3") if where == "all" else (where,):
                terminals[name].paste(block)
                terminals[name].wait(answer(block))
    finally:
        for terminal in terminals.values():
            terminal.end()
    print("%d blocks pasted" % len(blocks))


main()
