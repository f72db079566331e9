# SPDX-License-Identifier: Apache-2.0
"""A guest that means harm, on a real socket: what it can cost its host in memory, time and CPU."""

import pathlib
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from nova_enlightened.exception import EnlightenedError, GuestUnreachable, HintError
from nova_enlightened.guest import wire
from nova_enlightened.host import guest, hint_sources
from nova_enlightened.host.guest import GuestSession
from nova_enlightened.knowledge.snapshot import SnapshotLimits
from nova_enlightened.stream.guest_channel import COMPRESSED, HEADER, MAGIC, MessageType
from tests.functional.test_guest_session import GOOD, MEMORY, Guest, Meet, meet

__all__ = ["meet"]

LIMITS = SnapshotLimits.for_memory(MEMORY)
MIB = 1 << 20


def frame(kind: int, payload: bytes, request: int = 0, flags: int = 0, **lies: int) -> bytes:
    size = lies.get("size", len(payload))
    return HEADER.pack(MAGIC, kind, flags, 0, request, size, zlib.crc32(payload)) + payload


@pytest.fixture
def peak() -> Iterator[list[int]]:
    """Bytes that Python held in the beginning, for `grown`."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    yield [before]
    tracemalloc.stop()


def grown(peak: list[int]) -> int:
    """Most bytes held at once since then."""
    return tracemalloc.get_traced_memory()[1] - peak[0]


def until_refused(session: GuestSession) -> str:
    """Why the host does not listen any more."""
    with pytest.raises(HintError) as refused:
        session.wait(None, 20.0)
    return str(refused.value)


def test_a_claim_of_gigabytes_is_refused_by_its_header_alone(meet: Meet, peak: list[int]) -> None:
    def claims(it: Guest) -> None:
        # Whole: without a whole frame the host only looks for the first.
        it.say(frame(MessageType.PONG, b"{}"))
        it.say(frame(MessageType.SNAPSHOT, b"", size=0xFFFFFFFF))
        it.stay()

    assert "limit" in until_refused(meet(claims))
    assert grown(peak) < 4 * MIB


def test_a_bomb_is_inflated_no_further_than_the_guests_memory_allows(
    meet: Meet, peak: list[int]
) -> None:
    squeezer = zlib.compressobj(1)
    pieces = [squeezer.compress(bytes(MIB)) for _ in range(128)]
    squeezed = b"".join(pieces) + squeezer.flush()
    assert len(squeezed) < MIB

    def bombs(it: Guest) -> None:
        it.say(frame(MessageType.SNAPSHOT, squeezed, flags=COMPRESSED))
        it.say(frame(MessageType.PONG, b"{}"))
        it.say(frame(MessageType.SNAPSHOT, squeezed, flags=COMPRESSED))
        it.stay()

    base = grown(peak)
    assert "inflates past" in until_refused(meet(bombs))
    assert grown(peak) - base < 2 * LIMITS.payload + 8 * MIB


def test_snapshots_that_nobody_asks_for_take_the_place_of_each_other(
    meet: Meet, peak: list[int]
) -> None:
    sent = threading.Event()
    pushed = frame(MessageType.SNAPSHOT, GOOD)

    def floods(it: Guest) -> None:
        for _ in range(2000):
            it.say(pushed)
        sent.set()
        it.stay()

    session = meet(floods)
    assert sent.wait(20.0)
    assert session.wait(None, 20.0).knowledge.samples == 3
    assert grown(peak) < 8 * MIB


def test_a_flood_does_not_hold_up_an_answer_beyond_its_deadline(meet: Meet) -> None:
    noise = frame(MessageType.SNAPSHOT, GOOD) * 50

    def floods(it: Guest) -> None:
        while True:
            it.say(noise)

    session = meet(floods)
    began = time.monotonic()
    with pytest.raises(GuestUnreachable, match="in time"):
        session.hello(timeout=1.0)
    assert time.monotonic() - began < 5.0


def send_until_full(session: GuestSession) -> None:
    while True:
        session._send(wire.frame(MessageType.PING, b"x" * 60_000))


def test_a_guest_that_does_not_read_holds_up_nobody_for_longer_than_a_send_may_take(
    meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "SEND_S", 0.5)
    ended = threading.Event()

    def deaf(it: Guest) -> None:
        ended.wait(30.0)

    session = meet(deaf)
    try:
        with pytest.raises(GuestUnreachable):
            send_until_full(session)
    finally:
        ended.set()
    with pytest.raises(GuestUnreachable):
        session.status()


def test_bytes_one_at_a_time_are_given_up_in_time(
    meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "FRAME_S", 1.0)
    whole = frame(MessageType.SNAPSHOT, GOOD * 100)

    def drips(it: Guest) -> None:
        it.say(frame(MessageType.PONG, b"{}"))
        pause = threading.Event()
        for at in range(len(whole)):
            it.say(whole[at : at + 1])
            pause.wait(0.05)

    assert "not finished within" in until_refused(meet(drips))


def test_an_answer_to_a_question_that_was_not_asked_is_not_kept(
    meet: Meet, peak: list[int]
) -> None:
    def answers(it: Guest) -> None:
        for request in range(1, 3000):
            it.say(frame(MessageType.STATUS, b'{"a": "' + b"x" * 1000 + b'"}', request + 1000))
        kind, request, _ = it.hear()
        assert kind == MessageType.STATUS
        it.say(frame(MessageType.STATUS, b'{"samples": 7}', request))
        it.stay()

    session = meet(answers)
    assert session.status(timeout=20.0) == {"samples": 7}
    assert grown(peak) < 4 * MIB


def test_frames_that_only_look_like_frames_are_given_up(meet: Meet) -> None:
    """Each false start may cost a checksum over all of a payload."""

    def pretends(it: Guest) -> None:
        start = struct.pack(">4sBBHIII", MAGIC, MessageType.SNAPSHOT, 0, 0, 0, 1000, 0)
        it.say(start * 5000)
        it.stay()

    assert "checksum" in until_refused(meet(pretends))


def test_a_guest_that_breaks_off_does_not_hold_up_the_next_source_of_hints(
    tmp_path: pathlib.Path,
) -> None:
    path = str(tmp_path / "port")
    it = Guest(path, lambda guest: None)  # it hangs up at once
    try:
        target = hint_sources.HintTarget("vm", MEMORY, path)
        kinds = hint_sources.load(["guest-agent", "none"])
        opened = hint_sources.open_first(kinds, target, 2.0)
        assert opened.source is not None
        assert opened.source.name == "none"
        assert len(opened.declined) == 1
    finally:
        it.end()


def test_names_from_inside_are_fit_for_a_log(meet: Meet) -> None:
    def shouts(it: Guest) -> None:
        _, request, _ = it.hear()
        said = (
            b'{"agent": "1\\u001b[2J\\n\\u202e", "kernel": "' + b"k" * 9000 + b'", '
            b'"sources": ["soft\\ndirty", {"x": 1}, ["' + b"[" * 10 + b'"]]}'
        )
        it.say(frame(MessageType.HELLO, said, request))
        it.stay()

    hello = meet(shouts).hello(timeout=20.0)
    assert hello.agent.isprintable()
    assert len(hello.kernel) <= 256
    assert hello.sources == ("soft?dirty",)


def test_every_way_to_ask_ends_with_a_documented_error(meet: Meet) -> None:
    def mumbles(it: Guest) -> None:
        while True:
            _, request, _ = it.hear()
            it.say(frame(MessageType.ERROR, b'{"error": 7}', request))

    session = meet(mumbles)
    for ask in (session.hello, session.status, session.disarm):
        with pytest.raises(EnlightenedError):
            ask(timeout=20.0)
