# SPDX-License-Identifier: Apache-2.0
"""Carry connections from a unix socket on one host to the same path on the other, and no more.

Stock QEMU needs this where it shall use ``postcopy-preempt`` under libvirt 9.0: with a TCP
migration libvirt connects itself and hands QEMU the socket, and QEMU cannot open a second
channel on that. With ``unix://`` it connects by itself. Every connection gets a TCP connection
of its own over the migration link, as QEMU would have made, and the kernel moves the bytes
(splice); half-close is carried. It is the yardstick beside the relay, so it does nothing else.
"""

import argparse
import os
import socket
import sys
import threading
from pathlib import Path

_PIPE_BYTES = 1 << 20


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Everything from ``source`` to ``target`` until its end, then end that direction too."""
    read, write = os.pipe()
    try:
        while moved := os.splice(source.fileno(), write, _PIPE_BYTES):
            while moved:
                moved -= os.splice(read, target.fileno(), moved)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
    finally:
        os.close(read)
        os.close(write)


def _join(one: socket.socket, two: socket.socket) -> None:
    with one, two:
        back = threading.Thread(target=_copy, args=(two, one))
        back.start()
        _copy(one, two)
        back.join()


def _connect(wanted: argparse.Namespace) -> socket.socket:
    """From the source's side to the other host, from the destination's to QEMU."""
    if wanted.role == "source":
        sock = socket.create_connection((wanted.address, wanted.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(wanted.path)
    return sock


def _listen(wanted: argparse.Namespace) -> socket.socket:
    if wanted.role == "source":
        Path(wanted.path).unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(wanted.path)
        sock.listen()
        return sock
    return socket.create_server((wanted.address, wanted.port))


def main() -> int:
    """One side, until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m lab.forward")
    parser.add_argument("role", choices=("source", "destination"))
    parser.add_argument(
        "path", help="unix socket: listened on by source, connected to by the other"
    )
    parser.add_argument("address", help="the destination's address on the migration link")
    parser.add_argument("port", type=int)
    wanted = parser.parse_args()
    with _listen(wanted) as listening:
        print("ready", flush=True)
        while True:
            accepted, _ = listening.accept()
            try:
                other = _connect(wanted)
            except OSError as error:
                print(f"forward: {error}", file=sys.stderr, flush=True)
                accepted.close()
                continue
            threading.Thread(target=_join, args=(accepted, other), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
