# SPDX-License-Identifier: Apache-2.0
"""Strangers at the link's door: refused, told why, and without effect on the connection there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from nova_enlightened.stream.link_frames import HEADER_SIZE, MAX_UNKNOWN_PEER, encode_frame
from nova_enlightened.stream.link_state import FrameType, Role
from nova_enlightened.transfer.link_admission import MAX_UNKNOWN
from nova_enlightened.transfer.link_events import LinkOptions, Lost, PeerTurnedAway, Refused
from tests.functional.link_hosts import MAIN, MIGRATION, Hosts

QUICK = LinkOptions(handshake=0.3, backoff=0.01, max_backoff=0.05)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Connected, with content under way that has to arrive in spite of all."""
    with Hosts(options=QUICK) as pair:
        pair.open()
        pair.source.send(MAIN, CONTENT)
        yield pair
        pair.finish()
        assert pair.destination.arrived[MAIN] == CONTENT
        assert not pair.source.saw(Lost)


CONTENT = bytes(range(256)) * 8192


def stranger(hosts: Hosts) -> socket.socket:
    return socket.create_connection(hosts.destination.link.address, timeout=5)


def turned_away(hosts: Hosts) -> str:
    hosts.until(lambda: hosts.destination.saw(PeerTurnedAway))
    (event,) = hosts.destination.saw(PeerTurnedAway)
    assert isinstance(event, PeerTurnedAway)
    return event.reason


def answer(sock: socket.socket) -> bytes:
    """Return all that the destination says before it closes."""
    said = b""
    try:
        while part := sock.recv(4096):
            said += part
    except ConnectionError:
        pass
    return said


def hello(**changes: object) -> bytes:
    content = {
        "min": 1,
        "max": 1,
        "migration": MIGRATION,
        "role": "source",
        "nonce": "00" * 32,
        **changes,
    }
    return encode_frame(FrameType.HELLO, payload=json.dumps(content).encode())


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: compute2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS client
        bytes(HEADER_SIZE),
        encode_frame(FrameType.DATA, MAIN, 1, b"pages of a stranger"),
        encode_frame(FrameType.OPEN, 3, 0),
        encode_frame(FrameType.PROOF, payload=bytes(100)),
        encode_frame(FrameType.HELLO, payload=b"{"),
        encode_frame(FrameType.BYE),
    ],
)
def test_a_stranger_that_does_not_speak_our_protocol_is_refused(hosts: Hosts, said: bytes) -> None:
    with stranger(hosts) as sock:
        sock.sendall(said)
        turned_away(hosts)
        assert answer(sock)[3] == FrameType.REFUSE


def test_a_stranger_that_says_nothing_is_shut_out_in_time(hosts: Hosts) -> None:
    with stranger(hosts) as sock:
        assert turned_away(hosts) == "no proof in time"
        assert answer(sock) == b""


def test_a_stranger_that_leaves_is_forgotten(hosts: Hosts) -> None:
    stranger(hosts).close()
    assert "closed the connection" in turned_away(hosts)


def test_a_stranger_that_sends_without_end_is_stopped(hosts: Hosts) -> None:
    with stranger(hosts) as sock:
        # Whole HELLOs would be answered; this one never ends.
        sock.sendall(hello(migration="x" * 1500)[:1400] * 4)
        turned_away(hosts)
    with stranger(hosts) as sock:
        sock.sendall(bytes(2 * MAX_UNKNOWN_PEER))
        hosts.until(lambda: len(hosts.destination.saw(PeerTurnedAway)) == 2)


def test_another_protocol_is_told_so(hosts: Hosts) -> None:
    with stranger(hosts) as sock:
        sock.sendall(hello(min=4, max=5))
        assert turned_away(hosts) == "link protocol 4 to 5 offered, 1 to 1 spoken here"
        assert b"1 to 1 spoken here" in answer(sock)


def test_another_migration_is_told_so(hosts: Hosts) -> None:
    with stranger(hosts) as sock:
        sock.sendall(hello(migration="another"))
        assert turned_away(hosts) == "no such migration here"


def test_a_proof_without_the_secret_is_refused(hosts: Hosts) -> None:
    with stranger(hosts) as sock:
        sock.sendall(hello())
        sock.sendall(encode_frame(FrameType.PROOF, payload=bytes(32) + b'{"instance": "x"}'))
        assert "does not know" in turned_away(hosts)


def test_a_crowd_of_strangers_does_not_keep_the_peer_out(hosts: Hosts) -> None:
    crowd = [stranger(hosts) for _ in range(3 * MAX_UNKNOWN)]
    try:
        hosts.until(lambda: len(hosts.destination.saw(PeerTurnedAway)) >= 2 * MAX_UNKNOWN)
        hosts.wire.cut()
        hosts.until(lambda: hosts.source.link.reconnects == 1)
        hosts.source.events.clear()
    finally:
        for sock in crowd:
            sock.close()


def test_a_source_with_another_secret_is_refused_and_does_not_try_again() -> None:
    with Hosts(source_secret=b"another secret, just as long....", options=QUICK) as hosts:
        hosts.until(lambda: hosts.source.saw(Refused))
        assert "does not know this migration's secret" in str(hosts.source.saw(Refused)[0])
        attempts = hosts.source.link.attempts
        for _ in range(5):
            hosts.turn()
        assert hosts.source.link.attempts == attempts
        assert not hosts.destination.link.ready


def test_a_source_refuses_a_listener_that_does_not_know_the_secret() -> None:
    with Hosts(options=QUICK) as hosts:
        hosts.source.link.abort()
        impostor = hosts.add(
            hosts.make(Role.DESTINATION, ("127.0.0.1", 0), b"another secret, just as long....")
        )
        source = hosts.add(hosts.make(Role.SOURCE, impostor.link.address))
        hosts.until(lambda: source.saw(Refused))
        assert not source.link.ready


def test_a_refusal_by_a_stranger_at_our_peers_address_does_not_end_what_stood() -> None:
    """The address may for a while be somebody else's; the peer may come back to it."""
    with Hosts(options=QUICK) as hosts:
        hosts.open()
        hosts.source.send(MAIN, CONTENT)
        hosts.wire.refuse()
        hosts.wire.cut()
        impostor = hosts.add(
            hosts.make(Role.DESTINATION, hosts.wire.address, b"another secret, just as long....")
        )
        hosts.until(lambda: impostor.saw(PeerTurnedAway))
        impostor.link.abort()
        hosts.wire.listen(hosts.wire.address)
        hosts.finish()
        assert hosts.destination.arrived[MAIN] == CONTENT
        assert not hosts.source.saw(Refused)


def test_a_process_that_did_not_run_for_a_while_asks_before_it_gives_up() -> None:
    now = 100.0
    with Hosts() as hosts:
        hosts.source.link.abort()
        source = hosts.add(hosts.make(Role.SOURCE, hosts.wire.address, clock=lambda: now))
        hosts.until(lambda: source.link.ready)
        now += 60.0
        source.step()
        assert source.link.ready
        for _ in range(10):
            hosts.turn()  # the answer arrives, by way of the wire
        now += 4.5
        source.step()
        assert source.link.ready
        now += 60.0
        source.step()
        now += 60.0
        source.step()  # asked, and no answer in between
        assert source.saw(Lost)
