# SPDX-License-Identifier: Apache-2.0
"""Sources of hints: which is used, and what qemu-guest-agent is made to tell."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from nova_enlightened.exception import EnlightenedError, GuestUnreachable, HintError
from nova_enlightened.host import hint_sources
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.hint_sources import (
    GuestAgent,
    HintSource,
    HintTarget,
    NoHints,
    QemuGuestAgent,
    load,
    open_first,
)
from nova_enlightened.knowledge.classes import PageClass

MEMORY = 16 << 20
FLAGS = np.tile(np.array([1 << 10, 1 << 12, 1 << 7, 0], dtype="<u8"), 50000).tobytes()


class FakeAgent:
    """qemu-guest-agent with one file, as libvirt's qemuAgentCommand shows it."""

    def __init__(self, content: bytes = FLAGS) -> None:
        self.content = content
        self.at = 0
        self.open = False
        self.commands = ["guest-file-open", "guest-file-read", "guest-file-close"]
        self.said: dict[str, Any] = {}
        self.timeouts: list[int] = []

    def __call__(self, text: str, timeout: int) -> str:
        self.timeouts.append(timeout)
        command = json.loads(text)
        name = command["execute"]
        if name in self.said:
            answer = self.said[name]
            if isinstance(answer, Exception):
                raise answer
            return str(answer)
        method = getattr(self, name.replace("-", "_"))
        return json.dumps({"return": method(**command.get("arguments", {}))})

    def guest_info(self) -> dict[str, Any]:
        listed = [{"name": name, "enabled": True} for name in self.commands]
        return {"version": "7.2.0", "supported_commands": listed}

    def guest_file_open(self, path: str, mode: str) -> int:
        assert (path, mode) == ("/proc/kpageflags", "r")
        self.open = True
        return 1000

    def guest_file_read(self, handle: int, count: int) -> dict[str, Any]:
        assert handle == 1000
        piece = self.content[self.at : self.at + count]
        self.at += len(piece)
        return {
            "count": len(piece),
            "buf-b64": base64.b64encode(piece).decode(),
            "eof": len(piece) < count,
        }

    def guest_file_close(self, handle: int) -> dict[str, Any]:
        self.open = False
        return {}


