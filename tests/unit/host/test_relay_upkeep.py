# SPDX-License-Identifier: Apache-2.0
"""Relays that run and what those leave behind that have ended."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.host.departure import Places
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.transfer import control
from nova_enlightened.transfer.spec import RelaySpec

MIGRATION = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
KEEP_S = 100.0


class Clock:
    """Far from now until a test says otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def relay_spec(role: str, directory: str, socket: str) -> RelaySpec:
    return RelaySpec(
        role=role,
        migration=MIGRATION,
        run_directory=directory,
        socket=socket,
        link_host="h",
        link_port=1,
        secret="00" * 32,
        tls=None,
    )


def left_behind(top: pathlib.Path, phase: str = "completed", role: str = "source") -> pathlib.Path:
    """The run directory of a relay, last touched at time 1000."""
    places = Places(str(top), MIGRATION)
    spec = relay_spec(role, places.directory(role), places.socket)
    directory = pathlib.Path(spec.run_directory)
    spec.save(directory)
    (directory / "state.json").write_text(f'{{"phase": "{phase}"}}')
    pathlib.Path(places.socket).touch()
    for path in (directory / "state.json", directory):
        os.utime(path, (1000.0, 1000.0))
    return directory


def test_what_an_ended_migration_left_is_removed_after_a_time(tmp_path: pathlib.Path) -> None:
    directory, clock = left_behind(tmp_path), Clock()
    upkeep = RelayUpkeep(str(tmp_path), KEEP_S, clock)
    clock.now = 1000.0 + KEEP_S - 1
    upkeep.look()
    assert directory.exists()
    clock.now += 2
    upkeep.look()
    assert list(tmp_path.iterdir()) == []


def test_what_a_running_relay_uses_stays(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = left_behind(tmp_path)
    monkeypatch.setattr(control, "ask", lambda path, call: {"pid": 4711})
    upkeep = RelayUpkeep(str(tmp_path), KEEP_S, lambda: 1e9)
    upkeep.look()
    assert directory.exists()
    assert upkeep.running() == ({"migration": MIGRATION, "role": "source", "pid": 4711},)


def test_directories_of_others_are_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "some-thing").mkdir()
    os.utime(tmp_path / "some-thing", (0, 0))
    RelayUpkeep(str(tmp_path), KEEP_S, lambda: 1e9).look()
    assert (tmp_path / "some-thing").exists()


def test_the_exit_status_of_a_child_is_collected(tmp_path: pathlib.Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    upkeep = RelayUpkeep(str(tmp_path), KEEP_S)
    spec = relay_spec("source", "/r", "/s")
    upkeep.adopt(relays.RunningRelay(spec, child.pid))
    upkeep.look()
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    upkeep.look()
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)
    child.returncode = 0


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def ask(path: str, call: str, **_: Any) -> dict[str, Any]:
        calls.append(call)
        return {}

    monkeypatch.setattr(control, "ask", ask)
    return calls


@pytest.mark.parametrize("phase", ["waiting", "pre-copy"])
def test_the_relay_of_a_vm_that_never_left_is_stopped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    left_behind(tmp_path, phase)
    calls = asked(monkeypatch)
    assert RelayUpkeep(str(tmp_path), KEEP_S).end(MIGRATION, "failed: no") == {"phase": phase}
    assert calls == ["stop"]


@pytest.mark.parametrize(
    ("phase", "outcome"), [("post-copy", "failed: control connection lost"), ("opaque", "failed")]
)
def test_a_relay_that_may_carry_a_running_vm_is_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, phase: str, outcome: str
) -> None:
    left_behind(tmp_path, phase)
    calls = asked(monkeypatch)
    RelayUpkeep(str(tmp_path), KEEP_S).end(MIGRATION, outcome)
    assert calls == []


def test_a_completed_migrations_relay_ends_by_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path, "waiting")
    calls = asked(monkeypatch)
    RelayUpkeep(str(tmp_path), KEEP_S).end(MIGRATION, "completed")
    assert calls == []


def test_a_migration_nobody_knows_is_told_as_such(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.RelayGone, match=MIGRATION):
        RelayUpkeep(str(tmp_path), KEEP_S).end(MIGRATION, "completed")
