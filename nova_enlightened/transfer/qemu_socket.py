# SPDX-License-Identifier: Apache-2.0
"""A non-blocking unix socket to QEMU with a backlog of what it has not taken yet."""

import collections
import socket
from typing import Self

READ_SIZE = 256 * 1024
"""Bytes read at once: more than the kernel's default unix socket buffer ever holds."""


_SO_SNDBUFFORCE = 32  # socket(7); not among Python's constants


class QemuSocket:
    """One migration channel's end at QEMU.

    The owner watches :meth:`fileno` for reading while it has room for more data, and for
    writing while :attr:`backlog` is not zero.
    """

    def __init__(self, channel: int, sock: socket.socket) -> None:
        self.channel = channel
        self.backlog = 0
        self.read_open = True
        self.write_open = True
        self._socket = sock
        self._pending: collections.deque[memoryview] = collections.deque()
        self._finish_after_backlog = False

    @classmethod
    def adopt(cls, channel: int, sock: socket.socket) -> Self:
        """Take over a connected socket and make it non-blocking."""
        sock.setblocking(False)
        return cls(channel, sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    def limit_buffer(self, size: int) -> None:
        """Let the kernel hold about `size` bytes that QEMU has not read."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def force_buffer(self, size: int) -> None:
        """The same beyond what an ordinary process may set. :raises OSError: not privileged."""
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)

    def read_into(self, buffer: memoryview) -> int | None:
        """Bytes read into `buffer`; 0 at end of stream, None when there is nothing yet.

        A reset by QEMU counts as end of stream: what it means is the peer QEMU's to judge.
        """
        try:
            count = self._socket.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError:
            count = 0
        if count == 0:
            self.read_open = False
        return count

    def write(self, data: bytes | memoryview) -> int:
        """Write what QEMU takes now and keep the rest; answer the bytes it took just now."""
        self._pending.append(memoryview(data))
        self.backlog += len(data)
        return self.flush()

    def flush(self) -> int:
        """Offer the backlog to QEMU; answer the bytes taken (or dropped, if QEMU is gone)."""
        taken = 0
        while self._pending:
            head = self._pending[0]
            try:
                count = self._socket.send(head) if self.write_open else len(head)
            except (BlockingIOError, InterruptedError):
                break
            except (BrokenPipeError, ConnectionError):
                self.write_open = False
                continue
            taken += count
            if count < len(head):
                self._pending[0] = head[count:]
            else:
                self._pending.popleft()
        self.backlog -= taken
        if self._finish_after_backlog and not self._pending:
            self._shut_write()
        return taken

    def finish(self) -> None:
        """Half-close towards QEMU once the backlog is written."""
        self._finish_after_backlog = True
        if not self._pending:
            self._shut_write()

    def close(self) -> None:
        self.read_open = self.write_open = False
        self._socket.close()

    def _shut_write(self) -> None:
        if not self.write_open:
            return
        self.write_open = False
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # QEMU closed first: the same outcome.
