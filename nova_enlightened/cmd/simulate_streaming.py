# SPDX-License-Identifier: Apache-2.0
"""nova-enlightened-simulate streaming: compare ways to fetch an appliance offline."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from nova_enlightened.appliance import chunks, prefetch, synthetic
from nova_enlightened.appliance.building import PLAN_GROUP
from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.appliance.prefetch_policies import PrefetchPolicy
from nova_enlightened.appliance.replay import (
    START_AT_ONCE,
    START_BUFFERED,
    START_COMPLETE,
    Replay,
    Replayed,
    StoreLink,
)
from nova_enlightened.appliance.trace import Trace, merge
from nova_enlightened.exception import EnlightenedError
from nova_enlightened.host.learning import DEFAULT_POLICY, load_policy

DESCRIPTION = """\
Replay a run of an appliance over a modelled link, once for each way to fetch it, and compare.
The appliances and runs are made up (--appliance), or one is given by its manifest, its base index
and the traces of its runs; the last trace is replayed, the others make the plan."""
EXAMPLES = """\
examples:
  nova-enlightened-simulate streaming
  nova-enlightened-simulate streaming --appliance session --bandwidth 20 --rtt 30
  nova-enlightened-simulate streaming --manifest m.json --index base.index 1.trace 2.trace
"""
NO_OBJECT: Final = Object("00" * 32, 1)
"""In place of a layer's index: nobody stores it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One run to be replayed, and what is known of earlier ones."""

    name: str
    space: ApplianceSpace
    base: ChunkIndex
    layer: ChunkIndex
    plan: PrefetchPlan
    run: Trace

    @property
    def covered(self) -> float:
        """The share of the places the run touches that the plan has."""
        if not self.run.places.size:
            return 1.0
        return float(np.isin(self.run.places, self.plan.order).mean())


Way = tuple[str, Callable[[Case], Playback]]


def _whole(case: Case) -> Playback:
    return Playback(case.space, [case.base], tail=Tail.LINEAR)


def _demand(case: Case) -> Playback:
    return Playback(case.space, [case.base], tail=Tail.NONE)


def _faulted(case: Case) -> Playback:
    return Playback(case.space, [case.base])


def _planned_linear(case: Case) -> Playback:
    return Playback(case.space, [case.layer, case.base], case.plan, tail=Tail.LINEAR)


def _planned(case: Case) -> Playback:
    return Playback(case.space, [case.layer, case.base], case.plan)


WAYS: Final[dict[str, Way]] = {
    "whole": (START_COMPLETE, _whole),
    "demand": (START_AT_ONCE, _demand),
    "linear": (START_AT_ONCE, _whole),
    "faulted": (START_AT_ONCE, _faulted),
    "plan_linear": (START_AT_ONCE, _planned_linear),
    "plan": (START_AT_ONCE, _planned),
    "buffered": (START_BUFFERED, _planned),
}


