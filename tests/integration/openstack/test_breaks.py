# SPDX-License-Identifier: Apache-2.0
"""What everything leans on breaks in the middle of an eviction: it ends, once, on record."""

import time
from collections.abc import Iterator

import pytest

from lab.faults import restart_libvirtd
from lab.openstack import Cloud, services
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from nova_enlightened import exception
from nova_enlightened.remediation import journal
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.record import EvictionRecord
from tests.integration.openstack.asked import HARD_WORK, Move, until, works_where_nova_has_it

DECIDED_S, ENDED_S = 180.0, 300.0


@pytest.fixture
def pair(cloud: Cloud) -> Iterator[tuple[Server, Server]]:
    """Two servers on host1, which has one processor: one works, the other holds its work."""
    made: list[Server] = []
    try:
        for name in ("stays", "rises"):
            made.append(Server.create(cloud, name, "host1"))
        for one in reversed(made):
            one.work("scattered", *HARD_WORK)
            if one is made[1]:
                one.hold()
        yield made[0], made[1]
    finally:
        for one in made:
            one.delete()


def records(cloud: Cloud, began: float) -> list[EvictionRecord]:
    """What the remediator has on record since; adopted migrations are not in the journal."""
    try:
        found = journal.read(cloud.places.run / "ctl/remediator", 50)
    except exception.JournalError:
        return []
    return [one for one in found if (one.at("decided") or 0.0) >= began]


def test_an_eviction_under_way_ends_though_the_bus_was_gone(
    cloud: Cloud, agents: Agents, pair: tuple[Server, Server]
) -> None:
    remediator, bus = services.remediator(cloud.places), services.bus(cloud.places)
    began = time.time()
    cloud.launch.start(remediator)
    try:
        cloud.launch.wait(remediator)
        pair[1].go_on()
        until(
            lambda: any(one.migration is not None for one in records(cloud, began)),
            DECIDED_S,
            "nothing is on its way",
        )
        cloud.launch.stop(bus)
        cloud.launch.start(bus)
        cloud.launch.wait(bus)
        until(lambda: all(one.ended for one in records(cloud, began)[-1:]), ENDED_S, "it is stuck")
    finally:
        cloud.launch.stop(remediator)
    first = records(cloud, began)[-1]
    (leaver,) = (one for one in pair if one.uuid == first.instance)
    migrations = cloud.api.migrations(leaver.uuid)
    assert [one["id"] for one in migrations] == [first.migration]
    assert (migrations[0]["status"] == "completed") == (first.state is State.DONE)
    there = works_where_nova_has_it(cloud, leaver, 60.0)
    assert there == ("host2" if first.state is State.DONE else "host1")
    for host in cloud.lab.hosts:
        assert agents.describe(host)["capable"]


def test_an_eviction_ends_though_libvirtd_of_its_source_was_gone(
    cloud: Cloud, agents: Agents
) -> None:
    server = Server.create(cloud, "watched", "host1")
    try:
        server.work("scattered", *HARD_WORK)
        agents.order("host1", server.uuid, "a test")
        move = Move(cloud, server)
        server.live_migrate()
        move.reached("running (post-copy)")
        restart_libvirtd(cloud.lab.hosts["host1"])
        assert move.ended()["status"] == "completed"
        assert works_where_nova_has_it(cloud, server, 60.0) == "host2"
        assert list(cloud.lab.hosts["host1"].domains()) == []
    finally:
        server.delete()
