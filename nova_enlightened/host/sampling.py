# SPDX-License-Identifier: Apache-2.0
"""One round of all collectors: a sample, a verdict, a report."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from nova_enlightened import exception
from nova_enlightened.contention.detector import Detector, Thresholds
from nova_enlightened.contention.levels import Bounds, Holds
from nova_enlightened.contention.report import DomainReport, HostReport
from nova_enlightened.host.armed import GuestFacts
from nova_enlightened.host.collectors.reading import Collector, Reading

LOG = logging.getLogger(__name__)


def thresholds(options: Any) -> Thresholds:
    """What counts as contention by the group ``[enlightened_agent]``.

    :raises ConfigError: bounds that contradict each other.
    """
    return Thresholds(
        cpu=Bounds(options.cpu_warn, options.cpu_act),
        cpu_least=options.cpu_least,
        cpu_stall=options.cpu_stall,
        memory_some=Bounds(options.memory_some_warn, options.memory_some_act),
        memory_full=Bounds(options.memory_full_warn, options.memory_full_act),
        swap_in=Bounds(options.swap_in_warn, options.swap_in_act),
        memory_scarce=options.memory_scarce,
        memory_ample=options.memory_ample,
        holds=Holds(options.hold_warn, options.hold_act, options.hold_lower),
        gap=max(10.0, 3 * options.sample_interval),
    )


@dataclasses.dataclass(frozen=True)
class Identity:
    """Whose reports these are, see :class:`HostReport`."""

    host: str
    node: str


class Sampler:
    """Samples one host. Called from one thread.

    :param facts: what is known of an armed guest, by UUID.
    :param failed: told the name of a collector each time it fails.
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        detector: Detector,
        facts: Callable[[str], GuestFacts | None] = lambda _: None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._collectors = collectors
        self._detector = detector
        self._facts = facts
        self._failed = failed
        self._failures: dict[str, str] = {}

    def read(self, now: float) -> Reading:
        """What all collectors found; one that fails is left out.

        :param now: seconds of a monotonic clock.
        """
        reading = Reading()
        for collector in self._collectors:
            try:
                reading = collector.collect(now, reading).over(reading)
            except exception.EnlightenedError as error:
                self._note(collector.name, str(error))
            except Exception as error:  # a plugin's mistake must not end the others
                if collector.name not in self._failures:
                    LOG.exception("Collector %s", collector.name)
                self._note(collector.name, repr(error))
            else:
                if self._failures.pop(collector.name, None) is not None:
                    LOG.info("Collector %s works again", collector.name)
        return reading

    def report(
        self, reading: Reading, identity: Identity, now: float, at: float, capable: bool
    ) -> HostReport:
        """The report that follows from a reading.

        :param at: seconds since the epoch.
        :raises CollectorError: what a sample needs was not read.
        """
        sample = reading.sample(now)
        verdict = self._detector.observe(sample)
        return verdict.report(
            sample,
            host=identity.host,
            node=identity.node,
            at=at,
            bandwidth=reading.bandwidth or 0,
            capable=capable,
            domains=tuple(self._with_facts(one) for one in verdict.domains),
        )

    def _with_facts(self, one: DomainReport) -> DomainReport:
        facts = self._facts(one.uuid)
        if facts is None:
            return one
        return dataclasses.replace(one, armed=facts.armed, hot=facts.hot)

    def _note(self, name: str, why: str) -> None:
        if self._failures.get(name) != why:
            LOG.warning("Collector %s: %s", name, why)
        self._failures[name] = why
        self._failed(name)
