# SPDX-License-Identifier: Apache-2.0
"""A monitor of QEMU's beside libvirt's, which answers while QEMU itself waits for a page.

Whoever holds QEMU's big lock may touch a page of the guest that has not come: QEMU's main loop
then stands still, and libvirt's monitor with it. If the player is lost at that moment, nobody could
tell QEMU to accept another. This monitor is served by a thread of QEMU's that needs neither lock
nor guest memory, for commands that are *out of band*; ``migrate-recover`` is one.

QEMU connects, and is negotiated with, while all is well: the negotiation itself is in band. It
connects to us rather than we to it, and again when it finds nobody: a domain that moves to a host
without this service starts there all the same, and nothing of QEMU's listens.
"""

import contextlib
import logging
import os
import pathlib
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from xml.etree import ElementTree

from nova_enlightened import exception
from nova_enlightened.knowledge import domain_xml
from nova_enlightened.stream.events import NeedData
from nova_enlightened.stream.qmp import Answer, Greeting, Notice, QmpClient
from nova_enlightened.transfer import unix_socket

LOG = logging.getLogger(__name__)

RECONNECT_S: Final = 2
CHARDEV: Final = "enlightened-recovery"
ANSWER_S: Final = 5.0
ENDS_S: Final = 30.0
"""How long QEMU may take to end once it has closed its connection."""
RESUME: Final = "RESUME"
"""Told before the first of the VM's processors executes (``vm_prepare_start``), into the socket at
once (``monitor/monitor.c``): QEMU cannot end in between without its having been told.
"""
_WAITS: Final = "inmigrate"
_CREDENTIALS: Final = struct.Struct("3i")
_READ: Final = 64 << 10


def monitor_path(top: str, instance: str) -> str:
    """Where a VM's QEMU connects, the same on each host.

    :param top: ``[enlightened] run_directory``.
    """
    return str(pathlib.Path(top, f"{instance}-qmp.sock"))


def arguments(path: str) -> list[str]:
    """Words of QEMU's command line for the monitor. :param path: of :class:`SpareMonitor`."""
    where = path.replace(",", ",,")
    return [
        "-chardev",
        f"socket,id={CHARDEV},path={where},reconnect={RECONNECT_S}",
        "-mon",
        f"chardev={CHARDEV},mode=control",
    ]


def with_monitor(xml: str, path: str) -> str:
    """The same domain with the monitor, unless it has it.

    :param path: of :class:`SpareMonitor`.
    :raises HintError: not the XML of a domain.
    """
    domain = domain_xml.root(xml)
    if not any(f"id={CHARDEV}," in word for word in domain_xml.qemu_arguments(domain)):
        domain_xml.add_qemu_arguments(domain, arguments(path))
    return ElementTree.tostring(domain, "unicode")


class SpareMonitor:
    """One VM's. Safe for threads; made without I/O.

    :param path: where QEMU connects, as seen from here.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._changed = threading.Condition()
        self._connection: _Connection | None = None
        self._connections = 0
        self._closed = False

    def open(self) -> None:
        """Listen. Raises OSError."""
        self._listener = unix_socket.listen(self.path)
        threading.Thread(target=self._accept, name="monitor", daemon=True).start()

    def close(self) -> None:
        """End; QEMU finds nobody from now on."""
        with self._changed:
            self._closed = True
            connection = self._connection
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait in accept()
            self._listener.close()
            self.path.unlink(missing_ok=True)
        if connection is not None:
            connection.close()

    def wait_ready(self, seconds: float) -> bool:
        """Whether QEMU has connected and takes commands out of band, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ready is not None, seconds)

    @property
    def executed(self) -> bool | None:
        """Whether the VM has executed in the QEMU that connected here; None: not known.

        False is certain, and for ever: that process has ended, and was listened to from when it
        waited for its migration to its end.
        """
        with self._changed:
            connection = self._connection
            if connection is None or self._connections > 1:
                return None
            if connection.resumed:
                return True
            return False if connection.heard_to_its_end else None

    @property
    def waits(self) -> bool:
        """Whether the QEMU that is connected here has not executed the VM so far, for certain."""
        with self._changed:
            connection = self._connection
            return (
                connection is not None and self._connections == 1 and connection.waits_for_its_start
            )

    def ask(
        self, command: str, seconds: float = ANSWER_S, *, out_of_band: bool = True, **words: Any
    ) -> Any:
        """What QEMU returns.

        :raises MonitorSilent: it is not connected, or does not answer within so many seconds.
        :raises StreamingError: it declines.
        """
        with self._changed:
            connection = self._ready
        if connection is None:
            raise exception.MonitorSilent(f"{command}: QEMU is not connected to {self.path}")
        return connection.ask(command, seconds, out_of_band, words)

    def listen_again(self, uri: str, seconds: float = ANSWER_S) -> str | None:
        """Have QEMU listen for its migration stream there.

        It declines until it has noticed that the former one has ended, of which no event tells out
        of band.

        :returns: why it declines, in its words; None once it listens.
        :raises MonitorSilent: as :meth:`ask`.
        """
        try:
            self.ask("migrate-recover", seconds, uri=uri)
        except exception.MonitorSilent:
            raise
        except exception.StreamingError as error:
            LOG.debug("Not yet: %s", error)
            return str(error)
        return None

    @property
    def ready(self) -> bool:
        """Whether QEMU is connected and takes commands out of band."""
        with self._changed:
            return self._ready is not None

    @property
    def _ready(self) -> "_Connection | None":
        connection = self._connection
        return connection if connection is not None and connection.ready else None

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(sock)
            with self._changed:
                former, self._connection = self._connection, connection
                self._connections += 1
                closed = self._closed
            if former is not None:
                former.close()  # QEMU has one connection: the former has ended
            if closed:
                connection.close()
                return
            threading.Thread(
                target=self._serve, args=(connection,), name="monitor", daemon=True
            ).start()

    def _serve(self, connection: "_Connection") -> None:
        try:
            with _process_at(connection.socket) as ends_within:
                for _ in connection.listen():
                    with self._changed:
                        self._changed.notify_all()
                connection.close()
                connection.over = ends_within(ENDS_S)
        except (OSError, exception.StreamError) as error:
            LOG.warning("Monitor %s: %s", self.path, error)
        finally:
            connection.close()


