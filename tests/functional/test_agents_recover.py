# SPDX-License-Identifier: Apache-2.0
"""Two agents on one bus recover a VM whose relay was killed; only QEMU and libvirt are played."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host import service, staying
from tests.functional.test_agents import (
    INSTANCE,
    Cloud,
    NoLibvirt,
    cloud,
    prepared,
    top,
    until,
)

__all__ = ["cloud", "top"]
PATIENCE_S = 90.0
"""Four interpreters are started, on a machine that may have other things to do."""
CONTROL_URI = "qemu+tcp://host2/system"


class Paused:
    """A domain in post-copy, as libvirt of both hosts has it, and that connection itself."""

    def __init__(self) -> None:
        self.resumed: list[tuple[str, str, int]] = []
        self.asked = threading.Event()
        self.whole = threading.Event()

    def lookupByUUIDString(self, uuid: str) -> "Paused":
        return self

    def state(self) -> tuple[int, int]:
        return libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> None:
        self.resumed.append((uri, parameters["migrate_uri"], flags))
        self.asked.set()
        self.whole.wait(60)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paused]:
    made = Paused()
    monkeypatch.setattr(NoLibvirt, "get", lambda self: made)
    monkeypatch.setattr(staying, "gave_up", lambda lookup: False)  # as its QEMU would say
    yield made
    made.whole.set()


def ordered(cloud: Cloud) -> str:
    """A migration that is followed, with its relays; its id."""
    cloud.calls.order_urgent("host1", INSTANCE, "host1 is contended", 60.0)
    migration = str(prepared(cloud)["migration"])
    cloud.calls.follow_eviction(
        "host1",
        instance=INSTANCE,
        destination="host2",
        control_uri=CONTROL_URI,
        migration=migration,
    )
    until(lambda: set(cloud.relays()) == {"source", "destination"})
    return migration


def migrations(cloud: Cloud) -> set[tuple[str, str]]:
    """(id, role) of the relays that run."""
    cloud.relays()
    return {(one["migration"], one["role"]) for one in cloud.source.agent.upkeep.running()}


def recovers(cloud: Cloud, agent: service.Agent, paused: Paused) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not paused.asked.wait(0.05):
        assert time.monotonic() < deadline, agent.recovery.told()
        agent.recovery.turn()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_killed_relay_has_both_replaced_and_libvirt_resume(
    cloud: Cloud, paused: Paused, side: str
) -> None:
    old = ordered(cloud)
    os.kill(cloud.relays()[side], signal.SIGKILL)
    recovers(cloud, cloud.source.agent, paused)
    told = cloud.calls.recovery("host1", INSTANCE)
    assert told["attempts"] == 1
    new = told["migration"]
    assert new != old
    assert migrations(cloud) == {(new, "source"), (new, "destination")}
    (uri, migrate_uri, flags) = paused.resumed[0]
    assert uri == CONTROL_URI
    assert new[:8] in migrate_uri
    assert flags & libvirt.VIR_MIGRATE_POSTCOPY_RESUME


def test_an_agent_started_anew_recovers_what_the_old_one_followed(
    cloud: Cloud, paused: Paused
) -> None:
    ordered(cloud)
    pids = cloud.relays()
    cloud.source.server.stop()
    cloud.source.agent.stop()
    assert cloud.relays() == pids  # nothing of the migration was disturbed
    os.kill(pids["source"], signal.SIGKILL)
    anew = service.Agent(
        cloud.source.conf,
        NoLibvirt(),  # type: ignore[arg-type]
        cloud.calls,
        lambda report: None,
    )
    anew.recovery.load()
    recovers(cloud, anew, paused)
    assert anew.recovery.state(INSTANCE)["attempts"] == 1
    anew.stop()


def test_an_operator_stops_and_retries_over_the_bus(cloud: Cloud, paused: Paused) -> None:
    ordered(cloud)
    assert cloud.calls.stop_recovery("host1", INSTANCE)["state"] == "stopped"
    os.kill(cloud.relays()["source"], signal.SIGKILL)
    for _ in range(10):
        cloud.source.agent.recovery.turn()
    assert not paused.asked.is_set()
    assert cloud.calls.recoveries("host1")["departures"][0]["state"] == "stopped"
    cloud.calls.retry_recovery("host1", INSTANCE)
    recovers(cloud, cloud.source.agent, paused)


def test_an_end_that_nova_knows_of_is_followed_no_more(cloud: Cloud, paused: Paused) -> None:
    migration = ordered(cloud)
    cloud.calls.end_eviction("host1", migration, "completed")
    assert cloud.calls.recoveries("host1")["departures"][0]["instance"] == INSTANCE
    with pytest.raises(exception.AgentRefused, match="under way"):
        cloud.calls.retry_recovery("host1", INSTANCE)
