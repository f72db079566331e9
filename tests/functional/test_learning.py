# SPDX-License-Identifier: Apache-2.0
"""Learning from traces, verifying and pruning, in a directory."""

import dataclasses
import pathlib

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.host import learning, publishing, store_upkeep
from nova_enlightened.host.capture import Capture
from nova_enlightened.host.publishing import Progress
from nova_enlightened.transfer.stores import object_name
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable
from tests.functional import published as made

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: pathlib.Path) -> WritableStore:
    return open_writable(f"file://{tmp_path}/store")


@pytest.fixture
def capture(tmp_path: pathlib.Path) -> Capture:
    return made.capture(tmp_path / "capture")


def traces(at: pathlib.Path, done: publishing.Published, *runs: list[int]) -> list[pathlib.Path]:
    places = done.manifest.space().places
    paths = []
    for number, run in enumerate(runs):
        paths.append(at / f"{number}.trace")
        paths[-1].write_bytes(made.trace(done.digest, places, run))
    return paths


def test_a_plan_has_the_places_of_all_runs_in_a_layer_of_its_own(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    disk = done.manifest.space().disk_range("vda").start
    runs = [[1, 901, 2, disk + 256, 4], [1, 2, 77, disk + 257]]
    learned = learning.learn(store, done.digest, traces(tmp_path, done, *runs))
    plan, layer = store_upkeep.read_plan(store, done.manifest, learned.digest)
    touched = sorted({place for run in runs for place in run})
    assert sorted(plan.order.tolist()) == touched
    assert plan.runs == 2
    base = np.frombuffer(made.expected(capture), np.uint8).reshape(-1, 4096)
    found = np.frombuffer(made.laid_out(store, layer), np.uint8).reshape(-1, 4096)
    assert (found[touched] == base[touched]).all()
    # Page 4 is zero: planned, and nowhere stored.
    assert set(np.flatnonzero(layer.stored).tolist()) == set(touched) - {4}


def test_learning_again_of_the_same_gives_the_same_plan(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    files = traces(tmp_path, done, [1, 2, 3], [2, 5])
    first = learning.learn(store, done.digest, files)
    assert learning.learn(store, done.digest, files).digest == first.digest
    assert len(store_upkeep.plans(store, done.digest)) == 1


def test_traces_are_uploaded_only_when_shared(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    files = traces(tmp_path, done, [1, 2, 3], [2, 5])
    learning.learn(store, done.digest, files)
    assert store_upkeep.traces(store, done.digest) == []
    names = learning.share(store, done.digest, files)
    assert learning.share(store, done.digest, files) == names
    assert [entry.name for entry in store_upkeep.traces(store, done.digest)] == sorted(names)
    assert learning.learn(store, done.digest, []).plan.runs == 2


def test_traces_of_no_use_are_skipped_and_named(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    (good,) = traces(tmp_path, done, [1, 2, 3])
    bad, other = tmp_path / "bad.trace", tmp_path / "other.trace"
    bad.write_bytes(good.read_bytes()[:-3])
    other.write_bytes(made.trace("0" * 64, 10, [1]))
    learned = learning.learn(store, done.digest, [bad, other, good])
    assert learned.plan.runs == 1
    assert [line.split(":")[0] for line in learned.skipped] == [str(bad), str(other)]
    with pytest.raises(exception.TraceError, match="enlightened_appliance_traces"):
        learning.learn(store, done.digest, [bad, other])
    with pytest.raises(exception.TraceError):
        learning.share(store, done.digest, [good, bad])
    assert store_upkeep.traces(store, done.digest) == []


# Looking after it.


def test_a_whole_appliance_verifies_and_each_damage_is_named(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    plan = learning.learn(store, done.digest, traces(tmp_path, done, [1, 2, 3]))

    def wrong() -> list[str]:
        return list(store_upkeep.verify(store, done.digest, plan.digest, Progress()))

    assert wrong() == []
    pack = tmp_path / "store" / object_name(done.manifest.packs[0].sha256)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert any("digest" in line and done.manifest.packs[0].sha256 in line for line in wrong())
    pack.write_bytes(whole[:-10])
    assert any(done.manifest.packs[0].sha256 in line for line in wrong())
    pack.write_bytes(whole)
    state = tmp_path / "store" / object_name(done.manifest.device_state.sha256)
    state.unlink()
    assert len(wrong()) == 1


def test_only_what_nobody_needs_is_pruned(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    one = publishing.publish(capture, store, "one")
    plan = learning.learn(store, one.digest, traces(tmp_path, one, [1, 2, 3]))
    known = publishing.read_parent(store, one.digest)
    two = publishing.publish(made.capture(tmp_path / "b", changed=9), store, "two", known)
    other = publishing.publish(made.capture(tmp_path / "c", seed=2), store, "three")
    later = max(entry.modified for entry in store.entries("objects/")) + 1
    assert store_upkeep.prune(store, later, dry=False).objects == ()

    store_upkeep.unlist(store, other.digest)
    would = store_upkeep.prune(store, later, dry=True)
    assert {pack.sha256 for pack in other.manifest.packs} <= set(would.objects)
    assert store_upkeep.prune(store, later - HOUR, dry=False).objects == ()
    assert store_upkeep.prune(store, later, dry=False).objects == would.objects
    with pytest.raises(exception.StoreObjectMissing):
        store.size(object_name(other.manifest.packs[0].sha256))

    # The parent goes, and its packs stay as long as its child needs them.
    store_upkeep.unlist(store, one.digest)
    gone = store_upkeep.prune(store, later, dry=False).objects
    assert one.digest in gone
    assert plan.digest in gone
    assert list(store_upkeep.verify(store, two.digest, None, Progress())) == []


def test_nothing_is_pruned_while_something_listed_cannot_be_read(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    one = publishing.publish(capture, store, "one")
    (tmp_path / "store" / object_name(one.digest)).unlink()
    before = len(list(store.entries("objects/")))
    with pytest.raises(exception.StoreError):
        store_upkeep.prune(store, 1e12, dry=False)
    assert len(list(store.entries("objects/"))) == before


def test_listed_are_all_appliances_the_oldest_first(store: WritableStore, capture: Capture) -> None:
    first = dataclasses.replace(capture, created="2029-01-01T00:00:00+00:00")
    publishing.publish(capture, store, "younger")
    publishing.publish(first, store, "older")
    store.put(f"appliances/{'a' * 64}.json", b"[]", lambda _: None)
    assert [one.name for one in store_upkeep.appliances(store)] == ["older", "younger", "?"]


def test_a_plan_of_another_appliance_is_not_taken(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    one = publishing.publish(capture, store, "one")
    two = publishing.publish(made.capture(tmp_path / "b", seed=2), store, "two")
    plan = learning.learn(store, one.digest, traces(tmp_path, one, [1]))
    assert isinstance(plan.plan, PrefetchPlan)
    with pytest.raises(exception.ApplianceError, match="of appliance"):
        store_upkeep.read_plan(store, two.manifest, plan.digest)


def test_a_plan_by_another_policy_is_another_plan(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = publishing.publish(capture, store, "one")
    files = traces(tmp_path, done, [1, 2, 3], [1, 3])
    usual = learning.learn(store, done.digest, files).plan
    other = learning.learn(store, done.digest, files, policy="first-touch").plan
    assert sorted(other.order.tolist()) == sorted(usual.order.tolist())
    assert other.cluster_starts.size == other.order.size > usual.cluster_starts.size


def test_a_policy_that_is_not_installed_is_said_before_anything_is_read(
    store: WritableStore, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(exception.ConfigError, match="no prefetch policy 'wishes'"):
        learning.learn(store, "00" * 32, [], policy="wishes")
