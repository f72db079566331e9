# SPDX-License-Identifier: Apache-2.0
"""Starts of one stored appliance by several ways in turn, and what each cost its users.

The flow is here, the lab is behind ``Stage``: the same flow runs on a simulated stage in the
unit tests. Users ask for the service from the moment the start is ordered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench import measures
from bench.measures import RateSeries
from bench.rounds import StageError, curve, rounded

SUSTAIN_S = 1.0
"""A start is over when the guest does 90 % of its full rate for this long."""
AFTER_S = 0.5
CURVE_BIN_S = 0.25


class StartWay(enum.StrEnum):
    """How an appliance is started."""

    WHOLE = "whole_image"
    PLAIN = "whole_image_plain"
    HTTP = "qemu_http"
    LINEAR = "linear"
    PLANNED = "planned"
    CACHED = "planned_cached"
    RESTORED = "restored"

    @property
    def words(self) -> str:
        """As a reader knows it."""
        return _WORDS[self]


_WORDS = {
    StartWay.WHOLE: "whole image first, virsh restore",
    StartWay.PLAIN: "whole image first, not compressed, virsh restore",
    StartWay.HTTP: "memory first, disk by QEMU's http driver",
    StartWay.LINEAR: "on demand and front to back",
    StartWay.PLANNED: "on demand and by plan",
    StartWay.CACHED: "by plan, second start on the host",
    StartWay.RESTORED: "virsh restore from local files",
}


@dataclass(frozen=True)
class Link:
    """Between the store and the host: 10^6 bit/s, and ms until an answer can be there."""

    mbit: float
    round_trip_ms: float

    @property
    def words(self) -> str:
        """As a reader knows it."""
        return f"{self.mbit:g} Mbit/s, {self.round_trip_ms:g} ms"


@dataclass(frozen=True)
class Begun:
    """Times in monotonic seconds. ``steps``: of what else happened, in order."""

    ordered: float
    executing: float
    steps: Mapping[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """One appliance, and a host to start it on."""

    full_rate: float
    bin_s: float

    def now(self) -> float:
        """Monotonic seconds, the axis of all samples."""

    def wait(self, seconds: float) -> None:
        """Let it run."""

    def begin(self, way: StartWay, link: Link, seed: int) -> Begun:
        """Order a start, with users of that input; returns when the guest executes.

        Raises StageError.
        """

    def first_answer(self) -> float | None:
        """When the users had their first answer; None as long as they have none."""

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest did. Raises StageError."""

    def fetched(self, at: float) -> float:
        """Bytes that had come over the link by then, since the order."""

    def told(self) -> Mapping[str, Any]:
        """What whoever plays the appliance tells of itself; empty without one."""

    def end(self) -> None:
        """The guest is gone, and what it was started from. Raises nothing."""


@dataclass(frozen=True)
class Start:
    """One start. Seconds count from the order; None was not seen in ``watched_s``."""

    round: int
    way: StartWay
    appliance: str
    link: Link
    seed: int
    executing_s: float
    first_answer_s: float | None
    recovered_s: float | None
    watched_s: float
    fetched: float
    curve: RateSeries
    zero: float
    full_rate: float
    steps: Mapping[str, float]
    told: Mapping[str, Any]

    @property
    def time_s(self) -> float:
        """Until 90 % of the full rate; the time watched where that was not seen."""
        return self.watched_s if self.recovered_s is None else self.recovered_s

    @property
    def lower_bound(self) -> bool:
        """Whether it took longer than it was watched."""
        return self.recovered_s is None

    def to_dict(self) -> dict[str, Any]:
        """Everything worth keeping, as JSON values."""
        return {
            "round": self.round,
            "way": f"{self.appliance}, {self.link.words}: {self.way.words}",
            "start": str(self.way),
            "appliance": self.appliance,
            "link": {"mbit": self.link.mbit, "round_trip_ms": self.link.round_trip_ms},
            "input": self.seed,
            "start_s": rounded(self.recovered_s),
            "first_answer_s": rounded(self.first_answer_s),
            "executing_s": rounded(self.executing_s),
            "fetched_mb": round(self.fetched / 1e6, 2),
            "watched_s": rounded(self.watched_s),
            "lower_bound": self.lower_bound,
            "steps": {name: rounded(at) for name, at in self.steps.items()},
            "player": dict(self.told),
            "curve": curve(self.curve, self.zero, self.full_rate),
        }


