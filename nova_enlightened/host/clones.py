# SPDX-License-Identifier: Apache-2.0
"""Tells a guest that was resumed from a stored appliance which server it is from now on.

Until it knows, its interfaces have no link: it believes that it has the addresses of the server
that was captured, and may not be the only one. The guest is a tenant's: what it answers is logged
and believed no further.
"""

import base64
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from xml.etree import ElementTree

import libvirt

from nova_enlightened import exception
from nova_enlightened.host.connection import translated
from nova_enlightened.host.guest import GuestSession
from nova_enlightened.knowledge import domain_xml
from nova_enlightened.stream.guest_channel import PORT_NAME

LOG = logging.getLogger(__name__)

SEED_BYTES: Final = 64
ANSWER_S: Final = 5.0
"""A guest whose pages are still on their way takes its time; it is asked again."""
AGAIN_S: Final = 0.2
GUEST_MEMORY: Final = 64 << 20
"""What the session's limits are computed from: nothing large is asked for."""
_LIVE: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE


def channel(xml: str) -> str | None:
    """QEMU's socket of the guest channel, in the XML of a running domain."""
    for one in domain_xml.root(xml).iterfind("devices/channel[@type='unix']"):
        target, source = one.find("target"), one.find("source")
        if target is not None and source is not None and target.get("name") == PORT_NAME:
            return source.get("path")
    return None


def set_links(domain: Any, up: bool) -> None:
    """Plug, or unplug, the cable of every interface. :raises LibvirtError: it is not done."""
    with translated(f"links of {domain.name()}"):
        for one in domain_xml.root(domain.XMLDesc()).iterfind("devices/interface"):
            link = one.find("link")
            if link is None:
                link = ElementTree.SubElement(one, "link")
            link.set("state", "up" if up else "down")
            domain.updateDeviceFlags(ElementTree.tostring(one, "unicode"), _LIVE)


def message(identity: Mapping[str, Any], now: float) -> dict[str, Any]:
    """What the guest is told; the seed is different each time.

    :param now: seconds since the epoch.
    """
    seed = base64.b64encode(os.urandom(SEED_BYTES)).decode()
    return {**identity, "seed": seed, "time": now}


def tell(
    path: str,
    identity: Mapping[str, Any],
    deadline: float,
    ended: threading.Event,
    open_session: Callable[[str, int], GuestSession] = GuestSession,
) -> dict[str, Any]:
    """Tell a guest, again and again until it answers; what it says of itself.

    :param path: of its channel's socket.
    :param deadline: of the monotonic clock.
    :param ended: set when it is not worth it any more.
    :raises GuestUnreachable: it has not answered by then. :raises HintError: it answers nonsense.
    """
    while True:
        try:
            with open_session(path, GUEST_MEMORY) as session:
                return session.clone(message(identity, time.time()), ANSWER_S)
        except exception.GuestUnreachable:
            if time.monotonic() >= deadline or ended.wait(AGAIN_S):
                raise
