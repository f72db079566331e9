# SPDX-License-Identifier: Apache-2.0
"""What a store is to those who read from it, and how one is opened."""

import hashlib
import re
import urllib.parse
from typing import Final, Protocol

from nova_enlightened import exception, plugins

NAMESPACE: Final = "nova_enlightened.stores"
OBJECTS: Final = "objects"
"""Below the store's URL: immutable objects, each named by the SHA-256 of its bytes."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class Store(Protocol):
    """Objects by name; all methods may be called by several threads at once.

    Every method raises :exc:`.StoreObjectMissing` where there is no such object, another
    :exc:`.StoreError` for whatever else fails; ``retryable`` says whether it may pass. A method
    has retried already what is worth it at once. What is read is not verified: that is the
    caller's, by digest.
    """

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of an object, at least 1, from `offset`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an object."""
        ...

    def close(self) -> None:
        """Let go of connections; nothing may be read any more."""
        ...


class StoreFactory(Protocol):
    """What is installed under the namespace: makes a store of a URL, without I/O."""

    def __call__(self, url: str) -> Store:
        """:raises ConfigError: the URL is not one of this store's."""
        ...


def object_name(sha256: str) -> str:
    """The name of the object with this digest (hexadecimal, lower case).

    :raises StoreError: that is no SHA-256.
    """
    if not _SHA256.fullmatch(sha256):
        raise exception.StoreRefused(f"{sha256!r} is no SHA-256")
    return f"{OBJECTS}/{sha256[:2]}/{sha256}"


def checked_name(name: str) -> str:
    """`name`, which stays below the store's URL. :raises StoreError: it would not."""
    if not _NAME.fullmatch(name) or any(part.strip(".") == "" for part in name.split("/")):
        raise exception.StoreRefused(f"{name!r} is no name of an object")
    return name


def open_store(url: str) -> Store:
    """The store at `url`; nothing is asked of it yet.

    :raises ConfigError: no store of that scheme is installed, or the URL is not one of its.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    wrong = f"no store for URLs like {url!r} is installed"
    made: Store = plugins.load(NAMESPACE, scheme, wrong)(url)
    return made


def read_object(store: Store, sha256: str, limit: int, length: int | None = None) -> bytes:
    """A whole object, verified.

    :param limit: most bytes to accept, whatever the store says.
    :param length: its size where that is known.
    :raises StoreError: it is missing, larger than `limit` or not what its digest says.
    """
    name = object_name(sha256)
    size = store.size(name) if length is None else length
    if size > limit:
        raise exception.StoreCorrupt(f"object {sha256} has {size} bytes, more than {limit}")
    data = store.read(name, 0, size) if size else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise exception.StoreCorrupt(f"object {sha256} is not what its digest says")
    return data