def one_start(
    stage: Stage, way: StartWay, link: Link, appliance: str, number: int, seed: int, limit_s: float
) -> Start:
    """Start, watch until the users have what they want, end. Raises StageError, MeasureError."""
    try:
        begun = stage.begin(way, link, seed)
        zero = begun.ordered
        while True:
            stage.wait(AFTER_S)
            now = stage.now()
            back = None
            if stage.first_answer() is not None:
                series = stage.rates(zero, now, zero, stage.bin_s)
                back = measures.recovered_at(
                    series, stage.full_rate, begun.executing, sustain_s=SUSTAIN_S
                )
            if back is not None or now - zero > limit_s:
                break
        first = stage.first_answer()
        if first is None:
            raise StageError(f"nobody was answered in {limit_s:.0f} s")
        return Start(
            number, way, appliance, link, seed,
            executing_s=begun.executing - zero,
            first_answer_s=first - zero,
            recovered_s=None if back is None else back - zero,
            watched_s=now - zero,
            fetched=stage.fetched(now if back is None else back),
            curve=stage.rates(zero, now, zero, max(stage.bin_s, CURVE_BIN_S)),
            zero=zero, full_rate=stage.full_rate,
            steps={name: at - zero for name, at in begun.steps.items()},
            told=stage.told(),
        )  # fmt: skip
    finally:
        stage.end()


def in_turn(
    stage: Stage, ways: Sequence[StartWay], link: Link, appliance: str, number: int, seed: int,
    limit_s: float, tell: Callable[[str], None],
) -> tuple[dict[StartWay, Start], list[str]]:  # fmt: skip
    """Every way once, in an order that the round's number turns; and what went wrong."""
    done: dict[StartWay, Start] = {}
    failures: list[str] = []
    turn = (number - 1) % len(ways)
    for way in (*ways[turn:], *ways[:turn]):
        what = f"round {number}, {appliance} at {link.words}: {way.words}"
        tell(what)
        try:
            done[way] = one_start(stage, way, link, appliance, number, seed, limit_s)
        except (StageError, measures.MeasureError) as error:
            failures.append(f"{what}: {error}")
            tell(failures[-1])
    return done, failures


def ratio(starts: Mapping[StartWay, Start], stock: StartWay, ours: StartWay) -> float | None:
    """Time of ``stock`` over ours; None where one of them failed."""
    if stock not in starts or ours not in starts:
        return None
    return starts[stock].time_s / starts[ours].time_s


def first_answers(
    starts: Mapping[StartWay, Start], ours: StartWay, stock: StartWay
) -> float | None:
    """Our time to the first answer over that of ``stock``; None where one of them failed."""
    if stock not in starts or ours not in starts:
        return None
    mine, theirs = starts[ours].first_answer_s, starts[stock].first_answer_s
    return None if mine is None or theirs is None else mine / theirs


@dataclass(frozen=True)
class SessionRun:
    """What a session's user did while watched: actions, and seconds spent waiting for them."""

    actions: int
    busy_s: float
    watched_s: float


def stall_s_per_min(streamed: SessionRun, local: SessionRun) -> float:
    """Seconds that a user waits in a minute beyond what the actions take where all is local.

    Raises MeasureError where a run has no action to judge by.
    """
    if not (streamed.actions and local.actions and streamed.watched_s > 0):
        raise measures.MeasureError("a session without an action")
    beyond = streamed.busy_s - streamed.actions * local.busy_s / local.actions
    return max(0.0, beyond) * 60.0 / streamed.watched_s
