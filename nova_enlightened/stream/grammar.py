# SPDX-License-Identifier: Apache-2.0
"""The grammar of the forward stream: one element at a time, wherever it lies in memory."""

import collections
from collections.abc import Callable, Mapping
from typing import Final

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import events as ev
from nova_enlightened.stream import limits, sections
from nova_enlightened.stream.events import OpaqueReason
from nova_enlightened.stream.ram_records import RamRecords
from nova_enlightened.stream.reader import Reader, Refused, text
from nova_enlightened.stream.states import FIRST_INPUT, TRANSITIONS, Channel, Input, State
from nova_enlightened.stream.wire import (
    FILE_MAGIC,
    FILE_VERSION,
    FLAGS_MASK,
    MULTIFD_MAGIC,
    RAM_SECTION_NAME,
    RAM_SECTION_VERSION,
    TARGET_PAGE_BITS,
    TARGET_PAGE_SIZE,
    TLS_HANDSHAKE,
    CommandKind,
    RamFlag,
    SectionType,
)

_LISTEN: Final = bytes((SectionType.COMMAND, 0, CommandKind.POSTCOPY_LISTEN, 0, 0))
_RUN: Final = bytes((SectionType.COMMAND, 0, CommandKind.POSTCOPY_RUN, 0, 0))

_REFUSED_FLAGS: Final[dict[int, OpaqueReason]] = {
    RamFlag.MULTIFD_FLUSH: OpaqueReason.MULTIFD,
    RamFlag.COMPRESS_PAGE: OpaqueReason.COMPRESSED,
    RamFlag.XBZRLE: OpaqueReason.XBZRLE,
    RamFlag.HOOK: OpaqueReason.RDMA_HOOK,
}


def recognise_channel(first: bytes | bytearray | memoryview) -> Channel | None:
    """Which channel of a migration begins with these bytes; None when fewer than 4 are given.

    A main stream starts with its magic number, a multifd channel with another; a resumed one
    with a command; a preempt channel with the 64-bit offset of a page, so with a 0 byte. Anything
    else is called MAIN, which then reports what it is not.
    """
    if len(first) < 4:
        return None
    if int.from_bytes(first[:4], "big") == MULTIFD_MAGIC:
        return Channel.MULTIFD
    return {SectionType.COMMAND: Channel.RESUMED, 0: Channel.PREEMPT}.get(first[0], Channel.MAIN)


