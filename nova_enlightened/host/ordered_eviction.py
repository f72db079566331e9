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
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import libvirt
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.host import departure, hint_sources, relays
from nova_enlightened.host.eviction import Eviction, EvictionTimes, Route
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 3.0
PEER_TIMEOUT_S = 20.0

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


@dataclasses.dataclass
class Report:
    """What was done. ``ordered`` says whether pages crossed in the guest's order, ``why`` why."""

    ordered: bool
    why: str
    times: EvictionTimes | None = None
    relay: dict[str, Any] = dataclasses.field(default_factory=dict)


class OrderedEviction:
    """Moves one domain of this host.

    :param conf: with the group ``[enlightened]``.
    :param own_name: this host, as its certificate names it.
    :param tell: takes a line for each step.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        control_uri: str,
        peer: Peer,
        conf: cfg.ConfigOpts,
        own_name: str,
        tell: Tell = LOG.info,
    ) -> None:
        self._domain = domain
        self._control_uri = control_uri
        self._peer = peer
        self._conf = conf.enlightened
        self._own_name = own_name
        self._tell = tell
        self._source: hint_sources.HintSource | None = None

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
        """Evict. Blocks until libvirt has ended the migration.

        :raises LibvirtError: as :meth:`Eviction.run`.
        """
        report, source, uri = Report(False, "the guest tells nothing of its memory"), None, None
        known = self._knowledge()
        if known is not None:
            try:
                source = self._start_relays(known)
                uri = f"unix://{source.spec.socket}"
                report = Report(True, "the guest's own order")
            except (exception.EnlightenedError, OSError) as error:
                report = Report(False, str(error))
        self._tell(f"order: {'guest' if report.ordered else 'stock'} ({report.why})")
        eviction = Eviction(
            self._domain,
            Route(self._control_uri, uri),
            on_switch=lambda: self._tell("switch to post-copy ordered"),
        )
        try:
            report.times = eviction.run()
        finally:
            if source is not None:
                report.relay = source.state()
        return report

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

    def _start_relays(self, known: GuestKnowledge) -> relays.RunningRelay:
        there = departure.destination_spec(
            self._conf, str(uuid.uuid4()), self._own_name, self._peer.address
        )
        port = self._peer.start_relay(there)
        peer = departure.Peer(self._peer.name, self._peer.address, port)
        return departure.start_source(self._conf, there, peer, known, self._domain.XMLDesc())
