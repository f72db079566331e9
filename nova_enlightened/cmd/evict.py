# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-evict``: move one running domain off this host, now.

For hosts without OpenStack, and for operators who want to see what happens. Under Nova the
compute service does the same.
"""

import argparse
import json
import shlex
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Sequence

import libvirt
from oslo_config import cfg

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.host.ordered_eviction import CommandPeer, OrderedEviction, Report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nova-enlightened-evict",
        description="Move a running domain off this host by post-copy, switched at once, with "
        "its memory in the order its guest needs it.",
        epilog="Example: nova-enlightened-evict web --to qemu+tls://host2/system. Without an "
        "agent in the guest, or without this package on the other host, the domain still moves, "
        "in QEMU's own order.",
    )
    parser.add_argument("domain", help="name or UUID of the domain")
    parser.add_argument(
        "--to", required=True, metavar="URI", help="the destination's libvirt, seen from this host"
    )
    parser.add_argument(
        "--connect", default="qemu:///system", metavar="URI", help="this host's libvirt"
    )
    parser.add_argument(
        "--peer-command",
        metavar="COMMAND",
        help="what to put before a command to run it on the destination (default: ssh HOST)",
    )
    parser.add_argument(
        "--peer-address", help="the destination's address for relays (default: HOST of --to)"
    )
    parser.add_argument("--peer-name", help="its name in its certificate (default: HOST of --to)")
    parser.add_argument(
        "--own-name", default=socket.gethostname(), help="this host's name in its certificate"
    )
    parser.add_argument(
        "--arm",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="let the guest watch its memory for so long before it goes (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE")
    return parser


def _print(report: Report, as_json: bool) -> None:
    times = report.times
    taken = {
        name: round(at - times.ordered, 3)
        for name in ("switch_accepted", "completed")
        if times is not None and (at := getattr(times, name)) is not None
    }
    if as_json:
        print(json.dumps({"ordered": report.ordered, "why": report.why, "seconds": taken,
                          "relay": report.relay, "recovered": report.recovered}))  # fmt: skip
        return
    for name, seconds in taken.items():
        print(f"{name.replace('_', ' ')} after {seconds:.2f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    host = urllib.parse.urlsplit(arguments.to).hostname or ""
    peer = CommandPeer(
        name=arguments.peer_name or host,
        address=arguments.peer_address or host,
        command=shlex.split(arguments.peer_command or f"ssh {host}"),
    )
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:7.2f} s  {line}", file=sys.stderr)

    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        conf = options.read(arguments.config_file)
        connection = libvirt.open(arguments.connect)
        domain = connection.lookupByName(arguments.domain)
        uuid = domain.UUIDString()
        eviction = OrderedEviction(
            domain,
            arguments.to,
            peer,
            conf,
            arguments.own_name,
            tell,
            lambda: libvirt.open(arguments.connect).lookupByUUIDString(uuid),
        )
        eviction.arm()
        threading.Event().wait(arguments.arm)
        report = eviction.run()
    except (exception.EnlightenedError, libvirt.libvirtError, cfg.Error) as error:
        print(f"nova-enlightened-evict: {error}", file=sys.stderr)
        return 1
    _print(report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
