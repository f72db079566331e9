# SPDX-License-Identifier: Apache-2.0
"""An eviction from end to end: what the guest knows, a relay on each host, the switch.

Whatever is missing, the domain still moves: without knowledge or without a relay on the other
host it moves by plain post-copy, in QEMU's own order, and the report says why.
"""

import contextlib
import dataclasses
import json
import logging
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import libvirt
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.host import departure, hint_sources, relays, spare_monitor, standing
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.eviction import Eviction, EvictionTimes, Route
from nova_enlightened.host.far_sides import CommandFarSide
from nova_enlightened.host.recovering import FarSide, Recovery
from nova_enlightened.host.recovery import State
from nova_enlightened.host.standing import Standing
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 3.0
PEER_TIMEOUT_S = 20.0
LINKED_S = 5.0
ENDED_S = 1.0
TURN_S = 1.0
KEEP_LIBVIRTD = (
    "leave libvirtd alone, at the destination above all: one that is restarted before the VM "
    "executes there ends it, and its source may not be able to go back"
)
"""libvirt 9.0, qemuProcessRecoverMigrationIn: an incoming domain that was not started is killed."""

Tell = Callable[[str], None]


class Peer(Protocol):
    """The destination host, where a relay has to be started."""

    @property
    def name(self) -> str:
        """As its certificate names it."""

    @property
    def address(self) -> str:
        """Of its link."""

    def start_relay(self, spec: RelaySpec) -> int:
        """Start the destination's relay; the port it listens on. :raises RelayError: cannot."""

    def far_side(self, options: Any, own_name: str) -> FarSide:
        """Of a recovery. :param options: the group ``[enlightened]``."""


@dataclasses.dataclass(frozen=True)
class CommandPeer:
    """A destination that is reached by a command, ssh for instance."""

    name: str
    address: str
    command: Sequence[str]

    def start_relay(self, spec: RelaySpec) -> int:
        """See :class:`Peer`."""
        whole = [*self.command, "nova-enlightened-relay", "start"]
        try:
            done = subprocess.run(
                whole,
                input=spec.to_json(),
                capture_output=True,
                text=True,
                timeout=PEER_TIMEOUT_S,
                check=True,
            )
            return int(json.loads(done.stdout)["link_port"])
        except subprocess.CalledProcessError as error:
            raise exception.RelayError(f"{whole[0]}: {error.stderr.strip()[-500:]}") from error
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            raise exception.RelayError(f"no relay on {self.name}: {error}") from error

    def far_side(self, options: Any, own_name: str) -> FarSide:
        """See :class:`Peer`."""
        return CommandFarSide(
            self.name,
            self.address,
            self.command,
            options.run_directory,
            lambda migration: departure.destination_spec(
                options, migration, own_name, self.address
            ),
            self.start_relay,
        )


@dataclasses.dataclass
class Report:
    """What was done. ``ordered`` says whether pages crossed in the guest's order, ``why`` why.

    :param recovered: attempts to resume that it took; None where nothing had to be recovered.
    """

    ordered: bool
    why: str
    times: EvictionTimes | None = None
    relay: dict[str, Any] = dataclasses.field(default_factory=dict)
    recovered: int | None = None


