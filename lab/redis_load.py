# SPDX-License-Identifier: Apache-2.0
"""Load on a guest's redis: a closed loop of GET and SET with zipf-distributed keys.

Runs in the control namespace as a process of its own and reports like a guest program does,
under the guest's name, so that a redis guest's ``probe`` works as every other's. The data set
is made inside the server (``DEBUG POPULATE``: seconds instead of half a minute over the
network) or, with ``--fill text``, sent there, as values that compress as text does; which keys
are popular is drawn at random, so the hot ones are scattered over it.

Replies have known lengths (every value is ``--value-bytes`` long), so counting bytes is
parsing enough, and the generator costs little beside the guest it loads.
"""

import argparse
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lab import pacing
from lab.pacing import Reporter, connected
from lab.probe import PORT

REDIS_PORT = 6379
FILLS = ("populate", "text", "nothing")
_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Load:
    """What is asked of redis. ``reads`` is the share of GETs.

    ``active``: of the keys, so many (0: all) are asked for by popularity; ``anywhere`` is the
    share of requests for any key at all. ``popular`` says which keys are popular, ``seed`` draws
    the requests: two seeds are two inputs to one data set. ``rate``: requests a second, 0 for as
    many as there can be; see ``pacing``.
    """

    keys: int = 200_000
    value_bytes: int = 1024
    exponent: float = 0.99
    reads: float = 0.9
    connections: int = 4
    pipeline: int = 8
    seed: int = 1
    rate: float = 0.0
    active: int = 0
    anywhere: float = 0.0
    popular: int = 1


def popularity(
    keys: int, exponent: float, samples: int, seed: int, *,
    popular: int = 1, active: int = 0, anywhere: float = 0.0,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """``samples`` key numbers below ``keys``: the one of rank r, of the first ``active`` ranks,
    drawn with weight r ** -exponent; a share ``anywhere`` of them any key at all.
    """
    draw = np.random.default_rng(seed)
    ranked = np.random.default_rng([popular, keys]).permutation(keys)
    weights = np.arange(1, (active or keys) + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    ranks = np.searchsorted(cumulative, draw.random(samples) * cumulative[-1])
    chosen: npt.NDArray[np.int64] = ranked[np.minimum(ranks, len(weights) - 1)]
    strays = draw.random(samples) < anywhere
    chosen[strays] = draw.integers(0, keys, int(strays.sum()))
    return chosen


class Requests:
    """Endless batches of requests, each with the number of bytes redis answers."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._keys = popularity(
            load.keys, load.exponent, _SAMPLES, load.seed,
            popular=load.popular, active=load.active, anywhere=load.anywhere,
        ).tolist()  # fmt: skip
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


def texts(number: int, size: int, seed: int) -> Iterator[bytes]:
    """``number`` different values of ``size`` bytes, of words drawn from a vocabulary."""
    draw = np.random.default_rng(seed)
    letters = draw.integers(97, 123, (4096, 9), np.uint8)
    ends = draw.integers(3, 9, 4096)
    words = [letters[n, : ends[n]].tobytes() for n in range(4096)]
    for _ in range(number):
        chosen = draw.integers(0, 4096, size // 4).tolist()
        yield b" ".join([words[n] for n in chosen])[:size]


def populate(address: str, load: Load, fill: str = "populate") -> None:
    """Fill redis with the data set. Raises ConnectionError where it did not come about."""
    with socket.create_connection((address, REDIS_PORT), timeout=120.0) as connection:
        _ask(connection, "FLUSHALL")
        if fill == "text":
            _send_texts(connection, load)
        else:
            _ask(connection, "DEBUG", "POPULATE", str(load.keys), "key", str(load.value_bytes))
        held = _ask(connection, "DBSIZE")
        if held != b":%d\r\n" % load.keys:
            raise ConnectionError(f"redis holds {held.decode().strip()} keys, not {load.keys}")


def _send_texts(connection: socket.socket, load: Load) -> None:
    values = texts(load.keys, load.value_bytes, load.popular)
    batch, answer = [], b""
    for number, value in enumerate(values, 1):
        name = b"key:%d" % (number - 1)
        batch.append(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
                     % (len(name), name, len(value), value))  # fmt: skip
        if len(batch) < 64 and number < load.keys:
            continue
        connection.sendall(b"".join(batch))
        wanted = b"+OK\r\n" * len(batch)
        while len(answer) < len(wanted):
            answer += connection.recv(1 << 16) or b"-ended"
        if answer != wanted:
            raise ConnectionError(f"redis: {answer[:200]!r}")
        batch, answer = [], b""


class _Client:
    """One connection with one batch under way."""

    def __init__(self, connection: socket.socket, requests: Requests) -> None:
        self._requests = requests
        self.socket = connection
        self._awaited = 0

    def send(self) -> None:
        """The next batch."""
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


def drive(
    address: str, load: Load, reporter: Reporter, patience_s: float, after: Path | None
) -> None:
    """Keep every connection busy, for ever. Raises ConnectionError or OSError when one fails.

    ``after``: the file to wait for before the first connection.
    """
    requests = Requests(load)
    reporter.send(False, 0)
    if after is not None:
        pacing.wait_for_word(after)
    clients = {}
    for _ in range(load.connections):
        client = _Client(connected(address, REDIS_PORT, patience_s), requests)
        clients[client.socket.fileno()] = client
    pacing.drive(clients, load.pipeline, load.rate, reporter)


def main() -> int:
    """The load as a process; ends when redis fails or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m lab.redis_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--name", required=True, help="series to report under")
    parser.add_argument("--collector", default="10.78.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--fill", choices=FILLS, default=FILLS[0], help="the data set, before")
    parser.add_argument("--patience", type=float, default=30.0, help="s to wait for an answer")
    parser.add_argument("--after", type=Path, help="do nothing before this file is there")
    defaults = Load()
    for field in Load.__dataclass_fields__:
        value = getattr(defaults, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    wanted = parser.parse_args()
    load = Load(**{field: getattr(wanted, field) for field in Load.__dataclass_fields__})
    reporter = Reporter(wanted.name, (wanted.collector, wanted.port))
    try:
        if wanted.fill != "nothing":
            populate(wanted.address, load, wanted.fill)
        drive(wanted.address, load, reporter, wanted.patience, wanted.after)
    except (OSError, struct.error) as error:
        print(f"redis load on {wanted.address}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
