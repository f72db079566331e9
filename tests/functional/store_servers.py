# SPDX-License-Identifier: Apache-2.0
"""Servers of appliance stores on loopback: nginx, and what stands in for Swift at the HTTP edge."""

import contextlib
import datetime
import http.client
import http.server
import json
import shutil
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"

_CONF = """\
daemon off;
master_process off;
worker_processes 1;
pid {at}/nginx.pid;
error_log {at}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {at}/access.log;
    client_body_temp_path {at}/body;
    client_max_body_size 65m;
    server {{
        listen 127.0.0.1:{port};
        root {at}/root;
        dav_methods PUT DELETE MKCOL;
        {paths}
        autoindex on;
        autoindex_format json;
        location /read-only/ {{ dav_methods off; }}
        location /locked/ {{ auth_basic x; auth_basic_user_file {at}/nobody; }}
    }}
}}
"""


class Nginx:
    """``url`` is of a directory of its own; ``requests`` reads its log."""

    def __init__(self, at: Path, port: int) -> None:
        self.at = at
        self.url = f"http://127.0.0.1:{port}/store"
        self._address = ("127.0.0.1", port)

    def requests(self, method: str) -> list[str]:
        """Paths asked for with this method and answered with success, in order."""
        self._wait_for_log()
        lines = (self.at / "access.log").read_text().splitlines()
        words = [line.split('"') for line in lines]
        return [
            one[1].split()[1]
            for one in words
            if one[1].startswith(f"{method} ") and one[2].split()[0].startswith("2")
        ]

    def _wait_for_log(self) -> None:
        """A request is logged after its answer, and before this one process answers another."""
        connection = http.client.HTTPConnection(*self._address, timeout=10)
        with contextlib.closing(connection):
            connection.request("HEAD", "/nothing")
            connection.getresponse().read()


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def nginx(at: Path, make_paths: bool = True) -> Iterator[Nginx]:
    """:param make_paths: whether a PUT makes the directories it needs."""
    if not Path(NGINX).exists():
        pytest.skip("nginx is not installed")
    port = free_port()
    for name in ("root/store", "root/read-only", "root/locked", "body"):
        (at / name).mkdir(parents=True)
    (at / "nobody").touch()
    paths = "create_full_put_path on;" if make_paths else ""
    (at / "nginx.conf").write_text(_CONF.format(at=at, port=port, paths=paths))
    process = subprocess.Popen([NGINX, "-p", str(at), "-c", f"{at}/nginx.conf"], stderr=-1)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)  # nothing tells from outside when it listens
                raise AssertionError((at / "error.log").read_text())
        yield Nginx(at, port)
    finally:
        process.terminate()
        process.communicate()


class _Swift(http.server.BaseHTTPRequestHandler):
    """As much of the Object Storage API as a store uses: containers, objects, ranges, listings."""

    protocol_version = "HTTP/1.1"
    server: "Swift"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        _, _, _, container, *rest = [*urllib.parse.unquote(parts.path).split("/", 4), "", ""]
        name = rest[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.server.failures:
            self.server.failures -= 1
            self._answer(503)
        elif self.headers.get("X-Auth-Token") != "secret":
            self._answer(401)
        elif not name:
            self._container(container, urllib.parse.parse_qs(parts.query))
        elif container not in self.server.containers:
            self._answer(404)
        else:
            self._object(self.server.containers[container], name, body)

    do_GET = do_PUT = do_HEAD = do_DELETE = _handle

    def _container(self, container: str, query: dict[str, list[str]]) -> None:
        if self.command == "PUT":
            self.server.containers.setdefault(container, {})
            self._answer(201)
        elif container not in self.server.containers:
            self._answer(404)
        else:
            prefix, marker = (query.get(key, [""])[0] for key in ("prefix", "marker"))
            found = [
                {
                    "name": name,
                    "bytes": len(body),
                    "last_modified": datetime.datetime.now(datetime.UTC)
                    .replace(tzinfo=None)
                    .isoformat(),
                }
                for name, body in sorted(self.server.containers[container].items())
                if name.startswith(prefix) and name > marker
            ][:2]  # short pages, so that there are several
            self._answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def _object(self, objects: dict[str, bytes], name: str, body: bytes) -> None:
        if self.command == "PUT":
            objects[name] = body
            self.server.puts.append(name)
            self._answer(201)
        elif name not in objects:
            self._answer(404)
        elif self.command == "DELETE":
            del objects[name]
            self._answer(204)
        elif self.command == "HEAD":
            self._answer(200, Content_Length=str(len(objects[name])))
        else:
            whole = objects[name]
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            if first >= len(whole):
                self._answer(416)
                return
            part = whole[first : last + 1]
            told = f"bytes {first}-{first + len(part) - 1}/{len(whole)}"
            self._answer(206, part, Content_Range=told)


class Swift(http.server.ThreadingHTTPServer):
    """In place of a Swift and its Keystone token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Swift)
        self.containers: dict[str, dict[str, bytes]] = {}
        self.puts: list[str] = []
        self.failures = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/AUTH_test"


@contextlib.contextmanager
def swift() -> Iterator[Swift]:
    with Swift() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
