# SPDX-License-Identifier: Apache-2.0
"""Users of a server: each asks, waits for the answer, waits a little, and asks again.

With a rate given, each of the connections asks at even intervals, one question at a time; what
fell due while an answer was awaited is never asked, as people do not catch up on what they could
not do. Without one, each asks again at once.
"""

import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol, TypeVar

from lab.probe import DATAGRAM, MAGIC

PERIOD_S = 0.02
_TRY_S, _BETWEEN_S = 3.0, 0.1


class Client(Protocol):
    """One connection with at most one question under way."""

    socket: socket.socket

    def send(self) -> None:
        """Ask."""

    def receive(self) -> bool:
        """Whether the answer is whole. Raises ConnectionError where it is wrong."""


class Reporter:
    """Sends progress to the collector; see ``guest/probe.h``."""

    def __init__(self, name: str, collector: tuple[str, int]) -> None:
        self._name = name.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(collector)
        self._sequence = 0

    def send(self, running: bool, operations: int) -> None:
        """One datagram."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        fields = (MAGIC, self._name, int(running), self._sequence, operations, now, 0, 0, 0)
        self._sequence += 1
        try:
            self._socket.send(DATAGRAM.pack(*fields))
        except ConnectionRefusedError:
            pass  # nobody listens at the moment


def connected(address: str, port: int, patience_s: float) -> socket.socket:
    """A connection, tried for until ``patience_s`` is over: then OSError is raised.

    A server that is about to start answers no SYN, and the kernel would not send the next one
    for a second; one that has just started may take longer to answer than between two tries. So a
    new try begins each tenth of a second beside those under way, and the first to succeed wins.
    """
    deadline = time.monotonic() + patience_s
    tries: list[tuple[socket.socket, float]] = []
    try:
        while time.monotonic() < deadline:
            tries.append((_try(address, port), time.monotonic() + _TRY_S))
            made = _first(tries)
            if made is not None:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setblocking(True)
                return made
    finally:
        for other, _ in tries:
            other.close()
    raise TimeoutError(f"{address} did not answer in {patience_s:.0f} s")


def _try(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    made.connect_ex((address, port))
    return made


def _first(tries: list[tuple[socket.socket, float]]) -> socket.socket | None:
    """Wait for a try to succeed, until the next one is due; what failed or is old is closed."""
    due = time.monotonic() + _BETWEEN_S
    while (left := due - time.monotonic()) > 0:
        poll = select.poll()
        by_fd = {made.fileno(): (made, until) for made, until in tries}
        for fd in by_fd:
            poll.register(fd, select.POLLOUT)
        for fd, _ in poll.poll(left * 1000):
            made = by_fd[fd][0]
            tries.remove(by_fd[fd])
            if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                return made
            made.close()
    old = [one for one in tries if one[1] < time.monotonic()]
    for one in old:
        one[0].close()
        tries.remove(one)
    return None


C = TypeVar("C", bound=Client)


class Turns:
    """Which connections may ask now. ``each`` is the work units of one answer."""

    def __init__(self, number: int, each: int, rate: float) -> None:
        self.interval_s = number * each / rate if rate else 0.0
        self._due = {n: self.interval_s * n / number for n in range(number)}

    def answered(self, who: int, now: float) -> None:
        """``who``'s answer is here; its next turn is the first even one that is not over."""
        due = self._due[who] + self.interval_s
        if due < now and self.interval_s:
            due += (1 + (now - due) // self.interval_s) * self.interval_s
        self._due[who] = due

    def ready(self, waiting: set[int], now: float) -> list[int]:
        """Those of ``waiting`` whose turn it is."""
        return [who for who in sorted(waiting) if self._due[who] <= now]

    def next_in(self, waiting: set[int], now: float, most_s: float) -> float:
        """Seconds until one of ``waiting`` has its turn, at most ``most_s``."""
        return max(0.0, min([most_s, *(self._due[who] - now for who in waiting)]))


def drive(clients: Mapping[int, C], each: int, rate: float, reporter: Reporter,
          clock: Callable[[], float] = time.monotonic) -> NoReturn:  # fmt: skip
    """Keep every connection busy, or ``rate`` work units a second (0: unlimited), for ever.

    ``clients`` by file descriptor. Raises ConnectionError or OSError when one fails.
    """
    poll = select.poll()
    numbers = {fd: number for number, fd in enumerate(clients)}
    by_number = {number: clients[fd] for fd, number in numbers.items()}
    for fd in clients:
        poll.register(fd, select.POLLIN)
    turns = Turns(len(clients), each, rate)
    waiting, operations, begun, due = set(by_number), 0, clock(), 0.0
    while True:
        now = clock() - begun
        for number in turns.ready(waiting, now):
            by_number[number].send()
            waiting.discard(number)
        if now >= due:
            reporter.send(True, operations)
            due = now + PERIOD_S
        for fd, _ in poll.poll(turns.next_in(waiting, now, due - now) * 1000):
            if clients[fd].receive():
                operations += each
                waiting.add(numbers[fd])
                turns.answered(numbers[fd], clock() - begun)
