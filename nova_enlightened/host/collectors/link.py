# SPDX-License-Identifier: Apache-2.0
"""The network that migrations cross: its speed, whether it is up, errors on it."""

import ipaddress
import json
import logging
import subprocess
from collections.abc import Callable
from typing import Any, Final

from nova_enlightened.host.collectors.reading import Collector, Reading

LOG = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 60.0
COMMAND_S: Final = 2.0
MEGABIT: Final = 125_000
"""Bytes."""
ERRORS: Final = ("rx_errors", "tx_errors")
CLASS: Final = "/sys/class/net"


def ask_ip(address: str) -> str | None:
    """What ``ip`` says of the interfaces that have an address; None where it says nothing."""
    try:
        done = subprocess.run(
            ["ip", "-json", "address", "show", "to", address],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        LOG.debug("ip: %s", error)
        return None
    return done.stdout


def interface_of(answer: str | None) -> str | None:
    """Name of the first interface in ``ip -json address``."""
    try:
        for one in json.loads(answer or "[]"):
            if name := one.get("ifname"):
                return str(name)
    except (ValueError, AttributeError, TypeError) as error:
        LOG.debug("ip answered nonsense: %s", error)
    return None


class MigrationLink(Collector):
    """The interface that ``[enlightened] link_address`` is on."""

    name = "link"

    def __init__(self, *arguments: Any, ask: Callable[[str], str | None] = ask_ip) -> None:
        super().__init__(*arguments)
        self._ask = ask
        self._looked: float | None = None
        self._interface: str | None = None
        self._errors: int | None = None

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`. Where no one address is configured there is nothing to watch."""
        configured = int(self.surroundings.options.link_bandwidth) * MEGABIT
        address = str(self.surroundings.link_options.link_address)
        if not _is_one_address(address):
            return Reading(bandwidth=configured)
        if self._looked is None or now - self._looked >= LOOK_AGAIN_S:
            self._looked = now
            self._interface = interface_of(self._ask(address))
            self._tell_errors()
        if self._interface is None:
            return Reading(
                bandwidth=configured, trouble=(f"no interface has link_address {address}",)
            )
        carrier = (self._read("carrier") or "").strip()
        trouble = (f"{self._interface} has no carrier",) if carrier == "0" else ()
        return Reading(bandwidth=configured or self._speed(), trouble=trouble)

    def _speed(self) -> int:
        text = (self._read("speed") or "").strip()
        return int(text) * MEGABIT if text.isdecimal() else 0

    def _tell_errors(self) -> None:
        texts = [self._read(f"statistics/{name}") for name in ERRORS]
        if self._interface is None or None in texts:
            return
        errors = sum(int(text) for text in texts if text and text.strip().isdecimal())
        if self._errors is not None and errors > self._errors:
            LOG.warning(
                "%d errors on %s, which migrations use, within %d s",
                errors - self._errors,
                self._interface,
                LOOK_AGAIN_S,
            )
        self._errors = errors

    def _read(self, name: str) -> str | None:
        return self.surroundings.read(f"{CLASS}/{self._interface}/{name}")


def _is_one_address(text: str) -> bool:
    """Whether it is an IP address, and not that of all interfaces."""
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False
