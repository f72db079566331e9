# SPDX-License-Identifier: Apache-2.0
"""A small appliance in a directory, and HTTP servers that serve it well or badly."""

import dataclasses
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.building import DISK_GROUP, RAM_GROUP, LayerBuilder
from nova_enlightened.appliance.chunks import UNIT, ZERO
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.stream import encode, playing
from nova_enlightened.stream import events as ev

SECTION = 2
DEVICE_STATE = b"\x04device state"
CONFIGURATION = encode.configuration(ev.Configuration("pc-i440fx-7.2"))


@dataclasses.dataclass(frozen=True)
class StoredAppliance:
    """``memory``: block name to its bytes; ``disk``: of vda."""

    directory: Path
    manifest: str
    memory: dict[str, bytes]
    disk: bytes
    packs: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"file://{self.directory}"

    @property
    def blocks(self) -> tuple[ev.RamBlock, ...]:
        return tuple(ev.RamBlock(name, len(data), UNIT) for name, data in self.memory.items())

    def opening(self) -> bytes:
        """What a player says first."""
        return playing.opening(CONFIGURATION, SECTION, self.blocks, DEVICE_STATE)

    def pack(self, number: int = 0) -> Path:
        """The file of a pack."""
        return path_of(self.directory, self.packs[number])


def path_of(directory: Path, sha256: str) -> Path:
    return directory / "objects" / sha256[:2] / sha256


def put(directory: Path, data: bytes) -> Object:
    """Store an object."""
    name = hashlib.sha256(data).hexdigest()
    path_of(directory, name).parent.mkdir(parents=True, exist_ok=True)
    path_of(directory, name).write_bytes(data)
    return Object(name, len(data))


def contents(pages: int, seed: int) -> bytes:
    """Pages: a quarter of zeros, some alike, the others of noise and text."""
    dice = np.random.default_rng(seed)
    units = []
    for number in range(pages):
        match number % 4:
            case 0:
                units.append(bytes(UNIT))
            case 1:
                units.append(bytes([number % 7 + 1]) * UNIT)
            case _:
                units.append(dice.bytes(UNIT // 2) + b"text" * (UNIT // 8))
    return b"".join(units)


def make(directory: Path, pages: int = 600, disk_units: int = 300) -> StoredAppliance:
    """An appliance of two RAM blocks and one disk."""
    memory = {"pc.ram": contents(pages, 1), "vga.vram": contents(16, 2)}
    disk = contents(disk_units, 3)[: disk_units * UNIT - 512]
    space = ApplianceSpace(
        PageSpace([(name, len(data)) for name, data in memory.items()]), (("vda", len(disk)),)
    )
    builder = LayerBuilder(space.places, pack_limit=1 << 20)
    builder.add(range(space.memory_pages), b"".join(memory.values()), RAM_GROUP)
    builder.add(space.disk_range("vda"), disk + bytes(512), DISK_GROUP)
    index = builder.finish(missing=ZERO)
    packs = tuple(put(directory, pack) for pack in builder.take())
    by_name = {pack.sha256: pack for pack in packs}
    manifest = Manifest(
        name="small",
        created="2026-01-01T00:00:00Z",
        machine="pc-i440fx-7.2",
        qemu_version="7.2.0",
        cpu="",
        domain_xml="<domain/>",
        ram_blocks=space.memory.blocks(),
        page_sizes=(UNIT, UNIT),
        ram_section_id=SECTION,
        ram_setup_flags=4,
        configuration=CONFIGURATION,
        vm_description="{}",
        device_state=put(directory, DEVICE_STATE),
        base_index=put(directory, chunks.encode(index)),
        disks=space.disks,
        packs=tuple(by_name[name] for name in index.packs),
    )
    put(directory, manifest.to_bytes())
    return StoredAppliance(directory, manifest.digest, memory, disk, index.packs)


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory by ranges. ``misdeed`` names what it does wrong, to objects whose path
    contains ``victim``, ``times`` times (then it behaves).
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.misdeed = ""
        self.victim = ""
        self.times = 1 << 30
        self.requests = 0
        self.connections: set[int] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def misbehave(self, misdeed: str, victim: str = "", times: int = 1 << 30) -> None:
        with self.lock:
            self.misdeed, self.victim, self.times = misdeed, victim, times

    def takes(self, path: str) -> str:
        """What is to be done wrong with this request."""
        with self.lock:
            self.requests += 1
            if self.misdeed and self.victim in path and self.times > 0:
                self.times -= 1
                return self.misdeed
        return ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.connections.add(self.client_address[1])
        misdeed = self.server.takes(self.path) if with_body else ""
        path = self.server.directory / self.path.lstrip("/")
        if misdeed == "missing" or not path.is_file():
            self._status(404)
            return
        if misdeed == "500":
            self._status(500)
            return
        data = path.read_bytes()
        if not with_body:
            self._head(200, len(data))
            return
        words = self.headers.get("Range", "")
        first, _, last = words.removeprefix("bytes=").partition("-")
        if misdeed == "ignores ranges" or not words:
            self._head(200, len(data))
            self.wfile.write(data)
            return
        begin, end = int(first), min(int(last), len(data) - 1)
        if misdeed == "another range":
            begin, end = begin + 1, end + 1
        if begin >= len(data):
            self._status(416)
            return
        body = data[begin : end + 1]
        if misdeed == "changed":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._head(206, len(body), f"bytes {begin}-{end}/{len(data)}")
        self._send(body, misdeed)

    def _send(self, body: bytes, misdeed: str) -> None:
        if misdeed == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif misdeed == "slow":
            try:
                for number in range(len(body)):
                    self.wfile.write(body[number : number + 1])
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True
        else:
            self.wfile.write(body)

    def _head(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _status(self, status: int) -> None:
        self._head(status, 0)


@contextmanager
def served(directory: Path) -> Iterator[Server]:
    """A server of this directory, gone after the block."""
    server = Server(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
