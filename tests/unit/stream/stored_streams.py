# SPDX-License-Identifier: Apache-2.0
"""Stored streams made for tests, and the pages they hold."""

import struct
from collections.abc import Sequence

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import Configuration, RamBlock

RAM = RamBlock("pc.ram", 64 * 4096, 4096)
ROM = RamBlock("pc.rom", 4 * 4096, 4096)
BLOCKS = (RAM, ROM)
MACHINE = Configuration("pc-i440fx-7.2")
DEVICE = b"\x04" + struct.pack(">I", 7) + encode.counted("timer") + bytes(8) + b"state"
DESCRIPTION = b'{"configuration": {}, "devices": []}'
XML = "<domain type='qemu'><name>one</name></domain>"


def page(number: int) -> bytes:
    """Contents that tell one page from every other."""
    return struct.pack("<Q", number + 1) * 512


def record(block: str | None, number: int, content: bytes | None) -> bytes:
    """One page, of zeros where there is no content."""
    if content is None:
        return encode.zero_page(number * 4096, block)
    return encode.page_header(number * 4096, block) + content


def part(records: Sequence[bytes], last: bool = False) -> bytes:
    return encode.ram_part(3, last) + b"".join(records) + encode.ram_end() + encode.footer(3)


def start(blocks: Sequence[RamBlock] = BLOCKS, machine: Configuration = MACHINE) -> bytes:
    setup = encode.block_list(blocks, host_page_size=None)
    return (
        encode.header()
        + encode.configuration(machine)
        + encode.ram_start(3)
        + setup
        + encode.ram_end()
        + encode.footer(3)
    )


def ending(device: bytes = DEVICE, description: bytes = DESCRIPTION) -> bytes:
    return device + encode.eof() + encode.vm_description(description)


def whole(*parts: Sequence[bytes]) -> bytes:
    """A stream with these parts of RAM, the last of which ends it."""
    body = [part(records, last=one is parts[-1]) for one in parts for records in (one,)]
    return start() + b"".join(body) + ending()


def saved(stream: bytes, xml: str = XML, compression: int = 0, cookie: str = "") -> bytes:
    """The file that libvirt writes around it."""
    text = xml.encode() + b"\0"
    offset = len(text) if cookie else 0
    body = text + (cookie.encode() + b"\0" if cookie else b"") + bytes(100)
    head = struct.pack("<16s5I56x", b"LibvirtQemudSave", 2, len(body), 1, compression, offset)
    return head + body + stream
