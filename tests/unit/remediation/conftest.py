# SPDX-License-Identifier: Apache-2.0
import pathlib
from collections.abc import Iterator

import pytest

from tests.unit.remediation.world import World


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.journal.close()
