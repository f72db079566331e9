# SPDX-License-Identifier: Apache-2.0
"""As much of Nova's HTTP API as the remediator uses, for openstacksdk to speak to.

Shapes as in Nova 34 (api-ref: servers/detail, os-migrateLive, os-migrations).
"""

import dataclasses
import datetime
import http.server
import json
import re
import threading
import urllib.parse
from typing import Any

ERRORS = {404: "itemNotFound", 409: "conflictingRequest", 400: "badRequest", 503: "unavailable"}


@dataclasses.dataclass
class FakeServer:
    """A row of the servers table."""

    uuid: str
    host: str
    task: str | None = None
    extra_specs: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


class NovaState:
    """Servers and migrations; safe for threads.

    :param script: statuses that a migration goes through, one at each look.
    """

    def __init__(self, script: tuple[str, ...] = ("running", "completed")) -> None:
        self.lock = threading.RLock()
        self.servers: dict[str, FakeServer] = {}
        self.migrations: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.script = script
        self.answer_requests = threading.Event()
        """Clear: a live migration is accepted, but its caller is kept waiting."""
        self.answer_requests.set()
        self.asked = threading.Event()
        self.going = threading.Event()
        """Clear: migrations stay in the status they are in."""
        self.going.set()
        self.status = 0
        """What every request is answered with, where not 0."""

    def add(self, server: FakeServer) -> None:
        self.servers[server.uuid] = server

    def live_migrate(self, uuid: str) -> int:
        """What the API does, and the conductor behind it."""
        with self.lock:
            server = self.servers.get(uuid)
            if server is None:
                return 404
            if server.task is not None:
                return 409
            self.requests.append(uuid)
            server.task = "migrating"
            self.migrations.append(
                {
                    "id": len(self.migrations) + 1,
                    "uuid": f"00000000-0000-0000-0000-{len(self.migrations):012}",
                    "instance_uuid": uuid,
                    "source_compute": server.host,
                    "dest_compute": "compute2",
                    "migration_type": "live-migration",
                    "status": "accepted",
                    "created_at": now(),
                    "updated_at": None,
                }
            )
        return 202

    def look(self) -> None:
        """Migrations go on, a status at each look."""
        if not self.going.is_set():
            return
        words = ("accepted", *self.script)
        for migration in self.migrations:
            at = words.index(migration["status"])
            if at + 1 < len(words):
                migration["status"] = words[at + 1]
                migration["updated_at"] = now()
                if words[at + 1] == "completed":
                    server = self.servers[migration["instance_uuid"]]
                    server.host, server.task = "compute2", None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000000")


def shown(server: FakeServer) -> dict[str, Any]:
    """A server as ``GET /servers/detail`` shows it to an administrator."""
    return {
        "id": server.uuid,
        "name": "web",
        "status": "MIGRATING" if server.task else "ACTIVE",
        "OS-EXT-SRV-ATTR:host": server.host,
        "OS-EXT-STS:vm_state": "active",
        "OS-EXT-STS:task_state": server.task,
        "locked": False,
        "metadata": server.metadata,
        "tenant_id": "project",
        "flavor": {
            "original_name": "m1.small",
            "vcpus": 2,
            "ram": 1024,
            "disk": 1,
            "extra_specs": server.extra_specs,
        },
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    state: NovaState

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = url.path.removeprefix("/v2.1")
        state = self.state
        with state.lock:
            if state.status:
                self._answer(state.status, {})
            elif path in ("", "/"):
                self._answer(200, {"version": self._version()})
            elif path == "/servers/detail":
                found = [s for s in state.servers.values() if s.host == query.get("host")]
                assert query.get("all_tenants"), "servers of all projects are needed"
                self._answer(200, {"servers": [self._shown(server) for server in found]})
            elif path == "/os-migrations":
                assert query.get("migration_type") == "live-migration"
                state.look()
                wanted = query.get("instance_uuid")
                found_migrations = [
                    m for m in state.migrations if wanted in (None, m["instance_uuid"])
                ]
                self._answer(200, {"migrations": found_migrations})
            elif (match := re.fullmatch(r"/servers/([^/]+)", path)) is not None:
                server = state.servers.get(match[1])
                if server is None:
                    self._answer(404, {})
                else:
                    self._answer(200, {"server": self._shown(server)})
            else:
                self._answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = re.fullmatch(r"/v2.1/servers/([^/]+)/action", self.path)
        assert match is not None
        assert body["os-migrateLive"]["host"] is None
        assert body["os-migrateLive"]["block_migration"] == "auto"
        status = self.state.live_migrate(match[1])
        self.state.asked.set()
        self.state.answer_requests.wait(30)
        self._answer(status, {})

    def _version(self) -> dict[str, Any]:
        """As ``GET /v2.1/`` tells it."""
        here = f"http://{self.headers['Host']}/v2.1/"
        return {
            "id": "v2.1",
            "status": "CURRENT",
            "version": "2.100",
            "min_version": "2.1",
            "links": [{"rel": "self", "href": here}],
        }

    def _shown(self, server: FakeServer) -> dict[str, Any]:
        """A server as the microversion asked for shows it."""
        found = shown(server)
        asked = self.headers.get("OpenStack-API-Version", "compute 2.1").split(".")
        if int(asked[1]) < 61:
            del found["flavor"]["extra_specs"]
        return found

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        if status >= 400:
            body = {ERRORS.get(status, "error"): {"code": status, "message": "so it is"}}
        content = json.dumps(body).encode() if status != 202 else b""
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("OpenStack-API-Version", "compute 2.100")
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the caller was killed


class FakeNovaApi:
    """The server, on a port of its own."""

    def __init__(self, state: NovaState) -> None:
        handler = type("Bound", (Handler,), {"state": state})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v2.1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "FakeNovaApi":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
