# SPDX-License-Identifier: Apache-2.0
"""A relay's process that is started before it is needed."""

import os
import pathlib
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from nova_enlightened import exception, niceness
from nova_enlightened.host import relays
from nova_enlightened.host.spare_relay import SpareRelay
from nova_enlightened.transfer import control
from nova_enlightened.transfer.spec import RelaySpec

TIMEOUT_S = 20.0


@pytest.fixture
def spare() -> Iterator[SpareRelay]:
    one = SpareRelay(unhurried=os.geteuid() == 0)
    yield one
    one.close()


def destination(directory: pathlib.Path) -> RelaySpec:
    """A relay that only listens."""
    return RelaySpec(
        role="destination",
        migration=str(uuid.uuid4()),
        run_directory=str(directory),
        socket=str(directory / "qemu.sock"),
        link_host="127.0.0.1",
        link_port=0,
        secret=secrets.token_hex(32),
        tls=None,
    )


def start(spec: RelaySpec, spare: SpareRelay) -> relays.RunningRelay:
    return relays.start(spec, relays.listen_link("127.0.0.1", 0), spare=spare)


def answer(spec: RelaySpec) -> dict[str, Any]:
    """Its status, as soon as it answers."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return control.ask(spec.control, "status")
        except exception.RelayGone:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # its control socket is not there yet


def end(relay: relays.RunningRelay) -> None:
    control.ask(relay.spec.control, "stop")
    os.waitpid(relay.pid, 0)


def test_a_spare_becomes_the_relay_it_is_told_to_be(
    tmp_path: pathlib.Path, spare: SpareRelay
) -> None:
    spare.start()
    spec = destination(tmp_path)
    relay = start(spec, spare)
    status = answer(spec)
    assert (status["pid"], status["migration"]) == (relay.pid, spec.migration)
    end(relay)
    assert "Ended: stopped by an operator" in (tmp_path / "relay.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="prefers a process to others")
def test_a_spare_is_loaded_when_nobody_wants_the_cpu_and_preferred_once_it_is_a_relay(
    tmp_path: pathlib.Path, spare: SpareRelay
) -> None:
    spare.start()
    assert spare._process is not None
    pid = spare._process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == niceness.UNHURRIED
    spec = destination(tmp_path)
    relay = start(spec, spare)
    assert relay.pid == pid
    answer(spec)
    assert os.getpriority(os.PRIO_PROCESS, pid) == niceness.WAITED_FOR
    end(relay)


def test_a_spare_serves_once(tmp_path: pathlib.Path, spare: SpareRelay) -> None:
    spare.start()
    started = [start(destination(tmp_path / name), spare) for name in ("one", "two")]
    assert len({relay.pid for relay in started}) == 2
    for relay in started:
        answer(relay.spec)
        end(relay)


def test_a_spare_nobody_takes_ends_when_it_is_let_go(
    tmp_path: pathlib.Path, spare: SpareRelay
) -> None:
    spare.start()
    spare.close()
    with relays.listen_link("127.0.0.1", 0) as listener:
        assert spare.take(destination(tmp_path), listener, tmp_path / "log") is None
