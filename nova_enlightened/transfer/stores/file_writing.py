# SPDX-License-Identifier: Apache-2.0
"""Publishing into a directory."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from nova_enlightened.transfer.stores.base import checked_name
from nova_enlightened.transfer.stores.file import FileStore, translated
from nova_enlightened.transfer.stores.writing import PIECE, Entry, Progress

_PARTIAL = ".partial-"


class WritableFileStore(FileStore):
    """A directory that may be written to. A file appears under its name once it is whole."""

    def exists(self, name: str) -> int | None:
        path = self.path(name)
        with translated(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.stat(path).st_size
        return None

    def put(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        path = self.path(name)
        with translated(path):
            directory = os.path.dirname(path)
            os.makedirs(directory, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=directory)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    for at in range(0, len(content), PIECE):
                        piece = content[at : at + PIECE]
                        file.write(piece)
                        progress(len(piece))
                    os.fchmod(descriptor, 0o644)
                    os.fsync(descriptor)
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise

    def entries(self, prefix: str) -> Iterator[Entry]:
        top = self.path(prefix.rstrip("/"))
        for directory, directories, files in os.walk(top):
            directories.sort()
            for file in sorted(files):
                if file.startswith(_PARTIAL):
                    continue
                path = os.path.join(directory, file)
                with translated(path):
                    found = os.stat(path)
                name = checked_name(os.path.relpath(path, self.directory))
                yield Entry(name, found.st_size, found.st_mtime)

    def delete(self, name: str) -> None:
        path = self.path(name)
        with translated(path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)
