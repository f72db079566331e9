# SPDX-License-Identifier: Apache-2.0
"""What one player process is told when it starts."""

import dataclasses
import json
import os
import re
from typing import Final, Self

from nova_enlightened import exception
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.transfer.process_spec import ProcessSpec

CONNECTIONS: Final = 24
CACHE_LIMIT: Final = 20 << 30
DISK_CLIENTS: Final = 16
"""Connections to an export that may wait."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class PlayerSpec(ProcessSpec):
    """One VM to be played.

    :param store: URL of the store the appliance lies in.
    :param manifest: SHA-256 of the appliance's manifest, hexadecimal.
    :param plan: SHA-256 of its prefetch plan; None: the tail only.
    :param qemu_socket: unix socket on which QEMU is told to listen (``migrate-incoming``, or
        ``migrate-recover`` when resuming); None: the disks only, for a VM that was shut off since.
    :param nbd_sockets: disk target to the unix socket its export is served on.
    :param cache_directory: chunks of all players of this host; None: keep nothing.
    :param cache_limit: bytes of it.
    :param record: a learning run: nothing is fetched that nobody asked for, so that the trace
        shows all that was touched.
    :param tail: what to fetch of that which neither the plan nor the guest asked for, a value of
        :class:`.Tail`. With ``none`` the VM depends on the player until it is told to fill.
    :param resume: take up a VM whose player was lost, after ``migrate-recover``.
    :param connections: to the store at once, 1 to 256.
    :param bandwidth_limit: bytes a second from the store; None: as fast as it goes.
    """

    store: str
    manifest: str
    plan: str | None = None
    qemu_socket: str | None = None
    nbd_sockets: dict[str, str] = dataclasses.field(default_factory=dict)
    cache_directory: str | None = None
    cache_limit: int = CACHE_LIMIT
    record: bool = False
    tail: str = Tail.FAULTED
    resume: bool = False
    connections: int = CONNECTIONS
    bandwidth_limit: float | None = None

    def __post_init__(self) -> None:
        for digest in (self.manifest, self.plan):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise exception.ConfigError(f"player specification: {digest!r} is no SHA-256")
        if self.tail not in list(Tail):
            raise exception.ConfigError(f"player specification: tail {self.tail!r}")
        if not 1 <= self.connections <= 256:
            raise exception.ConfigError(f"player specification: {self.connections} connections")
        if self.cache_limit < 0 or (self.bandwidth_limit or 1.0) <= 0:
            raise exception.ConfigError("player specification: a limit is negative")
        if self.qemu_socket is None and not self.nbd_sockets:
            raise exception.ConfigError("player specification: neither memory nor a disk to play")

    @property
    def log(self) -> str:
        """The player's log."""
        return os.path.join(self.run_directory, "player.log")

    @property
    def trace(self) -> str:
        """What the guest touched first, and when; written while it runs and at the end."""
        return os.path.join(self.run_directory, "touched.trace")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """:raises ConfigError: not a JSON object, or a key is missing, unknown or of no use."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise exception.ConfigError(f"player specification: {error}") from error
