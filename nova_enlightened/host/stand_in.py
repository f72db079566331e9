# SPDX-License-Identifier: Apache-2.0
"""Stands in for a destination that has ended, so that QEMU at the source leaves its pause.

QEMU whose post-copy has paused waits for a recovery, and for nothing else: cancelled then, it waits
for good (``postcopy_pause`` of 7.2), or declines (from 10.0 on). So it gets one. Afterwards its
migration is one that is under way, of which nothing has crossed.
"""

import contextlib
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, ram_places, resuming
from nova_enlightened.stream import encode
from nova_enlightened.stream.empty_destination import EmptyDestination
from nova_enlightened.transfer import unix_socket

RECOVERS_S: Final = 5.0
_READ: Final = 1 << 20


class StandIn:
    """Towards one QEMU.

    :param main: its main channel.
    """

    def __init__(self, main: socket.socket, destination: EmptyDestination) -> None:
        self._main = main
        self._destination = destination

    def answer(self) -> None:
        """Until it asks no more. Raises OSError, StreamError."""
        self._listen(lambda: self._destination.resumed)

    def take_all(self) -> None:
        """Take what it has to send and throw it away, until it waits for the last word.

        Raises OSError, StreamError.
        """
        self._listen(lambda: self._destination.ended)

    def say_last_word(self) -> None:
        """As a destination that has all it needs. Raises OSError."""
        self._main.sendall(encode.shut())

    def close(self) -> None:
        """Harmless when done before."""
        self._main.close()

    def _listen(self, heard: Callable[[], bool]) -> None:
        while not heard():
            data = self._main.recv(_READ)
            if not data:
                raise ConnectionResetError("it has closed its connection")
            self._main.sendall(self._destination.receive_data(data))


@contextlib.contextmanager
def recovered(domain: Any, path: str) -> Iterator[StandIn]:
    """QEMU's post-copy is under way again, and nothing is read of it.

    To be called only where it is certain that the VM never executes elsewhere.

    :param domain: at the source, ``libvirt.virDomain``; its post-copy has paused.
    :param path: of a unix socket to be made, for QEMU with two channels.
    :raises LibvirtError: QEMU declines, does not recover, or ends it too early.
    """
    blocks = {name: place.length for name, place in ram_places.of(domain).items()}
    try:
        with _resumed(domain, path) as (main, second):
            main.settimeout(RECOVERS_S)
            made = StandIn(main, EmptyDestination(blocks))
            made.answer()
            with second():
                if not qemu_monitor.until(lambda: _is_active(domain), RECOVERS_S):
                    raise TimeoutError("it stays paused")
                yield made
    except (OSError, exception.StreamError) as error:
        raise exception.LibvirtError(f"QEMU at the source does not recover: {error}") from error


@contextlib.contextmanager
def _resumed(
    domain: Any, path: str
) -> Iterator[tuple[socket.socket, Callable[[], contextlib.AbstractContextManager[Any]]]]:
    """QEMU's main channel, and what takes its second one, if it has one."""
    if not resuming.preempts(domain):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                resuming.through(domain, theirs)
            yield ours, contextlib.nullcontext
        return
    try:
        with unix_socket.listen(path) as listener:
            listener.settimeout(RECOVERS_S)
            resuming.to_listener(domain, path)
            main, _ = listener.accept()
            with main:
                yield main, lambda: listener.accept()[0]
    finally:
        pathlib.Path(path).unlink(missing_ok=True)


def _is_active(domain: Any) -> bool:
    return qemu_monitor.migration_status(domain) == "postcopy-active"
