# SPDX-License-Identifier: Apache-2.0
"""Guest knowledge handed from one process to another."""

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