class _Following:
    """Looks after a migration from its switch on, in a thread of its own."""

    def __init__(self, one: Recovery, pause: Callable[[float], object]) -> None:
        self.one = one
        self._pause = pause
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Libvirt said itself that it has moved, or all is over."""
        self._moved.set()

    def outcome(self) -> State:
        """How it ends; waits for that."""
        self._thread.join()
        return self.one.state

    def _run(self) -> None:
        while not self._moved.is_set() and not self.one.ended:
            self.one.turn()
            if not self.one.ended:
                self._pause(TURN_S)


class OrderedEviction:
    """Moves one domain of this host.

    :param conf: with the group ``[enlightened]``.
    :param own_name: this host, as its certificate names it.
    :param tell: takes a line for each step.
    :param lookup: finds the domain anew, also after libvirt was restarted; raises ``libvirtError``.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        control_uri: str,
        peer: Peer,
        conf: cfg.ConfigOpts,
        own_name: str,
        tell: Tell = LOG.info,
        lookup: Callable[[], libvirt.virDomain] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._domain = domain
        self._lookup = lookup or (lambda: domain)
        self._pause = pause
        self._control_uri = control_uri
        self._peer = peer
        self._conf = conf.enlightened
        self._own_name = own_name
        self._tell = tell
        self._source: hint_sources.HintSource | None = None
        self._uuid = domain.UUIDString()

    def arm(self) -> None:
        """Have the guest begin to sample which pages are in use, if it can."""
        opened = hint_sources.open_first(
            hint_sources.load(self._conf.hint_sources), self._target(), OPEN_TIMEOUT_S
        )
        for reason in opened.declined:
            self._tell(f"hints: {reason}")
        self._tell(f"hints: {opened.how}")
        self._source = opened.source
        if self._source is not None:
            conf = self._conf
            with contextlib.suppress(exception.EnlightenedError):
                self._source.arm(conf.arm_interval, conf.arm_max, conf.arm_cpu_limit)

    def run(self) -> Report:
        """Evict, and recover what breaks after the switch. Blocks until the domain has moved.

        :raises LibvirtError: libvirt refused or failed, and the domain runs where it was.
        :raises EvictionError: the domain is lost; the message says why.
        """
        report, source, uri = Report(False, "the guest tells nothing of its memory"), None, None
        known = self._knowledge()
        try:
            source = self._start_relays(known)
            uri = f"unix://{source.spec.socket}"
            if known is not None:
                report = Report(True, "the guest's own order")
        except (exception.EnlightenedError, OSError) as error:
            report = Report(False, str(error))
        self._tell(f"order: {'guest' if report.ordered else 'stock'} ({report.why})")
        self._tell(KEEP_LIBVIRTD)
        following = _Following(self._recovery(source), self._pause)

        route = Route(self._control_uri, uri, monitored=self._monitored(source))
        eviction = Eviction(
            self._domain, route, on_switch=lambda: self._tell("switch to post-copy ordered")
        )
        report.times = eviction.times
        # Not only once the switch is accepted: QEMU may have switched, and wait for its destination
        # with its monitor, before libvirt has the answer.
        following.start()
        try:
            eviction.run()
        except exception.LibvirtError as error:
            if not self._has_left(ordered=eviction.times.switch_accepted is not None):
                raise
            self._tell(f"libvirt follows it no more, which need mean nothing: {error}")
            self._outcome(following, error)
        finally:
            following.end()
            report.recovered = following.one.departure.attempts or None
            if source is not None:
                report.relay = source.state()
        return report

    def _recovery(self, source: relays.RunningRelay | None) -> Recovery:
        return Recovery(
            self._departure(source),
            self._lookup,
            self._far_side(),
            lambda there, peer: departure.start_carrier(self._conf, there, peer),
            self._conf.run_directory,
            self._kept,
        )

    def _departure(self, source: relays.RunningRelay | None) -> Departure:
        migration = source.spec.migration if source is not None else None
        return Departure(self._uuid, self._peer.name, self._control_uri, migration)

    def _far_side(self) -> FarSide:
        return self._peer.far_side(self._conf, self._own_name)

    def _kept(self, record: Departure) -> None:
        if record.attempts:
            self._tell(f"resuming, attempt {record.attempts}")

    def _monitored(self, source: relays.RunningRelay | None) -> str | None:
        """The domain with a second monitor at its destination; None to have it as it is."""
        if source is None:
            return None
        path = spare_monitor.monitor_path(self._conf.run_directory, self._uuid)
        try:
            xml = self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            return spare_monitor.with_monitor(xml, path)
        except (exception.HintError, libvirt.libvirtError) as error:
            self._tell(f"no second monitor: {error}")
            return None

    def _has_left(self, *, ordered: bool) -> bool:
        """Whether the domain may be gone although libvirt failed.

        :param ordered: the switch was accepted.
        """
        here = standing.at_source(self._lookup)
        return here in standing.SWITCHED or (ordered and here is not Standing.EXECUTES)

    def _outcome(self, following: "_Following", error: exception.LibvirtError) -> None:
        """Wait for how it ends, which libvirt's error does not tell.

        :raises LibvirtError: `error`, where the domain never left.
        :raises EvictionError: the domain is lost.
        """
        ended = following.outcome()
        self._tell(f"{ended}: {following.one.why}")
        if ended is State.STAYED:
            raise error
        if ended is State.LOST:
            raise exception.EvictionError(f"{self._uuid} is lost: {following.one.why}")

    def _target(self) -> hint_sources.HintTarget:
        return departure.hint_target(
            self._domain.name(),
            self._domain.XMLDesc(),
            self._domain.maxMemory(),
            hint_sources.libvirt_agent_command(self._domain),
        )

    def _knowledge(self) -> GuestKnowledge | None:
        """What the guest knows now."""
        if self._source is None:
            return None
        try:
            held = self._source.latest() or self._source.ask(ASK_TIMEOUT_S)
        except exception.EnlightenedError as error:
            self._tell(f"hints: {error}")
            return None
        finally:
            self._source.close()
        if held is None:
            return None
        known = held.knowledge
        self._tell(f"hints: {known.frames} frames, {known.samples} samples by {known.source}")
        return known

    def _start_relays(self, known: GuestKnowledge | None) -> relays.RunningRelay:
        """Also where there is nothing to order by: their link outlives a network that fails."""
        there = departure.destination_spec(
            self._conf, str(uuid.uuid4()), self._own_name, self._peer.address, self._uuid
        )
        port = self._peer.start_relay(there)
        peer = departure.Peer(self._peer.name, self._peer.address, port)
        if known is None:
            relay = departure.start_carrier(self._conf, there, peer)
        else:
            relay = departure.start_source(self._conf, there, peer, known, self._domain.XMLDesc())
        if trouble := relays.linked(relay, LINKED_S):
            relays.end(relay.spec, ENDED_S, relay.pid)
            with contextlib.suppress(exception.EnlightenedError):  # it ends by itself, later
                self._far_side().end_relay(self._departure(relay))
            raise exception.RelayError(f"the relays do not reach each other: {trouble}")
        return relay
