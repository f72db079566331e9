# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-relay``: run one relay, or look after those that run."""

import argparse
import dataclasses
import gc
import json
import logging
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from nova_enlightened import exception
from nova_enlightened.transfer.spec import ROLES, RelaySpec

GARBAGE = 20_000
"""Objects more than before at which garbage is looked for; what carries bytes makes none."""
ENDS_WITHIN_S = 5.0
"""Of a relay that was told to; it is killed then."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nova-enlightened-relay",
        description="Carry one migration between two hosts and order its pages.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="be the relay of a specification, until it is done")
    run.add_argument("spec", help="JSON file, see nova_enlightened.transfer.spec")
    run.add_argument(
        "--listener", type=int, metavar="FD", help="inherited listening socket (else bind here)"
    )
    spare = commands.add_parser(
        "spare", help="be loaded already, and wait to be told which relay to be (by the agent)"
    )
    spare.add_argument("told", type=int, metavar="FD", help="inherited socket to be told on")
    start = commands.add_parser(
        "start",
        help="start a relay that goes on by itself; its specification is read from standard "
        "input, its process and port are printed as JSON",
    )
    start.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="where this host's address, ports and certificates are found (default: those of "
        "nova_enlightened)",
    )
    status = commands.add_parser("status", help="print the state of running relays as JSON")
    status.add_argument("directory", help="directory that holds the relays' run directories")
    stop = commands.add_parser(
        "stop",
        help="end a relay and come back once it is gone; a migration that still needs it is "
        "interrupted",
    )
    stop.add_argument("directory", help="directory that holds the relays' run directories")
    stop.add_argument("migration", help="UUID of the migration")
    recover = commands.add_parser(
        "recover", help="have a VM's QEMU listen for its stream again, past libvirt"
    )
    recover.add_argument("directory", help="directory that holds the relays' run directories")
    recover.add_argument("instance", help="UUID of the domain")
    recover.add_argument("migration", help="UUID of the migration whose relay connects to it")
    executed = commands.add_parser(
        "executed",
        help="print as JSON whether a VM that arrives, or was lost, has executed here (null: "
        "nobody can tell), and whether its QEMU waits for its start",
    )
    executed.add_argument("directory", help="directory that holds the relays' run directories")
    executed.add_argument("instance", help="UUID of the domain")
    executed.add_argument("migration", help="UUID of the migration by which it arrived")
    return parser


def _spare(told: int) -> int:
    from nova_enlightened.host import arrival_monitor  # noqa: F401 (to be loaded)
    from nova_enlightened.host.spare_relay import wait_to_be_told
    from nova_enlightened.transfer import destination, source  # noqa: F401

    found = wait_to_be_told(told)
    return 0 if found is None else _run(*found)


def _run(spec_path: str, descriptor: int | None) -> int:
    # Imported here so that "status" and "--help" do not pay for numpy.
    from nova_enlightened import niceness
    from nova_enlightened.transfer.destination import DestinationRelay
    from nova_enlightened.transfer.source import SourceRelay

    niceness.ask(niceness.WAITED_FOR)
    spec = RelaySpec.from_json(pathlib.Path(spec_path).read_text())
    completed = _monitored(spec)
    listener = socket.socket(fileno=descriptor) if descriptor is not None else None
    relay = (SourceRelay if spec.role == "source" else DestinationRelay)(spec, listener)
    signal.signal(signal.SIGTERM, lambda *_: relay.request_stop("stopped by a signal"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what is loaded stays: looking through it again and again costs CPU
    gc.set_threshold(GARBAGE)
    status = relay.run()
    if not status:
        completed()
    return status


def _monitored(spec: RelaySpec) -> Callable[[], None]:
    """What is to be called once the last page has crossed."""
    if spec.monitor is None:
        return lambda: None
    from nova_enlightened.host import arrival_monitor

    return arrival_monitor.beside(spec.monitor, spec.socket, spec.migration)


def _start(config_files: Sequence[str]) -> int:
    from nova_enlightened import conf as options
    from nova_enlightened.host import relays
    from nova_enlightened.transfer import unix_socket

    conf = options.read(config_files)
    spec = relays.for_this_host(RelaySpec.from_json(sys.stdin.read()), conf)
    if spec.role == "source":
        listener = unix_socket.listen(spec.socket)
    else:
        listener = relays.listen_in_range(conf)
        spec = dataclasses.replace(spec, link_port=listener.getsockname()[1])
    relay = relays.start(spec, listener)
    print(json.dumps({"pid": relay.pid, "link_port": spec.link_port}))
    return 0


def _status(directory: str) -> int:
    from nova_enlightened.host import relays

    print(json.dumps([relay.state() for relay in relays.running(directory)], indent=2))
    return 0


def _stop(directory: str, migration: str) -> int:
    from nova_enlightened.host import relays

    found = [relays.specification(directory, migration, role) for role in ROLES]
    # Also one that does not answer yet.
    for spec in filter(None, found):
        relays.end(spec, ENDS_WITHIN_S)
    if not any(found):
        print(f"no relay of migration {migration} under {directory}", file=sys.stderr)
    return 0 if any(found) else 1


def _recover(directory: str, instance: str, migration: str) -> int:
    from nova_enlightened.host import arrival_monitor
    from nova_enlightened.host.departure import Places
    from nova_enlightened.host.spare_monitor import monitor_path

    where = f"unix:{Places(directory, migration).socket}"
    arrival_monitor.recover(monitor_path(directory, instance), where)
    return 0


def _executed(directory: str, instance: str, migration: str) -> int:
    from nova_enlightened.host import arrival_monitor
    from nova_enlightened.host.spare_monitor import monitor_path

    told = arrival_monitor.executed(monitor_path(directory, instance), migration)
    print(json.dumps(told._asdict()))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
    )
    try:
        if arguments.command == "run":
            return _run(arguments.spec, arguments.listener)
        if arguments.command == "spare":
            return _spare(arguments.told)
        if arguments.command == "start":
            return _start(arguments.config_file)
        if arguments.command == "status":
            return _status(arguments.directory)
        if arguments.command == "recover":
            return _recover(arguments.directory, arguments.instance, arguments.migration)
        if arguments.command == "executed":
            return _executed(arguments.directory, arguments.instance, arguments.migration)
        return _stop(arguments.directory, arguments.migration)
    except exception.EnlightenedError as error:
        print(f"nova-enlightened-relay: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
