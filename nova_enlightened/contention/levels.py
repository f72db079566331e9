# SPDX-License-Identifier: Apache-2.0
"""When a level is reached and when it is left: bounds, zones, and how long each has to last.

Everything that moves a level is in this file. A figure falls into a *zone*; the table gives the
level that a zone asks for, which depends on the level that stands (hysteresis); and a level
changes only after it has been asked for without a break for its hold time.
"""

import enum
from dataclasses import dataclass
from typing import Final

from nova_enlightened.contention.report import Level
from nova_enlightened.exception import ConfigError


class Zone(enum.IntEnum):
    """Where a figure lies between its bounds."""

    CALM = 0
    NEAR_WARN = 1
    """Too low to warn, too high to take a warning back."""
    WARN = 2
    NEAR_ACT = 3
    ACT = 4


TARGETS: Final[dict[tuple[Level, Zone], Level]] = {
    (Level.CALM, Zone.CALM): Level.CALM,
    (Level.CALM, Zone.NEAR_WARN): Level.CALM,
    (Level.CALM, Zone.WARN): Level.WARN,
    (Level.CALM, Zone.NEAR_ACT): Level.WARN,
    (Level.CALM, Zone.ACT): Level.ACT,
    (Level.WARN, Zone.CALM): Level.CALM,
    (Level.WARN, Zone.NEAR_WARN): Level.WARN,
    (Level.WARN, Zone.WARN): Level.WARN,
    (Level.WARN, Zone.NEAR_ACT): Level.WARN,
    (Level.WARN, Zone.ACT): Level.ACT,
    (Level.ACT, Zone.CALM): Level.CALM,
    (Level.ACT, Zone.NEAR_WARN): Level.WARN,
    (Level.ACT, Zone.WARN): Level.WARN,
    (Level.ACT, Zone.NEAR_ACT): Level.ACT,
    (Level.ACT, Zone.ACT): Level.ACT,
}
"""The level that a zone asks for while another stands."""

_PUNCTUAL: Final = 0.9
"""Share of a hold time that counts as all of it: samples do not come to the millisecond, and
the third of three must not be too early by that."""


@dataclass(frozen=True)
class Bounds:
    """From where a figure warns and acts.

    :param leave: share of a bound below which its level is left.
    :raises ConfigError: not 0 < warn <= act, or not 0 < leave <= 1.
    """

    warn: float
    act: float
    leave: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.warn <= self.act:
            raise ConfigError(f"not 0 < warn {self.warn} <= act {self.act}")
        if not 0 < self.leave <= 1:
            raise ConfigError(f"leave {self.leave} is not a share above 0")

    def zone(self, figure: float) -> Zone:
        """Where `figure` lies; what is not a number is calm."""
        if figure >= self.act:
            return Zone.ACT
        # Where the bounds are close, what is enough to warn also keeps the act level.
        if figure >= max(self.act * self.leave, self.warn):
            return Zone.NEAR_ACT
        if figure >= self.warn:
            return Zone.WARN
        return Zone.NEAR_WARN if figure >= self.warn * self.leave else Zone.CALM


@dataclass(frozen=True)
class Holds:
    """Seconds for which a level has to be asked for before it stands.

    :param lower: before a level is left for a lower one.
    :raises ConfigError: one is negative.
    """

    warn: float = 1.0
    act: float = 2.0
    lower: float = 5.0

    def __post_init__(self) -> None:
        for name in ("warn", "act", "lower"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"hold time {name} {getattr(self, name)} is negative")


class HeldLevel:
    """The level of one resource over time."""

    def __init__(self, holds: Holds) -> None:
        self._holds = {Level.WARN: holds.warn, Level.ACT: holds.act}
        self._lower = holds.lower
        self.level = Level.CALM
        self._asked: dict[Level, float] = {}
        self._fell: float | None = None
        self._highest = Level.CALM

    def observe(self, zone: Zone, at: float) -> Level:
        """The level after one more figure.

        :param at: seconds; never less than before (`forget` first).
        """
        target = TARGETS[self.level, zone]
        for level in self._holds:
            if target >= level > self.level:
                self._asked.setdefault(level, at)
            else:
                self._asked.pop(level, None)
        ready = [lv for lv, since in self._asked.items() if self._over(since, at, self._holds[lv])]
        if ready:
            self._stand(max(ready))
        elif target < self.level:
            self._fall(target, at)
        else:
            self._fell = None
        return self.level

    def forget(self, *, level: bool) -> None:
        """Begin anew to count hold times; with `level`, from calm."""
        self._asked.clear()
        self._fell = None
        if level:
            self.level = Level.CALM

    def _fall(self, target: Level, at: float) -> None:
        if self._fell is None:
            self._fell, self._highest = at, target
        self._highest = max(self._highest, target)
        if self._over(self._fell, at, self._lower):
            self._stand(self._highest)

    def _stand(self, level: Level) -> None:
        self.level = level
        self._fell = None
        self._asked = {above: since for above, since in self._asked.items() if above > level}

    @staticmethod
    def _over(since: float, at: float, hold: float) -> bool:
        return at - since >= hold * _PUNCTUAL