class Grammar:
    """Turns elements into events; owns the state, but no bytes.

    ``base`` is the stream position of the element being parsed; the owner of the bytes keeps it.
    After a call of :meth:`parse` with ``skip`` set, that many bytes must be passed over (and
    counted with :meth:`skipped`) before the next.
    """

    def __init__(self, ram_section_id: int | None, blocks: Mapping[str, int] | None) -> None:
        self.state = State.FIRST
        self.channel: Channel | None = None
        self.events: collections.deque[ev.Event] = collections.deque()
        self.base = 0
        self.skip = 0
        self.ram_section_id = ram_section_id
        self._pages = RamRecords(blocks)
        self._configuration: ev.Configuration | None = None
        self._page_sizes = 0  # the OR of all page sizes, as ADVISE gives it
        self._capabilities: tuple[str, ...] = ()
        self._listed: list[ev.RamBlock] = []
        self._unlisted = 0
        self._package_left = 0
        self._package_last = b""

    @property
    def blocks(self) -> Mapping[str, int] | None:
        """Length of every RAM block by name, once known."""
        return self._pages.blocks

    @property
    def block(self) -> str | None:
        """The RAM block named last."""
        return self._pages.block

    @property
    def section(self) -> str:
        """Where in the stream ``base`` is, in words."""
        return self.state.value

    def parse(self, view: memoryview, position: int, end: int) -> int:
        """Parse elements until a skip begins or the stream becomes opaque; the bytes used.

        :raises Incomplete: ``view`` ends inside the first element; nothing was used.
        :raises StreamError: an impossible length, without its place.
        """
        try:
            used = _STEPS[self.state](self, view, position, end)
        except Refused as refused:
            self.make_opaque(refused.reason, refused.detail)
            return 0
        self.base += used
        return used

    def skipped(self, count: int) -> None:
        """``count`` of the ``skip`` bytes have passed."""
        self.base += count
        self.skip -= count
        if self.skip == 0:
            if self._pages.owed:
                self._pages.settle_payload()
            elif self.state is State.DESCRIPTION:
                self._go(Input.DESCRIPTION_END)

    def take_pages(self) -> list[ev.RamPages]:
        """The pages gathered so far, not to be reported any more."""
        return self._pages.take()

    def flush_pages(self) -> None:
        """Report the pages gathered so far."""
        self.events.extend(self._pages.take())

    def make_opaque(self, reason: OpaqueReason, detail: str) -> None:
        """Stop understanding, from ``base`` on."""
        self._emit(ev.Opaque(reason, detail, self.base))
        self.state = State.OPAQUE

    def _emit(self, event: ev.Event) -> None:
        self.flush_pages()
        self.events.append(event)

    def _go(self, given: Input) -> None:
        then = TRANSITIONS.get((self.state, given))
        if then is None:
            raise Refused(OpaqueReason.OUT_OF_PLACE, f"{given.value} in state {self.state.value}")
        self.state = then

    def enter(self, channel: Channel) -> None:
        """Begin the stream of this channel.

        :raises Refused: it is a multifd channel.
        """
        if channel is Channel.MULTIFD:
            raise Refused(OpaqueReason.MULTIFD, "a multifd channel")
        self._go(FIRST_INPUT[channel])
        self.channel = channel

    # Elements of the main stream.

    def _read_first(self, view: memoryview, position: int, end: int) -> int:
        channel = recognise_channel(Reader(view, position, end).peek(4))
        self.enter(channel or Channel.MAIN)
        return 0

    def _read_header(self, view: memoryview, position: int, end: int) -> int:
        if view[position] == TLS_HANDSHAKE:
            raise Refused(OpaqueReason.TLS, "the stream begins with a TLS handshake")
        reader = Reader(view, position, end)
        magic = reader.number(4)
        if magic != FILE_MAGIC:
            raise Refused(OpaqueReason.NOT_A_MIGRATION_STREAM, f"it begins with {magic:#010x}")
        version = reader.number(4)
        if version != FILE_VERSION:
            raise Refused(OpaqueReason.VERSION, f"stream version {version}")
        self._go(Input.MAGIC)
        self._emit(ev.Header(version))
        return 8

    def _read_section(self, view: memoryview, position: int, end: int) -> int:
        kind = view[position]
        if self._configuration is not None and kind != SectionType.SUBSECTION:
            self._close_configuration(self._configuration)
        read = _SECTIONS.get(kind)
        if read is None:
            raise Refused(OpaqueReason.OUT_OF_PLACE, f"element {kind:#04x} in {self.section}")
        reader = Reader(view, position, end)
        reader.take(1)
        read(self, reader)
        return reader.position - position

    def _read_configuration(self, reader: Reader) -> None:
        configuration = sections.read_machine(reader)
        self._go(Input.CONFIGURATION)
        self._configuration = configuration

    def _read_subsection(self, reader: Reader) -> None:
        if self._configuration is None:
            raise Refused(OpaqueReason.OUT_OF_PLACE, f"a subsection in {self.section}")
        more = sections.read_subsection(reader, self._configuration)
        if more is None:
            raise Refused(OpaqueReason.CONFIGURATION, "after the configuration section")
        self._go(Input.SUBSECTION)
        self._configuration = more

    def _close_configuration(self, configuration: ev.Configuration) -> None:
        self._configuration = None
        self._capabilities = configuration.capabilities
        self._emit(configuration)
        if "mapped-ram" in configuration.capabilities:
            raise Refused(OpaqueReason.MAPPED_RAM, "named by the configuration")
        if configuration.page_bits not in (None, TARGET_PAGE_BITS):
            raise Refused(OpaqueReason.PAGE_SIZE, f"{configuration.page_bits} bits")

    def _read_start(self, reader: Reader) -> None:
        section_id = reader.number(4)
        name = text(reader.counted())
        reader.take(4)  # instance id
        version = reader.number(4)
        if name != RAM_SECTION_NAME:
            raise Refused(OpaqueReason.DEVICE_SECTION, f"{name!r}, id {section_id}")
        if version != RAM_SECTION_VERSION:
            raise Refused(OpaqueReason.VERSION, f"RAM section version {version}")
        self._go(Input.RAM_START)
        self.ram_section_id = section_id
        self._emit(ev.SectionStart(SectionType.START, section_id))

    def _read_full(self, reader: Reader) -> None:
        section_id = reader.number(4)
        name = text(reader.counted())
        raise Refused(OpaqueReason.DEVICE_SECTION, f"{name!r}, id {section_id}")

    def _read_part(self, reader: Reader) -> None:
        self._enter_part(SectionType.PART, reader.number(4))

    def _read_end(self, reader: Reader) -> None:
        self._enter_part(SectionType.END, reader.number(4))

    def _enter_part(self, phase: SectionType, section_id: int) -> None:
        if self.ram_section_id is None:
            self.ram_section_id = section_id
        if section_id != self.ram_section_id:
            raise Refused(OpaqueReason.DEVICE_SECTION, f"a part of section {section_id}")
        self._go(Input.RAM_PART)
        self._emit(ev.SectionStart(phase, section_id))

    def _read_footer(self, reader: Reader) -> None:
        section_id = reader.number(4)
        if section_id != self.ram_section_id:
            raise Refused(OpaqueReason.OUT_OF_PLACE, f"a footer of section {section_id}")
        self._go(Input.FOOTER)

    def _read_eof(self, reader: Reader) -> None:
        self._go(Input.EOF)
        self._emit(ev.EndOfStream())

    def _read_command(self, reader: Reader) -> None:
        number, data = sections.read_command(reader)
        if number not in sections.COMMAND_LENGTHS:
            raise Refused(OpaqueReason.COMMAND, f"number {number} with {len(data)} bytes")
        kind = CommandKind(number)
        if kind is CommandKind.ENABLE_COLO:
            raise Refused(OpaqueReason.COLO, "enabled by command")
        self._go(Input.PACKAGE if kind is CommandKind.PACKAGED else Input.COMMAND)
        self._note_command(kind, data)

    def _note_command(self, kind: CommandKind, data: bytes) -> None:
        match kind:
            case CommandKind.PACKAGED:
                self._package_left = int.from_bytes(data, "big")
                self._package_last = b""
                self._emit(ev.Packaged(self._package_left))
                if not self._package_left:
                    self._go(Input.PACKAGE_END)
            case CommandKind.POSTCOPY_RAM_DISCARD:
                discard = sections.read_discard(data)
                for start, length in discard.ranges:
                    self._pages.check(discard.block, start + length)
                self._emit(discard)
            case CommandKind.POSTCOPY_LISTEN:
                self._emit(ev.PostcopyListen())
            case CommandKind.POSTCOPY_RUN:
                self._emit(ev.PostcopyRun())
            case _:
                self._emit(ev.Command(kind, data))
        if kind is CommandKind.POSTCOPY_ADVISE and data:
            self._page_sizes = int.from_bytes(data[:8], "big")
            if int.from_bytes(data[8:], "big") != TARGET_PAGE_SIZE:
                raise Refused(OpaqueReason.PAGE_SIZE, "named by ADVISE")
        elif kind is CommandKind.RECV_BITMAP:
            sections.read_recv_bitmap(data)

    def _read_package(self, view: memoryview, position: int, end: int) -> int:
        """Device state, whose length only the package knows; LISTEN comes first, RUN last."""
        head = min(len(_LISTEN), self._package_left)
        if not self._package_last:
            if bytes(Reader(view, position, end).take(head)) == _LISTEN:
                self._emit(ev.PostcopyListen())
        used = min(self._package_left, end - position)
        last = view[position + max(0, used - len(_RUN)) : position + used]
        self._package_last = (self._package_last + bytes(last))[-len(_RUN) :]
        self._package_left -= used
        if not self._package_left:
            if self._package_last == _RUN:
                self._emit(ev.PostcopyRun())
            self._go(Input.PACKAGE_END)
        return used

    # RAM sections.

    def _read_ram(self, view: memoryview, position: int, end: int) -> int:
        used = self._pages.read(view, position, end)
        if used:
            self._go(Input.PAGE)
            self.skip = self._pages.owed
            return used
        word = int.from_bytes(view[position : position + 8], "big")
        flags, offset = word & FLAGS_MASK, word & ~FLAGS_MASK
        if flags == RamFlag.EOS:
            section_id = None if self.state is State.PREEMPT else self.ram_section_id
            self._go(Input.RAM_END)
            self._emit(ev.SectionEnd(section_id))
        elif flags == RamFlag.MEM_SIZE:
            self._go(Input.BLOCK_LIST)
            if offset > limits.MAX_RAM_BYTES:
                raise StreamError(f"{offset} bytes of RAM")
            self._listed, self._unlisted = [], offset
            self._close_block_list()
        else:
            for refused, reason in _REFUSED_FLAGS.items():
                if flags & refused:
                    raise Refused(reason, f"RAM flags {flags:#x}")
            raise Refused(OpaqueReason.RAM_FLAGS, f"RAM flags {flags:#x}")
        return 8

    def _read_block(self, view: memoryview, position: int, end: int) -> int:
        shape = sections.BlockListShape(
            page_sizes=self._page_sizes != 0,
            addresses="x-ignore-shared" in self._capabilities,
            default_page_size=self._page_sizes & -self._page_sizes or TARGET_PAGE_SIZE,
        )
        reader = Reader(view, position, end)
        block = sections.read_block(reader, self._unlisted, shape)
        if len(self._listed) == limits.MAX_RAM_BLOCKS:
            raise StreamError(f"more than {limits.MAX_RAM_BLOCKS} RAM blocks")
        self._go(Input.BLOCK)
        self._listed.append(block)
        self._unlisted -= block.length
        self._close_block_list()
        return reader.position - position

    def _close_block_list(self) -> None:
        if not self._unlisted:
            self._go(Input.BLOCK_LIST_END)
            self._pages.blocks = {block.name: block.length for block in self._listed}
            self._emit(ev.RamBlocks(tuple(self._listed)))

    def _read_after_end(self, view: memoryview, position: int, end: int) -> int:
        reader = Reader(view, position, end)
        if reader.number(1) != SectionType.VMDESCRIPTION:
            raise Refused(OpaqueReason.OUT_OF_PLACE, "bytes after the end of the stream")
        length = reader.number(4)
        self._go(Input.DESCRIPTION)
        self.skip = length
        if not length:
            self._go(Input.DESCRIPTION_END)
        return 5

    def _refuse_more(self, view: memoryview, position: int, end: int) -> int:
        raise Refused(OpaqueReason.OUT_OF_PLACE, "bytes after the end of the stream")


