# SPDX-License-Identifier: Apache-2.0
"""A server leaves its host through a real Nova, in the order its guest needs."""

from collections.abc import Iterator

import pytest

from lab.openstack import Cloud
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from tests.integration.openstack.asked import moved, source_relays, until


@pytest.fixture(scope="module")
def server(cloud: Cloud) -> Iterator[Server]:
    made = Server.create(cloud, "smoke", "host1")
    made.work("scattered")
    yield made
    made.delete()
    until(lambda: cloud.api.allocations(made.uuid) == {}, 30.0, "placement holds its room")


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
