# SPDX-License-Identifier: Apache-2.0
"""Recovery of one migration: looks at both hosts, and takes the steps that are decided on.

Resuming asks the destination for a fresh relay, starts one here, and has QEMU's stream resumed
through the two: by QEMU itself where its second monitor at the destination answers, else by libvirt
(``VIR_MIGRATE_POSTCOPY_RESUME``). Either refuses unless QEMU waits paused on both hosts, so an
attempt that comes too early costs nothing but itself. Where QEMU at the source will resume no more,
what is missing is sent in its place (:mod:`.resending`), and it is ended once all has arrived.
"""

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final, Protocol

import libvirt

from nova_enlightened import exception, process_memory
from nova_enlightened.host import departure as leaving
from nova_enlightened.host import (
    recovery,
    relays,
    resending,
    resuming,
    standing,
    staying,
)
from nova_enlightened.host.connection import translated
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.ram_places import ReadMemory
from nova_enlightened.host.recovery import Carrier, Decision, Seen, State, Step
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

LINKED_S: Final = 20.0
"""How long two fresh relays may take to start and to reach each other."""
GONE_S: Final = 5.0
"""How long a relay may take to end that was told to."""
STAYS: Final = 5
"""Attempts to have QEMU at the source go on by itself; where none succeeds the VM is lost."""
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)
_UNDER_WAY: Final = frozenset(
    {
        standing.Standing.EXECUTES,
        standing.Standing.SWITCHING,
        standing.Standing.POSTCOPY,
        standing.Standing.FAILED,
    }
)
RESUME_FLAGS: Final = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_POSTCOPY
    | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
)


@dataclasses.dataclass(frozen=True)
class There:
    """What the destination says of a VM that arrives and of its relay.

    :param never_executed, waits: as in :class:`.Seen`.
    """

    domain: standing.Standing
    relay: Carrier
    never_executed: bool = False
    waits: bool = False


class FarSide(Protocol):
    """The destination, of one recovery. All methods raise ``EnlightenedError``."""

    def look(self, departure: Departure) -> There:
        """How the domain and its relay stand there."""

    def end_relay(self, departure: Departure) -> None:
        """End its relay, and come back once it is gone."""

    def start_relay(self, spec: RelaySpec) -> leaving.Peer:
        """Start a fresh one; where it listens."""

    def spec(self, migration: str) -> RelaySpec:
        """What a fresh one is asked to be."""

    def listen_again(self, departure: Departure, migration: str) -> None:
        """Have QEMU listen for a fresh relay, past a main loop that waits for a page."""

    def end_domain(self, departure: Departure) -> None:
        """End the VM there, unless it has executed meanwhile."""


@dataclasses.dataclass(frozen=True)
class _OwnRelay:
    """This host's relay, see :class:`.staying.Relay`; None where nothing is left of it."""

    spec: RelaySpec | None

    @property
    def path(self) -> str:
        return "" if self.spec is None else self.spec.socket

    def take_leave(self) -> None:
        if self.spec is not None:
            with contextlib.suppress(exception.RelayGone):
                relays.RunningRelay(self.spec, 0).take_leave()

    def end(self) -> None:
        if self.spec is not None:
            relays.end(self.spec, GONE_S)


