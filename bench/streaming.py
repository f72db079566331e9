# SPDX-License-Identifier: Apache-2.0
"""Appliances behind a slow link: how soon their users have what they want, whoever starts them.

Traces are learned with three inputs before anything is measured; each round has an input of its own
that nothing was learned from. All ways of a round start the same captured instant for the same
users, one after the other, over the same link from the same HTTP server.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench import measures, starts
from bench.results import Outcome
from bench.rounds import StageError
from bench.session import Session, versions
from bench.starts import Link, SessionRun, Start, StartWay
from bench.streaming_stage import ERRORS, HOST, ApplianceStage
from lab import Lab, appliances, streams, whole
from lab.appliances import REDIS, SESSION, WEB, Appliance
from lab.far import FarStore
from lab.saved import saved

FAST, SLOW, LEARNING = Link(100.0, 10.0), Link(20.0, 30.0), Link(1000.0, 1.0)
FAST_WAYS = {
    REDIS.name: (
        StartWay.WHOLE, StartWay.PLAIN, StartWay.HTTP, StartWay.LINEAR, StartWay.PLANNED
    ),
    WEB.name: (StartWay.WHOLE, StartWay.PLANNED),
}  # fmt: skip
SLOW_WAYS = (StartWay.WHOLE, StartWay.PLANNED)
LOCAL_WAYS = (StartWay.CACHED, StartWay.RESTORED)
LIMIT_S = {FAST: 90.0, SLOW: 300.0}
FULL, BYTES, SLOWLY = "stream_100_full_ratio", "stream_bytes_percent", "stream_20_full_ratio"
STOCK = {
    "stream_100_plain_ratio": StartWay.PLAIN,
    "stream_100_linear_ratio": StartWay.LINEAR,
    "stream_100_qemu_http_ratio": StartWay.HTTP,
}
DIFFERING, SECOND = "stream_pages_differing", "stream_second_start_over_restore"
STALL = "stream_stall_s_per_min_interactive"
NEEDS = {
    REDIS.name: {FULL, BYTES, SLOWLY, DIFFERING, SECOND, *STOCK},
    WEB.name: {FULL, BYTES},
    SESSION.name: {STALL},
}
"""The measures that each appliance is started for."""
LEARN_S, LEARN_SESSION_S = 30.0, 60.0
"""At full rate, of each learning run. A session's rate is its user's own: it is watched for longer
than it is measured, as what it comes to do late is to be known too."""
SESSION_S, SESSION_LOCAL_S = 40.0, 15.0
QUICK_SESSION_S = 20.0


@dataclass
class Found:
    """What the rounds gave: one value a round for each measure, all starts, what went wrong."""

    values: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, id: str, value: float | None) -> None:
        """A round's value; None where the round has none."""
        if value is not None:
            self.values.setdefault(id, []).append(value)


def streaming(session: Session) -> Outcome:
    """All measures of streaming on two libvirt hosts."""
    lab = session.lab("bookworm")
    found = Found()
    with ExitStack() as stack:
        store = FarStore(lab.hosts[HOST], lab.run_dir, lab.run_dir / "far", lab.cache)
        stack.callback(store.stop)
        store.start(FAST.mbit, FAST.round_trip_ms)
        stages = {
            appliance.name: _stage(session, lab, store, appliance)
            for appliance in (REDIS, WEB, SESSION)
            if session.wanted & NEEDS[appliance.name]
        }
        for number in range(1, session.options.rounds + 1):
            _round(session, lab, stages, number, found)
    used = {**versions(lab), "link": "tbf and a delaying TUN", "store": "nginx"}
    return Outcome(found.values, used, found.runs, found.notes)


def _stage(session: Session, lab: Lab, store: FarStore, appliance: Appliance) -> ApplianceStage:
    """The appliance made, offered whole, published and learned."""
    taken = saved(lab, appliance, session.tell)
    session.tell(f"publishing {appliance.name}")
    image = whole.offer(taken, store)
    published = streams.publish(taken, store.root)
    stage = ApplianceStage(lab, store, image, published)
    traces = []
    learn_s = LEARN_S if appliance.rate else LEARN_SESSION_S
    for seed in appliances.LEARNED:
        session.tell(f"learning {appliance.name} with input {seed}")
        trace = lab.run_dir / f"{appliance.name}-{seed}.trace"
        try:
            shutil.copyfile(stage.learn(LEARNING, seed, learn_s), trace)
        finally:
            stage.end()
        traces.append(trace)
    stage.published = streams.learn(published, store.root, traces)
    return stage


