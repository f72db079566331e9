# SPDX-License-Identifier: Apache-2.0
"""A Glance of a few lines on loopback, for openstacksdk itself."""

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import openstack


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "Glance"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, value: Any = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        images = self.server.images
        if "images" not in self.path:
            here = f"http://127.0.0.1:{self.server.server_address[1]}/v2/"
            version = {"id": "v2.15", "status": "CURRENT"}
            self._answer(200, {"versions": [{**version, "links": [{"rel": "self", "href": here}]}]})
            return
        parts = urllib.parse.urlsplit(self.path).path.removeprefix("/v2/images").split("/")[1:]
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if self.server.refuses:
            self._answer(403, {"message": "not yours"})
        elif self.command == "POST":
            number = str(len(images))
            images[number] = {"id": number, "status": "queued", **json.loads(body)}
            self._answer(201, images[number])
        elif self.command == "PUT":
            self.server.contents[parts[0]] = body
            images[parts[0]]["status"] = "active"
            self._answer(204)
        elif self.command == "PATCH":
            for change in json.loads(body):
                images[parts[0]][change["path"].removeprefix("/")] = change["value"]
            self._answer(200, images[parts[0]])
        elif parts:
            self._answer(200 if parts[0] in images else 404, images.get(parts[0]))
        else:
            self._answer(200, {"images": list(images.values())})

    do_GET = do_POST = do_PUT = do_PATCH = _handle


class Glance(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.refuses = False


@contextlib.contextmanager
def glance() -> Iterator[Glance]:
    with Glance() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def connection(server: Glance) -> Any:
    """openstacksdk's, without a Keystone."""
    endpoint = f"http://127.0.0.1:{server.server_address[1]}/v2"
    return openstack.connect(
        auth_type="admin_token",
        auth={"endpoint": endpoint, "token": "secret"},
        image_endpoint_override=endpoint,
    )
