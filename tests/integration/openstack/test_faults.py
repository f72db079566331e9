# SPDX-License-Identifier: Apache-2.0
"""What breaks in the middle of an urgent migration: there is one VM, the same that it was, and what
Nova and placement hold of it is true. More is broken, without Nova, one directory up.
"""

from collections.abc import Iterator

import pytest

from lab.openstack import Cloud, faults
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from tests.conftest import FAILED


@pytest.fixture(scope="module")
def kept(cloud: Cloud) -> Iterator[list[Server]]:
    """The server that goes to and fro."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.delete()


@pytest.fixture
def server(cloud: Cloud, kept: list[Server], request: pytest.FixtureRequest) -> Iterator[Server]:
    """Another one after a case that has failed."""
    if not kept:
        kept.append(Server.create(cloud, "befallen", "host1"))
        kept[0].work("scattered")
    yield kept[0]
    if request.node.stash[FAILED]:
        kept.pop().delete()


def test_nova_compute_killed(cloud: Cloud, agents: Agents, server: Server) -> None:
    case = faults.befallen(cloud, agents, server, faults.nova_compute_killed, after_s=2.0)
    assert not case.wrong


@pytest.mark.parametrize(
    "fault",
    [faults.link_cut, faults.relay_killed, faults.libvirtd_restarted],
    ids=lambda fault: fault.__name__,
)
def test_after_the_switch(
    cloud: Cloud, agents: Agents, server: Server, fault: faults.Fault
) -> None:
    case = faults.befallen(cloud, agents, server, fault)
    assert (case.wrong, case.status) == ("", "completed")
