# SPDX-License-Identifier: Apache-2.0
"""What a round left behind is told by kind; what went is nothing to tell."""

import dataclasses
import os

from lab import leaks
from lab.leaks import Holdings

BEFORE = Holdings(
    processes={"qemu-system-x86": 2, "libvirtd": 2},
    descriptors={"this process": 20},
    sockets=30,
    namespaces=9,
    files={"libvirt/qemu/N.pid": 2},
    memory={"libvirtd of host1": 50 << 20},
)


def after(**changes: object) -> list[str]:
    return dataclasses.replace(BEFORE, **changes).beyond(BEFORE)


def test_the_same_is_nothing() -> None:
    assert after() == []


def test_less_is_nothing() -> None:
    assert after(processes={"libvirtd": 2}, sockets=1, files={}) == []


def test_a_process_that_stayed_is_told_by_name() -> None:
    assert after(processes={"qemu-system-x86": 2, "libvirtd": 2, "python": 1}) == [
        "1 more process python"
    ]


def test_a_second_qemu_is_told() -> None:
    assert after(processes={"qemu-system-x86": 3}) == ["1 more process qemu-system-x86"]


def test_descriptors_sockets_namespaces_and_files_are_told() -> None:
    assert after(descriptors={"this process": 22}) == ["2 more descriptors of this process"]
    assert after(sockets=31) == ["1 more sockets"]
    assert after(namespaces=10) == ["1 more namespaces"]
    assert after(files={"libvirt/qemu/N.pid": 3}) == ["1 more file libvirt/qemu/N.pid"]


def test_memory_is_not_judged_by_the_round() -> None:
    assert after(memory={"libvirtd of host1": 90 << 20}) == []


def test_this_process_is_in_memory() -> None:
    assert leaks.resident(os.getpid()) > 1 << 20
