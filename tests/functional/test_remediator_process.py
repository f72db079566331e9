# SPDX-License-Identifier: Apache-2.0
"""Remediators as processes that are killed, with openstacksdk and an API over HTTP."""

import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.cmd import remediator
from nova_enlightened.remediation import journal
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.record import EvictionRecord
from tests.functional.fake_nova_api import FakeNovaApi, FakeServer, NovaState

TOP = pathlib.Path(__file__).parents[2]
VM = "11111111-1111-1111-1111-111111111111"
LONG_S = 40.0

CONFIGURATION = """
[DEFAULT]
transport_url = fake://
use_stderr = true
[enlightened_remediation]
mode = {mode}
state_path = {state}
backend_url = {backend}
auth_type = none
endpoint = {url}
follow_interval = 0.2
relief_timeout = 2
"""


class Processes:
    """Instances that share a coordination backend and a cloud."""

    def __init__(self, directory: pathlib.Path, state: NovaState, url: str) -> None:
        self.directory, self.state, self.url = directory, state, url
        self.backend = f"file://{directory / 'coordination'}"
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, state: str, mode: str = "auto") -> subprocess.Popen[str]:
        file = self.directory / f"{name}.conf"
        file.write_text(
            CONFIGURATION.format(
                mode=mode, state=self.directory / state, backend=self.backend, url=self.url
            )
        )
        with open(self.log(name), "w") as log, open(self.asked(name), "w") as asked:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.functional.remediator_process", str(file), VM],
                cwd=TOP, stdout=asked, stderr=log, text=True,
            )  # fmt: skip
        return self.running[name]

    def log(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.log"

    def asked(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.asked"

    def evictions(self, state: str) -> list[EvictionRecord]:
        try:
            return journal.read(self.directory / state, 100)
        except exception.JournalError:
            return []

    def until(self, what: Callable[[], Any], why: str) -> None:
        end = time.monotonic() + LONG_S
        while not what():
            if time.monotonic() > end:
                logs = "\n".join(self.log(name).read_text() for name in self.running)
                raise AssertionError(f"never: {why}\n{logs}")
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path: pathlib.Path) -> Iterator[Processes]:
    state = NovaState(("queued", "running", "running (post-copy)", "completed"))
    state.add(FakeServer(VM, "compute1"))
    with FakeNovaApi(state) as api:
        made = Processes(tmp_path, state, api.url)
        try:
            yield made
        finally:
            state.answer_requests.set()
            made.stop()


def test_a_contended_host_is_relieved(processes: Processes) -> None:
    process = processes.start("a", "state")
    processes.until(lambda: any(e.ended for e in processes.evictions("state")), "it is done")
    (one,) = processes.evictions("state")
    assert one.state is State.DONE
    assert one.urgent
    assert one.destination == "compute2"
    assert one.at("post_copy") is not None
    assert processes.asked("a").read_text().split() == ["order_urgent", VM]
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG_S) == 0


@pytest.mark.parametrize("other_state", ["state", "state-of-its-own"])
def test_the_leader_killed_while_it_asks_nova_is_followed_by_one_that_does_not_ask_again(
    processes: Processes, other_state: str
) -> None:
    nova = processes.state
    nova.answer_requests.clear()
    leader = processes.start("a", "state")
    processes.until(lambda: "Leading as" in processes.log("a").read_text(), "the first leads")
    processes.start("b", other_state)
    processes.until(nova.asked.is_set, "the leader asks")
    leader.kill()
    leader.wait()
    nova.answer_requests.set()
    processes.until(lambda: "Leading as" in processes.log("b").read_text(), "the second leads")
    processes.until(lambda: nova.servers[VM].host == "compute2", "it follows the migration")
    if other_state == "state":
        processes.until(
            lambda: all(e.ended for e in processes.evictions("state")), "it ends the eviction"
        )
        (one,) = processes.evictions("state")
        assert one.state is State.DONE
    assert nova.requests == [VM]


