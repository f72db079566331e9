# SPDX-License-Identifier: Apache-2.0
"""Nova's libvirt driver, with a channel to the guest, urgent live migrations, and servers that
start from stored appliances (`streaming`).

``compute_driver = enlightened.EnlightenedLibvirtDriver``. A migration that is not decided to be
urgent goes through Nova's own code with Nova's own arguments.
"""

from typing import Any

import libvirt
import nova.conf
from nova import exception as nova_exception
from nova import rpc as nova_rpc
from nova.compute import power_state, vm_states
from nova.virt.libvirt import driver as nova_driver
from oslo_log import log as logging

from nova_enlightened import conf, exception
from nova_enlightened.host.spare_monitor import monitor_path
from nova_enlightened.rpc import HostAPI
from nova_enlightened.virt import decision, obstacles, outcome, permission, records
from nova_enlightened.virt.channel import GuestChannel
from nova_enlightened.virt.decision import Decision, Facts, Kind, Reason
from nova_enlightened.virt.departing import DepartingDriver
from nova_enlightened.virt.outcome import End, Outcome
from nova_enlightened.virt.streaming import StreamingDriver
from nova_enlightened.virt.urgent import UrgentGuest
from nova_enlightened.virt.watched import Stage, WatchedGuest

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

VIRT_TYPES = ("qemu", "kvm")


