# SPDX-License-Identifier: Apache-2.0
"""A Nova, agents and a bus that behave, and misbehave where a test says so."""

import dataclasses
from typing import Any

from nova_enlightened import exception
from nova_enlightened.contention.report import DomainReport, HostReport, Level
from nova_enlightened.remediation.eviction_states import UNDER_WAY, State
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.servers import Migration, Server

GIB = 1 << 20
"""In KiB."""


def record(**changes: Any) -> EvictionRecord:
    values: dict[str, Any] = {
        "eviction": "e1",
        "cause": "compute1/cpu/100.000",
        "host": "compute1",
        "instance": "vm1",
        "predicted_relief": 0.8,
        "predicted_cost": 2.5,
        "before": 1.2,
        "times": {"detected": 99.0, "decided": 100.0},
    }
    return EvictionRecord(**{**values, **changes})


def report(
    host: str, at: float, level: Level = Level.CALM, guests: tuple[str, ...] = ()
) -> HostReport:
    contended = level is Level.ACT
    return HostReport(
        host=host,
        node=host,
        at=at,
        level=level,
        reason="measured" if contended else "",
        cpu_level=level,
        memory_level=Level.CALM,
        cpus=4,
        cpu_used=4.0 if contended else 0.5,
        cpu_waiting=1.2 if contended else 0.0,
        memory_total=8 * GIB,
        memory_available=6 * GIB,
        bandwidth=125_000_000,
        capable=True,
        domains=tuple(
            DomainReport(uuid, 2, 1.0, 0.6 if contended else 0.0, GIB, GIB, GIB // 8)
            for uuid in guests
        ),
    )


class FakeNova:
    """Servers and their migrations; `fail` is raised by the next call of that name."""

    def __init__(self, *servers: Server) -> None:
        self.servers = {server.uuid: server for server in servers}
        self.migrations: list[Migration] = []
        self.requested: list[str] = []
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.lose_answer = False

    def servers_on(self, host: str) -> list[Server]:
        self._called("servers_on")
        return [server for server in self.servers.values() if server.host == host]

    def server(self, uuid: str) -> Server:
        self._called("server")
        if uuid not in self.servers:
            raise exception.ServerGone(f"server {uuid}: not found")
        return self.servers[uuid]

    def migrations_of(self, uuid: str) -> list[Migration]:
        self._called("migrations_of")
        return [migration for migration in self.migrations if migration.server == uuid]

    def migrations_since(self, since: str) -> list[Migration]:
        self._called("migrations_since")
        return list(self.migrations)

    def live_migrate(self, uuid: str) -> None:
        self.requested.append(uuid)
        self._called("live_migrate")
        server = self.server(uuid)
        if server.task:
            raise exception.NovaRefused("409: it is migrating")
        self.begin(uuid)
        if self.lose_answer:
            self.lose_answer = False
            raise exception.NovaUnreachable("the answer was lost")

    def begin(self, uuid: str) -> None:
        """A live migration, whoever asked for it."""
        self.servers[uuid] = dataclasses.replace(self.servers[uuid], task="migrating")
        number = len(self.migrations) + 1
        self.migrations.append(Migration(number, uuid, self.servers[uuid].host, "", "accepted"))

    def progress(self, status: str, destination: str = "compute2", which: int = -1) -> None:
        """A migration goes on: the last one, if none is named."""
        one = self.migrations[which]
        self.migrations[which] = dataclasses.replace(one, status=status, destination=destination)
        server = self.servers.get(one.server)
        if server is not None and status not in UNDER_WAY:
            host = destination if status == "completed" else server.host
            self.servers[one.server] = dataclasses.replace(server, host=host, task="")

    def finish(self) -> None:
        """All that is under way completes."""
        for which, one in enumerate(self.migrations):
            if one.status in UNDER_WAY:
                self.progress("completed", which=which)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail.pop(name)


class FakeAgents:
    """Notes what is asked; `error` is raised by every call while set."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: exception.EnlightenedError | None = None

    def arm(self, host: str, instances: list[str]) -> dict[str, Any]:
        return self._ask("arm", host, tuple(instances))

    def disarm(self, host: str, instances: list[str]) -> dict[str, Any]:
        return self._ask("disarm", host, tuple(instances))

    def order_urgent(self, host: str, instance: str, cause: str, ttl: float) -> dict[str, Any]:
        return self._ask("order", host, instance)

    def withdraw_urgent(self, host: str, instance: str) -> dict[str, Any]:
        return self._ask("withdraw", host, instance)

    def _ask(self, *what: Any) -> dict[str, Any]:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
        return {}


class FakeVoice:
    """Notes what is said."""

    def __init__(self) -> None:
        self.notified: list[tuple[str, EvictionRecord]] = []
        self.shared: list[EvictionRecord] = []

    def notify(self, event: str, about: EvictionRecord) -> None:
        self.notified.append((event, about))

    def share(self, about: EvictionRecord) -> None:
        self.shared.append(about)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.notified]


class FakeReports:
    """What hosts said last."""

    def __init__(self) -> None:
        self.held: list[HostReport] = []

    def current(self) -> list[HostReport]:
        return self.held


class ImmediateJobs:
    """As ``jobs.Jobs``, but each call is made when it is submitted; or never while `hold`."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.held: set[tuple[str, str]] = set()
        self.hold = False

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.held

    def submit(self, key: tuple[str, str], call: Any) -> bool:
        if key in self.held:
            return False
        if self.hold:
            self.held.add(key)
            return True
        try:
            self.done.append((key, (call(), None)))
        except exception.EnlightenedError as error:
            self.done.append((key, (None, error)))
        return True

    def finished(self) -> list[Any]:
        done, self.done = self.done, []
        return done

    def forget(self) -> None:
        self.done.clear()
        self.held.clear()


def states(records: list[EvictionRecord]) -> list[State]:
    """The states that something went through, each once in a row."""
    found = [one.state for one in records]
    return [state for n, state in enumerate(found) if n == 0 or found[n - 1] is not state]
