# SPDX-License-Identifier: Apache-2.0
"""A context whose edges are told what to answer."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any, cast

from nova_enlightened import exception
from nova_enlightened.cmd.manage import command, context
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.contention.report import HostReport
from nova_enlightened.remediation.servers import Migration, Server

SERVER = Server("11111111-2222-4333-8444-555555555555", "web", "compute1", "active")
MOVED = Migration(7, SERVER.uuid, "compute1", "compute2", "completed")
EARLIER = dataclasses.replace(MOVED, id=3)


def seen(status: str, destination: str = "compute2") -> Migration:
    return dataclasses.replace(MOVED, status=status, destination=destination)


class Agents:
    """In place of ``rpc.HostAPI``. An answer that is an error is raised."""

    def __init__(self) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.refusal: exception.EnlightenedError | None = None
        self.orders: list[tuple[str, str]] = []
        self.withdrawn: list[str] = []
        self.hands: list[tuple[str, str, str]] = []

    def describe(self, host: str) -> dict[str, Any]:
        if host not in self.answers:
            raise exception.AgentUnreachable(f"agent of {host}: no answer")
        return self.answers[host]

    def recoveries(self, host: str) -> dict[str, Any]:
        return {"departures": self.describe(host)["departures"]}

    def retry_recovery(self, host: str, instance: str) -> dict[str, Any]:
        return self._hand("retry", host, instance)

    def stop_recovery(self, host: str, instance: str) -> dict[str, Any]:
        return self._hand("stop", host, instance)

    def _hand(self, what: str, host: str, instance: str) -> dict[str, Any]:
        if instance not in [one["instance"] for one in self.describe(host)["departures"]]:
            raise exception.AgentRefused(f"no migration of {instance} from {host} is under way")
        self.hands.append((what, host, instance))
        return {"state": "followed" if what == "retry" else "stopped"}

    def order_urgent(self, host: str, instance: str, cause: str, ttl: float) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        self.orders.append((host, instance))
        return {"until": ttl}

    def withdraw_urgent(self, host: str, instance: str) -> dict[str, Any]:
        self.withdrawn.append(instance)
        return {"withdrawn": True}


class Cloud:
    """In place of ``servers.NovaApi``: what it lists of migrations changes with every look.

    :ivar looks: one after another: what is listed, or an error. The last one stays.
    """

    def __init__(self) -> None:
        self.server = SERVER
        self.refusal: exception.EnlightenedError | None = None
        self.looks: list[list[Migration] | exception.EnlightenedError] = [[]]
        self.requested: list[str] = []

    def find(self, name: str) -> Server:
        if name not in (self.server.uuid, self.server.name):
            raise exception.ServerGone(f"server {name}: No Server found for {name}")
        return self.server

    def migrations_of(self, uuid: str) -> list[Migration]:
        now = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(now, exception.EnlightenedError):
            raise now
        return now

    def live_migrate(self, uuid: str) -> None:
        self.requested.append(uuid)
        if self.refusal is not None:
            raise self.refusal


@dataclasses.dataclass
class Stage:
    """Everything around the commands."""

    context: Context
    agents: Agents
    cloud: Cloud
    reports: list[HostReport]

    def run(self, *words: str) -> int:
        return command.run(command.parser().parse_args(words), self.context)


def stage(tmp_path: pathlib.Path, text: str = "") -> Stage:
    """:param text: of a configuration file."""
    file = tmp_path / "manage.conf"
    state = f"[enlightened_remediation]\nstate_path = {tmp_path}\n"
    file.write_text(f"{state}[enlightened_agent]\nhost = compute1\n{text}")
    agents, cloud = Agents(), Cloud()
    reports: list[HostReport] = []
    now = [1000.0]

    def listen(wait: float, hosts: Collection[str]) -> list[HostReport]:
        return [one for one in reports if not hosts or one.host in hosts]

    def pause(seconds: float) -> None:
        now[0] += seconds

    made = Context(
        context.read([str(file)]),
        cast("Any", agents),
        cast("Any", cloud),
        listen,
        clock=lambda: now[0],
        pause=pause,
    )
    return Stage(made, agents, cloud, reports)
