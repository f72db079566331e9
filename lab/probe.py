# SPDX-License-Identifier: Apache-2.0
"""How fast each guest works, by the host's clock.

Guest programs and the redis load generator send a cumulative count of operations about every
20 ms (layout: ``guest/probe.h``). The kernel stamps each datagram on arrival, so the reading
thread may be late without harm. Times are ``time.monotonic()`` of the host throughout.
"""

import select
import socket
import struct
import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lab.errors import LabError

PORT = 5600
DATAGRAM = struct.Struct("!4s16sIQQQQQQ")
MAGIC = b"NEP1"
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")


@dataclass(frozen=True)
class Report:
    """One datagram. ``detail`` depends on the program; see its source."""

    time: float
    running: bool
    sequence: int
    operations: int
    guest_ns: int
    mismatches: int
    token_hash: int
    detail: int


class Probe:
    """The reports of one series, kept since the collector began."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._times: list[float] = []
        self._operations: list[int] = []
        self._latest: Report | None = None
        self._arrived = threading.Condition()

    def add(self, report: Report) -> None:
        """A report arrived. One that the network delivered late counts for nothing."""
        with self._arrived:
            latest = self._latest
            if latest is not None:
                if report.sequence == 0 and report.guest_ns > latest.guest_ns:
                    self._times.clear()  # the program began anew
                    self._operations.clear()
                elif report.sequence <= latest.sequence:
                    return
            self._latest = report
            if report.running:
                self._times.append(report.time)
                self._operations.append(report.operations)
            self._arrived.notify_all()

    def restart(self) -> None:
        """Forget everything: what comes now is another run, whatever its numbers."""
        with self._arrived:
            self._times.clear()
            self._operations.clear()
            self._latest = None

    @property
    def latest(self) -> Report | None:
        """The newest report."""
        return self._latest

    def counts(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Times of arrival (s) and the operations done by then, while running."""
        with self._arrived:
            return np.array(self._times, np.float64), np.array(self._operations, np.int64)

    def series(
        self, start: float, end: float, bin_s: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Operations per second in bins of ``bin_s`` from ``start`` on, whole bins to ``end``.

        Returns the bins' beginnings and their rates. Between two reports the work is taken as
        even; before the first and after the last report there is none.
        """
        bins = max(int((end - start) / bin_s + 1e-9), 0)
        edges = start + bin_s * np.arange(bins + 1, dtype=np.float64)
        times, operations = self.counts()
        if times.size == 0:
            return edges[:-1], np.zeros(bins, np.float64)
        done = np.interp(edges, times, operations.astype(np.float64))
        return edges[:-1], np.diff(done) / bin_s

    def rate(self, start: float, end: float) -> float:
        """Mean operations per second between two times."""
        return float(self.series(start, end, end - start)[1].sum())

    def wait_running(self, seconds: float) -> Report:
        """The first report of a program that has its preparations behind it.

        Raises LabError when none comes in ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self._arrived:
            while self._latest is None or not self._latest.running:
                if not self._arrived.wait(deadline - time.monotonic()):
                    said = "nothing" if self._latest is None else "only that it prepares"
                    raise LabError(f"{self.name} said {said} in {seconds:.0f} s")
            return self._latest

    def wait_next(self, seconds: float) -> Report | None:
        """The next report to arrive; None when none comes in ``seconds``."""
        with self._arrived:
            return self._latest if self._arrived.wait(seconds) else None


class Collector:
    """Receives the reports of all series on ``sock`` and sorts them by name."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._probes: dict[str, Probe] = {}
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._receive, name="probe", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, close the socket. What was received stays."""
        self._wake_write.close()
        if self._thread.is_alive():
            self._thread.join()
        self._wake_read.close()
        self._socket.close()

    def probe(self, name: str) -> Probe:
        """The series called ``name``, empty if nothing came yet."""
        with self._lock:
            return self._probes.setdefault(name, Probe(name))

    def names(self) -> list[str]:
        """Every series so far."""
        with self._lock:
            return sorted(self._probes)

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while all(fd != self._wake_read.fileno() for fd, _ in poll.poll()):
            self._drain()

    def _drain(self) -> None:
        ahead = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(256, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            at = time.monotonic()
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                    at = seconds + nanoseconds * 1e-9 - ahead
            parsed = decode(data, at)
            if parsed is not None:
                self.probe(parsed[0]).add(parsed[1])


def decode(data: bytes, at: float) -> tuple[str, Report] | None:
    """Name and report in a datagram that came at time ``at``; None if it is not one of ours."""
    if len(data) != DATAGRAM.size:
        return None
    magic, name, state, sequence, operations, guest_ns, mismatches, token, detail = DATAGRAM.unpack(
        data
    )
    if magic != MAGIC:
        return None
    report = Report(at, state == 1, sequence, operations, guest_ns, mismatches, token, detail)
    return name.rstrip(b"\0").decode("ascii", "replace"), report


def collector_socket(address: str, port: int = PORT) -> socket.socket:
    """The collector's socket, bound. Raises OSError where another collector has the port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
