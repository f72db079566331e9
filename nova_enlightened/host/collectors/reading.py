# SPDX-License-Identifier: Apache-2.0
"""What a collector is, what it reads, and how the readings of several become one sample."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Final

from stevedore import named

from nova_enlightened import exception
from nova_enlightened.contention.report import DomainSample, HostSample
from nova_enlightened.host import files

NAMESPACE: Final = "nova_enlightened.collectors"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one collector found at one moment; None is what it does not know.

    Fields are those of :class:`HostSample`, and besides:

    :param allowed_cpus: CPUs that guests may use.
    :param pids: domain UUID -> process id of its QEMU.
    :param throttled: domain UUID -> seconds its quota held it back.
    :param bandwidth: bytes a second that migrations can use.
    :param trouble: why guests cannot leave or arrive now, in words; empty where they can.
    """

    cpus: int | None = None
    cpu_busy: float | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    cpu_some: float | None = None
    memory_some: float | None = None
    memory_full: float | None = None
    swap_in: int | None = None
    domains: tuple[DomainSample, ...] | None = None
    allowed_cpus: frozenset[int] | None = None
    pids: Mapping[str, int] | None = None
    throttled: Mapping[str, float] | None = None
    bandwidth: int | None = None
    trouble: tuple[str, ...] = ()

    def over(self, other: "Reading") -> "Reading":
        """Both: `self` where it knows something, `other` elsewhere; trouble adds up."""
        known = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(other, **{**known, "trouble": other.trouble + self.trouble})

    def sample(self, at: float) -> HostSample:
        """As a sample. :raises CollectorError: nobody told the host's CPUs or memory."""
        for name in ("cpus", "cpu_busy", "memory_total", "memory_available", "domains"):
            if getattr(self, name) is None:
                raise exception.CollectorError(f"no collector told {name} of this host")
        held_back = self.throttled or {}
        return HostSample(
            at=at,
            cpus=self.cpus or 0,
            cpu_busy=self.cpu_busy or 0.0,
            memory_total=self.memory_total or 0,
            memory_available=self.memory_available or 0,
            cpu_some=self.cpu_some,
            memory_some=self.memory_some,
            memory_full=self.memory_full,
            swap_in=self.swap_in or 0,
            domains=tuple(
                dataclasses.replace(one, throttled=held_back[one.uuid])
                if one.uuid in held_back
                else one
                for one in self.domains or ()
            ),
        )


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What collectors are made with. Nothing here does I/O by itself.

    :param options: the groups ``[enlightened_agent]`` and ``[enlightened]``.
    :param connection: answers an open libvirt connection; raises ``LibvirtError``.
    :param read: answers a file's text, None where it cannot be read.
    :param listing: answers the names in a directory, none where it cannot be read.
    """

    options: Any
    link_options: Any
    connection: Callable[[], Any]
    read: Callable[[str], str | None] = files.read
    listing: Callable[[str], Sequence[str]] = files.listing


class Collector(abc.ABC):
    """Reads one aspect of the host, each sample interval. Made without I/O.

    Called from one thread. A collector keeps what it needs between calls, and costs little: all
    of them together may use 1 % of a core.
    """

    name: ClassVar[str]

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings

    @abc.abstractmethod
    def collect(self, now: float, sofar: Reading) -> Reading:
        """What there is to know now.

        :param now: seconds of a monotonic clock.
        :param sofar: what collectors before this one found in the same round.
        :raises EnlightenedError: it cannot be read now; the others' readings are used.
        """


def load(names: Iterable[str], surroundings: Surroundings) -> list[Collector]:
    """The collectors of these names, in this order.

    :raises ConfigError: there is no such plugin, or it does not load.
    """

    def failed(manager: object, entry: EntryPoint, error: BaseException) -> None:
        raise exception.ConfigError(
            f"[enlightened_agent] collectors: {entry.name!r} does not load: {error}"
        ) from error

    def missing(unknown: Iterable[str]) -> None:
        raise exception.ConfigError(
            f"[enlightened_agent] collectors: none is called {', '.join(sorted(unknown))}"
        )

    found: named.NamedExtensionManager[Collector] = named.NamedExtensionManager(
        NAMESPACE,
        list(names),
        name_order=True,
        on_load_failure_callback=failed,
        on_missing_entrypoints_callback=missing,
    )
    return [extension.plugin(surroundings) for extension in found]
