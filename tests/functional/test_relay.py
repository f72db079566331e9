# SPDX-License-Identifier: Apache-2.0
"""Two relay processes between two QEMUs that are played by this test."""

import contextlib
import json
import os
import pathlib
import secrets
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import TARGET_PAGE
from nova_enlightened.stream import encode
from nova_enlightened.stream import events as ev
from nova_enlightened.stream import return_path as rp
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.transfer import control, unix_socket
from nova_enlightened.transfer.spec import RelaySpec

TIMEOUT_S = 20.0
PAGES = 512
HOT = range(100, 140)
MANY = range(PAGES - 100)
"""Hot pages, more than are asked for at once."""
BLOCK = ev.RamBlock("pc.ram", PAGES * TARGET_PAGE, TARGET_PAGE)


DEVICE_STATE = bytes(4 << 20)
"""More than sockets and the link hold."""
FITS: Final = 20
"""Pages that a socket holds which nobody reads."""
BEGUN = 64 << 10
"""Bytes up to somewhere in it."""


def stream_up_to_run(device_state: bytes = b"device state") -> bytes:
    return b"".join((
        encode.header(),
        encode.configuration(ev.Configuration("pc-i440fx-7.2")),
        encode.postcopy_advise(),
        encode.ram_start(2),
        encode.block_list([BLOCK]),
        encode.ram_end(),
        encode.footer(2),
        encode.ram_discard("pc.ram", [(0, PAGES * TARGET_PAGE)]),
        encode.postcopy_package(device_state),
    ))  # fmt: skip


