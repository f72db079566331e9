# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration; ``make docs`` turns every warning into an error."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
TOP = HERE.parents[1]
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(TOP))

project = "nova-enlightened"
copyright = "the nova-enlightened authors"
extensions = [
    "oslo_config.sphinxext",
    "stevedore.sphinxext",
    "bench_results",
    "command_help",
]

html_theme = "alabaster"
html_theme_options = {
    "description": "Move a virtual machine fast by knowing what it is executing",
    "fixed_sidebar": True,
    "page_width": "1080px",
}
html_show_sourcelink = False
nitpicky = True


def _has_full_history() -> bool:
    answer = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() == "false"


# reno reads the notes from git's history and fails where that is cut off.
if _has_full_history():
    extensions.append("reno.sphinxext")
else:
    exclude_patterns = ["release-notes.rst"]
    suppress_warnings = ["toc.excluded"]
