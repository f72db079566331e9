# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg promises is there."""

import configparser
import importlib
import pathlib

import pytest

from nova_enlightened import exception

TOP = pathlib.Path(__file__).parents[2]


def entry_points() -> list[tuple[str, str, str]]:
    """(namespace, name, target) of every entry point in setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(TOP / "setup.cfg")
    found = []
    for namespace, lines in parser["options.entry_points"].items():
        for line in lines.strip().splitlines():
            name, target = line.split("=")
            found.append((namespace, name.strip(), target.strip()))
    return found


@pytest.mark.parametrize(("namespace", "name", "target"), entry_points())
def test_every_entry_point_can_be_loaded(namespace: str, name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "nova":
            raise
        pytest.skip("needs Nova: loaded in tests/functional_nova")
    # Where Nova asks for a module it calls the module's register().
    assert callable(getattr(loaded, attribute or "register"))


def extension_points() -> list[str]:
    """Every namespace of setup.cfg that is this project's own."""
    return sorted(
        {space for space, _, _ in entry_points() if space.startswith("nova_enlightened.")}
    )


def test_the_extension_points_are_these() -> None:
    assert extension_points() == [
        "nova_enlightened.collectors",
        "nova_enlightened.hint_sources",
        "nova_enlightened.ordering_policies",
        "nova_enlightened.prefetch_policies",
        "nova_enlightened.stores",
        "nova_enlightened.victim_policies",
    ]


@pytest.mark.parametrize("namespace", extension_points())
def test_every_extension_point_has_at_least_two_plugins(namespace: str) -> None:
    targets = {target for space, _, target in entry_points() if space == namespace}
    assert len(targets) >= 2


@pytest.mark.parametrize("namespace", extension_points())
def test_every_extension_point_is_described_with_its_plugins(namespace: str) -> None:
    page = (TOP / "doc" / "source" / "extend.rst").read_text()
    assert f"Namespace ``{namespace}``" in page
    assert f".. list-plugins:: {namespace}" in page


@pytest.mark.parametrize("namespace", extension_points())
def test_the_code_asks_for_every_extension_point(namespace: str) -> None:
    code = (path.read_text() for path in (TOP / "nova_enlightened").rglob("*.py"))
    assert any(f'"{namespace}"' in text for text in code)


def test_a_stream_error_names_its_place() -> None:
    error = exception.StreamError("page flags 0x800 unknown", offset=4242, section="ram")
    assert str(error) == "page flags 0x800 unknown (section ram, byte 4242)"
    assert str(exception.StreamError("truncated")) == "truncated"


def test_every_error_says_whether_trying_again_can_help() -> None:
    for value in vars(exception).values():
        if isinstance(value, type):
            assert issubclass(value, exception.EnlightenedError)
            assert isinstance(value.retryable, bool)
