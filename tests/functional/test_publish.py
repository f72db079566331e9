# SPDX-License-Identifier: Apache-2.0
"""Publishing into real stores: a directory, and nginx on loopback."""

import pathlib
import threading
from collections.abc import Iterator

import pytest

from nova_enlightened import exception
from nova_enlightened.host import publishing
from nova_enlightened.host.capture import Capture
from nova_enlightened.host.publishing import Progress
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable
from tests.functional import published as made
from tests.functional import store_servers


@pytest.fixture
def store(tmp_path: pathlib.Path) -> WritableStore:
    return open_writable(f"file://{tmp_path}/store")


@pytest.fixture
def nginx(tmp_path: pathlib.Path) -> Iterator[store_servers.Nginx]:
    with store_servers.nginx(tmp_path / "nginx") as server:
        yield server


@pytest.fixture
def capture(tmp_path: pathlib.Path) -> Capture:
    return made.capture(tmp_path / "capture")


class Counted(Progress):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.expected = self.done = self.wanted = self.there = 0

    def phase(self, what: str, total: int) -> None:
        self.expected += total

    def read(self, count: int) -> None:
        self.done += count

    def to_send(self, count: int) -> None:
        self.wanted += count

    def sent(self, count: int) -> None:
        with self.lock:
            self.there += count


def test_every_place_of_the_store_is_what_was_captured(
    store: WritableStore, capture: Capture
) -> None:
    done = publishing.publish(capture, store, "one")
    assert made.contents(store, done) == made.expected(capture)
    manifest = done.manifest
    assert manifest.disks == (("vda", (4 << 20) + 2048),)
    assert manifest.ram_blocks == (("pc.ram", made.PAGES * 4096),)
    assert "nowhere" not in manifest.domain_xml
    assert manifest.vm_description == '{"configuration": {}, "devices": []}'


def test_progress_ends_where_it_said_it_would(store: WritableStore, capture: Capture) -> None:
    counted = Counted()
    publishing.publish(capture, store, "one", progress=counted)
    assert counted.done == counted.expected > made.PAGES * 4096
    assert counted.there == counted.wanted > 0


def test_published_again_it_is_the_same_and_nothing_is_put(
    nginx: store_servers.Nginx, capture: Capture
) -> None:
    store = open_writable(nginx.url)
    first = publishing.publish(capture, store, "one")
    puts = nginx.requests("PUT")
    assert len(puts) == len(set(puts)) > 4
    assert publishing.publish(capture, store, "one").digest == first.digest
    assert nginx.requests("PUT") == puts
    assert made.contents(store, first) == made.expected(capture)
    store.close()


def test_an_upload_that_broke_off_goes_on_behind_what_is_there(
    nginx: store_servers.Nginx, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packs of 256 KiB, so that there are several.
    builder = publishing.LayerBuilder
    monkeypatch.setattr(
        publishing, "LayerBuilder", lambda *a, **k: builder(*a, **k, pack_limit=1 << 18)
    )
    store = open_writable(nginx.url)

    class Cut(Progress):
        packs = 0

        def to_send(self, count: int) -> None:
            self.packs += 1
            if self.packs == 8:
                raise ConnectionError("the line went dead")

    with pytest.raises(ConnectionError):
        publishing.publish(capture, store, "one", progress=Cut())
    there = nginx.requests("PUT")
    assert len(there) == 7
    assert list(store.entries("appliances/")) == []

    done = publishing.publish(capture, store, "one")
    puts = nginx.requests("PUT")
    assert puts[:7] == there
    assert len(puts) == len(set(puts)) == len(done.manifest.packs) + 5
    assert made.contents(store, done) == made.expected(capture)
    store.close()


def test_a_store_that_fails_for_good_is_an_error_and_nothing_is_listed(
    capture: Capture, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "objects").write_text("in the way")
    store = open_writable(f"file://{tmp_path}/store")
    with pytest.raises(exception.StoreError):
        publishing.publish(capture, store, "one")
    assert list(store.entries("appliances/")) == []


def test_a_child_stores_only_what_its_parent_has_not(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    parent = publishing.publish(capture, store, "one")
    known = publishing.read_parent(store, parent.digest)
    later = made.capture(tmp_path / "later", changed=50)
    child = publishing.publish(later, store, "two", known)
    # 38 of the 50 pages were not zero before either; all 50 are random now.
    assert 50 * 4096 <= child.new_bytes < 52 * 4096
    assert child.manifest.parent == parent.digest
    assert made.contents(store, child) == made.expected(later)


def test_a_damaged_capture_is_refused_before_anything_is_listed(
    store: WritableStore, capture: Capture
) -> None:
    path = pathlib.Path(capture.memory)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(exception.StreamError):
        publishing.publish(capture, store, "one")
    assert list(store.entries("appliances/")) == []


def test_an_upload_that_is_given_up_ends_soon(
    nginx: store_servers.Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_writable(nginx.url)
    began, given_up = threading.Event(), threading.Event()

    class Slow(Progress):
        def sent(self, count: int) -> None:
            began.set()
            assert given_up.wait(30)

    uploads = publishing.Uploads(store, Slow())
    shutdown = uploads._pool.shutdown

    def noted(**how: bool) -> None:
        given_up.set()
        shutdown(**how)

    monkeypatch.setattr(uploads._pool, "shutdown", noted)
    uploads.put(bytes(32 << 20))
    assert began.wait(30)
    uploads.close()
    assert nginx.requests("PUT") == []
    store.close()
