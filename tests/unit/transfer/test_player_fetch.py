# SPDX-License-Identifier: Apache-2.0
"""In which order what was asked of the store is brought."""

import threading
from typing import Any

from nova_enlightened import exception
from nova_enlightened.appliance.fetches import Fetch
from nova_enlightened.transfer.player_fetch import Fetched, Fetchers

WAIT_S = 10.0


class Store:
    """Holds up the first read; has nothing."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.read_offsets: list[int] = []

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.read_offsets.append(offset)
        self.begun.set()
        self.go.wait(WAIT_S)
        raise exception.StoreError("nothing is here")

    def close(self) -> None:
        self.go.set()


class Cache:
    """Empty."""

    def read(self, *_: Any) -> None:
        return None


def ahead(number: int) -> Fetch:
    return Fetch(0, "0" * 64, number, 1, (number,), False)


def fetchers(store: Store, ended: list[Fetched], reserved: bool) -> Fetchers:
    made = Fetchers(store, Cache(), (), 1, ended.append)  # type: ignore[arg-type]
    made._threads = [
        threading.Thread(target=made._work, args=(reserved,), daemon=True) for _ in range(1)
    ]
    made.start()
    return made


def test_what_a_guest_has_come_to_wait_for_overtakes_the_queue() -> None:
    store, ended = Store(), list[Fetched]()
    ours = fetchers(store, ended, reserved=False)
    queued = [ahead(number) for number in range(4)]
    for fetch in queued:
        ours.submit(fetch)
    assert store.begun.wait(WAIT_S)
    assert ours.promote(queued[3])
    store.go.set()
    while len(ended) < 4:
        threading.Event().wait(0.01)
    assert store.read_offsets == [0, 3, 1, 2]
    ours.close()
    ours.join(WAIT_S)


def test_it_is_brought_by_a_thread_that_is_kept_free_for_that() -> None:
    store, ended = Store(), list[Fetched]()
    ours = fetchers(store, ended, reserved=True)
    ours.submit(ahead(0))
    one = ahead(1)
    ours.submit(one)
    assert ours.promote(one)
    assert store.begun.wait(WAIT_S)
    assert store.read_offsets == [1]
    ours.close()
    ours.join(WAIT_S)


def test_what_is_being_brought_already_is_left_to_it() -> None:
    store, ended = Store(), list[Fetched]()
    ours = fetchers(store, ended, reserved=False)
    one = ahead(0)
    ours.submit(one)
    assert store.begun.wait(WAIT_S)
    assert not ours.promote(one)
    ours.close()
    ours.join(WAIT_S)
    assert store.read_offsets == [0]
