# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.demo``: a VM leaves a contended host, and a picture of how it went."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab import Lab, migration, page, picture, relays, telling
from lab.errors import LabError
from lab.guests import Guest
from lab.story import Act, Story
from lab.watch import event_loop
from lab.way import Way
from nova_enlightened.host.guest import GuestSession

LINK_MBIT = 400.0
ALONE_S, SHARED_S, AFTER_S = 3.0, 3.0, 3.0
LOOKS = 3
UNITS = {"db": "records/s", "web": "pages/s"}
CONTENDED = 0.75
"""A VM that gets less than this share of what it does alone is held back by its neighbour."""


class Stage:
    """Progress on the terminal: a live line for the phase under way, a lasting one when done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._line = console.status("")

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """One phase; what ``tell`` says meanwhile stands beside its title."""
        begun, self._title = time.monotonic(), title
        self._line.update(title)
        with self._line:
            yield
        at, took = time.monotonic() - self._began, time.monotonic() - begun
        self._console.print(f"[green]✓[/] {title} [dim]{took:.1f} s, at {at:.0f} s[/]")

    def tell(self, text: str) -> None:
        """What is happening in the phase."""
        self._line.update(f"{self._title}: [dim]{text}[/]")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"  {text}", highlight=False)


class Demo:
    """``db`` works on host1; ``web`` arrives there, and one of the two has to go."""

    def __init__(self, lab: Lab, stage: Stage) -> None:
        self._lab = lab
        self._stage = stage
        self._tls = relays.certificates(lab.run_dir / "tls", list(lab.hosts.values()))
        self._alone: dict[str, float] = {}
        self._guests: dict[str, Guest] = {}

    def boot(self) -> None:
        """Both guests at work on host1, and what each does while the core is its own."""
        with self._stage.phase("db, which checks its records over and over, boots on host1"):
            db = self._guests["db"] = self._lab.guest("db", "host1", workload="checksum", wait=True)
            self._stage.tell("what does it do with the core for itself?")
            self._alone["db"] = self._rate(db, ALONE_S)
        self._stage.say(f"db alone: {self._alone['db']:,.0f} {UNITS['db']}")
        with self._stage.phase("web, with 64 MiB of hot pages, arrives on host1"):
            web = self._guests["web"] = self._lab.guest("web", "host1", wait=True)
            self._stage.tell("what does it do with the core for itself?")
            db.domain.suspend()
            time.sleep(0.5)
            self._alone["web"] = self._rate(web, ALONE_S)
            db.domain.resume()
        self._stage.say(f"web alone: {self._alone['web']:,.0f} {UNITS['web']}")

    def contended(self) -> dict[str, float]:
        """Share of its rate alone that each gets now, over some seconds."""
        begun = time.monotonic()
        time.sleep(SHARED_S)
        now = time.monotonic()
        return {
            name: guest.probe.rate(begun, now) / self._alone[name]
            for name, guest in self._guests.items()
        }

    def evict(self, way: Way, title: str) -> Act:
        """Find contention, decide, evict by ``way``, and see how both fare."""
        session = None
        with self._stage.phase(f"{title}: contention on host1"):
            shares = self.contended()
            leaver, decided = self._decide(shares)
            if way.enlightened:
                self._stage.tell(f"arming the agent in {leaver.name}")
                session = migration.arm(leaver)
                decided.append(_knowledge(session))
        try:
            with self._stage.phase(f"{title}: {leaver.name} leaves"):
                moved = migration.migrate(
                    self._lab, leaver, way, session=session, tls=self._tls, tell=self._progress
                )
        finally:
            if session is not None:
                session.close()
        if moved.failure:
            raise LabError(f"the migration of {leaver.name} failed: {moved.failure}")
        with self._stage.phase(f"{title}: each with a core for itself"):
            workers = self._workers(leaver)
        return telling.act(moved, workers, time.monotonic(), tuple(decided))

    def bring_home(self) -> None:
        """Everybody back on host1, over an unshaped link."""
        with self._stage.phase("Back to host1, for the same again without us"):
            self._lab.link.shape(None)
            for guest in self._guests.values():
                if guest.host.name != "host1":
                    back = migration.migrate(self._lab, guest, Way.STOCK)
                    if back.failure:
                        raise LabError(f"on the way home: {back.failure}")
            self._lab.link.shape(LINK_MBIT)
            time.sleep(1.0)

    def _decide(self, shares: Mapping[str, float]) -> tuple[Guest, list[str]]:
        """Who leaves, and why: the one that came last, where all are held back."""
        told = " and ".join(f"{name} did {share:.0%}" for name, share in shares.items())
        leaver = self._guests["web"]
        if max(shares.values()) < CONTENDED:
            why = f"host1 is contended: for {SHARED_S:.0f} s {told} of what it does alone."
        else:  # a machine busy with other things: the rates alone were too low
            why = f"No clear contention: {told} of what it did alone. The order is given anyway."
        decided = [why, f"{leaver.name} leaves for host2, which is idle: it came last."]
        for line in decided:
            self._stage.say(line)
        return leaver, decided

    def _workers(self, leaver: Guest) -> tuple[telling.Worker, ...]:
        """Both VMs with their full rates: what each gets where it is now, alone on its core.

        Looked at again where it falls short of what it was before, as when something else
        on this machine takes the processor away for a moment.
        """
        time.sleep(0.5)
        full = dict.fromkeys(self._guests, 0.0)
        for _ in range(LOOKS):
            first = time.monotonic()
            time.sleep(AFTER_S)
            last = time.monotonic()
            for name, guest in self._guests.items():
                full[name] = max(full[name], guest.probe.rate(first, last))
            if all(full[name] > 0.9 * self._alone[name] for name in full):
                break
        ordered = sorted(self._guests.values(), key=lambda guest: guest is not leaver)
        return tuple(
            telling.Worker(
                guest.name, UNITS[guest.name], guest is leaver, full[guest.name],
                *guest.probe.counts(),
            )
            for guest in ordered
        )  # fmt: skip

    def _rate(self, guest: Guest, seconds: float) -> float:
        begun = time.monotonic()
        time.sleep(seconds)
        return guest.probe.rate(begun, time.monotonic())

    def _progress(self, state: Mapping[str, Any]) -> None:
        pages = state.get("pages") or {}
        if pages.get("remaining") is not None:
            self._stage.tell(f"{state['phase']}, {pages['remaining'] / 256:,.0f} MiB to go")
        else:
            self._stage.tell("memory crosses the link")


def _knowledge(session: GuestSession) -> str:
    held = session.latest()
    if held is None:
        return "The guest's agent sent nothing: pages cross in QEMU's own order."
    known = held.knowledge
    hot = int((known.heat > 0).sum())
    return (
        f"The guest's agent found {hot / 256:,.0f} MiB in use by {known.source}, "
        f"in {known.samples} samples: those pages cross first."
    )


def _story(lab: Lab, acts: Sequence[Act]) -> Story:
    status = lab.status()
    host = status["hosts"]["host1"]
    usable = "" if lab.acceleration == "KVM" else " (KVM runs no guest here)"
    return Story(
        title="A VM leaves a contended host",
        told_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        acts=tuple(acts),
        setting={
            "hosts": "two, with one core each",
            "link": f"{LINK_MBIT:.0f} Mbit/s",
            "guests": f"768 MiB, 1 vCPU, {lab.acceleration}{usable}",
        },
        versions={
            "QEMU": host["qemu"],
            "libvirt": host["libvirt"],
            "Linux": platform.release(),
            "Python": platform.python_version(),
        },
    )


def write(story: Story, directory: Path) -> tuple[Path, ...]:
    """The story's three files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = tuple(directory / name for name in ("story.png", "index.html", "story.json"))
    files[0].write_bytes(picture.draw(story))
    files[1].write_text(page.render(story))
    files[2].write_text(story.to_json())
    return files