def _round(
    session: Session, lab: Lab, stages: Mapping[str, ApplianceStage], number: int, found: Found
) -> None:
    if session.wanted & {FULL, BYTES, *STOCK}:
        _fast(session, stages, number, found)
    if SLOWLY in session.wanted:
        slow = _starts(session, stages[REDIS.name], SLOW_WAYS, SLOW, number, found)
        found.add(SLOWLY, starts.ratio(slow, StartWay.WHOLE, StartWay.PLANNED))
    if session.wanted & {DIFFERING, SECOND}:
        _filled(session, lab, stages[REDIS.name], number, found)
    if SECOND in session.wanted:
        local = _starts(session, stages[REDIS.name], LOCAL_WAYS, FAST, number, found)
        found.add(SECOND, starts.first_answers(local, StartWay.CACHED, StartWay.RESTORED))
    if STALL in session.wanted:
        _session(session, stages[SESSION.name], number, found)


def _fast(
    session: Session, stages: Mapping[str, ApplianceStage], number: int, found: Found
) -> None:
    fast = {
        name: _starts(session, stages[name], ways, FAST, number, found)
        for name, ways in FAST_WAYS.items()
        if name in stages
    }
    full = [starts.ratio(done, StartWay.WHOLE, StartWay.PLANNED) for done in fast.values()]
    found.add(FULL, lowest(full))
    for id, stock in STOCK.items():
        found.add(id, starts.ratio(fast[REDIS.name], stock, StartWay.PLANNED))
    found.add(BYTES, _bytes_percent([(done, stages[name]) for name, done in fast.items()]))


def _starts(
    session: Session, stage: ApplianceStage, ways: Sequence[StartWay], link: Link, number: int,
    found: Found,
) -> dict[StartWay, Start]:  # fmt: skip
    done, failures = starts.in_turn(
        stage, ways, link, stage.appliance.name, number, appliances.measured(number),
        LIMIT_S[link], session.tell,
    )  # fmt: skip
    found.notes += failures
    found.runs += [start.to_dict() for start in done.values()]
    found.notes += [
        f"round {number}, {start.appliance} at {start.link.words}, {start.way.words}: "
        "not at full rate while watched, a lower bound"
        for start in done.values()
        if start.lower_bound
    ]
    return done


def lowest(values: Sequence[float | None]) -> float | None:
    """The lowest of a round's values: an appliance for which it is worse counts. None where one
    is missing, as that might have been the lowest.
    """
    known = [value for value in values if value is not None]
    return min(known) if known and len(known) == len(values) else None


def _bytes_percent(
    fast: Sequence[tuple[Mapping[StartWay, Start], ApplianceStage]],
) -> float | None:
    """Bytes over the link until 90 % of the full rate, of the packs of the whole appliance; of
    the appliance for which it is most.
    """
    shares = [
        100.0 * done[StartWay.PLANNED].fetched / stage.published.stored_bytes
        for done, stage in fast
        if StartWay.PLANNED in done
    ]
    return max(shares) if len(shares) == len(fast) else None


def _filled(session: Session, lab: Lab, stage: ApplianceStage, number: int, found: Found) -> None:
    """Stream everything to a guest that does not execute: its memory against what was captured."""
    session.tell(f"round {number}: memory of {stage.appliance.name}, streamed against captured")
    try:
        found.add(DIFFERING, float(stage.pages_differing()))
    except (StageError, *ERRORS) as error:
        found.notes.append(f"round {number}, memory compared: {error}")
    finally:
        stage.end()


def _session(session: Session, stage: ApplianceStage, number: int, found: Found) -> None:
    """Stalls of a desktop-like session while it streams, beyond the same where all is local."""
    seconds = QUICK_SESSION_S if session.options.quick else SESSION_S
    runs: dict[StartWay, SessionRun] = {}
    for way, watched in ((StartWay.PLANNED, seconds), (StartWay.RESTORED, SESSION_LOCAL_S)):
        what = f"round {number}, session at {SLOW.words}: {way.words}"
        session.tell(what)
        try:
            stage.begin(way, SLOW, appliances.measured(number))
            runs[way] = stage.session(watched)
            found.runs.append(
                {"round": number, "way": f"session, {SLOW.words}: {way.words}",
                 "actions": runs[way].actions, "busy_s": round(runs[way].busy_s, 3),
                 "watched_s": round(runs[way].watched_s, 3), "player": dict(stage.told())}
            )  # fmt: skip
        except StageError as error:
            found.notes.append(f"{what}: {error}")
        finally:
            stage.end()
    if len(runs) == 2:
        try:
            stalled = starts.stall_s_per_min(runs[StartWay.PLANNED], runs[StartWay.RESTORED])
            found.add(STALL, stalled)
        except measures.MeasureError as error:
            found.notes.append(f"round {number}, session: {error}")
