# SPDX-License-Identifier: Apache-2.0
"""What other services may ask of this host's agent: the other side of ``rpc.HostAPI``."""

import logging
import re
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import oslo_messaging

from nova_enlightened import exception, rpc
from nova_enlightened.host.armed import ArmedGuests
from nova_enlightened.host.arrivals import Arrivals
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.metrics import Metrics
from nova_enlightened.host.orders import KeptOrders
from nova_enlightened.host.preparation import Preparation
from nova_enlightened.host.recovery_calls import RecoveryCalls
from nova_enlightened.host.relay_upkeep import RelayUpkeep

LOG = logging.getLogger(__name__)

MOST_INSTANCES: Final = 1000
_LABEL: Final = re.compile(r"[a-z][a-z0-9_ -]{0,63}")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def expected(method: _Method) -> _Method:
    """Refusals go back to the caller without a traceback in this service's log."""
    decorate = oslo_messaging.expected_exceptions(exception.EnlightenedError)
    return cast("_Method", decorate(method))


class HostEndpoint:
    """Methods called from the bus, in threads of its server. They raise ``EnlightenedError``.

    :param describe: answers what this host is and can.
    :param announce: called when an order was placed.
    """

    target = oslo_messaging.Target(version=rpc.HOST_VERSION)

    def __init__(
        self,
        describe: Callable[[], dict[str, Any]],
        armed: ArmedGuests,
        orders: KeptOrders,
        preparation: Preparation,
        arrivals: Arrivals,
        upkeep: RelayUpkeep,
        metrics: Metrics,
        recovery: RecoveryCalls,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        self._describe = describe
        self._armed = armed
        self._orders = orders
        self._preparation = preparation
        self._arrivals = arrivals
        self._upkeep = upkeep
        self._metrics = metrics
        self._recovery = recovery
        self._announce = announce

    @expected
    def describe(self, context: dict[str, Any]) -> dict[str, Any]:
        """See ``rpc.HostAPI``, as for all that follow."""
        return self._describe()

    @expected
    def arm(self, context: dict[str, Any], instances: list[str]) -> dict[str, Any]:
        """Begin, or renew."""
        return dict(self._armed.arm(_instances(instances)))

    @expected
    def disarm(self, context: dict[str, Any], instances: list[str]) -> dict[str, Any]:
        """End."""
        return dict(self._armed.disarm(_instances(instances)))

    @expected
    def order_urgent(
        self, context: dict[str, Any], instance: str, cause: str, ttl: float
    ) -> dict[str, Any]:
        """Place an order; the guest is armed as well, which costs nothing if it is already."""
        order = self._orders.place(instance_uuid(instance), str(cause), seconds(ttl))
        self._announce()
        self._armed.arm([instance])
        LOG.info("Urgent order for %s: %s", instance, order.cause)
        return {"until": order.until}

    @expected
    def withdraw_urgent(self, context: dict[str, Any], instance: str) -> dict[str, Any]:
        """Take an order back."""
        stood = self._orders.withdraw(instance_uuid(instance))
        if stood:
            LOG.info("Urgent order for %s withdrawn", instance)
        return {"withdrawn": stood}

    @expected
    def prepare_eviction(
        self, context: dict[str, Any], instance: str, destination: str, tls_required: bool
    ) -> dict[str, Any]:
        """Have everything ready, or say what is not."""
        answer = self._preparation.prepare(
            instance_uuid(instance), str(destination), bool(tls_required)
        )
        self._metrics.prepared(answer.wanted, answer.ordered)
        return answer.to_dict()

    @expected
    def end_eviction(self, context: dict[str, Any], migration: str, outcome: str) -> dict[str, Any]:
        """The last state of the source's relay."""
        outcome = str(outcome)
        completed = outcome == "completed"
        self._metrics.ended(completed)
        self._recovery.ended(instance_uuid(migration), completed)
        return dict(self._upkeep.end(instance_uuid(migration), outcome))

    @expected
    def start_destination_relay(self, context: dict[str, Any], spec: str) -> dict[str, Any]:
        """Start the relay of a VM that arrives."""
        return self._arrivals.start(str(spec))

    @expected
    def note_decision(self, context: dict[str, Any], instance: str, kind: str, reason: str) -> None:
        """Count it. Words that are no labels are not: each would be a counter of its own."""
        if _LABEL.fullmatch(str(kind)) and _LABEL.fullmatch(str(reason)):
            self._metrics.decided(kind, reason)

    @expected
    def follow_eviction(
        self,
        context: dict[str, Any],
        instance: str,
        destination: str,
        control_uri: str,
        migration: str | None,
    ) -> dict[str, Any]:
        """Recover it from here on, where it has to be."""
        relays = None if migration is None else instance_uuid(migration)
        self._recovery.follow(
            Departure(instance_uuid(instance), str(destination), str(control_uri), relays)
        )
        return {}

    @expected
    def recovery(self, context: dict[str, Any], instance: str) -> dict[str, Any]:
        """How one stands."""
        return self._recovery.state(instance_uuid(instance))

    @expected
    def recoveries(self, context: dict[str, Any]) -> dict[str, Any]:
        """How all stand."""
        return {"departures": self._recovery.told()}

    @expected
    def retry_recovery(self, context: dict[str, Any], instance: str) -> dict[str, Any]:
        """Try again."""
        return self._recovery.retry(instance_uuid(instance))

    @expected
    def stop_recovery(self, context: dict[str, Any], instance: str) -> dict[str, Any]:
        """Try no more."""
        return self._recovery.stop(instance_uuid(instance))

    @expected
    def arrival(
        self, context: dict[str, Any], instance: str, migration: str | None
    ) -> dict[str, Any]:
        """How a VM that arrives stands here."""
        relays = None if migration is None else instance_uuid(migration)
        return self._recovery.arrival(instance_uuid(instance), relays)

    @expected
    def end_arrival(self, context: dict[str, Any], migration: str) -> dict[str, Any]:
        """End the relay of a VM that arrives."""
        self._recovery.end_arrival(instance_uuid(migration))
        return {}

    @expected
    def recover_arrival(
        self, context: dict[str, Any], instance: str, migration: str
    ) -> dict[str, Any]:
        """Have QEMU of a VM that arrives listen again."""
        self._recovery.recover_arrival(instance_uuid(instance), instance_uuid(migration))
        return {}

    @expected
    def end_unstarted(
        self, context: dict[str, Any], instance: str, migration: str
    ) -> dict[str, Any]:
        """End a VM that arrives and never executed."""
        self._recovery.end_unstarted(instance_uuid(instance), instance_uuid(migration))
        return {}


def instance_uuid(text: object) -> str:
    """A UUID as it goes into file names and tables. :raises AgentRefused: it is none."""
    try:
        return str(uuid.UUID(str(text)))
    except ValueError:
        raise exception.AgentRefused(f"{str(text)[:64]!r} is no UUID") from None


def _instances(texts: object) -> list[str]:
    if not isinstance(texts, list) or len(texts) > MOST_INSTANCES:
        raise exception.AgentRefused(f"not a list of at most {MOST_INSTANCES} instances")
    return [instance_uuid(text) for text in texts]


def seconds(value: object) -> float:
    """A duration. :raises AgentRefused: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise exception.AgentRefused(f"{str(value)[:64]!r} is no time")
    return float(value)
