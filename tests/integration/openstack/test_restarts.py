# SPDX-License-Identifier: Apache-2.0
"""nova-compute of the source is killed in the middle of an urgent migration, and starts again."""

from collections.abc import Iterator

import pytest

from lab.openstack import Cloud
from lab.openstack.agents import Agents
from lab.openstack.restarts import restarted
from lab.openstack.servers import Server


@pytest.fixture
def server(cloud: Cloud) -> Iterator[Server]:
    made = Server.create(cloud, "restarted", "host1")
    try:
        made.work("scattered")
        yield made
    finally:
        made.delete()


def test_a_migration_whose_nova_compute_is_killed_ends_as_it_is_on_record(
    cloud: Cloud, agents: Agents, server: Server
) -> None:
    assert not restarted(cloud, agents, server, after_s=2.0).wrong
