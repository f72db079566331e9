# SPDX-License-Identifier: Apache-2.0
"""What makes an event loop turn once: from a signal handler, or from another thread."""

import contextlib
import selectors
import socket


class Wake:
    """A pair of sockets, one of them in the loop's selector."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()

    def open(self, selector: selectors.BaseSelector) -> None:
        """Take part in the loop, which calls a key's data with the events."""
        for end in (self._reader, self._writer):
            end.setblocking(False)
        selector.register(
            self._reader, selectors.EVENT_READ, lambda _events: self._reader.recv(4096)
        )

    def __call__(self) -> None:
        """Make the loop turn; callable from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def close(self) -> None:
        """Once the loop turns no more."""
        self._reader.close()
        self._writer.close()
