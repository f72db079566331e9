# SPDX-License-Identifier: Apache-2.0
"""A start of an appliance becomes an act that picture, page and table can show."""

import pytest

from bench.starts import Link, StartWay, one_start
from lab import demo_streaming, page, picture
from lab.story import Moment, Story
from tests.unit.bench.test_starts import FakeStage


def told(way: StartWay) -> Story:
    start = one_start(FakeStage(), way, Link(100.0, 10.0), "redis", 1, 1001, 60.0)
    act = demo_streaming.act(start, 250_000_000, "requests/s")
    return Story("A start", "now", (act,), origin="order to start", explained="How to read it.")


def test_a_start_has_its_marks_and_figures() -> None:
    (act,) = told(StartWay.PLANNED).acts
    recovered, first = act.mark(Moment.RECOVERED), act.figure("first")
    assert recovered is not None
    assert recovered.at == pytest.approx(2.0, abs=0.1)
    assert first is not None
    assert first.value == pytest.approx(1.1)
    assert act.vms[0].words == "redis starts"


def test_the_page_says_what_time_zero_is_and_how_to_read_it() -> None:
    shown = page.render(told(StartWay.WHOLE))
    assert "seconds from the order to start" in shown
    assert "How to read it." in shown
    assert "leaves" not in shown.partition("<script>")[0].partition("<body>")[2]


def test_a_story_comes_back_from_its_document() -> None:
    story = told(StartWay.PLANNED)
    assert Story.from_json(story.to_json()) == story


def test_the_picture_is_a_png() -> None:
    assert picture.draw(told(StartWay.PLANNED)).startswith(b"\x89PNG")
