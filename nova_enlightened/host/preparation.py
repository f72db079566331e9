# SPDX-License-Identifier: Apache-2.0
"""Right before libvirt migrates: is it to leave in its guest's order, and is all ready for it?

Whatever is missing is an answer and never an error, and the answer comes in time: nova-compute
waits for it with a migration at hand.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from nova_enlightened import exception, rpc
from nova_enlightened.host import departure, relays
from nova_enlightened.host.armed import ArmedGuests
from nova_enlightened.host.far_sides import HostCalls
from nova_enlightened.host.hint_sources import HintSource, HintTarget, open_first
from nova_enlightened.host.orders import KeptOrders
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.knowledge.guest_pages import GuestKnowledge

LOG = logging.getLogger(__name__)

BUDGET_S: Final = 8.0
"""For everything; nova-compute gives up after ``rpc.PREPARE_TIMEOUT_S``."""
OPEN_S: Final = 1.5
ASK_S: Final = 3.0
FRESH_S: Final = 30.0
"""Knowledge older than this is asked for anew: an armed guest sends some every few seconds."""
WORKERS: Final = 8
LINKED_S: Final = 3.0
"""How long two relays may take to reach each other."""
ENDED_S: Final = 1.0
KIB: Final = 1024


@dataclasses.dataclass(frozen=True)
class Answer:
    """See ``rpc.HostAPI.prepare_eviction``."""

    wanted: bool
    ordered: bool
    reason: str
    migrate_uri: str | None = None
    migration: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; what is None is left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


class _Unready(Exception):
    """Why pages cannot cross in the guest's order; the VM can leave by post-copy."""


