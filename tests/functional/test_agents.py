# SPDX-License-Identifier: Apache-2.0
"""Two agents on one bus, and the relays they start: everything but QEMU, libvirt and a guest."""

import os
import pathlib
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import oslo_messaging
import pytest
from oslo_config import cfg

from nova_enlightened import conf as options
from nova_enlightened import exception, rpc
from nova_enlightened.host import hint_sources, service
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.transfer import control

PATIENCE_S = 20.0
INSTANCE = str(uuid.uuid4())
FRAMES = 4096
XML = f"""<domain type='kvm'><name>i</name><memory unit='KiB'>{FRAMES * 4}</memory>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os></domain>"""


class Telling(hint_sources.HintSource):
    """A guest that tells at once what it knows."""

    name = "telling"
    told: ClassVar[int] = 0

    def open(self, timeout: float) -> str:
        return "tells"

    def latest(self) -> HeldKnowledge | None:
        return self.ask(0)

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        heat = np.zeros(FRAMES, np.uint8)
        heat[:40] = 255
        classes = np.full(FRAMES, PageClass.ANON, np.uint8)
        known = GuestKnowledge("test", FRAMES, classes, heat, (), 4, 1.0)
        return HeldKnowledge(known, self.clock(), asked=True)


class NoLibvirt:
    """One domain, and nothing else that a libvirt would have."""

    def get(self) -> Any:
        raise exception.LibvirtError("none here")

    hostname = capabilities = get

    def domain(self, wanted: str) -> "NoLibvirt":
        if wanted != INSTANCE:
            raise exception.LibvirtError(f"domain {wanted}: not found")
        return self

    def name(self) -> str:
        return "i"

    def XMLDesc(self) -> str:
        return XML

    def maxMemory(self) -> int:
        return FRAMES * 4

    def close(self) -> None:
        pass


@dataclass
class Host:
    """An agent, its bus server and its configuration."""

    agent: service.Agent
    server: service.BusServer
    conf: cfg.ConfigOpts


@dataclass
class Cloud:
    """Two hosts, and a client as nova-compute or the remediator has one."""

    source: Host
    destination: Host
    calls: rpc.HostAPI
    top: pathlib.Path

    def relays(self) -> dict[str, int]:
        """Role -> pid of the relays that answer."""
        for host in (self.source, self.destination):
            host.agent.look()
        running = self.source.agent.upkeep.running()
        return {one["role"]: one["pid"] for one in running}


def configured(top: pathlib.Path, name: str, *lines: str) -> cfg.ConfigOpts:
    file = top / f"{name}.conf"
    file.write_text(
        "\n".join((
            "[enlightened]",
            f"run_directory = {top}/r",
            "link_tls = off",
            "link_address = 127.0.0.1",
            "hint_sources = guest-agent",
            *lines,
            "[enlightened_agent]",
            f"host = {name}",
            "provider_traits = false",
        ))
    )  # fmt: skip
    return options.read([str(file)])


def host(transport: oslo_messaging.Transport, conf: cfg.ConfigOpts) -> Host:
    agent = service.Agent(
        conf,
        NoLibvirt(),  # type: ignore[arg-type]
        rpc.HostAPI(transport),
        lambda report: None,
    )
    return Host(agent, service.BusServer(transport, agent.host, agent.endpoint), conf)


@pytest.fixture
def top() -> Iterator[pathlib.Path]:
    """A directory with a short name: those of sockets in it may not be long."""
    with tempfile.TemporaryDirectory(prefix="nee-", dir="/tmp") as name:
        yield pathlib.Path(name)


@pytest.fixture
def cloud(
    top: pathlib.Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Cloud]:
    monkeypatch.setattr(hint_sources, "load", lambda names: [Telling])
    monkeypatch.setattr(hint_sources, "libvirt_agent_command", lambda domain: None)
    bus = cfg.ConfigOpts()
    bus([], project="test", default_config_files=[])
    rpc.register_library_opts(bus)
    transport = oslo_messaging.get_rpc_transport(bus, url="fake://")
    lines = getattr(request, "param", ())
    source = host(transport, configured(top, "host1"))
    destination = host(transport, configured(top, "host2", *lines))
    (top / "r").mkdir()
    for one in (source, destination):
        one.agent.look()
        one.server.start()
        assert one.server.wait_until_listening(PATIENCE_S)
    found = Cloud(source, destination, rpc.HostAPI(transport), top / "r")
    try:
        yield found
    finally:
        for one in (source, destination):
            one.server.stop()
            one.agent.stop()
        for path in found.top.glob("*/control.sock"):
            try:
                control.ask(str(path), "stop")
            except exception.RelayError:
                pass
        found.relays()


