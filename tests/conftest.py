# SPDX-License-Identifier: Apache-2.0
"""What has to be chosen before any test imports oslo.messaging: native threads, as in services.

And that processes, and QEMUs under emulation, share two processors with all that watches them: a
case with real ones that fails is tried once more, and counted as rerun. Failing twice is failing.
"""

from pathlib import Path

import pytest
from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

HERE = Path(__file__).parent
REAL = {HERE / "functional", HERE / "integration"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is tried again."""
    for item in items:
        if not REAL.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.flaky(reruns=1))
