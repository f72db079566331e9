# SPDX-License-Identifier: Apache-2.0
"""Pack the agent into one file that any Python 3.6 or later runs.

python3 -m nova_enlightened.guest.pack nova-enlightened-guest.pyz
"""

import io
import os
import sys
import zipfile
from typing import List, Optional

MODULES = (
    "__init__",
    "wire",
    "budget",
    "proc",
    "frames",
    "sources",
    "sampler",
    "clone",
    "port",
    "agent",
)
START = "import sys\n\nfrom nova_enlightened.guest.agent import main\n\nsys.exit(main())\n"
INTERPRETER = b"#!/usr/bin/env python3\n"
NEVER = (1980, 1, 1, 0, 0, 0)
"""The same sources make the same file, byte for byte."""


def packed() -> bytes:
    """The contents of the file."""
    here = os.path.dirname(os.path.abspath(__file__))
    files = {"nova_enlightened/__init__.py": "", "__main__.py": START}
    for name in MODULES:
        with open(os.path.join(here, name + ".py"), encoding="utf-8") as file:
            files["nova_enlightened/guest/%s.py" % name] = file.read()
    whole = io.BytesIO()
    whole.write(INTERPRETER)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, NEVER), files[path], zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def main(arguments: Optional[List[str]] = None) -> int:
    """Write the file named on the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.stderr.write("usage: python3 -m nova_enlightened.guest.pack FILE\n")
        return 2
    with open(given[0], "wb") as file:
        file.write(packed())
    os.chmod(given[0], 0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
