# SPDX-License-Identifier: Apache-2.0
"""A server leaves its host through a real Nova, in the order its guest needs.

The cloud's data is kept from run to run: the first start makes it, later ones are warm.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import processes
from lab.errors import LabError
from lab.openstack import Cloud
from lab.openstack.agents import Agents
from lab.openstack.configuration import Driver
from lab.openstack.places import Places
from lab.openstack.servers import Server

PLACES = Places.default()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
    pytest.mark.skipif(
        not Path(PLACES.program("nova-compute")).exists(), reason="needs `make openstack`"
    ),
]
# Whatever else this machine does is no reason for Nova's scheduler to refuse the only host.
ANYWHERE = {"enlightened_scheduler": {"filter_migrations": False, "filter_new_servers": False}}
MOVE_S = 120.0


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    try:
        Cloud.running()
    except LabError:
        pass
    else:
        pytest.skip("a cloud is up: `python -m lab.openstack stop` ends it")
    started = Cloud(driver=Driver.ENLIGHTENED, extra=ANYWHERE)
    try:
        yield started.up()
    finally:
        token = started.token()
        started.stop()
    assert not list(processes.belonging_to(token))
    assert not PLACES.run.exists()
    assert str(PLACES.run) not in Path("/proc/mounts").read_text()


@pytest.fixture(scope="module")
def agents(cloud: Cloud) -> Iterator[Agents]:
    asked = Agents(cloud)
    yield asked
    asked.close()


@pytest.fixture(scope="module")
def server(cloud: Cloud) -> Iterator[Server]:
    made = Server.create(cloud, "smoke", "host1")
    made.work("scattered")
    yield made
    made.delete()
    assert cloud.api.allocations(made.uuid) == {}


def moved(cloud: Cloud, server: Server) -> tuple[dict[str, Any], list[str]]:
    """Have Nova live-migrate it; its migration when it has ended, and every status seen."""
    before = {one["id"] for one in cloud.api.migrations(server.uuid)}
    server.live_migrate()
    seen: list[str] = []
    deadline = time.monotonic() + MOVE_S
    while time.monotonic() < deadline:
        new = [one for one in cloud.api.migrations(server.uuid) if one["id"] not in before]
        if new and new[0]["status"] not in seen[-1:]:
            seen.append(new[0]["status"])
            if seen[-1] in ("completed", "error", "failed", "cancelled"):
                return new[0], seen
        time.sleep(0.2)  # Nova's API tells nobody by itself
    raise AssertionError(f"no end after {MOVE_S:.0f} s: {seen}")


def source_relays(cloud: Cloud, host: str) -> list[dict[str, Any]]:
    """What the relays on a host that was a source last wrote of themselves."""
    directory = cloud.lab.hosts[host].outside("/run/nova-enlightened")
    return [json.loads(path.read_text()) for path in directory.glob("*-source/state.json")]


def test_both_hosts_are_able_and_their_agents_answer(cloud: Cloud, agents: Agents) -> None:
    assert cloud.missing == []
    for host in cloud.lab.hosts:
        told = agents.describe(host)
        assert told["capable"], told["obstacles"]


def test_an_ordered_migration_is_post_copy_in_the_guests_order(
    cloud: Cloud, agents: Agents, server: Server
) -> None:
    agents.arm("host1", server.uuid)
    agents.order("host1", server.uuid, "smoke")
    migration, seen = moved(cloud, server)
    assert migration["status"] == "completed"
    assert "running (post-copy)" in seen
    assert server.host == "host2"
    (relay,) = source_relays(cloud, "host1")
    assert relay["phase"] == "completed"
    assert relay["error"] is None
    assert relay["pages"]["injected"] > 0


def test_placement_holds_a_moved_server_once(cloud: Cloud, server: Server) -> None:
    assert cloud.api.allocations(server.uuid) == {server.host: {"VCPU": 1, "MEMORY_MB": 768}}


def test_the_guest_works_on_where_it_is(server: Server) -> None:
    began = server.probe.latest
    assert began is not None
    assert server.probe.wait_next(5.0) is not None
    host, _ = server.domain()
    assert host.name == server.host


def test_without_an_order_nova_moves_it_its_own_way(cloud: Cloud, server: Server) -> None:
    server.work("idle")  # what writes its memory all the time never gets across by pre-copy
    source = server.host
    migration, _ = moved(cloud, server)
    assert migration["status"] == "completed"
    assert server.host != source
    assert source_relays(cloud, source) == [] or source == "host1"
