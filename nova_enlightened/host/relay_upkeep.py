# SPDX-License-Identifier: Apache-2.0
"""Looks after relay processes that this host runs, whoever started them.

Relays outlive the agent. What it knows of them it finds in their run directories.
"""

import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova_enlightened import exception, niceness, privsep
from nova_enlightened.host import relays
from nova_enlightened.host.departure import Places
from nova_enlightened.host.spare_relay import SpareRelay
from nova_enlightened.transfer import control
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

ROLES: Final = ("source", "destination")
STOPPABLE: Final = frozenset({"waiting", "pre-copy"})
"""Phases of a source's relay in which all of the VM is still at the source."""


class RelayUpkeep:
    """Relays below one directory. Safe for threads; made without I/O.

    :param keep: seconds for which the directory of an ended migration is kept.
    :param clock: seconds since the epoch, as files have them.
    :param spare: the next relay's process, where somebody keeps one.
    """

    def __init__(
        self,
        top: str,
        keep: float,
        clock: Callable[[], float] = time.time,
        spare: SpareRelay | None = None,
    ) -> None:
        self._top = top
        self._keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._children: set[int] = set()
        self._running: tuple[dict[str, Any], ...] = ()
        self.spare = spare

    def adopt(self, relay: relays.RunningRelay) -> None:
        """Remember a child of this process, to collect its exit status when it has ended.

        It is preferred by the scheduler from now on, where this process may have that done; as
        root it sees to it itself.
        """
        with self._lock:
            self._children.add(relay.pid)
        if os.geteuid() != 0 and privsep.privileged(privsep.scheduling):
            try:
                privsep.prefer(relay.pid, niceness.WAITED_FOR)
            except OSError as error:
                LOG.warning("Relay %d runs as any other process: %s", relay.pid, error)

    def running(self) -> tuple[dict[str, Any], ...]:
        """Migration, role and pid of each relay, as last looked at."""
        return self._running

    def look(self) -> None:
        """See which relays run, and remove what was left by those that ended long ago."""
        self._collect()
        found = tuple(relays.running(self._top))
        self._running = tuple(
            {"migration": one.spec.migration, "role": one.spec.role, "pid": one.pid}
            for one in found
        )
        self._remove({one.spec.migration for one in found})

    def end(self, migration: str, outcome: str) -> Mapping[str, Any]:
        """A migration has ended for libvirt: the last state of the source's relay.

        The relay ends by itself when the last page has crossed. Where the VM never left, it is
        told to: nothing will come any more. Once the VM may run at the destination it is left
        alone, whatever libvirt says; it may be carrying the rest of it.
        """
        directory = Places(self._top, migration).directory("source")
        try:
            spec = RelaySpec.from_json(pathlib.Path(directory, "spec.json").read_text())
        except (OSError, exception.ConfigError) as error:
            raise exception.RelayGone(f"no relay of migration {migration}: {error}") from error
        state = relays.RunningRelay(spec, 0).state()
        if outcome != "completed" and state.get("phase", "waiting") in STOPPABLE:
            try:
                control.ask(spec.control, "stop")
                LOG.info("Relay of migration %s stopped: %s", migration, outcome)
            except exception.RelayError as error:
                LOG.debug("Relay of migration %s: %s", migration, error)
        self._collect()
        return state

    def _collect(self) -> None:
        with self._lock:
            for pid in list(self._children):
                try:
                    ended, _ = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    ended = pid
                if ended:
                    self._children.discard(pid)

    def _remove(self, running: set[str]) -> None:
        now = self._clock()
        for directory in pathlib.Path(self._top).glob("*-*"):
            migration, _, role = directory.name.rpartition("-")
            if role not in ROLES or migration in running or not directory.is_dir():
                continue
            if now - self._touched(directory) < self._keep:
                continue
            LOG.debug("Removing %s", directory)
            shutil.rmtree(directory, ignore_errors=True)
            pathlib.Path(Places(self._top, migration).socket).unlink(missing_ok=True)

    @staticmethod
    def _touched(directory: pathlib.Path) -> float:
        """When something in it last changed; a state file does while its relay runs."""
        times = [0.0]
        for path in (directory, directory / "state.json", directory / "relay.log"):
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                continue
        return max(times)
