# SPDX-License-Identifier: Apache-2.0
"""A machine's worth of namespaces, held open by one sleeping process.

Each has its own mounts, host name and network, a ``/run`` that is a directory of the
laboratory's run directory (so every socket in it can be reached from outside as well), and a
sysfs of its own, which shows its own network.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lab.errors import LabError
from lab.processes import TOKEN, run, started_at

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")

# $1 name, $2 directory that becomes /run, $3 the laboratory's run directory, $4 CPU list or "".
# The run directory stays visible under its own path, also where that is below /run.
_SETUP = """
set -e
hostname "$1"
case $3 in
    /run/*) mkdir -p "$2/${3#/run/}" && mount --bind "$3" "$2/${3#/run/}" ;;
esac
mount --rbind "$2" /run
mkdir -p /run/lock
mkdir -p /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
if [ -n "$4" ]; then
    echo "$4" > /run/online-cpus
    mount --bind /run/online-cpus /sys/devices/system/cpu/online
fi
ip link set lo up
"""


class Holder:
    """The namespaces called ``name``; ``run_dir`` is the laboratory's.

    ``cpus``, where given, are the only processors that exist there: what is started inside
    is bound to them, and libvirt, which binds its guests to all processors that are online,
    sees no others.
    """

    def __init__(self, name: str, run_dir: Path, cpus: frozenset[int] | None = None) -> None:
        self.name = name
        self.directory = run_dir / name
        self.run_directory = self.directory / "run"
        self.cpus = cpus
        self._run_dir = run_dir
        self.pid = 0

    def start(self, token: str) -> None:
        """Make the namespaces. Raises LabError where the kernel does not allow it."""
        self.run_directory.mkdir(parents=True, exist_ok=True)
        (self.run_directory / TOKEN).write_text(token)
        process = subprocess.Popen(
            ["unshare", "-m", "-u", "-n", "--propagation", "private", "--",
             "sh", "-c", "echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            if not process.stdout.readline():
                raise LabError(f"no namespaces: {process.stderr.read().decode().strip()}")
        self.pid = process.pid
        process.returncode = 0  # it outlives this object; its end is processes.end_all's
        cpus = ",".join(str(cpu) for cpu in sorted(self.cpus or ()))
        self.run(["sh", "-c", _SETUP, "sh", self.name, str(self.run_directory),
                  str(self._run_dir), cpus])  # fmt: skip

    @property
    def token(self) -> str:
        """Of the laboratory that it belongs to."""
        return (self.run_directory / TOKEN).read_text()

    def describe(self) -> dict[str, object]:
        """What ``adopt`` needs."""
        return {"pid": self.pid, "started": started_at(self.pid)}

    def adopt(self, described: Mapping[str, object]) -> None:
        """Take over a holder that another process started. Raises LabError if it is gone."""
        pid = described["pid"]
        if not isinstance(pid, int) or started_at(pid) != described["started"]:
            raise LabError(f"the namespaces of {self.name} are gone: run `python -m lab down`")
        self.pid = pid

    def entered(self, command: Sequence[str]) -> list[str]:
        """``command`` with what puts it inside: no process of its own stays between."""
        words = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--net", "--"]
        if self.cpus:
            words += ["taskset", "-c", ",".join(str(cpu) for cpu in sorted(self.cpus))]
        return [*words, *command]

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``processes.run`` inside."""
        return run(self.entered(command), check=check, timeout=timeout, stdin=stdin)

    def in_network(self, make: Callable[[], _T]) -> _T:
        """What ``make()`` returns, called on a thread in this network namespace.

        A socket made so stays there, whoever uses it later.
        """
        result: list[_T] = []
        failed: list[BaseException] = []

        def visit() -> None:
            try:
                with open(f"/proc/{self.pid}/ns/net") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"entering the network of {self.name}")
                result.append(make())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=visit, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return result[0]

    def outside(self, path: str | Path) -> Path:
        """Where a path below ``/run`` in there is seen from outside."""
        inside = Path(path)
        if not inside.is_relative_to("/run"):
            raise LabError(f"{path} is not below /run: no path leads to it from outside")
        return self.run_directory / inside.relative_to("/run")


def require_root() -> None:
    """Raise LabError unless this process may make namespaces."""
    if os.geteuid() != 0:
        raise LabError("the laboratory makes namespaces and starts libvirtd: run it as root")
