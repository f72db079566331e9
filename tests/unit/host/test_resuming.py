# SPDX-License-Identifier: Apache-2.0
"""A stream that is resumed past libvirt, at a source that this test plays."""

import json
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_process, resuming

OTHER = 65534


class Source:
    """``libvirt_qemu`` of one domain: notes what is asked, and declines a command of choice."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, declined: str = "", preempt: bool = False
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.handed: list[int] = []
        self._declined = declined
        self._preempt = preempt
        monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", self.told)
        monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommandWithFiles", self.handed_files)

    def told(self, domain: Any, words: str, flags: int) -> str:
        asked = json.loads(words)
        if asked["execute"] == "query-migrate-capabilities":
            known = {"capability": "postcopy-preempt", "state": self._preempt}
            return json.dumps({"return": [known]})
        self.asked.append(asked)
        if asked["execute"] == self._declined:
            return '{"error": {"desc": "not paused"}}'
        return '{"return": {}}'

    def handed_files(
        self, domain: Any, words: str, descriptors: list[int], flags: int
    ) -> tuple[str, list[int]]:
        self.handed += map(os.dup, descriptors)
        return self.told(domain, words, flags), []


@pytest.fixture
def listener(tmp_path: pathlib.Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(tmp_path / "relay.sock"))
    made.listen()
    return made


def test_qemu_is_handed_a_connection_to_the_fresh_relay_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    source = Source(monkeypatch)
    resuming.resume(None, listener.getsockname())
    assert [one["execute"] for one in source.asked] == ["getfd", "migrate"]
    name = source.asked[0]["arguments"]["fdname"]
    assert source.asked[1]["arguments"] == {"uri": f"fd:{name}", "resume": True}
    relay, _ = listener.accept()
    with relay, listener, socket.socket(fileno=source.handed[0]) as qemu:
        qemu.sendall(b"x")
        assert relay.recv(1) == b"x"


class Domain:
    def name(self) -> str:
        return "web"


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[int]:
    """QEMU is a process of this one."""
    monkeypatch.setattr(qemu_process, "PID_DIRECTORY", str(tmp_path))
    with subprocess.Popen(["sleep", "60"], user=OTHER, group=OTHER) as process:
        (tmp_path / "web.pid").write_text(str(process.pid))
        yield OTHER
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process of another user")
def test_a_qemu_that_has_two_channels_connects_itself_and_may(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, other_user: int
) -> None:
    source = Source(monkeypatch, preempt=True)
    path = listener.getsockname()
    with listener:
        resuming.resume(Domain(), path)
    (asked,) = source.asked
    assert asked["arguments"] == {"uri": f"unix:{path}", "resume": True}
    assert os.stat(path).st_uid == other_user


def test_a_qemu_that_is_not_found_is_not_asked_to_connect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(qemu_process, "PID_DIRECTORY", str(tmp_path))
    source = Source(monkeypatch, preempt=True)
    with pytest.raises(exception.LibvirtError, match="which process"):
        resuming.resume(Domain(), "/run/relay.sock")
    assert not source.asked


def test_a_qemu_that_is_not_paused_says_so(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    Source(monkeypatch, declined="migrate")
    with listener, pytest.raises(exception.LibvirtError, match="not paused"):
        resuming.resume(None, listener.getsockname())


def test_a_relay_that_does_not_listen_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source = Source(monkeypatch)
    with pytest.raises(exception.LibvirtError):
        resuming.resume(None, str(tmp_path / "nobody"))
    assert not source.asked


def test_a_domain_that_is_gone_is_told_as_libvirts(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    def gone(*_: Any) -> None:
        raise libvirt.libvirtError("no domain")

    Source(monkeypatch)
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommandWithFiles", gone)
    with listener, pytest.raises(exception.LibvirtError, match="no domain"):
        resuming.resume(None, listener.getsockname())
