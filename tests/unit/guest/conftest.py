# SPDX-License-Identifier: Apache-2.0
"""Guests and samplers for the agent's tests."""

import pathlib
from collections.abc import Callable, Iterator

import pytest

from nova_enlightened.guest.sources import SoftDirty, Source
from tests.unit.guest.fake_proc import FakeProc
from tests.unit.guest.watching import FRAMES, Watching


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeProc:
    """A guest of 64 frames."""
    return FakeProc(tmp_path, FRAMES)


@pytest.fixture
def watch(fake: FakeProc) -> Iterator[Callable[..., Watching]]:
    """Starts samplers that are stopped in the end."""
    made: list[Watching] = []

    def start(source: type[Source] = SoftDirty) -> Watching:
        made.append(Watching(fake, source))
        return made[-1]

    yield start
    for watching in made:
        watching.sampler.stop()
