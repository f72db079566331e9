# SPDX-License-Identifier: Apache-2.0
"""Guest knowledge handed from one process to another."""

import io
import zipfile

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.guest_pages import GuestKnowledge, ProcessPages

KNOWN = GuestKnowledge(
    source="soft-dirty",
    frames=4,
    classes=np.array([1, 2, 3, 4], np.uint8),
    heat=np.array([0, 255, 16, 0], np.uint8),
    processes=(ProcessPages(7, "web", True, 0.5, np.array([2, 1], np.int64)),),
    samples=3,
    taken_at=12.5,
)


def test_it_is_the_same_after_the_way() -> None:
    found = stored.load(stored.dump(KNOWN))
    assert (found.source, found.frames, found.samples, found.taken_at) == (
        "soft-dirty", 4, 3, 12.5,
    )  # fmt: skip
    assert found.classes.tolist() == KNOWN.classes.tolist()
    assert found.heat.tolist() == KNOWN.heat.tolist()
    (process,) = found.processes
    assert (process.pid, process.name, process.running, process.cpu) == (7, "web", True, 0.5)
    assert process.frames.tolist() == [2, 1]


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04 not an archive", stored.dump(KNOWN)[:-40]])
def test_a_damaged_file_is_refused(raw: bytes) -> None:
    with pytest.raises(exception.HintError):
        stored.load(raw)


def member(name: str, array: np.ndarray, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The stored knowledge with one array replaced."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(stored.dump(KNOWN))) as archive,
        zipfile.ZipFile(out, "w", compression) as copy,
    ):
        for info in archive.infolist():
            content = io.BytesIO(archive.read(info))
            if info.filename == f"{name}.npy":
                content = io.BytesIO()
                np.lib.format.write_array(content, array)
            copy.writestr(info.filename, content.getvalue())
    return out.getvalue()


def test_classes_of_fewer_frames_than_told_are_refused() -> None:
    with pytest.raises(exception.HintError, match="frames"):
        stored.load(member("classes", np.zeros(3, np.uint8)))


def test_an_array_of_another_kind_is_refused() -> None:
    with pytest.raises(exception.HintError, match="no line"):
        stored.load(member("frames0", np.zeros(2, np.float64)))


def test_an_archive_that_inflates_is_refused() -> None:
    with pytest.raises(exception.HintError, match="compressed"):
        stored.load(member("heat", KNOWN.heat, zipfile.ZIP_DEFLATED))


def test_a_shape_larger_than_the_file_is_refused() -> None:
    raw = stored.dump(KNOWN)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        content = archive.read("heat.npy")
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(raw)) as archive,
        zipfile.ZipFile(out, "w") as copy,
    ):
        for info in archive.infolist():
            lie = content.replace(b"(4,)", b"(4" + b"0" * 14 + b",)")[: len(content)]
            copy.writestr(info, lie if info.filename == "heat.npy" else archive.read(info))
    with pytest.raises(exception.HintError, match="no line"):
        stored.load(out.getvalue())
