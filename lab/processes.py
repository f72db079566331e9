# SPDX-License-Identifier: Apache-2.0
"""Commands, and the end of every process that belongs to one laboratory.

A process belongs to a laboratory when its own ``/run`` holds the laboratory's token: every
holder mounts a ``/run`` of its own with that file in it, and what is started inside, however
it is daemonised, sees it. So nothing is ever ended by name, nor by a number that another
process may have got since.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.errors import CommandFailed

TOKEN = "nova-enlightened-lab.token"


def run(
    command: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 120.0,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end; output (both kinds, in order) is in ``stdout``.

    It is ended with its children if this is interrupted.
    Raises CommandFailed unless ``check`` is false, subprocess.TimeoutExpired after ``timeout`` s.
    """
    words = list(command)
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        cwd=cwd,
        process_group=0,
    ) as process:
        try:
            output, _ = process.communicate(stdin, timeout)
        except BaseException:
            if process.returncode is None:  # not reaped yet: the number is still its own
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if check and process.returncode:
        raise CommandFailed(words, process.returncode, output)
    return subprocess.CompletedProcess(words, process.returncode, output)


def started_at(pid: int) -> int | None:
    """Start time of ``pid`` in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def belonging_to(token: str) -> Iterator[int]:
    """Every process, but not this one, whose ``/run`` carries ``token``."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/root/run/{TOKEN}") as file:
                if file.read(200).strip() == token:
                    yield int(entry)
        except OSError:
            continue


def end_all(token: str, grace: float = 3.0) -> int:
    """End what belongs to ``token``: SIGTERM, ``grace`` seconds, SIGKILL. Returns how many."""
    ended: set[int] = set()
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0), (signal.SIGKILL, 5.0)):
        pids = list(belonging_to(token))
        if not pids:
            break
        ended.update(pids)
        _signal_and_wait(pids, token, number, wait)
    return len(ended)


def _signal_and_wait(pids: list[int], token: str, number: signal.Signals, wait: float) -> None:
    waiting: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            waiting[handle] = pid
        still = set(belonging_to(token))  # after the handles: now the numbers cannot be reused
        for handle, pid in waiting.items():
            if pid in still:
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    pass
        wait_for_end({handle for handle, pid in waiting.items() if pid in still}, wait)
    finally:
        for handle in waiting:
            os.close(handle)
    _reap(pids)


def wait_for_end(handles: set[int], seconds: float) -> None:
    """Until every process behind a handle (``os.pidfd_open``) has ended, or the time has."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    while handles:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            handles.discard(handle)


def _reap(pids: list[int]) -> None:
    """Those that are children of this process leave no zombie."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def wait_for_file(path: Path, seconds: float, process: subprocess.Popen[bytes] | None) -> bool:
    """Whether ``path`` came to be in time; gives up early when ``process`` ends first.

    Neither inotify nor a readiness message is on offer from the daemons waited for here, so
    this looks again every 20 ms.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            return False
        select.select([], [], [], 0.02)
    return True
