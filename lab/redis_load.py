# SPDX-License-Identifier: Apache-2.0
"""Load on a guest's redis: a closed loop of GET and SET with zipf-distributed keys.

Runs in the control namespace as a process of its own and reports like a guest program does,
under the guest's name, so that a redis guest's ``probe`` works as every other's. The data set
is made inside the server (``DEBUG POPULATE``: seconds instead of half a minute over the
network); which keys are popular is drawn at random, so the hot ones are scattered over it.

Replies have known lengths (every value is ``--value-bytes`` long), so counting bytes is
parsing enough, and the generator costs little beside the guest it loads.
"""

import argparse
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lab.probe import DATAGRAM, MAGIC, PORT

REDIS_PORT = 6379
PERIOD_S = 0.02
_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Load:
    """What is asked of redis. ``reads`` is the share of GETs."""

    keys: int = 200_000
    value_bytes: int = 1024
    exponent: float = 0.99
    reads: float = 0.9
    connections: int = 4
    pipeline: int = 8
    seed: int = 1


def popularity(keys: int, exponent: float, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """``samples`` key numbers below ``keys``, rank r drawn with weight r ** -exponent."""
    draw = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, keys + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative, draw.random(samples) * cumulative[-1])
    chosen: npt.NDArray[np.int64] = draw.permutation(keys)[np.minimum(ranks, keys - 1)]
    return chosen


class Requests:
    """Endless batches of requests, each with the number of bytes redis answers."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._keys = popularity(load.keys, load.exponent, _SAMPLES, load.seed).tolist()
        draw = np.random.default_rng(load.seed + 1)
        self._reads = (draw.random(_SAMPLES) < load.reads).tolist()
        self._value = draw.integers(97, 123, load.value_bytes, np.uint8).tobytes()
        self._got = load.value_bytes + len(f"${load.value_bytes}\r\n") + 2
        self._next = 0

    def batch(self) -> tuple[bytes, int]:
        """Words to send and the length of the answers."""
        parts, answer = [], 0
        for _ in range(self._load.pipeline):
            at = self._next = (self._next + 1) % _SAMPLES
            name = b"key:%d" % self._keys[at]
            if self._reads[at]:
                parts.append(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name))
                answer += self._got
            else:
                parts.append(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
                             % (len(name), name, len(self._value), self._value))  # fmt: skip
                answer += len(b"+OK\r\n")
        return b"".join(parts), answer


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


def _ask(connection: socket.socket, *words: str) -> bytes:
    """One command, its one-line answer. Raises ConnectionError for an error answer."""
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)
    connection.sendall(b"*%d\r\n%s" % (len(words), parts))
    answer = b""
    while not answer.endswith(b"\r\n"):
        more = connection.recv(4096)
        if not more:
            raise ConnectionError(f"redis ended the connection at {words[0]}")
        answer += more
    if answer.startswith(b"-"):
        raise ConnectionError(f"redis: {answer.decode(errors='replace').strip()}")
    return answer


def populate(address: str, load: Load) -> None:
    """Fill redis with the data set. Raises ConnectionError where it did not come about."""
    with socket.create_connection((address, REDIS_PORT), timeout=120.0) as connection:
        _ask(connection, "FLUSHALL")
        _ask(connection, "DEBUG", "POPULATE", str(load.keys), "key", str(load.value_bytes))
        held = _ask(connection, "DBSIZE")
        if held != b":%d\r\n" % load.keys:
            raise ConnectionError(f"redis holds {held.decode().strip()} keys, not {load.keys}")


class _Client:
    """One connection with one batch under way."""

    def __init__(self, address: str, requests: Requests) -> None:
        self._requests = requests
        self.socket = socket.create_connection((address, REDIS_PORT), timeout=30.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(None)
        self._awaited = 0

    def send(self) -> None:
        words, self._awaited = self._requests.batch()
        self.socket.sendall(words)

    def receive(self) -> bool:
        """Whether the batch is answered whole; then the next can be sent."""
        data = self.socket.recv(1 << 16)
        if not data or data[:1] == b"-":
            raise ConnectionError(f"redis answers {data[:100]!r}")
        self._awaited -= len(data)
        if self._awaited < 0:
            raise ConnectionError("redis answers more than it was asked")
        return self._awaited == 0


def drive(address: str, load: Load, reporter: Reporter) -> None:
    """Keep every connection busy, for ever. Raises ConnectionError or OSError when one fails."""
    requests = Requests(load)
    clients = {}
    poll = select.poll()
    for _ in range(load.connections):
        client = _Client(address, requests)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.POLLIN)
        client.send()
    operations, due = 0, time.monotonic()
    while True:
        for fd, _ in poll.poll(PERIOD_S * 1000):
            if clients[fd].receive():
                operations += load.pipeline
                clients[fd].send()
        now = time.monotonic()
        if now >= due:
            reporter.send(True, operations)
            due = now + PERIOD_S


def main() -> int:
    """The load as a process; ends when redis fails or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m lab.redis_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--name", required=True, help="series to report under")
    parser.add_argument("--collector", default="10.78.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    defaults = Load()
    for field in Load.__dataclass_fields__:
        value = getattr(defaults, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    wanted = parser.parse_args()
    load = Load(**{field: getattr(wanted, field) for field in Load.__dataclass_fields__})
    reporter = Reporter(wanted.name, (wanted.collector, wanted.port))
    try:
        populate(wanted.address, load)
        drive(wanted.address, load, reporter)
    except (OSError, struct.error) as error:
        print(f"redis load on {wanted.address}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
