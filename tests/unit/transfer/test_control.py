# SPDX-License-Identifier: Apache-2.0
"""A relay's control socket."""

import pathlib
import selectors
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.transfer import control


def _refuse() -> Mapping[str, Any]:
    raise exception.RelayError("not now")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> Iterator[str]:
    """A server that runs until the test has ended."""
    address = str(tmp_path / "control.sock")
    selector = selectors.DefaultSelector()
    reader, writer = socket.socketpair()
    handlers: dict[str, Any] = {
        "status": lambda: {"phase": "waiting"},
        "know": lambda snapshot: {"took": snapshot},
        "refuse": _refuse,
    }
    server = control.ControlServer(address, handlers, selector)
    server.open()
    selector.register(reader, selectors.EVENT_READ, None)

    def serve() -> None:
        while True:
            for key, ready in selector.select():
                if key.data is None:
                    return
                key.data(ready)

    thread = threading.Thread(target=serve)
    thread.start()
    yield address
    writer.send(b"\0")
    thread.join()
    server.close()
    for end in (reader, writer):
        end.close()
    selector.close()


def test_a_call_is_answered(path: str) -> None:
    assert control.ask(path, "status") == {"phase": "waiting"}


def test_arguments_reach_the_handler(path: str) -> None:
    assert control.ask(path, "know", snapshot="/x") == {"took": "/x"}


def test_an_error_of_the_relay_reaches_the_caller(path: str) -> None:
    with pytest.raises(exception.RelayError, match="not now"):
        control.ask(path, "refuse")


def test_an_unknown_call_is_an_error(path: str) -> None:
    with pytest.raises(exception.RelayError, match="bad request"):
        control.ask(path, "explode")


def test_garbage_is_answered_and_the_server_goes_on(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"\xff\xfe nonsense\n")
        assert b"bad request" in sock.makefile("rb").readline()
    assert control.ask(path, "status") == {"phase": "waiting"}


def test_an_endless_line_is_dropped(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        endless = b"x" * (1 << 26)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sock.sendall(endless)


def test_nobody_there_is_told_as_such(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.RelayGone):
        control.ask(str(tmp_path / "nothing.sock"), "status")
