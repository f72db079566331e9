# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.openstack.story``: load rises, the cloud relieves its host by itself, and a
picture of how it went; then the same with stock Nova under the same monitor.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from openstack.exceptions import SDKException
from rich.console import Console

from lab import telling
from lab.demo import Stage, show, write
from lab.errors import LabError
from lab.openstack import services
from lab.openstack.cloud import LINK_MBIT, Cloud
from lab.openstack.configuration import Driver
from lab.openstack.servers import Server
from lab.story import Act, Story
from lab.watch import Watch, event_loop
from lab.way import Migration, Way
from nova_enlightened import exception
from nova_enlightened.remediation import journal
from nova_enlightened.remediation.record import EvictionRecord

WORK = {"db": ("scattered", "pages/s"), "web": ("scattered", "pages/s")}
RISES = "web"
ALONE_S, AFTER_S, LOOKS = 3.0, 3.0, 3
DECISION_S, MOVE_S = 90.0, 90.0
LOOK_S, FORCE_S, FOLLOW_S = 0.1, 0.5, 1.0
"""Between two looks: at a file; before a switch is forced again; at a migration under way, of which
Nova's API is asked. On few processors each question takes from what the servers are judged by.
"""
ABORTED_S = 30.0
#: The story's cloud is small: one host relieves the other, act after act.
QUICK = {
    "enlightened_remediation": {"host_cooldown": 5, "return_after": 0, "follow_interval": 0.5},
}
ENDED = ("completed", "error", "failed", "cancelled")


@dataclasses.dataclass(frozen=True)
class Moved:
    """What the journal and Nova tell of one eviction; ``since``: when load rose (monotonic s)."""

    record: EvictionRecord
    migration: Migration
    since: float

    @property
    def rose_at(self) -> float:
        """``since``, in seconds since the epoch as the record's times are."""
        return self.since + time.time() - time.monotonic()


