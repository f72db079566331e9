# SPDX-License-Identifier: Apache-2.0
"""The table of benchmark results in the documents."""

import importlib.util
import pathlib
import types

import pytest

EXTENSION = pathlib.Path(__file__).parents[3] / "doc/source/_ext/bench_results.py"

ENTRY = {
    "median": 4.1234,
    "min": 3.9,
    "max": 5.0,
    "n": 5,
    "unit": "ratio",
    "bar": 4,
    "better": "higher",
    "versions": {"qemu": "7.2.22", "libvirt": "9.0.0"},
}


@pytest.fixture(scope="module")
def extension() -> types.ModuleType:
    """The Sphinx extension, which is in no package."""
    spec = importlib.util.spec_from_file_location("bench_results", EXTENSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_has_a_cell_for_every_heading(extension: types.ModuleType) -> None:
    cells = extension.row("id", ENTRY)
    expected = ("``id``", "4.12", "3.9", "5", "5", "ratio", "at least 4", "yes")
    assert cells == expected
    assert len(cells) == len(extension.HEADINGS)


@pytest.mark.parametrize(
    ("median", "bar", "better", "expected"),
    [
        (4.0, 4, "higher", "yes"),
        (3.9, 4, "higher", "no"),
        (1.3, 1.3, "lower", "yes"),
        (1.4, 1.3, "lower", "no"),
        (1.4, None, "lower", "–"),
    ],
)
def test_a_bar_is_judged_in_its_direction(
    extension: types.ModuleType, median: float, bar: float | None, better: str, expected: str
) -> None:
    entry = ENTRY | {"median": median, "bar": bar, "better": better}
    assert extension.verdict(entry) == expected


def test_versions_are_named_once(extension: types.ModuleType) -> None:
    assert extension.versions({"a": ENTRY, "b": ENTRY}) == ["libvirt 9.0.0", "qemu 7.2.22"]


def test_the_table_is_a_valid_list_table(extension: types.ModuleType) -> None:
    lines = extension.list_table({"b": ENTRY, "a": ENTRY})
    assert [line for line in lines if line.startswith("* -")] == [
        "* - Measure",
        "* - ``a``",
        "* - ``b``",
    ]
    assert len(lines) == 3 * len(extension.HEADINGS)
