# SPDX-License-Identifier: Apache-2.0
"""What a destination lacks, sent in the place of a source whose memory this test plays."""

import contextlib
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, qemu_process, resending
from nova_enlightened.stream import encode
from nova_enlightened.stream import events as ev
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.stream.states import Channel
from nova_enlightened.stream.wire import CommandKind

UUID = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
AT = 0x7F0000000000
PAGES = 128
RAM = {"section": 2, "blocks": [["pc.ram", PAGES * 4096, 4096]]}
LACKS = (0, 1, 100)
# As QEMU 10.0 tells it.
BLOCKS = f"""\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 {PAGES * 4096:#018x} {PAGES * 4096:#018x} {AT:#018x}  rw
"""  # noqa: E501


class Domain:
    def UUIDString(self) -> str:
        return UUID

    def name(self) -> str:
        return "web"


class Destination:
    """Behind the relay's socket: takes what comes, and says what a QEMU would."""

    def __init__(self, path: pathlib.Path, status: int = 0, channels: int = 1) -> None:
        self.pages: list[int] = []
        self.received = b""
        self._status = status
        self._channels = channels
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            main, _ = self._listener.accept()
            stack.enter_context(main)
            stream = MigrationStream(
                Channel.RESUMED, ram_section_id=2, blocks={"pc.ram": PAGES * 4096}
            )
            while data := main.recv(1 << 16):
                self.received += data
                stream.receive_data(data)
                while (event := stream.next_event()) is not ev.NEED_DATA:
                    if isinstance(event, ev.Command) and event.kind is CommandKind.POSTCOPY_RESUME:
                        for _ in range(self._channels - 1):
                            stack.enter_context(self._listener.accept()[0])
                    main.sendall(self._answer(event))

    def _answer(self, event: ev.Event) -> bytes:
        match event:
            case ev.Command(kind=CommandKind.RECV_BITMAP):
                bits = sum(1 << page for page in range(PAGES) if page not in LACKS)
                return encode.recv_bitmap("pc.ram", bits.to_bytes(PAGES // 8, "little"))
            case ev.Command(kind=CommandKind.POSTCOPY_RESUME):
                return encode.resume_ack()
            case ev.RamPages():
                self.pages += [int(offset) // 4096 for offset in event.offsets]
            case ev.EndOfStream():
                return encode.shut(self._status)
        return b""


class Stage:
    """QEMU at the source, and the relay's socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
        self.path = tmp_path / "relay.sock"
        self.preempts = False
        self.blocks = BLOCKS
        self.destination: Destination | None = None
        (tmp_path / "web.pid").write_text("4711\n")
        monkeypatch.setattr(qemu_process, "PID_DIRECTORY", str(tmp_path))
        monkeypatch.setattr(qemu_monitor, "ask_in_words", lambda domain, words: self.blocks)
        monkeypatch.setattr(qemu_monitor, "has_capability", lambda domain, name: self.preempts)

    def resend(self, ram: dict[str, Any] = RAM, **destination: int) -> Destination:
        self.destination = Destination(self.path, **destination)
        resending.resend(Domain(), str(self.path), ram, self.read)
        return self.destination

    @staticmethod
    def read(pid: int, uuid: str, address: int, length: int) -> bytes:
        assert (pid, uuid) == (4711, UUID)
        first = (address - AT) // 4096
        return b"".join(bytes([page]) * 4096 for page in range(first, first + length // 4096))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Stage]:
    made = Stage(monkeypatch, tmp_path)
    yield made
    if made.destination is not None:
        made.destination.end()


def test_the_destination_is_given_all_that_it_lacks(stage: Stage) -> None:
    destination = stage.resend()
    assert destination.pages == list(LACKS)
    for page in LACKS:
        assert bytes([page]) * 4096 in destination.received
    assert bytes([50]) * 4096 not in destination.received


def test_a_destination_with_two_channels_is_given_both(stage: Stage) -> None:
    stage.preempts = True
    assert stage.resend(channels=2).pages == list(LACKS)


def test_a_destination_that_says_it_failed_has_not_taken_it(stage: Stage) -> None:
    with pytest.raises(exception.LibvirtError, match="error 1"):
        stage.resend(status=1)


def ended(*_: object) -> bytes:
    raise ProcessLookupError("no such process")


def test_memory_that_cannot_be_read_is_said_to(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "read", staticmethod(ended))
    with pytest.raises(exception.LibvirtError, match="no such process"):
        stage.resend()


def test_a_qemu_that_does_not_tell_where_its_memory_is_is_not_guessed_at(stage: Stage) -> None:
    stage.blocks = "pc.ram    4 KiB  0x0000000000000000 0x0000000000080000 0x0000000000080000\n"
    with pytest.raises(exception.LibvirtError, match="where its memory is"):
        stage.resend()


def test_a_block_of_another_length_than_the_streams_is_not_read(stage: Stage) -> None:
    longer = {"section": 2, "blocks": [["pc.ram", 2 * PAGES * 4096, 4096]]}
    with pytest.raises(exception.LibvirtError):
        stage.resend(longer)


@pytest.mark.parametrize("ram", [{}, {"section": 2, "blocks": [["pc.ram"]]}, {"section": 2}])
def test_a_record_that_is_damaged_sends_nothing(stage: Stage, ram: dict[str, Any]) -> None:
    with pytest.raises(exception.LibvirtError, match="record"):
        resending.resend(Domain(), str(stage.path), ram, stage.read)


def test_a_relay_that_ends_meanwhile_is_an_error(stage: Stage) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(str(stage.path))
        listener.listen()
        closer: Callable[[], None] = lambda: listener.accept()[0].close()  # noqa: E731
        thread = threading.Thread(target=closer)
        thread.start()
        with pytest.raises(exception.LibvirtError, match="not taken"):
            resending.resend(Domain(), str(stage.path), RAM, stage.read)
        thread.join()
