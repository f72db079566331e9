# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from nova_enlightened.host import capability, installation
from nova_enlightened.host.installation import Finding, Grade

QEMU = (64055, 108)


def reading(files: dict[str, str]) -> capability.Read:
    return files.get


@pytest.fixture
def short() -> Iterator[pathlib.Path]:
    """A directory with a name that leaves room for sockets."""
    with tempfile.TemporaryDirectory(prefix="ne-") as name:
        yield pathlib.Path(name)


def grades(found: Any) -> list[Grade]:
    return [one.grade for one in found]


def test_userfaultfd_that_is_kept_from_qemu_is_an_obstacle() -> None:
    files = {capability.SYSCTL: "0\n"}
    # Root's own device would let root, but not QEMU's user.
    found = installation.userfaultfd(QEMU, reading(files))
    if found.grade is Grade.FAIL:
        assert "vm.unprivileged_userfaultfd" in found.remedy
    else:
        assert pathlib.Path(capability.DEVICE).exists()


def test_userfaultfd_for_everybody_is_good() -> None:
    assert installation.userfaultfd(QEMU, reading({capability.SYSCTL: "1"})).grade is Grade.OK


def test_userfaultfd_with_an_unknown_user_is_not_vouched_for() -> None:
    assert installation.userfaultfd(None, reading({capability.SYSCTL: "1"})).grade is Grade.WARN


def test_a_run_directory_that_is_not_there_is_an_obstacle(short: pathlib.Path) -> None:
    found = list(installation.run_directory(str(short / "none"), None))
    assert grades(found) == [Grade.FAIL]
    assert "mkdir" in found[0].remedy


def test_a_run_directory_that_is_a_file_is_an_obstacle(short: pathlib.Path) -> None:
    (short / "run").touch()
    assert grades(installation.run_directory(str(short / "run"), None)) == [Grade.FAIL]


def test_qemu_has_to_make_sockets_in_the_run_directory(short: pathlib.Path) -> None:
    place = short / "run"
    place.mkdir()
    place.chmod(0o711)
    assert grades(installation.run_directory(str(place), QEMU)) == [Grade.FAIL]
    place.chmod(0o1771)
    group = os.stat(place).st_gid
    assert grades(installation.run_directory(str(place), (64055, group))) == [Grade.OK]
    assert grades(installation.run_directory(str(place), (0, 0))) == [Grade.OK]


def test_a_run_directory_has_room_for_the_longest_socket() -> None:
    found = next(iter(installation.run_directory("/" + "x" * 60, None)))
    assert found.grade is Grade.FAIL
    assert str(installation.LONGEST_DIRECTORY) in found.remedy


@pytest.mark.parametrize(
    "files, grade",
    [
        ({}, Grade.OK),
        ({installation.APPARMOR: "N\n"}, Grade.OK),
        ({installation.APPARMOR: "Y\n"}, Grade.WARN),
        (
            {
                installation.APPARMOR: "Y\n",
                installation.LIBVIRT_QEMU_CONF: '#x\nsecurity_driver = "none"\n',
            },
            Grade.OK,
        ),
        (
            {
                installation.APPARMOR: "Y\n",
                installation.LIBVIRT_QEMU_CONF: '#security_driver = "none"\n',
            },
            Grade.WARN,
        ),
        (
            {installation.APPARMOR: "Y\n", installation.APPARMOR_LOCAL[0]: "/run/e/*.sock rw,\n"},
            Grade.OK,
        ),
    ],
)
def test_apparmor_may_keep_qemu_from_the_sockets(files: dict[str, str], grade: Grade) -> None:
    found = installation.apparmor("/run/e", reading(files))
    assert found.grade is grade
    if grade is Grade.WARN:
        assert "/run/e" in found.remedy


def taken_port() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def test_ports_that_all_are_taken_are_an_obstacle() -> None:
    sock, port = taken_port()
    with contextlib.closing(sock):
        assert installation.ports("127.0.0.1", port, port).grade is Grade.FAIL
    assert installation.ports("127.0.0.1", port, port).grade is Grade.OK


def test_an_address_of_another_host_is_an_obstacle() -> None:
    found = installation.ports("192.0.2.1", 49216, 49217)
    assert found.grade is Grade.FAIL
    assert "link_address" in found.remedy


def test_versions_older_than_tested_are_warned_of() -> None:
    found = {
        one.what: one.grade
        for one in installation.versions(
            {"QEMU": "6.2.0", "libvirt": "9.0.0", "nova": None, "nova-enlightened": "0.1.dev3"}
        )
    }
    assert found == {
        "QEMU": Grade.WARN,
        "libvirt": Grade.OK,
        "nova": Grade.WARN,
        "nova-enlightened": Grade.OK,
    }


OURS = "enlightened.EnlightenedLibvirtDriver"


@pytest.mark.parametrize(
    "installed, permits, driver, expected",
    [
        ((), None, "", [Grade.WARN]),
        (("nova",), None, "", [Grade.WARN]),
        (("nova", "nova.virt.enlightened"), None, "", [Grade.OK]),
        (("nova", "nova.virt.enlightened"), True, OURS, [Grade.OK] * 3),
        (
            ("nova", "nova.virt.enlightened"),
            False,
            "libvirt.LibvirtDriver",
            [Grade.OK, Grade.FAIL, Grade.FAIL],
        ),
    ],
)
def test_nova_has_to_load_the_driver_and_permit_post_copy(
    installed: tuple[str, ...], permits: bool | None, driver: str, expected: list[Grade]
) -> None:
    found = installation.nova(lambda name: name in installed or None, permits, driver)
    assert grades(found) == expected


ANSWER = {"version": "1.0", "capable": True, "obstacles": [], "level": 0}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, [Grade.OK]),
        ({"version": "0.9"}, [Grade.WARN]),
        ({"capable": False, "obstacles": ["no userfaultfd"]}, [Grade.OK, Grade.FAIL]),
        ({"capable": False}, [Grade.OK, Grade.FAIL]),
        ({"level": None}, [Grade.OK, Grade.WARN]),
    ],
)
def test_what_an_agent_says_of_itself_is_judged(
    change: dict[str, Any], expected: list[Grade]
) -> None:
    assert grades(installation.agent({**ANSWER, **change}, "1.0")) == expected


def test_an_agent_that_answers_nonsense_does_not_break_the_check() -> None:
    assert grades(installation.agent({}, None)) == [Grade.OK, Grade.FAIL, Grade.WARN]


def test_whatever_is_not_good_says_what_to_do() -> None:
    found: list[Finding] = [
        *installation.versions({"QEMU": "1.0", "nova": None}),
        *installation.nova(lambda _: None, False, ""),
        *installation.agent({"obstacles": ["x"]}, "1.0"),
        installation.ports("192.0.2.1", 49216, 49216),
    ]
    assert all(one.remedy for one in found if one.grade is not Grade.OK)
    assert installation.worst(found) is Grade.FAIL
    assert installation.worst([]) is Grade.OK
