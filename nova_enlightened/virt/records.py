# SPDX-License-Identifier: Apache-2.0
"""Nova's records of a migration whose nova-compute has ended: mended by Nova's own code."""

import logging
from typing import Any, Final

import nova.context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states, vm_states
from nova.compute import utils as compute_utils
from nova.objects import base as objects_base

from nova_enlightened.virt.journal import Entry
from nova_enlightened.virt.outcome import End, Outcome

LOG = logging.getLogger(__name__)

_WANTED: Final = [
    "info_cache", "metadata", "system_metadata", "flavor", "numa_topology", "pci_devices",
    "pci_requests", "migration_context", "resources",
]  # fmt: skip
_ENDED: Final = frozenset({"completed", "failed", "error", "cancelled"})
"""Statuses of a live migration that Nova has ended."""


class NovaRecords:
    """The instance, its migration, and what placement holds for both.

    :param compute: Nova's compute manager of this host.
    """

    def __init__(self, compute: Any) -> None:
        self._compute = compute

    def hold(self, entry: Entry) -> None:
        """Have the server be migrating, so that the API refuses what would start it.

        :raises nova.exception.UnexpectedTaskStateError: something else is done to it now.
        """
        context = nova.context.get_admin_context()
        instance = self._instance(context, entry)
        if instance is None or instance.host != self._compute.host:
            return
        if objects.Migration.get_by_uuid(context, entry.migration).status not in _ENDED:
            _hold(instance)

    def exists(self, entry: Entry) -> bool:
        """Whether the server has not been deleted."""
        return self._instance(nova.context.get_admin_context(), entry) is not None

    def ended_there(self, entry: Entry) -> bool:
        """Whether Nova has the server elsewhere, and nothing of the migration is left to do."""
        context = nova.context.get_admin_context()
        instance = self._instance(context, entry)
        if instance is None:
            return True
        migration = objects.Migration.get_by_uuid(context, entry.migration)
        moved = instance.host != self._compute.host and migration.status == "completed"
        return moved and not self._holds(context, migration)

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """Have Nova end it; again, also after half of it, is harmless.

        Raises what Nova's code does.
        """
        context = nova.context.get_admin_context()
        instance = self._instance(context, entry)
        if instance is None:
            LOG.info("Server %s was deleted", entry.instance)
            return
        migration = objects.Migration.get_by_uuid(context, entry.migration)
        if outcome.end in (End.MOVED, End.LOST_HERE):
            self._moved(context, instance, migration, entry)
        else:
            self._stayed(context, instance, migration, entry)
        if outcome.end in (End.LOST_HERE, End.LOST_THERE):
            tell_loss(context, instance, outcome)

    def _moved(self, context: Any, instance: Any, migration: Any, entry: Entry) -> None:
        if instance.host == self._compute.host:
            _hold(instance)
            self._compute._post_live_migration_update_host(
                context,
                instance,
                entry.destination,
                entry.block_migration,
                _migrate_data(context, entry, migration),
                source_bdms=_source_bdms(context, entry),
            )
        # Nova's end may have been cut off between these.
        if migration.status != "completed":
            migration.status = "completed"
            migration.save()
        if self._holds(context, migration):
            self._compute._delete_allocation_after_move(context, instance, migration)

    def _stayed(self, context: Any, instance: Any, migration: Any, entry: Entry) -> None:
        if instance.host != self._compute.host:
            return
        if instance.task_state == task_states.MIGRATING or self._holds(context, migration):
            _hold(instance)
            self._compute._rollback_live_migration(
                context,
                instance,
                entry.destination,
                _migrate_data(context, entry, migration),
                "error",
                source_bdms=_source_bdms(context, entry),
            )

    def _holds(self, context: Any, migration: Any) -> bool:
        """Whether placement has anything for the migration itself: the source's share."""
        client = self._compute.reportclient
        return bool(client.get_allocations_for_consumer(context, migration.uuid))

    @staticmethod
    def _instance(context: Any, entry: Entry) -> Any:
        try:
            return objects.Instance.get_by_uuid(context, entry.instance, expected_attrs=_WANTED)
        except nova_exception.InstanceNotFound:
            return None


def tell_loss(context: Any, instance: Any, found: Outcome) -> None:
    """Have Nova's record of the instance say what happened to it. Raises what Nova's does."""
    LOG.error("The VM of %s is lost: %s", instance.uuid, found.words)
    instance.refresh()
    instance.vm_state = vm_states.ERROR
    instance.task_state = None
    instance.save()
    compute_utils.add_instance_fault_from_exc(
        context, instance, nova_exception.MigrationError(reason=found.words)
    )


def _hold(instance: Any) -> None:
    if instance.task_state != task_states.MIGRATING:
        instance.task_state = task_states.MIGRATING
        instance.save(expected_task_state=[None])


def _migrate_data(context: Any, entry: Entry, migration: Any) -> Any:
    made = objects_base.NovaObject.obj_from_primitive(entry.migrate_data, context=context)
    made.migration = migration  # as it is now
    return made


def _source_bdms(context: Any, entry: Entry) -> Any:
    if entry.source_bdms is None:
        return objects.BlockDeviceMappingList(objects=[])
    return objects_base.NovaObject.obj_from_primitive(entry.source_bdms, context=context)
