# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.ordering``: have one guest leave through its host's agent.

The calls are those of nova-compute's driver, in its order; where an agent does not answer it is
asked again, so that the guest leaves in its own order and by relays.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import libvirt
from oslo_config import cfg
from oslo_service import backend

from nova_enlightened import exception
from nova_enlightened.host import connection as connecting
from nova_enlightened.host import standing
from nova_enlightened.host.eviction import Eviction, Route
from nova_enlightened.virt import outcome

PATIENT_S: Final = 120.0
PAUSE_S: Final = 0.5


def patiently(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the agent answers at last. Raises EnlightenedError where it does not for long."""
    deadline = time.monotonic() + PATIENT_S
    while True:
        try:
            return call()
        except exception.EnlightenedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


def order(agents: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Move it; how it ended. Raises EnlightenedError."""
    uuid, host = arguments.uuid, arguments.host
    patiently(lambda: agents.arm(host, [uuid]))

    def ready() -> dict[str, Any]:
        answer = agents.prepare_eviction(host, uuid, arguments.destination, True)
        if not answer["ordered"]:
            raise exception.EvictionError(str(answer["reason"]))
        return dict(answer)

    prepared = patiently(ready)
    followed = {
        "instance": uuid,
        "destination": arguments.destination,
        "control_uri": arguments.to,
        "migration": prepared["migration"],
    }
    patiently(lambda: agents.follow_eviction(host, **followed))
    print("prepared", file=sys.stderr)

    def lookup() -> Any:
        return libvirt.open(arguments.connect).lookupByUUIDString(uuid)

    eviction = Eviction(lookup(), Route(arguments.to, prepared["migrate_uri"]))
    end = "moved"
    try:
        eviction.run()
    except exception.LibvirtError as error:
        if eviction.times.switch_accepted is None:
            raise
        print(f"libvirt follows it no more: {error}", file=sys.stderr)
        found = outcome.wait(
            lambda: standing.at_source(lookup), lambda: agents.recovery(host, uuid), uuid
        )
        end = found.end.value
    said = "completed" if end == "moved" else "failed"
    try:
        agents.end_eviction(host, migration=prepared["migration"], outcome=said)
    except exception.EnlightenedError as error:  # the agent finds out by itself
        print(f"the agent was not told: {error}", file=sys.stderr)
    return {"end": end, **followed}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m lab.ordering", description=__doc__)
    parser.add_argument("uuid", help="of the domain")
    for name in ("--connect", "--to", "--host", "--destination", "--config-file"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    backend.init_backend(backend.BackendType.THREADING)
    # Imports oslo.messaging, which takes the kind of threads as it is chosen by then.
    from nova_enlightened import rpc

    connecting.run_event_loop()
    conf = cfg.ConfigOpts()
    conf([], project="lab", default_config_files=[arguments.config_file])
    try:
        told = order(rpc.HostAPI(rpc.get_transport(conf)), arguments)
    except (exception.EnlightenedError, libvirt.libvirtError) as error:
        print(f"ordering: {error}", file=sys.stderr)
        return 1
    print(json.dumps(told))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