def received(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"the end after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


@dataclass
class Played:
    """Both QEMUs' sockets and both relays."""

    source: socket.socket
    destination: socket.socket
    relays: tuple[relays.RunningRelay, relays.RunningRelay]
    listener: socket.socket

    def ended(self) -> list[int]:
        """Exit statuses, once both processes are gone."""
        return [os.waitstatus_to_exitcode(os.waitpid(relay.pid, 0)[1]) for relay in self.relays]


def known(directory: pathlib.Path, hot: range) -> dict[str, object]:
    """What the source's relay is told of a guest whose hot pages these are."""
    heat = np.zeros(PAGES, np.uint8)
    heat[hot] = 255
    classes = np.full(PAGES, PageClass.ANON, np.uint8)
    knowledge = GuestKnowledge("test", PAGES, classes, heat, (), 4, 1.0)
    file = directory / "knowledge.npz"
    file.write_bytes(stored.dump(knowledge))
    layout = MemoryLayout("pc", ((0, PAGES, 0),), (("pc.ram", PAGES),))
    return {"knowledge": str(file), "layout": layout.to_dict()}


def specs(directory: pathlib.Path, port: int) -> tuple[RelaySpec, RelaySpec]:
    source = RelaySpec(
        role="source",
        migration=str(uuid.uuid4()),
        run_directory=str(directory / "source"),
        socket=str(directory / "out.sock"),
        link_host="127.0.0.1",
        link_port=port,
        secret=secrets.token_hex(32),
        tls=None,
    )
    return source, replace(
        source,
        role="destination",
        run_directory=str(directory / "destination"),
        socket=str(directory / "in.sock"),
    )


@contextlib.contextmanager
def pair_of(
    here: RelaySpec, there: RelaySpec, link: socket.socket
) -> Iterator[tuple[relays.RunningRelay, relays.RunningRelay]]:
    with contextlib.ExitStack() as stack:
        pair = relays.start(here, unix_socket.listen(here.socket)), relays.start(there, link)
        for relay in pair:
            stack.callback(_end, relay.pid)
        yield pair


@pytest.fixture
def played(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Played]:
    link = relays.listen_link("127.0.0.1", 0)
    here, there = specs(tmp_path, link.getsockname()[1])
    if hasattr(request, "param"):
        here = replace(here, **known(tmp_path, request.param))
    with contextlib.ExitStack() as stack:
        incoming = stack.enter_context(unix_socket.listen(there.socket))
        incoming.settimeout(TIMEOUT_S)
        pair = stack.enter_context(pair_of(here, there, link))
        source = stack.enter_context(socket.socket(socket.AF_UNIX))
        source.settimeout(TIMEOUT_S)
        source.connect(here.socket)
        source.sendall(stream_up_to_run())
        destination = stack.enter_context(incoming.accept()[0])
        destination.settimeout(TIMEOUT_S)
        yield Played(source, destination, pair, incoming)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_stream_arrives_as_it_was_sent(played: Played) -> None:
    body = encode.ram_part(2) + encode.page_header(0, "pc.ram") + os.urandom(TARGET_PAGE)
    for number in range(1, PAGES):
        body += encode.page_header(number * TARGET_PAGE) + os.urandom(TARGET_PAGE)
    # More than the link holds: nobody may write it whole before somebody reads.
    writer = threading.Thread(target=played.source.sendall, args=(body,))
    writer.start()
    whole = stream_up_to_run() + body
    assert received(played.destination, len(whole)) == whole
    writer.join()


@pytest.mark.parametrize("played", [HOT], indirect=True)
def test_hot_pages_cross_first_and_every_page_once(played: Played) -> None:
    destination = threading.Thread(target=lambda: arrived.extend(until_end(played.destination)))
    arrived: list[int] = []
    destination.start()
    # A source that has not been asked for anything yet sends a page of its own choice.
    played.source.sendall(encode.ram_part(2) + page(300, "pc.ram"))
    asked: list[int] = []
    while set(asked) < set(HOT):
        for first in requested(played.source):
            asked.append(first)
            played.source.sendall(page(first))
    rest = [number for number in range(PAGES) if number not in {300, *asked}]
    for number in rest:
        played.source.sendall(page(number))
    last = encode.ram_end() + encode.footer(2)
    played.source.sendall(last + encode.ram_part(2, last=True) + last + encode.eof())
    played.source.shutdown(socket.SHUT_WR)
    destination.join(TIMEOUT_S)
    assert sorted(arrived) == list(range(PAGES))
    assert set(arrived[: len(HOT) + 1]) - {300} <= set(HOT)


@pytest.mark.parametrize("played", [MANY], indirect=True)
def test_nothing_is_read_of_qemu_while_nothing_can_cross(played: Played) -> None:
    """What is not read yet QEMU sends again; from 8.2 on, nothing once all of it was read."""
    received(played.destination, len(stream_up_to_run()))
    played.source.sendall(encode.ram_part(2) + page(300, "pc.ram"))
    asked = list(requested(played.source))[:FITS]
    assert asked
    _end(played.relays[1].pid)
    while (state := control.ask(played.relays[0].spec.control, "status"))["link"]["ready"]:
        pass
    played.source.sendall(b"".join(map(page, asked)))
    for _ in range(3):  # its loop has turned between two answers
        after = control.ask(played.relays[0].spec.control, "status")
    assert after["held_bytes"] == state["held_bytes"]
    assert after["pages"] == state["pages"]


def page(number: int, block: str | None = None) -> bytes:
    return encode.page_header(number * TARGET_PAGE, block) + bytes(TARGET_PAGE)


def requested(source: socket.socket) -> Iterator[int]:
    """Pages asked for in one read of the return path."""
    path = rp.ReturnPath()
    path.receive_data(source.recv(1 << 16))
    while (event := path.next_event()) is not ev.NEED_DATA:
        assert isinstance(event, rp.RequestPages)
        first = event.start // TARGET_PAGE
        yield from range(first, first + event.length // TARGET_PAGE)


def until_end(destination: socket.socket) -> Iterator[int]:
    """Page numbers in the order they arrive."""
    stream = MigrationStream()
    while data := destination.recv(TARGET_PAGE):
        stream.receive_data(data)
        while (event := stream.next_event()) is not ev.NEED_DATA:
            if isinstance(event, ev.RamPages):
                yield from (event.offsets // TARGET_PAGE).tolist()
    assert stream.complete


def test_the_return_path_arrives_and_names_its_block(played: Played) -> None:
    named = rp.encode_request_pages("pc.ram", 0, TARGET_PAGE)
    short = bytes((0, 4, 0, 12)) + TARGET_PAGE.to_bytes(8, "big") + TARGET_PAGE.to_bytes(4, "big")
    played.destination.sendall(named + short)
    expected = named + rp.encode_request_pages("pc.ram", TARGET_PAGE, TARGET_PAGE)
    assert received(played.source, len(expected)) == expected


def test_a_half_close_is_carried_and_the_other_direction_goes_on(played: Played) -> None:
    played.source.sendall(encode.ram_part(2) + encode.ram_end() + encode.footer(2) + encode.eof())
    played.source.shutdown(socket.SHUT_WR)
    while played.destination.recv(1 << 16):
        pass
    shut = bytes((0, 1, 0, 4, 0, 0, 0, 0))
    played.destination.sendall(shut)
    assert received(played.source, len(shut)) == shut
    played.destination.close()
    assert played.source.recv(1) == b""
    played.source.close()
    assert played.ended() == [0, 0]


def test_a_second_channel_is_connected_for_a_second_connection(played: Played) -> None:
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(played.relays[0].spec.socket)
        record = encode.page_header(0, "pc.ram") + bytes(TARGET_PAGE)
        second.sendall(record)
        other, _ = played.listener.accept()
        with other:
            other.settimeout(TIMEOUT_S)
            assert received(other, len(record)) == record


def test_a_stream_that_breaks_off_is_an_error_that_names_the_place(played: Played) -> None:
    played.source.sendall(
        encode.ram_part(2) + encode.page_header(0, "pc.ram") + b"not a whole page"
    )
    played.source.close()
    while played.destination.recv(1 << 16):
        pass
    played.destination.close()
    assert played.ended()[0] == 1
    assert "byte" in played.relays[0].state()["error"]


def test_the_state_is_readable_while_it_runs(played: Played) -> None:
    size = len(stream_up_to_run())
    received(played.destination, size)
    state = control.ask(played.relays[0].spec.control, "status")
    assert state["phase"] == "post-copy"
    assert state["link"]["bytes_sent"] == size
    assert state["pages"]["total"] == PAGES


def test_an_operators_stop_breaks_both_channels(played: Played) -> None:
    control.ask(played.relays[0].spec.control, "stop")
    assert played.ended() == [1, 1]
    assert "operator" in json.dumps(played.relays[0].state())


def test_a_peer_that_dies_before_the_switch_ends_the_migration(tmp_path: pathlib.Path) -> None:
    link = relays.listen_link("127.0.0.1", 0)
    here, there = specs(tmp_path, link.getsockname()[1])
    with pair_of(here, there, link) as pair, socket.socket(socket.AF_UNIX) as source:
        source.settimeout(TIMEOUT_S)
        source.connect(here.socket)
        source.sendall(encode.header())
        assert relays.linked(pair[0], TIMEOUT_S) is None
        _end(pair[1].pid)
        with contextlib.suppress(ConnectionResetError):
            assert source.recv(1) == b""
        assert os.waitstatus_to_exitcode(os.waitpid(pair[0].pid, 0)[1]) == 1
        assert "the destination's relay has ended" in pair[0].state()["error"]


def test_a_peer_that_dies_after_the_switch_is_waited_for(played: Played) -> None:
    received(played.destination, len(stream_up_to_run()))
    _end(played.relays[1].pid)
    here = played.relays[0]
    trouble = relays.linked(here, 2.0)
    assert trouble is not None
    assert "refused" in trouble
    assert relays.carrier(here.spec)[0] is relays.Carrier.ALIVE


def test_relays_that_run_are_found_by_their_directory(played: Played) -> None:
    received(played.destination, len(stream_up_to_run()))
    parent = os.path.dirname(played.relays[0].spec.run_directory)
    assert {relay.pid for relay in relays.running(parent)} == {r.pid for r in played.relays}


@pytest.fixture
def handed_over(tmp_path: pathlib.Path) -> Iterator[tuple[socket.socket, relays.RunningRelay]]:
    """A source that has sent a part of its device state, and whose destination's relay is gone."""
    link = relays.listen_link("127.0.0.1", 0)
    here, there = specs(tmp_path, link.getsockname()[1])
    with contextlib.ExitStack() as stack:
        incoming = stack.enter_context(unix_socket.listen(there.socket))
        incoming.settimeout(TIMEOUT_S)
        pair = stack.enter_context(pair_of(here, there, link))
        source = stack.enter_context(socket.socket(socket.AF_UNIX))
        source.settimeout(TIMEOUT_S)
        source.connect(here.socket)
        source.sendall(stream_up_to_run(DEVICE_STATE)[:BEGUN])
        destination = stack.enter_context(incoming.accept()[0])
        destination.settimeout(TIMEOUT_S)
        received(destination, BEGUN)
        _end(pair[1].pid)
        yield source, pair[0]


def test_one_that_is_ended_while_it_starts_ends(tmp_path: pathlib.Path) -> None:
    link = relays.listen_link("127.0.0.1", 0)
    _, spec = specs(tmp_path, link.getsockname()[1])
    relay = relays.start(spec, link)
    os.kill(relay.pid, signal.SIGSTOP)  # its interpreter has only begun
    relays.end(spec, TIMEOUT_S)
    os.kill(relay.pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(relay.pid, 0)[1]) == 1
    assert "Ended: not wanted any more" in (tmp_path / "destination/relay.log").read_text()


def test_one_that_does_not_answer_is_not_taken_for_gone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT_S", 0.1)
    link = relays.listen_link("127.0.0.1", 0)
    _, spec = specs(tmp_path, link.getsockname()[1])
    (tmp_path / "destination").mkdir()
    with unix_socket.listen(spec.control), link, pytest.raises(exception.RelayError):
        relays.end(spec, TIMEOUT_S)


def test_a_source_that_hands_over_to_nobody_is_not_held_up(
    handed_over: tuple[socket.socket, relays.RunningRelay],
) -> None:
    source, relay = handed_over
    source.sendall(stream_up_to_run(DEVICE_STATE)[BEGUN:])
    assert relays.carrier(relay.spec)[0] is relays.Carrier.ALIVE


def test_it_hears_its_destinations_last_word_when_the_relay_takes_leave(
    handed_over: tuple[socket.socket, relays.RunningRelay],
) -> None:
    source, relay = handed_over
    relay.take_leave()
    assert received(source, len(encode.shut())) == encode.shut()


def test_a_stranger_on_the_link_never_reaches_qemu(tmp_path: pathlib.Path) -> None:
    link = relays.listen_link("127.0.0.1", 0)
    port = link.getsockname()[1]
    _, there = specs(tmp_path, port)
    with unix_socket.listen(there.socket) as incoming:
        incoming.setblocking(False)
        relay = relays.start(there, link)
        try:
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as stranger:
                stranger.sendall(b"QEVM" + bytes(1000))
                while stranger.recv(4096):
                    pass
            with pytest.raises(BlockingIOError):
                incoming.accept()
        finally:
            _end(relay.pid)