class EnlightenedLibvirtDriver(
    DepartingDriver,
    StreamingDriver,
    nova_driver.LibvirtDriver,  # type: ignore[misc]
):
    """See the module."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        conf.register_opts(CONF)
        self._host_api: HostAPI | None = None
        self._stages: dict[str, Stage] = {}  # by Nova's migration: an instance may come back
        self._ends: dict[str, Outcome | None] = {}

    def init_host(self, host: str) -> None:
        """As Nova's.

        :raises ConfigError, ValueError: options that contradict each other, or one that is not
            what it can be; nova-compute does not start.
        """
        conf.check(CONF)
        for option in ("post_copy", "guest_channel"):
            CONF.enlightened[option]  # values are checked when they are read
        super().init_host(host)

    # --- the guest channel -------------------------------------------------------------------

    def _get_guest_config(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        """As Nova's, with the guest channel."""
        config = super()._get_guest_config(instance, *args, **kwargs)
        if CONF.libvirt.virt_type in VIRT_TYPES and permission.guest_channel(
            instance.system_metadata, CONF.enlightened.guest_channel
        ):
            config.add_device(GuestChannel())
        return config

    # --- live migration ----------------------------------------------------------------------

    def _live_migration_operation(
        self,
        context: Any,
        instance: Any,
        dest: str,
        block_migration: bool,
        migrate_data: Any,
        guest: Any,
        device_names: list[str],
    ) -> None:
        """As Nova's; an urgent migration gets a guest that leaves by post-copy.

        It runs in a thread of its own, beside Nova's monitor.
        """
        made = self._decide(instance, dest, migrate_data, guest)
        host = migrate_data.migration.source_compute
        if made.kind is not Kind.STOCK and not self._journalled(
            instance, dest, block_migration, migrate_data, made.migration
        ):
            self._end_eviction(instance, host, made, "failed: it cannot be journalled")
            made = Decision(Kind.STOCK, Reason.ERROR, "it cannot be journalled")
            self._tell(instance, host, dest, made)
        if made.kind is Kind.STOCK:
            self._left_to_nova(instance.uuid)
            super()._live_migration_operation(
                context, instance, dest, block_migration, migrate_data, guest, device_names
            )
            return
        urgent = UrgentGuest(
            guest,
            made,
            on_order=lambda uri, relays: self._have_followed(instance, host, dest, uri, relays),
            on_switch=lambda: self._switched(instance),
            on_ended=lambda outcome: self._end_eviction(instance, host, made, outcome),
            on_fallback=lambda instead: self._tell(instance, host, dest, instead),
            outcome=lambda: self._outcome(instance, host),
            monitor=monitor_path(CONF.enlightened.run_directory, instance.uuid),
        )
        moving = migrate_data.migration.uuid
        self._stages[moving] = Stage.UNDER_WAY
        stage = Stage.FAILED
        try:
            super()._live_migration_operation(
                context, instance, dest, block_migration, migrate_data, urgent, device_names
            )
            stage = Stage.MOVED
        except exception.EvictionError as error:  # Nova tells users the words of its own only
            raise nova_exception.MigrationError(reason=str(error)) from error
        finally:
            urgent.end("failed: libvirt was not asked")
            self._ends[moving] = found = urgent.end_found
            lost = found is not None and found.end is End.LOST_THERE
            self._stages[moving] = Stage.LOST if lost else stage

    def _live_migration_monitor(
        self,
        context: Any,
        instance: Any,
        guest: Any,
        dest: str,
        post_method: Any,
        recover_method: Any,
        block_migration: bool,
        migrate_data: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As Nova's; of an urgent migration it is told an end only when there is one."""
        moving = migrate_data.migration.uuid
        try:
            super()._live_migration_monitor(
                context,
                instance,
                WatchedGuest(guest, lambda: self._stages.get(moving)),
                dest,
                post_method,
                recover_method,
                block_migration,
                migrate_data,
                *args,
                **kwargs,
            )
        finally:
            self._stages.pop(moving, None)
            found = self._ends.pop(moving, None)
            if found is not None and found.end in (End.LOST_HERE, End.LOST_THERE):
                self._tell_loss(context, instance, found)
                self._close_lost(instance.uuid, found)

    def _tell_loss(self, context: Any, instance: Any, found: Outcome) -> None:
        """Have Nova's record of the instance say what happened to it."""
        try:
            records.tell_loss(context, instance, found)
        except Exception:
            LOG.exception("The loss is not on record", instance=instance)

    def _have_followed(
        self, instance: Any, host: str, dest: str, uri: str, relays: str | None
    ) -> None:
        """Have the host's agent recover this migration, should it have to."""
        try:
            self._agent().follow_eviction(
                host,
                instance=instance.uuid,
                destination=dest,
                control_uri=uri,
                migration=relays,
            )
        except Exception as error:  # an older agent, or none: it moves without
            LOG.warning("Nobody would recover this migration: %s", error, instance=instance)

    def _outcome(self, instance: Any, host: str) -> Outcome:
        """How a migration ends that libvirt gave up after its switch."""

        return outcome.wait(
            lambda: self._standing(instance.uuid),
            lambda: self._agent().recovery(host, instance.uuid),
            instance.uuid,
        )

    def _decide(self, instance: Any, dest: str, migrate_data: Any, guest: Any) -> Decision:
        """How it leaves. Raises nothing: what Nova can do must not fail because of this."""
        host = migrate_data.migration.source_compute
        try:
            facts = self._facts(instance, migrate_data, guest)
            for wrong in facts.permission.wrong:
                LOG.warning("Not %s or %s: %s", *permission.VALUES, wrong, instance=instance)
            made = decision.ruled_out(facts) or self._ask(instance, host, dest)
        except Exception as error:
            LOG.exception("No decision on the live migration", instance=instance)
            made = Decision(Kind.STOCK, Reason.ERROR, str(error))
        self._tell(instance, host, dest, made)
        return made

    def _facts(self, instance: Any, migrate_data: Any, guest: Any) -> Facts:
        flags = self._get_migration_flags(migrate_data.block_migration)
        paused = instance.vm_state == vm_states.PAUSED
        return Facts(
            virt_type=CONF.libvirt.virt_type,
            block_migration=bool(migrate_data.block_migration),
            tunnelled=bool(flags & libvirt.VIR_MIGRATE_TUNNELLED),
            paused=paused or guest.get_power_state(self._host) == power_state.PAUSED,
            obstacle=obstacles.find(guest.get_xml_desc()),
            permitted=bool(self._is_post_copy_enabled(flags)),
            permission=permission.post_copy(
                instance.flavor.extra_specs,
                instance.system_metadata,
                instance.metadata,
                CONF.enlightened.post_copy,
            ),
        )

    def _ask(self, instance: Any, host: str, dest: str) -> Decision:
        """What this host's agent wants, which has the relays ready when it wants an order."""
        try:
            return decision.by_answer(
                self._agent().prepare_eviction(
                    host,
                    instance=instance.uuid,
                    destination=dest,
                    tls_required=bool(CONF.libvirt.live_migration_with_native_tls),
                )
            )
        except exception.EnlightenedError as error:
            return decision.by_failure(error)

    def _switched(self, instance: Any) -> None:
        """Have Nova's monitor take note that this migration is in post-copy.

        It asks QEMU once more, which is harmless, and sets the migration's status. Set from
        here, the status could be lost: the monitor saves the same object.
        """
        tasks = self.active_migrations.get(instance.uuid)
        if tasks is not None:
            tasks.append("force-complete")
        LOG.info("Switched to post-copy", instance=instance)

    def _end_eviction(self, instance: Any, host: str, made: Decision, outcome: str) -> None:
        if made.migration is None:
            return
        try:
            relays = self._agent().end_eviction(host, migration=made.migration, outcome=outcome)
            LOG.debug("Relays of %s: %s", made.migration, relays, instance=instance)
        except Exception as error:  # it would take the place of the migration's own outcome
            LOG.warning("The agent was not told %r: %s", outcome, error, instance=instance)

    def _tell(self, instance: Any, host: str, dest: str, made: Decision) -> None:
        """One line for each decision, and have it counted where somebody counts."""
        LOG.info(
            "Live migration to %(dest)s: %(kind)s, %(reason)s (%(words)s)",
            {"dest": dest, "kind": made.kind, "reason": made.reason, "words": made.words},
            instance=instance,
        )
        try:
            self._agent().note_decision(host, instance.uuid, made.kind.value, made.reason.value)
        except Exception as error:  # to count must not cost a migration
            LOG.debug("The decision is not counted: %s", error, instance=instance)

    def _agent(self) -> HostAPI:
        if self._host_api is None:
            self._host_api = HostAPI(nova_rpc.TRANSPORT)
        return self._host_api
