# SPDX-License-Identifier: Apache-2.0
"""Puts the driver where Nova looks for it, where the wheel cannot: Nova is in another directory.

That is so with an editable Nova (DevStack), an editable install of this package, and with Nova
from a distribution's packages.
"""

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from nova_enlightened import exception

MODULE = "nova.virt.enlightened"
SHIM = pathlib.Path(__file__).with_name("shim.py")


class _Finder(MetaPathFinder):
    """Finds `MODULE` and nothing else; it is loaded only when Nova asks for it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        return importlib.util.spec_from_file_location(name, SHIM)


def register() -> None:
    """Make ``nova.virt.enlightened`` importable in this process; again is harmless."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def run_compute() -> None:
    """Run ``nova-compute`` with the driver in reach.

    :raises ConfigError: there is no Nova in this environment.
    """
    register()
    try:
        compute = importlib.import_module("nova.cmd.compute")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "nova":
            raise
        raise exception.ConfigError(f"Nova is not installed beside {sys.executable}") from error
    compute.main()
