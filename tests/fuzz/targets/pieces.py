# SPDX-License-Identifier: Apache-2.0
"""Cutting an input the way a socket might. The input decides how, so that it can be replayed."""

import itertools
import zlib
from collections.abc import Iterator

BYTEWISE = 48
MOST_CUTS = 7


def pieces(data: bytes) -> Iterator[bytes]:
    """``data`` in some pieces, none of them empty; a short input now and then byte by byte."""
    if not data:
        return
    state = zlib.crc32(data)
    if len(data) <= BYTEWISE and state & 1:
        yield from (data[at : at + 1] for at in range(len(data)))
        return
    cuts = set()
    for _ in range(1 + (state >> 1) % MOST_CUTS):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        cuts.add((state >> 8) % len(data))
    marks = [0, *sorted(cuts - {0}), len(data)]
    yield from (data[begin:end] for begin, end in itertools.pairwise(marks))
