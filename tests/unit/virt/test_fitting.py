# SPDX-License-Identifier: Apache-2.0
"""Whether an appliance fits a flavor and a host."""

import dataclasses

import pytest

from nova_enlightened import exception
from nova_enlightened.virt import fitting
from nova_enlightened.virt.fitting import GIB, MIB, Size
from tests.unit.virt.domains import CAPTURED, MACHINE

SAID = {
    "machine": MACHINE,
    "qemu_version": "7.2.22",
    "cpu": "",
    "domain_xml": CAPTURED,
    "disks": [["vda", 3 * GIB]],
}
HAS = Size(2, 2048 * MIB, 3 * GIB)


def test_the_size_is_what_the_captured_domain_has() -> None:
    assert fitting.size_of(fitting.Stored.of(SAID)) == HAS


@pytest.mark.parametrize(
    "flavor, words",
    [
        (dataclasses.replace(HAS, disk=20 * GIB), None),
        (dataclasses.replace(HAS, disk=0), None),  # as large as the image
        (dataclasses.replace(HAS, vcpus=4), "2 vCPUs and the flavor 4"),
        (dataclasses.replace(HAS, memory=4096 * MIB), "2048 MiB of memory and the flavor 4096"),
        (dataclasses.replace(HAS, disk=2 * GIB), "3 GiB and the flavor gives 2"),
        (dataclasses.replace(HAS, ephemeral=GIB), "ephemeral"),
        (dataclasses.replace(HAS, swap=MIB), "swap"),
    ],
)
def test_a_flavor_has_to_be_what_the_guest_has(flavor: Size, words: str | None) -> None:
    why = fitting.misfit(HAS, flavor)
    assert why is None if words is None else words in str(why)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    why = str(fitting.misfit(HAS, Size(1, MIB, GIB)))
    assert why.count(";") == 2


@pytest.mark.parametrize(
    "host, captured, reads",
    [
        (7_002_022, "7.2.22", True),
        (7_002_000, "7.2.22", True),
        (10_000_002, "7.2.22", True),
        (7_001_009, "7.2.0", False),
        (7_002_022, "10.0.2", False),
        (7_002_022, "seven", False),
    ],
)
def test_an_older_qemu_does_not_read_a_newer_ones_state(
    host: int, captured: str, reads: bool
) -> None:
    assert (fitting.older(host, captured) is None) == reads


@pytest.mark.parametrize("mode", ["host-passthrough", "maximum"])
def test_a_cpu_that_is_one_hosts_own_cannot_be_compared(mode: str) -> None:
    assert mode in str(fitting.unverifiable(f'<cpu mode="{mode}"/>'))


def test_a_cpu_with_its_features_named_can() -> None:
    assert fitting.unverifiable('<cpu mode="custom"><model>qemu64</model></cpu>') is None


@pytest.mark.parametrize("cpu", ["<cpu>", "<domain/>"])
def test_what_is_no_cpu_is_refused(cpu: str) -> None:
    with pytest.raises(exception.ManifestError):
        fitting.unverifiable(cpu)


@pytest.mark.parametrize("gone", sorted(SAID))
def test_an_answer_without_a_part_is_refused(gone: str) -> None:
    with pytest.raises(exception.ManifestError, match="no sense"):
        fitting.Stored.of({name: value for name, value in SAID.items() if name != gone})


def test_two_disks_are_refused() -> None:
    stored = fitting.Stored.of({**SAID, "disks": [["vda", GIB], ["vdb", GIB]]})
    with pytest.raises(exception.ManifestError, match="2 disks"):
        fitting.size_of(stored)
