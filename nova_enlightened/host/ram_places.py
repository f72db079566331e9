# SPDX-License-Identifier: Apache-2.0
"""Where a VM's RAM blocks lie in its QEMU, and what is in them while the VM stands still."""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, qemu_process

# Name, page size, offset, used length, length, and from QEMU 8.1 on the address:
# "pc.ram    4 KiB  0x0... 0x8000000 0x8000000 0x7f... rw"
_BLOCK: Final = re.compile(
    r"^\s*(\S+)\s+\d+ \w*B\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x[0-9a-f]+(?:\s+0x([0-9a-f]+))?",
    re.MULTILINE,
)

ReadMemory = Callable[[int, str, int, int], bytes]


class Place(NamedTuple):
    """Of one block. ``length`` in bytes; ``address`` in QEMU, None where it does not tell."""

    length: int
    address: int | None


def of(domain: Any) -> dict[str, Place]:
    """Of all blocks by name, which only the monitor for people tells.

    :raises LibvirtError: the domain does not run.
    """
    told = qemu_monitor.ask_in_words(domain, "info ramblock")
    return {
        name: Place(int(length, 16), int(address, 16) if address else None)
        for name, length, address in _BLOCK.findall(told)
    }


def reader(domain: Any, read_memory: ReadMemory) -> Callable[[str, int, int], bytes]:
    """Reads the blocks of a domain that stands still: name, first byte, how many.

    It raises LibvirtError where QEMU has ended or its memory may not be read.

    :param read_memory: as :func:`.process_memory.read`.
    :raises LibvirtError: QEMU does not tell where they are.
    """
    uuid = domain.UUIDString()
    pid = qemu_process.pid(domain)
    places = of(domain)
    if any(place.address is None for place in places.values()):
        raise exception.LibvirtError("QEMU at the source does not tell where its memory is")

    def read(block: str, offset: int, length: int) -> bytes:
        place = places.get(block)
        if place is None or place.address is None or offset + length > place.length:
            raise exception.LibvirtError(f"RAM block {block!r} has no {length} bytes at {offset}")
        try:
            return read_memory(pid, uuid, place.address + offset, length)
        except OSError as error:
            raise exception.LibvirtError(f"memory of QEMU at the source: {error}") from error

    return read
