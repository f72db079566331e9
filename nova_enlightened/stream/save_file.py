# SPDX-License-Identifier: Apache-2.0
"""What precedes the migration stream in a file that libvirt's ``save`` or a snapshot wrote.

92 bytes: magic (16), then in the byte order of the host that wrote it u32 version, u32 length of
what follows the header, u32 whether the domain ran, u32 compression, u32 where in that the cookie
begins (0: none), 56 unused. Then the domain's XML and the cookie, each ended by a NUL, padded.
Source: ``src/qemu/qemu_saveimage.h`` and ``.c`` of libvirt 9.0 and 11.3.
"""

import dataclasses
import struct
from typing import Final

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import limits

HEADER_LENGTH: Final = 92
MAGIC: Final = b"LibvirtQemudSave"
PARTIAL: Final = b"LibvirtQemudPart"
VERSIONS: Final = (1, 2)
FORMATS: Final = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
"""``save_image_format`` and ``snapshot_image_format`` of qemu.conf, by number."""


@dataclasses.dataclass(frozen=True)
class SaveHeader:
    """:ivar running: whether the domain ran when it was saved.
    :ivar format: one of :data:`FORMATS`: how what follows is compressed.
    :ivar stream_begin: byte of the file where the (compressed) migration stream begins.
    :ivar cookie: XML of libvirt's own, the CPU as the guest saw it in it; empty without.
    """

    xml: str
    cookie: str
    running: bool
    format: str
    stream_begin: int


def header_length(head: bytes) -> int:
    """Bytes in front of the stream, by the first :data:`HEADER_LENGTH` bytes of the file.

    :raises StreamError: not a file that libvirt saved, or one it had not finished.
    """
    return HEADER_LENGTH + _fields(head)[1]


def parse(head: bytes) -> SaveHeader:
    """All in front of the stream, :func:`header_length` bytes.

    :raises StreamError: as there, or a length that does not fit, or an unknown compression.
    """
    _, length, running, compression, cookie_offset = _fields(head)
    body = head[HEADER_LENGTH : HEADER_LENGTH + length]
    if len(body) < length:
        raise StreamError("the saved file is cut off", offset=len(head), section="domain XML")
    if compression >= len(FORMATS):
        raise StreamError(f"the saved file has the unknown compression {compression}")
    if cookie_offset > length:
        raise StreamError(f"a cookie at byte {cookie_offset} of {length}", section="domain XML")
    xml = body[:cookie_offset] if cookie_offset else body
    cookie = body[cookie_offset:] if cookie_offset else b""
    return SaveHeader(
        _text(xml), _text(cookie), bool(running), FORMATS[compression], HEADER_LENGTH + length
    )


def _fields(head: bytes) -> tuple[int, int, int, int, int]:
    magic = head[: len(MAGIC)]
    if magic == PARTIAL:
        raise StreamError("libvirt had not finished saving this file")
    if magic != MAGIC or len(head) < HEADER_LENGTH:
        raise StreamError("not a file that libvirt's save, or a snapshot of memory, wrote")
    fields = struct.unpack_from("<5I", head, len(MAGIC))
    if fields[0] > max(VERSIONS):  # the other byte order, as libvirt finds it out
        fields = struct.unpack_from(">5I", head, len(MAGIC))
    version, length = fields[0], fields[1]
    if version not in VERSIONS:
        raise StreamError(f"saved file of version {version}")
    if not 0 < length <= limits.MAX_SAVE_HEADER:
        raise StreamError(f"{length} bytes of domain XML in the saved file", section="header")
    return fields


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
