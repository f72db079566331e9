# SPDX-License-Identifier: Apache-2.0
"""Programs of the laboratory's own that run beside the guests."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lab.errors import LabError
from lab.namespaces import Holder

_TOP = Path(__file__).resolve().parent.parent


class Program:
    """A module of this package run inside ``holder``; end it with ``stop`` or a with block."""

    def __init__(self, holder: Holder, module: str, arguments: Sequence[str]) -> None:
        self._command = holder.entered([sys.executable, "-m", f"lab.{module}", *arguments])
        self.log = holder.directory / f"{module}.log"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, until_ready: bool = False) -> Self:
        """Start it. With ``until_ready`` its first line of output is waited for.

        Raises LabError when it ends before that.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if until_ready else log,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(_TOP)},
            )
        if self.process.stdout is not None:
            with self.process.stdout as stream:
                if not stream.readline():
                    raise LabError(f"{' '.join(self._command)}\n{self.log.read_text()[-1500:]}")
        return self

    def stop(self) -> None:
        """End it, if it has not."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def check(self) -> None:
        """Raise LabError if it ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            raise LabError(f"{' '.join(self._command)} ended: {self.log.read_text()[-1500:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
