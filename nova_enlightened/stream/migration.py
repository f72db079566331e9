# SPDX-License-Identifier: Apache-2.0
"""Observes QEMU's forward migration stream while somebody else carries it.

:class:`MigrationStream` is told every byte of one connection and reports what the bytes mean.
It changes nothing and keeps nothing but the start of an element that is not complete yet.
What it does not know makes the stream *opaque*: one :class:`Opaque` event, then bytes are only
counted. Sources: ``migration/savevm.c`` and ``migration/ram.c`` of QEMU 7.2 and 10.0.
"""

from collections.abc import Mapping

from nova_enlightened.exception import StreamError
from nova_enlightened.stream.events import NEED_DATA, Event, NeedData, RamPages
from nova_enlightened.stream.grammar import Grammar, recognise_channel
from nova_enlightened.stream.reader import Incomplete, Refused
from nova_enlightened.stream.states import COMPLETE, Channel, State

__all__ = ["NEED_DATA", "Channel", "MigrationStream", "recognise_channel"]


class MigrationStream:
    """The forward stream of one connection.

    Feed with :meth:`receive_data`, then call :meth:`next_event` until :data:`NEED_DATA`.

    :param channel: what the connection is; None: recognise it by its first four bytes. A
        multifd channel is opaque from its first byte.
    :param ram_section_id: for a resumed stream, the id the first stream gave its RAM section
        (:attr:`ram_section_id`); without it the first section part is taken to be RAM.
    :param blocks: for preempt and resumed streams, name to length in bytes of the RAM blocks, to
        check pages against (:attr:`blocks` of the main stream); without it any name and offset is
        reported as it comes.
    """

    def __init__(
        self,
        channel: Channel | str | None = None,
        *,
        ram_section_id: int | None = None,
        blocks: Mapping[str, int] | None = None,
    ) -> None:
        self._grammar = Grammar(ram_section_id, blocks)
        self._error: StreamError | None = None
        self._tail = bytearray()
        self._want = 0
        if channel is not None:
            try:
                self._grammar.enter(Channel(channel))
            except Refused as refused:
                self._grammar.make_opaque(refused.reason, refused.detail)

    @property
    def channel(self) -> Channel | None:
        """What the connection is, once known; None too if that is refused."""
        return self._grammar.channel

    @property
    def position(self) -> int:
        """Bytes parsed so far; less than were received by the start of a split element."""
        return self._grammar.base

    @property
    def ram_section_id(self) -> int | None:
        """The id of the RAM section, once known."""
        return self._grammar.ram_section_id

    @property
    def blocks(self) -> Mapping[str, int] | None:
        """Length in bytes of every RAM block by name, once known."""
        return self._grammar.blocks

    @property
    def distance(self) -> int:
        """Bytes that have to be read to reach the end of the element begun; 0 between elements.

        An element's length may show only as it is read: ask again.
        """
        if self._grammar.skip:
            return self._grammar.skip
        return self._want - len(self._tail) if self._tail else 0

    @property
    def in_ram(self) -> bool:
        """Whether page records follow."""
        return self._grammar.state is State.RAM

    @property
    def in_package(self) -> bool:
        """Whether the rest of the device state follows, and with it the order to run."""
        return self._grammar.state is State.PACKAGE

    @property
    def block(self) -> str | None:
        """The RAM block named last, which a continued record means."""
        return self._grammar.block

    @property
    def opaque(self) -> bool:
        """Whether the stream is no longer understood."""
        return self._grammar.state is State.OPAQUE

    @property
    def complete(self) -> bool:
        """Whether the connection may end here without anything being missing."""
        grammar = self._grammar
        return grammar.state in COMPLETE and not self._tail and not grammar.skip

    def receive_data(
        self, data: bytes | bytearray | memoryview, *, report_pages: bool = True
    ) -> None:
        """Parse the next bytes of the stream; ``data`` may be reused afterwards.

        Costs about 10 microseconds per MiB of pages plus one for each short run of records.
        After an error the data is ignored.

        :param report_pages: False leaves pages that no other event follows for a later call, or
            for :meth:`unreported`: to report them seldom costs less.
        """
        view = memoryview(data)
        if view.format != "B":
            view = view.cast("B")
        position, end = 0, len(view)
        while position < end and self._error is None:
            position += self._step(view, position, end)
        if report_pages:
            self._grammar.flush_pages()

    def unreported(self) -> list[RamPages]:
        """Take the pages parsed that no event has reported. Take all events before."""
        return self._grammar.take_pages()

    def next_event(self) -> Event | NeedData:
        """The next event, or :data:`NEED_DATA`.

        :raises StreamError: a length in the stream is impossible; raised again on every call.
        """
        if self._grammar.events:
            return self._grammar.events.popleft()
        if self._error is not None:
            raise self._error
        return NEED_DATA

    def end_of_data(self) -> None:
        """Say that the connection has ended.

        :raises StreamError: the stream is cut off; ``offset`` is the number of bytes there were,
            ``section`` where it was cut.
        """
        if self._error is not None:
            raise self._error
        if not self.complete:
            raise StreamError(
                "migration stream cut off",
                offset=self._grammar.base + len(self._tail),
                section=self._grammar.section,
            )

    def _step(self, view: memoryview, position: int, end: int) -> int:
        """Use some of ``view[position:end]``; how many bytes."""
        grammar = self._grammar
        if grammar.state is State.OPAQUE:
            grammar.base += end - position
            return end - position
        if grammar.skip:
            passed = min(grammar.skip, end - position)
            grammar.skipped(passed)
            return passed
        if self._tail:
            taken = min(self._want - len(self._tail), end - position)
            self._tail += view[position : position + taken]
            if len(self._tail) >= self._want:
                # A copy, so that the tail may shrink while nothing refers to it.
                used = self._parse(memoryview(bytes(self._tail)), 0, len(self._tail))
                del self._tail[:used]
                if self.opaque:
                    grammar.base += len(self._tail)
                    self._tail.clear()
            return taken
        used = self._parse(view, position, end)
        if self._want:
            self._tail += view[position + used : end]
            return end - position
        return used

    def _parse(self, view: memoryview, position: int, end: int) -> int:
        """Parse what is complete in ``view[position:end]``; the bytes used.

        ``_want`` is 0 afterwards unless the next element is split: then the bytes it needs.
        """
        grammar = self._grammar
        begin = position
        self._want = 0
        try:
            while position < end and not grammar.skip and grammar.state is not State.OPAQUE:
                position += grammar.parse(view, position, end)
        except Incomplete as lack:
            self._want = lack.want
        except StreamError as error:
            grammar.flush_pages()
            self._error = StreamError(str(error), offset=grammar.base, section=grammar.section)
        return position - begin
