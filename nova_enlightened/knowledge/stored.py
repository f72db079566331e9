# SPDX-License-Identifier: Apache-2.0
"""Guest knowledge as a file, for handing it from one process of a host to another.

numpy's .npz without pickles. The guest's own words never get here: they were decoded and
checked before (`snapshot.decode_snapshot`).
"""

import io
import json
import zipfile
from typing import Any, Final

import numpy as np

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
    """The knowledge in a file. :raises HintError: it is damaged or of another format."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format"] != FORMAT:
                raise HintError(f"stored knowledge of format {header['format']}, not {FORMAT}")
            processes = tuple(
                ProcessPages(pid, name, running, cpu, file[f"frames{index}"])
                for index, (pid, name, running, cpu) in enumerate(header["processes"])
            )
            return GuestKnowledge(
                header["source"],
                header["frames"],
                file["classes"],
                file["heat"],
                processes,
                header["samples"],
                header["taken_at"],
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise HintError(f"stored knowledge: {error}") from error
