# SPDX-License-Identifier: Apache-2.0
"""Where Nova finds the driver, in an environment without Nova."""

import importlib.util
import sys

import pytest

from nova_enlightened.cmd import compute
from nova_enlightened.virt import loading

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nova") is not None, reason="Nova is here: see tests/functional_nova"
)


@pytest.fixture(autouse=True)
def _finders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


def test_the_driver_is_found_under_novas_name_and_nothing_else_is() -> None:
    loading.register()
    (finder,) = [one for one in sys.meta_path if one.__module__ == loading.__name__]
    found = finder.find_spec(loading.MODULE, None)
    assert found is not None
    assert found.origin == str(loading.SHIM)
    assert finder.find_spec("nova", None) is None
    assert finder.find_spec("nova.virt.libvirt", None) is None


def test_registering_again_changes_nothing() -> None:
    loading.register()
    before = list(sys.meta_path)
    loading.register()
    assert sys.meta_path == before


def test_the_command_says_where_nova_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert compute.main() == 1
    assert f"Nova is not installed beside {sys.executable}" in capsys.readouterr().err
