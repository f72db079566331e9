# SPDX-License-Identifier: Apache-2.0
"""Reading stores: a directory, and HTTP servers that do not do what they should."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova_enlightened import exception
from nova_enlightened.transfer.stores import open_store, read_object
from nova_enlightened.transfer.stores.http import HttpStore, Patience
from tests.functional.stored_appliance import Server, put, served

HASTE = Patience(attempts=3, pause_s=0.01, longest_s=0.01, silence_s=0.3, slowest=1e6)
DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "one").write_bytes(DATA)
    with served(tmp_path) as started:
        yield started


@pytest.fixture
def store(server: Server) -> Iterator[HttpStore]:
    made = HttpStore(server.url, HASTE)
    yield made
    made.close()


def test_a_range_is_read(store: HttpStore) -> None:
    assert store.read("objects/one", 100, 50) == DATA[100:150]


def test_the_size_is_told(store: HttpStore) -> None:
    assert store.size("objects/one") == len(DATA)


def test_a_connection_is_kept(store: HttpStore, server: Server) -> None:
    for offset in range(20):
        store.read("objects/one", offset, 10)
    assert len(server.connections) == 1


def test_threads_read_at_once(store: HttpStore) -> None:
    found: dict[int, bytes] = {}

    def read(number: int) -> None:
        found[number] = store.read("objects/one", number * 10, 10)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: DATA[number * 10 : number * 10 + 10] for number in range(16)}


@pytest.mark.parametrize("misdeed", ["500", "truncated", "slow"])
def test_what_passes_is_tried_again(store: HttpStore, server: Server, misdeed: str) -> None:
    server.misbehave(misdeed, times=2)
    assert store.read("objects/one", 100, 1000) == DATA[100:1100]
    assert server.requests == 3


@pytest.mark.parametrize("misdeed", ["500", "truncated", "slow"])
def test_what_does_not_pass_is_told_with_object_and_range(
    store: HttpStore, server: Server, misdeed: str
) -> None:
    server.misbehave(misdeed)
    with pytest.raises(exception.StoreError, match=r"bytes 100-1099 of .*objects/one") as caught:
        store.read("objects/one", 100, 1000)
    assert caught.value.retryable
    assert server.requests == HASTE.attempts


def test_a_missing_object_is_not_asked_for_again(store: HttpStore, server: Server) -> None:
    with pytest.raises(exception.StoreObjectMissing, match="objects/two") as caught:
        store.read("objects/two", 0, 10)
    assert not caught.value.retryable
    assert server.requests == 1


def test_a_server_that_ignores_ranges_is_refused(store: HttpStore, server: Server) -> None:
    server.misbehave("ignores ranges")
    with pytest.raises(exception.RangesIgnored, match="ignores byte ranges"):
        store.read("objects/one", 100, 50)
    assert server.requests == 1


def test_a_server_that_ignores_ranges_may_send_a_whole_object(
    store: HttpStore, server: Server
) -> None:
    server.misbehave("ignores ranges")
    assert store.read("objects/one", 0, len(DATA)) == DATA


def test_another_range_than_asked_for_is_refused(store: HttpStore, server: Server) -> None:
    server.misbehave("another range")
    with pytest.raises(exception.RangesIgnored):
        store.read("objects/one", 100, 50)


def test_an_object_that_is_too_short_is_refused(store: HttpStore) -> None:
    with pytest.raises(exception.StoreCorrupt):
        store.read("objects/one", len(DATA) - 10, 20)


def test_a_range_behind_the_end_is_refused(store: HttpStore) -> None:
    with pytest.raises(exception.StoreCorrupt, match="416"):
        store.read("objects/one", len(DATA) + 10, 20)


def test_a_server_that_is_gone_is_told(server: Server) -> None:
    gone = HttpStore("http://127.0.0.1:9", HASTE)
    with pytest.raises(exception.StoreError, match=r"127\.0\.0\.1:9"):
        gone.read("objects/one", 0, 1)
    gone.close()


def test_no_name_leads_out_of_the_store(store: HttpStore) -> None:
    with pytest.raises(exception.StoreRefused):
        store.read("objects/../../secret", 0, 1)


def test_a_directory_is_a_store(tmp_path: Path) -> None:
    item = put(tmp_path, DATA)
    store = open_store(f"file://{tmp_path}")
    assert read_object(store, item.sha256, 1 << 20) == DATA


def test_an_object_larger_than_its_limit_is_not_read(tmp_path: Path) -> None:
    item = put(tmp_path, DATA)
    with pytest.raises(exception.StoreCorrupt, match="more than 10"):
        read_object(open_store(f"file://{tmp_path}"), item.sha256, 10)


def test_an_object_that_was_changed_is_refused(tmp_path: Path) -> None:
    item = put(tmp_path, DATA)
    path = next(path for path in tmp_path.rglob(item.sha256))
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(exception.StoreCorrupt, match="digest"):
        read_object(open_store(f"file://{tmp_path}"), item.sha256, 1 << 20)


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(exception.StoreCorrupt):
        open_store(f"file://{tmp_path}").read("short", 0, 4)


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(exception.StoreObjectMissing):
        open_store(f"file://{tmp_path}").read("none", 0, 4)


@pytest.mark.parametrize("url", ["gopher://x/y", "nothing", "file://otherhost/x", "http://"])
def test_an_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(exception.ConfigError):
        open_store(url)
