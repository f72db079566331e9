# SPDX-License-Identifier: Apache-2.0
"""A set of byte positions, kept as ranges that do not touch."""

import bisect


class ByteRanges:
    """Starts empty. Ranges are half open: from ``start`` to before ``end``."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0

    def __len__(self) -> int:
        return len(self._starts)

    def covers(self, start: int, end: int) -> bool:
        """Whether every position of a range that is not empty is in the set."""
        at = bisect.bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    def add(self, start: int, end: int) -> None:
        """Put a range in; an empty one changes nothing."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def remove(self, start: int, end: int) -> None:
        """Take a range out, as far as it is in."""
        if start >= end:
            return
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        left = (self._starts[first], start)
        right = (end, self._ends[last - 1])
        self._replace(first, last, [pair for pair in (left, right) if pair[0] < pair[1]])

    def _replace(self, first: int, last: int, pairs: list[tuple[int, int]]) -> None:
        self.total -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self.total += sum(end - start for start, end in pairs)
        self._starts[first:last] = [start for start, _ in pairs]
        self._ends[first:last] = [end for _, end in pairs]