@pytest.fixture
def redis_backend(tmp_path: pathlib.Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A backend_url, and the server behind it. A lock there lasts for 10 s after its last word."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
         "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"redis://127.0.0.1:{port}?timeout=10", server
    finally:
        server.kill()
        server.wait()


def test_the_next_leader_by_redis_goes_on_where_the_killed_one_was(
    processes: Processes, redis_backend: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    processes.backend, nova = redis_backend[0], processes.state
    nova.going.clear()
    leader = processes.start("a", "state")
    processes.until(lambda: "Leading as" in processes.log("a").read_text(), "the first leads")
    processes.start("b", "state")
    processes.until(
        lambda: [e for e in processes.evictions("state") if e.at("appeared")], "it is under way"
    )
    assert "Leading as" not in processes.log("b").read_text()
    leader.kill()
    leader.wait()
    processes.until(lambda: "Leading as" in processes.log("b").read_text(), "the second leads")
    nova.going.set()
    processes.until(lambda: all(e.ended for e in processes.evictions("state")), "it ends it")
    (one,) = processes.evictions("state")
    assert (one.state, one.destination) == (State.DONE, "compute2")
    assert nova.requests == [VM]


def test_nobody_leads_while_redis_hangs(
    processes: Processes, redis_backend: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    processes.backend, server = redis_backend
    processes.start("a", "state", mode="audit")
    processes.until(lambda: "Leading as" in processes.log("a").read_text(), "it leads")
    server.send_signal(signal.SIGSTOP)
    processes.until(
        lambda: "Not leading any more" in processes.log("a").read_text(), "it stops to lead"
    )
    server.send_signal(signal.SIGCONT)
    processes.until(
        lambda: processes.log("a").read_text().count("Leading, with") == 2, "it leads again"
    )


def test_the_second_instance_waits_for_the_lead(processes: Processes) -> None:
    processes.start("a", "state")
    processes.until(lambda: "Leading as" in processes.log("a").read_text(), "the first leads")
    second = processes.start("b", "other")
    processes.until(lambda: processes.evictions("state"), "the first decides")
    processes.until(lambda: "Remediating" in processes.log("b").read_text(), "the second is up")
    assert "Leading as" not in processes.log("b").read_text()
    second.send_signal(signal.SIGTERM)
    assert second.wait(LONG_S) == 0
    assert processes.evictions("other") == []


def test_audit_only_proposes(processes: Processes) -> None:
    processes.start("a", "state", mode="audit")
    processes.until(lambda: processes.evictions("state"), "it proposes")
    processes.until(lambda: "Audit: would evict" in processes.log("a").read_text(), "it says so")
    (one,) = processes.evictions("state")
    assert one.state is State.PROPOSED
    assert processes.state.requests == []
    assert processes.asked("a").read_text() == ""


@pytest.fixture
def threads_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kind is chosen once for a process, and in this one another test may have done it."""
    monkeypatch.setattr(remediator.backend, "init_backend", lambda kind: None)


@pytest.mark.usefixtures("threads_chosen")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mode = perhaps", "mode"),
        ("max_evictions = 0", "max_evictions"),
        ("max_evictions = 2\nmax_evictions_per_host = 3", "max_evictions_per_host = 3"),
        ("appear_timeout = 1", "appear_timeout"),
        ("victim_policy = dice\nauth_type = none", "victim_policy = dice"),
        ("state_path = here", "state_path = here"),
        ("", "os_cloud"),
        ("auth_type = telepathy", "telepathy"),
        ("backend_url = carrier-pigeon://\nauth_type = none", "backend_url"),
        ("backend_url = redis://127.0.0.1?timeout=5\nauth_type = none", "for 5 s;"),
        ("auth_type = none\nstate_path = /proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_bad_configuration_is_refused_at_start(
    tmp_path: pathlib.Path, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.conf"
    text = text if "state_path" in text else f"state_path = {tmp_path}\n{text}"
    file.write_text(f"[DEFAULT]\ntransport_url = fake://\n[enlightened_remediation]\n{text}\n")
    assert remediator.main(["--config-file", str(file)]) == 1
    assert named in capsys.readouterr().err


@pytest.mark.usefixtures("threads_chosen")
def test_a_port_that_is_taken_is_refused_at_start(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeNovaApi(NovaState()) as other:
        port = other.url.split(":")[2].split("/")[0]
        file = tmp_path / "bad.conf"
        file.write_text(
            f"[DEFAULT]\ntransport_url = fake://\n[enlightened_remediation]\nauth_type = none\n"
            f"state_path = {tmp_path}\nmetrics_port = {port}\n"
        )
        assert remediator.main(["--config-file", str(file)]) == 1
    assert f"metrics_port = {port}" in capsys.readouterr().err
