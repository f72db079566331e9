# SPDX-License-Identifier: Apache-2.0
"""The policy at scale: a simulated fleet whose every decision is made by the real code.

Detectors, victims, evictions and destinations are those of this package; only the load
(:mod:`fleet_load`), time and Nova are simulated. Nova's scheduler here knows what the real one
does: placement's allocations, and reports of a second ago. It is not told of what is arriving,
and takes one of the best few hosts at random (Nova's ``host_subset_size``).
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from nova_enlightened.contention import destinations, evictions
from nova_enlightened.contention.destinations import MEMORY_MB, VCPU, Demand, Inventory
from nova_enlightened.contention.detector import Detector, Thresholds
from nova_enlightened.contention.evictions import (
    Action,
    Decision,
    Eviction,
    EvictionLimits,
    Heard,
)
from nova_enlightened.contention.fleet_load import FleetLoad, FleetSpec
from nova_enlightened.contention.report import Level
from nova_enlightened.contention.victims import VictimPolicy, VmFacts

KIB = 1024
NOVA_S = 3.0
"""From the order until the VM executes at its destination."""
BEST = 8
"""Hosts that the scheduler chooses among."""
OVERCOMMIT = 4.0


@dataclass(frozen=True)
class _Move:
    """A running eviction: what will become of it."""

    eviction: Eviction
    vm: int
    destination: int
    executes_at: float
    ends_at: float
    fails: bool


@dataclass
class FleetResult:
    """What came of a trace.

    :param struck: surged hosts that came to ACT.
    :param relieved: of these, no longer at the end.
    :param nowhere: of these, still at the end, and no VM of theirs may leave and fits anywhere.
    :param others_struck: hosts without a surge that came to ACT: by arrivals or by chance.
    :param most_at_once, most_per_host: evictions running together.
    :param repeat_moves: moves of a VM within its cool-down after its last.
    :param returns: moves back to a host that the VM had left too recently.
    :param unplaced: decisions for which the scheduler found no host.
    :param relief_s: from ACT until below it, of each host relieved, in its order of numbers.
    """

    struck: int = 0
    relieved: int = 0
    nowhere: int = 0
    others_struck: int = 0
    most_at_once: int = 0
    most_per_host: int = 0
    evictions: int = 0
    failed: int = 0
    repeat_moves: int = 0
    returns: int = 0
    unplaced: int = 0
    relief_s: list[float] = field(default_factory=list)

    @property
    def relieved_percent(self) -> float:
        """Of the struck hosts that have anywhere to go."""
        able = self.struck - self.nowhere
        return 100.0 * self.relieved / able if able else 100.0


class Fleet:
    """One simulated fleet; :meth:`run` it once."""

    def __init__(
        self,
        spec: FleetSpec,
        limits: EvictionLimits,
        rng: np.random.Generator,
        thresholds: Thresholds | None = None,
        policy: VictimPolicy = evictions.DEFAULT_POLICY,
    ) -> None:
        self.spec, self.limits, self._policy, self._rng = spec, limits, policy, rng
        self.load = FleetLoad(spec, rng)
        self._number = {uuid: vm for vm, uuid in enumerate(self.load.uuids)}
        self.names = [f"host{number:05d}" for number in range(spec.hosts)]
        self._index = {name: number for number, name in enumerate(self.names)}
        self._detectors = [Detector(thresholds) for _ in self.names]
        self._facts = self._draw_facts()
        self._used = {VCPU: self._held(self.load.vcpus), MEMORY_MB: self._held(self.load.memory)}
        self._heard: dict[str, Heard] = {}
        self._moves: list[_Move] = []
        self.history: list[Eviction] = []
        self._struck: dict[int, float] = {}
        self._relieved: dict[int, float] = {}
        self.result = FleetResult()

    def run(self) -> FleetResult:
        """Simulate all of it."""
        for second in range(self.spec.seconds):
            self.step(float(second))
        return self._conclude(float(self.spec.seconds))

    def step(self, now: float) -> None:
        """One second: load, moves that arrive and end, decisions on the last reports, reports."""
        self.load.step(now)
        self._progress(now)
        running = [move.eviction for move in self._moves]
        for decision in evictions.decide(
            self._heard, self._facts, running, self.history, now, self.limits, self._policy
        ):
            if decision.action is Action.EVICT:
                self._evict(decision, now)
        self._count()
        self._observe(now)

    def _draw_facts(self) -> dict[str, VmFacts]:
        spec, rng, load = self.spec, self._rng, self.load
        out = rng.random(len(load.uuids)) < spec.opted_out
        bound = load.surged[: round(len(load.surged) * spec.bound)]
        out[np.isin(load.host, bound)] = True
        priorities = rng.integers(0, 101, len(load.uuids)).tolist()
        return {
            uuid: VmFacts(uuid, priority, "its owner's wish" if stays else None)
            for uuid, priority, stays in zip(load.uuids, priorities, out.tolist(), strict=True)
        }

    def _held(self, amounts: "np.typing.NDArray[np.int64]") -> list[int]:
        sums = np.bincount(self.load.host, weights=amounts, minlength=self.spec.hosts)
        return [int(amount) for amount in sums]

    def _inventories(self, host: int) -> dict[str, Inventory]:
        """Placement's account; memory is kept in KiB here."""
        spec = self.spec
        return {
            VCPU: Inventory(spec.cpus, 0, OVERCOMMIT, self._used[VCPU][host]),
            MEMORY_MB: Inventory(
                spec.memory // KIB, spec.host_memory // KIB, 1.0, self._used[MEMORY_MB][host] // KIB
            ),
        }

    def _observe(self, now: float) -> None:
        """Every host's agent: sample, verdict, report."""
        spec = self.spec
        for host, sample in enumerate(self.load.samples(now)):
            verdict = self._detectors[host].observe(sample)
            name = self.names[host]
            report = verdict.report(
                sample, host=name, node=name, at=now, bandwidth=spec.bandwidth, capable=True
            )
            self._heard[name] = Heard(report, now, self._inventories(host))
            if verdict.level is Level.ACT:
                self._struck.setdefault(host, now)
                self._relieved.pop(host, None)
            elif host in self._struck:
                self._relieved.setdefault(host, now)

    def _progress(self, now: float) -> None:
        """Moves whose VM now executes at its destination, or that have ended."""
        left = []
        for move in self._moves:
            here = int(self.load.host[move.vm])
            if not move.fails and now >= move.executes_at and here != move.destination:
                self.load.move(move.vm, move.destination)
            if now >= (move.executes_at if move.fails else move.ends_at):
                self._end(move, now)
            else:
                left.append(move)
        self._moves = left

    def _end(self, move: _Move, now: float) -> None:
        source = self._index[move.eviction.source]
        self._claim(move.vm, move.destination if move.fails else source, -1)
        self.result.failed += move.fails
        self.history.append(dataclasses.replace(move.eviction, ended_at=now, moved=not move.fails))

    def _claim(self, vm: int, host: int, sign: int) -> None:
        self._used[VCPU][host] += sign * int(self.load.vcpus[vm])
        self._used[MEMORY_MB][host] += sign * int(self.load.memory[vm])

    def _evict(self, decision: Decision, now: float) -> None:
        """Nova: schedule, claim, migrate."""
        candidate = decision.candidate
        assert candidate is not None
        demand = evictions.demand_of(candidate)
        destination = self._schedule(decision.host, demand, now)
        if destination is None:
            self.result.unplaced += 1
            return
        vm, name = self._number[candidate.uuid], self.names[destination]
        self._audit(candidate.uuid, name, now)
        self._claim(vm, destination, 1)
        crossing = candidate.memory * KIB / self.spec.bandwidth
        eviction = Eviction(candidate.uuid, decision.host, name, decision.cause, now, None, demand)
        fails = bool(self._rng.random() < self.spec.failing)
        arrives = now + NOVA_S
        self._moves.append(_Move(eviction, vm, destination, arrives, arrives + crossing, fails))
        self.result.evictions += 1

    def _schedule(self, source: str, demand: Demand, now: float) -> int | None:
        """One of the best few hosts that the filter passes, or None."""
        scores = []
        for host, name in enumerate(self.names):
            if name == source:
                continue
            one = self._heard[name]
            held = self._inventories(host)
            fit = destinations.judge(
                one.report, now - one.at, demand, self.limits.destinations, held
            )
            if fit.fits is not False:
                scores.append((fit.score, host))
        best = sorted(scores, reverse=True)[:BEST]
        return best[int(self._rng.integers(len(best)))][1] if best else None

    def _audit(self, uuid: str, destination: str, now: float) -> None:
        """Whether this move should not be: counted by what was, not by what decided."""
        past = [one for one in self.history if one.uuid == uuid]
        past += [move.eviction for move in self._moves if move.eviction.uuid == uuid]
        for one in past:
            self.result.repeat_moves += now - one.latest < self.limits.victims.cooldown
            back = one.moved and one.source == destination
            self.result.returns += back and now - one.latest < self.limits.return_after

    def _count(self) -> None:
        sources = [move.eviction.source for move in self._moves]
        per_host = max((sources.count(source) for source in set(sources)), default=0)
        result = self.result
        result.most_at_once = max(result.most_at_once, len(sources))
        result.most_per_host = max(result.most_per_host, per_host)

    def _conclude(self, now: float) -> FleetResult:
        surged, result = set(self.load.surged.tolist()), self.result
        struck = sorted(host for host in self._struck if host in surged)
        result.struck = len(struck)
        result.others_struck = len(self._struck) - len(struck)
        result.relieved = sum(1 for host in struck if host in self._relieved)
        result.relief_s = [
            self._relieved[host] - self._struck[host] for host in struck if host in self._relieved
        ]
        result.nowhere = sum(
            1 for host in struck if host not in self._relieved and not self._could_leave(host, now)
        )
        return result

    def _could_leave(self, host: int, now: float) -> bool:
        """Whether any VM that has not opted out fits on any other host, cool-downs or not."""
        load = self.load
        for vm in load.members[host]:
            if self._facts[load.uuids[vm]].opted_out is not None:
                continue
            demand = Demand(int(load.vcpus[vm]), int(load.memory[vm]), float(load.wanted[vm]))
            if self._schedule(self.names[host], demand, now) is not None:
                return True
        return False
