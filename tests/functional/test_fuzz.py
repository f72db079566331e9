# SPDX-License-Identifier: Apache-2.0
"""Every parser under the fuzzer for a moment; ``make fuzz`` is the long run."""

import json
import pathlib

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz import campaign
from tests.fuzz.campaign import Progress
from tests.fuzz.targets import TARGETS, Target

pytest.importorskip("atheris", reason="Atheris has no build for this Python")

EXECUTIONS = 2500
MENDED = [name for name, target in TARGETS.items() if not target.findings()]


def test_a_short_run_breaks_no_parser(tmp_path: pathlib.Path) -> None:
    report = tmp_path / "report.json"
    options = ["--executions", str(EXECUTIONS), "--workers", "2", "--seed", "1"]
    status = fuzz.main([*options, "--state", str(tmp_path), "--report", str(report), *MENDED])
    results = json.loads(report.read_text())
    assert {each["target"]: each["crashes"] for each in results} == {name: [] for name in MENDED}
    assert status == 0
    for each in results:
        assert each["executions"] >= EXECUTIONS
        assert each["coverage"] > 0
        assert 0 < each["growth"] <= 64 << 20


def broken(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Progress:
    """Fuzz a parser of this test's own that does something to one input in some."""
    name = f"broken_{tmp_path.name.rpartition('_')[0][-20:].replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        f"KEPT = []\n\ndef parse(data):\n    if data[:1] > b'A':\n        {does}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(campaign, "INPUT_S", 2)
    run = campaign.Campaign(Target("broken", f"{name}:parse", 64), tmp_path, seed=1)
    run.open()
    return run.run(200_000)


def first_byte(progress: Progress) -> bytes:
    (crash,) = progress.crashes
    return pathlib.Path(crash).read_bytes()[:1]


def test_an_input_that_breaks_a_parser_ends_the_run_and_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = broken(tmp_path, monkeypatch, "raise LookupError")
    assert first_byte(progress) > b"A"
    assert progress.executions < 200_000


def test_an_input_that_hangs_a_parser_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = broken(tmp_path, monkeypatch, "while True: pass")
    assert first_byte(progress) > b"A"


def test_a_parser_that_grows_without_end_is_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = broken(tmp_path, monkeypatch, "KEPT.append(bytes([1]) * (1 << 16))")
    assert progress.crashes
    assert progress.growth > 64 << 20


def test_a_run_goes_on_where_it_ended(tmp_path: pathlib.Path) -> None:
    target = TARGETS["control_line"]
    for executions in (300, 700):
        run = campaign.Campaign(target, tmp_path, seed=1)
        run.open()
        before = run.progress.executions
        assert run.run(executions).executions >= executions
    assert before >= 300
