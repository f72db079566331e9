# SPDX-License-Identifier: Apache-2.0
"""Servers that start from a stored appliance, within Nova's libvirt driver.

`spawn` goes Nova's way but in three places: instead of a downloaded image the root disk is an
overlay on the player's NBD export, QEMU is started to wait for an incoming migration, and then
the host's agent has it filled. What is defined in libvirt is Nova's own domain, so whatever comes
after a stop is ordinary. Player and guest are the agent's to look after: it, and they, outlive a
restart of nova-compute.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import libvirt
import nova.conf
from nova import exception as nova_exception
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_log import log as logging

from nova_enlightened import exception
from nova_enlightened.rpc import HostAPI
from nova_enlightened.virt import appliance, fitting, merged_xml, obstacles

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

EVENT: Final = "compute_stream_appliance"
LOOK_S: Final = 0.25
ROOT: Final = "disk"
NBD: Final = "nbd+unix://"
GIB: Final = 1 << 30
MIB: Final = 1 << 20
EXECUTING: Final = frozenset({"streaming", "pulling", "done"})
"""Phases of `host.appliances` in which the guest executes."""
AT_REST: Final = frozenset({"none", "done"})
"""Phases in which the server needs nothing that is not on its disk."""
_SAME_CPU: Final = frozenset({libvirt.VIR_CPU_COMPARE_IDENTICAL, libvirt.VIR_CPU_COMPARE_SUPERSET})
_NOT_TOLD: Final = frozenset(
    {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    }
)


@dataclass
class _Start:
    """One server on its way from an appliance to a guest that executes."""

    wanted: appliance.Wanted
    stored: fitting.Stored
    sockets: dict[str, str]
    disk: int
    merged: merged_xml.Merged | None = None


class _WaitingGuest:
    """Nova's guest, which is not to resume what has nothing to execute yet."""

    def __init__(self, guest: Any) -> None:
        self._guest = guest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def resume(self) -> None:
        """The agent does, when enough is there."""


