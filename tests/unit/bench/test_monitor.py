# SPDX-License-Identifier: Apache-2.0
"""What watching costs, as a scenario."""

import dataclasses

import pytest

from bench import monitor, registry
from bench.measures import MeasureError
from bench.session import QUICK, Session


def test_the_scenario_gives_every_measure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "WARM_UP_S", 0.0)
    monkeypatch.setattr(monitor, "QUICK_S", 1.5)
    outcome = monitor.monitor(Session(dataclasses.replace(QUICK, rounds=1), lambda text: None))
    ids = {measure.id for measure in registry.chosen(["monitor"])}
    assert set(outcome.values) == ids
    assert outcome.values["monitor_core_percent_100_domains"][0] > 0
    assert outcome.runs[0]["reports"] >= 1


def test_an_agent_that_sees_no_guests_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "WARM_UP_S", 0.0)
    monkeypatch.setattr(monitor.Hypervisor, "getAllDomainStats", lambda *_: [])
    with pytest.raises(MeasureError, match="not 2"):
        monitor.listened(1.5, 2)
