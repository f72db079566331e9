# SPDX-License-Identifier: Apache-2.0
"""Guests that get ready to leave: one conversation with each, kept while it is armed.

An armed guest sends what it knows by itself. It is decoded here as it comes, in the background,
so that nothing of this is left to do when the guest has to leave.
"""

import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from nova_enlightened import exception
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.hint_sources import HintSource, HintTarget, open_first
from nova_enlightened.knowledge.heat import SAMPLED_MIN

LOG = logging.getLogger(__name__)

OPEN_S: Final = 2.0
DECODE_S: Final = 3.0
"""Between two snapshots of one guest that are decoded, at least."""
AGAIN_S: Final = 15.0
"""Before a guest is asked again that did not answer."""
MOST: Final = 1000
WORKERS: Final = 4
TAKE_S: Final = 1.0
"""How long an order waits for a guest that is being asked just then."""
FRAME_KIB: Final = 4

TargetOf = Callable[[str], HintTarget]


def hot_kib(held: HeldKnowledge) -> int | None:
    """KiB that samples saw in use; None where none were taken."""
    known = held.knowledge
    if not known.samples:
        return None
    return int(np.count_nonzero(known.heat >= SAMPLED_MIN)) * FRAME_KIB


@dataclasses.dataclass(frozen=True)
class GuestFacts:
    """What reports say of an armed guest. :param hot: KiB, None where not known."""

    armed: bool
    hot: int | None
    how: str


