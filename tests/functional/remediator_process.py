# SPDX-License-Identifier: Apache-2.0
"""The remediator as a process of its own, with a bus inside it on which two hosts report.

Arguments: configuration file, uuid of the guest that makes ``compute1`` contended. Says on
standard output what the agent of ``compute1`` is asked, and on standard error what it logs.
"""

import sys
import threading
import time
from typing import Any

from oslo_service import backend

GIB = 1 << 20


def report(host: str, contended: bool, guests: list[str]) -> Any:
    from nova_enlightened.contention.report import DomainReport, HostReport, Level

    level = Level.ACT if contended else Level.CALM
    return HostReport(
        host=host,
        node=host,
        at=time.time(),
        level=level,
        reason="measured" if contended else "",
        cpu_level=level,
        memory_level=Level.CALM,
        cpus=4,
        cpu_used=4.0 if contended else 0.5,
        cpu_waiting=1.2 if contended else 0.0,
        memory_total=8 * GIB,
        memory_available=6 * GIB,
        bandwidth=125_000_000,
        capable=True,
        domains=tuple(DomainReport(one, 2, 1.0, 0.6, GIB, GIB, GIB // 8) for one in guests),
    )


class Agent:
    """The agent of ``compute1``, as far as the remediator asks it."""

    def order_urgent(self, context: Any, instance: str, cause: str, ttl: float) -> dict[str, Any]:
        sys.stdout.write(f"order_urgent {instance}\n")
        sys.stdout.flush()
        return {}

    def withdraw_urgent(self, context: Any, instance: str) -> dict[str, Any]:
        return {}

    def arm(self, context: Any, instances: list[str]) -> dict[str, Any]:
        return {}

    def disarm(self, context: Any, instances: list[str]) -> dict[str, Any]:
        return {}


def main() -> int:
    backend.init_backend(backend.BackendType.THREADING)
    import oslo_messaging

    from nova_enlightened import rpc
    from nova_enlightened.cmd import remediator

    real, guest = rpc.get_transport, sys.argv[2]

    def with_hosts(conf: Any) -> Any:
        transport = real(conf)
        agent = Agent()
        agent.target = oslo_messaging.Target(version=rpc.HOST_VERSION)  # type: ignore[attr-defined]
        oslo_messaging.get_rpc_server(transport, rpc.host_target("compute1"), [agent]).start()
        api = rpc.ReportAPI(transport)

        def tell() -> None:
            while True:
                api.cast(report("compute1", True, [guest]))
                api.cast(report("compute2", False, []))
                time.sleep(0.2)

        threading.Thread(target=tell, daemon=True).start()
        return transport

    rpc.get_transport = with_hosts
    return remediator.main(["--config-file", sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
