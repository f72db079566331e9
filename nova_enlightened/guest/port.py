# SPDX-License-Identifier: Apache-2.0
"""The virtio-serial port of the agent inside a guest, and how it is found."""

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import threading
from typing import List, Optional

from nova_enlightened.guest import wire

UNUSED_POLL_S = 30.0
"""How often to look whether a host has come, while there is none; the kernel tells, too."""
TOLD = signal.SIGURG
"""By default ignored."""
F_SETOWN_EX, F_OWNER_TID = 15, 0


class Port:
    """The virtio-serial port, without waiting for whoever is behind it."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._poll = select.poll()
        self._requests = wire.Requests()
        self._sending = b""
        self._answers: List[bytes] = []
        self._push = b""
        self._is_answer = False
        self._have_comings_told()

    @property
    def answering(self) -> bool:
        """An answer has not gone out yet."""
        return bool(self._answers or self._is_answer)

    def push(self, frame: bytes) -> None:
        """Send when there is room; a newer push takes an older one's place."""
        self._push = frame

    def answer(self, frame: bytes) -> None:
        """Send before any push."""
        self._answers.append(frame)

    def wait(self, timeout: Optional[float]) -> List[wire.Request]:
        """Send what can be sent; return the requests that come within `timeout` seconds."""
        wanted = bool(self._sending or self._answers or self._push)
        self._poll.register(self._descriptor, select.POLLIN | (select.POLLOUT if wanted else 0))
        ready = self._poll.poll(None if timeout is None else int(timeout * 1000) + 1)
        events = ready[0][1] if ready else 0
        if events & select.POLLOUT:
            self._write()
        data = self._read() if events & select.POLLIN else b""
        if data:
            return self._requests.receive(data)
        if events & (select.POLLHUP | select.POLLERR) or (data is None):
            self._abandon()
            signal.sigtimedwait({TOLD}, UNUSED_POLL_S if timeout is None else timeout)
        return []

    def _have_comings_told(self) -> None:
        """Have the kernel signal this thread when a host comes: poll only says that there is none.

        Not to look again and again matters right after a move, when each wakening waits for pages.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {TOLD})
        owner = struct.pack("ii", F_OWNER_TID, getattr(threading, "get_native_id", os.getpid)())
        fcntl.fcntl(self._descriptor, F_SETOWN_EX, owner)
        fcntl.fcntl(self._descriptor, fcntl.F_SETSIG, TOLD)
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)

    def _read(self) -> Optional[bytes]:
        """What there is; None when nobody is connected."""
        try:
            return os.read(self._descriptor, wire.MAX_REQUEST) or None
        except BlockingIOError:
            return b""

    def _write(self) -> None:
        if not self._sending:
            self._is_answer = bool(self._answers)
            if self._answers:
                self._sending = self._answers.pop(0)
            else:
                self._sending, self._push = self._push, b""
        try:
            sent = os.write(self._descriptor, self._sending[: 1 << 15])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ENODEV):
                raise
            return self._abandon()
        self._sending = self._sending[sent:]
        self._is_answer = self._is_answer and bool(self._sending)

    def _abandon(self) -> None:
        """Nobody listens: what was meant for the last host is not for the next."""
        self._requests = wire.Requests()
        self._sending = self._push = b""
        self._is_answer = False
        del self._answers[:]


def find_port(path: str) -> Optional[str]:
    """The port's device, by udev's name for it or else by asking sysfs."""
    if os.path.exists(path):
        return path
    ports = "/sys/class/virtio-ports"
    for name in sorted(os.listdir(ports)) if os.path.isdir(ports) else []:
        with contextlib.suppress(OSError):
            with open(os.path.join(ports, name, "name")) as file:
                if file.read().strip() == os.path.basename(path):
                    return os.path.join("/dev", name)
    return None
