# SPDX-License-Identifier: Apache-2.0
"""Appliances of the laboratory: saved, restored over a far link, streamed."""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest

from lab import Lab, appliances, memory_compare, streams, whole
from lab.appliances import SESSION
from lab.far import FarStore, Meter
from lab.saved import Saved, saved

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
CACHE = "/run/nova-enlightened/cache"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(run=Path(f"/run/nel-ap-{os.getpid()}")) as started:
        yield started


@pytest.fixture(scope="module")
def store(lab: Lab) -> Iterator[FarStore]:
    made = FarStore(lab.hosts["host2"], lab.run_dir, lab.run_dir / "far", lab.cache)
    yield made.start(None, 1.0)
    made.stop()


@pytest.fixture(scope="module")
def session(lab: Lab) -> Saved:
    return saved(lab, SESSION, lambda text: None)


@pytest.fixture
def work(lab: Lab) -> Iterator[Path]:
    directory = lab.run_dir / "work"
    directory.mkdir()
    yield directory
    with suppress(libvirt.libvirtError):
        lab.hosts["host2"].connection.lookupByName(SESSION.name).destroy()
    shutil.rmtree(directory)


def fetch(lab: Lab, store: FarStore, name: str, extra: str = "") -> bytes:
    """What the store answers to one GET, whole."""

    def ask() -> bytes:
        with socket.create_connection(("10.79.0.1", 80), timeout=30.0) as connection:
            head = f"GET /{name} HTTP/1.0\r\n{extra}\r\n"
            connection.sendall(head.encode())
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
            return b"".join(parts)

    return lab.hosts["host2"].holder.in_network(ask)


def test_an_answer_takes_a_round_trip_and_the_bandwidth_is_held(lab: Lab, store: FarStore) -> None:
    (store.root / "two-megabytes").write_bytes(os.urandom(2_000_000))
    store.shape(20.0, 60.0)
    try:
        meter = Meter(store).start()
        began = time.monotonic()
        answer = fetch(lab, store, "two-megabytes")
        took = time.monotonic() - began
        meter.stop()
        assert len(answer) > 2_000_000
        # 0.8 s on the link, and a round trip each to connect and to ask.
        assert took > 0.8 + 0.12
        assert meter.at(time.monotonic()) >= 2_000_000
    finally:
        store.shape(None, 1.0)


def test_the_store_answers_byte_ranges(lab: Lab, store: FarStore) -> None:
    (store.root / "digits").write_bytes(b"0123456789")
    answer = fetch(lab, store, "digits", "Range: bytes=3-5\r\n")
    assert answer.startswith(b"HTTP/1.1 206")
    assert answer.endswith(b"\r\n\r\n345")


@pytest.mark.parametrize("how", list(whole.Download))
def test_a_session_goes_on_from_the_whole_image(
    lab: Lab, store: FarStore, session: Saved, work: Path, how: whole.Download
) -> None:
    users, probe = appliances.users(lab, SESSION, appliances.measured(1))
    try:
        whole.start(lab.hosts["host2"], store, whole.offer(session, store), how, work)
        users.let_in()
        report = probe.wait_running(60.0)
        assert report.mismatches == 0
    finally:
        users.stop()


def test_a_session_streams_and_reads_what_was_written(
    lab: Lab, store: FarStore, session: Saved, work: Path
) -> None:
    host = lab.hosts["host2"]
    published = streams.publish(session, store.root)
    users, probe = appliances.users(lab, SESSION, appliances.measured(2))
    stream = streams.start(host, store.url, published, work, cache=CACHE)
    try:
        users.let_in()
        probe.wait_running(60.0)
        stream.wait_complete(120.0)
        report = probe.wait_next(30.0)
        assert report is not None
        assert report.operations > 0
        assert report.mismatches == 0
    finally:
        users.stop()
        stream.stop()


def test_streamed_memory_is_what_was_captured(
    lab: Lab, store: FarStore, session: Saved, work: Path
) -> None:
    host = lab.hosts["host2"]
    published = streams.publish(session, store.root)
    stream = streams.fill(host, store.url, published, work, CACHE)
    try:
        host.virsh("save", SESSION.name, str(work / "again.save"))
        assert memory_compare.differing(session.memory, work / "again.save", work) == 0
    finally:
        stream.stop()
