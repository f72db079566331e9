# SPDX-License-Identifier: Apache-2.0
"""Fuzzing one parser for as many executions as told, over as many processes as it takes.

Atheris keeps the results of comparing arrays for good, some bytes an execution; so a process
makes ``CHUNK`` executions and another goes on with what it found. What was done is kept in a
directory, and a campaign that was ended goes on there, unless the parser has changed since: then
it keeps the inputs found and counts from zero.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.fuzz.targets import CORPUS, CRASHES, Target

TOP: Final = pathlib.Path(__file__).parents[2]
CHUNK: Final = 100_000
INPUT_S: Final = 10
"""Seconds that one input may take; a parser takes a thousandth of one."""
HARD_LIMIT_MIB: Final = 1024
"""Ends a process at once; the worker's own, tighter bound is looked at now and then."""
INTERRUPTED: Final = 72
_STATUS: Final = re.compile(rb"cov: (\d+) ft: (\d+)")
_EXECUTED: Final = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")


@dataclasses.dataclass
class Progress:
    """What a campaign did so far. ``growth``: most bytes any of its processes grew by."""

    target: str
    source: str = ""
    executions: int = 0
    seconds: float = 0.0
    growth: int = 0
    coverage: int = 0
    features: int = 0
    crashes: list[str] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Executions a second."""
        return self.executions / self.seconds if self.seconds else 0.0


class Campaign:
    """One target's.

    :param directory: where its state is kept, made if it is not there.
    :param seed: of libFuzzer's random numbers; 0: another each time.
    """

    def __init__(self, target: Target, directory: pathlib.Path, seed: int = 0) -> None:
        self._target = target
        self._found = directory / target.name / "corpus"
        self._crashes = directory / target.name / "crashes"
        self._state = directory / target.name / "process.json"
        self._kept = directory / target.name / "progress.json"
        self._log = directory / target.name / "log"
        self._seed = seed
        self.progress = Progress(target.name)

    def open(self) -> None:
        """Read what was done before."""
        for directory in (self._found, self._crashes):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            before = Progress(**json.loads(self._kept.read_text()))
        except (OSError, ValueError, TypeError):
            return
        if not before.crashes and before.source == source_of(self._target):
            self.progress = before
        for path in self._crashes.iterdir():
            path.unlink()

    def run(self, executions: int, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Go on to ``executions`` in all, or to the first input that breaks something."""
        progress = self.progress
        while progress.executions < executions and not progress.crashes:
            more = self._process(min(CHUNK, executions - progress.executions))
            self._kept.write_text(json.dumps(dataclasses.asdict(progress)))
            tell(progress)
            if not more:
                break
        return progress

    def _process(self, executions: int) -> bool:
        """One process; whether to go on."""
        self._state.unlink(missing_ok=True)
        began = time.monotonic()
        done = self._start([f"-runs={executions}", f"-seed={self._seed}"], self._directories())
        progress, output = self.progress, self._log.read_bytes()
        state = self._read_state()
        executed = _EXECUTED.findall(output)
        progress.executions += int(executed[-1]) if executed else int(state.get("executions", 0))
        progress.seconds += time.monotonic() - began
        progress.source = str(state.get("source", progress.source))
        progress.growth = max(progress.growth, int(state.get("growth", 0)))
        if reached := _STATUS.findall(output):
            progress.coverage, progress.features = map(int, reached[-1])
        if done in (0, INTERRUPTED):
            return done == 0
        # A process that ended otherwise and left no input has failed before there was one.
        found = sorted(str(path) for path in self._crashes.iterdir())
        progress.crashes = found or [str(self._log)]
        return False

    def keep(self, most: int) -> int:
        """Replace the kept corpus by the fewest, smallest inputs that reach the same.

        :param most: bytes of an input that is kept; longer ones are left out.
        :returns: how many there are.
        """
        kept = CORPUS / self._target.name
        fresh = self._found.with_name("merged")
        fresh.mkdir()
        try:
            self._start(["-merge=1"], [fresh, *self._directories()])
            kept.mkdir(parents=True, exist_ok=True)
            for path in kept.iterdir():
                path.unlink()
            for path in sorted(fresh.iterdir()):
                content = path.read_bytes()
                if len(content) <= most:
                    (kept / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
        finally:
            for path in fresh.iterdir():
                path.unlink()
            fresh.rmdir()
        return len(list(kept.iterdir()))

    def _directories(self) -> list[pathlib.Path]:
        """The first takes what is found; libFuzzer refuses one that is not there."""
        kept = (CORPUS / self._target.name, CRASHES / self._target.name)
        return [self._found, *(path for path in kept if path.is_dir())]

    def _start(self, options: Sequence[str], directories: Sequence[pathlib.Path]) -> int:
        with self._log.open("wb") as log:
            return subprocess.run(
                [
                    sys.executable, "-m", "tests.fuzz.worker", self._target.where,
                    str(self._state), *options, f"-max_len={self._target.longest}",
                    f"-timeout={INPUT_S}", f"-rss_limit_mb={HARD_LIMIT_MIB}",
                    f"-artifact_prefix={self._crashes}/", "-print_final_stats=1",
                    *map(str, directories),
                ],
                cwd=TOP, stdout=log, stderr=log, check=False,
            ).returncode  # fmt: skip

    def _read_state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except (OSError, ValueError):  # it ended before its first look, or in the middle of one
            return {}
        return state


def source_of(target: Target) -> str:
    """The digest of everything that a target loads, as a process that fuzzes it tells it."""
    program = (
        "import pkgutil, sys; from tests.fuzz.targets import loaded_source; "
        "pkgutil.resolve_name(sys.argv[1]); print(loaded_source())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, target.where],
        cwd=TOP, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()
