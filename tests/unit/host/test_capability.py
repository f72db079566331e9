# SPDX-License-Identifier: Apache-2.0
"""Whether a host can do ordered post-copy, and the words for why it cannot."""

import os
import pathlib
import stat
import types

import pytest

from nova_enlightened.host import capability
from tests.unit.host import captured

QEMU = (64055, 108)
NOBODY = os.stat_result((stat.S_IFCHR | 0o600, 0, 0, 1, 0, 0, 0, 0, 0, 0))
GROUP = os.stat_result((stat.S_IFCHR | 0o660, 0, 0, 1, 0, 108, 0, 0, 0, 0))
EVERYBODY = os.stat_result((stat.S_IFCHR | 0o666, 0, 0, 1, 0, 0, 0, 0, 0, 0))


def missing(path: str) -> os.stat_result:
    raise FileNotFoundError(path)


def test_qemus_user_is_libvirts_dac_label() -> None:
    assert capability.qemu_user(captured.CAPABILITIES) == QEMU


@pytest.mark.parametrize("xml", ["", "<a", "<capabilities/>", "<capabilities><host><secmodel/>"])
def test_libvirt_that_does_not_tell_leaves_the_user_unknown(xml: str) -> None:
    assert capability.qemu_user(xml) is None


@pytest.mark.parametrize(
    ("user", "setting"),
    [(QEMU, "1\n"), (QEMU, None), ((0, 0), "0\n"), (None, "0\n")],
)
def test_who_may_use_userfaultfd(user: tuple[int, int] | None, setting: str | None) -> None:
    assert capability.userfaultfd_obstacle(user, lambda _: setting, missing) is None


@pytest.mark.parametrize("status", [missing, lambda _: NOBODY])
def test_who_may_not_is_told_what_to_do(status: object) -> None:
    said = capability.userfaultfd_obstacle(QEMU, lambda _: "0\n", status)  # type: ignore[arg-type]
    assert said is not None
    assert "vm.unprivileged_userfaultfd" in said


@pytest.mark.parametrize("device", [GROUP, EVERYBODY])
def test_a_device_that_qemu_may_open_is_enough(device: os.stat_result) -> None:
    assert capability.userfaultfd_obstacle(QEMU, lambda _: "0\n", lambda _: device) is None


class Group(types.SimpleNamespace):
    def __getitem__(self, name: str) -> object:
        return getattr(self, name)


def options(tmp_path: pathlib.Path, **different: str) -> Group:
    files = {
        name: str(tmp_path / name)
        for name in ("link_tls_ca", "link_tls_certificate", "link_tls_key")
    }
    for path in files.values():
        pathlib.Path(path).touch()
    return Group(**{"run_directory": str(tmp_path), "link_tls": "required", **files, **different})


def test_nothing_stands_in_the_way_where_all_is_there(tmp_path: pathlib.Path) -> None:
    assert list(capability.obstacles(options(tmp_path), QEMU, lambda _: "1")) == []


def test_a_certificate_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    lacking = options(tmp_path, link_tls_key="/nowhere/key.pem")
    assert list(capability.obstacles(lacking, QEMU, lambda _: "1")) == [
        "[enlightened] link_tls_key = /nowhere/key.pem cannot be read"
    ]


def test_certificates_do_not_matter_without_tls(tmp_path: pathlib.Path) -> None:
    off = options(tmp_path, link_tls="off", link_tls_key="/nowhere/key.pem")
    assert list(capability.obstacles(off, QEMU, lambda _: "1")) == []


def test_a_run_directory_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    lacking = options(tmp_path, run_directory="/nowhere/run")
    assert "run_directory" in next(iter(capability.obstacles(lacking, QEMU, lambda _: "1")))
