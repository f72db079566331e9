# SPDX-License-Identifier: Apache-2.0
"""``upgrade check``: can the services be started with this release, as OpenStack's projects ask."""

import argparse
import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from nova_enlightened import conf as options
from nova_enlightened import exception, rpc
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.conf import remediation
from nova_enlightened.host import hint_sources
from nova_enlightened.remediation import journal

WAIT_S: Final = 5.0
Result = upgradecheck.Result
Code = upgradecheck.Code


class Checks(upgradecheck.UpgradeCommands):
    """What a release may have changed under the services' feet."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def _configuration(self) -> Any:
        """Every value is allowed, and none contradicts another."""
        conf = self._context.conf
        try:
            for group, found in options.list_opts():
                for option in found:
                    conf[group.name][option.dest]
            options.check(conf)
        except (cfg.Error, exception.EnlightenedError) as error:
            return Result(Code.FAILURE, str(error))
        return Result(Code.SUCCESS)

    def _plugins(self) -> Any:
        """What the configuration names is installed."""
        try:
            hint_sources.load(self._context.conf.enlightened.hint_sources)
        except exception.EnlightenedError as error:
            return Result(Code.FAILURE, f"[enlightened] hint_sources: {error}")
        return Result(Code.SUCCESS)

    def _journal(self) -> Any:
        """This release reads what the one before has written."""
        directory = self._context.conf[remediation.GROUP].state_path
        path = pathlib.Path(directory, journal.FILE)
        if not path.exists():
            return Result(Code.SUCCESS, f"There is none at {path}: no remediator has run here")
        if not os.access(path, os.R_OK):
            return Result(Code.WARNING, f"{path} cannot be read by this user")
        try:
            found = _schema(path)
        except sqlite3.Error as error:
            return Result(Code.FAILURE, f"{path}: {error}")
        if found > journal.SCHEMA:
            return Result(
                Code.FAILURE,
                f"{path} is of a newer release (schema {found}, this one has {journal.SCHEMA}): "
                f"move it away, or stay with that release",
            )
        return Result(Code.SUCCESS)

    def _agents(self) -> Any:
        """Agents that run understand what this release calls."""
        try:
            reports = self._context.listen(WAIT_S, ())
        except exception.EnlightenedError as error:
            return Result(Code.WARNING, str(error))
        if not reports:
            return Result(Code.WARNING, "No host reports, so the versions of agents are not known")
        other = []
        for report in reports:
            with contextlib.suppress(exception.EnlightenedError):
                theirs = self._context.hosts.describe(report.host)
                if not rpc.serves(theirs, rpc.FIRST_HOST_VERSION):
                    other.append(f"{report.host} ({theirs.get('rpc_version')})")
        if other:
            return Result(
                Code.FAILURE,
                f"Calls are of version {rpc.FIRST_HOST_VERSION}, which these do not understand: "
                f"{', '.join(sorted(other))}. Upgrade the agents of compute hosts first",
            )
        return Result(Code.SUCCESS)

    # The library calls these with an instance.
    _upgrade_checks = (
        ("Configuration", _configuration),
        ("Plugins", _plugins),
        ("Journal of evictions", _journal),
        ("Versions of agents", _agents),
    )


def _schema(path: pathlib.Path) -> int:
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    ) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def check(
    arguments: argparse.Namespace,
    context: Context,
    make: Callable[[Context], upgradecheck.UpgradeCommands] = Checks,
) -> int:
    """0 all is well, 1 something is to be looked at, 2 do not upgrade yet."""
    return int(make(context).check())
