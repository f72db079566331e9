# SPDX-License-Identifier: Apache-2.0
"""What ``capture_streams.py`` records: the guest, and one migration each."""

import dataclasses
from typing import Any

# Real mode, from the reset vector: add one to the first word of every page from 64 KiB to
# 320 KiB, for ever. Reads its code from pc.bios and writes to pc.ram, so faults change blocks.
# Changing CR0.WP empties the TLB: before 10.0, QEMU's TCG does not do so when it collects dirty
# pages and would miss most of ours.
PROGRAM = bytes.fromhex(
    "0f20c0"  # start: mov eax, cr0
    "663500000100"  # xor eax, 0x10000
    "0f22c0"  # mov cr0, eax
    "b80010"  # mov ax, 0x1000
    "8ec0"  # next: mov es, ax
    "26ff060000"  # inc word [es:0]
    "050001"  # add ax, 0x100
    "3d0050"  # cmp ax, 0x5000
    "72f1"  # jb next
    "ebe0"  # jmp start
)
RESET = bytes.fromhex("ea000000f0")  # jmp f000:0000


def firmware() -> bytes:
    """64 KiB: the program at its beginning, the jump at the reset vector."""
    image = bytearray(65536)
    image[: len(PROGRAM)] = PROGRAM
    image[0xFFF0 : 0xFFF0 + len(RESET)] = RESET
    return bytes(image)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One migration to record."""

    name: str
    capabilities: tuple[str, ...] = ()
    postcopy: bool = False
    recover: bool = False
    """Cut every connection during post-copy and resume on new ones."""
    to_file: bool = False
    arguments: tuple[str, ...] = ()
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: int = 0
    """Hold the migration down to ``SLOW`` for that many passes over RAM."""
    keep: int | None = None
    """Keep only that many bytes of each stream: what follows is of no use to a test."""
    versions: tuple[int, ...] = (7, 10)


SLOW = {"max-bandwidth": 1 << 20, "downtime-limit": 1}
FAULTING = {**SLOW, "max-postcopy-bandwidth": 1 << 17}
FAST = {"max-bandwidth": 1 << 30, "downtime-limit": 2000}
SHARED = (
    "-object",
    "memory-backend-file,id=ram0,size=8M,share=on,mem-path={directory}/shared-ram",
    "-machine",
    "memory-backend=ram0",
    "-uuid",
    "5b5f3c24-6ad7-4c3e-9f5c-6e0d40a2c6ff",
)

SCENARIOS = (
    Scenario("precopy"),
    Scenario("precopy-shared", ("x-ignore-shared", "validate-uuid"), arguments=SHARED),
    Scenario("precopy-return-path", ("return-path",)),
    Scenario("precopy-switchover-ack", ("return-path", "switchover-ack"), versions=(10,)),
    Scenario("xbzrle", ("xbzrle",), parameters=SLOW, passes=3),
    Scenario("compress", ("compress",), versions=(7,)),
    Scenario("multifd", ("multifd",), parameters={"multifd-channels": 2}, keep=16384),
    Scenario("mapped-ram", ("mapped-ram",), to_file=True, keep=16384, versions=(10,)),
    Scenario("postcopy", ("postcopy-ram",), postcopy=True, parameters=FAULTING),
    Scenario(
        "postcopy-preempt",
        ("postcopy-ram", "postcopy-preempt"),
        postcopy=True,
        parameters=FAULTING,
    ),
    Scenario("recovery", ("postcopy-ram",), postcopy=True, recover=True, parameters=FAULTING),
    Scenario(
        "recovery-preempt",
        ("postcopy-ram", "postcopy-preempt"),
        postcopy=True,
        recover=True,
        parameters=FAULTING,
    ),
)
