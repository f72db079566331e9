# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-remediator``: relieves contended compute hosts."""

import signal
import sys
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log
from oslo_service import backend

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.conf import remediation

PROGRAM = "nova-enlightened-remediator"


def run(conf: cfg.ConfigOpts) -> None:
    """Be the remediator until a signal ends it.

    :raises EnlightenedError: what is configured is not there, or cannot be used.
    """
    # These import oslo.messaging, which takes the kind of threads as it is chosen by then.
    from nova_enlightened import rpc
    from nova_enlightened.remediation import servers
    from nova_enlightened.remediation.service import Service

    servers.check(conf)
    service = Service(conf, rpc.get_transport(conf))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.ask_to_stop())
    try:
        service.start()
        service.run()
    finally:
        service.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    backend.init_backend(backend.BackendType.THREADING)
    try:
        given = sys.argv[1:] if argv is None else argv
        conf = options.for_service(given, PROGRAM, remediation.register_auth_opts)
        log.setup(conf, "nova_enlightened")
        run(conf)
    except (exception.EnlightenedError, cfg.Error) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
