# SPDX-License-Identifier: Apache-2.0
"""The numbers QEMU puts on the wire.

Sources: ``migration/savevm.h``, ``migration/savevm.c``, ``migration/ram.c`` (7.2),
``migration/ram.h`` (10.0), ``migration/migration.h`` and ``migration/multifd.c``. Everything is
big endian.
"""

import enum

FILE_MAGIC = 0x5145564D  # "QEVM"
FILE_VERSION = 3
MULTIFD_MAGIC = 0x11223344
TLS_HANDSHAKE = 0x16

TARGET_PAGE_BITS = 12
TARGET_PAGE_SIZE = 1 << TARGET_PAGE_BITS
FLAGS_MASK = TARGET_PAGE_SIZE - 1

RAM_SECTION_NAME = "ram"
RAM_SECTION_VERSION = 4

RECV_BITMAP_END_MARK = 0x0123456789ABCDEF


class SectionType(enum.IntEnum):
    """The byte that opens each element of the main stream."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class CommandKind(enum.IntEnum):
    """Commands (``MIG_CMD_*``) inside a COMMAND element."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11  # QEMU 10.0 on


class RamFlag(enum.IntFlag):
    """Low bits of the word that opens a RAM record."""

    FULL = 0x001  # obsolete since 2009
    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    HOOK = 0x080  # RDMA only
    COMPRESS_PAGE = 0x100  # gone in QEMU 9.1
    MULTIFD_FLUSH = 0x200  # QEMU 8.1 on


class ReturnPathType(enum.IntEnum):
    """Messages (``MIG_RP_MSG_*``) from destination to source."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7  # QEMU 8.1 on
