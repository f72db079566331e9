# SPDX-License-Identifier: Apache-2.0
"""The page, its charts and the picture."""

import dataclasses
import html.parser
import re
import struct
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import chart, page, palette, picture
from tests.unit.lab_story import example


class Outline(html.parser.HTMLParser):
    """Collects what a page refers to, and whether its elements close."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file() -> None:
    outline = Outline()
    text = page.render(example.story())
    outline.feed(text)
    outline.close()
    assert outline.open == []
    assert outline.references == ["data:,"]
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_shows_figures_decisions_and_versions() -> None:
    text = page.render(example.story())
    for wanted in ("9.10 s", "<li>So.</li>", "QEMU: 7.2", "link: 400 Mbit/s"):
        assert wanted in text


def test_text_cannot_become_markup() -> None:
    story = dataclasses.replace(example.story(), title="</title><script>alert(1)</script>")
    web = dataclasses.replace(story.acts[0].vms[0], name="</script><b>x", unit="<u>")
    act = dataclasses.replace(story.acts[0], vms=(web, story.acts[0].vms[1]))
    text = page.render(dataclasses.replace(story, acts=(act,)))
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    assert "<b>x" not in text
    assert "<u>" not in text


def test_a_chart_is_well_formed_and_names_every_mark() -> None:
    story = example.story()
    root = ElementTree.fromstring(chart.svg(story.acts[0], story))
    texts = {element.text for element in root.iter("text")}
    assert {"decision", "switchover 0.6 s", "recovered 2.3 s", "source freed 12.0 s"} <= texts
    assert {"web leaves", "db stays"} <= texts


def test_a_chart_stays_inside_its_box() -> None:
    story = example.story()
    text = chart.svg(story.acts[1], story)
    numbers = [float(n) for n in re.findall(r"[ML](-?[\d.]+) ", text)]
    assert min(numbers) >= chart.LEFT - 0.1
    assert max(numbers) <= chart.WIDTH - chart.RIGHT + 0.1


def test_the_picture_is_a_png_that_grows_with_the_acts() -> None:
    story = example.story()
    one = picture.draw(dataclasses.replace(story, acts=story.acts[:1]))
    two = picture.draw(story)
    assert one[:8] == two[:8] == b"\x89PNG\r\n\x1a\n"
    assert _height(two) > 1.5 * _height(one)


def _height(png: bytes) -> int:
    return int(struct.unpack(">I", png[20:24])[0])


def test_colours_tell_the_leaving_vm_from_the_staying_ones() -> None:
    vms = (example.vm("a", False, 1), example.vm("b", True, 1), example.vm("c", False, 1))
    colours = palette.colours(vms)
    assert colours[1] == palette.LEAVES
    assert len(set(colours)) == 3


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [(-5.0, 14.0, [-4, -2, 0, 2, 4, 6, 8, 10, 12, 14]), (0.0, 3.0, [0, 1, 2, 3])],
)
def test_ticks_are_round(first: float, last: float, wanted: list[float]) -> None:
    assert chart.ticks(first, last) == wanted


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.3)), max_size=8))
def test_mark_labels_never_cover_each_other(marks: list[tuple[float, float]]) -> None:
    marks.sort()
    places, widths = [place for place, _ in marks], [width for _, width in marks]
    rows = palette.label_rows(places, widths, 0.01)
    for early in range(len(marks)):
        for late in range(early + 1, len(marks)):
            if places[late] < places[early] + widths[early]:
                assert rows[early] > rows[late]
