# SPDX-License-Identifier: Apache-2.0
"""A QEMU that waits for a post-copy migration, played by a test."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nova_enlightened.appliance.chunks import UNIT
from nova_enlightened.stream import encode, playing
from nova_enlightened.stream.wire import RamFlag
from tests.functional.stored_appliance import SECTION, StoredAppliance

TIMEOUT_S: Final = 60.0
Place = tuple[str, int]
"""Block and byte offset."""


class IncomingQemu:
    """Listens at `path`; places pages in ``memory``, each once, as UFFDIO_COPY does."""

    def __init__(self, path: Path, appliance: StoredAppliance) -> None:
        self.appliance = appliance
        self.memory: dict[Place, bytes] = {}
        self.order: list[Place] = []
        self.zeros: set[Place] = set()
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(TIMEOUT_S)
        self.socket: socket.socket | None = None
        self._unread = b""
        self._block = ""

    def close(self) -> None:
        self.hang_up()
        self.listener.close()

    def hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    # -- the conversation -------------------------------------------------------------------

    def accept(self) -> None:
        """The player connects and says what it says first."""
        self._connect()
        opening = self.appliance.opening()
        assert self._take(len(opening)) == opening

    def loaded(self) -> None:
        """The devices are loaded: the guest executes."""
        self.say(encode.pong(playing.LOADED))

    def accept_resumed(self) -> None:
        """Another player connects, asks what is here, and goes on."""
        self._connect()
        asked = playing.bitmap_requests(self.appliance.blocks)
        assert self._take(len(asked)) == asked
        for name, content in self.appliance.memory.items():
            pages = len(content) // UNIT
            bits = bytearray(-(-pages // 64) * 8)
            for number in range(pages):
                if (name, number * UNIT) in self.memory:
                    bits[number // 8] |= 1 << number % 8
            self.say(encode.recv_bitmap(name, bytes(bits)))
        resumption = playing.resumption()
        assert self._take(len(resumption)) == resumption
        self.say(encode.resume_ack())
        part = encode.ram_part(SECTION)
        assert self._take(len(part)) == part

    def ask(self, block: str, offset: int) -> None:
        """The guest touches a page that is not here."""
        self.say(encode.request_pages(offset, UNIT, block))

    def say(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(data)

    def pages(self) -> Iterator[Place]:
        """Places as their pages come; ends with the migration, which is then answered."""
        while True:
            word = int.from_bytes(self._take(8), "big")
            flags, offset = word & 0xFFF, word & ~0xFFF
            if flags & RamFlag.EOS:
                self._end()
                return
            if not flags & RamFlag.CONTINUE:
                self._block = self._take(self._take(1)[0]).decode()
            place = self._block, offset
            assert place not in self.memory, f"{place} came twice"
            if flags & RamFlag.ZERO:
                assert self._take(1) == b"\0"
                self.memory[place] = bytes(UNIT)
                self.zeros.add(place)
            else:
                assert flags & RamFlag.PAGE
                self.memory[place] = self._take(UNIT)
            self.order.append(place)
            yield place

    def until(self, place: Place) -> None:
        """Take pages until this one is here."""
        for found in self.pages():
            if found == place:
                return
        raise AssertionError(f"{place} did not come")

    def all_pages(self) -> None:
        """Take pages to the end."""
        for _ in self.pages():
            pass

    def assert_whole(self) -> None:
        """Every page is what was captured; what did not come is zero."""
        for name, content in self.appliance.memory.items():
            for offset in range(0, len(content), UNIT):
                page = self.memory.get((name, offset), bytes(UNIT))
                assert page == content[offset : offset + UNIT], f"{name} {offset:#x}"

    def _connect(self) -> None:
        self.socket = self.listener.accept()[0]
        self.socket.settimeout(TIMEOUT_S)
        self._unread = b""

    def _end(self) -> None:
        closing = playing.closing(SECTION)[8:]
        assert self._take(len(closing)) == closing
        self.say(encode.shut(0))

    def _take(self, size: int) -> bytes:
        assert self.socket is not None
        while len(self._unread) < size:
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the player hung up")
            self._unread += data
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken
