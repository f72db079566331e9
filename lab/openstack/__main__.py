# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.openstack up|stop|wipe|status|shell``."""

from __future__ import annotations

import argparse
import json
import sys
import time

from lab import endings
from lab.errors import LabError
from lab.openstack.cloud import LINK_MBIT, Cloud
from lab.openstack.configuration import Driver
from lab.openstack.places import Places, default_run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.openstack",
        description="A real OpenStack with two compute hosts on this machine, in namespaces.",
        epilog=f"Run directory: LAB_RUN or {default_run()}; data: below LAB_CACHE.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start it; it stays until `stop`")
    up.add_argument(
        "--driver",
        type=Driver,
        choices=list(Driver),
        default=Driver.ENLIGHTENED,
        help="what nova-compute runs (default: %(default)s)",
    )
    up.add_argument(
        "--mode",
        choices=("audit", "auto"),
        default="audit",
        help="whether the remediator says or does what it decides (default: %(default)s)",
    )
    up.add_argument(
        "--mbit",
        type=float,
        default=LINK_MBIT,
        help="migration link, Mbit/s each way; 0 does not shape (default: %(default)s)",
    )
    up.add_argument(
        "--set",
        action="append",
        default=[],
        type=_option,
        metavar="SECTION.OPTION=VALUE",
        help="an option of this project's services; may be given several times",
    )
    commands.add_parser("stop", help="end every process; data stays, the next start is warm")
    commands.add_parser("wipe", help="stop, and remove the data")
    commands.add_parser("status", help="hosts, services and servers, as JSON")
    shell = commands.add_parser("shell", help="a shell, or a command, inside a host")
    shell.add_argument("host", choices=("host1", "host2", "ctl"))
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND...")
    return parser.parse_args()


def _option(text: str) -> tuple[str, str, str]:
    name, equals, value = text.partition("=")
    section, dot, option = name.partition(".")
    if not (equals and dot):
        raise argparse.ArgumentTypeError(f"{text!r} is not SECTION.OPTION=VALUE")
    return section, option, value


def _progress(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)


def _up(wanted: argparse.Namespace) -> None:
    extra: dict[str, dict[str, str]] = {}
    for section, option, value in wanted.set:
        extra.setdefault(section, {})[option] = value
    cloud = Cloud(
        driver=wanted.driver,
        mode=wanted.mode,
        extra=extra,
        link_mbit=wanted.mbit or None,
        progress=_progress,
    )
    with endings.orderly():
        cloud.up()
    cloud.release()
    print(f"source {Places.default().run}/openrc   # then: openstack server list")


def main() -> int:
    """Run one command; the exit status."""
    wanted = _arguments()
    try:
        if wanted.command == "up":
            _up(wanted)
        elif wanted.command == "stop":
            print(f"{Cloud().stop()} processes ended")
        elif wanted.command == "wipe":
            Cloud().wipe()
        elif wanted.command == "status":
            print(json.dumps(Cloud.running().status(), indent=2))
        else:
            Cloud.running().lab.enter(wanted.host, wanted.words)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


_BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
