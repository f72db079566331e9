# SPDX-License-Identifier: Apache-2.0
"""What one relay process is told when it starts."""

import dataclasses
import json
import os
from typing import Any, Self

from nova_enlightened import exception
from nova_enlightened.plan.window import RESEQUENCED
from nova_enlightened.transfer.process_spec import ProcessSpec

ROLES = ("source", "destination")


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """PEM files of the link's mutual TLS, and the name the peer's certificate must carry."""

    ca: str
    cert: str
    key: str
    peer_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaySpec(ProcessSpec):
    """One side of one migration.

    :param role: "source" (QEMU sends) or "destination" (QEMU receives).
    :param migration: the migration's UUID; both sides must name the same one.
    :param socket: the unix socket of ``migrate_uri``. The source relay is connected to
        there by the sending QEMU; the destination relay connects to the receiving QEMU.
    :param link_host, link_port: the destination relay's TCP address.
    :param secret: one-time secret of this migration, hexadecimal, known to both relays.
    :param tls: None only where the operator configured a plaintext link.
    :param policy: ordering policy's name, source only.
    :param layout: the guest's memory layout (``MemoryLayout.to_dict``), source only.
    :param knowledge: file holding the newest snapshot of guest knowledge, source only.
    :param window_floor, window_cap: bounds of the bytes requested and not yet read from QEMU,
        source only.
    :param retain: bytes kept unacknowledged at most, which also bounds relay memory.
    :param monitor: the unix socket that QEMU connects its second monitor to, destination only;
        see :mod:`nova_enlightened.host.arrival_monitor`.
    """

    role: str
    migration: str
    socket: str
    link_host: str
    link_port: int
    secret: str
    tls: TlsFiles | None
    policy: str = "heat"
    layout: dict[str, Any] | None = None
    knowledge: str | None = None
    window_floor: int = RESEQUENCED.floor
    window_cap: int = RESEQUENCED.cap
    retain: int = 8 * 1024 * 1024
    monitor: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise exception.ConfigError(f"relay role {self.role!r} is not one of {ROLES}")
        if len(self.secret) < 32:
            raise exception.ConfigError("relay secret is shorter than 16 bytes")

    @property
    def trace(self) -> str:
        """The fault trace written when the migration ends, source only."""
        return os.path.join(self.run_directory, "faults.trace")

    @property
    def unwanted(self) -> str:
        """A file that has the relay end, also one that has yet to start and cannot be asked to."""
        return os.path.join(self.run_directory, "unwanted")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """:raises ConfigError: not a JSON object, or a key is missing or unknown."""
        try:
            fields = json.loads(text)
            tls = fields.pop("tls")
            return cls(tls=TlsFiles(**tls) if tls else None, **fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise exception.ConfigError(f"relay specification: {error}") from error
