# SPDX-License-Identifier: Apache-2.0
"""What QEMU is asked through libvirt, of a libvirt that this test plays."""

import json
from collections.abc import Callable
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, streaming

Said = list[tuple[str, int]]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Said]:
    """Have every command answered alike; what was said, with its flags."""

    def answer(words: str) -> Said:
        said: Said = []

        def told(_: Any, command: str, flags: int) -> str:
            said.append((command, flags))
            return words

        monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", told)
        return said

    return answer


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def raised(*_: Any) -> None:
        raise libvirt.libvirtError("domain is not running")

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", raised)


def test_a_command_is_answered_with_what_qemu_returns(answering: Callable[[str], Said]) -> None:
    said = answering('{"return": [{"drv": "nbd"}]}')
    assert qemu_monitor.ask(None, "query-named-block-nodes", flat=True) == [{"drv": "nbd"}]
    asked = {"execute": "query-named-block-nodes", "arguments": {"flat": True}}
    assert [(json.loads(words), flags) for words, flags in said] == [(asked, 0)]


def test_a_command_for_people_is_said_and_answered_in_words(
    answering: Callable[[str], Said],
) -> None:
    said = answering("read 512/512 bytes")
    assert qemu_monitor.ask_in_words(None, "qemu-io below") == "read 512/512 bytes"
    assert said == [("qemu-io below", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)]


def test_what_qemu_declines_is_told_in_its_words(answering: Callable[[str], Said]) -> None:
    answering('{"error": {"class": "GenericError", "desc": "not paused"}}')
    with pytest.raises(exception.LibvirtError, match="migrate-recover: not paused"):
        qemu_monitor.ask(None, "migrate-recover")
    with pytest.raises(exception.StreamingError, match="migrate-recover: not paused"):
        streaming.qmp(None, "migrate-recover")


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("ask", [qemu_monitor.ask, qemu_monitor.ask_in_words])
def test_a_domain_that_does_not_run_is_libvirts_error(ask: Callable[[Any, str], Any]) -> None:
    with pytest.raises(exception.LibvirtError, match="info: domain is not running"):
        ask(None, "info")


@pytest.mark.usefixtures("gone")
def test_a_domain_that_does_not_run_cannot_be_streamed_to() -> None:
    with pytest.raises(exception.StreamingError, match="not running"):
        streaming.migration_status(None)
