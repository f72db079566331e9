# SPDX-License-Identifier: Apache-2.0
"""What a relay leaves on its host is its service's own, whatever the umask it is started with."""

import os
import pathlib
import secrets
import stat
import time
from collections.abc import Iterator

import pytest

from nova_enlightened.host import relays
from nova_enlightened.host.relays import RunningRelay
from nova_enlightened.transfer import unix_socket
from nova_enlightened.transfer.spec import RelaySpec
from tests.functional.link_hosts import MIGRATION

OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture
def relay(tmp_path: pathlib.Path) -> Iterator[RunningRelay]:
    """A destination's relay that waits, started as carelessly as can be."""
    listener = relays.listen_link("127.0.0.1", 0)
    spec = RelaySpec(
        role="destination",
        migration=MIGRATION,
        run_directory=str(tmp_path / "run"),
        socket=str(tmp_path / "qemu.sock"),
        link_host="127.0.0.1",
        link_port=listener.getsockname()[1],
        secret=secrets.token_hex(32),
        tls=None,
    )
    before = os.umask(0)
    try:
        started = relays.start(spec, listener)
    finally:
        os.umask(before)
    try:
        deadline = time.monotonic() + 30
        while not (started.state() and pathlib.Path(spec.control).exists()):
            assert time.monotonic() < deadline
            time.sleep(0.05)  # it replaces its state four times a second
        yield started
    finally:
        started.stop()
        os.waitpid(started.pid, 0)


def test_nobody_else_enters_a_relays_directory(relay: RunningRelay) -> None:
    status = os.stat(relay.spec.run_directory)
    assert status.st_uid == os.geteuid()
    assert not status.st_mode & OTHERS


@pytest.mark.parametrize("name", ["path", "control"])
def test_what_holds_or_reaches_the_secret_is_its_owners(relay: RunningRelay, name: str) -> None:
    status = os.stat(getattr(relay.spec, name))
    assert status.st_uid == os.geteuid()
    assert not status.st_mode & OTHERS


def test_the_state_does_not_tell_the_secret(relay: RunningRelay) -> None:
    told = pathlib.Path(relay.spec.state).read_text()
    assert relay.spec.secret not in told


def test_the_command_line_does_not_tell_the_secret(relay: RunningRelay) -> None:
    for name in ("cmdline", "environ"):
        content = pathlib.Path(f"/proc/{relay.pid}/{name}").read_bytes()
        assert relay.spec.secret.encode() not in content


def test_the_log_does_not_tell_the_secret(relay: RunningRelay) -> None:
    log = pathlib.Path(relay.spec.run_directory, "relay.log").read_text()
    assert relay.spec.secret not in log


def test_qemus_socket_is_its_owners_though_its_directory_is_shared(tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        with unix_socket.listen(str(tmp_path / "q.sock")):
            mode = (tmp_path / "q.sock").stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_IMODE(mode) == 0o600
