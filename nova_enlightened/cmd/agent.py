# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-agent``: the service of a compute host."""

import logging
import signal
import sys
import threading
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log
from oslo_service import backend

from nova_enlightened import conf as options
from nova_enlightened import exception, privsep

LOG = logging.getLogger(__name__)

PROGRAM = "nova-enlightened-agent"


def run(conf: cfg.ConfigOpts, ending: threading.Event) -> None:
    """Be the agent until `ending` is set. :raises ConfigError: what is configured is not there."""
    # These import oslo.messaging, which takes the kind of threads as it is chosen by then.
    from nova_enlightened import rpc
    from nova_enlightened.host import connection as libvirt_connection
    from nova_enlightened.host import service

    libvirt_connection.run_event_loop()
    transport = rpc.get_transport(conf)
    agent = service.Agent(
        conf,
        libvirt_connection.Connection(conf.enlightened_agent.libvirt_uri),
        rpc.HostAPI(transport),
        rpc.ReportAPI(transport).cast,
    )
    server = service.BusServer(transport, agent.host, agent.endpoint, agent.appliance_endpoint)
    try:
        agent.start()
        server.start()
        LOG.info("Agent of host %s", agent.host)
        ending.wait()
        LOG.info("Ending; relays go on")
    finally:
        server.stop()
        agent.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    backend.init_backend(backend.BackendType.THREADING)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        conf = options.for_service(sys.argv[1:] if argv is None else argv, PROGRAM)
        log.setup(conf, "nova_enlightened")
        privsep.start()
        try:
            run(conf, ending)
        finally:
            privsep.stop()
    except (exception.EnlightenedError, cfg.Error) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
