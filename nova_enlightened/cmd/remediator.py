# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-remediator``: relieves contended compute hosts."""

import signal
import sys
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from nova_enlightened import conf as options
from nova_enlightened import exception, rpc
from nova_enlightened.conf import remediation
from nova_enlightened.remediation import servers
from nova_enlightened.remediation.service import Service

PROGRAM = "nova-enlightened-remediator"


def configured(arguments: Sequence[str]) -> cfg.ConfigOpts:
    """The configuration, every value of it checked.

    :raises ConfigError, oslo_config.cfg.Error: one is not allowed; the message names it.
    """
    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    remediation.register_auth_opts(conf)
    log.register_options(conf)
    conf(list(arguments), project="nova_enlightened", prog=PROGRAM)
    for option in remediation.ALL_OPTS:
        conf[remediation.GROUP][option.dest]  # oslo.config checks a value when it is read
    options.check(conf)
    servers.check(conf)
    return conf


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    try:
        conf = configured(sys.argv[1:] if argv is None else argv)
        log.setup(conf, "nova_enlightened")
        service = Service(conf, rpc.get_transport(conf))
        service.start()
    except (exception.EnlightenedError, cfg.Error) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.ask_to_stop())
    try:
        service.run()
    finally:
        service.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
