# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest

from nova_enlightened.contention.levels import TARGETS, Bounds, HeldLevel, Holds, Zone
from nova_enlightened.contention.report import Level
from nova_enlightened.exception import ConfigError

NOW = Holds(0.0, 0.0, 0.0)


def test_every_pair_of_level_and_zone_is_in_the_table():
    assert set(TARGETS) == set(itertools.product(Level, Zone))


def test_a_higher_zone_never_asks_for_a_lower_level():
    for level in Level:
        asked = [TARGETS[level, zone] for zone in Zone]
        assert asked == sorted(asked)


def test_a_higher_level_never_makes_a_zone_ask_for_less():
    for zone in Zone:
        asked = [TARGETS[level, zone] for level in Level]
        assert asked == sorted(asked)


@pytest.mark.parametrize(
    "figure, zone",
    [
        (0.0, Zone.CALM),
        (0.06, Zone.NEAR_WARN),
        (0.10, Zone.WARN),
        (0.15, Zone.NEAR_ACT),
        (0.25, Zone.ACT),
        (math.inf, Zone.ACT),
        (math.nan, Zone.CALM),
    ],
)
def test_zones(figure, zone):
    assert Bounds(0.10, 0.25).zone(figure) is zone


def test_close_bounds_leave_no_figure_that_keeps_act_without_being_enough_to_warn():
    assert Bounds(0.20, 0.25, 0.5).zone(0.19) is Zone.NEAR_WARN


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.3, 0.2), (0.1, 0.2, 0.0), (0.1, 0.2, 1.1)])
def test_bounds_that_contradict_themselves_are_refused(bounds):
    with pytest.raises(ConfigError):
        Bounds(*bounds)


@pytest.mark.parametrize("holds", [(-1.0,), (1.0, math.nan)])
def test_hold_times_that_are_none_are_refused(holds):
    with pytest.raises(ConfigError, match="hold time"):
        Holds(*holds)


def test_without_hold_times_a_level_follows_its_zone():
    held = HeldLevel(NOW)
    assert held.observe(Zone.ACT, 0.0) is Level.ACT
    assert held.observe(Zone.CALM, 1.0) is Level.CALM


def test_a_level_is_raised_once_it_was_asked_for_long_enough():
    held = HeldLevel(Holds(1.0, 2.0, 5.0))
    levels = [held.observe(Zone.ACT, float(at)) for at in range(4)]
    assert levels == [Level.CALM, Level.WARN, Level.ACT, Level.ACT]


def test_samples_that_come_a_little_early_do_not_cost_one_more():
    held = HeldLevel(Holds(1.0, 2.0, 5.0))
    assert [held.observe(Zone.ACT, at * 0.95) for at in range(3)][-1] is Level.ACT


def test_one_figure_below_begins_the_hold_time_anew():
    held = HeldLevel(Holds(1.0, 2.0, 5.0))
    for at, zone in enumerate((Zone.ACT, Zone.ACT, Zone.NEAR_ACT, Zone.ACT, Zone.ACT)):
        assert held.observe(zone, float(at)) < Level.ACT


def test_a_figure_that_lies_between_keeps_the_level_for_ever():
    held = HeldLevel(NOW)
    held.observe(Zone.ACT, 0.0)
    assert {held.observe(Zone.NEAR_ACT, float(at)) for at in range(1, 100)} == {Level.ACT}


def test_a_level_is_left_for_the_highest_one_asked_for_meanwhile():
    held = HeldLevel(Holds(0.0, 0.0, 2.0))
    held.observe(Zone.ACT, 0.0)
    levels = [
        held.observe(zone, at) for at, zone in ((1, Zone.CALM), (2, Zone.WARN), (3, Zone.CALM))
    ]
    assert levels == [Level.ACT, Level.ACT, Level.WARN]


def test_forgetting_keeps_the_level_unless_told():
    held = HeldLevel(NOW)
    held.observe(Zone.ACT, 0.0)
    held.forget(level=False)
    assert held.level is Level.ACT
    held.forget(level=True)
    assert held.level is Level.CALM
