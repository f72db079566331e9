# SPDX-License-Identifier: Apache-2.0
"""The connection to libvirt: made once, and again when libvirtd comes back."""

from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host.connection import RETRY_S, Connection


class Fake:
    """A libvirt that can go away; a connection to it that dies with it."""

    def __init__(self) -> None:
        self.up = True
        self.opened = 0
        self.closed = 0
        self.now = 0.0
        self.active = True
        self.connection = Connection("qemu:///system", self.open, lambda: self.now)

    def open(self, uri: str) -> "Fake":
        self.opened += 1
        if not self.up:
            raise libvirt.libvirtError("Connection refused")
        return self

    def setKeepAlive(self, interval: int, count: int) -> None:
        raise libvirt.libvirtError("not supported")

    def isAlive(self) -> bool:
        return self.up

    def getHostname(self) -> str:
        return "node1"

    def lookupByUUIDString(self, uuid: str) -> Any:
        if uuid != "here":
            raise libvirt.libvirtError("Domain not found")
        return self

    def isActive(self) -> bool:
        return self.active

    def close(self) -> None:
        self.closed += 1


def test_one_connection_is_used_by_all() -> None:
    fake = Fake()
    assert fake.connection.get() is fake.connection.get()
    assert fake.opened == 1
    assert fake.connection.hostname() == "node1"


def test_libvirtd_that_comes_back_is_connected_to_again() -> None:
    fake = Fake()
    fake.connection.get()
    fake.up = False
    fake.now = RETRY_S
    with pytest.raises(exception.LibvirtError, match="qemu:///system"):
        fake.connection.get()
    assert fake.closed == 1
    fake.up = True
    fake.now = 3 * RETRY_S
    assert fake.connection.get() is fake


def test_attempts_are_not_made_by_everybody_who_asks() -> None:
    fake = Fake()
    fake.up = False
    for _ in range(5):
        with pytest.raises(exception.LibvirtError, match="Connection refused"):
            fake.connection.get()
    assert fake.opened == 1


def test_a_domain_that_is_not_here_is_an_error_of_ours() -> None:
    fake = Fake()
    with pytest.raises(exception.LibvirtError, match="elsewhere"):
        fake.connection.domain("elsewhere")


def test_a_domain_that_does_not_run_is_not_here() -> None:
    fake = Fake()
    fake.active = False
    with pytest.raises(exception.LibvirtError, match="not running"):
        fake.connection.domain("here")
