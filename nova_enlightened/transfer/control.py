# SPDX-License-Identifier: Apache-2.0
"""A relay's control socket: one JSON request line in, one JSON reply line out.

The socket lies in the relay's run directory, which only the service's user may enter.
"""

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from nova_enlightened import exception
from nova_enlightened.transfer import unix_socket

MAX_LINE = 64 * 1024
WAITING = 8
REPLY_TIMEOUT_S = 5.0

Handler = Callable[..., Mapping[str, Any]]


class ControlServer:
    """Serves requests inside the relay's own event loop."""

    def __init__(
        self, path: str, handlers: Mapping[str, Handler], selector: selectors.BaseSelector
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._selector = selector
        self._listener: socket.socket | None = None
        self._lines: dict[socket.socket, bytes] = {}

    def open(self) -> None:
        self._listener = unix_socket.listen(self._path, WAITING)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for sock in list(self._lines):
            self._drop(sock)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._lines[sock] = b""
            self._selector.register(sock, selectors.EVENT_READ, lambda _events: self._read(sock))

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(MAX_LINE)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        line = self._lines[sock] + data
        if not data or len(line) > MAX_LINE:
            self._drop(sock)
        elif b"\n" in line:
            reply = answer(line.partition(b"\n")[0], self._handlers)
            # One short reply to a local socket whose buffer is empty never blocks.
            with contextlib.suppress(OSError):
                sock.sendall(json.dumps(reply).encode() + b"\n")
            self._drop(sock)
        else:
            self._lines[sock] = line

    def _drop(self, sock: socket.socket) -> None:
        del self._lines[sock]
        self._selector.unregister(sock)
        sock.close()


def answer(line: bytes, handlers: Mapping[str, Handler]) -> Mapping[str, Any]:
    """The reply to a request line, without its newline; anything that is none is told so."""
    try:
        request = json.loads(line)
        call = request.pop("call")
        return {"ok": True, **handlers[call](**request)}
    except exception.EnlightenedError as error:
        return {"ok": False, "error": str(error)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return {"ok": False, "error": f"bad request: {error!r}"}


def ask(path: str, call: str, **arguments: Any) -> dict[str, Any]:
    """Ask a running relay.

    :raises RelayGone: nothing answers at `path` (the relay has ended, or was never there).
    :raises RelayError: the relay answered with an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(REPLY_TIMEOUT_S)
            sock.connect(path)
            sock.sendall(json.dumps({"call": call, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as file:
                reply: dict[str, Any] = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise exception.RelayGone(f"no relay answers at {path}: {error}") from error
    if not reply.pop("ok", False):
        raise exception.RelayError(f"relay at {path}: {reply.get('error')}")
    return reply
