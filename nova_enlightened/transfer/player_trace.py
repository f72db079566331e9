# SPDX-License-Identifier: Apache-2.0
"""Keeps the trace of a run on disk, across players of one VM."""

import json
import logging
import pathlib
from typing import Final

from nova_enlightened import exception, whole_file
from nova_enlightened.appliance.trace import Trace, TraceRecorder

LOG = logging.getLogger(__name__)

SAVE_S: Final = 10.0


class KeptTrace:
    """A recorder with a file.

    :param path: of the trace; what a former player left there is gone on with.
    :param manifest: SHA-256 of the appliance's manifest.
    :param places: of the appliance.
    """

    def __init__(self, path: str, manifest: str, places: int, *, learning: bool) -> None:
        self.path = path
        self._clock = pathlib.Path(path + ".began")
        self._places = places
        self._manifest = manifest
        self._recorder = TraceRecorder(manifest, places, learning=learning)
        self._saved = 0
        self._due = 0.0
        self.began: float | None = None
        """When the guest was started (monotonic seconds); None before."""

    def __len__(self) -> int:
        return len(self._recorder)

    def begin(self, now: float) -> None:
        """The guest is started."""
        self.began = now
        try:
            self._clock.write_text(json.dumps({"began": now}))
        except OSError as error:
            LOG.warning("When the guest was started is not noted: %s", error)

    def take_up(self, now: float) -> None:
        """Go on with what a former player of the same VM recorded, by the same clock."""
        try:
            self.began = float(json.loads(self._clock.read_text())["began"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            LOG.warning("When the guest was started is not known: %s", error)
            self.began = now
        try:
            former = Trace.decode(pathlib.Path(self.path).read_bytes(), self._places)
        except FileNotFoundError:
            return
        except (OSError, exception.TraceError) as error:
            LOG.warning("The former player's trace is of no use: %s", error)
            return
        if former.manifest == self._manifest:
            for time_us, place in zip(
                former.times_us.tolist(), former.places.tolist(), strict=True
            ):
                self._recorder.touched((place,), time_us)
            self._saved = len(self._recorder)

    def touched(self, places: range | list[int], now: float) -> None:
        """The guest wants these places."""
        self._recorder.touched(places, self._microseconds(now))

    def save_if_due(self, now: float) -> None:
        """Write the file now and then, if anything has come since."""
        if now >= self._due:
            self._due = now + SAVE_S
            if len(self._recorder) > self._saved:
                self.save(now)

    def save(self, now: float) -> None:
        """Write the file. A failure is logged: the guest's run matters more."""
        try:
            whole_file.write(self.path, self._recorder.trace(self._microseconds(now)).encode())
            self._saved = len(self._recorder)
        except OSError as error:
            LOG.warning("Trace not written: %s", error)

    def _microseconds(self, now: float) -> int:
        return 0 if self.began is None else max(0, int((now - self.began) * 1e6))
