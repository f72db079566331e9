# SPDX-License-Identifier: Apache-2.0
"""Starts player processes and finds those that run.

The sockets of the disks' exports are bound here and inherited, so that QEMU can connect before
the player's interpreter has started.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.transfer import control, unix_socket
from nova_enlightened.transfer.player_spec import DISK_CLIENTS, PlayerSpec

ENTRY: Final = (sys.executable, "-m", "nova_enlightened.cmd.player", "run")
LOOK_S: Final = 0.05
CONTROL_S: Final = 10.0
"""How long a player that was just started may take until it can be asked."""

Seen = Callable[[str], pathlib.Path]
"""Where a path of the player's host is seen from here; differs where that is another namespace."""


@dataclasses.dataclass(frozen=True)
class RunningPlayer:
    """A player process, known by its run directory."""

    spec: PlayerSpec
    pid: int
    seen: Seen = pathlib.Path

    def state(self) -> dict[str, Any]:
        """What the player last wrote of itself (see :meth:`.player.Player.state`); empty before
        it first did. It stays when the player has ended.
        """
        try:
            state: dict[str, Any] = json.loads(self.seen(self.spec.state).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state if state.get("pid") == self.pid or not self.alive else {}

    def ask(self, call: str) -> dict[str, Any]:
        """Have it do something: ``status``, ``play``, ``fill``, ``trace`` or ``stop``.

        :raises PlayerGone: it has ended.
        :raises PlayerError: it declines.
        """
        try:
            return control.ask(str(self.seen(self.spec.control)), call)
        except exception.RelayGone as error:
            raise exception.PlayerGone(str(error)) from error
        except exception.RelayError as error:
            raise exception.PlayerError(str(error)) from error

    def play(self, seconds: float = CONTROL_S) -> None:
        """Have it start the VM as soon as enough is there. QEMU must listen by now.

        :raises PlayerGone: it has ended, or cannot be asked within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.ask("play")
                return
            except exception.PlayerGone:
                if not self.alive or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)  # its interpreter starts: nothing tells when it listens

    def fill(self) -> None:
        """Have it fetch everything, also after a learning run."""
        self.ask("fill")

    def trace(self) -> pathlib.Path:
        """The trace of its run so far, as seen from here, written just now where it lives."""
        with contextlib.suppress(exception.PlayerGone):
            self.ask("trace")
        return self.seen(self.spec.trace)

    @property
    def alive(self) -> bool:
        """Whether the process is there, as far as can be told by its number."""
        try:
            process = pathlib.Path(f"/proc/{self.pid}")
            words = process.joinpath("cmdline").read_bytes().split(b"\0")
            state = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        # One that begins has no words yet, and a zombie has none any more.
        return state not in "ZX" and (self.spec.path.encode() in words or words == [b""])

    def stop(self, seconds: float = 0.0) -> None:
        """End it; a VM that still needs it waits for another.

        :param seconds: how long to wait for its end, before it is killed; 0: it is not waited for.
        """
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while seconds and self.alive:
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
                return
            time.sleep(LOOK_S)  # not a child of whoever asks: nothing tells of its end
            self._reap()

    def _signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def start(spec: PlayerSpec, prefix: Sequence[str] = (), seen: Seen = pathlib.Path) -> RunningPlayer:
    """Start a player that outlives this process. It begins to buffer at once.

    The sockets of its disks are there when this returns.

    :param prefix: command put before the player's own, to enter another namespace.
    :raises PlayerError: the player could not be started.
    """
    directory = seen(spec.run_directory)
    try:
        spec.save(directory)
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(seen(spec.log).open("ab"))
            words, descriptors = [], []
            for target, path in spec.nbd_sockets.items():
                listener = stack.enter_context(unix_socket.listen(seen(path), DISK_CLIENTS))
                words += ["--listener", f"{target}={listener.fileno()}"]
                descriptors.append(listener.fileno())
            process = subprocess.Popen(
                [*prefix, *ENTRY, spec.path, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                start_new_session=True,
            )
    except OSError as error:
        raise exception.PlayerError(f"player did not start: {error}") from error
    process.returncode = 0  # it outlives this object and is looked after by its pid
    return RunningPlayer(spec, process.pid, seen)


def resumed(player: RunningPlayer, prefix: Sequence[str] = ()) -> RunningPlayer:
    """Start another player for the VM of one that was lost; QEMU must listen by now.

    :raises PlayerError: the player could not be started.
    """
    return start(dataclasses.replace(player.spec, resume=True), prefix, player.seen)


def without_memory(spec: PlayerSpec) -> PlayerSpec:
    """For the same VM, once QEMU has all its memory, or boots: its disks only."""
    return dataclasses.replace(spec, qemu_socket=None, resume=False, record=False)


def found(run_directory: str, seen: Seen = pathlib.Path) -> RunningPlayer:
    """The player, or the last that was, with this run directory.

    :raises PlayerGone: there was none.
    """
    probe = PlayerSpec(run_directory, "", "0" * 64, nbd_sockets={"": ""})
    try:
        spec = PlayerSpec.from_json(seen(probe.path).read_text())
        state = json.loads(seen(spec.state).read_text())
        return RunningPlayer(spec, int(state["pid"]), seen)
    except (OSError, ValueError, KeyError, exception.ConfigError) as error:
        raise exception.PlayerGone(f"no player of {run_directory}: {error}") from error


def running(parent: str) -> Iterator[RunningPlayer]:
    """Players whose run directories lie in `parent` and that still answer."""
    for path in sorted(pathlib.Path(parent).glob("*/spec.json")):
        try:
            player = found(str(path.parent))
            status = player.ask("status")
        except exception.PlayerError:
            continue
        yield dataclasses.replace(player, pid=int(status["pid"]))


def lost(parent: str) -> Iterator[RunningPlayer]:
    """Players whose run directories lie in `parent` and that ended before their work was done:
    killed, or failed. Whether their VM still lives is the caller's to see.
    """
    for path in sorted(pathlib.Path(parent).glob("*/spec.json")):
        try:
            player = found(str(path.parent))
        except exception.PlayerError:
            continue
        state = player.state()
        if not player.alive and not state.get("ended"):
            yield player
