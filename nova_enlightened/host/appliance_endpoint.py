# SPDX-License-Identifier: Apache-2.0
"""What nova-compute may ask of its host's agent about appliances: the other side of
``rpc.HostAPI``, beside `endpoint`.
"""

from typing import Any

import oslo_messaging

from nova_enlightened import exception, rpc
from nova_enlightened.host.appliances import Appliances
from nova_enlightened.host.endpoint import expected, instance_uuid, seconds


class ApplianceEndpoint:
    """Methods called from the bus, in threads of its server. They raise ``EnlightenedError``."""

    target = oslo_messaging.Target(version=rpc.HOST_VERSION)

    def __init__(self, appliances: Appliances) -> None:
        self._appliances = appliances

    @expected
    def prepare_appliance(
        self, context: dict[str, Any], instance: str, appliance: dict[str, Any]
    ) -> dict[str, Any]:
        """See ``rpc.HostAPI``, as for all that follow."""
        return self._appliances.prepare(instance_uuid(instance), _object(appliance))

    @expected
    def play_appliance(
        self, context: dict[str, Any], instance: str, identity: dict[str, Any], within: float
    ) -> dict[str, Any]:
        """Fill it, and let it execute."""
        self._appliances.play(instance_uuid(instance), _object(identity), seconds(within))
        return {}

    @expected
    def appliance_state(self, context: dict[str, Any], instance: str) -> dict[str, Any]:
        """How far it is."""
        return self._appliances.state(instance_uuid(instance))

    @expected
    def end_appliance(self, context: dict[str, Any], instance: str, kept: bool) -> dict[str, Any]:
        """Let it go."""
        self._appliances.end(instance_uuid(instance), bool(kept))
        return {}


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise exception.AgentRefused("not an object")
    return value