class Play:
    """Two servers on host1 of ``cloud``: one works, then the other begins to as well."""

    def __init__(self, cloud: Cloud, stage: Stage) -> None:
        self._cloud = cloud
        self._stage = stage
        self._servers: dict[str, Server] = {}
        self._alone: dict[str, float] = {}

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Both servers, with what each does alone; gone after the block."""
        with ExitStack() as stack:
            for name in WORK:
                with self._stage.phase(f"{name} boots on host1"):
                    server = Server.create(self._cloud, name, "host1")
                    stack.callback(self._leave, server)
                    self._servers[name] = server
            for name in (RISES, *(other for other in WORK if other != RISES)):
                with self._stage.phase(f"{name} alone"):
                    self._servers[name].work(WORK[name][0])
                    self._alone[name] = self._rate(name, ALONE_S)
                    if name == RISES:
                        self._servers[name].hold()
                self._stage.say(f"{name} alone: {self._alone[name]:,.0f} {WORK[name][1]}")
            yield

    def _leave(self, server: Server) -> None:
        with suppress(LabError, SDKException):
            server.delete()

    def act(self, way: Way) -> Act:
        """Load rises; the cloud decides and acts. Raises LabError where it does not."""
        return told(*self.evicted(way))

    @contextmanager
    def _remediated(self) -> Iterator[None]:
        remediator = services.remediator(self._cloud.places)
        self._cloud.launch.start(remediator)
        try:
            self._cloud.launch.wait(remediator, 60.0)
            yield
        finally:
            self._cloud.launch.stop(remediator)

    def steady(self, seconds: float) -> int:
        """How many evictions are decided while one server works and the other does not.

        Raises LabError where none is either when load has risen then: nobody watched.
        """
        with self._remediated():
            began = time.time()
            time.sleep(seconds)  # what is looked for is that nothing happens
            found = [one for one in self._mine() if (one.at("decided") or 0.0) >= began]
            if not found:
                rose = time.time()
                self._servers[RISES].go_on()
                self._decided(rose)
            return len(found)

    def evicted(
        self, way: Way, within: float = MOVE_S
    ) -> tuple[Moved, tuple[telling.Worker, ...]]:  # fmt: skip
        """The same, as what was seen; Nova has so many seconds to move it."""
        with ExitStack() as stack:
            hosts = tuple(self._cloud.lab.hosts.values())
            watches = {
                name: stack.enter_context(Watch(server.domain()[1].name(), hosts))
                for name, server in self._servers.items()
            }
            stack.enter_context(self._remediated())
            with self._stage.phase(f"{way.words}: load rises in {RISES}"):
                began = time.time()
                since = time.monotonic()
                self._servers[RISES].go_on()
                record = self._decided(began)
            leaver = self._name(record)
            self._stage.say(f"{record.host} is contended; {leaver} leaves: {record.why}")
            with self._stage.phase(f"{way.words}: {leaver} leaves"):
                moved = self._followed(record, way, watches[leaver], since, within)
            with self._stage.phase(f"{way.words}: each with a processor for itself"):
                workers = self._workers(leaver)
            return moved, workers

    def _name(self, record: EvictionRecord) -> str:
        return next(name for name, one in self._servers.items() if one.uuid == record.instance)

    def _records(self) -> list[EvictionRecord]:
        with suppress(exception.JournalError):
            return journal.read(self._cloud.places.run / "ctl/remediator", 50)
        return []

    def _mine(self) -> list[EvictionRecord]:
        mine = {server.uuid for server in self._servers.values()}
        return [record for record in self._records() if record.instance in mine]

    def _decided(self, began: float) -> EvictionRecord:
        deadline = time.monotonic() + DECISION_S
        while time.monotonic() < deadline:
            for record in self._mine():
                if (record.at("decided") or 0.0) >= began - 1.0:
                    return record
            time.sleep(LOOK_S)  # the journal is a file
        raise LabError(f"the remediator decided nothing in {DECISION_S:.0f} s: its log is "
                       f"{self._cloud.places.log('nova-enlightened-remediator')}")  # fmt: skip

    def _followed(
        self, record: EvictionRecord, way: Way, watch: Watch, since: float, within: float
    ) -> Moved:
        """Until Nova has ended it. Stock post-copy is switched as soon as Nova allows it; what
        is not there in time is aborted.
        """
        server = self._servers[self._name(record)]
        failure = None
        deadline = time.monotonic() + within
        while True:
            new = [one for one in self._cloud.api.migrations(server.uuid)
                   if int(one["id"]) > record.after_migration]  # fmt: skip
            status = new[0]["status"] if new else "requested"
            self._stage.tell(status)
            if status in ENDED:
                failure = None if status == "completed" else f"Nova says {status}"
                break
            if way is Way.STOCK and status == "running":
                self._force(server, int(new[0]["id"]))
            if time.monotonic() > deadline:
                failure = f"not there after {within:.0f} s"
                if new:
                    self._abort(server, int(new[0]["id"]))
                break
            time.sleep(LOOK_S if way is Way.STOCK and "post-copy" not in status else FOLLOW_S)
        record = next(one for one in self._records() if one.eviction == record.eviction)
        ahead = time.time() - time.monotonic()
        source = self._cloud.lab.hosts[record.host]
        (there,) = (host for host in self._cloud.lab.hosts.values() if host is not source)
        milestones = {name: at - ahead for name, at in record.times.items()}
        migration = Migration(
            way, self._name(record), source.name, there.name, milestones["decided"],
            switchover=watch.at(source, "STOP"), executing=watch.at(there, "RESUME"),
            source_freed=watch.at(source, "STOPPED"), completed=milestones.get("completed"),
            extra={name: milestones[name] for name in ("requested", "appeared")
                   if name in milestones},
            relay=self._relay(source.name), failure=failure,
        )  # fmt: skip
        return Moved(record, migration, since)

    def _force(self, server: Server, migration: int) -> None:
        """Ask Nova to. It takes the request before libvirt has begun, and forgets it then: so it
        is asked again until the migration is in post-copy.
        """
        path = f"/servers/{server.uuid}/migrations/{migration}/action"
        body = {"force_complete": None}
        self._cloud.api.call(lambda cloud: cloud.compute.post(path, json=body, microversion="2.80"))
        time.sleep(FORCE_S)

    def _abort(self, server: Server, migration: int) -> None:
        """Ask Nova to, and wait until it has ended: a server under way is not deleted at once."""
        path = f"/servers/{server.uuid}/migrations/{migration}"
        self._cloud.api.call(lambda cloud: cloud.compute.delete(path, microversion="2.80"))
        deadline = time.monotonic() + ABORTED_S
        while time.monotonic() < deadline:
            if self._cloud.api.migrations(server.uuid)[0]["status"] in ENDED:
                return
            time.sleep(LOOK_S)

    def _relay(self, source: str) -> Mapping[str, Any]:
        """The last state of the newest relay that ran there as a source; empty without one."""
        top = self._cloud.lab.hosts[source].outside("/run/nova-enlightened")
        states = sorted(top.glob("*-source/state.json"), key=lambda path: path.stat().st_mtime)
        found: dict[str, Any] = json.loads(states[-1].read_text()) if states else {}
        return found

    def _workers(self, leaver: str) -> tuple[telling.Worker, ...]:
        """Both with their full rates: the best of what was seen alone, before and after."""
        full = dict(self._alone)
        for _ in range(LOOKS):
            rates = self._rates(AFTER_S)
            full = {name: max(full[name], rate) for name, rate in rates.items()}
            if all(rates[name] > 0.9 * full[name] for name in full):
                break
        ordered = sorted(self._servers, key=lambda name: name != leaver)
        return tuple(
            telling.Worker(name, WORK[name][1], name == leaver, full[name],
                           *self._servers[name].probe.counts())
            for name in ordered
        )  # fmt: skip

    def _rates(self, seconds: float) -> dict[str, float]:
        begun = time.monotonic()
        time.sleep(seconds)
        now = time.monotonic()
        return {name: one.probe.rate(begun, now) for name, one in self._servers.items()}

    def _rate(self, name: str, seconds: float) -> float:
        return self._rates(seconds)[name]


def told(moved: Moved, workers: tuple[telling.Worker, ...]) -> Act:
    """One eviction as an act."""
    record, migration = moved.record, moved.migration
    wanted = migration.ordered - moved.since
    decided = [
        f"Load rose in {RISES}; {wanted:.1f} s later {record.host} was found contended: "
        f"{record.why}",
        f"{migration.guest} leaves, and Nova's scheduler sends it to {migration.destination}.",
    ]
    if record.measured_relief is not None:
        decided.append(
            f"Relief predicted {record.predicted_relief:.2f}, measured {record.measured_relief:.2f}"
        )
    if migration.failure:
        decided.append(f"It did not get there: {migration.failure}.")
    return telling.act(migration, workers, time.monotonic(), tuple(decided))


def _story(cloud: Cloud, acts: Sequence[Act]) -> Story:
    host = cloud.lab.status()["hosts"]["host1"]
    return Story(
        title="A cloud relieves a contended host",
        told_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        acts=tuple(acts),
        setting={
            "cloud": "Nova 34, two compute hosts with one processor each",
            "link": f"{LINK_MBIT:.0f} Mbit/s",
            "servers": f"768 MiB, 1 vCPU, {cloud.lab.acceleration}",
        },
        versions={"QEMU": host["qemu"], "libvirt": host["libvirt"], "Linux": platform.release()},
    )


def perform(stage: Stage, ways: Sequence[Way], logs: Path) -> Story:
    """The acts in turn, each with new servers; a cloud for each driver they need.

    The clouds' logs are left in ``logs``.
    """
    acts: list[Act] = []
    story: Story | None = None
    for driver in (Driver.ENLIGHTENED, Driver.STOCK):
        wanted = [way for way in ways if way.enlightened == (driver is Driver.ENLIGHTENED)]
        if not wanted:
            continue
        cloud = Cloud(driver=driver, mode="auto", extra=QUICK, remediated=False,
                      progress=stage.tell)  # fmt: skip
        try:
            with stage.phase(f"A cloud with {driver} nova-compute"):
                cloud.up()
            for way in wanted:
                play = Play(cloud, stage)
                with play.cast():
                    acts.append(play.act(way))
            story = _story(cloud, acts)
        finally:
            cloud.keep_logs(logs / driver)
            cloud.stop()
    if story is None:
        raise LabError("a story needs an act")
    return story


def main(argv: Sequence[str] | None = None) -> int:
    """Run the story; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.openstack.story", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR",
                        help="where its files go (default: %(default)s)")  # fmt: skip
    parser.add_argument("--ours-only", action="store_true", help="leave out stock Nova")
    parser.add_argument("--precopy", action="store_true", help="Nova's pre-copy as well")
    wanted = parser.parse_args(argv)
    console = Console()
    ways = [Way.ENLIGHTENED]
    if not wanted.ours_only:
        ways += [Way.STOCK, *([Way.PRECOPY] if wanted.precopy else [])]
    event_loop()
    try:
        story = perform(Stage(console), ways, wanted.out / "log")
    except LabError as error:
        console.print(f"[red]The story stops: {error}[/]", highlight=False)
        return 1
    files = write(story, wanted.out)
    show(console, story)
    console.print("Look at " + " and ".join(str(path) for path in files[:2]), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
