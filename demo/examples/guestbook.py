#!/usr/bin/python3
"""A web application whose database is on several machines: a guest book.

    guestbook.py LIBRARY FILE serve HTTP-PORT HOST:PORT [TOKEN]
    guestbook.py LIBRARY FILE invite NAME            prints a token for a server

GET /count, GET /role, POST /ID with an entry. The first server makes a new
cluster, each other one is given a token; started again, none needs it. Behind
any load balancer they are one application. guests.py runs three of them.
"""
import http.server
import os
import sqlite3
import sys

library, file, what, *arguments = sys.argv[1:]


def sql(statement, *values):
    db = sqlite3.connect(file, timeout=10, isolation_level=None)
    try:
        return db.execute(statement, values).fetchone()
    finally:
        db.close()


class Book(http.server.BaseHTTPRequestHandler):
    def answer(self, statement, *values):
        try:
            status, row = 200, sql(statement, *values) or ("entered",)
        except sqlite3.Error as e:
            # It was not written, or nobody knows yet. The guest asks again, of
            # any server: an ID is entered once.
            status, row = 503, (str(e),)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(str(row[0]).encode())

    def do_GET(self):
        self.answer("SELECT quorate_role()" if self.path == "/role" else
                    "SELECT count(*) FROM book")

    def do_POST(self):
        entry = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer("INSERT OR IGNORE INTO book VALUES(?, ?)", self.path, entry)

    def log_message(self, *_):
        pass


# Once in a process: whatever it opens later has the extension.
db = sqlite3.connect(":memory:")
db.enable_load_extension(True)
db.load_extension(library)
if what == "invite":
    print(sql("SELECT quorate_invite(?)", arguments[0])[0])
    sys.exit()
port, listen, *token = arguments
new = not os.path.exists(file + "-quorate")
if new and token:
    db.execute("SELECT quorate_join(?, ?, 'listen', ?)",
               (file, token[0], listen)).fetchone()
elif new:
    db.execute("SELECT quorate_bootstrap(?, 'name', 'n1', 'listen', ?)",
               (file, listen)).fetchone()
    sql("CREATE TABLE book(id PRIMARY KEY, entry)")
sql("SELECT 1 FROM sqlite_schema LIMIT 1")  # the node runs from here on
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Book).serve_forever()
