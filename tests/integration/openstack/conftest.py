# SPDX-License-Identifier: Apache-2.0
"""One cloud for all tests in here: up with the first, gone after the last.

Its data is kept from run to run: the first start makes it, later ones are warm. The remediator
is started by the tests that are about it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import processes
from lab.errors import LabError
from lab.openstack import Cloud
from lab.openstack.agents import Agents
from lab.openstack.configuration import Driver, merged
from lab.openstack.places import Places
from lab.openstack.story import QUICK
from lab.watch import event_loop

HERE = Path(__file__).parent
PLACES = Places.default()
# Whatever else this machine does is no reason for Nova's scheduler to refuse the only host.
ANYWHERE = {"enlightened_scheduler": {"filter_migrations": False, "filter_new_servers": False}}
MARKS = (
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
    pytest.mark.skipif(
        not Path(PLACES.program("nova-compute")).exists(), reason="needs `make openstack`"
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say of every test in here what it needs."""
    for item in items:
        if HERE in item.path.parents:
            for mark in MARKS:
                item.add_marker(mark)


@pytest.fixture(scope="package")
def cloud() -> Iterator[Cloud]:
    try:
        Cloud.running()
    except LabError:
        pass
    else:
        pytest.skip("a cloud is up: `python -m lab.openstack stop` ends it")
    event_loop()  # before any connection to libvirt is made
    started = Cloud(
        driver=Driver.ENLIGHTENED, mode="auto", extra=merged(ANYWHERE, QUICK), remediated=False
    )
    try:
        yield started.up()
    finally:
        token = started.token()
        started.stop()
    assert not list(processes.belonging_to(token))
    assert not PLACES.run.exists()
    assert str(PLACES.run) not in Path("/proc/mounts").read_text()


@pytest.fixture(scope="package")
def agents(cloud: Cloud) -> Iterator[Agents]:
    asked = Agents(cloud)
    yield asked
    asked.close()
