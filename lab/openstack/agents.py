# SPDX-License-Identifier: Apache-2.0
"""What the remediator asks of the hosts' agents, asked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from oslo_config import cfg
from oslo_service import backend

if TYPE_CHECKING:
    from lab.openstack.cloud import Cloud
    from nova_enlightened.rpc import HostAPI

_T = TypeVar("_T")
TTL_S = 60.0


class Agents:
    """Calls over the cloud's message bus, from ctl's network."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._calls: HostAPI | None = None
        self._transport: Any = None

    def call(self, ask: Callable[[HostAPI], _T]) -> _T:
        """What ``ask`` returns. Threads that oslo.messaging starts stay in ctl's network too."""
        backend.init_backend(backend.BackendType.THREADING)
        # Imports oslo.messaging, which takes the kind of threads as it is chosen by then. Not in a
        # short-lived thread: what else it imports leaves one that is waited for without end.
        from nova_enlightened import rpc

        return self._cloud.lab.control.in_network(lambda: ask(self._connected(rpc)))

    def _connected(self, rpc: ModuleType) -> HostAPI:
        if self._calls is None:
            conf = cfg.ConfigOpts()
            file = str(self._cloud.places.configuration / "nova.conf")
            conf([], project="lab", default_config_files=[file])
            self._transport = rpc.get_transport(conf)
            self._calls = rpc.HostAPI(self._transport)
        assert self._calls is not None
        return self._calls

    def describe(self, host: str) -> dict[str, Any]:
        """See ``HostAPI.describe``."""
        return self.call(lambda agents: agents.describe(host))

    def arm(self, host: str, *uuids: str) -> dict[str, Any]:
        """See ``HostAPI.arm``."""
        return self.call(lambda agents: agents.arm(host, list(uuids)))

    def order(self, host: str, uuid: str, cause: str) -> dict[str, Any]:
        """Have the server's next live migration from that host leave in its guest's order."""
        return self.call(lambda agents: agents.order_urgent(host, uuid, cause, TTL_S))

    def close(self) -> None:
        """Leave the bus."""
        if self._transport is not None:
            self._cloud.lab.control.in_network(self._transport.cleanup)
            self._calls = self._transport = None