def show(console: Console, story: Story) -> None:
    """The closing table."""
    table = Table(title=story.title)
    table.add_column("")
    for act in story.acts:
        table.add_column(act.title.partition(":")[0], justify="right")
    for label, figures in story.rows():
        table.add_row(label, *(figure.text if figure else "–" for figure in figures))
    console.print(table)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo",
        description="Start two libvirt/QEMU hosts on this machine, let two guests contend for "
        "one core, evict one of them with what it knows of its memory, and draw what happened; "
        "then the same with nothing but QEMU and libvirt. Needs root. Changes nothing outside "
        "namespaces of its own, and ends everything it started.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR",
        help="where story.png, index.html and story.json go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--release", choices=("bookworm", "trixie"), default="bookworm",
        help="Debian release of the hosts' QEMU and libvirt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--ours-only", action="store_true", help="leave out the same eviction by stock post-copy"
    )
    parser.add_argument(
        "--redraw", type=Path, metavar="STORY.JSON",
        help="draw a story that was told before, and end",
    )  # fmt: skip
    return parser.parse_args(argv)


def perform(lab: Lab, stage: Stage, ways: Sequence[Way]) -> Story:
    """The acts in turn; each begins with both guests on host1."""
    acts: list[Act] = []
    demo = Demo(lab, stage)
    demo.boot()
    for way in ways:
        if acts:
            demo.bring_home()
        acts.append(demo.evict(way, "Ours" if way.enlightened else "Stock"))
    return _story(lab, acts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    wanted = _arguments(argv)
    console = Console()
    if wanted.redraw:
        write(Story.from_json(wanted.redraw.read_text()), wanted.out)
        return 0
    preempt = wanted.release == "trixie"
    ways = [Way.ENLIGHTENED_PREEMPT if preempt else Way.ENLIGHTENED]
    if not wanted.ours_only:
        ways.append(Way.STOCK_PREEMPT if preempt else Way.STOCK)
    stage = Stage(console)
    event_loop()
    lab = Lab(
        release=wanted.release, link_mbit=LINK_MBIT, cpus={"host1": {0}, "host2": {1}},
        progress=stage.tell,
    )  # fmt: skip
    try:
        with contextlib.ExitStack() as stack:
            with stage.phase("Two hosts with libvirt and QEMU"):
                stack.enter_context(lab)
            stage.say(f"Guests run under {lab.acceleration}.")
            story = perform(lab, stage, ways)
    except LabError as error:
        console.print(f"[red]The demo stops: {error}[/]", highlight=False)
        return 1
    files = write(story, wanted.out)
    show(console, story)
    console.print("Look at " + " and ".join(str(path) for path in files[:2]), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
