# SPDX-License-Identifier: Apache-2.0
"""Urgent orders that stand on this host: the next live migration of an instance is to leave in
its guest's order, switched at once.

An order is void after its time, or once a migration has taken it.
"""

import dataclasses
import json
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

from nova_enlightened import exception, whole_file

LOG = logging.getLogger(__name__)

LONGEST_S: Final = 3600.0
MOST: Final = 1000
CAUSE_LENGTH: Final = 500
FORMAT: Final = 1


@dataclasses.dataclass(frozen=True)
class UrgentOrder:
    """:param placed, until: seconds since the epoch."""

    instance: str
    cause: str
    placed: float
    until: float


class UrgentOrders:
    """The table. Time is passed in: seconds since the epoch, because it outlives the process."""

    def __init__(self) -> None:
        self._orders: dict[str, UrgentOrder] = {}

    def place(self, instance: str, cause: str, ttl: float, now: float) -> UrgentOrder:
        """A new order takes the place of one that stands.

        :raises AgentRefused: `ttl` is not above 0 and at most `LONGEST_S`, or too many stand.
        """
        if not (math.isfinite(ttl) and 0 < ttl <= LONGEST_S):
            raise exception.AgentRefused(f"an order of {ttl} s: at most {LONGEST_S:g} s can stand")
        self._expire(now)
        if instance not in self._orders and len(self._orders) >= MOST:
            raise exception.AgentRefused(f"{MOST} orders stand already")
        order = UrgentOrder(instance, cause[:CAUSE_LENGTH], now, now + ttl)
        self._orders[instance] = order
        return order

    def withdraw(self, instance: str) -> bool:
        """Whether an order stood."""
        return self._orders.pop(instance, None) is not None

    def take(self, instance: str, now: float) -> UrgentOrder | None:
        """The order that stands, which it does not from here on."""
        self._expire(now)
        return self._orders.pop(instance, None)

    def standing(self, now: float) -> tuple[UrgentOrder, ...]:
        """Orders not taken yet, oldest first."""
        self._expire(now)
        return tuple(sorted(self._orders.values(), key=lambda order: order.placed))

    def _expire(self, now: float) -> None:
        # One from the future was placed before the clock was set back: it would stand too long.
        self._orders = {
            instance: order
            for instance, order in self._orders.items()
            if now < order.until <= now + LONGEST_S
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a file."""
        orders = [dataclasses.asdict(order) for order in self._orders.values()]
        return {"format": FORMAT, "orders": orders}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """:raises ValueError: not such values."""
        table = cls()
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"orders of format {values['format']}, not {FORMAT}")
            for one in values["orders"][:MOST]:
                order = UrgentOrder(
                    str(one["instance"]),
                    str(one["cause"]),
                    float(one["placed"]),
                    float(one["until"]),
                )
                table._orders[order.instance] = order
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a table of orders: {error!r}") from error
        return table


class KeptOrders:
    """The table in a file, so that orders outlive a restart of the agent. Safe for threads.

    :param path: of the file; `load` reads it.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = pathlib.Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._table = UrgentOrders()

    def load(self) -> None:
        """Take up what a former process left. A file that makes no sense is left behind."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            LOG.warning("Urgent orders are not known any more: %s", error)
            return
        try:
            self._table = UrgentOrders.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            LOG.warning("Urgent orders are not known any more, %s: %s", self._path, error)

    def place(self, instance: str, cause: str, ttl: float) -> UrgentOrder:
        """See :class:`UrgentOrders`."""
        with self._lock:
            order = self._table.place(instance, cause, ttl, self._clock())
            self._save()
            return order

    def withdraw(self, instance: str) -> bool:
        """See :class:`UrgentOrders`."""
        with self._lock:
            stood = self._table.withdraw(instance)
            if stood:
                self._save()
            return stood

    def take(self, instance: str) -> UrgentOrder | None:
        """See :class:`UrgentOrders`."""
        with self._lock:
            order = self._table.take(instance, self._clock())
            if order is not None:
                self._save()
            return order

    def standing(self) -> tuple[UrgentOrder, ...]:
        """See :class:`UrgentOrders`."""
        with self._lock:
            return self._table.standing(self._clock())

    def _save(self) -> None:
        try:
            whole_file.write(self._path, json.dumps(self._table.to_dict()))
        except OSError as error:
            LOG.warning("Urgent orders would not outlive this process: %s", error)
