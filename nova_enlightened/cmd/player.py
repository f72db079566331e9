# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-player``: play one stored VM, or look after those that are played."""

import argparse
import json
import logging
import pathlib
import signal
import socket
import sys
from collections.abc import Sequence

from nova_enlightened import exception
from nova_enlightened.transfer.player_spec import PlayerSpec

SWITCH_S = 0.0005
"""Between threads: the loop answers faults while others decompress."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nova-enlightened-player",
        description="Play a stored VM: its memory to a QEMU that waits for a post-copy migration, "
        "its disks as NBD exports, both from a store of appliances and this host's cache.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="be the player of a specification, until everything is there or its end is asked for",
        description="The state is written to state.json beside the specification, four times a "
        "second. SIGTERM ends it; a VM that still needs it then waits, until another player with "
        '"resume" takes it up.',
    )
    run.add_argument("spec", help="JSON file, see nova_enlightened.transfer.player_spec")
    run.add_argument(
        "--listener",
        action="append",
        default=[],
        metavar="TARGET=FD",
        help="inherited listening socket of a disk's export (else bound as the file says)",
    )
    status = commands.add_parser("status", help="print the state of running players as JSON")
    status.add_argument("directory", help="directory that holds the players' run directories")
    for name, words in (
        ("stop", "end a player; a VM that still needs it waits for another"),
        ("fill", "have a player fetch everything, also one that was to fetch on demand only"),
        ("trace", "have a player write what its VM touched so far; prints the file's path"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("run_directory", help="the player's run directory")
    return parser


def _run(spec_path: str, inherited: Sequence[str]) -> int:
    # Imported here so that "status" and "--help" do not pay for numpy.
    from nova_enlightened import niceness
    from nova_enlightened.transfer.player import Player

    niceness.ask(niceness.WAITED_FOR)
    sys.setswitchinterval(SWITCH_S)
    spec = PlayerSpec.from_json(pathlib.Path(spec_path).read_text())
    listeners = {}
    for item in inherited:
        target, _, descriptor = item.partition("=")
        listeners[target] = socket.socket(fileno=int(descriptor))
    player = Player(spec, listeners)
    signal.signal(signal.SIGTERM, lambda *_: player.request_stop("stopped by a signal"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return player.run()


def _status(directory: str) -> int:
    from nova_enlightened.host import players

    print(json.dumps([player.state() for player in players.running(directory)], indent=2))
    return 0


def _ask(run_directory: str, call: str) -> int:
    from nova_enlightened.host import players

    answer = players.found(run_directory).ask(call)
    if answer:
        print(json.dumps(answer))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
    )
    # It tells of each retry, with the whole URL; what matters is told by the store.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        if arguments.command == "run":
            return _run(arguments.spec, arguments.listener)
        if arguments.command == "status":
            return _status(arguments.directory)
        return _ask(arguments.run_directory, arguments.command)
    except exception.EnlightenedError as error:
        print(f"nova-enlightened-player: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
