# SPDX-License-Identifier: Apache-2.0
"""The ``command-help`` directive: what ``--help`` of one of our commands prints, as it is now."""

import importlib.util
import os
import subprocess
import sys

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class CommandHelp(Directive):
    """``.. command-help:: package.module [subcommand]``."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A literal block, or nothing where this tree has no such command."""
        module, *words = self.arguments
        if importlib.util.find_spec(module) is None:
            return []
        done = subprocess.run(
            [sys.executable, "-m", module, *words, "--help"],
            env=os.environ | {"COLUMNS": "88", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not done.stdout:
            raise self.error(f"{module} --help ended with {done.returncode}: {done.stderr}")
        return [nodes.literal_block(done.stdout, done.stdout, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
