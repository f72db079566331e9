# SPDX-License-Identifier: Apache-2.0
"""A small web application behind nginx: articles from a database on the disk, rendered in Python.

``webapp.py prepare`` makes the database; ``webapp.py serve`` answers on a unix socket:

* ``/articles/N``: one article, with what was read before it by whom, kept in memory;
* ``/token``: a value drawn when the process began, which is nowhere but in RAM.
"""

import html
import os
import random
import sqlite3
import string
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

DATABASE = "/var/lib/webapp/articles.db"
SOCKET = "/run/webapp.sock"
ARTICLES = 12000
CACHED = 8000
Article = tuple[str, list[str]]
PAGE = string.Template(
    "<!DOCTYPE html><html><head><title>$title</title></head><body><h1>$title</h1>"
    "<p>read $reads times, by $readers readers</p>$body<ul>$others</ul></body></html>"
)


def prepare() -> None:
    """Write the database: text of words drawn at random, the same every time."""
    drawn = random.Random(1)
    letters = string.ascii_lowercase
    words = ["".join(drawn.choices(letters, k=drawn.randint(2, 11))) for _ in range(20000)]
    os.makedirs(os.path.dirname(DATABASE), exist_ok=True)
    with sqlite3.connect(DATABASE) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("CREATE TABLE articles (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
        for number in range(ARTICLES):
            body = " ".join(drawn.choices(words, k=500))
            title = " ".join(drawn.choices(words, k=5))
            connection.execute("INSERT INTO articles VALUES (?, ?, ?)", (number, title, body))
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Application:
    """The application: WSGI, one thread."""

    def __init__(self) -> None:
        self.token = os.urandom(16).hex()
        self.database = sqlite3.connect(
            f"file:{DATABASE}?mode=ro", uri=True, check_same_thread=False
        )
        self.reads: Counter[int] = Counter()
        self.readers: dict[int, set[str]] = {}
        self.cache: dict[int, Article] = {}
        for number in range(CACHED):
            self.article(number)

    def article(self, number: int) -> "Article | None":
        """Title and paragraphs of one; from memory if it was wanted before."""
        if number not in self.cache:
            found = self.database.execute(
                "SELECT title, body FROM articles WHERE id = ?", (number,)
            ).fetchone()
            if found is None:
                return None
            if len(self.cache) > 2 * CACHED:
                self.cache.clear()
            words = found[1].split()
            parts = [" ".join(words[at : at + 50]) for at in range(0, len(words), 50)]
            self.cache[number] = (found[0], parts)
        return self.cache[number]

    def page(self, number: int, reader: str) -> "str | None":
        """The article's page, or None where there is none of that number."""
        article = self.article(number)
        if article is None:
            return None
        self.reads[number] += 1
        readers = self.readers.setdefault(number, set())
        readers.add(reader)
        others = "".join(
            f"<li>{html.escape(other[0])}</li>"
            for step in range(3)
            if (other := self.article((number * 7 + step) % CACHED))
        )
        body = "".join(f"<p>{html.escape(part)}</p>" for part in article[1])
        return PAGE.substitute(
            title=html.escape(article[0]), body=body, others=others,
            reads=self.reads[number], readers=len(readers),
        )  # fmt: skip

    def __call__(
        self, environ: "dict[str, Any]", start_response: "Callable[..., Any]"
    ) -> "list[bytes]":
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        text = None
        if path == "/token":
            text = self.token
        elif path.startswith("/articles/") and path[10:].isdigit():
            text = self.page(int(path[10:]), environ.get("HTTP_X_READER", ""))
        status = "404 Not Found" if text is None else "200 OK"
        data = (text or "no such page").encode()
        headers = [("Content-Type", "text/html"), ("Content-Length", str(len(data)))]
        start_response(status, headers)
        return [data]


def serve() -> None:
    """Answer until ended."""
    import waitress  # type: ignore[import-untyped, import-not-found, unused-ignore]

    waitress.serve(
        Application(), unix_socket=SOCKET, unix_socket_perms="666", threads=1, _quiet=True
    )


if __name__ == "__main__":
    {"prepare": prepare, "serve": serve}[sys.argv[1]]()
