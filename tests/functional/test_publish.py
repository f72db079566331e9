# SPDX-License-Identifier: Apache-2.0
"""Publishing into real stores: a directory, and nginx on loopback."""

import dataclasses
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.cmd.manage import command, context
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.host import captured_disk, learning, publishing, store_upkeep
from nova_enlightened.host.capture import Capture
from nova_enlightened.host.image_service import STUB
from nova_enlightened.host.publishing import Progress
from nova_enlightened.transfer.stores import object_name
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable
from tests.functional import fake_glance, store_servers
from tests.functional import published as made

HOUR = 3600.0


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


# Learning.


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


# The command.


class Operator:
    """Gives commands, and reads their JSON."""

    def __init__(
        self,
        tmp_path: pathlib.Path,
        capsys: pytest.CaptureFixture[str],
        glance: fake_glance.Glance,
    ) -> None:
        file = tmp_path / "manage.conf"
        file.write_text("[enlightened_agent]\nhost = one\n")
        self.glance = glance
        self.now = 0.0
        nobody = cast("Any", None)
        conf = context.read([str(file)])
        self.context = Context(
            conf,
            nobody,
            nobody,
            lambda *_: [],
            clock=lambda: self.now,
            connect=lambda: fake_glance.connection(glance),
        )
        self._url = f"file://{tmp_path}/store"
        self._capsys = capsys

    def status(self, *words: str) -> int:
        asked = ["appliance", *words, "--store", self._url]
        return command.run(command.parser().parse_args(asked), self.context)

    def run(self, *words: str) -> Any:
        assert self.status(*words, "--json") == 0
        return json.loads(self._capsys.readouterr().out)


@pytest.fixture
def operator(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    with fake_glance.glance() as glance:
        yield Operator(tmp_path, capsys, glance)


def publish_words(capture: Capture, work: pathlib.Path) -> list[str]:
    disk = f"vda={capture.disks['vda']}"
    words = ["publish", "--save", capture.memory, "--disk", disk, "--name", "one"]
    return [*words, "--work-directory", str(work)]


def test_an_appliance_from_saved_to_pruned(
    operator: Operator, capture: Capture, tmp_path: pathlib.Path
) -> None:
    words = publish_words(capture, tmp_path / "work")
    done = operator.run(*words, "--image", "web", "--traces", "yes")
    assert operator.run(*words, "--image", "web")["manifest"] == done["manifest"]
    assert list((tmp_path / "work").iterdir()) == []
    (image,) = operator.glance.images
    assert image == done["image"]
    properties = operator.glance.images[image]
    assert properties["enlightened_appliance_store"] == f"file://{tmp_path}/store"
    assert properties["enlightened_appliance_manifest"] == done["manifest"]
    assert properties["trait:CUSTOM_ENLIGHTENED_STREAMING"] == "required"
    assert properties["hw_machine_type"] == "pc-i440fx-7.2"
    assert properties["hw_disk_bus"] == "virtio"
    assert properties["enlightened_appliance_traces"] == "no"  # by the second command
    assert (properties["min_ram"], properties["min_disk"]) == (16, 1)
    assert operator.glance.contents[image] == STUB

    shown = operator.run("show", done["manifest"])
    places = shown["memory_bytes"] // 4096 + 1025
    (tmp_path / "runs").mkdir()
    run = made.trace(done["manifest"], places, [1, 2, 3])
    (tmp_path / "runs" / "a.trace").write_bytes(run)
    plan = operator.run("learn", done["manifest"], "--traces", str(tmp_path / "runs"), "--image")
    assert plan["images"] == [image]
    assert properties["enlightened_appliance_plan"] == plan["plan"]
    assert operator.run("show", done["manifest"])["plans"] == [plan["plan"]]
    verified = operator.run("verify", done["manifest"], "--plan", plan["plan"])
    assert verified["wrong"] == []

    operator.now = 1e11
    pruned = operator.run("prune", "--remove", done["manifest"])
    assert pruned["kept"] == 0
    assert operator.run("list") == []


def test_tables_are_for_people(
    operator: Operator,
    capture: Capture,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert operator.status(*publish_words(capture, tmp_path / "work")) == 0
    said = capsys.readouterr()
    assert "MiB" in said.out
    assert "enlightened_appliance_manifest=" in said.err
    (listed,) = operator.run("list")
    for words in (("list",), ("show", listed["digest"]), ("verify", listed["digest"])):
        assert operator.status(*words) == 0
    said = capsys.readouterr()
    assert listed["digest"] in said.out
    assert "All of it is right" in said.err


def test_a_damaged_appliance_fails_to_verify(
    operator: Operator, capture: Capture, tmp_path: pathlib.Path
) -> None:
    done = operator.run(*publish_words(capture, tmp_path / "work"))
    for pack in (tmp_path / "store" / "objects").rglob("*"):
        if pack.is_file() and pack.stat().st_size > 1 << 20:
            pack.write_bytes(pack.read_bytes()[:-1] + b"x")
    assert operator.status("verify", done["manifest"]) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"--disk": "vdb=/x"}, "name each with --disk"),
        ({"--save": "/nowhere"}, "/nowhere"),
        ({"--work-directory": "/proc/x"}, "--work-directory"),
        ({"--parent": "0" * 64}, "0000"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    operator: Operator,
    capture: Capture,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    words: str,
) -> None:
    asked = publish_words(capture, tmp_path / "work")
    for name, value in change.items():
        if name in asked:
            asked[asked.index(name) + 1] = value
        else:
            asked += [name, value]
    assert operator.status(*asked) == 1
    assert words in capsys.readouterr().err


def test_a_store_that_is_away_is_found_out_before_anything_is_captured(
    operator: Operator, capture: Capture, tmp_path: pathlib.Path
) -> None:
    words = publish_words(capture, tmp_path / "work")
    operator_url = f"http://127.0.0.1:{store_servers.free_port()}/store"
    asked = ["appliance", *words, "--store", operator_url]
    assert command.run(command.parser().parse_args(asked), operator.context) == 1
    assert not (tmp_path / "work").exists()


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


def test_the_stub_is_a_boot_sector_that_speaks() -> None:
    assert len(STUB) == 512
    assert STUB[-2:] == b"\x55\xaa"
    # Where the code says that the text begins, it begins.
    assert STUB[STUB[7] :].startswith(b"This image is a stored appliance")


def test_a_plan_of_another_appliance_is_not_taken(
    store: WritableStore, capture: Capture, tmp_path: pathlib.Path
) -> None:
    one = publishing.publish(capture, store, "one")
    two = publishing.publish(made.capture(tmp_path / "b", seed=2), store, "two")
    plan = learning.learn(store, one.digest, traces(tmp_path, one, [1]))
    assert isinstance(plan.plan, PrefetchPlan)
    with pytest.raises(exception.ApplianceError, match="of appliance"):
        store_upkeep.read_plan(store, two.manifest, plan.digest)


def test_qemu_img_is_named_where_it_is_missing(
    capture: Capture, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_disk, "QEMU_IMG", "qemu-img-that-is-not")
    with pytest.raises(exception.CaptureError, match="qemu-utils"):
        captured_disk.flatten(capture.disks["vda"], "raw", str(tmp_path / "out"))