class StreamingDriver:
    """Mixed into Nova's ``LibvirtDriver``, before it."""

    _host: Any
    cpu_api: Any

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._starts: dict[str, _Start] = {}

    def _agent(self) -> HostAPI:
        raise NotImplementedError

    # --- the start ---------------------------------------------------------------------------

    def spawn(self, context: Any, instance: Any, image_meta: Any, *args: Any, **kwargs: Any) -> Any:
        """As Nova's, from the stored appliance where the image names one.

        :raises nova.exception.ImageUnacceptable: no host can start it.
        :raises nova.exception.ComputeResourcesUnavailable: this host cannot; another may.
        """
        spawn = super().spawn  # type: ignore[misc]
        with _as_novas(instance):
            wanted = appliance.wanted(instance.system_metadata, instance.image_ref)
        if wanted is None or os.path.exists(_root(instance)):
            return spawn(context, instance, image_meta, *args, **kwargs)
        with _as_novas(instance):
            self._starts[instance.uuid] = self._prepared(instance, wanted, kwargs)
        appliance.keep(instance.system_metadata, wanted)
        instance.save()
        if CONF.enlightened_streaming.buffering == "paused":
            kwargs["power_on"] = False  # Nova would wait until it runs
        try:
            return spawn(context, instance, image_meta, *args, **kwargs)
        except Exception:
            self._end(instance, kept=False)
            raise
        finally:
            self._starts.pop(instance.uuid, None)

    def _prepared(self, instance: Any, wanted: appliance.Wanted, kwargs: dict[str, Any]) -> _Start:
        """All that can be refused is, before anything starts. Raises ``EnlightenedError``."""
        if not _is_qcow2():
            raise exception.HostUnfit("[libvirt] images_type is not qcow2 on this host")
        if self._is_booted_from_volume(kwargs.get("block_device_info")):  # type: ignore[attr-defined]
            raise exception.ManifestError("an appliance cannot start from a volume")
        asked = wanted.asked(memory=True)
        answer = self._agent().prepare_appliance(CONF.host, instance.uuid, asked)
        try:
            stored = fitting.Stored.of(answer["manifest"])
            sockets = {str(k): str(v) for k, v in answer["sockets"].items()}
            flavor = _size(instance.flavor)
            has = fitting.size_of(stored)
            wrong = fitting.misfit(has, flavor)
            if wrong is not None:
                raise exception.ManifestError(f"the flavor does not fit the appliance: {wrong}")
            self._check_host(stored)
        except Exception:
            self._end(instance, kept=False)
            raise
        return _Start(wanted, stored, sockets, max(has.disk, flavor.disk))

    def _check_host(self, stored: fitting.Stored) -> None:
        """:raises HostUnfit: what was captured cannot execute here."""
        connection = self._host.get_connection()
        why = fitting.older(connection.getVersion(), stored.qemu_version)
        why = why or fitting.unverifiable(stored.cpu)
        if why is not None:
            raise exception.HostUnfit(f"the appliance does not fit this host: {why}")
        kind, arch = CONF.libvirt.virt_type, fitting.arch_of(stored)
        try:
            connection.getDomainCapabilities(None, arch, stored.machine, kind, 0)
        except libvirt.libvirtError as error:
            raise exception.HostUnfit(
                f"the appliance does not fit this host: machine {stored.machine}: {error}"
            ) from error
        if not stored.cpu:
            return
        try:
            same = connection.compareHypervisorCPU(None, arch, stored.machine, kind, stored.cpu, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _NOT_TOLD:
                raise exception.HostUnfit(f"captured CPU: {error}") from error
            # It is compared once more, before the guest executes: QEMU's features, by libvirt.
            LOG.info("libvirt does not compare CPUs of %s: %s", kind, error)
            return
        if same not in _SAME_CPU:
            raise exception.HostUnfit("the appliance's CPU has features that this host's has not")

    def _create_and_inject_local_root(
        self, context: Any, instance: Any, disk_mapping: Any, booted_from_volume: bool,
        suffix: str, *args: Any, **kwargs: Any,
    ) -> bool:  # fmt: skip
        """As Nova's; nothing is fetched for a disk that is streamed."""
        start = self._starts.get(instance.uuid)
        if start is None or suffix:
            made: bool = super()._create_and_inject_local_root(  # type: ignore[misc]
                context, instance, disk_mapping, booted_from_volume, suffix, *args, **kwargs
            )
            return made
        ((target, socket),) = start.sockets.items()
        processutils.execute(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw",
            "-b", f"{NBD}/{target}?socket={socket}", _root(instance), str(start.disk),
        )  # fmt: skip
        return True

    def _create_guest_with_network(
        self, context: Any, xml: str, instance: Any, network_info: Any, block_device_info: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Nova's; a guest that streams executes, or has failed, when this returns."""
        create = super()._create_guest_with_network  # type: ignore[misc]
        start = self._starts.get(instance.uuid)
        if start is None:
            self._serve_disk(instance)
            return create(context, xml, instance, network_info, block_device_info, **kwargs)
        kwargs["power_on"] = True
        guest = create(context, xml, instance, network_info, block_device_info, **kwargs)
        try:
            self._play(context, instance, start, network_info)
        except Exception:
            with suppress(libvirt.libvirtError):
                guest.poweroff()
            self._cleanup(  # type: ignore[attr-defined]
                context, instance, network_info, block_device_info, destroy_vifs=True,
                cleanup_instance_dir=kwargs.get("cleanup_instance_dir", False),
                cleanup_instance_disks=kwargs.get("cleanup_instance_disks", False),
            )  # fmt: skip
            raise
        return guest

    def _create_guest(
        self, context: Any, xml: str, instance: Any, power_on: bool = True, pause: bool = False,
        post_xml_callback: Any = None,
    ) -> Any:  # fmt: skip
        """As Nova's; one that streams waits for an incoming migration, and is Nova's when it
        has stopped.
        """
        create = super()._create_guest  # type: ignore[misc]
        start = self._starts.get(instance.uuid)
        if start is None:
            return create(context, xml, instance, power_on, pause, post_xml_callback)
        with _as_novas(instance):
            start.merged = merged_xml.merge(start.stored.domain_xml, xml, str(uuid.uuid4()))
            why = obstacles.find(start.merged.xml)
            if why is not None:
                raise exception.ManifestError(f"it cannot be streamed: {why}")
        for device in start.merged.dropped:
            LOG.info("At its first cold start it gets %s", device, instance=instance)
        guest = create(context, xml, instance, False, False, post_xml_callback)
        self.cpu_api.power_up_for_instance(instance)
        LOG.debug("Starting %s", start.merged.xml, instance=instance)
        self._host.get_connection().createXML(start.merged.xml, libvirt.VIR_DOMAIN_START_PAUSED)
        return _WaitingGuest(guest)

    def _play(self, context: Any, instance: Any, start: _Start, network_info: Any) -> None:
        identity = {"hostname": instance.hostname, "interfaces": list(_interfaces(network_info))}
        within = float(CONF.enlightened_streaming.start_timeout)
        with _as_novas(instance):
            self._agent().play_appliance(CONF.host, instance.uuid, identity, within)
        if CONF.enlightened_streaming.buffering == "build":
            self._follow(context, instance)
            return
        threading.Thread(
            target=self._follow_paused, args=(context, instance), name="appliance", daemon=True
        ).start()

    def _follow(self, context: Any, instance: Any) -> None:
        """Until it executes; the instance's progress tells how far it is.

        :raises nova.exception.ImageUnacceptable: it will not, and why.
        """
        pause = threading.Event()
        event = compute_utils.EventReporter(
            context, EVENT, CONF.host, instance.uuid, graceful_exit=True
        )
        with event, _as_novas(instance):
            while True:
                state = self._agent().appliance_state(CONF.host, instance.uuid)
                phase = state["phase"]
                if phase in EXECUTING:
                    break
                if state.get("error") or phase == "none":
                    raise exception.StreamingFailed(str(state.get("error") or "its player is gone"))
                self._tell_progress(instance, int(state.get("percent", 0)))
                pause.wait(LOOK_S)
        self._tell_progress(instance, 100)
        LOG.info("The appliance executes: %s", state.get("words", ""), instance=instance)

    def _follow_paused(self, context: Any, instance: Any) -> None:
        """The same, for a server that is ACTIVE already."""
        try:
            self._follow(context, instance)
        except Exception as error:
            LOG.warning("The appliance does not execute: %s", error, instance=instance)
            try:
                compute_utils.add_instance_fault_from_exc(context, instance, error)
                instance.vm_state = vm_states.ERROR
                instance.save()
            except Exception:
                LOG.exception("The fault is not noted", instance=instance)

    @staticmethod
    def _tell_progress(instance: Any, percent: int) -> None:
        if instance.progress != percent:
            instance.progress = percent
            # Whoever deletes the server meanwhile need not wait for it.
            instance.save(expected_task_state=[instance.task_state])

    # --- afterwards --------------------------------------------------------------------------

    def _serve_disk(self, instance: Any) -> None:
        """Have a disk's unfetched part served before a domain opens it.

        :raises nova.exception.InstanceNotReady: it cannot be.
        """
        wanted = _kept(instance)
        if wanted is None or not _is_overlay(instance):
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
        if _kept(instance) is not None and _is_overlay(instance):
            root = _root(instance)
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
        if _kept(instance) is not None:
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
        if _kept(instance) is None:
            return None
        try:
            state = self._agent().appliance_state(CONF.host, instance.uuid)
        except exception.EnlightenedError as error:
            if _is_overlay(instance):
                return f"a part of its disk is not here, and the agent does not answer: {error}"
            return None
        if state["phase"] in AT_REST and not _is_overlay(instance):
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


@contextmanager
def _as_novas(instance: Any) -> Iterator[None]:
    """Errors of this project as those of Nova that have the right consequences."""
    try:
        yield
    except (exception.HostUnfit, exception.AgentUnreachable) as error:
        raise nova_exception.ComputeResourcesUnavailable(reason=str(error)) from error
    except exception.EnlightenedError as error:
        raise nova_exception.ImageUnacceptable(
            image_id=instance.image_ref, reason=str(error)
        ) from error


def _root(instance: Any) -> str:
    return os.path.join(libvirt_utils.get_instance_path(instance), ROOT)


def _is_qcow2() -> bool:
    """Whether this host's disks are qcow2 files, as `imagebackend.Backend` has it."""
    kind = CONF.libvirt.images_type
    return bool(kind == "qcow2" or (kind == "default" and CONF.use_cow_images))


def _is_overlay(instance: Any) -> bool:
    """Whether the root disk still lies on what a player serves."""
    root = _root(instance)
    if not _is_qcow2() or not os.path.exists(root):
        return False
    below = libvirt_utils.get_disk_backing_file(root, basename=False)
    return below is not None and below.startswith(NBD)


def _kept(instance: Any) -> appliance.Wanted | None:
    try:
        return appliance.kept(instance.system_metadata)
    except exception.ManifestError as error:
        LOG.warning("%s", error, instance=instance)
        return None


def _size(flavor: Any) -> fitting.Size:
    return fitting.Size(
        flavor.vcpus, flavor.memory_mb * MIB, flavor.root_gb * GIB, flavor.ephemeral_gb * GIB,
        flavor.swap * MIB,
    )  # fmt: skip


def _interfaces(network_info: Any) -> Iterator[dict[str, Any]]:
    """What each interface of the clone is from now on, in the order Nova has them."""
    for vif in network_info or []:
        addresses, gateway = [], None
        for subnet in vif["network"]["subnets"]:
            prefix = subnet["cidr"].rpartition("/")[2]
            addresses += [f"{ip['address']}/{prefix}" for ip in subnet["ips"]]
            router = subnet.get("gateway")
            if router is not None and router["address"] and router["version"] == 4:
                gateway = router["address"]
        yield {"mac": vif["address"], "addresses": addresses, "gateway": gateway}
