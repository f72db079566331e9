# SPDX-License-Identifier: Apache-2.0
"""What the threat model refers to is there."""

import pathlib
import re

import pytest

from tests.fuzz.targets import TARGETS

TOP = pathlib.Path(__file__).parents[3]
PAGE = (TOP / "doc" / "source" / "threat-model.rst").read_text()
QUOTED = sorted(set(re.findall(r"``([^`]+)``", PAGE)))
FILES = [name for name in QUOTED if re.fullmatch(r"[\w/]+\.py", name)]
TESTS = [name for name in QUOTED if re.fullmatch(r"test_\w+?(_?\.\.\.)?", name)]
DEFINED = {
    name
    for path in (TOP / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


def test_something_is_referred_to() -> None:
    assert len(FILES) > 10
    assert len(TESTS) > 15


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_named_is_there(name: str) -> None:
    tops = (TOP, TOP / "tests", TOP / "tests" / "functional", TOP / "nova_enlightened")
    assert any((top / name).is_file() for top in tops)


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_is_named_is_there(name: str) -> None:
    begin = name.removesuffix("...")
    found = [test for test in DEFINED if test.startswith(begin)]
    assert found if name != begin else name in DEFINED


@pytest.mark.parametrize("name", [name for name in QUOTED if name in TARGETS])
def test_a_target_that_is_named_is_fuzzed_and_unbroken(name: str) -> None:
    assert not TARGETS[name].findings()
