# SPDX-License-Identifier: Apache-2.0
"""The story as values."""

import dataclasses
import json

import pytest

from lab.story import Act, Figure, Mark, Moment, Story, StoryError
from tests.unit.lab_story import example


def test_a_story_survives_json() -> None:
    story = example.story()
    assert Story.from_json(story.to_json()) == story


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', '{"format": 1, "acts": []}', '{"format": 1, "acts": [1]}'],
)
def test_anything_else_is_not_a_story(text: str) -> None:
    with pytest.raises(StoryError):
        Story.from_json(text)


def test_an_unknown_moment_is_refused() -> None:
    fields = json.loads(example.story().to_json())
    fields["acts"][0]["marks"][1]["moment"] = "lunch"
    with pytest.raises(StoryError):
        Story.from_json(json.dumps(fields))


def test_an_act_has_exactly_one_decision() -> None:
    with pytest.raises(StoryError):
        Act("a", "A", (), (Mark(Moment.SWITCHOVER, 1.0),))


def test_a_vm_without_a_full_rate_is_refused() -> None:
    with pytest.raises(StoryError):
        dataclasses.replace(example.vm("web", True, 1.0), full_rate=0.0)


def test_the_span_fits_the_last_mark_of_any_act() -> None:
    first, last = example.story().span
    assert first == -5.0
    assert 12.0 < last <= 16.0


def test_the_ceiling_leaves_room_above_full_rate() -> None:
    assert example.story().ceiling == pytest.approx(1.15)


def test_rows_join_the_figures_of_all_acts() -> None:
    story = example.story()
    lone = dataclasses.replace(
        story.acts[1], figures=(Figure("carried", "carried", 5.0, "MB"), story.acts[1].figures[1])
    )
    rows = dataclasses.replace(story, acts=(story.acts[0], lone)).rows()
    assert [label for label, _ in rows] == [
        "switchover to 90 % of full rate",
        "work lost by both",
        "carried",
    ]
    assert rows[0][1] == (story.acts[0].figures[0], None)
    assert rows[2][1] == (None, lone.figures[0])


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure("k", "l", 1.234, "s"), "1.23 s"),
        (Figure("k", "l", 12.34, "s"), "12.3 s"),
        (Figure("k", "l", 561.2, "MB"), "561 MB"),
        (Figure("k", "l", 60.0, "s", at_least=True), "≥ 60.0 s"),
        (Figure("k", "l", 4.0, ""), "4.00"),
        (Figure("k", "l", None, "s"), "–"),
    ],
)
def test_a_figure_reads_well(figure: Figure, text: str) -> None:
    assert figure.text == text


def test_loss_is_counted_until_recovery() -> None:
    assert example.act("w", "W", 2.3, 12.0).lost_until == 2.3


def test_loss_without_recovery_is_counted_until_given_up() -> None:
    act = Act("w", "W", (), (Mark(Moment.DECISION, 0.0), Mark(Moment.GIVEN_UP, 60.0)))
    assert act.lost_until == 60.0
