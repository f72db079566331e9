# SPDX-License-Identifier: Apache-2.0
"""The agent put together: what it is called, what it says of itself, what it does each turn."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.host import service
from nova_enlightened.host.collectors import reading
from nova_enlightened.host.collectors.reading import Collector, Reading
from tests.unit.host.captured import CAPABILITIES

SERVER = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
REPORT = HostReport(
    host="host1",
    node="node1",
    at=0.0,
    level=Level.CALM,
    reason="",
    cpu_level=Level.CALM,
    memory_level=Level.CALM,
    cpus=2,
    cpu_used=0.0,
    cpu_waiting=0.0,
    memory_total=1,
    memory_available=1,
)
WHOLE = Reading(cpus=2, cpu_busy=1.0, memory_total=10, memory_available=5, domains=())


class Libvirt:
    """A connection that is there, or not."""

    def __init__(self) -> None:
        self.up = True

    def hostname(self) -> str:
        if not self.up:
            raise exception.LibvirtError("gone")
        return "node1"

    def capabilities(self) -> str:
        return CAPABILITIES

    get = hostname

    def close(self) -> None:
        pass


class Calls:
    """No other host."""

    def describe(self, host: str) -> dict[str, Any]:
        raise exception.AgentUnreachable(host)

    def start_destination_relay(self, host: str, spec: str) -> dict[str, Any]:
        raise exception.AgentUnreachable(host)

    def arrival(self, host: str, instance: str, migration: str | None) -> dict[str, Any]:
        raise exception.AgentUnreachable(host)

    def end_arrival(self, host: str, migration: str) -> dict[str, Any]:
        raise exception.AgentUnreachable(host)


class Fixed(Collector):
    name = "fixed"
    found = WHOLE

    def collect(self, now: float, sofar: Reading) -> Reading:
        return self.found


class Scene:
    def __init__(self, tmp_path: pathlib.Path, *lines: str) -> None:
        file = tmp_path / "test.conf"
        run = tmp_path / "run"
        run.mkdir()
        file.write_text(
            f"[enlightened]\nrun_directory = {run}\nlink_tls = off\n"
            "[enlightened_agent]\nhost = host1\n" + "\n".join(lines)
        )
        self.libvirt = Libvirt()
        self.sent: list[HostReport] = []
        self.agent = service.Agent(
            options.read([str(file)]),
            self.libvirt,  # type: ignore[arg-type]
            Calls(),
            self.sent.append,
        )


@pytest.fixture
def scene(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(reading, "load", lambda names, surroundings: [Fixed(surroundings)])
    monkeypatch.setattr(service, "make_run_directory", lambda path, group: None)
    monkeypatch.setattr("nova_enlightened.host.capability.userfaultfd_obstacle", lambda *_: None)
    made = Scene(tmp_path)
    yield made
    made.agent.stop()


def test_before_it_has_looked_it_claims_nothing(scene: Scene) -> None:
    said = scene.agent.describe()
    assert (said["capable"], said["level"], said["node"]) == (False, None, None)


def test_it_says_what_it_is_and_can(scene: Scene) -> None:
    scene.agent.look()
    scene.agent.sample()
    said = scene.agent.describe()
    assert (said["host"], said["node"], said["capable"]) == ("host1", "node1", True)
    assert (said["level"], said["relays"], said["armed"], said["orders"]) == (0, [], {}, [])
    assert said["link_name"] == "host1"


def test_trouble_of_the_link_makes_it_unfit_for_the_moment(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.agent.look()
    monkeypatch.setattr(Fixed, "found", Reading(trouble=("eth1 has no carrier",)).over(WHOLE))
    scene.agent.sample()
    said = scene.agent.describe()
    assert (said["capable"], said["obstacles"]) == (False, ["eth1 has no carrier"])


def test_an_urgent_order_is_reported_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[HostReport] = []
    monkeypatch.setattr(scene.agent._outbox, "offer", offered.append)
    scene.agent.endpoint.order_urgent({}, SERVER, "cause", 60.0)
    assert offered == []  # there is no sample yet
    scene.agent.sample()
    scene.agent.endpoint.withdraw_urgent({}, SERVER)
    scene.agent.sample()
    scene.agent.endpoint.order_urgent({}, SERVER, "cause", 60.0)
    assert [one.urgent for one in offered] == [(SERVER,), (), (SERVER,)]
    assert offered[-1].at > offered[-2].at


def test_what_nova_reserves_for_the_host_is_reported(tmp_path: pathlib.Path) -> None:
    made = Scene(tmp_path, "[DEFAULT]", "reserved_host_cpus = 2", "reserved_host_memory_mb = 4096")
    bare = made.agent._with_own(REPORT)
    assert (bare.reserved_cpus, bare.reserved_memory) == (2, 4 << 20)
    made.agent.stop()


def test_without_libvirt_it_reports_nothing_and_goes_on(scene: Scene) -> None:
    scene.agent.sample()
    scene.libvirt.up = False
    scene.agent.sample()
    assert scene.agent.describe()["level"] is None
    scene.libvirt.up = True
    scene.agent.sample()
    assert scene.agent.describe()["level"] == 0


def test_a_turn_that_fails_is_followed_by_another(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)
        if len(turns) == 3:
            scene.agent._ending.set()
        raise ZeroDivisionError

    scene.agent._repeat("sampling", 0.0, turn)
    assert len(turns) == 3
    assert "Sampling" in caplog.text


def test_where_relays_listen_everywhere_peers_are_given_this_hosts_address(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oslo_utils.netutils.get_my_ipv4", lambda: "198.51.100.4")
    assert service.own_link_host(options.read([])) == "198.51.100.4"
    file = tmp_path / "test.conf"
    file.write_text("[enlightened]\nlink_address = 192.0.2.4\n")
    assert service.own_link_host(options.read([str(file)])) == "192.0.2.4"
    file.write_text(
        "[enlightened]\nlink_address = ::\n[enlightened_agent]\nlink_host = a.example\n"
    )
    assert service.own_link_host(options.read([str(file)])) == "a.example"


def test_a_name_given_to_nova_is_the_agents_too(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "nova.conf"
    file.write_text("[DEFAULT]\nhost = rack1-host7\n")
    agent = service.Agent(options.read([str(file)]), Libvirt(), Calls(), lambda _: None)  # type: ignore[arg-type]
    assert (agent.host, agent.describe()["link_name"]) == ("rack1-host7", "rack1-host7")
    agent.stop()


def test_a_run_directory_too_long_for_sockets_is_refused_by_name() -> None:
    with pytest.raises(exception.ConfigError, match=r"run_directory = /x{60} is longer than 45"):
        service.make_run_directory("/" + "x" * 60, None)


@pytest.mark.parametrize(
    "text",
    [
        "[enlightened]\nhint_sources = tarot",
        "[enlightened]\nordering_policy = random",
        "[enlightened_agent]\nguest_cpus = all",
        "[enlightened_agent]\ncollectors = weather",
    ],
)
def test_what_does_not_exist_is_refused_by_name(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "test.conf"
    file.write_text(text)
    conf = options.read([str(file)])
    with pytest.raises(exception.ConfigError, match=text.split("\n")[1].split(" = ")[0]):
        service.Agent(conf, Libvirt(), Calls(), lambda _: None)  # type: ignore[arg-type]
