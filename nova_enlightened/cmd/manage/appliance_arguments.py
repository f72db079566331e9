# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``nova-enlightened-manage appliance``."""

import argparse
import re
import uuid
from pathlib import Path
from typing import Final

WORK_DIRECTORY: Final = "/var/lib/nova-enlightened/publish"
_FUNCTIONS: Final = {"list": "appliances"}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The subcommands, below ``appliance``."""
    below = commands.add_parser(
        "appliance", help="publish VMs that start from far away, and learn what they need first"
    ).add_subparsers(metavar="COMMAND", required=True)
    _add_publish(below)
    _add_learn(below)
    _add_reading(below)
    made = _add(
        below,
        "prune",
        "Delete what no published appliance refers to. With --remove, appliances are taken out of "
        "the listing first. Images that name a removed appliance make servers no more.",
    )
    made.add_argument("--remove", type=digest, action="append", default=[], metavar="MANIFEST",
                      help="an appliance to remove; may be repeated")  # fmt: skip
    made.add_argument(
        "--older-than",
        type=_hours,
        default=24.0,
        metavar="HOURS",
        help="spare younger objects, which may be of an upload under way (default: 24)",
    )
    made.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, description: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=description.split(".", 1)[0][:1].lower() + description.split(".", 1)[0][1:],
        description=description,
    )
    made.set_defaults(run=f"appliance:{_FUNCTIONS.get(name, name)}")
    made.add_argument(
        "--store",
        default="",
        metavar="URL",
        help="file:///directory, https://..., swift://container/prefix or s3://bucket/prefix "
        "(default: the one of [enlightened_streaming] stores)",
    )
    made.add_argument("--json", action="store_true", help="print JSON in place of a table")
    return made


def _add_publish(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = _add(
        commands,
        "publish",
        "Publish a VM as an appliance. With --server, on the compute host where the server runs, "
        "as root: it stops for as long as its memory takes to be written, and goes on. An upload "
        "that broke off goes on when the same command is given again.",
    )
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--server", type=_uuid, metavar="UUID", help="a server that runs here")
    source.add_argument("--save", metavar="FILE", help="what virsh save wrote")
    made.add_argument("--disk", type=_disk, action="append", default=[], metavar="TARGET=FILE",
                      help="image of a disk of the saved domain; may be repeated")  # fmt: skip
    made.add_argument("--name", required=True, help="of the appliance, for people")
    made.add_argument("--parent", type=digest, metavar="MANIFEST",
                      help="store only what this appliance does not have")  # fmt: skip
    made.add_argument("--image", metavar="NAME", help="register an image of this name in Glance")
    made.add_argument(
        "--image-store",
        metavar="URL",
        help="where hosts read from, if that is another URL than --store",
    )
    made.add_argument(
        "--traces",
        choices=("yes", "no"),
        default="no",
        help="whether hosts may keep traces of servers made of the image (default: no)",
    )
    how = made.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_const", const=True, dest="live", default=None,
                     help="let the guest execute while its memory is written "
                     "(default with KVM)")  # fmt: skip
    how.add_argument("--stop", action="store_const", const=False, dest="live",
                     help="stop it first (default without KVM)")  # fmt: skip
    made.add_argument(
        "--new", action="store_true", help="capture anew, even if an earlier one is not published"
    )
    made.add_argument("--work-directory", default=WORK_DIRECTORY, metavar="DIRECTORY",
                      help=f"for the capture, as large as the VM "
                      f"(default: {WORK_DIRECTORY})")  # fmt: skip
    made.add_argument("--level", type=_level, default=3, help="of zstd, 1 to 19 (default: 3)")


def _add_learn(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = _add(
        commands,
        "learn",
        "Learn from traces of runs what to prefetch. It merges them with those in the store, "
        "stores the plan they make, and has images use it.",
    )
    made.add_argument("manifest", type=digest, help="SHA-256 of the appliance's manifest")
    made.add_argument("--traces", nargs="+", type=Path, default=[], metavar="PATH",
                      help="files, or directories with files *.trace")  # fmt: skip
    made.add_argument("--policy", default="clusters", metavar="NAME",
                      help="prefetch policy that makes the plan (default: clusters)")  # fmt: skip
    made.add_argument(
        "--share",
        action="store_true",
        help="also put these traces into the store, for others to learn from; only with the "
        "consent of the servers' owners",
    )
    made.add_argument("--image", action="store_true",
                      help="set the plan on every image of the appliance")  # fmt: skip


def _add_reading(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _add(commands, "list", "List the appliances in a store.")
    made = _add(commands, "show", "Show an appliance: what it consists of, its plans and traces.")
    made.add_argument("manifest", type=digest, help="SHA-256 of its manifest")
    made = _add(
        commands,
        "verify",
        "Verify an appliance: read all of it and compare digests. Exit status 1 if anything is "
        "wrong.",
    )
    made.add_argument("manifest", type=digest, help="SHA-256 of its manifest")
    made.add_argument("--plan", type=digest, metavar="PLAN", help="verify this plan as well")


def digest(text: str) -> str:
    """A SHA-256 in hexadecimal."""
    if not _SHA256.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 64 hexadecimal digits")
    return text


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from error


def _disk(text: str) -> tuple[str, str]:
    target, _, path = text.partition("=")
    if not target or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not TARGET=FILE, such as vda=/tmp/disk")
    return target, path


def _level(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 19:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 19")
    return int(text)


def _hours(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 87600:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 87600")
    return value