class Clock:
    """Seconds that pass only when said."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def source(agent: FakeAgent | None) -> QemuGuestAgent:
    """The source for a guest of 16 MiB with this agent."""
    return QemuGuestAgent(HintTarget("vm", MEMORY, agent_command=agent), Clock())


def test_page_flags_are_read_in_pieces_and_classed_here() -> None:
    agent = FakeAgent()
    asking = source(agent)

    assert "7.2.0" in asking.open(5)
    held = asking.ask(10)

    assert held is not None
    assert held.asked
    assert held.knowledge.source == "qemu-guest-agent"
    expected = [PageClass.FREE, PageClass.ANON, PageClass.SLAB, PageClass.KERNEL]
    assert held.knowledge.classes[:4].tolist() == expected
    assert held.knowledge.frames == 200000
    assert not agent.open
    assert agent.timeouts[0] == 5


def test_an_agent_that_forbids_files_is_no_source() -> None:
    agent = FakeAgent()
    agent.commands.remove("guest-file-read")

    with pytest.raises(GuestUnreachable, match="guest-file-read"):
        source(agent).open(5)


def test_a_guest_without_the_agent_is_unreachable() -> None:
    with pytest.raises(GuestUnreachable, match="no qemu-guest-agent"):
        source(None).open(5)


def test_a_slow_agent_is_given_up_at_the_deadline_and_its_file_closed() -> None:
    clock = Clock()

    class Slow(FakeAgent):
        def guest_file_read(self, handle: int, count: int) -> dict[str, Any]:
            clock.now += 3
            return super().guest_file_read(handle, count) | {"eof": False}

    agent = Slow()
    asking = QemuGuestAgent(HintTarget("vm", MEMORY, agent_command=agent), clock)

    with pytest.raises(GuestUnreachable, match="too slow"):
        asking.ask(5)
    assert not agent.open


@pytest.mark.parametrize(
    ("command", "answer", "reason"),
    [
        ("guest-file-open", "nonsense", "guest-file-open answered nonsense"),
        ("guest-file-open", "[" * 100000, "guest-file-open answered nonsense"),
        ("guest-file-open", '{"return": "7"}', "no handle"),
        ("guest-file-read", '{"return": 5}', "guest-file-read answered nonsense"),
        ("guest-file-read", '{"return": {"eof": true}}', "guest-file-read answered nonsense"),
        (
            "guest-file-read",
            '{"return": {"buf-b64": "@@@@", "eof": true}}',
            "guest-file-read answered nonsense",
        ),
        ("guest-file-read", '{"return": {"buf-b64": "", "eof": false}}', "no page flags"),
        ("guest-file-read", '{"return": {"buf-b64": "YWJj", "eof": true}}', "whole"),
    ],
)
def test_an_agent_that_answers_nonsense_is_refused(command: str, answer: str, reason: str) -> None:
    agent = FakeAgent()
    agent.said[command] = answer

    with pytest.raises(HintError, match=reason):
        source(agent).ask(10)
    assert not agent.open


def test_page_flags_without_end_are_refused() -> None:
    class Endless(FakeAgent):
        def guest_file_read(self, handle: int, count: int) -> dict[str, Any]:
            return {"buf-b64": base64.b64encode(bytes(count)).decode(), "eof": False}

    agent = Endless()

    with pytest.raises(HintError, match="more than"):
        source(agent).ask(10)
    assert not agent.open


def test_a_piece_larger_than_asked_for_is_refused() -> None:
    agent = FakeAgent()
    piece = base64.b64encode(bytes(2 * hint_sources.AGENT_READ)).decode()
    agent.said["guest-file-read"] = json.dumps({"return": {"buf-b64": piece, "eof": False}})

    with pytest.raises(HintError, match="answered 2097152 bytes"):
        source(agent).ask(10)


def test_a_close_that_fails_does_not_lose_the_answer() -> None:
    agent = FakeAgent()
    agent.said["guest-file-close"] = GuestUnreachable("gone")

    assert source(agent).ask(10) is not None


def test_a_guest_without_the_port_has_no_agent_of_ours() -> None:
    asking = GuestAgent(HintTarget("vm", MEMORY))

    with pytest.raises(GuestUnreachable, match="no port"):
        asking.open(1)
    with pytest.raises(GuestUnreachable, match="no conversation"):
        asking.ask(1)
    assert asking.latest() is None
    asking.close()


def test_no_hints_is_an_answer() -> None:
    asking = NoHints(HintTarget("vm", MEMORY))

    assert "configuration" in asking.open(1)
    asking.arm(1, 1, 1)
    assert asking.latest() is None
    assert asking.ask(1) is None


def test_every_source_is_a_plugin_and_keeps_the_configured_order() -> None:
    names = ["none", "qemu-guest-agent", "guest-agent"]

    assert [kind.name for kind in load(names)] == names


def test_a_source_that_is_no_plugin_is_named() -> None:
    with pytest.raises(HintError, match="crystal-ball"):
        load(["guest-agent", "crystal-ball"])


class Broken(HintSource):
    """A source that never opens."""

    name = "broken"
    error: EnlightenedError = HintError("nonsense")

    def open(self, timeout: float) -> str:
        raise self.error

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        raise self.error


def test_the_first_source_that_opens_is_used_and_the_others_say_why_not() -> None:
    target = HintTarget("vm", MEMORY, agent_command=FakeAgent())

    opened = open_first([Broken, GuestAgent, QemuGuestAgent, NoHints], target, 5)

    assert isinstance(opened.source, QemuGuestAgent)
    assert opened.declined == (
        "broken: nonsense",
        "guest-agent: vm has no port for the guest agent",
    )


def test_with_no_source_left_there_is_none_and_no_error() -> None:
    opened = open_first([Broken], HintTarget("vm", MEMORY), 5)

    assert opened.source is None
    assert opened.declined == ("broken: nonsense",)
