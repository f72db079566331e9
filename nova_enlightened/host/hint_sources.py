# SPDX-License-Identifier: Apache-2.0
"""Where knowledge of a guest's memory comes from: plugins of `nova_enlightened.hint_sources`.

Each is asked in the configured order; the first that answers is used. A source never makes an
eviction wait longer than its deadline, and what it raises only means that the pages cross in
another order.
"""

import abc
import base64
import binascii
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from stevedore import named

from nova_enlightened.exception import EnlightenedError, GuestUnreachable, HintError
from nova_enlightened.host.guest import GuestSession, HeldKnowledge
from nova_enlightened.knowledge import snapshot
from nova_enlightened.knowledge.classes import FLAG_BYTES, flags_from_bytes

NAMESPACE: Final = "nova_enlightened.hint_sources"
AGENT_READ: Final = 1 << 20
"""Bytes a guest-file-read asks for: libvirt takes answers of up to 10 MiB, and every read holds
the guest agent's only channel for as long as it takes."""
CLOSE_S: Final = 2.0
FLAGS_FILE: Final = "/proc/kpageflags"


@dataclass(frozen=True)
class HintTarget:
    """The guest that is asked."""

    name: str
    """For logs."""
    memory: int
    """Bytes of RAM it has."""
    channel: str | None = None
    """QEMU's unix socket for `org.openstack.enlightened.0`, None without such a port."""
    agent_command: Callable[[str, int], str] | None = None
    """(JSON command, timeout in s) -> JSON answer of qemu-guest-agent; None without one."""


class HintSource(abc.ABC):
    """One way to learn what a guest knows of its memory. Made without I/O.

    Every method but `close` raises `GuestUnreachable` when the guest cannot be asked and
    `HintError` when it says nonsense; both mean: try the next source.
    """

    name: ClassVar[str]

    def __init__(self, target: HintTarget, clock: Callable[[], float] = time.monotonic) -> None:
        self.target = target
        self.clock = clock

    @abc.abstractmethod
    def open(self, timeout: float) -> str:
        """See whether the guest can be asked this way; says how, for the log."""

    def arm(self, interval_s: float, max_s: float, cpu_limit: float) -> None:
        """Have the guest get ready, where it can. Repeat to renew."""
        return

    def disarm(self) -> None:
        """Have the guest stop getting ready, where it does. Waits for its answer."""
        return

    def latest(self) -> HeldKnowledge | None:
        """What is on this host already. Never waits for the guest."""
        return None

    @abc.abstractmethod
    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        """What the guest knows now; None where there is nothing to know."""

    def close(self) -> None:
        """Let go of the guest."""
        return


