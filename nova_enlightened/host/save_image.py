# SPDX-License-Identifier: Apache-2.0
"""A file that libvirt saved a domain's memory and devices to, opened for reading in any order."""

import bz2
import gzip
import lzma
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

import zstandard

from nova_enlightened import exception
from nova_enlightened.stream import save_file, stored

_COPY: Final = 4 << 20


@dataclass(frozen=True, eq=False)
class SaveImage:
    """An open file; valid as long as the block that opened it.

    :ivar stream: the migration stream, mapped: a page is read when it is looked at.
    """

    header: save_file.SaveHeader
    stream: memoryview
    parts: stored.StoredStream


_OPENERS: Final[dict[str, Callable[[IO[bytes]], Any]]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
    "zstd": zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader,
}


@contextmanager
def opened(path: str, directory: str) -> Iterator[SaveImage]:
    """The file at `path`.

    :param directory: where a compressed one is unpacked to, for as long as it is open.
    :raises CaptureError: it cannot be read, or unpacked.
    :raises CaptureRefused: it is packed in a way that is not known here.
    :raises StreamError: it is damaged, or nothing that libvirt saved.
    """
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(open(path, "rb"))
            header = read_header(file)
            begin = header.stream_begin
            if header.format != "raw":
                packed, begin = file, 0
                file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
                _unpack(packed, header.format, file)
            stream = stack.enter_context(_mapped(file, begin))
        except OSError as error:
            raise exception.CaptureError(f"{path}: {error}") from error
        yield SaveImage(header, stream, stored.read(stream))


def read_header(file: IO[bytes]) -> save_file.SaveHeader:
    """What precedes the stream; the file is left behind it. :raises StreamError: it is damaged."""
    head = file.read(save_file.HEADER_LENGTH)
    return save_file.parse(head + file.read(save_file.header_length(head) - len(head)))


def _unpack(file: IO[bytes], kind: str, target: IO[bytes]) -> None:
    opener = _OPENERS.get(kind)
    if opener is None:
        raise exception.CaptureRefused(
            f"the saved file is of the format {kind!r}, which is not read here. Set "
            "save_image_format and snapshot_image_format to raw in /etc/libvirt/qemu.conf"
        )
    try:
        with opener(file) as source:
            shutil.copyfileobj(source, target, _COPY)
        target.flush()
    except (EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise exception.CaptureError(f"the saved file does not unpack ({kind}): {error}") from error


@contextmanager
def _mapped(file: IO[bytes], begin: int) -> Iterator[memoryview]:
    size = os.fstat(file.fileno()).st_size
    if size <= begin:
        raise exception.StreamError("the saved file ends before its stream", offset=size)
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        with memoryview(mapping) as whole, whole[begin:] as stream:
            yield stream
    finally:
        try:
            mapping.close()
        except BufferError:
            pass  # an array of the caller's still looks at it; it goes with that
