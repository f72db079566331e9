# SPDX-License-Identifier: Apache-2.0
"""Servers that have started from a stored appliance, within Nova's libvirt driver.

They are ordinary ones but for one thing: until all of it is here, their disk lies on what a player
of this host serves. Nothing that would leave the host without the player is begun; whatever opens
the disk again has it served first.
"""

import os
from typing import Any, Final

import nova.conf
from nova import exception as nova_exception
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_enlightened import exception
from nova_enlightened.rpc import HostAPI
from nova_enlightened.virt import appliance

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

ROOT: Final = "disk"
NBD: Final = "nbd+unix://"
AT_REST: Final = frozenset({"none", "done"})
"""Phases of `host.appliance_run` in which the server needs nothing that is not on its disk."""


class StreamedDriver:
    """Mixed into Nova's ``LibvirtDriver``, before it."""

    def _agent(self) -> HostAPI:
        raise NotImplementedError

    def _serve_disk(self, instance: Any) -> None:
        """Have a disk's unfetched part served before a domain opens it.

        :raises nova.exception.InstanceNotReady: it cannot be.
        """
        wanted = kept(instance)
        if wanted is None or not is_overlay(instance):
            return
        try:
            asked = wanted.asked(memory=False)
            self._agent().prepare_appliance(CONF.host, instance.uuid, asked)
        except exception.EnlightenedError as error:
            LOG.error("Its disk is not whole, and the rest cannot be served: %s", error,
                      instance=instance)  # fmt: skip
            raise nova_exception.InstanceNotReady(
                f"{instance.uuid}: a part of its disk is not here yet: {error}",
                instance_id=instance.uuid,
            ) from error

    def _create_images_and_backing(
        self, context: Any, instance: Any, instance_dir: str, disk_info: Any, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """As Nova's; what a streamed disk lies on is no image to fetch."""
        if kept(instance) is not None and is_overlay(instance):
            root = root_disk(instance)
            disk_info = [one for one in disk_info or [] if one["path"] != root]
        super()._create_images_and_backing(  # type: ignore[misc]
            context, instance, instance_dir, disk_info, *args, **kwargs
        )

    def cleanup(
        self, context: Any, instance: Any, network_info: Any, block_device_info: Any = None,
        destroy_disks: bool = True, *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        """As Nova's; the player goes with the disks."""
        super().cleanup(  # type: ignore[misc]
            context, instance, network_info, block_device_info, destroy_disks, *args, **kwargs
        )
        if kept(instance) is not None:
            self._end(instance, kept=not destroy_disks)

    def check_can_live_migrate_source(
        self, context: Any, instance: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As Nova's; refused while a part of it is still at the store."""
        why = self._unfinished(instance)
        if why is not None:
            raise nova_exception.MigrationPreCheckError(reason=why)
        return super().check_can_live_migrate_source(  # type: ignore[misc]
            context, instance, *args, **kwargs
        )

    def migrate_disk_and_power_off(
        self, context: Any, instance: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As Nova's; refused while a part of its disk is still at the store."""
        why = self._unfinished(instance)
        if why is not None:
            raise nova_exception.InstanceFaultRollback(nova_exception.ResizeError(reason=why))
        return super().migrate_disk_and_power_off(  # type: ignore[misc]
            context, instance, *args, **kwargs
        )

    def suspend(self, context: Any, instance: Any) -> None:
        """As Nova's; refused while a part of its memory is still at the store."""
        why = self._unfinished(instance)
        if why is not None:
            raise nova_exception.InstanceFaultRollback(
                nova_exception.InstanceSuspendFailure(reason=why)
            )
        super().suspend(context, instance)  # type: ignore[misc]

    def snapshot(self, context: Any, instance: Any, image_id: str, update_task_state: Any) -> None:
        """As Nova's; refused while a part of its disk is still at the store."""
        why = self._unfinished(instance)
        if why is not None:
            raise nova_exception.InstanceNotReady(f"Not snapshotted: {why}")
        super().snapshot(context, instance, image_id, update_task_state)  # type: ignore[misc]

    def _unfinished(self, instance: Any) -> str | None:
        """Why a server cannot leave its host yet, in words; None where nothing is missing."""
        if kept(instance) is None:
            return None
        try:
            state = self._agent().appliance_state(CONF.host, instance.uuid)
        except exception.EnlightenedError as error:
            if is_overlay(instance):
                return f"a part of its disk is not here, and the agent does not answer: {error}"
            return None
        if state["phase"] in AT_REST and not is_overlay(instance):
            return None
        return (
            f"server {instance.uuid} still streams its appliance ({state['phase']}, "
            f"{state.get('percent', 0)} %): try again when all of it is here"
        )

    def _end(self, instance: Any, *, kept: bool) -> None:
        try:
            self._agent().end_appliance(CONF.host, instance.uuid, kept)
        except exception.EnlightenedError as error:
            # It finds out by itself, from the disk that is gone.
            LOG.warning("The agent was not told: %s", error, instance=instance)


def root_disk(instance: Any) -> str:
    """The file of the root disk, whether it is there or not."""
    return os.path.join(libvirt_utils.get_instance_path(instance), ROOT)


def is_qcow2() -> bool:
    """Whether this host's disks are qcow2 files, as `imagebackend.Backend` has it."""
    kind = CONF.libvirt.images_type
    return bool(kind == "qcow2" or (kind == "default" and CONF.use_cow_images))


def is_overlay(instance: Any) -> bool:
    """Whether the root disk still lies on what a player serves."""
    root = root_disk(instance)
    if not is_qcow2() or not os.path.exists(root):
        return False
    below = libvirt_utils.get_disk_backing_file(root, basename=False)
    return below is not None and below.startswith(NBD)


def kept(instance: Any) -> appliance.Wanted | None:
    """What the server once started from; None for any other server."""
    try:
        return appliance.kept(instance.system_metadata)
    except exception.ManifestError as error:
        LOG.warning("%s", error, instance=instance)
        return None