_Step = Callable[[Grammar, memoryview, int, int], int]

_STEPS: Final[dict[State, _Step]] = {
    State.FIRST: Grammar._read_first,
    State.HEADER: Grammar._read_header,
    State.HEADED: Grammar._read_section,
    State.CONFIGURATION: Grammar._read_section,
    State.SECTIONS: Grammar._read_section,
    State.RAM_ENDED: Grammar._read_section,
    State.RAM_SETUP: Grammar._read_ram,
    State.BLOCK_LIST: Grammar._read_block,
    State.RAM: Grammar._read_ram,
    State.PREEMPT: Grammar._read_ram,
    State.PACKAGE: Grammar._read_package,
    State.ENDED: Grammar._read_after_end,
    State.DONE: Grammar._refuse_more,
}

_SECTIONS: Final[dict[int, Callable[[Grammar, Reader], None]]] = {
    SectionType.EOF: Grammar._read_eof,
    SectionType.START: Grammar._read_start,
    SectionType.PART: Grammar._read_part,
    SectionType.END: Grammar._read_end,
    SectionType.FULL: Grammar._read_full,
    SectionType.SUBSECTION: Grammar._read_subsection,
    SectionType.CONFIGURATION: Grammar._read_configuration,
    SectionType.COMMAND: Grammar._read_command,
    SectionType.FOOTER: Grammar._read_footer,
}
