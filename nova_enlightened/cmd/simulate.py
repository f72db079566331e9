# SPDX-License-Identifier: Apache-2.0
"""nova-enlightened-simulate: compare ordering policies offline, in seconds.

Those of an eviction here; those of streaming an appliance in `simulate_streaming`.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from stevedore import ExtensionManager

from nova_enlightened.cmd import simulate_streaming
from nova_enlightened.exception import EnlightenedError
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.guest_pages import GuestPages
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.plan.expected_use import FINE
from nova_enlightened.plan.fault_trace import FaultTrace
from nova_enlightened.plan.injector import Injector
from nova_enlightened.plan.policies import OrderingPolicy
from nova_enlightened.plan.simulator import Accesses, Link, Outcome, Simulation
from nova_enlightened.plan.synthetic import KINDS, GuestShape, make_guest
from nova_enlightened.plan.window import RESEQUENCED, InjectionWindow, WindowLimits

STREAMING = "streaming"
NAMESPACE = "nova_enlightened.ordering_policies"
DESCRIPTION = """\
Replay a guest's memory accesses through a model of a post-copy migration, once for each
ordering policy, and compare. The guests are made up (--guest), or one is taken from the files
that a relay and the host agent left behind (--trace, with --knowledge and --layout).

`nova-enlightened-simulate streaming` compares ways to fetch a stored appliance; see its --help."""
EXAMPLES = """\
examples:
  nova-enlightened-simulate
  nova-enlightened-simulate --guest zipf --bandwidth 1000 --policy heat --policy stock
  nova-enlightened-simulate --trace faults.trace --knowledge guest.npz --layout layout.json
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One guest to be replayed; `hot` are bytes known to be in use, 0 where nothing is."""

    name: str
    space: PageSpace
    known: GuestPages | None
    accesses: Accesses
    zero: npt.NDArray[np.bool_]
    hot: int


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; answers the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == [STREAMING]:
        return simulate_streaming.main(words[1:])
    arguments = _parser().parse_args(words)
    try:
        policies = _policies(arguments.policy)
        replays = _replays(arguments)
        limits = _limits(arguments)
        link = _link(arguments)
    except (EnlightenedError, OSError, ValueError) as error:
        print(f"nova-enlightened-simulate: {error}", file=sys.stderr)
        return 2
    results = {}
    for replay in replays:
        outcomes = {
            policy.name: _replay(replay, policy, link, limits, arguments.seconds)
            for policy in policies
        }
        results[replay.name] = {name: summary(o) for name, o in outcomes.items()}
        if not arguments.json:
            Console().print(_table(replay, outcomes, link))
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0


def summary(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values; seconds, bytes and counts."""
    latencies = outcome.latencies if outcome.latencies.size else np.zeros(1)
    return {
        "recovered_s": outcome.recovered,
        "blocked_s": round(outcome.blocked, 4),
        "faults": outcome.faults,
        "fault_latency_p50_s": round(float(np.percentile(latencies, 50)), 6),
        "fault_latency_p99_s": round(float(np.percentile(latencies, 99)), 6),
        "bytes_at_recovery": outcome.bytes_at_recovery,
        "finished_s": outcome.finished,
        "injected": outcome.statistics.injected,
        "window_bytes": outcome.statistics.window_bytes,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nova-enlightened-simulate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is replayed")
    what.add_argument(
        "--guest",
        action="append",
        choices=KINDS,
        help="a made-up guest; may be repeated (default: all)",
    )
    what.add_argument("--seed", type=int, default=1, help="of the made-up guests (default: 1)")
    what.add_argument("--trace", type=pathlib.Path, help="fault trace a source relay wrote")
    what.add_argument("--knowledge", type=pathlib.Path, help="guest knowledge, for --trace")
    what.add_argument("--layout", type=pathlib.Path, help="memory layout (JSON), for --trace")
    how = parser.add_argument_group("how it is carried")
    how.add_argument(
        "--policy", action="append", help="ordering policy; may be repeated (default: all)"
    )
    how.add_argument(
        "--bandwidth", type=float, default=50.0, metavar="MB/S", help="of the link (default: 50)"
    )
    how.add_argument(
        "--rtt", type=float, default=0.2, metavar="MS", help="round trip (default: 0.2)"
    )
    how.add_argument(
        "--in-flight", type=int, default=128, metavar="KIB", help="on the link (default: 128)"
    )
    how.add_argument(
        "--pass-through",
        action="store_true",
        help="a relay that keeps the order pages are read in",
    )
    how.add_argument(
        "--window",
        metavar="FLOOR:START:CAP",
        help="injection window in KiB (default: 256:512:1024, with --pass-through 64:128:512)",
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="replayed after switchover (default: 15)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _policies(names: Sequence[str] | None) -> list[OrderingPolicy]:
    """:raises ValueError: a name is not installed."""
    manager: ExtensionManager[OrderingPolicy] = ExtensionManager(NAMESPACE, invoke_on_load=True)
    found = {extension.name: extension.obj for extension in manager if extension.obj is not None}
    unknown = set(names or ()) - set(found)
    if unknown or not found:
        raise ValueError(f"no such policy: {sorted(unknown)}; installed are {sorted(found)}")
    # Stock first: it is what the others are compared with.
    return [found[name] for name in names or sorted(found, key=lambda n: (n != "stock", n))]


def _link(arguments: argparse.Namespace) -> Link:
    if arguments.bandwidth <= 0 or arguments.in_flight <= 0 or arguments.rtt < 0:
        raise ValueError("a link needs bandwidth, bytes in flight and no negative delay")
    return Link(
        bandwidth=arguments.bandwidth * 1e6,
        rtt=arguments.rtt / 1e3,
        in_flight=arguments.in_flight * 1024,
        resequence=not arguments.pass_through,
    )


def _limits(arguments: argparse.Namespace) -> WindowLimits:
    if arguments.window is None:
        return WindowLimits() if arguments.pass_through else RESEQUENCED
    try:
        floor, start, cap = (int(part) * 1024 for part in arguments.window.split(":"))
    except ValueError:
        raise ValueError(f"--window {arguments.window} is not FLOOR:START:CAP") from None
    return WindowLimits(floor, start, cap)


def _replays(arguments: argparse.Namespace) -> list[Replay]:
    if arguments.trace is not None:
        return [_recorded(arguments)]
    if arguments.knowledge or arguments.layout:
        raise ValueError("--knowledge and --layout belong to --trace")
    replays = []
    for kind in arguments.guest or KINDS:
        guest = make_guest(GuestShape(kind=kind), np.random.default_rng(arguments.seed))
        replays.append(
            Replay(kind, guest.space, guest.known, guest.accesses, guest.zero, _hot(guest.known))
        )
    return replays


def _recorded(arguments: argparse.Namespace) -> Replay:
    trace = FaultTrace.decode(arguments.trace.read_bytes())
    if (arguments.knowledge is None) != (arguments.layout is None):
        raise ValueError("--knowledge and --layout go together")
    known = None
    if arguments.knowledge is not None:
        layout = MemoryLayout.from_dict(json.loads(arguments.layout.read_text()))
        told = stored.load(arguments.knowledge.read_bytes())
        known = told.place(layout, trace.space)
    return Replay(
        f"{arguments.trace} (recorded under {trace.policy!r}, {trace.entries.size} faults)",
        trace.space,
        known,
        Accesses.from_trace(trace),
        np.zeros(trace.space.pages, np.bool_),
        0 if known is None else _hot(known),
    )


def _hot(known: GuestPages) -> int:
    return int(np.count_nonzero(known.heat >= FINE)) * TARGET_PAGE


def _replay(
    replay: Replay, policy: OrderingPolicy, link: Link, limits: WindowLimits, seconds: float
) -> Outcome:
    plan = policy.plan(replay.known, replay.space)
    injector = Injector(plan, replay.space, InjectionWindow(limits))
    dirty = np.ones(replay.space.pages, np.bool_)
    return Simulation(injector, replay.accesses, link, dirty, replay.zero).run(seconds)


def _table(replay: Replay, outcomes: dict[str, Outcome], link: Link) -> Table:
    title = f"{replay.name}, {link.bandwidth / 1e6:g} MB/s"
    if replay.hot:
        title += f", {replay.hot / 2**20:.0f} MiB hot: {replay.hot / link.bandwidth:.2f} s at least"
    table = Table(title=title, title_justify="left")
    table.add_column("policy")
    for heading in ("90 % after", "blocked", "faults", "p50", "p99", "MB by then", "all sent"):
        table.add_column(heading, justify="right")
    for name, outcome in outcomes.items():
        values = summary(outcome)
        table.add_row(
            name,
            _seconds(values["recovered_s"]),
            _seconds(values["blocked_s"]),
            str(values["faults"]),
            f"{values['fault_latency_p50_s'] * 1e3:.1f} ms",
            f"{values['fault_latency_p99_s'] * 1e3:.1f} ms",
            f"{values['bytes_at_recovery'] / 1e6:.0f}" if values["recovered_s"] else "-",
            _seconds(values["finished_s"]),
        )
    return table


def _seconds(value: float | None) -> str:
    return "not yet" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
