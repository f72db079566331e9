# SPDX-License-Identifier: Apache-2.0
"""openstacksdk, called from outside the namespaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import openstack.config
import openstack.connection

from lab.namespaces import Holder
from lab.openstack.configuration import REGION, account

_T = TypeVar("_T")


class Api:
    """A connection as the administrator. Sockets are made in ctl's network: see ``call``."""

    def __init__(self, control: Holder) -> None:
        self._control = control
        self._connection: Any = None

    def call(self, ask: Callable[[Any], _T]) -> _T:
        """What ``ask(connection)`` returns, called on a thread in ctl's network."""

        def inside() -> _T:
            if self._connection is None:
                auth = {name: value for name, value in account("admin").items()
                        if name not in ("auth_type", "region_name")}  # fmt: skip
                region = openstack.config.get_cloud_region(
                    auth=auth, auth_type="password", region_name=REGION,
                    load_envvars=False, load_yaml_config=False, connect_retries=5,
                )  # fmt: skip
                self._connection = openstack.connection.Connection(config=region)
            return ask(self._connection)

        return self._control.in_network(inside)

    def close(self) -> None:
        """Close its connections, if there are any."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what the laboratory asks often ----------------------------------------------------

    def server(self, uuid: str) -> Any:
        """The server as it is now. Raises openstacksdk's NotFoundException where it is not."""
        return self.call(lambda cloud: cloud.compute.get_server(uuid))

    def host_of(self, uuid: str) -> str:
        """The compute host Nova has it on."""
        return str(self.server(uuid).compute_host)

    def migrations(self, uuid: str) -> list[dict[str, Any]]:
        """Its migrations, as ``/os-migrations`` tells them, newest first."""
        path = f"/os-migrations?instance_uuid={uuid}"
        asked = self.call(lambda cloud: cloud.compute.get(path, microversion="2.80").json())
        return sorted(asked["migrations"], key=lambda one: -int(one["id"]))

    def allocations(self, uuid: str) -> dict[str, dict[str, int]]:
        """What placement holds for it: resources by the name of the provider."""

        def ask(cloud: Any) -> dict[str, dict[str, int]]:
            held = cloud.placement.get(f"/allocations/{uuid}").json()["allocations"]
            providers = cloud.placement.get("/resource_providers").json()["resource_providers"]
            names = {each["uuid"]: each["name"] for each in providers}
            return {names[uuid]: each["resources"] for uuid, each in held.items()}

        return self.call(ask)