class _Unwise(Exception):
    """Why the migration is Nova's own: nobody says that the destination takes post-copy."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """What is needed of the domain that leaves."""

    xml: str
    target: HintTarget


class Preparation:
    """Prepares migrations from this host. Safe for threads; made without I/O.

    :param options: the group ``[enlightened]``.
    :param own_name: this host, as its certificate names it.
    :param kinds: sources of hints, for guests that are not armed.
    :param domain_of: looks a domain up by UUID; raises ``EnlightenedError``.
    """

    def __init__(
        self,
        options: Any,
        own_name: str,
        orders: KeptOrders,
        armed: ArmedGuests,
        kinds: Sequence[type[HintSource]],
        domain_of: Callable[[str], Domain],
        calls: HostCalls,
        upkeep: RelayUpkeep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._own_name = own_name
        self._orders = orders
        self._armed = armed
        self._kinds = kinds
        self._domain_of = domain_of
        self._calls = calls
        self._upkeep = upkeep
        self._clock = clock
        self._pool = concurrent.futures.ThreadPoolExecutor(WORKERS, "preparation")

    def prepare(self, instance: str, destination: str, tls_required: bool) -> Answer:
        """See ``rpc.HostAPI.prepare_eviction``."""
        order = self._orders.take(instance)
        if order is not None:
            cause = f"urgent: {order.cause}"
        elif self._options.default_policy == "ordered":
            cause = "[enlightened] default_policy is ordered"
        else:
            return Answer(False, False, "no urgent order stands, and default_policy is stock")
        began = self._clock()
        deadline = began + BUDGET_S
        source = self._armed.take(instance)
        try:
            answer = self._ready(instance, destination, tls_required, source, deadline, cause)
        except _Unwise as why:
            answer = Answer(False, False, f"{cause}; but {why}")
        except _Unready as why:
            answer = Answer(True, False, f"{cause}; not in its guest's order: {why}")
        except Exception as error:
            LOG.exception("Preparing %s", instance)
            answer = Answer(False, False, f"{cause}; but the agent failed: {error}")
        finally:
            if source is not None:
                self._armed.release(source)
        LOG.info(
            "%s leaves for %s, %s (%s), prepared in %.2f s",
            instance,
            destination,
            "in its guest's order" if answer.ordered else "not in its guest's order",
            answer.reason,
            self._clock() - began,
        )
        return answer

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ready(
        self,
        instance: str,
        destination: str,
        tls_required: bool,
        source: HintSource | None,
        deadline: float,
        cause: str,
    ) -> Answer:
        described = self._pool.submit(self._calls.describe, destination)
        knowledge = self._pool.submit(self._knowledge, instance, source)
        peer = self._result(described, deadline, destination, _Unwise)
        if peer.get("capable") is not True:
            reasons = "; ".join(map(str, peer.get("obstacles") or ())) or "it says so"
            raise _Unwise(f"{destination} cannot take post-copy: {reasons}")
        self._refuse_unprotected(tls_required)
        domain, known = self._result(knowledge, deadline, "the guest", _Unready)
        if known is None:
            raise _Unready("the guest tells nothing of its memory")
        _refuse_crowding(destination, peer, domain)
        LOG.info("%s: %d samples of its memory by %s", instance, known.samples, known.source)
        migration = str(uuid.uuid4())
        there = departure.destination_spec(
            self._options,
            migration,
            self._own_name,
            str(peer.get("link_host", "")),
            instance if rpc.serves(peer, rpc.MONITORED_ARRIVALS) else None,
        )
        started = self._pool.submit(
            self._calls.start_destination_relay, destination, there.to_json()
        )
        relay: relays.RunningRelay | None = None
        try:
            where = self._result(started, deadline, destination, _Unready)
            with _unready():
                relay = departure.start_source(
                    self._options, there, _peer(peer, where), known, domain.xml, self._upkeep.spare
                )
            self._upkeep.adopt(relay)
            self._refuse_unlinked(relay, deadline)
        except (_Unready, _Unwise):
            # Once it is known what became of the destination's, which may still be starting.
            started.add_done_callback(lambda _: self._leave(destination, migration, relay))
            raise
        return Answer(True, True, cause, f"unix://{there.socket}", migration)

    def _refuse_unlinked(self, relay: relays.RunningRelay, deadline: float) -> None:
        """Post-copy over a link that does not stand now would be a gamble."""
        trouble = relays.linked(relay, min(LINKED_S, deadline - self._clock()))
        if trouble is not None:
            raise _Unwise(f"the relays do not reach each other: {trouble}")

    def _leave(self, destination: str, migration: str, relay: relays.RunningRelay | None) -> None:
        """End the relays of a migration that goes without them; nobody waits for it."""
        ends: list[Callable[[], object]] = [lambda: self._calls.end_arrival(destination, migration)]
        if relay is not None:
            ends.append(lambda: relays.end(relay.spec, ENDED_S, relay.pid))
        for end in ends:
            with contextlib.suppress(RuntimeError):  # the agent is ending
                self._pool.submit(_end, end)

    def _refuse_unprotected(self, tls_required: bool) -> None:
        if tls_required and self._options.link_tls == "off":
            raise _Unready(
                "Nova promises native TLS and [enlightened] link_tls is off on this host"
            )

    def _result(
        self,
        future: "concurrent.futures.Future[Any]",
        deadline: float,
        who: str,
        wrong: type[Exception],
    ) -> Any:
        """What comes in time; `wrong` is raised for what does not, and for what fails."""
        try:
            return future.result(max(0.0, deadline - self._clock()))
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise wrong(f"{who} takes too long") from error
        except exception.EnlightenedError as error:
            raise wrong(str(error)) from error

    def _knowledge(
        self, instance: str, source: HintSource | None
    ) -> tuple[Domain, GuestKnowledge | None]:
        """The domain, and what is known of it: at hand where it is armed, asked for otherwise.

        :raises EnlightenedError: the domain is not here, or its guest does not answer.
        """
        domain = self._domain_of(instance)
        asked = source
        if asked is None:
            opened = open_first(self._kinds, domain.target, OPEN_S, self._clock)
            if opened.source is None:
                raise exception.GuestUnreachable("; ".join(opened.declined) or opened.how)
            asked = opened.source
        try:
            held = asked.latest()
            if held is None or self._clock() - held.received_at > FRESH_S:
                held = asked.ask(ASK_S)
            return domain, None if held is None else held.knowledge
        finally:
            if asked is not source:
                asked.close()


def _refuse_crowding(destination: str, peer: Mapping[str, Any], domain: Domain) -> None:
    """Post-copy has no way back from a destination that runs out of memory."""
    available = peer.get("memory_available")
    if isinstance(available, int) and available * KIB < domain.target.memory:
        raise _Unwise(
            f"{destination} has {available // KIB} MiB available, and the VM may use "
            f"{domain.target.memory // KIB // KIB}"
        )


def _end(end: Callable[[], object]) -> None:
    try:
        end()
    except exception.EnlightenedError as error:
        LOG.warning("A relay is left behind, which ends by itself: %s", error)


@contextlib.contextmanager
def _unready() -> Iterator[None]:
    try:
        yield
    except exception.EnlightenedError as error:
        raise _Unready(str(error)) from error


def _peer(described: Mapping[str, Any], where: Mapping[str, Any]) -> departure.Peer:
    """Where to connect, from what the destination's agent said."""
    try:
        return departure.Peer(
            str(described["link_name"]), str(where["link_host"]), int(where["link_port"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _Unready(f"the destination's agent answers nonsense: {error!r}") from error
