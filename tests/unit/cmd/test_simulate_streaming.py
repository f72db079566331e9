# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from nova_enlightened.appliance import chunks, synthetic
from nova_enlightened.appliance.chunks import ZERO
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.trace import Trace
from nova_enlightened.cmd import simulate

PAGES = 1024
SESSION = ["streaming", "--appliance=session", "--json", "--bandwidth=20", "--seconds=30"]
OBJECT = Object("ab" * 32, 1000)


@pytest.fixture
def appliance(tmp_path):
    """Arguments that name an appliance, its base index and three runs of it."""
    manifest = Manifest(
        name="tiny",
        created="2026-01-01T00:00:00Z",
        machine="pc",
        qemu_version="7.2.22",
        cpu="",
        domain_xml="<domain/>",
        ram_blocks=(("pc.ram", PAGES * 4096),),
        page_sizes=(4096,),
        ram_section_id=2,
        ram_setup_flags=4,
        configuration=b"",
        vm_description="",
        device_state=OBJECT,
        base_index=OBJECT,
        disks=(),
        packs=(),
    )
    base = synthetic.index_of((np.arange(PAGES),), (4,), np.full(PAGES, 1000.0), missing=ZERO)
    (tmp_path / "manifest").write_bytes(manifest.to_bytes())
    (tmp_path / "index").write_bytes(chunks.encode(base))
    names = []
    for number in range(3):
        times = np.arange(100, dtype=np.uint64) * 10_000
        places = ((np.arange(100) * 7 + number) % PAGES).astype(np.uint32)
        names.append(tmp_path / f"{number}.trace")
        run = Trace(manifest.digest, PAGES, 10_000_000, True, times, places)
        names[-1].write_bytes(run.encode())
    return [
        "streaming",
        "--manifest", str(tmp_path / "manifest"),
        "--index", str(tmp_path / "index"),
        *map(str, names),
    ]  # fmt: skip


def test_replays_the_last_run_of_an_appliance_in_every_way(appliance, capsys):
    assert simulate.main([*appliance, "--json"]) == 0
    ways = json.loads(capsys.readouterr().out)["tiny"]
    assert set(ways) == {"whole", "demand", "linear", "faulted", "plan_linear", "plan", "buffered"}
    assert ways["whole"]["faults"] == 0
    assert ways["whole"]["started_s"] == ways["whole"]["complete_s"] > 0
    assert ways["demand"]["complete_s"] is None


def test_compares_made_up_appliances_in_tables(capsys):
    assert (
        simulate.main(["streaming", "--appliance", "service", "--way", "plan", "--seconds=6"]) == 0
    )
    printed = capsys.readouterr().out
    assert "service" in printed
    assert "plan" in printed


def test_the_plan_beats_the_linear_order(capsys):
    assert simulate.main([*SESSION, "--way=plan", "--way=linear"]) == 0
    ways = json.loads(capsys.readouterr().out)["session"]
    assert ways["plan"]["stall_s"] < ways["linear"]["stall_s"] / 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bandwidth", "0"],
        ["--connections", "0"],
        ["--runs", "0"],
        ["--index", "x"],
        ["--manifest", "/nonexistent", "--index", "x", "y", "z"],
    ],
    ids=" ".join,
)
def test_says_what_is_wrong_with_its_arguments(arguments, capsys):
    assert simulate.main(["streaming", *arguments]) == 2
    assert "nova-enlightened-simulate: " in capsys.readouterr().err


def test_refuses_fewer_than_two_traces(appliance, capsys):
    assert simulate.main(appliance[:-2]) == 2
    assert "two traces" in capsys.readouterr().err


def test_refuses_a_trace_of_another_appliance(appliance, tmp_path, capsys):
    empty = np.empty(0)
    other = Trace("cd" * 32, PAGES, 0, True, empty.astype(np.uint64), empty.astype(np.uint32))
    (tmp_path / "other").write_bytes(other.encode())
    assert simulate.main([*appliance, str(tmp_path / "other")]) == 2
    assert "another appliance" in capsys.readouterr().err
