# SPDX-License-Identifier: Apache-2.0
"""Where appliances lie: immutable objects read by byte ranges.

A store is chosen by the scheme of its URL, under the stevedore namespace
``nova_enlightened.stores``.
"""

from nova_enlightened.transfer.stores.base import (
    OBJECTS,
    Store,
    StoreFactory,
    object_name,
    open_store,
    read_object,
)

__all__ = ["OBJECTS", "Store", "StoreFactory", "object_name", "open_store", "read_object"]
