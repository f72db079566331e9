# SPDX-License-Identifier: Apache-2.0
"""The numbers of the NBD protocol, and bounds on what a client may send.

Source: the protocol's specification, ``doc/proto.md`` of the NBD project. All is big endian.
"""

import enum
import struct
from typing import Final

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2

SERVER_GREETING: Final = struct.Struct(">QQH")
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")
EXTENT: Final = struct.Struct(">II")


class TransmissionFlag(enum.IntFlag):
    """What a server says of an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    CAN_MULTI_CONN = 1 << 8


class Option(enum.IntEnum):
    """What a client may ask before it uses an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """Kinds of answers to an option."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) | 1
    ERR_INVALID = (1 << 31) | 3
    ERR_UNKNOWN = (1 << 31) | 6


class Info(enum.IntEnum):
    """Kinds of information on an export."""

    EXPORT = 0
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """Flags of a request that matter to a read-only server."""

    REQ_ONE = 1 << 3


class Chunk(enum.IntEnum):
    """Kinds of structured replies."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) | 1


CHUNK_DONE: Final = 1
"""Flag of the last structured reply to a request."""

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
BASE_ALLOCATION: Final = "base:allocation"
BASE_ALLOCATION_ID: Final = 1


class NbdErrno(enum.IntEnum):
    """Errors a server may answer with."""

    PERM = 1
    IO = 5
    INVAL = 22
    NOTSUP = 95


MAX_OPTION_BYTES: Final = 16 * 1024
"""Data of one option: a name of at most 4096 bytes, and queries for contexts."""
MAX_NAME_BYTES: Final = 4096
"""Name of an export or of a context, as the specification bounds it."""
MAX_OPTIONS: Final = 64
"""Options of one connection: a client that has not begun to use an export by then never will."""
MAX_QUERIES: Final = 64
"""Contexts a client may ask for in one option."""
MAX_REQUEST_BYTES: Final = 32 << 20
"""Data of one request: the most a client may expect to work where no other limit is told."""
