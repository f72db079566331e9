# SPDX-License-Identifier: Apache-2.0
"""A store in a directory: ``file:///path``."""

import errno
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import checked_name

_PASSING = frozenset({errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE})


class FileStore:
    """Objects as files below a directory, which may be a mounted share.

    :param url: ``file:///absolute/path``.
    :raises ConfigError: it names another host, or no absolute path.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.directory = urllib.parse.unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not self.directory.startswith("/"):
            raise exception.ConfigError(f"{url!r} names no directory of this host")

    def path(self, name: str) -> str:
        """The file of an object. :raises StoreError: the name leads out of the store."""
        return os.path.join(self.directory, checked_name(name))

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = self.path(name)
        with translated(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, length, offset)
                while len(data) < length:
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            finally:
                os.close(descriptor)
        if len(data) < length:
            raise exception.StoreCorrupt(
                f"{path} ends {length - len(data)} bytes before byte {offset + length}"
            )
        return data

    def size(self, name: str) -> int:
        path = self.path(name)
        with translated(path):
            return os.stat(path).st_size

    def close(self) -> None:
        """Nothing is kept open."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """:raises StoreError: in place of what the system says of a file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise exception.StoreObjectMissing(f"{path} is not there") from error
    except OSError as error:
        kind = exception.StoreError if error.errno in _PASSING else exception.StoreRefused
        raise kind(f"{path}: {error}") from error
