# SPDX-License-Identifier: Apache-2.0
"""Stages on the real laboratory: a guest under libvirt, and one beside it without."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import libvirt

from bench import measures
from bench.bare import BareGuest
from bench.measures import RateSeries
from bench.qmp import MonitorError
from bench.rounds import StageError
from bench.session import certificates
from lab import Lab, migration
from lab.domain import GuestSpec
from lab.errors import LabError
from lab.guests import Guest
from lab.probe import Probe
from lab.way import Migration, Way
from nova_enlightened.host.guest import GuestSession

BARE_NUMBER = 240


def rates(probe: Probe, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
    """What a probe saw, binned. Raises StageError where it saw too little."""
    times, counts = probe.counts()
    try:
        return measures.rate_series(times, counts, first, last, bin_s, edge)
    except measures.MeasureError as error:
        raise StageError(f"{probe.name}: {error}") from error


class LabStage:
    """A guest of the lab under libvirt. ``boot`` makes it, working, on host1."""

    def __init__(self, lab: Lab, boot: Callable[[], Guest]) -> None:
        self.lab = lab
        self._boot = boot
        self._session: GuestSession | None = None
        self._tls = certificates(lab)
        self.guest = self._booted()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let the guest work."""
        time.sleep(seconds)

    def prepare(self, way: Way) -> None:
        """Nothing: this guest runs."""

    def arm(self) -> None:
        """Have the agent sample until its first snapshots are here."""
        self.disarm()
        try:
            self._session = migration.arm(self.guest)
        except LabError as error:
            raise StageError(str(error)) from error

    def disarm(self) -> None:
        """Leave the agent alone."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def migrate(self, way: Way, limit_s: float) -> Migration:
        """Migrate to the other host."""
        try:
            return migration.migrate(
                self.lab, self.guest, way, session=self._session, limit_s=limit_s, tls=self._tls
            )
        except (LabError, libvirt.libvirtError) as error:
            raise StageError(str(error)) from error
        finally:
            self.disarm()

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest did."""
        return rates(self.guest.probe, first, last, edge, bin_s)

    def recover(self) -> None:
        """A guest that works, booted anew: what became of the old one is not known."""
        self.disarm()
        with suppress(LabError, libvirt.libvirtError):
            self.guest.destroy()
        self.guest = self._booted()

    def _booted(self) -> Guest:
        try:
            return self._boot()
        except (LabError, libvirt.libvirtError) as error:
            raise StageError(str(error)) from error


class BareStage:
    """The same guest in a QEMU without libvirt; it cannot be armed."""

    def __init__(self, lab: Lab, spec: GuestSpec) -> None:
        self._lab = lab
        self._spec = spec
        self._guest = self._boot()

    def _boot(self) -> BareGuest:
        try:
            guest = BareGuest(self._lab, self._spec)
            guest.probe.wait_running(90.0)
        except (MonitorError, LabError) as error:
            raise StageError(str(error)) from error
        return guest

    def pause(self) -> None:
        """Stop it while others are measured."""
        self._guest.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._guest.resume()

    def end(self) -> None:
        """End it for good."""
        self._guest.end()

    def migrate(self, way: Way, limit_s: float) -> Migration:
        """Migrate to the other host."""
        try:
            return self._guest.migrate(way, limit_s)
        except (MonitorError, OSError) as error:
            raise StageError(str(error)) from error

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest did."""
        return rates(self._guest.probe, first, last, edge, bin_s)

    def recover(self) -> None:
        """A guest that works, booted anew."""
        with suppress(MonitorError, OSError):
            self._guest.end()
        self._guest = self._boot()


class Twins:
    """Two guests of one kind, one under libvirt and one without; one runs while one waits.

    ``bare_ways`` are done by the one without.
    """

    def __init__(self, main: LabStage, bare: BareStage, bare_ways: frozenset[Way]) -> None:
        self.main = main
        self._bare = bare
        self._bare_ways = bare_ways
        self._stage: LabStage | BareStage = main

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let the guest whose turn it is work."""
        time.sleep(seconds)

    def prepare(self, way: Way) -> None:
        """Let the guest that this way needs run, and only that."""
        bare = way in self._bare_ways
        self._stage = self._bare if bare else self.main
        try:
            domain = self.main.guest.domain
            paused = domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
            if bare:
                if not paused:
                    domain.suspend()
                self._bare.resume()
            else:
                self._bare.pause()
                if paused:
                    domain.resume()
        except (libvirt.libvirtError, MonitorError, LabError) as error:
            raise StageError(str(error)) from error

    def arm(self) -> None:
        """Arm the guest under libvirt."""
        self.main.arm()

    def migrate(self, way: Way, limit_s: float) -> Migration:
        """Migrate the guest whose turn it is."""
        return self._stage.migrate(way, limit_s)

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest whose turn it is did."""
        return self._stage.rates(first, last, edge, bin_s)

    def recover(self) -> None:
        """The guest whose turn it is, booted anew."""
        self._stage.recover()
