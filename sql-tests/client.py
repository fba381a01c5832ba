"""A program in Python at a file that others use, too: as clients.c.

    python3 client.py LIBRARY FILE LOG FIRST STOP
"""
import os
import random
import sqlite3
import sys
import time

library, file, log_name, first, stop_file = sys.argv[1:6]
log = os.open(log_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def note(what, number, kind, rest="0"):
    line = f"{what} {number} {time.monotonic_ns()} {kind} {rest}\n"
    os.write(log, line.encode())


def one(db, sql, *values):
    return db.execute(sql, values).fetchone()


def count(db, number):
    db.execute("BEGIN IMMEDIATE")
    (n,) = one(db, "SELECT n FROM counter")
    db.execute("INSERT INTO ledger(id, n) VALUES(?, ?)", (number, n + 1))
    db.execute("COMMIT")


def move(db, number):
    a, b = random.sample(range(20), 2)
    amount = random.randint(1, 50)
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE account SET v = v - ? WHERE id = ?", (amount, a))
    db.execute("UPDATE account SET v = v + ? WHERE id = ?", (amount, b))
    db.execute("COMMIT")


def look(db, number):
    db.execute("BEGIN")
    money = one(db, "SELECT sum(v) FROM account")[0]
    (counter,) = one(db, "SELECT n FROM counter")
    time.sleep(random.random() * 0.003)
    rows, most = one(db, "SELECT count(*), ifnull(max(n), 0) FROM ledger")
    again = one(db, "SELECT sum(v) FROM account")[0]
    db.execute("COMMIT")
    if money != 20000 or again != money or not rows == most == counter:
        return f"torn: money {money}, {again}; {counter}, {rows}, {most} rows"
    return None


def code_of(error):
    """Python before 3.11 knows the text alone, which is that of several."""
    code = {"database is locked": 5, "disk I/O error": 7946}
    return getattr(error, "sqlite_errorcode", code.get(str(error), 1))


def operate(db, number):
    kind = random.choice("cccmmi")
    note("i", number, kind)
    pause = 0.005
    try:
        wrong = {"c": count, "m": move, "i": look}[kind](db, number)
        note("o", number, "e" if wrong else "a", wrong or "0")
        pause = 0.002 + random.random() * 0.008
    except sqlite3.Error as error:
        code = code_of(error)
        if code & 0xFF == 5 or code == 7690:
            note("o", number, "f")
        elif code == 7946:
            note("o", number, "u")
        else:
            note("o", number, "e", f"{code} {error}")
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            note("o", number, "e", f"rollback: {error}")
    time.sleep(pause)


def main():
    memory = sqlite3.connect(":memory:")
    memory.enable_load_extension(True)
    memory.load_extension(library)
    memory.close()
    db = sqlite3.connect(file, timeout=3, isolation_level=None)
    number = int(first)
    while not os.path.exists(stop_file):
        operate(db, number)
        number += 1
    db.close()


main()
