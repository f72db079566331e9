# SPDX-License-Identifier: Apache-2.0
"""Nova's ways to start a domain, closed to one that may execute at the destination of a migration.

Nova's libvirt driver starts processors in few places, which all that starts a server goes
through: it creates a guest, it boots one again, which destroys what is there first, or it has one
go on.
"""

import logging
from collections.abc import Callable
from typing import Any

import libvirt
from nova import exception as nova_exception

from nova_enlightened import exception
from nova_enlightened.host.standing import Standing
from nova_enlightened.rpc import HostAPI
from nova_enlightened.virt import guard
from nova_enlightened.virt.journal import Entry, Journal

LOG = logging.getLogger(__name__)


class GuardedDriver:
    """Mixed into Nova's ``LibvirtDriver``, before it and whatever else starts guests.

    Each of its methods raises ``nova.exception.MigrationError``, which tells users the reason.
    """

    _host: Any
    _agent: Callable[[], HostAPI]
    _journal: Journal | None = None

    def _create_guest(self, context: Any, xml: str, instance: Any, *args: Any, **kw: Any) -> Any:
        """As Nova's: of ``spawn``, ``resume``, ``unrescue`` and the ends of a resize."""
        self._refuse_departed(instance)
        return super()._create_guest(context, xml, instance, *args, **kw)  # type: ignore[misc]

    def _hard_reboot(self, context: Any, instance: Any, *args: Any, **kw: Any) -> Any:
        """As Nova's: of ``power_on``, ``reboot`` and ``resume_state_on_host_boot``."""
        self._refuse_departed(instance)
        return super()._hard_reboot(context, instance, *args, **kw)  # type: ignore[misc]

    def _soft_reboot(self, instance: Any) -> Any:
        """As Nova's."""
        self._refuse_departed(instance)
        return super()._soft_reboot(instance)  # type: ignore[misc]

    def rescue(self, context: Any, instance: Any, *args: Any, **kw: Any) -> Any:
        """As Nova's, which destroys the guest before it creates the other."""
        self._refuse_departed(instance)
        return super().rescue(context, instance, *args, **kw)  # type: ignore[misc]

    def unpause(self, instance: Any) -> Any:
        """As Nova's."""
        self._refuse_departed(instance, resumes=True)
        return super().unpause(instance)  # type: ignore[misc]

    def _refuse_departed(self, instance: Any, resumes: bool = False) -> None:
        """:raises nova.exception.MigrationError: it may execute elsewhere. On doubt too."""
        try:
            entry = None if self._journal is None else self._journal.get(instance.uuid)
        except exception.JournalError as error:
            raise nova_exception.MigrationError(
                reason=f"not started here, as it may have left: {error}"
            ) from error
        there = Standing.UNKNOWN
        if entry is not None and entry.lost is not None:
            there = self._there(entry)
        why = guard.refusal(self._state(instance), entry, there, resumes)
        if why is not None:
            LOG.error("Server %s is not started here: %s", instance.uuid, why)
            raise nova_exception.MigrationError(reason=f"not started here: {why}")
        if entry is not None and self._journal is not None:
            try:
                self._journal.drop(entry.instance)
            except exception.JournalError as error:  # it is asked about once more next time
                LOG.warning("Server %s is started, its entry stays: %s", instance.uuid, error)

    def _there(self, entry: Entry) -> Standing:
        """How it stands at its destination, as the agent there says; else UNKNOWN."""
        try:
            told = self._agent().arrival(
                entry.destination, instance=entry.instance, migration=entry.relays
            )
            return Standing(told["domain"])
        except Exception as error:  # whatever it is, nobody knows
            LOG.debug("The agent of %s does not say: %s", entry.destination, error)
            return Standing.UNKNOWN

    def _state(self, instance: Any) -> tuple[int, int] | None:
        try:
            state, reason = self._domain(instance.uuid).state()
        except (libvirt.libvirtError, nova_exception.HypervisorUnavailable):
            return None
        return state, reason

    def _domain(self, uuid: str) -> Any:
        """Found anew, over whatever connection to libvirt there is; raises ``libvirtError``."""
        return self._host.get_connection().lookupByUUIDString(uuid)
