# SPDX-License-Identifier: Apache-2.0
"""How fast the forward stream is observed: printed (``pytest -s``), and held to a loose floor.

Also a program: ``python -m tests.unit.stream.test_migration_speed``.
"""

import itertools
import sys
import time

import pytest

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import RamBlock, RamPages
from nova_enlightened.stream.migration import MigrationStream
from tests.unit.stream.stream_vectors import drain

# How the kinds of pages alternate: (zero, how many), for ever.
MIXES = {
    "pages": [(False, 1)],
    "zero pages": [(True, 1)],
    "page, zero page": [(False, 1), (True, 1)],
    "7 pages, zero page": [(False, 7), (True, 1)],
    "50 pages, 50 zero pages": [(False, 50), (True, 50)],
}
BUFFERS = (64 << 10, 256 << 10, 1 << 20)
BYTES = 8 << 20
FLOOR = 0.1  # GB/s: fifty times slower than measured, so only a loop gone wrong is below


def opened() -> MigrationStream:
    """A stream at the beginning of a RAM section."""
    stream = MigrationStream()
    blocks = encode.block_list([RamBlock("pc.ram", 1 << 40, 4096)], host_page_size=None)
    stream.receive_data(encode.header() + encode.ram_start(2) + blocks + encode.ram_end())
    stream.receive_data(encode.ram_part(2) + encode.zero_page(0, "pc.ram"))
    for _ in drain(stream):
        pass
    return stream


def records(mix: list[tuple[bool, int]]) -> tuple[bytes, int]:
    """About ``BYTES`` of page records (512 KiB of zero pages alone), and how many."""
    kinds = itertools.chain.from_iterable(
        itertools.repeat(zero, count) for zero, count in itertools.cycle(mix)
    )
    want = BYTES if any(not zero for zero, _ in mix) else 512 << 10
    parts: list[bytes] = []
    size = 0
    payload = bytes(4096)
    while size < want:
        offset = len(parts) << 12
        zero = next(kinds)
        parts.append(encode.zero_page(offset) if zero else encode.page_header(offset) + payload)
        size += len(parts[-1])
    return b"".join(parts), len(parts)


def measure(data: bytes, count: int, buffer: int, rounds: int = 3) -> float:
    """GB/s of processor time, best of some rounds."""
    view, best = memoryview(data), 0.0
    for _ in range(rounds):
        stream, seen = opened(), 0
        begin = time.thread_time()
        for position in range(0, len(view), buffer):
            stream.receive_data(view[position : position + buffer])
            for event in drain(stream):
                assert isinstance(event, RamPages)
                seen += len(event.offsets)
        best = max(best, len(data) / 1e9 / (time.thread_time() - begin))
        assert seen == count
    return best


@pytest.mark.parametrize("mix", MIXES)
def test_speed(mix: str) -> None:
    data, count = records(MIXES[mix])
    for buffer in BUFFERS:
        speed = measure(data, count, buffer)
        line = f"{mix:24} {buffer >> 10:5} KiB buffers {speed:6.1f} GB/s, {count} pages\n"
        sys.stdout.write(line)
        assert speed > FLOOR


if __name__ == "__main__":
    for each in MIXES:
        test_speed(each)
