# SPDX-License-Identifier: Apache-2.0
"""A relay process that has started already and waits to be told which relay it is.

To start an interpreter and load its modules takes a third of a second of CPU on each host, at the
very moment when a contended one has none to spare.
"""

import contextlib
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

from nova_enlightened import niceness
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

ENTRY: Final = (sys.executable, "-m", "nova_enlightened.cmd.relay", "spare")


class SpareRelay:
    """One spare process, replaced when :meth:`start` is called after it was taken. Thread-safe.

    It ends by itself when this process does, unless it was taken.

    :param unhurried: it is loaded while nobody else wants the CPU. Only where a relay may be
        preferred to others again, which an ordinary user may not.
    """

    def __init__(self, *, unhurried: bool) -> None:
        self._unhurried = unhurried
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._told: socket.socket | None = None

    def start(self, prefix: Sequence[str] = ()) -> None:
        """Have one, if there is none. A spare that cannot be had is done without.

        :param prefix: command put before the relay's own, to enter another namespace.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._forget()
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [*prefix, *ENTRY, str(its.fileno())]
            try:
                with its:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=[its.fileno()],
                        start_new_session=True,
                    )
            except OSError as error:
                ours.close()
                LOG.warning("No spare relay: %s", error)
                return
            if self._unhurried:
                niceness.ask(niceness.UNHURRIED, self._process.pid)
            self._told = ours

    def take(self, spec: RelaySpec, listener: socket.socket, log: pathlib.Path) -> int | None:
        """Make the spare this relay; its pid, or None where there is none.

        :param listener: stays the caller's to close.
        :param log: where the relay's outputs go from here on.
        """
        with self._lock:
            process, told = self._process, self._told
            if process is None or told is None or process.poll() is not None:
                return None
            try:
                with log.open("ab") as output:
                    descriptors = [listener.fileno(), output.fileno()]
                    socket.send_fds(told, [spec.path.encode()], descriptors)
            except OSError as error:
                LOG.warning("The spare relay cannot be told: %s", error)
                return None
            if self._unhurried:
                niceness.ask(niceness.FAIR, process.pid)  # it may not have loaded all yet
            process.returncode = 0  # it outlives this object and is looked after by its pid
            self._forget()
            return process.pid

    def close(self) -> None:
        """End the spare, and wait until it has ended."""
        with self._lock:
            process = self._process
            self._forget()
        if process is not None:
            process.wait()

    def _forget(self) -> None:
        told, self._told, self._process = self._told, None, None
        if told is not None:
            told.close()


def wait_to_be_told(descriptor: int) -> tuple[str, int] | None:
    """The spare's side: path of the specification and descriptor of the listening socket.

    None: whoever had the spare has gone. The outputs become those that were sent along.
    """
    with socket.socket(fileno=descriptor) as asked:
        path, received, _, _ = socket.recv_fds(asked, 4096, 2)
    if not path or len(received) != 2:
        for one in received:
            with contextlib.suppress(OSError):
                os.close(one)
        return None
    listener, output = received
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return path.decode(), listener