def main(argv: Sequence[str]) -> int:
    """Entry point; answers the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        link = _link(arguments)
        cases = _cases(arguments)
    except (EnlightenedError, OSError, ValueError) as error:
        print(f"nova-enlightened-simulate: {error}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    for case in cases:
        outcomes = {}
        for name in arguments.way or WAYS:
            start, playback = WAYS[name]
            outcomes[name] = Replay(playback(case), case.run, link, start).run(arguments.seconds)
        results[case.name] = {name: summary(outcome) for name, outcome in outcomes.items()}
        if not arguments.json:
            Console().print(_table(case, link, results[case.name]))
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0


def summary(outcome: Replayed) -> dict[str, Any]:
    """An outcome as plain values; seconds, bytes and counts."""
    return {
        "started_s": _rounded(outcome.started),
        "recovered_s": _rounded(outcome.recovered),
        "stall_s": round(outcome.stall, 3),
        "faults": outcome.faults,
        "bytes_at_recovery": outcome.bytes_at_recovery,
        "complete_s": _rounded(outcome.complete),
        "fetched_bytes": outcome.fetched_bytes,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nova-enlightened-simulate streaming",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is replayed")
    what.add_argument(
        "--appliance",
        action="append",
        choices=synthetic.KINDS,
        help="a made-up appliance; may be repeated (default: all)",
    )
    what.add_argument("--runs", type=int, default=3, help="that make the plan (default: 3)")
    what.add_argument("--seed", type=int, default=1, help="of what is made up (default: 1)")
    what.add_argument("--manifest", type=pathlib.Path, help="of an appliance")
    what.add_argument("--index", type=pathlib.Path, help="its base index, for --manifest")
    what.add_argument("traces", nargs="*", type=pathlib.Path, metavar="TRACE", help="of its runs")
    what.add_argument(
        "--policy", default=DEFAULT_POLICY, help=f"makes the plan (default: {DEFAULT_POLICY})"
    )
    how = parser.add_argument_group("how it is fetched")
    how.add_argument("--way", action="append", choices=WAYS, help="may be repeated (default: all)")
    how.add_argument(
        "--bandwidth", type=float, default=100.0, metavar="MBIT/S", help="(default: 100)"
    )
    how.add_argument("--rtt", type=float, default=10.0, metavar="MS", help="(default: 10)")
    how.add_argument(
        "--service", type=float, default=1.0, metavar="MS", help="of a request (default: 1)"
    )
    how.add_argument("--connections", type=int, default=16, help="to the store (default: 16)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="from the first request (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _link(arguments: argparse.Namespace) -> StoreLink:
    """:raises ValueError: there is no such link."""
    if arguments.bandwidth <= 0 or arguments.rtt < 0 or arguments.service < 0:
        raise ValueError("a link needs bandwidth and no negative delay")
    if arguments.connections < 1 or arguments.seconds <= 0:
        raise ValueError("fetching takes connections and time")
    return StoreLink(
        bandwidth=arguments.bandwidth * 1e6 / 8,
        rtt=arguments.rtt / 1e3,
        service=arguments.service / 1e3,
        connections=arguments.connections,
        reserved=min(2, arguments.connections - 1),
    )


def _cases(arguments: argparse.Namespace) -> list[Case]:
    if arguments.manifest is not None:
        return [_recorded(arguments)]
    if arguments.index or arguments.traces:
        raise ValueError("an index and traces belong to --manifest")
    if arguments.runs < 1:
        raise ValueError("a plan takes a run")
    cases = []
    policy = load_policy(arguments.policy)
    for kind in arguments.appliance or synthetic.KINDS:
        made = synthetic.make_appliance(
            synthetic.ApplianceShape(kind=kind),
            arguments.runs + 1,
            np.random.default_rng(arguments.seed),
        )
        cases.append(_case(kind, made.space, made.base, made.runs, policy))
    return cases


def _recorded(arguments: argparse.Namespace) -> Case:
    if arguments.index is None or len(arguments.traces) < 2:
        raise ValueError("--manifest needs --index and two traces")
    manifest = Manifest.from_bytes(arguments.manifest.read_bytes())
    space = manifest.space()
    base = chunks.decode(arguments.index.read_bytes(), space.places)
    runs = [Trace.decode(path.read_bytes(), space.places) for path in arguments.traces]
    if any(run.manifest != manifest.digest for run in runs):
        raise ValueError("a trace is of another appliance")
    return _case(manifest.name, space, base, runs, load_policy(arguments.policy))


def _case(
    name: str,
    space: ApplianceSpace,
    base: ChunkIndex,
    runs: Sequence[Trace],
    policy: PrefetchPolicy,
) -> Case:
    """The last run, and a plan made of the others, with a layer of about the size it would have."""
    made = prefetch.make(merge(runs[:-1]), space, policy)
    layer = synthetic.index_of((made.order,), (PLAN_GROUP,), synthetic.sizes_of(base))
    packs = tuple(Object(pack, chunks.MAX_PACK) for pack in layer.packs)
    plan = made.with_layer(NO_OBJECT, layer, packs)
    return Case(name, space, base, layer, plan, runs[-1])


def _table(case: Case, link: StoreLink, results: dict[str, dict[str, Any]]) -> Table:
    total = case.base.stored_bytes
    table = Table(
        title=f"{case.name}: {total / 1e6:.0f} MB, {link.bandwidth * 8 / 1e6:g} Mbit/s, "
        f"{link.rtt * 1e3:g} ms; the plan has {case.layer.stored_bytes / 1e6:.0f} MB "
        f"and {case.covered:.0%} of what the run touches",
        title_justify="left",
    )
    table.add_column("way")
    for heading in ("started", "90 % after", "MB by then", "stalled", "faults", "all here"):
        table.add_column(heading, justify="right")
    for name, values in results.items():
        table.add_row(
            name,
            _seconds(values["started_s"]),
            _seconds(values["recovered_s"]),
            "-" if values["recovered_s"] is None else f"{values['bytes_at_recovery'] / 1e6:.0f}",
            _seconds(values["stall_s"]),
            str(values["faults"]),
            _seconds(values["complete_s"]),
        )
    return table


def _seconds(value: float | None) -> str:
    return "not yet" if value is None else f"{value:.2f} s"
