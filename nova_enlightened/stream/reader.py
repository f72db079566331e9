# SPDX-License-Identifier: Apache-2.0
"""A cursor over one buffer that says how many bytes it lacks."""

from nova_enlightened.stream.events import OpaqueReason


class Incomplete(Exception):
    """The element needs ``want`` bytes, counted from its first."""

    def __init__(self, want: int) -> None:
        super().__init__(want)
        self.want = want


class Refused(Exception):
    """The element is one this project does not parse: the stream becomes opaque here."""

    def __init__(self, reason: OpaqueReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Reader:
    """Reads big-endian fields of one element from ``view[start:end]``.

    Every method raises :exc:`Incomplete` when the buffer ends before the field does.
    """

    __slots__ = ("_end", "_start", "_view", "position")

    def __init__(self, view: memoryview, start: int, end: int) -> None:
        self._view = view
        self._start = start
        self._end = end
        self.position = start

    def take(self, length: int) -> memoryview:
        """The next ``length`` bytes, not copied."""
        begin = self.position
        if self._end - begin < length:
            raise Incomplete(begin + length - self._start)
        self.position = begin + length
        return self._view[begin : begin + length]

    def peek(self, length: int) -> memoryview:
        """The next ``length`` bytes, left in place."""
        taken = self.take(length)
        self.position -= length
        return taken

    def number(self, length: int) -> int:
        """An unsigned big-endian integer of ``length`` bytes."""
        return int.from_bytes(self.take(length), "big")

    def counted(self) -> bytes:
        """A string behind its one-byte length."""
        return bytes(self.take(self.number(1)))


def text(raw: bytes) -> str:
    """A name off the wire; bytes that are not UTF-8 survive as surrogates (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")
