# SPDX-License-Identifier: Apache-2.0
"""A link that lets what comes wait for more: later, never not at all, never otherwise."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator

import pytest

from nova_enlightened.transfer.link_events import Lost
from tests.functional.link_hosts import MAIN, Hosts, certificates

WAIT_S = 0.4
"""Long beside what else takes time, and less than the link is silent before it asks its peer."""


@pytest.fixture(params=["plain", "tls"])
def hosts(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Hosts]:
    with Hosts(certificates(tmp_path) if request.param == "tls" else None) as pair:
        pair.open()
        pair.destination.link.gather(WAIT_S)
        yield pair


def arrival(hosts: Hosts, content: bytes) -> float:
    """Seconds until content has arrived and is acknowledged."""
    begin = time.monotonic()
    before = len(hosts.destination.arrived[MAIN])
    hosts.source.send(MAIN, content)
    hosts.until(lambda: len(hosts.destination.arrived[MAIN]) == before + len(content))
    took = time.monotonic() - begin
    hosts.until(lambda: not hosts.source.link.session.under_way)
    return took


def test_little_waits_no_longer_than_was_said(hosts: Hosts) -> None:
    arrival(hosts, b"what makes it wait for more")
    assert 0.5 * WAIT_S < arrival(hosts, b"little") < 3 * WAIT_S


def test_after_a_silence_the_first_byte_is_seen_at_once(hosts: Hosts) -> None:
    arrival(hosts, b"little")
    until = time.monotonic() + 2 * WAIT_S
    hosts.until(lambda: time.monotonic() > until)
    assert arrival(hosts, b"little") < 0.5 * WAIT_S


def test_much_does_not_wait(hosts: Hosts) -> None:
    hosts.source.link.limit.aim(2 * WAIT_S, 4 << 20)
    assert arrival(hosts, os.urandom(32 << 20)) < 40 * WAIT_S


def test_nothing_waits_any_more_once_that_has_ended(hosts: Hosts) -> None:
    arrival(hosts, b"what makes it wait for more")
    hosts.destination.link.gather(None)
    assert arrival(hosts, b"little") < 0.5 * WAIT_S


def test_a_cut_loses_nothing_that_waited(hosts: Hosts) -> None:
    hosts.source.link.limit.aim(2 * WAIT_S, 4 << 20)
    content = os.urandom(8 << 20)
    hosts.source.send(MAIN, content)
    for _ in range(3):
        hosts.until_carried(1 << 20)
        hosts.wire.cut()
    hosts.until(lambda: len(hosts.destination.arrived[MAIN]) == len(content))
    assert hosts.destination.arrived[MAIN] == content
    assert hosts.source.saw(Lost)
