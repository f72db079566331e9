# SPDX-License-Identifier: Apache-2.0
"""What these tests ask of Nova, and how they wait for it: its API tells nobody by itself."""

import json
import time
from collections.abc import Callable
from typing import Any

from lab.openstack import Cloud
from lab.openstack.servers import Server

MOVE_S = 240.0
LOOK_S = 0.2
ENDED = ("completed", "error", "failed", "cancelled")


def until(there: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that nobody tells of; ``what`` is said where it does not come."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, what
        time.sleep(LOOK_S)


def moved(cloud: Cloud, server: Server) -> tuple[dict[str, Any], list[str]]:
    """Have Nova live-migrate it; its migration when it has ended, and every status seen."""
    before = {one["id"] for one in cloud.api.migrations(server.uuid)}
    server.live_migrate()
    seen: list[str] = []
    found: dict[str, Any] = {}

    def ended() -> bool:
        new = [one for one in cloud.api.migrations(server.uuid) if one["id"] not in before]
        if new and new[0]["status"] not in seen[-1:]:
            seen.append(new[0]["status"])
            found.update(new[0])
        return bool(new) and new[0]["status"] in ENDED

    until(ended, MOVE_S, f"no end after {MOVE_S:.0f} s")
    return found, seen


def source_relays(cloud: Cloud, host: str) -> list[dict[str, Any]]:
    """What the relays on a host that was a source last wrote of themselves."""
    directory = cloud.lab.hosts[host].outside("/run/nova-enlightened")
    return [json.loads(path.read_text()) for path in directory.glob("*-source/state.json")]
