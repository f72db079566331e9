# SPDX-License-Identifier: Apache-2.0
"""What a store is to those who publish: objects are put whole, listed and deleted.

A store that can be written to is the same plugin as the one that reads it. Objects under
``objects/`` are named by their content, so what is there need not be put again; everything else has
a name of its own that is never used twice. So no two publishers can get into each other's way.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol, runtime_checkable

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import Store, object_name, open_store

PIECE: Final = 1 << 20
"""Bytes sent between two calls of a progress callback."""

Progress = Callable[[int], None]
"""Called with how many more bytes have been sent; negative when they have to be sent again."""


class Entry(NamedTuple):
    """An object in a listing.

    :ivar name: below the store's URL.
    :ivar modified: seconds since the epoch, by the store's clock; infinity if it does not say.
    """

    name: str
    size: int
    modified: float


@runtime_checkable
class WritableStore(Store, Protocol):
    """Every method raises as those of :class:`.Store` do; :exc:`.StoreRefused` where the store
    does not let this user, or anybody, do that.
    """

    def exists(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        ...

    def put(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        """Store an object, whole or not at all; `content` replaces what has the name."""
        ...

    def entries(self, prefix: str) -> Iterable[Entry]:
        """Objects whose names begin with `prefix`, which ends with a slash, by name."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...


def open_writable(url: str) -> WritableStore:
    """As ``open_store``. :raises ConfigError: stores of this kind can only be read, too."""
    store = open_store(url)
    if not isinstance(store, WritableStore):
        store.close()
        raise exception.ConfigError(f"nothing can be published in a store like {url!r}")
    return store


def put_object(store: WritableStore, content: bytes | memoryview, progress: Progress) -> str:
    """Store an object under the SHA-256 of its content, unless it is there; that SHA-256.

    `progress` is told of bytes that were there as of those that were sent.
    """
    digest = hashlib.sha256(content).hexdigest()
    name = object_name(digest)
    if store.exists(name) == len(content):
        progress(len(content))
    else:
        store.put(name, content, progress)
    return digest