class _Guest:
    """One guest that is to be armed; `lock` is held while it is asked."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.lock = threading.Lock()
        self.source: HintSource | None = None
        self.armed = False
        self.how = "being asked"
        self.hot: int | None = None
        self.decoded: HeldKnowledge | None = None
        self.due_open = self.due_renewal = self.due_decoding = float("-inf")
        self.given_up = False

    def due(self, now: float) -> bool:
        """Whether there is something to ask or to decode."""
        if self.source is None:
            return now >= self.due_open
        return now >= min(self.due_renewal, self.due_decoding)


class ArmedGuests:
    """The guests of this host that are armed. Safe for threads; made without I/O.

    :param options: the group ``[enlightened]``.
    :param kinds: sources of hints, tried in this order.
    :param target_of: answers where a guest is asked, by UUID; raises ``EnlightenedError``.
    """

    def __init__(
        self,
        options: Any,
        kinds: Sequence[type[HintSource]],
        target_of: TargetOf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._kinds = kinds
        self._target_of = target_of
        self._clock = clock
        self._lock = threading.Lock()
        self._guests: dict[str, _Guest] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(WORKERS, "armed-guest")

    def arm(self, instances: Iterable[str]) -> dict[str, str]:
        """Arm, or renew the lease of ``arm_max`` seconds; says how each stands, at once."""
        until = self._clock() + self._options.arm_max
        said = {}
        with self._lock:
            for instance in instances:
                guest = self._guests.get(instance)
                if guest is None and len(self._guests) >= MOST:
                    said[instance] = f"refused: {MOST} guests are armed"
                    continue
                if guest is None:
                    guest = self._guests[instance] = _Guest(until)
                guest.until = until
                said[instance] = guest.how
        self.turn()
        return said

    def disarm(self, instances: Iterable[str]) -> dict[str, str]:
        """Have guests stop; harmless for those that are not armed."""
        said = {}
        for instance in instances:
            with self._lock:
                guest = self._guests.pop(instance, None)
            said[instance] = "was not armed" if guest is None else "disarmed"
            if guest is not None:
                self._pool.submit(self._end, guest)
        return said

    def turn(self, present: Iterable[str] | None = None) -> None:
        """Have everything done that is due, in the background.

        :param present: guests that run here; others are forgotten. None: not known.
        """
        now, here = self._clock(), None if present is None else frozenset(present)
        with self._lock:
            gone = [
                uuid
                for uuid, guest in self._guests.items()
                if now >= guest.until or (here is not None and uuid not in here)
            ]
            ended = [self._guests.pop(uuid) for uuid in gone]
            due = [pair for pair in self._guests.items() if pair[1].due(now)]
        for guest in ended:
            self._pool.submit(self._end, guest)
        for uuid, guest in due:
            self._pool.submit(self._attend, uuid, guest)

    def facts(self, instance: str) -> GuestFacts | None:
        """How a guest stands; None where nobody asked to arm it."""
        with self._lock:
            guest = self._guests.get(instance)
        return None if guest is None else GuestFacts(guest.armed, guest.hot, guest.how)

    def states(self) -> dict[str, str]:
        """UUID -> how it stands, in words."""
        with self._lock:
            return {uuid: guest.how for uuid, guest in self._guests.items()}

    def take(self, instance: str) -> HintSource | None:
        """The open conversation with a guest, which is the caller's from here on (`release` it).

        None where there is none. The guest is not armed any more.
        """
        with self._lock:
            guest = self._guests.pop(instance, None)
        if guest is None:
            return None
        if not guest.lock.acquire(timeout=TAKE_S):
            self._pool.submit(self._end, guest)
            return None
        try:
            source, guest.source = guest.source, None
            guest.given_up = True
            return source
        finally:
            guest.lock.release()

    def release(self, source: HintSource) -> None:
        """Disarm a guest and let go of it, in the background."""
        self._pool.submit(_let_go, source)

    def close(self) -> None:
        """Let go of all guests; they stop by themselves when their lease has run out."""
        with self._lock:
            guests, self._guests = list(self._guests.values()), {}
        self._pool.shutdown(wait=False, cancel_futures=True)
        for guest in guests:
            guest.given_up = True
            if guest.source is not None:
                guest.source.close()

    # -- in the background --------------------------------------------------------------------

    def _attend(self, uuid: str, guest: _Guest) -> None:
        if not guest.lock.acquire(blocking=False):
            return  # it is being asked
        try:
            now = self._clock()
            if guest.given_up or not guest.due(now):
                return
            if guest.source is None:
                self._open(uuid, guest)
            if guest.source is not None:
                self._keep(guest, guest.source, now)
        except exception.EnlightenedError as error:
            self._failed(uuid, guest, str(error))
        except Exception:
            LOG.exception("Arming %s", uuid)
            self._failed(uuid, guest, "an error of this agent, see its log")
        finally:
            if guest.given_up and guest.source is not None:
                _let_go(guest.source)
                guest.source = None
            guest.lock.release()

    def _open(self, uuid: str, guest: _Guest) -> None:
        guest.due_open = self._clock() + AGAIN_S
        opened = open_first(self._kinds, self._target_of(uuid), OPEN_S, self._clock)
        guest.source = opened.source
        if opened.source is None:
            raise exception.GuestUnreachable("; ".join(opened.declined) or opened.how)
        guest.how = opened.how
        LOG.info("Armed %s: %s", uuid, opened.how)

    def _keep(self, guest: _Guest, source: HintSource, now: float) -> None:
        options = self._options
        if now >= guest.due_renewal:
            source.arm(options.arm_interval, options.arm_max, options.arm_cpu_limit)
            guest.armed = True
            guest.due_renewal = now + options.arm_max / 2
        if now >= guest.due_decoding:
            guest.due_decoding = now + DECODE_S
            held = source.latest()
            if held is not None and held is not guest.decoded:
                guest.decoded, guest.hot = held, hot_kib(held)

    def _failed(self, uuid: str, guest: _Guest, why: str) -> None:
        if guest.how != why:
            LOG.info("Not armed: %s: %s", uuid, why)
        guest.how, guest.armed, guest.hot, guest.decoded = why, False, None, None
        guest.due_open = self._clock() + AGAIN_S
        guest.due_renewal = guest.due_decoding = float("-inf")
        source, guest.source = guest.source, None
        if source is not None:
            source.close()

    def _end(self, guest: _Guest) -> None:
        guest.given_up = True
        with guest.lock:
            source, guest.source = guest.source, None
        if source is not None:
            _let_go(source)


def _let_go(source: HintSource) -> None:
    try:
        source.disarm()
    except exception.EnlightenedError as error:
        LOG.debug("Disarming %s: %s", source.target.name, error)
    finally:
        source.close()
