# SPDX-License-Identifier: Apache-2.0
"""Disks of a capture as raw files, whatever chain of images they were, and what is in them."""

import errno
import os
import subprocess
from collections.abc import Iterator
from typing import Final

from nova_enlightened import exception

QEMU_IMG: Final = "qemu-img"
READ: Final = 4 << 20
"""Bytes read at once; a multiple of every unit."""


def flatten(source: str, image_format: str, target: str) -> None:
    """Copy what an image and its backing files hold into a sparse raw file.

    :param image_format: as QEMU calls it. It is never guessed: a guest that has a raw disk can
        write the header of another format to it, and would have files of the host read.
    :raises CaptureError: qemu-img fails, in its words.
    """
    command = [QEMU_IMG, "convert", "-U", "-f", image_format, "-O", "raw", source, target]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, umask=0o077)
    except FileNotFoundError as error:
        raise exception.CaptureError(f"{QEMU_IMG} is not installed (qemu-utils)") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"exit status {error.returncode}"
        raise exception.CaptureError(f"{source} could not be read: {said}") from error


def size_of(path: str) -> int:
    """Bytes of a raw file or block device. :raises CaptureError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise exception.CaptureError(f"disk {path}: {error}") from error


def filled_parts(path: str, unit: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, contents) of what may hold data, in order: at most `READ` bytes each.

    Offsets are multiples of `unit`, and so are lengths, the last one filled up with zeros.

    :raises CaptureError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            for first, end in _data_ranges(file.fileno(), size):
                yield from _parts(file.fileno(), first - first % unit, min(end, size), unit)
    except OSError as error:
        raise exception.CaptureError(f"disk {path}: {error}") from error


def _data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges that are no holes; holes smaller than 64 KiB are read along."""
    position, begin = 0, -1
    gap = 64 << 10
    while position < size:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                break
            data = position  # a block device that does not tell
        if begin >= 0 and data - position >= gap:
            yield begin, position
            begin = -1
        if begin < 0:
            begin = data
        try:
            position = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError:
            position = size
    if begin >= 0:
        yield begin, position


def _parts(descriptor: int, first: int, end: int, unit: int) -> Iterator[tuple[int, bytes]]:
    while first < end:
        length = min(READ, end - first)
        content = os.pread(descriptor, length, first)
        if not content:
            return
        yield first, content + bytes(-len(content) % unit)
        first += len(content)
