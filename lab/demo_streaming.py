# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.demo_streaming``: an appliance behind a slow link starts, by plan and downloaded
whole, and a picture of how it went.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import measures
from bench.rounds import StageError
from bench.starts import Start, StartWay, one_start
from bench.streaming import FAST, LEARNING
from bench.streaming_stage import ERRORS, HOST, ApplianceStage
from lab import Lab, appliances, streams, whole
from lab.demo import Stage, show, write
from lab.errors import LabError
from lab.far import FarStore
from lab.saved import saved
from lab.story import Act, Figure, Mark, Moment, Story, VmLine
from lab.watch import event_loop

LEARN_S, LIMIT_S = 8.0, 120.0
LEARNED = appliances.LEARNED[:2]
"""Two short learning runs do to show it; measurements learn from three."""
EXPLAINED = (
    "Full rate is what the server did for its users before it was published. Users begin to ask "
    "when it executes. A start is over at 90 % of the full rate, held for a second."
)
TITLES = {
    StartWay.PLANNED: "Streamed: what earlier runs touched comes first",
    StartWay.WHOLE: "Whole image first, then virsh restore",
}
_STEPS = {"downloaded": Moment.DOWNLOADED, "executing": Moment.EXECUTING}


def act(start: Start, stored_bytes: int, unit: str) -> Act:
    """One start as an act."""
    lost = measures.work_lost(start.curve, start.full_rate, start.zero, start.zero + start.time_s)
    rates = tuple(round(float(rate), 2) for rate in start.curve.rates)
    marks = [Mark(Moment.DECISION, 0.0, "the order to start it")]
    marks += [
        Mark(_STEPS[name], round(at, 4)) for name, at in start.steps.items() if name in _STEPS
    ]
    if start.first_answer_s is not None:
        marks.append(Mark(Moment.FIRST_ANSWER, round(start.first_answer_s, 4)))
    if start.recovered_s is not None:
        marks.append(Mark(Moment.RECOVERED, round(start.recovered_s, 4), "90 % of its full rate"))
    else:
        marks.append(Mark(Moment.GIVEN_UP, round(start.watched_s, 4)))
    memory = start.told.get("memory", {})
    return Act(
        way=str(start.way),
        title=TITLES[start.way],
        vms=(
            VmLine(start.appliance, True, unit, start.full_rate, 0.0, start.curve.bin_s, rates,
                   lost, "starts"),
        ),
        marks=tuple(marks),
        figures=(
            Figure("executing", "order to executing", start.executing_s, "s"),
            Figure("first", "order to the first answer", start.first_answer_s, "s"),
            Figure("start", "order to 90 % of full rate", start.time_s, "s", start.lower_bound),
            Figure("lost", "work lost until then", lost, "s", start.lower_bound),
            Figure("fetched", "fetched until then", start.fetched / 1e6, "MB"),
            Figure("share", "of the stored appliance", 100 * start.fetched / stored_bytes, "%"),
            Figure("faults", "pages the guest asked for", memory.get("faults"), ""),
        ),
    )  # fmt: skip


class Demo:
    """A redis server is published, learned, and started behind a link, twice."""

    def __init__(self, lab: Lab, store: FarStore, stage: Stage) -> None:
        self._lab = lab
        self._store = store
        self._stage = stage

    def perform(self) -> tuple[Act, ...]:
        """Both starts. Raises LabError, or what the package raises."""
        stage = self._published()
        acts = []
        for way in (StartWay.PLANNED, StartWay.WHOLE):
            with self._stage.phase(f"{TITLES[way]}, at {FAST.words}"):
                stage.tell = self._progress
                seed = appliances.measured(1)
                try:
                    done = one_start(stage, way, FAST, stage.appliance.name, 1, seed, LIMIT_S)
                except StageError as error:
                    raise LabError(str(error)) from error
            self._stage.say(f"{done.time_s:.1f} s until 90 % of its full rate")
            acts.append(act(done, stage.published.stored_bytes, stage.appliance.unit))
        return tuple(acts)

    def _published(self) -> ApplianceStage:
        with self._stage.phase("A redis server with its data, at work, saved (kept for next time)"):
            taken = saved(self._lab, appliances.REDIS, self._stage.tell)
        with self._stage.phase("It is published: chunks, packs, a manifest; and compressed whole"):
            image = whole.offer(taken, self._store)
            published = streams.publish(taken, self._store.root)
        self._stage.say(f"{published.stored_bytes / 1e6:,.0f} MB of packs; "
                        f"{image.size / 1e6:,.0f} MB to download whole")  # fmt: skip
        stage = ApplianceStage(self._lab, self._store, image, published)
        traces = []
        for seed in LEARNED:
            with self._stage.phase(f"A learning run, with users of input {seed}"):
                try:
                    trace = stage.learn(LEARNING, seed, LEARN_S)
                    traces.append(self._lab.run_dir / f"learned-{seed}.trace")
                    shutil.copyfile(trace, traces[-1])
                except StageError as error:
                    raise LabError(str(error)) from error
                finally:
                    stage.end()
        with self._stage.phase("What they touched becomes a plan"):
            stage.published = streams.learn(published, self._store.root, traces)
        return stage

    def _progress(self, state: Mapping[str, Any]) -> None:
        got = (state.get("progress") or {}).get("fetched_bytes", 0)
        self._stage.tell(
            f"{state.get('phase')}, {state.get('percent', 0)} %, {got / 1e6:,.0f} MB fetched"
        )


def story(lab: Lab, acts: Sequence[Act]) -> Story:
    """The acts with where and with what they were played."""
    host = lab.status()["hosts"][HOST]
    return Story(
        title="An appliance behind a slow link starts",
        told_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        acts=tuple(acts),
        setting={
            "link": f"{FAST.words} round trip, nginx",
            "guest": f"redis, {appliances.REDIS.memory_mib} MiB, 1 vCPU, {lab.acceleration}",
            "input": "one that nothing was learned from",
        },
        versions={
            "QEMU": host["qemu"],
            "libvirt": host["libvirt"],
            "Linux": platform.release(),
            "Python": platform.python_version(),
        },
        origin="order to start",
        explained=EXPLAINED,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo_streaming", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output/streaming"), metavar="DIR",
        help="where story.png, index.html and story.json go (default: %(default)s)",
    )  # fmt: skip
    wanted = parser.parse_args(argv)
    console = Console()
    stage = Stage(console)
    event_loop()
    try:
        with contextlib.ExitStack() as stack:
            with stage.phase("Two hosts with libvirt and QEMU, and a store far away"):
                lab = stack.enter_context(Lab(link_mbit=None, progress=stage.tell))
                store = FarStore(lab.hosts[HOST], lab.run_dir, lab.run_dir / "far", lab.cache)
                stack.callback(store.stop)
                store.start(FAST.mbit, FAST.round_trip_ms)
            told = story(lab, Demo(lab, store, stage).perform())
    except ERRORS as error:
        console.print(f"[red]The demo stops: {error}[/]", highlight=False)
        return 1
    files = write(told, wanted.out)
    show(console, told)
    console.print("Look at " + " and ".join(str(path) for path in files[:2]), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
