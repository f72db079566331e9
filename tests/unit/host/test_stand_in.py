# SPDX-License-Identifier: Apache-2.0
"""A source whose post-copy has paused, and that is given a recovery; this test plays its QEMU."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, stand_in
from nova_enlightened.stream import encode
from nova_enlightened.stream.return_path import NEED_DATA, RecvBitmap, ResumeAck, ReturnPath
from nova_enlightened.stream.wire import CommandKind

# As QEMU 7.2 tells it.
BLOCKS = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000000042000 0x0000000000042000
    /rom@etc/acpi/tables    4 KiB  0x0000000000080000 0x0000000000020000 0x0000000000200000
"""
RESUME = encode.command(CommandKind.POSTCOPY_RESUME)

Play = Callable[[socket.socket], None]


class Source:
    """QEMU: `play` is what its migration does with the connection that it is handed."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._handed = -1
        self._thread: threading.Thread | None = None
        self.status = "postcopy-paused"

    def ask(self, domain: Any, command: str, descriptors: Sequence[int] = (), **words: Any) -> Any:
        match command:
            case "getfd":
                self._handed = os.dup(descriptors[0])
            case "migrate":
                assert words["resume"] is True
                self._thread = threading.Thread(target=self._migrate)
                self._thread.start()
            case "query-migrate":
                return {"status": self.status}
        return {}

    def words(self, domain: Any, words: str) -> str:
        assert words == "info ramblock"
        return BLOCKS

    def _migrate(self) -> None:
        with socket.socket(fileno=self._handed) as connection, contextlib.suppress(OSError):
            self._play(connection)

    def end(self) -> None:
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Play], Source]]:
    made: list[Source] = []

    def make(play: Play) -> Source:
        made.append(Source(play))
        monkeypatch.setattr(qemu_monitor, "ask", made[-1].ask)
        monkeypatch.setattr(qemu_monitor, "ask_in_words", made[-1].words)
        return made[-1]

    monkeypatch.setattr(stand_in, "RECOVERS_S", 0.3)
    yield make
    for one in made:
        one.end()


def heard(connection: socket.socket, count: int) -> list[Any]:
    """So many messages of the return path."""
    path = ReturnPath()
    events: list[Any] = []
    while len(events) < count:
        path.receive_data(connection.recv(1 << 16))
        while (event := path.next_event()) is not NEED_DATA:
            events.append(event)
    return events


def test_it_is_told_that_nothing_has_come_and_is_under_way_again(
    source: Callable[[Play], Source],
) -> None:
    told: list[Any] = []

    def play(connection: socket.socket) -> None:
        connection.sendall(encode.recv_bitmap_request("pc.ram"))
        connection.sendall(encode.recv_bitmap_request("/rom@etc/acpi/tables"))
        told.extend(heard(connection, 2))
        connection.sendall(RESUME)
        told.extend(heard(connection, 1))
        made.status = "postcopy-active"

    made = source(play)
    with stand_in.recovered(None):
        made.end()
    # A bit for each page of 4 KiB, up to whole words of 64: 66 pages are two of them.
    bitmaps = [(one.block, bytes(one.bitmap)) for one in told if isinstance(one, RecvBitmap)]
    assert bitmaps == [("pc.ram", bytes(16)), ("/rom@etc/acpi/tables", bytes(8))]
    assert isinstance(told[-1], ResumeAck)


def test_nothing_of_its_pages_is_read(source: Callable[[Play], Source]) -> None:
    """It would come to its end, and libvirt would end it."""
    filled = threading.Event()

    def play(connection: socket.socket) -> None:
        connection.sendall(RESUME)
        heard(connection, 1)
        made.status = "postcopy-active"
        connection.settimeout(0.1)
        try:
            while True:
                connection.send(bytes(1 << 16))
        except TimeoutError:
            filled.set()

    made = source(play)
    with stand_in.recovered(None):
        made.end()
    assert filled.is_set()


def silent(connection: socket.socket) -> None:
    connection.recv(1)


def closed(connection: socket.socket) -> None:
    connection.close()


def asks_about_another(connection: socket.socket) -> None:
    connection.sendall(encode.recv_bitmap_request("mem7"))
    connection.recv(1)


def answers_and_stays_paused(connection: socket.socket) -> None:
    connection.sendall(RESUME)
    connection.recv(1)


@pytest.mark.parametrize("play", [silent, closed, asks_about_another, answers_and_stays_paused])
def test_one_that_does_not_recover_is_said_to(source: Callable[[Play], Source], play: Play) -> None:
    source(play)
    with pytest.raises(exception.LibvirtError, match="does not recover"):
        with stand_in.recovered(None):
            pytest.fail("it is not under way")
