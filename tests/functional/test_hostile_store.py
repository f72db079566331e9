# SPDX-License-Identifier: Apache-2.0
"""A store that means harm: it can withhold an appliance, and cannot change a byte of it."""

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.player_appliance import Appliance, read_appliance
from nova_enlightened.transfer.stores import object_name, open_store
from tests.unit.appliance import appliances
from tests.unit.appliance.appliances import Stored

RAM = (("pc.ram", 32 * 4096),)
STATE = b"device state as it was captured " * 20
HARM = b"device state with other contents" * 20


class Published:
    """A small appliance in a directory, and who pins it by its digest."""

    def __init__(self, top: pathlib.Path) -> None:
        self.store = top / "store"
        self.cache = ChunkCache(str(top / "cache"), 1 << 24)
        self.cache.open()
        self.stored = Stored(32, {place: place + 1 for place in range(32)})
        packs = tuple(self.put(self.stored.packs[name]) for name in self.stored.index.packs)
        self.index = self.put(chunks.encode(self.stored.index))
        self.state = self.put(STATE)
        self.manifest: Manifest = appliances.manifest(
            ram_blocks=RAM, page_sizes=(4096,), disks=(), packs=packs,
            base_index=self.index, device_state=self.state,
        )  # fmt: skip
        self.digest = self.put(self.manifest.to_bytes()).sha256

    def put(self, content: bytes) -> Object:
        """Store it as what it is."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.change(sha256, content)
        return Object(sha256, len(content))

    def change(self, sha256: str, content: bytes) -> None:
        """Store it as what it may not be."""
        path = self.store / object_name(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def read(self, plan: str | None = None) -> Appliance:
        return read_appliance(open_store(f"file://{self.store}"), self.cache, self.digest, plan)


@pytest.fixture
def published(tmp_path: pathlib.Path) -> Iterator[Published]:
    made = Published(tmp_path)
    yield made
    made.cache.close()


def test_what_was_published_is_what_is_played(published: Published) -> None:
    assert published.read().device_state == STATE


def test_other_device_state_never_reaches_qemu(published: Published) -> None:
    assert len(HARM) == len(STATE)
    published.change(published.state.sha256, HARM)
    with pytest.raises(exception.StoreCorrupt):
        published.read()


def test_bytes_behind_the_device_state_never_reach_qemu(published: Published) -> None:
    published.change(published.state.sha256, STATE + HARM)
    assert published.read().device_state == STATE


def test_truncated_device_state_never_reaches_qemu(published: Published) -> None:
    published.change(published.state.sha256, STATE[:-1])
    with pytest.raises(exception.StoreError):
        published.read()


def test_another_manifest_is_not_taken_for_the_one_that_was_named(published: Published) -> None:
    other = appliances.manifest(device_state=published.put(HARM))
    published.change(published.digest, other.to_bytes())
    with pytest.raises(exception.StoreCorrupt):
        published.read()


def test_another_index_is_not_taken_for_the_one_that_was_named(published: Published) -> None:
    other = Stored(32, {place: 99 - place for place in range(32)}).index
    published.change(published.index.sha256, chunks.encode(other))
    with pytest.raises(exception.StoreError):
        published.read()


def test_an_index_of_other_packs_is_refused_though_the_manifest_pins_it(
    published: Published,
) -> None:
    other = Stored(32, {place: 99 - place for place in range(32)}).index
    manifest = appliances.manifest(
        ram_blocks=RAM, page_sizes=(4096,), disks=(), packs=published.manifest.packs,
        base_index=published.put(chunks.encode(other)), device_state=published.state,
    )  # fmt: skip
    published.digest = published.put(manifest.to_bytes()).sha256
    with pytest.raises(exception.ChunkIndexError, match="other packs"):
        published.read()


def test_a_plan_of_another_appliance_is_refused(published: Published) -> None:
    plan = PrefetchPlan(
        manifest="ab" * 32, space_places=32, runs=1,
        order=np.array([3, 1], np.uint32), wanted_ms=np.array([0, 5], np.uint32),
        cluster_starts=np.array([0], np.uint32), stored_bytes=0,
        layer=published.index, packs=published.manifest.packs,
    )  # fmt: skip
    with pytest.raises(exception.PrefetchPlanError, match="for appliance"):
        published.read(published.put(plan.encode()).sha256)


@pytest.mark.parametrize("name", ["digest", "state", "index"])
def test_what_is_withheld_is_missing_and_nothing_takes_its_place(
    published: Published, name: str
) -> None:
    known = getattr(published, name)
    sha256 = known if isinstance(known, str) else known.sha256
    (published.store / object_name(sha256)).unlink()
    with pytest.raises(exception.StoreObjectMissing):
        published.read()


def test_a_cache_that_somebody_wrote_to_is_not_believed_either(published: Published) -> None:
    published.cache.keep_object(published.state.sha256, HARM)
    assert published.read().device_state == STATE


def test_a_changed_page_is_not_served(published: Published) -> None:
    index = published.read().layers[-1]
    stored = published.stored.stored(0)
    changed = bytes([stored[0] ^ 1]) + stored[1:]
    assert chunks.unpack(index, 0, stored)
    with pytest.raises(exception.ChunkError):
        chunks.unpack(index, 0, changed)
