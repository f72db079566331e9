# SPDX-License-Identifier: Apache-2.0
"""One fuzzing process: ``python -m tests.fuzz.worker MODULE:FUNCTION STATE [libFuzzer's ...]``.

Atheris traces the parser's bytecode and hands libFuzzer what was reached; libFuzzer makes the
inputs. An input that raises, hangs or makes this process grow is written where libFuzzer's
``-artifact_prefix`` says, and ends it.
"""

import json
import pathlib
import pkgutil
import shlex
import sys
import time

import atheris

from tests.fuzz.targets import OneInput, loaded_source

MOST_GROWTH = 64 << 20
"""Bytes of memory that fuzzing may take, libFuzzer's own for its corpus included."""
LOOK_EVERY = 256


class MemoryGrew(Exception):
    """The process has grown past the bound; one of the last inputs did it."""


def peak() -> int:
    """Most bytes that this process ever had in memory."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise LookupError("no VmHWM in /proc/self/status")


class Watched:
    """Runs one input after another, keeps count, and looks at memory now and then."""

    def __init__(self, one_input: OneInput, state: pathlib.Path) -> None:
        self._one_input = one_input
        self._state = state
        self._executions = 0
        self._began = time.monotonic()
        self._source = loaded_source()
        self._base = peak()

    def __call__(self, data: bytes) -> None:
        self._one_input(data)
        self._executions += 1
        if self._executions % LOOK_EVERY == 0 or self._executions == 1:
            self.look()

    def look(self) -> None:
        """Write down how far this is. Raises MemoryGrew."""
        growth = peak() - self._base
        self._state.write_text(
            json.dumps(
                {
                    "executions": self._executions,
                    "seconds": round(time.monotonic() - self._began, 3),
                    "growth": growth,
                    "source": self._source,
                }
            )
        )
        if growth > MOST_GROWTH:
            raise MemoryGrew(f"{growth >> 20} MiB more than at the beginning")


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    where, state, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["nova_enlightened"]):
        one_input = pkgutil.resolve_name(where)
    watched = Watched(one_input, pathlib.Path(state))
    # libFuzzer starts this program again to merge, by a shell.
    program = shlex.join([sys.executable, "-m", "tests.fuzz.worker", where, state])
    atheris.Setup([program, *options], watched)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
