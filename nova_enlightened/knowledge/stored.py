# SPDX-License-Identifier: Apache-2.0
"""Guest knowledge as a file, for handing it from one process of a host to another.

numpy's .npz without pickles. The guest's own words never get here: they were decoded and
checked before (`snapshot.decode_snapshot`).
"""

import io
import json
import struct
import zipfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import HintError
from nova_enlightened.knowledge.guest_pages import GuestKnowledge, ProcessPages

FORMAT: Final = 1


def dump(known: GuestKnowledge) -> bytes:
    """The file's bytes."""
    header = {
        "format": FORMAT,
        "source": known.source,
        "frames": known.frames,
        "samples": known.samples,
        "taken_at": known.taken_at,
        "processes": [[p.pid, p.name, p.running, p.cpu] for p in known.processes],
    }
    out = io.BytesIO()
    arrays: dict[str, Any] = {
        f"frames{index}": process.frames for index, process in enumerate(known.processes)
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(out, header=text, classes=known.classes, heat=known.heat, **arrays)
    return out.getvalue()


def load(raw: bytes) -> GuestKnowledge:
    """The knowledge in a file; takes thrice the memory of what is in it at most.

    :raises HintError: it is damaged or of another format.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            header = json.loads(_array(archive, "header", np.dtype(np.uint8)).tobytes())
            if header["format"] != FORMAT:
                raise HintError(f"stored knowledge of format {header['format']}, not {FORMAT}")
            return _knowledge(archive, header)
    except _DAMAGES as error:
        raise HintError(f"stored knowledge: {error!r}") from error


_DAMAGES: Final = (
    OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
"""What the standard library raises of archives: it documents only the last."""


def _knowledge(archive: zipfile.ZipFile, header: dict[str, Any]) -> GuestKnowledge:
    frames = int(header["frames"])
    octets = np.dtype(np.uint8)
    classes, heat = (_array(archive, name, octets) for name in ("classes", "heat"))
    if not len(classes) == len(heat) == frames:
        raise HintError(f"stored knowledge of {len(classes)} and {len(heat)} of {frames} frames")
    processes = tuple(
        ProcessPages(
            int(pid),
            str(name),
            bool(running),
            float(cpu),
            _array(archive, f"frames{index}", np.dtype(np.int64)),
        )
        for index, (pid, name, running, cpu) in enumerate(header["processes"])
    )
    return GuestKnowledge(
        str(header["source"]),
        frames,
        classes,
        heat,
        processes,
        int(header["samples"]),
        float(header["taken_at"]),
    )


def _array(archive: zipfile.ZipFile, name: str, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """A line of numbers as `dump` put it there. numpy's own reader believes the shape it reads."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise HintError(f"stored knowledge: {name} is compressed")
    content = archive.read(member)
    begin = 10 + int.from_bytes(content[8:10], "little")
    count = max(0, len(content) - begin) // kind.itemsize
    shape = {"descr": kind.str, "fortran_order": False, "shape": (count,)}
    expected = io.BytesIO()
    np.lib.format.write_array_header_1_0(expected, shape)
    if content[:begin] != expected.getvalue() or len(content) != begin + count * kind.itemsize:
        raise HintError(f"stored knowledge: {name} is no line of {kind}")
    return np.frombuffer(content, kind, count, begin).copy()
