# SPDX-License-Identifier: Apache-2.0
"""Bars on a terminal, for what is read and what is uploaded."""

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from nova_enlightened.host.publishing import Progress


class RichProgress(Progress):
    """A bar for each thing that is read, and one for the upload."""

    def __init__(self, shown: Bars) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._reading: TaskID | None = None
        self._sending: TaskID | None = None
        self._to_send = 0

    def phase(self, what: str, total: int) -> None:
        """A new bar."""
        self._reading = self._shown.add_task(f"Reading {what}", total=total)

    def read(self, count: int) -> None:
        """The newest bar grows."""
        if self._reading is not None:
            self._shown.advance(self._reading, count)

    def to_send(self, count: int) -> None:
        """The bar of the upload gets longer."""
        with self._lock:
            self._to_send += count
            if self._sending is None:
                self._sending = self._shown.add_task("Uploading", total=self._to_send)
            self._shown.update(self._sending, total=self._to_send)

    def sent(self, count: int) -> None:
        """It grows, or shrinks."""
        if self._sending is not None:
            self._shown.advance(self._sending, count)


@contextlib.contextmanager
def bars(quiet: bool) -> Iterator[Progress]:
    """On standard error, where that is a terminal. :param quiet: nowhere."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Progress()
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as shown:
        yield RichProgress(shown)
