# SPDX-License-Identifier: Apache-2.0
"""Unix sockets to listen on."""

import os
import pathlib
import socket
from typing import Final

OWN_DIRECTORY: Final = 0o755
OWN_SOCKET: Final = 0o600


def listen(path: str | pathlib.Path, backlog: int = 4) -> socket.socket:
    """A listening socket at `path`, for this user only, in place of a stale one.

    Directories above it are made. Raises OSError.

    :param backlog: connections that may wait to be accepted.
    """
    where = pathlib.Path(path)
    where.parent.mkdir(parents=True, exist_ok=True, mode=OWN_DIRECTORY)
    where.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(where))
        os.chmod(where, OWN_SOCKET)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
