# SPDX-License-Identifier: Apache-2.0
"""The command line of ``nova-enlightened-manage``."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from oslo_config import cfg
from oslo_service import backend

from nova_enlightened import exception
from nova_enlightened.cmd.manage import appliance_arguments

if TYPE_CHECKING:
    from nova_enlightened.cmd.manage.context import Context

PROGRAM: Final = "nova-enlightened-manage"
ERROR: Final = 1
_EPILOG: Final = """\
Read are the files of --config-file, or else nova-enlightened's own. [DEFAULT] transport_url is
Nova's, so --config-file /etc/nova/nova.conf brings it; name nova-enlightened's file after it. For
evict, Nova's API is reached as the group [enlightened_remediation] says, or by OS_CLOUD and the
like in the environment.
"""


def parser() -> argparse.ArgumentParser:
    """Subcommands set ``run`` to ``module:function`` of this package."""
    whole = argparse.ArgumentParser(
        prog=PROGRAM,
        description="See what contended compute hosts do about it, have a server leave one now, "
        "publish appliances, and check an installation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument(
        "--config-file", action="append", default=[], metavar="FILE", help="may be repeated"
    )
    whole.add_argument("--debug", action="store_true", help="show what libraries log")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _add_reports(commands)
    _add_evictions(commands)
    _add_recoveries(commands)
    _add_checks(commands)
    appliance_arguments.add(commands)
    return whole


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: str,
    help: str,
    description: str,
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}. "
                               f"{description}")  # fmt: skip
    made.set_defaults(run=run)
    return made


def _json(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="print JSON in place of a table")


def _add_reports(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, run, help, description in (
        (
            "hosts",
            "hosts:hosts",
            "state of compute hosts",
            "It listens to the reports that agents send, so a host shows up once it has sent one. "
            "Exit status 1 if a host that was named does not report.",
        ),
        (
            "armed",
            "hosts:armed",
            "guests that are ready to leave, and urgent orders that stand",
            "An armed guest samples which of its memory is in use.",
        ),
    ):
        made = _add(commands, name, run, help, description)
        made.add_argument("host", nargs="*", help="only these compute services (default: all)")
        made.add_argument(
            "--wait",
            type=_seconds,
            default=5.0,
            metavar="SECONDS",
            help="listen for so long, longer than [enlightened_agent] report_interval (default: 5)",
        )
        _json(made)


def _add_evictions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = _add(
        commands,
        "evictions",
        "evictions:evictions",
        "evictions past and present, with the relief that was predicted and measured",
        "It reads the journal of the remediator, on a host where one runs; the newest come first. "
        "A destination in brackets was only expected.",
    )
    made.add_argument("--server", default="", metavar="UUID", help="only those of this server")
    made.add_argument("--ongoing", action="store_true", help="only those under way")
    made.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="at most so many (default: 20)"
    )
    _json(made)
    made = _add(
        commands,
        "evict",
        "evict:evict",
        "have a server leave its host now, in its guest's order",
        "The scheduler chooses where to. Exit status 0 when the server executes there (without "
        "--wait: when its live migration was requested), 1 if it stays where it is, 3 if that is "
        "not known.",
    )
    made.add_argument("server", help="name or UUID")
    made.add_argument("--wait", action="store_true", help="follow the migration to its end")
    made.add_argument(
        "--force", action="store_true", help="also a server that is never to be evicted"
    )
    _json(made)


def _add_recoveries(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = _add(
        commands,
        "recoveries",
        "recoveries:recoveries",
        "VMs in post-copy: what is done where a relay was lost, or by hand",
        "A stop tries nothing more; it destroys nothing, and a retry takes it back. Exit status 1 "
        "if a VM is lost or stopped, or a host does not answer.",
    )
    made.add_argument("host", nargs="*", help="only those that left these compute services")
    made.add_argument("--all", action="store_true", help="also those that have arrived, or stayed")
    hand = made.add_mutually_exclusive_group()
    hand.add_argument("--retry", metavar="SERVER", help="try again now; a UUID")
    hand.add_argument("--stop", metavar="SERVER", help="try nothing more; a UUID")
    made.add_argument(
        "--wait", type=_seconds, default=5.0, metavar="SECONDS",
        help="listen for so long to find out which hosts there are (default: 5)",
    )  # fmt: skip
    _json(made)


def _add_checks(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = _add(
        commands,
        "check",
        "check:check",
        "check this compute host's installation",
        "Run it as the user that the agent runs as. Exit status 1 if something fails.",
    )
    made.add_argument(
        "--guest", default="", metavar="DOMAIN", help="ask the agent in this guest too"
    )
    _json(made)
    upgrade = commands.add_parser(
        "upgrade", help="before services of this release are started: upgrade check"
    ).add_subparsers(metavar="COMMAND", required=True)
    _add(
        upgrade,
        "check",
        "upgrade:check",
        "check whether services of this release can be started",
        "Exit status 0: yes; 1: look at what it warns of; 2: not yet.",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 3600")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1000000")
    return value


def run(arguments: argparse.Namespace, context: "Context") -> int:
    """Run what was asked for; the exit status."""
    module, _, function = arguments.run.partition(":")
    found = importlib.import_module(f"nova_enlightened.cmd.manage.{module}")
    try:
        return int(getattr(found, function)(arguments, context))
    except (exception.EnlightenedError, cfg.Error) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = parser().parse_args(argv)
    # What matters of a failure is said in one line; the bus's library repeats it while it retries.
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.CRITICAL)
    backend.init_backend(backend.BackendType.THREADING)
    # This imports oslo.messaging, which takes the kind of threads as it is chosen by then.
    from nova_enlightened.cmd.manage import context

    try:
        made = context.make(context.read(arguments.config_file))
    except (exception.EnlightenedError, cfg.Error) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return ERROR
    try:
        return run(arguments, made)
    except KeyboardInterrupt:
        return 130
