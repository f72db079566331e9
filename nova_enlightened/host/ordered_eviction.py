# SPDX-License-Identifier: Apache-2.0
"""An eviction from end to end: what the guest knows, a relay on each host, the switch.

Whatever is missing, the domain still moves: without knowledge or without a relay on the other
host it moves by plain post-copy, in QEMU's own order, and the report says why.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import secrets
import subprocess
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import libvirt
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.host import hint_sources, relays
from nova_enlightened.host.eviction import Eviction, EvictionTimes, Route
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.stream.guest_channel import PORT_NAME
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

LOG = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 3.0
PEER_TIMEOUT_S = 20.0
KIB = 1024

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
        knowledge = self._knowledge()
        if knowledge is not None:
            try:
                source = self._start_relays(knowledge)
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
        tree = ElementTree.fromstring(self._domain.XMLDesc())
        path = None
        for channel in tree.iterfind("./devices/channel"):
            target, socket = channel.find("target"), channel.find("source")
            if target is not None and target.get("name") == PORT_NAME and socket is not None:
                path = socket.get("path")
        return hint_sources.HintTarget(
            self._domain.name(),
            self._domain.maxMemory() * KIB,
            path,
            hint_sources.libvirt_agent_command(self._domain),
        )

    def _knowledge(self) -> pathlib.Path | None:
        """A file of what the guest knows now, in the run directory of a new migration."""
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
        directory = pathlib.Path(self._conf.run_directory, f"{uuid.uuid4()}-source")
        directory.mkdir(parents=True, mode=0o700)
        file = directory / "knowledge.npz"
        file.write_bytes(stored.dump(known))
        return file

    def _start_relays(self, knowledge: pathlib.Path) -> relays.RunningRelay:
        migration = knowledge.parent.name.removesuffix("-source")
        layout = MemoryLayout.from_domain_xml(self._domain.XMLDesc())
        conf, directory = self._conf, knowledge.parent.parent
        there = RelaySpec(
            role="destination",
            migration=migration,
            run_directory=str(directory / f"{migration}-destination"),
            socket=str(directory / f"{migration[:8]}.sock"),
            link_host=self._peer.address,
            link_port=0,
            secret=secrets.token_hex(32),
            tls=self._tls(self._own_name),
            window_floor=conf.injection_window_floor * KIB,
            window_cap=conf.injection_window_cap * KIB,
        )
        port = self._peer.start_relay(there)
        here = dataclasses.replace(
            there,
            role="source",
            run_directory=str(knowledge.parent),
            link_port=port,
            tls=self._tls(self._peer.name),
            policy=conf.ordering_policy,
            layout=layout.to_dict(),
            knowledge=str(knowledge),
        )
        return relays.start(here, relays.listen_unix(here.socket))

    def _tls(self, peer_name: str) -> TlsFiles | None:
        conf = self._conf
        if conf.link_tls == "off":
            return None
        return TlsFiles(conf.link_tls_ca, conf.link_tls_certificate, conf.link_tls_key, peer_name)