class _Connection:
    """One connection of QEMU's.

    :ivar resumed: the VM has executed, or is just about to.
    :ivar over: QEMU has ended, and all it said was taken.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.ready = self.resumed = self.over = False
        self.socket = sock
        self._first_question: int | None = None
        self._waited = False  # for its migration, when it was first asked
        self._client = QmpClient()
        self._lock = threading.Lock()
        self._asked: dict[int, queue.SimpleQueue[Answer | None]] = {}
        self._negotiation = 0
        self._open = True

    def listen(self) -> Iterator[None]:
        """Until it ends; yields once it may be asked. What QEMU says is taken all the time."""
        while data := self.socket.recv(_READ):
            self._client.receive_data(data)
            while not isinstance(event := self._client.next_event(), NeedData):
                if isinstance(event, Greeting):
                    self._negotiate(event)
                elif isinstance(event, Notice):
                    self.resumed |= event.name == RESUME
                elif event.request == self._negotiation:
                    if event.error is not None:
                        raise exception.StreamError(f"QEMU negotiates nothing: {event.error}")
                    self._begin()
                    yield
                elif event.request == self._first_question:
                    told = event.value if isinstance(event.value, dict) else {}
                    self._waited = told.get("status") == _WAITS
                else:
                    self._answered(event)

    def _negotiate(self, greeting: Greeting) -> None:
        if not greeting.out_of_band:
            raise exception.StreamError("QEMU's monitor takes no command out of band")
        self._negotiation, words = self._client.request("qmp_capabilities", enable=["oob"])
        self.socket.sendall(words)

    def _begin(self) -> None:
        """From here on it may be asked, and tells by itself. What was before, it is asked now."""
        with self._lock:
            self._first_question, words = self._client.request("query-status")
            self.socket.sendall(words)
            self.ready = True

    @property
    def heard_to_its_end(self) -> bool:
        """Whether nothing was missed from when QEMU waited for its migration until it ended."""
        return self.over and self._waited

    @property
    def waits_for_its_start(self) -> bool:
        """Whether QEMU, which waited for its migration, is there and has not told of a start."""
        return self._open and self._waited and not self.resumed

    def _answered(self, answer: Answer) -> None:
        with self._lock:
            waiting = self._asked.pop(answer.request, None)
        if waiting is not None:
            waiting.put(answer)

    def ask(self, command: str, seconds: float, out_of_band: bool, words: dict[str, Any]) -> Any:
        """See :meth:`SpareMonitor.ask`."""
        answered: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        deadline = time.monotonic() + seconds
        with self._lock:
            number, said = self._client.request(command, out_of_band=out_of_band, **words)
            if not self._open:
                raise exception.MonitorSilent(f"{command}: QEMU has ended its connection")
            self._asked[number] = answered
            try:
                self.socket.sendall(said)
            except OSError as error:
                del self._asked[number]
                raise exception.MonitorSilent(f"{command}: {error}") from error
        try:
            answer = answered.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            answer = None
        finally:
            with self._lock:
                self._asked.pop(number, None)
        if answer is None:
            raise exception.MonitorSilent(f"{command}: QEMU does not answer")
        if answer.error is not None:
            raise exception.StreamingError(f"{command}: {answer.error}")
        return answer.value

    def close(self) -> None:
        """End it; who waits for an answer gets none."""
        self.ready = False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open = False
            for waiting in self._asked.values():
                waiting.put(None)
            self._asked.clear()
            self.socket.close()


@contextlib.contextmanager
def _process_at(sock: socket.socket) -> Iterator[Callable[[float], bool]]:
    """Tells whether the process that connected ends within so many seconds; False: or it hides."""
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        descriptor = os.pidfd_open(_CREDENTIALS.unpack(told)[0])
    except OSError:
        yield lambda seconds: False
        return
    try:
        yield lambda seconds: bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
