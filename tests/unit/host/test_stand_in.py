# SPDX-License-Identifier: Apache-2.0
"""A source whose post-copy has paused, and that is given a recovery; this test plays its QEMU."""

import contextlib
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, qemu_process, stand_in
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
    """QEMU: `play` is what its migration does with the connection that it is handed, or makes.

    :ivar second: of one that has two channels, how it was connected.
    """

    def __init__(self, play: Play, preempts: bool = False) -> None:
        self._play = play
        self._handed = -1
        self._thread: threading.Thread | None = None
        self._preempts = preempts
        self._path = ""
        self.status = "postcopy-paused"
        self.second: socket.socket | None = None

    def ask(self, domain: Any, command: str, descriptors: Sequence[int] = (), **words: Any) -> Any:
        match command:
            case "getfd":
                self._handed = os.dup(descriptors[0])
            case "query-migrate-capabilities":
                return [{"capability": "postcopy-preempt", "state": self._preempts}]
            case "migrate":
                assert words["resume"] is True
                if self._preempts:
                    self._path = words["uri"].removeprefix("unix:")
                    self._handed = self.connected().detach()
                self._thread = threading.Thread(target=self._migrate)
                self._thread.start()
            case "query-migrate":
                return {"status": self.status}
        return {}

    def connected(self) -> socket.socket:
        """A channel of its own."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(self._path)
        return made

    def words(self, domain: Any, words: str) -> str:
        assert words == "info ramblock"
        return BLOCKS

    def _migrate(self) -> None:
        with socket.socket(fileno=self._handed) as connection, contextlib.suppress(OSError):
            self._play(connection)

    def end(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self.second is not None:
            self.second.close()


class Make(Protocol):
    def __call__(self, play: Play, preempts: bool = False) -> Source: ...


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Source] = []

    def make(play: Play, preempts: bool = False) -> Source:
        made.append(Source(play, preempts))
        monkeypatch.setattr(qemu_process, "let_connect", lambda domain, path: None)
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
    source: Make,
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
    with stand_in.recovered(None, ""):
        made.end()
    # A bit for each page of 4 KiB, up to whole words of 64: 66 pages are two of them.
    bitmaps = [(one.block, bytes(one.bitmap)) for one in told if isinstance(one, RecvBitmap)]
    assert bitmaps == [("pc.ram", bytes(16)), ("/rom@etc/acpi/tables", bytes(8))]
    assert isinstance(told[-1], ResumeAck)


def test_nothing_of_its_pages_is_read(source: Make) -> None:
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
    with stand_in.recovered(None, ""):
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
def test_one_that_does_not_recover_is_said_to(source: Make, play: Play) -> None:
    source(play)
    with pytest.raises(exception.LibvirtError, match="does not recover"):
        with stand_in.recovered(None, ""):
            pytest.fail("it is not under way")


def sends_two_pages(connection: socket.socket) -> None:
    """And waits for its destination's last word."""
    connection.sendall(RESUME)
    heard(connection, 1)
    pages = encode.page_header(0, "pc.ram") + bytes(4096) + encode.zero_page(4096)
    ends = encode.ram_end() + encode.footer(2)
    last = encode.ram_part(2, last=True) + ends + encode.eof()
    connection.sendall(encode.ram_part(2) + pages + ends + last)
    assert connection.recv(1) == b""


def test_all_that_it_has_is_taken_and_no_last_word_is_said(source: Make) -> None:
    made = source(sends_two_pages)
    made.status = "postcopy-active"
    with stand_in.recovered(None, "") as destination:
        destination.take_all()


def test_one_with_two_channels_is_given_both(source: Make, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "here.sock"

    def play(connection: socket.socket) -> None:
        connection.sendall(encode.recv_bitmap_request("pc.ram"))
        heard(connection, 1)
        made.second = made.connected()
        sends_two_pages(connection)

    made = source(play, preempts=True)
    made.status = "postcopy-active"
    with stand_in.recovered(None, str(path)) as destination:
        destination.take_all()
    assert made.second is not None
    assert made.second.recv(1) == b"", "closed with the other"
    assert not path.exists()


def test_one_that_ends_before_it_has_sent_all_is_said_to(source: Make) -> None:
    def play(connection: socket.socket) -> None:
        connection.sendall(RESUME)
        heard(connection, 1)

    made = source(play)
    made.status = "postcopy-active"
    with pytest.raises(exception.LibvirtError, match="does not recover"):
        with stand_in.recovered(None, "") as destination:
            destination.take_all()
