# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-manage`` with a bus in memory, and as a process with a bus that is down."""

import dataclasses
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import oslo_messaging
import pytest

from nova_enlightened import rpc
from nova_enlightened.cmd.manage import command, context
from nova_enlightened.contention.report import HostReport, Level

PATIENCE_S = 20.0
CALM = HostReport(
    host="compute1",
    node="compute1",
    at=0.0,
    level=Level.CALM,
    reason="idle",
    cpu_level=Level.CALM,
    memory_level=Level.CALM,
    cpus=2,
    cpu_used=0.0,
    cpu_waiting=0.0,
    memory_total=1 << 20,
    memory_available=1 << 19,
)


class Agent:
    """Answers on the bus as a compute host's agent."""

    target = oslo_messaging.Target(version=rpc.HOST_VERSION)

    def describe(self, context: dict[str, Any]) -> dict[str, Any]:
        return {"armed": {"server-1": "agent 1"}, "orders": []}


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Iterator[context.Context]:
    """A context whose bus has one host that reports ten times a second, and its agent."""
    file = tmp_path / "manage.conf"
    file.write_text("[DEFAULT]\ntransport_url = fake://\n")
    conf = context.read([str(file)])
    transport = rpc.get_transport(conf)
    server = oslo_messaging.get_rpc_server(transport, rpc.host_target("compute1"), [Agent()])
    server.start()
    done, reports = threading.Event(), rpc.ReportAPI(transport)

    def report() -> None:
        while not done.wait(0.1):
            reports.cast(dataclasses.replace(CALM, at=time.time()))

    thread = threading.Thread(target=report)
    thread.start()
    yield context.make(conf)
    done.set()
    thread.join()
    server.stop()
    server.wait()


def run(made: context.Context, *words: str) -> int:
    return command.run(command.parser().parse_args(words), made)


def test_hosts_are_heard_and_named_ones_waited_for_no_longer_than_needed(
    made: context.Context, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert run(made, "hosts", "compute1", "--wait", str(PATIENCE_S)) == 0
    assert time.monotonic() - began < PATIENCE_S / 2
    assert "compute1" in capsys.readouterr().out


def test_agents_are_asked_how_their_guests_stand(
    made: context.Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, "armed", "compute1", "--wait", str(PATIENCE_S)) == 0
    assert "server-1" in capsys.readouterr().out


def manage(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nova_enlightened.cmd.manage", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_bus_that_is_down_ends_the_command_with_one_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "manage.conf"
    file.write_text("[DEFAULT]\ntransport_url = rabbit://a:b@127.0.0.1:9/\n")
    done = manage("--config-file", str(file), "hosts", "--wait", "1")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("nova-enlightened")]
    assert len(said) == 1
    assert "transport_url" in said[0]


def test_a_bus_that_cannot_be_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "manage.conf"
    file.write_text("[DEFAULT]\ntransport_url = pigeon://\n")
    done = manage("--config-file", str(file), "hosts")
    assert done.returncode == 1
    assert "transport_url" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [(), ("hosts",), ("evict",), ("check",), ("upgrade", "check")])
def test_help_helps(words: tuple[str, ...]) -> None:
    done = manage(*words, "--help")
    assert done.returncode == 0
    assert "usage: nova-enlightened-manage" in done.stdout