class GuestAgent(HintSource):
    """This project's agent, over its own port: classes, pages in use, processes."""

    name = "guest-agent"

    def __init__(self, target: HintTarget, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(target, clock)
        self._session: GuestSession | None = None

    def open(self, timeout: float) -> str:
        if self.target.channel is None:
            raise GuestUnreachable(f"{self.target.name} has no port for the guest agent")
        self.close()
        session = GuestSession(self.target.channel, self.target.memory, self.clock)
        session.open()
        try:
            hello = session.hello(timeout)
        except EnlightenedError:
            session.close()
            raise
        self._session = session
        return f"agent {hello.agent} on Linux {hello.kernel}, pages in use by {hello.source}"

    def arm(self, interval_s: float, max_s: float, cpu_limit: float) -> None:
        self._opened().arm(interval_s, max_s, cpu_limit)

    def disarm(self) -> None:
        self._opened().disarm()

    def latest(self) -> HeldKnowledge | None:
        return self._session.latest() if self._session else None

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        return self._opened().ask(deadline_s)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _opened(self) -> GuestSession:
        if self._session is None:
            raise GuestUnreachable(f"no conversation with the agent of {self.target.name}")
        return self._session


class QemuGuestAgent(HintSource):
    """qemu-guest-agent, which many guests have anyway, reading the kernel's page flags.

    It tells classes only. Its commands may be forbidden in the guest (Debian and Red Hat allow
    guest-file-open or not, by release); then this source is not there.
    """

    name = "qemu-guest-agent"

    def open(self, timeout: float) -> str:
        said = self._command("guest-info", {}, self.clock() + timeout)
        commands = said.get("supported_commands", []) if isinstance(said, dict) else []
        allowed = {
            str(command.get("name"))
            for command in commands
            if isinstance(command, dict) and command.get("enabled")
        }
        missing = {"guest-file-open", "guest-file-read", "guest-file-close"} - allowed
        if missing:
            raise GuestUnreachable(f"the guest agent does not allow {', '.join(sorted(missing))}")
        version = str(said.get("version"))[:32]
        return f"qemu-guest-agent {version!r}, page classes only"

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        deadline = self.clock() + deadline_s
        handle = self._command("guest-file-open", {"path": FLAGS_FILE, "mode": "r"}, deadline)
        if not isinstance(handle, int):
            raise HintError("guest-file-open answered with no handle")
        try:
            flags = self._flags(handle, deadline)
        finally:
            # However late it is: an open handle stays in the guest for good.
            with contextlib.suppress(EnlightenedError):
                self._command("guest-file-close", {"handle": handle}, self.clock() + CLOSE_S)
        knowledge = snapshot.from_flags(flags, self.name, self.clock())
        return HeldKnowledge(knowledge, self.clock(), asked=True)

    def _flags(self, handle: int, deadline: float) -> npt.NDArray[np.uint64]:
        most = snapshot.SnapshotLimits.for_memory(self.target.memory).frames * FLAG_BYTES
        whole = bytearray()
        for piece in self._pieces(handle, deadline):
            whole += piece
            if len(whole) > most:
                raise HintError(f"{self.target.name} has page flags of more than {most} bytes")
        if not whole:
            raise HintError(f"{self.target.name} has no page flags")
        return flags_from_bytes(whole)

    def _pieces(self, handle: int, deadline: float) -> Iterator[bytes]:
        request = {"handle": handle, "count": AGENT_READ}
        while True:
            said = self._command("guest-file-read", request, deadline)
            try:
                piece = base64.b64decode(said["buf-b64"], validate=True)
                ended = bool(said["eof"])
            except (KeyError, TypeError, ValueError, binascii.Error) as error:
                raise HintError(f"guest-file-read answered nonsense: {error!r}") from error
            if len(piece) > AGENT_READ:
                raise HintError(f"guest-file-read answered {len(piece)} bytes")
            yield piece
            if ended or not piece:
                return

    def _command(self, name: str, arguments: dict[str, Any], deadline: float) -> Any:
        if self.target.agent_command is None:
            raise GuestUnreachable(f"{self.target.name} has no qemu-guest-agent")
        left = deadline - self.clock()
        if left <= 0:
            raise GuestUnreachable(f"the guest agent of {self.target.name} is too slow")
        command: dict[str, Any] = {"execute": name}
        if arguments:
            command["arguments"] = arguments
        answer = self.target.agent_command(json.dumps(command), max(1, round(left)))
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HintError(f"{name} answered nonsense: {error!r}") from error


class NoHints(HintSource):
    """No knowledge: QEMU's own order. For operators who trust no guest, and for comparing."""

    name = "none"

    def open(self, timeout: float) -> str:
        return "no hints, by configuration"

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        return None


def libvirt_agent_command(domain: Any) -> Callable[[str, int], str]:
    """`HintTarget.agent_command` for a libvirt domain."""
    import libvirt
    import libvirt_qemu

    def command(text: str, timeout: int) -> str:
        try:
            return str(libvirt_qemu.qemuAgentCommand(domain, text, timeout, 0))
        except libvirt.libvirtError as error:
            raise GuestUnreachable(f"qemu-guest-agent: {error}") from error

    return command


def load(names: Iterable[str]) -> list[type[HintSource]]:
    """The plugins of these names, in this order.

    :raises HintError: there is no such plugin, or it does not load.
    """

    def failed(manager: object, entry: EntryPoint, error: BaseException) -> None:
        raise HintError(f"hint source {entry.name!r} does not load: {error}") from error

    def missing(unknown: Iterable[str]) -> None:
        raise HintError(f"no hint source is called {', '.join(sorted(unknown))}")

    found: named.NamedExtensionManager[HintSource] = named.NamedExtensionManager(
        NAMESPACE,
        list(names),
        name_order=True,
        on_load_failure_callback=failed,
        on_missing_entrypoints_callback=missing,
    )
    return [extension.plugin for extension in found]


@dataclass(frozen=True)
class Opened:
    """The source that answered, and why those before it did not."""

    source: HintSource | None
    how: str
    declined: tuple[str, ...]


def open_first(
    kinds: Iterable[type[HintSource]],
    target: HintTarget,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
) -> Opened:
    """Open the first source that works for this guest. Never raises for what a guest does."""
    declined = []
    for kind in kinds:
        source = kind(target, clock)
        try:
            how = source.open(timeout)
        except EnlightenedError as error:
            declined.append(f"{kind.name}: {error}")
            continue
        return Opened(source, how, tuple(declined))
    return Opened(None, "no source of hints answered", tuple(declined))
