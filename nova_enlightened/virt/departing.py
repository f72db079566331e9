# SPDX-License-Identifier: Apache-2.0
"""The journal of urgent migrations within Nova's libvirt driver: kept, closed, and taken up again
when nova-compute starts.
"""

import logging
from collections.abc import Mapping
from typing import Any

import libvirt
import nova.conf
from nova import exception as nova_exception
from nova.compute import task_states, vm_states
from nova.objects import instance as instance_objects

from nova_enlightened import exception
from nova_enlightened.host import standing
from nova_enlightened.host.standing import Standing
from nova_enlightened.virt import takeover
from nova_enlightened.virt.guarded import GuardedDriver
from nova_enlightened.virt.journal import Entry, Journal
from nova_enlightened.virt.outcome import End, Outcome
from nova_enlightened.virt.records import NovaRecords
from nova_enlightened.virt.takeover import Takeover

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

_DELETED = (vm_states.DELETED, vm_states.SOFT_DELETED)


class DepartingDriver(GuardedDriver):
    """Mixed into Nova's ``LibvirtDriver``, before it and whatever else starts guests."""

    virtapi: Any
    _taking: Takeover | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._source_bdms: dict[str, Any] = {}  # by Nova's migration
        self._own_host = ""

    def init_host(self, host: str) -> None:
        """As Nova's; from here on the guard knows what may have left."""
        self._own_host = host
        self._journal = Journal(CONF.state_path, host)
        super().init_host(host)  # type: ignore[misc]

    def cleanup_host(self, host: str) -> None:
        """As Nova's."""
        if self._taking is not None:
            self._taking.stop()
        super().cleanup_host(host)  # type: ignore[misc]

    def process_instances_at_startup(self, context: Any, instances: Any) -> Any:
        """As Nova's, without those that are leaving: of them Nova would reset the task, abort the
        migration, and maybe start what does not run here any more.
        """
        instances = super().process_instances_at_startup(context, instances)  # type: ignore[misc]
        entries = takeover.open_entries(self._opened())
        for entry in entries.values():
            self._takeover().take_up(entry)
        try:
            takeover.bury(self._opened(), self._records().exists)
        except Exception:  # there is always a next start
            LOG.exception("Entries of deleted servers stay in the journal")
        stay = [one for one in instances if one.uuid not in entries or _is_deleted(one)]
        return instance_objects.InstanceList(context, objects=stay)

    def live_migration(
        self,
        context: Any,
        instance: Any,
        dest: str,
        post_method: Any,
        recover_method: Any,
        block_migration: bool = False,
        migrate_data: Any = None,
    ) -> None:
        """As Nova's. What became of an urgent one is on record, or goes on being followed.

        Nova 34 raises libvirt's error of a migration that it has rolled back too, an aborted one
        for instance, and would then have a server in error that runs as before.
        """
        rolled_back = False

        def recover(*arguments: Any, **keywords: Any) -> None:
            nonlocal rolled_back
            recover_method(*arguments, **keywords)
            rolled_back = True

        moving = migrate_data.migration.uuid
        # How volumes are attached here Nova hands only to what it has called at the end.
        self._source_bdms[moving] = getattr(post_method, "keywords", {}).get("source_bdms")
        # Before it is decided how it leaves: from here on Nova's start would undo it by half.
        self._journalled(instance, dest, block_migration, migrate_data, None)
        try:
            super().live_migration(  # type: ignore[misc]
                context, instance, dest, post_method, recover, block_migration, migrate_data
            )
        except Exception as error:
            self._settle(instance.uuid)
            if not (rolled_back and self._stayed(instance.uuid)):
                raise
            LOG.warning("%s was rolled back and goes on here: %s", instance.uuid, error)
        else:
            self._settle(instance.uuid)
        finally:
            self._source_bdms.pop(moving, None)

    def _journalled(
        self, instance: Any, dest: str, block_migration: bool, migrate_data: Any, relays: str | None
    ) -> bool:
        """Note that it may leave, before libvirt is asked; False where that cannot be noted."""
        bdms = self._source_bdms.get(migrate_data.migration.uuid)
        try:
            entry = Entry(
                instance=instance.uuid,
                migration=migrate_data.migration.uuid,
                destination=dest,
                block_migration=bool(block_migration),
                migrate_data=migrate_data.obj_to_primitive(),
                source_bdms=None if bdms is None else bdms.obj_to_primitive(),
                relays=relays,
            )
            self._opened().keep(entry)
        except exception.JournalError as error:
            LOG.error("%s does not leave by post-copy: %s", instance.uuid, error)
            return False
        return True

    def _left_to_nova(self, uuid: str) -> None:
        """It goes as Nova does it, and so does what becomes of it."""
        try:
            self._opened().drop(uuid)
        except exception.JournalError as error:  # it is closed when the migration has ended
            LOG.warning("The journal keeps the departure of %s: %s", uuid, error)

    def _settle(self, uuid: str) -> None:
        """Close the entry of a migration that Nova has ended, where it has; else follow it."""
        journal = self._opened()
        try:
            entry = journal.get(uuid)
            if entry is None or entry.lost is not None:
                return
            if self._stayed(uuid) or self._records().ended_there(entry):
                journal.drop(uuid)
            else:
                self._takeover().take_up(entry)
        except Exception:
            LOG.exception("The journal keeps the departure of %s", uuid)

    def _close_lost(self, uuid: str, found: Outcome) -> None:
        """Nova has it as lost: what is left to do is the guard's."""
        try:
            entry = self._opened().get(uuid)
            if entry is not None:
                takeover.closed(self._opened(), entry, found)
        except Exception:
            LOG.exception("The journal keeps the departure of %s", uuid)

    def _look(self, entry: Entry) -> tuple[Standing, Standing, Mapping[str, Any]]:
        """Of `Takeover`. What still executes here and migrates is called back."""
        here = self._standing(entry.instance)
        if here is Standing.EXECUTES and self._migrates(entry.instance):
            self._call_back(entry)
            here = Standing.SWITCHING
        try:
            said: Mapping[str, Any] = self._agent().recovery(self._own_host, entry.instance)
        except exception.EnlightenedError as error:
            said = {"state": "unknown", "why": str(error)}
        return here, self._there(entry), said

    def _call_back(self, entry: Entry) -> None:
        """Have libvirt cancel a migration that nobody switches any more, as Nova would."""
        try:
            self._domain(entry.instance).abortJob()
        except libvirt.libvirtError as error:  # it has ended, or is switched
            LOG.info("The migration of %s is not cancelled: %s", entry.instance, error)

    def _stayed(self, uuid: str) -> bool:
        """Whether all of it is here, and nothing would take it away."""
        return self._standing(uuid) is Standing.EXECUTES and not self._migrates(uuid)

    def _migrates(self, uuid: str) -> bool:
        """Whether libvirt has a job with it; where it does not say, that is taken for one."""
        try:
            return bool(self._domain(uuid).jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except (libvirt.libvirtError, nova_exception.HypervisorUnavailable):
            return True

    def _standing(self, uuid: str) -> Standing:
        """How its domain stands here."""
        try:
            return standing.at_source(lambda: self._domain(uuid))
        except nova_exception.HypervisorUnavailable:
            return Standing.UNKNOWN

    def _ended(self, entry: Entry, found: Outcome) -> None:
        """Of `Takeover`: the relays are not needed any more."""
        if entry.relays is None:
            return
        words = "completed" if found.end is End.MOVED else f"failed: {found.words}"
        try:
            self._agent().end_eviction(self._own_host, migration=entry.relays, outcome=words)
        except Exception as error:
            LOG.warning("The agent was not told %r: %s", words, error)

    def _opened(self) -> Journal:
        if self._journal is None:
            raise exception.JournalError("this driver was not started")
        return self._journal

    def _records(self) -> NovaRecords:
        return NovaRecords(self.virtapi._compute)

    def _takeover(self) -> Takeover:
        if self._taking is None:
            self._taking = Takeover(self._opened(), self._records(), self._look, self._ended)
        return self._taking


def _is_deleted(instance: Any) -> bool:
    return instance.vm_state in _DELETED or instance.task_state == task_states.DELETING
