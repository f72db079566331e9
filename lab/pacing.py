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
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from lab.probe import DATAGRAM, MAGIC

PERIOD_S = 0.02
_REFUSED_S, _LOOK_S = 0.05, 0.005


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

    One try at a time, and no hurry: a server whose pages come one by one is kept from answering
    by those who ask again and again.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            made = socket.create_connection((address, port), timeout=patience_s)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_REFUSED_S)
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(None)
            return made


def wait_for_word(word: Path) -> None:
    """Until somebody has made the file ``word``. It is looked for each 5 ms: it comes from
    outside of this process's namespaces, and starts a clock.
    """
    while not word.exists():
        time.sleep(_LOOK_S)


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
