# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-manage appliance`` from end to end, with a Glance on loopback."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, cast

import pytest

from nova_enlightened import exception
from nova_enlightened.cmd.manage import command, context
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.host import captured_disk
from nova_enlightened.host.capture import Capture
from nova_enlightened.host.image_service import STUB
from tests.functional import fake_glance, store_servers
from tests.functional import published as made


@pytest.fixture
def capture(tmp_path: pathlib.Path) -> Capture:
    return made.capture(tmp_path / "capture")


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


def test_the_stub_is_a_boot_sector_that_speaks() -> None:
    assert len(STUB) == 512
    assert STUB[-2:] == b"\x55\xaa"
    # Where the code says that the text begins, it begins.
    assert STUB[STUB[7] :].startswith(b"This image is a stored appliance")


def test_qemu_img_is_named_where_it_is_missing(
    capture: Capture, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_disk, "QEMU_IMG", "qemu-img-that-is-not")
    with pytest.raises(exception.CaptureError, match="qemu-utils"):
        captured_disk.flatten(capture.disks["vda"], "raw", str(tmp_path / "out"))