class Recovery:
    """One migration's. :meth:`turn` is called now and then, by one thread.

    :param lookup: finds the domain at the source, each time anew; raises ``libvirtError``.
    :param start_here: starts this host's relay: the peer's specification, where it listens.
    :param top: ``[enlightened] run_directory``.
    :param keep: takes the record each time it changes.
    :param clock: monotonic seconds.
    :param read_memory: how that of QEMU is read, which an ordinary user may not.
    """

    def __init__(
        self,
        departure: Departure,
        lookup: Callable[[], Any],
        far: FarSide,
        start_here: Callable[[RelaySpec, leaving.Peer], relays.RunningRelay],
        top: str,
        keep: Callable[[Departure], None] = lambda departure: None,
        clock: Callable[[], float] = time.monotonic,
        read_memory: ReadMemory = process_memory.read,
    ) -> None:
        self.departure = departure
        self.state = State.STOPPED if departure.stopped else State.FOLLOWED
        self.why = "not looked at yet"
        self.trouble = ""
        self._lookup = lookup
        self._far = far
        self._start_here = start_here
        self._top = top
        self._keep = keep
        self._clock = clock
        self._read_memory = read_memory
        self._stays = 0
        self._not_before = 0.0
        self._agreed = (Step.WAIT, 0)
        self._resuming: threading.Thread | None = None

    # -- by hand ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Try nothing more until `retry`. What flows goes on flowing."""
        if self.state not in recovery.ENDS:
            self.state = State.STOPPED
            self._record(stopped=True)

    def retry(self) -> None:
        """Try again, now."""
        self._not_before = 0.0
        if self.state is State.STOPPED:
            self.state = State.FOLLOWED
            self._record(stopped=False)

    def seen_moved(self) -> None:
        """Who ordered it has libvirt's word that it has moved."""
        self.state, self.why = State.MOVED, "libvirt told who ordered it"

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to decide."""
        return self.state in recovery.ENDS

    def told(self) -> dict[str, Any]:
        """For people and programs, as plain values."""
        return {
            "instance": self.departure.instance,
            "destination": self.departure.destination,
            "migration": self.departure.migration,
            "state": self.state.value,
            "why": self.why,
            "attempts": self.departure.attempts,
            "trouble": self.trouble,
        }

    # -- by itself --------------------------------------------------------------------------

    def turn(self) -> State:
        """Look, and take a step if one is due."""
        if self.ended:
            return self.state
        decision = recovery.decide(self.look())
        if not self._confirmed(decision):
            return self.state
        attempts = decision.step in recovery.ATTEMPTS
        if attempts and (self._busy or self._clock() < self._not_before):
            return self.state
        if not recovery.takes(self.state, decision.step):
            return self.state
        before, self.state = self.state, recovery.after(self.state, decision.step)
        self.why = decision.why
        if before is not self.state:
            LOG.warning("%s: %s, %s", self.departure.instance, self.state, decision.why)
        try:
            self._take(decision.step)
        except (exception.EnlightenedError, OSError) as error:
            self.trouble = str(error)
            self._later()
            LOG.warning("%s: %s: %s", self.departure.instance, decision.step, error)
        return self.state

    def look(self) -> Seen:
        """What both hosts say now. The other one is left alone while nothing is wrong here."""
        here = standing.at_source(self._lookup)
        relay_here, status = self._own_relay()
        completed = status.get("phase") == "completed"
        if self.departure.ram is None and status.get("ram"):
            self._record(ram=status["ram"])
        relayed = self.departure.migration is not None
        there = There(standing.Standing.UNKNOWN, Carrier.UNKNOWN)
        carried = relay_here is Carrier.ALIVE and bool(status.get("link", {}).get("ready"))
        if not (carried and here in _UNDER_WAY):
            try:
                there = self._far.look(self.departure)
            except exception.EnlightenedError as error:
                self.trouble = str(error)
        stands_still = here in standing.SWITCHED and relay_here is Carrier.GONE
        idle = here is standing.Standing.FAILED and not self._busy and status.get("channels") == 0
        return Seen(
            here,
            there.domain,
            relay_here,
            there.relay,
            completed=completed,
            relayed=relayed,
            idle=idle,
            never_executed=there.never_executed and self._stays < STAYS,
            sends_no_more=(
                there.domain is standing.Standing.SWITCHING and staying.sends_no_more(self._lookup)
            ),
            gave_up=stands_still and staying.gave_up(self._lookup),
            resends=self.departure.ram is not None,
            delivered=self.departure.delivered,
            waits=there.waits,
        )

    def _confirmed(self, decision: Decision) -> bool:
        step, times = self._agreed
        times = times + 1 if step is decision.step else 1
        self._agreed = (decision.step, times)
        return times >= decision.looks

    @property
    def _busy(self) -> bool:
        return self._resuming is not None and self._resuming.is_alive()

    def _take(self, step: Step) -> None:
        match step:
            case Step.END_HERE:
                self._end_here()
            case Step.END_THERE:
                self._far.end_relay(self.departure)
            case Step.END_UNSTARTED:
                self._far.end_domain(self.departure)
            case Step.RESUME:
                self._attempt(self._go_on)
            case Step.RESEND:
                self._attempt(self._resend)
            case Step.GO_ON_HERE:
                self._go_on_here()
            case Step.END_SOURCE:
                with translated(Step.END_SOURCE):
                    self._lookup().destroy()
            case Step.MOVED:
                self._undefine()

    # -- this host --------------------------------------------------------------------------

    def _own_spec(self) -> RelaySpec | None:
        return relays.specification(self._top, self.departure.migration, "source")

    def _own_relay(self) -> tuple[Carrier, dict[str, Any]]:
        """Whether this host's relay runs, and what it says of itself, or last said."""
        spec = self._own_spec()
        if spec is None:
            return Carrier.GONE, {}
        carrier, status = relays.carrier(spec)
        return carrier, status or relays.RunningRelay(spec, 0).state()

    def _end_here(self) -> None:
        _OwnRelay(self._own_spec()).end()

    def _go_on_here(self) -> None:
        self._stays += 1
        relay = _OwnRelay(self._own_spec())
        staying.go_on(self._lookup(), relay)
        relay.end()

    def _undefine(self) -> None:
        """Remove the definition that libvirt leaves where nobody waited for its migration."""
        try:
            domain = self._lookup()
            if not domain.isActive() and domain.isPersistent():
                domain.undefineFlags(_UNDEFINE)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                LOG.warning("%s is still defined here: %s", self.departure.instance, error)

    # -- resuming ---------------------------------------------------------------------------

    def _attempt(self, act: Callable[[relays.RunningRelay], None]) -> None:
        """Begin one, which lasts until the last page has crossed."""
        self._record(attempts=self.departure.attempts + 1)
        self._later()
        there = self._far.spec(str(uuid.uuid4()))
        peer = self._far.start_relay(there)
        self._record(migration=there.migration)
        relay = self._start_here(there, peer)
        self._resuming = threading.Thread(
            target=self._through, args=(relay, act), name="resume", daemon=True
        )
        self._resuming.start()

    def _through(
        self, relay: relays.RunningRelay, act: Callable[[relays.RunningRelay], None]
    ) -> None:
        # QEMU before 8.2 never comes back from a stream that breaks while it resumes (it waits for
        # the other side's bitmap for ever), and libvirt fails a resume whose stream does not reach
        # QEMU at once. So neither is asked before the way is open.
        trouble = relays.linked(relay, LINKED_S)
        if trouble is not None:
            self.trouble = f"the fresh relays did not reach each other: {trouble}"
            LOG.warning("%s: %s", self.departure.instance, self.trouble)
            relays.end(relay.spec, GONE_S, relay.pid)
            return
        try:
            act(relay)
            self.trouble = ""
        except (libvirt.libvirtError, exception.EnlightenedError) as error:
            # QEMU may have resumed all the same: whether it came to the relay shows there.
            self.trouble = str(error)
            LOG.warning("%s: it does not resume: %s", self.departure.instance, error)

    def _go_on(self, relay: relays.RunningRelay) -> None:
        if self._listens_again(relay.spec):
            resuming.resume(self._lookup(), relay.spec.socket)
            LOG.info("%s: QEMU goes on, beside libvirt", self.departure.instance)
        else:
            where = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{relay.spec.socket}"}
            self._lookup().migrateToURI3(self.departure.control_uri, where, RESUME_FLAGS)
            LOG.info("%s: libvirt has resumed it to its end", self.departure.instance)

    def _resend(self, relay: relays.RunningRelay) -> None:
        self._far.listen_again(self.departure, relay.spec.migration)
        assert self.departure.ram is not None
        resending.resend(self._lookup(), relay.spec.socket, self.departure.ram, self._read_memory)
        self._record(delivered=True)

    def _listens_again(self, spec: RelaySpec) -> bool:
        """Whether QEMU at the destination could be told so out of band.

        Where its main loop waits for a page, libvirt would wait for it for ever.
        """
        try:
            self._far.listen_again(self.departure, spec.migration)
        except exception.EnlightenedError as error:
            LOG.info("%s is resumed by libvirt: %s", self.departure.instance, error)
            return False
        return True

    def _later(self) -> None:
        self._not_before = self._clock() + recovery.pause_after(self.departure.attempts)

    def _record(self, **changes: Any) -> None:
        self.departure = dataclasses.replace(self.departure, **changes)
        self._keep(self.departure)
