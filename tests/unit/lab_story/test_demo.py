# SPDX-License-Identifier: Apache-2.0
"""What the demo writes and prints, without its laboratory."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lab import demo
from lab.story import Story
from tests.unit.lab_story import example


def test_a_story_told_before_can_be_drawn_again(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    told.write_text(example.story().to_json())
    assert demo.main(["--redraw", str(told), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/story.png").read_bytes()[:4] == b"\x89PNG"
    assert "A VM leaves" in (tmp_path / "out/index.html").read_text()
    assert Story.from_json((tmp_path / "out/story.json").read_text()) == example.story()


def test_the_closing_table_has_every_act_and_figure() -> None:
    out = io.StringIO()
    demo.show(Console(file=out, width=120), example.story())
    text = out.getvalue()
    for wanted in ("Enlightened post-copy", "Stock post-copy", "9.10 s", "work lost by both"):
        assert wanted in text


def test_help_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--help"])
    assert ended.value.code == 0
    assert "Needs root" in " ".join(capsys.readouterr().out.split())
