# SPDX-License-Identifier: Apache-2.0
"""What the agent puts on the port and takes off it: the guest's half of two formats.

The host's half, with the formats' description, is `nova_enlightened.stream.guest_channel` and
`nova_enlightened.knowledge.snapshot`; tests hold the two together. The host is trusted here
as far as a guest has no choice but to, yet a damaged stream must not take the agent down.
"""

import struct
import zlib
from typing import Iterable, List, NamedTuple, Tuple, Union

PORT_NAME = "org.openstack.enlightened.0"
PROTOCOL = 1
MAGIC = b"NEG1"
HEADER = struct.Struct(">4sBBHIII")
COMPRESSED = 1
(HELLO, ARM, ARMED, DISARM, ASK, SNAPSHOT, STATUS, ERROR, PING, PONG, CLONE, CLONED) = range(1, 13)
MAX_REQUEST = 64 << 10

SNAPSHOT_HEAD = struct.Struct(">4sHHdQQHBBH")
PROCESS_HEAD = struct.Struct(">IBIHI")
AREA_HEAD = struct.Struct(">IBBBB")
SNAPSHOT_MAGIC = b"NES1"
SNAPSHOT_VERSION = 1
HISTORY = 8

Request = Tuple[int, int, bytes]


def frame(kind: int, payload: bytes = b"", request: int = 0, compressed: bool = False) -> bytes:
    """One frame around a payload, which is compressed already if it is said to be."""
    flags = COMPRESSED if compressed else 0
    crc = zlib.crc32(payload) & 0xFFFFFFFF
    return HEADER.pack(MAGIC, kind, flags, 0, request, len(payload), crc) + payload


class Requests:
    """Takes requests out of what the port delivers; skips what is not one."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive(self, data: bytes) -> List[Request]:
        """(type, request id, payload) of every whole request so far."""
        self._buffer += data
        found: List[Request] = []
        while True:
            at = self._buffer.find(MAGIC)
            if at < 0:
                self._buffer = self._buffer[-len(MAGIC) + 1 :]
                return found
            self._buffer = self._buffer[at:]
            if len(self._buffer) < HEADER.size:
                return found
            _, kind, flags, _, request, size, crc = HEADER.unpack_from(self._buffer)
            end = HEADER.size + size
            if flags or size > MAX_REQUEST:
                self._buffer = self._buffer[1:]
                continue
            if len(self._buffer) < end:
                return found
            payload = self._buffer[HEADER.size : end]
            if zlib.crc32(payload) & 0xFFFFFFFF != crc:
                self._buffer = self._buffer[1:]
                continue
            self._buffer = self._buffer[end:]
            found.append((kind, request, payload))


class Packed(NamedTuple):
    """Bytes and what they deflate to, so that what stays the same is compressed once."""

    raw: bytes
    deflated: bytes


def pack(raw: bytes) -> Packed:
    """Deflate on its own, ending at a byte and referring to nothing before it."""
    # Level 1: the guest's time is what counts.
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return Packed(raw, squeeze.compress(raw) + squeeze.flush(zlib.Z_FULL_FLUSH))


def compress(parts: Iterable[Union[bytes, Packed]]) -> bytes:
    """One zlib stream (RFC 1950) of all parts, using what is packed already."""
    checksum = 1
    out = [b"\x78\x01"]
    loose: List[bytes] = []
    for part in parts:
        raw = part.raw if isinstance(part, Packed) else part
        checksum = zlib.adler32(raw, checksum)
        if isinstance(part, Packed):
            out += [pack(b"".join(loose)).deflated, part.deflated]
            loose = []
        else:
            loose.append(part)
    # An empty last block with fixed codes ends the deflated data.
    out += [pack(b"".join(loose)).deflated, b"\x03\x00", struct.pack(">I", checksum & 0xFFFFFFFF)]
    return b"".join(out)


def either(*planes: bytes) -> bytes:
    """Byte-wise OR of planes of one length, at the speed of C."""
    whole = int.from_bytes(planes[0], "little")
    for plane in planes[1:]:
        whole |= int.from_bytes(plane, "little")
    return whole.to_bytes(len(planes[0]), "little")


def both(first: bytes, second: bytes) -> bytes:
    """Byte-wise AND of two planes of one length, at the speed of C."""
    whole = int.from_bytes(first, "little") & int.from_bytes(second, "little")
    return whole.to_bytes(len(first), "little")


def area_head(pages: int, read_share: int, samples: int, history: bool) -> bytes:
    """Announces one area: four planes of frame numbers, one of states, maybe one of history."""
    return AREA_HEAD.pack(pages, read_share, min(samples, HISTORY), 0x3F if history else 0x1F, 0)


KEEP_TOP = bytes(value & 0x80 for value in range(256))
OLDER = bytes(value >> 1 | value & 1 for value in range(256))
"""A history one sample later. The oldest bit stays: what was ever in use may be again."""
