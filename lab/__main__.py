# SPDX-License-Identifier: Apache-2.0
"""``python -m lab up|down|status|image|shell``."""

import argparse
import json
import sys
import time

from lab import endings, image
from lab.errors import LabError
from lab.laboratory import Lab, default_cache, default_run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Two real libvirt/QEMU hosts on this machine, in namespaces of their own.",
        epilog=f"Run directory: LAB_RUN or {default_run()}; cache: LAB_CACHE or {default_cache()}.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start the hosts; they stay until `down`")
    up.add_argument(
        "--release",
        choices=("bookworm", "trixie"),
        default="bookworm",
        help="whose QEMU and libvirt the hosts run (default: %(default)s)",
    )
    up.add_argument(
        "--mbit",
        type=float,
        default=400.0,
        help="migration link, Mbit/s each way; 0 does not shape (default: %(default)s)",
    )
    up.add_argument(
        "--pin",
        action="store_true",
        help="give host1 processor 0 and host2 processor 1, and no others",
    )
    down = commands.add_parser("down", help="end everything, also what a killed run left")
    down.add_argument("--force", action="store_true", help="also if a living process has it")
    commands.add_parser("status", help="what is up, as JSON")
    commands.add_parser("image", help="build the guest's image, if it is not cached")
    shell = commands.add_parser("shell", help="a shell, or a command, inside a host")
    shell.add_argument("host", choices=("host1", "host2", "ctl"))
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND...")
    return parser.parse_args()


def _progress(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)


def main() -> int:
    """Run one command; the exit status."""
    wanted = _arguments()
    try:
        if wanted.command == "up":
            pinned = {"host1": {0}, "host2": {1}} if wanted.pin else None
            lab = Lab(release=wanted.release, link_mbit=wanted.mbit or None, cpus=pinned,
                      progress=_progress)  # fmt: skip
            with endings.orderly():
                print(json.dumps(lab.up(keep=True).status(), indent=2))
            return 0
        if wanted.command == "down":
            print(f"{Lab().down(force=wanted.force)} processes ended")
        elif wanted.command == "status":
            print(json.dumps(Lab.running().status(), indent=2))
        elif wanted.command == "image":
            built = vars(image.build(default_cache(), _progress))
            print(json.dumps({part: str(path) for part, path in built.items()}, indent=2))
        else:
            Lab.running().enter(wanted.host, wanted.words)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


_BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