def prepared(cloud: Cloud) -> dict[str, Any]:
    return cloud.calls.prepare_eviction("host1", INSTANCE, "host2", tls_required=False)


def until(holds: Callable[[], bool]) -> None:
    """Wait for processes of which nothing tells but what they leave."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_an_instance_without_an_order_is_left_to_nova(cloud: Cloud) -> None:
    answer = prepared(cloud)
    assert (answer["wanted"], answer["ordered"]) == (False, False)
    assert "no urgent order" in answer["reason"]
    assert cloud.relays() == {}


def test_an_urgent_order_has_relays_ready_on_both_hosts(cloud: Cloud) -> None:
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    answer = prepared(cloud)
    assert (answer["wanted"], answer["ordered"]) == (True, True), answer["reason"]
    until(lambda: set(cloud.relays()) == {"source", "destination"})
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(answer["migrate_uri"].removeprefix("unix://"))
    # It is taken: the next migration is an ordinary one.
    assert not prepared(cloud)["wanted"]


def test_relays_end_when_the_vm_never_left(cloud: Cloud) -> None:
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    answer = prepared(cloud)
    until(lambda: set(cloud.relays()) == {"source", "destination"})
    pids = cloud.relays()
    cloud.calls.end_eviction("host1", answer["migration"], "failed: libvirt refused")
    # Their exit statuses are collected as well: they are gone, and no zombies.
    until(lambda: cloud.relays() == {} and not any(map(_exists, pids.values())))


def test_relays_go_on_when_their_agents_end(cloud: Cloud) -> None:
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    answer = prepared(cloud)
    until(lambda: set(cloud.relays()) == {"source", "destination"})
    for one in (cloud.source, cloud.destination):
        one.server.stop()
        one.agent.stop()
    # Agents that are started now know of them.
    fresh = RelayUpkeep(cloud.source.conf.enlightened.run_directory, 60.0)
    fresh.look()
    assert {one["migration"] for one in fresh.running()} == {answer["migration"]}
    assert {one["role"] for one in fresh.running()} == {"source", "destination"}


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("cloud", [("link_tls = required",)], indirect=True)
def test_hosts_that_disagree_on_tls_refuse_each_other(cloud: Cloud) -> None:
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    answer = prepared(cloud)
    assert not answer["ordered"]
    assert "link_tls" in answer["reason"]
    assert cloud.relays() == {}


def test_a_destination_without_an_agent_is_left_to_nova(cloud: Cloud) -> None:
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    answer = cloud.calls.prepare_eviction("host1", INSTANCE, "host3", tls_required=False)
    assert (answer["wanted"], answer["ordered"]) == (False, False)
    assert "host3" in answer["reason"]


def test_an_instance_that_is_not_here_leaves_no_relay_behind(cloud: Cloud) -> None:
    other = str(uuid.uuid4())
    cloud.calls.order_urgent("host1", other, "host1 is contended", 60.0)
    answer = cloud.calls.prepare_eviction("host1", other, "host2", tls_required=False)
    assert (answer["wanted"], answer["ordered"]) == (True, False)
    assert "not found" in answer["reason"]
    assert cloud.relays() == {}


def test_what_is_no_uuid_is_refused_in_words(cloud: Cloud) -> None:
    with pytest.raises(exception.AgentRefused, match="no UUID"):
        cloud.calls.order_urgent("host1", "../../etc", "cause", 60.0)


def test_an_agent_tells_what_it_is(cloud: Cloud) -> None:
    said = cloud.calls.describe("host2")
    assert (said["host"], said["link_host"], said["link_name"]) == ("host2", "127.0.0.1", "host2")
    assert said["capable"] is True, said["obstacles"]
