#!/usr/bin/python3
"""Three servers of guestbook.py, and four guests who write to any of them. One
server is killed with -9 and started again: no guest notices.

    guests.py LIBRARY
"""
import concurrent.futures
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

top = tempfile.mkdtemp(prefix="quorate-guests.")
names = ["n1", "n2", "n3"]
http = {n: 30000 + os.getpid() % 200 * 6 + i for i, n in enumerate(names)}
server, slowest, entered = {}, [0], threading.Semaphore(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def book(name, *arguments):
    return [sys.executable, os.path.dirname(__file__) + "/guestbook.py",
            sys.argv[1], f"{top}/{name}.db", *arguments]


def ask(path, entry=None, of=names):
    """The answer of any server that has one."""
    for _ in range(600):
        url = f"http://127.0.0.1:{http[random.choice(of)]}{path}"
        try:
            with urllib.request.urlopen(url, entry, 20) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"no answer to {path}")


def start(name, *token):
    server[name] = subprocess.Popen(book(
        name, "serve", str(http[name]), f"127.0.0.1:{http[name] + 3}", *token))
    ask("/count", of=[name])


def guest(number):
    for i in range(100):
        began = time.monotonic()
        ask(f"/{number}.{i}", b"I was here")
        slowest[0] = max(slowest[0], time.monotonic() - began)
        entered.release()


try:
    start("n1")
    for name in "n2", "n3":
        start(name, subprocess.check_output(book("n1", "invite", name),
                                            text=True).strip())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        guests = pool.map(guest, range(4))
        for _ in range(100):
            entered.acquire(timeout=60)
        leader = next(n for _ in range(100) for n in names
                      if ask("/role", of=[n]) == "leader")
        server[leader].kill()
        server[leader].wait()
        print(f"{leader}, the leader, was killed among 400 entries")
    list(guests)  # raises what one of them did
    start(leader)
    print("entries at each:", *(ask("/count", of=[n]) for n in names))
    print(f"the slowest took {slowest[0]:.1f} s", file=sys.stderr)
finally:
    for process in server.values():
        process.kill()
        process.wait()
    shutil.rmtree(top)
