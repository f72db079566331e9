# SPDX-License-Identifier: Apache-2.0
"""From samples and one migration to an act."""

import numpy as np
import pytest

from lab import telling
from lab.story import Act, Moment
from lab.way import Migration, Way

ORDERED = 1000.0


def worker(name: str, moves: bool, *stretches: tuple[float, float]) -> telling.Worker:
    """Stretches of (until, rate), from 10 s before the order."""
    times = ORDERED - 10 + 0.02 * np.arange(2001, dtype=np.float64)
    rates = np.zeros(len(times))
    begin = ORDERED - 10.0
    for until, rate in stretches:
        rates[(times >= begin - 1e-9) & (times < ORDERED + until)] = rate
        begin = ORDERED + until
    counts = np.concatenate(([0], np.cumsum(rates[:-1] * 0.02))).astype(np.int64)
    return telling.Worker(name, "pages/s", moves, 1000.0, times, counts)


def told(way: Way = Way.ENLIGHTENED, relay: dict[str, object] | None = None) -> Act:
    moved = Migration(
        way, "web", "host1", "host2", ORDERED, switchover=ORDERED + 1, executing=ORDERED + 1.2,
        source_freed=ORDERED + 12, completed=ORDERED + 12, relay=relay or {},
    )  # fmt: skip
    workers = (
        worker("web", True, (1.0, 500), (3.0, 0), (30.0, 1000)),
        worker("db", False, (1.0, 500), (30.0, 1000)),
    )
    return telling.act(moved, workers, ORDERED + 16, ("because",))


def test_marks_are_told_from_the_decision_on() -> None:
    act = told()
    recovered = act.mark(Moment.RECOVERED)
    assert [mark.moment for mark in act.marks][:2] == [Moment.DECISION, Moment.SWITCHOVER]
    assert recovered is not None
    assert recovered.at == pytest.approx(3.0, abs=0.05)


def test_work_lost_is_told_for_each_and_for_both() -> None:
    act = told()
    lost = {figure.key: figure.value for figure in act.figures}
    assert lost["lost web"] == pytest.approx(2.5, abs=0.05)
    assert lost["lost db"] == pytest.approx(0.5, abs=0.05)
    assert lost["lost"] == pytest.approx(3.0, abs=0.1)
    assert [vm.lost_s for vm in act.vms] == [lost["lost web"], lost["lost db"]]


def test_a_relay_adds_its_figures() -> None:
    state = {
        "link": {"bytes_sent": 5.5e8},
        "pages": {"injected": 10, "faults": 3},
        "fault_latency_s": {"count": 3, "p50": 0.004},
    }
    keys = {figure.key: figure.value for figure in told(relay=state).figures}
    assert keys["carried"] == pytest.approx(550.0)
    assert keys["latency"] == pytest.approx(4.0)
    assert "carried" not in {figure.key for figure in told(Way.STOCK).figures}


def test_a_relay_that_understood_nothing_is_told_with_dashes() -> None:
    keys = {f.key: f.text for f in told(relay={"link": {"bytes_sent": 1e6}}).figures}
    assert keys["injected"] == "–"
    assert keys["latency"] == "–"
