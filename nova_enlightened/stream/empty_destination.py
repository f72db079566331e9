# SPDX-License-Identifier: Apache-2.0
"""Answers QEMU's post-copy recovery as a destination would to which no page has come."""

from collections.abc import Mapping
from typing import Final

from nova_enlightened import exception
from nova_enlightened.stream import encode
from nova_enlightened.stream.events import NEED_DATA, Command, EndOfStream, Opaque
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.stream.sections import read_recv_bitmap
from nova_enlightened.stream.states import Channel
from nova_enlightened.stream.wire import TARGET_PAGE_SIZE, CommandKind

_WORD: Final = 64


class EmptyDestination:
    """The destination's part of ``postcopy_do_resume`` (``migration/migration.c`` of QEMU).

    :param blocks: length in bytes of the RAM blocks that may be asked about, by name.
    :ivar resumed: the source has been told all it asks: pages follow.
    :ivar ended: the source has said that no more follows.
    """

    def __init__(self, blocks: Mapping[str, int]) -> None:
        self.resumed = self.ended = False
        self._blocks = blocks
        self._stream = MigrationStream(Channel.RESUMED, blocks=blocks)

    def receive_data(self, data: bytes) -> bytes:
        """What to answer, on the return path.

        :raises StreamError: it is no stream of a recovery, or of other blocks.
        """
        self._stream.receive_data(data)
        said = b""
        while (event := self._stream.next_event()) is not NEED_DATA:
            if isinstance(event, Command):
                said += self._answer(event)
            elif isinstance(event, Opaque):
                raise exception.StreamError(f"{event.reason.value}: {event.detail}")
            self.ended |= isinstance(event, EndOfStream)
        return said

    def _answer(self, asked: Command) -> bytes:
        if asked.kind is CommandKind.RECV_BITMAP:
            block = read_recv_bitmap(asked.data)
            if block not in self._blocks:
                raise exception.StreamError(f"QEMU asks about RAM block {block!r}, which it lacks")
            pages = self._blocks[block] // TARGET_PAGE_SIZE
            return encode.recv_bitmap(block, bytes(-(-pages // _WORD) * (_WORD // 8)))
        if asked.kind is CommandKind.POSTCOPY_RESUME:
            self.resumed = True
            return encode.resume_ack()
        return b""
