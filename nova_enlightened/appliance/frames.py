# SPDX-License-Identifier: Apache-2.0
"""zstd frames (RFC 8878) whose size is known before they are opened, and columns of numbers.

A frame of a few bytes may unfold to gigabytes. So each is opened only when its header says the
size its reader expects, and nothing past that size is ever allocated.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from nova_enlightened.exception import ApplianceError

MAX_WINDOW: Final = 1 << 27
"""Bytes of history a frame may ask its reader to keep: zstd's own limit without ``--long``."""


def compress(data: bytes, level: int = 3) -> bytes:
    """One frame, with the size of `data` in its header."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)


def decompress(
    frame: bytes | memoryview,
    size: int,
    decompressor: zstandard.ZstdDecompressor | None = None,
) -> bytes:
    """The content of a frame, which is exactly `size` bytes.

    :param decompressor: one of this thread's own, to be spared the making of one.
    :raises ApplianceError: not a frame, of another size, damaged, or with bytes behind it.
    """
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told != size:
            raise ApplianceError(f"a zstd frame for {size} bytes says that it holds {told}")
        opener = decompressor or zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        content = opener.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ApplianceError(f"zstd frame: {error}") from error
    if len(content) != size:
        raise ApplianceError(f"a zstd frame for {size} bytes holds {len(content)}")
    return content


def column(values: npt.NDArray[Any], dtype: str) -> bytes:
    """Numbers of one kind as bytes, all lowest bytes first, then all second lowest, and so on:
    small numbers then compress to almost nothing.

    :param dtype: of the file, such as ``<u4``.
    """
    raw = np.ascontiguousarray(values, dtype)
    return raw.view(np.uint8).reshape(-1, raw.itemsize).T.tobytes()


class Columns:
    """Reads columns off a buffer, in the order they were written.

    :param data: as long as its reader has checked it must be.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def next(self, count: int, dtype: str) -> npt.NDArray[Any]:
        """`count` numbers, in memory of their own."""
        size = np.dtype(dtype).itemsize
        planes = np.frombuffer(self._data, np.uint8, count * size, self._at)
        self._at += count * size
        return np.ascontiguousarray(planes.reshape(size, count).T).reshape(-1).view(dtype)


def delta(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Each number less the one before it, modulo the width of `dtype`, an unsigned one."""
    wide = np.asarray(values, dtype)
    steps = wide.copy()
    steps[1:] -= wide[:-1]
    return steps


def undelta(steps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What `delta` was made from: any numbers at all, for steps that came from outside."""
    return np.cumsum(steps, dtype=steps.dtype)
