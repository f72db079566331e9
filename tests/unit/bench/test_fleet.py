# SPDX-License-Identifier: Apache-2.0
"""The simulated fleet as a scenario."""

import dataclasses

import pytest

from bench import fleet, registry
from bench.measures import MeasureError
from bench.session import QUICK, Session
from nova_enlightened.contention.evictions import EvictionLimits
from nova_enlightened.contention.fleet import FleetResult
from nova_enlightened.contention.fleet_load import FleetSpec


def test_the_scenario_gives_every_measure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "QUICK", FleetSpec(hosts=40, seconds=60))
    options = dataclasses.replace(QUICK, rounds=2)
    outcome = fleet.fleet(Session(options, lambda text: None))
    ids = {measure.id for measure in registry.chosen(["fleet"])}
    assert set(outcome.values) == ids
    assert {len(values) for values in outcome.values.values()} == {2}
    assert outcome.values["fleet_repeat_moves"] == [0, 0]
    assert [run["round"] for run in outcome.runs] == [1, 2]


@pytest.mark.parametrize("storm", [{"most_at_once": 11}, {"most_per_host": 2}])
def test_a_storm_is_no_result(storm: dict[str, int]) -> None:
    with pytest.raises(MeasureError, match="storm"):
        fleet.check(FleetResult(**storm), EvictionLimits(total=10))


def test_as_many_as_the_limits_allow_is_no_storm() -> None:
    fleet.check(FleetResult(most_at_once=10, most_per_host=1), EvictionLimits(total=10))
