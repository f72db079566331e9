# SPDX-License-Identifier: Apache-2.0
"""``evict``: one server leaves its host now, by ordered post-copy, to where Nova's scheduler sends
it. What :mod:`nova_enlightened.cmd.evict` is for libvirt without Nova.
"""

import argparse
import dataclasses
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.conf import remediation
from nova_enlightened.remediation.eviction_states import MIGRATION_STATUS, Input
from nova_enlightened.remediation.servers import Migration, Server

CAUSE: Final = "ordered by an operator"
DONE, FAILED, UNKNOWN = 0, 1, 3
"""Exit status: at its destination, or requested where nobody waits; where it was; not known."""

_ENDS: Final = frozenset({Input.COMPLETED, Input.MIGRATION_FAILED})


@dataclasses.dataclass
class Progress:
    """What has been seen of a migration.

    :param times: status of Nova -> seconds since the request when it was first seen.
    """

    server: Server
    migration: Migration | None = None
    times: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def said(self) -> Input | None:
        """What the last status means; None before there is any, or for a word of a newer Nova."""
        return None if self.migration is None else MIGRATION_STATUS.get(self.migration.status)

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        found = self.migration
        return {
            "server": self.server.uuid,
            "source": self.server.host,
            "destination": found.destination if found is not None else None,
            "migration": found.id if found is not None else None,
            "status": found.status if found is not None else None,
            "seconds": {status: round(after, 2) for status, after in self.times.items()},
        }


def evict(arguments: argparse.Namespace, context: Context) -> int:
    """Order, request, and follow to the end where that is asked for."""
    server = context.nova.find(arguments.server)
    obstacle = obstacle_of(server, arguments.force)
    if obstacle:
        raise exception.NovaRefused(f"{server.name or server.uuid} ({server.uuid}): {obstacle}")
    earlier = max((one.id for one in context.nova.migrations_of(server.uuid)), default=0)
    _order(server, context)
    output.say(f"Ordered: {server.name} leaves {server.host} in its guest's order")
    began = context.clock()
    try:
        context.nova.live_migrate(server.uuid)
    except exception.NovaRefused:
        _withdraw(server, context)
        raise
    except exception.NovaUnreachable as error:
        output.say(f"Nova did not answer, and may have the request: {error}")
    progress = Progress(server)
    if arguments.wait:
        status = _follow(progress, earlier, began, context)
    else:
        output.say("Live migration requested; --wait follows it")
        status = DONE
    if arguments.json:
        output.document(progress.to_dict())
    return status


def obstacle_of(server: Server, force: bool) -> str:
    """Why a server cannot be evicted now, with what to do; empty where it can."""
    if not server.host:
        return "it is on no host"
    if server.opted_out and not force:
        return f"never to be evicted, {server.opted_out}; --force does it nevertheless"
    return dataclasses.replace(server, opted_out="").obstacle


def _order(server: Server, context: Context) -> None:
    ttl = context.conf[remediation.GROUP].order_ttl
    try:
        context.hosts.order_urgent(server.host, server.uuid, CAUSE, ttl)
    except exception.EnlightenedError as error:
        raise type(error)(
            f"{error}. Without its host's agent the server can only leave as stock Nova moves it: "
            f"openstack server migrate --live-migration {server.uuid}"
        ) from error


def _withdraw(server: Server, context: Context) -> None:
    try:
        context.hosts.withdraw_urgent(server.host, server.uuid)
    except exception.EnlightenedError as error:
        output.say(f"The order stands until it expires: {error}")


def _follow(progress: Progress, earlier: int, began: float, context: Context) -> int:
    """Watch Nova's list of migrations until ours has ended, or too long has passed."""
    ours = context.conf[remediation.GROUP]
    while True:
        after = context.clock() - began
        _look(progress, earlier, after, context)
        if progress.said in _ENDS:
            return _ended(progress, after, context)
        if progress.migration is None and after > ours.appear_timeout:
            _withdraw(progress.server, context)
            output.say(
                f"Nova shows no migration after {after:.0f} s, see: openstack server event list "
                f"{progress.server.uuid}"
            )
            return UNKNOWN
        if after > ours.eviction_timeout:
            output.say(f"Not ended after {after:.0f} s; Nova goes on with it")
            return UNKNOWN
        context.pause(ours.follow_interval)


def _look(progress: Progress, earlier: int, after: float, context: Context) -> None:
    try:
        listed = context.nova.migrations_of(progress.server.uuid)
    except exception.EnlightenedError as error:
        if not error.retryable:
            raise
        output.say(f"{after:7.1f} s  {error}")
        return
    found = [one for one in listed if one.id > earlier]
    if found:
        # The first after the order is ours: Nova has one live migration of a server at a time.
        progress.migration = found[0]
        status = found[0].status
        if status not in progress.times:
            progress.times[status] = after
            to = f" to {found[0].destination}" if found[0].destination else ""
            output.say(f"{after:7.1f} s  {status}{to}")


def _ended(progress: Progress, after: float, context: Context) -> int:
    found, server = progress.migration, progress.server
    assert found is not None
    if progress.said is Input.COMPLETED:
        output.say(f"{server.name} left {server.host} for {found.destination} in {after:.1f} s")
        return DONE
    _withdraw(server, context)
    output.say(
        f"{server.name} stays on {server.host}. Where no host could take it, nova-scheduler's log "
        f"says why; see also: openstack server event list {server.uuid}"
    )
    return FAILED
