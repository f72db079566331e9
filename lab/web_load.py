# SPDX-License-Identifier: Apache-2.0
"""Readers of a guest's web application: articles by popularity, over connections kept alive.

Runs in the control namespace as a process of its own and reports under the guest's name, as
``redis_load`` does.
"""

import argparse
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from lab import pacing
from lab.probe import PORT
from lab.redis_load import popularity

HTTP_PORT = 80
_SAMPLES = 1 << 16
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Reading:
    """What is read. ``active`` of the ``articles`` are read by popularity, ``anywhere`` is the
    share of any article at all; ``seed`` draws the requests, ``rate`` is requests a second.
    """

    articles: int = 12_000
    active: int = 600
    exponent: float = 0.9
    anywhere: float = 0.02
    popular: int = 1
    connections: int = 4
    rate: float = 40.0
    seed: int = 1


class Requests:
    """Endless requests."""

    def __init__(self, reading: Reading) -> None:
        self._reader = reading.seed
        self._numbers = popularity(
            reading.articles, reading.exponent, _SAMPLES, reading.seed,
            popular=reading.popular, active=reading.active, anywhere=reading.anywhere,
        ).tolist()  # fmt: skip
        self._next = 0

    def request(self) -> bytes:
        """The next one."""
        self._next = (self._next + 1) % _SAMPLES
        return (
            f"GET /articles/{self._numbers[self._next]} HTTP/1.1\r\n"
            f"Host: appliance\r\nX-Reader: {self._reader}\r\n\r\n"
        ).encode()


def answer_length(data: bytes) -> int | None:
    """How long the answer that ``data`` begins is, head and body; None as long as the head is
    not whole. Raises ConnectionError for any answer but 200 with a length.
    """
    head, end, _ = data.partition(b"\r\n\r\n")
    if not end:
        if len(data) > _LONGEST:
            raise ConnectionError("an answer without an end of its head")
        return None
    status, *fields = head.decode("latin-1").split("\r\n")
    lengths = [
        value.strip()
        for name, _, value in (field.partition(":") for field in fields)
        if name.lower() == "content-length"
    ]
    if status.split()[1:2] != ["200"] or len(lengths) != 1 or not lengths[0].isdigit():
        raise ConnectionError(f"the application answers {status}")
    return len(head) + len(end) + int(lengths[0])


class _Client:
    """One connection with one request under way."""

    def __init__(self, connection: socket.socket, requests: Requests) -> None:
        self.socket = connection
        self._requests = requests
        self._got = b""

    def send(self) -> None:
        """The next request."""
        self._got = b""
        self.socket.sendall(self._requests.request())

    def receive(self) -> bool:
        """Whether the answer is whole."""
        more = self.socket.recv(1 << 16)
        if not more:
            raise ConnectionError("the application ended the connection")
        self._got += more
        wanted = answer_length(self._got)
        if wanted is not None and len(self._got) > wanted:
            raise ConnectionError("the application answers more than it was asked")
        return len(self._got) == wanted


def main() -> int:
    """The readers as a process; ends when the application fails or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m lab.web_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--name", required=True, help="series to report under")
    parser.add_argument("--collector", default="10.78.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--patience", type=float, default=30.0, help="s to wait for an answer")
    parser.add_argument("--after", type=Path, help="do nothing before this file is there")
    defaults = Reading()
    for field in Reading.__dataclass_fields__:
        value = getattr(defaults, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    wanted = parser.parse_args()
    reading = Reading(**{field: getattr(wanted, field) for field in Reading.__dataclass_fields__})
    requests = Requests(reading)
    reporter = pacing.Reporter(wanted.name, (wanted.collector, wanted.port))
    reporter.send(False, 0)
    try:
        if wanted.after is not None:
            pacing.wait_for_word(wanted.after)
        clients = {}
        for _ in range(reading.connections):
            made = pacing.connected(wanted.address, HTTP_PORT, wanted.patience)
            clients[made.fileno()] = _Client(made, requests)
        pacing.drive(clients, 1, reading.rate, reporter)
    except OSError as error:
        print(f"readers of {wanted.address}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
