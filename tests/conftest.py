# SPDX-License-Identifier: Apache-2.0
"""What has to be chosen before any test imports oslo.messaging: native threads, as in services.

And that processes, and QEMUs under emulation, share two processors with all that watches them: a
case with real ones that fails is tried once more unless it says otherwise, and counted as rerun.
Failing each time is failing.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

FAILED = pytest.StashKey[bool]()
"""Of a case: whether this try of it has failed, for fixtures that keep things from case to case."""
REASON = 4000
"""Characters shown of why a case was tried again: the last ones name it."""
HERE = Path(__file__).parent
REAL = {HERE / "functional", HERE / "integration"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is tried again."""
    for item in items:
        if not (REAL.isdisjoint(item.path.parents) or item.get_closest_marker("flaky")):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how a try went, which its fixtures cannot see."""
    report = yield
    if report.when != "teardown":
        item.stash[FAILED] = report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why something was tried again: what passes then may still be wrong."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"tried again: {report.nodeid}", "-")
        terminalreporter.write_line(report.longreprtext[-REASON:])
