# SPDX-License-Identifier: Apache-2.0
"""The scenario on a real Nova, as far as it needs none."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from bench import cloud, registry
from bench.cloud import BLOCKS, NEEDS, PING_PONG, STEADY, Told
from bench.session import QUICK, Session
from lab.errors import LabError
from lab.story import Figure
from lab.way import Way


def told(number: int, way: Way, **figures: float) -> Told:
    act: Any = SimpleNamespace(
        figure=lambda key: Figure(key, key, figures[key], "s") if key in figures else None
    )
    return Told(number, way, act, SimpleNamespace())  # type: ignore[arg-type]


def test_every_measure_is_given_by_an_act_or_counted() -> None:
    ids = {one.id for one in registry.MEASURES if one.scenario == "cloud"}
    assert ids == set().union(*NEEDS.values()) | {PING_PONG, STEADY}
    assert {way for _, ways in BLOCKS for way in ways} == set(NEEDS)


def test_rounds_that_have_only_one_of_both_give_no_ratio() -> None:
    found = [
        told(1, Way.PRECOPY, lost=60.0), told(1, Way.ENLIGHTENED, lost=6.0),
        told(2, Way.PRECOPY, lost=60.0), told(3, Way.ENLIGHTENED, lost=5.0),
    ]  # fmt: skip
    assert cloud.ratios(found, "lost", Way.PRECOPY, over=Way.ENLIGHTENED) == [10.0]


def test_an_act_that_fails_is_noted_and_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def act(running: Any, way: Way, number: int, cap: float) -> Told:
        if way is Way.STOCK:
            raise LabError("no cloud")
        return told(number, way)

    monkeypatch.setattr(cloud, "_act", act)
    session = Session(dataclasses.replace(QUICK, rounds=3), lambda _: None)
    notes: list[str] = []
    running: Any = None
    found = list(cloud._round(running, (Way.STOCK, Way.PRECOPY), 2, session, notes))
    assert [(one.round, one.way) for one in found] == [(2, Way.PRECOPY)]
    assert len(notes) == 1
    assert "no cloud" in notes[0]
