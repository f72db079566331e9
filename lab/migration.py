# SPDX-License-Identifier: Apache-2.0
"""Migrate a guest of the laboratory by any way, and say when what happened.

The times come from QEMU itself: STOP at the source is the switchover, RESUME at the
destination is executing, each stamped by the QEMU it happened in.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt

from lab import relays
from lab.errors import LabError
from lab.guests import Guest
from lab.hosts import Host
from lab.watch import Watch
from lab.way import Migration, Way
from nova_enlightened import exception
from nova_enlightened.host.eviction import Eviction, EvictionTimes, Route
from nova_enlightened.host.guest import GuestSession
from nova_enlightened.knowledge.layout import MemoryLayout

if TYPE_CHECKING:
    from lab.laboratory import Lab

ARM_SAMPLES = 12
"""An armed guest: what it uses only now and then has been seen as well."""
ARM_INTERVAL_S, ARM_MAX_S, ARM_CPU = 0.5, 90.0, 0.1
_ALWAYS_PREEMPTS = 10_001_000
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True)
class LabEviction:
    """An eviction and what it is about."""

    domain: libvirt.virDomain
    relay_state: Callable[[], Mapping[str, Any]]
    eviction: Eviction
    used: RelayTime

    @property
    def times(self) -> EvictionTimes:
        """When its steps happened."""
        return self.eviction.times


def arm(guest: Guest, seconds: float = 60.0, samples: int = ARM_SAMPLES) -> GuestSession:
    """Have the guest's agent sample, and wait until it has told of ``samples`` of them.

    The caller closes the session. Raises LabError when that does not come about in time.
    """
    deadline = time.monotonic() + seconds
    memory = guest.spec.memory_mib << 20
    session = GuestSession(str(guest.channel()), memory)
    try:
        session.open()
        _until_armed(session, deadline)
        while (held := session.latest()) is None or held.knowledge.samples < samples:
            if session.failure is not None or time.monotonic() > deadline:
                raise LabError(f"{guest.name} sent no snapshot: {session.failure or 'too late'}")
            time.sleep(0.02)  # a session has nothing to wait on for what is pushed
    except exception.EnlightenedError as error:
        session.close()
        raise LabError(f"the agent in {guest.name}: {error}") from error
    except BaseException:
        session.close()
        raise
    return session


def _until_armed(session: GuestSession, deadline: float) -> None:
    while True:
        try:
            session.arm(ARM_INTERVAL_S, ARM_MAX_S, ARM_CPU, timeout=2.0)
            return
        except exception.GuestUnreachable:
            if time.monotonic() > deadline:
                raise


def other(lab: Lab, host: Host) -> Host:
    """The host that ``host`` is not."""
    return next(each for each in lab.hosts.values() if each.name != host.name)


def migrate(
    lab: Lab,
    guest: Guest,
    way: Way,
    *,
    session: GuestSession | None = None,
    limit_s: float = 120.0,
    tls: Path | None = None,
    policy: str = "heat",
    tell: Callable[[Mapping[str, Any]], None] = lambda state: None,
) -> Migration:
    """Migrate to the other host and wait until the source is free.

    ``session``: of ``arm``; ours without one goes in stock order. ``limit_s``: when pre-copy is
    given up. ``tls``: the directory of ``relays.certificates``; None carries plaintext.
    ``tell`` gets the source relay's state (empty without one) about four times a second.
    A failure is told in the answer. Raises LabError where nothing could be ordered.
    """
    source = guest.host
    destination = other(lab, source)
    if way.postcopy and way.preempt != preempts(source):
        raise LabError(f"{source.name}'s libvirt has no way to do {way.words}")
    with Watch(guest.name, (source, destination)) as watch:
        ordered = time.monotonic()
        pair: relays.RelayPair | None = None
        extra: dict[str, float] = {}
        if way.enlightened:
            pair, extra = _start_relays(guest, source, destination, session, tls, policy)
        started = _eviction(guest, source, destination, way, pair)

        def turn() -> None:
            started.used.look()
            tell(started.relay_state())

        failure = _run(started, way, limit_s, turn, lambda: watch.at(source, "STOP") is not None)
        for host in (source, destination):
            host.have_spare_relay()
        told = Migration(way, guest.name, source.name, destination.name, ordered, extra=extra)
        return _completed(told, started, watch, (source, destination), pair, failure)


def _completed(
    told: Migration,
    started: LabEviction,
    watch: Watch,
    hosts: tuple[Host, Host],
    pair: relays.RelayPair | None,
    failure: str | None,
) -> Migration:
    """``told`` with all that is known once the migration has ended."""
    source, destination = hosts
    return dataclasses.replace(
        told,
        prepared=watch.at(destination, "STARTED"),
        switch_accepted=started.times.switch_accepted,
        switchover=watch.at(source, "STOP"),
        executing=watch.at(destination, "RESUME"),
        source_freed=None if failure else watch.wait(source, "STOPPED", _GRACE_S),
        completed=started.times.completed,
        relay={**last_state(pair), **started.used.seconds},
        failure=failure,
    )


def _eviction(
    guest: Guest, source: Host, destination: Host, way: Way, pair: relays.RelayPair | None
) -> LabEviction:
    route = Route(
        control_uri=destination.libvirt_uri(remote=True),
        migrate_uri=pair.migrate_uri if pair else None,
        postcopy=way.postcopy,
    )
    state: Callable[[], Mapping[str, Any]] = pair.source.state if pair else dict
    domain = source.connection.lookupByName(guest.name)
    return LabEviction(domain, state, Eviction(domain, route), RelayTime(pair))


def _start_relays(
    guest: Guest,
    source: Host,
    destination: Host,
    session: GuestSession | None,
    tls: Path | None,
    policy: str,
) -> tuple[relays.RelayPair, dict[str, float]]:
    """Start the pair with what is known of the guest now; when each step was done."""
    dom = source.connection.lookupByName(guest.name)
    held = session.latest() if session is not None else None
    known = time.monotonic()
    if session is not None:
        # Samples cost faults, and at the destination each of those may be a page from afar.
        threading.Thread(target=_disarm, args=(session,), daemon=True).start()
    pair = relays.start_pair(
        source,
        destination,
        knowledge=held.knowledge if held else None,
        layout=MemoryLayout.from_domain_xml(dom.XMLDesc()).to_dict(),
        policy=policy,
        tls=tls,
    )
    return pair, {"knowledge taken": known, "relays started": time.monotonic()}


def _disarm(session: GuestSession) -> None:
    with suppress(exception.EnlightenedError):  # its lease ends by itself
        session.disarm()


def _run(
    started: LabEviction,
    way: Way,
    limit_s: float,
    turn: Callable[[], None],
    switched: Callable[[], bool],
) -> str | None:
    """Run it to its end or to the limit, calling ``turn`` meanwhile; why it failed, or None."""
    failed: list[str] = []

    def run() -> None:
        try:
            started.eviction.run()
        except exception.EnlightenedError as error:
            failed.append(str(error))

    thread = threading.Thread(target=run, name="eviction", daemon=True)
    thread.start()
    deadline = time.monotonic() + limit_s
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.25)
        turn()
    if thread.is_alive():
        failed.append(f"given up after {limit_s:.0f} s")
        if not way.postcopy or not switched():
            started.domain.abortJob()
        thread.join(_GRACE_S)
    return "; ".join(failed) or None


class RelayTime:
    """CPU time of both relays, as long as they can be asked: ``cpu_source_s`` and so on."""

    def __init__(self, pair: relays.RelayPair | None) -> None:
        self._pids = (
            {}
            if pair is None
            else {"cpu_source_s": pair.source.pid, "cpu_destination_s": pair.destination.pid}
        )
        self.seconds: dict[str, float] = {}

    def look(self) -> None:
        """Take note of what they have used so far."""
        for name, pid in self._pids.items():
            with suppress(OSError):  # it has ended
                self.seconds[name] = cpu_seconds(pid)


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used (proc(5), stat). Raises OSError when there is no such one."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_state(pair: relays.RelayPair | None) -> dict[str, Any]:
    """What the source's relay says at its end; it writes that after QEMU closed."""
    if pair is None:
        return {}
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        state = pair.source.state()
        if state.get("phase") == "completed" or state.get("error"):
            return state
        time.sleep(0.05)  # the file is replaced four times a second
    return pair.source.state()


def preempts(host: Host) -> bool:
    """Whether this libvirt enables QEMU's postcopy-preempt: always since 10.1, never before."""
    return int(host.connection.getLibVersion()) >= _ALWAYS_PREEMPTS
