# SPDX-License-Identifier: Apache-2.0
"""A file that a reader finds as it was or as it is, never half."""

import os
import pathlib


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Put the file in the place of what is there; its owner alone may read it.

    It is whole after a crash of this process, not of the machine: nothing is synced. One writer at
    a time.

    Raises OSError.
    """
    whole = pathlib.Path(path)
    draft = whole.with_name(whole.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    draft.replace(whole)
